//! BackupPolicy: when a MailCluster is backed up, to where, and what is kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    LocalClusterRef, Size, Span,
    backup::{EncryptionKeyRef, Phase, RecoveryWindow, S3},
};

/// Backups of a MailCluster by schedule: encrypted, to a bucket or a volume, and so many of them kept.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "BackupPolicy",
    namespaced,
    plural = "backuppolicies",
    singular = "backuppolicy",
    shortname = "bp",
    category = "quorumail",
    status = "BackupPolicyStatus",
    derive = "PartialEq",
    doc = "Backups of a MailCluster by schedule: encrypted, to a bucket or a volume, and so many of them kept.",
    validation = Rule::new(crate::backup::POLICY_NAME_RULE).message("the name of a BackupPolicy becomes a label: at most 63 lower-case letters, digits and hyphens"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(
        name = "Last-Backup-Succeeded",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='LastBackupSucceeded')].status"
    ),
    printcolumn(name = "Last-Success", type_ = "date", json_path = ".status.lastSuccessfulTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduleTime"),
    printcolumn(name = "Backups", type_ = "integer", json_path = ".status.backups"),
    printcolumn(name = "Stored-Bytes", type_ = "integer", json_path = ".status.storedBytes"),
    printcolumn(
        name = "Archiving",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='ArchivingHealthy')].status"
    ),
    printcolumn(name = "Archive-Lag", type_ = "string", json_path = ".status.archiveLag", priority = 1),
    printcolumn(
        name = "Rehearsed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='RehearsalSucceeded')].status"
    ),
    printcolumn(name = "Last-Rehearsed", type_ = "date", json_path = ".status.lastRehearsedTime", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='LastBackupSucceeded')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.clusterRef) == has(oldSelf.clusterRef) && (!has(self.clusterRef) || self.clusterRef.name == oldSelf.clusterRef.name)")
        .message("clusterRef cannot be changed: make another BackupPolicy, with a prefix of its own, for the other MailCluster"),
)]
pub struct BackupPolicySpec {
    /// The MailCluster; may be left out where the namespace has exactly one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<LocalClusterRef>,

    /// When backups are made, as a cron expression: minute, hour, day of month, month, day of week, as in `0 3 * * *`, or
    /// one of `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. The first backup is made at once. One that was missed is
    /// made as soon as it can be, once. A run that is due while another one is under way waits for it.
    #[schemars(length(min = 6, max = 128))]
    #[x_kube(validation = Rule::new(r"self.matches('^(@(hourly|daily|weekly|monthly|yearly)|[^ @]+( [^ ]+){4})$')").message("schedule must have five fields, as in \"0 3 * * *\", or be @hourly, @daily, @weekly, @monthly or @yearly"))]
    pub schedule: String,

    /// Time zone of both schedules and of retention, as in `Europe/Berlin`. A time that the clocks jump over is made up for right
    /// after the jump; one that they pass twice counts once.
    #[serde(default = "default_time_zone")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$')").message("timeZone must be a name of the time zone database, as in Europe/Berlin"))]
    pub time_zone: String,

    /// No backups are made and none are rehearsed by schedule while it is true. Those that exist are kept.
    #[serde(default)]
    pub suspend: bool,

    /// Where backups are kept.
    pub target: Target,

    /// The key that backups are encrypted with. Without it nobody can read them: keep a copy away from this cluster.
    pub encryption_key_secret_ref: EncryptionKeyRef,

    /// Every backup holds the MailCluster, its MailDomains, Mailboxes and BackupPolicies, so that they can be applied again. With
    /// true it holds the Secrets as well that they refer to, of each the keys that Quorumail reads: passwords, certificates,
    /// credentials of buckets and relays. Never in it: keys that backups are encrypted with. Whoever has the bucket and the key
    /// can read all of it, and so can whoever may write a BackupPolicy with a bucket and key of their own.
    #[serde(default)]
    pub include_secrets: bool,

    /// Which backups of this BackupPolicy are kept, those of MailBackups that people made for it among them; the others are
    /// deleted after each backup that succeeds, once a day and when this is changed. One that any of the fields wants is kept.
    /// While spec.suspend is true nothing is deleted but after a backup that a person makes.
    #[serde(default)]
    pub retention: Retention,

    /// A backup that takes longer is ended, so that it does not hold up the next.
    #[serde(default = "default_deadline")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("deadline must be longer than nothing, as in 6h"))]
    pub deadline: Span,

