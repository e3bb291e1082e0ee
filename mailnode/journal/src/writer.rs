//! The one thread that writes.
//!
//! It takes all that is queued, writes it with as few calls as the system allows, syncs once and tells everyone. It
//! never waits for more to come: while it syncs, the next batch gathers by itself, so a lone append is not delayed
//! and a crowd shares its syncs.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
    queue::{Batch, Queue, Queued},
    recovery::Recovered,
    segment,
};

/// Slices in one vectored write; Linux takes at most 1024 (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// What the writer counts.
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

/// State of the writing thread.
pub(crate) struct Writer {
    dir: PathBuf,
    queue: Arc<Queue>,
    counters: Arc<Mutex<Counters>>,
    file: File,
    segment: SegmentHeader,
    /// Where the file ends.
    end: u64,
    /// Before which offset all is on disk.
    synced: u64,
    /// Whether a mark stands at the end.
    marked: bool,
}

impl Writer {
    pub(crate) fn new(
        dir: PathBuf,
        queue: Arc<Queue>,
        counters: Arc<Mutex<Counters>>,
        recovered: Recovered,
    ) -> Writer {
        let Recovered { file, header, end, marked, .. } = recovered;
        Writer { dir, queue, counters, file, segment: header, end, synced: end, marked }
    }

    /// Writes until the queue is closed. An error ends the process, see the crate's description.
    pub(crate) fn run(mut self) {
        loop {
            self.or_abort("write a mark to", Self::mark_when_idle);
            let Some(batch) = self.queue.take() else { return };
            self.write_batch(batch);
        }
    }

    fn write_batch(&mut self, batch: Batch) {
        let Batch { records, done } = batch;
        let mut rest = &records[..];
        while let Some(first) = rest.first() {
            if first.position.segment != self.segment.number {
                self.or_abort("begin the successor of", Self::next_segment);
            }
            let same =
                rest.iter().take_while(|queued| queued.position.segment == self.segment.number).count();
            let (now, later) = rest.split_at(same);
            assert!(!now.is_empty(), "positions skip a segment");
            self.or_abort("write to", |writer| writer.write(now));
            rest = later;
        }
        self.or_abort("sync", Self::sync);
        self.queue.written(&records);
        drop(records);
        done.into_iter().for_each(|done| done());
    }

    /// Ends the process when `step` fails: nothing that was promised may be taken back, and nothing may be promised.
    fn or_abort(&mut self, action: &str, step: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = step(self) {
            let path = self.dir.join(segment::name(self.segment.number));
            die(&format!("failed to {action} journal segment {}: {error}", path.display()));
        }
    }

    fn write(&mut self, records: &[Queued]) -> io::Result<()> {
        let headers: Vec<[u8; RECORD_HEADER]> = records.iter().map(|queued| self.header(queued)).collect();
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(records.len() * 3);
        for (queued, header) in records.iter().zip(&headers) {
            assert_eq!(queued.position.offset, self.end, "positions leave a gap");
            slices.push(IoSlice::new(header));
            slices.extend(queued.payload.iter().filter(|piece| !piece.is_empty()).map(|p| IoSlice::new(p)));
            self.end = queued.position.end();
        }
        for some in slices.chunks_mut(MAX_SLICES) {
            write_all_vectored(&mut self.file, some)?;
        }
        self.marked = false;
        let bytes = records.iter().map(|queued| queued.position.end() - queued.position.offset).sum::<u64>();
        let mut counters = self.counters.lock();
        counters.appended_records += records.len() as u64;
        counters.appended_bytes += records.iter().map(|queued| u64::from(queued.position.len)).sum::<u64>();
        counters.disk_bytes += bytes;
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

    fn sync(&mut self) -> io::Result<()> {
        if self.synced == self.end {
            return Ok(());
        }
        let begin = Instant::now();
        self.file.sync_data()?;
        let took = begin.elapsed();
        self.synced = self.end;
        let mut counters = self.counters.lock();
        counters.syncs += 1;
        counters.sync_time += took;
        counters.last_sync = took;
        Ok(())
    }

    /// Closes this segment and goes on with the next one. The old one is on disk before the new one exists.
    fn next_segment(&mut self) -> io::Result<()> {
        self.sync()?;
        let (file, header) = segment::create(&self.dir, self.segment.number + 1, self.end)?;
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
        self.file.write_all(&RecordHeader::mark(self.synced).encode(&self.segment, offset))?;
        self.end += RECORD_HEADER as u64;
        self.marked = true;
        self.counters.lock().disk_bytes += RECORD_HEADER as u64;
        Ok(())
    }
}

/// Says why and ends the process at once, without running anything that could promise more.
pub(crate) fn die(reason: &str) -> ! {
    eprintln!("quorumail journal: {reason}; stopping at once so that nothing unsafe is acknowledged");
    process::abort()
}

fn write_all_vectored(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command, thread};

    use super::*;
    use crate::{Record, StreamId};

    const CHILD: &str = "QUORUMAIL_JOURNAL_TEST_FAILING_SYNC";

    /// The device takes every write, and `fdatasync` on it fails: just what is needed here.
    const UNSYNCABLE: &str = "/dev/null";

    fn acknowledge_on_a_disk_that_cannot_sync() {
        let file = File::options().write(true).open(UNSYNCABLE).unwrap();
        let header = SegmentHeader { number: 1, previous_len: 0, salt: 1 };
        let end = SEGMENT_HEADER as u64;
        let recovered = Recovered { file, header, end, marked: true, segments: 1, disk_bytes: end };
        let queue = Arc::new(Queue::new(1, end, 1 << 20, 1 << 20));
        let record = Record { stream: StreamId(1), payload: vec!["mail".into()] };
        queue.push(vec![record], Some(Box::new(|| println!("acknowledged"))), true);
        queue.close();
        let writer = Writer::new("/nowhere".into(), queue, Arc::default(), recovered);
        thread::spawn(|| writer.run()).join().unwrap();
        println!("survived");
    }

    #[test]
    fn a_failed_sync_ends_the_process_and_acknowledges_nothing() {
        use std::os::unix::process::ExitStatusExt;
        if env::var_os(CHILD).is_some() {
            return acknowledge_on_a_disk_that_cannot_sync();
        }
        let output = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "writer::tests::a_failed_sync_ends_the_process_and_acknowledges_nothing",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.signal(), Some(6), "not aborted: {out}{err}");
        assert!(err.contains("failed to sync journal segment /nowhere/0000000000000001.seg"), "{err}");
        assert!(!out.contains("acknowledged") && !out.contains("survived"), "{out}");
    }
}
