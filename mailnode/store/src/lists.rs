//! Mailing lists in the partition that each has its home in: posts on their way, and what is known of addresses besides the
//! list's record.
//!
//! The record (who are the members, who may post) lives in the directory. Here live posts that wait for a moderator or are
//! being expanded, and one small record for each address that joined or left by mail, or whose mail came back.
//!
//! A post is expanded in steps. One command makes the queue entries of the next members *and* moves the post's cursor, and does
//! nothing when the cursor is not where the proposer saw it. So whatever dies in between, and however many believe to lead,
//! each member gets one entry. The cursor is the last member's address, not a number: members may come and go meanwhile.

use std::{collections::BTreeSet, ops::ControlFlow};

use serde::{Deserialize, Serialize};

use crate::{
    Address, Applied, Flag, ListId, QueueEntry, QueueId, Refusal, Store, StoreError, Timestamp,
    body_table::{self, Arrived, Body},
    error::Stop,
    flags::FlagSet,
    folder_name::INBOX,
    folders::{self, Mailbox},
    keys, queue,
    records::{self, Message, Posted},
    store::Change,
    txn::{Txn, View},
};

/// Posts of one list that wait for a moderator; a further one is refused.
pub const MAX_HELD_POSTS: u32 = 200;
/// Posts of one list that are being expanded; a further one is refused.
pub const MAX_EXPANDING_POSTS: u32 = 1000;
/// Addresses of one list of which something is remembered besides its record.
pub const MAX_SUBSCRIBERS: u32 = 10_000;
/// Members that one step of an expansion serves at most.
pub const MAX_EXPANDED: usize = 1000;
/// An address is served no more from so many bounces on.
pub const SUSPENDING_BOUNCES: u32 = 5;
/// Bounces further apart than this, in milliseconds, are counted from one again.
pub const BOUNCE_MEMORY_MILLIS: i64 = 14 * 24 * 60 * 60 * 1000;
/// Keys that one step of [`Op::ForgetList`](crate::Op::ForgetList) takes away.
const FORGET_AT_ONCE: usize = 1000;

/// A message to a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPost {
    /// Unique over the cluster; queue entries made of it get others.
    pub id: QueueId,
    /// Which list.
    pub list: ListId,
    /// What happens with it.
    pub state: PostState,
    /// Who wrote it, for people; may be empty.
    pub author: String,
    /// For people; at most 200 characters.
    pub subject: String,
    /// When it was accepted.
    pub arrived: Timestamp,
    /// In bytes.
    pub size: u32,
    /// Whether the body needs 8BITMIME (RFC 6152).
    pub eight_bit: bool,
}

/// What happens with a post.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PostState {
    /// It waits for a moderator, for this reason.
    Held(String),
    /// It goes to the members; those up to this [`Address::key`] have it in the queue.
    Expanding(Option<String>),
}

/// What is remembered of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriber {
    /// As it was written first.
    pub address: Address,
    /// It became a member by mail.
    pub joined: Option<Timestamp>,
    /// It left; not a member, whatever the list's record says.
    pub left: Option<Timestamp>,
    /// It asked to become a member, and a moderator has to say yes.
    pub asked: Option<Timestamp>,
    /// Bounces counted, and when the last one came.
    pub bounces: u32,
    /// When the last one came.
    pub bounced: Option<Timestamp>,
    /// It gets nothing because its mail comes back.
    pub suspended: Option<Timestamp>,
}

/// What happened to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubscriberChange {
    /// It becomes a member; `listed`: the list's record has it already, so only that it left is forgotten.
    Join {
        /// Whether the record names it.
        listed: bool,
    },
    /// It is a member no more; `listed` as in `Join`.
    Leave {
        /// Whether the record names it.
        listed: bool,
    },
    /// It asks to become one.
    Ask,
    /// What it asked is refused.
    Refuse,
    /// Its mail came back for good.
    Bounce,
    /// It is served again, and its bounces are forgotten.
    Resume,
}

