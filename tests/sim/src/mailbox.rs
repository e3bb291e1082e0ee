//! What a client knows about its mailbox: only it writes there, so it can tell exactly what must be in it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorumail_store::{Flag, Flags, FolderId, FolderInfo, MessageMeta, ModSeq, Uid, UidValidity};

/// A message as the client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) tag: u64,
    pub(crate) flags: Flags,
    pub(crate) mod_seq: ModSeq,
    pub(crate) size: u32,
}

/// A folder as the client knows it.
#[derive(Debug, Clone)]
pub(crate) struct KnownFolder {
    pub(crate) id: FolderId,
    pub(crate) uid_validity: UidValidity,
    pub(crate) messages: BTreeMap<Uid, Known>,
    /// The highest UID ever given.
    pub(crate) last_uid: Uid,
    /// The highest MODSEQ ever seen.
    pub(crate) mod_seq: ModSeq,
}

/// The body of the message with this tag: its length and content follow from the tag.
pub(crate) fn body(tag: u64) -> Bytes {
    let len = match tag % 23 {
        0 => 30_000,
        1..5 => 2_000,
        _ => 40,
    } + (tag % 37) as usize;
    let mut body = format!("Subject: {tag}\r\n\r\n").into_bytes();
    let fill = (tag % 26) as u8 + b'a';
    body.resize(body.len() + len, fill);
    body.into()
}

/// The tag in a body.
pub(crate) fn tag_of(body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(b"Subject: ")?;
    let end = rest.iter().position(|byte| *byte == b'\r')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// A set of flags by name.
pub(crate) fn flags(names: &[&str]) -> Flags {
    names.iter().map(|name| Flag((*name).to_owned())).collect()
}

impl KnownFolder {
    pub(crate) fn new(id: FolderId, uid_validity: UidValidity) -> KnownFolder {
        let (last_uid, mod_seq) = (Uid(0), ModSeq(0));
        KnownFolder { id, uid_validity, messages: BTreeMap::new(), last_uid, mod_seq }
    }

    /// A message was added with this UID.
    ///
    /// # Errors
    /// When the UID may have been another message's.
    pub(crate) fn added(&mut self, uid: Uid, tag: u64, flags: Flags) -> Result<(), String> {
        if uid <= self.last_uid {
            return Err(format!("UID {uid} is used again: {} was given before", self.last_uid));
        }
        self.last_uid = uid;
        let size = u32::try_from(body(tag).len()).unwrap_or(u32::MAX);
        self.messages.insert(uid, Known { tag, flags, mod_seq: ModSeq(0), size });
        Ok(())
    }

    /// Compares with what the store answers; what the client could not know, it learns.
    ///
    /// # Errors
    /// The first difference.
    pub(crate) fn compare(&mut self, info: &FolderInfo, found: &[MessageMeta]) -> Result<(), String> {
        if info.uid_validity != self.uid_validity {
            return Err(format!("UIDVALIDITY is {}, it was {}", info.uid_validity, self.uid_validity));
        }
        if info.highest_mod_seq < self.mod_seq {
            return Err(format!("HIGHESTMODSEQ is {}, it was {}", info.highest_mod_seq, self.mod_seq));
        }
        let uids: BTreeSet<Uid> = found.iter().map(|message| message.uid).collect();
        if uids.len() != found.len() {
            return Err("a UID is there twice".to_owned());
        }
        let known: BTreeSet<Uid> = self.messages.keys().copied().collect();
        if let Some(lost) = known.difference(&uids).next() {
            return Err(format!("message {lost} (tag {}) is lost", self.messages[lost].tag));
        }
        if let Some(extra) = uids.difference(&known).next() {
            return Err(format!("message {extra} should not be there"));
        }
        for message in found {
            let Some(known) = self.messages.get_mut(&message.uid) else { continue };
            if message.flags != known.flags || message.size != known.size {
                return Err(format!("message {} is {message:?}, it should be {known:?}", message.uid));
            }
            if message.mod_seq < known.mod_seq || message.mod_seq > info.highest_mod_seq {
                return Err(format!("MODSEQ of message {} goes back to {}", message.uid, message.mod_seq));
            }
            known.mod_seq = message.mod_seq;
        }
        self.mod_seq = info.highest_mod_seq;
        let bytes: u64 = found.iter().map(|message| u64::from(message.size)).sum();
        let seen = Flag("\\Seen".to_owned());
        let unseen = found.iter().filter(|message| !message.flags.contains(&seen)).count();
        let counters = (info.messages as usize, info.unseen as usize, info.bytes);
        if counters != (found.len(), unseen, bytes) {
            return Err(format!("counters are {counters:?}, the sums {:?}", (found.len(), unseen, bytes)));
        }
        if info.uid_next <= self.last_uid {
            return Err(format!("UIDNEXT is {}, {} was given", info.uid_next, self.last_uid));
        }
        Ok(())
    }
}
