use quorumail_crds::{PAUSED_ANNOTATION, backup::is_rehearsal};

use super::*;

const MONTHLY: &str = r#"{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy,
  metadata: {name: nightly, namespace: mail, uid: 12345678-90ab, generation: 3}, spec: {schedule: "0 3 * * *",
  timeZone: Europe/Berlin, target: {s3: {endpoint: "https://s3.example.org", bucket: b, credentialsSecretRef: {name: s3}}},
  encryptionKeySecretRef: {name: key}, rehearsal: {schedule: "0 5 1 * *", deadline: 2h}}}"#;

/// An instant of the schedule: the first of November, five o'clock in Berlin.
const DUE: &str = "2026-11-01T04:00:00Z";
const HOUR: i64 = 3_600;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    Timestamp::from_second(at(DUE).as_second() + seconds).unwrap()
}

fn policy(record: Option<RehearsalRecord>) -> BackupPolicy {
    let mut policy: BackupPolicy = serde_yaml::from_str(MONTHLY).unwrap();
    policy.status = Some(BackupPolicyStatus { rehearsal: record, ..BackupPolicyStatus::default() });
    policy
}

fn record(result: Phase, started: Timestamp) -> RehearsalRecord {
    let ended = result.is_final();
    RehearsalRecord {
        result,
        started: Some(Time(started)),
        finished: ended.then(|| Time(started.checked_add(Duration::from_secs(60)).unwrap())),
        attempts: 1,
        failures: u32::from(result == Phase::Failed),
        ..RehearsalRecord::default()
    }
}

fn decide(policy: &BackupPolicy, turn: Turn<'_>, problem: Option<&Failure>, now: Timestamp) -> Plan {
    let last_backup = Some(at("2026-10-01T02:03:00Z"));
    plan(policy, &Seen { turn, last_backup, problem, now })
}

fn observed(plan: &Plan) -> (Option<bool>, &'static str) {
    let observed = plan.observed.as_ref().expect("a condition");
    (observed.status, observed.reason)
}

fn figures() -> Figures {
    Figures {
        backup: "20261101T020000Z-abc123".to_owned(),
        mailboxes: 3,
        messages: 40,
        bytes: 9_000,
        compared: 40,
        took: Duration::from_secs(83),
    }
}

#[test]
fn the_first_follows_the_first_backup_and_the_others_the_schedule() {
    let now = at("2026-10-10T12:00:00Z");
    let none = plan(&policy(None), &Seen { turn: Turn::Away, last_backup: None, problem: None, now });
    assert_eq!((none.begin, none.record.is_none()), (None, true));
    assert_eq!(observed(&none), (None, reason::NOT_YET));

    let first = decide(&policy(None), Turn::Away, None, now);
    assert_eq!(first.begin, Some(Duration::from_secs(2 * 3_600)), "its deadline");
    let begun = first.record.clone().unwrap();
    assert_eq!((begun.result, begun.started, begun.attempts), (Phase::Running, Some(Time(now)), 1));
    assert_eq!(observed(&first), (None, reason::NOT_YET));

    let done = record(Phase::Succeeded, at("2026-10-10T12:00:00Z"));
    let before = decide(&policy(Some(done.clone())), Turn::Away, None, after(-1));
    assert_eq!((before.begin, before.next), (None, Some(at(DUE))));
    assert!(decide(&policy(Some(done)), Turn::Away, None, after(0)).begin.is_some());
}

#[test]
fn what_succeeded_is_recorded_with_its_figures() {
    let running = policy(Some(record(Phase::Running, after(0))));
    let here = decide(&running, Turn::Here(None), None, after(30));
    assert_eq!((here.begin, here.record.as_ref().map(|r| r.result)), (None, Some(Phase::Running)));
    let ended = decide(&running, Turn::Ended(&figures(), &Ok(())), None, after(90));
    let record = ended.record.clone().unwrap();
    assert_eq!((record.result, record.duration.as_deref()), (Phase::Succeeded, Some("1m23s")));
    assert_eq!((record.mailboxes, record.messages, record.bytes, record.compared), (3, 40, 9_000, 40));
    assert_eq!(ended.last_rehearsed, Some(Time(after(90))));
    assert_eq!(observed(&ended), (Some(true), reason::SUCCEEDED));
    let mut status = BackupPolicyStatus::default();
    ended.tell(&mut status);
    assert_eq!(status.next_rehearsal_time, Some(Time(at("2026-12-01T04:00:00Z"))));
}

