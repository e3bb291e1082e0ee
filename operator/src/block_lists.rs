//! Looks whether the addresses that mail leaves from stand on DNS block lists (RFC 5782), for MailClusters that name some.
//!
//! A list whose answers cannot be right (it lists 127.0.0.1, or answers with something that is no entry) is taken for one that
//! does not answer: lists that were given up have listed everybody before. Bounded: an hour between two looks, so many
//! questions at a time, each with a time limit.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use hickory_resolver::TokioResolver;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use quorumail_authentication::dns::{self as names, Answer, Kind};
use quorumail_crds::{
    MailCluster,
    condition::{Observed, kind, reason},
    is_paused,
    mailcluster::BlockLists,
};

use crate::mailcluster::{Context, objects::hostname};

/// How often it is looked which clusters are due.
const TICK: Duration = Duration::from_secs(5);
/// Between two looks at a cluster.
const EVERY: Duration = Duration::from_secs(3600);
/// Between two looks at one that is listed, or of which a list did not answer.
const SOON: Duration = Duration::from_secs(600);
/// Clusters at a time.
const CLUSTERS: usize = 4;
/// Questions of one cluster at a time.
const QUESTIONS: usize = 4;
/// For one of them.
const WITHIN: Duration = Duration::from_secs(10);
/// Addresses of a host name that are looked at.
const MAX_ADDRESSES: usize = 16;
/// Characters of what a list says that are kept.
const MAX_SAID: usize = 200;
/// Entries that are named in a condition.
const NAMED: usize = 3;
/// RFC 5782 5: never listed by a list that works.
const NEVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a list says of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is not there.
    Clear,
    /// It is, for this reason; may be empty.
    Listed(String),
    /// Nothing that could be believed, and why.
    Unknown(String),
}

/// What is known of a cluster.
#[derive(Debug, Clone)]
struct Seen {
    asked: BlockLists,
    host: String,
    verdicts: BTreeMap<(String, IpAddr), Verdict>,
    /// Why there are no addresses; empty: there are.
    problem: String,
    next: Instant,
}

/// What was found, by the uid of the MailCluster.
#[derive(Default)]
pub struct Listings(Mutex<HashMap<String, Seen>>);

/// The name that is asked for an address (RFC 5782 2.1, 2.4).
fn question(address: IpAddr, list: &str) -> String {
    let reversed: Vec<String> = match address {
        IpAddr::V4(address) => address.octets().iter().rev().map(u8::to_string).collect(),
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 15]);
            let nibbles: Vec<u8> = nibbles.collect();
            nibbles.into_iter().rev().map(|nibble| format!("{nibble:x}")).collect()
        }
    };
    format!("{}.{list}", reversed.join("."))
}

/// From the answer for an address. What lies in 127.255.255.0/24 says that the question was not welcome, as from the name
/// servers of a large provider; what lies outside 127.0.0.0/8 is no entry (RFC 5782 2.1).
fn judge(answer: &Answer) -> Verdict {
    let records = match answer {
        Answer::Nothing => return Verdict::Clear,
        Answer::Failed(why) => return Verdict::Unknown(why.clone()),
        Answer::Records(records) => records,
    };
    let addresses: Vec<Ipv4Addr> = records.iter().filter_map(|record| record.parse().ok()).collect();
    if addresses.iter().any(|address| address.octets()[..3] == [127, 255, 255]) {
        return Verdict::Unknown("the list does not answer this name server".to_owned());
    }
    match addresses.iter().any(|address| address.octets()[0] == 127) {
        true => Verdict::Listed(String::new()),
        false => Verdict::Unknown(format!("{} is no entry of a block list", records.join(", "))),
    }
}

async fn ask(resolver: &TokioResolver, name: &str, kind: Kind) -> Answer {
    let answer = tokio::time::timeout(WITHIN, names::look_up(resolver, name, kind)).await;
    answer.unwrap_or_else(|_| Answer::Failed("no answer in time".to_owned()))
}

async fn look_up(resolver: &TokioResolver, address: IpAddr, list: &str) -> Verdict {
    let name = question(address, list);
    let verdict = judge(&ask(resolver, &name, Kind::Address).await);
    if verdict != Verdict::Listed(String::new()) {
        return verdict;
    }
    match judge(&ask(resolver, &question(NEVER, list), Kind::Address).await) {
        Verdict::Clear => {}
        _ => return Verdict::Unknown("the list lists 127.0.0.1 and cannot be believed".to_owned()),
    }
    let said = match ask(resolver, &name, Kind::Txt).await {
        Answer::Records(texts) => texts.join("; "),
        _ => String::new(),
    };
    Verdict::Listed(said.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect())
}

