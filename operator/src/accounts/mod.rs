//! Accounts: one worker per MailCluster keeps its directory as MailDomains, Mailboxes, MailingLists and Secrets ask.
//!
//! The supervisor starts a worker for every MailCluster and wakes it when something that concerns it changes. It also
//! answers for resources that belong to no MailCluster: they get a condition that says so, and their finalizers go.

pub mod clients;
pub mod dkim_secrets;
pub mod lists;
pub mod plan;
pub mod secrets;
pub mod worker;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::{Resource, ResourceExt as _};
use quorumail_crds::{
    ClusterRef, MailCluster, MailDomain, Mailbox, MailingList,
    backup::is_rehearsal,
    condition::{Observed, kind, reason},
    is_paused,
};
use tokio::{sync::Notify, task::JoinHandle};

use self::{secrets::Secrets, worker::Worker};
use crate::{
    mailbox::{self, Facts},
    mailcluster::Context,
    maildomain, mailinglist,
    status::{set_finalizer, write},
    stores::{Changed, Key, key},
    tenancy::Tenancy,
};

/// Changes that come within this time are worked on together.
pub const DEBOUNCE: Duration = Duration::from_millis(200);
/// Requests to the API server at the same time, for one MailCluster.
pub const CONCURRENCY: usize = 16;
/// How often resources without a MailCluster are looked at when nothing changes.
const IDLE: Duration = Duration::from_secs(60);

struct Running {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

/// Runs until it is dropped; the workers end with it.
pub async fn run(context: Arc<Context>) {
    let mut changes = context.stores.subscribe();
    let secrets = Arc::new(Secrets::new(context.client.clone(), context.stores.clone()));
    let mut supervisor = Supervisor { context, secrets, workers: HashMap::new() };
    supervisor.look(&[Changed::All]).await;
    loop {
        let mut gathered = Vec::new();
        match tokio::time::timeout(IDLE, changes.recv()).await {
            Ok(Ok(change)) => gathered.push(change),
            Ok(Err(_)) | Err(_) => gathered.push(Changed::All),
        }
        tokio::time::sleep(DEBOUNCE).await;
        while gathered.len() < 1024 {
            match changes.try_recv() {
                Ok(change) => gathered.push(change),
                Err(tokio::sync::broadcast::error::TryRecvError::Empty) => break,
                Err(_) => gathered.push(Changed::All),
            }
        }
        supervisor.look(&gathered).await;
    }
}

struct Supervisor {
    context: Arc<Context>,
    secrets: Arc<Secrets>,
    workers: HashMap<Key, Running>,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.workers.values().for_each(|running| running.task.abort());
    }
}

impl Supervisor {
    async fn look(&mut self, changes: &[Changed]) {
        let clusters: BTreeSet<Key> =
            self.context.stores.clusters.state_filter(has_accounts).iter().map(|c| key(&**c)).collect();
        self.workers.retain(|cluster, running| {
            let stays = clusters.contains(cluster);
            if !stays {
                running.task.abort();
                self.context.clients.forget(cluster);
            }
            stays
        });
        for cluster in &clusters {
            if !self.workers.contains_key(cluster) {
                let wake = Arc::new(Notify::new());
                let worker = Worker::new(self.context.clone(), self.secrets.clone(), cluster.clone());
                let task = tokio::spawn(worker.run(wake.clone()));
                self.workers.insert(cluster.clone(), Running { wake, task });
            } else if changes.iter().any(|change| self.concerns(change, cluster)) {
                self.workers[cluster].wake.notify_one();
            }
        }
        if changes.iter().any(|change| !matches!(change, Changed::Secret(_) | Changed::Backups)) {
            self.homeless().await;
        }
        if changes.contains(&Changed::All) {
            self.secrets.prune();
        }
    }

    fn concerns(&self, change: &Changed, cluster: &Key) -> bool {
        match change {
            Changed::All => true,
            Changed::Backups => false,
            Changed::Cluster(changed) => changed == cluster,
            Changed::Account(namespace, named) => {
                *namespace == cluster.0 && named.as_ref().is_none_or(|named| *named == cluster.1)
            }
            Changed::Secret((namespace, name)) => {
                let home = |m: &Mailbox| {
                    m.spec
                        .cluster_ref
                        .as_ref()
                        .map_or(namespace.clone(), |r| r.namespace_for(namespace).to_owned())
                };
                let refers = |m: &Mailbox| {
                    m.spec.password_secret_ref.as_ref().is_some_and(|r| r.name == *name)
                        || mailbox::credentials_name(m) == *name
                };
                let found =
                    self.context.stores.mailboxes.find(|m| {
                        m.namespace().as_ref() == Some(namespace) && refers(m) && home(m) == cluster.0
                    });
                found.is_some()
            }
        }
    }

