//! MailDomain: from what was observed to its status.

use k8s_openapi::jiff::Timestamp;
use quorumail_crds::{
    MailDomain, MailDomainStatus,
    condition::{Observed, merge},
    maildomain::DnsRecord,
};

/// What is known of a domain besides its conditions; what is not known now stays as it was.
#[derive(Debug, Default)]
pub struct Facts {
    /// As told by the mailnodes, when they were asked.
    pub mailboxes: Option<u32>,
    /// The records that it needs with what was found, when its keys are known.
    pub records: Option<Vec<DnsRecord>>,
    /// The MTA-STS policy that goes with them.
    pub mta_sts_policy: Option<String>,
}

/// The status of a domain.
pub fn status(domain: &MailDomain, observed: &[Observed], facts: Facts, now: Timestamp) -> MailDomainStatus {
    let old = domain.status.clone().unwrap_or_default();
    let mta_sts_policy = if facts.records.is_some() { facts.mta_sts_policy } else { old.mta_sts_policy };
    MailDomainStatus {
        observed_generation: domain.metadata.generation,
        conditions: merge(&old.conditions, observed, domain.metadata.generation, now),
        mailboxes: facts.mailboxes.unwrap_or(old.mailboxes),
        dns_records: facts.records.unwrap_or(old.dns_records),
        mta_sts_policy,
    }
}
