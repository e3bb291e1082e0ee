//! From what was observed of a MailCluster to its status. Pure.
//!
//! Nothing is Ready because pods run: a majority of the mailnodes must answer, and the directory and every partition
//! must have a leader, as told by the mailnodes themselves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Service},
};
use kube::ResourceExt as _;
use quorumail_crds::{
    MailCluster, MailClusterStatus,
    condition::{Observed, find, kind, merge, reason},
    mailcluster::{Endpoints, NodeStatus, PartitionsStatus},
};
use quorumail_proto::admin::{ClusterStatus, GroupStatus};

use super::{
    update::{REVISION_LABEL, Step},
    volumes::Volumes,
};
use crate::{
    block_lists,
    shape::{Shape, Stage},
};

/// What was observed.
#[derive(Debug, Default)]
pub struct Observation {
    /// What a mailnode told of the cluster, or why none could be asked.
    pub told: Option<Result<ClusterStatus, String>>,
    /// The pods of the cluster.
    pub pods: Vec<Pod>,
    /// The StatefulSet after it was applied.
    pub nodes: Option<StatefulSet>,
    /// The Service after it was applied.
    pub service: Option<Service>,
    /// The nodes that it has and is to have.
    pub shape: Option<Shape>,
    /// Pods that are not ready because of their Kubernetes node: why, and what to do.
    pub lost: BTreeMap<String, String>,
    /// The step of an update that was taken.
    pub step: Option<Step>,
    /// Why the update that is asked for was taken back.
    pub failed_update: Option<String>,
    /// The volumes, and what keeps them from growing.
    pub volumes: Volumes,
    /// What block lists say, where the cluster names some.
    pub block_listed: Option<Observed>,
    /// What cert-manager says of the certificate, where it is asked for one.
    pub certificate: Option<Observed>,
    /// What keeps the cluster from being brought about; a condition of type Ready.
    pub problem: Option<Observed>,
}

/// The group of the directory; partitions are numbered from 1.
const DIRECTORY_GROUP: u32 = 0;

/// The status.
pub fn status(cluster: &MailCluster, seen: &Observation, now: Timestamp) -> MailClusterStatus {
    let old = cluster.status.clone().unwrap_or_default();
    let told = seen.told.as_ref().and_then(|t| t.as_ref().ok());
    let nodes = nodes(cluster, seen, told);
    let ready_nodes = nodes.iter().filter(|n| n.ready).count();
    let partitions = told.map(|told| partitions(cluster, told));
    let mut observed = vec![
        ready(cluster, seen, told, partitions.as_ref()),
        progressing(cluster, seen),
        degraded(cluster, seen, ready_nodes, partitions.as_ref()),
        Observed::no(kind::PAUSED, reason::NOT_PAUSED, "the MailCluster is reconciled"),
    ];
    observed.extend(seen.certificate.clone());
    observed.extend(seen.block_listed.clone());
    let mut conditions = merge(&old.conditions, &observed, cluster.metadata.generation, now);
    if seen.block_listed.is_none() && block_lists::asked(cluster).is_some() {
        // Not looked up since the operator began: what was known is still the best there is.
        conditions.extend(find(&old.conditions, kind::BLOCK_LISTED).cloned());
    }
    MailClusterStatus {
        observed_generation: cluster.metadata.generation,
        conditions,
        ready_nodes: u32::try_from(ready_nodes).unwrap_or(u32::MAX),
        updated_nodes: u32::try_from(updated(seen)).unwrap_or(u32::MAX),
        version: nodes.iter().filter_map(|n| n.version.clone()).min(),
        nodes,
        partitions,
        endpoints: Some(endpoints(cluster, seen.service.as_ref())),
    }
}

/// The status of a cluster that is left alone: what was observed last, marked as paused.
pub fn paused(cluster: &MailCluster, now: Timestamp) -> MailClusterStatus {
    let mut status = cluster.status.clone().unwrap_or_default();
    let text = "reconciliation is stopped by the annotation quorumail.io/paused; take it away to go on";
    let observed = Observed::yes(kind::PAUSED, reason::BY_ANNOTATION, text);
    let mut paused = merge(&status.conditions, &[observed], cluster.metadata.generation, now);
    status.conditions.retain(|c| c.type_ != kind::PAUSED);
    status.conditions.append(&mut paused);
    status
}

