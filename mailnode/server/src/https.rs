//! HTTPS of the public parts, with the certificate that mail is served with. Bounded in connections and in time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// How long a client may take to agree on TLS, and then for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may last: answers are a few hundred bytes.
const LIFE: Duration = Duration::from_secs(60);
/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long requests that are under way may take at the end.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Until the next try when no connection can be accepted, as without file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Serves until cancelled.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (acceptor, connections) = (TlsAcceptor::from(tls), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection; trying again");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let serving = connection(stream, client, acceptor.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = timeout(LIFE, serving).await;
        });
    }
    drop(listener);
    let _ = timeout(END_WITHIN, graceful.shutdown()).await;
    Ok(())
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    watcher: Watcher,
) {
    let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%client, %error, "a client gave up on TLS"),
        Err(_) => return tracing::debug!(%client, "a client took too long to agree on TLS"),
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(MAX_HEAD);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(%client, %error, "a connection ended early");
    }
}
