//! SMTP: server sessions (MX and submission) and the client of outgoing mail.
//!
//! The protocol is a machine without I/O (bytes in, replies and calls out) with a thin asynchronous driver around it.
//! What a session needs of the rest is the trait [`Backend`]; this crate knows neither Raft nor the store.
//! RFC 5321 (SMTP), RFC 6409 (submission), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 1870 (SIZE), RFC 2920
//! (PIPELINING), RFC 6152 (8BITMIME), RFC 2034 and 3463 (enhanced status codes).

mod backend;
mod budget;
pub mod client;
mod command;
mod config;
mod connection;
mod data;
mod gate;
mod machine;
mod observer;
mod reply;
mod server;

pub use backend::{AuthFailure, Backend, Envelope, Identity, Reject, Service};
pub use budget::Budget;
pub use config::{Config, Limits, TlsSource};
pub use observer::{Closed, Event, Limit, Observer, ProtocolError, Unobserved};
pub use server::serve;
