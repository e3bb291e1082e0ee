//! Which nodes the cluster is to have: a list with a generation, told from node to node. The newest one counts.

use std::collections::BTreeSet;

use quorumail_proto::peer;

use crate::config::Peer;
use crate::machine::NodeId;

/// Most nodes of a cluster; bounds what a topology from another node can make us hold.
pub const MAX_NODES: usize = 256;
/// Longest address or zone in it, in bytes: a host name (RFC 1035 2.3.4) and a port.
const MAX_TEXT: usize = 320;

/// The nodes that there are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Counts changes, from 1. A topology with a higher one replaces this one, wherever it comes from.
    pub generation: u64,
    /// The nodes that found the groups of a new cluster. They stay the same for ever, so that no two nodes can found one
    /// group; empty in a newer topology: as before.
    pub founders: Vec<NodeId>,
    /// All nodes.
    pub nodes: Vec<Peer>,
}

/// A topology that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topology of generation {generation}: {reason}")]
pub struct TopologyError {
    /// Its generation.
    pub generation: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl From<Vec<Peer>> for Topology {
    /// The first topology of a new cluster: these nodes found it.
    fn from(nodes: Vec<Peer>) -> Topology {
        Topology { generation: 1, founders: nodes.iter().map(|peer| peer.id).collect(), nodes }
    }
}

impl Topology {
    /// Whether the membership has never been changed: the nodes are those that found the cluster.
    pub fn is_original(&self) -> bool {
        self.generation <= 1
    }

    /// Nodes that are to hold replicas, in order.
    pub fn staying(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.nodes.iter().filter(|peer| !peer.leaving).map(|peer| peer.id).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Numbers of all nodes, in order.
    pub fn ids(&self) -> Vec<NodeId> {
        let ids: BTreeSet<NodeId> = self.nodes.iter().map(|peer| peer.id).collect();
        ids.into_iter().collect()
    }

    /// A node of it.
    pub fn node(&self, id: NodeId) -> Option<&Peer> {
        self.nodes.iter().find(|peer| peer.id == id)
    }

    /// Looks at what must hold of every topology.
    ///
    /// # Errors
    /// What does not, in words.
    pub fn check(&self) -> Result<(), TopologyError> {
        let wrong = |reason: String| Err(TopologyError { generation: self.generation, reason });
        if self.generation == 0 {
            return wrong("the generation must be at least 1".into());
        }
        if self.nodes.len() > MAX_NODES || self.founders.len() > MAX_NODES {
            return wrong(format!("more than {MAX_NODES} nodes"));
        }
        if self.ids().len() != self.nodes.len() {
            return wrong("a node is listed twice".into());
        }
        if self.staying().is_empty() {
            return wrong("no node is left that could hold the mail".into());
        }
        for peer in &self.nodes {
            if [&peer.address, &peer.admin, &peer.zone].iter().any(|text| text.len() > MAX_TEXT) {
                return wrong(format!("an address or zone of node {} is too long", peer.id));
            }
        }
        Ok(())
    }
}

pub(crate) fn to_wire(topology: &Topology) -> peer::Topology {
    let member = |node: &Peer| peer::Member {
        node: node.id,
        address: node.address.clone(),
        admin: node.admin.clone(),
        zone: node.zone.clone(),
        leaving: node.leaving,
    };
    peer::Topology {
        generation: topology.generation,
        founders: topology.founders.clone(),
        nodes: topology.nodes.iter().map(member).collect(),
    }
}

pub(crate) fn from_wire(topology: peer::Topology) -> Result<Topology, TopologyError> {
    let node = |member: peer::Member| Peer {
        id: member.node,
        address: member.address,
        admin: member.admin,
        zone: member.zone,
        leaving: member.leaving,
    };
    let topology = Topology {
        generation: topology.generation,
        founders: topology.founders,
        nodes: topology.nodes.into_iter().map(node).collect(),
    };
    topology.check()?;
    Ok(topology)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_comes_out_as_it_went_in() {
        let mut nodes = vec![Peer::new(0, "a:1"), Peer::new(3, "b:2")];
        nodes[1].leaving = true;
        nodes[1].zone = "west".into();
        let topology = Topology { generation: 7, founders: vec![0], nodes };
        assert_eq!(from_wire(to_wire(&topology)).unwrap(), topology);
        assert_eq!(topology.staying(), [0]);
    }

    #[test]
    fn what_leaves_no_node_or_names_one_twice_is_refused() {
        let mut topology = Topology::from(vec![Peer::new(0, "a:1")]);
        topology.nodes[0].leaving = true;
        assert!(topology.check().is_err(), "nobody is left");
        topology.nodes = vec![Peer::new(0, "a:1"), Peer::new(0, "b:1")];
        assert!(topology.check().is_err(), "a node twice");
        topology.nodes = vec![Peer::new(0, "a:1")];
        topology.generation = 0;
        assert!(topology.check().is_err(), "no generation");
    }
}
