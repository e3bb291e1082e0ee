//! Accounts: directory changes in batches, the listing for resynchronisation, usage.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures::StreamExt as _;
use quorumail_authentication::{Algorithm, SigningKey};
use quorumail_consensus::GroupId;
use quorumail_message::{Address, AddressError, Domain, list::MAX_LIST_LOCAL};
use quorumail_proto::admin::{
    self, DirectoryChange, DirectoryEntry, DirectoryResult, DomainEntry, ListEntry, MailboxEntry,
    directory_change::Change, directory_entry::Entry, directory_result::Code,
};
use quorumail_store::{
    Applied, Directory, DkimAlgorithm, DkimKey, DomainRecord, ListId, ListMember, ListRecord, ListRole,
    ListSecret, MailboxId, MailboxRecord, Op, PartitionId, Permissions, Posting, Query, Quota, Refusal,
    Reply, StsMode, Subscription,
};
use tonic::Status;

use super::{WITHIN, unreadable};
use crate::{
    auth::Authenticator,
    groups::{self, CommandFailure, DIRECTORY, Groups},
};

/// Changes on their way at a time. They share disk writes, so that many accounts take little longer than one.
const AT_ONCE: usize = 64;
/// Mailboxes whose usage one query asks for.
const USAGE_BATCH: usize = 1000;

/// A change that was understood.
struct Planned {
    op: Op,
    /// Names it touches: changes that share one are made one after the other.
    touches: Vec<String>,
    /// Whether it changes domains, on which changes of mailboxes depend.
    domains: bool,
}

/// Applies the changes; as if in order, though those that do not touch the same names go together.
pub(super) async fn apply(groups: &Groups, changes: Vec<DirectoryChange>) -> Vec<DirectoryResult> {
    let now = groups::now();
    let mut results: Vec<Option<DirectoryResult>> = vec![None; changes.len()];
    let mut round: Vec<(usize, Planned)> = Vec::new();
    let mut touched: HashSet<String> = HashSet::new();
    for (index, change) in changes.into_iter().enumerate() {
        match plan(change, now, groups.partitions) {
            Err(reason) => results[index] = Some(result(Code::Invalid, reason, 0)),
            Ok(planned) => {
                let waits = round.first().is_some_and(|(_, first)| first.domains != planned.domains)
                    || planned.touches.iter().any(|name| touched.contains(name));
                if waits {
                    make(groups, std::mem::take(&mut round), &mut results).await;
                    touched.clear();
                }
                touched.extend(planned.touches.iter().cloned());
                round.push((index, planned));
            }
        }
    }
    make(groups, round, &mut results).await;
    results.into_iter().map(|result| result.expect("every change has been planned or refused")).collect()
}

/// Makes changes that do not depend on each other.
async fn make(groups: &Groups, round: Vec<(usize, Planned)>, results: &mut [Option<DirectoryResult>]) {
    let mut made = futures::stream::iter(round)
        .map(|(index, planned)| async move { (index, make_one(groups, planned.op).await) })
        .buffer_unordered(AT_ONCE);
    while let Some((index, result)) = made.next().await {
        results[index] = Some(result);
    }
}

async fn make_one(groups: &Groups, op: Op) -> DirectoryResult {
    let opens: Option<fn(MailboxId) -> Op> = match op {
        Op::PutMailbox { .. } => Some(Op::OpenMailbox),
        Op::PutArchivedList { archive: true, .. } => Some(|id| Op::OpenArchive(ListId(id.0))),
        _ => None,
    };
    let deletes = matches!(op, Op::DeleteDomain(_) | Op::DeleteMailbox { .. } | Op::DeleteList(_));
    match groups.propose(DIRECTORY, groups::random_command(), op, Bytes::new(), WITHIN).await {
        Ok(Applied::Mailbox { id, partition }) => match opens {
            Some(op) => open(groups, op(id), partition).await,
            None => result(Code::Ok, String::new(), partition.0),
        },
        Ok(_) => result(Code::Ok, String::new(), 0),
        // Already so.
        Err(CommandFailure::Refused(Refusal::NotFound(_))) if deletes => result(Code::Ok, String::new(), 0),
        Err(CommandFailure::Refused(refusal)) => {
            let code = match refusal {
                Refusal::Conflict(_) | Refusal::AlreadyExists(_) => Code::Conflict,
                Refusal::NotFound(_) | Refusal::Invalid(_) | Refusal::OverQuota | Refusal::Incomplete => {
                    Code::Invalid
                }
            };
            result(code, refusal.to_string(), 0)
        }
        Err(CommandFailure::Unavailable(reason)) => result(Code::Unavailable, reason, 0),
    }
}

/// Makes INBOX and the special-use folders of a mailbox that was put, or of the archive of a list.
async fn open(groups: &Groups, op: Op, partition: PartitionId) -> DirectoryResult {
    let opened =
        groups.propose(Groups::group(partition), groups::random_command(), op, Bytes::new(), WITHIN).await;
    match opened {
        Ok(_) => result(Code::Ok, String::new(), partition.0),
        // The account is there; the caller sends the change again, which does no harm.
        Err(error) => result(Code::Unavailable, format!("folders could not be made: {error}"), partition.0),
    }
}

