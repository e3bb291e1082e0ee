//! Carries out what [`update`](super::update) decides: applies the StatefulSet, hands leads over, takes pods away, puts the
//! template before back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet},
    core::v1::{ConfigMap, Pod, PodTemplateSpec},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use quorumail_crds::{
    MailCluster,
    condition::{Observed, kind, reason},
    mailcluster::Update,
};
use quorumail_proto::admin::ClusterStatus;

use super::{
    Context, Error, failed,
    objects::{Names, config_file},
    pod::CONFIG_HASH,
    status,
    update::{self, Failed, NOTES, Notes, PodSeen, Replacing, Replication, Seen, Stable, Step},
    volumes,
};
use crate::{accounts::clients::Connection, settings::FIELD_MANAGER};

/// How long after its time a pod of the time before is waited for.
const OVERDUE: Duration = Duration::from_secs(5);
/// How long a mailnode may take to hand its leads over before its pod is taken away.
const HAND_OVER: Duration = Duration::from_secs(20);
/// How often, and after which time each, the mailnodes are asked whether the new leaders have all their replicas.
const CHECKS: u32 = 10;
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// How often, and after which time each, a StatefulSet that is deleted is looked for.
const GONE_CHECKS: u32 = 100;
const GONE_EVERY: Duration = Duration::from_millis(200);

/// The StatefulSet as it is, with the notes of the update.
#[derive(Debug, Default)]
pub struct Rollout {
    /// As the API server has it.
    pub existing: Option<StatefulSet>,
    /// As they are to be kept.
    pub notes: Notes,
}

/// Why the StatefulSet is not made yet: pods of one before it, which was deleted, are about to end. One that is made meanwhile finds
/// their names taken, and Kubernetes tries again after minutes only. A pod that is overdue is not waited for, since its node may be lost.
pub fn waits_for(pods: &[Pod], now: Timestamp) -> Option<Observed> {
    let ends = |pod: &&Pod| {
        let owned = pod.owner_references().iter().any(|owner| owner.controller == Some(true));
        let end = pod.metadata.deletion_timestamp.as_ref();
        owned && !end.is_some_and(|end| update::passed(end.0, now, OVERDUE))
    };
    let names: Vec<String> = pods.iter().filter(ends).map(|pod| pod.name_any()).collect();
    let text =
        format!("pods of a MailCluster of this name that was deleted are ending: {}", names.join(", "));
    (!names.is_empty()).then(|| Observed::no(kind::READY, reason::PENDING, text))
}

impl Rollout {
    /// Reads it.
    pub async fn read(cluster: &MailCluster, context: &Context) -> Result<Self, Error> {
        let name = Names::new(&cluster.name_any()).main;
        let existing =
            sets(cluster, context).get_opt(&name).await.map_err(failed("read StatefulSet", &name))?;
        let notes = Notes::read(existing.as_ref().and_then(|set| set.annotations().get(NOTES)));
        Ok(Self { existing, notes })
    }

    /// Of the configurations that are kept, those that a pod may still read: those of pods that there are and of the template
    /// to go back to.
    pub fn configs(&self, map: Option<&ConfigMap>, pods: &[Pod]) -> BTreeMap<String, String> {
        let of_pods = pods.iter().filter_map(|pod| pod.annotations().get(CONFIG_HASH).cloned());
        let stable = self.notes.stable.as_ref().map(|stable| stable.config.clone());
        let files: Vec<String> = of_pods.chain(stable).map(|hash| config_file(&hash)).collect();
        let data = map.and_then(|map| map.data.clone()).unwrap_or_default();
        data.into_iter().filter(|(file, _)| files.contains(file)).collect()
    }

