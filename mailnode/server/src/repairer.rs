//! Gets bodies back that the disk here has lost, from the other replicas of their group.
//!
//! The scrubber asks, and whoever meets a rotten body while it reads: a session, a delivery, a snapshot, compaction. What
//! comes must have the length of the body and fit the checksum of the record that was lost, as far as that can be told. It
//! is on disk here before the index points to it. See ADR 12.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use quorumail_consensus::{Consensus, GroupId, NodeId};
use quorumail_store::{Bodies as _, BodyId, JournalBodies, LostBody, Repair, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Bodies that wait for their repair; a further one is refused.
const QUEUED: usize = 256;
/// Repairs at once.
const AT_ONCE: usize = 4;
/// Readers that wait for repairs; each holds a thread.
const READERS: usize = 128;
/// How long a reader waits.
const WAIT: Duration = Duration::from_secs(8);
/// How long a replica may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// After no replica had a body, they are asked again after so long at the earliest.
const PAUSE: Duration = Duration::from_secs(10);
/// Bodies remembered that no replica had.
const REMEMBERED: usize = 4096;

type Name = (u32, BodyId);
type Answer = Result<Bytes, String>;

/// Takes requests for lost bodies.
pub struct Repairer {
    requests: mpsc::Sender<LostBody>,
    state: Mutex<State>,
    repaired: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Who waits for which body.
    under_way: HashMap<Name, Vec<SyncSender<Answer>>>,
    waiting: usize,
    /// Bodies that could not be repaired, and when that was last tried.
    open: BTreeMap<Name, (LostBody, Instant)>,
    /// Segments in which bodies have rotted and that the logs must leave behind.
    rotten: BTreeSet<u64>,
}

/// How a repair ended.
enum Outcome {
    /// The body lies well on the disk here.
    Repaired(Bytes, NodeId),
    /// It does anyway: somebody else was quicker, or it can be read again.
    Well(Bytes),
    /// It came, and could not be kept.
    NotKept(Bytes, String),
    /// Nothing refers to it any more.
    Gone,
    /// Why nobody could give it.
    Lost(String),
}

impl Repairer {
    /// The end that takes requests, and the one that works on them.
    pub fn new(store: Store, consensus: Consensus, bodies: JournalBodies) -> (Arc<Self>, RepairWorker) {
        let (requests, queue) = mpsc::channel(QUEUED);
        let repairer = Arc::new(Self {
            requests,
            state: Mutex::default(),
            repaired: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let worker = RepairWorker { repairer: Arc::clone(&repairer), queue, store, consensus, bodies };
        (repairer, worker)
    }

    /// Bodies repaired, tries that failed, and requests refused because too many were waiting.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.repaired.load(Relaxed), self.failed.load(Relaxed), self.refused.load(Relaxed))
    }

    /// Lost bodies that no replica could give so far.
    pub fn open(&self) -> Vec<LostBody> {
        self.state.lock().open.values().map(|(lost, _)| *lost).collect()
    }

    /// Segments in which bodies have rotted, since this was last asked, that the logs need for a start.
    pub fn take_rotten_log(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.state.lock().rotten)
    }

    /// Queues a request, unless the body is being repaired already, and waits in line for the answer.
    fn ask(&self, lost: LostBody) -> Result<std::sync::mpsc::Receiver<Answer>, String> {
        let name = (lost.group, lost.body);
        let (send, receive) = sync_channel(1);
        let mut state = self.state.lock();
        if state.open.get(&name).is_some_and(|(_, tried)| tried.elapsed() < PAUSE) {
            return Err("no other replica could give it just now".to_owned());
        }
        let refuse = || {
            self.refused.fetch_add(1, Relaxed);
            "too many repairs are waiting; try again".to_owned()
        };
        if state.waiting >= READERS {
            return Err(refuse());
        }
        match state.under_way.entry(name) {
            hash_map::Entry::Occupied(mut waiters) => waiters.get_mut().push(send),
            hash_map::Entry::Vacant(place) => {
                self.requests.try_send(lost).map_err(|_| refuse())?;
                place.insert(vec![send]);
            }
        }
        state.waiting += 1;
        Ok(receive)
    }

    /// Tells those who wait, and remembers what is left to do.
    fn settle(&self, lost: LostBody, outcome: Outcome) {
        let name = (lost.group, lost.body);
        let (answer, left) = match outcome {
            Outcome::Repaired(bytes, from) => {
                self.repaired.fetch_add(1, Relaxed);
                told(&lost, &format!("repaired from node {from}"));
                (Ok(bytes), None)
            }
            Outcome::Well(bytes) => (Ok(bytes), None),
            Outcome::NotKept(bytes, reason) => (Ok(bytes), Some(reason)),
            Outcome::Gone => (Err("it is not referred to any more".to_owned()), None),
            Outcome::Lost(reason) => (Err(reason.clone()), Some(reason)),
        };
        let mut state = self.state.lock();
        match left {
            None => drop(state.open.remove(&name)),
            Some(reason) => {
                self.failed.fetch_add(1, Relaxed);
                if state.open.len() >= REMEMBERED {
                    state.open.pop_first();
                }
                if state.open.insert(name, (lost, Instant::now())).is_none() {
                    told(&lost, &format!("not repaired, and tried again: {reason}"));
                }
            }
        }
        let waiters = state.under_way.remove(&name).unwrap_or_default();
        drop(state);
        for waiter in waiters {
            // One that has given up is gone.
            let _ = waiter.try_send(answer.clone());
        }
    }
}

fn told(lost: &LostBody, what: &str) {
    let LostBody { group, body, place } = lost;
    let (segment, offset) = (place.record.segment, place.record.offset);
    tracing::error!(group, body = body.0, segment, offset, what, "a body has rotted on the disk here");
}

impl Repair for Repairer {
    fn body(&self, lost: LostBody) -> Result<Bytes, String> {
        let answer = self.ask(lost)?.recv_timeout(WAIT);
        self.state.lock().waiting -= 1;
        answer.unwrap_or_else(|_| Err("the other replicas have not answered yet; try again".to_owned()))
    }
}

/// Works on requests.
pub struct RepairWorker {
    repairer: Arc<Repairer>,
    queue: mpsc::Receiver<LostBody>,
    store: Store,
    consensus: Consensus,
    bodies: JournalBodies,
}

impl RepairWorker {
    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let Self { repairer, queue, store, consensus, bodies } = self;
        let one = |lost: LostBody| {
            let (repairer, consensus) = (Arc::clone(&repairer), consensus.clone());
            let disk = Disk { store: store.clone(), bodies: bodies.clone() };
            async move {
                let outcome = disk.repair(lost, &consensus, &repairer).await;
                repairer.settle(lost, outcome);
            }
        };
        ReceiverStream::new(queue).take_until(stop.cancelled_owned()).for_each_concurrent(AT_ONCE, one).await;
    }
}

