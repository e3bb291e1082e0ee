//! A logical walk over a group: mailboxes with folders and messages, queue entries, the directory. What backups are
//! restored from, and what mailboxes are exported from, on a living replica or on a store that a backup was loaded into.
//!
//! All that one [`Export`] tells is of one instant. Memory is bounded by the largest body part, not by what is walked
//! over; while it lives, bodies stay where they are.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::{
    BodyId, DomainRecord, FolderId, FolderInfo, ListId, ListPost, MailboxId, MailboxRecord, MessageMeta,
    QueueEntry, Store, StoreError, Subscriber, Timestamp, Uid, Usage, body_table, folders, keys, lists,
    live::Reading,
    records::{self, MailboxEntry, Message, Posted, Queued},
    txn::{SnapshotView, View},
};

/// A group as it was when [`Store::export`] was called.
pub struct Export<'a> {
    store: &'a Store,
    group: u32,
    view: SnapshotView<'a>,
    /// Bodies stay where they are until it is dropped.
    _reading: Reading<'a>,
}

/// A message, and its body when it is asked for.
pub struct ExportedMessage<'e> {
    /// What is known without reading it.
    pub meta: MessageMeta,
    /// Its octets.
    pub body: ExportedBody<'e>,
}

/// A body that can be read.
#[derive(Clone, Copy)]
pub struct ExportedBody<'e> {
    export: &'e Export<'e>,
    id: BodyId,
    len: u32,
}

/// What is called with each thing found; an error or a break ends the walk.
pub type ExportVisit<'v, T> = dyn FnMut(T) -> Result<ControlFlow<()>, StoreError> + 'v;

impl Store {
    /// The group as it is now; none when it holds nothing.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn export(&self, group: u32) -> Result<Option<Export<'_>>, StoreError> {
        let reading = self.0.readers.enter();
        let view = self.view(group)?;
        Ok(view.map(|view| Export { store: self, group, view, _reading: reading }))
    }
}

