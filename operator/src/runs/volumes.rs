//! Keeps the volumes of BackupPolicies served: applies what [`volume`] builds, and knows whether the pod is Ready.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{PersistentVolumeClaim, Pod, Secret, Service},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use quorumail_crds::{BackupPolicy, condition::reason, is_paused};
use serde::Serialize;
use tokio::time::Instant;

use super::Supervisor;
use crate::{
    mailcluster::objects::CLUSTER_LABEL,
    run::Failure,
    settings::FIELD_MANAGER,
    status::Ours,
    volume::{self, Objects},
};

/// How often what is there is compared with what should be, when the policy does not change: certificates run out.
const APPLY_EVERY: Duration = Duration::from_secs(300);
/// How long the API server may take for one volume: backups elsewhere do not wait for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a volume is.
#[derive(Debug)]
pub(super) struct State {
    /// Generation of the policy that was applied, and when.
    applied: Option<(Option<i64>, Instant)>,
    /// Why nothing can be stored on it or read from it.
    problem: Option<Failure>,
}

fn failed(action: &str, what: &str, error: &kube::Error) -> Failure {
    // Of an answer that is not understood nothing is shown: it may hold what a Secret does.
    let why = match error {
        kube::Error::Api(status) => status.message.clone(),
        _ => "the API server could not be asked".to_owned(),
    };
    Failure::new(
        reason::VOLUME_NOT_READY,
        format!("failed to {action} {what} of the volume with backups: {why}"),
    )
}

impl Supervisor {
    /// What keeps a volume from being used; none where the target is none.
    pub(super) fn volume_problem(&self, policy: &BackupPolicy) -> Option<Failure> {
        policy.spec.target.volume.as_ref()?;
        match self.volumes.get(&policy.uid().unwrap_or_default()) {
            Some(state) => state.problem.clone(),
            None => Some(Failure::new(reason::VOLUME_NOT_READY, "the volume has not been looked at yet")),
        }
    }

    /// Applies what is missing, and looks at the pods.
    pub(super) async fn look_after_volumes(&mut self, policies: &[Arc<BackupPolicy>]) {
        let wanted = |policy: &&Arc<BackupPolicy>| {
            policy.spec.target.volume.is_some() && policy.metadata.deletion_timestamp.is_none()
        };
        let uids: Vec<_> = policies.iter().filter(wanted).filter_map(|policy| policy.uid()).collect();
        self.volumes.retain(|uid, _| uids.contains(uid));
        for policy in policies.iter().filter(wanted) {
            let uid = policy.uid().unwrap_or_default();
            let applied = self.volumes.get(&uid).and_then(|state| state.applied);
            let is_fresh = applied.is_some_and(|(generation, at)| {
                generation == policy.metadata.generation && at.elapsed() < APPLY_EVERY
            });
            let state = match volume::rival(policy, policies.iter().map(|policy| &**policy)) {
                Some(rival) => State { applied: None, problem: Some(rival) },
                None => {
                    let looked = tokio::time::timeout(PATIENCE, async {
                        // What is paused is left as it is, and may be used.
                        if !is_fresh && !is_paused(&**policy) {
                            self.apply_volume(policy).await?;
                        }
                        self.look_at_pods(policy).await
                    });
                    match looked.await {
                        Ok(Ok(problem)) => {
                            let now = Some((policy.metadata.generation, Instant::now()));
                            State { applied: if is_fresh { applied } else { now }, problem }
                        }
                        Ok(Err(failure)) => State { applied: None, problem: Some(failure) },
                        Err(_) => {
                            let text =
                                format!("the API server did not answer within {} s", PATIENCE.as_secs());
                            let problem = Failure::new(reason::VOLUME_NOT_READY, text);
                            State { applied: None, problem: Some(problem) }
                        }
                    }
                }
            };
            if let Some(problem) = &state.problem {
                tracing::debug!(
                    policy = policy.name_any(),
                    problem = problem.message,
                    "a volume cannot be used"
                );
            }
            self.volumes.insert(uid, state);
        }
    }

    async fn look_at_pods(&self, policy: &BackupPolicy) -> Result<Option<Failure>, Failure> {
        let namespace = policy.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let params = ListParams::default().labels(&volume::pod_selector(policy));
        let found = pods.list(&params).await.map_err(|error| failed("list", "the pods", &error))?;
        Ok(volume::not_ready(policy, &found.items))
    }

