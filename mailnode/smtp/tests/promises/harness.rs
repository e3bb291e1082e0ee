//! A server on loopback with a backend that remembers, and a client that speaks octet by octet.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_message::Address;
use quorumail_smtp::{
    AuthFailure, Backend, Budget, Config, Envelope, Event, Identity, Limits, Observer, Reject, Service, serve,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

/// No condition in these tests takes longer, unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Base64 of "\0alice@example.org\0secret".
pub(crate) const ALICE: &str = "AGFsaWNlQGV4YW1wbGUub3JnAHNlY3JldA==";

pub(crate) fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// Takes everything but recipients that begin with `no` (550) or `later` (450), and the bodies that say `refuse`.
pub(crate) struct Mailroom {
    pub(crate) kept: Mutex<Vec<(Envelope, Bytes)>>,
    pub(crate) logins: Mutex<Vec<String>>,
    pub(crate) events: Mutex<Vec<Event>>,
    /// Number of messages whose acceptance has begun.
    pub(crate) begun: watch::Sender<usize>,
    /// While false, nothing is accepted.
    pub(crate) open: watch::Sender<bool>,
}

impl Mailroom {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::default(),
            logins: Mutex::default(),
            events: Mutex::default(),
            begun: watch::Sender::new(0),
            open: watch::Sender::new(true),
        })
    }

    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.kept.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }

    pub(crate) fn saw(&self, event: Event) -> bool {
        self.events.lock().unwrap().contains(&event)
    }
}

fn reject(code: u16, enhanced: &'static str) -> Reject {
    Reject { code, enhanced, text: "as the test wants it".into() }
}

#[async_trait]
impl Backend for Mailroom {
    async fn authenticate(&self, user: &str, password: &str, _: IpAddr) -> Result<Identity, AuthFailure> {
        self.logins.lock().unwrap().push(user.to_owned());
        match password {
            "secret" => Ok(Identity { address: address(user) }),
            _ => Err(AuthFailure::Denied),
        }
    }

    async fn sender(&self, sender: Option<&Address>, _: Option<&Identity>, _: Service) -> Result<(), Reject> {
        match sender.is_some_and(|sender| sender.local().starts_with("no")) {
            true => Err(reject(550, "5.7.1")),
            false => Ok(()),
        }
    }

    async fn recipient(&self, recipient: &Address, _: Option<&Identity>) -> Result<(), Reject> {
        match recipient.local() {
            local if local.starts_with("no") => Err(reject(550, "5.1.1")),
            local if local.starts_with("later") => Err(reject(450, "4.2.1")),
            _ => Ok(()),
        }
    }

    async fn accept(&self, envelope: Envelope, body: Bytes) -> Result<String, Reject> {
        self.begun.send_modify(|begun| *begun += 1);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        if body.starts_with(b"refuse") {
            return Err(reject(554, "5.6.0"));
        }
        self.kept.lock().unwrap().push((envelope, body));
        Ok("kept".into())
    }
}

struct Events(Arc<Mailroom>);

impl Observer for Events {
    fn observe(&self, _: Service, event: Event) {
        self.0.events.lock().unwrap().push(event);
    }
}

/// A certificate for `localhost`, and who trusts it.
pub(crate) struct Certificate {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der.clone()], key)
            .unwrap();
        Self { der, server: Arc::new(server) }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        roots
    }
}

pub(crate) fn config(service: Service) -> Config {
    Config {
        hostname: "mx.example.org".into(),
        max_message_size: 100_000,
        service,
        limits: Limits::default(),
        tls: None,
        implicit_tls: false,
        allow_plaintext_auth_from_loopback: false,
        memory: Budget::new(1 << 24),
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) room: Arc<Mailroom>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (room, shutdown) = (Mailroom::new(), CancellationToken::new());
        let running = tokio::spawn(serve(
            listener,
            Arc::new(config),
            Arc::clone(&room) as Arc<dyn Backend>,
            shutdown.clone(),
            Arc::new(Events(Arc::clone(&room))),
        ));
        Self { address, room, shutdown, running }
    }

    /// A plain-text client that has read the greeting.
    pub(crate) async fn connect(&self) -> Wire<TcpStream> {
        let mut wire = Wire::new(TcpStream::connect(self.address).await.unwrap());
        assert_eq!(wire.reply().await.0, 220);
        wire
    }

    /// One that has said EHLO.
    pub(crate) async fn greeted(&self) -> Wire<TcpStream> {
        let mut wire = self.connect().await;
        assert_eq!(wire.ask("EHLO client.example.com").await, 250);
        wire
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// A client.
pub(crate) struct Wire<S>(pub(crate) BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    pub(crate) async fn send(&mut self, octets: impl AsRef<[u8]>) {
        timeout(PATIENCE, self.0.get_mut().write_all(octets.as_ref())).await.unwrap().unwrap();
        self.0.get_mut().flush().await.unwrap();
    }

    /// The next reply: its code and all its text. Code 0: the connection has ended.
    pub(crate) async fn reply(&mut self) -> (u16, String) {
        let mut text = String::new();
        loop {
            let start = text.len();
            let read = timeout(PATIENCE, self.0.read_line(&mut text)).await.expect("a reply comes in time");
            if matches!(read, Ok(0) | Err(_)) {
                return (0, text);
            }
            if text.as_bytes().get(start + 3) != Some(&b'-') {
                return (text[start..start + 3].parse().unwrap(), text);
            }
        }
    }

    pub(crate) async fn ask(&mut self, command: &str) -> u16 {
        self.send(format!("{command}\r\n")).await;
        self.reply().await.0
    }

    /// The codes of the next replies.
    pub(crate) async fn codes(&mut self, count: usize) -> Vec<u16> {
        let mut codes = Vec::new();
        for _ in 0..count {
            codes.push(self.reply().await.0);
        }
        codes
    }

    /// Begins a message up to the text.
    pub(crate) async fn begin(&mut self) {
        self.send("MAIL FROM:<bob@example.com>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n").await;
        assert_eq!(self.codes(3).await, [250, 250, 354]);
    }

    pub(crate) async fn ended(&mut self) -> bool {
        let mut rest = Vec::new();
        let read =
            timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("the connection ends in time");
        read.is_err() || rest.is_empty()
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(100), self.0.fill_buf()).await.is_err()
    }

    /// A handshake that trusts `certificate`.
    pub(crate) async fn secure(self, certificate: &Certificate) -> std::io::Result<Wire<TlsStream<S>>> {
        assert!(self.0.buffer().is_empty());
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(certificate.roots())
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = connector.connect("localhost".try_into().unwrap(), self.0.into_inner());
        Ok(Wire::new(timeout(PATIENCE, handshake).await.expect("the handshake ends in time")?))
    }
}
