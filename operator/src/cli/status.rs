//! `quorumail status`.

use clap::Args;
use quorumail_proto::admin::ClusterStatus;
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
    /// Groups that it leads.
    leads: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Partitions {
    total: u32,
    leaderless: usize,
    under_replicated: usize,
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
        })
        .collect();
    let leads = |node| groups.iter().filter(|group| group.leader == Some(node)).count();
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
                leads: leads(report.node),
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
    };
    Facts { nodes, partitions, groups }
}

fn table(facts: &Facts, with_partitions: bool) -> String {
    let nodes = facts.nodes.iter().map(|node| {
        let state = match (node.reachable, node.ready) {
            (false, _) => "not reachable".to_owned(),
            (true, true) => "ready".to_owned(),
            (true, false) => format!("not ready: {}", node.reason),
        };
        [node.node.to_string(), node.address.clone(), state, node.leads.to_string(), node.version.clone()]
    });
    let mut text = output::table(["NODE", "ADDRESS", "STATE", "LEADS", "VERSION"], nodes);
    let Partitions { total, leaderless, under_replicated } = &facts.partitions;
    text += &format!(
        "\n{total} partitions, {leaderless} without a leader, {under_replicated} under-replicated\n"
    );
    if with_partitions {
        let numbers = |list: &[u64]| list.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let rows = facts.groups.iter().map(|group| {
            [
                group.group.to_string(),
                group.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
                numbers(&group.voters),
                numbers(&group.in_sync),
                group.last_log_index.to_string(),
            ]
        });
        text.push('\n');
        text += &output::table(["GROUP", "LEADER", "VOTERS", "IN-SYNC", "LOG"], rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use quorumail_proto::admin::{GroupStatus, NodeReport, NodeStatus};

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
        let up = NodeStatus { ready: true, version: "1".into(), ..NodeStatus::default() };
        let facts = facts(ClusterStatus {
            nodes: vec![
                NodeReport { node: 0, address: "a:1".into(), reachable: true, status: Some(up) },
                NodeReport { node: 1, address: "b:1".into(), reachable: false, status: None },
            ],
            groups: vec![group(0, Some(0), &[0]), group(1, None, &[]), group(2, Some(0), &[0, 1])],
            partitions: 2,
        });
        assert_eq!((facts.partitions.leaderless, facts.partitions.under_replicated), (1, 1));
        let text = table(&facts, true);
        assert!(
            text.contains("not reachable") && text.contains("2 partitions, 1 without a leader"),
            "{text}"
        );
        assert_eq!(facts.nodes[0].leads, 2);
    }
}
