//! Replicas of groups on this node: started with what the journal has, made empty when a leader is to fill them, removed
//! once their group has gone elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use openraft::async_runtime::WatchReceiver;
use quorumail_proto::peer::MembersRequest;

use crate::adapter::Adapter;
use crate::group::{Group, Leader};
use crate::log::{Contents, GroupLog};
use crate::machine::{GroupId, MachineError, NodeId};
use crate::network::Factory;
use crate::node::{Inner, StartError};
use crate::open::RecoveredLog;
use crate::propose::Attempt;
use crate::runtime::offload;
use crate::types::Raft;

/// Groups started at once: each may have log to apply again.
const STARTS_AT_ONCE: usize = 8;
/// How long the leader of a group may take to say who its members are.
const MEMBERS_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

impl Inner {
    /// Starts the replicas of this node. A group is held when its log is here, or when it is founded with this node and
    /// was never removed from it: then the replica may have been lost with the disk.
    pub(crate) async fn start_groups(&self, mut recovered: RecoveredLog) -> Result<(), StartError> {
        let mut held: Vec<(GroupId, Contents)> = Vec::new();
        for group in (0..=self.config.partitions).map(GroupId) {
            let contents = recovered.groups.remove(&group);
            if let Some(vote) = contents.as_ref().and_then(Contents::is_forgotten) {
                // The node may have ended between the two steps of a removal.
                self.remove_state(group).await?;
                self.forgotten.lock().insert(group, vote);
            } else if contents.is_some() || self.founding[&group].holds(self.config.node) {
                held.push((group, contents.unwrap_or_default()));
            }
        }
        for group in recovered.groups.keys() {
            tracing::warn!(
                group = group.0,
                "the journal has a group that is not configured; it is left alone"
            );
        }
        let starts = held.into_iter().map(|(id, contents)| self.start_group(id, contents));
        let started: Vec<Arc<Group>> =
            futures::stream::iter(starts).buffer_unordered(STARTS_AT_ONCE).try_collect().await?;
        self.groups.write().extend(started.into_iter().map(|group| (group.id, group)));
        Ok(())
    }

    async fn start_group(&self, id: GroupId, contents: Contents) -> Result<Arc<Group>, StartError> {
        let failed = |reason: String| StartError::Group { group: id.0, reason };
        let purged = contents.purged();
        let log = GroupLog::new(id, self.journal.clone(), self.cache_share(), contents);
        let (machine, adapter_log) = (self.machine.clone(), log.clone());
        let (levels, fatal, counters) = (self.config.levels, self.fatal.clone(), self.counters.clone());
        let (short_work, unreadable) = (self.short_work.clone(), self.links.unreadable.clone());
        let opening = offload(move || {
            Adapter::open(id, machine, adapter_log, levels, fatal, counters, short_work, unreadable)
        });
        let adapter = opening.await.map_err(|error| failed(error.to_string()))??;
        let applied = adapter.progress();
        // The log is purged only up to what the state machine has safe.
        let here = applied.borrow().last;
        if here < purged {
            let (applied, purged) = (here.map_or(0, |id| id.index), purged.map_or(0, |id| id.index));
            return Err(StartError::Lost { group: id.0, applied, purged });
        }
        let factory = Factory { group: id, links: self.links.clone() };
        let raft = Raft::new(self.config.node, self.engine.clone(), factory, log.clone(), adapter)
            .await
            .map_err(|error| failed(error.to_string()))?;
        if !log.is_proven() || self.is_leaving() {
            raft.runtime_config().elect(false);
        }
        // As long as nothing was ever changed, everything is where it was founded.
        let original = self.topology().is_original();
        let preferred = original.then(|| self.founding[&id].voters[0]);
        Ok(Arc::new(Group::new(id, raft, log, preferred, self.stop.child_token(), applied)))
    }

    /// What one group's log may keep in memory: as much as if the groups were spread evenly.
    fn cache_share(&self) -> u64 {
        let nodes = self.founding[&GroupId(0)].members().len().max(1) as u64;
        let replicas = u64::from(self.config.partitions) * self.config.replicas as u64;
        self.config.cache_bytes / (replicas.div_ceil(nodes).min(u64::from(self.config.partitions)) + 1)
    }

    async fn remove_state(&self, group: GroupId) -> Result<(), MachineError> {
        let machine = self.machine.clone();
        offload(move || machine.remove(group)).await.unwrap_or_else(|error| {
            Err(MachineError { group: group.0, reason: format!("removal did not finish: {error}") })
        })
    }

