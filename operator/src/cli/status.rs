//! `quorumail status`.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt as _, api::ListParams};
use quorumail_crds::{
    BackupPolicy, BackupPolicyStatus, ClusterRef, LocalClusterRef, MailCluster, MailDomain, Mailbox,
    MailingList,
    backup::is_rehearsal,
    condition::{find, kind, reason},
};
use quorumail_proto::admin::{ClusterStatus, NodeReport};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Failure,
    connect::{Kubernetes, Target},
    health::{self, Problem, Queue, Resource, Severity},
    output::{self, Format},
};
use crate::report::{Moment, Scope, glance, percent, prometheus::Prometheus};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Shows every partition.
    #[arg(long)]
    partitions: bool,
    /// Where Prometheus answers: shows the alerts that fire, and uptime and deliverability of the last day as well.
    #[arg(long, value_name = "URL", env = "PROMETHEUS_URL")]
    prometheus: Option<String>,
}

/// Over which time uptime and deliverability are told, in seconds.
const LAST_DAY: i64 = 86_400;
/// For Prometheus to answer; without it the rest is shown.
const PROMETHEUS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    /// Whether nothing is wrong.
    well: bool,
    /// What is, the worst first.
    problems: Vec<Problem>,
    nodes: Vec<Node>,
    partitions: Partitions,
    groups: Vec<Group>,
    queues: Vec<Queue>,
    /// Of BackupPolicies, in Kubernetes.
    backups: Vec<Backup>,
    /// Of MailDomains, in Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    domains: Option<Domains>,
    /// What Prometheus tells of the last day and of alerts, where it is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_day: Option<Moment>,
    /// When the first certificate of a mailnode expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expires: Option<Timestamp>,
    /// At which the cluster writes: the highest that a node tells.
    format_level: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    node: u64,
    address: String,
    reachable: bool,
    ready: bool,
    reason: String,
    version: String,
    /// The highest format level that its version knows.
    max_format_level: u32,
    /// Groups that it leads.
    leads: usize,
    zone: String,
    /// Whether its replicas are moving to other nodes.
    leaving: bool,
    /// Partitions of which it holds a replica.
    replicas: u32,
    /// Partitions in which it is to vote, and those of them in which it does.
    target_replicas: u32,
    placed_replicas: u32,
    disk_free_bytes: u64,
    disk_size_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Backup {
    policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_successful: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive_lag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_rehearsed: Option<Timestamp>,
}

/// How many MailDomains there are, and of how many what is known.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Domains {
    total: usize,
    /// Whose messages come back.
    probed: usize,
    /// Whose messages do not.
    probes_failed: usize,
    /// Whose DNS records are all seen.
    verified: usize,
    /// Of whose DNS records some are missing or differ.
    records_wrong: usize,
    /// Whose signatures cannot be checked.
    dkim_wrong: usize,
}

