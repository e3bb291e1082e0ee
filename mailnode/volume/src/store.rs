//! Objects as files: written aside, synced, renamed into place. Blocks: called where that may be.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    hash::{BuildHasher as _, RandomState},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    VolumeError,
    names::{Name, is_segment},
};

/// Folder beside the bucket for what is not complete yet; on the same file system, so that it can be renamed.
const STAGING: &str = ".uploading";
/// Held by the server that uses the directory.
const LOCK: &str = ".lock";
/// Begins the names of files that become objects.
const DRAFT: &str = "draft-";
/// Changes of objects at the same time, at most; two of one object never.
const STRIPES: usize = 64;
/// How often a folder is made that goes away at the same moment.
const TRIES: usize = 10;
/// What was begun and not gone on with for so long is given up.
pub(crate) const GIVEN_UP: Duration = Duration::from_secs(24 * 3600);

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there is no such object")]
    NotFound,
    #[error("there is an object of this name")]
    Exists,
    #[error("there is no such upload: it was completed, given up, or not gone on with for a day")]
    NoUpload,
    #[error("part {0} of the upload is missing or is not the one that is meant")]
    BadPart(u32),
    #[error("there are too many uploads that are not complete; complete or abort some")]
    TooManyUploads,
    #[error("{0}")]
    NoPlace(&'static str),
    #[error("the volume is full; make its claim larger, or keep fewer backups")]
    Full,
    #[error("failed to {action}: {source}")]
    Failed { action: &'static str, source: io::Error },
}

/// Says what was attempted when it fails.
pub(crate) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Failed { action, source },
    }
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
    /// Another one whenever the object was written anew.
    pub(crate) etag: String,
}

impl Facts {
    pub(crate) fn of(meta: &fs::Metadata) -> io::Result<Self> {
        let etag = format!("{:x}-{:x}-{:x}-{:x}", meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
        Ok(Self { bytes: meta.len(), modified: meta.modified()?, etag })
    }
}

/// A directory that is served.
#[derive(Debug)]
pub(crate) struct Store {
    bucket: PathBuf,
    pub(crate) staging: PathBuf,
    stripes: Vec<Mutex<()>>,
    hasher: RandomState,
    /// Locked as long as it is open.
    _lock: File,
}

/// A file that becomes an object, or goes.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: File,
    path: PathBuf,
    placed: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, "what is left of an upload could not be removed; it goes after a day");
        }
    }
}

impl Draft {
    pub(crate) fn begin(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(format!("{DRAFT}{}", uuid::Uuid::new_v4().simple()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path);
        let file = file.map_err(failed("begin an object"))?;
        Ok(Self { file, path, placed: false })
    }

    /// Syncs the file and moves it to `to`, whose folder is synced by the caller.
    pub(crate) fn place(&mut self, to: &Path) -> io::Result<Facts> {
        self.file.sync_all()?;
        let facts = Facts::of(&self.file.metadata()?)?;
        fs::rename(&self.path, to)?;
        self.placed = true;
        Ok(facts)
    }
}

/// Makes what was made, renamed or removed in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(|error| match error.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            StoreError::NoPlace("a part of this name is an object itself; choose another")
        }
        _ => failed("make a folder")(error),
    })
}

