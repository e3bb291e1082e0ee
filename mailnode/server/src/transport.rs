//! Mail to other systems: the SMTP client as delivery uses it.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use quorumail_delivery::{
    ConnectFailure, Credentials, Host, RecipientResult, RemoteEnvelope, Tls, Transport,
};
use quorumail_smtp::client::{self, Answer, Outcome, Outgoing, Target, TlsMode};
use rustls::RootCertStore;

use crate::config::{self, RelayTls};

/// Sends over SMTP.
pub struct SmtpTransport {
    helo: String,
    certificates: Arc<client::Tls>,
}

impl SmtpTransport {
    /// With this host's name; trusts the authorities that the system trusts.
    pub fn new(helo: String) -> Self {
        let certificates = client::Tls::from_system().unwrap_or_else(|error| {
            tracing::warn!(%error, "no authority is trusted: a relay with tls Required cannot be reached");
            client::Tls::with_roots(RootCertStore::empty())
        });
        Self { helo, certificates: Arc::new(certificates) }
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
        let options = client::Options {
            helo: self.helo.clone(),
            tls_mode: match tls {
                Tls::None => TlsMode::None,
                Tls::Opportunistic => TlsMode::Opportunistic,
                Tls::Required => TlsMode::Required,
            },
            tls: Arc::clone(&self.certificates),
            credentials: credentials.map(|credentials| client::Credentials {
                username: credentials.username.clone(),
                password: credentials.password.clone(),
            }),
            timeouts: client::Timeouts::default(),
        };
        let mut results = Vec::with_capacity(envelope.recipients.len());
        for recipients in envelope.recipients.chunks(client::MAX_RECIPIENTS) {
            let reverse_path = envelope.reverse_path.as_ref();
            let outgoing = Outgoing { reverse_path, recipients, eight_bit: envelope.eight_bit };
            let delivery = client::deliver(&target, outgoing, &body, &options).await;
            if delivery.try_next && results.is_empty() {
                let text = delivery.outcomes.first().map(outcome_text).unwrap_or_default();
                return Err(ConnectFailure(text));
            }
            results.extend(delivery.outcomes.into_iter().map(result));
        }
        Ok(results)
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    let (Outcome::Delivered(answer) | Outcome::Deferred(answer) | Outcome::Failed(answer)) = outcome;
    answer.text.clone()
}

fn result(outcome: Outcome) -> RecipientResult {
    let text = |answer: &Answer| format!("{} {}", answer.status, answer.text);
    match outcome {
        Outcome::Delivered(answer) => RecipientResult::Delivered { reply: text(&answer) },
        Outcome::Deferred(answer) => {
            RecipientResult::Deferred { code: answer.code.unwrap_or(0), text: text(&answer) }
        }
        Outcome::Failed(answer) => {
            RecipientResult::Failed { code: answer.code.unwrap_or(0), text: text(&answer) }
        }
    }
}

/// The settings of delivery; reads the relay's password.
pub fn delivery_config(config: &config::Config) -> anyhow::Result<quorumail_delivery::Config> {
    let relay = config.smtp.relay.as_ref().map(relay).transpose().context("smtp.relay")?;
    let retry = &config.smtp.retry;
    Ok(quorumail_delivery::Config {
        hostname: config.hostname.clone(),
        relay,
        retry: quorumail_delivery::Retry {
            initial: retry.initial,
            max: retry.max,
            give_up_after: retry.give_up_after,
        },
        mx_port: config.smtp.mx_port,
        limits: quorumail_delivery::Limits { stop_grace: crate::node::FINISH, ..Default::default() },
    })
}

fn relay(relay: &config::Relay) -> anyhow::Result<quorumail_delivery::Relay> {
    let credentials = match (&relay.username, &relay.password_file) {
        (Some(username), Some(file)) => {
            Some(Credentials { username: username.clone(), password: password(file)? })
        }
        _ => None,
    };
    let tls = match relay.tls {
        RelayTls::None => Tls::None,
        // A password goes to a host with a certificate that is checked, or nowhere.
        _ if credentials.is_some() => Tls::Required,
        RelayTls::Required => Tls::Required,
        RelayTls::Opportunistic => Tls::Opportunistic,
    };
    Ok(quorumail_delivery::Relay { host: relay.host.clone(), port: relay.port, tls, credentials })
}

fn password(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    Ok(text.trim_end().to_owned())
}
