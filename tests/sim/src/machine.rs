//! The store as consensus sees it, with the checker looking on, and bodies in a journal that is driven by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_consensus::{
    Committed, GroupId, MachineError, NodeId, SnapshotReader, SnapshotWriter, StateMachine,
};
use quorumail_journal::Pump;
use quorumail_store::{BodyId, LogCommand, Store, StoreError};

use crate::check::Checker;

/// A journal's pump; none once the node is down.
pub(crate) type SharedPump = Arc<Mutex<Option<Pump>>>;

/// The replicas of a simulated node.
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    pub(crate) store: Store,
    pub(crate) checker: Checker,
    /// The format level that the node's disk may hold; outlives the process.
    pub(crate) level: Arc<AtomicU32>,
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
        let seen: Vec<(u64, Bytes)> =
            batch.iter().map(|committed| (committed.index, committed.command.clone())).collect();
        let commands = batch.into_iter().map(|committed| LogCommand {
            index: committed.index,
            command: committed.command,
            record: committed.record,
            offset: committed.offset,
        });
        let outcomes = self.store.apply(group.0, commands.collect(), position).map_err(failed(group.0))?;
        for ((index, command), outcome) in seen.iter().zip(&outcomes) {
            self.checker.applied(self.node, group, *index, command, outcome);
        }
        Ok(outcomes)
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
        self.level.store(level, Ordering::SeqCst);
        Ok(())
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