impl Store {
    /// Takes possession of a directory, and removes what a server before has left half-done.
    pub(crate) fn open(directory: &Path, bucket: &str) -> Result<Self, VolumeError> {
        if !is_segment(bucket) || bucket.starts_with('.') {
            return Err(VolumeError::Bucket(bucket.to_owned()));
        }
        let unusable = |source| VolumeError::Directory { path: directory.to_owned(), source };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK));
        let lock = lock.map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(VolumeError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                tracing::warn!(
                    "the file system has no locks; make sure that nobody else serves this directory"
                );
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let store = Self {
            bucket: directory.join(bucket),
            staging: directory.join(STAGING),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
            _lock: lock,
        };
        let make = || -> io::Result<()> {
            fs::create_dir_all(&store.bucket)?;
            fs::create_dir_all(&store.staging)?;
            sync_folder(directory)?;
            store.sweep(Duration::ZERO)
        };
        make().map_err(unusable)?;
        Ok(store)
    }

    /// Whether the directory is there and can be read.
    pub(crate) fn check(&self) -> io::Result<()> {
        fs::read_dir(&self.bucket)?.next().transpose()?;
        fs::metadata(&self.staging).map(drop)
    }

    pub(crate) fn bucket(&self) -> &Path {
        &self.bucket
    }

    pub(crate) fn begin(&self) -> Result<Draft, StoreError> {
        Draft::begin(&self.staging)
    }

    fn stripe(&self, name: &Name) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one(name);
        self.stripes[(hash % STRIPES as u64) as usize].lock()
    }

    /// Makes a draft an object, for good. `new`: only when there is none of this name.
    pub(crate) fn publish(&self, mut draft: Draft, name: &Name, new: bool) -> Result<Facts, StoreError> {
        const ACTION: &str = "write an object";
        // Outside of the lock: it takes the longest.
        draft.file.sync_all().map_err(failed(ACTION))?;
        // Held until it is synced: whoever is told that there is one can rely on it.
        let _held = self.stripe(name);
        let path = name.path(&self.bucket);
        // An empty folder may have stayed when the machine was lost.
        if path.is_dir() && fs::remove_dir(&path).is_err() {
            return Err(StoreError::NoPlace("there are objects below this name; choose another"));
        }
        if new && path.exists() {
            return Err(StoreError::Exists);
        }
        let folder = path.parent().unwrap_or(&self.bucket);
        let mut tries = 1;
        let facts = loop {
            match make_folder(folder).and_then(|()| draft.place(&path).map_err(failed(ACTION))) {
                // Whoever deleted the last object in the folder has removed it just now.
                Err(StoreError::Failed { source, .. })
                    if source.kind() == ErrorKind::NotFound && tries < TRIES =>
                {
                    tries += 1;
                }
                result => break result?,
            }
        };
        self.sync_up(folder).map_err(failed(ACTION))?;
        Ok(facts)
    }

    /// Syncs a folder and those above it up to the bucket: any of them may be new.
    fn sync_up(&self, folder: &Path) -> io::Result<()> {
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(&self.bucket)) {
            sync_folder(folder)?;
        }
        Ok(())
    }

    pub(crate) fn open_object(&self, name: &Name) -> Result<(File, Facts), StoreError> {
        let none = |error: io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => StoreError::NotFound,
            _ => failed("read an object")(error),
        };
        let file = File::open(name.path(&self.bucket)).map_err(none)?;
        let meta = file.metadata().map_err(none)?;
        if !meta.is_file() {
            return Err(StoreError::NotFound);
        }
        Ok((file, Facts::of(&meta).map_err(none)?))
    }

    /// Removes an object, for good; there may be none. Folders that are empty then go too.
    pub(crate) fn remove(&self, name: &Name) -> Result<(), StoreError> {
        const ACTION: &str = "remove an object";
        let _held = self.stripe(name);
        let path = name.path(&self.bucket);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(());
            }
            // A folder, which is no object.
            Err(_) if path.is_dir() => return Ok(()),
            Err(error) => return Err(failed(ACTION)(error)),
        }
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.bucket)) {
            match sync_folder(folder) {
                // Somebody else has removed it, being empty.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                result => result.map_err(failed(ACTION))?,
            }
            if folder == self.bucket || fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Removes what was begun and not touched for so long; of drafts that nobody writes any more, all at the start.
    pub(crate) fn sweep(&self, drafts_after: Duration) -> io::Result<()> {
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.staging)? {
            let entry = entry?;
            let Ok(meta) = entry.metadata() else { continue };
            let idle = meta.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
            let (after, is_folder) = if meta.is_dir() { (GIVEN_UP, true) } else { (drafts_after, false) };
            if idle < after {
                continue;
            }
            let path = entry.path();
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Ok(()) => {
                    tracing::info!(name = %entry.file_name().display(), "removed an upload that was given up")
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, "an upload that was given up could not be removed"),
            }
        }
        Ok(())
    }
}
