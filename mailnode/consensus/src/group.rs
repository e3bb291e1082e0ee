//! One group on this node: its engine, its log, and what is known of its leader.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};
use parking_lot::Mutex;
use quorumail_journal::mutation::{self, Mutation};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::adapter::Applied;
use crate::log::GroupLog;
use crate::machine::{GroupId, NodeId};
use crate::quiet::Quiet;
use crate::snapshot_in::Incoming;
use crate::types::{AppendRequest, LogId, Membership, Raft, VoteRequest, term_of};

/// Who leads, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Leader {
    pub(crate) node: Option<NodeId>,
    pub(crate) term: u64,
}

/// A replica held by this node.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) raft: Raft,
    pub(crate) log: GroupLog,
    /// Who should lead, once it is well; none as long as that is not known.
    pub(crate) preferred: Mutex<Option<NodeId>>,
    pub(crate) applied: watch::Receiver<Applied>,
    pub(crate) leader: watch::Sender<Leader>,
    /// What must have been applied before this replica may vote; see [`Group::may_vote_for`].
    proof: watch::Sender<Option<LogId>>,
    /// The lowest term whose leader may be followed by a replica that may not vote yet; see [`crate::memory`].
    follows_from: Mutex<Option<u64>>,
    /// Cancelled when the replica is removed or the node stops.
    pub(crate) stop: CancellationToken,
    /// Whether it was made while the node runs, and has not caught up since.
    joining: AtomicBool,
    pub(crate) incoming: Incoming,
    /// When a leader was last heard here, in milliseconds since `started`; zero before the first time.
    heard: AtomicU64,
    /// The last lease that was released before its time.
    released: Mutex<Option<Released>>,
    started: Instant,
    pub(crate) quiet: Quiet,
}

