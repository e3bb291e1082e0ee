//! The continuous archive: runs of committed commands between backups, so that any instant in between can be restored.
//!
//! A run is contiguous in the log of one group: it starts where the one before ended. Its name tells which part of the log
//! it holds and up to which instant; inside stand the commands, each with its log index and the proposer's time. Where nothing
//! happens no runs are made: each node has one object, written again and again, that tells up to which instant that is so.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use quorumail_store::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Manifest, Repository, RepositoryError,
    background::background,
    seal::{Kind, MAX_PLAIN},
};

/// A run is better closed once it has this size, in bytes.
pub const RUN_BYTES: usize = 8 << 20;
/// Index, time, length.
const ENTRY_HEAD: usize = 20;
/// Below a cluster's part of the archive: what its nodes tell, see [`Repository::tell_shipped`].
const SHIPPED: &str = "shipped/";
/// Longest uid of a cluster.
const MAX_UID: usize = 128;

/// Gathers committed commands of a group.
#[derive(Debug)]
pub struct RunBuilder {
    cluster_uid: String,
    group: u32,
    first: u64,
    next: u64,
    first_at: Option<Timestamp>,
    last_at: Timestamp,
    plain: Vec<u8>,
}

/// A run to be shipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    info: RunInfo,
    plain: Vec<u8>,
}

/// A run in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Of which cluster.
    pub cluster_uid: String,
    /// Of which group.
    pub group: u32,
    /// The first log index.
    pub first: u64,
    /// The last log index; one less than `first` in a run that only tells that nothing was committed.
    pub last: u64,
    /// The time of its first command.
    pub first_at: Timestamp,
    /// Everything that was committed up to this instant is in it or in runs before it.
    pub last_at: Timestamp,
    /// Length of the object in bytes; 0 before it is shipped.
    pub bytes: u64,
    salt: u32,
}

/// A command in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedCommand<'a> {
    /// Raft log index.
    pub index: u64,
    /// The proposer's clock.
    pub at: Timestamp,
    /// As it was proposed.
    pub command: &'a [u8],
    /// Where it starts in the run's plain bytes.
    pub offset: usize,
}

/// What a node tells of a group in which nothing is left to be shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// Which group.
    pub group: u32,
    /// The log index that is shipped next: everything before it is in runs.
    pub next: u64,
    /// Everything that was acknowledged up to this instant is.
    pub through: Timestamp,
}

/// What can be restored: every instant from `earliest` to `latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first instant.
    pub earliest: Timestamp,
    /// The last instant.
    pub latest: Timestamp,
}

/// What a backup holds of a group: where runs go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Raft log index.
    pub log_index: u64,
    /// When it was taken.
    pub at: Timestamp,
}

impl RunBuilder {
    /// A run that starts at a log index: the one after the last run's, or after a backup's.
    ///
    /// # Errors
    /// [`RepositoryError::BadConfiguration`] for a uid that is not made of 1 to 64 letters, digits, dots, hyphens and
    /// underscores.
    pub fn new(cluster_uid: &str, group: u32, first: u64) -> Result<Self, RepositoryError> {
        check_uid(cluster_uid)?;
        let cluster_uid = cluster_uid.to_owned();
        Ok(Self {
            cluster_uid,
            group,
            first,
            next: first,
            first_at: None,
            last_at: Timestamp(0),
            plain: Vec::new(),
        })
    }

    /// Adds the next entry of the log; none for one without a command.
    ///
    /// # Errors
    /// [`RepositoryError::BadConfiguration`] when it is not the next one, or longer than a run may be.
    pub fn push(&mut self, index: u64, command: Option<(Timestamp, &[u8])>) -> Result<(), RepositoryError> {
        if index != self.next {
            let reason = format!(
                "log index {index} was archived after {}: the archive has no gaps",
                self.next.wrapping_sub(1)
            );
            return Err(RepositoryError::BadConfiguration(reason));
        }
        if let Some((at, command)) = command {
            if self.plain.len() + ENTRY_HEAD + command.len() > MAX_PLAIN {
                let reason =
                    format!("a run of the archive would be longer than {MAX_PLAIN} bytes; close it earlier");
                return Err(RepositoryError::BadConfiguration(reason));
            }
            let len = u32::try_from(command.len()).expect("it is shorter than a run");
            self.plain.extend_from_slice(&index.to_le_bytes());
            self.plain.extend_from_slice(&at.0.to_le_bytes());
            self.plain.extend_from_slice(&len.to_le_bytes());
            self.plain.extend_from_slice(command);
            self.first_at.get_or_insert(at);
            self.last_at = self.last_at.max(at);
        }
        self.next += 1;
        Ok(())
    }

