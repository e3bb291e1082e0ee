//! Between the engine and the state machine of a group: batches of committed entries become one call on a blocking
//! thread, positions become bytes, snapshots become a manifest that is streamed only when somebody needs it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use quorumail_journal::mutation::{self, Mutation};
use tokio::sync::watch;

use crate::fatal::Fatal;
use crate::level::{FIRST_LEVEL, LevelError, Levels};
use crate::log::{BATCH_BYTES, GroupLog};
use crate::machine::{Committed, GroupId, MachineError, SnapshotWriter, StateMachine};
use crate::metrics::Counters;
use crate::record::COMMAND_OFFSET;
use crate::runtime::{ShortWork, offload};
use crate::types::{
    Command, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, command_bytes,
};
use crate::unreadable::Unreadable;

/// Commands applied in one call.
const MAX_APPLY_ENTRIES: usize = 512;
/// So many are applied without a thread of their own: some tens of microseconds each, as a rule.
const FEW_ENTRIES: usize = 16;
/// Version of the position's encoding.
const POSITION_FORMAT: u8 = 2;

/// How far a state machine is, as openraft wants to know it. What the state machine keeps is this, encoded.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
    /// The format level that stands there.
    pub(crate) level: u32,
}

impl Default for Applied {
    fn default() -> Applied {
        Applied { last: None, membership: StoredMembership::default(), level: FIRST_LEVEL }
    }
}

impl Applied {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![POSITION_FORMAT]).expect("a position can always be encoded")
    }

    pub(crate) fn decode(group: GroupId, bytes: &[u8]) -> Result<Applied, MachineError> {
        let wrong = |reason: String| MachineError { group: group.0, reason };
        match bytes.split_first() {
            Some((&POSITION_FORMAT, rest)) => postcard::from_bytes(rest)
                .map_err(|error| wrong(format!("position cannot be decoded: {error}"))),
            Some((format, _)) => Err(wrong(format!(
                "position has format {format}, and this version knows format {POSITION_FORMAT}"
            ))),
            None => Err(wrong("position is empty".into())),
        }
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() }
    }
}

/// The index of the last log entry in a state with this position, as the state machine was given it; none for other bytes,
/// and while nothing is applied.
pub fn applied_index(position: &[u8]) -> Option<u64> {
    // The group is only for the text of an error.
    Applied::decode(GroupId(0), position).ok()?.last.map(|last| last.index)
}

/// A snapshot in the engine's hands.
pub(crate) enum SnapshotData {
    /// To be opened and streamed by whoever sends it.
    OnDemand,
    /// Received in full, not yet in force; with the format level that stands where it was taken.
    Received(Box<dyn SnapshotWriter>, u32),
}

/// The state machine of one group as the engine sees it.
pub(crate) struct Adapter {
    group: GroupId,
    machine: Arc<dyn StateMachine>,
    log: GroupLog,
    levels: Levels,
    applied: Applied,
    progress: watch::Sender<Applied>,
    fatal: Fatal,
    counters: Arc<Counters>,
    short_work: Arc<ShortWork>,
    unreadable: Arc<Unreadable>,
}

impl Adapter {
    /// Reads the position from the state machine; blocking.
    pub(crate) fn open(
        group: GroupId,
        machine: Arc<dyn StateMachine>,
        log: GroupLog,
        levels: Levels,
        fatal: Fatal,
        counters: Arc<Counters>,
        short_work: Arc<ShortWork>,
        unreadable: Arc<Unreadable>,
    ) -> Result<Adapter, MachineError> {
        let applied = match machine.position(group)? {
            Some(position) => Applied::decode(group, &position)?,
            None => Applied::default(),
        };
        let progress = watch::Sender::new(applied.clone());
        Ok(Adapter {
            group,
            machine,
            log,
            levels,
            applied,
            progress,
            fatal,
            counters,
            short_work,
            unreadable,
        })
    }

    /// Follows what has been applied.
    pub(crate) fn progress(&self) -> watch::Receiver<Applied> {
        self.progress.subscribe()
    }

    fn stop(&self, error: MachineError) -> io::Error {
        self.fatal.report(format!("{error}"));
        io::Error::other(error)
    }

