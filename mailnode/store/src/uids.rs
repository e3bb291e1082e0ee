//! Which UIDs of a folder are in use. UIDs are given in order and never again (RFC 9051 2.3.1.1), so the set is all
//! below UIDNEXT but the expunged ones: only those are kept, as *holes*, in blocks. Mail that arrives costs nothing
//! here, a folder nothing was ever expunged from has no holes at all, and one of a million messages with a hole at every
//! other UID has 245 blocks of half a KiB.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{StoreError, Uid};

/// UIDs whose holes one key holds.
const BLOCK: u32 = 4096;
const WORDS: usize = BLOCK as usize / 64;
/// First byte of a value: runs follow, each the distance from the end of the run before and its length, as LEB128.
const RUNS: u8 = 1;
/// First byte of a value: a bit for each UID follows.
const BITS: u8 = 2;
const DAMAGED: StoreError = StoreError::Damaged("the holes of a folder cannot be decoded");

/// The block that a UID belongs to.
pub(crate) fn block(uid: Uid) -> u32 {
    uid.0 / BLOCK
}

/// The UIDs from `from` to before `to`, cut at blocks: block, first and last of each.
pub(crate) fn blocks(from: Uid, to: Uid) -> impl Iterator<Item = (u32, Uid, Uid)> {
    let last = to.0.saturating_sub(1);
    (block(from)..=last / BLOCK).filter_map(move |number| {
        let (first, last) = (from.0.max(number * BLOCK), last.min(number * BLOCK + (BLOCK - 1)));
        (first <= last).then_some((number, Uid(first), Uid(last)))
    })
}

/// The expunged UIDs of a block, by their place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holes([u64; WORDS]);

impl Default for Holes {
    fn default() -> Self {
        Self([0; WORDS])
    }
}

impl Holes {
    pub(crate) fn insert(&mut self, uid: Uid) {
        let place = uid.0 % BLOCK;
        self.0[(place / 64) as usize] |= 1 << (place % 64);
    }

    /// All from `first` to `last`, which are of one block.
    pub(crate) fn of_range(first: Uid, last: Uid) -> Self {
        assert!(block(first) == block(last) && first <= last, "a range lies in one block");
        let mut holes = Self::default();
        let (first, last) = (first.0 % BLOCK, last.0 % BLOCK);
        for (at, word) in (0u32..).zip(&mut holes.0) {
            let (from, to) = (first.max(at * 64), last.min(at * 64 + 63));
            if from <= to {
                *word = (u64::MAX >> (63 - (to - from))) << (from % 64);
            }
        }
        holes
    }

    pub(crate) fn remove(&mut self, uid: Uid) {
        let place = uid.0 % BLOCK;
        self.0[(place / 64) as usize] &= !(1 << (place % 64));
    }

    pub(crate) fn contains(&self, uid: Uid) -> bool {
        let place = uid.0 % BLOCK;
        self.0[(place / 64) as usize] & (1 << (place % 64)) != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many.
    #[cfg(feature = "simulation")]
    pub(crate) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Runs of places, first and last.
    fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (at, word) in (0u32..).zip(&self.0) {
            let mut left = *word;
            while left != 0 {
                let first = left.trailing_zeros();
                let len = (left >> first).trailing_ones();
                left &= if first + len == 64 { 0 } else { u64::MAX << (first + len) };
                let (first, last) = (at * 64 + first, at * 64 + first + len - 1);
                match runs.last_mut() {
                    Some((_, end)) if *end + 1 == first => *end = last,
                    _ => runs.push((first, last)),
                }
            }
        }
        runs
    }

    /// The same bytes for the same set: replicas compare them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![RUNS];
        let mut end = 0;
        for (first, last) in self.runs() {
            varint(&mut out, first - end);
            varint(&mut out, last + 1 - first);
            end = last + 1;
        }
        if out.len() > WORDS * 8 {
            out.clear();
            out.push(BITS);
            out.extend(self.0.iter().flat_map(|word| word.to_le_bytes()));
        }
        out
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, StoreError> {
        let mut holes = Self::default();
        match value.split_first() {
            Some((&BITS, bits)) if bits.len() == WORDS * 8 => {
                for (word, bytes) in holes.0.iter_mut().zip(bits.chunks_exact(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().map_err(|_| DAMAGED)?);
                }
            }
            Some((&RUNS, mut rest)) => {
                let mut end = 0u32;
                while !rest.is_empty() {
                    let first = end.checked_add(read_varint(&mut rest)?).ok_or(DAMAGED)?;
                    end = first
                        .checked_add(read_varint(&mut rest)?)
                        .filter(|end| *end <= BLOCK)
                        .ok_or(DAMAGED)?;
                    for place in first..end {
                        holes.insert(Uid(place));
                    }
                }
            }
            _ => return Err(DAMAGED),
        }
        Ok(holes)
    }
}

