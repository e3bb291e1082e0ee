//! Gets bodies back that the disk here has lost, from the other replicas of their group ([`Mender`]).
//!
//! The scrubber asks, and whoever meets a rotten body while it reads: a session, a delivery, a snapshot, compaction. Here is
//! how they wait, how many at once, and what is remembered of those that nobody could give. See ADR 12.

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
use quorumail_replica::{Mended, Mender};
use quorumail_store::{BodyId, LostBody, Repair};
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

impl Repairer {
    /// The end that takes requests, and the one that works on them.
    pub fn new(mender: Mender) -> (Arc<Self>, RepairWorker) {
        let (requests, queue) = mpsc::channel(QUEUED);
        let repairer = Arc::new(Self {
            requests,
            state: Mutex::default(),
            repaired: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let worker = RepairWorker { repairer: Arc::clone(&repairer), queue, mender };
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
    fn settle(&self, lost: LostBody, mended: Mended) {
        let name = (lost.group, lost.body);
        let (answer, left) = match mended {
            Mended::Repaired(bytes, from) => {
                self.repaired.fetch_add(1, Relaxed);
                told(&lost, &format!("repaired from node {from}"));
                (Ok(bytes), None)
            }
            Mended::Well(bytes) => (Ok(bytes), None),
            Mended::NotKept(bytes, reason) => (Ok(bytes), Some(reason)),
            Mended::Gone => (Err("it is not referred to any more".to_owned()), None),
            Mended::Lost(reason) => (Err(reason.clone()), Some(reason)),
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
    mender: Mender,
}

impl RepairWorker {
    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let Self { repairer, queue, mender } = self;
        let one = |lost: LostBody| {
            let (repairer, mender) = (Arc::clone(&repairer), mender.clone());
            async move {
                let (mended, rotten_log) = mender.repair(lost).await;
                repairer.state.lock().rotten.extend(rotten_log);
                repairer.settle(lost, mended);
            }
        };
        ReceiverStream::new(queue).take_until(stop.cancelled_owned()).for_each_concurrent(AT_ONCE, one).await;
    }
}
