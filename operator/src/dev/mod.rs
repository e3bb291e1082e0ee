//! `quorumail dev`: the whole mail service on one machine, without Kubernetes.
//!
//! Real mailnode processes ([`nodes`]) at addresses of the loopback interface ([`layout`]), and the resources that
//! `kubectl apply` would take ([`resources`], [`check`]), applied by the operator's own decisions ([`apply`]) whenever
//! their files change. What it makes is kept in one directory ([`state`]).

pub mod apply;
pub mod check;
pub mod fleet;
pub mod layout;
pub mod nodes;
pub mod resources;
pub mod scale;
pub mod state;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use quorumail_crds::{MailCluster, MailClusterSpec};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use self::{
    apply::{Applier, ApplyError},
    fleet::Fleet,
    layout::{LayoutError, Place},
    nodes::{Node, say, stopped},
    resources::Resources,
    state::{Cluster, State, StateError},
};
use crate::{
    admin::{AdminClient, AdminError},
    directory::FingerprintKey,
    mailcluster::certificates::{CA_KEY, CERT_KEY, KEY_KEY, text},
    mailnode_config::{
        AuthenticationConfig, InternalTls, Listen, MailnodeConfig, Peer, PublicTls, RelayConfig, SmtpConfig,
        TlsFiles,
    },
};

/// How often the mailnodes are compared with the files although no file changed.
const RESYNC: Duration = Duration::from_secs(30);
/// Pause before resources that were not taken are sent again.
const RETRY: Duration = Duration::from_secs(1);
/// Editors write a file in several steps; only the last one counts.
const SETTLE: Duration = Duration::from_millis(150);
/// How long nodes may take to show what was applied, before `ready` is said without it.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// Replicas of each partition, where there are so many nodes.
const REPLICAS: u32 = 3;
/// Greets mail clients where no MailCluster names another.
const HOSTNAME: &str = "localhost";

