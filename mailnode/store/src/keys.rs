//! Keys of the index. All groups share one keyspace, so that one journal of the index orders all batches; each group
//! lives in a *space*, a number in front of its keys. Space 0 maps groups to spaces: a snapshot is installed into a
//! fresh space and takes over by changing one key.
//!
//! Numbers are big endian, so that the order of keys is the order of what they name.

use crate::{BodyId, CommandId, FolderId, ListId, MailboxId, ModSeq, QueueId, Uid, UploadId};

/// The space of this table of spaces.
pub(crate) const ROOT: u32 = 0;
/// First tag of keys in [`ROOT`] that map a group to its space.
pub(crate) const ROOT_GROUP: u8 = 1;
/// Key in [`ROOT`] of the format number.
pub(crate) const ROOT_FORMAT: u8 = 2;
/// Key in [`ROOT`] of the number of the last checkpoint.
pub(crate) const ROOT_CHECKPOINT: u8 = 3;

pub(crate) const POSITION: u8 = 1;
/// Slot of the ring of remembered commands: index and id.
pub(crate) const RECENT: u8 = 2;
/// Remembered command: index and outcome.
pub(crate) const REMEMBERED: u8 = 3;

pub(crate) const COUNTERS: u8 = 10;
pub(crate) const DOMAIN: u8 = 11;
/// Name of a domain, its own or an alias: the domain.
pub(crate) const DOMAIN_NAME: u8 = 12;
/// Domain: number of addresses of live mailboxes in it.
pub(crate) const DOMAIN_USE: u8 = 13;
pub(crate) const MAILBOX: u8 = 14;
/// Address of a live mailbox, its own or an alias: the mailbox.
pub(crate) const ADDRESS: u8 = 15;
/// Address: the mailbox that had it last, deleted and not forgotten.
pub(crate) const DELETED: u8 = 16;
/// Partition: number of mailboxes that live in it.
pub(crate) const PARTITION: u8 = 17;
/// Domain: the keys that its mail is signed with; none when there are none.
pub(crate) const DKIM_KEYS: u8 = 18;
/// Mailing list, by id.
pub(crate) const LIST: u8 = 19;
/// Address of a mailing list: its id.
pub(crate) const LIST_ADDRESS: u8 = 20;
/// Domain: its MTA-STS mode; none when it has no policy.
pub(crate) const STS_MODE: u8 = 21;
/// Mailing list that has an archive.
pub(crate) const LIST_ARCHIVE: u8 = 22;

pub(crate) const HEAD: u8 = 30;
pub(crate) const FOLDER: u8 = 31;
pub(crate) const FOLDER_NAME: u8 = 32;
pub(crate) const MESSAGE: u8 = 33;
/// Message by MODSEQ of its last change.
pub(crate) const CHANGED: u8 = 34;
/// Expunged UID by MODSEQ.
pub(crate) const VANISHED: u8 = 35;
/// Expunged UIDs by block (`uids.rs`).
pub(crate) const HOLES: u8 = 36;
/// UID of a message with `\Deleted`, so that EXPUNGE need not look for them.
pub(crate) const MARKED: u8 = 37;
/// Keywords that messages of a folder have or had.
pub(crate) const KEYWORDS: u8 = 38;
/// Digests of a message (`digests.rs`). Of this replica alone.
pub(crate) const DIGESTS: u8 = 39;
/// What was restored into a folder (`restore.rs`).
pub(crate) const RESTORE: u8 = 40;
/// UIDs that wait for the message of a source that had them, by block (`uids.rs`); all are holes.
pub(crate) const RESERVED: u8 = 41;
/// Source of a message that was imported: the UID that it got.
pub(crate) const IMPORTED: u8 = 42;
/// What is kept of a mailbox' deleted mail (`vault.rs`).
pub(crate) const VAULT: u8 = 43;
/// Deleted message that is kept, by mailbox and number.
pub(crate) const KEPT: u8 = 44;
/// How much deleted mail is kept of all mailboxes.
pub(crate) const VAULT_TOTAL: u8 = 45;

