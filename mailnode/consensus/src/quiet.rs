//! Groups with nothing to do go quiet: no heartbeats, no election timers, until something happens.
//!
//! A leader whose replicas all have everything, and that has had nothing to do for a while, offers to be quiet, with its
//! term and its last entry. A follower that has exactly that accepts, and stops its election timer. When all have
//! accepted, the leader stops its heartbeats. Offers and acceptances travel in the pulses (`pulse.rs`), which vouch for
//! the processes on both sides from then on.
//!
//! The group wakes
//! - at the leader, by a command, a read, a vote asked of it, or the loss of a follower's process or acceptance;
//! - at a follower, when entries arrive, when the leader's process is lost or silent, or when the leader no longer names
//!   the group: then after a lease, in which the leader's heartbeat is sure to arrive if it still leads.
//!
//! Leases run out while a group is quiet. So a quiet follower refuses pre-votes itself as long as the leader's pulse is
//! fresh, and a quiet leader that is asked for one renews its lease first: a node that is cut off from the leader alone
//! does not disturb the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};
use parking_lot::Mutex;
use quorumail_proto::peer::QuietGroup;
use tokio::time::Instant;

use crate::group::Group;
use crate::machine::{GroupId, NodeId};
use crate::node::Inner;

/// A group without commands and reads for so long is offered to be quiet.
const QUIET_AFTER: Duration = Duration::from_secs(3);
/// How often groups are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What every replica of a quiet group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    term: u64,
    index: u64,
}

#[derive(Debug, Clone, Default)]
enum Phase {
    #[default]
    Awake,
    /// Offered by this node, which leads and still sends heartbeats.
    Offered { mark: Mark, followers: Arc<[NodeId]> },
    /// Accepted by all followers: this node leads and is silent.
    Leading { mark: Mark, followers: Arc<[NodeId]> },
    /// Accepted by this node. `dismissed`: since when the leader does not name the group any more.
    Following { leader: NodeId, mark: Mark, dismissed: Option<Instant> },
}

/// Whether a group is quiet, at one replica.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    phase: Mutex<Phase>,
    /// Whether the phase is another one than `Awake`.
    asleep: AtomicBool,
    /// Counts what gives the leader something to do.
    activity: AtomicU64,
    /// When this replica was last woken as a quiet leader.
    woken: Mutex<Option<Instant>>,
}

impl Quiet {
    /// Notes that there is something to do.
    pub(crate) fn touch(&self) {
        // Ordered against `asleep`: either the group is seen asleep after this, or the activity by who puts it to sleep.
        self.activity.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the group has to be woken before it does anything.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Whether this replica leads a group of which all replicas were last known to follow through their pulses.
    pub(crate) fn vouches(&self, lease: Duration) -> bool {
        matches!(*self.phase.lock(), Phase::Leading { .. })
            || self.woken.lock().is_some_and(|woken| woken.elapsed() < lease)
    }

    /// Whether this replica or the whole group is silent now.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Leading { .. } | Phase::Following { .. })
    }

    /// The leader whose offer this replica has accepted.
    pub(crate) fn follows(&self) -> Option<NodeId> {
        match &*self.phase.lock() {
            Phase::Following { leader, .. } => Some(*leader),
            _ => None,
        }
    }

    /// Of a quiet leader and one that offers: what it tells its followers.
    fn offer(&self, to: NodeId) -> Option<Mark> {
        match &*self.phase.lock() {
            Phase::Offered { mark, followers } | Phase::Leading { mark, followers } => {
                followers.contains(&to).then_some(*mark)
            }
            _ => None,
        }
    }

    /// Of a quiet follower: what it tells its leader.
    fn acceptance(&self, of: NodeId) -> Option<Mark> {
        match &*self.phase.lock() {
            Phase::Following { leader, mark, dismissed: None } if *leader == of => Some(*mark),
            _ => None,
        }
    }

    fn set(&self, phase: Phase) -> Phase {
        let mut current = self.phase.lock();
        self.asleep.store(!matches!(phase, Phase::Awake), Ordering::SeqCst);
        std::mem::replace(&mut *current, phase)
    }
}

