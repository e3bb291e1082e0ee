//! Reading and writing one group's keys. A [`Txn`] gathers the writes of a batch of commands: later commands see those
//! of earlier ones, a refused command's are taken back, and all reach the index in one atomic batch.

use std::{collections::BTreeMap, ops::ControlFlow};

use fjall::{Keyspace, Readable, Snapshot, UserValue};

use crate::{
    StoreError,
    directory::DirectoryChange,
    keys::{after, in_space},
    queue::QueueChange,
    store::Change,
};

/// Called with keys (without the space) and values.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'v;

/// What can be read from: a snapshot, or a batch under way.
pub(crate) trait View {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<UserValue>, StoreError>;

    /// Visits the keys from `from` on that start with `prefix`, ascending.
    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// The keys that start with `prefix`.
    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut found = Vec::new();
        self.scan(prefix, prefix, &mut |key, _| {
            found.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}

/// A group as it was at one instant.
pub(crate) struct SnapshotView<'a> {
    pub(crate) keyspace: &'a Keyspace,
    pub(crate) snapshot: Snapshot,
    pub(crate) space: u32,
}

impl View for SnapshotView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<UserValue>, StoreError> {
        Ok(self.snapshot.get(self.keyspace, in_space(self.space, key))?)
    }

    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let range = in_space(self.space, from)..after(&in_space(self.space, prefix));
        for guard in self.snapshot.range(self.keyspace, range) {
            let (key, value) = guard.into_inner()?;
            if visit(&key[4..], &value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// What the world outside the index learns once a batch is committed.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) changes: Vec<Change>,
    pub(crate) directory: Vec<DirectoryChange>,
    pub(crate) queue: Vec<QueueChange>,
}

/// Writes under way on top of the index.
pub(crate) struct Txn<'a> {
    keyspace: &'a Keyspace,
    space: u32,
    writes: BTreeMap<Vec<u8>, Option<UserValue>>,
    pub(crate) effects: Effects,
    undo: Vec<(Vec<u8>, Option<Option<UserValue>>)>,
    marks: (usize, usize, usize),
}

impl<'a> Txn<'a> {
    pub(crate) fn new(keyspace: &'a Keyspace, space: u32) -> Self {
        Self {
            keyspace,
            space,
            writes: BTreeMap::new(),
            effects: Effects::default(),
            undo: Vec::new(),
            marks: (0, 0, 0),
        }
    }

    /// Starts a command: [`Txn::roll_back`] comes back here.
    pub(crate) fn mark(&mut self) {
        self.undo.clear();
        self.marks = (self.effects.changes.len(), self.effects.directory.len(), self.effects.queue.len());
    }

    /// Takes back everything since [`Txn::mark`].
    pub(crate) fn roll_back(&mut self) {
        while let Some((key, before)) = self.undo.pop() {
            match before {
                Some(value) => self.writes.insert(key, value),
                None => self.writes.remove(&key),
            };
        }
        self.effects.changes.truncate(self.marks.0);
        self.effects.directory.truncate(self.marks.1);
        self.effects.queue.truncate(self.marks.2);
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: impl Into<UserValue>) {
        self.write(key, Some(value.into()));
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.write(key, None);
    }

    fn write(&mut self, key: Vec<u8>, value: Option<UserValue>) {
        let before = self.writes.insert(key.clone(), value);
        self.undo.push((key, before));
    }

    /// Hands the writes to an index batch.
    pub(crate) fn fill(self, batch: &mut fjall::OwnedWriteBatch) -> Effects {
        for (key, value) in self.writes {
            let key = in_space(self.space, &key);
            match value {
                Some(value) => batch.insert(self.keyspace, key, value),
                None => batch.remove(self.keyspace, key),
            }
        }
        self.effects
    }
}

impl View for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<UserValue>, StoreError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => Ok(self.keyspace.get(in_space(self.space, key))?),
        }
    }

    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut pending = self.writes.range(from.to_vec()..after(prefix)).peekable();
        let range = in_space(self.space, from)..after(&in_space(self.space, prefix));
        for guard in self.keyspace.range(range) {
            let (key, value) = guard.into_inner()?;
            let key = &key[4..];
            while let Some((newer, value)) = pending.next_if(|(newer, _)| newer.as_slice() < key) {
                if let Some(value) = value
                    && visit(newer, value)?.is_break()
                {
                    return Ok(());
                }
            }
            let flow = match pending.next_if(|(newer, _)| newer.as_slice() == key) {
                Some((_, None)) => continue,
                Some((newer, Some(value))) => visit(newer, value)?,
                None => visit(key, &value)?,
            };
            if flow.is_break() {
                return Ok(());
            }
        }
        for (key, value) in pending {
            if let Some(value) = value
                && visit(key, value)?.is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}
