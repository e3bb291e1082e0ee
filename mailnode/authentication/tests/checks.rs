//! Messages checked against a real resolver and a DNS server with a few names. Names are promises.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use quorumail_authentication::{Checker, Incoming, Outcome, Policy, Verdict, testkit::Dns};

const PATIENCE: Duration = Duration::from_secs(10);

/// RFC 8463 Appendix A: one message with two signatures, made by another implementation.
const SIGNED: &str = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n\
 \x20d=football.example.com; i=@football.example.com;\r\n\
 \x20q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n\
 \x20subject : date : message-id : from : subject : date;\r\n\
 \x20bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n\
 \x20b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n\
 \x20Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n\
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n\
 \x20d=football.example.com; i=@football.example.com;\r\n\
 \x20q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r\n\
 \x20date : message-id : from : subject : date;\r\n\
 \x20bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n\
 \x20b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3\r\n\
 \x20DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz\r\n\
 \x20dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=\r\n\
From: Joe SixPack <joe@football.example.com>\r\n\
To: Suzie Q <suzie@shopping.example.net>\r\n\
Subject: Is dinner ready?\r\n\
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\
\r\n\
Hi.\r\n\
\r\n\
We lost the game.  Are you hungry yet?\r\n\
\r\n\
Joe.\r\n";

