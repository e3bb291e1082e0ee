//! What callers hold: a cheap handle on the queue, the reader and the writing thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    Class, KeepError, OpenError, Position, ReadError, Record, RecordInfo, RecycleError, SegmentInfo,
    StreamId,
    catalog::Catalog,
    disk::{DirLock, Disk},
    failure::{self, Failure},
    fs_disk::FsDisk,
    index,
    kept::{self, Keeper},
    pump::{Counters, Pump},
    queue::{Done, Queue},
    recovery::{self, io_error},
    segment::{self, Reader},
    verify::{self, ScanReport},
};

/// Where a journal lies and how much it may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the segments; made when it is not there. Without meaning where the disk is given.
    pub dir: PathBuf,
    /// Bytes after which the next record begins a new segment. A longer record has a segment for itself.
    pub segment_bytes: u64,
    /// Longest payload of a record in bytes. Appending a longer one is a broken promise of the caller and panics.
    pub max_record_bytes: u32,
    /// Bytes that may be queued and not yet on disk. An append beyond it blocks until there is room, except that one
    /// append is always taken when nothing else is queued. Callers that must not block look at
    /// [`Journal::pending_bytes`] before.
    pub max_pending_bytes: u64,
    /// Where the segments' salts are drawn from: the system's randomness when none, else all from this seed, so that a
    /// simulation can be repeated. Every life of a journal needs another seed.
    pub salt_seed: Option<u64>,
    /// Whether a journal whose disk failed is read back and opened when no damage is found; it is refused otherwise.
    /// Reading all of it back takes its time, which is told in the log.
    pub verify_after_failure: bool,
}

impl Options {
    /// A journal in `dir` with the usual limits: segments of 64 MiB, records of at most 96 MiB, 256 MiB pending.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            max_record_bytes: 96 << 20,
            max_pending_bytes: 256 << 20,
            salt_seed: None,
            verify_after_failure: false,
        }
    }
}

/// What a journal has done since it was opened, and what it takes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records written since the journal was opened.
    pub appended_records: u64,
    /// Bytes of their payloads.
    pub appended_bytes: u64,
    /// Calls of `fdatasync`.
    pub syncs: u64,
    /// Time spent in them, in all.
    pub sync_time: Duration,
    /// How long the last one took.
    pub last_sync: Duration,
    /// Bytes queued and not yet known to be on disk.
    pub pending_bytes: u64,
    /// Segments, of the log and kept ones.
    pub segments: u64,
    /// Bytes of all segment files, those that wait to be used again included.
    pub disk_bytes: u64,
    /// Bytes of the files of kept segments.
    pub kept_bytes: u64,
    /// The segment of the log below which nothing is read when the journal is opened.
    pub floor: u64,
    /// Files that wait to be used again.
    pub free_segments: u64,
    /// Segments made from new files since the journal was opened.
    pub made_segments: u64,
    /// Segments made from files that were segments before.
    pub reused_segments: u64,
    /// Segments taken out because nothing in them was needed any more.
    pub recycled_segments: u64,
}

/// The node's log. Clones share it; when the last one is dropped, what is queued is written and the thread ends.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<Queue>,
    reader: Reader,
    catalog: Arc<Catalog>,
    keeper: Keeper,
    counters: Arc<Mutex<Counters>>,
    max_record_bytes: u32,
    thread: Option<Thread>,
}

/// The thread that drives the pump.
struct Thread {
    handle: Mutex<Option<JoinHandle<()>>>,
    id: thread::ThreadId,
}

impl Thread {
    fn is_current(&self) -> bool {
        thread::current().id() == self.id
    }
}

impl Journal {
    /// Opens or creates a journal and calls `visit` for every record of the log from the floor on, in the order of
    /// writing, with the first [`HEAD_BYTES`](crate::HEAD_BYTES) bytes of its payload. A torn tail is cut; everything
    /// that was visited is on disk when this returns. Blocking I/O.
    ///
    /// # Errors
    /// When the directory is in use, when something that had been safe is damaged, or when the system refuses I/O.
    pub fn open(
        options: Options,
        visit: impl FnMut(Position, StreamId, &[u8]),
    ) -> Result<Journal, OpenError> {
        let at = |action| io_error(action, options.dir.clone());
        let disk = FsDisk::open(&options.dir).map_err(at("create journal directory"))?;
        Self::open_with_thread(Arc::new(disk), &options, visit)
    }

