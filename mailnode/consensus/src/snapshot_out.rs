//! A group's state on its way to a replica that cannot catch up from the log.
//!
//! The state is read as chunks, which are numbered and acknowledged once the receiver has them on disk. What is not
//! acknowledged is kept here, within a window of bytes; so when the connection breaks, the next one goes on with the
//! first chunk that the receiver lacks. When the receiver has not kept what it had (its process ended), or there is no
//! connection for too long, the engine begins anew with a new snapshot.
//!
//! All senders of a node share a rate, and a snapshot has a connection of its own: the log never waits behind it. While
//! one is sent, and until the receiver has caught up from there, the log behind it is kept: else a receiver that is filled
//! more slowly than the log grows would need one snapshot after the other, for ever.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::SnapshotResponse;
use parking_lot::Mutex;
use quorumail_proto::peer::snapshot_reply::What;
use quorumail_proto::peer::{SnapshotChunk, SnapshotReply};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::adapter::Applied;
use crate::lane::status_text;
use crate::machine::{GroupId, NodeId, SnapshotReader, StateMachine};
use crate::metrics::Counters;
use crate::network::{Link, Links};
use crate::node::CAUGHT_UP_LAG;
use crate::pace::Pace;
use crate::runtime::{offload, random_number};
use crate::types::{TypeConfig, Vote};
use crate::unreadable::Unreadable;
use crate::wire::{self, FORMAT, SnapshotHead};

/// Bytes of one snapshot that are read and not yet acknowledged. A larger chunk goes alone, and two are read ahead.
const WINDOW_BYTES: usize = 4 << 20;
/// Chunks handed to the transport and not yet taken by it.
const QUEUED_CHUNKS: usize = 2;
/// How long opening the stream may take, the connection included.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream on which nothing was acknowledged for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// After a break a snapshot is held ready for so long; it takes the place of others meanwhile.
const RESUME_WITHIN: Duration = Duration::from_secs(15);
/// Pause before the stream is opened again.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// How long the log behind a snapshot that has arrived is kept for a receiver that does not catch up.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10 * 60);

/// From where on the log of a group is kept for a receiver.
struct Kept {
    /// The last entry of the snapshot.
    index: u64,
    /// Since when the receiver has the snapshot.
    arrived: Option<Instant>,
}

/// What all snapshots share that a node sends.
pub(crate) struct Sending {
    /// One for each that may be sent at once.
    turns: Semaphore,
    pace: Pace,
    kept: Mutex<BTreeMap<(GroupId, NodeId), Kept>>,
}

impl Sending {
    pub(crate) fn new(at_once: usize, bytes_per_second: u64) -> Sending {
        Sending {
            turns: Semaphore::new(at_once.max(1)),
            pace: Pace::new(bytes_per_second),
            kept: Mutex::default(),
        }
    }

    /// Up to where the group's log is not needed by receivers of snapshots; none when none needs it. `has` tells up to
    /// where the log of a node is known to be the group's.
    pub(crate) fn not_needed(&self, group: GroupId, last: u64, has: impl Fn(NodeId) -> u64) -> Option<u64> {
        let mut kept = self.kept.lock();
        kept.retain(|(of, node), kept| {
            let waits = kept.arrived.is_none_or(|arrived| arrived.elapsed() < CATCH_UP_WITHIN);
            let caught_up = kept.arrived.is_some() && has(*node) + CAUGHT_UP_LAG >= last;
            *of != group || (waits && !caught_up)
        });
        let of_group = kept.iter().filter(|((of, _), _)| *of == group);
        of_group.map(|((_, node), kept)| kept.index.max(has(*node))).min()
    }
}

/// Keeps the log behind a snapshot for as long as it is sent, and for a while when it has arrived.
struct Keeping<'a> {
    sending: &'a Sending,
    of: (GroupId, NodeId),
    arrived: bool,
}

