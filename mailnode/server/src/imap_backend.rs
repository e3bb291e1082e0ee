//! What IMAP sessions ask, answered by the partition that the mailbox lives in.
//!
//! A session runs where its connection landed; the partition may be led by, or be held on, other nodes only. Reads go
//! through consensus, so they see everything that was acknowledged before them on any node.

mod archives;

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_consensus::GroupId;
use quorumail_imap::{
    Backend, Changes, DIGEST_VERSION, Digest, Failure, FlagChange, Flags, Folder, Found, LoginFailure,
    Mailbox, Message, Millis, Octets, Selection, Since, SpecialUse, Stored, UidSet,
};
use quorumail_store::{
    Applied, Flag, FolderId, FolderInfo, FolderUids, MailboxId, MailboxRecord, MessageMeta, ModSeq, Op,
    Query, Refusal, Reply, StoreFlags, Timestamp, Uid,
};

use self::archives::{Place, is_shared, own};
use crate::{
    auth::{self, Authenticator, Purpose},
    disk::Disk,
    groups::{self, CommandFailure, Groups, INBOX, QueryFailure},
    watch::Watchers,
};

/// For a command; the client waits this long for its OK or NO.
const WRITE_WITHIN: Duration = Duration::from_secs(20);
/// For a read.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Octets of messages read in one step, unless a single one is longer: bounds the memory of a FETCH of many messages.
const OCTETS_AT_ONCE: u32 = 1024 * 1024;
/// Changed messages told in one step.
const CHANGES_AT_ONCE: u32 = 1000;
/// Messages that one step of a RENAME of INBOX moves.
const MOVED_AT_ONCE: u32 = 1000;
/// How often a partition that this node does not hold is asked for changes while a client idles.
const POLL: Duration = Duration::from_millis(500);
/// How often a waiter looks at the folder although nothing was announced.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What is computed from a message once and kept with it, by whichever node has it.
pub struct ImapDigests;

impl quorumail_store::Digests for ImapDigests {
    fn version(&self) -> u8 {
        DIGEST_VERSION
    }

    fn prefix(&self, kind: u8) -> Option<u32> {
        Digest::ALL.into_iter().find(|digest| digest.number() == kind)?.prefix()
    }

    fn digest(&self, kind: u8, octets: &[u8], whole: bool) -> Option<Vec<u8>> {
        Digest::ALL.into_iter().find(|digest| digest.number() == kind)?.compute(octets, whole)
    }
}

/// Opens mailboxes.
pub struct ImapBackend {
    /// Checks passwords.
    pub auth: Arc<Authenticator>,
    /// All groups.
    pub groups: Arc<Groups>,
    /// Tells of changes.
    pub watchers: Arc<Watchers>,
    /// Room for new mail.
    pub disk: Arc<Disk>,
}

struct OpenMailbox {
    groups: Arc<Groups>,
    watchers: Arc<Watchers>,
    disk: Arc<Disk>,
    id: MailboxId,
    group: GroupId,
}

#[async_trait]
impl Backend for ImapBackend {
    async fn login(
        &self,
        user: &str,
        password: &str,
        remote: IpAddr,
    ) -> Result<Arc<dyn Mailbox>, LoginFailure> {
        let record =
            self.auth.login(user, password, remote, Purpose::Read).await.map_err(
                |failure| match failure {
                    auth::Failure::Denied => LoginFailure::Denied,
                    auth::Failure::Throttled => LoginFailure::Throttled,
                    auth::Failure::Unavailable => LoginFailure::Unavailable,
                },
            )?;
        let mailbox = OpenMailbox {
            groups: Arc::clone(&self.groups),
            watchers: Arc::clone(&self.watchers),
            disk: Arc::clone(&self.disk),
            id: record.id,
            group: Groups::group(record.partition),
        };
        mailbox.open().await.map_err(|_| LoginFailure::Unavailable)?;
        Ok(Arc::new(mailbox))
    }
}

