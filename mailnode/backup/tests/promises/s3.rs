//! Two real S3 servers, and a network that fails: one of others, and the one that serves a volume.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use quorumail_backup::*;
use quorumail_volume::{ACCESS_KEY_FILE, CERT_FILE, KEY_FILE, SECRET_KEY_FILE};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::world::*;

const ACCESS_KEY: &str = "backup-access";
const SECRET_KEY: &str = "backup-secret";
const BUCKET: &str = "mail-backups";
/// The server needs a moment to listen.
const START: Duration = Duration::from_secs(20);
/// Somebody else may take the port that was free.
const TRIES: usize = 5;

/// Where `make cluster` puts what it built: told by the Makefile, and else the newest build.
fn versitygw() -> PathBuf {
    let told = std::env::var_os("QUORUMAIL_CLUSTER_BIN").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let builds = cache.and_then(|cache| std::fs::read_dir(cache.join("quorumail/cluster")).ok());
    let built = builds.into_iter().flatten().flatten().map(|build| build.path().join("bin"));
    let found =
        told.into_iter().chain(built).map(|bin| bin.join("versitygw")).filter(|program| program.is_file());
    let newest = found.max_by_key(|program| program.metadata().and_then(|meta| meta.modified()).ok());
    newest.expect("versitygw is built by `make cluster`; run that first")
}

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// One that others have made.
    Versitygw,
    /// What serves a volume.
    Volume,
}

/// A server on a folder, with one bucket.
struct Server {
    kind: Kind,
    child: Child,
    address: SocketAddr,
    ca_pem: Option<Vec<u8>>,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a server is.
#[derive(Debug, Clone, Copy)]
struct Kind {
    program: Program,
    tls: bool,
    /// Its certificate was good for the year 2000.
    has_expired: bool,
    /// MiB that its objects may take, on a file system of their own.
    room: Option<u32>,
}

impl From<Program> for Kind {
    fn from(program: Program) -> Self {
        Self { program, tls: false, has_expired: false, room: None }
    }
}

impl Server {
    async fn start(program: Program, tls: bool) -> Self {
        Self::start_as(Kind { tls, ..program.into() }).await
    }

