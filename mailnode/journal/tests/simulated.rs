//! The journal on a disk that forgets, tears and fails, driven step by step: nothing acknowledged is lost, and every
//! run follows from its seed.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use quorumail_journal::{
    Faults, Journal, KeepError, OpenError, Options, Position, Pump, Record, RecycleError, SimDisk, StreamId,
};

fn options(life: u64) -> Options {
    Options { segment_bytes: 4096, salt_seed: Some(life), ..Options::new("") }
}

fn payload(sequence: u64) -> Bytes {
    let len = usize::try_from(sequence * 37 % 900).unwrap();
    let mut payload = sequence.to_le_bytes().to_vec();
    payload.resize(8 + len, u8::try_from(sequence % 251).unwrap());
    Bytes::from(payload)
}

fn open(disk: &SimDisk, life: u64) -> (Journal, Pump, Vec<u64>) {
    let mut found = Vec::new();
    let (journal, pump) = Journal::open_on(Arc::new(disk.clone()), &options(life), |_, _, head| {
        found.push(u64::from_le_bytes(head[..8].try_into().unwrap()));
    })
    .unwrap();
    (journal, pump, found)
}

/// Some lives of a node: appends, steps and a crash in each. Answers what was acknowledged at most, and a trace.
fn live(seed: u64, lives: u64, power: bool) -> Vec<(u64, u64)> {
    let mut disk = SimDisk::new(seed);
    let mut trace = Vec::new();
    let acknowledged = Arc::new(Mutex::new(0u64));
    let mut next = 1;
    for life in 0..lives {
        let (journal, mut pump, found) = open(&disk, seed.wrapping_add(life));
        let expected: Vec<u64> = (1..=found.len() as u64).collect();
        assert_eq!(found, expected, "records are whole and in order");
        assert!(found.len() as u64 >= *acknowledged.lock(), "seed {seed}: an acknowledged record is lost");
        trace.push((found.len() as u64, *acknowledged.lock()));
        next = next.min(found.len() as u64 + 1);
        if power {
            disk.fail_power_after((seed.wrapping_mul(31) + life * 17) % 60);
        }
        for step in 0..40u64 {
            for _ in 0..(seed + step) % 4 {
                let (acknowledged, this) = (Arc::clone(&acknowledged), next);
                let record = Record { stream: StreamId(1), payload: vec![payload(next)] };
                if next % 5 == 0 {
                    journal.append_unsynced(vec![record]);
                } else {
                    journal.append(vec![record], move || *acknowledged.lock() = this);
                }
                next += 1;
            }
            let stepped = match (seed + step) % 7 {
                0 => pump.write().map(|_| ()),
                _ => pump.step().map(|_| ()),
            };
            if stepped.is_err() {
                assert!(pump.step().is_err(), "a failed pump stays failed");
                break;
            }
        }
        disk = disk.crash();
    }
    trace
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn nothing_acknowledged_is_lost_in_any_crash(seed: u64) {
        live(seed, 6, false);
        live(seed, 6, true);
    }

    #[test]
    fn a_run_follows_from_its_seed(seed: u64) {
        prop_assert_eq!(live(seed, 4, true), live(seed, 4, true));
    }
}

#[test]
fn a_failed_sync_is_told_and_nobody_is_acknowledged() {
    let disk = SimDisk::new(7);
    let (journal, mut pump, _) = open(&disk, 7);
    disk.set_faults(Faults { sync_errors: 1_000_000, ..Faults::default() });
    let told = Arc::new(Mutex::new(false));
    let tell = Arc::clone(&told);
    journal
        .append(vec![Record { stream: StreamId(1), payload: vec![payload(1)] }], move || *tell.lock() = true);
    let failure = pump.step().unwrap_err();
    assert!(failure.to_string().contains("failed to sync journal segment"), "{failure}");
    disk.set_faults(Faults::default());
    assert!(pump.step().is_err(), "it is never tried again");
    assert!(!*told.lock());
}

#[test]
fn a_step_says_whether_there_was_anything_and_wakes_who_drives_it() {
    let disk = SimDisk::new(8);
    let (journal, mut pump, _) = open(&disk, 8);
    let woken = Arc::new(Mutex::new(0));
    let count = Arc::clone(&woken);
    pump.wake_with(move || *count.lock() += 1);
    assert!(!pump.step().unwrap());
    journal.append_unsynced(vec![Record { stream: StreamId(1), payload: vec![payload(1)] }]);
    assert!(!pump.is_waited_for());
    journal.append(vec![], || {});
    assert!(pump.is_waited_for());
    assert!(pump.step().unwrap());
    assert!(!pump.step().unwrap());
    assert_eq!(*woken.lock(), 2);
}

#[test]
fn a_simulated_disk_has_one_user_at_a_time() {
    let disk = SimDisk::new(9);
    let (_journal, pump, _) = open(&disk, 9);
    assert!(Journal::open_on(Arc::new(disk.clone()), &options(9), |_, _, _| {}).is_err());
    drop(pump);
    open(&disk, 10);
    let mut seen = BTreeMap::new();
    seen.insert("x", disk.crash());
    open(&seen["x"], 11);
}

