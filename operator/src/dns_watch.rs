//! Looks the records of all MailDomains up, again and again, and wakes whoever reports on them when something changed.
//!
//! What is to be looked up stands in `status.dnsRecords`, where the accounts' worker puts it; what was found comes back from
//! here with the next report. Bounded: so many domains and so many names of each at a time, each with a time limit.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use hickory_resolver::TokioResolver;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use quorumail_authentication::dns::{self as names, Answer};
use quorumail_crds::{
    MailDomain, is_paused,
    maildomain::{DnsRecord, DnsState},
};

use crate::{dns, dns_endpoint, mailcluster::Context, stores::account};

/// How often it is looked which domains are due.
const TICK: Duration = Duration::from_secs(5);
/// Between two looks at a domain of which not all records are there: somebody may be about to make them.
const SOON: Duration = Duration::from_secs(60);
/// Between two looks at one whose records are all there.
const LATER: Duration = Duration::from_secs(15 * 60);
/// Domains at a time.
const DOMAINS: usize = 4;
/// Names of one domain at a time.
const NAMES: usize = 4;
/// How often it is tried whether external-dns was installed meanwhile.
const LOOK_FOR_ENDPOINTS: Duration = Duration::from_secs(10 * 60);
/// For one name.
const WITHIN: Duration = Duration::from_secs(10);
/// `checkedAt` is told anew so often as long as nothing changes: each time is a write to the API server.
const TOLD_EVERY: i64 = 3600;

/// What was found of one domain, and when to look again.
struct Seen {
    records: Vec<DnsRecord>,
    next: Instant,
}

/// What was found, by the uid of the MailDomain.
pub struct Lookups {
    resolver: Option<TokioResolver>,
    seen: Mutex<HashMap<String, Seen>>,
    /// Until then external-dns counts as not installed.
    no_endpoints_until: Mutex<Option<Instant>>,
}

impl Lookups {
    /// Asks `servers`, or those of /etc/resolv.conf when there are none. Where DNS cannot be set up, nothing is ever known.
    pub fn new(servers: &[SocketAddr]) -> Self {
        // Not cached: a record that was just made is to be seen.
        let resolver = names::resolver(servers, false)
            .inspect_err(|error| tracing::warn!(%error, "records of domains cannot be looked up"))
            .ok();
        Self { resolver, seen: Mutex::default(), no_endpoints_until: Mutex::default() }
    }

    /// The resolver, where there is one. It keeps nothing.
    pub fn resolver(&self) -> Option<TokioResolver> {
        self.resolver.clone()
    }

    /// The records that are wanted with what is known of them: from the last look, else from the status as it was.
    pub fn with_states(&self, uid: &str, wanted: Vec<DnsRecord>, old: &[DnsRecord]) -> Vec<DnsRecord> {
        let seen = self.seen.lock();
        let fresh = seen.get(uid).map_or(&[][..], |seen| &seen.records);
        wanted.into_iter().map(|record| with_state(record, fresh, old)).collect()
    }
}

fn is_same(a: &DnsRecord, b: &DnsRecord) -> bool {
    a.name == b.name && a.type_ == b.type_ && a.value == b.value
}

/// While DNS does not answer, why it does not may differ from time to time.
fn says_the_same(a: &DnsRecord, b: &DnsRecord) -> bool {
    a.state == b.state && (a.found == b.found || a.state == DnsState::Unknown)
}

fn with_state(record: DnsRecord, fresh: &[DnsRecord], old: &[DnsRecord]) -> DnsRecord {
    let told = old.iter().find(|other| is_same(other, &record));
    let Some(found) = fresh.iter().find(|other| is_same(other, &record)) else {
        return told.cloned().unwrap_or(record);
    };
    let unchanged = told.filter(|told| says_the_same(told, found));
    let age = |told: &DnsRecord| {
        let (told, found) = (told.checked_at.as_ref(), found.checked_at.as_ref());
        told.zip(found).map(|(told, found)| found.0.as_second() - told.0.as_second())
    };
    match unchanged {
        Some(told) if age(told).is_some_and(|age| age < TOLD_EVERY) => told.clone(),
        _ => found.clone(),
    }
}

/// Runs until it is dropped.
pub async fn run(context: Arc<Context>) {
    let Some(resolver) = context.dns.resolver.clone() else { return std::future::pending().await };
    loop {
        let due = context.dns.due(&context.stores.domains.state());
        futures::stream::iter(due)
            .for_each_concurrent(DOMAINS, |domain| look(&context, &resolver, domain))
            .await;
        tokio::time::sleep(TICK).await;
    }
}

impl Lookups {
    /// Domains to look at now. Forgets those that are gone.
    fn due(&self, domains: &[Arc<MailDomain>]) -> Vec<Arc<MailDomain>> {
        let mut seen = self.seen.lock();
        let alive: std::collections::HashSet<String> = domains.iter().filter_map(|d| d.uid()).collect();
        seen.retain(|uid, _| alive.contains(uid));
        let is_due = |domain: &&Arc<MailDomain>| {
            let records = records_of(domain);
            if records.is_empty() || is_paused(&***domain) || domain.metadata.deletion_timestamp.is_some() {
                return false;
            }
            let Some(seen) = seen.get(domain.metadata.uid.as_deref().unwrap_or_default()) else {
                return true;
            };
            let same = records.len() == seen.records.len()
                && records.iter().zip(&seen.records).all(|(a, b)| is_same(a, b));
            !same || Instant::now() >= seen.next
        };
        domains.iter().filter(is_due).cloned().collect()
    }
}

