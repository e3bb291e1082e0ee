//! Answers to queries, from a snapshot of the index.

use std::{collections::HashMap, ops::ControlFlow};

use bytes::Bytes;

use crate::{
    Digests, FolderChanges, FolderId, FolderInfo, FolderUids, FoundMessage, MailboxId, MessageMeta, ModSeq,
    Octets, Query, QueueClass, QueueEntry, QueueId, Reply, Selection, StoreError, Timestamp, Uid, Usage,
    body_table,
    digests::{Answering, Fresh},
    folder_name,
    folders::{self, Folder},
    keys, lists, messages,
    queue::QueueIndex,
    records::{self, Message, Queued},
    repair::Reads,
    txn::{SnapshotView, View},
    uids, vault,
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

/// Answers from the snapshot and what the index said at the same instant; with the answer, digests that were computed for
/// it and are to be kept.
pub(crate) fn answer(
    view: &SnapshotView<'_>,
    bodies: Reads<'_>,
    digests: &dyn Digests,
    query: &Query,
    index: FromIndex,
) -> Result<(Reply, Vec<Fresh>), StoreError> {
    let mut fresh = Vec::new();
    let reply = match query {
        Query::Folders(mailbox) => Reply::Folders(folder_list(view, *mailbox)?),
        Query::Folder { mailbox, name } => Reply::Folder(folder_named(view, *mailbox, name)?),
        Query::FolderNumber { mailbox, folder } => {
            let folder = folders::folder_by_id(view, *mailbox, *folder)?;
            Reply::Folder(folder.map(|folder| folder.state.info(folder.id)))
        }
        Query::Select { mailbox, name } => Reply::Selected(select(view, *mailbox, name)?),
        Query::Changes { mailbox, folder, since, after, uids_from, limit } => {
            let place = (*mailbox, *folder);
            Reply::Changes(changes(view, place, *since, *after, *uids_from, *limit)?)
        }
        Query::Messages { mailbox, folder, uids, octets, digests: kinds, max_bytes } => {
            let digests = Answering::new(digests, kinds);
            let mut gather = Gather::new(bodies, digests, *octets, *max_bytes);
            gather.all(view, (*mailbox, *folder), uids)?;
            fresh = gather.digests.fresh;
            Reply::Messages(gather.found)
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
                match body_table::read(view, &bodies, queued.body, None)? {
                    Ok(body) => Reply::QueueEntry(Some((queued.entry, body))),
                    Err(reason) => Reply::Unreadable(reason),
                }
            }
        },
        Query::ListPosts(list) => Reply::ListPosts(lists::posts(view, *list)?),
        Query::ListPost { list, post } => match lists::find(view, *list, *post)? {
            None => Reply::ListPost(None),
            Some(posted) => match body_table::read(view, &bodies, posted.body, None)? {
                Ok(body) => Reply::ListPost(Some((posted.post, body))),
                Err(reason) => Reply::Unreadable(reason),
            },
        },
        Query::Subscribers(list) => Reply::Subscribers(lists::subscribers(view, *list)?),
        Query::Subscriber { list, address } => {
            Reply::Subscribers(lists::find_subscriber(view, *list, address)?.into_iter().collect())
        }
        Query::QueueCounts => Reply::QueueCounts(index.counts),
        Query::Deleted { mailbox, after, limit, prefix } => {
            let (page, kept) = vault::page(view, &bodies, *mailbox, *after, *limit, *prefix)?;
            Reply::Deleted(page, kept)
        }
        Query::Imported { mailbox, folder, sources } => {
            Reply::Imported(imported(view, *mailbox, folder, sources)?)
        }
    };
    Ok((reply, fresh))
}

/// What a group that was never written to answers.
pub(crate) fn nothing(query: &Query) -> Reply {
    match query {
        Query::Folders(_) => Reply::Folders(Vec::new()),
        Query::Folder { .. } | Query::FolderNumber { .. } => Reply::Folder(None),
        Query::Select { .. } => Reply::Selected(None),
        Query::Changes { .. } => Reply::Changes(None),
        Query::Messages { uids, .. } => Reply::Messages(vec![None; uids.len()]),
        Query::Usage(mailboxes) => Reply::Usage(vec![Default::default(); mailboxes.len()]),
        Query::QueueDue { .. } | Query::QueueList { .. } => Reply::Queue(Vec::new()),
        Query::QueueEntry(_) => Reply::QueueEntry(None),
        Query::QueueCounts => Reply::QueueCounts(QueueIndex::default().counts()),
        Query::ListPosts(_) => Reply::ListPosts(Vec::new()),
        Query::ListPost { .. } => Reply::ListPost(None),
        Query::Subscribers(_) | Query::Subscriber { .. } => Reply::Subscribers(Vec::new()),
        Query::Deleted { .. } => Reply::Deleted(Vec::new(), Usage::default()),
        Query::Imported { sources, .. } => Reply::Imported(vec![false; sources.len()]),
    }
}

