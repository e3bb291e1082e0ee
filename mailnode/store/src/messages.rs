//! Messages of a folder: adding, flags, copying, expunging. RFC 9051 6.4, RFC 7162, RFC 6851, RFC 4315.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::{
    Applied, Flags, FolderId, MailboxId, ModSeq, Quota, Refusal, StoreError, StoreFlags, Timestamp, Uid,
    body_table::{self, Arrived},
    error::Stop,
    flags::FlagSet,
    folders::{Folder, Mailbox},
    keys,
    records::{self, Message},
    txn::View,
    uids::{self, Holes},
};

/// Most expunged UIDs remembered for a folder; for a client that was away longer, all its messages are listed again.
pub(crate) const MAX_VANISHED: u32 = 10_000;
/// Most messages that one EXPUNGE without UIDs takes out: bounds what a command makes of memory and time.
pub(crate) const MAX_EXPUNGED: usize = 1000;
/// Most keywords that a folder lists; others can be used all the same.
pub(crate) const MAX_FOLDER_KEYWORDS: usize = 256;

/// What becomes of messages that are taken out of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They are in another folder already.
    Moved,
    /// They are kept for a time, where the command keeps what it deletes.
    Deleted,
}

impl Mailbox<'_, '_> {
    pub(crate) fn append(
        &mut self,
        name: &str,
        flags: &Flags,
        internal_date: Timestamp,
        quota: Quota,
        arrived: Arrived,
    ) -> Result<Applied, Stop> {
        let flags = FlagSet::new(flags)?;
        let mut folder = self.named(name)?;
        let body = arrived.body();
        self.check_quota(quota, 1, u64::from(body.len))?;
        let message = Message { body, mod_seq: self.next_mod_seq(), internal_date, flags };
        let uid = self.add(&mut folder, &message)?;
        body_table::add(self.txn, &arrived);
        self.save_folder(&folder);
        self.folder_changed(folder.id);
        Ok(Applied::Appended { folder: folder.id, uid_validity: folder.state.uid_validity, uid })
    }

    pub(crate) fn store_flags(
        &mut self,
        folder: FolderId,
        uids: Vec<Uid>,
        mode: StoreFlags,
        flags: &Flags,
        unchanged_since: Option<ModSeq>,
    ) -> Result<Applied, Stop> {
        let wanted = FlagSet::new(flags)?;
        let mut folder = self.folder(folder)?;
        let (mut changed, mut modified, mut mod_seq) = (Vec::new(), Vec::new(), None);
        for uid in ascending(uids) {
            let Some(mut message) = self.message(folder.id, uid)? else { continue };
            if unchanged_since.is_some_and(|since| message.mod_seq > since) {
                modified.push(uid);
                continue;
            }
            let new = message.flags.stored(mode, &wanted)?;
            if new != message.flags {
                let mod_seq = *mod_seq.get_or_insert_with(|| self.next_mod_seq());
                self.count_flags(&mut folder, uid, &message.flags, false);
                self.count_flags(&mut folder, uid, &new, true);
                self.list_keywords(folder.id, &new)?;
                self.txn.remove(keys::log(keys::CHANGED, self.id, folder.id, message.mod_seq, uid));
                message.flags = new;
                message.mod_seq = mod_seq;
                self.put_message(folder.id, uid, &message);
            }
            changed.push((uid, message.mod_seq, message.flags.to_flags()));
        }
        if let Some(mod_seq) = mod_seq {
            folder.state.highest_mod_seq = mod_seq;
            self.save_folder(&folder);
            self.folder_changed(folder.id);
        }
        Ok(Applied::Stored { mod_seq, changed, modified })
    }

    pub(crate) fn copy(
        &mut self,
        from: FolderId,
        uids: Vec<Uid>,
        to: &str,
        remove: bool,
        quota: Quota,
    ) -> Result<Applied, Stop> {
        let source = self.folder(from)?;
        let target = self.named(to)?;
        let mut found = Vec::new();
        for uid in ascending(uids) {
            if let Some(message) = self.message(source.id, uid)? {
                found.push((uid, message));
            }
        }
        if !remove {
            let bytes = found.iter().map(|(_, message)| u64::from(message.body.len)).sum();
            self.check_quota(quota, found.len() as u64, bytes)?;
        }
        let uid_validity = target.state.uid_validity;
        let uids = self.transfer(source.id, target.id, found, remove)?;
        Ok(Applied::Copied { uid_validity, uids })
    }

