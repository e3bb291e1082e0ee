//! Leases: who may write to the repository, and who may remove from it.
//!
//! A holder writes an object under `locks/`, then looks which others are there; of two that exclude each other at least
//! one sees the other. Only the clock of the object store counts: a lock is dead when it is older than one written just
//! now by more than [`LEASE`]. A holder writes its lock anew long before. One that was too late has lost it for good, for
//! others may have begun since; a machine that slept has been late as well.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use crate::{Repository, RepositoryError, objects::Listed};

/// A holder that gave no sign for so long is taken to be dead.
pub const LEASE: Duration = Duration::from_secs(15 * 60);
/// How often a holder gives a sign.
const RENEWAL: Duration = Duration::from_secs(2 * 60);
/// A holder that could not give a sign stops so long before others take it to be dead.
const MARGIN: Duration = Duration::from_secs(2 * 60);
/// For a reader to put up its lock.
const KEEP_WITHIN: Duration = Duration::from_secs(10);
/// Longest name of a holder that is shown.
const MAX_HOLDER: usize = 200;

/// Who excludes whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseKind {
    /// Makes a backup; many at once.
    Shared,
    /// Removes things; alone.
    Exclusive,
}

#[derive(Serialize, Deserialize)]
struct Lock {
    holder: String,
}

/// The right to write to a repository, or to remove from it; until dropped.
pub struct Lease {
    held: Arc<Held>,
    renewal: tokio::task::JoinHandle<()>,
}

struct Held {
    repository: Repository,
    object: String,
    content: Bytes,
    /// When the lock was last written.
    sign: Mutex<Sign>,
}

/// An instant by two clocks: one stands still while the machine sleeps, the other may be set.
#[derive(Debug, Clone, Copy)]
struct Sign {
    monotonic: Instant,
    wall: SystemTime,
}

impl Sign {
    fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// Whether nobody else takes its giver to be dead.
    fn is_fresh(&self) -> bool {
        let valid = LEASE - MARGIN;
        // A clock that was set back tells nothing.
        let was_late = self.wall.elapsed().is_ok_and(|since| since >= valid);
        self.monotonic.elapsed() < valid && !was_late
    }
}

impl Repository {
    /// Takes the right to make a backup; renewed in the background until dropped.
    ///
    /// # Errors
    /// [`RepositoryError::Busy`] while a prune runs.
    pub async fn lease(&self, holder: &str) -> Result<Lease, RepositoryError> {
        self.take_lease(LeaseKind::Shared, holder).await
    }

    /// Keeps what is read from being removed meanwhile, where that can be: a restore must be possible from a store that is
    /// full or may only be read, and beside the lock of a prune that died.
    pub(crate) async fn keep(&self, holder: &str) -> Option<Lease> {
        let lease = tokio::time::timeout(KEEP_WITHIN, self.lease(holder)).await;
        let error = match lease {
            Ok(Ok(lease)) => return Some(lease),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took longer than {KEEP_WITHIN:?}"),
        };
        tracing::warn!(error, "a prune cannot be kept away: see to it that none runs until this has ended");
        None
    }

    pub(crate) async fn take_lease(&self, kind: LeaseKind, holder: &str) -> Result<Lease, RepositoryError> {
        let prefix = kind.prefix();
        let object = format!("{prefix}{:032x}", rand::random::<u128>());
        let lock = Lock { holder: holder.chars().take(MAX_HOLDER).collect() };
        let content = serde_json::to_vec(&lock).expect("a lock is plain JSON").into();
        let sign = Mutex::new(Sign::now());
        let held = Arc::new(Held { repository: self.clone(), object, content, sign });
        held.renew().await?;
        if let Err(error) = self.check_conflicts(kind, &held.object).await {
            // Failing that, it goes with time.
            let _ = self.0.objects.delete(&held.object).await;
            return Err(error);
        }
        let renewal = tokio::spawn(renew_regularly(Arc::clone(&held)));
        Ok(Lease { held, renewal })
    }

