//! Backups and restores: plans BackupPolicies, runs MailBackups, MailRestores, rehearsals and retention, and tells how far
//! they are.
//!
//! One pass looks at everything, which is little: it carries out what [`backuppolicy::plan`] and [`run::step`] decide. Runs
//! are tasks of this process: at most one backup and one restore of a MailCluster at a time, and so many in all; one rehearsal;
//! retention where nothing else is under way. Whoever loses the Lease ends with its runs; whoever gets it finds them as
//! interrupted and begins them again.

mod archives;
pub mod jobs;
pub mod metrics;
mod passes;
mod rehearsals;
mod rehearse;
mod resources;
mod retention;
pub mod target;
mod volumes;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube::{ResourceExt as _, core::object::HasStatus};
use quorumail_crds::{
    BackupPolicy, BackupPolicyStatus, MailBackup, MailBackupStatus, MailRestore, MailRestoreStatus,
};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinError, JoinSet},
    time::Instant,
};

use self::jobs::Progress;
use crate::{
    accounts::DEBOUNCE,
    backuppolicy::Stock,
    mailbackup::Figures,
    mailcluster::Context,
    mailrestore::{Outcome, Restoring},
    rehearsal,
    run::Failure,
    stores::{Changed, Key},
};

/// Backups that are under way at the same time, of all MailClusters.
const MAX_BACKUPS: usize = 4;
/// Likewise restores: mail passes through this process.
const MAX_RESTORES: usize = 2;
/// Likewise rehearsals, of which each needs a mailnode and a volume as well.
const MAX_REHEARSALS: usize = 1;
/// Likewise retention.
const MAX_RETENTIONS: usize = 2;
/// How long a restore may wait, and then how long it may take.
const RESTORE_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How often the progress of a run is written at most.
const TELL: Duration = Duration::from_secs(5);
/// How often everything is looked at when nothing changes.
const IDLE: Duration = Duration::from_secs(60);

/// How a run ended.
enum Ended {
    Backup(Result<jobs::Made, Failure>),
    Restore(Result<Outcome, Failure>),
    Rehearsal(rehearsal::Figures, Result<(), Failure>),
    /// With the generation of the policy that it was applied for.
    Retention(Option<i64>, Result<Stock, Failure>),
}

/// Sorts of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Backup,
    Restore,
    Rehearsal,
    Retention,
}

/// Which run: its sort, and the uid of the MailBackup, MailRestore or, for the others, BackupPolicy.
type Run = (Kind, String);

/// What a run tells while it is under way.
enum Told {
    Backup(Progress<Figures>, Figures),
    Restore(Progress<Restoring>, Restoring),
    Rehearsal(Progress<rehearsal::Figures>, rehearsal::Figures),
    /// It tells nothing, and can be told to stop.
    Retention(Arc<Notify>),
}

impl Told {
    fn kind(&self) -> Kind {
        match self {
            Self::Backup(..) => Kind::Backup,
            Self::Restore(..) => Kind::Restore,
            Self::Rehearsal(..) => Kind::Rehearsal,
            Self::Retention(..) => Kind::Retention,
        }
    }
}

/// A run that is under way.
struct Running {
    /// For people.
    name: String,
    /// What it backs up or restores into.
    cluster: Key,
    /// Where its backups lie.
    place: String,
    abort: AbortHandle,
    told: Told,
    /// When it last told something, or was begun.
    told_at: Instant,
}

