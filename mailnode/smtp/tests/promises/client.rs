//! The client against our own server, and against servers that misbehave.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quorumail_message::Address;
use quorumail_smtp::{
    Service,
    client::{
        Credentials, Delivery, MAX_RECIPIENTS, Options, Outcome, Outgoing, Target, Timeouts, Tls, TlsMode,
        deliver,
    },
};
use rustls::RootCertStore;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc,
};

use crate::harness::{Certificate, Server, address, config};

fn options() -> Options {
    Options {
        helo: "out.example.org".into(),
        tls_mode: TlsMode::Opportunistic,
        tls: Arc::new(Tls::with_roots(RootCertStore::empty())),
        credentials: None,
        timeouts: Timeouts::default(),
    }
}

fn target(address: SocketAddr) -> Target {
    Target { host: "localhost".into(), address }
}

async fn send(to: SocketAddr, recipients: &[&str], body: &[u8], options: &Options) -> Delivery {
    let recipients: Vec<Address> = recipients.iter().map(|r| address(r)).collect();
    let sender = address("alice@example.org");
    let outgoing =
        Outgoing { reverse_path: Some(&sender), recipients: &recipients, eight_bit: !body.is_ascii() };
    deliver(&target(to), outgoing, body, options).await
}

async fn server_with_tls(service: Service, certificate: &Certificate) -> Server {
    let mut settings = config(service);
    let tls = Arc::clone(&certificate.server);
    settings.tls = Some(Arc::new(move || Arc::clone(&tls)));
    Server::start(settings).await
}

fn delivered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Delivered(_))
}

fn status(outcome: &Outcome) -> (&'static str, Option<u16>, &str) {
    match outcome {
        Outcome::Delivered(answer) => ("delivered", answer.code, &answer.status),
        Outcome::Deferred(answer) => ("deferred", answer.code, &answer.status),
        Outcome::Failed(answer) => ("failed", answer.code, &answer.status),
    }
}

/// Answers the n-th line of the n-th connection from a script; the lines it got come out of the channel. A script
/// that has ended closes the connection.
async fn scripted(scripts: Vec<Vec<&'static str>>) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (got, lines) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for script in scripts {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut replies = script.into_iter();
            stream.write_all(replies.next().unwrap().as_bytes()).await.unwrap();
            for reply in replies {
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        break;
                    }
                    let line = line.trim_end().to_owned();
                    let verbs = ["EHLO", "HELO", "MAIL", "RCPT", "DATA", "QUIT", "STAR"];
                    let is_text = line != "." && !verbs.iter().any(|verb| line.starts_with(verb));
                    got.send(line).unwrap();
                    if !is_text {
                        break;
                    }
                }
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    });
    (address, lines)
}

#[tokio::test]
async fn a_message_arrives_as_it_was_with_tls_where_offered() {
    let body = "Subject: dots\r\n\r\n.\r\n..\r\n.x\r\nü\r\nlast line without end";
    for tls in [false, true] {
        let server = match tls {
            true => server_with_tls(Service::Mx, &Certificate::new()).await,
            false => Server::start(config(Service::Mx)).await,
        };
        let delivery = send(server.address, &["bob@example.com"], body.as_bytes(), &options()).await;
        assert!(delivered(&delivery.outcomes[0]), "{delivery:?}");
        assert_eq!(delivery.tls, tls);
        let kept = server.room.kept.lock().unwrap();
        assert_eq!(kept[0].1, format!("{body}\r\n"));
        assert!(kept[0].0.tls == tls && kept[0].0.eight_bit);
    }
}

