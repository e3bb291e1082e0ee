//! The listener: takes connections within its limits, runs a session for each, and stops in an orderly way.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Backend, Closed, Config, Event, Limit, Observer,
    connection::Connection,
    session::{Session, Shared},
};

/// After a failed accept (out of file descriptors, mostly): time to let some go.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Clients that are told at the same time why they are turned away.
const REFUSALS: usize = 100;
/// Time for a client that is turned away to read why.
const REFUSAL: Duration = Duration::from_secs(1);

/// Serves clients of `listener` until `shutdown`, and then until the sessions have ended or the limit for that is
/// over.
///
/// # Panics
/// When the configuration wants implicit TLS and has no certificate.
pub async fn serve(
    listener: TcpListener,
    config: Arc<Config>,
    backend: Arc<dyn Backend>,
    shutdown: CancellationToken,
    observer: Arc<dyn Observer>,
) {
    assert!(!config.implicit_tls || config.tls.is_some(), "implicit TLS needs a certificate");
    let gate = Arc::new(Gate::default());
    let sessions = TaskTracker::new();
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let force = CancellationToken::new();
    let shared = Arc::new(Shared { config, backend, observer });
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let remote = remote.ip().to_canonical();
        match gate.enter(remote, &shared.config) {
            Ok(place) => {
                let (shared, shutdown, force) = (shared.clone(), shutdown.clone(), force.clone());
                sessions.spawn(async move {
                    let _place = place;
                    tokio::select! {
                        biased;
                        () = force.cancelled() => shared.observer.observe(Event::Closed(Closed::Shutdown)),
                        () = session(stream, remote, &shared, shutdown) => {}
                    }
                });
            }
            Err(limit) => {
                shared.observer.observe(Event::Refused(limit));
                refuse(stream, &shared.config, &refusals);
            }
        }
    }
    drop(listener);
    sessions.close();
    if timeout(shared.config.limits.shutdown, sessions.wait()).await.is_err() {
        force.cancel();
        sessions.wait().await;
    }
}

async fn session(stream: TcpStream, remote: IpAddr, shared: &Arc<Shared>, shutdown: CancellationToken) {
    let config = &shared.config;
    shared.observer.observe(Event::Opened);
    // Answers are written as a whole, so that waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let mut connection = Connection::new(stream, config.max_message_size, config.limits.write, shutdown);
    let mut ready = Ok(());
    if let (true, Some(tls)) = (config.implicit_tls, &config.tls) {
        ready = connection.start_tls(tls.as_ref(), config.limits.handshake).await;
        if ready.is_ok() {
            shared.observer.observe(Event::Tls);
        }
    }
    let closed = match ready {
        Ok(()) => Session::new(connection, remote, shared.clone()).run().await,
        Err(closed) => closed,
    };
    shared.observer.observe(Event::Closed(closed));
}

/// Tells a client why it is not taken, without making anybody wait. Under implicit TLS, and when many are being told,
/// it is just closed.
fn refuse(mut stream: TcpStream, config: &Config, refusals: &Arc<Semaphore>) {
    let Ok(permit) = refusals.clone().try_acquire_owned() else { return };
    if config.implicit_tls {
        return;
    }
    tokio::spawn(async move {
        let _permit = permit;
        let told = stream.write_all(b"* BYE [UNAVAILABLE] too many connections, try again later\r\n");
        let _ = timeout(REFUSAL, told).await;
    });
}

/// Counts connections.
#[derive(Default)]
struct Gate {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; gone when dropped.
struct Place {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    fn enter(self: &Arc<Self>, remote: IpAddr, config: &Config) -> Result<Place, Limit> {
        let address = network(remote);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= config.limits.connections {
            return Err(Limit::Connections);
        }
        let here = counts.by_address.entry(address).or_default();
        if *here >= config.limits.connections_per_address {
            return Err(Limit::ConnectionsPerAddress);
        }
        *here += 1;
        counts.all += 1;
        Ok(Place { gate: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(here) = counts.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// One IPv6 client has a /64 to itself.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
    }
}