/// What is asked on the command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of nodes; `None`: as the MailCluster says, or three.
    pub nodes: Option<u64>,
    /// Where to keep everything; `None`: in a temporary directory.
    pub data: Option<PathBuf>,
    /// Files and directories with resources.
    pub files: Vec<PathBuf>,
    /// Added to every port.
    pub base_port: u16,
    /// Whether nodes that end are started again.
    pub restart: bool,
    /// The mailnode program; `None`: the one beside this program.
    pub mailnode: Option<PathBuf>,
    /// Whether the nodes' logs go to standard error instead of files.
    pub logs: bool,
    /// Asked instead of the name servers of the machine.
    pub dns_servers: Vec<SocketAddr>,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Asked for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// Addresses and ports.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The admin services cannot be called.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A node cannot be run.
    #[error("failed to run a mailnode: {0}")]
    Node(#[source] io::Error),
    /// Signals cannot be received.
    #[error("failed to listen for signals: {0}")]
    Signals(#[source] io::Error),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> Result<(), DevError> {
    let stop = stop_on_signals().map_err(DevError::Signals)?;
    let program = find_mailnode(options.mailnode.as_deref())?;
    for file in &options.files {
        if !file.exists() {
            return Err(DevError::Usage(format!("{} does not exist", file.display())));
        }
    }
    let resources = Resources::load(&options.files);
    let spec = the_cluster(&resources)?;
    let state = State::open(options.data.as_deref())?;
    let nodes = options.nodes.or(spec.map(|c| u64::from(c.spec.nodes)));
    nodes.map_or(Ok(()), scale::check_nodes)?;
    let mut cluster = state.shape(nodes, spec.map(|c| c.spec.partitions))?;
    let places = layout::lay_out(cluster.shape.running, options.base_port, 0)?;
    cluster.admin = places.iter().map(|place| place.endpoints().admin).collect();
    state.save_cluster(&cluster)?;
    let certificates = state.certificates(&public_names(spec, &places), Timestamp::now())?;
    let nodes = prepare(&options, &state, &cluster, &places, spec, &resources, &program)?;

    let keep = if state.is_temporary() { "; it is removed at the end, --data DIR keeps it" } else { "" };
    let dir = state.path().display();
    eprintln!("state and logs are in {dir}{keep}\nask with: quorumail --dev {dir} status");

    let client = |addresses: &[String]| {
        AdminClient::new(addresses, &certificates.authority.cert, &certificates.operator)
    };
    let key = FingerprintKey::derive(&certificates.authority.key);
    let applier = Applier::new(client(&cluster.admin)?, key, state.path(), hostname(spec));
    let every_node = cluster
        .admin
        .iter()
        .map(|address| client(std::slice::from_ref(address)))
        .collect::<Result<Vec<_>, _>>()?;
    // A change that the last run did not finish goes on.
    let scaling = cluster.shape.running != cluster.shape.staying;
    let told = BTreeSet::new();
    let mut service =
        Service { options, program, state, cluster, scaling, scale_problem: None, applier, told, every_node };
    service.run(nodes, stop).await
}

/// When to look at the files again although none has changed.
#[derive(PartialEq, Eq)]
enum After {
    /// All is as asked.
    Resync,
    /// The nodes are being changed.
    Scaling,
    /// The mailnodes did not take something.
    Retry,
}

/// The part that runs.
struct Service {
    options: Options,
    program: PathBuf,
    state: State,
    cluster: Cluster,
    /// Whether a change of the nodes has been begun and not been told as done.
    scaling: bool,
    /// Why the nodes could not be changed, as it was told last.
    scale_problem: Option<String>,
    applier: Applier,
    /// Problems that were told already.
    told: BTreeSet<String>,
    every_node: Vec<AdminClient>,
}

impl Service {
    async fn run(&mut self, nodes: Vec<Node>, mut stop: watch::Receiver<bool>) -> Result<(), DevError> {
        let (is_ready, ready) = watch::channel(false);
        let (failed, mut failure) = mpsc::channel(1);
        let mut fleet = Fleet::new(failed, ready);
        nodes.into_iter().for_each(|node| fleet.start(node));
        let result = tokio::select! {
            () = stopped(&mut stop) => Ok(()),
            Some(error) = failure.recv() => Err(error),
            () = self.serve(&mut fleet, is_ready) => Ok(()),
        };
        fleet.stop(|_| true).await;
        result.map_err(DevError::Node)
    }

    /// Applies what the files say, now and whenever they change. Does not end by itself.
    async fn serve(&mut self, fleet: &mut Fleet, is_ready: watch::Sender<bool>) {
        let (tell, mut changed) = mpsc::channel(1);
        let _watcher = watch_files(&self.options.files, self.state.path(), tell);
        let staying = self.cluster.shape.staying;
        for node in fleet.nodes().filter(|node| node.place.node < staying) {
            node.wait_until_ready().await;
        }
        while self.apply_once(fleet).await == After::Retry {
            sleep(RETRY).await;
        }
        self.wait_until_seen().await;
        // All receivers gone means that all nodes have ended, which is told elsewhere.
        let _ = is_ready.send(true);
        say("ready");
        let mut next = Instant::now() + RETRY;
        loop {
            tokio::select! {
                Some(()) = changed.recv() => {
                    sleep(SETTLE).await;
                    // What came meanwhile is seen by the reading that follows.
                    let _ = changed.try_recv();
                }
                () = sleep_until(next) => {}
            }
            let pause = match self.apply_once(fleet).await {
                After::Resync => RESYNC,
                After::Scaling | After::Retry => RETRY,
            };
            next = Instant::now() + pause;
        }
    }

    /// Brings accounts and nodes on; answers when to look again.
    async fn apply_once(&mut self, fleet: &mut Fleet) -> After {
        let files = self.options.files.clone();
        let Ok(resources) = tokio::task::spawn_blocking(move || Resources::load(&files)).await else {
            return After::Retry;
        };
        if !self.apply_accounts(&resources).await {
            return After::Retry;
        }
        let wanted = self.wanted_nodes(&resources);
        match self.scale(wanted, &resources, fleet).await {
            true => After::Resync,
            false => After::Scaling,
        }
    }

    /// Answers whether the mailnodes took all that is right.
    async fn apply_accounts(&mut self, resources: &Resources) -> bool {
        match self.applier.apply(resources).await {
            Ok(outcome) => {
                for (address, password) in outcome.new_passwords {
                    eprintln!("password made for {address}: {password} (kept in {})", state::CREDENTIALS);
                }
                match outcome.changes {
                    0 => {}
                    1 => eprintln!("applied 1 change"),
                    many => eprintln!("applied {many} changes"),
                }
                self.tell(outcome.problems);
                true
            }
            Err(error) => {
                let mut problems = resources.problems.clone();
                problems.push(error.to_string());
                self.tell(problems);
                matches!(error, ApplyError::State(_) | ApplyError::Hash(_))
            }
        }
    }

    /// Tells each problem once for as long as it lasts.
    fn tell(&mut self, problems: Vec<String>) {
        let problems: BTreeSet<String> = problems.into_iter().collect();
        problems.difference(&self.told).for_each(|problem| eprintln!("{problem}"));
        self.told = problems;
    }

    /// Waits until each node by itself knows the accounts: a log-in may go to any of them.
    async fn wait_until_seen(&self) {
        let resources = Resources::load(&self.options.files);
        let seen = async {
            for client in &self.every_node {
                while !matches!(self.applier.is_seen_by(client, &resources).await, Ok(true)) {
                    sleep(Duration::from_millis(50)).await;
                }
            }
        };
        if timeout(SEEN_WITHIN, seen).await.is_err() {
            eprintln!("not every node shows the accounts yet; going on");
        }
    }
}

fn stop_on_signals() -> io::Result<watch::Receiver<bool>> {
    let (tell, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        eprintln!("stopping");
        // The receiver is gone when all has ended already.
        let _ = tell.send(true);
        // Keeps the value there for those who look later.
        tell.closed().await;
    });
    Ok(stop)
}

