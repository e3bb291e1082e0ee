//! Deterministic simulation of a whole cluster's storage: journal, consensus and store of three or five nodes.
//!
//! The code of production runs on one thread, on a clock that jumps to the next event, over a network and disks in
//! memory that do whatever the seed says. A run is a function of its seed: [`run`] twice with the same seed makes the
//! same history, so whatever is found can be looked at as often as needed.
//!
//! Rooms inside: `world` is the cluster, `node` one node of it, `network` and `calls` what lies between them, `faults`
//! what goes wrong, `membership` who comes and goes, `compaction` what gives space back, `rot` what finds and mends rot, `client` and `mailbox` who uses it and what they know must be there, `check` what must hold over
//! all nodes, `trace` what is told of it.
//!
//! What is not simulated: threads (all blocking work is done in place), TLS, and the index's own files (the index in
//! memory keeps fjall's promises, and has no bugs of fjall's).

mod calls;
mod check;
mod client;
mod compaction;
mod faults;
mod machine;
mod mailbox;
mod membership;
mod network;
mod node;
mod random;
mod rot;
mod trace;
mod world;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use quorumail_journal::mutation::Mutation;
use tokio::time::{sleep, timeout};

use crate::client::Client;
pub use crate::world::Reached;
use crate::world::World;

/// After the faults are over, clients must be served and replicas equal within this simulated time.
const RECOVERY: Duration = Duration::from_secs(90);
/// The clients' first work waits for this long at most, as a new cluster needs a moment.
const START: Duration = Duration::from_secs(30);

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which run.
    pub seed: u64,
    /// Over everything that happened, with its time. Equal for equal seeds.
    pub hash: u64,
    /// Number of events in it.
    pub events: u64,
    /// Commands and queries that were answered.
    pub answered: u64,
    /// Terms that had a leader, over all groups.
    pub terms: usize,
    /// How much time was simulated.
    pub simulated: Duration,
    /// How often it came to what is rare.
    pub reached: Reached,
    /// What was wrong; empty for a good run.
    pub violations: Vec<String>,
    /// The last events in words.
    pub events_in_words: Vec<String>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static RUNNING: RefCell<bool> = const { RefCell::new(false) };
}

/// A broken invariant inside a node panics in one of its tasks; it must not be overlooked.
fn collect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNNING.with_borrow(|running| *running) {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                usual(info);
            }
        }));
    });
}

/// Runs the history of a seed, with a deliberate fault in the code or without.
pub fn run(seed: u64, mutation: Option<Mutation>) -> Report {
    collect_panics();
    PANICS.with_borrow_mut(Vec::clear);
    RUNNING.set(true);
    quorumail_journal::mutation::switch(mutation);
    quorumail_consensus::seed_random_numbers(seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.build().expect("a runtime without I/O can be built");
    let (world, simulated) = runtime.block_on(async {
        let world = World::new(seed);
        history(&world).await;
        let simulated = world.trace.elapsed();
        (world, simulated)
    });
    drop(runtime);
    quorumail_journal::mutation::switch(None);
    RUNNING.set(false);
    let (hash, events, mut violations, events_in_words) = world.trace.finish();
    violations.extend(PANICS.with_borrow_mut(std::mem::take));
    let (answered, reached) = (world.answered.load(Ordering::Relaxed), world.reached());
    let terms = world.checker.terms_led();
    Report { seed, hash, events, answered, terms, simulated, reached, violations, events_in_words }
}

async fn history(world: &Arc<World>) {
    for id in world.ids() {
        world.start(id).await;
    }
    tokio::spawn(world.clone().watch());
    let founded = async {
        while !world.is_whole() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    if timeout(START, founded).await.is_err() {
        return world.trace.violation("the cluster was not founded".to_owned());
    }
    for id in world.ids() {
        tokio::spawn(faults::keep_running(world.clone(), id));
    }
    let clients: Vec<_> = (0..world.shape.clients)
        .map(|number| tokio::spawn(Client::new(world.clone(), number).run()))
        .collect();
    let changing = tokio::spawn(membership::change(world.clone()));
    faults::nemesis(world.clone()).await;
    world.closing.store(true, Ordering::Relaxed);
    for (number, client) in clients.into_iter().enumerate() {
        if timeout(RECOVERY, client).await.is_err() {
            world.tell();
            return world.trace.violation(format!("client {number} is not served after the faults are over"));
        }
    }
    if world.trace.is_bad() {
        return;
    }
    if timeout(RECOVERY, changing).await.is_err() {
        world.tell();
        return world
            .trace
            .violation("a change of members does not end after the faults are over".to_owned());
    }
    let settled = async {
        while !world.is_whole() || world.has_rot() || !world.groups().all(|group| world.compare(group)) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(RECOVERY, settled).await.is_err() {
        world.tell();
        return world.trace.violation(
            "the replicas do not become equal and free of rot after the faults are over".to_owned(),
        );
    }
    world.groups().for_each(|group| world.read_all(group));
    if world.reached().rots > 0 && !start_again(world).await {
        return;
    }
    for node in world.running() {
        for group in world.groups() {
            if let Err(reason) = node.store.audit(group.0) {
                world.trace.violation(format!("node {}, group {}: {reason}", node.id, group.0));
            }
        }
    }
    world.trace.event("all is well".to_owned());
}

/// No start may meet what a scrubber has called well: all nodes lose their power, and must come back on their disks. Whether
/// they do.
async fn start_again(world: &Arc<World>) -> bool {
    world.trace.event("all nodes are started again".to_owned());
    world.ids().into_iter().for_each(|id| world.crash(id, false));
    let settled = async {
        let is_settled =
            || world.is_whole() && !world.has_rot() && world.groups().all(|group| world.compare(group));
        while !(world.trace.is_bad() || is_settled()) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(RECOVERY, settled).await.is_err() {
        world.tell();
        world.trace.violation("the nodes do not come back after they were free of rot".to_owned());
    }
    world.groups().for_each(|group| world.read_all(group));
    !world.trace.is_bad()
}
