//! Commands and queries of the store, sent through consensus: typed on this side, bytes on the other.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use quorumail_consensus::{Consensus, GroupId, ProposeError};
use quorumail_store::{
    Applied, Command, CommandId, Directory, Op, PartitionId, Query, QueueClass, QueueId, Refusal, Reply,
    Store, Timestamp, UploadId, decode_outcome,
};

/// The group that holds the directory.
pub const DIRECTORY: GroupId = GroupId(0);
/// Where mail that arrives is put; the one folder that is always there (RFC 9051 5.1).
pub const INBOX: &str = "INBOX";
/// The longest body in one command, in bytes. A longer one is cut into chunks of this size, so that no single entry of
/// a log holds up the others for long.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Chunks of one body that are proposed at a time.
const CHUNKS_UNDER_WAY: usize = 4;
/// For a read of the current directory before something is refused because of it.
const DIRECTORY_WITHIN: Duration = Duration::from_secs(3);

/// Why a command had no effect that is known.
#[derive(Debug, thiserror::Error)]
pub enum CommandFailure {
    /// Nothing was changed, and trying again will not help.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No majority answered in time, or the node is stopping or too busy; the command may have been applied or not.
    #[error("the partition cannot be reached: {0}")]
    Unavailable(String),
}

/// A query that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryFailure {
    /// No majority answered in time, or the node is stopping or too busy.
    #[error("the partition cannot be read: {0}")]
    Unavailable(String),
    /// The partition is there, but a body that was asked for cannot be read, here and from the other replicas, just now.
    #[error("a message cannot be read: {0}")]
    Unreadable(String),
}

/// All groups of the cluster, as seen from this node.
pub struct Groups {
    /// Tells who leads and holds what.
    pub consensus: Consensus,
    /// The replicas that this node holds.
    pub store: Store,
    /// Number of partitions of the cluster.
    pub partitions: u32,
    barrier: Barrier,
    spread: AtomicU64,
}

/// Joins requests for a current directory: one read serves all who asked before it began.
#[derive(Default)]
struct Barrier {
    asked: AtomicU64,
    /// All askers below this number are served.
    served: tokio::sync::Mutex<u64>,
}

impl Groups {
    /// Wraps what the node started.
    pub fn new(consensus: Consensus, store: Store, partitions: u32) -> Self {
        Self {
            consensus,
            store,
            partitions,
            barrier: Barrier::default(),
            spread: AtomicU64::new(rand::random()),
        }
    }

    /// Recipients that wait in the queues that this node leads, by class, and the arrival of the oldest entry of each. Told by
    /// leaders only, so that the sum over all nodes counts each entry once.
    pub fn queue_totals(&self) -> BTreeMap<QueueClass, (u64, Option<Timestamp>)> {
        let all = [QueueClass::Local, QueueClass::Remote, QueueClass::Bad, QueueClass::Held];
        let mut totals: BTreeMap<_, (u64, Option<Timestamp>)> = all.map(|class| (class, (0, None))).into();
        for group in self.consensus.led_groups().into_iter().filter(|group| *group != DIRECTORY) {
            let Reply::QueueCounts(counts) = self.store.query(group.0, &Query::QueueCounts) else { continue };
            for (class, recipients, oldest) in counts {
                let total = totals.entry(class).or_default();
                total.0 += recipients;
                total.1 = [total.1, oldest].into_iter().flatten().min();
            }
        }
        totals
    }

    /// Messages to mailing lists in the partitions that this node leads: those that wait for a moderator, and those on their way
    /// to the members. Told by leaders only, as [`Groups::queue_totals`].
    pub fn list_totals(&self) -> (u64, u64) {
        let led = self.consensus.led_groups().into_iter().filter(|group| *group != DIRECTORY);
        let counts = led.filter_map(|group| self.store.list_posts(group.0).ok());
        counts.fold((0, 0), |sum, (held, expanding)| (sum.0 + held, sum.1 + expanding))
    }

    /// The directory as this node's replica has it.
    pub fn directory(&self) -> Directory {
        self.store.directory()
    }

    /// Returns once this node's replica of the directory has everything that was acknowledged before the call. What
    /// is refused because the directory does not know it is looked up again after this: the replica may lag a little
    /// behind a change that its maker already knows to be made.
    pub async fn directory_is_current(&self) -> Result<(), QueryFailure> {
        let asked = self.barrier.asked.fetch_add(1, Ordering::SeqCst);
        let wait = async {
            let mut served = self.barrier.served.lock().await;
            if *served > asked {
                return Ok(());
            }
            let serves = self.barrier.asked.load(Ordering::SeqCst);
            let current = self.consensus.catch_up(DIRECTORY, DIRECTORY_WITHIN).await;
            current.map_err(|error| QueryFailure::Unavailable(error.to_string()))?;
            *served = serves;
            Ok(())
        };
        tokio::time::timeout(DIRECTORY_WITHIN, wait).await.unwrap_or_else(|_| {
            Err(QueryFailure::Unavailable("the directory did not answer in time".to_owned()))
        })
    }

