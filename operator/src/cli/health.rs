//! What is not well, from what the mailnodes and the resources tell. Pure; `quorumail status` shows it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use quorumail_crds::condition::{kind, reason};
use quorumail_proto::admin::{ClusterStatus, NodeHealth, NodeReport, QueueClass};
use serde::Serialize;

use super::output;
use crate::report::{Incident, runbook};

/// A share of the disk below which it is told, as the alerts do.
const LITTLE_ROOM: f64 = 0.15;
/// Time before a certificate expires at which it is told.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Mail for mailboxes here waits no longer than moments.
const LOCAL_WAITS: SignedDuration = SignedDuration::from_mins(15);
/// Objects that are named; of more only the number is told.
const NAMED: usize = 3;
/// Of policies, conditions that are False when something is wrong.
const OF_POLICIES: [&str; 4] =
    [kind::READY, kind::LAST_BACKUP_SUCCEEDED, kind::ARCHIVING_HEALTHY, kind::REHEARSAL_SUCCEEDED];

/// Of domains. Records that nobody has published yet are shown and are no problem; those that others check signatures with are.
const OF_DOMAINS: [&str; 3] = [kind::READY, kind::PROBED, kind::DKIM_READY];

/// Of clusters. That a replica is missing is seen of the mailnodes themselves.
const OF_CLUSTERS: [&str; 2] = [kind::READY, kind::CERTIFICATE_READY];

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Severity {
    /// Somebody notices, or mail is in danger.
    Critical,
    /// The next failure may be felt.
    Warning,
}

/// Something that is not well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Problem {
    pub(super) severity: Severity,
    pub(super) text: String,
    /// The page of docs/runbooks that says what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) runbook: Option<&'static str>,
}

/// Recipients that wait in all queues of a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Queue {
    pub(super) class: &'static str,
    pub(super) recipients: u64,
    /// Arrival of the oldest entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oldest: Option<Timestamp>,
}

/// A resource and its conditions.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) conditions: Vec<Condition>,
}

/// Resources of one kind of which the same condition is False for the same reason.
struct Alike {
    kind: &'static str,
    type_: String,
    reason: String,
    names: Vec<String>,
    message: String,
}

fn problem(severity: Severity, runbook: &'static str, text: String) -> Problem {
    Problem { severity, text, runbook: Some(runbook) }
}

fn health(report: &NodeReport) -> Option<&NodeHealth> {
    report.status.as_ref()?.health.as_ref()
}

/// The queues of all nodes together.
pub(super) fn queues(status: &ClusterStatus) -> Vec<Queue> {
    let classes = [
        (QueueClass::Local, "local"),
        (QueueClass::Remote, "remote"),
        (QueueClass::Bad, "bad"),
        (QueueClass::Held, "held"),
    ];
    let told = || status.nodes.iter().filter_map(health).flat_map(|health| &health.queues);
    let total = |(class, name): (QueueClass, &'static str)| {
        let of_class = || told().filter(move |queue| queue.class() == class);
        let oldest = of_class().filter_map(|queue| queue.oldest).min();
        Queue {
            class: name,
            recipients: of_class().map(|queue| queue.recipients).sum(),
            oldest: oldest.and_then(output::instant),
        }
    };
    classes.into_iter().map(total).collect()
}

/// When the first certificate of a mailnode that answers expires.
pub(super) fn first_to_expire(status: &ClusterStatus) -> Option<Timestamp> {
    let ends = status.nodes.iter().filter_map(health).flat_map(|health| &health.certificates);
    // Zero: it cannot be told.
    let first = ends.map(|certificate| certificate.not_after).filter(|end| *end != 0).min()?;
    Timestamp::from_second(first).ok()
}

