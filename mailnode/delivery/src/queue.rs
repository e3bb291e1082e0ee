//! What delivery needs of the rest of the server.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_message::Address;
use quorumail_store::{CommandId, PartitionId, QueueClass, QueueEntry, QueueId, QueueRecipient, Timestamp};
use tokio::sync::{Notify, watch};

use crate::Receiver;

/// The queue cannot be asked or changed at the moment; whether a change was made is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unavailable: {0}")]
pub struct Unavailable(pub String);

/// Why a message did not get into a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalFailure {
    /// No mailbox has the address, or it takes no mail. For good.
    #[error("there is no such mailbox")]
    NoSuchUser,
    /// A mailing list does not take it, for this reason, which begins with an enhanced status code. For good.
    #[error("{0}")]
    Refused(String),
    /// The mailbox is full. Tried again.
    #[error("the mailbox is full")]
    OverQuota,
    /// It is not known whether it was delivered. Tried again with the same command.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// The queue and the mailboxes, as delivery sees them.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Entries of the partition with a recipient that is due, earliest first, at most `limit`.
    async fn due(
        &self,
        partition: PartitionId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<QueueEntry>, Unavailable>;

    /// One entry and its message; none when it is done or was deleted.
    async fn entry(
        &self,
        partition: PartitionId,
        id: QueueId,
    ) -> Result<Option<(QueueEntry, Bytes)>, Unavailable>;

    /// Takes away the recipients `done` and replaces those of `changed`; an entry without recipients is gone. An
    /// entry that is not there any more is no error.
    async fn update(
        &self,
        partition: PartitionId,
        command: CommandId,
        id: QueueId,
        done: Vec<Address>,
        changed: Vec<QueueRecipient>,
    ) -> Result<(), Unavailable>;

    /// Puts the message into the mailbox of `address`. The implementation adds Return-Path. Proposed again with the
    /// same command, it is delivered once.
    async fn deliver_local(
        &self,
        address: &Address,
        reverse_path: Option<&Address>,
        body: Bytes,
        command: CommandId,
    ) -> Result<(), LocalFailure>;

    /// Queues a report. It is put into the partition of the entry that it reports on, so that a repetition with the
    /// same command is recognised; an entry of this id that is already there is no error either.
    async fn report(
        &self,
        partition: PartitionId,
        entry: QueueEntry,
        body: Bytes,
        command: CommandId,
    ) -> Result<(), Unavailable>;

    /// The partitions that this node leads.
    fn led(&self) -> watch::Receiver<Vec<PartitionId>>;

    /// Notified (`notify_waiters`) when entries may have become due: something was queued or released.
    fn changed(&self) -> Arc<Notify>;

    /// Whether the address is in a domain of this cluster.
    fn is_local(&self, address: &Address) -> bool;
}

/// What came of one recipient, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It was delivered, so long after it was accepted.
    Delivered {
        /// Since the message was accepted.
        after: Duration,
    },
    /// It is tried again later.
    Deferred,
    /// It failed for good and the sender is told.
    Bounced,
    /// A report could not be delivered to another system and is gone.
    Dropped,
    /// A report could not be delivered to a mailbox here; a person must look.
    Bad,
}

/// Takes events. Called from workers: must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something came of a recipient of this class, [`QueueClass::Local`] or [`QueueClass::Remote`], whose mail goes there.
    fn observe(&self, class: QueueClass, receiver: Receiver, event: Event);
}

/// Takes no notice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: QueueClass, _: Receiver, _: Event) {}
}
