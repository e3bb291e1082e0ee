//! Commands: what is replicated, and what applying it answers.

use bytes::Bytes;
use quorumail_message::{Address, Domain};
use serde::{Deserialize, Serialize};

use crate::{
    CommandId, DkimKey, DomainRecord, Flags, FolderId, ListId, ListPost, ListRecord, MailboxId,
    MailboxRecord, MessageError, ModSeq, PartitionId, QueueEntry, QueueId, QueueRecipient, Quota, SpecialUse,
    StoreFlags, StsMode, SubscriberChange, Timestamp, Uid, UidValidity, UploadId, query,
};

/// The version of the encoding that [`Command::encode`] writes; the first byte of every command. Whatever changes what the
/// bytes of a command mean, a new kind in [`Op`] as well, needs another one, of a higher format level: a replica that
/// knows the format but not the kind would refuse what others apply.
pub const COMMAND_FORMAT: u8 = 7;
/// The oldest version that is still read: backups and their archives hold commands for years. Versions 3 to 7 have more
/// kinds.
const OLDEST_COMMAND: u8 = 2;
/// From this version on, commands that delete mail keep it for a time. What an older archive holds is applied as it was
/// when it was written.
const KEEPS_DELETED: u8 = 4;

/// A command as it is proposed. Encoded as: format byte, length of the head (u32, little endian), head (postcard),
/// body bytes. The body comes last, so that a replica can keep it where the log record lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Applied once, however often it is proposed within the window that the store remembers.
    pub id: CommandId,
    /// The proposer's clock.
    pub at: Timestamp,
    /// What to do.
    pub op: Op,
    /// The message, for the operations that carry one; empty otherwise.
    pub body: Bytes,
}

