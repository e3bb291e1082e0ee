//! The check of a message that comes in: SPF, DKIM and DMARC, within a time limit.
//!
//! Whatever goes wrong in here, the message is none the worse for it: no answer in time, a DNS that is out, even a panic,
//! is a temperror.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use mail_auth::{
    AuthenticatedMessage, DkimOutput, DkimResult, DmarcResult, Error, MessageAuthenticator, SpfOutput,
    SpfResult,
    common::crypto::{Algorithm, CryptoError, HashAlgorithm},
    dkim::{Canonicalization, DkimError},
    dmarc::{self, verify::DmarcParameters},
    spf::verify::SpfParameters,
};
use parking_lot::Mutex;
use quorumail_message::headers;
use ring::digest;

use crate::{
    canonical::{self, Form},
    dns::{self, SetUpError},
    results::{Dkim, Dmarc, Outcome, Policy, Spf, Verdict, domain_of},
};

/// Signatures of a message that are verified; RFC 6376 8.4 and 9.1 leave it to the verifier. The others count as not there.
pub const MAX_SIGNATURES: usize = 10;
/// A longer header section is not looked at: no signature in it counts.
pub const MAX_HEADER: usize = 256 * 1024;
/// After so many checks in a row that ran out of time, DNS counts as out.
const OUT_AFTER: u32 = 3;
/// For so long nothing is checked then: mail must not wait for a DNS that does not answer.
const OUT_FOR: Duration = Duration::from_secs(30);

/// A message as it came in.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The client's network address.
    pub remote: IpAddr,
    /// What it said in EHLO or HELO.
    pub helo: String,
    /// The reverse-path; none: the null one.
    pub mail_from: Option<String>,
    /// As received, without what this host adds.
    pub message: Bytes,
}

/// Checks messages. Cheap to clone.
#[derive(Clone)]
pub struct Checker {
    dns: Arc<MessageAuthenticator>,
    host: Arc<str>,
    within: Duration,
    outage: Arc<Mutex<Outage>>,
}

/// Whether DNS seems to be out.
#[derive(Debug, Default)]
struct Outage {
    /// Checks in a row that ran out of time.
    in_a_row: u32,
    until: Option<Instant>,
}

impl Checker {
    /// Asks `servers`, or those of /etc/resolv.conf when there are none. `host`: this host's name.
    pub fn new(servers: &[SocketAddr], host: &str, within: Duration) -> Result<Self, SetUpError> {
        let dns = Arc::new(MessageAuthenticator(dns::resolver(servers, true)?));
        Ok(Self { dns, host: host.into(), within, outage: Arc::default() })
    }

    /// Checks a message. Answers within the time limit.
    pub async fn check(&self, incoming: Incoming) -> Verdict {
        let temporary = Verdict::temporary(&incoming.helo, incoming.mail_from.as_deref());
        if self.outage.lock().until.is_some_and(|until| Instant::now() < until) {
            return temporary;
        }
        let (dns, host) = (Arc::clone(&self.dns), Arc::clone(&self.host));
        // A task of its own: a panic in it, as over a message nobody thought of, ends there.
        let mut task = tokio::spawn(async move { check(&dns, &host, &incoming).await });
        let answered = tokio::time::timeout(self.within, &mut task).await;
        self.note(answered.is_ok());
        match answered {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => {
                tracing::error!(%error, "the check of a message failed");
                temporary
            }
            Err(_) => {
                task.abort();
                tracing::debug!("the check of a message ran out of time");
                temporary
            }
        }
    }

    fn note(&self, answered: bool) {
        let mut outage = self.outage.lock();
        if answered {
            *outage = Outage::default();
            return;
        }
        outage.in_a_row = outage.in_a_row.saturating_add(1);
        if outage.in_a_row >= OUT_AFTER {
            outage.until = Some(Instant::now() + OUT_FOR);
            tracing::warn!("DNS does not answer: mail is taken unchecked for {} seconds", OUT_FOR.as_secs());
        }
    }
}