impl Domains {
    fn add(&mut self, conditions: &[Condition]) {
        let of = |kind: &str, status: &str| {
            usize::from(find(conditions, kind).is_some_and(|condition| condition.status == status))
        };
        self.total += 1;
        self.probed += of(kind::PROBED, "True");
        self.probes_failed += of(kind::PROBED, "False");
        self.verified += of(kind::DNS_VERIFIED, "True");
        self.records_wrong += of(kind::DNS_VERIFIED, "False");
        self.dkim_wrong += usize::from(
            find(conditions, kind::DKIM_READY)
                .is_some_and(|dkim| dkim.status == "False" && dkim.reason != reason::NOT_SIGNED),
        );
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Partitions {
    total: u32,
    leaderless: usize,
    under_replicated: usize,
    /// Groups whose members are being changed or are to be.
    moving: u32,
    /// Why none is begun for now.
    paused: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    /// Zero is the directory; the others are partitions.
    group: u32,
    leader: Option<u64>,
    voters: Vec<u64>,
    in_sync: Vec<u64>,
    term: u64,
    last_log_index: u64,
    /// Who is to vote.
    target: Vec<u64>,
    /// What is done or waited for while the members change.
    step: String,
}

pub(super) async fn run(target: &Target, format: Format, args: &StatusArgs) -> Result<(), Failure> {
    let now = Timestamp::now();
    let prometheus = args.prometheus.as_deref();
    let (status, resources, last_day) = if target.dev.is_some() || target.tls_dir.is_some() {
        let status = async { Ok::<_, Failure>(target.connect().await?.cluster_status().await?) };
        let (status, last_day) = tokio::join!(status, last_day(prometheus, None, now));
        (status?, Resources::default(), last_day)
    } else {
        let kubernetes = target.kubernetes().await?;
        let status = async { Ok::<_, Failure>(kubernetes.connect().await?.cluster_status().await?) };
        let last_day = last_day(prometheus, Some(&kubernetes), now);
        let (status, resources, last_day) = tokio::join!(status, Resources::read(&kubernetes), last_day);
        // Some may ask the mailnodes and not read the resources.
        let resources = resources.unwrap_or_else(|error| {
            eprintln!("resources and backups are left out: {error}");
            Resources::default()
        });
        (status?, resources, last_day)
    };
    let facts = facts(status, resources, last_day, now);
    output::print(format, &facts, |facts| table(facts, args.partitions, now))?;
    match facts.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::Failed("not well: 1 problem".to_owned())),
        count => Err(Failure::Failed(format!("not well: {count} problems"))),
    }
}

/// Of one MailCluster, or of all that Prometheus knows. What it does not tell is left out, with a word.
async fn last_day(url: Option<&str>, of: Option<&Kubernetes>, now: Timestamp) -> Option<Moment> {
    let url = url?;
    let scope = Scope {
        namespace: of.map(|kubernetes| kubernetes.namespace.clone()),
        cluster: of.map(|kubernetes| kubernetes.cluster.clone()),
        until: now,
        seconds: LAST_DAY,
    };
    let asked = async { glance(&Prometheus::new(url)?, &scope).await };
    let why = match tokio::time::timeout(PROMETHEUS_WITHIN, asked).await {
        Ok(Ok(moment)) => return Some(moment),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PROMETHEUS_WITHIN.as_secs()),
    };
    eprintln!("alerts, uptime and deliverability are left out: {why}");
    None
}

/// What the API server knows of a mail service.
#[derive(Debug, Default)]
struct Resources {
    all: Vec<Resource>,
    backups: Vec<Backup>,
    /// None where the resources cannot be read.
    domains: Option<Domains>,
}

impl Resources {
    async fn read(kubernetes: &Kubernetes) -> Result<Self, Failure> {
        let (clusters, domains, mailboxes, lists, policies) = tokio::try_join!(
            list::<MailCluster>(kubernetes),
            list::<MailDomain>(kubernetes),
            list::<Mailbox>(kubernetes),
            list::<MailingList>(kubernetes),
            list::<BackupPolicy>(kubernetes),
        )?;
        // Where it is left out the namespace has one MailCluster.
        let ours = |reference: Option<&ClusterRef>| {
            let namespace = &kubernetes.namespace;
            reference.is_none_or(|named| named.means(namespace, namespace, &kubernetes.cluster))
        };
        let names_ours = |reference: Option<&LocalClusterRef>| {
            reference.is_none_or(|named| named.name == kubernetes.cluster)
        };
        let mut found = Self::default();
        for cluster in clusters {
            if cluster.name_any() == kubernetes.cluster && !is_rehearsal(&cluster) {
                found.add("MailCluster", &cluster, cluster.status.as_ref().map(|status| &status.conditions));
            }
        }
        for domain in domains.iter().filter(|domain| ours(domain.spec.cluster_ref.as_ref())) {
            let conditions = domain.status.as_ref().map_or(&[][..], |status| &status.conditions);
            found.domains.get_or_insert_default().add(conditions);
            found.add("MailDomain", domain, domain.status.as_ref().map(|status| &status.conditions));
        }
        for mailbox in mailboxes.iter().filter(|mailbox| ours(mailbox.spec.cluster_ref.as_ref())) {
            found.add("Mailbox", mailbox, mailbox.status.as_ref().map(|status| &status.conditions));
        }
        for one in lists.iter().filter(|one| ours(one.spec.cluster_ref.as_ref())) {
            found.add("MailingList", one, one.status.as_ref().map(|status| &status.conditions));
        }
        for policy in policies.iter().filter(|policy| names_ours(policy.spec.cluster_ref.as_ref())) {
            found.add("BackupPolicy", policy, policy.status.as_ref().map(|status| &status.conditions));
            found.backups.push(backup(policy.name_any(), policy.status.as_ref()));
        }
        Ok(found)
    }

