//! Values of the index, and how they are encoded: postcard.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    BodyId, FolderId, FolderInfo, ListPost, MailboxRecord, MessageMeta, ModSeq, QueueEntry, SpecialUse,
    StoreError, Timestamp, Uid, UidValidity, Usage, body_table::Body, flags::FlagSet,
};

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("values of the index hold no type that postcard refuses")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| StoreError::Damaged("a value of the index cannot be decoded"))
}

/// Counters of the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// The highest mailbox id given so far.
    pub(crate) last_mailbox: u64,
}

/// A mailbox of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MailboxEntry {
    pub(crate) record: MailboxRecord,
    /// Deleted when there is one.
    pub(crate) purge_at: Option<Timestamp>,
}

/// Counters of a mailbox in its partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MailboxHead {
    /// The last MODSEQ given.
    pub(crate) mod_seq: u64,
    /// The last folder id given.
    pub(crate) last_folder: u64,
    /// The last UIDVALIDITY given.
    pub(crate) last_uid_validity: u32,
    /// Number of folders.
    pub(crate) folders: u32,
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
}

impl MailboxHead {
    pub(crate) fn usage(&self) -> Usage {
        Usage { bytes: self.bytes, messages: self.messages }
    }
}

/// A folder with its counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FolderState {
    pub(crate) name: String,
    pub(crate) special_use: Option<SpecialUse>,
    pub(crate) subscribed: bool,
    pub(crate) uid_validity: UidValidity,
    pub(crate) uid_next: Uid,
    pub(crate) highest_mod_seq: ModSeq,
    pub(crate) messages: u32,
    pub(crate) unseen: u32,
    /// Number of messages with `\Deleted`: without any, EXPUNGE need not look.
    pub(crate) deleted: u32,
    pub(crate) bytes: u64,
    /// Number of expunged UIDs remembered.
    pub(crate) vanished: u32,
    /// The highest MODSEQ of an expunged UID that is remembered no more.
    pub(crate) vanished_floor: ModSeq,
}

impl FolderState {
    pub(crate) fn info(&self, id: FolderId) -> FolderInfo {
        FolderInfo {
            id,
            name: self.name.clone(),
            special_use: self.special_use,
            subscribed: self.subscribed,
            uid_validity: self.uid_validity,
            uid_next: self.uid_next,
            highest_mod_seq: self.highest_mod_seq,
            messages: self.messages,
            unseen: self.unseen,
            bytes: self.bytes,
        }
    }
}

/// A message. Its size is the length of its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) body: Body,
    pub(crate) mod_seq: ModSeq,
    pub(crate) internal_date: Timestamp,
    pub(crate) flags: FlagSet,
}

impl Message {
    pub(crate) fn meta(&self, uid: Uid) -> MessageMeta {
        MessageMeta {
            uid,
            mod_seq: self.mod_seq,
            flags: self.flags.to_flags(),
            internal_date: self.internal_date,
            size: self.body.len,
        }
    }
}

/// A post of a mailing list with its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Posted {
    pub(crate) body: BodyId,
    pub(crate) post: ListPost,
}

/// A queue entry with its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queued {
    pub(crate) body: BodyId,
    pub(crate) entry: QueueEntry,
}
