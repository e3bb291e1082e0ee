//! Taking the backup of one group from a replica: what the backup before holds already is not read again.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use quorumail_store::{BackupReader, PairKind, Store, StoreError, StoredBody};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    Counts, GroupManifest, PackId, PackUse, Repository, RepositoryError,
    background::background,
    chunks,
    format::{
        self, BlobRef, BodyRun, ChunkEntry, GroupRoot, Hash, PackBytes, Place, RUN_BODIES, RunBody, RunEntry,
        encode,
    },
    pack::PackWriter,
    parent::{KnownBodies, Parent},
    seal::{Keys, Kind, MAX_PLAIN},
};

/// Packs that wait to be uploaded, besides the one that is: two packs are filled meanwhile, so at most four of 16 MiB are
/// in memory.
const PACKS_WAITING: usize = 1;

/// A replica of a group.
#[derive(Clone)]
pub struct Source<'a> {
    /// The node's store.
    pub store: &'a Store,
    /// Which group.
    pub group: u32,
    /// Of the cluster. Body ids are told apart by it: never the same for another cluster.
    pub cluster_uid: &'a str,
    /// The Raft log index in a position of the store; none when it is not understood.
    pub log_index: fn(&[u8]) -> Option<u64>,
}

/// How far the backup of a group is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bodies that are in it so far; a long message consists of several.
    pub messages: u64,
    /// Sum of their lengths.
    pub bytes: u64,
    /// Bytes that were uploaded for it.
    pub uploaded_bytes: u64,
    /// What `bytes` will be in the end.
    pub total_bytes: u64,
}

struct Shared<P> {
    messages: AtomicU64,
    bytes: AtomicU64,
    uploaded_bytes: AtomicU64,
    total_bytes: AtomicU64,
    tell: P,
}

impl<P: Fn(Progress)> Shared<P> {
    fn tell(&self) {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (self.tell)(Progress {
            messages: get(&self.messages),
            bytes: get(&self.bytes),
            uploaded_bytes: get(&self.uploaded_bytes),
            total_bytes: get(&self.total_bytes),
        });
    }
}

/// Backs up a group as it is now, at one position of its log. Whoever asks for it holds a [`Lease`](crate::Lease) until the
/// backup is finished. Nothing is in the repository that counts until [`Repository::finish`]; dropped or failed, it leaves
/// packs that the next prune removes.
///
/// # Errors
/// See [`RepositoryError`]: the repository's, the store's, [`RepositoryError::Cancelled`] and
/// [`RepositoryError::DeadlineExceeded`].
pub async fn take_group(
    repository: &Repository,
    source: Source<'_>,
    parent: Option<&GroupManifest>,
    progress: impl Fn(Progress) + Send + Sync + 'static,
    cancel: CancellationToken,
) -> Result<GroupManifest, RepositoryError> {
    let take = repository.within_deadline(take(repository, source, parent, progress));
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RepositoryError::Cancelled),
        taken = take => taken,
    }
}

async fn take<P: Fn(Progress) + Send + Sync + 'static>(
    repository: &Repository,
    source: Source<'_>,
    parent: Option<&GroupManifest>,
    tell: P,
) -> Result<GroupManifest, RepositoryError> {
    let shared = Arc::new(Shared {
        messages: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        uploaded_bytes: AtomicU64::new(0),
        total_bytes: AtomicU64::new(0),
        tell,
    });
    let (packs, mut finished) = mpsc::channel::<(PackId, Bytes)>(PACKS_WAITING);
    let work = {
        let (repository, shared) = (repository.clone(), Arc::clone(&shared));
        let (store, group, cluster_uid) = (source.store.clone(), source.group, source.cluster_uid.to_owned());
        let (parent, log_index, runtime) = (parent.cloned(), source.log_index, Handle::current());
        background(move || {
            let reader = store.backup(group)?;
            let applied_at = format::now();
            let position = reader.position().to_vec();
            let log_index = if position.is_empty() {
                0
            } else {
                log_index(&position)
                    .ok_or(StoreError::Damaged("the position of the group is not understood"))?
            };
            shared.total_bytes.store(reader.totals().1, Ordering::Relaxed);
            let io = Io { repository, runtime, packs };
            let parent = match &parent {
                Some(parent) => {
                    io.wait(Parent::read(&io.repository, parent, (&cluster_uid, group, log_index)))?
                }
                None => None,
            };
            let taker = Taker::new(io, reader, parent, &shared);
            let manifest = GroupManifest {
                group,
                cluster_uid,
                position,
                log_index,
                applied_at,
                root: None,
                counts: Counts::default(),
                packs: Vec::new(),
                uploaded_bytes: 0,
            };
            taker.run(manifest)
        })
    };
    while let Some((id, bytes)) = finished.recv().await {
        let len = bytes.len() as u64;
        repository.0.objects.put(&id.object(), bytes).await?;
        shared.uploaded_bytes.fetch_add(len, Ordering::Relaxed);
        shared.tell();
    }
    let mut manifest = work.await?;
    manifest.uploaded_bytes = shared.uploaded_bytes.load(Ordering::Relaxed);
    Ok(manifest)
}

