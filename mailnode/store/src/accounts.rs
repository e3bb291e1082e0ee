//! Commands of the directory (group 0): domains and mailboxes, and who owns which name.
//!
//! Every name has one owner: a domain name is one domain's, its own or an alias; an address is one mailbox', its own
//! or an alias. Mailboxes have their addresses at a domain's own name; at its aliases they are reached by rewriting.

use std::{
    collections::{BTreeSet, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Address, Applied, DkimKey, Domain, DomainRecord, ListId, ListRecord, MailboxId, MailboxRecord,
    PartitionId, Refusal, StoreError, StsMode, Timestamp,
    directory::{DirectoryChange, address_keys},
    error::Stop,
    keys,
    records::{self, Counters, MailboxEntry},
    store::Change,
    txn::{Txn, View},
};

/// Most partitions of a cluster.
pub(crate) const MAX_PARTITIONS: u32 = 4096;
/// Most aliases of one mailbox or domain.
pub(crate) const MAX_ALIASES: usize = 1000;
/// Most keys that one domain signs with: two algorithms, each while it is rotated, twice over.
pub const MAX_DKIM_KEYS: usize = 8;
/// Longest private key, in bytes: RSA with 4096 bits takes 2.4 KiB.
const MAX_KEY_BYTES: usize = 4096;
/// Longest selector, in bytes.
const MAX_SELECTOR: usize = 128;
/// Most members of one mailing list.
pub const MAX_LIST_MEMBERS: usize = 10_000;
/// Longest sum of the addresses of one list's members, in bytes: the record is one command and one value.
pub const MAX_LIST_BYTES: usize = 512 * 1024;

/// Without `service` the keys and the MTA-STS mode that are there stay.
pub(crate) fn put_domain(
    txn: &mut Txn<'_>,
    record: DomainRecord,
    service: Option<(Vec<DkimKey>, Option<StsMode>)>,
) -> Result<Applied, Stop> {
    let fits = |key: &DkimKey| key.private.len() <= MAX_KEY_BYTES && key.selector.len() <= MAX_SELECTOR;
    if let Some((keys, _)) = &service
        && (keys.len() > MAX_DKIM_KEYS || !keys.iter().all(fits))
    {
        let text = format!(
            "a domain may have at most {MAX_DKIM_KEYS} DKIM keys of at most {MAX_KEY_BYTES} bytes each"
        );
        return Err(Refusal::Invalid(text).into());
    }
    if record.aliases.len() > MAX_ALIASES {
        return Err(Refusal::Invalid(format!("a domain may have at most {MAX_ALIASES} aliases")).into());
    }
    let names = domain_names(&record);
    for name in &names {
        if let Some(owner) = read::<Domain>(txn, &name_key(name))?
            && owner != record.domain
        {
            let text = if *name == owner {
                format!("{name} is a domain of its own")
            } else {
                format!("{name} is an alias of {owner}")
            };
            return Err(Refusal::Conflict(text).into());
        }
    }
    let key = keys::text(keys::DOMAIN, record.domain.as_str());
    if let Some(old) = read::<DomainRecord>(txn, &key)? {
        for name in domain_names(&old).difference(&names) {
            txn.remove(name_key(name));
        }
    }
    for name in &names {
        write(txn, name_key(name), &record.domain);
    }
    write(txn, key, &record);
    if let Some((keys, sts)) = service {
        put_keys(txn, &record.domain, keys);
        put_sts(txn, &record.domain, sts);
    }
    let change = DirectoryChange::Domain(record.domain.clone(), Some(Arc::new(record)));
    tell(txn, change);
    Ok(Applied::Done)
}

pub(crate) fn delete_domain(txn: &mut Txn<'_>, domain: &Domain) -> Result<Applied, Stop> {
    let key = keys::text(keys::DOMAIN, domain.as_str());
    let record = read::<DomainRecord>(txn, &key)?;
    let record = record.ok_or_else(|| Refusal::NotFound(format!("domain {domain}")))?;
    let used = count(txn, &use_key(domain))?;
    if used > 0 {
        let text =
            format!("domain {domain} still has {used} addresses of mailboxes and lists; delete those first");
        return Err(Refusal::Conflict(text).into());
    }
    for name in domain_names(&record) {
        txn.remove(name_key(&name));
    }
    txn.remove(key);
    put_keys(txn, domain, Vec::new());
    put_sts(txn, domain, None);
    tell(txn, DirectoryChange::Domain(domain.clone(), None));
    Ok(Applied::Done)
}

fn put_keys(txn: &mut Txn<'_>, domain: &Domain, keys: Vec<DkimKey>) {
    let key = keys::text(keys::DKIM_KEYS, domain.as_str());
    if keys.is_empty() {
        txn.remove(key);
    } else {
        write(txn, key, &keys);
    }
    tell(txn, DirectoryChange::Keys(domain.clone(), keys.into()));
}

fn put_sts(txn: &mut Txn<'_>, domain: &Domain, mode: Option<StsMode>) {
    let key = keys::text(keys::STS_MODE, domain.as_str());
    match mode {
        None => txn.remove(key),
        Some(mode) => write(txn, key, &mode),
    }
    tell(txn, DirectoryChange::Sts(domain.clone(), mode));
}

/// The domain that a key of a value beside its record is of.
fn domain_in(key: &[u8]) -> Result<Domain, StoreError> {
    let domain = std::str::from_utf8(&key[1..]).ok().and_then(|text| text.parse().ok());
    domain.ok_or(StoreError::Damaged("what a domain has is of no domain"))
}

pub(crate) fn put_mailbox(
    txn: &mut Txn<'_>,
    mut record: MailboxRecord,
    partitions: u32,
    at: Timestamp,
) -> Result<Applied, Stop> {
    if partitions == 0 || partitions > MAX_PARTITIONS {
        return Err(Refusal::Invalid(format!("a cluster has 1 to {MAX_PARTITIONS} partitions")).into());
    }
    if record.aliases.len() > MAX_ALIASES {
        return Err(Refusal::Invalid(format!("a mailbox may have at most {MAX_ALIASES} aliases")).into());
    }
    for address in std::iter::once(&record.address).chain(&record.aliases) {
        check_domain(txn, address)?;
    }
    let owner = read::<MailboxId>(txn, &address_key(&record.address.key()))?;
    let old = match owner {
        Some(id) => Some(mailbox_entry(txn, id)?),
        None => revivable(txn, &record.address, at)?,
    };
    if let Some(old) = &old {
        if old.record.address != record.address {
            let text = format!("{} is an alias of mailbox {}", record.address, old.record.address);
            return Err(Refusal::Conflict(text).into());
        }
        record.id = old.record.id;
        record.partition = old.record.partition;
    } else {
        record.id = next_mailbox(txn)?;
        record.partition = emptiest_partition(txn, partitions)?;
        add(txn, keys::partition(record.partition.0), 1)?;
    }
    let live = old.filter(|old| old.purge_at.is_none());
    claim_addresses(txn, &record, live.as_ref().map(|old| &old.record))?;
    txn.remove(keys::text(keys::DELETED, &record.address.key()));
    let applied = Applied::Mailbox { id: record.id, partition: record.partition };
    put_entry(txn, MailboxEntry { record, purge_at: None });
    Ok(applied)
}

pub(crate) fn delete_mailbox(
    txn: &mut Txn<'_>,
    address: &Address,
    purge_at: Timestamp,
) -> Result<Applied, Stop> {
    let key = address.key();
    let missing = || Refusal::NotFound(format!("mailbox {address}"));
    let id = read::<MailboxId>(txn, &address_key(&key))?.ok_or_else(missing)?;
    let MailboxEntry { record, purge_at: deleted } = mailbox_entry(txn, id)?;
    assert!(deleted.is_none(), "only live mailboxes own addresses");
    if record.address != *address {
        let text = format!("{address} is an alias of mailbox {}; delete that one", record.address);
        return Err(Refusal::Conflict(text).into());
    }
    for key in sorted(address_keys(&record)) {
        release_address(txn, &key)?;
    }
    write(txn, keys::text(keys::DELETED, &key), &id);
    let applied = Applied::Mailbox { id, partition: record.partition };
    put_entry(txn, MailboxEntry { record, purge_at: Some(purge_at) });
    Ok(applied)
}

/// Without `archive` it has one when it had one.
pub(crate) fn put_list(
    txn: &mut Txn<'_>,
    mut record: ListRecord,
    partitions: u32,
    archive: Option<bool>,
) -> Result<Applied, Stop> {
    if partitions == 0 || partitions > MAX_PARTITIONS {
        return Err(Refusal::Invalid(format!("a cluster has 1 to {MAX_PARTITIONS} partitions")).into());
    }
    record.members.sort_by_key(|member| member.address.key());
    record.members.dedup_by_key(|member| member.address.key());
    let bytes: usize = record.members.iter().map(|member| member.address.key().len()).sum();
    if record.members.len() > MAX_LIST_MEMBERS || bytes > MAX_LIST_BYTES {
        let text = format!(
            "a list may have at most {MAX_LIST_MEMBERS} members, whose addresses take at most {MAX_LIST_BYTES} bytes"
        );
        return Err(Refusal::Invalid(text).into());
    }
    check_domain(txn, &record.address)?;
    let address = record.address.key();
    if let Some(id) = read::<MailboxId>(txn, &address_key(&address))? {
        let owner = mailbox_entry(txn, id)?.record.address;
        return Err(Refusal::Conflict(format!("{address} belongs to mailbox {owner}")).into());
    }
    let place = list_address_key(&address);
    if let Some(id) = read::<ListId>(txn, &place)? {
        let old = read::<ListRecord>(txn, &keys::list(keys::LIST, id))?;
        let old = old.ok_or(StoreError::Damaged("an address points to no list"))?;
        (record.id, record.partition, record.secret) = (old.id, old.partition, old.secret);
    } else {
        record.id = ListId(next_mailbox(txn)?.0);
        // Few, and their posts are short-lived: they need not be counted to be spread.
        let home = (record.id.0 % u64::from(partitions)) + 1;
        record.partition = PartitionId(u32::try_from(home).expect("there are fewer than 2^32 partitions"));
        write(txn, place, &record.id);
        add(txn, use_key_of(&address), 1)?;
    }
    let applied = Applied::Mailbox { id: MailboxId(record.id.0), partition: record.partition };
    write(txn, keys::list(keys::LIST, record.id), &record);
    if let Some(archive) = archive {
        put_archive(txn, record.id, archive);
    }
    tell(txn, DirectoryChange::List(record.id, Some(Arc::new(record))));
    Ok(applied)
}

fn put_archive(txn: &mut Txn<'_>, list: ListId, archive: bool) {
    let key = keys::list(keys::LIST_ARCHIVE, list);
    if archive {
        txn.put(key, Vec::new());
    } else {
        txn.remove(key);
    }
    tell(txn, DirectoryChange::Archive(list, archive));
}

pub(crate) fn delete_list(txn: &mut Txn<'_>, address: &Address) -> Result<Applied, Stop> {
    let place = list_address_key(&address.key());
    let missing = || Refusal::NotFound(format!("mailing list {address}"));
    let id = read::<ListId>(txn, &place)?.ok_or_else(missing)?;
    txn.remove(place);
    txn.remove(keys::list(keys::LIST, id));
    put_archive(txn, id, false);
    add(txn, use_key_of(&address.key()), -1)?;
    tell(txn, DirectoryChange::List(id, None));
    Ok(Applied::Done)
}

/// Done as well when the mailbox is forgotten already: whoever purges may ask again.
pub(crate) fn forget_mailbox(txn: &mut Txn<'_>, id: MailboxId) -> Result<Applied, Stop> {
    let key = keys::mailbox(keys::MAILBOX, id);
    let Some(entry) = read::<MailboxEntry>(txn, &key)? else { return Ok(Applied::Done) };
    if entry.purge_at.is_none() {
        return Err(Refusal::Conflict(format!("mailbox {} is in use", entry.record.address)).into());
    }
    let deleted = keys::text(keys::DELETED, &entry.record.address.key());
    if read::<MailboxId>(txn, &deleted)? == Some(id) {
        txn.remove(deleted);
    }
    txn.remove(key);
    add(txn, keys::partition(entry.record.partition.0), -1)?;
    tell(txn, DirectoryChange::Mailbox(id, None));
    Ok(Applied::Done)
}

/// All there is, as changes from nothing.
pub(crate) fn everything<V: View>(view: &V) -> Result<Vec<DirectoryChange>, StoreError> {
    let mut all = Vec::new();
    view.scan(&[keys::DOMAIN], &[keys::DOMAIN], &mut |_, value| {
        let record: DomainRecord = records::decode(value)?;
        all.push(DirectoryChange::Domain(record.domain.clone(), Some(Arc::new(record))));
        Ok(ControlFlow::Continue(()))
    })?;
    view.scan(&[keys::DKIM_KEYS], &[keys::DKIM_KEYS], &mut |key, value| {
        let keys: Vec<DkimKey> = records::decode(value)?;
        all.push(DirectoryChange::Keys(domain_in(key)?, keys.into()));
        Ok(ControlFlow::Continue(()))
    })?;
    view.scan(&[keys::STS_MODE], &[keys::STS_MODE], &mut |key, value| {
        all.push(DirectoryChange::Sts(domain_in(key)?, Some(records::decode(value)?)));
        Ok(ControlFlow::Continue(()))
    })?;
    view.scan(&[keys::LIST], &[keys::LIST], &mut |_, value| {
        let record: ListRecord = records::decode(value)?;
        all.push(DirectoryChange::List(record.id, Some(Arc::new(record))));
        Ok(ControlFlow::Continue(()))
    })?;
    view.scan(&[keys::LIST_ARCHIVE], &[keys::LIST_ARCHIVE], &mut |key, _| {
        let id = key.last_chunk::<8>().ok_or(StoreError::Damaged("the key of an archive is too short"))?;
        all.push(DirectoryChange::Archive(ListId(u64::from_be_bytes(*id)), true));
        Ok(ControlFlow::Continue(()))
    })?;
    view.scan(&[keys::MAILBOX], &[keys::MAILBOX], &mut |_, value| {
        let entry: MailboxEntry = records::decode(value)?;
        all.push(DirectoryChange::Mailbox(entry.record.id, Some(entry)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(all)
}

/// An address must lie in a domain that is served, under the domain's own name.
fn check_domain(txn: &Txn<'_>, address: &Address) -> Result<(), Stop> {
    let domain = address.domain();
    match read::<Domain>(txn, &name_key(domain))? {
        Some(owner) if owner == *domain => Ok(()),
        Some(owner) => {
            let instead = address.at(&owner);
            let text = format!("{domain} is an alias of domain {owner}: use {instead} instead of {address}");
            Err(Refusal::Invalid(text).into())
        }
        None => {
            let text = format!("domain {domain}, which {address} needs (make the domain first),");
            Err(Refusal::NotFound(text).into())
        }
    }
}

/// The deleted mailbox that gets this address back: its mail may not have been purged yet.
fn revivable(txn: &Txn<'_>, address: &Address, at: Timestamp) -> Result<Option<MailboxEntry>, Stop> {
    let Some(id) = read::<MailboxId>(txn, &keys::text(keys::DELETED, &address.key()))? else {
        return Ok(None);
    };
    let entry = mailbox_entry(txn, id)?;
    Ok(Some(entry).filter(|entry| entry.purge_at.is_some_and(|purge_at| at < purge_at)))
}

/// Moves the ownership of addresses from the mailbox as it was to the mailbox as it will be.
fn claim_addresses(txn: &mut Txn<'_>, new: &MailboxRecord, old: Option<&MailboxRecord>) -> Result<(), Stop> {
    let wanted = address_keys(new);
    let had = old.map(address_keys).unwrap_or_default();
    for key in sorted(wanted.difference(&had).cloned().collect()) {
        if let Some(owner) = read::<MailboxId>(txn, &address_key(&key))? {
            let owner = mailbox_entry(txn, owner)?.record.address;
            return Err(Refusal::Conflict(format!("{key} belongs to mailbox {owner}")).into());
        }
        if txn.get(&list_address_key(&key))?.is_some() {
            return Err(Refusal::Conflict(format!("{key} is a mailing list")).into());
        }
        write(txn, address_key(&key), &new.id);
        add(txn, use_key_of(&key), 1)?;
    }
    for key in sorted(had.difference(&wanted).cloned().collect()) {
        release_address(txn, &key)?;
    }
    Ok(())
}

fn release_address(txn: &mut Txn<'_>, key: &str) -> Result<(), Stop> {
    txn.remove(address_key(key));
    add(txn, use_key_of(key), -1)
}

fn next_mailbox(txn: &mut Txn<'_>) -> Result<MailboxId, Stop> {
    let key = vec![keys::COUNTERS];
    let mut counters = read::<Counters>(txn, &key)?.unwrap_or_default();
    counters.last_mailbox += 1;
    write(txn, key, &counters);
    Ok(MailboxId(counters.last_mailbox))
}

/// The fewest mailboxes, and among equals the lowest number.
fn emptiest_partition(txn: &Txn<'_>, partitions: u32) -> Result<PartitionId, Stop> {
    let mut best = (u64::MAX, 0);
    for partition in 1..=partitions {
        best = best.min((count(txn, &keys::partition(partition))?, partition));
    }
    Ok(PartitionId(best.1))
}

fn put_entry(txn: &mut Txn<'_>, entry: MailboxEntry) {
    let id = entry.record.id;
    write(txn, keys::mailbox(keys::MAILBOX, id), &entry);
    tell(txn, DirectoryChange::Mailbox(id, Some(entry)));
}

fn tell(txn: &mut Txn<'_>, change: DirectoryChange) {
    txn.effects.directory.push(change);
    txn.effects.changes.push(Change::Directory);
}

fn mailbox_entry(txn: &Txn<'_>, id: MailboxId) -> Result<MailboxEntry, Stop> {
    let entry = read::<MailboxEntry>(txn, &keys::mailbox(keys::MAILBOX, id))?;
    Ok(entry.ok_or(StoreError::Damaged("an address points to no mailbox"))?)
}

fn domain_names(record: &DomainRecord) -> BTreeSet<Domain> {
    std::iter::once(&record.domain).chain(&record.aliases).cloned().collect()
}

fn name_key(name: &Domain) -> Vec<u8> {
    keys::text(keys::DOMAIN_NAME, name.as_str())
}

fn address_key(key: &str) -> Vec<u8> {
    keys::text(keys::ADDRESS, key)
}

fn list_address_key(key: &str) -> Vec<u8> {
    keys::text(keys::LIST_ADDRESS, key)
}

fn use_key(domain: &Domain) -> Vec<u8> {
    keys::text(keys::DOMAIN_USE, domain.as_str())
}

/// Of the domain of an [`Address::key`].
fn use_key_of(address: &str) -> Vec<u8> {
    keys::text(keys::DOMAIN_USE, address.rsplit_once('@').map_or("", |(_, domain)| domain))
}

/// In an order that is the same on all replicas.
fn sorted(keys: HashSet<String>) -> BTreeSet<String> {
    keys.into_iter().collect()
}

fn count(txn: &Txn<'_>, key: &[u8]) -> Result<u64, Stop> {
    Ok(read::<u64>(txn, key)?.unwrap_or(0))
}

fn add(txn: &mut Txn<'_>, key: Vec<u8>, step: i64) -> Result<(), Stop> {
    let sum = count(txn, &key)?.checked_add_signed(step);
    let sum = sum.expect("what is counted down was counted up before");
    if sum == 0 {
        txn.remove(key);
    } else {
        write(txn, key, &sum);
    }
    Ok(())
}

fn read<T: DeserializeOwned>(txn: &Txn<'_>, key: &[u8]) -> Result<Option<T>, Stop> {
    Ok(txn.get(key)?.map(|value| records::decode(&value)).transpose()?)
}

fn write<T: Serialize>(txn: &mut Txn<'_>, key: Vec<u8>, value: &T) {
    txn.put(key, records::encode(value));
}
