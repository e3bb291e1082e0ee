//! Rolling updates to a version with another format level, and the way back that there is not, over real sockets on loopback.

mod kit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kit::toy::next_command;
use kit::{Cluster, ONE_AT_A_TIME, PATIENCE, until};
use quorumail_consensus::{GroupId, Levels, LogRetention, NodeId};

const GROUPS: u32 = 3;
/// What the version after the present one knows, and the one after that.
const NEXT: Levels = Levels { min: 1, max: 2 };
const AFTER: Levels = Levels { min: 3, max: 3 };
/// Longer than an idle planner waits before it looks at all nodes again.
const LOOKED: Duration = Duration::from_millis(2500);

/// A cluster whose log is so short that whoever was away gets snapshots.
async fn start(nodes: u64, levels: Option<Levels>) -> Cluster {
    let mut cluster = Cluster::start_with(0, GROUPS, |config| {
        config.log_retention = LogRetention { entries: 20, bytes: 64 << 10 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.topology = kit::peers(0..nodes).into();
    for id in 0..nodes {
        if let Some(levels) = levels {
            cluster.levels.insert(id, levels);
        }
        cluster.up(id).await;
    }
    cluster.ready().await;
    cluster
}

/// Commands through every node that runs, of the kind that the level of the cluster allows it to propose.
async fn write(cluster: &Cluster, ids: std::ops::Range<u64>) {
    for id in ids {
        for (number, node) in &cluster.nodes {
            let (id, group) = (id << 8 | number, 1 + (id % u64::from(GROUPS)) as u32);
            let body = [7; 600];
            let command = match node.consensus.level() {
                1 => kit::toy::command(id, &body),
                _ => next_command(id, &body),
            };
            node.propose_command(group, command, PATIENCE).await.expect("acknowledged");
        }
    }
}

fn levels(cluster: &Cluster) -> Vec<u32> {
    cluster.nodes.values().map(|node| node.consensus.level()).collect()
}

fn next_commands(cluster: &Cluster, node: NodeId) -> u64 {
    (1..=GROUPS).map(|group| cluster.node(node).machine.next_commands(GroupId(group))).sum()
}

async fn raised(cluster: &Cluster) {
    let all = cluster.nodes.len();
    until("every node to see the level", || (levels(cluster) == vec![2; all]).then_some(())).await;
}

/// Every file below a directory with what is in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => left.push(path),
                false => drop(found.insert(path.clone(), std::fs::read(path).expect("a file"))),
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_raises_the_level_once_the_last_node_knows_it() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = start(3, None).await;
    write(&cluster, 0..10).await;
    for id in 0..3 {
        assert_eq!(levels(&cluster), [1, 1, 1], "not before all nodes know it");
        cluster.crash(id);
        cluster.levels.insert(id, NEXT);
        cluster.up(id).await;
        cluster.ready().await;
        // Versions are mixed, until the last one.
        write(&cluster, (id + 1) * 10..(id + 2) * 10).await;
        if id == 1 {
            tokio::time::sleep(LOOKED).await;
        }
    }
    raised(&cluster).await;
    let before = next_commands(&cluster, 0);
    write(&cluster, 100..110).await;
    cluster.settled().await;
    assert_eq!(next_commands(&cluster, 0), before + 30, "what is of the new level is proposed and applied");

    // What is replayed is replayed at the level that it was written at.
    let digests = |cluster: &Cluster| -> Vec<_> {
        (0..=GROUPS).map(|group| cluster.node(0).machine.digest(GroupId(group))).collect()
    };
    let before = digests(&cluster);
    (0..3).for_each(|id| cluster.crash(id));
    for id in 0..3 {
        cluster.up(id).await;
    }
    cluster.ready().await;
    cluster.settled().await;
    assert_eq!((digests(&cluster), levels(&cluster)), (before, vec![2; 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_does_not_come_back_and_touches_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = start(3, Some(NEXT)).await;
    raised(&cluster).await;
    write(&cluster, 0..20).await;

    cluster.crash(1);
    // Whoever closes the files last may still be at it.
    let mut before = contents(&cluster.dir(1));
    until("the crashed node's disk to be still", || {
        let now = contents(&cluster.dir(1));
        (std::mem::replace(&mut before, now.clone()) == now).then_some(())
    })
    .await;
    cluster.levels.remove(&1);
    let refused = cluster.try_up(1).await.expect_err("refused");
    assert!(refused.contains("level 2") && refused.contains("levels 1 to 1"), "{refused}");
    assert_eq!(contents(&cluster.dir(1)), before);
    cluster.levels.insert(1, AFTER);
    let refused = cluster.try_up(1).await.expect_err("refused");
    assert!(refused.contains("level 2") && refused.contains("levels 3 to 3"), "{refused}");
    assert_eq!(contents(&cluster.dir(1)), before);

    // With an empty disk it learns of the level from the others, and ends before it has taken anything from them.
    cluster.wipe(1);
    cluster.levels.remove(&1);
    cluster.up(1).await;
    let reason = tokio::time::timeout(PATIENCE, cluster.node(1).consensus.fatal()).await.expect("it ends");
    assert!(reason.contains("level 2") && reason.contains("levels 1 to 1"), "{reason}");
    assert!((0..=GROUPS).all(|group| cluster.node(1).machine.ids(GroupId(group)).is_empty()));
    cluster.crash(1);

    // The others go on without it, and with it once it is of the right version.
    cluster.wipe(1);
    write(&cluster, 20..40).await;
    cluster.levels.insert(1, NEXT);
    cluster.up(1).await;
    cluster.ready().await;
    cluster.settled().await;
    assert_eq!(next_commands(&cluster, 1), next_commands(&cluster, 0));
    raised(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_is_not_raised_while_a_node_is_away_and_a_node_that_is_added_must_know_it() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = start(3, Some(NEXT)).await;
    raised(&cluster).await;
    // Another one is added that runs the version before.
    cluster.change(0, |topology| topology.nodes.extend(kit::peers(3..4))).await;
    let reason = tokio::time::timeout(PATIENCE, cluster.node(3).consensus.fatal()).await.expect("it ends");
    assert!(reason.contains("level 2"), "{reason}");
    cluster.crash(3);
    write(&cluster, 0..5).await;
    cluster.wipe(3);
    cluster.levels.insert(3, NEXT);
    cluster.up(3).await;
    cluster.moved().await;
    cluster.ready().await;
    cluster.settled().await;
    raised(&cluster).await;

    // A later version still: not as long as one is away, of whatever version.
    for id in 0..3 {
        cluster.crash(id);
        cluster.levels.insert(id, Levels { min: 1, max: 3 });
    }
    cluster.crash(3);
    for id in 0..3 {
        cluster.up(id).await;
    }
    until("a leader", || {
        (1..=GROUPS).all(|g| cluster.node(0).consensus.leader(GroupId(g)).is_some()).then_some(())
    })
    .await;
    write(&cluster, 5..10).await;
    tokio::time::sleep(LOOKED).await;
    assert_eq!(levels(&cluster), [2, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_of_a_version_that_has_left_the_first_level_behind_begins_at_its_own() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = start(3, Some(Levels { min: 2, max: 2 })).await;
    cluster.node(0).propose_command(1, next_command(1, b"body"), PATIENCE).await.expect("acknowledged");
    raised(&cluster).await;
    write(&cluster, 1..10).await;
    cluster.settled().await;
}