    async fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        // The state machine will point at our journal's records: they must be there after a crash.
        if !mutation::is(Mutation::ApplyBeforeDurable) {
            self.log.wait_durable(last.log_id.index).await;
        }
        let mut commands = Vec::with_capacity(batch.len());
        let mut responders: Vec<(bool, Option<ApplyResponder<TypeConfig>>)> = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            let expected = self.applied.last.map_or(0, |id| id.index + 1);
            assert_eq!(entry.log_id.index, expected, "entries are applied in order, each once");
            assert!(self.applied.last <= Some(entry.log_id), "terms never go back");
            self.applied.last = Some(entry.log_id);
            let mut answers = false;
            match entry.payload {
                Payload::Blank => {}
                Payload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
                Payload::Normal(Command::Level(level)) => {
                    self.applied.level = self.applied.level.max(level);
                    self.check_level()?;
                    tracing::info!(group = self.group.0, level, "the group is at a higher format level");
                }
                Payload::Normal(Command::Normal(command)) => {
                    self.check_level()?;
                    let record = self.log.position(entry.log_id.index).ok_or_else(|| {
                        io::Error::other(format!("log entry {} is applied but not in the log", entry.log_id))
                    })?;
                    let index = entry.log_id.index;
                    let (level, offset) = (self.applied.level, COMMAND_OFFSET);
                    commands.push(Committed { index, level, command, record, offset });
                    answers = true;
                }
            }
            responders.push((answers, responder));
        }
        let mut answers = self.call_apply(commands).await?.into_iter();
        for (answered, responder) in responders {
            let answer = if answered { answers.next().unwrap_or_default() } else { Bytes::new() };
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        self.progress.send_replace(self.applied.clone());
        Ok(())
    }

    /// Stops rather than apply what this version does not know: skipping it would make replicas differ.
    fn check_level(&self) -> io::Result<()> {
        let wrong = |error: LevelError| MachineError { group: self.group.0, reason: error.to_string() };
        self.levels.check(self.applied.level).map_err(|error| self.stop(wrong(error)))
    }

    async fn call_apply(&self, commands: Vec<Committed>) -> io::Result<Vec<Bytes>> {
        let (machine, group, position) = (self.machine.clone(), self.group, self.applied.encode());
        let count = commands.len();
        let started = tokio::time::Instant::now();
        let apply = move || machine.apply(group, commands, &position);
        let answers = self
            .short_work
            .run(count <= FEW_ENTRIES, apply)
            .await
            .map_err(|error| MachineError {
                group: group.0,
                reason: format!("apply did not finish: {error}"),
            })
            .flatten()
            .map_err(|error| self.stop(error))?;
        self.counters.applied(count, started.elapsed());
        if answers.len() != count {
            let reason = format!("{} answers to {count} commands", answers.len());
            return Err(self.stop(MachineError { group: group.0, reason }));
        }
        Ok(answers)
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = ManifestBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        loop {
            let Some(first) = entries.next().await else { return Ok(()) };
            let first =
                first.inspect_err(|error| self.fatal.report(format!("group {}: {error}", self.group.0)))?;
            let mut bytes = command_bytes(&first.0);
            let mut batch = vec![first];
            // Whatever is there without waiting goes into the same call.
            while batch.len() < MAX_APPLY_ENTRIES && bytes < BATCH_BYTES as usize {
                let Some(Some(entry)) = entries.next().now_or_never() else { break };
                let entry = entry
                    .inspect_err(|error| self.fatal.report(format!("group {}: {error}", self.group.0)))?;
                bytes += command_bytes(&entry.0);
                batch.push(entry);
            }
            self.apply_batch(batch).await?;
        }
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<ManifestBuilder> {
        Some(ManifestBuilder(self.applied.meta()))
    }

    async fn get_snapshot_builder(&mut self) -> ManifestBuilder {
        ManifestBuilder(self.applied.meta())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Received(writer, level) = snapshot else {
            return Err(io::Error::other("only a received snapshot can be installed"));
        };
        let installed = Applied { last: meta.last_log_id, membership: meta.last_membership.clone(), level };
        assert!(self.applied.last <= installed.last, "a snapshot never takes the state back");
        assert!(self.applied.level <= level, "nor the format level");
        let (group, position) = (self.group, installed.encode());
        offload(move || writer.finish(&position))
            .await
            .map_err(|error| MachineError {
                group: group.0,
                reason: format!("install did not finish: {error}"),
            })
            .flatten()
            .map_err(|error| self.stop(error))?;
        tracing::info!(group = group.0, last = ?meta.last_log_id, "installed a snapshot");
        self.counters.snapshot_installed();
        self.unreadable.clear(group);
        self.applied = installed;
        self.progress.send_replace(self.applied.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // The state machine is its own snapshot at all times; it is opened when it is sent.
        Ok(self
            .applied
            .last
            .map(|_| Snapshot { meta: self.applied.meta(), snapshot: SnapshotData::OnDemand }))
    }
}

/// "Builds" a snapshot: tells the engine how far the state machine is, which lets it purge the log before that.
pub(crate) struct ManifestBuilder(SnapshotMeta);

impl RaftSnapshotBuilder<TypeConfig> for ManifestBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        Ok(Snapshot { meta: self.0.clone(), snapshot: SnapshotData::OnDemand })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::log_id;

    #[test]
    fn a_position_keeps_its_level_and_one_of_the_next_version_is_refused_with_both() {
        let position = Applied { last: Some(log_id(3, 7)), level: 5, ..Applied::default() };
        let mut bytes = position.encode();
        assert_eq!((applied_index(&bytes), applied_index(b"other")), (Some(7), None));
        let read = Applied::decode(GroupId(1), &bytes).unwrap();
        assert_eq!((read.last, read.level), (position.last, 5));
        bytes[0] += 1;
        let error = Applied::decode(GroupId(1), &bytes).unwrap_err().to_string();
        for format in [POSITION_FORMAT + 1, POSITION_FORMAT] {
            assert!(error.contains(&format!("format {format}")), "{error}");
        }
    }
}
