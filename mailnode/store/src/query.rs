//! Queries: what is read from a partition. They travel between nodes when the node that was asked holds no replica.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Address, DeletedMessage, FolderId, FolderInfo, FolderUids, ListId, ListPost, MailboxId, MessageMeta,
    ModSeq, QueueClass, QueueEntry, QueueId, Subscriber, Timestamp, Uid, Usage,
};

/// Version of a query's encoding, its first byte; the rest is postcard.
pub const QUERY_FORMAT: u8 = 3;
/// Version of a reply's encoding, its first byte; the rest is postcard.
pub const REPLY_FORMAT: u8 = 3;

/// Bytes from another node that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Of another version.
    #[error(
        "a {what} has format {found}, and this version knows format {known}; run one version on all nodes"
    )]
    Format {
        /// What it should have been.
        what: &'static str,
        /// What its first byte says.
        found: u8,
        /// What this version reads.
        known: u8,
    },
    /// Cut off or damaged.
    #[error("a {0} cannot be decoded")]
    Malformed(&'static str),
}

/// A message that begins with its format.
pub(crate) fn encode(format: u8, message: &impl Serialize) -> Bytes {
    postcard::to_extend(message, vec![format]).expect("messages hold no type that postcard refuses").into()
}

pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    known: RangeInclusive<u8>,
    bytes: &[u8],
) -> Result<T, MessageError> {
    match bytes.split_first() {
        Some((format, rest)) if known.contains(format) => {
            postcard::from_bytes(rest).map_err(|_| MessageError::Malformed(what))
        }
        Some((found, _)) => Err(MessageError::Format { what, found: *found, known: *known.end() }),
        None => Err(MessageError::Malformed(what)),
    }
}

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
    /// A folder by number. [`Reply::Folder`].
    FolderNumber {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
    },
    /// What SELECT needs, whatever the folder's size. [`Reply::Selected`].
    Select {
        /// Whose.
        mailbox: MailboxId,
        /// Full name; `INBOX` in any case.
        name: String,
    },
    /// What changed in a folder, in pages. [`Reply::Changes`].
    Changes {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
        /// Expunges after this MODSEQ are told.
        since: ModSeq,
        /// New and changed messages are told from this one on, in the order of MODSEQ and UID: `since` and the highest
        /// UID, or where the page before ended.
        after: (ModSeq, Uid),
        /// UIDs in use are told from this one on: the UIDNEXT that the asker knows.
        uids_from: Uid,
        /// Most changed messages in one page.
        limit: u32,
    },
    /// Messages in the order asked, as many as fit in `max_bytes` but at least one; one that is gone is `None`.
    /// [`Reply::Messages`].
    Messages {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
        /// Which messages. Runs of UIDs that follow each other are read the fastest.
        uids: Vec<Uid>,
        /// Whether their octets are wanted.
        octets: Octets,
        /// Kinds of [digests](crate::Digests) that are wanted.
        digests: Vec<u8>,
        /// Bound on the octets in the answer.
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
    /// Deleted messages that are kept, in the order of their deletion. [`Reply::Deleted`].
    Deleted {
        /// Whose.
        mailbox: MailboxId,
        /// Those with higher numbers than this; 0 for all.
        after: u64,
        /// At most so many, and never more than 1,000.
        limit: u32,
        /// First octets of each that are wanted; 0: none.
        prefix: u32,
    },
    /// Which sources a folder remembers: [`RestorePlace::Next`](crate::RestorePlace::Next) would add nothing for them.
    /// [`Reply::Imported`].
    Imported {
        /// Whose.
        mailbox: MailboxId,
        /// Full name; `INBOX` in any case.
        folder: String,
        /// Those that are asked for.
        sources: Vec<u128>,
    },
    /// Posts of a mailing list, those that wait and those that are being expanded. [`Reply::ListPosts`].
    ListPosts(ListId),
    /// A post with its message. [`Reply::ListPost`].
    ListPost {
        /// Which list.
        list: ListId,
        /// Which post.
        post: QueueId,
    },
    /// Addresses of a list of which something is remembered. [`Reply::Subscribers`].
    Subscribers(ListId),
    /// What is remembered of one. [`Reply::Subscribers`], empty for nothing.
    Subscriber {
        /// Which list.
        list: ListId,
        /// Whose.
        address: Address,
    },
}

/// How much of a message's octets is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Octets {
    /// None: the message is not read.
    Nothing,
    /// So many from the start.
    Prefix(u32),
    /// All of them.
    Whole,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// By name.
    Folders(Vec<FolderInfo>),
    /// None: there is no such folder.
    Folder(Option<FolderInfo>),
    /// None: there is no such folder.
    Selected(Option<Selection>),
    /// None: there is no such folder.
    Changes(Option<FolderChanges>),
    /// In the order asked; shorter than asked when the bound was reached.
    Messages(Vec<Option<FoundMessage>>),
    /// In the order asked.
    Usage(Vec<Usage>),
    /// Entries without their bodies.
    Queue(Vec<QueueEntry>),
    /// With the body.
    QueueEntry(Option<(QueueEntry, Bytes)>),
    /// Class, recipients, arrival of the oldest.
    QueueCounts(Vec<(QueueClass, u64, Option<Timestamp>)>),
    /// A page, empty after the last, and how much is kept of the whole mailbox.
    Deleted(Vec<DeletedMessage>, Usage),
    /// Whether each is remembered, in the order asked.
    Imported(Vec<bool>),
    /// By id.
    ListPosts(Vec<ListPost>),
    /// With the body.
    ListPost(Option<(ListPost, Bytes)>),
    /// By address.
    Subscribers(Vec<Subscriber>),
    /// A body could not be read from this replica's disk.
    Unreadable(String),
}

/// A folder as SELECT shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The folder.
    pub folder: FolderInfo,
    /// All UIDs in use.
    pub uids: FolderUids,
    /// Keywords that its messages have or had.
    pub keywords: Vec<String>,
}

/// A page of what changed in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderChanges {
    /// The folder now.
    pub folder: FolderInfo,
    /// UIDs in use from the one asked on; from the first on when `vanished` is none.
    pub uids: FolderUids,
    /// UIDs expunged after `since`, ascending. None: `since` lies before what is remembered.
    pub vanished: Option<Vec<Uid>>,
    /// New and changed messages of this page, ascending by UID.
    pub changed: Vec<MessageMeta>,
    /// Where the next page starts; none: there is none.
    pub more: Option<(ModSeq, Uid)>,
}

/// A message that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundMessage {
    /// What is known without reading it.
    pub meta: MessageMeta,
    /// The octets asked for; empty when none were.
    pub octets: Bytes,
    /// The digests asked for, in the order asked.
    pub digests: Vec<Bytes>,
}

impl Query {
    /// The bytes that travel between nodes.
    pub fn encode(&self) -> Bytes {
        encode(QUERY_FORMAT, self)
    }

    /// Reads what [`Query::encode`] wrote.
    ///
    /// # Errors
    /// For other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        decode("query", QUERY_FORMAT..=QUERY_FORMAT, bytes)
    }
}

impl Reply {
    /// The bytes that travel between nodes.
    pub fn encode(&self) -> Bytes {
        encode(REPLY_FORMAT, self)
    }

    /// Reads what [`Reply::encode`] wrote.
    ///
    /// # Errors
    /// For other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        decode("reply", REPLY_FORMAT..=REPLY_FORMAT, bytes)
    }
}