fn nodes(cluster: &MailCluster, seen: &Observation, told: Option<&ClusterStatus>) -> Vec<NodeStatus> {
    let pods: BTreeMap<String, &Pod> = seen.pods.iter().map(|pod| (pod.name_any(), pod)).collect();
    let node = |number: u32| {
        let name = format!("{}-{number}", cluster.name_any());
        let report = told.and_then(|t| t.nodes.iter().find(|n| n.node == u64::from(number)));
        let status = report.filter(|r| r.reachable).and_then(|r| r.status.as_ref());
        NodeStatus {
            ready: status.is_some_and(|s| s.ready),
            version: status.map(|s| s.version.clone()).filter(|v| !v.is_empty()),
            node: pods.get(&name).and_then(|pod| pod.spec.as_ref()?.node_name.clone()),
            zone: report.map(|r| r.zone.clone()).filter(|zone| !zone.is_empty()),
            leaving: report.is_some_and(|r| r.leaving),
            replicas: report.map_or(0, |r| r.replicas),
            target_replicas: report.map_or(0, |r| r.target_replicas),
            name,
        }
    };
    let running = seen.shape.map_or(0, |shape| u32::try_from(shape.running).unwrap_or(u32::MAX));
    (0..cluster.spec.nodes.max(running)).map(node).collect()
}

/// Of several reports on one group, that of its leader knows most.
pub fn groups(told: &ClusterStatus) -> BTreeMap<u32, &GroupStatus> {
    let mut groups: BTreeMap<u32, &GroupStatus> = BTreeMap::new();
    for group in &told.groups {
        let better = groups.get(&group.group).is_none_or(|known| {
            (group.term, group.leader.is_some(), group.in_sync.len())
                > (known.term, known.leader.is_some(), known.in_sync.len())
        });
        if better {
            groups.insert(group.group, group);
        }
    }
    groups
}

fn partitions(cluster: &MailCluster, told: &ClusterStatus) -> PartitionsStatus {
    let total = if told.partitions > 0 { told.partitions } else { cluster.spec.partitions };
    let replicas = cluster.spec.nodes.min(3) as usize;
    let groups = groups(told);
    let (mut leaderless, mut under_replicated) = (0, 0);
    for partition in 1..=total {
        match groups.get(&partition).filter(|g| g.leader.is_some()) {
            None => leaderless += 1,
            Some(group) if group.in_sync.len() < replicas => under_replicated += 1,
            Some(_) => {}
        }
    }
    PartitionsStatus {
        total,
        available: total - leaderless,
        under_replicated,
        leaderless,
        moving: told.moving,
    }
}

fn ready(
    cluster: &MailCluster,
    seen: &Observation,
    told: Option<&ClusterStatus>,
    partitions: Option<&PartitionsStatus>,
) -> Observed {
    if let Some(problem) = &seen.problem {
        return problem.clone();
    }
    let no = |reason, message: String| Observed::no(kind::READY, reason, message);
    let (Some(told), Some(partitions)) = (told, partitions) else {
        let why = match &seen.told {
            Some(Err(why)) => format!(": {why}"),
            _ => String::new(),
        };
        return no(reason::NOT_REACHABLE, format!("no mailnode could be asked{why}"));
    };
    // Nodes that are still being taken in do not count yet.
    let groups = groups(told);
    let voters = groups.get(&DIRECTORY_GROUP).map(|group| group.voters.clone()).unwrap_or_default();
    let counts = |node: u64| voters.is_empty() || voters.contains(&node);
    let answering = told.nodes.iter().filter(|n| n.reachable && counts(n.node)).count();
    let all = if voters.is_empty() { cluster.spec.nodes as usize } else { voters.len() };
    if answering * 2 <= all {
        return no(reason::NO_QUORUM, format!("{answering} of {all} mailnodes answer; a majority is needed"));
    }
    let directory = groups.get(&DIRECTORY_GROUP).is_some_and(|g| g.leader.is_some());
    if !directory || partitions.leaderless > 0 {
        let directory = if directory { "" } else { "; the directory has none either" };
        let text =
            format!("{} of {} partitions have no leader{directory}", partitions.leaderless, partitions.total);
        return no(reason::LEADERLESS, text);
    }
    let text = format!(
        "{answering} of {all} mailnodes answer and all {} partitions have a leader",
        partitions.total
    );
    Observed::yes(kind::READY, reason::QUORUM, text)
}

/// Number of pods that are made from the template that the StatefulSet has.
fn updated(seen: &Observation) -> usize {
    let set = seen.nodes.as_ref();
    let Some(revision) = set.and_then(|set| set.status.as_ref()?.update_revision.as_ref()) else { return 0 };
    seen.pods.iter().filter(|pod| pod.labels().get(REVISION_LABEL) == Some(revision)).count()
}

