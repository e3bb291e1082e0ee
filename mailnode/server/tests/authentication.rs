//! Whose mail is: checks of what comes in, through a real node and a DNS server with a few names. Names are promises.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::{
    Cluster, PASSWORD,
    clients::{Imap, Smtp},
};
use std::time::Duration;

use quorumail_authentication::{Algorithm, Checker, Incoming, Outcome, SigningKey, testkit::Dns};
use quorumail_proto::admin::{
    DirectoryChange, DkimKey, Domain, directory_change::Change, dkim_key::Algorithm as Named,
};
use quorumail_server::config::Port;

/// A node that checks, and the DNS that it asks.
async fn checking(more: &str) -> (Cluster, Dns) {
    let dns = Dns::start().await;
    dns.txt("good.test", "v=spf1 ip4:127.0.0.0/8 -all")
        .txt("_dmarc.good.test", "v=DMARC1; p=reject")
        .txt("strict.test", "v=spf1 -all")
        .txt("_dmarc.strict.test", "v=DMARC1; p=reject");
    let config = format!("smtp: {{dnsServers: [\"{}\"], authentication: {{{more}}}}}", dns.address);
    let cluster = Cluster::start_with(1, 1, &config).await;
    cluster.accounts(0, &["alice", "bob"]).await;
    (cluster, dns)
}

async fn send(cluster: &Cluster, from: &str, to: &[&str], text: &str) -> String {
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    smtp.send(from, to, text).await.unwrap()
}