impl OpenMailbox {
    /// Makes INBOX and the special-use folders unless they are there.
    async fn open(&self) -> Result<(), Failure> {
        match self.query(self.group, Query::Folder { mailbox: self.id, name: INBOX.to_owned() }).await? {
            Reply::Folder(Some(_)) => Ok(()),
            _ => self.propose(Op::OpenMailbox(self.id), Bytes::new()).await.map(drop),
        }
    }

    /// The account as the directory has it now: sessions live longer than accounts.
    fn record(&self) -> Result<Arc<MailboxRecord>, Failure> {
        let record = self.groups.directory().mailbox(self.id);
        record.filter(|r| !r.suspended && r.permissions.login).ok_or(Failure::Unavailable)
    }

    /// Refuses what adds mail while the disk here is nearly full.
    fn room_for_mail(&self) -> Result<(), Failure> {
        if self.disk.is_nearly_full() { Err(Failure::Unavailable) } else { Ok(()) }
    }

    async fn propose(&self, op: Op, body: Bytes) -> Result<Applied, Failure> {
        self.record()?;
        let applied = self.groups.propose(self.group, groups::random_command(), op, body, WRITE_WITHIN).await;
        applied.map_err(|failure| match failure {
            CommandFailure::Refused(Refusal::NotFound(_)) => Failure::NonExistent,
            CommandFailure::Refused(Refusal::AlreadyExists(_)) => Failure::AlreadyExists,
            CommandFailure::Refused(Refusal::OverQuota) => Failure::OverQuota,
            CommandFailure::Refused(Refusal::Conflict(text) | Refusal::Invalid(text)) => {
                Failure::Cannot(text)
            }
            CommandFailure::Refused(Refusal::Incomplete) => Failure::Unavailable,
            CommandFailure::Unavailable(reason) => {
                tracing::warn!(group = self.group.0, reason, "an IMAP command got no answer");
                Failure::Unavailable
            }
        })
    }

    async fn query(&self, group: GroupId, query: Query) -> Result<Reply, Failure> {
        self.record()?;
        self.groups.query(group, &query, READ_WITHIN).await.map_err(|error| {
            tracing::warn!(group = group.0, %error, "an IMAP read got no answer");
            match error {
                QueryFailure::Unavailable(_) => Failure::Unavailable,
                QueryFailure::Unreadable(_) => Failure::Unreadable,
            }
        })
    }

    /// Goes on with a RENAME of INBOX that has moved the first messages: those that are there now follow, step by step. What
    /// arrives later stays, so that it ends. Wherever it breaks off, each message is in one of both folders.
    async fn move_rest_of_inbox(&self, to: &str) -> Result<(), Failure> {
        let mut inbox = self.select(INBOX).await?;
        while !inbox.uids.is_empty() {
            let step: Vec<u32> = inbox.uids.take_lowest(MOVED_AT_ONCE).iter().collect();
            self.copy(inbox.folder.id, &step, to, true).await?;
        }
        Ok(())
    }

    /// Whether the folder has a change after `since`, or is gone.
    fn has_news(reply: &Reply, since: u64) -> bool {
        let Reply::Folder(folder) = reply else { return false };
        folder.as_ref().is_none_or(|folder| folder.highest_mod_seq.0 > since)
    }

    async fn folder_in(&self, place: &Place, name: &str) -> Result<Folder, Failure> {
        match self.query(place.group, Query::Folder { mailbox: place.mailbox, name: name.to_owned() }).await?
        {
            Reply::Folder(folder) => folder.map(|folder| place.shown(folder)).ok_or(Failure::NonExistent),
            _ => unexpected("Folder"),
        }
    }

    /// Waits with a replica on this node.
    async fn wait_here(&self, place: &Place, folder: FolderId, since: u64) {
        let mut watcher = self.watchers.watch(place.group.0, place.mailbox);
        loop {
            let query = Query::FolderNumber { mailbox: place.mailbox, folder };
            let (store, group) = (self.groups.store.clone(), place.group.0);
            let reply = tokio::task::spawn_blocking(move || store.query(group, &query)).await;
            if reply.is_ok_and(|reply| Self::has_news(&reply, since)) {
                return;
            }
            // The pause bounds what a lost announcement could cost.
            let _ = tokio::time::timeout(LOOK_AGAIN, watcher.changed()).await;
        }
    }

