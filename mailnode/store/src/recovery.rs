//! Opening the index, also after a power failure.
//!
//! What was not synced may be on disk in part only, and not from its start: pages are written in any order. fjall
//! cuts a torn end off its journal, but refuses a journal with a hole in it (or panics where assertions are on). All
//! that a hole can touch was written after the last checkpoint, and will be applied again from the log: so the journal
//! is cut before the hole here. That nothing of the checkpoint is lost by it is verified with a number that each
//! checkpoint writes into the index and, once that is synced, into a file beside it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::{StoreError, keys};

/// Memory for blocks of the index that were read.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Size at which the index in memory is written out. Several may be in memory while the disk is slow.
const MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// Bound of the index's own journal, which is cut as memtables are written out.
const INDEX_JOURNAL_BYTES: u64 = 128 * 1024 * 1024;
/// Threads that write out and compact the index.
const INDEX_WORKERS: usize = 2;
/// The first cut before a hole; each further one is twice as long.
const FIRST_CUT: u64 = 64 * 1024;

/// Name of the file that holds the number of the last checkpoint.
const CHECKPOINT_FILE: &str = "checkpoint";

/// An index that is open, and the number of its last checkpoint.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) keyspace: Keyspace,
    pub(crate) checkpoint: u64,
}

/// Opens or creates the index in `dir`.
pub(crate) fn open(dir: &Path) -> Result<Opened, StoreError> {
    let safe = read_checkpoint(dir)?;
    let error = match try_open(dir) {
        Ok(index) if index.checkpoint >= safe => return Ok(index),
        Ok(_) => return Err(lost()),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error),
    };
    let Some(journal) = newest_journal(dir)? else { return Err(error) };
    tracing::warn!(%error, journal = %journal.display(), "the index's journal is damaged; cutting it before the damage");
    let backup = journal.with_extension("damaged");
    fs::copy(&journal, &backup).map_err(fjall::Error::from)?;
    match search(dir, &journal, &backup, safe)? {
        Some(index) => {
            fs::remove_file(&backup).map_err(fjall::Error::from)?;
            Ok(index)
        }
        None => {
            // As it was found, for whoever looks at it.
            fs::rename(&backup, &journal).map_err(fjall::Error::from)?;
            Err(error)
        }
    }
}

/// Writes the number of a checkpoint that is safe in the index, durably.
pub(crate) fn write_checkpoint(dir: &Path, number: u64) -> Result<(), StoreError> {
    let write = || {
        let new = dir.join("checkpoint.new");
        let mut file = File::create(&new)?;
        file.write_all(number.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, dir.join(CHECKPOINT_FILE))?;
        File::open(dir)?.sync_all()
    };
    Ok(write().map_err(fjall::Error::from)?)
}

/// The key of the number in the index.
pub(crate) fn checkpoint_key() -> Vec<u8> {
    keys::in_space(keys::ROOT, &[keys::ROOT_CHECKPOINT])
}

fn read_checkpoint(dir: &Path) -> Result<u64, StoreError> {
    match fs::read_to_string(dir.join(CHECKPOINT_FILE)) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| StoreError::Damaged("the number of the checkpoint cannot be read")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(fjall::Error::from(error).into()),
    }
}

fn lost() -> StoreError {
    StoreError::Damaged("the index lost what had been safe on disk")
}

fn try_open(dir: &Path) -> Result<Opened, StoreError> {
    let open = || -> Result<Opened, StoreError> {
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(INDEX_JOURNAL_BYTES)
            .worker_threads(INDEX_WORKERS)
            .open()?;
        let keyspace = database
            .keyspace("state", || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES))?;
        let checkpoint = match keyspace.get(checkpoint_key())? {
            Some(value) => u64::from_be_bytes(
                (*value)
                    .try_into()
                    .map_err(|_| StoreError::Damaged("the checkpoint's number has not 8 bytes"))?,
            ),
            None => 0,
        };
        Ok(Opened { database, keyspace, checkpoint })
    };
    // fjall asserts on what it reads where debug assertions are on.
    catch_unwind(AssertUnwindSafe(open))
        .unwrap_or(Err(StoreError::Damaged("the index's journal cannot be read")))
}

/// The journal that was written to last. Older ones were synced when it was begun.
fn newest_journal(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let number = |path: &Path| -> Option<u64> {
        let name = path.file_name()?.to_str()?.strip_suffix(".jnl")?;
        name.parse().ok()
    };
    let mut newest = None;
    for entry in fs::read_dir(dir).map_err(fjall::Error::from)? {
        let path = entry.map_err(fjall::Error::from)?.path();
        if let Some(number) = number(&path) {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Tries shorter and shorter parts of the journal until one can be read; when that one is older than the checkpoint,
/// parts between it and the last that could not be read. At most some 40 attempts for a journal of 64 MiB.
fn search(dir: &Path, journal: &Path, backup: &Path, safe: u64) -> Result<Option<Opened>, StoreError> {
    let used = used_bytes(backup).map_err(fjall::Error::from)?;
    let (mut too_old, mut damaged, mut step) = (None, used, FIRST_CUT);
    loop {
        let cut = match too_old {
            None => used.saturating_sub(step),
            Some(low) => low + (damaged - low) / 2,
        };
        if too_old == Some(cut) {
            return Ok(None);
        }
        write_part(backup, journal, cut).map_err(fjall::Error::from)?;
        match try_open(dir) {
            Ok(index) if index.checkpoint >= safe => {
                tracing::warn!(kept = cut, dropped = used - cut, "the index goes on before the damage");
                return Ok(Some(index));
            }
            Ok(_) => too_old = Some(cut),
            Err(error) if error.is_damage() && cut > 0 => {
                damaged = cut;
                step = step.saturating_mul(2);
            }
            Err(error) if error.is_damage() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Length without the zeros at the end: fjall gives its journals their full length from the start.
fn used_bytes(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut end = file.metadata()?.len();
    let mut block = vec![0; FIRST_CUT as usize];
    while end > 0 {
        let len = end.min(FIRST_CUT);
        let block = &mut block[..len as usize];
        file.seek(SeekFrom::Start(end - len))?;
        file.read_exact(block)?;
        if let Some(last) = block.iter().rposition(|byte| *byte != 0) {
            return Ok(end - len + last as u64 + 1);
        }
        end -= len;
    }
    Ok(0)
}

fn write_part(from: &Path, to: &Path, len: u64) -> io::Result<()> {
    let mut target = File::create(to)?;
    io::copy(&mut File::open(from)?.take(len), &mut target)?;
    target.sync_all()
}
