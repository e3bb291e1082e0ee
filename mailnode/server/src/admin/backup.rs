//! Backups: this node's replica of a group goes straight into the repository, and queue entries of a backup come back.
//!
//! Whoever asks decides which node backs up which group, and writes the backup's manifest once all groups are done. When
//! the caller goes away the work here ends, and what was uploaded is referred to by nothing: the next backup finds it, or
//! a prune removes it. Credentials live as long as the call.

use std::{
    mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quorumail_backup::{
    BackupKey, GroupManifest, Limits, Location, Progress, Repository, RepositoryConfig, RepositoryError, S3,
    Source, take_group,
};
use quorumail_consensus::{GroupId, applied_index};
use quorumail_message::Address;
use quorumail_proto::admin::{
    self, BackupGroupProgress, BackupGroupRequest, BackupRepository, RestoreQueueEntryRequest,
    backup_repository,
};
use quorumail_store::{Op, QueueClass, QueueEntry, QueueRecipient, Refusal, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{WITHIN, failed};
use crate::groups::{self, CommandFailure, Groups};

/// Groups that a node backs up at a time: they take its disk and its network from mail.
const AT_ONCE: usize = 2;
/// For the replica here to have what was acknowledged before the call.
const CURRENT_WITHIN: Duration = Duration::from_secs(10);
/// Between two messages to the caller, which show it that the node lives.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Messages to the caller that may wait.
const UNTOLD: usize = 4;
/// Largest message of a queue entry that is put back: what `smtp.maxMessageSize` allows at most.
const MAX_QUEUED: usize = 256 << 20;

/// What a caller is told.
pub(super) type Told = ReceiverStream<Result<BackupGroupProgress, Status>>;

/// Bounds and counts the backups that this node makes.
pub struct Backups {
    slots: Arc<Semaphore>,
    totals: Totals,
}

/// For the metrics.
#[derive(Debug, Default)]
pub struct Totals {
    /// Groups backed up.
    pub succeeded: AtomicU64,
    /// Groups whose backup failed, or whose caller went away.
    pub failed: AtomicU64,
    /// Bytes uploaded, after compression.
    pub uploaded_bytes: AtomicU64,
}

impl Default for Backups {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(AT_ONCE)), totals: Totals::default() }
    }
}

impl Backups {
    /// What was done since the start.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Groups being backed up now.
    pub fn running(&self) -> usize {
        AT_ONCE.saturating_sub(self.slots.available_permits())
    }

    /// Begins the backup of a group; its end and all before it is told through the stream. `cluster` is the one that
    /// this node belongs to.
    pub(super) async fn begin(
        self: &Arc<Self>,
        groups: &Arc<Groups>,
        cluster: &str,
        request: BackupGroupRequest,
        stop: CancellationToken,
    ) -> Result<Told, Status> {
        if request.cluster != cluster {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {cluster}, not to {:?}",
                request.cluster
            )));
        }
        let group = GroupId(request.group);
        if !groups.consensus.holds(group) {
            return Err(Status::not_found(format!("this node has no replica of group {}", group.0)));
        }
        let parent = match request.parent.as_slice() {
            [] => None,
            bytes => Some(GroupManifest::decode(bytes).map_err(|error| refused(&error))?),
        };
        let config = repository(request.repository)?;
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("this node backs up {AT_ONCE} groups already"))
        })?;
        let current = tokio::time::timeout(CURRENT_WITHIN, groups.consensus.catch_up(group, CURRENT_WITHIN));
        match current.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(Status::unavailable(format!("the replica is not current: {error}")));
            }
            Err(_) => return Err(Status::unavailable("the replica did not become current in time")),
        }
        let (tell, told) = mpsc::channel(UNTOLD);
        let job = Job {
            backups: Arc::clone(self),
            groups: Arc::clone(groups),
            cluster: cluster.to_owned(),
            group,
            parent,
            config,
            _slot: slot,
        };
        tokio::spawn(job.run(tell, stop));
        Ok(ReceiverStream::new(told))
    }
}

/// The backup of one group.
struct Job {
    backups: Arc<Backups>,
    groups: Arc<Groups>,
    cluster: String,
    group: GroupId,
    parent: Option<GroupManifest>,
    config: RepositoryConfig,
    _slot: OwnedSemaphorePermit,
}

