//! What delivery promises, against a queue in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod dns;
mod leads;
mod local;
mod remote;
mod smtp;
mod world;
