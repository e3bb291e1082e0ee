//! What can fail below the state machine. A refused command is no error: see [`Refusal`].

use std::io::ErrorKind;

use crate::{CommandError, Refusal};

/// The index failed or its data is damaged. The group must stop: applying on would make replicas differ.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The index (fjall) failed, as a rule because the disk did.
    #[error("the index failed: {0}")]
    Index(#[from] fjall::Error),
    /// A value of the index or a chunk of a snapshot cannot be read.
    #[error("damaged data: {0}")]
    Damaged(&'static str),
    /// Written by a later version.
    #[error("the state has format {found}, this version understands {known}; run the version that wrote it")]
    Format {
        /// What the data says.
        found: u32,
        /// What this version writes.
        known: u32,
    },
    /// A command of a later version was committed: this node must be upgraded before it can go on.
    #[error("a committed command cannot be applied: {0}")]
    Command(#[from] CommandError),
    /// A message body could not be read or kept.
    #[error("a message body could not be read or kept: {0}")]
    Bodies(String),
    /// A store of before a simulated crash was used after it.
    #[cfg(feature = "simulation")]
    #[error("the index has crashed; open the store again")]
    Crashed,
}

impl StoreError {
    /// Whether what is on disk is not what was written there. A disk that fails, a directory in use and another version's
    /// data are not: trying again, or another program, may help then.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Index(fjall::Error::Io(error)) => {
                // Files that are missing, shorter than they say, or there when nothing says that they are.
                matches!(
                    error.kind(),
                    ErrorKind::NotFound
                        | ErrorKind::UnexpectedEof
                        | ErrorKind::InvalidData
                        | ErrorKind::AlreadyExists
                )
            }
            Self::Index(error) => !matches!(
                error,
                fjall::Error::Locked | fjall::Error::InvalidVersion(Some(_)) | fjall::Error::Poisoned
            ),
            other => matches!(other, Self::Damaged(_)),
        }
    }
}

/// Why applying one command ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Deterministic; answered and remembered.
    Refused(Refusal),
    /// Local to this node.
    Failed(StoreError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}
