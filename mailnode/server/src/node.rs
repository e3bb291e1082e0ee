//! A node from start to end: in which order the rooms are opened, and in which they are closed.
//!
//! Start: the data directory is taken and listeners are bound first, so that what is in use is told before anything is
//! written; then the log is read, consensus begins, and mail is served once the directory here is current. End: not
//! ready, leads handed over, sessions finished, consensus and journal closed.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use quorumail_authentication::Checker;
use quorumail_consensus::{Consensus, LEVELS, Topology, Writes, command_index, open_log};
use quorumail_delivery::Worker;
use quorumail_journal::{Journal, Options};
use quorumail_replica::{Machine, Mender};
use quorumail_store::{JournalBodies, Store, StoreError};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{AdminService, backup::Backups},
    archiver::Archiver,
    auth::Authenticator,
    channels::{self, PeerConnector},
    compactor::Compaction,
    config::{Config, Port},
    data_dir::DataDir,
    delivery_queue::DeliveryQueue,
    disk::{Disk, Room},
    groups::Groups,
    http::{self, Readiness},
    https,
    identity::Role,
    imap_backend::{ImapBackend, ImapDigests},
    janitor,
    listeners::Listeners,
    lists::{self, Lists, link::Links},
    metrics::{Metrics, sampled::Sources},
    public::Public,
    repairer::Repairer,
    scrubber::Scrubbing,
    signer::Signer,
    smtp_backend::{Checks, SmtpBackend},
    tls::{self, InternalTls, PublicTls},
    topology,
    transport::{delivery_config, smtp_transport},
    watch::Watchers,
};

/// How often it is looked whether the node is ready.
const READY_INTERVAL: Duration = Duration::from_millis(250);
/// For leads to move to other nodes.
const HAND_OVER: Duration = Duration::from_secs(8);
/// For sessions and deliveries under way.
pub(crate) const FINISH: Duration = Duration::from_secs(12);
/// For consensus and journal.
const CLOSE: Duration = Duration::from_secs(5);
/// Between tries to read the current directory at start.
const DIRECTORY_PAUSE: Duration = Duration::from_millis(100);

/// Sockets of all listeners.
struct Sockets {
    mail: Vec<(Port, TcpListener)>,
    http: TcpListener,
    https: TcpListener,
    admin: TcpListener,
    peer: TcpListener,
}

/// A node that was started.
pub struct Node {
    groups: Arc<Groups>,
    ready: watch::Sender<Readiness>,
    mail_is_served: Arc<AtomicBool>,
    /// Ends what serves clients.
    clients: CancellationToken,
    client_tasks: JoinSet<()>,
    /// Ends all else, last.
    rest: CancellationToken,
    /// Kept until the process ends: nobody else may open what is in it.
    _data: Arc<DataDir>,
}

impl Sockets {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut mail = Vec::new();
        for port in [Port::SmtpMx, Port::Submission, Port::SubmissionTls, Port::Imap, Port::ImapTls] {
            mail.push((port, bind(config.address(port)).await?));
        }
        Ok(Self {
            mail,
            http: bind(config.address(Port::Http)).await?,
            https: bind(config.address(Port::Https)).await?,
            admin: bind(config.address(Port::Admin)).await?,
            peer: bind(config.address(Port::Peer)).await?,
        })
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))
}

/// Opens what the node has on disk.
fn open_data(data: &DataDir) -> anyhow::Result<(Journal, quorumail_consensus::RecoveredLog, Store)> {
    let index = data.index();
    std::fs::create_dir_all(&index).with_context(|| format!("failed to make {}", index.display()))?;
    // After a failure of the disk all of it is read back first, and the node is not ready before.
    let options = Options { verify_after_failure: true, ..Options::new(data.journal()) };
    let (journal, recovered) = open_log(options).context("failed to open the journal")?;
    let bodies = Arc::new(JournalBodies::new(journal.clone(), command_index));
    let store = Store::open(&index, bodies).map_err(|error| damaged_index(&index, error))?;
    store.digest_with(Arc::new(ImapDigests));
    Ok((journal, recovered, store))
}

/// What to do about an index that cannot be opened.
fn damaged_index(index: &Path, error: StoreError) -> anyhow::Error {
    let advice = if error.is_damage() {
        "; if other replicas have this node's mail, remove this node's whole data directory and start it again, and \
         they fill it; otherwise restore a backup"
    } else {
        ""
    };
    anyhow::Error::new(error).context(format!("failed to open the index in {}{advice}", index.display()))
}

