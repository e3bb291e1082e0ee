//! Nodes as they run: status, accounts, certificates, start and end. Real processes, real sockets.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::{Authority, Cluster, put_domain, put_mailbox};
use quorumail_proto::admin::{
    GetClusterStatusRequest, GetNodeStatusRequest, ListDirectoryRequest, directory_entry::Entry,
};
use quorumail_server::{identity::NODE_NAME, tls::InternalTls};

#[tokio::test(flavor = "multi_thread")]
async fn one_node_becomes_ready_keeps_accounts_and_ends_well_on_sigterm() {
    let cluster = Cluster::start(1, 2).await;
    cluster.accounts(0, &["alice", "bob"]).await;

    let status = cluster.terminate(0).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.log(0));

    cluster.spawn(0);
    cluster.wait_ready(0).await;
    assert_eq!(addresses(&cluster, 0).await, ["alice@example.org", "bob@example.org"]);
    let status = cluster.close_stdin(0).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.log(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_of_three_takes_and_lists_accounts() {
    let cluster = Cluster::start(3, 4).await;
    cluster.accounts(1, &["alice", "bob", "carol"]).await;
    for node in 0..3 {
        assert_eq!(addresses(&cluster, node).await.len(), 3, "node {node}");
    }

    // The second time nothing is to be done, and a bad change does not stop a good one.
    let changes = vec![
        put_domain("example.org"),
        put_mailbox("nobody@elsewhere.test"),
        put_mailbox("alice@example.org"),
    ];
    let codes: Vec<i32> = cluster.apply(2, changes).await.iter().map(|result| result.code).collect();
    assert_eq!((codes[0], codes[2]), (1, 1));
    assert!(codes[1] == 2 || codes[1] == 3, "{codes:?}");

    let status = cluster.admin(0).get_cluster_status(GetClusterStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.nodes.len(), status.groups.len(), status.partitions), (3, 5, 4));
    assert!(
        status.nodes.iter().all(|node| node.reachable && node.status.as_ref().unwrap().ready),
        "{status:?}"
    );
    let metrics = cluster.get(0, "/metrics").await.unwrap().1;
    assert!(metrics.contains("quorumail_directory_mailboxes 3"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_can_be_made_after_the_loss_of_any_leader() {
    let cluster = Cluster::start(3, 2).await;
    cluster.accounts(0, &["alice"]).await;
    let leader = cluster.leader(0, 0).await;
    cluster.kill(leader);
    let other = (leader + 1) % 3;
    cluster.accounts(other, &["bob"]).await;
    cluster.spawn(leader);
    cluster.wait_ready(leader).await;
    assert_eq!(addresses(&cluster, leader).await, ["alice@example.org", "bob@example.org"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_of_the_cluster_is_refused() {
    let cluster = Cluster::start(1, 1).await;
    let stranger = Authority::new(&cluster.dir.path().join("stranger"));
    let mut foreign = stranger.issue("node", NODE_NAME);
    // It trusts our authority, but ours did not sign it.
    foreign.ca = cluster.authority.issue("unused", "x").ca;
    let nameless = cluster.authority.issue("nameless", "somebody.example");
    for files in [foreign, nameless] {
        let tls = InternalTls::load(&files).unwrap();
        let answer = cluster.admin_as(0, &tls).get_node_status(GetNodeStatusRequest {}).await;
        assert!(answer.is_err(), "{files:?}: {answer:?}");
    }
    assert!(cluster.admin(0).get_node_status(GetNodeStatusRequest {}).await.is_ok());
}

async fn addresses(cluster: &Cluster, node: usize) -> Vec<String> {
    let mut listing = cluster.admin(node).list_directory(ListDirectoryRequest {}).await.unwrap().into_inner();
    let mut addresses = Vec::new();
    while let Some(entry) = listing.message().await.unwrap() {
        if let Some(Entry::Mailbox(mailbox)) = entry.entry {
            addresses.push(mailbox.address);
        }
    }
    addresses.sort();
    addresses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let cluster = Cluster::start(1, 1).await;
    let before = cluster.get(0, "/metrics").await.unwrap().1;
    cluster.authority.issue_until("public", "localhost", 2050);
    cluster.authority.issue_until("node", NODE_NAME, 2051);
    let begun = std::time::Instant::now();
    loop {
        let now = cluster.get(0, "/metrics").await.unwrap().1;
        let expiry = |text: &str, section: &str| {
            let name = format!("quorumail_certificate_not_after_seconds{{section=\"{section}\"}}");
            text.lines().find(|line| line.starts_with(&name)).unwrap().to_owned()
        };
        if ["public", "internal"].iter().all(|section| expiry(&now, section) != expiry(&before, section)) {
            break;
        }
        assert!(begun.elapsed() < kit::PATIENCE, "{}", cluster.log(0));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(cluster.admin(0).get_node_status(GetNodeStatusRequest {}).await.is_ok());
}
