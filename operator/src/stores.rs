//! What the API server holds, kept in memory by watches: the kinds that people write, and which Secrets exist in which version.
//!
//! Of Secrets only the metadata is watched; a value is read when a Mailbox refers to it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, TryStreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store, store::Writer},
        utils::Backoff,
        watcher::{self, Event},
    },
};
use parking_lot::RwLock;
use prometheus::IntGaugeVec;
use quorumail_crds::{
    BackupPolicy, ClusterRef, MailBackup, MailCluster, MailDomain, MailRestore, Mailbox, MailingList,
    PAUSED_ANNOTATION,
    backup::is_rehearsal,
    condition::{Observed, kind, reason},
};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use crate::{
    tenancy::admitted,
    unreadable::{Sieve, Unreadable},
};

/// Changes that a listener may be behind before it is told to look at everything.
const CHANGES: usize = 1024;

/// What a watch waits after it failed for the first time; each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait. Nothing is seen until it is over, though the API server may be back; kube's own is half a minute and more.
const LONGEST_WAIT: Duration = Duration::from_secs(4);

/// How long watches wait before they are tried again: there are few operators, and a wish that is made when the API server is back
/// must be seen within seconds.
#[derive(Debug, Clone, Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(8)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        // Not all at the same instant.
        Some(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A namespace and a name in it.
pub type Key = (String, String);

/// Something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Everything, or more than can be told apart.
    All,
    /// A MailCluster.
    Cluster(Key),
    /// A MailDomain, Mailbox or MailingList of a MailCluster in this namespace: of this one, or of the only one there.
    Account(String, Option<String>),
    /// A BackupPolicy, MailBackup or MailRestore.
    Backups,
    /// A Secret.
    Secret(Key),
}

/// The stores, and a channel that tells of changes.
pub struct Stores {
    /// All MailClusters.
    pub clusters: Store<MailCluster>,
    /// All MailDomains.
    pub domains: Store<MailDomain>,
    /// All Mailboxes.
    pub mailboxes: Store<Mailbox>,
    /// All MailingLists.
    pub lists: Store<MailingList>,
    /// All BackupPolicies.
    pub policies: Store<BackupPolicy>,
    /// All MailBackups.
    pub backups: Store<MailBackup>,
    /// All MailRestores.
    pub restores: Store<MailRestore>,
    /// What is in none of them because it cannot be read.
    pub unreadable: Arc<Unreadable>,
    /// Version of every Secret.
    secrets: RwLock<HashMap<Key, String>>,
    secrets_ready: tokio::sync::watch::Sender<bool>,
    changes: broadcast::Sender<Changed>,
}

/// An API for one namespace, or for all when it is empty.
pub fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        "" => Api::all(client.clone()),
        namespace => Api::namespaced(client.clone(), namespace),
    }
}

/// Namespace and name.
pub fn key<K: Resource>(object: &K) -> Key {
    (object.meta().namespace.clone().unwrap_or_default(), object.meta().name.clone().unwrap_or_default())
}

impl Stores {
    /// Starts the watches; they run until the process ends. `unreadable` counts by kind what cannot be read.
    pub fn start(client: &Client, namespace: &str, unreadable: IntGaugeVec) -> Arc<Self> {
        let (clusters, domains, mailboxes) = (Writer::default(), Writer::default(), Writer::default());
        let lists = Writer::default();
        let (policies, backups, restores) = (Writer::default(), Writer::default(), Writer::default());
        let stores = Arc::new(Self {
            clusters: clusters.as_reader(),
            domains: domains.as_reader(),
            mailboxes: mailboxes.as_reader(),
            lists: lists.as_reader(),
            policies: policies.as_reader(),
            backups: backups.as_reader(),
            restores: restores.as_reader(),
            unreadable: Arc::new(Unreadable::new(unreadable)),
            secrets: RwLock::default(),
            secrets_ready: tokio::sync::watch::Sender::new(false),
            changes: broadcast::Sender::new(CHANGES),
        });
        tokio::spawn(stores.clone().follow(clusters, api(client, namespace), |c| Changed::Cluster(key(c))));
        tokio::spawn(
            stores.clone().follow(domains, api(client, namespace), |d| account(d, &d.spec.cluster_ref)),
        );
        tokio::spawn(
            stores.clone().follow(mailboxes, api(client, namespace), |m| account(m, &m.spec.cluster_ref)),
        );
        tokio::spawn(
            stores.clone().follow(lists, api(client, namespace), |l| account(l, &l.spec.cluster_ref)),
        );
        tokio::spawn(stores.clone().follow(policies, api(client, namespace), |_| Changed::Backups));
        tokio::spawn(stores.clone().follow(backups, api(client, namespace), |_| Changed::Backups));
        tokio::spawn(stores.clone().follow(restores, api(client, namespace), |_| Changed::Backups));
        let secrets =
            watcher::watcher(api::<PartialObjectMeta<Secret>>(client, namespace), watcher::Config::default());
        tokio::spawn(stores.clone().follow_secrets(secrets.backoff(WatchBackoff::default())));
        stores
    }

