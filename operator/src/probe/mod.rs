//! A probe: one message is sent by SMTP and read back by IMAP, as a person's programs would do it.
//!
//! It proves what no status can: that accounts, certificates, submission, delivery and reading work together. Bounded in time
//! and memory, whatever the server answers. It leaves nothing in the mailbox. RFC 6409 (submission), RFC 3501 and RFC 9051 (IMAP).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use quorumail_message::{Address, rfc5322_date};
use quorumail_smtp::client::{
    Credentials, Delivery, Options, Outcome, Outgoing, Target, Timeouts, Tls, TlsMode, deliver,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use crate::imap::Imap;
pub use crate::imap::ImapError;

/// Header that names the message of a probe.
const HEADER: &str = "X-Quorumail-Probe";
/// For a TCP connection and its TLS.
const CONNECT: Duration = Duration::from_secs(10);
/// For one command of SMTP or IMAP.
const COMMAND: Duration = Duration::from_secs(30);
/// Between two looks into the mailbox, at first; it doubles up to the other.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_AT_MOST: Duration = Duration::from_secs(2);

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The name of a host is not known.
    #[error("the address of {host} cannot be found: {reason}")]
    Resolve {
        /// Which host.
        host: String,
        /// In words.
        reason: String,
    },
    /// The certificates to be trusted, or the name that a server must have.
    #[error("{0}")]
    Setup(String),
    /// The message was not taken.
    #[error("{host} did not take a message by SMTP: {reason}")]
    NotSent {
        /// Which host.
        host: String,
        /// The server's words, or what happened instead.
        reason: String,
    },
    /// IMAP.
    #[error("IMAP at {host}: {source}")]
    Imap {
        /// Which host.
        host: String,
        /// What went wrong.
        source: ImapError,
    },
    /// It did not arrive.
    #[error("a message was taken by SMTP and was not in the mailbox {0} s later")]
    NotFound(u64),
    /// It arrived as something else.
    #[error("the message that was read is not the one that was sent")]
    Changed,
}

/// A service, and the name that its certificate must be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name in the certificate.
    pub name: String,
    /// Where it is reached.
    pub host: String,
    /// On which port.
    pub port: u16,
}

/// What is probed.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Submission with STARTTLS.
    pub submission: Service,
    /// IMAP with TLS from the start.
    pub imaps: Service,
    /// What certificates are trusted.
    pub roots: RootCertStore,
    /// The mailbox that sends to itself; also the name to log in with.
    pub address: Address,
    /// Its password.
    pub password: String,
    /// How long the message may take once it was sent.
    pub within: Duration,
}

/// How long a probe took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Until the message was taken.
    pub sent: Duration,
    /// From then until it was read.
    pub read: Duration,
}

/// The certificates of a PEM file, as roots of trust. A self-signed certificate that is no authority is trusted for itself.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, ProbeError> {
    let failed = |error: &dyn std::fmt::Display| {
        ProbeError::Setup(format!("the certificate to be trusted cannot be read: {error}"))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() {
        return Err(failed(&"there is none"));
    }
    Ok(roots)
}

/// Sends a message and reads it.
pub async fn probe(probe: &Probe) -> Result<Passed, ProbeError> {
    let token = format!("{:032x}", rand::random::<u128>());
    let message = message(&probe.address, &token, Timestamp::now());
    let begun = Instant::now();
    send(probe, &message).await?;
    let taken = Instant::now();
    let found = read(probe, &token, taken + probe.within).await?;
    // Servers put their trace in front (RFC 5321 4.4) and leave the rest as it is.
    if !found.ends_with(&message) {
        return Err(ProbeError::Changed);
    }
    Ok(Passed { sent: taken - begun, read: taken.elapsed() })
}

fn message(address: &Address, token: &str, now: Timestamp) -> Vec<u8> {
    let date = rfc5322_date(now.as_millisecond());
    let domain = address.domain();
    format!(
        "From: <{address}>\r\nTo: <{address}>\r\nSubject: Probe\r\nDate: {date}\r\nMessage-ID: <{token}@{domain}>\r\n\
         Auto-Submitted: auto-generated\r\n{HEADER}: {token}\r\n\r\nSent and read again by a probe; it can be deleted.\r\n"
    )
    .into_bytes()
}

