//! Nodes in one process over real sockets: each has its own runtime, so that stopping the runtime is a crash.
#![allow(dead_code, unreachable_pub)]

pub mod disk;
pub mod toy;
pub mod wires;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::{Drag, DraggedDisk, Writing};
use parking_lot::Mutex;
use quorumail_consensus::{
    Config, ConnectError, Connector, Consensus, GroupId, LEVELS, Levels, LogRetention, NodeId, Peer,
    ProposeError, Topology, endpoint, open_log, open_log_on, server,
};
use quorumail_journal::{FsDisk, Options};
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use toy::{Toy, command, level_of};
use tracing_subscriber::fmt;
use wires::{Cuts, Dial};

/// Longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// No test has more nodes.
const MAX_NODE: NodeId = 16;

/// One test at a time: they measure time and share two cores.
pub static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Nodes at free ports: reserved by binding all of them at once, then let go for the nodes to take.
pub fn peers(ids: std::ops::Range<NodeId>) -> Vec<Peer> {
    let reserved: Vec<_> =
        ids.map(|id| (id, std::net::TcpListener::bind("127.0.0.1:0").expect("a port"))).collect();
    let peer = |(id, listener): &(NodeId, std::net::TcpListener)| {
        Peer::new(*id, listener.local_addr().expect("an address").to_string())
    };
    reserved.iter().map(peer).collect()
}

/// What all nodes of this process log from warnings up, and whatever else RUST_LOG asks for to be shown of a failed run.
pub fn logged() -> Arc<Mutex<String>> {
    use tracing_subscriber::{
        EnvFilter, Layer, filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt,
    };
    static LOGGED: std::sync::OnceLock<Arc<Mutex<String>>> = std::sync::OnceLock::new();
    let make = || {
        let text = Arc::new(Mutex::new(String::new()));
        let kept =
            fmt::layer().with_ansi(false).with_writer(Kept(text.clone())).with_filter(LevelFilter::WARN);
        let shown =
            fmt::layer().with_ansi(false).with_test_writer().with_filter(EnvFilter::from_default_env());
        tracing_subscriber::registry().with(kept).with(shown).init();
        text
    };
    LOGGED.get_or_init(make).clone()
}

/// Writes into a string.
#[derive(Clone)]
struct Kept(Arc<Mutex<String>>);

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::MakeWriter<'_> for Kept {
    type Writer = Kept;

    fn make_writer(&self) -> Kept {
        self.clone()
    }
}

/// How a node reaches its peers: over sockets that can be cut.
struct Wires {
    node: NodeId,
    cuts: Cuts,
}

impl Connector for Wires {
    fn channel(&self, peer: &Peer) -> Result<Channel, ConnectError> {
        let uri = Endpoint::from_shared(format!("http://{}", peer.address));
        let uri = uri.map_err(|error| ConnectError { node: peer.id, reason: error.to_string() })?;
        let dial =
            Dial { from: self.node, to: peer.id, address: peer.address.clone(), cuts: self.cuts.clone() };
        Ok(endpoint(uri).connect_with_connector_lazy(dial))
    }
}

pub struct Node {
    runtime: Option<Runtime>,
    pub consensus: Consensus,
    pub machine: Arc<Toy>,
    _writing: Writing,
}

impl Node {
    pub async fn propose(
        &self,
        group: u32,
        id: u64,
        body: &[u8],
        within: Duration,
    ) -> Result<Bytes, ProposeError> {
        self.propose_command(group, command(id, body), within).await
    }

    pub async fn propose_command(
        &self,
        group: u32,
        command: Bytes,
        within: Duration,
    ) -> Result<Bytes, ProposeError> {
        let consensus = self.consensus.clone();
        let runtime = self.runtime.as_ref().expect("the node runs");
        // On the node's own runtime, so that it dies with the node.
        let proposal = runtime.spawn(async move { consensus.propose(GroupId(group), command, within).await });
        proposal.await.unwrap_or(Err(ProposeError::TimedOut))
    }

    pub async fn query(&self, group: u32, query: Bytes, within: Duration) -> Result<Bytes, ProposeError> {
        let consensus = self.consensus.clone();
        let runtime = self.runtime.as_ref().expect("the node runs");
        let answer = runtime.spawn(async move { consensus.query(GroupId(group), query, within).await });
        answer.await.unwrap_or(Err(ProposeError::TimedOut))
    }

    /// How many commands the group has applied, read through consensus.
    pub async fn count(&self, group: u32) -> u64 {
        let answer = self.query(group, Bytes::from_static(b"count"), PATIENCE).await.expect("an answer");
        u64::from_le_bytes(answer[..].try_into().expect("a number"))
    }
}

