use quorumail_crds::MailBackupStatus;

use super::*;

const NIGHTLY: &str = r#"{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy,
  metadata: {name: nightly, namespace: mail, uid: p-1, generation: 3}, spec: {schedule: "0 3 * * *", timeZone: Europe/Berlin,
  target: {s3: {endpoint: "https://s3.example.org", bucket: b, credentialsSecretRef: {name: s3}}},
  encryptionKeySecretRef: {name: key}}}"#;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn policy() -> BackupPolicy {
    serde_yaml::from_str(NIGHTLY).unwrap()
}

/// A MailBackup that was made by schedule, as the API server gives it back.
fn run(due: &str, phase: Phase, finished: Option<&str>) -> MailBackup {
    let mut backup = backup(&policy(), at(due));
    backup.status = Some(MailBackupStatus {
        phase,
        finished: finished.map(|text| Time(at(text))),
        id: (phase == Phase::Succeeded).then(|| format!("id-{due}")),
        error: (phase == Phase::Failed).then(|| "the bucket is on fire; put it out".to_owned()),
        ..MailBackupStatus::default()
    });
    backup
}

fn decide(policy: &BackupPolicy, backups: Vec<MailBackup>, now: &str) -> Plan {
    let backups: Vec<_> = backups.into_iter().map(Arc::new).collect();
    plan(
        policy,
        &Seen {
            backups: &backups,
            problem: None,
            stock: None,
            retention: &retention::Plan::default(),
            rehearsal: &rehearsal::Plan::default(),
            archive: &archiving::Report::default(),
            now: at(now),
        },
    )
}

fn condition(plan: &Plan, kind: &str) -> (String, String) {
    let found = find(&plan.status.conditions, kind).unwrap();
    (found.status.clone(), found.reason.clone())
}

fn yes(reason: &str) -> (String, String) {
    ("True".to_owned(), reason.to_owned())
}

fn no(reason: &str) -> (String, String) {
    ("False".to_owned(), reason.to_owned())
}

fn with_last(schedule_time: &str) -> BackupPolicy {
    let mut policy = policy();
    let status = BackupPolicyStatus {
        last_schedule_time: Some(Time(at(schedule_time))),
        ..BackupPolicyStatus::default()
    };
    policy.status = Some(status);
    policy
}

#[test]
fn the_first_backup_is_made_at_once_and_once() {
    let plan = decide(&policy(), vec![], "2026-11-25T17:48:00.123Z");
    let made = plan.create.as_ref().expect("a backup");
    assert_eq!(made.name_any(), "nightly-20261125-174800");
    assert_eq!(made.spec.policy_ref.name, "nightly");
    assert_eq!(made.labels()[POLICY_LABEL], "nightly");
    assert_eq!(made.owner_references()[0].uid, "p-1");
    assert_eq!(plan.status.active.as_deref(), Some("nightly-20261125-174800"));
    assert_eq!(condition(&plan, kind::READY), no(reason::PENDING));
    let last = find(&plan.status.conditions, kind::LAST_BACKUP_SUCCEEDED).unwrap();
    assert_eq!((last.status.as_str(), plan.status.last_successful_time.is_none()), ("Unknown", true));

    // The operator was lost before it wrote the status: the MailBackup tells.
    let made = made.clone();
    let later = decide(&policy(), vec![made], "2026-11-25T17:48:30Z");
    assert_eq!(later.create, None);
    assert_eq!(later.status.last_schedule_time, Some(Time(at("2026-11-25T17:48:00Z"))));
    assert_eq!(later.status.next_schedule_time, Some(Time(at("2026-11-26T02:00:00Z"))));
}

#[test]
fn a_backup_counts_once_it_was_read_back() {
    let running =
        decide(&policy(), vec![run("2026-11-25T02:00:00Z", Phase::Running, None)], "2026-11-25T02:00:10Z");
    assert_eq!(running.status.last_successful_time, None);
    assert_eq!(condition(&running, kind::READY), no(reason::PENDING));
    let done = run("2026-11-25T02:00:00Z", Phase::Succeeded, Some("2026-11-25T02:03:00Z"));
    let done = decide(&policy(), vec![done], "2026-11-25T02:04:00Z");
    assert_eq!(condition(&done, kind::READY), yes(reason::SCHEDULED));
    assert_eq!(condition(&done, kind::LAST_BACKUP_SUCCEEDED), yes(reason::SUCCEEDED));
    assert_eq!(done.status.last_successful_time, Some(Time(at("2026-11-25T02:03:00Z"))));
    assert_eq!((done.status.active, done.create), (None, None));
}

