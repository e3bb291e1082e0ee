//! Snapshots: a group's state with its bodies as a stream of chunks, and its way into another store.
//!
//! A chunk starts with the format byte and holds whole frames. Frames (lengths are u32, little endian):
//! `1` pair: key length, value length, key, value; `2` body: key length, state length, body length, key, state, body, the
//! state being what replicas agree on of an entry in the table of bodies (one that consists of parts is a plain pair); `3` end: number of pairs (u64) and a BLAKE3
//! hash over all other frames. Keys come without their space.
//!
//! A snapshot is installed into a fresh space of the index, in batches, and takes over by changing one key: memory
//! stays bounded, and readers see the old state or the new one.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use bytes::{Buf, Bytes};

use crate::{
    BodyId, Store, StoreError, accounts,
    body_table::{BodyEntry, BodyState},
    index::{Batch, Iter},
    keys,
    store::{Change, queue_index},
    txn::{SnapshotView, View},
};

/// Format of chunks; the first byte of each.
pub const SNAPSHOT_FORMAT: u8 = 3;
/// A chunk is closed once it has this size.
const CHUNK_BYTES: usize = 1024 * 1024;

const PAIR: u8 = 1;
const BODY: u8 = 2;
const END: u8 = 3;

/// Reads a consistent view of a group.
pub struct SnapshotReader {
    store: Store,
    group: u32,
    /// Of the readers: bodies stay where they are until it is given back.
    ticket: u64,
    position: Vec<u8>,
    /// None when the group holds nothing.
    pairs: Option<Iter>,
    hasher: blake3::Hasher,
    count: u64,
    done: bool,
}

/// Installs a snapshot. Dropped before [`SnapshotWriter::finish`], it leaves the state as it was.
pub struct SnapshotWriter {
    store: Store,
    group: u32,
    space: u32,
    /// Segments that hold its bodies.
    pinned: BTreeSet<u64>,
    hasher: blake3::Hasher,
    count: u64,
    complete: bool,
    finished: bool,
}

impl Store {
    /// A consistent view of the group's state, with bodies.
    pub fn snapshot(&self, group: u32) -> Result<SnapshotReader, StoreError> {
        let ticket = self.0.readers.take();
        let mut reader = SnapshotReader {
            store: self.clone(),
            group,
            ticket,
            position: Vec::new(),
            pairs: None,
            hasher: blake3::Hasher::new(),
            count: 0,
            done: false,
        };
        if let Some(view) = self.view(group)? {
            reader.position = view.get(&[keys::POSITION])?.map(|value| value.to_vec()).unwrap_or_default();
            let start = view.space.to_be_bytes();
            reader.pairs = Some(view.snapshot.range(start.to_vec()..keys::after(&start)));
        }
        Ok(reader)
    }

    /// Starts to replace the group's state.
    pub fn install(&self, group: u32) -> Result<SnapshotWriter, StoreError> {
        Ok(SnapshotWriter {
            store: self.clone(),
            group,
            space: self.new_space(),
            pinned: BTreeSet::new(),
            hasher: blake3::Hasher::new(),
            count: 0,
            complete: false,
            finished: false,
        })
    }

    /// Makes a space that was filled the group's state, durably, together with `position`. `taken` is told when it is in
    /// force.
    pub(crate) fn take_over(
        &self,
        number: u32,
        fresh: u32,
        position: &[u8],
        taken: impl FnOnce(),
    ) -> Result<(), StoreError> {
        let inner = &self.0;
        let group = self.group(number)?;
        let mut space = group.space.lock();
        let staged = SnapshotView { snapshot: inner.index.snapshot(), space: fresh };
        let queue = queue_index(&staged)?;
        let directory = if number == 0 { accounts::everything(&staged)? } else { Vec::new() };
        let mut batch = Batch::default();
        let root = keys::in_space(keys::ROOT, &keys::root_group(number));
        batch.put(root, &fresh.to_be_bytes()[..]);
        let key = keys::in_space(fresh, &[keys::POSITION]);
        batch.put(key, position);
        {
            let mut index = group.queue.write();
            inner.index.commit(batch)?;
            *index = queue;
        }
        if number == 0 {
            inner.directory.replace(directory);
        }
        let old = std::mem::replace(&mut *space, fresh);
        let live = group.is_counted.load(Ordering::Relaxed).then(|| inner.index.snapshot());
        taken();
        self.committed();
        self.checkpoint()?;
        drop(space);
        if let Some(snapshot) = live {
            self.count_live(&SnapshotView { snapshot, space: fresh }, true)?;
            self.count_live(&SnapshotView { snapshot: inner.index.snapshot(), space: old }, false)?;
        }
        self.announce(vec![Change::Group { group: number }]);
        self.clear_space(old)
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        self.store.0.readers.give_back(self.ticket);
    }
}

