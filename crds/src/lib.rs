//! The custom resources of Quorumail: group `quorumail.io`, version `v1alpha1`, namespaced.
//!
//! Types and their rules, nothing else: no client, no clock. `crdgen` writes the CustomResourceDefinitions
//! (`crds/yaml/`) and the reference pages (`docs/reference/`) from what is said here, so the doc comments on fields are
//! for users. A field exists only when something serves it.
//!
//! Conventions are those of the Kubernetes API conventions: `spec` is asked, `status` is observed,
//! `status.conditions` carry `observedGeneration`, and a `lastTransitionTime` that moves only with the status.

// KubeSchema puts a copy of every type, with its visibility, inside a function.
#![allow(unreachable_pub)]
// Printer columns are lists of the same few keys.
#![allow(clippy::duplicated_attributes)]

pub mod backup;
pub mod backuppolicy;
pub mod condition;
pub mod mailbackup;
pub mod mailbox;
pub mod mailcluster;
pub mod maildomain;
pub mod mailinglist;
pub mod mailrestore;
pub mod reference;
mod schema;
pub mod unit;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use backuppolicy::{BackupPolicy, BackupPolicySpec, BackupPolicyStatus};
pub use mailbackup::{MailBackup, MailBackupSpec, MailBackupStatus};
pub use mailbox::{Mailbox, MailboxSpec, MailboxStatus};
pub use mailcluster::{MailCluster, MailClusterSpec, MailClusterStatus};
pub use maildomain::{MailDomain, MailDomainSpec, MailDomainStatus};
pub use mailinglist::{MailingList, MailingListSpec, MailingListStatus};
pub use mailrestore::{MailRestore, MailRestoreSpec, MailRestoreStatus};
pub use unit::{Size, Span};

/// The API group.
pub const GROUP: &str = "quorumail.io";
/// The API version.
pub const VERSION: &str = "v1alpha1";
/// Annotation that stops the reconciliation of an object while its value is `true`.
pub const PAUSED_ANNOTATION: &str = "quorumail.io/paused";
/// Finalizer on MailDomain, Mailbox and MailingList: held until the mailnodes have forgotten the object.
pub const DIRECTORY_FINALIZER: &str = "quorumail.io/directory";
/// Longest domain. RFC 5321 4.5.3.1.2 allows 255 octets, of which 253 can be printed.
pub const MAX_DOMAIN: usize = 253;
/// Longest address: 64 octets of local part (RFC 5321 4.5.3.1.1), `@`, domain.
pub const MAX_ADDRESS: usize = 64 + 1 + MAX_DOMAIN;
/// Longest local part of a MailingList: its other addresses are longer.
pub const MAX_LIST_LOCAL: usize = 32;

/// The MailCluster that an object belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterRef {
    /// Name of the MailCluster.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its namespace, where that is another one: it must name the namespace of this object in spec.allowedNamespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

impl ClusterRef {
    /// Namespace of the MailCluster that an object of namespace `own` means.
    pub fn namespace_for<'a>(&'a self, own: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(own)
    }

    /// Whether an object of namespace `own` means this MailCluster.
    pub fn means(&self, own: &str, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace_for(own) == namespace
    }
}

/// The MailCluster, in the same namespace, that an object belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalClusterRef {
    /// Name of the MailCluster.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A key of a Secret in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret.
    #[serde(default = "default_password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_password_key() -> String {
    "password".to_owned()
}

/// A Secret in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What happens to data when the object that describes it is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It is kept.
    #[default]
    Retain,
    /// It is deleted.
    Delete,
}

/// A host name in lower case, as a regular expression inside a CEL string.
pub(crate) const HOST_NAME: &str =
    r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

/// CEL that holds when the expression `value` is a host name in lower case.
pub(crate) fn host_name_rule(value: &str) -> String {
    format!("{value}.matches('{HOST_NAME}')")
}

/// CEL that holds when the expression `value` names a domain whose records are looked up: as a host name, but all labels except the
/// last may have underscores, as in `_spf.example.com` (RFC 8552 1.1).
pub(crate) fn record_name_rule(value: &str) -> String {
    let name = HOST_NAME.replacen(
        "([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?",
        1,
    );
    format!("{value}.matches('{name}')")
}

/// CEL that holds when the expression `value` is a mail address in lower case. The local part is a dot-string (RFC 5321 4.1.2) without
/// quotes and has at most 64 octets (4.5.3.1.1), the domain at most [`MAX_DOMAIN`].
pub(crate) fn address_rule(value: &str) -> String {
    let atom = r"[a-z0-9!#$%&\'*+/=?^_`{|}~-]+";
    let host = HOST_NAME.trim_start_matches('^');
    format!(
        r"{value}.matches('^{atom}(\\.{atom})*@{host}') && {value}.indexOf('@') <= 64 && {value}.size() - {value}.indexOf('@') <= {}",
        MAX_DOMAIN + 1
    )
}

/// Every CustomResourceDefinition, in the order in which it is written.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        MailCluster::crd(),
        MailDomain::crd(),
        Mailbox::crd(),
        MailingList::crd(),
        BackupPolicy::crd(),
        MailBackup::crd(),
        MailRestore::crd(),
    ]
}

/// Whether the object's annotations ask for no reconciliation.
pub fn is_paused<K: kube::Resource>(object: &K) -> bool {
    object.meta().annotations.as_ref().and_then(|a| a.get(PAUSED_ANNOTATION)).is_some_and(|v| v == "true")
}
