//! Making a backup: every group on some replica, the manifest last. Without it there is no backup: a run that fails or is
//! dropped leaves pieces that the next run may use, and that a prune removes.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use quorumail_backup::{
    Cluster, GroupManifest, Lease, Location, Manifest, ManifestDraft, Repository, RepositoryConfig,
    RepositoryError, Trigger,
};
use quorumail_proto::admin::{
    BackupGroupProgress, BackupGroupRequest, BackupRepository, ClusterStatus, S3Location, backup_repository,
};
use quorumail_store::Timestamp;
use tokio::time::{Instant, timeout};

use super::plan::{MAX_ATTEMPTS, NoReplica, Schedule, replicas};
use crate::admin::{AdminClient, AdminError, GroupFailure};

/// Time that a run may take when nothing else is asked.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Groups backed up at a time over the cluster when nothing else is asked.
const GROUPS_AT_ONCE: usize = 8;
/// Before a group is tried again: a node that was killed is back in seconds, and its groups have other leaders.
const PAUSE: Duration = Duration::from_secs(2);
/// For giving the lease back; it expires otherwise.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// How a backup is made.
#[derive(Debug, Clone)]
pub struct TakeOptions {
    /// Who asked for it; stands in the manifest.
    pub trigger: Trigger,
    /// Name of the MailCluster, for people.
    pub cluster_name: String,
    /// Its namespace.
    pub namespace: String,
    /// For the whole run.
    pub deadline: Duration,
    /// Bytes a second that each group's backup may upload; zero: no bound.
    pub bytes_per_second: u64,
    /// Groups at a time over the cluster; a node makes at most [`PER_NODE`](super::plan::PER_NODE).
    pub groups_at_once: usize,
    /// Kubernetes resources that belong to it.
    pub resources: Option<Vec<u8>>,
}

impl Default for TakeOptions {
    fn default() -> Self {
        Self {
            trigger: Trigger::Manual(String::new()),
            cluster_name: String::new(),
            namespace: String::new(),
            deadline: DEADLINE,
            bytes_per_second: 0,
            groups_at_once: GROUPS_AT_ONCE,
            resources: None,
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TakeProgress {
    /// Groups that are done.
    pub groups_done: u32,
    /// All groups.
    pub groups: u32,
    /// Messages that were looked at.
    pub messages: u64,
    /// Bytes of bodies that were looked at.
    pub bytes: u64,
    /// Bytes uploaded, after deduplication and compression.
    pub uploaded_bytes: u64,
    /// Bytes of all bodies, as far as they are known.
    pub total_bytes: u64,
}

/// A backup that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its name in the repository.
    pub id: String,
    /// When the run began; everything acknowledged before is in it.
    pub started: Timestamp,
    /// When the manifest was written.
    pub finished: Timestamp,
    /// Groups in it, the directory counted.
    pub groups: u32,
    /// Mailboxes in it.
    pub mailboxes: u64,
    /// Messages in it.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Bytes that had to be uploaded.
    pub uploaded_bytes: u64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The mailnodes do not answer.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A group has no replica.
    #[error(transparent)]
    NoReplica(#[from] NoReplica),
    /// A group could not be backed up on any of its replicas.
    #[error("group {group} could not be backed up: {reason}")]
    Group {
        /// Which one.
        group: u32,
        /// The last failure.
        reason: String,
    },
    /// The run took longer than it may.
    #[error("the backup was not complete after {} s ({groups_done} of {groups} groups); give it a longer deadline or a higher rate, or look for the mailnode or connection that is slow", deadline.as_secs())]
    Deadline {
        /// What it was given.
        deadline: Duration,
        /// Groups that were done.
        groups_done: u32,
        /// All groups.
        groups: u32,
    },
    /// The mailnodes do not say which cluster they are.
    #[error(
        "the mailnodes do not tell the name of their cluster; update them to the version of this program"
    )]
    NoCluster,
}

impl TakeError {
    /// The reason in one word, for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repository(error) => error.reason(),
            Self::Admin(_) => "Unreachable",
            Self::NoReplica(_) => "NoReplica",
            Self::Group { .. } => "GroupFailed",
            Self::Deadline { .. } => "DeadlineExceeded",
            Self::NoCluster => "NodesTooOld",
        }
    }
}

