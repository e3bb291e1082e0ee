//! Disks that rot: what was written is not what is read. Real processes, and bytes changed in their files.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use kit::{
    Cluster, PATIENCE,
    clients::{Imap, Smtp},
};
use quorumail_server::config::Port;

/// Stands in every message, with its number behind it.
const MARK: &str = "this is message";

fn text(number: usize) -> String {
    format!("From: <a@elsewhere.test>\r\nSubject: hello\r\n\r\n{MARK} {number}.\r\n")
}

async fn send(cluster: &Cluster, text: &str) {
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    let reply = smtp.send("a@elsewhere.test", &["alice@example.org"], text).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
}

/// The status and the text of FETCH of a message from a node's own replica.
async fn fetch(cluster: &Cluster, node: usize, number: usize) -> (String, String) {
    let mut imap = Imap::login(cluster.address(node, Port::Imap), "alice@example.org").await.unwrap();
    imap.ok("SELECT INBOX").await;
    imap.command(&format!("FETCH {number} (FLAGS BODY.PEEK[])")).await.unwrap()
}

async fn assert_readable(cluster: &Cluster, node: usize, number: usize) {
    let (status, fetched) = fetch(cluster, node, number).await;
    assert!(status.starts_with("OK"), "node {node}, message {number}: {status}");
    assert!(fetched.contains(&format!("{MARK} {number}.\r\n")), "node {node}: {fetched}");
}