/// What a folder holds besides its own record and its messages, by tag; all keys start with mailbox and folder.
pub(crate) const OF_FOLDER: [u8; 9] =
    [CHANGED, VANISHED, HOLES, MARKED, KEYWORDS, DIGESTS, RESTORE, RESERVED, IMPORTED];

pub(crate) const QUEUE: u8 = 50;

/// Body: number of references and length, then where this replica keeps it.
pub(crate) const BODY: u8 = 60;
/// Chunk of an upload that waits to be claimed.
pub(crate) const CHUNK: u8 = 61;
/// Number of such chunks.
pub(crate) const CHUNKS: u8 = 62;

/// Counts of a mailing list in its home (`lists.rs`).
pub(crate) const LIST_HEAD: u8 = 70;
/// Post of a list that is being expanded, with its body.
pub(crate) const LIST_POST: u8 = 71;
/// What is remembered of an address of a list.
pub(crate) const LIST_MEMBER: u8 = 72;
/// Post of a list that waits for a moderator, with its body.
pub(crate) const LIST_HELD: u8 = 73;
/// Mailing list whose archive was opened here: its mailbox has the number of the list.
pub(crate) const LIST_OPENED: u8 = 74;

/// Whether a key is this replica's own: not compared with other replicas, and not in snapshots.
pub(crate) fn is_local(key: &[u8]) -> bool {
    key == [POSITION] || key.first() == Some(&DIGESTS)
}

/// The key as it stands in the keyspace.
pub(crate) fn in_space(space: u32, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + key.len());
    out.extend_from_slice(&space.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// The first key after all that start with `prefix`.
pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    while let Some(last) = out.pop() {
        if last < u8::MAX {
            out.push(last + 1);
            return out;
        }
    }
    // Only prefixes of 0xff alone come here; none is made of tags below 0xff.
    vec![u8::MAX; 5]
}

