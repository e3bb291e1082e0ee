//! From the resources of one MailCluster to what its directory should hold, and a verdict on each resource.
//!
//! Pure. Where two resources claim one name, the older one has it; names of resources that are being deleted are free.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use quorumail_crds::{
    DeletionPolicy, MailDomain, Mailbox,
    condition::{Observed, kind, reason},
    is_paused,
};

use crate::directory::{Credential, Desired, DesiredDomain, DesiredMailbox, DkimKey, Listing, domain_of};

/// What is to happen with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The mailnodes are to hold it.
    Wanted,
    /// It cannot be served; the condition tells why. What the mailnodes hold stays as it is.
    Blocked(Observed),
    /// It is left alone by annotation.
    Paused,
    /// It is being deleted; its finalizer goes once the mailnodes hold its name no more.
    Leaving,
    /// It is being deleted and its finalizer can go now.
    Released,
}

/// What the directory should hold, and what that means for each resource, by uid.
#[derive(Debug, Default)]
pub struct Plan {
    /// For [`crate::directory::diff`].
    pub desired: Desired,
    /// By the uid of the resource.
    pub verdicts: BTreeMap<String, Verdict>,
}

/// The keys that mail of each domain is signed with, by uid; none where they cannot be told.
pub type DomainKeys = BTreeMap<String, Option<Vec<DkimKey>>>;

/// Who holds a name: kind and name of the resource.
type Claims = BTreeMap<String, String>;

/// Decides. `keys` has an entry, by uid, for every domain that is neither paused nor being deleted, and `credentials` has an entry, by uid, for every mailbox that is neither paused nor being deleted.
pub fn plan(
    domains: &[impl AsRef<MailDomain>],
    mailboxes: &[impl AsRef<Mailbox>],
    credentials: &BTreeMap<String, Result<Credential, Observed>>,
    keys: &DomainKeys,
    listing: &Listing,
) -> Plan {
    let mut plan = Plan::default();
    let mut domains: Vec<&MailDomain> = domains.iter().map(AsRef::as_ref).collect();
    domains.sort_by_key(|d| age(*d));
    let mut mailboxes: Vec<&Mailbox> = mailboxes.iter().map(AsRef::as_ref).collect();
    mailboxes.sort_by_key(|m| age(*m));

    claim_domains(&mut plan, &domains, keys, listing);
    let dropped = drop_domains(&mut plan, &domains, &mailboxes, listing);
    claim_mailboxes(&mut plan, &mailboxes, credentials, listing, &dropped);
    plan
}

pub(super) fn age<K: kube::Resource<DynamicType = ()>>(object: &K) -> (Timestamp, String) {
    let created = object.creation_timestamp().map_or(Timestamp::MAX, |t| t.0);
    (created, object.name_any())
}

pub(super) fn uid<K: kube::Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

pub(super) fn is_leaving<K: kube::Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Claims all of `names` for `owner`, or answers who holds one of them.
fn claim(claims: &mut Claims, owner: &str, names: &[String]) -> Result<(), (String, String)> {
    if let Some(name) = names.iter().find(|name| claims.contains_key(*name)) {
        return Err((name.clone(), claims[name].clone()));
    }
    claims.extend(names.iter().map(|name| (name.clone(), owner.to_owned())));
    Ok(())
}

pub(super) fn conflict(kind_name: &str, name: &str, holder: &str) -> Observed {
    let message = format!(
        "{kind_name} {name} belongs to {holder}, which is older; delete one of the two, or take the name out of one"
    );
    Observed::no(kind::READY, reason::CONFLICT, message)
}

fn claim_domains(plan: &mut Plan, domains: &[&MailDomain], keys: &DomainKeys, listing: &Listing) {
    let mut claims = Claims::new();
    for domain in domains.iter().filter(|d| !is_leaving(**d)) {
        let signing = keys.get(&uid(*domain)).and_then(Option::as_ref);
        let wanted = DesiredDomain::new(&domain.spec, signing.cloned().unwrap_or_default());
        let names: Vec<_> = std::iter::once(&wanted.domain).chain(&wanted.aliases).cloned().collect();
        let claimed = claim(&mut claims, &format!("MailDomain {}", domain.name_any()), &names);
        let verdict = if is_paused(*domain) {
            plan.desired.leave_domains.insert(wanted.domain);
            Verdict::Paused
        } else if let Err((name, holder)) = claimed {
            plan.desired.leave_domains.insert(wanted.domain);
            Verdict::Blocked(conflict("domain", &name, &holder))
        } else if signing.is_none() && listing.domains.contains_key(&wanted.domain) {
            // Its keys cannot be told for now: it goes on with those that the mailnodes have.
            plan.desired.leave_domains.insert(wanted.domain);
            Verdict::Wanted
        } else {
            plan.desired.domains.insert(wanted.domain.clone(), wanted);
            Verdict::Wanted
        };
        plan.verdicts.insert(uid(*domain), verdict);
    }
}