    /// Moves the messages of a folder with the lowest UIDs, so many of them.
    pub(crate) fn move_first(&mut self, from: FolderId, to: FolderId, messages: usize) -> Result<(), Stop> {
        let found = self.first_messages(from, messages)?;
        self.transfer(from, to, found, true)?;
        Ok(())
    }

    /// Expunges the messages of a folder with the lowest UIDs, so many of them.
    pub(crate) fn take_out_first(&mut self, folder: Folder, messages: usize, fate: Fate) -> Result<(), Stop> {
        let first = self.first_messages(folder.id, messages)?;
        self.take_out(folder, &first, fate)
    }

    pub(crate) fn expunge(&mut self, folder: FolderId, uids: Option<Vec<Uid>>) -> Result<Applied, Stop> {
        let folder = self.folder(folder)?;
        if folder.state.deleted == 0 {
            return Ok(Applied::Expunged(Vec::new()));
        }
        let gone = match uids {
            None => self.marked(folder.id)?,
            Some(uids) => {
                let mut gone = Vec::new();
                for uid in ascending(uids) {
                    match self.message(folder.id, uid)? {
                        Some(message) if message.flags.deleted() => gone.push((uid, message)),
                        _ => {}
                    }
                }
                gone
            }
        };
        self.take_out(folder, &gone, Fate::Deleted)?;
        Ok(Applied::Expunged(gone.into_iter().map(|(uid, _)| uid).collect()))
    }

