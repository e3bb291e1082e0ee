//! Real `mailnode` processes on loopback addresses, and clients that talk to them as anybody would.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod clients;

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use quorumail_proto::admin::{
    ApplyDirectoryRequest, DirectoryChange, DirectoryResult, Domain, GetClusterStatusRequest, Mailbox,
    admin_client::AdminClient, directory_change::Change,
};
use quorumail_server::{
    channels,
    config::{InternalTls as Files, Port},
    identity::{NODE_NAME, OPERATOR_NAME},
    tls::InternalTls,
};
use tonic::transport::Channel;

/// For anything that should take a second at most; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(40);
pub const PASSWORD: &str = "correct horse";
const ALL_PORTS: [Port; 8] = [
    Port::SmtpMx,
    Port::Submission,
    Port::SubmissionTls,
    Port::Imap,
    Port::ImapTls,
    Port::Http,
    Port::Admin,
    Port::Peer,
];

/// An authority, and certificates that it signed.
pub struct Authority {
    dir: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let name = format!("authority {}", dir.file_name().unwrap().to_string_lossy());
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
        Self { dir: dir.to_owned(), issuer: rcgen::Issuer::new(params, key) }
    }

    /// Files of a certificate for a name.
    pub fn issue(&self, file: &str, name: &str) -> Files {
        self.issue_until(file, name, 2040)
    }

    /// The same, valid up to the first day of a year.
    pub fn issue_until(&self, file: &str, name: &str, year: i32) -> Files {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            ca: self.dir.join("ca.pem"),
            cert: self.dir.join(format!("{file}.pem")),
            key: self.dir.join(format!("{file}.key")),
        };
        fs::write(&files.cert, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// Nodes of one cluster. All end with it.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub authority: Authority,
    offset: u16,
    nodes: Vec<Mutex<Option<Child>>>,
    operator: Arc<InternalTls>,
}

impl Cluster {
    /// Starts the nodes and waits until all are ready.
    pub async fn start(nodes: usize, partitions: u32) -> Self {
        Self::start_with(nodes, partitions, "").await
    }

