//! From the resources to the mailnodes: what the operator does with watches, done with files.
//!
//! The decisions are the operator's own ([`accounts::plan`](crate::accounts::plan), [`directory`]). What is different
//! here: an object that is in no file any more is deleted, for there is no API server to keep it; but nothing
//! is deleted while a file cannot be read, so that a slip of the pen takes no mailbox away.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use quorumail_crds::{
    DeletionPolicy, MailDomain, Mailbox,
    condition::{Observed, kind, reason},
};
use quorumail_proto::admin::{DirectoryResult, directory_result::Code};

use super::{
    resources::Resources,
    state::{self, StateError},
};
use crate::{
    accounts::{
        lists::plan_lists,
        plan::{DomainKeys, Verdict, plan},
    },
    admin::{AdminClient, AdminError},
    directory::{self, Credential, FingerprintKey, Listing, Orphans, Step, batches, diff, domain_of},
    dkim::{self, KeysError},
    dns,
    tenancy::Tenancy,
};

/// How long the mail of a mailbox is kept whose resource is gone and was never seen: the default of `gracePeriod`.
const KEEP_SECONDS: u64 = 720 * 3600;

/// Why the mailnodes could not be brought to what the resources ask.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// They did not answer.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The generated passwords cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// No majority took a change; it can be sent again.
    #[error("{0} changes were not taken: {1}")]
    Unavailable(usize, String),
    /// A password could not be hashed.
    #[error("failed to hash a password: {0}")]
    Hash(String),
    /// A DKIM key could not be made, or not be read.
    #[error("DKIM keys: {0}")]
    Keys(#[from] KeysError),
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Changes that were taken.
    pub changes: usize,
    /// For people: which object, and what is wrong with it.
    pub problems: Vec<String>,
    /// Addresses for which a password was made.
    pub new_passwords: Vec<(String, String)>,
}

/// Applies resources to one set of mailnodes.
pub struct Applier {
    client: AdminClient,
    key: FingerprintKey,
    /// Where the generated passwords are kept.
    dir: PathBuf,
    /// For how long the mail of each mailbox is kept once its resource is gone.
    keep: BTreeMap<String, u64>,
    /// In DNS records.
    hostname: String,
}

impl Applier {
    /// `key` must be the same for all runs with the same mailnodes.
    /// `hostname`: what DNS records name.
    pub fn new(client: AdminClient, key: FingerprintKey, dir: &Path, hostname: String) -> Self {
        Self { client, key, dir: dir.to_owned(), keep: BTreeMap::new(), hostname }
    }

    /// The connection to the mailnodes.
    pub fn client(&self) -> &AdminClient {
        &self.client
    }

    /// Calls other mailnodes of the same cluster from now on.
    pub fn set_client(&mut self, client: AdminClient) {
        self.client = client;
    }

    /// Brings the mailnodes to what the resources ask, as far as the resources are right.
    pub async fn apply(&mut self, resources: &Resources) -> Result<Outcome, ApplyError> {
        let told = resources.problems.iter().chain(&resources.ignored).cloned().collect();
        let mut outcome = Outcome { problems: told, ..Outcome::default() };
        let credentials = self.credentials(resources, &mut outcome)?;
        let keys = self.keys(resources).await?;
        let listing = self.client.list_directory().await?;
        let steps = self.steps(resources, &credentials, &keys, &listing, &mut outcome.problems);
        for mailbox in &resources.mailboxes {
            self.keep.insert(mailbox.spec.address.to_lowercase(), keep_seconds(mailbox));
        }
        for batch in batches(&steps) {
            let results = self.send(batch.to_vec()).await?;
            self.judge(resources, batch, results, &mut outcome)?;
        }
        Ok(outcome)
    }

    /// Whether `client` sees all that the resources ask: nothing would have to be said.
    pub async fn is_seen_by(&self, client: &AdminClient, resources: &Resources) -> Result<bool, ApplyError> {
        let credentials = self.credentials(resources, &mut Outcome::default())?;
        let keys = self.keys(resources).await?;
        let listing = client.list_directory().await?;
        let tenancy = Tenancy::without_namespaces();
        let mut plan =
            plan(&resources.domains, &resources.mailboxes, &credentials, &keys, &listing, &tenancy);
        plan_lists(&mut plan, &resources.lists, &resources.mailboxes, &listing, &tenancy);
        let desired = plan.desired;
        let domains = desired.domains.iter().all(|(name, domain)| {
            listing.domains.get(name).is_some_and(|entry| entry.revision == self.key.domain(domain))
        });
        let mailboxes = desired.mailboxes.iter().all(|(address, mailbox)| {
            listing.mailboxes.get(address).is_some_and(|entry| entry.revision == self.key.mailbox(mailbox))
        });
        let lists = desired.lists.iter().all(|(address, list)| {
            listing.lists.get(address).is_some_and(|entry| entry.revision == self.key.list(list))
        });
        Ok(domains && mailboxes && lists)
    }