fn progressing(cluster: &MailCluster, seen: &Observation) -> Observed {
    let wanted = i32::try_from(cluster.spec.nodes).unwrap_or(i32::MAX);
    let yes = |reason, text: String| Observed::yes(kind::PROGRESSING, reason, text);
    let Some(set) = &seen.nodes else {
        return yes(reason::ROLLING_OUT, "the StatefulSet has not been made yet".to_owned());
    };
    let count = format!("{} of {wanted} pods are updated", updated(seen));
    match &seen.step {
        Some(Step::Replace { ordinal, .. }) => {
            let text = format!("{count}; pod {}-{ordinal} is replaced", cluster.name_any());
            return yes(reason::ROLLING_OUT, text);
        }
        Some(Step::Wait { reason, message, .. }) => return yes(reason, format!("{count}; {message}")),
        Some(Step::RollBack(_)) => {
            return yes(reason::ROLLING_OUT, "the pods go back to what they were before".to_owned());
        }
        Some(Step::Stuck(message)) => {
            return Observed::no(kind::PROGRESSING, reason::UPDATE_FAILED, format!("{count}; {message}"));
        }
        Some(Step::Idle | Step::Settled) | None => {}
    }
    let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    if let Some(text) = moving(seen).filter(|_| ready >= wanted) {
        return yes(reason::MOVING, text);
    }
    if ready < wanted {
        return yes(reason::ROLLING_OUT, format!("{ready} of {wanted} pods are ready, {count}"));
    }
    if seen.failed_update.is_some() {
        let text = "all pods are ready, as they were before the update that failed; see condition Degraded";
        return Observed::no(kind::PROGRESSING, reason::UPDATE_FAILED, text);
    }
    if let Some(text) = seen.volumes.growing(&cluster.spec.storage.size) {
        return yes(reason::VOLUMES_GROWING, text);
    }
    Observed::no(kind::PROGRESSING, reason::SETTLED, "all pods are ready and as asked")
}

/// What moves because the number of nodes was changed, in words.
fn moving(seen: &Observation) -> Option<String> {
    let (shape, told) = (seen.shape?, seen.told.as_ref()?.as_ref().ok()?);
    if shape.generation <= 1 || (shape.stage(told) != Stage::Moving && shape.running == shape.staying) {
        return None;
    }
    let paused = if told.paused.is_empty() { String::new() } else { format!("; paused: {}", told.paused) };
    Some(format!(
        "{} groups change their members for {} nodes, of {} that there are{paused}",
        told.moving, shape.staying, shape.running
    ))
}

fn degraded(
    cluster: &MailCluster,
    seen: &Observation,
    ready_nodes: usize,
    partitions: Option<&PartitionsStatus>,
) -> Observed {
    let all = cluster.spec.nodes as usize;
    if let Some(why) = &seen.failed_update {
        let text = format!(
            "the update was taken back because {why}; the pods stay as they were before until the spec changes: correct it"
        );
        return Observed::yes(kind::DEGRADED, reason::UPDATE_FAILED, text);
    }
    if let Some(Step::Stuck(why)) = &seen.step {
        return Observed::yes(
            kind::DEGRADED,
            reason::UPDATE_FAILED,
            format!("the update does not go on: {why}"),
        );
    }
    if let Some(Step::Wait { message, overdue: true, .. }) = &seen.step {
        let text = format!(
            "the update has waited for longer than a new pod may take, and goes on waiting: {message}"
        );
        return Observed::yes(kind::DEGRADED, reason::UPDATE_PAUSED, text);
    }
    let Some(partitions) = partitions else {
        return Observed::unknown(kind::DEGRADED, reason::NOT_REACHABLE, "no mailnode could be asked");
    };
    if ready_nodes < all {
        let mut text = format!("{} of {all} mailnodes are not ready", all - ready_nodes);
        for (pod, why) in &seen.lost {
            text.push_str(&format!("; pod {pod}: {why}"));
        }
        return Observed::yes(kind::DEGRADED, reason::NODES_NOT_READY, text);
    }
    let lacking = partitions.under_replicated + partitions.leaderless;
    if lacking > 0 {
        let text = format!("{lacking} of {} partitions lack a replica that is in step", partitions.total);
        return Observed::yes(kind::DEGRADED, reason::UNDER_REPLICATED, text);
    }
    if let Some(observed) = seen.volumes.degraded(&cluster.spec.storage.size) {
        return observed;
    }
    Observed::no(
        kind::DEGRADED,
        reason::ALL_HEALTHY,
        "every mailnode is ready and every partition fully replicated",
    )
}

fn endpoints(cluster: &MailCluster, service: Option<&Service>) -> Endpoints {
    let host = format!("{}.{}.svc", cluster.name_any(), cluster.namespace().unwrap_or_default());
    let ingress =
        service.and_then(|s| s.status.as_ref()?.load_balancer.as_ref()?.ingress.clone()).unwrap_or_default();
    Endpoints {
        smtp: format!("{host}:25"),
        submissions: format!("{host}:465"),
        imaps: format!("{host}:993"),
        external: ingress.into_iter().filter_map(|i| i.hostname.or(i.ip)).collect(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
