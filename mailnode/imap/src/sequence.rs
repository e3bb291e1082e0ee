//! Sequence sets: `1:5,9,*` as written by a client, and the compact form of number lists on the way back.
//! RFC 9051 9, sequence-set.

use std::fmt::Write as _;

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

/// Whether sorted, disjoint `ranges` hold `number`.
pub(crate) fn contains(ranges: &[(u32, u32)], number: u32) -> bool {
    let after = ranges.partition_point(|&(low, _)| low <= number);
    after > 0 && number <= ranges[after - 1].1
}

/// Writes numbers as a sequence set, joining neighbours that follow each other. Empty for no numbers.
pub fn compact(numbers: &[u32]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < numbers.len() {
        let mut end = at;
        while end + 1 < numbers.len() && numbers[end].checked_add(1) == Some(numbers[end + 1]) {
            end += 1;
        }
        if !out.is_empty() {
            out.push(',');
        }
        let written = if end > at {
            write!(out, "{}:{}", numbers[at], numbers[end])
        } else {
            write!(out, "{}", numbers[at])
        };
        written.expect("writing to a string does not fail");
        at = end + 1;
    }
    out
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
        assert!(contains(&set.ranges(6), 7) && !contains(&set.ranges(6), 5) && !contains(&set.ranges(6), 9));
    }

    #[test]
    fn numbers_are_written_compactly() {
        assert_eq!(compact(&[1, 2, 3, 5, 7, 8]), "1:3,5,7:8");
        assert_eq!(compact(&[u32::MAX]), "4294967295");
        assert_eq!(compact(&[]), "");
    }
}
