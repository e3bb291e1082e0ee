//! What can go wrong when a journal is opened or read. Writing has no errors: it succeeds or ends the process.

use std::{io, path::PathBuf};

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another `Journal` of this one, has the directory.
    #[error(
        "journal {} is in use by another process; stop that one first, or give this node a directory of its own",
        dir.display()
    )]
    Locked {
        /// The journal's directory.
        dir: PathBuf,
    },
    /// Bytes that had been safe on disk are not what was written. Nothing was changed on disk.
    #[error(
        "journal segment {segment} is damaged at offset {offset}: {reason}; when other replicas are well, remove the \
         node's whole data directory so that it is filled from them"
    )]
    Damaged {
        /// File name of the segment.
        segment: String,
        /// Offset of the first damaged record, zero for the segment's own header.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// A segment between two others is not there.
    #[error(
        "journal segment {segment} is missing in {}; put the file back, or, when other replicas are well, remove the \
         node's whole data directory so that it is filled from them",
        dir.display()
    )]
    Missing {
        /// File name of the segment.
        segment: String,
        /// The journal's directory.
        dir: PathBuf,
    },
    /// The segment was written by a version that this one does not know.
    #[error(
        "journal file {segment} has format version {found}, this program reads {expected}; run the version of the \
         program that wrote it"
    )]
    Version {
        /// File name of the segment.
        segment: String,
        /// The version in the segment's header.
        found: u32,
        /// The version that this program reads and writes.
        expected: u32,
    },
    /// A file has the name of a journal's file and is none.
    #[error(
        "{file} is not a file of a Quorumail journal; check that the data directory is this node's, nothing in it was \
         changed"
    )]
    Foreign {
        /// Its name.
        file: String,
    },
    /// The disk failed when the journal was last used, and it has not been verified since.
    #[error(
        "the disk under journal {} failed ({reason}); open it with verification, or replace the disk and let the node be \
         filled from other replicas",
        dir.display()
    )]
    Failed {
        /// The journal's directory.
        dir: PathBuf,
        /// What failed then.
        reason: String,
    },
    /// The disk failed when the journal was last used, and verification found damage. Nothing was changed on disk.
    #[error(
        "journal {} does not stand verification after its disk failed: {damages}; replace the disk, or remove the node's \
         whole data directory so that it is filled from other replicas",
        dir.display()
    )]
    Unproven {
        /// The journal's directory.
        dir: PathBuf,
        /// What was found.
        damages: String,
    },
    /// The operating system refused something.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing that begins at this position and has this length was ever written here.
    #[error("journal segment {segment} has no record of that length at offset {offset}")]
    NotFound {
        /// File name of the segment.
        segment: String,
        /// Offset that was asked for.
        offset: u64,
    },
    /// The record is there but is not what was written.
    #[error("journal segment {segment} is damaged at offset {offset}")]
    Damaged {
        /// File name of the segment.
        segment: String,
        /// Offset of the record.
        offset: u64,
    },
    /// The range reaches beyond the end of the payload.
    #[error("range {offset}+{len} lies outside a payload of {payload} bytes")]
    OutOfRange {
        /// Begin of the range.
        offset: u32,
        /// Length of the range.
        len: u32,
        /// Length of the payload.
        payload: u32,
    },
    /// The operating system refused something.
    #[error("failed to read journal segment {segment}")]
    Io {
        /// File name of the segment.
        segment: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why a segment was not recycled.
#[derive(Debug, thiserror::Error)]
pub enum RecycleError {
    /// There is no such segment.
    #[error("there is no journal segment {0}")]
    NotFound(String),
    /// It is still written to, or the logs still need it.
    #[error("journal segment {0} is still needed")]
    Needed(String),
    /// The operating system refused something.
    #[error("failed to recycle journal segment {segment}")]
    Io {
        /// File name of the segment.
        segment: String,
        /// The system's answer.
        source: io::Error,
    },
}
