//! The worker of one MailCluster: gathers, plans, tells the mailnodes, reports.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use quorumail_crds::{
    MailCluster, MailDomain, MailDomainStatus, Mailbox, MailboxStatus, MailingList, MailingListStatus,
    condition::{Observed, find, kind, reason},
    is_paused,
    mailbox::Usage,
};
use quorumail_proto::admin::{
    DirectoryChange, DirectoryResult, DomainEntry, ListEntry, MailboxEntry, directory_change::Change,
    directory_result::Code,
};
use tokio::sync::Notify;

use super::{
    CONCURRENCY, DEBOUNCE, Members,
    clients::{ClientError, Connection},
    conditions,
    lists::plan_lists,
    members,
    plan::{Plan, Verdict, plan},
    secrets::Secrets,
};
use crate::{
    admin::{AdminError, Listing},
    directory::{Credential, Orphans, Step, batches, diff, domain_of},
    dkim::{self, StoredKey},
    dns,
    mailbox::{self, Facts},
    mailcluster::{Context, objects::hostname},
    maildomain, mailinglist,
    status::{Ours, has_finalizer, set_finalizer, write},
    stores::Key,
    tenancy::Tenancy,
};

/// How often everything is compared with a full listing.
const RESYNC: Duration = Duration::from_secs(60);
/// Longest wait after errors, which double it from half a second.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Mailboxes of probes that are there for longer are nobody's any more.
const FORGOTTEN_PROBE: Duration = Duration::from_secs(2 * 3600);
/// Addresses in one question for usage.
const USAGE_BATCH: usize = 1_000;
/// Statuses that are written in one round only because the usage changed; the others follow in the next round.
const MAX_USAGE_WRITES: usize = 500;

/// Why a round did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The API server.
    #[error("failed to {0}: {1}")]
    Api(&'static str, Box<kube::Error>),
    /// No connection to the mailnodes.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The mailnodes could not be reached, or gave a wrong answer.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A password could not be hashed.
    #[error("failed to hash a password: {0}")]
    Hash(String),
    /// Some changes did not reach a majority.
    #[error("{0} changes were not taken yet")]
    Unfinished(usize),
}

fn api(action: &'static str) -> impl Fn(kube::Error) -> SyncError {
    move |error| SyncError::Api(action, Box::new(error))
}

/// One per MailCluster.
pub struct Worker {
    context: Arc<Context>,
    secrets: Arc<Secrets>,
    cluster: Key,
    /// What the mailnodes held when they were last asked, and what they took since.
    listing: Option<(Instant, Listing)>,
    /// What the mailnodes refused since the last full listing, by name: the revision, and why.
    refused: HashMap<String, (String, Observed)>,
    usage: HashMap<String, Usage>,
    /// Of mailing lists, by address.
    list_facts: HashMap<String, mailinglist::Facts>,
    /// DKIM keys by the uid of the domain, or why there are none.
    domain_keys: BTreeMap<String, Result<Vec<StoredKey>, Observed>>,
    /// Of the MailCluster.
    hostname: String,
    /// Statuses written since the last full listing, by uid: the watch may not have brought them back yet.
    written_domains: HashMap<String, MailDomainStatus>,
    written_mailboxes: HashMap<String, MailboxStatus>,
    written_lists: HashMap<String, MailingListStatus>,
    usage_writes: usize,
    /// Mailboxes of probes, and since when they are seen.
    probes: HashMap<String, Instant>,
}

impl Worker {
    /// A worker that knows nothing yet.
    pub fn new(context: Arc<Context>, secrets: Arc<Secrets>, cluster: Key) -> Self {
        Self {
            context,
            secrets,
            cluster,
            listing: None,
            refused: HashMap::new(),
            usage: HashMap::new(),
            list_facts: HashMap::new(),
            domain_keys: BTreeMap::new(),
            hostname: String::new(),
            written_domains: HashMap::new(),
            written_mailboxes: HashMap::new(),
            written_lists: HashMap::new(),
            usage_writes: 0,
            probes: HashMap::new(),
        }
    }

