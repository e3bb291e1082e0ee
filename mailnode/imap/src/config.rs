//! What a listener is told: names, limits and where its certificate comes from.

use std::{sync::Arc, time::Duration};

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
    /// This host's name in the greeting.
    pub hostname: String,
    /// What ID answers as the version of the server (RFC 2971).
    pub version: String,
    /// Largest message of an APPEND, in octets. RFC 7889.
    pub max_message_size: usize,
    /// Bounds on what a client may take.
    pub limits: Limits,
    /// None: no TLS, so STARTTLS is not offered.
    pub tls: Option<Arc<dyn TlsSource>>,
    /// TLS from the first byte (RFC 8314 3.2); needs `tls`.
    pub implicit_tls: bool,
    /// Lets a client of this machine log in without TLS. For development only.
    pub allow_plaintext_auth_from_loopback: bool,
}

/// Bounds on what clients may take. Each has its source beside its default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Commands in a row that cannot be read, before log-in; then BYE.
    pub errors_before_login: u32,
    /// The same after log-in.
    pub errors: u32,
    /// Failed log-ins in one session; then BYE.
    pub auth_failures: u32,
    /// What a failed log-in costs the client.
    pub auth_delay: Duration,
    /// Time from the connection to the log-in.
    pub login: Duration,
    /// Time without a command after log-in. RFC 9051 5.4: at least 30 minutes.
    pub idle: Duration,
    /// How often IDLE says that it is still there, so that a client that is gone is noticed (RFC 2177 asks clients to
    /// start anew every 29 minutes; many routers forget a connection much earlier).
    pub idle_sign: Duration,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for a client to take a piece of an answer.
    pub write: Duration,
    /// Time for one call of the backend; then NO [UNAVAILABLE].
    pub backend: Duration,
    /// After a shutdown is asked for: time for running commands.
    pub shutdown: Duration,
    /// Connections of the listener.
    pub connections: usize,
    /// Connections of one IPv4 address or IPv6 /64. Mail programs open one for each folder they watch, and an office
    /// shares an address.
    pub connections_per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            errors_before_login: 5,
            errors: 20,
            auth_failures: 3,
            auth_delay: seconds(2),
            login: seconds(60),
            idle: seconds(31 * 60),
            idle_sign: seconds(120),
            handshake: seconds(30),
            write: seconds(60),
            backend: seconds(60),
            shutdown: seconds(20),
            connections: 10_000,
            connections_per_address: 500,
        }
    }
}
