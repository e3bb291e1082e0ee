use k8s_openapi::api::apps::v1::StatefulSetStatus;
use quorumail_crds::condition::find;
use quorumail_proto::admin::{NodeReport, NodeStatus as Told};

use super::*;

fn cluster(spec: &str) -> MailCluster {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {{name: mc, namespace: ns, generation: 4}}, spec: {spec}}}"
    );
    serde_yaml::from_str(&text).unwrap()
}

fn node(number: u64, reachable: bool) -> NodeReport {
    let status =
        reachable.then(|| Told { node: number, version: "1.0".into(), ready: true, ..Told::default() });
    NodeReport { node: number, reachable, status, ..NodeReport::default() }
}

fn group(number: u32, leader: Option<u64>, in_sync: u64) -> GroupStatus {
    GroupStatus {
        group: number,
        voters: vec![0, 1, 2],
        leader,
        term: 1,
        in_sync: (0..in_sync).collect(),
        ..GroupStatus::default()
    }
}

fn told(reachable: [bool; 3], groups: Vec<GroupStatus>) -> Observation {
    let nodes = (0..).zip(reachable).map(|(n, r)| node(n, r)).collect();
    Observation {
        told: Some(Ok(ClusterStatus { nodes, groups, partitions: 2, ..ClusterStatus::default() })),
        ..Observation::default()
    }
}

fn healthy() -> Vec<GroupStatus> {
    (0..=2).map(|g| group(g, Some(0), 3)).collect()
}

fn condition(seen: &Observation, kind: &str) -> (String, String) {
    let status = status(&cluster("{partitions: 2}"), seen, Timestamp::now());
    let found = find(&status.conditions, kind).unwrap();
    assert_eq!(found.observed_generation, Some(4));
    (found.status.clone(), found.reason.clone())
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_healthy_cluster_is_ready_and_not_degraded() {
    let seen = told([true; 3], healthy());
    assert_eq!(condition(&seen, kind::READY), pair("True", reason::QUORUM));
    assert_eq!(condition(&seen, kind::DEGRADED), pair("False", reason::ALL_HEALTHY));
    let status = status(&cluster("{partitions: 2}"), &seen, Timestamp::now());
    assert_eq!((status.ready_nodes, status.version.as_deref()), (3, Some("1.0")));
    let counts = PartitionsStatus { total: 2, available: 2, ..PartitionsStatus::default() };
    assert_eq!(status.partitions, Some(counts));
}

#[test]
fn a_lost_node_degrades_and_does_not_stop() {
    let seen = told([true, true, false], (0..=2).map(|g| group(g, Some(0), 2)).collect());
    assert_eq!(condition(&seen, kind::READY), pair("True", reason::QUORUM));
    assert_eq!(condition(&seen, kind::DEGRADED), pair("True", reason::NODES_NOT_READY));
}

#[test]
fn the_condition_says_what_to_do_about_a_kubernetes_node_that_is_lost() {
    let mut seen = told([true, true, false], (0..=2).map(|g| group(g, Some(0), 2)).collect());
    seen.lost = [("mc-2".to_owned(), "Kubernetes node n2 does not answer".to_owned())].into();
    let status = status(&cluster("{partitions: 2}"), &seen, Timestamp::now());
    let text = &find(&status.conditions, kind::DEGRADED).unwrap().message;
    assert_eq!(text, "1 of 3 mailnodes are not ready; pod mc-2: Kubernetes node n2 does not answer");
}

#[test]
fn an_update_that_waits_for_too_long_degrades() {
    let mut seen = told([true; 3], healthy());
    let wait = |overdue| Step::Wait { reason: reason::UPDATE_PAUSED, message: "it lags".into(), overdue };
    seen.step = Some(wait(false));
    assert_eq!(condition(&seen, kind::DEGRADED), pair("False", reason::ALL_HEALTHY));
    seen.step = Some(wait(true));
    assert_eq!(condition(&seen, kind::DEGRADED), pair("True", reason::UPDATE_PAUSED));
}

#[test]
fn nothing_is_ready_without_a_majority() {
    let seen = told([true, false, false], healthy());
    assert_eq!(condition(&seen, kind::READY), pair("False", reason::NO_QUORUM));
}

#[test]
fn nothing_is_ready_while_a_group_has_no_leader() {
    for leaderless in 0..=2 {
        let groups = (0..=2).map(|g| group(g, (g != leaderless).then_some(0), 3)).collect();
        assert_eq!(condition(&told([true; 3], groups), kind::READY), pair("False", reason::LEADERLESS));
    }
    let unreported = told([true; 3], vec![group(0, Some(0), 3), group(1, Some(0), 3)]);
    assert_eq!(condition(&unreported, kind::READY), pair("False", reason::LEADERLESS));
}

#[test]
fn silence_is_not_health() {
    let seen = Observation { told: Some(Err("connection refused".into())), ..Observation::default() };
    assert_eq!(condition(&seen, kind::READY), pair("False", reason::NOT_REACHABLE));
    assert_eq!(condition(&seen, kind::DEGRADED), pair("Unknown", reason::NOT_REACHABLE));
    assert_eq!(condition(&Observation::default(), kind::READY), pair("False", reason::NOT_REACHABLE));
}

#[test]
fn the_report_of_the_leader_counts() {
    let mut groups = healthy();
    groups.push(group(1, Some(0), 0));
    assert_eq!(condition(&told([true; 3], groups), kind::DEGRADED), pair("False", reason::ALL_HEALTHY));
}

#[test]
fn pausing_keeps_what_was_observed() {
    let mut cluster = cluster("{partitions: 2}");
    cluster.status = Some(status(&cluster, &told([true; 3], healthy()), Timestamp::now()));
    let paused = paused(&cluster, Timestamp::now());
    assert_eq!(find(&paused.conditions, kind::PAUSED).unwrap().status, "True");
    assert_eq!(find(&paused.conditions, kind::READY).unwrap().status, "True");
    assert_eq!(paused.ready_nodes, 3);
}

#[test]
fn a_cluster_that_grows_is_ready_and_progressing_while_replicas_move() {
    let mut seen = told([true; 3], (0..=2).map(|g| group(g, Some(0), 1)).collect());
    let shape = Shape { generation: 2, founders: 1, staying: 3, running: 3 };
    let status = StatefulSetStatus { ready_replicas: Some(3), ..StatefulSetStatus::default() };
    seen.nodes = Some(StatefulSet { status: Some(status), ..StatefulSet::default() });
    seen.shape = Some(shape);
    if let Some(Ok(told)) = &mut seen.told {
        told.moving = 2;
        told.groups.iter_mut().for_each(|group| group.voters = vec![0]);
    }
    assert_eq!(condition(&seen, kind::READY), pair("True", reason::QUORUM));
    assert_eq!(condition(&seen, kind::PROGRESSING), pair("True", reason::MOVING));
}