    /// Works whenever it is woken, and every [`RESYNC`].
    pub async fn run(mut self, wake: Arc<Notify>) {
        let mut failures = 0u32;
        loop {
            let started = Instant::now();
            let result = self.sync().await;
            self.context.metrics.observe("accounts", started, result.is_ok());
            let wait = match result {
                Ok(()) => {
                    failures = 0;
                    RESYNC
                }
                Err(error) => {
                    tracing::warn!(%error, namespace = self.cluster.0, cluster = self.cluster.1, "accounts are not in step");
                    self.listing = None;
                    failures = (failures + 1).min(16);
                    (Duration::from_millis(250) * (1 << failures.min(8))).min(MAX_BACKOFF)
                }
            };
            if tokio::time::timeout(wait, wake.notified()).await.is_ok() {
                tokio::time::sleep(DEBOUNCE).await;
            }
        }
    }

    async fn sync(&mut self) -> Result<(), SyncError> {
        let (namespace, name) = &self.cluster;
        let Some(cluster) = self.context.stores.clusters.get(&ObjectRef::new(name).within(namespace)) else {
            return Ok(());
        };
        let members = members(&self.context, &cluster);
        self.forget_outsiders(&members);
        self.finalizers(&members).await?;
        let credentials = self.credentials(&members).await?;
        self.domain_keys = self.keys(&members).await?;
        let (connection, listing) = match self.listing(&cluster, &members).await {
            Ok(known) => known,
            Err(error) => {
                self.unreachable(&members, &cluster, &error).await?;
                return Err(error);
            }
        };
        let signing = self
            .domain_keys
            .iter()
            .map(|(uid, keys)| (uid.clone(), keys.as_ref().ok().map(|keys| dkim::signing(keys))));
        let signing = signing.collect();
        self.hostname = hostname(&cluster);
        let tenancy = &members.tenancy;
        let mut plan = plan(&members.domains, &members.mailboxes, &credentials, &signing, &listing, tenancy);
        plan_lists(&mut plan, &members.lists, &members.mailboxes, &listing, tenancy);
        let steps = diff(&plan.desired, &listing, &connection.fingerprints, Orphans::RemoveEmptyDomains);
        let steps: Vec<Step> = self
            .forgotten_probes(&listing)
            .chain(steps)
            .filter(|step| !self.was_refused(step, &connection))
            .collect();
        self.carry_out(&members, &plan, &connection, steps, listing).await
    }

    /// What is said of those that may not use the MailCluster is not written here.
    fn forget_outsiders(&mut self, members: &Members) {
        let outsiders = members.domains.iter().filter(|d| !members.tenancy.allows(&***d));
        outsiders.for_each(|d| drop(self.written_domains.remove(&d.uid().unwrap_or_default())));
        let outsiders = members.mailboxes.iter().filter(|m| !members.tenancy.allows(&***m));
        outsiders.for_each(|m| drop(self.written_mailboxes.remove(&m.uid().unwrap_or_default())));
        let outsiders = members.lists.iter().filter(|l| !members.tenancy.allows(&***l));
        outsiders.for_each(|l| drop(self.written_lists.remove(&l.uid().unwrap_or_default())));
    }

    /// Removes mailboxes of probes that were ended in the middle: they live for an hour.
    fn forgotten_probes(&mut self, listing: &Listing) -> impl Iterator<Item = Step> + use<> {
        let now = Instant::now();
        self.probes.retain(|address, _| listing.probes.contains(address));
        for address in &listing.probes {
            self.probes.entry(address.clone()).or_insert(now);
        }
        let old = self.probes.iter().filter(|(_, since)| now.duration_since(**since) > FORGOTTEN_PROBE);
        let old: Vec<_> = old.map(|(address, _)| address.clone()).collect();
        old.into_iter().map(|address| Step::DeleteMailbox { address, keep_seconds: 0 })
    }

