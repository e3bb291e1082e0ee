//! From MailingLists to what the directory should hold of them, and a verdict on each. Pure.
//!
//! Comes after the [`plan`](super::plan::plan) of domains and mailboxes: a list needs a domain that is served and an address that
//! no mailbox has.

use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};
use quorumail_crds::{
    MAX_LIST_LOCAL, Mailbox, MailingList,
    condition::{Observed, kind, reason},
    is_paused,
};
use quorumail_message::Address;

use super::plan::{Holder, Plan, Seen, Verdict, age, conflict, is_leaving, not_served, uid};
use crate::{
    directory::{DesiredList, Listing, domain_of},
    tenancy::{Owner, Tenancy, taken},
};

/// Most members of one list, with those that its selector means.
const MAX_MEMBERS: usize = 10_000;
/// Longest sum of their addresses, in bytes.
const MAX_MEMBER_BYTES: usize = 512 * 1024;

/// Decides on all lists of one MailCluster, and adds them to the plan.
pub fn plan_lists(
    plan: &mut Plan,
    lists: &[impl AsRef<MailingList>],
    mailboxes: &[impl AsRef<Mailbox>],
    listing: &Listing,
    tenancy: &Tenancy,
) {
    let seen = Seen { listing, tenancy };
    let mailboxes: Vec<&Mailbox> = mailboxes.iter().map(AsRef::as_ref).collect();
    let mut lists: Vec<&MailingList> = lists.iter().map(AsRef::as_ref).collect();
    lists.sort_by_key(|list| age(*list));
    for list in lists.iter().filter(|list| !is_leaving(**list)) {
        let verdict = judge(plan, list, &mailboxes, seen);
        plan.verdicts.insert(uid(*list), verdict);
    }
    // Lists without a resource go with their domain.
    let dropped = listing.lists.keys().filter(|a| plan.desired.remove_domains.contains(domain_of(a)));
    plan.desired.remove_lists.extend(dropped.cloned());
    for list in lists.into_iter().filter(|list| is_leaving(*list)) {
        let address = list.spec.address.to_lowercase();
        let is_own = tenancy.may_remove(list, listing.list_owner(&address).as_ref())
            && plan.is_domain_of(&tenancy.owner(list), domain_of(&address), listing);
        let verdict = if is_paused(list) {
            Verdict::Paused
        } else if !is_own || plan.addresses.contains_key(&address) || !listing.lists.contains_key(&address) {
            Verdict::Released
        } else {
            plan.desired.remove_lists.insert(address);
            Verdict::Leaving
        };
        plan.verdicts.insert(uid(list), verdict);
    }
}

fn invalid(message: String) -> Verdict {
    Verdict::Blocked(Observed::no(kind::READY, reason::INVALID_SPEC, message))
}

fn judge(
    plan: &mut Plan,
    list: &MailingList,
    mailboxes: &[&Mailbox],
    Seen { listing, tenancy }: Seen<'_>,
) -> Verdict {
    let address = list.spec.address.to_lowercase();
    let domain = domain_of(&address);
    let owner = tenancy.owner(list);
    let is_allowed = tenancy.allows(list);
    let is_refused = !plan.is_domain_of(&owner, domain, listing) || listing.is_anothers(&address, &owner);
    let holder = plan.addresses.get(&address).cloned();
    let is_held = listing.list_owner(&address).is_some_and(|held_by| held_by == owner);
    if !is_refused && (is_allowed || is_held) {
        plan.addresses.entry(address.clone()).or_insert_with(|| Holder::new(list, tenancy));
    }
    if !is_allowed {
        return Verdict::Outside;
    }
    if is_paused(list) {
        return Verdict::Paused;
    }
    if !plan.is_domain_of(&owner, domain, listing) {
        return Verdict::Blocked(not_served(domain));
    }
    if is_refused {
        return Verdict::Blocked(taken("address", &address));
    }
    if let Some(holder) = holder {
        return Verdict::Blocked(match holder.who.starts_with("Mailbox ") {
            true => {
                let text =
                    format!("address {address} belongs to {}; give the list another address", holder.who);
                Observed::no(kind::READY, reason::CONFLICT, text)
            }
            false => conflict("address", &address, &holder),
        });
    }
    let served = plan.desired.domains.contains_key(domain) || listing.domains.contains_key(domain);
    if !served || plan.desired.remove_domains.contains(domain) {
        return Verdict::Blocked(not_served(domain));
    }
    match wanted(list, owner, mailboxes) {
        Ok(wanted) => {
            plan.desired.lists.insert(address, wanted);
            Verdict::Wanted
        }
        Err(message) => invalid(message),
    }
}

/// The list as it should be, or what is wrong with it.
fn wanted(list: &MailingList, owner: Owner, mailboxes: &[&Mailbox]) -> Result<DesiredList, String> {
    let local = list.spec.address.split('@').next().unwrap_or_default();
    if local.len() > MAX_LIST_LOCAL {
        return Err(format!("the local part of its address has more than {MAX_LIST_LOCAL} characters"));
    }
    for member in &list.spec.members {
        if let Err(error) = member.address.parse::<Address>() {
            return Err(format!("member {:?}: {error}; correct or remove it", member.address));
        }
        if member.address.eq_ignore_ascii_case(&list.spec.address) {
            return Err("the list is its own member; remove it from members".to_owned());
        }
    }
    let wanted = DesiredList::new(&list.spec, owner, selected(list, mailboxes)?);
    let bytes: usize = wanted.members.keys().map(String::len).sum();
    if wanted.members.len() > MAX_MEMBERS || bytes > MAX_MEMBER_BYTES {
        return Err(format!(
            "it has {} members whose addresses take {bytes} bytes; {MAX_MEMBERS} with {MAX_MEMBER_BYTES} bytes are the most: make \
             several lists, and one that they are members of",
            wanted.members.len()
        ));
    }
    Ok(wanted)
}

/// Addresses of mailboxes that the list's selector means.
fn selected(list: &MailingList, mailboxes: &[&Mailbox]) -> Result<Vec<String>, String> {
    let Some(selector) = &list.spec.member_selector else { return Ok(Vec::new()) };
    let selector =
        Selector::try_from(selector.clone()).map_err(|error| format!("memberSelector: {error}"))?;
    let meant = mailboxes.iter().filter(|mailbox| {
        !is_leaving(**mailbox)
            && mailbox.namespace() == list.namespace()
            && selector.matches(mailbox.labels())
    });
    Ok(meant.map(|mailbox| mailbox.spec.address.to_lowercase()).collect())
}

#[cfg(test)]
#[path = "lists_tests.rs"]
mod tests;
