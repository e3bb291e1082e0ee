//! The mail server's last room: it assembles the others into a node.
//!
//! Configuration, listeners, TLS, log-in, metrics, probes, the admin service, start and shutdown. What a protocol
//! session asks is answered here through [`groups`]: every change is a command proposed to a Raft group, every read a
//! query of one. Nothing here keeps mail by itself.

pub mod admin;
mod archiver;
pub mod auth;
mod buffered;
pub mod channels;
pub mod compactor;
pub mod config;
pub mod data_dir;
pub mod delivery_queue;
pub mod disk;
pub mod exposition;
pub mod groups;
pub mod http;
pub mod https;
pub mod identity;
pub mod imap_backend;
pub mod janitor;
pub mod listeners;
pub mod lists;
pub mod metrics;
pub mod node;
pub mod public;
pub mod refusals;
pub mod repairer;
pub mod scrubber;
pub mod signer;
pub mod smtp_backend;
pub mod throttle;
pub mod tls;
pub mod topology;
pub mod transport;
pub mod verify;
pub mod watch;
