//! Leases: who may write to the repository, and who may remove from it.
//!
//! A holder writes an object under `locks/`, then looks which others are there; of two that exclude each other at least
//! one sees the other. Only the clock of the object store counts: a lock is dead when it is older than one written just
//! now by more than [`LEASE`]. A holder writes its lock anew long before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{Repository, RepositoryError, objects::Listed};

/// A holder that gave no sign for so long is taken to be dead.
pub const LEASE: Duration = Duration::from_secs(15 * 60);
/// How often a holder gives a sign.
const RENEWAL: Duration = Duration::from_secs(2 * 60);
/// A holder that could not give a sign stops so long before others take it to be dead.
const MARGIN: Duration = Duration::from_secs(2 * 60);
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
    valid_until: Mutex<Instant>,
}

impl Repository {
    /// Takes the right to make a backup; renewed in the background until dropped.
    ///
    /// # Errors
    /// [`RepositoryError::Busy`] while a prune runs.
    pub async fn lease(&self, holder: &str) -> Result<Lease, RepositoryError> {
        self.take_lease(LeaseKind::Shared, holder).await
    }

    pub(crate) async fn take_lease(&self, kind: LeaseKind, holder: &str) -> Result<Lease, RepositoryError> {
        let prefix = kind.prefix();
        let object = format!("{prefix}{:032x}", rand::random::<u128>());
        let lock = Lock { holder: holder.chars().take(MAX_HOLDER).collect() };
        let content = serde_json::to_vec(&lock).expect("a lock is plain JSON").into();
        let valid_until = Mutex::new(Instant::now());
        let held = Arc::new(Held { repository: self.clone(), object, content, valid_until });
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
        let locks = self.0.objects.list_all("locks/").await?;
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
        let asked = Instant::now();
        self.repository.0.objects.put(&self.object, self.content.clone()).await?;
        *self.valid_until.lock() = asked + (LEASE - MARGIN);
        Ok(())
    }
}

async fn renew_regularly(held: Arc<Held>) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        if let Err(error) = held.renew().await {
            tracing::warn!(%error, "the lease on the backup repository could not be renewed");
        }
    }
}

impl Lease {
    /// Whether nobody else takes us to be dead.
    pub fn is_valid(&self) -> bool {
        Instant::now() < *self.held.valid_until.lock()
    }

    pub(crate) async fn renew(&self) -> Result<(), RepositoryError> {
        self.held.renew().await
    }

    pub(crate) fn object(&self) -> &str {
        &self.held.object
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
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { held.repository.0.objects.delete(&held.object).await });
        }
    }
}