    /// Most bytes per second that the backup of each partition sends to the target, so that mail goes on undisturbed; a mailnode
    /// backs up two at a time at most. Without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("bytesPerSecond must be greater than zero, as in 20Mi"))]
    pub bytes_per_second: Option<Size>,

    /// Ships what is committed to the target between backups, so that any instant since the oldest of them can be restored
    /// (MailRestore.spec.pointInTime). It goes on while spec.suspend is true. Without it only backups can be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuous: Option<Continuous>,

    /// Proves by schedule that the newest backup can be restored. Without it nothing is rehearsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
}

fn default_time_zone() -> String {
    "UTC".to_owned()
}

fn default_deadline() -> Span {
    "6h".parse().expect("the default deadline is a duration")
}

/// How what is committed is shipped. A MailCluster has one archive: of several BackupPolicies that ask for one, one gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Continuous {
    /// Within what time what is committed is in the target: so much mail is lost at most with everything else (RPO). At
    /// least a second.
    #[serde(default = "default_max_lag")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("continuous.maxLag must be longer than nothing, as in 1m"))]
    pub max_lag: Span,
}

fn default_max_lag() -> Span {
    "1m".parse().expect("the default lag is a duration")
}

/// How restores are rehearsed. The newest backup is restored into a MailCluster of one mailnode that is made for it in the
/// namespace of the BackupPolicy, with image, resources, scheduling and storage class of the MailCluster that is backed up. Every
/// message is read back and compared, and one is sent and read there. Then all of it is taken away again, whatever happened.
/// Its mailboxes can neither be logged in to nor take or send mail, and queued mail is left out, so that nothing leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Rehearsal {
    /// When, as a cron expression like that of backups, in the same time zone. The first one is made as soon as there is a
    /// backup; one that failed is made again after an hour, then after two, four and so on up to sixteen.
    #[schemars(length(min = 6, max = 128))]
    #[x_kube(validation = Rule::new(r"self.matches('^(@(hourly|daily|weekly|monthly|yearly)|[^ @]+( [^ ]+){4})$')").message("schedule must have five fields, as in \"0 3 * * *\", or be @hourly, @daily, @weekly, @monthly or @yearly"))]
    pub schedule: String,

    /// A rehearsal that takes longer is ended and has failed. What may be restored within this time is what it proves.
    #[serde(default = "default_deadline")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("rehearsal.deadline must be longer than nothing, as in 6h"))]
    pub deadline: Span,
}

/// Where backups are kept: exactly one of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.s3) != has(self.volume)").message("target needs exactly one of s3 and volume"),
    validation = Rule::new("has(self.volume) == has(oldSelf.volume)").message("target cannot be changed from s3 to volume or back: make another BackupPolicy, and delete this one once the other has backups enough"),
)]
pub struct Target {
    /// A bucket of any S3 service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,

    /// A volume of this Kubernetes cluster, which the operator runs a small S3 service on. It goes with the cluster when that is
    /// lost: where there is a bucket elsewhere, use that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
}

/// A volume: one that is made, of a size, or the one of a PersistentVolumeClaim that is there. The claim is never deleted with
/// the BackupPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.size) != has(self.claimName)").message("volume needs exactly one of size and claimName"),
    validation = Rule::new("!has(self.storageClassName) || has(self.size)").message("volume.storageClassName belongs to volume.size, since a claim that is there has its class: leave it out beside volume.claimName"),
    validation = Rule::new("!has(self.size) || !has(oldSelf.size) || (has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName))").message("volume.storageClassName cannot be changed, since Kubernetes does not move volumes between classes: make another BackupPolicy"),
)]
pub struct Volume {
    /// Size of the claim that is made, named after the BackupPolicy with `-backup-volume` behind it; one that is there is taken
    /// over. It can be raised where the storage class lets claims grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("volume.size must be greater than zero, as in 50Gi"))]
    pub size: Option<Size>,

    /// StorageClass of the claim that is made; without it the cluster's default. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// A PersistentVolumeClaim in the same namespace that one pod can mount and write to, and that nothing else uses. Backups
    /// lie in its directory `backups`; those that are there already can be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: Option<String>,
}