    /// Bytes of commands so far; a run of [`RUN_BYTES`] or more is better closed.
    pub fn bytes(&self) -> usize {
        self.plain.len()
    }

    /// The log index that comes next.
    pub fn next_index(&self) -> u64 {
        self.next
    }

    /// The run. `through`: everything that was committed up to this instant was pushed, here or before.
    pub fn finish(self, through: Timestamp) -> Run {
        let last_at = self.last_at.max(through);
        let info = RunInfo {
            cluster_uid: self.cluster_uid,
            group: self.group,
            first: self.first,
            last: self.next.wrapping_sub(1),
            first_at: self.first_at.unwrap_or(last_at),
            last_at,
            bytes: 0,
            salt: rand::random(),
        };
        Run { info, plain: self.plain }
    }
}

fn check_uid(cluster_uid: &str) -> Result<(), RepositoryError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    let is_uid = (1..=MAX_UID).contains(&cluster_uid.len())
        && cluster_uid.bytes().all(is_plain)
        && !cluster_uid.bytes().all(|byte| byte == b'.');
    if !is_uid {
        let reason = format!("the archive cannot be kept for a cluster with the uid `{cluster_uid}`");
        return Err(RepositoryError::BadConfiguration(reason));
    }
    Ok(())
}

/// A uid as a part of a name: on Kubernetes it is `namespace/name`, and a slash would make two of it.
fn in_name(cluster_uid: &str) -> String {
    cluster_uid.replace('_', "_5f").replace('/', "_2f")
}

/// The uid that a part of a name stands for.
fn from_name(part: &str) -> Option<String> {
    let mut pieces = part.split('_');
    let mut uid = pieces.next()?.to_owned();
    for piece in pieces {
        let (sign, rest) = piece
            .strip_prefix("5f")
            .map(|rest| ('_', rest))
            .or_else(|| Some(('/', piece.strip_prefix("2f")?)))?;
        uid.push(sign);
        uid.push_str(rest);
    }
    Some(uid)
}

impl RunInfo {
    /// Whether it only tells that nothing was committed.
    pub fn is_empty(&self) -> bool {
        self.last < self.first
    }

    pub(crate) fn object(&self) -> String {
        let Self { cluster_uid, group, first, last, first_at, last_at, salt, .. } = self;
        let (first_at, last_at) = (first_at.0.max(0), last_at.0.max(0));
        format!(
            "archive/{}/{group}/{first:020}-{last:020}-{first_at:013}-{last_at:013}-{salt:08x}",
            in_name(cluster_uid)
        )
    }

    /// The run of an object's name.
    pub(crate) fn from_object(name: &str, bytes: u64) -> Option<Self> {
        let (uid, rest) = name.strip_prefix("archive/")?.split_once('/')?;
        let (group, rest) = rest.split_once('/')?;
        let parts: Vec<&str> = rest.split('-').collect();
        let [first, last, first_at, last_at, salt] = parts[..] else { return None };
        let run = Self {
            cluster_uid: from_name(uid)?,
            group: group.parse().ok()?,
            first: first.parse().ok()?,
            last: last.parse().ok()?,
            first_at: Timestamp(first_at.parse().ok()?),
            last_at: Timestamp(last_at.parse().ok()?),
            bytes,
            salt: u32::from_str_radix(salt, 16).ok()?,
        };
        (run.object() == name && run.last.wrapping_add(1) >= run.first).then_some(run)
    }
}

/// Whether an object is what a node tells of the archive.
pub(crate) fn is_shipped(name: &str) -> bool {
    name.strip_prefix("archive/")
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, rest)| rest.starts_with(SHIPPED))
}