    async fn start_as(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in [&format!("root/{BUCKET}"), "metadata"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let ca_pem = kind.tls.then(|| write_certificates(dir.path(), kind.has_expired));
        for _ in 0..TRIES {
            let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut child = start(dir.path(), address, kind);
            let started = std::time::Instant::now();
            while started.elapsed() < START && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).await.is_ok() {
                    return Self { kind, child, address, ca_pem, dir };
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("{kind:?} does not start: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
    }

    fn s3(&self) -> S3 {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        S3 {
            endpoint: format!("{scheme}://{}", self.address),
            bucket: BUCKET.into(),
            prefix: "clusters/one".into(),
            region: String::new(),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            force_path_style: true,
            ca_pem: self.ca_pem.clone(),
        }
    }

    fn objects(&self) -> Vec<String> {
        fn collect(dir: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, found)
                } else {
                    found.push(path.to_str().unwrap().to_owned())
                }
            }
        }
        let mut found = Vec::new();
        collect(&self.dir.path().join("root").join(BUCKET).join("clusters"), &mut found);
        found
    }
}

fn start(dir: &Path, address: SocketAddr, kind: Kind) -> Child {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let program = match kind.program {
        Program::Versitygw => versitygw(),
        Program::Volume => std::env::current_exe().unwrap(),
    };
    let mut command = match kind.room {
        None => Command::new(program),
        Some(mebibytes) => {
            // Seen by the server alone, and gone with it.
            let mut command = Command::new("unshare");
            let script =
                r#"mount -t tmpfs -o "size=$1m" tmpfs "$2" && mkdir "$2/$3" && shift 3 && exec "$@""#;
            let room = mebibytes.to_string();
            command.args(["--mount", "sh", "-c", script, "sh", &room]).arg(dir.join("root")).arg(BUCKET);
            command.arg(program);
            command
        }
    };
    match kind.program {
        Program::Versitygw => {
            command.args(["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", &address.to_string()]);
            if kind.tls {
                command.arg("--cert").arg(dir.join(CERT_FILE)).arg("--key").arg(dir.join(KEY_FILE));
            }
            command.arg("posix").arg("--sidecar").arg(dir.join("metadata")).arg(dir.join("root"));
        }
        Program::Volume => {
            std::fs::write(dir.join(ACCESS_KEY_FILE), ACCESS_KEY).unwrap();
            std::fs::write(dir.join(SECRET_KEY_FILE), SECRET_KEY).unwrap();
            command.args(["--exact", "s3::serves_a_volume_in_a_process_of_its_own", "--ignored"]);
            command.env("VOLUME", dir).env("VOLUME_ADDRESS", address.to_string());
            command.env("VOLUME_TLS", if kind.tls { "yes" } else { "no" });
        }
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: what other tests start and kill"]
async fn serves_a_volume_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os("VOLUME").map(PathBuf::from) else { return };
    let options = quorumail_volume::Options {
        directory: dir.join("root"),
        bucket: BUCKET.to_owned(),
        credentials: dir.clone(),
        tls: (std::env::var("VOLUME_TLS").unwrap() == "yes").then_some(dir),
    };
    let listener = TcpListener::bind(std::env::var("VOLUME_ADDRESS").unwrap()).await.unwrap();
    quorumail_volume::Server::open(&options).unwrap().serve(listener, std::future::pending()).await;
}

/// Makes tests of promises, for each of the servers.
macro_rules! with_each_server {
    ($($promise:ident)*) => {
        mod versitygw {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() { super::$promise(super::Program::Versitygw).await })*
        }
        mod volume {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() { super::$promise(super::Program::Volume).await })*
        }
    };
}

with_each_server! {
    backups_go_to_a_bucket_over_tls_with_a_ca_of_its_own
    what_is_wrong_with_a_bucket_is_told
    a_network_that_fails_slows_and_cuts_is_overcome
    a_server_that_takes_nothing_more_fails_the_backup_and_none_is_listed
    a_bucket_that_fills_fails_the_backup_and_once_it_has_room_the_next_one_is_whole
    a_server_that_goes_away_during_a_backup_ends_it_and_the_next_one_succeeds
}

/// A CA of our own and a certificate by it; answers the CA.
fn write_certificates(dir: &Path, has_expired: bool) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    if has_expired {
        (server.not_before, server.not_after) =
            (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(2000, 12, 31));
    }
    let server = server.signed_by(&key, &ca).unwrap();
    std::fs::write(dir.join(CERT_FILE), server.pem()).unwrap();
    std::fs::write(dir.join(KEY_FILE), key.serialize_pem()).unwrap();
    ca.pem().into_bytes()
}

fn config(s3: S3) -> RepositoryConfig {
    let limits = Limits {
        request_timeout: Duration::from_secs(20),
        retry_for: Duration::from_secs(20),
        ..Limits::default()
    };
    RepositoryConfig { location: Location::S3(s3), key: key(), limits }
}

/// Fails soon.
fn impatient(s3: S3) -> RepositoryConfig {
    let second = Duration::from_secs(1);
    let limits = Limits { request_timeout: second, retry_for: second, ..Limits::default() };
    RepositoryConfig { limits, ..config(s3) }
}