/// Everything at once: the log, the floor, kept copies, recycled files, crashes. What is promised is read back in every
/// life.
fn live_with_space_given_back(seed: u64, lives: u64) {
    let mut random = seed;
    let mut below = move |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut disk = SimDisk::new(seed);
    let acknowledged = Arc::new(Mutex::new(0u64));
    let mut kept: Vec<(Position, Bytes)> = Vec::new();
    let (mut floor, mut reused) = (1, 0);
    for life in 0..lives {
        let (journal, mut pump, found) = open(&disk, seed.wrapping_add(life));
        let first = found.first().copied().unwrap_or(1);
        let expected: Vec<u64> = (first..first + found.len() as u64).collect();
        assert_eq!(found, expected, "seed {seed}: records are whole and in order");
        let last = found.last().copied().unwrap_or(0);
        assert!(last >= *acknowledged.lock(), "seed {seed}: an acknowledged record is lost");
        assert!(journal.stats().floor >= floor, "seed {seed}: the floor went down");
        for (position, payload) in &kept {
            assert_eq!(&journal.read(*position).unwrap(), payload, "seed {seed}: kept");
        }
        let mut next = last + 1;
        disk.fail_power_after(below(200));
        for _ in 0..60 {
            let done: Result<(), String> = match below(10) {
                0..=4 => {
                    for _ in 0..below(4) {
                        let (acknowledged, this) = (Arc::clone(&acknowledged), next);
                        let record = Record { stream: StreamId(1), payload: vec![payload(next)] };
                        journal.append(vec![record], move || *acknowledged.lock() = this);
                        next += 1;
                    }
                    pump.step().map(drop).map_err(|error| error.to_string())
                }
                5 => pump.write().map(drop).map_err(|error| error.to_string()),
                6 => {
                    let payloads: Vec<Bytes> =
                        (0..below(5)).map(|i| payload(1000 + below(500) + i)).collect();
                    let records: Vec<Record> = payloads
                        .iter()
                        .map(|payload| Record { stream: StreamId(2), payload: vec![payload.clone()] })
                        .collect();
                    journal
                        .keep(&records)
                        .map(|positions| kept.extend(positions.into_iter().zip(payloads)))
                        .map_err(|error| error.to_string())
                }
                7 => {
                    let newest = journal.last_of_log(0);
                    // A segment that has a successor has records: the last one is met in the next life.
                    let to = newest.saturating_sub(1 + below(2)).max(1);
                    journal.set_floor(to).map(|()| floor = floor.max(to)).map_err(|error| error.to_string())
                }
                _ => {
                    let segments = journal.segments().unwrap();
                    let segment = segments[usize::try_from(below(segments.len() as u64)).unwrap()];
                    match journal.recycle(segment.number) {
                        Ok(()) => {
                            kept.retain(|(position, _)| position.segment != segment.number);
                            Ok(())
                        }
                        Err(RecycleError::Needed(_)) => Ok(()),
                        Err(error) => {
                            // Whether it is gone is not known.
                            kept.retain(|(position, _)| position.segment != segment.number);
                            Err(error.to_string())
                        }
                    }
                }
            };
            if done.is_err() {
                break;
            }
        }
        reused += journal.stats().reused_segments;
        disk = disk.crash();
    }
    REUSED.fetch_add(reused, Ordering::Relaxed);
}

static REUSED: AtomicU64 = AtomicU64::new(0);

#[test]
fn nothing_promised_is_lost_while_space_is_given_back_and_used_again() {
    for seed in 0..400 {
        live_with_space_given_back(seed, 6);
    }
    assert!(REUSED.load(Ordering::Relaxed) > 100, "files must really be used again");
}

#[test]
fn a_failed_disk_leaves_its_marker_and_is_proven_before_it_is_used() {
    let disk = SimDisk::new(3);
    let (journal, mut pump, _) = open(&disk, 3);
    journal.append(vec![Record { stream: StreamId(1), payload: vec![payload(1)] }], || {});
    pump.step().unwrap();
    disk.set_faults(Faults { write_errors: 1_000_000, ..Faults::default() });
    let one = Record { stream: StreamId(1), payload: vec![payload(2)] };
    assert!(matches!(journal.keep(std::slice::from_ref(&one)), Err(KeepError::Io(_))));
    assert!(pump.step().is_err(), "what failed under kept records stops the log as well");
    disk.set_faults(Faults::default());
    drop((journal, pump));
    // The marker could not be written: the disk took nothing any more. When it can, it is there.
    let disk = disk.crash();
    let (journal, mut pump, found) = open(&disk, 4);
    assert_eq!(found, [1]);
    journal.append(vec![one], || {});
    disk.set_faults(Faults { sync_errors: 500_000, ..Faults::default() });
    while pump.step().is_ok() {
        journal.append(vec![], || {});
        journal.append_unsynced(vec![Record { stream: StreamId(1), payload: vec![payload(3)] }]);
    }
    disk.set_faults(Faults::default());
    let disk = disk.crash();
    let opened = Journal::open_on(Arc::new(disk.clone()), &options(5), |_, _, _| {});
    if let Err(error) = opened {
        assert!(matches!(error, OpenError::Failed { .. }), "{error}");
    }
    let disk = disk.crash();
    let verifying = Options { verify_after_failure: true, ..options(6) };
    Journal::open_on(Arc::new(disk.clone()), &verifying, |_, _, _| {}).unwrap();
    open(&disk.crash(), 7);
}

#[test]
fn a_full_disk_refuses_copies_and_recovers_by_itself() {
    let disk = SimDisk::new(4);
    let (journal, mut pump, _) = open(&disk, 4);
    let records: Vec<Record> =
        (0..6).map(|_| Record { stream: StreamId(2), payload: vec![Bytes::from(vec![1; 1000])] }).collect();
    let first = journal.keep(&records[..2]).unwrap();
    disk.set_capacity(4096 * 2 + 100);
    assert!(matches!(journal.keep(&records), Err(KeepError::Full)));
    disk.set_capacity(1 << 20);
    let second = journal.keep(&records).unwrap();
    assert!(pump.step().is_ok());
    drop((journal, pump));
    let (journal, _pump, _) = open(&disk, 5);
    for position in first.iter().chain(&second) {
        assert_eq!(journal.read(*position).unwrap(), vec![1; 1000]);
    }
}
