//! Loading a backup: the state of its groups into a store in a directory, with bodies that stay in the repository.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use quorumail_journal::Position;
use quorumail_store::{BodyRef, LogCommand, PairKind, StateLoader, Store, Timestamp};
use tokio::sync::mpsc;

use crate::{
    Damage, GroupManifest, Manifest, PackId, Repository, RepositoryError, Touched,
    archive::{self, Point, RunInfo},
    blocks::{Origin, RepositoryBodies},
    chunks,
    format::{BodyRun, ChunkEntry, GroupRoot, RUN_BODIES, RunEntry, decode},
    lease::Lease,
    repository::READS_AT_ONCE,
    seal::Kind,
};

/// Chunks and runs that wait to be loaded.
const WAITING: usize = 2;
/// Commands that are replayed in one step, and their bytes.
const REPLAYED_AT_ONCE: usize = 256;
const REPLAYED_BYTES: usize = 8 << 20;

/// How far the state of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Raft log index of the last entry that is in it.
    pub log_index: u64,
    /// The instant that it shows.
    pub at: Timestamp,
}

/// A backup that can be read as any store can. Bodies come from the repository when they are asked for.
pub struct LoadedBackup {
    store: Store,
    damage: Vec<Damage>,
    reached: BTreeMap<u32, Reached>,
    /// While it is read nothing of it is removed.
    _kept: Option<Lease>,
}

impl std::fmt::Debug for LoadedBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedBackup")
            .field("damage", &self.damage)
            .field("reached", &self.reached)
            .finish_non_exhaustive()
    }
}

impl LoadedBackup {
    /// The state. Its calls block on disk and network; nothing is to be applied to it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What could not be read of the state; the rest is there. Bodies that cannot be read say so when they are asked for.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// The groups that were loaded, and how far each is.
    pub fn reached(&self) -> &BTreeMap<u32, Reached> {
        &self.reached
    }
}

impl Repository {
    /// Loads groups of a backup into a directory, which must be empty or not there; all groups when none is named. With
    /// `until`, commands of the archive are applied on top, up to and including that instant.
    ///
    /// # Errors
    /// [`RepositoryError::OutsideWindow`] when the archive does not lead to `until`, and all that the repository and the
    /// store may answer. Damage in single objects is no error without `until`: see [`LoadedBackup::damage`].
    pub async fn load(
        &self,
        manifest: &Manifest,
        groups: &[u32],
        until: Option<Timestamp>,
        dir: &Path,
    ) -> Result<LoadedBackup, RepositoryError> {
        self.within_deadline(async {
            let kept = self.keep("a restore").await;
            let is_wanted = |group: &&GroupManifest| groups.is_empty() || groups.contains(&group.group);
            let wanted: Vec<&GroupManifest> = manifest.groups.iter().filter(is_wanted).collect();
            let archived = match until {
                Some(_) => {
                    let numbers = wanted.iter().map(|group| group.group).collect();
                    self.runs_of_groups(&manifest.cluster.uid, numbers).await?
                }
                None => BTreeMap::new(),
            };
            let mut chosen = Vec::new();
            for group in wanted {
                let runs = match until {
                    Some(until) => {
                        runs_until(group, archived.get(&group.group).map_or(&[], Vec::as_slice), until)?
                    }
                    None => Vec::new(),
                };
                chosen.push((group, runs));
            }
            if let Some(missing) = groups.iter().find(|wanted| manifest.group(**wanted).is_none()) {
                let reason = format!("group {missing} is not in the backup {}", manifest.id);
                return Err(RepositoryError::BadConfiguration(reason));
            }
            let bodies = Arc::new(RepositoryBodies::new(self)?);
            let store = open(dir.to_owned(), Arc::clone(&bodies)).await?;
            let mut loading = Loading {
                repository: self,
                manifest,
                store,
                bodies,
                packs: HashMap::new(),
                damage: Vec::new(),
            };
            let mut reached = BTreeMap::new();
            for (group, runs) in chosen {
                if let Some(at) = loading.group(group, runs, until).await? {
                    reached.insert(group.group, at);
                }
            }
            Ok(LoadedBackup { store: loading.store, damage: loading.damage, reached, _kept: kept })
        })
        .await
    }
}

/// The runs with commands that lead from a group's backup to an instant.
fn runs_until(
    group: &GroupManifest,
    runs: &[RunInfo],
    until: Timestamp,
) -> Result<Vec<RunInfo>, RepositoryError> {
    let from = Point { log_index: group.log_index, at: group.applied_at };
    let mut chain = archive::chain(from, runs);
    let latest = chain.iter().map(|run| run.last_at).fold(from.at, Timestamp::max);
    if !(from.at..=latest).contains(&until) {
        return Err(RepositoryError::OutsideWindow { asked: until, windows: vec![(from.at, latest)] });
    }
    // Those after the first that reaches it hold only what came later, or what is not to be applied.
    if let Some(enough) = chain.iter().position(|run| run.last_at > until) {
        chain.truncate(enough + 1);
    }
    Ok(chain.into_iter().filter(|run| !run.is_empty()).cloned().collect())
}

