//! The store: all groups of a node over one index.
//!
//! Every batch of commands is one atomic batch of the index, together with the position in the log that it reached,
//! so after a crash the index holds exactly what some prefix of the log makes of it: fjall frames a batch with its
//! length and a checksum in its one journal, drops an incomplete one with all after it, and writes memtables out
//! between batches. A batch is not synced: that is what [`Store::checkpoint`] does, and what is lost after it is applied
//! again from the log. See `recovery.rs` for what a power failure may leave.

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quorumail_journal::Position;
use tokio::sync::broadcast;

use crate::{
    Bodies, BodyRef, Digests, Directory, FolderId, MailboxId, Query, Repair, Reply, StoreError, Timestamp,
    accounts,
    answers::{self, FromIndex},
    apply,
    body_table::BodyState,
    digests::{Fresh, NoDigests},
    index::{Batch, Index},
    keys,
    live::{LiveBytes, Pins, Readers},
    queue::{QueueFacts, QueueIndex},
    records::{self, Queued},
    txn::{SnapshotView, Txn, View},
};

/// Format of the index; a later one is refused at start.
pub(crate) const STATE_FORMAT: u32 = 5;
/// Changes a subscriber may lie behind; one that is further behind is told so and looks at everything.
const CHANGES_KEPT: usize = 4096;
/// Keys removed in one batch while the space of an old state is cleared.
const CLEAR_BATCH: usize = 10_000;

/// A committed command and where this node's journal holds it.
#[derive(Debug, Clone)]
pub struct LogCommand {
    /// Raft log index.
    pub index: u64,
    /// The command, as proposed.
    pub command: Bytes,
    /// The record of this node's journal that carries it.
    pub record: Position,
    /// Where in the record's payload the command starts.
    pub offset: u32,
}

/// What changed in a committed batch, for those who watch. A receiver that lagged must look at all it watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// Messages of a folder came, changed or went.
    Folder {
        /// Which group.
        group: u32,
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
    },
    /// Folders of a mailbox came, went, or were renamed or subscribed.
    FolderList {
        /// Which group.
        group: u32,
        /// Whose.
        mailbox: MailboxId,
    },
    /// Entries of a group's queue came, changed or went.
    Queue {
        /// Which group.
        group: u32,
    },
    /// Domains or mailboxes of the directory changed.
    Directory,
    /// A snapshot replaced a group's state: everything may have changed.
    Group {
        /// Which group.
        group: u32,
    },
}

/// One group of the store.
pub(crate) struct Group {
    pub(crate) number: u32,
    /// The space of its keys. Held while a batch is applied, so there is one writer a group.
    pub(crate) space: Mutex<u32>,
    /// Changed together with the index: whoever holds it sees both agree.
    pub(crate) queue: RwLock<QueueIndex>,
    /// Whether changes of its bodies are followed in [`Inner::live`]. Set while `space` is held.
    pub(crate) is_counted: AtomicBool,
}

pub(crate) struct Inner {
    pub(crate) index: Index,
    pub(crate) bodies: Arc<dyn Bodies>,
    digests: OnceLock<Arc<dyn Digests>>,
    pub(crate) repair: OnceLock<Arc<dyn Repair>>,
    pub(crate) directory: Directory,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) live: LiveBytes,
    pub(crate) readers: Readers,
    pub(crate) pins: Pins,
    groups: RwLock<HashMap<u32, Arc<Group>>>,
    last_space: Mutex<u32>,
    /// Held while a checkpoint is made.
    checkpoint: Mutex<()>,
    /// Whether something was applied since the last one.
    dirty: AtomicBool,
}

