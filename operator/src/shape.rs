//! How many nodes a cluster has and is to have, and how one becomes the other. Pure; the same for Kubernetes and for
//! `quorumail dev`.
//!
//! Nodes are numbered from 0, so a number of nodes says which. To grow, more are listed and started. To shrink, those with
//! the highest numbers are marked as leaving, and are taken out of the list, and stopped, once nothing is left on them.

use quorumail_proto::admin::{ClusterStatus, Topology, TopologyNode};
use serde::{Deserialize, Serialize};

/// The nodes of a cluster, as its configuration lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Counts changes; mailnodes follow the highest that they know.
    pub generation: u64,
    /// Number of nodes that founded the cluster.
    pub founders: u64,
    /// Number of nodes that are to stay.
    pub staying: u64,
    /// Number of nodes that there are; those from `staying` up are leaving.
    pub running: u64,
}

/// How far the mailnodes are with a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Replicas move.
    Moving,
    /// Nothing is left on the nodes that leave.
    Emptied,
    /// All is where it should be.
    Settled,
}

impl Shape {
    /// Of a new cluster.
    pub fn founded(nodes: u64) -> Self {
        Self { generation: 1, founders: nodes, staying: nodes, running: nodes }
    }

    /// The shape that leads from this one to `wanted` nodes; itself when nothing is to be changed now.
    pub fn next(self, wanted: u64, told: Option<&ClusterStatus>) -> Self {
        if wanted != self.staying {
            let running = self.running.max(wanted);
            return Self { generation: self.generation + 1, staying: wanted, running, ..self };
        }
        match told.map(|told| self.stage(told)) {
            Some(Stage::Emptied) => Self { generation: self.generation + 1, running: self.staying, ..self },
            _ => self,
        }
    }

    /// Whether the node is to go.
    pub fn is_leaving(&self, node: u64) -> bool {
        node >= self.staying
    }

    /// Reads from what the mailnodes say how far they are.
    pub fn stage(&self, told: &ClusterStatus) -> Stage {
        let known = |node: u64| {
            let report = told.nodes.iter().find(|report| report.node == node);
            report.and_then(|report| report.status.as_ref()).is_some_and(|s| s.generation == self.generation)
        };
        let mut plans = told.nodes.iter().filter_map(|report| report.status.as_ref()?.plan.as_ref());
        let planned = plans.any(|plan| plan.generation == self.generation);
        if !(0..self.staying).all(known) || !planned || told.moving > 0 {
            return Stage::Moving;
        }
        if self.running == self.staying {
            return Stage::Settled;
        }
        let mut leaving = told.nodes.iter().filter(|report| self.is_leaving(report.node));
        if leaving.all(|report| report.replicas == 0) { Stage::Emptied } else { Stage::Moving }
    }

    /// As the admin API takes it. `addresses` are those of the peer and the admin service of each node, `zones` where it is;
    /// a node beyond their end has none.
    pub fn topology(&self, addresses: impl Iterator<Item = (String, String)>, zones: &[String]) -> Topology {
        let zones = zones.iter().cloned().chain(std::iter::repeat(String::new()));
        let node = |(node, ((address, admin), zone)): (u64, ((String, String), String))| TopologyNode {
            node,
            address,
            admin,
            zone,
            leaving: self.is_leaving(node),
        };
        Topology {
            generation: self.generation,
            founders: (0..self.founders).collect(),
            nodes: (0..self.running).zip(addresses.zip(zones)).map(node).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorumail_proto::admin::{NodeReport, NodeStatus, Plan};

    use super::*;

    fn told(replicas: &[u32], generation: u64, moving: u32) -> ClusterStatus {
        let plan = Plan { generation, ..Plan::default() };
        let report = |(node, replicas): (usize, &u32)| NodeReport {
            node: node as u64,
            replicas: *replicas,
            status: Some(NodeStatus {
                generation,
                plan: (node == 0).then(|| plan.clone()),
                ..NodeStatus::default()
            }),
            ..NodeReport::default()
        };
        let nodes = replicas.iter().enumerate().map(report).collect();
        ClusterStatus { nodes, moving, ..ClusterStatus::default() }
    }

    #[test]
    fn more_nodes_are_listed_at_once_and_fewer_only_when_those_that_leave_are_empty() {
        let one = Shape::founded(1);
        assert_eq!(one.next(1, None), one);
        let three = one.next(3, None);
        assert_eq!(three, Shape { generation: 2, founders: 1, staying: 3, running: 3 });
        let leaving = three.next(1, Some(&told(&[2, 2, 2], 2, 0)));
        assert_eq!(leaving, Shape { generation: 3, founders: 1, staying: 1, running: 3 });
        assert_eq!(leaving.next(1, Some(&told(&[2, 2, 0], 3, 1))), leaving, "replicas move");
        assert_eq!(leaving.next(1, Some(&told(&[2, 1, 0], 3, 0))), leaving, "a replica is left");
        assert_eq!(leaving.next(1, Some(&told(&[2, 0, 0], 2, 0))), leaving, "of the time before");
        assert_eq!(leaving.next(1, None), leaving, "nobody can be asked");
        let gone = leaving.next(1, Some(&told(&[2, 0, 0], 3, 0)));
        assert_eq!(gone, Shape { generation: 4, founders: 1, staying: 1, running: 1 });
    }

    #[test]
    fn a_change_of_mind_keeps_the_nodes_that_are_still_there() {
        let leaving = Shape { generation: 3, founders: 3, staying: 3, running: 5 };
        assert_eq!(leaving.next(5, None), Shape { generation: 4, founders: 3, staying: 5, running: 5 });
    }
}