    /// Adds the finalizer to what has none yet: before the mailnodes hear of it.
    async fn finalizers(&self, members: &Members) -> Result<(), SyncError> {
        let client = &self.context.client;
        let add = async |object: Missing| match object {
            Missing::Domain(domain) => set_finalizer(client, &*domain, true).await,
            Missing::Mailbox(mailbox) => set_finalizer(client, &*mailbox, true).await,
            Missing::List(list) => set_finalizer(client, &*list, true).await,
        };
        let domains = members
            .domains
            .iter()
            .filter(|d| needs_finalizer(&***d, &members.tenancy))
            .cloned()
            .map(Missing::Domain);
        let mailboxes = members
            .mailboxes
            .iter()
            .filter(|m| needs_finalizer(&***m, &members.tenancy))
            .cloned()
            .map(Missing::Mailbox);
        let lists = members
            .lists
            .iter()
            .filter(|l| needs_finalizer(&***l, &members.tenancy))
            .cloned()
            .map(Missing::List);
        let all: Vec<_> = domains.chain(mailboxes).chain(lists).collect();
        let mut all = futures::stream::iter(all).map(add).buffer_unordered(CONCURRENCY);
        while let Some(added) = all.next().await {
            match added {
                // Somebody wrote in between; the watch brings the new version and wakes us.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                other => other.map_err(api("add the finalizer"))?,
            }
        }
        Ok(())
    }

    async fn credentials(
        &self,
        members: &Members,
    ) -> Result<BTreeMap<String, Result<Credential, Observed>>, SyncError> {
        let alive = |m: &&Arc<Mailbox>| is_looked_after(&***m, &members.tenancy);
        let all: Vec<_> = members.mailboxes.iter().filter(alive).cloned().collect();
        let read = async |mailbox: Arc<Mailbox>| {
            if mailbox.spec.password_secret_ref.is_some()
                && mailbox.status.as_ref().is_some_and(|s| s.credentials_secret.is_some())
            {
                self.secrets.discard(&mailbox).await?;
            }
            let credential = self.secrets.credential(&mailbox).await?;
            Ok((mailbox.uid().unwrap_or_default(), credential))
        };
        let read = futures::stream::iter(all).map(read).buffer_unordered(CONCURRENCY);
        read.try_collect().await.map_err(api("read Secrets"))
    }

    /// The DKIM keys of domains that are looked after.
    async fn keys(
        &self,
        members: &Members,
    ) -> Result<BTreeMap<String, Result<Vec<StoredKey>, Observed>>, SyncError> {
        let alive = |d: &&Arc<MailDomain>| is_looked_after(&***d, &members.tenancy);
        let all: Vec<_> = members.domains.iter().filter(alive).cloned().collect();
        let now = Timestamp::now();
        let read = async |domain: Arc<MailDomain>| {
            let keys = self.secrets.dkim_keys(&domain, now).await?;
            Ok((domain.uid().unwrap_or_default(), keys))
        };
        let read = futures::stream::iter(all).map(read).buffer_unordered(CONCURRENCY);
        read.try_collect().await.map_err(api("read and write Secrets with DKIM keys"))
    }

    /// What is to be said of a domain's keys and records, besides that it is served.
    fn domain_facts(&self, domain: &MailDomain, observed: &mut Vec<Observed>) -> maildomain::Facts {
        let uid = domain.metadata.uid.as_deref().unwrap_or_default();
        let old = domain.status.as_ref().map_or(&[][..], |status| &status.dns_records);
        match self.domain_keys.get(uid) {
            None => maildomain::Facts::default(),
            Some(Err(why)) => {
                observed.push(why.clone());
                observed.push(dns::verified(old));
                maildomain::Facts::default()
            }
            Some(Ok(keys)) => {
                let wanted = dns::records(&domain.spec, &self.hostname, keys);
                let records = self.context.dns.with_states(uid, wanted, old);
                observed.push(dns::dkim_ready(keys, &records));
                observed.push(dns::verified(&records));
                maildomain::Facts {
                    records: Some(records),
                    mta_sts_policy: dns::sts_policy(&domain.spec, &self.hostname),
                    mailboxes: None,
                }
            }
        }
    }

