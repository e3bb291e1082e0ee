//! A node whose disk is slow gives its leads away, and takes them back once the disk has been well for a while.
//!
//! A majority of the others can commit without this node's disk, but a leader holds everybody up: it applies only what
//! its own disk has, and all clients of its groups wait for it. Slow is a disk whose syncs take long as such and far
//! longer than those of the peers, whose figures travel in the pulses: where all disks are slow alike, moving leads
//! about would help nobody. A lead is only given to a voter that is in step and whose disk is known to be better; where
//! there is none it stays.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use quorumail_journal::Stats;
use tokio::time::Instant;

use crate::group::Group;
use crate::machine::{GroupId, NodeId};
use crate::node::Inner;
use crate::tend;

/// How often the journal is asked how long its syncs take. A sample is the mean of the syncs in this time.
const SAMPLE: Duration = Duration::from_millis(500);
/// Samples whose median is the disk's figure: one slow moment decides nothing.
const SAMPLES: usize = 12;
/// Fewer samples say nothing.
const ENOUGH_SAMPLES: usize = 6;
/// A faster disk is not slow, whatever the others do. Disks of data centres sync in 0.1 to 15 ms.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// So many times slower than the peers' is slow.
const SLOWER: u32 = 4;
/// A slow disk is well again below `SLOW_SYNC` or `SLOWER` divided by this, ...
const WELL: u32 = 2;
/// ... for so many samples in a row.
const WELL_SAMPLES: usize = 20;
/// After an attempt to give a group's lead away, the next one waits for so long.
const TRANSFER_PAUSE: Duration = Duration::from_secs(10);

/// How a disk is, as its node tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskFigure {
    /// Median time of a sync.
    pub(crate) sync: Duration,
    /// Whether the node gives its leads away for it.
    pub(crate) slow: bool,
}

/// How this node's disk is.
#[derive(Debug, Default)]
pub(crate) struct DiskHealth {
    /// Median time of a sync in microseconds; zero when nothing is known.
    sync_us: AtomicU64,
    slow: AtomicBool,
}

impl DiskHealth {
    /// Whether this node should lead nothing because of its disk.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Median time of a sync in microseconds; zero when nothing is known.
    pub(crate) fn sync_us(&self) -> u64 {
        self.sync_us.load(Ordering::Relaxed)
    }
}

/// The last samples, and what they say.
struct Judge {
    before: Stats,
    /// When nothing waited for a sync last, or one ended.
    progress: Instant,
    samples: VecDeque<Duration>,
    slow: bool,
    /// Samples in a row after which the disk looked well.
    well: usize,
}

impl Judge {
    fn new(before: Stats) -> Judge {
        Judge { before, progress: Instant::now(), samples: VecDeque::new(), slow: false, well: 0 }
    }

    /// Takes up what the journal has done since the last time; answers whether that says anything. Nothing to sync is no
    /// sample; a sync that does not end takes as long as it has been waited for.
    fn sample(&mut self, now: Stats, at: Instant) -> bool {
        let syncs = u32::try_from(now.syncs.saturating_sub(self.before.syncs)).unwrap_or(u32::MAX);
        let time = now.sync_time.saturating_sub(self.before.sync_time);
        let waits = now.pending_bytes > 0 && self.before.pending_bytes > 0;
        self.before = now;
        let took = match syncs {
            0 if waits => at - self.progress,
            0 => {
                self.progress = at;
                return false;
            }
            syncs => {
                self.progress = at;
                time / syncs
            }
        };
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(took);
        true
    }

    fn median(&self) -> Option<Duration> {
        let samples = self.samples.iter().copied();
        (self.samples.len() >= ENOUGH_SAMPLES).then(|| median(samples.collect())).flatten()
    }

    /// Whether the disk is slow beside disks with these figures; to be asked once a sample.
    fn judge(&mut self, peers: Vec<Duration>) -> bool {
        let Some(own) = self.median() else { return self.slow };
        let peers = median(peers);
        if self.slow {
            let as_the_others = peers.is_some_and(|peers| own * WELL <= peers * SLOWER);
            let well = own * WELL <= SLOW_SYNC || as_the_others;
            self.well = if well { self.well + 1 } else { 0 };
            self.slow = self.well < WELL_SAMPLES;
        } else {
            self.slow = own > SLOW_SYNC && peers.is_some_and(|peers| own > peers * SLOWER);
            self.well = 0;
        }
        self.slow
    }
}

/// The lower one of two in the middle: where half of the disks are slow the others are the measure.
fn median(mut of: Vec<Duration>) -> Option<Duration> {
    of.sort_unstable();
    of.get(of.len().checked_sub(1)? / 2).copied()
}

/// Watches the disk; ends with the node.
pub(crate) async fn watch(node: Arc<Inner>) {
    let mut judge = Judge::new(node.journal.stats());
    let mut tried = BTreeMap::new();
    loop {
        tokio::time::sleep(SAMPLE).await;
        if judge.sample(node.journal.stats(), Instant::now()) {
            let us = judge.median().map_or(0, |sync| u64::try_from(sync.as_micros()).unwrap_or(u64::MAX));
            node.disk.sync_us.store(us, Ordering::Relaxed);
            let peers: Vec<Duration> = node.peer_disks().into_values().map(|disk| disk.sync).collect();
            let slow = judge.judge(peers);
            if node.disk.slow.swap(slow, Ordering::Relaxed) != slow {
                match slow {
                    true => tracing::warn!(
                        sync_ms = us / 1000,
                        "the disk is far slower than those of the other nodes: giving the leads away"
                    ),
                    false => tracing::info!(sync_us = us, "the disk is well again: this node may lead"),
                }
                node.links.hurry();
            }
        }
        if node.disk.is_slow() && node.config.balance {
            give_leads_away(&node, &mut tried).await;
        }
    }
}

