//! Retention of a BackupPolicy: when it is due, whether it may begin, and what is told of it. Pure.
//!
//! It is applied after each backup, once a day, and when the policy was changed. What could not be done is tried again after
//! a pause that doubles: somebody may read the repository for hours, and nothing may be removed meanwhile. It waits for
//! backups and gives way to them, for they matter more.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use quorumail_crds::{BackupPolicy, backuppolicy::RetentionStatus, condition::reason};

use crate::{backuppolicy::Stock, run::Failure};

/// How often it is applied when nothing else asks for it.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// Until it is tried again; it doubles with each failure in a row.
const PAUSE: Duration = Duration::from_secs(60);
/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(3600);
/// Times in a row that somebody else may hold the repository before that is told as a problem: after half an hour.
const PATIENCE: u32 = 6;
/// Reason of a repository that somebody else holds.
const BUSY: &str = "Busy";

/// Where it is now.
#[derive(Debug)]
pub enum Turn<'a> {
    /// Not under way.
    Away,
    /// Under way here.
    Here,
    /// It has just ended: the generation of the policy that it was applied for, and what it came to.
    Ended(Option<i64>, &'a Result<Stock, Failure>),
}

/// What is known.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Where it is.
    pub turn: Turn<'a>,
    /// When the last backup that succeeded was finished.
    pub last_backup: Option<Timestamp>,
    /// What keeps it from being begun.
    pub problem: Option<&'a Failure>,
    /// Now.
    pub now: Timestamp,
}

/// What is to be done and told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// It begins now.
    pub begin: bool,
    /// It is due, and waits.
    pub waits: bool,
    /// It has just ended, and MailBackups are to tell what became of their backups.
    pub has_news: bool,
    /// None before there is a backup.
    pub status: Option<RetentionStatus>,
    /// What people are to do something about.
    pub trouble: Option<String>,
    /// When to look again although nothing changed.
    pub next: Option<Timestamp>,
}

/// Decides.
pub fn plan(policy: &BackupPolicy, seen: &Seen<'_>) -> Plan {
    let now = Timestamp::from_second(seen.now.as_second()).unwrap_or(seen.now);
    let old = policy.status.as_ref().and_then(|status| status.retention.clone()).unwrap_or_default();
    let mut status = match &seen.turn {
        Turn::Away | Turn::Here => old,
        Turn::Ended(generation, Ok(stock)) => applied(stock, *generation),
        // It goes on when the backup has ended.
        Turn::Ended(_, Err(failure)) if failure.reason == reason::WAITING => old,
        Turn::Ended(generation, Err(failure)) => {
            failed(old, generation.or(policy.metadata.generation), failure, now)
        }
    };
    let due = due(policy, &status, seen.last_backup, now);
    status.next = due.map(Time);
    let is_due = due.is_some_and(|due| due <= now) && !matches!(seen.turn, Turn::Here);
    let begin = is_due && seen.problem.is_none();
    Plan {
        begin,
        waits: is_due && !begin,
        has_news: matches!(seen.turn, Turn::Ended(..)),
        trouble: trouble(&status),
        next: due.filter(|due| *due > now),
        status: Some(status).filter(|status| *status != RetentionStatus::default()),
    }
}

fn applied(stock: &Stock, generation: Option<i64>) -> RetentionStatus {
    RetentionStatus {
        applied: Some(Time(stock.applied)),
        kept: u32::try_from(stock.ids.len()).unwrap_or(u32::MAX),
        deleted: stock.deleted,
        freed_bytes: stock.freed_bytes,
        observed_generation: generation,
        ..RetentionStatus::default()
    }
}

fn failed(
    old: RetentionStatus,
    generation: Option<i64>,
    failure: &Failure,
    now: Timestamp,
) -> RetentionStatus {
    let pause = PAUSE.saturating_mul(2u32.saturating_pow(old.failures)).min(MAX_PAUSE);
    RetentionStatus {
        observed_generation: generation,
        failures: old.failures.saturating_add(1),
        next: Some(Time(now.checked_add(pause).unwrap_or(Timestamp::MAX))),
        reason: Some(failure.reason.to_owned()),
        error: Some(failure.message.clone()),
        ..old
    }
}

