//! What is kept, and what goes on, while nodes come and go, over real sockets on loopback.

mod kit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, peers, until};
use parking_lot::Mutex;
use quorumail_consensus::{Consensus, GroupId, LogRetention, NodeId, ProposeError};

/// Writers that go on through every change, and what they were told is kept.
struct Writers {
    stop: Arc<AtomicBool>,
    through: Arc<Mutex<Vec<Consensus>>>,
    acknowledged: Arc<Mutex<Vec<(u32, u64)>>>,
    longest_ms: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(count: u64, groups: u32) -> Writers {
        let mut writers = Writers {
            stop: Arc::default(),
            through: Arc::default(),
            acknowledged: Arc::default(),
            longest_ms: Arc::default(),
            tasks: Vec::new(),
        };
        for writer in 0..count {
            let (stop, through) = (writers.stop.clone(), writers.through.clone());
            let (acknowledged, longest) = (writers.acknowledged.clone(), writers.longest_ms.clone());
            writers.tasks.push(tokio::spawn(async move {
                let mut id = writer << 32;
                while !stop.load(Ordering::Relaxed) {
                    id += 1;
                    let group = 1 + (id % u64::from(groups)) as u32;
                    let consensus = {
                        let through = through.lock();
                        through.get((id % 7) as usize % through.len().max(1)).cloned()
                    };
                    let Some(consensus) = consensus else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    let started = Instant::now();
                    let command = kit::toy::command(id, &id.to_le_bytes().repeat(64));
                    if consensus.propose(GroupId(group), command, PATIENCE).await.is_ok() {
                        acknowledged.lock().push((group, id));
                        longest.fetch_max(started.elapsed().as_millis() as u64, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }));
        }
        writers
    }

    /// From now on they write through these nodes.
    fn use_nodes(&self, cluster: &Cluster, nodes: &[NodeId]) {
        *self.through.lock() = nodes.iter().map(|node| cluster.node(*node).consensus.clone()).collect();
    }

    /// Ends them; answers what was acknowledged, and how long the slowest write took, in milliseconds.
    async fn end(self) -> (Vec<(u32, u64)>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("the writer ends");
        }
        let acknowledged = self.acknowledged.lock().clone();
        (acknowledged, self.longest_ms.load(Ordering::Relaxed))
    }
}

fn all_are_there(cluster: &Cluster, acknowledged: &[(u32, u64)]) {
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());
    for (id, node) in &cluster.nodes {
        for status in node.consensus.status() {
            let there: BTreeSet<u64> = node.machine.ids(status.group).into_iter().collect();
            let of_group = acknowledged.iter().filter(|(group, _)| *group == status.group.0);
            let lost = of_group.filter(|(_, id)| !there.contains(id)).count();
            assert_eq!(lost, 0, "group {} on node {id} has lost acknowledged commands", status.group.0);
        }
    }
}

fn replicas(cluster: &Cluster) -> Vec<usize> {
    let partitions =
        |node: &kit::Node| node.consensus.status().iter().filter(|status| status.group.0 > 0).count();
    cluster.nodes.values().map(partitions).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn grow_and_shrink_while_writing_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 8;
    let mut cluster = Cluster::start(1, GROUPS).await;
    cluster.ready().await;
    let writers = Writers::start(4, GROUPS);
    writers.use_nodes(&cluster, &[0]);
    for (count, spread) in [(3, vec![8, 8, 8]), (5, vec![4, 5, 5, 5, 5])] {
        let started = Instant::now();
        let known = cluster.topology.nodes.len() as u64;
        cluster.change(0, |topology| topology.nodes.extend(peers(known..count))).await;
        cluster.moved().await;
        println!("{known} to {count} nodes in {:?}", started.elapsed());
        cluster.ready().await;
        writers.use_nodes(&cluster, &(0..count).collect::<Vec<_>>());
        let mut held = replicas(&cluster);
        until("what moved away to be removed", || {
            held = replicas(&cluster);
            (held.iter().sum::<usize>() == GROUPS as usize * 3).then_some(())
        })
        .await;
        held.sort_unstable();
        assert_eq!(held, spread, "replicas are spread evenly");
    }
    let started = Instant::now();
    cluster.change(2, |topology| topology.nodes[3..].iter_mut().for_each(|peer| peer.leaving = true)).await;
    cluster.moved().await;
    println!("5 to 3 nodes in {:?}", started.elapsed());
    writers.use_nodes(&cluster, &[0, 1, 2]);
    // Writes that were begun through the nodes that leave end before these do.
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.change(1, |topology| topology.nodes.truncate(3)).await;
    cluster.crash(3);
    cluster.crash(4);
    cluster.moved().await;
    let (acknowledged, longest) = writers.end().await;
    println!("{} writes acknowledged, the longest took {longest} ms", acknowledged.len());
    cluster.settled().await;
    all_are_there(&cluster, &acknowledged);
    for status in cluster.nodes.values().flat_map(|node| node.consensus.status()) {
        assert_eq!((status.voters, status.learners), (vec![0, 1, 2], vec![]), "group {}", status.group.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_goes_on_after_any_node_was_lost_in_the_middle_of_it() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 12;
    let mut cluster = Cluster::start_with(3, GROUPS, |config| {
        config.log_retention = LogRetention { entries: 50, bytes: 1 << 20 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    let writers = Writers::start(3, GROUPS);
    writers.use_nodes(&cluster, &[1, 2]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.change(0, |topology| topology.nodes.extend(peers(3..5))).await;
    // Node 0 leads the directory and so plans the change: it is lost, its disk with it. A new node is lost as well.
    tokio::time::sleep(Duration::from_millis(700)).await;
    cluster.crash(0);
    cluster.wipe(0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cluster.crash(4);
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.up(4).await;
    cluster.up(0).await;
    cluster.moved().await;
    let (acknowledged, longest) = writers.end().await;
    println!("{} writes acknowledged, the longest took {longest} ms", acknowledged.len());
    cluster.settled().await;
    cluster.ready().await;
    all_are_there(&cluster, &acknowledged);
    let mut held = replicas(&cluster);
    until("an even spread", || {
        held = replicas(&cluster);
        held.sort_unstable();
        (held == [7, 7, 7, 7, 8]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_node_that_is_gone_for_good_are_made_elsewhere() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(4, 4).await;
    cluster.ready().await;
    for id in 0..40 {
        cluster.node(0).propose(1 + (id % 4) as u32, id, b"body", PATIENCE).await.expect("acknowledged");
    }
    // A replica that has nothing yet would leave its group without a majority.
    cluster.settled().await;
    cluster.crash(1);
    cluster.change(0, |topology| topology.nodes[1].leaving = true).await;
    cluster.moved().await;
    // With the replicas made anew another node can be lost.
    cluster.crash(2);
    for id in 40..80 {
        cluster.node(0).propose(1 + (id % 4) as u32, id, b"body", PATIENCE).await.expect("acknowledged");
    }
    for group in 1..=4 {
        assert_eq!(cluster.node(3).count(group).await, 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_founds_nothing_and_is_not_ready_before_it_was_taken_in() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(1, 2).await;
    cluster.ready().await;
    cluster.node(0).propose(1, 1, b"old", PATIENCE).await.expect("acknowledged");
    cluster.topology.generation += 1;
    cluster.topology.nodes.extend(peers(1..3));
    cluster.crash(0);
    // Only new nodes are up, with empty disks.
    cluster.up(1).await;
    cluster.up(2).await;
    let outcome = cluster.node(1).propose(1, 2, b"too early", Duration::from_secs(2)).await;
    assert_eq!(outcome, Err(ProposeError::TimedOut));
    assert!(cluster.node(1).consensus.status().is_empty(), "nothing is founded");
    assert!(cluster.node(1).consensus.ready().is_err());
    cluster.up(0).await;
    cluster.moved().await;
    cluster.ready().await;
    cluster.node(2).propose(1, 3, b"now", PATIENCE).await.expect("acknowledged");
    cluster.settled().await;
    assert_eq!(cluster.node(1).machine.ids(GroupId(1)).first(), Some(&1), "what was there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_topology_is_replaced_by_the_one_that_the_others_have() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(3, 2).await;
    cluster.ready().await;
    let old = cluster.topology.clone();
    cluster.crash(2);
    cluster.change(0, |topology| topology.nodes[1].zone = "west".into()).await;
    let new = std::mem::replace(&mut cluster.topology, old.clone());
    cluster.up(2).await;
    let known = cluster.node(2).consensus.watch_topology();
    until("the news to come", || (**known.borrow() == new).then_some(())).await;
    assert_eq!(cluster.node(0).consensus.reconfigure(old), Ok(false), "an older one changes nothing");
    let mut other = new.clone();
    other.nodes.pop();
    let refused =
        cluster.node(0).consensus.reconfigure(other).expect_err("two of one generation").to_string();
    assert!(refused.contains("node 2 only here") && refused.contains("generation of 3"), "{refused}");
    cluster.topology = new;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_knows_which_replicas_it_gave_up_after_a_restart_above_a_moved_floor() {
    let _turn = ONE_AT_A_TIME.lock().await;
    const GROUPS: u32 = 6;
    let mut cluster = Cluster::start_with(3, GROUPS, |config| {
        config.log_retention = LogRetention { entries: 50, bytes: 64 << 10 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    let mut written = Vec::new();
    for id in 0..120u64 {
        let group = 1 + (id % u64::from(GROUPS)) as u32;
        cluster.node(0).propose(group, id, b"body", PATIENCE).await.expect("acknowledged");
        written.push((group, id));
    }
    cluster.change(0, |topology| topology.nodes.extend(peers(3..5))).await;
    cluster.moved().await;
    until("what moved away to be removed", || {
        (replicas(&cluster).iter().sum::<usize>() == GROUPS as usize * 3).then_some(())
    })
    .await;
    let held = |cluster: &Cluster, node: NodeId| {
        let status = cluster.node(node).consensus.status();
        status.into_iter().map(|status| status.group).collect::<Vec<_>>()
    };
    for node in 0..3 {
        let before = held(&cluster, node);
        assert!(before.len() < GROUPS as usize + 1, "node {node} has given up nothing");
        // Everything that was written down about the removal lies in segments up to this one.
        let newest = cluster.node(node).machine.journal().last_of_log(0);
        let writer = (node + 1) % 3;
        let floor = |cluster: &Cluster| cluster.node(node).machine.journal().stats().floor;
        let started = Instant::now();
        while floor(&cluster) <= newest {
            assert!(started.elapsed() < PATIENCE, "the floor does not move");
            // The directory is on every node, so every journal grows.
            let id = 1_000 + written.len() as u64;
            cluster.node(writer).propose(0, id, &[7; 4000], PATIENCE).await.expect("acknowledged");
            written.push((0, id));
        }
        cluster.crash(node);
        cluster.up(node).await;
        assert_eq!(held(&cluster, node), before, "node {node} holds what it held before");
    }
    cluster.ready().await;
    cluster.settled().await;
    // They may come back.
    cluster.change(1, |topology| topology.nodes[3..].iter_mut().for_each(|peer| peer.leaving = true)).await;
    cluster.moved().await;
    for node in 0..3 {
        assert_eq!(held(&cluster, node).len(), GROUPS as usize + 1);
    }
    cluster.settled().await;
    all_are_there(&cluster, &written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_list_of_the_same_generation_is_told_of_with_what_differs() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let seen = kit::logged();
    let mut cluster = Cluster::start(3, 2).await;
    cluster.ready().await;
    cluster.crash(2);
    let old = cluster.topology.clone();
    cluster.topology.nodes[0].zone = "elsewhere".into();
    cluster.up(2).await;
    // Both sides see it: node 2, and those that it differs from.
    for told in ["\"\" here and \"elsewhere\" there", "\"elsewhere\" here and \"\" there"] {
        until("the difference to be told of", || {
            let seen = seen.lock();
            seen.lines()
                .any(|line| {
                    line.contains("WARN") && line.contains(told) && line.contains("one list of peers")
                })
                .then_some(())
        })
        .await;
    }
    assert_eq!(**cluster.node(0).consensus.watch_topology().borrow(), old, "and it changes nothing");
    cluster.node(2).propose(1, 1, b"body", PATIENCE).await.expect("the cluster goes on");
}
