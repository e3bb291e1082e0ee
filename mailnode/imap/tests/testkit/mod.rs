//! A mail store in memory behind the agreed traits, a running server and a client that speaks lines.
#![allow(dead_code, missing_docs, unreachable_pub)]

mod client;
mod memory;

pub use client::Client;
pub use memory::Memory;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quorumail_imap::{Backend, Config, Event, Limits, Observer};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// What every test user logs in with.
pub const USER: &str = "alice@example.org";
pub const PASSWORD: &str = "a \"secret\"";

/// Keeps all events.
#[derive(Default)]
pub struct Events(std::sync::Mutex<Vec<Event>>);

impl Observer for Events {
    fn observe(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }
}

/// A server on a port of its own.
pub struct Server {
    pub address: SocketAddr,
    pub memory: Arc<Memory>,
    pub events: Arc<Events>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<()>,
}

pub fn config() -> Config {
    Config {
        hostname: "mail.example.org".into(),
        version: "test".into(),
        max_message_size: 1_000_000,
        limits: Limits { auth_delay: Duration::ZERO, ..Limits::default() },
        tls: None,
        implicit_tls: false,
        allow_plaintext_auth_from_loopback: true,
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(config()).await
    }

    pub async fn with(config: Config) -> Self {
        Self::over(config, Arc::new(Memory::new())).await
    }

    /// Another node over the same store.
    pub async fn over(config: Config, memory: Arc<Memory>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let events = Arc::new(Events::default());
        let shutdown = CancellationToken::new();
        let backend: Arc<dyn Backend> = memory.clone();
        let task = tokio::spawn(quorumail_imap::serve(
            listener,
            Arc::new(config),
            backend,
            shutdown.clone(),
            events.clone(),
        ));
        Self { address, memory, events, shutdown, task }
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Logged in.
    pub async fn login(&self) -> Client {
        let mut client = self.connect().await;
        client.ok(&format!("LOGIN {USER} \"{}\"", PASSWORD.replace('"', "\\\""))).await;
        client
    }

    /// Logged in, with INBOX selected.
    pub async fn inbox(&self) -> Client {
        let mut client = self.login().await;
        client.ok("SELECT INBOX").await;
        client
    }
}