/// When it is to be applied next; in the past when it should have been.
fn due(
    policy: &BackupPolicy,
    status: &RetentionStatus,
    last_backup: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    let last_backup = last_backup?;
    let told = status.next.as_ref().map(|next| next.0);
    // What a person changed may be what was wrong. Without a status that tells, it was applied for an earlier generation.
    let is_changed =
        status.observed_generation != policy.metadata.generation && status != &RetentionStatus::default();
    let applied = status.applied.as_ref().map(|applied| applied.0);
    let after_backup = applied.is_none_or(|applied| last_backup > applied);
    if policy.spec.suspend {
        // Those that exist are kept, but for what a backup that a person makes puts in the place of others.
        let again = told.filter(|_| status.failures > 0).unwrap_or(last_backup);
        return after_backup.then_some(again);
    }
    if is_changed {
        return Some(told.unwrap_or(now).min(now));
    }
    if status.failures > 0 {
        return Some(told.unwrap_or(now));
    }
    match applied {
        Some(applied) if !after_backup => applied.checked_add(EVERY).ok(),
        _ => Some(last_backup),
    }
}

fn trouble(status: &RetentionStatus) -> Option<String> {
    let is_patient = status.reason.as_deref() == Some(BUSY) && status.failures < PATIENCE;
    status.error.clone().filter(|_| !is_patient)
}

#[cfg(test)]
mod tests {
    use quorumail_crds::BackupPolicyStatus;

    use super::*;