#[tokio::test]
async fn every_recipient_has_its_own_outcome() {
    let server = Server::start(config(Service::Mx)).await;
    let mut recipients =
        vec!["bob@example.com".to_owned(), "nobody@example.com".into(), "later@example.com".into()];
    recipients.extend((3..MAX_RECIPIENTS).map(|n| format!("r{n}@example.com")));
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let delivery = send(server.address, &recipients, b"text\r\n", &options()).await;
    assert_eq!(status(&delivery.outcomes[0]), ("delivered", Some(250), "2.0.0"));
    assert_eq!(status(&delivery.outcomes[1]), ("failed", Some(550), "5.1.1"));
    assert_eq!(status(&delivery.outcomes[2]), ("deferred", Some(450), "4.2.1"));
    assert!(delivery.outcomes[3..].iter().all(delivered));
    assert_eq!(server.room.kept.lock().unwrap()[0].0.recipients.len(), MAX_RECIPIENTS - 2);

    let delivery = send(server.address, &["nobody@example.com"], b"text\r\n", &options()).await;
    assert_eq!(status(&delivery.outcomes[0]), ("failed", Some(550), "5.1.1"));
    let delivery = send(server.address, &["bob@example.com"], b"refuse\r\n", &options()).await;
    assert_eq!(status(&delivery.outcomes[0]), ("failed", Some(554), "5.6.0"));
    assert_eq!(server.room.bodies().len(), 1);
}

#[tokio::test]
async fn required_tls_takes_no_certificate_that_it_does_not_trust() {
    let certificate = Certificate::new();
    let server = server_with_tls(Service::Mx, &certificate).await;
    let mut options = Options { tls_mode: TlsMode::Required, ..options() };
    let delivery = send(server.address, &["bob@example.com"], b"text\r\n", &options).await;
    assert_eq!(status(&delivery.outcomes[0]), ("deferred", None, "4.7.5"));
    assert!(delivery.try_next);
    options.tls = Arc::new(Tls::with_roots(certificate.roots()));
    let delivery = send(server.address, &["bob@example.com"], b"text\r\n", &options).await;
    assert!(delivered(&delivery.outcomes[0]) && delivery.tls, "{delivery:?}");

    let plain = Server::start(config(Service::Mx)).await;
    let delivery = send(plain.address, &["bob@example.com"], b"text\r\n", &options).await;
    assert_eq!(status(&delivery.outcomes[0]), ("deferred", None, "4.7.10"));
    assert!(plain.room.bodies().is_empty());
}

#[tokio::test]
async fn a_relay_is_logged_in_to() {
    let server = server_with_tls(Service::Submission, &Certificate::new()).await;
    let login = |password: &str| Options {
        credentials: Some(Credentials { username: "alice@example.org".into(), password: password.into() }),
        ..options()
    };
    let delivery = send(server.address, &["bob@example.com"], b"text\r\n", &login("secret")).await;
    assert!(delivered(&delivery.outcomes[0]), "{delivery:?}");
    let delivery = send(server.address, &["bob@example.com"], b"text\r\n", &login("wrong")).await;
    assert_eq!(status(&delivery.outcomes[0]), ("deferred", None, "4.7.8"));
    assert_eq!(server.room.bodies().len(), 1);
}

#[tokio::test]
async fn broken_tls_falls_back_to_plain_text() {
    let (address, _lines) = scripted(vec![
        vec!["220 a\r\n", "250-a\r\n250 STARTTLS\r\n", "220 go\r\n"],
        vec![
            "220 a\r\n",
            "250-a\r\n250 STARTTLS\r\n",
            "250 ok\r\n",
            "250 ok\r\n",
            "354 go\r\n",
            "250 ok\r\n",
            "221 bye\r\n",
        ],
    ])
    .await;
    let delivery = send(address, &["bob@example.com"], b"text\r\n", &options()).await;
    assert!(delivered(&delivery.outcomes[0]) && !delivery.tls, "{delivery:?}");
}

#[tokio::test]
async fn replies_sent_ahead_of_tls_are_not_believed() {
    let mut options = Options { tls_mode: TlsMode::Required, ..options() };
    options.timeouts.command = Duration::from_secs(2);
    let (address, _lines) =
        scripted(vec![vec!["220 a\r\n", "250-a\r\n250 STARTTLS\r\n", "220 go\r\n250 injected\r\n"]]).await;
    let delivery = send(address, &["bob@example.com"], b"text\r\n", &options).await;
    assert_eq!(status(&delivery.outcomes[0]), ("deferred", None, "4.7.5"));
}

