//! What a check found, and how a message tells it: the Authentication-Results field. RFC 8601.

use std::fmt::Write as _;

use bytes::Bytes;
use quorumail_message::headers::{self, Field};

/// Longest value that is copied from a message into the field.
const MAX_VALUE: usize = 253;
/// Comments within comments; deeper ones are no field of ours.
const MAX_COMMENT_DEPTH: usize = 16;

/// RFC 8601 2.7: the result of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Outcome {
    None,
    Pass,
    Fail,
    SoftFail,
    Neutral,
    Policy,
    TempError,
    PermError,
}

impl Outcome {
    /// As it is written in the field, and as a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::SoftFail => "softfail",
            Self::Neutral => "neutral",
            Self::Policy => "policy",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

/// SPF of one identity. RFC 7208 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spf {
    /// Result.
    pub outcome: Outcome,
    /// Its domain.
    pub domain: String,
}

/// One signature. RFC 6376.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dkim {
    /// Result.
    pub outcome: Outcome,
    /// Why it is not pass; a fixed text.
    pub reason: &'static str,
    /// `d=`; empty when the signature cannot be read.
    pub domain: String,
    /// `s=`.
    pub selector: String,
    /// The first characters of `b=`, which tell signatures of one domain apart (RFC 6008).
    pub signature: String,
}

/// RFC 9989 4.7: what the owner of a domain asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Policy {
    None,
    Quarantine,
    Reject,
}

impl Policy {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Quarantine => "quarantine",
            Self::Reject => "reject",
        }
    }
}

/// DMARC of the author's domain. RFC 9989.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dmarc {
    /// Result; none: the domain has no policy, or there is not one author's domain.
    pub outcome: Outcome,
    /// What is asked for when it fails.
    pub policy: Policy,
    /// The domain of From.
    pub domain: String,
}

/// All that was found of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// SPF of HELO.
    pub helo: Spf,
    /// SPF of MAIL FROM; none for the null reverse-path.
    pub mail_from: Option<Spf>,
    /// One for each signature; empty: there is none.
    pub dkim: Vec<Dkim>,
    /// DMARC.
    pub dmarc: Dmarc,
}

impl Verdict {
    /// Nothing could be found out for now.
    pub fn temporary(helo: &str, mail_from: Option<&str>) -> Self {
        let spf = |domain: &str| Spf { outcome: Outcome::TempError, domain: domain.to_owned() };
        let dkim = Dkim {
            outcome: Outcome::TempError,
            reason: "not checked",
            domain: String::new(),
            selector: String::new(),
            signature: String::new(),
        };
        Self {
            helo: spf(helo),
            mail_from: mail_from.map(|address| spf(domain_of(address))),
            dkim: vec![dkim],
            dmarc: Dmarc { outcome: Outcome::TempError, policy: Policy::None, domain: String::new() },
        }
    }

    /// Whether the owner of the author's domain asks that the message be refused.
    pub fn is_to_be_refused(&self) -> bool {
        self.dmarc.outcome == Outcome::Fail && self.dmarc.policy == Policy::Reject
    }

    /// SPF as a whole: of MAIL FROM, or of HELO for the null reverse-path (RFC 7208 2.4).
    pub fn spf(&self) -> &Spf {
        self.mail_from.as_ref().unwrap_or(&self.helo)
    }

    /// DKIM as a whole: the best of the signatures.
    pub fn best_dkim(&self) -> Outcome {
        let order = [Outcome::Pass, Outcome::TempError, Outcome::Fail, Outcome::PermError, Outcome::Policy];
        let has = |outcome: &Outcome| self.dkim.iter().any(|dkim| dkim.outcome == *outcome);
        let first = || self.dkim.first().map_or(Outcome::None, |dkim| dkim.outcome);
        order.into_iter().find(has).unwrap_or_else(first)
    }

