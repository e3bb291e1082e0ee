//! The replicated state machine: directory, mailboxes, messages, queue.
//!
//! Deterministic: no clock, no randomness, no I/O but its index (fjall). Time and ids arrive inside commands, so
//! replicas that applied the same log hold the same state. Group 0 holds the directory; every other group holds the
//! mailboxes and queue entries of one partition. Message bodies stay in the journal: the index keeps where they lie.
//! It knows neither Raft nor a socket.

mod accounts;
mod answers;
mod apply;
#[cfg(feature = "simulation")]
mod audit;
mod backup;
mod bodies;
mod body_table;
mod chunks;
mod command;
mod compaction;
mod digests;
mod directory;
mod error;
mod export;
mod flags;
mod folder_name;
mod folders;
mod ids;
mod index;
mod keys;
mod lists;
mod live;
#[cfg(feature = "simulation")]
mod memory;
mod messages;
mod model;
mod query;
mod queue;
mod records;
mod recovery;
mod repair;
mod restore;
mod scrub;
mod snapshot;
mod store;
mod txn;
mod uids;
mod vault;

// Named by the types of this crate; imported once for all modules.
use quorumail_message::{Address, Domain};

pub use accounts::{MAX_DKIM_KEYS, MAX_LIST_BYTES, MAX_LIST_MEMBERS};
pub use apply::REMEMBERED_COMMANDS;
pub use backup::{BackupReader, PairKind, StateLoader, StatePair, StoredBody};
pub use bodies::{Bodies, BodyRef, CommandIndex, JournalBodies, KEPT_BODIES};
pub use command::{
    Applied, COMMAND_FORMAT, Command, CommandError, FolderSource, OUTCOME_FORMAT, Op, Outcome, Refusal,
    RestorePlace, RestoredAs, decode_outcome, encode_outcome,
};
pub use compaction::{
    BodyRecord, Compacted, CompactionPolicy, Compactor, Segment, Segments, Space, WRITE_BUDGET,
};
pub use digests::Digests;
pub use directory::{DeletedMailbox, Directory, ListPart, Resolution};
pub use error::StoreError;
pub use export::{Export, ExportVisit, ExportedBody, ExportedMessage};
pub use folders::INBOX_NUMBER;
pub use ids::{
    BodyId, CommandId, FolderId, ListId, MailboxId, ModSeq, PartitionId, QueueId, Timestamp, Uid,
    UidValidity, UploadId,
};
pub use lists::{
    BOUNCE_MEMORY_MILLIS, ListPost, MAX_EXPANDED, MAX_EXPANDING_POSTS, MAX_HELD_POSTS, MAX_SUBSCRIBERS,
    PostState, SUSPENDING_BOUNCES, Subscriber, SubscriberChange,
};
pub use live::RECORD_OVERHEAD;
#[cfg(feature = "simulation")]
pub use memory::MemoryIndex;
pub use model::{
    DeletedMessage, DkimAlgorithm, DkimKey, DomainRecord, Flag, Flags, FolderInfo, ListMember, ListRecord,
    ListRole, ListSecret, MailboxRecord, MessageMeta, Permissions, Posting, QueueClass, QueueEntry,
    QueueRecipient, Quota, SpecialUse, StoreFlags, StsMode, Subscription, Usage,
};
pub use query::{
    FolderChanges, FoundMessage, MessageError, Octets, QUERY_FORMAT, Query, REPLY_FORMAT, Reply, Selection,
};
pub use repair::{LostBody, Repair};
pub use restore::MAX_SOURCE_UID;
pub use scrub::{Findings, Scrubbed};
pub use snapshot::{SNAPSHOT_FORMAT, SnapshotReader, SnapshotWriter};
pub use store::{Change, LogCommand, Store};
pub use uids::FolderUids;
pub use vault::{MAX_KEPT_MESSAGES, MAX_UNDELETED};
