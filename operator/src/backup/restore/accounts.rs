//! Domains, mailboxes and mailing lists that a restore needs: what is there is left alone, what is missing is made as it was, passwords
//! included.

use std::time::Duration;

use quorumail_proto::admin::{
    self, DirectoryChange, directory_change::Change, directory_result::Code, list_member::Role, mailing_list,
};
use quorumail_store::{
    DkimAlgorithm, DkimKey, DomainRecord, ListMember, ListRecord, ListRole, MailboxRecord, Posting, StsMode,
    Subscription,
};

use super::{RestoreError, RestoreRequest, Tally, scope::Parts};
use crate::{admin::AdminClient, directory::BATCH};

/// Revision of what is made: neither the operator nor `quorumail dev` takes it away while no resource tells of it, and both
/// put their own over it once one does.
const REVISION: &str = "restored";
/// Times that a batch is sent which no majority takes.
const ATTEMPTS: u32 = 5;
/// Between them.
const PAUSE: Duration = Duration::from_secs(2);

/// Makes what is missing, where the request allows it.
pub(super) async fn restore(
    admin: &AdminClient,
    parts: &Parts,
    request: &RestoreRequest,
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    let listing = admin.list_directory().await?;
    if let Some(into) = &request.into
        && !listing.mailboxes.contains_key(&into.to_lowercase())
    {
        return Err(RestoreError::Target(format!(
            "there is no mailbox {into} to restore into; make it first"
        )));
    }
    let missing: Vec<&MailboxRecord> = parts
        .mailboxes
        .iter()
        .filter(|part| !listing.mailboxes.contains_key(&part.to.to_lowercase()))
        .filter_map(|part| part.record.as_deref())
        .collect();
    if !request.accounts {
        let names: Vec<String> = missing.iter().map(|record| record.address.to_string()).collect();
        return match names.as_slice() {
            [] => Ok(()),
            names => Err(RestoreError::Target(format!(
                "the cluster has no mailbox {}; make it, restore into another one, or have accounts restored as well",
                names.join(", ")
            ))),
        };
    }
    if missing.is_empty() && request.into.is_some() {
        return Ok(());
    }
    let domains = parts.domains.iter().filter(|record| !listing.domains.contains_key(record.domain.as_str()));
    let domains: Vec<DirectoryChange> = domains
        .map(|record| {
            put_domain(record, parts.keys_of(&record.domain), parts.sts.get(&record.domain).copied())
        })
        .collect();
    let made = put(admin, domains, tally).await?;
    tally.add(|restored| restored.domains += made);
    let made =
        put(admin, missing.into_iter().map(|record| put_mailbox(record, request.locked)).collect(), tally)
            .await?;
    tally.add(|restored| restored.accounts += made);
    let lists = parts
        .lists
        .iter()
        .filter(|record| !listing.lists.contains_key(&record.address.to_string().to_lowercase()));
    for list in lists {
        // One may be as large as many mailboxes, and goes alone.
        let made = put(admin, vec![put_list(list, parts.has_archive(list))], tally).await?;
        tally.add(|restored| restored.lists += made);
    }
    Ok(())
}

/// How many were made. What is refused is a problem of its own.
async fn put(
    admin: &AdminClient,
    changes: Vec<DirectoryChange>,
    tally: &Tally<'_>,
) -> Result<u64, RestoreError> {
    let mut made = 0;
    for batch in changes.chunks(BATCH) {
        let mut left = batch.to_vec();
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            let results = admin.apply_directory(left.clone()).await?;
            let mut again = Vec::new();
            for (change, result) in left.drain(..).zip(results) {
                match result.code() {
                    Code::Ok => made += 1,
                    Code::Invalid | Code::Conflict => {
                        tally.problem(format!("{}: {}", subject(&change), result.message));
                    }
                    Code::Unavailable | Code::Unspecified => {
                        reason = result.message;
                        again.push(change);
                    }
                }
            }
            left = again;
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        if let Some(change) = left.first() {
            let text = format!("{} could not be made: {reason}; run the restore again", subject(change));
            return Err(RestoreError::Target(text));
        }
    }
    Ok(made)
}

