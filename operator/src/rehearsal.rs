//! Rehearsals of a BackupPolicy: whether one is due, what became of the last one, what is told of it, and the MailCluster
//! that it restores into. Pure.
//!
//! What was begun is in the status of the BackupPolicy, so an operator that takes over knows of it: what it finds Running and
//! does not run itself was interrupted, and is begun again with a MailCluster of its own.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use quorumail_crds::{
    BackupPolicy, BackupPolicyStatus, DeletionPolicy, MailCluster, Size,
    backup::{Phase, REHEARSAL_LABEL},
    backuppolicy::RehearsalRecord,
    condition::{Observed, find, kind, reason},
    is_paused,
    mailcluster::{ServiceSpec, Storage, Tls},
};

use crate::{
    run::{Course, Failure, Step, in_words, left, step},
    schedule::{Schedule, ScheduleError},
    settings::FIELD_MANAGER,
};

/// Until a rehearsal that failed is made again; it doubles with each failure in a row.
const RETRY: Duration = Duration::from_secs(3_600);
/// Doublings of it at most: sixteen hours.
const RETRY_DOUBLINGS: u32 = 4;
/// One that is due and cannot be begun for so many seconds is overdue.
const OVERDUE: i64 = 3_600;
/// Room that a mailnode needs beside mail, and for each byte of mail two: the journal, and its compaction.
const LEAST_STORAGE: u64 = 2 << 30;

/// What a rehearsal has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Name of the backup; empty while it is not known.
    pub backup: String,
    /// Mailboxes that were restored.
    pub mailboxes: u64,
    /// Messages that were restored.
    pub messages: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Messages that were read back and are equal.
    pub compared: u64,
    /// How long it took; zero while it has not ended.
    pub took: Duration,
}

/// Where a rehearsal is.
#[derive(Debug, Clone, Copy)]
pub enum Turn<'a> {
    /// Not in this process.
    Away,
    /// Under way in this process; with figures when they are to be told.
    Here(Option<&'a Figures>),
    /// It has ended.
    Ended(&'a Figures, &'a Result<(), Failure>),
}

/// What is known about the rehearsals of a policy.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Where the one is that the status tells of.
    pub turn: Turn<'a>,
    /// When the newest backup that succeeded was finished.
    pub last_backup: Option<Timestamp>,
    /// What keeps one from being begun.
    pub problem: Option<&'a Failure>,
    /// Now.
    pub now: Timestamp,
}

/// What is to be done, and told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// One is to be begun, and may take so long.
    pub begin: Option<Duration>,
    /// The last one, or the one that is under way.
    pub record: Option<RehearsalRecord>,
    /// When the last one that succeeded was finished.
    pub last_rehearsed: Option<Time>,
    /// When the next one is due.
    pub next: Option<Timestamp>,
    /// The condition; none where nothing is rehearsed.
    pub observed: Option<Observed>,
}

impl Plan {
    /// Puts what is told into a status, but for the condition.
    pub fn tell(&self, status: &mut BackupPolicyStatus) {
        status.rehearsal.clone_from(&self.record);
        status.last_rehearsed_time.clone_from(&self.last_rehearsed);
        status.next_rehearsal_time = self.next.map(Time);
    }
}

