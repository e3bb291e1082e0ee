//! What writes: one batch after the other, by a thread of its own or step by step.
//!
//! It takes all that is queued, writes it with as few calls as the system allows, syncs once and tells everyone. It
//! never waits for more to come: while it syncs, the next batch gathers by itself, so a lone append is not delayed
//! and a crowd shares its syncs.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    disk::{DirLock, Disk, DiskFile},
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
    queue::{Batch, Done, Queue, Queued},
    recovery::Recovered,
    segment::{self, Salts},
};

/// What the pump counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) appended_records: u64,
    pub(crate) appended_bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) sync_time: Duration,
    pub(crate) last_sync: Duration,
    pub(crate) segments: u64,
    pub(crate) disk_bytes: u64,
}

/// The disk failed under the journal. Nothing more is written and nobody who waits is told anything: the node must
/// stop.
#[derive(Debug, Clone, thiserror::Error)]
#[error("failed to {action} journal segment {}: {reason}", path.display())]
pub struct Failure {
    /// What was being attempted.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The system's answer.
    pub reason: String,
}

/// A batch that was written and not yet synced.
struct Written {
    records: Vec<Queued>,
    done: Vec<Done>,
}

/// Writes what was appended to its journal. Made by [`Journal::open_on`](crate::Journal::open_on) for whoever drives
/// it step by step; [`Journal::open`](crate::Journal::open) has a thread do it.
pub struct Pump {
    disk: Arc<dyn Disk>,
    salts: Salts,
    queue: Arc<Queue>,
    counters: Arc<Mutex<Counters>>,
    file: Box<dyn DiskFile>,
    segment: SegmentHeader,
    /// Where the records end.
    end: u64,
    /// Before which offset all is on disk.
    synced: u64,
    /// Whether a mark stands at the end.
    marked: bool,
    written: Option<Written>,
    failed: Option<Failure>,
    /// Held as long as somebody may write.
    lock: Option<DirLock>,
}

