//! Status of this node and of the cluster.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use quorumail_consensus::{GroupProgress, Peer, Progress};
use quorumail_proto::admin::{
    CertificateHealth, ClusterStatus, GetNodeStatusRequest, GroupPlan, GroupStatus, NodeHealth, NodeReport,
    NodeStatus, Plan, QueueHealth, admin_client::AdminClient,
};

use quorumail_store::Timestamp;

use super::{AdminService, queue::class_out};
use crate::{channels, groups::DIRECTORY, topology};

/// For a peer to tell its status.
const PEER_WITHIN: Duration = Duration::from_secs(2);
/// Peers asked at a time.
const PEERS_AT_ONCE: usize = 16;

/// What this node sees.
pub(super) fn of_node(service: &AdminService) -> NodeStatus {
    let (ready, reason) = match &*service.ready.borrow() {
        Ok(()) => (true, String::new()),
        Err(reason) => (false, reason.clone()),
    };
    let consensus = &service.groups.consensus;
    let groups = consensus.status().into_iter().map(|status| GroupStatus {
        group: status.group.0,
        voters: status.voters,
        learners: status.learners,
        leader: status.leader,
        term: status.term,
        last_log_index: status.last_log_index.unwrap_or(0),
        applied_index: status.applied_index.unwrap_or(0),
        in_sync: status.in_sync.unwrap_or_default(),
        ..GroupStatus::default()
    });
    NodeStatus {
        node: service.node,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready,
        reason,
        groups: groups.collect(),
        generation: consensus.watch_topology().borrow().generation,
        plan: consensus.progress().map(plan),
        level: consensus.level(),
        max_level: consensus.levels().max,
        health: Some(health(service)),
    }
}

fn health(service: &AdminService) -> NodeHealth {
    let consensus = service.groups.consensus.metrics();
    let rotten_log = service.scrub.open.load(Relaxed);
    let certificate = |section: &str, not_after: Option<i64>| CertificateHealth {
        section: section.to_owned(),
        not_after: not_after.unwrap_or(0),
    };
    let queue = |(class, (recipients, oldest)): (_, (u64, Option<Timestamp>))| QueueHealth {
        class: class_out(class).into(),
        recipients,
        oldest: oldest.map(|at| at.0),
    };
    NodeHealth {
        disk_free_bytes: service.disk.free(),
        disk_size_bytes: service.disk.size(),
        disk_room: service.disk.room().allows(),
        slow_disk: consensus.disk_is_slow,
        unreadable_replicas: consensus.unreadable_replicas,
        unrepaired: service.repairer.open().len() as u64 + rotten_log,
        certificates: vec![
            certificate("public", service.public_tls.not_after()),
            certificate("internal", service.tls.not_after()),
        ],
        queues: service.groups.queue_totals().into_iter().map(queue).collect(),
    }
}

fn plan(progress: Progress) -> Plan {
    let group = |group: GroupProgress| GroupPlan {
        group: group.group.0,
        target: group.target,
        done: group.done,
        step: group.step,
    };
    Plan {
        generation: progress.generation,
        groups: progress.groups.into_iter().map(group).collect(),
        paused: progress.paused.unwrap_or_default(),
    }
}

/// What all nodes see that answer in time.
pub(super) async fn of_cluster(service: &AdminService) -> ClusterStatus {
    let topology = service.groups.consensus.watch_topology().borrow().clone();
    let reports = topology.nodes.iter().map(|peer| report(service, peer).boxed());
    let reports = futures::stream::iter(reports.collect::<Vec<_>>()).buffered(PEERS_AT_ONCE);
    let nodes: Vec<NodeReport> = reports.collect().await;
    let groups = merge(nodes.iter().filter_map(|report| report.status.as_ref()));
    let topology = Some(topology::to_admin(&topology));
    let partitions = service.groups.partitions;
    let cluster = service.cluster.clone();
    let mut status =
        ClusterStatus { nodes, groups, partitions, topology, cluster, ..ClusterStatus::default() };
    add_plan(&mut status);
    status
}

