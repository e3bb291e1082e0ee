//! Which nodes are to hold which group: a pure function of the topology and of who holds it now.
//!
//! Every node gets as many replicas and leads as any other, or one less; the replicas of a group are in different zones
//! where there are enough; and what holds a group already goes on holding it unless that stands in the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::machine::{GroupId, NodeId};
use crate::topology::Topology;

/// At most this many nodes vote on the directory (group 0); the others follow it as learners.
pub const DIRECTORY_VOTERS: usize = 5;
const DIRECTORY: GroupId = GroupId(0);

/// Where a group's replicas are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Who votes. The first one is preferred as leader, and founds the group in a new cluster.
    pub voters: Vec<NodeId>,
    /// Who only follows.
    pub learners: Vec<NodeId>,
}

impl Placement {
    /// Whether the node is to hold a replica, voting or not.
    pub fn holds(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }

    pub(crate) fn voter_set(&self) -> BTreeSet<NodeId> {
        self.voters.iter().copied().collect()
    }

    pub(crate) fn members(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.learners).copied().collect()
    }
}

/// Who holds a group now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// Who votes; during a change those before and after it.
    pub voters: BTreeSet<NodeId>,
    /// Who follows.
    pub learners: BTreeSet<NodeId>,
    /// Who is preferred as leader.
    pub lead: Option<NodeId>,
}

/// Places all groups of a new cluster.
pub fn founding(topology: &Topology, partitions: u32, replicas: usize) -> BTreeMap<GroupId, Placement> {
    placement(topology, partitions, replicas, &BTreeMap::new())
}

/// Places all groups: evenly, and with as few replicas moved from where they are as that allows. What has no entry in
/// `current` is placed as in a new cluster.
pub fn placement(
    topology: &Topology,
    partitions: u32,
    replicas: usize,
    current: &BTreeMap<GroupId, Current>,
) -> BTreeMap<GroupId, Placement> {
    let nodes = topology.staying();
    assert!(!nodes.is_empty(), "a cluster without nodes has no placement");
    let mut spread = Spread::new(topology, &nodes, replicas);
    let mut leads = BTreeMap::new();
    let directory = directory_voters(&spread, current.get(&DIRECTORY));
    leads.insert(DIRECTORY, current.get(&DIRECTORY).and_then(|held| held.lead).unwrap_or(nodes[0]));
    for partition in 1..=partitions {
        let group = GroupId(partition);
        let ring = ring(&nodes, partition, spread.replicas);
        let held = current.get(&group);
        leads.insert(group, held.and_then(|held| held.lead).unwrap_or(ring[0]));
        spread.keep(group, held, &ring);
    }
    let learners: BTreeMap<GroupId, &BTreeSet<NodeId>> =
        current.iter().map(|(group, held)| (*group, &held.learners)).collect();
    spread.fill(&learners);
    spread.separate_zones();
    spread.balance();
    let mut voters = spread.groups;
    voters.insert(DIRECTORY, directory);
    balance_leads(&nodes, &voters, &mut leads);
    let placed = voters.into_iter().map(|(group, voters)| {
        let lead = leads[&group];
        let others = voters.iter().copied().filter(|node| *node != lead);
        let learners = match group {
            DIRECTORY => topology.ids().into_iter().filter(|node| !voters.contains(node)).collect(),
            _ => Vec::new(),
        };
        (group, Placement { voters: std::iter::once(lead).chain(others).collect(), learners })
    });
    placed.collect()
}

/// A partition's replicas in a new cluster: the leads go round the nodes, and each further round shifts who the other
/// voters are, so that the leads of a lost node do not all fall on the same neighbour. Group 0 is led by the first node,
/// so the round starts at the second.
fn ring(nodes: &[NodeId], partition: u32, replicas: usize) -> Vec<NodeId> {
    let count = nodes.len();
    let (lead, round) = (partition as usize % count, partition as usize / count);
    let mut others: Vec<NodeId> = (1..count).map(|step| nodes[(lead + step) % count]).collect();
    if !others.is_empty() {
        let shift = round % others.len();
        others.rotate_left(shift);
    }
    std::iter::once(nodes[lead]).chain(others).take(replicas).collect()
}

