//! BackupPolicy: which backup is due, which MailBackups go, and what is told of it. Pure.
//!
//! Nothing counts as backed up before a MailBackup says so, and a MailBackup says so once its manifest was read back from
//! the bucket. One that was missed is made up for once; one that failed is made again after a while that doubles; while one
//! is under way no other is begun.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use quorumail_crds::{
    BackupPolicy, BackupPolicyStatus, MailBackup, MailBackupSpec,
    backup::{POLICY_LABEL, Phase, PolicyRef, RecoveryWindow, SCHEDULED_ANNOTATION},
    condition::{Observed, find, kind, merge, reason},
    is_paused,
};

use crate::{
    archiving,
    mailbackup::left_out,
    rehearsal, retention,
    schedule::{Schedule, ScheduleError},
    settings::FIELD_MANAGER,
};

/// MailBackups that failed of which the newest are kept.
const KEEP_FAILED: usize = 5;
/// MailBackups that succeeded of which the newest are kept: their backups may be more.
const KEEP_SUCCEEDED: usize = 100;
/// Until a backup that failed is made again; it doubles with each failure in a row.
const RETRY: Duration = Duration::from_secs(60);
/// By how much the clocks of two operators may differ.
const CLOCKS: Duration = Duration::from_secs(300);
/// Doublings of it at most: half an hour.
const RETRY_DOUBLINGS: u32 = 5;

/// What was found in the bucket when retention was applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Stock {
    /// Names of the backups in it.
    pub ids: BTreeSet<String>,
    /// Names of those that retention deleted since the operator started. What is merely not found may be in another bucket,
    /// damaged, or of a MailCluster before this one.
    pub removed: BTreeSet<String>,
    /// What can be restored.
    pub window: Option<RecoveryWindow>,
    /// Bytes of everything in it.
    pub stored_bytes: u64,
    /// When that was.
    pub applied: Timestamp,
    /// How many retention deleted then.
    pub deleted: u32,
    /// Bytes that it gave back.
    pub freed_bytes: u64,
}

/// What is known about a policy.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Its MailBackups, those that people made for it too.
    pub backups: &'a [Arc<MailBackup>],
    /// What keeps backups from being made, as a condition of type Ready.
    pub problem: Option<Observed>,
    /// What retention found since the operator started.
    pub stock: Option<&'a Stock>,
    /// What was decided of it.
    pub retention: &'a retention::Plan,
    /// What was decided of its rehearsals.
    pub rehearsal: &'a rehearsal::Plan,
    /// What is told of its archive.
    pub archive: &'a archiving::Report,
    /// Now.
    pub now: Timestamp,
}

/// What is to be done about a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// A backup that is due.
    pub create: Option<MailBackup>,
    /// Names of MailBackups that go.
    pub delete: Vec<String>,
    /// What is told once that is done.
    pub status: BackupPolicyStatus,
    /// When to look again although nothing changed.
    pub again: Option<Timestamp>,
}

/// Seconds are what the API keeps.
fn seconds(instant: Timestamp) -> Timestamp {
    Timestamp::from_second(instant.as_second()).unwrap_or(instant)
}

