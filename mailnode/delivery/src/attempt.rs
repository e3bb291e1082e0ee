//! One attempt round of one entry: its due recipients, grouped by destination, and what came of them.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use quorumail_message::Report;
use quorumail_store::{CommandId, PartitionId, QueueClass, QueueEntry, QueueId, QueueRecipient, Timestamp};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, ConnectFailure, Host, LocalFailure, Observer, Queue, RecipientResult, RemoteEnvelope, Resolver,
    Tls, Transport, Unavailable,
    destination::{Destination, Destinations, Slot},
    ids, route,
    settle::{Outcome, Reason, Settlement, settle},
};

/// Recipients of one transaction. RFC 5321 4.5.3.1.8: every host takes 100.
const MAX_RECIPIENTS: usize = 100;
/// Local deliveries of one entry at the same time.
const LOCAL_AT_ONCE: usize = 8;
/// For one local delivery; its outcome is unknown after that.
const LOCAL_WITHIN: Duration = Duration::from_secs(60);
/// For all hosts of one destination together. The transport bounds each of its waits; this is for the sum of them.
const REMOTE_WITHIN: Duration = Duration::from_secs(2 * 3600);
/// First and longest pause before something that must be recorded is tried again.
const RECORD_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What all attempts of a node share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) destinations: Destinations,
}

/// One entry as it was when it was picked.
#[derive(Debug, Clone)]
struct Picked {
    partition: PartitionId,
    id: QueueId,
    size: u32,
}

type Outcomes = Vec<(QueueRecipient, Outcome)>;

/// The time now.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Attempts all recipients of the entry that are due and records what came of them. After a stop nothing new is
/// begun, but what was begun is finished.
pub(crate) async fn attempt(
    context: Arc<Context>,
    partition: PartitionId,
    entry: QueueEntry,
    stop: CancellationToken,
) {
    let picked = Picked { partition, id: entry.id, size: entry.size };
    let mut groups = JoinSet::new();
    for (destination, recipients) in context.groups(&entry) {
        groups.spawn(context.clone().deliver(picked.clone(), destination, recipients, stop.clone()));
    }
    let mut open = Vec::new();
    while let Some(finished) = groups.join_next().await {
        let outcomes = match finished {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(error)) => {
                tracing::warn!(queue_id = %picked.id, %error, "a queue entry cannot be read");
                continue;
            }
            Err(error) => {
                tracing::error!(queue_id = %picked.id, %error, "a delivery broke off");
                continue;
            }
        };
        let (delivered, rest): (Outcomes, Outcomes) =
            outcomes.into_iter().partition(|(_, outcome)| matches!(outcome, Outcome::Delivered(_)));
        open.extend(rest);
        // Another destination may take long; a crash meanwhile must not make the message go out twice to this one.
        if !delivered.is_empty() && !groups.is_empty() {
            context.conclude(&picked, &entry, delivered).await;
        } else {
            open.extend(delivered);
        }
    }
    if !open.is_empty() {
        context.conclude(&picked, &entry, open).await;
    }
}

/// Whether delivery works on it now.
fn is_due(recipient: &QueueRecipient, now: Timestamp) -> bool {
    matches!(recipient.class, QueueClass::Local | QueueClass::Remote) && recipient.next_attempt <= now
}

impl Context {
    /// The due recipients by destination, at most [`MAX_RECIPIENTS`] together.
    fn groups(&self, entry: &QueueEntry) -> Vec<(Destination, Vec<QueueRecipient>)> {
        let now = now();
        let mut groups: BTreeMap<Destination, Vec<QueueRecipient>> = BTreeMap::new();
        for recipient in entry.recipients.iter().filter(|recipient| is_due(recipient, now)) {
            let mut recipient = recipient.clone();
            // The domain may have become ours since the message was queued.
            if self.queue.is_local(&recipient.address) {
                recipient.class = QueueClass::Local;
            }
            let destination = match (recipient.class, &self.config.relay) {
                (QueueClass::Local, _) => Destination::Local,
                (_, Some(_)) => Destination::Relay,
                (_, None) => Destination::Domain(recipient.address.domain().clone()),
            };
            groups.entry(destination).or_default().push(recipient);
        }
        let chunks = |(destination, recipients): (Destination, Vec<QueueRecipient>)| {
            let parts: Vec<_> = recipients.chunks(MAX_RECIPIENTS).map(<[_]>::to_vec).collect();
            parts.into_iter().map(move |part| (destination.clone(), part))
        };
        groups.into_iter().flat_map(chunks).collect()
    }

