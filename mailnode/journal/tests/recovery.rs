//! What is found again after torn writes, flipped bits and lost files: what was safe, or a refusal that says where.

#![allow(clippy::unwrap_used)]

use std::fs;

use bytes::Bytes;
use proptest::prelude::*;
use quorumail_journal::{Journal, OpenError, Options, Position, Record, StreamId};
use tempfile::TempDir;

type Found = Vec<(Position, StreamId, Bytes)>;

const RECORD_HEADER: u64 = 32;
const SEGMENT_HEADER: u64 = 48;

fn options(dir: &TempDir) -> Options {
    Options { segment_bytes: 700, ..Options::new(dir.path()) }
}

fn open(options: &Options) -> Result<(Journal, Found), OpenError> {
    let mut heads = Vec::new();
    let journal = Journal::open(options.clone(), |position, stream, head| {
        heads.push((position, stream, Bytes::copy_from_slice(head)));
    })?;
    let found = heads.into_iter().map(|(position, stream, head)| {
        // A sealed segment's records are not read when it is opened; one may be damaged.
        let payload = journal.read(position).unwrap_or_else(|_| head.clone());
        assert!(payload.starts_with(&head) && head.len() == payload.len().min(64));
        (position, stream, payload)
    });
    let found = found.collect();
    Ok((journal, found))
}

/// Appends batches, each on disk before the next, and closes the journal.
fn write(options: &Options, batches: &[Vec<Vec<u8>>]) -> Found {
    let (journal, mut found) = open(options).unwrap();
    for batch in batches {
        let records: Vec<Record> = batch
            .iter()
            .enumerate()
            .map(|(i, payload)| Record {
                stream: StreamId(u32::try_from(i).unwrap()),
                payload: vec![Bytes::copy_from_slice(payload)],
            })
            .collect();
        let positions = journal.append(records.clone(), || {});
        journal.flush();
        found.extend(positions.into_iter().zip(records).map(|(p, r)| (p, r.stream, r.payload[0].clone())));
    }
    found
}

fn end(position: &Position) -> u64 {
    position.offset + RECORD_HEADER + u64::from(position.len)
}

fn segment_path(options: &Options, number: u64) -> std::path::PathBuf {
    options.dir.join(format!("{number:016}.seg"))
}

fn segments(options: &Options) -> Vec<(u64, Vec<u8>)> {
    (1..).map_while(|n| fs::read(segment_path(options, n)).ok().map(|bytes| (n, bytes))).collect()
}

