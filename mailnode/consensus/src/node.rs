//! The node: all its groups, and the interface that the server uses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use quorumail_journal::Journal;
use quorumail_journal::mutation::{self, Mutation};
use quorumail_proto::peer::peer_server::PeerServer;
use quorumail_proto::peer::{HelloRequest, Standing};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bodies::BODIES_AT_ONCE;
use crate::committed::Wanted;
use crate::config::{Config, Connector, Peer};
use crate::coordinator::{Planned, Progress};
use crate::disk::DiskHealth;
use crate::fatal::Fatal;
use crate::group::Group;
use crate::level::{LevelError, Levels, Reached};
use crate::machine::{GroupId, MachineError, NodeId, StateMachine};
use crate::metrics::{Counters, GroupMetrics, Metrics};
use crate::network::Links;
use crate::open::RecoveredLog;
use crate::placement::{Placement, founding};
use crate::propose::ProposeError;
use crate::runtime::{ShortWork, offload, random_number};
use crate::service::PeerService;
use crate::snapshot_out::Sending;
use crate::topology::{self, Topology, TopologyError};
use crate::types::Vote;
use crate::wire::MAX_MESSAGE_BYTES;

/// Log entries in one append request, at most.
const MAX_APPEND_ENTRIES: u64 = 1024;
/// Entries that a replica may be behind and still count as caught up: under load it always is a little.
pub(crate) const CAUGHT_UP_LAG: u64 = 512;
/// A leader that was not heard for so long is told as none. Another one is elected far sooner, where a majority is there.
const SILENT_LEADER: Duration = Duration::from_secs(5);
/// How long another node may take to answer Hello.
const HELLO_TIMEOUT: Duration = Duration::from_millis(1000);
/// Of a node that takes no leads until it is restarted.
const FOR_GOOD: u64 = u64::MAX;

/// Why consensus could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is on this disk is of a level that this program does not know.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// The settings contradict each other.
    #[error("consensus settings: {0}")]
    Config(String),
    /// The state machine cannot tell where it is.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The state machine lost what it had been durable with, and the log before it is gone.
    #[error(
        "group {group} lost state that was safe on this disk (it knows {applied} entries, and the log begins after \
         {purged}); if other replicas have this node's mail, remove this node's whole data directory and start it \
         again, and they fill it; otherwise restore a backup"
    )]
    Lost {
        /// Which one.
        group: u32,
        /// Index of the last entry that the state machine has.
        applied: u64,
        /// Index of the last entry that the log has purged.
        purged: u64,
    },
    /// The log and the state machine of a group do not fit together, or cannot be read.
    #[error("failed to start group {group}: {reason}")]
    Group {
        /// Which one.
        group: u32,
        /// In words.
        reason: String,
    },
}

/// What a node's log may still grow by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Writes {
    /// Everything.
    All,
    /// What other nodes lead; no commands proposed here.
    OfOtherLeaders,
    /// Votes and marks.
    Nothing,
}

impl From<u8> for Writes {
    fn from(number: u8) -> Writes {
        match number {
            0 => Writes::All,
            1 => Writes::OfOtherLeaders,
            _ => Writes::Nothing,
        }
    }
}