/// Decides.
pub fn plan(policy: &BackupPolicy, seen: &Seen<'_>) -> Plan {
    let old = policy.status.clone().unwrap_or_default();
    let now = seconds(seen.now);
    let active = seen.backups.iter().find(|backup| is_active(backup));
    let schedule = Schedule::parse(&policy.spec.schedule, &policy.spec.time_zone, now);
    let problem = match &schedule {
        Err(error) => Some(invalid(error)),
        Ok(_) => seen.problem.clone(),
    };
    let mut last = last_scheduled(&old, seen.backups, now);
    let mut create = None;
    let mut next = None;
    if let Ok(schedule) = &schedule
        && !policy.spec.suspend
    {
        let retry = retry_at(seen.backups);
        let due = match last {
            None => Some(now),
            Some(last) => {
                let again = retry.filter(|retry| *retry <= now && *retry > last).map(|_| now);
                schedule.last_between(last, now).or(again)
            }
        };
        if let Some(due) = due
            && active.is_none()
            && problem.is_none()
        {
            create = Some(backup(policy, due));
            last = Some(due);
        }
        let on_schedule = schedule.next_after(now);
        let retry = retry.filter(|_| create.is_none() && active.is_none()).filter(|retry| *retry > now);
        next = on_schedule.into_iter().chain(retry).min();
    }
    let active = active.map(|backup| backup.name_any()).or(create.as_ref().map(|b| b.name_any()));
    let mut observed = vec![ready(policy, seen, problem, &old), last_backup(seen.backups, &old.conditions)];
    observed.extend(seen.archive.observed.clone());
    observed.extend(seen.rehearsal.observed.clone());
    observed.push(Observed::no(kind::PAUSED, reason::NOT_PAUSED, "the BackupPolicy is reconciled"));
    let stock = seen.stock;
    let mut status = BackupPolicyStatus {
        observed_generation: policy.metadata.generation,
        conditions: merge(&old.conditions, &observed, policy.metadata.generation, now),
        last_schedule_time: last.map(Time),
        last_successful_time: last_successful(&old, seen.backups),
        next_schedule_time: next.map(Time),
        active,
        recovery_window: recovery_window(&old, seen, policy.spec.continuous.is_some()),
        archive_lag: seen.archive.lag.clone(),
        backups: stock.map_or(old.backups, |stock| u32::try_from(stock.ids.len()).ok()),
        stored_bytes: stock.map_or(old.stored_bytes, |stock| Some(stock.stored_bytes)),
        retention: seen.retention.status.clone(),
        ..BackupPolicyStatus::default()
    };
    seen.rehearsal.tell(&mut status);
    Plan { create, delete: superfluous(policy, seen.backups, stock), status, again: next }
}

/// With an archive what it and the backups reach together, once that is known; else what the backups do.
fn recovery_window(old: &BackupPolicyStatus, seen: &Seen<'_>, archives: bool) -> Option<RecoveryWindow> {
    match (&seen.archive.window, seen.stock) {
        (Some(window), _) => Some(window.clone()),
        (None, Some(stock)) if !archives => stock.window.clone(),
        _ => old.recovery_window.clone().or_else(|| seen.stock.and_then(|stock| stock.window.clone())),
    }
}

/// The status of a policy that is left alone: what was observed last, marked as paused. A rehearsal
/// and retention that are under way go on.
pub fn paused(
    policy: &BackupPolicy,
    rehearsal: &rehearsal::Plan,
    retention: &retention::Plan,
    now: Timestamp,
) -> BackupPolicyStatus {
    let mut status = policy.status.clone().unwrap_or_default();
    status.retention.clone_from(&retention.status);
    status.next_schedule_time = None;
    // The mailnodes are told no more, so nothing is known of their archive.
    status.archive_lag = None;
    status.conditions.retain(|old| old.type_ != kind::ARCHIVING_HEALTHY);
    let text = "no backups are made, deleted or rehearsed while the annotation quorumail.io/paused is there; take it away to go on";
    let mut observed: Vec<_> = rehearsal.observed.clone().into_iter().collect();
    observed.push(Observed::yes(kind::PAUSED, reason::BY_ANNOTATION, text));
    let mut news = merge(&status.conditions, &observed, policy.metadata.generation, now);
    status.conditions.retain(|old| find(&news, &old.type_).is_none());
    status.conditions.append(&mut news);
    rehearsal.tell(&mut status);
    status
}

