//! One run's cluster: nodes, their disks, the network between them, and what is known of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorumail_consensus::{Config, GroupId, LogRetention, NodeId, Topology};
use quorumail_store::Timestamp;

use crate::check::Checker;
use crate::compaction::Rate;
use crate::membership;
use crate::network::{Network, Weather};
use crate::node::{self, Disks, Node};
use crate::random::Random;
use crate::rot;
use crate::trace::Trace;

/// The clients' clocks begin here.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// How often who leads is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// How often replicas that happen to be equally far are compared.
const COMPARE_INTERVAL: Duration = Duration::from_millis(400);

/// Weather without faults.
pub(crate) const CALM: Weather = Weather { delay_ms: 1, stalls: 0, stall_ms: 0, repeats: 0 };

/// What a run is made of, drawn from its seed.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) nodes: u64,
    pub(crate) partitions: u32,
    pub(crate) clients: u64,
    /// How long faults and new work go on.
    pub(crate) faults_for: Duration,
    retention: LogRetention,
    checkpoint_interval: Duration,
    cache_bytes: u64,
    balance: bool,
    pub(crate) compaction: Rate,
    pub(crate) rot: rot::Habits,
    /// Whether nodes come and go.
    pub(crate) changes_members: bool,
}

impl Shape {
    fn draw(random: &mut Random) -> Shape {
        Shape {
            nodes: if random.chance(200) { 5 } else { 3 },
            partitions: 2,
            clients: random.within(2..5),
            faults_for: Duration::from_millis(random.within(2_500..7_000)),
            retention: LogRetention { entries: random.within(5..60), bytes: 64 << 10 },
            checkpoint_interval: Duration::from_millis(random.within(200..2_000)),
            cache_bytes: random.within(1..64) << 10,
            balance: random.chance(700),
            compaction: Rate::draw(random),
            rot: rot::Habits::draw(random),
            changes_members: random.chance(350),
        }
    }
}

/// A node's place in the world.
#[derive(Default)]
struct Place {
    node: Option<Arc<Node>>,
    disks: Option<Disks>,
    /// Counts its starts.
    life: u64,
    /// Its syncs take up to so many milliseconds.
    sync_ms: u64,
    /// Bits of its disk were flipped: it may refuse to start, or to read.
    damaged: bool,
    /// When bits of its sealed segments flipped last, unless a whole pass of its scrubber has found nothing since.
    rotten: Option<tokio::time::Instant>,
    /// When it crashed last after its disk had rotted, unless a whole pass has found nothing since: a repair that its index
    /// had not made durable is to be done again.
    relapsed: Option<tokio::time::Instant>,
    /// Bits of its disk have flipped at some time: what nobody needs may be rotten still.
    ever_rotten: bool,
    /// Its disk was lost or damaged, and it has not caught up on another one since: what it had may be on the other disks
    /// only.
    lacking: bool,
    /// Its disk is full or fails just now.
    failing: bool,
    /// Its disk was full or failed since it was started: a write that failed stays failed until the node has ended.
    has_failed: bool,
}

impl Place {
    /// Whether bodies on its disk may be rotten where the index points to.
    fn may_have_rot(&self) -> bool {
        self.rotten.is_some() || self.relapsed.is_some()
    }
}

/// How the start of a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    Up,
    /// Its disk is full or fails, or its power does; later, perhaps.
    Failing,
    /// What its disk holds is damaged, and it says so.
    Damaged,
    /// It refuses for no good reason.
    Wrong,
}

/// Everything of one run.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    pub(crate) trace: Arc<Trace>,
    pub(crate) checker: Checker,
    pub(crate) network: Network,
    places: Mutex<BTreeMap<NodeId, Place>>,
    /// What the operator wants, and has written into the nodes' configuration.
    topology: Mutex<Topology>,
    next_id: AtomicU64,
    random: Mutex<Random>,
    clock_offset_ms: AtomicI64,
    /// No new work is begun any more.
    pub(crate) closing: AtomicBool,
    /// Commands and queries that were answered.
    pub(crate) answered: AtomicU64,
    reached: Mutex<Reached>,
}

/// How often a run came to what is rare: a check that faults reach what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Snapshots installed.
    pub snapshots: u64,
    /// Snapshots that were not sent because the leader could not read its replica.
    pub unreadable: u64,
    /// Segments of which the live bodies were moved away.
    pub compacted: u64,
    /// Bodies moved for it.
    pub moved_bodies: u64,
    /// Changes of the members brought to their end.
    pub changes: u64,
    /// Strikes of rot.
    pub rots: u64,
    /// Bodies that came back from other replicas.
    pub repaired: u64,
    /// Tries for which no replica had what was lost just then.
    pub not_repaired: u64,
    /// Segments that the logs have left behind because of rot.
    pub retired: u64,
}

