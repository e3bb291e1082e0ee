//! Replicas of this node whose state could not be read in full: as a rule a message body of theirs is not what was
//! written.
//!
//! Such a replica votes, follows and applies as before, for that needs its log only. But it cannot refill another one, and
//! as long as it leads nobody else does. So it gives the lead to a voter that is whole (`tend`), tells the others that it
//! is not ([`Standing`](quorumail_proto::peer::Standing)), and is not given the lead back. It may still be elected: where
//! nobody else has all of the log, a leader that cannot refill is better than none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::machine::{GroupId, MachineError};
use crate::metrics::Counters;

/// Between two tries to read such a replica, while no other can take the lead.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// After so long without a try it counts as whole again: the disk may have been mended, and if not, the next try tells.
const STANDS: Duration = Duration::from_secs(3600);

/// Which of the replicas here could not be read.
pub(crate) struct Unreadable {
    /// When each was tried last.
    tried: Mutex<BTreeMap<GroupId, Instant>>,
    counters: Arc<Counters>,
}

impl Unreadable {
    pub(crate) fn new(counters: Arc<Counters>) -> Unreadable {
        Unreadable { tried: Mutex::default(), counters }
    }

    /// A replica could not be read in full.
    pub(crate) fn note(&self, group: GroupId, error: &MachineError) {
        self.counters.snapshot_unreadable();
        let before = self.tried.lock().insert(group, Instant::now());
        if before.is_none_or(|tried| tried.elapsed() >= STANDS) {
            tracing::error!(
                group = group.0,
                %error,
                "this replica cannot be read in full and cannot refill another one: its lead goes to a replica that is \
                 whole. Check the disk of this node; if it stays so, empty its data directory, and it is refilled",
            );
        } else {
            tracing::debug!(group = group.0, %error, "the replica still cannot be read in full");
        }
    }

    /// A replica was read in full, refilled, or removed.
    pub(crate) fn clear(&self, group: GroupId) {
        if self.tried.lock().remove(&group).is_some() {
            tracing::info!(group = group.0, "the replica here can be read in full again");
        }
    }

    /// Whether a replica could not be read, and nothing tells that it can be now.
    pub(crate) fn is(&self, group: GroupId) -> bool {
        self.tried.lock().get(&group).is_some_and(|tried| tried.elapsed() < STANDS)
    }

    /// Whether it is too early to try again.
    pub(crate) fn was_just_tried(&self, group: GroupId) -> bool {
        self.tried.lock().get(&group).is_some_and(|tried| tried.elapsed() < TRY_AGAIN)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.tried.lock().values().filter(|tried| tried.elapsed() < STANDS).count() as u64
    }
}