    /// What the mailnodes hold: asked for when it was not for [`RESYNC`], or after an error.
    async fn listing(
        &mut self,
        cluster: &MailCluster,
        members: &Members,
    ) -> Result<(Arc<Connection>, Listing), SyncError> {
        let connection = self.context.clients.get(cluster).await?;
        if let Some((at, listing)) = &self.listing
            && at.elapsed() < RESYNC
        {
            return Ok((connection, listing.clone()));
        }
        let mut listing = connection.admin.list_directory().await?;
        let now = Timestamp::now().as_millisecond();
        let deleted = connection.admin.list_deleted_mailboxes().await?.into_iter();
        let kept = deleted.filter(|mailbox| mailbox.purge_at > now);
        listing.deleted = kept.map(|mailbox| (mailbox.address.to_lowercase(), mailbox.revision)).collect();
        self.refused.clear();
        self.written_domains.clear();
        self.written_mailboxes.clear();
        self.written_lists.clear();
        self.list_facts = list_facts(&connection, members).await?;
        self.usage_writes = 0;
        self.usage.clear();
        let addresses: Vec<_> = members.mailboxes.iter().map(|m| m.spec.address.to_lowercase()).collect();
        for chunk in addresses.chunks(USAGE_BATCH) {
            for usage in connection.admin.usage(chunk.to_vec()).await? {
                let used = Usage { bytes: usage.bytes, messages: usage.messages };
                self.usage.insert(usage.address.to_lowercase(), used);
            }
        }
        self.listing = Some((Instant::now(), listing.clone()));
        Ok((connection, listing))
    }

    fn was_refused(&self, step: &Step, connection: &Connection) -> bool {
        let refused = self.refused.get(step.subject());
        refused.is_some_and(|(revision, _)| *revision == revision_of(step, connection))
    }

    /// Tells the mailnodes batch by batch, and reports after each on what it was about.
    async fn carry_out(
        &mut self,
        members: &Members,
        plan: &Plan,
        connection: &Arc<Connection>,
        steps: Vec<Step>,
        mut listing: Listing,
    ) -> Result<(), SyncError> {
        let mut waiting: HashMap<String, bool> =
            steps.iter().map(|s| (s.subject().to_owned(), true)).collect();
        self.report(members, plan, &listing, |name| !waiting.contains_key(name)).await?;
        let mut unfinished = 0;
        for batch in batches(&steps) {
            let changes = hash(batch.to_vec(), connection.clone()).await?;
            let results = connection.admin.apply_directory(changes.clone()).await?;
            for ((step, change), result) in batch.iter().zip(&changes).zip(&results) {
                waiting.insert(step.subject().to_owned(), false);
                unfinished += usize::from(!self.take(step, change, result, &mut listing, connection));
            }
            if let Some((_, known)) = &mut self.listing {
                known.clone_from(&listing);
            }
            let just_now: Vec<&str> = batch.iter().map(Step::subject).collect();
            self.report(members, plan, &listing, |name| just_now.contains(&name)).await?;
        }
        if !steps.is_empty() {
            // The number of mailboxes of a domain changes with others' steps.
            self.report(members, plan, &listing, |_| true).await?;
        }
        if unfinished > 0 {
            return Err(SyncError::Unfinished(unfinished));
        }
        Ok(())
    }

    /// Takes in one result; answers whether there is nothing more to do about it.
    fn take(
        &mut self,
        step: &Step,
        change: &DirectoryChange,
        result: &DirectoryResult,
        listing: &mut Listing,
        connection: &Connection,
    ) -> bool {
        let (label, done) = match result.code() {
            Code::Ok => ("ok", true),
            Code::Invalid => ("refused", true),
            Code::Conflict => ("refused", false),
            Code::Unavailable | Code::Unspecified => ("unavailable", false),
        };
        self.context.metrics.changes.with_label_values(&[label]).inc();
        let name = step.subject().to_owned();
        if result.code() == Code::Ok {
            self.refused.remove(&name);
            record(listing, change, result.partition);
            return true;
        }
        let reason = match result.code() {
            Code::Invalid => reason::REFUSED,
            Code::Conflict => reason::CONFLICT,
            _ => reason::PENDING,
        };
        let observed =
            Observed::no(kind::READY, reason, format!("the mailnodes answered: {}", result.message));
        self.refused.insert(name, (revision_of(step, connection), observed));
        done
    }

