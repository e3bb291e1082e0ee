//! How the engine reaches other nodes: appends over the shared lanes, everything else as calls of its own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::RaftNetworkFactory;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{ReplicationClosed, StreamingError};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse};
use parking_lot::{Mutex, RwLock};
use quorumail_proto::peer::peer_client::PeerClient;
use quorumail_proto::peer::{ForwardReply, ForwardRequest, GroupCall, LaneFrame, lane_frame, lane_reply};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::adapter::SnapshotData;
use crate::config::{Connector, Peer};
use crate::lane::{Lane, SESSION_REQUESTS, Session, client, status_text};
use crate::log::PURGED;
use crate::machine::{GroupId, NodeId, StateMachine};
use crate::metrics::Counters;
use crate::pulse::PeerPulse;
use crate::snapshot_out::{self, Sending};
use crate::types::{
    AppendRequest, AppendResult, RpcError, Snapshot, TypeConfig, Unreachable, Vote, VoteRequest, VoteResponse,
};
use crate::unreadable::Unreadable;
use crate::wire::{self, FORMAT};

/// How long a session waits for an answer before it is taken as stuck.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a vote or a transfer may take.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause before the engine talks again to a peer that could not be reached: constant, because a peer that comes
/// back must be back at once.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Everything needed to talk to one peer.
pub(crate) struct Link {
    pub(crate) peer: Peer,
    connector: Arc<dyn Connector>,
    counters: Arc<Counters>,
    log: Lane,
    heartbeats: Lane,
    commands: Lane,
    channel: Mutex<Option<Channel>>,
    /// Whether the peer's process lives.
    pub(crate) pulse: PeerPulse,
    /// Whether pulses to it have been started.
    pulsing: AtomicBool,
    /// Cancelled when the peer is no part of the cluster any more, and when the node stops.
    pub(crate) stop: CancellationToken,
}

impl Link {
    fn new(
        peer: Peer,
        connector: Arc<dyn Connector>,
        counters: Arc<Counters>,
        stop: CancellationToken,
    ) -> Link {
        Link {
            log: Lane::new(peer.clone(), connector.clone(), counters.clone()),
            heartbeats: Lane::new(peer.clone(), connector.clone(), counters.clone()),
            commands: Lane::new(peer.clone(), connector.clone(), counters.clone()),
            channel: Mutex::new(None),
            pulse: PeerPulse::default(),
            pulsing: AtomicBool::new(false),
            stop,
            peer,
            connector,
            counters,
        }
    }

    /// A client over the channel for calls; connects on use.
    pub(crate) fn client(&self) -> Result<PeerClient<Channel>, String> {
        let mut channel = self.channel.lock();
        if channel.is_none() {
            *channel = Some(self.connector.channel(&self.peer).map_err(|error| error.to_string())?);
        }
        Ok(client(channel.clone().expect("was just set")))
    }

    /// Has the peer propose a command or answer a query.
    pub(crate) async fn forward(&self, request: ForwardRequest) -> Result<ForwardReply, String> {
        let _room = self.commands.room(request.payload.len()).await;
        let mut session = self.commands.session(false).await?;
        let request = lane_frame::Request::Forward(request);
        let frame = LaneFrame { session: session.id, request: Some(request) };
        let broke = || "the stream broke".to_owned();
        session.frames().send(frame).await.map_err(|_| broke())?;
        match session.replies.recv().await.ok_or_else(broke)?? {
            lane_reply::Answer::Forward(reply) => Ok(reply),
            _ => Err("an answer to something else".to_owned()),
        }
    }

    /// Answers true once: whoever gets it starts the pulses.
    pub(crate) fn begin_pulse(&self) -> bool {
        !self.pulsing.swap(true, Ordering::AcqRel)
    }

    /// A client over a channel of its own; connects on use.
    pub(crate) fn fresh_client(&self) -> Result<PeerClient<Channel>, String> {
        self.connector.channel(&self.peer).map(client).map_err(|error| error.to_string())
    }

    /// Notes a failed call. After a failure of the transport the next call asks for a new channel, and so takes up
    /// renewed certificates and a changed address.
    pub(crate) fn failed(&self, status: &tonic::Status) -> String {
        if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown) {
            self.counters.peer_failed();
            self.channel.lock().take();
        }
        status_text(status)
    }
}

