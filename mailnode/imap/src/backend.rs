//! What an IMAP session asks of the rest. Names follow IMAP except that its "mailbox" is a folder here: a mailbox is
//! the account that holds the folders.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{digest::Digest, uid_set::UidSet};

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;

/// What the names of folders begin with that several people read (RFC 2342 2). RFC 3501 5.1.2: a first level with # is a
/// namespace, so that no folder of a person is called so by chance.
pub const SHARED_NAMESPACE: &str = "#lists/";

/// A flag as it stands on the wire (`\Seen`, `$Forwarded`).
pub type Flags = BTreeSet<String>;

/// Why a log-in failed. The client is told no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginFailure {
    /// Unknown user, wrong password or no permission: all the same to the client. NO [AUTHENTICATIONFAILED].
    Denied,
    /// Too many failures from this address or for this user; nothing was checked. NO [UNAVAILABLE].
    Throttled,
    /// The directory cannot be asked at the moment. NO [UNAVAILABLE].
    Unavailable,
}

/// Why an operation was refused; becomes a NO with a response code of RFC 5530.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// NONEXISTENT, or TRYCREATE for APPEND and COPY.
    #[error("no such folder")]
    NonExistent,
    /// ALREADYEXISTS.
    #[error("a folder of this name already exists")]
    AlreadyExists,
    /// OVERQUOTA.
    #[error("the mailbox is over its quota")]
    OverQuota,
    /// NOPERM: it is there, and only to be read.
    #[error("shared folders can only be read")]
    ReadOnly,
    /// CANNOT, with a text.
    #[error("{0}")]
    Cannot(String),
    /// UNAVAILABLE: no majority could be reached in time; for a change the outcome may be unknown.
    #[error("temporarily unavailable, try again")]
    Unavailable,
    /// UNAVAILABLE: all is well but for the octets of some message, which cannot be read just now.
    #[error("a message cannot be read just now, try again")]
    Unreadable,
}

/// RFC 6154 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum SpecialUse {
    Archive,
    Drafts,
    Junk,
    Sent,
    Trash,
}

/// A folder and its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Stays the same when the folder is renamed.
    pub id: u64,
    /// Full name with `/` between levels, UTF-8 (the session encodes modified UTF-7 for the wire).
    pub name: String,
    /// RFC 6154.
    pub special_use: Option<SpecialUse>,
    /// Whether LSUB shows it.
    pub subscribed: bool,
    /// Whether nothing in it can be changed, however it is opened.
    pub read_only: bool,
    /// RFC 9051 2.3.1.1.
    pub uid_validity: u32,
    /// RFC 9051 2.3.1.1.
    pub uid_next: u32,
    /// RFC 7162 3.1.2.
    pub highest_mod_seq: u64,
    /// Number of messages.
    pub messages: u32,
    /// Number of messages without `\Seen`.
    pub unseen: u32,
    /// Sum of sizes in bytes.
    pub bytes: u64,
}

/// A message without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// UID in its folder.
    pub uid: u32,
    /// RFC 7162.
    pub mod_seq: u64,
    /// Flags.
    pub flags: Flags,
    /// INTERNALDATE.
    pub internal_date: Millis,
    /// RFC822.SIZE.
    pub size: u32,
}

/// How much of a message's octets is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Octets {
    /// None.
    Nothing,
    /// So many from the start, at least one.
    Prefix(u32),
    /// All of them.
    Whole,
}

/// A message with what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What the folder's list tells.
    pub message: Message,
    /// The octets asked for; empty when none were.
    pub octets: Bytes,
    /// The digests asked for, in the order asked.
    pub digests: Vec<Bytes>,
}

/// A folder as SELECT shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The folder.
    pub folder: Folder,
    /// All UIDs in use.
    pub uids: UidSet,
    /// Keywords that its messages have or had.
    pub keywords: BTreeSet<String>,
}

/// Up to where a session knows a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Expunges after this MODSEQ are asked for.
    pub mod_seq: u64,
    /// Changes after this MODSEQ and UID are asked for, in this order.
    pub after: (u64, u32),
    /// UIDs in use are asked for from this one on.
    pub uid_next: u32,
}