async fn open(dir: PathBuf, bodies: Arc<RepositoryBodies>) -> Result<Store, RepositoryError> {
    blocking(move || {
        let is_free = match std::fs::read_dir(&dir) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if !is_free {
            let reason =
                format!("{} is not an empty directory; a backup is loaded into a fresh one", dir.display());
            return Err(RepositoryError::BadConfiguration(reason));
        }
        Ok(Store::open(&dir, bodies)?)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

struct Loading<'a> {
    repository: &'a Repository,
    manifest: &'a Manifest,
    store: Store,
    bodies: Arc<RepositoryBodies>,
    /// Numbers of packs in the table of origins.
    packs: HashMap<PackId, u64>,
    damage: Vec<Damage>,
}

impl Loading<'_> {
    /// None when the group's root cannot be read, or the group held nothing.
    async fn group(
        &mut self,
        group: &GroupManifest,
        runs: Vec<RunInfo>,
        until: Option<Timestamp>,
    ) -> Result<Option<Reached>, RepositoryError> {
        let before = self.damage.len();
        let mut reached = Reached { log_index: group.log_index, at: group.applied_at };
        if let Some(blob) = &group.root {
            let read = self.repository.read_blob(Kind::Root, blob).await;
            let root = match read.and_then(|plain| decode::<GroupRoot>(&blob.pack.object(), &plain)) {
                Ok(root) => root,
                Err(error) if error.is_damage() && until.is_none() => {
                    self.damaged(group, &blob.pack.object(), &error, group.counts.messages);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            self.state(group, root).await?;
        }
        if let Some(until) = until {
            if let Some(damage) = self.damage.get(before) {
                // What is replayed relies upon all that was there.
                let what = format!("{}; restore the backup itself, without a point in time", damage.what);
                return Err(RepositoryError::damaged(&damage.object, what));
            }
            for run in runs {
                reached.log_index = self.replay(group, &run, reached.log_index, until).await?;
            }
            reached.at = until;
        }
        Ok(Some(reached))
    }

    async fn state(&mut self, group: &GroupManifest, root: GroupRoot) -> Result<(), RepositoryError> {
        for pack in &root.packs {
            let bodies = &self.bodies;
            self.packs.entry(pack.id).or_insert_with(|| bodies.add(Origin::Pack(pack.id)));
        }
        let (chunks, chunks_in) = mpsc::channel(WAITING);
        let (runs, runs_in) = mpsc::channel(WAITING);
        let lost = self.bodies.add(Origin::Lost("the table of where bodies lie is damaged there".to_owned()));
        let mut filler = Filler {
            loader: self.store.load(group.group),
            packs: self.packs.clone(),
            lost,
            runs: runs_in,
            run: None,
            problems: Vec::new(),
        };
        let position = group.position.clone();
        let work = blocking(move || {
            filler.fill(chunks_in)?;
            let Filler { loader, problems, .. } = filler;
            loader.finish(&position)?;
            Ok(problems)
        });
        let feed_chunks = feed(self.read_chunks(&root), chunks);
        let feed_runs = feed(self.read_runs(&root), runs);
        let (problems, (), ()) = futures::join!(work, feed_chunks, feed_runs);
        for Problem { object, error, messages } in problems? {
            self.damaged(group, &object, &error, messages);
        }
        Ok(())
    }

    fn read_chunks<'r>(&'r self, root: &'r GroupRoot) -> impl Stream<Item = ChunkRead> + 'r {
        let read = move |entry: &'r ChunkEntry| async move {
            let (object, read) = self.read(root, Kind::Chunk, entry.hash, entry.at).await;
            ChunkRead { object, messages: entry.messages, read }
        };
        stream::iter(&root.chunks).map(read).buffered(READS_AT_ONCE)
    }

    fn read_runs<'r>(&'r self, root: &'r GroupRoot) -> impl Stream<Item = RunRead> + 'r {
        let read = move |entry: &'r RunEntry| async move {
            let (object, read) = self.read(root, Kind::Run, entry.hash, entry.at).await;
            let read = read.and_then(|plain| decode::<BodyRun>(&object, &plain));
            RunRead { object, range: entry.range, bodies: entry.bodies, read }
        };
        stream::iter(&root.runs).map(read).buffered(WAITING)
    }

    async fn read(
        &self,
        root: &GroupRoot,
        kind: Kind,
        hash: crate::format::Hash,
        at: crate::format::Place,
    ) -> (String, Result<Bytes, RepositoryError>) {
        match root.blob(hash, at) {
            Some(blob) => (blob.pack.object(), self.repository.read_blob(kind, &blob).await),
            None => {
                let object = self.manifest.id.object();
                let error = RepositoryError::damaged(&object, "a root names a pack that is not in its table");
                (object, Err(error))
            }
        }
    }

    fn damaged(&mut self, group: &GroupManifest, object: &str, error: &RepositoryError, messages: u64) {
        let touches = vec![Touched { backup: self.manifest.id.clone(), group: group.group, messages }];
        self.damage.push(Damage { object: object.to_owned(), what: error.to_string(), touches });
    }

    /// Applies a run's commands after `done`; answers the index of the last one.
    async fn replay(
        &self,
        group: &GroupManifest,
        run: &RunInfo,
        done: u64,
        until: Timestamp,
    ) -> Result<u64, RepositoryError> {
        let plain = self.repository.read_archive_run(run).await?;
        let (store, run, number, position) =
            (self.store.clone(), run.clone(), group.group, group.position.clone());
        let segment = self.bodies.add(Origin::Run(run.clone()));
        blocking(move || {
            let (mut batch, mut bytes, mut last) = (Vec::new(), 0, done);
            for command in archive::commands(&run, &plain) {
                let command = command?;
                if command.at > until {
                    break;
                }
                if command.index <= done {
                    continue;
                }
                if batch.len() >= REPLAYED_AT_ONCE || bytes >= REPLAYED_BYTES {
                    store.apply(number, std::mem::take(&mut batch), &position)?;
                    bytes = 0;
                }
                let len = u32::try_from(command.command.len()).expect("a run is shorter than 4 GiB");
                let record = Position { segment, offset: command.offset as u64, len };
                let range = command.offset..command.offset + command.command.len();
                batch.push(LogCommand {
                    index: command.index,
                    command: plain.slice(range),
                    record,
                    offset: 0,
                });
                bytes += command.command.len();
                last = command.index;
            }
            store.apply(number, batch, &position)?;
            Ok(last)
        })
        .await
    }
}

async fn feed<T>(read: impl Stream<Item = T>, to: mpsc::Sender<T>) {
    futures::pin_mut!(read);
    while let Some(item) = read.next().await {
        // Whoever loads has given up, and says why.
        if to.send(item).await.is_err() {
            break;
        }
    }
}

struct ChunkRead {
    object: String,
    messages: u32,
    read: Result<Bytes, RepositoryError>,
}

struct RunRead {
    object: String,
    range: u64,
    bodies: u32,
    read: Result<BodyRun, RepositoryError>,
}

struct Problem {
    object: String,
    error: RepositoryError,
    messages: u64,
}

/// Puts pairs and places into the store, in its own thread.
struct Filler {
    loader: StateLoader,
    packs: HashMap<PackId, u64>,
    /// The origin of bodies whose place is not known.
    lost: u64,
    runs: mpsc::Receiver<RunRead>,
    /// The run of the range that is being put; none in it when it is damaged.
    run: Option<(u64, Option<BodyRun>)>,
    problems: Vec<Problem>,
}

impl Filler {
    fn fill(&mut self, mut chunks: mpsc::Receiver<ChunkRead>) -> Result<(), RepositoryError> {
        while let Some(ChunkRead { object, messages, read }) = chunks.blocking_recv() {
            let chunk = match read {
                Ok(chunk) => chunk,
                Err(error) if error.is_damage() => {
                    self.problems.push(Problem { object, error, messages: messages.into() });
                    continue;
                }
                Err(error) => return Err(error),
            };
            for pair in chunks::pairs(&object, &chunk) {
                let (key, value) = pair?;
                match StateLoader::kind(key, value)? {
                    PairKind::Body(id, len) => {
                        let place = self.place(id.0, len)?;
                        self.loader.put_body(key, value, place)?;
                    }
                    _ => self.loader.put(key, value)?,
                }
            }
        }
        // What comes behind the last body is not needed, but may be damaged.
        self.runs.close();
        Ok(())
    }

    /// Where a body lies. Bodies are asked for in ascending order.
    fn place(&mut self, id: u64, len: u32) -> Result<BodyRef, RepositoryError> {
        let range = id / RUN_BODIES;
        while self.run.as_ref().is_none_or(|(current, _)| *current < range) {
            let Some(RunRead { object, range, bodies, read }) = self.runs.blocking_recv() else { break };
            self.run = Some((
                range,
                match read {
                    Ok(run) => Some(run),
                    Err(error) if error.is_damage() => {
                        self.problems.push(Problem { object, error, messages: bodies.into() });
                        None
                    }
                    Err(error) => return Err(error),
                },
            ));
        }
        let run =
            self.run.as_ref().filter(|(current, _)| *current == range).and_then(|(_, run)| run.as_ref());
        let found = run.and_then(|run| {
            let body = &run.bodies[run.bodies.binary_search_by_key(&id, |body| body.id).ok()?];
            let segment = *self.packs.get(run.packs.get(body.at.pack as usize)?)?;
            Some(Position { segment, offset: body.at.offset.into(), len: body.at.len })
        });
        let record = found.unwrap_or(Position { segment: self.lost, offset: 0, len });
        Ok(BodyRef { record, offset: 0, len })
    }
}