    /// Applies the StatefulSet: with the template that is asked for, or the one before when that one was taken back.
    pub async fn apply(
        &mut self,
        cluster: &MailCluster,
        context: &Context,
        wanted: &StatefulSet,
    ) -> Result<StatefulSet, Error> {
        if self.existing.as_ref().is_some_and(|set| set.metadata.deletion_timestamp.is_some()) {
            self.wait_for_the_end(cluster, context).await?;
        }
        let generation = cluster.metadata.generation.unwrap_or_default();
        let before = if self.notes.has_failed(&template_hash(wanted), generation) {
            self.template_before(cluster, context).await?
        } else {
            self.notes.failed = None;
            None
        };
        if strategy(self.existing.as_ref()) == Some("RollingUpdate") {
            leave_rolling_updates(cluster, context).await?;
        }
        let mut set = wanted.clone();
        if let Some(existing) = &self.existing {
            volumes::keep_size(&mut set, existing);
        }
        let object = with(&set, &self.notes, before);
        let name = wanted.name_any();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patched = sets(cluster, context).patch(&name, &params, &Patch::Apply(object)).await;
        patched.map_err(failed("apply", format!("StatefulSet {name}")))
    }

    /// Whether volumes of new nodes would be smaller than asked. Not while an update is taken back: the template in place is then not
    /// the one that is asked for.
    pub fn outgrown(&self, wanted: &StatefulSet) -> bool {
        self.notes.failed.is_none()
            && self.existing.as_ref().is_some_and(|existing| volumes::is_outgrown(existing, wanted))
    }

