//! The peer service: what other nodes ask of this one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use openraft::raft::TransferLeaderRequest;
use quorumail_proto::peer::append_frame::Mode;
use quorumail_proto::peer::forward_request::Kind;
use quorumail_proto::peer::peer_server::Peer;
use quorumail_proto::peer::{
    AppendFrame, AppendReply, BodyReply, BodyRequest, ForwardReply, ForwardRequest, GroupCall, GroupReply,
    HelloReply, HelloRequest, MembersReply, MembersRequest, NotLeader, PulseEcho, PulseFrame, ReadIndexReply,
    ReadIndexRequest, ReplicaReply, ReplicaRequest, ReshapeReply, ReshapeRequest, SnapshotChunk, SurveyReply,
    SurveyRequest, forward_reply, read_index_reply,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::adapter::SnapshotData;
use crate::group::Group;
use crate::lane::SESSION_REQUESTS;
use crate::machine::{GroupId, SnapshotWriter};
use crate::node::{Inner, Writes};
use crate::propose::Attempt;
use crate::runtime::offload;
use crate::topology::{self, TopologyError};
use crate::types::{AppendRequest, AppendResult, Snapshot, TypeConfig, VoteRequest, VoteResponse};
use crate::wire::{self, FORMAT, SnapshotHead};

/// Answers waiting to be taken by one peer's stream.
const QUEUED_REPLIES: usize = 256;
/// Heartbeats of one peer being answered at once.
const HEARTBEATS_AT_ONCE: usize = 256;
/// Sessions of one stream: one a group and a few that are about to end.
const MAX_SESSIONS: usize = 4096;
/// A snapshot of which no chunk has come for so long is given up.
const SNAPSHOT_STALL: Duration = Duration::from_secs(60);
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
    type AppendStream = ReceiverStream<Result<AppendReply, Status>>;
    type PulseStream = ReceiverStream<Result<PulseEcho, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (replies, queue) = mpsc::channel(QUEUED_REPLIES);
        let receiver = Receiver {
            node: self.0.clone(),
            replies,
            sessions: BTreeMap::new(),
            heartbeats: Arc::new(Semaphore::new(HEARTBEATS_AT_ONCE)),
        };
        tokio::spawn(receiver.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(queue)))
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
    ) -> Result<Response<GroupReply>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("no chunk"))?;
        let group = self.group(first.group)?;
        let head: SnapshotHead = wire::decode(first.format, &first.meta)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if self.0.writes() == Writes::Nothing {
            return Err(refused(READ_ONLY));
        }
        if !group.may_follow(head.vote.leader_id.term) {
            return Err(refused(FORGETFUL));
        }
        let _turn =
            group.installing.try_acquire().map_err(|_| refused("a snapshot is already being received"))?;
        let writer = self.0.receive_snapshot(group.id, chunks).await?;
        let snapshot = Snapshot { meta: head.meta, snapshot: SnapshotData::Received(writer) };
        let response = group.raft.install_full_snapshot(head.vote, snapshot).await.map_err(refused)?;
        Ok(answer(&response))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<ForwardReply>, Status> {
        let request = request.into_inner();
        let Some(group) = self.0.group(GroupId(request.group)) else {
            // The group has gone elsewhere, or was never here: the caller asks another node.
            let nobody = forward_reply::Outcome::NotLeader(NotLeader { leader: None });
            return Ok(Response::new(ForwardReply { outcome: Some(nobody) }));
        };
        let group = &group;
        let within = Duration::from_millis(request.timeout_ms.into()).min(MAX_FORWARD);
        let attempt = match request.kind() {
            Kind::Propose => self.0.propose_here(group, request.payload, within).await,
            Kind::Query => self.0.query_here(group, request.payload, within).await,
            Kind::Unspecified => return Err(Status::invalid_argument("neither a command nor a query")),
        };
        let outcome = match attempt {
            Attempt::Done(answer) => forward_reply::Outcome::Answer(answer),
            Attempt::NotLeader(leader) => forward_reply::Outcome::NotLeader(NotLeader { leader }),
            Attempt::Failed(reason) => forward_reply::Outcome::Unavailable(reason),
        };
        Ok(Response::new(ForwardReply { outcome: Some(outcome) }))
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
        if let Some(told) = request.topology {
            let invalid = |error: TopologyError| Status::invalid_argument(error.to_string());
            self.0.adopt(topology::from_wire(told).map_err(invalid)?).map_err(invalid)?;
        }
        let topology = self.0.topology();
        Ok(Response::new(HelloReply {
            node: config.node,
            version: config.version.clone(),
            initialised: self.0.initialised(),
            generation: topology.generation,
            topology: (topology.generation > request.generation).then(|| topology::to_wire(&topology)),
            cluster: config.cluster.clone(),
            leaving: !self.0.takes_leads(),
            standings: self.0.groups().iter().map(|group| group.standing()).collect(),
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
    /// Takes the chunks of a snapshot into the state machine's writer.
    async fn receive_snapshot(
        &self,
        group: GroupId,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<Box<dyn SnapshotWriter>, Status> {
        let machine = self.machine.clone();
        let mut writer = offload(move || machine.install(group)).await.map_err(refused)?.map_err(refused)?;
        let stalled = |_| refused(format!("no chunk of the snapshot for {SNAPSHOT_STALL:?}"));
        while let Some(chunk) = timeout(SNAPSHOT_STALL, chunks.message()).await.map_err(stalled)?? {
            if chunk.data.is_empty() {
                return Ok(writer);
            }
            let write = offload(move || writer.write(chunk.data).map(|()| writer));
            writer = write.await.map_err(refused)?.map_err(refused)?;
        }
        Err(refused("the snapshot was cut off"))
    }
}

/// The receiving end of one stream of append requests.
struct Receiver {
    node: Arc<Inner>,
    replies: mpsc::Sender<Result<AppendReply, Status>>,
    sessions: BTreeMap<u64, mpsc::Sender<AppendRequest>>,
    heartbeats: Arc<Semaphore>,
}

impl Receiver {
    async fn run(mut self, mut frames: Streaming<AppendFrame>) {
        loop {
            let frame = tokio::select! {
                biased;
                () = self.node.stop.cancelled() => return,
                () = self.replies.closed() => return,
                frame = frames.message() => frame,
            };
            // The end of the stream drops the sessions, which ends the engine's side of them.
            let Ok(Some(frame)) = frame else { return };
            let session = frame.session;
            if let Err(reason) = self.take(frame).await {
                self.sessions.remove(&session);
                if self.replies.send(Ok(closed(session, reason))).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn take(&mut self, frame: AppendFrame) -> Result<(), String> {
        let (session, mode) = (frame.session, frame.mode());
        if mode == Mode::End {
            self.sessions.remove(&session);
            return Ok(());
        }
        let group = GroupId(frame.group);
        let group = self.node.group(group).ok_or_else(|| format!("group {} is not held here", group.0))?;
        if self.node.writes() == Writes::Nothing && !frame.commands.is_empty() {
            return Err(READ_ONLY.into());
        }
        self.node.counters.append_received(frame.commands.iter().map(bytes::Bytes::len).sum());
        let request = wire::decode_append(frame).map_err(|error| error.to_string())?;
        if !group.may_follow(request.vote.leader_id.term) {
            return Err(FORGETFUL.into());
        }
        group.observe_append(&request);
        if group.quiet.is_asleep() {
            group.wake_by_append(!request.entries.is_empty()).await;
        }
        if mode == Mode::Single {
            let turn = self.heartbeats.clone().acquire_owned().await.map_err(|error| error.to_string())?;
            let replies = self.replies.clone();
            tokio::spawn(async move {
                let _turn = turn;
                // The sender has gone if this fails, and nobody waits for the answer.
                let _ = replies.send(Ok(single(&group, session, request).await)).await;
            });
            return Ok(());
        }
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

fn closed(session: u64, reason: String) -> AppendReply {
    AppendReply { session, format: FORMAT, payload: bytes::Bytes::new(), closed: reason }
}

fn reply(session: u64, result: &AppendResult) -> AppendReply {
    AppendReply {
        session,
        format: FORMAT,
        payload: wire::encode_append_result(result),
        closed: String::new(),
    }
}

async fn single(group: &Group, session: u64, request: AppendRequest) -> AppendReply {
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
    replies: mpsc::Sender<Result<AppendReply, Status>>,
) {
    let mut results = pin!(group.raft.stream_append(ReceiverStream::new(input)));
    while let Some(result) = results.next().await {
        let (reply, over) = match result {
            Ok(result) => (reply(session, &result), result.is_err()),
            Err(fatal) => (closed(session, fatal.to_string()), true),
        };
        if replies.send(Ok(reply)).await.is_err() || over {
            return;
        }
    }
}
