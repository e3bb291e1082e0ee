//! What must hold at every step, over all nodes together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_consensus::{GroupId, NodeId};
use quorumail_store::{Command, CommandId};

use crate::trace::Trace;

/// Compares what the nodes do with each other and with what clients sent.
#[derive(Clone)]
pub(crate) struct Checker {
    trace: Arc<Trace>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// By group and log index: hashes of the command and of its outcome.
    applied: BTreeMap<(GroupId, u64), (u64, u64)>,
    /// By group and term.
    leaders: BTreeMap<(GroupId, u64), NodeId>,
    sent: BTreeSet<CommandId>,
}

fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Checker {
    pub(crate) fn new(trace: Arc<Trace>) -> Checker {
        Checker { trace, inner: Arc::default() }
    }

    /// A client is about to propose a command for the first time.
    pub(crate) fn sent(&self, id: CommandId) {
        self.inner.lock().sent.insert(id);
    }

    /// A node has applied a command: every node applies the same at the same index, with the same outcome, after a
    /// crash as well, and nothing that nobody sent.
    pub(crate) fn applied(&self, node: NodeId, group: GroupId, index: u64, command: &Bytes, outcome: &Bytes) {
        let hashes = (hash_of(command), hash_of(outcome));
        self.trace.mark((node, group.0, index, hashes));
        let mut inner = self.inner.lock();
        let known = *inner.applied.entry((group, index)).or_insert(hashes);
        let id = Command::decode(command).map(|command| command.id);
        let was_sent = id.is_ok_and(|id| inner.sent.contains(&id));
        drop(inner);
        if known.0 != hashes.0 {
            self.wrong(format!("node {node} applies another command at {index} of group {}", group.0));
        } else if known.1 != hashes.1 {
            self.wrong(format!("node {node} has another outcome at {index} of group {}", group.0));
        } else if !was_sent {
            self.wrong(format!("node {node} applies at {index} of group {} what nobody sent", group.0));
        }
    }

    /// A node believes that another one, or itself, leads a group in a term.
    pub(crate) fn leads(&self, group: GroupId, term: u64, leader: NodeId) {
        let known = *self.inner.lock().leaders.entry((group, term)).or_insert(leader);
        if known != leader {
            self.wrong(format!("nodes {known} and {leader} both lead group {} in term {term}", group.0));
        }
    }

    /// Terms in which a group had a leader.
    pub(crate) fn terms_led(&self) -> usize {
        self.inner.lock().leaders.len()
    }

    fn wrong(&self, what: String) {
        self.trace.violation(what);
    }
}
