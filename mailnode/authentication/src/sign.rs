//! DKIM signatures on mail that goes out. RFC 6376 5, RFC 8301, RFC 8463.
//!
//! What is signed is what is queued, so every attempt of delivery sends the same bytes. Relaxed forms for header and body:
//! relays fold lines anew and change white space.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use quorumail_message::{
    Domain,
    headers::{self, Field},
};
use ring::{
    digest, rand,
    signature::{self, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};

use crate::canonical::{self, Form};

/// Fields that are signed once more than they are there, so that none can be added later without breaking the signature:
/// what people see, and what tells programs how to show it. RFC 6376 5.4.2 and 8.15.
const OVERSIGNED: [&str; 11] = [
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Reply-To",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Content-Disposition",
];
/// Fields that are signed where they are: who forwards may add some. RFC 6376 5.4.1.
const SIGNED: [&str; 7] = [
    "Sender",
    "In-Reply-To",
    "References",
    "List-Id",
    "List-Post",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];
/// Fields of one name that are signed; a message with more is none that a person sent.
const MAX_OF_A_NAME: usize = 16;
/// Signatures on one message.
pub const MAX_KEYS: usize = 8;
/// RFC 8301 3.2: signers must use at least 1024 bits and should use 2048.
const LEAST_RSA_BITS: usize = 2048;
/// Characters of base64 on a line.
const LINE: usize = 72;

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// `rsa-sha256`, RFC 6376 3.3.1.
    Rsa,
    /// `ed25519-sha256`, RFC 8463.
    Ed25519,
}

impl Algorithm {
    /// `a=`.
    fn tag(self) -> &'static str {
        match self {
            Self::Rsa => "rsa-sha256",
            Self::Ed25519 => "ed25519-sha256",
        }
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is no key of its algorithm in PKCS #8 form.
    #[error(
        "the key of selector {0} is no {1:?} key in PKCS #8 form, or RSA with less than {LEAST_RSA_BITS} bits"
    )]
    NotAKey(String, Algorithm),
    /// RFC 6376 3.1: labels of a name.
    #[error("{0:?} is no selector: letters, digits and hyphens, in labels of at most 63")]
    NotASelector(String),
}

enum Pair {
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A private key with its selector.
pub struct SigningKey {
    selector: String,
    pair: Pair,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("selector", &self.selector).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// From PKCS #8 DER (RFC 5208; RFC 8410 for Ed25519).
    pub fn from_pkcs8(selector: &str, algorithm: Algorithm, der: &[u8]) -> Result<Self, KeyError> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if selector.len() > 128 || !selector.split('.').all(is_label) {
            return Err(KeyError::NotASelector(selector.chars().take(128).collect()));
        }
        let not_a_key = || KeyError::NotAKey(selector.to_owned(), algorithm);
        let pair = match algorithm {
            Algorithm::Rsa => {
                let pair = RsaKeyPair::from_pkcs8(der).map_err(|_| not_a_key())?;
                if pair.public().modulus_len() * 8 < LEAST_RSA_BITS {
                    return Err(not_a_key());
                }
                Pair::Rsa(pair)
            }
            Algorithm::Ed25519 => {
                Pair::Ed25519(Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| not_a_key())?)
            }
        };
        Ok(Self { selector: selector.to_owned(), pair })
    }

    /// RFC 6376 3.1: the first labels of the name under which the public key stands.
    pub fn selector(&self) -> &str {
        &self.selector
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Rsa(_) => Algorithm::Rsa,
            Pair::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    /// The text of the TXT record with the public key. RFC 6376 3.6.1, RFC 8463 4.
    pub fn record(&self) -> String {
        match &self.pair {
            Pair::Rsa(pair) => format!("v=DKIM1; k=rsa; p={}", STANDARD.encode(spki(pair.public().as_ref()))),
            Pair::Ed25519(pair) => {
                format!("v=DKIM1; k=ed25519; p={}", STANDARD.encode(pair.public_key().as_ref()))
            }
        }
    }

    fn sign(&self, header: &[u8]) -> Option<Vec<u8>> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signed = vec![0; pair.public().modulus_len()];
                let random = rand::SystemRandom::new();
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, header, &mut signed).ok()?;
                Some(signed)
            }
            // RFC 8463 3: what is signed is the hash.
            Pair::Ed25519(pair) => {
                Some(pair.sign(digest::digest(&digest::SHA256, header).as_ref()).as_ref().to_vec())
            }
        }
    }
}