    /// Makes the StatefulSet anew, for what of it cannot be changed. Its pods and claims stay as they are: they are left without an
    /// owner, and the new one takes them over.
    pub async fn make_anew(
        &mut self,
        cluster: &MailCluster,
        context: &Context,
        wanted: &StatefulSet,
    ) -> Result<StatefulSet, Error> {
        let name = wanted.name_any();
        let uid = self.existing.as_ref().and_then(StatefulSet::uid);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Orphan),
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        tracing::info!(cluster = cluster.name_any(), "the StatefulSet is made anew around its pods");
        let deleted = sets(cluster, context).delete(&name, &params).await;
        deleted.map_err(failed("delete", format!("StatefulSet {name}")))?;
        self.wait_for_the_end(cluster, context).await?;
        self.apply(cluster, context, wanted).await
    }

    /// Waits until the StatefulSet that is being deleted is gone.
    async fn wait_for_the_end(&mut self, cluster: &MailCluster, context: &Context) -> Result<(), Error> {
        let name = cluster.name_any();
        let uid = self.existing.as_ref().and_then(StatefulSet::uid);
        for _ in 0..GONE_CHECKS {
            let found = sets(cluster, context).get_metadata_opt(&name).await;
            let found = found.map_err(failed("read StatefulSet", &name))?;
            if found.is_none_or(|found| found.uid() != uid) {
                self.existing = None;
                return Ok(());
            }
            tokio::time::sleep(GONE_EVERY).await;
        }
        Err(Error::NotGone(format!("StatefulSet {name}")))
    }

    /// The template to go back to, as it was written; as the StatefulSet has it now when its revision is gone.
    async fn template_before(
        &self,
        cluster: &MailCluster,
        context: &Context,
    ) -> Result<Option<serde_json::Value>, Error> {
        let revision = self.notes.stable.as_ref().map(|stable| stable.revision.as_str()).unwrap_or_default();
        if let Some(template) = template_of(cluster, context, revision).await? {
            return Ok(Some(template));
        }
        let existing = self.existing.as_ref().and_then(|set| Some(&set.spec.as_ref()?.template));
        Ok(existing.and_then(|template| serde_json::to_value(template).ok()))
    }

    /// Takes the next step of an update, and tells which one it was.
    pub async fn step(
        &mut self,
        cluster: &MailCluster,
        context: &Context,
        (applied, wanted): (&StatefulSet, &StatefulSet),
        (pods, silent): (&[Pod], &BTreeSet<String>),
        (client, told): (Option<&Connection>, Result<&ClusterStatus, &String>),
    ) -> Result<Step, Error> {
        let now = Timestamp::now();
        let seen = seen(cluster, applied, (pods, silent), told, now);
        let noted = update::noted(&seen, &self.notes, now);
        if noted != self.notes {
            self.notes = noted;
            self.apply(cluster, context, wanted).await?;
        }
        let step = update::next(&seen, &self.notes, now);
        let step = self.take(cluster, context, (applied, wanted), (pods, client), &seen, step).await?;
        let before = self.notes.waits;
        let step = update::timed(step, &mut self.notes, seen.deadline, now);
        if self.notes.waits != before {
            self.apply(cluster, context, wanted).await?;
        }
        Ok(step)
    }

    async fn take(
        &mut self,
        cluster: &MailCluster,
        context: &Context,
        (applied, wanted): (&StatefulSet, &StatefulSet),
        (pods, client): (&[Pod], Option<&Connection>),
        seen: &Seen,
        step: Step,
    ) -> Result<Step, Error> {
        match &step {
            Step::Idle | Step::Wait { .. } | Step::Stuck(_) => {}
            Step::Settled => {
                let failed = self.notes.failed.take();
                self.notes = Notes { stable: Some(stable(applied, seen)), failed, ..Notes::default() };
                self.apply(cluster, context, wanted).await?;
            }
            Step::RollBack(message) => {
                let revision = self.notes.stable.as_ref().map(|s| s.revision.clone()).unwrap_or_default();
                if template_of(cluster, context, &revision).await?.is_none() {
                    let text =
                        format!("{message}; the template before is not kept any more: change the spec");
                    return Ok(Step::Stuck(text));
                }
                tracing::warn!(cluster = cluster.name_any(), message, "an update is taken back");
                let failed = Failed {
                    template: template_hash(wanted),
                    generation: cluster.metadata.generation.unwrap_or_default(),
                    message: message.clone(),
                };
                self.notes =
                    Notes { stable: self.notes.stable.take(), failed: Some(failed), ..Notes::default() };
                self.apply(cluster, context, wanted).await?;
            }
            Step::Replace { ordinal, hand_over } => {
                let (ordinal, hand_over) = (*ordinal, *hand_over);
                if hand_over
                    && applied.spec.as_ref().and_then(|spec| spec.replicas) != Some(1)
                    && let Some(why) = hand_over_leads(cluster, client, ordinal).await
                {
                    return Ok(update::paused(why));
                }
                self.notes.replacing = Some(Replacing { ordinal, since: Timestamp::now().as_second() });
                self.apply(cluster, context, wanted).await?;
                if !take_away(cluster, context, pods, ordinal, hand_over).await? {
                    let why = "the PodDisruptionBudget lets no pod go: another one is being drained";
                    return Ok(update::paused(why.to_owned()));
                }
            }
        }
        Ok(step)
    }
}

fn sets(cluster: &MailCluster, context: &Context) -> Api<StatefulSet> {
    Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default())
}

fn strategy(set: Option<&StatefulSet>) -> Option<&str> {
    set?.spec.as_ref()?.update_strategy.as_ref()?.type_.as_deref()
}

/// A StatefulSet of an older operator has settings of rolling updates, which the API server refuses beside another strategy.
async fn leave_rolling_updates(cluster: &MailCluster, context: &Context) -> Result<(), Error> {
    let name = cluster.name_any();
    let body = serde_json::json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = sets(cluster, context).patch(&name, &params, &Patch::Merge(body)).await;
    patched.map(drop).map_err(failed("patch", format!("StatefulSet {name}")))
}

/// Names a template; the same for the same one.
pub fn template_hash(set: &StatefulSet) -> String {
    let template = set.spec.as_ref().map(|spec| &spec.template);
    let text = serde_json::to_vec(&template).expect("a template is what JSON can say");
    blake3::hash(&text).to_hex().to_string()
}