impl<'a> Keeping<'a> {
    fn begin(sending: &'a Sending, of: (GroupId, NodeId), index: u64) -> Keeping<'a> {
        sending.kept.lock().insert(of, Kept { index, arrived: None });
        Keeping { sending, of, arrived: false }
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        let mut kept = self.sending.kept.lock();
        if self.arrived
            && let Some(kept) = kept.get_mut(&self.of)
        {
            kept.arrived = Some(Instant::now());
        } else {
            kept.remove(&self.of);
        }
    }
}

/// Why a stream ended without an answer.
enum Ended {
    /// The connection broke; another one may go on.
    Broken(String),
    /// There is no point in going on with this snapshot.
    Over(String),
}

impl Ended {
    fn by(status: &Status) -> Ended {
        let reason = status_text(status);
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => Ended::Broken(reason),
            _ => Ended::Over(reason),
        }
    }
}

/// Sends the group's state to the peer and returns what it answered once it has installed it. The error says in words
/// why it did not come to that.
pub(crate) async fn send(
    links: &Links,
    link: &Link,
    group: GroupId,
    vote: Vote,
) -> Result<SnapshotResponse<TypeConfig>, String> {
    let to = link.peer.id;
    if links.unreadable.was_just_tried(group) {
        return Err("the replica here cannot be read in full".into());
    }
    let _turn = links.sending.turns.acquire().await.map_err(|error| error.to_string())?;
    let mut outgoing = Outgoing::open(links, group, vote).await?;
    let mut keeping = Keeping::begin(&links.sending, (group, to), outgoing.last_index);
    let mut broken = None;
    loop {
        let before = outgoing.acknowledged;
        let reason = match outgoing.stream(link, &links.sending.pace).await {
            Ok(answer) => {
                links.counters.snapshot_sent();
                links.unreadable.clear(group);
                keeping.arrived = true;
                tracing::info!(group = group.0, to, bytes = outgoing.sent_bytes, "sent a snapshot");
                return wire::decode(answer.format, &answer.payload).map_err(|error| error.to_string());
            }
            Err(Ended::Over(reason)) => return Err(reason),
            Err(Ended::Broken(reason)) => reason,
        };
        links.counters.peer_failed();
        if outgoing.acknowledged > before {
            broken = None;
        }
        let since: Instant = *broken.get_or_insert_with(Instant::now);
        if outgoing.acknowledged == 0 || since.elapsed() > RESUME_WITHIN {
            return Err(reason);
        }
        tracing::debug!(group = group.0, to, %reason, chunks = outgoing.acknowledged, "a snapshot was cut off");
        sleep(RESUME_PAUSE).await;
    }
}

/// A chunk in memory; counted as long as it is.
struct Chunk {
    /// Empty in the last one.
    data: Bytes,
    counters: Arc<Counters>,
}

impl Chunk {
    fn new(data: Bytes, counters: Arc<Counters>) -> Chunk {
        counters.snapshot_in_flight(data.len() as i64);
        Chunk { data, counters }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.counters.snapshot_in_flight(-(self.data.len() as i64));
    }
}

/// A snapshot being sent, over however many connections.
struct Outgoing {
    id: u64,
    group: GroupId,
    head: Bytes,
    /// Of the last entry in it.
    last_index: u64,
    counters: Arc<Counters>,
    /// Until there is a receiver to take the chunks.
    reading: Option<Reading>,
    /// The chunks to come.
    chunks: mpsc::Receiver<Result<Chunk, String>>,
    /// Whether the last one has come.
    whole: bool,
    /// Those not acknowledged; the first has the number `acknowledged`.
    pending: VecDeque<Chunk>,
    pending_bytes: usize,
    acknowledged: u64,
    /// All connections together.
    sent_bytes: u64,
}

