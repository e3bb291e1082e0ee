//! MailCluster: the mailnodes, their storage, and how the world reaches them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DeletionPolicy, SecretRef, Size, Span};

/// API group of cert-manager.
pub const CERT_MANAGER: &str = "cert-manager.io";

/// A cluster of mailnodes that replicate the mail of its domains among themselves.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "MailCluster",
    namespaced,
    plural = "mailclusters",
    shortname = "mc",
    category = "quorumail",
    status = "MailClusterStatus",
    derive = "PartialEq",
    doc = "A cluster of mailnodes that replicate the mail of its domains among themselves.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')")
        .message("the name of a MailCluster becomes the name of Services: at most 40 lower-case letters, digits and hyphens, starting with a letter"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".spec.nodes"),
    printcolumn(name = "Nodes-Ready", type_ = "integer", json_path = ".status.readyNodes"),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedNodes"),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".status.partitions.total"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.partitions.available"),
    printcolumn(name = "Under-Replicated", type_ = "integer", json_path = ".status.partitions.underReplicated"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct MailClusterSpec {
    /// Number of mailnodes: 1, 3, 5, 7 or 9. Every message is on a majority of the three replicas of its partition before
    /// it is acknowledged. It can be changed at any time: replicas move while mail flows, and nodes that are not wanted any
    /// more go when nothing is left on them. Their volumes are kept or deleted by storage.deletionPolicy.
    #[serde(default = "default_nodes")]
    #[x_kube(
        validation = Rule::new("self in [1, 3, 5, 7, 9]").message("nodes must be 1, 3, 5, 7 or 9: an even number survives no more losses than the odd number below it"),
    )]
    pub nodes: u32,

    /// Number of partitions that mailboxes and queues are spread over, 1 to 256. Cannot be changed yet.
    #[serde(default = "default_partitions")]
    #[x_kube(
        validation = Rule::new("self >= 1 && self <= 256").message("partitions must be between 1 and 256"),
        validation = Rule::new("self == oldSelf").message("partitions cannot be changed yet: make a new MailCluster with the other number"),
    )]
    pub partitions: u32,

    /// Container image of the mailnodes. Without it the operator's own version is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// How mailnodes are replaced when their image, resources or configuration change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,

    /// Volumes of the mailnodes.
    #[serde(default)]
    pub storage: Storage,

    /// CPU and memory of each mailnode. Without requests, 100m CPU and 256Mi memory are requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::resources")]
    pub resources: Option<ResourceRequirements>,

    /// Where mailnodes run.
    #[serde(default)]
    pub scheduling: Scheduling,

    /// The name that the mailnodes greet with and that clients connect to, as in `mail.example.org`. Without it:
    /// `<name>.<namespace>.svc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(crate::host_name_rule("self")).message("hostname must be a host name in lower case, as in mail.example.org"))]
    pub hostname: Option<String>,

    /// The certificate for SMTP and IMAP clients. Without it: `selfSigned`.
    // No default in the schema: it would be stored, and stand beside another field that is applied later.
    #[serde(default, skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,

    /// The Service that clients and other mail servers connect to.
    #[serde(default)]
    pub service: ServiceSpec,

    /// How mail is accepted and sent on.
    #[serde(default)]
    pub smtp: Smtp,

    /// Who reaches the mailnodes through the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicySpec>,

    /// Namespaces whose MailDomains, Mailboxes and MailingLists may use this MailCluster, besides its own; `"*"` alone means every
    /// namespace. What a namespace has stays as it is when it is taken off, and no wish of it is carried out any more but
    /// deletion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1024),
        inner(length(min = 1, max = 63)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(
        validation = Rule::new("self.all(n, n == '*' || n.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'))").message("allowedNamespaces must be names of namespaces, or \"*\" for every namespace"),
        validation = Rule::new("!('*' in self) || self.size() == 1").message("allowedNamespaces: \"*\" means every namespace; list nothing beside it"),
    )]
    pub allowed_namespaces: Vec<String>,

    /// For how long deleted mail can be brought back with `quorumail mailbox undelete`. Without it: 14 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_mail: Option<DeletedMail>,

    /// What else the operator looks at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<Monitoring>,
}

fn default_nodes() -> u32 {
    3
}

fn default_partitions() -> u32 {
    16
}

/// How mailnodes are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// A new pod that is not ready after so long is given up: the pods go back to what they were before. At least 10s; without
    /// it: 10m. Pulling the image and reading the journal must fit in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Span>,
}

/// Volumes of the mailnodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName)")
        .message("storageClassName cannot be changed, since Kubernetes does not move volumes between classes: make a new MailCluster, and bring the mail there by a backup"),
)]
pub struct Storage {
    /// Size of each node's volume. It can grow, in place where the StorageClass allows it, and never shrinks.
    #[serde(default = "default_storage_size")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("storage.size must be greater than zero, as in 10Gi"))]
    #[x_kube(validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0").message("storage.size cannot shrink, since Kubernetes makes no volume smaller: make a new MailCluster with the other size, and bring the mail there by a backup"))]
    pub size: Size,

