//! Reads the mailboxes of a loaded backup, in their order, a bounded number of bytes ahead of whoever writes.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorumail_backup::BackupId;
use quorumail_store::{Export, FolderInfo, MessageMeta, Store, StoreError, Uid};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use super::{
    RestoreError, RestoreRequest, Tally,
    scope::{Part, Parts, Scope, target_name},
};

/// Names of folders that are shown to somebody who asked for one that is not there.
const SHOWN_FOLDERS: usize = 20;
/// Bytes of messages that are read and not yet written, over all mailboxes.
const AHEAD_BYTES: usize = 64 << 20;
/// Messages of one mailbox that are read and not yet written.
const AHEAD: usize = 64;
/// A body that cannot be read is damaged, and the others are read on; but when it took so long to find that out, the
/// repository has stopped answering, and so would the next ones.
const STOPPED_AFTER: Duration = Duration::from_secs(20);

/// What is met on the way through a mailbox. Messages belong to the folder before them.
pub(super) enum Item {
    /// A folder, and the name that it gets.
    Folder(FolderInfo, String),
    /// A message.
    Message(MessageMeta, Bytes, Room),
    /// A message whose body the repository does not have any more.
    Lost(Uid, String),
}

/// A part of the bytes that may be read ahead.
pub(super) struct Room {
    _permit: OwnedSemaphorePermit,
}

/// Bounds what is read ahead.
#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AHEAD_BYTES)))
    }

    /// Blocks until there is room.
    fn take(&self, runtime: &Handle, bytes: u32) -> Room {
        let wanted = bytes.min(u32::try_from(AHEAD_BYTES).unwrap_or(u32::MAX));
        let permit = runtime.block_on(Arc::clone(&self.0).acquire_many_owned(wanted));
        Room { _permit: permit.expect("the budget is never closed") }
    }
}

/// Where a walk is told.
pub(super) type Items = mpsc::Receiver<Result<Item, RestoreError>>;

/// Walks through what is wanted of a mailbox. Dropping the receiver ends it.
pub(super) fn walk(store: &Store, part: &Part, request: &RestoreRequest, budget: &Budget) -> Items {
    let (send, items) = mpsc::channel(AHEAD);
    let walker = Walker {
        store: store.clone(),
        group: part.partition.0,
        mailbox: part.mailbox,
        scope: request.scope.clone(),
        prefix: request.prefix.clone(),
        budget: budget.clone(),
        runtime: Handle::current(),
        send,
    };
    tokio::task::spawn_blocking(move || {
        if let Err(error) = walker.run() {
            // Nobody listens any more, or is about to hear it.
            let _ = walker.send.blocking_send(Err(error));
        }
    });
    items
}

struct Walker {
    store: Store,
    group: u32,
    mailbox: quorumail_store::MailboxId,
    scope: Scope,
    prefix: Option<String>,
    budget: Budget,
    runtime: Handle,
    send: mpsc::Sender<Result<Item, RestoreError>>,
}

impl Walker {
    fn run(&self) -> Result<(), RestoreError> {
        let Some(export) = self.store.export(self.group)? else { return Ok(()) };
        for folder in export.folders(self.mailbox)? {
            if !self.scope.has_folder(&folder.name) {
                continue;
            }
            let name = target_name(self.prefix.as_deref(), &folder.name);
            let id = folder.id;
            if self.send.blocking_send(Ok(Item::Folder(folder, name))).is_err() {
                return Ok(());
            }
            self.messages(&export, id)?;
        }
        Ok(())
    }

    fn messages(&self, export: &Export<'_>, folder: quorumail_store::FolderId) -> Result<(), RestoreError> {
        let mut stopped = None;
        export.messages(self.mailbox, folder, Uid(1), &mut |message| {
            let room = self.budget.take(&self.runtime, message.meta.size);
            let begun = Instant::now();
            let item = match message.body.read() {
                Ok(body) => Item::Message(message.meta, body, room),
                Err(StoreError::Bodies(reason)) if begun.elapsed() >= STOPPED_AFTER => {
                    stopped = Some(reason);
                    return Ok(ControlFlow::Break(()));
                }
                Err(StoreError::Bodies(reason)) => Item::Lost(message.meta.uid, reason),
                Err(other) => return Err(other),
            };
            Ok(match self.send.blocking_send(Ok(item)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        })?;
        match stopped {
            Some(reason) => Err(RestoreError::Unreadable(reason)),
            None => Ok(()),
        }
    }
}

/// Counts what is to come, for the progress.
pub(super) async fn count(
    store: &Store,
    parts: &Parts,
    tally: &Tally<'_>,
    scope: &Scope,
    backup: &BackupId,
) -> Result<(), RestoreError> {
    let (store, meant) = (store.clone(), scope.clone());
    let mailboxes: Vec<_> = parts.mailboxes.iter().map(|part| (part.partition.0, part.mailbox)).collect();
    let counted = tokio::task::spawn_blocking(move || {
        let (mut messages, mut bytes) = (0u64, 0u64);
        let (mut met, mut others) = (0, Vec::new());
        for (group, mailbox) in mailboxes {
            let Some(export) = store.export(group)? else { continue };
            for folder in export.folders(mailbox)? {
                if meant.has_folder(&folder.name) {
                    met += 1;
                    messages += u64::from(folder.messages);
                    bytes += folder.bytes;
                } else if others.len() < SHOWN_FOLDERS {
                    others.push(folder.name);
                }
            }
        }
        Ok::<_, StoreError>((messages, bytes, met, others))
    });
    let (messages, bytes, met, others) = joined(counted.await)?;
    if met == 0
        && let Scope::Folder { mailbox, folder } = scope
    {
        let what = format!("folder {folder} of {mailbox} (which has {})", others.join(", "));
        return Err(RestoreError::NotThere { backup: backup.to_string(), what });
    }
    tally.expect(messages, bytes);
    Ok(())
}

/// The result of blocking work; it is never cancelled, and does not panic but where an invariant is broken.
pub(in crate::backup) fn joined<T, E>(result: Result<Result<T, E>, tokio::task::JoinError>) -> Result<T, E> {
    match result {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