/// Counts of a list here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListHead {
    pub(crate) held: u32,
    pub(crate) expanding: u32,
    pub(crate) subscribers: u32,
}

impl ListHead {
    fn of(&mut self, state: &PostState) -> &mut u32 {
        match state {
            PostState::Held(_) => &mut self.held,
            PostState::Expanding(_) => &mut self.expanding,
        }
    }
}

fn head(txn: &Txn<'_>, list: ListId) -> Result<ListHead, Stop> {
    let value = txn.get(&keys::list(keys::LIST_HEAD, list))?;
    Ok(value.map(|value| records::decode(&value)).transpose()?.unwrap_or_default())
}

fn put_head(txn: &mut Txn<'_>, list: ListId, head: &ListHead) {
    let key = keys::list(keys::LIST_HEAD, list);
    if *head == ListHead::default() {
        txn.remove(key);
    } else {
        txn.put(key, records::encode(head));
    }
}

/// Where a post in this state is kept.
fn tag(state: &PostState) -> u8 {
    match state {
        PostState::Held(_) => keys::LIST_HELD,
        PostState::Expanding(_) => keys::LIST_POST,
    }
}

fn posted<V: View>(view: &V, tag: u8, list: ListId, id: QueueId) -> Result<Option<Posted>, StoreError> {
    view.get(&keys::list_post(tag, list, id))?.map(|value| records::decode(&value)).transpose()
}

fn put(txn: &mut Txn<'_>, posted: &Posted) {
    let key = keys::list_post(tag(&posted.post.state), posted.post.list, posted.post.id);
    txn.put(key, records::encode(posted));
}

/// A post, wherever it is.
pub(crate) fn find<V: View>(view: &V, list: ListId, id: QueueId) -> Result<Option<Posted>, StoreError> {
    match posted(view, keys::LIST_POST, list, id)? {
        Some(found) => Ok(Some(found)),
        None => posted(view, keys::LIST_HELD, list, id),
    }
}

/// Keeps a post with its message.
pub(crate) fn post(
    txn: &mut Txn<'_>,
    group: u32,
    mut post: ListPost,
    arrived: Arrived,
) -> Result<Applied, Stop> {
    if find(txn, post.list, post.id)?.is_some() {
        return Err(Refusal::AlreadyExists(format!("post {}", post.id)).into());
    }
    let mut head = head(txn, post.list)?;
    let (most, count) = match &post.state {
        PostState::Held(_) => (MAX_HELD_POSTS, head.held),
        PostState::Expanding(_) => (MAX_EXPANDING_POSTS, head.expanding),
    };
    if count >= most {
        return Err(Refusal::Conflict(format!("{most} messages to the list wait already")).into());
    }
    *head.of(&post.state) += 1;
    put_head(txn, post.list, &head);
    post.size = arrived.len;
    txn.effects.changes.push(Change::Queue { group });
    put(txn, &Posted { body: arrived.id, post });
    body_table::add(txn, &arrived);
    Ok(Applied::Done)
}

/// Queues the entries and moves the cursor from `after` to `next`; without `next` the post is done. Nothing happens when the
/// cursor is elsewhere or the post is not there: somebody else was here.
pub(crate) fn expand(
    txn: &mut Txn<'_>,
    group: u32,
    (list, id): (ListId, QueueId),
    after: Option<&String>,
    entries: Vec<QueueEntry>,
    next: Option<String>,
) -> Result<Applied, Stop> {
    if entries.len() > MAX_EXPANDED {
        return Err(Refusal::Invalid(format!("a step serves at most {MAX_EXPANDED} members")).into());
    }
    let Some(Posted { body, post }) = posted(txn, keys::LIST_POST, list, id)? else {
        return Ok(Applied::Done);
    };
    match &post.state {
        PostState::Expanding(at) if at.as_ref() == after => {}
        _ => return Ok(Applied::Done),
    }
    for entry in entries {
        // The member has it already: the same post came once more, long after.
        if txn.get(&keys::queue(entry.id))?.is_some() {
            continue;
        }
        body_table::retain(txn, body)?;
        queue::add(txn, group, QueueEntry { size: post.size, ..entry }, body)?;
    }
    match next {
        Some(next) => {
            if after.is_some_and(|after| *after >= next) {
                return Err(Refusal::Invalid("an expansion goes forward".to_owned()).into());
            }
            let post = ListPost { state: PostState::Expanding(Some(next)), ..post };
            put(txn, &Posted { body, post });
        }
        None => drop_post(txn, Posted { body, post })?,
    }
    txn.effects.changes.push(Change::Queue { group });
    Ok(Applied::Done)
}