fn listed(group: GroupId, mark: Mark) -> QuietGroup {
    QuietGroup { group: group.0, term: mark.term, index: mark.index }
}

impl Group {
    /// What the engine knows here, when the log is applied to its end: then it is what a quiet group agrees on.
    fn mark(&self) -> Option<Mark> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = metrics.last_log_index?;
        let done = metrics.last_applied.is_some_and(|applied| applied.index == index);
        done.then_some(Mark { term: metrics.current_term, index })
    }

    /// The other replicas, if this one leads, has applied its log to the end, and all others have all of it.
    fn all_caught_up(&self) -> Option<(Mark, Arc<[NodeId]>)> {
        let mark = self.mark()?;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader || metrics.current_term != mark.term {
            return None;
        }
        let committed = metrics.cluster_committed.is_some_and(|id| id.index == mark.index);
        let membership = metrics.membership_config.membership();
        let nodes = membership.nodes().map(|(node, _)| *node);
        let followers: Arc<[NodeId]> = nodes.filter(|node| *node != metrics.id).collect();
        let has_all = |node: &NodeId| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(node).copied().flatten());
            matched.is_some_and(|matched| matched.index == mark.index)
        };
        (committed && followers.iter().all(has_all)).then_some((mark, followers))
    }

    /// Wakes the group at this replica. Quick, and harmless when it is awake.
    pub(crate) async fn wake(&self) {
        match self.quiet.set(Phase::Awake) {
            Phase::Awake | Phase::Offered { .. } => {}
            Phase::Leading { .. } => {
                *self.quiet.woken.lock() = Some(Instant::now());
                self.raft.runtime_config().tick(true);
                // Fails only when the group is being stopped.
                let _ = self.raft.trigger().heartbeat().await;
            }
            Phase::Following { .. } => self.raft.runtime_config().tick(true),
        }
    }

    /// Looks at a request of the leader, before it is handed to the engine.
    pub(crate) async fn wake_by_append(&self, carries_entries: bool) {
        let dismissed = match &*self.quiet.phase.lock() {
            Phase::Following { dismissed, .. } => dismissed.is_some(),
            _ => return,
        };
        // A heartbeat alone may have been on its way when the leader went silent.
        if carries_entries || dismissed {
            self.wake().await;
        }
    }

    /// Takes up what a peer offers.
    fn hear_offer(&self, peer: NodeId, offer: Option<Mark>) {
        let mut phase = self.quiet.phase.lock();
        match (&mut *phase, offer) {
            (Phase::Following { leader, mark, dismissed }, offer) if *leader == peer => {
                if offer == Some(*mark) {
                    *dismissed = None;
                } else {
                    dismissed.get_or_insert_with(Instant::now);
                }
            }
            (Phase::Awake, Some(offered)) => {
                let leader = *self.leader.borrow();
                let agrees = leader.node == Some(peer) && leader.term == offered.term;
                if agrees && self.log.is_proven() && self.mark() == Some(offered) {
                    *phase = Phase::Following { leader: peer, mark: offered, dismissed: None };
                    self.quiet.asleep.store(true, Ordering::SeqCst);
                    self.raft.runtime_config().tick(false);
                }
            }
            _ => {}
        }
    }
}

