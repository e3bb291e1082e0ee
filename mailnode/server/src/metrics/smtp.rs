//! What SMTP sessions count.

use prometheus::{IntCounterVec, IntGaugeVec, Registry};
use quorumail_smtp::{AuthFailure, Event, Observer, Service};

use super::{Maker, Metrics, label};

/// By listener.
pub(super) struct Smtp {
    connections: IntCounterVec,
    sessions: IntGaugeVec,
    closed: IntCounterVec,
    tls: IntCounterVec,
    replies: IntCounterVec,
    messages: IntCounterVec,
    bytes: IntCounterVec,
    recipients: IntCounterVec,
    protocol_errors: IntCounterVec,
    limits: IntCounterVec,
    logins: IntCounterVec,
    rejected: IntCounterVec,
}

impl Smtp {
    pub(super) fn new(registry: &Registry) -> Self {
        let make = Maker { registry, protocol: "smtp" };
        Self {
            connections: make.counter("connections_total", "Connections taken.", &["service"]),
            sessions: make.gauge("sessions", "Sessions open now.", &["service"]),
            closed: make.counter("sessions_closed_total", "Sessions ended, by how.", &["service", "how"]),
            tls: make.counter("tls_handshakes_total", "TLS handshakes that ended well.", &["service"]),
            replies: make.counter("replies_total", "Replies, by first digit.", &["service", "class"]),
            messages: make.counter("messages_accepted_total", "Messages accepted.", &["service"]),
            bytes: make.counter("accepted_bytes_total", "Bytes of accepted messages.", &["service"]),
            recipients: make.counter(
                "recipients_accepted_total",
                "Recipients of accepted messages.",
                &["service"],
            ),
            protocol_errors: make.counter(
                "protocol_errors_total",
                "Violations of the protocol.",
                &["service", "kind"],
            ),
            limits: make.counter("limits_total", "Limits hit.", &["service", "limit"]),
            logins: make.counter("logins_total", "Log-ins, by outcome.", &["service", "outcome"]),
            rejected: make.counter(
                "rejected_total",
                "Senders, recipients and messages refused.",
                &["service"],
            ),
        }
    }
}

impl Observer for Metrics {
    fn observe(&self, service: Service, event: Event) {
        let service = match service {
            Service::Mx => "mx",
            Service::Submission => "submission",
        };
        let smtp = &self.smtp;
        match event {
            Event::Opened => {
                smtp.connections.with_label_values(&[service]).inc();
                smtp.sessions.with_label_values(&[service]).inc();
            }
            Event::Closed(how) => {
                smtp.sessions.with_label_values(&[service]).dec();
                smtp.closed.with_label_values(&[service, &label(&how)]).inc();
            }
            Event::Tls => smtp.tls.with_label_values(&[service]).inc(),
            Event::Reply(class) => {
                smtp.replies.with_label_values(&[service, &class.to_string()]).inc();
            }
            Event::Accepted { octets, recipients } => {
                smtp.messages.with_label_values(&[service]).inc();
                smtp.bytes.with_label_values(&[service]).inc_by(octets as u64);
                smtp.recipients.with_label_values(&[service]).inc_by(recipients as u64);
            }
            Event::Protocol(kind) => smtp.protocol_errors.with_label_values(&[service, &label(&kind)]).inc(),
            Event::Refused(limit) | Event::Limited(limit) => {
                smtp.limits.with_label_values(&[service, &label(&limit)]).inc();
            }
            Event::Authenticated => smtp.logins.with_label_values(&[service, "ok"]).inc(),
            Event::AuthFailed(why) => {
                let outcome = match why {
                    AuthFailure::Denied => "denied",
                    AuthFailure::Throttled => "throttled",
                    AuthFailure::Unavailable => "unavailable",
                };
                smtp.logins.with_label_values(&[service, outcome]).inc();
            }
            Event::Rejected => smtp.rejected.with_label_values(&[service]).inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorumail_smtp::{Closed, Limit};

    use super::*;

    #[test]
    fn what_sessions_tell_is_counted() {
        let metrics = Metrics::default();
        for event in [
            Event::Opened,
            Event::Opened,
            Event::Accepted { octets: 100, recipients: 2 },
            Event::Limited(Limit::ConnectionsPerAddress),
            Event::Closed(Closed::TimedOut),
        ] {
            metrics.observe(Service::Mx, event);
        }
        let text = metrics.encode().unwrap();
        for line in [
            "quorumail_smtp_sessions{service=\"mx\"} 1",
            "quorumail_smtp_accepted_bytes_total{service=\"mx\"} 100",
            "quorumail_smtp_limits_total{limit=\"connections_per_address\",service=\"mx\"} 1",
            "quorumail_smtp_sessions_closed_total{how=\"timed_out\",service=\"mx\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
