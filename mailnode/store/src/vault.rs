//! The vault: messages that were expunged, or went with their folder, are kept for a time and can be brought back.
//!
//! A kept message is numbered in the order in which the messages of its mailbox were deleted, and holds the reference to
//! its body that the message had. What is kept counts towards no quota; it is bounded by a number and by bytes, beyond which
//! the oldest goes. When its time is over is for the leader of the partition to say, by [`Op::DropDeleted`](crate::Op::DropDeleted).

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::{
    Applied, DeletedMessage, Flag, MailboxId, Quota, Refusal, Store, StoreError, StoreFlags, Timestamp, Uid,
    Usage,
    body_table::{self, Body},
    error::Stop,
    flags::FlagSet,
    folder_name::{self, SEPARATOR},
    folders::{Folder, Mailbox},
    keys,
    messages::MAX_EXPUNGED,
    records::{self, Message},
    repair::Reads,
    txn::{SnapshotView, Txn, View},
};

/// Most deleted messages that are kept of one mailbox; beyond it the oldest go.
pub const MAX_KEPT_MESSAGES: u64 = 100_000;
/// Most bytes of deleted messages that are kept of one mailbox.
const MAX_KEPT_BYTES: u64 = 16 << 30;
/// Most messages that one command brings back.
pub const MAX_UNDELETED: usize = 1000;
/// Kept messages that one command drops at most. More than one command can delete, so that the bounds are reached again.
const DROPPED_AT_ONCE: usize = 2 * MAX_EXPUNGED;
/// Kept messages that one answer lists at most.
pub(crate) const MAX_LISTED: u32 = 1000;
/// Octets of prefixes in one answer at most, one message excepted.
const MAX_LISTED_OCTETS: usize = 4 << 20;

/// A kept message. Its number stands in its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) deleted_at: Timestamp,
    /// Full name of its folder when it was deleted.
    pub(crate) folder: String,
    pub(crate) uid: Uid,
    pub(crate) internal_date: Timestamp,
    /// With `\Deleted` where a client expunged it.
    pub(crate) flags: FlagSet,
    pub(crate) body: Body,
}

/// What is kept of one mailbox. Stays when nothing is kept any more, so that no number is given twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VaultHead {
    /// The last number given.
    pub(crate) last: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// When the message with the lowest number was deleted; none when nothing is kept.
    pub(crate) oldest: Option<Timestamp>,
}

fn read_head<V: View>(view: &V, mailbox: MailboxId) -> Result<VaultHead, StoreError> {
    let value = view.get(&keys::mailbox(keys::VAULT, mailbox))?;
    value.map_or(Ok(VaultHead::default()), |value| records::decode(&value))
}

fn read_total<V: View>(view: &V) -> Result<Usage, StoreError> {
    let value = view.get(&[keys::VAULT_TOTAL])?;
    value.map_or(Ok(Usage::default()), |value| records::decode(&value))
}

/// The kept messages of a mailbox from a number on, ascending.
fn scan<V: View>(
    view: &V,
    mailbox: MailboxId,
    from: u64,
    visit: &mut dyn FnMut(u64, Kept) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let prefix = keys::mailbox(keys::KEPT, mailbox);
    view.scan(&prefix, &keys::kept(mailbox, from), &mut |key, value| {
        let number =
            key.last_chunk::<8>().ok_or(StoreError::Damaged("a key of a kept message is too short"))?;
        visit(u64::from_be_bytes(*number), records::decode(value)?)
    })
}

