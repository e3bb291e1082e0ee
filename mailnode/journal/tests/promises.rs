//! What a journal promises to those who append and read.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorumail_journal::{
    Class, Journal, OpenError, Options, Position, ReadError, Record, RecycleError, StreamId,
};
use tempfile::TempDir;

fn record(stream: u32, payload: &[u8]) -> Record {
    Record { stream: StreamId(stream), payload: vec![Bytes::copy_from_slice(payload)] }
}

fn small(dir: &TempDir) -> Options {
    Options { segment_bytes: 4096, ..Options::new(dir.path().join("journal")) }
}

fn open(options: &Options) -> Journal {
    Journal::open(options.clone(), |_, _, _| {}).unwrap()
}

fn contents(options: &Options) -> Vec<(Position, u32, Bytes)> {
    let mut all = Vec::new();
    let journal = Journal::open(options.clone(), |position, stream, _| all.push((position, stream.0)));
    let journal = journal.unwrap();
    all.into_iter().map(|(position, stream)| (position, stream, journal.read(position).unwrap())).collect()
}

/// Keeps the writing thread busy inside a `done` until the sender is dropped.
fn hold_writer(journal: &Journal) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    journal.append(Vec::new(), move || {
        entered.send(()).unwrap();
        // Ends with an error when the sender is dropped.
        let _ = released.recv();
    });
    inside.recv().unwrap();
    release
}

#[test]
fn records_come_back_in_order_with_their_positions() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let mut expected = Vec::new();
    for round in 0..3u32 {
        let journal = open(&options);
        for i in 0..40u32 {
            let payload = vec![u8::try_from(i).unwrap(); (i * 17) as usize];
            let positions =
                journal.append(vec![record(round, &payload), record(round + 10, b"with it")], || {});
            expected.push((positions[0], round, Bytes::from(payload)));
            expected.push((positions[1], round + 10, Bytes::from_static(b"with it")));
        }
    }
    assert_eq!(contents(&options), expected);
    let journal = open(&options);
    assert!(journal.stats().segments > 5, "the test is meant to cross segments");
    for (position, _, payload) in &expected {
        assert_eq!(journal.read(*position).unwrap(), payload);
    }
}

#[test]
fn a_payload_in_pieces_reads_back_as_one() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let pieces: Vec<Bytes> = (0..3000u32).map(|i| Bytes::from(i.to_string())).collect();
    let whole: Vec<u8> = pieces.concat();
    let positions = journal.append(
        vec![Record { stream: StreamId(1), payload: pieces }, record(2, b""), record(3, b"x")],
        || {},
    );
    journal.flush();
    assert_eq!(journal.read(positions[0]).unwrap(), whole);
    assert_eq!(journal.read(positions[1]).unwrap(), Bytes::new());
    assert_eq!(journal.read_range(positions[0], 10, 100).unwrap(), whole[10..110]);
    assert_eq!(journal.read_range(positions[0], positions[0].len, 0).unwrap(), Bytes::new());
    for (offset, len) in [(positions[0].len, 1), (u32::MAX, u32::MAX)] {
        let refused = journal.read_range(positions[0], offset, len);
        assert!(matches!(refused, Err(ReadError::OutOfRange { .. })), "{refused:?}");
    }
}

#[test]
fn pending_records_are_read_from_memory() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let release = hold_writer(&journal);
    let positions = journal.append_unsynced(vec![Record {
        stream: StreamId(1),
        payload: vec![Bytes::from_static(b"not "), Bytes::from_static(b"yet")],
    }]);
    assert_eq!(journal.stats().appended_records, 0);
    assert!(journal.pending_bytes() > 7);
    assert_eq!(journal.read(positions[0]).unwrap(), "not yet");
    assert_eq!(journal.read_range(positions[0], 4, 3).unwrap(), "yet");
    drop(release);
    journal.flush();
    assert_eq!(journal.pending_bytes(), 0);
    assert_eq!(journal.stats().appended_records, 1);
    assert_eq!(journal.read(positions[0]).unwrap(), "not yet");
}

