//! A process that appends is killed with SIGKILL in the middle of it, again and again.
//!
//! The test runs itself as the child. What a kill can show is that nothing is acknowledged before it was written and
//! that what is left can always be opened; what a loss of power does to unsynced pages is in `recovery.rs`.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    env,
    io::{self, BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use bytes::Bytes;
use quorumail_journal::{Journal, Options, Record, StreamId};
use tempfile::TempDir;

const CHILD: &str = "QUORUMAIL_JOURNAL_TEST_CHILD";
const STREAMS: u32 = 4;
const ROUNDS: usize = 12;

fn options(dir: &str) -> Options {
    Options { segment_bytes: 64 << 10, max_pending_bytes: 1 << 20, ..Options::new(dir) }
}

/// Sequence number first, then bytes that follow from it, so that a wrong payload is noticed.
fn payload(stream: u32, sequence: u64) -> Bytes {
    let len = usize::try_from(sequence * 37 % 900).unwrap();
    let mut payload = sequence.to_le_bytes().to_vec();
    payload.resize(8 + len, u8::try_from((sequence + u64::from(stream)) % 251).unwrap());
    Bytes::from(payload)
}

/// The highest sequence number of each stream; asserts that each stream is whole and in order.
fn recovered(dir: &str) -> (Journal, BTreeMap<u32, u64>) {
    let mut highest = BTreeMap::new();
    let journal = Journal::open(options(dir), |_, stream, found| {
        let next = highest.get(&stream.0).map_or(1, |last| last + 1);
        let whole = payload(stream.0, next);
        assert_eq!(found, &whole[..whole.len().min(64)], "stream {} at {next}", stream.0);
        highest.insert(stream.0, next);
    });
    (journal.unwrap(), highest)
}

/// Appends without end and says so on standard output whenever something is safe.
fn child(dir: &str) -> ! {
    let (journal, highest) = recovered(dir);
    let mut next = highest;
    loop {
        for stream in 0..STREAMS {
            let sequence = next.get(&stream).map_or(1, |last| last + 1);
            next.insert(stream, sequence);
            let record = Record { stream: StreamId(stream), payload: vec![payload(stream, sequence)] };
            if sequence % 5 == 0 {
                journal.append_unsynced(vec![record]);
            } else {
                journal.append(vec![record], move || {
                    let line = format!("{stream} {sequence}\n");
                    io::stdout().write_all(line.as_bytes()).expect("the parent reads until we are gone");
                });
            }
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Ok(dir) = env::var(CHILD) {
        child(&dir);
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    let mut acknowledged: BTreeMap<u32, u64> = BTreeMap::new();
    let mut all = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "nothing_acknowledged_is_lost_when_the_process_is_killed", "--nocapture"])
            .env(CHILD, path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            // The test runner of the child writes lines of its own, and the last line may be cut by the kill.
            let Some((stream, sequence)) = line.split_once(' ') else { continue };
            let (Ok(stream), Ok(sequence)) = (stream.parse(), sequence.parse::<u64>()) else { continue };
            acknowledged
                .entry(stream)
                .and_modify(|last: &mut u64| *last = sequence.max(*last))
                .or_insert(sequence);
            seen += 1;
            if seen == 200 + round * 97 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        all += seen;
        let (journal, highest) = recovered(path);
        drop(journal);
        for (stream, last) in &acknowledged {
            assert!(
                highest[stream] >= *last,
                "stream {stream}: {last} was acknowledged, found {}",
                highest[stream]
            );
        }
    }
    assert!(all >= 200 * ROUNDS, "only {all} acknowledged");
    assert_eq!(acknowledged.len(), STREAMS as usize);
}