#[test]
fn what_was_missed_is_made_once() {
    let plan = decide(&with_last("2026-11-20T02:00:00Z"), vec![], "2026-11-25T12:00:00Z");
    assert_eq!(plan.create.unwrap().name_any(), "nightly-20261125-020000");
    assert_eq!(plan.status.next_schedule_time, Some(Time(at("2026-11-26T02:00:00Z"))));
    let plan = decide(&with_last("2026-11-25T02:00:00Z"), vec![], "2026-11-25T12:00:00Z");
    assert_eq!(plan.create, None);
}

#[test]
fn while_one_is_under_way_no_other_is_begun_and_then_the_missed_one_is() {
    for phase in [Phase::Running, Phase::Pending] {
        let stuck = run("2026-11-24T02:00:00Z", phase, None);
        let plan = decide(&policy(), vec![stuck], "2026-11-25T02:00:01Z");
        assert_eq!(plan.create, None, "{phase:?}");
        assert_eq!(plan.status.active.as_deref(), Some("nightly-20261124-020000"));
    }
    let mut ended = run("2026-11-24T02:00:00Z", Phase::Failed, Some("2026-11-25T02:00:01Z"));
    let plan = decide(&policy(), vec![ended.clone()], "2026-11-25T02:00:02Z");
    assert_eq!(plan.create.unwrap().name_any(), "nightly-20261125-020000");
    // One that is being deleted, or waits because of an annotation, holds nothing up.
    ended.status = None;
    ended.annotations_mut().insert(quorumail_crds::PAUSED_ANNOTATION.to_owned(), "true".to_owned());
    assert!(decide(&policy(), vec![ended.clone()], "2026-11-25T02:00:02Z").create.is_some());
    let mut going = run("2026-11-24T02:00:00Z", Phase::Running, None);
    going.metadata.deletion_timestamp = Some(Time(at("2026-11-25T02:00:00Z")));
    assert!(decide(&policy(), vec![going], "2026-11-25T02:00:02Z").create.is_some());
}

#[test]
fn a_backup_that_failed_is_made_again_after_a_while_that_doubles() {
    let failures = |count: usize| -> Vec<MailBackup> {
        let dues = ["2026-11-25T02:00:00Z", "2026-11-25T02:01:00Z", "2026-11-25T02:04:00Z"];
        dues[..count].iter().map(|due| run(due, Phase::Failed, Some(due))).collect()
    };
    for (count, too_early, again) in [
        (1, "2026-11-25T02:00:59Z", "2026-11-25T02:01:00Z"),
        (2, "2026-11-25T02:02:59Z", "2026-11-25T02:03:00Z"),
        (3, "2026-11-25T02:07:59Z", "2026-11-25T02:08:00Z"),
    ] {
        let waits = decide(&policy(), failures(count), too_early);
        assert_eq!((waits.create, waits.again), (None, Some(at(again))), "after {count} failures");
        assert!(decide(&policy(), failures(count), again).create.is_some(), "after {count} failures");
    }
    let plan = decide(&policy(), failures(1), "2026-11-25T02:00:30Z");
    assert_eq!(condition(&plan, kind::READY), no(reason::LAST_BACKUP_FAILED));
    assert_eq!(condition(&plan, kind::LAST_BACKUP_SUCCEEDED), no(reason::FAILED));
    let message = &find(&plan.status.conditions, kind::READY).unwrap().message;
    assert!(message.contains("nightly-20261125-020000 failed: the bucket is on fire"), "{message}");
    // It was made a moment ago and is not seen yet.
    let mut made = policy();
    made.status = Some(decide(&policy(), failures(1), "2026-11-25T02:01:00Z").status);
    assert_eq!(decide(&made, failures(1), "2026-11-25T02:01:01Z").create, None);
    // A success ends it.
    let mut runs = failures(1);
    runs.push(run("2026-11-25T02:01:00Z", Phase::Succeeded, Some("2026-11-25T02:02:00Z")));
    let plan = decide(&policy(), runs, "2026-11-25T02:10:00Z");
    assert_eq!((plan.create, plan.again), (None, Some(at("2026-11-26T02:00:00Z"))));
}

#[test]
fn a_suspended_policy_makes_none_and_says_so() {
    let mut policy = policy();
    policy.spec.suspend = true;
    let plan = decide(&policy, vec![], "2026-11-25T12:00:00Z");
    assert_eq!(
        (plan.create.is_none(), plan.again, plan.status.next_schedule_time.is_none()),
        (true, None, true)
    );
    assert_eq!(condition(&plan, kind::READY), yes(reason::SUSPENDED));
}

