//! What MailBackup and MailRestore have in common: a thing that is begun, takes its time and ends. Pure.
//!
//! It always ends. One that was under way when the operator was lost is seen as interrupted and begun again, so often; one
//! that cannot be begun, or takes too long, fails with the reason.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use quorumail_crds::{
    MailBackupStatus, MailRestoreStatus,
    backup::Phase,
    condition::{Observed, kind, merge, reason},
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

/// What is to be told of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Told<'a, Own> {
    /// It has not begun, and why.
    Waiting(&'a Failure),
    /// It is begun, for the first time or again.
    Begun,
    /// It has ended without having done what was asked.
    Failed(&'a Failure),
    /// It is left alone.
    Paused,
    /// What only runs of its kind tell.
    Own(Own),
}

/// What the statuses of all runs have.
pub struct Head<'s> {
    /// How far it is.
    pub phase: &'s mut Phase,
    /// When it was first begun.
    pub started: &'s mut Option<Time>,
    /// When it ended.
    pub finished: &'s mut Option<Time>,
    /// How often it was begun.
    pub attempts: &'s mut u32,
    /// Why it failed.
    pub error: &'s mut Option<String>,
    observed_generation: &'s mut Option<i64>,
    conditions: &'s mut Vec<Condition>,
}

impl Head<'_> {
    /// It ends now, with a failure or without.
    pub fn end(self, failure: Option<&Failure>, now: Timestamp) {
        *self.phase = if failure.is_some() { Phase::Failed } else { Phase::Succeeded };
        *self.finished = Some(Time(now));
        *self.error = failure.map(|failure| failure.message.clone());
    }
}

/// The status of a run.
pub trait RunStatus {
    /// What all of them have.
    fn head(&mut self) -> Head<'_>;
}

/// The two have the same fields and no type in common.
macro_rules! run_status {
    ($($status:ty),*) => {$(
        impl RunStatus for $status {
            fn head(&mut self) -> Head<'_> {
                Head {
                    phase: &mut self.phase,
                    started: &mut self.started,
                    finished: &mut self.finished,
                    attempts: &mut self.attempts,
                    error: &mut self.error,
                    observed_generation: &mut self.observed_generation,
                    conditions: &mut self.conditions,
                }
            }
        }
    )*};
}
run_status!(MailBackupStatus, MailRestoreStatus);

/// What a status becomes. `own` puts into it what only runs of its kind tell, and answers whether it is Ready.
pub fn status<S: RunStatus, Own>(
    mut status: S,
    generation: Option<i64>,
    told: &Told<'_, Own>,
    now: Timestamp,
    own: impl FnOnce(&mut S, &Own, Timestamp) -> Observed,
) -> S {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut is_paused = Observed::no(kind::PAUSED, reason::NOT_PAUSED, "the object is reconciled");
    let ready = match told {
        Told::Waiting(failure) => failure.observed(),
        Told::Begun => {
            let head = status.head();
            *head.phase = Phase::Running;
            head.started.get_or_insert(Time(now));
            *head.attempts = head.attempts.saturating_add(1);
            under_way()
        }
        Told::Failed(failure) => {
            status.head().end(Some(failure), now);
            failure.observed()
        }
        Told::Paused => {
            let text =
                "reconciliation is stopped by the annotation quorumail.io/paused; take it away to go on";
            is_paused = Observed::yes(kind::PAUSED, reason::BY_ANNOTATION, text);
            Observed::no(kind::READY, reason::BY_ANNOTATION, "it is not begun while it is paused")
        }
        Told::Own(told) => own(&mut status, told, now),
    };
    let head = status.head();
    *head.observed_generation = generation;
    *head.conditions = merge(head.conditions, &[ready, is_paused], generation, now);
    status
}

/// Of a run that is under way.
pub fn under_way() -> Observed {
    Observed::no(kind::READY, reason::RUNNING, "it is under way")
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
    use quorumail_crds::condition::find;

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
    fn all_runs_tell_alike_how_far_they_are() {
        let failure = Failure::new(reason::CLUSTER_NOT_FOUND, "there is no MailCluster; make it");
        let tell = |status: MailBackupStatus, told: &Told<'_, ()>, second| {
            super::status(status, Some(7), told, at(second), |_, (), _| under_way())
        };
        let ready = |status: &MailBackupStatus| {
            let ready = find(&status.conditions, kind::READY).unwrap();
            (ready.status.clone(), ready.reason.clone())
        };
        let no = |reason: &str| ("False".to_owned(), reason.to_owned());
        let paused = tell(MailBackupStatus::default(), &Told::Paused, 1);
        assert_eq!((paused.phase, ready(&paused)), (Phase::Pending, no(reason::BY_ANNOTATION)));
        assert_eq!(find(&paused.conditions, kind::PAUSED).unwrap().status, "True");
        let waiting = tell(paused, &Told::Waiting(&failure), 2);
        assert_eq!((waiting.phase, ready(&waiting)), (Phase::Pending, no(reason::CLUSTER_NOT_FOUND)));
        assert_eq!(find(&waiting.conditions, kind::PAUSED).unwrap().status, "False");
        let begun = tell(tell(waiting, &Told::Begun, 3), &Told::Begun, 4);
        assert_eq!((begun.phase, begun.attempts, ready(&begun)), (Phase::Running, 2, no(reason::RUNNING)));
        let failed = tell(begun, &Told::Failed(&failure), 5);
        assert_eq!((failed.phase, failed.error.as_ref()), (Phase::Failed, Some(&failure.message)));
        assert_eq!((failed.started, failed.finished), (Some(Time(at(3))), Some(Time(at(5)))));
        assert_eq!(failed.observed_generation, Some(7));
    }

    #[test]
    fn lengths_are_read_by_people() {
        for (seconds, words) in [(0, "0s"), (59, "59s"), (60, "1m"), (3_723, "1h2m3s"), (90_000, "25h")] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