    /// Delivers to one destination. No outcome for a recipient means that nothing was done for it.
    async fn deliver(
        self: Arc<Self>,
        picked: Picked,
        destination: Destination,
        mut recipients: Vec<QueueRecipient>,
        stop: CancellationToken,
    ) -> Result<Outcomes, Unavailable> {
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Vec::new()),
            slot = self.destinations.enter(&destination, picked.size) => slot,
        };
        // It may have waited long for the slot: what another attempt or a person changed meanwhile counts.
        let Some((current, body)) = self.queue.entry(picked.partition, picked.id).await? else {
            return Ok(Vec::new());
        };
        let now = now();
        recipients.retain(|recipient| {
            let same = |other: &&QueueRecipient| {
                other.address == recipient.address
                    && other.attempts == recipient.attempts
                    && is_due(other, now)
            };
            current.recipients.iter().any(|other| same(&other))
        });
        if recipients.is_empty() || stop.is_cancelled() {
            return Ok(Vec::new());
        }
        Ok(match destination {
            Destination::Local => self.deliver_here(&current, recipients, &body).await,
            Destination::Relay | Destination::Domain(_) => {
                self.deliver_there(&current, &destination, recipients, body, &slot).await
            }
        })
    }

    async fn deliver_here(
        &self,
        entry: &QueueEntry,
        recipients: Vec<QueueRecipient>,
        body: &Bytes,
    ) -> Outcomes {
        let one = |recipient: QueueRecipient| async move {
            let command = ids::deliver(entry.id, &recipient.address, recipient.attempts);
            let reverse_path = entry.reverse_path.as_ref();
            let delivery = self.queue.deliver_local(&recipient.address, reverse_path, body.clone(), command);
            let outcome = match timeout(LOCAL_WITHIN, delivery).await {
                Ok(Ok(())) => Outcome::Delivered(None),
                Ok(Err(LocalFailure::NoSuchUser)) => {
                    Outcome::Failed(Reason::own("5.1.1 there is no such mailbox here"))
                }
                Ok(Err(LocalFailure::Refused(text))) => Outcome::Failed(Reason::own(text)),
                Ok(Err(LocalFailure::OverQuota)) => {
                    Outcome::Deferred(Reason::own("4.2.2 the mailbox is full"))
                }
                Ok(Err(LocalFailure::Unavailable(error))) => Outcome::Unknown(error),
                Err(_) => Outcome::Unknown("the mailbox did not answer in time".to_owned()),
            };
            (recipient, outcome)
        };
        stream::iter(recipients).map(one).buffer_unordered(LOCAL_AT_ONCE).collect().await
    }

    async fn deliver_there(
        &self,
        entry: &QueueEntry,
        destination: &Destination,
        recipients: Vec<QueueRecipient>,
        body: Bytes,
        slot: &Slot,
    ) -> Outcomes {
        let all = |recipients: Vec<QueueRecipient>, outcome: Outcome| -> Outcomes {
            recipients.into_iter().map(|recipient| (recipient, outcome.clone())).collect()
        };
        if let Some(why) = slot.resting() {
            return all(recipients, Outcome::Deferred(Reason::own(why)));
        }
        let envelope = RemoteEnvelope {
            reverse_path: entry.reverse_path.clone(),
            recipients: recipients.iter().map(|recipient| recipient.address.clone()).collect(),
            // With what is put on top of a member's copy of a list's post.
            size: u32::try_from(body.len()).unwrap_or(u32::MAX),
            eight_bit: entry.eight_bit,
        };
        let sending = self.send(destination, &envelope, body, slot);
        match timeout(REMOTE_WITHIN, sending).await {
            Ok(Ok((host, results))) => {
                let outcomes = results.into_iter().map(|result| outcome(&host, result));
                // A client that answers for too few has not said that the others were delivered.
                let missing =
                    || Outcome::Deferred(Reason::own("4.4.2 the host did not answer for this recipient"));
                recipients.into_iter().zip(outcomes.chain(std::iter::repeat_with(missing))).collect()
            }
            Ok(Err(outcome)) => all(recipients, outcome),
            Err(_) => all(recipients, Outcome::Deferred(Reason::own("4.4.2 the delivery took too long"))),
        }
    }

    /// Tries host after host until one takes a transaction.
    async fn send(
        &self,
        destination: &Destination,
        envelope: &RemoteEnvelope,
        body: Bytes,
        slot: &Slot,
    ) -> Result<(Host, Vec<RecipientResult>), Outcome> {
        let (hosts, tls, credentials) = match (destination, &self.config.relay) {
            (Destination::Domain(domain), _) => {
                let hosts = route::to_domain(domain, &self.config, &*self.resolver).await;
                (hosts, Tls::Opportunistic, None)
            }
            (_, Some(relay)) => {
                let hosts = route::to_relay(relay, &*self.resolver).await;
                (hosts, relay.tls, relay.credentials.as_ref())
            }
            (_, None) => return Err(Outcome::Deferred(Reason::own("4.3.5 there is no relay"))),
        };
        let hosts = hosts.map_err(|failure| match failure {
            route::RouteFailure::Permanent(text) => Outcome::Failed(Reason::own(text)),
            route::RouteFailure::Temporary(text) => Outcome::Deferred(Reason::own(text)),
        })?;
        let mut last = "4.4.1 there was no host to try".to_owned();
        for host in hosts {
            match self.transport.send(&host, envelope, body.clone(), tls, credentials).await {
                Ok(results) => return Ok((host, results)),
                Err(ConnectFailure { status, text }) => {
                    last = format!("{status} {} ({}): {text}", host.name, host.addr.ip());
                }
            }
        }
        slot.unreachable(&last);
        Err(Outcome::Deferred(Reason::own(last)))
    }

    /// Records what came of the attempt. Ends only when it is recorded (or the task is aborted): without the record
    /// everything would be done again.
    async fn conclude(&self, picked: &Picked, entry: &QueueEntry, outcomes: Outcomes) {
        let mut settlement = settle(entry, outcomes, now(), &self.config.retry, rand::random::<f64>);
        let needs_entry = !settlement.changed.is_empty() || !settlement.reported.is_empty();
        if needs_entry {
            let read = || self.queue.entry(picked.partition, picked.id);
            // Deleted meanwhile: nobody wants to know any more.
            let Some((current, original)) = insist(picked.id, read).await else { return };
            // What a person decided meanwhile is not undone.
            settlement.changed.retain(|changed| {
                let worked_on = |class| matches!(class, QueueClass::Local | QueueClass::Remote);
                current
                    .recipients
                    .iter()
                    .any(|other| other.address == changed.address && worked_on(other.class))
            });
            self.report(picked, entry, &settlement, &original).await;
        }
        for reason in &settlement.dropped {
            tracing::warn!(queue_id = %picked.id, reason, "a report could not be delivered and is dropped");
        }
        let Settlement { done, changed, events, .. } = settlement;
        let command = CommandId(rand::random());
        let update =
            || self.queue.update(picked.partition, command, picked.id, done.clone(), changed.clone());
        if !done.is_empty() || !changed.is_empty() {
            insist(picked.id, update).await;
        }
        for (class, receiver, event) in events {
            self.observer.observe(class, receiver, event);
        }
    }

    /// Queues one report on all recipients that failed in this round. It comes before the record that they are done:
    /// a crash in between repeats the report under the same command, and does not lose it.
    async fn report(&self, picked: &Picked, entry: &QueueEntry, settlement: &Settlement, original: &Bytes) {
        let Some(sender) = entry.reverse_path.as_ref().filter(|_| !settlement.reported.is_empty()) else {
            return;
        };
        let (recipients, failed): (Vec<_>, Vec<_>) = settlement.reported.iter().cloned().unzip();
        let (id, command) = ids::report(picked.id, &recipients);
        let now = now();
        let body = Report {
            reporting_mta: &self.config.hostname,
            id: &id.to_string(),
            to: sender,
            arrived_millis: entry.arrived.0,
            now_millis: now.0,
            recipients: &failed,
            original,
        }
        .to_message();
        let local = self.queue.is_local(sender);
        let report = QueueEntry {
            id,
            reverse_path: None,
            recipients: vec![QueueRecipient {
                address: sender.clone(),
                class: if local { QueueClass::Local } else { QueueClass::Remote },
                attempts: 0,
                next_attempt: now,
                last_error: String::new(),
            }],
            arrived: now,
            size: u32::try_from(body.len()).expect("a report is bounded by its parts"),
            eight_bit: !body.is_ascii(),
        };
        tracing::info!(queue_id = %picked.id, report = %id, recipients = failed.len(), "the sender is told");
        let queue = || self.queue.report(picked.partition, report.clone(), body.clone(), command);
        insist(picked.id, queue).await;
    }
}

fn outcome(host: &Host, result: RecipientResult) -> Outcome {
    let reason = |code: u16, text: String| Reason {
        text: if code == 0 { text } else { format!("{code} {text}") },
        host: Some(host.name.clone()),
        is_reply: code != 0,
    };
    match result {
        RecipientResult::Delivered { .. } => Outcome::Delivered(Some(host.name.clone())),
        RecipientResult::Deferred { code, text } => Outcome::Deferred(reason(code, text)),
        RecipientResult::Failed { code, text } => Outcome::Failed(reason(code, text)),
    }
}

/// Tries until it succeeds, with growing pauses.
async fn insist<T, F: Future<Output = Result<T, Unavailable>>>(id: QueueId, act: impl Fn() -> F) -> T {
    let (mut pause, longest) = RECORD_PAUSES;
    loop {
        match act().await {
            Ok(value) => return value,
            Err(error) => {
                tracing::warn!(queue_id = %id, %error, "an outcome cannot be recorded yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}
