//! The types that openraft is parameterised with. They stay inside this crate.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;

/// What a log entry carries besides memberships.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Command {
    /// A command as proposed. Its content is none of our business, so only its size is ever shown.
    Normal(Bytes),
    /// The mark that from here on the group is at a format level.
    Level(u32),
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Normal(bytes) => write!(f, "Command({} bytes)", bytes.len()),
            Command::Level(level) => write!(f, "Level({level})"),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Normal(bytes) => write!(f, "{} bytes", bytes.len()),
            Command::Level(level) => write!(f, "format level {level}"),
        }
    }
}

openraft::declare_raft_types!(
    /// One leader a term, nodes known by number only (addresses come from the configuration), answers as bytes.
    pub(crate) TypeConfig:
        D = Command,
        R = Bytes,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::runtime::Runtime,
);

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::EntryPayload<Command, u64, openraft::EmptyNode>;
pub(crate) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, crate::adapter::SnapshotData>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResult = openraft::raft::StreamAppendResult<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
pub(crate) type RpcError = openraft::errors::RPCError<TypeConfig>;
pub(crate) type Unreachable = openraft::errors::Unreachable<TypeConfig>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::adapter::Adapter>;

/// Log id from its parts.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// Term of the leader that proposed the entry.
pub(crate) fn term_of(id: &LogId) -> u64 {
    id.leader_id.term
}

/// Size of the command in an entry, in bytes.
pub(crate) fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(Command::Normal(command)) => command.len(),
        Payload::Normal(Command::Level(_)) | Payload::Blank | Payload::Membership(_) => 0,
    }
}
