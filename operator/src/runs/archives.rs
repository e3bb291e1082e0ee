//! Continuous archives in a pass: one task for each BackupPolicy that asks for one tells the mailnodes again and again, and
//! asks how far they are. A mailnode that is told no more ends by itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use quorumail_backup::{Limits, Repository};
use quorumail_crds::{BackupPolicy, MailCluster, condition::reason, is_paused};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    Supervisor,
    jobs::{connect, in_repository},
    target::{self, Wanted},
};
use crate::{
    accounts::clients::Clients,
    archiving::{self, Found, Report},
    backup::archive::{Wish, archive},
    run::Failure,
    stores::{Key, key},
};

/// How often the mailnodes are told and asked.
pub(super) const EVERY: Duration = Duration::from_secs(30);
/// A mailnode that was not told for so long ends: the operator may be gone, and the policy with it.
const KEEP: Duration = Duration::from_secs(900);
/// How often it is looked up in the bucket what can be restored.
const LOOK_UP: Duration = Duration::from_secs(300);
/// For one round.
const PATIENCE: Duration = Duration::from_secs(120);

/// An archive that is kept going.
pub(super) struct Archive {
    /// Of what.
    cluster: Key,
    /// The policy and the MailCluster as they were when it was begun; others mean another one.
    asked: (Option<i64>, Option<String>),
    found: Arc<Mutex<Option<Result<Found, Failure>>>>,
    task: AbortHandle,
}

impl Drop for Archive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Supervisor {
    /// What is to be told of a policy's archive; begins it when it is wanted.
    pub(super) fn archive(
        &mut self,
        policy: &Arc<BackupPolicy>,
        has_backup: bool,
        problem: Option<&Failure>,
    ) -> Report {
        let uid = policy.uid().unwrap_or_default();
        if policy.spec.continuous.is_none() || is_paused(&**policy) {
            return Report::default();
        }
        let possible = self.archive_possible(policy, &uid, has_backup);
        if let Ok(cluster) = &possible {
            let asked = (policy.metadata.generation, cluster.uid());
            if self.archives.get(&uid).is_none_or(|archive| archive.asked != asked) {
                let archive = self.begin_archive(policy, cluster, asked);
                self.archives.insert(uid.clone(), archive);
            }
        }
        // One that is under way goes on while its MailCluster is not Ready: its own words tell more.
        let archive = self.archives.get(&uid);
        let found = archive.and_then(|archive| archive.found.lock().clone());
        let problem = match archive {
            Some(_) => None,
            None => problem.or(possible.as_ref().err()),
        };
        archiving::report(policy, problem, found.as_ref())
    }

    fn archive_possible(
        &self,
        policy: &BackupPolicy,
        uid: &str,
        has_backup: bool,
    ) -> Result<Arc<MailCluster>, Failure> {
        let namespace = policy.namespace().unwrap_or_default();
        let cluster = self.ready_cluster(&namespace, policy.spec.cluster_ref.as_ref())?;
        let other =
            self.archives.iter().any(|(other, archive)| other != uid && archive.cluster == key(&*cluster));
        if other {
            let text = "another BackupPolicy archives the same MailCluster, which has one archive; take spec.continuous out of one";
            return Err(Failure::new(reason::CONFLICT, text));
        }
        if !has_backup {
            return Err(Failure::new(reason::NOT_YET, "the archive begins after the first backup"));
        }
        Ok(cluster)
    }

    fn begin_archive(
        &self,
        policy: &Arc<BackupPolicy>,
        cluster: &Arc<MailCluster>,
        asked: (Option<i64>, Option<String>),
    ) -> Archive {
        let found = Arc::new(Mutex::new(None));
        let keeper = Keeper {
            client: self.context.client.clone(),
            clients: self.context.clients.clone(),
            policy: policy.clone(),
            cluster: cluster.clone(),
        };
        let task = tokio::spawn({
            let found = found.clone();
            async move { keeper.run(&found).await }
        });
        Archive { cluster: key(&**cluster), asked, found, task: task.abort_handle() }
    }