fn directory_voters(spread: &Spread<'_>, held: Option<&Current>) -> BTreeSet<NodeId> {
    let wanted = spread.nodes.len().min(DIRECTORY_VOTERS);
    let mut voters: BTreeSet<NodeId> = match held {
        Some(held) => held.voters.iter().copied().filter(|node| spread.nodes.contains(node)).collect(),
        None => BTreeSet::new(),
    };
    while voters.len() > wanted {
        let last = *voters.last().expect("there are more than are wanted");
        voters.remove(&last);
    }
    while voters.len() < wanted {
        let others = spread.nodes.iter().copied().filter(|node| !voters.contains(node));
        let next = others.min_by_key(|node| (spread.shares_zone(&voters, *node), *node));
        voters.insert(next.expect("fewer are wanted than there are"));
    }
    voters
}

/// The replicas of the partitions while they are being placed.
struct Spread<'a> {
    nodes: &'a [NodeId],
    zones: BTreeMap<NodeId, &'a str>,
    replicas: usize,
    /// Replicas a node.
    load: BTreeMap<NodeId, usize>,
    groups: BTreeMap<GroupId, BTreeSet<NodeId>>,
}

impl<'a> Spread<'a> {
    fn new(topology: &'a Topology, nodes: &'a [NodeId], replicas: usize) -> Spread<'a> {
        let zone = |id: &NodeId| (*id, topology.node(*id).map_or("", |peer| peer.zone.as_str()));
        Spread {
            nodes,
            zones: nodes.iter().map(zone).collect(),
            replicas: replicas.clamp(1, nodes.len()),
            load: nodes.iter().map(|node| (*node, 0)).collect(),
            groups: BTreeMap::new(),
        }
    }

    /// How many of the nodes are in this one's zone.
    fn shares_zone(&self, nodes: &BTreeSet<NodeId>, node: NodeId) -> usize {
        nodes.iter().filter(|other| self.zones[*other] == self.zones[&node]).count()
    }

    fn distinct_zones(&self, nodes: &BTreeSet<NodeId>) -> usize {
        nodes.iter().map(|node| self.zones[node]).collect::<BTreeSet<_>>().len()
    }

    fn add(&mut self, group: GroupId, node: NodeId) {
        if self.groups.entry(group).or_default().insert(node) {
            *self.load.entry(node).or_default() += 1;
        }
    }

    fn remove(&mut self, group: GroupId, node: NodeId) {
        if self.groups.entry(group).or_default().remove(&node) {
            *self.load.entry(node).or_default() -= 1;
        }
    }

    /// Starts from who holds the group now, without those that leave.
    fn keep(&mut self, group: GroupId, held: Option<&Current>, ring: &[NodeId]) {
        let staying: Vec<NodeId> = match held {
            Some(held) => held.voters.iter().copied().filter(|node| self.nodes.contains(node)).collect(),
            None => ring.to_vec(),
        };
        self.groups.insert(group, BTreeSet::new());
        staying.into_iter().for_each(|node| self.add(group, node));
    }

    /// Brings every group to its number of replicas.
    fn fill(&mut self, learners: &BTreeMap<GroupId, &BTreeSet<NodeId>>) {
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in &groups {
            while self.groups[group].len() > self.replicas {
                let held = &self.groups[group];
                // The fullest goes, one that shares its zone before all others.
                let worst = held.iter().copied().max_by_key(|node| {
                    (self.shares_zone(held, *node), self.load[node], std::cmp::Reverse(*node))
                });
                self.remove(*group, worst.expect("there are too many"));
            }
        }
        for group in &groups {
            while self.groups[group].len() < self.replicas {
                let held = &self.groups[group];
                let follows = |node: &NodeId| learners.get(group).is_some_and(|known| known.contains(node));
                // The emptiest, in a zone of its own if there is one; what follows already has the log.
                let others = self.nodes.iter().copied().filter(|node| !held.contains(node));
                let best = others.min_by_key(|node| {
                    (self.shares_zone(held, *node), !follows(node), self.load[node], *node)
                });
                self.add(*group, best.expect("a group has no more replicas than there are nodes"));
            }
        }
    }

    /// Moves replicas out of zones that a group has twice, into those that it lacks.
    fn separate_zones(&mut self) {
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in groups {
            loop {
                let held = &self.groups[&group];
                let twice = held.iter().copied().filter(|node| self.shares_zone(held, *node) > 1);
                let Some(from) = twice.max_by_key(|node| (self.load[node], std::cmp::Reverse(*node))) else {
                    break;
                };
                let free = self.nodes.iter().copied().filter(|node| self.shares_zone(held, *node) == 0);
                let Some(to) = free.min_by_key(|node| (self.load[node], *node)) else { break };
                self.remove(group, from);
                self.add(group, to);
            }
        }
    }

    /// Moves single replicas from the fullest nodes to the emptiest until no node has two more than another, as far as
    /// the zones allow.
    fn balance(&mut self) {
        'again: loop {
            let mut by_load = self.nodes.to_vec();
            by_load.sort_by_key(|node| (self.load[node], *node));
            for from in by_load.iter().rev() {
                for to in &by_load {
                    if self.load[from] < self.load[to] + 2 {
                        break;
                    }
                    // Each such move makes the sum of the squares of the loads smaller, so this ends.
                    if let Some(group) = self.movable(*from, *to) {
                        self.remove(group, *from);
                        self.add(group, *to);
                        continue 'again;
                    }
                }
            }
            return;
        }
    }

    fn movable(&self, from: NodeId, to: NodeId) -> Option<GroupId> {
        let fits = |(_, held): &(&GroupId, &BTreeSet<NodeId>)| {
            if !held.contains(&from) || held.contains(&to) {
                return false;
            }
            let mut moved = (*held).clone();
            moved.remove(&from);
            moved.insert(to);
            self.distinct_zones(&moved) >= self.distinct_zones(held)
        };
        self.groups.iter().find(fits).map(|(group, _)| *group)
    }
}

