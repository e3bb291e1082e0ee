//! What the journal needs of a disk: one directory of files.
//!
//! [`FsDisk`](crate::FsDisk) is the real one. Whatever else implements it must keep what POSIX promises and no more:
//! written bytes are safe once `sync_data` of their file has returned, names (made, renamed, removed) once `sync_dir`
//! has, and before that any part of them may be lost.

use std::{any::Any, fmt, io, io::IoSlice, path::PathBuf, time::Duration};

/// Holds a directory against other processes until it is dropped.
pub type DirLock = Box<dyn Any + Send + Sync>;

/// One directory of files. Names are plain file names.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Takes the directory for this process; none when another one, or another part of this one, has it.
    ///
    /// # Errors
    /// What the system answers.
    fn lock(&self) -> io::Result<Option<DirLock>>;

    /// The names of all files.
    ///
    /// # Errors
    /// What the system answers.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file, or empties the one of that name, and gives it `len` bytes of zeros, for which space is reserved.
    ///
    /// # Errors
    /// `StorageFull` when there is no room for `len` bytes; what the system answers otherwise.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when there is none; what the system answers otherwise.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in place of what has that name already.
    ///
    /// # Errors
    /// What the system answers.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system answers.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: all that was made, renamed and removed before.
    ///
    /// # Errors
    /// What the system answers.
    fn sync_dir(&self) -> io::Result<()>;

    /// Bytes that may still be written.
    ///
    /// # Errors
    /// What the system answers.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Time since some fixed moment, for measuring how long something takes.
    fn now(&self) -> Duration;

    /// The full path of a name, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// An open file. Reads may come from several threads, writes from one at a time.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the system answers.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes at all.
    ///
    /// # Errors
    /// What the system answers.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; what the system answers otherwise.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all slices, one behind the other, from `offset` on; the file grows where it is too short. The slices are
    /// used up.
    ///
    /// # Errors
    /// What the system answers; some of the bytes may have been written then.
    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Cuts the file, or makes it longer with zeros for which space is reserved.
    ///
    /// # Errors
    /// `StorageFull` when there is no room; what the system answers otherwise.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when all bytes written before, and the length, are on disk. After an error nothing is known about any of
    /// them, and trying again proves nothing.
    ///
    /// # Errors
    /// What the system answers.
    fn sync_data(&self) -> io::Result<()>;

    /// Has later reads of what is synced come from the device, not from memory.
    ///
    /// # Errors
    /// What the system answers.
    fn forget_cached(&self) -> io::Result<()>;
}
