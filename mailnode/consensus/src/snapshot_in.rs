//! A group's state coming in, chunk by chunk, over one stream or several.
//!
//! When a stream breaks, what has been written so far is kept for a while: the next stream of the same snapshot goes on
//! behind it. A stream takes the place of the one before it, which may not know yet that its connection is dead, unless
//! that one's leader is of a higher term. Whatever else comes begins from nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorumail_proto::peer::snapshot_reply::What;
use quorumail_proto::peer::{GroupReply, SnapshotChunk, SnapshotReply};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::adapter::SnapshotData;
use crate::group::Group;
use crate::machine::SnapshotWriter;
use crate::node::Inner;
use crate::runtime::offload;
use crate::types::Snapshot;
use crate::wire::{self, FORMAT, SnapshotHead};

/// A stream on which no chunk has come for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// How long what a broken stream has brought is kept; longer than a sender tries to go on.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Where the answers to a stream go.
pub(crate) type Replies = mpsc::Sender<Result<SnapshotReply, Status>>;

/// What a group has of a snapshot.
#[derive(Default)]
enum Slot {
    #[default]
    Nothing,
    Part(Part),
    /// It has been installed; the answer that the sender may have missed.
    Installed(u64, GroupReply),
}

/// The chunks of a snapshot that have come.
struct Part {
    snapshot: u64,
    taken: u64,
    writer: Box<dyn SnapshotWriter>,
}

/// The stream that is being received.
struct Current {
    term: u64,
    superseded: CancellationToken,
}

/// The snapshots that come in for one group: one at a time.
#[derive(Default)]
pub(crate) struct Incoming {
    current: Mutex<Option<Current>>,
    /// Held by the stream that is being received.
    slot: tokio::sync::Mutex<Slot>,
}

impl Incoming {
    /// Takes the place of the stream before this one; the token is cancelled when another one takes this one's.
    fn begin(&self, term: u64) -> Result<CancellationToken, Status> {
        let mut current = self.current.lock();
        if let Some(current) = &*current {
            if current.term > term {
                return Err(Status::failed_precondition("a newer leader has sent a snapshot"));
            }
            current.superseded.cancel();
        }
        let superseded = CancellationToken::new();
        *current = Some(Current { term, superseded: superseded.clone() });
        Ok(superseded)
    }

    /// Lets go of a part that has not grown since.
    async fn forget(&self, snapshot: u64, taken: u64) {
        let mut slot = self.slot.lock().await;
        if matches!(&*slot, Slot::Part(part) if part.snapshot == snapshot && part.taken == taken) {
            discard(std::mem::take(&mut *slot)).await;
        }
    }
}

/// Removing what was written takes its time.
async fn discard(slot: Slot) {
    if let Err(error) = offload(move || drop(slot)).await {
        tracing::warn!(%error, "a snapshot that was given up could not be removed");
    }
}

/// Why a part does not grow any more for now.
enum Cut {
    Superseded,
    Stream(Status),
}

impl Cut {
    fn status(self) -> Status {
        match self {
            Cut::Superseded => Status::unavailable("another stream has taken the place of this one"),
            Cut::Stream(status) => status,
        }
    }
}

/// A stream, after its first message.
pub(crate) struct Stream {
    pub(crate) head: SnapshotHead,
    /// Of which snapshot.
    pub(crate) snapshot: u64,
    pub(crate) chunks: Streaming<SnapshotChunk>,
    pub(crate) replies: Replies,
}

impl Stream {
    /// Takes the stream to its end, and tells the sender how far it has come.
    pub(crate) async fn receive(mut self, node: Arc<Inner>, group: Arc<Group>) {
        if let Err(status) = self.take(&node, &group).await {
            tracing::debug!(group = group.id.0, %status, "a snapshot does not go on over this stream");
            // The sender has gone if this fails, and nobody waits for the answer.
            let _ = self.replies.send(Err(status)).await;
        }
    }

