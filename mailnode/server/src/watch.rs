//! Wakes those who wait for changes in a mailbox.
//!
//! One task reads what the store announces and wakes the waiters of that mailbox only, so that an idle client costs
//! nothing while others are busy.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use quorumail_store::{Change, MailboxId, Store};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Who waits for what.
#[derive(Default)]
pub struct Watchers {
    mailboxes: Mutex<HashMap<(u32, MailboxId), watch::Sender<()>>>,
    queue: Arc<Notify>,
}

/// Tells of changes of one mailbox that are committed after it was made.
pub struct Watcher {
    watchers: Arc<Watchers>,
    key: (u32, MailboxId),
    receiver: watch::Receiver<()>,
}

impl Watchers {
    /// Starts the task that wakes, until cancelled.
    pub fn start(store: &Store, stop: CancellationToken) -> Arc<Self> {
        let watchers = Arc::new(Self::default());
        let mut changes = store.subscribe();
        let task = Arc::clone(&watchers);
        tokio::spawn(async move {
            loop {
                let change = tokio::select! {
                    () = stop.cancelled() => return,
                    change = changes.recv() => change,
                };
                match change {
                    Ok(change) => task.tell(change),
                    // Everything may have changed in what was missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => task.wake(|_| true),
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        watchers
    }

    /// Watches a mailbox of a group that this node holds.
    pub fn watch(self: &Arc<Self>, group: u32, mailbox: MailboxId) -> Watcher {
        let key = (group, mailbox);
        let mut mailboxes = self.mailboxes.lock();
        let receiver = mailboxes.entry(key).or_insert_with(|| watch::channel(()).0).subscribe();
        Watcher { watchers: Arc::clone(self), key, receiver }
    }

    /// Notified after each change of a queue that this node holds.
    pub fn queue(&self) -> Arc<Notify> {
        Arc::clone(&self.queue)
    }

    fn tell(&self, change: Change) {
        match change {
            Change::Folder { group, mailbox, .. } | Change::FolderList { group, mailbox } => {
                if let Some(sender) = self.mailboxes.lock().get(&(group, mailbox)) {
                    sender.send_replace(());
                }
            }
            Change::Group { group } => self.wake(|key| key.0 == group),
            Change::Queue { .. } => self.queue.notify_waiters(),
            Change::Directory => {}
        }
    }

    fn wake(&self, which: impl Fn(&(u32, MailboxId)) -> bool) {
        for (_, sender) in self.mailboxes.lock().iter().filter(|(key, _)| which(key)) {
            sender.send_replace(());
        }
        self.queue.notify_waiters();
    }
}

impl Watcher {
    /// Returns after the next change since the watcher was made or this last returned.
    pub async fn changed(&mut self) {
        // The sender lives as long as there is a receiver: see Drop.
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut mailboxes = self.watchers.mailboxes.lock();
        // The last receiver is this one.
        if mailboxes.get(&self.key).is_some_and(|sender| sender.receiver_count() <= 1) {
            mailboxes.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quorumail_store::FolderId;

    use super::*;

    #[tokio::test]
    async fn a_change_wakes_the_watchers_of_its_mailbox_only() {
        let watchers = Arc::new(Watchers::default());
        let mut alice = watchers.watch(1, MailboxId(1));
        let mut also_alice = watchers.watch(1, MailboxId(1));
        let mut bob = watchers.watch(1, MailboxId(2));
        watchers.tell(Change::Folder { group: 1, mailbox: MailboxId(1), folder: FolderId(1) });
        alice.changed().await;
        also_alice.changed().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), bob.changed()).await.is_err());
        watchers.tell(Change::Group { group: 1 });
        bob.changed().await;
    }

    #[tokio::test]
    async fn watchers_that_are_gone_leave_nothing_behind() {
        let watchers = Arc::new(Watchers::default());
        let (one, two) = (watchers.watch(1, MailboxId(1)), watchers.watch(1, MailboxId(1)));
        drop(one);
        assert_eq!(watchers.mailboxes.lock().len(), 1);
        drop(two);
        assert!(watchers.mailboxes.lock().is_empty());
    }
}
