//! The node's one append-only log.
//!
//! All Raft groups of a node share it: one writer gathers what is waiting, writes it, calls `fdatasync` once and
//! completes everyone who waited (group commit). It knows nothing of Raft or mail: a record is a stream number and
//! bytes. Records are kept in segments; each has a checksum; recovery cuts a torn tail and refuses a damaged middle.

mod record;

pub use record::{Position, Record, StreamId};
