//! Which pod of a MailCluster is replaced next, and when an update is taken back. Pure: from what is observed to the next step.
//!
//! Kubernetes replaces pods when they say that they are ready, which tells nothing of the replicas that they hold. So the
//! StatefulSet's strategy is OnDelete and the operator takes pods away itself: one at a time, the highest number first, only
//! while every group has a leader and all its replicas. A pod whose process does not run protects nobody: it is replaced at once,
//! so that a broken template can be mended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt as _;
use quorumail_crds::condition::reason;
use quorumail_proto::admin::{ClusterStatus, GroupStatus};
use serde::{Deserialize, Serialize};

use super::hosts;

/// Annotation of the StatefulSet with [`Notes`].
pub const NOTES: &str = "quorumail.io/update";
/// Label that the StatefulSet controller puts on pods: the revision of the template that they were made from.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// How long the new pod may take to get well where the spec says nothing.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);
/// Shortest such time that counts: pulling an image and reading a journal take some.
const LEAST_DEADLINE: Duration = Duration::from_secs(10);
/// For how long a pod of the old template must not have been ready before it is replaced without waiting for replicas.
const UNREADY: Duration = Duration::from_secs(30);
/// For how long a new pod must have been ready before it counts as well: one that ends again and again is ready in between.
const STEADY: Duration = Duration::from_secs(10);
/// The container of a pod that is looked at.
const MAILNODE: &str = "mailnode";
/// Replicas that a partition has where there are as many nodes.
const REPLICAS: usize = 3;
/// Longest words about a failure that are kept, in characters.
const MAX_WORDS: usize = 400;
/// Why a container waits when its process will not run by itself.
const BROKEN: [&str; 7] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "RunContainerError",
];

/// What must outlive the operator in the middle of an update. Kept on the StatefulSet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Notes {
    /// With which template all pods were well last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<Stable>,
    /// The update that was taken back, and is not tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// The pod that was replaced last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacing: Option<Replacing>,
    /// The highest format level that was written during the update, where it is above what [`Stable`] knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u32>,
    /// Pods on Kubernetes nodes that are lost during the update.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub lost: BTreeSet<u64>,
    /// When one of them was found again, in Unix seconds: the time that new pods have counts from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed: Option<i64>,
    /// Since when the update waits without a step, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<i64>,
}

/// A template with which all pods were well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stable {
    /// Name of its ControllerRevision.
    pub revision: String,
    /// Hash of the configuration that it names.
    #[serde(default)]
    pub config: String,
    /// The highest format level that its mailnodes know: above it there is no way back to them.
    #[serde(default)]
    pub level: u32,
}

/// An update that was taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// Hash of its template.
    pub template: String,
    /// Generation of the MailCluster that asked for it.
    pub generation: i64,
    /// What failed.
    pub message: String,
}

/// A pod that is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replacing {
    /// Its number.
    pub ordinal: u64,
    /// When it was taken away, in Unix seconds.
    pub since: i64,
}

impl Notes {
    /// Reads them; what cannot be read is as if it had never been written.
    pub fn read(text: Option<&String>) -> Self {
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// As they are kept.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("notes are texts and numbers")
    }

    /// Whether this template, asked for by this generation, was taken back.
    pub fn has_failed(&self, template: &str, generation: i64) -> bool {
        self.failed.as_ref().is_some_and(|f| f.template == template && f.generation == generation)
    }
}

/// One pod, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// Its number.
    pub ordinal: u64,
    /// Of its template.
    pub revision: String,
    /// Whether it says that it is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Since when it is ready, or not.
    pub since: Timestamp,
    /// Why its process does not run and will not by itself.
    pub broken: Option<String>,
    /// Why its process ended last.
    pub ended: Option<String>,
    /// That its Kubernetes node is lost, and what to do.
    pub lost: Option<String>,
}

