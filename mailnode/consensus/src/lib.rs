//! Raft groups over the node's journal and the peer transport.
//!
//! Group 0 (directory: up to five voters, every other node a learner) and the partitions (three voters each, spread
//! over the nodes) share one journal and one channel a peer. It knows nothing of mail: commands, queries and answers
//! are bytes. Nothing outside this crate imports openraft.
//!
//! Which nodes there are is a [`Topology`] that can change while they run ([`Consensus::reconfigure`]): the node that
//! leads the directory plans who is to hold what, and the leaders of the groups move their memberships there.
//!
//! [`open_log`] replays the journal, [`Consensus::start`] starts the groups, [`Consensus::peer_service`] is what other
//! nodes call. [`Consensus::propose`] returns once a majority has the command on disk and it is applied;
//! [`Consensus::query`] reads what is certain to contain everything acknowledged before. What rots on this node's disk is
//! mended with [`Consensus::fetch_body`] and [`Consensus::retire_log`].

mod adapter;
mod batches;
mod bodies;
mod committed;
mod config;
mod coordinator;
mod disk;
mod failover;
mod fatal;
mod group;
mod lane;
mod level;
mod log;
mod machine;
mod memory;
mod metrics;
mod network;
mod node;
mod open;
mod pace;
mod placement;
mod propose;
mod pulse;
mod quiet;
mod record;
mod replicas;
mod reshape;
mod retire;
mod runtime;
mod service;
mod snapshot_in;
mod snapshot_out;
mod tend;
mod topology;
mod types;
mod unreadable;
mod wire;

pub use adapter::applied_index;
pub use committed::{CommittedError, CommittedLog};
pub use config::{Config, ConnectError, Connector, LogRetention, Peer, endpoint, server};
pub use coordinator::{GroupProgress, Progress};
pub use level::{FIRST_LEVEL, LEVELS, LevelError, Levels};
pub use machine::{Committed, GroupId, MachineError, NodeId, SnapshotReader, SnapshotWriter, StateMachine};
pub use metrics::{GroupMetrics, LATENCY_BUCKETS_US, Metrics};
pub use node::{Consensus, GroupStatus, StartError, Writes};
pub use open::{OpenError, RecoveredLog, open_log, open_log_on};
pub use placement::{Current, DIRECTORY_VOTERS, Placement, founding, placement};
pub use propose::{MAX_COMMAND_BYTES, ProposeError};
pub use record::{COMMAND_OFFSET, command_index};
pub use runtime::offload;
#[cfg(feature = "simulation")]
pub use runtime::seed_random_numbers;
pub use service::PeerService;
pub use topology::{MAX_NODES, Topology, TopologyError};
pub use wire::MAX_MESSAGE_BYTES;
