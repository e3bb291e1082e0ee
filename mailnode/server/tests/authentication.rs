//! Whose mail is: checks of what comes in, through a real node and a DNS server with a few names. Names are promises.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::{
    Cluster, PASSWORD,
    clients::{Imap, Smtp},
};
use quorumail_authentication::testkit::Dns;
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