    async fn check_conflicts(&self, kind: LeaseKind, own: &str) -> Result<(), RepositoryError> {
        let locks = self.0.objects.list("locks/").await?;
        let now = locks.iter().find(|lock| lock.name == own).ok_or(RepositoryError::LeaseLost)?.modified;
        for Listed { name, modified, .. } in &locks {
            if name == own {
                continue;
            }
            let age = Duration::from_millis(u64::try_from(now.0 - modified.0).unwrap_or(0));
            if age >= LEASE {
                self.0.objects.delete(name).await?;
            } else if kind == LeaseKind::Exclusive || name.starts_with(LeaseKind::Exclusive.prefix()) {
                let content = self.0.objects.get(name).await.unwrap_or_default();
                let holder =
                    serde_json::from_slice(&content).map_or_else(|_| name.clone(), |lock: Lock| lock.holder);
                let holder = holder.chars().take(MAX_HOLDER).collect();
                return Err(RepositoryError::Busy { holder, seconds: (LEASE - age).as_secs() });
            }
        }
        Ok(())
    }
}

impl LeaseKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Shared => "locks/shared-",
            Self::Exclusive => "locks/exclusive-",
        }
    }
}

impl Held {
    async fn renew(&self) -> Result<(), RepositoryError> {
        let asked = Sign::now();
        if !self.is_valid() {
            return Err(RepositoryError::LeaseLost);
        }
        self.repository.0.objects.put(&self.object, self.content.clone()).await?;
        let mut sign = self.sign.lock();
        // The writing itself may have taken too long.
        if !sign.is_fresh() {
            return Err(RepositoryError::LeaseLost);
        }
        *sign = asked;
        Ok(())
    }

    fn is_valid(&self) -> bool {
        self.sign.lock().is_fresh()
    }
}

async fn renew_regularly(held: Arc<Held>) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        if let Err(error) = held.renew().await {
            tracing::warn!(%error, "the lease on the backup repository could not be renewed");
            if matches!(error, RepositoryError::LeaseLost) {
                return;
            }
        }
    }
}

impl Lease {
    /// Whether nobody else takes us to be dead.
    pub fn is_valid(&self) -> bool {
        self.held.is_valid()
    }

    pub(crate) async fn renew(&self) -> Result<(), RepositoryError> {
        self.held.renew().await
    }

    pub(crate) fn object(&self) -> &str {
        &self.held.object
    }

    /// As if no sign had been given for so long that others may have begun.
    #[cfg(test)]
    fn lapse(&self) {
        self.held.sign.lock().wall -= LEASE;
    }

    /// Gives it back.
    pub async fn release(self) -> Result<(), RepositoryError> {
        self.renewal.abort();
        self.held.repository.0.objects.delete(&self.held.object).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        let held = Arc::clone(&self.held);
        // Without a runtime, and when this fails, it goes with time.
        if tokio::runtime::Handle::try_current().is_ok() {
            RELEASES.spawn(async move { held.repository.0.objects.delete(&held.object).await });
        }
    }
}

/// Leases that were dropped and are being given back.
static RELEASES: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Waits until leases that were dropped are given back, but not longer than so: a program that ends sooner leaves locks
/// behind, which keep others away for a quarter of an hour.
pub async fn settle(within: Duration) {
    RELEASES.close();
    if tokio::time::timeout(within, RELEASES.wait()).await.is_err() {
        tracing::warn!("a lock was left in the backup repository; it is dead in a quarter of an hour");
    }
    RELEASES.reopen();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackupKey, Cluster, Limits, Location, ManifestDraft, RepositoryConfig, Trigger};

    async fn repository(dir: &std::path::Path) -> Repository {
        let key = BackupKey::parse(b"correct horse battery staple").unwrap();
        let config = RepositoryConfig {
            location: Location::Directory(dir.to_owned()),
            key,
            limits: Limits::default(),
        };
        Repository::create_or_open(config).await.unwrap()
    }

    #[tokio::test]
    async fn a_lease_that_was_lost_does_not_come_back_and_nothing_is_written_under_it() {
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(dir.path()).await;
        let lease = repository.lease("a test").await.unwrap();
        lease.renew().await.unwrap();
        assert!(lease.is_valid());
        lease.lapse();
        assert!(!lease.is_valid());
        assert!(matches!(lease.renew().await, Err(RepositoryError::LeaseLost)));
        assert!(!lease.is_valid());
        let draft = ManifestDraft {
            cluster: Cluster { name: String::new(), namespace: String::new(), uid: "c".to_owned() },
            started: crate::format::now(),
            parent: None,
            trigger: Trigger::Manual(String::new()),
            groups: Vec::new(),
            resources: None,
            version: "0".to_owned(),
        };
        assert!(matches!(repository.finish(draft, &lease).await, Err(RepositoryError::LeaseLost)));
        assert!(repository.list().await.unwrap().backups.is_empty());
    }
}