/// A group as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which one.
    pub group: GroupId,
    /// Who votes, by the group's own membership; by the founding placement as long as that is not known.
    pub voters: Vec<NodeId>,
    /// Who only follows.
    pub learners: Vec<NodeId>,
    /// Who leads in this term, as far as it is known here: a leader that has heard from a majority, or was heard, in the last
    /// five seconds.
    pub leader: Option<NodeId>,
    /// Raft term.
    pub term: u64,
    /// Index of the last entry in this node's log; none when it is empty.
    pub last_log_index: Option<u64>,
    /// Index of the last entry applied here.
    pub applied_index: Option<u64>,
    /// The replicas that answer and have (nearly) all of the log. Only known to the leader.
    pub in_sync: Option<Vec<NodeId>>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) journal: Journal,
    /// The oldest segment of the journal that a group needs which is not started.
    pub(crate) pinned: Option<u64>,
    /// Where the groups of a new cluster are.
    pub(crate) founding: BTreeMap<GroupId, Placement>,
    pub(crate) topology: watch::Sender<Arc<Topology>>,
    pub(crate) reached: Reached,
    pub(crate) groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// Groups of which there was a replica here that has been removed, and its last vote.
    pub(crate) forgotten: Mutex<BTreeMap<GroupId, Option<Vote>>>,
    /// Held while a replica is made or removed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    pub(crate) planned: Mutex<Planned>,
    pub(crate) engine: Arc<openraft::Config>,
    pub(crate) links: Arc<Links>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) wanted: Wanted,
    pub(crate) short_work: Arc<ShortWork>,
    pub(crate) fatal: Fatal,
    pub(crate) disk: DiskHealth,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) proposal_room: Semaphore,
    /// Bounds the bodies that are read for other nodes.
    pub(crate) bodies: Semaphore,
    /// Why no leads are taken: 0 when they are, [`FOR_GOOD`], or the number of the time that the node steps aside.
    leaving: AtomicU64,
    turns_aside: AtomicU64,
    /// Tells this process from the one before it under the same number.
    pub(crate) incarnation: u64,
    writes: AtomicU8,
    pub(crate) leads: watch::Sender<Vec<GroupId>>,
    /// Who led the groups that are not held here, when last heard of.
    hints: Mutex<BTreeMap<GroupId, NodeId>>,
    /// Why what each node tells of the topology was last refused. Bounded by the nodes of the topology in use.
    refused: Mutex<BTreeMap<NodeId, TopologyError>>,
}

/// Consensus of this node. Clones share it.
#[derive(Clone)]
pub struct Consensus(pub(crate) Arc<Inner>);

impl Consensus {
    /// Starts all groups that this node holds, on the runtime of the caller, which must have several threads.
    ///
    /// The peer service ([`Consensus::peer_service`]) must be served soon after, or nothing is ever elected.
    ///
    /// # Errors
    /// When a group's log and state machine do not fit together.
    pub async fn start(
        config: Config,
        journal: Journal,
        recovered: RecoveredLog,
        machine: Arc<dyn StateMachine>,
        connector: Arc<dyn Connector>,
    ) -> Result<Consensus, StartError> {
        config.levels.check(config.level)?;
        let topology = config.topology.clone();
        topology.check().map_err(|error| StartError::Config(error.to_string()))?;
        if topology.node(config.node).is_none() {
            return Err(StartError::Config(format!("node {} is not among the nodes", config.node)));
        }
        if topology.founders.is_empty() {
            return Err(StartError::Config("it is not said which nodes founded the cluster".into()));
        }
        let engine = Arc::new(engine_config(&config)?);
        let counters = Arc::new(Counters::default());
        let pinned = recovered.oldest_without(|group| group.0 <= config.partitions);
        let stop = CancellationToken::new();
        let links = Links::new(
            config.node,
            &topology.nodes,
            connector,
            machine.clone(),
            counters.clone(),
            Sending::new(config.snapshots_at_once, config.snapshot_bytes_per_second),
            stop.clone(),
        );
        let proposal_room = Semaphore::new(config.proposal_bytes.min(Semaphore::MAX_PERMITS));
        let inner = Arc::new(Inner {
            founding: founders_placement(&config),
            topology: watch::Sender::new(Arc::new(topology)),
            reached: Reached::new(config.level),
            config,
            machine,
            journal,
            pinned,
            groups: RwLock::default(),
            forgotten: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            planned: Mutex::default(),
            engine,
            links: Arc::new(links),
            counters,
            wanted: Wanted::default(),
            short_work: Arc::new(ShortWork::new()),
            fatal: Fatal::new(),
            disk: DiskHealth::default(),
            stop,
            tasks: TaskTracker::new(),
            proposal_room,
            bodies: Semaphore::new(BODIES_AT_ONCE),
            leaving: AtomicU64::new(0),
            turns_aside: AtomicU64::new(0),
            incarnation: random_number(),
            writes: AtomicU8::new(Writes::All as u8),
            leads: watch::Sender::new(Vec::new()),
            hints: Mutex::default(),
            refused: Mutex::default(),
        });
        inner.start_groups(recovered).await?;
        inner.clone().tend();
        Ok(Consensus(inner))
    }

