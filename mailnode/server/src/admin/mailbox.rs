//! Which mailbox a stream is about, and what both directions share.

use std::sync::Arc;

use quorumail_consensus::GroupId;
use quorumail_message::{Address, AddressError};
use quorumail_proto::admin::MailFolder;
use quorumail_store::{FolderInfo, MailboxId, MailboxRecord, SpecialUse};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Code, Status};

use super::unreadable;
use crate::groups::Groups;

/// Exports and imports of one node at a time; a further one is refused. Bounds their memory and threads.
const AT_ONCE: usize = 16;
static STREAMS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Room for one more stream, until dropped.
pub(super) fn room() -> Result<SemaphorePermit<'static>, Status> {
    STREAMS.try_acquire().map_err(|_| {
        Status::unavailable(format!("this node exports and imports {AT_ONCE} mailboxes already; try again"))
    })
}

/// The mailbox with this address.
pub(super) async fn record(groups: &Groups, address: &str) -> Result<Arc<MailboxRecord>, Status> {
    let parsed: Address = address
        .parse()
        .map_err(|error: AddressError| Status::invalid_argument(format!("{address:?}: {error}")))?;
    if let Some(record) = groups.directory().login(&parsed) {
        return Ok(record);
    }
    groups.directory_is_current().await.map_err(unreadable)?;
    let record = groups.directory().login(&parsed);
    record.ok_or_else(|| Status::not_found(format!("there is no mailbox {parsed}")))
}

/// Where the mailbox with this address is, or the archive of the mailing list with this address.
pub(super) async fn place(groups: &Groups, address: &str) -> Result<(GroupId, MailboxId), Status> {
    let missing = match record(groups, address).await {
        Ok(record) => return Ok((Groups::group(record.partition), record.id)),
        Err(status) if status.code() == Code::NotFound => status,
        Err(status) => return Err(status),
    };
    let directory = groups.directory();
    let list = address.parse().ok().and_then(|address: Address| directory.list_named(&address));
    let list = list.and_then(|list| directory.archived_list(list.id)).ok_or(missing)?;
    Ok((Groups::group(list.partition), list.id.archive()))
}

const SPECIAL: [(&str, SpecialUse); 5] = [
    ("Archive", SpecialUse::Archive),
    ("Drafts", SpecialUse::Drafts),
    ("Junk", SpecialUse::Junk),
    ("Sent", SpecialUse::Sent),
    ("Trash", SpecialUse::Trash),
];

pub(super) fn special_use_in(name: &str) -> Result<Option<SpecialUse>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let found = SPECIAL.iter().find(|(known, _)| *known == name).map(|(_, special_use)| Some(*special_use));
    found.ok_or_else(|| Status::invalid_argument(format!("{name:?} is no special use of a folder")))
}

pub(super) fn folder_out(info: &FolderInfo) -> MailFolder {
    let special_use = info.special_use.and_then(|wanted| SPECIAL.iter().find(|(_, used)| *used == wanted));
    MailFolder {
        name: info.name.clone(),
        special_use: special_use.map(|(name, _)| (*name).to_owned()).unwrap_or_default(),
        subscribed: info.subscribed,
        uid_validity: info.uid_validity.0,
        uid_next: info.uid_next.0,
        highest_mod_seq: info.highest_mod_seq.0,
        messages: info.messages,
        bytes: info.bytes,
    }
}