fn batches() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        // What looks like records inside a payload must not be taken for some.
        Just(b"QMR1\0\0\0\0QMR1\x01\0\0\0".repeat(5)),
        Just(Vec::new()),
    ];
    prop::collection::vec(prop::collection::vec(payload, 1..5), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_cut_at_any_byte_keeps_every_whole_record_before_it(batches in batches(), at in any::<prop::sample::Index>()) {
        let dir = TempDir::new().unwrap();
        let options = options(&dir);
        let written = write(&options, &batches);
        let (last, bytes) = segments(&options).pop().unwrap();
        let cut = SEGMENT_HEADER + at.index(bytes.len() - 48 + 1) as u64;
        fs::write(segment_path(&options, last), &bytes[..usize::try_from(cut).unwrap()]).unwrap();

        let (journal, found) = open(&options).unwrap();

        let mut expected: Found =
            written.into_iter().filter(|(p, ..)| p.segment < last || end(p) <= cut).collect();
        prop_assert_eq!(&found, &expected);
        // The journal goes on where it was cut, and what is written then is found as well.
        let after = journal.append(vec![Record { stream: StreamId(9), payload: vec![] }], || {})[0];
        drop(journal);
        expected.push((after, StreamId(9), Bytes::new()));
        prop_assert_eq!(open(&options).unwrap().1, expected);
    }

    #[test]
    fn a_flipped_bit_is_refused_by_segment_and_offset(batches in batches(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let dir = TempDir::new().unwrap();
        let options = options(&dir);
        let written = write(&options, &batches);
        let mut all = segments(&options);
        for (number, _) in &all {
            // Without side indexes all is read.
            let _ = fs::remove_file(options.dir.join(format!("{number:016}.seg.idx")));
        }
        let mut index = at.index(all.iter().map(|(_, bytes)| bytes.len()).sum());
        let (number, bytes) = all
            .iter_mut()
            .find(|(_, bytes)| if index < bytes.len() { true } else { index -= bytes.len(); false })
            .unwrap();
        bytes[index] ^= 1 << bit;
        fs::write(segment_path(&options, *number), &*bytes).unwrap();
        let untouched = segments(&options);
        let index = index as u64;
        let last_record = written.iter().filter(|(p, ..)| p.segment == *number).map(|(p, ..)| end(p)).max().unwrap();

        match open(&options) {
            // The last mark and what is behind it hold nothing themselves.
            Ok((_, found)) => {
                prop_assert!(index >= last_record);
                prop_assert_eq!(found, written);
            }
            Err(OpenError::Foreign { file }) => {
                prop_assert_eq!(file, format!("{number:016}.seg"));
                prop_assert!(index < 8);
                prop_assert_eq!(segments(&options), untouched, "a refused journal is not touched");
            }
            Err(OpenError::Damaged { segment, offset, .. }) => {
                prop_assert_eq!(segment, format!("{number:016}.seg"));
                let hit = written.iter().find(|(p, ..)| p.segment == *number && p.offset <= index && index < end(p));
                if let Some((position, ..)) = hit {
                    prop_assert_eq!(offset, position.offset);
                } else {
                    // A header of the segment, a mark, or the seal.
                    prop_assert!(offset <= index && index < offset + SEGMENT_HEADER);
                }
                prop_assert_eq!(segments(&options), untouched, "a refused journal is not touched");
            }
            Err(other) => prop_assert!(false, "unexpected {other:?}"),
        }
    }

    #[test]
    fn a_flipped_bit_in_a_side_index_costs_nothing(batches in batches(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let dir = TempDir::new().unwrap();
        let options = options(&dir);
        let written = write(&options, &batches);
        for (number, _) in segments(&options) {
            let path = options.dir.join(format!("{number:016}.seg.idx"));
            if let Ok(mut bytes) = fs::read(&path) {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                fs::write(&path, &bytes).unwrap();
            }
        }
        prop_assert_eq!(open(&options).unwrap().1, written);
    }

    #[test]
    fn pages_lost_from_the_batch_being_written_cost_nothing_that_was_safe(
        batches in batches(),
        torn in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
        holes in prop::collection::vec((any::<prop::sample::Index>(), 1..40usize), 1..4),
    ) {
        let dir = TempDir::new().unwrap();
        let options = Options { segment_bytes: 1 << 20, ..options(&dir) };
        let safe = write(&options, &batches);
        let written = write(&options, &[torn]);
        // As if the power had failed in the middle of the last batch: no mark behind it, and holes in it.
        let begin = usize::try_from(written[safe.len()].0.offset).unwrap();
        let finish = usize::try_from(end(&written.last().unwrap().0)).unwrap();
        let mut bytes = fs::read(segment_path(&options, 1)).unwrap();
        bytes.truncate(finish);
        let mut first_hole = finish;
        for (at, len) in holes {
            let at = begin + at.index(finish - begin);
            let hole = at..(at + len).min(finish);
            if bytes[hole.clone()].iter().any(|byte| *byte != 0) {
                first_hole = first_hole.min(at + bytes[hole.clone()].iter().position(|byte| *byte != 0).unwrap());
            }
            bytes[hole].fill(0);
        }
        fs::write(segment_path(&options, 1), &bytes).unwrap();

        let (_, found) = open(&options).unwrap();

        let whole = written.iter().filter(|(p, ..)| end(p) <= first_hole as u64).count();
        prop_assert!(whole >= safe.len());
        prop_assert_eq!(&found[..], &written[..whole]);
    }

    #[test]
    fn whatever_lies_behind_the_end_means_nothing(batches in batches(), tail in prop_oneof![
        (1..5000usize).prop_map(|len| vec![0; len]),
        prop::collection::vec(any::<u8>(), 1..300),
    ]) {
        let dir = TempDir::new().unwrap();
        let options = options(&dir);
        let mut written = write(&options, &batches);
        let (last, mut bytes) = segments(&options).pop().unwrap();
        // Behind the last record and the mark.
        let used = usize::try_from(end(&written.last().unwrap().0) + RECORD_HEADER).unwrap();
        bytes.truncate(used);
        bytes.extend(tail);
        fs::write(segment_path(&options, last), &bytes).unwrap();

        let (journal, found) = open(&options).unwrap();
        prop_assert_eq!(&found, &written);
        prop_assert_eq!(&segments(&options).pop().unwrap().1[..used], &bytes[..used]);

        let after = journal.append(vec![Record { stream: StreamId(9), payload: vec![] }], || {})[0];
        drop(journal);
        written.push((after, StreamId(9), Bytes::new()));
        prop_assert_eq!(open(&options).unwrap().1, written);
    }
}

#[test]
fn a_record_copied_to_another_place_is_not_valid_there() {
    let dir = TempDir::new().unwrap();
    let options = Options::new(dir.path());
    let written = write(&options, &[vec![b"deposit".to_vec()]]);
    let mut bytes = fs::read(segment_path(&options, 1)).unwrap();
    // Behind the mark.
    let from = usize::try_from(end(&written[0].0)).unwrap();
    let to = from + usize::try_from(RECORD_HEADER).unwrap();
    bytes.copy_within(48..from, to);
    fs::write(segment_path(&options, 1), &bytes).unwrap();
    assert_eq!(open(&options).unwrap().1, written);
}

#[test]
fn an_earlier_segment_cut_between_two_records_is_refused() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let written = write(&options, &vec![vec![vec![1; 100]]; 20]);
    let boundary = written[1].0.offset;
    let mut bytes = fs::read(segment_path(&options, 1)).unwrap();
    bytes.truncate(usize::try_from(boundary).unwrap());
    fs::write(segment_path(&options, 1), &bytes).unwrap();
    fs::remove_file(options.dir.join("0000000000000001.seg.idx")).unwrap();
    let error = open(&options).unwrap_err();
    let told =
        format!("journal segment 0000000000000001.seg is damaged at offset {boundary}: it has no seal; ");
    assert!(error.to_string().starts_with(&told), "{error}");
}

#[test]
fn a_missing_segment_is_named() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    write(&options, &vec![vec![vec![1; 100]]; 20]);
    assert!(segments(&options).len() > 3);
    fs::remove_file(segment_path(&options, 2)).unwrap();
    let error = open(&options).unwrap_err();
    assert!(
        matches!(&error, OpenError::Missing { segment, .. } if segment == "0000000000000002.seg"),
        "{error}"
    );
}

