//! The store as consensus sees it: a state machine of bytes.

use std::io;

use bytes::Bytes;
use quorumail_consensus::{Committed, GroupId, MachineError, SnapshotReader, SnapshotWriter, StateMachine};
use quorumail_store::{BodyId, LogCommand, Store, StoreError};

/// Notes, durably, that a format level is in use on this node's disk.
pub type NoteLevel = Box<dyn Fn(u32) -> io::Result<()> + Send + Sync>;

/// The replicas of this node.
pub struct Machine {
    /// Their states.
    pub store: Store,
    /// What else must know of the level.
    pub note_level: NoteLevel,
}

struct Reader(u32, quorumail_store::SnapshotReader);
struct Writer(u32, quorumail_store::SnapshotWriter);

fn failed(group: u32) -> impl Fn(StoreError) -> MachineError {
    move |error| MachineError { group, reason: error.to_string() }
}

impl StateMachine for Machine {
    fn position(&self, group: GroupId) -> Result<Option<Vec<u8>>, MachineError> {
        self.store.position(group.0).map_err(failed(group.0))
    }

    fn apply(
        &self,
        group: GroupId,
        batch: Vec<Committed>,
        position: &[u8],
    ) -> Result<Vec<Bytes>, MachineError> {
        let batch = batch.into_iter().map(|committed| LogCommand {
            index: committed.index,
            command: committed.command,
            record: committed.record,
            offset: committed.offset,
        });
        self.store.apply(group.0, batch.collect(), position).map_err(failed(group.0))
    }

    fn query(&self, group: GroupId, query: Bytes) -> Bytes {
        self.store.query_bytes(group.0, query)
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotReader>, MachineError> {
        let reader = self.store.snapshot(group.0).map_err(failed(group.0))?;
        Ok(Box::new(Reader(group.0, reader)))
    }

    fn install(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, MachineError> {
        let writer = self.store.install(group.0).map_err(failed(group.0))?;
        Ok(Box::new(Writer(group.0, writer)))
    }

    fn remove(&self, group: GroupId) -> Result<(), MachineError> {
        self.store.remove(group.0).map_err(failed(group.0))
    }

    fn reach_level(&self, level: u32) -> Result<(), MachineError> {
        (self.note_level)(level).map_err(|error| MachineError {
            group: 0,
            reason: format!("failed to note that format level {level} is in use: {error}"),
        })
    }

    fn body(&self, group: GroupId, index: u64) -> Result<Option<Bytes>, MachineError> {
        self.store.body(group.0, BodyId(index)).map_err(failed(group.0))
    }

    fn checkpoint(&self) -> Result<(), MachineError> {
        self.store.checkpoint().map_err(failed(0))
    }
}

impl SnapshotReader for Reader {
    fn position(&self) -> &[u8] {
        self.1.position()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        self.1.next_chunk().map_err(failed(self.0))
    }
}

impl SnapshotWriter for Writer {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.1.write(chunk).map_err(failed(self.0))
    }

    fn finish(self: Box<Self>, position: &[u8]) -> Result<(), MachineError> {
        self.1.finish(position).map_err(failed(self.0))
    }
}