fn find_mailnode(given: Option<&Path>) -> Result<PathBuf, DevError> {
    let beside = || Some(std::env::current_exe().ok()?.canonicalize().ok()?.parent()?.join("mailnode"));
    let program = given.map(Path::to_owned).or_else(beside).unwrap_or_else(|| PathBuf::from("mailnode"));
    program.canonicalize().map_err(|error| {
        let hint = "build it (cargo build -p quorumail-server) or say --mailnode PATH";
        DevError::Usage(format!("there is no mailnode at {}: {error}; {hint}", program.display()))
    })
}

/// The MailCluster, of which there may be one.
fn the_cluster(resources: &Resources) -> Result<Option<&MailCluster>, DevError> {
    match resources.clusters.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        [one, other, ..] => {
            let (one, other) = (resources.origin(one), resources.origin(other));
            Err(DevError::Usage(format!(
                "quorumail dev runs one MailCluster, and there are {one} and {other}"
            )))
        }
    }
}

fn hostname(cluster: Option<&MailCluster>) -> String {
    cluster.and_then(|cluster| cluster.spec.hostname.clone()).unwrap_or_else(|| HOSTNAME.to_owned())
}

/// What the certificate for mail clients is good for.
fn public_names(cluster: Option<&MailCluster>, places: &[Place]) -> Vec<String> {
    let mut names = vec![hostname(cluster), HOSTNAME.to_owned()];
    names.extend(places.iter().map(|place| place.host.to_string()));
    names.dedup();
    names
}

/// Writes the configurations.
fn prepare(
    options: &Options,
    state: &State,
    cluster: &Cluster,
    places: &[Place],
    spec: Option<&MailCluster>,
    resources: &Resources,
    program: &Path,
) -> Result<Vec<Node>, DevError> {
    let smtp = smtp(state, spec, resources, &options.dns_servers)?;
    let file = |role: &str, name: &str| state.pki_dir(role).join(name).display().to_string();
    let peers: Vec<Peer> = places
        .iter()
        .map(|place| {
            let endpoints = place.endpoints();
            Peer {
                node: place.node,
                address: endpoints.peer,
                admin: endpoints.admin,
                zone: String::new(),
                leaving: cluster.shape.is_leaving(place.node),
            }
        })
        .collect();
    let deleted_mail = spec.and_then(|cluster| cluster.spec.deleted_mail.as_ref()).map(Into::into);
    let mut nodes = Vec::new();
    for place in places {
        let dir = state.node_dir(place.node)?;
        let config = MailnodeConfig {
            cluster: cluster.id.clone(),
            node: Some(place.node),
            hostname: hostname(spec),
            data_dir: dir.join("data").display().to_string(),
            listen: Listen { host: place.host.to_string(), port_offset: place.offset },
            peers: peers.clone(),
            generation: cluster.shape.generation,
            founders: (0..cluster.shape.founders).collect(),
            partitions: cluster.partitions,
            replicas: REPLICAS,
            tls: TlsFiles {
                internal: InternalTls {
                    ca: file("node", CA_KEY),
                    cert: file("node", CERT_KEY),
                    key: file("node", KEY_KEY),
                },
                public: PublicTls { cert: file("public", CERT_KEY), key: file("public", KEY_KEY) },
            },
            allow_plaintext_auth_from_loopback: true,
            smtp: smtp.clone(),
            deleted_mail: deleted_mail.clone(),
        };
        let path = dir.join("mailnode.yaml");
        state::write(&path, config.to_yaml().as_bytes())?;
        let log = (!options.logs).then(|| dir.join("mailnode.log"));
        let program = program.to_owned();
        nodes.push(Node { place: *place, program, config: path, log, restart: options.restart });
    }
    Ok(nodes)
}

