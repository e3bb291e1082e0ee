//! The transport of the real world: the SMTP client.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_message::Domain;
use quorumail_smtp::client::{self, Answer, Options, Outcome, Outgoing, Target, Timeouts, TlsMode};

use crate::{ConnectFailure, Credentials, Host, RecipientResult, RemoteEnvelope, Tls, Transport};

/// Sends over SMTP.
#[derive(Debug, Clone)]
pub struct SmtpTransport {
    helo: String,
    tls: Arc<client::Tls>,
    timeouts: Timeouts,
}

impl SmtpTransport {
    /// Says `hostname` in EHLO; `tls` has the certificates that [`Tls::Required`] trusts.
    pub fn new(hostname: &Domain, tls: Arc<client::Tls>) -> Self {
        Self { helo: hostname.to_string(), tls, timeouts: Timeouts::default() }
    }

    /// With other waits than those of RFC 5321 4.5.3.2.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }
}

#[async_trait]
impl Transport for SmtpTransport {
    async fn send(
        &self,
        host: &Host,
        envelope: &RemoteEnvelope,
        body: Bytes,
        tls: Tls,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<RecipientResult>, ConnectFailure> {
        let target = Target { host: host.name.clone(), address: host.addr };
        let outgoing = Outgoing {
            reverse_path: envelope.reverse_path.as_ref(),
            recipients: &envelope.recipients,
            eight_bit: envelope.eight_bit,
        };
        let options = Options {
            helo: self.helo.clone(),
            tls_mode: match tls {
                Tls::None => TlsMode::None,
                Tls::Opportunistic => TlsMode::Opportunistic,
                Tls::Required => TlsMode::Required,
            },
            tls: self.tls.clone(),
            credentials: credentials.map(|known| client::Credentials {
                username: known.username.clone(),
                password: known.password.clone(),
            }),
            timeouts: self.timeouts.clone(),
        };
        let delivery = client::deliver(&target, outgoing, &body, &options).await;
        match delivery.outcomes.first() {
            Some(Outcome::Deferred(answer) | Outcome::Failed(answer)) if delivery.try_next => {
                let (code, text) = code_and_text(answer.clone());
                // A status of our own stands in `status` alone, that of a reply in its text as well.
                let text = if code == 0 { answer.text.clone() } else { format!("{code} {text}") };
                Err(ConnectFailure { status: answer.status.clone(), text })
            }
            _ => Ok(delivery.outcomes.into_iter().map(result).collect()),
        }
    }
}

fn result(outcome: Outcome) -> RecipientResult {
    match outcome {
        Outcome::Delivered(answer) => {
            let (code, text) = code_and_text(answer);
            RecipientResult::Delivered { reply: format!("{code} {text}") }
        }
        Outcome::Deferred(answer) => {
            let (code, text) = code_and_text(answer);
            RecipientResult::Deferred { code, text }
        }
        Outcome::Failed(answer) => {
            let (code, text) = code_and_text(answer);
            RecipientResult::Failed { code, text }
        }
    }
}

fn code_and_text(answer: Answer) -> (u16, String) {
    match answer.code {
        Some(code) => (code, answer.text),
        None => (0, format!("{} {}", answer.status, answer.text)),
    }
}