impl Job {
    async fn run(self, tell: mpsc::Sender<Result<BackupGroupProgress, Status>>, stop: CancellationToken) {
        let (progress, seen) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        // However this ends: what still reads for it notices.
        let _cancelled = cancel.clone().drop_guard();
        let tick = tell_regularly(&tell, seen);
        let outcome = tokio::select! {
            biased;
            () = tell.closed() => Err(None),
            () = stop.cancelled() => Err(Some(Status::unavailable("this node is being stopped"))),
            () = tick => Err(None),
            taken = self.take(progress, cancel) => taken.map_err(|error| Some(refused(&error))),
        };
        let totals = &self.backups.totals;
        match outcome {
            Ok(manifest) => {
                totals.succeeded.fetch_add(1, Relaxed);
                totals.uploaded_bytes.fetch_add(manifest.uploaded_bytes, Relaxed);
                let done = BackupGroupProgress {
                    messages: manifest.counts.messages,
                    bytes: manifest.counts.body_bytes,
                    uploaded_bytes: manifest.uploaded_bytes,
                    total_bytes: manifest.counts.body_bytes,
                    done: manifest.encode(),
                };
                // The caller may have gone away at the last moment.
                let _ = tell.send(Ok(done)).await;
            }
            Err(status) => {
                totals.failed.fetch_add(1, Relaxed);
                let reason = status.as_ref().map_or("the caller went away", |status| status.message());
                tracing::warn!(group = self.group.0, reason, "a backup of a group was not finished");
                if let Some(status) = status {
                    let _ = tell.send(Err(status)).await;
                }
            }
        }
    }

    async fn take(
        &self,
        progress: watch::Sender<Progress>,
        cancel: CancellationToken,
    ) -> Result<GroupManifest, RepositoryError> {
        let repository = Repository::open(self.config.clone()).await?;
        let source = Source {
            store: &self.groups.store,
            group: self.group.0,
            cluster_uid: &self.cluster,
            log_index: applied_index,
        };
        let tell = move |now| {
            progress.send_replace(now);
        };
        take_group(&repository, source, self.parent.as_ref(), tell, cancel).await
    }
}

