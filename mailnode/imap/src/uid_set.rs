//! The UIDs of a folder with their places: which message number has which UID. RFC 9051 2.3.1.
//!
//! Blocks of 4,096 UIDs, each a run or a bit a UID, with the number of UIDs before it: 1,000,000 messages in a row take
//! some KiB, and with holes everywhere half a KiB for each block.

const BLOCK: u32 = 4096;
const WORDS: usize = BLOCK as usize / 64;

/// A set of UIDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UidSet {
    /// Ascending; none is empty.
    blocks: Vec<Block>,
    len: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    /// Its UIDs are from this times [`BLOCK`] on.
    index: u32,
    /// UIDs in the blocks before it.
    before: u32,
    places: Places,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Places {
    /// First and length, at least 1.
    Run(u32, u32),
    Bits(Box<[u64; WORDS]>),
}

impl Places {
    fn len(&self) -> u32 {
        match self {
            Self::Run(_, len) => *len,
            Self::Bits(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    fn contains(&self, place: u32) -> bool {
        match self {
            Self::Run(first, len) => (*first..first + len).contains(&place),
            Self::Bits(words) => words[(place / 64) as usize] & (1 << (place % 64)) != 0,
        }
    }

    /// How many lie before a place.
    fn below(&self, place: u32) -> u32 {
        match self {
            Self::Run(first, len) => place.saturating_sub(*first).min(*len),
            Self::Bits(words) => {
                let (word, bit) = ((place / 64) as usize, place % 64);
                let whole: u32 = words[..word].iter().map(|word| word.count_ones()).sum();
                whole + (words[word] & ((1 << bit) - 1)).count_ones()
            }
        }
    }

    /// The place that `skipped` others lie before.
    fn nth(&self, mut skipped: u32) -> u32 {
        match self {
            Self::Run(first, _) => first + skipped,
            Self::Bits(words) => {
                for (at, word) in (0u32..).zip(words.iter()) {
                    let ones = word.count_ones();
                    if skipped < ones {
                        let mut left = *word;
                        for _ in 0..skipped {
                            left &= left - 1;
                        }
                        return at * 64 + left.trailing_zeros();
                    }
                    skipped -= ones;
                }
                unreachable!("a place is only asked for by a number below the length");
            }
        }
    }

    fn bits(&mut self) -> &mut [u64; WORDS] {
        if let Self::Run(first, len) = *self {
            let mut words = Box::new([0u64; WORDS]);
            for place in first..first + len {
                words[(place / 64) as usize] |= 1 << (place % 64);
            }
            *self = Self::Bits(words);
        }
        match self {
            Self::Bits(words) => words,
            Self::Run(..) => unreachable!("it was made bits above"),
        }
    }

    fn insert(&mut self, place: u32) {
        match self {
            Self::Run(first, len) if place == *first + *len => *len += 1,
            _ => self.bits()[(place / 64) as usize] |= 1 << (place % 64),
        }
    }

    fn remove(&mut self, place: u32) {
        self.bits()[(place / 64) as usize] &= !(1 << (place % 64));
    }
}

impl UidSet {
    /// Of ranges, first and last, ascending and apart from each other.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut set = Self::default();
        for (first, last) in ranges {
            set.push(first, last);
        }
        set
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The highest.
    pub fn last(&self) -> Option<u32> {
        self.blocks.last().map(|block| block.index * BLOCK + block.places.nth(block.places.len() - 1))
    }

    /// Whether a UID is in it.
    pub fn contains(&self, uid: u32) -> bool {
        self.block(uid).is_ok_and(|at| self.blocks[at].places.contains(uid % BLOCK))
    }

    /// How many lie below a UID: its number less one if it is in the set.
    pub fn below(&self, uid: u32) -> u32 {
        match self.block(uid) {
            Ok(at) => self.blocks[at].before + self.blocks[at].places.below(uid % BLOCK),
            Err(at) => self.blocks.get(at).map_or(self.len, |block| block.before),
        }
    }

    /// The number of a UID, from 1.
    pub fn number_of(&self, uid: u32) -> Option<u32> {
        self.contains(uid).then(|| self.below(uid) + 1)
    }

    /// The UID of a number, from 1.
    pub fn uid_of(&self, number: u32) -> Option<u32> {
        let skipped = number.checked_sub(1).filter(|skipped| *skipped < self.len)?;
        let at = self.blocks.partition_point(|block| block.before <= skipped) - 1;
        let block = &self.blocks[at];
        Some(block.index * BLOCK + block.places.nth(skipped - block.before))
    }

    /// All, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let places = |block: &Block| {
            let places = block.places.clone();
            let base = block.index * BLOCK;
            (0..BLOCK).filter(move |place| places.contains(*place)).map(move |place| base + place)
        };
        self.blocks.iter().flat_map(places)
    }

    /// Adds a range above all there are.
    pub fn push(&mut self, first: u32, last: u32) {
        assert!(
            first > 0 && first <= last && self.last().is_none_or(|highest| highest < first),
            "UIDs of a folder ascend"
        );
        let mut from = first;
        loop {
            let index = from / BLOCK;
            let end = last.min(index * BLOCK + (BLOCK - 1));
            let (place, len) = (from % BLOCK, end - from + 1);
            match self.blocks.last_mut().filter(|block| block.index == index) {
                Some(block) => match &mut block.places {
                    Places::Run(first, have) if *first + *have == place => *have += len,
                    places => (place..place + len).for_each(|place| places.insert(place)),
                },
                None => {
                    self.blocks.push(Block { index, before: self.len, places: Places::Run(place, len) });
                }
            }
            self.len += len;
            if end == last {
                return;
            }
            from = end + 1;
        }
    }

    /// Adds one, wherever it belongs; answers whether it is new.
    pub fn insert(&mut self, uid: u32) -> bool {
        let at = match self.block(uid) {
            Ok(at) if self.blocks[at].places.contains(uid % BLOCK) => return false,
            Ok(at) => {
                self.blocks[at].places.insert(uid % BLOCK);
                at
            }
            Err(at) => {
                let before = self.blocks.get(at).map_or(self.len, |block| block.before);
                let block = Block { index: uid / BLOCK, before, places: Places::Run(uid % BLOCK, 1) };
                self.blocks.insert(at, block);
                at
            }
        };
        self.len += 1;
        self.blocks[at + 1..].iter_mut().for_each(|block| block.before += 1);
        true
    }

    /// Takes out those of another set; those it has not are passed over.
    pub fn remove_all(&mut self, others: &Self) {
        for other in &others.blocks {
            let Ok(at) = self.blocks.binary_search_by_key(&other.index, |block| block.index) else {
                continue;
            };
            let places = &mut self.blocks[at].places;
            (0..BLOCK).filter(|place| other.places.contains(*place)).for_each(|place| places.remove(place));
        }
        self.blocks.retain(|block| block.places.len() > 0);
        let mut before = 0;
        for block in &mut self.blocks {
            block.before = before;
            before += block.places.len();
        }
        self.len = before;
    }

    /// Takes out the `count` lowest, and answers them.
    pub fn take_lowest(&mut self, count: u32) -> Self {
        if count == 0 {
            return Self::default();
        }
        let Some(end) = self.uid_of(count) else { return std::mem::take(self) };
        let lowest = Self::from_sorted(self.iter().take_while(|uid| *uid <= end));
        self.remove_all(&lowest);
        lowest
    }

    /// Of UIDs in ascending order.
    pub fn from_sorted(uids: impl IntoIterator<Item = u32>) -> Self {
        let mut set = Self::default();
        uids.into_iter().for_each(|uid| set.push(uid, uid));
        set
    }

    fn block(&self, uid: u32) -> Result<usize, usize> {
        self.blocks.binary_search_by_key(&(uid / BLOCK), |block| block.index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn check(set: &UidSet, model: &BTreeSet<u32>) {
        assert_eq!(set.len() as usize, model.len());
        assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
        assert_eq!(set.last(), model.last().copied());
        for (number, uid) in (1u32..).zip(model) {
            assert_eq!((set.number_of(*uid), set.uid_of(number)), (Some(number), Some(*uid)));
            assert_eq!(set.below(*uid + 1), number);
        }
        assert_eq!(set.uid_of(set.len() + 1), None);
    }

    #[test]
    fn a_million_messages_in_a_row_take_little_memory() {
        let set = UidSet::from_ranges([(1, 1_000_000)]);
        assert!(set.blocks.len() == 245 && set.blocks.iter().all(|b| matches!(b.places, Places::Run(..))));
        assert_eq!(
            (set.len(), set.uid_of(777_777), set.number_of(4096)),
            (1_000_000, Some(777_777), Some(4096))
        );
        let top = UidSet::from_ranges([(u32::MAX - 9000, u32::MAX)]);
        assert_eq!((top.len(), top.last()), (9001, Some(u32::MAX)));
    }

    #[test]
    fn taking_none_leaves_all() {
        let mut set = UidSet::from_ranges([(1, 3)]);
        assert_eq!((set.take_lowest(0).len(), set.len()), (0, 3));
        assert_eq!((set.take_lowest(4).len(), set.len()), (3, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_does_what_a_plain_set_does(
            pushed in btree_set(1u32..20_000, 0..300),
            inserted in proptest::collection::vec(1u32..20_000, 0..40),
            removed in prop_oneof![btree_set(1u32..20_000, 0..300), Just((4000..9000).collect())],
            tail in 0u32..9000,
            lowest in 0u32..200,
        ) {
            let mut model = pushed.clone();
            let mut set = UidSet::from_sorted(pushed);
            check(&set, &model);
            for uid in inserted {
                prop_assert_eq!(set.insert(uid), model.insert(uid));
            }
            set.push(20_001, 20_001 + tail);
            model.extend(20_001..=20_001 + tail);
            check(&set, &model);
            set.remove_all(&UidSet::from_sorted(removed.iter().copied()));
            model.retain(|uid| !removed.contains(uid));
            check(&set, &model);
            let taken = set.take_lowest(lowest);
            let expected: BTreeSet<u32> = model.iter().take(lowest as usize).copied().collect();
            check(&taken, &expected);
            model.retain(|uid| !expected.contains(uid));
            check(&set, &model);
        }
    }
}
