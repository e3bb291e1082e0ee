//! The replicated state machine: directory, mailboxes, messages, queue.
//!
//! Deterministic: no clock, no randomness, no I/O but its index (fjall). Time and ids arrive inside commands, so
//! replicas that applied the same log hold the same state. Group 0 holds the directory; every other group holds the
//! mailboxes and queue entries of one partition. Message bodies stay in the journal: the index keeps where they lie.
//! It knows neither Raft nor a socket.

mod command;
mod ids;
mod model;
mod query;

pub use command::{Applied, COMMAND_FORMAT, Command, CommandError, Op, Outcome, Refusal};
pub use ids::{CommandId, FolderId, MailboxId, ModSeq, PartitionId, QueueId, Timestamp, Uid, UidValidity};
pub use model::{
    DomainRecord, Flag, Flags, FolderInfo, MailboxRecord, MessageMeta, Permissions, QueueClass, QueueEntry,
    QueueRecipient, Quota, SpecialUse, StoreFlags, Usage,
};
pub use query::{FolderChanges, Query, Reply};
