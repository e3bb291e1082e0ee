//! What is done when the disk under a replica rots: bodies come from other replicas, rotten log is left behind.

mod kit;

use std::path::PathBuf;
use std::time::Duration;

use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, until};
use quorumail_consensus::{GroupId, NodeId};
use quorumail_journal::Journal;

const GROUP: GroupId = GroupId(1);

/// Proposes so much that the journals have sealed segments.
async fn fill(cluster: &Cluster, node: NodeId, first: u64) {
    for id in first..first + 100 {
        cluster.node(node).propose(1, id, &[7; 2000], PATIENCE).await.expect("acknowledged");
    }
}

/// Flips bits all over a segment and takes its side index away: whoever reads it finds only damage.
fn rot(cluster: &Cluster, node: NodeId, segment: u64) {
    let path: PathBuf = cluster.journal_dir(node).join(format!("{segment:016}.seg"));
    let mut bytes = std::fs::read(&path).expect("the segment is there");
    bytes.iter_mut().skip(48).step_by(100).for_each(|byte| *byte ^= 1);
    std::fs::write(&path, &bytes).expect("the segment can be written");
    std::fs::remove_file(path.with_extension("seg.idx")).expect("it has a side index");
}

fn is_damaged(journal: &Journal, segment: u64) -> bool {
    journal.scan(segment, &mut |_| true).expect("the segment is there").lost_from.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_comes_from_any_other_replica_that_can_read_it() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(4, 1).await;
    cluster.node(0).propose(1, 5, b"body of a message", PATIENCE).await.expect("acknowledged");
    cluster.settled().await;
    let holders: Vec<NodeId> =
        cluster.nodes.iter().filter(|(_, node)| node.consensus.holds(GROUP)).map(|(id, _)| *id).collect();
    let (me, outsider) = (holders[0], (0..4).find(|id| !holders.contains(id)).expect("one has no replica"));
    let leader = cluster.leader(1).await;
    let consensus = &cluster.node(me).consensus;
    let others = consensus.other_replicas(GROUP);
    assert!(others.len() == 2 && !others.contains(&me) && !others.contains(&outsider), "{others:?}");
    assert!(leader == me || others[0] == leader, "the leader is asked first");
    assert!(cluster.node(outsider).consensus.other_replicas(GROUP).is_empty());

    let index = cluster.node(me).machine.index_of(GROUP, 5).expect("it was applied");
    for from in &others {
        let body = consensus.fetch_body(*from, GROUP, index, PATIENCE).await;
        assert_eq!(body.expect("an answer").expect("a body"), &b"body of a message"[..]);
        assert_eq!(consensus.fetch_body(*from, GROUP, index + 1000, PATIENCE).await, Ok(None));
    }
    assert!(consensus.fetch_body(outsider, GROUP, index, PATIENCE).await.is_err(), "it holds no replica");
    assert!(consensus.fetch_body(99, GROUP, index, PATIENCE).await.is_err(), "there is no such node");
    cluster.node(others[0]).machine.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let unread =
        consensus.fetch_body(others[0], GROUP, index, PATIENCE).await.expect_err("its disk is broken");
    assert!(unread.contains("broken on purpose"), "{unread}");
    assert!(consensus.fetch_body(others[1], GROUP, index, PATIENCE).await.is_ok_and(|body| body.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_segment_of_the_log_is_left_behind_and_the_replica_goes_on_voting() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    fill(&cluster, 0, 0).await;
    cluster.settled().await;
    let follower = (0..3).find(|id| !cluster.node(*id).consensus.leads(GROUP)).expect("two follow");
    let other = (0..3).find(|id| *id != follower && !cluster.node(*id).consensus.leads(GROUP));
    let journal = cluster.node(follower).machine.journal().clone();
    rot(&cluster, follower, 2);
    assert!(is_damaged(&journal, 2));
    let newest = journal.last_of_log(0);
    assert!(newest > 3, "there are sealed segments");

    let consensus = cluster.node(follower).consensus.clone();
    assert!(consensus.retire_log(newest + 1).await.is_err(), "there is no such segment yet");
    consensus.retire_log(2).await.expect("everything in it is applied");
    assert!(journal.stats().floor > 2);
    consensus.retire_log(2).await.expect("done already");
    // The newest one as well: it is ended for that.
    let newest = journal.last_of_log(0);
    consensus.retire_log(newest).await.expect("everything in it is applied");
    assert!(journal.stats().floor > newest);
    rot(&cluster, follower, newest);
    // The directory is free for the next life of the node only when nobody holds the journal.
    drop((journal, consensus));

    // It starts without what was damaged, remembers its vote, and makes a majority with one other.
    cluster.crash(follower);
    cluster.up(follower).await;
    cluster.ready().await;
    cluster.crash(other.expect("two follow"));
    fill(&cluster, follower, 100).await;
    assert_eq!(cluster.node(follower).count(1).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_with_entries_that_are_not_applied_is_still_needed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let journal = cluster.node(leader).machine.journal().clone();
    for other in (0..3).filter(|other| *other != leader) {
        cluster.cuts.cut(leader, other);
        cluster.cuts.cut(other, leader);
    }
    let before = journal.last_of_log(0);
    let proposals = (0..60).map(|id| cluster.node(leader).propose(1, id, &[7; 2000], Duration::from_secs(1)));
    let outcomes = futures::future::join_all(proposals).await;
    assert!(outcomes.iter().all(Result::is_err), "nobody else has them");
    until("sealed segments", || (journal.last_of_log(0) > before + 1).then_some(())).await;
    let floor = journal.stats().floor;
    let refused = cluster.node(leader).consensus.retire_log(before + 1).await.expect_err("they are needed");
    assert!(refused.contains("not applied"), "{refused}");
    assert_eq!(journal.stats().floor, floor);
    cluster.cuts.mend_all();
    cluster.settled().await;
}