#[test]
fn a_segment_whose_making_was_interrupted_is_forgotten() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let written = write(&options, &[vec![b"kept".to_vec()]]);
    let unfinished = options.dir.join("0000000000000002.seg.tmp");
    fs::write(&unfinished, b"half a hea").unwrap();
    assert_eq!(open(&options).unwrap().1, written);
    assert!(!unfinished.exists());
}

#[test]
fn a_journal_of_another_version_is_not_touched() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    write(&options, &[vec![b"old".to_vec()]]);
    let mut bytes = fs::read(segment_path(&options, 1)).unwrap();
    bytes[8] = 3;
    let crc = crc32c::crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
    fs::write(segment_path(&options, 1), &bytes).unwrap();
    let error = open(&options).unwrap_err();
    assert!(matches!(error, OpenError::Version { found: 3, expected: 2, .. }), "{error}");
    assert_eq!(fs::read(segment_path(&options, 1)).unwrap(), bytes);
}

#[test]
fn the_first_and_the_floor_segment_are_missed_too() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    write(&options, &vec![vec![vec![1; 100]]; 20]);
    let (journal, _) = open(&options).unwrap();
    journal.set_floor(3).unwrap();
    drop(journal);
    fs::remove_file(segment_path(&options, 1)).unwrap();
    open(&options).unwrap();
    fs::remove_file(segment_path(&options, 3)).unwrap();
    let error = open(&options).unwrap_err();
    assert!(
        matches!(&error, OpenError::Missing { segment, .. } if segment == "0000000000000003.seg"),
        "{error}"
    );
    fs::remove_file(options.dir.join("floor")).unwrap();
    let error = open(&options).unwrap_err();
    assert!(
        matches!(&error, OpenError::Missing { segment, .. } if segment == "0000000000000001.seg"),
        "{error}"
    );
}