    /// Adds copies to the target and, for a move, takes the originals out. Both may be the same folder.
    fn transfer(
        &mut self,
        from: FolderId,
        to: FolderId,
        messages: Vec<(Uid, Message)>,
        remove: bool,
    ) -> Result<Vec<(Uid, Uid)>, Stop> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let mut target = self.folder(to)?;
        let mod_seq = self.next_mod_seq();
        let mut pairs = Vec::with_capacity(messages.len());
        for (uid, message) in &messages {
            let mut copy = message.clone();
            copy.mod_seq = mod_seq;
            let new = self.add(&mut target, &copy)?;
            pairs.push((*uid, new));
            let digests = |folder, uid| keys::by_uid(keys::DIGESTS, self.id, folder, uid);
            if let Some(kept) = self.txn.get(&digests(from, *uid))? {
                self.txn.put(digests(to, new), kept);
            }
            body_table::retain(self.txn, copy.body.id)?;
        }
        self.save_folder(&target);
        self.folder_changed(to);
        if remove {
            let source = self.folder(from)?;
            self.take_out(source, &messages, Fate::Moved)?;
        }
        Ok(pairs)
    }

    /// Gives a message the next UID. The caller saves the folder and counts the reference to the body.
    pub(crate) fn add(&mut self, folder: &mut Folder, message: &Message) -> Result<Uid, Stop> {
        let uid = folder.state.uid_next;
        let next = uid.0.checked_add(1);
        folder.state.uid_next =
            Uid(next.ok_or_else(|| Refusal::Invalid("the folder has no UID left".to_owned()))?);
        self.place(folder, uid, message)?;
        Ok(uid)
    }

    /// Puts a message under a UID below UIDNEXT that no other has. The rest is as in [`Mailbox::add`].
    pub(crate) fn place(&mut self, folder: &mut Folder, uid: Uid, message: &Message) -> Result<(), Stop> {
        self.put_message(folder.id, uid, message);
        folder.state.highest_mod_seq = message.mod_seq;
        folder.state.messages += 1;
        folder.state.bytes += u64::from(message.body.len);
        self.head.messages += 1;
        self.head.bytes += u64::from(message.body.len);
        self.count_flags(folder, uid, &message.flags, true);
        self.list_keywords(folder.id, &message.flags)
    }

    /// Expunges messages and saves the folder.
    fn take_out(&mut self, mut folder: Folder, messages: &[(Uid, Message)], fate: Fate) -> Result<(), Stop> {
        if messages.is_empty() {
            return Ok(());
        }
        self.let_go(&folder, messages, fate)?;
        let mod_seq = self.next_mod_seq();
        for (uid, message) in messages {
            let bytes = u64::from(message.body.len);
            assert!(
                folder.state.messages > 0 && folder.state.bytes >= bytes && self.head.bytes >= bytes,
                "a folder's counters are the sums over its messages"
            );
            self.txn.remove(keys::message(self.id, folder.id, *uid));
            self.txn.remove(keys::by_uid(keys::DIGESTS, self.id, folder.id, *uid));
            self.txn.remove(keys::log(keys::CHANGED, self.id, folder.id, message.mod_seq, *uid));
            self.txn.put(keys::log(keys::VANISHED, self.id, folder.id, mod_seq, *uid), Vec::new());
            folder.state.messages -= 1;
            folder.state.bytes -= bytes;
            folder.state.vanished += 1;
            self.head.messages -= 1;
            self.head.bytes -= bytes;
            self.count_flags(&mut folder, *uid, &message.flags, false);
        }
        self.make_holes(folder.id, messages.iter().map(|(uid, _)| *uid))?;
        folder.state.highest_mod_seq = mod_seq;
        self.forget_vanished(&mut folder)?;
        self.save_folder(&folder);
        self.folder_changed(folder.id);
        Ok(())
    }

    /// What becomes of the references that messages have to their bodies when they leave a folder.
    pub(crate) fn let_go(
        &mut self,
        folder: &Folder,
        messages: &[(Uid, Message)],
        fate: Fate,
    ) -> Result<(), Stop> {
        if self.keeps && fate == Fate::Deleted {
            return self.keep_deleted(folder, messages);
        }
        messages.iter().try_for_each(|(_, message)| body_table::release(self.txn, message.body.id))
    }

    /// Drops the oldest remembered expunges beyond the bound.
    fn forget_vanished(&mut self, folder: &mut Folder) -> Result<(), Stop> {
        let excess = folder.state.vanished.saturating_sub(MAX_VANISHED);
        if excess == 0 {
            return Ok(());
        }
        // From the floor on: what lies before was dropped earlier and would only be walked over.
        let prefix = keys::folder(keys::VANISHED, self.id, folder.id);
        let from = keys::log(keys::VANISHED, self.id, folder.id, folder.state.vanished_floor, Uid(0));
        let mut oldest = Vec::new();
        self.txn.scan(&prefix, &from, &mut |key, _| {
            oldest.push(key.to_vec());
            Ok(if oldest.len() < excess as usize {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        assert_eq!(oldest.len(), excess as usize, "a folder counts the expunges it remembers");
        if let Some(mod_seq) = oldest.last().and_then(|key| keys::log_mod_seq(key)) {
            folder.state.vanished_floor = mod_seq;
        }
        for key in oldest {
            self.txn.remove(key);
        }
        folder.state.vanished -= excess;
        Ok(())
    }

    fn put_message(&mut self, folder: FolderId, uid: Uid, message: &Message) {
        self.txn.put(keys::log(keys::CHANGED, self.id, folder, message.mod_seq, uid), Vec::new());
        self.txn.put(keys::message(self.id, folder, uid), records::encode(message));
    }

    pub(crate) fn message(&self, folder: FolderId, uid: Uid) -> Result<Option<Message>, Stop> {
        let value = self.txn.get(&keys::message(self.id, folder, uid))?;
        Ok(value.map(|value| records::decode(&value)).transpose()?)
    }

    pub(crate) fn first_messages(
        &self,
        folder: FolderId,
        at_most: usize,
    ) -> Result<Vec<(Uid, Message)>, Stop> {
        let prefix = keys::folder(keys::MESSAGE, self.id, folder);
        let mut found = Vec::new();
        self.txn.scan(&prefix, &prefix, &mut |key, value| {
            if found.len() == at_most {
                return Ok(ControlFlow::Break(()));
            }
            let uid = keys::last_uid(key).ok_or(StoreError::Damaged("a message key is too short"))?;
            found.push((uid, records::decode(value)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Messages with `\Deleted`, the lowest UIDs first, at most [`MAX_EXPUNGED`].
    fn marked(&self, folder: FolderId) -> Result<Vec<(Uid, Message)>, Stop> {
        let prefix = keys::folder(keys::MARKED, self.id, folder);
        let mut uids = Vec::new();
        self.txn.scan(&prefix, &prefix, &mut |key, _| {
            uids.extend(keys::last_uid(key));
            Ok(if uids.len() < MAX_EXPUNGED { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        let mut found = Vec::with_capacity(uids.len());
        for uid in uids {
            let message = self.message(folder, uid)?;
            found.push((uid, message.ok_or(StoreError::Damaged("a mark points to no message"))?));
        }
        Ok(found)
    }

    /// Notes that UIDs are in use no more.
    fn make_holes(&mut self, folder: FolderId, gone: impl Iterator<Item = Uid>) -> Result<(), Stop> {
        let mut blocks: BTreeMap<u32, Vec<Uid>> = BTreeMap::new();
        for uid in gone {
            blocks.entry(uids::block(uid)).or_default().push(uid);
        }
        for (block, gone) in blocks {
            let key = keys::holes(self.id, folder, block);
            let mut holes = match self.txn.get(&key)? {
                Some(value) => Holes::decode(&value)?,
                None => Holes::default(),
            };
            gone.into_iter().for_each(|uid| holes.insert(uid));
            self.txn.put(key, holes.encode());
        }
        Ok(())
    }

    /// Adds the keywords to those that the folder lists.
    fn list_keywords(&mut self, folder: FolderId, flags: &FlagSet) -> Result<(), Stop> {
        if flags.keywords().is_empty() {
            return Ok(());
        }
        let mut listed = keywords(self.txn, self.id, folder)?;
        let before = listed.len();
        for keyword in flags.keywords() {
            if listed.len() < MAX_FOLDER_KEYWORDS
                && !listed.iter().any(|have| have.eq_ignore_ascii_case(keyword))
            {
                listed.push(keyword.clone());
            }
        }
        if listed.len() > before {
            self.txn.put(keys::folder(keys::KEYWORDS, self.id, folder), records::encode(&listed));
        }
        Ok(())
    }

    /// Counts a message's flags in or out, and marks it when it has `\Deleted`.
    fn count_flags(&mut self, folder: &mut Folder, uid: Uid, flags: &FlagSet, there: bool) {
        let step = |counter: &mut u32| {
            let next = if there { counter.checked_add(1) } else { counter.checked_sub(1) };
            *counter = next.expect("a folder's counters are the sums over its messages");
        };
        if !flags.seen() {
            step(&mut folder.state.unseen);
        }
        if flags.deleted() {
            step(&mut folder.state.deleted);
            let mark = keys::by_uid(keys::MARKED, self.id, folder.id, uid);
            if there {
                self.txn.put(mark, Vec::new());
            } else {
                self.txn.remove(mark);
            }
        }
    }

    pub(crate) fn check_quota(&self, quota: Quota, messages: u64, bytes: u64) -> Result<(), Stop> {
        let over =
            |limit: u64, used: u64, more: u64| limit != 0 && more > 0 && used.saturating_add(more) > limit;
        if over(quota.bytes, self.head.bytes, bytes) || over(quota.messages, self.head.messages, messages) {
            return Err(Refusal::OverQuota.into());
        }
        Ok(())
    }
}

/// Keywords that messages of a folder have or had, in the order they came.
pub(crate) fn keywords<V: View>(
    view: &V,
    mailbox: MailboxId,
    folder: FolderId,
) -> Result<Vec<String>, StoreError> {
    let value = view.get(&keys::folder(keys::KEYWORDS, mailbox, folder))?;
    value.map_or(Ok(Vec::new()), |value| records::decode(&value))
}

fn ascending(mut uids: Vec<Uid>) -> Vec<Uid> {
    uids.sort_unstable();
    uids.dedup();
    uids
}