/// What to do. Directory operations go to group 0, all others to the partition they name or live in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    // ---- directory ----
    /// Makes or changes a domain. Refused with [`Refusal::Conflict`] when a name belongs to another domain.
    PutDomain(DomainRecord),
    /// Removes a domain; refused while mailboxes use it.
    DeleteDomain(Domain),
    /// Makes or changes a mailbox. `id` and `partition` of the record are ignored: a new mailbox gets the next id and
    /// the partition (1..=`partitions`) with the fewest mailboxes; an address deleted less than its grace period ago
    /// gets its old id, partition and so its mail back.
    PutMailbox {
        /// What it should be.
        record: MailboxRecord,
        /// Number of partitions of the cluster.
        partitions: u32,
    },
    /// Removes a mailbox from the directory. Its mail is kept until `purge_at` (see [`Op::PurgeMailbox`]).
    DeleteMailbox {
        /// Its address.
        address: Address,
        /// When its mail may be purged.
        purge_at: Timestamp,
    },
    /// Forgets a deleted mailbox whose mail has been purged.
    ForgetMailbox(MailboxId),

    // ---- mailboxes of a partition ----
    /// Makes the mailbox's INBOX and special-use folders (Archive, Drafts, Junk, Sent, Trash) where they are missing.
    OpenMailbox(MailboxId),
    /// Removes everything the mailbox holds.
    PurgeMailbox(MailboxId),
    /// Adds the body to a folder (INBOX for mail that arrives; APPEND otherwise). Makes the mailbox when it is new.
    Append {
        /// Whose.
        mailbox: MailboxId,
        /// Full folder name.
        folder: String,
        /// Initial flags.
        flags: Flags,
        /// RFC 9051 2.3.3.
        internal_date: Timestamp,
        /// Refused with [`Refusal::OverQuota`] when the mailbox would exceed it.
        quota: Quota,
    },
    /// Makes a folder and the missing levels above it.
    CreateFolder {
        /// Whose.
        mailbox: MailboxId,
        /// Full folder name.
        folder: String,
        /// RFC 6154.
        special_use: Option<SpecialUse>,
    },
    /// Deletes a folder with all its messages. INBOX is refused.
    DeleteFolder {
        /// Whose.
        mailbox: MailboxId,
        /// Full folder name.
        folder: String,
    },
    /// Renames a folder and all below it; renaming INBOX moves its messages (RFC 9051 6.3.6).
    RenameFolder {
        /// Whose.
        mailbox: MailboxId,
        /// Full folder name.
        from: String,
        /// Full folder name.
        to: String,
    },
    /// Sets whether LSUB shows a folder. A name that does not exist may be unsubscribed.
    Subscribe {
        /// Whose.
        mailbox: MailboxId,
        /// Full folder name.
        folder: String,
        /// Whether it is shown.
        subscribed: bool,
    },
    /// RFC 9051 6.4.6.
    StoreFlags {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
        /// Messages; unknown UIDs are skipped.
        uids: Vec<Uid>,
        /// How.
        mode: StoreFlags,
        /// Flags to set, add or remove.
        flags: Flags,
        /// RFC 7162 3.1.3: messages changed after this are left alone and reported.
        unchanged_since: Option<ModSeq>,
    },
    /// RFC 9051 6.4.7 and RFC 6851 (all or nothing).
    Copy {
        /// Whose.
        mailbox: MailboxId,
        /// From.
        folder: FolderId,
        /// Messages; unknown UIDs are skipped.
        uids: Vec<Uid>,
        /// Full name of the target folder.
        to: String,
        /// Whether the originals are expunged in the same step.
        remove: bool,
        /// Refused with [`Refusal::OverQuota`] when a copy would exceed it; not looked at for a move.
        quota: Quota,
    },
    /// Expunges the messages with `\Deleted`, the first 1,000 of them; with `uids`, only those among them (RFC 4315 2.1).
    Expunge {
        /// Whose.
        mailbox: MailboxId,
        /// Which folder.
        folder: FolderId,
        /// Limits it to these.
        uids: Option<Vec<Uid>>,
    },

    // ---- queue of a partition ----
    /// Adds the entry with the body.
    Enqueue(QueueEntry),
    /// Takes `done` off the entry and replaces `changed` recipients (compared by address). When no recipient is left
    /// the entry goes, and with it the body.
    UpdateQueue {
        /// Which entry.
        id: QueueId,
        /// Recipients that need no more work.
        done: Vec<Address>,
        /// New state of others.
        changed: Vec<QueueRecipient>,
    },

    // ---- bodies that are too large for one command ----
    /// The next part of such a body. Kept until a command takes the upload.
    Chunk {
        /// Of which upload.
        upload: UploadId,
        /// Its place in the body, from 0.
        number: u32,
    },
    /// An [`Op::Append`], [`Op::Enqueue`], [`Op::RestoreMessage`] or [`Op::PostToList`] whose body came in chunks to the same group before. Refused with
    /// [`Refusal::Incomplete`] when one is missing.
    WithUpload {
        /// Which upload.
        upload: UploadId,
        /// Number of its chunks.
        chunks: u32,
        /// What to do with the body.
        op: Box<Op>,
    },
    /// Drops chunks that came before this instant and were not taken, as many as one command may.
    DropChunks(Timestamp),

    // ---- mail that comes back, or from elsewhere ----
    /// Makes a folder, and the levels above it, where it is missing. With a source, one that was never used is made ready
    /// for the source's messages; one that is ready for them, or is the source itself, is left as it is; any other
    /// is refused with [`Refusal::Conflict`].
    RestoreFolder {
        /// Whose.
        mailbox: MailboxId,
        /// Full folder name.
        folder: String,
        /// What it is for, unless another folder of the mailbox is. Of a folder that is made.
        special_use: Option<SpecialUse>,
        /// Whether LSUB shows it. Of a folder that is made.
        subscribed: bool,
        /// The folder that it is restored from; none when its messages get new UIDs.
        source: Option<FolderSource>,
    },
    /// Adds the body to a folder as a message that was elsewhere before; once, however often it is repeated and however
    /// long after, in any order with others.
    RestoreMessage {
        /// Whose.
        mailbox: MailboxId,
        /// Full name of a folder that is there.
        folder: String,
        /// Which UID it gets, and what it is known again by.
        place: RestorePlace,
        /// Its flags.
        flags: Flags,
        /// RFC 9051 2.3.3.
        internal_date: Timestamp,
        /// Refused with [`Refusal::OverQuota`] when the mailbox would exceed it.
        quota: Quota,
    },

    // ---- mail that was deleted ----
    /// Brings deleted messages that are still kept back into their folders, which are made where they are missing. They get
    /// new UIDs. Numbers that are not kept, or not any more, are passed over: so it may be repeated.
    Undelete {
        /// Whose.
        mailbox: MailboxId,
        /// Which, by [`DeletedMessage::number`](crate::DeletedMessage::number); at most
        /// [`MAX_UNDELETED`](crate::MAX_UNDELETED).
        numbers: Vec<u64>,
        /// The folder below which their folders are made; empty: none.
        below: String,
        /// Refused with [`Refusal::OverQuota`] when the mailbox would exceed it.
        quota: Quota,
    },
    /// Drops what was deleted before this instant for good. [`Applied::More`] when not all is gone yet.
    DropDeleted {
        /// Whose.
        mailbox: MailboxId,
        /// Deleted messages from this instant on are kept.
        before: Timestamp,
    },

    // ---- directory, with keys ----
    /// As [`Op::PutDomain`], and the domain's mail is signed with these keys from now on; the older kind leaves the keys and
    /// the MTA-STS mode as they are.
    PutSigningDomain {
        /// What it should be.
        record: DomainRecord,
        /// At most [`MAX_DKIM_KEYS`](crate::MAX_DKIM_KEYS); none: its mail is not signed.
        keys: Vec<DkimKey>,
        /// Whether it has an MTA-STS policy, and which.
        sts: Option<StsMode>,
    },

    // ---- mailing lists: directory ----
    /// Makes or changes a mailing list. `id`, `partition` and `secret` of the record count for a new list only, as in
    /// [`Op::PutMailbox`] (the secret is taken as it is); one that is there keeps its own. [`Applied::Mailbox`] with the
    /// number of the list.
    PutList {
        /// What it should be.
        record: ListRecord,
        /// Number of partitions of the cluster.
        partitions: u32,
    },
    /// Removes a mailing list from the directory. What its home holds goes with [`Op::ForgetList`].
    DeleteList(Address),

    // ---- mailing lists: the partition that a list has its home in ----
    /// Keeps a post with the body, to be expanded or held. Refused with [`Refusal::Conflict`] when too many wait.
    PostToList(ListPost),
    /// The next step of an expansion. Does nothing when the post is not at `after`.
    ExpandPost {
        /// Which list.
        list: ListId,
        /// Which post.
        post: QueueId,
        /// Where its cursor is.
        after: Option<String>,
        /// One for each member served, all with the post's body; at most [`MAX_EXPANDED`](crate::MAX_EXPANDED).
        entries: Vec<QueueEntry>,
        /// Where its cursor goes; none: all members are served, and the post goes.
        next: Option<String>,
    },
    /// What a moderator said of a held post: it goes to the members, or away.
    DecidePost {
        /// Which list.
        list: ListId,
        /// Which post.
        post: QueueId,
        /// Whether it goes to the members.
        approve: bool,
    },
    /// Changes what is remembered of an address.
    ChangeSubscriber {
        /// Which list.
        list: ListId,
        /// Whose.
        address: Address,
        /// What happened.
        change: SubscriberChange,
    },
    /// Removes what is here of a list that is no more. [`Applied::More`] when not all is gone yet.
    ForgetList(ListId),

    // ---- archives of mailing lists ----
    /// To the directory: as [`Op::PutList`], and whether the list has an archive; the older kind leaves that as it is. What an
    /// archive holds stays when the list has it no more.
    PutArchivedList {
        /// What it should be.
        record: ListRecord,
        /// Number of partitions of the cluster.
        partitions: u32,
        /// Whether what goes to the members is kept.
        archive: bool,
    },
    /// To the list's home: makes the mailbox of its archive where it is missing.
    OpenArchive(ListId),
    /// To the list's home: puts a post that nobody got yet into the archive and moves its cursor to before the first member.
    /// Does nothing when the post is elsewhere.
    ArchivePost {
        /// Which list.
        list: ListId,
        /// Which post.
        post: QueueId,
    },
}

