//! The store's promises, tested from outside on real indexes.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod backups;
mod compaction;
mod concurrency;
mod crashes;
mod damage;
mod determinism;
mod digests;
mod directory;
mod formats;
mod lists;
mod mailboxes;
mod model;
mod queue;
mod repair;
mod restores;
mod snapshots;
mod uploads;
mod vault;
mod world;