/// Alerts that ask somebody to act and tell of something that is not seen here.
pub(super) fn of_alerts<'a>(firing: impl Iterator<Item = &'a Incident>, seen: &[Problem]) -> Vec<Problem> {
    let mut found: Vec<Problem> = firing
        .filter_map(|one| {
            let severity = match one.severity.as_str() {
                "critical" => Severity::Critical,
                "warning" => Severity::Warning,
                _ => return None,
            };
            let text = match one.about.as_str() {
                "" => format!("the alert {} fires", one.alert),
                about => format!("the alert {} fires: {about}", one.alert),
            };
            Some(Problem { severity, text, runbook: runbook(&one.alert) })
        })
        .filter(|new| !seen.iter().any(|old| old.runbook.is_some() && old.runbook == new.runbook))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// What the mailnodes tell that is not well, the worst first.
pub(super) fn of_nodes(status: &ClusterStatus, now: Timestamp) -> Vec<Problem> {
    let mut found = Vec::new();
    let leaderless = status.groups.iter().filter(|group| group.leader.is_none()).count();
    if leaderless > 0 {
        let text = format!("{leaderless} of {} partitions have no leader", status.groups.len());
        found.push(problem(Severity::Critical, "PartitionLeaderless", text));
    }
    let lacks = |group: &&quorumail_proto::admin::GroupStatus| {
        group.leader.is_some() && group.voters.iter().any(|voter| !group.in_sync.contains(voter))
    };
    let lacking = status.groups.iter().filter(lacks).count();
    if lacking > 0 {
        let text = format!("{lacking} of {} partitions lack a replica", status.groups.len());
        found.push(problem(Severity::Warning, "PartitionUnderReplicated", text));
    }
    for report in &status.nodes {
        let node = report.node;
        match &report.status {
            None => {
                let text = format!("node {node} does not answer");
                found.push(problem(Severity::Warning, "MailnodeNotReady", text));
            }
            Some(status) if !status.ready => {
                let text = format!("node {node} is not ready: {}", status.reason);
                found.push(problem(Severity::Warning, "MailnodeNotReady", text));
            }
            Some(_) => {}
        }
        if let Some(health) = health(report) {
            of_node(node, health, now, &mut found);
        }
    }
    for queue in queues(status) {
        let age = queue.oldest.map(|oldest| now.duration_since(oldest));
        let old = age.is_some_and(|age| age > LOCAL_WAITS);
        match (queue.class, queue.recipients) {
            ("local", 1..) if old => {
                let age = output::span(age.map_or(0, |age| age.as_secs()));
                let text = format!("mail for {} recipients here waits for up to {age}", queue.recipients);
                found.push(problem(Severity::Critical, "QueueStuck", text));
            }
            ("bad", count @ 1..) => {
                let text = format!("{count} in the bad queue: reports that nobody got");
                found.push(problem(Severity::Warning, "BadQueueNotEmpty", text));
            }
            _ => {}
        }
    }
    found.sort();
    found
}

fn of_node(node: u64, health: &NodeHealth, now: Timestamp, found: &mut Vec<Problem>) {
    let free = health.disk_free_bytes as f64 / (health.disk_size_bytes.max(1)) as f64;
    let free_text = output::bytes(health.disk_free_bytes);
    if health.disk_room < 2 {
        let takes = if health.disk_room == 1 { "takes no new mail" } else { "is read only" };
        let text = format!("the disk of node {node} is full, it {takes} ({free_text} free)");
        found.push(problem(Severity::Critical, "DiskFilling", text));
    } else if health.disk_size_bytes > 0 && free < LITTLE_ROOM {
        let text = format!("the disk of node {node} fills up: {free_text} free, {:.0} %", free * 100.0);
        found.push(problem(Severity::Warning, "DiskFilling", text));
    }
    if health.slow_disk {
        let text = format!("the disk of node {node} is far slower than those of the others");
        found.push(problem(Severity::Warning, "DiskSlow", text));
    }
    if health.unreadable_replicas + health.unrepaired > 0 {
        let text = format!("the disk of node {node} has rotten places that are not repaired");
        found.push(problem(Severity::Warning, "ReplicaUnreadable", text));
    }
    for certificate in &health.certificates {
        let Ok(end) = Timestamp::from_second(certificate.not_after) else { continue };
        let left = end.duration_since(now);
        // Zero: it cannot be told.
        if certificate.not_after == 0 || left > EXPIRES_SOON {
            continue;
        }
        let (severity, when) = match left.as_secs() {
            ..=0 => (Severity::Critical, "has expired".to_owned()),
            left => (Severity::Warning, format!("expires in {}", output::span(left))),
        };
        let text = format!("the {} certificate of node {node} {when}", certificate.section);
        found.push(problem(severity, "CertificateExpiring", text));
    }
}

/// What resources tell that is not well, the worst first. Of those of one kind with the same reason a few are named.
pub(super) fn of_resources(resources: &[Resource]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut alike: Vec<Alike> = Vec::new();
    for resource in resources {
        let is_policy = resource.kind == "BackupPolicy";
        let wanted: &[&str] = match resource.kind {
            "BackupPolicy" => &OF_POLICIES,
            "MailDomain" => &OF_DOMAINS,
            "MailCluster" => &OF_CLUSTERS,
            _ => &[kind::READY],
        };
        for condition in &resource.conditions {
            if condition.type_ == kind::BLOCK_LISTED && condition.status == "True" {
                found.push(problem(Severity::Warning, "BlockListed", condition.message.clone()));
            }
            if condition.type_ == kind::DEGRADED
                && condition.status == "True"
                && condition.reason != reason::UNDER_REPLICATED
            {
                let lost = condition.reason == reason::NODES_NOT_READY;
                let text = format!("{} {} is degraded: {}", resource.kind, resource.name, condition.message);
                let runbook = lost.then_some("MailnodeNotReady");
                found.push(Problem { severity: Severity::Warning, text, runbook });
            }
            if condition.status != "False" || !wanted.contains(&condition.type_.as_str()) {
                continue;
            }
            if is_policy {
                let runbook = match condition.type_.as_str() {
                    kind::ARCHIVING_HEALTHY => "ArchiveLagging",
                    kind::REHEARSAL_SUCCEEDED => "RehearsalFailed",
                    _ => "BackupOverdue",
                };
                let text = format!("BackupPolicy {}: {}", resource.name, condition.message);
                found.push(problem(Severity::Warning, runbook, text));
                continue;
            }
            let reason = condition.reason.clone();
            if reason == reason::NOT_SIGNED {
                continue;
            }
            let same = |other: &&mut Alike| {
                other.kind == resource.kind && other.type_ == condition.type_ && other.reason == reason
            };
            match alike.iter_mut().find(same) {
                Some(other) => other.names.push(resource.name.clone()),
                None => alike.push(Alike {
                    kind: resource.kind,
                    type_: condition.type_.clone(),
                    reason,
                    names: vec![resource.name.clone()],
                    message: condition.message.clone(),
                }),
            }
        }
    }
    for Alike { kind, type_, names, message, .. } in alike {
        let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(NAMED);
        let names = if more > 0 { format!("{shown} and {more} more") } else { shown };
        let (what, runbook) = match type_.as_str() {
            kind::PROBED => ("probes fail", Some("ProbeFailing")),
            kind::DKIM_READY => ("signatures", Some("DomainAuthBroken")),
            kind::CERTIFICATE_READY => ("certificate", Some("CertificateExpiring")),
            _ => ("not ready", None),
        };
        let text = format!("{kind} {names} {what}: {message}");
        found.push(Problem { severity: Severity::Warning, text, runbook });
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff};
    use quorumail_proto::admin::{CertificateHealth, GroupStatus, NodeStatus, QueueHealth};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn well() -> NodeHealth {
        NodeHealth {
            disk_free_bytes: 50,
            disk_size_bytes: 100,
            disk_room: 2,
            certificates: vec![CertificateHealth {
                section: "public".into(),
                not_after: 1_000_000 + 90 * 86_400,
            }],
            ..NodeHealth::default()
        }
    }

    fn report(node: u64, health: NodeHealth) -> NodeReport {
        let status = NodeStatus { ready: true, health: Some(health), ..NodeStatus::default() };
        NodeReport { node, reachable: true, status: Some(status), ..NodeReport::default() }
    }

    fn texts(status: &ClusterStatus) -> Vec<(Severity, String)> {
        of_nodes(status, now()).into_iter().map(|found| (found.severity, found.text)).collect()
    }

    #[test]
    fn a_cluster_that_is_well_has_no_problems() {
        let group = GroupStatus {
            group: 1,
            leader: Some(0),
            voters: vec![0, 1],
            in_sync: vec![0, 1],
            ..Default::default()
        };
        let mut held = well();
        held.queues = vec![
            QueueHealth { class: QueueClass::Held.into(), recipients: 4, oldest: Some(0) },
            QueueHealth { class: QueueClass::Local.into(), recipients: 1, oldest: Some(999_990_000) },
            QueueHealth { class: QueueClass::Remote.into(), recipients: 9, oldest: Some(0) },
        ];
        let nodes = vec![report(0, held), report(1, well())];
        let status = ClusterStatus { nodes, groups: vec![group], ..ClusterStatus::default() };
        assert_eq!(texts(&status), []);
        let queues = queues(&status);
        assert_eq!((queues[1].class, queues[1].recipients, queues[0].recipients), ("remote", 9, 1));
    }

    #[test]
    fn what_is_not_well_is_told_the_worst_first() {
        let group = |group, leader, in_sync: &[u64]| GroupStatus {
            group,
            leader,
            voters: vec![0, 1],
            in_sync: in_sync.to_vec(),
            ..GroupStatus::default()
        };
        let mut bad =
            NodeHealth { disk_free_bytes: 5, disk_room: 1, slow_disk: true, unrepaired: 1, ..well() };
        bad.certificates[0].not_after = 1_000_000 + 86_400;
        bad.queues = vec![
            QueueHealth { class: QueueClass::Local.into(), recipients: 2, oldest: Some(996_400_000) },
            QueueHealth { class: QueueClass::Bad.into(), recipients: 1, oldest: Some(0) },
        ];
        let mut expired = NodeHealth { disk_free_bytes: 5, ..well() };
        expired.certificates[0].not_after = 999_999;
        let mut unready = report(1, expired);
        let status = unready.status.as_mut().unwrap();
        (status.ready, status.reason) = (false, "the log is being read".into());
        let nodes = vec![report(0, bad), unready, NodeReport { node: 2, ..NodeReport::default() }];
        let groups = vec![group(1, None, &[]), group(2, Some(0), &[0])];
        let told = texts(&ClusterStatus { nodes, groups, ..ClusterStatus::default() });
        let critical: Vec<_> = told.iter().filter(|(severity, _)| *severity == Severity::Critical).collect();
        assert!(told.starts_with(&critical.iter().copied().cloned().collect::<Vec<_>>()));
        let text = told.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
        for expected in [
            "1 of 2 partitions have no leader",
            "1 of 2 partitions lack a replica",
            "mail for 2 recipients here waits for up to 60m",
            "the disk of node 0 is full, it takes no new mail (5 B free)",
            "the public certificate of node 1 has expired",
            "the public certificate of node 0 expires in 24h",
            "1 in the bad queue: reports that nobody got",
            "node 1 is not ready: the log is being read",
            "node 2 does not answer",
            "the disk of node 0 is far slower than those of the others",
            "the disk of node 0 has rotten places that are not repaired",
            "the disk of node 1 fills up: 5 B free, 5 %",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert_eq!(told.len(), 12, "{text}");
        assert_eq!(critical.len(), 4);
    }

    #[test]
    fn resources_that_are_not_ready_are_told_together() {
        let resource = |kind, name: &str, type_: &str, status: &str, message: &str| Resource {
            kind,
            name: name.to_owned(),
            conditions: vec![Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: "DomainNotFound".to_owned(),
                message: message.to_owned(),
                observed_generation: None,
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
            }],
        };
        let mut all: Vec<_> = ["a", "b", "c", "d", "e"]
            .map(|name| resource("Mailbox", name, "Ready", "False", "make the MailDomain"))
            .into();
        all.push(resource("Mailbox", "f", "NearQuota", "False", ""));
        all.push(resource("MailDomain", "g", "Ready", "True", ""));
        all.push(resource("MailDomain", "h", "Probed", "False", "it was not taken"));
        all.push(resource("BackupPolicy", "nightly", "RehearsalSucceeded", "False", "it failed"));
        all.push(resource("MailCluster", "mail", "CertificateReady", "False", "no such zone"));
        all.push(resource("MailCluster", "mail", "Degraded", "True", "the update does not go on"));
        all.push(resource("MailCluster", "other", "Degraded", "False", "all is well"));
        let told = of_resources(&all);
        let texts: Vec<_> = told.iter().map(|found| (found.text.as_str(), found.runbook)).collect();
        assert_eq!(
            texts,
            [
                ("BackupPolicy nightly: it failed", Some("RehearsalFailed")),
                ("MailCluster mail certificate: no such zone", Some("CertificateExpiring")),
                ("MailCluster mail is degraded: the update does not go on", None),
                ("MailDomain h probes fail: it was not taken", Some("ProbeFailing")),
                ("Mailbox a, b, c and 2 more not ready: make the MailDomain", None),
            ]
        );
    }
}
