//! MailingList: from what was observed to its status.

use k8s_openapi::jiff::Timestamp;
use quorumail_crds::{
    MailingList, MailingListStatus,
    condition::{Observed, merge},
};

/// Addresses that a status names at most.
const MAX_BOUNCING: usize = 100;

/// What the mailnodes told about a list; what is not known now stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// To how many a message goes.
    pub members: u32,
    /// Messages that wait for a moderator.
    pub held: u32,
    /// Whose mail comes back for good.
    pub bouncing: Vec<String>,
}

/// The status of a list.
pub fn status(
    list: &MailingList,
    observed: &[Observed],
    facts: Option<&Facts>,
    now: Timestamp,
) -> MailingListStatus {
    let old = list.status.clone().unwrap_or_default();
    let conditions = merge(&old.conditions, observed, list.metadata.generation, now);
    let observed_generation = list.metadata.generation;
    match facts {
        None => MailingListStatus { observed_generation, conditions, ..old },
        Some(facts) => MailingListStatus {
            observed_generation,
            conditions,
            members: Some(facts.members),
            held: Some(facts.held),
            bouncing: facts.bouncing.iter().take(MAX_BOUNCING).cloned().collect(),
        },
    }
}