#[test]
fn all_that_waits_shares_one_sync() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(Options::new(dir.path()), |_, _, _| {}).unwrap();
    let release = hold_writer(&journal);
    let before = journal.stats().syncs;
    let done = Arc::new(AtomicUsize::new(0));
    for i in 0..500u32 {
        let done = Arc::clone(&done);
        journal.append(vec![record(i, b"payload")], move || {
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    drop(release);
    journal.flush();
    assert_eq!(done.load(Ordering::SeqCst), 500);
    assert!(journal.stats().syncs - before <= 2, "{:?}", journal.stats());
}

#[test]
fn unsynced_records_ride_with_the_next_batch_or_are_written_soon() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let release = hold_writer(&journal);
    let first = journal.append_unsynced(vec![record(1, b"first")]);
    let second = journal.append(vec![record(1, b"second")], || {});
    assert!(first[0].offset < second[0].offset);
    let before = journal.stats().syncs;
    drop(release);
    journal.flush();
    assert!(journal.stats().syncs - before <= 1, "they share a sync");
    let third = journal.append_unsynced(vec![record(1, b"third")]);
    let begin = Instant::now();
    while journal.pending_bytes() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "an unsynced record was never written");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(journal.read(third[0]).unwrap(), "third");
    drop(journal);
    let payloads: Vec<Bytes> = contents(&options).into_iter().map(|(_, _, payload)| payload).collect();
    assert_eq!(payloads, ["first", "second", "third"]);
}

#[test]
fn dropping_the_last_handle_writes_what_is_queued() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let other = journal.clone();
    journal.append_unsynced(vec![record(1, b"one")]);
    drop(journal);
    other.append_unsynced(vec![record(1, b"two")]);
    drop(other);
    assert_eq!(contents(&options).len(), 2);
}

#[test]
fn pending_bytes_stay_within_their_bound() {
    const BOUND: u64 = 10_000;
    let dir = TempDir::new().unwrap();
    let options = Options { max_pending_bytes: BOUND, ..small(&dir) };
    let journal = open(&options);
    let most = thread::scope(|scope| {
        let appenders: Vec<_> = (0..4u32)
            .map(|stream| {
                let journal = journal.clone();
                scope.spawn(move || {
                    let mut most = 0;
                    for i in 0..200u32 {
                        if i % 3 == 0 {
                            journal.append_unsynced(vec![record(stream, &[7; 900])]);
                        } else {
                            journal.append(vec![record(stream, &[7; 900])], || {});
                        }
                        most = most.max(journal.pending_bytes());
                    }
                    most
                })
            })
            .collect();
        appenders.into_iter().map(|appender| appender.join().unwrap()).max().unwrap()
    });
    assert!(most <= BOUND, "{most} bytes were pending");
    drop(journal);
    assert_eq!(contents(&options).len(), 800);
}

#[test]
fn an_append_larger_than_the_bound_is_taken_alone() {
    let dir = TempDir::new().unwrap();
    let options = Options { max_pending_bytes: 100, ..small(&dir) };
    let journal = open(&options);
    for _ in 0..5 {
        let positions = journal.append(vec![record(1, &[1; 50_000])], || {});
        assert_eq!(journal.read(positions[0]).unwrap().len(), 50_000);
    }
    journal.flush();
    assert_eq!(journal.stats().appended_bytes, 250_000);
}

#[test]
fn only_one_may_hold_the_directory() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let second = Journal::open(options.clone(), |_, _, _| {});
    assert!(matches!(second, Err(OpenError::Locked { .. })), "{second:?}");
    drop(journal);
    open(&options);
}

#[test]
fn a_done_may_append_and_may_hold_the_last_handle() {
    let dir = TempDir::new().unwrap();
    let options = Options { max_pending_bytes: 1, ..small(&dir) };
    let journal = open(&options);
    let (tell, told) = mpsc::channel();
    let inner = journal.clone();
    journal.append(vec![record(1, b"outer")], move || {
        inner.append(vec![record(1, b"inner")], move || tell.send(()).unwrap());
    });
    drop(journal);
    told.recv().unwrap();
    // The thread that ran it lets go of the lock a moment later.
    let begin = Instant::now();
    while matches!(Journal::open(options.clone(), |_, _, _| {}), Err(OpenError::Locked { .. })) {
        assert!(begin.elapsed() < Duration::from_secs(10));
        thread::yield_now();
    }
    assert_eq!(contents(&options).len(), 2);
}

