use quorumail_proto::admin::{NodeReport, NodeStatus};

use super::*;

const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod of a revision that has been ready for long.
fn pod(ordinal: u64, revision: &str) -> PodSeen {
    PodSeen {
        ordinal,
        revision: revision.to_owned(),
        ready: true,
        terminating: false,
        since: at(0),
        broken: None,
        ended: None,
        lost: None,
    }
}

fn unready(ordinal: u64, revision: &str, since: i64) -> PodSeen {
    PodSeen { ready: false, since: at(since), ..pod(ordinal, revision) }
}

fn broken(ordinal: u64, revision: &str, since: i64) -> PodSeen {
    PodSeen { broken: Some("ErrImagePull: no such tag".into()), ..unready(ordinal, revision, since) }
}

fn seen(pods: Vec<PodSeen>) -> Seen {
    Seen {
        name: "mc".into(),
        nodes: 3,
        revision: Some("new".into()),
        pods,
        replication: Ok(Replication { level: 1, known: 2, ..Replication::default() }),
        deadline: Duration::from_secs(600),
    }
}

fn notes(stable: &str) -> Notes {
    let stable = Stable { revision: stable.into(), config: "c".into(), level: 1 };
    Notes { stable: Some(stable), ..Notes::default() }
}

fn decide(seen: &Seen) -> Step {
    next(seen, &notes("old"), at(NOW))
}

fn takes(ordinal: u64) -> Step {
    Step::Replace { ordinal, hand_over: true }
}

fn message(step: Step) -> (&'static str, String) {
    match step {
        Step::Wait { reason, message, .. } => (reason, message),
        other => panic!("not a wait: {other:?}"),
    }
}

#[test]
fn pods_are_replaced_one_at_a_time_from_the_highest_number_down() {
    assert_eq!(decide(&seen(vec![pod(0, "old"), pod(1, "old"), pod(2, "old")])), takes(2));
    assert_eq!(decide(&seen(vec![pod(0, "old"), pod(1, "old"), pod(2, "new")])), takes(1));
    assert_eq!(decide(&seen(vec![pod(0, "old"), pod(1, "new"), pod(2, "new")])), takes(0));
    let done = seen(vec![pod(0, "new"), pod(1, "new"), pod(2, "new")]);
    assert_eq!(decide(&done), Step::Settled);
    assert_eq!(next(&done, &notes("new"), at(NOW)), Step::Idle);
}

#[test]
fn nothing_is_taken_away_while_the_last_new_pod_is_not_well() {
    let two = || vec![pod(0, "old"), pod(1, "old")];
    let ending = PodSeen { terminating: true, ..pod(2, "old") };
    for (third, words) in [
        (Some(unready(2, "new", NOW - 5)), "pod mc-2 is not well: it is not ready"),
        (Some(ending), "pod mc-2 is ending"),
        (None, "pod mc-2 is not there yet"),
    ] {
        let pods = two().into_iter().chain(third).collect();
        assert_eq!(message(decide(&seen(pods))), (reason::ROLLING_OUT, words.to_owned()));
    }
    let unknown = Seen { revision: None, ..seen(two()) };
    assert_eq!(message(decide(&unknown)).0, reason::ROLLING_OUT);
}

#[test]
fn a_new_pod_that_is_ready_now_and_then_is_not_well() {
    let ready = |since| PodSeen { since: at(since), ..pod(2, "new") };
    let with = |third| seen(vec![pod(0, "old"), pod(1, "old"), third]);
    let words = "pod mc-2 has been ready for less than 10 s";
    assert_eq!(message(decide(&with(ready(NOW - 9)))), (reason::ROLLING_OUT, words.to_owned()));
    assert_eq!(decide(&with(ready(NOW - 10))), takes(1));
    // The time that it has is counted from when the one before was taken away, however often it was ready since.
    let replacing = |since| Notes { replacing: Some(Replacing { ordinal: 2, since }), ..notes("old") };
    for third in [ready(NOW - 9), unready(2, "new", NOW - 1)] {
        assert!(matches!(next(&with(third.clone()), &replacing(NOW - 600), at(NOW)), Step::RollBack(_)));
        assert!(matches!(next(&with(third), &replacing(NOW - 599), at(NOW)), Step::Wait { .. }));
    }
}

