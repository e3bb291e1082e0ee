//! Restores: a backup is loaded into a store in a temporary directory, read logically, and put where it is wanted: into a
//! cluster through the admin services of its mailnodes, or into files.
//!
//! Every step can be repeated: accounts that are there are left alone, a message that is there is not added again, and one
//! that was restored and deleted since does not come back. So a restore that was interrupted is run again, and goes on.
//!
//! [`choose`] says which backup, [`scope`] what of it goes where, [`walk`] reads; [`accounts`], [`cluster`], [`lists`] and
//! [`queue`] write into a cluster, [`files`] into Maildirs and mboxes.

mod accounts;
mod choose;
mod cluster;
pub mod files;
mod lists;
mod queue;
mod scope;
mod verify;
mod walk;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use futures::StreamExt as _;
use parking_lot::Mutex;
use quorumail_backup::{BackupId, LoadedBackup, Manifest, Repository, RepositoryConfig, RepositoryError};
use quorumail_store::{Store, StoreError, Timestamp};

use self::{scope::Parts, walk::Budget};
use crate::admin::{AdminClient, AdminError};

pub(crate) use self::choose::of_one_cluster;
pub use self::scope::Scope;
pub(super) use self::walk::joined;

/// Mailboxes that are restored at a time.
const MAILBOXES_AT_ONCE: usize = 4;
/// Problems that are told one by one; more are only counted.
const MAX_PROBLEMS: usize = 1000;

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The newest; with a point in time, the newest that was complete then.
    Latest,
    /// By its name.
    Backup(String),
}

/// What is to be restored, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// From which backup.
    pub which: Which,
    /// Of which cluster, by name or uid; needed where the repository has backups of several.
    pub cluster: Option<String>,
    /// As everything was at this instant; needs an archive.
    pub until: Option<Timestamp>,
    /// What of it.
    pub scope: Scope,
    /// Address of another mailbox that takes it, for the scopes mailbox and folder.
    pub into: Option<String>,
    /// Folder under which everything comes; none: under the names that it had, with its UIDs.
    pub prefix: Option<String>,
    /// Whether domains, mailboxes and mailing lists that are missing are made.
    pub accounts: bool,
    /// Whether those that are made are of no use to anybody: without log-in, without mail in or out, and without a quota that
    /// could keep mail from coming back. For rehearsals.
    pub locked: bool,
    /// Whether queue entries come back, held. Scope cluster only.
    pub queue: bool,
    /// Whether every message is read back and compared.
    pub verify: bool,
    /// Where the index of the backup may be put meanwhile; none: where the system has temporary files.
    pub scratch: Option<PathBuf>,
}

impl RestoreRequest {
    /// Everything of the newest backup, in place.
    pub fn everything() -> Self {
        Self {
            which: Which::Latest,
            cluster: None,
            until: None,
            scope: Scope::Cluster,
            into: None,
            prefix: None,
            accounts: true,
            locked: false,
            queue: true,
            verify: false,
            scratch: None,
        }
    }
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Mailboxes that are done.
    pub mailboxes_done: u64,
    /// All of them.
    pub mailboxes: u64,
    /// Messages that were looked at.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// All messages.
    pub total_messages: u64,
    /// Bytes of all messages.
    pub total_bytes: u64,
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// From which backup.
    pub backup: String,
    /// Domains that were made.
    pub domains: u64,
    /// Mailboxes that were made.
    pub accounts: u64,
    /// Mailing lists that were made.
    pub lists: u64,
    /// Mailboxes, and archives of mailing lists, whose mail was restored.
    pub mailboxes: u64,
    /// Folders that were looked at.
    pub folders: u64,
    /// Messages that were added.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that were there already, or were there once since.
    pub already_there: u64,
    /// Queue entries that were added, held.
    pub queued: u64,
    /// Messages to mailing lists that were added; they wait for a moderator.
    pub posts: u64,
    /// Addresses that joined or left a mailing list by mail, or whose mail came back, and of which the list knew nothing.
    pub remembered: u64,
    /// Messages that were read back and are equal; none when that was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<u64>,
    /// How long it took.
    pub seconds: f64,
    /// What is not restored, and why.
    pub problems: Vec<String>,
    /// Number of problems, those that are not told one by one as well.
    pub problem_count: u64,
}