/// The commands in a run's plain bytes, which must be of the log indexes that its name tells, ascending.
pub(crate) fn commands<'a>(
    run: &'a RunInfo,
    plain: &'a [u8],
) -> impl Iterator<Item = Result<ArchivedCommand<'a>, RepositoryError>> {
    let (mut offset, mut from) = (0, run.first);
    std::iter::from_fn(move || {
        if offset >= plain.len() {
            return None;
        }
        let command = command_at(plain, offset).filter(|command| (from..=run.last).contains(&command.index));
        match command {
            Some(command) => {
                offset = command.offset + command.command.len();
                from = command.index + 1;
                Some(Ok(command))
            }
            None => {
                offset = plain.len();
                Some(Err(RepositoryError::damaged(run.object(), "a command in it cannot be read")))
            }
        }
    })
}

fn command_at(plain: &[u8], at: usize) -> Option<ArchivedCommand<'_>> {
    let (index, rest) = plain.get(at..)?.split_first_chunk::<8>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let command = rest.get(..u32::from_le_bytes(*len) as usize)?;
    Some(ArchivedCommand {
        index: u64::from_le_bytes(*index),
        at: Timestamp(i64::from_le_bytes(*time)),
        command,
        offset: at + ENTRY_HEAD,
    })
}

/// The runs that lead on from a point without a gap, each further than the one before.
pub fn chain(from: Point, runs: &[RunInfo]) -> Vec<&RunInfo> {
    let mut sorted: Vec<&RunInfo> = runs.iter().collect();
    sorted.sort_unstable_by_key(|run| run.first);
    let mut waiting = sorted.into_iter().peekable();
    let (mut index, mut at, mut chain) = (from.log_index, from.at, Vec::new());
    let mut best: Option<&RunInfo> = None;
    loop {
        while let Some(run) = waiting.next_if(|run| run.first <= index.saturating_add(1)) {
            if best.is_none_or(|best| (best.last, best.last_at) < (run.last, run.last_at)) {
                best = Some(run);
            }
        }
        match best {
            Some(run) if run.last > index || (run.last == index && run.last_at > at) => {
                (index, at) = (run.last, at.max(run.last_at));
                chain.push(run);
            }
            _ => break,
        }
    }
    chain
}

/// What can be restored of one group: from each point on as far as runs lead, ascending, overlapping ones joined.
pub fn windows(points: &[Point], runs: &[RunInfo]) -> Vec<Window> {
    let window = |point: &Point| {
        let latest = chain(*point, runs).iter().map(|run| run.last_at).fold(point.at, Timestamp::max);
        Window { earliest: point.at, latest }
    };
    join(points.iter().map(window).collect())
}

/// What is in windows of both.
pub fn intersect(some: &[Window], others: &[Window]) -> Vec<Window> {
    let both = some.iter().flat_map(|a| {
        others.iter().map(|b| Window { earliest: a.earliest.max(b.earliest), latest: a.latest.min(b.latest) })
    });
    join(both.filter(|window| window.earliest <= window.latest).collect())
}

fn join(mut windows: Vec<Window>) -> Vec<Window> {
    windows.sort_unstable_by_key(|window| (window.earliest, window.latest));
    let mut joined = Vec::<Window>::new();
    for window in windows {
        match joined.last_mut() {
            Some(last) if window.earliest <= last.latest => last.latest = last.latest.max(window.latest),
            _ => joined.push(window),
        }
    }
    joined
}

impl Repository {
    /// Ships a run; it is in the archive on return. Shipped again after an error, it is there twice, which does no harm.
    pub async fn ship(&self, run: Run) -> Result<RunInfo, RepositoryError> {
        let Run { info, plain } = run;
        let (repository, name) = (self.clone(), info.object());
        let sealing = name.clone();
        let sealed = background(move || repository.0.keys.seal_object(&sealing, Kind::Archive, &plain)).await;
        let bytes = sealed.len() as u64;
        self.0.objects.put(&name, sealed.into()).await?;
        Ok(RunInfo { bytes, ..info })
    }

    /// The runs of a group, ascending by first log index.
    pub async fn archive_runs(&self, cluster_uid: &str, group: u32) -> Result<Vec<RunInfo>, RepositoryError> {
        self.archive_runs_from(cluster_uid, group, 0).await
    }