/// Phase of a MailBackup; Pending while nothing was told yet.
pub fn phase(backup: &MailBackup) -> Phase {
    backup.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

/// Whether a MailBackup holds the next one up.
pub fn is_active(backup: &MailBackup) -> bool {
    let waits = phase(backup) == Phase::Pending && is_paused(backup);
    !phase(backup).is_final() && !waits && backup.metadata.deletion_timestamp.is_none()
}

/// The MailBackup that is made when the schedule says so. Of two operators that make it, one finds it there.
fn backup(policy: &BackupPolicy, due: Timestamp) -> MailBackup {
    let name = format!("{}-{}", policy.name_any(), due.strftime("%Y%m%d-%H%M%S"));
    let mut backup =
        MailBackup::new(&name, MailBackupSpec { policy_ref: PolicyRef { name: policy.name_any() } });
    backup.metadata = ObjectMeta {
        name: Some(name),
        namespace: policy.namespace(),
        labels: Some(
            [
                (POLICY_LABEL.to_owned(), policy.name_any()),
                ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
                ("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned()),
            ]
            .into(),
        ),
        annotations: Some([(SCHEDULED_ANNOTATION.to_owned(), due.to_string())].into()),
        owner_references: policy.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    backup
}

/// When a MailBackup that was made by schedule was due.
fn scheduled_at(backup: &MailBackup) -> Option<Timestamp> {
    backup.annotations().get(SCHEDULED_ANNOTATION)?.parse().ok()
}

/// From the status, and from the MailBackups: one may have been made just before the operator was lost.
fn last_scheduled(
    old: &BackupPolicyStatus,
    backups: &[Arc<MailBackup>],
    now: Timestamp,
) -> Option<Timestamp> {
    let told = old.last_schedule_time.as_ref().map(|time| time.0);
    // Clocks of operators differ a little; what lies further ahead was told by one that was wrong.
    let ahead = now.checked_add(CLOCKS).unwrap_or(Timestamp::MAX);
    backups.iter().filter_map(|backup| scheduled_at(backup)).chain(told).filter(|at| *at <= ahead).max()
}

fn finished(backup: &MailBackup) -> Option<Timestamp> {
    let status = backup.status.as_ref().filter(|status| status.phase.is_final())?;
    status.finished.as_ref().map(|time| time.0)
}

/// Runs that have ended, the newest first.
fn ended(backups: &[Arc<MailBackup>]) -> Vec<(Timestamp, &MailBackup)> {
    let mut ended: Vec<_> = backups.iter().filter_map(|b| Some((finished(b)?, &**b))).collect();
    ended.sort_by_key(|(finished, backup)| (std::cmp::Reverse(*finished), backup.name_any()));
    ended
}

/// When the last backup that succeeded was finished.
pub fn last_successful(old: &BackupPolicyStatus, backups: &[Arc<MailBackup>]) -> Option<Time> {
    let told = old.last_successful_time.as_ref().map(|time| time.0);
    let ended = ended(backups);
    let found =
        ended.iter().find(|(_, backup)| phase(backup) == Phase::Succeeded).map(|(finished, _)| *finished);
    told.into_iter().chain(found).max().map(Time)
}

/// When a backup is made again because the last ones failed. One that took longer than it may would do so again, with
/// everything sent anew: the next instant of the schedule is soon enough.
fn retry_at(backups: &[Arc<MailBackup>]) -> Option<Timestamp> {
    let ended = ended(backups);
    let conditions = ended.first()?.1.status.as_ref().map_or(&[][..], |status| &status.conditions);
    if find(conditions, kind::READY).is_some_and(|ready| ready.reason == reason::DEADLINE_EXCEEDED) {
        return None;
    }
    let failures = ended.iter().take_while(|(_, backup)| phase(backup) == Phase::Failed).count();
    let doublings = u32::try_from(failures.checked_sub(1)?).unwrap_or(u32::MAX).min(RETRY_DOUBLINGS);
    ended.first()?.0.checked_add(RETRY * 2u32.pow(doublings)).ok()
}

/// MailBackups that say nothing that is still true, or more than a person reads. Those that people made are theirs.
fn superfluous(policy: &BackupPolicy, backups: &[Arc<MailBackup>], stock: Option<&Stock>) -> Vec<String> {
    let ours = |backup: &MailBackup| {
        let owners = backup.owner_references();
        backup.metadata.deletion_timestamp.is_none()
            && owners.iter().any(|owner| Some(&owner.uid) == policy.metadata.uid.as_ref())
    };
    let (mut failed, mut succeeded) = (0, 0);
    let mut delete = Vec::new();
    for (finished, backup) in ended(backups).into_iter().filter(|(_, backup)| ours(backup)) {
        let superfluous = match phase(backup) {
            Phase::Failed => {
                failed += 1;
                failed > KEEP_FAILED
            }
            _ => {
                succeeded += 1;
                succeeded > KEEP_SUCCEEDED || is_pruned(backup, finished, stock)
            }
        };
        if superfluous {
            delete.push(backup.name_any());
        }
    }
    delete
}

/// Whether retention deleted what a MailBackup made.
pub fn is_pruned(backup: &MailBackup, finished: Timestamp, stock: Option<&Stock>) -> bool {
    let id = backup.status.as_ref().and_then(|status| status.id.as_ref());
    stock.is_some_and(|stock| finished < stock.applied && id.is_some_and(|id| stock.removed.contains(id)))
}

fn invalid(error: &ScheduleError) -> Observed {
    Observed::no(kind::READY, reason::INVALID_SPEC, format!("spec: {error}"))
}

fn ready(
    policy: &BackupPolicy,
    seen: &Seen<'_>,
    problem: Option<Observed>,
    old: &BackupPolicyStatus,
) -> Observed {
    if let Some(problem) = problem {
        return problem;
    }
    if policy.spec.suspend {
        let text = "no backups are made while spec.suspend is true; those that exist are kept";
        return Observed::yes(kind::READY, reason::SUSPENDED, text);
    }
    match ended(seen.backups).first() {
        Some((_, backup)) if phase(backup) == Phase::Failed => {
            return Observed::no(kind::READY, reason::LAST_BACKUP_FAILED, failure(backup));
        }
        None if old.last_successful_time.is_none() => {
            return Observed::no(kind::READY, reason::PENDING, "the first backup has not been made yet");
        }
        _ => {}
    }
    match &seen.retention.trouble {
        Some(error) => {
            let text = format!("backups are made, and old ones could not be deleted: {error}");
            Observed::no(kind::READY, reason::RETENTION_FAILED, text)
        }
        None => Observed::yes(kind::READY, reason::SCHEDULED, "backups are made and deleted as asked"),
    }
}

fn failure(backup: &MailBackup) -> String {
    let error =
        backup.status.as_ref().and_then(|status| status.error.as_deref()).unwrap_or("no reason is known");
    format!("MailBackup {} failed: {error}", backup.name_any())
}

fn last_backup(backups: &[Arc<MailBackup>], old: &[Condition]) -> Observed {
    let kind = kind::LAST_BACKUP_SUCCEEDED;
    let ended = ended(backups);
    let Some((_, backup)) = ended.first() else {
        return match find(old, kind) {
            // The MailBackups were deleted; what they told stays.
            Some(told) if told.status == "True" => {
                Observed::yes(kind, reason::SUCCEEDED, told.message.clone())
            }
            Some(told) if told.status == "False" => Observed::no(kind, reason::FAILED, told.message.clone()),
            _ => Observed::unknown(kind, reason::NOT_YET, "no backup has ended yet"),
        };
    };
    if phase(backup) == Phase::Failed {
        return Observed::no(kind, reason::FAILED, failure(backup));
    }
    let status = backup.status.clone().unwrap_or_default();
    let text = format!(
        "MailBackup {} is in the bucket as {}{}",
        backup.name_any(),
        status.id.as_deref().unwrap_or_default(),
        left_out(&status)
    );
    Observed::yes(kind, reason::SUCCEEDED, text)
}

#[cfg(test)]
#[path = "backuppolicy_tests.rs"]
mod tests;