/// Makes a backup of the cluster; `progress` is called a few times a second.
///
/// # Errors
/// When it is not complete: then there is none.
pub async fn take(
    admin: &AdminClient,
    repository: &RepositoryConfig,
    options: &TakeOptions,
    progress: &(dyn Fn(TakeProgress) + Send + Sync),
) -> Result<Taken, TakeError> {
    let meter = Meter::new(progress);
    let mut lease = None;
    let run = within(admin, repository, options, &meter, &mut lease);
    let outcome = timeout(options.deadline, run).await.unwrap_or_else(|_| {
        let TakeProgress { groups_done, groups, .. } = meter.now();
        Err(TakeError::Deadline { deadline: options.deadline, groups_done, groups })
    });
    if let Some(lease) = lease {
        // Others wait for its end otherwise.
        let _ = timeout(RELEASE_WITHIN, lease.release()).await;
    }
    outcome
}

async fn within(
    admin: &AdminClient,
    config: &RepositoryConfig,
    options: &TakeOptions,
    meter: &Meter<'_>,
    lease: &mut Option<Lease>,
) -> Result<Taken, TakeError> {
    let repository = Repository::create_or_open(config.clone()).await?;
    let status = admin.cluster_status().await?;
    if status.cluster.is_empty() {
        return Err(TakeError::NoCluster);
    }
    let lease = lease.insert(repository.lease(&holder(options)).await?);
    let parent = repository.newest(&status.cluster).await?;
    let started = now();
    let groups = run_groups(admin, config, options, meter, &status, parent.as_ref()).await?;
    let resources = match &options.resources {
        Some(resources) => Some(repository.store_resources(resources).await?),
        None => None,
    };
    let mut taken = taken(started, &groups);
    let draft = ManifestDraft {
        cluster: Cluster {
            name: options.cluster_name.clone(),
            namespace: options.namespace.clone(),
            uid: status.cluster,
        },
        started,
        parent: parent.map(|parent| parent.id),
        trigger: options.trigger.clone(),
        groups,
        resources,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    taken.id = repository.finish(draft, lease).await?.to_string();
    taken.finished = now();
    Ok(taken)
}

fn taken(started: Timestamp, groups: &[GroupManifest]) -> Taken {
    let sum = |of: fn(&GroupManifest) -> u64| groups.iter().map(of).sum();
    Taken {
        id: String::new(),
        started,
        finished: started,
        groups: u32::try_from(groups.len()).unwrap_or(u32::MAX),
        mailboxes: sum(|group| group.counts.mailboxes),
        messages: sum(|group| group.counts.messages),
        bytes: sum(|group| group.counts.body_bytes),
        uploaded_bytes: sum(|group| group.uploaded_bytes),
    }
}

type Attempt<'a> = Pin<Box<dyn Future<Output = (u32, u64, Result<Vec<u8>, GroupFailure>)> + Send + 'a>>;

async fn run_groups(
    admin: &AdminClient,
    config: &RepositoryConfig,
    options: &TakeOptions,
    meter: &Meter<'_>,
    status: &ClusterStatus,
    parent: Option<&Manifest>,
) -> Result<Vec<GroupManifest>, TakeError> {
    let groups = replicas(status)?;
    meter.begin(&groups.iter().map(|group| group.group).collect::<Vec<_>>(), parent);
    let target = wire(config, options.bytes_per_second);
    let request = |group: u32| BackupGroupRequest {
        repository: Some(target.clone()),
        group,
        parent: parent
            .and_then(|parent| parent.groups.iter().find(|known| known.group == group))
            .map(GroupManifest::encode)
            .unwrap_or_default(),
        cluster: status.cluster.clone(),
    };
    let mut schedule = Schedule::new(groups, options.groups_at_once);
    let mut not_before: BTreeMap<u32, Instant> = BTreeMap::new();
    let mut running: FuturesUnordered<Attempt<'_>> = FuturesUnordered::new();
    let mut finished = Vec::new();
    loop {
        while let Some((group, node)) = schedule.begin() {
            let (request, not_before) = (request(group), not_before.get(&group).copied());
            running.push(Box::pin(async move {
                if let Some(instant) = not_before {
                    tokio::time::sleep_until(instant).await;
                }
                let index = usize::try_from(node).unwrap_or(usize::MAX);
                let tell = |told: &BackupGroupProgress| meter.set(group, told);
                (group, node, admin.backup_group(index, request, &tell).await)
            }));
        }
        let Some((group, node, outcome)) = running.next().await else { break };
        match outcome {
            Ok(bytes) => {
                schedule.done(group, node);
                finished.push(GroupManifest::decode(&bytes)?);
                meter.done(group);
            }
            Err(GroupFailure::Everywhere(reason)) => return Err(TakeError::Group { group, reason }),
            Err(GroupFailure::Here(reason)) => {
                tracing::warn!(group, node, reason, "a group was not backed up");
                if !schedule.failed(group, node) {
                    let reason = format!("tried {MAX_ATTEMPTS} times; the last time, {reason}");
                    return Err(TakeError::Group { group, reason });
                }
                not_before.insert(group, Instant::now() + PAUSE);
            }
        }
    }
    assert!(schedule.is_done(), "what waits is begun as soon as a node has room");
    finished.sort_by_key(|group: &GroupManifest| group.group);
    Ok(finished)
}

/// What the nodes are told of the repository.
pub(super) fn wire(config: &RepositoryConfig, bytes_per_second: u64) -> BackupRepository {
    let location = match &config.location {
        Location::S3(s3) => backup_repository::Location::S3(S3Location {
            endpoint: s3.endpoint.clone(),
            bucket: s3.bucket.clone(),
            prefix: s3.prefix.clone(),
            region: s3.region.clone(),
            access_key: s3.access_key.clone(),
            secret_key: s3.secret_key.clone(),
            path_style: s3.force_path_style,
            ca_pem: s3.ca_pem.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned(),
        }),
        Location::Directory(path) => backup_repository::Location::Directory(path.display().to_string()),
    };
    BackupRepository {
        location: Some(location),
        key: config.key.to_text().into_bytes(),
        bytes_per_second,
        retry_seconds: u32::try_from(config.limits.retry_for.as_secs()).unwrap_or(u32::MAX),
    }
}

/// Shown to those who find the repository in use.
fn holder(options: &TakeOptions) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let what = match &options.trigger {
        Trigger::Policy(name) => format!("a backup of BackupPolicy {name}"),
        Trigger::Manual(name) if name.is_empty() => "a backup".to_owned(),
        Trigger::Manual(name) => format!("backup {name}"),
        Trigger::Rehearsal(name) => format!("rehearsal {name}"),
    };
    format!("{what} (process {} on {})", std::process::id(), host.as_deref().unwrap_or("an unnamed host"))
}

