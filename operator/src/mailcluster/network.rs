//! The NetworkPolicy of a MailCluster. Pure.
//!
//! What stands in it is let in and nothing else. Two ways need no rule: the kubelet's probes come from the pod's own node, which
//! networks let in, and connections that are forwarded through the API server begin inside the pod.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt as _;
use quorumail_crds::MailCluster;

use super::objects::{metadata, selector};
use crate::mailnode_config::port;

/// Which Kubernetes puts on every namespace.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
/// Ports for everybody: those of mail clients, of other mail servers, and HTTPS.
const PUBLIC: [u16; 6] =
    [port::SMTP, port::SUBMISSION, port::SUBMISSIONS, port::IMAP, port::IMAPS, port::HTTPS];

/// The NetworkPolicy where one is asked for. `operator_namespace`: where the operator runs.
pub fn policy(cluster: &MailCluster, operator_namespace: &str) -> Option<NetworkPolicy> {
    let asked = cluster.spec.network_policy.as_ref().filter(|asked| asked.enabled)?;
    let mut admins = vec![own_pods(cluster), operator(operator_namespace)];
    admins.extend(asked.admin_from.clone().map(namespaces));
    let mut rules = vec![
        rule(None, &PUBLIC),
        rule(Some(vec![own_pods(cluster)]), &[port::PEER]),
        rule(Some(admins), &[port::ADMIN]),
    ];
    rules.extend(asked.metrics_from.clone().map(|from| rule(Some(vec![namespaces(from)]), &[port::HTTP])));
    Some(NetworkPolicy {
        metadata: metadata(cluster, &cluster.name_any()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(labels(selector(cluster))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(rules),
            ..NetworkPolicySpec::default()
        }),
    })
}

fn labels(match_labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(match_labels), ..LabelSelector::default() }
}

fn own_pods(cluster: &MailCluster) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(labels(selector(cluster))), ..NetworkPolicyPeer::default() }
}

/// As the chart labels it.
fn operator(namespace: &str) -> NetworkPolicyPeer {
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let pods =
        [("app.kubernetes.io/name", "quorumail"), ("app.kubernetes.io/component", "operator")].map(own);
    NetworkPolicyPeer {
        namespace_selector: Some(labels([own((NAMESPACE_LABEL, namespace))].into())),
        pod_selector: Some(labels(pods.into())),
        ..NetworkPolicyPeer::default()
    }
}

fn namespaces(selector: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer { namespace_selector: Some(selector), ..NetworkPolicyPeer::default() }
}

fn rule(from: Option<Vec<NetworkPolicyPeer>>, ports: &[u16]) -> NetworkPolicyIngressRule {
    let port = |port: &u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(*port))),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule { from, ports: Some(ports.iter().map(port).collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: &str) -> Option<String> {
        let text = format!(
            "{{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {{name: mc, namespace: ns, uid: u1}}, spec: {spec}}}"
        );
        let cluster: MailCluster = serde_yaml::from_str(&text).unwrap();
        policy(&cluster, "quorumail-system").map(|policy| serde_yaml::to_string(&policy).unwrap())
    }

    #[test]
    fn there_is_none_unless_it_is_asked_for() {
        assert_eq!(made("{}"), None);
        assert_eq!(made("{networkPolicy: {metricsFrom: {}}}"), None);
    }

    #[test]
    fn ports_are_open_to_those_who_need_them() {
        let found = made(
            "{networkPolicy: {enabled: true, metricsFrom: {matchLabels: {kubernetes.io/metadata.name: monitoring}}, \
             adminFrom: {matchLabels: {team: mail}}}}",
        );
        assert_eq!(found.unwrap(), include_str!("network_policy.yaml"));
    }

    #[test]
    fn metrics_are_for_nobody_unless_somebody_is_named() {
        let found = made("{networkPolicy: {enabled: true}}").unwrap();
        assert!(!found.contains("8080") && !found.contains("team"), "{found}");
    }
}
