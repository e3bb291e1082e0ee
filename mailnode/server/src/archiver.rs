//! The continuous archive: what the groups that this node leads commit is shipped to a repository of backups, so that a
//! restore can end at any instant.
//!
//! Whoever wants an archive tells every node where ([`Archiver::start`], again after a restart: the credentials are in
//! memory only). Each group is shipped by its leader, in runs of its committed log, oldest first. Where to go on is read from
//! the repository, so a change of leaders costs a listing and leaves no gap; two that take each other for deposed ship
//! the same runs. Replicas that do not lead keep their log from there on, for they may lead next. What has been purged
//! before it was shipped is a gap: it is told, and the next backup ends it.
//!
//! When everything of a group is shipped, the node asks a majority whether there is more, as a read does. Only then
//! it says in the repository up to which instant the archive is complete.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quorumail_backup::{
    Repository, RepositoryConfig, RepositoryError,
    archive::{RUN_BYTES, RunBuilder, Shipped},
};
use quorumail_consensus::{CommittedError, Consensus, GroupId};
use quorumail_store::{Command, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::groups;

/// Bounds of the time within which what is committed should be shipped.
pub(crate) const LAG: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(24 * 3600);
/// Read from the log at a time, in bytes.
const READ_BYTES: u64 = 1 << 20;
/// So many entries that wait are shipped before their time.
const SHIPPED_AT_ONCE: u64 = 2000;
/// How often a replica that does not lead looks how far the leader has shipped, and the pause between rounds at most.
const LOOK: Duration = Duration::from_secs(60);
/// Within which a majority must say whether there is more.
const CURRENT_WITHIN: Duration = Duration::from_secs(5);
/// After a failure, before the next try: it doubles up to the largest.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// What is to be archived where.
#[derive(Debug, Clone)]
pub struct Target {
    /// The repository; it must exist.
    pub repository: RepositoryConfig,
    /// Within what time, see [`LAG`].
    pub max_lag: Duration,
    /// Equal for what is the same target.
    pub digest: blake3::Hash,
}

/// How far one group is, as seen from here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether this node ships it.
    pub ships: bool,
    /// The log index that is shipped next.
    pub next: u64,
    /// Up to when everything acknowledged is known to be in the repository.
    pub through: Option<Timestamp>,
    /// Since when something committed may have been waiting to be shipped: the last look at which nothing waited.
    pub waiting: Option<Instant>,
    /// Why this group does not go on, or log that was purged before it was shipped: the last time, in words.
    pub trouble: Option<String>,
}

impl Standing {
    /// For how long, at most, the oldest of what is known to wait has been waiting.
    pub fn lag(&self) -> Duration {
        self.waiting.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether an archive is wanted.
    pub running: bool,
    /// Why nothing goes on, in words.
    pub error: Option<String>,
    /// By group.
    pub groups: BTreeMap<u32, Standing>,
}

/// For the metrics: since the node was started.
#[derive(Debug, Default)]
pub struct Totals {
    /// Bytes of commands shipped.
    pub bytes: AtomicU64,
    /// Runs shipped.
    pub runs: AtomicU64,
    /// Rounds that failed.
    pub failures: AtomicU64,
    /// Times that log had been purged before it was shipped.
    pub gaps: AtomicU64,
}

/// Ships what this node leads. Clones share it.
#[derive(Clone)]
pub struct Archiver(Arc<Inner>);

struct Inner {
    consensus: Consensus,
    node: u64,
    /// Unique name of the cluster.
    cluster: String,
    wanted: watch::Sender<Option<Target>>,
    /// When it is not wanted any more, unless it is asked for again; none: never.
    until: Mutex<Option<Instant>>,
    report: Mutex<Report>,
    totals: Totals,
}

/// What is remembered of a group between rounds.
#[derive(Debug, Default)]
struct Course {
    /// Next log index to ship, while this node has led the group without a break.
    next: Option<u64>,
    /// A log index before which everything is known to be shipped.
    known: Option<u64>,
    /// Since when something may be waiting.
    waiting: Option<Instant>,
    /// The last look at which nothing waited.
    clear: Option<Instant>,
    /// When a replica that does not lead looked last.
    looked: Option<Instant>,
}

impl Archiver {
    /// Ships nothing until it is told where to.
    pub fn new(consensus: Consensus, node: u64, cluster: String) -> Self {
        Self(Arc::new(Inner {
            consensus,
            node,
            cluster,
            wanted: watch::Sender::new(None),
            until: Mutex::new(None),
            report: Mutex::default(),
            totals: Totals::default(),
        }))
    }

