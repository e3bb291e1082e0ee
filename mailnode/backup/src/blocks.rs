//! Bodies of a loaded backup: read from the repository when they are asked for, through a small cache of blocks.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use quorumail_journal::Position;
use quorumail_store::{Bodies, BodyId, BodyRef};
use tokio::runtime::Runtime;

use crate::{PackId, Repository, RepositoryError, archive::RunInfo, pack, seal::Kind};

/// What is read of a pack at once: neighbours are wanted next, as a rule.
const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks and runs that are kept, in bytes.
const CACHE_BYTES: usize = 48 << 20;

/// Where bodies of a loaded backup lie: the segment of their [`BodyRef`] is a number in a table of these.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// The record is a sealed blob in the pack.
    Pack(PackId),
    /// The record is a command in the run's plain bytes.
    Run(RunInfo),
    /// Where it lay could not be read.
    Lost(String),
}

/// Reads bodies by place. The threads that ask wait; what is read runs on a runtime of its own, so that it goes on whatever
/// runtime they block.
pub(crate) struct RepositoryBodies {
    shared: Arc<Reading>,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

struct Reading {
    repository: Repository,
    origins: RwLock<Vec<Origin>>,
    cache: Mutex<Cache>,
}

/// Number of an origin and of a block in it.
type BlockKey = (u64, u64);

#[derive(Default)]
struct Cache {
    blocks: HashMap<BlockKey, (u64, Bytes)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    fn get(&mut self, key: BlockKey) -> Option<Bytes> {
        self.clock += 1;
        let (used, bytes) = self.blocks.get_mut(&key)?;
        *used = self.clock;
        Some(bytes.clone())
    }

    fn put(&mut self, key: BlockKey, bytes: Bytes) {
        self.clock += 1;
        self.bytes += bytes.len();
        if let Some((_, old)) = self.blocks.insert(key, (self.clock, bytes)) {
            self.bytes -= old.len();
        }
        while self.bytes > CACHE_BYTES && self.blocks.len() > 1 {
            // Few are kept: looking at all of them is quick.
            let oldest = self.blocks.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            if let Some((_, bytes)) = oldest.and_then(|key| self.blocks.remove(&key)) {
                self.bytes -= bytes.len();
            }
        }
    }
}

impl RepositoryBodies {
    /// With connections of its own to the repository.
    pub(crate) fn new(repository: &Repository) -> Result<Self, RepositoryError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("backup-bodies")
            .enable_all()
            .build()
            .map_err(|error| {
                RepositoryError::BadConfiguration(format!("no thread can be started: {error}"))
            })?;
        let repository = repository.reconnect()?;
        let shared = Reading { repository, origins: RwLock::default(), cache: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    /// Enters an origin; answers its number.
    pub(crate) fn add(&self, origin: Origin) -> u64 {
        let mut origins = self.shared.origins.write();
        origins.push(origin);
        origins.len() as u64 - 1
    }
}

impl Drop for RepositoryBodies {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // May be dropped by a task, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl Bodies for RepositoryBodies {
    fn read(&self, body: BodyRef, prefix: Option<u32>) -> Result<Bytes, String> {
        let runtime = self.runtime.as_ref().ok_or("the backup is closed")?;
        let (answer, read) = mpsc::sync_channel(1);
        let shared = Arc::clone(&self.shared);
        runtime.spawn(async move {
            // Nobody waits when the reader has gone.
            let _ = answer.send(shared.read(body).await);
        });
        let whole =
            read.recv().map_err(|_| "the backup is closed".to_owned())?.map_err(|error| error.to_string())?;
        Ok(prefix.map_or_else(|| whole.clone(), |prefix| whole.slice(..whole.len().min(prefix as usize))))
    }

    fn keep(&self, _: u32, _: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
        Err("a loaded backup takes no bodies".to_owned())
    }
}

impl Reading {
    async fn read(&self, body: BodyRef) -> Result<Bytes, RepositoryError> {
        let Position { segment, offset, len } = body.record;
        let origin = self.origins.read().get(usize::try_from(segment).unwrap_or(usize::MAX)).cloned();
        let unknown = || RepositoryError::damaged("the loaded backup", "a body lies nowhere");
        match origin.ok_or_else(unknown)? {
            Origin::Pack(pack) => {
                let offset = u32::try_from(offset).map_err(|_| unknown())?;
                let sealed = self.sealed(segment, pack, offset, len).await?;
                let (_, plain) = pack::open_at(&self.repository.0.keys, Kind::Body, pack, offset, &sealed)?;
                if plain.len() != body.len as usize {
                    return Err(RepositoryError::damaged(
                        pack.object(),
                        format!("the blob at {offset} has another length than the state says"),
                    ));
                }
                Ok(plain)
            }
            Origin::Run(run) => {
                let plain = self.run(segment, &run).await?;
                let start =
                    offset.checked_add(body.offset.into()).and_then(|start| usize::try_from(start).ok());
                let range = start.and_then(|start| Some(start..start.checked_add(body.len as usize)?));
                let range = range.filter(|range| range.end <= plain.len()).ok_or_else(unknown)?;
                Ok(plain.slice(range))
            }
            Origin::Lost(reason) => Err(RepositoryError::damaged("the backup", reason)),
        }
    }

    /// A part of a pack, by way of the blocks that it lies in.
    async fn sealed(
        &self,
        origin: u64,
        pack: PackId,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, RepositoryError> {
        let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(len));
        let objects = &self.repository.0.objects;
        if u64::from(len) > BLOCK_BYTES {
            return objects.get_range(&pack.object(), start..end).await;
        }
        let mut whole = BytesMut::with_capacity(len as usize);
        for number in start / BLOCK_BYTES..=end.saturating_sub(1) / BLOCK_BYTES {
            let first = number * BLOCK_BYTES;
            let cached = self.cache.lock().get((origin, number));
            let block = match cached {
                Some(block) => block,
                None => {
                    let block = objects.get_range(&pack.object(), first..first + BLOCK_BYTES).await?;
                    self.cache.lock().put((origin, number), block.clone());
                    block
                }
            };
            let from = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
            let to = usize::try_from((end - first).min(block.len() as u64)).unwrap_or(usize::MAX);
            let part = block
                .get(from..to)
                .ok_or_else(|| RepositoryError::damaged(pack.object(), "it is cut off"))?;
            whole.extend_from_slice(part);
        }
        Ok(whole.freeze())
    }

    async fn run(&self, origin: u64, run: &RunInfo) -> Result<Bytes, RepositoryError> {
        let cached = self.cache.lock().get((origin, 0));
        if let Some(plain) = cached {
            return Ok(plain);
        }
        let plain = self.repository.read_archive_run(run).await?;
        self.cache.lock().put((origin, 0), plain.clone());
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_what_was_used_last_within_its_bound() {
        let mut cache = Cache::default();
        let block = Bytes::from(vec![0; BLOCK_BYTES as usize]);
        for number in 0..100 {
            cache.put((0, number), block.clone());
            assert!(cache.get((0, 0)).is_some() && cache.bytes <= CACHE_BYTES);
        }
        assert!(cache.get((0, 1)).is_none() && cache.get((0, 99)).is_some());
        cache.put((0, 99), block.slice(..5));
        assert_eq!(cache.bytes, cache.blocks.values().map(|(_, bytes)| bytes.len()).sum::<usize>());
    }
}
