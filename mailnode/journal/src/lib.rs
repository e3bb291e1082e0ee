//! The node's one append-only log, and the store of what it brought.
//!
//! All Raft groups of a node share it: one writer gathers what is waiting, writes it, calls `fdatasync` once and
//! completes everyone who waited (group commit). It knows nothing of Raft or mail: a record is a stream number and
//! bytes. Records are kept in segments; each has a checksum; recovery cuts a torn tail and refuses a damaged middle.
//!
//! Bodies stay where the log brought them. So a segment lives on when no log needs it any more: it lies below the floor
//! then and is not read when the journal is opened. What is still wanted of it can be copied to kept segments
//! ([`Journal::keep`]), and its file be used again ([`Journal::recycle`]).
//!
//! Rooms inside: `format` is what the bytes on disk mean, `disk` what is needed of a disk (`fs_disk` is the real one,
//! `sim_disk` one that forgets), `catalog` knows all segments and makes new ones, `tail` is the end of one that is
//! written, `index` tells its records without reading it, `segment` reads records, `recovery` opens what is there,
//! `queue` holds what waits, `pump` writes it, `kept` writes copies, `verify` looks for damage, `failure` is what happens
//! when the disk fails, `journal` is what callers hold. All I/O is blocking and on plain threads; asynchronous callers
//! take `done` as their signal.
//!
//! A failed write or sync ends the process: after a failed `fsync` the kernel may have dropped the dirty pages and
//! marked them clean, so that trying again would report success for data that is not on disk.

mod catalog;
mod disk;
mod error;
mod failure;
mod format;
mod fs_disk;
mod index;
mod journal;
mod kept;
pub mod mutation;
mod pump;
mod queue;
mod record;
mod recovery;
mod segment;
#[cfg(feature = "simulation")]
mod sim_disk;
mod tail;
mod verify;

pub use disk::{DirLock, Disk, DiskFile};
pub use error::{OpenError, ReadError, RecycleError};
pub use failure::Failure;
pub use fs_disk::FsDisk;
pub use journal::{Journal, Options, Stats};
pub use kept::KeepError;
pub use pump::Pump;
pub use record::{Class, HEAD_BYTES, Position, Record, RecordInfo, SegmentInfo, StreamId};
#[cfg(feature = "simulation")]
pub use sim_disk::{Faults, SimDisk, Timing};
pub use verify::ScanReport;
