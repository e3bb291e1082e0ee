//! Expands posts in the partitions that this node leads, and takes away what nobody wants any more.
//!
//! Each step is one command that queues the copies of the next members and moves the post's cursor. Whoever leads goes on from
//! the cursor; two that believe to lead do no harm, for a step that does not begin at the cursor does nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use quorumail_consensus::GroupId;
use quorumail_message::Address;
use quorumail_store::{
    Applied, ListPost, ListRecord, Op, PostState, QueueEntry, Store, StoreError, Timestamp,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{ListFailure, Lists, WITHIN, policy, token};
use crate::{
    groups::{self, CommandFailure, DIRECTORY, Groups},
    metrics::PostOutcome,
};

/// Days after which a held message goes away.
pub const HELD_DAYS: i64 = 5;
/// Members that one step serves: a command of some tens of KiB.
const STEP: usize = 200;
/// Posts that are looked at in one partition at a time.
const POSTS: usize = 100;
/// Partitions that are worked on at a time.
const AT_ONCE: usize = 8;
/// Between two looks, however often the queue changes.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks when nothing changes.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks at what has become old.
const TIDY: Duration = Duration::from_secs(20);

/// Runs until cancelled. `changed` is notified when there may be something to do.
pub async fn run(lists: Arc<Lists>, changed: Arc<Notify>, stop: CancellationToken) {
    let mut next_tidy = Instant::now();
    while !stop.is_cancelled() {
        let mut notified = std::pin::pin!(changed.notified());
        // From here on a notification counts.
        notified.as_mut().enable();
        let tidy = Instant::now() >= next_tidy;
        if tidy {
            next_tidy = Instant::now() + TIDY;
        }
        let led = lists.groups.partitions().filter(|group| lists.groups.consensus.leads(*group));
        let work = led.map(|group| partition(&lists, group, tidy, &stop));
        stream::iter(work.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = notified => drop(tokio::time::timeout(MIN_PAUSE, stop.cancelled()).await),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn partition(lists: &Lists, group: GroupId, tidy: bool, stop: &CancellationToken) {
    let posts = read(lists, move |store| store.expanding_posts(group.0, POSTS)).await;
    for post in posts {
        if stop.is_cancelled() || !lists.groups.consensus.leads(group) {
            return;
        }
        if let Some(record) = lists.groups.directory().list(post.list)
            && let Err(error) = expand(lists, &record, post, stop).await
        {
            tracing::warn!(list = %record.address, ?error, "a post could not be expanded; it goes on from where it is");
        }
    }
    if tidy {
        expire(lists, group).await;
        forget_gone(lists, group).await;
    }
}

/// What this replica has; nothing when it cannot be read.
async fn read<T: Send + 'static>(
    lists: &Lists,
    from: impl FnOnce(Store) -> Result<Vec<T>, StoreError> + Send + 'static,
) -> Vec<T> {
    let store = lists.groups.store.clone();
    match tokio::task::spawn_blocking(move || from(store)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(%error, "lists could not be read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Queues the copies of all members that have none yet.
async fn expand(
    lists: &Lists,
    record: &ListRecord,
    post: ListPost,
    stop: &CancellationToken,
) -> Result<(), ListFailure> {
    let remembered = lists.subscribers(record).await?;
    let members = policy::recipients(record, &remembered);
    let PostState::Expanding(mut cursor) = post.state.clone() else { return Ok(()) };
    let (begun, resumed) = (Instant::now(), cursor.as_ref().is_some_and(|cursor| !cursor.is_empty()));
    let group = Groups::group(record.partition);
    let propose = |op| lists.groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN);
    if cursor.is_none() && lists.groups.directory().archived_list(record.id).is_some() {
        let op = Op::ArchivePost { list: record.id, post: post.id };
        propose(op).await.map_err(super::failed)?;
        lists.metrics.list_archived();
        // Where the command has moved it to: before all addresses.
        cursor = Some(String::new());
    }
    loop {
        let step = next_step(&members, cursor.as_deref());
        let now = groups::now();
        let copies = step.members.len();
        let entries = step.members.iter().map(|(_, member)| copy(lists, record, &post, member, now));
        let op = Op::ExpandPost {
            list: record.id,
            post: post.id,
            after: cursor,
            entries: entries.collect(),
            next: step.next.clone(),
        };
        propose(op).await.map_err(super::failed)?;
        lists.metrics.list_copies(copies);
        if step.next.is_none() {
            lists.metrics.list_post(PostOutcome::Distributed);
            let (members, millis) = (members.len(), begun.elapsed().as_millis());
            tracing::info!(list = %record.address, post = %post.id, members, resumed, millis, "a post was expanded");
            return Ok(());
        }
        cursor = step.next;
        if stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// The members that a step serves, and where it ends; none: with it all are served.
struct Step<'a> {
    members: &'a [(String, Address)],
    next: Option<String>,
}

fn next_step<'a>(members: &'a [(String, Address)], cursor: Option<&str>) -> Step<'a> {
    let from = cursor.map_or(0, |cursor| members.partition_point(|(key, _)| key.as_str() <= cursor));
    let rest = members.get(from..).unwrap_or_default();
    let now = &rest[..rest.len().min(STEP)];
    let next = if rest.len() > STEP { now.last().map(|(key, _)| key.clone()) } else { None };
    Step { members: now, next }
}

fn copy(lists: &Lists, record: &ListRecord, post: &ListPost, member: &Address, now: Timestamp) -> QueueEntry {
    QueueEntry {
        id: token::copy_id(record, post.id, member),
        reverse_path: Some(token::bounces(record, member)),
        recipients: vec![lists.queued(member, now)],
        arrived: now,
        size: post.size,
        eight_bit: post.eight_bit,
    }
}

/// Takes away what was held for too long.
async fn expire(lists: &Lists, group: GroupId) {
    let before = groups::now().plus_millis(-HELD_DAYS * 24 * 60 * 60 * 1000);
    let held = read(lists, move |store| store.held_posts(group.0, usize::MAX)).await;
    for post in held.into_iter().filter(|post| post.arrived < before).take(POSTS) {
        let op = Op::DecidePost { list: post.list, post: post.id, approve: false };
        match lists.groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN).await {
            Ok(_) => tracing::info!(post = %post.id, "a held message is too old and goes away"),
            Err(error) => {
                tracing::warn!(post = %post.id, %error, "an old held message could not be taken away")
            }
        }
    }
}

/// Takes away what is here of lists that are no more.
async fn forget_gone(lists: &Lists, group: GroupId) {
    let here = read(lists, move |store| store.lists_here(group.0)).await;
    let is_gone = |list: &quorumail_store::ListId| lists.groups.directory().list(*list).is_none();
    if !here.iter().any(is_gone) || lists.groups.directory_is_current().await.is_err() {
        return;
    }
    // The replica here may have lagged behind.
    for list in here.into_iter().filter(is_gone) {
        if let Err(error) = forget(lists, group, list).await {
            tracing::warn!(%list, %error, "what is left of a deleted list could not be taken away");
        }
    }
}

async fn forget(lists: &Lists, group: GroupId, list: quorumail_store::ListId) -> Result<(), CommandFailure> {
    debug_assert!(group != DIRECTORY, "lists have their homes in partitions");
    loop {
        let (op, command) = (Op::ForgetList(list), groups::random_command());
        match lists.groups.propose(group, command, op, Bytes::new(), WITHIN).await? {
            Applied::More => tokio::task::yield_now().await,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_serve_each_member_once_wherever_they_begin_again() {
        let member = |number: usize| {
            let key = format!("m{number:05}@example.org");
            (key.clone(), key.parse().unwrap())
        };
        for count in [0, 1, STEP - 1, STEP, STEP + 1, 5 * STEP + 3] {
            let members: Vec<_> = (0..count).map(member).collect();
            let (mut cursor, mut served, mut steps) = (None::<String>, Vec::new(), 0);
            loop {
                let step = next_step(&members, cursor.as_deref());
                served.extend(step.members.iter().map(|(key, _)| key.clone()));
                steps += 1;
                let Some(next) = step.next else { break };
                cursor = Some(next);
            }
            assert_eq!(served, members.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>());
            assert_eq!(steps, count.div_ceil(STEP).max(1));
        }
        // Whoever the cursor names may be a member no more.
        let members: Vec<_> = (0..10).map(member).collect();
        assert_eq!(next_step(&members, Some("m00004@example.orga")).members.len(), 5);
    }
}
