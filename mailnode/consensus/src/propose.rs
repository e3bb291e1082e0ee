//! Commands and queries: to the leader wherever it is, again when it changes, until it is done or the deadline.
//!
//! A command is repeated with the same bytes when its outcome is not known; the state machine applies it once, by the
//! id inside. Queries read from this node's own replica, once that has applied what the leader had committed when the
//! query came (Raft's ReadIndex: a majority confirms the leader, no clock is trusted); a node without a replica
//! forwards them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use quorumail_journal::mutation::{self, Mutation};
use quorumail_proto::peer::forward_request::Kind;
use quorumail_proto::peer::{ForwardRequest, ReadIndexRequest, forward_reply, read_index_reply};
use tokio::time::{Instant, timeout, timeout_at};

use crate::group::Group;
use crate::machine::{GroupId, NodeId};
use crate::node::Inner;
use crate::runtime::offload;
use crate::service::READ_ONLY;
use crate::types::{Command, TypeConfig};
use crate::wire::MAX_MESSAGE_BYTES;

/// Largest command: leaves room for its head in a message and a journal record.
pub const MAX_COMMAND_BYTES: usize = MAX_MESSAGE_BYTES - (1 << 20);
/// First and longest pause before the next attempt. The pause ends early when the group has a new leader.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a node with a replica asks others than the leader that it knows of, when that one does not answer.
const ASK_OTHERS_EVERY: usize = 4;
/// Longest wait for one answer from another node: a node that hangs must not use up the whole time. A repeated
/// command is harmless.
const FORWARD_PATIENCE: Duration = Duration::from_secs(5);

/// Why a command or a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not done in time. A command may have been applied, or may still be.
    #[error("no outcome within the time given; it may still take effect")]
    TimedOut,
    /// Too much is waiting already. Nothing was tried.
    #[error("too many commands are waiting")]
    Overloaded,
    /// There is no group of this number.
    #[error("no such group")]
    NoSuchGroup,
    /// The command is longer than [`MAX_COMMAND_BYTES`]. Nothing was tried.
    #[error("the command is too large")]
    TooLarge,
    /// This node has no replica of the group, and was asked for what only one can answer.
    #[error("this node has no replica of the group")]
    NoReplica,
    /// This node is being stopped. A command's outcome may be unknown.
    #[error("this node is stopping")]
    Stopping,
}

/// How one attempt ended.
pub(crate) enum Attempt<T> {
    Done(T),
    /// Another node leads, perhaps this one.
    NotLeader(Option<NodeId>),
    Failed(String),
}

