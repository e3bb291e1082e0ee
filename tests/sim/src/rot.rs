//! Disks that rot, and what a node does about it: passes of the production scrubber, the production repair from other
//! replicas, and logs that leave a rotten segment behind.
//!
//! A reader that meets a rotten body waits for the repair in production, on a thread. Here it is refused at once and comes
//! again, as there is one thread only.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_consensus::NodeId;
use quorumail_journal::{Class, Journal};
use quorumail_replica::{Looked, Mended, Mender, leave_behind, look};
use quorumail_store::{LostBody, Repair};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::random::Random;
use crate::world::World;

/// Requests of readers that are remembered; whoever comes again asks again.
const REMEMBERED: usize = 256;

/// How a run's disks rot, and how its nodes look for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    /// Longest pause between two segments of a pass.
    pause: Duration,
    /// Whether side indexes rot as well. Then it cannot always be told what a lost body was, and a replica's word counts;
    /// else replicas send something wrong at times.
    pub(crate) rots_indexes: bool,
}

impl Habits {
    pub(crate) fn draw(random: &mut Random) -> Habits {
        let pause = random.pick(&[30, 100, 400]).unwrap_or(100);
        Habits { pause: Duration::from_millis(pause), rots_indexes: random.chance(500) }
    }
}

/// What one life of a node did about rot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Care {
    /// Bodies that came back from other replicas.
    pub(crate) repaired: u64,
    /// Tries for which no replica had what was lost.
    pub(crate) not_repaired: u64,
    /// Segments that the logs have left behind.
    pub(crate) retired: u64,
}

/// What readers have met on a node.
#[derive(Debug, Default)]
pub(crate) struct Wanted(Mutex<Vec<LostBody>>);

impl Repair for Wanted {
    fn body(&self, lost: LostBody) -> Result<Bytes, String> {
        let mut wanted = self.0.lock();
        if wanted.len() < REMEMBERED && !wanted.contains(&lost) {
            wanted.push(lost);
        }
        Err("it is asked for; try again".to_owned())
    }
}

/// Makes wrong answers of right ones.
pub(crate) struct Garbler {
    /// The world has the nodes, and these have this.
    world: Weak<World>,
    random: Mutex<Random>,
}

impl Garbler {
    pub(crate) fn new(world: &Arc<World>, id: NodeId) -> Garbler {
        let random = Random::of(world.seed, 400 + id).of_life(world.life(id));
        Garbler { world: Arc::downgrade(world), random: Mutex::new(random) }
    }

    /// What arrives of a body that another node asked for: cut short now and then. Other bytes of the same length would count
    /// where nothing tells what was lost and no other replica answers, as they would in a snapshot.
    pub(crate) fn pass(&self, mut body: Bytes) -> Bytes {
        let Some(world) = self.world.upgrade() else { return body };
        if !body.is_empty() && self.random.lock().chance(500) {
            body.truncate(body.len() - 1);
            world.trace.event("a body arrives that is not the one asked for".to_owned());
        }
        body
    }
}

/// A node's scrubber and repair.
pub(crate) struct Carer {
    pub(crate) world: Arc<World>,
    pub(crate) id: NodeId,
    pub(crate) mender: Mender,
    pub(crate) journal: Journal,
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) done: Arc<Mutex<Care>>,
}

impl Carer {
    /// Runs until the node is down.
    pub(crate) async fn run(self, down: CancellationToken) {
        let mut random = Random::of(self.world.seed, 300 + self.id).of_life(self.world.life(self.id));
        let (mut next, mut begun, mut is_clean) = (0, Instant::now(), true);
        let mut rotten_log = BTreeSet::new();
        loop {
            sleep(self.pause(&mut random)).await;
            if down.is_cancelled() {
                return;
            }
            let met = std::mem::take(&mut *self.wanted.0.lock());
            for lost in met {
                self.repair(lost, &mut rotten_log).await;
            }
            self.leave(&mut rotten_log).await;
            if next == 0 {
                (begun, is_clean) = (Instant::now(), true);
            }
            // A step that breaks off is made again, as after a restart.
            let breaks_off = random.chance(50);
            let mut pace = |_| if breaks_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let looked = look(&self.mender.store, &self.mender.bodies, next, &mut pace);
            if down.is_cancelled() {
                return;
            }
            match looked {
                Ok(Looked::Segment(segment, rot)) => {
                    if let Some(rot) = rot {
                        is_clean &= rot.findings.bodies.is_empty() && !rot.is_log;
                        self.world
                            .trace
                            .event(format!("node {} finds rot in segment {segment:x}: {rot:?}", self.id));
                        rotten_log.extend(rot.is_log.then_some(segment));
                        for lost in rot.findings.bodies {
                            self.repair(lost, &mut rotten_log).await;
                        }
                    }
                    next = if breaks_off { next } else { segment + 1 };
                }
                Ok(Looked::End) => {
                    next = 0;
                    if is_clean && rotten_log.is_empty() && self.wanted.0.lock().is_empty() {
                        self.world.note_clean_pass(self.id, begun);
                    }
                }
                Err(reason) => {
                    self.world
                        .trace
                        .violation(format!("node {} cannot tell its segments: {reason}", self.id));
                    return;
                }
            }
        }
    }

    /// Once the faults are over nothing is gained by waiting for rot that is left.
    fn pause(&self, random: &mut Random) -> Duration {
        let longest = match self.world.closing.load(Ordering::Relaxed) && self.world.has_rot() {
            true => Duration::from_millis(5),
            false => self.world.shape.rot.pause,
        };
        Duration::from_millis(random.within(1..longest.as_millis() as u64))
    }

    async fn repair(&self, lost: LostBody, rotten_log: &mut BTreeSet<u64>) {
        let (mended, rotten) = self.mender.repair(lost).await;
        rotten_log.extend(rotten);
        let mut done = self.done.lock();
        let how = match &mended {
            Mended::Repaired(_, from) => {
                done.repaired += 1;
                format!("is repaired from node {from}")
            }
            Mended::Well(_) => "is well".to_owned(),
            Mended::Gone => "is gone".to_owned(),
            Mended::NotKept(_, reason) => format!("cannot be kept: {reason}"),
            Mended::Lost(reason) => {
                done.not_repaired += 1;
                format!("is not repaired: {reason}")
            }
        };
        self.world
            .trace
            .event(format!("node {}: lost body {} of group {} {how}", self.id, lost.body.0, lost.group));
    }

    async fn leave(&self, rotten_log: &mut BTreeSet<u64>) {
        if rotten_log.is_empty() {
            return;
        }
        let left = leave_behind(&self.mender.consensus, &self.journal, rotten_log).await;
        self.done.lock().retired += left.retired;
        self.world.trace.event(format!("node {} leaves segments behind: {left:?}", self.id));
    }
}

/// Some bits of what a node has long written flip: anywhere in its sealed segments, or only where no log needs them.
pub(crate) fn strike(world: &World, id: NodeId, bits: u64, bodies_only: bool) {
    let floor = world.floor(id);
    let indexes = world.shape.rot.rots_indexes;
    let may_rot = |segment| !bodies_only || Class::of(segment) == Class::Kept || segment < floor;
    let flipped = (0..bits)
        .filter_map(|_| world.with_disks(id, |disks| disks.disk.rot(indexes, may_rot)).flatten())
        .count();
    if flipped > 0 {
        world.note_rot(id);
        world.trace.event(format!("{flipped} bits rot on node {id}'s disk, bodies only: {bodies_only}"));
    }
}
