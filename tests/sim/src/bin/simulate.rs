//! Runs histories by their seeds on all cores, and tells how to repeat the one that fails.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use parking_lot::Mutex;
use quorumail_sim::{Reached, Report, run};

/// Simulates clusters, each from its seed.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many histories.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this seed, told event by event.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; 0: one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Seeds between two lines of progress.
const PROGRESS: u64 = 500;
/// A history takes less than a second of a free core.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
        let report = run(seed, None);
        tell(&report, usize::MAX);
        println!("seed {seed}: hash {:016x}, {} events", report.hash, report.events);
        return if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if arguments.threads == 0 { cores } else { arguments.threads };
    let (next, done, answered, terms, simulated) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let reached = Mutex::new(Reached::default());
    let running = Arc::new(Mutex::new(BTreeMap::new()));
    std::thread::spawn({
        let running = running.clone();
        move || watch(&running)
    });
    let started = Instant::now();
    let failed: Vec<Report> = std::thread::scope(|scope| {
        let worker = || {
            let mut failed = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= arguments.seeds {
                    return failed;
                }
                let seed = arguments.from + number;
                running.lock().insert(seed, Instant::now());
                let report = run(seed, None);
                running.lock().remove(&seed);
                answered.fetch_add(report.answered, Ordering::Relaxed);
                reached.lock().add(report.reached);
                terms.fetch_add(report.terms as u64, Ordering::Relaxed);
                simulated.fetch_add(report.simulated.as_millis() as u64, Ordering::Relaxed);
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(PROGRESS) {
                    println!("{done} of {} seeds in {:.0?}", arguments.seeds, started.elapsed());
                }
                if !report.violations.is_empty() {
                    tell(&report, 40);
                    failed.push(report);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker collects its panics")).collect()
    });
    println!(
        "{} seeds from {}: {} passed, {} failed; {} commands and queries answered, {} terms led, {:.1} h simulated, in {:.1?}",
        arguments.seeds,
        arguments.from,
        arguments.seeds - failed.len() as u64,
        failed.len(),
        answered.into_inner(),
        terms.into_inner(),
        simulated.into_inner() as f64 / 3_600_000.0,
        started.elapsed()
    );
    let Reached {
        snapshots,
        unreadable,
        compacted,
        moved_bodies,
        changes,
        rots,
        repaired,
        not_repaired,
        retired,
    } = reached.into_inner();
    println!(
        "{snapshots} snapshots installed, {unreadable} not sent because of rot; {compacted} segments compacted, {moved_bodies} bodies moved; {changes} changes of members"
    );
    println!(
        "{rots} strikes of rot; {repaired} bodies repaired from other replicas, {not_repaired} tries in vain; {retired} segments left behind by the logs"
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the process when a history makes no progress: nodes that are busy without end stop the simulated clock.
fn watch(running: &Mutex<BTreeMap<u64, Instant>>) {
    loop {
        std::thread::sleep(PATIENCE / 10);
        let oldest = running.lock().iter().map(|(seed, begun)| (begun.elapsed(), *seed)).max();
        if let Some((lasted, seed)) = oldest.filter(|(lasted, _)| *lasted > PATIENCE) {
            println!("seed {seed} is wrong: it has no end after {lasted:.0?}");
            println!("repeat it: make sim SEED={seed}");
            std::process::exit(1);
        }
    }
}

fn tell(report: &Report, events: usize) {
    let skipped = report.events_in_words.len().saturating_sub(events);
    for event in &report.events_in_words[skipped..] {
        println!("{event}");
    }
    for violation in &report.violations {
        println!("seed {} is wrong: {violation}", report.seed);
    }
    if !report.violations.is_empty() {
        println!("repeat it: make sim SEED={}", report.seed);
    }
}