#[test]
fn a_position_that_was_never_given_out_is_not_found() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let position = journal.append(vec![record(1, b"QMR1 in the payload")], || {})[0];
    journal.flush();
    let wrong = [
        Position { segment: 99, ..position },
        Position { len: 3, ..position },
        Position { len: u32::MAX, ..position },
        Position { offset: 1 << 40, ..position },
    ];
    for wrong in wrong {
        assert!(matches!(journal.read(wrong), Err(ReadError::NotFound { .. })), "{wrong:?}");
    }
    let inside = Position { offset: position.offset + 32, len: 0, ..position };
    assert!(matches!(journal.read(inside), Err(ReadError::Damaged { .. } | ReadError::NotFound { .. })));
}

#[test]
fn a_damaged_record_is_noticed_when_it_is_read() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let position = journal.append(vec![record(1, b"precious")], || {})[0];
    journal.flush();
    let path = options.dir.join("0000000000000001.seg");
    let mut bytes = fs::read(&path).unwrap();
    let at = usize::try_from(position.offset).unwrap() + 32 + 3;
    bytes[at] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let error = journal.read(position).unwrap_err();
    assert_eq!(error.to_string(), "journal segment 0000000000000001.seg is damaged at offset 48");
}

#[test]
fn more_segments_than_open_files_can_be_read() {
    let dir = TempDir::new().unwrap();
    let options = Options { segment_bytes: 128, ..small(&dir) };
    let journal = open(&options);
    let positions: Vec<Position> =
        (0..150u32).map(|i| journal.append(vec![record(1, &i.to_le_bytes())], || {})[0]).collect();
    journal.flush();
    assert_eq!(positions.iter().map(|position| position.segment).collect::<BTreeSet<_>>().len(), 150);
    for _ in 0..2 {
        for (i, position) in (0..150u32).zip(&positions) {
            assert_eq!(journal.read(*position).unwrap(), i.to_le_bytes().to_vec());
        }
    }
    let open_files = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|path| path.starts_with(&options.dir))
        .count();
    assert!(open_files <= 64 + 2, "{open_files} files of the journal are open");
}

#[test]
fn only_heads_of_the_log_from_the_floor_on_are_visited() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let long = vec![7; 500];
    let positions: Vec<Position> =
        (0..40).map(|_| journal.append(vec![record(1, &long)], || {})[0]).collect();
    journal.flush();
    let floor = positions[25].segment;
    journal.set_floor(floor).unwrap();
    journal.set_floor(1).unwrap();
    drop(journal);
    for made_anew in [false, true] {
        if made_anew {
            for number in 1..=positions[39].segment {
                let _ = fs::remove_file(options.dir.join(format!("{number:016}.seg.idx")));
            }
        }
        let mut visited = Vec::new();
        let journal = Journal::open(options.clone(), |position, _, head| {
            assert_eq!(head, &long[..64]);
            visited.push(position);
        })
        .unwrap();
        let expected: Vec<Position> = positions.iter().copied().filter(|p| p.segment >= floor).collect();
        assert_eq!(visited, expected);
        assert_eq!(journal.read(positions[0]).unwrap(), long, "what lies below the floor is still read");
        assert_eq!(journal.stats().floor, floor);
    }
}

