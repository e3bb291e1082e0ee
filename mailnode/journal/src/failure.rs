//! A disk that failed: what is told, what is remembered, and how it is proven again.
//!
//! After an error of a write or a sync nobody knows what is on the disk, not even the kernel: pages that could not be
//! written may have been marked clean. So the journal leaves a marker, `FAILED`, before the process ends, and is not
//! opened again while it is there, except to read back all that is on it first.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
};

use crate::{
    OpenError, Options,
    disk::Disk,
    recovery::{self, io_error},
    segment,
};

/// Name of the marker.
pub(crate) const MARKER: &str = "FAILED";
/// Name of the file that is written and read back to prove the disk.
const PROBE: &str = "probe.tmp";
/// Its length in bytes.
const PROBE_BYTES: usize = 1 << 20;
/// How many damages are told one by one.
const MAX_TOLD: usize = 8;
/// Segments between two lines of the log while all are read.
const TELL_EVERY: usize = 16;

/// The disk failed under the journal. Nothing more is written and nobody who waits is told anything: the node must
/// stop.
#[derive(Debug, Clone, thiserror::Error)]
#[error("failed to {action} {}: {reason}", path.display())]
pub struct Failure {
    /// What was being attempted.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The system's answer.
    pub reason: String,
    /// Whether there was only no room left. What is on the disk is well then.
    pub full: bool,
}

impl Failure {
    pub(crate) fn new(action: &'static str, path: PathBuf, error: &io::Error) -> Failure {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Failure { action, path, reason: error.to_string(), full }
    }
}

/// Leaves the marker. The disk may not even take that; then the failure is met again by who opens the journal next.
pub(crate) fn write_marker(disk: &dyn Disk, reason: &str) {
    let write = || {
        let file = disk.create(MARKER, 0)?;
        file.write_at(&mut [IoSlice::new(reason.as_bytes())], 0)?;
        file.sync_data()?;
        disk.sync_dir()
    };
    if let Err(error) = write() {
        tracing::error!(%error, "the marker of the failure could not be written either");
    }
}

/// Refuses a journal whose disk failed, or proves it, as the options say.
pub(crate) fn check(disk: &dyn Disk, options: &Options) -> Result<(), OpenError> {
    let at = |action| io_error(action, disk.path(MARKER));
    let Some(reason) = read_marker(disk).map_err(at("read"))? else { return Ok(()) };
    if !options.verify_after_failure {
        return Err(OpenError::Failed { dir: disk.path(""), reason });
    }
    tracing::warn!(reason, "the disk failed when the journal was last used; all of it is read back");
    prove(disk)?;
    disk.remove(MARKER).map_err(at("remove"))?;
    disk.sync_dir().map_err(at("sync directory of"))?;
    tracing::info!("the journal was read back without damage and the disk takes writes again");
    Ok(())
}

fn read_marker(disk: &dyn Disk) -> io::Result<Option<String>> {
    let file = match disk.open(MARKER) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = vec![0; usize::try_from(file.len()?).unwrap_or(0).min(4096)];
    file.read_at(&mut text, 0)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// Reads every segment from the device, and writes and reads a probe.
fn prove(disk: &dyn Disk) -> Result<(), OpenError> {
    let files = disk.list().map_err(io_error("list journal directory", disk.path("")))?;
    let mut numbers: Vec<u64> = files.iter().filter_map(|file| segment::number_of(file)).collect();
    numbers.sort_unstable();
    let newest = numbers.iter().copied().rfind(|number| *number < segment::FIRST_KEPT);
    let mut damages = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        if at % TELL_EVERY == 0 {
            tracing::info!(segment = at, of = numbers.len(), "reading the journal back");
        }
        // The newest segment of the log, and kept ones, may have an end that nobody had been promised.
        let may_be_open = Some(*number) == newest || *number >= segment::FIRST_KEPT;
        match recovery::verify(disk, *number, may_be_open) {
            Ok(()) => {}
            Err(error @ (OpenError::Damaged { .. } | OpenError::Io { .. })) => {
                damages.push(error.to_string())
            }
            Err(other) => return Err(other),
        }
    }
    if let Err(error) = probe(disk) {
        damages.push(format!("a probe could not be written and read back: {error}"));
    }
    if damages.is_empty() {
        return Ok(());
    }
    let more = damages.len().saturating_sub(MAX_TOLD);
    damages.truncate(MAX_TOLD);
    if more > 0 {
        damages.push(format!("and {more} more"));
    }
    Err(OpenError::Unproven { dir: disk.path(""), damages: damages.join("; ") })
}

fn probe(disk: &dyn Disk) -> io::Result<()> {
    let pattern: Vec<u8> = (0..PROBE_BYTES).map(|at| (at % 251) as u8).collect();
    let file = disk.create(PROBE, 0)?;
    file.write_at(&mut [IoSlice::new(&pattern)], 0)?;
    file.sync_data()?;
    file.forget_cached()?;
    let mut found = vec![0; PROBE_BYTES];
    file.read_at(&mut found, 0)?;
    if found != pattern {
        return Err(io::Error::other("it reads differently"));
    }
    disk.remove(PROBE)?;
    disk.sync_dir()
}
