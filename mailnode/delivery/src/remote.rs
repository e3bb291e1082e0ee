//! What delivery needs of an SMTP client.

use std::net::SocketAddr;

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_message::Address;

use crate::{Credentials, Tls};

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, for TLS and reports.
    pub name: String,
    /// Its address.
    pub addr: SocketAddr,
}

/// The envelope of one transaction.
#[derive(Debug, Clone)]
pub struct RemoteEnvelope {
    /// None: the null reverse-path.
    pub reverse_path: Option<Address>,
    /// At least one.
    pub recipients: Vec<Address>,
    /// Size of the message in bytes (RFC 1870).
    pub size: u32,
    /// Whether 8BITMIME is needed (RFC 6152).
    pub eight_bit: bool,
}

/// What a transaction came to for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientResult {
    /// The host took it.
    Delivered {
        /// Its last reply.
        reply: String,
    },
    /// Not now.
    Deferred {
        /// 4yz; 0 when there was no reply.
        code: u16,
        /// The reply's text with its enhanced status code, or what happened.
        text: String,
    },
    /// Never.
    Failed {
        /// 5yz; 0 when there was no reply.
        code: u16,
        /// The reply's text with its enhanced status code, or what happened.
        text: String,
    },
}

/// No transaction could be begun: no connection, no greeting, no TLS, no authentication. The next host may be tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {text}")]
pub struct ConnectFailure {
    /// The enhanced status code, as a rule 4.4.1.
    pub status: String,
    /// What happened, or the reply with its code.
    pub text: String,
}

/// Sends messages to other systems. Implementations bound every wait.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// One transaction. The results stand in the order of the recipients.
    async fn send(
        &self,
        host: &Host,
        envelope: &RemoteEnvelope,
        body: Bytes,
        tls: Tls,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<RecipientResult>, ConnectFailure>;
}