    fn open_with_thread(
        disk: Arc<dyn Disk>,
        options: &Options,
        visit: impl FnMut(Position, StreamId, &[u8]),
    ) -> Result<Journal, OpenError> {
        let dir = disk.path("");
        let (mut shared, lock, mut pump) = Self::prepare(disk, options, visit)?;
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                // The lock is let go when the last byte has been written, not before.
                let _lock = lock;
                match catch_unwind(AssertUnwindSafe(|| pump.run_until_closed())) {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => die(&failure.to_string()),
                    Err(_) => die("the writing thread panicked"),
                }
            })
            .map_err(io_error("start the writing thread of journal", dir))?;
        let id = thread.thread().id();
        shared.thread = Some(Thread { handle: Mutex::new(Some(thread)), id });
        Ok(Journal { shared: Arc::new(shared) })
    }

    /// Like [`Journal::open`], on any disk and without a thread: what is appended is written when the pump is driven.
    /// An append never blocks then. The directory is taken until the pump is dropped.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: &Options,
        visit: impl FnMut(Position, StreamId, &[u8]),
    ) -> Result<(Journal, Pump), OpenError> {
        let (shared, lock, mut pump) = Self::prepare(disk, options, visit)?;
        pump.hold(lock);
        Ok((Journal { shared: Arc::new(shared) }, pump))
    }

    fn prepare(
        disk: Arc<dyn Disk>,
        options: &Options,
        mut visit: impl FnMut(Position, StreamId, &[u8]),
    ) -> Result<(Shared, DirLock, Pump), OpenError> {
        let dir = || disk.path("");
        let lock =
            disk.lock().map_err(io_error("lock", dir()))?.ok_or_else(|| OpenError::Locked { dir: dir() })?;
        failure::check(&*disk, options)?;
        let recovered = recovery::recover(Arc::clone(&disk), options, &mut visit)?;
        let queue = Arc::new(Queue::new(
            recovered.tail.header.number,
            recovered.tail.end,
            options.segment_bytes,
            options.max_pending_bytes,
        ));
        let counters = Arc::new(Mutex::new(Counters::default()));
        let catalog = Arc::clone(&recovered.catalog);
        let pump = Pump::new(Arc::clone(&queue), Arc::clone(&counters), recovered);
        let shared = Shared {
            queue,
            reader: Reader::new(disk),
            keeper: Keeper::new(Arc::clone(&catalog), options.segment_bytes),
            catalog,
            counters,
            max_record_bytes: options.max_record_bytes,
            thread: None,
        };
        Ok((shared, lock, pump))
    }

    /// Queues records, one behind the other and in order, and returns their positions at once; they can be read at
    /// once. `done` is called by the writing thread when all of them, and all appended before, are on disk. It should
    /// be short, for everyone else waits; a panic in it ends the process.
    ///
    /// Blocks while more than `max_pending_bytes` are queued (not when called from within a `done`).
    ///
    /// # Panics
    /// When a payload is longer than `max_record_bytes`.
    pub fn append(&self, records: Vec<Record>, done: impl FnOnce() + Send + 'static) -> Vec<Position> {
        self.push(records, Some(Box::new(done)))
    }

    /// Like [`Journal::append`] for records that nobody waits for: they are written and synced, in order, with the
    /// next batch, or after a second when none comes.
    ///
    /// # Panics
    /// When a payload is longer than `max_record_bytes`.
    pub fn append_unsynced(&self, records: Vec<Record>) -> Vec<Position> {
        self.push(records, None)
    }

    /// The payload of a record, its checksum verified. What is not yet on disk comes from memory. Blocking I/O.
    ///
    /// # Errors
    /// When there is no such record, when it is damaged, or when it cannot be read.
    pub fn read(&self, position: Position) -> Result<Bytes, ReadError> {
        let not_found = || segment::not_found(position);
        if position.len > self.shared.max_record_bytes {
            return Err(not_found());
        }
        match self.shared.queue.pending(position) {
            Some(payload) if payload.len() == position.len as usize => Ok(payload),
            Some(_) => Err(not_found()),
            None => self.shared.reader.read(position).map_err(|error| match error {
                // It was recycled, perhaps while it was being read.
                ReadError::Damaged { .. } if !self.shared.catalog.has(position.segment) => not_found(),
                other => other,
            }),
        }
    }

    /// A part of a payload. The whole record is read to verify its checksum. Blocking I/O.
    ///
    /// # Errors
    /// As [`Journal::read`], and when the range does not lie within the payload.
    pub fn read_range(&self, position: Position, offset: u32, len: u32) -> Result<Bytes, ReadError> {
        match offset.checked_add(len) {
            Some(end) if end <= position.len => Ok(self.read(position)?.slice(offset as usize..end as usize)),
            _ => Err(ReadError::OutOfRange { offset, len, payload: position.len }),
        }
    }

    /// Writes records to kept segments, in order, and returns when they are on disk, with their positions. They are not
    /// visited when the journal is opened; whoever keeps them remembers where they are. Several callers wait for each
    /// other, never for the log's writer. Blocking I/O.
    ///
    /// # Errors
    /// When the disk is full or fails.
    ///
    /// # Panics
    /// When a payload is longer than `max_record_bytes`.
    pub fn keep(&self, records: &[Record]) -> Result<Vec<Position>, KeepError> {
        self.check_lengths(records);
        if let Some(failure) = self.shared.catalog.failure() {
            return Err(KeepError::Io(std::io::Error::other(failure.to_string())));
        }
        self.shared.keeper.keep(records).map_err(|error| self.not_kept(error))
    }

    /// Has nothing more written to a segment, as if it were full: for one in which something was found damaged, so that it
    /// can be left behind. One of kept records is sealed on return, one of the log with the next record. Blocking I/O.
    ///
    /// # Errors
    /// As [`Journal::keep`].
    pub fn end_segment(&self, segment: u64) -> Result<(), KeepError> {
        match segment::class(segment) {
            Class::Log => self.shared.queue.end_segment(segment),
            Class::Kept => self.shared.keeper.end_segment(segment).map_err(|error| self.not_kept(error))?,
        }
        Ok(())
    }

    /// What a failure to write kept records means; the process ends unless the disk was only full.
    fn not_kept(&self, error: std::io::Error) -> KeepError {
        let error = kept::keep_error(error);
        if let KeepError::Io(source) = &error {
            let path = self.shared.catalog.disk.path("");
            let failure = Failure::new("write kept records in", path, source);
            self.shared.catalog.fail(&failure);
            if self.shared.thread.is_some() {
                die(&failure.to_string());
            }
        }
        error
    }

    /// All segments, those of the log first, each class in the order of writing. Blocking I/O the first time, for the
    /// segments below the floor have not been looked at before.
    ///
    /// # Errors
    /// When the system refuses to read one.
    pub fn segments(&self) -> Result<Vec<SegmentInfo>, ReadError> {
        let known: Vec<_> = {
            let state = self.shared.catalog.state.lock();
            state.segments.iter().map(|(number, known)| (*number, *known)).collect()
        };
        let mut infos = Vec::with_capacity(known.len());
        for (number, known) in known {
            let records = match known.records {
                Some(records) => records,
                None if !known.sealed => 0,
                None => match self.count(number) {
                    Ok(records) => records,
                    Err(ReadError::NotFound { .. }) => continue,
                    // It cannot tell itself, but it is there, and must not hide all the others.
                    Err(ReadError::Damaged { .. }) => {
                        self.note_records(number, 0);
                        0
                    }
                    Err(error) => return Err(error),
                },
            };
            infos.push(SegmentInfo {
                number,
                class: segment::class(number),
                bytes: known.bytes,
                records,
                sealed: known.sealed,
            });
        }
        Ok(infos)
    }

    /// The records of a sealed segment, in order, from its side index. Blocking I/O.
    ///
    /// # Errors
    /// `NotFound` when there is no such sealed segment; otherwise when it has no side index and cannot be read.
    pub fn records(&self, segment: u64) -> Result<Vec<RecordInfo>, ReadError> {
        if !self.is_sealed(segment) {
            return Err(segment::not_found(Position { segment, offset: 0, len: 0 }));
        }
        Ok(verify::index_of(&*self.shared.catalog.disk, segment)?.iter().collect())
    }

    /// Gives a segment's space back, or keeps its file to be written over. The caller vouches that nothing refers to any
    /// record in it, not even after a crash. Blocking I/O.
    ///
    /// # Errors
    /// When it is still written to, when it is of the log and not below the floor, or when the system refuses I/O.
    pub fn recycle(&self, segment: u64) -> Result<(), RecycleError> {
        let name = || segment::name(segment);
        let state = self.shared.catalog.state.lock();
        let known = state.segments.get(&segment).copied().ok_or_else(|| RecycleError::NotFound(name()))?;
        let below = segment::class(segment) == Class::Kept || segment < state.floor;
        drop(state);
        if !known.sealed || !below {
            return Err(RecycleError::Needed(name()));
        }
        self.shared.reader.forget(segment);
        let retired = self.shared.catalog.retire(segment);
        // A reader may have opened it again in between.
        self.shared.reader.forget(segment);
        retired.map_err(|source| RecycleError::Io { segment: name(), source })
    }

    /// Declares that no log needs a record below this segment: they are not visited any more when the journal is opened,
    /// and only there may segments of the log be recycled. Durable on return; a floor that is not above the present one
    /// changes nothing. Blocking I/O.
    ///
    /// # Errors
    /// When the system refuses I/O; the floor is where it was then.
    ///
    /// # Panics
    /// When the segment is newer than the newest one.
    pub fn set_floor(&self, segment: u64) -> std::io::Result<()> {
        self.shared.catalog.set_floor(segment)
    }

    /// The oldest segment of the log that belongs to its last `bytes`, by length of the files; the newest at least.
    pub fn last_of_log(&self, bytes: u64) -> u64 {
        self.shared.catalog.last_of_log(bytes)
    }

    /// Whether a record is what was written. Blocking I/O.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn check(&self, position: Position) -> Result<(), ReadError> {
        self.read(position).map(drop)
    }

    /// Reads a sealed segment and compares every record with what the side index says should be there. `pace` is called
    /// with the number of bytes after each read: it may sleep to bound the rate, and ends the scan with false. Blocking
    /// I/O.
    ///
    /// # Errors
    /// `NotFound` when there is no such sealed segment (any more); otherwise when it cannot be opened at all.
    pub fn scan(&self, segment: u64, pace: &mut dyn FnMut(u64) -> bool) -> Result<ScanReport, ReadError> {
        let not_found = || segment::not_found(Position { segment, offset: 0, len: 0 });
        if !self.is_sealed(segment) {
            return Err(not_found());
        }
        let scanned = verify::scan(&*self.shared.catalog.disk, segment, pace);
        if self.is_sealed(segment) { scanned } else { Err(not_found()) }
    }

    /// Whether a record that is damaged would be what was written if its payload went on with these bytes from `offset` on,
    /// to its end. None when that cannot be told. Blocking I/O.
    pub fn would_mend(&self, position: Position, offset: u32, bytes: &[u8]) -> Option<bool> {
        let is_sealed = self.is_sealed(position.segment);
        verify::would_mend(&*self.shared.catalog.disk, is_sealed, position, offset, bytes)
    }

    fn is_sealed(&self, segment: u64) -> bool {
        let known = self.shared.catalog.state.lock().segments.get(&segment).copied();
        known.is_some_and(|known| known.sealed)
    }

    fn count(&self, segment: u64) -> Result<u64, ReadError> {
        let disk = &*self.shared.catalog.disk;
        let header = self.shared.reader.header(segment)?;
        let io = |source| ReadError::Io { segment: segment::name(segment), source };
        let records = match index::count(disk, &header).map_err(io)? {
            Some(records) => records,
            None => verify::index_of(disk, segment)?.records,
        };
        self.note_records(segment, records);
        Ok(records)
    }

    /// Remembers how many records a segment has.
    fn note_records(&self, segment: u64, records: u64) {
        if let Some(known) = self.shared.catalog.state.lock().segments.get_mut(&segment) {
            known.records = Some(records);
        }
    }

    /// What the journal has done and takes.
    pub fn stats(&self) -> Stats {
        let counters = *self.shared.counters.lock();
        let state = self.shared.catalog.state.lock();
        let kept_bytes = state.segments.range(segment::FIRST_KEPT..).map(|(_, known)| known.bytes).sum();
        Stats {
            appended_records: counters.appended_records,
            appended_bytes: counters.appended_bytes,
            syncs: counters.syncs,
            sync_time: counters.sync_time,
            last_sync: counters.last_sync,
            pending_bytes: self.pending_bytes(),
            segments: state.segments.len() as u64,
            disk_bytes: state.segments.values().map(|known| known.bytes).sum::<u64>()
                + state.pool.len() as u64 * self.shared.catalog.segment_bytes,
            kept_bytes,
            floor: state.floor,
            free_segments: state.pool.len() as u64,
            made_segments: state.made,
            reused_segments: state.reused,
            recycled_segments: state.recycled,
        }
    }

    /// Waits until all that was appended before is on disk.
    ///
    /// # Panics
    /// When called from within a `done`, or for a journal whose pump is driven by hand: it would wait forever.
    pub fn flush(&self) {
        let thread = self.shared.thread.as_ref().expect("flush needs a journal with a thread of its own");
        assert!(!thread.is_current(), "flush from within a done would wait forever");
        let (tell, told) = mpsc::sync_channel(1);
        self.append(Vec::new(), move || {
            // The receiver waits below; it cannot be gone.
            let _ = tell.send(());
        });
        told.recv().expect("the writer calls every done before it ends");
    }

    /// Bytes queued and not yet known to be on disk, headers included.
    pub fn pending_bytes(&self) -> u64 {
        self.shared.queue.pending_bytes()
    }

    fn check_lengths(&self, records: &[Record]) {
        for record in records {
            let len: usize = record.payload.iter().map(Bytes::len).sum();
            assert!(
                len <= self.shared.max_record_bytes as usize,
                "a record of {len} bytes is longer than max_record_bytes"
            );
        }
    }

    fn push(&self, records: Vec<Record>, done: Option<Done>) -> Vec<Position> {
        self.check_lengths(&records);
        let may_wait = self.shared.thread.as_ref().is_some_and(|thread| !thread.is_current());
        self.shared.queue.push(records, done, may_wait)
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("stats", &self.stats()).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
        // A `done` may hold the last handle; its thread cannot wait for itself and ends soon after.
        if let Some(thread) = &self.thread
            && !thread.is_current()
            && let Some(handle) = thread.handle.lock().take()
        {
            // A panic of that thread has ended the process already.
            let _ = handle.join();
        }
    }
}

