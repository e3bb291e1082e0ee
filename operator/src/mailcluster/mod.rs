//! The MailCluster controller: reads, decides, applies, reports.

pub mod certificates;
pub mod hosts;
pub mod issuance;
pub mod network;
pub mod objects;
pub mod pod;
pub mod rollout;
pub mod status;
pub mod update;
pub mod volumes;
pub mod zones;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::DeserializeGuard,
    runtime::{
        Controller,
        controller::Action,
        reflector::ObjectRef,
        watcher::{self, Config},
    },
};
use quorumail_crds::{
    MailCluster,
    condition::{Observed, kind, reason},
    is_paused,
};
use quorumail_proto::admin::ClusterStatus;
use serde::Serialize;

use self::{
    certificates::Stored,
    objects::{CLUSTER_LABEL, CONFIG_FILE, Names, Objects, Surroundings},
    rollout::Rollout,
    status::Observation,
    update::Step,
    volumes::{Before, Volumes},
};
use crate::{
    accounts::clients::{Clients, Connection},
    events::Events,
    mailnode_config::MailnodeConfig,
    metrics::Metrics,
    pki::PkiError,
    probing::Probing,
    settings::{FIELD_MANAGER, Settings},
    shape::Shape,
    status::{Ours, write},
    stores::{Stores, WatchBackoff, api},
};
use crate::{block_lists::Listings, dns_watch::Lookups};

/// How often a healthy cluster is asked how it is.
const POLL: Duration = Duration::from_secs(15);
/// How often a cluster that is not Ready is asked.
const POLL_UNREADY: Duration = Duration::from_secs(3);
/// How often a cluster is asked while pods are replaced.
const POLL_UPDATE: Duration = Duration::from_secs(1);
/// Longest wait after errors, which double it from one second.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Clusters that are worked on at the same time.
const CONCURRENCY: u16 = 8;