    fn steps(
        &self,
        resources: &Resources,
        credentials: &BTreeMap<String, Result<Credential, Observed>>,
        keys: &DomainKeys,
        listing: &Listing,
        problems: &mut Vec<String>,
    ) -> Vec<Step> {
        let tenancy = Tenancy::without_namespaces();
        let mut plan = plan(&resources.domains, &resources.mailboxes, credentials, keys, listing, &tenancy);
        plan_lists(&mut plan, &resources.lists, &resources.mailboxes, listing, &tenancy);
        let origins = resources.domains.iter().map(|d| (d.uid(), resources.origin(&**d)));
        let mailboxes = resources.mailboxes.iter().map(|m| (m.uid(), resources.origin(&**m)));
        let lists = resources.lists.iter().map(|l| (l.uid(), resources.origin(&**l)));
        for (uid, origin) in origins.chain(mailboxes).chain(lists) {
            if let Some(Verdict::Blocked(observed)) = uid.and_then(|uid| plan.verdicts.get(&uid)) {
                problems.push(format!("{origin}: {}", observed.message));
            }
        }
        for (address, seconds) in &self.keep {
            plan.desired.remove_mailboxes.insert(address.clone(), *seconds);
        }
        let mut steps =
            diff(&plan.desired, listing, &self.key, Orphans::RemoveAll { keep_seconds: KEEP_SECONDS });
        keep_what_is_written(&mut steps, resources, listing);
        steps
    }

    /// As [`keys_of`], off the async threads: a new RSA key takes up to seconds.
    async fn keys(&self, resources: &Resources) -> Result<DomainKeys, ApplyError> {
        let (dir, hostname) = (self.dir.clone(), self.hostname.clone());
        let domains = resources.domains.clone();
        let made = tokio::task::spawn_blocking(move || keys_of(&dir, &hostname, &domains));
        made.await.map_err(|_| KeysError::NotMade)?
    }

    /// Passwords of all mailboxes, by uid.
    fn credentials(
        &self,
        resources: &Resources,
        outcome: &mut Outcome,
    ) -> Result<BTreeMap<String, Result<Credential, Observed>>, ApplyError> {
        let mut generated = state::credentials(&self.dir)?;
        let mut made = false;
        let mut all = BTreeMap::new();
        for mailbox in &resources.mailboxes {
            let credential = if mailbox.spec.password_secret_ref.is_some() {
                from_secret(mailbox, resources)
            } else {
                let address = mailbox.spec.address.to_lowercase();
                let password = generated.entry(address.clone()).or_insert_with(|| {
                    made = true;
                    let password = state::new_password();
                    outcome.new_passwords.push((address, password.clone()));
                    password
                });
                Credential::from_secret(password.as_bytes())
                    .map_err(|error| invalid(format!("its password in {} {error}", state::CREDENTIALS)))
            };
            all.insert(mailbox.uid().unwrap_or_default(), credential);
        }
        if made {
            state::save_credentials(&self.dir, &generated)?;
        }
        Ok(all)
    }

    async fn send(&self, batch: Vec<Step>) -> Result<Vec<DirectoryResult>, ApplyError> {
        let key = self.key.clone();
        let changes = tokio::task::spawn_blocking(move || {
            batch.iter().map(|step| step.to_change(&key)).collect::<Result<Vec<_>, _>>()
        });
        let changes = changes.await.map_err(|error| ApplyError::Hash(error.to_string()))?;
        let changes = changes.map_err(|error| ApplyError::Hash(error.to_string()))?;
        Ok(self.client.apply_directory(changes).await?)
    }

    fn judge(
        &mut self,
        resources: &Resources,
        batch: &[Step],
        results: Vec<DirectoryResult>,
        outcome: &mut Outcome,
    ) -> Result<(), ApplyError> {
        let mut unavailable = (0, String::new());
        for (step, result) in batch.iter().zip(results) {
            match result.code() {
                Code::Ok => {
                    outcome.changes += 1;
                    if let Step::DeleteMailbox { address, .. } = step {
                        self.keep.remove(address);
                    }
                }
                Code::Invalid | Code::Conflict => {
                    outcome.problems.push(format!("{}: {}", origin_of(step, resources), result.message));
                }
                Code::Unavailable | Code::Unspecified => {
                    unavailable = (unavailable.0 + 1, format!("{}: {}", step.subject(), result.message));
                }
            }
        }
        match unavailable {
            (0, _) => Ok(()),
            (count, last) => Err(ApplyError::Unavailable(count, last)),
        }
    }
}

