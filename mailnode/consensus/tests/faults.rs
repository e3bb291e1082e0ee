//! What is kept when nodes are lost, over real sockets on loopback.

mod kit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, until};
use parking_lot::Mutex;
use quorumail_consensus::{GroupId, LogRetention, NodeId, ProposeError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::RwLock;

/// Writes ids one after the other until told to stop; returns those acknowledged.
async fn write_some(cluster: &Cluster, node: NodeId, group: u32, ids: std::ops::Range<u64>) {
    for id in ids {
        cluster.node(node).propose(group, id, b"body", PATIENCE).await.expect("acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_commands_survive_the_loss_of_their_leader() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 3).await;
    cluster.ready().await;
    for group in 1..=3 {
        write_some(&cluster, 0, group, 0..50).await;
    }
    let lost = cluster.leader(1).await;
    let other = (lost + 1) % 3;
    cluster.crash(lost);
    let started = Instant::now();
    for group in 1..=3 {
        cluster.node(other).propose(group, 1000, b"after", PATIENCE).await.expect("acknowledged");
    }
    println!("writable {:?} after the loss of a leader", started.elapsed());
    for group in 1..=3 {
        assert_eq!(cluster.node(other).count(group).await, 51);
    }
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_process_is_noticed_before_any_lease_runs_out() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const LEASE: Duration = Duration::from_secs(8);
    let mut cluster = Cluster::start_with(3, 6, |config| config.election_timeout = LEASE / 2..LEASE).await;
    cluster.ready().await;
    let lost = cluster.leader(1).await;
    let other = (lost + 1) % 3;
    for group in 1..=6 {
        write_some(&cluster, other, group, 0..10).await;
    }
    cluster.crash(lost);
    let started = Instant::now();
    for group in 1..=6 {
        cluster.node(other).propose(group, 1000, b"after", PATIENCE).await.expect("acknowledged");
    }
    let took = started.elapsed();
    println!("all groups writable {took:?} after the loss of a process, with a lease of {LEASE:?}");
    assert!(took < LEASE / 2, "a lease had to run out: {took:?}");
}

/// Terms of all groups at a node.
fn terms(cluster: &Cluster, node: NodeId) -> Vec<u64> {
    cluster.node(node).consensus.status().iter().map(|status| status.term).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_partitioned_node_does_not_disturb_a_healthy_majority() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 3).await;
    cluster.ready().await;
    let leader = cluster.leader(1).await;
    let (half, healthy) = ((leader + 1) % 3, (leader + 2) % 3);
    until("leads that stay where they are", || {
        let led = cluster.node(leader).consensus.led_groups().contains(&GroupId(1));
        led.then_some(())
    })
    .await;
    let mut id = 0;
    // One way, the other way, both; and flapping.
    let cuts: [&[(NodeId, NodeId)]; 4] = [
        &[(leader, half)],
        &[(half, leader)],
        &[(leader, half), (half, leader)],
        &[(half, leader), (half, healthy)],
    ];
    for (round, ways) in cuts.iter().enumerate() {
        let before = group_term(&cluster, leader, 1);
        for flap in 0..3 {
            ways.iter().for_each(|(from, to)| cluster.cuts.cut(*from, *to));
            let until = Instant::now() + Duration::from_millis(1200);
            while Instant::now() < until {
                id += 1;
                let outcome = cluster.node(healthy).propose(1, id, b"body", Duration::from_secs(3)).await;
                assert!(
                    outcome.is_ok(),
                    "writes stopped in round {round}, flap {flap}: {}",
                    cluster.explain(1)
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            cluster.cuts.mend_all();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(group_term(&cluster, leader, 1), before, "round {round} forced an election");
        assert!(cluster.node(leader).consensus.leads(GroupId(1)), "round {round} took the lead away");
    }
    cluster.settled().await;
}

fn group_term(cluster: &Cluster, node: NodeId, group: usize) -> u64 {
    terms(cluster, node)[group]
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_groups_go_quiet_and_wake_for_writes_reads_and_losses() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 6;
    let mut cluster = Cluster::start(3, GROUPS).await;
    cluster.ready().await;
    for group in 0..=GROUPS {
        write_some(&cluster, 0, group, 0..5).await;
    }
    let quiet = |cluster: &Cluster| {
        let all = |node: &kit::Node| node.consensus.metrics().groups.values().all(|group| group.quiet);
        cluster.nodes.values().all(all)
    };
    until("all groups to be quiet", || quiet(&cluster).then_some(())).await;
    let before = terms(&cluster, 0);
    // Longer than any lease: nothing is elected, and everything still looks as it should.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(quiet(&cluster), "quiet groups stay quiet");
    for (id, node) in &cluster.nodes {
        assert_eq!(node.consensus.ready(), Ok(()), "node {id}");
        for status in node.consensus.status().iter().filter(|status| status.leader == Some(*id)) {
            assert!(node.consensus.leads(status.group), "node {id} leads {:?}", status.group);
            assert_eq!(status.in_sync.as_deref(), Some(&[0, 1, 2][..]), "group {:?}", status.group);
        }
    }
    for group in 0..=GROUPS {
        let started = Instant::now();
        cluster.node(1).propose(group, 100, b"woken", PATIENCE).await.expect("acknowledged");
        println!("the first write to quiet group {group} took {:?}", started.elapsed());
        assert_eq!(cluster.node(2).count(group).await, 6);
    }
    assert_eq!(terms(&cluster, 0), before, "waking elects nobody");
    until("all groups to be quiet again", || quiet(&cluster).then_some(())).await;
    assert_eq!(cluster.node(0).count(1).await, 6, "a read wakes the group as well");
    assert_eq!(terms(&cluster, 0), before);
    until("all groups to be quiet again", || quiet(&cluster).then_some(())).await;
    let lost = cluster.leader(1).await;
    cluster.crash(lost);
    let other = (lost + 1) % 3;
    let started = Instant::now();
    for group in 0..=GROUPS {
        cluster.node(other).propose(group, 200, b"after", PATIENCE).await.expect("acknowledged");
    }
    println!("quiet groups writable {:?} after the loss of a node", started.elapsed());
    cluster.up(lost).await;
    cluster.settled().await;
    until("all groups to be quiet with the node back", || quiet(&cluster).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_groups_notice_a_leader_that_falls_silent() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 2).await;
    cluster.ready().await;
    let quiet = || {
        let all = |node: &kit::Node| node.consensus.metrics().groups.values().all(|group| group.quiet);
        cluster.nodes.values().all(all)
    };
    until("all groups to be quiet", || quiet().then_some(())).await;
    let leader = cluster.leader(1).await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for other in others {
        cluster.cuts.cut(leader, other);
        cluster.cuts.cut(other, leader);
    }
    cluster
        .node(others[0])
        .propose(1, 1, b"without it", Duration::from_secs(10))
        .await
        .expect("acknowledged");
    assert_ne!(cluster.node(others[0]).consensus.leader(GroupId(1)), Some(leader));
    cluster.cuts.mend_all();
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_back_before_anyone_noticed_is_elected_anew() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..50).await;
    let leader = cluster.leader(1).await;
    let term = |cluster: &Cluster, node: NodeId| {
        let status = cluster.node(node).consensus.status();
        status.iter().find(|status| status.group == GroupId(1)).expect("the group is held").term
    };
    let before = term(&cluster, leader);
    cluster.crash(leader);
    cluster.up(leader).await;
    // Entries that the old leader had sent and not yet written may be anywhere under its term: it may not use it again.
    write_some(&cluster, leader, 1, 50..100).await;
    let after = term(&cluster, cluster.leader(1).await);
    assert!(after > before, "term {before} goes on after its leader crashed");
    assert_eq!(cluster.node(leader).count(1).await, 100);
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_catches_up_from_the_log_and_takes_its_leads_back() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 3).await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..50).await;
    cluster.crash(1);
    write_some(&cluster, 0, 1, 50..150).await;
    cluster.up(1).await;
    cluster.settled().await;
    let node = cluster.node(1);
    assert_eq!(node.machine.digest(GroupId(1)).0, 150);
    assert_eq!(node.consensus.metrics().snapshots_installed, 0, "the log was enough");
    let placements = node.consensus.placements();
    let preferred = |group: &GroupId| placements[group].voters[0] == 1;
    let mine: Vec<GroupId> = placements.keys().copied().filter(preferred).collect();
    assert!(!mine.is_empty());
    until("the leads to return", || (node.consensus.led_groups() == mine).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_far_behind_or_lost_their_disk_catch_up_by_snapshot() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start_with(3, 2, |config| {
        config.log_retention = LogRetention { entries: 20, bytes: 1 << 20 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..100).await;
    for (round, wiped) in [(1u64, false), (2, true)] {
        // Node 0 is the first voter of the directory: emptied, it must not found it a second time.
        write_some(&cluster, 1, 0, round * 1000..round * 1000 + 50).await;
        cluster.crash(0);
        write_some(&cluster, 1, 1, round * 100..round * 100 + 100).await;
        let purged = |node: NodeId| {
            let ids = cluster.node(node).consensus.metrics();
            ids.checkpoints
        };
        let before = (purged(1), purged(2));
        until("checkpoints", || (purged(1) > before.0 + 2 && purged(2) > before.1 + 2).then_some(())).await;
        if wiped {
            cluster.wipe(0);
        }
        cluster.up(0).await;
        cluster.settled().await;
        let node = cluster.node(0);
        assert_eq!(node.machine.digest(GroupId(1)).0, 100 + 100 * round as usize);
        assert!(node.consensus.metrics().snapshots_installed >= 1, "the log had been purged");
        cluster.ready().await;
    }
    // The emptied replica counts again: with it and one other there is a majority.
    cluster.crash(2);
    write_some(&cluster, 0, 1, 5000..5010).await;
    assert_eq!(cluster.node(0).count(1).await, 310);
    assert_eq!(cluster.node(0).count(0).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_whole_after_a_restart_above_a_floor_that_has_moved() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start_with(3, 2, |config| {
        config.log_retention = LogRetention { entries: 100_000, bytes: 128 << 10 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    // Group 2 is idle ever after: it must not hold on to the first segment.
    write_some(&cluster, 0, 2, 0..5).await;
    for round in 1..=2u64 {
        for id in round * 1000..round * 1000 + 300 {
            cluster.node(0).propose(1, id, &[7; 1000], PATIENCE).await.expect("acknowledged");
        }
        let floors = || cluster.nodes.values().map(|node| node.machine.journal().stats().floor);
        until("the floors to move", || floors().all(|floor| floor > 4 * round).then_some(())).await;
        for id in 0..3 {
            cluster.crash(id);
        }
        for id in 0..3 {
            cluster.up(id).await;
        }
        cluster.ready().await;
        cluster.settled().await;
        for node in cluster.nodes.values() {
            assert_eq!(node.machine.digest(GroupId(1)).0 as u64, 300 * round);
            assert_eq!(node.machine.digest(GroupId(2)).0 as u64, 5 + (round - 1));
            assert_eq!(node.consensus.metrics().snapshots_installed, 0, "nothing was lost");
        }
        write_some(&cluster, 1, 2, round * 100..round * 100 + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_replica_does_not_help_to_elect_one_that_lacks_what_it_had_acknowledged() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..20).await;
    cluster.settled().await;
    // Node 0 misses what nodes 1 and 2 acknowledge. Then 2 is lost for now and 1 loses its disk: nobody left knows.
    cluster.crash(0);
    write_some(&cluster, 1, 1, 20..40).await;
    cluster.crash(2);
    cluster.crash(1);
    cluster.wipe(1);
    cluster.up(1).await;
    cluster.up(0).await;
    let outcome = cluster.node(0).propose(1, 9999, b"lost?", Duration::from_secs(4)).await;
    assert_eq!(outcome, Err(ProposeError::TimedOut), "no leader without the missing commands");
    assert!(cluster.node(1).consensus.metrics().votes_refused > 0);
    cluster.up(2).await;
    cluster.node(0).propose(1, 10_000, b"found", PATIENCE).await.expect("acknowledged");
    let ids: BTreeSet<u64> = cluster.node(2).machine.ids(GroupId(1)).into_iter().collect();
    assert!((0..40).all(|id| ids.contains(&id)), "everything acknowledged is there");
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_replica_does_not_help_a_deposed_leader_to_commit() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 1).await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..20).await;
    cluster.settled().await;
    // The leader is cut off and goes on believing that it leads, while the others acknowledge more under another one.
    let deposed = cluster.leader(1).await;
    let (emptied, lost) = ((deposed + 1) % 3, (deposed + 2) % 3);
    for other in [emptied, lost] {
        cluster.cuts.cut(deposed, other);
        cluster.cuts.cut(other, deposed);
    }
    write_some(&cluster, emptied, 1, 20..40).await;
    // Of those two one is lost for now and the other loses its disk: the deposed leader finds nobody who knows better.
    cluster.crash(lost);
    cluster.crash(emptied);
    cluster.wipe(emptied);
    cluster.cuts.mend_all();
    cluster.up(emptied).await;
    let outcome = cluster.node(deposed).propose(1, 9999, b"lost?", Duration::from_secs(4)).await;
    assert_eq!(outcome, Err(ProposeError::TimedOut), "no majority remembers");
    cluster.up(lost).await;
    cluster.node(deposed).propose(1, 10_000, b"found", PATIENCE).await.expect("acknowledged");
    // The emptied replica may still be on its way: what was acknowledged is with the other two.
    cluster.settled().await;
    for (id, node) in &cluster.nodes {
        let ids: BTreeSet<u64> = node.machine.ids(GroupId(1)).into_iter().collect();
        assert!((0..40).all(|id| ids.contains(&id)), "everything acknowledged is with node {id}");
        assert!(ids.contains(&10_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_state_and_not_its_log_does_not_start_before_it_is_emptied() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start_with(3, 1, |config| {
        config.log_retention = LogRetention { entries: 20, bytes: 16 << 10 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..200).await;
    let checkpoints = || cluster.node(2).consensus.metrics().checkpoints;
    let before = checkpoints();
    until("the log to be purged", || (checkpoints() > before + 2).then_some(())).await;
    cluster.crash(2);
    std::fs::remove_file(cluster.dir(2).join("state")).unwrap();
    let refused = cluster.try_up(2).await.unwrap_err();
    assert!(refused.contains("lost state that was safe on this disk"), "{refused}");
    assert!(refused.contains("remove this node's whole data directory"), "{refused}");
    cluster.wipe(2);
    cluster.up(2).await;
    cluster.settled().await;
    assert_eq!(cluster.node(2).machine.digest(GroupId(1)).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_be_read_gives_the_lead_to_one_that_can_refill_others() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start_with(3, 1, |config| {
        config.log_retention = LogRetention { entries: 20, bytes: 16 << 10 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..100).await;
    cluster.settled().await;
    let leader = cluster.leader(1).await;
    let (emptied, whole) = ((leader + 1) % 3, (leader + 2) % 3);
    let rotten = &cluster.node(leader).machine.unreadable;
    rotten.store(true, Ordering::Relaxed);
    cluster.crash(emptied);
    write_some(&cluster, whole, 1, 100..200).await;
    let checkpoints = || [leader, whole].map(|node| cluster.node(node).consensus.metrics().checkpoints);
    let before = checkpoints();
    until("the logs to be purged", || {
        (0..2).all(|node| checkpoints()[node] > before[node] + 2).then_some(())
    })
    .await;
    cluster.wipe(emptied);
    cluster.up(emptied).await;
    cluster.settled().await;
    assert!(cluster.node(emptied).consensus.metrics().snapshots_installed >= 1, "the log had been purged");
    assert_eq!(cluster.leader(1).await, whole);
    let metrics = cluster.node(leader).consensus.metrics();
    assert!(metrics.snapshots_unreadable >= 1);
    assert_eq!(metrics.unreadable_replicas, 1);
    // As preferred leader it would be given the lead back three seconds after it has caught up.
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(6) {
        assert_ne!(cluster.leader(1).await, leader, "it leads again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    write_some(&cluster, leader, 1, 200..210).await;
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_acknowledges_and_reads_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 2).await;
    cluster.ready().await;
    write_some(&cluster, 0, 1, 0..10).await;
    let leader = cluster.leader(1).await;
    for other in (0..3).filter(|node| *node != leader) {
        cluster.crash(other);
    }
    let node = cluster.node(leader);
    let within = Duration::from_secs(2);
    let (write, read) = tokio::join!(
        node.propose(1, 99, b"alone", within),
        node.query(1, Bytes::from_static(b"count"), within)
    );
    assert_eq!(write, Err(ProposeError::TimedOut));
    assert_eq!(read, Err(ProposeError::TimedOut));
    until("the lease to run out", || (!node.consensus.leads(GroupId(1))).then_some(())).await;
    let back = (leader + 1) % 3;
    cluster.up(back).await;
    cluster.node(leader).propose(1, 100, b"together", PATIENCE).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_command_takes_effect_once() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 1).await;
    let first = cluster.node(0).propose(1, 7, b"body", PATIENCE).await.expect("acknowledged");
    for node in cluster.nodes.values() {
        let again = node.propose(1, 7, b"body", PATIENCE).await.expect("acknowledged");
        assert_eq!(again, first, "answered as the first time");
    }
    assert_eq!(cluster.node(1).count(1).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_while_nodes_crash_at_random() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 16;
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Arc::new(RwLock::new(Cluster::start(3, GROUPS).await));
    cluster.read().await.ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(0));
    let acknowledged: Arc<Mutex<Vec<(u32, u64)>>> = Arc::default();
    let mut writers = Vec::new();
    for writer in 0..12u64 {
        let (cluster, stop, next) = (cluster.clone(), stop.clone(), next.clone());
        let acknowledged = acknowledged.clone();
        writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let group = 1 + (id % u64::from(GROUPS)) as u32;
                let consensus =
                    cluster.read().await.nodes.get(&(writer % 3)).map(|node| node.consensus.clone());
                let Some(consensus) = consensus else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let command = kit::toy::command(id, &id.to_le_bytes().repeat(64));
                if consensus.propose(GroupId(group), command, Duration::from_secs(2)).await.is_ok() {
                    acknowledged.lock().push((group, id));
                }
            }
        }));
    }
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1500))).await;
        let victim = random.random_range(0..3);
        cluster.write().await.crash(victim);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
        cluster.write().await.up(victim).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("the writer ends");
    }
    let cluster = cluster.read().await;
    for group in 0..=GROUPS {
        let outcome = cluster.node(0).propose(group, u64::MAX, b"end", PATIENCE).await;
        assert!(outcome.is_ok(), "group {group} is stuck, SEED={seed}: {}", cluster.explain(group));
    }
    cluster.settled().await;
    let acknowledged = acknowledged.lock().clone();
    println!("{} of {} commands acknowledged", acknowledged.len(), next.load(Ordering::Relaxed));
    assert!(acknowledged.len() > 100);
    for group in 1..=GROUPS {
        let applied: BTreeSet<u64> = cluster.node(0).machine.ids(GroupId(group)).into_iter().collect();
        let lost = acknowledged.iter().filter(|(of, id)| *of == group && !applied.contains(id)).count();
        assert_eq!(lost, 0, "group {group} has lost acknowledged commands; SEED={seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hears_from_no_leader_tells_of_none_and_is_not_ready() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 2).await;
    cluster.ready().await;
    for group in 1..=2 {
        write_some(&cluster, 0, group, 0..3).await;
    }
    // Nobody hears anybody, and the engines go on to name the leaders that they had.
    let alone = |id: NodeId| {
        let consensus = &cluster.node(id).consensus;
        let none_leads = consensus.status().iter().all(|group| group.leader.is_none());
        (none_leads && consensus.ready().is_err()).then_some(())
    };
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        cluster.cuts.cut(one, other);
        cluster.cuts.cut(other, one);
    }
    for id in 0..3 {
        until("every node is alone", || alone(id)).await;
    }
    cluster.cuts.mend_all();
    cluster.ready().await;
    cluster.settled().await;
}
