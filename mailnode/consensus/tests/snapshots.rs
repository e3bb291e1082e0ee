//! How replicas are filled that cannot catch up from the log, and what a follower that takes nothing costs.

mod kit;

use std::time::{Duration, Instant};

use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, until};
use quorumail_consensus::{GroupId, LogRetention, NodeId};

/// A body that snapshots of the state machine carry.
const BODY: usize = 64 << 10;
const BODIES: u64 = 96;

/// Three nodes that send snapshots at a rate, one of them down and so far behind that it needs one. Who leads group 1, and
/// who is down.
async fn one_far_behind(bytes_per_second: u64) -> (Cluster, NodeId, NodeId) {
    let mut cluster = Cluster::start_with(3, 1, move |config| {
        config.log_retention = LogRetention { entries: 20, bytes: 1 << 20 };
        config.checkpoint_interval = Duration::from_millis(300);
        config.snapshot_bytes_per_second = bytes_per_second;
    })
    .await;
    cluster.ready().await;
    let first = cluster.leader(1).await;
    let behind = (first + 1) % 3;
    cluster.crash(behind);
    let leader = cluster.leader(1).await;
    for id in 0..BODIES {
        cluster.node(leader).propose(1, id, &[7; BODY], PATIENCE).await.expect("acknowledged");
    }
    let checkpoints = || cluster.node(leader).consensus.metrics().checkpoints;
    let before = checkpoints();
    until("the log to be purged", || (checkpoints() > before + 2).then_some(())).await;
    (cluster, leader, behind)
}

fn sent(cluster: &Cluster, node: NodeId) -> u64 {
    cluster.node(node).consensus.metrics().snapshot_bytes_sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_connection_breaks_goes_on_where_it_was_and_leaves_room_for_writes() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const RATE: u64 = 2 << 20;
    const BREAKS: u64 = 5;
    let (mut cluster, leader, behind) = one_far_behind(RATE).await;
    let size = BODIES * BODY as u64;
    let started = Instant::now();
    cluster.up(behind).await;
    let mut slowest = Duration::ZERO;
    let mut id = 10_000;
    for step in 1..=BREAKS {
        while sent(&cluster, leader) < step * size / (BREAKS + 1) {
            assert!(started.elapsed() < PATIENCE, "the snapshot does not go on");
            let begun = Instant::now();
            cluster.node(leader).propose(1, id, b"meanwhile", PATIENCE).await.expect("acknowledged");
            slowest = slowest.max(begun.elapsed());
            id += 1;
        }
        cluster.cuts.break_off(leader, behind);
    }
    let metrics = || cluster.node(behind).consensus.metrics();
    let applied = || cluster.node(behind).machine.digest(GroupId(1)).0 as u64;
    until("the snapshot to arrive", || (applied() >= BODIES).then_some(())).await;
    let took = started.elapsed();
    cluster.settled().await;
    let sender = cluster.node(leader).consensus.metrics();
    println!(
        "{} of {size} bytes sent in {took:?}, resumed {} times; {} writes meanwhile, the slowest took {slowest:?}",
        sender.snapshot_bytes_sent,
        sender.snapshots_resumed,
        id - 10_000
    );
    assert_eq!(sender.snapshots_resumed, BREAKS, "every break was mended");
    assert!(sender.snapshot_bytes_sent >= size && sender.snapshot_bytes_sent < size * 3 / 2);
    assert!(took.as_secs_f64() > 0.9 * size as f64 / RATE as f64, "faster than the rate allows: {took:?}");
    assert!(id > 10_000 + 100, "only {} writes went through meanwhile", id - 10_000);
    assert!(metrics().snapshots_installed <= 2, "one a group, the directory's included");
    assert_eq!(sender.snapshot_in_flight_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_killed_begins_anew_and_ends_right() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (mut cluster, leader, behind) = one_far_behind(4 << 20).await;
    let size = BODIES * BODY as u64;
    cluster.up(behind).await;
    for step in 1..=2 {
        until("half of the snapshot", || (sent(&cluster, leader) > step * size / 2).then_some(())).await;
        cluster.crash(behind);
        assert!(cluster.node(leader).consensus.metrics().snapshots_sent <= 1, "it was not cut off");
        cluster.up(behind).await;
    }
    let applied = || cluster.node(behind).machine.digest(GroupId(1)).0 as u64;
    until("the snapshot to arrive", || (applied() >= BODIES).then_some(())).await;
    cluster.settled().await;
    let sender = cluster.node(leader).consensus.metrics();
    println!("{} of {size} bytes sent", sender.snapshot_bytes_sent);
    assert!(sender.snapshot_bytes_sent > 2 * size - (1 << 20), "what was lost was sent again");
    cluster.node(behind).propose(1, 20_000, b"after", PATIENCE).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_nothing_is_sent_no_more_of_a_snapshot_than_the_window() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const WINDOW: u64 = 4 << 20;
    let (mut cluster, leader, behind) = one_far_behind(16 << 20).await;
    cluster.up(behind).await;
    until("the snapshot to begin", || (sent(&cluster, leader) > 64 << 10).then_some(())).await;
    let in_flight = || cluster.node(leader).consensus.metrics().snapshot_in_flight_bytes;
    // First the chunks are held up, then the answers to them: not so long that the connection is given up.
    let mut most = [0, 0];
    for (most, (from, to)) in most.iter_mut().zip([(leader, behind), (behind, leader)]) {
        cluster.cuts.cut(from, to);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1000) {
            *most = (*most).max(in_flight());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster.cuts.mend_all();
    }
    println!("at most {most:?} bytes in flight");
    assert!(most[1] >= WINDOW * 3 / 4, "nothing was in the way of the snapshot: {most:?}");
    assert!(most.iter().all(|most| *most < WINDOW + (64 << 10)), "{most:?} bytes in flight");
    cluster.settled().await;
    // The receiver has everything a little before the sender knows.
    until("what was held for it to be let go", || (in_flight() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_takes_nothing_is_sent_no_more_of_the_log_than_the_window() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const WINDOW: u64 = 32 << 20;
    let cluster = Cluster::start(3, 4).await;
    cluster.ready().await;
    let leader = cluster.leader(1).await;
    let (stalled, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.cuts.cut(leader, stalled);
    let body = vec![3u8; 512 << 10];
    let in_flight = || cluster.node(leader).consensus.metrics().append_in_flight_bytes;
    let mut most = 0;
    // Twice as much as the window, in four groups.
    for id in 0..128 {
        let group = 1 + id as u32 % 4;
        cluster.node(other).propose(group, id, &body, PATIENCE).await.expect("acknowledged by the majority");
        most = most.max(in_flight());
    }
    println!("64 MiB acknowledged, at most {most} bytes in flight");
    assert!(most > 0 && most <= 2 * WINDOW, "{most} bytes in flight to two followers");
    cluster.cuts.mend_all();
    cluster.settled().await;
    until("everything to be answered", || (in_flight() == 0).then_some(())).await;
}
