//! What a healthy cluster promises, over real sockets on loopback.

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, until};
use quorumail_consensus::{GroupId, ProposeError};

#[tokio::test(flavor = "multi_thread")]
async fn every_node_proposes_to_and_reads_from_every_group() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 4).await;
    for (id, node) in &cluster.nodes {
        for group in 0..=4 {
            node.propose(group, *id, b"hello", PATIENCE).await.expect("acknowledged");
        }
    }
    for node in cluster.nodes.values() {
        for group in 0..=4 {
            assert_eq!(node.count(group).await, 3, "a read sees everything acknowledged before it");
        }
        assert_eq!(
            node.propose(5, 1, b"", PATIENCE).await.expect_err("there is no group 5"),
            ProposeError::NoSuchGroup
        );
    }
    cluster.ready().await;
    cluster.settled().await;
    // By placement the leads are spread: nobody has more than two of the five.
    for node in cluster.nodes.values() {
        assert!(node.consensus.led_groups().len() <= 2, "leads are spread");
        assert_eq!(*node.consensus.watch_leads().borrow(), node.consensus.led_groups());
        assert!(node.consensus.status().iter().all(|status| status.voters == [0, 1, 2]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_acknowledges_and_keeps_over_a_restart() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(1, 2).await;
    for id in 0..20 {
        cluster.node(0).propose(1, id, b"body", PATIENCE).await.expect("acknowledged");
    }
    cluster.crash(0);
    let started = Instant::now();
    cluster.up(0).await;
    assert_eq!(cluster.node(0).count(1).await, 20);
    println!("single node serves again after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_replica_forward_and_learners_follow_the_directory() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(6, 6).await;
    let outsider = cluster.nodes.iter().find(|(_, node)| !node.consensus.holds(GroupId(1)));
    let (_, outsider) = outsider.expect("six nodes, three replicas");
    for id in 0..10 {
        outsider.propose(1, id, b"from outside", PATIENCE).await.expect("acknowledged");
        outsider.propose(0, id, b"to the directory", PATIENCE).await.expect("acknowledged");
    }
    assert_eq!(outsider.count(1).await, 10);
    // Node 5 does not vote on the directory but has it.
    let learner = cluster.node(5);
    let directory = learner.consensus.status().into_iter().find(|status| status.group == GroupId(0));
    let voters = directory.expect("every node holds the directory").voters;
    assert!(!voters.contains(&5) && learner.consensus.holds(GroupId(0)));
    until("the learner to have the directory", || (learner.machine.digest(GroupId(0)).0 == 10).then_some(()))
        .await;
    assert_eq!(learner.count(0).await, 10);
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_64_mib_is_replicated_while_small_ones_pass() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(3, 2).await;
    cluster.ready().await;
    let body = vec![7u8; 64 << 20];
    let started = Instant::now();
    let large = cluster.node(2).propose(1, 1, &body, PATIENCE);
    let small = async {
        for id in 0..20 {
            cluster.node(0).propose(2, id, b"small", PATIENCE).await.expect("acknowledged");
        }
        started.elapsed()
    };
    let (large, small) = tokio::join!(large, small);
    large.expect("acknowledged");
    println!("64 MiB in {:?}, 20 small ones beside it in {small:?}", started.elapsed());
    cluster.settled().await;
    assert_eq!(
        cluster.node(0).propose(1, 2, &vec![0; 96 << 20], PATIENCE).await.expect_err("too large"),
        ProposeError::TooLarge
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hand_over_leaves_no_lead_and_fails_no_command() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Arc::new(Cluster::start(3, 6).await);
    cluster.ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (next, longest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for writer in 0..6u64 {
        let (cluster, stop, next, longest) = (cluster.clone(), stop.clone(), next.clone(), longest.clone());
        writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let (id, started) = (next.fetch_add(1, Ordering::Relaxed), Instant::now());
                let node = cluster.node(writer % 3);
                node.propose(1 + (id % 6) as u32, id, b"body", PATIENCE).await.expect("no command fails");
                longest.fetch_max(started.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
        }));
    }
    until("some writes", || (next.load(Ordering::Relaxed) > 100).then_some(())).await;
    longest.store(0, Ordering::Relaxed);
    let started = Instant::now();
    let left = cluster.node(1).consensus.hand_over(PATIENCE).await;
    println!("handed over in {:?}", started.elapsed());
    assert_eq!(left, 0);
    let mark = next.load(Ordering::Relaxed);
    until("more writes", || (next.load(Ordering::Relaxed) > mark + 200).then_some(())).await;
    println!("longest write {} ms", longest.load(Ordering::Relaxed));
    assert!(cluster.node(1).consensus.led_groups().is_empty(), "it takes no lead again");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("the writer ends");
    }
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_state_machine_is_reported_and_acknowledges_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(1, 1).await;
    let node = cluster.node(0);
    node.propose(1, 1, b"fine", PATIENCE).await.expect("acknowledged");
    node.machine.broken.store(true, Ordering::Relaxed);
    let outcome = node.propose(1, 2, b"not fine", Duration::from_secs(1)).await;
    assert_eq!(outcome, Err(ProposeError::TimedOut));
    let reason =
        tokio::time::timeout(PATIENCE, node.consensus.fatal()).await.expect("the failure is reported");
    assert!(reason.contains("broken on purpose"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput_of_8_kib_commands() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Arc::new(Cluster::start(3, 16).await);
    cluster.ready().await;
    let body = Bytes::from(vec![1u8; 8 << 10]);
    let (count, started) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let end = started + Duration::from_secs(4);
    let mut proposers = Vec::new();
    for proposer in 0..20u64 {
        let (cluster, body, count) = (cluster.clone(), body.clone(), count.clone());
        proposers.push(tokio::spawn(async move {
            let mut id = proposer << 32;
            while Instant::now() < end {
                id += 1;
                let node = cluster.node(id % 3);
                node.propose(1 + (id % 16) as u32, id, &body, PATIENCE).await.expect("acknowledged");
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for proposer in proposers {
        proposer.await.expect("the proposer ends");
    }
    let (count, took) = (count.load(Ordering::Relaxed), started.elapsed().as_secs_f64());
    let latency = 20.0 * took / count as f64 * 1e3;
    println!("{:.0} proposals/s of 8 KiB, 20 proposers, mean latency {latency:.2} ms", count as f64 / took);
    assert!(count > 100, "only {count} commands in {took} s");
    cluster.settled().await;
}

/// A status that borrowed the engine's metrics twice once stopped the group for ever, when the engine came to write them
/// between the two.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_for_its_status_all_the_time_goes_on() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(1, 1).await;
    let done = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        let (consensus, done, asked) = (cluster.node(0).consensus.clone(), done.clone(), asked.clone());
        // Not joined: a thread that hangs must not keep the test from failing.
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(consensus.status().len(), 2);
                drop((consensus.metrics(), consensus.ready(), consensus.led_groups()));
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for id in 0..1000 {
        cluster.node(0).propose(1, id, b"body", PATIENCE).await.expect("acknowledged");
    }
    let before = asked.load(Ordering::Relaxed);
    until("all who ask to be answered", || (asked.load(Ordering::Relaxed) > before + 100).then_some(()))
        .await;
    done.store(true, Ordering::Relaxed);
}