/// Adds what the node says that plans where replicas move to: of several that believe to, the one with the newest topology.
fn add_plan(status: &mut ClusterStatus) {
    let plans = status.nodes.iter().filter_map(|report| report.status.as_ref()?.plan.clone());
    let Some(plan) = plans.max_by_key(|plan| plan.generation) else { return };
    for group in &mut status.groups {
        let Some(planned) = plan.groups.iter().find(|planned| planned.group == group.group) else { continue };
        group.target.clone_from(&planned.target);
        group.moving = !planned.done;
        group.step.clone_from(&planned.step);
    }
    let partitions = || status.groups.iter().filter(|group| group.group != DIRECTORY.0);
    for report in &mut status.nodes {
        let node = report.node;
        let count = |holds: &dyn Fn(&GroupStatus) -> bool| {
            u32::try_from(partitions().filter(|group| holds(group)).count()).unwrap_or(u32::MAX)
        };
        report.replicas = count(&|group| group.voters.contains(&node) || group.learners.contains(&node));
        report.target_replicas = count(&|group| group.target.contains(&node));
        report.placed_replicas = count(&|group| group.target.contains(&node) && group.voters.contains(&node));
    }
    // A topology that the planning node has not seen yet has everything before it.
    let known = status.topology.as_ref().map_or(0, |topology| topology.generation);
    status.moving = match plan.generation < known {
        true => u32::try_from(plan.groups.len()).unwrap_or(u32::MAX),
        false => u32::try_from(plan.groups.iter().filter(|group| !group.done).count()).unwrap_or(u32::MAX),
    };
    status.paused = plan.paused;
}

async fn report(service: &AdminService, peer: &Peer) -> NodeReport {
    let status = if peer.id == service.node {
        Some(of_node(service))
    } else {
        tokio::time::timeout(PEER_WITHIN, ask(service, peer)).await.ok().flatten()
    };
    NodeReport {
        node: peer.id,
        address: peer.admin.clone(),
        reachable: status.is_some(),
        status,
        zone: peer.zone.clone(),
        leaving: peer.leaving,
        ..NodeReport::default()
    }
}

async fn ask(service: &AdminService, peer: &Peer) -> Option<NodeStatus> {
    let channel = channels::channel(&service.tls, &peer.admin).ok()?;
    let answer = AdminClient::new(channel).get_node_status(GetNodeStatusRequest {}).await;
    answer.ok().map(tonic::Response::into_inner)
}

/// One status for each group: its leader's, for that one knows who is in sync; without one the status of the node that
/// is furthest.
fn merge<'a>(nodes: impl Iterator<Item = &'a NodeStatus>) -> Vec<GroupStatus> {
    let mut groups: BTreeMap<u32, ((bool, u64, u64), &GroupStatus)> = BTreeMap::new();
    for node in nodes {
        for status in &node.groups {
            let rank = (status.leader == Some(node.node), status.term, status.applied_index);
            match groups.get(&status.group) {
                Some((known, _)) if *known >= rank => {}
                _ => drop(groups.insert(status.group, (rank, status))),
            }
        }
    }
    groups.into_values().map(|(_, status)| status.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: u64, leader: Option<u64>, term: u64, applied_index: u64) -> NodeStatus {
        let group = GroupStatus { group: 1, leader, term, applied_index, ..Default::default() };
        NodeStatus { node, groups: vec![group], ..Default::default() }
    }

    #[test]
    fn the_leader_s_word_on_its_group_counts() {
        let nodes = [node(0, Some(1), 3, 9), node(1, Some(1), 3, 8), node(2, None, 4, 9)];
        let merged = merge(nodes.iter());
        assert_eq!((merged.len(), merged[0].leader, merged[0].applied_index), (1, Some(1), 8));
    }

    #[test]
    fn of_two_that_believe_to_lead_the_later_term_counts() {
        let nodes = [node(0, Some(0), 3, 9), node(1, Some(1), 4, 8)];
        assert_eq!(merge(nodes.iter())[0].leader, Some(1));
    }

    #[test]
    fn progress_is_told_for_every_node_and_group() {
        let mut told = node(0, Some(0), 3, 9);
        told.groups[0].voters = vec![0];
        told.groups[0].learners = vec![1];
        let group = GroupPlan { group: 1, target: vec![0, 1], done: false, step: "catching up".to_owned() };
        told.plan = Some(Plan { generation: 2, groups: vec![group], paused: String::new() });
        let report = |node, status| NodeReport { node, status, ..NodeReport::default() };
        let groups = merge([&told].into_iter());
        let nodes = vec![report(0, Some(told)), report(1, None)];
        let mut status = ClusterStatus { nodes, groups, ..ClusterStatus::default() };
        add_plan(&mut status);
        let counts = |report: &NodeReport| (report.replicas, report.target_replicas, report.placed_replicas);
        assert_eq!(status.nodes.iter().map(counts).collect::<Vec<_>>(), [(1, 1, 1), (1, 1, 0)]);
        assert_eq!((status.moving, status.groups[0].moving), (1, true));
        assert_eq!(status.groups[0].step, "catching up");
    }
}
