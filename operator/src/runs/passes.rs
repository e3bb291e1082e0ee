//! One pass over BackupPolicies, MailBackups and MailRestores.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, PostParams},
    core::object::HasStatus,
    runtime::events::EventType,
};
use parking_lot::Mutex;
use quorumail_crds::{
    BackupPolicy, BackupPolicyStatus, LocalClusterRef, MailBackup, MailBackupStatus, MailCluster, MailDomain,
    MailRestore, MailRestoreStatus, Mailbox, MailingList,
    backup::Phase,
    condition::{find, kind, reason},
    is_paused,
};
use tokio::time::Instant;

use super::{
    Ended, Kind, MAX_BACKUPS, MAX_RESTORES, RESTORE_DEADLINE, Running, Supervisor, TELL, Told, archives,
    jobs::{self, Source},
    target::{Wanted, bucket_of, missing, place, place_of},
    until, with_written,
};
use crate::{
    accounts,
    backup::resources::Members,
    backuppolicy::{self, Plan, Seen, is_pruned, last_successful, phase},
    mailbackup::{self, Own as OfBackup, Told as BackupTold, left_out},
    mailrestore::{self, Own as OfRestore, Restoring, Told as RestoreTold},
    run::{Course, Failure, Step, left, step},
    settings::FIELD_MANAGER,
    status::{Ours, write},
    stores::key,
};

/// How soon something is looked at again that waits for something else.
const WAITING: Duration = Duration::from_secs(3);
/// How long a MailBackup waits for its BackupPolicy.
const WITHOUT_POLICY: Duration = Duration::from_secs(600);

/// When to look again at an object, also when it could not be written.
fn or_again<K: Resource<DynamicType = ()>>(
    shown: Result<Duration, kube::Error>,
    object: &K,
    failed: &mut Option<kube::Error>,
) -> Duration {
    shown.unwrap_or_else(|error| {
        let (kind, name) = (K::kind(&()), object.meta().name.as_deref().unwrap_or_default());
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        tracing::warn!(%error, %kind, namespace, name, "an object of backups cannot be looked after; trying again");
        *failed = Some(error);
        TELL
    })
}

impl Supervisor {
    /// Looks at everything once; answers when to look again although nothing changes.
    pub(super) async fn pass(&mut self) -> Result<Duration, kube::Error> {
        let stores = self.context.stores.clone();
        let policies = with_written(&mut self.policies, stores.policies.state());
        let mut backups = with_written(&mut self.backups, stores.backups.state());
        let mut restores = with_written(&mut self.restores, stores.restores.state());
        self.end_orphans(&policies, &backups, &restores);
        let something_left = self.clear_rehearsals().await;
        self.end_archives(&policies);
        self.look_after_volumes(&policies).await;
        // The one that was made first is begun first.
        backups.sort_by_key(|backup| (backup.creation_timestamp(), backup.name_any()));
        restores.sort_by_key(|restore| (restore.creation_timestamp(), restore.name_any()));
        let mut pause = if something_left { WAITING } else { until(None, Timestamp::now()) };
        // Each on its own: one that cannot be written does not hold up the others.
        let mut failed = None;
        for backup in &backups {
            let status = self.backup(backup, &policies);
            let shown = self.show_backup(backup, status).await;
            pause = pause.min(or_again(shown, &**backup, &mut failed));
        }
        // Policies tell what their backups came to.
        let backups = with_written(&mut self.backups, stores.backups.state());
        for restore in &restores {
            let status = self.restore(restore, &policies, &backups);
            let shown = self.show_restore(restore, status).await;
            pause = pause.min(or_again(shown, &**restore, &mut failed));
        }
        for policy in &policies {
            let shown = self.policy(policy, &backups).await;
            pause = pause.min(or_again(shown, &**policy, &mut failed));
        }
        self.measure(&policies, &backups);
        failed.map_or(Ok(pause), Err)
    }