impl Reached {
    /// Adds what another run, or node, came to.
    pub fn add(&mut self, other: Reached) {
        self.snapshots += other.snapshots;
        self.unreadable += other.unreadable;
        self.compacted += other.compacted;
        self.moved_bodies += other.moved_bodies;
        self.changes += other.changes;
        self.rots += other.rots;
        self.repaired += other.repaired;
        self.not_repaired += other.not_repaired;
        self.retired += other.retired;
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Arc<World> {
        let mut random = Random::of(seed, 1);
        let shape = Shape::draw(&mut random);
        let trace = Arc::new(Trace::new());
        let network = Network::new(Random::of(seed, 2), CALM);
        let places = (0..shape.nodes).map(|id| {
            let disks = Some(Disks::new(seed ^ (id + 1).wrapping_mul(0x5851_f42d_4c95_7f2d)));
            (id, Place { disks, sync_ms: 2, ..Place::default() })
        });
        let places = Mutex::new(places.collect());
        let checker = Checker::new(trace.clone());
        trace.event(format!("{shape:?}"));
        Arc::new(World {
            seed,
            checker,
            trace,
            network,
            places,
            topology: Mutex::new(Topology::from((0..shape.nodes).map(membership::peer).collect::<Vec<_>>())),
            next_id: AtomicU64::new(shape.nodes),
            shape,
            random: Mutex::new(random),
            clock_offset_ms: AtomicI64::new(0),
            closing: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            reached: Mutex::default(),
        })
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.shape.partitions).map(GroupId)
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.places.lock().keys().copied().collect()
    }

    pub(crate) fn topology(&self) -> Topology {
        self.topology.lock().clone()
    }

    /// From now on nodes that are started find this topology in their configuration.
    pub(crate) fn set_topology(&self, topology: Topology) {
        *self.topology.lock() = topology;
    }

    /// The number of the next node that is added.
    pub(crate) fn next_id(&self) -> NodeId {
        self.next_id.load(Ordering::Relaxed)
    }

    /// Makes room for a node; it is down.
    pub(crate) fn add(&self, id: NodeId) {
        self.next_id.fetch_max(id + 1, Ordering::Relaxed);
        let disks = Some(Disks::new(self.random.lock().any()));
        self.places.lock().insert(id, Place { disks, sync_ms: 2, ..Place::default() });
    }

    /// A node that was taken out of the topology is stopped for ever.
    pub(crate) fn remove(&self, id: NodeId) {
        self.crash(id, false);
        self.places.lock().remove(&id);
        self.trace.event(format!("node {id} is gone for good"));
    }

    /// Whether there is such a node, running or not.
    pub(crate) fn has(&self, id: NodeId) -> bool {
        self.places.lock().contains_key(&id)
    }

    pub(crate) fn note_change(&self) {
        self.reached.lock().changes += 1;
    }

