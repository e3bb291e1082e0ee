//! Which node backs up which group. Pure.
//!
//! Followers before leaders, which have more to do; nodes with the least to do first; at most [`PER_NODE`] groups on a node at
//! a time. A group whose backup failed goes to another replica, and to the first one again once all have been tried.

use std::collections::{BTreeMap, BTreeSet};

use quorumail_proto::admin::ClusterStatus;

/// Groups that one node backs up at a time; more are refused by it.
pub const PER_NODE: usize = 2;
/// Times that the backup of one group is tried.
pub const MAX_ATTEMPTS: usize = 6;

/// A group, and who has a replica of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    /// Zero is the directory.
    pub group: u32,
    /// Who leads it.
    pub leader: Option<u64>,
    /// Nodes that answer and hold a replica; never empty.
    pub nodes: Vec<u64>,
}

/// Groups that nobody can back up now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no mailnode that can be reached holds {}; bring the missing mailnodes back", words(.0))]
pub struct NoReplica(pub Vec<u32>);

fn words(groups: &[u32]) -> String {
    let names: Vec<String> = groups
        .iter()
        .map(|group| if *group == 0 { "the directory".to_owned() } else { format!("partition {group}") })
        .collect();
    names.join(", ")
}

/// Who holds what, by what the nodes tell of themselves.
///
/// # Errors
/// When a group has no replica on a node that answers.
pub fn replicas(status: &ClusterStatus) -> Result<Vec<Replicas>, NoReplica> {
    let mut held: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for report in status.nodes.iter().filter(|report| report.reachable) {
        for group in report.status.iter().flat_map(|status| &status.groups) {
            held.entry(group.group).or_default().push(report.node);
        }
    }
    let all: BTreeSet<u32> = (0..=status.partitions).collect();
    let missing: Vec<u32> = all.iter().filter(|group| !held.contains_key(group)).copied().collect();
    if !missing.is_empty() {
        return Err(NoReplica(missing));
    }
    let leader = |group| status.groups.iter().find(|status| status.group == group).and_then(|s| s.leader);
    let known = held.into_iter().filter(|(group, _)| all.contains(group));
    Ok(known.map(|(group, nodes)| Replicas { group, leader: leader(group), nodes }).collect())
}

/// What is left to do, and who does what.
#[derive(Debug)]
pub struct Schedule {
    at_once: usize,
    waiting: Vec<Waiting>,
    /// Groups by the node that is at them.
    running: BTreeMap<u64, usize>,
    /// Groups that each node was given so far.
    given: BTreeMap<u64, usize>,
    busy: BTreeMap<u32, Waiting>,
}

#[derive(Debug, Clone)]
struct Waiting {
    replicas: Replicas,
    attempts: usize,
    /// Nodes that have been tried in this round.
    tried: BTreeSet<u64>,
}

impl Schedule {
    /// All groups, of which at most `at_once` are backed up at a time over the cluster.
    pub fn new(groups: Vec<Replicas>, at_once: usize) -> Self {
        let waiting = |replicas| Waiting { replicas, attempts: 0, tried: BTreeSet::new() };
        Self {
            at_once: at_once.max(1),
            waiting: groups.into_iter().map(waiting).collect(),
            running: BTreeMap::new(),
            given: BTreeMap::new(),
            busy: BTreeMap::new(),
        }
    }

    /// The next group to begin, and the node to ask; none while there is no room or nothing to begin.
    pub fn begin(&mut self) -> Option<(u32, u64)> {
        if self.busy.len() >= self.at_once {
            return None;
        }
        let count = |counts: &BTreeMap<u64, usize>, node| counts.get(&node).copied().unwrap_or(0);
        let mut best = None;
        for (place, waiting) in self.waiting.iter().enumerate() {
            for node in waiting.replicas.nodes.iter().filter(|node| !waiting.tried.contains(node)) {
                let running = count(&self.running, *node);
                if running >= PER_NODE {
                    continue;
                }
                let leads = waiting.replicas.leader == Some(*node);
                let rank = (leads, running, count(&self.given, *node), place, *node);
                if best.is_none_or(|known| rank < known) {
                    best = Some(rank);
                }
            }
        }
        let (_, _, _, place, node) = best?;
        let mut taken = self.waiting.remove(place);
        taken.tried.insert(node);
        taken.attempts += 1;
        *self.running.entry(node).or_default() += 1;
        *self.given.entry(node).or_default() += 1;
        let group = taken.replicas.group;
        self.busy.insert(group, taken);
        Some((group, node))
    }

