//! A listener: takes connections, bounds them and ends them when the server stops.

use std::{io::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Backend, Closed, Config, Event, Observer,
    connection::{self, Context},
    gate::Gate,
};

/// Pause after an error of accept(2): out of file descriptors is not mended by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a listener until `shutdown`; then ends sessions at their next command (421), lets running messages end
/// within `limits.shutdown`, and returns once all sessions are gone.
pub async fn serve(
    listener: TcpListener,
    config: Arc<Config>,
    backend: Arc<dyn Backend>,
    shutdown: CancellationToken,
    observer: Arc<dyn Observer>,
) {
    assert!(!config.implicit_tls || config.tls.is_some(), "implicit TLS needs a certificate");
    let gate = Gate::new(&config.limits);
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                if let Err(error) = ended {
                    // One session less; the others go on.
                    tracing::error!(%error, "a session broke off");
                    observer.observe(config.service, Event::Closed(Closed::Ended));
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match gate.enter(address.ip()) {
            Ok(pass) => {
                let context = Context {
                    config: Arc::clone(&config),
                    backend: Arc::clone(&backend),
                    observer: Arc::clone(&observer),
                    shutdown: shutdown.clone(),
                    remote: address.ip().to_canonical(),
                };
                observer.observe(config.service, Event::Opened);
                sessions.spawn(async move {
                    let closed = connection::run(&context, stream).await;
                    context.observer.observe(context.config.service, Event::Closed(closed));
                    drop(pass);
                });
            }
            Err(limit) => {
                observer.observe(config.service, Event::Refused(limit));
                turn_away(stream, address, &config);
            }
        }
    }
    drop(listener);
    // Sessions end by themselves; the bound only covers one that hangs in a write or a call.
    let bound = config.limits.shutdown + Duration::from_secs(2);
    let all_ended = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(bound, all_ended).await.is_err() {
        tracing::warn!("sessions did not end in time and are cut off");
        sessions.shutdown().await;
    }
}

/// Says 421 without waiting: a connection too many must not cost a task.
fn turn_away(stream: TcpStream, address: SocketAddr, config: &Config) {
    tracing::debug!(%address, "connection turned away");
    if config.implicit_tls {
        return;
    }
    if let Ok(mut stream) = stream.into_std() {
        // Non-blocking, and best effort: the socket's buffer is empty, so it fits.
        let _ = stream.write(b"421 4.7.0 Too many connections; try again later\r\n");
    }
}