/// What the thread that reads the store has of the world around it.
struct Io {
    repository: Repository,
    runtime: Handle,
    packs: mpsc::Sender<(PackId, Bytes)>,
}

impl Io {
    /// Waits for something of the repository, as long as anybody wants the backup.
    fn wait<T>(&self, work: impl Future<Output = Result<T, RepositoryError>>) -> Result<T, RepositoryError> {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.packs.closed() => Err(RepositoryError::Cancelled),
                done = work => done,
            }
        })
    }

    fn keys(&self) -> &Keys {
        &self.repository.0.keys
    }
}

/// Fills packs of one sort and hands them on.
#[derive(Default)]
struct Packer {
    open: Option<PackWriter>,
    sizes: HashMap<PackId, u64>,
}

impl Packer {
    fn add(&mut self, io: &Io, kind: Kind, hash: Hash, plain: &[u8]) -> Result<BlobRef, RepositoryError> {
        if plain.len() > MAX_PLAIN {
            let reason =
                format!("a body of {} bytes is longer than the {MAX_PLAIN} that a backup takes", plain.len());
            return Err(StoreError::Bodies(reason).into());
        }
        let writer = self.open.get_or_insert_with(|| PackWriter::new(io.keys()));
        let blob = writer.add(kind, hash, plain);
        if writer.is_full() {
            self.close(io)?;
        }
        Ok(blob)
    }

    fn close(&mut self, io: &Io) -> Result<(), RepositoryError> {
        let Some(writer) = self.open.take() else { return Ok(()) };
        let (id, bytes) = writer.finish();
        self.sizes.insert(id, bytes.len() as u64);
        // Nobody receives any more when the backup was given up.
        io.packs.blocking_send((id, bytes)).map_err(|_| RepositoryError::Cancelled)
    }
}

/// The packs that a root refers to, in order of first use.
#[derive(Default)]
struct PackTable {
    packs: Vec<(PackId, u64)>,
    numbers: HashMap<PackId, u32>,
}

impl PackTable {
    /// The pack's number, with so many more bytes of it referred to.
    fn add(&mut self, pack: PackId, live_bytes: u64) -> u32 {
        let next = u32::try_from(self.packs.len()).expect("a backup refers to fewer than 2^32 packs");
        let number = *self.numbers.entry(pack).or_insert(next);
        if number == next {
            self.packs.push((pack, 0));
        }
        self.packs[number as usize].1 += live_bytes;
        number
    }

    fn place(&mut self, blob: &BlobRef) -> Place {
        Place { pack: self.add(blob.pack, blob.len.into()), offset: blob.offset, len: blob.len }
    }
}

struct Taker<'a, P> {
    io: Io,
    reader: BackupReader,
    parent: Option<Parent>,
    shared: &'a Shared<P>,
    /// State, runs and roots: what is read first when the backup is.
    state: Packer,
    bodies: Packer,
    table: PackTable,
    known: KnownBodies,
    is_known_loaded: bool,
    root: GroupRoot,
    counts: Counts,
}

impl<'a, P: Fn(Progress)> Taker<'a, P> {
    fn new(io: Io, reader: BackupReader, parent: Option<Parent>, shared: &'a Shared<P>) -> Self {
        Self {
            io,
            reader,
            parent,
            shared,
            state: Packer::default(),
            bodies: Packer::default(),
            table: PackTable::default(),
            known: KnownBodies::default(),
            is_known_loaded: false,
            root: GroupRoot::default(),
            counts: Counts::default(),
        }
    }

