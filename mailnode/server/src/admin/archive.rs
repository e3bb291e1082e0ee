//! The continuous archive: where to, how far it is.

use std::time::Duration;

use prost::Message as _;
use quorumail_proto::admin::{ArchiveRequest, ArchiveStatus, ArchivedGroup};
use tonic::Status;

use super::backup::repository;
use crate::archiver::{Archiver, LAG, Report, Target};

/// What nobody asked to be otherwise.
const DEFAULT_LAG: Duration = Duration::from_secs(60);

/// Does what is asked; `cluster` is the one that this node belongs to.
pub(super) fn archive(
    archiver: &Archiver,
    cluster: &str,
    request: ArchiveRequest,
) -> Result<ArchiveStatus, Status> {
    if request.stop {
        if request.repository.is_some() {
            return Err(Status::invalid_argument("the archive cannot begin and end at once"));
        }
        archiver.stop();
        return Ok(ArchiveStatus::default());
    }
    if request.repository.is_some() {
        if request.cluster != cluster {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {cluster}, not to {:?}",
                request.cluster
            )));
        }
        let max_lag = match request.max_lag_seconds {
            0 => DEFAULT_LAG,
            seconds => Duration::from_secs(seconds.into()),
        };
        if !LAG.contains(&max_lag) {
            return Err(Status::invalid_argument(format!(
                "what is committed can be shipped within {:?} to {:?}, not within {max_lag:?}",
                LAG.start(),
                LAG.end()
            )));
        }
        let keep = (request.keep_seconds > 0).then(|| Duration::from_secs(request.keep_seconds.into()));
        let same = ArchiveRequest { keep_seconds: 0, ..request.clone() };
        let digest = blake3::hash(&same.encode_to_vec());
        let repository = repository(request.repository)?;
        archiver.start(Target { repository, max_lag, digest }, keep);
    }
    Ok(status(archiver.report()))
}

fn status(report: Report) -> ArchiveStatus {
    let groups = report.groups.into_iter().filter(|(_, standing)| standing.ships);
    let groups = groups.map(|(group, standing)| ArchivedGroup {
        group,
        through_unix_ms: standing.through.map_or(0, |through| through.0),
        lag_ms: u64::try_from(standing.lag().as_millis()).unwrap_or(u64::MAX),
        next_index: standing.next,
        trouble: standing.trouble.unwrap_or_default(),
    });
    ArchiveStatus {
        running: report.running,
        groups: groups.collect(),
        error: report.error.unwrap_or_default(),
    }
}
