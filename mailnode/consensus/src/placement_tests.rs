use proptest::prelude::*;

use super::*;
use crate::config::Peer;

fn topology(nodes: &[NodeId]) -> Topology {
    Topology::from(nodes.iter().map(|id| Peer::new(*id, format!("n{id}:1"))).collect::<Vec<_>>())
}

/// As everything is once the plan has been carried out.
fn carried_out(placed: &BTreeMap<GroupId, Placement>) -> BTreeMap<GroupId, Current> {
    let held = |(group, placed): (&GroupId, &Placement)| {
        let voters = placed.voter_set();
        let learners = placed.learners.iter().copied().collect();
        (*group, Current { voters, learners, lead: Some(placed.voters[0]) })
    };
    placed.iter().map(held).collect()
}

fn spread_of(numbers: impl Iterator<Item = usize>) -> usize {
    let numbers: Vec<usize> = numbers.collect();
    numbers.iter().max().unwrap_or(&0) - numbers.iter().min().unwrap_or(&0)
}

fn check(topology: &Topology, placed: &BTreeMap<GroupId, Placement>) {
    let nodes = topology.staying();
    let mut leads: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    let mut replicas = leads.clone();
    for (group, placed) in placed {
        assert_eq!(placed.members().len(), placed.voters.len() + placed.learners.len(), "a node twice");
        assert!(placed.voters.iter().all(|node| nodes.contains(node)), "only nodes that stay vote");
        *leads.get_mut(&placed.voters[0]).unwrap() += 1;
        if group.0 == 0 {
            assert_eq!(placed.members().into_iter().collect::<Vec<_>>(), topology.ids());
            assert_eq!(placed.voters.len(), nodes.len().min(DIRECTORY_VOTERS));
        } else {
            assert_eq!(placed.voters.len(), nodes.len().min(3));
            placed.voters.iter().for_each(|node| *replicas.get_mut(node).unwrap() += 1);
        }
    }
    assert!(spread_of(leads.values().copied()) <= 1, "leads {leads:?}");
    assert!(spread_of(replicas.values().copied()) <= 1, "replicas {replicas:?}");
}

/// Replicas of partitions that `after` has and `before` has not.
fn moved(before: &BTreeMap<GroupId, Placement>, after: &BTreeMap<GroupId, Placement>) -> usize {
    let new = |(group, placed): (&GroupId, &Placement)| {
        placed.voters.iter().filter(|node| !before[group].voters.contains(node)).count()
    };
    after.iter().filter(|(group, _)| group.0 > 0).map(new).sum()
}

#[test]
fn replicas_and_leads_are_spread_evenly_over_the_nodes() {
    for count in 1..=12u64 {
        let topology = topology(&(0..count).collect::<Vec<_>>());
        let placed = founding(&topology, 64, 3);
        assert_eq!(placed.len(), 65);
        check(&topology, &placed);
    }
}

#[test]
fn placement_does_not_depend_on_the_order_of_the_nodes() {
    assert_eq!(founding(&topology(&[2, 0, 1, 3]), 16, 3), founding(&topology(&[0, 1, 2, 3]), 16, 3));
}

#[test]
fn growing_and_shrinking_move_no_more_replicas_than_an_even_spread_needs() {
    let mut topology = topology(&[0]);
    let mut placed = founding(&topology, 16, 3);
    // One to three nodes: each of the 16 groups gets two more. Three to five: 48 replicas over five nodes is nine or ten
    // each, so 19 go to the two new ones at most. Back: their 19 go to the three others.
    for (count, most) in [(3u64, 32), (5, 19), (7, 14), (5, 14), (3, 19), (1, 0)] {
        topology.generation += 1;
        topology.nodes = (0..count).map(|id| Peer::new(id, "a:1")).collect();
        let next = placement(&topology, 16, 3, &carried_out(&placed));
        check(&topology, &next);
        assert!(
            moved(&placed, &next) <= most,
            "{} replicas move to get {count} nodes",
            moved(&placed, &next)
        );
        placed = next;
    }
}

#[test]
fn replicas_of_a_node_that_leaves_go_to_the_others_and_it_follows_the_directory_till_the_end() {
    let mut topology = topology(&[0, 1, 2, 3]);
    let before = founding(&topology, 16, 3);
    topology.nodes[1].leaving = true;
    let after = placement(&topology, 16, 3, &carried_out(&before));
    check(&topology, &after);
    assert_eq!(after[&DIRECTORY].learners, [1]);
    assert!((1..=16).all(|group| !after[&GroupId(group)].holds(1)));
}

#[test]
fn replicas_of_a_group_are_in_different_zones_where_there_are_enough() {
    let mut topology = topology(&[0, 1, 2, 3, 4, 5]);
    let zones = ["a", "a", "b", "b", "c", "c"];
    topology.nodes.iter_mut().zip(zones).for_each(|(peer, zone)| peer.zone = zone.into());
    let placed = founding(&topology, 32, 3);
    check(&topology, &placed);
    for (group, placed) in placed.iter().filter(|(group, _)| group.0 > 0) {
        let zones: BTreeSet<&str> = placed.voters.iter().map(|node| zones[*node as usize]).collect();
        assert_eq!(zones.len(), 3, "group {} is on {:?}", group.0, placed.voters);
    }
}

#[test]
fn leads_of_a_lost_node_fall_on_several_others() {
    let topology = topology(&[0, 1, 2, 3]);
    let placed = founding(&topology, 32, 3);
    let led = placed.iter().filter(|(group, placed)| group.0 > 0 && placed.voters[0] == 0);
    let others: BTreeSet<NodeId> = led.flat_map(|(_, placed)| placed.voters[1..].to_vec()).collect();
    assert_eq!(others, [1, 2, 3].into());
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_is_the_plan_for_what_is_then(
        changes in prop::collection::vec((1u64..9, 0usize..3), 1..6),
        partitions in 1u32..40,
        zones in 1usize..5,
    ) {
        let mut current = BTreeMap::new();
        for (generation, (count, leaving)) in changes.into_iter().enumerate() {
            let mut topology = topology(&(0..count).collect::<Vec<_>>());
            topology.generation = generation as u64 + 1;
            topology.nodes.iter_mut().for_each(|peer| peer.zone = format!("z{}", peer.id as usize % zones));
            let leave = leaving.min(count as usize - 1);
            topology.nodes.iter_mut().take(leave).for_each(|peer| peer.leaving = true);
            let placed = placement(&topology, partitions, 3, &current);
            if zones == 1 {
                check(&topology, &placed);
            }
            let nodes = topology.staying();
            for (group, placed) in &placed {
                prop_assert!(placed.voters.iter().all(|node| nodes.contains(node)));
                let used: BTreeSet<u64> = placed.voters.iter().map(|node| node % zones as u64).collect();
                let there: BTreeSet<u64> = nodes.iter().map(|node| node % zones as u64).collect();
                if *group != DIRECTORY {
                    prop_assert!(used.len() >= there.len().min(placed.voters.len()));
                }
            }
            current = carried_out(&placed);
            prop_assert_eq!(placement(&topology, partitions, 3, &current), placed);
        }
    }
}