    fn run(mut self, mut manifest: GroupManifest) -> Result<GroupManifest, RepositoryError> {
        if manifest.position.is_empty() {
            return Ok(manifest);
        }
        self.take_state()?;
        self.take_bodies()?;
        self.state.close(&self.io)?;
        self.bodies.close(&self.io)?;
        let root = self.take_root()?;
        manifest.root = Some(root);
        manifest.counts = self.counts;
        let uses = self.table.packs.iter();
        manifest.packs = uses
            .map(|(pack, live)| PackUse { pack: *pack, bytes: self.bytes_of(*pack), live_bytes: *live })
            .collect();
        Ok(manifest)
    }

    fn take_state(&mut self) -> Result<(), RepositoryError> {
        let (mut chunk, mut first_key, mut messages) = (Vec::new(), Vec::new(), 0);
        while let Some(pair) = self.reader.next_pair()? {
            if chunks::is_cut(self.io.keys(), chunk.len(), &pair.key, &pair.value) {
                self.add_chunk(std::mem::take(&mut first_key), &chunk, messages)?;
                chunk.clear();
                messages = 0;
            }
            if chunk.is_empty() {
                first_key.clone_from(&pair.key);
            }
            match pair.kind {
                PairKind::Mailbox => self.counts.mailboxes += 1,
                PairKind::Message => messages += 1,
                PairKind::Body(..) | PairKind::Other => {}
            }
            chunks::push(&mut chunk, &pair.key, &pair.value);
        }
        if !chunk.is_empty() {
            self.add_chunk(first_key, &chunk, messages)?;
        }
        Ok(())
    }

    fn add_chunk(&mut self, first_key: Vec<u8>, chunk: &[u8], messages: u32) -> Result<(), RepositoryError> {
        self.check_wanted()?;
        self.counts.messages += u64::from(messages);
        let hash = self.io.keys().hash(chunk);
        let blob = match self.parent.as_ref().and_then(|parent| parent.chunk(&hash)) {
            Some((_, blob)) => blob,
            None => self.state.add(&self.io, Kind::Chunk, hash, chunk)?,
        };
        let at = self.table.place(&blob);
        self.root.chunks.push(ChunkEntry { first_key, hash, at, messages });
        Ok(())
    }

    fn take_bodies(&mut self) -> Result<(), RepositoryError> {
        let mut range = Vec::<StoredBody>::new();
        while let Some(body) = self.reader.next_body()? {
            if range.first().is_some_and(|first| first.id.0 / RUN_BODIES != body.id.0 / RUN_BODIES) {
                self.add_run(&range)?;
                range.clear();
            }
            range.push(body);
        }
        if !range.is_empty() {
            self.add_run(&range)?;
        }
        Ok(())
    }

    /// The bodies of one range of ids, of which there is at least one.
    fn add_run(&mut self, bodies: &[StoredBody]) -> Result<(), RepositoryError> {
        self.check_wanted()?;
        let range = bodies[0].id.0 / RUN_BODIES;
        let ids = hash_of_ids(bodies);
        let bytes: u64 = bodies.iter().map(|body| u64::from(body.len)).sum();
        let count = u32::try_from(bodies.len()).expect("a range has few ids");
        let entry = match self.share_run(range, &ids) {
            Some(entry) => {
                self.advance(bodies.len() as u64, bytes);
                entry
            }
            None => self.store_run(range, ids, bodies)?,
        };
        self.counts.bodies += u64::from(count);
        self.counts.body_bytes += bytes;
        self.root.runs.push(entry);
        Ok(())
    }

    /// The parent's run, when it is of the same bodies and all that it refers to may be used again.
    fn share_run(&mut self, range: u64, ids: &Hash) -> Option<RunEntry> {
        let parent = self.parent.as_ref()?;
        let run = parent.run(range).filter(|run| run.ids == *ids && parent.may_share(run))?;
        let blob = parent.run_blob(run)?;
        let at = self.table.place(&blob);
        let mut uses = Vec::with_capacity(run.uses.len());
        for (pack, live) in &run.uses {
            uses.push((self.table.add(parent.root.packs[*pack as usize].id, *live), *live));
        }
        Some(RunEntry { at, uses, ..run.clone() })
    }