    /// Those that begin at a log index or later.
    async fn archive_runs_from(
        &self,
        cluster_uid: &str,
        group: u32,
        first: u64,
    ) -> Result<Vec<RunInfo>, RepositoryError> {
        let prefix = format!("archive/{}/{group}/", in_name(cluster_uid));
        let after = (first > 0).then(|| format!("{prefix}{first:020}"));
        let found = self.0.objects.list_after(&prefix, after.as_deref()).await?;
        Ok(found.iter().filter_map(|listed| RunInfo::from_object(&listed.name, listed.bytes)).collect())
    }

    /// The log index of a group that is to be shipped next: after the last run, or, where there is none, after the newest
    /// backup; none when there is neither. `known`: that it is not before this one.
    pub async fn archive_next(
        &self,
        cluster_uid: &str,
        group: u32,
        known: Option<u64>,
    ) -> Result<Option<u64>, RepositoryError> {
        let runs = self.archive_runs_from(cluster_uid, group, known.unwrap_or(0)).await?;
        let shipped = runs.iter().map(|run| run.last.saturating_add(1)).max();
        if shipped.or(known).is_some() {
            return Ok(shipped.max(known));
        }
        let (manifests, _) = self.manifests().await?;
        let of_cluster = manifests.iter().rev().filter(|manifest| manifest.cluster.uid == cluster_uid);
        Ok(of_cluster.filter_map(|manifest| manifest.group(group)).next().map(|group| group.log_index + 1))
    }

    /// Tells of the groups that a node ships how far their archive is, in place of what it told before.
    ///
    /// # Errors
    /// [`RepositoryError::BadConfiguration`] for a uid that is none, and what writing may answer.
    pub async fn tell_shipped(
        &self,
        cluster_uid: &str,
        node: u64,
        shipped: &[Shipped],
    ) -> Result<(), RepositoryError> {
        check_uid(cluster_uid)?;
        let name = format!("archive/{}/{SHIPPED}{node}", in_name(cluster_uid));
        let plain = crate::format::encode(&shipped);
        let sealed = Bytes::from(self.0.keys.seal_object(&name, Kind::Archive, &plain));
        self.0.objects.put(&name, sealed).await
    }

    /// What a node told last with [`Repository::tell_shipped`]; nothing when that cannot be read.
    pub async fn told_shipped(&self, cluster_uid: &str, node: u64) -> Result<Vec<Shipped>, RepositoryError> {
        let name = format!("archive/{}/{SHIPPED}{node}", in_name(cluster_uid));
        match self.read_shipped(&name).await {
            Ok(told) => Ok(told),
            Err(error) if error.is_damage() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// What nodes told with [`Repository::tell_shipped`], as runs without commands. One that cannot be read tells nothing:
    /// the window is the smaller for it, and [`Repository::verify`] names it.
    async fn shipped_runs(&self, cluster_uid: &str) -> Result<Vec<RunInfo>, RepositoryError> {
        let mut runs = Vec::new();
        for listed in self.0.objects.list(&format!("archive/{}/{SHIPPED}", in_name(cluster_uid))).await? {
            let told = match self.read_shipped(&listed.name).await {
                Ok(told) => told,
                Err(error) if error.is_damage() => {
                    tracing::warn!(object = listed.name, %error, "what a node told of the archive cannot be read");
                    continue;
                }
                Err(error) => return Err(error),
            };
            runs.extend(told.into_iter().filter_map(|told| {
                Some(RunInfo {
                    cluster_uid: cluster_uid.to_owned(),
                    group: told.group,
                    first: told.next,
                    last: told.next.checked_sub(1)?,
                    first_at: told.through,
                    last_at: told.through,
                    bytes: 0,
                    salt: 0,
                })
            }));
        }
        Ok(runs)
    }

    pub(crate) async fn read_shipped(&self, name: &str) -> Result<Vec<Shipped>, RepositoryError> {
        let sealed = self.0.objects.get(name).await?;
        let plain = self.0.keys.open_object(name, Kind::Archive, &sealed)?;
        crate::format::decode(name, &plain)
    }

    /// Runs of groups of a cluster, and how far nodes told that they lead, by group.
    ///
    /// Boxed: the compiler cannot see otherwise that it can be sent.
    pub(crate) fn runs_of_groups<'a>(
        &'a self,
        cluster_uid: &'a str,
        groups: Vec<u32>,
    ) -> BoxFuture<'a, Result<BTreeMap<u32, Vec<RunInfo>>, RepositoryError>> {
        let work = async move {
            let read = |group: u32| async move {
                Ok::<_, RepositoryError>((group, self.archive_runs(cluster_uid, group).await?))
            };
            // First what was told, so that the runs it tells of are in the list.
            let told = self.shipped_runs(cluster_uid).await?;
            let mut runs: BTreeMap<u32, Vec<RunInfo>> = futures::stream::iter(groups)
                .map(read)
                .buffered(crate::repository::READS_AT_ONCE)
                .try_collect::<BTreeMap<_, _>>()
                .await?;
            for run in told {
                runs.entry(run.group).or_default().push(run);
            }
            Ok(runs)
        };
        Box::pin(work)
    }

