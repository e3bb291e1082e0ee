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
    OpenError, Position, ReadError, Record, StreamId,
    disk::{DirLock, Disk},
    fs_disk::FsDisk,
    pump::{Counters, Pump},
    queue::{Done, Queue},
    recovery::{self, io_error},
    segment::{self, Reader, Salts},
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
    /// Segment files.
    pub segments: u64,
    /// Bytes of all segment files.
    pub disk_bytes: u64,
}

/// The node's log. Clones share it; when the last one is dropped, what is queued is written and the thread ends.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<Queue>,
    reader: Reader,
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
    /// Opens or creates a journal and calls `visit` for every valid record in the order of writing. A torn tail is
    /// cut; everything that was visited is on disk when this returns. Blocking I/O.
    ///
    /// # Errors
    /// When the directory is in use, when something that had been safe is damaged, or when the system refuses I/O.
    pub fn open(
        options: Options,
        visit: impl FnMut(Position, StreamId, Bytes),
    ) -> Result<Journal, OpenError> {
        let at = |action| io_error(action, options.dir.clone());
        let disk = FsDisk::open(&options.dir).map_err(at("create journal directory"))?;
        Self::open_with_thread(Arc::new(disk), &options, visit)
    }

    fn open_with_thread(
        disk: Arc<dyn Disk>,
        options: &Options,
        visit: impl FnMut(Position, StreamId, Bytes),
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
        visit: impl FnMut(Position, StreamId, Bytes),
    ) -> Result<(Journal, Pump), OpenError> {
        let (shared, lock, mut pump) = Self::prepare(disk, options, visit)?;
        pump.hold(lock);
        Ok((Journal { shared: Arc::new(shared) }, pump))
    }

    fn prepare(
        disk: Arc<dyn Disk>,
        options: &Options,
        visit: impl FnMut(Position, StreamId, Bytes),
    ) -> Result<(Shared, DirLock, Pump), OpenError> {
        let dir = || disk.path("");
        let lock =
            disk.lock().map_err(io_error("lock", dir()))?.ok_or_else(|| OpenError::Locked { dir: dir() })?;
        let mut salts = Salts(options.salt_seed);
        let recovered = recovery::recover(&*disk, &mut salts, visit)?;
        let queue = Arc::new(Queue::new(
            recovered.header.number,
            recovered.end,
            options.segment_bytes,
            options.max_pending_bytes,
        ));
        let counters = Arc::new(Mutex::new(Counters {
            segments: recovered.segments,
            disk_bytes: recovered.disk_bytes,
            ..Counters::default()
        }));
        let pump = Pump::new(Arc::clone(&disk), salts, Arc::clone(&queue), Arc::clone(&counters), recovered);
        let max_record_bytes = options.max_record_bytes;
        let shared = Shared { queue, reader: Reader::new(disk), counters, max_record_bytes, thread: None };
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
            None => self.shared.reader.read(position),
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

    /// What the journal has done and takes.
    pub fn stats(&self) -> Stats {
        let counters = *self.shared.counters.lock();
        Stats {
            appended_records: counters.appended_records,
            appended_bytes: counters.appended_bytes,
            syncs: counters.syncs,
            sync_time: counters.sync_time,
            last_sync: counters.last_sync,
            pending_bytes: self.pending_bytes(),
            segments: counters.segments,
            disk_bytes: counters.disk_bytes,
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

    fn push(&self, records: Vec<Record>, done: Option<Done>) -> Vec<Position> {
        for record in &records {
            let len: usize = record.payload.iter().map(Bytes::len).sum();
            assert!(
                len <= self.shared.max_record_bytes as usize,
                "a record of {len} bytes is longer than max_record_bytes"
            );
        }
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
