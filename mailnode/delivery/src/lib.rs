//! The queue worker: routing, attempts, retries, reports.
//!
//! For every partition that this node leads one task takes due entries and attempts their recipients: local ones go
//! into their mailboxes, others to the configured relay or to the hosts that DNS names (RFC 5321 5.1). What came of
//! an attempt is recorded in the queue: done, later, or failed with a report to the sender (RFC 3464).
//!
//! Local delivery happens exactly once: its command is named after entry, recipient and attempt, so that a repetition
//! after a crash is recognised. Remote delivery happens at least once, as SMTP can't do better (RFC 5321 4.5.3.2.6): an
//! attempt whose outcome was not recorded before a crash is made again.
//!
//! This crate knows neither Raft nor the store's machinery; what it needs of them is the trait [`Queue`].

mod attempt;
mod backoff;
mod config;
mod destination;
mod ids;
mod queue;
mod receiver;
mod remote;
mod resolver;
mod route;
mod settle;
mod transport;
mod worker;

pub use backoff::retry_delay;
pub use config::{Config, Credentials, Limits, Relay, Retry, Tls};
pub use queue::{Event, LocalFailure, Observer, Queue, Unavailable, Unobserved};
pub use receiver::Receiver;
pub use remote::{ConnectFailure, Host, RecipientResult, RemoteEnvelope, Transport};
pub use resolver::{Dns, LookupFailure, MxRecord, Resolver};
pub use transport::SmtpTransport;
pub use worker::Worker;
