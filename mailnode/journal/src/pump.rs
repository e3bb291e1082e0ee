//! What writes: one batch after the other, by a thread of its own or step by step.
//!
//! It takes all that is queued, writes it with as few calls as the system allows, syncs once and tells everyone. It
//! never waits for more to come: while it syncs, the next batch gathers by itself, so a lone append is not delayed
//! and a crowd shares its syncs.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::mutation::{self, Mutation};
use crate::{
    catalog::Catalog,
    disk::DirLock,
    failure::Failure,
    format::Kind,
    queue::{Batch, Done, Queue, Queued},
    recovery::Recovered,
    segment,
    tail::{Outgoing, Tail},
};

/// What the pump counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) appended_records: u64,
    pub(crate) appended_bytes: u64,
    pub(crate) syncs: u64,
    pub(crate) sync_time: Duration,
    pub(crate) last_sync: Duration,
}

/// A batch that was written and not yet synced.
struct Written {
    records: Vec<Queued>,
    done: Vec<Done>,
}

/// Writes what was appended to its journal. Made by [`Journal::open_on`](crate::Journal::open_on) for whoever drives
/// it step by step; [`Journal::open`](crate::Journal::open) has a thread do it.
pub struct Pump {
    catalog: Arc<Catalog>,
    queue: Arc<Queue>,
    counters: Arc<Mutex<Counters>>,
    tail: Tail,
    written: Option<Written>,
    /// Held as long as somebody may write.
    lock: Option<DirLock>,
}

impl Pump {
    pub(crate) fn new(queue: Arc<Queue>, counters: Arc<Mutex<Counters>>, recovered: Recovered) -> Pump {
        let Recovered { catalog, tail } = recovered;
        Pump { catalog, queue, counters, tail, written: None, lock: None }
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
            self.run("write a mark to journal segment", Self::mark_when_idle)?;
            return Ok(false);
        };
        let mut rest = &records[..];
        while let Some(first) = rest.first() {
            if first.position.segment != self.tail.header.number {
                self.run("begin the successor of journal segment", Self::next_segment)?;
            }
            let same =
                rest.iter().take_while(|queued| queued.position.segment == first.position.segment).count();
            let (now, later) = rest.split_at(same);
            assert!(!now.is_empty(), "positions skip a segment");
            self.run("write to journal segment", |pump| pump.write_records(now))?;
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
        if let Some(failure) = self.catalog.failure() {
            return Err(failure);
        }
        let Some(Written { records, done }) = self.written.take() else { return Ok(()) };
        if !mutation::is(Mutation::AcknowledgeBeforeSync) {
            self.run("sync journal segment", Self::sync_file)?;
        }
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
            self.run("write a mark to journal segment", Self::mark_when_idle)?;
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
            let path = self.catalog.disk.path(&segment::name(self.tail.header.number));
            let failure = Failure::new(action, path, &error);
            self.catalog.fail(&failure);
            failure
        })
    }

    fn write_records(&mut self, records: &[Queued]) -> io::Result<()> {
        self.tail.write(records.iter().map(|queued| Outgoing {
            position: queued.position,
            stream: queued.stream,
            payload: &queued.payload,
            payload_crc: queued.payload_crc,
        }))?;
        let mut counters = self.counters.lock();
        counters.appended_records += records.len() as u64;
        counters.appended_bytes += records.iter().map(|queued| u64::from(queued.position.len)).sum::<u64>();
        Ok(())
    }

    fn sync_file(&mut self) -> io::Result<()> {
        let begin = self.catalog.disk.now();
        if self.tail.sync()? {
            let took = self.catalog.disk.now().saturating_sub(begin);
            let mut counters = self.counters.lock();
            counters.syncs += 1;
            counters.sync_time += took;
            counters.last_sync = took;
        }
        Ok(())
    }

    /// Closes this segment and goes on with the next one. The old one is on disk before the new one exists.
    fn next_segment(&mut self) -> io::Result<()> {
        let end = self.tail.seal(&self.catalog)?;
        self.tail = Tail::create(&self.catalog, self.tail.header.number + 1, end)?;
        Ok(())
    }

    /// Notes that all is on disk, when there is nothing else to write. The note itself is not synced.
    fn mark_when_idle(&mut self) -> io::Result<()> {
        if self.tail.marked {
            return Ok(());
        }
        assert_eq!(self.tail.synced, self.tail.end, "idle with unsynced records");
        let Some(offset) = self.queue.place_mark(self.tail.header.number) else { return Ok(()) };
        assert_eq!(offset, self.tail.end, "the mark's position leaves a gap");
        self.tail.note(Kind::Mark)
    }
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (segment, end) = (self.tail.header.number, self.tail.end);
        f.debug_struct("Pump").field("segment", &segment).field("end", &end).finish_non_exhaustive()
    }
}