/// The addresses that mail leaves from; a reason when they cannot be told.
async fn addresses(resolver: &TokioResolver, asked: &BlockLists, host: &str) -> Result<Vec<IpAddr>, String> {
    if !asked.addresses.is_empty() {
        return Ok(asked.addresses.iter().filter_map(|text| text.parse().ok()).collect());
    }
    match ask(resolver, host, Kind::Address).await {
        Answer::Records(found) => {
            Ok(found.iter().filter_map(|text| text.parse().ok()).take(MAX_ADDRESSES).collect())
        }
        Answer::Nothing => Err(format!(
            "{host} has no address in DNS; name those that mail leaves from in spec.monitoring.blockLists.addresses"
        )),
        Answer::Failed(why) => Err(format!("the address of {host} cannot be looked up: {why}")),
    }
}

impl Seen {
    async fn look(resolver: &TokioResolver, asked: BlockLists, host: String) -> Self {
        let (addresses, problem) = match addresses(resolver, &asked, &host).await {
            Ok(addresses) => (addresses, String::new()),
            Err(problem) => (Vec::new(), problem),
        };
        let pairs: Vec<(String, IpAddr)> = asked
            .lists
            .iter()
            .flat_map(|list| addresses.iter().map(move |address| (list.clone(), *address)))
            .collect();
        let verdicts = futures::stream::iter(pairs)
            .map(|(list, address)| async move {
                let verdict = look_up(resolver, address, &list).await;
                ((list, address), verdict)
            })
            .buffer_unordered(QUESTIONS)
            .collect::<BTreeMap<_, _>>()
            .await;
        let is_well = problem.is_empty() && verdicts.values().all(|verdict| *verdict == Verdict::Clear);
        // Spread, so that many clusters do not ask at the same instant for ever.
        let wait = if is_well { EVERY } else { SOON }.mul_f64(rand::random_range(0.9..1.1));
        Self { asked, host, verdicts, problem, next: Instant::now() + wait }
    }

    fn condition(&self) -> Observed {
        if !self.problem.is_empty() {
            return Observed::unknown(kind::BLOCK_LISTED, reason::NOT_LOOKED_UP, self.problem.clone());
        }
        let listed: Vec<String> = self.verdicts.iter().filter_map(listed).collect();
        if !listed.is_empty() {
            let more = listed.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let named = listed.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
            return Observed::yes(kind::BLOCK_LISTED, reason::LISTED, format!("{named}{more}"));
        }
        let unknown: std::collections::BTreeSet<&String> = self
            .verdicts
            .iter()
            .filter(|(_, verdict)| matches!(verdict, Verdict::Unknown(_)))
            .map(|((list, _), _)| list)
            .collect();
        if unknown.is_empty() {
            let text =
                format!("none of {} block lists has an address of this MailCluster", self.asked.lists.len());
            return Observed::no(kind::BLOCK_LISTED, reason::NOT_LISTED, text);
        }
        // Why they do not answer may differ from time to time, and would be a write each time.
        let names = unknown.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let text = format!("no answer that can be believed from {names}");
        Observed::unknown(kind::BLOCK_LISTED, reason::NOT_LOOKED_UP, text)
    }
}

fn listed(((list, address), verdict): (&(String, IpAddr), &Verdict)) -> Option<String> {
    match verdict {
        Verdict::Listed(said) if said.is_empty() => Some(format!("{address} is listed by {list}")),
        Verdict::Listed(said) => Some(format!("{address} is listed by {list} ({said})")),
        _ => None,
    }
}

