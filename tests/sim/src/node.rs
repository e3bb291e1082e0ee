//! A mailnode in the simulation: the real journal, consensus and store, on a disk and a network that are not.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use quorumail_consensus::{
    Config, Consensus, GroupId, LEVELS, NodeId, Topology, command_index, open_log_on, server,
};
use quorumail_journal::{Journal, Options, SimDisk};
use quorumail_replica::{Machine, Mender};
use quorumail_store::{JournalBodies, MemoryIndex, Store, StoreError};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::calls::Repeating;
use crate::compaction;
use crate::machine::{SharedPump, Watched};
use crate::random::Random;
use crate::rot::{Care, Carer, Garbler, Wanted};
use crate::world::{Reached, World};

/// Segments are this small so that a run has many.
const SEGMENT_BYTES: u64 = 32 << 10;
/// Longest record.
const RECORD_BYTES: u32 = 1 << 20;
/// Records that nobody waits for are written after so long, as the journal's own thread does.
const IDLE_WRITE: Duration = Duration::from_secs(1);

/// What outlives a node's process.
pub(crate) struct Disks {
    pub(crate) disk: SimDisk,
    pub(crate) index: MemoryIndex,
    /// Counts starts: every life of a journal needs salts of its own.
    pub(crate) life: u64,
    /// The newest topology that the node was told.
    pub(crate) topology: Arc<Mutex<Option<Topology>>>,
    /// The format level that the disk may hold.
    pub(crate) level: Arc<AtomicU32>,
}

impl Disks {
    pub(crate) fn new(seed: u64) -> Disks {
        let (index, topology) = (MemoryIndex::default(), Arc::default());
        let level = Arc::new(AtomicU32::new(LEVELS.min));
        Disks { disk: SimDisk::new(seed), index, life: 0, topology, level }
    }

    /// The power is gone: what was not synced is kept, lost or torn.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        self.disk = self.disk.crash();
        let unsynced = self.index.unsynced_batches() as u64;
        let kept = if random.chance(500) { random.within(0..unsynced + 1) } else { unsynced };
        self.index.crash(usize::try_from(kept).unwrap_or(usize::MAX));
    }
}

/// A node that runs.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) consensus: Consensus,
    pub(crate) store: Store,
    pub(crate) journal: Journal,
    /// Cancelled when the node is down.
    pub(crate) down: CancellationToken,
    compacted: compaction::Done,
    care: Arc<Mutex<Care>>,
    pump: SharedPump,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// Starts a node with whatever its disks hold.
///
/// # Errors
/// In words, when it refuses to start.
pub(crate) async fn start(world: &Arc<World>, mut config: Config, disks: &mut Disks) -> Result<Node, String> {
    let id = config.node;
    disks.life += 1;
    config.level = disks.level.load(Ordering::SeqCst);
    let options = Options {
        segment_bytes: SEGMENT_BYTES,
        max_record_bytes: RECORD_BYTES,
        // As the server does: a disk that failed is read back before it is used again.
        verify_after_failure: true,
        salt_seed: Some(world.seed.wrapping_mul(31).wrapping_add(id << 32).wrapping_add(disks.life)),
        ..Options::new("")
    };
    let opened = open_log_on(Arc::new(disks.disk.clone()), &options);
    let (journal, pump, recovered) = opened.map_err(|error| format!("{error:?}"))?;
    let work = Arc::new(Notify::new());
    let wake = work.clone();
    pump.wake_with(move || wake.notify_one());
    let pump: SharedPump = Arc::new(Mutex::new(Some(pump)));
    let bodies = JournalBodies::new(journal.clone(), command_index);
    let store = Store::open_on(&disks.index, Arc::new(bodies.clone())).map_err(|error| error.to_string())?;
    let level = disks.level.clone();
    let note_level = Box::new(move |reached| {
        level.store(reached, Ordering::SeqCst);
        Ok(())
    });
    let machine = Watched {
        node: id,
        machine: Machine { store: store.clone(), note_level },
        checker: world.checker.clone(),
        garbler: Garbler::new(world, id),
    };
    let down = CancellationToken::new();
    let pumping = tokio::spawn(drive(world.clone(), id, pump.clone(), work, down.clone()));
    let dialer = Arc::new(world.network.connector(id));
    let started = Consensus::start(config, journal.clone(), recovered, Arc::new(machine), dialer).await;
    let consensus = match started {
        Ok(consensus) => consensus,
        Err(error) => {
            pumping.abort();
            pump.lock().take();
            return Err(error.to_string());
        }
    };
    let incoming = UnboundedReceiverStream::new(world.network.listen(id)).map(Ok::<_, Infallible>);
    let service = consensus.peer_service();
    let serving = server(Server::builder()).layer(Repeating(world.network.clone())).add_service(service);
    let serving = tokio::spawn(async move {
        // Ends with the node; a failed connection is the caller's matter.
        let _ = serving.serve_with_incoming(incoming).await;
    });
    let watching = tokio::spawn(watch_fatal(world.clone(), id, consensus.clone(), down.clone()));
    let compacted = compaction::Done::default();
    let of_store = (store.clone(), journal.clone(), bodies.clone());
    let compacting = compaction::compact(world.clone(), id, of_store, compacted.clone(), down.clone());
    let keeping = tokio::spawn(keep_topology(disks.topology.clone(), consensus.clone()));
    let (wanted, care) = (Arc::new(Wanted::default()), Arc::default());
    store.repair_with(wanted.clone());
    let carer = Carer {
        world: world.clone(),
        id,
        mender: Mender { store: store.clone(), consensus: consensus.clone(), bodies },
        journal: journal.clone(),
        wanted,
        done: Arc::clone(&care),
    };
    let caring = tokio::spawn(carer.run(down.clone()));
    let tasks = Mutex::new(vec![pumping, serving, watching, tokio::spawn(compacting), keeping, caring]);
    Ok(Node { id, consensus, store, journal, down, compacted, care, pump, tasks })
}