    const POLICY: &str = r#"{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {name: nightly, generation: 3},
      spec: {schedule: "@daily", target: {s3: {endpoint: "https://s3", bucket: b, credentialsSecretRef: {name: s3}}},
      encryptionKeySecretRef: {name: key}}}"#;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn policy(retention: Option<RetentionStatus>) -> BackupPolicy {
        let mut policy: BackupPolicy = serde_yaml::from_str(POLICY).unwrap();
        policy.status = Some(BackupPolicyStatus { retention, ..BackupPolicyStatus::default() });
        policy
    }

    fn done(applied: i64) -> RetentionStatus {
        RetentionStatus {
            applied: Some(Time(at(applied))),
            kept: 1,
            observed_generation: Some(3),
            ..RetentionStatus::default()
        }
    }

    fn decide(policy: &BackupPolicy, turn: Turn<'_>, last_backup: i64, now: i64) -> Plan {
        let last_backup = (last_backup >= 0).then(|| at(last_backup));
        plan(policy, &Seen { turn, last_backup, problem: None, now: at(now) })
    }

    fn stock(applied: i64) -> Stock {
        Stock {
            ids: ["a".to_owned(), "b".to_owned()].into(),
            removed: ["c".to_owned()].into(),
            window: None,
            stored_bytes: 7,
            applied: at(applied),
            deleted: 1,
            freed_bytes: 9,
        }
    }

    #[test]
    fn it_is_due_after_each_backup_once_a_day_and_when_the_policy_was_changed() {
        let day = 86_400;
        let mut changed = done(100);
        changed.observed_generation = Some(2);
        for (status, last_backup, now, begin, next) in [
            (None, -1, 50, false, None),
            (None, 100, 101, true, None),
            (Some(done(100)), 100, 101, false, Some(100 + day)),
            (Some(done(100)), 200, 201, true, None),
            (Some(done(100)), 100, 100 + day - 1, false, Some(100 + day)),
            (Some(done(100)), 100, 100 + day, true, None),
            (Some(changed), 100, 101, true, None),
        ] {
            let plan = decide(&policy(status.clone()), Turn::Away, last_backup, now);
            assert_eq!((plan.begin, plan.next), (begin, next.map(at)), "{status:?} {last_backup} at {now}");
            let here = decide(&policy(status), Turn::Here, last_backup, now);
            assert!(!here.begin && !here.waits);
        }
    }

    #[test]
    fn a_suspended_policy_has_it_applied_only_after_a_backup() {
        let suspended = |status: RetentionStatus| {
            let mut policy = policy(Some(status));
            policy.spec.suspend = true;
            policy
        };
        let mut changed = done(100);
        changed.observed_generation = Some(2);
        for status in [done(100), changed] {
            let plan = decide(&suspended(status.clone()), Turn::Away, 100, 1_000_000);
            assert_eq!((plan.begin, plan.next), (false, None));
            assert!(decide(&suspended(status), Turn::Away, 200, 201).begin);
        }
    }

    #[test]
    fn what_it_did_is_told_and_ends_what_was_wrong() {
        let mut before = done(100);
        before.failures = 7;
        before.reason = Some(BUSY.to_owned());
        before.error = Some("a restore reads it".to_owned());
        let ended = Ok(stock(300));
        let plan = decide(&policy(Some(before)), Turn::Ended(Some(3), &ended), 200, 301);
        let told = plan.status.unwrap();
        assert_eq!((told.kept, told.deleted, told.freed_bytes, told.failures), (2, 1, 9, 0));
        assert_eq!((told.error, told.reason, plan.trouble, plan.begin), (None, None, None, false));
        assert_eq!(plan.next, Some(at(300 + 86_400)));
    }

    #[test]
    fn a_repository_that_is_busy_is_tried_again_after_pauses_that_grow() {
        let busy: Result<Stock, _> = Err(Failure::new(BUSY, "a restore reads it; it is tried again"));
        let mut policy = policy(Some(done(100)));
        let (mut now, mut pauses, mut troubled_after) = (201, Vec::new(), None);
        for failures in 1..=9 {
            let plan = decide(&policy, Turn::Ended(Some(3), &busy), 200, now);
            let next = plan.next.expect("it is tried again");
            let status = plan.status.unwrap();
            assert_eq!((status.failures, status.applied.as_ref().unwrap().0), (failures, at(100)));
            if plan.trouble.is_some() && troubled_after.is_none() {
                troubled_after = Some(failures);
            }
            pauses.push(next.as_second() - now);
            policy.status.as_mut().unwrap().retention = Some(status);
            // A backup meanwhile does not shorten the pause.
            let waiting = decide(&policy, Turn::Away, next.as_second() - 1, next.as_second() - 1);
            assert_eq!((waiting.begin, waiting.next), (false, Some(next)));
            assert!(decide(&policy, Turn::Away, 200, next.as_second()).begin);
            now = next.as_second();
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]);
        assert_eq!(troubled_after, Some(PATIENCE));
        // One that broke off does not tell for what it was applied, and is not begun at once again.
        let broken = decide(&policy, Turn::Ended(None, &busy), 200, now);
        assert!(!broken.begin && broken.next.is_some());
        // A change of the policy is tried at once.
        policy.metadata.generation = Some(4);
        assert!(decide(&policy, Turn::Away, 200, now - 1_000).begin);
    }

    #[test]
    fn what_only_a_person_can_correct_is_told_at_once() {
        let denied: Result<Stock, _> =
            Err(Failure::new("AccessDenied", "the credentials may not delete; let them"));
        let plan = decide(&policy(None), Turn::Ended(Some(3), &denied), 100, 101);
        assert_eq!(plan.trouble.as_deref(), Some("the credentials may not delete; let them"));
        let status = plan.status.unwrap();
        assert_eq!(
            (status.applied, status.failures, status.reason.as_deref()),
            (None, 1, Some("AccessDenied"))
        );
    }

    #[test]
    fn it_waits_for_what_is_more_important_and_counts_that_as_no_failure() {
        let waiting = Failure::new(reason::WAITING, "waiting for MailBackup b");
        let seen =
            Seen { turn: Turn::Away, last_backup: Some(at(200)), problem: Some(&waiting), now: at(300) };
        let plan = plan(&policy(Some(done(100))), &seen);
        assert_eq!((plan.begin, plan.waits), (false, true));
        let gave_way: Result<Stock, _> = Err(waiting);
        let plan = decide(&policy(Some(done(100))), Turn::Ended(Some(3), &gave_way), 200, 301);
        assert_eq!((plan.begin, plan.trouble), (true, None));
        assert_eq!(plan.status.unwrap().failures, 0);
    }

    #[test]
    fn a_plan_that_was_told_changes_nothing() {
        let mut changed = done(100);
        changed.observed_generation = Some(2);
        for status in [None, Some(done(100)), Some(changed)] {
            let first = decide(&policy(status), Turn::Away, 150, 160).status;
            assert_eq!(decide(&policy(first.clone()), Turn::Away, 150, 170).status, first);
        }
    }
}