    async fn policy(
        &mut self,
        policy: &Arc<BackupPolicy>,
        backups: &[Arc<MailBackup>],
    ) -> Result<Duration, kube::Error> {
        if policy.metadata.deletion_timestamp.is_some() {
            return Ok(until(None, Timestamp::now()));
        }
        let now = Timestamp::now();
        let mine: Vec<_> = backups.iter().filter(|backup| is_of(backup, policy)).cloned().collect();
        let problem = self.policy_problem(policy);
        let has_problem = problem.is_some();
        let old = policy.status.clone().unwrap_or_default();
        let last_backup = last_successful(&old, &mine).map(|time| time.0);
        let active = mine.iter().any(|backup| backuppolicy::is_active(backup));
        // First: it is short, and a rehearsal reads what it may not remove meanwhile.
        let retention = self.retention(policy, last_backup, active, problem.as_ref());
        let rehearsal = self.rehearsal(policy, last_backup, problem.as_ref());
        let archive = self.archive(policy, last_backup.is_some(), problem.as_ref());
        let is_archived = archive.observed.is_some();
        let rehearses = rehearsal.record.as_ref().is_some_and(|record| record.result == Phase::Running);
        if is_paused(&**policy) {
            self.show_policy(policy, backuppolicy::paused(policy, &rehearsal, &retention, now)).await?;
            return Ok(until(None, now));
        }
        let seen = Seen {
            backups: &mine,
            problem: problem.as_ref().map(Failure::observed),
            stock: self.stocks.get(&policy.uid().unwrap_or_default()),
            retention: &retention,
            rehearsal: &rehearsal,
            archive: &archive,
            now,
        };
        let Plan { create, delete, status, again } = backuppolicy::plan(policy, &seen);
        let api: Api<MailBackup> =
            Api::namespaced(self.context.client.clone(), &policy.namespace().unwrap_or_default());
        if let Some(backup) = &create {
            let params =
                PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            match api.create(&params, backup).await {
                Ok(_) => {}
                // It was made by the operator before this one.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error),
            }
        }
        let mut failed = None;
        for name in &delete {
            match api.delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => failed = Some(error),
            }
        }
        self.show_policy(policy, status).await?;
        if let Some(error) = failed {
            return Err(error);
        }
        let again = again.into_iter().chain(rehearsal.next).chain(retention.next).min();
        Ok(match has_problem || retention.waits || retention.has_news || create.is_some() {
            true => WAITING,
            false if rehearses => TELL,
            // What is found is shown, and nothing else tells of it.
            false if is_archived => until(again, now).min(archives::EVERY),
            false => until(again, now),
        })
    }

    /// What keeps backups from being made.
    fn policy_problem(&self, policy: &BackupPolicy) -> Option<Failure> {
        let namespace = policy.namespace().unwrap_or_default();
        if let Some(problem) = self.volume_problem(policy) {
            return Some(problem);
        }
        let s3 = match bucket_of(policy) {
            Ok(s3) => s3,
            Err(failure) => return Some(failure),
        };
        let wanted = Wanted { s3: &s3, key: &policy.spec.encryption_key_secret_ref };
        let cluster = self.ready_cluster(&namespace, policy.spec.cluster_ref.as_ref());
        cluster.err().or_else(|| self.missing_secret(&namespace, wanted))
    }

    fn missing_secret(&self, namespace: &str, wanted: Wanted<'_>) -> Option<Failure> {
        let stores = &self.context.stores;
        wanted
            .secrets()
            .find(|name| stores.secret_version(&(namespace.to_owned(), (*name).to_owned())).is_none())
            .map(missing)
    }

    pub(super) fn ready_cluster(
        &self,
        namespace: &str,
        named: Option<&LocalClusterRef>,
    ) -> Result<Arc<MailCluster>, Failure> {
        let named = named.map(|named| &*named.name);
        let cluster = self.context.stores.cluster_here(namespace, named).map_err(|why| {
            Failure::new(reason::CLUSTER_NOT_FOUND, format!("{why}; make it, or correct clusterRef"))
        })?;
        let conditions =
            cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if find(conditions, kind::READY).is_some_and(|ready| ready.status == "True") {
            return Ok(cluster);
        }
        let text = format!("waiting for MailCluster {} to be Ready", cluster.name_any());
        Err(Failure::new(reason::CLUSTER_NOT_READY, text))
    }

    /// What is to be told of a MailBackup now; begins it when it is time.
    fn backup(
        &mut self,
        backup: &Arc<MailBackup>,
        policies: &[Arc<BackupPolicy>],
    ) -> Option<MailBackupStatus> {
        let (uid, now) = (backup.uid().unwrap_or_default(), Timestamp::now());
        let policy = policies.iter().find(|policy| is_of(backup, policy));
        if backup.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let run = (Kind::Backup, uid);
        if let Some(ended) = self.ended.remove(&run) {
            return self.backup_ended(backup, ended, now);
        }
        if phase(backup).is_final() {
            return self.backup_pruned(backup, policy, now);
        }
        if let Some(run) = self.running.get_mut(&run) {
            let figures = run.figures()?;
            return Some(mailbackup::status(backup, &BackupTold::Own(OfBackup::Progress(figures)), now));
        }
        if is_paused(&**backup) {
            let waits = phase(backup) == Phase::Pending;
            return waits.then(|| mailbackup::status(backup, &BackupTold::Paused, now));
        }
        let possible = self.backup_possible(backup, policy);
        let deadline = policy.map_or(WITHOUT_POLICY, |policy| policy.spec.deadline.duration());
        let old = backup.status.clone().unwrap_or_default();
        let course = Course {
            phase: old.phase,
            created: created(&**backup, now),
            started: old.started.map(|time| time.0),
            attempts: old.attempts,
            deadline,
        };
        match (step(&course, false, possible.as_ref().err(), now), possible) {
            (Step::Fail(failure), _) => Some(mailbackup::status(backup, &BackupTold::Failed(&failure), now)),
            (Step::Begin, Ok((policy, cluster))) => {
                let left = left(&course, now);
                self.begin_backup(backup, policy, cluster, left);
                Some(mailbackup::status(backup, &BackupTold::Begun, now))
            }
            (_, Err(failure)) if old.phase == Phase::Pending => {
                Some(mailbackup::status(backup, &BackupTold::Waiting(&failure), now))
            }
            _ => None,
        }
    }

    fn backup_possible(
        &self,
        backup: &MailBackup,
        policy: Option<&Arc<BackupPolicy>>,
    ) -> Result<(Arc<BackupPolicy>, Arc<MailCluster>), Failure> {
        let Some(policy) = policy else {
            let text = format!(
                "there is no BackupPolicy {} in this namespace; make it",
                backup.spec.policy_ref.name
            );
            return Err(Failure::new(reason::POLICY_NOT_FOUND, text));
        };
        if is_paused(&**policy) {
            let text =
                format!("waiting for BackupPolicy {}, which is paused by annotation", policy.name_any());
            return Err(Failure::new(reason::BY_ANNOTATION, text));
        }
        if let Some(problem) = self.policy_problem(policy) {
            return Err(problem);
        }
        let namespace = policy.namespace().unwrap_or_default();
        let cluster = self.ready_cluster(&namespace, policy.spec.cluster_ref.as_ref())?;
        self.has_room(Kind::Backup, MAX_BACKUPS, &cluster)?;
        self.no_retention_for(&bucket_of(policy)?, policy.spec.deadline.duration())?;
        Ok((policy.clone(), cluster))
    }

    /// One run of a sort for each MailCluster, and so many in all.
    fn has_room(&self, kind: Kind, most: usize, cluster: &MailCluster) -> Result<(), Failure> {
        if let Some(other) = self.under_way(kind).find(|run| run.cluster == key(cluster)) {
            let text = format!("waiting for {} of the same MailCluster", other.name);
            return Err(Failure::new(reason::WAITING, text));
        }
        if self.under_way(kind).count() >= most {
            let text = format!("waiting for one of {most} others to end");
            return Err(Failure::new(reason::WAITING, text));
        }
        Ok(())
    }

    fn begin_backup(
        &mut self,
        backup: &Arc<MailBackup>,
        policy: Arc<BackupPolicy>,
        cluster: Arc<MailCluster>,
        left: Duration,
    ) {
        let progress = Arc::new(Mutex::new(mailbackup::Figures::default()));
        let place = place_of(&policy);
        let job = jobs::Backup {
            client: self.context.client.clone(),
            clients: self.context.clients.clone(),
            members: self.members(&cluster),
            cluster: cluster.clone(),
            policy,
            deadline: left,
        };
        let task = self.jobs.spawn({
            let progress = progress.clone();
            async move { Ended::Backup(jobs::back_up(job, progress).await) }
        });
        let run = Running {
            name: format!("MailBackup {}", backup.name_any()),
            cluster: key(&*cluster),
            place,
            abort: task,
            told: Told::Backup(progress, mailbackup::Figures::default()),
            told_at: Instant::now(),
        };
        self.running.insert((Kind::Backup, backup.uid().unwrap_or_default()), run);
    }

    /// What belongs to a MailCluster in its own namespace. What others have there is theirs to keep.
    fn members(&self, cluster: &Arc<MailCluster>) -> Members {
        let accounts::Members { mut domains, mut mailboxes, mut lists, .. } =
            accounts::members(&self.context, cluster);
        let namespace = cluster.namespace().unwrap_or_default();
        let count = domains.len() + mailboxes.len() + lists.len();
        domains.retain(|domain| domain.metadata.namespace == cluster.metadata.namespace);
        mailboxes.retain(|mailbox| mailbox.metadata.namespace == cluster.metadata.namespace);
        lists.retain(|list| list.metadata.namespace == cluster.metadata.namespace);
        let elsewhere = count - domains.len() - mailboxes.len() - lists.len();
        let stores = &self.context.stores;
        let policies = stores.policies.state_filter(|policy| {
            let named = policy.spec.cluster_ref.as_ref().map(|named| &*named.name);
            let of = stores.cluster_here(&policy.namespace().unwrap_or_default(), named);
            of.is_ok_and(|of| key(&*of) == key(&**cluster))
        });
        let unreadable = [
            ("MailDomain", stores.unreadable.of::<MailDomain>(&namespace)),
            ("Mailbox", stores.unreadable.of::<Mailbox>(&namespace)),
            ("MailingList", stores.unreadable.of::<MailingList>(&namespace)),
            ("BackupPolicy", stores.unreadable.of::<BackupPolicy>(&namespace)),
        ];
        let in_words = |(kind, names): (&str, Vec<String>)| -> Vec<String> {
            names.iter().map(|name| format!("{kind} {name}")).collect()
        };
        let unreadable = unreadable.into_iter().flat_map(in_words).collect();
        Members { cluster: cluster.clone(), domains, mailboxes, lists, policies, unreadable, elsewhere }
    }

    fn backup_ended(
        &mut self,
        backup: &MailBackup,
        ended: Ended,
        now: Timestamp,
    ) -> Option<MailBackupStatus> {
        let Ended::Backup(result) = ended else { return None };
        let policy_key = (backup.namespace().unwrap_or_default(), backup.spec.policy_ref.name.clone());
        self.context.metrics.backups.backup_ended(&policy_key, result.is_ok());
        match result {
            Ok(made) => {
                let told =
                    OfBackup::Succeeded { id: &made.id, figures: made.figures, resources: &made.resources };
                Some(mailbackup::status(backup, &BackupTold::Own(told), now))
            }
            Err(failure) => Some(mailbackup::status(backup, &BackupTold::Failed(&failure), now)),
        }
    }

    /// A MailBackup that a person made stays when retention deletes its backup, and says so.
    fn backup_pruned(
        &self,
        backup: &MailBackup,
        policy: Option<&Arc<BackupPolicy>>,
        now: Timestamp,
    ) -> Option<MailBackupStatus> {
        let finished = backup.status.as_ref()?.finished.as_ref()?.0;
        let stock = self.stocks.get(&policy?.uid().unwrap_or_default())?;
        let gone = phase(backup) == Phase::Succeeded && is_pruned(backup, finished, Some(stock));
        gone.then(|| mailbackup::status(backup, &BackupTold::Own(OfBackup::Pruned), now))
    }

    /// What is to be told of a MailRestore now; begins it when it is time.
    fn restore(
        &mut self,
        restore: &Arc<MailRestore>,
        policies: &[Arc<BackupPolicy>],
        backups: &[Arc<MailBackup>],
    ) -> Option<MailRestoreStatus> {
        let (uid, now) = (restore.uid().unwrap_or_default(), Timestamp::now());
        let old = restore.status.clone().unwrap_or_default();
        if restore.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let run = (Kind::Restore, uid);
        if let Some(ended) = self.ended.remove(&run) {
            return self.restore_ended(restore, ended, now);
        }
        if old.phase.is_final() {
            return None;
        }
        if let Some(run) = self.running.get_mut(&run) {
            let restored = run.restored()?;
            return Some(mailrestore::status(restore, &RestoreTold::Own(OfRestore::Progress(restored)), now));
        }
        if is_paused(&**restore) {
            let waits = old.phase == Phase::Pending;
            return waits.then(|| mailrestore::status(restore, &RestoreTold::Paused, now));
        }
        let possible = self.restore_possible(restore, policies, backups);
        let course = Course {
            phase: old.phase,
            created: created(&**restore, now),
            started: old.started.map(|time| time.0),
            attempts: old.attempts,
            deadline: RESTORE_DEADLINE,
        };
        match (step(&course, false, possible.as_ref().err(), now), possible) {
            (Step::Fail(failure), _) => {
                Some(mailrestore::status(restore, &RestoreTold::Failed(&failure), now))
            }
            (Step::Begin, Ok((source, cluster))) => {
                self.begin_restore(restore, source, cluster, left(&course, now));
                Some(mailrestore::status(restore, &RestoreTold::Begun, now))
            }
            (_, Err(failure)) if old.phase == Phase::Pending => {
                Some(mailrestore::status(restore, &RestoreTold::Waiting(&failure), now))
            }
            _ => None,
        }
    }

    fn restore_possible(
        &self,
        restore: &MailRestore,
        policies: &[Arc<BackupPolicy>],
        backups: &[Arc<MailBackup>],
    ) -> Result<(Source, Arc<MailCluster>), Failure> {
        let namespace = restore.namespace().unwrap_or_default();
        let (source, of_policy) = self.source(restore, policies, backups)?;
        let wanted = Wanted { s3: &source.s3, key: &source.key };
        if let Some(missing) = self.missing_secret(&namespace, wanted) {
            return Err(missing);
        }
        // One that was interrupted goes on with the backup that it began with.
        let begun = restore.status.as_ref().and_then(|status| status.backup.clone());
        let source = Source { id: begun.or(source.id), ..source };
        let named = restore.spec.target.cluster_ref.as_ref().or(of_policy.as_ref());
        let cluster = self.ready_cluster(&namespace, named)?;
        self.has_room(Kind::Restore, MAX_RESTORES, &cluster)?;
        self.no_retention_for(&source.s3, RESTORE_DEADLINE)?;
        Ok((source, cluster))
    }

    /// Where a restore reads, and the MailCluster that its policy names.
    fn source(
        &self,
        restore: &MailRestore,
        policies: &[Arc<BackupPolicy>],
        backups: &[Arc<MailBackup>],
    ) -> Result<(Source, Option<LocalClusterRef>), Failure> {
        let namespace = restore.namespace();
        let source = &restore.spec.source;
        let (policy, id) = if let Some(reference) = &source.backup_ref {
            let name = &reference.name;
            let backup = backups.iter().find(|b| b.namespace() == namespace && b.name_any() == *name);
            let backup = backup
                .ok_or_else(|| no_backup(format!("there is no MailBackup {name} in this namespace")))?;
            let id =
                backup.status.as_ref().filter(|s| s.phase == Phase::Succeeded).and_then(|s| s.id.clone());
            let text = format!(
                "MailBackup {name} is {:?}; only one that has succeeded can be restored",
                phase(backup)
            );
            (&backup.spec.policy_ref, Some(id.ok_or_else(|| no_backup(text))?))
        } else if let Some(policy) = &source.policy_ref {
            (policy, None)
        } else {
            let (Some(s3), Some(key)) = (&source.s3, &source.encryption_key_secret_ref) else {
                let text = "spec.source needs one of backupRef, policyRef and s3 with encryptionKeySecretRef";
                return Err(Failure::new(reason::INVALID_SPEC, text));
            };
            return Ok((Source { s3: s3.clone(), key: key.clone(), id: source.id.clone(), of: None }, None));
        };
        let found = policies.iter().find(|p| p.namespace() == namespace && p.name_any() == policy.name);
        let policy = found.ok_or_else(|| {
            let text = format!(
                "there is no BackupPolicy {} in this namespace; make it, or use source.s3",
                policy.name
            );
            Failure::new(reason::POLICY_NOT_FOUND, text)
        })?;
        let of_policy = policy.spec.cluster_ref.clone();
        let stores = &self.context.stores;
        let of = stores
            .cluster_here(&namespace.unwrap_or_default(), of_policy.as_ref().map(|named| &*named.name))
            .ok();
        if let Some(problem) = self.volume_problem(policy) {
            return Err(problem);
        }
        let (s3, key) = (bucket_of(policy)?, policy.spec.encryption_key_secret_ref.clone());
        Ok((Source { s3, key, id, of }, of_policy))
    }

    fn begin_restore(
        &mut self,
        restore: &Arc<MailRestore>,
        source: Source,
        cluster: Arc<MailCluster>,
        left: Duration,
    ) {
        let progress = Arc::new(Mutex::default());
        let place = place(&source.s3);
        let job = jobs::Restore {
            client: self.context.client.clone(),
            clients: self.context.clients.clone(),
            restore: restore.clone(),
            source,
            cluster: cluster.clone(),
        };
        let task = self.jobs.spawn({
            let progress = progress.clone();
            async move {
                let ended = tokio::time::timeout(left, jobs::bring_back(job, progress)).await;
                Ended::Restore(ended.unwrap_or_else(|_| {
                    let text = format!(
                        "it was not done within {} s; make another MailRestore, and it goes on",
                        RESTORE_DEADLINE.as_secs()
                    );
                    Err(Failure::new(reason::DEADLINE_EXCEEDED, text))
                }))
            }
        });
        let run = Running {
            name: format!("MailRestore {}", restore.name_any()),
            cluster: key(&*cluster),
            place,
            abort: task,
            told: Told::Restore(progress, Restoring::default()),
            told_at: Instant::now(),
        };
        self.running.insert((Kind::Restore, restore.uid().unwrap_or_default()), run);
    }

    fn restore_ended(
        &self,
        restore: &MailRestore,
        ended: Ended,
        now: Timestamp,
    ) -> Option<MailRestoreStatus> {
        let Ended::Restore(result) = ended else { return None };
        let metrics = &self.context.metrics.backups;
        match result {
            Ok(outcome) => {
                metrics.restored(outcome.restored.messages, outcome.restored.bytes, outcome.took);
                metrics.restore_ended(outcome.problem_count == 0);
                Some(mailrestore::status(restore, &RestoreTold::Own(OfRestore::Done(&outcome)), now))
            }
            Err(failure) => {
                metrics.restore_ended(false);
                Some(mailrestore::status(restore, &RestoreTold::Failed(&failure), now))
            }
        }
    }

    /// Writes a status that is news, or could not be written before; answers it when there was one to write.
    async fn show<K>(
        &mut self,
        written: fn(&mut Self) -> &mut HashMap<String, K::Status>,
        object: &K,
        status: Option<K::Status>,
    ) -> Result<Option<K::Status>, kube::Error>
    where
        K: Ours + HasStatus,
        K::Status: Clone + PartialEq + serde::Serialize,
    {
        let uid = object.uid().unwrap_or_default();
        let unwritten = self.unwritten.contains(&uid);
        let status = status.or_else(|| object.status().cloned().filter(|_| unwritten));
        let Some(status) = status.filter(|status| unwritten || object.status() != Some(status)) else {
            return Ok(None);
        };
        // Kept first: what has happened has happened, also when it cannot be written now.
        written(self).insert(uid.clone(), status.clone());
        self.unwritten.insert(uid.clone());
        write(&self.context.client, object, &status).await?;
        self.unwritten.remove(&uid);
        Ok(Some(status))
    }

    async fn show_policy(
        &mut self,
        policy: &BackupPolicy,
        status: BackupPolicyStatus,
    ) -> Result<(), kube::Error> {
        let Some(status) = self.show(|all| &mut all.policies, policy, Some(status)).await? else {
            return Ok(());
        };
        let old = policy.status.clone().unwrap_or_default();
        self.context.events.transition(policy, &old.conditions, &status.conditions).await;
        let result = |status: &BackupPolicyStatus| {
            status.rehearsal.as_ref().map(|record| record.result).unwrap_or_default()
        };
        let told = find(&status.conditions, kind::REHEARSAL_SUCCEEDED);
        let text = told.map(|told| told.message.as_str()).unwrap_or_default();
        self.tell_phase(policy, ("Rehearsal", result(&old), result(&status)), text).await;
        Ok(())
    }

    async fn show_backup(
        &mut self,
        backup: &MailBackup,
        status: Option<MailBackupStatus>,
    ) -> Result<Duration, kube::Error> {
        let before = phase(backup);
        let Some(status) = self.show(|all| &mut all.backups, backup, status).await? else {
            return Ok(pause_of(before));
        };
        let text = match &status.error {
            Some(error) => error.clone(),
            None => format!(
                "{} messages, {} bytes, {} bytes sent; in the bucket as {}{}",
                status.messages.unwrap_or_default(),
                status.bytes.unwrap_or_default(),
                status.uploaded_bytes.unwrap_or_default(),
                status.id.as_deref().unwrap_or_default(),
                left_out(&status)
            ),
        };
        self.tell_phase(backup, ("Backup", before, status.phase), &text).await;
        Ok(pause_of(status.phase))
    }

    async fn show_restore(
        &mut self,
        restore: &MailRestore,
        status: Option<MailRestoreStatus>,
    ) -> Result<Duration, kube::Error> {
        let before = restore.status.as_ref().map(|status| status.phase).unwrap_or_default();
        let Some(status) = self.show(|all| &mut all.restores, restore, status).await? else {
            return Ok(pause_of(before));
        };
        let restored = status.restored.unwrap_or_default();
        let text = match &status.error {
            Some(error) => error.clone(),
            None => format!(
                "{} messages, {} bytes brought back from {} in {}; {} were there already",
                restored.messages,
                restored.bytes,
                status.backup.as_deref().unwrap_or_default(),
                status.duration.as_deref().unwrap_or_default(),
                restored.already_there
            ),
        };
        self.tell_phase(restore, ("Restore", before, status.phase), &text).await;
        Ok(pause_of(status.phase))
    }

    /// An Event when a run begins and when it ends.
    async fn tell_phase<K: kube::Resource<DynamicType = ()>>(
        &self,
        object: &K,
        (what, before, after): (&str, Phase, Phase),
        text: &str,
    ) {
        if before == after {
            return;
        }
        let events = &self.context.events;
        match after {
            Phase::Pending => {}
            Phase::Running => {
                events.publish(object, EventType::Normal, &format!("{what}Started"), "it is under way").await
            }
            Phase::Succeeded => {
                events.publish(object, EventType::Normal, &format!("{what}Succeeded"), text).await
            }
            Phase::Failed => events.publish(object, EventType::Warning, &format!("{what}Failed"), text).await,
        }
    }

    fn measure(&mut self, policies: &[Arc<BackupPolicy>], backups: &[Arc<MailBackup>]) {
        let metrics = &self.context.metrics.backups;
        let there: BTreeSet<_> = policies.iter().map(|policy| key(&**policy)).collect();
        metrics.forget(&self.shown.difference(&there).cloned().collect());
        self.shown = there;
        self.stocks.retain(|uid, _| policies.iter().any(|policy| policy.uid().as_ref() == Some(uid)));
        for policy in policies {
            if let Some(status) = &policy.status {
                metrics.policy(&key(&**policy), status);
            }
            let succeeded = backups.iter().filter(|b| is_of(b, policy) && phase(b) == Phase::Succeeded);
            let newest =
                succeeded.filter_map(|b| b.status.as_ref()).max_by_key(|s| s.finished.as_ref().map(|t| t.0));
            if let Some(newest) = newest {
                metrics.last_backup(&key(&**policy), newest);
            }
        }
        metrics.running(self.running.len());
    }
}