#[test]
fn segments_below_the_floor_are_listed_recycled_and_written_over() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let positions: Vec<Position> =
        (0..40u8).map(|i| journal.append(vec![record(u32::from(i), &[i; 900])], || {})[0]).collect();
    journal.flush();
    let newest = positions[39].segment;
    assert!(matches!(journal.recycle(1), Err(RecycleError::Needed(_))), "it is not below the floor");
    assert!(matches!(journal.recycle(newest), Err(RecycleError::Needed(_))));
    assert!(matches!(journal.recycle(newest + 1), Err(RecycleError::NotFound(_))));
    journal.set_floor(newest).unwrap();
    for segment in journal.segments().unwrap() {
        assert_eq!((segment.class, segment.sealed), (Class::Log, segment.number != newest));
        if segment.sealed {
            let records = journal.records(segment.number).unwrap();
            assert_eq!(records.len() as u64, segment.records);
            for info in records {
                let i = positions.iter().position(|position| *position == info.position).unwrap();
                assert_eq!((info.stream.0 as usize, &info.head[..]), (i, &[i as u8; 64][..]));
            }
        }
    }
    let before = journal.stats();
    journal.recycle(1).unwrap();
    journal.recycle(3).unwrap();
    assert!(matches!(journal.read(positions[0]), Err(ReadError::NotFound { .. })));
    let after = journal.stats();
    assert_eq!((after.recycled_segments, after.free_segments, after.segments), (2, 2, before.segments - 2));
    assert_eq!(after.disk_bytes, before.disk_bytes, "their files wait to be used again");
    let more: Vec<Position> =
        (0..20u8).map(|i| journal.append(vec![record(9, &[i; 900])], || {})[0]).collect();
    journal.flush();
    assert_eq!((journal.stats().reused_segments, journal.stats().free_segments), (2, 0));
    drop(journal);
    let found = contents(&options);
    assert_eq!(found.iter().map(|(p, ..)| *p).filter(|p| more.contains(p)).count(), 20);
    assert!(found.iter().all(|(p, ..)| p.segment >= newest));
}

#[test]
fn kept_records_are_durable_beside_the_log_and_not_visited() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let release = hold_writer(&journal);
    let records: Vec<Record> = (0..9u8).map(|i| record(5, &[i; 1000])).collect();
    // The log's writer is busy: keeping does not wait for it.
    let mut kept = journal.keep(&records).unwrap();
    drop(release);
    kept.extend(journal.keep(&records[..2]).unwrap());
    drop(journal);
    let journal = open(&options);
    assert!(contents_of(&journal, &kept).eq([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1]));
    let segments: Vec<_> =
        journal.segments().unwrap().into_iter().filter(|s| s.class == Class::Kept).collect();
    assert_eq!(segments.iter().map(|segment| segment.records).sum::<u64>(), 11);
    assert!(segments.len() > 2 && segments.iter().all(|segment| segment.sealed), "{segments:?}");
    journal.recycle(kept[0].segment).unwrap();
    let again = journal.keep(&records[..1]).unwrap();
    assert!(again[0].segment > kept[10].segment, "a number is not given out twice");
    assert!(matches!(journal.recycle(again[0].segment), Err(RecycleError::Needed(_))));
    drop(journal);
    let journal = open(&options);
    assert!(contents_of(&journal, &kept[4..]).eq([4, 5, 6, 7, 8, 0, 1]));
    assert!(contents_of(&journal, &again).eq([0]));
}

fn contents_of(journal: &Journal, positions: &[Position]) -> impl Iterator<Item = u8> {
    positions.iter().map(|position| journal.read(*position).unwrap()[0])
}

#[test]
fn a_scan_names_exactly_the_records_that_are_damaged() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let positions: Vec<Position> =
        (0..12u8).map(|i| journal.append(vec![record(1, &[i; 900])], || {})[0]).collect();
    journal.flush();
    let whole = journal.scan(1, &mut |_| true).unwrap();
    assert_eq!((whole.damaged.len(), whole.lost_from), (0, None));
    assert!(whole.records >= 3 && whole.bytes > 2700);
    let path = options.dir.join("0000000000000001.seg");
    let mut bytes = fs::read(&path).unwrap();
    bytes[usize::try_from(positions[1].offset).unwrap() + 100] ^= 1;
    bytes[usize::try_from(positions[2].offset).unwrap() + 5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = journal.scan(1, &mut |_| true).unwrap();
    let damaged: Vec<Position> = report.damaged.iter().map(|record| record.position).collect();
    assert_eq!(damaged, positions[1..3]);
    assert_eq!(report.damaged[0].head, vec![1; 64], "the side index still tells what it was");
    assert!(journal.check(positions[0]).is_ok() && journal.check(positions[1]).is_err());
    let first = journal.scan(1, &mut |_| false).unwrap();
    assert_eq!(first.records, 1, "who paces it may end it");
    fs::remove_file(options.dir.join("0000000000000001.seg.idx")).unwrap();
    assert_eq!(journal.scan(1, &mut |_| true).unwrap().lost_from, Some(positions[1].offset));
    journal.set_floor(2).unwrap();
    drop(journal);
    let told = open(&options).segments().unwrap();
    assert_eq!((told[0].number, told[0].records), (1, 0), "it does not hide the others: {told:?}");
    assert!(told.len() > 2 && told[1].records > 0, "{told:?}");
}

