//! What resources tell, as metrics: the DNS records of domains by state, how many mailboxes are near their quota, what block
//! lists say, and for how long changes of resources have waited for the operator.
//!
//! No address is a label; a domain is one, of which there are as many as MailDomains.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Resource, ResourceExt as _};
use prometheus::{IntGaugeVec, Opts, Registry};
use quorumail_crds::{
    ClusterRef, MailCluster, MailDomain, Mailbox, PAUSED_ANNOTATION,
    condition::{find, kind},
    maildomain::{DnsRecord, DnsState},
};

use crate::{
    block_lists::Figures,
    mailcluster::Context,
    stores::{Key, key},
};

/// How often they are told anew.
const EVERY: Duration = Duration::from_secs(15);

/// Namespace and name of the MailCluster, domain, what the records are for, and their state.
type OfRecords = [String; 5];
/// Namespace and name of the MailCluster.
type OfMailboxes = [String; 2];

/// Namespace, MailCluster, block list, and what it says.
type OfLists = [String; 4];

/// All of them, and which are shown.
#[derive(Clone)]
pub struct ResourceMetrics {
    records: IntGaugeVec,
    near_quota: IntGaugeVec,
    listings: IntGaugeVec,
    waiting: IntGaugeVec,
}

impl ResourceMetrics {
    /// Makes and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let all = Self {
            records: gauge(
                "quorumail_domain_dns_records",
                "DNS records that a domain needs, by what they are for and by what was found.",
                &["namespace", "mailcluster", "domain", "purpose", "state"],
            )?,
            near_quota: gauge(
                "quorumail_mailboxes_near_quota",
                "Mailboxes that use more than nine tenths of their quota.",
                &["namespace", "mailcluster"],
            )?,
            listings: gauge(
                "quorumail_block_list_addresses",
                "Addresses that mail leaves from, by block list and by what it says of them.",
                &["namespace", "mailcluster", "list", "state"],
            )?,
            waiting: gauge(
                "quorumail_operator_change_waiting_seconds",
                "For how long the change of a resource has waited that has waited longest, by kind.",
                &["kind"],
            )?,
        };
        registry.register(Box::new(all.waiting.clone()))?;
        registry.register(Box::new(all.listings.clone()))?;
        registry.register(Box::new(all.records.clone()))?;
        registry.register(Box::new(all.near_quota.clone()))?;
        Ok(all)
    }
}

/// Sets what there is, and takes out what was shown and is not there any more.
fn show<const N: usize>(
    gauge: &IntGaugeVec,
    shown: &mut BTreeSet<[String; N]>,
    figures: BTreeMap<[String; N], i64>,
) {
    for (labels, value) in &figures {
        gauge.with_label_values(&labels.each_ref().map(String::as_str)).set(*value);
    }
    for gone in shown.iter().filter(|labels| !figures.contains_key(*labels)) {
        let _ = gauge.remove_label_values(&gone.each_ref().map(String::as_str));
    }
    *shown = figures.into_keys().collect();
}