    /// StorageClass of the volumes; without it the cluster's default. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("storageClassName cannot be changed, since Kubernetes does not move volumes between classes: make a new MailCluster, and bring the mail there by a backup"))]
    pub storage_class_name: Option<String>,

    /// Whether the volumes outlive the MailCluster (Retain) or go with it, and all mail with them (Delete).
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn default_storage_size() -> Size {
    "10Gi".parse().expect("the default size is a size")
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: default_storage_size(),
            storage_class_name: None,
            deletion_policy: DeletionPolicy::Retain,
        }
    }
}

/// Where mailnodes run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a Kubernetes node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of Kubernetes nodes that mailnodes tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::tolerations")]
    pub tolerations: Vec<Toleration>,

    /// Label of Kubernetes nodes, as `kubernetes.io/hostname`, over whose values mailnodes must be spread evenly: a pod
    /// that cannot be placed so waits. Without it they are spread over hosts and zones as well as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub spread: Option<String>,
}

/// The certificate for SMTP and IMAP clients: exactly one of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.secretName), has(self.selfSigned), has(self.issuerRef)].filter(given, given).size() == 1")
        .message("tls needs exactly one of secretName, selfSigned and issuerRef; write null for the one that was there before"),
)]
pub struct Tls {
    /// A Secret of type kubernetes.io/tls in the same namespace. A renewed certificate is taken up without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,

    /// The operator makes and renews a self-signed certificate for the hostname in Secret `<name>-tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_signed: Option<SelfSigned>,

    /// This issuer of cert-manager makes and renews the certificate: the operator asks for it with a Certificate `<name>-tls`, and
    /// it is in the Secret of that name. It is for `hostname`; without one, for the names of the Service. A renewed certificate is
    /// taken up without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { secret_name: None, self_signed: Some(SelfSigned {}), issuer_ref: None }
    }
}

impl Tls {
    /// Whether it is what is meant where nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An issuer of cert-manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.group != 'cert-manager.io' || self.kind in ['Issuer', 'ClusterIssuer']")
        .message("issuerRef.kind must be Issuer or ClusterIssuer; an external issuer needs its group as well"),
)]
pub struct IssuerRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Issuer, in the same namespace, or ClusterIssuer. External issuers have kinds of their own.
    #[serde(default = "default_issuer_kind")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,

    /// API group of its kind; another one for an external issuer.
    #[serde(default = "default_issuer_group")]
    #[schemars(length(min = 1, max = 253))]
    pub group: String,
}

fn default_issuer_kind() -> String {
    "Issuer".to_owned()
}

fn default_issuer_group() -> String {
    CERT_MANAGER.to_owned()
}

/// A certificate that the operator signs itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SelfSigned {}

/// The Service that clients and other mail servers connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'")
        .message("service.externalTrafficPolicy needs service.type NodePort or LoadBalancer"),
)]
pub struct ServiceSpec {
    /// ClusterIP, NodePort or LoadBalancer.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,

    /// Annotations of the Service, for load balancers and DNS controllers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,

    /// Local keeps the address of the client, which block lists and SPF need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
}

/// Type of a Service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Reached from within the Kubernetes cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Reached through a port of every Kubernetes node.
    NodePort,
    /// Reached through a load balancer of the surroundings.
    LoadBalancer,
}

/// Where traffic from outside may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficPolicy {
    /// To any mailnode.
    Cluster,
    /// To a mailnode on the Kubernetes node where it arrived.
    Local,
}

/// Who reaches the mailnodes through the network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// The operator makes a NetworkPolicy: everybody reaches the ports for mail and HTTPS, the cluster's own pods those of their
    /// peers, the operator that of administration. Needs a network that enforces NetworkPolicies.
    #[serde(default)]
    pub enabled: bool,

    /// Namespaces, by their labels, whose pods reach the metrics as well, as `kubernetes.io/metadata.name: monitoring`; `{}` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub metrics_from: Option<LabelSelector>,

    /// Namespaces, by their labels, whose pods reach the port of administration as well; whoever does still needs a certificate. Not
    /// needed for `quorumail` through the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub admin_from: Option<LabelSelector>,
}

/// For how long deleted mail can be brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletedMail {
    /// A message that a client expunged, or that went with its folder, is kept for so long, as in 14d; of one mailbox at most
    /// 100,000 messages and 16Gi, which count towards no quota. 0s: deleted mail is gone within seconds. A change restarts
    /// the mailnodes one by one.
    pub keep: Span,
}

/// What else the operator looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// DNS block lists (RFC 5782) that are asked once an hour whether the addresses that mail leaves from stand on them. What they
    /// say is the condition BlockListed, a metric and an alert. Without it nobody is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_lists: Option<BlockLists>,
}

