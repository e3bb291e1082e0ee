//! What goes on by itself on a node: groups are bootstrapped, leaders watched, leads balanced and handed over, the
//! topology told, the state machine checkpointed and old log purged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use quorumail_journal::mutation::{self, Mutation};
use quorumail_proto::peer::Standing;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::coordinator::coordinate;
use crate::group::{Group, Leader};
use crate::log;
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
/// How often the other nodes are asked for a newer topology.
const TOPOLOGY_INTERVAL: Duration = Duration::from_secs(3);
/// The order in which the other voters are asked to take a lead goes round this many.
const ROUND: u64 = 8;
/// Entries of a group that are kept beyond the retention for receivers of snapshots, at most; some 40 MB of memory.
const KEPT_FOR_RECEIVERS: u64 = 1_000_000;
/// How long the engine may take to note how far the state machine is, before the purge is left to the next time.
const MARK_PATIENCE: Duration = Duration::from_secs(5);

impl Inner {
    /// Starts the tasks; they end with `stop`.
    pub(crate) fn tend(self: Arc<Self>) {
        for group in self.groups() {
            self.tend_group(&group);
            if self.founding[&group.id].voters[0] == self.config.node && !group.log.is_initialised() {
                self.run_until(group.stop.clone(), bootstrap(self.clone(), group.clone()));
            }
        }
        self.run(crate::quiet::tend(self.clone()));
        self.run(crate::disk::watch(self.clone()));
        self.run(checkpoints(self.clone()));
        self.run(tend_groups(self.clone()));
        self.run(tell_topology(self.clone()));
        self.run(coordinate(self.clone()));
    }

    /// Starts the tasks of a replica; they end with it.
    pub(crate) fn tend_group(self: &Arc<Self>, group: &Arc<Group>) {
        self.run_until(group.stop.clone(), watch_leader(self.clone(), group.clone()));
        if !group.log.is_proven() {
            self.run_until(group.stop.clone(), crate::memory::regain(self.clone(), group.clone()));
            let (node, proving) = (self.clone(), group.clone());
            self.run_until(group.stop.clone(), async move {
                if proving.prove_when_caught_up().await {
                    node.let_elect(&proving);
                }
            });
        } else if !self.is_leaving() {
            // It was made while the node left, perhaps, and the node has thought better of it.
            self.let_elect(group);
        }
    }

    /// Lets the replica ask for votes, unless the node is about to go.
    pub(crate) fn let_elect(&self, group: &Group) {
        group.raft.runtime_config().elect(true);
        // Looked at afterwards: whoever begins to leave meanwhile forbids it either here or after this.
        if self.is_leaving() {
            group.raft.runtime_config().elect(false);
        }
    }

    /// Starts to tell all peers that this process lives, those that have been added as well.
    fn pulse(self: &Arc<Self>) {
        for link in self.links.all().into_iter().filter(|link| link.begin_pulse()) {
            self.run_until(link.stop.clone(), crate::pulse::keep(self.clone(), link.clone()));
        }
    }

