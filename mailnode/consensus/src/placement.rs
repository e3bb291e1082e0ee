//! Which nodes hold which group: a pure function of the configuration, the same on every node.

use std::collections::BTreeMap;

use crate::machine::{GroupId, NodeId};

/// At most this many nodes vote on the directory (group 0); the others follow it as learners.
pub const DIRECTORY_VOTERS: usize = 5;

/// Where a group's replicas are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Who votes. The first one bootstraps the group and is preferred as its leader.
    pub voters: Vec<NodeId>,
    /// Who only follows.
    pub learners: Vec<NodeId>,
}

impl Placement {
    /// Whether the node holds a replica, voting or not.
    pub fn holds(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// Spreads the groups over the nodes: every node gets the same number of replicas and of preferred leads, as nearly
/// as the numbers allow. The order of `nodes` does not matter.
pub fn placement(nodes: &[NodeId], partitions: u32, replicas: usize) -> BTreeMap<GroupId, Placement> {
    let mut nodes: Vec<NodeId> = nodes.to_vec();
    nodes.sort_unstable();
    nodes.dedup();
    assert!(!nodes.is_empty(), "a cluster without nodes has no placement");
    let count = nodes.len();
    let mut groups = BTreeMap::new();
    let directory = count.min(DIRECTORY_VOTERS);
    groups.insert(
        GroupId(0),
        Placement { voters: nodes[..directory].to_vec(), learners: nodes[directory..].to_vec() },
    );
    let replicas = replicas.clamp(1, count);
    for partition in 1..=partitions {
        // The leads go round the nodes; each further round shifts who the other voters are, so that the leads of a
        // lost node do not all fall on the same neighbour. Group 0 is led by the first node, so the round starts at
        // the second.
        let lead = partition as usize % count;
        let round = partition as usize / count;
        let mut voters = vec![nodes[lead]];
        let mut others: Vec<NodeId> = (1..count).map(|step| nodes[(lead + step) % count]).collect();
        if !others.is_empty() {
            let shift = round % others.len();
            others.rotate_left(shift);
        }
        voters.extend(others.into_iter().take(replicas - 1));
        groups.insert(GroupId(partition), Placement { voters, learners: Vec::new() });
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_and_leads_are_spread_evenly_over_the_nodes() {
        for count in 1..=12u64 {
            let nodes: Vec<NodeId> = (0..count).collect();
            let groups = placement(&nodes, 64, 3);
            assert_eq!(groups.len(), 65);
            let mut leads = vec![0usize; count as usize];
            let mut replicas = vec![0usize; count as usize];
            for (group, placed) in &groups {
                let mut all = [placed.voters.clone(), placed.learners.clone()].concat();
                all.sort_unstable();
                let held = all.len();
                all.dedup();
                assert_eq!(held, all.len(), "a node holds a group twice");
                if group.0 > 0 {
                    assert_eq!(placed.voters.len(), 3.min(count as usize));
                    leads[placed.voters[0] as usize] += 1;
                    placed.voters.iter().for_each(|node| replicas[*node as usize] += 1);
                } else {
                    assert_eq!(all, nodes, "every node holds the directory");
                    assert!(placed.voters.len() <= DIRECTORY_VOTERS);
                }
            }
            let spread = |numbers: &[usize]| numbers.iter().max().unwrap() - numbers.iter().min().unwrap();
            assert!(spread(&leads) <= 1, "{count} nodes: leads {leads:?}");
            assert!(spread(&replicas) <= 4, "{count} nodes: replicas {replicas:?}");
        }
    }

    #[test]
    fn placement_does_not_depend_on_the_order_of_the_nodes() {
        assert_eq!(placement(&[2, 0, 1, 3], 16, 3), placement(&[0, 1, 2, 3], 16, 3));
    }

    #[test]
    fn leads_of_a_lost_node_fall_on_several_others() {
        let nodes: Vec<NodeId> = (0..4).collect();
        let seconds: std::collections::BTreeSet<NodeId> = placement(&nodes, 32, 3)
            .iter()
            .filter(|(group, placed)| group.0 > 0 && placed.voters[0] == 0)
            .map(|(_, placed)| placed.voters[1])
            .collect();
        assert_eq!(seconds, [1, 2, 3].into());
    }
}