impl Inner {
    /// Wakes the group and tells its replicas. For a leader: returns when it may write, or a lease later.
    pub(crate) async fn wake(&self, group: &Group) {
        if !group.quiet.is_asleep() {
            return;
        }
        group.wake().await;
        self.links.hurry();
        let mut metrics = group.raft.metrics();
        let renewed = async {
            loop {
                {
                    let now = metrics.borrow_watched();
                    let acked = now.last_quorum_acked.map(|acked| acked.into_inner().elapsed());
                    let alone = now.membership_config.voter_ids().count() == 1;
                    if now.state != ServerState::Leader
                        || alone
                        || acked.is_some_and(|acked| acked < self.config.lease())
                    {
                        return;
                    }
                }
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(self.config.lease(), renewed).await;
    }

    /// What this node offers to a peer.
    pub(crate) fn offers(&self, peer: NodeId) -> Vec<QuietGroup> {
        let offered =
            self.groups().into_iter().filter_map(|group| Some(listed(group.id, group.quiet.offer(peer)?)));
        offered.collect()
    }

    /// What this node has accepted of a peer's offers.
    pub(crate) fn acceptances(&self, peer: NodeId) -> Vec<QuietGroup> {
        let accepted = self
            .groups()
            .into_iter()
            .filter_map(|group| Some(listed(group.id, group.quiet.acceptance(peer)?)));
        accepted.collect()
    }

    /// Compares what a peer offers with every group here.
    pub(crate) fn hear_offers(&self, peer: NodeId, offers: &[QuietGroup]) {
        let offers: BTreeMap<u32, Mark> =
            offers.iter().map(|offer| (offer.group, Mark { term: offer.term, index: offer.index })).collect();
        for group in self.groups() {
            group.hear_offer(peer, offers.get(&group.id.0).copied());
        }
    }

    /// Whether the peer has accepted this very offer.
    fn has_accepted(&self, peer: NodeId, group: GroupId, mark: Mark) -> bool {
        let Some(link) = self.links.get(peer) else { return false };
        link.pulse.is_fresh(self.config.lease()) && link.pulse.accepts(&listed(group, mark))
    }
}

/// Since when a group has had nothing to do.
struct Rest {
    activity: u64,
    since: Instant,
}

/// Puts groups to sleep, and wakes those whose other replicas are not there any more.
pub(crate) async fn tend(node: Arc<Inner>) {
    let mut rests: BTreeMap<GroupId, Rest> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        for group in node.groups() {
            look(&node, &group, &mut rests).await;
        }
    }
}

async fn look(node: &Inner, group: &Group, rests: &mut BTreeMap<GroupId, Rest>) {
    let activity = group.quiet.activity.load(Ordering::SeqCst);
    let rest = rests.entry(group.id).or_insert_with(|| Rest { activity, since: Instant::now() });
    if rest.activity != activity {
        *rest = Rest { activity, since: Instant::now() };
    }
    let phase = group.quiet.phase.lock().clone();
    let lease = node.config.lease();
    match phase {
        Phase::Awake => {
            if rest.since.elapsed() < QUIET_AFTER || node.is_leaving() || !group.leads(lease) {
                return;
            }
            if let Some((mark, followers)) = group.all_caught_up() {
                group.quiet.set(Phase::Offered { mark, followers });
                node.links.hurry();
            }
        }
        Phase::Offered { mark, followers } => {
            let still = group.all_caught_up().is_some_and(|(now, to)| now == mark && to == followers);
            if !still || rest.since.elapsed() < QUIET_AFTER || node.is_leaving() {
                group.wake().await;
                return node.links.hurry();
            }
            if followers.iter().all(|follower| node.has_accepted(*follower, group.id, mark)) {
                group.raft.runtime_config().tick(false);
                group.quiet.set(Phase::Leading { mark, followers });
                tracing::debug!(group = group.id.0, "the group is quiet");
                if group.quiet.activity.load(Ordering::SeqCst) != activity {
                    node.wake(group).await;
                }
            }
        }
        Phase::Leading { mark, followers } => {
            let still = group.mark() == Some(mark)
                && followers.iter().all(|follower| node.has_accepted(*follower, group.id, mark));
            if !still || node.is_leaving() {
                node.wake(group).await;
            }
        }
        Phase::Following { leader, dismissed, mark } => {
            let lives = node.links.get(leader).is_some_and(|link| link.pulse.is_fresh(lease));
            let left = dismissed.is_some_and(|dismissed| dismissed.elapsed() > lease);
            let replaced =
                *group.leader.borrow() != crate::group::Leader { node: Some(leader), term: mark.term };
            if !lives || left || replaced {
                group.wake().await;
            }
        }
    }
}