fn imported<V: View>(
    view: &V,
    mailbox: MailboxId,
    folder: &str,
    sources: &[u128],
) -> Result<Vec<bool>, StoreError> {
    let Some(folder) = folder_named(view, mailbox, folder)? else { return Ok(vec![false; sources.len()]) };
    let known = |source: &u128| Ok(view.get(&keys::imported(mailbox, folder.id, *source))?.is_some());
    sources.iter().map(known).collect()
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

fn select<V: View>(view: &V, mailbox: MailboxId, name: &str) -> Result<Option<Selection>, StoreError> {
    let Ok(name) = folder_name::normalize(name) else { return Ok(None) };
    let Some(folder) = folders::folder_by_name(view, mailbox, &name)? else { return Ok(None) };
    let uids = uids_from(view, mailbox, &folder, Uid(0))?;
    let keywords = messages::keywords(view, mailbox, folder.id)?;
    Ok(Some(Selection { folder: folder.state.info(folder.id), uids, keywords }))
}

fn uids_from<V: View>(
    view: &V,
    mailbox: MailboxId,
    folder: &Folder,
    from: Uid,
) -> Result<FolderUids, StoreError> {
    let prefix = keys::folder(keys::HOLES, mailbox, folder.id);
    let start = keys::holes(mailbox, folder.id, uids::block(from));
    let mut holes = Vec::new();
    view.scan(&prefix, &start, &mut |key, value| {
        let block = keys::last_block(key).ok_or(StoreError::Damaged("a key of holes is too short"))?;
        holes.push((block, Bytes::copy_from_slice(value)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(FolderUids::new(from, folder.state.uid_next, holes))
}

fn changes<V: View>(
    view: &V,
    (mailbox, folder): (MailboxId, FolderId),
    since: ModSeq,
    after: (ModSeq, Uid),
    from: Uid,
    limit: u32,
) -> Result<Option<FolderChanges>, StoreError> {
    let Some(folder) = folders::folder_by_id(view, mailbox, folder)? else { return Ok(None) };
    let remembered = since >= folder.state.vanished_floor;
    let uids = uids_from(view, mailbox, &folder, if remembered { from } else { Uid(0) })?;
    let vanished = if remembered { Some(vanished_after(view, mailbox, folder.id, since)?) } else { None };
    let (changed, more) = changed_after(view, mailbox, folder.id, after, limit.max(1) as usize)?;
    Ok(Some(FolderChanges { folder: folder.state.info(folder.id), uids, vanished, changed, more }))
}

type Page = (Vec<MessageMeta>, Option<(ModSeq, Uid)>);

fn changed_after<V: View>(
    view: &V,
    mailbox: MailboxId,
    folder: FolderId,
    after: (ModSeq, Uid),
    limit: usize,
) -> Result<Page, StoreError> {
    let prefix = keys::folder(keys::CHANGED, mailbox, folder);
    let mut from = keys::log(keys::CHANGED, mailbox, folder, after.0, after.1);
    // The next key there can be.
    from.push(0);
    let (mut found, mut more, mut last) = (Vec::new(), None, after);
    view.scan(&prefix, &from, &mut |key, _| {
        if found.len() == limit {
            more = Some(last);
            return Ok(ControlFlow::Break(()));
        }
        let mod_seq = keys::log_mod_seq(key).ok_or(StoreError::Damaged("a change has no MODSEQ"))?;
        last = (mod_seq, uid_of(key)?);
        found.push(last.1);
        Ok(ControlFlow::Continue(()))
    })?;
    found.sort_unstable();
    let mut changed = Vec::with_capacity(found.len());
    for uid in found {
        let value = view.get(&keys::message(mailbox, folder, uid))?;
        let value = value.ok_or(StoreError::Damaged("a change points to no message"))?;
        changed.push(records::decode::<Message>(&value)?.meta(uid));
    }
    Ok((changed, more))
}

fn vanished_after<V: View>(
    view: &V,
    mailbox: MailboxId,
    folder: FolderId,
    since: ModSeq,
) -> Result<Vec<Uid>, StoreError> {
    let prefix = keys::folder(keys::VANISHED, mailbox, folder);
    let from = keys::log(keys::VANISHED, mailbox, folder, ModSeq(since.0.saturating_add(1)), Uid(0));
    let mut uids = Vec::new();
    view.scan(&prefix, &from, &mut |key, _| {
        uids.push(uid_of(key)?);
        Ok(ControlFlow::Continue(()))
    })?;
    uids.sort_unstable();
    Ok(uids)
}

/// Runs of UIDs from this length on are read in one go.
const SCANNED_RUN: usize = 4;

/// Messages on their way into an answer.
struct Gather<'a> {
    bodies: Reads<'a>,
    digests: Answering<'a>,
    octets: Octets,
    /// Octets that still fit.
    left: u64,
    full: bool,
    any: bool,
    found: Vec<Option<FoundMessage>>,
}

impl<'a> Gather<'a> {
    fn new(bodies: Reads<'a>, digests: Answering<'a>, octets: Octets, max_bytes: u32) -> Self {
        Self { bodies, digests, octets, left: max_bytes.into(), full: false, any: false, found: Vec::new() }
    }

    fn all<V: View>(
        &mut self,
        view: &V,
        (mailbox, folder): (MailboxId, FolderId),
        uids: &[Uid],
    ) -> Result<(), StoreError> {
        let prefix = keys::folder(keys::MESSAGE, mailbox, folder);
        for run in uids.chunk_by(|a, b| a.0.checked_add(1) == Some(b.0)) {
            if run.len() < SCANNED_RUN {
                for uid in run {
                    match view.get(&keys::message(mailbox, folder, *uid))? {
                        Some(value) => {
                            let key = keys::by_uid(keys::DIGESTS, mailbox, folder, *uid);
                            let kept = if self.digests.any() { view.get(&key)? } else { None };
                            self.take(view, *uid, &value, kept.as_deref())?;
                        }
                        None => self.found.push(None),
                    }
                    if self.full {
                        return Ok(());
                    }
                }
                continue;
            }
            let (before, last) = (self.found.len(), run[run.len() - 1]);
            let mut kept = HashMap::new();
            if self.digests.any() {
                let prefix = keys::folder(keys::DIGESTS, mailbox, folder);
                let from = keys::by_uid(keys::DIGESTS, mailbox, folder, run[0]);
                view.scan(&prefix, &from, &mut |key, value| {
                    let uid = uid_of(key)?;
                    if uid > last {
                        return Ok(ControlFlow::Break(()));
                    }
                    kept.insert(uid, value.to_vec());
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            let missing = |to: Uid, have: usize| (to.0 - run[0].0) as usize - (have - before);
            view.scan(&prefix, &keys::message(mailbox, folder, run[0]), &mut |key, value| {
                let uid = uid_of(key)?;
                if uid > last {
                    return Ok(ControlFlow::Break(()));
                }
                let gone = missing(uid, self.found.len());
                self.found.extend(std::iter::repeat_n(None, gone));
                self.take(view, uid, value, kept.get(&uid).map(Vec::as_slice))?;
                Ok(if self.full || uid == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if self.full {
                return Ok(());
            }
            let gone = run.len() - (self.found.len() - before);
            self.found.extend(std::iter::repeat_n(None, gone));
        }
        Ok(())
    }

    fn take<V: View>(
        &mut self,
        view: &V,
        uid: Uid,
        value: &[u8],
        kept: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let message: Message = records::decode(value)?;
        let wanted = match self.octets {
            Octets::Nothing => 0,
            Octets::Prefix(most) => message.body.len.min(most),
            Octets::Whole => message.body.len,
        };
        if (u64::from(wanted) > self.left || self.digests.left == 0) && self.any {
            self.full = true;
            return Ok(());
        }
        let bodies = self.bodies;
        let mut read =
            |prefix| body_table::read(view, &bodies, message.body.id, prefix)?.map_err(StoreError::Bodies);
        let octets = match self.octets {
            Octets::Nothing => Bytes::new(),
            Octets::Prefix(_) => read(Some(wanted))?,
            Octets::Whole => read(None)?,
        };
        let digests = self.digests.of(uid, message.body.len, kept, &octets, &mut read)?;
        let answered = u64::from(wanted) + digests.iter().map(|digest| digest.len() as u64).sum::<u64>();
        self.left = self.left.saturating_sub(answered);
        self.any = true;
        self.found.push(Some(FoundMessage { meta: message.meta(uid), octets, digests }));
        Ok(())
    }
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
