//! The node's one append-only log.
//!
//! All Raft groups of a node share it: one writer gathers what is waiting, writes it, calls `fdatasync` once and
//! completes everyone who waited (group commit). It knows nothing of Raft or mail: a record is a stream number and
//! bytes. Records are kept in segments; each has a checksum; recovery cuts a torn tail and refuses a damaged middle.
//!
//! Rooms inside: `format` is what the bytes on disk mean, `disk` what is needed of a disk (`fs_disk` is the real one,
//! `sim_disk` one that forgets), `segment` creates and reads the files, `recovery` scans them when the journal is opened,
//! `queue` holds what waits, `pump` writes it, `journal` is what callers hold. All I/O is blocking and on plain threads;
//! asynchronous callers take `done` as their signal.
//!
//! A failed write or sync ends the process: after a failed `fsync` the kernel may have dropped the dirty pages and
//! marked them clean, so that trying again would report success for data that is not on disk.

mod disk;
mod error;
mod format;
mod fs_disk;
mod journal;
mod pump;
mod queue;
mod record;
mod recovery;
mod segment;
#[cfg(feature = "simulation")]
mod sim_disk;

pub use disk::{DirLock, Disk, DiskFile};
pub use error::{OpenError, ReadError};
pub use fs_disk::FsDisk;
pub use journal::{Journal, Options, Stats};
pub use pump::{Failure, Pump};
pub use record::{Position, Record, StreamId};
#[cfg(feature = "simulation")]
pub use sim_disk::{Faults, SimDisk, Timing};