/// The object that is applied.
fn with(set: &StatefulSet, notes: &Notes, template: Option<serde_json::Value>) -> serde_json::Value {
    let mut set = set.clone();
    set.annotations_mut().insert(NOTES.to_owned(), notes.to_text());
    let mut object = serde_json::to_value(&set).expect("a StatefulSet is what JSON can say");
    if let Some(template) = template {
        object["spec"]["template"] = template;
    }
    object
}

/// The template of a revision, as the StatefulSet controller keeps it.
async fn template_of(
    cluster: &MailCluster,
    context: &Context,
    revision: &str,
) -> Result<Option<serde_json::Value>, Error> {
    if revision.is_empty() {
        return Ok(None);
    }
    let namespace = cluster.namespace().unwrap_or_default();
    let revisions: Api<ControllerRevision> = Api::namespaced(context.client.clone(), &namespace);
    let found = revisions.get_opt(revision).await.map_err(failed("read ControllerRevision", revision))?;
    Ok(found.and_then(|found| template_in(found.data?.0)))
}

fn template_in(mut data: serde_json::Value) -> Option<serde_json::Value> {
    let template = data.get_mut("spec")?.get_mut("template")?.take();
    let mut template = template.as_object()?.clone();
    // What makes the revision a patch is no part of the template.
    template.remove("$patch");
    let template = serde_json::Value::Object(template);
    serde_json::from_value::<PodTemplateSpec>(template.clone()).is_ok().then_some(template)
}

fn seen(
    cluster: &MailCluster,
    applied: &StatefulSet,
    (pods, silent): (&[Pod], &BTreeSet<String>),
    told: Result<&ClusterStatus, &String>,
    now: Timestamp,
) -> Seen {
    let status = applied.status.clone().unwrap_or_default();
    let observed = status.observed_generation >= applied.metadata.generation;
    let replicas = applied.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
    Seen {
        name: cluster.name_any(),
        nodes: u64::try_from(replicas).unwrap_or_default(),
        revision: status.update_revision.filter(|revision| observed && !revision.is_empty()),
        pods: pods.iter().filter_map(|pod| PodSeen::of(pod, silent, now)).collect(),
        replication: told.map(|told| Replication::of(told, &status::groups(told))).map_err(Clone::clone),
        deadline: deadline(cluster.spec.update.as_ref()),
    }
}

fn deadline(update: Option<&Update>) -> Duration {
    update::deadline(update.and_then(|update| update.progress_deadline.as_ref()).map(|span| span.duration()))
}

fn stable(applied: &StatefulSet, seen: &Seen) -> Stable {
    let template = applied.spec.as_ref().map(|spec| &spec.template);
    let annotations = template.and_then(|template| template.metadata.as_ref()?.annotations.clone());
    Stable {
        revision: seen.revision.clone().unwrap_or_default(),
        config: annotations.and_then(|mut a| a.remove(CONFIG_HASH)).unwrap_or_default(),
        level: seen.replication.as_ref().map_or(0, |replication| replication.known),
    }
}

/// Moves the leads of a mailnode away and waits until the new leaders have all their replicas; answers what keeps it.
async fn hand_over_leads(cluster: &MailCluster, client: Option<&Connection>, ordinal: u64) -> Option<String> {
    let name = format!("{}-{ordinal}", cluster.name_any());
    let Some(client) = client else { return Some("no mailnode can be asked".to_owned()) };
    let node = usize::try_from(ordinal).unwrap_or(usize::MAX);
    match client.admin.hand_over(node, HAND_OVER).await {
        Ok(0) => {}
        Ok(left) => return Some(format!("mailnode {name} still leads {left} groups")),
        Err(error) => return Some(format!("mailnode {name} could not hand its leads over: {error}")),
    }
    let mut lacks = None;
    for _ in 0..CHECKS {
        lacks = match client.admin.cluster_status().await {
            Ok(told) => Replication::of(&told, &status::groups(&told)).lacks(&cluster.name_any()),
            Err(error) => Some(error.to_string()),
        };
        // Nothing is lacking: nothing keeps the pod.
        lacks.as_ref()?;
        tokio::time::sleep(CHECK_EVERY).await;
    }
    lacks
}

