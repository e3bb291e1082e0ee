//! What a node must be told: who it is, who the others are, how fast to notice a loss.

use std::ops::Range;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

use crate::level::{LEVELS, Levels};
use crate::machine::NodeId;
use crate::topology::Topology;

/// A mailnode and where it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// `host:port` of its peer service.
    pub address: String,
    /// `host:port` of its admin service. Only told on, not used here.
    pub admin: String,
    /// Where it is: replicas of a group are put into different zones where there are enough. Nodes without one are all in
    /// the same.
    pub zone: String,
    /// Whether its replicas are to move to other nodes.
    pub leaving: bool,
}

impl Peer {
    /// A node without zone and admin service.
    pub fn new(id: NodeId, address: impl Into<String>) -> Peer {
        Peer { id, address: address.into(), ..Peer::default() }
    }
}

/// How much applied log is kept for followers that are behind. What is older is purged, and a follower that still
/// needs it gets a snapshot. The log is kept as long as neither bound is passed.
///
/// The bytes are those of the whole node, counted in segments of its journal: they bound what is looked through when the
/// node starts, and idle groups must not hold on to old segments. A follower needs what was written while it was away
/// for a restart: 1 GiB is most of a minute at 20 MB/s, more than such a cluster accepts for long, and hours of an
/// ordinary day. For whoever was away longer a snapshot is no detour, and the bodies in it are on this disk anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRetention {
    /// Entries a group; each takes some 40 bytes of memory.
    pub entries: u64,
    /// Bytes of the node's journal, by length of its segments; the newest segment is always kept.
    pub bytes: u64,
}

/// Settings of a node's consensus.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Cluster id. Nodes with another one are refused, so that two clusters whose addresses were mixed up never merge.
    pub cluster: String,
    /// Version told to peers.
    pub version: String,
    /// The format levels that this program reads and writes.
    pub levels: Levels,
    /// What was last given to [`StateMachine::reach_level`](crate::StateMachine::reach_level) on this disk; on an empty one
    /// the lowest of `levels`.
    pub level: u32,
    /// All nodes, as this one knows them when it starts.
    pub topology: Topology,
    /// Number of partitions; groups 1 to this. Group 0 always exists.
    pub partitions: u32,
    /// Voters a partition; fewer when there are fewer nodes.
    pub replicas: usize,
    /// How often a leader tells its followers that it is there.
    pub heartbeat: Duration,
    /// A leader is given up after the end of this range, and elections then start at a random moment within it.
    pub election_timeout: Range<Duration>,
    /// How much applied log is kept.
    pub log_retention: LogRetention,
    /// How much is kept at most for who wants it, see [`Consensus::want_log`](crate::Consensus::want_log).
    pub wanted_log: LogRetention,
    /// How often the state machine is made durable and the log before it purged.
    pub checkpoint_interval: Duration,
    /// Recent log entries kept in memory, all groups of the node together, in bytes.
    pub cache_bytes: u64,
    /// Commands being proposed through this node at once, in bytes. More must wait.
    pub proposal_bytes: usize,
    /// Snapshots that this node sends at once; each may take some 8 MiB of memory, more while a body of more than 1 MiB is under way.
    pub snapshots_at_once: usize,
    /// Bytes of snapshots that this node sends in a second, all of them together.
    pub snapshot_bytes_per_second: u64,
    /// Whether the preferred leader of a group takes the lead back when it is healthy again, and a leader gives its leads
    /// away while its disk is slow.
    pub balance: bool,
}

impl Config {
    /// The defaults of production.
    pub fn new(
        node: NodeId,
        cluster: impl Into<String>,
        topology: impl Into<Topology>,
        partitions: u32,
        replicas: usize,
    ) -> Config {
        Config {
            node,
            cluster: cluster.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            levels: LEVELS,
            level: LEVELS.min,
            topology: topology.into(),
            partitions,
            replicas,
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(350)..Duration::from_millis(500),
            log_retention: LogRetention { entries: 50_000, bytes: 1 << 30 },
            wanted_log: LogRetention { entries: 1_000_000, bytes: 8 << 30 },
            checkpoint_interval: Duration::from_secs(30),
            cache_bytes: 128 << 20,
            proposal_bytes: 128 << 20,
            snapshots_at_once: 2,
            snapshot_bytes_per_second: 64 << 20,
            balance: true,
        }
    }

    /// How often every node tells every other one that its process lives.
    pub(crate) fn pulse_interval(&self) -> Duration {
        self.heartbeat * 2
    }

    /// A leader that has heard from a majority within this time is sure that no other one has been elected.
    pub(crate) fn lease(&self) -> Duration {
        self.election_timeout.end
    }
}

/// Why a peer cannot be called at all (not: does not answer).
#[derive(Debug, thiserror::Error)]
#[error("cannot reach node {node}: {reason}")]
pub struct ConnectError {
    /// Which peer.
    pub node: NodeId,
    /// In words.
    pub reason: String,
}

/// How to reach a peer. Called again after every loss of a connection, so renewed certificates are taken up.
pub trait Connector: Send + Sync + 'static {
    /// A channel that connects when it is first used. Build it on [`endpoint`], which has the settings that
    /// consensus relies on to notice a lost peer quickly.
    fn channel(&self, peer: &Peer) -> Result<Channel, ConnectError>;
}

/// A peer that does not accept a connection in this time is taken as lost for now.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Pings on a connection, and how long their answer may take: a silently lost peer is noticed in the sum of both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2 flow control: large enough that one append of a large body does not wait for window updates.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Adds the settings that every channel to a peer needs: short connect timeout, keepalive, large windows, no delay.
pub fn endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Adds the settings that the server of the peer service needs: keepalive and large windows. The listener must set
/// TCP_NODELAY on what it accepts.
pub fn server(server: Server) -> Server {
    server
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}
