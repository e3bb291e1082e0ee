//! What of a backup is restored, and under which names. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use quorumail_backup::{BackupId, Manifest};
use quorumail_message::Domain;
use quorumail_store::{
    DkimKey, DomainRecord, ListRecord, MailboxId, MailboxRecord, PartitionId, Store, StsMode,
};

use super::{RestoreError, RestoreRequest};

/// Between the levels of a folder's name.
const SEPARATOR: char = '/';

/// What of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Cluster,
    /// A domain with all its mailboxes.
    Domain(String),
    /// The mailbox with this address.
    Mailbox(String),
    /// A folder with all below it.
    Folder {
        /// Address.
        mailbox: String,
        /// Full name.
        folder: String,
    },
}

impl Scope {
    pub(super) fn check(&self, request: &RestoreRequest) -> Result<(), RestoreError> {
        let of_one = matches!(self, Self::Mailbox(_) | Self::Folder { .. });
        if request.into.is_some() && !of_one {
            let text = "only one mailbox, or a folder of one, can be restored into another mailbox";
            return Err(RestoreError::Request(text.to_owned()));
        }
        if request.prefix.as_deref().is_some_and(|prefix| prefix.trim_matches(SEPARATOR).trim().is_empty()) {
            return Err(RestoreError::Request("the folder to restore under needs a name".to_owned()));
        }
        Ok(())
    }

    /// The address of the one mailbox that it is about.
    fn mailbox(&self) -> Option<&str> {
        match self {
            Self::Mailbox(address) | Self::Folder { mailbox: address, .. } => Some(address),
            Self::Cluster | Self::Domain(_) => None,
        }
    }

    /// Whether a folder is meant; of INBOX, in any case (RFC 9051 5.1).
    pub(super) fn has_folder(&self, name: &str) -> bool {
        let Self::Folder { folder, .. } = self else { return true };
        let (folder, name) = (with_inbox(folder.trim_matches(SEPARATOR)), with_inbox(name));
        let below = name.strip_prefix(&*folder);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with(SEPARATOR))
    }
}

/// A folder's name with INBOX as its first level in upper case, however it was written.
fn with_inbox(name: &str) -> Cow<'_, str> {
    let (first, rest) = name.split_at(name.find(SEPARATOR).unwrap_or(name.len()));
    if first != "INBOX" && first.eq_ignore_ascii_case("INBOX") {
        return format!("INBOX{rest}").into();
    }
    name.into()
}

/// A mailbox of the backup, or the archive of a mailing list, and where its mail goes.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// As it was; none for an archive, which comes with its list.
    pub(super) record: Option<Arc<MailboxRecord>>,
    /// Its number.
    pub(super) mailbox: MailboxId,
    /// Where it was.
    pub(super) partition: PartitionId,
    /// Address of the mailbox or list that takes it.
    pub(super) to: String,
}

/// All that is to be restored.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    /// Domains that the mailboxes need.
    pub(super) domains: Vec<Arc<DomainRecord>>,
    /// What mail of these is signed with.
    pub(super) keys: BTreeMap<Domain, Arc<[DkimKey]>>,
    /// Those of these that have an MTA-STS policy.
    pub(super) sts: BTreeMap<Domain, StsMode>,
    /// Mailboxes, and archives of the lists.
    pub(super) mailboxes: Vec<Part>,
    /// Mailing lists.
    pub(super) lists: Vec<Arc<ListRecord>>,
}

impl Parts {
    /// What mail of a domain is signed with.
    pub(super) fn keys_of(&self, domain: &Domain) -> &[DkimKey] {
        self.keys.get(domain).map_or(&[], AsRef::as_ref)
    }

    /// Whether a list had an archive.
    pub(super) fn has_archive(&self, list: &ListRecord) -> bool {
        self.mailboxes.iter().any(|part| part.mailbox == list.id.archive())
    }

    /// The groups that hold it; all of a manifest when its queue is wanted as well.
    pub(super) fn groups(&self, all: Option<&Manifest>) -> Vec<u32> {
        let of_mailboxes = self.mailboxes.iter().map(|part| part.partition.0);
        let of_lists = self.lists.iter().map(|record| record.partition.0);
        let of_queue = all.into_iter().flat_map(|all| &all.groups).map(|group| group.group);
        let groups = of_mailboxes.chain(of_lists).chain(of_queue);
        let groups: BTreeSet<u32> = groups.filter(|group| *group != 0).collect();
        groups.into_iter().collect()
    }
}

