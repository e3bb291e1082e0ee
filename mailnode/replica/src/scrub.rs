//! One step of a pass over the journal: the next segment, read from the disk, and who needs what has rotted in it.

use std::ops::ControlFlow;

use quorumail_store::{Findings, JournalBodies, Store};

/// What has rotted in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rot {
    /// Who needs it.
    pub findings: Findings,
    /// From here on nothing could be told from the segment itself.
    pub lost_from: Option<u64>,
    /// Whether the logs need the segment for a start: then they must leave it behind.
    pub is_log: bool,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// There is no further segment: the pass is at its end.
    End,
    /// A segment was read, or as far as `pace` let it; with what has rotted in it.
    Segment(u64, Option<Rot>),
}

/// Reads the first sealed segment from `from` on. `pace` is called with the number of bytes after each read: it may wait, or
/// break off. Blocking I/O.
///
/// # Errors
/// In words, when the segments of the journal cannot be told.
pub fn look(
    store: &Store,
    bodies: &JournalBodies,
    from: u64,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Looked, String> {
    let Some((segment, is_log)) = bodies.next_sealed(from)? else { return Ok(Looked::End) };
    let found = match bodies.scrub(segment, pace) {
        Ok(found) if found.rotten.is_empty() && found.lost_from.is_none() => {
            return Ok(Looked::Segment(segment, None));
        }
        Ok(found) => found,
        Err(reason) => {
            // As a rule it was given back meanwhile.
            tracing::info!(segment, reason, "a segment was not scrubbed");
            return Ok(Looked::Segment(segment, None));
        }
    };
    let lost_from = found.lost_from;
    let rot = match store.judge(segment, &found, is_log) {
        Ok(findings) => Some(Rot { findings, lost_from, is_log }),
        Err(error) => {
            tracing::error!(segment, %error, "it cannot be told who needs what has rotted in a segment");
            None
        }
    };
    Ok(Looked::Segment(segment, rot))
}