    /// Waits without one.
    async fn wait_elsewhere(&self, place: &Place, folder: FolderId, since: u64) {
        loop {
            let query = Query::FolderNumber { mailbox: place.mailbox, folder };
            if let Ok(reply) = self.query(place.group, query).await
                && Self::has_news(&reply, since)
            {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The partition answered with something else than what was asked: a bug, told to the client as a delay.
fn unexpected<T>(what: &str) -> Result<T, Failure> {
    tracing::error!(what, "a partition gave an answer of the wrong kind");
    Err(Failure::Unavailable)
}

#[async_trait]
impl Mailbox for OpenMailbox {
    async fn folders(&self) -> Result<Vec<Folder>, Failure> {
        let own = self.query(self.group, Query::Folders(self.id));
        let (own, archives) = tokio::join!(own, self.archives());
        match own? {
            Reply::Folders(folders) => {
                let own = folders.into_iter().filter(|folder| !is_shared(&folder.name)).map(folder_out);
                let mut all: Vec<Folder> = own.chain(archives).collect();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(all)
            }
            _ => unexpected("Folders"),
        }
    }

    async fn folder(&self, name: &str) -> Result<Folder, Failure> {
        let (place, name) = self.named(name).await?;
        self.folder_in(&place, name).await
    }

    async fn select(&self, name: &str) -> Result<Selection, Failure> {
        let (place, name) = self.named(name).await?;
        let query = Query::Select { mailbox: place.mailbox, name: name.to_owned() };
        match self.query(place.group, query).await? {
            Reply::Selected(selection) => {
                let selection = selection.ok_or(Failure::NonExistent)?;
                Ok(Selection {
                    uids: UidSet::from_ranges(ranges_out(&selection.uids)?),
                    keywords: selection.keywords.into_iter().collect(),
                    folder: place.shown(selection.folder),
                })
            }
            _ => unexpected("Select"),
        }
    }

    async fn changes(&self, folder: u64, since: Since) -> Result<Changes, Failure> {
        let (place, folder) = self.place(folder)?;
        self.may_read(&place).await?;
        let query = Query::Changes {
            mailbox: place.mailbox,
            folder,
            since: ModSeq(since.mod_seq),
            after: (ModSeq(since.after.0), Uid(since.after.1)),
            uids_from: Uid(since.uid_next),
            limit: CHANGES_AT_ONCE,
        };
        match self.query(place.group, query).await? {
            Reply::Changes(Some(changes)) => Ok(Changes {
                uids: ranges_out(&changes.uids)?,
                folder: place.shown(changes.folder),
                vanished: changes.vanished.map(|uids| uids.into_iter().map(|uid| uid.0).collect()),
                changed: changes.changed.into_iter().map(message_out).collect(),
                more: changes.more.map(|(mod_seq, uid)| (mod_seq.0, uid.0)),
            }),
            Reply::Changes(None) => Err(Failure::NonExistent),
            _ => unexpected("Changes"),
        }
    }

    async fn messages(
        &self,
        folder: u64,
        uids: &[u32],
        octets: Octets,
        digests: &[Digest],
    ) -> Result<Vec<Option<Found>>, Failure> {
        let (place, folder) = self.place(folder)?;
        let query = Query::Messages {
            mailbox: place.mailbox,
            folder,
            uids: uids_in(uids),
            octets: match octets {
                Octets::Nothing => quorumail_store::Octets::Nothing,
                Octets::Prefix(most) => quorumail_store::Octets::Prefix(most),
                Octets::Whole => quorumail_store::Octets::Whole,
            },
            digests: digests.iter().map(|digest| digest.number()).collect(),
            max_bytes: OCTETS_AT_ONCE,
        };
        match self.query(place.group, query).await? {
            Reply::Messages(found) => {
                let found = found.into_iter().map(|found| {
                    found.map(|found| Found {
                        message: message_out(found.meta),
                        octets: found.octets,
                        digests: found.digests,
                    })
                });
                Ok(found.collect())
            }
            _ => unexpected("Messages"),
        }
    }

    async fn append(
        &self,
        folder: &str,
        flags: Flags,
        date: Option<Millis>,
        body: Bytes,
    ) -> Result<(u32, u32), Failure> {
        self.writable(folder).await?;
        self.room_for_mail()?;
        let op = Op::Append {
            mailbox: self.id,
            folder: folder.to_owned(),
            flags: flags_in(flags),
            internal_date: date.map_or_else(groups::now, Timestamp),
            quota: self.record()?.quota,
        };
        match self.propose(op, body).await? {
            Applied::Appended { uid_validity, uid, .. } => Ok((uid_validity.0, uid.0)),
            _ => unexpected("Append"),
        }
    }

    async fn create(&self, folder: &str, special_use: Option<SpecialUse>) -> Result<(), Failure> {
        if is_shared(folder) {
            return Err(Failure::ReadOnly);
        }
        let special_use = special_use.map(special_use_in);
        let op = Op::CreateFolder { mailbox: self.id, folder: folder.to_owned(), special_use };
        self.propose(op, Bytes::new()).await.map(drop)
    }

    async fn delete(&self, folder: &str) -> Result<(), Failure> {
        self.writable(folder).await?;
        let mut begun = false;
        loop {
            let op = Op::DeleteFolder { mailbox: self.id, folder: folder.to_owned() };
            match self.propose(op, Bytes::new()).await {
                Ok(Applied::More) => begun = true,
                // Somebody else has brought it to its end.
                Err(Failure::NonExistent) if begun => return Ok(()),
                other => return other.map(drop),
            }
        }
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        if is_shared(to) {
            return Err(Failure::ReadOnly);
        }
        self.writable(from).await?;
        let op = Op::RenameFolder { mailbox: self.id, from: from.to_owned(), to: to.to_owned() };
        match self.propose(op, Bytes::new()).await? {
            Applied::More => self.move_rest_of_inbox(to).await,
            _ => Ok(()),
        }
    }

    async fn subscribe(&self, folder: &str, subscribed: bool) -> Result<(), Failure> {
        if is_shared(folder) {
            return self.subscribe_archive(folder, subscribed).await;
        }
        let op = Op::Subscribe { mailbox: self.id, folder: folder.to_owned(), subscribed };
        self.propose(op, Bytes::new()).await.map(drop)
    }

    async fn store(
        &self,
        folder: u64,
        uids: &[u32],
        change: FlagChange,
        flags: Flags,
        unchanged_since: Option<u64>,
    ) -> Result<Stored, Failure> {
        let op = Op::StoreFlags {
            mailbox: self.id,
            folder: own(folder)?,
            uids: uids_in(uids),
            mode: match change {
                FlagChange::Replace => StoreFlags::Replace,
                FlagChange::Add => StoreFlags::Add,
                FlagChange::Remove => StoreFlags::Remove,
            },
            flags: flags_in(flags),
            unchanged_since: unchanged_since.map(ModSeq),
        };
        match self.propose(op, Bytes::new()).await? {
            Applied::Stored { mod_seq, changed, modified } => {
                let messages =
                    changed.into_iter().map(|(uid, mod_seq, flags)| (uid.0, mod_seq.0, flags_out(flags)));
                Ok(Stored {
                    mod_seq: mod_seq.map(|mod_seq| mod_seq.0),
                    messages: messages.collect(),
                    modified: modified.into_iter().map(|uid| uid.0).collect(),
                })
            }
            _ => unexpected("StoreFlags"),
        }
    }

    async fn copy(
        &self,
        folder: u64,
        uids: &[u32],
        to: &str,
        remove: bool,
    ) -> Result<(u32, Vec<(u32, u32)>), Failure> {
        self.writable(to).await?;
        if !remove {
            self.room_for_mail()?;
        }
        let (place, from) = self.place(folder)?;
        match (place.is_archive(), remove) {
            (true, true) => return Err(Failure::ReadOnly),
            (true, false) => return self.copy_out(folder, uids, to).await,
            (false, _) => {}
        }
        let op = Op::Copy {
            mailbox: self.id,
            folder: from,
            uids: uids_in(uids),
            to: to.to_owned(),
            remove,
            quota: self.record()?.quota,
        };
        match self.propose(op, Bytes::new()).await? {
            Applied::Copied { uid_validity, uids } => {
                Ok((uid_validity.0, uids.into_iter().map(|(from, to)| (from.0, to.0)).collect()))
            }
            _ => unexpected("Copy"),
        }
    }

    async fn expunge(&self, folder: u64, uids: Option<&[u32]>) -> Result<Vec<u32>, Failure> {
        let op = Op::Expunge { mailbox: self.id, folder: own(folder)?, uids: uids.map(uids_in) };
        match self.propose(op, Bytes::new()).await? {
            Applied::Expunged(uids) => Ok(uids.into_iter().map(|uid| uid.0).collect()),
            _ => unexpected("Expunge"),
        }
    }

    async fn wait(&self, folder: u64, since: u64, at_most: Duration) {
        let Ok((place, folder)) = self.place(folder) else { return };
        let news = async {
            if self.groups.consensus.holds(place.group) {
                self.wait_here(&place, folder, since).await;
            } else {
                self.wait_elsewhere(&place, folder, since).await;
            }
        };
        // Either way the session looks at the folder next.
        let _ = tokio::time::timeout(at_most, news).await;
    }
}

fn folder_out(folder: FolderInfo) -> Folder {
    Folder {
        id: folder.id.0,
        name: folder.name,
        special_use: folder.special_use.map(special_use_out),
        subscribed: folder.subscribed,
        read_only: false,
        uid_validity: folder.uid_validity.0,
        uid_next: folder.uid_next.0,
        highest_mod_seq: folder.highest_mod_seq.0,
        messages: folder.messages,
        unseen: folder.unseen,
        bytes: folder.bytes,
    }
}

fn message_out(message: MessageMeta) -> Message {
    Message {
        uid: message.uid.0,
        mod_seq: message.mod_seq.0,
        flags: flags_out(message.flags),
        internal_date: message.internal_date.0,
        size: message.size,
    }
}

fn ranges_out(uids: &FolderUids) -> Result<Vec<(u32, u32)>, Failure> {
    let ranges = uids.ranges().map_err(|error| {
        tracing::error!(%error, "a partition told UIDs that cannot be read");
        Failure::Unavailable
    })?;
    Ok(ranges.into_iter().map(|(first, last)| (first.0, last.0)).collect())
}

fn flags_out(flags: quorumail_store::Flags) -> Flags {
    flags.into_iter().map(|flag| flag.0).collect()
}

fn flags_in(flags: Flags) -> quorumail_store::Flags {
    flags.into_iter().map(Flag).collect()
}

fn uids_in(uids: &[u32]) -> Vec<Uid> {
    uids.iter().copied().map(Uid).collect()
}

fn special_use_out(special_use: quorumail_store::SpecialUse) -> SpecialUse {
    match special_use {
        quorumail_store::SpecialUse::Archive => SpecialUse::Archive,
        quorumail_store::SpecialUse::Drafts => SpecialUse::Drafts,
        quorumail_store::SpecialUse::Junk => SpecialUse::Junk,
        quorumail_store::SpecialUse::Sent => SpecialUse::Sent,
        quorumail_store::SpecialUse::Trash => SpecialUse::Trash,
    }
}

fn special_use_in(special_use: SpecialUse) -> quorumail_store::SpecialUse {
    match special_use {
        SpecialUse::Archive => quorumail_store::SpecialUse::Archive,
        SpecialUse::Drafts => quorumail_store::SpecialUse::Drafts,
        SpecialUse::Junk => quorumail_store::SpecialUse::Junk,
        SpecialUse::Sent => quorumail_store::SpecialUse::Sent,
        SpecialUse::Trash => quorumail_store::SpecialUse::Trash,
    }
}
