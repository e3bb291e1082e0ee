//! What happens in sessions, for metrics. No event carries an address or a text of the client.

use crate::{AuthFailure, Service};

/// Takes events of all sessions. Called from sessions: must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something happened at a listener of `service`.
    fn observe(&self, service: Service, event: Event);
}

/// Takes no notice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: Service, _: Event) {}
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
    /// A reply was sent; its first digit.
    Reply(u8),
    /// A message was accepted.
    Accepted {
        /// Size in octets.
        octets: usize,
        /// Number of recipients.
        recipients: usize,
    },
    /// A client broke the protocol.
    Protocol(ProtocolError),
    /// A limit was hit.
    Limited(Limit),
    /// A client authenticated.
    Authenticated,
    /// An authentication failed.
    AuthFailed(AuthFailure),
    /// The backend refused a sender, recipient or message.
    Rejected,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// QUIT.
    Quit,
    /// The client went without QUIT, or the network failed.
    Lost,
    /// A limit or an error ended it.
    Ended,
    /// The client was too slow.
    TimedOut,
    /// The TLS handshake failed.
    Handshake,
    /// The server is stopping.
    Shutdown,
}

/// How a client broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolError {
    /// An unknown command.
    UnknownCommand,
    /// A command that cannot be read.
    Syntax,
    /// A command at the wrong time.
    Sequence,
    /// A LF without CR or a CR without LF.
    BareLineEnd,
    /// A NUL octet.
    Nul,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections of the listener.
    Connections,
    /// Connections of one address.
    ConnectionsPerAddress,
    /// A command line.
    CommandLine,
    /// A line of a message.
    TextLine,
    /// Size of a message.
    MessageSize,
    /// Memory of all messages being received.
    Memory,
    /// Recipients of a message.
    Recipients,
    /// Errors in a session.
    Errors,
    /// Refused addresses in a session.
    Refusals,
    /// Failed authentications in a session.
    AuthFailures,
    /// Commands in a session.
    Commands,
    /// Messages in a session.
    Messages,
    /// Length of a session.
    Session,
    /// Time of a backend call.
    Backend,
}
