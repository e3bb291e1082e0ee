//! What the kinds around backups share: where they are kept, how far a run is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretRef;

/// Label with the name of the BackupPolicy, on the MailBackups that were made for it.
pub const POLICY_LABEL: &str = "quorumail.io/backup-policy";
/// Annotation of a MailBackup that was made by schedule: the instant that it was due, in RFC 3339.
pub const SCHEDULED_ANNOTATION: &str = "quorumail.io/scheduled-at";

/// Label with the name of the BackupPolicy, on the MailCluster that its rehearsal restores into.
pub const REHEARSAL_LABEL: &str = "quorumail.io/rehearsal";

/// Whether a MailCluster was made by a BackupPolicy for a rehearsal, and so is nobody's: what has such a label and was made
/// by somebody else is not.
pub fn is_rehearsal(cluster: &crate::MailCluster) -> bool {
    let labelled =
        cluster.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(REHEARSAL_LABEL));
    let owners = cluster.metadata.owner_references.iter().flatten();
    labelled && owners.into_iter().any(|owner| owner.controller == Some(true) && owner.kind == "BackupPolicy")
}

/// CEL that holds when the expression `value` is a name that may be the value of a label.
pub(crate) const POLICY_NAME_RULE: &str =
    "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')";

/// A BackupPolicy in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRef {
    /// Name of the BackupPolicy.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A Secret in the same namespace with the key that backups are encrypted with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EncryptionKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret. Its value is 32 random bytes, as they are or in base64 or hex, or a passphrase of at least 20
    /// characters.
    #[serde(default = "default_encryption_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn default_encryption_key() -> String {
    "key".to_owned()
}

/// A bucket of any S3 service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3 {
    /// URL of the service, as in `https://s3.example.org`. Operator and mailnodes must reach it. Without https mail is still
    /// encrypted, and names of objects are not.
    #[schemars(length(min = 8, max = 1024))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://[A-Za-z0-9._:\\[\\]-]+(/.*)?$')").message("s3.endpoint must be a URL that starts with https:// or http://, as in https://s3.example.org"))]
    pub endpoint: String,

    /// The bucket; it must exist.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')").message("s3.bucket must be the name of a bucket: letters, digits, dots, hyphens"))]
    pub bucket: String,

    /// Before the names of all objects: several repositories may share a bucket. One prefix belongs to one MailCluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(r"self == '' || self.matches('^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/?$') && !self.matches('(^|/)[.][.]?(/|$)')").message("s3.prefix must be a path such as mail/backups"))]
    pub prefix: String,

    /// Region; many services take any.
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 63))]
    pub region: String,

    /// Secret with the keys `accessKeyId` and `secretAccessKey`.
    pub credentials_secret_ref: SecretRef,

    /// Whether the bucket is part of the path (`https://s3.example.org/bucket`), as most services of one's own want it, or
    /// of the host name (`https://bucket.s3.example.org`).
    #[serde(default = "yes")]
    pub force_path_style: bool,

    /// Secret with the key `ca.crt`: the authorities, in PEM, that sign the service's certificate. Without it those that the
    /// image knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn yes() -> bool {
    true
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It has not begun; the condition Ready says what it waits for.
    #[default]
    Pending,
    /// It is under way.
    Running,
    /// It is done, and what it made was read back.
    Succeeded,
    /// It ended without success; `error` says why and what to do.
    Failed,
}

impl Phase {
    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryWindow {
    /// Its beginning: when the oldest backup was begun.
    #[schemars(schema_with = "crate::schema::time")]
    pub earliest: Time,
    /// Its end: when the newest backup was begun, or up to when everything is archived. Mail that came since is in neither.
    #[schemars(schema_with = "crate::schema::time")]
    pub latest: Time,
}