    /// Writes statuses, and takes finalizers off, of the resources whose name is to be reported on.
    async fn report(
        &mut self,
        members: &Members,
        plan: &Plan,
        listing: &Listing,
        about: impl Fn(&str) -> bool,
    ) -> Result<(), SyncError> {
        let now = Timestamp::now();
        let mut counts: HashMap<&str, u32> = HashMap::new();
        for address in listing.mailboxes.keys() {
            *counts.entry(domain_of(address)).or_default() += 1;
        }
        let mut work = Vec::new();
        for domain in members.domains.iter().filter(|d| about(&d.spec.domain.to_lowercase())) {
            let name = domain.spec.domain.to_lowercase();
            let held = listing.domains.get(&name);
            let mailboxes = counts.get(name.as_str()).copied().unwrap_or(0);
            match self.outcome(plan, domain.metadata.uid.as_deref(), &name, held.is_some()) {
                Outcome::Skip => {}
                Outcome::Release => work.push(Work::ReleaseDomain(domain.clone())),
                Outcome::Show(mut observed) => {
                    let base = with_written(domain, &self.written_domains);
                    let facts = self.domain_facts(&base, &mut observed);
                    if plan.contested.contains(base.metadata.uid.as_deref().unwrap_or_default()) {
                        observed.push(contested());
                    }
                    if !self.context.settings.no_probes {
                        let uid = base.metadata.uid.as_deref().unwrap_or_default();
                        let old = base.status.as_ref().map_or(&[][..], |status| &status.conditions);
                        observed.push(self.context.probing.observed(uid, old));
                    }
                    let facts = maildomain::Facts { mailboxes: held.map(|_| mailboxes), ..facts };
                    let status = maildomain::status(&base, &observed, facts, now);
                    if base.status.as_ref() != Some(&status) {
                        self.written_domains.insert(domain.uid().unwrap_or_default(), status.clone());
                        work.push(Work::Domain(base, status));
                    }
                }
            }
        }
        for mailbox in members.mailboxes.iter().filter(|m| about(&m.spec.address.to_lowercase())) {
            let name = mailbox.spec.address.to_lowercase();
            let held = listing.mailboxes.get(&name);
            match self.outcome(plan, mailbox.metadata.uid.as_deref(), &name, held.is_some()) {
                Outcome::Skip => {}
                Outcome::Release => work.push(Work::ReleaseMailbox(mailbox.clone())),
                Outcome::Show(observed) => {
                    let facts =
                        Facts { partition: held.map(|m| m.partition), usage: self.usage.get(&name).copied() };
                    work.extend(self.mailbox_work(mailbox, &observed, facts, now));
                }
            }
        }
        for list in members.lists.iter().filter(|l| about(&l.spec.address.to_lowercase())) {
            let name = list.spec.address.to_lowercase();
            let held = listing.lists.contains_key(&name);
            match self.outcome(plan, list.metadata.uid.as_deref(), &name, held) {
                Outcome::Skip => {}
                Outcome::Release => work.push(Work::ReleaseList(list.clone())),
                Outcome::Show(observed) => work.extend(self.list_work(list, &observed, now)),
            }
        }
        let context = &self.context;
        let done =
            futures::stream::iter(work).map(|work| work.carry_out(context)).buffer_unordered(CONCURRENCY);
        done.try_collect::<()>().await.map_err(api("write a status"))
    }