    fn add<K: kube::Resource>(
        &mut self,
        kind: &'static str,
        object: &K,
        conditions: Option<&Vec<Condition>>,
    ) {
        let conditions = conditions.cloned().unwrap_or_default();
        self.all.push(Resource { kind, name: object.name_any(), conditions });
    }
}

async fn list<K>(kubernetes: &Kubernetes) -> Result<Vec<K>, Failure>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(kubernetes.client.clone(), &kubernetes.namespace);
    Ok(api.list(&ListParams::default()).await?.items)
}

fn backup(policy: String, status: Option<&BackupPolicyStatus>) -> Backup {
    let told = status.cloned().unwrap_or_default();
    Backup {
        policy,
        last_successful: told.last_successful_time.map(|time| time.0),
        next: told.next_schedule_time.map(|time| time.0),
        archive_lag: told.archive_lag,
        last_rehearsed: told.last_rehearsed_time.map(|time| time.0),
    }
}

fn facts(status: ClusterStatus, resources: Resources, last_day: Option<Moment>, now: Timestamp) -> Facts {
    let mut problems = health::of_nodes(&status, now);
    problems.extend(health::of_resources(&resources.all));
    let firing = last_day.iter().filter_map(|moment| moment.alerts.as_ref()).flatten();
    let more = health::of_alerts(firing, &problems);
    problems.extend(more);
    problems.sort();
    let queues = health::queues(&status);
    let certificate_expires = health::first_to_expire(&status);
    let groups: Vec<Group> = status
        .groups
        .into_iter()
        .map(|group| Group {
            group: group.group,
            leader: group.leader,
            voters: group.voters,
            in_sync: group.in_sync,
            term: group.term,
            last_log_index: group.last_log_index,
            target: group.target,
            step: group.step,
        })
        .collect();
    let leads = |node| groups.iter().filter(|group| group.leader == Some(node)).count();
    let level = |report: &NodeReport| report.status.as_ref().map_or(0, |status| status.level);
    let format_level = status.nodes.iter().map(level).max().unwrap_or(0);
    let nodes = status
        .nodes
        .into_iter()
        .map(|report| {
            let status = report.status.unwrap_or_default();
            let health = status.health.unwrap_or_default();
            Node {
                node: report.node,
                address: report.address,
                reachable: report.reachable,
                ready: status.ready,
                reason: status.reason,
                version: status.version,
                max_format_level: status.max_level,
                leads: leads(report.node),
                zone: report.zone,
                leaving: report.leaving,
                replicas: report.replicas,
                target_replicas: report.target_replicas,
                placed_replicas: report.placed_replicas,
                disk_free_bytes: health.disk_free_bytes,
                disk_size_bytes: health.disk_size_bytes,
            }
        })
        .collect();
    let partitions = Partitions {
        total: status.partitions,
        leaderless: groups.iter().filter(|group| group.leader.is_none()).count(),
        under_replicated: groups
            .iter()
            .filter(|g| g.leader.is_some() && g.voters.iter().any(|voter| !g.in_sync.contains(voter)))
            .count(),
        moving: status.moving,
        paused: status.paused,
    };
    let Resources { backups, domains, .. } = resources;
    Facts {
        well: problems.is_empty(),
        problems,
        nodes,
        partitions,
        groups,
        queues,
        backups,
        domains,
        last_day,
        certificate_expires,
        format_level,
    }
}