/// DNS block lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockLists {
    /// Their zones, as in `zen.spamhaus.org`. Read their terms; many do not answer the name servers of large providers.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 190)))]
    #[x_kube(validation = Rule::new(format!("self.all(l, {})", crate::host_name_rule("l"))).message("every list must be a host name in lower case, as in zen.spamhaus.org"))]
    pub lists: Vec<String>,

    /// Addresses that mail leaves from. Without them those of `hostname` are meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 2, max = 45)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))").message("every address must be an IP address, as in 192.0.2.25 or 2001:db8::25"))]
    pub addresses: Vec<String>,
}

/// How mail is accepted and sent on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Smtp {
    /// Larger messages are refused. At most 64Mi: a message is held in memory while it is taken in.
    #[serde(default = "default_message_size")]
    #[x_kube(validation = Rule::new("!isQuantity(self) || (quantity(self).compareTo(quantity('64Ki')) >= 0 && quantity(self).compareTo(quantity('64Mi')) <= 0)").message("smtp.maxMessageSize must be between 64Ki and 64Mi"))]
    pub max_message_size: Size,

    /// Sends all mail for other systems through this server. Without it mail goes to the recipients' MX hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,

    /// How long and how often delivery is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,

    /// Whether mail from other systems is checked with SPF, DKIM and DMARC, which is told in Authentication-Results, and what is
    /// done when it fails DMARC although the domain of its author asks for refusal (`p=reject`). Needs name servers that
    /// answer; while they do not, mail is taken. A change restarts the mailnodes one by one.
    #[serde(default)]
    pub dmarc: DmarcHandling,
}

/// Whether mail is checked, and what is done when it fails DMARC although the domain of its author asks for refusal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DmarcHandling {
    /// It is not checked.
    None,
    /// It is taken.
    #[default]
    Monitor,
    /// It is refused (550 5.7.26).
    Enforce,
}

fn default_message_size() -> Size {
    "25Mi".parse().expect("the default message size is a size")
}

impl Default for Smtp {
    fn default() -> Self {
        Self {
            max_message_size: default_message_size(),
            relay: None,
            retry: None,
            dmarc: DmarcHandling::default(),
        }
    }
}

/// A server that takes all mail for other systems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.secretRef) || self.tls != 'None'")
        .message("smtp.relay.secretRef needs tls Opportunistic or Required: a password is never sent in the clear"),
)]
pub struct Relay {
    /// Host name or IP address.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,

    /// Port.
    #[serde(default = "default_relay_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,

    /// Whether STARTTLS is used. With secretRef, the password is sent only once TLS is on.
    #[serde(default)]
    pub tls: RelayTls,

    /// Secret with keys `username` and `password` to log in to the relay with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

fn default_relay_port() -> u16 {
    25
}

/// Whether STARTTLS is used towards a relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RelayTls {
    /// When it is offered.
    #[default]
    Opportunistic,
    /// Always; without it nothing is sent.
    Required,
    /// Never.
    None,
}

/// How long and how often delivery is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Time until the second attempt; later waits double.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Span>,

    /// Longest wait between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,

    /// A message that could not be delivered for this long is returned to its sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after: Option<Span>,
}

/// What was observed of a MailCluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailClusterStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: a majority of mailnodes answers and every partition has a leader. Progressing: pods are being made or
    /// replaced; UpdatePaused says what an update waits for. Degraded: less redundancy than asked, or an update that failed
    /// (UpdateFailed). CertificateReady, with tls.issuerRef: what cert-manager says of the certificate. Paused: by annotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Number of mailnodes that say they are ready.
    #[serde(default)]
    pub ready_nodes: u32,

    /// Number of pods that are as the spec asks; after an update was taken back, of those before it.
    #[serde(default)]
    pub updated_nodes: u32,

    /// Each mailnode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeStatus>,

    /// The partitions, as told by the mailnodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<PartitionsStatus>,

    /// Version of the mailnodes; the lowest where they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Where clients connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
}

/// One mailnode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of its pod.
    pub name: String,
    /// Whether the mailnode says that it is ready.
    pub ready: bool,
    /// Kubernetes node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Zone of that Kubernetes node; replicas are spread over zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether its replicas are moving to other nodes, for it to be taken out.
    #[serde(default)]
    pub leaving: bool,
    /// Partitions of which it holds a replica.
    #[serde(default)]
    pub replicas: u32,
    /// Partitions of which it is to hold one.
    #[serde(default)]
    pub target_replicas: u32,
}

/// Counts of partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartitionsStatus {
    /// All of them.
    pub total: u32,
    /// With a leader: mail can be read and written.
    pub available: u32,
    /// With fewer replicas in step than they should have.
    pub under_replicated: u32,
    /// Without a leader: mail in them can be neither read nor written for now.
    pub leaderless: u32,
    /// Groups whose members are being changed, or are to be, because the number of nodes was.
    #[serde(default)]
    pub moving: u32,
}

/// Where clients connect: `host:port` each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// SMTP for other mail servers.
    pub smtp: String,
    /// Submission with TLS from the start.
    pub submissions: String,
    /// IMAP with TLS from the start.
    pub imaps: String,
    /// Addresses that a load balancer gave to the Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<String>,
}