pub struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    /// Ways between nodes that are cut.
    pub cuts: Cuts,
    /// How slow the disks are.
    drags: BTreeMap<NodeId, Drag>,
    /// What the next node to start is told.
    pub topology: Topology,
    dir: tempfile::TempDir,
    change: Box<dyn Fn(&mut Config) + Send + Sync>,
    partitions: u32,
    /// Nodes whose program knows other format levels.
    pub levels: BTreeMap<NodeId, Levels>,
}

impl Cluster {
    pub async fn start(nodes: u64, partitions: u32) -> Cluster {
        Cluster::start_with(nodes, partitions, |_| {}).await
    }

    pub async fn start_with(
        nodes: u64,
        partitions: u32,
        change: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> Cluster {
        logged();
        let topology = Topology::from(peers(0..nodes));
        let dir = tempfile::tempdir().expect("a directory");
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            cuts: Cuts::default(),
            drags: BTreeMap::new(),
            topology,
            dir,
            change: Box::new(change),
            partitions,
            levels: BTreeMap::new(),
        };
        for id in 0..nodes {
            cluster.up(id).await;
        }
        cluster
    }

    pub fn dir(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    pub fn journal_dir(&self, id: NodeId) -> PathBuf {
        self.dir(id).join("journal")
    }

    /// Starts a node, with whatever its disk holds.
    pub async fn up(&mut self, id: NodeId) {
        self.try_up(id).await.expect("the node starts");
    }

    /// Starts a node that may refuse to.
    pub async fn try_up(&mut self, id: NodeId) -> Result<(), String> {
        let mut config = Config::new(id, "test", self.topology.clone(), self.partitions, 3);
        config.heartbeat = Duration::from_millis(100);
        config.election_timeout = Duration::from_millis(400)..Duration::from_millis(600);
        config.log_retention = LogRetention { entries: 100_000, bytes: 1 << 30 };
        config.checkpoint_interval = Duration::from_millis(500);
        config.levels = self.levels.get(&id).copied().unwrap_or(LEVELS);
        config.level = level_of(&self.dir(id), config.levels.min);
        // As the server does, before it opens anything.
        config.levels.check(config.level).map_err(|error| error.to_string())?;
        (self.change)(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(format!("node-{id}"))
            .enable_all()
            .build()
            .expect("a runtime");
        let (dir, address) =
            (self.dir(id), self.topology.node(id).expect("the node is known").address.clone());
        let wires = Wires { node: id, cuts: self.cuts.clone() };
        let drag = self.drags.entry(id).or_default().clone();
        let started = runtime.spawn(async move { start_node(config, dir, drag, &address, wires).await });
        let (consensus, machine, writing) = match started.await.expect("starting does not panic") {
            Ok(node) => node,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        self.nodes.insert(id, Node { runtime: Some(runtime), consensus, machine, _writing: writing });
        Ok(())
    }

    /// Has every sync of the node's journal take so much longer, also after a restart.
    pub fn drag(&self, id: NodeId, every_sync: Duration) {
        self.drags[&id].set(every_sync);
    }

    /// Ends a node without any goodbye.
    pub fn crash(&mut self, id: NodeId) {
        let mut node = self.nodes.remove(&id).expect("the node runs");
        node.runtime.take().expect("the node runs").shutdown_background();
    }

    pub fn wipe(&self, id: NodeId) {
        let deadline = Instant::now() + PATIENCE;
        while std::fs::remove_dir_all(self.dir(id)).is_err() && self.dir(id).exists() {
            assert!(Instant::now() < deadline, "the directory cannot be removed");
        }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// Waits until a running node leads the group in the eyes of all running nodes that hold it.
    pub async fn leader(&self, group: u32) -> NodeId {
        let group = GroupId(group);
        until("a leader that all agree on", || {
            let mut leads =
                self.nodes.iter().filter(|(_, node)| node.consensus.leads(group)).map(|(id, _)| *id);
            let leader = leads.next()?;
            let agreed = self.nodes.values().filter(|node| node.consensus.holds(group));
            agreed
                .map(|node| node.consensus.leader(group))
                .all(|known| known == Some(leader))
                .then_some(leader)
        })
        .await
    }

    /// Waits until every node that runs has applied the same in all groups it holds.
    pub async fn settled(&self) {
        for group in 0..=self.partitions {
            until(&format!("replicas of group {group} to be equal"), || {
                let holders: Vec<&Node> =
                    self.nodes.values().filter(|node| node.consensus.holds(GroupId(group))).collect();
                let digests: Vec<_> =
                    holders.iter().map(|node| node.machine.digest(GroupId(group))).collect();
                digests.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
            })
            .await;
        }
    }

    /// What every node thinks of the group, for a failed test.
    pub fn explain(&self, group: u32) -> String {
        let describe = |(id, node): (&NodeId, &Node)| {
            let status = node.consensus.status().into_iter().find(|status| status.group.0 == group);
            let fatal = futures::FutureExt::now_or_never(node.consensus.fatal());
            format!("node {id}: {status:?}, fatal {fatal:?}\n")
        };
        self.nodes.iter().map(describe).collect()
    }

    /// Changes the topology, starts the nodes that it adds, and tells one node of it.
    pub async fn change(&mut self, tell: NodeId, change: impl FnOnce(&mut Topology)) {
        self.topology.generation += 1;
        change(&mut self.topology);
        for id in self.topology.ids() {
            if !self.nodes.contains_key(&id) && !self.dir(id).exists() {
                self.up(id).await;
            }
        }
        self.node(tell).consensus.reconfigure(self.topology.clone()).expect("the topology is taken");
    }

    /// Waits until every group is where it should be, and no node holds what it should not.
    pub async fn moved(&self) {
        let staying = self.topology.staying();
        let done = || {
            let progress = self.nodes.values().find_map(|node| node.consensus.progress())?;
            let planned = progress.generation == self.topology.generation;
            let done = planned && progress.groups.iter().all(|group| group.done);
            let clean = self.nodes.iter().all(|(id, node)| {
                let partitions = node.consensus.status().iter().filter(|group| group.group.0 > 0).count();
                staying.contains(id) || partitions == 0
            });
            (done && clean).then_some(())
        };
        let deadline = Instant::now() + 2 * PATIENCE;
        while done().is_none() {
            if Instant::now() > deadline {
                let progress: Vec<_> =
                    self.nodes.iter().map(|(id, node)| (id, node.consensus.progress())).collect();
                let groups: Vec<String> = (0..=self.partitions).map(|group| self.explain(group)).collect();
                panic!("waited too long for the change: {progress:#?}\n{}", groups.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ready(&self) {
        until("all nodes to be ready", || {
            self.nodes.values().all(|node| node.consensus.ready().is_ok()).then_some(())
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A journal whose directory goes away under it ends the process, so all must be closed before that. Runtimes
        // may only be waited for outside of the test's own.
        let nodes = std::mem::take(&mut self.nodes);
        let journals: Vec<PathBuf> = (0..MAX_NODE).map(|id| self.dir(id).join("journal")).collect();
        let close = move || {
            for mut node in nodes.into_values() {
                // Its journal is written to the end: whoever waits for it must not be left waiting.
                node.runtime.take().expect("the node runs").shutdown_timeout(PATIENCE);
            }
            let deadline = Instant::now() + PATIENCE;
            for journal in journals.into_iter().filter(|journal| journal.exists()) {
                while open_log(Options::new(&journal)).is_err() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        // A panic in there has been reported already.
        let _ = std::thread::spawn(close).join();
    }
}

async fn start_node(
    config: Config,
    dir: PathBuf,
    drag: Drag,
    address: &str,
    wires: Wires,
) -> Result<(Consensus, Arc<Toy>, Writing), String> {
    let journal_dir = dir.join("journal");
    std::fs::create_dir_all(&journal_dir).expect("a directory");
    let deadline = Instant::now() + PATIENCE;
    // The node before this one may still be letting go of the directory and the port.
    let (journal, pump, recovered) = loop {
        // Small segments, so that they really fill.
        let options = Options { segment_bytes: 32 << 10, ..Options::new(&journal_dir) };
        let disk = FsDisk::open(&journal_dir).expect("a directory");
        match open_log_on(Arc::new(DraggedDisk { disk, drag: drag.clone() }), &options) {
            Ok(opened) => break opened,
            Err(error) => assert!(Instant::now() < deadline, "the journal cannot be opened: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let address: SocketAddr = address.parse().expect("an address");
    let listener = loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => assert!(Instant::now() < deadline, "cannot listen at {address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let writing = Writing::start(pump);
    let machine = Arc::new(Toy::open(dir.join("state"), journal.clone(), config.levels.max));
    let consensus = Consensus::start(config, journal, recovered, machine.clone(), Arc::new(wires))
        .await
        .map_err(|error| error.to_string())?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = consensus.peer_service();
    tokio::spawn(server(Server::builder()).add_service(service).serve_with_incoming(incoming));
    Ok((consensus, machine, writing))
}

/// Waits for a condition, looking often.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