impl Node {
    /// Ends the node without any goodbye. The caller has cut it off from the network, and crashes the disks after.
    pub(crate) fn kill(&self) {
        self.down.cancel();
        self.pump.lock().take();
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        self.consensus.abandon();
    }

    /// How often this life of it came to what is rare.
    pub(crate) fn reached(&self) -> Reached {
        let (metrics, compacted) = (self.consensus.metrics(), *self.compacted.lock());
        let care = *self.care.lock();
        Reached {
            snapshots: metrics.snapshots_installed,
            unreadable: metrics.snapshots_unreadable,
            compacted: compacted.compacted_segments,
            moved_bodies: compacted.moved_bodies,
            repaired: care.repaired,
            not_repaired: care.not_repaired,
            retired: care.retired,
            ..Reached::default()
        }
    }

    /// Reads all of a group, bodies included, as if to send it to another node; a hash over it.
    pub(crate) fn read_all(&self, group: GroupId) -> Result<u64, StoreError> {
        let mut reader = self.store.snapshot(group.0)?;
        let mut hasher = DefaultHasher::new();
        while let Some(chunk) = reader.next_chunk()? {
            chunk.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    /// Whether its journal writes no more.
    pub(crate) fn is_dead(&self) -> bool {
        self.pump.lock().is_none()
    }

    /// Stops the node in order: leads handed over, everything written.
    pub(crate) async fn stop(&self, within: Duration) {
        self.consensus.hand_over(within).await;
        // A disk that fails meanwhile never finishes.
        let _ = tokio::time::timeout(within, self.consensus.shutdown()).await;
    }
}

async fn watch_fatal(world: Arc<World>, id: NodeId, consensus: Consensus, down: CancellationToken) {
    tokio::select! {
        biased;
        () = down.cancelled() => {}
        reason = consensus.fatal() => world.died(id, &reason),
    }
}

/// Keeps every topology that consensus takes up, as the server does in a file.
async fn keep_topology(kept: Arc<Mutex<Option<Topology>>>, consensus: Consensus) {
    let mut changes = consensus.watch_topology();
    loop {
        let topology = changes.borrow_and_update().clone();
        *kept.lock() = Some((*topology).clone());
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Writes what is appended, taking the time that the disk takes.
async fn drive(world: Arc<World>, id: NodeId, pump: SharedPump, work: Arc<Notify>, down: CancellationToken) {
    loop {
        let waited_for = match pump.lock().as_ref() {
            Some(pump) => pump.is_waited_for(),
            None => return,
        };
        if !waited_for {
            tokio::select! {
                biased;
                () = down.cancelled() => return,
                () = work.notified() => continue,
                () = tokio::time::sleep(IDLE_WRITE) => {}
            }
        }
        let wrote = match pump.lock().as_mut() {
            Some(pump) => pump.write(),
            None => return,
        };
        // The crash may come between the write and the sync, and before those who wait are told.
        let took = world.sync_time(id);
        if matches!(wrote, Ok(true)) && !took.is_zero() {
            tokio::time::sleep(took).await;
        }
        let synced = match pump.lock().as_mut() {
            Some(pump) => wrote.and_then(|_| pump.sync()),
            None => return,
        };
        if let Err(failure) = synced {
            pump.lock().take();
            world.died(id, &failure.to_string());
            return;
        }
    }
}