    /// The service that other nodes call, for port 9444, with the message limits set.
    pub fn peer_service(&self) -> PeerServer<PeerService> {
        PeerServer::new(PeerService(self.0.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Proposes a command to a group, wherever its leader is, and returns the state machine's answer once a majority
    /// has the command on disk and the leader has applied it. Repeats the same bytes until `within` has passed.
    ///
    /// # Errors
    /// With [`ProposeError::TimedOut`] the outcome is unknown; with the others see there.
    pub async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        within: Duration,
    ) -> Result<Bytes, ProposeError> {
        self.0.propose(group, command, within).await
    }

    /// Answers a query from a state that contains everything acknowledged before the call.
    ///
    /// # Errors
    /// When it could not be answered within the time given.
    pub async fn query(&self, group: GroupId, query: Bytes, within: Duration) -> Result<Bytes, ProposeError> {
        self.0.query(group, query, within).await
    }

    /// Whether this node has a replica of the group, voting or not.
    pub fn holds(&self, group: GroupId) -> bool {
        self.0.group(group).is_some()
    }

    /// Returns once this node's own replica of the group has everything that was acknowledged before the call.
    ///
    /// # Errors
    /// When there is no replica here, or it could not be brought up to date within the time given.
    pub async fn catch_up(&self, group: GroupId, within: Duration) -> Result<(), ProposeError> {
        self.0.catch_up(group, within).await
    }

    /// Whether this node leads the group and has heard from a majority within the lease. Not a licence to read: use
    /// [`Consensus::query`] for that.
    pub fn leads(&self, group: GroupId) -> bool {
        self.0.group(group).is_some_and(|group| group.leads(self.0.config.lease()))
    }

    /// The groups that this node leads.
    pub fn led_groups(&self) -> Vec<GroupId> {
        let lease = self.0.config.lease();
        self.0.groups().into_iter().filter(|group| group.leads(lease)).map(|group| group.id).collect()
    }

    /// Who leads the group, as far as this node knows.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.0.leader_of(group)
    }

    /// Changes whenever this node wins or loses the lead of a group; sorted.
    pub fn watch_leads(&self) -> watch::Receiver<Vec<GroupId>> {
        self.0.leads.subscribe()
    }

    /// Where every group is to be, by the last plan that this node has made; that of the founding before it made one.
    pub fn placements(&self) -> BTreeMap<GroupId, Placement> {
        self.0.planned.lock().placements().unwrap_or_else(|| self.0.founding.clone())
    }

    /// Takes up another topology, if it is newer than the one in use; answers whether it is. It is told to all nodes, and
    /// the memberships of the groups are changed to it, step by step, while all goes on.
    ///
    /// # Errors
    /// A topology that cannot be, or another one of the same generation.
    pub fn reconfigure(&self, topology: Topology) -> Result<bool, TopologyError> {
        self.0.adopt(topology)
    }

    /// The format level of the cluster, as far as this node knows: what it proposes may be of this level, and of no higher
    /// one.
    pub fn level(&self) -> u32 {
        self.0.level()
    }

    /// The format levels that this program knows.
    pub fn levels(&self) -> Levels {
        self.0.config.levels
    }

    /// The topology in use, and every later one. Whoever starts the node should keep it and give it to the next start.
    pub fn watch_topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.0.topology.subscribe()
    }

    /// How far the cluster is on its way to the topology. Only known to the node that plans it, which leads the directory.
    pub fn progress(&self) -> Option<Progress> {
        self.0.planned.lock().progress()
    }

