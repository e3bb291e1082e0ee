//! Room on the disk that holds the data, and what happens as it runs out.
//!
//! A journal that cannot write ends the process, so a node stops in two steps before that. At the first mark it takes no
//! new mail (SMTP 452, IMAP NO), while reading, flags, deletions and deliveries under way go on. At the second mark
//! it takes no commands any more and hands its leads over. What leaders with room have committed it still follows, down
//! to half of the second mark: what is left then belongs to votes, checkpoints and compaction. All of it ends by itself
//! once there is room again.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::DiskMarks;

/// How often the disk is looked at: at a few hundred megabytes a second it does not fill from the first mark to the
/// second in this time.
const LOOK: Duration = Duration::from_secs(1);
/// The first mark, in free bytes, unless configured; on a small disk a share of its size.
const NO_NEW_MAIL: u64 = 1 << 30;
/// The second mark.
const READ_ONLY: u64 = 512 << 20;
/// On a disk too small for these, the marks are its size divided by this, and by twice this.
const SMALL_DISK_SHARE: u64 = 8;
/// A mark is left again when there is so much more room than at the mark: one part of it in this many, or so many bytes,
/// whichever is less.
const HYSTERESIS_SHARE: u64 = 8;
const HYSTERESIS: u64 = 64 << 20;

/// Free bytes at which the node stops taking new mail, and at which it only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Below this no new mail is taken.
    pub no_new_mail: u64,
    /// Below this nothing is written for clients or other nodes. Smaller than the other.
    pub read_only: u64,
}

impl Marks {
    /// What is configured, and else what fits a disk of this size, in bytes.
    pub fn new(configured: DiskMarks, size: u64) -> Self {
        let share = size / SMALL_DISK_SHARE;
        let no_new_mail = configured
            .no_new_mail_below
            .unwrap_or_else(|| NO_NEW_MAIL.min(share).max(configured.read_only_below.unwrap_or(0)));
        let read_only =
            configured.read_only_below.unwrap_or_else(|| READ_ONLY.min(share / 2).min(no_new_mail));
        Self { no_new_mail, read_only }
    }
}

/// What the room that is left allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Everything.
    Enough,
    /// Everything but new mail.
    NoNewMail,
    /// Reading, and following what other nodes lead.
    ReadOnly,
    /// Reading.
    Full,
}

impl Room {
    /// As a number for people and alerts: 2 everything, 1 everything but new mail, 0 only reading.
    pub fn allows(self) -> u32 {
        match self {
            Self::Enough => 2,
            Self::NoNewMail => 1,
            Self::ReadOnly | Self::Full => 0,
        }
    }

    /// What `free` bytes allow, when it was `self` before.
    #[must_use]
    pub fn next(self, free: u64, marks: Marks) -> Self {
        let leave = |mark: u64| mark + (mark / HYSTERESIS_SHARE).min(HYSTERESIS);
        let below = |mark: u64, is_in: bool| free < if is_in { leave(mark) } else { mark };
        if below(marks.read_only / 2, self == Self::Full) {
            Self::Full
        } else if below(marks.read_only, self >= Self::ReadOnly) {
            Self::ReadOnly
        } else if below(marks.no_new_mail, self >= Self::NoNewMail) {
            Self::NoNewMail
        } else {
            Self::Enough
        }
    }
}

/// What was seen when the disk was last looked at.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    configured: DiskMarks,
    free: AtomicU64,
    size: AtomicU64,
    room: watch::Sender<Room>,
}

impl Disk {
    /// Looks at the file system of `dir`, and again until cancelled.
    pub fn watch(dir: &Path, configured: DiskMarks, stop: CancellationToken) -> Arc<Self> {
        let disk = Arc::new(Self {
            dir: dir.to_owned(),
            configured,
            free: AtomicU64::new(u64::MAX),
            size: AtomicU64::new(0),
            room: watch::Sender::new(Room::Enough),
        });
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

    /// What the room that is left allows.
    pub fn room(&self) -> Room {
        *self.room.borrow()
    }

    /// Whether new mail must be refused.
    pub fn is_nearly_full(&self) -> bool {
        self.room() >= Room::NoNewMail
    }

    /// Follows [`Disk::room`].
    pub fn changes(&self) -> watch::Receiver<Room> {
        self.room.subscribe()
    }

    fn look(&self) {
        match nix::sys::statvfs::statvfs(&self.dir) {
            Ok(found) => {
                let block = found.fragment_size();
                let free = block.saturating_mul(found.blocks_available());
                let size = block.saturating_mul(found.blocks());
                self.free.store(free, Relaxed);
                self.size.store(size, Relaxed);
                let marks = Marks::new(self.configured, size);
                self.room.send_if_modified(|room| {
                    let next = room.next(free, marks);
                    let changed = next != *room;
                    if changed {
                        told(next, free);
                    }
                    *room = next;
                    changed
                });
            }
            Err(error) => tracing::warn!(%error, "the free space of the disk cannot be told"),
        }
    }
}

fn told(room: Room, free: u64) {
    match room {
        Room::Enough => tracing::info!(free, "the disk has room again"),
        Room::NoNewMail => tracing::error!(free, "the disk is nearly full: new mail is refused"),
        Room::ReadOnly => {
            tracing::error!(free, "the disk is full: this node takes no commands until there is room")
        }
        Room::Full => tracing::error!(free, "the disk is full: this node only reads until there is room"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks { no_new_mail: 1000, read_only: 400 };

    #[tokio::test]
    async fn the_room_of_a_disk_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::watch(dir.path(), DiskMarks::default(), CancellationToken::new());
        assert!(disk.free() > 0 && disk.free() <= disk.size());
        let all = DiskMarks { no_new_mail_below: None, read_only_below: Some(u64::MAX / 2) };
        assert_eq!(Disk::watch(dir.path(), all, CancellationToken::new()).room(), Room::Full);
    }

    #[test]
    fn a_node_stops_in_two_steps_and_recovers_by_itself_without_flapping() {
        let mut room = Room::Enough;
        let steps = [
            (5000, Room::Enough),
            (999, Room::NoNewMail),
            (1001, Room::NoNewMail),
            (399, Room::ReadOnly),
            (199, Room::Full),
            (224, Room::Full),
            (225, Room::ReadOnly),
            (401, Room::ReadOnly),
            (450, Room::NoNewMail),
            (1124, Room::NoNewMail),
            (1125, Room::Enough),
            (0, Room::Full),
            (2000, Room::Enough),
        ];
        for (free, expected) in steps {
            room = room.next(free, MARKS);
            assert_eq!(room, expected, "{free} bytes free");
        }
    }

    #[test]
    fn small_disks_have_small_marks() {
        for size in [0, 100 << 20, 8 << 30, 1 << 40] {
            let marks = Marks::new(DiskMarks::default(), size);
            assert!(marks.read_only <= marks.no_new_mail && marks.no_new_mail <= size / 8, "{size}");
        }
        assert_eq!(
            Marks::new(DiskMarks::default(), 1 << 40),
            Marks { no_new_mail: NO_NEW_MAIL, read_only: READ_ONLY }
        );
    }
}