/// A lease that was released because its leader's process was lost.
#[derive(Debug, Clone, Copy)]
struct Released {
    term: u64,
    at: Instant,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        raft: Raft,
        log: GroupLog,
        preferred: Option<NodeId>,
        stop: CancellationToken,
        applied: watch::Receiver<Applied>,
    ) -> Group {
        Group {
            id,
            raft,
            log,
            preferred: Mutex::new(preferred),
            stop,
            joining: AtomicBool::new(false),
            applied,
            leader: watch::Sender::new(Leader::default()),
            proof: watch::Sender::new(None),
            follows_from: Mutex::new(None),
            incoming: Incoming::default(),
            heard: AtomicU64::new(0),
            released: Mutex::new(None),
            started: Instant::now(),
            quiet: Quiet::default(),
        }
    }

    /// Whether this replica may help to elect the candidate.
    ///
    /// A replica that has lost its disk has forgotten what it had helped to commit. If it voted before it has caught
    /// up, a candidate without those entries could win, and they would be lost. So an empty replica votes only for
    /// the very first leader of a new group, whose log is the initial membership and nothing else, until it has
    /// applied everything that was committed when a leader first wrote to it. That is remembered on disk.
    pub(crate) fn may_vote_for(&self, request: &VoteRequest) -> bool {
        if mutation::is(Mutation::VoteOnEmptyDisk) {
            return true;
        }
        self.log.is_proven() || request.last_log_id.is_none_or(|last| last.index == 0)
    }

    /// Whether this replica may take anything from a leader of the term.
    pub(crate) fn may_follow(&self, term: u64) -> bool {
        if mutation::is(Mutation::FollowOnEmptyDisk) {
            return true;
        }
        self.log.is_proven() || self.follows_from.lock().is_some_and(|lowest| term >= lowest)
    }

    /// Leaders of this term and later ones may be followed.
    pub(crate) fn follow_from(&self, term: u64) {
        *self.follows_from.lock() = Some(term);
    }

    fn now(&self) -> u64 {
        self.milliseconds(Instant::now())
    }

    /// Milliseconds since the group was started here, and never zero.
    fn milliseconds(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Remembers that the lease of the term's leader is released before its time.
    pub(crate) fn release_lease(&self, term: u64) {
        *self.released.lock() = Some(Released { term, at: Instant::now() });
    }

    /// Whether a leader whose lease was released has been heard again since, within the lease: its appends, and a pulse of
    /// its process, for appends may have been on their way when it ended. The engine does not take up a released lease
    /// again in the same term, so without this a false alarm would leave the leader open to being disturbed from then
    /// on.
    pub(crate) fn leader_is_back(&self, lease: Duration, pulse: Option<Instant>) -> bool {
        let Some(released) = *self.released.lock() else { return false };
        let heard = self.heard.load(Ordering::Relaxed);
        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        self.leader.borrow().term == released.term
            && pulse.is_some_and(|pulse| pulse > released.at)
            && heard > self.milliseconds(released.at)
            && self.now() < heard.saturating_add(lease)
    }

    /// Whether a leader's append, a heartbeat as a rule, has come within a time.
    pub(crate) fn heard_within(&self, within: Duration) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        heard > 0 && self.now() < heard.saturating_add(within)
    }

    /// Looks at an append request on its way in, for [`Group::may_vote_for`] and [`Group::leader_is_back`].
    pub(crate) fn observe_append(&self, request: &AppendRequest) {
        self.heard.store(self.now(), Ordering::Relaxed);
        if self.log.is_proven() {
            return;
        }
        let Some(commit) = request.leader_commit else { return };
        // A leader knows all that was committed before it once an entry of its own term is.
        if request.vote.leader_id.term == term_of(&commit) {
            self.proof.send_if_modified(|proof| {
                let first = proof.is_none();
                proof.get_or_insert(commit);
                first
            });
        }
    }

    /// Waits until the replica may vote, and remembers it; false when the group ends before.
    pub(crate) async fn prove_when_caught_up(&self) -> bool {
        let (mut applied, mut proof) = (self.applied.clone(), self.proof.subscribe());
        while !self.log.is_proven() {
            let last = applied.borrow_and_update().last;
            let proven_by = *proof.borrow_and_update();
            if proven_by.is_some_and(|proof| last >= Some(proof)) {
                self.log.prove().await;
                tracing::info!(group = self.id.0, ?last, "replica is caught up and may vote");
                return true;
            }
            // Either may be the last to come: all may have been applied, from a snapshot, before a leader tells that it
            // was all, and in an idle group nothing follows.
            let changed = tokio::select! {
                changed = applied.changed() => changed,
                changed = proof.changed() => changed,
            };
            if changed.is_err() {
                return false;
            }
        }
        true
    }

    /// Whether this node leads the group and has heard from a majority within the lease: from the group's replicas, or,
    /// while the group is quiet, from their processes.
    pub(crate) fn leads(&self, lease: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return false;
        }
        let alone = metrics.membership_config.voter_ids().count() == 1;
        alone
            || self.quiet.vouches(lease)
            || metrics.last_quorum_acked.is_some_and(|acked| acked.into_inner().elapsed() < lease)
    }

    /// Notes that the replica was made while the node runs.
    pub(crate) fn set_joining(&self) {
        self.joining.store(true, Ordering::Release);
    }

    /// Whether the replica was made while the node runs and has not caught up yet.
    pub(crate) fn is_joining(&self) -> bool {
        self.joining.load(Ordering::Acquire) && !self.log.is_proven()
    }

    /// The replicas as this node knows them.
    pub(crate) fn membership(&self) -> Membership {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().clone()
    }

    /// Whether the node votes in the group.
    pub(crate) fn is_voter(&self, node: NodeId) -> bool {
        self.membership().voter_ids().any(|voter| voter == node)
    }

    /// The format level that stands in its log, as far as it is applied here.
    pub(crate) fn level(&self) -> u32 {
        self.applied.borrow().level
    }

    /// Waits until this replica has applied the entry.
    pub(crate) async fn wait_applied(&self, index: u64) -> bool {
        let mut applied = self.applied.clone();
        applied.wait_for(|applied| applied.last.is_some_and(|last| last.index >= index)).await.is_ok()
    }
}