async fn check(dns: &MessageAuthenticator, host: &str, incoming: &Incoming) -> Verdict {
    let remote = incoming.remote.to_canonical();
    let helo = incoming.helo.as_str();
    let helo_spf = async {
        // RFC 7208 2.3: an address literal, or one label, is no name that could have a record.
        if !helo.contains('.') || helo.starts_with('[') || helo.parse::<IpAddr>().is_ok() {
            return no_spf();
        }
        dns.verify_spf(SpfParameters::verify_ehlo(remote, helo, host)).await
    };
    let sender_spf = async {
        let sender = incoming.mail_from.as_deref()?;
        Some(dns.verify_spf(SpfParameters::verify_mail_from(remote, helo, host, sender)).await)
    };
    let section = headers::header_section(&incoming.message);
    let readable = section.len() <= MAX_HEADER;
    let header = if readable { [section, b"\r\n"].concat() } else { b"\r\n".to_vec() };
    let message = AuthenticatedMessage::parse(&header);
    let mut message = message.unwrap_or_default();
    let weak = take_weak(&mut message);
    hash_body(&mut message, &incoming.message.slice(section.len()..)).await;
    let (helo_spf, sender_spf, signatures) = tokio::join!(helo_spf, sender_spf, dns.verify_dkim(&message));

    let (spf, spf_domain) = match (&sender_spf, &incoming.mail_from) {
        (Some(spf), Some(sender)) => (spf, domain_of(sender)),
        _ => (&helo_spf, helo),
    };
    let parameters = DmarcParameters {
        message: &message,
        dkim_output: &signatures,
        dkim2_output: None,
        rfc5321_mail_from_domain: spf_domain,
        spf_output: spf,
    };
    let dmarc = dns.verify_dmarc(parameters).await;
    let mut dkim: Vec<Dkim> = signatures.iter().take(MAX_SIGNATURES).map(signature).collect();
    dkim.extend(weak);
    if !readable {
        dkim.push(Dkim {
            outcome: Outcome::PermError,
            reason: "header section too long",
            domain: String::new(),
            selector: String::new(),
            signature: String::new(),
        });
    }
    let spf_of = |output: &SpfOutput, domain: &str| Spf {
        outcome: spf_outcome(output.result()),
        domain: domain.to_owned(),
    };
    Verdict {
        helo: spf_of(&helo_spf, helo),
        mail_from: sender_spf
            .as_ref()
            .map(|spf| spf_of(spf, incoming.mail_from.as_deref().map_or("", domain_of))),
        dkim,
        dmarc: Dmarc {
            outcome: dmarc_outcome(&dmarc),
            policy: match dmarc.policy() {
                dmarc::Policy::Reject => Policy::Reject,
                dmarc::Policy::Quarantine => Policy::Quarantine,
                dmarc::Policy::None | dmarc::Policy::Unspecified => Policy::None,
            },
            domain: dmarc.domain().to_owned(),
        },
    }
}

fn no_spf() -> SpfOutput {
    SpfOutput::new(String::new()).with_result(SpfResult::None)
}

/// Takes signatures with SHA-1 out, which must not count (RFC 8301 3.1), and those beyond the limit.
fn take_weak(message: &mut AuthenticatedMessage<'_>) -> Vec<Dkim> {
    let mut weak = Vec::new();
    message.dkim_headers.truncate(MAX_SIGNATURES);
    message.dkim_headers.retain(|header| {
        let signature = &header.header;
        let is_weak = signature.a == Algorithm::RsaSha1;
        if is_weak {
            weak.push(Dkim {
                outcome: Outcome::Policy,
                reason: "SHA-1 does not count",
                domain: signature.d.clone(),
                selector: signature.s.clone(),
                signature: STANDARD.encode(&signature.b).chars().take(8).collect(),
            });
        }
        !is_weak
    });
    weak
}