    /// Wakes those who listen.
    pub fn tell(&self, change: Changed) {
        // Fails only while nobody listens, and whoever begins to looks at everything.
        let _ = self.changes.send(change);
    }

    /// Waits until every store holds what the API server holds.
    pub async fn wait_until_ready(&self) {
        let watched = (
            self.clusters.wait_until_ready(),
            self.domains.wait_until_ready(),
            self.mailboxes.wait_until_ready(),
            self.policies.wait_until_ready(),
            self.backups.wait_until_ready(),
            self.restores.wait_until_ready(),
            self.lists.wait_until_ready(),
        );
        let all =
            tokio::try_join!(watched.0, watched.1, watched.2, watched.3, watched.4, watched.5, watched.6);
        assert!(all.is_ok(), "a watch ended, and watches never end");
        let mut ready = self.secrets_ready.subscribe();
        assert!(ready.wait_for(|ready| *ready).await.is_ok(), "the sender lives as long as the stores");
    }

    /// Changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    /// Version of a Secret; `None` when there is none.
    pub fn secret_version(&self, key: &Key) -> Option<String> {
        self.secrets.read().get(key).cloned()
    }

    /// A MailCluster; those of rehearsals are nobody's.
    pub fn cluster(&self, namespace: &str, name: &str) -> Option<Arc<MailCluster>> {
        let found = self.clusters.get(&ObjectRef::new(name).within(namespace));
        found.filter(|found| !is_rehearsal(found))
    }

    /// The MailCluster that an object of `namespace` belongs to: the one it names, where it may use that, or the only one in its
    /// namespace. Otherwise why it has none.
    pub fn cluster_of(
        &self,
        namespace: &str,
        named: Option<&ClusterRef>,
    ) -> Result<Arc<MailCluster>, Observed> {
        match named {
            Some(named) if named.namespace_for(namespace) != namespace => {
                let found = self.cluster(named.namespace_for(namespace), &named.name);
                admitted(found, named, namespace)
            }
            named => self
                .cluster_here(namespace, named.map(|named| named.name.as_str()))
                .map_err(|why| Observed::no(kind::READY, reason::CLUSTER_NOT_FOUND, why)),
        }
    }

    /// The MailCluster of this name in a namespace, or the only one there is. One that cannot be read is there all the same.
    pub fn cluster_here(&self, namespace: &str, named: Option<&str>) -> Result<Arc<MailCluster>, String> {
        let unreadable = self.unreadable.of::<MailCluster>(namespace);
        let meant = |name: &&String| named.is_none_or(|named| named == **name);
        if let Some(name) = unreadable.iter().find(meant) {
            return Err(format!("MailCluster {name} cannot be read by this operator, whose log says why"));
        }
        if let Some(named) = named {
            let found = self.cluster(namespace, named);
            return found.ok_or_else(|| format!("there is no MailCluster {named} in this namespace"));
        }
        let mut here =
            self.clusters.state_filter(|c| c.namespace().as_deref() == Some(namespace) && !is_rehearsal(c));
        match (here.pop(), here.len()) {
            (Some(only), 0) => Ok(only),
            (None, _) => Err("there is no MailCluster in this namespace".to_owned()),
            (_, others) => {
                Err(format!("there are {} MailClusters in this namespace; set spec.clusterRef", others + 1))
            }
        }
    }

