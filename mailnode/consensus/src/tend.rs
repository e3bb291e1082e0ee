//! What goes on by itself on a node: groups are bootstrapped, leaders watched, leads balanced and handed over,
//! learners added, the state machine checkpointed and old log purged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use crate::group::{Group, Leader};
use crate::machine::{GroupId, NodeId};
use crate::node::Inner;
use crate::runtime::offload;
use crate::types::Raft;

/// Between two questions whether the other voters are there, when a group may have to be bootstrapped.
const BOOTSTRAP_PAUSE: Duration = Duration::from_millis(100);
/// How often leads, memberships and failures are looked at.
const TEND_INTERVAL: Duration = Duration::from_millis(500);
/// The preferred leader must have been in sync for so long before it is given the lead.
const HEALTHY_BEFORE_LEAD: Duration = Duration::from_secs(3);
/// After an attempt to give a group's lead away, the next one waits for so long.
const TRANSFER_PAUSE: Duration = Duration::from_secs(10);
/// How long a transfer may take before another replica is tried.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(1500);
/// Between two looks whether a transfer has succeeded or a replica is ready for one.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(50);
/// For the leads to move away from a node that must not write any more, and before the next try.
const READ_ONLY_HAND_OVER: Duration = Duration::from_secs(10);
const READ_ONLY_PAUSE: Duration = Duration::from_secs(5);
/// How long the engine may take to note how far the state machine is, before the purge is left to the next time.
const MARK_PATIENCE: Duration = Duration::from_secs(5);

impl Inner {
    /// Starts the tasks; they end with `stop`.
    pub(crate) fn tend(self: Arc<Self>) {
        for group in self.groups() {
            self.run(watch_leader(self.clone(), group.clone()));
            if !group.log.is_proven() {
                self.run(crate::memory::regain(self.clone(), group.clone()));
                let group = group.clone();
                self.run(async move { group.prove_when_caught_up().await });
            }
            if group.placement.voters[0] == self.config.node && !group.log.is_initialised() {
                self.run(bootstrap(self.clone(), group.clone()));
            }
        }
        for link in self.links.all() {
            self.run(crate::pulse::keep(self.clone(), link.clone()));
        }
        self.run(crate::quiet::tend(self.clone()));
        self.run(checkpoints(self.clone()));
        self.run(tend_groups(self.clone()));
    }

    pub(crate) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn publish_leads(&self) {
        let mine = |group: &&Arc<Group>| group.leader.borrow().node == Some(self.config.node);
        let led: Vec<GroupId> = self.groups().filter(mine).map(|group| group.id).collect();
        self.leads.send_if_modified(|known| {
            let changed = *known != led;
            *known = led;
            changed
        });
    }
}

fn current_leader(raft: &Raft) -> Leader {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    Leader { node: metrics.current_leader, term: metrics.vote.leader_id.term }
}

async fn watch_leader(node: Arc<Inner>, group: Arc<Group>) {
    let mut metrics = group.raft.server_metrics();
    loop {
        let leader = current_leader(&group.raft);
        let before = group.leader.send_replace(leader);
        if before != leader {
            group.wake().await;
            let me = Some(node.config.node);
            let (group, term) = (group.id.0, leader.term);
            match (before.node == me, leader.node == me) {
                (false, true) => {
                    node.counters.lead_won();
                    tracing::info!(group, term, "this node leads the group");
                }
                (true, false) => {
                    node.counters.lead_lost();
                    tracing::info!(group, term, leader = ?leader.node, "this node leads the group no longer");
                }
                _ if before.node != leader.node => {
                    tracing::debug!(group, term, leader = ?leader.node, "the group's leader has changed");
                }
                _ => {}
            }
            node.publish_leads();
        }
        if metrics.changed().await.is_err() {
            // It is told before it happens when the node stops; otherwise the engine broke, and says no more.
            if !node.stop.is_cancelled() {
                node.fatal.report(format!("the engine of group {} has ended", group.id.0));
            }
            return;
        }
    }
}

/// Founds a group, unless it exists somewhere already.
///
/// The group is founded once so many of its other voters have said that they do not know it that, had it existed, one
/// of them would: a majority of the voters, this node not counted. It has no say in this because it may have lost its
/// disk.
async fn bootstrap(node: Arc<Inner>, group: Arc<Group>) {
    let voters = &group.placement.voters;
    let others: Vec<NodeId> = voters.iter().copied().filter(|voter| *voter != node.config.node).collect();
    let needed = (voters.len() / 2 + 1).min(others.len());
    loop {
        if group.log.is_initialised() {
            return;
        }
        let replies = futures::future::join_all(others.iter().map(|voter| node.hello(*voter))).await;
        let replies: Vec<_> = replies.into_iter().flatten().collect();
        if let Some(reply) = replies.iter().find(|reply| reply.initialised.contains(&group.id.0)) {
            tracing::info!(
                group = group.id.0,
                known_to = reply.node,
                "the group exists; waiting for its leader"
            );
            return;
        }
        if replies.len() >= needed {
            break;
        }
        tokio::time::sleep(BOOTSTRAP_PAUSE).await;
    }
    group.log.prove().await;
    let members: BTreeMap<NodeId, openraft::EmptyNode> =
        voters.iter().map(|voter| (*voter, openraft::EmptyNode {})).collect();
    match group.raft.initialize(members).await {
        Ok(()) => tracing::info!(group = group.id.0, ?voters, "founded the group"),
        Err(error) => tracing::info!(group = group.id.0, %error, "the group was not founded"),
    }
    group.raft.runtime_config().elect(!node.is_leaving());
}