/// Decides.
pub fn plan(policy: &BackupPolicy, seen: &Seen<'_>) -> Plan {
    let old = policy.status.clone().unwrap_or_default();
    let now = Timestamp::from_second(seen.now.as_second()).unwrap_or(seen.now);
    let mut plan = Plan { last_rehearsed: old.last_rehearsed_time.clone(), ..Plan::default() };
    let Some(spec) = &policy.spec.rehearsal else {
        // One that was under way is ended with the wish for it.
        plan.record = old.rehearsal.filter(|record| record.result.is_final());
        return plan;
    };
    let mut record = old.rehearsal.clone();
    if let Some(record) = &mut record {
        go_on(record, policy, seen, spec.deadline.duration(), &mut plan, now);
    }
    let schedule = match Schedule::parse(&spec.schedule, &policy.spec.time_zone, now) {
        Ok(schedule) => schedule,
        Err(error) => {
            plan.observed = Some(invalid(&error));
            plan.record = record;
            return plan;
        }
    };
    let is_running = record.as_ref().is_some_and(|record| !record.result.is_final());
    let rests = policy.spec.suspend || is_paused(policy);
    let mut due = None;
    // What has ended is told first.
    if !is_running && !rests && !matches!(seen.turn, Turn::Ended(..)) {
        let retry = record.as_ref().and_then(retry_at);
        due = due_since(&schedule, record.as_ref(), seen);
        let again = retry.is_some_and(|retry| retry <= now);
        if (due.is_some() || again) && seen.problem.is_none() {
            record = Some(begin(record.as_ref(), now));
            plan.begin = Some(spec.deadline.duration());
            due = None;
        } else {
            plan.next = retry.filter(|retry| *retry > now);
        }
    }
    if !rests {
        plan.next = plan.next.into_iter().chain(schedule.next_after(now)).min();
    }
    plan.observed = Some(observe(record.as_ref(), &old, due, seen));
    plan.record = record;
    plan
}

/// What became of the one that the status tells of.
fn go_on(
    record: &mut RehearsalRecord,
    policy: &BackupPolicy,
    seen: &Seen<'_>,
    deadline: Duration,
    plan: &mut Plan,
    now: Timestamp,
) {
    match seen.turn {
        _ if record.result.is_final() => {}
        Turn::Ended(figures, result) => {
            show(record, figures);
            end(record, result, now);
            if result.is_ok() {
                plan.last_rehearsed = Some(Time(now));
            }
        }
        Turn::Here(figures) => {
            if let Some(figures) = figures {
                show(record, figures);
            }
        }
        Turn::Away => {
            let started = record.started.as_ref().map_or(now, |time| time.0);
            let course = Course {
                phase: record.result,
                created: started,
                started: Some(started),
                attempts: record.attempts,
                deadline,
            };
            let problem = seen.problem.filter(|_| !is_paused(policy));
            match step(&course, false, problem, now) {
                Step::Fail(failure) => end(record, &Err(failure), now),
                Step::Begin if !is_paused(policy) => {
                    record.attempts = record.attempts.saturating_add(1);
                    show(record, &Figures::default());
                    plan.begin = Some(left(&course, now));
                }
                Step::Begin | Step::Nothing => {}
            }
        }
    }
}

fn begin(last: Option<&RehearsalRecord>, now: Timestamp) -> RehearsalRecord {
    RehearsalRecord {
        result: Phase::Running,
        started: Some(Time(now)),
        attempts: 1,
        failures: last.map_or(0, |last| last.failures),
        ..RehearsalRecord::default()
    }
}

fn show(record: &mut RehearsalRecord, figures: &Figures) {
    record.backup = Some(figures.backup.clone()).filter(|id| !id.is_empty());
    record.mailboxes = figures.mailboxes;
    record.messages = figures.messages;
    record.bytes = figures.bytes;
    record.compared = figures.compared;
    record.duration = (!figures.took.is_zero()).then(|| in_words(figures.took));
}

fn end(record: &mut RehearsalRecord, result: &Result<(), Failure>, now: Timestamp) {
    record.finished = Some(Time(now));
    match result {
        Ok(()) => {
            record.result = Phase::Succeeded;
            record.failures = 0;
        }
        Err(failure) => {
            record.result = Phase::Failed;
            record.failures = record.failures.saturating_add(1);
            record.error = Some(failure.message.clone());
        }
    }
}

/// Since when one is due by schedule. One that was begun covers every instant before it; the first is due once there is a backup.
fn due_since(schedule: &Schedule, last: Option<&RehearsalRecord>, seen: &Seen<'_>) -> Option<Timestamp> {
    match last.and_then(|last| last.started.as_ref()) {
        Some(started) => schedule.last_between(started.0, seen.now),
        None => seen.last_backup,
    }
}

/// When one that failed is made again.
fn retry_at(last: &RehearsalRecord) -> Option<Timestamp> {
    let doublings = last.failures.checked_sub(1)?.min(RETRY_DOUBLINGS);
    last.finished.as_ref()?.0.checked_add(RETRY * 2u32.pow(doublings)).ok()
}

