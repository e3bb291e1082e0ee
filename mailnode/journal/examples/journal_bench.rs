//! Measures what preallocation and reuse of segments are worth, and how long a journal takes to open.
//!
//!     cargo run --release -p quorumail-journal --example journal_bench -- sync DIR
//!     cargo run --release -p quorumail-journal --example journal_bench -- open DIR GIB...
//!
//! `sync` writes 8 KiB at a time and calls fdatasync after each, into a file that grows, into one whose space was
//! reserved, and into one that was written before. `open` fills a journal with so many GiB of 8 KiB records, puts the
//! floor 1 GiB before its end, as the default retention of the log does, and opens it.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::{
    env, fs,
    io::IoSlice,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorumail_journal::{Disk, FsDisk, Journal, Options, Record, StreamId};

const PAYLOAD: usize = 8 << 10;
const WRITES: usize = 1000;
const RETAINED: u64 = 1 << 30;

fn main() {
    let args: Vec<String> = env::args().collect();
    match args.get(1..).unwrap_or_default() {
        [what, dir] if what == "sync" => sync(Path::new(dir)),
        [what, dir, sizes @ ..] if what == "open" => {
            sizes.iter().for_each(|gib| open(Path::new(dir), gib.parse().unwrap()));
        }
        _ => println!("usage: journal_bench sync DIR | open DIR GIB..."),
    }
}

fn sync(dir: &Path) {
    let disk = FsDisk::open(dir).unwrap();
    let len = (PAYLOAD * WRITES) as u64;
    for round in 1..=3 {
        for (what, reserved, overwrite) in
            [("growing", 0, false), ("reserved", len, false), ("written before", len, true)]
        {
            let file = disk.create("bench", reserved).unwrap();
            if overwrite {
                file.write_at(&mut [IoSlice::new(&vec![1; PAYLOAD * WRITES])], 0).unwrap();
            }
            file.sync_data().unwrap();
            disk.sync_dir().unwrap();
            let payload = vec![2; PAYLOAD];
            let mut took: Vec<Duration> = (0..WRITES)
                .map(|at| {
                    file.write_at(&mut [IoSlice::new(&payload)], (at * PAYLOAD) as u64).unwrap();
                    let begin = Instant::now();
                    file.sync_data().unwrap();
                    begin.elapsed()
                })
                .collect();
            took.sort_unstable();
            println!(
                "round {round}: fdatasync after 8 KiB into a file {what:<14} p50 {:>6} us, p99 {:>6} us, mean {:>6} us",
                took[WRITES / 2].as_micros(),
                took[WRITES * 99 / 100].as_micros(),
                (took.iter().sum::<Duration>() / WRITES as u32).as_micros(),
            );
            disk.remove("bench").unwrap();
        }
    }
}

fn open(dir: &Path, gib: u64) {
    let dir = dir.join(format!("{gib}gib"));
    let options = Options::new(&dir);
    let journal = Journal::open(options.clone(), |_, _, _| {}).unwrap();
    let body = Bytes::from(vec![7; PAYLOAD]);
    let begin = Instant::now();
    while journal.stats().appended_bytes < gib << 30 {
        let records = vec![Record { stream: StreamId(1), payload: vec![body.clone()] }; 256];
        journal.append(records, || {});
    }
    journal.flush();
    let filled = begin.elapsed();
    journal.set_floor(journal.last_of_log(RETAINED)).unwrap();
    drop(journal);
    for cached in [false, true] {
        if !cached {
            let disk = FsDisk::open(&dir).unwrap();
            for name in disk.list().unwrap() {
                disk.open(&name).and_then(|file| file.forget_cached()).unwrap();
            }
        }
        let mut visited = 0u64;
        let begin = Instant::now();
        let journal = Journal::open(options.clone(), |_, _, _| visited += 1).unwrap();
        let took = begin.elapsed();
        let stats = journal.stats();
        println!(
            "{gib} GiB in {} segments, filled in {:.1} s: opened in {} ms ({}), {visited} records visited",
            stats.segments,
            filled.as_secs_f64(),
            took.as_millis(),
            if cached { "page cache warm" } else { "page cache cold" },
        );
    }
    fs::remove_dir_all(&dir).unwrap();
}