/// What the request means in a backup whose directory is loaded.
pub(super) fn parts(
    store: &Store,
    backup: &BackupId,
    request: &RestoreRequest,
) -> Result<Parts, RestoreError> {
    let directory = store.directory();
    let not_there = |what: String| RestoreError::NotThere { backup: backup.to_string(), what };
    let of_domain =
        |record: &MailboxRecord, domain: &str| record.address.domain().as_str().eq_ignore_ascii_case(domain);
    let mailboxes: Vec<Arc<MailboxRecord>> = match &request.scope {
        Scope::Cluster => directory.mailboxes(),
        Scope::Domain(domain) => {
            directory.mailboxes().into_iter().filter(|record| of_domain(record, domain)).collect()
        }
        one => {
            let address = one.mailbox().unwrap_or_default();
            let found = directory
                .mailboxes()
                .into_iter()
                .find(|record| record.address.to_string().eq_ignore_ascii_case(address));
            vec![found.ok_or_else(|| not_there(format!("mailbox {address}")))?]
        }
    };
    let needed: BTreeSet<String> = mailboxes
        .iter()
        .flat_map(|record| std::iter::once(&record.address).chain(&record.aliases))
        .map(|address| address.domain().as_str().to_lowercase())
        .collect();
    let wanted = |record: &DomainRecord| {
        let name = record.domain.as_str();
        match &request.scope {
            Scope::Cluster => true,
            Scope::Domain(domain) => name.eq_ignore_ascii_case(domain) || needed.contains(name),
            _ => needed.contains(name),
        }
    };
    let domains: Vec<_> = directory.domains().into_iter().filter(|record| wanted(record)).collect();
    if let Scope::Domain(domain) = &request.scope
        && !domains.iter().any(|record| record.domain.as_str().eq_ignore_ascii_case(domain))
    {
        return Err(not_there(format!("domain {domain}")));
    }
    let part = |record: Arc<MailboxRecord>| {
        let to = request.into.clone().unwrap_or_else(|| record.address.to_string());
        Part { mailbox: record.id, partition: record.partition, record: Some(record), to }
    };
    let keys = domains
        .iter()
        .filter_map(|record| Some((record.domain.clone(), directory.dkim_keys(&record.domain)?)));
    let is_wanted = |record: &ListRecord| match &request.scope {
        Scope::Cluster => true,
        Scope::Domain(domain) => record.address.domain().as_str().eq_ignore_ascii_case(domain),
        Scope::Mailbox(_) | Scope::Folder { .. } => false,
    };
    // Where nothing may happen by itself no list is of use.
    let lists: Vec<_> =
        directory.lists().into_iter().filter(|record| !request.locked && is_wanted(record)).collect();
    let archives = lists.iter().filter(|list| directory.archived_list(list.id).is_some()).map(|list| Part {
        record: None,
        mailbox: list.id.archive(),
        partition: list.partition,
        to: list.address.to_string(),
    });
    let sts = domains
        .iter()
        .filter_map(|record| Some((record.domain.clone(), directory.sts_mode(&record.domain)?)));
    Ok(Parts {
        keys: keys.collect(),
        sts: sts.collect(),
        domains,
        mailboxes: mailboxes.into_iter().map(part).chain(archives).collect(),
        lists,
    })
}

/// The name that a folder gets.
pub(super) fn target_name(prefix: Option<&str>, name: &str) -> String {
    match prefix {
        Some(prefix) => format!("{}{SEPARATOR}{name}", prefix.trim_matches(SEPARATOR)),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_meant_with_all_below_it() {
        let scope =
            |folder: &str| Scope::Folder { mailbox: "a@example.org".to_owned(), folder: folder.to_owned() };
        for (folder, name, meant) in [
            ("Projects", "Projects", true),
            ("Projects", "Projects/2026", true),
            ("Projects", "Projects 2", false),
            ("Projects/2026", "Projects", false),
            ("inbox", "INBOX", true),
            ("INBOX", "INBOX/Sub", true),
            ("inbox/a", "INBOX/a/b", true),
            ("INBOX", "INBOXES", false),
        ] {
            assert_eq!(scope(folder).has_folder(name), meant, "{folder} {name}");
        }
        assert!(Scope::Cluster.has_folder("INBOX"));
    }

    #[test]
    fn folders_come_under_the_prefix() {
        assert_eq!(target_name(None, "INBOX"), "INBOX");
        assert_eq!(target_name(Some("Restored/"), "Projects/2026"), "Restored/Projects/2026");
    }

    #[test]
    fn requests_that_contradict_themselves_are_refused() {
        let request = |scope, into: Option<&str>, prefix: Option<&str>| RestoreRequest {
            scope,
            into: into.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
            ..RestoreRequest::everything()
        };
        let one = Scope::Mailbox("a@example.org".to_owned());
        for (request, is_sound) in [
            (request(one.clone(), Some("b@example.org"), Some("Restored")), true),
            (request(Scope::Cluster, None, None), true),
            (request(Scope::Cluster, Some("b@example.org"), None), false),
            (request(one, None, Some("/")), false),
        ] {
            assert_eq!(request.scope.check(&request).is_ok(), is_sound, "{request:?}");
        }
    }
}
