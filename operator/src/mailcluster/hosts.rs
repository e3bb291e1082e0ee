//! Kubernetes nodes that do not answer any more, and what it means for the pods that were on them. What decides is pure.
//!
//! A pod on a lost node is not to blame: it is neither replaced nor is the template that it was made from taken back. Most of it is
//! told by the Pod alone; a pod that was still starting is known to be lost only where Nodes may be read.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, PodStatus};
use kube::Api;

use super::update::passed;

/// How long after its time to end a pod may still be there before its node counts as lost.
const ENDING: std::time::Duration = std::time::Duration::from_secs(60);
/// Taints that Kubernetes sets on nodes that are lost or being drained, as the scheduler names them.
const TAINTS: [&str; 4] = [
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/out-of-service",
    "node.kubernetes.io/unschedulable",
];

/// The Kubernetes nodes, of those that pods run on which are not ready, that are gone or do not say that they are ready.
/// Those that may not be read are left out.
pub async fn silent(client: &kube::Client, pods: &[Pod]) -> BTreeSet<String> {
    let unready = pods.iter().filter(|pod| !is(&status(pod), "Ready", "True"));
    let hosts: BTreeSet<&str> = unready.filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    let nodes: Api<Node> = Api::all(client.clone());
    let mut silent = BTreeSet::new();
    for host in hosts {
        match nodes.get_opt(host).await {
            Ok(node) => {
                if !node.is_some_and(|node| says_ready(&node)) {
                    silent.insert(host.to_owned());
                }
            }
            Err(error) => tracing::debug!(%error, host, "a Kubernetes node cannot be read"),
        }
    }
    silent
}

fn says_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn status(pod: &Pod) -> PodStatus {
    pod.status.clone().unwrap_or_default()
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

fn is(status: &PodStatus, kind: &str, value: &str) -> bool {
    condition(status, kind).is_some_and(|c| c.status == value)
}

/// Why a pod that is not ready is so because of its Kubernetes node, and what to do, in words; none when it is not.
pub fn lost(pod: &Pod, silent: &BTreeSet<String>, now: Timestamp) -> Option<String> {
    let status = status(pod);
    if is(&status, "Ready", "True") && pod.metadata.deletion_timestamp.is_none() {
        return None;
    }
    let Some(host) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
        return homeless(&status);
    };
    // When a node is lost Kubernetes says in its kubelet's place that its pods are not ready, and that alone.
    let gates = pod.spec.as_ref().is_some_and(|s| s.readiness_gates.as_ref().is_some_and(|g| !g.is_empty()));
    let marked = !gates && is(&status, "Ready", "False") && is(&status, "ContainersReady", "True");
    let overdue = pod.metadata.deletion_timestamp.as_ref().is_some_and(|time| passed(time.0, now, ENDING));
    let told = status.reason.as_deref() == Some("NodeLost");
    (silent.contains(host) || marked || overdue || told).then(|| {
        format!(
            "Kubernetes node {host} does not answer; if it is off for good, say so: \
             kubectl taint nodes {host} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
        )
    })
}

/// Of a pod that is on no node: whether it waits for the one that it was on, because its volume is there.
fn homeless(status: &PodStatus) -> Option<String> {
    let scheduled = condition(status, "PodScheduled").filter(|c| c.status == "False")?;
    let words = scheduled.message.as_deref()?;
    let volume = words.contains("PersistentVolume's node affinity") || words.contains("volume node affinity");
    let template = words.contains("Pod's node affinity");
    let waits = TAINTS.iter().any(|taint| words.contains(taint)) || (volume && !template);
    waits.then(|| {
        format!(
            "it waits for a Kubernetes node ({words}); if its volume is lost with one, \
             delete its PersistentVolumeClaim and the pod"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Pod {
        serde_yaml::from_str(text).unwrap()
    }

    fn running(ready: &str, containers: &str) -> Pod {
        pod(&format!(
            "{{metadata: {{name: mc-1}}, spec: {{nodeName: n2, containers: []}}, status: {{conditions: [
              {{type: Ready, status: '{ready}'}}, {{type: ContainersReady, status: '{containers}'}}]}}}}"
        ))
    }

    fn unplaced(words: &str) -> Pod {
        pod(&format!(
            "{{metadata: {{name: mc-1}}, spec: {{containers: []}}, status: {{conditions: [
              {{type: PodScheduled, status: 'False', message: \"{words}\"}}]}}}}"
        ))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pod_alone_tells_that_its_node_is_lost() {
        let lost = |pod: &Pod| lost(pod, &BTreeSet::new(), at(0));
        let words = lost(&running("False", "True")).unwrap();
        assert!(words.contains("node n2 does not answer"), "{words}");
        assert!(
            words.contains("kubectl taint nodes n2 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
        );
        assert_eq!(lost(&running("True", "True")), None);
        assert_eq!(lost(&running("False", "False")), None, "its own readiness failed");
        let mut told = running("False", "False");
        told.status.as_mut().unwrap().reason = Some("NodeLost".to_owned());
        assert!(lost(&told).is_some());
    }

    #[test]
    fn a_pod_that_does_not_end_is_on_a_node_that_is_lost() {
        let mut ending = running("True", "True");
        ending.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
        assert_eq!(lost(&ending, &BTreeSet::new(), at(159)), None);
        assert!(lost(&ending, &BTreeSet::new(), at(160)).is_some());
    }

    #[test]
    fn a_node_that_can_be_read_tells_of_a_pod_that_was_still_starting() {
        let starting = running("False", "False");
        assert!(lost(&starting, &["n2".to_owned()].into(), at(0)).is_some());
        assert_eq!(lost(&starting, &["n3".to_owned()].into(), at(0)), None);
        let node = |ready: &str| -> Node {
            serde_yaml::from_str(&format!("{{status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"))
                .unwrap()
        };
        assert!(says_ready(&node("True")) && !says_ready(&node("Unknown")) && !says_ready(&node("False")));
    }

    #[test]
    fn a_pod_that_waits_for_the_node_of_its_volume_is_not_the_templates_fault() {
        let lost = |words: &str| lost(&unplaced(words), &BTreeSet::new(), at(0)).is_some();
        assert!(lost(
            "0/3 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 2 node(s) didn't match PersistentVolume's node affinity."
        ));
        assert!(lost(
            "0/3 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unschedulable: }."
        ));
        assert!(lost("0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."));
        assert!(!lost("0/3 nodes are available: 3 Insufficient cpu."));
        assert!(!lost(
            "0/3 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 2 node(s) didn't match Pod's node affinity/selector."
        ));
    }
}
