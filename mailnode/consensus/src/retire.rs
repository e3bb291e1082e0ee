//! Takes a segment of the journal out of what the logs need, because something in it has rotted.
//!
//! A rotten entry, vote or mark is not mended singly: another replica's log has other terms, votes and marks. But all that
//! they add up to is in memory, read when it was well, and what was applied is in the state machine. So the segment is left
//! behind as old segments always are: the state machine is made durable, the logs are purged beyond the segment, each group
//! writes its base record from memory, and the floor moves. The replica forgets nothing and may vote all along; a follower
//! that lacks what was purged gets a snapshot.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::group::Group;
use crate::machine::MachineError;
use crate::node::Consensus;
use crate::runtime::offload;
use crate::tend;

/// How long the engines may take to purge what is no longer needed.
const PURGE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(20);

impl Consensus {
    /// Sees to it that no log needs a record in this segment of the journal or one before it; the newest is ended for it.
    /// Durable on return.
    ///
    /// # Errors
    /// In words, who still needs it: entries that are not applied yet are needed. All is as well as before then; try again
    /// later.
    pub async fn retire_log(&self, segment: u64) -> Result<(), String> {
        let node = &self.0;
        let is_retired = || node.journal.stats().floor > segment;
        if is_retired() {
            return Ok(());
        }
        let groups = node.groups();
        if node.journal.last_of_log(0) <= segment {
            self.leave_newest(&groups, segment).await?;
        }
        // What was applied before the checkpoint began is what it covers for certain.
        let covered: Vec<Option<u64>> =
            groups.iter().map(|group| group.applied.borrow().last.map(|id| id.index)).collect();
        let machine = node.machine.clone();
        let checkpoint = offload(move || machine.checkpoint()).await.map_err(|error| error.to_string())?;
        checkpoint
            .inspect_err(|error: &MachineError| node.fatal.report(error.to_string()))
            .map_err(|error| error.to_string())?;
        for (group, applied) in groups.iter().zip(covered) {
            let point = applied.and_then(|applied| group.log.purge_point(applied, u64::MAX, segment + 1));
            if let Some(upto) = point {
                tend::purge_upto(group, upto).await;
            }
        }
        let since = Instant::now();
        let needs = |segment_of: Option<u64>| segment_of.is_some_and(|oldest| oldest <= segment);
        while let Some(group) = groups.iter().find(|group| needs(group.log.oldest_segment())) {
            if since.elapsed() > PURGE_PATIENCE {
                return Err(format!(
                    "group {} has entries in it that are not applied or still being sent",
                    group.id.0
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        tend::move_floor(node).await;
        if is_retired() {
            Ok(())
        } else {
            Err("the floor of the journal could not be moved beyond it".into())
        }
    }

    /// Ends the newest segment of the log, and begins the next one with a record.
    async fn leave_newest(&self, groups: &[Arc<Group>], segment: u64) -> Result<(), String> {
        let journal = &self.0.journal;
        journal.end_segment(segment).map_err(|error| error.to_string())?;
        let group = groups.first().ok_or("there is no group here that could write to the next segment")?;
        group.log.write_base().await.ok_or("the node is being stopped")?;
        match journal.last_of_log(0) > segment {
            true => Ok(()),
            false => Err(format!("there is no segment {segment} yet")),
        }
    }
}
