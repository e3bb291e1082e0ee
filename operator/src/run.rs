//! What MailBackup and MailRestore have in common: a thing that is begun, takes its time and ends. Pure.
//!
//! It always ends. One that was under way when the operator was lost is seen as interrupted and begun again, so often; one
//! that cannot be begun, or takes too long, fails with the reason.

use std::time::Duration;

use jiff::Timestamp;
use quorumail_crds::{
    backup::Phase,
    condition::{Observed, kind, reason},
};

/// How often a run is begun: an operator that is lost in the middle of each of them may be lost because of it.
pub const MAX_ATTEMPTS: u32 = 3;

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In one word, for conditions.
    pub reason: &'static str,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl Failure {
    /// With its words.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// As what a run that has not begun waits for.
    pub fn observed(&self) -> Observed {
        Observed::no(kind::READY, self.reason, self.message.clone())
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// Its phase.
    pub phase: Phase,
    /// When it was made.
    pub created: Timestamp,
    /// When it was first begun.
    pub started: Option<Timestamp>,
    /// How often it was begun.
    pub attempts: u32,
    /// How long it may wait, and then how long it may take.
    pub deadline: Duration,
}

/// What to do about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It has ended, or is under way here.
    Nothing,
    /// It can be begun.
    Begin,
    /// It ends without having done what was asked.
    Fail(Failure),
}

/// Decides. `here`: it is under way in this process. `waits_for`: what keeps it from being begun, when something does.
pub fn step(course: &Course, here: bool, waits_for: Option<&Failure>, now: Timestamp) -> Step {
    if course.phase.is_final() || here {
        return Step::Nothing;
    }
    let since = course.started.unwrap_or(course.created);
    if now.duration_since(since).unsigned_abs() >= course.deadline && now > since {
        let seconds = course.deadline.as_secs();
        let text = match (course.phase, waits_for) {
            (Phase::Pending, Some(failure)) => return Step::Fail(failure.clone()),
            (Phase::Pending, None) => format!("it could not be begun within {seconds} s; make another"),
            _ => format!(
                "the operator was replaced in the middle of it, and it is not done within {seconds} s; make another"
            ),
        };
        return Step::Fail(Failure::new(reason::DEADLINE_EXCEEDED, text));
    }
    if course.attempts >= MAX_ATTEMPTS {
        let text = format!(
            "the operator was replaced {} times in the middle of it; see why it restarts (kubectl describe its pods), then make another",
            course.attempts
        );
        return Step::Fail(Failure::new(reason::INTERRUPTED, text));
    }
    match waits_for {
        Some(_) => Step::Nothing,
        None => Step::Begin,
    }
}

/// What is left of a deadline, which an interruption does not begin anew.
pub fn left(course: &Course, now: Timestamp) -> Duration {
    let begun = course.started.unwrap_or(now);
    let used = Duration::try_from(now.duration_since(begun)).unwrap_or_default();
    course.deadline.saturating_sub(used)
}

/// A length of time as people write it: `1h2m3s`, without what is zero.
pub fn in_words(length: Duration) -> String {
    let seconds = length.as_secs();
    let parts = [(seconds / 3_600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let words: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if words.is_empty() { "0s".to_owned() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn course(phase: Phase, attempts: u32) -> Course {
        let started = (attempts > 0).then(|| at(10));
        Course { phase, created: at(0), started, attempts, deadline: Duration::from_secs(100) }
    }

    fn reason_of(step: Step) -> &'static str {
        match step {
            Step::Fail(failure) => failure.reason,
            Step::Begin => "begin",
            Step::Nothing => "nothing",
        }
    }

    #[test]
    fn a_run_always_ends() {
        let waits = Failure::new(reason::CLUSTER_NOT_FOUND, "there is no MailCluster");
        let cases = [
            (Phase::Pending, 0, false, false, 1, "begin"),
            (Phase::Pending, 0, false, true, 1, "nothing"),
            (Phase::Pending, 0, false, true, 100, reason::CLUSTER_NOT_FOUND),
            (Phase::Pending, 0, false, false, 100, reason::DEADLINE_EXCEEDED),
            // Under way here: its own timer ends it.
            (Phase::Running, 1, true, false, 5_000, "nothing"),
            // Under way in an operator that is no more.
            (Phase::Running, 1, false, false, 20, "begin"),
            (Phase::Running, 1, false, true, 20, "nothing"),
            (Phase::Running, 1, false, false, 110, reason::DEADLINE_EXCEEDED),
            (Phase::Running, 1, false, true, 110, reason::DEADLINE_EXCEEDED),
            (Phase::Running, 3, false, false, 20, reason::INTERRUPTED),
            (Phase::Succeeded, 1, false, false, 5_000, "nothing"),
            (Phase::Failed, 3, false, true, 5_000, "nothing"),
        ];
        for (phase, attempts, here, waiting, now, expected) in cases {
            let found = step(&course(phase, attempts), here, waiting.then_some(&waits), at(now));
            assert_eq!(reason_of(found), expected, "{phase:?} {attempts} {here} {waiting} at {now}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_ends_nothing() {
        assert_eq!(step(&course(Phase::Running, 1), false, None, at(-5_000)), Step::Begin);
    }

    #[test]
    fn lengths_are_read_by_people() {
        for (seconds, words) in [(0, "0s"), (59, "59s"), (60, "1m"), (3_723, "1h2m3s"), (90_000, "25h")] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