impl SnapshotReader {
    /// What was given as `position` when the state was applied; empty when the group holds nothing.
    pub fn position(&self) -> &[u8] {
        &self.position
    }

    /// The next chunk of about 1 MiB, more when a single body is larger; none at the end.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.done {
            return Ok(None);
        }
        let mut chunk = vec![SNAPSHOT_FORMAT];
        while chunk.len() < CHUNK_BYTES {
            let Some(pair) = self.pairs.as_mut().and_then(Iterator::next) else {
                self.done = true;
                chunk.push(END);
                chunk.extend_from_slice(&self.count.to_le_bytes());
                chunk.extend_from_slice(self.hasher.finalize().as_bytes());
                break;
            };
            let (key, value) = pair?;
            let key = &key[4..];
            if !keys::is_local(key) {
                let start = chunk.len();
                self.frame(&mut chunk, key, &value)?;
                self.hasher.update(&chunk[start..]);
                self.count += 1;
            }
        }
        Ok(Some(chunk.into()))
    }

    fn frame(&self, chunk: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let body = match key.first() {
            Some(&keys::BODY) => Some(BodyEntry::decode(value)?),
            _ => None,
        };
        let Some(BodyEntry { state, place: Some(place) }) = body else {
            chunk.push(PAIR);
            chunk.extend_from_slice(&length(key.len())?.to_le_bytes());
            chunk.extend_from_slice(&length(value.len())?.to_le_bytes());
            chunk.extend_from_slice(key);
            chunk.extend_from_slice(value);
            return Ok(());
        };
        let name = body_of(key)?;
        let bytes = self.store.reads(self.group).read(name, place, None).map_err(StoreError::Bodies)?;
        if bytes.len() != state.len as usize {
            return Err(StoreError::Bodies(format!(
                "a body has {} bytes instead of {}",
                bytes.len(),
                state.len
            )));
        }
        let encoded = state.encode();
        chunk.push(BODY);
        chunk.extend_from_slice(&length(key.len())?.to_le_bytes());
        chunk.extend_from_slice(&length(encoded.len())?.to_le_bytes());
        chunk.extend_from_slice(&state.len.to_le_bytes());
        chunk.extend_from_slice(key);
        chunk.extend_from_slice(&encoded);
        chunk.extend_from_slice(&bytes);
        Ok(())
    }
}

impl SnapshotWriter {
    /// Takes the next chunk, as the reader gave it. Bodies in it are durable on return.
    pub fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let mut rest = chunk;
        if self.complete {
            return Err(StoreError::Damaged("a snapshot goes on after its end"));
        }
        match take(&mut rest, 1)?[0] {
            SNAPSHOT_FORMAT => {}
            found => return Err(StoreError::Format { found: found.into(), known: SNAPSHOT_FORMAT.into() }),
        }
        let (mut plain, mut states, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
        while !rest.is_empty() && !self.complete {
            let frame = rest.clone();
            match take(&mut rest, 1)?[0] {
                PAIR => {
                    let (key_len, value_len) = (take_length(&mut rest)?, take_length(&mut rest)?);
                    plain.push((take(&mut rest, key_len)?, take(&mut rest, value_len)?));
                }
                BODY => {
                    let (key_len, state_len) = (take_length(&mut rest)?, take_length(&mut rest)?);
                    let body_len = take_length(&mut rest)?;
                    let (key, state) = (take(&mut rest, key_len)?, take(&mut rest, state_len)?);
                    states.push(state_of(&key, &state, body_len)?);
                    bodies.push((states[states.len() - 1].0, take(&mut rest, body_len)?));
                }
                END => {
                    self.check_end(&mut rest)?;
                    break;
                }
                _ => return Err(StoreError::Damaged("a snapshot has a frame of unknown kind")),
            }
            self.hasher.update(&frame[..frame.len() - rest.len()]);
            self.count += 1;
        }
        if !rest.is_empty() {
            return Err(StoreError::Damaged("a snapshot goes on after its end"));
        }
        self.stage(plain, states, bodies)
    }

    fn check_end(&mut self, rest: &mut Bytes) -> Result<(), StoreError> {
        let count = take(rest, 8)?.get_u64_le();
        let hash = take(rest, blake3::OUT_LEN)?;
        if count != self.count || hash != self.hasher.finalize().as_bytes()[..] {
            return Err(StoreError::Damaged("a snapshot is not what was sent"));
        }
        self.complete = true;
        Ok(())
    }