    pub(crate) async fn read_archive_run(&self, run: &RunInfo) -> Result<Bytes, RepositoryError> {
        let name = run.object();
        let sealed = self.0.objects.get(&name).await?;
        self.0.keys.open_object(&name, Kind::Archive, &sealed)
    }

    /// What can be restored of a cluster: instants that all groups of a backup reach. Ascending.
    pub async fn window(&self, cluster_uid: &str) -> Result<Vec<Window>, RepositoryError> {
        let (manifests, _) = self.manifests().await?;
        let manifests: Vec<_> =
            manifests.into_iter().filter(|found| found.cluster.uid == cluster_uid).collect();
        let runs = self.runs_of(cluster_uid, &manifests).await?;
        Ok(join(manifests.iter().flat_map(|manifest| windows_of(manifest, &runs)).collect()))
    }

    /// The newest backup of a cluster from which an instant can be restored, with [`Repository::load`] and `until`.
    ///
    /// # Errors
    /// [`RepositoryError::OutsideWindow`], which names what can be restored.
    pub async fn for_instant(&self, cluster_uid: &str, at: Timestamp) -> Result<Manifest, RepositoryError> {
        let (manifests, _) = self.manifests().await?;
        let mut manifests: Vec<_> =
            manifests.into_iter().filter(|found| found.cluster.uid == cluster_uid).collect();
        let runs = self.runs_of(cluster_uid, &manifests).await?;
        let reaches = |manifest: &Manifest| {
            windows_of(manifest, &runs).iter().any(|window| (window.earliest..=window.latest).contains(&at))
        };
        if let Some(newest) = manifests.iter().rposition(reaches) {
            return Ok(manifests.swap_remove(newest));
        }
        let all = join(manifests.iter().flat_map(|manifest| windows_of(manifest, &runs)).collect());
        let windows = all.iter().map(|window| (window.earliest, window.latest)).collect();
        Err(RepositoryError::OutsideWindow { asked: at, windows })
    }

    async fn runs_of(
        &self,
        cluster_uid: &str,
        manifests: &[Manifest],
    ) -> Result<BTreeMap<u32, Vec<RunInfo>>, RepositoryError> {
        let groups: BTreeSet<u32> =
            manifests.iter().flat_map(|manifest| manifest.groups.iter().map(|group| group.group)).collect();
        self.runs_of_groups(cluster_uid, groups.into_iter().collect()).await
    }
}

