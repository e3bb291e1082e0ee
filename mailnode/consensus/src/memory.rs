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
//!
//! Voters change meanwhile, too. Who the voters are says the replica that has applied most; each of them must see a majority
//! of the voters it knows of among those that answered, and while a change is under way one of those before it as well. A
//! membership that replaced theirs was committed by a majority of each of the two, one of whom would have told of it.
//!
//! A replica that is made anew on a node, for a group that comes there, has the same to learn: there may have been one
//! before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorumail_proto::peer::Standing;

use crate::group::Group;
use crate::machine::NodeId;
use crate::node::Inner;

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(100);

impl Group {
    /// What this replica can tell one that has forgotten everything, and whoever would give it the lead.
    pub(crate) fn standing(&self, unreadable: bool) -> Standing {
        let (term, proven) = (self.log.term(), self.log.is_proven());
        let committed = self.applied.borrow().last.map_or(0, |last| last.index);
        let membership = self.membership();
        let mut configs = membership.get_joint_config().iter().map(|voters| voters.iter().copied().collect());
        let first: Vec<NodeId> = configs.next().unwrap_or_default();
        let (voters, old_voters) = match configs.next_back() {
            Some(last) => (last, first),
            None => (first, Vec::new()),
        };
        Standing { group: self.id.0, term, proven, committed, voters, old_voters, unreadable }
    }
}

/// Asks until it is known which leaders the replica may follow.
pub(crate) async fn regain(node: Arc<Inner>, group: Arc<Group>) {
    while !group.log.is_proven() {
        // Asked anew each time: nodes come and go.
        let mut others = node.topology().ids();
        others.retain(|other| *other != node.config.node);
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
    let remembering = || told.iter().filter(|(_, standing)| standing.proven);
    let best = remembering().map(|(_, standing)| standing).max_by_key(|one| (one.committed, one.term))?;
    let founding = best.committed == 0;
    let counts = |node: &NodeId| told.get(node).is_some_and(|standing| standing.proven || founding);
    let answered = |voters: &[NodeId]| {
        let others = voters.iter().filter(|voter| **voter != me);
        let needed = (voters.len() / 2 + 1).min(others.clone().count());
        others.filter(|other| counts(other)).count() >= needed
    };
    let known = |standing: &Standing| {
        !standing.voters.is_empty() && answered(&standing.voters) && answered(&standing.old_voters)
    };
    // One that votes no more, and was not told, would wait for voters of long ago.
    let votes = |node: &NodeId| best.voters.contains(node) || best.old_voters.contains(node);
    let asked = remembering().filter(|(node, _)| votes(node)).map(|(_, standing)| standing);
    let all_known = known(best) && asked.into_iter().all(known);
    all_known.then(|| told.values().map(|standing| standing.term).max()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(standings: &[(NodeId, u64, bool, u64)]) -> BTreeMap<NodeId, Standing> {
        let standing = |(node, term, proven, committed): &(NodeId, u64, bool, u64)| {
            let (term, proven, committed) = (*term, *proven, *committed);
            let voters = vec![0, 1, 2];
            (*node, Standing { group: 1, term, proven, committed, voters, ..Standing::default() })
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
    fn while_voters_change_a_majority_of_both_must_answer() {
        let mut growing = told(&[(2, 4, true, 9), (3, 4, true, 9), (4, 4, true, 9)]);
        for standing in growing.values_mut() {
            (standing.old_voters, standing.voters) = (vec![0, 1, 2], vec![0, 1, 2, 3, 4]);
        }
        assert_eq!(lowest_term(0, &growing), None, "of the voters before the change one only has answered");
        growing.insert(1, Standing { term: 5, ..growing[&2].clone() });
        assert_eq!(lowest_term(0, &growing), Some(5));
    }

    #[test]
    fn one_that_votes_no_more_is_not_asked_who_votes() {
        let mut moved = told(&[(1, 4, true, 9), (2, 4, true, 9), (5, 3, true, 7)]);
        if let Some(gone) = moved.get_mut(&5) {
            gone.voters = vec![3, 4, 5];
        }
        assert_eq!(lowest_term(0, &moved), Some(4));
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
