//! Has the logs leave behind the segments in which something has rotted that a start would read.

use std::collections::BTreeSet;

use quorumail_consensus::Consensus;
use quorumail_journal::Journal;

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Segments that no log needs any more.
    pub retired: u64,
    /// Tries that failed.
    pub failed: u64,
}

/// Has the logs leave segments behind, the oldest first, and takes those out of the set; what a log still needs stays for the
/// next time.
pub async fn leave_behind(consensus: &Consensus, journal: &Journal, segments: &mut BTreeSet<u64>) -> Left {
    let mut left = Left::default();
    // The scrubber and a reader may have met the same, and one that is left behind takes those before it along.
    for segment in segments.clone() {
        if segment < journal.stats().floor {
            segments.remove(&segment);
            continue;
        }
        match consensus.retire_log(segment).await {
            Ok(()) => {
                segments.remove(&segment);
                left.retired += 1;
                tracing::warn!(
                    segment,
                    "the logs have left a segment behind because something in it had rotted"
                );
            }
            Err(reason) => {
                left.failed += 1;
                tracing::error!(
                    segment,
                    reason,
                    "a segment in which something has rotted is still needed; tried again"
                );
            }
        }
    }
    left
}
