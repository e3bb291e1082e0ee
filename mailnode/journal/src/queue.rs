//! What waits to be written, and the memory it takes.
//!
//! Positions are given out here, under one lock, in the order in which records will lie on disk; so the caller knows
//! them before anything is written, and the writer only has to follow.

use std::{collections::HashMap, collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};

use crate::{
    Position, Record, StreamId,
    format::{RECORD_HEADER, SEGMENT_HEADER},
};

/// How long records that nobody waits for may stay in memory when no batch comes along to take them.
const UNSYNCED_DELAY: Duration = Duration::from_secs(1);
/// Bytes after which a batch takes no further record, so that those at its head need not wait for too long a write.
const BATCH_BYTES: u64 = 16 << 20;

/// Called by the writer once the entry and all before it are on disk.
pub(crate) type Done = Box<dyn FnOnce() + Send>;

/// Called when something has been queued, for whoever drives the pump.
pub(crate) type Waker = Arc<dyn Fn() + Send + Sync>;

/// A record in the queue.
pub(crate) struct Queued {
    pub(crate) position: Position,
    pub(crate) stream: StreamId,
    pub(crate) payload: Vec<Bytes>,
    pub(crate) payload_crc: u32,
}

impl Queued {
    fn cost(&self) -> u64 {
        self.position.end() - self.position.offset
    }
}

enum Entry {
    Record(Queued),
    /// Nothing to write, somebody to tell.
    Done(Done),
}

/// What the writer takes at a time.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Queued>,
    pub(crate) done: Vec<Done>,
}

struct State {
    entries: VecDeque<Entry>,
    /// How many of the entries are `Done`.
    waiting: usize,
    /// Payloads that are not yet known to be on disk, by segment and offset.
    pending: HashMap<(u64, u64), Vec<Bytes>>,
    pending_bytes: u64,
    /// Appends that wait for room.
    blocked: usize,
    segment: u64,
    offset: u64,
    closing: bool,
    waker: Option<Waker>,
}

/// The queue between those who append and the writer.
pub(crate) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    segment_bytes: u64,
    max_pending_bytes: u64,
}

impl Queue {
    /// A queue whose first record goes to `offset` of `segment`.
    pub(crate) fn new(segment: u64, offset: u64, segment_bytes: u64, max_pending_bytes: u64) -> Queue {
        let state = State {
            entries: VecDeque::new(),
            waiting: 0,
            pending: HashMap::new(),
            pending_bytes: 0,
            blocked: 0,
            segment,
            offset,
            closing: false,
            waker: None,
        };
        Queue {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            segment_bytes,
            max_pending_bytes,
        }
    }

    /// Queues records with consecutive positions. `may_wait` is false for the writer's own thread, which would wait
    /// for itself.
    pub(crate) fn push(&self, records: Vec<Record>, done: Option<Done>, may_wait: bool) -> Vec<Position> {
        // Checksums are computed before the lock is taken, by as many threads as there are callers.
        let measured: Vec<(Record, u32, u32)> = records.into_iter().map(measure).collect();
        let cost = measured.iter().map(|(_, len, _)| RECORD_HEADER as u64 + u64::from(*len)).sum::<u64>();
        let mut state = self.state.lock();
        while may_wait && state.pending_bytes > 0 && state.pending_bytes + cost > self.max_pending_bytes {
            state.blocked += 1;
            self.work.notify_one();
            self.room.wait(&mut state);
            state.blocked -= 1;
        }
        let mut positions = Vec::with_capacity(measured.len());
        for (record, len, payload_crc) in measured {
            let position = state.place(len, self.segment_bytes);
            state.pending.insert((position.segment, position.offset), record.payload.clone());
            state.entries.push_back(Entry::Record(Queued {
                position,
                stream: record.stream,
                payload: record.payload,
                payload_crc,
            }));
            positions.push(position);
        }
        state.pending_bytes += cost;
        if let Some(done) = done {
            state.entries.push_back(Entry::Done(done));
            state.waiting += 1;
            self.work.notify_one();
        } else if state.entries.len() == positions.len() {
            // The writer sleeps without a time limit while the queue is empty: let it begin to count.
            self.work.notify_one();
        }
        let waker = state.waker.clone();
        drop(state);
        if let Some(waker) = waker {
            waker();
        }
        positions
    }

