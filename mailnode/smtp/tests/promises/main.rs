//! What SMTP sessions promise, seen over real sockets.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test's helper fails the test")]

mod bounds;
mod client;
mod harness;
mod sessions;
mod tls;