pub(super) fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// Adds up what the groups tell.
struct Meter<'p> {
    tell: &'p (dyn Fn(TakeProgress) + Send + Sync),
    groups: Mutex<BTreeMap<u32, GroupMeter>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct GroupMeter {
    is_done: bool,
    messages: u64,
    bytes: u64,
    uploaded_bytes: u64,
    total_bytes: u64,
}

impl<'p> Meter<'p> {
    fn new(tell: &'p (dyn Fn(TakeProgress) + Send + Sync)) -> Self {
        Self { tell, groups: Mutex::default() }
    }

    /// Until a group tells how large it is, it is taken to be as large as in the parent.
    fn begin(&self, groups: &[u32], parent: Option<&Manifest>) {
        let size = |group: u32| {
            let known = parent?.groups.iter().find(|known| known.group == group)?;
            Some(known.counts.body_bytes)
        };
        let meter =
            |group: &u32| GroupMeter { total_bytes: size(*group).unwrap_or(0), ..GroupMeter::default() };
        *self.groups.lock() = groups.iter().map(|group| (*group, meter(group))).collect();
        (self.tell)(self.now());
    }

    fn set(&self, group: u32, told: &BackupGroupProgress) {
        if let Some(meter) = self.groups.lock().get_mut(&group) {
            meter.messages = told.messages;
            meter.bytes = told.bytes;
            meter.uploaded_bytes = told.uploaded_bytes;
            if told.total_bytes > 0 {
                meter.total_bytes = told.total_bytes;
            }
        }
        (self.tell)(self.now());
    }

    fn done(&self, group: u32) {
        if let Some(meter) = self.groups.lock().get_mut(&group) {
            meter.is_done = true;
        }
        (self.tell)(self.now());
    }

    fn now(&self) -> TakeProgress {
        let groups = self.groups.lock();
        let mut sum =
            TakeProgress { groups: u32::try_from(groups.len()).unwrap_or(u32::MAX), ..Default::default() };
        for group in groups.values() {
            sum.groups_done += u32::from(group.is_done);
            sum.messages += group.messages;
            sum.bytes += group.bytes;
            sum.uploaded_bytes += group.uploaded_bytes;
            sum.total_bytes += group.total_bytes.max(group.bytes);
        }
        sum
    }
}
