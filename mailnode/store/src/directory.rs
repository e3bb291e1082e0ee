//! The directory as sessions read it: who is there, answered from memory on every node.
//!
//! A copy of group 0 in hash maps, built at start and after a snapshot, and brought up to date after each batch.
//! Readers and the writer hold its lock for a few map operations only.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::RwLock;

use crate::{
    Address, DkimKey, Domain, DomainRecord, ListId, ListRecord, MailboxId, MailboxRecord, StsMode, Timestamp,
    records::MailboxEntry,
};

/// Reads the directory. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Directory(Arc<RwLock<Maps>>);

/// What an address means here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It belongs to this mailbox: as its address or alias, through an alias of the domain, or as its catch-all.
    Mailbox(Arc<MailboxRecord>),
    /// It belongs to this mailing list.
    List(Arc<ListRecord>, ListPart),
    /// The domain is served here, but nobody has this address.
    NoSuchUser,
    /// The domain is not served here.
    NotLocal,
}

/// What an address of a mailing list is for. The local part is the list's own with a word behind it, and some have a token
/// after `+`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListPart {
    /// `list@`: a message for its members.
    Post,
    /// `list-bounces@`: what comes back from members.
    Bounces(String),
    /// `list-join@`: the sender wants to become a member.
    Join,
    /// `list-leave@`: the sender wants to be one no more.
    Leave,
    /// `list-confirm+token@`: yes, it was I who asked.
    Confirm(String),
    /// `list-moderate+token@`: what a moderator says.
    Moderate(String),
    /// `list-owner@`: a message for its owners.
    Owner,
}

impl ListPart {
    /// Splits a local part in lower case into that of a list and what the rest means.
    fn split(local: &str) -> Option<(&str, Self)> {
        let (stem, token) = local.split_once('+').unwrap_or((local, ""));
        let (list, word) = stem.rsplit_once('-')?;
        let part = match word {
            "bounces" => Self::Bounces(token.to_owned()),
            "join" => Self::Join,
            "leave" => Self::Leave,
            "confirm" => Self::Confirm(token.to_owned()),
            "moderate" => Self::Moderate(token.to_owned()),
            "owner" => Self::Owner,
            _ => return None,
        };
        Some((list, part))
    }
}

/// A mailbox that was deleted and whose mail is kept for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedMailbox {
    /// As it was.
    pub record: Arc<MailboxRecord>,
    /// When its mail may be purged.
    pub purge_at: Timestamp,
}

/// A change of group 0: the new state of one thing, none when it is gone.
#[derive(Debug, Clone)]
pub(crate) enum DirectoryChange {
    Domain(Domain, Option<Arc<DomainRecord>>),
    /// Empty: there are none.
    Keys(Domain, Arc<[DkimKey]>),
    Sts(Domain, Option<StsMode>),
    Mailbox(MailboxId, Option<MailboxEntry>),
    List(ListId, Option<Arc<ListRecord>>),
    /// Whether a list has an archive.
    Archive(ListId, bool),
}

#[derive(Debug, Default)]
struct Maps {
    domains: HashMap<Domain, Arc<DomainRecord>>,
    /// Every name of a domain: the domain.
    names: HashMap<Domain, Domain>,
    /// Only of domains that have some.
    keys: HashMap<Domain, Arc<[DkimKey]>>,
    /// Only of domains with an MTA-STS policy.
    sts: HashMap<Domain, StsMode>,
    mailboxes: HashMap<MailboxId, Arc<MailboxRecord>>,
    deleted: HashMap<MailboxId, DeletedMailbox>,
    /// [`Address::key`] of addresses and aliases.
    addresses: HashMap<String, MailboxId>,
    lists: HashMap<ListId, Arc<ListRecord>>,
    /// [`Address::key`] of lists.
    list_addresses: HashMap<String, ListId>,
    /// Lists that have an archive.
    archives: HashSet<ListId>,
}