async fn dns() -> Dns {
    let dns = Dns::start().await;
    dns.txt(
        "brisbane._domainkey.football.example.com",
        "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    )
    .txt(
        "test._domainkey.football.example.com",
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi\
         Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kr\
         yOTIKT+l/K4w3QIDAQAB",
    )
    .txt("football.example.com", "v=spf1 ip4:192.0.2.0/24 -all")
    .txt("_dmarc.football.example.com", "v=DMARC1; p=reject; rua=mailto:d@football.example.com")
    .txt("_dmarc.weak.test", "v=DMARC1; p=none")
    .txt("weak.test", "v=spf1 ~all")
    .txt("_dmarc.broken.test", "v=DMARC1; p=reject")
    .txt("_dmarc.silent.test", "v=DMARC1; p=reject");
    dns
}

fn checker(dns: &Dns, within: Duration) -> Checker {
    Checker::new(&[dns.address], "mail.example.org", within).unwrap()
}

fn incoming(remote: &str, from: &str, message: &str) -> Incoming {
    Incoming {
        remote: remote.parse().unwrap(),
        helo: "client.example.com".to_owned(),
        mail_from: (!from.is_empty()).then(|| from.to_owned()),
        message: message.to_owned().into(),
    }
}

async fn verdict(remote: &str, from: &str, message: &str) -> Verdict {
    let dns = dns().await;
    checker(&dns, PATIENCE).check(incoming(remote, from, message)).await
}

fn plain(from: &str) -> String {
    format!("From: <a@{from}>\r\nSubject: x\r\n\r\nText\r\n")
}

#[tokio::test]
async fn the_signatures_of_rfc_8463_are_good_and_so_is_the_domain() {
    // From an address that the domain does not name: DKIM alone carries it.
    let found = verdict("198.51.100.7", "joe@football.example.com", SIGNED).await;
    let signatures: Vec<_> = found.dkim.iter().map(|d| (d.outcome, d.selector.as_str())).collect();
    assert_eq!(signatures, [(Outcome::Pass, "brisbane"), (Outcome::Pass, "test")], "{found:?}");
    assert_eq!(found.spf().outcome, Outcome::Fail);
    assert_eq!((found.dmarc.outcome, found.dmarc.policy), (Outcome::Pass, Policy::Reject));
    assert!(!found.is_to_be_refused());
}

#[tokio::test]
async fn lines_of_white_space_at_the_end_leave_a_relaxed_signature_good() {
    let found = verdict("198.51.100.7", "", &format!("{SIGNED} \t\r\n\r\n  \r\n")).await;
    assert!(found.dkim.iter().all(|dkim| dkim.outcome == Outcome::Pass), "{found:?}");
}

#[tokio::test]
async fn a_changed_body_or_subject_fails_and_is_to_be_refused() {
    for changed in [SIGNED.replace("hungry", "angry"), SIGNED.replace("dinner", "lunch")] {
        let found = verdict("198.51.100.7", "joe@football.example.com", &changed).await;
        assert!(found.dkim.iter().all(|dkim| dkim.outcome == Outcome::Fail), "{found:?}");
        assert!(found.is_to_be_refused(), "{found:?}");
    }
}

#[tokio::test]
async fn a_subject_added_to_a_signed_message_fails() {
    let found = verdict("198.51.100.7", "", &format!("Subject: free money\r\n{SIGNED}")).await;
    assert!(found.dkim.iter().all(|dkim| dkim.outcome == Outcome::Fail), "{found:?}");
}

#[tokio::test]
async fn an_address_that_the_domain_names_is_enough() {
    let found = verdict("::ffff:192.0.2.9", "joe@football.example.com", &plain("football.example.com")).await;
    assert_eq!((found.spf().outcome, found.dmarc.outcome), (Outcome::Pass, Outcome::Pass), "{found:?}");
    assert_eq!(found.best_dkim(), Outcome::None);
}

#[tokio::test]
async fn a_pass_for_another_domain_does_not_carry_the_author() {
    let found = verdict("192.0.2.9", "joe@football.example.com", &plain("weak.test")).await;
    assert_eq!(found.spf().outcome, Outcome::Pass);
    assert_eq!((found.dmarc.outcome, found.dmarc.policy), (Outcome::Fail, Policy::None), "{found:?}");
    assert!(!found.is_to_be_refused());
}

#[tokio::test]
async fn a_domain_without_records_is_none() {
    let found = verdict("192.0.2.9", "a@nowhere.test", &plain("nowhere.test")).await;
    assert_eq!((found.spf().outcome, found.dmarc.outcome), (Outcome::None, Outcome::None), "{found:?}");
}

#[tokio::test]
async fn a_dns_that_fails_is_a_temporary_error() {
    let found = verdict("192.0.2.9", "a@broken.test", &plain("broken.test")).await;
    assert_eq!((found.spf().outcome, found.dmarc.outcome), (Outcome::TempError, Outcome::TempError));
    assert!(!found.is_to_be_refused());
}

#[tokio::test]
async fn a_dns_that_does_not_answer_holds_nothing_up_for_long() {
    let dns = dns().await;
    let checker = checker(&dns, Duration::from_millis(200));
    let begun = Instant::now();
    for _ in 0..20 {
        let found = checker.check(incoming("192.0.2.9", "a@silent.test", &plain("silent.test"))).await;
        assert_eq!(found.dmarc.outcome, Outcome::TempError);
    }
    // Three wait; then it counts as out.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_no_message_is_checked_all_the_same() {
    let dns = dns().await;
    let checker = checker(&dns, PATIENCE);
    let long = format!("X: {}\r\nFrom: <a@weak.test>\r\n\r\n", "x".repeat(300_000));
    let many =
        "DKIM-Signature: v=1; a=rsa-sha256; d=weak.test; s=x; h=from; bh=AA==; b=AA==\r\n".repeat(1000);
    let many = format!("{many}From: <a@weak.test>\r\n\r\n");
    let broken = "DKIM-Signature: \r\nDKIM-Signature: v=1\r\nFrom: \r\n\r\n";
    for message in ["", "\r\n", "no header at all", ": \r\n", broken, &long, &many] {
        let found = checker.check(incoming("2001:db8::1", "a@weak.test", message)).await;
        assert!(found.dkim.len() <= 10, "{}", found.dkim.len());
        assert!(found.dkim.iter().all(|dkim| dkim.outcome != Outcome::Pass), "{found:?}");
        let header = found.to_header("mail.example.org");
        assert!(header.len() < 8192, "{header}");
    }
}

#[tokio::test]
async fn signatures_with_sha_1_do_not_count() {
    let message = SIGNED.replace("rsa-sha256", "rsa-sha1").replace("ed25519-sha256", "rsa-sha1");
    let found = verdict("198.51.100.7", "", &message).await;
    assert!(found.dkim.iter().all(|dkim| dkim.outcome == Outcome::Policy), "{found:?}");
    assert_eq!(found.dmarc.outcome, Outcome::Fail);
}