#[test]
fn an_update_pauses_while_a_replica_is_lacking() {
    let with = |replication| Seen { replication, ..seen(vec![pod(0, "old"), pod(1, "old"), pod(2, "new")]) };
    let lacking = [
        (Ok(Replication { leaderless: 1, ..Replication::default() }), "1 groups have no leader"),
        (Ok(Replication { moving: 2, ..Replication::default() }), "2 groups change their members"),
        (
            Ok(Replication { lagging: [(2, 4)].into(), ..Replication::default() }),
            "4 groups wait for their replica on mc-2 to catch up",
        ),
        (
            Ok(Replication { silent: vec![1], ..Replication::default() }),
            "mailnode mc-1 does not say that it is ready",
        ),
        (Err("refused".to_owned()), "no mailnode could be asked: refused"),
    ];
    for (replication, words) in lacking {
        assert_eq!(message(decide(&with(replication))), (reason::UPDATE_PAUSED, words.to_owned()));
    }
}

#[test]
fn an_update_is_taken_back_when_the_new_pod_does_not_get_well_in_time() {
    let pods = |since| vec![pod(0, "old"), pod(1, "old"), broken(2, "new", since)];
    assert_eq!(message(decide(&seen(pods(NOW - 599)))).0, reason::ROLLING_OUT);
    let words = "pod mc-2 is not well: ErrImagePull: no such tag, for 600 s";
    assert_eq!(decide(&seen(pods(NOW - 600))), Step::RollBack(words.to_owned()));

    // A pod that cannot even be made is counted from when the one before was taken away.
    let missing = seen(vec![pod(0, "old"), pod(1, "old")]);
    let replacing = Some(Replacing { ordinal: 2, since: NOW - 600 });
    let step = next(&missing, &Notes { replacing, ..notes("old") }, at(NOW));
    assert_eq!(step, Step::RollBack("pod mc-2 is not there yet, for 600 s".to_owned()));
}

#[test]
fn there_is_no_way_back_without_a_template_before_or_below_the_format_level() {
    let failing = seen(vec![pod(0, "new"), pod(1, "new"), broken(2, "new", 0)]);
    let stuck = |step| matches!(step, Step::Stuck(_));
    assert!(stuck(next(&failing, &Notes::default(), at(NOW))), "the first template of all");
    let raised = Replication { level: 2, known: 2, ..Replication::default() };
    assert!(stuck(decide(&Seen { replication: Ok(raised), ..failing.clone() })), "the level was raised");
    assert!(matches!(decide(&failing), Step::RollBack(_)));
}

#[test]
fn a_level_that_was_seen_counts_also_when_nobody_answers_any_more() {
    let failing = seen(vec![pod(0, "new"), pod(1, "new"), broken(2, "new", 0)]);
    let level = |level| Ok(Replication { level, known: level, ..Replication::default() });
    let raised = noted(&Seen { replication: level(2), ..failing.clone() }, &notes("old"), at(NOW));
    assert_eq!(raised.level, Some(2));
    assert_eq!(Notes::read(Some(&raised.to_text())), raised, "it outlives the operator");
    let silent = Seen { replication: Err("refused".to_owned()), ..failing.clone() };
    assert_eq!(noted(&silent, &raised, at(NOW)), raised);
    assert_eq!(
        noted(&Seen { replication: level(1), ..failing.clone() }, &raised, at(NOW)),
        raised,
        "it only grows"
    );
    assert!(matches!(next(&silent, &raised, at(NOW)), Step::Stuck(why) if why.contains("format level 2")));
    assert!(matches!(next(&silent, &notes("old"), at(NOW)), Step::RollBack(_)), "none was raised");
}

#[test]
fn nothing_is_noted_while_no_update_is_under_way() {
    let raised = Ok(Replication { level: 2, known: 2, ..Replication::default() });
    let settled = Seen { replication: raised, ..seen(vec![pod(0, "new"), pod(1, "new"), lost(2, "new")]) };
    assert_eq!(noted(&settled, &notes("new"), at(NOW)), notes("new"));
    let updating = seen(vec![pod(0, "old"), pod(1, "old"), pod(2, "new")]);
    assert_eq!(noted(&updating, &notes("old"), at(NOW)), notes("old"), "nor what is as it was");
}

