//! What a listener is told: names, limits and where its certificate comes from.

use std::{sync::Arc, time::Duration};

use crate::{Budget, Service};

/// Gives the TLS configuration for the next handshake, so that a changed certificate is used without a restart.
pub trait TlsSource: Send + Sync + 'static {
    /// The configuration of now.
    fn current(&self) -> Arc<rustls::ServerConfig>;
}

impl<F: Fn() -> Arc<rustls::ServerConfig> + Send + Sync + 'static> TlsSource for F {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        self()
    }
}

/// A listener's configuration.
#[derive(Clone)]
pub struct Config {
    /// This host's name in the greeting and in EHLO.
    pub hostname: String,
    /// Largest message, in octets as received (dots unstuffed). RFC 1870.
    pub max_message_size: usize,
    /// What the listener is for.
    pub service: Service,
    /// Bounds on what a client may take.
    pub limits: Limits,
    /// None: no TLS, so STARTTLS is not offered.
    pub tls: Option<Arc<dyn TlsSource>>,
    /// TLS from the first byte (RFC 8314 3.3); needs `tls`.
    pub implicit_tls: bool,
    /// Lets a client of this machine authenticate without TLS. For development only.
    pub allow_plaintext_auth_from_loopback: bool,
    /// Memory for messages being received, shared with the other listeners.
    pub memory: Arc<Budget>,
}

/// Bounds on what clients may take. Each has its source beside its default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Octets in a command line with its CRLF. RFC 5321 4.5.3.1.4 asks for at least 512.
    pub command_line: usize,
    /// Octets in a line of a message with its CRLF. RFC 5321 4.5.3.1.6 asks for at least 1000.
    pub text_line: usize,
    /// Recipients of one message. RFC 5321 4.5.3.1.8 asks for at least 100.
    pub recipients: usize,
    /// Protocol errors in one session; then 421.
    pub errors: u32,
    /// Refused recipients and senders in one session, against guessing of addresses; then 421.
    pub refusals: u32,
    /// Failed authentications in one session; then 421.
    pub auth_failures: u32,
    /// Commands without a message being accepted; then 421.
    pub commands: u32,
    /// Messages in one session; then 421.
    pub messages: u32,
    /// Time for a whole command line to arrive, and between two reads of a message. RFC 5321 4.5.3.2.7: 5 minutes.
    pub idle: Duration,
    /// Time for a whole message.
    pub data: Duration,
    /// Time for a whole session; it ends at the next command after that.
    pub session: Duration,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for a client to take a reply.
    pub write: Duration,
    /// Time for one call of the backend; then 451.
    pub backend: Duration,
    /// After a shutdown is asked for: time for running messages.
    pub shutdown: Duration,
    /// Connections of the listener.
    pub connections: usize,
    /// Connections of one IPv4 address or IPv6 /64.
    pub connections_per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            command_line: 2048,
            // Real mail has longer lines than RFC 5322 allows, and a refusal here loses it.
            text_line: 8192,
            recipients: 1000,
            errors: 10,
            refusals: 100,
            auth_failures: 3,
            commands: 1000,
            messages: 10_000,
            idle: seconds(300),
            data: seconds(1800),
            session: seconds(6 * 3600),
            handshake: seconds(30),
            write: seconds(60),
            backend: seconds(120),
            shutdown: seconds(20),
            connections: 1000,
            connections_per_address: 200,
        }
    }
}