impl PodSeen {
    /// From a pod of the cluster; none when its name has no number. `silent`: Kubernetes nodes that do not answer.
    pub fn of(pod: &Pod, silent: &BTreeSet<String>, now: Timestamp) -> Option<Self> {
        let ordinal = pod.name_any().rsplit_once('-')?.1.parse().ok()?;
        let status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready");
        let created = pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        // Others may have been put beside it.
        let container =
            status.container_statuses.unwrap_or_default().into_iter().find(|c| c.name == MAILNODE);
        let unscheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let unscheduled = unscheduled.map(|c| {
            let words = c.message.clone().or_else(|| c.reason.clone()).unwrap_or_default();
            format!("it cannot be placed: {words}")
        });
        let waits = container.as_ref().and_then(|c| waits(c.state.as_ref()?));
        Some(Self {
            ordinal,
            revision: pod.labels().get(REVISION_LABEL).cloned().unwrap_or_default(),
            ready: ready.is_some_and(|c| c.status == "True"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            since: ready.and_then(|c| c.last_transition_time.as_ref()).map_or(created, |time| time.0),
            broken: unscheduled.or(waits).map(|words| shortened(&words)),
            ended: container.and_then(|c| ended(&c.last_state?)).map(|words| shortened(&words)),
            lost: hosts::lost(pod, silent, now).map(|words| shortened(&words)),
        })
    }

    fn well(&self) -> bool {
        self.ready && !self.terminating
    }

    /// What is wrong with it, in words.
    fn trouble(&self) -> String {
        let words = [self.broken.clone(), self.ended.clone()];
        let words: Vec<String> = words.into_iter().flatten().collect();
        if words.is_empty() { "it is not ready".to_owned() } else { words.join("; ") }
    }
}

fn waits(state: &ContainerState) -> Option<String> {
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.clone().filter(|reason| BROKEN.contains(&reason.as_str()))?;
    Some(match &waiting.message {
        Some(message) => format!("{reason}: {message}"),
        None => reason,
    })
}

fn ended(state: &ContainerState) -> Option<String> {
    let ended = state.terminated.as_ref()?;
    let last = ended.message.as_deref().and_then(|m| m.lines().rev().find(|line| !line.trim().is_empty()));
    let why = ended.reason.as_deref().unwrap_or("Error");
    Some(match last {
        Some(line) => {
            format!("its process ended with {} ({why}), last words: {}", ended.exit_code, line.trim())
        }
        None => format!("its process ended with {} ({why})", ended.exit_code),
    })
}

fn shortened(words: &str) -> String {
    let mut short: String = words.chars().take(MAX_WORDS).collect();
    if short.len() < words.len() {
        short.push('…');
    }
    short
}

/// How the mailnodes say that replication is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replication {
    /// Groups without a leader.
    pub leaderless: u32,
    /// How many groups lack a replica that is in step on each of these nodes.
    pub lagging: BTreeMap<u64, u32>,
    /// Groups whose members change, or have fewer than they should.
    pub moving: u32,
    /// Nodes that do not answer or are not ready.
    pub silent: Vec<u64>,
    /// The highest format level that a node writes.
    pub level: u32,
    /// The highest format level that all nodes know.
    pub known: u32,
}

impl Replication {
    /// From what the mailnodes tell. `groups`: the best report on each of them.
    pub fn of(told: &ClusterStatus, groups: &BTreeMap<u32, &GroupStatus>) -> Self {
        let staying = told.nodes.iter().filter(|node| !node.leaving).count();
        let mut found = Self { moving: told.moving, ..Self::default() };
        for number in 0..=told.partitions {
            let Some(group) = groups.get(&number).filter(|group| group.leader.is_some()) else {
                found.leaderless += 1;
                continue;
            };
            for voter in group.voters.iter().filter(|voter| !group.in_sync.contains(voter)) {
                *found.lagging.entry(*voter).or_default() += 1;
            }
            if group.voters.len() < staying.min(REPLICAS) && !group.moving {
                found.moving += 1;
            }
        }
        for node in &told.nodes {
            match node.status.as_ref().filter(|status| node.reachable && status.ready) {
                Some(status) => found.level = found.level.max(status.level),
                None => found.silent.push(node.node),
            }
        }
        let levels = told.nodes.iter().filter_map(|node| node.status.as_ref()).map(|status| status.max_level);
        found.known = levels.min().unwrap_or(0);
        found
    }

    /// What is lacking, in words; none when every group has a leader and all its replicas.
    pub fn lacks(&self, name: &str) -> Option<String> {
        if self.leaderless > 0 {
            return Some(format!("{} groups have no leader", self.leaderless));
        }
        if let Some(node) = self.silent.first() {
            return Some(format!("mailnode {name}-{node} does not say that it is ready"));
        }
        if let Some((node, groups)) = self.lagging.iter().next() {
            return Some(format!("{groups} groups wait for their replica on {name}-{node} to catch up"));
        }
        (self.moving > 0).then(|| format!("{} groups change their members", self.moving))
    }

