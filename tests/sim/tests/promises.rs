//! What the simulation promises of itself: it repeats, it passes on the code as it is, and it finds faults.
#![allow(clippy::print_stdout)]

use quorumail_sim::{Mutation, run};

/// Seeds tried for every deliberate fault before it counts as not found.
const SEEDS_A_MUTATION: u64 = 300;

#[test]
fn the_same_seed_makes_the_same_history() {
    if cfg!(not(tokio_unstable)) {
        println!("without `--cfg tokio_unstable` the scheduler takes no seed: `make sim` has it");
        return;
    }
    for seed in [7, 1_000_003] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert_eq!(first.events_in_words, second.events_in_words, "seed {seed}");
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
        assert_ne!(first.hash, run(seed + 1, None).hash, "another seed makes another history");
    }
}

#[test]
fn nothing_is_wrong_with_the_code_as_it_is() {
    for seed in 1..=12 {
        let report = run(seed, None);
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
        assert!(report.answered > 0, "seed {seed} answered nothing");
    }
}

/// One deliberate fault; the number of seeds that it took.
fn found_after(mutation: Mutation) -> Option<(u64, String)> {
    (1..=SEEDS_A_MUTATION).find_map(|seed| {
        let report = run(seed, Some(mutation));
        report.violations.first().map(|violation| (seed, violation.clone()))
    })
}

#[test]
fn every_deliberate_fault_is_found_by_some_seed() {
    if cfg!(not(tokio_unstable)) {
        println!("`make sim` looks for the deliberate faults");
        return;
    }
    let found: Vec<_> = std::thread::scope(|scope| {
        let look = |part: usize| {
            let mine = Mutation::ALL.into_iter().skip(part).step_by(2);
            mine.map(|mutation| (mutation, found_after(mutation))).collect::<Vec<_>>()
        };
        let halves = [scope.spawn(move || look(0)), scope.spawn(move || look(1))];
        halves.into_iter().flat_map(|half| half.join().expect("a half ends")).collect()
    });
    for (mutation, found) in &found {
        match found {
            Some((seeds, what)) => println!("{mutation:?}: found after {seeds} seeds: {what}"),
            None => println!("{mutation:?}: not found in {SEEDS_A_MUTATION} seeds"),
        }
    }
    let missed: Vec<_> = found.iter().filter(|(_, found)| found.is_none()).map(|(m, _)| *m).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