    /// Ships to there from now on, for so long or, without a time, until it is told otherwise; what was shipped to
    /// another place before stays as it is. Asked for the same again, it goes on.
    pub fn start(&self, target: Target, keep: Option<Duration>) {
        *self.0.until.lock() = keep.map(|keep| Instant::now() + keep);
        self.0.wanted.send_if_modified(|wanted| {
            let is_new = wanted.as_ref().is_none_or(|before| before.digest != target.digest);
            if is_new {
                tracing::info!(repository = %target.repository.location, max_lag = ?target.max_lag, "the archive begins");
                *wanted = Some(target);
            }
            is_new
        });
    }

    /// Ships nothing from now on, and keeps no log for it.
    pub fn stop(&self) {
        self.0.wanted.send_if_modified(|wanted| wanted.take().is_some());
    }

    /// How far it is.
    pub fn report(&self) -> Report {
        self.0.report.lock().clone()
    }

    /// What was done.
    pub fn totals(&self) -> &Totals {
        &self.0.totals
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut wanted = self.0.wanted.subscribe();
        loop {
            let target = wanted.borrow_and_update().clone();
            let ship = async {
                match target {
                    Some(target) => self.ship(target).await,
                    None => {
                        self.0.rest();
                        std::future::pending().await
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
                () = ship => {
                    tracing::warn!("the archive ends: it has not been asked for again in time");
                    self.stop();
                }
            }
        }
    }

    /// Round after round, until nobody wants it any more.
    async fn ship(&self, target: Target) {
        let between = (target.max_lag / 4).clamp(Duration::from_millis(500), LOOK);
        let mut pause = *PAUSES.start();
        let mut rounds = Rounds {
            inner: &self.0,
            max_lag: target.max_lag,
            courses: BTreeMap::new(),
            told: None,
            claims: None,
        };
        while !self.0.is_over() {
            let failed = match Repository::open(target.repository.clone()).await {
                Err(error) => error,
                Ok(repository) => loop {
                    if self.0.is_over() {
                        return;
                    }
                    if let Err(error) = rounds.next(&repository).await {
                        break error;
                    }
                    pause = *PAUSES.start();
                    self.0.report.lock().error = None;
                    tokio::time::sleep(between).await;
                },
            };
            self.0.totals.failures.fetch_add(1, Relaxed);
            tracing::warn!(error = %failed, "the archive does not go on");
            {
                let mut report = self.0.report.lock();
                report.running = true;
                report.error = Some(failed.to_string());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(*PAUSES.end());
        }
    }
}

impl Inner {
    fn is_over(&self) -> bool {
        self.until.lock().is_some_and(|until| until <= Instant::now())
    }

    /// Nothing is wanted: no log is kept, nothing is told.
    fn rest(&self) {
        for group in std::mem::take(&mut *self.report.lock()).groups.into_keys() {
            self.consensus.want_log(GroupId(group), None);
        }
    }

    fn note(&self, group: u32, change: impl FnOnce(&mut Standing)) {
        change(self.report.lock().groups.entry(group).or_default());
    }
}

/// What is remembered while the target is the same.
struct Rounds<'a> {
    inner: &'a Inner,
    max_lag: Duration,
    courses: BTreeMap<u32, Course>,
    /// When the repository was last told how far the groups are.
    told: Option<Instant>,
    /// What it was told of each group; none before it was asked what that was. What was true of a group stays true while
    /// it is busy, and when another node leads it: the window must not shrink.
    claims: Option<BTreeMap<u32, Shipped>>,
}

impl Rounds<'_> {
    async fn next(&mut self, repository: &Repository) -> Result<(), RepositoryError> {
        let looked = Instant::now();
        let held: BTreeMap<u32, u64> = self
            .inner
            .consensus
            .status()
            .into_iter()
            .map(|status| (status.group.0, status.applied_index.map_or(0, |applied| applied + 1)))
            .collect();
        self.courses.retain(|group, _| held.contains_key(group));
        {
            let mut report = self.inner.report.lock();
            report.running = true;
            report.groups.retain(|group, _| held.contains_key(group));
        }
        for (group, applied) in held {
            let mut course = self.courses.remove(&group).unwrap_or_default();
            let gone_on = if self.inner.consensus.leads(GroupId(group)) {
                self.ship_group(repository, group, &mut course, (applied, looked)).await
            } else {
                self.follow(repository, group, &mut course).await
            };
            self.courses.insert(group, course);
            gone_on?;
        }
        self.tell(repository).await
    }

    /// Keeps the log that another leader has not shipped yet.
    async fn follow(
        &self,
        repository: &Repository,
        group: u32,
        course: &mut Course,
    ) -> Result<(), RepositoryError> {
        (course.next, course.waiting, course.clear) = (None, None, None);
        if course.looked.is_none_or(|at| at.elapsed() >= LOOK) {
            course.known = repository.archive_next(&self.inner.cluster, group, course.known).await?;
            course.looked = Some(Instant::now());
            self.inner.consensus.want_log(GroupId(group), course.known);
        }
        let next = course.known.unwrap_or(0);
        self.inner.note(group, |standing| *standing = Standing { next, ..Standing::default() });
        Ok(())
    }

    /// Ships what is committed here and has waited long enough, or is much.
    async fn ship_group(
        &self,
        repository: &Repository,
        group: u32,
        course: &mut Course,
        (applied, looked): (u64, Instant),
    ) -> Result<(), RepositoryError> {
        course.looked = None;
        let inner = self.inner;
        let mut next = match course.next {
            Some(next) => next,
            // What came before the first backup is of no use without it.
            None => repository.archive_next(&inner.cluster, group, course.known).await?.unwrap_or(applied),
        };
        loop {
            course.next = Some(next);
            course.known = Some(next);
            inner.consensus.want_log(GroupId(group), Some(next));
            let waits = applied.saturating_sub(next);
            // It came after the last look at which nothing waited: nobody knows when.
            course.waiting = (waits > 0).then(|| course.waiting.or(course.clear).unwrap_or(looked));
            if waits == 0 {
                course.clear = Some(looked);
            }
            let waited = course.waiting.map_or(Duration::ZERO, |since| since.elapsed());
            inner.note(group, |standing| {
                (standing.ships, standing.next, standing.waiting) = (true, next, course.waiting);
            });
            if waits == 0 || (waits < SHIPPED_AT_ONCE && waited < self.max_lag / 2) {
                return Ok(());
            }
            let mut run = RunBuilder::new(&inner.cluster, group, next)?;
            let after = match self.fill(&mut run, group, next).await? {
                Ok(after) => after,
                Err(CommittedError::Purged { begins, .. }) => {
                    self.gap(group, next, begins);
                    next = begins;
                    continue;
                }
                // It was taken away from this node just now.
                Err(CommittedError::NotHeld(_)) => return Ok(()),
                // The others go on.
                Err(error @ CommittedError::Unreadable { .. }) => {
                    inner.totals.failures.fetch_add(1, Relaxed);
                    tracing::warn!(group, %error, "the archive of a group does not go on");
                    inner.note(group, |standing| standing.trouble = Some(error.to_string()));
                    return Ok(());
                }
            };
            if after == next {
                return Ok(());
            }
            let bytes = run.bytes() as u64;
            let info = repository.ship(run.finish(Timestamp(0))).await?;
            inner.totals.bytes.fetch_add(bytes, Relaxed);
            inner.totals.runs.fetch_add(1, Relaxed);
            inner.note(group, |standing| standing.through = standing.through.max(Some(info.last_at)));
            next = after;
        }
    }

    /// Puts committed log into a run until it is full or there is no more; answers the log index after it.
    async fn fill(
        &self,
        run: &mut RunBuilder,
        group: u32,
        from: u64,
    ) -> Result<Result<u64, CommittedError>, RepositoryError> {
        let mut next = from;
        while run.bytes() < RUN_BYTES {
            let log = match self.inner.consensus.committed(GroupId(group), next, READ_BYTES).await {
                Ok(log) => log,
                Err(_) if next > from => break,
                Err(error) => return Ok(Err(error)),
            };
            if log.covers.is_empty() {
                break;
            }
            let mut commands = log.commands.into_iter().peekable();
            for index in log.covers.clone() {
                let command = commands.next_if(|(at, _)| *at == index).map(|(_, command)| command);
                // What is no command of ours was refused when it was applied, and is when it is applied again.
                let at = command.as_ref().and_then(|bytes| Some(Command::decode(bytes).ok()?.at));
                run.push(index, command.as_deref().map(|bytes| (at.unwrap_or(Timestamp(0)), bytes)))?;
            }
            next = log.covers.end;
        }
        Ok(Ok(next))
    }

    fn gap(&self, group: u32, next: u64, begins: u64) {
        let gap = format!(
            "log entries {next} to {} were purged before they were archived",
            begins.saturating_sub(1)
        );
        tracing::error!(group, gap, "the archive has a gap, which the next backup ends");
        self.inner.totals.gaps.fetch_add(1, Relaxed);
        self.inner.note(group, |standing| (standing.trouble, standing.through) = (Some(gap), None));
    }

    /// Says in the repository up to when the groups of which all is shipped are complete.
    async fn tell(&mut self, repository: &Repository) -> Result<(), RepositoryError> {
        if self.told.is_some_and(|at| at.elapsed() < self.max_lag / 2) {
            return Ok(());
        }
        let inner = self.inner;
        let candidates = self.courses.iter().filter(|(_, course)| course.waiting.is_none());
        let candidates = candidates.filter_map(|(group, course)| Some((*group, course.next?)));
        let ask = candidates.map(|(group, next)| async move {
            let through = groups::now();
            inner.consensus.catch_up(GroupId(group), CURRENT_WITHIN).await.ok()?;
            let status = inner.consensus.status().into_iter().find(|status| status.group.0 == group)?;
            let applied = status.applied_index.map_or(0, |applied| applied + 1);
            (applied == next && inner.consensus.leads(GroupId(group))).then_some(Shipped {
                group,
                next,
                through,
            })
        });
        let shipped: Vec<Shipped> = futures::future::join_all(ask).await.into_iter().flatten().collect();
        if shipped.is_empty() {
            return Ok(());
        }
        let claims = match &mut self.claims {
            Some(claims) => claims,
            none => {
                let told = repository.told_shipped(&inner.cluster, inner.node).await?;
                none.insert(told.into_iter().map(|told| (told.group, told)).collect())
            }
        };
        claims.extend(shipped.iter().map(|told| (told.group, *told)));
        let all: Vec<Shipped> = claims.values().copied().collect();
        repository.tell_shipped(&inner.cluster, inner.node, &all).await?;
        self.told = Some(Instant::now());
        for told in shipped {
            inner.note(told.group, |standing| {
                (standing.through, standing.waiting) = (Some(told.through), None);
            });
        }
        Ok(())
    }
}