#[test]
fn what_failed_says_why_and_is_made_again_after_a_while_that_doubles() {
    let failure = Failure::new(reason::INCOMPLETE, "a pack is damaged; make a new backup");
    let mut last = record(Phase::Running, after(0));
    let mut begun = 0;
    for hours in [1, 2, 4, 8, 16, 16] {
        let running = policy(Some(last));
        let ended = decide(&running, Turn::Ended(&figures(), &Err(failure.clone())), None, after(begun + 60));
        assert_eq!(observed(&ended), (Some(false), reason::FAILED));
        let text = &ended.observed.as_ref().unwrap().message;
        assert!(text.contains("20261101T020000Z-abc123 failed: a pack is damaged"), "{text}");
        assert_eq!((ended.last_rehearsed.is_none(), ended.begin), (true, None));
        let failed = policy(ended.record);
        let again = after(begun + 60 + hours * HOUR);
        let early = decide(&failed, Turn::Away, None, after(begun + 59 + hours * HOUR));
        assert_eq!((early.begin, early.next), (None, Some(again)), "after {hours} h");
        let retried = decide(&failed, Turn::Away, None, again);
        assert!(retried.begin.is_some(), "after {hours} h");
        begun += 60 + hours * HOUR;
        last = retried.record.unwrap();
    }
    let ended = decide(&policy(Some(last)), Turn::Ended(&figures(), &Ok(())), None, after(begun + 60));
    assert_eq!(ended.record.map(|record| (record.failures, record.error)), Some((0, None)));
}

#[test]
fn while_one_is_under_way_the_condition_is_that_of_the_one_before() {
    let failed = Failure::new(reason::INCOMPLETE, "a pack is damaged");
    for (result, expected) in [(Ok(()), Some(true)), (Err(failed), Some(false))] {
        let mut policy = policy(Some(record(Phase::Running, after(-9 * HOUR))));
        let ended = decide(&policy, Turn::Ended(&figures(), &result), None, after(-8 * HOUR));
        let status = policy.status.get_or_insert_default();
        ended.tell(status);
        status.conditions =
            quorumail_crds::condition::merge(&[], &[ended.observed.unwrap()], None, after(-8 * HOUR));
        let next = decide(&policy, Turn::Away, None, after(0));
        assert!(next.begin.is_some());
        assert_eq!(next.observed.unwrap().status, expected);
    }
}

#[test]
fn one_that_cannot_be_begun_is_overdue_after_an_hour() {
    let problem = Failure::new(reason::SECRET_NOT_FOUND, "Secret backup-key does not exist; make it");
    let done = policy(Some(record(Phase::Succeeded, at("2026-10-10T12:00:00Z"))));
    let waits = decide(&done, Turn::Away, Some(&problem), after(HOUR - 1));
    assert_eq!((waits.begin, observed(&waits)), (None, (Some(true), reason::SUCCEEDED)));
    let overdue = decide(&done, Turn::Away, Some(&problem), after(HOUR));
    assert_eq!((overdue.begin, observed(&overdue)), (None, (Some(false), reason::OVERDUE)));
    let text = &overdue.observed.as_ref().unwrap().message;
    assert!(
        text.contains("since 2026-11-01T04:00:00Z") && text.contains("backup-key does not exist"),
        "{text}"
    );
    assert!(decide(&done, Turn::Away, None, after(HOUR)).begin.is_some(), "late is better than never");
}

#[test]
fn one_whose_operator_was_lost_is_begun_again_so_often_and_then_fails() {
    let running = |attempts| policy(Some(RehearsalRecord { attempts, ..record(Phase::Running, after(0)) }));
    let again = decide(&running(1), Turn::Away, None, after(600));
    assert_eq!(again.begin, Some(Duration::from_secs(2 * 3_600 - 600)), "what is left of its deadline");
    assert_eq!(again.record.map(|r| (r.attempts, r.started)), Some((2, Some(Time(after(0))))));
    let problem = Failure::new(reason::CLUSTER_NOT_READY, "waiting for MailCluster mail to be Ready");
    let waits = decide(&running(1), Turn::Away, Some(&problem), after(600));
    assert_eq!((waits.begin, waits.record.map(|r| r.result)), (None, Some(Phase::Running)));
    for (policy, now) in [(running(3), 600), (running(1), 2 * HOUR)] {
        let failed = decide(&policy, Turn::Away, None, after(now));
        let record = failed.record.clone().unwrap();
        assert_eq!((failed.begin, record.result, record.failures), (None, Phase::Failed, 1));
        assert!(record.error.is_some_and(|error| error.contains("the operator was replaced")));
    }
}