/// Gives every node as many leads as any other or one less, changing few of the leads that there are: a lead moves along
/// the shortest chain of groups from a node with too many to one with too few.
fn balance_leads(
    nodes: &[NodeId],
    voters: &BTreeMap<GroupId, BTreeSet<NodeId>>,
    leads: &mut BTreeMap<GroupId, NodeId>,
) {
    let mut count: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    for (group, lead) in leads.iter_mut() {
        if !voters[group].contains(lead) {
            let least = voters[group].iter().copied().min_by_key(|node| (count[node], *node));
            *lead = least.expect("a group has voters");
        }
        *count.entry(*lead).or_default() += 1;
    }
    loop {
        let mut by_count = nodes.to_vec();
        by_count.sort_by_key(|node| (std::cmp::Reverse(count[node]), *node));
        let chain = by_count.into_iter().find_map(|from| chain_of_leads(from, voters, leads, &count));
        // Each chain takes one lead from a node and gives it to one that has two less, so this ends.
        let Some(chain) = chain else { return };
        for (group, to) in chain {
            let from = leads.insert(group, to).expect("every group has a lead");
            *count.entry(from).or_default() -= 1;
            *count.entry(to).or_default() += 1;
        }
    }
}

/// Which leads to pass on so that `from` has one less and some node with two less has one more.
fn chain_of_leads(
    from: NodeId,
    voters: &BTreeMap<GroupId, BTreeSet<NodeId>>,
    leads: &BTreeMap<GroupId, NodeId>,
    count: &BTreeMap<NodeId, usize>,
) -> Option<Vec<(GroupId, NodeId)>> {
    let mut came: BTreeMap<NodeId, (NodeId, GroupId)> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        for (group, _) in leads.iter().filter(|(_, lead)| **lead == node) {
            for next in &voters[group] {
                if *next == from || came.contains_key(next) {
                    continue;
                }
                came.insert(*next, (node, *group));
                if count[next] + 2 <= count[&from] {
                    let mut chain = Vec::new();
                    let mut at = *next;
                    while at != from {
                        let (before, group) = came[&at];
                        chain.push((group, at));
                        at = before;
                    }
                    return Some(chain);
                }
                queue.push_back(*next);
            }
        }
    }
    None
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