#[test]
fn a_problem_is_told_and_what_is_due_waits_for_its_end() {
    let problem = Observed::no(kind::READY, reason::CLUSTER_NOT_FOUND, "there is no MailCluster mail");
    let seen = Seen {
        backups: &[],
        problem: Some(problem),
        stock: None,
        retention: &retention::Plan::default(),
        rehearsal: &rehearsal::Plan::default(),
        archive: &archiving::Report::default(),
        now: at("2026-11-25T12:00:00Z"),
    };
    let plan = plan(&policy(), &seen);
    assert_eq!((plan.create.is_none(), plan.status.last_schedule_time.is_none()), (true, true));
    assert_eq!(condition(&plan, kind::READY), no(reason::CLUSTER_NOT_FOUND));
    let mut wrong = policy();
    wrong.spec.schedule = "0 3 30 2 *".to_owned();
    let plan = decide(&wrong, vec![], "2026-11-25T12:00:00Z");
    assert_eq!((plan.create.is_none(), condition(&plan, kind::READY)), (true, no(reason::INVALID_SPEC)));
}

fn stock(ids: &[&str], removed: &[&str], applied: &str) -> Stock {
    let names = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    Stock {
        ids: names(ids),
        removed: names(removed),
        window: None,
        stored_bytes: 7,
        applied: at(applied),
        deleted: 1,
        freed_bytes: 9,
    }
}

#[test]
fn mailbackups_of_deleted_backups_go_and_those_of_people_stay() {
    let old = run("2026-11-23T02:00:00Z", Phase::Succeeded, Some("2026-11-23T02:03:00Z"));
    let kept = run("2026-11-24T02:00:00Z", Phase::Succeeded, Some("2026-11-24T02:03:00Z"));
    // It ended after the bucket was looked at.
    let newer = run("2026-11-25T02:00:00Z", Phase::Succeeded, Some("2026-11-25T02:03:00Z"));
    let mut by_hand = run("2026-11-22T02:00:00Z", Phase::Succeeded, Some("2026-11-22T02:03:00Z"));
    by_hand.metadata.owner_references = None;
    // Not found and not deleted: it is in another bucket, or of the MailCluster before this one.
    let elsewhere = run("2026-11-21T02:00:00Z", Phase::Succeeded, Some("2026-11-21T02:03:00Z"));
    let backups: Vec<_> = [old, kept, newer, by_hand, elsewhere].into_iter().map(Arc::new).collect();
    let removed = ["id-2026-11-23T02:00:00Z", "id-2026-11-22T02:00:00Z"];
    let stock = stock(&["id-2026-11-24T02:00:00Z"], &removed, "2026-11-24T02:03:05Z");
    let now = at("2026-11-25T03:00:00Z");
    let plan = plan(
        &policy(),
        &Seen {
            backups: &backups,
            problem: None,
            stock: Some(&stock),
            retention: &retention::Plan::default(),
            rehearsal: &rehearsal::Plan::default(),
            archive: &archiving::Report::default(),
            now,
        },
    );
    assert_eq!(plan.delete, ["nightly-20261123-020000"]);
    assert_eq!((plan.status.backups, plan.status.stored_bytes), (Some(1), Some(7)));
}

#[test]
fn of_failed_mailbackups_only_the_newest_stay() {
    let failed = |minute: u32| {
        let due = format!("2026-11-25T02:{minute:02}:00Z");
        run(&due, Phase::Failed, Some(&due))
    };
    let plan = decide(&policy(), (0..8).map(failed).collect(), "2026-11-25T02:30:00Z");
    assert_eq!(
        plan.delete,
        ["nightly-20261125-020200", "nightly-20261125-020100", "nightly-20261125-020000"]
    );
}

#[test]
fn what_is_wrong_with_retention_is_told_and_its_status_passed_on() {
    let done = [Arc::new(run("2026-11-25T02:00:00Z", Phase::Succeeded, Some("2026-11-25T02:03:00Z")))];
    let with = |retention: &retention::Plan| {
        let seen = Seen {
            backups: &done,
            problem: None,
            stock: None,
            retention,
            rehearsal: &rehearsal::Plan::default(),
            archive: &archiving::Report::default(),
            now: at("2026-11-25T02:04:00Z"),
        };
        plan(&policy(), &seen)
    };
    let status = quorumail_crds::backuppolicy::RetentionStatus { failures: 1, ..Default::default() };
    let mut retention = retention::Plan { status: Some(status.clone()), ..retention::Plan::default() };
    let told = with(&retention);
    assert_eq!(
        (condition(&told, kind::READY), told.status.retention),
        (yes(reason::SCHEDULED), Some(status))
    );
    retention.trouble = Some("the bucket refuses deletions".to_owned());
    let told = with(&retention);
    assert_eq!(condition(&told, kind::READY), no(reason::RETENTION_FAILED));
    assert_eq!(condition(&told, kind::LAST_BACKUP_SUCCEEDED), yes(reason::SUCCEEDED));
}

#[test]
fn a_plan_that_was_carried_out_changes_nothing() {
    let mut policy = policy();
    let first = decide(&policy, vec![], "2026-11-25T12:00:00Z");
    let made = first.create.clone().unwrap();
    policy.status = Some(first.status.clone());
    let second = decide(&policy, vec![made], "2026-11-25T12:00:10Z");
    assert_eq!((second.create, second.status), (None, first.status));
}
