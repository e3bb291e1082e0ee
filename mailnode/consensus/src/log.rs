//! The Raft log of one group, kept in the node's journal.
//!
//! In memory is an index (term and journal position of every entry that has not been purged) and the most recent
//! entries themselves, so that replication and apply do not read the disk in the normal case. Everything else is in
//! the journal. `append` answers at once: entries are readable from memory before they are on disk, and the engine is
//! told by the journal's writer thread when they are.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use quorumail_journal::mutation::{self, Mutation};
use quorumail_journal::{Journal, Position, Record, StreamId};

use crate::machine::GroupId;
use crate::record::{self, Base, Decoded};
use crate::runtime::offload;
use crate::types::{Entry, LogId, TypeConfig, Vote, command_bytes, log_id, term_of};

/// Commands in one append request or one step of applying, in bytes. One larger command still goes alone.
pub(crate) const BATCH_BYTES: u64 = 4 << 20;
/// Entries in one step of applying.
const BATCH_ENTRIES: u64 = 1024;
/// Above this many bytes waiting for the disk, appends of the group are held back so that memory stays bounded.
const MAX_JOURNAL_BACKLOG: u64 = 128 << 20;
const BACKLOG_PAUSE: Duration = Duration::from_millis(1);

tokio::task_local! {
    /// Whether entries that this task was about to send to another replica had been purged. The engine purges nothing
    /// that it is sending, but a sender that it has given up may read once more before it learns of that; to the engine
    /// a read that fails is a disk that fails, and the end of the group on this node.
    pub(crate) static PURGED: Cell<bool>;
}

/// Where an entry lies.
#[derive(Debug, Clone, Copy)]
struct Slot {
    term: u64,
    position: Position,
}

/// What the journal told about a group when it was replayed, and what has been written since.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    proven: bool,
    /// Whether the replica was removed from this node.
    forgotten: bool,
    /// Log index of `slots[0]`.
    first: u64,
    slots: VecDeque<Slot>,
    /// The newest entries: the last of them is the last of `slots`.
    cache: VecDeque<Entry>,
    cache_bytes: u64,
    oldest: Option<u64>,
}

impl Contents {
    /// What is left of a replica that was removed. The vote stays: in its term the node votes for nobody else, also when
    /// it gets a replica again.
    pub(crate) fn forgotten(vote: Option<Vote>) -> Contents {
        Contents { vote, forgotten: true, ..Contents::default() }
    }

    /// Whether the replica was removed and none has been made since; then its last vote.
    pub(crate) fn is_forgotten(&self) -> Option<Option<Vote>> {
        self.forgotten.then_some(self.vote)
    }

    fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(log_id(slot.term, self.next() - 1)),
            None => self.purged,
        }
    }

    /// The last entry of every term between two entries, both included. None when one of them is not here.
    fn ends_of_terms(&self, first: u64, last: u64) -> Option<Vec<LogId>> {
        let mut ends: Vec<LogId> = Vec::new();
        for index in first..=last {
            let slot = self.slots.get(index.checked_sub(self.first)? as usize)?;
            let id = log_id(slot.term, index);
            match ends.last_mut() {
                Some(end) if term_of(end) == slot.term => *end = id,
                _ => ends.push(id),
            }
        }
        Some(ends)
    }

    fn push(&mut self, id: LogId, position: Position) -> Result<(), String> {
        if id.index != self.next() {
            return Err(format!("log index {} follows {:?}", id.index, self.last()));
        }
        if self.last().is_some_and(|last| term_of(&last) > term_of(&id)) {
            return Err(format!("term goes back from {:?} to {id}", self.last()));
        }
        self.slots.push_back(Slot { term: term_of(&id), position });
        Ok(())
    }

    /// Forgets the last entry: a deliberate fault.
    pub(crate) fn forget_last(&mut self) {
        self.slots.pop_back();
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        let keep_until = last.map_or(0, |id| id.index + 1);
        while self.next() > keep_until.max(self.first) {
            self.slots.pop_back().expect("the log is not empty while next is beyond first");
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= cached_size(&entry);
            }
        }
    }

    fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index {
            if self.slots.pop_front().is_none() {
                // A snapshot was installed beyond the end of the log: it goes on after the snapshot.
                self.first = upto.index + 1;
                break;
            }
            self.first += 1;
        }
        self.shrink_cache(u64::MAX);
        if self.purged < Some(upto) {
            self.purged = Some(upto);
        }
    }

    fn shrink_cache(&mut self, limit: u64) {
        while self.cache.len() > self.slots.len() || self.cache_bytes > limit {
            let Some(entry) = self.cache.pop_front() else { break };
            self.cache_bytes -= cached_size(&entry);
        }
    }

    /// Takes up a record met while the journal is replayed, from its head.
    ///
    /// The replay begins at the journal's floor. The first entries met there may have been purged since, and what came
    /// before them is not met at all; so a log that is empty takes any entry as its first, and [`Contents::is_whole`]
    /// tells in the end whether it goes on where it was purged.
    pub(crate) fn replay(&mut self, position: Position, head: &[u8]) -> Result<(), record::DecodeError> {
        self.oldest.get_or_insert(position.segment);
        let decoded = record::decode(head)?;
        // Whatever is written after a removal is of a replica that was made anew.
        self.forgotten = false;
        match decoded {
            Decoded::Entry(id) => {
                if self.slots.is_empty() && self.purged.is_none_or(|purged| purged.index < id.index) {
                    self.first = id.index;
                }
                self.push(id, position).map_err(record::DecodeError)?;
            }
            Decoded::Vote(vote) => self.replay_vote(vote)?,
            Decoded::Truncate(last) => self.truncate_after(last),
            Decoded::Purge(upto) => self.purge(upto),
            Decoded::Committed(committed) => self.committed = committed,
            Decoded::Proven => self.proven = true,
            Decoded::Base(base) => {
                if let Some(vote) = base.vote {
                    self.replay_vote(vote)?;
                }
                if base.forgotten {
                    self.replay_removal();
                    return Ok(());
                }
                if let Some(purged) = base.purged {
                    self.purge(purged);
                }
                self.committed = base.committed;
                self.proven |= base.proven;
            }
            Decoded::Forgotten => self.replay_removal(),
        }
        Ok(())
    }

    fn replay_vote(&mut self, vote: Vote) -> Result<(), record::DecodeError> {
        if self.vote.is_some_and(|known| vote < known) {
            return Err(record::DecodeError(format!("vote goes back from {:?} to {vote}", self.vote)));
        }
        self.vote = Some(vote);
        Ok(())
    }

    fn replay_removal(&mut self) {
        *self = Contents { oldest: self.oldest, ..Contents::forgotten(self.vote) };
    }

    /// The last entry that was purged.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// Whether the log that was replayed goes on where it was purged.
    pub(crate) fn is_whole(&self) -> bool {
        self.slots.is_empty() || self.first == self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// The oldest segment of the journal in which a record of the group was met when it was replayed.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.oldest
    }

    fn base(&self) -> Base {
        Base {
            vote: self.vote,
            purged: self.purged,
            committed: self.committed,
            proven: self.proven,
            forgotten: self.forgotten,
        }
    }
}

/// What an entry costs in the cache: its command and about what the structures around it take.
fn cached_size(entry: &Entry) -> u64 {
    command_bytes(entry) as u64 + 128
}

struct Shared {
    group: GroupId,
    journal: Journal,
    cache_limit: u64,
    contents: Mutex<Contents>,
    /// Log index after the last entry known to be on disk.
    durable: tokio::sync::watch::Sender<u64>,
    /// Counts truncations, so that the completion of an append that was cut off since is not taken for another's.
    truncations: AtomicU64,
    disk_reads: AtomicU64,
}