fn records_of(domain: &MailDomain) -> &[DnsRecord] {
    domain.status.as_ref().map_or(&[], |status| &status.dns_records)
}

/// Hands the records to external-dns, where it is installed.
async fn publish(context: &Context, domain: &MailDomain) {
    let absent = &context.dns.no_endpoints_until;
    if absent.lock().is_some_and(|until| Instant::now() < until) {
        return;
    }
    match dns_endpoint::publish(&context.client, domain, records_of(domain)).await {
        Ok(true) => {}
        Ok(false) => *absent.lock() = Some(Instant::now() + LOOK_FOR_ENDPOINTS),
        Err(error) => {
            tracing::warn!(%error, domain = domain.spec.domain, "the DNSEndpoint could not be applied");
        }
    }
}

async fn look(context: &Context, resolver: &TokioResolver, domain: Arc<MailDomain>) {
    publish(context, &domain).await;
    let records = look_up(resolver, records_of(&domain).to_vec(), Timestamp::now()).await;
    let changed = records
        .iter()
        .zip(records_of(&domain))
        .any(|(new, old)| !says_the_same(new, old) || old.checked_at.is_none());
    let all_there = records.iter().all(|record| record.state == DnsState::Present);
    // Spread, so that many domains do not ask at the same instant for ever.
    let wait = if all_there { LATER } else { SOON }.mul_f64(rand::random_range(0.8..1.2));
    let seen = Seen { records, next: Instant::now() + wait };
    context.dns.seen.lock().insert(domain.uid().unwrap_or_default(), seen);
    if changed {
        context.stores.tell(account(&*domain, &domain.spec.cluster_ref));
    }
}

/// The records with what is found of them.
pub async fn look_up(resolver: &TokioResolver, records: Vec<DnsRecord>, now: Timestamp) -> Vec<DnsRecord> {
    // The API keeps whole seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let one = async |mut record: DnsRecord| {
        let asked = names::look_up(resolver, &record.name, dns::kind_of(&record));
        let answer = tokio::time::timeout(WITHIN, asked).await;
        let answer = answer.unwrap_or_else(|_| Answer::Failed("no answer in time".to_owned()));
        (record.state, record.found) = dns::judge(&record, &answer);
        record.checked_at = Some(Time(now));
        record
    };
    futures::stream::iter(records).map(one).buffered(NAMES).collect().await
}

#[cfg(test)]
mod tests {
    use quorumail_authentication::testkit::Dns;

    use super::*;

    fn wanted() -> Vec<DnsRecord> {
        let spec = serde_yaml::from_str("{domain: example.org, tlsRpt: {rua: t@example.org}}").unwrap();
        dns::records(&spec, "mail.example.org", &[])
    }

    fn states(records: &[DnsRecord]) -> Vec<DnsState> {
        records.iter().map(|record| record.state).collect()
    }

    #[tokio::test]
    async fn records_are_seen_as_they_are_made() {
        let server = Dns::start().await;
        let resolver = names::resolver(&[server.address], false).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = look_up(&resolver, wanted(), at(1000)).await;
        assert!(first.iter().all(|record| record.state == DnsState::Missing), "{first:?}");
        server.mx("example.org", 10, "mail.example.org").txt("example.org", "v=spf1 mx -all");
        server
            .txt("_dmarc.example.org", "v=DMARC1; p=none")
            .txt("_smtp._tls.example.org", "v=TLSRPTv1; rua=x");
        server.srv("_imaps._tcp.example.org", 0, 1, 993, "Mail.example.org");
        use DnsState::{Mismatch, Missing, Present};
        let second = look_up(&resolver, first, at(2000)).await;
        let expected = [Present, Present, Present, Mismatch, Missing, Missing, Present, Missing, Missing];
        assert_eq!(states(&second), expected, "{second:?}");
        assert_eq!(second[3].found.as_deref(), Some("v=TLSRPTv1; rua=x"));
    }

    #[tokio::test]
    async fn what_is_told_changes_only_with_what_is_found() {
        let lookups = Lookups::new(&["127.0.0.1:1".parse().unwrap()]);
        let at = |second: i64, state| {
            let mut records = wanted();
            records.iter_mut().for_each(|record| {
                record.state = state;
                record.checked_at = Some(Time(Timestamp::from_second(second).unwrap()));
            });
            records
        };
        assert_eq!(lookups.with_states("u", wanted(), &[]), wanted());
        let told = at(1000, DnsState::Present);
        assert_eq!(lookups.with_states("u", wanted(), &told), told);
        for (second, state, is_told_anew) in [
            (2000, DnsState::Present, false),
            (2000, DnsState::Missing, true),
            (2000, DnsState::Unknown, true),
            (1000 + TOLD_EVERY, DnsState::Present, true),
        ] {
            let found = at(second, state);
            let seen = Seen { records: found.clone(), next: Instant::now() };
            lookups.seen.lock().insert("u".to_owned(), seen);
            let is = lookups.with_states("u", wanted(), &told);
            assert_eq!(is, if is_told_anew { found } else { told.clone() });
        }
        let failed = |second, why: &str| {
            let mut records = at(second, DnsState::Unknown);
            records.iter_mut().for_each(|record| record.found = Some(why.to_owned()));
            records
        };
        let seen = Seen { records: failed(2000, "no answer in time"), next: Instant::now() };
        lookups.seen.lock().insert("u".to_owned(), seen);
        let told = failed(1000, "request timed out");
        assert_eq!(lookups.with_states("u", wanted(), &told), told);
    }
}
