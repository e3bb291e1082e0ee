//! Gives back the disk space of bodies that nothing refers to any more.
//!
//! Bodies lie in the journal's segments among dead ones. One segment at a time: the bodies in it that are still referred
//! to are copied into kept segments, the table of bodies is pointed to the copies, the index is made durable, and once
//! nobody reads by an older state of it, the segment is given back. Whatever crash comes between, the durable index
//! points to bodies that are there: copies that it does not know yet are dead bytes of their segment.
//!
//! # What it costs
//! A segment with a dead share of `d` costs `(1 - d) / d` bytes of copying for each byte that it gives back. At the default
//! threshold of a half, one byte written for each given back. If all mail is deleted in the end, as many bytes are given back as
//! were accepted, and copying would double what is written. So the threshold alone is no bound, and there is a second
//! rule: copies may take [`WRITE_BUDGET`] bytes for each byte appended to the journal, which keeps all writing below 1.2
//! bytes a byte (the rest is for records' headers and the index). Segments are taken deadest first, so that a budget that
//! is too small for all goes where it gives back most: with uniform deletion of everything, a segment waits until about
//! 87 % of it is dead. Segments without any live byte cost nothing and go at once. When the disk is nearly full, space
//! matters more than writing and neither rule holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use quorumail_journal::{
    Position,
    mutation::{self, Mutation},
};

use crate::{
    BodyId, BodyRef, Store, StoreError,
    body_table::{self, BodyEntry},
    index::Batch,
    keys,
    live::LiveChange,
    txn::{SnapshotView, View},
};

/// Bytes that may be copied for each byte appended to the journal.
pub const WRITE_BUDGET: f64 = 0.15;
/// Unused budget that is saved up, in bytes: for a node that is busy by day and has its mail deleted by night.
const MAX_SAVED: u64 = 4 << 30;
/// Budget at start, in bytes: what was saved is not remembered over a restart.
const FIRST_SAVED: u64 = 256 << 20;
/// Bodies copied in one step, in bytes; a longer one goes alone.
const COPY_BYTES: u64 = 4 << 20;
/// Dead share from which a segment is compacted when the disk is nearly full.
const URGENT_DEAD_SHARE: f64 = 0.05;
/// Segments that wait for readers of an older state; no more are compacted while there are so many.
const MAX_RETIRED: usize = 64;

/// A segment of the journal that the logs do not need: what is wanted in it are bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Its length in bytes, as it counts on disk.
    pub bytes: u64,
}

/// A record that may hold a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyRecord {
    /// Where it lies.
    pub record: Position,
    /// Of which group.
    pub group: u32,
    /// The body, if the command brought one.
    pub body: BodyId,
}

/// What compaction needs of the journal. Calls block on disk; errors are in words.
pub trait Segments: Send + Sync {
    /// Sealed segments that no log needs.
    fn sealed(&self) -> Vec<Segment>;

    /// The records of a segment that may hold bodies.
    fn records(&self, segment: u64) -> Result<Vec<BodyRecord>, String>;

    /// Gives a segment back; the caller vouches that nothing refers to it.
    fn recycle(&self, segment: u64) -> Result<(), String>;
}

/// Which segments are worth it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompactionPolicy {
    /// Share of a segment that must be dead, above 0 and at most 1.
    pub dead_share: f64,
}

impl Default for CompactionPolicy {
    fn default() -> Self {
        Self { dead_share: 0.5 }
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments given back.
    pub reclaimed_segments: u64,
    /// Their bytes.
    pub reclaimed_bytes: u64,
    /// Segments whose bodies were moved away.
    pub compacted_segments: u64,
    /// Bodies moved.
    pub moved_bodies: u64,
    /// Bytes copied for it.
    pub moved_bytes: u64,
}

/// What is live of the journal, and what compaction could give back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes of records with bodies that are referred to, in all segments. Too low until all groups were counted.
    pub live_bytes: u64,
    /// Dead bytes in segments that no log needs.
    pub dead_bytes: u64,
}

