//! Every minute a message is sent and read back in each domain: what people would notice is noticed first, and uptime is what
//! these probes say.
//!
//! A probe takes the way of a person's programs: submission and IMAP at the Service of the MailCluster. Bounded: so many
//! at a time, each with a time limit, spread over the minute. The mailbox is made for it ([`account`]) and renewed once an hour.

pub mod account;
pub mod metrics;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use quorumail_crds::{
    MailCluster, MailDomain,
    condition::{Observed, find, kind, reason},
    is_paused,
};
use rustls::RootCertStore;
use tokio::{task::JoinSet, time::Instant};

use self::{
    account::{Account, AccountError},
    metrics::Labels,
};
use crate::{
    imap::ImapError,
    mailcluster::{
        Context,
        certificates::{CA_KEY, CERT_KEY, text},
        objects::{hostname, public_secret, service_host},
    },
    probe::{self, Passed, Probe, ProbeError, Service},
    stores::{Changed, Key, key},
};

/// Between two probes of a domain.
pub const EVERY: Duration = Duration::from_secs(60);
/// How often it is looked which domains are due.
const TICK: Duration = Duration::from_secs(1);
/// Probes at a time. With more domains than end within [`EVERY`] each is probed less often.
const AT_ONCE: usize = 8;
/// For all of a probe: less than [`EVERY`], so that a domain has one at a time.
const WITHIN: Duration = Duration::from_secs(50);
/// For the message to be found once it was taken.
const FOUND_WITHIN: Duration = Duration::from_secs(30);
/// A mailbox is renewed after this time, and what it held goes with it.
const RENEW: Duration = Duration::from_secs(3600);
/// Failures in a row from which a domain's condition tells of them: one may be a node that was just lost.
const TOLD_FROM: u32 = 3;
/// Well-known ports of submission with STARTTLS and of IMAP with TLS.
const SUBMISSION: u16 = 587;
const IMAPS: u16 = 993;

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The message came back.
    Passed(Passed),
    /// The mailnodes took no mailbox to send to.
    NotSetUp(String),
    /// The message was not taken.
    NotSent(String),
    /// It was taken and could not be read.
    NotRead(String),
    /// It was not tried, for a reason that says nothing about mail.
    Unknown(String),
}

impl Outcome {
    /// Of a probe of which nothing was heard in time.
    fn late() -> Self {
        Self::NotRead(format!("a probe had not ended after {} s", WITHIN.as_secs()))
    }

    /// Of one that failed.
    pub fn of(error: &ProbeError) -> Self {
        match error {
            ProbeError::Setup(_) => Self::Unknown(error.to_string()),
            ProbeError::Resolve { .. } | ProbeError::NotSent { .. } => Self::NotSent(error.to_string()),
            ProbeError::Imap { .. } | ProbeError::NotFound(_) | ProbeError::Changed => {
                Self::NotRead(error.to_string())
            }
        }
    }
}

/// Failures in a row.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Row {
    failures: u32,
    /// Of the one from which on it is told: told anew each minute it would be a write each minute.
    words: String,
}

/// What is known, for conditions, by the uid of the MailDomain.
#[derive(Debug, Default)]
pub struct Probing(Mutex<HashMap<String, Row>>);

impl Probing {
    /// The condition `Probed` of a domain. Before its first probe here it stays as it was.
    pub fn observed(&self, uid: &str, old: &[Condition]) -> Observed {
        let kind = kind::PROBED;
        let failed = |words: &str| {
            let text = format!("{words}; `quorumail probe` tries again at once");
            Observed::no(kind, reason::PROBE_FAILED, text)
        };
        match (self.0.lock().get(uid), find(old, kind)) {
            (Some(row), _) if row.failures >= TOLD_FROM => failed(&row.words),
            (Some(Row { failures: 0, .. }), _) => passed(),
            (_, Some(old)) if old.status == "True" => passed(),
            (_, Some(old)) if old.status == "False" => {
                Observed::no(kind, reason::PROBE_FAILED, old.message.clone())
            }
            _ => Observed::unknown(kind, reason::NOT_YET, "no message was sent and read back yet"),
        }
    }

    /// Takes in an outcome; whether the condition may be another now.
    fn take(&self, uid: &str, outcome: &Outcome) -> bool {
        let mut rows = self.0.lock();
        let known = rows.contains_key(uid);
        let words = match outcome {
            Outcome::Unknown(_) => return false,
            Outcome::Passed(_) => {
                let row = rows.entry(uid.to_owned()).or_default();
                let was_told = row.failures >= TOLD_FROM;
                *row = Row::default();
                return was_told || !known;
            }
            Outcome::NotSetUp(words) | Outcome::NotSent(words) | Outcome::NotRead(words) => words,
        };
        let row = rows.entry(uid.to_owned()).or_default();
        row.failures = row.failures.saturating_add(1);
        if row.failures == TOLD_FROM {
            row.words.clone_from(words);
        }
        row.failures == TOLD_FROM
    }
}

