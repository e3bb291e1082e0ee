//! The Kubernetes objects of a MailCluster. Pure: from the resource to what is applied.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Secret, Service, ServiceAccount, ServicePort, ServiceSpec},
        networking::v1::NetworkPolicy,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use quorumail_crds::{
    MailCluster,
    condition::{Observed, kind, reason},
    mailcluster::{ServiceType, TrafficPolicy},
};
use quorumail_proto::admin::{Topology, TopologyNode};

use super::{
    certificates::{self, Certificates},
    network, pod,
};
use crate::{
    mailnode_config::{
        AuthenticationConfig, InternalTls, Listen, MailnodeConfig, Peer, PublicTls, RelayConfig, SmtpConfig,
        TlsFiles, port,
    },
    settings::FIELD_MANAGER,
    shape::Shape,
};

/// Label with the name of the MailCluster, on everything that belongs to one.
pub const CLUSTER_LABEL: &str = "quorumail.io/cluster";
/// Replicas of each partition; the mailnodes make fewer where there are fewer nodes.
const REPLICAS: u32 = 3;

/// Key of the configuration that is asked for, in its ConfigMap.
pub const CONFIG_FILE: &str = "mailnode.yaml";
/// Where the configuration is mounted.
pub const CONFIG_DIR: &str = "/etc/quorumail/config";
/// Where the internal certificates are mounted.
pub const INTERNAL_TLS_DIR: &str = "/etc/quorumail/internal-tls";
/// Where the certificate for mail clients is mounted.
pub const PUBLIC_TLS_DIR: &str = "/etc/quorumail/public-tls";
/// Where the relay's credentials are mounted.
pub const RELAY_DIR: &str = "/etc/quorumail/relay";

/// The names of a cluster's objects.
#[derive(Debug, Clone)]
pub struct Names {
    /// StatefulSet, Service, PodDisruptionBudget and ServiceAccount.
    pub main: String,
    /// Headless Service.
    pub nodes: String,
    /// ConfigMap.
    pub config: String,
    /// Secret with the authority.
    pub authority: String,
    /// Secret with the nodes' certificate.
    pub internal_tls: String,
    /// Secret with the operator's certificate.
    pub operator_tls: String,
    /// Secret with the certificate that is self-signed or issued, and the Certificate by which it is asked for.
    pub public_tls: String,
}

impl Names {
    /// From the name of the MailCluster.
    pub fn new(cluster: &str) -> Self {
        let with = |suffix: &str| format!("{cluster}-{suffix}");
        Self {
            main: cluster.to_owned(),
            nodes: with("nodes"),
            config: with("config"),
            authority: with("ca"),
            internal_tls: with("internal-tls"),
            operator_tls: with("operator-tls"),
            public_tls: with("tls"),
        }
    }
}

/// What comes from the operator's surroundings rather than from the resource.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Image where the resource names none.
    pub image: String,
    /// When it is pulled.
    pub pull_policy: String,
    /// Namespace of the operator.
    pub operator_namespace: String,
    /// User name for the relay, from its Secret.
    pub relay_username: Option<String>,
    /// Its nodes, as far as they have come.
    pub shape: Shape,
    /// The zone of each, empty where it is not known.
    pub zones: Vec<String>,
    /// Configurations that pods were made with, by key of the ConfigMap.
    pub configs: BTreeMap<String, String>,
}

/// Everything that is applied for a MailCluster.
#[derive(Debug, Clone)]
pub struct Objects {
    /// `<mc>-ca`, `<mc>-internal-tls`, `<mc>-operator-tls`, and `<mc>-tls` when self-signed.
    pub secrets: Vec<Secret>,
    /// `<mc>-config`.
    pub config: ConfigMap,
    /// `<mc>`, without a token.
    pub account: ServiceAccount,
    /// `<mc>-nodes` and `<mc>`.
    pub services: Vec<Service>,
    /// `<mc>`, where there is more than one node.
    pub budget: Option<PodDisruptionBudget>,
    /// `<mc>`, where it is asked for.
    pub network: Option<NetworkPolicy>,
    /// `<mc>`.
    pub nodes: StatefulSet,
}