/// A pod on a Kubernetes node that does not answer.
fn lost(ordinal: u64, revision: &str) -> PodSeen {
    PodSeen { lost: Some("Kubernetes node n2 does not answer".into()), ..unready(ordinal, revision, 0) }
}

#[test]
fn an_update_waits_for_a_kubernetes_node_that_is_lost_and_is_not_taken_back() {
    let words = "pod mc-2: Kubernetes node n2 does not answer";
    let replacing = Notes { replacing: Some(Replacing { ordinal: 2, since: 0 }), ..notes("old") };
    let ending = PodSeen { terminating: true, ..lost(2, "old") };
    for third in [lost(2, "new"), lost(2, "old"), ending] {
        let seen = seen(vec![pod(0, "old"), pod(1, "old"), third]);
        assert_eq!(message(next(&seen, &replacing, at(NOW))), (reason::UPDATE_PAUSED, words.to_owned()));
    }
    // Another pod may lack a majority meanwhile; one whose process does not run is to blame all the same.
    let other = |second| seen(vec![pod(0, "old"), second, lost(2, "new")]);
    assert_eq!(message(decide(&other(unready(1, "new", 0)))).0, reason::UPDATE_PAUSED);
    assert!(matches!(decide(&other(broken(1, "new", 0))), Step::RollBack(_)));
}

#[test]
fn the_time_of_a_new_pod_counts_from_when_its_node_was_found_again() {
    let with = |third| seen(vec![pod(0, "old"), pod(1, "old"), third]);
    let replacing = Notes { replacing: Some(Replacing { ordinal: 2, since: 0 }), ..notes("old") };
    let away = noted(&with(lost(2, "new")), &replacing, at(NOW));
    assert_eq!((away.lost.clone(), away.resumed), ([2].into(), None));
    assert_eq!(noted(&with(lost(2, "new")), &away, at(NOW + 50)), away, "written once");
    let found = with(unready(2, "new", 0));
    let back = noted(&found, &away, at(NOW + 100));
    assert_eq!((back.lost.len(), back.resumed), (0, Some(NOW + 100)));
    assert_eq!(noted(&found, &back, at(NOW + 200)), back, "written once");
    assert!(matches!(next(&found, &back, at(NOW + 699)), Step::Wait { .. }));
    assert!(matches!(next(&found, &back, at(NOW + 700)), Step::RollBack(_)));
}

#[test]
fn replicas_that_never_catch_up_are_told_of_and_waited_for() {
    let lagging = Ok(Replication { lagging: [(2, 4)].into(), ..Replication::default() });
    let behind = Seen { replication: lagging, ..seen(vec![pod(0, "old"), pod(1, "old"), pod(2, "new")]) };
    let mut kept = notes("old");
    let mut overdue =
        |now| match timed(next(&behind, &kept.clone(), at(now)), &mut kept, behind.deadline, at(now)) {
            Step::Wait { reason, overdue, .. } => (reason, overdue),
            other => panic!("not a wait: {other:?}"),
        };
    assert_eq!(overdue(NOW), (reason::UPDATE_PAUSED, false));
    assert_eq!(overdue(NOW + 599), (reason::UPDATE_PAUSED, false));
    assert_eq!(overdue(NOW + 600), (reason::UPDATE_PAUSED, true));
    assert_eq!(overdue(NOW + 100_000), (reason::UPDATE_PAUSED, true), "it is never taken back for it");
    assert_eq!(kept.waits, Some(NOW));
    assert_eq!(timed(takes(1), &mut kept, behind.deadline, at(NOW + 100_000)), takes(1));
    assert_eq!(kept, notes("old"), "what goes on waits no more");
}

#[test]
fn after_an_update_was_taken_back_only_the_pod_that_failed_is_replaced() {
    // The template in place is the one before again.
    let back =
        |third| Seen { revision: Some("old".into()), ..seen(vec![pod(0, "old"), pod(1, "old"), third]) };
    let replaced = Step::Replace { ordinal: 2, hand_over: false };
    assert_eq!(decide(&back(broken(2, "new", 0))), replaced, "its process does not run");
    let mut hangs = back(unready(2, "new", NOW - 600));
    hangs.replication =
        Ok(Replication { silent: vec![2], lagging: [(2, 9)].into(), ..Replication::default() });
    assert_eq!(decide(&hangs), replaced, "it runs and is not ready");
    assert_eq!(decide(&back(pod(2, "old"))), Step::Idle);
}