    /// Proposes a command and waits until a majority has it on disk and it is applied. A body that is too large for one
    /// command goes before it in chunks; proposed again under its id, the command is applied once all the same.
    pub async fn propose(
        &self,
        group: GroupId,
        id: CommandId,
        op: Op,
        body: Bytes,
        within: Duration,
    ) -> Result<Applied, CommandFailure> {
        if body.len() <= CHUNK_BYTES {
            return self.propose_one(group, id, op, body, within).await;
        }
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        let upload = UploadId(rand::random());
        let count = body.len().div_ceil(CHUNK_BYTES);
        let chunks = (0u32..).zip((0..count).map(|n| {
            let start = n * CHUNK_BYTES;
            body.slice(start..(start + CHUNK_BYTES).min(body.len()))
        }));
        let send = |(number, chunk)| {
            let op = Op::Chunk { upload, number };
            self.propose_one(group, random_command(), op, chunk, left())
        };
        futures::stream::iter(chunks)
            .map(send)
            .buffer_unordered(CHUNKS_UNDER_WAY)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
            .map_err(|error| CommandFailure::Unavailable(error.to_string()))?;
        let chunks = u32::try_from(count).expect("a body has fewer than 2^32 chunks");
        let op = Op::WithUpload { upload, chunks, op: Box::new(op) };
        match self.propose_one(group, id, op, Bytes::new(), left()).await {
            Err(CommandFailure::Refused(refusal @ Refusal::Incomplete)) => {
                Err(CommandFailure::Unavailable(refusal.to_string()))
            }
            other => other,
        }
    }

    async fn propose_one(
        &self,
        group: GroupId,
        id: CommandId,
        op: Op,
        body: Bytes,
        within: Duration,
    ) -> Result<Applied, CommandFailure> {
        let command = Command { id, at: now(), op, body }.encode();
        // Boxed: the compiler cannot see through all that lies below, and callers nest this future deeply.
        let answer = self.consensus.propose(group, command, within).boxed().await.map_err(unavailable)?;
        let outcome =
            decode_outcome(&answer).map_err(|error| CommandFailure::Unavailable(error.to_string()))?;
        Ok(outcome?)
    }

    /// Reads what was acknowledged before the call.
    pub async fn query(
        &self,
        group: GroupId,
        query: &Query,
        within: Duration,
    ) -> Result<Reply, QueryFailure> {
        let answer = self.consensus.query(group, query.encode(), within).boxed().await;
        let answer = answer.map_err(|error| QueryFailure::Unavailable(error.to_string()))?;
        match Reply::decode(&answer) {
            Ok(Reply::Unreadable(reason)) => Err(QueryFailure::Unreadable(reason)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(QueryFailure::Unavailable(error.to_string())),
        }
    }

    /// The group of a partition.
    pub fn group(partition: PartitionId) -> GroupId {
        GroupId(partition.0)
    }

    /// All partitions.
    pub fn partitions(&self) -> impl Iterator<Item = GroupId> + use<> {
        (1..=self.partitions).map(GroupId)
    }

    /// Where a message is queued: in turn over the partitions that this node leads, because then it is written by the
    /// node that will deliver it; over all when it leads none.
    pub fn queue_partition(&self) -> GroupId {
        let turn = self.spread.fetch_add(1, Ordering::Relaxed);
        let led: Vec<GroupId> =
            self.consensus.led_groups().into_iter().filter(|group| *group != DIRECTORY).collect();
        let count = if led.is_empty() { u64::from(self.partitions) } else { led.len() as u64 };
        let chosen = u32::try_from(turn % count).expect("there are fewer than 2^32 partitions");
        led.get(chosen as usize).copied().unwrap_or(GroupId(chosen + 1))
    }
}

fn unavailable(error: ProposeError) -> CommandFailure {
    CommandFailure::Unavailable(error.to_string())
}

/// This node's clock, which goes into commands.
pub fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// A command that nobody will propose again.
pub fn random_command() -> CommandId {
    CommandId(rand::random())
}

/// A new queue entry's name.
pub fn random_queue_id() -> QueueId {
    QueueId(rand::random())
}
