//! In which zone each mailnode is, told by the Kubernetes node that its pod runs on. What decides is pure.
//!
//! A pod cannot read labels of its node, so the operator tells the mailnodes, as a part of the list of nodes: they spread the
//! replicas of each partition over zones. A zone that is not known, as of a pod that is not scheduled, stays as it was.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt as _};
use quorumail_crds::MailCluster;
use quorumail_proto::admin::ClusterStatus;

use crate::shape::{Shape, Stage};

/// Label of Kubernetes nodes that names the zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The zones of the Kubernetes nodes that pods run on; those without the label, and those that may not be read, are left out.
/// Reads nothing but the metadata of these nodes.
pub async fn of_hosts(client: &kube::Client, pods: &[Pod]) -> BTreeMap<String, String> {
    let hosts: BTreeSet<&str> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    let nodes: Api<Node> = Api::all(client.clone());
    let mut zones = BTreeMap::new();
    for host in hosts {
        match nodes.get_metadata_opt(host).await {
            Ok(Some(node)) => {
                let zone = node.labels().get(ZONE_LABEL).cloned();
                zones.extend(zone.map(|zone| (host.to_owned(), zone)));
            }
            Ok(None) => {}
            // Without the right to it replicas are spread over nodes only.
            Err(error) => tracing::debug!(%error, host, "the zone of a Kubernetes node cannot be read"),
        }
    }
    zones
}

/// The zone of each mailnode, in the order of their numbers: by where its pod runs, else as it was before, else empty.
pub fn of_mailnodes(
    cluster: &MailCluster,
    running: u64,
    pods: &[Pod],
    hosts: &BTreeMap<String, String>,
    before: &[String],
) -> Vec<String> {
    let pods: BTreeMap<String, &Pod> = pods.iter().map(|pod| (pod.name_any(), pod)).collect();
    let zone = |number: u64| {
        let pod = pods.get(&format!("{}-{number}", cluster.name_any()))?;
        hosts.get(pod.spec.as_ref()?.node_name.as_ref()?).cloned()
    };
    (0..running).map(|number| zone(number).unwrap_or_else(|| at(before, number))).collect()
}

fn at(zones: &[String], number: u64) -> String {
    usize::try_from(number).ok().and_then(|number| zones.get(number)).cloned().unwrap_or_default()
}

/// The list of nodes that the mailnodes are to have: `next` with the zones as they are. `known` is the one that they have. Zones alone
/// make a new list only when nothing moves: a new cluster founds its partitions first.
pub fn told(
    known: (Shape, &[String]),
    next: Shape,
    zones: Vec<String>,
    status: Option<&ClusterStatus>,
) -> (Shape, Vec<String>) {
    let (shape, before) = known;
    let before: Vec<String> = (0..next.running).map(|number| at(before, number)).collect();
    if next.generation != shape.generation {
        return (next, zones);
    }
    let settled = status.is_some_and(|status| next.stage(status) == Stage::Settled);
    if zones == before || !settled {
        return (next, before);
    }
    (Shape { generation: next.generation + 1, ..next }, zones)
}

#[cfg(test)]
mod tests {
    use quorumail_proto::admin::{NodeReport, NodeStatus, Plan};

    use super::*;

    fn cluster() -> MailCluster {
        let text = "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: mc, namespace: ns}, spec: {}}";
        serde_yaml::from_str(text).unwrap()
    }

    fn pod(number: u64, host: &str) -> Pod {
        let host = if host.is_empty() { String::new() } else { format!("nodeName: {host}, ") };
        serde_yaml::from_str(&format!("{{metadata: {{name: mc-{number}}}, spec: {{{host}containers: []}}}}"))
            .unwrap()
    }

    fn owned(zones: &[&str]) -> Vec<String> {
        zones.iter().map(|zone| (*zone).to_owned()).collect()
    }

    fn status(generation: u64, nodes: u64, moving: u32) -> ClusterStatus {
        let plan = Some(Plan { generation, ..Plan::default() });
        let report = |node| NodeReport {
            node,
            status: Some(NodeStatus { generation, plan: plan.clone(), ..NodeStatus::default() }),
            ..NodeReport::default()
        };
        ClusterStatus { nodes: (0..nodes).map(report).collect(), moving, ..ClusterStatus::default() }
    }

    #[test]
    fn a_mailnode_is_where_its_pod_runs_and_stays_there_while_it_does_not() {
        let hosts =
            [("h1", "west"), ("h2", "east")].map(|(host, zone)| (host.to_owned(), zone.to_owned())).into();
        let pods = [pod(0, "h1"), pod(1, "h2"), pod(2, ""), pod(4, "unlabelled")];
        let before = owned(&["east", "east", "north", "south"]);
        let zones = of_mailnodes(&cluster(), 5, &pods, &hosts, &before);
        assert_eq!(zones, ["west", "east", "north", "south", ""]);
        assert_eq!(of_mailnodes(&cluster(), 2, &[], &hosts, &[]), ["", ""]);
    }

    #[test]
    fn zones_make_a_new_list_once_nothing_moves() {
        let (shape, zones) = (Shape::founded(3), owned(&["a", "b", "c"]));
        let none = owned(&["", "", ""]);
        let next = |status: Option<ClusterStatus>| told((shape, &[]), shape, zones.clone(), status.as_ref());
        assert_eq!(next(None), (shape, none.clone()), "nobody can be asked");
        assert_eq!(next(Some(status(1, 3, 2))), (shape, none.clone()), "partitions are being founded");
        let second = Shape { generation: 2, ..shape };
        assert_eq!(next(Some(status(1, 3, 0))), (second, zones.clone()));
        let settled = status(2, 3, 0);
        assert_eq!(told((second, &zones), second, zones.clone(), Some(&settled)), (second, zones.clone()));
        assert_eq!(
            told((shape, &[]), shape, none.clone(), Some(&status(1, 3, 0))),
            (shape, none),
            "no labels"
        );
    }

    #[test]
    fn a_change_of_the_number_of_nodes_takes_the_zones_along() {
        let shape = Shape { generation: 4, founders: 1, staying: 3, running: 3 };
        let (more, zones) = (shape.next(5, None), owned(&["a", "b", "c", "", ""]));
        assert_eq!(told((shape, &owned(&["a", "b", "x"])), more, zones.clone(), None), (more, zones));
    }
}
