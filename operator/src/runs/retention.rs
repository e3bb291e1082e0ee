//! Retention in a pass: begins what is due and keeps what it came to; and what it does in the bucket.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use quorumail_backup::{
    Limits, PRUNE_GRACE, Repository, RepositoryConfig, RepositoryError, Trigger, retention,
};
use quorumail_crds::{
    BackupPolicy, MailCluster,
    backup::{RecoveryWindow, S3},
    condition::reason,
    is_paused,
};
use tokio::{sync::Notify, time::Instant};

use super::{
    Ended, Kind, MAX_RETENTIONS, Running, Supervisor, Told,
    jobs::{connect, in_repository},
    target::{self, Wanted, place, place_of},
};
use crate::{
    accounts::clients::Clients,
    backuppolicy::Stock,
    retention::{Plan, Seen, Turn, plan},
    run::Failure,
    stores::key,
};

/// How long it may take: what it did not get to, the next time does.
const DEADLINE: Duration = Duration::from_secs(900);
/// For how long it may keep a run waiting, counted from its own begin.
const HOLD: Duration = Duration::from_secs(30);
/// For giving the lease back.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

impl Supervisor {
    /// What is to be told of the retention of a policy; begins it when it is time. `active`: a backup of it is about to
    /// begin or under way.
    pub(super) fn retention(
        &mut self,
        policy: &Arc<BackupPolicy>,
        last_backup: Option<Timestamp>,
        active: bool,
        problem: Option<&Failure>,
    ) -> Plan {
        let uid = policy.uid().unwrap_or_default();
        let run = (Kind::Retention, uid.clone());
        let ended = match self.ended.remove(&run) {
            Some(Ended::Retention(generation, result)) => Some((generation, result)),
            _ => None,
        };
        let turn = match &ended {
            Some((generation, result)) => Turn::Ended(*generation, result),
            None if self.running.contains_key(&run) => Turn::Here,
            None => Turn::Away,
        };
        let possible = self.retention_possible(policy, active, problem);
        let seen = Seen { turn, last_backup, problem: possible.as_ref().err(), now: Timestamp::now() };
        let plan = plan(policy, &seen);
        match ended {
            Some((_, Ok(mut stock))) => {
                if let Some(before) = self.stocks.get(&uid) {
                    stock.removed.extend(before.removed.iter().cloned());
                }
                self.stocks.insert(uid, stock);
            }
            Some((_, Err(failure))) => {
                let policy = policy.name_any();
                tracing::info!(
                    reason = failure.reason,
                    error = failure.message,
                    policy,
                    "retention was not applied"
                );
            }
            None => {}
        }
        if let (true, Ok(cluster)) = (plan.begin, possible) {
            self.begin_retention(policy, cluster);
        }
        plan
    }

    fn retention_possible(
        &self,
        policy: &BackupPolicy,
        active: bool,
        problem: Option<&Failure>,
    ) -> Result<Arc<MailCluster>, Failure> {
        let waiting = |text: String| Err(Failure::new(reason::WAITING, text));
        if let Some(problem) = problem {
            return Err(problem.clone());
        }
        if is_paused(policy) {
            return Err(Failure::new(reason::BY_ANNOTATION, "the BackupPolicy is paused"));
        }
        if active {
            return waiting("waiting for a backup".to_owned());
        }
        let here = place_of(policy);
        if let Some(other) = self.running.values().find(|run| run.place == here) {
            return waiting(format!("waiting for {}", other.name));
        }
        if self.under_way(Kind::Retention).count() >= MAX_RETENTIONS {
            return waiting("waiting for the retention of another BackupPolicy".to_owned());
        }
        self.ready_cluster(&policy.namespace().unwrap_or_default(), policy.spec.cluster_ref.as_ref())
    }

    fn begin_retention(&mut self, policy: &Arc<BackupPolicy>, cluster: Arc<MailCluster>) {
        let stop = Arc::new(Notify::new());
        let job = Retention {
            client: self.context.client.clone(),
            clients: self.context.clients.clone(),
            policy: policy.clone(),
            cluster: cluster.clone(),
        };
        let generation = policy.metadata.generation;
        let task = self.jobs.spawn({
            let stop = stop.clone();
            async move { Ended::Retention(generation, job.run(&stop).await) }
        });
        let run = Running {
            name: format!("the retention of BackupPolicy {}", policy.name_any()),
            cluster: key(&*cluster),
            place: place_of(policy),
            abort: task,
            told: Told::Retention(stop),
            told_at: Instant::now(),
        };
        self.running.insert((Kind::Retention, policy.uid().unwrap_or_default()), run);
    }