async fn send(probe: &Probe, message: &[u8]) -> Result<(), ProbeError> {
    let service = &probe.submission;
    let timeouts = Timeouts {
        connect: CONNECT,
        greeting: COMMAND,
        command: COMMAND,
        mail: COMMAND,
        rcpt: COMMAND,
        data_start: COMMAND,
        data_block: COMMAND,
        data_end: COMMAND,
        total: 2 * COMMAND,
    };
    let credentials = Credentials { username: probe.address.to_string(), password: probe.password.clone() };
    let options = Options {
        helo: "probe.invalid".to_owned(),
        tls_mode: TlsMode::Required,
        tls: Arc::new(Tls::with_roots(probe.roots.clone())),
        credentials: Some(credentials),
        timeouts,
    };
    let recipients = [probe.address.clone()];
    let outgoing = Outgoing { reverse_path: Some(&probe.address), recipients: &recipients, eight_bit: false };
    let target = Target { host: service.name.clone(), address: resolve(service).await? };
    let Delivery { outcomes, .. } = deliver(&target, outgoing, message, &options).await;
    match outcomes.into_iter().next() {
        Some(Outcome::Delivered(_)) => Ok(()),
        Some(Outcome::Deferred(answer) | Outcome::Failed(answer)) => {
            Err(ProbeError::NotSent { host: service.host.clone(), reason: answer.text })
        }
        None => unreachable!("there is an outcome for every recipient"),
    }
}

/// Looks until the message is there; answers it as it is.
async fn read(probe: &Probe, token: &str, until: Instant) -> Result<Vec<u8>, ProbeError> {
    let service = &probe.imaps;
    let failed = |source: ImapError| ProbeError::Imap { host: service.host.clone(), source };
    let name = ServerName::try_from(service.name.clone())
        .map_err(|_| ProbeError::Setup(format!("{} is not the name of a host", service.name)))?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(probe.roots.clone())
        .with_no_client_auth();
    let address = resolve(service).await?;
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    };
    let silent = |_| failed(ImapError::Silent);
    let stream = timeout(CONNECT, connect).await.map_err(silent)?.map_err(|error| failed(error.into()))?;
    let session = async {
        let mut imap = Imap::new(stream, COMMAND).await?;
        imap.log_in(&probe.address.to_string(), &probe.password).await?;
        imap.select("INBOX").await?;
        let mut pause = LOOK;
        loop {
            if let Some(uid) = imap.find(HEADER, token).await? {
                let found = imap.fetch(uid).await?;
                imap.remove(uid).await?;
                imap.log_out().await;
                return Ok(found);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LOOK_AT_MOST);
        }
    };
    match timeout_at(until, session).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(ProbeError::NotFound(probe.within.as_secs())),
    }
}

async fn resolve(service: &Service) -> Result<SocketAddr, ProbeError> {
    let failed = |reason: String| ProbeError::Resolve { host: service.host.clone(), reason };
    let found = timeout(CONNECT, tokio::net::lookup_host((service.host.as_str(), service.port))).await;
    let mut found =
        found.map_err(|_| failed("no answer".to_owned()))?.map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("it has none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki;

    #[test]
    fn the_message_says_what_it_is_and_ends_as_it_was_sent() {
        let address: Address = "probe@rehearsal.invalid".parse().unwrap();
        let text = message(&address, "abc", Timestamp::from_second(0).unwrap());
        let text = String::from_utf8(text).unwrap();
        for line in
            ["X-Quorumail-Probe: abc", "Message-ID: <abc@rehearsal.invalid>", "To: <probe@rehearsal.invalid>"]
        {
            assert!(text.contains(&format!("{line}\r\n")), "{text}");
        }
        assert!(text.split("\r\n").all(|line| line.len() <= 78 && !line.contains('\n')), "{text}");
    }

    #[test]
    fn a_self_signed_certificate_is_a_root_and_nonsense_is_none() {
        let own = pki::self_signed(&["mail.example.org".to_owned()], Timestamp::now()).unwrap();
        assert_eq!(roots(own.cert.as_bytes()).unwrap().len(), 1);
        assert!(roots(b"").unwrap_err().to_string().contains("there is none"));
    }
}
