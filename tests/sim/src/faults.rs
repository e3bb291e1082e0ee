//! What goes wrong in a run, and when, by its seed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorumail_consensus::NodeId;
use quorumail_journal::Faults;
use tokio::time::{Instant, sleep};

use crate::network::Weather;
use crate::random::Random;
use crate::rot;
use crate::world::{CALM, Started, World};

/// A disk that is not full.
const ROOMY: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Crash,
    CrashAll,
    CrashInWrite,
    Isolate,
    Split,
    OneWay,
    SlowDisk,
    Storm,
    Resets,
    IoError,
    FullDisk,
    LostDisk,
    LostDiskOfTwo,
    BitFlip,
    Rot,
    RotOfTwo,
    ClockJump,
    Restart,
}

/// Each as often as it is listed.
const MENU: [Fault; 29] = [
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashAll,
    Fault::CrashAll,
    Fault::CrashInWrite,
    Fault::CrashInWrite,
    Fault::Isolate,
    Fault::Isolate,
    Fault::Isolate,
    Fault::Split,
    Fault::OneWay,
    Fault::OneWay,
    Fault::SlowDisk,
    Fault::Storm,
    Fault::Storm,
    Fault::Resets,
    Fault::IoError,
    Fault::FullDisk,
    Fault::LostDisk,
    Fault::LostDiskOfTwo,
    Fault::BitFlip,
    Fault::Rot,
    Fault::Rot,
    Fault::Rot,
    Fault::RotOfTwo,
    Fault::ClockJump,
    Fault::Restart,
];

/// Makes trouble until the time for it is over, then mends everything.
pub(crate) async fn nemesis(world: Arc<World>) {
    let mut random = Random::of(world.seed, 3);
    let until = Instant::now() + world.shape.faults_for;
    // A pair of weather for the whole run: some runs have a bad network all along.
    let usual = Weather {
        delay_ms: random.pick(&[0, 1, 2, 10]).unwrap_or(1),
        stalls: random.pick(&[0, 0, 5, 50]).unwrap_or(0),
        stall_ms: random.within(10..400),
        repeats: random.pick(&[0, 10, 100]).unwrap_or(0),
    };
    world.network.set_weather(usual);
    while Instant::now() < until {
        sleep(Duration::from_millis(random.within(20..900))).await;
        // Two at once now and then.
        for _ in 0..random.pick(&[1, 1, 2]).unwrap_or(1) {
            let fault = random.pick(&MENU).unwrap_or(Fault::Crash);
            strike(&world, &mut random, fault, usual).await;
        }
    }
    world.network.heal();
    world.network.set_weather(CALM);
    for id in world.ids() {
        mend(&world, id);
    }
    world.trace.event("the faults are over".to_owned());
}

/// Starts a node when it is down, after a while, until the run ends or the node is taken out.
pub(crate) async fn keep_running(world: Arc<World>, id: NodeId) {
    let mut random = Random::of(world.seed, 100 + id);
    loop {
        sleep(Duration::from_millis(random.within(50..300))).await;
        if !world.has(id) {
            return;
        }
        if world.node(id).is_some() {
            continue;
        }
        sleep(Duration::from_millis(random.pick(&[0, 100, 700, 2_500]).unwrap_or(0))).await;
        match world.start(id).await {
            Started::Up | Started::Failing => {}
            // A damaged disk is replaced, by people or by whoever they have for it.
            Started::Damaged => world.wipe(id),
            Started::Wrong => return,
        }
    }
}

fn mend(world: &World, id: NodeId) {
    world.set_sync_time(id, 2);
    world.note_failing(id, false);
    world.with_disks(id, |disks| {
        disks.disk.set_faults(Faults::default());
        disks.disk.set_capacity(ROOMY);
    });
}

