//! The index in memory, for simulation: what fjall promises, without threads, files or a clock.
//!
//! Every key has its versions, so that a snapshot is a number. Batches since the last persist are kept, so that a
//! crash can go back to the persisted state and any prefix of them.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::{Bound, Range},
    sync::Arc,
};

use fjall::UserKey;
use parking_lot::Mutex;

use crate::{
    StoreError,
    index::{Batch, Value},
};

/// The disk that an index in memory lies on: it stays when the store that used it is gone. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryIndex(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Versions of each key, ascending; none: removed.
    map: BTreeMap<Vec<u8>, Vec<(u64, Option<Value>)>>,
    /// Of the last batch.
    version: u64,
    /// Versions that are being read, with the number of their readers.
    read: BTreeMap<u64, usize>,
    /// Keys written while older versions of them may have been read, by the version that replaced those.
    stale: VecDeque<(u64, Vec<u8>)>,
    /// What was persisted.
    durable: BTreeMap<Vec<u8>, Value>,
    /// Batches since.
    unsynced: Vec<Batch>,
    /// Counts crashes: handles of before one write no more.
    epoch: u64,
}

/// The index as one store has it open.
pub(crate) struct Opened {
    index: MemoryIndex,
    epoch: u64,
}

/// One version; cheap to clone.
#[derive(Clone)]
pub(crate) struct Snapshot(Arc<Reading>);

struct Reading {
    index: MemoryIndex,
    version: u64,
}

pub(crate) struct Iter {
    snapshot: Snapshot,
    from: Bound<Vec<u8>>,
    end: Vec<u8>,
}

impl fmt::Debug for MemoryIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("MemoryIndex")
            .field("keys", &state.map.len())
            .field("unsynced_batches", &state.unsynced.len())
            .finish()
    }
}

impl MemoryIndex {
    /// Batches that a crash may lose.
    pub fn unsynced_batches(&self) -> usize {
        self.0.lock().unsynced.len()
    }

    /// Goes back to the state of the last checkpoint and the first `kept` of the batches after it (all of them when
    /// there are fewer). Stores opened before can write no more.
    pub fn crash(&self, kept: usize) {
        let mut state = self.0.lock();
        let lost = std::mem::take(&mut state.unsynced);
        for batch in lost.into_iter().take(kept) {
            apply(&mut state.durable, batch);
        }
        state.version += 1;
        let version = state.version;
        state.map = state
            .durable
            .iter()
            .map(|(key, value)| (key.clone(), vec![(version, Some(value.clone()))]))
            .collect();
        state.stale.clear();
        state.epoch += 1;
    }

    pub(crate) fn open(&self) -> Opened {
        Opened { index: self.clone(), epoch: self.0.lock().epoch }
    }
}

