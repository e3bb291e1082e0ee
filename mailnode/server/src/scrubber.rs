//! Reads the journal's segments from the disk, one after the other at a bounded rate, and has repaired what has rotted.
//!
//! A body that is referred to comes back from another replica ([`crate::repairer`]). A segment that the logs need is left
//! behind by them ([`Consensus::retire_log`]). What nobody needs is counted. How far a pass has come is kept over a
//! restart, so that a node which is restarted every day gets to the end as well, and the age of the last pass is true.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use quorumail_consensus::Consensus;
use quorumail_journal::{Journal, Position};
use quorumail_replica::{Looked, Rot, leave_behind, look};
use quorumail_store::{Findings, JournalBodies, Repair as _, Store};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{compactor::pace, config, repairer::Repairer};

/// Between looks while no pass is under way.
const LOOK: Duration = Duration::from_secs(1);
/// What could not be repaired is tried again after so long.
const RETRY: Duration = Duration::from_secs(30);
/// While mail waits for the disk, a pass goes on at this part of its rate.
const YIELD: u64 = 4;
/// Rotten records that are remembered, so that each is counted and told once.
const REMEMBERED: usize = 65_536;
/// Name of the file that tells how far a pass has come.
const FILE: &str = "scrub.yaml";
/// Version of that file.
const VERSION: u32 = 1;

/// What scrubbing did since the start.
#[derive(Debug, Default)]
pub struct Totals {
    /// Bytes read.
    pub bytes: AtomicU64,
    /// Rotten records with a body that is referred to.
    pub bodies: AtomicU64,
    /// Rotten records that a log needed.
    pub log: AtomicU64,
    /// Rotten records that nobody needed.
    pub dead: AtomicU64,
    /// Segments that the logs have left behind because something in them had rotted.
    pub retired: AtomicU64,
    /// Tries to do so that failed.
    pub not_retired: AtomicU64,
    /// Segments that the logs have yet to leave behind.
    pub open: AtomicU64,
    /// When the last full pass ended, in Unix seconds; zero: none has.
    finished: AtomicU64,
}

impl Totals {
    /// Seconds since the last full pass; none when there was none.
    pub fn last_pass_age(&self) -> Option<u64> {
        match self.finished.load(Relaxed) {
            0 => None,
            finished => Some(unix_seconds().saturating_sub(finished)),
        }
    }
}

/// What scrubbing works with.
pub struct Scrubbing {
    /// Who refers to what.
    pub store: Store,
    /// Whose logs they are.
    pub consensus: Consensus,
    /// Where bodies lie.
    pub bodies: JournalBodies,
    /// The same, to see whether mail waits for the disk.
    pub journal: Journal,
    /// Gets bodies back.
    pub repairer: Arc<Repairer>,
    /// How fast and how often.
    pub options: config::Scrub,
    /// The node's data directory.
    pub dir: PathBuf,
    /// For the metrics.
    pub totals: Arc<Totals>,
}

/// How far a pass has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Progress {
    version: u32,
    /// The number of the segment to go on with; zero while no pass is under way.
    next: u64,
    /// When the pass began, or the last one did; in Unix seconds.
    begun: u64,
    /// When the last full pass ended; zero when none has.
    finished: u64,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Progress {
    fn new() -> Self {
        Self { version: VERSION, next: 0, begun: 0, finished: 0 }
    }

    /// What the file says. It only saves work, so one that cannot be understood is as good as none.
    fn load(dir: &Path) -> Self {
        let text = match fs::read_to_string(dir.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::new(),
            Err(error) => {
                tracing::warn!(%error, FILE, "it cannot be told how far the last scrub came; it begins anew");
                return Self::new();
            }
        };
        match serde_yaml::from_str::<Self>(&text) {
            Ok(progress) if progress.version == VERSION => progress,
            _ => {
                tracing::warn!(FILE, "it is not understood how far the last scrub came; it begins anew");
                Self::new()
            }
        }
    }

    /// Not synced: what a crash takes of it is read again.
    fn save(&self, dir: &Path) {
        let text = serde_yaml::to_string(self).expect("numbers can always be written as YAML");
        let new = dir.join(format!("{FILE}.new"));
        let saved = fs::write(&new, text).and_then(|()| fs::rename(&new, dir.join(FILE)));
        if let Err(error) = saved {
            tracing::warn!(%error, FILE, "how far the scrub has come could not be kept");
        }
    }

    /// Whether there is something to read now.
    fn is_due(&self, every: Duration, now: u64) -> bool {
        // A clock that was set back must not stop it for long.
        self.next > 0 || now < self.begun || now - self.begun >= every.as_secs()
    }
}

