//! Moves the membership of a group that this node leads towards where it is planned, one step a call.
//!
//! Empty replicas first follow as learners. Once every new voter has nearly all of the log and may vote (see
//! [`Group::may_vote_for`]), the voters change in one go, through a joint membership of those before and those after:
//! at no time does the group depend on fewer replicas than it should have. Last, those that are not planned are let go.
//! The lead moves to a replica that stays before its own goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use quorumail_proto::peer::{Held, Led, ReshapeRequest, SurveyReply};

use crate::group::Group;
use crate::machine::{GroupId, NodeId};
use crate::node::Inner;
use crate::placement::Placement;

/// How long a change may take to be committed before the caller is told that it is not yet.
const CHANGE_WITHIN: Duration = Duration::from_secs(5);

type Change = ChangeMembers<NodeId, openraft::EmptyNode>;

impl Inner {
    /// What this node holds and leads.
    pub(crate) fn survey_here(&self) -> SurveyReply {
        let held = |group: &Arc<Group>| Held {
            group: group.id.0,
            proven: group.log.is_proven(),
            led: group.leads(self.config.lease()).then(|| self.led(group)),
        };
        SurveyReply {
            node: self.config.node,
            generation: self.topology().generation,
            groups: self.groups().iter().map(held).collect(),
            max_level: self.config.levels.max,
        }
    }

    fn led(&self, group: &Group) -> Led {
        let membership = group.membership();
        let configs = membership.get_joint_config();
        let (old, new) = match configs.as_slice() {
            [] => (BTreeSet::new(), BTreeSet::new()),
            [only] => (BTreeSet::new(), only.clone()),
            [old, .., new] => (old.clone(), new.clone()),
        };
        Led {
            term: group.leader.borrow().term,
            voters: new.into_iter().collect(),
            old_voters: old.into_iter().collect(),
            learners: membership.learner_ids().collect(),
            in_sync: self.in_sync(group),
            preferred: *group.preferred.lock(),
            level: group.level(),
        }
    }

    /// Takes the next step of a group that this node leads; says which, or nothing when there is none left.
    pub(crate) async fn reshape_here(&self, request: ReshapeRequest) -> Result<String, String> {
        let known = self.topology().generation;
        if request.generation < known {
            return Err(format!(
                "the topology of generation {} has been replaced by {known}",
                request.generation
            ));
        }
        let group = self.group(GroupId(request.group)).ok_or("the group is not held here")?;
        if !group.leads(self.config.lease()) || !self.takes_leads() {
            return Err("this node does not lead the group, or must not write".into());
        }
        let target = Placement { voters: request.voters, learners: request.learners };
        if target.voters.is_empty() {
            return Err("a group needs voters".into());
        }
        *group.preferred.lock() = Some(request.lead);
        if !Self::is_as_planned(&group, &target) {
            self.wake(&group).await;
        }
        let proven: BTreeSet<NodeId> = request.proven.into_iter().collect();
        self.step(&group, &target, request.lead, &proven).await
    }

    fn is_as_planned(group: &Group, target: &Placement) -> bool {
        let membership = group.membership();
        let members: BTreeSet<NodeId> = membership.nodes().map(|(node, _)| *node).collect();
        membership.get_joint_config().as_slice() == [target.voter_set()] && members == target.members()
    }

    async fn step(
        &self,
        group: &Arc<Group>,
        target: &Placement,
        lead: NodeId,
        proven: &BTreeSet<NodeId>,
    ) -> Result<String, String> {
        let membership = group.membership();
        let configs = membership.get_joint_config();
        let voters = configs.last().cloned().unwrap_or_default();
        if configs.len() > 1 {
            // A leader before this one was lost in between.
            change(group, ChangeMembers::ReplaceAllVoters(voters.clone())).await?;
            return Ok(format!("the voters are now {voters:?}"));
        }
        let members: BTreeSet<NodeId> = membership.nodes().map(|(node, _)| *node).collect();
        let new: BTreeSet<NodeId> = target.members().difference(&members).copied().collect();
        if !new.is_empty() {
            let nodes: BTreeMap<NodeId, openraft::EmptyNode> =
                new.iter().map(|node| (*node, openraft::EmptyNode {})).collect();
            change(group, ChangeMembers::AddNodes(nodes)).await?;
            return Ok(format!("the replicas on {new:?} follow as learners"));
        }
        let wanted = target.voter_set();
        if voters != wanted {
            return self.change_voters(group, &voters, &wanted, lead, proven).await;
        }
        let extra: BTreeSet<NodeId> = members.difference(&target.members()).copied().collect();
        if !extra.is_empty() {
            change(group, ChangeMembers::RemoveNodes(extra.clone())).await?;
            return Ok(format!("the replicas on {extra:?} are no members any more"));
        }
        Ok(String::new())
    }

    async fn change_voters(
        &self,
        group: &Arc<Group>,
        voters: &BTreeSet<NodeId>,
        wanted: &BTreeSet<NodeId>,
        lead: NodeId,
        proven: &BTreeSet<NodeId>,
    ) -> Result<String, String> {
        let me = self.config.node;
        let in_sync: BTreeSet<NodeId> = self.in_sync(group).into_iter().collect();
        let lagging: BTreeSet<NodeId> = wanted
            .difference(voters)
            .filter(|node| !in_sync.contains(node) || !proven.contains(node))
            .copied()
            .collect();
        if !lagging.is_empty() {
            return Ok(format!("the replicas on {lagging:?} are catching up"));
        }
        if wanted.intersection(&in_sync).count() <= wanted.len() / 2 {
            return Ok("a majority of the voters to be is not in step yet".into());
        }
        if wanted.contains(&me) {
            change(group, ChangeMembers::ReplaceAllVoters(wanted.clone())).await?;
            return Ok(format!("the voters are now {wanted:?}"));
        }
        // The lead goes first: to a voter that stays, and if there is none, to one that has become a voter for it.
        let able = |node: &NodeId| voters.contains(node) && in_sync.contains(node);
        let stays = Some(lead).filter(able).or_else(|| wanted.iter().copied().find(able));
        let Some(to) = stays else {
            let all: BTreeSet<NodeId> = voters.union(wanted).copied().collect();
            change(group, ChangeMembers::ReplaceAllVoters(all.clone())).await?;
            return Ok(format!("the voters are now {all:?}"));
        };
        self.counters.transferred();
        group.raft.trigger().transfer_leader(to).await.map_err(|error| error.to_string())?;
        Ok(format!("the lead moves to node {to}"))
    }
}

/// Changes the membership and waits until that is committed. Who is no voter any more stays as a learner.
async fn change(group: &Group, change: Change) -> Result<(), String> {
    match tokio::time::timeout(CHANGE_WITHIN, group.raft.change_membership(change, true)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the change is not committed after {CHANGE_WITHIN:?}")),
    }
}
