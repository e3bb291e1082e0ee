//! Gets a body back that the disk here has lost, from the other replicas of its group. See ADR 12.

use std::time::Duration;

use bytes::Bytes;
use quorumail_consensus::{Consensus, GroupId, NodeId, offload};
use quorumail_store::{Bodies as _, JournalBodies, LostBody, Store};

/// How long a replica may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// How a repair ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mended {
    /// The body lies well on the disk here, and came from that node.
    Repaired(Bytes, NodeId),
    /// It does anyway: somebody else was quicker, or it can be read again.
    Well(Bytes),
    /// It came, and could not be kept.
    NotKept(Bytes, String),
    /// Nothing refers to it any more.
    Gone,
    /// Why nobody could give it.
    Lost(String),
}

/// Mends the bodies of one node.
#[derive(Clone)]
pub struct Mender {
    /// Who refers to what.
    pub store: Store,
    /// Who knows the other replicas.
    pub consensus: Consensus,
    /// Where bodies lie.
    pub bodies: JournalBodies,
}

impl Mender {
    /// Repairs one body. Answers besides in which segment it has rotted, when the logs need that: they must leave it behind
    /// ([`crate::leave_behind`]), as a start would read it.
    pub async fn repair(&self, lost: LostBody) -> (Mended, Option<u64>) {
        match self.blocking(move |this| this.look(lost)).await {
            Ok(Ok((lost, is_log))) => (self.fetch(lost).await, is_log.then_some(lost.place.record.segment)),
            Ok(Err(mended)) => (mended, None),
            Err(reason) => (Mended::Lost(reason), None),
        }
    }

    /// Asks the other replicas, one after the other, and keeps what fits. Where it cannot be told whether it fits, the word of
    /// a replica counts, as it does in a snapshot, unless another one says something else.
    async fn fetch(&self, lost: LostBody) -> Mended {
        let group = GroupId(lost.group);
        let mut reasons = Vec::new();
        let mut doubtful: Vec<(Bytes, NodeId)> = Vec::new();
        for node in self.consensus.other_replicas(group) {
            let body = match self.consensus.fetch_body(node, group, lost.body.0, ANSWER_WITHIN).await {
                Ok(Some(body)) => body,
                Ok(None) => {
                    reasons.push(format!("node {node} has it not"));
                    continue;
                }
                Err(reason) => {
                    reasons.push(format!("node {node}: {reason}"));
                    continue;
                }
            };
            match self.fits(&lost, &body).await {
                Ok(true) => return self.keep(lost, body, node).await,
                Ok(false) => doubtful.push((body, node)),
                Err(reason) => reasons.push(format!("node {node}: {reason}")),
            }
        }
        if doubtful.iter().any(|(body, _)| *body != doubtful[0].0) {
            reasons.push("the others say different things, and it cannot be told who is right".to_owned());
        } else if let Some((body, node)) = doubtful.pop() {
            return self.keep(lost, body, node).await;
        }
        let reasons =
            if reasons.is_empty() { "there is no other replica".to_owned() } else { reasons.join("; ") };
        Mended::Lost(reasons)
    }

    async fn keep(&self, lost: LostBody, body: Bytes, from: NodeId) -> Mended {
        let bytes = body.clone();
        match self.blocking(move |this| this.store.restore(&lost, bytes)).await {
            Ok(Ok(())) => Mended::Repaired(body, from),
            Ok(Err(error)) => Mended::NotKept(body, error.to_string()),
            Err(reason) => Mended::NotKept(body, reason),
        }
    }

    /// Where the body is lost now, and whether the logs need that segment; unless it is not lost any more.
    fn look(&self, lost: LostBody) -> Result<(LostBody, bool), Mended> {
        match self.store.place_of(lost.group, lost.body) {
            Ok(Some(place)) => match self.bodies.read(place, None) {
                Ok(bytes) => Err(Mended::Well(bytes)),
                Err(_) => Ok((LostBody { place, ..lost }, self.bodies.leave(place.record.segment))),
            },
            Ok(None) => Err(Mended::Gone),
            Err(error) => Err(Mended::Lost(error.to_string())),
        }
    }

    /// Whether that is the body; false when it cannot be told, an error when it cannot be it.
    async fn fits(&self, lost: &LostBody, body: &Bytes) -> Result<bool, String> {
        if body.len() != lost.place.len as usize {
            return Err(format!("it sent {} bytes instead of {}", body.len(), lost.place.len));
        }
        let (lost, body) = (*lost, body.clone());
        match self.blocking(move |this| this.bodies.would_mend(&lost, &body)).await? {
            Some(false) => Err("what it sent does not fit the checksum of what was lost".to_owned()),
            Some(true) => Ok(true),
            None => Ok(false),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> T + Send + 'static,
    ) -> Result<T, String> {
        let this = self.clone();
        offload(move || work(this)).await.map_err(|error| error.to_string())
    }
}