/// How mail is accepted and sent on, from the MailCluster.
fn smtp(
    state: &State,
    cluster: Option<&MailCluster>,
    resources: &Resources,
    dns_servers: &[SocketAddr],
) -> Result<SmtpConfig, DevError> {
    let default: MailClusterSpec =
        serde_json::from_str("{}").expect("every field of a MailCluster has a default");
    let spec = cluster.map_or(&default, |cluster| &cluster.spec);
    let relay = match &spec.smtp.relay {
        None => None,
        Some(relay) => {
            let mut config = RelayConfig {
                host: relay.host.clone(),
                port: relay.port,
                tls: relay.tls,
                username: None,
                password_file: None,
            };
            if let Some(reference) = &relay.secret_ref {
                let namespace = cluster.and_then(|cluster| cluster.namespace()).unwrap_or_default();
                let secret = resources.secrets.get(&(namespace, reference.name.clone()));
                let field = |key| secret.and_then(|secret| text(secret, key));
                let (Some(username), Some(password)) = (field("username"), field("password")) else {
                    let what = "spec.smtp.relay.secretRef needs a Secret";
                    let keys = "with the keys `username` and `password`";
                    return Err(DevError::Usage(format!("{what} {} {keys} in the files", reference.name)));
                };
                let path = state.path().join("relay-password");
                state::write(&path, password.as_bytes())?;
                config.username = Some(username.trim_end().to_owned());
                config.password_file = Some(path.display().to_string());
            }
            Some(config)
        }
    };
    Ok(SmtpConfig {
        max_message_size: spec.smtp.max_message_size.bytes(),
        relay,
        retry: spec.smtp.retry.as_ref().map(Into::into),
        mx_port: None,
        dns_servers: (!dns_servers.is_empty()).then(|| dns_servers.iter().map(ToString::to_string).collect()),
        // A machine like this may have no name servers that answer.
        authentication: AuthenticationConfig::of(spec.smtp.dmarc).filter(|_| !dns_servers.is_empty()),
    })
}

/// Tells when one of the files, or the file with the generated passwords, may have changed. Without a watcher the
/// resynchronisation still finds it.
fn watch_files(files: &[PathBuf], dir: &Path, tell: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let (mut watched, mut single): (BTreeSet<PathBuf>, BTreeSet<PathBuf>) = Default::default();
    let credentials = dir.join(state::CREDENTIALS);
    for file in files.iter().chain([&credentials]) {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        if file.is_dir() {
            watched.insert(file);
        } else if let Some(parent) = file.parent() {
            // Editors rename a new file over the old one, which ends a watch of the file itself.
            watched.insert(parent.to_owned());
            single.insert(file);
        }
    }
    let dirs: Vec<PathBuf> =
        files.iter().filter_map(|f| std::path::absolute(f).ok()).filter(|f| f.is_dir()).collect();
    let concerns = move |path: &PathBuf| {
        single.contains(path)
            || resources::is_resource_file(path)
                && path.parent().is_some_and(|p| dirs.iter().any(|dir| dir == p))
    };
    let handler = move |event: notify::Result<Event>| {
        let relevant = match &event {
            // Our own reading of the files is an event as well.
            Ok(event) => !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(&concerns),
            Err(_) => true,
        };
        if relevant {
            // Full means that it has been told already.
            let _ = tell.try_send(());
        }
    };
    let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watched.iter().try_for_each(|dir| watcher.watch(dir, RecursiveMode::NonRecursive))?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            eprintln!("files cannot be watched ({error}); they are read every {} s", RESYNC.as_secs());
        })
        .ok()
}