/// Where bodies are lost and kept.
#[derive(Clone)]
struct Disk {
    store: Store,
    bodies: JournalBodies,
}

impl Disk {
    async fn repair(&self, lost: LostBody, consensus: &Consensus, repairer: &Repairer) -> Outcome {
        let lost = match self.blocking(move |disk| disk.look(lost)).await {
            Ok(Ok((lost, is_log))) => {
                if is_log {
                    repairer.state.lock().rotten.insert(lost.place.record.segment);
                }
                lost
            }
            Ok(Err(outcome)) => return outcome,
            Err(reason) => return Outcome::Lost(reason),
        };
        let group = GroupId(lost.group);
        let mut reasons = Vec::new();
        for node in consensus.other_replicas(group) {
            let body = match consensus.fetch_body(node, group, lost.body.0, ANSWER_WITHIN).await {
                Ok(Some(body)) => body,
                Ok(None) => {
                    reasons.push(format!("node {node} has it not"));
                    continue;
                }
                Err(reason) => {
                    reasons.push(format!("node {node}: {reason}"));
                    continue;
                }
            };
            if let Err(reason) = self.check(&lost, &body).await {
                reasons.push(format!("node {node}: {reason}"));
                continue;
            }
            let bytes = body.clone();
            let kept = self.blocking(move |disk| disk.store.restore(&lost, bytes)).await;
            return match kept {
                Ok(Ok(())) => Outcome::Repaired(body, node),
                Ok(Err(error)) => Outcome::NotKept(body, error.to_string()),
                Err(reason) => Outcome::NotKept(body, reason),
            };
        }
        let reasons =
            if reasons.is_empty() { "there is no other replica".to_owned() } else { reasons.join("; ") };
        Outcome::Lost(reasons)
    }

    /// Where the body is lost now, and whether the logs need that segment; unless it is not lost any more.
    fn look(&self, lost: LostBody) -> Result<(LostBody, bool), Outcome> {
        match self.store.place_of(lost.group, lost.body) {
            Ok(Some(place)) => match self.bodies.read(place, None) {
                Ok(bytes) => Err(Outcome::Well(bytes)),
                Err(_) => Ok((LostBody { place, ..lost }, self.bodies.leave(place.record.segment))),
            },
            Ok(None) => Err(Outcome::Gone),
            Err(error) => Err(Outcome::Lost(error.to_string())),
        }
    }

    /// Whether that can be the body.
    async fn check(&self, lost: &LostBody, body: &Bytes) -> Result<(), String> {
        if body.len() != lost.place.len as usize {
            return Err(format!("it sent {} bytes instead of {}", body.len(), lost.place.len));
        }
        let (lost, body) = (*lost, body.clone());
        match self.blocking(move |disk| disk.bodies.would_mend(&lost, &body)).await? {
            Some(false) => Err("what it sent does not fit the checksum of what was lost".to_owned()),
            // When it cannot be told, its word counts, as it does in a snapshot.
            Some(true) | None => Ok(()),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> T + Send + 'static,
    ) -> Result<T, String> {
        let disk = self.clone();
        tokio::task::spawn_blocking(move || work(disk)).await.map_err(|error| error.to_string())
    }
}
