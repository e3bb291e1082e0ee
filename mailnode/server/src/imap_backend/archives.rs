//! Archives of mailing lists among the folders of those who may read them.
//!
//! An archive is the INBOX of a mailbox that has the number of its list, in the list's home. It is read as any folder is; what
//! would change it is refused. To whom it is not open there is no such folder.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use quorumail_consensus::GroupId;
use quorumail_imap::{Failure, FlagChange, Flags, Folder, Mailbox as _, Octets, SHARED_NAMESPACE};
use quorumail_message::Address;
use quorumail_store::{
    FolderId, FolderInfo, INBOX_NUMBER, ListId, ListRecord, MailboxId, Query, Reply, Subscriber,
};

use super::{OpenMailbox, folder_out, unexpected};
use crate::{
    groups::{Groups, INBOX},
    lists::policy::{self, Standing},
};

/// Bit of the numbers of folders that are archives; the others are the number of the list.
const ARCHIVE: u64 = 1 << 63;
/// Lists that are asked at a time.
const AT_ONCE: usize = 16;
/// For one of them while all folders are listed: what cannot be asked then is not listed, and keeps nobody waiting.
const LISTED_WITHIN: Duration = Duration::from_secs(2);

/// Whose folder it is.
pub(super) struct Place {
    pub(super) group: GroupId,
    pub(super) mailbox: MailboxId,
    /// None: the person's own.
    list: Option<Arc<ListRecord>>,
}

impl Place {
    fn of(list: Arc<ListRecord>) -> Self {
        Self { group: Groups::group(list.partition), mailbox: list.id.archive(), list: Some(list) }
    }

    pub(super) fn is_archive(&self) -> bool {
        self.list.is_some()
    }

    /// The folder as its reader sees it.
    pub(super) fn shown(&self, info: FolderInfo) -> Folder {
        let folder = folder_out(info);
        match &self.list {
            None => folder,
            Some(list) => Folder {
                id: ARCHIVE | list.id.0,
                name: format!("{SHARED_NAMESPACE}{}", list.address),
                subscribed: true,
                read_only: true,
                ..folder
            },
        }
    }
}

/// Whether no folder of a person's own is called so.
pub(super) fn is_shared(name: &str) -> bool {
    name.starts_with(SHARED_NAMESPACE) || name == SHARED_NAMESPACE.trim_end_matches('/')
}

/// The number of a folder of the person's own.
pub(super) fn own(folder: u64) -> Result<FolderId, Failure> {
    if folder & ARCHIVE == 0 { Ok(FolderId(folder)) } else { Err(Failure::ReadOnly) }
}

impl OpenMailbox {
    /// A folder by its number.
    pub(super) fn place(&self, folder: u64) -> Result<(Place, FolderId), Failure> {
        if folder & ARCHIVE == 0 {
            return Ok((Place { group: self.group, mailbox: self.id, list: None }, FolderId(folder)));
        }
        let list = self.groups.directory().archived_list(ListId(folder & !ARCHIVE));
        Ok((Place::of(list.ok_or(Failure::NonExistent)?), INBOX_NUMBER))
    }

