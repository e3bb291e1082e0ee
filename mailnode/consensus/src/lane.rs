//! One ordered stream of requests to one peer, shared by all groups.
//!
//! Every peer has three lanes: the log's and the one for forwarded commands, each bounded by a window of bytes in
//! flight, and one for heartbeats, so that they do not queue behind large bodies. Requests of one session stay in order; sessions do not wait for each other
//! except for room in the window. A lane that breaks ends all its sessions at once; the next session reconnects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use quorumail_proto::peer::peer_client::PeerClient;
use quorumail_proto::peer::{EndOfSession, LaneFrame, LaneFrames, LaneReply, lane_frame, lane_reply};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::batches::Batches;
use crate::config::{Connector, Peer};
use crate::metrics::Counters;
use crate::wire::MAX_MESSAGE_BYTES;

/// Bytes of commands sent to one peer and not yet answered. A larger request goes alone.
const WINDOW_BYTES: usize = 32 << 20;
/// Requests of one session sent and not yet answered; the receiver holds room for as many.
pub(crate) const SESSION_REQUESTS: usize = 32;
/// Frames that wait for the transport to take the next batch.
const QUEUED_FRAMES: usize = 64;
/// How long opening a stream may take, the connection included.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1500);
/// After a failure, other sessions that want to connect are told of it for this long instead of trying themselves.
const FAILURE_MEMORY: Duration = Duration::from_millis(50);

/// A gRPC client of a peer with the message limits set.
pub(crate) fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// What comes back in a session: an answer, or why there will be none.
pub(crate) type SessionReply = Result<lane_reply::Answer, String>;

type Sessions = Mutex<Option<BTreeMap<u64, mpsc::Sender<SessionReply>>>>;

/// A stream that is up, or was.
#[derive(Debug)]
pub(crate) struct Stream {
    frames: mpsc::Sender<LaneFrame>,
    /// None once the stream is broken.
    sessions: Sessions,
    next_session: AtomicU64,
    broken: CancellationToken,
}

impl Stream {
    fn break_off(&self) {
        self.broken.cancel();
        // Dropping the senders tells every session.
        self.sessions.lock().take();
    }

    fn dispatch(&self, reply: LaneReply) {
        let mut sessions = self.sessions.lock();
        let Some(sessions) = sessions.as_mut() else { return };
        let message = match reply.answer {
            Some(lane_reply::Answer::Closed(reason)) => Err(reason),
            Some(answer) => Ok(answer),
            None => Err("an answer without content".to_owned()),
        };
        let closed = message.is_err();
        let Some(session) = sessions.get(&reply.session) else { return };
        // A session never has more unanswered requests than its channel has room for; a peer that answers more
        // often than it was asked loses the session.
        if session.try_send(message).is_err() || closed {
            sessions.remove(&reply.session);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    stream: Option<Arc<Stream>>,
    failed: Option<(Instant, String)>,
}

/// The way to one peer.
pub(crate) struct Lane {
    peer: Peer,
    connector: Arc<dyn Connector>,
    counters: Arc<Counters>,
    window: Arc<Semaphore>,
    state: tokio::sync::Mutex<State>,
}

impl Lane {
    pub(crate) fn new(peer: Peer, connector: Arc<dyn Connector>, counters: Arc<Counters>) -> Lane {
        let window = Arc::new(Semaphore::new(WINDOW_BYTES));
        Lane { peer, connector, counters, window, state: tokio::sync::Mutex::default() }
    }

    /// Room for a request of this size in the window; held until the request is answered.
    pub(crate) async fn room(&self, bytes: usize) -> tokio::sync::OwnedSemaphorePermit {
        let permits = u32::try_from(bytes.clamp(1, WINDOW_BYTES)).expect("the window is smaller than 4 GiB");
        self.window.clone().acquire_many_owned(permits).await.expect("the window is never closed")
    }

    /// Bytes of commands sent and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        WINDOW_BYTES - self.window.available_permits()
    }

    /// Begins a session, one that the peer keeps for several requests or one for a single request; connects if there
    /// is no stream.
    pub(crate) async fn session(&self, kept: bool) -> Result<Session, String> {
        let mut state = self.state.lock().await;
        if let Some(stream) = &state.stream {
            if let Some(session) = Session::begin(stream, kept) {
                return Ok(session);
            }
            state.stream = None;
        }
        if let Some((when, reason)) = &state.failed
            && when.elapsed() < FAILURE_MEMORY
        {
            return Err(reason.clone());
        }
        let opened = match tokio::time::timeout(OPEN_TIMEOUT, self.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("no stream within {OPEN_TIMEOUT:?}")),
        };
        match opened {
            Ok(stream) => {
                state.failed = None;
                let session = Session::begin(&stream, kept).ok_or("the stream broke at once");
                state.stream = Some(stream);
                Ok(session?)
            }
            Err(reason) => {
                self.counters.peer_failed();
                state.failed = Some((Instant::now(), reason.clone()));
                Err(reason)
            }
        }
    }

