//! Condition types and reasons: the only place where they are spelled out.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Types of conditions. Every kind has [`READY`]; the others are named at the kind that has them.
pub mod kind {
    /// The object does what its spec asks, as confirmed by the mailnodes.
    pub const READY: &str = "Ready";
    /// Something that was asked is still being brought about.
    pub const PROGRESSING: &str = "Progressing";
    /// It works, but with less redundancy or fewer functions than asked.
    pub const DEGRADED: &str = "Degraded";
    /// Reconciliation is stopped by annotation.
    pub const PAUSED: &str = "Paused";
    /// Mail of a domain is signed, and the records of the keys that sign are seen in DNS.
    pub const DKIM_READY: &str = "DkimReady";
    /// All DNS records of a domain are seen as they should be.
    pub const DNS_VERIFIED: &str = "DnsVerified";
    /// Messages that are sent in a domain every minute come back.
    pub const PROBED: &str = "Probed";
    /// An address that mail leaves from stands on a block list that the MailCluster names.
    pub const BLOCK_LISTED: &str = "BlockListed";
    /// The certificate that cert-manager is asked for is issued and valid.
    pub const CERTIFICATE_READY: &str = "CertificateReady";
    /// Another namespace claims a domain as well, and does not get it.
    pub const CONTESTED: &str = "Contested";
    /// A mailbox uses more than nine tenths of its quota.
    pub const NEAR_QUOTA: &str = "NearQuota";
    /// The last backup of a policy that ended is in the bucket.
    pub const LAST_BACKUP_SUCCEEDED: &str = "LastBackupSucceeded";
    /// The continuous archive of a policy goes on, and is not late.
    pub const ARCHIVING_HEALTHY: &str = "ArchivingHealthy";
    /// The last rehearsal of a policy succeeded, and none is overdue.
    pub const REHEARSAL_SUCCEEDED: &str = "RehearsalSucceeded";
}

/// Reasons: why a condition has the status that it has.
pub mod reason {
    /// All is well: every node and every replica.
    pub const ALL_HEALTHY: &str = "AllHealthy";
    /// A majority of mailnodes answers and every partition has a leader.
    pub const QUORUM: &str = "Quorum";
    /// Fewer than a majority of mailnodes answer.
    pub const NO_QUORUM: &str = "NoQuorum";
    /// No mailnode could be asked.
    pub const NOT_REACHABLE: &str = "MailnodesNotReachable";
    /// Partitions without a leader.
    pub const LEADERLESS: &str = "PartitionsLeaderless";
    /// Replicas are missing or behind.
    pub const UNDER_REPLICATED: &str = "UnderReplicated";
    /// Not all mailnodes are ready.
    pub const NODES_NOT_READY: &str = "NodesNotReady";
    /// Nothing is under way.
    pub const SETTLED: &str = "Settled";
    /// Replicas move because the number of nodes was changed.
    pub const MOVING: &str = "ReplicasMoving";
    /// Pods are being created or replaced.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// The next pod is not taken away: replicas are missing or behind, or another pod is down.
    pub const UPDATE_PAUSED: &str = "UpdatePaused";
    /// A new pod did not get well in time; the message says what became of the update.
    pub const UPDATE_FAILED: &str = "UpdateFailed";
    /// Volumes are smaller than asked, and Kubernetes does not let them grow.
    pub const VOLUMES_NOT_GROWN: &str = "VolumesNotGrown";
    /// Volumes are being made larger.
    pub const VOLUMES_GROWING: &str = "VolumesGrowing";
    /// Objects could not be written.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// The mailnodes hold what the object asks.
    pub const SYNCED: &str = "Synced";
    /// Waiting to be sent to the mailnodes.
    pub const PENDING: &str = "Pending";
    /// The mailnodes refused it as wrong.
    pub const REFUSED: &str = "Refused";
    /// What is needed, an address, a domain or the name of an object, belongs to another one.
    pub const CONFLICT: &str = "Conflict";
    /// The domain of the address is not served by the cluster.
    pub const DOMAIN_NOT_FOUND: &str = "DomainNotFound";
    /// The MailCluster does not exist, or several could be meant.
    pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";
    /// The MailCluster of another namespace does not exist, or does not allow this one.
    pub const NOT_ALLOWED: &str = "NotAllowed";
    /// A referenced Secret, or the key in it, does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// A referenced Secret exists and cannot be used.
    pub const SECRET_INVALID: &str = "SecretInvalid";
    /// cert-manager has issued the certificate.
    pub const ISSUED: &str = "Issued";
    /// cert-manager could not get the certificate; the message says why.
    pub const NOT_ISSUED: &str = "NotIssued";
    /// cert-manager's resource types are not there, or the operator may not use them.
    pub const NO_CERT_MANAGER: &str = "CertManagerNotFound";
    /// The spec cannot be served.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// By annotation.
    pub const BY_ANNOTATION: &str = "Annotation";
    /// The annotation is not there.
    pub const NOT_PAUSED: &str = "NotPaused";
    /// More than nine tenths of the quota are used.
    pub const ABOVE_THRESHOLD: &str = "AboveThreshold";
    /// Less than nine tenths of the quota are used, or there is none.
    pub const BELOW_THRESHOLD: &str = "BelowThreshold";
    /// Block lists have addresses of the MailCluster; the message says which.
    pub const LISTED: &str = "Listed";
    /// No block list that was asked has one.
    pub const NOT_LISTED: &str = "NotListed";
    /// DNS gave no answer that could be believed.
    pub const NOT_LOOKED_UP: &str = "NotLookedUp";
    /// Deletion waits for something; the message says what.
    pub const DELETING: &str = "Deleting";
    /// Backups are made by schedule.
    pub const SCHEDULED: &str = "Scheduled";
    /// No backups are made while `spec.suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// No run has ended yet.
    pub const NOT_YET: &str = "NotYet";
    /// The run is under way.
    pub const RUNNING: &str = "Running";
    /// The run waits for another one of the same MailCluster.
    pub const WAITING: &str = "Waiting";
    /// The run did what was asked.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The run failed for a reason that has no name of its own.
    pub const FAILED: &str = "Failed";
    /// The run took longer than its deadline.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The operator was replaced in the middle of the run, too often.
    pub const INTERRUPTED: &str = "Interrupted";
    /// Retention deleted the backup.
    pub const PRUNED: &str = "Pruned";
    /// The last backup of a policy failed.
    pub const LAST_BACKUP_FAILED: &str = "LastBackupFailed";
    /// Retention could not be applied.
    pub const RETENTION_FAILED: &str = "RetentionFailed";
    /// The BackupPolicy does not exist.
    pub const POLICY_NOT_FOUND: &str = "PolicyNotFound";
    /// There is no such backup.
    pub const BACKUP_NOT_FOUND: &str = "BackupNotFound";
    /// The MailCluster exists and does not serve mail yet.
    pub const CLUSTER_NOT_READY: &str = "ClusterNotReady";
    /// What serves a volume with backups is not there yet, or not any more.
    pub const VOLUME_NOT_READY: &str = "VolumeNotReady";
    /// A part of what was asked could not be restored.
    pub const INCOMPLETE: &str = "Incomplete";
    /// What is due by schedule could not be begun for too long.
    pub const OVERDUE: &str = "Overdue";
    /// Every group is archived within the time that is asked.
    pub const ARCHIVING: &str = "Archiving";
    /// The archive is later than is asked.
    pub const LAGGING: &str = "Lagging";
    /// All DNS records are there.
    pub const RECORDS_PRESENT: &str = "RecordsPresent";
    /// DNS records are missing or differ.
    pub const RECORDS_WRONG: &str = "RecordsMissing";
    /// DNS was not asked yet, or did not answer.
    pub const DNS_UNKNOWN: &str = "DnsUnknown";
    /// Mail is signed.
    pub const SIGNING: &str = "Signing";
    /// The spec asks for no signatures.
    pub const NOT_SIGNED: &str = "NotSigned";
    /// A message was sent and did not come back, or was not taken.
    pub const PROBE_FAILED: &str = "ProbeFailed";
}