fn join(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    out.push(tag);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

pub(crate) fn root_group(group: u32) -> Vec<u8> {
    join(ROOT_GROUP, &[&group.to_be_bytes()])
}

pub(crate) fn recent(slot: u64) -> Vec<u8> {
    join(RECENT, &[&slot.to_be_bytes()])
}

pub(crate) fn remembered(id: CommandId) -> Vec<u8> {
    join(REMEMBERED, &[&id.0.to_be_bytes()])
}

pub(crate) fn text(tag: u8, text: &str) -> Vec<u8> {
    join(tag, &[text.as_bytes()])
}

pub(crate) fn partition(partition: u32) -> Vec<u8> {
    join(PARTITION, &[&partition.to_be_bytes()])
}

/// Of [`MAILBOX`], [`HEAD`] and [`VAULT`], and the prefix of all keys of a mailbox under one tag.
pub(crate) fn mailbox(tag: u8, mailbox: MailboxId) -> Vec<u8> {
    join(tag, &[&mailbox.0.to_be_bytes()])
}

/// Of [`FOLDER`], [`KEYWORDS`] and [`RESTORE`], and the prefix of all keys of a folder under one tag.
pub(crate) fn folder(tag: u8, mailbox: MailboxId, folder: FolderId) -> Vec<u8> {
    join(tag, &[&mailbox.0.to_be_bytes(), &folder.0.to_be_bytes()])
}

pub(crate) fn folder_name(mailbox: MailboxId, name: &str) -> Vec<u8> {
    join(FOLDER_NAME, &[&mailbox.0.to_be_bytes(), name.as_bytes()])
}

pub(crate) fn message(mailbox: MailboxId, folder: FolderId, uid: Uid) -> Vec<u8> {
    by_uid(MESSAGE, mailbox, folder, uid)
}

/// Of [`MESSAGE`], [`MARKED`] and [`DIGESTS`].
pub(crate) fn by_uid(tag: u8, mailbox: MailboxId, folder: FolderId, uid: Uid) -> Vec<u8> {
    join(tag, &[&mailbox.0.to_be_bytes(), &folder.0.to_be_bytes(), &uid.0.to_be_bytes()])
}

/// Of [`HOLES`].
pub(crate) fn holes(mailbox: MailboxId, folder: FolderId, block: u32) -> Vec<u8> {
    join(HOLES, &[&mailbox.0.to_be_bytes(), &folder.0.to_be_bytes(), &block.to_be_bytes()])
}

pub(crate) fn reserved(mailbox: MailboxId, folder: FolderId, block: u32) -> Vec<u8> {
    join(RESERVED, &[&mailbox.0.to_be_bytes(), &folder.0.to_be_bytes(), &block.to_be_bytes()])
}

pub(crate) fn imported(mailbox: MailboxId, folder: FolderId, source: u128) -> Vec<u8> {
    join(IMPORTED, &[&mailbox.0.to_be_bytes(), &folder.0.to_be_bytes(), &source.to_be_bytes()])
}

pub(crate) fn kept(mailbox: MailboxId, number: u64) -> Vec<u8> {
    join(KEPT, &[&mailbox.0.to_be_bytes(), &number.to_be_bytes()])
}

/// Of [`CHANGED`] and [`VANISHED`].
pub(crate) fn log(tag: u8, mailbox: MailboxId, folder: FolderId, mod_seq: ModSeq, uid: Uid) -> Vec<u8> {
    join(
        tag,
        &[&mailbox.0.to_be_bytes(), &folder.0.to_be_bytes(), &mod_seq.0.to_be_bytes(), &uid.0.to_be_bytes()],
    )
}

pub(crate) fn queue(id: QueueId) -> Vec<u8> {
    join(QUEUE, &[&id.0.to_be_bytes()])
}

/// Of [`LIST`], [`LIST_ARCHIVE`], [`LIST_HEAD`] and [`LIST_OPENED`], and the prefix of all keys of a list under one tag.
pub(crate) fn list(tag: u8, list: ListId) -> Vec<u8> {
    join(tag, &[&list.0.to_be_bytes()])
}

/// Of [`LIST_POST`] and [`LIST_HELD`].
pub(crate) fn list_post(tag: u8, list: ListId, id: QueueId) -> Vec<u8> {
    join(tag, &[&list.0.to_be_bytes(), &id.0.to_be_bytes()])
}

pub(crate) fn list_member(list: ListId, address: &str) -> Vec<u8> {
    join(LIST_MEMBER, &[&list.0.to_be_bytes(), address.as_bytes()])
}

pub(crate) fn body(id: BodyId) -> Vec<u8> {
    join(BODY, &[&id.0.to_be_bytes()])
}

/// The body in a key of [`BODY`].
pub(crate) fn body_of(key: &[u8]) -> Option<BodyId> {
    let [BODY, id @ ..] = key else { return None };
    id.try_into().ok().map(u64::from_be_bytes).map(BodyId)
}

/// The prefix of all chunks of an upload.
pub(crate) fn upload(id: UploadId) -> Vec<u8> {
    join(CHUNK, &[&id.0.to_be_bytes()])
}

pub(crate) fn chunk(id: UploadId, number: u32) -> Vec<u8> {
    join(CHUNK, &[&id.0.to_be_bytes(), &number.to_be_bytes()])
}

/// The block at the end of a key of [`HOLES`].
pub(crate) fn last_block(key: &[u8]) -> Option<u32> {
    key.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The UID at the end of a key of a message or of what belongs to one.
pub(crate) fn last_uid(key: &[u8]) -> Option<Uid> {
    key.last_chunk::<4>().map(|bytes| Uid(u32::from_be_bytes(*bytes)))
}

/// The MODSEQ in a key of [`CHANGED`] or [`VANISHED`].
pub(crate) fn log_mod_seq(key: &[u8]) -> Option<ModSeq> {
    key.get(17..).and_then(|rest| rest.first_chunk::<8>()).map(|bytes| ModSeq(u64::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_is_the_first_key_beyond_a_prefix() {
        assert_eq!(after(&[1, 2]), vec![1, 3]);
        assert_eq!(after(&[1, 0xff, 0xff]), vec![2]);
    }

    #[test]
    fn uid_and_mod_seq_are_read_back_from_a_log_key() {
        let key = log(VANISHED, MailboxId(3), FolderId(4), ModSeq(5), Uid(6));
        assert_eq!((log_mod_seq(&key), last_uid(&key)), (Some(ModSeq(5)), Some(Uid(6))));
    }
}