async fn backups_go_to_a_bucket_over_tls_with_a_ca_of_its_own(program: Program) {
    let server = Server::start(program, true).await;
    let mut node = Node::with_mail();
    for number in 0..18 {
        node.append("Large", &noise(number, 1 << 20));
    }
    let repository = Repository::create_or_open(config(server.s3())).await.unwrap();
    let first = node.back_up(&repository, None).await;
    node.expunge("Large", (2..18).map(quorumail_store::Uid).collect());
    let second = node.back_up(&repository, Some(&first)).await;
    let third = node.back_up(&repository, Some(&second)).await;
    assert_loads(&repository, &third, &Snapshot::of(&node.store)).await;

    let found = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
    assert!(found.is_good() && found.backups == 3, "{found:?}");
    let before = server.objects().len();
    let keep = retention::Retention { last: 1, ..Default::default() };
    let pruned = repository.prune(|_| true, &keep, &jiff::tz::TimeZone::UTC, NO_GRACE, false).await.unwrap();
    assert!(pruned.removed.len() == 2 && pruned.bytes > 16 << 20, "{pruned:?}");
    assert!(server.objects().len() < before);
    let again = Repository::open(config(server.s3())).await.unwrap();
    assert_loads(&again, &third, &Snapshot::of(&node.store)).await;

    let stranger =
        S3 { ca_pem: Some(write_certificates(tempfile::tempdir().unwrap().path(), false)), ..server.s3() };
    let error = Repository::open(impatient(stranger)).await.unwrap_err();
    assert!(error.reason() == "Unreachable" && error.to_string().contains("certificate"), "{error}");
    // Without the CA as well.
    let error = Repository::open(impatient(S3 { ca_pem: None, ..server.s3() })).await.unwrap_err();
    assert_eq!(error.reason(), "Unreachable", "{error}");

    let expired = Server::start_as(Kind { tls: true, has_expired: true, ..program.into() }).await;
    let error = Repository::open(impatient(expired.s3())).await.unwrap_err();
    let text = error.to_string();
    assert!(
        error.reason() == "Unreachable" && text.contains("certificate") && text.contains("xpired"),
        "{text}"
    );
}

async fn what_is_wrong_with_a_bucket_is_told(program: Program) {
    let server = Server::start(program, false).await;
    let open = |s3: S3| async move { Repository::open(impatient(s3)).await.unwrap_err() };
    let make = |s3: S3| async move { Repository::create_or_open(impatient(s3)).await.unwrap_err() };
    let error = open(server.s3()).await;
    assert_eq!(error.reason(), "NoRepository", "{error}");
    for error in [
        open(S3 { bucket: "another".into(), ..server.s3() }).await,
        make(S3 { bucket: "another".into(), ..server.s3() }).await,
    ] {
        assert!(error.reason() == "WrongBucket" && error.to_string().contains("s3://another"), "{error}");
    }
    for wrong in [
        S3 { secret_key: "another-secret".into(), ..server.s3() },
        S3 { access_key: "nobody".into(), ..server.s3() },
        S3 { region: "eu-central-7".into(), ..server.s3() },
    ] {
        let error = make(wrong).await;
        assert_eq!(error.reason(), "AccessDenied", "{error}");
        assert!(
            error.to_string().contains("access key") && !error.to_string().contains("another-secret"),
            "{error}"
        );
    }
    let nobody = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = make(S3 { endpoint: format!("http://{nobody}"), ..server.s3() }).await;
    assert_eq!(error.reason(), "Unreachable", "{error}");
    let plain = StdListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", plain.local_addr().unwrap());
    let error = make(S3 { endpoint: silent, ..server.s3() }).await;
    assert_eq!(error.reason(), "Unreachable", "{error}");
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    /// Taken, and answered by 503.
    Throttled,
    /// Taken, and answered by 500.
    Broken,
    /// Cut after so many bytes of the request.
    CutUp(u64),
    /// Cut after so many bytes of the answer.
    CutDown(u64),
    /// Passes at so many bytes in 10 ms.
    Slow(usize),
}