fn result(code: Code, message: String, partition: u32) -> DirectoryResult {
    DirectoryResult { code: code.into(), message, partition }
}

fn plan(
    change: DirectoryChange,
    now: quorumail_store::Timestamp,
    partitions: u32,
) -> Result<Planned, String> {
    match change.change.ok_or("the change is empty")? {
        Change::PutDomain(put) => {
            let sts = match put.sts_mode() {
                admin::StsMode::None => None,
                admin::StsMode::Testing => Some(StsMode::Testing),
                admin::StsMode::Enforce => Some(StsMode::Enforce),
            };
            let record = DomainRecord {
                domain: domain(&put.domain)?,
                aliases: put.aliases.iter().map(|alias| domain(alias)).collect::<Result<_, _>>()?,
                catch_all: match put.catch_all.as_str() {
                    "" => None,
                    text => Some(address(text)?),
                },
                revision: put.revision,
            };
            let keys = put.dkim_keys.into_iter().map(dkim_key).collect::<Result<Vec<_>, _>>()?;
            let names = std::iter::once(&record.domain).chain(&record.aliases);
            let touches = names.map(|name| name.as_str().to_owned()).collect();
            Ok(Planned { op: Op::PutSigningDomain { record, keys, sts }, touches, domains: true })
        }
        Change::DeleteDomain(delete) => {
            let domain = domain(&delete.domain)?;
            let touches = vec![domain.as_str().to_owned()];
            Ok(Planned { op: Op::DeleteDomain(domain), touches, domains: true })
        }
        Change::PutMailbox(put) => {
            let record = mailbox(put)?;
            let touches = std::iter::once(&record.address).chain(&record.aliases).map(Address::key).collect();
            Ok(Planned { op: Op::PutMailbox { record, partitions }, touches, domains: false })
        }
        Change::PutList(put) => {
            let archive = put.archive;
            let record = mailing_list(put)?;
            let touches = vec![record.address.key()];
            let op = Op::PutArchivedList { record, partitions, archive };
            Ok(Planned { op, touches, domains: false })
        }
        Change::DeleteList(delete) => {
            let address = address(&delete.address)?;
            let touches = vec![address.key()];
            Ok(Planned { op: Op::DeleteList(address), touches, domains: false })
        }
        Change::DeleteMailbox(delete) => {
            let address = address(&delete.address)?;
            let keep = i64::try_from(delete.keep_seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
            let touches = vec![address.key()];
            Ok(Planned {
                op: Op::DeleteMailbox { address, purge_at: now.plus_millis(keep) },
                touches,
                domains: false,
            })
        }
    }
}

fn mailing_list(put: admin::MailingList) -> Result<ListRecord, String> {
    let address = address(&put.address)?;
    if address.local().len() > MAX_LIST_LOCAL {
        return Err(format!("the local part of list {address} is longer than {MAX_LIST_LOCAL} characters"));
    }
    if !put.subject_prefix.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("the subject prefix of list {address} is not printable ASCII"));
    }
    let posting = match put.posting() {
        admin::mailing_list::Posting::Moderated => Posting::Moderated,
        admin::mailing_list::Posting::Anyone => Posting::Anyone,
        admin::mailing_list::Posting::Owners => Posting::Owners,
        admin::mailing_list::Posting::Members | admin::mailing_list::Posting::Unspecified => Posting::Members,
    };
    let subscription = match put.subscription() {
        admin::mailing_list::Subscription::Open => Subscription::Open,
        admin::mailing_list::Subscription::Confirm => Subscription::Confirm,
        admin::mailing_list::Subscription::Approve => Subscription::Approve,
        admin::mailing_list::Subscription::Closed | admin::mailing_list::Subscription::Unspecified => {
            Subscription::Closed
        }
    };
    Ok(ListRecord {
        // All three are kept by the state machine where the list is there already.
        id: ListId(0),
        partition: PartitionId(0),
        secret: list_secret(&put.secret)?,
        address,
        members: put.members.into_iter().map(list_member).collect::<Result<_, _>>()?,
        posting,
        subject_prefix: put.subject_prefix,
        reply_to_list: put.reply_to_list,
        subscription,
        max_bytes: put.max_bytes,
        revision: put.revision,
    })
}

fn list_secret(bytes: &[u8]) -> Result<ListSecret, String> {
    match bytes {
        [] => Ok(ListSecret(rand::random())),
        bytes => bytes.try_into().map(ListSecret).map_err(|_| "the secret of a list has 32 bytes".to_owned()),
    }
}

fn list_member(member: admin::ListMember) -> Result<ListMember, String> {
    let role = match member.role() {
        admin::list_member::Role::Moderator => ListRole::Moderator,
        admin::list_member::Role::Owner => ListRole::Owner,
        admin::list_member::Role::Member | admin::list_member::Role::Unspecified => ListRole::Member,
    };
    Ok(ListMember { address: address(&member.address)?, role })
}