fn subject(change: &DirectoryChange) -> String {
    match &change.change {
        Some(Change::PutDomain(domain)) => format!("domain {}", domain.domain),
        Some(Change::PutMailbox(mailbox)) => format!("mailbox {}", mailbox.address),
        Some(Change::PutList(list)) => format!("mailing list {}", list.address),
        _ => "a change".to_owned(),
    }
}

fn put_domain(record: &DomainRecord, keys: &[DkimKey], sts: Option<StsMode>) -> DirectoryChange {
    let domain = admin::Domain {
        domain: record.domain.to_string(),
        aliases: record.aliases.iter().map(ToString::to_string).collect(),
        catch_all: record.catch_all.as_ref().map(ToString::to_string).unwrap_or_default(),
        revision: REVISION.to_owned(),
        dkim_keys: keys.iter().map(dkim_key).collect(),
        sts_mode: match sts {
            None => admin::StsMode::None,
            Some(StsMode::Testing) => admin::StsMode::Testing,
            Some(StsMode::Enforce) => admin::StsMode::Enforce,
        }
        .into(),
    };
    DirectoryChange { change: Some(Change::PutDomain(domain)) }
}

fn dkim_key(key: &DkimKey) -> admin::DkimKey {
    let algorithm = match key.algorithm {
        DkimAlgorithm::Rsa => admin::dkim_key::Algorithm::Rsa,
        DkimAlgorithm::Ed25519 => admin::dkim_key::Algorithm::Ed25519,
    };
    admin::DkimKey {
        selector: key.selector.clone(),
        algorithm: algorithm.into(),
        private_key: key.private.to_vec(),
    }
}

fn put_list(record: &ListRecord, archive: bool) -> DirectoryChange {
    let member = |member: &ListMember| admin::ListMember {
        address: member.address.to_string(),
        role: match member.role {
            ListRole::Member => Role::Member,
            ListRole::Moderator => Role::Moderator,
            ListRole::Owner => Role::Owner,
        }
        .into(),
    };
    let list = admin::MailingList {
        address: record.address.to_string(),
        members: record.members.iter().map(member).collect(),
        posting: match record.posting {
            Posting::Members => mailing_list::Posting::Members,
            Posting::Moderated => mailing_list::Posting::Moderated,
            Posting::Anyone => mailing_list::Posting::Anyone,
            Posting::Owners => mailing_list::Posting::Owners,
        }
        .into(),
        subject_prefix: record.subject_prefix.clone(),
        reply_to_list: record.reply_to_list,
        subscription: match record.subscription {
            Subscription::Open => mailing_list::Subscription::Open,
            Subscription::Confirm => mailing_list::Subscription::Confirm,
            Subscription::Approve => mailing_list::Subscription::Approve,
            Subscription::Closed => mailing_list::Subscription::Closed,
        }
        .into(),
        max_bytes: record.max_bytes,
        revision: REVISION.to_owned(),
        secret: record.secret.0.to_vec(),
        archive,
    };
    DirectoryChange { change: Some(Change::PutList(list)) }
}

fn put_mailbox(record: &MailboxRecord, locked: bool) -> DirectoryChange {
    let limit = |limit: u64| if locked { 0 } else { limit };
    let mailbox = admin::Mailbox {
        address: record.address.to_string(),
        display_name: record.display_name.clone(),
        aliases: record.aliases.iter().map(ToString::to_string).collect(),
        password_hash: record.password_hash.clone(),
        quota_bytes: limit(record.quota.bytes),
        quota_messages: limit(record.quota.messages),
        suspended: record.suspended,
        may_send: record.permissions.send && !locked,
        may_receive: record.permissions.receive && !locked,
        may_login: record.permissions.login && !locked,
        revision: REVISION.to_owned(),
    };
    DirectoryChange { change: Some(Change::PutMailbox(mailbox)) }
}