    /// A group is done.
    pub fn done(&mut self, group: u32, node: u64) {
        self.busy.remove(&group);
        self.leave(node);
    }

    /// The backup of a group failed on a node; whether it will be tried again.
    pub fn failed(&mut self, group: u32, node: u64) -> bool {
        self.leave(node);
        let Some(mut waiting) = self.busy.remove(&group) else { return false };
        if waiting.attempts >= MAX_ATTEMPTS {
            return false;
        }
        if waiting.tried.len() >= waiting.replicas.nodes.len() {
            waiting.tried.clear();
        }
        self.waiting.push(waiting);
        true
    }

    /// Whether all groups are done.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.busy.is_empty()
    }

    fn leave(&mut self, node: u64) {
        if let Some(running) = self.running.get_mut(&node) {
            *running = running.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use quorumail_proto::admin::{GroupStatus, NodeReport, NodeStatus};

    use super::*;

    fn cluster(nodes: u64, partitions: u32, down: &[u64]) -> ClusterStatus {
        let groups = |node: u64| {
            let held = (0..=partitions).filter(move |group| {
                *group == 0 || (0..3).any(|step| (u64::from(*group) + step) % nodes == node)
            });
            held.map(|group| GroupStatus { group, ..Default::default() }).collect()
        };
        let report = |node| NodeReport {
            node,
            reachable: !down.contains(&node),
            status: (!down.contains(&node)).then(|| NodeStatus {
                node,
                groups: groups(node),
                ..Default::default()
            }),
            ..Default::default()
        };
        let leader =
            |group: u32| (0..3).map(|step| (u64::from(group) + step) % nodes).find(|n| !down.contains(n));
        ClusterStatus {
            nodes: (0..nodes).map(report).collect(),
            groups: (0..=partitions)
                .map(|group| GroupStatus { group, leader: leader(group), ..Default::default() })
                .collect(),
            partitions,
            ..Default::default()
        }
    }

    #[test]
    fn followers_are_asked_and_all_nodes_get_their_share() {
        let groups = replicas(&cluster(3, 16, &[])).unwrap();
        assert_eq!(groups.len(), 17);
        let leaders: BTreeMap<u32, Option<u64>> = groups.iter().map(|g| (g.group, g.leader)).collect();
        let mut schedule = Schedule::new(groups, 100);
        let mut given: BTreeMap<u64, usize> = BTreeMap::new();
        let mut running = Vec::new();
        while !schedule.is_done() {
            while let Some((group, node)) = schedule.begin() {
                assert_ne!(leaders[&group], Some(node), "group {group} has followers");
                *given.entry(node).or_default() += 1;
                running.push((group, node));
            }
            assert_eq!(running.len().min(6), running.len(), "{PER_NODE} a node");
            let (group, node) = running.remove(0);
            schedule.done(group, node);
        }
        assert!(given.values().all(|groups| (5..=7).contains(groups)), "{given:?}");
    }

    #[test]
    fn what_fails_is_tried_on_another_replica_and_not_for_ever() {
        let group = Replicas { group: 1, leader: Some(0), nodes: vec![0, 1, 2] };
        let mut schedule = Schedule::new(vec![group], 8);
        let mut asked = Vec::new();
        while let Some((group, node)) = schedule.begin() {
            asked.push(node);
            assert!(schedule.begin().is_none(), "one at a time");
            if !schedule.failed(group, node) {
                break;
            }
        }
        assert_eq!(asked.len(), MAX_ATTEMPTS);
        assert_eq!(asked[..3], [1, 2, 0], "followers first");
        assert_eq!(asked[3..].iter().collect::<BTreeSet<_>>().len(), 3);
        assert!(schedule.is_done(), "given up");
    }

    #[test]
    fn a_leader_is_asked_where_nobody_else_is() {
        let groups = replicas(&cluster(3, 2, &[0, 2])).unwrap();
        let mut schedule = Schedule::new(groups, 8);
        assert_eq!(schedule.begin().map(|(_, node)| node), Some(1));
    }

    #[test]
    fn the_bound_over_the_cluster_holds() {
        let mut schedule = Schedule::new(replicas(&cluster(5, 16, &[])).unwrap(), 3);
        assert_eq!(std::iter::from_fn(|| schedule.begin()).count(), 3);
    }

    #[test]
    fn groups_without_a_replica_are_named() {
        let error = replicas(&cluster(6, 6, &[0, 1, 2])).unwrap_err();
        assert_eq!(error.0, [6]);
        assert!(error.to_string().contains("partition 6"), "{error}");
    }
}