    /// Makes an empty replica, unless there is one. `generation` is that of the topology which the caller follows.
    pub(crate) async fn prepare(self: &Arc<Self>, id: GroupId, generation: u64) -> Result<(), String> {
        let node = self.clone();
        self.uncut(async move { node.make_replica(id, generation).await }).await
    }

    /// Removes a replica whose group has gone elsewhere. The group's leader is asked for the members first: a replica
    /// that still counts is never removed.
    pub(crate) async fn forget(self: &Arc<Self>, id: GroupId, generation: u64) -> Result<(), String> {
        let node = self.clone();
        self.uncut(async move { node.remove_replica(id, generation).await }).await
    }

    /// Runs to its end what must not stop half way, also when the caller does not wait any more.
    async fn uncut(
        &self,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Result<(), String> {
        self.tasks.spawn(work).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn make_replica(self: &Arc<Self>, id: GroupId, generation: u64) -> Result<(), String> {
        let _turn = self.changing.lock().await;
        self.refuse_older(generation)?;
        if id.0 > self.config.partitions {
            return Err(format!("there is no group {}", id.0));
        }
        if self.group(id).is_some() {
            return Ok(());
        }
        self.remove_state(id).await.map_err(|error| error.to_string())?;
        // With its last vote, which an earlier replica may have given.
        let contents = match self.forgotten.lock().get(&id) {
            Some(vote) => Contents::forgotten(*vote),
            None => Contents::default(),
        };
        let group = self.start_group(id, contents).await.map_err(|error| error.to_string())?;
        group.set_joining();
        self.forgotten.lock().remove(&id);
        self.hints_forget(id);
        self.groups.write().insert(id, group.clone());
        self.tend_group(&group);
        tracing::info!(group = id.0, "made an empty replica");
        Ok(())
    }

    async fn remove_replica(&self, id: GroupId, generation: u64) -> Result<(), String> {
        let _turn = self.changing.lock().await;
        self.refuse_older(generation)?;
        let Some(group) = self.group(id) else { return Ok(()) };
        let members = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err("the node is being stopped".into()),
            members = self.ask_members(id) => members?,
        };
        if members.contains(&self.config.node) {
            return Err(format!("this node is a member of group {}: {members:?}", id.0));
        }
        self.groups.write().remove(&id);
        group.stop.cancel();
        if let Err(error) = group.raft.shutdown().await {
            tracing::warn!(group = id.0, %error, "a group did not stop in order");
        }
        // Waiters give up, and whoever asks again finds that there is no replica here.
        group.leader.send_replace(Leader::default());
        // The log goes first: should the node end in between, the state is removed when it starts.
        let vote = group.log.forget().await;
        self.forgotten.lock().insert(id, vote);
        if let Err(error) = self.remove_state(id).await {
            self.fatal.report(error.to_string());
        }
        self.links.unreadable.clear(id);
        self.publish_leads();
        tracing::info!(group = id.0, ?members, "removed the replica here");
        Ok(())
    }

    pub(crate) fn refuse_older(&self, generation: u64) -> Result<(), String> {
        let known = self.topology().generation;
        match generation < known {
            true => Err(format!("the topology of generation {generation} has been replaced by {known}")),
            false => Ok(()),
        }
    }

    /// The members of a group that this node leads, once a majority has confirmed that it does.
    pub(crate) async fn members_here(&self, group: &Arc<Group>) -> Result<Vec<NodeId>, String> {
        let confirmed = match self.read_index_here(group, MEMBERS_WITHIN).await {
            Attempt::Done(index) => index,
            Attempt::NotLeader(_) => return Err("this node does not lead the group".into()),
            Attempt::Failed(reason) => return Err(reason),
        };
        let metrics = group.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        // What is not committed may still be taken back.
        if stored.log_id().as_ref().is_none_or(|id| id.index > confirmed) {
            return Err("the membership is being changed".into());
        }
        Ok(stored.membership().nodes().map(|(node, _)| *node).collect())
    }

    async fn ask_members(&self, id: GroupId) -> Result<Vec<NodeId>, String> {
        let mut reasons = BTreeMap::new();
        for node in self.topology().ids() {
            let Some(link) = self.links.get(node) else { continue };
            let Ok(mut client) = link.client() else { continue };
            let asked = client.members(MembersRequest { group: id.0 });
            match tokio::time::timeout(MEMBERS_WITHIN, asked).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner().members),
                Ok(Err(status)) => drop(reasons.insert(node, link.failed(&status))),
                Err(_) => drop(reasons.insert(node, "no answer".to_owned())),
            }
        }
        Err(format!("no leader of group {} could be asked: {reasons:?}", id.0))
    }
}
