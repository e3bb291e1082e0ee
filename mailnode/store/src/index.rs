//! The ordered map below the state machine, with atomic batches, snapshots and a point up to which it is durable.
//!
//! It has two forms with the same promises: fjall on disk, and, for simulation, maps in memory (`memory.rs`). Batches
//! take effect wholly or not at all and in order. What was committed is durable after the next [`Index::checkpoint`];
//! a crash keeps everything up to the last one and some prefix of the batches after it.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use fjall::{Database, Keyspace, PersistMode, Readable, UserKey, UserValue};
use parking_lot::Mutex;

#[cfg(feature = "simulation")]
use crate::memory::{self, MemoryIndex};
use crate::{StoreError, recovery};

/// A value of the index: bytes that are cheap to clone.
pub(crate) type Value = UserValue;

/// The index of a node.
pub(crate) struct Index(Form);

enum Form {
    Disk(Disk),
    #[cfg(feature = "simulation")]
    Memory(memory::Opened),
}

struct Disk {
    database: Database,
    keyspace: Keyspace,
    dir: PathBuf,
    /// Number of the last checkpoint.
    checkpoint: Mutex<u64>,
}

/// Writes that take effect together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch(pub(crate) Vec<(Vec<u8>, Option<Value>)>);

/// The index as it was at one instant.
pub(crate) struct Snapshot<'a>(SnapshotForm<'a>);

enum SnapshotForm<'a> {
    Disk(&'a Keyspace, fjall::Snapshot),
    #[cfg(feature = "simulation")]
    Memory(memory::Snapshot),
}

/// Pairs of a range in ascending order, as they were when the range was asked for.
pub(crate) struct Iter(IterForm);

enum IterForm {
    Disk(fjall::Iter),
    #[cfg(feature = "simulation")]
    Memory(memory::Iter),
}

impl Batch {
    pub(crate) fn put(&mut self, key: Vec<u8>, value: impl Into<Value>) {
        self.0.push((key, Some(value.into())));
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.0.push((key, None));
    }
}

impl Index {
    /// Opens or creates the form on disk.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let recovery::Opened { database, keyspace, checkpoint } = recovery::open(dir)?;
        let checkpoint = Mutex::new(checkpoint);
        Ok(Self(Form::Disk(Disk { database, keyspace, dir: dir.to_owned(), checkpoint })))
    }

    /// Opens the form in memory as the last crash left it.
    #[cfg(feature = "simulation")]
    pub(crate) fn in_memory(index: &MemoryIndex) -> Self {
        Self(Form::Memory(index.open()))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match &self.0 {
            Form::Disk(disk) => Ok(disk.keyspace.get(key)?),
            #[cfg(feature = "simulation")]
            Form::Memory(memory) => Ok(memory.get(key)),
        }
    }

    pub(crate) fn range(&self, range: Range<Vec<u8>>) -> Iter {
        match &self.0 {
            Form::Disk(disk) => Iter(IterForm::Disk(disk.keyspace.range(range))),
            #[cfg(feature = "simulation")]
            Form::Memory(memory) => Iter(IterForm::Memory(memory.snapshot().range(range))),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        match &self.0 {
            Form::Disk(disk) => Snapshot(SnapshotForm::Disk(&disk.keyspace, disk.database.snapshot())),
            #[cfg(feature = "simulation")]
            Form::Memory(memory) => Snapshot(SnapshotForm::Memory(memory.snapshot())),
        }
    }

    pub(crate) fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        match &self.0 {
            Form::Disk(disk) => disk.commit(batch),
            #[cfg(feature = "simulation")]
            Form::Memory(memory) => memory.commit(batch),
        }
    }

    /// Makes everything committed so far durable.
    pub(crate) fn checkpoint(&self) -> Result<(), StoreError> {
        match &self.0 {
            Form::Disk(disk) => disk.checkpoint(),
            #[cfg(feature = "simulation")]
            Form::Memory(memory) => memory.persist(),
        }
    }
}

impl Disk {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut writes = self.database.batch();
        for (key, value) in batch.0 {
            match value {
                Some(value) => writes.insert(&self.keyspace, key, value),
                None => writes.remove(&self.keyspace, key),
            }
        }
        Ok(writes.commit()?)
    }

    fn checkpoint(&self) -> Result<(), StoreError> {
        let mut number = self.checkpoint.lock();
        let next = *number + 1;
        self.keyspace.insert(recovery::checkpoint_key(), next.to_be_bytes())?;
        self.database.persist(PersistMode::SyncAll)?;
        recovery::write_checkpoint(&self.dir, next)?;
        *number = next;
        Ok(())
    }
}

impl Snapshot<'_> {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match &self.0 {
            SnapshotForm::Disk(keyspace, snapshot) => Ok(snapshot.get(keyspace, key)?),
            #[cfg(feature = "simulation")]
            SnapshotForm::Memory(snapshot) => Ok(snapshot.get(key)),
        }
    }

    pub(crate) fn range(&self, range: Range<Vec<u8>>) -> Iter {
        match &self.0 {
            SnapshotForm::Disk(keyspace, snapshot) => Iter(IterForm::Disk(snapshot.range(keyspace, range))),
            #[cfg(feature = "simulation")]
            SnapshotForm::Memory(snapshot) => Iter(IterForm::Memory(snapshot.range(range))),
        }
    }
}

impl Iterator for Iter {
    type Item = Result<(UserKey, Value), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            IterForm::Disk(iter) => iter.next().map(|guard| Ok(guard.into_inner()?)),
            #[cfg(feature = "simulation")]
            IterForm::Memory(iter) => iter.next().map(Ok),
        }
    }
}