    /// Runs a task until the node stops.
    pub(crate) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.run_until(self.stop.clone(), task);
    }

    pub(crate) fn run_until(&self, stop: CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    pub(crate) fn publish_leads(&self) {
        let mine = |group: &Arc<Group>| group.leader.borrow().node == Some(self.config.node);
        let led: Vec<GroupId> = self.groups().into_iter().filter(mine).map(|group| group.id).collect();
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

/// Founds a group, unless it exists somewhere already. There is one node only that may found it.
///
/// The group is founded once so many others have said that they do not know it that, had it existed, one of them would.
/// As long as the nodes have never been changed that is a majority of its voters, this node not counted: it has no say in
/// this because it may have lost its disk. After a change the group may be anywhere, so all nodes must have said so.
async fn bootstrap(node: Arc<Inner>, group: Arc<Group>) {
    let voters = &node.founding[&group.id].voters;
    loop {
        if group.log.is_initialised() {
            return;
        }
        let topology = node.topology();
        let mut others = if topology.is_original() { voters.clone() } else { topology.ids() };
        others.retain(|other| *other != node.config.node);
        let needed =
            if topology.is_original() { (voters.len() / 2 + 1).min(others.len()) } else { others.len() };
        let replies = futures::future::join_all(others.iter().map(|other| node.hello(*other))).await;
        let replies: Vec<_> = replies.into_iter().flatten().collect();
        if let Some(reply) = replies.iter().find(|reply| reply.initialised.contains(&group.id.0)) {
            tracing::info!(
                group = group.id.0,
                known_to = reply.node,
                "the group exists; waiting for its leader"
            );
            return;
        }
        // One of them may just have told of another topology, with others to ask.
        if replies.len() >= needed && node.topology().generation == topology.generation {
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
    node.let_elect(&group);
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
        let covered: Vec<(Arc<Group>, u64)> = node.groups().iter().filter_map(applied).collect();
        if mutation::is(Mutation::PurgeBeforeCheckpoint) {
            for (group, applied) in covered {
                purge(&node, &group, applied).await;
            }
            continue;
        }
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
/// each group writes down what the records below add up to, those whose replica was removed here as well.
pub(crate) async fn move_floor(node: &Arc<Inner>) {
    // No replica is made or removed meanwhile: one that is in neither of the two maps below would lose its vote.
    let _turn = node.changing.lock().await;
    let newest = node.journal.last_of_log(0);
    let groups = node.groups();
    let oldest = groups.iter().filter_map(|group| group.log.oldest_segment()).chain(node.pinned);
    let floor = oldest.min().unwrap_or(newest).min(newest);
    if floor <= node.journal.stats().floor {
        return;
    }
    // All at once: they share a sync. Of replicas that were removed the last vote must be carried on as well.
    let removed: Vec<_> = node.forgotten.lock().iter().map(|(group, vote)| (*group, *vote)).collect();
    let removed = removed.into_iter().map(|(group, vote)| log::write_forgotten(&node.journal, group, vote));
    let held = groups.iter().map(|group| group.log.write_base());
    let (removed, held) = tokio::join!(futures::future::join_all(removed), futures::future::join_all(held));
    let bases = removed.into_iter().chain(held);
    let Some(needed) = bases.collect::<Option<Vec<u64>>>() else { return };
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
    let Some(mut upto) = group.log.purge_point(applied, retention.entries, oldest) else { return };
    if !node.is_read_only()
        && let Some(wanted) = node.wanted.from(group.id)
    {
        // What lies beyond the larger bound goes, wanted or not.
        let most = node.config.wanted_log;
        let beyond = group.log.purge_point(applied, most.entries, node.journal.last_of_log(most.bytes));
        let kept_from = wanted.max(beyond.map_or(0, |beyond| beyond + 1));
        let Some(before) = kept_from.checked_sub(1) else { return };
        upto = upto.min(before);
    }
    // Space comes before speed: a receiver of a snapshot that is outrun for it gets another one.
    if !node.is_read_only()
        && let Some(not_needed) = not_needed(node, group)
    {
        upto = upto.min(not_needed.max(applied.saturating_sub(KEPT_FOR_RECEIVERS)));
    }
    if group.raft.metrics().borrow_watched().purged.is_some_and(|purged| purged.index >= upto) {
        return;
    }
    purge_upto(group, upto).await;
}

/// Purges the log up to an entry that is applied and checkpointed.
pub(crate) async fn purge_upto(group: &Group, upto: u64) {
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

/// Up to where replicas that are filled by a snapshot from here do not need the log; none when there are none. Of another
/// leader they would get another one.
fn not_needed(node: &Inner, group: &Group) -> Option<u64> {
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    let replication = metrics.replication.as_ref()?;
    let has = |node: NodeId| replication.get(&node).copied().flatten().map_or(0, |id| id.index);
    node.links.sending.not_needed(group.id, metrics.last_log_index.unwrap_or(0), has)
}

/// What the leader of a group remembers of those that it would give the lead to.
#[derive(Default)]
struct Watched {
    in_sync_since: Option<Instant>,
    tried: Option<Instant>,
    tries: usize,
}

impl Watched {
    fn was_tried_within(&self, pause: Duration) -> bool {
        self.tried.is_some_and(|tried| tried.elapsed() < pause)
    }

    fn try_now(&mut self) {
        self.tried = Some(Instant::now());
        self.tries += 1;
    }
}

async fn tend_groups(node: Arc<Inner>) {
    let mut watched: BTreeMap<GroupId, Watched> = BTreeMap::new();
    loop {
        tokio::time::sleep(TEND_INTERVAL).await;
        for group in &node.groups() {
            if group.stop.is_cancelled() {
                continue;
            }
            if let Err(fatal) = &group.raft.metrics().borrow_watched().running_state {
                node.fatal.report(format!("group {} has stopped: {fatal}", group.id.0));
                return;
            }
            if !group.leads(node.config.lease()) {
                watched.remove(&group.id);
                continue;
            }
            if node.links.unreadable.is(group.id) {
                give_to_a_whole_one(&node, group, watched.entry(group.id).or_default()).await;
            } else if node.config.balance && node.takes_leads() {
                balance(&node, group, watched.entry(group.id).or_default()).await;
            }
        }
    }
}

/// Gives the lead back to the preferred leader once that has been well for a while.
async fn balance(node: &Arc<Inner>, group: &Arc<Group>, watched: &mut Watched) {
    let Some(preferred) = *group.preferred.lock() else { return };
    if preferred == node.config.node {
        return;
    }
    if !node.in_sync(group).contains(&preferred) || node.has_slow_disk(preferred) {
        watched.in_sync_since = None;
        return;
    }
    let since = *watched.in_sync_since.get_or_insert_with(Instant::now);
    if since.elapsed() < HEALTHY_BEFORE_LEAD || watched.was_tried_within(TRANSFER_PAUSE) {
        return;
    }
    watched.try_now();
    if group.is_voter(preferred) && should_lead(node, group, preferred).await {
        give(node, group, preferred, "giving the lead to the preferred leader").await;
    }
}

/// Gives the lead of a group whose replica here cannot be read to a voter whose replica, as far as it knows, can.
async fn give_to_a_whole_one(node: &Arc<Inner>, group: &Arc<Group>, watched: &mut Watched) {
    if watched.was_tried_within(TRANSFER_PATIENCE) {
        return;
    }
    let mut able = node.in_sync(group);
    able.retain(|other| *other != node.config.node && group.is_voter(*other));
    if able.is_empty() {
        return;
    }
    watched.try_now();
    // Another one each time, should one of them not take it.
    let target = able[watched.tries % able.len()];
    if should_lead(node, group, target).await {
        give(node, group, target, "giving the lead to a replica that is whole").await;
    }
}

/// Whether a node takes leads and its replica of the group can be read in full, as far as it says.
async fn should_lead(node: &Inner, group: &Group, other: NodeId) -> bool {
    let Some(reply) = node.hello(other).await else { return false };
    let unreadable = |standing: &Standing| standing.group == group.id.0 && standing.unreadable;
    !reply.leaving && !reply.standings.iter().any(unreadable)
}

async fn give(node: &Arc<Inner>, group: &Arc<Group>, to: NodeId, why: &'static str) {
    tracing::info!(group = group.id.0, to, "{why}");
    transfer(node, group, to).await;
}

/// Has the engine hand the lead over, which it does once the other one has all of the log; false when the group has ended.
pub(crate) async fn transfer(node: &Arc<Inner>, group: &Arc<Group>, target: NodeId) -> bool {
    node.wake(group).await;
    node.counters.transferred();
    if let Err(error) = group.raft.trigger().transfer_leader(target).await {
        tracing::warn!(group = group.id.0, %error, "failed to give the lead away");
        return false;
    }
    true
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
    let groups = node.groups();
    let moves = groups.iter().map(|group| hand_over_one(node, group));
    // Whatever could be moved in time has been; what has not is counted below.
    let _ = tokio::time::timeout(within, futures::future::join_all(moves)).await;
    let led = |group: &&Arc<Group>| current_leader(&group.raft).node == Some(node.config.node);
    groups.iter().filter(led).count()
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
        able.retain(|other| *other != node.config.node && group.is_voter(*other));
        if able.is_empty() && alone(group) {
            return;
        }
        if able.iter().all(|other| tried.contains(other)) {
            tried.clear();
        }
        // One whose disk is well, if there is one; of these the preferred leader, if it is able, else the next one round:
        // not the same for all groups.
        let preferred = *group.preferred.lock();
        let round = |other: &NodeId| other.wrapping_sub(node.config.node + u64::from(group.id.0)) % ROUND;
        able.sort_by_key(|other| (node.has_slow_disk(*other), Some(*other) != preferred, round(other)));
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
        if !transfer(node, group, target).await {
            return;
        }
        let mut leader = group.leader.subscribe();
        let moved = leader.wait_for(|leader| leader.node.is_some_and(|other| other != node.config.node));
        let _ = tokio::time::timeout(TRANSFER_PATIENCE, moved).await;
    }
}

/// Whether no other node votes in the group.
fn alone(group: &Group) -> bool {
    group.membership().voter_ids().count() <= 1
}

/// Tells the topology to all nodes when it changes, and asks for theirs from time to time: whoever was away learns of
/// what was changed meanwhile.
async fn tell_topology(node: Arc<Inner>) {
    let mut changes = node.topology.subscribe();
    loop {
        node.pulse();
        let topology = changes.borrow_and_update().clone();
        let others = topology.ids().into_iter().filter(|other| *other != node.config.node);
        futures::future::join_all(others.map(|other| node.hello(other))).await;
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(TOPOLOGY_INTERVAL) => {}
        }
    }
}