/// Why nothing more is restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The repository, the key, or a point in time that it does not reach.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The mailnodes do not answer, or refuse.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// What was loaded cannot be read.
    #[error("the backup cannot be read: {0}")]
    Store(#[from] StoreError),
    /// There is nothing to restore from.
    #[error("the repository has no backup{0}; `quorumail backup list` shows which there are")]
    NoBackup(String),
    /// Several clusters were backed up to one repository.
    #[error("the repository has backups of several clusters; say which is meant: {0}")]
    Ambiguous(String),
    /// The backup does not have it.
    #[error("backup {backup} has no {what}")]
    NotThere {
        /// Which backup.
        backup: String,
        /// What was looked for.
        what: String,
    },
    /// The request contradicts itself.
    #[error("{0}")]
    Request(String),
    /// The cluster lacks what is needed to put it.
    #[error("{0}")]
    Target(String),
    /// The repository stopped answering.
    #[error("bodies cannot be read from the repository any more: {0}; run the restore again, and it goes on")]
    Unreadable(String),
    /// The local disk.
    #[error("failed to {action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// The answer.
        source: std::io::Error,
    },
}

impl RestoreError {
    /// The reason in one word, for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Repository(error) => error.reason(),
            Self::Admin(_) => "MailnodesFailed",
            Self::Store(_) => "Damaged",
            Self::NoBackup(_) => "NoBackup",
            Self::Ambiguous(_) => "Ambiguous",
            Self::NotThere { .. } => "NotInBackup",
            Self::Request(_) => "BadRequest",
            Self::Target(_) => "TargetMissing",
            Self::Unreadable(_) => "Unreachable",
            Self::Io { .. } => "LocalDisk",
        }
    }
}

/// A backup that is open for reading. Its index lies in a temporary directory that goes with it.
struct Opened {
    manifest: Manifest,
    loaded: LoadedBackup,
    repository: Repository,
    scratch: Option<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Opened {
    /// Opens the directory of the backup that is asked for.
    async fn new(config: &RepositoryConfig, request: &RestoreRequest) -> Result<Self, RestoreError> {
        let repository = Repository::open(config.clone()).await?;
        let manifest = choose::choose(&repository, request).await?;
        Self::load(repository, manifest, &[0], request.until, request.scratch.clone()).await
    }

    async fn load(
        repository: Repository,
        manifest: Manifest,
        groups: &[u32],
        until: Option<Timestamp>,
        scratch: Option<PathBuf>,
    ) -> Result<Self, RestoreError> {
        let dir = match &scratch {
            Some(path) => tempfile::tempdir_in(path),
            None => tempfile::tempdir(),
        };
        let dir = dir.map_err(|source| RestoreError::Io {
            action: "make a temporary directory for the backup's index".to_owned(),
            source,
        })?;
        let loaded = repository.load(&manifest, groups, until, dir.path()).await?;
        Ok(Self { manifest, loaded, repository, scratch, _dir: dir })
    }

    /// The same backup with other groups.
    async fn with_groups(&self, groups: &[u32], until: Option<Timestamp>) -> Result<Self, RestoreError> {
        let (repository, manifest) = (self.repository.clone(), self.manifest.clone());
        Self::load(repository, manifest, groups, until, self.scratch.clone()).await
    }

    fn store(&self) -> &Store {
        self.loaded.store()
    }

    fn id(&self) -> &BackupId {
        &self.manifest.id
    }
}

/// Adds up what is done, and tells it.
struct Tally<'p> {
    tell: &'p (dyn Fn(RestoreProgress) + Send + Sync),
    progress: Mutex<RestoreProgress>,
    restored: Mutex<Restored>,
    verified: AtomicU64,
}

