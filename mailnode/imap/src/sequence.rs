//! Sequence sets: `1:5,9,*` as written by a client, and the compact form of number lists on the way back.
//! RFC 9051 9, sequence-set.

use std::fmt;

/// One end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A message number or UID, at least 1.
    Number(u32),
    /// `*`: the largest number in use.
    Last,
}

/// A set of message numbers or UIDs as a client wrote it; at least one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSet(pub Vec<(Bound, Bound)>);

impl SequenceSet {
    /// Ranges with `*` put in, each with its lower end first, sorted and merged.
    pub fn ranges(&self, last: u32) -> Vec<(u32, u32)> {
        let number = |bound: Bound| match bound {
            Bound::Number(n) => n,
            Bound::Last => last,
        };
        // RFC 9051 9 (seq-range): the order of the two ends does not matter.
        let mut ranges: Vec<(u32, u32)> = self
            .0
            .iter()
            .map(|&(a, b)| (number(a), number(b)))
            .map(|(a, b)| if a <= b { (a, b) } else { (b, a) })
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some((_, end)) if low <= end.saturating_add(1) => *end = (*end).max(high),
                _ => merged.push((low, high)),
            }
        }
        merged
    }
}

/// Runs of numbers, first and last, ascending and apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(pub Vec<(u32, u32)>);

impl Runs {
    /// Adds a run above all there are.
    pub fn push(&mut self, first: u32, last: u32) {
        match self.0.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => self.0.push((first, last)),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// The lowest and the highest.
    pub fn ends(&self) -> Option<(u32, u32)> {
        Some((self.0.first()?.0, self.0.last()?.1))
    }

    /// All numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }
}

impl FromIterator<u32> for Runs {
    /// Of numbers in ascending order.
    fn from_iter<T: IntoIterator<Item = u32>>(numbers: T) -> Self {
        let mut runs = Self::default();
        numbers.into_iter().for_each(|number| runs.push(number, number));
        runs
    }
}

/// As a sequence set; empty for no numbers.
impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            write!(f, "{first}")?;
            if last > first {
                write!(f, ":{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_ordered_and_merged() {
        let set = SequenceSet(vec![
            (Bound::Last, Bound::Number(8)),
            (Bound::Number(1), Bound::Number(3)),
            (Bound::Number(4), Bound::Number(4)),
        ]);
        assert_eq!(set.ranges(6), vec![(1, 4), (6, 8)]);
    }

    #[test]
    fn numbers_are_written_compactly() {
        let shown = |numbers: &[u32]| numbers.iter().copied().collect::<Runs>().to_string();
        assert_eq!(shown(&[1, 2, 3, 5, 7, 8]), "1:3,5,7:8");
        assert_eq!(shown(&[u32::MAX]), "4294967295");
        assert_eq!(shown(&[]), "");
        let runs = Runs(vec![(1, 3), (5, 5)]);
        assert_eq!((runs.len(), runs.ends(), runs.iter().collect()), (4, Some((1, 5)), vec![1, 2, 3, 5]));
    }
}