    fn stage(
        &mut self,
        plain: Vec<(Bytes, Bytes)>,
        states: Vec<(BodyId, BodyState)>,
        bodies: Vec<(BodyId, Bytes)>,
    ) -> Result<(), StoreError> {
        let inner = &self.store.0;
        let mut batch = Batch::default();
        for (key, value) in plain {
            if key.first() == Some(&keys::BODY) && BodyState::split(&value)?.0.parts.is_empty() {
                return Err(StoreError::Damaged("a body of a snapshot came without its bytes"));
            }
            batch.put(keys::in_space(self.space, &key), &value[..]);
        }
        let kept = if bodies.is_empty() {
            Vec::new()
        } else {
            let keep = || inner.bodies.keep(self.group, bodies);
            inner.pins.keep(&mut self.pinned, keep).map_err(StoreError::Bodies)?
        };
        if kept.len() != states.len()
            || kept.iter().zip(&states).any(|(body, (_, state))| body.len != state.len)
        {
            return Err(StoreError::Bodies("bodies were not kept as they came".to_owned()));
        }
        for ((id, state), place) in states.into_iter().zip(kept) {
            let key = keys::in_space(self.space, &keys::body(id));
            batch.put(key, BodyEntry { state, place: Some(place) }.encode());
        }
        inner.index.commit(batch)
    }

    /// Replaces the group's state, durably, together with `position`.
    pub fn finish(mut self, position: &[u8]) -> Result<(), StoreError> {
        if !self.complete {
            return Err(StoreError::Damaged("a snapshot ends too early"));
        }
        self.store.take_over(self.group, self.space, position, || self.finished = true)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.store.clear_space(self.space)
        {
            // The next start clears it.
            tracing::warn!(group = self.group, %error, "an unfinished snapshot could not be removed");
        }
        self.store.0.pins.release(&self.pinned);
    }
}

/// A body's name and state, as a frame tells them.
fn state_of(key: &[u8], state: &[u8], len: usize) -> Result<(BodyId, BodyState), StoreError> {
    match (body_of(key)?, BodyState::split(state)?) {
        (id, (state, [])) if state.len as usize == len && state.parts.is_empty() => Ok((id, state)),
        _ => Err(StoreError::Damaged("a body of a snapshot is not what its frame says")),
    }
}

/// The body that a key of the table names.
fn body_of(key: &[u8]) -> Result<BodyId, StoreError> {
    keys::body_of(key).ok_or(StoreError::Damaged("a key of a body is none"))
}

fn length(len: usize) -> Result<u32, StoreError> {
    u32::try_from(len).map_err(|_| StoreError::Damaged("a value is longer than 4 GiB"))
}

fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, StoreError> {
    if bytes.len() < len {
        return Err(StoreError::Damaged("a chunk of a snapshot is cut off"));
    }
    Ok(bytes.split_to(len))
}

fn take_length(bytes: &mut Bytes) -> Result<usize, StoreError> {
    Ok(take(bytes, 4)?.get_u32_le() as usize)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{Bodies, BodyRef};

    struct NoBodies;

    impl Bodies for NoBodies {
        fn read(&self, _: BodyRef, _: Option<u32>) -> Result<Bytes, String> {
            Err("there are no bodies".to_owned())
        }
        fn keep(&self, _: u32, _: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
            Err("there are no bodies".to_owned())
        }
    }

    fn open(dir: &Path) -> Store {
        Store::open(dir, Arc::new(NoBodies)).unwrap()
    }

    fn chunk(store: &Store) -> Bytes {
        store.snapshot(1).unwrap().next_chunk().unwrap().unwrap()
    }

    #[test]
    fn spaces_without_a_group_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let from = open(&dir.path().join("from"));
        from.apply(1, Vec::new(), b"5").unwrap();
        let key = keys::in_space(*from.group(1).unwrap().space.lock(), &keys::text(keys::DOMAIN, "x"));
        from.put(key, b"value").unwrap();

        let path = dir.path().join("to");
        let to = open(&path);
        to.apply(1, Vec::new(), b"1").unwrap();
        let before = to.spaces().unwrap();

        // Given up, and finished: only the space in use is left each time.
        let mut writer = to.install(1).unwrap();
        writer.write(chunk(&from)).unwrap();
        assert_eq!(to.spaces().unwrap().len(), 2);
        drop(writer);
        assert_eq!(to.spaces().unwrap(), before);
        let mut writer = to.install(1).unwrap();
        writer.write(chunk(&from)).unwrap();
        writer.finish(b"5").unwrap();
        let after = to.spaces().unwrap();
        assert!(after.len() == 1 && after != before);

        // Left behind by a crash: the next start clears it, and does not use its number for another while it does.
        let stray = to.new_space();
        to.put(keys::in_space(stray, b"left"), b"behind").unwrap();
        drop(to);
        let to = open(&path);
        assert_eq!(to.spaces().unwrap(), after);
        assert!(to.new_space() > stray);
        assert_eq!(to.position(1).unwrap(), Some(b"5".to_vec()));
    }
}