/// A page of what changed in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The folder now.
    pub folder: Folder,
    /// Runs of UIDs in use, first and last, ascending, from the one asked on; of the whole folder when `vanished` is None.
    pub uids: Vec<(u32, u32)>,
    /// Expunged UIDs. None: too long ago.
    pub vanished: Option<Vec<u32>>,
    /// New and changed messages.
    pub changed: Vec<Message>,
    /// Where the next page starts; None: there is none.
    pub more: Option<(u64, u32)>,
}

/// The outcome of a change of flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// The MODSEQ that this change gave, and no other did. None: nothing had to be changed.
    pub mod_seq: Option<u64>,
    /// UID, MODSEQ and flags of the messages that are there and were not left alone, ascending.
    pub messages: Vec<(u32, u64, Flags)>,
    /// UIDs left alone because they were changed after what the client knows (RFC 7162 3.1.3).
    pub modified: Vec<u32>,
}

/// How STORE changes flags. RFC 9051 6.4.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FlagChange {
    Replace,
    Add,
    Remove,
}

/// Log-in, before which nothing else can be asked.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Checks a user name and password and opens the mailbox.
    async fn login(
        &self,
        user: &str,
        password: &str,
        remote: IpAddr,
    ) -> Result<Arc<dyn Mailbox>, LoginFailure>;
}

/// The mailbox of the person who logged in. Reads see everything that was acknowledged before them, on any node.
#[async_trait]
pub trait Mailbox: Send + Sync + 'static {
    /// All folders, by name; INBOX is always there.
    async fn folders(&self) -> Result<Vec<Folder>, Failure>;
    /// One folder by name; `INBOX` in any case.
    async fn folder(&self, name: &str) -> Result<Folder, Failure>;
    /// What SELECT needs of a folder by name; `INBOX` in any case. Cheap, whatever the folder's size.
    async fn select(&self, name: &str) -> Result<Selection, Failure>;
    /// The next page of what changed.
    async fn changes(&self, folder: u64, since: Since) -> Result<Changes, Failure>;
    /// Messages by UID, in the order asked, possibly fewer than asked (ask again for the rest) but at least one. None for
    /// a message that is gone. [`Failure::Unreadable`] when one of them cannot be read: asked for without it, the others are
    /// answered.
    async fn messages(
        &self,
        folder: u64,
        uids: &[u32],
        octets: Octets,
        digests: &[Digest],
    ) -> Result<Vec<Option<Found>>, Failure>;
    /// Adds a message; answers UIDVALIDITY and UID (RFC 4315 3).
    async fn append(
        &self,
        folder: &str,
        flags: Flags,
        date: Option<Millis>,
        body: Bytes,
    ) -> Result<(u32, u32), Failure>;
    /// Makes a folder and the levels above it.
    async fn create(&self, folder: &str, special_use: Option<SpecialUse>) -> Result<(), Failure>;
    /// Deletes a folder and its messages.
    async fn delete(&self, folder: &str) -> Result<(), Failure>;
    /// Renames a folder and those below it; of INBOX it moves the messages.
    async fn rename(&self, from: &str, to: &str) -> Result<(), Failure>;
    /// Sets whether LSUB shows the name.
    async fn subscribe(&self, folder: &str, subscribed: bool) -> Result<(), Failure>;
    /// Changes flags, of all messages or (when it fails) of none.
    async fn store(
        &self,
        folder: u64,
        uids: &[u32],
        change: FlagChange,
        flags: Flags,
        unchanged_since: Option<u64>,
    ) -> Result<Stored, Failure>;
    /// Copies or moves to a folder by name, all messages or (when it fails) none; answers its UIDVALIDITY and pairs of
    /// source and target UID, ascending.
    async fn copy(
        &self,
        folder: u64,
        uids: &[u32],
        to: &str,
        remove: bool,
    ) -> Result<(u32, Vec<(u32, u32)>), Failure>;
    /// Expunges messages with `\Deleted`, only among `uids` when given; answers the UIDs that went. Without `uids`,
    /// possibly fewer than all: ask again until none went.
    async fn expunge(&self, folder: u64, uids: Option<&[u32]>) -> Result<Vec<u32>, Failure>;
    /// Returns when the folder may have changed after `since`, from whichever node, or after `at_most`.
    async fn wait(&self, folder: u64, since: u64, at_most: Duration);
}