    /// Whether it would be whole but for this node.
    fn lacks_only(&self, node: u64) -> bool {
        self.leaderless == 0
            && self.moving == 0
            && self.silent.iter().chain(self.lagging.keys()).all(|other| *other == node)
    }
}

/// What is observed.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Name of the MailCluster.
    pub name: String,
    /// Pods that there are to be.
    pub nodes: u64,
    /// Of the template that the StatefulSet has; none while its controller has not taken it up.
    pub revision: Option<String>,
    /// All its pods.
    pub pods: Vec<PodSeen>,
    /// Or why no mailnode could be asked.
    pub replication: Result<Replication, String>,
    /// How long a new pod may take to get well.
    pub deadline: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// No update is under way.
    Idle,
    /// All pods are updated and well: what is there now is what can be gone back to.
    Settled,
    /// Nothing now.
    Wait {
        /// In one word.
        reason: &'static str,
        /// What is waited for.
        message: String,
        /// Whether it has been so for longer than a new pod may take.
        overdue: bool,
    },
    /// Take this pod away.
    Replace {
        /// Its number.
        ordinal: u64,
        /// Whether it may lead groups and all others are well.
        hand_over: bool,
    },
    /// Put the template before back.
    RollBack(String),
    /// The new pod does not get well, and there is no way back.
    Stuck(String),
}

fn wait(message: String) -> Step {
    Step::Wait { reason: reason::ROLLING_OUT, message, overdue: false }
}

/// Nothing is taken away until something is mended.
pub fn paused(message: String) -> Step {
    Step::Wait { reason: reason::UPDATE_PAUSED, message, overdue: false }
}

/// How long a new pod may take to get well.
pub fn deadline(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(PROGRESS_DEADLINE).max(LEAST_DEADLINE)
}

impl Seen {
    fn pods(&self) -> BTreeMap<u64, &PodSeen> {
        self.pods.iter().filter(|pod| pod.ordinal < self.nodes).map(|pod| (pod.ordinal, pod)).collect()
    }

    /// The pods of another template than the one that the StatefulSet has, the highest number first.
    fn outdated(&self, revision: &str) -> Vec<&PodSeen> {
        self.pods().into_values().rev().filter(|pod| pod.revision != revision).collect()
    }

    /// Whether all pods are of the template with which all were well.
    fn idle(&self, revision: &str, notes: &Notes) -> bool {
        self.outdated(revision).is_empty() && notes.stable.as_ref().is_some_and(|s| s.revision == revision)
    }
}

/// What must be kept of what is observed before the next step is decided: what may not be observable when it matters.
pub fn noted(seen: &Seen, notes: &Notes, now: Timestamp) -> Notes {
    let mut kept = notes.clone();
    let Some(revision) = seen.revision.as_ref().filter(|revision| !seen.idle(revision, notes)) else {
        return kept;
    };
    let known = notes.stable.as_ref().filter(|stable| stable.revision != *revision).map_or(0, |s| s.level);
    let written = seen.replication.as_ref().map_or(0, |replication| replication.level);
    if known > 0 && written > known {
        kept.level = notes.level.max(Some(written));
    }
    kept.lost = seen.pods().into_values().filter(|pod| pod.lost.is_some()).map(|pod| pod.ordinal).collect();
    if notes.lost.difference(&kept.lost).next().is_some() {
        kept.resumed = Some(now.as_second());
    }
    kept
}

/// The step, with whether it is a wait for longer than a new pod may take; notes since when the update waits.
pub fn timed(step: Step, notes: &mut Notes, deadline: Duration, now: Timestamp) -> Step {
    let Step::Wait { reason, message, .. } = step else {
        notes.waits = None;
        return step;
    };
    let since = *notes.waits.get_or_insert(now.as_second());
    let overdue = Timestamp::from_second(since).is_ok_and(|since| passed(since, now, deadline));
    Step::Wait { reason, message, overdue }
}

/// Decides.
pub fn next(seen: &Seen, notes: &Notes, now: Timestamp) -> Step {
    let Some(revision) = &seen.revision else {
        return wait("Kubernetes has not taken the change up yet".to_owned());
    };
    let outdated = seen.outdated(revision);
    if seen.idle(revision, notes) {
        return Step::Idle;
    }
    if let Some(pod) = outdated.iter().find(|pod| pod.broken.is_some() && !pod.terminating) {
        return Step::Replace { ordinal: pod.ordinal, hand_over: false };
    }
    if let Some(step) = unwell(seen, notes, revision, now) {
        return step;
    }
    if let Some(step) = unready(seen, &outdated, now) {
        return step;
    }
    let lacking = |message: String| if outdated.is_empty() { wait(message) } else { paused(message) };
    match &seen.replication {
        Err(why) => lacking(format!("no mailnode could be asked: {why}")),
        Ok(replication) => match (replication.lacks(&seen.name), outdated.first()) {
            (Some(lacks), _) => lacking(lacks),
            (None, Some(pod)) => Step::Replace { ordinal: pod.ordinal, hand_over: true },
            (None, None) => Step::Settled,
        },
    }
}