/// Key of the configuration with this hash: what pods read. Pods of two templates read two of them during an update.
pub fn config_file(hash: &str) -> String {
    format!("mailnode-{}.yaml", hash.get(..12).unwrap_or(hash))
}

/// Builds them.
pub fn build(cluster: &MailCluster, certificates: &Certificates, surroundings: &Surroundings) -> Objects {
    let relay_username = surroundings.relay_username.as_deref();
    let config = config(cluster, &surroundings.shape, &surroundings.zones, relay_username);
    let nodes = pod::stateful_set(cluster, &config, surroundings);
    Objects {
        secrets: secrets(cluster, certificates),
        config: config_map(cluster, &config, &surroundings.configs),
        account: service_account(cluster),
        services: vec![nodes_service(cluster), service(cluster)],
        budget: budget(cluster),
        network: network::policy(cluster, &surroundings.operator_namespace),
        nodes,
    }
}

/// What selects the pods of a cluster.
pub fn selector(cluster: &MailCluster) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "mailnode".to_owned()),
        (CLUSTER_LABEL.to_owned(), cluster.name_any()),
    ])
}

/// The metadata of an object of the cluster.
pub fn metadata(cluster: &MailCluster, name: &str) -> ObjectMeta {
    let mut labels = selector(cluster);
    labels.insert("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned());
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: cluster.namespace(),
        labels: Some(labels),
        owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// The name that the mailnodes greet with.
pub fn hostname(cluster: &MailCluster) -> String {
    cluster.spec.hostname.clone().unwrap_or_else(|| service_host(cluster))
}

/// The name of the Service that clients connect to.
pub fn service_host(cluster: &MailCluster) -> String {
    format!("{}.{}.svc", cluster.name_any(), cluster.namespace().unwrap_or_default())
}

/// The name of the Secret with the certificate for mail clients.
pub fn public_secret(cluster: &MailCluster) -> String {
    cluster.spec.tls.secret_name.clone().unwrap_or_else(|| Names::new(&cluster.name_any()).public_tls)
}

/// The names of a self-signed certificate; none where it is not self-signed.
pub fn public_names(cluster: &MailCluster) -> Vec<String> {
    let tls = &cluster.spec.tls;
    if tls.secret_name.is_some() || tls.issuer_ref.is_some() {
        return Vec::new();
    }
    let mut names = vec![hostname(cluster)];
    names.extend(
        service_names(cluster).into_iter().filter(|name| cluster.spec.hostname.as_ref() != Some(name)),
    );
    names.dedup();
    names
}

/// The names by which pods of this Kubernetes reach the Service.
pub fn service_names(cluster: &MailCluster) -> [String; 2] {
    let service = service_host(cluster);
    [service.clone(), format!("{service}.cluster.local")]
}

/// `host:port` of a port of each of so many nodes, in the order of the nodes.
pub fn addresses(cluster: &MailCluster, nodes: u64, port: u16) -> Vec<String> {
    let names = Names::new(&cluster.name_any());
    let namespace = cluster.namespace().unwrap_or_default();
    (0..nodes).map(|n| format!("{}-{n}.{}.{namespace}.svc:{port}", names.main, names.nodes)).collect()
}

/// The nodes that a configuration lists.
pub fn shape_of(config: &MailnodeConfig) -> Shape {
    let count = |peers: usize| u64::try_from(peers).unwrap_or(u64::MAX);
    let running = count(config.peers.len());
    Shape {
        generation: config.generation,
        founders: if config.founders.is_empty() { running } else { count(config.founders.len()) },
        staying: count(config.peers.iter().filter(|peer| !peer.leaving).count()),
        running,
    }
}

/// The zones that a configuration lists.
pub fn zones_of(config: &MailnodeConfig) -> Vec<String> {
    config.peers.iter().map(|peer| peer.zone.clone()).collect()
}

/// The nodes as the mailnodes are to be told of them.
pub fn topology(cluster: &MailCluster, shape: &Shape, zones: &[String]) -> Topology {
    let of = |port| addresses(cluster, shape.running, port).into_iter();
    shape.topology(of(port::PEER).zip(of(port::ADMIN)), zones)
}

/// The configuration of the mailnodes.
pub fn config(
    cluster: &MailCluster,
    shape: &Shape,
    zones: &[String],
    relay_username: Option<&str>,
) -> MailnodeConfig {
    let spec = &cluster.spec;
    let topology = topology(cluster, shape, zones);
    let peer = |node: TopologyNode| Peer {
        node: node.node,
        address: node.address,
        admin: node.admin,
        zone: node.zone,
        leaving: node.leaving,
    };
    let file = |directory: &str, name: &str| format!("{directory}/{name}");
    let relay = spec.smtp.relay.as_ref().map(|relay| RelayConfig {
        host: relay.host.clone(),
        port: relay.port,
        tls: relay.tls,
        username: relay_username.map(ToOwned::to_owned),
        password_file: relay_username.map(|_| file(RELAY_DIR, "password")),
    });
    MailnodeConfig {
        // Not the uid: volumes outlive the resource, and a MailCluster of the same name takes them over.
        cluster: format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any()),
        node: None,
        hostname: hostname(cluster),
        data_dir: crate::mailnode_config::DATA_DIR.to_owned(),
        listen: Listen { host: "0.0.0.0".to_owned(), port_offset: 0 },
        peers: topology.nodes.into_iter().map(peer).collect(),
        generation: topology.generation,
        founders: topology.founders,
        partitions: spec.partitions,
        replicas: REPLICAS,
        tls: TlsFiles {
            internal: InternalTls {
                ca: file(INTERNAL_TLS_DIR, certificates::CA_KEY),
                cert: file(INTERNAL_TLS_DIR, certificates::CERT_KEY),
                key: file(INTERNAL_TLS_DIR, certificates::KEY_KEY),
            },
            public: PublicTls {
                cert: file(PUBLIC_TLS_DIR, certificates::CERT_KEY),
                key: file(PUBLIC_TLS_DIR, certificates::KEY_KEY),
            },
        },
        allow_plaintext_auth_from_loopback: false,
        smtp: SmtpConfig {
            max_message_size: spec.smtp.max_message_size.bytes(),
            relay,
            retry: spec.smtp.retry.as_ref().map(Into::into),
            mx_port: None,
            dns_servers: None,
            authentication: AuthenticationConfig::of(spec.smtp.dmarc),
        },
        deleted_mail: spec.deleted_mail.as_ref().map(Into::into),
    }
}

/// Waits that contradict each other, which the mailnodes would refuse: CEL knows no days, so it is checked here.
pub fn invalid_retry(cluster: &MailCluster) -> Option<Observed> {
    let retry = cluster.spec.smtp.retry.as_ref()?;
    let given: Vec<_> = [&retry.initial, &retry.max, &retry.give_up_after].into_iter().flatten().collect();
    let ascending = given.is_sorted_by_key(|span| span.duration());
    let zero = given.first().is_some_and(|span| span.duration().is_zero());
    (zero || !ascending).then(|| {
        let text =
            "spec.smtp.retry must be 0 < initial <= max <= giveUpAfter; nothing is changed until it is";
        Observed::no(kind::READY, reason::INVALID_SPEC, text)
    })
}

/// A configuration with the list of nodes of another one. All else stays as it is: it may be of another version, which knows other
/// fields. None when it cannot be read.
fn with_nodes(text: &str, nodes: &serde_yaml::Value) -> Option<String> {
    let mut config: serde_yaml::Mapping = serde_yaml::from_str(text).ok()?;
    for field in ["peers", "founders", "generation"] {
        config.insert(field.into(), nodes.get(field)?.clone());
    }
    serde_yaml::to_string(&config).ok()
}

/// The configuration that is asked for, and those that pods still read, with the list of nodes of today.
fn config_map(cluster: &MailCluster, config: &MailnodeConfig, kept: &BTreeMap<String, String>) -> ConfigMap {
    let nodes = serde_yaml::to_value(config).expect("a configuration holds only what YAML can say");
    let today = |text: &String| with_nodes(text, &nodes).unwrap_or_else(|| text.clone());
    let mut data: BTreeMap<String, String> =
        kept.iter().map(|(file, text)| (file.clone(), today(text))).collect();
    data.insert(CONFIG_FILE.to_owned(), config.to_yaml());
    data.insert(config_file(&pod::hash(config)), config.to_yaml());
    ConfigMap {
        metadata: metadata(cluster, &Names::new(&cluster.name_any()).config),
        data: Some(data),
        ..ConfigMap::default()
    }
}

fn secrets(cluster: &MailCluster, certificates: &Certificates) -> Vec<Secret> {
    let names = Names::new(&cluster.name_any());
    let secret = |name: &str, type_: &str, data: BTreeMap<String, ByteString>| Secret {
        metadata: metadata(cluster, name),
        type_: Some(type_.to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    const TLS: &str = "kubernetes.io/tls";
    let (authority, data) = (&certificates.authority, certificates::data);
    let mut secrets = vec![
        secret(&names.authority, TLS, data(authority, None)),
        secret(&names.internal_tls, TLS, data(&certificates.node, Some(authority))),
        secret(&names.operator_tls, TLS, data(&certificates.operator, Some(authority))),
    ];
    secrets.extend(
        certificates.public.as_ref().map(|public| secret(&names.public_tls, TLS, data(public, None))),
    );
    secrets
}

fn service_account(cluster: &MailCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, &cluster.name_any()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

fn service_port(name: &str, port: u16, target: IntOrString) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        target_port: Some(target),
        ..ServicePort::default()
    }
}

/// Gives every node a name that its peers find it by, before it is ready: it becomes ready only with them.
fn nodes_service(cluster: &MailCluster) -> Service {
    let target = |name: &str| IntOrString::String(name.to_owned());
    Service {
        metadata: metadata(cluster, &Names::new(&cluster.name_any()).nodes),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(cluster)),
            ports: Some(vec![
                service_port("admin", port::ADMIN, target("admin")),
                service_port("peer", port::PEER, target("peer")),
                service_port("http", port::HTTP, target("http")),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The ports that mail clients and servers know, and the names of the container's ports behind them.
const WELL_KNOWN: [(&str, u16); 6] =
    [("smtp", 25), ("submission", 587), ("submissions", 465), ("imap", 143), ("imaps", 993), ("https", 443)];

fn service(cluster: &MailCluster) -> Service {
    let spec = &cluster.spec.service;
    let kind = match spec.type_ {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let policy = spec.external_traffic_policy.map(|policy| match policy {
        TrafficPolicy::Cluster => "Cluster".to_owned(),
        TrafficPolicy::Local => "Local".to_owned(),
    });
    let ports = WELL_KNOWN
        .iter()
        .map(|(name, port)| service_port(name, *port, IntOrString::String((*name).to_owned())));
    Service {
        metadata: ObjectMeta {
            annotations: (!spec.annotations.is_empty()).then(|| spec.annotations.clone()),
            ..metadata(cluster, &cluster.name_any())
        },
        spec: Some(ServiceSpec {
            type_: Some(kind.to_owned()),
            external_traffic_policy: policy,
            selector: Some(selector(cluster)),
            ports: Some(ports.collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// One node at a time: every partition has at most three replicas, of which two must stay.
fn budget(cluster: &MailCluster) -> Option<PodDisruptionBudget> {
    (cluster.spec.nodes > 1).then(|| PodDisruptionBudget {
        metadata: metadata(cluster, &cluster.name_any()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(cluster)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