/// RFC 5280 4.1.2.7: an RSA public key as SubjectPublicKeyInfo, which is what verifiers expect (erratum 3017 of RFC 6376).
fn spki(key: &[u8]) -> Vec<u8> {
    // AlgorithmIdentifier: rsaEncryption, NULL. RFC 3279 2.3.1.
    const ALGORITHM: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let bits = der(0x03, &[&[0u8][..], key].concat());
    der(0x30, &[&ALGORITHM[..], &bits].concat())
}

/// Tag, length and content. X.690 8.1.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|b| *b == 0).collect();
    let mut out = vec![tag];
    match (content.len(), u8::try_from(length.len())) {
        (0..128, _) => out.push(length.first().copied().unwrap_or(0)),
        (_, Ok(count)) => {
            out.push(0x80 | count);
            out.extend_from_slice(&length);
        }
        (_, Err(_)) => unreachable!("a length has at most eight bytes"),
    }
    out.extend_from_slice(content);
    out
}

/// DKIM-Signature fields of all keys (the first [`MAX_KEYS`]), to stand at the top of the message. `at`: Unix seconds.
pub fn sign(message: &[u8], domain: &Domain, keys: &[SigningKey], at: i64) -> String {
    let section = headers::header_section(message);
    let rest = &message[section.len()..];
    let body = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    let mut context = digest::Context::new(&digest::SHA256);
    canonical::body(Form::Relaxed, body, |piece| context.update(piece));
    let body_hash = STANDARD.encode(context.finish());

    let fields: Vec<Field<'_>> = headers::fields(section).collect();
    let (names, mut header) = signed_header(&fields);
    let signed_length = header.len();
    let mut top = String::new();
    for key in keys.iter().take(MAX_KEYS) {
        let field = format!(
            "DKIM-Signature: v=1; a={}; c=relaxed/relaxed; d={domain};\r\n\ts={}; t={};\r\n\th={names};\r\n\tbh={body_hash};\
             \r\n\tb=",
            key.algorithm().tag(),
            key.selector,
            at.max(0),
        );
        header.truncate(signed_length);
        canonical::relaxed_field(b"DKIM-Signature", field.as_bytes(), |piece| {
            header.extend_from_slice(piece)
        });
        // RFC 6376 3.7: without its line end.
        header.truncate(header.len() - 2);
        let Some(signed) = key.sign(&header) else {
            tracing::error!(selector = key.selector, "a message could not be signed");
            continue;
        };
        top.push_str(&field);
        top.push_str(&folded(&STANDARD.encode(signed)));
        top.push_str("\r\n");
    }
    top
}

