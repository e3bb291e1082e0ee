//! gRPC between nodes over mutual TLS: channels to peers, and the connections that a service accepts.
//!
//! Each new connection takes the certificates as they are then, so renewed ones are used without a restart. Both
//! sides know each other by role and not by address: addresses of pods change, and the authority signs only for this
//! cluster (see [`crate::identity`]).

use std::{future::Future, io, pin::Pin, sync::Arc, task, time::Duration};

use hyper_util::rt::TokioIo;
use quorumail_consensus::{ConnectError, Peer};
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

use crate::{
    buffered::Buffered,
    identity::{self, NODE_NAME, Role},
    tls::InternalTls,
};

/// For a client to finish its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at a time at one service; further clients wait in the listen backlog.
const MAX_HANDSHAKES: usize = 64;
/// Connections that wait to be served.
const ACCEPTED: usize = 16;
/// A peer that is silent this long is asked, so that a dead connection is found.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// For the answer to it.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2 flow control: enough for a few large messages on the way, so that they do not stop heartbeats.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// All streams of a connection.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// After a failed accept (no file descriptors left, as a rule).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address that cannot be made into a channel.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is no address of a peer")]
pub struct BadAddress {
    address: String,
}

/// A channel to `host:port` of a node; connects when it is used, and again when the connection is lost.
pub fn channel(tls: &Arc<InternalTls>, address: &str) -> Result<Channel, BadAddress> {
    let bad = || BadAddress { address: address.to_owned() };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    let endpoint = quorumail_consensus::endpoint(endpoint);
    Ok(endpoint.connect_with_connector_lazy(Connector { tls: Arc::clone(tls), address: address.to_owned() }))
}

/// How consensus reaches its peers.
pub struct PeerConnector(pub Arc<InternalTls>);

impl quorumail_consensus::Connector for PeerConnector {
    fn channel(&self, peer: &Peer) -> Result<Channel, ConnectError> {
        let failed = |error: BadAddress| ConnectError { node: peer.id, reason: error.to_string() };
        channel(&self.0, &peer.address).map_err(failed)
    }
}

/// Opens one connection.
struct Connector {
    tls: Arc<InternalTls>,
    address: String,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<client::TlsStream<Buffered>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.address.clone();
        let tls = Arc::clone(&self.tls);
        let connector = TlsConnector::from(tls.client());
        Box::pin(async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(NODE_NAME).expect("the name of nodes is a DNS name");
            match connector.connect(name, Buffered::new(stream)).await {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(error) => {
                    if is_about_certificates(&error) && tls.refusals.is_news(&address) {
                        tracing::warn!(
                            address,
                            %error,
                            expected = tls.authority(),
                            "a node was refused for its certificate; it must be signed by the authority of tls.internal.ca, \
                             the same on all nodes of the cluster"
                        );
                    }
                    Err(error)
                }
            }
        })
    }
}

/// Whether one side of a handshake did not accept the other's certificate.
fn is_about_certificates(error: &io::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_)) => true,
        Some(Error::AlertReceived(alert)) => {
            matches!(alert, Alert::UnknownCA | Alert::BadCertificate | Alert::DecryptError)
        }
        _ => false,
    }
}

/// A tonic server with the settings of both services.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// A connection of a client that showed a certificate with an allowed role.
pub type Accepted = ReceiverStream<io::Result<server::TlsStream<Buffered>>>;

/// Accepts connections of clients with one of the roles until cancelled.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<InternalTls>,
    allowed: &'static [Role],
    stop: CancellationToken,
) -> Accepted {
    let (send, receive) = mpsc::channel(ACCEPTED);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a gRPC connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (tls, send) = (Arc::clone(&tls), send.clone());
            tokio::spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &tls, allowed)).await;
                drop(permit);
                match shaken {
                    // The receiver is gone only when the service stops.
                    Ok(Ok(stream)) => drop(send.send(Ok(stream)).await),
                    Ok(Err(error)) if tls.refusals.is_news(&remote.ip().to_string()) => tracing::warn!(
                        %remote,
                        %error,
                        expected = tls.authority(),
                        "a gRPC client was refused; its certificate must be signed by the authority of tls.internal.ca and \
                         name its role"
                    ),
                    Ok(Err(_)) => {}
                    Err(_) => tracing::warn!(%remote, "a gRPC client did not finish its TLS handshake"),
                }
            });
        }
    });
    ReceiverStream::new(receive)
}

async fn handshake(
    stream: TcpStream,
    tls: &InternalTls,
    allowed: &[Role],
) -> io::Result<server::TlsStream<Buffered>> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(tls.server()).accept(Buffered::new(stream)).await?;
    let role = stream.get_ref().1.peer_certificates().and_then(|chain| identity::role(chain.first()?));
    match role {
        Some(role) if allowed.contains(&role) => Ok(stream),
        Some(role) => Err(io::Error::other(format!("a certificate of role {role:?} is not accepted here"))),
        None => Err(io::Error::other("the certificate names no role of this cluster")),
    }
}
