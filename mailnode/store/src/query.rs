//! Queries: what is read from a partition. They travel between nodes when the node that was asked holds no replica.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    FolderId, FolderInfo, MailboxId, MessageMeta, ModSeq, QueueClass, QueueEntry, QueueId, Timestamp, Uid,
    Usage,
};

/// A question to one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// All folders of a mailbox, by name. [`Reply::Folders`]; empty when the mailbox was never opened.
    Folders(MailboxId),
    /// [`Reply::Folder`].
    Folder {
        /// Whose.
        mailbox: MailboxId,
        /// Full name; `INBOX` in any case.
        name: String,
    },
    /// Messages of a folder, ascending by UID. [`Reply::Messages`].
    Messages {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
    },
    /// What changed in a folder after `since`. [`Reply::Changes`].
    Changes {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
        /// The MODSEQ up to which the asker knows everything.
        since: ModSeq,
    },
    /// Bodies of messages, in the order asked, as many as fit in `max_bytes` but at least one; a message that is gone is
    /// `None`. [`Reply::Bodies`].
    Bodies {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
        /// Which messages.
        uids: Vec<Uid>,
        /// Of each body only this many bytes from the start; zero: all.
        prefix: u32,
        /// Bound on the answer.
        max_bytes: u32,
    },
    /// [`Reply::Usage`], one for each mailbox asked, zero for one never opened.
    Usage(Vec<MailboxId>),
    /// Entries with a recipient that is due at `now`, earliest first; classes Local and Remote only. [`Reply::Queue`].
    QueueDue {
        /// The asker's clock.
        now: Timestamp,
        /// At most this many.
        limit: u32,
    },
    /// Entries, oldest first. [`Reply::Queue`].
    QueueList {
        /// Only those with a recipient of this class.
        class: Option<QueueClass>,
        /// At most this many.
        limit: u32,
    },
    /// [`Reply::QueueEntry`].
    QueueEntry(QueueId),
    /// Number of recipients by class, and the arrival of the oldest entry of each. [`Reply::QueueCounts`].
    QueueCounts,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// By name.
    Folders(Vec<FolderInfo>),
    /// None: there is no such folder.
    Folder(Option<FolderInfo>),
    /// None: there is no such folder.
    Messages(Option<(FolderInfo, Vec<MessageMeta>)>),
    /// None: there is no such folder.
    Changes(Option<FolderChanges>),
    /// In the order asked; shorter than asked when the bound was reached.
    Bodies(Vec<Option<Bytes>>),
    /// In the order asked.
    Usage(Vec<Usage>),
    /// Entries without their bodies.
    Queue(Vec<QueueEntry>),
    /// With the body.
    QueueEntry(Option<(QueueEntry, Bytes)>),
    /// Class, recipients, arrival of the oldest.
    QueueCounts(Vec<(QueueClass, u64, Option<Timestamp>)>),
    /// A body could not be read from this replica's disk.
    Unreadable(String),
}

/// What changed in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderChanges {
    /// The folder now.
    pub folder: FolderInfo,
    /// New and changed messages, ascending by UID.
    pub changed: Vec<MessageMeta>,
    /// Expunged UIDs, ascending. None: `since` lies before what is remembered, and `changed` holds all messages.
    pub vanished: Option<Vec<Uid>>,
}

impl Query {
    /// The bytes that travel between nodes.
    pub fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a query holds no type that postcard refuses").into()
    }

    /// Reads what [`Query::encode`] wrote; none for other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

impl Reply {
    /// The bytes that travel between nodes.
    pub fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a reply holds no type that postcard refuses").into()
    }

    /// Reads what [`Reply::encode`] wrote; none for other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}
