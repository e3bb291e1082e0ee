//! The StatefulSet of a MailCluster and its pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
            HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, SleepAction,
            TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{ResourceExt as _, api::ObjectMeta};
use quorumail_crds::{DeletionPolicy, MailCluster};

use super::objects::{
    CONFIG_DIR, INTERNAL_TLS_DIR, Names, PUBLIC_TLS_DIR, RELAY_DIR, Surroundings, config_file, metadata,
    public_secret, selector,
};
use crate::mailnode_config::{DATA_DIR, MailnodeConfig, port};

/// Annotation of pods with a hash of the configuration: a changed configuration replaces them. It also names the file that they
/// read, so that a pod goes back to the configuration of its template.
pub const CONFIG_HASH: &str = "quorumail.io/config-hash";
/// User and group of the mailnode; also the group of its volumes.
const USER: i64 = 10_001;
/// A mailnode hands over its leaderships and ends its sessions within 25 s; the rest is for a slow disk.
const TERMINATION_SECONDS: i64 = 60;
/// For how long a pod that is to end serves on: connections are sent to it until every Kubernetes node has heard that it ends.
/// Servers that do not know this way of waiting (before Kubernetes 1.30) leave it out.
const LINGER_SECONDS: i64 = 3;
/// Secrets are readable for the group only.
const SECRET_MODE: i32 = 0o440;

/// What of the configuration a mailnode reads only when it starts: all but the list of nodes.
pub fn hash(config: &MailnodeConfig) -> String {
    let fixed = MailnodeConfig { peers: Vec::new(), founders: Vec::new(), generation: 0, ..config.clone() };
    blake3::hash(fixed.to_yaml().as_bytes()).to_hex().to_string()
}

/// Builds it.
pub fn stateful_set(
    cluster: &MailCluster,
    config: &MailnodeConfig,
    surroundings: &Surroundings,
) -> StatefulSet {
    let names = Names::new(&cluster.name_any());
    let when_deleted = match cluster.spec.storage.deletion_policy {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    let labels = metadata(cluster, &names.main).labels;
    StatefulSet {
        metadata: metadata(cluster, &names.main),
        spec: Some(StatefulSetSpec {
            replicas: i32::try_from(surroundings.shape.running).ok(),
            service_name: Some(names.nodes),
            // All at once: a node becomes ready only when a majority of them is there.
            pod_management_policy: Some("Parallel".to_owned()),
            // The operator takes pods away itself, by what the mailnodes say of their replicas.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(when_deleted.to_owned()),
                when_scaled: Some(when_deleted.to_owned()),
            }),
            selector: LabelSelector { match_labels: Some(selector(cluster)), ..LabelSelector::default() },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: labels.clone(),
                    annotations: Some([(CONFIG_HASH.to_owned(), hash(config))].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(cluster, &config_file(&hash(config)), surroundings)),
            },
            volume_claim_templates: Some(vec![claim(cluster, labels)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn claim(cluster: &MailCluster, labels: Option<BTreeMap<String, String>>) -> PersistentVolumeClaim {
    let storage = &cluster.spec.storage;
    let size = Quantity(storage.size.to_string());
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some("data".to_owned()), labels, ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn pod(cluster: &MailCluster, config: &str, surroundings: &Surroundings) -> PodSpec {
    let scheduling = &cluster.spec.scheduling;
    PodSpec {
        service_account_name: Some(cluster.name_any()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(TERMINATION_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        node_selector: (!scheduling.node_selector.is_empty()).then(|| scheduling.node_selector.clone()),
        tolerations: (!scheduling.tolerations.is_empty()).then(|| scheduling.tolerations.clone()),
        topology_spread_constraints: Some(spread(cluster)),
        containers: vec![container(cluster, config, surroundings)],
        volumes: Some(volumes(cluster)),
        ..PodSpec::default()
    }
}

/// Over what pods are spread, and whether one that cannot be placed so waits.
fn spread(cluster: &MailCluster) -> Vec<TopologySpreadConstraint> {
    let over = |key: &str, otherwise: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: otherwise.to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(selector(cluster)),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    };
    match &cluster.spec.scheduling.spread {
        Some(key) => vec![over(key, "DoNotSchedule")],
        None => vec![
            over("kubernetes.io/hostname", "ScheduleAnyway"),
            over("topology.kubernetes.io/zone", "ScheduleAnyway"),
        ],
    }
}

fn container(cluster: &MailCluster, config: &str, surroundings: &Surroundings) -> Container {
    let listens = [
        ("smtp", port::SMTP),
        ("submission", port::SUBMISSION),
        ("submissions", port::SUBMISSIONS),
        ("imap", port::IMAP),
        ("imaps", port::IMAPS),
        ("http", port::HTTP),
        ("https", port::HTTPS),
        ("admin", port::ADMIN),
        ("peer", port::PEER),
    ];
    let container_port = |(name, port): &(&str, u16)| ContainerPort {
        name: Some((*name).to_owned()),
        container_port: i32::from(*port),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: "mailnode".to_owned(),
        image: Some(cluster.spec.image.clone().unwrap_or_else(|| surroundings.image.clone())),
        image_pull_policy: Some(surroundings.pull_policy.clone()),
        command: Some(vec!["mailnode".to_owned()]),
        args: Some(vec!["--config".to_owned(), format!("{CONFIG_DIR}/{config}")]),
        env: Some(vec![EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.name".to_owned(),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(listens.iter().map(container_port).collect()),
        resources: Some(resources(cluster)),
        // A node that replays its journal is alive from the first second; it has two minutes to say so.
        startup_probe: Some(probe("/livez", 2, 60)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts(cluster)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: LINGER_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // The last line of the log is then part of the pod's status, and of the condition when an update fails.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

fn resources(cluster: &MailCluster) -> ResourceRequirements {
    let mut resources = cluster.spec.resources.clone().unwrap_or_default();
    let requests = resources.requests.get_or_insert_default();
    for (name, least) in [("cpu", "100m"), ("memory", "256Mi")] {
        // With a limit and no request Kubernetes takes the limit as the request.
        let limited = resources.limits.as_ref().is_some_and(|limits| limits.contains_key(name));
        if !limited && !requests.contains_key(name) {
            requests.insert(name.to_owned(), Quantity(least.to_owned()));
        }
    }
    resources
}

fn relay_secret(cluster: &MailCluster) -> Option<&str> {
    cluster.spec.smtp.relay.as_ref().and_then(|r| r.secret_ref.as_ref()).map(|s| s.name.as_str())
}

fn volumes(cluster: &MailCluster) -> Vec<Volume> {
    let names = Names::new(&cluster.name_any());
    let secret = |name: &str, secret: &str| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(SECRET_MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mut volumes = vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names.config.clone(),
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret("internal-tls", &names.internal_tls),
        secret("public-tls", &public_secret(cluster)),
    ];
    volumes.extend(relay_secret(cluster).map(|name| secret("relay", name)));
    volumes
}

fn mounts(cluster: &MailCluster) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let mut mounts = vec![
        mount("data", DATA_DIR, false),
        mount("config", CONFIG_DIR, true),
        mount("internal-tls", INTERNAL_TLS_DIR, true),
        mount("public-tls", PUBLIC_TLS_DIR, true),
    ];
    mounts.extend(relay_secret(cluster).map(|_| mount("relay", RELAY_DIR, true)));
    mounts
}