impl Export<'_> {
    /// What was given as `position` with the last batch.
    ///
    /// # Errors
    /// When the index cannot be read, as with every call here.
    pub fn position(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.view.get(&[keys::POSITION])?.map(|value| value.to_vec()))
    }

    /// Mailboxes that hold folders in this partition, ascending. Deleted ones that were not purged are among them.
    pub fn mailboxes(&self) -> Result<Vec<MailboxId>, StoreError> {
        let mut found = Vec::new();
        self.view.scan(&[keys::HEAD], &[keys::HEAD], &mut |key, _| {
            let id = key.last_chunk::<8>().ok_or(StoreError::Damaged("a mailbox key is too short"))?;
            found.push(MailboxId(u64::from_be_bytes(*id)));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// What a mailbox uses; zero for one that was never opened.
    pub fn usage(&self, mailbox: MailboxId) -> Result<Usage, StoreError> {
        Ok(folders::mailbox_head(&self.view, mailbox)?.unwrap_or_default().usage())
    }

    /// Folders of a mailbox, by name, at most 10,000.
    pub fn folders(&self, mailbox: MailboxId) -> Result<Vec<FolderInfo>, StoreError> {
        let found = folders::folders(&self.view, mailbox)?;
        let mut list: Vec<_> = found.into_iter().map(|folder| folder.state.info(folder.id)).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// Messages of a folder from a UID on, ascending by UID.
    pub fn messages<'e>(
        &'e self,
        mailbox: MailboxId,
        folder: FolderId,
        from: Uid,
        visit: &mut ExportVisit<'_, ExportedMessage<'e>>,
    ) -> Result<(), StoreError> {
        let prefix = keys::folder(keys::MESSAGE, mailbox, folder);
        self.view.scan(&prefix, &keys::message(mailbox, folder, from), &mut |key, value| {
            let uid = keys::last_uid(key).ok_or(StoreError::Damaged("a message key is too short"))?;
            let message: Message = records::decode(value)?;
            let body = ExportedBody { export: self, id: message.body.id, len: message.body.len };
            visit(ExportedMessage { meta: message.meta(uid), body })
        })
    }

    /// Queue entries with their bodies, by id.
    pub fn queue<'e>(
        &'e self,
        visit: &mut ExportVisit<'_, (QueueEntry, ExportedBody<'e>)>,
    ) -> Result<(), StoreError> {
        self.view.scan(&[keys::QUEUE], &[keys::QUEUE], &mut |_, value| {
            let Queued { body, entry } = records::decode(value)?;
            let body = ExportedBody { export: self, id: body, len: entry.size };
            visit((entry, body))
        })
    }

    /// Posts to mailing lists, those that wait for a moderator first.
    pub fn posts<'e>(
        &'e self,
        visit: &mut ExportVisit<'_, (ListPost, ExportedBody<'e>)>,
    ) -> Result<(), StoreError> {
        for tag in [keys::LIST_HELD, keys::LIST_POST] {
            self.view.scan(&[tag], &[tag], &mut |_, value| {
                let Posted { body, post } = records::decode(value)?;
                let body = ExportedBody { export: self, id: body, len: post.size };
                visit((post, body))
            })?;
        }
        Ok(())
    }

    /// What is remembered of a mailing list's addresses, at most [`MAX_SUBSCRIBERS`](crate::MAX_SUBSCRIBERS).
    pub fn subscribers(&self, list: ListId) -> Result<Vec<Subscriber>, StoreError> {
        lists::subscribers(&self.view, list)
    }

    /// Domains of the directory (group 0), by name.
    pub fn domains(&self, visit: &mut ExportVisit<'_, DomainRecord>) -> Result<(), StoreError> {
        self.view.scan(&[keys::DOMAIN], &[keys::DOMAIN], &mut |_, value| visit(records::decode(value)?))
    }

    /// Accounts of the directory (group 0), by id; with the instant when its mail may be purged, a deleted one.
    pub fn accounts(
        &self,
        visit: &mut ExportVisit<'_, (MailboxRecord, Option<Timestamp>)>,
    ) -> Result<(), StoreError> {
        self.view.scan(&[keys::MAILBOX], &[keys::MAILBOX], &mut |_, value| {
            let MailboxEntry { record, purge_at } = records::decode(value)?;
            visit((record, purge_at))
        })
    }
}

/// What the table lacks of one body is that body's trouble, and nobody else's.
fn lost(error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged(what) => StoreError::Bodies(what.to_owned()),
        other => other,
    }
}

impl ExportedBody<'_> {
    /// Names it within its group, for ever: messages that were copied share a body.
    pub fn id(&self) -> BodyId {
        self.id
    }

    /// Its length in bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    ///
    /// # Errors
    /// [`StoreError::Bodies`] tells people what could not be read.
    pub fn read(&self) -> Result<Bytes, StoreError> {
        let reads = self.export.store.reads(self.export.group);
        body_table::read(&self.export.view, &reads, self.id, None).map_err(lost)?.map_err(StoreError::Bodies)
    }

    /// Its bytes in order, in the pieces in which they are kept: one, or for a large body those of about 1 MiB that it came
    /// in.
    ///
    /// # Errors
    /// As [`ExportedBody::read`], and those of `visit`.
    pub fn pieces(&self, visit: &mut ExportVisit<'_, Bytes>) -> Result<(), StoreError> {
        let view = &self.export.view;
        let parts = match body_table::named(view, self.id).map_err(lost)?.state.parts {
            parts if parts.is_empty() => vec![self.id],
            parts => parts,
        };
        let reads = self.export.store.reads(self.export.group);
        for part in parts {
            let piece =
                body_table::read(view, &reads, part, None).map_err(lost)?.map_err(StoreError::Bodies)?;
            if visit(piece)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
