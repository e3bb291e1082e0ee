//! Which nodes the cluster is to have: a list with a generation, told from node to node. The newest one counts.

use std::collections::BTreeSet;

use quorumail_proto::peer;

use crate::config::Peer;
use crate::machine::NodeId;

/// Most nodes of a cluster; bounds what a topology from another node can make us hold.
pub const MAX_NODES: usize = 256;
/// Differences between two topologies that are told one by one.
const DIFFERENCES_TOLD: usize = 8;
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

    /// What another topology says otherwise, in words: `here` and `there` are this one and the other one. Empty when they are
    /// the same.
    pub fn differences(&self, other: &Topology) -> Vec<String> {
        let mut found = Vec::new();
        if self.founders != other.founders {
            found.push(format!("founders {:?} here and {:?} there", self.founders, other.founders));
        }
        let all: BTreeSet<NodeId> = self.ids().into_iter().chain(other.ids()).collect();
        for id in all {
            let (here, there) = match (self.node(id), other.node(id)) {
                (Some(here), Some(there)) => (here, there),
                (here, _) => {
                    let side = if here.is_some() { "here" } else { "there" };
                    found.push(format!("node {id} only {side}"));
                    continue;
                }
            };
            let fields = [
                ("address", &here.address, &there.address),
                ("admin", &here.admin, &there.admin),
                ("zone", &here.zone, &there.zone),
            ];
            for (field, here, there) in fields.into_iter().filter(|(_, here, there)| here != there) {
                found.push(format!("node {id} has {field} {here:?} here and {there:?} there"));
            }
            if here.leaving != there.leaving {
                found.push(format!(
                    "node {id} is leaving only {}",
                    if here.leaving { "here" } else { "there" }
                ));
            }
        }
        found
    }

    /// Tells this topology from others, for nodes to see that they have the same without sending it. Never zero.
    pub(crate) fn fingerprint(&self) -> u32 {
        let mut text = format!("{} {:?}", self.generation, self.founders);
        for id in self.ids() {
            let Some(Peer { id, address, admin, zone, leaving }) = self.node(id) else { continue };
            text += &format!("\n{id}\0{address}\0{admin}\0{zone}\0{leaving}");
        }
        crc32c::crc32c(text.as_bytes()).max(1)
    }

    /// Whether two lists say the same, whatever the order of the nodes.
    pub(crate) fn says_the_same(&self, other: &Topology) -> bool {
        self.generation == other.generation && self.differences(other).is_empty()
    }

    /// Why another topology of the same generation is not taken up, and what to do.
    pub fn refuse_other(&self, other: &Topology) -> TopologyError {
        let mut differences = self.differences(other);
        let more = differences.len().saturating_sub(DIFFERENCES_TOLD);
        differences.truncate(DIFFERENCES_TOLD);
        if more > 0 {
            differences.push(format!("and {more} more"));
        }
        let reason = format!(
            "it differs from the one of the same generation that is in use here ({}); give all nodes one list of peers, under \
             a generation of {} or more",
            differences.join("; "),
            self.generation + 1
        );
        TopologyError { generation: self.generation, reason }
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
    fn two_lists_are_compared_field_by_field() {
        let one = Topology::from(vec![Peer::new(0, "a:1"), Peer::new(1, "b:1")]);
        let mut other = one.clone();
        other.nodes.reverse();
        assert_eq!((one.differences(&other), one.fingerprint()), (vec![], other.fingerprint()));
        other.nodes[0].address = "c:1".into();
        other.nodes[1].zone = "west".into();
        other.nodes[1].leaving = true;
        other.nodes.push(Peer::new(2, "d:1"));
        other.founders.pop();
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert_eq!(
            one.differences(&other),
            [
                "founders [0, 1] here and [0] there",
                "node 0 has zone \"\" here and \"west\" there",
                "node 0 is leaving only there",
                "node 1 has address \"b:1\" here and \"c:1\" there",
                "node 2 only there",
            ]
        );
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