    /// The whole field, folded, with CRLF at its end. RFC 8601 2.2.
    pub fn to_header(&self, authserv_id: &str) -> String {
        let mut field = format!("Authentication-Results: {}", value(authserv_id));
        // Writing to a string does not fail.
        let _ =
            write!(field, ";\r\n\tspf={} smtp.helo={}", self.helo.outcome.as_str(), value(&self.helo.domain));
        if let Some(spf) = &self.mail_from {
            let _ = write!(field, ";\r\n\tspf={} smtp.mailfrom={}", spf.outcome.as_str(), value(&spf.domain));
        }
        if self.dkim.is_empty() {
            field.push_str(";\r\n\tdkim=none");
        }
        for dkim in &self.dkim {
            let _ = write!(field, ";\r\n\tdkim={}", dkim.outcome.as_str());
            if !dkim.reason.is_empty() {
                let _ = write!(field, " ({})", dkim.reason);
            }
            for (name, text) in [("d", &dkim.domain), ("s", &dkim.selector), ("b", &dkim.signature)] {
                if !text.is_empty() {
                    let _ = write!(field, " header.{name}={}", value(text));
                }
            }
        }
        let _ = write!(field, ";\r\n\tdmarc={}", self.dmarc.outcome.as_str());
        if !matches!(self.dmarc.outcome, Outcome::None | Outcome::TempError) {
            let _ = write!(field, " (p={})", self.dmarc.policy.as_str());
        }
        if !self.dmarc.domain.is_empty() {
            let _ = write!(field, " header.from={}", value(&self.dmarc.domain));
        }
        field.push_str("\r\n");
        field
    }
}

/// What stands after the last `@`.
pub(crate) fn domain_of(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, domain)| domain)
}

/// RFC 8601 2.2, pvalue: a token where it can be one, else a quoted string. What could break the field is replaced.
fn value(text: &str) -> String {
    let text: String = text
        .chars()
        .take(MAX_VALUE)
        .map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '?' })
        .collect();
    // RFC 2045 5.1, tspecials; `@`, `/` and `=` among them are seen in base64 and addresses.
    let is_token = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._+".contains(c));
    if is_token { text } else { format!("\"{text}\"") }
}

/// The message without the Authentication-Results fields that claim to be ours: only this host may write them. RFC 8601
/// 5.
pub fn without_forged(message: &Bytes, authserv_id: &str) -> Bytes {
    let is_forged = |field: &Field<'_>| {
        field.is("Authentication-Results")
            && id_of(field.raw).is_some_and(|id| id.eq_ignore_ascii_case(authserv_id.as_bytes()))
    };
    if !headers::fields(message).any(|field| is_forged(&field)) {
        return message.clone();
    }
    let mut kept = Vec::with_capacity(message.len());
    let mut header = 0;
    for field in headers::fields(message) {
        header += field.raw.len();
        if !is_forged(&field) {
            kept.extend_from_slice(field.raw);
        }
    }
    kept.extend_from_slice(&message[header..]);
    kept.into()
}

/// The authserv-id of a field: the first word after comments and white space.
fn id_of(raw: &[u8]) -> Option<Vec<u8>> {
    let colon = raw.iter().position(|b| *b == b':')?;
    let mut rest = &raw[colon + 1..];
    loop {
        rest = rest.trim_ascii_start();
        match rest.first()? {
            b'(' => rest = after_comment(rest)?,
            b'"' => return quoted(&rest[1..]),
            _ => break,
        }
    }
    let end = rest.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b';' | b'(' | b'"'));
    Some(rest[..end.unwrap_or(rest.len())].to_vec())
}