/// What was observed, before it is merged into the conditions of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// One of [`kind`].
    pub kind: &'static str,
    /// `None`: cannot be told (`Unknown`).
    pub status: Option<bool>,
    /// One of [`reason`].
    pub reason: &'static str,
    /// For people: what happened, to what, what to do.
    pub message: String,
}

impl Observed {
    /// A condition that holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(true), reason, message: message.into() }
    }

    /// A condition that does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(false), reason, message: message.into() }
    }

    /// A condition of which nothing is known.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: None, reason, message: message.into() }
    }

    /// The status as the API spells it.
    pub fn status_text(&self) -> &'static str {
        match self.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// The new list of conditions: exactly what was observed, in that order. `lastTransitionTime` is taken over from
/// `old` where the status is the same.
pub fn merge(
    old: &[Condition],
    observed: &[Observed],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let entry = |new: &Observed| {
        let before = old.iter().find(|c| c.type_ == new.kind && c.status == new.status_text());
        Condition {
            type_: new.kind.to_owned(),
            status: new.status_text().to_owned(),
            reason: new.reason.to_owned(),
            message: new.message.clone(),
            observed_generation: generation,
            last_transition_time: before
                .map_or_else(|| Time(truncate(now)), |c| c.last_transition_time.clone()),
        }
    };
    observed.iter().map(entry).collect()
}

/// The API keeps whole seconds; a time that it would change on the way would look like a change.
fn truncate(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The condition of this type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = merge(&[], &[Observed::no(kind::READY, reason::PENDING, "waiting")], Some(1), at(100));
        let second = merge(&first, &[Observed::no(kind::READY, reason::REFUSED, "bad")], Some(2), at(200));
        assert_eq!(second[0].last_transition_time, first[0].last_transition_time);
        assert_eq!((second[0].reason.as_str(), second[0].observed_generation), (reason::REFUSED, Some(2)));
        let third = merge(&second, &[Observed::yes(kind::READY, reason::SYNCED, "")], Some(2), at(300));
        assert_eq!(third[0].last_transition_time.0, at(300));
    }
}