fn invalid(error: &ScheduleError) -> Observed {
    Observed::no(kind::REHEARSAL_SUCCEEDED, reason::INVALID_SPEC, format!("spec.rehearsal: {error}"))
}

fn observe(
    record: Option<&RehearsalRecord>,
    old: &BackupPolicyStatus,
    due: Option<Timestamp>,
    seen: &Seen<'_>,
) -> Observed {
    let (kind, problem) = (kind::REHEARSAL_SUCCEEDED, seen.problem);
    if let Some(due) = due
        && seen.now.duration_since(due).as_secs() >= OVERDUE
    {
        let why = problem.map_or("its turn has not come", |problem| &problem.message);
        let text = format!("a rehearsal has been due since {due} and could not be begun: {why}");
        return Observed::no(kind, reason::OVERDUE, text);
    }
    let Some(record) = record else {
        let text = match problem.filter(|_| seen.last_backup.is_some()) {
            Some(problem) => format!("nothing has been rehearsed yet: {}", problem.message),
            None => "nothing has been rehearsed yet; the first rehearsal follows the first backup".to_owned(),
        };
        return Observed::unknown(kind, reason::NOT_YET, text);
    };
    let backup = record.backup.as_deref().unwrap_or("that is the newest");
    match record.result {
        Phase::Succeeded => {
            let text = format!(
                "backup {backup} was restored in {}; {} messages of {} mailboxes were compared, and one was sent and read",
                record.duration.as_deref().unwrap_or_default(),
                record.compared,
                record.mailboxes
            );
            Observed::yes(kind, reason::SUCCEEDED, text)
        }
        Phase::Failed => {
            let error = record.error.as_deref().unwrap_or("no reason is known");
            Observed::no(
                kind,
                reason::FAILED,
                format!("the rehearsal of the backup {backup} failed: {error}"),
            )
        }
        Phase::Pending | Phase::Running => match find(&old.conditions, kind) {
            // What the one before came to counts until this one has ended.
            Some(told) if told.status == "True" => {
                Observed::yes(kind, reason::SUCCEEDED, told.message.clone())
            }
            Some(told) if told.status == "False" => Observed::no(kind, reason::FAILED, told.message.clone()),
            _ => Observed::unknown(kind, reason::NOT_YET, "the first rehearsal is under way"),
        },
    }
}

/// A name that no other rehearsal has: a MailCluster of the same name would take over volumes that are about to go.
pub fn cluster_name(policy: &BackupPolicy, now: Timestamp) -> String {
    let uid = policy.uid().unwrap_or_default();
    let owner: String = uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("rehearsal-{owner}-{:x}", now.as_millisecond())
}

/// The MailCluster that is restored into: one mailnode like those of `like`, for so many partitions and bytes of mail.
pub fn throw_away(
    policy: &BackupPolicy,
    like: &MailCluster,
    name: &str,
    partitions: u32,
    bytes: u64,
) -> MailCluster {
    let mut spec = like.spec.clone();
    spec.nodes = 1;
    spec.partitions = partitions;
    spec.storage = Storage {
        size: storage(bytes),
        storage_class_name: spec.storage.storage_class_name,
        deletion_policy: DeletionPolicy::Delete,
    };
    // Nothing of the outside: no name of its own, no certificate, no load balancer, and no server that sends on.
    spec.hostname = None;
    spec.tls = Tls::default();
    spec.service = ServiceSpec::default();
    spec.smtp.relay = None;
    spec.scheduling.spread = None;
    let mut cluster = MailCluster::new(name, spec);
    cluster.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: policy.namespace(),
        labels: Some(
            [
                (REHEARSAL_LABEL.to_owned(), policy.name_any()),
                ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
                ("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned()),
            ]
            .into(),
        ),
        owner_references: policy.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    cluster
}

fn storage(bytes: u64) -> Size {
    let gibibytes = bytes.saturating_mul(2).saturating_add(LEAST_STORAGE).div_ceil(1 << 30);
    format!("{gibibytes}Gi").parse().expect("a number of gibibytes is a size")
}

#[cfg(test)]
#[path = "rehearsal_tests.rs"]
mod tests;