/// Spoils every copy of a message in a node's journal; answers in how many places.
fn rot(cluster: &Cluster, node: usize, number: usize) -> usize {
    let wanted = format!("{MARK} {number}.");
    let mut places = 0;
    for entry in fs::read_dir(cluster.data_dir(node).join("journal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "seg" && extension != "kept") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let candidates = bytes.iter().enumerate().filter(|(_, byte)| **byte == wanted.as_bytes()[0]);
        for (at, _) in candidates.filter(|(at, _)| bytes[*at..].starts_with(wanted.as_bytes())) {
            file.write_all_at(b"#", at as u64).unwrap();
            places += 1;
        }
        // On the disk, so that it is met by who reads from there.
        file.sync_data().unwrap();
    }
    places
}

/// Waits until a node shows a metric with this value.
async fn until(cluster: &Cluster, node: usize, line: &str) {
    let begun = Instant::now();
    loop {
        let (_, metrics) = cluster.get(node, "/metrics").await.unwrap_or_default();
        if metrics.lines().any(|found| found == line) {
            return;
        }
        let about =
            |found: &&str| found.contains("scrub") || found.contains("repair") || found.contains("floor");
        let shown: Vec<&str> = metrics.lines().filter(about).collect();
        assert!(begun.elapsed() < PATIENCE, "node {node} does not show {line}: {shown:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_meets_rot_gets_the_message_from_another_replica() {
    let cluster = Cluster::start_with(3, 1, "scrub: {bytesPerSecond: 0}").await;
    cluster.accounts(0, &["alice"]).await;
    for number in 1..=3 {
        send(&cluster, &text(number)).await;
    }
    for node in 0..3 {
        assert_readable(&cluster, node, 1).await;
    }

    assert_eq!(rot(&cluster, 1, 1), 1);
    assert_readable(&cluster, 1, 1).await;
    until(&cluster, 1, "quorumail_repairs_total{kind=\"body\"} 1").await;
    // It lies well there now: nobody is asked any more.
    assert_readable(&cluster, 1, 1).await;
    until(&cluster, 1, "quorumail_repairs_total{kind=\"body\"} 1").await;
    // It was met in the segment that is written to, and a start that read it would be refused: the log has left it.
    until(&cluster, 1, "quorumail_repairs_total{kind=\"log\"} 1").await;
    until(&cluster, 1, "quorumail_unrepaired{kind=\"log\"} 0").await;
    // So is a copy that rots, and the place where copies are written.
    assert_eq!(rot(&cluster, 1, 1), 1);
    assert_readable(&cluster, 1, 1).await;
    cluster.terminate(1).await;
    cluster.spawn(1);
    cluster.wait_ready(1).await;
    assert_readable(&cluster, 1, 1).await;
    // So well that the others can be repaired from it.
    assert_eq!((rot(&cluster, 0, 1), rot(&cluster, 2, 1)), (1, 1));
    for node in [0, 2] {
        assert_readable(&cluster, node, 1).await;
        until(&cluster, node, "quorumail_repairs_total{kind=\"body\"} 1").await;
    }

    // Rotten everywhere: the reader is told that it cannot be had now, and nothing else happens.
    for node in 0..3 {
        assert_eq!(rot(&cluster, node, 2), 1, "node {node}");
    }
    for node in 0..3 {
        let (status, _) = fetch(&cluster, node, 2).await;
        assert!(status.starts_with("NO [UNAVAILABLE] 1 of the messages"), "node {node}: {status}");
        until(&cluster, node, "quorumail_unrepaired{kind=\"body\"} 1").await;
        assert_readable(&cluster, node, 1).await;
        assert_readable(&cluster, node, 3).await;
        assert_eq!(cluster.get(node, "/readyz").await.unwrap().0, 200);
    }
    send(&cluster, &text(4)).await;
    assert_readable(&cluster, 1, 4).await;
    // Whoever asks for several gets all others, and is told how many are lacking.
    let mut imap = Imap::login(cluster.address(1, Port::Imap), "alice@example.org").await.unwrap();
    imap.ok("SELECT INBOX").await;
    let (status, fetched) = imap.command("FETCH 1:4 (UID BODY.PEEK[])").await.unwrap();
    assert!(status.starts_with("NO [UNAVAILABLE] 1 of the messages"), "{status}");
    let told = |number: usize| {
        fetched.contains(&format!("* {number} FETCH (UID {number} "))
            && fetched.contains(&format!("{MARK} {number}.\r\n"))
    };
    assert_eq!([1, 2, 3, 4].map(told), [true, false, true, true], "{fetched}");
    // What is not read for it, all have.
    let listed = imap.ok("FETCH 1:4 (FLAGS RFC822.SIZE)").await;
    assert_eq!(listed.matches(" FETCH (").count(), 4, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_in_a_sealed_segment_is_found_and_repaired_and_the_log_leaves_it_behind() {
    let scrub = "scrub: {bytesPerSecond: 100000000, every: 3s}";
    let cluster = Cluster::start_with(3, 1, scrub).await;
    cluster.accounts(0, &["alice"]).await;
    send(&cluster, &text(1)).await;
    send(&cluster, &text(2)).await;
    // So much that the first segment is full, of 64 MiB.
    let line = format!("{}\r\n", "x".repeat(76));
    for number in 3..=5 {
        send(&cluster, &format!("{}{}", text(number), line.repeat((23 << 20) / line.len()))).await;
    }
    for node in 0..3 {
        assert_readable(&cluster, node, 5).await;
    }

    // While it runs: found, fetched from another node, and the log needs the segment no more.
    assert_eq!(rot(&cluster, 1, 1), 1);
    until(&cluster, 1, "quorumail_scrub_rotten_records_total{kind=\"body\"} 1").await;
    until(&cluster, 1, "quorumail_repairs_total{kind=\"body\"} 1").await;
    until(&cluster, 1, "quorumail_repairs_total{kind=\"log\"} 1").await;
    until(&cluster, 1, "quorumail_journal_floor_segment 2").await;
    until(&cluster, 1, "quorumail_unrepaired{kind=\"body\"} 0").await;
    assert_readable(&cluster, 1, 1).await;

    // While it is down, and the side index is lost as well: it starts, because nothing is read there any more, and what
    // should be there is known from the index.
    cluster.terminate(1).await;
    assert_eq!(rot(&cluster, 1, 2), 1);
    fs::remove_file(cluster.data_dir(1).join("journal/0000000000000001.seg.idx")).unwrap();
    cluster.spawn(1);
    cluster.wait_ready(1).await;
    until(&cluster, 1, "quorumail_repairs_total{kind=\"body\"} 1").await;
    for number in 1..=5 {
        assert_readable(&cluster, 1, number).await;
    }
    let metrics = cluster.get(1, "/metrics").await.unwrap().1;
    assert!(metrics.contains("quorumail_scrub_last_pass_age_seconds"), "{metrics}");
    send(&cluster, &text(6)).await;
    assert_readable(&cluster, 1, 6).await;
}