/// The log of one group. Clones share it.
#[derive(Clone)]
pub(crate) struct GroupLog(Arc<Shared>);

/// An entry to hand out: at hand, or to be read.
enum Found {
    Cached(Entry),
    OnDisk(LogId, Position),
}

impl GroupLog {
    pub(crate) fn new(
        group: GroupId,
        journal: Journal,
        cache_limit: u64,
        mut contents: Contents,
    ) -> GroupLog {
        // From here on there is a replica again.
        contents.forgotten = false;
        let durable = tokio::sync::watch::Sender::new(contents.next());
        GroupLog(Arc::new(Shared {
            group,
            journal,
            cache_limit,
            contents: Mutex::new(contents),
            durable,
            truncations: AtomicU64::new(0),
            disk_reads: AtomicU64::new(0),
        }))
    }

    /// Whether anything of the group has ever been stored here.
    pub(crate) fn is_initialised(&self) -> bool {
        self.0.contents.lock().last().is_some()
    }

    /// Whether this replica may vote: it knows all that had been committed with its help before it lost its disk.
    pub(crate) fn is_proven(&self) -> bool {
        self.0.contents.lock().proven
    }

    /// The highest term that this replica has promised anything in.
    pub(crate) fn term(&self) -> u64 {
        self.0.contents.lock().vote.map_or(0, |vote| vote.leader_id.term)
    }

    /// Remembers on disk that this replica may vote.
    pub(crate) async fn prove(&self) {
        let on_disk = {
            let _contents = self.0.contents.lock();
            self.append_now(record::encode_proven()).1
        };
        // As in save_vote.
        let _ = on_disk.await;
        self.0.contents.lock().proven = true;
    }

    /// Log index of the first entry that is here, or that would be next.
    pub(crate) fn first(&self) -> u64 {
        self.0.contents.lock().first
    }