impl Directory {
    /// Whose address this is.
    pub fn resolve(&self, address: &Address) -> Resolution {
        let maps = self.0.read();
        let Some(domain) = maps.names.get(address.domain()) else { return Resolution::NotLocal };
        if let Some(mailbox) = maps.lookup(address) {
            return Resolution::Mailbox(Arc::clone(mailbox));
        }
        if let Some((list, part)) = maps.list(&address.at(domain).key()) {
            return Resolution::List(Arc::clone(list), part);
        }
        let catch_all = maps.domains.get(domain).and_then(|domain| domain.catch_all.as_ref());
        let found = catch_all.and_then(|catch_all| maps.lookup(catch_all));
        found.map_or(Resolution::NoSuchUser, |mailbox| Resolution::Mailbox(Arc::clone(mailbox)))
    }

    /// The mailbox that logs in with this name: its address, at its domain or an alias of it. Aliases of a mailbox
    /// are no login names. Whether it may log in is for the caller to check.
    pub fn login(&self, name: &Address) -> Option<Arc<MailboxRecord>> {
        let maps = self.0.read();
        let domain = maps.names.get(name.domain())?;
        let mailbox = maps.lookup(name)?;
        (mailbox.address == name.at(domain)).then(|| Arc::clone(mailbox))
    }

    /// A mailbox by id; none when it is deleted.
    pub fn mailbox(&self, id: MailboxId) -> Option<Arc<MailboxRecord>> {
        self.0.read().mailboxes.get(&id).cloned()
    }

    /// A mailing list by id.
    pub fn list(&self, id: ListId) -> Option<Arc<ListRecord>> {
        self.0.read().lists.get(&id).cloned()
    }

    /// A mailing list by its address, at its domain or an alias of it.
    pub fn list_named(&self, address: &Address) -> Option<Arc<ListRecord>> {
        match self.resolve(address) {
            Resolution::List(list, ListPart::Post) => Some(list),
            _ => None,
        }
    }

    /// All mailing lists, by id.
    pub fn lists(&self) -> Vec<Arc<ListRecord>> {
        let mut lists: Vec<_> = self.0.read().lists.values().cloned().collect();
        lists.sort_by_key(|list| list.id);
        lists
    }

    /// A mailing list by id, when it has an archive.
    pub fn archived_list(&self, id: ListId) -> Option<Arc<ListRecord>> {
        let maps = self.0.read();
        maps.lists.get(&id).filter(|_| maps.archives.contains(&id)).cloned()
    }

    /// All mailing lists that have an archive, by id.
    pub fn archived_lists(&self) -> Vec<Arc<ListRecord>> {
        let maps = self.0.read();
        let mut lists: Vec<_> = maps.archives.iter().filter_map(|id| maps.lists.get(id)).cloned().collect();
        lists.sort_by_key(|list| list.id);
        lists
    }

    /// A domain by its own name or an alias.
    pub fn domain(&self, name: &Domain) -> Option<Arc<DomainRecord>> {
        let maps = self.0.read();
        maps.domains.get(maps.names.get(name)?).cloned()
    }

    /// What mail of a domain, by its own name or an alias, is signed with; none: it is not signed. The same allocation as long
    /// as nothing changes.
    pub fn dkim_keys(&self, name: &Domain) -> Option<Arc<[DkimKey]>> {
        let maps = self.0.read();
        maps.keys.get(maps.names.get(name)?).cloned()
    }

    /// The MTA-STS mode of a domain, by its own name or an alias; none: it has no policy.
    pub fn sts_mode(&self, name: &Domain) -> Option<StsMode> {
        let maps = self.0.read();
        maps.sts.get(maps.names.get(name)?).copied()
    }

    /// All domains, by name.
    pub fn domains(&self) -> Vec<Arc<DomainRecord>> {
        let mut domains: Vec<_> = self.0.read().domains.values().cloned().collect();
        domains.sort_by(|a, b| a.domain.cmp(&b.domain));
        domains
    }

    /// All mailboxes, by id.
    pub fn mailboxes(&self) -> Vec<Arc<MailboxRecord>> {
        let mut mailboxes: Vec<_> = self.0.read().mailboxes.values().cloned().collect();
        mailboxes.sort_by_key(|mailbox| mailbox.id);
        mailboxes
    }

    /// Mailboxes that are deleted and not forgotten, by id.
    pub fn deleted(&self) -> Vec<DeletedMailbox> {
        let mut deleted: Vec<_> = self.0.read().deleted.values().cloned().collect();
        deleted.sort_by_key(|mailbox| mailbox.record.id);
        deleted
    }