    fn list_work(&mut self, list: &Arc<MailingList>, observed: &[Observed], now: Timestamp) -> Option<Work> {
        let uid = list.uid().unwrap_or_default();
        let base = match self.written_lists.get(&uid) {
            Some(written) => Arc::new(MailingList { status: Some(written.clone()), ..(**list).clone() }),
            None => list.clone(),
        };
        let facts = self.list_facts.get(&list.spec.address.to_lowercase());
        let status = mailinglist::status(&base, observed, facts, now);
        if base.status.as_ref() == Some(&status) {
            return None;
        }
        self.written_lists.insert(uid, status.clone());
        Some(Work::List(base, status))
    }

    fn mailbox_work(
        &mut self,
        mailbox: &Arc<Mailbox>,
        observed: &[Observed],
        facts: Facts,
        now: Timestamp,
    ) -> Option<Work> {
        let base = match self.written_mailboxes.get(mailbox.metadata.uid.as_deref().unwrap_or_default()) {
            Some(written) => Arc::new(Mailbox { status: Some(written.clone()), ..(**mailbox).clone() }),
            None => mailbox.clone(),
        };
        let is_there = facts.partition.is_some();
        let mut status = mailbox::status(&base, observed, facts, now);
        if is_there && status.usage.is_none() {
            // It was not there when all were asked: what is new is empty, and its status need not be written again to say so.
            status.usage = Some(Usage::default());
        }
        let old = base.status.clone().unwrap_or_default();
        if base.status.is_some() && old == status {
            return None;
        }
        let only_usage = base.status.is_some() && MailboxStatus { usage: old.usage, ..status.clone() } == old;
        if only_usage {
            if self.usage_writes >= MAX_USAGE_WRITES {
                return None;
            }
            self.usage_writes += 1;
        }
        self.written_mailboxes.insert(mailbox.uid().unwrap_or_default(), status.clone());
        Some(Work::Mailbox(base, status))
    }

    /// What is to be said of a resource now.
    fn outcome(&self, plan: &Plan, uid: Option<&str>, name: &str, held: bool) -> Outcome {
        let refused = self.refused.get(name).map(|(_, observed)| observed.clone());
        match uid.and_then(|uid| plan.verdicts.get(uid)) {
            Some(Verdict::Released) => Outcome::Release,
            Some(Verdict::Outside) => Outcome::Skip,
            Some(Verdict::Leaving) => match refused {
                // Refused for good: the resource must not hang on it.
                Some(observed) if held && observed.reason == reason::PENDING => {
                    Outcome::Show(conditions(observed))
                }
                _ if held && refused.is_none() => {
                    let text = "waiting for the mailnodes to remove it";
                    Outcome::Show(conditions(Observed::no(kind::READY, reason::DELETING, text)))
                }
                _ => Outcome::Release,
            },
            Some(Verdict::Blocked(observed)) => Outcome::Show(conditions(observed.clone())),
            Some(Verdict::Paused) => Outcome::Show(vec![
                Observed::unknown(kind::READY, reason::BY_ANNOTATION, "not looked at while it is paused"),
                Observed::yes(
                    kind::PAUSED,
                    reason::BY_ANNOTATION,
                    "reconciliation is stopped by the annotation quorumail.io/paused; take it away to go on",
                ),
            ]),
            Some(Verdict::Wanted) => match refused {
                Some(observed) => Outcome::Show(conditions(observed)),
                None => {
                    let text = "the mailnodes confirmed it as asked";
                    Outcome::Show(conditions(Observed::yes(kind::READY, reason::SYNCED, text)))
                }
            },
            None => {
                Outcome::Show(conditions(Observed::no(kind::READY, reason::PENDING, "not looked at yet")))
            }
        }
    }