fn passed() -> Observed {
    Observed::yes(kind::PROBED, reason::SUCCEEDED, "a message is sent and read back every minute")
}

/// A mailbox, and since when there is one.
struct Held {
    account: Account,
    made: Instant,
}

/// A domain that is probed.
struct Target {
    labels: Labels,
    next: Instant,
    /// Away while a probe is under way.
    held: Option<Held>,
}

/// A probe that ended.
struct Ended {
    uid: String,
    held: Option<Held>,
    outcome: Outcome,
}

#[derive(Default)]
struct Prober {
    targets: HashMap<String, Target>,
    jobs: JoinSet<Ended>,
    roots: Arc<Roots>,
}

/// Runs until it is dropped.
pub async fn run(context: Arc<Context>) {
    if context.settings.no_probes {
        return std::future::pending().await;
    }
    let mut prober = Prober::default();
    loop {
        prober.begin(&context);
        tokio::select! {
            Some(ended) = prober.jobs.join_next() => match ended {
                Ok(ended) => prober.end(&context, ended),
                Err(error) => tracing::error!(%error, "a probe broke off"),
            },
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Whether the mailnodes are said to serve it.
fn is_served(domain: &MailDomain) -> bool {
    let conditions = domain.status.as_ref().map_or(&[][..], |status| &status.conditions);
    domain.metadata.deletion_timestamp.is_none()
        && !is_paused(domain)
        && find(conditions, kind::READY).is_some_and(|ready| ready.status == "True")
}

impl Prober {
    /// Begins what is due, and forgets what is not there any more.
    fn begin(&mut self, context: &Arc<Context>) {
        let domains = context.stores.domains.state_filter(is_served);
        let there: HashSet<String> = domains.iter().filter_map(|domain| domain.uid()).collect();
        self.targets.retain(|uid, target| {
            let stays = there.contains(uid);
            if !stays {
                context.metrics.probes.forget(&target.labels);
                context.probing.0.lock().remove(uid);
            }
            stays
        });
        let now = Instant::now();
        let mut due: Vec<_> = domains.iter().filter_map(|domain| self.due(context, domain, now)).collect();
        due.sort_by_key(|(next, ..)| *next);
        due.truncate(AT_ONCE.saturating_sub(self.jobs.len()));
        for (_, uid, domain, cluster) in due {
            let Some(target) = self.targets.get_mut(&uid) else { continue };
            target.next = (target.next + EVERY).max(now + EVERY / 2);
            let (held, context, roots) = (target.held.take(), context.clone(), self.roots.clone());
            self.jobs.spawn(async move {
                let mut held = held;
                let probe = probe_once(&context, &roots, &domain, &cluster, &mut held);
                let outcome = tokio::time::timeout(WITHIN, probe).await.unwrap_or_else(|_| Outcome::late());
                Ended { uid, held, outcome }
            });
        }
    }

    /// Whether a domain is due, and which MailCluster serves it.
    fn due(
        &mut self,
        context: &Context,
        domain: &Arc<MailDomain>,
        now: Instant,
    ) -> Option<(Instant, String, Arc<MailDomain>, Arc<MailCluster>)> {
        let (uid, namespace) = (domain.uid()?, domain.namespace()?);
        let cluster = context.stores.cluster_of(&namespace, domain.spec.cluster_ref.as_ref()).ok()?;
        let target = self.targets.entry(uid.clone()).or_insert_with(|| {
            let labels = Labels {
                namespace: cluster.namespace().unwrap_or_default(),
                mailcluster: cluster.name_any(),
                domain: domain.spec.domain.to_lowercase(),
            };
            context.metrics.probes.expect(&labels);
            // Spread, so that those of many domains are not made at the same instant for ever.
            let next = now + EVERY.mul_f64(rand::random_range(0.05..1.0));
            Target { labels, next, held: None }
        });
        (target.next <= now).then(|| (target.next, uid, domain.clone(), cluster))
    }

    /// Takes in what came of a probe.
    fn end(&mut self, context: &Context, ended: Ended) {
        let Ended { uid, held, outcome } = ended;
        // It may have been deleted meanwhile, and a probe that failed because of that says nothing.
        let Some(target) = self.targets.get_mut(&uid) else { return };
        target.held = held;
        let Labels { namespace, mailcluster, domain } = &target.labels;
        match &outcome {
            Outcome::Passed(passed) => tracing::debug!(domain, ?passed, "a probe passed"),
            Outcome::Unknown(why) => tracing::warn!(domain, mailcluster, why, "a domain could not be probed"),
            Outcome::NotSetUp(why) | Outcome::NotSent(why) | Outcome::NotRead(why) => {
                tracing::warn!(domain, mailcluster, why, "a probe failed");
            }
        }
        context.metrics.probes.ended(&target.labels, &outcome, Timestamp::now().as_duration().as_secs_f64());
        if context.probing.take(&uid, &outcome) {
            context.stores.tell(Changed::Account(namespace.clone(), Some(mailcluster.clone())));
        }
    }
}

/// Sends a message and reads it, from and to a mailbox that is made when there is none or it is old.
async fn probe_once(
    context: &Context,
    roots: &Roots,
    domain: &MailDomain,
    cluster: &MailCluster,
    held: &mut Option<Held>,
) -> Outcome {
    let roots = match roots.of(context, cluster).await {
        Ok(roots) => roots,
        Err(why) => return Outcome::Unknown(why),
    };
    if held.as_ref().is_none_or(|held| held.made.elapsed() > RENEW) {
        let connection = match context.clients.get(cluster).await {
            Ok(connection) => connection,
            Err(error) => return Outcome::Unknown(error.to_string()),
        };
        let before = held.as_ref().map(|held| &held.account);
        match account::make(&connection.admin, &domain.spec.domain.to_lowercase(), before).await {
            Ok(account) => *held = Some(Held { account, made: Instant::now() }),
            Err(error @ (AccountError::Hash(_) | AccountError::Address(_))) => {
                return Outcome::Unknown(error.to_string());
            }
            Err(error) => return Outcome::NotSetUp(error.to_string()),
        }
    }
    let Some(Held { account, .. }) = held else { return Outcome::Unknown("there is no mailbox".to_owned()) };
    let service = |port| Service { name: hostname(cluster), host: service_host(cluster), port };
    let wanted = Probe {
        submission: service(SUBMISSION),
        imaps: service(IMAPS),
        roots,
        address: account.address.clone(),
        password: account.password.clone(),
        within: FOUND_WITHIN,
    };
    match probe::probe(&wanted).await {
        Ok(passed) => Outcome::Passed(passed),
        Err(error) => {
            if is_refused(&error) {
                // Somebody removed the mailbox, or a backup brought back another directory.
                *held = None;
            }
            Outcome::of(&error)
        }
    }
}

/// Whether the mailbox seems not to be there any more.
fn is_refused(error: &ProbeError) -> bool {
    match error {
        ProbeError::NotSent { reason, .. } => reason.contains("535") || reason.contains("5.7.8"),
        ProbeError::Imap { source: ImapError::Refused { command, .. }, .. } => {
            command.starts_with("AUTHENTICATE")
        }
        _ => false,
    }
}

/// What certificates are trusted, by MailCluster, and the version of the Secret that tells them.
#[derive(Default)]
struct Roots(Mutex<HashMap<Key, (String, RootCertStore)>>);

impl Roots {
    /// The authorities of this system, and what the Secret of the public certificate has: it may be signed by itself.
    async fn of(&self, context: &Context, cluster: &MailCluster) -> Result<RootCertStore, String> {
        let name = public_secret(cluster);
        let (namespace, _) = key(cluster);
        let version = context.stores.secret_version(&(namespace.clone(), name.clone())).unwrap_or_default();
        if let Some((known, roots)) = self.0.lock().get(&key(cluster))
            && *known == version
        {
            return Ok(roots.clone());
        }
        let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
        let secret =
            secrets.get(&name).await.map_err(|error| format!("failed to read Secret {name}: {error}"))?;
        let certificate =
            text(&secret, CERT_KEY).ok_or_else(|| format!("Secret {name} has no key `{CERT_KEY}`"))?;
        let roots = trusted(&certificate, text(&secret, CA_KEY).as_deref())?;
        let mut known = self.0.lock();
        // A MailCluster that is gone leaves its entry; a few of them cost nothing, and many are not kept.
        if known.len() > MAX_ROOTS {
            known.clear();
        }
        known.insert(key(cluster), (version, roots.clone()));
        Ok(roots)
    }
}

/// MailClusters whose certificates are remembered.
const MAX_ROOTS: usize = 256;

/// The authorities of this system, the certificate (for one that is signed by itself), and the authority that comes with it.
pub fn trusted(certificate: &str, authority: Option<&str>) -> Result<RootCertStore, String> {
    let mut roots = probe::roots(certificate.as_bytes()).map_err(|error| error.to_string())?;
    if let Some(authority) = authority.filter(|authority| !authority.trim().is_empty()) {
        let more = probe::roots(authority.as_bytes()).map_err(|error| error.to_string())?;
        roots.roots.extend(more.roots);
    }
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that cannot be read is passed over: it is not ours.
        let _ = roots.add(certificate);
    }
    Ok(roots)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
