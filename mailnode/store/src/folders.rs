//! Folders of a mailbox: making, renaming, deleting. RFC 9051 6.3, RFC 6154.

use std::ops::ControlFlow;

use crate::{
    Applied, FolderId, MailboxId, ModSeq, Refusal, SpecialUse, StoreError, Timestamp, Uid, UidValidity,
    error::Stop,
    folder_name::{self, INBOX, SEPARATOR},
    keys,
    messages::{Fate, MAX_EXPUNGED},
    records::{self, FolderState, MailboxHead},
    restore::FORGET_AT_ONCE,
    store::Change,
    txn::{Txn, View},
};

/// The number that INBOX has in every mailbox: it is made first.
pub const INBOX_NUMBER: FolderId = FolderId(1);
/// Most folders of one mailbox.
pub(crate) const MAX_FOLDERS: u32 = 10_000;

/// The folders that a mailbox is made with, besides INBOX.
const SPECIAL: [(&str, SpecialUse); 5] = [
    ("Archive", SpecialUse::Archive),
    ("Drafts", SpecialUse::Drafts),
    ("Junk", SpecialUse::Junk),
    ("Sent", SpecialUse::Sent),
    ("Trash", SpecialUse::Trash),
];

/// A folder that is being changed.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) id: FolderId,
    pub(crate) state: FolderState,
}

/// A mailbox that is being changed by one command. [`Mailbox::save`] writes its counters.
pub(crate) struct Mailbox<'t, 'a> {
    pub(crate) txn: &'t mut Txn<'a>,
    pub(crate) group: u32,
    pub(crate) id: MailboxId,
    pub(crate) head: MailboxHead,
    /// Whether deleted messages are kept (`vault.rs`).
    pub(crate) keeps: bool,
    at: Timestamp,
}

/// Reads a folder by id.
pub(crate) fn folder_by_id<V: View>(
    view: &V,
    mailbox: MailboxId,
    id: FolderId,
) -> Result<Option<Folder>, StoreError> {
    let value = view.get(&keys::folder(keys::FOLDER, mailbox, id))?;
    value.map(|value| Ok(Folder { id, state: records::decode(&value)? })).transpose()
}

/// Reads a folder by its normal name.
pub(crate) fn folder_by_name<V: View>(
    view: &V,
    mailbox: MailboxId,
    name: &str,
) -> Result<Option<Folder>, StoreError> {
    let Some(value) = view.get(&keys::folder_name(mailbox, name))? else { return Ok(None) };
    let id = records::decode(&value)?;
    let folder = folder_by_id(view, mailbox, id)?;
    folder.map(Some).ok_or(StoreError::Damaged("a folder name points to no folder"))
}