impl Mailbox<'_, '_> {
    /// Keeps messages that leave a folder for good; their references to their bodies become the vault's.
    pub(crate) fn keep_deleted(&mut self, folder: &Folder, messages: &[(Uid, Message)]) -> Result<(), Stop> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut head = read_head(self.txn, self.id)?;
        let mut total = read_total(self.txn)?;
        for (uid, message) in messages {
            head.last += 1;
            let kept = Kept {
                deleted_at: self.at(),
                folder: folder.state.name.clone(),
                uid: *uid,
                internal_date: message.internal_date,
                flags: message.flags.clone(),
                body: message.body,
            };
            self.txn.put(keys::kept(self.id, head.last), records::encode(&kept));
            let bytes = u64::from(message.body.len);
            (head.messages, head.bytes) = (head.messages + 1, head.bytes + bytes);
            (total.messages, total.bytes) = (total.messages + 1, total.bytes + bytes);
            head.oldest = head.oldest.or(Some(kept.deleted_at));
        }
        save(self.txn, self.id, &head, total);
        if head.messages > MAX_KEPT_MESSAGES || head.bytes > MAX_KEPT_BYTES {
            drop_while(self.txn, self.id, |head, _| {
                head.messages > MAX_KEPT_MESSAGES || head.bytes > MAX_KEPT_BYTES
            })?;
        }
        Ok(())
    }

    /// Brings kept messages back into their folders, or the folders of the same names below `below`, as new messages.
    /// Numbers that are not kept are passed over.
    pub(crate) fn undelete(&mut self, numbers: Vec<u64>, below: &str, quota: Quota) -> Result<Applied, Stop> {
        if numbers.len() > MAX_UNDELETED {
            let text = format!("one command brings back at most {MAX_UNDELETED} messages");
            return Err(Refusal::Invalid(text).into());
        }
        let below = if below.is_empty() { None } else { Some(folder_name::normalize(below)?) };
        let mut head = read_head(self.txn, self.id)?;
        let mut total = read_total(self.txn)?;
        let mut found = Vec::new();
        for number in numbers {
            let key = keys::kept(self.id, number);
            let Some(value) = self.txn.get(&key)? else { continue };
            found.push(records::decode::<Kept>(&value)?);
            self.txn.remove(key);
        }
        let bytes = found.iter().map(|kept| u64::from(kept.body.len)).sum();
        self.check_quota(quota, found.len() as u64, bytes)?;
        let messages = found.len() as u64;
        (head.messages, head.bytes) = less(head.messages, head.bytes, messages, bytes);
        (total.messages, total.bytes) = less(total.messages, total.bytes, messages, bytes);
        if head.oldest.is_some() && messages > 0 {
            head.oldest = None;
            scan(self.txn, self.id, 0, &mut |_, kept| {
                head.oldest = Some(kept.deleted_at);
                Ok(ControlFlow::Break(()))
            })?;
        }
        save(self.txn, self.id, &head, total);
        let deleted = FlagSet::new(&[Flag("\\Deleted".to_owned())].into())?;
        let mod_seq = if found.is_empty() { None } else { Some(self.next_mod_seq()) };
        for kept in found {
            let name = match &below {
                Some(below) => folder_name::normalize(&format!("{below}{SEPARATOR}{}", kept.folder))?,
                None => kept.folder,
            };
            let mut folder = match self.find(&name)? {
                Some(folder) => folder,
                None => {
                    self.make_parents(&name)?;
                    self.make(&name, None, true)?
                }
            };
            let mod_seq = mod_seq.expect("it was given before the first message");
            // A folder that was made meanwhile has a higher one.
            let mod_seq = if folder.state.highest_mod_seq > mod_seq { self.next_mod_seq() } else { mod_seq };
            let flags = kept.flags.stored(StoreFlags::Remove, &deleted)?;
            let message = Message { body: kept.body, mod_seq, internal_date: kept.internal_date, flags };
            self.add(&mut folder, &message)?;
            self.save_folder(&folder);
            self.folder_changed(folder.id);
        }
        Ok(Applied::Undeleted { messages })
    }

    /// Drops what was deleted before an instant; [`Applied::More`] when it is more than one command may drop.
    pub(crate) fn drop_deleted(&mut self, before: Timestamp) -> Result<Applied, Stop> {
        drop_while(self.txn, self.id, |_, kept| kept.deleted_at < before)
    }

    /// Drops everything, and then all that is known of it; [`Applied::More`] as in [`Mailbox::drop_deleted`].
    pub(crate) fn forget_deleted(&mut self) -> Result<Applied, Stop> {
        let applied = drop_while(self.txn, self.id, |_, _| true)?;
        if applied == Applied::Done {
            self.txn.remove(keys::mailbox(keys::VAULT, self.id));
        }
        Ok(applied)
    }
}

