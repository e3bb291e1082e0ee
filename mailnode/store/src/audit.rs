//! Whether the sums and indexes of a group are what they sum up and index. An instrument of tests and simulation: reads
//! the whole group.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::{
    BodyId, FolderId, ListId, MailboxId, Store, StoreError, Usage,
    body_table::BodyEntry,
    chunks::{self, Chunk},
    keys,
    lists::ListHead,
    records::{self, FolderState, MailboxHead, Message, Posted, Queued},
    restore::RestoreState,
    txn::View,
    uids::Holes,
    vault::{Kept, VaultHead},
};

/// What was counted of a folder.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    messages: u32,
    unseen: u32,
    deleted: u32,
    bytes: u64,
    vanished: u32,
    /// UIDs given so far that are in use no more.
    holes: u32,
    /// Messages marked as deleted.
    marked: u32,
    /// Sources of imported messages remembered.
    imported: u32,
    /// Reserved UIDs.
    reserved: u32,
    /// Messages without an entry in the index of changes, and entries without a message.
    changes: i64,
}

impl Store {
    /// Counts everything in a group; the error names the first sum that is wrong.
    ///
    /// # Errors
    /// When a sum is wrong or the index cannot be read.
    pub fn audit(&self, group: u32) -> Result<(), String> {
        let failed = |error: StoreError| error.to_string();
        let Some(view) = self.view(group).map_err(failed)? else { return Ok(()) };
        let mut folders: BTreeMap<(MailboxId, FolderId), Counted> = BTreeMap::new();
        let mut states: BTreeMap<(MailboxId, FolderId), FolderState> = BTreeMap::new();
        let mut heads: BTreeMap<MailboxId, MailboxHead> = BTreeMap::new();
        let mut references: BTreeMap<BodyId, u64> = BTreeMap::new();
        let mut table: BTreeMap<BodyId, BodyEntry> = BTreeMap::new();
        let mut restores: BTreeMap<(MailboxId, FolderId), RestoreState> = BTreeMap::new();
        let mut vaults: BTreeMap<MailboxId, VaultHead> = BTreeMap::new();
        let mut kept: BTreeMap<MailboxId, VaultHead> = BTreeMap::new();
        let (mut posts, mut subscribers) = (BTreeMap::<ListId, u32>::new(), BTreeMap::<ListId, u32>::new());
        let mut lists: BTreeMap<ListId, (u32, u32)> = BTreeMap::new();
        let mut chunks = 0;
        view.scan(&[], &[], &mut |key, value| {
            let number = |at: usize| -> u64 {
                key.get(at..at + 8)
                    .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()))
            };
            let folder = (MailboxId(number(1)), FolderId(number(9)));
            match key[0] {
                keys::HEAD => drop(heads.insert(folder.0, records::decode(value)?)),
                keys::FOLDER => drop(states.insert(folder, records::decode(value)?)),
                keys::MESSAGE => {
                    let message: Message = records::decode(value)?;
                    let counted = folders.entry(folder).or_default();
                    counted.messages += 1;
                    counted.bytes += u64::from(message.body.len);
                    counted.unseen += u32::from(!message.flags.seen());
                    counted.deleted += u32::from(message.flags.deleted());
                    counted.changes += 1;
                    *references.entry(message.body.id).or_default() += 1;
                }
                keys::CHANGED => folders.entry(folder).or_default().changes -= 1,
                keys::VANISHED => folders.entry(folder).or_default().vanished += 1,
                keys::HOLES => folders.entry(folder).or_default().holes += Holes::decode(value)?.len(),
                keys::RESERVED => folders.entry(folder).or_default().reserved += Holes::decode(value)?.len(),
                keys::IMPORTED => folders.entry(folder).or_default().imported += 1,
                keys::RESTORE => drop(restores.insert(folder, records::decode(value)?)),
                keys::VAULT => drop(vaults.insert(folder.0, records::decode(value)?)),
                keys::KEPT => {
                    let message: Kept = records::decode(value)?;
                    let counted = kept.entry(folder.0).or_default();
                    counted.last = number(9);
                    counted.messages += 1;
                    counted.bytes += u64::from(message.body.len);
                    counted.oldest = counted.oldest.or(Some(message.deleted_at));
                    *references.entry(message.body.id).or_default() += 1;
                }
                keys::MARKED => folders.entry(folder).or_default().marked += 1,
                keys::QUEUE => *references.entry(records::decode::<Queued>(value)?.body).or_default() += 1,
                keys::LIST_POST | keys::LIST_HELD => {
                    let posted: Posted = records::decode(value)?;
                    *references.entry(posted.body).or_default() += 1;
                    *posts.entry(posted.post.list).or_default() += 1;
                }
                keys::LIST_MEMBER => *subscribers.entry(ListId(number(1))).or_default() += 1,
                keys::LIST_HEAD => {
                    let head: ListHead = records::decode(value)?;
                    lists.insert(ListId(number(1)), (head.held + head.expanding, head.subscribers));
                }
                keys::BODY => {
                    let entry = BodyEntry::decode(value)?;
                    for part in &entry.state.parts {
                        *references.entry(*part).or_default() += 1;
                    }
                    table.insert(BodyId(number(1)), entry);
                }
                keys::CHUNK => {
                    chunks += 1;
                    *references.entry(records::decode::<Chunk>(value)?.body).or_default() += 1;
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })
        .map_err(failed)?;

        let told = chunks::waiting(&view).map_err(failed)?;
        if told != chunks {
            return Err(format!("{told} chunks are said to wait, but there are {chunks}"));
        }
        for (id, (told_posts, told_subscribers)) in lists {
            let counted = (posts.remove(&id).unwrap_or(0), subscribers.remove(&id).unwrap_or(0));
            if counted != (told_posts, told_subscribers) {
                return Err(format!(
                    "list {id} says {told_posts} posts and {told_subscribers} addresses, but {counted:?} were counted"
                ));
            }
        }
        if !posts.is_empty() || !subscribers.is_empty() {
            return Err("there are posts or addresses of lists that count none".to_owned());
        }
        for (id, told) in &vaults {
            let counted = kept.remove(id).unwrap_or_default();
            let same = VaultHead { last: told.last, ..counted.clone() } == *told;
            if !same || counted.last > told.last || !heads.contains_key(id) {
                return Err(format!(
                    "mailbox {id:?} says that it keeps {told:?}, but {counted:?} was counted"
                ));
            }
        }
        if let Some(left) = kept.first_key_value() {
            return Err(format!("deleted mail is kept of a mailbox that does not say so: {left:?}"));
        }
        let sum = vaults.values().fold(Usage::default(), |sum, head| Usage {
            bytes: sum.bytes + head.bytes,
            messages: sum.messages + head.messages,
        });
        let told = self.kept_deleted(group).map_err(failed)?;
        if told != sum {
            return Err(format!("{told:?} is said to be kept, but {sum:?} is"));
        }
        let counts: BTreeMap<BodyId, u64> =
            table.iter().map(|(id, entry)| (*id, entry.state.references)).collect();
        if counts != references {
            return Err(format!(
                "the table of bodies counts {counts:?}, but the references are {references:?}"
            ));
        }
        let mut sums: BTreeMap<MailboxId, (u64, u64, u32)> = BTreeMap::new();
        for (id, state) in &states {
            let counted = folders.remove(id).unwrap_or_default();
            if counted.reserved > counted.holes {
                return Err(format!("folder {id:?} has reserved UIDs that are in use"));
            }
            let told = Counted {
                messages: state.messages,
                unseen: state.unseen,
                deleted: state.deleted,
                bytes: state.bytes,
                vanished: state.vanished,
                holes: state.uid_next.0 - 1 - state.messages,
                marked: state.deleted,
                imported: restores.remove(id).unwrap_or_default().imported,
                reserved: counted.reserved,
                changes: 0,
            };
            if counted != told {
                return Err(format!("folder {id:?} says {told:?}, but {counted:?} was counted"));
            }
            let sum = sums.entry(id.0).or_default();
            *sum = (sum.0 + u64::from(state.messages), sum.1 + state.bytes, sum.2 + 1);
        }
        if let Some((left, _)) = restores.first_key_value() {
            return Err(format!("something was restored into folder {left:?}, which does not exist"));
        }
        if let Some(left) = folders.first_key_value() {
            return Err(format!("there are keys of a folder that does not exist: {left:?}"));
        }
        let told: BTreeMap<_, _> =
            heads.iter().map(|(id, head)| (*id, (head.messages, head.bytes, head.folders))).collect();
        if told != sums {
            return Err(format!("mailboxes say {told:?} (messages, bytes, folders), but hold {sums:?}"));
        }
        Ok(())
    }
}
