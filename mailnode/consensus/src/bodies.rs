//! Bodies that a replica has lost to its disk, from the other replicas of their group.

use std::time::Duration;

use bytes::Bytes;
use quorumail_proto::peer::BodyRequest;

use crate::machine::{GroupId, NodeId};
use crate::node::{Consensus, Inner};
use crate::runtime::offload;

/// Bodies read for other nodes at once: each may be as long as a command, and they must not hold up other reads.
pub(crate) const BODIES_AT_ONCE: usize = 4;

impl Consensus {
    /// The other nodes that hold a replica of the group, its leader first; empty when there is no replica here.
    pub fn other_replicas(&self, group: GroupId) -> Vec<NodeId> {
        let Some(held) = self.0.group(group) else { return Vec::new() };
        let leader = held.leader.borrow().node;
        let mut others: Vec<NodeId> = held.membership().nodes().map(|(node, _)| *node).collect();
        others.retain(|node| *node != self.0.config.node);
        others.sort_unstable_by_key(|node| (Some(*node) != leader, *node));
        others
    }

    /// The body that the command at a log index brought, from another node's replica; none when that one has none of that
    /// name. What comes is what stood on that node's disk under a checksum; the caller knows how long it must be.
    ///
    /// # Errors
    /// In words, when the node does not answer in time, holds no replica, or cannot read it either.
    pub async fn fetch_body(
        &self,
        from: NodeId,
        group: GroupId,
        index: u64,
        within: Duration,
    ) -> Result<Option<Bytes>, String> {
        let link = self.0.links.get(from).ok_or_else(|| format!("node {from} is not configured"))?;
        let mut client = link.client()?;
        let asked = client.fetch_body(BodyRequest { group: group.0, index });
        match tokio::time::timeout(within, asked).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().body),
            Ok(Err(status)) => Err(link.failed(&status)),
            Err(_) => Err(format!("no answer within {within:?}")),
        }
    }
}

impl Inner {
    /// A body of a replica here, for another node.
    pub(crate) async fn body_here(&self, group: GroupId, index: u64) -> Result<Option<Bytes>, String> {
        let _turn = self.bodies.acquire().await.map_err(|error| error.to_string())?;
        let machine = self.machine.clone();
        let read = offload(move || machine.body(group, index)).await;
        read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}