async fn checkpoints(node: Arc<Inner>) {
    let mut ticks = tokio::time::interval(node.config.checkpoint_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        // What was applied before the checkpoint began is what the checkpoint covers for certain.
        let applied = |group: &Arc<Group>| {
            let applied = group.applied.borrow().last.map(|id| id.index);
            applied.map(|applied| (group.clone(), applied))
        };
        let covered: Vec<(Arc<Group>, u64)> = node.groups().filter_map(applied).collect();
        let machine = node.machine.clone();
        match offload(move || machine.checkpoint()).await {
            Ok(Ok(())) => node.counters.checkpointed(),
            Ok(Err(error)) => return node.fatal.report(error.to_string()),
            Err(error) => return node.fatal.report(format!("checkpoint did not finish: {error}")),
        }
        for (group, applied) in covered {
            purge(&node, &group, applied).await;
        }
        move_floor(&node).await;
    }
}

/// Moves the journal's floor up to the oldest segment that the log of a group needs, if it has moved at all. Before that
/// each group writes down what the records below add up to.
async fn move_floor(node: &Arc<Inner>) {
    let newest = node.journal.last_of_log(0);
    let oldest = node.groups().filter_map(|group| group.log.oldest_segment()).chain(node.pinned);
    let floor = oldest.min().unwrap_or(newest).min(newest);
    if floor <= node.journal.stats().floor {
        return;
    }
    // All at once: they share a sync.
    let bases = futures::future::join_all(node.groups().map(|group| group.log.write_base())).await;
    let Some(needed) = bases.into_iter().collect::<Option<Vec<u64>>>() else { return };
    let floor = needed.into_iter().fold(floor, u64::min);
    let journal = node.journal.clone();
    match offload(move || journal.set_floor(floor)).await {
        Ok(Ok(())) => tracing::debug!(floor, "moved the floor of the journal"),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
            tracing::warn!("the disk is too full to move the floor of the journal");
        }
        Ok(Err(error)) => node.fatal.report(format!("the floor of the journal could not be moved: {error}")),
        Err(error) => node.fatal.report(format!("moving the floor of the journal did not finish: {error}")),
    }
}

/// Purges the applied and checkpointed log that is beyond the retention.
async fn purge(node: &Inner, group: &Group, applied: u64) {
    let retention = node.config.log_retention;
    let oldest = node.journal.last_of_log(retention.bytes);
    let Some(upto) = group.log.purge_point(applied, retention.entries, oldest) else { return };
    // The engine purges only what it knows to be in a snapshot; the state machine is one.
    let marked = async {
        group.raft.trigger().snapshot().await.ok()?;
        let mut metrics = group.raft.metrics();
        while metrics.borrow_watched().snapshot.is_none_or(|id| id.index < upto) {
            metrics.changed().await.ok()?;
        }
        group.raft.trigger().purge_log(upto).await.ok()
    };
    match tokio::time::timeout(MARK_PATIENCE, marked).await {
        Ok(Some(())) => tracing::debug!(group = group.id.0, upto, "purging the log"),
        Ok(None) => {}
        Err(_) => tracing::warn!(group = group.id.0, upto, "the log could not be purged in time"),
    }
}

/// What the leader of a group remembers of its preferred leader.
#[derive(Default)]
struct Watched {
    in_sync_since: Option<Instant>,
    tried: Option<Instant>,
}

async fn tend_groups(node: Arc<Inner>) {
    let mut watched: BTreeMap<GroupId, Watched> = BTreeMap::new();
    loop {
        tokio::time::sleep(TEND_INTERVAL).await;
        for group in node.groups() {
            if let Err(fatal) = &group.raft.metrics().borrow_watched().running_state {
                node.fatal.report(format!("group {} has stopped: {fatal}", group.id.0));
                return;
            }
            if !group.leads(node.config.lease()) {
                watched.remove(&group.id);
                continue;
            }
            add_learners(&node, group).await;
            if node.config.balance && node.takes_leads() {
                balance(&node, group, watched.entry(group.id).or_default()).await;
            }
        }
    }
}

