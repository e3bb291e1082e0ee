//! The replicas of a simulated node, with the checker looking on.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_consensus::{
    Committed, GroupId, MachineError, NodeId, SnapshotReader, SnapshotWriter, StateMachine,
};
use quorumail_journal::Pump;
use quorumail_replica::Machine;

use crate::check::Checker;
use crate::rot::Garbler;

/// A journal's pump; none once the node is down.
pub(crate) type SharedPump = Arc<Mutex<Option<Pump>>>;

/// A node's replicas under watch.
pub(crate) struct Watched {
    pub(crate) node: NodeId,
    pub(crate) machine: Machine,
    pub(crate) checker: Checker,
    /// What becomes of bodies that other nodes ask for.
    pub(crate) garbler: Garbler,
}

impl StateMachine for Watched {
    fn position(&self, group: GroupId) -> Result<Option<Vec<u8>>, MachineError> {
        self.machine.position(group)
    }

    fn apply(
        &self,
        group: GroupId,
        batch: Vec<Committed>,
        position: &[u8],
    ) -> Result<Vec<Bytes>, MachineError> {
        let seen: Vec<(u64, Bytes)> =
            batch.iter().map(|committed| (committed.index, committed.command.clone())).collect();
        let outcomes = self.machine.apply(group, batch, position)?;
        for ((index, command), outcome) in seen.iter().zip(&outcomes) {
            self.checker.applied(self.node, group, *index, command, outcome);
        }
        Ok(outcomes)
    }

    fn query(&self, group: GroupId, query: Bytes) -> Bytes {
        self.machine.query(group, query)
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotReader>, MachineError> {
        self.machine.snapshot(group)
    }

    fn install(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, MachineError> {
        self.machine.install(group)
    }

    fn remove(&self, group: GroupId) -> Result<(), MachineError> {
        self.machine.remove(group)
    }

    fn reach_level(&self, level: u32) -> Result<(), MachineError> {
        self.machine.reach_level(level)
    }

    fn body(&self, group: GroupId, index: u64) -> Result<Option<Bytes>, MachineError> {
        Ok(self.machine.body(group, index)?.map(|body| self.garbler.pass(body)))
    }

    fn checkpoint(&self) -> Result<(), MachineError> {
        self.machine.checkpoint()
    }
}