/// How many addresses of a cluster a list has an answer of each kind for.
pub type Figures = BTreeMap<(String, &'static str), i64>;

impl Listings {
    /// What is known of a cluster that names block lists; none while nothing is.
    pub fn condition(&self, cluster: &MailCluster) -> Option<Observed> {
        asked(cluster)?;
        self.0.lock().get(cluster.uid()?.as_str()).map(Seen::condition)
    }

    /// For metrics: by list, and `listed`, `clear` or `unknown`.
    pub fn figures(&self, cluster: &MailCluster) -> Figures {
        let mut figures = Figures::new();
        let seen = self.0.lock();
        let Some(seen) = cluster.metadata.uid.as_ref().and_then(|uid| seen.get(uid)) else { return figures };
        for ((list, _), verdict) in &seen.verdicts {
            for (state, is_so) in [
                ("listed", matches!(verdict, Verdict::Listed(_))),
                ("clear", *verdict == Verdict::Clear),
                ("unknown", matches!(verdict, Verdict::Unknown(_))),
            ] {
                *figures.entry((list.clone(), state)).or_default() += i64::from(is_so);
            }
        }
        figures
    }

    /// Clusters to look at now. Forgets those that are gone, or name no lists any more.
    fn due(&self, clusters: &[Arc<MailCluster>]) -> Vec<Arc<MailCluster>> {
        let mut seen = self.0.lock();
        let wanted: HashSet<String> =
            clusters.iter().filter(|c| asked(c).is_some()).filter_map(|c| c.uid()).collect();
        seen.retain(|uid, _| wanted.contains(uid));
        let is_due = |cluster: &&Arc<MailCluster>| {
            let (Some(asked), Some(uid)) = (asked(cluster), cluster.uid()) else { return false };
            let known = seen.get(&uid);
            !is_paused(&***cluster)
                && known.is_none_or(|known| {
                    known.asked != *asked || known.host != hostname(cluster) || Instant::now() >= known.next
                })
        };
        clusters.iter().filter(is_due).cloned().collect()
    }
}

/// The lists that a cluster names.
pub fn asked(cluster: &MailCluster) -> Option<&BlockLists> {
    cluster.spec.monitoring.as_ref()?.block_lists.as_ref()
}

/// Runs until it is dropped. What is found is told by the next report of the cluster.
pub async fn run(context: Arc<Context>) {
    let Some(resolver) = context.dns.resolver() else { return std::future::pending().await };
    loop {
        let due = context.listings.due(&context.stores.clusters.state());
        let one = async |cluster: Arc<MailCluster>| {
            let (Some(asked), Some(uid)) = (asked(&cluster), cluster.uid()) else { return };
            let seen = Seen::look(&resolver, asked.clone(), hostname(&cluster)).await;
            context.listings.0.lock().insert(uid, seen);
        };
        futures::stream::iter(due).for_each_concurrent(CLUSTERS, one).await;
        tokio::time::sleep(TICK).await;
    }
}

#[cfg(test)]
mod tests {
    use quorumail_authentication::testkit::Dns;

    use super::*;

    #[test]
    fn addresses_are_asked_for_in_reverse() {
        let asked = |address: &str| question(address.parse().unwrap(), "list.example");
        assert_eq!(asked("192.0.2.99"), "99.2.0.192.list.example");
        // RFC 5782 2.4.
        assert_eq!(
            asked("2001:db8:1:2:3:4:567:89ab"),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.list.example"
        );
    }

    #[test]
    fn only_an_entry_is_an_entry() {
        let records = |texts: &[&str]| Answer::Records(texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(judge(&Answer::Nothing), Verdict::Clear);
        assert_eq!(judge(&records(&["127.0.0.4"])), Verdict::Listed(String::new()));
        for no_entry in
            [records(&["127.255.255.254"]), records(&["198.51.100.1"]), Answer::Failed("x".to_owned())]
        {
            assert!(matches!(judge(&no_entry), Verdict::Unknown(_)), "{no_entry:?}");
        }
    }

    #[tokio::test]
    async fn a_listed_address_is_told_with_what_the_list_says() {
        let server = Dns::start().await;
        let resolver = names::resolver(&[server.address], false).unwrap();
        let asked = BlockLists {
            lists: vec!["bad.example".to_owned(), "good.example".to_owned(), "mad.example".to_owned()],
            addresses: Vec::new(),
        };
        let look = || Seen::look(&resolver, asked.clone(), "mail.example.org".to_owned());
        let nowhere = look().await.condition();
        assert_eq!(nowhere.status, None);
        assert!(nowhere.message.contains("spec.monitoring.blockLists.addresses"), "{}", nowhere.message);

        let entry = Ipv4Addr::new(127, 0, 0, 2);
        server.a("mail.example.org", Ipv4Addr::new(192, 0, 2, 99));
        let clear = look().await;
        assert_eq!(clear.condition().status, Some(false), "{clear:?}");
        assert!(clear.next > Instant::now() + SOON * 2);

        server.a("99.2.0.192.bad.example", entry).txt("99.2.0.192.bad.example", "see https://bad.example/?q");
        // One that was given up and lists everybody.
        server.a("99.2.0.192.mad.example", entry).a("1.0.0.127.mad.example", entry);
        let seen = look().await;
        let told = seen.condition();
        assert_eq!(told.status, Some(true));
        assert_eq!(told.message, "192.0.2.99 is listed by bad.example (see https://bad.example/?q)");
        assert!(seen.next < Instant::now() + EVERY / 2);
        server.clear("99.2.0.192.bad.example");
        let told = look().await.condition();
        assert_eq!((told.status, told.message.contains("mad.example")), (None, true), "{}", told.message);
    }
}