fn varint(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Result<u32, StoreError> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (first, rest) = bytes.split_first().ok_or(DAMAGED)?;
        *bytes = rest;
        number |= u32::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DAMAGED)
}

/// The UIDs of a folder from one on. Small whatever the size of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderUids {
    from: Uid,
    next: Uid,
    /// Blocks that have holes, ascending, with their encoded holes.
    holes: Vec<(u32, Bytes)>,
}

impl FolderUids {
    /// `holes`: of all blocks from that of `from` on, as the index holds them.
    pub(crate) fn new(from: Uid, next: Uid, holes: Vec<(u32, Bytes)>) -> Self {
        Self { from, next, holes }
    }

    /// First and last of each run of UIDs in use, ascending.
    pub fn ranges(&self) -> Result<Vec<(Uid, Uid)>, StoreError> {
        let mut ranges = Vec::new();
        // RFC 9051 9 (nz-number): zero is no UID.
        let mut start = self.from.0.max(1);
        for (block, value) in &self.holes {
            let base = block.checked_mul(BLOCK).ok_or(DAMAGED)?;
            for (first, last) in Holes::decode(value)?.runs() {
                let (first, last) = (base + first, base + last);
                if first > start {
                    ranges.push((Uid(start), Uid(first - 1)));
                }
                start = start.max(last.saturating_add(1));
            }
        }
        if start < self.next.0 {
            ranges.push((Uid(start), Uid(self.next.0 - 1)));
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn holes(gone: &BTreeSet<u32>) -> Vec<(u32, Bytes)> {
        let mut blocks: BTreeMap<u32, Holes> = BTreeMap::new();
        for uid in gone {
            blocks.entry(block(Uid(*uid))).or_default().insert(Uid(*uid));
        }
        blocks.into_iter().map(|(block, holes)| (block, holes.encode().into())).collect()
    }

    #[test]
    fn holes_take_little_room() {
        let len = |gone: BTreeSet<u32>| holes(&gone).iter().map(|(_, value)| value.len()).max().unwrap();
        assert_eq!(len((4096..8192).collect()), 4);
        assert_eq!(len((0..4096).filter(|uid| uid % 2 == 0).collect()), 513);
        assert_eq!(len([5000].into()), 4);
    }

    #[test]
    fn what_is_no_set_of_holes_is_refused() {
        for value in
            [&[][..], &[3], &[BITS, 0], &[RUNS, 0], &[RUNS, 0, 0x81, 0x20], &[RUNS, 0xff, 0xff, 0xff, 1]]
        {
            assert!(Holes::decode(value).is_err(), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_cut_at_blocks_and_filled(from in 1u32..9_000, len in 0u32..9_000, probe in 1u32..18_000) {
            let mut found = BTreeSet::new();
            for (number, first, last) in blocks(Uid(from), Uid(from + len)) {
                let mut holes = Holes::of_range(first, last);
                prop_assert_eq!(number, block(first));
                found.extend((first.0..=last.0).filter(|uid| holes.contains(Uid(*uid))));
                prop_assert_eq!(holes.runs(), vec![(first.0 % BLOCK, last.0 % BLOCK)]);
                if (first.0..=last.0).contains(&probe) {
                    holes.remove(Uid(probe));
                    prop_assert!(!holes.contains(Uid(probe)));
                    prop_assert_eq!(holes.is_empty(), first == last);
                }
            }
            prop_assert_eq!(found, (from..from + len).collect());
        }

        #[test]
        fn ranges_are_what_was_not_expunged(
            gone in prop_oneof![btree_set(1u32..20_000, 0..40), btree_set(1u32..9_000, 3000..6000)],
            next in 1u32..20_000,
            from in 0u32..20_000,
        ) {
            let gone: BTreeSet<u32> = gone.into_iter().filter(|uid| *uid < next).collect();
            let from_block = holes(&gone).into_iter().filter(|(at, _)| *at >= block(Uid(from))).collect();
            let ranges = FolderUids::new(Uid(from), Uid(next), from_block).ranges().unwrap();
            let found: Vec<u32> = ranges.iter().flat_map(|(first, last)| first.0..=last.0).collect();
            let expected: Vec<u32> = (from.max(1)..next).filter(|uid| !gone.contains(uid)).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1.0 + 1 < pair[1].0.0), "runs are joined");
        }
    }
}