/// What can be restored from one backup.
fn windows_of(manifest: &Manifest, runs: &BTreeMap<u32, Vec<RunInfo>>) -> Vec<Window> {
    let groups = manifest.groups.iter().map(|group| {
        let point = Point { log_index: group.log_index, at: group.applied_at };
        windows(&[point], runs.get(&group.group).map_or(&[], Vec::as_slice))
    });
    groups.reduce(|some, others| intersect(&some, &others)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(first: u64, last: u64, last_at: i64) -> RunInfo {
        let at = Timestamp(last_at);
        RunInfo {
            cluster_uid: "c".into(),
            group: 1,
            first,
            last,
            first_at: at,
            last_at: at,
            bytes: 0,
            salt: 7,
        }
    }

    fn window(earliest: i64, latest: i64) -> Window {
        Window { earliest: Timestamp(earliest), latest: Timestamp(latest) }
    }

    #[test]
    fn a_run_holds_what_was_pushed_and_has_no_gaps() {
        let mut builder = RunBuilder::new("uid-1", 3, 5).unwrap();
        builder.push(5, Some((Timestamp(50), b"five"))).unwrap();
        builder.push(6, None).unwrap();
        assert!(builder.push(8, None).is_err() && builder.push(6, None).is_err());
        builder.push(7, Some((Timestamp(49), b""))).unwrap();
        let run = builder.finish(Timestamp(60));
        let read: Vec<_> = commands(&run.info, &run.plain).map(|command| command.unwrap()).collect();
        let short: Vec<_> =
            read.iter().map(|command| (command.index, command.at.0, command.command)).collect();
        assert_eq!(short, [(5, 50, &b"five"[..]), (7, 49, b"")]);
        assert!(read.iter().all(|c| run.plain[c.offset..c.offset + c.command.len()] == *c.command));
        assert_eq!(RunInfo::from_object(&run.info.object(), 0).unwrap(), run.info);
        assert_eq!((run.info.first, run.info.last, run.info.last_at), (5, 7, Timestamp(60)));

        let idle = RunBuilder::new("uid-1", 3, 8).unwrap().finish(Timestamp(70));
        assert!(idle.info.is_empty());
        assert_eq!(RunInfo::from_object(&idle.info.object(), 0).unwrap(), idle.info);
        for uid in ["", "a b", "..", &"x".repeat(MAX_UID + 1)] {
            assert!(RunBuilder::new(uid, 0, 1).is_err(), "{uid}");
        }
    }

    #[test]
    fn a_gap_ends_a_window_and_overlaps_do_no_harm() {
        let point = |log_index, at| Point { log_index, at: Timestamp(at) };
        let runs = [run(1, 10, 110), run(11, 20, 120), run(11, 14, 115), run(21, 20, 125), run(31, 40, 140)];
        assert_eq!(windows(&[point(5, 105)], &runs), [window(105, 125)]);
        assert_eq!(
            windows(&[point(5, 105), point(20, 121), point(35, 136)], &runs),
            [window(105, 125), window(136, 140)]
        );
        assert_eq!(windows(&[point(25, 130)], &runs), [window(130, 130)]);
        assert_eq!(windows(&[], &runs), []);
        assert_eq!(intersect(&[window(1, 5), window(8, 9)], &[window(3, 8)]), [window(3, 5), window(8, 8)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_commands_of_the_run(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let run = run(5, 9, 1);
            let read: Vec<_> = commands(&run, &bytes).collect();
            let indexes: Vec<_> = read.iter().flatten().map(|command| command.index).collect();
            prop_assert!(indexes.is_sorted() && indexes.iter().all(|index| (5..=9).contains(index)));
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let read = RunInfo::from_object(&format!("archive/c/1/{text}"), 0);
            prop_assert!(read.is_none());
        }
    }

    #[test]
    fn the_uid_of_any_cluster_is_one_part_of_a_name_and_read_back() {
        for uid in ["mail/kept", "dev-0123456789abcdef", "a_b/c", "a_2fb", "x.y"] {
            check_uid(uid).unwrap();
            assert!(!in_name(uid).contains('/'), "{uid}");
            assert_eq!(from_name(&in_name(uid)).as_deref(), Some(uid));
            let run =
                RunInfo { cluster_uid: uid.to_owned(), ..RunInfo::from_object(&name_of_a_run(), 0).unwrap() };
            assert_eq!(RunInfo::from_object(&run.object(), 0), Some(run));
        }
        assert_ne!(in_name("a/b"), in_name("a_2fb"));
        assert_eq!(from_name("a_b"), None, "not a name that is given");
        assert!(check_uid("../x y").is_err() && check_uid("").is_err());
    }

    fn name_of_a_run() -> String {
        "archive/c/1/00000000000000000005-00000000000000000009-0000000000005-0000000000009-0000000a"
            .to_owned()
    }
}
