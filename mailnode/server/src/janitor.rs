//! Removes what nobody wants any more: the mail of deleted mailboxes once their grace period is over, deleted messages
//! whose time in the vault is over, and chunks of messages whose command never came.
//!
//! The leader of the directory does the first, in two steps that may each be repeated: the partition purges what the
//! mailbox held, then the directory forgets the mailbox. The leader of a partition does the others.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quorumail_consensus::GroupId;
use quorumail_store::{Applied, Op};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::groups::{self, CommandFailure, DIRECTORY, Groups};

/// How often deleted mailboxes are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Age from which chunks are dropped that no command took, in milliseconds: far longer than any command may take.
const UPLOAD_MILLIS: i64 = 60 * 60 * 1000;
/// Shortest and longest time between two looks at deleted messages; a tenth of the time that they are kept.
const LOOK_AT_DELETED: [Duration; 2] = [LOOK, Duration::from_secs(300)];
/// For each step.
const WITHIN: Duration = Duration::from_secs(20);
/// Mailboxes purged in one look; the others wait for the next.
const AT_ONCE: usize = 100;

/// Runs until cancelled. Deleted messages are kept for as long as `keep`.
pub async fn run(groups: Arc<Groups>, keep: Duration, stop: CancellationToken) {
    let between = (keep / 10).clamp(LOOK_AT_DELETED[0], LOOK_AT_DELETED[1]);
    let mut next_look = Instant::now();
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        if groups.consensus.leads(DIRECTORY) {
            purge_due(&groups).await;
        }
        drop_chunks(&groups).await;
        if Instant::now() >= next_look {
            let all = drop_deleted(&groups, keep).await;
            next_look = Instant::now() + if all { between } else { Duration::ZERO };
        }
    }
}

/// Drops deleted messages that were kept for long enough; whether it came to an end. Nothing is proposed where there are
/// none.
async fn drop_deleted(groups: &Groups, keep: Duration) -> bool {
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let before = groups::now().plus_millis(keep.saturating_neg());
    let mut all = true;
    for group in groups.partitions().filter(|group| groups.consensus.leads(*group)) {
        let store = groups.store.clone();
        let due = move || store.deleted_before(group.0, before, AT_ONCE);
        let mailboxes = match tokio::task::spawn_blocking(due).await {
            Ok(Ok(mailboxes)) => mailboxes,
            Ok(Err(error)) => {
                tracing::warn!(group = group.0, %error, "deleted messages could not be looked for");
                continue;
            }
            Err(_) => continue,
        };
        all &= mailboxes.len() < AT_ONCE;
        for mailbox in mailboxes {
            if let Err(error) = in_steps(groups, group, || Op::DropDeleted { mailbox, before }).await {
                tracing::warn!(group = group.0, %error, "old deleted messages could not be dropped; it is tried again");
                break;
            }
        }
    }
    all
}

/// Drops chunks that were not taken. Nothing is proposed where there are none, so that idle partitions stay quiet.
async fn drop_chunks(groups: &Groups) {
    let before = groups::now().plus_millis(-UPLOAD_MILLIS);
    for group in groups.partitions().filter(|group| groups.consensus.leads(*group)) {
        let store = groups.store.clone();
        let stale = tokio::task::spawn_blocking(move || store.has_uploads_before(group.0, before)).await;
        if !matches!(stale, Ok(Ok(true))) {
            continue;
        }
        let op = Op::DropChunks(before);
        match groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN).await {
            Ok(_) => tracing::info!(group = group.0, "dropped chunks of messages that never came whole"),
            Err(error) => tracing::warn!(group = group.0, %error, "old chunks could not be dropped"),
        }
    }
}

/// Proposes a command again and again until all is gone.
async fn in_steps(groups: &Groups, group: GroupId, op: impl Fn() -> Op) -> Result<(), CommandFailure> {
    loop {
        match groups.propose(group, groups::random_command(), op(), Bytes::new(), WITHIN).await? {
            Applied::More => tokio::task::yield_now().await,
            _ => return Ok(()),
        }
    }
}

async fn purge_due(groups: &Groups) {
    let now = groups::now();
    let due = groups.directory().deleted().into_iter().filter(|mailbox| mailbox.purge_at <= now);
    for deleted in due.take(AT_ONCE) {
        let (id, group) = (deleted.record.id, Groups::group(deleted.record.partition));
        if let Err(error) = in_steps(groups, group, || Op::PurgeMailbox(id)).await {
            tracing::warn!(mailbox = id.0, %error, "a deleted mailbox could not be purged; it is tried again");
            continue;
        }
        let forget = Op::ForgetMailbox(id);
        match groups.propose(DIRECTORY, groups::random_command(), forget, Bytes::new(), WITHIN).await {
            Ok(_) => tracing::info!(mailbox = id.0, "a deleted mailbox was purged"),
            Err(error) => tracing::warn!(mailbox = id.0, %error, "a purged mailbox could not be forgotten"),
        }
    }
}
