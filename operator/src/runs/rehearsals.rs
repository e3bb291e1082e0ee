//! Rehearsals in a pass: begins the one that is due, keeps what it came to, and takes away what is left of others.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use parking_lot::Mutex;
use quorumail_crds::{BackupPolicy, MailCluster, backup::is_rehearsal, condition::reason};
use tokio::time::Instant;

use super::{
    Ended, Kind, MAX_REHEARSALS, Running, Supervisor, TELL, Told, rehearse,
    target::{bucket_of, place_of},
};
use crate::{
    rehearsal::{self, Figures, Plan, Seen, Turn, cluster_name},
    run::Failure,
    stores::{Key, key},
};

impl Supervisor {
    /// What is to be told of the rehearsals of a policy; begins one when it is time.
    pub(super) fn rehearsal(
        &mut self,
        policy: &Arc<BackupPolicy>,
        last_backup: Option<Timestamp>,
        problem: Option<&Failure>,
    ) -> Plan {
        let uid = policy.uid().unwrap_or_default();
        let run = (Kind::Rehearsal, uid);
        let ended = self.ended.remove(&run);
        let figures = self.running.get_mut(&run).and_then(Running::rehearsed);
        let turn = match &ended {
            Some(Ended::Rehearsal(figures, result)) => Turn::Ended(figures, result),
            _ if self.running.contains_key(&run) => Turn::Here(figures.as_ref()),
            _ => Turn::Away,
        };
        let possible = self.rehearsal_possible(policy, problem);
        let now = Timestamp::now();
        let seen = Seen { turn, last_backup, problem: possible.as_ref().err(), now };
        let plan = rehearsal::plan(policy, &seen);
        if let Some(Ended::Rehearsal(_, result)) = &ended {
            self.context.metrics.backups.rehearsal_ended(&key(&**policy), result.is_ok());
        }
        if let (Some(left), Ok(like)) = (plan.begin, possible) {
            self.begin_rehearsal(policy, like, left, now);
        }
        plan
    }

    fn rehearsal_possible(
        &self,
        policy: &BackupPolicy,
        problem: Option<&Failure>,
    ) -> Result<Arc<MailCluster>, Failure> {
        if let Some(problem) = problem {
            return Err(problem.clone());
        }
        if self.under_way(Kind::Rehearsal).count() >= MAX_REHEARSALS {
            return Err(Failure::new(
                reason::WAITING,
                "waiting for the rehearsal of another BackupPolicy to end",
            ));
        }
        self.no_retention_at(&bucket_of(policy)?)?;
        self.ready_cluster(&policy.namespace().unwrap_or_default(), policy.spec.cluster_ref.as_ref())
    }

    fn begin_rehearsal(
        &mut self,
        policy: &Arc<BackupPolicy>,
        like: Arc<MailCluster>,
        left: Duration,
        now: Timestamp,
    ) {
        let progress = Arc::new(Mutex::new(Figures::default()));
        let name = cluster_name(policy, now);
        let cluster: Key = (policy.namespace().unwrap_or_default(), name.clone());
        let job = rehearse::Rehearsal {
            client: self.context.client.clone(),
            clients: self.context.clients.clone(),
            stores: self.context.stores.clone(),
            policy: policy.clone(),
            like,
            name,
        };
        let task = self.jobs.spawn({
            let progress = progress.clone();
            async move {
                let result = match tokio::time::timeout(left, job.run(&progress)).await {
                    Ok(result) => result,
                    Err(_) => Err(Failure::new(
                        reason::DEADLINE_EXCEEDED,
                        "it was not done within spec.rehearsal.deadline; raise it, or see what is slow",
                    )),
                };
                let figures = progress.lock().clone();
                Ended::Rehearsal(figures, result)
            }
        });
        let run = Running {
            name: format!("the rehearsal of BackupPolicy {}", policy.name_any()),
            cluster,
            place: place_of(policy),
            abort: task,
            told: Told::Rehearsal(progress, Figures::default()),
            told_at: Instant::now(),
        };
        self.running.insert((Kind::Rehearsal, policy.uid().unwrap_or_default()), run);
    }

    /// Deletes MailClusters of rehearsals that are not under way here: of those that have ended, and of those that an
    /// operator was lost in. Answers whether one could not be deleted.
    pub(super) async fn clear_rehearsals(&self) -> bool {
        let left = self.context.stores.clusters.state_filter(|cluster| {
            is_rehearsal(cluster)
                && cluster.metadata.deletion_timestamp.is_none()
                && !self.running.values().any(|run| run.cluster == key(cluster))
        });
        let mut failed = false;
        for cluster in left {
            let name = cluster.name_any();
            let api: Api<MailCluster> =
                Api::namespaced(self.context.client.clone(), &cluster.namespace().unwrap_or_default());
            let exactly = Preconditions { uid: cluster.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
            match api.delete(&name, &params).await {
                Ok(_) => tracing::info!(cluster = name, "what a rehearsal restored is taken away"),
                // It is gone, and so may be another one of its name.
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
                Err(error) => {
                    tracing::warn!(%error, cluster = name, "failed to take away what a rehearsal restored");
                    failed = true;
                    continue;
                }
            }
            self.context.clients.forget(&key(&*cluster));
        }
        failed
    }
}

impl Running {
    /// Figures to be told, when it is time and they have changed.
    fn rehearsed(&mut self) -> Option<Figures> {
        let Told::Rehearsal(progress, told) = &mut self.told else { return None };
        let now = progress.lock().clone();
        (now != *told && self.told_at.elapsed() >= TELL).then(|| {
            told.clone_from(&now);
            self.told_at = Instant::now();
            now
        })
    }
}