    async fn open(&self) -> Result<Arc<Stream>, String> {
        let channel = self.connector.channel(&self.peer).map_err(|error| error.to_string())?;
        let (frames, queue) = mpsc::channel(QUEUED_FRAMES);
        let batches = Batches::new(queue).map(|frames| LaneFrames { frames });
        let replies = client(channel).lane(batches).await;
        let mut replies = replies.map_err(|status| status_text(&status))?.into_inner();
        self.counters.connected();
        tracing::debug!(peer = self.peer.id, "stream is up");
        let stream = Arc::new(Stream {
            frames,
            sessions: Mutex::new(Some(BTreeMap::new())),
            next_session: AtomicU64::new(1),
            broken: CancellationToken::new(),
        });
        // The task ends with the stream: when the peer or the network ends it, or nobody holds it any more.
        let weak = Arc::downgrade(&stream);
        let (peer, counters) = (self.peer.id, self.counters.clone());
        let broken = stream.broken.clone();
        tokio::spawn(async move {
            let end = loop {
                let reply = tokio::select! {
                    biased;
                    reply = replies.message() => reply,
                    () = broken.cancelled() => break "given up".to_owned(),
                };
                let Some(stream) = weak.upgrade() else { return };
                match reply {
                    Ok(Some(batch)) => batch.replies.into_iter().for_each(|reply| stream.dispatch(reply)),
                    Ok(None) => break "closed by the peer".to_owned(),
                    Err(status) => break status_text(&status),
                }
            };
            counters.peer_failed();
            tracing::debug!(peer, %end, "stream is down");
            if let Some(stream) = weak.upgrade() {
                stream.break_off();
            }
        });
        Ok(stream)
    }
}

/// A gRPC status with the error below it, which is where tonic puts the transport's reason.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {} ({source})", status.code(), status.message()),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

/// A leader's replication of one group to the peer, one heartbeat, or one forwarded command. Ended by dropping it.
pub(crate) struct Session {
    stream: Arc<Stream>,
    pub(crate) id: u64,
    pub(crate) replies: mpsc::Receiver<SessionReply>,
    /// Whether the peer keeps the session and must be told of its end.
    kept: bool,
}

impl Session {
    fn begin(stream: &Arc<Stream>, kept: bool) -> Option<Session> {
        let mut sessions = stream.sessions.lock();
        let known = sessions.as_mut()?;
        let id = stream.next_session.fetch_add(1, Ordering::Relaxed);
        let (sender, replies) = mpsc::channel(SESSION_REQUESTS + 1);
        known.insert(id, sender);
        Some(Session { stream: stream.clone(), id, replies, kept })
    }

    /// Where its frames go. Sending fails once the stream is broken.
    pub(crate) fn frames(&self) -> mpsc::Sender<LaneFrame> {
        self.stream.frames.clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        match self.stream.sessions.lock().as_mut() {
            Some(sessions) => sessions.remove(&self.id),
            None => return,
        };
        if !self.kept {
            return;
        }
        let end = lane_frame::Request::End(EndOfSession {});
        let end = LaneFrame { session: self.id, request: Some(end) };
        if let Err(mpsc::error::TrySendError::Full(end)) = self.stream.frames.try_send(end) {
            let frames = self.stream.frames.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { frames.send(end).await });
            }
        }
    }
}
