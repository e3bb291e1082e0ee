//! Reading and writing one group's keys. A [`Txn`] gathers the writes of a batch of commands: later commands see those
//! of earlier ones, a refused command's are taken back, and all reach the index in one atomic batch.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::{
    StoreError,
    directory::DirectoryChange,
    index::{Batch, Index, Snapshot, Value},
    keys::{after, in_space},
    live::LiveChange,
    queue::QueueChange,
    store::Change,
};

/// Called with keys (without the space) and values.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'v;

/// What can be read from: a snapshot, or a batch under way.
pub(crate) trait View {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError>;

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
    pub(crate) snapshot: Snapshot<'a>,
    pub(crate) space: u32,
}

impl View for SnapshotView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.snapshot.get(&in_space(self.space, key))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let range = in_space(self.space, from)..after(&in_space(self.space, prefix));
        for pair in self.snapshot.range(range) {
            let (key, value) = pair?;
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
    /// Bodies that came to lie in a record of the journal, or left it.
    pub(crate) bodies: Vec<LiveChange>,
}

/// Writes under way on top of the index.
pub(crate) struct Txn<'a> {
    index: &'a Index,
    space: u32,
    writes: BTreeMap<Vec<u8>, Option<Value>>,
    pub(crate) effects: Effects,
    undo: Vec<(Vec<u8>, Option<Option<Value>>)>,
    marks: [usize; 4],
}

impl<'a> Txn<'a> {
    pub(crate) fn new(index: &'a Index, space: u32) -> Self {
        Self {
            index,
            space,
            writes: BTreeMap::new(),
            effects: Effects::default(),
            undo: Vec::new(),
            marks: [0; 4],
        }
    }

    /// Starts a command: [`Txn::roll_back`] comes back here.
    pub(crate) fn mark(&mut self) {
        self.undo.clear();
        let Effects { changes, directory, queue, bodies } = &self.effects;
        self.marks = [changes.len(), directory.len(), queue.len(), bodies.len()];
    }

    /// Takes back everything since [`Txn::mark`].
    pub(crate) fn roll_back(&mut self) {
        while let Some((key, before)) = self.undo.pop() {
            match before {
                Some(value) => self.writes.insert(key, value),
                None => self.writes.remove(&key),
            };
        }
        self.effects.changes.truncate(self.marks[0]);
        self.effects.directory.truncate(self.marks[1]);
        self.effects.queue.truncate(self.marks[2]);
        self.effects.bodies.truncate(self.marks[3]);
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: impl Into<Value>) {
        self.write(key, Some(value.into()));
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.write(key, None);
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Value>) {
        let before = self.writes.insert(key.clone(), value);
        self.undo.push((key, before));
    }

    /// The writes as one batch of the index, and what the world learns once it is committed.
    pub(crate) fn into_batch(self) -> (Batch, Effects) {
        let writes = self.writes.into_iter().map(|(key, value)| (in_space(self.space, &key), value));
        (Batch(writes.collect()), self.effects)
    }
}

impl View for Txn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.index.get(&in_space(self.space, key)),
        }
    }

    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut pending = self.writes.range(from.to_vec()..after(prefix)).peekable();
        let range = in_space(self.space, from)..after(&in_space(self.space, prefix));
        for pair in self.index.range(range) {
            let (key, value) = pair?;
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