/// What follows a comment. RFC 5322 3.2.2.
fn after_comment(text: &[u8]) -> Option<&[u8]> {
    let mut depth = 0;
    let mut at = 0;
    while let Some(b) = text.get(at) {
        match b {
            b'\\' => at += 1,
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 || depth > MAX_COMMENT_DEPTH {
            return text.get(at..);
        }
    }
    None
}

/// The content of a quoted string that has begun. RFC 5322 3.2.4.
fn quoted(text: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let mut bytes = text.iter();
    loop {
        match bytes.next()? {
            b'"' => return Some(content),
            b'\\' => content.push(*bytes.next()?),
            b'\r' | b'\n' => {}
            b => content.push(*b),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict() -> Verdict {
        Verdict {
            helo: Spf { outcome: Outcome::None, domain: "client.example.com".to_owned() },
            mail_from: Some(Spf { outcome: Outcome::Pass, domain: "example.com".to_owned() }),
            dkim: vec![Dkim {
                outcome: Outcome::Pass,
                reason: "",
                domain: "example.com".to_owned(),
                selector: "s1".to_owned(),
                signature: "ab/c+1==".to_owned(),
            }],
            dmarc: Dmarc { outcome: Outcome::Pass, policy: Policy::Reject, domain: "example.com".to_owned() },
        }
    }

    #[test]
    fn the_field_tells_what_was_found() {
        assert_eq!(
            verdict().to_header("mail.example.org"),
            "Authentication-Results: mail.example.org;\r\n\tspf=none smtp.helo=client.example.com;\r\n\
             \tspf=pass smtp.mailfrom=example.com;\r\n\
             \tdkim=pass header.d=example.com header.s=s1 header.b=\"ab/c+1==\";\r\n\
             \tdmarc=pass (p=reject) header.from=example.com\r\n"
        );
    }

    #[test]
    fn only_fields_of_our_own_id_are_forged() {
        let ours = [
            "Authentication-Results: mail.example.org; spf=pass\r\n",
            "authentication-results : (a (nested) comment)\r\n MAIL.example.org 1; dkim=pass\r\n",
            "Authentication-Results: \"mail.example.org\"; none\r\n",
            "Authentication-Results:mail.example.org(x);none\r\n",
        ];
        let others = [
            "Authentication-Results: mail.example.org.evil.test; spf=pass\r\n",
            "Authentication-Results: mx.example.com; spf=pass smtp.mailfrom=mail.example.org\r\n",
            "Subject: Authentication-Results: mail.example.org\r\n",
        ];
        let body = "\r\nAuthentication-Results: mail.example.org; in the text\r\n";
        let message: Bytes = [ours.concat(), others.concat(), body.to_owned()].concat().into();
        let left = without_forged(&message, "mail.example.org");
        assert_eq!(left, Bytes::from([others.concat(), body.to_owned()].concat()));
        let untouched: Bytes = others.concat().into();
        assert_eq!(without_forged(&untouched, "mail.example.org").as_ptr(), untouched.as_ptr());
    }

    #[test]
    fn only_a_failure_with_policy_reject_is_to_be_refused() {
        for (outcome, policy, refused) in [
            (Outcome::Fail, Policy::Reject, true),
            (Outcome::Fail, Policy::Quarantine, false),
            (Outcome::TempError, Policy::Reject, false),
            (Outcome::Pass, Policy::Reject, false),
        ] {
            let dmarc = Dmarc { outcome, policy, domain: String::new() };
            assert_eq!(Verdict { dmarc, ..verdict() }.is_to_be_refused(), refused);
        }
    }

    proptest! {
        #[test]
        fn nothing_breaks_out_of_the_field(helo in ".*", domain in ".*", selector in ".*") {
            let mut found = verdict();
            found.helo.domain = helo;
            found.dkim[0].domain = domain.clone();
            found.dkim[0].selector = selector;
            found.dmarc.domain = domain;
            let field = found.to_header("mail.example.org");
            prop_assert_eq!(field.matches("\r\n").count(), 5);
            prop_assert!(field.is_ascii());
            prop_assert!(field.lines().all(|line| line.len() <= 998));
            prop_assert_eq!(field.matches('"').count() % 2, 0);
        }

        #[test]
        fn any_message_keeps_its_body(message in proptest::collection::vec(any::<u8>(), 0..300)) {
            let message: Bytes = [b"Authentication-Results: h; x\r\n".as_slice(), &message].concat().into();
            let left = without_forged(&message, "h");
            let header = headers::header_section(&message).len();
            prop_assert!(left.ends_with(&message[header..]));
        }
    }
}
