//! What consensus replicates, seen from its side: commands are bytes, and so are their answers.

use bytes::Bytes;
use quorumail_journal::Position;

/// Number of a Raft group. Group 0 is the directory, 1 to P are the partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct GroupId(pub u32);

/// Number of a mailnode, from 0 upwards.
pub type NodeId = u64;

/// A committed command on its way into the state machine.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Raft log index.
    pub index: u64,
    /// The format level that stood when it was appended: the same on all replicas, whenever they apply it.
    pub level: u32,
    /// The command, as proposed.
    pub command: Bytes,
    /// Where this replica's journal holds the record that carries the command.
    pub record: Position,
    /// Where in the record's payload the command starts.
    pub offset: u32,
}

/// Error of a state machine: the disk under its index failed or its data is damaged. The group stops on it.
#[derive(Debug, thiserror::Error)]
#[error("state machine of group {group}: {reason}")]
pub struct MachineError {
    /// Of which group.
    pub group: u32,
    /// In words.
    pub reason: String,
}

/// The state machine of all groups of a node. All calls may block on disk and are made off the async threads.
pub trait StateMachine: Send + Sync + 'static {
    /// What was given as `position` with the last batch applied to (or snapshot installed into) the group and is
    /// still there after a restart; none for an empty group. After a crash it may lie before batches applied since
    /// the last checkpoint: they are applied again from the log.
    fn position(&self, group: GroupId) -> Result<Option<Vec<u8>>, MachineError>;

    /// Applies commands in order, together with `position`, atomically for readers; answers one reply a command.
    /// A batch may be empty (only the position moves).
    fn apply(
        &self,
        group: GroupId,
        batch: Vec<Committed>,
        position: &[u8],
    ) -> Result<Vec<Bytes>, MachineError>;

    /// Answers a query from this replica's state.
    fn query(&self, group: GroupId, query: Bytes) -> Bytes;

    /// A consistent view of the group's state, with message bodies, as a stream of chunks of about 1 MiB at most (one
    /// larger body may make a larger chunk).
    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotReader>, MachineError>;

    /// Starts to replace the group's state by a snapshot; nothing changes until [`SnapshotWriter::finish`].
    fn install(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, MachineError>;

    /// Deletes the group's state, durably; there may be none. Called before an empty replica is made, and after one was
    /// removed.
    fn remove(&self, group: GroupId) -> Result<(), MachineError>;

    /// Notes that from now on this node may hold what is of a format level, so that a program that does not know it refuses to
    /// start on this disk. Durable on return; called before anything of the level is written.
    fn reach_level(&self, level: u32) -> Result<(), MachineError>;

    /// The body that the command at a log index brought, for another replica that has lost it to its disk; none when this
    /// one has none of that name. Nobody is asked for it: two that have both lost it would ask each other for ever.
    fn body(&self, group: GroupId, index: u64) -> Result<Option<Bytes>, MachineError>;

    /// Makes everything applied so far durable, so that the log before it is no longer needed for recovery.
    fn checkpoint(&self) -> Result<(), MachineError>;
}

/// A snapshot being read.
pub trait SnapshotReader: Send {
    /// What was given as `position` when the state was applied.
    fn position(&self) -> &[u8];
    /// The next chunk; none at the end.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError>;
}

/// A snapshot being installed. Dropped before `finish`, it leaves the state as it was.
pub trait SnapshotWriter: Send {
    /// Takes the next chunk, as the reader gave it.
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError>;
    /// Replaces the group's state, durably, together with `position`.
    fn finish(self: Box<Self>, position: &[u8]) -> Result<(), MachineError>;
}