    /// The node, if it runs.
    pub(crate) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.places.lock().get(&id).and_then(|place| place.node.clone())
    }

    /// All nodes that run.
    pub(crate) fn running(&self) -> Vec<Arc<Node>> {
        self.places.lock().values().filter_map(|place| place.node.clone()).collect()
    }

    /// What a client's clock says: it may jump, ahead and back.
    pub(crate) fn clock(&self) -> Timestamp {
        let elapsed = i64::try_from(self.trace.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp(EPOCH_MS + elapsed + self.clock_offset_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn jump_clock(&self, to_offset_ms: i64) {
        self.clock_offset_ms.store(to_offset_ms, Ordering::Relaxed);
    }

    /// How long the node's next sync takes.
    pub(crate) fn sync_time(&self, id: NodeId) -> Duration {
        let most = self.places.lock().get(&id).map_or(0, |place| place.sync_ms);
        Duration::from_millis(self.random.lock().within(0..most + 1))
    }

    pub(crate) fn set_sync_time(&self, id: NodeId, most_ms: u64) {
        if let Some(place) = self.places.lock().get_mut(&id) {
            place.sync_ms = most_ms;
        }
    }

    /// How often the node was started.
    pub(crate) fn life(&self, id: NodeId) -> u64 {
        self.places.lock().get(&id).map_or(0, |place| place.life)
    }

    /// Whether the node's disk may answer errors: it fails, is full, loses its power or has rot.
    pub(crate) fn may_fail(&self, id: NodeId) -> bool {
        let places = self.places.lock();
        places.get(&id).is_some_and(|place| {
            let lost_power = place.disks.as_ref().is_some_and(|disks| disks.disk.has_lost_power());
            place.failing || place.damaged || place.may_have_rot() || lost_power
        })
    }

    /// Whether what the node writes may answer errors: its disk may, or failed since the node was started.
    pub(crate) fn may_fail_to_write(&self, id: NodeId) -> bool {
        self.places.lock().get(&id).is_some_and(|place| place.has_failed) || self.may_fail(id)
    }

    /// What the run came to until now.
    pub(crate) fn reached(&self) -> Reached {
        let mut reached = *self.reached.lock();
        self.running().iter().for_each(|node| reached.add(node.reached()));
        reached
    }

    /// Does something to a node's disks.
    pub(crate) fn with_disks<T>(&self, id: NodeId, run: impl FnOnce(&mut Disks) -> T) -> Option<T> {
        self.places.lock().get_mut(&id)?.disks.as_mut().map(run)
    }

    /// Notes that a node's disk was damaged on purpose.
    pub(crate) fn note_damage(&self, id: NodeId) {
        if let Some(place) = self.places.lock().get_mut(&id) {
            place.damaged = true;
            place.lacking = true;
        }
    }

    /// Notes that bits of a node's sealed segments have flipped.
    pub(crate) fn note_rot(&self, id: NodeId) {
        if let Some(place) = self.places.lock().get_mut(&id) {
            place.rotten = Some(tokio::time::Instant::now());
            place.ever_rotten = true;
            place.lacking = true;
        }
        self.reached.lock().rots += 1;
    }

    /// A node has read all of its sealed segments since then, and nothing was amiss.
    pub(crate) fn note_clean_pass(&self, id: NodeId, begun: tokio::time::Instant) {
        let mut places = self.places.lock();
        let Some(place) = places.get_mut(&id) else { return };
        let since = place.rotten.max(place.relapsed);
        if place.node.is_some() && since.is_some_and(|since| since < begun) {
            (place.rotten, place.relapsed) = (None, None);
            drop(places);
            self.trace.event(format!("node {id} is free of rot"));
        }
    }

    /// Whether there is rot on some disk that was not found or not mended yet.
    pub(crate) fn has_rot(&self) -> bool {
        self.places.lock().values().any(|place| place.may_have_rot() && !place.damaged)
    }

    /// Whether a node may rightly be unable to read something.
    pub(crate) fn has_lost_something(&self) -> bool {
        self.places.lock().values().any(|place| place.may_have_rot() || place.damaged)
    }

    /// Whether no disk lacks anything, all nodes run, and all replicas have applied the same.
    pub(crate) fn has_everything_everywhere(&self) -> bool {
        self.places.lock().values().all(|place| !place.lacking && !place.failing)
            && self.is_whole()
            && self.groups().all(|group| self.compare(group))
    }

    /// Whether bits of a node's disk have flipped at some time.
    pub(crate) fn was_rotten(&self, id: NodeId) -> bool {
        self.places.lock().get(&id).is_some_and(|place| place.ever_rotten)
    }

    /// Whether a node's disk fails or is full just now.
    pub(crate) fn is_failing(&self, id: NodeId) -> bool {
        self.places.lock().get(&id).is_some_and(|place| place.failing)
    }

    /// The segment of a node's journal from which on its logs need it; for a node that is down, none is known to be free.
    pub(crate) fn floor(&self, id: NodeId) -> u64 {
        self.node(id).map_or(0, |node| node.journal.stats().floor)
    }

    /// Whether a node's disk may be lost: all others have what it has, or had it when they were cut off. A second loss
    /// before the first is refilled may lose what was acknowledged, and no system with three replicas promises
    /// otherwise.
    pub(crate) fn can_lose_disk(&self, id: NodeId) -> bool {
        self.places.lock().iter().all(|(other, place)| *other == id || !place.lacking)
    }

    /// Notes which nodes have caught up since their disk was lost.
    fn note_refilled(&self) {
        let (mut refilled, voting) = (Vec::new(), self.voting());
        // Damage may come to light at any later start, and then nothing of that disk counts.
        let lacking =
            |(_, place): &(&NodeId, &mut Place)| place.lacking && !place.damaged && !place.may_have_rot();
        for (id, place) in self.places.lock().iter_mut().filter(lacking) {
            if place.node.as_ref().is_some_and(|node| is_refilled(node, &voting)) {
                place.lacking = false;
                refilled.push(*id);
            }
        }
        for id in refilled {
            self.trace.event(format!("node {id} has caught up"));
        }
    }

    /// Which groups a node votes in, by the word of any node that runs. One that lost its disk does not know it at first.
    fn voting(&self) -> BTreeSet<(NodeId, GroupId)> {
        let statuses = self.running().into_iter().flat_map(|node| node.consensus.status());
        statuses
            .flat_map(|status| status.voters.into_iter().map(move |voter| (voter, status.group)))
            .collect()
    }

    /// With the newest topology that the node knows, of its configuration and of its disk. None when that has no such node
    /// any more: in production it does not start then.
    fn config(&self, id: NodeId, disks: &Disks) -> Option<Config> {
        let configured = self.topology();
        let kept = disks.topology.lock().clone();
        let topology = kept.filter(|kept| kept.generation >= configured.generation).unwrap_or(configured);
        topology.node(id)?;
        let mut config = Config::new(id, "simulated", topology, self.shape.partitions, 3);
        config.log_retention = self.shape.retention;
        config.checkpoint_interval = self.shape.checkpoint_interval;
        config.cache_bytes = self.shape.cache_bytes;
        config.balance = self.shape.balance;
        Some(config)
    }

    /// Notes whether a node's disk fails or is full just now.
    pub(crate) fn note_failing(&self, id: NodeId, failing: bool) {
        if let Some(place) = self.places.lock().get_mut(&id) {
            place.failing = failing;
            place.has_failed |= failing;
        }
    }

    /// The node whose disk was damaged and not replaced since, if there is one.
    pub(crate) fn damaged(&self) -> Option<NodeId> {
        self.places.lock().iter().find(|(_, place)| place.damaged).map(|(id, _)| *id)
    }

    /// Starts a node that is down.
    pub(crate) async fn start(self: &Arc<World>, id: NodeId) -> Started {
        // The disks are out of their place while the node starts: nothing else can start it meanwhile.
        let taken = self.places.lock().get_mut(&id).and_then(|place| {
            place.life += 1;
            place.has_failed = place.failing;
            place.disks.take()
        });
        let Some(mut disks) = taken else { return Started::Up };
        let started = match self.config(id, &disks) {
            Some(config) => node::start(self, config, &mut disks).await,
            None => {
                if let Some(place) = self.places.lock().get_mut(&id) {
                    place.disks = Some(disks);
                }
                return Started::Failing;
            }
        };
        let lost_power = started.is_err() && disks.disk.has_lost_power();
        if lost_power {
            disks.crash(&mut self.random.lock());
        }
        let mut places = self.places.lock();
        let Some(place) = places.get_mut(&id) else {
            // Taken out for good meanwhile.
            drop(places);
            if let Ok(node) = started {
                self.network.crash(id, false);
                node.kill();
            }
            return Started::Failing;
        };
        place.disks = Some(disks);
        match started {
            Ok(node) => {
                let dead = node.is_dead();
                place.node = Some(Arc::new(node));
                drop(places);
                self.trace.event(format!("node {id} is up"));
                if dead {
                    self.died(id, "its disk failed while it started");
                }
                Started::Up
            }
            Err(_) if lost_power => {
                drop(places);
                self.trace.event(format!("node {id} loses power while it starts"));
                Started::Failing
            }
            Err(reason) => {
                // All of a disk that failed is read back, what nobody needs as well.
                let is_unproven = place.ever_rotten && reason.contains("Unproven");
                let damaged = place.damaged || place.rotten.is_some() || is_unproven;
                let failing = place.failing;
                drop(places);
                self.trace.event(format!("node {id} refuses to start: {reason}"));
                match (failing, damaged) {
                    (true, _) => Started::Failing,
                    (false, true) => Started::Damaged,
                    (false, false) => {
                        self.trace.violation(format!("node {id} refuses to start on a good disk: {reason}"));
                        Started::Wrong
                    }
                }
            }
        }
    }

    /// A node loses its power.
    pub(crate) fn crash(&self, id: NodeId, silent: bool) {
        let taken = self.places.lock().get_mut(&id).and_then(|place| {
            let node = place.node.take()?;
            if place.ever_rotten {
                place.relapsed = Some(tokio::time::Instant::now());
                place.lacking = true;
            }
            Some(node)
        });
        let Some(node) = taken else { return };
        self.network.crash(id, silent);
        node.kill();
        self.reached.lock().add(node.reached());
        let mut random = self.random.lock();
        self.with_disks(id, |disks| disks.crash(&mut random));
        drop(random);
        self.trace.event(format!("node {id} crashes{}", if silent { " and answers nobody" } else { "" }));
    }

    /// A node ends itself because its disk failed.
    pub(crate) fn died(&self, id: NodeId, reason: &str) {
        self.trace.event(format!("node {id} stops: {reason}"));
        self.crash(id, false);
    }

    /// A node that is down gets an empty disk.
    pub(crate) fn wipe(&self, id: NodeId) {
        let seed = self.random.lock().any();
        if let Some(place) = self.places.lock().get_mut(&id) {
            // A node that is being started has its disks: too late.
            let Some(disks) = &place.disks else { return };
            place.disks = Some(Disks { life: disks.life, ..Disks::new(seed) });
            (place.damaged, place.ever_rotten) = (false, false);
            (place.rotten, place.relapsed) = (None, None);
            place.lacking = true;
        }
        self.trace.event(format!("node {id} has an empty disk"));
    }

    /// The node that leads most groups, as the nodes that run believe.
    pub(crate) fn leads_most(&self) -> Option<NodeId> {
        let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
        for status in self.running().iter().flat_map(|node| node.consensus.status()) {
            if let Some(leader) = status.leader {
                *leads.entry(leader).or_default() += 1;
            }
        }
        leads.into_iter().max_by_key(|(_, groups)| *groups).map(|(id, _)| id)
    }

    /// Whether every node runs and every replica has caught up so far that it may vote.
    pub(crate) fn is_whole(&self) -> bool {
        let running = self.running();
        running.len() == self.places.lock().len()
            && running.iter().all(|node| node.consensus.may_vote_everywhere())
    }

    /// Tells for every node how far its replicas are.
    pub(crate) fn tell(&self) {
        for node in self.running() {
            let unproven = node.consensus.unproven();
            for status in node.consensus.status() {
                let may_vote = if unproven.contains(&status.group) { ", may not vote" } else { "" };
                self.trace.event(format!(
                    "node {}, group {}: term {}, leader {:?}, log to {:?}, applied to {:?}, voters {:?}{may_vote}",
                    node.id,
                    status.group.0,
                    status.term,
                    status.leader,
                    status.last_log_index,
                    status.applied_index,
                    status.voters,
                ));
            }
        }
    }

    /// Looks at who leads, and at replicas that are equally far, until the run ends.
    pub(crate) async fn watch(self: Arc<World>) {
        let mut compared = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.note_refilled();
            for node in self.running() {
                for status in node.consensus.status() {
                    if let Some(leader) = status.leader {
                        self.checker.leads(status.group, status.term, leader);
                    }
                }
            }
            if compared.elapsed() >= COMPARE_INTERVAL {
                compared = tokio::time::Instant::now();
                for group in self.groups() {
                    self.compare(group);
                }
            }
        }
    }

    /// Compares the replicas of a group that have applied equally much; whether all that run have.
    pub(crate) fn compare(&self, group: GroupId) -> bool {
        let mut at: BTreeMap<Vec<u8>, (NodeId, [u8; 32])> = BTreeMap::new();
        for node in self.running().iter().filter(|node| node.consensus.holds(group)) {
            let read = node.store.position(group.0);
            let Ok(position) = read else { continue };
            let Ok(print) = node.store.fingerprint(group.0) else { continue };
            let (other, known) = *at.entry(position.unwrap_or_default()).or_insert((node.id, print));
            if known != print {
                self.trace.violation(format!(
                    "nodes {other} and {} have applied the same of group {} and differ",
                    node.id, group.0
                ));
            }
        }
        at.len() <= 1
    }

    /// Reads all of a group on every node that holds it: replicas that have applied the same have the same, bodies
    /// included.
    pub(crate) fn read_all(&self, group: GroupId) {
        let mut first: Option<(NodeId, u64)> = None;
        for node in self.running().iter().filter(|node| node.consensus.holds(group)) {
            let hash = match node.read_all(group) {
                Ok(hash) => hash,
                Err(_) if self.may_fail(node.id) => continue,
                Err(reason) => {
                    self.trace.violation(format!("node {} cannot read group {}: {reason}", node.id, group.0));
                    continue;
                }
            };
            let (other, known) = *first.get_or_insert((node.id, hash));
            if known != hash {
                self.trace.violation(format!("nodes {other} and {} differ in group {}", node.id, group.0));
            }
        }
    }
}

/// Whether a node holds all groups that it votes in, and may vote in them.
fn is_refilled(node: &Node, voting: &BTreeSet<(NodeId, GroupId)>) -> bool {
    let mut mine = voting.iter().filter(|(id, _)| *id == node.id);
    node.consensus.may_vote_everywhere() && mine.all(|(_, group)| node.consensus.holds(*group))
}
