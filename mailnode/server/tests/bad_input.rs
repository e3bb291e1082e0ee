//! What a node refuses to start with, or to talk to: it says what to do, and touches nothing. Real processes.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kit::{Authority, Cluster, PATIENCE, copy};
use quorumail_proto::admin::{GetClusterStatusRequest, ListDirectoryRequest};
use quorumail_server::identity::NODE_NAME;

/// Nobody, on every Linux.
const NOBODY: u32 = 65_534;

/// A change of a stopped node's files.
type Spoil = fn(&Path);

/// What was done to a data directory that had mail in it, and what the node must say then.
const SPOILT: [(&str, Spoil, &[&str]); 12] = [
    (
        "another format of the directory",
        |dir| replace(dir, "identity.yaml", "format: 2", "format: 3"),
        &["has format 3", "knows format 2", "start the version that was running before"],
    ),
    (
        "a higher format level",
        |dir| replace(dir, "identity.yaml", "level: 1", "level: 2"),
        &["format level 2", "levels 1 to 1", "run the version that ran before or a later one"],
    ),
    (
        "another cluster's",
        |dir| replace(dir, "identity.yaml", "cluster: test", "cluster: other"),
        &[
            "belongs to cluster \\\"other\\\"",
            "this node to cluster \\\"test\\\"",
            "mount this cluster's own volume",
        ],
    ),
    (
        "another node's",
        |dir| replace(dir, "identity.yaml", "node: 0", "node: 4"),
        &["belongs to node 4, this is node 0", "check which is mounted where"],
    ),
    (
        "an identity that cannot be read",
        |dir| fs::write(dir.join("identity.yaml"), "?\n- {").unwrap(),
        &["identity.yaml is damaged", "restore that file"],
    ),
    (
        "no identity",
        |dir| fs::remove_file(dir.join("identity.yaml")).unwrap(),
        &["was not made by Quorumail", "point dataDir at an empty directory"],
    ),
    (
        "another version of the topology",
        |dir| replace(dir, "topology.yaml", "version: 1", "version: 2"),
        &["topology.yaml has version 2", "knows version 1", "run the version that wrote it"],
    ),
    (
        "another version of a segment",
        |dir| next_version(&dir.join("journal").join(segment(dir)), 8, 44),
        &["has format version 3", "reads 2", "run the version"],
    ),
    (
        "another version of the floor",
        |dir| {
            let mut floor = [0; 28];
            floor[..8].copy_from_slice(b"QMFLOOR1");
            floor[8] = 2;
            floor[16] = 1;
            fs::write(dir.join("journal/floor"), floor).unwrap();
            next_version(&dir.join("journal/floor"), 8, 24);
        },
        &["floor has format version 3", "reads 2", "run the version"],
    ),
    (
        "a damaged header of a segment",
        |dir| flip(&dir.join("journal").join(segment(dir)), 20),
        &["checksum does not fit", "remove the node's whole data directory"],
    ),
    (
        "a segment of something else",
        |dir| flip(&dir.join("journal").join(segment(dir)), 0),
        &["is not a file of a Quorumail journal", "check that the data directory is this node's"],
    ),
    (
        "a damaged record in the middle",
        |dir| flip(&dir.join("journal").join(segment(dir)), 48 + 32),
        &["damaged at offset 48", "remove the node's whole data directory"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_as_it_was_left_is_refused_untouched_with_what_to_do() {
    let cluster = Cluster::start(1, 2).await;
    cluster.accounts(0, &["alice"]).await;
    cluster.terminate(0).await;
    let (data, aside) = (cluster.data_dir(0), cluster.dir.path().join("aside"));
    for (what, spoil, hints) in SPOILT {
        copy(&data, &aside);
        spoil(&data);
        refused(&cluster, what, hints).await;
        fs::remove_dir_all(&data).unwrap();
        fs::rename(&aside, &data).unwrap();
    }
    cluster.spawn(0);
    cluster.wait_ready(0).await;
    assert_eq!(mailboxes(&cluster, 0).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_other_files_and_another_nodes_volume_are_refused_untouched() {
    let cluster = Cluster::start(2, 2).await;
    cluster.accounts(0, &["alice"]).await;
    cluster.terminate(0).await;
    cluster.terminate(1).await;
    let (own, other) = (cluster.data_dir(0), cluster.data_dir(1));
    let aside = cluster.dir.path().join("aside");
    fs::rename(&own, &aside).unwrap();
    fs::create_dir_all(own.join("photos")).unwrap();
    fs::write(own.join("photos/cat.jpg"), "meow").unwrap();
    refused(&cluster, "other files", &["it holds photos", "point dataDir at an empty directory"]).await;
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&other, &own).unwrap();
    refused(&cluster, "another node's", &["belongs to node 1, this is node 0", "mounted"]).await;
    fs::rename(&own, &other).unwrap();
    fs::rename(&aside, &own).unwrap();
    cluster.spawn(0);
    cluster.spawn(1);
    cluster.wait_ready(0).await;
    assert_eq!(mailboxes(&cluster, 0).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused_and_whoever_has_it_is_not_disturbed() {
    let cluster = Cluster::start(1, 1).await;
    let first = cluster.pid(0);
    // A second process with the same configuration: it must end before it opens anything.
    let (code, log) = run_to_its_end(&cluster, 0).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("in use by another process") && log.contains("its own dataDir"), "{log}");
    assert_eq!(cluster.pid(0), first);
    cluster.accounts(0, &["alice"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_read_or_written_is_refused_untouched() {
    let cluster = Cluster::start(1, 1).await;
    cluster.accounts(0, &["alice"]).await;
    cluster.terminate(0).await;
    let data = cluster.data_dir(0);
    // Root may do everything, so then nobody tries it.
    let root = nix::unistd::geteuid().is_root();
    let (unreadable, read_only) = if root { (0o700, 0o755) } else { (0o000, 0o555) };
    fs::set_permissions(cluster.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let before = contents(&data);
    for (mode, hint) in [(unreadable, "cannot be read by user"), (read_only, "cannot be written by user")] {
        fs::set_permissions(&data, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = std::process::Command::new(program(&cluster));
        if root {
            std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        }
        let (code, log) = run(&mut command.into(), &cluster, 0).await;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(hint) && log.contains("make that user its owner"), "{log}");
        assert_eq!(contents(&data), before);
    }
    cluster.spawn(0);
    cluster.wait_ready(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_certificates_of_another_authority_is_refused_and_the_others_go_on() {
    let cluster = Cluster::start(3, 2).await;
    cluster.accounts(0, &["alice"]).await;
    cluster.terminate(2).await;
    let foreign = Authority::new(&cluster.dir.path().join("foreign"));
    foreign.issue("node", NODE_NAME);
    let config = fs::read_to_string(cluster.config_path(2)).unwrap();
    let of_foreign = config.replace("/pki/ca.pem", "/foreign/ca.pem").replace("/pki/node.", "/foreign/node.");
    assert_ne!(config, of_foreign);
    fs::write(cluster.config_path(2), of_foreign).unwrap();
    let before = [0, 1].map(|node| cluster.pid(node));
    cluster.spawn(2);

    // Both sides refuse, whoever calls, and say whose signature they expect.
    let told = |node: usize, who: &str, authority: &str| {
        let log = cluster.log(node);
        log.lines().any(|line| line.contains(who) && line.contains(&format!("CN=authority {authority}")))
    };
    let begun = Instant::now();
    for (node, authority) in [(0, "pki"), (1, "pki"), (2, "foreign")] {
        for who in ["a node was refused for its certificate", "a gRPC client was refused"] {
            while !told(node, who, authority) {
                assert!(
                    begun.elapsed() < PATIENCE,
                    "node {node} does not tell: {who}\n{}",
                    cluster.log(node)
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    cluster.accounts(1, &["bob"]).await;
    let status = cluster.admin(0).get_cluster_status(GetClusterStatusRequest {}).await.unwrap().into_inner();
    let reachable: Vec<bool> = status.nodes.iter().map(|node| node.reachable).collect();
    assert_eq!((reachable, [0, 1].map(|node| cluster.pid(node))), (vec![true, true, false], before));
    assert_ne!(cluster.get(2, "/readyz").await.unwrap().0, 200);
    // It is told of, but not several times a second.
    let lines = cluster.log(0).lines().filter(|line| line.contains("refused")).count();
    // Four in ten seconds, by a window that may have begun at any time.
    assert!(lines as u64 <= 4 * (2 + begun.elapsed().as_secs() / 10), "{lines} lines:\n{}", cluster.log(0));

    cluster.terminate(2).await;
    fs::write(cluster.config_path(2), config).unwrap();
    cluster.spawn(2);
    cluster.wait_ready(2).await;
    assert_eq!(mailboxes(&cluster, 2).await, 2);
}

async fn mailboxes(cluster: &Cluster, node: usize) -> usize {
    let mut listing = cluster.admin(node).list_directory(ListDirectoryRequest {}).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(entry) = listing.message().await.unwrap() {
        count += usize::from(matches!(
            entry.entry,
            Some(quorumail_proto::admin::directory_entry::Entry::Mailbox(_))
        ));
    }
    count
}

/// Starts node 0 and sees that it ends with all of the hints and without having touched its directory.
async fn refused(cluster: &Cluster, what: &str, hints: &[&str]) {
    let before = contents(&cluster.data_dir(0));
    let (code, log) = run_to_its_end(cluster, 0).await;
    assert_eq!(code, Some(1), "{what}: {log}");
    for hint in hints {
        assert!(log.contains(hint), "{what}: {hint:?} is missing in: {log}");
    }
    let after = contents(&cluster.data_dir(0));
    let changed: Vec<_> =
        before.keys().chain(after.keys()).filter(|f| before.get(*f) != after.get(*f)).collect();
    assert!(changed.is_empty(), "{what}: {changed:?}");
}

/// Starts a node that is expected to end by itself; its exit code and log.
async fn run_to_its_end(cluster: &Cluster, node: usize) -> (Option<i32>, String) {
    run(&mut tokio::process::Command::new(env!("CARGO_BIN_EXE_mailnode")), cluster, node).await
}

async fn run(command: &mut tokio::process::Command, cluster: &Cluster, node: usize) -> (Option<i32>, String) {
    command.arg("--config").arg(cluster.config_path(node)).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The program where everybody may start it.
fn program(cluster: &Cluster) -> PathBuf {
    let place = cluster.dir.path().join("mailnode");
    let built = Path::new(env!("CARGO_BIN_EXE_mailnode"));
    if !place.exists() && fs::hard_link(built, &place).is_err() {
        fs::copy(built, &place).unwrap();
    }
    place
}

/// Everything below a directory: what kind it is, its rights, and what is in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, (u32, blake3::Hash)> {
    let (mut found, mut left) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            let bytes = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if data.is_dir() {
                left.push(path.clone());
            }
            found.insert(path, (data.mode(), blake3::hash(&bytes)));
        }
    }
    found
}

fn replace(dir: &Path, file: &str, old: &str, new: &str) {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    assert!(text.contains(old), "{text}");
    fs::write(dir.join(file), text.replace(old, new)).unwrap();
}

/// The oldest segment of a directory's journal.
fn segment(dir: &Path) -> String {
    let files = fs::read_dir(dir.join("journal")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".seg")).min().unwrap()
}

/// Counts a version at an offset up, with the checksum behind it right.
fn next_version(file: &Path, version: usize, checksum: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[version] += 1;
    let sum = crc32c::crc32c(&bytes[..checksum]);
    bytes[checksum..checksum + 4].copy_from_slice(&sum.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

fn flip(file: &Path, offset: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[offset] ^= 0x40;
    fs::write(file, bytes).unwrap();
}
