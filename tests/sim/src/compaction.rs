//! Compaction of a node's sealed segments, by the production compactor: a step now and then, in whatever state the node is.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorumail_journal::Journal;
use quorumail_store::{Compacted, CompactionPolicy, Compactor, JournalBodies, Store};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::random::Random;
use crate::world::World;

/// How a run's nodes compact.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Longest pause between two steps; none: nothing is compacted.
    pub(crate) pause: Option<Duration>,
    /// Dead share from which a segment is worth it, in percent.
    pub(crate) dead_percent: u64,
}

impl Rate {
    pub(crate) fn draw(random: &mut Random) -> Rate {
        let pause = random.pick(&[None, Some(50), Some(300), Some(300), Some(1_500)]).flatten();
        let dead_percent = random.pick(&[1, 10, 50]).unwrap_or(50);
        Rate { pause: pause.map(Duration::from_millis), dead_percent }
    }
}

/// What the steps of one life of a node did.
pub(crate) type Done = Arc<Mutex<Compacted>>;

/// Compacts until the node is down.
pub(crate) async fn compact(
    world: Arc<World>,
    id: u64,
    (store, journal, bodies): (Store, Journal, JournalBodies),
    done: Done,
    down: CancellationToken,
) {
    let Rate { pause: Some(longest), dead_percent } = world.shape.compaction else { return };
    let mut random = Random::of(world.seed, 200 + id).of_life(world.life(id));
    let policy = CompactionPolicy { dead_share: dead_percent as f64 / 100.0 };
    let mut compactor = Compactor::new(store, Arc::new(bodies), policy);
    // A write that failed stays failed until the node has ended, which may be after the fault.
    let mut failed = false;
    while !down.is_cancelled() {
        let pause = Duration::from_millis(random.within(1..longest.as_millis() as u64));
        sleep(pause).await;
        // Some steps break off after the first copies: the node may crash before they are gone on with.
        let breaks_off = random.chance(200);
        let mut pace = |_| if breaks_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        match compactor.step(journal.stats().appended_bytes, random.chance(100), &mut pace) {
            Ok(step) => add(&mut done.lock(), step),
            // As in production it is tried again; a disk that fails ends the node.
            Err(error) if failed || world.may_fail_to_write(id) || down.is_cancelled() => {
                failed = true;
                world.trace.event(format!("node {id} cannot compact: {error}"));
            }
            Err(error) => {
                world.trace.violation(format!("node {id} cannot compact on a good disk: {error}"));
            }
        }
    }
}

/// Adds what a step did to a sum.
pub(crate) fn add(sum: &mut Compacted, step: Compacted) {
    sum.reclaimed_segments += step.reclaimed_segments;
    sum.reclaimed_bytes += step.reclaimed_bytes;
    sum.compacted_segments += step.compacted_segments;
    sum.moved_bodies += step.moved_bodies;
    sum.moved_bytes += step.moved_bytes;
}