/// The step that a new pod asks for that is not there or not well.
fn unwell(seen: &Seen, notes: &Notes, revision: &str, now: Timestamp) -> Option<Step> {
    let second = |second: i64| Timestamp::from_second(second).ok();
    let replaced = |ordinal: u64| {
        let replacing = notes.replacing.as_ref().filter(|replacing| replacing.ordinal == ordinal)?;
        second(replacing.since)
    };
    let resumed = notes.resumed.and_then(second);
    let pods = seen.pods();
    let lost = pods.values().find_map(|pod| Some((pod.ordinal, pod.lost.as_ref()?)));
    let mut waits = None;
    for ordinal in 0..seen.nodes {
        let name = format!("{}-{ordinal}", seen.name);
        let pod = pods.get(&ordinal);
        let (since, trouble) = match pod {
            // Whose node is lost is told below.
            Some(pod) if pod.lost.is_some() => continue,
            Some(pod) if pod.terminating => (None, format!("pod {name} is ending")),
            Some(pod) if pod.revision != revision => continue,
            Some(pod) if pod.well() && passed(pod.since, now, STEADY) => continue,
            Some(pod) if pod.well() => {
                let text = format!("pod {name} has been ready for less than {} s", STEADY.as_secs());
                (replaced(ordinal), text)
            }
            Some(pod) => {
                let since = replaced(ordinal).unwrap_or(pod.since);
                (Some(since), format!("pod {name} is not well: {}", pod.trouble()))
            }
            None => (replaced(ordinal), format!("pod {name} is not there yet")),
        };
        // Without the pods of a lost node the others may lack a majority: only one whose process does not run is to blame.
        let blamed = lost.is_none() || pod.is_some_and(|pod| pod.broken.is_some());
        let since = since.map(|since| resumed.map_or(since, |resumed| since.max(resumed)));
        if blamed && since.is_some_and(|since| passed(since, now, seen.deadline)) {
            return Some(given_up(seen, notes, revision, &trouble));
        }
        waits.get_or_insert(trouble);
    }
    let lost = lost.map(|(ordinal, words)| paused(format!("pod {}-{ordinal}: {words}", seen.name)));
    lost.or(waits.map(wait))
}

/// Whether so long a time has passed.
pub fn passed(since: Timestamp, now: Timestamp, length: Duration) -> bool {
    now > since && now.duration_since(since).unsigned_abs() >= length
}

/// What to do about an update whose new pod did not get well in time.
fn given_up(seen: &Seen, notes: &Notes, revision: &str, trouble: &str) -> Step {
    let seconds = seen.deadline.as_secs();
    let what = format!("{trouble}, for {seconds} s");
    let Some(stable) = notes.stable.as_ref().filter(|stable| stable.revision != revision) else {
        return Step::Stuck(format!("{what}; see kubectl describe pod, and change the spec"));
    };
    // Also what was seen before, for when no mailnode answers any more.
    let level = seen.replication.as_ref().map_or(0, |replication| replication.level);
    let level = level.max(notes.level.unwrap_or_default());
    if level > stable.level && stable.level > 0 {
        return Step::Stuck(format!(
            "{what}; the mailnodes write format level {level} already, which the version before does not know: update to a version that works"
        ));
    }
    Step::RollBack(what)
}

/// The step that pods of the old template ask for that are not ready.
fn unready(seen: &Seen, outdated: &[&PodSeen], now: Timestamp) -> Option<Step> {
    let unready: Vec<&&PodSeen> = outdated.iter().filter(|pod| !pod.ready).collect();
    let pod = unready.first()?;
    let alone = unready.len() == 1 && seen.replication.as_ref().is_ok_and(|r| r.lacks_only(pod.ordinal));
    if alone && passed(pod.since, now, UNREADY) {
        return Some(Step::Replace { ordinal: pod.ordinal, hand_over: false });
    }
    Some(paused(format!("pod {}-{} is not ready: {}", seen.name, pod.ordinal, pod.trouble())))
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
