//! How delivery is set up: relay, retries, and the authorities that are trusted.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use quorumail_delivery::{Credentials, SmtpTransport, Tls};
use quorumail_message::Domain;
use quorumail_smtp::client;
use rustls::RootCertStore;

use crate::config::{self, RelayTls};

/// The SMTP client with this host's name; trusts the authorities that the system trusts.
pub fn smtp_transport(hostname: &Domain) -> SmtpTransport {
    let tls = client::Tls::from_system().unwrap_or_else(|error| {
        tracing::warn!(%error, "no authority is trusted: a relay with tls Required cannot be reached");
        client::Tls::with_roots(RootCertStore::empty())
    });
    SmtpTransport::new(hostname, Arc::new(tls))
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