/// The links to all peers.
pub(crate) struct Links {
    links: RwLock<BTreeMap<NodeId, Arc<Link>>>,
    stop: CancellationToken,
    connector: Arc<dyn Connector>,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sending: Sending,
    pub(crate) unreadable: Arc<Unreadable>,
}

impl Links {
    pub(crate) fn new(
        node: NodeId,
        peers: &[Peer],
        connector: Arc<dyn Connector>,
        machine: Arc<dyn StateMachine>,
        counters: Arc<Counters>,
        sending: Sending,
        stop: CancellationToken,
    ) -> Links {
        let unreadable = Arc::new(Unreadable::new(counters.clone()));
        let links =
            Links { links: RwLock::default(), connector, machine, counters, sending, unreadable, stop };
        links.set(node, peers);
        links
    }

    /// Makes links to the nodes that there are now; those whose address has stayed are kept as they are.
    pub(crate) fn set(&self, node: NodeId, peers: &[Peer]) {
        let mut links = self.links.write();
        links.retain(|id, link| {
            let stays = peers.iter().any(|peer| peer.id == *id && peer.address == link.peer.address);
            if !stays {
                link.stop.cancel();
            }
            stays
        });
        for peer in peers.iter().filter(|peer| peer.id != node) {
            let new = || {
                let stop = self.stop.child_token();
                Arc::new(Link::new(peer.clone(), self.connector.clone(), self.counters.clone(), stop))
            };
            links.entry(peer.id).or_insert_with(new);
        }
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<Arc<Link>> {
        self.links.read().get(&node).cloned()
    }

    /// Bytes of commands sent to all peers and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.links.read().values().map(|link| link.log.in_flight()).sum()
    }

    /// Lets the next pulses to all peers go now.
    pub(crate) fn hurry(&self) {
        self.links.read().values().for_each(|link| link.pulse.hurry.notify_one());
    }

    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.links.read().values().cloned().collect()
    }
}

/// Makes the engine's clients of one group.
pub(crate) struct Factory {
    pub(crate) group: GroupId,
    pub(crate) links: Arc<Links>,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, _node: &openraft::EmptyNode) -> Network {
        Network { group: self.group, target, links: self.links.clone(), heartbeat: false }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &openraft::EmptyNode) -> Network {
        Network { group: self.group, target, links: self.links.clone(), heartbeat: true }
    }
}

/// A client of one group to one peer.
pub(crate) struct Network {
    group: GroupId,
    target: NodeId,
    links: Arc<Links>,
    heartbeat: bool,
}

fn unreachable(reason: impl ToString) -> RpcError {
    RpcError::Unreachable(Unreachable::from_string(reason))
}

#[derive(Clone, Copy)]
enum Call {
    Vote,
    PreVote,
    TransferLeader,
}

impl Network {
    fn link(&self) -> Result<Arc<Link>, RpcError> {
        self.links
            .get(self.target)
            .ok_or_else(|| unreachable(format!("node {} is not configured", self.target)))
    }

    async fn call<Answer: serde::de::DeserializeOwned>(
        &self,
        call: Call,
        request: &impl serde::Serialize,
    ) -> Result<Answer, RpcError> {
        let link = self.link()?;
        let mut client = link.client().map_err(unreachable)?;
        let request = GroupCall { group: self.group.0, format: FORMAT, payload: wire::encode(request) };
        let answer = async {
            match call {
                Call::Vote => client.vote(request).await,
                Call::PreVote => client.pre_vote(request).await,
                Call::TransferLeader => client.transfer_leader(request).await,
            }
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, answer)
            .await
            .map_err(|_| unreachable(format!("no answer within {CALL_TIMEOUT:?}")))?
            .map_err(|status| unreachable(link.failed(&status)))?
            .into_inner();
        wire::decode(answer.format, &answer.payload).map_err(unreachable)
    }
}

impl NetBackoff<TypeConfig> for Network {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_PAUSE)))
    }
}

impl NetVote<TypeConfig> for Network {
    async fn vote(&mut self, rpc: VoteRequest, _option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.call(Call::Vote, &rpc).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest, _option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.call(Call::PreVote, &rpc).await
    }
}

