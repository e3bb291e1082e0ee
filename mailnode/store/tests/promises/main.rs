//! The store's promises, tested from outside on real indexes.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod compaction;
mod concurrency;
mod crashes;
mod determinism;
mod digests;
mod directory;
mod formats;
mod mailboxes;
mod model;
mod queue;
mod repair;
mod restores;
mod snapshots;
mod uploads;
mod world;