    /// A folder by its name, and the name that it has in its mailbox.
    pub(super) async fn named<'n>(&self, name: &'n str) -> Result<(Place, &'n str), Failure> {
        if !is_shared(name) {
            return Ok((Place { group: self.group, mailbox: self.id, list: None }, name));
        }
        let directory = self.groups.directory();
        let address = name.strip_prefix(SHARED_NAMESPACE).unwrap_or_default();
        let list = address.parse().ok().and_then(|address: Address| directory.list_named(&address));
        let list = list.filter(|list| list.address.to_string() == address);
        let list = list.and_then(|list| directory.archived_list(list.id)).ok_or(Failure::NonExistent)?;
        let place = Place::of(list);
        self.may_read(&place).await?;
        Ok((place, INBOX))
    }

    /// [`Failure::NonExistent`] for an archive that is not, or not any more, for this person.
    pub(super) async fn may_read(&self, place: &Place) -> Result<(), Failure> {
        let Some(list) = &place.list else { return Ok(()) };
        let reader = self.record()?;
        for address in std::iter::once(&reader.address).chain(&reader.aliases) {
            let known = self.remembered(place, list, address).await?;
            if policy::standing(list, address, known.as_ref()) != Standing::Stranger {
                return Ok(());
            }
        }
        Err(Failure::NonExistent)
    }

    async fn remembered(
        &self,
        place: &Place,
        list: &ListRecord,
        address: &Address,
    ) -> Result<Option<Subscriber>, Failure> {
        let query = Query::Subscriber { list: list.id, address: address.clone() };
        match self.query(place.group, query).await? {
            Reply::Subscribers(found) => Ok(found.into_iter().next()),
            _ => unexpected("Subscriber"),
        }
    }

    /// The archives that this person may read.
    pub(super) async fn archives(&self) -> Vec<Folder> {
        let mut found = Vec::new();
        for lists in self.groups.directory().archived_lists().chunks(AT_ONCE) {
            found.extend(join_all(lists.iter().map(|list| self.listed(list))).await.into_iter().flatten());
        }
        found
    }

    async fn listed(&self, list: &Arc<ListRecord>) -> Option<Folder> {
        let place = Place::of(Arc::clone(list));
        let folder = async {
            self.may_read(&place).await?;
            self.folder_in(&place, INBOX).await
        };
        tokio::time::timeout(LISTED_WITHIN, folder).await.ok()?.ok()
    }

    /// Refuses a change of what is below the shared namespace. To whom an archive is not open there is no such folder.
    pub(super) async fn writable(&self, name: &str) -> Result<(), Failure> {
        if !is_shared(name) {
            return Ok(());
        }
        self.named(name).await?;
        Err(Failure::ReadOnly)
    }

    /// Readers see archives with their subscribed folders always: it is kept nowhere who wants to.
    pub(super) async fn subscribe_archive(&self, name: &str, subscribed: bool) -> Result<(), Failure> {
        match self.named(name).await {
            Ok(_) if subscribed => Ok(()),
            Ok(_) => Err(Failure::Cannot("the archive of a list is always subscribed".to_owned())),
            Err(Failure::NonExistent) if !subscribed => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Copies messages of an archive into a folder of the person's own, which is in another mailbox: one after the other, and
    /// when one fails those before it are taken back.
    pub(super) async fn copy_out(
        &self,
        folder: u64,
        uids: &[u32],
        to: &str,
    ) -> Result<(u32, Vec<(u32, u32)>), Failure> {
        let (mut uid_validity, mut pairs) = (0, Vec::new());
        let outcome = self.copy_each(folder, uids, to, &mut uid_validity, &mut pairs).await;
        if let Err(failure) = outcome {
            self.take_back(to, pairs.into_iter().map(|(_, uid)| uid).collect()).await;
            return Err(failure);
        }
        Ok((uid_validity, pairs))
    }

    async fn copy_each(
        &self,
        folder: u64,
        uids: &[u32],
        to: &str,
        uid_validity: &mut u32,
        pairs: &mut Vec<(u32, u32)>,
    ) -> Result<(), Failure> {
        let mut left = uids;
        while !left.is_empty() {
            let found = self.messages(folder, left, Octets::Whole, &[]).await?;
            let (now, rest) = left.split_at(found.len().min(left.len()));
            for (uid, found) in now.iter().zip(found) {
                let Some(found) = found else { continue };
                let date = Some(found.message.internal_date);
                let added = self.append(to, found.message.flags, date, found.octets).await?;
                *uid_validity = added.0;
                pairs.push((*uid, added.1));
            }
            left = rest;
        }
        Ok(())
    }

    /// As far as it can be done now.
    async fn take_back(&self, to: &str, uids: Vec<u32>) {
        let Ok(target) = self.folder(to).await else { return };
        let deleted = Flags::from(["\\Deleted".to_owned()]);
        if !uids.is_empty() && self.store(target.id, &uids, FlagChange::Add, deleted, None).await.is_ok() {
            drop(self.expunge(target.id, Some(&uids)).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_namespace_is_shared() {
        for name in ["#lists", "#lists/", "#lists/a@example.org", "#lists/a/b"] {
            assert!(is_shared(name), "{name}");
        }
        for name in ["INBOX", "lists", "#list", "#listse/a", "a/#lists/b"] {
            assert!(!is_shared(name), "{name}");
        }
        assert_eq!((own(7), own(ARCHIVE | 7)), (Ok(FolderId(7)), Err(Failure::ReadOnly)));
    }
}
