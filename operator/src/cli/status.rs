//! `quorumail status`.

use clap::Args;
use quorumail_proto::admin::{ClusterStatus, NodeReport};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Shows every partition.
    #[arg(long)]
    partitions: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    nodes: Vec<Node>,
    partitions: Partitions,
    groups: Vec<Group>,
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
    let status = target.connect().await?.cluster_status().await?;
    let facts = facts(status);
    output::print(format, &facts, |facts| table(facts, args.partitions))
}

fn facts(status: ClusterStatus) -> Facts {
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
    Facts { nodes, partitions, groups, format_level }
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

fn table(facts: &Facts, with_partitions: bool) -> String {
    let nodes = facts.nodes.iter().map(|node| {
        let state = match (node.reachable, node.ready) {
            (false, _) => "not reachable".to_owned(),
            (true, true) => format!("ready{}", change_of(node)),
            (true, false) => format!("not ready: {}{}", node.reason, change_of(node)),
        };
        let (leads, replicas) = (node.leads.to_string(), node.replicas.to_string());
        let zone = if node.zone.is_empty() { "-".to_owned() } else { node.zone.clone() };
        [node.node.to_string(), node.address.clone(), zone, state, leads, replicas, node.version.clone()]
    });
    let mut text = output::table(["NODE", "ADDRESS", "ZONE", "STATE", "LEADS", "REPLICAS", "VERSION"], nodes);
    let Partitions { total, leaderless, under_replicated, moving, paused } = &facts.partitions;
    text += &format!(
        "\n{total} partitions, {leaderless} without a leader, {under_replicated} under-replicated\n"
    );
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
    use quorumail_proto::admin::{GroupStatus, NodeStatus};

    use super::*;

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
        let facts = facts(ClusterStatus {
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
        });
        assert_eq!((facts.partitions.leaderless, facts.partitions.under_replicated), (1, 1));
        let text = table(&facts, true);
        assert!(
            text.contains("not reachable") && text.contains("2 partitions, 1 without a leader"),
            "{text}"
        );
        assert!(text.contains("joining: 25 %") && text.contains("leaving: 2 replicas left"), "{text}");
        assert!(text.contains("3 groups change their members"), "{text}");
        assert!(text.contains("west") && text.contains("ZONE"), "{text}");
        assert!(text.contains("format level 1, raised once") && text.contains("by node 1\n"), "{text}");
        assert_eq!(facts.nodes[0].leads, 2);
    }
}
