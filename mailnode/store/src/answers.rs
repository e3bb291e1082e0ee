//! Answers to queries, from a snapshot of the index.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::{
    Bodies, FolderChanges, FolderId, FolderInfo, MailboxId, MessageMeta, ModSeq, Query, QueueClass,
    QueueEntry, QueueId, Reply, StoreError, Timestamp, Uid, body_table, folder_name,
    folders::{self, Folder},
    keys,
    queue::QueueIndex,
    records::{self, Message, Queued},
    txn::{SnapshotView, View},
};

/// Most entries that one query of the queue answers, whatever its limit says.
pub(crate) const MAX_QUEUE_ENTRIES: u32 = 10_000;

/// What the queue's index says to a query. Taken while the index and the snapshot agree.
#[derive(Default)]
pub(crate) struct FromIndex {
    /// Entries, in the order of the answer.
    ids: Vec<QueueId>,
    counts: Vec<(QueueClass, u64, Option<Timestamp>)>,
}

impl FromIndex {
    pub(crate) fn new(index: &QueueIndex, query: &Query) -> Self {
        match query {
            Query::QueueDue { now, limit } => {
                Self { ids: index.due(*now, (*limit).min(MAX_QUEUE_ENTRIES)), ..Self::default() }
            }
            Query::QueueList { class, limit } => {
                Self { ids: index.oldest(*class, (*limit).min(MAX_QUEUE_ENTRIES)), ..Self::default() }
            }
            Query::QueueCounts => Self { counts: index.counts(), ..Self::default() },
            _ => Self::default(),
        }
    }
}

/// Answers from the snapshot and what the index said at the same instant.
pub(crate) fn answer(
    view: &SnapshotView<'_>,
    bodies: &dyn Bodies,
    query: &Query,
    index: FromIndex,
) -> Result<Reply, StoreError> {
    Ok(match query {
        Query::Folders(mailbox) => Reply::Folders(folder_list(view, *mailbox)?),
        Query::Folder { mailbox, name } => Reply::Folder(folder_named(view, *mailbox, name)?),
        Query::Messages { mailbox, folder } => {
            Reply::Messages(match folders::folder_by_id(view, *mailbox, *folder)? {
                Some(folder) => Some((folder.state.info(folder.id), messages(view, *mailbox, &folder)?)),
                None => None,
            })
        }
        Query::Changes { mailbox, folder, since } => {
            Reply::Changes(changes(view, *mailbox, *folder, *since)?)
        }
        Query::Bodies { mailbox, folder, uids, prefix, max_bytes } => {
            message_bodies(view, bodies, (*mailbox, *folder), uids, *prefix, *max_bytes)?
        }
        Query::Usage(mailboxes) => {
            let usage = |id: &MailboxId| Ok(folders::mailbox_head(view, *id)?.unwrap_or_default().usage());
            Reply::Usage(mailboxes.iter().map(usage).collect::<Result<_, StoreError>>()?)
        }
        Query::QueueDue { .. } | Query::QueueList { .. } => Reply::Queue(queue_entries(view, &index.ids)?),
        Query::QueueEntry(id) => match view.get(&keys::queue(*id))? {
            None => Reply::QueueEntry(None),
            Some(value) => {
                let queued: Queued = records::decode(&value)?;
                match bodies.read(body_table::named(view, queued.body)?.place, None) {
                    Ok(body) => Reply::QueueEntry(Some((queued.entry, body))),
                    Err(reason) => Reply::Unreadable(reason),
                }
            }
        },
        Query::QueueCounts => Reply::QueueCounts(index.counts),
    })
}

/// What a group that was never written to answers.
pub(crate) fn nothing(query: &Query) -> Reply {
    match query {
        Query::Folders(_) => Reply::Folders(Vec::new()),
        Query::Folder { .. } => Reply::Folder(None),
        Query::Messages { .. } => Reply::Messages(None),
        Query::Changes { .. } => Reply::Changes(None),
        Query::Bodies { uids, .. } => Reply::Bodies(vec![None; uids.len()]),
        Query::Usage(mailboxes) => Reply::Usage(vec![Default::default(); mailboxes.len()]),
        Query::QueueDue { .. } | Query::QueueList { .. } => Reply::Queue(Vec::new()),
        Query::QueueEntry(_) => Reply::QueueEntry(None),
        Query::QueueCounts => Reply::QueueCounts(QueueIndex::default().counts()),
    }
}

