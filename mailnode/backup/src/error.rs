//! What can go wrong with a repository, told so that whoever reads it knows what to do.

use quorumail_store::{StoreError, Timestamp};

use crate::{BackupId, format::instant};

/// Why something with a repository failed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The configuration cannot be used.
    #[error("{0}")]
    BadConfiguration(String),
    /// There is none at this place.
    #[error("there is no backup repository at {location}; check bucket and prefix, or make the first backup")]
    NoRepository {
        /// Where it was looked for.
        location: String,
    },
    /// The bucket is not there, or is another one's.
    #[error("the bucket of {location} does not exist; make it, or correct its name, endpoint and region")]
    WrongBucket {
        /// Where.
        location: String,
    },
    /// The credentials are not accepted.
    #[error(
        "{location} refuses the credentials ({reason}); correct access key, secret key, region or the bucket's policy"
    )]
    AccessDenied {
        /// Where.
        location: String,
        /// What it answered.
        reason: String,
    },
    /// No connection, or no answer in time; TLS as well.
    #[error(
        "{location} cannot be reached ({reason}); check endpoint, network and certificate (a private CA must be given)"
    )]
    Unreachable {
        /// Where.
        location: String,
        /// What was seen.
        reason: String,
    },
    /// The key opens no slot of the repository.
    #[error("the encryption key does not open the repository at {location}; it is locked with {known}")]
    WrongKey {
        /// Where.
        location: String,
        /// The ids of the keys that open it.
        known: String,
    },
    /// A later version wrote it.
    #[error(
        "{object} has format {found}, and this version reads formats up to {known}; use the version that wrote it"
    )]
    NewerFormat {
        /// Which object.
        object: String,
        /// What it says.
        found: u32,
        /// What this version knows.
        known: u32,
    },
    /// An object is not what was written.
    #[error("{object} is damaged: {what}; run a verification to see what it touches")]
    Damaged {
        /// Which object.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// An object that others refer to is gone.
    #[error("{object} is missing from the repository; run a verification to see what it touches")]
    Missing {
        /// Which object.
        object: String,
    },
    /// There is no such backup.
    #[error("there is no backup {0}; list the backups to see which there are")]
    NoBackup(BackupId),
    /// Somebody else holds the repository.
    #[error(
        "the repository is in use by {holder}; try again when it is done, or after {seconds} s without a sign of it"
    )]
    Busy {
        /// Who, as told by themselves.
        holder: String,
        /// Seconds until it is taken to be dead.
        seconds: u64,
    },
    /// The lease ran out before the work was done, so others may have removed what it relied upon.
    #[error("the lease on the repository was lost before the backup was complete; make another backup")]
    LeaseLost,
    /// The time given for the whole was used up.
    #[error("not done within the deadline of {seconds} s; raise the deadline or the rate limit")]
    DeadlineExceeded {
        /// The deadline.
        seconds: u64,
    },
    /// Whoever asked for it gave up.
    #[error("cancelled")]
    Cancelled,
    /// The object store failed in another way, also when tried again.
    #[error("{action} {object} failed: {reason}")]
    StorageFailed {
        /// What was attempted.
        action: &'static str,
        /// On which object.
        object: String,
        /// What was answered.
        reason: String,
    },
    /// The node's own store failed.
    #[error("the mail store failed: {0}")]
    StoreFailed(#[from] StoreError),
    /// A point in time that the archive does not reach.
    #[error(
        "{} cannot be restored: {}",
        instant(*.asked),
        if .windows.is_empty() { "there is no complete backup from before it".to_owned() } else {
            format!("points in time can be restored in {}", .windows.iter()
                .map(|(from, to)| format!("[{}, {}]", instant(*from), instant(*to))).collect::<Vec<_>>().join(", "))
        }
    )]
    OutsideWindow {
        /// Which instant.
        asked: Timestamp,
        /// What can be restored: first and last instant of each.
        windows: Vec<(Timestamp, Timestamp)>,
    },
}

impl RepositoryError {
    /// The reason in one word, for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadConfiguration(_) => "BadConfiguration",
            Self::NoRepository { .. } => "NoRepository",
            Self::WrongBucket { .. } => "WrongBucket",
            Self::AccessDenied { .. } => "AccessDenied",
            Self::Unreachable { .. } => "Unreachable",
            Self::WrongKey { .. } => "WrongKey",
            Self::NewerFormat { .. } => "NewerFormat",
            Self::Damaged { .. } => "Damaged",
            Self::Missing { .. } => "Missing",
            Self::NoBackup(_) => "NoBackup",
            Self::Busy { .. } => "Busy",
            Self::LeaseLost => "LeaseLost",
            Self::DeadlineExceeded { .. } => "DeadlineExceeded",
            Self::Cancelled => "Cancelled",
            Self::StorageFailed { .. } => "StorageFailed",
            Self::StoreFailed(_) => "StoreFailed",
            Self::OutsideWindow { .. } => "OutsideWindow",
        }
    }

    /// Whether it lies in one object, so that the rest can still be read.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing { .. } | Self::NewerFormat { .. })
    }

    pub(crate) fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), what: what.into() }
    }
}
