//! Who leads, and who gives leads away, over real sockets on loopback.

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, until};
use quorumail_consensus::{Consensus, GroupId, NodeId};

/// Writes to all groups without end through one node.
struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Traffic {
    fn start(through: &Consensus, groups: u32) -> Traffic {
        let stop: Arc<AtomicBool> = Arc::default();
        let writer = |group: u32| {
            let (consensus, stop) = (through.clone(), stop.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let command = kit::toy::command(written, b"body");
                    consensus.propose(GroupId(group), command, PATIENCE).await.expect("acknowledged");
                    written += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                written
            })
        };
        let tasks = (1..=groups).map(writer).collect();
        Traffic { stop, tasks }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        for task in self.tasks {
            written += task.await.expect("the writer ends");
        }
        written
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_slow_disk_gives_its_leads_away_until_the_disk_is_well() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 6;
    let cluster = Cluster::start(3, GROUPS).await;
    cluster.ready().await;
    let led = |node: NodeId| cluster.node(node).consensus.led_groups();
    let slow = |node: NodeId| cluster.node(node).consensus.metrics().disk_is_slow;
    until("every node to lead", || (0..3).all(|node| led(node).len() >= 2).then_some(())).await;
    let before = led(2);
    let traffic = Traffic::start(&cluster.node(0).consensus, GROUPS);

    cluster.drag(2, Duration::from_millis(400));
    let started = Instant::now();
    until("the slow node to lead nothing", || led(2).is_empty().then_some(())).await;
    println!("the leads were given away {:?} after the disk became slow", started.elapsed());
    assert!(slow(2) && !slow(0) && !slow(1));
    // The balancing gives leads back after three seconds to nodes that keep up, but not to this one.
    let until_then = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until_then {
        assert_eq!(led(2), [], "the slow node took a lead back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    cluster.drag(2, Duration::ZERO);
    let mended = Instant::now();
    until("the leads to return", || (led(2) == before).then_some(())).await;
    println!("the leads were back {:?} after the disk was well", mended.elapsed());
    assert!(!slow(2));
    println!("{} writes", traffic.end().await);
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_stay_where_they_are_when_all_disks_are_slow_alike() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 3;
    let cluster = Cluster::start(3, GROUPS).await;
    cluster.ready().await;
    let led = |node: NodeId| cluster.node(node).consensus.led_groups();
    until("every node to lead", || (0..3).all(|node| !led(node).is_empty()).then_some(())).await;
    let before: Vec<_> = (0..3).map(led).collect();
    for node in 0..3 {
        cluster.drag(node, Duration::from_millis(150));
    }
    let traffic = Traffic::start(&cluster.node(0).consensus, GROUPS);
    let known = |node: NodeId| cluster.node(node).consensus.metrics().disk_sync_seconds > 0.1;
    until("the nodes to know how slow they are", || (0..3).all(known).then_some(())).await;
    let until_then = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_then {
        assert_eq!((0..3).map(led).collect::<Vec<_>>(), before);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_leader_leads_on_while_nobody_else_could() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    cluster.ready().await;
    let leader = cluster.leader(1).await;
    let (gone, leaving) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.crash(gone);
    // It votes, but takes no leads any more.
    cluster.node(leaving).consensus.hand_over(Duration::from_secs(10)).await;
    until("the leader to lead", || cluster.node(leader).consensus.leads(GroupId(1)).then_some(())).await;
    cluster.drag(leader, Duration::from_millis(400));
    let traffic = Traffic::start(&cluster.node(leader).consensus, 1);
    let slow = || cluster.node(leader).consensus.metrics().disk_is_slow;
    until("the disk to be found slow", || slow().then_some(())).await;
    let until_then = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until_then {
        assert!(cluster.node(leader).consensus.leads(GroupId(1)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(traffic.end().await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stepped_aside_and_was_not_ended_leads_again() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    cluster.ready().await;
    let aside = cluster.leader(1).await;
    let leads = |cluster: &Cluster| cluster.node(aside).consensus.leads(GroupId(1));
    // Asked twice: the time begins anew, and the end of the first is not that of the second.
    for length in [Duration::ZERO, Duration::from_secs(4)] {
        assert_eq!(cluster.node(aside).consensus.step_aside(Duration::from_secs(2), length).await, 0);
    }
    let others = [(aside + 1) % 3, (aside + 2) % 3];
    let second = cluster.leader(1).await;
    let third = others[usize::from(others[0] == second)];
    let until_then = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_then {
        assert!(!leads(&cluster), "it was to lead nothing yet");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The others leave for good: they need it, and get it as soon as its time is over.
    cluster.node(third).consensus.hand_over(Duration::from_secs(5)).await;
    assert_eq!(cluster.node(second).consensus.hand_over(Duration::from_secs(10)).await, 0);
    until("the node to lead", || leads(&cluster).then_some(())).await;
    // For good is for good, whatever is asked later.
    cluster.node(third).consensus.step_aside(Duration::ZERO, Duration::ZERO).await;
    cluster.crash(aside);
    let until_then = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_then {
        assert!(others.iter().all(|other| !cluster.node(*other).consensus.leads(GroupId(1))));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_catches_up_while_its_node_leaves_is_not_elected() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    cluster.ready().await;
    for id in 0..20 {
        cluster.node(0).propose(1, id, b"body", PATIENCE).await.expect("acknowledged");
    }
    // The replica of a node that has lost its disk may not vote before it has caught up, and cannot while it is cut off.
    let emptied = (cluster.leader(1).await + 1) % 3;
    cluster.crash(emptied);
    cluster.wipe(emptied);
    let others = [(emptied + 1) % 3, (emptied + 2) % 3];
    for other in others {
        cluster.cuts.cut(emptied, other);
        cluster.cuts.cut(other, emptied);
    }
    cluster.up(emptied).await;
    cluster.node(emptied).consensus.hand_over(Duration::from_secs(1)).await;
    let may_vote = |cluster: &Cluster| {
        let metrics = cluster.node(emptied).consensus.metrics();
        metrics.groups.values().all(|group| group.may_vote)
    };
    assert!(!may_vote(&cluster));
    cluster.cuts.mend_all();
    until("the replica to catch up", || may_vote(&cluster).then_some(())).await;

    let leader = cluster.leader(1).await;
    let other = if others[0] == leader { others[1] } else { others[0] };
    // Neither of the two that are left may be elected, so nobody is.
    cluster.node(other).consensus.hand_over(Duration::from_secs(10)).await;
    let leader = if cluster.leader(1).await == leader { leader } else { panic!("a leaving node leads") };
    cluster.crash(leader);
    let until_then = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_then {
        assert!(!cluster.node(emptied).consensus.leads(GroupId(1)), "a node that leaves was elected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.up(leader).await;
    cluster.node(leader).propose(1, 100, b"led again", PATIENCE).await.expect("acknowledged");
}