    /// All groups held here.
    pub fn status(&self) -> Vec<GroupStatus> {
        self.0.groups().iter().map(|group| self.0.status_of(group)).collect()
    }

    /// Whether this node holds the directory, and every group held here has a leader and is applied up to what is
    /// committed; else why not. Replicas that are being made while the node runs do not count yet.
    ///
    /// # Errors
    /// The first group that is not ready, in words.
    pub fn ready(&self) -> Result<(), String> {
        if self.0.group(GroupId(0)).is_none() {
            return Err("this node has not been taken into the cluster yet".into());
        }
        self.0.groups().iter().filter(|group| !group.is_joining()).try_for_each(|group| {
            // Before the engine's metrics are borrowed: see `status_of`.
            if self.0.heard_leader(group).is_none() {
                return Err(format!("group {} has no leader", group.id.0));
            }
            let metrics = group.raft.metrics();
            let metrics = metrics.borrow_watched();
            let committed = metrics.cluster_committed.map_or(0, |id| id.index);
            let applied = metrics.last_applied.map_or(0, |id| id.index);
            if applied + CAUGHT_UP_LAG < committed {
                return Err(format!("group {} has applied {applied} of {committed}", group.id.0));
            }
            Ok(())
        })
    }

    /// Hands all leads over to other replicas and takes none until the node is restarted. Returns how many are left
    /// when `within` has passed (those of groups with no other replica that could lead).
    pub async fn hand_over(&self, within: Duration) -> usize {
        self.0.leaving.store(FOR_GOOD, Ordering::Release);
        crate::tend::hand_over(&self.0, within).await
    }

    /// As [`Consensus::hand_over`], but leads are taken again when `within` and `aside` have passed and the node is still
    /// there: whoever asked may have changed their mind, or be gone. Asked again meanwhile, the time begins anew.
    pub async fn step_aside(&self, within: Duration, aside: Duration) -> usize {
        if let Some(turn) = self.0.begin_aside() {
            let node = self.0.clone();
            // Not left to the caller, who may go away before the time is over.
            self.0.run(async move {
                tokio::time::sleep(within + aside).await;
                node.end_aside(turn);
            });
        }
        crate::tend::hand_over(&self.0, within).await
    }

    /// What this node's log may still grow by. While it takes no commands it hands its leads over to nodes with room; it
    /// may still be elected, because reads need a leader and go on when no node has room. While it takes nothing it
    /// follows no leader's commands and takes no snapshots. Given back, it catches up by itself.
    pub fn set_writes(&self, writes: Writes) {
        let before = Writes::from(self.0.writes.swap(writes as u8, Ordering::AcqRel));
        if before == Writes::All && writes != Writes::All {
            let node = self.0.clone();
            self.0.tasks.spawn(async move {
                let stop = node.stop.clone();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = crate::tend::give_leads_away_while_read_only(&node) => {}
                }
            });
        }
    }

    /// Resolves with the reason when a group has to stop: its state machine or log failed. The process must exit then.
    pub async fn fatal(&self) -> String {
        self.0.fatal.reported().await
    }

    /// Stops all groups, in order, and makes the state machine durable.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let groups = self.0.groups();
        let stop = |group: &Arc<Group>| {
            let raft = group.raft.clone();
            async move {
                if let Err(error) = raft.shutdown().await {
                    tracing::warn!(%error, "a group did not stop in order");
                }
            }
        };
        futures::future::join_all(groups.iter().map(stop)).await;
        let (written, on_disk) = tokio::sync::oneshot::channel();
        self.0.journal.append(Vec::new(), move || {
            // The receiver waits below, unless the caller has given up waiting for us.
            let _ = written.send(());
        });
        // The journal calls back or ends the process.
        let _ = on_disk.await;
        let machine = self.0.machine.clone();
        match offload(move || machine.checkpoint()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "failed to checkpoint at shutdown"),
            Err(error) => tracing::error!(%error, "checkpoint at shutdown did not finish"),
        }
    }

    /// Ends all groups without any goodbye, for a simulated crash: the caller has cut the node off from its disk and
    /// from the network, so nothing that still happens in here can be seen.
    #[cfg(feature = "simulation")]
    pub fn abandon(&self) {
        self.0.stop.cancel();
        for group in self.0.groups() {
            let raft = group.raft.clone();
            tokio::spawn(async move { raft.shutdown().await });
        }
    }

    /// Whether every replica held here knows all that it had helped to commit.
    #[cfg(feature = "simulation")]
    pub fn may_vote_everywhere(&self) -> bool {
        self.unproven().is_empty()
    }

    /// The groups whose replica here does not yet know all that it had helped to commit.
    #[cfg(feature = "simulation")]
    pub fn unproven(&self) -> Vec<GroupId> {
        self.0.groups().iter().filter(|group| !group.log.is_proven()).map(|group| group.id).collect()
    }

    /// Counters and the state of the groups.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.0.counters.snapshot();
        let free = self.0.proposal_room.available_permits();
        metrics.unreadable_replicas = self.0.links.unreadable.count();
        metrics.pending_proposal_bytes = self.0.config.proposal_bytes.saturating_sub(free) as u64;
        metrics.append_in_flight_bytes = self.0.links.in_flight() as u64;
        metrics.disk_is_slow = self.0.disk.is_slow();
        metrics.disk_sync_seconds = self.0.disk.sync_us() as f64 / 1e6;
        for group in &self.0.groups() {
            metrics.log_disk_reads += group.log.disk_reads();
            metrics.groups.insert(group.id, self.0.metrics_of(group));
        }
        metrics
    }
}

