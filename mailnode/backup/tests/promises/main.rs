//! The promises of backups, tested from outside on real stores and repositories.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout)]

mod archive;
mod backups;
mod damage;
mod prune;
mod repositories;
mod s3;
mod samples;
mod world;