#[tokio::test]
async fn eight_bit_text_is_not_sent_where_it_is_not_taken() {
    let (address, mut lines) = scripted(vec![vec!["220 a\r\n", "250-a\r\n250 SIZE\r\n", "250 ok\r\n"]]).await;
    let delivery = send(address, &["bob@example.com"], "ü\r\n".as_bytes(), &options()).await;
    assert_eq!(status(&delivery.outcomes[0]), ("failed", None, "5.6.3"));
    assert_eq!(lines.recv().await.unwrap(), "EHLO out.example.org");
    assert_ne!(lines.recv().await.unwrap_or_default().get(..4), Some("MAIL"));
}

#[tokio::test]
async fn an_old_server_is_spoken_to_in_the_old_way() {
    let (address, mut lines) = scripted(vec![vec![
        "220 a\r\n",
        "502 what\r\n",
        "250 a\r\n",
        "250 ok\r\n",
        "250 ok\r\n",
        "251 ok\r\n",
        "354 go\r\n",
        "250 ok\r\n",
        "221 bye\r\n",
    ]])
    .await;
    let delivery = send(address, &["bob@example.com", "carol@example.com"], b".\r\n", &options()).await;
    assert!(delivery.outcomes.iter().all(delivered), "{delivery:?}");
    let mut said = Vec::new();
    while let Some(line) = lines.recv().await {
        said.push(line);
        if said.last().is_some_and(|line| line == "QUIT") {
            break;
        }
    }
    assert_eq!(
        said[1..5],
        [
            "HELO out.example.org",
            "MAIL FROM:<alice@example.org>",
            "RCPT TO:<bob@example.com>",
            "RCPT TO:<carol@example.com>"
        ]
    );
    assert_eq!(said[5..], ["DATA", "..", ".", "QUIT"]);
}

#[tokio::test]
async fn a_connection_lost_after_the_text_defers_and_tries_no_other_server() {
    let (address, _lines) =
        scripted(vec![vec!["220 a\r\n", "250 a\r\n", "250 ok\r\n", "250 ok\r\n", "354 go\r\n", ""]]).await;
    let delivery = send(address, &["bob@example.com"], b"text\r\n", &options()).await;
    assert_eq!(status(&delivery.outcomes[0]), ("deferred", None, "4.4.2"));
    assert!(!delivery.try_next);
}

#[tokio::test]
async fn servers_that_cannot_be_used_defer_and_the_next_is_tried() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let delivery = send(closed, &["bob@example.com"], b"text\r\n", &options()).await;
    assert_eq!(status(&delivery.outcomes[0]), ("deferred", None, "4.4.1"));
    assert!(delivery.try_next);
    for (greeting, expected) in [
        ("421 4.3.2 busy\r\n", ("deferred", Some(421), "4.3.2")),
        ("554 5.7.1 go away\r\n", ("failed", Some(554), "5.7.1")),
        ("SSH-2.0-x\r\n", ("deferred", None, "4.5.0")),
    ] {
        let (address, _lines) = scripted(vec![vec![greeting]]).await;
        let delivery = send(address, &["bob@example.com"], b"text\r\n", &options()).await;
        assert_eq!(status(&delivery.outcomes[0]), expected);
        assert!(delivery.try_next);
    }
}

#[tokio::test]
async fn endless_replies_and_silence_are_bounded() {
    let mut options = options();
    options.timeouts.greeting = Duration::from_millis(200);
    for flood in [&b"220-more\r\n"[..], b"220 xxxxxxxx", b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let flooding = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while !flood.is_empty() && stream.write_all(flood).await.is_ok() {}
            std::future::pending::<()>().await;
        });
        let delivery = send(address, &["bob@example.com"], b"text\r\n", &options).await;
        assert_eq!(status(&delivery.outcomes[0]).0, "deferred");
        flooding.abort();
    }
}