/// How many backups are kept, of each kind the newest ones: the last so many, and of so many days, weeks, months and years
/// the last of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.last + self.daily + self.weekly + self.monthly + self.yearly > 0").message("retention must keep something: set one of its fields above 0"),
)]
pub struct Retention {
    /// The last so many.
    #[serde(default = "default_last")]
    #[schemars(range(max = 1000))]
    pub last: u32,
    /// The last one of each of so many days that have one.
    #[serde(default = "default_daily")]
    #[schemars(range(max = 1000))]
    pub daily: u32,
    /// Likewise of weeks, which begin on Monday.
    #[serde(default = "default_weekly")]
    #[schemars(range(max = 1000))]
    pub weekly: u32,
    /// Likewise of months.
    #[serde(default = "default_monthly")]
    #[schemars(range(max = 1000))]
    pub monthly: u32,
    /// Likewise of years.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    pub yearly: u32,
}

fn default_last() -> u32 {
    3
}

fn default_daily() -> u32 {
    7
}

fn default_weekly() -> u32 {
    5
}

fn default_monthly() -> u32 {
    12
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            last: default_last(),
            daily: default_daily(),
            weekly: default_weekly(),
            monthly: default_monthly(),
            yearly: 0,
        }
    }
}

/// What was observed of a BackupPolicy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupPolicyStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: backups are made and removed as asked. LastBackupSucceeded: how the last run ended; Unknown before the first
    /// has. ArchivingHealthy: the continuous archive goes on and is in time; only with spec.continuous.
    /// RehearsalSucceeded: how the last rehearsal ended, and that none is overdue; only with spec.rehearsal. Paused: by
    /// annotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The last instant of the schedule for which a backup was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub last_schedule_time: Option<Time>,

    /// When the last backup that succeeded was finished: it is in the bucket and was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub last_successful_time: Option<Time>,

    /// When the next backup is due; absent while spec.suspend is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub next_schedule_time: Option<Time>,

    /// The MailBackup that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,

    /// Between which instants there are backups, as found in the bucket; with spec.continuous, the newest stretch of time any
    /// instant of which can be restored, as found at most five minutes ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_window: Option<RecoveryWindow>,

    /// How old what is surely in the bucket is, as in `12s`: so much mail would be lost now with the MailCluster (RPO). Only with
    /// spec.continuous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_lag: Option<String>,

    /// Number of backups of this BackupPolicy found in the bucket after retention was last applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<u32>,

    /// Bytes in the bucket that they refer to, as found then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,

    /// What retention did when it was last applied, and why it could not be applied since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionStatus>,

    /// When the last rehearsal that succeeded was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub last_rehearsed_time: Option<Time>,

    /// When the next rehearsal is due; absent while spec.suspend is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub next_rehearsal_time: Option<Time>,

    /// The last rehearsal, or the one that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<RehearsalRecord>,
}

/// Record of a rehearsal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RehearsalRecord {
    /// Running, Succeeded or Failed.
    pub result: Phase,

    /// The backup that is restored, by its name in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,

    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub started: Option<Time>,

    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub finished: Option<Time>,

    /// How long it took from nothing to mail that is served again, as in `1m30s`: the time to recover (RTO), as measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,

    /// Mailboxes that were restored.
    #[serde(default)]
    pub mailboxes: u64,

    /// Messages that were restored.
    #[serde(default)]
    pub messages: u64,

    /// Sum of their sizes.
    #[serde(default)]
    pub bytes: u64,

    /// Messages that were read back and have the content and date that the backup has.
    #[serde(default)]
    pub compared: u64,

    /// How often it was begun: an operator that is replaced begins it again.
    #[serde(default)]
    pub attempts: u32,

    /// Rehearsals that failed one after the other, this one among them.
    #[serde(default)]
    pub failures: u32,

    /// Why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionStatus {
    /// When it was last applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub applied: Option<Time>,
    /// Backups that it kept then.
    #[serde(default)]
    pub kept: u32,
    /// Backups that it deleted then.
    #[serde(default)]
    pub deleted: u32,
    /// Bytes that were given back then.
    #[serde(default)]
    pub freed_bytes: u64,
    /// The metadata.generation of the BackupPolicy that it was applied for, or tried for since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When it is applied again, unless a backup or a change of the BackupPolicy has it applied sooner; in the past while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub next: Option<Time>,
    /// How often it was tried since and could not be applied.
    #[serde(default)]
    pub failures: u32,
    /// Why, in one word for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