    /// The mailnodes cannot be asked: what was confirmed stays so, the rest says what it waits for.
    async fn unreachable(
        &mut self,
        members: &Members,
        cluster: &MailCluster,
        error: &SyncError,
    ) -> Result<(), SyncError> {
        let text = format!("waiting for the mailnodes of MailCluster {}: {error}", cluster.name_any());
        let observed = conditions(Observed::no(kind::READY, reason::PENDING, text));
        let now = Timestamp::now();
        let mut work = Vec::new();
        for domain in members.domains.iter().filter(|d| is_told(&***d, &members.tenancy)) {
            let known = domain.status.as_ref().map(|s| (s.observed_generation, &s.conditions));
            let confirmed =
                known.is_some_and(|(g, c)| g == domain.metadata.generation && find(c, kind::READY).is_some());
            if !confirmed {
                let facts = maildomain::Facts::default();
                work.push(Work::Domain(domain.clone(), maildomain::status(domain, &observed, facts, now)));
            }
        }
        for mailbox in members.mailboxes.iter().filter(|m| is_told(&***m, &members.tenancy)) {
            let known = mailbox.status.as_ref().map(|s| (s.observed_generation, &s.conditions));
            let confirmed = known
                .is_some_and(|(g, c)| g == mailbox.metadata.generation && find(c, kind::READY).is_some());
            if !confirmed {
                work.extend(self.mailbox_work(mailbox, &observed, Facts::default(), now));
            }
        }
        for list in members.lists.iter().filter(|l| is_told(&***l, &members.tenancy)) {
            let known = list.status.as_ref().map(|s| (s.observed_generation, &s.conditions));
            let confirmed =
                known.is_some_and(|(g, c)| g == list.metadata.generation && find(c, kind::READY).is_some());
            if !confirmed {
                work.extend(self.list_work(list, &observed, now));
            }
        }
        let context = &self.context;
        let done =
            futures::stream::iter(work).map(|work| work.carry_out(context)).buffer_unordered(CONCURRENCY);
        done.try_collect::<()>().await.map_err(api("write a status"))
    }
}

enum Missing {
    Domain(Arc<MailDomain>),
    Mailbox(Arc<Mailbox>),
    List(Arc<MailingList>),
}

enum Outcome {
    Show(Vec<Observed>),
    Release,
    /// Somebody else tells it.
    Skip,
}

enum Work {
    Domain(Arc<MailDomain>, MailDomainStatus),
    Mailbox(Arc<Mailbox>, MailboxStatus),
    List(Arc<MailingList>, MailingListStatus),
    ReleaseDomain(Arc<MailDomain>),
    ReleaseMailbox(Arc<Mailbox>),
    ReleaseList(Arc<MailingList>),
}

impl Work {
    async fn carry_out(self, context: &Context) -> Result<(), kube::Error> {
        match self {
            Self::Domain(domain, status) => {
                write(&context.client, &*domain, &status).await?;
                let old = domain.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                context.events.transition(&*domain, old, &status.conditions).await;
            }
            Self::Mailbox(mailbox, status) => {
                write(&context.client, &*mailbox, &status).await?;
                let old = mailbox.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                context.events.transition(&*mailbox, old, &status.conditions).await;
            }
            Self::List(list, status) => {
                write(&context.client, &*list, &status).await?;
                let old = list.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                context.events.transition(&*list, old, &status.conditions).await;
            }
            Self::ReleaseList(list) => release(context, &*list).await?,
            Self::ReleaseDomain(domain) => release(context, &*domain).await?,
            Self::ReleaseMailbox(mailbox) => release(context, &*mailbox).await?,
        }
        Ok(())
    }
}

async fn release<K: Ours>(context: &Context, object: &K) -> Result<(), kube::Error> {
    match set_finalizer(&context.client, object, false).await {
        // Somebody wrote in between; the watch brings the new version, and the resync the next try.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other,
    }
}

fn needs_finalizer<K: Ours>(object: &K, tenancy: &Tenancy) -> bool {
    is_looked_after(object, tenancy) && !has_finalizer(object)
}

/// Whether its status is written here while the mailnodes cannot be asked.
fn is_told<K: Ours>(object: &K, tenancy: &Tenancy) -> bool {
    !is_paused(object) && tenancy.allows(object)
}

/// Of a domain that another namespace claims as well.
fn contested() -> Observed {
    let text =
        "a MailDomain of another namespace claims this domain, or an alias of it, as well; this one has it";
    Observed::yes(kind::CONTESTED, reason::CONFLICT, text)
}