/// The folder that another is restored from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderSource {
    /// Its UIDVALIDITY.
    pub uid_validity: UidValidity,
    /// The UIDs below, up to 2^26, are kept for its messages; what arrives meanwhile gets this one and those after it. Above
    /// the UIDNEXT of the source, by as much as may have been given there after it was copied: where the identity is kept,
    /// those who saw these UIDs must not find other messages under them.
    pub uid_next: Uid,
    /// Later MODSEQs are higher than this, up to 2^62, where the identity is kept. Above that of the source in the same way.
    pub highest_mod_seq: ModSeq,
    /// Whether the folder gets the UIDVALIDITY of the source: clients then know its messages again.
    pub keep: bool,
}

/// Where a message that was elsewhere before is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestorePlace {
    /// Under the UID that it had, in a folder made ready by [`Op::RestoreFolder`].
    Uid {
        /// UIDVALIDITY of the folder that it comes from.
        source: UidValidity,
        /// The UID that it had there.
        uid: Uid,
    },
    /// Under the next UID, as mail that arrives.
    Next {
        /// Names it where it comes from; equal for what is the same. The folder remembers it for as long as it exists, also
        /// when the message is moved or expunged.
        source: u128,
    },
}

/// What became of a message that was to be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoredAs {
    /// It was added.
    New,
    /// It was there already and is as it was.
    There,
    /// It was there once, and has been moved or expunged since.
    Gone,
}

