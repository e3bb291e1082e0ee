//! The production transport against servers on loopback.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_delivery::{
    Config, LookupFailure, MxRecord, Resolver, SmtpTransport, Tls, Transport, Unobserved, Worker,
};
use quorumail_message::{Address, Domain};
use quorumail_smtp::{AuthFailure, Backend, Budget, Envelope, Identity, Limits, Reject, Service, client};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::world::{Node, P1, World, address, now, quick, until};

/// Takes mail for everybody whose name does not begin with `no`.
#[derive(Default)]
struct Sink {
    taken: Mutex<Vec<(Envelope, Bytes)>>,
}

#[async_trait]
impl Backend for Sink {
    async fn authenticate(&self, _: &str, _: &str, _: IpAddr) -> Result<Identity, AuthFailure> {
        Err(AuthFailure::Denied)
    }

    async fn sender(&self, _: Option<&Address>, _: Option<&Identity>, _: Service) -> Result<(), Reject> {
        Ok(())
    }

    async fn recipient(&self, recipient: &Address, _: Option<&Identity>) -> Result<(), Reject> {
        if recipient.local().starts_with("no") {
            return Err(Reject { code: 550, enhanced: "5.1.1", text: "there is nobody".into() });
        }
        Ok(())
    }

    async fn accept(&self, envelope: Envelope, body: Bytes) -> Result<String, Reject> {
        self.taken.lock().push((envelope, body));
        Ok("taken".into())
    }
}

async fn listen(sink: &Arc<Sink>, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = quorumail_smtp::Config {
        hostname: "sink.x.org".into(),
        max_message_size: 1 << 20,
        service: Service::Mx,
        limits: Limits::default(),
        tls: None,
        implicit_tls: false,
        allow_plaintext_auth_from_loopback: false,
        memory: Budget::new(8 << 20),
    };
    let (config, sink, stop) = (Arc::new(config), sink.clone(), stop.clone());
    tokio::spawn(quorumail_smtp::serve(listener, config, sink, stop, Arc::new(quorumail_smtp::Unobserved)));
    addr
}

/// Every domain's host is this machine.
struct Loopback;

#[async_trait]
impl Resolver for Loopback {
    async fn mx(&self, domain: &Domain) -> Result<Vec<MxRecord>, LookupFailure> {
        Ok(vec![MxRecord { preference: 1, host: format!("mx.{domain}") }])
    }

    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, LookupFailure> {
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }
}

fn transport() -> SmtpTransport {
    let tls = client::Tls::with_roots(rustls::RootCertStore::empty());
    SmtpTransport::new(&"mail.here.org".parse().unwrap(), Arc::new(tls))
}

#[tokio::test]
async fn queued_mail_reaches_a_server_over_smtp_and_refusals_come_back() {
    let (sink, stop) = (Arc::new(Sink::default()), CancellationToken::new());
    let addr = listen(&sink, &stop).await;
    let world = Arc::new(World::default());
    world.local.lock().entry("alice@here.org".into()).or_default();
    let node = Arc::new(Node { world: world.clone(), led: watch::channel(vec![P1]).0 });
    let config = Config { mx_port: addr.port(), ..quick() };
    let worker = Worker::new(config, node, Arc::new(Loopback), Arc::new(transport()), Arc::new(Unobserved));
    let stopped = stop.clone();
    let task = tokio::spawn(async move { worker.run(stopped).await });

    world.enqueue(Some("alice@here.org"), &["bob@x.org", "nobody@x.org"], now());
    until("everything to be done", || world.is_empty()).await;
    {
        let taken = sink.taken.lock();
        let [(envelope, body)] = taken.as_slice() else { panic!("one message, not {}", taken.len()) };
        assert_eq!(envelope.helo, "mail.here.org");
        assert_eq!(envelope.reverse_path, Some(address("alice@here.org")));
        assert_eq!(envelope.recipients, [address("bob@x.org")]);
        assert_eq!(&body[..], b"Subject: hello\r\n\r\nbody\r\n");
    }
    {
        let mailboxes = world.mailboxes.lock();
        let report = String::from_utf8_lossy(&mailboxes[0].2).into_owned();
        assert!(
            report.contains("Final-Recipient: rfc822; nobody@x.org\r\nAction: failed\r\nStatus: 5.1.1\r\n")
        );
        assert!(report.contains("Diagnostic-Code: smtp; 550 5.1.1 there is nobody\r\n"), "{report}");
    }
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_leaves_the_next_one_to_try() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let envelope = quorumail_delivery::RemoteEnvelope {
        reverse_path: None,
        recipients: vec![address("bob@x.org")],
        size: 4,
        eight_bit: false,
    };
    let host = quorumail_delivery::Host { name: "mx.x.org".into(), addr: closed };
    let transport = transport();
    let sent = transport.send(&host, &envelope, Bytes::from_static(b"x\r\n"), Tls::Opportunistic, None);
    let failure = tokio::time::timeout(Duration::from_secs(10), sent).await.unwrap().unwrap_err();
    assert_eq!(failure.status, "4.4.1");
    assert!(failure.text.starts_with("cannot connect"), "{failure}");
}

#[tokio::test]
async fn tls_that_is_required_and_not_offered_is_a_failure_to_connect() {
    let (sink, stop) = (Arc::new(Sink::default()), CancellationToken::new());
    let addr = listen(&sink, &stop).await;
    let envelope = quorumail_delivery::RemoteEnvelope {
        reverse_path: None,
        recipients: vec![address("bob@x.org")],
        size: 4,
        eight_bit: false,
    };
    let host = quorumail_delivery::Host { name: "mx.x.org".into(), addr };
    let failure = transport().send(&host, &envelope, Bytes::from_static(b"x\r\n"), Tls::Required, None).await;
    assert_eq!(failure.unwrap_err().status, "4.7.10");
    assert!(sink.taken.lock().is_empty());
    stop.cancel();
}