/// Tells the caller how far it is, until the caller is gone.
async fn tell_regularly(
    tell: &mpsc::Sender<Result<BackupGroupProgress, Status>>,
    seen: watch::Receiver<Progress>,
) {
    let mut every = tokio::time::interval(TELL_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let now = *seen.borrow();
        let message = BackupGroupProgress {
            messages: now.messages,
            bytes: now.bytes,
            uploaded_bytes: now.uploaded_bytes,
            total_bytes: now.total_bytes,
            done: Vec::new(),
        };
        if tell.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

/// What the caller is told of a failure. `DATA_LOSS` means that another replica may do better, `UNAVAILABLE` that another
/// node or a later try may, and `FAILED_PRECONDITION` that none will.
fn refused(error: &RepositoryError) -> Status {
    let text = error.to_string();
    match error {
        RepositoryError::StoreFailed(_) => Status::data_loss(text),
        RepositoryError::Unreachable { .. } | RepositoryError::StorageFailed { .. } => {
            Status::unavailable(text)
        }
        RepositoryError::DeadlineExceeded { .. } => Status::deadline_exceeded(text),
        RepositoryError::Cancelled => Status::cancelled(text),
        _ => Status::failed_precondition(text),
    }
}

pub(super) fn repository(given: Option<BackupRepository>) -> Result<RepositoryConfig, Status> {
    let missing = |what| Status::invalid_argument(format!("the request names no {what}"));
    let given = given.ok_or_else(|| missing("repository"))?;
    let location = match given.location.ok_or_else(|| missing("place of the repository"))? {
        backup_repository::Location::S3(s3) => Location::S3(S3 {
            endpoint: s3.endpoint,
            bucket: s3.bucket,
            prefix: s3.prefix,
            region: s3.region,
            access_key: s3.access_key,
            secret_key: s3.secret_key,
            force_path_style: s3.path_style,
            ca_pem: (!s3.ca_pem.is_empty()).then(|| s3.ca_pem.into_bytes()),
        }),
        backup_repository::Location::Directory(directory) => {
            let path = PathBuf::from(directory);
            if !path.is_absolute() {
                return Err(Status::invalid_argument("the directory of a repository needs an absolute path"));
            }
            Location::Directory(path)
        }
    };
    let defaults = Limits::default();
    let limits = Limits {
        bytes_per_second: (given.bytes_per_second > 0).then_some(given.bytes_per_second),
        retry_for: match given.retry_seconds {
            0 => defaults.retry_for,
            seconds => Duration::from_secs(seconds.into()),
        },
        ..defaults
    };
    let key = BackupKey::parse(&given.key).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(RepositoryConfig { location, key, limits })
}

/// Puts a queue entry back with all its recipients held; whether it was not there.
pub(super) async fn restore_queue_entry(
    groups: &Groups,
    mut stream: Streaming<RestoreQueueEntryRequest>,
) -> Result<bool, Status> {
    let mut first =
        stream.message().await?.ok_or_else(|| Status::invalid_argument("the request is empty"))?;
    let entry = first.entry.ok_or_else(|| Status::invalid_argument("the first message has no entry"))?;
    let body = rest_of(mem::take(&mut first.body), stream, |more| more.body).await?;
    // Where it was: there an entry that never went is found again. Of a cluster with more partitions, always the same.
    let group = GroupId(1 + entry.partition.saturating_sub(1) % groups.partitions);
    let entry = held(entry, first.eight_bit, groups::now())?;
    let command = groups::random_command();
    match groups.propose(group, command, Op::Enqueue(entry), body, WITHIN).await {
        Ok(_) => Ok(true),
        Err(CommandFailure::Refused(Refusal::AlreadyExists(_))) => Ok(false),
        Err(failure) => Err(failed(failure)),
    }
}

/// A body whose first piece came already.
pub(super) async fn rest_of<T>(
    first: Vec<u8>,
    mut stream: Streaming<T>,
    piece: impl Fn(T) -> Vec<u8>,
) -> Result<Bytes, Status> {
    let mut body = BytesMut::from(&first[..]);
    while let Some(more) = stream.message().await? {
        let more = piece(more);
        if body.len() + more.len() > MAX_QUEUED {
            return Err(Status::invalid_argument(format!("the message has more than {MAX_QUEUED} bytes")));
        }
        body.extend_from_slice(&more);
    }
    Ok(body.freeze())
}

/// The entry, with every recipient waiting for a person.
fn held(entry: admin::QueueEntry, eight_bit: bool, now: Timestamp) -> Result<QueueEntry, Status> {
    let address = |text: &str| -> Result<Address, Status> {
        text.parse().map_err(|error| Status::invalid_argument(format!("{text:?}: {error}")))
    };
    let id =
        entry.id.parse().map_err(|_| Status::invalid_argument(format!("{:?} is no queue id", entry.id)))?;
    let recipients = entry.recipients.iter().map(|recipient| {
        Ok(QueueRecipient {
            address: address(&recipient.address)?,
            class: QueueClass::Held,
            attempts: recipient.attempts,
            next_attempt: now,
            last_error: recipient.last_error.chars().take(1000).collect(),
        })
    });
    Ok(QueueEntry {
        id,
        reverse_path: match entry.reverse_path.as_str() {
            "" => None,
            text => Some(address(text)?),
        },
        recipients: recipients.collect::<Result<_, Status>>()?,
        arrived: Timestamp(entry.arrived_at),
        // The store puts in the length of the body.
        size: 0,
        eight_bit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(recipients: &[&str]) -> admin::QueueEntry {
        let recipients = recipients.iter().map(|address| admin::QueueRecipient {
            address: (*address).to_owned(),
            class: admin::QueueClass::Remote.into(),
            attempts: 3,
            last_error: "451 later".to_owned(),
            ..Default::default()
        });
        admin::QueueEntry {
            id: groups::random_queue_id().to_string(),
            recipients: recipients.collect(),
            arrived_at: 5,
            ..Default::default()
        }
    }

    #[test]
    fn a_queue_entry_comes_back_held_whatever_it_waited_for() {
        let given = entry(&["a@remote.example", "b@remote.example"]);
        let back = held(given.clone(), true, Timestamp(9)).unwrap();
        assert_eq!((back.id.to_string(), back.arrived, back.eight_bit), (given.id, Timestamp(5), true));
        assert_eq!(back.reverse_path, None);
        assert!(back.recipients.iter().all(|r| r.class == QueueClass::Held && r.attempts == 3));
        assert!(held(entry(&["nobody"]), false, Timestamp(9)).is_err());
    }

    #[test]
    fn a_repository_is_understood_or_refused_before_anything_is_done() {
        let given = |location| BackupRepository {
            location,
            key: b"correct horse battery staple".to_vec(),
            ..Default::default()
        };
        let directory = |path: &str| Some(backup_repository::Location::Directory(path.to_owned()));
        assert!(repository(None).is_err() && repository(Some(given(None))).is_err());
        assert!(repository(Some(given(directory("relative")))).is_err());
        let config = repository(Some(given(directory("/backups")))).unwrap();
        assert_eq!(config.location.to_string(), "/backups");
        let short = BackupRepository { key: b"short".to_vec(), ..given(directory("/backups")) };
        let error = repository(Some(short)).unwrap_err();
        assert!(error.message().contains("20 characters"), "{error}");
    }
}
