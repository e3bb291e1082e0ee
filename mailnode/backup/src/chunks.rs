//! Chunks of state: the sorted pairs of a group, cut where their keys say so, so that a changed value changes one chunk.
//!
//! A chunk is a sequence of pairs: length of the key, length of the value (u32, little endian), key, value.

use crate::{RepositoryError, seal::Keys};

/// A chunk is not cut before it has this size.
const MIN_BYTES: usize = 64 << 10;
/// Mean size of chunks.
const TARGET_BYTES: usize = 256 << 10;
/// A chunk is cut before it gets longer, unless a single pair is.
const MAX_BYTES: usize = 1 << 20;
const HEAD_LEN: usize = 8;

/// Whether the chunk that holds `filled` bytes ends in front of this pair.
pub(crate) fn is_cut(keys: &Keys, filled: usize, key: &[u8], value: &[u8]) -> bool {
    let pair = HEAD_LEN + key.len() + value.len();
    if filled < MIN_BYTES {
        return false;
    }
    // As likely for each byte, so that chunks have the same mean size whatever the pairs'.
    let share = (pair as u64) << 32;
    filled + pair > MAX_BYTES || u64::from(keys.cut(key)) < share / (TARGET_BYTES - MIN_BYTES) as u64
}

/// Appends a pair.
pub(crate) fn push(chunk: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        let len = u32::try_from(part.len()).expect("keys and values of the index are far below 4 GiB");
        chunk.extend_from_slice(&len.to_le_bytes());
    }
    chunk.extend_from_slice(key);
    chunk.extend_from_slice(value);
}

/// The pairs of a chunk, in order.
pub(crate) fn pairs<'a>(
    object: &'a str,
    chunk: &'a [u8],
) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), RepositoryError>> {
    let mut rest = chunk;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let pair = split(&mut rest);
        if pair.is_none() {
            rest = &[];
        }
        Some(pair.ok_or_else(|| RepositoryError::damaged(object, "a pair of its state is cut off")))
    })
}

fn split<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (head, after) = rest.split_first_chunk::<HEAD_LEN>()?;
    let len = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (key, after) = after.split_at_checked(len(0))?;
    let (value, after) = after.split_at_checked(len(4))?;
    *rest = after;
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn cut(keys: &Keys, pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
        let (mut chunks, mut chunk) = (Vec::new(), Vec::new());
        for (key, value) in pairs {
            if is_cut(keys, chunk.len(), key, value) {
                chunks.push(std::mem::take(&mut chunk));
            }
            push(&mut chunk, key, value);
        }
        chunks.push(chunk);
        chunks
    }

    #[test]
    fn a_changed_value_or_a_new_pair_changes_few_chunks() {
        let keys = Keys::new(&[3; 32]);
        let mut pairs: Vec<_> =
            (0..60_000u64).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; 60])).collect();
        let before = cut(&keys, &pairs);
        assert!((10..40).contains(&before.len()), "{} chunks", before.len());
        let sizes = before.iter().rev().skip(1).map(Vec::len);
        assert!(
            sizes.clone().all(|len| (MIN_BYTES..=MAX_BYTES).contains(&len)),
            "{:?}",
            sizes.collect::<Vec<_>>()
        );
        let known: HashSet<_> = before.iter().collect();
        let fresh = |pairs: &[_]| cut(&keys, pairs).iter().filter(|chunk| !known.contains(chunk)).count();

        pairs[30_000].1[0] ^= 1;
        assert_eq!(fresh(&pairs), 1);
        pairs.insert(10_000, (9_999u64.to_be_bytes().into_iter().chain([1]).collect(), vec![0; 60]));
        pairs.remove(50_000);
        assert!(fresh(&pairs) <= 12, "{}", fresh(&pairs));
    }

    proptest! {
        #[test]
        fn pairs_come_back(given in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..9),
                                                           prop::collection::vec(any::<u8>(), 0..9)), 0..9)) {
            let mut chunk = Vec::new();
            for (key, value) in &given {
                push(&mut chunk, key, value);
            }
            let read: Vec<_> = pairs("x", &chunk).map(|pair| pair.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(read, given);
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(pairs("x", &bytes).count() <= bytes.len() / HEAD_LEN + 1);
        }
    }
}
