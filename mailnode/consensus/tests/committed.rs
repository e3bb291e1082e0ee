//! The committed log, as it is read for an archive: whole, in order, and kept for as long as it is wanted.

mod kit;

use std::time::Duration;

use kit::{Cluster, ONE_AT_A_TIME, PATIENCE};
use quorumail_consensus::{CommittedError, Consensus, GroupId, LogRetention};

const GROUP: GroupId = GroupId(1);

async fn write(cluster: &Cluster, ids: std::ops::Range<u64>) {
    for id in ids {
        cluster.node(0).propose(1, id, &[7; 1000], PATIENCE).await.expect("acknowledged");
    }
}

/// Ids of all commands from an entry on, read in small pieces; and what comes next.
async fn read(consensus: &Consensus, mut from: u64) -> Result<(Vec<u64>, u64), CommittedError> {
    let mut ids = Vec::new();
    loop {
        let log = consensus.committed(GROUP, from, 5000).await?;
        assert_eq!(log.covers.start, from);
        let mut last = None;
        for (index, command) in &log.commands {
            assert!(log.covers.contains(index) && last < Some(*index), "in order and within");
            last = Some(*index);
            ids.push(u64::from_le_bytes(command[..8].try_into().expect("a command has an id")));
        }
        if log.covers.is_empty() {
            return Ok((ids, from));
        }
        from = log.covers.end;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_log_is_read_whole_on_every_replica_and_kept_while_it_is_wanted() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start_with(3, 1, |config| {
        config.log_retention = LogRetention { entries: 20, bytes: 64 << 10 };
        config.wanted_log = LogRetention { entries: 450, bytes: 1 << 30 };
        config.checkpoint_interval = Duration::from_millis(100);
    })
    .await;
    cluster.ready().await;
    let (wanting, other) = (&cluster.node(1).consensus, &cluster.node(2).consensus);
    wanting.want_log(GROUP, Some(0));
    write(&cluster, 0..300).await;
    cluster.settled().await;
    let purged =
        async |consensus: &Consensus| matches!(read(consensus, 0).await, Err(CommittedError::Purged { .. }));
    // Purged where nobody wants it.
    while !purged(other).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (ids, next) = read(wanting, 0).await.expect("all of it is there");
    assert_eq!(ids, (0..300).collect::<Vec<u64>>());

    // It goes on where it was, and what is not wanted any more goes.
    write(&cluster, 300..310).await;
    cluster.settled().await;
    assert_eq!(read(wanting, next).await.expect("it is there").0, (300..310).collect::<Vec<u64>>());
    wanting.want_log(GROUP, Some(next));
    while !purged(wanting).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(read(wanting, next).await.expect("it is there").0, (300..310).collect::<Vec<u64>>());

    // Nor is it kept beyond the larger bound, wanted or not.
    write(&cluster, 310..900).await;
    cluster.settled().await;
    let gap = loop {
        match read(wanting, next).await {
            Err(gap) => break gap,
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let CommittedError::Purged { group: 1, asked, begins } = gap else { panic!("{gap}") };
    assert!(asked == next && begins > next, "{gap}");
    assert_eq!(wanting.committed(GroupId(9), 0, 1).await, Err(CommittedError::NotHeld(9)));
}