    /// Brings the maps up to date with a committed batch.
    pub(crate) fn apply(&self, changes: Vec<DirectoryChange>) {
        let mut maps = self.0.write();
        for change in changes {
            maps.apply(change);
        }
    }

    /// Starts anew from all there is.
    pub(crate) fn replace(&self, all: Vec<DirectoryChange>) {
        let mut maps = Maps::default();
        for change in all {
            maps.apply(change);
        }
        // The old maps are dropped outside the lock.
        let _old = std::mem::replace(&mut *self.0.write(), maps);
    }
}

impl Maps {
    /// Without catch-alls.
    fn lookup(&self, address: &Address) -> Option<&Arc<MailboxRecord>> {
        let domain = self.names.get(address.domain())?;
        let id = self.addresses.get(&address.at(domain).key())?;
        self.mailboxes.get(id)
    }

    /// The list that an address at a domain's own name belongs to, by its key.
    fn list(&self, key: &str) -> Option<(&Arc<ListRecord>, ListPart)> {
        let found = |key: &str| self.lists.get(self.list_addresses.get(key)?);
        if let Some(list) = found(key) {
            return Some((list, ListPart::Post));
        }
        let (local, domain) = key.rsplit_once('@')?;
        let (name, part) = ListPart::split(local)?;
        found(&format!("{name}@{domain}")).map(|list| (list, part))
    }

    fn set_list(&mut self, id: ListId, record: Option<Arc<ListRecord>>) {
        if let Some(old) = self.lists.remove(&id) {
            let key = old.address.key();
            if self.list_addresses.get(&key) == Some(&id) {
                self.list_addresses.remove(&key);
            }
        }
        if let Some(record) = record {
            self.list_addresses.insert(record.address.key(), id);
            self.lists.insert(id, record);
        }
    }

    fn apply(&mut self, change: DirectoryChange) {
        match change {
            DirectoryChange::Domain(domain, record) => self.set_domain(domain, record),
            DirectoryChange::Keys(domain, keys) if keys.is_empty() => drop(self.keys.remove(&domain)),
            DirectoryChange::Keys(domain, keys) => drop(self.keys.insert(domain, keys)),
            DirectoryChange::Sts(domain, None) => drop(self.sts.remove(&domain)),
            DirectoryChange::Sts(domain, Some(mode)) => drop(self.sts.insert(domain, mode)),
            DirectoryChange::Mailbox(id, entry) => self.set_mailbox(id, entry),
            DirectoryChange::List(id, record) => self.set_list(id, record),
            DirectoryChange::Archive(id, true) => drop(self.archives.insert(id)),
            DirectoryChange::Archive(id, false) => drop(self.archives.remove(&id)),
        }
    }

    fn set_domain(&mut self, domain: Domain, record: Option<Arc<DomainRecord>>) {
        if let Some(old) = self.domains.remove(&domain) {
            for name in std::iter::once(&old.domain).chain(&old.aliases) {
                self.names.remove(name);
            }
        }
        if let Some(record) = record {
            for name in std::iter::once(&record.domain).chain(&record.aliases) {
                self.names.insert(name.clone(), domain.clone());
            }
            self.domains.insert(domain, record);
        }
    }

    fn set_mailbox(&mut self, id: MailboxId, entry: Option<MailboxEntry>) {
        self.deleted.remove(&id);
        if let Some(old) = self.mailboxes.remove(&id) {
            for key in address_keys(&old) {
                // It may have gone to another mailbox earlier in the same batch.
                if self.addresses.get(&key) == Some(&id) {
                    self.addresses.remove(&key);
                }
            }
        }
        match entry {
            Some(MailboxEntry { record, purge_at: Some(purge_at) }) => {
                self.deleted.insert(id, DeletedMailbox { record: Arc::new(record), purge_at });
            }
            Some(MailboxEntry { record, purge_at: None }) => {
                self.addresses.extend(address_keys(&record).into_iter().map(|key| (key, id)));
                self.mailboxes.insert(id, Arc::new(record));
            }
            None => {}
        }
    }
}

/// What the addresses of a mailbox are looked up by.
pub(crate) fn address_keys(record: &MailboxRecord) -> HashSet<String> {
    std::iter::once(&record.address).chain(&record.aliases).map(Address::key).collect()
}
