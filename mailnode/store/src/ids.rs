//! Identifiers and counters as types.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Which partition a mailbox or queue entry lives in: 1 to the number of partitions. It is the number of its Raft
    /// group; group 0 is the directory.
    PartitionId(u32)
}
number! {
    /// One mailbox (one address with its folders). Never used again for another.
    MailboxId(u64)
}
number! {
    /// One mailing list. Never used again for another.
    ListId(u64)
}
number! {
    /// One folder ("mailbox" in the words of IMAP) of a mailbox. Unique within the mailbox, never used again.
    FolderId(u64)
}
number! {
    /// RFC 9051 2.3.1.1: strictly ascending in a folder, never used again.
    Uid(u32)
}
number! {
    /// RFC 9051 2.3.1.1: together with name and UID it names a message for ever.
    UidValidity(u32)
}
number! {
    /// RFC 7162 3.1: grows with every change in a folder; below 2^63.
    ModSeq(u64)
}
number! {
    /// Names a body within its group: the index in the Raft log of the command that brought it. The same on all replicas,
    /// and never used again.
    BodyId(u64)
}
number! {
    /// Milliseconds since 1970-01-01 UTC, as told by the proposer of a command.
    Timestamp(i64)
}

impl ListId {
    /// The mailbox of the list's archive, in the list's home: lists and mailboxes are numbered together, so that no other has
    /// this number.
    pub fn archive(self) -> MailboxId {
        MailboxId(self.0)
    }
}

impl Timestamp {
    /// The instant `milliseconds` later.
    pub fn plus_millis(self, milliseconds: i64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Names a command, so that one proposed again after a change of leader is applied once. 128 random bits, or derived
/// from what must happen only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommandId(pub u128);

/// A body that comes in chunks: 128 random bits, fresh for each try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UploadId(pub u128);

/// One accepted message that waits for delivery. Unique over the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QueueId(pub u128);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for QueueId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}
