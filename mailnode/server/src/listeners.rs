//! The listeners of mail: SMTP for other systems, submission and IMAP, with STARTTLS and with TLS from the start.

use std::sync::Arc;

use quorumail_smtp::{Budget, Service};
use rustls::ServerConfig;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Port},
    imap_backend::ImapBackend,
    metrics::Metrics,
    node::FINISH,
    smtp_backend::SmtpBackend,
};

/// Memory for messages being received by SMTP, in bytes.
const RECEIVE_MEMORY: u64 = 512 * 1024 * 1024;

/// What all listeners share.
pub struct Listeners {
    /// Names and limits.
    pub config: Arc<Config>,
    /// Of SMTP and IMAP; the certificate changes underneath.
    pub tls: Arc<ServerConfig>,
    /// Answers SMTP sessions.
    pub smtp: Arc<SmtpBackend>,
    /// Answers IMAP sessions.
    pub imap: Arc<ImapBackend>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Listeners {
    /// Serves all of them until cancelled and their sessions have ended.
    pub async fn serve(self, sockets: Vec<(Port, TcpListener)>, stop: CancellationToken) {
        let memory = Budget::new(RECEIVE_MEMORY);
        let mut running = JoinSet::new();
        for (port, socket) in sockets {
            let metrics = Arc::clone(&self.metrics);
            if let Some(config) = self.imap_config(port) {
                let backend = Arc::clone(&self.imap);
                running.spawn(quorumail_imap::serve(
                    socket,
                    Arc::new(config),
                    backend,
                    stop.clone(),
                    metrics,
                ));
            } else {
                let (config, backend) = (Arc::new(self.smtp_config(port, &memory)), Arc::clone(&self.smtp));
                running.spawn(quorumail_smtp::serve(socket, config, backend, stop.clone(), metrics));
            }
        }
        while running.join_next().await.is_some() {}
    }

    fn smtp_config(&self, port: Port, memory: &Arc<Budget>) -> quorumail_smtp::Config {
        let tls = Arc::clone(&self.tls);
        let mut limits = quorumail_smtp::Limits { shutdown: FINISH, ..Default::default() };
        let wanted = &self.config.limits;
        limits.connections = wanted.smtp_connections.unwrap_or(limits.connections);
        limits.connections_per_address =
            wanted.smtp_connections_per_address.unwrap_or(limits.connections_per_address);
        quorumail_smtp::Config {
            hostname: self.config.hostname.to_string(),
            max_message_size: self.config.smtp.max_message_size,
            service: if port == Port::SmtpMx { Service::Mx } else { Service::Submission },
            limits,
            tls: Some(Arc::new(move || Arc::clone(&tls))),
            implicit_tls: port == Port::SubmissionTls,
            allow_plaintext_auth_from_loopback: self.config.allow_plaintext_auth_from_loopback,
            memory: Arc::clone(memory),
        }
    }

    /// None: the port is not one of IMAP.
    fn imap_config(&self, port: Port) -> Option<quorumail_imap::Config> {
        if !matches!(port, Port::Imap | Port::ImapTls) {
            return None;
        }
        let tls = Arc::clone(&self.tls);
        let mut limits = quorumail_imap::Limits { shutdown: FINISH, ..Default::default() };
        let wanted = &self.config.limits;
        limits.connections = wanted.imap_connections.unwrap_or(limits.connections);
        limits.connections_per_address =
            wanted.imap_connections_per_address.unwrap_or(limits.connections_per_address);
        Some(quorumail_imap::Config {
            hostname: self.config.hostname.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_message_size: self.config.smtp.max_message_size,
            limits,
            tls: Some(Arc::new(move || Arc::clone(&tls))),
            implicit_tls: port == Port::ImapTls,
            allow_plaintext_auth_from_loopback: self.config.allow_plaintext_auth_from_loopback,
        })
    }
}