#[test]
fn a_foreign_file_is_named_and_not_touched() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    fs::write(segment_path(&options, 1), vec![b'x'; 4096]).unwrap();
    let error = open(&options).unwrap_err();
    assert!(error.to_string().contains("is not a file of a Quorumail journal"), "{error}");
    assert_eq!(fs::read(segment_path(&options, 1)).unwrap(), vec![b'x'; 4096]);
}

#[test]
fn a_journal_whose_disk_failed_is_opened_only_after_it_was_read_back() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let written = write(&options, &vec![vec![vec![1; 100]]; 20]);
    let marker = options.dir.join("FAILED");
    fs::write(&marker, "failed to sync").unwrap();
    let error = open(&options).unwrap_err();
    assert!(matches!(&error, OpenError::Failed { reason, .. } if reason == "failed to sync"), "{error}");

    let verifying = Options { verify_after_failure: true, ..options.clone() };
    let intact = fs::read(segment_path(&options, 2)).unwrap();
    let mut bytes = intact.clone();
    bytes[90] ^= 1;
    fs::write(segment_path(&options, 2), &bytes).unwrap();
    let error = open(&verifying).unwrap_err();
    assert!(error.to_string().contains("0000000000000002.seg is damaged at offset 48"), "{error}");
    assert!(marker.exists(), "it stays as long as there is damage");

    fs::write(segment_path(&options, 2), &intact).unwrap();
    assert_eq!(open(&verifying).unwrap().1, written);
    assert!(!marker.exists());
    assert_eq!(open(&options).unwrap().1, written);
}

#[test]
fn rot_in_what_no_start_needs_does_not_keep_the_journal_from_being_opened() {
    let dir = TempDir::new().unwrap();
    let options = options(&dir);
    let written = write(&options, &vec![vec![vec![1; 100]]; 20]);
    let (journal, _) = open(&options).unwrap();
    journal.set_floor(4).unwrap();
    let record = |byte: u8| Record { stream: StreamId(9), payload: vec![Bytes::from(vec![byte; 100])] };
    // Two batches in one kept segment without a seal, as a killed process leaves it.
    let mut kept = journal.keep(&[record(1)]).unwrap();
    kept.extend(journal.keep(&[record(2)]).unwrap());
    drop(journal);
    let flip = |file: String, offset: usize| {
        let path = options.dir.join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[offset] ^= 4;
        fs::write(path, bytes).unwrap();
    };
    flip("0000000000000001.seg".into(), 20);
    flip("0000000000000002.seg".into(), 0);
    flip("0000000000000000.kept".into(), 48 + 32);

    let (journal, found) = open(&options).unwrap();
    let needed: Found = written.into_iter().filter(|(position, ..)| position.segment >= 4).collect();
    assert_eq!(found, needed);
    assert!(journal.read(kept[0]).is_err());
    assert_eq!(journal.read(kept[1]).unwrap(), vec![2; 100]);
    // Whoever looks for it finds it, and nothing more is written there.
    let lost = |segment| journal.scan(segment, &mut |_| true).unwrap().lost_from;
    assert_eq!([1, 2, 3, kept[0].segment].map(lost), [Some(0), Some(0), None, Some(48)]);
    assert!(journal.keep(&[record(3)]).unwrap()[0].segment > kept[0].segment);
    // A later version's is another matter: what it means is not known here.
    let path = segment_path(&options, 3);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 3;
    let crc = crc32c::crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    drop(journal);
    assert!(matches!(open(&options), Err(OpenError::Version { found: 3, .. })));
}
