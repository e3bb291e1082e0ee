//! Plans who is to hold what and has it carried out. The node that leads the directory does it for all groups, so that
//! few groups change at a time, and none while another lacks a replica.
//!
//! Nothing of it is kept: whoever leads the directory next asks all nodes, plans anew from what is there, and goes on.
//! What it asks for is safe at any time; every group's leader changes its membership by Raft's own rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorumail_proto::peer::{Led, ReplicaRequest, ReshapeRequest, SurveyReply, SurveyRequest};

use crate::machine::{GroupId, NodeId};
use crate::node::Inner;
use crate::placement::{Current, Placement, placement};
use crate::topology::Topology;

const DIRECTORY: GroupId = GroupId(0);
/// Groups whose membership is changed at a time. Each may send its whole state to a new replica.
const GROUPS_AT_ONCE: usize = 4;
/// Between two looks at a cluster that changes, and at one that does not.
const BUSY_INTERVAL: Duration = Duration::from_millis(300);
const IDLE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a node may take to say what it holds.
const SURVEY_WITHIN: Duration = Duration::from_millis(1500);
/// How long a step of a group may take: more than a change of membership may need.
const STEP_WITHIN: Duration = Duration::from_secs(8);

/// How far the cluster is on its way to its topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Generation of the topology.
    pub generation: u64,
    /// Every group.
    pub groups: Vec<GroupProgress>,
    /// Why nothing more is begun for now, in words.
    pub paused: Option<String>,
}

/// How far a group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupProgress {
    /// Which one.
    pub group: GroupId,
    /// Who votes now; empty when nobody leads the group.
    pub voters: Vec<NodeId>,
    /// Who is to vote.
    pub target: Vec<NodeId>,
    /// Whether it is where it should be.
    pub done: bool,
    /// What was done last or is waited for, in words.
    pub step: String,
}

/// The plan of the node that leads the directory.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    generation: u64,
    placements: Option<BTreeMap<GroupId, Placement>>,
    progress: Option<Progress>,
}

impl Planned {
    pub(crate) fn placements(&self) -> Option<BTreeMap<GroupId, Placement>> {
        self.placements.clone()
    }

    pub(crate) fn progress(&self) -> Option<Progress> {
        self.progress.clone()
    }
}

/// What the nodes say that answer.
#[derive(Debug, Default)]
struct Survey {
    /// The groups that each node holds, and whether its replica may vote.
    held: BTreeMap<NodeId, BTreeMap<GroupId, bool>>,
    /// The leader of each group that has one, and what it says.
    led: BTreeMap<GroupId, (NodeId, Led)>,
    /// The highest format level that each node knows.
    max_levels: BTreeMap<NodeId, u32>,
}

impl Survey {
    fn take(&mut self, reply: SurveyReply) {
        self.max_levels.insert(reply.node, reply.max_level);
        let held = self.held.entry(reply.node).or_default();
        for group in reply.groups {
            held.insert(GroupId(group.group), group.proven);
            let Some(led) = group.led else { continue };
            // Of two that believe to lead the one with the later term does.
            let known = self.led.get(&GroupId(group.group)).is_some_and(|(_, known)| known.term >= led.term);
            if !known {
                self.led.insert(GroupId(group.group), (reply.node, led));
            }
        }
    }

    fn current(&self) -> BTreeMap<GroupId, Current> {
        let current = |(group, (_, led)): (&GroupId, &(NodeId, Led))| {
            let voters = led.voters.iter().chain(&led.old_voters).copied().collect();
            (
                *group,
                Current { voters, learners: led.learners.iter().copied().collect(), lead: led.preferred },
            )
        };
        self.led.iter().map(current).collect()
    }

    /// The highest format level that every node knows; none while one does not answer.
    fn common_level(&self, topology: &Topology) -> Option<u32> {
        let levels = topology.ids().into_iter().map(|node| self.max_levels.get(&node).copied());
        levels.collect::<Option<Vec<u32>>>()?.into_iter().min()
    }