    fn store_run(
        &mut self,
        range: u64,
        ids: Hash,
        bodies: &[StoredBody],
    ) -> Result<RunEntry, RepositoryError> {
        let before = match &self.parent {
            Some(parent) => match parent.run(range) {
                Some(run) => self.io.wait(parent.read_run(&self.io.repository, run))?,
                None => None,
            },
            None => None,
        };
        let mut run = BodyRun::default();
        let mut table = PackTable::default();
        for body in bodies {
            let blob = match self.known_body(before.as_ref(), body) {
                Some(blob) => blob,
                None => self.store_body(body)?,
            };
            run.bodies.push(RunBody {
                id: body.id.0,
                hash: blob.hash,
                at: table.place(&blob),
                len: body.len,
            });
            self.advance(1, body.len.into());
        }
        run.packs = table.packs.iter().map(|(pack, _)| *pack).collect();
        let encoded = encode(&run);
        let hash = self.io.keys().hash(&encoded);
        let same = self.parent.as_ref().and_then(|parent| {
            parent.run(range).filter(|run| run.hash == hash).and_then(|run| parent.run_blob(run))
        });
        let blob = match same {
            Some(blob) => blob,
            None => self.state.add(&self.io, Kind::Run, hash, &encoded)?,
        };
        let at = self.table.place(&blob);
        let uses = table.packs.iter().map(|(pack, live)| (self.table.add(*pack, *live), *live)).collect();
        let count = u32::try_from(bodies.len()).expect("a range has few ids");
        Ok(RunEntry {
            range,
            hash,
            at,
            ids,
            bodies: count,
            bytes: run.bodies.iter().map(|body| u64::from(body.len)).sum(),
            uses,
        })
    }

    /// Where the parent keeps a body, when it may be used again.
    fn known_body(&self, before: Option<&BodyRun>, body: &StoredBody) -> Option<BlobRef> {
        let before = before?;
        let found = before.bodies.binary_search_by_key(&body.id.0, |known| known.id).ok()?;
        let known = before.bodies.get(found).filter(|known| known.len == body.len)?;
        self.parent.as_ref()?.usable(before.blob(known)?)
    }

    fn store_body(&mut self, body: &StoredBody) -> Result<BlobRef, RepositoryError> {
        self.check_wanted()?;
        if !std::mem::replace(&mut self.is_known_loaded, true)
            && let Some(parent) = &self.parent
        {
            self.io.wait(parent.newest_bodies(&self.io.repository, &mut self.known))?;
        }
        let bytes = self.reader.read(body)?;
        let hash = self.io.keys().hash(&bytes);
        if let Some(blob) = self.known.get(&hash) {
            return Ok(blob);
        }
        let blob = self.bodies.add(&self.io, Kind::Body, hash, &bytes)?;
        self.known.remember(blob);
        Ok(blob)
    }

    fn take_root(&mut self) -> Result<BlobRef, RepositoryError> {
        let packs = self.table.packs.iter().map(|(id, _)| PackBytes { id: *id, bytes: self.bytes_of(*id) });
        self.root.packs = packs.collect();
        let encoded = encode(&self.root);
        let hash = self.io.keys().hash(&encoded);
        let same = self.parent.as_ref().filter(|parent| parent.root_blob.hash == hash);
        let blob = match same.and_then(|parent| parent.usable(parent.root_blob)) {
            Some(blob) => blob,
            None => {
                let blob = self.state.add(&self.io, Kind::Root, hash, &encoded)?;
                self.state.close(&self.io)?;
                blob
            }
        };
        self.table.place(&blob);
        Ok(blob)
    }

    /// Length of a pack that is referred to.
    fn bytes_of(&self, pack: PackId) -> u64 {
        let new = self.state.sizes.get(&pack).or_else(|| self.bodies.sizes.get(&pack)).copied();
        let known = || self.parent.as_ref().and_then(|parent| parent.pack_bytes(pack));
        new.or_else(known).expect("a pack that is referred to is closed, or was in the parent")
    }

    fn advance(&self, bodies: u64, bytes: u64) {
        self.shared.messages.fetch_add(bodies, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.tell();
    }

    fn check_wanted(&self) -> Result<(), RepositoryError> {
        if self.io.packs.is_closed() { Err(RepositoryError::Cancelled) } else { Ok(()) }
    }
}

fn hash_of_ids(bodies: &[StoredBody]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for body in bodies {
        hasher.update(&body.id.0.to_le_bytes()).update(&body.len.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}