impl<'p> Tally<'p> {
    fn new(tell: &'p (dyn Fn(RestoreProgress) + Send + Sync), parts: &Parts) -> Self {
        let progress = RestoreProgress { mailboxes: parts.mailboxes.len() as u64, ..Default::default() };
        Self { tell, progress: Mutex::new(progress), restored: Mutex::default(), verified: AtomicU64::new(0) }
    }

    fn expect(&self, messages: u64, bytes: u64) {
        let mut progress = self.progress.lock();
        progress.total_messages += messages;
        progress.total_bytes += bytes;
    }

    fn looked_at(&self, messages: u64, bytes: u64) {
        let now = {
            let mut progress = self.progress.lock();
            progress.messages += messages;
            progress.bytes += bytes;
            *progress
        };
        (self.tell)(now);
    }

    fn mailbox_done(&self) {
        self.restored.lock().mailboxes += 1;
        let now = {
            let mut progress = self.progress.lock();
            progress.mailboxes_done += 1;
            *progress
        };
        (self.tell)(now);
    }

    fn add(&self, add: impl FnOnce(&mut Restored)) {
        add(&mut self.restored.lock());
    }

    fn verified(&self, messages: u64) {
        self.verified.fetch_add(messages, Relaxed);
    }

    fn problem(&self, text: String) {
        let mut restored = self.restored.lock();
        restored.problem_count += 1;
        if restored.problems.len() < MAX_PROBLEMS {
            restored.problems.push(text);
        }
    }

    fn finish(self, backup: &BackupId, begun: Instant, verify: bool) -> Restored {
        let mut restored = self.restored.into_inner();
        restored.backup = backup.to_string();
        restored.seconds = begun.elapsed().as_secs_f64();
        restored.verified = verify.then(|| self.verified.load(Relaxed));
        restored
    }
}

/// The name of the backup that a request means.
///
/// # Errors
/// When there is none, or it cannot be told which one is meant.
pub async fn choose(repository: &RepositoryConfig, request: &RestoreRequest) -> Result<String, RestoreError> {
    let repository = Repository::open(repository.clone()).await?;
    Ok(choose::choose(&repository, request).await?.id.to_string())
}

/// Restores into a cluster; `progress` is called as it goes on.
///
/// # Errors
/// When nothing more can be done; what was restored until then stays, and the next run goes on. What lies in single
/// messages, folders or mailboxes is no error but a problem in the answer.
pub async fn restore(
    admin: &AdminClient,
    repository: &RepositoryConfig,
    request: &RestoreRequest,
    progress: &(dyn Fn(RestoreProgress) + Send + Sync),
) -> Result<Restored, RestoreError> {
    let begun = Instant::now();
    request.scope.check(request)?;
    let directory = Opened::new(repository, request).await?;
    let parts = Arc::new(scope::parts(directory.store(), directory.id(), request)?);
    let tally = Tally::new(progress, &parts);
    accounts::restore(admin, &parts, request, &tally).await?;
    let with_queue = request.queue && request.scope == Scope::Cluster;
    let groups = parts.groups(with_queue.then_some(&directory.manifest));
    if groups.is_empty() {
        return Ok(tally.finish(directory.id(), begun, request.verify));
    }
    let opened = directory.with_groups(&groups, request.until).await?;
    for damage in opened.loaded.damage() {
        tally.problem(format!("{} is damaged: {}", damage.object, damage.what));
    }
    walk::count(opened.store(), &parts, &tally, &request.scope, opened.id()).await?;
    let budget = Budget::new();
    let mut mailboxes = futures::stream::iter(0..parts.mailboxes.len())
        // By number: a closure over what is borrowed would keep the whole from being Send.
        .map(|part| {
            let part = &parts.mailboxes[part];
            cluster::restore_mailbox(admin, opened.store(), part, request, &budget, &tally)
        })
        .buffer_unordered(MAILBOXES_AT_ONCE);
    while let Some(done) = mailboxes.next().await {
        done?;
    }
    drop(mailboxes);
    lists::restore(admin, opened.store(), &parts.lists, &tally).await?;
    if with_queue {
        queue::restore(admin, opened.store(), &groups, &tally).await?;
    }
    Ok(tally.finish(opened.id(), begun, request.verify))
}