    fn proven(&self, group: GroupId) -> Vec<NodeId> {
        let may_vote = |held: &BTreeMap<GroupId, bool>| held.get(&group).copied().unwrap_or(false);
        self.held.iter().filter(|(_, held)| may_vote(held)).map(|(node, _)| *node).collect()
    }

    /// The first group that lacks a replica on a node that stays.
    fn lacking(&self, topology: &Topology, groups: impl Iterator<Item = GroupId>) -> Option<String> {
        let staying = topology.staying();
        for group in groups {
            let Some((_, led)) = self.led.get(&group) else {
                return Some(format!("group {} has no leader", group.0));
            };
            let lacks = |node: &&NodeId| staying.contains(node) && !led.in_sync.contains(node);
            if let Some(node) = led.voters.iter().find(lacks) {
                return Some(format!("the replica of group {} on node {node} is not in step", group.0));
            }
        }
        None
    }
}

fn members_of(led: &Led) -> BTreeSet<NodeId> {
    led.voters.iter().chain(&led.old_voters).chain(&led.learners).copied().collect()
}

/// Whether the group is as planned, members and all.
fn is_done(led: &Led, target: &Placement) -> bool {
    led.old_voters.is_empty()
        && led.voters.iter().copied().collect::<BTreeSet<_>>() == target.voter_set()
        && led.learners.iter().copied().collect::<BTreeSet<_>>()
            == target.learners.iter().copied().collect::<BTreeSet<_>>()
}

/// Whether a change has been begun already: something is there that is neither before nor after it.
fn is_begun(led: &Led, target: &Placement) -> bool {
    let planned_learners: BTreeSet<NodeId> = target.learners.iter().copied().collect();
    !led.old_voters.is_empty() || led.learners.iter().any(|node| !planned_learners.contains(node))
}

/// Runs on every node, and acts on the one that leads the directory.
pub(crate) async fn coordinate(node: Arc<Inner>) {
    let mut pause = BUSY_INTERVAL;
    let mut changes = node.topology.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The sender lives as long as the node.
            _ = changes.changed() => {}
        }
        let leads = node.group(DIRECTORY).is_some_and(|group| group.leads(node.config.lease()));
        if !leads || !node.takes_leads() {
            *node.planned.lock() = Planned::default();
            pause = IDLE_INTERVAL;
            continue;
        }
        pause = if node.clone().drive().await { IDLE_INTERVAL } else { BUSY_INTERVAL };
    }
}

impl Inner {
    /// Looks, plans if there is no plan for this topology yet, and has the next steps taken. Answers whether all is as
    /// planned.
    async fn drive(self: Arc<Self>) -> bool {
        let topology = self.topology();
        let survey = self.survey(&topology).await;
        if let Some(target) = survey.common_level(&topology) {
            let level = |(group, (leader, led)): (&GroupId, &(NodeId, Led))| (*group, *leader, led.level);
            let levels: Vec<_> = survey.led.iter().map(level).collect();
            self.raise(target, &levels, topology.generation).await;
        }
        let Some(plan) = self.plan(&topology, &survey) else { return false };
        self.mend_replicas(&topology, &plan, &survey).await;
        let open: Vec<GroupId> = plan
            .iter()
            .filter(|(group, target)| survey.led.get(group).is_none_or(|(_, led)| !is_done(led, target)))
            .map(|(group, _)| *group)
            .collect();
        let begun =
            |group: &GroupId| survey.led.get(group).is_some_and(|(_, led)| is_begun(led, &plan[group]));
        let mut active: Vec<GroupId> = open.iter().copied().filter(begun).take(GROUPS_AT_ONCE).collect();
        let paused = survey.lacking(&topology, plan.keys().copied());
        if paused.is_none() {
            let others: Vec<GroupId> = open.iter().copied().filter(|group| !active.contains(group)).collect();
            active.extend(others.into_iter().take(GROUPS_AT_ONCE - active.len()));
        }
        let steps: BTreeMap<GroupId, String> = join_all(active.iter().map(|group| {
            let (target, survey, node) = (&plan[group], &survey, self.clone());
            async move { (*group, node.advance(*group, target, survey).await) }
        }))
        .await
        .into_iter()
        .collect();
        self.tell_leads(&plan, &survey, &open).await;
        self.note_progress(&topology, &plan, &survey, &open, steps, paused);
        open.is_empty()
    }