/// Makes the mailbox of an archive where it is missing.
pub(crate) fn open_archive(
    txn: &mut Txn<'_>,
    group: u32,
    list: ListId,
    at: Timestamp,
) -> Result<Applied, Stop> {
    txn.put(keys::list(keys::LIST_OPENED, list), Vec::new());
    Mailbox::open(txn, group, list.archive(), at)?.save();
    Ok(Applied::Done)
}

/// Puts a post that nobody got yet into the list's archive. Its cursor moves in the same step, to before all addresses: so it
/// is there once.
pub(crate) fn archive(
    txn: &mut Txn<'_>,
    group: u32,
    (list, id): (ListId, QueueId),
    at: Timestamp,
) -> Result<Applied, Stop> {
    let Some(Posted { body, post }) = posted(txn, keys::LIST_POST, list, id)? else {
        return Ok(Applied::Done);
    };
    if post.state != PostState::Expanding(None) {
        return Ok(Applied::Done);
    }
    open_archive(txn, group, list, at)?;
    let mut mailbox = Mailbox::open(txn, group, list.archive(), at)?;
    let mut folder = mailbox.named(INBOX)?;
    let message = Message {
        body: Body { id: body, len: post.size },
        mod_seq: mailbox.next_mod_seq(),
        internal_date: post.arrived,
        // What nobody can change is not to be counted as unread for ever.
        flags: FlagSet::new(&[Flag("\\Seen".to_owned())].into())?,
    };
    mailbox.add(&mut folder, &message)?;
    mailbox.save_folder(&folder);
    mailbox.folder_changed(folder.id);
    mailbox.save();
    body_table::retain(txn, body)?;
    let post = ListPost { state: PostState::Expanding(Some(String::new())), ..post };
    put(txn, &Posted { body, post });
    Ok(Applied::Done)
}

fn drop_post(txn: &mut Txn<'_>, Posted { body, post }: Posted) -> Result<(), Stop> {
    let mut head = head(txn, post.list)?;
    let count = head.of(&post.state);
    *count = count.checked_sub(1).expect("posts are counted as they come and go");
    put_head(txn, post.list, &head);
    txn.remove(keys::list_post(tag(&post.state), post.list, post.id));
    body_table::release(txn, body)
}

/// What a moderator said of a held post.
pub(crate) fn decide(
    txn: &mut Txn<'_>,
    group: u32,
    (list, id): (ListId, QueueId),
    approve: bool,
) -> Result<Applied, Stop> {
    let missing = || Refusal::NotFound(format!("held message {id}"));
    let posted = posted(txn, keys::LIST_HELD, list, id)?.ok_or_else(missing)?;
    if !approve {
        drop_post(txn, posted)?;
        return Ok(Applied::Done);
    }
    let Posted { body, post } = posted;
    let mut head = head(txn, list)?;
    if head.expanding >= MAX_EXPANDING_POSTS {
        let text = format!("{MAX_EXPANDING_POSTS} messages to the list wait already");
        return Err(Refusal::Conflict(text).into());
    }
    head.held = head.held.checked_sub(1).expect("posts are counted as they come and go");
    head.expanding += 1;
    put_head(txn, list, &head);
    txn.remove(keys::list_post(keys::LIST_HELD, list, id));
    put(txn, &Posted { body, post: ListPost { state: PostState::Expanding(None), ..post } });
    txn.effects.changes.push(Change::Queue { group });
    Ok(Applied::Done)
}

