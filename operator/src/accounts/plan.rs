//! From the resources of one MailCluster to what its directory should hold, and a verdict on each resource.
//!
//! Pure. Where two resources claim one name, the older one has it; names of resources that are being deleted are free. What is
//! served for one namespace is not given to another, however old the other's resource is, and addresses in a domain are for the
//! namespace that has the domain.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use quorumail_crds::{
    DeletionPolicy, MailDomain, Mailbox,
    condition::{Observed, kind, reason},
    is_paused,
};

use crate::{
    directory::{Credential, Desired, DesiredDomain, DesiredMailbox, DkimKey, Listing, domain_of},
    tenancy::{Owner, Tenancy, taken},
};

/// What is to happen with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The mailnodes are to hold it.
    Wanted,
    /// It cannot be served; the condition tells why. What the mailnodes hold stays as it is.
    Blocked(Observed),
    /// Its namespace may not use the MailCluster, or not any more. What the mailnodes hold stays as it is.
    Outside,
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
    /// Domains that another namespace claims as well and does not get, by the uid of the MailDomain that has them.
    pub contested: BTreeSet<String>,
    /// Who has each domain and alias of a domain.
    domains: Claims,
    /// Who has each address and alias of an address.
    pub(super) addresses: Claims,
}

impl Plan {
    /// Whether somebody may have addresses in a domain: nobody else has it.
    pub(super) fn is_domain_of(&self, owner: &Owner, domain: &str, listing: &Listing) -> bool {
        let holder = self.domains.get(domain).map(|holder| holder.owner.clone());
        holder.or_else(|| listing.domain_owner(domain)).is_none_or(|holder| holder == *owner)
    }
}

/// The keys that mail of each domain is signed with, by uid; none where they cannot be told.
pub type DomainKeys = BTreeMap<String, Option<Vec<DkimKey>>>;

/// Who holds a name.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    /// Kind and name of the resource.
    pub(super) who: String,
    uid: String,
    owner: Owner,
}

impl Holder {
    pub(super) fn new<K: kube::Resource<DynamicType = ()>>(object: &K, tenancy: &Tenancy) -> Self {
        let who = format!("{} {}", K::kind(&()), object.name_any());
        Self { who, uid: uid(object), owner: tenancy.owner(object) }
    }
}

/// Who holds each name.
pub(super) type Claims = BTreeMap<String, Holder>;

/// Decides. `keys` has an entry, by uid, for every domain that is neither paused nor being deleted, and `credentials` has an entry, by uid, for every mailbox that is neither paused nor being deleted.
pub fn plan(
    domains: &[impl AsRef<MailDomain>],
    mailboxes: &[impl AsRef<Mailbox>],
    credentials: &BTreeMap<String, Result<Credential, Observed>>,
    keys: &DomainKeys,
    listing: &Listing,
    tenancy: &Tenancy,
) -> Plan {
    let mut plan = Plan::default();
    let mut domains: Vec<&MailDomain> = domains.iter().map(AsRef::as_ref).collect();
    domains.sort_by_key(|d| age(*d));
    let mut mailboxes: Vec<&Mailbox> = mailboxes.iter().map(AsRef::as_ref).collect();
    mailboxes.sort_by_key(|m| age(*m));

    let seen = Seen { listing, tenancy };
    claim_domains(&mut plan, &domains, keys, seen);
    let dropped = drop_domains(&mut plan, &domains, &mailboxes, seen);
    claim_mailboxes(&mut plan, &mailboxes, credentials, seen, &dropped);
    plan
}

/// What is decided from besides the resources.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) listing: &'a Listing,
    pub(super) tenancy: &'a Tenancy,
}

/// When it was made; those of the same second by namespace and name.
pub(super) fn age<K: kube::Resource<DynamicType = ()>>(object: &K) -> (Timestamp, String, String) {
    let created = object.creation_timestamp().map_or(Timestamp::MAX, |t| t.0);
    (created, object.namespace().unwrap_or_default(), object.name_any())
}

pub(super) fn uid<K: kube::Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

pub(super) fn is_leaving<K: kube::Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Claims all of `names`, or answers who holds one of them.
fn claim(claims: &mut Claims, claimant: &Holder, names: &[String]) -> Result<(), (String, Holder)> {
    if let Some(name) = names.iter().find(|name| claims.contains_key(*name)) {
        return Err((name.clone(), claims[name].clone()));
    }
    claims.extend(names.iter().map(|name| (name.clone(), claimant.clone())));
    Ok(())
}