/// Hashes the body in the forms that the signatures name. `rest`: what follows the header section.
async fn hash_body(message: &mut AuthenticatedMessage<'_>, rest: &Bytes) {
    let start = match &rest[..] {
        [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        _ => 0,
    };
    let used = |form: Canonicalization| message.dkim_headers.iter().any(|header| header.header.cb == form);
    for (name, form) in [(Canonicalization::Relaxed, Form::Relaxed), (Canonicalization::Simple, Form::Simple)]
    {
        if !used(name) {
            continue;
        }
        let body = rest.slice(start..);
        // Tens of milliseconds for the largest messages.
        let hashed = tokio::task::spawn_blocking(move || {
            let mut context = digest::Context::new(&digest::SHA256);
            canonical::body(form, &body, |piece| context.update(piece));
            context.finish()
        });
        let Ok(hashed) = hashed.await else { continue };
        // Signatures with a length (`l=`) were refused when they were read: they cover less than is shown.
        for (canonicalization, algorithm, length, hash) in &mut message.body_hashes {
            if *canonicalization == name && *algorithm == HashAlgorithm::Sha256 && *length == 0 {
                *hash = hashed.as_ref().to_vec();
            }
        }
    }
}

fn spf_outcome(result: SpfResult) -> Outcome {
    match result {
        SpfResult::Pass => Outcome::Pass,
        SpfResult::Fail => Outcome::Fail,
        SpfResult::SoftFail => Outcome::SoftFail,
        SpfResult::Neutral => Outcome::Neutral,
        SpfResult::TempError => Outcome::TempError,
        SpfResult::PermError => Outcome::PermError,
        SpfResult::None => Outcome::None,
    }
}

/// RFC 9989 5.4: one aligned identifier that passes is enough; with none, an error of DNS leaves it open.
fn dmarc_outcome(output: &mail_auth::DmarcOutput) -> Outcome {
    let results = [output.dkim_result(), output.spf_result()];
    if results.iter().any(|result| matches!(result, DmarcResult::Pass)) {
        Outcome::Pass
    } else if results.iter().any(|result| matches!(result, DmarcResult::TempError(_))) {
        Outcome::TempError
    } else if output.dmarc_record().is_some() {
        Outcome::Fail
    } else if results.iter().any(|result| matches!(result, DmarcResult::PermError(_))) {
        Outcome::PermError
    } else {
        Outcome::None
    }
}

fn signature(output: &DkimOutput<'_>) -> Dkim {
    let (outcome, error) = match output.result() {
        DkimResult::Pass => (Outcome::Pass, None),
        // RFC 8601 2.7.1: neutral is for signatures that could not be read; these were read, and are wrong.
        DkimResult::Neutral(error @ Error::Dkim(DkimError::FailedBodyHashMatch)) => {
            (Outcome::Fail, Some(error))
        }
        DkimResult::Neutral(error) => (Outcome::Neutral, Some(error)),
        DkimResult::Fail(error) => (Outcome::Fail, Some(error)),
        DkimResult::PermError(error) => (Outcome::PermError, Some(error)),
        DkimResult::TempError(error) => (Outcome::TempError, Some(error)),
        DkimResult::None => (Outcome::None, None),
    };
    let signature = output.signature();
    Dkim {
        outcome,
        reason: error.map_or("", reason),
        domain: signature.map(|s| s.d.clone()).unwrap_or_default(),
        selector: signature.map(|s| s.s.clone()).unwrap_or_default(),
        signature: signature.map(|s| STANDARD.encode(&s.b).chars().take(8).collect()).unwrap_or_default(),
    }
}

/// A fixed text: what a library or DNS says may hold anything.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::Dkim(DkimError::FailedBodyHashMatch) => "body hash did not verify",
        Error::Dkim(DkimError::SignatureExpired) => "signature expired",
        Error::Dkim(DkimError::SignatureLength) => "covers only a part of the body",
        Error::Dkim(DkimError::RevokedPublicKey) => "key revoked",
        Error::Dkim(DkimError::FailedAuidMatch) => "identity does not match the domain",
        Error::Dkim(_) => "unsupported signature",
        Error::Crypto(CryptoError::FailedVerification | CryptoError::Library(_)) => {
            "signature did not verify"
        }
        Error::Crypto(CryptoError::IncompatibleAlgorithms) => "key is of another algorithm",
        Error::Dns(mail_auth::DnsError::Resolver(_)) => "DNS did not answer",
        Error::Dns(_) => "no key for signature",
        _ => "not readable",
    }
}
