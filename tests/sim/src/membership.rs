//! Nodes that come and go while all else goes on, as an operator does it: a topology of a higher generation, told to some
//! node, with new nodes in it and others marked as leaving; once nothing is left on those, one without them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorumail_consensus::{NodeId, Peer, Topology};
use tokio::time::sleep;

use crate::faults::keep_running;
use crate::random::Random;
use crate::world::World;

/// How often the operator looks how far the nodes are, and tells one of them the topology.
const LOOK: Duration = Duration::from_millis(200);

/// How nodes are called in a topology.
pub(crate) fn peer(id: NodeId) -> Peer {
    Peer::new(id, format!("node-{id}"))
}

/// Changes the members until the run closes; what was begun is brought to its end.
pub(crate) async fn change(world: Arc<World>) {
    let mut random = Random::of(world.seed, 4);
    while world.shape.changes_members && !world.closing.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(random.within(200..2_500))).await;
        if !world.closing.load(Ordering::Relaxed) {
            change_once(&world, &mut random).await;
        }
    }
}

/// Three nodes become five, five become three, or one is replaced.
async fn change_once(world: &Arc<World>, random: &mut Random) {
    let mut topology = world.topology();
    let mut staying = topology.staying();
    let choices = if staying.len() > 3 { [(0, 2), (1, 1)] } else { [(2, 0), (1, 1)] };
    let (added, leaving) = random.pick(&choices).unwrap_or((1, 1));
    let first = topology.ids().last().map_or(0, |last| last + 1).max(world.next_id());
    let new: Vec<NodeId> = (first..first + added).collect();
    for _ in 0..leaving {
        let gone = staying.remove(random.within(0..staying.len() as u64) as usize);
        topology.nodes.iter_mut().filter(|peer| peer.id == gone).for_each(|peer| peer.leaving = true);
    }
    let going: Vec<NodeId> = topology.nodes.iter().filter(|peer| peer.leaving).map(|peer| peer.id).collect();
    world.trace.event(format!("nodes {new:?} are added, {going:?} are to leave"));
    topology.generation += 1;
    topology.nodes.extend(new.iter().copied().map(peer));
    for id in new {
        world.add(id);
        tokio::spawn(keep_running(world.clone(), id));
    }
    tell_until(world, random, &topology, is_moved).await;
    if !going.is_empty() {
        topology.generation += 1;
        topology.nodes.retain(|peer| !peer.leaving);
        tell_until(world, random, &topology, is_known).await;
        for id in going {
            world.remove(id);
        }
    }
    world.note_change();
}

/// Tells the topology, to one node after the other, until it has come about.
async fn tell_until(
    world: &World,
    random: &mut Random,
    topology: &Topology,
    is_done: fn(&World, &Topology) -> bool,
) {
    world.set_topology(topology.clone());
    loop {
        let running = world.running();
        if !running.is_empty() {
            let node = &running[random.within(0..running.len() as u64) as usize];
            if let Err(error) = node.consensus.reconfigure(topology.clone()) {
                world.trace.violation(format!("node {} takes no topology: {error}", node.id));
                return;
            }
        }
        sleep(LOOK).await;
        if is_done(world, topology) {
            return;
        }
    }
}

/// Whether every node that stays follows the topology.
fn is_known(world: &World, topology: &Topology) -> bool {
    topology.staying().into_iter().all(|id| {
        let node = world.node(id);
        node.is_some_and(|node| node.consensus.watch_topology().borrow().generation == topology.generation)
    })
}

/// Whether all groups are where they should be, and nothing but the directory is left on nodes that leave.
fn is_moved(world: &World, topology: &Topology) -> bool {
    let running = world.running();
    let mut plans = running.iter().filter_map(|node| node.consensus.progress());
    let is_done = plans
        .any(|plan| plan.generation == topology.generation && plan.groups.iter().all(|group| group.done));
    let staying = topology.staying();
    let mut leaving = running.iter().filter(|node| !staying.contains(&node.id));
    is_known(world, topology)
        && is_done
        && leaving.all(|node| node.consensus.status().iter().all(|group| group.group.0 == 0))
}