/// Says why and ends the process at once, without running anything that could promise more.
fn die(reason: &str) -> ! {
    eprintln!("quorumail journal: {reason}; stopping at once so that nothing unsafe is acknowledged");
    process::abort()
}

#[cfg(all(test, feature = "simulation"))]
#[allow(clippy::print_stdout, clippy::unwrap_used)]
mod tests {
    use std::{env, process::Command};

    use super::*;
    use crate::{Faults, SimDisk};

    const CHILD: &str = "QUORUMAIL_JOURNAL_TEST_FAILING_SYNC";

    fn acknowledge_on_a_disk_that_cannot_sync() {
        let disk = SimDisk::new(1);
        let options = Options::new("");
        let journal = Journal::open_with_thread(Arc::new(disk.clone()), &options, |_, _, _| {}).unwrap();
        disk.set_faults(Faults { sync_errors: 1_000_000, ..Faults::default() });
        let record = Record { stream: StreamId(1), payload: vec!["mail".into()] };
        journal.append(vec![record], || println!("acknowledged"));
        journal.flush();
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
                "journal::tests::a_failed_sync_ends_the_process_and_acknowledges_nothing",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.signal(), Some(6), "not aborted: {out}{err}");
        assert!(err.contains("failed to sync journal segment /simulated/0000000000000001.seg"), "{err}");
        assert!(!out.contains("acknowledged") && !out.contains("survived"), "{out}");
    }
}