    /// Whether nothing is being removed where something is to be read or written.
    pub(super) fn no_retention_at(&self, s3: &S3) -> Result<(), Failure> {
        let here = place(s3);
        match self.under_way(Kind::Retention).find(|run| run.place == here) {
            Some(run) => Err(Failure::new(reason::WAITING, format!("waiting for {} to end", run.name))),
            None => Ok(()),
        }
    }

    /// The same, for a run that could begin otherwise and has so long: what is under way gives way when it is not short.
    pub(super) fn no_retention_for(&self, s3: &S3, deadline: Duration) -> Result<(), Failure> {
        let here = place(s3);
        for run in self.under_way(Kind::Retention).filter(|run| run.place == here) {
            if let Told::Retention(stop) = &run.told
                && run.told_at.elapsed() >= HOLD.min(deadline / 4)
            {
                stop.notify_one();
            }
        }
        self.no_retention_at(s3)
    }
}

/// Retention to be applied.
struct Retention {
    client: kube::Client,
    clients: Clients,
    policy: Arc<BackupPolicy>,
    cluster: Arc<MailCluster>,
}

impl Retention {
    /// Ends early when it is told to stop; what was removed until then stays removed.
    async fn run(self, stop: &Notify) -> Result<Stock, Failure> {
        let result = tokio::select! {
            result = tokio::time::timeout(DEADLINE, self.apply()) => result.unwrap_or_else(|_| {
                let text = format!("it was not done within {} s, and goes on later", DEADLINE.as_secs());
                Err(Failure::new(reason::DEADLINE_EXCEEDED, text))
            }),
            () = stop.notified() => Err(Failure::new(reason::WAITING, "it gave way to another run and goes on after it")),
        };
        // The next run must not find the lock of this one.
        quorumail_backup::settle(RELEASE_WITHIN).await;
        result
    }

    async fn apply(&self) -> Result<Stock, Failure> {
        let (namespace, spec) = (self.policy.namespace().unwrap_or_default(), &self.policy.spec);
        let s3 = target::bucket_of(&self.policy)?;
        let wanted = Wanted { s3: &s3, key: &spec.encryption_key_secret_ref };
        let config = target::open(&self.client, &namespace, wanted, Limits::default()).await?;
        let connection = connect(&self.clients, &self.cluster).await?;
        let status = connection.admin.cluster_status().await;
        let status = status.map_err(|error| Failure::new(reason::NOT_REACHABLE, error.to_string()))?;
        if status.cluster.is_empty() {
            let text = "the mailnodes do not tell the name of their cluster; update them";
            return Err(Failure::new(reason::FAILED, text));
        }
        apply(&config, &status.cluster, &self.policy).await.map_err(|error| in_repository(&error))
    }
}

/// Removes what the policy does not want, of its own backups of this cluster, and tells what is left.
async fn apply(
    config: &RepositoryConfig,
    cluster_uid: &str,
    policy: &BackupPolicy,
) -> Result<Stock, RepositoryError> {
    let repository = Repository::open(config.clone()).await?;
    let wanted = &policy.spec.retention;
    let retention = retention::Retention {
        last: wanted.last,
        daily: wanted.daily,
        weekly: wanted.weekly,
        monthly: wanted.monthly,
        yearly: wanted.yearly,
    };
    let zone = TimeZone::get(&policy.spec.time_zone).unwrap_or(TimeZone::UTC);
    let seconds = |at: Timestamp| Timestamp::from_second(at.as_second()).unwrap_or(at);
    let applied = seconds(Timestamp::now());
    let trigger = Trigger::Policy(policy.name_any());
    let ours =
        |info: &quorumail_backup::BackupInfo| info.cluster.uid == cluster_uid && info.trigger == trigger;
    let pruned = repository.prune(ours, &retention, &zone, PRUNE_GRACE, false).await?;
    let listing = repository.list().await?;
    let mut packs = BTreeMap::new();
    let mut ids = Vec::new();
    let mut window: Option<(Timestamp, Timestamp)> = None;
    for info in listing.backups.iter().filter(|info| ours(info)) {
        for group in &repository.manifest(&info.id).await?.groups {
            packs.extend(group.packs.iter().map(|pack| (pack.pack, pack.bytes)));
        }
        ids.push(info.id.to_string());
        let started = Timestamp::from_millisecond(info.started.0).unwrap_or_default();
        let (earliest, latest) = window.get_or_insert((started, started));
        *earliest = started.min(*earliest);
        *latest = started.max(*latest);
    }
    Ok(Stock {
        ids: ids.into_iter().collect(),
        removed: pruned.removed.iter().map(ToString::to_string).collect(),
        window: window
            .map(|(from, to)| RecoveryWindow { earliest: Time(seconds(from)), latest: Time(seconds(to)) }),
        stored_bytes: packs.values().sum(),
        applied,
        deleted: u32::try_from(pruned.removed.len()).unwrap_or(u32::MAX),
        freed_bytes: pruned.bytes,
    })
}

