//! MailDomain: from what was observed to its status.

use k8s_openapi::jiff::Timestamp;
use quorumail_crds::{
    MailDomain, MailDomainStatus,
    condition::{Observed, merge},
};

/// The status of a domain. `mailboxes`: as told by the mailnodes, when they were asked.
pub fn status(
    domain: &MailDomain,
    observed: &[Observed],
    mailboxes: Option<u32>,
    now: Timestamp,
) -> MailDomainStatus {
    let old = domain.status.clone().unwrap_or_default();
    MailDomainStatus {
        observed_generation: domain.metadata.generation,
        conditions: merge(&old.conditions, observed, domain.metadata.generation, now),
        mailboxes: mailboxes.unwrap_or(old.mailboxes),
    }
}