/// Whether what the object asks is carried out.
fn is_looked_after<K: Ours>(object: &K, tenancy: &Tenancy) -> bool {
    object.meta().deletion_timestamp.is_none() && !is_paused(object) && tenancy.allows(object)
}

fn with_written(domain: &Arc<MailDomain>, written: &HashMap<String, MailDomainStatus>) -> Arc<MailDomain> {
    match written.get(domain.metadata.uid.as_deref().unwrap_or_default()) {
        Some(status) => Arc::new(MailDomain { status: Some(status.clone()), ..(**domain).clone() }),
        None => domain.clone(),
    }
}

/// The revision that a step would put; a removal has none.
fn revision_of(step: &Step, connection: &Connection) -> String {
    match step {
        Step::PutDomain(domain) => connection.fingerprints.domain(domain),
        Step::PutMailbox(mailbox) => connection.fingerprints.mailbox(mailbox),
        Step::PutList(list) => connection.fingerprints.list(list),
        Step::DeleteMailbox { .. } | Step::DeleteDomain(_) | Step::DeleteList(_) => String::new(),
    }
}

/// Writes down what the mailnodes hold after a change that they took.
fn record(listing: &mut Listing, change: &DirectoryChange, partition: u32) {
    match &change.change {
        Some(Change::PutDomain(domain)) => {
            let mailboxes = listing.domains.get(&domain.domain).map_or(0, |d| d.mailboxes);
            let entry =
                DomainEntry { domain: domain.domain.clone(), revision: domain.revision.clone(), mailboxes };
            listing.domains.insert(domain.domain.clone(), entry);
        }
        Some(Change::PutMailbox(mailbox)) => {
            let entry = MailboxEntry {
                address: mailbox.address.clone(),
                revision: mailbox.revision.clone(),
                partition,
            };
            listing.mailboxes.insert(mailbox.address.clone(), entry);
            listing.deleted.remove(&mailbox.address);
        }
        Some(Change::PutList(list)) => {
            let entry =
                ListEntry { address: list.address.clone(), revision: list.revision.clone(), partition };
            listing.lists.insert(list.address.clone(), entry);
        }
        Some(Change::DeleteList(list)) => drop(listing.lists.remove(&list.address)),
        Some(Change::DeleteMailbox(mailbox)) => {
            let gone = listing.mailboxes.remove(&mailbox.address).filter(|_| mailbox.keep_seconds > 0);
            listing.deleted.extend(gone.map(|gone| (mailbox.address.clone(), gone.revision)));
            listing.probes.remove(&mailbox.address);
        }
        Some(Change::DeleteDomain(domain)) => drop(listing.domains.remove(&domain.domain)),
        None => {}
    }
}

/// What the mailnodes tell of the lists.
async fn list_facts(
    connection: &Connection,
    members: &Members,
) -> Result<HashMap<String, mailinglist::Facts>, SyncError> {
    let addresses: Vec<_> = members.lists.iter().map(|list| list.spec.address.to_lowercase()).collect();
    if addresses.is_empty() {
        return Ok(HashMap::new());
    }
    let states = connection.admin.lists(addresses, false).await?;
    let facts = states.into_iter().map(|state| {
        let facts = mailinglist::Facts {
            members: state.members,
            held: u32::try_from(state.held.len()).unwrap_or(u32::MAX),
            bouncing: state.bouncing,
        };
        (state.address.to_lowercase(), facts)
    });
    Ok(facts.collect())
}

/// Makes the changes off the async threads: passwords are hashed on the way.
async fn hash(steps: Vec<Step>, connection: Arc<Connection>) -> Result<Vec<DirectoryChange>, SyncError> {
    let hashed = tokio::task::spawn_blocking(move || {
        steps.iter().map(|step| step.to_change(&connection.fingerprints)).collect::<Result<Vec<_>, _>>()
    });
    match hashed.await {
        Ok(Ok(changes)) => Ok(changes),
        Ok(Err(error)) => Err(SyncError::Hash(error.to_string())),
        Err(error) => Err(SyncError::Hash(error.to_string())),
    }
}