#[test]
fn the_checksum_of_a_damaged_record_tells_its_bytes_from_others() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let body = |i: u8| [vec![i; 200], vec![100 + i; 700]].concat();
    let positions: Vec<Position> =
        (0..12u8).map(|i| journal.append(vec![record(1, &body(i))], || {})[0]).collect();
    journal.flush();
    let flip = |position: Position, at: u64| {
        let path = options.dir.join(format!("{:016}.seg", position.segment));
        let mut bytes = fs::read(&path).unwrap();
        bytes[usize::try_from(position.offset + 32 + at).unwrap()] ^= 1;
        fs::write(&path, &bytes).unwrap();
    };
    let (first, last) = (positions[1], positions[11]);
    assert!(journal.records(last.segment).is_err(), "the last record lies in a segment without a side index");
    for position in [first, last] {
        flip(position, 300);
        assert!(journal.check(position).is_err());
    }
    for (position, i) in [(first, 1), (last, 11)] {
        let whole = body(i);
        // What stands before the bytes is well, but that is known for certain only of what the side index holds.
        assert_eq!(journal.would_mend(position, 200, &whole[200..]), Some(true));
        assert_eq!(journal.would_mend(position, 200, &[7; 700]), None);
        assert_eq!(journal.would_mend(position, 40, &whole[40..]), Some(true));
        let wrong = (position == first).then_some(false);
        assert_eq!(journal.would_mend(position, 40, &[7; 860]), wrong);
        assert_eq!(journal.would_mend(position, 0, &[7; 900]), Some(false));
        assert_eq!(journal.would_mend(position, 200, &whole[201..]), Some(false), "too short");
        flip(position, 150);
        assert_eq!(
            journal.would_mend(position, 200, &whole[200..]),
            None,
            "what stands before is damaged, too"
        );
        assert_eq!(journal.would_mend(position, 40, &whole[40..]), Some(true));
    }
}

#[test]
fn a_segment_that_is_ended_is_sealed_and_what_has_rotted_in_it_does_not_keep_the_journal_from_opening() {
    let dir = TempDir::new().unwrap();
    let options = small(&dir);
    let journal = open(&options);
    let first = journal.append(vec![record(1, &[1; 500])], || {})[0];
    journal.flush();
    let kept = journal.keep(&[record(9, &[2; 500]), record(9, &[3; 500])]).unwrap();
    let spoil = |position: Position, name: &str| {
        let path = options.dir.join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[usize::try_from(position.offset).unwrap() + 100] ^= 1;
        fs::write(&path, &bytes).unwrap();
    };
    spoil(kept[0], "0000000000000000.kept");
    spoil(first, "0000000000000001.seg");
    assert!(journal.check(first).is_err() && journal.check(kept[0]).is_err());

    for segment in [first.segment, kept[0].segment] {
        journal.end_segment(segment).unwrap();
        // Twice, or too late: nothing happens.
        journal.end_segment(segment).unwrap();
    }
    let second = journal.append(vec![record(1, &[4; 500])], || {})[0];
    journal.flush();
    let again = journal.keep(&[record(9, &[5; 500])]).unwrap()[0];
    assert_eq!((second.segment, again.segment), (2, kept[0].segment + 1));
    journal.end_segment(first.segment).unwrap();
    let sealed: Vec<u64> =
        journal.segments().unwrap().iter().filter(|info| info.sealed).map(|info| info.number).collect();
    assert_eq!(sealed, [1, kept[0].segment]);
    assert_eq!(journal.scan(kept[0].segment, &mut |_| true).unwrap().damaged.len(), 1);
    // An idle journal writes its mark all the same.
    let third = journal.append(vec![record(1, &[6; 500])], || {})[0];
    journal.flush();
    assert_eq!(third.segment, 2);
    journal.set_floor(2).unwrap();
    drop(journal);
    let journal = open(&options);
    for (position, byte) in [(second, 4), (third, 6), (kept[1], 3), (again, 5)] {
        assert_eq!(journal.read(position).unwrap()[0], byte);
    }
}