/// How far a node is that joins or leaves.
fn change_of(node: &Node) -> String {
    let percent = |done: u32, all: u32| done * 100 / all.max(1);
    if node.leaving {
        // Replicas are the measure; how many there were at the beginning is not kept.
        return format!(", leaving: {} replicas left", node.replicas);
    }
    if node.placed_replicas < node.target_replicas {
        return format!(", joining: {} %", percent(node.placed_replicas, node.target_replicas));
    }
    String::new()
}

/// At which format level the cluster is, and what keeps it there when some nodes know a higher one.
fn levels(facts: &Facts) -> String {
    let level = facts.format_level;
    let highest = facts.nodes.iter().map(|node| node.max_format_level).max().unwrap_or(0);
    if highest <= level {
        return format!("format level {level}\n");
    }
    let behind = facts.nodes.iter().filter(|node| node.max_format_level <= level);
    let behind: Vec<String> = behind.map(|node| node.node.to_string()).collect();
    match behind.is_empty() {
        true => format!("format level {level}, about to be raised: all nodes know a higher one\n"),
        false => format!(
            "format level {level}, raised once every node knows a higher one: not yet told by node {}\n",
            behind.join(", ")
        ),
    }
}

/// What is to be seen first: whether it is well.
fn verdict(problems: &[Problem]) -> String {
    if problems.is_empty() {
        return "well\n".to_owned();
    }
    let line = |problem: &Problem| {
        let mark = match problem.severity {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        };
        let runbook = problem.runbook.map(|page| format!("   (runbook {page})")).unwrap_or_default();
        format!("  {mark:9} {}{runbook}\n", problem.text)
    };
    let worst = problems.iter().any(|problem| problem.severity == Severity::Critical);
    let head = if worst { "NOT WELL: people notice, or mail is in danger" } else { "not well" };
    format!("{head}\n{}", problems.iter().map(line).collect::<String>())
}

/// Queues and backups, a line each.
fn summary(facts: &Facts, now: Timestamp) -> String {
    let ago = |at: Option<Timestamp>| {
        at.map_or_else(
            || "never".to_owned(),
            |at| format!("{} ago", output::span(now.duration_since(at).as_secs())),
        )
    };
    let waiting: Vec<String> = facts
        .queues
        .iter()
        .map(|queue| match queue.oldest {
            Some(oldest) if queue.recipients > 0 => {
                let age = output::span(now.duration_since(oldest).as_secs());
                format!("{} {} (oldest {age})", queue.class, queue.recipients)
            }
            _ => format!("{} {}", queue.class, queue.recipients),
        })
        .collect();
    let mut text = format!("queues: {}\n", waiting.join(", "));
    if let Some(domains) = &facts.domains {
        let Domains { total, probed, probes_failed, verified, records_wrong, dkim_wrong } = domains;
        text += &format!(
            "probes: {probed} of {total} domains pass, {probes_failed} fail\n\
             dns: {verified} of {total} domains verified, {records_wrong} lack records, {dkim_wrong} have signatures that cannot be checked\n"
        );
    }
    if let Some(Moment { uptime, deliverability, alerts }) = &facts.last_day {
        let told = |share: &Option<f64>| share.map_or_else(|| "not known".to_owned(), percent);
        let alerts = match alerts {
            None => "not known: Prometheus has none of the rules".to_owned(),
            Some(firing) if firing.is_empty() => "none fires".to_owned(),
            Some(firing) => {
                let mut counts = BTreeMap::<&str, u32>::new();
                firing.iter().for_each(|one| *counts.entry(&one.alert).or_default() += 1);
                let told = counts.iter().map(|(alert, count)| match count {
                    1 => (*alert).to_owned(),
                    _ => format!("{alert} ({count} times)"),
                });
                told.collect::<Vec<_>>().join(", ")
            }
        };
        text += &format!(
            "last day: uptime {}, deliverability {}\nalerts: {alerts}\n",
            told(uptime),
            told(deliverability)
        );
    }
    if let Some(end) = facts.certificate_expires {
        text += &format!(
            "certificates: the first expires in {}\n",
            output::span(end.duration_since(now).as_secs().max(0))
        );
    }
    for backup in &facts.backups {
        let mut parts = vec![format!("last {}", ago(backup.last_successful))];
        if let Some(next) = backup.next {
            parts.push(format!("next in {}", output::span(next.duration_since(now).as_secs().max(0))));
        }
        if let Some(lag) = &backup.archive_lag {
            parts.push(format!("archive {lag} behind"));
        }
        if backup.last_rehearsed.is_some() {
            parts.push(format!("rehearsed {}", ago(backup.last_rehearsed)));
        }
        text += &format!("backups by {}: {}\n", backup.policy, parts.join(", "));
    }
    text
}

