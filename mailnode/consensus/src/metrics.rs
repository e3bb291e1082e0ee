//! Counters that the server exports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::machine::{GroupId, NodeId};

/// Upper bounds of the latency histogram's buckets, in microseconds; one more bucket has no bound.
pub const LATENCY_BUCKETS_US: [u64; 12] =
    [500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

#[derive(Debug, Default)]
pub(crate) struct Counters {
    proposals: AtomicU64,
    proposals_timed_out: AtomicU64,
    proposals_overloaded: AtomicU64,
    proposal_retries: AtomicU64,
    proposal_bytes: AtomicU64,
    forwarded: AtomicU64,
    queries: AtomicU64,
    queries_failed: AtomicU64,
    latency_us: AtomicU64,
    latency_buckets: [AtomicU64; LATENCY_BUCKETS_US.len() + 1],
    applied: AtomicU64,
    apply_batches: AtomicU64,
    apply_us: AtomicU64,
    leads_won: AtomicU64,
    leads_lost: AtomicU64,
    transfers: AtomicU64,
    append_frames_sent: AtomicU64,
    append_bytes_sent: AtomicU64,
    append_bytes_received: AtomicU64,
    peer_connects: AtomicU64,
    peer_failures: AtomicU64,
    snapshots_sent: AtomicU64,
    snapshots_resumed: AtomicU64,
    snapshots_installed: AtomicU64,
    snapshot_bytes_sent: AtomicU64,
    snapshot_in_flight: AtomicI64,
    snapshots_unreadable: AtomicU64,
    checkpoints: AtomicU64,
    votes_refused: AtomicU64,
    processes_lost: AtomicU64,
}

impl Counters {
    pub(crate) fn proposed(&self, bytes: usize, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BUCKETS_US.partition_point(|bound| *bound < us);
        self.proposals.fetch_add(1, Relaxed);
        self.proposal_bytes.fetch_add(bytes as u64, Relaxed);
        self.latency_us.fetch_add(us, Relaxed);
        self.latency_buckets[bucket].fetch_add(1, Relaxed);
    }

    pub(crate) fn proposal_timed_out(&self) {
        self.proposals_timed_out.fetch_add(1, Relaxed);
    }

    pub(crate) fn proposal_overloaded(&self) {
        self.proposals_overloaded.fetch_add(1, Relaxed);
    }

    pub(crate) fn proposal_retried(&self) {
        self.proposal_retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn forwarded(&self) {
        self.forwarded.fetch_add(1, Relaxed);
    }

    pub(crate) fn queried(&self, answered: bool) {
        if answered { &self.queries } else { &self.queries_failed }.fetch_add(1, Relaxed);
    }

    pub(crate) fn applied(&self, commands: usize, took: Duration) {
        self.applied.fetch_add(commands as u64, Relaxed);
        self.apply_batches.fetch_add(1, Relaxed);
        self.apply_us.fetch_add(took.as_micros() as u64, Relaxed);
    }

    pub(crate) fn lead_won(&self) {
        self.leads_won.fetch_add(1, Relaxed);
    }

    pub(crate) fn lead_lost(&self) {
        self.leads_lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn transferred(&self) {
        self.transfers.fetch_add(1, Relaxed);
    }

    pub(crate) fn append_sent(&self, bytes: usize) {
        self.append_frames_sent.fetch_add(1, Relaxed);
        self.append_bytes_sent.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn append_received(&self, bytes: usize) {
        self.append_bytes_received.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.peer_connects.fetch_add(1, Relaxed);
    }

    pub(crate) fn peer_failed(&self) {
        self.peer_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot_sent(&self) {
        self.snapshots_sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot_resumed(&self) {
        self.snapshots_resumed.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot_bytes_sent(&self, bytes: u64) {
        self.snapshot_bytes_sent.fetch_add(bytes, Relaxed);
    }

    /// So many bytes more, or less, are held for snapshots being sent.
    pub(crate) fn snapshot_in_flight(&self, change: i64) {
        self.snapshot_in_flight.fetch_add(change, Relaxed);
    }

    pub(crate) fn snapshot_installed(&self) {
        self.snapshots_installed.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot_unreadable(&self) {
        self.snapshots_unreadable.fetch_add(1, Relaxed);
    }

    pub(crate) fn checkpointed(&self) {
        self.checkpoints.fetch_add(1, Relaxed);
    }

    pub(crate) fn vote_refused(&self) {
        self.votes_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn process_lost(&self) {
        self.processes_lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Metrics {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        Metrics {
            proposals: get(&self.proposals),
            proposals_timed_out: get(&self.proposals_timed_out),
            proposals_overloaded: get(&self.proposals_overloaded),
            proposal_retries: get(&self.proposal_retries),
            proposal_bytes: get(&self.proposal_bytes),
            forwarded: get(&self.forwarded),
            queries: get(&self.queries),
            queries_failed: get(&self.queries_failed),
            latency_seconds_sum: get(&self.latency_us) as f64 / 1e6,
            latency_buckets: std::array::from_fn(|bucket| get(&self.latency_buckets[bucket])),
            applied: get(&self.applied),
            apply_batches: get(&self.apply_batches),
            apply_seconds_sum: get(&self.apply_us) as f64 / 1e6,
            leads_won: get(&self.leads_won),
            leads_lost: get(&self.leads_lost),
            transfers: get(&self.transfers),
            append_frames_sent: get(&self.append_frames_sent),
            append_bytes_sent: get(&self.append_bytes_sent),
            append_bytes_received: get(&self.append_bytes_received),
            peer_connects: get(&self.peer_connects),
            peer_failures: get(&self.peer_failures),
            snapshots_sent: get(&self.snapshots_sent),
            snapshots_resumed: get(&self.snapshots_resumed),
            snapshots_installed: get(&self.snapshots_installed),
            snapshot_bytes_sent: get(&self.snapshot_bytes_sent),
            snapshot_in_flight_bytes: self.snapshot_in_flight.load(Relaxed).max(0) as u64,
            snapshots_unreadable: get(&self.snapshots_unreadable),
            unreadable_replicas: 0,
            checkpoints: get(&self.checkpoints),
            votes_refused: get(&self.votes_refused),
            processes_lost: get(&self.processes_lost),
            log_disk_reads: 0,
            append_in_flight_bytes: 0,
            pending_proposal_bytes: 0,
            disk_is_slow: false,
            disk_sync_seconds: 0.0,
            groups: BTreeMap::new(),
        }
    }
}

/// Counts since the start of the process, and what is true now.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Commands proposed through this node and acknowledged.
    pub proposals: u64,
    /// Commands whose outcome was not known at their deadline.
    pub proposals_timed_out: u64,
    /// Commands refused because too many bytes were waiting.
    pub proposals_overloaded: u64,
    /// Repeated attempts, all commands together.
    pub proposal_retries: u64,
    /// Bytes of acknowledged commands.
    pub proposal_bytes: u64,
    /// Attempts sent to another node because it leads the group.
    pub forwarded: u64,
    /// Queries answered.
    pub queries: u64,
    /// Queries not answered by their deadline.
    pub queries_failed: u64,
    /// Time from proposal to acknowledgement, summed over `proposals`.
    pub latency_seconds_sum: f64,
    /// How many proposals took at most each of [`LATENCY_BUCKETS_US`] (not cumulative); the last one has no bound.
    pub latency_buckets: [u64; LATENCY_BUCKETS_US.len() + 1],
    /// Commands applied by this node's replicas.
    pub applied: u64,
    /// Calls of the state machine that applied them.
    pub apply_batches: u64,
    /// Time spent in those calls.
    pub apply_seconds_sum: f64,
    /// Times this node became the leader of a group.
    pub leads_won: u64,
    /// Times it ceased to be.
    pub leads_lost: u64,
    /// Planned transfers of a lead started here.
    pub transfers: u64,
    /// Append requests sent, heartbeats included.
    pub append_frames_sent: u64,
    /// Bytes of commands in them.
    pub append_bytes_sent: u64,
    /// Bytes of commands in append requests received.
    pub append_bytes_received: u64,
    /// Streams to peers opened.
    pub peer_connects: u64,
    /// Calls to peers that failed in transport.
    pub peer_failures: u64,
    /// Snapshots sent in full.
    pub snapshots_sent: u64,
    /// Times that a snapshot went on after its connection had broken.
    pub snapshots_resumed: u64,
    /// Snapshots installed here.
    pub snapshots_installed: u64,
    /// Bytes of snapshots sent, those that were sent again included.
    pub snapshot_bytes_sent: u64,
    /// Bytes held for snapshots being sent.
    pub snapshot_in_flight_bytes: u64,
    /// Times that a snapshot was not sent because the replica here could not be read in full.
    pub snapshots_unreadable: u64,
    /// Replicas here of which that is true now.
    pub unreadable_replicas: u64,
    /// Checkpoints of the state machine.
    pub checkpoints: u64,
    /// Votes refused because this replica has lost its disk and is not caught up yet.
    pub votes_refused: u64,
    /// Times that a peer's process was found to be gone, by its connections.
    pub processes_lost: u64,
    /// Log entries read back from the journal because they had left the cache.
    pub log_disk_reads: u64,
    /// Bytes of commands sent to followers and not yet answered; 32 MiB a follower at most.
    pub append_in_flight_bytes: u64,
    /// Bytes of commands being proposed now.
    pub pending_proposal_bytes: u64,
    /// Whether this node gives its leads away because its disk is slow.
    pub disk_is_slow: bool,
    /// Median time of a sync of the journal lately; zero when nothing is known.
    pub disk_sync_seconds: f64,
    /// The groups held here.
    pub groups: BTreeMap<GroupId, GroupMetrics>,
}

/// What is true of a group now, as this node knows it.
#[derive(Debug, Clone, Default)]
pub struct GroupMetrics {
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Raft term.
    pub term: u64,
    /// Index of the last entry in this node's log.
    pub last_log_index: u64,
    /// Index of the last entry applied here.
    pub applied_index: u64,
    /// Entries by which the slowest other replica is behind; only known to the leader.
    pub follower_lag: Option<u64>,
    /// Whether it has nothing to do and is silent.
    pub quiet: bool,
    /// Whether the replica here may vote: it has not lost what it helped to commit, or has got it back.
    pub may_vote: bool,
}
