//! The committed log of a group, for who keeps it elsewhere (the continuous archive of backups).

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::machine::GroupId;
use crate::node::Consensus;
use crate::types::{Command, Payload};

/// Entries that are read at once, at most.
const READ_ENTRIES: u64 = 4096;

/// A stretch of a group's log, in order and without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedLog {
    /// Log indexes that it covers; empty when nothing more is committed and applied here. Entries of the engine's own in it
    /// carry no command.
    pub covers: Range<u64>,
    /// Log index and command, as proposed.
    pub commands: Vec<(u64, Bytes)>,
}

/// Why a stretch of log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommittedError {
    /// There is no replica here.
    #[error("this node holds no replica of group {0}")]
    NotHeld(u32),
    /// It has been purged: only a new backup closes the gap.
    #[error("the log of group {group} begins at {begins} here, and {asked} was asked for")]
    Purged {
        /// Which group.
        group: u32,
        /// What was asked for.
        asked: u64,
        /// The first entry that is there.
        begins: u64,
    },
    /// The disk.
    #[error("the log of group {group} cannot be read: {reason}")]
    Unreadable {
        /// Which group.
        group: u32,
        /// In words.
        reason: String,
    },
}

/// The first entry of each group's log that is wanted by who keeps it elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Wanted(Mutex<BTreeMap<GroupId, u64>>);

impl Wanted {
    /// The first entry of the group's log that is wanted; none when nobody keeps it.
    pub(crate) fn from(&self, group: GroupId) -> Option<u64> {
        self.0.lock().get(&group).copied()
    }
}

impl Consensus {
    /// The log of a group from an entry on, as far as it is committed and applied here: at least one entry when there is
    /// one, at most about `max_bytes` of commands.
    ///
    /// # Errors
    /// When it is not here any more, or cannot be read.
    pub async fn committed(
        &self,
        group: GroupId,
        from: u64,
        max_bytes: u64,
    ) -> Result<CommittedLog, CommittedError> {
        let held = self.0.group(group).ok_or(CommittedError::NotHeld(group.0))?;
        let applied = held.applied.borrow().last.map_or(0, |id| id.index + 1);
        let begins = held.log.first();
        if from < begins {
            return Err(CommittedError::Purged { group: group.0, asked: from, begins });
        }
        let unreadable =
            |error: std::io::Error| CommittedError::Unreadable { group: group.0, reason: error.to_string() };
        let entries = held.log.read(from, applied, READ_ENTRIES, max_bytes).await.map_err(unreadable)?;
        let next = entries.last().map_or(from, |entry| entry.log_id.index + 1);
        let command = |entry: crate::types::Entry| match entry.payload {
            Payload::Normal(Command::Normal(command)) => Some((entry.log_id.index, command)),
            Payload::Normal(Command::Level(_)) | Payload::Blank | Payload::Membership(_) => None,
        };
        Ok(CommittedLog { covers: from..next, commands: entries.into_iter().filter_map(command).collect() })
    }

    /// Keeps the log of a group from this entry on, beyond the usual retention but within
    /// [`Config::wanted_log`](crate::Config::wanted_log); with none, as usual. Forgotten at a restart, and not heeded while
    /// the disk is too full for commands.
    pub fn want_log(&self, group: GroupId, from: Option<u64>) {
        let mut wanted = self.0.wanted.0.lock();
        match from {
            Some(from) => wanted.insert(group, from),
            None => wanted.remove(&group),
        };
    }
}
