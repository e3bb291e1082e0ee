//! What anybody may read of a node: MTA-STS policies (RFC 8461) and settings for mail programs.
//!
//! Whoever asks learns which domains are served here, which SMTP tells as well, and nothing of who has mail in them.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use quorumail_authentication::sts;
use quorumail_message::Domain;
use quorumail_store::{Directory, StsMode};

/// RFC 8461 3.2: the host that is asked for the policy of a domain.
const STS_HOST: &str = "mta-sts.";
/// Where mail programs look for settings of a domain.
const AUTOCONFIG_HOST: &str = "autoconfig.";

/// Answers the public.
pub struct Public {
    hostname: Domain,
    directory: OnceLock<Directory>,
}

impl Public {
    /// `hostname`: that others connect to. Nothing is known before [`Public::open`].
    pub fn new(hostname: Domain) -> Arc<Self> {
        Arc::new(Self { hostname, directory: OnceLock::new() })
    }

    /// From now on this directory is asked.
    pub fn open(&self, directory: Directory) {
        let _ = self.directory.set(directory);
    }

    /// What is served.
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/.well-known/mta-sts.txt", get(sts_policy))
            .route("/mail/config-v1.1.xml", get(settings))
            .route("/.well-known/autoconfig/mail/config-v1.1.xml", get(settings))
            .with_state(Arc::clone(self))
    }

    fn sts_policy(&self, host: &str) -> Option<String> {
        let domain: Domain = host.strip_prefix(STS_HOST)?.parse().ok()?;
        let mode = match self.directory.get()?.sts_mode(&domain)? {
            StsMode::Testing => sts::Mode::Testing,
            StsMode::Enforce => sts::Mode::Enforce,
        };
        Some(sts::policy(mode, self.hostname.as_str()))
    }

    /// Of the domain whose host was asked; the address that mail programs tell makes no difference.
    fn settings(&self, host: &str) -> Option<String> {
        let domain: Domain = host.strip_prefix(AUTOCONFIG_HOST).unwrap_or(host).parse().ok()?;
        self.directory.get()?.domain(&domain)?;
        Some(settings_of(domain.as_str(), self.hostname.as_str()))
    }
}

/// The form that Thunderbird and others read. Both names are host names, which hold nothing that XML would take for its own.
/// The ports are those of the Service, which are not those of the node.
fn settings_of(domain: &str, host: &str) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<clientConfig version=\"1.1\">\n  <emailProvider id=\"{domain}\">\n    \
         <domain>{domain}</domain>\n    <displayName>{domain}</displayName>\n    \
         <displayShortName>{domain}</displayShortName>\n"
    );
    for (element, kind, port, socket) in [
        ("incomingServer", "imap", 993, "SSL"),
        ("incomingServer", "imap", 143, "STARTTLS"),
        ("outgoingServer", "smtp", 465, "SSL"),
        ("outgoingServer", "smtp", 587, "STARTTLS"),
    ] {
        let _ = write!(
            text,
            "    <{element} type=\"{kind}\">\n      <hostname>{host}</hostname>\n      <port>{port}</port>\n      \
             <socketType>{socket}</socketType>\n      <authentication>password-cleartext</authentication>\n      \
             <username>%EMAILADDRESS%</username>\n    </{element}>\n"
        );
    }
    text.push_str("  </emailProvider>\n</clientConfig>\n");
    text
}

/// The name that was asked, in lower case and without a port.
fn host_of(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn answer(content_type: &'static str, text: Option<String>) -> Response {
    match text {
        Some(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        None => (StatusCode::NOT_FOUND, "there is nothing of this domain here\n").into_response(),
    }
}

async fn sts_policy(State(public): State<Arc<Public>>, headers: HeaderMap) -> Response {
    answer("text/plain; charset=utf-8", public.sts_policy(&host_of(&headers)))
}

async fn settings(State(public): State<Arc<Public>>, headers: HeaderMap) -> Response {
    answer("text/xml; charset=utf-8", public.settings(&host_of(&headers)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_known_in_every_form() {
        let host = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, text.parse().unwrap());
            host_of(&headers)
        };
        assert_eq!(host("MTA-STS.Example.ORG"), "mta-sts.example.org");
        assert_eq!(host("mta-sts.example.org:8443"), "mta-sts.example.org");
        assert_eq!(host("mta-sts.example.org."), "mta-sts.example.org");
        assert_eq!(host_of(&HeaderMap::new()), "");
    }

    #[test]
    fn nothing_is_known_before_the_directory_is() {
        let public = Public::new("mail.example.org".parse().unwrap());
        assert_eq!(public.sts_policy("mta-sts.example.org"), None);
        assert_eq!(public.settings("autoconfig.example.org"), None);
    }
}
