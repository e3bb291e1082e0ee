//! Pruning: backups that retention lets go, then what no backup refers to any more.
//!
//! Manifests go first, packs after them: killed in between, only things remain that nothing refers to, and the next prune
//! removes them. A pack that no manifest names may belong to a backup that is under way: it is left until it is old, and
//! nobody makes a backup while a prune runs.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use jiff::tz::TimeZone;
use quorumail_store::Timestamp;

use crate::{
    BackupId, BackupInfo, Lease, Manifest, PackId, Repository, RepositoryError,
    archive::{self, RunInfo},
    lease::LeaseKind,
    objects::Listed,
    repository::READS_AT_ONCE,
    retention::{self, Reason, Retention},
};

/// Packs that nothing refers to are left for so long, as a rule.
pub const PRUNE_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// What a prune did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Backups that stay, oldest first, and why.
    pub kept: Vec<(BackupId, Vec<Reason>)>,
    /// Backups that went.
    pub removed: Vec<BackupId>,
    /// Packs that went.
    pub packs: u64,
    /// Bytes of packs and of the archive that went.
    pub bytes: u64,
    /// Runs of the archive that went.
    pub archive_runs: u64,
    /// Why packs and archive were left alone: manifests that cannot be read, which may refer to them. Remove these backups,
    /// or restore the objects.
    pub held_back: Vec<String>,
}

impl Repository {
    /// Removes backups that retention lets go, and what no backup refers to. Backups that are not `wanted` here (those of
    /// another policy, those made by hand) are left alone. With `dry_run` nothing is removed. `grace` is [`PRUNE_GRACE`]
    /// outside tests.
    ///
    /// # Errors
    /// [`RepositoryError::Busy`] while a backup is made or another prune runs, and all that the repository may answer. What
    /// was removed until then stays removed; another prune goes on.
    pub async fn prune(
        &self,
        wanted: impl Fn(&BackupInfo) -> bool,
        retention: &Retention,
        zone: &TimeZone,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Pruned, RepositoryError> {
        self.within_deadline(async {
            let lease = self.take_lease(LeaseKind::Exclusive, "a prune").await?;
            let pruning = Pruning { repository: self, lease: &lease, dry_run };
            let pruned = pruning.run(wanted, retention, zone, grace).await;
            if let Err(error) = lease.release().await {
                tracing::warn!(%error, "the lock of a prune was left behind; it is dead in a quarter of an hour");
            }
            pruned
        })
        .await
    }
}

struct Pruning<'a> {
    repository: &'a Repository,
    lease: &'a Lease,
    dry_run: bool,
}

impl Pruning<'_> {
    async fn run(
        &self,
        wanted: impl Fn(&BackupInfo) -> bool,
        retention: &Retention,
        zone: &TimeZone,
        grace: Duration,
    ) -> Result<Pruned, RepositoryError> {
        let (manifests, unreadable) = self.repository.manifests().await?;
        let known: HashSet<String> = manifests
            .iter()
            .map(|manifest| manifest.id.to_string())
            .chain(unreadable.iter().map(|bad| bad.id.clone()))
            .collect();
        let mut pruned = Pruned {
            held_back: unreadable.into_iter().map(|bad| format!("{}: {}", bad.id, bad.reason)).collect(),
            ..Pruned::default()
        };
        // What was not found a moment ago and is listed again is a backup all the same.
        for Listed { name, .. } in self.repository.0.objects.list("backups/").await? {
            let id = name["backups/".len()..].to_owned();
            if !known.contains(&id) {
                pruned.held_back.push(format!("{id}: it is listed and could not be read"));
            }
        }
        let (concerned, others): (Vec<_>, Vec<_>) =
            manifests.into_iter().partition(|manifest| wanted(&manifest.info()));
        let instants: Vec<_> = concerned.iter().map(|manifest| manifest.started).collect();
        let reasons = retention::keep(&instants, retention, zone);
        let mut staying = others;
        pruned.kept.extend(staying.iter().map(|manifest| (manifest.id.clone(), vec![Reason::Unlimited])));
        let mut going = Vec::new();
        for (manifest, reasons) in concerned.into_iter().zip(reasons) {
            if reasons.is_empty() {
                pruned.removed.push(manifest.id.clone());
                going.push(manifest.id.object());
            } else {
                pruned.kept.push((manifest.id.clone(), reasons));
                staying.push(manifest);
            }
        }
        pruned.kept.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        self.remove(going).await?;
        if pruned.held_back.is_empty() {
            let now = self.repository.store_clock(self.lease).await?.ok_or(RepositoryError::LeaseLost)?;
            let grace = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
            let old_before = Timestamp(now.0.saturating_sub(grace));
            self.packs(&staying, old_before, &mut pruned).await?;
            self.archive(&staying, old_before, &mut pruned).await?;
        }
        Ok(pruned)
    }

    async fn packs(
        &self,
        staying: &[Manifest],
        old_before: Timestamp,
        pruned: &mut Pruned,
    ) -> Result<(), RepositoryError> {
        let used: HashSet<PackId> = staying.iter().flat_map(Manifest::packs).map(|used| used.pack).collect();
        let objects = &self.repository.0.objects;
        let mut going = Vec::new();
        for Listed { name, bytes, modified } in objects.list("packs/").await? {
            let Some(pack) = PackId::from_object(&name) else { continue };
            if !used.contains(&pack) && modified <= old_before {
                pruned.packs += 1;
                pruned.bytes += bytes;
                going.push(format!("damaged/{pack}"));
                going.push(name);
            }
        }
        self.remove(going).await
    }

    /// Runs that end before the oldest backup of their group that stays.
    async fn archive(
        &self,
        staying: &[Manifest],
        old_before: Timestamp,
        pruned: &mut Pruned,
    ) -> Result<(), RepositoryError> {
        let mut needed_after = BTreeMap::<(&str, u32), u64>::new();
        for group in staying.iter().flat_map(|manifest| &manifest.groups) {
            let index = needed_after.entry((&group.cluster_uid, group.group)).or_insert(u64::MAX);
            *index = group.log_index.min(*index);
        }
        let objects = &self.repository.0.objects;
        let mut going = Vec::new();
        for Listed { name, bytes, modified } in objects.list("archive/").await? {
            // Of a node that is no more; one that still ships writes it again and again.
            if archive::is_shipped(&name) && modified <= old_before {
                going.push(name);
                continue;
            }
            let Some(run) = RunInfo::from_object(&name, bytes) else { continue };
            let goes = match needed_after.get(&(run.cluster_uid.as_str(), run.group)) {
                Some(index) => run.last <= *index,
                // The cluster's first backup will hold more than this.
                None => true,
            };
            if goes && modified <= old_before {
                pruned.archive_runs += 1;
                pruned.bytes += bytes;
                going.push(name);
            }
        }
        self.remove(going).await
    }

    async fn remove(&self, names: Vec<String>) -> Result<(), RepositoryError> {
        if self.dry_run {
            return Ok(());
        }
        let remove = |name: String| async move {
            if !self.lease.is_valid() {
                return Err(RepositoryError::LeaseLost);
            }
            self.repository.0.objects.delete(&name).await
        };
        stream::iter(names).map(remove).buffer_unordered(READS_AT_ONCE).try_collect().await
    }
}