impl Node {
    /// Starts everything; mail is served as soon as the directory is current.
    pub async fn start(config: Arc<Config>) -> anyhow::Result<Self> {
        tracing::info!(
            node = config.node(),
            cluster = config.cluster,
            version = env!("CARGO_PKG_VERSION"),
            "mailnode starts"
        );
        let internal_tls = InternalTls::load(&config.tls.internal).context("failed to load tls.internal")?;
        let public_tls = PublicTls::load(&config.tls.public).context("failed to load tls.public")?;
        let delivery = delivery_config(&config)?;
        let dns = quorumail_delivery::Dns::new(&config.smtp.dns_servers).context("failed to set up DNS")?;
        let checks = checks(&config)?;
        let data = DataDir::open(&config.data_dir, &config.cluster, config.node(), LEVELS);
        let data = Arc::new(data.context("this data directory cannot be used")?);
        let Sockets { mail, http, https, admin, peer } = Sockets::bind(&config).await?;
        let rest = CancellationToken::new();
        let (ready, is_ready) = watch::channel(Err("the log is being read".to_owned()));
        let metrics = Arc::new(Metrics::default());
        let public = Public::new(config.hostname.clone());
        spawn(
            "http",
            http::serve(http, is_ready.clone(), Arc::clone(&metrics), public.routes(), rest.clone()),
        );
        let links = Arc::<Links>::default();
        let pages = public.routes().merge(Arc::clone(&links).routes());
        spawn("https", https::serve(https, public_tls.server_config(), pages, rest.clone()));
        tokio::spawn(tls::watch(Arc::clone(&public_tls), Arc::clone(&internal_tls), rest.clone()));

        let (journal, groups) = start_groups(&config, &data, &internal_tls, peer, &rest).await?;
        public.open(groups.store.directory());
        let disk = Disk::watch(&config.data_dir, config.disk, rest.clone());
        tokio::spawn(follow_room(Arc::clone(&groups), Arc::clone(&disk), rest.clone()));
        let compaction = Compaction {
            store: groups.store.clone(),
            bodies: JournalBodies::new(journal.clone(), command_index),
            journal: journal.clone(),
            disk: Arc::clone(&disk),
            options: config.compaction,
            totals: Arc::default(),
        };
        let mender = Mender {
            store: groups.store.clone(),
            consensus: groups.consensus.clone(),
            bodies: compaction.bodies.clone(),
        };
        let (repairer, repairs) = Repairer::new(mender);
        groups.store.repair_with(Arc::clone(&repairer) as Arc<dyn quorumail_store::Repair>);
        let scrubbing = Scrubbing {
            store: groups.store.clone(),
            consensus: groups.consensus.clone(),
            bodies: compaction.bodies.clone(),
            journal: journal.clone(),
            repairer: Arc::clone(&repairer),
            options: config.scrub,
            dir: config.data_dir.clone(),
            totals: Arc::default(),
        };
        let scrub = Arc::clone(&scrubbing.totals);
        let backups = Arc::new(Backups::default());
        let archiver = Archiver::new(groups.consensus.clone(), config.node(), config.cluster.clone());
        metrics.sample(Sources {
            groups: Arc::clone(&groups),
            journal,
            scrub: Arc::clone(&scrubbing.totals),
            repairer: Arc::clone(&repairer),
            compaction: Arc::clone(&compaction.totals),
            disk: Arc::clone(&disk),
            archiver: archiver.clone(),
            backups: Arc::clone(&backups),
            public_tls: Arc::clone(&public_tls),
            internal_tls: Arc::clone(&internal_tls),
            ready: is_ready.clone(),
        });
        tokio::spawn(compaction.run(rest.clone()));
        tokio::spawn(repairs.run(rest.clone()));
        tokio::spawn(scrubbing.run(rest.clone()));
        tokio::spawn(archiver.clone().run(rest.clone()));
        let auth = Arc::new(Authenticator::new(Arc::clone(&groups)));
        let signer = Arc::<Signer>::default();
        let lists = Arc::new(Lists::new(
            Arc::clone(&groups),
            Arc::clone(&signer),
            config.hostname.clone(),
            Arc::clone(&public_tls),
            Arc::clone(&metrics),
        ));
        links.open(Arc::clone(&lists));
        let service = AdminService {
            lists: Arc::clone(&lists),
            groups: Arc::clone(&groups),
            auth: Arc::clone(&auth),
            ready: is_ready,
            node: config.node(),
            tls: Arc::clone(&internal_tls),
            disk: Arc::clone(&disk),
            hostname: config.hostname.clone(),
            cluster: config.cluster.clone(),
            archiver,
            backups,
            public_tls: Arc::clone(&public_tls),
            repairer,
            scrub,
            stop: rest.clone(),
        };
        let admins = channels::incoming(admin, internal_tls, &[Role::Node, Role::Operator], rest.clone());
        let service = channels::server().add_service(service.into_server());
        spawn("admin", service.serve_with_incoming_shutdown(admins, rest.clone().cancelled_owned()));

        let mail_is_served = Arc::new(AtomicBool::new(false));
        let parts = Mail {
            config,
            groups: Arc::clone(&groups),
            auth,
            disk,
            metrics,
            public_tls,
            delivery,
            dns,
            checks,
            signer,
            lists,
        };
        let clients = CancellationToken::new();
        let client_tasks = parts.start(mail, Arc::clone(&mail_is_served), &clients, &rest);
        Ok(Self { groups, ready, mail_is_served, clients, client_tasks, rest, _data: data })
    }