    /// The segment of the journal that holds the oldest entry; none when there are no entries.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.0.contents.lock().slots.front().map(|slot| slot.position.segment)
    }

    /// Writes down what all marks so far add up to, so that they are not needed any more. Answers, once that is on disk,
    /// the oldest segment of the journal that the log still needs; none when the journal was closed meanwhile.
    pub(crate) async fn write_base(&self) -> Option<u64> {
        let (oldest, on_disk) = {
            let contents = self.0.contents.lock();
            let (position, on_disk) = self.append_now(record::encode_base(&contents.base()));
            let first = contents.slots.front().map_or(position.segment, |slot| slot.position.segment);
            (first.min(position.segment), on_disk)
        };
        on_disk.await.ok().map(|()| oldest)
    }

    /// Remembers on disk that the replica was removed, and answers its last vote. Its engine must have stopped.
    pub(crate) async fn forget(&self) -> Option<Vote> {
        let (vote, on_disk) = {
            let mut contents = self.0.contents.lock();
            let on_disk = self.append_now(record::encode_forgotten()).1;
            let vote = contents.vote;
            *contents = Contents::forgotten(vote);
            (vote, on_disk)
        };
        // As in save_vote.
        let _ = on_disk.await;
        vote
    }

    /// Where the record of an entry lies.
    pub(crate) fn position(&self, index: u64) -> Option<Position> {
        let contents = self.0.contents.lock();
        let slot = index.checked_sub(contents.first)?;
        contents.slots.get(slot as usize).map(|slot| slot.position)
    }

    /// How often entries had to be read from the journal because they had left the cache.
    pub(crate) fn disk_reads(&self) -> u64 {
        self.0.disk_reads.load(Ordering::Relaxed)
    }

    /// Waits until the entry is on this node's own disk.
    pub(crate) async fn wait_durable(&self, index: u64) {
        let mut durable = self.0.durable.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        let _ = durable.wait_for(|next| *next > index).await;
    }

    /// The last entry to purge so that no more than `entries` remain and none that lies before segment `oldest` of the
    /// journal, among those up to `upto`.
    pub(crate) fn purge_point(&self, upto: u64, entries: u64, oldest: u64) -> Option<u64> {
        let contents = self.0.contents.lock();
        let mut remaining = contents.slots.len() as u64;
        let mut point = None;
        for (slot, index) in contents.slots.iter().zip(contents.first..=upto) {
            if remaining <= entries && slot.position.segment >= oldest {
                break;
            }
            remaining -= 1;
            point = Some(index);
        }
        point
    }

    fn record(&self, payload: Vec<Bytes>) -> Record {
        Record { stream: StreamId(self.0.group.0), payload }
    }

    /// Appends a mark and has its write told. To be called with the contents locked, so that what lies in the journal
    /// has the order in which it came to hold.
    fn append_now(&self, payload: Vec<Bytes>) -> (Position, tokio::sync::oneshot::Receiver<()>) {
        let (done, on_disk) = tokio::sync::oneshot::channel();
        let positions = self.0.journal.append(vec![self.record(payload)], move || {
            // Nobody waits any more when the node is being stopped.
            let _ = done.send(());
        });
        (positions[0], on_disk)
    }

    /// Entries from `start` to before `end`, at least one if there is one, at most about `max_bytes`.
    pub(crate) async fn read(
        &self,
        start: u64,
        end: u64,
        max_entries: u64,
        max_bytes: u64,
    ) -> io::Result<Vec<Entry>> {
        let found = self.find(start, end, max_entries, max_bytes)?;
        let mut entries = Vec::with_capacity(found.len());
        let mut on_disk = Vec::new();
        for item in found {
            match item {
                Found::Cached(entry) => entries.push(entry),
                Found::OnDisk(id, position) => on_disk.push((id, position)),
            }
        }
        if on_disk.is_empty() {
            return Ok(entries);
        }
        self.0.disk_reads.fetch_add(on_disk.len() as u64, Ordering::Relaxed);
        let log = self.clone();
        let read = move || {
            let read = on_disk.into_iter().map(|(id, position)| log.read_one(id, position));
            read.collect::<io::Result<Vec<Entry>>>()
        };
        let mut read = offload(read).await.map_err(io::Error::other)??;
        // The cache holds the newest entries, so what came from disk comes first.
        read.append(&mut entries);
        Ok(read)
    }

    fn read_one(&self, id: LogId, position: Position) -> io::Result<Entry> {
        let payload = self.0.journal.read(position).map_err(io::Error::other)?;
        let entry = record::decode_entry(&payload).map_err(io::Error::other)?;
        if entry.log_id != id {
            return Err(io::Error::other(format!("found log entry {} where {id} should be", entry.log_id)));
        }
        Ok(entry)
    }

    fn find(&self, start: u64, end: u64, max_entries: u64, max_bytes: u64) -> io::Result<Vec<Found>> {
        let contents = self.0.contents.lock();
        let end = end.min(contents.next());
        if start >= end {
            return Ok(Vec::new());
        }
        if start < contents.first {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("log entry {start} of group {} has been purged", self.0.group.0),
            ));
        }
        let cached_from = contents.next() - contents.cache.len() as u64;
        let mut found = Vec::new();
        let mut bytes = 0u64;
        for index in start..end {
            let slot = contents.slots[(index - contents.first) as usize];
            bytes += u64::from(slot.position.len);
            if !found.is_empty() && (bytes > max_bytes || found.len() as u64 >= max_entries) {
                break;
            }
            found.push(match index.checked_sub(cached_from) {
                Some(cached) => Found::Cached(contents.cache[cached as usize].clone()),
                None => Found::OnDisk(log_id(slot.term, index), slot.position),
            });
        }
        Ok(found)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