/// Lets the nodes follow that should, by placement, and do not yet.
async fn add_learners(node: &Arc<Inner>, group: &Arc<Group>) {
    let missing: Vec<NodeId> = {
        let metrics = group.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let known = metrics.membership_config.membership();
        group.placement.learners.iter().copied().filter(|learner| known.get_node(learner).is_none()).collect()
    };
    let Some(learner) = missing.first().copied() else { return };
    node.wake(group).await;
    // One at a time; the next one with the next look. Bounded, because without a majority it would wait for ever.
    let adding = group.raft.add_learner(learner, openraft::EmptyNode {}, false);
    match tokio::time::timeout(node.config.lease(), adding).await {
        Ok(Ok(_)) => tracing::info!(group = group.id.0, learner, "added a learner"),
        Ok(Err(error)) => tracing::warn!(group = group.id.0, learner, %error, "failed to add a learner"),
        Err(_) => {}
    }
}

/// Gives the lead back to the preferred leader once that has been well for a while.
async fn balance(node: &Arc<Inner>, group: &Arc<Group>, watched: &mut Watched) {
    let preferred = group.placement.voters[0];
    if preferred == node.config.node {
        return;
    }
    if !node.in_sync(group).contains(&preferred) {
        watched.in_sync_since = None;
        return;
    }
    let since = *watched.in_sync_since.get_or_insert_with(Instant::now);
    let tried_lately = watched.tried.is_some_and(|tried| tried.elapsed() < TRANSFER_PAUSE);
    if since.elapsed() < HEALTHY_BEFORE_LEAD || tried_lately {
        return;
    }
    watched.tried = Some(Instant::now());
    if node.hello(preferred).await.is_none_or(|reply| reply.leaving) || !is_voter(group, preferred) {
        return;
    }
    node.wake(group).await;
    tracing::info!(group = group.id.0, to = preferred, "giving the lead to the preferred leader");
    node.counters.transferred();
    if let Err(error) = group.raft.trigger().transfer_leader(preferred).await {
        tracing::warn!(group = group.id.0, %error, "failed to give the lead away");
    }
}

fn is_voter(group: &Group, node: NodeId) -> bool {
    let metrics = group.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.voter_ids().any(|voter| voter == node)
}

/// Moves all leads away; returns how many are left. The caller has seen to it that no lead comes back.
pub(crate) async fn hand_over(node: &Arc<Inner>, within: Duration) -> usize {
    for group in node.groups() {
        group.raft.runtime_config().elect(false);
    }
    move_leads(node, within).await
}

/// Moves the leads to nodes that take them; returns how many are left.
async fn move_leads(node: &Arc<Inner>, within: Duration) -> usize {
    let moves = node.groups().map(|group| hand_over_one(node, group));
    // Whatever could be moved in time has been; what has not is counted below.
    let _ = tokio::time::timeout(within, futures::future::join_all(moves)).await;
    let led = |group: &&Arc<Group>| current_leader(&group.raft).node == Some(node.config.node);
    node.groups().filter(led).count()
}

/// Moves leads away for as long as this node may not write, again and again: another replica may get room first.
pub(crate) async fn give_leads_away_while_read_only(node: &Arc<Inner>) {
    while node.is_read_only() {
        let left = move_leads(node, READ_ONLY_HAND_OVER).await;
        if left > 0 {
            tracing::warn!(left, "groups stay without a leader that could take commands");
        }
        tokio::time::sleep(READ_ONLY_PAUSE).await;
    }
}

async fn hand_over_one(node: &Arc<Inner>, group: &Arc<Group>) {
    let mut tried: Vec<NodeId> = Vec::new();
    let leads = || current_leader(&group.raft).node == Some(node.config.node);
    while leads() {
        let mut able: Vec<NodeId> = node.in_sync(group);
        able.retain(|other| *other != node.config.node && is_voter(group, *other));
        if able.is_empty() && alone(group) {
            return;
        }
        if able.iter().all(|other| tried.contains(other)) {
            tried.clear();
        }
        // The preferred leader, if it is able, else by placement.
        let by_placement = |other: &NodeId| group.placement.voters.iter().position(|voter| voter == other);
        able.sort_by_key(|other| by_placement(other).unwrap_or(usize::MAX));
        let target = able.into_iter().find(|other| !tried.contains(other));
        let Some(target) = target else {
            tokio::time::sleep(HAND_OVER_PAUSE).await;
            continue;
        };
        tried.push(target);
        if node.hello(target).await.is_none_or(|reply| reply.leaving) {
            tokio::time::sleep(HAND_OVER_PAUSE).await;
            continue;
        }
        node.wake(group).await;
        node.counters.transferred();
        if group.raft.trigger().transfer_leader(target).await.is_err() {
            return;
        }
        let mut leader = group.leader.subscribe();
        let moved = leader.wait_for(|leader| leader.node.is_some_and(|other| other != node.config.node));
        let _ = tokio::time::timeout(TRANSFER_PATIENCE, moved).await;
    }
}

/// Whether no other node votes in the group.
fn alone(group: &Group) -> bool {
    let metrics = group.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.voter_ids().count() <= 1
}