/// Compacts the bodies of a store; there is one for each.
pub struct Compactor {
    store: Store,
    segments: Arc<dyn Segments>,
    policy: CompactionPolicy,
    /// Bodies were moved away from these; they wait until readers are past the horizon.
    retired: BTreeMap<u64, Retired>,
    /// Segments with a live body that cannot be read. They stay as they are until it has been repaired.
    damaged: BTreeSet<u64>,
    budget: Budget,
}

/// Bytes that may be copied.
#[derive(Debug)]
struct Budget {
    saved: u64,
    /// Appended to the journal when it was last looked at.
    appended: Option<u64>,
}

impl Budget {
    fn new() -> Self {
        Self { saved: FIRST_SAVED, appended: None }
    }

    /// Grows with what was appended so far.
    fn grow(&mut self, appended: u64) {
        let since = self.appended.replace(appended).map_or(0, |before| appended.saturating_sub(before));
        self.saved = self.saved.saturating_add((since as f64 * WRITE_BUDGET) as u64).min(MAX_SAVED);
    }

    fn spend(&mut self, bytes: u64) {
        self.saved = self.saved.saturating_sub(bytes);
    }
}

#[derive(Debug, Clone, Copy)]
struct Retired {
    bytes: u64,
    horizon: u64,
}

/// A body that is to be moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live {
    pub(crate) group: u32,
    pub(crate) body: BodyId,
    pub(crate) place: BodyRef,
}

impl Compactor {
    /// Nothing is done before the first [`Compactor::step`].
    pub fn new(store: Store, segments: Arc<dyn Segments>, policy: CompactionPolicy) -> Self {
        Self {
            store,
            segments,
            policy,
            retired: BTreeMap::new(),
            damaged: BTreeSet::new(),
            budget: Budget::new(),
        }
    }