/// Takes a pod away: exactly the one that was looked at. One that serves is evicted, so that the PodDisruptionBudget counts it
/// together with those that somebody drains; false when that does not let it go.
async fn take_away(
    cluster: &MailCluster,
    context: &Context,
    pods: &[Pod],
    ordinal: u64,
    serves: bool,
) -> Result<bool, Error> {
    let name = format!("{}-{ordinal}", cluster.name_any());
    let Some(pod) = pods.iter().find(|pod| pod.name_any() == name) else { return Ok(true) };
    let exactly = Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    tracing::info!(cluster = cluster.name_any(), pod = name, "a pod is replaced");
    let gone = match serves {
        true => {
            let params = EvictParams { delete_options: Some(params), ..EvictParams::default() };
            pods.evict(&name, &params).await.map(drop)
        }
        false => pods.delete(&name, &params).await.map(drop),
    };
    match gone {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
        // Gone already, or another one by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(true),
        Err(error) => Err(failed("take away Pod", name)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stateful_set_is_made_once_the_pods_of_the_one_before_have_ended() {
        let pod = |meta: &str| -> Pod {
            serde_yaml::from_str(&format!("{{metadata: {{name: mc-1, {meta}}}, spec: {{containers: []}}}}"))
                .unwrap()
        };
        let owner = "ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: mc, uid: s-1, controller: true}]";
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-11-27T17:00:04Z");
        let told = |pod: Pod, now| waits_for(&[pod], now).map(|observed| observed.message);
        assert!(told(pod(owner), now).unwrap().contains("mc-1"), "Kubernetes is about to take it away");
        let ending = format!("{owner}, deletionTimestamp: '2026-11-27T17:00:00Z'");
        assert!(told(pod(&ending), now).is_some());
        assert_eq!(told(pod(&ending), at("2026-11-27T17:00:05Z")), None, "its node may be lost");
        assert_eq!(
            told(pod("labels: {}"), now),
            None,
            "one that was left for a new StatefulSet to take over"
        );
        assert_eq!(waits_for(&[], now), None);
    }

    #[test]
    fn a_revision_gives_its_template_back() {
        let data = serde_json::json!({"spec": {"template": {
            "$patch": "replace", "metadata": {"creationTimestamp": null, "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "mailnode", "image": "mailnode:1"}]}}}});
        let template = template_in(data).unwrap();
        assert_eq!(template["spec"]["containers"][0]["image"], "mailnode:1");
        assert!(template.get("$patch").is_none());
        for wrong in [serde_json::json!({}), serde_json::json!({"spec": {"template": 3}})] {
            assert_eq!(template_in(wrong), None);
        }
    }

    #[test]
    fn the_template_before_takes_the_place_of_the_one_that_failed() {
        let set: StatefulSet = serde_json::from_value(serde_json::json!({"metadata": {"name": "mc"}, "spec": {
            "replicas": 5, "serviceName": "mc", "selector": {}, "template": {"spec": {"containers": [{"name": "new"}]}}}}))
        .unwrap();
        let notes = Notes {
            failed: Some(Failed { template: template_hash(&set), generation: 2, message: "no".into() }),
            ..Notes::default()
        };
        assert!(notes.has_failed(&template_hash(&set), 2) && !notes.has_failed(&template_hash(&set), 3));
        let object = with(&set, &notes, Some(serde_json::json!({"spec": {"containers": [{"name": "old"}]}})));
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["name"], "old");
        assert_eq!(object["spec"]["replicas"], 5, "all but the template is as asked");
        let text = object["metadata"]["annotations"][NOTES].as_str().unwrap().to_owned();
        assert_eq!(Notes::read(Some(&text)), notes);
    }
}
