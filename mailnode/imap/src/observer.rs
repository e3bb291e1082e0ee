//! What happens in sessions, for metrics. No event carries an address or a text of the client.

use std::time::Duration;

use crate::LoginFailure;

/// Takes events of all sessions. Called from sessions: must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: Event);
}

/// Takes no notice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: Event) {}
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A connection was taken.
    Opened,
    /// A connection was turned away before a session began; the limit says which.
    Refused(Limit),
    /// A session ended.
    Closed(Closed),
    /// A TLS handshake ended well.
    Tls,
    /// A command was answered.
    Command {
        /// Its name: one of a fixed set.
        name: &'static str,
        /// How.
        status: Status,
        /// From its last octet to its answer being written; of IDLE until DONE.
        took: Duration,
    },
    /// What a client sent is no command.
    Protocol,
    /// A limit was hit.
    Limited(Limit),
    /// A client logged in.
    Authenticated,
    /// A log-in failed.
    AuthFailed(LoginFailure),
}

/// How a command was answered. RFC 9051 7.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Status {
    Ok,
    No,
    Bad,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// LOGOUT.
    Logout,
    /// The client went without LOGOUT, or the network failed.
    Lost,
    /// A limit or an error ended it, or its folder was deleted.
    Ended,
    /// The client was too slow or did nothing.
    TimedOut,
    /// The TLS handshake failed.
    Handshake,
    /// The server is stopping.
    Shutdown,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections of the listener.
    Connections,
    /// Connections of one address.
    ConnectionsPerAddress,
    /// A command or literal that is too long.
    CommandLength,
    /// Size of a message.
    MessageSize,
    /// Commands that cannot be read.
    Errors,
    /// Failed log-ins in a session.
    AuthFailures,
    /// Time of a backend call.
    Backend,
}