impl Scrubbing {
    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let scrub = Arc::new(self);
        let mut progress = Progress::load(&scrub.dir);
        scrub.totals.finished.store(progress.finished, Relaxed);
        let (mut seen, mut rotten_log) = (HashSet::new(), BTreeSet::new());
        let mut retried = Instant::now();
        while !stop.is_cancelled() {
            if retried.elapsed() >= RETRY {
                scrub.retry(&mut rotten_log).await;
                retried = Instant::now();
            }
            let met = scrub.repairer.take_rotten_log();
            if !met.is_empty() {
                rotten_log.extend(met);
                scrub.retire(&mut rotten_log).await;
            }
            let is_on = scrub.options.bytes_per_second > 0;
            if !is_on || !progress.is_due(scrub.options.every, unix_seconds()) {
                // An elapsed time is the normal case.
                let _ = tokio::time::timeout(LOOK, stop.cancelled()).await;
                continue;
            }
            let (on, until) = (Arc::clone(&scrub), stop.clone());
            let step = tokio::task::spawn_blocking(move || {
                let rotten = on.step(&mut progress, &mut seen, &until);
                (progress, seen, rotten)
            });
            // Fails only when the step panicked: an invariant is broken.
            let Ok((progress_, seen_, rotten)) = step.await else {
                tracing::error!("scrubbing has ended: a step of it panicked");
                return;
            };
            (progress, seen) = (progress_, seen_);
            if let Some(segment) = rotten {
                rotten_log.insert(segment);
                scrub.retire(&mut rotten_log).await;
            }
        }
    }

    /// Reads one segment, or ends the pass. Answers the segment when the logs must leave it behind.
    fn step(
        &self,
        progress: &mut Progress,
        seen: &mut HashSet<Position>,
        stop: &CancellationToken,
    ) -> Option<u64> {
        if progress.next == 0 {
            progress.begun = unix_seconds();
        }
        let mut next = |bytes: u64| -> ControlFlow<()> {
            self.totals.bytes.fetch_add(bytes, Relaxed);
            let rate = self.options.bytes_per_second;
            let is_busy = self.journal.pending_bytes() > 0;
            pace(bytes, if is_busy { (rate / YIELD).max(1) } else { rate }, stop)
        };
        let rotten = match look(&self.store, &self.bodies, progress.next, &mut next) {
            Ok(Looked::End) => {
                progress.next = 0;
                progress.finished = unix_seconds();
                self.totals.finished.store(progress.finished, Relaxed);
                tracing::info!(
                    seconds = progress.finished.saturating_sub(progress.begun),
                    "scrubbed all of the journal"
                );
                None
            }
            Ok(Looked::Segment(segment, rot)) => {
                let rotten = rot.and_then(|rot| self.mend(segment, rot, seen, stop));
                if stop.is_cancelled() {
                    return None;
                }
                progress.next = segment + 1;
                rotten
            }
            Err(reason) => {
                tracing::warn!(reason, "the segments of the journal cannot be told; the scrub begins anew");
                progress.next = 0;
                None
            }
        };
        progress.save(&self.dir);
        rotten
    }

    /// Has what is lost in a segment repaired.
    fn mend(
        &self,
        segment: u64,
        rot: Rot,
        seen: &mut HashSet<Position>,
        stop: &CancellationToken,
    ) -> Option<u64> {
        self.count(segment, &rot.findings, rot.lost_from, seen);
        for lost in rot.findings.bodies {
            if stop.is_cancelled() {
                return None;
            }
            // How it ended is told and counted there.
            let _ = self.repairer.body(lost);
        }
        rot.is_log.then_some(segment)
    }

    fn count(&self, segment: u64, findings: &Findings, lost_from: Option<u64>, seen: &mut HashSet<Position>) {
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        let mut new = |positions: &mut dyn Iterator<Item = Position>| {
            positions.filter(|at| seen.insert(*at)).count() as u64
        };
        let bodies = new(&mut findings.bodies.iter().map(|lost| lost.place.record));
        let (log, dead) = (new(&mut findings.log.iter().copied()), new(&mut findings.dead.iter().copied()));
        self.totals.bodies.fetch_add(bodies, Relaxed);
        self.totals.log.fetch_add(log, Relaxed);
        self.totals.dead.fetch_add(dead, Relaxed);
        if bodies + log + dead > 0 || lost_from.is_some() {
            let lost_from = lost_from.map(|offset| format!("unreadable from {offset} on"));
            tracing::error!(segment, bodies, log, dead, lost_from, "records have rotted on the disk here");
        }
    }

    /// Has the logs leave behind what has rotted.
    async fn retire(&self, segments: &mut BTreeSet<u64>) {
        let left = leave_behind(&self.consensus, &self.journal, segments).await;
        self.totals.retired.fetch_add(left.retired, Relaxed);
        self.totals.not_retired.fetch_add(left.failed, Relaxed);
        self.totals.open.store(segments.len() as u64, Relaxed);
    }

    /// Tries again what could not be repaired.
    async fn retry(self: &Arc<Self>, segments: &mut BTreeSet<u64>) {
        self.retire(segments).await;
        let repairer = Arc::clone(&self.repairer);
        // It ends early when the node does.
        let _ = tokio::task::spawn_blocking(move || {
            for lost in repairer.open() {
                let _ = repairer.body(lost);
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_goes_on_after_a_restart_and_the_next_one_begins_when_it_is_due() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Progress::load(dir.path()), Progress::new());
        let progress = Progress { next: (1 << 62) + 3, begun: 1000, finished: 900, ..Progress::new() };
        progress.save(dir.path());
        assert_eq!(Progress::load(dir.path()), progress);
        let hour = Duration::from_secs(3600);
        assert!(progress.is_due(hour, 1001), "it is under way");
        let ended = Progress { next: 0, ..progress };
        assert!(!ended.is_due(hour, 4599) && ended.is_due(hour, 4600));
        assert!(ended.is_due(hour, 10), "the clock was set back");
    }

    #[test]
    fn a_file_that_is_not_understood_costs_a_pass_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "next: 3", "version: 2\nnext: 3\nbegun: 1\nfinished: 1\n", "\u{0}"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(Progress::load(dir.path()), Progress::new(), "{text:?}");
        }
    }
}