fn mailbox(put: admin::Mailbox) -> Result<MailboxRecord, String> {
    Ok(MailboxRecord {
        // Both are chosen by the state machine.
        id: MailboxId(0),
        partition: PartitionId(0),
        address: address(&put.address)?,
        display_name: put.display_name,
        aliases: put.aliases.iter().map(|alias| address(alias)).collect::<Result<_, _>>()?,
        password_hash: put.password_hash,
        quota: Quota { bytes: put.quota_bytes, messages: put.quota_messages },
        suspended: put.suspended,
        permissions: Permissions { send: put.may_send, receive: put.may_receive, login: put.may_login },
        revision: put.revision,
    })
}

/// A key is tried before it is kept: one that cannot sign would be found out with the first message only.
fn dkim_key(key: admin::DkimKey) -> Result<DkimKey, String> {
    let (algorithm, signs) = match key.algorithm() {
        admin::dkim_key::Algorithm::Rsa => (DkimAlgorithm::Rsa, Algorithm::Rsa),
        admin::dkim_key::Algorithm::Ed25519 => (DkimAlgorithm::Ed25519, Algorithm::Ed25519),
        admin::dkim_key::Algorithm::Unspecified => {
            return Err(format!("the DKIM key of selector {:?} has no algorithm", key.selector));
        }
    };
    SigningKey::from_pkcs8(&key.selector, signs, &key.private_key).map_err(|error| error.to_string())?;
    Ok(DkimKey { selector: key.selector, algorithm, private: key.private_key.into() })
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: AddressError| format!("{text:?}: {error}"))
}

fn domain(text: &str) -> Result<Domain, String> {
    text.parse().map_err(|error: AddressError| format!("{text:?}: {error}"))
}

/// Everything in the directory, domains first.
pub(super) fn list(directory: &Directory) -> Vec<DirectoryEntry> {
    let mailboxes = directory.mailboxes();
    let mut counts: BTreeMap<&Domain, u32> = BTreeMap::new();
    for mailbox in &mailboxes {
        *counts.entry(mailbox.address.domain()).or_default() += 1;
    }
    let domains = directory.domains().into_iter().map(|record| {
        Entry::Domain(DomainEntry {
            mailboxes: counts.get(&record.domain).copied().unwrap_or(0),
            domain: record.domain.to_string(),
            revision: record.revision.clone(),
        })
    });
    let entries = mailboxes.iter().map(|record| {
        Entry::Mailbox(MailboxEntry {
            address: record.address.to_string(),
            revision: record.revision.clone(),
            partition: record.partition.0,
        })
    });
    let lists = directory.lists();
    let lists = lists.iter().map(|record| {
        Entry::List(ListEntry {
            address: record.address.to_string(),
            revision: record.revision.clone(),
            partition: record.partition.0,
        })
    });
    domains.chain(entries).chain(lists).map(|entry| DirectoryEntry { entry: Some(entry) }).collect()
}

/// What mailboxes use; all of them when no address is given.
pub(super) async fn usage(
    groups: &Groups,
    auth: &Authenticator,
    addresses: &[String],
) -> Result<Vec<admin::Usage>, Status> {
    let directory = groups.directory();
    let asked: Vec<_> = if addresses.is_empty() {
        directory.mailboxes()
    } else {
        addresses.iter().filter_map(|text| directory.login(&text.parse().ok()?)).collect()
    };
    let mut by_partition: BTreeMap<GroupId, Vec<_>> = BTreeMap::new();
    for record in asked {
        by_partition.entry(Groups::group(record.partition)).or_default().push(record);
    }
    let mut usage = Vec::new();
    for (group, records) in by_partition {
        for records in records.chunks(USAGE_BATCH) {
            let query = Query::Usage(records.iter().map(|record| record.id).collect());
            let Reply::Usage(found) = groups.query(group, &query, WITHIN).await.map_err(unreadable)? else {
                return Err(Status::internal("a partition gave an answer of the wrong kind"));
            };
            usage.extend(records.iter().zip(found).map(|(record, found)| admin::Usage {
                address: record.address.to_string(),
                bytes: found.bytes,
                messages: found.messages,
                partition: record.partition.0,
                last_login: auth.last_login(record.id),
            }));
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(address: &str, aliases: &[&str]) -> DirectoryChange {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let mailbox = admin::Mailbox { address: address.to_owned(), aliases, ..Default::default() };
        DirectoryChange { change: Some(Change::PutMailbox(mailbox)) }
    }

    #[test]
    fn a_change_touches_all_its_names_in_one_form() {
        let planned = plan(put("Alice@Example.org", &["A@example.org"]), groups::now(), 4).unwrap();
        assert_eq!(planned.touches, ["alice@example.org", "a@example.org"]);
        assert!(!planned.domains);
    }

    #[test]
    fn what_cannot_be_understood_is_told_with_its_text() {
        let error = plan(put("alice", &[]), groups::now(), 4).err().unwrap();
        assert!(error.contains("\"alice\""), "{error}");
        assert!(plan(DirectoryChange { change: None }, groups::now(), 4).is_err());
    }
}