impl Outgoing {
    async fn open(links: &Links, group: GroupId, vote: Vote) -> Result<Outgoing, String> {
        let machine: Arc<dyn StateMachine> = links.machine.clone();
        let reader = offload(move || machine.snapshot(group)).await.map_err(|error| error.to_string())?;
        let unreadable = |error| {
            links.unreadable.note(group, &error);
            error.to_string()
        };
        let reader = reader.map_err(unreadable)?;
        let applied = Applied::decode(group, reader.position()).map_err(unreadable)?;
        let (sender, chunks) = mpsc::channel(1);
        Ok(Outgoing {
            id: random_number(),
            group,
            head: wire::encode(&SnapshotHead { vote, meta: applied.meta(), level: applied.level }),
            last_index: applied.last.map_or(0, |last| last.index),
            counters: links.counters.clone(),
            reading: Some(Reading {
                group,
                reader,
                chunks: sender,
                counters: links.counters.clone(),
                unreadable: links.unreadable.clone(),
            }),
            chunks,
            whole: false,
            pending: VecDeque::new(),
            pending_bytes: 0,
            acknowledged: 0,
            sent_bytes: 0,
        })
    }

    fn frame(&self, number: u64, meta: Bytes, data: Bytes) -> SnapshotChunk {
        SnapshotChunk { group: self.group.0, format: FORMAT, meta, data, snapshot: self.id, number }
    }

    /// Goes on over a new connection until the receiver has installed all.
    async fn stream(&mut self, link: &Link, pace: &Pace) -> Result<quorumail_proto::peer::GroupReply, Ended> {
        let (frames, queue) = mpsc::channel(QUEUED_CHUNKS);
        let opening = self.frame(0, self.head.clone(), Bytes::new());
        frames.try_send(opening).expect("the queue is empty");
        let mut replies = open(link, queue).await?;
        match next_reply(&mut replies, STALL).await? {
            What::Installed(answer) => return Ok(answer),
            What::Taken(taken) if taken < self.acknowledged => {
                return Err(Ended::Over("the receiver has not kept what it had".into()));
            }
            What::Taken(taken) => {
                self.acknowledge(taken)?;
                let (group, to) = (self.group.0, link.peer.id);
                if let Some(reading) = self.reading.take() {
                    // Ends with the other end of the channel.
                    tokio::spawn(reading.run());
                    tracing::info!(group, to, "sending a snapshot");
                } else if taken > 0 {
                    self.counters.snapshot_resumed();
                    tracing::info!(group, to, chunks = taken, "going on with a snapshot");
                }
            }
        }
        let (mut sent, mut turn, mut heard) = (0, None, Instant::now());
        loop {
            let to_send = self.pending.get(sent);
            let at = to_send.map(|chunk| *turn.get_or_insert_with(|| pace.turn(chunk.data.len())));
            let sends = at.is_some();
            let room = async {
                sleep_until(at.unwrap_or_else(Instant::now)).await;
                frames.reserve().await
            };
            let reads = !sends && !self.whole && self.pending_bytes < WINDOW_BYTES;
            // While the receiver installs, which may take long, the connection's own pings tell whether it is there.
            let installs = !sends && self.whole;
            tokio::select! {
                biased;
                reply = replies.message() => match what(reply)? {
                    What::Installed(answer) => return Ok(answer),
                    What::Taken(taken) => {
                        sent = sent.saturating_sub(self.acknowledge(taken)?);
                        heard = Instant::now();
                    }
                },
                room = room, if sends => {
                    let room = room.map_err(|_| Ended::Broken("the transport gave up".into()))?;
                    room.send(self.next_frame(sent));
                    (sent, turn, heard) = (sent + 1, None, Instant::now());
                }
                chunk = self.chunks.recv(), if reads => self.take(chunk)?,
                () = sleep_until(heard + STALL), if sent > 0 && !installs => {
                    return Err(Ended::Broken(format!("nothing was acknowledged for {STALL:?}")));
                }
            }
        }
    }

    fn next_frame(&mut self, pending: usize) -> SnapshotChunk {
        let data = self.pending[pending].data.clone();
        self.sent_bytes += data.len() as u64;
        self.counters.snapshot_bytes_sent(data.len() as u64);
        self.frame(self.acknowledged + pending as u64, Bytes::new(), data)
    }