    async fn apply_volume(&self, policy: &BackupPolicy) -> Result<(), Failure> {
        let (context, namespace) = (&self.context, policy.namespace().unwrap_or_default());
        let cluster = context
            .stores
            .cluster_here(&namespace, policy.spec.cluster_ref.as_ref().map(|named| &*named.name))
            .ok();
        let settings = &context.settings;
        let built =
            volume::build(policy, cluster.as_deref(), &settings.mailnode_image, &settings.image_pull_policy);
        let Some(Objects { claim, service, deployment }) = built else { return Ok(()) };
        // First what may be refused, then what would show it only by a pod that waits.
        if let Some(claim) = &claim {
            self.apply_one::<PersistentVolumeClaim>(policy, claim, false).await?;
        } else if let Some(name) = volume::claim_name(policy) {
            self.has_claim(&namespace, &name).await?;
        }
        self.apply_secret(policy, &namespace).await?;
        self.apply_one::<Service>(policy, &service, true).await?;
        self.apply_one::<Deployment>(policy, &deployment, true).await
    }

    async fn has_claim(&self, namespace: &str, name: &str) -> Result<(), Failure> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), namespace);
        let what = format!("PersistentVolumeClaim {name}");
        match claims.get_metadata_opt(name).await {
            Ok(Some(claim)) if claim.labels().contains_key(CLUSTER_LABEL) => {
                let text = format!("{what} holds the mail of a MailCluster; name one that nothing else uses");
                Err(Failure::new(reason::CONFLICT, text))
            }
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let text = format!("{what} does not exist; make it, or correct spec.target.volume.claimName");
                Err(Failure::new(reason::VOLUME_NOT_READY, text))
            }
            Err(error) => Err(failed("read", &what, &error)),
        }
    }

    /// Made when there is none: of two operators one loses, and uses what the other has made.
    async fn apply_secret(&self, policy: &BackupPolicy, namespace: &str) -> Result<(), Failure> {
        let name = volume::name(policy);
        let what = format!("Secret {name}");
        let secrets: Api<Secret> = Api::namespaced(self.context.client.clone(), namespace);
        let stored = secrets.get_opt(&name).await.map_err(|error| failed("read", &what, &error))?;
        let secret = volume::secret(policy, stored.as_ref(), Timestamp::now())
            .map_err(|error| Failure::new(reason::VOLUME_NOT_READY, format!("{what}: {error}")))?;
        match stored {
            None => {
                let params =
                    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let made = secrets.create(&params, &secret).await;
                made.map(drop).map_err(|error| failed("make", &what, &error))
            }
            Some(stored) if !volume::is_ours(policy, &stored.metadata, true) => Err(not_ours(&what)),
            Some(stored) if stored.data == secret.data => Ok(()),
            Some(_) => {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                let applied = secrets.patch(&name, &params, &Patch::Apply(&secret)).await;
                applied.map(drop).map_err(|error| failed("apply", &what, &error))
            }
        }
    }

    /// Applies an object, unless there is one of its name that somebody else has made.
    async fn apply_one<K: Ours + Serialize>(
        &self,
        policy: &BackupPolicy,
        object: &K,
        owned: bool,
    ) -> Result<(), Failure> {
        let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
        let what = format!("{} {name}", K::kind(&()));
        let api: Api<K> = Api::namespaced(self.context.client.clone(), &namespace);
        let found = api.get_metadata_opt(&name).await.map_err(|error| failed("read", &what, &error))?;
        if found.is_some_and(|found| !volume::is_ours(policy, &found.metadata, owned)) {
            return Err(not_ours(&what));
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = api.patch(&name, &params, &Patch::Apply(object)).await;
        applied.map(drop).map_err(|error| failed("apply", &what, &error))
    }
}

fn not_ours(what: &str) -> Failure {
    let text = format!(
        "{what} exists and does not belong to this BackupPolicy; delete it, or give the BackupPolicy another name. One that a \
         BackupPolicy of the same name has left behind goes by itself; a PersistentVolumeClaim can be named in \
         spec.target.volume.claimName"
    );
    Failure::new(reason::CONFLICT, text)
}
