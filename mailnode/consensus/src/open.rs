//! Opens the node's journal and rebuilds the logs of all groups from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorumail_journal::mutation::{self, Mutation};
use quorumail_journal::{Disk, Journal, Options, Position, Pump, StreamId};

use crate::log::Contents;
use crate::machine::GroupId;

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal itself.
    #[error("failed to open the journal")]
    Journal(#[from] quorumail_journal::OpenError),
    /// A record does not continue the log that the records before it make.
    #[error("log of group {group} is damaged at segment {segment} offset {offset}: {reason}")]
    Log {
        /// Of which group.
        group: u32,
        /// Segment of the record.
        segment: u64,
        /// Byte offset in the segment.
        offset: u64,
        /// In words.
        reason: String,
    },
}

/// The logs of all groups, as they were when the node stopped. To be given to `Consensus::start`.
#[derive(Debug, Default)]
pub struct RecoveredLog {
    pub(crate) groups: BTreeMap<GroupId, Contents>,
}

impl RecoveredLog {
    /// Whether nothing has ever been written: a new disk.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The oldest segment of the journal that belongs to a group which will not be started.
    pub(crate) fn oldest_without(&self, starts: impl Fn(GroupId) -> bool) -> Option<u64> {
        let left = self.groups.iter().filter(|(group, _)| !starts(**group));
        left.filter_map(|(_, contents)| contents.oldest_segment()).min()
    }
}

/// Streams from this number up are no logs: others of this node keep records of their own there, for example the bodies
/// that came in a snapshot.
const FIRST_OTHER_STREAM: u32 = u32::MAX - 255;

/// Opens the journal, or creates it, and rebuilds the logs of all groups. Blocking.
///
/// # Errors
/// When the journal cannot be opened or its records make no log; the node must not start then.
pub fn open_log(options: Options) -> Result<(Journal, RecoveredLog), OpenError> {
    rebuild(|visit| Journal::open(options, visit))
}

/// Like [`open_log`], on any disk and with a pump that the caller drives.
///
/// # Errors
/// As [`open_log`].
pub fn open_log_on(
    disk: Arc<dyn Disk>,
    options: &Options,
) -> Result<(Journal, Pump, RecoveredLog), OpenError> {
    let ((journal, pump), recovered) = rebuild(|visit| Journal::open_on(disk, options, visit))?;
    Ok((journal, pump, recovered))
}

/// Opens a journal with a visitor that rebuilds the logs.
fn rebuild<J>(
    open: impl FnOnce(&mut dyn FnMut(Position, StreamId, &[u8])) -> Result<J, quorumail_journal::OpenError>,
) -> Result<(J, RecoveredLog), OpenError> {
    let mut recovered = RecoveredLog::default();
    let mut damage = None;
    let journal = open(&mut |position, stream, head| {
        if damage.is_some() || stream.0 >= FIRST_OTHER_STREAM {
            return;
        }
        let contents = recovered.groups.entry(GroupId(stream.0)).or_default();
        if let Err(error) = contents.replay(position, head) {
            let Position { segment, offset, .. } = position;
            damage = Some(OpenError::Log { group: stream.0, segment, offset, reason: error.to_string() });
        }
    })?;
    if let Some(error) = damage {
        return Err(error);
    }
    if mutation::is(Mutation::ForgetLastEntryAtStart) {
        recovered.groups.values_mut().for_each(Contents::forget_last);
    }
    match recovered.groups.iter().find(|(_, contents)| !contents.is_whole()) {
        Some((group, contents)) => Err(OpenError::Log {
            group: group.0,
            segment: contents.oldest_segment().unwrap_or(0),
            offset: 0,
            reason: "its first entries are missing, and nothing says that they were purged".to_owned(),
        }),
        None => Ok((journal, recovered)),
    }
}