#[test]
fn a_policy_that_rests_begins_none_and_lets_the_one_under_way_end() {
    let done = record(Phase::Succeeded, at("2026-10-10T12:00:00Z"));
    let mut suspended = policy(Some(done.clone()));
    suspended.spec.suspend = true;
    let mut paused = policy(Some(done));
    paused.metadata.annotations = Some([(PAUSED_ANNOTATION.to_owned(), "true".to_owned())].into());
    for mut policy in [suspended, paused] {
        let rests = decide(&policy, Turn::Away, None, after(30 * HOUR));
        assert_eq!(
            (rests.begin, rests.next, observed(&rests)),
            (None, None, (Some(true), reason::SUCCEEDED))
        );
        policy.status.get_or_insert_default().rehearsal = Some(record(Phase::Running, after(0)));
        let ended = decide(&policy, Turn::Ended(&figures(), &Ok(())), None, after(60));
        assert_eq!(ended.record.map(|r| r.result), Some(Phase::Succeeded));
    }
}

#[test]
fn without_a_schedule_nothing_is_rehearsed_or_told() {
    let mut policy = policy(Some(record(Phase::Running, after(0))));
    policy.spec.rehearsal = None;
    let plan = decide(&policy, Turn::Here(None), None, after(60));
    assert_eq!((plan.begin, plan.record, plan.observed), (None, None, None));
    policy.status.get_or_insert_default().rehearsal = Some(record(Phase::Failed, after(0)));
    assert!(decide(&policy, Turn::Away, None, after(60)).record.is_some(), "what was, was");
}

#[test]
fn a_plan_that_was_carried_out_changes_nothing() {
    let mut policy = policy(None);
    let first = decide(&policy, Turn::Away, None, after(5));
    first.tell(policy.status.get_or_insert_default());
    let second = decide(&policy, Turn::Here(None), None, after(6));
    assert_eq!((second.begin, &second.record, second.next), (None, &first.record, first.next));
}

#[test]
fn the_throw_away_cluster_is_small_alone_and_goes_with_its_policy() {
    let like: MailCluster = serde_yaml::from_str(
        "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: mail, namespace: mail, uid: c-1}, spec: {nodes: 3, \
         hostname: mail.example.org, tls: {secretName: public}, storage: {size: 500Gi, storageClassName: fast}, \
         scheduling: {spread: kubernetes.io/hostname, nodeSelector: {disk: ssd}}, service: {type: LoadBalancer}, \
         smtp: {relay: {host: relay.example.org}, maxMessageSize: 50Mi}, image: 'registry/quorumail:7'}}",
    )
    .unwrap();
    let policy = policy(None);
    let name = cluster_name(&policy, after(0));
    assert!(name.starts_with("rehearsal-12345678-") && name.len() <= 40, "{name}");
    assert_ne!(name, cluster_name(&policy, after(1)));
    let cluster = throw_away(&policy, &like, &name, 8, 10 << 30);
    assert!(is_rehearsal(&cluster) && !is_rehearsal(&like));
    let spec = &cluster.spec;
    assert_eq!((spec.nodes, spec.partitions, spec.storage.size.as_str()), (1, 8, "22Gi"));
    assert_eq!(spec.storage.deletion_policy, DeletionPolicy::Delete);
    assert_eq!(spec.storage.storage_class_name.as_deref(), Some("fast"));
    assert!(spec.smtp.relay.is_none() && spec.hostname.is_none() && spec.tls.secret_name.is_none());
    assert_eq!((&spec.service, &spec.scheduling.spread), (&ServiceSpec::default(), &None));
    assert_eq!(spec.smtp.max_message_size.as_str(), "50Mi");
    assert_eq!(
        (spec.image.as_deref(), spec.scheduling.node_selector.len()),
        (Some("registry/quorumail:7"), 1)
    );
    assert_eq!(cluster.metadata.owner_references.as_ref().unwrap()[0].uid, "12345678-90ab");
    // Somebody's own, whatever its label says.
    let mut own = like;
    own.metadata.labels.clone_from(&cluster.metadata.labels);
    assert!(!is_rehearsal(&own));
}
