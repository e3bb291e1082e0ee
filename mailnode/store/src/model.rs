//! What the state machine holds.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorumail_message::{Address, Domain};
use serde::{Deserialize, Serialize};

use crate::{FolderId, ListId, MailboxId, ModSeq, PartitionId, QueueId, Timestamp, Uid, UidValidity};

/// A domain that this cluster receives mail for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// The domain.
    pub domain: Domain,
    /// Other domains whose addresses mean the same mailboxes.
    pub aliases: Vec<Domain>,
    /// Takes the mail for unknown local parts; without it they are refused.
    pub catch_all: Option<Address>,
    /// Opaque fingerprint of the desired state.
    pub revision: String,
}

/// A key that mail of a domain is signed with. RFC 6376 3.1, RFC 8463.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DkimKey {
    /// Names it under the domain: the first labels before `_domainkey`.
    pub selector: String,
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// PKCS #8, DER. Secret: never printed.
    pub private: Bytes,
}

impl std::fmt::Debug for DkimKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DkimKey")
            .field("selector", &self.selector)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// What others do with mail for a domain whose connection is not as its MTA-STS policy says. RFC 8461 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StsMode {
    /// They tell, and send it.
    Testing,
    /// They do not send it.
    Enforce,
}

/// How a DKIM key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DkimAlgorithm {
    /// `rsa-sha256`, RFC 6376 3.3.1.
    Rsa,
    /// `ed25519-sha256`, RFC 8463.
    Ed25519,
}

/// An account: an address, its credentials and limits. Lives in the directory; its mail lives in `partition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxRecord {
    /// Never used again for another mailbox.
    pub id: MailboxId,
    /// The address, which is also the login name.
    pub address: Address,
    /// Where its mail lives.
    pub partition: PartitionId,
    /// For people; may be empty.
    pub display_name: String,
    /// Other addresses that mean this mailbox.
    pub aliases: Vec<Address>,
    /// argon2 (PHC), sha512-crypt or bcrypt; empty: nobody can log in.
    pub password_hash: String,
    /// Storage limits.
    pub quota: Quota,
    /// A suspended mailbox keeps receiving; nobody can log in to it or send from it.
    pub suspended: bool,
    /// What the mailbox may do.
    pub permissions: Permissions,
    /// Opaque fingerprint of the desired state.
    pub revision: String,
}

/// A mailing list. Lives in the directory; its posts live in `partition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// Never used again for another list.
    pub id: ListId,
    /// Where posts are sent.
    pub address: Address,
    /// Where its posts and what is remembered of addresses live.
    pub partition: PartitionId,
    /// By [`Address::key`], each once; at most [`MAX_LIST_MEMBERS`](crate::MAX_LIST_MEMBERS).
    pub members: Vec<ListMember>,
    /// Whose posts go to the members at once.
    pub posting: Posting,
    /// Put before the subject of each post, as in `[announce]`; empty: nothing is.
    pub subject_prefix: String,
    /// Whether answers go to the list; to the author otherwise.
    pub reply_to_list: bool,
    /// Who may become a member by mail.
    pub subscription: Subscription,
    /// Larger posts wait for a moderator, in bytes; 0: none does.
    pub max_bytes: u64,
    /// What the tokens in its mail are made with. A record that replaces another keeps the other's.
    pub secret: ListSecret,
    /// Opaque fingerprint of the desired state.
    pub revision: String,
}

impl ListRecord {
    /// The member with this address.
    pub fn member(&self, address: &Address) -> Option<&ListMember> {
        let key = address.key();
        let found = self.members.binary_search_by(|member| member.address.key().cmp(&key)).ok()?;
        self.members.get(found)
    }

    /// Those who decide on held posts.
    pub fn moderators(&self) -> impl Iterator<Item = &Address> {
        self.members.iter().filter(|member| member.role != ListRole::Member).map(|member| &member.address)
    }
}

/// A secret of 32 bytes. Never printed.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSecret(pub [u8; 32]);

impl std::fmt::Debug for ListSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListSecret")
    }
}

/// Somebody to whom a list goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMember {
    /// Here or elsewhere.
    pub address: Address,
    /// What it may do.
    pub role: ListRole,
}

/// What a member of a list may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ListRole {
    /// Gets what is posted.
    Member,
    /// Decides on held posts as well.
    Moderator,
    /// Mail for `-owner` goes there as well.
    Owner,
}

/// Whose posts go to the members at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Posting {
    /// Members'; others' wait for a moderator.
    Members,
    /// Moderators' and owners'; others' wait for a moderator.
    Moderated,
    /// Everybody's.
    Anyone,
    /// Owners'; others' are refused.
    Owners,
}