/// A network between client and server: each request has a fate of its own.
struct Network {
    address: SocketAddr,
    failed: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Network {
    async fn between(server: SocketAddr, fate: impl Fn(usize, &str) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let failed = Arc::<AtomicUsize>::default();
        let (counted, fate, number) = (Arc::clone(&failed), Arc::new(fate), Arc::<AtomicUsize>::default());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (counted, fate, number) = (Arc::clone(&counted), Arc::clone(&fate), Arc::clone(&number));
                tokio::spawn(async move {
                    let decide = |method: &str| {
                        let fate = fate(number.fetch_add(1, Ordering::Relaxed), method);
                        if !matches!(fate, Fate::Passes | Fate::Slow(_)) {
                            counted.fetch_add(1, Ordering::Relaxed);
                        }
                        fate
                    };
                    // Whatever goes wrong here is a network that goes wrong.
                    let _ = one_request(client, server, decide).await;
                });
            }
        });
        Self { address, failed, task }
    }
}

async fn one_request(
    mut client: TcpStream,
    server: SocketAddr,
    decide: impl Fn(&str) -> Fate,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).to_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0u64);
    let fate = decide(text.split(' ').next().unwrap_or_default());
    if let Fate::Throttled | Fate::Broken = fate {
        tokio::io::copy(&mut (&mut client).take(length), &mut tokio::io::sink()).await?;
        let status = if fate == Fate::Throttled { "503 Slow Down" } else { "500 Internal Server Error" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return client.write_all(answer.as_bytes()).await;
    }
    let mut upstream = TcpStream::connect(server).await?;
    // One request a connection, so that each has a fate.
    head.truncate(head.len() - 2);
    upstream.write_all(&head).await?;
    upstream.write_all(b"Connection: close\r\n\r\n").await?;
    let up = if let Fate::CutUp(bytes) = fate { bytes.min(length) } else { length };
    copy(&mut client, &mut upstream, up, fate).await?;
    if let Fate::CutUp(_) = fate {
        return Ok(());
    }
    let down = if let Fate::CutDown(bytes) = fate { bytes } else { u64::MAX };
    copy(&mut upstream, &mut client, down, fate).await?;
    client.shutdown().await
}

