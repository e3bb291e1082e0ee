//! The real disk: a directory of the file system.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, IoSlice, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::disk::{DirLock, Disk, DiskFile};

/// Mail is private to the user that the server runs as.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;
/// Name of the file whose lock says that a process has the directory.
const LOCK_FILE: &str = "lock";
/// Slices in one vectored write; Linux takes at most 1024 (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// A directory of the file system.
#[derive(Debug)]
pub struct FsDisk {
    dir: PathBuf,
    begun: Instant,
}

impl FsDisk {
    /// The directory, which is made when it is not there.
    ///
    /// # Errors
    /// What the system answers.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<FsDisk> {
        let dir = dir.into();
        if !dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir)?;
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_dir(parent)?;
            }
        }
        Ok(FsDisk { dir, begun: Instant::now() })
    }
}

impl Disk for FsDisk {
    fn lock(&self) -> io::Result<Option<DirLock>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(self.path(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        // Names that are not UTF-8 are not the journal's.
        names.filter_map(io::Result::transpose).collect()
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(self.path(name))?;
        reserve(&file, 0, len)?;
        Ok(Box::new(FsFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FsFile(OpenOptions::new().read(true).write(true).open(self.path(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = nix::sys::statvfs::statvfs(&self.dir)?;
        // The types of both differ from system to system.
        #[allow(clippy::useless_conversion)]
        Ok(u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size())))
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reserves space for `len` bytes from `offset` on, which read as zeros.
fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    {
        use nix::errno::Errno;
        let (from, bytes) = (offset.try_into(), len.try_into());
        let (Ok(from), Ok(bytes)) = (from, bytes) else { return Err(io::ErrorKind::FileTooLarge.into()) };
        match nix::fcntl::posix_fallocate(file, from, bytes) {
            Ok(()) => return Ok(()),
            // This file system cannot: the space is taken as it is written.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(offset + len)
}

#[derive(Debug)]
struct FsFile(File);

impl DiskFile for FsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut file = &self.0;
        file.seek(SeekFrom::Start(offset))?;
        let mut rest = slices;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(MAX_SLICES)];
            match file.write_vectored(some) {
                // Nothing but empty slices were left.
                Ok(0) if some.iter().all(|slice| slice.is_empty()) => {
                    let passed = some.len();
                    rest = &mut rest[passed..];
                }
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.len()?;
        if len < before { self.0.set_len(len) } else { reserve(&self.0, before, len - before) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget_cached(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
            posix_fadvise(&self.0, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }
}