pub(super) fn not_served(domain: &str) -> Observed {
    let message = format!(
        "domain {domain} is not served by this MailCluster for this namespace; make a MailDomain for it here"
    );
    Observed::no(kind::READY, reason::DOMAIN_NOT_FOUND, message)
}

pub(super) fn conflict(kind_name: &str, name: &str, holder: &Holder) -> Observed {
    let message = format!(
        "{kind_name} {name} belongs to {}, which is older; delete one of the two, or take the name out of one",
        holder.who
    );
    Observed::no(kind::READY, reason::CONFLICT, message)
}

/// Whether the mailnodes serve a domain for this very owner.
fn is_served_for(domain: &MailDomain, seen: Seen<'_>) -> bool {
    let holder = seen.listing.domain_owner(&domain.spec.domain.to_lowercase());
    holder.is_some_and(|holder| holder == seen.tenancy.owner(domain))
}

/// Claims the names of a domain; answers what keeps it from having one of them.
fn claim_domain(plan: &mut Plan, domain: &MailDomain, names: &[String], seen: Seen<'_>) -> Option<Lost> {
    let claimant = Holder::new(domain, seen.tenancy);
    let elsewhere =
        |name: &&String| seen.listing.domain_owner(name).is_some_and(|holder| holder != claimant.owner);
    let (name, holder) = match names.iter().find(elsewhere) {
        Some(name) => (name.clone(), plan.domains.get(name).cloned()),
        None => {
            let (name, holder) = claim(&mut plan.domains, &claimant, names).err()?;
            (name, Some(holder))
        }
    };
    match holder {
        Some(holder) if holder.owner == claimant.owner => {
            Some(Lost { to_another: false, why: conflict("domain", &name, &holder) })
        }
        holder => {
            plan.contested.extend(holder.map(|holder| holder.uid));
            Some(Lost { to_another: true, why: taken("domain", &name) })
        }
    }
}

/// A claim that failed.
struct Lost {
    /// To another namespace.
    to_another: bool,
    why: Observed,
}

fn claim_domains(plan: &mut Plan, domains: &[&MailDomain], keys: &DomainKeys, seen: Seen<'_>) {
    let mut alive: Vec<_> = domains.iter().filter(|d| !is_leaving(**d)).copied().collect();
    alive.sort_by_key(|domain| !is_served_for(domain, seen));
    for domain in alive {
        let signing = keys.get(&uid(domain)).and_then(Option::as_ref);
        let owner = seen.tenancy.owner(domain);
        let wanted = DesiredDomain::new(&domain.spec, owner, signing.cloned().unwrap_or_default());
        let names: Vec<_> = std::iter::once(&wanted.domain).chain(&wanted.aliases).cloned().collect();
        let is_allowed = seen.tenancy.allows(domain);
        let has_claim = is_allowed || is_served_for(domain, seen);
        let lost = has_claim.then(|| claim_domain(plan, domain, &names, seen)).flatten();
        let stays = has_claim && lost.as_ref().is_none_or(|lost| !lost.to_another);
        // Its keys cannot be told for now: it goes on with those that the mailnodes have.
        let is_unsigned = signing.is_none() && seen.listing.domains.contains_key(&wanted.domain);
        let verdict = match lost {
            _ if !is_allowed => Verdict::Outside,
            _ if is_paused(domain) => Verdict::Paused,
            Some(lost) => Verdict::Blocked(lost.why),
            None => Verdict::Wanted,
        };
        if verdict == Verdict::Wanted && !is_unsigned {
            plan.desired.domains.insert(wanted.domain.clone(), wanted);
        } else if stays {
            plan.desired.leave_domains.insert(wanted.domain);
        }
        plan.verdicts.insert(uid(domain), verdict);
    }
}

