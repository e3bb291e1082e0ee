//! The operator: waits for the Lease, then reconciles until it is told to stop or loses the Lease.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use quorumail_operator::{
    accounts::{self, clients::Clients},
    block_lists::{self, Listings},
    dns_watch::{self, Lookups},
    events::Events,
    http::{self, Probes},
    lease::Election,
    mailcluster::{self, Context},
    metrics::Metrics,
    probing::{self, Probing},
    resource_metrics, runs,
    settings::Settings,
    stores::Stores,
};
use tokio::signal::unix::{SignalKind, signal};

/// For locks in buckets to be given back at the end.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    quorumail_logging::start("info");
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("a TLS provider is installed already");
    }
    let metrics = Metrics::new().context("failed to register metrics")?;
    let probes = Probes { ready: Arc::new(AtomicBool::new(false)), metrics: metrics.clone() };
    let listener = tokio::net::TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("failed to listen on {}", settings.listen))?;
    let ready = probes.ready.clone();
    tokio::spawn(http::serve(listener, probes));

    let client = kube::Client::try_default().await.context("failed to set up the API client")?;
    let mut stop = stop_signal()?;
    let identity = settings.identity.clone().unwrap_or_else(|| format!("operator-{}", std::process::id()));
    let mut election = Election::new(client.clone(), &settings.namespace, &identity);
    let stores = Stores::start(&client, &settings.watch_namespace, metrics.unreadable.clone());
    tokio::select! {
        () = stores.wait_until_ready() => ready.store(true, Ordering::Relaxed),
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    if !settings.no_leader_election {
        tracing::info!(identity, "waiting for the Lease");
        tokio::select! {
            () = election.acquire() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
    tracing::info!(identity, "reconciling");
    metrics.leader.set(1);
    let elected = !settings.no_leader_election;
    let context = Arc::new(Context {
        clients: Clients::new(client.clone(), stores.clone()),
        dns: Lookups::new(&settings.dns_servers),
        listings: Listings::default(),
        probing: Probing::default(),
        events: Events::new(client.clone(), &identity),
        client,
        settings,
        stores,
        metrics,
        failures: parking_lot::Mutex::new(HashMap::new()),
    });
    work(context, &mut election, elected, stop).await
}

/// Reconciles until the end.
async fn work(
    context: Arc<Context>,
    election: &mut Election,
    elected: bool,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut ending = stop.clone();
    let controller = mailcluster::run(context.clone(), async move {
        let _ = ending.wait_for(|stop| *stop).await;
    });
    let lost = async {
        match elected {
            true => election.hold().await,
            false => std::future::pending().await,
        }
    };
    let is_lost = tokio::select! {
        // Ends once it is told to stop and what it was doing is done.
        () = controller => false,
        () = accounts::run(context.clone()) => false,
        () = dns_watch::run(context.clone()) => false,
        () = block_lists::run(context.clone()) => false,
        () = probing::run(context.clone()) => false,
        () = resource_metrics::run(context.clone()) => false,
        () = runs::run(context) => false,
        () = lost => true,
    };
    // Runs have ended with it; their locks would keep the next ones away from the bucket for a quarter of an hour.
    tokio::task::yield_now().await;
    quorumail_backup::settle(SETTLE_WITHIN).await;
    anyhow::ensure!(!is_lost, "the Lease was lost; another operator works now");
    let _ = stop.wait_for(|stop| *stop).await;
    if elected {
        election.release().await.context("failed to release the Lease")?;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Becomes true at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<tokio::sync::watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let (sender, receiver) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        sender.send_replace(true);
        // Held: a closed channel would end waits that have not been told.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}