impl Subscriber {
    /// Of whom nothing is remembered.
    pub fn new(address: Address) -> Self {
        Self { address, joined: None, left: None, asked: None, bounces: 0, bounced: None, suspended: None }
    }

    fn is_empty(&self) -> bool {
        *self == Self::new(self.address.clone())
    }

    fn change(&mut self, change: SubscriberChange, at: Timestamp) {
        match change {
            SubscriberChange::Join { listed } => {
                if !listed && self.joined.is_none() {
                    self.joined = Some(at);
                }
                (self.left, self.asked) = (None, None);
                self.change(SubscriberChange::Resume, at);
            }
            SubscriberChange::Leave { listed } => {
                self.left = listed.then_some(self.left.unwrap_or(at));
                (self.joined, self.asked) = (None, None);
                self.change(SubscriberChange::Resume, at);
            }
            SubscriberChange::Ask => self.asked = Some(self.asked.unwrap_or(at)),
            SubscriberChange::Refuse => self.asked = None,
            SubscriberChange::Bounce => {
                let recent =
                    self.bounced.is_some_and(|last| at.0.saturating_sub(last.0) <= BOUNCE_MEMORY_MILLIS);
                self.bounces = if recent { self.bounces.saturating_add(1) } else { 1 };
                self.bounced = Some(at);
                if self.bounces >= SUSPENDING_BOUNCES && self.suspended.is_none() {
                    self.suspended = Some(at);
                }
            }
            SubscriberChange::Resume => (self.bounces, self.bounced, self.suspended) = (0, None, None),
        }
    }
}

/// Changes what is remembered of an address.
pub(crate) fn subscriber(
    txn: &mut Txn<'_>,
    list: ListId,
    address: Address,
    change: SubscriberChange,
    at: Timestamp,
) -> Result<Applied, Stop> {
    let key = keys::list_member(list, &address.key());
    let old = txn.get(&key)?.map(|value| records::decode::<Subscriber>(&value)).transpose()?;
    let was_there = old.is_some();
    let mut new = old.unwrap_or_else(|| Subscriber::new(address));
    new.change(change, at);
    let is_there = !new.is_empty();
    let mut head = head(txn, list)?;
    if is_there && !was_there {
        if head.subscribers >= MAX_SUBSCRIBERS {
            let text = format!("the list remembers {MAX_SUBSCRIBERS} addresses already");
            return Err(Refusal::Conflict(text).into());
        }
        head.subscribers += 1;
    } else if was_there && !is_there {
        head.subscribers =
            head.subscribers.checked_sub(1).expect("addresses are counted as they come and go");
    }
    put_head(txn, list, &head);
    if is_there {
        txn.put(key, records::encode(&new));
    } else {
        txn.remove(key);
    }
    Ok(Applied::Done)
}

