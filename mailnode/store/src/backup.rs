//! A group's state for backups: read pair by pair and body by body, and loaded again with bodies that lie elsewhere.
//!
//! A backup keeps bodies apart from the state that refers to them, so that it can tell which of them it has already. To
//! read a backup, its pairs are loaded into a store whose [`Bodies`](crate::Bodies) read from wherever the backup lies.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::{
    BodyId, BodyRef, Store, StoreError,
    body_table::{BodyEntry, BodyState},
    index::{Batch, Iter},
    keys,
    txn::{SnapshotView, View},
};

/// Pairs that reach the index at once while a backup is loaded.
const LOAD_BATCH: usize = 4096;

/// What a pair of a group's state is, as far as a backup cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairKind {
    /// The head of a mailbox: one for each that has mail.
    Mailbox,
    /// A message in a folder.
    Message,
    /// An entry in the table of bodies whose body lies in a record of its own. The value tells nothing of where.
    Body(BodyId, u32),
    /// Anything else.
    Other,
}

/// A pair of a group's replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatePair {
    /// Without its space; ascending.
    pub key: Vec<u8>,
    /// What replicas agree on.
    pub value: Vec<u8>,
    /// What it is.
    pub kind: PairKind,
}

/// A body that lies in a record of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBody {
    /// Which one.
    pub id: BodyId,
    /// Length in bytes.
    pub len: u32,
    place: BodyRef,
}

/// Reads a group's state as it was when asked for. Blocks on disk.
pub struct BackupReader {
    store: Store,
    group: u32,
    /// Of the readers: bodies stay where they are until it is given back.
    ticket: u64,
    position: Vec<u8>,
    totals: (u64, u64),
    /// None when the group holds nothing.
    pairs: Option<Iter>,
    bodies: Option<Iter>,
}

/// Puts a group's state into a store. Dropped before [`StateLoader::finish`], it leaves the group as it was.
pub struct StateLoader {
    store: Store,
    group: u32,
    space: u32,
    batch: Batch,
    finished: bool,
}

impl Store {
    /// The group's state at this instant, for a backup.
    pub fn backup(&self, group: u32) -> Result<BackupReader, StoreError> {
        let ticket = self.0.readers.take();
        let mut reader = BackupReader {
            store: self.clone(),
            group,
            ticket,
            position: Vec::new(),
            totals: (0, 0),
            pairs: None,
            bodies: None,
        };
        if let Some(view) = self.view(group)? {
            reader.position = view.get(&[keys::POSITION])?.map(|value| value.to_vec()).unwrap_or_default();
            let range = |prefix: &[u8]| {
                let start = keys::in_space(view.space, prefix);
                view.snapshot.range(start.clone()..keys::after(&start))
            };
            reader.pairs = Some(range(&[]));
            reader.bodies = Some(range(&[keys::BODY]));
            reader.totals = totals(&view)?;
        }
        Ok(reader)
    }

    /// Starts to replace the group's state with one from a backup.
    pub fn load(&self, group: u32) -> StateLoader {
        let space = self.new_space();
        StateLoader { store: self.clone(), group, space, batch: Batch::default(), finished: false }
    }
}

