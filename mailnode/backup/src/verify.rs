//! Verification: whether everything that backups refer to is there, and as it was written.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use crate::{
    BackupId, GroupManifest, Manifest, PackId, Repository, RepositoryError,
    archive::RunInfo,
    format::{BlobRef, BodyRun, GroupRoot, Hash, Place, RunEntry, decode},
    pack,
    seal::Kind,
};

/// Packs and runs of the archive that are read at once; each pack is 16 MiB.
const PACKS_AT_ONCE: usize = 3;

/// What is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All backups and the archive.
    All,
    /// One backup.
    Backup(BackupId),
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Manifests, roots, state and tables of bodies; packs of bodies are only looked up.
    Structure,
    /// And so many percent of all packs, chosen at random, in full.
    Sample {
        /// 0 to 100.
        percent: u8,
    },
    /// And every byte of every pack and of the archive.
    Full,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Packs and runs that were read in full.
    pub objects: u64,
    /// How many there will be.
    pub total_objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How many there will be.
    pub total_bytes: u64,
}

/// A bad object, and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object's name, below the prefix.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Whom it touches; nobody when no backup relies upon it.
    pub touches: Vec<Touched>,
}

/// What a bad object means for a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touched {
    /// Which backup.
    pub backup: BackupId,
    /// Which group.
    pub group: u32,
    /// Messages, bodies of messages, or parts of long ones that cannot be restored for it.
    pub messages: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Backups that were verified.
    pub backups: u64,
    /// Packs that they refer to.
    pub packs: u64,
    /// Packs and runs of the archive that were read in full.
    pub read_objects: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Bad objects, by name.
    pub damage: Vec<Damage>,
}

impl Findings {
    /// Whether nothing is damaged.
    pub fn is_good(&self) -> bool {
        self.damage.is_empty()
    }
}

impl Repository {
    /// Verifies backups. Packs that turn out to be damaged are marked, so that the next backup stores anew what it needs of
    /// them.
    ///
    /// # Errors
    /// What keeps the repository from being read at all; damage is no error but a finding.
    pub async fn verify(
        &self,
        which: Which,
        depth: Depth,
        progress: impl Fn(VerifyProgress) + Send + Sync,
    ) -> Result<Findings, RepositoryError> {
        self.within_deadline(async {
            let _kept = self.keep("a verification").await;
            let mut verifying = Verifying {
                repository: self,
                bad: BTreeMap::new(),
                missing: HashSet::new(),
                read: HashSet::new(),
                good: HashSet::new(),
            };
            let manifests = verifying.manifests(&which).await?;
            let mut packs = BTreeMap::new();
            for used in manifests.iter().flat_map(Manifest::packs) {
                packs.insert(used.pack, used.bytes);
            }
            let there = self.pack_sizes().await?;
            for (pack, bytes) in &packs {
                match there.get(pack) {
                    Some(found) if found == bytes => {}
                    Some(found) => {
                        verifying.bad_pack(*pack, format!("it has {found} bytes instead of {bytes}"))
                    }
                    None => {
                        verifying.missing.insert(*pack);
                        verifying.bad_pack(*pack, "it is missing".to_owned());
                    }
                }
            }
            let chosen: Vec<_> =
                packs.iter().filter(|(pack, _)| !verifying.is_bad(**pack) && depth.reads()).collect();
            let runs =
                if depth == Depth::Full && which == Which::All { self.all_runs().await? } else { Vec::new() };
            let told = Told::new(&progress, &chosen, &runs);
            verifying.packs(&chosen, &told).await?;
            verifying.runs(runs, &told).await?;
            verifying.shipped().await?;
            for manifest in &manifests {
                for group in &manifest.groups {
                    verifying.group(manifest, group).await?;
                }
                verifying.resources(manifest).await?;
            }
            verifying.mark().await?;
            let now = told.now();
            Ok(Findings {
                backups: manifests.len() as u64,
                packs: packs.len() as u64,
                read_objects: now.objects,
                read_bytes: now.bytes,
                damage: verifying.damage(),
            })
        })
        .await
    }

    async fn all_runs(&self) -> Result<Vec<RunInfo>, RepositoryError> {
        let found = self.0.objects.list("archive/").await?;
        Ok(found.iter().filter_map(|listed| RunInfo::from_object(&listed.name, listed.bytes)).collect())
    }
}

impl Depth {
    /// Whether the next pack is read in full.
    fn reads(self) -> bool {
        match self {
            Self::Structure => false,
            Self::Sample { percent } => rand::random_range(0..100) < percent,
            Self::Full => true,
        }
    }
}

struct Told<'a, P> {
    tell: &'a P,
    objects: AtomicU64,
    bytes: AtomicU64,
    total: (u64, u64),
}

impl<'a, P: Fn(VerifyProgress)> Told<'a, P> {
    fn new(tell: &'a P, packs: &[(&PackId, &u64)], runs: &[RunInfo]) -> Self {
        let bytes = packs.iter().map(|(_, bytes)| **bytes).sum::<u64>()
            + runs.iter().map(|run| run.bytes).sum::<u64>();
        let total = ((packs.len() + runs.len()) as u64, bytes);
        Self { tell, objects: AtomicU64::new(0), bytes: AtomicU64::new(0), total }
    }