    /// The same with more lines at the end of the configuration.
    pub async fn start_with(nodes: usize, partitions: u32, more: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), nodes, partitions, more).await
    }

    /// The same with everything in a given directory.
    pub async fn start_in(dir: tempfile::TempDir, nodes: usize, partitions: u32, more: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::new(&dir.path().join("pki"));
        authority.issue("node", NODE_NAME);
        authority.issue("public", "localhost");
        let operator = InternalTls::load(&authority.issue("operator", OPERATOR_NAME)).unwrap();
        let offset = free_offset(nodes);
        let cluster =
            Self { dir, authority, offset, nodes: (0..nodes).map(|_| Mutex::default()).collect(), operator };
        for node in 0..nodes {
            fs::write(cluster.config_path(node), cluster.config(node, partitions, more)).unwrap();
            cluster.spawn(node);
        }
        for node in 0..nodes {
            cluster.wait_ready(node).await;
        }
        cluster
    }

    fn config(&self, node: usize, partitions: u32, more: &str) -> String {
        let pki = self.dir.path().join("pki");
        let pki = pki.display();
        let peers: String = (0..self.nodes.len())
            .map(|n| {
                let (peer, admin) = (self.address(n, Port::Peer), self.address(n, Port::Admin));
                format!("  - {{node: {n}, address: \"{peer}\", admin: \"{admin}\"}}\n")
            })
            .collect();
        format!(
            "cluster: test\nnode: {node}\nhostname: mail{node}.test\ndataDir: {data}\n\
             listen: {{host: \"{host}\", portOffset: {offset}}}\npeers:\n{peers}partitions: {partitions}\n\
             replicas: 3\ntls:\n  internal: {{ca: {pki}/ca.pem, cert: {pki}/node.pem, key: {pki}/node.key}}\n\
             \x20 public: {{cert: {pki}/public.pem, key: {pki}/public.key}}\n\
             allowPlaintextAuthFromLoopback: true\n{more}\n",
            data = self.data_dir(node).display(),
            host = host(node),
            offset = self.offset,
        )
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("data-{node}"))
    }

    pub fn config_path(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node-{node}.yaml"))
    }

    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(self.dir.path().join(format!("node-{node}.log"))).unwrap_or_default()
    }

    /// Starts a node that does not run.
    pub fn spawn(&self, node: usize) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("node-{node}.log")))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mailnode"))
            .arg("--config")
            .arg(self.config_path(node))
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let before = self.child(node).replace(child);
        assert!(before.is_none(), "node {node} runs already");
    }

    fn child(&self, node: usize) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.nodes[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pid(&self, node: usize) -> u32 {
        self.child(node).as_ref().unwrap().id()
    }

    /// kill -9.
    pub fn kill(&self, node: usize) {
        let mut child = self.child(node).take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// How a node ended by itself; none while it runs.
    pub fn ended(&self, node: usize) -> Option<ExitStatus> {
        let mut child = self.child(node);
        let status = child.as_mut().and_then(|child| child.try_wait().unwrap())?;
        *child = None;
        Some(status)
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(&self, node: usize) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.pid(node).try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait_exit(node).await
    }

    /// Closes the node's standard input and waits for the end.
    pub async fn close_stdin(&self, node: usize) -> ExitStatus {
        drop(self.child(node).as_mut().unwrap().stdin.take());
        self.wait_exit(node).await
    }

    async fn wait_exit(&self, node: usize) -> ExitStatus {
        let mut child = self.child(node).take().unwrap();
        let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
        tokio::time::timeout(PATIENCE, ended).await.expect("the node ends").unwrap()
    }

    pub fn address(&self, node: usize, port: Port) -> SocketAddr {
        SocketAddr::new(host(node), port as u16 + self.offset)
    }

    /// GET over HTTP: status and body.
    pub async fn get(&self, node: usize, path: &str) -> Option<(u16, String)> {
        clients::http_get(self.address(node, Port::Http), path).await.ok()
    }

    pub async fn wait_ready(&self, node: usize) {
        let begun = Instant::now();
        while self.get(node, "/readyz").await.is_none_or(|(status, _)| status != 200) {
            let log = self.log(node);
            assert!(begun.elapsed() < PATIENCE, "node {node} is not ready:\n{log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn admin(&self, node: usize) -> AdminClient<Channel> {
        self.admin_as(node, &self.operator)
    }

    pub fn admin_as(&self, node: usize, tls: &Arc<InternalTls>) -> AdminClient<Channel> {
        AdminClient::new(channels::channel(tls, &self.address(node, Port::Admin).to_string()).unwrap())
    }

    /// Who leads a group, by the word of the cluster.
    pub async fn leader(&self, ask: usize, group: u32) -> usize {
        let begun = Instant::now();
        loop {
            let status = self.admin(ask).get_cluster_status(GetClusterStatusRequest {}).await;
            let groups = status.map(|status| status.into_inner().groups).unwrap_or_default();
            if let Some(leader) = groups.iter().find(|g| g.group == group).and_then(|g| g.leader) {
                return leader.try_into().unwrap();
            }
            assert!(begun.elapsed() < PATIENCE, "group {group} has no leader");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Serves example.org and makes these accounts in it, all with [`PASSWORD`].
    pub async fn accounts(&self, node: usize, names: &[&str]) -> Vec<DirectoryResult> {
        let mut changes = vec![put_domain("example.org")];
        changes.extend(names.iter().map(|name| put_mailbox(&format!("{name}@example.org"))));
        let results = self.apply(node, changes).await;
        assert!(results.iter().all(|result| result.code == 1), "{results:?}");
        results
    }

    pub async fn apply(&self, node: usize, changes: Vec<DirectoryChange>) -> Vec<DirectoryResult> {
        let applied = self.admin(node).apply_directory(ApplyDirectoryRequest { changes }).await;
        applied.unwrap().into_inner().results
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            if let Some(mut child) = self.child(node).take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for node in 0..self.nodes.len() {
                let log = self.log(node);
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("--- node {node}");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// Copies a directory with everything in it to where nothing is yet.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn put_domain(domain: &str) -> DirectoryChange {
    let domain = Domain { domain: domain.to_owned(), revision: "1".to_owned(), ..Default::default() };
    DirectoryChange { change: Some(Change::PutDomain(domain)) }
}

pub fn mailbox(address: &str) -> Mailbox {
    let cheap = sha_crypt::Sha512Params::new(1000).unwrap();
    Mailbox {
        address: address.to_owned(),
        password_hash: sha_crypt::sha512_simple(PASSWORD, &cheap).unwrap(),
        may_send: true,
        may_receive: true,
        may_login: true,
        revision: "1".to_owned(),
        ..Default::default()
    }
}

pub fn put_mailbox(address: &str) -> DirectoryChange {
    DirectoryChange { change: Some(Change::PutMailbox(mailbox(address))) }
}

fn host(node: usize) -> IpAddr {
    IpAddr::from([127, 0, 0, u8::try_from(node + 1).unwrap()])
}

/// An offset at which all ports of all nodes are free, below the range of ephemeral ports.
fn free_offset(nodes: usize) -> u16 {
    for _ in 0..200 {
        let offset = rand::random_range(10_000..20_000);
        let free = (0..nodes).all(|node| {
            ALL_PORTS.iter().all(|port| TcpListener::bind((host(node), *port as u16 + offset)).is_ok())
        });
        if free {
            return offset;
        }
    }
    panic!("no free ports");
}