    async fn survey(&self, topology: &Topology) -> Survey {
        let ask = async |node: NodeId| {
            if node == self.config.node {
                return Some(self.survey_here());
            }
            let link = self.links.get(node)?;
            let mut client = link.client().ok()?;
            let request =
                SurveyRequest { cluster: self.config.cluster.clone(), generation: topology.generation };
            match tokio::time::timeout(SURVEY_WITHIN, client.survey(request)).await {
                Ok(Ok(reply)) => Some(reply.into_inner()).filter(|reply| reply.node == node),
                Ok(Err(status)) => {
                    link.failed(&status);
                    None
                }
                Err(_) => None,
            }
        };
        let mut survey = Survey::default();
        for reply in join_all(topology.ids().into_iter().map(ask)).await.into_iter().flatten() {
            survey.take(reply);
        }
        survey
    }

    /// The plan for this topology; made once, so that groups that are on their way do not change their goal.
    fn plan(&self, topology: &Topology, survey: &Survey) -> Option<BTreeMap<GroupId, Placement>> {
        let mut planned = self.planned.lock();
        if let Some(placements) = &planned.placements
            && planned.generation == topology.generation
        {
            return Some(placements.clone());
        }
        // Nothing moves before there was a change: who founds what relies on it.
        let placements = if topology.is_original() {
            self.founding.clone()
        } else {
            // A group whose members are not known cannot be planned for; its leader is there in a moment, or mail stands
            // still anyway.
            if survey.led.len() <= self.config.partitions as usize {
                return None;
            }
            placement(topology, self.config.partitions, self.config.replicas, &survey.current())
        };
        *planned = Planned {
            generation: topology.generation,
            placements: Some(placements.clone()),
            progress: planned.progress.take(),
        };
        Some(placements)
    }

    /// Has empty replicas made where members have none (their disk was lost), and those removed that nobody counts on.
    async fn mend_replicas(
        self: &Arc<Self>,
        topology: &Topology,
        plan: &BTreeMap<GroupId, Placement>,
        survey: &Survey,
    ) {
        let mut calls = Vec::new();
        for (group, (_, led)) in &survey.led {
            let members = members_of(led);
            let Some(target) = plan.get(group) else { continue };
            for (node, held) in &survey.held {
                match (held.contains_key(group), members.contains(node), target.holds(*node)) {
                    (false, true, _) => {
                        calls.push(self.ask_replica(*node, *group, true, topology.generation))
                    }
                    (true, false, false) => {
                        calls.push(self.ask_replica(*node, *group, false, topology.generation))
                    }
                    _ => {}
                }
            }
        }
        for outcome in join_all(calls).await {
            if let Err(reason) = outcome {
                tracing::debug!(%reason, "a replica was not made or removed");
            }
        }
    }

    /// Has a node, perhaps this one, make an empty replica, or remove one.
    async fn ask_replica(
        self: &Arc<Self>,
        node: NodeId,
        group: GroupId,
        make: bool,
        generation: u64,
    ) -> Result<(), String> {
        if node == self.config.node {
            return match make {
                true => self.prepare(group, generation).await,
                false => self.forget(group, generation).await,
            };
        }
        let link = self.links.get(node).ok_or_else(|| format!("node {node} is not configured"))?;
        let mut client = link.client()?;
        let request = ReplicaRequest { group: group.0, generation };
        let asked = async { if make { client.prepare(request).await } else { client.forget(request).await } };
        match tokio::time::timeout(STEP_WITHIN, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(link.failed(&status)),
            Err(_) => Err(format!("no answer from node {node}")),
        }
    }