    /// Answers for resources whose MailCluster is not there.
    async fn homeless(&self) {
        let domains = self.context.stores.domains.state();
        let mailboxes = self.context.stores.mailboxes.state();
        let (now, context) = (Timestamp::now(), &self.context);
        let domains = futures::stream::iter(domains).for_each_concurrent(CONCURRENCY, async |domain| {
            let Some(observed) = self.lacks_cluster(&*domain, domain.spec.cluster_ref.as_ref()) else {
                return;
            };
            let status = maildomain::status(&domain, &observed, maildomain::Facts::default(), now);
            let old = domain.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            if leave(context, &*domain).await && domain.status.as_ref() != Some(&status) {
                context.events.transition(&*domain, old, &status.conditions).await;
                warn_on(write(&context.client, &*domain, &status).await);
            }
        });
        domains.await;
        let mailboxes = futures::stream::iter(mailboxes).for_each_concurrent(CONCURRENCY, async |mailbox| {
            let Some(observed) = self.lacks_cluster(&*mailbox, mailbox.spec.cluster_ref.as_ref()) else {
                return;
            };
            let status = mailbox::status(&mailbox, &observed, Facts::default(), now);
            let old = mailbox.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            if leave(context, &*mailbox).await && mailbox.status.as_ref() != Some(&status) {
                context.events.transition(&*mailbox, old, &status.conditions).await;
                warn_on(write(&context.client, &*mailbox, &status).await);
            }
        });
        mailboxes.await;
        let lists = self.context.stores.lists.state();
        let lists = futures::stream::iter(lists).for_each_concurrent(CONCURRENCY, async |list| {
            let Some(observed) = self.lacks_cluster(&*list, list.spec.cluster_ref.as_ref()) else {
                return;
            };
            let status = mailinglist::status(&list, &observed, None, now);
            let old = list.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            if leave(context, &*list).await && list.status.as_ref() != Some(&status) {
                context.events.transition(&*list, old, &status.conditions).await;
                warn_on(write(&context.client, &*list, &status).await);
            }
        });
        lists.await;
    }

    /// The conditions of a resource whose MailCluster is not there, or is on its way out.
    fn lacks_cluster<K: Resource>(&self, object: &K, named: Option<&ClusterRef>) -> Option<Vec<Observed>> {
        if is_paused(object) {
            return None;
        }
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let stores = &self.context.stores;
        if object.meta().deletion_timestamp.is_some() {
            let home = named.map_or(&*namespace, |named| named.namespace_for(&namespace));
            // It may belong to one that cannot be read, and must not go before its mail does.
            let may_be_hidden = !stores.unreadable.of::<MailCluster>(home).is_empty();
            // Who may not use a MailCluster any more leaves it all the same: that is for its worker.
            let has_worker =
                named.is_some_and(|named| stores.cluster(home, &named.name).is_some_and(|c| is_there(&c)));
            if may_be_hidden || has_worker {
                return None;
            }
        }
        let observed = match stores.cluster_of(&namespace, named) {
            Ok(cluster) if is_there(&cluster) => return None,
            Ok(cluster) => {
                let text = format!("MailCluster {} is being deleted", cluster.name_any());
                Observed::no(kind::READY, reason::CLUSTER_NOT_FOUND, text)
            }
            Err(observed) => observed,
        };
        Some(conditions(observed))
    }
}

/// The conditions of a resource that is reconciled.
pub fn conditions(ready: Observed) -> Vec<Observed> {
    vec![ready, Observed::no(kind::PAUSED, reason::NOT_PAUSED, "the object is reconciled")]
}

fn is_there(cluster: &MailCluster) -> bool {
    cluster.metadata.deletion_timestamp.is_none()
}

/// What a rehearsal restored is nobody's wish.
fn has_accounts(cluster: &MailCluster) -> bool {
    is_there(cluster) && !is_rehearsal(cluster)
}

/// Takes the finalizer off an object that is being deleted; answers whether the object stays.
async fn leave<K: crate::status::Ours>(context: &Context, object: &K) -> bool {
    if object.meta().deletion_timestamp.is_none() {
        return true;
    }
    warn_on(set_finalizer(&context.client, object, false).await);
    false
}

/// What fails here is tried again when the object is looked at next.
fn warn_on(result: Result<(), kube::Error>) {
    if let Err(error) = result {
        tracing::warn!(%error, "failed to write an object that belongs to no MailCluster");
    }
}

/// The resources that mean one MailCluster, whether they may use it or not.
pub(crate) struct Members {
    pub(crate) tenancy: Tenancy,
    pub(crate) domains: Vec<Arc<MailDomain>>,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) lists: Vec<Arc<MailingList>>,
}

/// What means a cluster.
pub(crate) fn members(context: &Context, cluster: &MailCluster) -> Members {
    let stores = &context.stores;
    let (home, name) = key(cluster);
    let alone = stores.cluster_here(&home, None).is_ok_and(|only| only.name_any() == name);
    let belongs = |namespace: Option<String>, named: Option<&ClusterRef>| {
        let namespace = namespace.unwrap_or_default();
        named.map_or(alone && namespace == home, |named| named.means(&namespace, &home, &name))
    };
    Members {
        tenancy: Tenancy::of(cluster),
        domains: stores.domains.state_filter(|d| belongs(d.namespace(), d.spec.cluster_ref.as_ref())),
        mailboxes: stores.mailboxes.state_filter(|m| belongs(m.namespace(), m.spec.cluster_ref.as_ref())),
        lists: stores.lists.state_filter(|l| belongs(l.namespace(), l.spec.cluster_ref.as_ref())),
    }
}
