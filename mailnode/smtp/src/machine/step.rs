//! What passes between a session and its driver.

use bytes::Bytes;
use quorumail_message::Address;

use crate::{AuthFailure, Closed, Envelope, Identity, Reject};

/// What the driver has to do next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing; ask again.
    Again,
    /// Send the output, then read.
    Read,
    /// Ask the backend, then [`Machine::answer`].
    Call(Call),
    /// Send the output, do the TLS handshake, then [`Machine::secured`].
    StartTls,
    /// Send the output and close.
    Close(Closed),
}

/// A question to the backend.
#[derive(PartialEq, Eq)]
pub(crate) enum Call {
    Authenticate { user: String, password: String },
    Sender(Option<Address>),
    Recipient(Address),
    Accept(Box<Message>),
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out of logs.
        f.write_str(match self {
            Self::Authenticate { .. } => "Authenticate",
            Self::Sender(_) => "Sender",
            Self::Recipient(_) => "Recipient",
            Self::Accept(_) => "Accept",
        })
    }
}

/// A message with its envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) envelope: Envelope,
    pub(crate) body: Bytes,
}

/// The backend's answer to the [`Call`] of the same name.
#[derive(Debug)]
pub(crate) enum Answer {
    Authenticate(Result<Identity, AuthFailure>),
    Sender(Result<(), Reject>),
    Recipient(Result<(), Reject>),
    Accept(Result<String, Reject>),
}

/// What a session waits for, which decides how long it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Command,
    Data,
}
