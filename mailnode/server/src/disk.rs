//! Room on the disk that holds the data.
//!
//! A journal that cannot write ends the process, so new mail is refused while there is still room for what is under
//! way: other replicas' appends, checkpoints and the index's compaction.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Below this many free bytes no new mail is taken.
pub const RESERVE: u64 = 512 * 1024 * 1024;

/// What was seen when the disk was last looked at.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    free: AtomicU64,
    size: AtomicU64,
}

impl Disk {
    /// Looks at the file system of `dir`, and again until cancelled.
    pub fn watch(dir: &Path, stop: CancellationToken) -> Arc<Self> {
        let disk =
            Arc::new(Self { dir: dir.to_owned(), free: AtomicU64::new(u64::MAX), size: AtomicU64::new(0) });
        disk.look();
        let watched = Arc::clone(&disk);
        tokio::spawn(async move {
            while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
                let disk = Arc::clone(&watched);
                // Fails only when the runtime stops.
                let _ = tokio::task::spawn_blocking(move || disk.look()).await;
            }
        });
        disk
    }

    /// Bytes that may still be written.
    pub fn free(&self) -> u64 {
        self.free.load(Relaxed)
    }

    /// Bytes of the file system.
    pub fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    /// Whether new mail must be refused.
    pub fn is_nearly_full(&self) -> bool {
        self.free() < RESERVE
    }

    fn look(&self) {
        match nix::sys::statvfs::statvfs(&self.dir) {
            Ok(found) => {
                let block = found.fragment_size();
                let free = block.saturating_mul(found.blocks_available());
                if free < RESERVE && !self.is_nearly_full() {
                    tracing::error!(free, reserve = RESERVE, "the disk is nearly full: new mail is refused");
                }
                self.free.store(free, Relaxed);
                self.size.store(block.saturating_mul(found.blocks()), Relaxed);
            }
            Err(error) => tracing::warn!(%error, "the free space of the disk cannot be told"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_room_of_a_disk_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::watch(dir.path(), CancellationToken::new());
        assert!(disk.free() > 0 && disk.free() <= disk.size());
    }
}