async fn copy(from: &mut TcpStream, to: &mut TcpStream, bytes: u64, fate: Fate) -> std::io::Result<()> {
    let (mut left, mut buffer) =
        (bytes, vec![0; if let Fate::Slow(bytes) = fate { bytes } else { 64 << 10 }]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = from.read(&mut buffer[..most]).await?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read]).await?;
        left -= read as u64;
        if let Fate::Slow(_) = fate {
            // The network's pace, not a wait for something.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

async fn a_network_that_fails_slows_and_cuts_is_overcome(program: Program) {
    let server = Server::start(program, false).await;
    let seed: u64 =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let state = AtomicU64::new(seed);
    let network = Network::between(server.address, move |_, _| {
        let drawn = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let drawn = drawn.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
        match drawn % 10 {
            0 => Fate::Throttled,
            1 => Fate::Broken,
            2 => Fate::CutUp(drawn % 5_000_000),
            3 => Fate::CutDown(drawn % 3_000),
            4 => Fate::Slow(256 << 10),
            _ => Fate::Passes,
        }
    })
    .await;
    let mut node = Node::with_mail();
    for number in 0..18 {
        node.append("Large", &noise(number, 1 << 20));
    }
    let s3 = S3 { endpoint: format!("http://{}", network.address), ..server.s3() };
    let repository = Repository::create_or_open(config(s3)).await.unwrap();
    let first = node.back_up(&repository, None).await;
    node.append("INBOX", b"one more");
    let second = node.back_up(&repository, Some(&first)).await;
    assert!(second.info().uploaded_bytes < 100_000);
    assert_loads(&repository, &second, &Snapshot::of(&node.store)).await;
    let found = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
    assert!(found.is_good(), "{found:?}");
    let failed = network.failed.load(Ordering::Relaxed);
    assert!(failed >= 5, "only {failed} requests failed");
}

async fn a_server_that_takes_nothing_more_fails_the_backup_and_none_is_listed(program: Program) {
    let server = Server::start(program, false).await;
    let full = Network::between(server.address, |_, method| {
        if matches!(method, "put" | "post") { Fate::Throttled } else { Fate::Passes }
    })
    .await;
    let node = Node::with_mail();
    let repository = Repository::create_or_open(config(server.s3())).await.unwrap();
    let first = node.back_up(&repository, None).await;
    let behind = S3 { endpoint: format!("http://{}", full.address), ..server.s3() };
    let behind = Repository::open(impatient(behind)).await.unwrap();
    let taken = take_group(&behind, node.source(GROUP), None, |_| {}, CancellationToken::new()).await;
    let error = taken.unwrap_err();
    assert!(error.reason() == "StorageFailed" && error.to_string().contains("packs/"), "{error}");
    assert_eq!(behind.lease("a test").await.err().unwrap().reason(), "StorageFailed");
    // What is there is still read.
    assert_eq!(behind.list().await.unwrap().backups, [first.info()]);
    assert_loads(&behind, &first, &Snapshot::of(&node.store)).await;
}

async fn a_bucket_that_fills_fails_the_backup_and_once_it_has_room_the_next_one_is_whole(program: Program) {
    let server = Server::start_as(Kind { room: Some(24), ..program.into() }).await;
    let mut node = Node::with_mail();
    let repository = Repository::create_or_open(impatient(server.s3())).await.unwrap();
    let (first, before) = (node.back_up(&repository, None).await, Snapshot::of(&node.store));
    for number in 0..40 {
        node.append("Large", &noise(number, 1 << 20));
    }
    let taken = take_group(&repository, node.source(GROUP), None, |_| {}, CancellationToken::new()).await;
    let error = taken.unwrap_err();
    assert!(error.reason() == "StorageFailed" && error.to_string().contains("packs/"), "{error}");
    // What is there stays as it was: nothing that counts as a backup has come.
    assert_eq!(repository.list().await.unwrap().backups, [first.info()]);
    assert_loads(&repository, &first, &before).await;

    // Room is made: what the failed run has left behind goes, if anything, and there is less to store.
    let keep = retention::Retention { last: 1, ..Default::default() };
    let pruned = repository.prune(|_| true, &keep, &jiff::tz::TimeZone::UTC, NO_GRACE, false).await.unwrap();
    assert!(pruned.removed.is_empty(), "{pruned:?}");
    node.expunge("Large", (2..41).map(quorumail_store::Uid).collect());
    let second = node.back_up(&repository, Some(&first)).await;
    assert_loads(&repository, &second, &Snapshot::of(&node.store)).await;
    assert!(repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap().is_good());
}

async fn a_server_that_goes_away_during_a_backup_ends_it_and_the_next_one_succeeds(program: Program) {
    let mut server = Server::start(program, false).await;
    let mut node = Node::with_mail();
    for number in 0..40 {
        node.append("Large", &noise(number, 1 << 20));
    }
    let repository = Repository::create_or_open(impatient(server.s3())).await.unwrap();
    let (uploading, is_uploading) = tokio::sync::oneshot::channel();
    let uploading = std::sync::Mutex::new(Some(uploading));
    let tell = move |progress: Progress| {
        if progress.uploaded_bytes > 0
            && let Some(uploading) = uploading.lock().unwrap().take()
        {
            let _ = uploading.send(());
        }
    };
    let taking = {
        let (store, repository) = (node.store.clone(), repository.clone());
        tokio::spawn(async move {
            let source = Source { store: &store, group: GROUP, cluster_uid: UID, log_index };
            take_group(&repository, source, None, tell, CancellationToken::new()).await
        })
    };
    is_uploading.await.unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let error = taking.await.unwrap().unwrap_err();
    assert!(matches!(error.reason(), "Unreachable" | "StorageFailed"), "{error}");

    server.child = start(server.dir.path(), server.address, server.kind);
    while TcpStream::connect(server.address).await.is_err() {
        assert!(server.child.try_wait().unwrap().is_none(), "it does not start again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(repository.list().await.unwrap().backups.is_empty());
    let manifest = node.back_up(&repository, None).await;
    assert_loads(&repository, &manifest, &Snapshot::of(&node.store)).await;
}
