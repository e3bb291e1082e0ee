//! Status of this node and of the cluster.

use std::{collections::BTreeMap, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use quorumail_proto::admin::{
    ClusterStatus, GetNodeStatusRequest, GroupStatus, NodeReport, NodeStatus, admin_client::AdminClient,
};

use super::AdminService;
use crate::{channels, config::Peer};

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
    let groups = service.groups.consensus.status().into_iter().map(|status| GroupStatus {
        group: status.group.0,
        voters: status.voters,
        learners: status.learners,
        leader: status.leader,
        term: status.term,
        last_log_index: status.last_log_index.unwrap_or(0),
        applied_index: status.applied_index.unwrap_or(0),
        in_sync: status.in_sync.unwrap_or_default(),
    });
    let version = env!("CARGO_PKG_VERSION").to_owned();
    NodeStatus { node: service.node, version, ready, reason, groups: groups.collect() }
}

/// What all nodes see that answer in time.
pub(super) async fn of_cluster(service: &AdminService) -> ClusterStatus {
    let reports = service.peers.iter().map(|peer| report(service, peer).boxed());
    let reports = futures::stream::iter(reports.collect::<Vec<_>>()).buffered(PEERS_AT_ONCE);
    let nodes: Vec<NodeReport> = reports.collect().await;
    let groups = merge(nodes.iter().filter_map(|report| report.status.as_ref()));
    ClusterStatus { nodes, groups, partitions: service.groups.partitions }
}

async fn report(service: &AdminService, peer: &Peer) -> NodeReport {
    let status = if peer.node == service.node {
        Some(of_node(service))
    } else {
        tokio::time::timeout(PEER_WITHIN, ask(service, peer)).await.ok().flatten()
    };
    NodeReport { node: peer.node, address: peer.admin.clone(), reachable: status.is_some(), status }
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
}