#[test]
fn pods_that_run_are_not_taken_away_because_they_lost_their_majority() {
    let lost = Seen {
        replication: Ok(Replication { leaderless: 17, silent: vec![0, 1, 2], ..Replication::default() }),
        ..seen(vec![unready(0, "old", 0), unready(1, "old", 0), unready(2, "old", 0)])
    };
    assert_eq!(message(decide(&lost)).0, reason::UPDATE_PAUSED);
    let one = Seen {
        replication: lost.replication.clone(),
        ..seen(vec![pod(0, "old"), pod(1, "old"), unready(2, "old", 0)])
    };
    assert_eq!(message(decide(&one)).0, reason::UPDATE_PAUSED, "others lack replicas too");
}

#[test]
fn nodes_beyond_those_that_are_to_run_are_nobodys_concern() {
    let pods = vec![pod(0, "new"), pod(1, "new"), pod(2, "new"), broken(3, "old", 0)];
    assert_eq!(decide(&seen(pods)), Step::Settled);
}

#[test]
fn what_is_lacking_is_read_from_what_the_mailnodes_tell() {
    let node = |node, ready| NodeReport {
        node,
        reachable: true,
        status: Some(NodeStatus { ready, level: 1, max_level: 2, ..NodeStatus::default() }),
        ..NodeReport::default()
    };
    let group = |group, leader, in_sync: &[u64]| GroupStatus {
        group,
        leader,
        voters: vec![0, 1, 2],
        in_sync: in_sync.to_vec(),
        ..GroupStatus::default()
    };
    let told = ClusterStatus {
        nodes: (0..3).map(|n| node(n, n != 1)).collect(),
        partitions: 2,
        ..Default::default()
    };
    let reports = [group(0, Some(0), &[0, 1, 2]), group(1, Some(0), &[0, 2]), group(2, None, &[])];
    let found = Replication::of(&told, &reports.iter().map(|group| (group.group, group)).collect());
    let expected = Replication {
        leaderless: 1,
        lagging: [(1, 1)].into(),
        moving: 0,
        silent: vec![1],
        level: 1,
        known: 2,
    };
    assert_eq!(found, expected);
}

#[test]
fn a_pod_tells_why_its_process_does_not_run() {
    let text = "{metadata: {name: mc-1, creationTimestamp: '2026-01-01T00:00:00Z', labels: {controller-revision-hash: r}}, status: {
        conditions: [{type: Ready, status: 'False', lastTransitionTime: '2026-01-01T00:01:00Z'}],
        containerStatuses: [{name: mailnode, image: i, imageID: i, ready: false, restartCount: 3,
          state: {waiting: {reason: CrashLoopBackOff, message: back-off}},
          lastState: {terminated: {exitCode: 1, reason: Error, message: \"one\\nno such setting\\n\"}}}]}}";
    let of =
        |text: &str| PodSeen::of(&serde_yaml::from_str(text).unwrap(), &BTreeSet::new(), at(NOW)).unwrap();
    let seen = of(text);
    assert_eq!((seen.ordinal, seen.ready, seen.revision.as_str()), (1, false, "r"));
    assert_eq!(seen.since, "2026-01-01T00:01:00Z".parse::<Timestamp>().unwrap());
    let words = "CrashLoopBackOff: back-off; its process ended with 1 (Error), last words: no such setting";
    assert_eq!(seen.trouble(), words);
    let starting = text.replace("CrashLoopBackOff", "ContainerCreating");
    assert_eq!(of(&starting).broken, None);
}

#[test]
fn notes_that_cannot_be_read_are_as_if_never_written() {
    assert_eq!(Notes::read(None), Notes::default());
    assert_eq!(Notes::read(Some(&"nonsense".to_owned())), Notes::default());
    assert_eq!(Notes::read(Some(&notes("r").to_text())), notes("r"));
}