    /// Gives back what can be given back, and compacts at most one segment. `appended_bytes` is what was appended to the
    /// journal so far, by which the budget grows; `is_urgent` says that the disk is nearly full. `pace` is called with
    /// the number of bytes after each copy: it may wait, or break off.
    ///
    /// # Errors
    /// When the index or the journal fails. A body that cannot be read is no error: it is logged, and its segment stays.
    pub fn step(
        &mut self,
        appended_bytes: u64,
        is_urgent: bool,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Compacted, StoreError> {
        self.store.count_bodies()?;
        self.budget.grow(appended_bytes);
        let mut done = Compacted::default();
        self.reclaim(&mut done)?;
        if self.retired.len() >= MAX_RETIRED {
            return Ok(done);
        }
        if let Some(segment) = self.choose(is_urgent) {
            let before = done.moved_bytes;
            let compacted = self.compact(segment, pace, &mut done);
            self.budget.spend(done.moved_bytes - before);
            compacted?;
            self.reclaim(&mut done)?;
        }
        Ok(done)
    }

    /// What there is to give back.
    pub fn space(&self) -> Space {
        let live = &self.store.0.live;
        let dead = |segment: &Segment| match self.retired.contains_key(&segment.number) {
            true => segment.bytes,
            false => segment.bytes.saturating_sub(live.of(segment.number)),
        };
        Space { live_bytes: live.total(), dead_bytes: self.segments.sealed().iter().map(dead).sum() }
    }

    /// Looks at segments again in which a body could not be read.
    pub fn forget_damage(&mut self) {
        self.damaged.clear();
    }

    /// The deadest segment that the policy and the budget allow.
    fn choose(&self, is_urgent: bool) -> Option<Segment> {
        let wanted = if is_urgent { URGENT_DEAD_SHARE } else { self.policy.dead_share };
        let live_of = |segment: &Segment| self.store.0.live.of(segment.number);
        let share = |segment: &Segment| 1.0 - live_of(segment) as f64 / segment.bytes.max(1) as f64;
        let affordable = |segment: &Segment| is_urgent || live_of(segment) <= self.budget.saved;
        self.segments
            .sealed()
            .into_iter()
            .filter(|segment| {
                !self.retired.contains_key(&segment.number) && !self.damaged.contains(&segment.number)
            })
            .filter(|segment| share(segment) >= wanted && affordable(segment))
            .filter(|segment| !self.store.0.pins.has(segment.number))
            .max_by(|a, b| share(a).total_cmp(&share(b)).then(b.number.cmp(&a.number)))
    }

    /// Moves the live bodies of a segment away.
    fn compact(
        &mut self,
        segment: Segment,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
        done: &mut Compacted,
    ) -> Result<(), StoreError> {
        let live = match self.segments.records(segment.number) {
            Ok(records) => self.store.live_among(&records)?,
            Err(reason) => {
                tracing::warn!(
                    segment = segment.number,
                    reason,
                    "a segment cannot tell what is in it; the tables of bodies are read"
                );
                self.store.live_in(segment.number)?
            }
        };
        let mut rest = &live[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |live: &&Live| {
                bytes += u64::from(live.place.len);
                bytes <= COPY_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            let Some(copied) = self.copy(segment.number, now)? else { return Ok(()) };
            done.moved_bodies += count as u64;
            done.moved_bytes += copied;
            rest = later;
            if pace(copied).is_break() {
                return Ok(());
            }
        }
        // Counted another way, the same must come out: a body that the records do not tell of would be lost.
        let left = self.store.0.live.of(segment.number);
        if left != 0 {
            let segment = segment.number;
            tracing::error!(
                segment,
                left,
                "the records of a segment do not tell of all bodies in it; it stays"
            );
            self.damaged.insert(segment);
            return Ok(());
        }
        // What was found dead, and that the others lie elsewhere now, must not be undone by a crash.
        if !mutation::is(Mutation::RecycleBeforeCheckpoint) {
            self.store.checkpoint()?;
        }
        let horizon = self.store.0.readers.horizon();
        self.retired.insert(segment.number, Retired { bytes: segment.bytes, horizon });
        done.compacted_segments += 1;
        Ok(())
    }

    /// Copies bodies and points the table to the copies; none when one cannot be read.
    fn copy(&mut self, segment: u64, live: &[Live]) -> Result<Option<u64>, StoreError> {
        let mut read = Vec::with_capacity(live.len());
        for one in live {
            match self.store.reads(one.group).read(one.body, one.place, None) {
                Ok(bytes) => read.push(bytes),
                Err(reason) => {
                    let Live { group, body, .. } = *one;
                    // It may have gone since it was found live.
                    if self.store.place_of(group, body)? != Some(one.place) {
                        read.push(Bytes::new());
                        continue;
                    }
                    tracing::error!(
                        segment,
                        group,
                        body = body.0,
                        reason,
                        "a body cannot be read; its segment stays"
                    );
                    self.damaged.insert(segment);
                    return Ok(None);
                }
            }
        }
        let bytes = read.iter().map(|bytes| bytes.len() as u64).sum();
        let mut by_group: BTreeMap<u32, Vec<(Live, Bytes)>> = BTreeMap::new();
        for (one, bytes) in live.iter().zip(read) {
            by_group.entry(one.group).or_default().push((*one, bytes));
        }
        for (group, bodies) in by_group {
            self.store.move_bodies(group, bodies)?;
        }
        Ok(Some(bytes))
    }

    /// Gives back the segments that nobody can be reading any more.
    fn reclaim(&mut self, done: &mut Compacted) -> Result<(), StoreError> {
        let readers = &self.store.0.readers;
        let free: Vec<(u64, Retired)> = self
            .retired
            .iter()
            .filter(|(_, retired)| readers.are_past(retired.horizon))
            .map(|(number, retired)| (*number, *retired))
            .collect();
        for (number, retired) in free {
            self.segments.recycle(number).map_err(StoreError::Bodies)?;
            self.retired.remove(&number);
            done.reclaimed_segments += 1;
            done.reclaimed_bytes += retired.bytes;
        }
        Ok(())
    }
}

impl Store {
    /// Counts the live bytes of groups for which that was not done since the start.
    fn count_bodies(&self) -> Result<(), StoreError> {
        for group in self.groups() {
            let view = {
                let space = group.space.lock();
                if group.is_counted.swap(true, Ordering::Relaxed) {
                    continue;
                }
                SnapshotView { snapshot: self.0.index.snapshot(), space: *space }
            };
            self.count_live(&view, true)?;
        }
        Ok(())
    }

    /// Adds what a state holds to the live bytes, or takes it off.
    pub(crate) fn count_live(&self, view: &SnapshotView<'_>, came: bool) -> Result<(), StoreError> {
        view.scan(&[keys::BODY], &[keys::BODY], &mut |_, value| {
            if let Some(place) = BodyEntry::decode(value)?.place {
                self.0.live.apply([LiveChange { record: place.record, came }]);
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Those of the records that hold a body which is referred to.
    pub(crate) fn live_among(&self, records: &[BodyRecord]) -> Result<Vec<Live>, StoreError> {
        let mut by_group: BTreeMap<u32, Vec<&BodyRecord>> = BTreeMap::new();
        for record in records {
            by_group.entry(record.group).or_default().push(record);
        }
        let mut live = Vec::new();
        for (group, records) in by_group {
            let Some(view) = self.view(group)? else { continue };
            for BodyRecord { record, body, .. } in records {
                if let Some(entry) = body_table::find(&view, *body)?
                    && let Some(place) = entry.place
                    && place.record == *record
                {
                    live.push(Live { group, body: *body, place });
                }
            }
        }
        Ok(live)
    }

    /// Keeps copies of bodies of a group, and points the table to them where it still points to the old places.
    pub(crate) fn move_bodies(&self, group: u32, bodies: Vec<(Live, Bytes)>) -> Result<(), StoreError> {
        let (mut old, mut copies) = (Vec::with_capacity(bodies.len()), Vec::with_capacity(bodies.len()));
        for (live, bytes) in bodies {
            if bytes.len() == live.place.len as usize {
                old.push(live);
                copies.push((live.body, bytes));
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        let mut pinned = BTreeSet::new();
        let keep = || self.0.bodies.keep(group, copies);
        let kept = self.0.pins.keep(&mut pinned, keep).map_err(StoreError::Bodies);
        let moved = kept.and_then(|kept| self.point_to(group, &old, &kept));
        self.0.pins.release(&pinned);
        moved
    }

    fn point_to(&self, group: u32, old: &[Live], kept: &[BodyRef]) -> Result<(), StoreError> {
        // It may have been removed meanwhile.
        let Some(group) = self.known_group(group) else { return Ok(()) };
        let space = group.space.lock();
        let view = SnapshotView { snapshot: self.0.index.snapshot(), space: *space };
        let (mut batch, mut changes) = (Batch::default(), Vec::with_capacity(2 * old.len()));
        for (live, copy) in old.iter().zip(kept) {
            let Some(mut entry) = body_table::find(&view, live.body)? else { continue };
            if entry.place != Some(live.place) {
                continue;
            }
            if copy.len != entry.state.len {
                return Err(StoreError::Bodies("a body was not kept as it is".to_owned()));
            }
            entry.place = Some(*copy);
            batch.put(keys::in_space(*space, &keys::body(live.body)), entry.encode());
            changes.push(LiveChange { record: live.place.record, came: false });
            changes.push(LiveChange { record: copy.record, came: true });
        }
        drop(view);
        self.0.index.commit(batch)?;
        self.committed();
        if group.is_counted.load(Ordering::Relaxed) {
            self.0.live.apply(changes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_grows_with_what_is_appended_and_never_beyond_its_bound() {
        let mut budget = Budget::new();
        // What was appended before the first look does not count twice.
        budget.grow(1 << 50);
        assert_eq!(budget.saved, FIRST_SAVED);
        budget.grow((1 << 50) + 1000);
        assert_eq!(budget.saved, FIRST_SAVED + 150);
        budget.spend(FIRST_SAVED);
        assert_eq!(budget.saved, 150);
        budget.spend(1000);
        assert_eq!(budget.saved, 0);
        budget.grow(u64::MAX);
        assert_eq!(budget.saved, MAX_SAVED);
    }
}