/// Number of bodies that lie in records of their own, and the sum of their lengths.
fn totals(view: &SnapshotView<'_>) -> Result<(u64, u64), StoreError> {
    let (mut bodies, mut bytes) = (0, 0);
    view.scan(&[keys::BODY], &[keys::BODY], &mut |_, value| {
        let (state, _) = BodyState::split(value)?;
        if state.parts.is_empty() {
            bodies += 1;
            bytes += u64::from(state.len);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((bodies, bytes))
}

impl Drop for BackupReader {
    fn drop(&mut self) {
        self.store.0.readers.give_back(self.ticket);
    }
}

impl BackupReader {
    /// What was given as `position` when the state was applied; empty when the group holds nothing.
    pub fn position(&self) -> &[u8] {
        &self.position
    }

    /// Number of bodies that [`BackupReader::next_body`] answers, and the sum of their lengths in bytes.
    pub fn totals(&self) -> (u64, u64) {
        self.totals
    }

    /// The next pair of the state, in ascending order of keys.
    pub fn next_pair(&mut self) -> Result<Option<StatePair>, StoreError> {
        let Some(pairs) = &mut self.pairs else { return Ok(None) };
        for pair in pairs {
            let (key, value) = pair?;
            let (key, value) = (&key[4..], &value[..]);
            if keys::is_local(key) {
                continue;
            }
            let (kind, value) = match key.first() {
                Some(&keys::HEAD) => (PairKind::Mailbox, value),
                Some(&keys::MESSAGE) => (PairKind::Message, value),
                Some(&keys::BODY) => {
                    let (state, place) = BodyState::split(value)?;
                    let kind = body_kind(key, &state)?;
                    (kind, &value[..value.len() - place.len()])
                }
                _ => (PairKind::Other, value),
            };
            return Ok(Some(StatePair { key: key.to_vec(), value: value.to_vec(), kind }));
        }
        Ok(None)
    }

    /// The next body that lies in a record of its own, in ascending order of ids.
    pub fn next_body(&mut self) -> Result<Option<StoredBody>, StoreError> {
        let Some(bodies) = &mut self.bodies else { return Ok(None) };
        for pair in bodies {
            let (key, value) = pair?;
            let BodyEntry { state, place } = BodyEntry::decode(&value)?;
            if let Some(place) = place {
                return Ok(Some(StoredBody { id: body_of(&key[4..])?, len: state.len, place }));
            }
        }
        Ok(None)
    }

    /// The bytes of a body that this reader answered; gets it back from another replica when this one has lost it.
    pub fn read(&self, body: &StoredBody) -> Result<Bytes, StoreError> {
        let read = self.store.reads(self.group).read(body.id, body.place, None);
        let bytes = read.map_err(StoreError::Bodies)?;
        if bytes.len() != body.len as usize {
            let reason = format!("a body has {} bytes instead of {}", bytes.len(), body.len);
            return Err(StoreError::Bodies(reason));
        }
        Ok(bytes)
    }
}

impl StateLoader {
    /// What a pair that a [`BackupReader`] answered is; of any other bytes an error or one of these.
    pub fn kind(key: &[u8], value: &[u8]) -> Result<PairKind, StoreError> {
        match key.first() {
            Some(&keys::HEAD) => Ok(PairKind::Mailbox),
            Some(&keys::MESSAGE) => Ok(PairKind::Message),
            Some(&keys::BODY) => match BodyState::split(value)? {
                (state, []) => body_kind(key, &state),
                _ => Err(StoreError::Damaged("a body of a backup is not what replicas agree on")),
            },
            _ => Ok(PairKind::Other),
        }
    }

    /// Puts a pair, of any kind but [`PairKind::Body`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if key.is_empty() || keys::is_local(key) {
            return Err(StoreError::Damaged("a backup holds what is a replica's own"));
        }
        if matches!(Self::kind(key, value)?, PairKind::Body(..)) {
            return Err(StoreError::Damaged("a body of a backup came without its place"));
        }
        self.stage(key, value.to_vec())
    }

    /// Puts a pair of kind [`PairKind::Body`], and where the store's [`Bodies`](crate::Bodies) find it.
    pub fn put_body(&mut self, key: &[u8], value: &[u8], place: BodyRef) -> Result<(), StoreError> {
        let PairKind::Body(_, len) = Self::kind(key, value)? else {
            return Err(StoreError::Damaged("what is no body came with a place"));
        };
        if place.len != len {
            return Err(StoreError::Damaged("a body of a backup has another length than the state says"));
        }
        let (state, _) = BodyState::split(value)?;
        self.stage(key, BodyEntry { state, place: Some(place) }.encode())
    }

    fn stage(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.batch.put(keys::in_space(self.space, key), value);
        if self.batch.0.len() < LOAD_BATCH {
            return Ok(());
        }
        self.store.0.index.commit(std::mem::take(&mut self.batch))
    }

    /// Replaces the group's state, durably, together with `position`.
    pub fn finish(mut self, position: &[u8]) -> Result<(), StoreError> {
        self.store.0.index.commit(std::mem::take(&mut self.batch))?;
        self.store.take_over(self.group, self.space, position, || self.finished = true)
    }
}

impl Drop for StateLoader {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.store.clear_space(self.space)
        {
            // The next start clears it.
            tracing::warn!(group = self.group, %error, "an unfinished load could not be removed");
        }
    }
}

fn body_kind(key: &[u8], state: &BodyState) -> Result<PairKind, StoreError> {
    let id = body_of(key)?;
    Ok(if state.parts.is_empty() { PairKind::Body(id, state.len) } else { PairKind::Other })
}

fn body_of(key: &[u8]) -> Result<BodyId, StoreError> {
    keys::body_of(key).ok_or(StoreError::Damaged("a key of a body is none"))
}
