//! The peer service: what other nodes ask of this one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use openraft::raft::TransferLeaderRequest;
use quorumail_proto::peer::forward_request::Kind;
use quorumail_proto::peer::peer_server::Peer;
use quorumail_proto::peer::{
    Append, AppendAnswer, BodyReply, BodyRequest, ForwardReply, ForwardRequest, GroupCall, GroupReply,
    HelloReply, HelloRequest, LaneFrame, LaneFrames, LaneReplies, LaneReply, MembersReply, MembersRequest,
    NotLeader, PulseEcho, PulseFrame, RaiseReply, RaiseRequest, ReadIndexReply, ReadIndexRequest,
    ReplicaReply, ReplicaRequest, ReshapeReply, ReshapeRequest, SnapshotChunk, SnapshotReply, SurveyReply,
    SurveyRequest, forward_reply, lane_frame, lane_reply, read_index_reply,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::batches::Batches;
use crate::group::Group;
use crate::lane::SESSION_REQUESTS;
use crate::machine::GroupId;
use crate::node::{Inner, Writes};
use crate::propose::Attempt;
use crate::snapshot_in::Stream;
use crate::topology::{self, TopologyError};
use crate::types::{AppendRequest, AppendResult, TypeConfig, VoteRequest, VoteResponse};
use crate::wire::{self, FORMAT, SnapshotHead};

/// Answers waiting to be taken by one peer's stream.
const QUEUED_REPLIES: usize = 256;
/// Heartbeats of one peer being answered at once.
const HEARTBEATS_AT_ONCE: usize = 256;
/// Commands and queries of one peer being worked on at once. Those beyond it are refused, not held up: one group that
/// cannot go on must not stop the others.
const FORWARDED_AT_ONCE: usize = 4096;
/// Sessions of one stream: one a group and a few that are about to end.
const MAX_SESSIONS: usize = 4096;
/// Longest time another node may have us work on a forwarded command.
const MAX_FORWARD: Duration = Duration::from_secs(60);
/// What others are told while the log here may not grow.
pub(crate) const READ_ONLY: &str = "the disk of this node is full: it only reads";

/// The peer service of a node.
pub struct PeerService(pub(crate) Arc<Inner>);

impl PeerService {
    fn group(&self, group: u32) -> Result<Arc<Group>, Status> {
        self.0
            .group(GroupId(group))
            .ok_or_else(|| Status::not_found(format!("group {group} is not held here")))
    }
}

fn refused(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn answer(message: &impl serde::Serialize) -> Response<GroupReply> {
    Response::new(GroupReply { format: FORMAT, payload: wire::encode(message) })
}

fn decode<T: serde::de::DeserializeOwned>(call: &GroupCall) -> Result<T, Status> {
    wire::decode(call.format, &call.payload).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl Peer for PeerService {
    type LaneStream = BoxStream<'static, Result<LaneReplies, Status>>;
    type PulseStream = ReceiverStream<Result<PulseEcho, Status>>;
    type InstallSnapshotStream = ReceiverStream<Result<SnapshotReply, Status>>;

    async fn lane(
        &self,
        request: Request<Streaming<LaneFrames>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let (replies, queue) = mpsc::channel(QUEUED_REPLIES);
        let receiver = Receiver {
            node: self.0.clone(),
            replies,
            sessions: BTreeMap::new(),
            heartbeats: Arc::new(Semaphore::new(HEARTBEATS_AT_ONCE)),
            forwarded: Arc::new(Semaphore::new(FORWARDED_AT_ONCE)),
        };
        tokio::spawn(receiver.run(request.into_inner()));
        let replies = Batches::new(queue).map(|replies| Ok(LaneReplies { replies }));
        Ok(Response::new(replies.boxed()))
    }

    async fn pulse(
        &self,
        request: Request<Streaming<PulseFrame>>,
    ) -> Result<Response<Self::PulseStream>, Status> {
        let (echoes, queue) = mpsc::channel(1);
        tokio::spawn(crate::pulse::receive(self.0.clone(), request.into_inner(), echoes));
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn vote(&self, request: Request<GroupCall>) -> Result<Response<GroupReply>, Status> {
        let call = request.into_inner();
        let (group, vote) = (self.group(call.group)?, decode::<VoteRequest>(&call)?);
        self.check_vote(&group, &vote)?;
        if group.quiet.is_asleep() {
            self.0.wake(&group).await;
        }
        let response: VoteResponse = group.raft.vote(vote).await.map_err(refused)?;
        Ok(answer(&response))
    }

    async fn pre_vote(&self, request: Request<GroupCall>) -> Result<Response<GroupReply>, Status> {
        let call = request.into_inner();
        let (group, vote) = (self.group(call.group)?, decode::<VoteRequest>(&call)?);
        self.check_vote(&group, &vote)?;
        let lease = self.0.config.lease();
        let pulse_of = |leader: u64| self.0.links.get(leader).and_then(|link| link.pulse.heard());
        let leader = group.leader.borrow().node;
        let kept_quiet =
            group.quiet.follows().and_then(pulse_of).is_some_and(|pulse| pulse.elapsed() < lease);
        if kept_quiet || group.leader_is_back(lease, leader.and_then(pulse_of)) {
            return Err(refused("the leader is here"));
        }
        if group.quiet.is_asleep() {
            self.0.wake(&group).await;
        }
        let response: VoteResponse = group.raft.pre_vote(vote).await.map_err(refused)?;
        Ok(answer(&response))
    }

    async fn transfer_leader(&self, request: Request<GroupCall>) -> Result<Response<GroupReply>, Status> {
        let call = request.into_inner();
        let (group, transfer) =
            (self.group(call.group)?, decode::<TransferLeaderRequest<TypeConfig>>(&call)?);
        if *transfer.to_node_id() == self.0.config.node && (!self.0.takes_leads() || !group.log.is_proven()) {
            return Err(refused("this node takes no leads now"));
        }
        group.wake().await;
        let response = group.raft.handle_transfer_leader(transfer).await.map_err(refused)?;
        Ok(answer(&response))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("no chunk"))?;
        let group = self.group(first.group)?;
        let head: SnapshotHead = wire::decode(first.format, &first.meta)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if self.0.writes() == Writes::Nothing {
            return Err(Status::failed_precondition(READ_ONLY));
        }
        if !group.may_follow(head.vote.leader_id.term) {
            return Err(Status::failed_precondition(FORGETFUL));
        }
        self.0.reach(head.level).await.map_err(refused)?;
        let (replies, queue) = mpsc::channel(QUEUED_REPLIES);
        let stream = Stream { head, snapshot: first.snapshot, chunks, replies };
        self.0.run_until(group.stop.clone(), stream.receive(self.0.clone(), group));
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        let request = request.into_inner();
        let group = self.group(request.group)?;
        let within = Duration::from_millis(request.timeout_ms.into()).min(MAX_FORWARD);
        let outcome = match self.0.read_index_here(&group, within).await {
            Attempt::Done(index) => read_index_reply::Outcome::Index(index),
            Attempt::NotLeader(leader) => read_index_reply::Outcome::NotLeader(NotLeader { leader }),
            Attempt::Failed(reason) => read_index_reply::Outcome::Unavailable(reason),
        };
        Ok(Response::new(ReadIndexReply { outcome: Some(outcome) }))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let request = request.into_inner();
        let config = &self.0.config;
        if request.cluster != config.cluster {
            tracing::warn!(node = request.node, "a node of another cluster called");
            return Err(Status::failed_precondition("another cluster"));
        }
        self.0.refuse_unknown(request.level).map_err(Status::failed_precondition)?;
        self.0.note_levels(request.node, request.max_level);
        if let Some(told) = request.topology {
            let invalid = |error: TopologyError| Status::invalid_argument(error.to_string());
            self.0.adopt(topology::from_wire(told).map_err(invalid)?).map_err(invalid)?;
        }
        let topology = self.0.topology();
        let same_generation = topology.generation == request.generation;
        let differs = same_generation && topology.fingerprint() != request.fingerprint;
        Ok(Response::new(HelloReply {
            node: config.node,
            version: config.version.clone(),
            initialised: self.0.initialised(),
            generation: topology.generation,
            topology: (topology.generation > request.generation || differs)
                .then(|| topology::to_wire(&topology)),
            cluster: config.cluster.clone(),
            leaving: !self.0.takes_leads(),
            level: self.0.reached.level(),
            min_level: config.levels.min,
            max_level: config.levels.max,
            standings: self.0.standings(),
        }))
    }

    async fn survey(&self, request: Request<SurveyRequest>) -> Result<Response<SurveyReply>, Status> {
        if request.get_ref().cluster != self.0.config.cluster {
            return Err(Status::failed_precondition("another cluster"));
        }
        Ok(Response::new(self.0.survey_here()))
    }

    async fn reshape(&self, request: Request<ReshapeRequest>) -> Result<Response<ReshapeReply>, Status> {
        let step = self.0.reshape_here(request.into_inner()).await.map_err(refused)?;
        Ok(Response::new(ReshapeReply { step }))
    }

    async fn prepare(&self, request: Request<ReplicaRequest>) -> Result<Response<ReplicaReply>, Status> {
        let request = request.into_inner();
        self.0.prepare(GroupId(request.group), request.generation).await.map_err(refused)?;
        Ok(Response::new(ReplicaReply {}))
    }

    async fn forget(&self, request: Request<ReplicaRequest>) -> Result<Response<ReplicaReply>, Status> {
        let request = request.into_inner();
        self.0.forget(GroupId(request.group), request.generation).await.map_err(refused)?;
        Ok(Response::new(ReplicaReply {}))
    }

    async fn raise(&self, request: Request<RaiseRequest>) -> Result<Response<RaiseReply>, Status> {
        self.0.raise_here(request.into_inner()).await.map_err(refused)?;
        Ok(Response::new(RaiseReply {}))
    }

    async fn members(&self, request: Request<MembersRequest>) -> Result<Response<MembersReply>, Status> {
        let group = self.group(request.into_inner().group)?;
        let members = self.0.members_here(&group).await.map_err(refused)?;
        Ok(Response::new(MembersReply { members }))
    }

    async fn fetch_body(&self, request: Request<BodyRequest>) -> Result<Response<BodyReply>, Status> {
        let BodyRequest { group, index } = request.into_inner();
        let group = self.group(group)?.id;
        let body = self.0.body_here(group, index).await.map_err(Status::data_loss)?;
        Ok(Response::new(BodyReply { body }))
    }
}

/// Why an append or a snapshot is refused by a replica that has lost its disk.
const FORGETFUL: &str = "this replica does not remember enough to know that this leader is the current one";

impl PeerService {
    fn check_vote(&self, group: &Group, vote: &VoteRequest) -> Result<(), Status> {
        if group.may_vote_for(vote) {
            return Ok(());
        }
        self.0.counters.vote_refused();
        Err(refused("this replica is not caught up yet and does not vote"))
    }
}

impl Inner {
    /// Does what another node could not do itself.
    async fn serve(&self, request: ForwardRequest) -> forward_reply::Outcome {
        let Some(group) = self.group(GroupId(request.group)) else {
            // The group has gone elsewhere, or was never here: the caller asks another node.
            return forward_reply::Outcome::NotLeader(NotLeader { leader: None });
        };
        let within = Duration::from_millis(request.timeout_ms.into()).min(MAX_FORWARD);
        let attempt = match request.kind() {
            Kind::Propose => self.propose_here(&group, request.payload, within).await,
            Kind::Query => self.query_here(&group, request.payload, within).await,
            Kind::Unspecified => Attempt::Failed("neither a command nor a query".to_owned()),
        };
        match attempt {
            Attempt::Done(answer) => forward_reply::Outcome::Answer(answer),
            Attempt::NotLeader(leader) => forward_reply::Outcome::NotLeader(NotLeader { leader }),
            Attempt::Failed(reason) => forward_reply::Outcome::Unavailable(reason),
        }
    }
}

/// The receiving end of one lane.
struct Receiver {
    node: Arc<Inner>,
    replies: mpsc::Sender<LaneReply>,
    sessions: BTreeMap<u64, mpsc::Sender<AppendRequest>>,
    heartbeats: Arc<Semaphore>,
    forwarded: Arc<Semaphore>,
}

impl Receiver {
    async fn run(mut self, mut batches: Streaming<LaneFrames>) {
        loop {
            let batch = tokio::select! {
                biased;
                () = self.node.stop.cancelled() => return,
                () = self.replies.closed() => return,
                batch = batches.message() => batch,
            };
            // The end of the stream drops the sessions, which ends the engine's side of them.
            let Ok(Some(batch)) = batch else { return };
            for LaneFrame { session, request } in batch.frames {
                if let Err(reason) = self.take(session, request).await {
                    self.sessions.remove(&session);
                    if self.replies.send(closed(session, reason)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn take(&mut self, session: u64, request: Option<lane_frame::Request>) -> Result<(), String> {
        match request {
            Some(lane_frame::Request::Append(append)) => {
                let (group, request) = self.understand(append).await?;
                self.append(session, group, request)
            }
            Some(lane_frame::Request::Heartbeat(append)) => {
                let (group, request) = self.understand(append).await?;
                let turn =
                    self.heartbeats.clone().acquire_owned().await.map_err(|error| error.to_string())?;
                let replies = self.replies.clone();
                tokio::spawn(async move {
                    let _turn = turn;
                    // The sender has gone if this fails, and nobody waits for the answer.
                    let _ = replies.send(single(&group, session, request).await).await;
                });
                Ok(())
            }
            Some(lane_frame::Request::Forward(request)) => {
                let turn = self.forwarded.clone().try_acquire_owned();
                let turn = turn.map_err(|_| "too many commands are under way".to_owned())?;
                let (node, replies) = (self.node.clone(), self.replies.clone());
                tokio::spawn(async move {
                    let _turn = turn;
                    let outcome = tokio::select! {
                        biased;
                        () = replies.closed() => return,
                        outcome = node.serve(request) => outcome,
                    };
                    let reply = lane_reply::Answer::Forward(ForwardReply { outcome: Some(outcome) });
                    // As above.
                    let _ = replies.send(LaneReply { session, answer: Some(reply) }).await;
                });
                Ok(())
            }
            Some(lane_frame::Request::End(_)) => {
                self.sessions.remove(&session);
                Ok(())
            }
            None => Err("a request of an unknown kind".to_owned()),
        }
    }

    /// Checks that the group's replica here may take an append request, and prepares it for one.
    async fn understand(&self, append: Append) -> Result<(Arc<Group>, AppendRequest), String> {
        let group = GroupId(append.group);
        let group = self.node.group(group).ok_or_else(|| format!("group {} is not held here", group.0))?;
        if self.node.writes() == Writes::Nothing && !append.commands.is_empty() {
            return Err(READ_ONLY.into());
        }
        self.node.counters.append_received(append.commands.iter().map(bytes::Bytes::len).sum());
        let request = wire::decode_append(append).map_err(|error| error.to_string())?;
        if !group.may_follow(request.vote.leader_id.term) {
            return Err(FORGETFUL.into());
        }
        if let Some(level) = wire::level_in(&request) {
            self.node.reach(level).await?;
        }
        group.observe_append(&request);
        if group.quiet.is_asleep() {
            group.wake_by_append(!request.entries.is_empty()).await;
        }
        Ok((group, request))
    }

    fn append(&mut self, session: u64, group: Arc<Group>, request: AppendRequest) -> Result<(), String> {
        if !self.sessions.contains_key(&session) {
            if self.sessions.len() >= MAX_SESSIONS {
                return Err("too many sessions".into());
            }
            let (requests, input) = mpsc::channel(SESSION_REQUESTS + 1);
            tokio::spawn(serve_session(group, session, input, self.replies.clone()));
            self.sessions.insert(session, requests);
        }
        let requests = &self.sessions[&session];
        // The sender never has more requests in flight than there is room, unless the session is over already.
        requests.try_send(request).map_err(|error| format!("the session does not take the request: {error}"))
    }
}

fn closed(session: u64, reason: String) -> LaneReply {
    LaneReply { session, answer: Some(lane_reply::Answer::Closed(reason)) }
}

fn reply(session: u64, result: &AppendResult) -> LaneReply {
    let answer = AppendAnswer { format: FORMAT, payload: wire::encode_append_result(result) };
    LaneReply { session, answer: Some(lane_reply::Answer::Append(answer)) }
}

async fn single(group: &Group, session: u64, request: AppendRequest) -> LaneReply {
    let previous = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.log_id).or(previous);
    match group.raft.append_entries(request).await {
        Ok(response) if response.is_conflict() && previous.is_none() => {
            closed(session, "conflict with nothing".into())
        }
        Ok(response) => reply(session, &response.into_stream_result(previous, last)),
        Err(error) => closed(session, error.to_string()),
    }
}

async fn serve_session(
    group: Arc<Group>,
    session: u64,
    input: mpsc::Receiver<AppendRequest>,
    replies: mpsc::Sender<LaneReply>,
) {
    let mut results = pin!(group.raft.stream_append(ReceiverStream::new(input)));
    while let Some(result) = results.next().await {
        let (reply, over) = match result {
            Ok(result) => (reply(session, &result), result.is_err()),
            Err(fatal) => (closed(session, fatal.to_string()), true),
        };
        if replies.send(reply).await.is_err() || over {
            return;
        }
    }
}
