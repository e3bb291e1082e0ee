//! STARTTLS, implicit TLS and what may be said before.

use std::sync::{Arc, Mutex};

use quorumail_smtp::{Event, Service};
use tokio::net::TcpStream;

use crate::harness::{ALICE, Certificate, Server, Wire, config};

async fn submission(certificate: &Certificate, implicit_tls: bool) -> Server {
    let mut settings = config(Service::Submission);
    let tls = Arc::clone(&certificate.server);
    settings.tls = Some(Arc::new(move || Arc::clone(&tls)));
    settings.implicit_tls = implicit_tls;
    Server::start(settings).await
}

#[tokio::test]
async fn authentication_is_refused_without_tls() {
    let server = submission(&Certificate::new(), false).await;
    let mut client = server.connect().await;
    client.send("EHLO c\r\n").await;
    let (_, offered) = client.reply().await;
    assert!(offered.contains("STARTTLS") && !offered.contains("AUTH"), "{offered}");
    assert_eq!(client.ask(&format!("AUTH PLAIN {ALICE}")).await, 538);
    assert_eq!(client.ask("AUTH LOGIN").await, 538);
    assert!(server.room.logins.lock().unwrap().is_empty(), "the password was looked at");
}

#[tokio::test]
async fn mail_is_submitted_under_tls_of_both_kinds() {
    let certificate = Certificate::new();
    for implicit in [false, true] {
        let server = submission(&certificate, implicit).await;
        let mut client = Wire::new(TcpStream::connect(server.address).await.unwrap());
        if !implicit {
            assert_eq!(client.reply().await.0, 220);
            assert_eq!(client.ask("EHLO c").await, 250);
            assert_eq!(client.ask("STARTTLS").await, 220);
        }
        let mut client = client.secure(&certificate).await.unwrap();
        if implicit {
            assert_eq!(client.reply().await.0, 220);
        }
        client.send("EHLO c\r\n").await;
        let (_, offered) = client.reply().await;
        assert!(offered.contains("AUTH PLAIN LOGIN") && !offered.contains("STARTTLS"), "{offered}");
        assert_eq!(client.ask(&format!("AUTH PLAIN {ALICE}")).await, 235);
        client.begin().await;
        client.send("text\r\n.\r\n").await;
        assert_eq!(client.reply().await.0, 250);
        assert_eq!(client.ask("QUIT").await, 221);
        assert!(client.ended().await);
        assert!(server.room.kept.lock().unwrap()[0].0.tls);
        assert!(server.room.saw(Event::Tls));
    }
}

#[tokio::test]
async fn commands_sent_before_tls_are_discarded() {
    let certificate = Certificate::new();
    let server = submission(&certificate, false).await;
    let mut client = server.greeted().await;
    client.send("STARTTLS\r\nEHLO evil\r\nNOOP\r\n").await;
    assert_eq!(client.reply().await.0, 220);
    let mut client = client.secure(&certificate).await.unwrap();
    // Neither are the commands answered nor is the EHLO from before remembered.
    assert!(client.is_silent().await);
    assert_eq!(client.ask(&format!("AUTH PLAIN {ALICE}")).await, 503);
    assert_eq!(client.ask("EHLO c").await, 250);
    assert_eq!(client.ask(&format!("AUTH PLAIN {ALICE}")).await, 235);
}

#[tokio::test]
async fn a_changed_certificate_is_used_for_the_next_handshake() {
    let (old, new) = (Certificate::new(), Certificate::new());
    let current = Arc::new(Mutex::new(Arc::clone(&old.server)));
    let mut settings = config(Service::Mx);
    let source = Arc::clone(&current);
    settings.tls = Some(Arc::new(move || Arc::clone(&source.lock().unwrap())));
    let server = Server::start(settings).await;
    for (certificate, other) in [(&old, &new), (&new, &old)] {
        for (trusted, expected) in [(certificate, true), (other, false)] {
            let mut client = server.greeted().await;
            assert_eq!(client.ask("STARTTLS").await, 220);
            assert_eq!(client.secure(trusted).await.is_ok(), expected);
        }
        *current.lock().unwrap() = Arc::clone(&new.server);
    }
}