    fn now(&self) -> VerifyProgress {
        let (total_objects, total_bytes) = self.total;
        let (objects, bytes) = (self.objects.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        VerifyProgress { objects, total_objects, bytes, total_bytes }
    }

    fn add(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (self.tell)(self.now());
    }
}

/// A bad object: what is wrong by place in it (none: all of it), and what that means.
#[derive(Default)]
struct Bad {
    whole: Option<String>,
    blobs: BTreeMap<u32, String>,
    touches: BTreeMap<(BackupId, u32), u64>,
}

struct Verifying<'a> {
    repository: &'a Repository,
    bad: BTreeMap<String, Bad>,
    /// Packs that are not there.
    missing: HashSet<PackId>,
    /// Packs that were read in full.
    read: HashSet<PackId>,
    /// Roots, chunks and runs that were read.
    good: HashSet<BlobRef>,
}

impl Verifying<'_> {
    async fn manifests(&mut self, which: &Which) -> Result<Vec<Manifest>, RepositoryError> {
        match which {
            Which::Backup(id) => match self.repository.manifest(id).await {
                Ok(manifest) => Ok(vec![manifest]),
                Err(error) if error.is_damage() => {
                    self.bad.entry(id.object()).or_default().whole = Some(error.to_string());
                    Ok(Vec::new())
                }
                Err(error) => Err(error),
            },
            Which::All => {
                let (manifests, unreadable) = self.repository.manifests().await?;
                for bad in unreadable {
                    self.bad.entry(format!("backups/{}", bad.id)).or_default().whole = Some(bad.reason);
                }
                Ok(manifests)
            }
        }
    }

    fn bad_pack(&mut self, pack: PackId, what: String) {
        self.bad.entry(pack.object()).or_default().whole = Some(what);
    }

    /// Whether the whole pack is bad.
    fn is_bad(&self, pack: PackId) -> bool {
        self.bad.get(&pack.object()).is_some_and(|bad| bad.whole.is_some())
    }

    async fn packs<P: Fn(VerifyProgress)>(
        &mut self,
        packs: &[(&PackId, &u64)],
        told: &Told<'_, P>,
    ) -> Result<(), RepositoryError> {
        let repository = self.repository;
        let read = |(pack, bytes): &(&PackId, &u64)| {
            let (pack, bytes) = (**pack, **bytes);
            async move {
                let object = match repository.0.objects.get(&pack.object()).await {
                    Ok(object) => object,
                    Err(error) if error.is_damage() => return Ok((pack, bytes, Err(error))),
                    Err(error) => return Err(error),
                };
                let checking = repository.clone();
                let checked =
                    tokio::task::spawn_blocking(move || pack::check(&checking.0.keys, pack, &object)).await;
                match checked {
                    Ok(checked) => Ok((pack, bytes, checked)),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        };
        let mut reads =
            stream::iter(packs.iter().map(read).collect::<Vec<_>>()).buffer_unordered(PACKS_AT_ONCE);
        while let Some((pack, bytes, checked)) = reads.try_next().await? {
            told.add(bytes);
            match checked {
                Ok(checked) if checked.bad.is_empty() => {}
                Ok(checked) => self.bad.entry(pack.object()).or_default().blobs.extend(checked.bad),
                Err(error) => self.bad_pack(pack, error.to_string()),
            }
            self.read.insert(pack);
        }
        Ok(())
    }

    async fn runs<P: Fn(VerifyProgress)>(
        &mut self,
        runs: Vec<RunInfo>,
        told: &Told<'_, P>,
    ) -> Result<(), RepositoryError> {
        let repository = self.repository;
        let read = |run: RunInfo| async move {
            let read = repository.read_archive_run(&run).await;
            (run, read)
        };
        let mut reads = stream::iter(runs).map(read).buffer_unordered(PACKS_AT_ONCE);
        while let Some((run, read)) = reads.next().await {
            told.add(run.bytes);
            let read = read.and_then(|plain| {
                crate::archive::commands(&run, &plain).try_for_each(|command| command.map(drop))
            });
            match read {
                Ok(()) => {}
                Err(error) if error.is_damage() => {
                    self.bad.entry(run.object()).or_default().whole = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What nodes told of the archive.
    async fn shipped(&mut self) -> Result<(), RepositoryError> {
        let found = self.repository.0.objects.list("archive/").await?;
        for listed in found.into_iter().filter(|listed| crate::archive::is_shipped(&listed.name)) {
            match self.repository.read_shipped(&listed.name).await {
                Ok(_) => {}
                Err(error) if error.is_damage() => {
                    self.bad.entry(listed.name).or_default().whole = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn group(&mut self, manifest: &Manifest, group: &GroupManifest) -> Result<(), RepositoryError> {
        let Some(blob) = group.root else { return Ok(()) };
        let touched = (manifest.id.clone(), group.group);
        let root = match self.check(Kind::Root, &blob).await? {
            Err(what) => Err(what),
            Ok(()) => self.read(Kind::Root, &blob).await?.and_then(|plain| {
                decode::<GroupRoot>(&blob.pack.object(), &plain).map_err(|error| error.to_string())
            }),
        };
        let root = match root {
            Ok(root) => root,
            Err(what) => {
                self.touch(&blob, what, &touched, group.counts.messages);
                return Ok(());
            }
        };
        for chunk in &root.chunks {
            let blob = self.blob(&root, chunk.hash, chunk.at, manifest)?;
            if let Err(what) = self.check(Kind::Chunk, &blob).await? {
                self.touch(&blob, what, &touched, chunk.messages.into());
            }
        }
        for run in &root.runs {
            self.run(manifest, &root, run, &touched).await?;
        }
        Ok(())
    }

    async fn run(
        &mut self,
        manifest: &Manifest,
        root: &GroupRoot,
        entry: &RunEntry,
        touched: &(BackupId, u32),
    ) -> Result<(), RepositoryError> {
        let blob = self.blob(root, entry.hash, entry.at, manifest)?;
        let uses_bad = entry.uses.iter().any(|(pack, _)| {
            root.packs.get(*pack as usize).is_none_or(|pack| self.bad.contains_key(&pack.id.object()))
        });
        if !uses_bad {
            if let Err(what) = self.check(Kind::Run, &blob).await? {
                self.touch(&blob, what, touched, entry.bodies.into());
            }
            return Ok(());
        }
        let run = self.read(Kind::Run, &blob).await?.and_then(|plain| {
            decode::<BodyRun>(&blob.pack.object(), &plain).map_err(|error| error.to_string())
        });
        match run {
            Ok(run) => {
                for blob in run.bodies.iter().filter_map(|body| run.blob(body)) {
                    if let Some(bad) = self.bad.get_mut(&blob.pack.object())
                        && (bad.whole.is_some() || bad.blobs.contains_key(&blob.offset))
                    {
                        *bad.touches.entry(touched.clone()).or_default() += 1;
                    }
                }
            }
            Err(what) => self.touch(&blob, what, touched, entry.bodies.into()),
        }
        Ok(())
    }

    async fn resources(&mut self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let Some(resources) = &manifest.resources else { return Ok(()) };
        if let Err(what) = self.check(Kind::Resources, &resources.blob).await? {
            self.touch(&resources.blob, what, &(manifest.id.clone(), 0), 0);
        }
        Ok(())
    }

    fn blob(
        &self,
        root: &GroupRoot,
        hash: Hash,
        at: Place,
        manifest: &Manifest,
    ) -> Result<BlobRef, RepositoryError> {
        root.blob(hash, at).ok_or_else(|| {
            RepositoryError::damaged(manifest.id.object(), "a root names a pack that is not in its table")
        })
    }

    /// Whether a blob can be read; one in a pack that was read in full is known.
    async fn check(&mut self, kind: Kind, blob: &BlobRef) -> Result<Result<(), String>, RepositoryError> {
        if let Some(bad) = self.bad.get(&blob.pack.object())
            && let Some(what) = bad.whole.as_ref().or_else(|| bad.blobs.get(&blob.offset))
        {
            return Ok(Err(what.clone()));
        }
        if self.read.contains(&blob.pack) || self.good.contains(blob) {
            return Ok(Ok(()));
        }
        Ok(self.read(kind, blob).await?.map(drop))
    }

    async fn read(&mut self, kind: Kind, blob: &BlobRef) -> Result<Result<Bytes, String>, RepositoryError> {
        match self.repository.read_blob(kind, blob).await {
            Ok(plain) => {
                self.good.insert(*blob);
                Ok(Ok(plain))
            }
            Err(error) if error.is_damage() => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn touch(&mut self, blob: &BlobRef, what: String, touched: &(BackupId, u32), messages: u64) {
        let bad = self.bad.entry(blob.pack.object()).or_default();
        if bad.whole.is_none() {
            bad.blobs.entry(blob.offset).or_insert(what);
        }
        *bad.touches.entry(touched.clone()).or_default() += messages;
    }

    /// Marks bad packs that are there, and takes the mark off those that turned out to be good.
    async fn mark(&self) -> Result<(), RepositoryError> {
        for pack in self.repository.damaged_packs().await? {
            if self.read.contains(&pack) && !self.bad.contains_key(&pack.object()) {
                self.repository.0.objects.delete(&format!("damaged/{pack}")).await?;
            }
        }
        let bad = self.bad.keys().filter_map(|object| PackId::from_object(object));
        for pack in bad.filter(|pack| !self.missing.contains(pack)) {
            self.repository.0.objects.put(&format!("damaged/{pack}"), Bytes::new()).await?;
        }
        Ok(())
    }

    fn damage(self) -> Vec<Damage> {
        let damage = |(object, bad): (String, Bad)| {
            let Bad { whole, blobs, touches } = bad;
            let what = whole.unwrap_or_else(|| blobs.into_values().collect::<Vec<_>>().join("; "));
            let touched = |((backup, group), messages)| Touched { backup, group, messages };
            Damage { object, what, touches: touches.into_iter().map(touched).collect() }
        };
        self.bad.into_iter().map(damage).collect()
    }
}