/// Changes that the operator has not answered yet: since when it was seen that they wait. A later change of the same object
/// waits as long as the first.
#[derive(Default)]
struct Waiting(HashMap<(&'static str, Key), Instant>);

impl Waiting {
    /// Looks again; answers how long the oldest of each kind waits, in seconds.
    fn look<const N: usize>(
        &mut self,
        kinds: [(&'static str, Vec<Key>); N],
        now: Instant,
    ) -> [(&'static str, u64); N] {
        let before = std::mem::take(&mut self.0);
        kinds.map(|(kind, objects)| {
            let mut longest = 0;
            for object in objects {
                let object = (kind, object);
                let since = before.get(&object).copied().unwrap_or(now);
                longest = longest.max(now.saturating_duration_since(since).as_secs());
                self.0.insert(object, since);
            }
            (kind, longest)
        })
    }
}

/// Objects of a kind whose status is of an earlier version, or whose deletion has not ended. Those that somebody paused wait for that
/// person.
fn unanswered<K>(objects: &[Arc<K>], observed: impl Fn(&K) -> Option<i64>) -> Vec<Key>
where
    K: Resource<DynamicType = ()>,
{
    let waits = |object: &&Arc<K>| {
        let meta = object.meta();
        let paused = meta.annotations.as_ref().is_some_and(|all| all.contains_key(PAUSED_ANNOTATION));
        !paused && (meta.deletion_timestamp.is_some() || observed(object) != meta.generation)
    };
    objects.iter().filter(waits).map(|object| key(&**object)).collect()
}

/// Runs until it is dropped.
pub async fn run(context: Arc<Context>) {
    let (mut records, mut near_quota, mut listings) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut waiting = Waiting::default();
    let stores = &context.stores;
    let cluster_of = |namespace: &str, named: Option<&ClusterRef>| {
        stores.cluster_of(namespace, named).ok().map(|cluster| key(&*cluster))
    };
    loop {
        let metrics = &context.metrics.resources;
        show(&metrics.records, &mut records, of_domains(&stores.domains.state(), cluster_of));
        show(&metrics.near_quota, &mut near_quota, of_mailboxes(&stores.mailboxes.state(), cluster_of));
        let of_lists = of_lists(&stores.clusters.state(), |cluster| context.listings.figures(cluster));
        show(&metrics.listings, &mut listings, of_lists);
        let kinds = [
            (
                "MailCluster",
                unanswered(&stores.clusters.state(), |one| one.status.as_ref()?.observed_generation),
            ),
            (
                "MailDomain",
                unanswered(&stores.domains.state(), |one| one.status.as_ref()?.observed_generation),
            ),
            (
                "Mailbox",
                unanswered(&stores.mailboxes.state(), |one| one.status.as_ref()?.observed_generation),
            ),
            (
                "MailingList",
                unanswered(&stores.lists.state(), |one| one.status.as_ref()?.observed_generation),
            ),
            (
                "BackupPolicy",
                unanswered(&stores.policies.state(), |one| one.status.as_ref()?.observed_generation),
            ),
        ];
        for (kind, seconds) in waiting.look(kinds, Instant::now()) {
            metrics.waiting.with_label_values(&[kind]).set(seconds.cast_signed());
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn of_lists(
    clusters: &[Arc<MailCluster>],
    figures: impl Fn(&MailCluster) -> Figures,
) -> BTreeMap<OfLists, i64> {
    let of_one = |cluster: &Arc<MailCluster>| {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let figures = figures(cluster).into_iter();
        figures.map(move |((list, state), count)| {
            ([namespace.clone(), name.clone(), list, state.to_owned()], count)
        })
    };
    clusters.iter().flat_map(of_one).collect()
}

/// What a record is for.
pub(crate) fn purpose(record: &DnsRecord) -> &'static str {
    match record.type_.as_str() {
        "MX" => "mx",
        "TXT" if record.name.starts_with("_dmarc.") => "dmarc",
        "TXT" if record.name.contains("._domainkey.") => "dkim",
        "TXT" if record.value.starts_with("v=spf1") => "spf",
        _ => "other",
    }
}

fn of_domains(
    domains: &[Arc<MailDomain>],
    cluster_of: impl Fn(&str, Option<&ClusterRef>) -> Option<Key>,
) -> BTreeMap<OfRecords, i64> {
    let mut figures = BTreeMap::new();
    for domain in domains {
        let namespace = domain.namespace().unwrap_or_default();
        let cluster = cluster_of(&namespace, domain.spec.cluster_ref.as_ref());
        let Some((namespace, cluster)) = cluster else { continue };
        let name = domain.spec.domain.to_lowercase();
        for record in domain.status.iter().flat_map(|status| &status.dns_records) {
            for state in [DnsState::Present, DnsState::Missing, DnsState::Mismatch, DnsState::Unknown] {
                let state_name = match state {
                    DnsState::Present => "present",
                    DnsState::Missing => "missing",
                    DnsState::Mismatch => "mismatch",
                    DnsState::Unknown => "unknown",
                };
                let labels = [&namespace, &cluster, &name, purpose(record), state_name].map(str::to_owned);
                *figures.entry(labels).or_default() += i64::from(record.state == state);
            }
        }
    }
    figures
}

fn of_mailboxes(
    mailboxes: &[Arc<Mailbox>],
    cluster_of: impl Fn(&str, Option<&ClusterRef>) -> Option<Key>,
) -> BTreeMap<OfMailboxes, i64> {
    let mut figures = BTreeMap::new();
    // Many mailboxes name few clusters: each is looked for once.
    let mut clusters: BTreeMap<(String, Option<Key>), Option<Key>> = BTreeMap::new();
    for mailbox in mailboxes {
        let namespace = mailbox.namespace().unwrap_or_default();
        let named = mailbox.spec.cluster_ref.as_ref();
        let path = |named: &ClusterRef| (named.namespace_for(&namespace).to_owned(), named.name.clone());
        let which = (namespace.clone(), named.map(path));
        let cluster = clusters.entry(which).or_insert_with(|| cluster_of(&namespace, named));
        let Some(cluster) = cluster.clone() else { continue };
        let conditions = mailbox.status.as_ref().map_or(&[][..], |status| &status.conditions);
        let is_near = find(conditions, kind::NEAR_QUOTA).is_some_and(|near| near.status == "True");
        *figures.entry(cluster.into()).or_default() += i64::from(is_near);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster_of(own: &str, named: Option<&ClusterRef>) -> Option<Key> {
        let name = named.map_or("mc", |named| &named.name);
        let namespace = named.map_or(own, |named| named.namespace_for(own));
        Some((namespace.to_owned(), name.to_owned())).filter(|(_, name)| name != "gone")
    }

    fn domain(text: &str) -> Arc<MailDomain> {
        let head = "apiVersion: quorumail.io/v1alpha1, kind: MailDomain";
        serde_yaml::from_str(&format!("{{{head}, metadata: {{name: a, namespace: mail}}, {text}}}")).unwrap()
    }

    #[test]
    fn records_are_counted_by_what_they_are_for_and_every_state_is_told() {
        let records = "[{name: example.org, type: MX, value: 10 mx, state: Present},
            {name: example.org, type: TXT, value: v=spf1 mx -all, state: Mismatch},
            {name: q1._domainkey.example.org, type: TXT, value: v=DKIM1, state: Missing},
            {name: q2._domainkey.example.org, type: TXT, value: v=DKIM1, state: Missing},
            {name: _dmarc.example.org, type: TXT, value: v=DMARC1, state: Unknown},
            {name: _imaps._tcp.example.org, type: SRV, value: 0 1 993 mx, state: Present}]";
        let all = [
            domain(&format!("spec: {{domain: Example.org}}, status: {{dnsRecords: {records}}}")),
            domain("spec: {domain: b.org, clusterRef: {name: gone}}"),
        ];
        let figures = of_domains(&all, cluster_of);
        let of = |purpose: &str, state: &str| {
            figures[&["mail", "mc", "example.org", purpose, state].map(str::to_owned)]
        };
        assert_eq!((of("spf", "mismatch"), of("spf", "present"), of("dkim", "missing")), (1, 0, 2));
        assert_eq!((of("dmarc", "unknown"), of("mx", "present"), of("other", "present")), (1, 1, 1));
        assert_eq!(figures.len(), 5 * 4);
    }

    #[test]
    fn mailboxes_near_their_quota_are_counted_and_not_named() {
        let mailbox = |near: &str| -> Arc<Mailbox> {
            let text = format!(
                "{{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {{name: a, namespace: mail}}, spec: {{address: a@x.org}},
                status: {{conditions: [{{type: NearQuota, status: \"{near}\", reason: r, message: m, lastTransitionTime: \"2026-01-01T00:00:00Z\"}}]}}}}"
            );
            serde_yaml::from_str(&text).unwrap()
        };
        let figures = of_mailboxes(&[mailbox("True"), mailbox("False"), mailbox("True")], cluster_of);
        assert_eq!(figures, BTreeMap::from([(["mail".to_owned(), "mc".to_owned()], 2)]));
    }

    #[test]
    fn a_change_waits_until_its_status_is_there_unless_it_is_paused() {
        let mailbox = |name: &str, rest: &str, observed: i64| -> Arc<Mailbox> {
            let text = format!(
                "{{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {{name: {name}, namespace: mail, generation: 2{rest}}},
                spec: {{address: a@x.org}}, status: {{observedGeneration: {observed}}}}}"
            );
            serde_yaml::from_str(&text).unwrap()
        };
        let all = [
            mailbox("answered", "", 2),
            mailbox("changed", "", 1),
            mailbox("paused", ", annotations: {quorumail.io/paused: \"true\"}", 1),
            mailbox("deleted", ", deletionTimestamp: \"2026-01-01T00:00:00Z\"", 2),
        ];
        let found = unanswered(&all, |one| one.status.as_ref()?.observed_generation);
        assert_eq!(found, ["changed", "deleted"].map(|name| ("mail".to_owned(), name.to_owned())));
    }

    #[test]
    fn the_change_that_has_waited_longest_is_told_until_it_is_answered() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let of = |names: &[&str]| {
            [("Mailbox", names.iter().map(|name| ("mail".to_owned(), (*name).to_owned())).collect())]
        };
        assert_eq!(waiting.look(of(&["a"]), at(0)), [("Mailbox", 0)]);
        assert_eq!(waiting.look(of(&["a", "b"]), at(15)), [("Mailbox", 15)]);
        assert_eq!(waiting.look(of(&["b"]), at(40)), [("Mailbox", 25)]);
        assert_eq!(waiting.look(of(&[]), at(60)), [("Mailbox", 0)]);
        assert_eq!(waiting.look(of(&["b"]), at(80)), [("Mailbox", 0)], "it was answered in between");
    }

    #[test]
    fn what_is_gone_is_not_shown_any_more() {
        let registry = Registry::new();
        let metrics = ResourceMetrics::register(&registry).unwrap();
        let mut shown = BTreeSet::new();
        let figures = |count: i64| BTreeMap::from([(["mail".to_owned(), format!("mc{count}")], count)]);
        show(&metrics.near_quota, &mut shown, figures(1));
        show(&metrics.near_quota, &mut shown, figures(2));
        let families = registry.gather();
        let family =
            families.iter().find(|family| family.name() == "quorumail_mailboxes_near_quota").unwrap();
        assert_eq!(family.get_metric().len(), 1);
    }
}
