//! What IMAP sessions count.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};
use quorumail_imap::{Event, LoginFailure, Observer};

use super::{Maker, Metrics, label};

/// Upper bounds of the time that commands take, in seconds.
const COMMAND_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];
/// Takes as long as the client likes, so its time tells nothing.
const IDLE: &str = "IDLE";

/// All listeners together.
pub(super) struct Imap {
    connections: IntCounter,
    sessions: IntGauge,
    closed: IntCounterVec,
    tls: IntCounter,
    commands: IntCounterVec,
    seconds: HistogramVec,
    protocol_errors: IntCounter,
    limits: IntCounterVec,
    logins: IntCounterVec,
}

impl Imap {
    pub(super) fn new(registry: &Registry) -> Self {
        let make = Maker { registry, protocol: "imap" };
        Self {
            connections: make
                .counter("connections_total", "Connections taken.", &[])
                .with_label_values::<&str>(&[]),
            sessions: make.gauge("sessions", "Sessions open now.", &[]).with_label_values::<&str>(&[]),
            closed: make.counter("sessions_closed_total", "Sessions ended, by how.", &["how"]),
            tls: make
                .counter("tls_handshakes_total", "TLS handshakes that ended well.", &[])
                .with_label_values::<&str>(&[]),
            commands: make.counter("commands_total", "Commands answered.", &["command", "status"]),
            seconds: make.histogram(
                "command_seconds",
                "Time of commands but IDLE.",
                &["command"],
                &COMMAND_SECONDS,
            ),
            protocol_errors: make
                .counter("protocol_errors_total", "Violations of the protocol.", &[])
                .with_label_values::<&str>(&[]),
            limits: make.counter("limits_total", "Limits hit.", &["limit"]),
            logins: make.counter("logins_total", "Log-ins, by outcome.", &["outcome"]),
        }
    }
}

impl Observer for Metrics {
    fn observe(&self, event: Event) {
        let imap = &self.imap;
        match event {
            Event::Opened => {
                imap.connections.inc();
                imap.sessions.inc();
            }
            Event::Closed(how) => {
                imap.sessions.dec();
                imap.closed.with_label_values(&[&label(&how)]).inc();
            }
            Event::Tls => imap.tls.inc(),
            Event::Command { name, status, took } => {
                imap.commands.with_label_values(&[name, label(&status).as_str()]).inc();
                if name != IDLE {
                    imap.seconds.with_label_values(&[name]).observe(took.as_secs_f64());
                }
            }
            Event::Protocol => imap.protocol_errors.inc(),
            Event::Refused(limit) | Event::Limited(limit) => {
                imap.limits.with_label_values(&[&label(&limit)]).inc();
            }
            Event::Authenticated => imap.logins.with_label_values(&["ok"]).inc(),
            Event::AuthFailed(why) => {
                let outcome = match why {
                    LoginFailure::Denied => "denied",
                    LoginFailure::Throttled => "throttled",
                    LoginFailure::Unavailable => "unavailable",
                };
                imap.logins.with_label_values(&[outcome]).inc();
            }
        }
    }
}