    fn take(&mut self, chunk: Option<Result<Chunk, String>>) -> Result<(), Ended> {
        let chunk = match chunk {
            Some(chunk) => chunk.map_err(Ended::Over)?,
            None => return Err(Ended::Over("the snapshot could not be read to its end".into())),
        };
        self.whole = chunk.data.is_empty();
        self.pending_bytes += chunk.data.len();
        self.pending.push_back(chunk);
        Ok(())
    }

    /// Lets go of what the receiver has; answers how many chunks that are.
    fn acknowledge(&mut self, taken: u64) -> Result<usize, Ended> {
        let news = taken.checked_sub(self.acknowledged).and_then(|news| usize::try_from(news).ok());
        let news = news.filter(|news| *news <= self.pending.len());
        let news = news.ok_or_else(|| Ended::Over("the receiver claims what it was not sent".into()))?;
        let gone: usize = self.pending.drain(..news).map(|chunk| chunk.data.len()).sum();
        self.pending_bytes -= gone;
        self.acknowledged = taken;
        Ok(news)
    }
}

/// Opens a stream over a connection of its own: chunks stand in nobody's way, and no one in theirs.
async fn open(link: &Link, queue: mpsc::Receiver<SnapshotChunk>) -> Result<Streaming<SnapshotReply>, Ended> {
    let mut client = link.fresh_client().map_err(Ended::Broken)?;
    match timeout(OPEN_TIMEOUT, client.install_snapshot(ReceiverStream::new(queue))).await {
        Ok(Ok(replies)) => Ok(replies.into_inner()),
        Ok(Err(status)) => Err(Ended::by(&status)),
        Err(_) => Err(Ended::Broken(format!("no stream within {OPEN_TIMEOUT:?}"))),
    }
}

async fn next_reply(replies: &mut Streaming<SnapshotReply>, within: Duration) -> Result<What, Ended> {
    match timeout(within, replies.message()).await {
        Ok(reply) => what(reply),
        Err(_) => Err(Ended::Broken(format!("no answer within {within:?}"))),
    }
}

fn what(reply: Result<Option<SnapshotReply>, Status>) -> Result<What, Ended> {
    match reply {
        Ok(Some(SnapshotReply { what: Some(what) })) => Ok(what),
        Ok(Some(SnapshotReply { what: None })) => Err(Ended::Over("an answer of an unknown kind".into())),
        Ok(None) => Err(Ended::Broken("the stream was ended by the receiver".into())),
        Err(status) => Err(Ended::by(&status)),
    }
}

/// What reads the chunks, one ahead of who takes them.
struct Reading {
    group: GroupId,
    reader: Box<dyn SnapshotReader>,
    chunks: mpsc::Sender<Result<Chunk, String>>,
    counters: Arc<Counters>,
    unreadable: Arc<Unreadable>,
}

impl Reading {
    /// Reads to the end, or until nobody takes chunks any more. An empty one ends them, so that a cut stream is not taken
    /// for a whole snapshot.
    async fn run(self) {
        let Reading { group, mut reader, chunks, counters, unreadable } = self;
        loop {
            let next = offload(move || reader.next_chunk().map(|chunk| (reader, chunk))).await;
            let next = next.map_err(|error| error.to_string()).and_then(|next| {
                next.map_err(|error| {
                    unreadable.note(group, &error);
                    error.to_string()
                })
            });
            let data = match next {
                Ok((back, data)) => {
                    reader = back;
                    data
                }
                Err(reason) => {
                    // Nobody waits for it if this fails.
                    let _ = chunks.send(Err(reason)).await;
                    return;
                }
            };
            let last = data.is_none();
            let data = data.unwrap_or_default();
            if data.is_empty() && !last {
                continue;
            }
            let chunk = Chunk::new(data, counters.clone());
            if chunks.send(Ok(chunk)).await.is_err() || last {
                return;
            }
        }
    }
}