    /// Waits for something to write. False when the queue is closed and empty.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while state.waiting == 0 && state.blocked == 0 && !state.closing {
            if state.entries.is_empty() {
                self.work.wait(&mut state);
            } else if self.work.wait_for(&mut state, UNSYNCED_DELAY).timed_out() {
                break;
            }
        }
        !(state.entries.is_empty() && state.closing)
    }

    /// What is queued, up to the bound of a batch; none when nothing is.
    pub(crate) fn take(&self) -> Option<Batch> {
        let mut state = self.state.lock();
        if state.entries.is_empty() {
            return None;
        }
        let mut batch = Batch::default();
        let mut bytes = 0;
        while let Some(entry) = state.entries.pop_front() {
            match entry {
                Entry::Record(queued) if bytes > 0 && bytes + queued.cost() > BATCH_BYTES => {
                    state.entries.push_front(Entry::Record(queued));
                    break;
                }
                Entry::Record(queued) => {
                    bytes += queued.cost();
                    batch.records.push(queued);
                }
                Entry::Done(done) => {
                    state.waiting -= 1;
                    batch.done.push(done);
                }
            }
        }
        Some(batch)
    }

    /// Whether anybody waits for what is queued.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.state.lock().waiting > 0
    }

    /// Has `waker` called whenever something is queued.
    pub(crate) fn wake_with(&self, waker: Waker) {
        self.state.lock().waker = Some(waker);
    }

    /// Forgets what is now on disk.
    pub(crate) fn written(&self, records: &[Queued]) {
        let mut state = self.state.lock();
        for queued in records {
            let known = state.pending.remove(&(queued.position.segment, queued.position.offset));
            assert!(known.is_some(), "a record was written that was not pending");
            state.pending_bytes -= queued.cost();
        }
        self.room.notify_all();
    }

    /// Has the next record begin a new segment, if it would go to this one.
    pub(crate) fn end_segment(&self, segment: u64) {
        let mut state = self.state.lock();
        if state.segment == segment && state.offset > SEGMENT_HEADER as u64 {
            state.segment += 1;
            state.offset = SEGMENT_HEADER as u64;
        }
    }

    /// Reserves room for a mark at the end of a segment when nothing is queued and the next record goes there; returns its
    /// offset.
    pub(crate) fn place_mark(&self, segment: u64) -> Option<u64> {
        let mut state = self.state.lock();
        if !state.entries.is_empty() || state.segment != segment {
            return None;
        }
        let offset = state.offset;
        state.offset += RECORD_HEADER as u64;
        Some(offset)
    }

    /// The payload of a record that is still pending.
    pub(crate) fn pending(&self, position: Position) -> Option<Bytes> {
        let pieces = {
            let state = self.state.lock();
            state.pending.get(&(position.segment, position.offset))?.clone()
        };
        Some(join(&pieces))
    }

    /// Bytes that are not yet known to be on disk.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.state.lock().pending_bytes
    }

    /// Lets the writer end once it has written what is queued.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
    }
}

impl State {
    /// Where a record of this length goes. One that is longer than a segment has a segment for itself.
    fn place(&mut self, len: u32, segment_bytes: u64) -> Position {
        let here = Position { segment: self.segment, offset: self.offset, len };
        // A mark and the seal have their place behind the last record.
        if here.end() + 2 * RECORD_HEADER as u64 > segment_bytes && self.offset > SEGMENT_HEADER as u64 {
            self.segment += 1;
            self.offset = SEGMENT_HEADER as u64;
        }
        let position = Position { segment: self.segment, offset: self.offset, len };
        self.offset = position.end();
        position
    }
}

/// Length and checksum of a record's payload.
fn measure(record: Record) -> (Record, u32, u32) {
    let len: usize = record.payload.iter().map(Bytes::len).sum();
    let len = u32::try_from(len).expect("a record's length was checked against max_record_bytes");
    let crc = record.payload.iter().fold(crc32c::crc32c(&[]), |crc, piece| crc32c::crc32c_append(crc, piece));
    (record, len, crc)
}

fn join(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut whole = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            many.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}
