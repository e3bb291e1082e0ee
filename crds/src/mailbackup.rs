//! MailBackup: one run of a backup, and what it made.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backup::{Phase, PolicyRef};

/// One backup. A BackupPolicy makes one at each instant of its schedule; one that a person makes is run at once.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "MailBackup",
    namespaced,
    plural = "mailbackups",
    singular = "mailbackup",
    shortname = "mbk",
    category = "quorumail",
    status = "MailBackupStatus",
    derive = "PartialEq",
    doc = "One backup. A BackupPolicy makes one at each instant of its schedule; one that a person makes is run at once. Deleting a MailBackup ends it when it is under way and takes nothing out of the bucket.",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policyRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.messages"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.bytes"),
    printcolumn(name = "Uploaded", type_ = "integer", json_path = ".status.uploadedBytes"),
    printcolumn(name = "Finished", type_ = "date", json_path = ".status.finished"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "ID", type_ = "string", json_path = ".status.id", priority = 1),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.error", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("spec cannot be changed: make another MailBackup"),
)]
pub struct MailBackupSpec {
    /// The BackupPolicy that says which MailCluster is backed up, to where and with which key. Cannot be changed.
    pub policy_ref: PolicyRef,
}

/// What was observed of a MailBackup.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailBackupStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the backup is in the bucket and can be restored. Paused: by annotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// How far it is.
    #[serde(default)]
    pub phase: Phase,

    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub started: Option<Time>,

    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub finished: Option<Time>,

    /// Its name in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,

    /// Partitions in it; while it is under way, those that are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,

    /// Messages in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,

    /// Sum of their sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,

    /// Bytes that had to be sent: what earlier backups hold is not sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded_bytes: Option<u64>,

    /// The Kubernetes resources in it: `quorumail backup show ID --resources` prints them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<KeptResources>,

    /// How often it was begun: an operator that is replaced begins the run again.
    #[serde(default)]
    pub attempts: u32,

    /// Why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Kubernetes resources in a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptResources {
    /// The MailCluster, its MailDomains, Mailboxes and BackupPolicies.
    #[serde(default)]
    pub objects: u32,

    /// Secrets that they refer to; none without spec.includeSecrets of the BackupPolicy.
    #[serde(default)]
    pub secrets: u32,

    /// What should be in it and is not, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}
