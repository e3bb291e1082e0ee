//! The tasks: one for each partition that this node leads.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use quorumail_store::{PartitionId, QueueId};
use tokio::{
    sync::{futures::Notified, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Observer, Queue, Resolver, Transport,
    attempt::{Context, attempt, now},
    destination::Destinations,
};

/// Entries taken from the queue at once, beyond those that are worked on already.
const BATCH: usize = 256;
/// Between two looks at the queue, however often it changes.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Before the queue is asked again after it could not answer.
const UNAVAILABLE_PAUSE: Duration = Duration::from_secs(1);

type InWork = Arc<Mutex<HashSet<(PartitionId, QueueId)>>>;

/// Delivers what is queued in the partitions that this node leads.
pub struct Worker {
    context: Arc<Context>,
    in_work: InWork,
}

impl Worker {
    /// A worker that has not begun.
    pub fn new(
        config: Config,
        queue: Arc<dyn Queue>,
        resolver: Arc<dyn Resolver>,
        transport: Arc<dyn Transport>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let destinations = Destinations::new(&config.limits);
        let context = Context { config, queue, resolver, transport, observer, destinations };
        Self { context: Arc::new(context), in_work: InWork::default() }
    }

    /// Works until `stop`; then lets deliveries in progress end within the configured time.
    pub async fn run(&self, stop: CancellationToken) {
        let mut led = self.context.queue.led();
        let mut partitions: HashMap<PartitionId, (CancellationToken, AbortHandle)> = HashMap::new();
        let mut tasks = JoinSet::new();
        while !stop.is_cancelled() {
            let wanted: BTreeSet<PartitionId> = led.borrow_and_update().iter().copied().collect();
            partitions.retain(|partition, (lost, task)| {
                if !wanted.contains(partition) {
                    lost.cancel();
                }
                !lost.is_cancelled() && !task.is_finished()
            });
            for partition in wanted {
                partitions.entry(partition).or_insert_with(|| {
                    let lost = CancellationToken::new();
                    let task = Partition {
                        id: partition,
                        context: self.context.clone(),
                        in_work: self.in_work.clone(),
                        stop: lost.clone(),
                        attempts: JoinSet::new(),
                    };
                    (lost, tasks.spawn(task.run()))
                });
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = next(&mut led) => {}
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the delivery of a partition broke off and is started again");
                    }
                }
            }
        }
        for (lost, _) in partitions.values() {
            lost.cancel();
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// The next change; never, when there can be none any more.
async fn next(led: &mut watch::Receiver<Vec<PartitionId>>) {
    if led.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The work on one partition.
struct Partition {
    id: PartitionId,
    context: Arc<Context>,
    in_work: InWork,
    stop: CancellationToken,
    attempts: JoinSet<()>,
}

impl Partition {
    async fn run(mut self) {
        tracing::debug!(partition = %self.id, "delivery starts");
        let changed = self.context.queue.changed();
        loop {
            let mut notified = std::pin::pin!(changed.notified());
            // From here on a notification counts, also one that comes while the queue is read.
            notified.as_mut().enable();
            let look = self.look().await;
            if !self.wait(look, notified).await {
                break;
            }
        }
        let grace = self.context.config.limits.stop_grace;
        let ended = async { while self.attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::warn!(partition = %self.id, left = self.attempts.len(), "deliveries are broken off");
            self.attempts.shutdown().await;
        }
        tracing::debug!(partition = %self.id, "delivery ends");
    }

    /// Starts attempts of what is due. Answers when to look again, and whether there may be more at once.
    async fn look(&mut self) -> (Duration, bool) {
        let limits = &self.context.config.limits;
        let limit = (self.attempts.len() + BATCH).min(limits.entries.max(1));
        let asked = self.context.queue.due(self.id, now(), u32::try_from(limit).unwrap_or(u32::MAX));
        let due = tokio::select! {
            () = self.stop.cancelled() => return (limits.poll, false),
            due = asked => due,
        };
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(partition = %self.id, %error, "the queue cannot be read");
                return (limits.poll.max(UNAVAILABLE_PAUSE), false);
            }
        };
        let more = due.len() >= limit;
        for entry in due {
            if self.attempts.len() >= limit {
                break;
            }
            let Some(claim) = Claim::take(&self.in_work, (self.id, entry.id)) else { continue };
            let (context, id, stop) = (self.context.clone(), self.id, self.stop.clone());
            self.attempts.spawn(async move {
                let _claim = claim;
                attempt(context, id, entry, stop).await;
            });
        }
        (limits.poll, more)
    }

    /// Waits for a reason to look again; false when it is time to stop.
    async fn wait(&mut self, (pause, more): (Duration, bool), mut notified: Pin<&mut Notified<'_>>) -> bool {
        let mut timer = std::pin::pin!(tokio::time::sleep(pause));
        // Not after each single attempt: every look reads what is worked on as well.
        let enough = self.attempts.len() / 2;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                Some(ended) = self.attempts.join_next(), if !self.attempts.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(partition = %self.id, %error, "an attempt broke off");
                    }
                    if more && self.attempts.len() <= enough {
                        return true;
                    }
                }
                () = &mut notified => {
                    tokio::time::sleep(MIN_PAUSE).await;
                    return true;
                }
                () = &mut timer => return true,
            }
        }
    }
}

/// The right to work on an entry. One for each entry of the node: a partition that was lost and won back may have an
/// attempt of its former task still running.
struct Claim {
    in_work: InWork,
    key: (PartitionId, QueueId),
}

impl Claim {
    fn take(in_work: &InWork, key: (PartitionId, QueueId)) -> Option<Self> {
        in_work.lock().insert(key).then(|| Self { in_work: in_work.clone(), key })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.in_work.lock().remove(&self.key);
    }
}
