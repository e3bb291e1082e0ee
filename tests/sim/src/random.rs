//! Random choices that follow from a seed.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A source of choices. Parts of the simulation have one each, so that one of them drawing more does not change
/// what the others draw.
#[derive(Debug, Clone)]
pub(crate) struct Random(StdRng);

impl Random {
    /// The source of one part of the run with this seed.
    pub(crate) fn of(seed: u64, part: u64) -> Random {
        Random(StdRng::seed_from_u64(seed.rotate_left(17) ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// The source of one life of a node, drawn from the node's.
    pub(crate) fn of_life(mut self, life: u64) -> Random {
        let first: u64 = self.0.random();
        Random(StdRng::seed_from_u64(first ^ life.wrapping_mul(0xbf58_476d_1ce4_e5b9)))
    }

    /// A number in the range.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    /// True so many times in a thousand.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.0.random_range(0..1000) < per_mille
    }

    /// One of the items; none of an empty list.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        if items.is_empty() {
            return None;
        }
        Some(items[self.0.random_range(0..items.len())])
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0.random()
    }
}