/// The value of `h=`, and the fields that it names in the form that is hashed: of each name the last first. RFC 6376 5.4.2.
fn signed_header(fields: &[Field<'_>]) -> (String, Vec<u8>) {
    let mut names: Vec<&str> = Vec::new();
    let mut header = Vec::new();
    let all = OVERSIGNED.iter().map(|name| (*name, 1)).chain(SIGNED.iter().map(|name| (*name, 0)));
    for (name, more) in all {
        let found = fields.iter().rev().filter(|field| field.is(name)).take(MAX_OF_A_NAME);
        let mut count = more;
        for field in found {
            canonical::relaxed_field(field.name, field.raw, |piece| header.extend_from_slice(piece));
            count += 1;
        }
        names.extend(std::iter::repeat_n(name, count));
    }
    let mut listed = String::new();
    for (number, name) in names.iter().enumerate() {
        match number {
            0 => {}
            n if n % 6 == 0 => listed.push_str(":\r\n\t "),
            _ => listed.push(':'),
        }
        listed.push_str(name);
    }
    (listed, header)
}

/// White space in base64 does not count. RFC 6376 3.2.
fn folded(base64: &str) -> String {
    let mut out = String::with_capacity(base64.len() + base64.len() / LINE * 4);
    for (number, line) in base64.as_bytes().chunks(LINE).enumerate() {
        if number > 0 {
            out.push_str("\r\n\t ");
        }
        out.extend(line.iter().map(|b| char::from(*b)));
    }
    out
}

/// The only author of a message, and none when there is not exactly one: who would be vouched for? RFC 5322 3.6.2.
pub fn author(message: &[u8]) -> Option<String> {
    let section = headers::header_section(message);
    if section.len() > crate::check::MAX_HEADER {
        return None;
    }
    let mut from = headers::fields(section).filter(|field| field.is("From"));
    let (Some(field), None) = (from.next(), from.next()) else { return None };
    let field = [field.raw, b"\r\n"].concat();
    let parsed = mail_auth::AuthenticatedMessage::parse(&field)?;
    match parsed.from.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8463 A.2: an Ed25519 key, as PKCS #8 (RFC 8410 7).
    pub(crate) fn rfc_8463_key() -> Vec<u8> {
        let seed = STANDARD.decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=").unwrap();
        let prefix =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        [&prefix[..], &seed].concat()
    }

    #[test]
    fn the_record_of_a_key_is_that_of_rfc_8463() {
        let key = SigningKey::from_pkcs8("brisbane", Algorithm::Ed25519, &rfc_8463_key()).unwrap();
        assert_eq!(key.record(), "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
    }

    #[test]
    fn what_is_no_key_or_selector_is_refused_without_being_shown() {
        let error = SigningKey::from_pkcs8("s1", Algorithm::Rsa, b"secret-marker").unwrap_err();
        assert!(!error.to_string().contains("marker"), "{error}");
        for selector in ["", "a b", "a..b", "-a", "a;b", &"x".repeat(64)] {
            let error = SigningKey::from_pkcs8(selector, Algorithm::Ed25519, &rfc_8463_key()).unwrap_err();
            assert!(matches!(error, KeyError::NotASelector(_)), "{selector}: {error}");
        }
        let key = SigningKey::from_pkcs8("s1", Algorithm::Ed25519, &rfc_8463_key()).unwrap();
        assert_eq!(format!("{key:?}"), "SigningKey { selector: \"s1\", .. }");
    }

    #[test]
    fn a_message_has_one_author_or_none() {
        let author = |text: &str| super::author(text.as_bytes());
        assert_eq!(author("From: A <A@Example.org>\r\n\r\n").as_deref(), Some("a@example.org"));
        assert_eq!(author("From: \"x@evil.test\" <a@b.org>\r\n\r\n").as_deref(), Some("a@b.org"));
        for none in [
            "",
            "To: a@b\r\n\r\n",
            "From: a@b.org, c@d.org\r\n\r\n",
            "From: a@b.org\r\nFrom: a@b.org\r\n\r\n",
        ] {
            assert_eq!(author(none), None, "{none}");
        }
    }

    #[test]
    fn fields_that_people_see_are_signed_once_more_than_they_are_there() {
        let fields: Vec<_> = headers::fields(b"From: a\r\nSubject: x\r\nReferences: r\r\n\r\n").collect();
        let (names, header) = signed_header(&fields);
        let names: Vec<_> = names.split(':').map(str::trim).collect();
        let count = |name: &str| names.iter().filter(|found| **found == name).count();
        assert_eq!(["From", "Subject", "To", "References", "Sender"].map(count), [2, 2, 1, 1, 0]);
        assert_eq!(header, b"from:a\r\nsubject:x\r\nreferences:r\r\n");
    }
}