/// All folders of a mailbox, by id.
pub(crate) fn folders<V: View>(view: &V, mailbox: MailboxId) -> Result<Vec<Folder>, StoreError> {
    let prefix = keys::mailbox(keys::FOLDER, mailbox);
    let mut found = Vec::new();
    view.scan(&prefix, &prefix, &mut |key, value| {
        let id = key.last_chunk::<8>().ok_or(StoreError::Damaged("a folder key is too short"))?;
        found.push(Folder { id: FolderId(u64::from_be_bytes(*id)), state: records::decode(value)? });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Reads a mailbox' counters; none when it was never opened.
pub(crate) fn mailbox_head<V: View>(view: &V, mailbox: MailboxId) -> Result<Option<MailboxHead>, StoreError> {
    view.get(&keys::mailbox(keys::HEAD, mailbox))?.map(|value| records::decode(&value)).transpose()
}

impl<'t, 'a> Mailbox<'t, 'a> {
    /// The mailbox as it stands; made with its first folders when it is new.
    pub(crate) fn open(txn: &'t mut Txn<'a>, group: u32, id: MailboxId, at: Timestamp) -> Result<Self, Stop> {
        let head = mailbox_head(txn, id)?;
        let new = head.is_none();
        let mut mailbox = Self { txn, group, id, head: head.unwrap_or_default(), keeps: false, at };
        if new {
            mailbox.make_special_folders()?;
        }
        Ok(mailbox)
    }

    /// Writes the counters.
    pub(crate) fn save(self) {
        self.txn.put(keys::mailbox(keys::HEAD, self.id), records::encode(&self.head));
    }

    /// Makes INBOX and the special folders where they are missing.
    pub(crate) fn make_special_folders(&mut self) -> Result<(), Stop> {
        if self.find(INBOX)?.is_none() {
            self.make(INBOX, None, true)?;
        }
        let present: Vec<_> =
            folders(self.txn, self.id)?.into_iter().filter_map(|f| f.state.special_use).collect();
        for (name, special_use) in SPECIAL {
            if present.contains(&special_use) {
                continue;
            }
            match self.find(name)? {
                None => {
                    self.make(name, Some(special_use), true)?;
                }
                Some(mut folder) if folder.state.special_use.is_none() => {
                    folder.state.special_use = Some(special_use);
                    self.save_folder(&folder);
                    self.list_changed();
                }
                // Renamed into the place of another by the user; not ours to undo.
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The command's time.
    pub(crate) fn at(&self) -> Timestamp {
        self.at
    }

    pub(crate) fn find(&self, name: &str) -> Result<Option<Folder>, Stop> {
        Ok(folder_by_name(self.txn, self.id, name)?)
    }

    /// A folder by the name a client gave.
    pub(crate) fn named(&self, name: &str) -> Result<Folder, Stop> {
        let name = folder_name::normalize(name)?;
        Ok(self.find(&name)?.ok_or_else(|| Refusal::NotFound(format!("folder {name}")))?)
    }

    pub(crate) fn folder(&self, id: FolderId) -> Result<Folder, Stop> {
        Ok(folder_by_id(self.txn, self.id, id)?
            .ok_or_else(|| Refusal::NotFound(format!("folder number {id}")))?)
    }

    pub(crate) fn save_folder(&mut self, folder: &Folder) {
        self.txn.put(keys::folder(keys::FOLDER, self.id, folder.id), records::encode(&folder.state));
    }

    /// The next MODSEQ of the mailbox: one for each step that changes something.
    pub(crate) fn next_mod_seq(&mut self) -> ModSeq {
        self.head.mod_seq += 1;
        // RFC 7162 3.1: 63 bits. At a million changes a second they last for 290,000 years.
        assert!(self.head.mod_seq < 1 << 63, "MODSEQ stays below 2^63");
        ModSeq(self.head.mod_seq)
    }

    /// Tells watchers that messages of a folder changed.
    pub(crate) fn folder_changed(&mut self, folder: FolderId) {
        let change = Change::Folder { group: self.group, mailbox: self.id, folder };
        self.txn.effects.changes.push(change);
    }

    pub(crate) fn list_changed(&mut self) {
        let change = Change::FolderList { group: self.group, mailbox: self.id };
        self.txn.effects.changes.push(change);
    }

    pub(crate) fn make(
        &mut self,
        name: &str,
        special_use: Option<SpecialUse>,
        subscribed: bool,
    ) -> Result<Folder, Stop> {
        if self.head.folders >= MAX_FOLDERS {
            return Err(Refusal::Invalid(format!("a mailbox may have at most {MAX_FOLDERS} folders")).into());
        }
        self.head.folders += 1;
        self.head.last_folder += 1;
        let highest_mod_seq = self.next_mod_seq();
        let folder = Folder {
            id: FolderId(self.head.last_folder),
            state: FolderState {
                name: name.to_owned(),
                special_use,
                subscribed,
                uid_validity: self.next_uid_validity()?,
                uid_next: Uid(1),
                highest_mod_seq,
                messages: 0,
                unseen: 0,
                deleted: 0,
                bytes: 0,
                vanished: 0,
                vanished_floor: ModSeq(0),
            },
        };
        self.txn.put(keys::folder_name(self.id, name), records::encode(&folder.id));
        self.save_folder(&folder);
        self.list_changed();
        Ok(folder)
    }

    /// Seconds of the command's time, but higher than any before in this mailbox, so that a folder made again under
    /// an old name is told from the old one (RFC 9051 2.3.1.1).
    fn next_uid_validity(&mut self) -> Result<UidValidity, Stop> {
        let clock = u32::try_from(self.at.0.div_euclid(1000)).unwrap_or(1);
        let above = self.head.last_uid_validity.checked_add(1);
        let above =
            above.ok_or_else(|| Refusal::Invalid("the mailbox has no UIDVALIDITY left".to_owned()))?;
        self.head.last_uid_validity = clock.max(above);
        Ok(UidValidity(self.head.last_uid_validity))
    }

    pub(crate) fn make_parents(&mut self, name: &str) -> Result<(), Stop> {
        for parent in folder_name::parents(name) {
            if self.find(parent)?.is_none() {
                self.make(parent, None, false)?;
            }
        }
        Ok(())
    }

    pub(crate) fn create_folder(
        &mut self,
        name: &str,
        special_use: Option<SpecialUse>,
    ) -> Result<Applied, Stop> {
        let name = folder_name::normalize(name)?;
        if self.find(&name)?.is_some() {
            return Err(Refusal::AlreadyExists(format!("folder {name}")).into());
        }
        if let Some(wanted) = special_use
            && let Some(other) =
                folders(self.txn, self.id)?.iter().find(|f| f.state.special_use == Some(wanted))
        {
            return Err(
                Refusal::Conflict(format!("folder {} is the {wanted:?} folder", other.state.name)).into()
            );
        }
        self.make_parents(&name)?;
        Ok(Applied::Folder(self.make(&name, special_use, false)?.id))
    }

    /// Folders below stay: their missing level shows as `\NonExistent` (RFC 9051 7.3.1). A folder with more messages than
    /// one command may take out loses the first of them, and is deleted by a later command.
    pub(crate) fn delete_folder(&mut self, name: &str) -> Result<Applied, Stop> {
        let folder = self.named(name)?;
        if folder.state.name == INBOX {
            return Err(Refusal::Invalid("INBOX cannot be deleted".to_owned()).into());
        }
        if folder.state.messages as usize > MAX_EXPUNGED {
            self.take_out_first(folder, MAX_EXPUNGED, Fate::Deleted)?;
            return Ok(Applied::More);
        }
        if self.imported(folder.id)? > FORGET_AT_ONCE {
            self.forget_sources(folder.id, FORGET_AT_ONCE)?;
            return Ok(Applied::More);
        }
        self.remove_folder(&folder)?;
        self.list_changed();
        Ok(Applied::Done)
    }

    /// Removes a folder with all that is in it: no more messages than one command may take out.
    fn remove_folder(&mut self, folder: &Folder) -> Result<(), Stop> {
        let messages = self.first_messages(folder.id, MAX_EXPUNGED)?;
        assert_eq!(messages.len(), folder.state.messages as usize, "a folder counts its messages");
        self.let_go(folder, &messages, Fate::Deleted)?;
        for (uid, _) in messages {
            self.txn.remove(keys::message(self.id, folder.id, uid));
        }
        for tag in keys::OF_FOLDER {
            for key in self.txn.keys(&keys::folder(tag, self.id, folder.id))? {
                self.txn.remove(key);
            }
        }
        self.txn.remove(keys::folder(keys::FOLDER, self.id, folder.id));
        self.txn.remove(keys::folder_name(self.id, &folder.state.name));
        assert!(
            self.head.messages >= u64::from(folder.state.messages) && self.head.bytes >= folder.state.bytes,
            "a mailbox holds at least what its folder holds"
        );
        self.head.messages -= u64::from(folder.state.messages);
        self.head.bytes -= folder.state.bytes;
        self.head.folders -= 1;
        self.folder_changed(folder.id);
        Ok(())
    }

    pub(crate) fn rename_folder(&mut self, from: &str, to: &str) -> Result<Applied, Stop> {
        let folder = self.named(from)?;
        let to = folder_name::normalize(to)?;
        if self.find(&to)?.is_some() {
            return Err(Refusal::AlreadyExists(format!("folder {to}")).into());
        }
        let below = format!("{}{SEPARATOR}", folder.state.name);
        if folder.state.name == INBOX {
            // RFC 9051 6.3.6: the messages move, INBOX stays, and so do the folders below it. Of more than one command may
            // move, the first do.
            self.make_parents(&to)?;
            let target = self.make(&to, None, folder.state.subscribed)?;
            self.move_first(folder.id, target.id, MAX_EXPUNGED)?;
            let all = folder.state.messages as usize <= MAX_EXPUNGED;
            return Ok(if all { Applied::Done } else { Applied::More });
        }
        if to.starts_with(&below) {
            return Err(Refusal::Invalid(format!(
                "folder {} cannot be moved below itself",
                folder.state.name
            ))
            .into());
        }
        let children = folders(self.txn, self.id)?.into_iter().filter(|f| f.state.name.starts_with(&below));
        let moved: Vec<_> = children
            .map(|child| {
                let name = format!("{to}{SEPARATOR}{}", &child.state.name[below.len()..]);
                (child, name)
            })
            .collect();
        for (_, name) in &moved {
            folder_name::check(name)?;
            if self.find(name)?.is_some() {
                return Err(Refusal::AlreadyExists(format!("folder {name}")).into());
            }
        }
        self.make_parents(&to)?;
        for (mut folder, name) in std::iter::once((folder, to)).chain(moved) {
            self.txn.remove(keys::folder_name(self.id, &folder.state.name));
            self.txn.put(keys::folder_name(self.id, &name), records::encode(&folder.id));
            folder.state.name = name;
            self.save_folder(&folder);
        }
        self.list_changed();
        Ok(Applied::Done)
    }

    pub(crate) fn subscribe(&mut self, name: &str, subscribed: bool) -> Result<Applied, Stop> {
        let mut folder = match self.named(name) {
            Err(Stop::Refused(Refusal::NotFound(_))) if !subscribed => return Ok(Applied::Done),
            other => other?,
        };
        if folder.state.subscribed != subscribed {
            folder.state.subscribed = subscribed;
            self.save_folder(&folder);
            self.list_changed();
        }
        Ok(Applied::Done)
    }
}

/// Removes what a mailbox holds, step by step: what one command may take out, or all that is left. After each step the
/// mailbox is whole.
pub(crate) fn purge(
    txn: &mut Txn<'_>,
    group: u32,
    mailbox: MailboxId,
    at: Timestamp,
) -> Result<Applied, Stop> {
    txn.effects.changes.push(Change::FolderList { group, mailbox });
    if mailbox_head(txn, mailbox)?.is_none() {
        return Ok(Applied::Done);
    }
    let mut open = Mailbox::open(txn, group, mailbox, at)?;
    let mut room = MAX_EXPUNGED;
    for folder in folders(open.txn, mailbox)? {
        let messages = folder.state.messages as usize;
        // What it remembers of expunges costs a good deal less than a message does.
        let imported = open.imported(folder.id)?;
        let cost = messages + (folder.state.vanished as usize + imported) / 10 + 1;
        if imported > FORGET_AT_ONCE && room > 0 {
            open.forget_sources(folder.id, FORGET_AT_ONCE)?;
            open.save();
            return Ok(Applied::More);
        }
        if messages > room || room == 0 {
            open.take_out_first(folder, room, Fate::Deleted)?;
            open.save();
            return Ok(Applied::More);
        }
        open.remove_folder(&folder)?;
        room = room.saturating_sub(cost);
    }
    if open.forget_deleted()? == Applied::More {
        open.save();
        return Ok(Applied::More);
    }
    txn.remove(keys::mailbox(keys::HEAD, mailbox));
    Ok(Applied::Done)
}