async fn last_message(cluster: &Cluster, who: &str) -> String {
    let mut imap = Imap::login(cluster.address(0, Port::Imap), who).await.unwrap();
    imap.ok("SELECT INBOX").await;
    imap.ok("FETCH * BODY.PEEK[]").await
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_from_outside_is_checked_and_tells_so_and_forged_results_go() {
    let (cluster, _dns) = checking("").await;
    let text = "Authentication-Results: MAIL0.test; dmarc=pass header.from=bank.test\r\n\
                Authentication-Results: elsewhere.test; spf=pass\r\n\
                From: <a@good.test>\r\nSubject: hello\r\n\r\nText\r\n";
    let reply = send(&cluster, "a@good.test", &["alice@example.org"], text).await;
    assert!(reply.starts_with("250"), "{reply}");
    let message = last_message(&cluster, "alice@example.org").await;
    let expected = "Return-Path: <a@good.test>\r\nAuthentication-Results: mail0.test;\r\n\
                    \tspf=none smtp.helo=client.test;\r\n\tspf=pass smtp.mailfrom=good.test;\r\n\tdkim=none;\r\n\
                    \tdmarc=pass (p=reject) header.from=good.test\r\nReceived: from client.test";
    assert!(message.contains(expected), "{message}");
    assert!(!message.contains("bank.test") && message.contains("elsewhere.test; spf=pass"), "{message}");

    let metrics = cluster.get(0, "/metrics").await.unwrap().1;
    for line in [
        "quorumail_authentication_checks_total{method=\"spf\",result=\"pass\"} 1",
        "quorumail_authentication_checks_total{method=\"dkim\",result=\"none\"} 1",
        "quorumail_authentication_checks_total{method=\"dmarc\",result=\"pass\"} 1",
        "quorumail_authentication_refused_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_its_domain_disowns_is_refused_and_what_dns_cannot_tell_is_taken() {
    let (cluster, _dns) = checking("within: 1s").await;
    let text = |domain: &str| format!("From: <a@{domain}>\r\nSubject: hello\r\n\r\nText\r\n");
    let to = ["alice@example.org", "bob@example.org"];
    for to in [&to[..1], &to] {
        let reply = send(&cluster, "a@strict.test", to, &text("strict.test")).await;
        assert!(reply.starts_with("550 5.7.26") && reply.contains("strict.test"), "{reply}");
        for domain in ["broken.test", "silent.test", "nowhere.test"] {
            let reply = send(&cluster, &format!("a@{domain}"), to, &text(domain)).await;
            assert!(reply.starts_with("250"), "{domain}: {reply}");
        }
    }
    let metrics = cluster.get(0, "/metrics").await.unwrap().1;
    assert!(metrics.contains("quorumail_authentication_refused_total 2"), "{metrics}");

    // Our own people are not checked.
    let mut smtp = Smtp::connect(cluster.address(0, Port::Submission)).await.unwrap();
    smtp.login("alice@example.org", PASSWORD).await.unwrap();
    let forged = format!("Authentication-Results: mail0.test; spf=pass\r\n{}", text("example.org"));
    let reply = smtp.send("alice@example.org", &["bob@example.org"], &forged).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let message = last_message(&cluster, "bob@example.org").await;
    assert!(message.contains("<a@example.org>") && !message.contains("Authentication-Results"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_only_watches_takes_mail_that_its_domain_disowns() {
    let (cluster, _dns) = checking("enforceDmarc: false").await;
    let text = "From: <a@strict.test>\r\n\r\nText\r\n";
    let reply = send(&cluster, "a@strict.test", &["alice@example.org"], text).await;
    assert!(reply.starts_with("250"), "{reply}");
    let message = last_message(&cluster, "alice@example.org").await;
    assert!(message.contains("dmarc=fail (p=reject) header.from=strict.test"), "{message}");
}

const RSA: &[u8] = include_bytes!("../../authentication/tests/keys/rsa-2048.pk8");

fn domain_with_keys(domain: &str, revision: &str, keys: Vec<DkimKey>) -> DirectoryChange {
    let domain = Domain {
        domain: domain.to_owned(),
        aliases: vec![format!("alias.{domain}")],
        revision: revision.to_owned(),
        dkim_keys: keys,
        ..Domain::default()
    };
    DirectoryChange { change: Some(Change::PutDomain(domain)) }
}

fn rsa_key() -> DkimKey {
    DkimKey { selector: "s1".to_owned(), algorithm: Named::Rsa.into(), private_key: RSA.to_vec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn submitted_mail_is_signed_on_every_node_and_only_in_the_name_of_its_author() {
    let cluster = Cluster::start(3, 2).await;
    cluster.accounts(0, &["alice", "bob"]).await;
    let key = SigningKey::from_pkcs8("s1", Algorithm::Rsa, RSA).unwrap();
    let changes = vec![
        domain_with_keys("example.org", "2", vec![rsa_key()]),
        domain_with_keys("other.test", "1", vec![rsa_key()]),
    ];
    assert!(cluster.apply(0, changes).await.iter().all(|result| result.code == 1));
    let dns = Dns::start().await;
    for domain in ["example.org", "alias.example.org", "other.test"] {
        dns.txt(&format!("s1._domainkey.{domain}"), &key.record());
    }
    let checker = Checker::new(&[dns.address], "mail.test", Duration::from_secs(10)).unwrap();

    // A key that was just put is there on every node, also after all of them were killed.
    for round in 0..2 {
        for node in 0..3 {
            let address = cluster.address(node, Port::Submission);
            let mut smtp = Smtp::connect(address).await.unwrap();
            smtp.login("alice@example.org", PASSWORD).await.unwrap();
            for (from, domain) in [
                ("alice@example.org", Some("example.org")),
                ("Alice <ALICE@alias.example.org>", Some("alias.example.org")),
                ("bob@example.org", None),
                ("alice@other.test", None),
                ("alice@example.org, bob@example.org", None),
            ] {
                let text = format!("From: {from}\r\nSubject: hi\r\n\r\n \r\nText \r\n\r\n");
                let reply = smtp.send("alice@example.org", &["bob@example.org"], &text).await.unwrap();
                assert!(reply.starts_with("250"), "{reply}");
                let fetched = last_message(&cluster, "bob@example.org").await;
                let message = fetched.split_once("Return-Path").unwrap().1;
                let message = format!("Return-Path{}", message.rsplit_once(")\r\n").unwrap().0);
                let incoming = Incoming {
                    remote: "192.0.2.1".parse().unwrap(),
                    helo: "h".to_owned(),
                    mail_from: None,
                    message: message.clone().into(),
                };
                let found = checker.check(incoming).await;
                let good = found.dkim.iter().find(|dkim| dkim.outcome == Outcome::Pass);
                assert_eq!(good.map(|dkim| dkim.domain.as_str()), domain, "{from}: {found:?} of {message}");
                assert_eq!(found.dkim.len(), usize::from(domain.is_some()), "{message}");
            }
        }
        if round == 0 {
            (0..3).for_each(|node| cluster.kill(node));
            (0..3).for_each(|node| cluster.spawn(node));
            for node in 0..3 {
                cluster.wait_ready(node).await;
            }
        }
    }
    let log: String = (0..3).map(|node| cluster.log(node)).collect();
    assert!(!log.contains("private"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_sign_is_refused_and_not_shown() {
    let cluster = Cluster::start(1, 1).await;
    let bad = DkimKey { private_key: b"secret-marker".to_vec(), ..rsa_key() };
    let results = cluster.apply(0, vec![domain_with_keys("example.org", "1", vec![bad])]).await;
    assert!(results[0].code == 2 && results[0].message.contains("s1"), "{results:?}");
    assert!(!format!("{results:?}{}", cluster.log(0)).contains("marker"));
}
