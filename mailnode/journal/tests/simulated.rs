//! The journal on a disk that forgets, tears and fails, driven step by step: nothing acknowledged is lost, and every
//! run follows from its seed.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use quorumail_journal::{Faults, Journal, Options, Pump, Record, SimDisk, StreamId};

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