/// Removes everything that is here of a list, in steps. Entries that were queued go on.
pub(crate) fn forget(txn: &mut Txn<'_>, group: u32, list: ListId, at: Timestamp) -> Result<Applied, Stop> {
    if txn.get(&keys::list(keys::LIST_OPENED, list))?.is_some() {
        if folders::purge(txn, group, list.archive(), at)? == Applied::More {
            return Ok(Applied::More);
        }
        txn.remove(keys::list(keys::LIST_OPENED, list));
    }
    let (mut posts, mut members) = (Vec::new(), Vec::new());
    for tag in [keys::LIST_POST, keys::LIST_HELD] {
        let prefix = keys::list(tag, list);
        txn.scan(&prefix, &prefix, &mut |_, value| {
            posts.push(records::decode::<Posted>(value)?);
            Ok(if posts.len() < FORGET_AT_ONCE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
    }
    let prefix = keys::list(keys::LIST_MEMBER, list);
    txn.scan(&prefix, &prefix, &mut |key, _| {
        members.push(key.to_vec());
        Ok(if members.len() < FORGET_AT_ONCE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let more = posts.len() >= FORGET_AT_ONCE || members.len() >= FORGET_AT_ONCE;
    for post in posts {
        drop_post(txn, post)?;
    }
    let mut head = head(txn, list)?;
    head.subscribers = head.subscribers.saturating_sub(u32::try_from(members.len()).unwrap_or(u32::MAX));
    put_head(txn, list, &head);
    members.into_iter().for_each(|key| txn.remove(key));
    Ok(if more { Applied::More } else { Applied::Done })
}

/// All posts of a list.
pub(crate) fn posts<V: View>(view: &V, list: ListId) -> Result<Vec<ListPost>, StoreError> {
    let mut found = under(view, &keys::list(keys::LIST_HELD, list), usize::MAX)?;
    found.extend(under(view, &keys::list(keys::LIST_POST, list), usize::MAX)?);
    Ok(found)
}

fn under<V: View>(view: &V, prefix: &[u8], limit: usize) -> Result<Vec<ListPost>, StoreError> {
    let mut found = Vec::new();
    view.scan(prefix, prefix, &mut |_, value| {
        if found.len() >= limit {
            return Ok(ControlFlow::Break(()));
        }
        found.push(records::decode::<Posted>(value)?.post);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Addresses of a list of which something is remembered, by [`Address::key`].
pub(crate) fn subscribers<V: View>(view: &V, list: ListId) -> Result<Vec<Subscriber>, StoreError> {
    let prefix = keys::list(keys::LIST_MEMBER, list);
    let mut found = Vec::new();
    view.scan(&prefix, &prefix, &mut |_, value| {
        found.push(records::decode(value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// The one that is remembered.
pub(crate) fn find_subscriber<V: View>(
    view: &V,
    list: ListId,
    address: &Address,
) -> Result<Option<Subscriber>, StoreError> {
    let value = view.get(&keys::list_member(list, &address.key()))?;
    value.map(|value| records::decode(&value)).transpose()
}

impl Store {
    /// Posts that are being expanded in a group that this node holds, as this replica has them; at most `limit`.
    pub fn expanding_posts(&self, group: u32, limit: usize) -> Result<Vec<ListPost>, StoreError> {
        self.view(group)?.map_or_else(|| Ok(Vec::new()), |view| under(&view, &[keys::LIST_POST], limit))
    }

    /// Posts that wait for a moderator, likewise.
    pub fn held_posts(&self, group: u32, limit: usize) -> Result<Vec<ListPost>, StoreError> {
        self.view(group)?.map_or_else(|| Ok(Vec::new()), |view| under(&view, &[keys::LIST_HELD], limit))
    }

    /// Lists of which something is in a group that this node holds.
    pub fn lists_here(&self, group: u32) -> Result<Vec<ListId>, StoreError> {
        let Some(view) = self.view(group)? else { return Ok(Vec::new()) };
        let of = |key: &Vec<u8>| key.get(1..9)?.try_into().ok().map(u64::from_be_bytes).map(ListId);
        let keys = [view.keys(&[keys::LIST_HEAD])?, view.keys(&[keys::LIST_OPENED])?].concat();
        Ok(keys.iter().filter_map(of).collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Posts of all lists in a group that this node holds, as this replica has them: those that wait for a moderator, and those
    /// that are being expanded.
    pub fn list_posts(&self, group: u32) -> Result<(u64, u64), StoreError> {
        let (mut held, mut expanding) = (0, 0);
        if let Some(view) = self.view(group)? {
            view.scan(&[keys::LIST_HEAD], &[keys::LIST_HEAD], &mut |_, value| {
                let head: ListHead = records::decode(value)?;
                held += u64::from(head.held);
                expanding += u64::from(head.expanding);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok((held, expanding))
    }
}