/// Everything that reconciliation needs.
pub struct Context {
    /// For the API server.
    pub client: kube::Client,
    /// Flags.
    pub settings: Settings,
    /// What is watched.
    pub stores: Arc<Stores>,
    /// Connections to mailnodes.
    pub clients: Clients,
    /// What is known of the records of domains.
    pub dns: Lookups,
    /// What block lists say of clusters.
    pub listings: Listings,
    /// What probes of domains came to.
    pub probing: Probing,
    /// For people.
    pub events: Events,
    /// For Prometheus.
    pub metrics: Metrics,
    /// Consecutive errors by cluster.
    pub failures: parking_lot::Mutex<std::collections::HashMap<crate::stores::Key, u32>>,
}

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("failed to {action} {what}: {source}")]
    Api {
        /// What was attempted.
        action: &'static str,
        /// On which object.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// It is being deleted, and still there.
    #[error("{0} is being deleted and is still there")]
    NotGone(String),
    /// A certificate could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

fn failed(action: &'static str, what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |source| Error::Api { action, what, source: Box::new(source) }
}

/// Runs until `stop` completes.
pub async fn run(context: Arc<Context>, stop: impl Future<Output = ()> + Send + Sync + 'static) {
    let (client, namespace) = (context.client.clone(), context.settings.watch_namespace.clone());
    let ours = || Config::default().labels(CLUSTER_LABEL);
    let of_pod = |pod: Pod| {
        let cluster = pod.labels().get(CLUSTER_LABEL).cloned();
        cluster.map(|name| ObjectRef::new(&name).within(&pod.namespace().unwrap_or_default()))
    };
    let config = kube::runtime::controller::Config::default()
        .debounce(Duration::from_millis(100))
        .concurrency(CONCURRENCY);
    Controller::new(api::<DeserializeGuard<MailCluster>>(&client, &namespace), watcher::Config::default())
        .owns(api::<StatefulSet>(&client, &namespace), ours())
        .owns(api::<Service>(&client, &namespace), ours())
        .owns(api::<ConfigMap>(&client, &namespace), ours())
        .owns(api::<Secret>(&client, &namespace), ours())
        .owns(api::<PodDisruptionBudget>(&client, &namespace), ours())
        .owns(api::<NetworkPolicy>(&client, &namespace), ours())
        .owns(api::<ServiceAccount>(&client, &namespace), ours())
        .watches(api::<Pod>(&client, &namespace), ours(), of_pod)
        .with_config(config)
        .trigger_backoff(WatchBackoff::default())
        .graceful_shutdown_on(stop)
        .run(reconcile, on_error, context)
        .for_each(|_| async {})
        .await;
}

fn on_error(cluster: Arc<DeserializeGuard<MailCluster>>, error: &Error, context: Arc<Context>) -> Action {
    let mut failures = context.failures.lock();
    let count = failures.entry(crate::stores::key(&*cluster)).or_default();
    *count = count.saturating_add(1);
    tracing::warn!(%error, cluster = cluster.name_any(), namespace = cluster.namespace(), "failed to reconcile");
    Action::requeue(Duration::from_secs(1u64 << (*count - 1).min(6)).min(MAX_BACKOFF))
}

async fn reconcile(
    cluster: Arc<DeserializeGuard<MailCluster>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    // One that cannot be read is left as it is; the stores tell of it.
    let Ok(cluster) = &cluster.0 else { return Ok(Action::await_change()) };
    let started = std::time::Instant::now();
    let result = step(cluster, &context).await;
    context.metrics.observe("mailcluster", started, result.is_ok());
    if result.is_ok() {
        context.failures.lock().remove(&crate::stores::key(cluster));
    }
    result
}

async fn step(cluster: &MailCluster, context: &Context) -> Result<Action, Error> {
    if cluster.metadata.deletion_timestamp.is_some() {
        // What it owns goes with it by owner references.
        return Ok(Action::await_change());
    }
    if is_paused(cluster) {
        report(cluster, context, &status::paused(cluster, Timestamp::now())).await?;
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    let stored = stored(cluster, context).await?;
    let issuance = issuance::bring_about(cluster, context, stored.public.as_ref()).await?;
    let certificates =
        certificates::current(&stored, &cluster.name_any(), &objects::public_names(cluster), now)?;
    let (relay_username, problem) = references(cluster, context).await?;
    let (client, told) = ask(cluster, context).await;
    let map = config_map(cluster, context).await?;
    let kept = kept_nodes(map.as_ref());
    let told_status = told.as_ref().ok();
    let mut unfit = None;
    let (known, known_zones) = match newest(kept, told_status) {
        Some(known) => known,
        None => {
            let before = Before::read(cluster, context).await?;
            unfit = before.problem(cluster);
            (Shape::founded(before.nodes()), Vec::new())
        }
    };
    // The first list is changed only once a mailnode answers: of volumes that are taken over, they know which list they follow.
    let next = match (known.generation, told_status) {
        (1, None) => known,
        _ => known.next(u64::from(cluster.spec.nodes), told_status),
    };
    let pods = pods(cluster, context).await?;
    let hosts = zones::of_hosts(&context.client, &pods).await;
    let found = zones::of_mailnodes(cluster, next.running, &pods, &hosts, &known_zones);
    let (shape, zones) = zones::told((known, &known_zones), next, found, told_status);
    let mut rollout = Rollout::read(cluster, context).await?;
    let ending = rollout.existing.is_none().then(|| rollout::waits_for(&pods, now)).flatten();
    let surroundings = Surroundings {
        configs: rollout.configs(map.as_ref(), &pods),
        shape,
        zones: zones.clone(),
        image: context.settings.mailnode_image.clone(),
        pull_policy: context.settings.image_pull_policy.clone(),
        operator_namespace: context.settings.namespace.clone(),
        relay_username,
    };
    let objects = objects::build(cluster, &certificates, &surroundings);
    let mut seen = match problem.or(unfit).or(issuance.problem).or(ending) {
        // Without what it refers to the mailnodes could not start; those that run are left running.
        Some(problem) => Observation { problem: Some(problem), ..Observation::default() },
        None => apply(cluster, context, &objects, &mut rollout, stored.authority.is_none()).await?,
    };
    if seen.problem.is_none()
        && let Some(client) = &client
    {
        tell_nodes(cluster, (&shape, &zones), client, told_status).await;
    }
    let silent = hosts::silent(&context.client, &pods).await;
    if let Some(applied) = &seen.nodes {
        let (sets, there) = ((applied, &objects.nodes), (pods.as_slice(), &silent));
        let by = (client.as_deref(), told.as_ref());
        seen.step = Some(rollout.step(cluster, context, sets, there, by).await?);
        seen.volumes = Volumes::grow(cluster, context, shape.running).await?;
        if seen.step == Some(Step::Idle) && rollout.outgrown(&objects.nodes) {
            seen.nodes = Some(rollout.make_anew(cluster, context, &objects.nodes).await?);
        }
        if seen.step == Some(Step::Idle) && rollout.notes.failed.is_none() {
            remove_certificate(cluster, context).await?;
        }
    }
    seen.lost =
        pods.iter().filter_map(|pod| Some((pod.name_any(), hosts::lost(pod, &silent, now)?))).collect();
    seen.failed_update = rollout.notes.failed.map(|failed| failed.message);
    seen.shape = Some(shape);
    seen.pods = pods;
    seen.told = Some(told);
    seen.block_listed = context.listings.condition(cluster);
    seen.certificate = issuance.condition;
    let under_way = match &seen.step {
        Some(Step::Wait { reason, .. }) => (*reason == reason::ROLLING_OUT).then_some(POLL_UPDATE),
        Some(Step::Replace { .. } | Step::RollBack(_) | Step::Settled) => Some(POLL_UPDATE),
        Some(Step::Idle | Step::Stuck(_)) | None => None,
    };
    let status = status::status(cluster, &seen, now);
    let ready = status.conditions.iter().any(|c| c.type_ == kind::READY && c.status == "True");
    report(cluster, context, &status).await?;
    let waits = matches!(seen.step, Some(Step::Wait { .. }));
    Ok(Action::requeue(under_way.unwrap_or(if ready && !waits { POLL } else { POLL_UNREADY })))
}

async fn stored(cluster: &MailCluster, context: &Context) -> Result<Stored, Error> {
    let names = Names::new(&cluster.name_any());
    let secrets: Api<Secret> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let get = async |name: &str| secrets.get_opt(name).await.map_err(failed("read Secret", name));
    Ok(Stored {
        authority: get(&names.authority).await?,
        node: get(&names.internal_tls).await?,
        operator: get(&names.operator_tls).await?,
        public: match cluster.spec.tls.secret_name {
            Some(_) => None,
            None => get(&names.public_tls).await?,
        },
    })
}

/// Looks at what no rule of the definition can check, and at the Secrets that the spec refers to: the relay's user name,
/// and what is missing.
async fn references(
    cluster: &MailCluster,
    context: &Context,
) -> Result<(Option<String>, Option<Observed>), Error> {
    let secrets: Api<Secret> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let relay = cluster.spec.smtp.relay.as_ref().and_then(|r| r.secret_ref.as_ref()).map(|s| s.name.as_str());
    let wanted = [
        ("spec.tls.secretName", cluster.spec.tls.secret_name.as_deref(), ["tls.crt", "tls.key"]),
        ("spec.smtp.relay.secretRef", relay, ["username", "password"]),
    ];
    if let Some(problem) = objects::invalid_retry(cluster) {
        return Ok((None, Some(problem)));
    }
    let mut username = None;
    for (field, name, keys) in wanted {
        let Some(name) = name else { continue };
        let no = |message| Observed::no(kind::READY, reason::SECRET_NOT_FOUND, message);
        let Some(secret) = secrets.get_opt(name).await.map_err(failed("read Secret", name))? else {
            return Ok((
                None,
                Some(no(format!("{field} names Secret {name}, which does not exist; make it"))),
            ));
        };
        if let Some(key) = keys.iter().find(|key| certificates::text(&secret, key).is_none()) {
            return Ok((None, Some(no(format!("Secret {name} of {field} has no key `{key}`; add it")))));
        }
        if Some(name) == relay {
            username = certificates::text(&secret, "username").map(|u| u.trim_end().to_owned());
        }
    }
    Ok((username, None))
}

async fn apply(
    cluster: &MailCluster,
    context: &Context,
    objects: &Objects,
    rollout: &mut Rollout,
    new_authority: bool,
) -> Result<Observation, Error> {
    if new_authority && let Some(authority) = objects.secrets.first() {
        // Made, not applied: of two operators that find none, one must lose before anything is signed with it.
        let namespace = cluster.namespace().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        secrets.create(&params, authority).await.map_err(failed("create Secret", authority.name_any()))?;
    }
    for secret in &objects.secrets {
        apply_one(context, secret).await?;
    }
    apply_one(context, &objects.config).await?;
    apply_one(context, &objects.account).await?;
    let mut service = None;
    for each in &objects.services {
        service = Some(apply_one(context, each).await?);
    }
    if let Some(budget) = &objects.budget {
        apply_one(context, budget).await?;
    }
    match &objects.network {
        Some(network) => drop(apply_one(context, network).await?),
        None => remove::<NetworkPolicy>(cluster, context, &cluster.name_any()).await?,
    }
    let nodes = rollout.apply(cluster, context, &objects.nodes).await?;
    Ok(Observation { nodes: Some(nodes), service, ..Observation::default() })
}

async fn apply_one<K: Ours + Serialize>(context: &Context, object: &K) -> Result<K, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let name = object.name_any();
    let patched = Api::namespaced(context.client.clone(), &namespace)
        .patch(&name, &params, &Patch::Apply(object))
        .await;
    patched.map_err(failed("apply", format!("{} {name}", K::kind(&()))))
}

/// Deletes the self-signed certificate where another Secret is named, once no pod reads it any more.
async fn remove_certificate(cluster: &MailCluster, context: &Context) -> Result<(), Error> {
    let own = Names::new(&cluster.name_any()).public_tls;
    let key = (cluster.namespace().unwrap_or_default(), own.clone());
    if objects::public_secret(cluster) != own && context.stores.secret_version(&key).is_some() {
        remove::<Secret>(cluster, context, &own).await?;
    }
    Ok(())
}

/// Deletes an object if it is there and the cluster's own.
async fn remove<K: Ours>(cluster: &MailCluster, context: &Context, name: &str) -> Result<(), Error> {
    let api: Api<K> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let what = format!("{} {name}", K::kind(&()));
    let Some(found) = api.get_metadata_opt(name).await.map_err(failed("read", what.clone()))? else {
        return Ok(());
    };
    if !found.owner_references().iter().any(|o| Some(&o.uid) == cluster.metadata.uid.as_ref()) {
        return Ok(());
    }
    let exactly = Preconditions { uid: found.uid(), resource_version: found.resource_version() };
    let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
    api.delete(name, &params).await.map_err(failed("delete", what))?;
    Ok(())
}

/// Asks the mailnodes how they are.
async fn ask(
    cluster: &MailCluster,
    context: &Context,
) -> (Option<Arc<Connection>>, Result<ClusterStatus, String>) {
    match context.clients.get(cluster).await {
        Ok(client) => {
            let told = client.admin.cluster_status().await.map_err(|e| e.to_string());
            (Some(client), told)
        }
        Err(error) => (None, Err(error.to_string())),
    }
}

async fn config_map(cluster: &MailCluster, context: &Context) -> Result<Option<ConfigMap>, Error> {
    let name = Names::new(&cluster.name_any()).config;
    let maps: Api<ConfigMap> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    maps.get_opt(&name).await.map_err(failed("read ConfigMap", &name))
}

/// The nodes, and their zones, that the configuration lists which the mailnodes have now.
fn kept_nodes(map: Option<&ConfigMap>) -> Option<(Shape, Vec<String>)> {
    let text = map.and_then(|map| map.data.as_ref()?.get(CONFIG_FILE));
    // One that cannot be read is written anew; the mailnodes know their nodes themselves.
    let config = text.and_then(|text| serde_yaml::from_str::<MailnodeConfig>(text).ok())?;
    Some((objects::shape_of(&config), objects::zones_of(&config)))
}

/// What was written last and what the mailnodes follow can differ when the ConfigMap was lost: the newer one counts, and of two that
/// are as new the one that they follow.
fn newest(kept: Option<(Shape, Vec<String>)>, told: Option<&ClusterStatus>) -> Option<(Shape, Vec<String>)> {
    let count = |nodes: usize| u64::try_from(nodes).unwrap_or(u64::MAX);
    let followed = told.and_then(|told| told.topology.as_ref()).map(|topology| {
        let shape = Shape {
            generation: topology.generation,
            founders: count(topology.founders.len()),
            staying: count(topology.nodes.iter().filter(|node| !node.leaving).count()),
            running: count(topology.nodes.len()),
        };
        let mut nodes: Vec<_> = topology.nodes.iter().collect();
        nodes.sort_unstable_by_key(|node| node.node);
        (shape, nodes.into_iter().map(|node| node.zone.clone()).collect())
    });
    [kept, followed].into_iter().flatten().max_by_key(|(shape, _)| shape.generation)
}

/// Tells the mailnodes of their nodes: the file that they have it in follows only after a while.
async fn tell_nodes(
    cluster: &MailCluster,
    (shape, zones): (&Shape, &[String]),
    client: &Connection,
    told: Option<&ClusterStatus>,
) {
    let followed = told.and_then(|told| told.topology.as_ref()).map(|topology| topology.generation);
    if followed.is_none_or(|generation| generation >= shape.generation) {
        return;
    }
    if let Err(error) = client.admin.reconfigure(objects::topology(cluster, shape, zones)).await {
        tracing::warn!(%error, cluster = cluster.name_any(), "the mailnodes could not be told of a change of nodes");
    }
}

async fn pods(cluster: &MailCluster, context: &Context) -> Result<Vec<Pod>, Error> {
    let namespace = cluster.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let params = ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", cluster.name_any()));
    Ok(pods.list(&params).await.map_err(failed("list pods of", cluster.name_any()))?.items)
}

async fn report(
    cluster: &MailCluster,
    context: &Context,
    status: &quorumail_crds::MailClusterStatus,
) -> Result<(), Error> {
    if cluster.status.as_ref() == Some(status) {
        return Ok(());
    }
    write(&context.client, cluster, status)
        .await
        .map_err(failed("write the status of", cluster.name_any()))?;
    let old = cluster.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    context.events.transition(cluster, old, &status.conditions).await;
    Ok(())
}
