//! What a replica that has lost its disk must learn before it follows a leader again.
//!
//! An empty replica has forgotten what it acknowledged, and to whom. That it does not vote (`Group::may_vote_for`) is not
//! enough: a leader that was deposed while it was cut off does not know it, and could commit with the help of the empty
//! replica, where the replica and others have committed something else under a newer leader.
//!
//! So before it takes anything from a leader it asks all nodes in which term they are. It goes on once a majority of the
//! group's voters, itself not counted, has answered: that majority and every one that the replica was once part of have a
//! member in common, other than the replica, that has not forgotten. Hence no leader to which the replica has ever
//! acknowledged anything is of a higher term than the highest it is told, and leaders of lower terms it refuses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use quorumail_proto::peer::Standing;

use crate::group::Group;
use crate::machine::NodeId;
use crate::node::Inner;

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(100);

impl Group {
    /// What this replica can tell one that has forgotten everything.
    pub(crate) fn standing(&self) -> Standing {
        let (term, proven) = (self.log.term(), self.log.is_proven());
        let committed = self.applied.borrow().last.map_or(0, |last| last.index);
        // Last, and nothing else while it is borrowed: the engine waits to write its metrics meanwhile.
        let metrics = self.raft.server_metrics();
        let voters = metrics.borrow_watched().membership_config.membership().voter_ids().collect();
        Standing { group: self.id.0, term, proven, committed, voters }
    }
}

/// Asks until it is known which leaders the replica may follow.
pub(crate) async fn regain(node: Arc<Inner>, group: Arc<Group>) {
    let others: Vec<NodeId> =
        node.config.peers.iter().map(|peer| peer.id).filter(|id| *id != node.config.node).collect();
    while !group.log.is_proven() {
        let replies = futures::future::join_all(others.iter().map(|other| node.hello(*other))).await;
        let told: BTreeMap<NodeId, Standing> = replies
            .into_iter()
            .flatten()
            .filter_map(|reply| {
                let standing = reply.standings.into_iter().find(|standing| standing.group == group.id.0)?;
                Some((reply.node, standing))
            })
            .collect();
        if let Some(term) = lowest_term(node.config.node, &told) {
            tracing::debug!(group = group.id.0, term, "leaders of this term and later ones are followed");
            group.follow_from(term);
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The term below which `me`, who has forgotten everything, must follow no leader; none when too few have answered.
///
/// Who has lost its memory as well does not count, but while the group is being founded: then nobody has a memory, and
/// nothing that could be lost.
fn lowest_term(me: NodeId, told: &BTreeMap<NodeId, Standing>) -> Option<u64> {
    let mut remembering = told.values().filter(|standing| standing.proven).peekable();
    remembering.peek()?;
    let founding = remembering.clone().all(|standing| standing.committed == 0);
    let counts = |node: &NodeId| told.get(node).is_some_and(|standing| standing.proven || founding);
    for standing in remembering {
        let others: Vec<NodeId> = standing.voters.iter().copied().filter(|voter| *voter != me).collect();
        let majority = standing.voters.len() / 2 + 1;
        let answered = others.iter().filter(|other| counts(other)).count();
        if standing.voters.is_empty() || answered < majority.min(others.len()) {
            return None;
        }
    }
    told.values().map(|standing| standing.term).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(standings: &[(NodeId, u64, bool, u64)]) -> BTreeMap<NodeId, Standing> {
        let standing = |(node, term, proven, committed): &(NodeId, u64, bool, u64)| {
            let (term, proven, committed) = (*term, *proven, *committed);
            (*node, Standing { group: 1, term, proven, committed, voters: vec![0, 1, 2] })
        };
        standings.iter().map(standing).collect()
    }

    #[test]
    fn the_highest_term_of_a_majority_without_the_forgetful_counts() {
        assert_eq!(lowest_term(0, &told(&[(1, 2, true, 9), (2, 3, true, 12)])), Some(3));
        assert_eq!(lowest_term(0, &told(&[(1, 2, true, 9)])), None, "the other may know of a later leader");
        assert_eq!(lowest_term(0, &told(&[])), None);
        assert_eq!(lowest_term(3, &told(&[(1, 2, true, 9), (0, 3, true, 12)])), Some(3), "a learner");
    }

    #[test]
    fn who_has_forgotten_as_well_does_not_count_but_at_the_founding() {
        assert_eq!(lowest_term(0, &told(&[(1, 2, true, 9), (2, 0, false, 0)])), None);
        assert_eq!(lowest_term(0, &told(&[(1, 1, true, 0), (2, 1, false, 0)])), Some(1));
        assert_eq!(
            lowest_term(0, &told(&[(1, 0, false, 0), (2, 0, false, 0)])),
            None,
            "it is not founded yet"
        );
    }

    #[test]
    fn two_voters_of_whom_one_has_forgotten_need_the_other() {
        let mut other = told(&[(1, 4, true, 9)]);
        if let Some(standing) = other.get_mut(&1) {
            standing.voters = vec![0, 1];
        }
        assert_eq!(lowest_term(0, &other), Some(4));
    }
}