/// Drops kept messages from the oldest on for as long as the condition holds.
fn drop_while(
    txn: &mut Txn<'_>,
    mailbox: MailboxId,
    mut goes: impl FnMut(&VaultHead, &Kept) -> bool,
) -> Result<Applied, Stop> {
    let mut head = read_head(txn, mailbox)?;
    let mut total = read_total(txn)?;
    let mut gone = Vec::new();
    let mut applied = Applied::Done;
    head.oldest = None;
    scan(txn, mailbox, 0, &mut |number, kept| {
        let wanted = goes(&head, &kept);
        if !wanted || gone.len() == DROPPED_AT_ONCE {
            if wanted {
                applied = Applied::More;
            }
            head.oldest = Some(kept.deleted_at);
            return Ok(ControlFlow::Break(()));
        }
        let bytes = u64::from(kept.body.len);
        (head.messages, head.bytes) = less(head.messages, head.bytes, 1, bytes);
        (total.messages, total.bytes) = less(total.messages, total.bytes, 1, bytes);
        gone.push((number, kept.body.id));
        Ok(ControlFlow::Continue(()))
    })?;
    if gone.is_empty() {
        return Ok(applied);
    }
    for (number, body) in gone {
        txn.remove(keys::kept(mailbox, number));
        body_table::release(txn, body)?;
    }
    save(txn, mailbox, &head, total);
    Ok(applied)
}

fn less(messages: u64, bytes: u64, fewer: u64, smaller: u64) -> (u64, u64) {
    messages
        .checked_sub(fewer)
        .zip(bytes.checked_sub(smaller))
        .expect("the vault's sums are those over what it keeps")
}

fn save(txn: &mut Txn<'_>, mailbox: MailboxId, head: &VaultHead, total: Usage) {
    txn.put(keys::mailbox(keys::VAULT, mailbox), records::encode(head));
    if total == Usage::default() {
        txn.remove(vec![keys::VAULT_TOTAL]);
    } else {
        txn.put(vec![keys::VAULT_TOTAL], records::encode(&total));
    }
}

/// Kept messages after a number, in the order of their deletion, and how much is kept of the mailbox.
pub(crate) fn page(
    view: &SnapshotView<'_>,
    bodies: &Reads<'_>,
    mailbox: MailboxId,
    after: u64,
    limit: u32,
    prefix: u32,
) -> Result<(Vec<DeletedMessage>, Usage), StoreError> {
    let limit = limit.clamp(1, MAX_LISTED) as usize;
    let (mut found, mut octets) = (Vec::new(), 0);
    scan(view, mailbox, after.saturating_add(1), &mut |number, kept| {
        // A body that cannot be read is that message's trouble alone.
        let start = match prefix {
            0 => bytes::Bytes::new(),
            _ => body_table::read(view, bodies, kept.body.id, Some(prefix))?.unwrap_or_default(),
        };
        octets += start.len();
        found.push(DeletedMessage {
            number,
            deleted_at: kept.deleted_at,
            folder: kept.folder,
            uid: kept.uid,
            internal_date: kept.internal_date,
            flags: kept.flags.to_flags(),
            size: kept.body.len,
            start,
        });
        let full = found.len() == limit || octets >= MAX_LISTED_OCTETS;
        Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let head = read_head(view, mailbox)?;
    Ok((found, Usage { bytes: head.bytes, messages: head.messages }))
}

impl Store {
    /// Mailboxes of a group with a kept message that was deleted before an instant, at most so many:
    /// [`Op::DropDeleted`](crate::Op::DropDeleted) would drop it.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn deleted_before(
        &self,
        group: u32,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<MailboxId>, StoreError> {
        let Some(view) = self.view(group)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        view.scan(&[keys::VAULT], &[keys::VAULT], &mut |key, value| {
            if records::decode::<VaultHead>(value)?.oldest.is_some_and(|oldest| oldest < before) {
                let id = key.last_chunk::<8>().ok_or(StoreError::Damaged("a mailbox key is too short"))?;
                found.push(MailboxId(u64::from_be_bytes(*id)));
            }
            Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(found)
    }

    /// How much deleted mail is kept in a group.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn kept_deleted(&self, group: u32) -> Result<Usage, StoreError> {
        self.view(group)?.map_or(Ok(Usage::default()), |view| read_total(&view))
    }
}