/// Gives leads to voters with a better disk, each group's at most once a pause.
async fn give_leads_away(node: &Arc<Inner>, tried: &mut BTreeMap<GroupId, Instant>) {
    tried.retain(|_, at| at.elapsed() < TRANSFER_PAUSE);
    let mut moves = Vec::new();
    for group in node.groups() {
        if tried.contains_key(&group.id) || !group.leads(node.config.lease()) {
            continue;
        }
        let Some(target) = node.better_disk(&group) else { continue };
        tried.insert(group.id, Instant::now());
        moves.push(async move {
            if node.hello(target).await.is_some_and(|reply| !reply.leaving) {
                tracing::info!(
                    group = group.id.0,
                    to = target,
                    "giving the lead to a node with a better disk"
                );
                tend::transfer(node, &group, target).await;
            }
        });
    }
    join_all(moves).await;
}

impl Inner {
    /// What the peers that are there tell of their disks.
    fn peer_disks(&self) -> BTreeMap<NodeId, DiskFigure> {
        let lease = self.config.lease();
        let links = self.links.all().into_iter();
        links.filter_map(|link| Some((link.peer.id, link.pulse.disk(lease)?))).collect()
    }

    /// Whether a node, perhaps this one, gives its leads away because of its disk.
    pub(crate) fn has_slow_disk(&self, node: NodeId) -> bool {
        if node == self.config.node {
            return self.disk.is_slow();
        }
        let lease = self.config.lease();
        let figure = self.links.get(node).and_then(|link| link.pulse.disk(lease));
        figure.is_some_and(|disk| disk.slow)
    }

    /// The voter in step with the best disk, if that is far better than this node's; the preferred leader where it is one
    /// of those.
    fn better_disk(&self, group: &Group) -> Option<NodeId> {
        let own = Duration::from_micros(self.disk.sync_us());
        let disks = self.peer_disks();
        let preferred = *group.preferred.lock();
        let in_step = self.in_sync(group).into_iter().filter(|node| group.is_voter(*node));
        let better = in_step.filter_map(|node| {
            let disk = disks.get(&node).filter(|disk| !disk.slow && disk.sync * WELL <= own)?;
            Some((Some(node) != preferred, disk.sync, node))
        });
        better.min().map(|(_, _, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A journal that does 10 syncs a sample, each as long as given.
    fn judged(judge: &mut Judge, each: Duration, samples: usize, peers: &[Duration]) -> bool {
        let mut slow = judge.slow;
        for _ in 0..samples {
            let now = Stats {
                syncs: judge.before.syncs + 10,
                sync_time: judge.before.sync_time + each * 10,
                ..judge.before
            };
            assert!(judge.sample(now, Instant::now()));
            slow = judge.judge(peers.to_vec());
        }
        slow
    }

    #[test]
    fn a_disk_far_slower_than_its_peers_is_slow_until_it_has_been_well_for_a_while() {
        let mut judge = Judge::new(Stats::default());
        let peers = [ms(4), ms(5)];
        assert!(!judged(&mut judge, ms(5), SAMPLES, &peers));
        assert!(!judged(&mut judge, ms(300), SAMPLES / 2 - 1, &peers), "some slow moments decide nothing");
        assert!(judged(&mut judge, ms(300), 2, &peers));
        assert!(judged(&mut judge, ms(40), 10 * WELL_SAMPLES, &peers), "better, but not well");
        assert!(judged(&mut judge, ms(5), WELL_SAMPLES, &peers), "well, but not for long");
        assert!(!judged(&mut judge, ms(5), SAMPLES, &peers));
    }

    #[test]
    fn a_disk_that_goes_to_and_fro_stays_slow() {
        let mut judge = Judge::new(Stats::default());
        assert!(judged(&mut judge, ms(300), SAMPLES, &[ms(4)]));
        for _ in 0..10 {
            assert!(judged(&mut judge, ms(5), WELL_SAMPLES, &[ms(4)]));
            assert!(judged(&mut judge, ms(300), SAMPLES, &[ms(4)]));
        }
    }

    #[test]
    fn disks_that_are_slow_alike_keep_their_leads() {
        let mut fast = Judge::new(Stats::default());
        assert!(!judged(&mut fast, ms(40), SAMPLES, &[ms(1), ms(1)]), "fast enough for anybody");
        let mut judge = Judge::new(Stats::default());
        assert!(!judged(&mut judge, ms(400), SAMPLES, &[ms(300), ms(350)]));
        assert!(!judged(&mut judge, ms(400), SAMPLES, &[]), "nobody is known to be better");
        assert!(judged(&mut judge, ms(400), 1, &[ms(5), ms(400)]), "the fast half is the measure");
        assert!(!judged(&mut judge, ms(400), WELL_SAMPLES, &[ms(300), ms(350)]), "now all are slow alike");
    }

    #[test]
    fn a_sync_that_does_not_end_is_slow() {
        let mut judge = Judge::new(Stats { pending_bytes: 1, ..Stats::default() });
        let begun = Instant::now();
        for _ in 0..ENOUGH_SAMPLES {
            assert!(judge.sample(Stats { pending_bytes: 1, ..Stats::default() }, begun + ms(300)));
        }
        assert!(judge.judge(vec![ms(5)]));
    }

    #[test]
    fn without_anything_to_sync_nothing_is_concluded() {
        let mut judge = Judge::new(Stats::default());
        assert!(!judge.sample(Stats::default(), Instant::now()));
        assert_eq!(judge.median(), None);
    }
}