    async fn take(&mut self, node: &Arc<Inner>, group: &Arc<Group>) -> Result<(), Status> {
        let superseded = group.incoming.begin(self.head.vote.leader_id.term)?;
        let mut slot = group.incoming.slot.lock().await;
        let mut part = match std::mem::take(&mut *slot) {
            Slot::Installed(snapshot, answer) if snapshot == self.snapshot => {
                *slot = Slot::Installed(snapshot, answer.clone());
                return self.tell(What::Installed(answer), &superseded).await.map_err(Cut::status);
            }
            Slot::Part(part) if part.snapshot == self.snapshot => part,
            other => {
                discard(other).await;
                let (machine, id) = (node.machine.clone(), group.id);
                let writer = offload(move || machine.install(id)).await.map_err(failed)?.map_err(failed)?;
                Part { snapshot: self.snapshot, taken: 0, writer }
            }
        };
        let cut = loop {
            if let Err(cut) = self.tell(What::Taken(part.taken), &superseded).await {
                break cut;
            }
            let data = match self.next(part.taken, &superseded).await {
                Ok(data) => data,
                Err(cut) => break cut,
            };
            if data.is_empty() {
                let answer = install(group, &self.head, part.writer).await?;
                *slot = Slot::Installed(self.snapshot, answer.clone());
                return self.tell(What::Installed(answer), &superseded).await.map_err(Cut::status);
            }
            let mut writer = part.writer;
            let written = offload(move || writer.write(data).map(|()| writer)).await;
            part.writer = written.map_err(failed)?.map_err(failed)?;
            part.taken += 1;
        };
        let (snapshot, taken) = (part.snapshot, part.taken);
        *slot = Slot::Part(part);
        drop(slot);
        let waits = group.clone();
        node.run_until(group.stop.clone(), async move {
            tokio::time::sleep(KEPT_FOR).await;
            waits.incoming.forget(snapshot, taken).await;
        });
        Err(cut.status())
    }

    /// The next chunk's data; empty at the end of the snapshot.
    async fn next(&mut self, number: u64, superseded: &CancellationToken) -> Result<bytes::Bytes, Cut> {
        let chunk = tokio::select! {
            biased;
            () = superseded.cancelled() => return Err(Cut::Superseded),
            chunk = timeout(STALL, self.chunks.message()) => chunk,
        };
        match chunk {
            Ok(Ok(Some(chunk))) if chunk.snapshot == self.snapshot && chunk.number == number => {
                Ok(chunk.data)
            }
            Ok(Ok(Some(_))) => {
                Err(Cut::Stream(Status::invalid_argument("a chunk of a snapshot out of turn")))
            }
            Ok(Ok(None)) => Err(Cut::Stream(Status::unavailable("the snapshot was cut off"))),
            Ok(Err(status)) => Err(Cut::Stream(status)),
            Err(_) => Err(Cut::Stream(Status::unavailable(format!("no chunk for {STALL:?}")))),
        }
    }

    async fn tell(&self, what: What, superseded: &CancellationToken) -> Result<(), Cut> {
        let reply = SnapshotReply { what: Some(what) };
        tokio::select! {
            biased;
            () = superseded.cancelled() => Err(Cut::Superseded),
            told = self.replies.send(Ok(reply)) => {
                told.map_err(|_| Cut::Stream(Status::unavailable("the sender has gone")))
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::failed_precondition(error.to_string())
}

/// Has the engine put the state in force.
async fn install(
    group: &Group,
    head: &SnapshotHead,
    writer: Box<dyn SnapshotWriter>,
) -> Result<GroupReply, Status> {
    let snapshot = Snapshot { meta: head.meta.clone(), snapshot: SnapshotData::Received(writer, head.level) };
    let response = group.raft.install_full_snapshot(head.vote, snapshot).await.map_err(failed)?;
    Ok(GroupReply { format: FORMAT, payload: wire::encode(&response) })
}