/// What applying a command answers. Deterministic, and remembered for repeated commands.
pub type Outcome = Result<Applied, Refusal>;

/// Version of an outcome's encoding, its first byte; the rest is postcard.
pub const OUTCOME_FORMAT: u8 = 3;
/// As [`OLDEST_COMMAND`]. Versions 2 and 3 have more kinds.
const OLDEST_OUTCOME: u8 = 1;

/// The bytes that applying a command answers.
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    query::encode(OUTCOME_FORMAT, outcome)
}

/// Reads the encoded outcome of a command, as applying it answers.
///
/// # Errors
/// For other bytes.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, MessageError> {
    query::decode("outcome", OLDEST_OUTCOME..=OUTCOME_FORMAT, bytes)
}

/// The answer of a command that took effect (or had already).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Nothing more to say.
    Done,
    /// Of [`Op::PutMailbox`], [`Op::DeleteMailbox`], [`Op::PutList`] and [`Op::PutArchivedList`].
    Mailbox {
        /// Its id.
        id: MailboxId,
        /// Where it lives.
        partition: PartitionId,
    },
    /// Of [`Op::Append`].
    Appended {
        /// Which folder.
        folder: FolderId,
        /// Its UIDVALIDITY.
        uid_validity: UidValidity,
        /// The new message's UID.
        uid: Uid,
    },
    /// Of [`Op::CreateFolder`].
    Folder(FolderId),
    /// Of [`Op::StoreFlags`]: what was changed, and what was left alone because of `unchanged_since`.
    Stored {
        /// The MODSEQ that this command gave, and no other did; none when every message had the flags already.
        mod_seq: Option<ModSeq>,
        /// UID, MODSEQ and flags as they are now, ascending by UID; with its old MODSEQ, a message that had the flags
        /// already.
        changed: Vec<(Uid, ModSeq, Flags)>,
        /// RFC 7162 3.1.3 MODIFIED.
        modified: Vec<Uid>,
    },
    /// Of [`Op::Copy`]: the target's UIDVALIDITY and pairs of source and target UID, ascending by source.
    Copied {
        /// Of the target.
        uid_validity: UidValidity,
        /// Source, target.
        uids: Vec<(Uid, Uid)>,
    },
    /// Of [`Op::Expunge`]: the UIDs that went, ascending. Without UIDs in the command: proposed again, it takes out more
    /// until none are left.
    Expunged(Vec<Uid>),
    /// Of [`Op::DeleteFolder`], [`Op::PurgeMailbox`] and [`Op::DropDeleted`]: not all is gone yet. To be proposed again, as
    /// another command. Of [`Op::RenameFolder`] for INBOX: the first messages have moved, the others are left to be moved by
    /// [`Op::Copy`].
    More,
    /// Of [`Op::RestoreFolder`].
    RestoredFolder {
        /// Which folder.
        folder: FolderId,
        /// Its UIDVALIDITY.
        uid_validity: UidValidity,
        /// Whether it was missing.
        made: bool,
    },
    /// Of [`Op::RestoreMessage`].
    Restored {
        /// Which folder.
        folder: FolderId,
        /// Its UIDVALIDITY.
        uid_validity: UidValidity,
        /// The UID that the message got, now or before.
        uid: Uid,
        /// What became of it.
        was: RestoredAs,
    },
    /// Of [`Op::Undelete`].
    Undeleted {
        /// How many of the messages were still kept, and came back.
        messages: u64,
    },
}