impl Running {
    /// Figures to be told, when it is time and they have changed.
    fn figures(&mut self) -> Option<mailbackup::Figures> {
        let Told::Backup(progress, told) = &mut self.told else { return None };
        let now = *progress.lock();
        (now != *told && self.told_at.elapsed() >= TELL).then(|| {
            *told = now;
            self.told_at = Instant::now();
            now
        })
    }

    fn restored(&mut self) -> Option<Restoring> {
        let Told::Restore(progress, told) = &mut self.told else { return None };
        let now = progress.lock().clone();
        // Which backup it is must be known to whoever goes on with it.
        let is_chosen = now.backup != told.backup;
        (now != *told && (is_chosen || self.told_at.elapsed() >= TELL)).then(|| {
            told.clone_from(&now);
            self.told_at = Instant::now();
            now
        })
    }
}

fn is_of(backup: &MailBackup, policy: &BackupPolicy) -> bool {
    backup.namespace() == policy.namespace() && backup.spec.policy_ref.name == policy.name_any()
}

fn no_backup(text: String) -> Failure {
    Failure::new(reason::BACKUP_NOT_FOUND, text)
}

fn created<K: kube::Resource>(object: &K, now: Timestamp) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map_or(now, |time| time.0)
}

/// When a run is looked at again.
fn pause_of(phase: Phase) -> Duration {
    match phase {
        Phase::Pending => WAITING,
        Phase::Running => TELL,
        Phase::Succeeded | Phase::Failed => until(None, Timestamp::now()),
    }
}
