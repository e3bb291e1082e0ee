//! What a backup knows already: the blobs of the backup that it is made against.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::{
    GroupManifest, PackId, Repository, RepositoryError,
    format::{BlobRef, BodyRun, ChunkEntry, GroupRoot, Hash, RunEntry, decode},
    seal::Kind,
};

/// Of a pack that the parent refers to less than so many percent of, live blobs are stored anew, so that it can go.
const SHARED_PERCENT: u64 = 30;
/// Hashes of bodies that are remembered; about 100 bytes each.
const KNOWN_BODIES: usize = 500_000;
/// The parent's newest runs, whose bodies are remembered before the first new one is stored.
const RUNS_REMEMBERED: usize = 16;

/// The parent of a group's backup.
pub(crate) struct Parent {
    pub(crate) root: GroupRoot,
    pub(crate) root_blob: BlobRef,
    /// Length of each pack that may be referred to again.
    packs: HashMap<PackId, u64>,
    chunks: HashMap<Hash, usize>,
}

impl Parent {
    /// None when the parent is of no use: of another cluster or group, from a later state, or unreadable.
    pub(crate) async fn read(
        repository: &Repository,
        parent: &GroupManifest,
        (cluster_uid, group, log_index): (&str, u32, u64),
    ) -> Result<Option<Self>, RepositoryError> {
        if parent.cluster_uid != cluster_uid || parent.group != group || parent.log_index > log_index {
            return Ok(None);
        }
        let Some(root_blob) = parent.root else { return Ok(None) };
        let packs = usable_packs(repository, parent).await?;
        let root = match repository.read_blob(Kind::Root, &root_blob).await {
            Ok(plain) => decode::<GroupRoot>(&root_blob.pack.object(), &plain),
            Err(error) => Err(error),
        };
        let root = match root {
            Ok(root) => root,
            Err(error) if error.is_damage() => {
                tracing::warn!(group, %error, "the backup before cannot be read; all is stored anew");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let chunks = root.chunks.iter().enumerate().map(|(number, chunk)| (chunk.hash, number)).collect();
        Ok(Some(Self { root, root_blob, packs, chunks }))
    }

    /// The length of a pack that may be referred to again.
    pub(crate) fn pack_bytes(&self, pack: PackId) -> Option<u64> {
        self.packs.get(&pack).copied()
    }

    /// The parent's blob of a chunk, when it may be used again.
    pub(crate) fn chunk(&self, hash: &Hash) -> Option<(&ChunkEntry, BlobRef)> {
        let chunk = &self.root.chunks[*self.chunks.get(hash)?];
        Some((chunk, self.usable(self.root.blob(chunk.hash, chunk.at)?)?))
    }

    /// The parent's run of a range.
    pub(crate) fn run(&self, range: u64) -> Option<&RunEntry> {
        let found = self.root.runs.binary_search_by_key(&range, |run| run.range).ok()?;
        Some(&self.root.runs[found])
    }

    /// The run's blob, when it may be used again.
    pub(crate) fn run_blob(&self, run: &RunEntry) -> Option<BlobRef> {
        self.usable(self.root.blob(run.hash, run.at)?)
    }

    /// Whether all packs that hold bodies of the run may be used again.
    pub(crate) fn may_share(&self, run: &RunEntry) -> bool {
        run.uses.iter().all(|(pack, _)| {
            self.root.packs.get(*pack as usize).is_some_and(|pack| self.packs.contains_key(&pack.id))
        })
    }

    pub(crate) fn usable(&self, blob: BlobRef) -> Option<BlobRef> {
        self.packs.contains_key(&blob.pack).then_some(blob)
    }

    /// A run's bodies; none when it cannot be read, so that they are stored anew.
    pub(crate) async fn read_run(
        &self,
        repository: &Repository,
        run: &RunEntry,
    ) -> Result<Option<BodyRun>, RepositoryError> {
        let Some(blob) = self.root.blob(run.hash, run.at) else { return Ok(None) };
        let read = match repository.read_blob(Kind::Run, &blob).await {
            Ok(plain) => decode(&blob.pack.object(), &plain),
            Err(error) => Err(error),
        };
        match read {
            Ok(run) => Ok(Some(run)),
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "a part of the backup before cannot be read; its bodies are stored anew");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The bodies that are most likely to come again.
    pub(crate) async fn newest_bodies(
        &self,
        repository: &Repository,
        known: &mut KnownBodies,
    ) -> Result<(), RepositoryError> {
        for entry in self.root.runs.iter().rev().take(RUNS_REMEMBERED) {
            if let Some(run) = self.read_run(repository, entry).await? {
                for body in &run.bodies {
                    if let Some(blob) = run.blob(body).and_then(|blob| self.usable(blob)) {
                        known.remember(blob);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The packs of the parent that are there, whole as far as is known, and referred to well enough.
async fn usable_packs(
    repository: &Repository,
    parent: &GroupManifest,
) -> Result<HashMap<PackId, u64>, RepositoryError> {
    let there = repository.pack_sizes().await?;
    let damaged: HashSet<PackId> = repository.damaged_packs().await?;
    let usable = parent.packs.iter().filter(|used| {
        there.get(&used.pack) == Some(&used.bytes)
            && !damaged.contains(&used.pack)
            && used.live_bytes.saturating_mul(100) >= used.bytes.saturating_mul(SHARED_PERCENT)
    });
    Ok(usable.map(|used| (used.pack, used.bytes)).collect())
}

/// Bodies by content, the oldest forgotten first.
#[derive(Default)]
pub(crate) struct KnownBodies {
    blobs: HashMap<Hash, BlobRef>,
    order: VecDeque<Hash>,
}

impl KnownBodies {
    pub(crate) fn get(&self, hash: &Hash) -> Option<BlobRef> {
        self.blobs.get(hash).copied()
    }

    pub(crate) fn remember(&mut self, blob: BlobRef) {
        if self.blobs.insert(blob.hash, blob).is_none() {
            self.order.push_back(blob.hash);
        }
        while self.order.len() > KNOWN_BODIES {
            if let Some(oldest) = self.order.pop_front() {
                self.blobs.remove(&oldest);
            }
        }
    }
}