fn table(facts: &Facts, with_partitions: bool, now: Timestamp) -> String {
    let nodes = facts.nodes.iter().map(|node| {
        let state = match (node.reachable, node.ready) {
            (false, _) => "not reachable".to_owned(),
            (true, true) => format!("ready{}", change_of(node)),
            (true, false) => format!("not ready: {}{}", node.reason, change_of(node)),
        };
        let (leads, replicas) = (node.leads.to_string(), node.replicas.to_string());
        let zone = if node.zone.is_empty() { "-".to_owned() } else { node.zone.clone() };
        let free = match node.disk_size_bytes {
            0 => "-".to_owned(),
            _ => output::bytes(node.disk_free_bytes),
        };
        [
            node.node.to_string(),
            node.address.clone(),
            zone,
            state,
            leads,
            replicas,
            free,
            node.version.clone(),
        ]
    });
    let mut text = verdict(&facts.problems);
    text.push('\n');
    text +=
        &output::table(["NODE", "ADDRESS", "ZONE", "STATE", "LEADS", "REPLICAS", "FREE", "VERSION"], nodes);
    let Partitions { total, leaderless, under_replicated, moving, paused } = &facts.partitions;
    text += &format!(
        "\n{total} partitions, {leaderless} without a leader, {under_replicated} under-replicated\n"
    );
    text += &summary(facts, now);
    text += &levels(facts);
    if *moving > 0 {
        text += &format!("{moving} groups change their members\n");
    }
    if !paused.is_empty() {
        text += &format!("no change is begun for now: {paused}\n");
    }
    if with_partitions {
        let numbers = |list: &[u64]| list.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let rows = facts.groups.iter().map(|group| {
            [
                group.group.to_string(),
                group.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                numbers(&group.voters),
                numbers(&group.in_sync),
                group.last_log_index.to_string(),
                numbers(&group.target),
                group.step.clone(),
            ]
        });
        text.push('\n');
        text += &output::table(["GROUP", "LEADER", "VOTERS", "IN-SYNC", "LOG", "TARGET", "STEP"], rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use quorumail_crds::condition::{Observed, merge};
    use quorumail_proto::admin::{GroupStatus, NodeStatus};

    use super::*;
    use crate::report::Incident;

    #[test]
    fn a_lost_node_and_what_it_held_are_seen() {
        let group = |group, leader, in_sync: &[u64]| GroupStatus {
            group,
            leader,
            voters: vec![0, 1],
            in_sync: in_sync.to_vec(),
            ..GroupStatus::default()
        };
        let up =
            NodeStatus { ready: true, version: "1".into(), level: 1, max_level: 2, ..NodeStatus::default() };
        let status = ClusterStatus {
            nodes: vec![
                NodeReport {
                    node: 0,
                    address: "a:1".into(),
                    reachable: true,
                    status: Some(up.clone()),
                    zone: "west".into(),
                    ..NodeReport::default()
                },
                NodeReport { node: 1, address: "b:1".into(), ..NodeReport::default() },
                NodeReport {
                    node: 2,
                    reachable: true,
                    status: Some(up.clone()),
                    target_replicas: 4,
                    placed_replicas: 1,
                    ..NodeReport::default()
                },
                NodeReport {
                    node: 3,
                    reachable: true,
                    status: Some(up),
                    leaving: true,
                    replicas: 2,
                    ..NodeReport::default()
                },
            ],
            groups: vec![group(0, Some(0), &[0]), group(1, None, &[]), group(2, Some(0), &[0, 1])],
            partitions: 2,
            moving: 3,
            ..ClusterStatus::default()
        };
        let now = Timestamp::from_second(1_000_000).unwrap();
        let told = BackupPolicyStatus {
            last_successful_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                Timestamp::from_second(996_400).unwrap(),
            )),
            archive_lag: Some("12s".into()),
            ..Default::default()
        };
        let backups = vec![backup("nightly".into(), Some(&told))];
        let mut domains = Domains::default();
        let told = [
            Observed::yes(kind::PROBED, reason::SUCCEEDED, ""),
            Observed::no(kind::DKIM_READY, reason::RECORDS_WRONG, ""),
        ];
        domains.add(&merge(&[], &told, None, now));
        domains.add(&merge(&[], &[Observed::no(kind::DKIM_READY, reason::NOT_SIGNED, "")], None, now));
        let fires = |alert: &str, severity: &str| Incident {
            alert: alert.to_owned(),
            severity: severity.to_owned(),
            about: "mail mc-1".to_owned(),
            from: 0.0,
            to: 1.0,
            goes_on: true,
        };
        let firing = [
            fires("DiskSlow", "warning"),
            fires("DiskSlow", "warning"),
            // Seen here already, and of no weight.
            fires("PartitionLeaderless", "critical"),
            fires("BounceSurge", "info"),
        ];
        let last_day = Moment { uptime: Some(0.99996), deliverability: None, alerts: Some(firing.to_vec()) };
        let resources = Resources { backups, domains: Some(domains), ..Resources::default() };
        let facts = facts(status, resources, Some(last_day), now);
        assert_eq!((facts.partitions.leaderless, facts.partitions.under_replicated), (1, 1));
        let text = table(&facts, true, now);
        assert!(
            text.contains("not reachable") && text.contains("2 partitions, 1 without a leader"),
            "{text}"
        );
        assert!(text.contains("joining: 25 %") && text.contains("leaving: 2 replicas left"), "{text}");
        assert!(text.contains("3 groups change their members"), "{text}");
        assert!(text.contains("west") && text.contains("ZONE"), "{text}");
        assert!(text.contains("format level 1, raised once") && text.contains("by node 1\n"), "{text}");
        assert_eq!(facts.nodes[0].leads, 2);
        assert!(text.starts_with("NOT WELL") && text.contains("(runbook PartitionLeaderless)"), "{text}");
        assert!(text.contains("backups by nightly: last 60m ago, archive 12s behind\n"), "{text}");
        assert!(text.contains("probes: 1 of 2 domains pass, 0 fail\n"), "{text}");
        assert!(text.contains("0 lack records, 1 have signatures that cannot be checked\n"), "{text}");
        assert!(text.contains("last day: uptime 99.99 %, deliverability not known\n"), "{text}");
        assert!(text.contains("alerts: BounceSurge, DiskSlow (2 times), PartitionLeaderless\n"), "{text}");
        assert!(text.contains("the alert DiskSlow fires: mail mc-1   (runbook DiskSlow)\n"), "{text}");
        assert_eq!((text.matches(" fires: ").count(), text.matches("PartitionLeaderless").count()), (1, 2));
        assert!(text.contains("queues: local 0, remote 0, bad 0, held 0\n"), "{text}");
    }
}