    /// Runs until `stop` is cancelled, then ends in order; or until something that cannot be mended fails.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let fatal = tokio::select! {
            () = stop.cancelled() => None,
            reason = self.groups.consensus.fatal() => Some(reason),
            () = self.watch_readiness() => unreachable!("readiness is watched until the node ends"),
        };
        match fatal {
            None => {
                self.end().await;
                Ok(())
            }
            Some(reason) => {
                drop(self.ready.send_replace(Err(reason.clone())));
                Err(anyhow::anyhow!(reason))
            }
        }
    }

    /// Never returns.
    async fn watch_readiness(&self) {
        loop {
            let now = self.groups.consensus.ready().and_then(|()| match self.mail_is_served.load(Relaxed) {
                true => Ok(()),
                false => Err("the directory here is not current yet".to_owned()),
            });
            self.ready.send_if_modified(|before| {
                let changed = *before != now;
                if changed {
                    match &now {
                        Ok(()) => tracing::info!("ready"),
                        Err(reason) => tracing::info!(reason, "not ready"),
                    }
                    *before = now;
                }
                changed
            });
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    async fn end(mut self) {
        tracing::info!("stopping");
        drop(self.ready.send_replace(Err("stopping".to_owned())));
        let left = self.groups.consensus.hand_over(HAND_OVER).await;
        if left > 0 {
            tracing::warn!(left, "some groups have no other node that could lead them");
        }
        self.clients.cancel();
        let finish = async { while self.client_tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH, finish).await.is_err() {
            tracing::warn!("sessions or deliveries did not finish in time");
        }
        if tokio::time::timeout(CLOSE, self.groups.consensus.shutdown()).await.is_err() {
            tracing::warn!("consensus did not stop in time; the log has all that was acknowledged");
        }
        self.rest.cancel();
        tracing::info!("stopped");
    }
}

/// Opens the data, starts consensus and the service that peers call.
async fn start_groups(
    config: &Config,
    data: &Arc<DataDir>,
    tls: &Arc<InternalTls>,
    peer: TcpListener,
    rest: &CancellationToken,
) -> anyhow::Result<(Journal, Arc<Groups>)> {
    // Before anything is opened: what it refuses must be left as it is.
    let topology = topology::at_start(config)?;
    let opening = Arc::clone(data);
    let opened =
        tokio::task::spawn_blocking(move || open_data(&opening)).await.context("opening the data failed")?;
    let (journal, recovered, store) = opened?;
    let connector = Arc::new(PeerConnector(Arc::clone(tls)));
    let identity = Arc::clone(data);
    let note_level = Box::new(move |level| identity.reach_level(level));
    let machine = Arc::new(Machine { store: store.clone(), note_level });
    let settings = consensus_config(config, topology, data.level());
    let consensus = Consensus::start(settings, journal.clone(), recovered, machine, connector)
        .await
        .context("failed to start consensus")?;
    let peers = channels::incoming(peer, Arc::clone(tls), &[Role::Node], rest.clone());
    let service = channels::server().add_service(consensus.peer_service());
    spawn("peer", service.serve_with_incoming_shutdown(peers, rest.clone().cancelled_owned()));
    tokio::spawn(topology::keep(consensus.clone(), config.data_dir.clone(), rest.clone()));
    let watched = topology::watch_file(consensus.clone(), config.file.clone(), config.node(), rest.clone());
    tokio::spawn(watched);
    Ok((journal, Arc::new(Groups::new(consensus, store, config.partitions))))
}

/// What mail is served with.
struct Mail {
    config: Arc<Config>,
    groups: Arc<Groups>,
    auth: Arc<Authenticator>,
    disk: Arc<Disk>,
    metrics: Arc<Metrics>,
    public_tls: Arc<PublicTls>,
    delivery: quorumail_delivery::Config,
    dns: quorumail_delivery::Dns,
    checks: Option<Checks>,
    signer: Arc<Signer>,
    lists: Arc<Lists>,
}

impl Mail {
    /// Starts delivery, the janitor, and the listeners once the directory is current.
    fn start(
        self,
        sockets: Vec<(Port, TcpListener)>,
        served: Arc<AtomicBool>,
        stop: &CancellationToken,
        rest: &CancellationToken,
    ) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(janitor::run(Arc::clone(&self.groups), self.config.deleted_mail.keep, stop.clone()));
        let watchers = Watchers::start(&self.groups.store, rest.clone());
        let queue = Arc::new(DeliveryQueue::new(
            Arc::clone(&self.groups),
            Arc::clone(&self.lists),
            Arc::clone(&watchers),
        ));
        let transport = Arc::new(smtp_transport(&self.config.hostname));
        let observer = Arc::clone(&self.metrics);
        let worker = Worker::new(self.delivery, queue, Arc::new(self.dns), transport, observer);
        let until = stop.clone();
        tasks.spawn(async move { worker.run(until).await });
        tasks.spawn(lists::worker::run(Arc::clone(&self.lists), watchers.queue(), stop.clone()));
        let smtp = SmtpBackend {
            auth: Arc::clone(&self.auth),
            groups: Arc::clone(&self.groups),
            hostname: self.config.hostname.clone(),
            disk: Arc::clone(&self.disk),
            checks: self.checks,
            signer: self.signer,
            lists: self.lists,
            metrics: Arc::clone(&self.metrics),
        };
        let imap =
            ImapBackend { auth: self.auth, groups: Arc::clone(&self.groups), watchers, disk: self.disk };
        let listeners = Listeners {
            config: self.config,
            tls: self.public_tls.server_config(),
            smtp: Arc::new(smtp),
            imap: Arc::new(imap),
            metrics: self.metrics,
        };
        tasks.spawn(serve_mail(self.groups, listeners, sockets, served, stop.clone()));
        tasks
    }
}

