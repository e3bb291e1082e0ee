//! The queue, as people see it and act on it.

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use quorumail_consensus::GroupId;
use quorumail_message::{Address, Domain, EnhancedStatus, FailedRecipient, Report};
use quorumail_proto::admin::{self, ActOnQueueRequest, ListQueueRequest, act_on_queue_request::Action};
use quorumail_store::{Op, Query, QueueClass, QueueEntry, QueueId, QueueRecipient, Reply, Resolution};
use tonic::Status;

use super::{WITHIN, failed, unreadable};
use crate::groups::{self, Groups};

/// Entries in an answer when the caller names no number, and at most.
const LIST_LIMIT: u32 = 1000;
/// Entries that one call acts on, of each partition.
const ACT_LIMIT: u32 = 10_000;
/// Partitions asked, or entries changed, at a time.
const AT_ONCE: usize = 16;

/// Entries over all partitions, oldest first.
pub(super) async fn list(
    groups: &Groups,
    request: ListQueueRequest,
) -> Result<Vec<admin::QueueEntry>, Status> {
    let class = class_in(request.class)?;
    let limit = if request.limit == 0 { LIST_LIMIT } else { request.limit.min(LIST_LIMIT) };
    let mut entries = if request.id.is_empty() {
        listed(groups, class, limit).await?
    } else {
        found(groups, &[parse_id(&request.id)?]).await?
    };
    entries.sort_by_key(|(_, entry)| (entry.arrived, entry.id));
    entries.truncate(limit as usize);
    Ok(entries.into_iter().map(|(group, entry)| entry_out(group, entry)).collect())
}

/// Acts on entries; how many were changed.
pub(super) async fn act(
    groups: &Groups,
    hostname: &Domain,
    request: ActOnQueueRequest,
) -> Result<u32, Status> {
    let action = match request.action() {
        Action::Unspecified => return Err(Status::invalid_argument("no action was named")),
        action => action,
    };
    let class = class_in(request.class)?;
    let entries = if request.ids.is_empty() {
        let class = class.ok_or_else(|| Status::invalid_argument("neither ids nor a class was named"))?;
        listed(groups, Some(class), ACT_LIMIT).await?
    } else {
        let ids = request.ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
        found(groups, &ids).await?
    };
    let acts = entries
        .into_iter()
        .map(|(group, entry)| act_on(groups, hostname, group, entry, action, class).boxed());
    let mut acts = futures::stream::iter(acts).buffer_unordered(AT_ONCE);
    let mut changed = 0;
    while let Some(acted) = acts.next().await {
        changed += u32::from(acted?);
    }
    Ok(changed)
}

async fn listed(
    groups: &Groups,
    class: Option<QueueClass>,
    limit: u32,
) -> Result<Vec<(GroupId, QueueEntry)>, Status> {
    let query = Query::QueueList { class, limit };
    let asked = groups.partitions().map(|group| {
        let query = &query;
        async move { (group, groups.query(group, query, WITHIN).await) }
    });
    let mut asked = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
    let mut entries = Vec::new();
    while let Some((group, reply)) = asked.next().await {
        if let Reply::Queue(found) = reply.map_err(unreadable)? {
            entries.extend(found.into_iter().map(|entry| (group, entry)));
        }
    }
    Ok(entries)
}

/// Looks for entries by id in all partitions: the id does not tell which one it is in.
async fn found(groups: &Groups, ids: &[QueueId]) -> Result<Vec<(GroupId, QueueEntry)>, Status> {
    let mut entries = Vec::new();
    for id in ids {
        let query = Query::QueueEntry(*id);
        let asked = groups.partitions().map(|group| {
            let query = &query;
            async move { (group, groups.query(group, query, WITHIN).await) }
        });
        let mut asked = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((group, reply)) = asked.next().await {
            if let Reply::QueueEntry(Some((entry, _))) = reply.map_err(unreadable)? {
                entries.push((group, entry));
            }
        }
    }
    Ok(entries)
}

/// Changes one entry; with a class only its recipients of that class. Whether anything was to be changed.
async fn act_on(
    groups: &Groups,
    hostname: &Domain,
    group: GroupId,
    entry: QueueEntry,
    action: Action,
    class: Option<QueueClass>,
) -> Result<bool, Status> {
    let id = entry.id;
    let chosen: Vec<QueueRecipient> = entry
        .recipients
        .iter()
        .filter(|recipient| class.is_none_or(|c| recipient.class == c))
        .cloned()
        .collect();
    if action == Action::Bounce && !chosen.is_empty() {
        report(groups, hostname, group, &entry, &chosen).await?;
    }
    let (mut done, mut changed) = (Vec::new(), Vec::new());
    for recipient in chosen {
        match action {
            Action::Delete | Action::Bounce => done.push(recipient.address),
            _ => changed.extend(changed_recipient(groups, recipient, action)),
        }
    }
    if done.is_empty() && changed.is_empty() {
        return Ok(false);
    }
    let op = Op::UpdateQueue { id, done, changed };
    groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN).await.map_err(failed)?;
    Ok(true)
}