    /// Brings a group one step on; says which.
    async fn advance(self: Arc<Self>, group: GroupId, target: &Placement, survey: &Survey) -> String {
        let Some((leader, led)) = survey.led.get(&group) else {
            return "it has no leader".into();
        };
        let members = members_of(led);
        let generation = self.topology().generation;
        // Members have a replica, or have one made when they answer again: a lost one must not hold up the change that
        // does without it.
        for node in target.members().difference(&members).copied() {
            let holds = survey.held.get(&node).is_some_and(|held| held.contains_key(&group));
            if holds {
                continue;
            }
            let made = self.ask_replica(node, group, true, generation).await;
            if let Err(reason) = made {
                return format!("no replica could be made on node {node}: {reason}");
            }
        }
        match self.ask_reshape(*leader, group, target, survey).await {
            Ok(step) => step,
            Err(reason) => reason,
        }
    }

    async fn ask_reshape(
        &self,
        leader: NodeId,
        group: GroupId,
        target: &Placement,
        survey: &Survey,
    ) -> Result<String, String> {
        let request = ReshapeRequest {
            group: group.0,
            generation: self.topology().generation,
            voters: target.voters.clone(),
            learners: target.learners.clone(),
            lead: target.voters[0],
            proven: survey.proven(group),
        };
        if leader == self.config.node {
            return self.reshape_here(request).await;
        }
        let link = self.links.get(leader).ok_or_else(|| format!("node {leader} is not configured"))?;
        let mut client = link.client()?;
        match tokio::time::timeout(STEP_WITHIN, client.reshape(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().step),
            Ok(Err(status)) => Err(link.failed(&status)),
            Err(_) => Err(format!("no answer from node {leader}")),
        }
    }

    /// Tells the leaders of groups that are as planned who is preferred as leader.
    async fn tell_leads(&self, plan: &BTreeMap<GroupId, Placement>, survey: &Survey, open: &[GroupId]) {
        let differs = |(group, (_, led)): &(&GroupId, &(NodeId, Led))| {
            plan.get(*group)
                .is_some_and(|target| !open.contains(*group) && led.preferred != Some(target.voters[0]))
        };
        let tell = survey.led.iter().filter(differs);
        let told = tell.map(|(group, (leader, _))| self.ask_reshape(*leader, *group, &plan[group], survey));
        for outcome in join_all(told).await {
            if let Err(reason) = outcome {
                tracing::debug!(%reason, "a leader was not told who is preferred");
            }
        }
    }

    fn note_progress(
        &self,
        topology: &Topology,
        plan: &BTreeMap<GroupId, Placement>,
        survey: &Survey,
        open: &[GroupId],
        mut steps: BTreeMap<GroupId, String>,
        paused: Option<String>,
    ) {
        let progress = |(group, target): (&GroupId, &Placement)| {
            let done = !open.contains(group);
            let waits = if done { String::new() } else { "waits for its turn".into() };
            let mut voters = survey.led.get(group).map(|(_, led)| led.voters.clone()).unwrap_or_default();
            voters.sort_unstable();
            let step = steps.remove(group).unwrap_or(waits);
            GroupProgress { group: *group, voters, target: target.voters.clone(), done, step }
        };
        let groups: Vec<GroupProgress> = plan.iter().map(progress).collect();
        let mut planned = self.planned.lock();
        let before = planned.progress.replace(Progress {
            generation: topology.generation,
            groups,
            paused: paused.filter(|_| !open.is_empty()),
        });
        let was_busy = before.is_some_and(|before| before.groups.iter().any(|group| !group.done));
        if was_busy && open.is_empty() {
            tracing::info!(generation = topology.generation, "every group is where it should be");
        }
    }
}