fn not_leader<T>(forward: ForwardToLeader<TypeConfig>) -> Attempt<T> {
    Attempt::NotLeader(forward.leader_id)
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl Inner {
    pub(crate) async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        within: Duration,
    ) -> Result<Bytes, ProposeError> {
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge);
        }
        let started = Instant::now();
        let deadline = started + within;
        // A command as large as all the room there is goes alone.
        let permits = u32::try_from(command.len().clamp(1, self.config.proposal_bytes)).unwrap_or(u32::MAX);
        let room = timeout_at(deadline, self.proposal_room.acquire_many(permits)).await;
        let Ok(Ok(_room)) = room else {
            self.counters.proposal_overloaded();
            return Err(ProposeError::Overloaded);
        };
        let size = command.len();
        let outcome = self
            .until_done(group, deadline, |leader| self.try_propose(group, leader, command.clone(), deadline));
        let outcome = outcome.await;
        match &outcome {
            Ok(_) => self.counters.proposed(size, started.elapsed()),
            Err(ProposeError::TimedOut) => self.counters.proposal_timed_out(),
            Err(_) => {}
        }
        outcome
    }

    pub(crate) async fn query(
        &self,
        group: GroupId,
        query: Bytes,
        within: Duration,
    ) -> Result<Bytes, ProposeError> {
        let deadline = Instant::now() + within;
        let answer =
            self.until_done(group, deadline, |leader| self.try_query(group, leader, query.clone(), deadline));
        let answer = answer.await;
        self.counters.queried(answer.is_ok());
        answer
    }

    /// Repeats attempts, each at the node that seems to lead, until one is done.
    async fn until_done<Trying>(
        &self,
        group: GroupId,
        deadline: Instant,
        attempt: impl Fn(NodeId) -> Trying,
    ) -> Result<Bytes, ProposeError>
    where
        Trying: Future<Output = Attempt<Bytes>>,
    {
        if group.0 > self.config.partitions {
            return Err(ProposeError::NoSuchGroup);
        }
        let mut hint = None;
        let mut pause = FIRST_PAUSE;
        let mut turn = 0;
        for tried in 0usize.. {
            if self.stop.is_cancelled() {
                return Err(ProposeError::Stopping);
            }
            let known = hint.take().or_else(|| self.leader_of(group));
            // Without any idea whom to ask, a node without a replica asks all in turn. So does one with a replica from
            // time to time: its group may have gone elsewhere without it.
            let ask_others = match self.group(group) {
                Some(_) => tried % ASK_OTHERS_EVERY == ASK_OTHERS_EVERY - 1,
                None => known.is_none(),
            };
            let leader = if ask_others {
                turn += 1;
                self.any_node(turn).or(known)
            } else {
                known
            };
            if let Some(leader) = leader {
                match timeout_at(deadline, attempt(leader)).await {
                    Ok(Attempt::Done(answer)) => {
                        self.note_leader(group, Some(leader));
                        return Ok(answer);
                    }
                    Ok(Attempt::NotLeader(other)) => {
                        self.note_leader(group, other);
                        hint = other.filter(|other| *other != leader);
                    }
                    Ok(Attempt::Failed(reason)) => {
                        tracing::debug!(group = group.0, leader, %reason, "attempt failed");
                        self.note_leader(group, None);
                    }
                    Err(_) => return Err(ProposeError::TimedOut),
                }
                self.counters.proposal_retried();
            }
            if Instant::now() >= deadline {
                return Err(ProposeError::TimedOut);
            }
            // A first hint is followed at once, unless it only repeats what was tried.
            if hint.is_none() || tried > 0 {
                self.pause(group, leader, pause.min(deadline - Instant::now())).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        Err(ProposeError::TimedOut)
    }

    /// Each of the other nodes in turn.
    fn any_node(&self, turn: usize) -> Option<NodeId> {
        let topology = self.topology();
        let others: Vec<NodeId> =
            topology.ids().into_iter().filter(|node| *node != self.config.node).collect();
        others.get(turn.checked_rem(others.len())?).copied()
    }

    /// Brings this node's own replica up to what was acknowledged before the call.
    pub(crate) async fn catch_up(&self, group: GroupId, within: Duration) -> Result<(), ProposeError> {
        if group.0 > self.config.partitions {
            return Err(ProposeError::NoSuchGroup);
        }
        let deadline = Instant::now() + within;
        let held = self.group(group).ok_or(ProposeError::NoReplica)?;
        let held = &held;
        let attempt = |leader: NodeId| async move {
            let within = deadline.saturating_duration_since(Instant::now());
            let index = match leader == self.config.node {
                true => self.read_index_here(held, within).await,
                false => self.ask_read_index(group, leader, within).await,
            };
            match index {
                Attempt::Done(index) if held.wait_applied(index).await => Attempt::Done(Bytes::new()),
                Attempt::Done(_) => Attempt::Failed("the replica is being stopped".into()),
                Attempt::NotLeader(leader) => Attempt::NotLeader(leader),
                Attempt::Failed(reason) => Attempt::Failed(reason),
            }
        };
        tokio::select! {
            biased;
            () = held.stop.cancelled() => match self.stop.is_cancelled() {
                true => Err(ProposeError::Stopping),
                false => Err(ProposeError::NoReplica),
            },
            done = self.until_done(group, deadline, attempt) => done.map(drop),
        }
    }

    /// Waits, but not longer than until the group has another leader.
    async fn pause(&self, group: GroupId, tried: Option<NodeId>, pause: Duration) {
        let changed = async {
            match self.group(group) {
                Some(group) => {
                    let mut leader = group.leader.subscribe();
                    let other = |leader: &crate::group::Leader| leader.node.is_some() && leader.node != tried;
                    if leader.wait_for(other).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = changed => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn try_propose(
        &self,
        group: GroupId,
        leader: NodeId,
        command: Bytes,
        deadline: Instant,
    ) -> Attempt<Bytes> {
        let within = deadline.saturating_duration_since(Instant::now());
        match self.group(group) {
            Some(held) if leader == self.config.node => self.propose_here(&held, command, within).await,
            _ => self.forward(group, leader, Kind::Propose, command, within).await,
        }
    }

    async fn try_query(
        &self,
        group: GroupId,
        leader: NodeId,
        query: Bytes,
        deadline: Instant,
    ) -> Attempt<Bytes> {
        let within = deadline.saturating_duration_since(Instant::now());
        match self.group(group) {
            Some(held) if leader == self.config.node => self.query_here(&held, query, within).await,
            // A replica that is being filled may need long to have what is asked for.
            Some(held) if !held.is_joining() => match self.ask_read_index(group, leader, within).await {
                Attempt::Done(index) => self.query_at(&held, query, index).await,
                Attempt::NotLeader(leader) => Attempt::NotLeader(leader),
                Attempt::Failed(reason) => Attempt::Failed(reason),
            },
            _ => self.forward(group, leader, Kind::Query, query, within).await,
        }
    }

    /// There is something to do for a group: it must not be quiet.
    pub(crate) async fn rouse(&self, group: &Group) {
        group.quiet.touch();
        if group.quiet.is_asleep() {
            self.wake(group).await;
        }
    }

    /// Proposes to this node's own engine.
    pub(crate) async fn propose_here(
        &self,
        group: &Arc<Group>,
        command: Bytes,
        within: Duration,
    ) -> Attempt<Bytes> {
        if self.is_read_only() {
            return Attempt::Failed(READ_ONLY.into());
        }
        if group.level() < self.config.levels.min {
            // The first thing that happens to a group which is founded by a version that knows no lower level.
            return Attempt::Failed(
                "the group is about to be raised to a format level that is known here".into(),
            );
        }
        self.rouse(group).await;
        match timeout(within, group.raft.client_write(Command::Normal(command))).await {
            Ok(Ok(response)) => Attempt::Done(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => not_leader(forward),
            // Cut off by a new leader's log. If another replica kept it, it may still be committed: the command's id
            // makes the next attempt harmless.
            Ok(Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward)))) => not_leader(forward),
            Ok(Err(error)) => Attempt::Failed(error.to_string()),
            Err(_) => Attempt::Failed("not committed in time".into()),
        }
    }

    /// The index that a reader has to wait for, confirmed by a majority, if this node leads.
    pub(crate) async fn read_index_here(&self, group: &Arc<Group>, within: Duration) -> Attempt<u64> {
        self.rouse(group).await;
        if mutation::is(Mutation::ReadWithoutMajority) && group.leader.borrow().node == Some(self.config.node)
        {
            return Attempt::Done(group.applied.borrow().last.map_or(0, |last| last.index));
        }
        match timeout(within, group.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(Ok(linearizer)) => Attempt::Done(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                not_leader(forward)
            }
            Ok(Err(error)) => Attempt::Failed(error.to_string()),
            Err(_) => Attempt::Failed("no majority confirmed the leader in time".into()),
        }
    }

    /// Answers from this node's replica if it leads.
    pub(crate) async fn query_here(
        &self,
        group: &Arc<Group>,
        query: Bytes,
        within: Duration,
    ) -> Attempt<Bytes> {
        match self.read_index_here(group, within).await {
            Attempt::Done(index) => self.query_at(group, query, index).await,
            Attempt::NotLeader(leader) => Attempt::NotLeader(leader),
            Attempt::Failed(reason) => Attempt::Failed(reason),
        }
    }

    /// Answers from this node's replica once it has applied the entry.
    async fn query_at(&self, group: &Arc<Group>, query: Bytes, index: u64) -> Attempt<Bytes> {
        if !group.wait_applied(index).await {
            return Attempt::Failed("the replica is being stopped".into());
        }
        let (machine, group) = (self.machine.clone(), group.id);
        match offload(move || machine.query(group, query)).await {
            Ok(answer) => Attempt::Done(answer),
            Err(error) => Attempt::Failed(format!("query did not finish: {error}")),
        }
    }

    async fn ask_read_index(&self, group: GroupId, leader: NodeId, within: Duration) -> Attempt<u64> {
        let Some(link) = self.links.get(leader) else {
            return Attempt::Failed(format!("node {leader} is not configured"));
        };
        let mut client = match link.client() {
            Ok(client) => client,
            Err(reason) => return Attempt::Failed(reason),
        };
        let within = within.min(FORWARD_PATIENCE);
        let request = ReadIndexRequest { group: group.0, timeout_ms: milliseconds(within) };
        let reply = match self.while_leading(group, leader, timeout(within, client.read_index(request))).await
        {
            Some(Ok(Ok(reply))) => reply.into_inner(),
            Some(Ok(Err(status))) => return Attempt::Failed(link.failed(&status)),
            Some(Err(_)) => return Attempt::Failed(format!("no answer from node {leader}")),
            None => return Attempt::NotLeader(None),
        };
        match reply.outcome {
            Some(read_index_reply::Outcome::Index(index)) => Attempt::Done(index),
            Some(read_index_reply::Outcome::NotLeader(other)) => Attempt::NotLeader(other.leader),
            Some(read_index_reply::Outcome::Unavailable(reason)) => Attempt::Failed(reason),
            None => Attempt::Failed("an answer without outcome".into()),
        }
    }

    async fn forward(
        &self,
        group: GroupId,
        leader: NodeId,
        kind: Kind,
        payload: Bytes,
        within: Duration,
    ) -> Attempt<Bytes> {
        let Some(link) = self.links.get(leader) else {
            return Attempt::Failed(format!("node {leader} is not configured"));
        };
        self.counters.forwarded();
        let within = within.min(FORWARD_PATIENCE);
        let request =
            ForwardRequest { group: group.0, kind: kind.into(), payload, timeout_ms: milliseconds(within) };
        let reply = match self.while_leading(group, leader, timeout(within, link.forward(request))).await {
            Some(Ok(Ok(reply))) => reply,
            Some(Ok(Err(reason))) => return Attempt::Failed(reason),
            Some(Err(_)) => return Attempt::Failed(format!("no answer from node {leader}")),
            None => return Attempt::NotLeader(None),
        };
        match reply.outcome {
            Some(forward_reply::Outcome::Answer(answer)) => Attempt::Done(answer),
            Some(forward_reply::Outcome::NotLeader(other)) => Attempt::NotLeader(other.leader),
            Some(forward_reply::Outcome::Unavailable(reason)) => Attempt::Failed(reason),
            None => Attempt::Failed("an answer without outcome".into()),
        }
    }

    /// Runs a call to the leader, and gives it up when this node's own replica learns of another leader: the old one
    /// may be cut off and never answer.
    async fn while_leading<T>(
        &self,
        group: GroupId,
        leader: NodeId,
        call: impl Future<Output = T>,
    ) -> Option<T> {
        let Some(group) = self.group(group) else { return Some(call.await) };
        let mut view = group.leader.subscribe();
        let replaced = view.wait_for(|view| view.node.is_some_and(|node| node != leader));
        tokio::select! {
            biased;
            done = call => Some(done),
            _ = replaced => None,
        }
    }
}