/// The replicated state of all groups of a node. Cheap to clone; all calls may block on disk.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or creates the index in a directory of its own.
    pub fn open(dir: &Path, bodies: Arc<dyn Bodies>) -> Result<Self, StoreError> {
        Self::start(Index::open(dir)?, bodies)
    }

    /// Opens the store on an index in memory, as the last crash left it.
    #[cfg(feature = "simulation")]
    pub fn open_on(index: &crate::MemoryIndex, bodies: Arc<dyn Bodies>) -> Result<Self, StoreError> {
        Self::start(Index::in_memory(index), bodies)
    }

    fn start(index: Index, bodies: Arc<dyn Bodies>) -> Result<Self, StoreError> {
        let store = Self(Arc::new(Inner {
            index,
            bodies,
            digests: OnceLock::new(),
            repair: OnceLock::new(),
            directory: Directory::default(),
            changes: broadcast::channel(CHANGES_KEPT).0,
            live: LiveBytes::default(),
            readers: Readers::default(),
            pins: Pins::default(),
            groups: RwLock::default(),
            last_space: Mutex::new(keys::ROOT),
            checkpoint: Mutex::new(()),
            dirty: AtomicBool::new(false),
        }));
        store.check_format()?;
        store.load_groups()?;
        Ok(store)
    }

    /// How digests are computed, from now on; told once. Until then none can be asked for.
    pub fn digest_with(&self, digests: Arc<dyn Digests>) {
        // Told again: the first one stays.
        let _ = self.0.digests.set(digests);
    }

    /// What was given as `position` with the last batch that the group holds; none when it holds nothing.
    pub fn position(&self, group: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(view) = self.view(group)? else { return Ok(None) };
        Ok(view.get(&[keys::POSITION])?.map(|value| value.to_vec()))
    }

    /// Applies commands in order, together with `position`, in one atomic step; answers the encoded
    /// [`Outcome`](crate::Outcome) of each. A batch may be empty.
    pub fn apply(
        &self,
        group: u32,
        batch: Vec<LogCommand>,
        position: &[u8],
    ) -> Result<Vec<Bytes>, StoreError> {
        let group = self.group(group)?;
        let space = group.space.lock();
        let mut txn = Txn::new(&self.0.index, *space);
        let mut outcomes = Vec::with_capacity(batch.len());
        for command in batch {
            outcomes.push(apply::one(&mut txn, group.number, command)?);
        }
        txn.mark();
        txn.put(vec![keys::POSITION], position.to_vec());
        let (writes, effects) = txn.into_batch();
        if effects.queue.is_empty() {
            // Readers of the queue need not wait, however long the index lets writers wait for its disk.
            self.0.index.commit(writes)?;
        } else {
            let mut queue = group.queue.write();
            self.0.index.commit(writes)?;
            queue.apply(&effects.queue);
        }
        self.committed();
        if group.is_counted.load(Ordering::Relaxed) {
            self.0.live.apply(effects.bodies);
        }
        if !effects.directory.is_empty() {
            self.0.directory.apply(effects.directory);
        }
        drop(space);
        self.announce(effects.changes);
        Ok(outcomes)
    }

    /// Answers a query from the state as it is now.
    pub fn query(&self, group: u32, query: &Query) -> Reply {
        self.try_query(group, query).unwrap_or_else(|error| {
            tracing::error!(group, %error, "a query could not be answered");
            Reply::Unreadable(error.to_string())
        })
    }

    /// When the next attempt of an entry in a group's queue is due, as the replica here has it; none while all wait for a
    /// person, or there are none. From memory, however long the queue is.
    pub fn next_due(&self, group: u32) -> Option<Timestamp> {
        let group = self.0.groups.read().get(&group).cloned()?;
        group.queue.read().next_due()
    }

    fn try_query(&self, group: u32, query: &Query) -> Result<Reply, StoreError> {
        let Some(group) = self.0.groups.read().get(&group).cloned() else {
            return Ok(answers::nothing(query));
        };
        let _reading = self.0.readers.enter();
        let queue = group.queue.read();
        let index = FromIndex::new(&queue, query);
        let view = self.view(group.number)?;
        drop(queue);
        let Some(view) = view else { return Ok(answers::nothing(query)) };
        let digests = self.0.digests.get().map_or(&NoDigests as &dyn Digests, AsRef::as_ref);
        let (reply, fresh) = answers::answer(&view, self.reads(group.number), digests, query, index)?;
        if let Query::Messages { mailbox, folder, .. } = query
            && !fresh.is_empty()
            && let Err(error) = self.keep_digests(&group, view.space, (*mailbox, *folder), fresh)
        {
            // They are computed again the next time.
            tracing::warn!(group = group.number, %error, "digests could not be kept");
        }
        Ok(reply)
    }

    /// Keeps digests of the messages that are still there: what applies commands waits meanwhile, so that none outlives its
    /// message.
    fn keep_digests(
        &self,
        group: &Group,
        seen: u32,
        (mailbox, folder): (MailboxId, FolderId),
        fresh: Vec<Fresh>,
    ) -> Result<(), StoreError> {
        let space = group.space.lock();
        if *space != seen {
            // A snapshot has replaced what was read.
            return Ok(());
        }
        let mut batch = Batch::default();
        for Fresh { uid, value } in fresh {
            let message = keys::in_space(*space, &keys::message(mailbox, folder, uid));
            if self.0.index.get(&message)?.is_some() {
                let key = keys::by_uid(keys::DIGESTS, mailbox, folder, uid);
                batch.put(keys::in_space(*space, &key), value);
            }
        }
        self.0.index.commit(batch)
    }

    /// As [`Store::query`], with the query and the reply encoded.
    pub fn query_bytes(&self, group: u32, query: Bytes) -> Bytes {
        let reply = match Query::decode(&query) {
            Ok(query) => self.query(group, &query),
            Err(error) => Reply::Unreadable(error.to_string()),
        };
        reply.encode()
    }

    /// The directory, answered from memory.
    pub fn directory(&self) -> Directory {
        self.0.directory.clone()
    }

    /// Tells of changes as they are committed, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// Makes everything applied so far durable.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        let _one_at_a_time = inner.checkpoint.lock();
        if !inner.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        inner.index.checkpoint().inspect_err(|_| inner.dirty.store(true, Ordering::Release))
    }

    /// To be called after a commit that a checkpoint must make durable.
    pub(crate) fn committed(&self) {
        self.0.dirty.store(true, Ordering::Release);
    }

    /// Fingerprint of a group's logical state: equal on replicas that applied the same log. Where bodies lie does not
    /// count, how long they are does. Reads the whole group.
    pub fn fingerprint(&self, group: u32) -> Result<[u8; 32], StoreError> {
        let mut hasher = blake3::Hasher::new();
        if let Some(view) = self.view(group)? {
            view.scan(&[], &[], &mut |key, value| {
                if keys::is_local(key) {
                    return Ok(ControlFlow::Continue(()));
                }
                // Where a body lies is not part of the state.
                let value = match key.first() {
                    Some(&keys::BODY) => &value[..value.len() - BodyState::split(value)?.1.len()],
                    _ => value,
                };
                hasher.update(&(key.len() as u64).to_be_bytes()).update(key);
                hasher.update(&(value.len() as u64).to_be_bytes()).update(value);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Tells subscribers, each change once a batch.
    pub(crate) fn announce(&self, changes: Vec<Change>) {
        let mut told = std::collections::HashSet::with_capacity(changes.len());
        for change in changes {
            if told.insert(change) {
                // Fails only while nobody listens.
                let _ = self.0.changes.send(change);
            }
        }
    }

    /// The group's state at this instant; none when it holds nothing.
    pub(crate) fn view(&self, group: u32) -> Result<Option<SnapshotView<'_>>, StoreError> {
        let snapshot = self.0.index.snapshot();
        let space = snapshot.get(&keys::in_space(keys::ROOT, &keys::root_group(group)))?;
        let Some(space) = space else { return Ok(None) };
        Ok(Some(SnapshotView { snapshot, space: space_number(&space)? }))
    }

    /// All groups, by number.
    pub(crate) fn groups(&self) -> Vec<Arc<Group>> {
        let mut groups: Vec<_> = self.0.groups.read().values().cloned().collect();
        groups.sort_unstable_by_key(|group| group.number);
        groups
    }

    /// The group, if there is one.
    pub(crate) fn known_group(&self, number: u32) -> Option<Arc<Group>> {
        self.0.groups.read().get(&number).cloned()
    }

    /// The group, made when it is new.
    pub(crate) fn group(&self, number: u32) -> Result<Arc<Group>, StoreError> {
        if let Some(group) = self.0.groups.read().get(&number) {
            return Ok(Arc::clone(group));
        }
        let mut groups = self.0.groups.write();
        if let Some(group) = groups.get(&number) {
            return Ok(Arc::clone(group));
        }
        let space = self.new_space();
        let key = keys::in_space(keys::ROOT, &keys::root_group(number));
        self.put(key, &space.to_be_bytes())?;
        let is_counted = AtomicBool::new(true);
        let group =
            Arc::new(Group { number, space: Mutex::new(space), queue: RwLock::default(), is_counted });
        groups.insert(number, Arc::clone(&group));
        Ok(group)
    }

    /// Deletes the group's state, durably. There may be none.
    pub fn remove(&self, number: u32) -> Result<(), StoreError> {
        let Some(group) = self.0.groups.write().remove(&number) else { return Ok(()) };
        let space = group.space.lock();
        let mut batch = Batch::default();
        batch.remove(keys::in_space(keys::ROOT, &keys::root_group(number)));
        {
            let mut queue = group.queue.write();
            self.0.index.commit(batch)?;
            *queue = QueueIndex::default();
        }
        if number == 0 {
            self.0.directory.replace(Vec::new());
        }
        self.committed();
        self.checkpoint()?;
        // Whoever is about to count it finds that done.
        if group.is_counted.swap(true, Ordering::Relaxed) {
            let view = SnapshotView { snapshot: self.0.index.snapshot(), space: *space };
            self.count_live(&view, false)?;
        }
        let space = *space;
        self.announce(vec![Change::Group { group: number }]);
        self.clear_space(space)
    }

    /// A space that was never used since this start.
    pub(crate) fn new_space(&self) -> u32 {
        let mut last = self.0.last_space.lock();
        *last = last.checked_add(1).expect("fewer than 2^32 snapshots are installed while the node runs");
        *last
    }

    /// Removes all keys of a space that no group uses.
    pub(crate) fn clear_space(&self, space: u32) -> Result<(), StoreError> {
        let end = keys::after(&space.to_be_bytes());
        let mut from = space.to_be_bytes().to_vec();
        loop {
            let mut batch = Batch::default();
            let mut last = None;
            for pair in self.0.index.range(from.clone()..end.clone()).take(CLEAR_BATCH) {
                let key = pair?.0.to_vec();
                last = Some(key.clone());
                batch.remove(key);
            }
            self.0.index.commit(batch)?;
            match last {
                Some(key) => from = key,
                None => return Ok(()),
            }
            // The next key after the last one removed.
            from.push(0);
        }
    }

    pub(crate) fn put(&self, key: Vec<u8>, value: &[u8]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(key, value);
        self.0.index.commit(batch)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let key = keys::in_space(keys::ROOT, &[keys::ROOT_FORMAT]);
        match self.0.index.get(&key)? {
            None => self.put(key, &STATE_FORMAT.to_be_bytes()),
            Some(value) => match space_number(&value)? {
                STATE_FORMAT => Ok(()),
                found => Err(StoreError::Format { found, known: STATE_FORMAT }),
            },
        }
    }

    /// Builds what is kept in memory, and clears what an interrupted installation left.
    fn load_groups(&self) -> Result<(), StoreError> {
        let mut spaces = HashMap::new();
        let prefix = keys::in_space(keys::ROOT, &[keys::ROOT_GROUP]);
        for pair in self.0.index.range(prefix.clone()..keys::after(&prefix)) {
            let (key, value) = pair?;
            let group =
                key.last_chunk::<4>().ok_or(StoreError::Damaged("the key of a group is too short"))?;
            spaces.insert(u32::from_be_bytes(*group), space_number(&value)?);
        }
        let used: BTreeSet<u32> = spaces.values().copied().collect();
        let found = self.spaces()?;
        *self.0.last_space.lock() = found.union(&used).max().copied().unwrap_or(keys::ROOT);
        for space in found.difference(&used) {
            self.clear_space(*space)?;
        }
        for (number, space) in spaces {
            let is_counted = AtomicBool::new(false);
            let group = Group { number, space: Mutex::new(space), queue: RwLock::default(), is_counted };
            self.0.groups.write().insert(number, Arc::new(group));
            self.load_memory(number)?;
        }
        Ok(())
    }

    /// Spaces in which there is a key.
    pub(crate) fn spaces(&self) -> Result<BTreeSet<u32>, StoreError> {
        let mut found = BTreeSet::new();
        let mut next = keys::ROOT + 1;
        let end = keys::after(&[u8::MAX; 4]);
        while let Some(pair) = self.0.index.range(next.to_be_bytes().to_vec()..end.clone()).next() {
            let (key, _) = pair?;
            let space = key.first_chunk::<4>().ok_or(StoreError::Damaged("a key is too short"))?;
            let space = u32::from_be_bytes(*space);
            found.insert(space);
            let Some(after) = space.checked_add(1) else { break };
            next = after;
        }
        Ok(found)
    }

    /// Builds the directory or the queue index of a group anew from the index.
    pub(crate) fn load_memory(&self, group: u32) -> Result<(), StoreError> {
        let Some(view) = self.view(group)? else { return Ok(()) };
        if group == 0 {
            self.0.directory.replace(accounts::everything(&view)?);
        }
        let queue = queue_index(&view)?;
        *self.group(group)?.queue.write() = queue;
        Ok(())
    }
}

pub(crate) fn queue_index<V: View>(view: &V) -> Result<QueueIndex, StoreError> {
    let mut index = QueueIndex::default();
    view.scan(&[keys::QUEUE], &[keys::QUEUE], &mut |_, value| {
        let Queued { entry, .. } = records::decode(value)?;
        index.add(entry.id, &QueueFacts::new(&entry));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(index)
}

fn space_number(value: &[u8]) -> Result<u32, StoreError> {
    let bytes: [u8; 4] = value.try_into().map_err(|_| StoreError::Damaged("a number has not four bytes"))?;
    Ok(u32::from_be_bytes(bytes))
}

impl LogCommand {
    /// Where the last `len` bytes of the command lie: its body.
    pub(crate) fn body(&self, len: usize) -> Option<BodyRef> {
        let start = self.command.len().checked_sub(len)?;
        let offset = self.offset.checked_add(u32::try_from(start).ok()?)?;
        Some(BodyRef { record: self.record, offset, len: u32::try_from(len).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bodies::NoBodies;

    #[test]
    fn an_index_of_the_next_version_is_refused_with_both_and_nothing_in_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Arc::new(NoBodies)).unwrap();
        store.apply(1, Vec::new(), b"5").unwrap();
        let key = keys::in_space(keys::ROOT, &[keys::ROOT_FORMAT]);
        store.put(key, &(STATE_FORMAT + 1).to_be_bytes()).unwrap();
        // Left by a crash: a version that understood the index would clear it away.
        store.put(keys::in_space(store.new_space(), b"left"), b"behind").unwrap();
        store.committed();
        store.checkpoint().unwrap();
        drop(store);
        let everything = || {
            let index = Index::open(dir.path()).unwrap();
            let pairs = index.range(Vec::new()..vec![u8::MAX; 8]);
            pairs
                .map(|pair| pair.unwrap())
                .map(|(key, value)| (key.to_vec(), value.to_vec()))
                .collect::<Vec<_>>()
        };
        let before = everything();
        let error = Store::open(dir.path(), Arc::new(NoBodies)).unwrap_err().to_string();
        for format in [STATE_FORMAT + 1, STATE_FORMAT] {
            assert!(error.contains(&format.to_string()), "{error}");
        }
        assert_eq!(everything(), before);
    }
}
