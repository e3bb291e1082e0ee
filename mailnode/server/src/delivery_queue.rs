//! The queue and the mailboxes as delivery sees them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_authentication as authentication;
use quorumail_consensus::GroupId;
use quorumail_delivery::{LocalFailure, Queue, Unavailable};
use quorumail_message::{Address, headers, return_path};
use quorumail_store::{
    CommandId, ListPart, ListRecord, Op, PartitionId, Query, QueueEntry, QueueId, QueueRecipient, Refusal,
    Reply, Resolution, Timestamp,
};
use tokio::sync::{Notify, watch};

use crate::{
    groups::{CommandFailure, DIRECTORY, Groups, INBOX},
    lists::{Author, Incoming, LOOP, ListFailure, Lists},
    watch::Watchers,
};

/// For a command or a read. Delivery tries again by itself.
const WITHIN: Duration = Duration::from_secs(15);

/// All partitions of the cluster; work is done in those that this node leads.
pub struct DeliveryQueue {
    groups: Arc<Groups>,
    lists: Arc<Lists>,
    watchers: Arc<Watchers>,
    led: watch::Receiver<Vec<PartitionId>>,
}

impl DeliveryQueue {
    /// Follows which partitions this node leads, on a task that ends with the last user.
    pub fn new(groups: Arc<Groups>, lists: Arc<Lists>, watchers: Arc<Watchers>) -> Self {
        let mut leads = groups.consensus.watch_leads();
        let partitions = |leads: &[GroupId]| -> Vec<PartitionId> {
            leads.iter().filter(|group| **group != DIRECTORY).map(|group| PartitionId(group.0)).collect()
        };
        let (send, led) = watch::channel(partitions(&leads.borrow_and_update()));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = send.closed() => return,
                    changed = leads.changed() => if changed.is_err() { return },
                }
                send.send_replace(partitions(&leads.borrow_and_update()));
            }
        });
        Self { groups, lists, watchers, led }
    }
}

impl DeliveryQueue {
    /// A report, or what another list sends to a list that is its member. Nobody logged in for it here.
    async fn to_list(
        &self,
        record: &ListRecord,
        part: &ListPart,
        reverse_path: Option<&Address>,
        body: Bytes,
        command: CommandId,
    ) -> Result<(), LocalFailure> {
        let sending = reverse_path.map(|address| self.groups.directory().resolve(address));
        let by_list = match sending {
            Some(Resolution::List(sending, ListPart::Bounces(_))) => record.member(&sending.address).cloned(),
            _ => None,
        };
        let author = match by_list {
            Some(member) => Author { address: Some(member.address), is_shown: true, is_ours: false },
            None => Author {
                address: authentication::author(&body).and_then(|author| author.parse().ok()),
                is_shown: false,
                is_ours: false,
            },
        };
        let eight_bit = !body.is_ascii();
        let incoming = Incoming { id: QueueId(command.0), reverse_path, author, body, eight_bit };
        match self.lists.take(record, part, &incoming).await {
            Ok(()) => Ok(()),
            // It came back to a list that it has been through: all of its members have it.
            Err(ListFailure::Refused(_, LOOP, _)) => Ok(()),
            // Nobody is told, and nobody has to look: a program wrote it.
            Err(ListFailure::Refused(..)) if reverse_path.is_none() => Ok(()),
            Err(ListFailure::Refused(_, status, text)) => {
                Err(LocalFailure::Refused(format!("{status} {text}")))
            }
            Err(ListFailure::Full(text) | ListFailure::Unavailable(text)) => {
                Err(LocalFailure::Unavailable(text))
            }
        }
    }
}

fn unavailable(error: impl std::fmt::Display) -> Unavailable {
    Unavailable(error.to_string())
}

fn wrong_kind() -> Unavailable {
    Unavailable("a partition gave an answer of the wrong kind".to_owned())
}

