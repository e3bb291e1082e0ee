//! What callers hold: a cheap handle on the queue, the reader and the writing thread.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    OpenError, Position, ReadError, Record, StreamId,
    queue::{Done, Queue},
    recovery::{self, io_error},
    segment::{self, Reader},
    writer::{Counters, Writer, die},
};

/// Name of the file whose lock says that a process has the journal.
const LOCK_FILE: &str = "lock";

/// Where a journal lies and how much it may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the segments; made when it is not there.
    pub dir: PathBuf,
    /// Bytes after which the next record begins a new segment. A longer record has a segment for itself.
    pub segment_bytes: u64,
    /// Longest payload of a record in bytes. Appending a longer one is a broken promise of the caller and panics.
    pub max_record_bytes: u32,
    /// Bytes that may be queued and not yet on disk. An append beyond it blocks until there is room, except that one
    /// append is always taken when nothing else is queued. Callers that must not block look at
    /// [`Journal::pending_bytes`] before.
    pub max_pending_bytes: u64,
}

impl Options {
    /// A journal in `dir` with the usual limits: segments of 64 MiB, records of at most 96 MiB, 256 MiB pending.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            max_record_bytes: 96 << 20,
            max_pending_bytes: 256 << 20,
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
    writer: Mutex<Option<JoinHandle<()>>>,
    writer_thread: thread::ThreadId,
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
        let Options { dir, segment_bytes, max_record_bytes, max_pending_bytes } = options;
        let lock = lock(&dir)?;
        let recovered = recovery::recover(&dir, visit)?;
        let queue =
            Arc::new(Queue::new(recovered.header.number, recovered.end, segment_bytes, max_pending_bytes));
        let counters = Arc::new(Mutex::new(Counters {
            segments: recovered.segments,
            disk_bytes: recovered.disk_bytes,
            ..Counters::default()
        }));
        let writer = Writer::new(dir.clone(), Arc::clone(&queue), Arc::clone(&counters), recovered);
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                // The lock is let go when the last byte has been written, not before.
                let _lock = lock;
                if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                    die("the writing thread panicked");
                }
            })
            .map_err(io_error("start the writing thread of journal", dir.clone()))?;
        let writer_thread = thread.thread().id();
        let writer = Mutex::new(Some(thread));
        let reader = Reader::new(dir);
        let shared = Shared { queue, reader, counters, max_record_bytes, writer, writer_thread };
        Ok(Journal { shared: Arc::new(shared) })
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

    /// Waits until all that was appended before is on disk. Not to be called from within a `done`.
    pub fn flush(&self) {
        assert_ne!(
            thread::current().id(),
            self.shared.writer_thread,
            "flush from within a done would wait forever"
        );
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
        let may_wait = thread::current().id() != self.shared.writer_thread;
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
        if thread::current().id() != self.writer_thread
            && let Some(writer) = self.writer.lock().take()
        {
            // A panic of that thread has ended the process already.
            let _ = writer.join();
        }
    }
}

/// Makes the directory and takes its lock.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error("create journal directory", dir.to_owned()))?;
        if let Some(parent) = parent {
            segment::sync_dir(parent).map_err(io_error("sync directory", parent.to_owned()))?;
        }
    }
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open lock file", path.clone()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", path)(source)),
    }
}