    async fn follow<K>(
        self: Arc<Self>,
        mut writer: Writer<K>,
        api: Api<DeserializeGuard<K>>,
        changed: impl Fn(&K) -> Changed,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let reader = writer.as_reader();
        let events = watcher::watcher(api, watcher::Config::default()).backoff(WatchBackoff::default());
        let mut events = std::pin::pin!(events);
        let mut sieve = Sieve::new(self.unreadable.clone());
        loop {
            let event = match events.try_next().await {
                Ok(Some(event)) => sieve.sift(event, &reader),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, kind = %K::kind(&()), "watch failed; trying again");
                    continue;
                }
            };
            let Some(event) = event.map(|e| e.modify(|object| object.meta_mut().managed_fields = None))
            else {
                continue;
            };
            let tell = match &event {
                Event::Apply(object) => {
                    let before = reader.get(&ObjectRef::from_obj(object));
                    before.is_none_or(|before| asked(&*before) != asked(object)).then(|| changed(object))
                }
                Event::Delete(object) => Some(changed(object)),
                Event::InitDone => Some(Changed::All),
                Event::Init | Event::InitApply(_) => None,
            };
            writer.apply_watcher_event(&event);
            if let Some(tell) = tell {
                // No listener yet: it will look at everything when it starts.
                let _ = self.changes.send(tell);
            }
        }
    }

    async fn follow_secrets(
        self: Arc<Self>,
        events: impl Stream<Item = watcher::Result<Event<PartialObjectMeta<Secret>>>>,
    ) {
        let mut events = std::pin::pin!(events);
        let mut listed = HashMap::new();
        loop {
            let event = match events.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "watch of Secrets failed; trying again");
                    continue;
                }
            };
            let tell = match event {
                Event::Init => {
                    listed = HashMap::new();
                    continue;
                }
                Event::InitApply(secret) => {
                    listed.insert(key(&secret), secret.resource_version().unwrap_or_default());
                    continue;
                }
                Event::InitDone => {
                    *self.secrets.write() = std::mem::take(&mut listed);
                    self.secrets_ready.send_replace(true);
                    Changed::All
                }
                Event::Apply(secret) => {
                    self.secrets.write().insert(key(&secret), secret.resource_version().unwrap_or_default());
                    Changed::Secret(key(&secret))
                }
                Event::Delete(secret) => {
                    self.secrets.write().remove(&key(&secret));
                    Changed::Secret(key(&secret))
                }
            };
            let _ = self.changes.send(tell);
        }
    }
}

/// That something about a MailDomain, Mailbox or MailingList changed.
pub fn account<K: Resource>(object: &K, cluster: &Option<ClusterRef>) -> Changed {
    let (own, _) = key(object);
    match cluster {
        Some(named) => Changed::Account(named.namespace_for(&own).to_owned(), Some(named.name.clone())),
        None => Changed::Account(own, None),
    }
}

/// See [`asked`].
#[derive(PartialEq, Eq)]
struct Asked {
    generation: Option<i64>,
    leaving: bool,
    paused: Option<String>,
    uid: Option<String>,
    /// Mailboxes become members of lists by them.
    labels: Option<BTreeMap<String, String>>,
}

/// What of an object is somebody's wish: a change of its status alone is our own doing.
fn asked<K: Resource>(object: &K) -> Asked {
    let meta = object.meta();
    let paused = meta.annotations.as_ref().and_then(|a| a.get(PAUSED_ANNOTATION)).cloned();
    Asked {
        generation: meta.generation,
        leaving: meta.deletion_timestamp.is_some(),
        paused,
        uid: meta.uid.clone(),
        labels: meta.labels.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_tried_again_within_seconds_however_long_it_failed() {
        let mut backoff = WatchBackoff::default();
        let first = backoff.next().unwrap();
        assert!((FIRST_WAIT / 2..=FIRST_WAIT).contains(&first), "{first:?}");
        assert!(backoff.by_ref().take(1_000).all(|wait| wait <= LONGEST_WAIT));
        assert!(backoff.next().unwrap() >= LONGEST_WAIT / 2);
        backoff.reset();
        assert!(backoff.next().unwrap() <= FIRST_WAIT);
    }
}