/// Why a command was refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A folder, mailbox, domain or entry is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// RFC 5530 ALREADYEXISTS.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// A name belongs to somebody else.
    #[error("{0}")]
    Conflict(String),
    /// The mailbox is full.
    #[error("the mailbox is over its quota")]
    OverQuota,
    /// Chunks of the upload are missing; it may be tried again with a new one. Not remembered.
    #[error("the upload is incomplete")]
    Incomplete,
    /// The command makes no sense (a bad folder name, INBOX deleted ...).
    #[error("{0}")]
    Invalid(String),
}

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Written by a later version.
    #[error("command format {0} is not known to this version, which knows format {COMMAND_FORMAT}")]
    Format(u8),
    /// Cut off or damaged.
    #[error("a command cannot be decoded")]
    Malformed,
}

#[derive(Serialize)]
struct HeadRef<'a>(CommandId, Timestamp, &'a Op);
#[derive(Deserialize)]
struct Head(CommandId, Timestamp, Op);

impl Op {
    /// The upload that it takes.
    pub(crate) fn upload(&self) -> Option<UploadId> {
        match self {
            Self::WithUpload { upload, .. } => Some(*upload),
            _ => None,
        }
    }
}

impl Command {
    /// The bytes to propose.
    pub fn encode(&self) -> Bytes {
        let head = postcard::to_stdvec(&HeadRef(self.id, self.at, &self.op))
            .expect("a command head always encodes: it holds no type that postcard refuses");
        let mut out = Vec::with_capacity(5 + head.len() + self.body.len());
        out.push(COMMAND_FORMAT);
        out.extend_from_slice(
            &(u32::try_from(head.len()).expect("a command head is far below 4 GiB")).to_le_bytes(),
        );
        out.extend_from_slice(&head);
        out.extend_from_slice(&self.body);
        out.into()
    }

    /// Whether the encoded command keeps the mail that it deletes.
    pub(crate) fn keeps_deleted(bytes: &Bytes) -> bool {
        bytes.first().is_some_and(|format| *format >= KEEPS_DELETED)
    }

    /// Reads what [`Command::encode`] wrote. The body is a slice of `bytes`: it starts at `bytes.len() - body.len()`.
    pub fn decode(bytes: &Bytes) -> Result<Self, CommandError> {
        let format = *bytes.first().ok_or(CommandError::Malformed)?;
        if !(OLDEST_COMMAND..=COMMAND_FORMAT).contains(&format) {
            return Err(CommandError::Format(format));
        }
        let len = bytes.get(1..5).ok_or(CommandError::Malformed)?;
        let len = u32::from_le_bytes(len.try_into().map_err(|_| CommandError::Malformed)?) as usize;
        let end = 5usize.checked_add(len).ok_or(CommandError::Malformed)?;
        let head = bytes.get(5..end).ok_or(CommandError::Malformed)?;
        let Head(id, at, op) = postcard::from_bytes(head).map_err(|_| CommandError::Malformed)?;
        Ok(Self { id, at, op, body: bytes.slice(end..) })
    }
}