/// Decides on domains that are being deleted; answers those whose mailboxes go with them.
fn drop_domains(
    plan: &mut Plan,
    domains: &[&MailDomain],
    mailboxes: &[&Mailbox],
    listing: &Listing,
) -> BTreeSet<String> {
    let mut dropped = BTreeSet::new();
    let lives = |m: &&&Mailbox| !is_leaving(**m);
    let mut in_use: BTreeSet<String> =
        mailboxes.iter().filter(lives).map(|m| domain_of(&m.spec.address).to_lowercase()).collect();
    let leaving: BTreeSet<String> =
        mailboxes.iter().filter(|m| is_leaving(**m)).map(|m| m.spec.address.to_lowercase()).collect();
    in_use
        .extend(listing.mailboxes.keys().filter(|a| !leaving.contains(*a)).map(|a| domain_of(a).to_owned()));
    in_use.extend(listing.lists.keys().map(|address| domain_of(address).to_owned()));

    for domain in domains.iter().filter(|d| is_leaving(**d)) {
        let name = domain.spec.domain.to_lowercase();
        let taken = plan.desired.domains.contains_key(&name) || plan.desired.leave_domains.contains(&name);
        let retained = domain.spec.deletion_policy == DeletionPolicy::Retain && in_use.contains(&name);
        let verdict = if is_paused(*domain) {
            plan.desired.leave_domains.insert(name);
            Verdict::Paused
        } else if taken || retained || !listing.domains.contains_key(&name) {
            Verdict::Released
        } else {
            plan.desired.remove_domains.insert(name.clone());
            dropped.insert(name);
            Verdict::Leaving
        };
        plan.verdicts.insert(uid(*domain), verdict);
    }
    dropped
}

fn claim_mailboxes(
    plan: &mut Plan,
    mailboxes: &[&Mailbox],
    credentials: &BTreeMap<String, Result<Credential, Observed>>,
    listing: &Listing,
    dropped: &BTreeSet<String>,
) {
    let mut claims = Claims::new();
    for mailbox in mailboxes.iter().filter(|m| !is_leaving(**m)) {
        let verdict =
            judge_mailbox(plan, &mut claims, mailbox, credentials.get(&uid(*mailbox)), listing, dropped);
        plan.verdicts.insert(uid(*mailbox), verdict);
    }
    // Mailboxes without a resource, put in bulk, go with their domain as well.
    for address in listing.mailboxes.keys().filter(|a| dropped.contains(domain_of(a))) {
        plan.desired.remove_mailboxes.insert(address.clone(), DEFAULT_KEEP_SECONDS);
    }
    for mailbox in mailboxes {
        let address = mailbox.spec.address.to_lowercase();
        if dropped.contains(domain_of(&address)) {
            plan.desired.remove_mailboxes.insert(address.clone(), keep_seconds(mailbox));
        }
        if !is_leaving(*mailbox) {
            continue;
        }
        let verdict = if is_paused(*mailbox) {
            Verdict::Paused
        } else if claims.contains_key(&address) || !listing.mailboxes.contains_key(&address) {
            Verdict::Released
        } else {
            plan.desired.remove_mailboxes.insert(address, keep_seconds(mailbox));
            Verdict::Leaving
        };
        plan.verdicts.insert(uid(*mailbox), verdict);
    }
}

/// For mailboxes without a resource: the default of `gracePeriod`, 30 days.
const DEFAULT_KEEP_SECONDS: u64 = 720 * 3600;

fn keep_seconds(mailbox: &Mailbox) -> u64 {
    match mailbox.spec.deletion_policy {
        DeletionPolicy::Delete => 0,
        DeletionPolicy::Retain => mailbox.spec.grace_period.duration().as_secs(),
    }
}

fn judge_mailbox(
    plan: &mut Plan,
    claims: &mut Claims,
    mailbox: &Mailbox,
    credential: Option<&Result<Credential, Observed>>,
    listing: &Listing,
    dropped: &BTreeSet<String>,
) -> Verdict {
    let mut names = vec![mailbox.spec.address.to_lowercase()];
    names.extend(mailbox.spec.aliases.iter().map(|a| a.to_lowercase()));
    let claimed = claim(claims, &format!("Mailbox {}", mailbox.name_any()), &names);
    if is_paused(mailbox) {
        return Verdict::Paused;
    }
    if let Err((name, holder)) = claimed {
        return Verdict::Blocked(conflict("address", &name, &holder));
    }
    let domain = domain_of(&names[0]);
    let served = plan.desired.domains.contains_key(domain) || listing.domains.contains_key(domain);
    if !served || dropped.contains(domain) {
        let message = format!("domain {domain} is not served by this MailCluster; make a MailDomain for it");
        return Verdict::Blocked(Observed::no(kind::READY, reason::DOMAIN_NOT_FOUND, message));
    }
    match credential {
        Some(Ok(credential)) => {
            let wanted = DesiredMailbox::new(&mailbox.spec, credential.clone());
            plan.desired.mailboxes.insert(wanted.address.clone(), wanted);
            Verdict::Wanted
        }
        Some(Err(observed)) => Verdict::Blocked(observed.clone()),
        None => {
            Verdict::Blocked(Observed::no(kind::READY, reason::PENDING, "its Secret has not been read yet"))
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