#[async_trait]
impl Queue for DeliveryQueue {
    async fn due(
        &self,
        partition: PartitionId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<QueueEntry>, Unavailable> {
        // The partition's leader knows its queue from memory, so that an idle partition is not woken every second. What it
        // has yet to apply is told as a change when it does.
        if self.groups.store.next_due(partition.0).is_none_or(|due| due > now) {
            return Ok(Vec::new());
        }
        let query = Query::QueueDue { now, limit };
        match self.groups.query(Groups::group(partition), &query, WITHIN).await.map_err(unavailable)? {
            Reply::Queue(entries) => Ok(entries),
            _ => Err(wrong_kind()),
        }
    }

    async fn entry(
        &self,
        partition: PartitionId,
        id: QueueId,
    ) -> Result<Option<(QueueEntry, Bytes)>, Unavailable> {
        let query = Query::QueueEntry(id);
        match self.groups.query(Groups::group(partition), &query, WITHIN).await.map_err(unavailable)? {
            Reply::QueueEntry(Some((entry, body))) => {
                let top = self.lists.personal(&entry, &body).await;
                let body = if top.is_empty() { body } else { headers::prepend(&top, &body) };
                Ok(Some((entry, body)))
            }
            Reply::QueueEntry(None) => Ok(None),
            _ => Err(wrong_kind()),
        }
    }

    async fn update(
        &self,
        partition: PartitionId,
        command: CommandId,
        id: QueueId,
        done: Vec<Address>,
        changed: Vec<QueueRecipient>,
    ) -> Result<(), Unavailable> {
        let op = Op::UpdateQueue { id, done, changed };
        match self.groups.propose(Groups::group(partition), command, op, Bytes::new(), WITHIN).await {
            Ok(_) | Err(CommandFailure::Refused(Refusal::NotFound(_))) => Ok(()),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn deliver_local(
        &self,
        address: &Address,
        reverse_path: Option<&Address>,
        body: Bytes,
        command: CommandId,
    ) -> Result<(), LocalFailure> {
        let mut found = self.groups.directory().resolve(address);
        let is_taken = match &found {
            Resolution::Mailbox(mailbox) => mailbox.permissions.receive,
            Resolution::List(..) => true,
            Resolution::NoSuchUser | Resolution::NotLocal => false,
        };
        if !is_taken {
            // A failure is for good, and the replica here may lag behind.
            let current = self.groups.directory_is_current().await;
            current.map_err(|error| LocalFailure::Unavailable(error.to_string()))?;
            found = self.groups.directory().resolve(address);
        }
        let mailbox = match found {
            Resolution::Mailbox(mailbox) => mailbox,
            Resolution::List(record, part) => {
                return self.to_list(&record, &part, reverse_path, body, command).await;
            }
            Resolution::NoSuchUser | Resolution::NotLocal => return Err(LocalFailure::NoSuchUser),
        };
        if !mailbox.permissions.receive {
            return Err(LocalFailure::NoSuchUser);
        }
        let body: Bytes = [return_path(reverse_path).as_bytes(), &body].concat().into();
        let op = Op::Append {
            mailbox: mailbox.id,
            folder: INBOX.to_owned(),
            flags: Default::default(),
            internal_date: crate::groups::now(),
            quota: mailbox.quota,
        };
        match self.groups.propose(Groups::group(mailbox.partition), command, op, body, WITHIN).await {
            Ok(_) => Ok(()),
            Err(CommandFailure::Refused(Refusal::OverQuota)) => Err(LocalFailure::OverQuota),
            Err(error) => Err(LocalFailure::Unavailable(error.to_string())),
        }
    }

    async fn report(
        &self,
        partition: PartitionId,
        entry: QueueEntry,
        body: Bytes,
        command: CommandId,
    ) -> Result<(), Unavailable> {
        match self.groups.propose(Groups::group(partition), command, Op::Enqueue(entry), body, WITHIN).await {
            Ok(_) | Err(CommandFailure::Refused(Refusal::AlreadyExists(_))) => Ok(()),
            Err(error) => Err(unavailable(error)),
        }
    }

    fn led(&self) -> watch::Receiver<Vec<PartitionId>> {
        self.led.clone()
    }

    fn changed(&self) -> Arc<Notify> {
        self.watchers.queue()
    }

    fn is_local(&self, address: &Address) -> bool {
        self.groups.directory().resolve(address) != Resolution::NotLocal
    }
}