/// Decides on domains that are being deleted; answers those whose mailboxes go with them.
fn drop_domains(
    plan: &mut Plan,
    domains: &[&MailDomain],
    mailboxes: &[&Mailbox],
    Seen { listing, tenancy }: Seen<'_>,
) -> BTreeSet<String> {
    let mut dropped = BTreeSet::new();
    let lives = |m: &&&Mailbox| {
        let domain = domain_of(&m.spec.address).to_lowercase();
        !is_leaving(**m) && tenancy.allows(**m) && plan.is_domain_of(&tenancy.owner(**m), &domain, listing)
    };
    let mut in_use: BTreeSet<String> =
        mailboxes.iter().filter(lives).map(|m| domain_of(&m.spec.address).to_lowercase()).collect();
    let leaving: BTreeSet<String> =
        mailboxes.iter().filter(|m| is_leaving(**m)).map(|m| m.spec.address.to_lowercase()).collect();
    in_use
        .extend(listing.mailboxes.keys().filter(|a| !leaving.contains(*a)).map(|a| domain_of(a).to_owned()));
    in_use.extend(listing.lists.keys().map(|address| domain_of(address).to_owned()));

    for domain in domains.iter().filter(|d| is_leaving(**d)) {
        let name = domain.spec.domain.to_lowercase();
        let has_heir = plan.desired.domains.contains_key(&name) || plan.desired.leave_domains.contains(&name);
        let retained = domain.spec.deletion_policy == DeletionPolicy::Retain && in_use.contains(&name);
        let verdict = if is_paused(*domain) {
            plan.desired.leave_domains.insert(name);
            Verdict::Paused
        } else if has_heir
            || retained
            || !listing.domains.contains_key(&name)
            || !tenancy.may_remove(*domain, listing.domain_owner(&name).as_ref())
        {
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
    seen: Seen<'_>,
    dropped: &BTreeSet<String>,
) {
    let Seen { listing, tenancy } = seen;
    for mailbox in mailboxes.iter().filter(|m| !is_leaving(**m)) {
        let verdict = judge_mailbox(plan, mailbox, credentials.get(&uid(*mailbox)), seen, dropped);
        plan.verdicts.insert(uid(*mailbox), verdict);
    }
    // Mailboxes without a resource, put in bulk, go with their domain as well.
    for address in listing.mailboxes.keys().filter(|a| dropped.contains(domain_of(a))) {
        plan.desired.remove_mailboxes.insert(address.clone(), DEFAULT_KEEP_SECONDS);
    }
    for mailbox in mailboxes {
        let address = mailbox.spec.address.to_lowercase();
        let is_own = tenancy.may_remove(*mailbox, listing.mailbox_owner(&address).as_ref())
            && plan.is_domain_of(&tenancy.owner(*mailbox), domain_of(&address), listing);
        if is_own && dropped.contains(domain_of(&address)) {
            plan.desired.remove_mailboxes.insert(address.clone(), keep_seconds(mailbox));
        }
        if !is_leaving(*mailbox) {
            continue;
        }
        let verdict = if is_paused(*mailbox) {
            Verdict::Paused
        } else if !is_own
            || plan.addresses.contains_key(&address)
            || !listing.mailboxes.contains_key(&address)
        {
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
    mailbox: &Mailbox,
    credential: Option<&Result<Credential, Observed>>,
    Seen { listing, tenancy }: Seen<'_>,
    dropped: &BTreeSet<String>,
) -> Verdict {
    let claimant = Holder::new(mailbox, tenancy);
    let mut names = vec![mailbox.spec.address.to_lowercase()];
    names.extend(mailbox.spec.aliases.iter().map(|a| a.to_lowercase()));
    let is_held = listing.mailbox_owner(&names[0]).is_some_and(|holder| holder == claimant.owner);
    if !tenancy.allows(mailbox) {
        if is_held {
            // That it may fail changes nothing: it stays as the mailnodes have it.
            let _ = claim(&mut plan.addresses, &claimant, &names);
        }
        return Verdict::Outside;
    }
    let elsewhere = |name: &&String| !plan.is_domain_of(&claimant.owner, domain_of(name), listing);
    let refused = match names.iter().find(elsewhere) {
        Some(name) => Some(not_served(domain_of(name))),
        None if listing.is_anothers(&names[0], &claimant.owner) => Some(taken("address", &names[0])),
        None => {
            let lost = claim(&mut plan.addresses, &claimant, &names).err();
            lost.map(|(name, holder)| conflict("address", &name, &holder))
        }
    };
    if is_paused(mailbox) {
        return Verdict::Paused;
    }
    if let Some(refused) = refused {
        return Verdict::Blocked(refused);
    }
    let domain = domain_of(&names[0]);
    let served = plan.desired.domains.contains_key(domain) || listing.domains.contains_key(domain);
    if !served || dropped.contains(domain) {
        return Verdict::Blocked(not_served(domain));
    }
    match credential {
        Some(Ok(credential)) => {
            let wanted = DesiredMailbox::new(&mailbox.spec, claimant.owner, credential.clone());
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