/// Queues the report that these recipients are given up. A null reverse-path gets none (RFC 5321 6.1).
async fn report(
    groups: &Groups,
    hostname: &Domain,
    group: GroupId,
    entry: &QueueEntry,
    given_up: &[QueueRecipient],
) -> Result<(), Status> {
    let Some(to) = &entry.reverse_path else { return Ok(()) };
    let query = Query::QueueEntry(entry.id);
    let Reply::QueueEntry(Some((_, original))) =
        groups.query(group, &query, WITHIN).await.map_err(unreadable)?
    else {
        return Ok(());
    };
    let recipients = given_up.iter().map(|recipient| FailedRecipient {
        address: recipient.address.clone(),
        status: EnhancedStatus::FAILED,
        remote_mta: None,
        diagnostic: match recipient.last_error.as_str() {
            "" => "delivery was given up by an administrator".to_owned(),
            last => format!("delivery was given up by an administrator; the last attempt: {last}"),
        },
        is_reply: false,
    });
    let recipients: Vec<_> = recipients.collect();
    let (id, now) = (groups::random_queue_id(), groups::now());
    let report = Report {
        reporting_mta: hostname,
        id: &id.to_string(),
        to,
        arrived_millis: entry.arrived.0,
        now_millis: now.0,
        recipients: &recipients,
        original: &original,
    };
    let body = report.to_message();
    let class = class_of(groups, to);
    let recipient = QueueRecipient {
        address: to.clone(),
        class,
        attempts: 0,
        next_attempt: now,
        last_error: String::new(),
    };
    let report = QueueEntry {
        id,
        reverse_path: None,
        recipients: vec![recipient],
        arrived: now,
        size: u32::try_from(body.len()).unwrap_or(u32::MAX),
        eight_bit: !body.is_ascii(),
    };
    groups
        .propose(group, groups::random_command(), Op::Enqueue(report), body, WITHIN)
        .await
        .map_err(failed)?;
    Ok(())
}

fn class_of(groups: &Groups, address: &Address) -> QueueClass {
    match groups.directory().resolve(address) {
        Resolution::NotLocal => QueueClass::Remote,
        Resolution::Mailbox(_) | Resolution::List(..) | Resolution::NoSuchUser => QueueClass::Local,
    }
}

/// The recipient after the action; none when the action does not apply to it.
fn changed_recipient(
    groups: &Groups,
    mut recipient: QueueRecipient,
    action: Action,
) -> Option<QueueRecipient> {
    let waits_for_a_person = matches!(recipient.class, QueueClass::Held | QueueClass::Bad);
    match action {
        Action::Retry if !waits_for_a_person => {}
        Action::Hold if recipient.class != QueueClass::Held => {
            recipient.class = QueueClass::Held;
            return Some(recipient);
        }
        Action::Release if waits_for_a_person => {
            recipient.class = class_of(groups, &recipient.address);
        }
        _ => return None,
    }
    recipient.next_attempt = groups::now();
    Some(recipient)
}

fn parse_id(text: &str) -> Result<QueueId, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is no queue id")))
}

fn class_in(class: i32) -> Result<Option<QueueClass>, Status> {
    match admin::QueueClass::try_from(class) {
        Ok(admin::QueueClass::Unspecified) => Ok(None),
        Ok(admin::QueueClass::Local) => Ok(Some(QueueClass::Local)),
        Ok(admin::QueueClass::Remote) => Ok(Some(QueueClass::Remote)),
        Ok(admin::QueueClass::Bad) => Ok(Some(QueueClass::Bad)),
        Ok(admin::QueueClass::Held) => Ok(Some(QueueClass::Held)),
        Err(_) => Err(Status::invalid_argument("there is no such queue class")),
    }
}

pub(super) fn class_out(class: QueueClass) -> admin::QueueClass {
    match class {
        QueueClass::Local => admin::QueueClass::Local,
        QueueClass::Remote => admin::QueueClass::Remote,
        QueueClass::Bad => admin::QueueClass::Bad,
        QueueClass::Held => admin::QueueClass::Held,
    }
}

fn entry_out(group: GroupId, entry: QueueEntry) -> admin::QueueEntry {
    let recipients = entry.recipients.into_iter().map(|recipient| admin::QueueRecipient {
        address: recipient.address.to_string(),
        class: class_out(recipient.class).into(),
        attempts: recipient.attempts,
        next_attempt_at: recipient.next_attempt.0,
        last_error: recipient.last_error,
    });
    admin::QueueEntry {
        id: entry.id.to_string(),
        reverse_path: entry.reverse_path.map(|address| address.to_string()).unwrap_or_default(),
        arrived_at: entry.arrived.0,
        size: entry.size.into(),
        recipients: recipients.collect(),
        partition: group.0,
    }
}