/// DKIM keys of all domains, by uid. Made where they are missing, and replaced when it is time: nobody publishes records for a
/// machine like this, so none is waited for.
fn keys_of(dir: &Path, hostname: &str, domains: &[Arc<MailDomain>]) -> Result<DomainKeys, ApplyError> {
    let now = Timestamp::now();
    let mut kept = state::dkim_keys(dir)?;
    let mut all = DomainKeys::new();
    let mut changed = false;
    for domain in domains {
        let name = domain.spec.domain.to_lowercase();
        let keys = kept.get(&name).cloned().unwrap_or_default();
        let plan = dkim::plan(&keys, &domain.spec.dkim, |_| true, now);
        if plan.keys != keys || !plan.make.is_empty() {
            kept.insert(name.clone(), dkim::carry_out(plan, now)?);
            changed = true;
        }
        let signing = kept.get(&name).map(|keys| dkim::signing(keys)).unwrap_or_default();
        all.insert(domain.uid().unwrap_or_default(), Some(signing));
    }
    if changed {
        state::save_dkim_keys(dir, &kept)?;
    }
    let records = domains.iter().map(|domain| {
        let name = domain.spec.domain.to_lowercase();
        let keys = kept.get(&name).map_or(&[][..], Vec::as_slice);
        let records = dns::records(&domain.spec, hostname, keys);
        (name, records)
    });
    let records = records.collect();
    if state::dns_records(dir)? != records {
        state::save_dns_records(dir, &records)?;
    }
    Ok(all)
}

/// Takes removals out of `steps`: all of them when a file could not be read, otherwise those of names that are still
/// written in some file, where an object is blocked rather than gone.
fn keep_what_is_written(steps: &mut Vec<Step>, resources: &Resources, listing: &Listing) {
    let written: BTreeSet<String> =
        resources.mailboxes.iter().map(|m| m.spec.address.to_lowercase()).collect();
    let mut domains: BTreeSet<String> =
        resources.domains.iter().map(|d| d.spec.domain.to_lowercase()).collect();
    let lists: BTreeSet<String> = resources.lists.iter().map(|l| l.spec.address.to_lowercase()).collect();
    let unreadable = !resources.problems.is_empty();
    domains.extend(listing.lists.keys().filter(|a| lists.contains(*a)).map(|a| domain_of(a).to_owned()));
    domains
        .extend(listing.mailboxes.keys().filter(|a| written.contains(*a)).map(|a| domain_of(a).to_owned()));
    steps.retain(|step| match step {
        Step::DeleteMailbox { address, .. } => !unreadable && !written.contains(address),
        Step::DeleteDomain(domain) => !unreadable && !domains.contains(domain),
        Step::DeleteList(address) => !unreadable && !lists.contains(address),
        Step::PutDomain(_) | Step::PutMailbox(_) | Step::PutList(_) => true,
    });
}

fn origin_of(step: &Step, resources: &Resources) -> String {
    let subject = step.subject();
    let mailbox = resources.mailboxes.iter().find(|m| m.spec.address.eq_ignore_ascii_case(subject));
    let domain = resources.domains.iter().find(|d| d.spec.domain.eq_ignore_ascii_case(subject));
    let list = resources.lists.iter().find(|l| l.spec.address.eq_ignore_ascii_case(subject));
    match (mailbox, domain, list) {
        (_, _, Some(list)) if matches!(step, Step::PutList(_)) => resources.origin(&**list),
        (Some(mailbox), _, _) => resources.origin(&**mailbox),
        (None, Some(domain), _) => resources.origin(&**domain),
        _ => subject.to_owned(),
    }
}

fn keep_seconds(mailbox: &Mailbox) -> u64 {
    match mailbox.spec.deletion_policy {
        DeletionPolicy::Delete => 0,
        DeletionPolicy::Retain => mailbox.spec.grace_period.duration().as_secs(),
    }
}

fn invalid(message: String) -> Observed {
    Observed::no(kind::READY, reason::SECRET_INVALID, message)
}

/// The password that a mailbox's Secret holds.
fn from_secret(mailbox: &Mailbox, resources: &Resources) -> Result<Credential, Observed> {
    let Some(reference) = &mailbox.spec.password_secret_ref else { return Ok(directory::Credential::None) };
    let missing = |message| Observed::no(kind::READY, reason::SECRET_NOT_FOUND, message);
    let (name, key) = (&reference.name, &reference.key);
    let place = (mailbox.namespace().unwrap_or_default(), name.clone());
    let secret = resources.secrets.get(&place).ok_or_else(|| {
        missing(format!("Secret {name} does not exist; add it to the files, or remove passwordSecretRef"))
    })?;
    let value = secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| {
        missing(format!("Secret {name} has no key `{key}`; add it, or remove passwordSecretRef"))
    })?;
    Credential::from_secret(&value.0)
        .map_err(|error| invalid(format!("key `{key}` of Secret {name} {error}")))
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
