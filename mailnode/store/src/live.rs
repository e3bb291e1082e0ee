//! Which segments of the journal hold bodies that are referred to, and who is reading.
//!
//! Live bytes are kept by segment in memory and follow every batch. At start they are unknown; each group is counted once
//! in the background, and its changes are followed from the instant that the count shows. Counts are signed, so that
//! changes and the count may come in any order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::{Mutex, RwLock};
use quorumail_journal::Position;

/// What a record takes on disk besides its payload, in bytes.
pub const RECORD_OVERHEAD: u64 = 32;

/// Bytes of records in which a body lies that is referred to, by segment.
#[derive(Default)]
pub(crate) struct LiveBytes(Mutex<HashMap<u64, i64>>);

/// A body came to lie in a record, or left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LiveChange {
    pub(crate) record: Position,
    pub(crate) came: bool,
}

impl LiveBytes {
    pub(crate) fn apply(&self, changes: impl IntoIterator<Item = LiveChange>) {
        let mut segments = self.0.lock();
        for LiveChange { record, came } in changes {
            let bytes = i64::from(record.len) + RECORD_OVERHEAD as i64;
            let live = segments.entry(record.segment).or_default();
            *live += if came { bytes } else { -bytes };
            if *live == 0 {
                segments.remove(&record.segment);
            }
        }
    }

    /// Of one segment. While a count is under way it may be anything; it is never relied upon for more than a choice.
    pub(crate) fn of(&self, segment: u64) -> u64 {
        u64::try_from(self.0.lock().get(&segment).copied().unwrap_or(0)).unwrap_or(0)
    }

    /// Of all segments.
    pub(crate) fn total(&self) -> u64 {
        u64::try_from(self.0.lock().values().sum::<i64>()).unwrap_or(0)
    }
}

/// Who reads a state of the index: a segment whose bodies were moved away is given back only when everybody who may
/// still have read its old place is done.
#[derive(Default)]
pub(crate) struct Readers(Mutex<Tickets>);

#[derive(Default)]
struct Tickets {
    next: u64,
    out: BTreeSet<u64>,
}

/// Somebody reads; until dropped.
pub(crate) struct Reading<'a>(&'a Readers, u64);

impl Readers {
    /// To be called before a state of the index is taken that bodies are read by.
    pub(crate) fn enter(&self) -> Reading<'_> {
        Reading(self, self.take())
    }

    /// As [`Readers::enter`], given back with [`Readers::give_back`].
    pub(crate) fn take(&self) -> u64 {
        let mut tickets = self.0.lock();
        let ticket = tickets.next;
        tickets.next += 1;
        tickets.out.insert(ticket);
        ticket
    }

    pub(crate) fn give_back(&self, ticket: u64) {
        self.0.lock().out.remove(&ticket);
    }

    /// Everybody who reads now has a ticket below this.
    pub(crate) fn horizon(&self) -> u64 {
        self.0.lock().next
    }

    /// Whether everybody who had read at a horizon is done.
    pub(crate) fn are_past(&self, horizon: u64) -> bool {
        self.0.lock().out.first().is_none_or(|oldest| *oldest >= horizon)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.give_back(self.1);
    }
}

/// Segments with bodies that were kept for a snapshot which is not in force yet: nothing refers to them, but they are
/// wanted.
#[derive(Default)]
pub(crate) struct Pins {
    segments: Mutex<BTreeMap<u64, usize>>,
    /// Read by whoever keeps bodies until their segments are pinned; written by compaction before it asks.
    keeping: RwLock<()>,
}

impl Pins {
    /// Keeps bodies and pins the segments that they came to lie in.
    pub(crate) fn keep<E>(
        &self,
        pinned: &mut BTreeSet<u64>,
        keep: impl FnOnce() -> Result<Vec<crate::BodyRef>, E>,
    ) -> Result<Vec<crate::BodyRef>, E> {
        let _keeping = self.keeping.read();
        let kept = keep()?;
        let mut segments = self.segments.lock();
        for body in &kept {
            if pinned.insert(body.record.segment) {
                *segments.entry(body.record.segment).or_default() += 1;
            }
        }
        Ok(kept)
    }

    pub(crate) fn release(&self, pinned: &BTreeSet<u64>) {
        let mut segments = self.segments.lock();
        for segment in pinned {
            if let Some(pins) = segments.get_mut(segment) {
                *pins -= 1;
                if *pins == 0 {
                    segments.remove(segment);
                }
            }
        }
    }

    /// Whether a sealed segment is pinned. It cannot become so later: nothing is written to it any more.
    pub(crate) fn has(&self, segment: u64) -> bool {
        let _nobody_keeps = self.keeping.write();
        self.segments.lock().contains_key(&segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BodyRef;

    fn position(segment: u64, len: u32) -> Position {
        Position { segment, offset: 64, len }
    }

    #[test]
    fn live_bytes_do_not_depend_on_the_order_of_changes() {
        let live = LiveBytes::default();
        live.apply([LiveChange { record: position(3, 10), came: false }]);
        assert_eq!((live.of(3), live.total()), (0, 0));
        live.apply([
            LiveChange { record: position(3, 10), came: true },
            LiveChange { record: position(4, 7), came: true },
        ]);
        assert_eq!((live.of(3), live.of(4), live.total()), (0, 39, 39));
    }

    #[test]
    fn a_horizon_is_past_when_those_who_read_before_it_are_done() {
        let readers = Readers::default();
        let early = readers.enter();
        let horizon = readers.horizon();
        let late = readers.enter();
        assert!(!readers.are_past(horizon));
        drop(early);
        assert!(readers.are_past(horizon));
        drop(late);
    }

    #[test]
    fn a_pinned_segment_is_so_until_all_let_go() {
        let pins = Pins::default();
        let body = |segment| BodyRef { record: position(segment, 5), offset: 0, len: 5 };
        let (mut one, mut other) = (BTreeSet::new(), BTreeSet::new());
        pins.keep(&mut one, || Ok::<_, ()>(vec![body(1), body(2)])).unwrap();
        pins.keep(&mut one, || Ok::<_, ()>(vec![body(2)])).unwrap();
        pins.keep(&mut other, || Ok::<_, ()>(vec![body(2)])).unwrap();
        pins.release(&one);
        assert!(!pins.has(1) && pins.has(2));
        pins.release(&other);
        assert!(!pins.has(2));
    }
}