/// How mail from other systems is checked.
fn checks(config: &Config) -> anyhow::Result<Option<Checks>> {
    let Some(authentication) = config.smtp.authentication else { return Ok(None) };
    let checker = Checker::new(&config.smtp.dns_servers, config.hostname.as_str(), authentication.within)
        .context("failed to set up checks of incoming mail")?;
    Ok(Some(Checks { checker, enforce_dmarc: authentication.enforce_dmarc }))
}

/// Tells consensus when the log here may not grow any more, and when it may again.
async fn follow_room(groups: Arc<Groups>, disk: Arc<Disk>, stop: CancellationToken) {
    let mut room = disk.changes();
    loop {
        let writes = match *room.borrow_and_update() {
            Room::Enough | Room::NoNewMail => Writes::All,
            Room::ReadOnly => Writes::OfOtherLeaders,
            Room::Full => Writes::Nothing,
        };
        groups.consensus.set_writes(writes);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = room.changed() => if changed.is_err() { return },
        }
    }
}

/// Serves mail once the directory here is current: before that every recipient would be unknown.
async fn serve_mail(
    groups: Arc<Groups>,
    listeners: Listeners,
    sockets: Vec<(Port, TcpListener)>,
    served: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    while groups.directory_is_current().await.is_err() {
        if tokio::time::timeout(DIRECTORY_PAUSE, stop.cancelled()).await.is_ok() {
            return;
        }
    }
    served.store(true, Relaxed);
    tracing::info!("mail is served");
    listeners.serve(sockets, stop).await;
}

fn consensus_config(config: &Config, topology: Topology, level: u32) -> quorumail_consensus::Config {
    let defaults = quorumail_consensus::Config::new(
        config.node(),
        config.cluster.clone(),
        topology,
        config.partitions,
        config.replicas,
    );
    quorumail_consensus::Config {
        snapshots_at_once: config.snapshots.at_once,
        snapshot_bytes_per_second: config.snapshots.bytes_per_second,
        level,
        ..defaults
    }
}

/// Runs a server; that it ends is only logged, for the node's own end is decided elsewhere.
fn spawn<E: std::fmt::Display>(
    name: &'static str,
    server: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(name, %error, "a server ended");
        }
    });
}

/// Cancels `stop` at SIGTERM and SIGINT.
pub fn stop_on_signal(stop: CancellationToken) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// Cancels `stop` when standard input ends.
pub fn stop_on_end_of_stdin(stop: CancellationToken) {
    // A thread of its own: reading standard input cannot be cancelled.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        stop.cancel();
    });
}
