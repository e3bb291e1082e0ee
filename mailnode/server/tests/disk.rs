//! Nodes whose disk fills up, and gets room again. Real processes, a real file system in memory.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use kit::{
    Cluster, PATIENCE,
    clients::{Imap, Smtp},
};
use quorumail_server::config::Port;

/// A file system that no other test uses.
const IN_MEMORY: &str = "/dev/shm";
const MIB: u64 = 1 << 20;
const TEXT: &str = "From: <a@elsewhere.test>\r\nSubject: hello\r\n\r\nA line\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_full_disks_refuse_mail_then_only_read_and_recover_by_themselves() {
    let before = free();
    assert!(before > 3072 * MIB, "this test needs 3 GiB of free memory in {IN_MEMORY}");
    let marks =
        format!("disk: {{noNewMailBelow: {}, readOnlyBelow: {}}}", before - 1280 * MIB, before - 1536 * MIB);
    let dir = tempfile::tempdir_in(IN_MEMORY).unwrap();
    let ballast = dir.path().join("ballast");
    let cluster = Cluster::start_in(dir, 3, 2, &marks).await;
    cluster.accounts(0, &["alice"]).await;
    assert_eq!(&send(&cluster).await[..3], "250");
    let mut imap = Imap::login(cluster.address(1, Port::Imap), "alice@example.org").await.unwrap();

    // The first mark: no new mail by any way, everything else goes on.
    fill(&ballast, before - 1280 * MIB - 64 * MIB);
    until(&cluster, "quorumail_disk_room 1").await;
    assert!(send(&cluster).await.starts_with("452 4.3.1"));
    imap.ok("SELECT INBOX").await;
    imap.ok("STORE 1 +FLAGS (\\Flagged)").await;
    let (copied, _) = imap.command("COPY 1 Archive").await.unwrap();
    assert!(copied.contains("NO [UNAVAILABLE]"), "{copied}");

    // The second: reading only, from every node.
    fill(&ballast, before - 1536 * MIB - 64 * MIB);
    until(&cluster, "quorumail_disk_room 0").await;
    assert!(send(&cluster).await.starts_with("452 4.3.1"));
    let (stored, _) = imap.command("STORE 1 +FLAGS (\\Seen)").await.unwrap();
    assert!(stored.contains("NO [UNAVAILABLE]"), "{stored}");
    for node in 0..3 {
        let mut imap = Imap::login(cluster.address(node, Port::Imap), "alice@example.org").await.unwrap();
        imap.ok("SELECT INBOX").await;
        let fetched = imap.ok("FETCH 1 (FLAGS BODY.PEEK[])").await;
        assert!(fetched.contains("A line") && fetched.contains("\\Flagged"), "{fetched}");
    }

    // Room again: everything again, nobody had to do anything.
    std::fs::remove_file(&ballast).unwrap();
    until(&cluster, "quorumail_disk_room 2").await;
    let begun = Instant::now();
    while !send(&cluster).await.starts_with("250") {
        assert!(begun.elapsed() < PATIENCE, "mail is taken again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    imap.ok("STORE 1 +FLAGS (\\Seen)").await;
    assert!(imap.ok("SELECT INBOX").await.contains("* 2 EXISTS"));
}

fn free() -> u64 {
    let found = nix::sys::statvfs::statvfs(IN_MEMORY).unwrap();
    found.fragment_size() * found.blocks_available()
}

/// Takes room until `left` bytes are free.
fn fill(ballast: &Path, left: u64) {
    let file = File::options().create(true).append(true).open(ballast).unwrap();
    let (more, there) = (free().saturating_sub(left), file.metadata().unwrap().len());
    let len = i64::try_from(more).unwrap();
    nix::fcntl::posix_fallocate(&file, i64::try_from(there).unwrap(), len).unwrap();
}

async fn send(cluster: &Cluster) -> String {
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    smtp.send("a@elsewhere.test", &["alice@example.org"], TEXT).await.unwrap()
}

/// Waits until every node shows a metric.
async fn until(cluster: &Cluster, line: &str) {
    let begun = Instant::now();
    for node in 0..3 {
        while !cluster.get(node, "/metrics").await.is_some_and(|(_, text)| text.contains(line)) {
            assert!(begun.elapsed() < PATIENCE, "node {node} shows {line}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