/// Runs until it is dropped; what is under way ends with it.
pub async fn run(context: Arc<Context>) {
    let mut changes = context.stores.subscribe();
    let mut supervisor = Supervisor::new(context);
    loop {
        let started = std::time::Instant::now();
        let passed = supervisor.pass().await;
        supervisor.context.metrics.observe("backup", started, passed.is_ok());
        let pause = match passed {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(%error, "failed to look after backups; trying again");
                TELL
            }
        };
        tokio::select! {
            () = concerns(&mut changes) => tokio::time::sleep(DEBOUNCE).await,
            Some(ended) = supervisor.jobs.join_next_with_id() => supervisor.keep(ended),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Waits for a change that may concern backups.
async fn concerns(changes: &mut tokio::sync::broadcast::Receiver<Changed>) {
    loop {
        match changes.recv().await {
            Ok(Changed::Account(..)) => {}
            Ok(Changed::All | Changed::Backups | Changed::Cluster(_) | Changed::Secret(_)) | Err(_) => return,
        }
    }
}

struct Supervisor {
    context: Arc<Context>,
    jobs: JoinSet<Ended>,
    running: HashMap<Run, Running>,
    /// How runs ended whose status is not written yet.
    ended: HashMap<Run, Ended>,
    /// What retention found, by uid of the BackupPolicy.
    stocks: HashMap<String, Stock>,
    /// What was written, until the watch brings it.
    policies: HashMap<String, BackupPolicyStatus>,
    backups: HashMap<String, MailBackupStatus>,
    restores: HashMap<String, MailRestoreStatus>,
    /// Objects whose status could not be written, by uid.
    unwritten: BTreeSet<String>,
    /// Archives that are kept going, by uid of the BackupPolicy.
    archives: HashMap<String, archives::Archive>,
    /// How volumes are, by uid of the BackupPolicy.
    volumes: HashMap<String, volumes::State>,
    /// Policies that are shown in metrics.
    shown: BTreeSet<Key>,
}

impl Supervisor {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            jobs: JoinSet::new(),
            running: HashMap::new(),
            ended: HashMap::new(),
            stocks: HashMap::new(),
            policies: HashMap::new(),
            backups: HashMap::new(),
            restores: HashMap::new(),
            unwritten: BTreeSet::new(),
            archives: HashMap::new(),
            volumes: HashMap::new(),
            shown: BTreeSet::new(),
        }
    }

    /// Keeps how a run ended for the pass that follows.
    fn keep(&mut self, ended: Result<(tokio::task::Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Some(ended)),
            // Ended on purpose, or a broken invariant, which the object must not hang on.
            Err(error) => (error.id(), None),
        };
        let Some(which) =
            self.running.iter().find(|(_, run)| run.abort.id() == id).map(|(which, _)| which.clone())
        else {
            return;
        };
        let Some(run) = self.running.remove(&which) else { return };
        let ended = ended.unwrap_or_else(|| {
            let failure = Failure::new(
                quorumail_crds::condition::reason::FAILED,
                "the run broke off because of an error in this program; its log has more. Make another, and report it",
            );
            match run.told {
                Told::Backup(..) => Ended::Backup(Err(failure)),
                Told::Restore(..) => Ended::Restore(Err(failure)),
                Told::Rehearsal(progress, _) => Ended::Rehearsal(progress.lock().clone(), Err(failure)),
                Told::Retention(_) => Ended::Retention(None, Err(failure)),
            }
        });
        self.ended.insert(which, ended);
    }

    /// Ends runs whose object is gone.
    fn end_orphans(
        &mut self,
        policies: &[Arc<BackupPolicy>],
        backups: &[Arc<MailBackup>],
        restores: &[Arc<MailRestore>],
    ) {
        let there: BTreeSet<String> =
            uids_there(policies).chain(uids_there(backups)).chain(uids_there(restores)).collect();
        let rehearsed: BTreeSet<String> =
            uids_there(policies.iter().filter(|policy| policy.spec.rehearsal.is_some())).collect();
        self.running.retain(|(kind, uid), run| {
            let stays = there.contains(uid) && (*kind != Kind::Rehearsal || rehearsed.contains(uid));
            if !stays {
                tracing::info!(run = run.name, "nobody wants it any more; ending it");
                run.abort.abort();
            }
            stays
        });
        self.ended.retain(|(_, uid), _| there.contains(uid));
        self.unwritten.retain(|uid| there.contains(uid));
    }

    /// Runs of one sort that are under way.
    fn under_way(&self, kind: Kind) -> impl Iterator<Item = &Running> {
        self.running.values().filter(move |run| run.told.kind() == kind)
    }
}

/// Of objects that are not on their way out.
fn uids_there<'a, K: kube::Resource + 'a>(
    objects: impl IntoIterator<Item = &'a Arc<K>>,
) -> impl Iterator<Item = String> {
    objects.into_iter().filter(|object| object.meta().deletion_timestamp.is_none()).filter_map(|o| o.uid())
}

/// Objects with the status that was written last: a watch may lag behind, and what was done must not be done again.
fn with_written<K>(written: &mut HashMap<String, K::Status>, objects: Vec<Arc<K>>) -> Vec<Arc<K>>
where
    K: HasStatus + kube::Resource + Clone,
    K::Status: Clone + PartialEq,
{
    let uids: BTreeSet<String> = objects.iter().filter_map(|object| object.uid()).collect();
    written.retain(|uid, _| uids.contains(uid));
    let newest = |object: Arc<K>| {
        let uid = object.uid().unwrap_or_default();
        match written.get(&uid) {
            Some(status) if object.status() == Some(status) => {
                written.remove(&uid);
                object
            }
            Some(status) => {
                let mut newer = (*object).clone();
                *newer.status_mut() = Some(status.clone());
                Arc::new(newer)
            }
            None => object,
        }
    };
    objects.into_iter().map(newest).collect()
}

/// How long until `instant`, and not longer than nothing changes.
fn until(instant: Option<Timestamp>, now: Timestamp) -> Duration {
    let left = instant.map(|instant| instant.duration_since(now));
    left.map_or(IDLE, |left| Duration::try_from(left).unwrap_or_default().min(IDLE))
}

#[cfg(test)]
mod tests {
    use quorumail_crds::{
        MailBackupSpec,
        backup::{Phase, PolicyRef},
    };

    use super::*;

    fn backup(phase: Phase) -> Arc<MailBackup> {
        let mut backup = MailBackup::new("b", MailBackupSpec { policy_ref: PolicyRef { name: "p".into() } });
        backup.metadata.uid = Some("u-1".to_owned());
        backup.status = Some(MailBackupStatus { phase, ..MailBackupStatus::default() });
        Arc::new(backup)
    }

    #[test]
    fn what_was_written_counts_until_the_watch_brings_it() {
        let status = MailBackupStatus { phase: Phase::Succeeded, ..MailBackupStatus::default() };
        let mut written = HashMap::from([("u-1".to_owned(), status)]);
        let seen = with_written(&mut written, vec![backup(Phase::Running)]);
        assert_eq!(seen[0].status.as_ref().map(|s| s.phase), Some(Phase::Succeeded));
        with_written(&mut written, vec![backup(Phase::Succeeded)]);
        assert!(written.is_empty());
        written.insert("u-2".to_owned(), MailBackupStatus::default());
        with_written(&mut written, vec![backup(Phase::Succeeded)]);
        assert!(written.is_empty(), "its object is gone");
    }

    #[test]
    fn the_next_look_is_at_the_next_instant_and_not_later_than_idle() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(until(Some(at(20)), at(10)), Duration::from_secs(10));
        assert_eq!(until(Some(at(5)), at(10)), Duration::ZERO);
        assert_eq!(until(Some(at(9_000)), at(10)), IDLE);
        assert_eq!(until(None, at(10)), IDLE);
    }
}