/// Who may become a member by mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subscription {
    /// Whoever asks; people from elsewhere confirm that it was they.
    Open,
    /// Whoever asks and confirms.
    Confirm,
    /// As `Confirm`, and a moderator says yes.
    Approve,
    /// Nobody.
    Closed,
}

/// Storage limits; zero means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Sum of the sizes of all messages, in bytes.
    pub bytes: u64,
    /// Number of messages.
    pub messages: u64,
}

/// What a mailbox uses. Always the exact sum over its messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Sum of the sizes of all messages, in bytes.
    pub bytes: u64,
    /// Number of messages.
    pub messages: u64,
}

/// What a mailbox may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// May submit mail.
    pub send: bool,
    /// Mail for it is accepted.
    pub receive: bool,
    /// May log in to read.
    pub login: bool,
}

/// RFC 6154 2: what a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum SpecialUse {
    Archive,
    Drafts,
    Junk,
    Sent,
    Trash,
}

/// A system flag or keyword in its normal form: `\Seen`, `\Answered`, `\Flagged`, `\Deleted`, `\Draft` as written
/// here, keywords as the first client wrote them but compared without case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flag(pub String);

/// The flags of a message, in a fixed order.
pub type Flags = BTreeSet<Flag>;

/// RFC 9051 6.4.6: how STORE changes flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum StoreFlags {
    Replace,
    Add,
    Remove,
}

/// A folder and its counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderInfo {
    /// Stays the same when the folder is renamed.
    pub id: FolderId,
    /// Full name with `/` between levels, UTF-8. `INBOX` in capitals.
    pub name: String,
    /// What it is for, when it is special.
    pub special_use: Option<SpecialUse>,
    /// Whether LSUB shows it.
    pub subscribed: bool,
    /// Changes only when the folder was deleted and made again.
    pub uid_validity: UidValidity,
    /// The UID that the next message gets.
    pub uid_next: Uid,
    /// The highest MODSEQ of any change in the folder, expunges included.
    pub highest_mod_seq: ModSeq,
    /// Number of messages.
    pub messages: u32,
    /// Number of messages without `\Seen`.
    pub unseen: u32,
    /// Sum of the messages' sizes in bytes.
    pub bytes: u64,
}

/// What is known of a message without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageMeta {
    /// Its UID in the folder.
    pub uid: Uid,
    /// MODSEQ of its last change.
    pub mod_seq: ModSeq,
    /// Its flags.
    pub flags: Flags,
    /// RFC 9051 2.3.3.
    pub internal_date: Timestamp,
    /// RFC822.SIZE in bytes.
    pub size: u32,
}

/// A message that was deleted and is kept for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedMessage {
    /// Names it within its mailbox, for ever; messages deleted later have higher ones.
    pub number: u64,
    /// When it was deleted.
    pub deleted_at: Timestamp,
    /// Full name that its folder had then.
    pub folder: String,
    /// Its UID in that folder.
    pub uid: Uid,
    /// RFC 9051 2.3.3.
    pub internal_date: Timestamp,
    /// Its flags; `\Deleted` is not set again when it comes back.
    pub flags: Flags,
    /// RFC822.SIZE in bytes.
    pub size: u32,
    /// Its first octets, as many as were asked for; empty when they cannot be read.
    pub start: Bytes,
}

/// What is to happen with a recipient of a queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum QueueClass {
    /// To a mailbox of this cluster.
    Local,
    /// To another system.
    Remote,
    /// Delivery failed in a way that neither a retry nor a report can mend; a person must look.
    Bad,
    /// Waits until a person releases it.
    Held,
}

/// A recipient of a queue entry that is not done yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRecipient {
    /// Where it goes.
    pub address: Address,
    /// What is to happen next.
    pub class: QueueClass,
    /// Attempts made so far.
    pub attempts: u32,
    /// Not before this instant.
    pub next_attempt: Timestamp,
    /// The last answer or error; no secrets, at most 1,000 characters. Empty: none yet.
    pub last_error: String,
}

/// A message that was accepted and waits for delivery to its recipients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// Unique over the cluster.
    pub id: QueueId,
    /// RFC 5321 4.4: where reports go; none for reports themselves.
    pub reverse_path: Option<Address>,
    /// Recipients that are not done yet.
    pub recipients: Vec<QueueRecipient>,
    /// When it was accepted.
    pub arrived: Timestamp,
    /// Size of the message in bytes.
    pub size: u32,
    /// Whether the body needs 8BITMIME (RFC 6152) on its way on.
    pub eight_bit: bool,
}
