//! Promises about TLS.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod testkit;

use std::sync::Arc;

use quorumail_imap::{Config, Event, TlsSource};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use testkit::{Client, Server, config};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsConnector;

fn certificate() -> (Arc<dyn TlsSource>, TlsConnector) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["mail.example.org".to_owned()]).unwrap();
    let chain = vec![made.cert.der().clone()];
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = Arc::new(server);
    (Arc::new(move || server.clone()), TlsConnector::from(Arc::new(client)))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("mail.example.org").unwrap()
}

#[tokio::test]
async fn starttls_protects_the_login_and_forgets_what_came_before() {
    let (tls, connector) = certificate();
    let config = Config { tls: Some(tls), allow_plaintext_auth_from_loopback: false, ..config() };
    let server = Server::with(config).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // Somebody in between adds a command behind STARTTLS; it must not be run under TLS.
    stream.write_all(b"a STARTTLS\r\nx CAPABILITY\r\n").await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"a OK begin TLS\r\n") {
        assert!(stream.read_buf(&mut said).await.unwrap() > 0, "{}", String::from_utf8_lossy(&said));
    }
    let greeting = String::from_utf8_lossy(&said);
    assert!(greeting.contains(" STARTTLS LOGINDISABLED]"), "{greeting}");
    let mut client = Client::silent(connector.connect(name(), stream).await.unwrap());
    let lines = client.ok("CAPABILITY").await;
    assert!(
        lines.len() == 1 && lines[0].ends_with("AUTH=PLAIN") && !lines[0].contains("STARTTLS"),
        "{lines:?}"
    );
    client.ok("LOGIN alice@example.org \"a \\\"secret\\\"\"").await;
    assert!(client.refused("STARTTLS").await.starts_with("BAD"));
    assert!(server.events.all().contains(&Event::Tls));
}

#[tokio::test]
async fn implicit_tls_greets_under_tls() {
    let (tls, connector) = certificate();
    let config =
        Config { tls: Some(tls), implicit_tls: true, allow_plaintext_auth_from_loopback: false, ..config() };
    let server = Server::with(config).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut client = Client::silent(connector.connect(name(), stream).await.unwrap());
    assert!(client.line().await.contains("AUTH=PLAIN"));
    let body = "Subject: x\r\n\r\n".to_owned() + &"0123456789\r\n".repeat(50_000);
    client.ok("LOGIN alice@example.org \"a \\\"secret\\\"\"").await;
    assert!(client.append("INBOX", "", &body).await.starts_with("OK"));
    client.ok("SELECT INBOX").await;
    assert!(client.ok("FETCH 1 BODY.PEEK[]").await[0].ends_with(&format!("{body})")));
}