async fn strike(world: &Arc<World>, random: &mut Random, fault: Fault, usual: Weather) {
    let ids = world.ids();
    let victim = random.pick(&ids).unwrap_or(0);
    let silent = random.chance(400);
    match fault {
        Fault::Crash => world.crash(victim, silent),
        Fault::CrashAll => ids.iter().for_each(|id| world.crash(*id, silent)),
        Fault::CrashInWrite => {
            let left = random.within(0..6);
            world.trace.event(format!("node {victim} loses power within {left} writes"));
            world.with_disks(victim, |disks| disks.disk.fail_power_after(left));
        }
        Fault::Isolate | Fault::Split => {
            let mut aside: Vec<NodeId> = ids.iter().copied().filter(|_| random.chance(500)).collect();
            if matches!(fault, Fault::Isolate) || aside.is_empty() {
                aside = vec![victim];
            }
            world.trace.event(format!("nodes {aside:?} are cut off"));
            for one in &aside {
                for other in ids.iter().filter(|other| !aside.contains(other)) {
                    world.network.cut(*one, *other);
                    world.network.cut(*other, *one);
                }
            }
            heal_later(world, random);
        }
        Fault::OneWay => {
            let from_victim = random.chance(500);
            world
                .trace
                .event(format!("node {victim} {} nobody", if from_victim { "reaches" } else { "hears" }));
            for other in ids.iter().filter(|other| **other != victim) {
                let (from, to) = if from_victim { (victim, *other) } else { (*other, victim) };
                world.network.cut(from, to);
            }
            heal_later(world, random);
        }
        Fault::SlowDisk => {
            let sync_ms = random.within(20..400);
            world.trace.event(format!("node {victim}'s disk takes up to {sync_ms} ms"));
            world.set_sync_time(victim, sync_ms);
            let (world, pause) = (world.clone(), random.within(300..3_000));
            tokio::spawn(async move {
                sleep(Duration::from_millis(pause)).await;
                world.set_sync_time(victim, 2);
            });
        }
        Fault::Storm => {
            world.trace.event("the network is slow".to_owned());
            let stalls = random.within(50..300);
            let stall_ms = random.within(50..800);
            world.network.set_weather(Weather { delay_ms: random.within(5..60), stalls, stall_ms, ..usual });
            sleep(Duration::from_millis(random.within(100..1_500))).await;
            world.network.set_weather(usual);
        }
        Fault::Resets => {
            world.trace.event(format!("node {victim}'s connections are reset"));
            ids.iter().for_each(|other| world.network.reset(victim, *other));
        }
        // All of a disk that failed is read back before it is used again. Where something has rotted, be it of use to nobody,
        // that ends in its loss.
        Fault::IoError if world.was_rotten(victim) => {}
        Fault::IoError => {
            world.trace.event(format!("node {victim}'s disk fails"));
            let faults = match random.within(0..2) {
                0 => Faults { sync_errors: 1_000_000, ..Faults::default() },
                _ => Faults { write_errors: 300_000, ..Faults::default() },
            };
            world.note_failing(victim, true);
            world.with_disks(victim, |disks| disks.disk.set_faults(faults));
            mend_later(world, random, victim);
        }
        Fault::FullDisk => {
            let room = random.within(0..20_000);
            world.trace.event(format!("node {victim}'s disk has {room} bytes left"));
            world.note_failing(victim, true);
            world.with_disks(victim, |disks| {
                let used = ROOMY - quorumail_journal::Disk::free_bytes(&disks.disk).unwrap_or(ROOMY);
                disks.disk.set_capacity(used.saturating_add(room));
            });
            mend_later(world, random, victim);
        }
        // Where bits have flipped, nothing else may be lost before that disk is replaced.
        Fault::LostDisk if world.can_lose_disk(world.damaged().unwrap_or(victim)) => {
            let victim = world.damaged().unwrap_or(victim);
            world.crash(victim, silent);
            world.wipe(victim);
        }
        // The leader is cut off while the others go on; then one of these loses its disk and the rest is down for a while.
        Fault::LostDiskOfTwo => {
            let Some(leader) = world.leads_most() else { return };
            world.trace.event(format!("node {leader} is cut off"));
            for other in ids.iter().filter(|other| **other != leader) {
                world.network.cut(leader, *other);
                world.network.cut(*other, leader);
            }
            sleep(Duration::from_millis(random.within(300..4_000))).await;
            let others: Vec<NodeId> = ids.iter().copied().filter(|id| *id != leader).collect();
            let loser = random.pick(&others).unwrap_or(leader);
            if world.can_lose_disk(loser) {
                world.crash(loser, silent);
                world.wipe(loser);
                others.iter().for_each(|id| world.crash(*id, silent));
            }
            world.trace.event("the network is whole".to_owned());
            world.network.heal();
        }
        Fault::BitFlip if world.can_lose_disk(victim) => {
            let bits = random.pick(&[1, 2, 3, 10, 30]).unwrap_or(1);
            world.trace.event(format!("{bits} bits flip on node {victim}'s disk"));
            for _ in 0..bits {
                world.with_disks(victim, |disks| disks.disk.flip_bit());
            }
            world.note_damage(victim);
            world.crash(victim, silent);
        }
        Fault::Rot if world.can_lose_disk(victim) && !world.is_failing(victim) => {
            rot::strike(world, victim, random.pick(&[1, 2, 5, 20]).unwrap_or(1), false);
        }
        // Of three replicas one stays well; and neither disk is lost for it, as no log needs what rots.
        Fault::RotOfTwo if world.has_everything_everywhere() => {
            let other = random.pick(&ids).unwrap_or(victim);
            for id in BTreeSet::from([victim, other]) {
                rot::strike(world, id, random.pick(&[5, 20, 60]).unwrap_or(5), true);
            }
        }
        Fault::LostDisk | Fault::BitFlip | Fault::Rot | Fault::RotOfTwo => {}
        Fault::ClockJump => {
            let offset = i64::try_from(random.within(0..7_200_000)).unwrap_or(0) - 3_600_000;
            world.trace.event(format!("clocks are {offset} ms off"));
            world.jump_clock(offset);
        }
        Fault::Restart => {
            if let Some(node) = world.node(victim) {
                world.trace.event(format!("node {victim} is restarted in order"));
                node.stop(Duration::from_secs(2)).await;
                world.crash(victim, false);
            }
        }
    }
}

fn heal_later(world: &Arc<World>, random: &mut Random) {
    let (world, pause) = (world.clone(), random.within(200..4_000));
    tokio::spawn(async move {
        sleep(Duration::from_millis(pause)).await;
        world.trace.event("the network is whole".to_owned());
        world.network.heal();
    });
}

fn mend_later(world: &Arc<World>, random: &mut Random, id: NodeId) {
    let (world, pause) = (world.clone(), random.within(300..3_000));
    tokio::spawn(async move {
        sleep(Duration::from_millis(pause)).await;
        mend(&world, id);
    });
}
