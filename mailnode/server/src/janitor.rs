//! Removes the mail of deleted mailboxes once their grace period is over.
//!
//! The leader of the directory does it, in two steps that may each be repeated: the partition purges what the mailbox
//! held, then the directory forgets the mailbox.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quorumail_store::Op;
use tokio_util::sync::CancellationToken;

use crate::groups::{self, DIRECTORY, Groups};

/// How often deleted mailboxes are looked at.
const LOOK: Duration = Duration::from_secs(5);
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
    }
}

async fn purge_due(groups: &Groups) {
    let now = groups::now();
    let due = groups.directory().deleted().into_iter().filter(|mailbox| mailbox.purge_at <= now);
    for deleted in due.take(AT_ONCE) {
        let (id, group) = (deleted.record.id, Groups::group(deleted.record.partition));
        let purge =
            groups.propose(group, groups::random_command(), Op::PurgeMailbox(id), Bytes::new(), WITHIN).await;
        if let Err(error) = purge {
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
