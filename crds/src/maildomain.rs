//! MailDomain: a domain that a MailCluster receives mail for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, DeletionPolicy};

/// A domain that a MailCluster receives mail for.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "MailDomain",
    namespaced,
    plural = "maildomains",
    shortname = "md",
    category = "quorumail",
    status = "MailDomainStatus",
    derive = "PartialEq",
    doc = "A domain that a MailCluster receives mail for.",
    printcolumn(name = "Domain", type_ = "string", json_path = ".spec.domain"),
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
    printcolumn(name = "Mailboxes", type_ = "integer", json_path = ".status.mailboxes"),
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
    validation = Rule::new("has(self.clusterRef) == has(oldSelf.clusterRef) && (!has(self.clusterRef) || self.clusterRef.name == oldSelf.clusterRef.name)")
        .message("clusterRef cannot be changed: delete the MailDomain and make it anew at the other MailCluster"),
    validation = Rule::new("!has(self.aliases) || !(self.domain in self.aliases)").message("a domain cannot be its own alias"),
)]
pub struct MailDomainSpec {
    /// The MailCluster; may be left out where the namespace has exactly one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<ClusterRef>,

    /// The domain, in lower case. Cannot be changed.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new(crate::host_name_rule("self")).message("domain must be a host name in lower case, as in example.org"),
        validation = Rule::new("self == oldSelf").message("domain cannot be changed: make a MailDomain for the other domain"),
    )]
    pub domain: String,

    /// Other domains whose addresses mean the same mailboxes: with alias `example.com`, mail for `alice@example.com`
    /// reaches `alice@example.org`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new(format!("self.all(a, {})", crate::host_name_rule("a"))).message("every alias must be a host name in lower case, as in example.com"))]
    pub aliases: Vec<String>,

    /// Address that takes the mail for unknown addresses of the domain. Without it they are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("catchAll must be an address in lower case, as in alice@example.org"))]
    pub catch_all: Option<String>,

    /// What happens when this MailDomain is deleted while mailboxes use the domain. Retain: it is served until its last
    /// mailbox is gone. Delete: its mailboxes are removed with it, each under its own deletionPolicy.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What was observed of a MailDomain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailDomainStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the mailnodes confirmed that they serve the domain. Paused: by annotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Number of mailboxes in the domain, as told by the mailnodes.
    #[serde(default)]
    pub mailboxes: u32,
}