impl Pump {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        salts: Salts,
        queue: Arc<Queue>,
        counters: Arc<Mutex<Counters>>,
        recovered: Recovered,
    ) -> Pump {
        let Recovered { file, header, end, marked, .. } = recovered;
        Pump {
            disk,
            salts,
            queue,
            counters,
            file,
            segment: header,
            end,
            synced: end,
            marked,
            written: None,
            failed: None,
            lock: None,
        }
    }

    /// Keeps the directory's lock until the pump is dropped.
    pub(crate) fn hold(&mut self, lock: DirLock) {
        self.lock = Some(lock);
    }

    /// Writes at most one batch, syncs it and tells those who wait; false when nothing was queued.
    ///
    /// # Errors
    /// When the disk fails, and ever after.
    pub fn step(&mut self) -> Result<bool, Failure> {
        let wrote = self.write()?;
        self.sync()?;
        Ok(wrote)
    }

    /// The first half of [`Pump::step`]: writes at most one batch and leaves it unsynced; false when nothing was queued.
    /// A batch that was written before is synced first.
    ///
    /// # Errors
    /// When the disk fails, and ever after.
    pub fn write(&mut self) -> Result<bool, Failure> {
        self.sync()?;
        let Some(Batch { records, done }) = self.queue.take() else {
            self.run("write a mark to", Self::mark_when_idle)?;
            return Ok(false);
        };
        let mut rest = &records[..];
        while let Some(first) = rest.first() {
            if first.position.segment != self.segment.number {
                self.run("begin the successor of", Self::next_segment)?;
            }
            let same =
                rest.iter().take_while(|queued| queued.position.segment == self.segment.number).count();
            let (now, later) = rest.split_at(same);
            assert!(!now.is_empty(), "positions skip a segment");
            self.run("write to", |pump| pump.write_records(now))?;
            rest = later;
        }
        self.written = Some(Written { records, done });
        Ok(true)
    }

    /// The second half of [`Pump::step`]: syncs what was written and tells those who wait.
    ///
    /// # Errors
    /// When the disk fails, and ever after.
    pub fn sync(&mut self) -> Result<(), Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let Some(Written { records, done }) = self.written.take() else { return Ok(()) };
        self.run("sync", Self::sync_file)?;
        self.queue.written(&records);
        drop(records);
        done.into_iter().for_each(|done| done());
        Ok(())
    }

    /// Whether somebody waits for what is queued, and not only records of [`append_unsynced`] are.
    ///
    /// [`append_unsynced`]: crate::Journal::append_unsynced
    pub fn is_waited_for(&self) -> bool {
        self.queue.is_waited_for()
    }

    /// Has `waker` called whenever something is queued, so that a step is worth it.
    pub fn wake_with(&self, waker: impl Fn() + Send + Sync + 'static) {
        self.queue.wake_with(Arc::new(waker));
    }

    /// Writes until the queue is closed.
    pub(crate) fn run_until_closed(&mut self) -> Result<(), Failure> {
        loop {
            self.run("write a mark to", Self::mark_when_idle)?;
            if !self.queue.wait() {
                return Ok(());
            }
            self.step()?;
        }
    }

    /// Nothing that was promised may be taken back once a step has failed, and nothing may be promised any more.
    fn run(
        &mut self,
        action: &'static str,
        step: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> Result<(), Failure> {
        step(self).map_err(|error| {
            let path = self.disk.path(&segment::name(self.segment.number));
            let failure = Failure { action, path, reason: error.to_string() };
            self.failed = Some(failure.clone());
            failure
        })
    }

    fn write_records(&mut self, records: &[Queued]) -> io::Result<()> {
        let headers: Vec<[u8; RECORD_HEADER]> = records.iter().map(|queued| self.header(queued)).collect();
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(records.len() * 3);
        let begin = self.end;
        for (queued, header) in records.iter().zip(&headers) {
            assert_eq!(queued.position.offset, self.end, "positions leave a gap");
            slices.push(IoSlice::new(header));
            slices.extend(queued.payload.iter().filter(|piece| !piece.is_empty()).map(|p| IoSlice::new(p)));
            self.end = queued.position.end();
        }
        self.file.write_at(&mut slices, begin)?;
        self.marked = false;
        let mut counters = self.counters.lock();
        counters.appended_records += records.len() as u64;
        counters.appended_bytes += records.iter().map(|queued| u64::from(queued.position.len)).sum::<u64>();
        counters.disk_bytes += self.end - begin;
        Ok(())
    }

    fn header(&self, queued: &Queued) -> [u8; RECORD_HEADER] {
        let header = RecordHeader {
            kind: Kind::Record,
            stream: queued.stream,
            len: queued.position.len,
            synced: self.synced,
            payload_crc: queued.payload_crc,
        };
        header.encode(&self.segment, queued.position.offset)
    }

    fn sync_file(&mut self) -> io::Result<()> {
        if self.synced == self.end {
            return Ok(());
        }
        let begin = self.disk.now();
        self.file.sync_data()?;
        let took = self.disk.now().saturating_sub(begin);
        self.synced = self.end;
        let mut counters = self.counters.lock();
        counters.syncs += 1;
        counters.sync_time += took;
        counters.last_sync = took;
        Ok(())
    }

    /// Closes this segment and goes on with the next one. The old one is on disk before the new one exists.
    fn next_segment(&mut self) -> io::Result<()> {
        self.sync_file()?;
        let number = self.segment.number + 1;
        let (file, header) = segment::create(&*self.disk, number, self.end, &mut self.salts)?;
        self.file = file;
        self.segment = header;
        self.end = SEGMENT_HEADER as u64;
        self.synced = self.end;
        self.marked = true;
        let mut counters = self.counters.lock();
        counters.segments += 1;
        counters.disk_bytes += self.end;
        Ok(())
    }

    /// Notes that all is on disk, when there is nothing else to write. The note itself is not synced.
    fn mark_when_idle(&mut self) -> io::Result<()> {
        if self.marked {
            return Ok(());
        }
        assert_eq!(self.synced, self.end, "idle with unsynced records");
        let Some(offset) = self.queue.place_mark() else { return Ok(()) };
        assert_eq!(offset, self.end, "the mark's position leaves a gap");
        let mark = RecordHeader::mark(self.synced).encode(&self.segment, offset);
        self.file.write_at(&mut [IoSlice::new(&mark)], offset)?;
        self.end += RECORD_HEADER as u64;
        self.marked = true;
        self.counters.lock().disk_bytes += RECORD_HEADER as u64;
        Ok(())
    }
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (segment, end) = (self.segment.number, self.end);
        f.debug_struct("Pump").field("segment", &segment).field("end", &end).finish_non_exhaustive()
    }
}
