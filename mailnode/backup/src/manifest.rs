//! Manifests: what a backup consists of. Written last; without one there is no backup.

use quorumail_store::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    BackupId, BlobRef, PackId, RepositoryError,
    format::{FORMAT, decode, encode},
};

/// What was counted in a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Mailboxes with mail.
    pub mailboxes: u64,
    /// Messages in their folders.
    pub messages: u64,
    /// Bodies of messages and queue entries; long ones consist of several.
    pub bodies: u64,
    /// Sum of their lengths in bytes, each stored once or not.
    pub body_bytes: u64,
}

/// A pack that a group's backup refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackUse {
    /// Which pack.
    pub pack: PackId,
    /// Length of the whole pack in bytes.
    pub bytes: u64,
    /// Bytes in it that this backup refers to.
    pub live_bytes: u64,
}

/// The backup of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupManifest {
    /// Which group: 0 is the directory.
    pub group: u32,
    /// Of the cluster that body ids are told apart in.
    pub cluster_uid: String,
    /// What the store had applied; opaque, empty when the group held nothing.
    pub position: Vec<u8>,
    /// Raft log index that it had applied; 0 when the group held nothing.
    pub log_index: u64,
    /// When the state was taken, by the node's clock: everything in it was proposed before.
    pub applied_at: Timestamp,
    /// Where its root lies; none when the group held nothing.
    pub root: Option<BlobRef>,
    /// What is in it.
    pub counts: Counts,
    /// All packs that it refers to.
    pub packs: Vec<PackUse>,
    /// Bytes that this backup added to the repository.
    pub uploaded_bytes: u64,
}

impl GroupManifest {
    /// As bytes, for an RPC's answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&encode(self));
        out
    }

    /// Reads what [`GroupManifest::encode`] wrote.
    ///
    /// # Errors
    /// [`RepositoryError::NewerFormat`], or [`RepositoryError::Damaged`] for other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RepositoryError> {
        let object = "the backup of a group";
        let (format, rest) =
            bytes.split_first().ok_or_else(|| RepositoryError::damaged(object, "it is empty"))?;
        crate::seal::check_format(object, *format)?;
        decode(object, rest)
    }
}

/// The Kubernetes resources that a backup holds: where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Their JSON.
    pub blob: BlobRef,
    /// The pack that it lies in.
    pub pack: PackUse,
}

/// The cluster that a backup was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Of the resource MailCluster.
    pub name: String,
    /// Where it lives; empty outside Kubernetes.
    pub namespace: String,
    /// Of the resource: never used again for another.
    pub uid: String,
}

/// Why a backup was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trigger {
    /// By the schedule of this BackupPolicy.
    Policy(String),
    /// By this MailBackup, or a person.
    Manual(String),
    /// For this rehearsal.
    Rehearsal(String),
}

/// What a manifest is made of.
#[derive(Debug, Clone)]
pub struct ManifestDraft {
    /// Of what.
    pub cluster: Cluster,
    /// When the backup started.
    pub started: Timestamp,
    /// The backup that it was made against.
    pub parent: Option<BackupId>,
    /// Why it was made.
    pub trigger: Trigger,
    /// All groups of the cluster, each once.
    pub groups: Vec<GroupManifest>,
    /// The Kubernetes resources.
    pub resources: Option<Resources>,
    /// Version of Quorumail.
    pub version: String,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub id: BackupId,
    /// Id of the repository that it belongs to.
    pub repository: String,
    /// Id of the key that the repository was opened with.
    pub key_id: String,
    /// Of what.
    pub cluster: Cluster,
    /// When it started.
    pub started: Timestamp,
    /// When it was complete.
    pub finished: Timestamp,
    /// The backup that it was made against.
    pub parent: Option<BackupId>,
    /// Why it was made.
    pub trigger: Trigger,
    /// Its groups, ascending.
    pub groups: Vec<GroupManifest>,
    /// The Kubernetes resources.
    pub resources: Option<Resources>,
    /// Version of Quorumail that made it.
    pub version: String,
}

/// A backup in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupInfo {
    /// Its name.
    pub id: BackupId,
    /// Of what.
    pub cluster: Cluster,
    /// When it started.
    pub started: Timestamp,
    /// When it was complete.
    pub finished: Timestamp,
    /// The backup that it was made against.
    pub parent: Option<BackupId>,
    /// Why it was made.
    pub trigger: Trigger,
    /// Number of groups.
    pub groups: usize,
    /// Sums over its groups.
    pub counts: Counts,
    /// Bytes that it added to the repository.
    pub uploaded_bytes: u64,
    /// Version of Quorumail that made it.
    pub version: String,
    /// Id of the key that the repository was opened with.
    pub key_id: String,
}

impl Manifest {
    /// All packs that the backup refers to; one may come more than once.
    pub fn packs(&self) -> impl Iterator<Item = &PackUse> {
        self.groups
            .iter()
            .flat_map(|group| &group.packs)
            .chain(self.resources.as_ref().map(|resources| &resources.pack))
    }

    /// The backup of a group.
    pub fn group(&self, group: u32) -> Option<&GroupManifest> {
        self.groups.iter().find(|found| found.group == group)
    }

    /// In short.
    pub fn info(&self) -> BackupInfo {
        let mut counts = Counts::default();
        for group in &self.groups {
            counts.mailboxes += group.counts.mailboxes;
            counts.messages += group.counts.messages;
            counts.bodies += group.counts.bodies;
            counts.body_bytes += group.counts.body_bytes;
        }
        BackupInfo {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            started: self.started,
            finished: self.finished,
            parent: self.parent.clone(),
            trigger: self.trigger.clone(),
            groups: self.groups.len(),
            counts,
            uploaded_bytes: self.groups.iter().map(|group| group.uploaded_bytes).sum(),
            version: self.version.clone(),
            key_id: self.key_id.clone(),
        }
    }
}