impl Inner {
    pub(crate) fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.groups.read().get(&group).cloned()
    }

    /// All groups held here, in order.
    pub(crate) fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    /// Takes up a topology that is newer; answers whether it is.
    pub(crate) fn adopt(&self, mut topology: Topology) -> Result<bool, TopologyError> {
        topology.check()?;
        let mut outcome = Ok(true);
        self.topology.send_if_modified(|known| {
            if topology.founders.is_empty() {
                topology.founders.clone_from(&known.founders);
            }
            if topology.generation <= known.generation {
                let differs = topology.generation == known.generation && !known.says_the_same(&topology);
                outcome = match differs {
                    true => Err(known.refuse_other(&topology)),
                    false => Ok(false),
                };
                return false;
            }
            tracing::info!(generation = topology.generation, nodes = ?topology.ids(), "another topology");
            self.links.set(self.config.node, &topology.nodes);
            *known = Arc::new(topology.clone());
            true
        });
        outcome
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire) != 0
    }

    /// The number of this time that the node steps aside; none when it leaves for good.
    fn begin_aside(&self) -> Option<u64> {
        let turn = self.turns_aside.fetch_add(1, Ordering::Relaxed) + 1;
        let begin = |now| (now != FOR_GOOD).then_some(turn);
        self.leaving.fetch_update(Ordering::AcqRel, Ordering::Acquire, begin).ok().map(|_| turn)
    }

    /// Takes leads again, unless there was another reason meanwhile not to.
    fn end_aside(&self, turn: u64) {
        if self.leaving.compare_exchange(turn, 0, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        tracing::info!("the node was not ended after it had handed its leads over: it takes some again");
        for group in self.groups().iter().filter(|group| group.log.is_proven()) {
            self.let_elect(group);
        }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.writes() != Writes::All
    }

    pub(crate) fn writes(&self) -> Writes {
        Writes::from(self.writes.load(Ordering::Acquire))
    }

    /// Whether this node may be given the lead of a group now.
    pub(crate) fn takes_leads(&self) -> bool {
        !self.is_leaving() && !self.is_read_only()
    }

    /// What the replicas here tell of themselves.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let groups = self.groups();
        groups.iter().map(|group| group.standing(self.links.unreadable.is(group.id))).collect()
    }

    pub(crate) fn initialised(&self) -> Vec<u32> {
        let groups = self.groups();
        let held = groups.iter().filter(|group| group.log.is_initialised()).map(|group| group.id.0);
        held.chain(self.forgotten.lock().keys().map(|group| group.0)).collect()
    }

    pub(crate) fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        match self.group(group) {
            Some(group) => group.leader.borrow().node,
            None => self.hints.lock().get(&group).copied(),
        }
    }

    /// Remembers the leader of a group that is not held here.
    pub(crate) fn note_leader(&self, group: GroupId, leader: Option<NodeId>) {
        if self.group(group).is_some() {
            return;
        }
        let mut hints = self.hints.lock();
        match leader {
            Some(leader) => hints.insert(group, leader),
            None => hints.remove(&group),
        };
    }

    pub(crate) fn hints_forget(&self, group: GroupId) {
        self.hints.lock().remove(&group);
    }

    /// Asks a node who it is, and tells it of the topology, or is told, whichever is newer. None when it does not answer, or belongs to another cluster.
    pub(crate) async fn hello(&self, node: NodeId) -> Option<quorumail_proto::peer::HelloReply> {
        let reply = self.say_hello(node, None).await?;
        let mine = self.topology();
        if let Some(newer) = reply.topology.clone() {
            let adopted = topology::from_wire(newer).and_then(|newer| self.adopt(newer));
            self.note_refused(node, adopted.err());
        } else {
            self.note_refused(node, None);
        }
        if reply.topology.is_none() && reply.generation < mine.generation {
            return self.say_hello(node, Some(&mine)).await;
        }
        Some(reply)
    }

    /// Warns of a topology that a node tells and that cannot be taken, once as long as it stays the same.
    fn note_refused(&self, node: NodeId, error: Option<TopologyError>) {
        let mut refused = self.refused.lock();
        match error {
            None => drop(refused.remove(&node)),
            Some(error) if refused.get(&node) == Some(&error) => {}
            Some(error) => {
                tracing::warn!(node, %error, "a node has a list of nodes that is not taken up");
                refused.insert(node, error);
            }
        }
    }

    async fn say_hello(
        &self,
        node: NodeId,
        tell: Option<&Topology>,
    ) -> Option<quorumail_proto::peer::HelloReply> {
        let link = self.links.get(node)?;
        let mut client = link.client().ok()?;
        let request = HelloRequest {
            node: self.config.node,
            version: self.config.version.clone(),
            cluster: self.config.cluster.clone(),
            generation: self.topology().generation,
            fingerprint: self.topology().fingerprint(),
            topology: tell.map(topology::to_wire),
            level: self.reached.level(),
            min_level: self.config.levels.min,
            max_level: self.config.levels.max,
        };
        match tokio::time::timeout(HELLO_TIMEOUT, client.hello(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if reply.cluster != self.config.cluster || reply.node != node {
                    return None;
                }
                // The node is about to end when the level is not known.
                self.refuse_unknown(reply.level).ok()?;
                self.note_levels(node, reply.max_level);
                Some(reply)
            }
            Ok(Err(status)) => {
                let reason = link.failed(&status);
                tracing::debug!(node, %reason, "no hello");
                None
            }
            Err(_) => None,
        }
    }

    /// The leader of a group, unless it has fallen silent: an engine goes on to name the last one until there is another, and
    /// without a majority there is never one.
    fn heard_leader(&self, group: &Group) -> Option<NodeId> {
        let leader = group.leader.borrow().node?;
        let is_there = if leader == self.config.node {
            group.leads(SILENT_LEADER)
        } else {
            // A quiet group is kept by the pulses of its leader's process.
            group.heard_within(SILENT_LEADER)
                || self.links.get(leader).is_some_and(|link| link.pulse.is_fresh(SILENT_LEADER))
        };
        is_there.then_some(leader)
    }

    fn status_of(&self, group: &Group) -> GroupStatus {
        // Asked before the engine's metrics are borrowed below: a second borrow while the engine waits to write them
        // would wait for the engine, and the engine for the first one, for ever.
        let in_sync = group.leads(self.config.lease()).then(|| self.in_sync(group));
        let heard = self.heard_leader(group);
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let mut voters: Vec<NodeId> = membership.voter_ids().collect();
        let mut learners: Vec<NodeId> = membership.learner_ids().collect();
        voters.sort_unstable();
        if voters.is_empty() && self.topology().is_original() {
            let founding = &self.founding[&group.id];
            (voters, learners) = (founding.voters.clone(), founding.learners.clone());
        }
        let last_log_index = metrics.last_log_index;
        // It was told by the engine a moment ago, of an older term perhaps.
        let leader = *group.leader.borrow();
        GroupStatus {
            group: group.id,
            voters,
            learners,
            leader: leader.node.filter(|_| leader.node == heard && leader.term == metrics.current_term),
            term: metrics.current_term,
            last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index),
            in_sync,
        }
    }

    /// The replicas that have answered within the lease and are nearly caught up; for the leader.
    pub(crate) fn in_sync(&self, group: &Group) -> Vec<NodeId> {
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let lease = self.config.lease();
        let vouched = group.quiet.vouches(lease);
        let answers = |node: &NodeId| {
            if vouched {
                return self.links.get(*node).is_some_and(|link| link.pulse.is_fresh(lease));
            }
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(node).copied().flatten());
            heard.is_some_and(|heard| heard.into_inner().elapsed() < lease)
        };
        let has_log = |node: &NodeId| {
            let matched =
                metrics.replication.as_ref().and_then(|matched| matched.get(node).copied().flatten());
            matched.is_some_and(|matched| matched.index + CAUGHT_UP_LAG >= last)
        };
        let membership = metrics.membership_config.membership();
        let nodes = membership.nodes().map(|(node, _)| *node);
        nodes.filter(|node| *node == self.config.node || (answers(node) && has_log(node))).collect()
    }

    fn metrics_of(&self, group: &Group) -> GroupMetrics {
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let lag = metrics.replication.as_ref().and_then(|matched| {
            let others = matched.iter().filter(|(node, _)| **node != self.config.node);
            others.map(|(_, matched)| last.saturating_sub(matched.map_or(0, |id| id.index))).max()
        });
        GroupMetrics {
            leader: group.leader.borrow().node,
            term: metrics.current_term,
            last_log_index: last,
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            follower_lag: lag,
            quiet: group.quiet.is_quiet(),
            may_vote: group.log.is_proven(),
        }
    }
}