/// Writes down again that a replica was removed, and its last vote, so that the records before are not needed any more.
/// Answers, once that is on disk, in which segment; none when the journal was closed meanwhile.
pub(crate) async fn write_forgotten(journal: &Journal, group: GroupId, vote: Option<Vote>) -> Option<u64> {
    let payload = record::encode_base(&Contents::forgotten(vote).base());
    let (done, on_disk) = tokio::sync::oneshot::channel();
    let positions = journal.append(vec![Record { stream: StreamId(group.0), payload }], move || {
        // Nobody waits any more when the node is being stopped.
        let _ = done.send(());
    });
    on_disk.await.ok().map(|()| positions[0].segment)
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        // The engine asks for ranges of bounded length here (membership scan, re-apply, single ids).
        let start = start.max(self.0.contents.lock().first);
        self.read(start, end, u64::MAX, u64::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.contents.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let read = self.read(start, end, u64::MAX, BATCH_BYTES).await;
        let purged = || start < self.0.contents.lock().first;
        if read.is_err() && purged() && PURGED.try_with(|purged| purged.set(true)).is_ok() {
            return Ok(Vec::new());
        }
        read
    }

    /// For applying: read in steps, so that a long catch-up does not have to fit into memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        let log = self.clone();
        let steps = futures::stream::try_unfold(start, move |start| {
            let log = log.clone();
            async move {
                if start >= end {
                    return Ok::<_, io::Error>(None);
                }
                let entries = log.read(start, end, BATCH_ENTRIES, BATCH_BYTES).await?;
                if entries.is_empty() {
                    return Err(io::Error::other(format!("log entry {start} to be applied is not there")));
                }
                let next = start + entries.len() as u64;
                Ok(Some((futures::stream::iter(entries.into_iter().map(Ok)), next)))
            }
        });
        Box::pin(futures::TryStreamExt::try_flatten(steps))
    }

    /// The last entry of every term, straight from the index: the default would read the disk for it.
    async fn get_key_log_ids(
        &mut self,
        range: std::ops::RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        let (first, last) = (range.start().index, range.end().index);
        self.0.contents.lock().ends_of_terms(first, last).ok_or_else(|| {
            io::Error::other(format!("log entries {first} to {last} are not all in the index"))
        })
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let contents = self.0.contents.lock();
        Ok(LogState { last_purged_log_id: contents.purged, last_log_id: contents.last() })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let on_disk = {
            let mut contents = self.0.contents.lock();
            assert!(contents.vote.is_none_or(|known| *vote >= known), "a vote is never taken back");
            contents.vote = Some(*vote);
            if mutation::is(Mutation::VoteBeforeSync) {
                self.0.journal.append_unsynced(vec![self.record(record::encode_vote(vote))]);
                return Ok(());
            }
            self.append_now(record::encode_vote(vote)).1
        };
        // The journal either calls back or stops the process, except when it is closed under us at shutdown.
        let _ = on_disk.await;
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut contents = self.0.contents.lock();
        self.0.journal.append_unsynced(vec![self.record(record::encode_committed(&committed))]);
        contents.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let contents = self.0.contents.lock();
        Ok(contents.committed.min(contents.last()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let Some(last) = entries.last().map(|entry| entry.log_id.index) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        while self.0.journal.pending_bytes() > MAX_JOURNAL_BACKLOG {
            tokio::time::sleep(BACKLOG_PAUSE).await;
        }
        let records = entries.iter().map(|entry| self.record(record::encode_entry(entry))).collect();
        let shared = self.0.clone();
        let truncations = shared.truncations.load(Ordering::Acquire);
        let mut contents = self.0.contents.lock();
        let positions = self.0.journal.append(records, move || {
            shared.durable.send_if_modified(|next| {
                if shared.truncations.load(Ordering::Acquire) != truncations {
                    return false;
                }
                let advanced = *next < last + 1;
                *next = (*next).max(last + 1);
                advanced
            });
            callback.io_completed(Ok(()));
        });
        assert_eq!(positions.len(), entries.len(), "the journal gives one position a record");
        for (entry, position) in entries.into_iter().zip(positions) {
            contents.push(entry.log_id, position).map_err(io::Error::other)?;
            contents.cache_bytes += cached_size(&entry);
            contents.cache.push_back(entry);
        }
        let limit = self.0.cache_limit;
        contents.shrink_cache(limit);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        // Without a sync of its own: whatever is appended later is synced after it, in order.
        let mut contents = self.0.contents.lock();
        if !mutation::is(Mutation::ForgetTruncation) {
            self.0.journal.append_unsynced(vec![self.record(record::encode_truncate(&last))]);
        }
        self.0.truncations.fetch_add(1, Ordering::AcqRel);
        contents.truncate_after(last);
        let next = contents.next();
        drop(contents);
        self.0.durable.send_if_modified(|durable| {
            *durable = (*durable).min(next);
            false
        });
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut contents = self.0.contents.lock();
        self.0.journal.append_unsynced(vec![self.record(record::encode_purge(&upto))]);
        contents.purge(upto);
        let next = contents.next();
        drop(contents);
        self.0.durable.send_if_modified(|durable| {
            *durable = (*durable).max(next.min(upto.index + 1));
            true
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(len: u32) -> Position {
        Position { segment: 1, offset: 0, len }
    }

    fn filled(entries: u64) -> Contents {
        let mut contents = Contents::default();
        for index in 0..entries {
            contents.push(log_id(1, index), position(10)).unwrap();
        }
        contents
    }

    #[tokio::test]
    async fn a_sender_that_is_behind_what_was_purged_is_told_so_and_everyone_else_gets_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(quorumail_journal::Options::new(dir.path()), |_, _, _| {}).unwrap();
        let mut contents = filled(10);
        contents.purge(log_id(1, 3));
        let mut log = GroupLog::new(GroupId(1), journal, 0, contents);
        let told = |mut log: GroupLog, start| {
            PURGED.scope(Cell::new(false), async move {
                let read = log.limited_get_log_entries(start, 10).await;
                (read.map(|entries| entries.len()).ok(), PURGED.with(Cell::take))
            })
        };
        assert_eq!(told(log.clone(), 3).await, (Some(0), true));
        // What is not purged and cannot be read is a disk that fails: the records of this test were never written.
        assert_eq!(told(log.clone(), 4).await, (None, false));
        assert_eq!(told(log.clone(), 10).await, (Some(0), false));
        assert!(log.limited_get_log_entries(3, 10).await.is_err());
    }

    #[test]
    fn gaps_and_terms_that_go_back_are_refused() {
        let mut contents = filled(3);
        assert!(contents.push(log_id(1, 4), position(1)).is_err(), "a gap");
        assert!(contents.push(log_id(1, 2), position(1)).is_err(), "a second entry of one index");
        assert!(contents.push(log_id(0, 3), position(1)).is_err(), "an older term");
        assert!(contents.push(log_id(2, 3), position(1)).is_ok());
    }

    #[test]
    fn truncation_and_purge_leave_what_lies_between() {
        let mut contents = filled(10);
        contents.truncate_after(Some(log_id(1, 6)));
        contents.purge(log_id(1, 3));
        assert_eq!((contents.first, contents.next()), (4, 7));
        assert_eq!(contents.last(), Some(log_id(1, 6)));
        contents.truncate_after(None);
        assert_eq!(contents.last(), Some(log_id(1, 3)), "the purge mark is the end of an empty log");
        contents.push(log_id(2, 4), position(1)).unwrap();
    }

    #[test]
    fn key_log_ids_are_the_last_of_every_term() {
        let mut contents = Contents::default();
        for (index, term) in [0, 1, 1, 1, 4, 4, 5].into_iter().enumerate() {
            contents.push(log_id(term, index as u64), position(1)).unwrap();
        }
        let ends = vec![log_id(0, 0), log_id(1, 3), log_id(4, 5), log_id(5, 6)];
        assert_eq!(contents.ends_of_terms(0, 6), Some(ends));
        assert_eq!(contents.ends_of_terms(2, 4), Some(vec![log_id(1, 3), log_id(4, 4)]));
        assert_eq!(contents.ends_of_terms(5, 7), None);
    }

    #[test]
    fn of_a_removed_replica_only_the_vote_is_left_and_a_new_one_starts_empty() {
        let mut contents = filled(3);
        let record = |pieces: Vec<Bytes>| pieces.concat();
        let vote = Vote::new_committed(4, 2);
        contents.replay(position(1), &record(record::encode_vote(&vote))).unwrap();
        contents.replay(position(1), &record(record::encode_proven())).unwrap();
        contents.replay(position(1), &record(record::encode_forgotten())).unwrap();
        assert_eq!(contents.is_forgotten(), Some(Some(vote)));
        assert_eq!((contents.last(), contents.proven), (None, false));
        contents.replay(position(1), &record(record::encode_purge(&log_id(4, 20)))).unwrap();
        assert_eq!((contents.is_forgotten(), contents.vote), (None, Some(vote)));
        assert_eq!(contents.last(), Some(log_id(4, 20)));
    }

    #[test]
    fn what_is_left_of_a_removed_replica_is_carried_over_the_floor() {
        let record = |pieces: Vec<Bytes>| pieces.concat();
        let vote = Vote::new_committed(4, 2);
        let carried = record(record::encode_base(&Contents::forgotten(Some(vote)).base()));
        // From the floor on: with nothing before, and with the end of the log that was removed.
        for before in [&[][..], &[entry(502), entry(503)]] {
            let mut contents = Contents::default();
            for mark in before {
                contents.replay(position(1), mark).unwrap();
            }
            contents.replay(position(1), &carried).unwrap();
            assert_eq!(contents.is_forgotten(), Some(Some(vote)));
            assert!(contents.is_whole());
            assert_eq!((contents.last(), contents.proven), (None, false));
            // A replica that is made anew starts at the first entry, in a term that its vote allows.
            contents.replay(position(1), &record(record::encode_vote(&Vote::new(5, 1)))).unwrap();
            contents.replay(position(1), &entry(0)).unwrap();
            assert_eq!(contents.is_forgotten(), None);
            assert!(contents.is_whole());
        }
    }

    #[test]
    fn a_log_goes_on_after_a_snapshot_beyond_its_end() {
        let mut contents = filled(3);
        contents.purge(log_id(4, 99));
        assert_eq!(contents.last(), Some(log_id(4, 99)));
        contents.push(log_id(4, 100), position(1)).unwrap();
    }

    fn entry(index: u64) -> Vec<u8> {
        let entry = Entry { log_id: log_id(1, index), payload: openraft::EntryPayload::Blank };
        record::encode_entry(&entry).concat()
    }

    #[test]
    fn a_replay_that_begins_in_the_middle_ends_with_what_was_not_purged() {
        let id = |index| log_id(1, index);
        let base = Base {
            vote: None,
            purged: Some(id(505)),
            committed: Some(id(508)),
            proven: true,
            forgotten: false,
        };
        let marks = [
            record::encode_truncate(&Some(id(501))).concat(),
            entry(502),
            entry(503),
            record::encode_purge(&id(490)).concat(),
            entry(504),
            entry(505),
            entry(506),
            record::encode_base(&base).concat(),
            entry(507),
        ];
        let mut contents = Contents::default();
        for (segment, mark) in (7..).zip(marks.iter()) {
            let position = Position { segment, offset: 48, len: 1 };
            contents.replay(position, mark).unwrap();
        }
        assert!(contents.is_whole());
        assert_eq!((contents.first, contents.next(), contents.oldest_segment()), (506, 508, Some(7)));
        assert_eq!(contents.base(), base);

        let mut cut = Contents::default();
        cut.replay(position(1), &entry(507)).unwrap();
        assert!(!cut.is_whole(), "the entries before it are missing and nothing says that they were purged");
    }
}
