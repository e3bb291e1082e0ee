//! Signatures made here, verified by mail-auth against a DNS server with the keys' own records. Names are promises.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use proptest::prelude::*;
use quorumail_authentication::{
    Algorithm, Checker, Incoming, Outcome, SigningKey, Verdict, sign, testkit::Dns,
};

const RSA: &[u8] = include_bytes!("keys/rsa-2048.pk8");
/// The public part, as openssl writes it.
const RSA_PUBLIC: &str = include_str!("keys/rsa-2048.spki.base64");

fn keys() -> Vec<SigningKey> {
    // RFC 8463 A.2, as PKCS #8 (RFC 8410 7).
    let seed = STANDARD.decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=").unwrap();
    let prefix =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let ed25519 = [&prefix[..], &seed].concat();
    vec![
        SigningKey::from_pkcs8("r1", Algorithm::Rsa, RSA).unwrap(),
        SigningKey::from_pkcs8("e1", Algorithm::Ed25519, &ed25519).unwrap(),
    ]
}

async fn dns() -> Dns {
    let dns = Dns::start().await;
    for key in keys() {
        dns.txt(&format!("{}._domainkey.example.org", key.selector()), &key.record());
    }
    dns.txt("_dmarc.example.org", "v=DMARC1; p=reject");
    dns
}

fn signed(message: &[u8]) -> Bytes {
    let domain = "example.org".parse().unwrap();
    let top = sign(message, &domain, &keys(), 1_700_000_000);
    [top.as_bytes(), message].concat().into()
}

async fn verdict(dns: &Dns, message: Bytes) -> Verdict {
    let checker = Checker::new(&[dns.address], "mail.example.com", Duration::from_secs(10)).unwrap();
    let remote = "192.0.2.1".parse().unwrap();
    checker.check(Incoming { remote, helo: "h".to_owned(), mail_from: None, message }).await
}

fn passes(found: &Verdict) -> bool {
    found.dkim.len() == 2 && found.dkim.iter().all(|dkim| dkim.outcome == Outcome::Pass)
}

#[test]
fn the_record_of_an_rsa_key_is_that_of_openssl() {
    assert_eq!(keys()[0].record(), format!("v=DKIM1; k=rsa; p={}", RSA_PUBLIC.trim_end()));
}

#[tokio::test]
async fn what_is_signed_here_is_good_elsewhere() {
    let dns = dns().await;
    let long = "x".repeat(2000);
    let many = "References: <a@b>\r\n".repeat(40);
    for message in [
        "From: a@example.org\r\nTo: b@x.test\r\nSubject: hello\r\n\r\nText\r\n",
        "From: a@example.org\r\n\r\n",
        "From: a@example.org\r\nSubject:  folded\r\n\t twice  \r\n here \r\n\r\n a  b\t\r\n\r\n \t\r\n\r\n",
        "Received: from x\r\nFrom:  A <a@example.org> \r\nTo:\r\nSubject: s\r\n\r\n.\r\nno end",
        &format!("From: a@example.org\r\n{many}Subject: {long}\r\n\r\n{long}\r\n"),
    ] {
        let found = verdict(&dns, signed(message.as_bytes())).await;
        assert!(passes(&found), "{message:?}: {found:?}");
        assert_eq!(found.dmarc.outcome, Outcome::Pass);
    }
}

#[tokio::test]
async fn what_is_changed_or_added_afterwards_is_not() {
    let dns = dns().await;
    let message = signed(b"From: a@example.org\r\nSubject: hello\r\n\r\nText\r\n");
    let text = String::from_utf8(message.to_vec()).unwrap();
    for changed in [
        text.replace("Text", "Next"),
        text.replace("hello", "hallo"),
        format!("From: b@example.org\r\n{text}"),
        format!("Subject: other\r\n{text}"),
        format!("Reply-To: thief@evil.test\r\n{text}"),
        format!("Content-Type: text/html\r\n{text}"),
        text.replace("d=example.org", "d=example.com"),
    ] {
        let found = verdict(&dns, changed.clone().into()).await;
        assert!(found.dkim.iter().all(|dkim| dkim.outcome != Outcome::Pass), "{changed}: {found:?}");
    }
    // Trace fields may be added, and white space may change.
    let relayed = text.replace("Subject: hello", "SUBJECT:   hello  ").replace("Text", "Text  ");
    assert!(passes(&verdict(&dns, format!("Received: from y\r\n{relayed}").into()).await));
}

#[test]
fn lines_of_a_signature_are_short() {
    let message = signed(b"From: a@example.org\r\n\r\n");
    let text = String::from_utf8(message.to_vec()).unwrap();
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_body_is_signed_so_that_it_is_good(body in proptest::collection::vec(
        prop_oneof![Just("\r\n"), Just(" "), Just("\t"), Just("a"), Just("."), Just("é")], 0..60)) {
        let message = format!("From: a@example.org\r\n\r\n{}", body.concat());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dns = dns().await;
            let found = verdict(&dns, signed(message.as_bytes())).await;
            prop_assert!(passes(&found), "{message:?}: {found:?}");
            Ok(())
        })?;
    }
}