/// The placement that a new cluster begins with. It depends on nothing that may be told differently later, zones for
/// example, so that all nodes at all times agree on who founds which group.
fn founders_placement(config: &Config) -> BTreeMap<GroupId, Placement> {
    let founders = config.topology.founders.iter().map(|id| Peer::new(*id, "")).collect::<Vec<_>>();
    founding(&Topology::from(founders), config.partitions, config.replicas)
}

fn engine_config(config: &Config) -> Result<openraft::Config, StartError> {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let engine = openraft::Config {
        cluster_name: config.cluster.clone(),
        heartbeat_interval: milliseconds(config.heartbeat),
        election_timeout_min: milliseconds(config.election_timeout.start),
        election_timeout_max: milliseconds(config.election_timeout.end),
        enable_pre_vote: Some(true),
        // A leader sends entries before its own disk has them, and keeps no word of what was committed last. Back after
        // a crash in its old term it would give the log indices of lost entries to others, which followers cannot tell
        // from the first ones, and would answer reads from a state that lies behind. It must be elected anew.
        enable_leader_restore: Some(mutation::is(Mutation::LeadAgainAfterCrash)),
        // A replica whose disk was lost comes back empty under its old number: its log goes back.
        allow_log_reversion: Some(true),
        max_payload_entries: MAX_APPEND_ENTRIES,
        // Checkpoints and retention are ours; the engine neither builds snapshots nor purges by itself.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..openraft::Config::default()
    };
    engine.validate().map_err(|error| StartError::Config(error.to_string()))
}
