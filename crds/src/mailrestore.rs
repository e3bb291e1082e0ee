//! MailRestore: mail brought back from a backup.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    LocalClusterRef,
    backup::{EncryptionKeyRef, Phase, PolicyRef, S3},
};

/// Brings mail back from a backup, once. What is there is never overwritten; a restore that was interrupted goes on, and
/// one that is made a second time makes no duplicates.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "MailRestore",
    namespaced,
    plural = "mailrestores",
    singular = "mailrestore",
    shortname = "mrs",
    category = "quorumail",
    status = "MailRestoreStatus",
    derive = "PartialEq",
    doc = "Brings mail back from a backup, once. What is there is never overwritten; a restore that was interrupted goes on, and one that is made a second time makes no duplicates.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Backup", type_ = "string", json_path = ".status.backup"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.restored.messages"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.restored.bytes"),
    printcolumn(name = "Verified", type_ = "boolean", json_path = ".status.verified"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.error", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("spec cannot be changed: make another MailRestore"),
    validation = Rule::new("!has(self.pointInTime) || !(has(self.source.backupRef) || has(self.source.id))").message("pointInTime chooses the backup itself: leave out source.backupRef and source.id, and use source.policyRef or source.s3"),
    validation = Rule::new("!has(self.target.mailbox) || has(self.scope.mailbox) || has(self.scope.folder)").message("target.mailbox needs scope.mailbox or scope.folder"),
)]
pub struct MailRestoreSpec {
    /// The backup that mail is brought back from.
    pub source: RestoreSource,

    /// Brings back what was there at this instant, in RFC 3339 as in `2026-11-25T17:48:00Z`: from the newest backup before it and
    /// the continuous archive since then. Without it everything is as in the backup. An instant that cannot be restored fails with
    /// a message that names those that can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub point_in_time: Option<Time>,

    /// What is brought back.
    pub scope: RestoreScope,

    /// Where it goes.
    #[serde(default)]
    pub target: RestoreTarget,
}

/// A MailBackup in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupRef {
    /// Name of the MailBackup.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The backup that mail is brought back from: exactly one of backupRef, policyRef and s3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.backupRef), has(self.policyRef), has(self.s3)].filter(x, x).size() == 1").message("source needs exactly one of backupRef, policyRef and s3"),
    validation = Rule::new("has(self.s3) == has(self.encryptionKeySecretRef)").message("source.encryptionKeySecretRef belongs to source.s3: set both or neither"),
    validation = Rule::new("!has(self.id) || has(self.s3)").message("source.id belongs to source.s3: leave it out, and name a MailBackup by source.backupRef"),
)]
pub struct RestoreSource {
    /// This MailBackup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<BackupRef>,

    /// The newest backup of this BackupPolicy; with pointInTime, the one that leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<PolicyRef>,

    /// A bucket with backups, also of a MailCluster that is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,

    /// The key that the backups in source.s3 are encrypted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_key_secret_ref: Option<EncryptionKeyRef>,

    /// This backup in source.s3, by its name in the bucket. Without it the newest, where all are of one MailCluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub id: Option<String>,
}

/// What is brought back: exactly one of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.cluster), has(self.domain), has(self.mailbox), has(self.folder)].filter(x, x).size() == 1").message("scope needs exactly one of cluster, domain, mailbox and folder"),
)]
pub struct RestoreScope {
    /// Every mailbox in the backup, as `cluster: {}`: for a MailCluster that was lost. Domains and mailboxes that are not there
    /// are made with their passwords, and queued mail comes back held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Everything>,

    /// Every mailbox of this domain. Each must exist in the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(crate::host_name_rule("self")).message("scope.domain must be a host name in lower case, as in example.org"))]
    pub domain: Option<String>,

    /// The mailbox with this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("scope.mailbox must be an address in lower case, as in alice@example.org"))]
    pub mailbox: Option<String>,

    /// One folder of a mailbox, and the folders inside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<FolderScope>,
}

/// All that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Everything {}

/// A folder of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct FolderScope {
    /// Address of the mailbox.
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("scope.folder.mailbox must be an address in lower case, as in alice@example.org"))]
    pub mailbox: String,

    /// The folder as mail clients name it, as in `INBOX` or `Projects/2026`.
    #[schemars(length(min = 1, max = 1024))]
    pub name: String,
}

/// Where restored mail goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreTarget {
    /// The MailCluster; without it that of the BackupPolicy, or the only one in the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<LocalClusterRef>,

    /// Address of the mailbox that takes the mail; without it the one it was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("target.mailbox must be an address in lower case, as in alice@example.org"))]
    pub mailbox: Option<String>,

    /// Folder under which the restored folders are put, as in `Restored`. Without it folders come back under their own names
    /// where they are gone or empty; what a living folder holds is left as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.endsWith('/') && !self.matches('//')").message("target.folderPrefix must be the name of a folder, as in Restored, without / at its ends"))]
    pub folder_prefix: Option<String>,
}

/// What was observed of a MailRestore.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailRestoreStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the mail is back, and what was written was read again. Paused: by annotation.
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

    /// The backup that was read, by its name in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,

    /// What was brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,

    /// Whether what was written was compared with the backup, and is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<bool>,

    /// How long it took, as in `1m30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,

    /// How often it was begun: an operator that is replaced goes on with it.
    #[serde(default)]
    pub attempts: u32,

    /// Why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What was brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Mailboxes.
    pub mailboxes: u64,
    /// Messages that were written.
    pub messages: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Messages that were there already.
    pub already_there: u64,
}