fn apply(map: &mut BTreeMap<Vec<u8>, Value>, batch: Batch) {
    for (key, value) in batch.0 {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

impl State {
    fn get(&self, key: &[u8], version: u64) -> Option<Value> {
        visible(self.map.get(key)?, version).cloned()
    }

    fn commit(&mut self, batch: Batch) {
        self.version += 1;
        for (key, value) in &batch.0 {
            self.map.entry(key.clone()).or_default().push((self.version, value.clone()));
            self.stale.push_back((self.version, key.clone()));
        }
        self.unsynced.push(batch);
        // What nobody can read any more goes.
        let oldest = self.read.first_key_value().map_or(self.version, |(version, _)| *version);
        while self.stale.front().is_some_and(|(version, _)| *version <= oldest) {
            let Some((_, key)) = self.stale.pop_front() else { break };
            let Some(versions) = self.map.get_mut(&key) else { continue };
            let older = versions.iter().take_while(|(version, _)| *version <= oldest).count();
            versions.drain(..older.saturating_sub(1));
            if matches!(versions[..], [(_, None)]) {
                self.map.remove(&key);
            }
        }
    }
}

/// The value at a version.
fn visible(versions: &[(u64, Option<Value>)], version: u64) -> Option<&Value> {
    versions.iter().rev().find(|(at, _)| *at <= version)?.1.as_ref()
}

impl Opened {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Value> {
        let state = self.index.0.lock();
        state.get(key, state.version)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut state = self.index.0.lock();
        let version = state.version;
        *state.read.entry(version).or_default() += 1;
        Snapshot(Arc::new(Reading { index: self.index.clone(), version }))
    }

    pub(crate) fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.index.0.lock();
        if state.epoch != self.epoch {
            return Err(StoreError::Crashed);
        }
        state.commit(batch);
        Ok(())
    }

    pub(crate) fn persist(&self) -> Result<(), StoreError> {
        let mut state = self.index.0.lock();
        if state.epoch != self.epoch {
            return Err(StoreError::Crashed);
        }
        for batch in std::mem::take(&mut state.unsynced) {
            apply(&mut state.durable, batch);
        }
        Ok(())
    }
}

impl Snapshot {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Value> {
        self.0.index.0.lock().get(key, self.0.version)
    }

    pub(crate) fn range(&self, range: Range<Vec<u8>>) -> Iter {
        Iter { snapshot: self.clone(), from: Bound::Included(range.start), end: range.end }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.index.0.lock();
        if let Some(readers) = state.read.get_mut(&self.version) {
            *readers -= 1;
            if *readers == 0 {
                state.read.remove(&self.version);
            }
        }
    }
}

impl Iterator for Iter {
    type Item = (UserKey, Value);

    fn next(&mut self) -> Option<Self::Item> {
        let reading = &self.snapshot.0;
        let state = reading.index.0.lock();
        let from = match &self.from {
            Bound::Included(key) | Bound::Excluded(key) if *key >= self.end => return None,
            from => from.as_ref().map(Vec::as_slice),
        };
        let range = (from, Bound::Excluded(self.end.as_slice()));
        let mut pairs = state.map.range::<[u8], _>(range);
        let (key, value) =
            pairs.find_map(|(key, versions)| Some((key, visible(versions, reading.version)?)))?;
        let pair = (UserKey::from(key.as_slice()), value.clone());
        self.from = Bound::Excluded(key.clone());
        Some(pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(pairs: &[(&str, Option<&str>)]) -> Batch {
        let pair = |(key, value): &(&str, Option<&str>)| {
            (key.as_bytes().to_vec(), value.map(|value| Value::from(value.as_bytes())))
        };
        Batch(pairs.iter().map(pair).collect())
    }

    fn text(snapshot: &Snapshot) -> String {
        let pairs = snapshot.range(vec![0]..vec![0xff]);
        pairs.map(|(key, value)| format!("{}={} ", key.escape_ascii(), value.escape_ascii())).collect()
    }

    #[test]
    fn a_snapshot_does_not_change_and_old_versions_go_with_it() {
        let index = MemoryIndex::default();
        let opened = index.open();
        opened.commit(batch(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))])).unwrap();
        let before = opened.snapshot();
        opened.commit(batch(&[("a", Some("2")), ("b", None), ("d", Some("2"))])).unwrap();
        let after = opened.snapshot();
        assert_eq!(text(&before), "a=1 b=1 c=1 ");
        assert_eq!(text(&after), "a=2 c=1 d=2 ");
        drop((before, after));
        opened.commit(batch(&[("e", Some("3"))])).unwrap();
        let state = index.0.lock();
        assert!(state.map.values().all(|versions| versions.len() == 1) && !state.map.contains_key(&b"b"[..]));
        assert!(state.stale.is_empty());
    }

    #[test]
    fn a_crash_keeps_the_checkpoint_and_a_prefix_of_what_followed() {
        for kept in 0..4 {
            let index = MemoryIndex::default();
            let opened = index.open();
            opened.commit(batch(&[("a", Some("1"))])).unwrap();
            opened.persist().unwrap();
            for n in ["2", "3", "4"] {
                opened.commit(batch(&[("a", Some(n)), (n, Some(n))])).unwrap();
            }
            assert_eq!(index.unsynced_batches(), 3);
            index.crash(kept);
            assert!(matches!(opened.commit(batch(&[("x", None)])), Err(StoreError::Crashed)));
            assert!(matches!(opened.persist(), Err(StoreError::Crashed)));
            let all = ["a=1 ", "2=2 a=2 ", "2=2 3=3 a=3 ", "2=2 3=3 4=4 a=4 "];
            assert_eq!(text(&index.open().snapshot()), all[kept]);
        }
    }
}
