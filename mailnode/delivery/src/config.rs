//! What delivery is told by the configuration.

use std::{fmt, time::Duration};

use quorumail_message::Domain;

/// All settings of delivery.
#[derive(Debug, Clone)]
pub struct Config {
    /// This host: EHLO, reports, and what is recognised as itself among the MX of a domain.
    pub hostname: Domain,
    /// Takes all mail for other systems, instead of their MX.
    pub relay: Option<Relay>,
    /// When delivery is tried again.
    pub retry: Retry,
    /// Port of other systems' MX; 25 but in tests.
    pub mx_port: u16,
    /// Bounds.
    pub limits: Limits,
}

/// A host that takes mail for all other systems.
#[derive(Debug, Clone)]
pub struct Relay {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether the session must be under TLS.
    pub tls: Tls,
    /// For AUTH; sent under TLS only.
    pub credentials: Option<Credentials>,
}

/// TLS towards another system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// No STARTTLS.
    None,
    /// STARTTLS when it is offered, without checking the certificate (RFC 7435).
    Opportunistic,
    /// STARTTLS with a certificate that names the host, or nothing.
    Required,
}

/// A name and a password. The password is not shown by Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// When delivery is tried again. RFC 5321 4.5.4.1.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// After the first failure; doubled after each further one.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
    /// The age at which the sender is told that it failed.
    pub give_up_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self { initial: Duration::from_secs(60), max: HOUR, give_up_after: 5 * 24 * HOUR }
    }
}

/// Bounds of delivery on one node.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deliveries at the same time.
    pub total: usize,
    /// Deliveries at the same time to one destination: a domain, or the relay.
    pub per_destination: usize,
    /// Sum of the sizes of messages being delivered, in bytes. A larger message is delivered alone.
    pub bytes_in_flight: usize,
    /// Entries of one partition that are worked on or wait for one of the bounds above.
    pub entries: usize,
    /// How often the queue is looked at when nothing wakes the worker.
    pub poll: Duration,
    /// How long deliveries in progress may go on after a stop.
    pub stop_grace: Duration,
    /// How long a destination is left alone after none of its hosts could be reached.
    pub rest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: 100,
            per_destination: 10,
            bytes_in_flight: 256 * 1024 * 1024,
            entries: 2000,
            poll: Duration::from_secs(1),
            stop_grace: Duration::from_secs(20),
            rest: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let shown =
            format!("{:?}", Credentials { username: "relay-user".into(), password: "hunter2".into() });
        assert!(shown.contains("relay-user") && !shown.contains("hunter2"), "{shown}");
    }
}
