//! Backups: a repository in an object store or a directory, and the state of groups in it.
//!
//! Everything in a repository is sealed on this side, immutable and named by content or at random; a backup is there once
//! its manifest is. The format is described in `docs/reference/backup-format.md`, the reasons in `docs/adr/0013-backups.md`.
//! This crate reads and writes [`Store`](quorumail_store::Store)s; it knows neither Raft nor Kubernetes nor a mail
//! protocol.

pub mod archive;
mod background;
mod blocks;
mod chunks;
mod config;
mod directory;
mod error;
mod format;
mod keys;
mod lease;
mod load;
mod manifest;
mod objects;
mod pack;
mod parent;
mod prune;
mod repository;
pub mod retention;
mod seal;
mod take;
mod verify;

pub use config::{BackupKey, Limits, Location, MIN_PASSPHRASE, RepositoryConfig, S3};
pub use error::RepositoryError;
pub use format::{BackupId, BlobRef, FORMAT, PackId};
pub use lease::{LEASE, Lease, settle};
pub use load::{LoadedBackup, Reached};
pub use manifest::{
    BackupInfo, Cluster, Counts, GroupManifest, Manifest, ManifestDraft, PackUse, Resources, Trigger,
};
pub use prune::{PRUNE_GRACE, Pruned};
pub use repository::{Listing, MAX_RESOURCES, Repository, Unreadable};
pub use take::{Progress, Source, take_group};
pub use verify::{Damage, Depth, Findings, Touched, VerifyProgress, Which};
