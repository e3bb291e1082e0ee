//! Raft groups over the node's journal and the peer transport.
//!
//! Group 0 (directory: up to five voters, every other node a learner) and the partitions (three voters each, spread
//! over the nodes) share one journal and one channel a peer. It knows nothing of mail: commands, queries and answers
//! are bytes. Nothing outside this crate imports openraft.

mod machine;

pub use machine::{Committed, GroupId, MachineError, NodeId, SnapshotReader, SnapshotWriter, StateMachine};
