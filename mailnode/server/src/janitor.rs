//! Removes what nobody wants any more: the mail of deleted mailboxes once their grace period is over, and chunks of
//! messages whose command never came.
//!
//! The leader of the directory does the first, in two steps that may each be repeated: the partition purges what the
//! mailbox held, then the directory forgets the mailbox. The leader of a partition does the second.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quorumail_consensus::GroupId;
use quorumail_store::{Applied, MailboxId, Op};
use tokio_util::sync::CancellationToken;

use crate::groups::{self, CommandFailure, DIRECTORY, Groups};

/// How often deleted mailboxes are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Age from which chunks are dropped that no command took, in milliseconds: far longer than any command may take.
const UPLOAD_MILLIS: i64 = 60 * 60 * 1000;
/// For each step.
const WITHIN: Duration = Duration::from_secs(20);
/// Mailboxes purged in one look; the others wait for the next.
const AT_ONCE: usize = 100;

/// Runs until cancelled.
pub async fn run(groups: Arc<Groups>, stop: CancellationToken) {
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        if groups.consensus.leads(DIRECTORY) {
            purge_due(&groups).await;
        }
        drop_chunks(&groups).await;
    }
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

/// Removes what a mailbox held, in as many steps as it takes.
async fn purge(groups: &Groups, group: GroupId, mailbox: MailboxId) -> Result<(), CommandFailure> {
    loop {
        let op = Op::PurgeMailbox(mailbox);
        match groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN).await? {
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
        if let Err(error) = purge(groups, group, id).await {
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
