//! The mail server's last room: it assembles the others into a node.
//!
//! Configuration, listeners, TLS, log-in, metrics, probes, the admin service, start and shutdown. What a protocol
//! session asks is answered here through [`groups`]: every change is a command proposed to a Raft group, every read a
//! query of one. Nothing here keeps mail by itself.

pub mod channels;
pub mod config;
pub mod identity;
pub mod throttle;
pub mod tls;
pub mod verify;
