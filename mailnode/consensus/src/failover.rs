//! What survivors do when the process that led a group is known to be gone: elect another leader now, instead of when the
//! lease has run out.
//!
//! Every survivor releases its own lease of the lost leader, so that it may be asked for its vote, and one of them, the
//! same in everybody's eyes, asks first. It asks with a pre-vote: a voter that still hears the leader has not released its
//! lease and refuses, so an alarm that is false at a minority changes nothing. No clock is trusted for reads (they are
//! confirmed by a majority), so releasing a lease endangers nothing either.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;

use crate::group::{Group, Leader};
use crate::machine::NodeId;
use crate::node::Inner;
use crate::types::Vote;

/// To whom a lease is released that nobody takes over: no node has this number.
const NOBODY: NodeId = NodeId::MAX;
/// The first survivor in line asks at once, each other one so much later than the one before it.
const TURN: Duration = Duration::from_millis(60);
/// Between two pre-votes: the others may notice the loss a little later.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Pre-votes asked for by one survivor. After that the timeouts of the engine take over.
const ATTEMPTS: usize = 10;

/// A process has ended: the groups that it led need another leader.
pub(crate) fn process_lost(node: &Arc<Inner>, peer: NodeId, reason: &str) {
    node.counters.process_lost();
    tracing::warn!(peer, reason, "a peer's process is gone");
    for group in node.groups() {
        let leader = *group.leader.borrow();
        if leader.node == Some(peer) {
            node.run(succeed(node.clone(), group.clone(), leader));
        } else if leader.node == Some(node.config.node) && group.quiet.is_asleep() {
            let (node, group) = (node.clone(), group.clone());
            node.clone().run(async move { node.wake(&group).await });
        }
    }
}

/// Releases the lease of the lost leader and, in turn, tries to become its successor.
async fn succeed(node: Arc<Inner>, group: Arc<Group>, lost: Leader) {
    let Some(vote) = vote_of(&group, lost) else { return };
    group.release_lease(lost.term);
    group.wake().await;
    let release = TransferLeaderRequest::new(vote, NOBODY, None);
    if group.raft.handle_transfer_leader(release).await.is_err() {
        return;
    }
    let Some(turn) = turn(&node, &group, lost) else { return };
    let mut leader = group.leader.subscribe();
    let mut replaced = async |within: Duration| {
        tokio::time::timeout(within, leader.wait_for(|now| *now != lost)).await.is_ok()
    };
    if turn > 0 && replaced(TURN * turn).await {
        return;
    }
    for _ in 0..ATTEMPTS {
        if node.is_leaving() || !group.log.is_proven() || group.raft.trigger().elect(true).await.is_err() {
            return;
        }
        if replaced(ASK_AGAIN).await {
            return;
        }
    }
}

/// The lost leader's vote as this replica holds it; none when it has a newer one.
fn vote_of(group: &Group, lost: Leader) -> Option<Vote> {
    let metrics = group.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let vote = metrics.vote;
    let is_its = metrics.current_leader == lost.node && vote.committed && vote.leader_id.term == lost.term;
    is_its.then_some(vote)
}

/// How many survivors come before this node; none when it does not vote. Those whose pulse has stopped are passed over.
fn turn(node: &Inner, group: &Group, lost: Leader) -> Option<u32> {
    let metrics = group.raft.server_metrics();
    let mut voters: Vec<NodeId> = metrics.borrow_watched().membership_config.voter_ids().collect();
    let preferred = *group.preferred.lock();
    voters.sort_by_key(|voter| (node.has_slow_disk(*voter), Some(*voter) != preferred, *voter));
    let lives = |voter: &NodeId| {
        let pulse = node.links.get(*voter).map(|link| link.pulse.is_fresh(node.config.lease()));
        *voter == node.config.node || pulse.unwrap_or(false)
    };
    voters.retain(|voter| Some(*voter) != lost.node && lives(voter));
    let turn = voters.iter().position(|voter| *voter == node.config.node)?;
    Some(u32::try_from(turn).unwrap_or(u32::MAX))
}