impl NetTransferLeader<TypeConfig> for Network {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        self.call(Call::TransferLeader, &req).await
    }
}

/// A request that has been sent: what it holds is freed when it is answered.
struct InFlight {
    _room: Option<OwnedSemaphorePermit>,
}

/// The answers of a session, in order.
struct Answers {
    in_flight: mpsc::Receiver<InFlight>,
    session: Session,
    timeout: Duration,
    _pump: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answers {
    /// The answer to the oldest request; none once there are no more requests (heartbeats, too, end like this).
    async fn next(&mut self) -> Option<Result<AppendResult, RpcError>> {
        let _answered = self.in_flight.recv().await?;
        let reply = match tokio::time::timeout(self.timeout, self.session.replies.recv()).await {
            Ok(Some(reply)) => reply,
            Ok(None) => Err("the stream broke".to_owned()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        };
        let decode = |answer| match answer {
            lane_reply::Answer::Append(answer) => {
                wire::decode_append_result(answer.format, &answer.payload).map_err(|error| error.to_string())
            }
            _ => Err("an answer to something else".to_owned()),
        };
        let answer = reply.and_then(decode);
        if let Err(reason) = &answer {
            tracing::debug!(session = self.session.id, %reason, "append session ends");
        }
        Some(answer.map_err(unreachable))
    }
}

/// Sends what the engine produces, as fast as the window allows, until it has no more, or what it would send is purged, or
/// the stream breaks. Runs in the scope of [`PURGED`].
async fn pump<S>(
    mut input: S,
    (session, frames): (u64, mpsc::Sender<LaneFrame>),
    group: GroupId,
    link: Arc<Link>,
    heartbeat: bool,
    in_flight: mpsc::Sender<InFlight>,
) where
    S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
{
    let kind = if heartbeat { lane_frame::Request::Heartbeat } else { lane_frame::Request::Append };
    while let Some(request) = input.next().await {
        // There is nothing to go on with from here. The session ends without an error, which would have the engine give up
        // whatever it has begun since, such as a snapshot; it goes on with that.
        if PURGED.with(Cell::take) {
            tracing::debug!(session, after = ?request.prev_log_id, "what was to be sent has been purged");
            return;
        }
        let (append, bytes) = wire::encode_append(group.0, request);
        let room = if heartbeat { None } else { Some(link.log.room(bytes).await) };
        // Queued before it is sent: its answer, or the news that there will be none, finds it there.
        if in_flight.send(InFlight { _room: room }).await.is_err() {
            return;
        }
        link.counters.append_sent(bytes);
        if frames.send(LaneFrame { session, request: Some(kind(append)) }).await.is_err() {
            return;
        }
    }
}

impl NetStreamAppend<TypeConfig> for Network {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
    {
        let heartbeat = self.heartbeat;
        let timeout = if heartbeat { option.hard_ttl() } else { REPLY_TIMEOUT };
        Box::pin(async move {
            let opened = async {
                let link = self.link()?;
                let lane = if heartbeat { &link.heartbeats } else { &link.log };
                let session = lane.session(!heartbeat).await.map_err(unreachable)?;
                Ok((link, session))
            };
            let (link, session) = match opened.await {
                Ok(opened) => opened,
                Err(error) => {
                    // The engine takes its own pause only when it asks for the next request, which it has not done.
                    if !heartbeat {
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    return Err(error);
                }
            };
            let (sent, in_flight) = mpsc::channel(SESSION_REQUESTS);
            let to = (session.id, session.frames());
            let pump = pump(input, to, self.group, link.clone(), heartbeat, sent);
            let pump = tokio::spawn(PURGED.scope(Cell::new(false), pump));
            let answers = Answers { in_flight, session, timeout, _pump: AbortOnDrop(pump) };
            let answers = futures::stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                let answer = answers.next().await?;
                let go_on = matches!(answer, Ok(Ok(_)));
                Some((answer, go_on.then_some(answers)))
            });
            Ok(Box::pin(answers) as BoxStream<'s, _>)
        })
    }
}

impl NetSnapshot<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        _snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let link = self.link()?;
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = snapshot_out::send(&self.links, &link, self.group, vote) => {
                Ok(sent.map_err(unreachable)?)
            }
        }
    }
}
