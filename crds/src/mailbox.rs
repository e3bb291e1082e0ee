//! Mailbox: an account, its credentials and its limits.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, DeletionPolicy, SecretKeyRef, Size, Span};

/// An account: an address that receives mail, and a person or program that logs in with it.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "Mailbox",
    namespaced,
    plural = "mailboxes",
    singular = "mailbox",
    shortname = "mbx",
    category = "quorumail",
    status = "MailboxStatus",
    derive = "PartialEq",
    doc = "An account: an address that receives mail, and a person or program that logs in with it.",
    validation = Rule::new("self.metadata.name.size() <= 240").message("the name of a Mailbox may have at most 240 characters: the Secret <name>-credentials is named after it"),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.usage.messages"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.usage.bytes"),
    printcolumn(
        name = "Near-Quota",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='NearQuota')].status",
        priority = 1
    ),
    printcolumn(name = "Partition", type_ = "integer", json_path = ".status.partition", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.clusterRef) == has(oldSelf.clusterRef) && (!has(self.clusterRef) || self.clusterRef == oldSelf.clusterRef)")
        .message("clusterRef cannot be changed: delete the Mailbox and make it anew at the other MailCluster"),
    validation = Rule::new("!has(self.aliases) || !(self.address in self.aliases)").message("an address cannot be its own alias: leave it out of aliases"),
)]
pub struct MailboxSpec {
    /// The MailCluster; may be left out where the namespace has exactly one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<ClusterRef>,

    /// The address in lower case, which is also the login name. Its domain must be a MailDomain of the same cluster.
    /// Cannot be changed.
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(
        validation = Rule::new(crate::address_rule("self")).message("address must be local-part@domain in lower case and ASCII, as in alice@example.org, with an international domain as xn--bcher-kva.example"),
        validation = Rule::new("self == oldSelf").message("address cannot be changed: make a new Mailbox, or add an alias"),
    )]
    pub address: String,

    /// Name of the person, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub display_name: Option<String>,

    /// Other addresses in lower case, in domains of the same cluster, whose mail comes here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 3, max = 318)))]
    #[x_kube(validation = Rule::new(format!("self.all(a, {})", crate::address_rule("a"))).message("every alias must be local-part@domain in lower case and ASCII, as in sales@example.org, with an international domain as xn--bcher-kva.example"))]
    pub aliases: Vec<String>,

    /// Secret with the password: as it is, or as an argon2, sha512-crypt or bcrypt hash. A changed Secret takes effect
    /// within seconds. Without it the operator makes Secret `<name>-credentials` with keys `address` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,

    /// Limits; without them there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,

    /// A suspended mailbox keeps receiving mail; nobody can log in to it or send from it.
    #[serde(default)]
    pub suspended: bool,

    /// What the mailbox may do.
    #[serde(default)]
    pub permissions: Permissions,

    /// What happens to the mail when this Mailbox is deleted. Retain: it is kept for gracePeriod; a Mailbox with the same
    /// address made in that time gets it back. Delete: it is purged at once.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// How long the mail of a deleted Mailbox is kept with deletionPolicy Retain.
    #[serde(default = "default_grace_period")]
    pub grace_period: Span,
}

fn default_grace_period() -> Span {
    "720h".parse().expect("the default grace period is a duration")
}

/// Limits of a mailbox. Mail that would exceed them is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Sum of the sizes of all messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("quota.storage must be greater than zero, as in 1Gi; leave it out for no limit"))]
    pub storage: Option<Size>,

    /// Number of messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub messages: Option<u32>,
}

/// What a mailbox may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permissions {
    /// It may submit mail.
    #[serde(default = "yes")]
    pub send: bool,
    /// Mail for it is accepted.
    #[serde(default = "yes")]
    pub receive: bool,
    /// It may log in to read.
    #[serde(default = "yes")]
    pub login: bool,
}

fn yes() -> bool {
    true
}

impl Default for Permissions {
    fn default() -> Self {
        Self { send: true, receive: true, login: true }
    }
}

/// What was observed of a Mailbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailboxStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the mailnodes confirmed the account as it is asked. NearQuota: more than nine tenths of the quota are used.
    /// Paused: by annotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// What the mailbox uses, as last told by the mailnodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,

    /// Partition that its mail lives in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,

    /// Secret that the operator made for the password; absent where passwordSecretRef is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<String>,
}

/// What a mailbox uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Sum of the sizes of all messages.
    pub bytes: u64,
    /// Number of messages.
    pub messages: u64,
}