#[cfg(test)]
mod tests {
    use quorumail_backup::{BackupKey, Cluster, Location, ManifestDraft};

    use super::*;

    const POLICY: &str = r#"{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {name: nightly},
      spec: {schedule: "@daily", target: {s3: {endpoint: "https://s3", bucket: b, credentialsSecretRef: {name: s3}}},
      encryptionKeySecretRef: {name: key}, retention: {last: 2, daily: 0, weekly: 0, monthly: 0, yearly: 0}}}"#;

    fn config(dir: &std::path::Path) -> RepositoryConfig {
        RepositoryConfig {
            location: Location::Directory(dir.to_owned()),
            key: BackupKey::parse(b"correct horse battery staple").unwrap(),
            limits: Limits::default(),
        }
    }

    async fn backup(repository: &Repository, cluster: &str, trigger: Trigger, minute: i64) -> String {
        let lease = repository.lease("a test").await.unwrap();
        let draft = ManifestDraft {
            cluster: Cluster { name: String::new(), namespace: String::new(), uid: cluster.to_owned() },
            started: quorumail_store::Timestamp(1_700_000_000_000 + minute * 60_000),
            parent: None,
            trigger,
            groups: Vec::new(),
            resources: None,
            version: "0".to_owned(),
        };
        let id = repository.finish(draft, &lease).await.unwrap().to_string();
        lease.release().await.unwrap();
        id
    }

    #[tokio::test]
    async fn it_deletes_of_the_policys_own_backups_of_this_cluster_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let repository = Repository::create_or_open(config.clone()).await.unwrap();
        let nightly = || Trigger::Policy("nightly".to_owned());
        let mut ours = Vec::new();
        for minute in 0..4 {
            ours.push(backup(&repository, "here", nightly(), minute).await);
        }
        let mut others = vec![backup(&repository, "lost", nightly(), 0).await];
        others.push(backup(&repository, "here", Trigger::Manual(String::new()), 0).await);
        others.push(backup(&repository, "here", Trigger::Policy("other".to_owned()), 0).await);
        let policy: BackupPolicy = serde_yaml::from_str(POLICY).unwrap();

        // Somebody reads.
        let lease = repository.lease("a reader").await.unwrap();
        let busy = apply(&config, "here", &policy).await.unwrap_err();
        assert!(matches!(busy, RepositoryError::Busy { .. }), "{busy}");
        assert_eq!(in_repository(&busy).reason, "Busy");
        assert_eq!(repository.list().await.unwrap().backups.len(), 7);
        lease.release().await.unwrap();

        let stock = apply(&config, "here", &policy).await.unwrap();
        assert_eq!(stock.removed, ours[..2].iter().cloned().collect());
        assert_eq!((stock.ids.clone(), stock.deleted), (ours[2..].iter().cloned().collect(), 2));
        let window = stock.window.unwrap();
        assert_eq!(window.latest.0.as_second() - window.earliest.0.as_second(), 60);
        let left: Vec<String> =
            repository.list().await.unwrap().backups.iter().map(|info| info.id.to_string()).collect();
        assert!(others.iter().all(|other| left.contains(other)) && left.len() == 5, "{left:?}");
    }
}