    /// Ends archives that nobody asks for any more. Of a policy that is paused the mailnodes are not told.
    pub(super) fn end_archives(&mut self, policies: &[Arc<BackupPolicy>]) {
        let there = |wanted: fn(&BackupPolicy) -> bool| -> BTreeSet<String> {
            let there = policies.iter().filter(|policy| policy.metadata.deletion_timestamp.is_none());
            there.filter(|policy| wanted(policy)).filter_map(|policy| policy.uid()).collect()
        };
        let asked = there(|policy| policy.spec.continuous.is_some());
        let paused = there(is_paused);
        let ended: Vec<String> = self
            .archives
            .keys()
            .filter(|uid| !asked.contains(*uid) || paused.contains(*uid))
            .cloned()
            .collect();
        for uid in ended {
            let Some(archive) = self.archives.remove(&uid) else { continue };
            if paused.contains(&uid) {
                continue;
            }
            let cluster = self.context.stores.clusters.find(|cluster| key(cluster) == archive.cluster);
            if let Some(cluster) = cluster {
                tokio::spawn(stop(self.context.clients.clone(), cluster));
            }
        }
    }
}

/// One that does not hear it ends after [`KEEP`].
async fn stop(clients: Clients, cluster: Arc<MailCluster>) {
    let stopped = async {
        let connection = clients.get(&cluster).await.map_err(|error| error.to_string())?;
        archive(&connection.admin, Wish::Stop).await.map_err(|error| error.to_string())
    };
    match tokio::time::timeout(PATIENCE, stopped).await {
        Ok(Ok(_)) => tracing::info!(cluster = cluster.name_any(), "the archive is ended"),
        Ok(Err(error)) => {
            tracing::warn!(error, cluster = cluster.name_any(), "the archive could not be ended at once")
        }
        Err(_) => tracing::warn!(cluster = cluster.name_any(), "the archive could not be ended at once"),
    }
}

/// Tells the mailnodes of one MailCluster.
struct Keeper {
    client: kube::Client,
    clients: Clients,
    policy: Arc<BackupPolicy>,
    cluster: Arc<MailCluster>,
}

impl Keeper {
    async fn run(&self, found: &Mutex<Option<Result<Found, Failure>>>) {
        let mut window = None;
        let mut looked_up: Option<Instant> = None;
        loop {
            let look_up = looked_up.is_none_or(|at| at.elapsed() >= LOOK_UP);
            let round = tokio::time::timeout(PATIENCE, self.round(&mut window, look_up)).await;
            let round = round.unwrap_or_else(|_| {
                let text = format!("mailnodes and bucket did not answer within {} s", PATIENCE.as_secs());
                Err(Failure::new(reason::DEADLINE_EXCEEDED, text))
            });
            if look_up && round.is_ok() {
                looked_up = Some(Instant::now());
            }
            *found.lock() = Some(round);
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn round(
        &self,
        window: &mut Option<(Timestamp, Timestamp)>,
        look_up: bool,
    ) -> Result<Found, Failure> {
        let spec = &self.policy.spec;
        let max_lag =
            spec.continuous.as_ref().map(|continuous| continuous.max_lag.duration()).unwrap_or_default();
        let s3 = target::bucket_of(&self.policy)?;
        let wanted = Wanted { s3: &s3, key: &spec.encryption_key_secret_ref };
        let namespace = self.policy.namespace().unwrap_or_default();
        let config = target::open(&self.client, &namespace, wanted, Limits::default()).await?;
        let connection = connect(&self.clients, &self.cluster).await?;
        let failed = |error: crate::admin::AdminError| Failure::new(reason::NOT_REACHABLE, error.to_string());
        let wish = Wish::Start { to: &config, max_lag, keep: Some(KEEP) };
        let archiving = archive(&connection.admin, wish).await.map_err(failed)?;
        if look_up {
            let uid = connection.admin.cluster_status().await.map_err(failed)?.cluster;
            let repository = Repository::open(config).await.map_err(|error| in_repository(&error))?;
            let windows = repository.window(&uid).await.map_err(|error| in_repository(&error))?;
            let instant =
                |at: quorumail_store::Timestamp| Timestamp::from_millisecond(at.0).unwrap_or_default();
            *window = windows.last().map(|last| (instant(last.earliest), instant(last.latest)));
        }
        Ok(Found { archiving, window: *window, at: Timestamp::now() })
    }
}