fn folder_list<V: View>(view: &V, mailbox: MailboxId) -> Result<Vec<FolderInfo>, StoreError> {
    let mut list: Vec<_> = folders::folders(view, mailbox)?.into_iter().map(|f| f.state.info(f.id)).collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

fn folder_named<V: View>(view: &V, mailbox: MailboxId, name: &str) -> Result<Option<FolderInfo>, StoreError> {
    let Ok(name) = folder_name::normalize(name) else { return Ok(None) };
    Ok(folders::folder_by_name(view, mailbox, &name)?.map(|folder| folder.state.info(folder.id)))
}

fn messages<V: View>(view: &V, mailbox: MailboxId, folder: &Folder) -> Result<Vec<MessageMeta>, StoreError> {
    let prefix = keys::folder(keys::MESSAGE, mailbox, folder.id);
    let mut found = Vec::with_capacity(folder.state.messages as usize);
    view.scan(&prefix, &prefix, &mut |key, value| {
        found.push(records::decode::<Message>(value)?.meta(uid_of(key)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

fn changes<V: View>(
    view: &V,
    mailbox: MailboxId,
    folder: FolderId,
    since: ModSeq,
) -> Result<Option<FolderChanges>, StoreError> {
    let Some(folder) = folders::folder_by_id(view, mailbox, folder)? else { return Ok(None) };
    let info = folder.state.info(folder.id);
    if since < folder.state.vanished_floor {
        let changed = messages(view, mailbox, &folder)?;
        return Ok(Some(FolderChanges { folder: info, changed, vanished: None }));
    }
    let mut changed = Vec::new();
    for uid in uids_after(view, keys::CHANGED, mailbox, folder.id, since)? {
        let value = view.get(&keys::message(mailbox, folder.id, uid))?;
        let value = value.ok_or(StoreError::Damaged("a change points to no message"))?;
        changed.push(records::decode::<Message>(&value)?.meta(uid));
    }
    let vanished = uids_after(view, keys::VANISHED, mailbox, folder.id, since)?;
    Ok(Some(FolderChanges { folder: info, changed, vanished: Some(vanished) }))
}

/// UIDs logged under a MODSEQ above `since`, ascending.
fn uids_after<V: View>(
    view: &V,
    tag: u8,
    mailbox: MailboxId,
    folder: FolderId,
    since: ModSeq,
) -> Result<Vec<Uid>, StoreError> {
    let prefix = keys::folder(tag, mailbox, folder);
    let from = keys::log(tag, mailbox, folder, ModSeq(since.0.saturating_add(1)), Uid(0));
    let mut uids = Vec::new();
    view.scan(&prefix, &from, &mut |key, _| {
        uids.push(uid_of(key)?);
        Ok(ControlFlow::Continue(()))
    })?;
    uids.sort_unstable();
    Ok(uids)
}

fn message_bodies<V: View>(
    view: &V,
    bodies: &dyn Bodies,
    (mailbox, folder): (MailboxId, FolderId),
    uids: &[Uid],
    prefix: u32,
    max_bytes: u32,
) -> Result<Reply, StoreError> {
    let mut found: Vec<Option<Bytes>> = Vec::new();
    let mut left = u64::from(max_bytes);
    for uid in uids {
        let Some(value) = view.get(&keys::message(mailbox, folder, *uid))? else {
            found.push(None);
            continue;
        };
        let body = records::decode::<Message>(&value)?.body;
        let wanted = if prefix == 0 { body.len } else { body.len.min(prefix) };
        if u64::from(wanted) > left && found.iter().any(Option::is_some) {
            break;
        }
        let place = body_table::named(view, body.id)?.place;
        match bodies.read(place, (prefix != 0).then_some(wanted)) {
            Ok(bytes) => found.push(Some(bytes)),
            Err(reason) => return Ok(Reply::Unreadable(reason)),
        }
        left = left.saturating_sub(u64::from(wanted));
    }
    Ok(Reply::Bodies(found))
}

fn queue_entries<V: View>(view: &V, ids: &[QueueId]) -> Result<Vec<QueueEntry>, StoreError> {
    let mut entries = Vec::with_capacity(ids.len());
    for id in ids {
        let value = view.get(&keys::queue(*id))?;
        let value = value.ok_or(StoreError::Damaged("the queue index names an entry that is not there"))?;
        entries.push(records::decode::<Queued>(&value)?.entry);
    }
    Ok(entries)
}

fn uid_of(key: &[u8]) -> Result<Uid, StoreError> {
    keys::last_uid(key).ok_or(StoreError::Damaged("a message key is too short"))
}
