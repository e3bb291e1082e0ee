//! Gives back the disk space of deleted mail, one segment of the journal at a time, at a bounded rate.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use quorumail_journal::Journal;
use quorumail_store::{Compacted, CompactionPolicy, Compactor, JournalBodies, Space, Store};
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    disk::{Disk, Room},
};

/// Between looks when there is nothing to do.
const LOOK: Duration = Duration::from_secs(10);
/// After a failure, before the next try.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Looks after which segments are tried again that could not be read.
const LOOKS_UNTIL_RETRY: u32 = 360;

/// What compaction did since the start, and what it has before it.
#[derive(Debug, Default)]
pub struct Totals {
    /// Segments whose bodies were moved away.
    pub compacted_segments: AtomicU64,
    /// Bytes of bodies copied for it.
    pub copied_bytes: AtomicU64,
    /// Bytes given back.
    pub reclaimed_bytes: AtomicU64,
    /// Bytes of records with bodies that are referred to.
    pub live_bytes: AtomicU64,
    /// Bytes that compaction could give back.
    pub dead_bytes: AtomicU64,
}

impl Totals {
    fn add(&self, done: Compacted, space: Space) {
        self.compacted_segments.fetch_add(done.compacted_segments, Relaxed);
        self.copied_bytes.fetch_add(done.moved_bytes, Relaxed);
        self.reclaimed_bytes.fetch_add(done.reclaimed_bytes, Relaxed);
        self.live_bytes.store(space.live_bytes, Relaxed);
        self.dead_bytes.store(space.dead_bytes, Relaxed);
    }
}

/// What compaction works with.
pub struct Compaction {
    /// Whose bodies.
    pub store: Store,
    /// Where they lie.
    pub bodies: JournalBodies,
    /// The same, to see how much is appended.
    pub journal: Journal,
    /// Room on the disk.
    pub disk: Arc<Disk>,
    /// When and how fast.
    pub options: config::Compaction,
    /// For the metrics.
    pub totals: Arc<Totals>,
}

impl Compaction {
    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let Self { store, bodies, journal, disk, options, totals } = self;
        let policy = CompactionPolicy { dead_share: options.dead_share };
        let mut compactor = Compactor::new(store, Arc::new(bodies), policy);
        let mut looks = 0u32;
        while !stop.is_cancelled() {
            let (journal, disk, totals, stopping) =
                (journal.clone(), Arc::clone(&disk), Arc::clone(&totals), stop.clone());
            let step = tokio::task::spawn_blocking(move || {
                let mut pace = |bytes| pace(bytes, options.bytes_per_second, &stopping);
                let done =
                    compactor.step(journal.stats().appended_bytes, disk.room() != Room::Enough, &mut pace);
                if let Ok(done) = done {
                    totals.add(done, compactor.space());
                }
                (compactor, done)
            });
            // Fails only when the step panicked: an invariant is broken, and nothing more must be given back.
            let Ok((back, done)) = step.await else {
                tracing::error!("compaction has ended: a step of it panicked");
                return;
            };
            compactor = back;
            let wait = match done {
                Ok(done) if done == Compacted::default() => LOOK,
                Ok(done) => {
                    tracing::debug!(?done, "compacted");
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(%error, "compaction failed; it is tried again");
                    AFTER_FAILURE
                }
            };
            looks += 1;
            if looks.is_multiple_of(LOOKS_UNTIL_RETRY) {
                compactor.forget_damage();
            }
            // An elapsed time is the normal case.
            let _ = tokio::time::timeout(wait, stop.cancelled()).await;
        }
    }
}

/// Waits as long as so many bytes may take; breaks off when the node stops.
pub(crate) fn pace(bytes: u64, bytes_per_second: u64, stop: &CancellationToken) -> ControlFlow<()> {
    const SLICE: Duration = Duration::from_millis(100);
    let mut left = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
    while !left.is_zero() && !stop.is_cancelled() {
        let slice = left.min(SLICE);
        thread::sleep(slice);
        left -= slice;
    }
    if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
