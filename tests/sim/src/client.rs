//! Clients: each works on a mailbox and queue entries of its own, through any node, and repeats what has no outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quorumail_consensus::{GroupId, ProposeError};
use quorumail_message::{Address, Domain};
use quorumail_store::{
    Applied, Command, CommandId, DomainRecord, FolderId, FolderInfo, MailboxId, MailboxRecord, MessageMeta,
    ModSeq, Octets, Op, Outcome, PartitionId, Permissions, Query, QueueClass, QueueEntry, QueueId,
    QueueRecipient, Quota, Refusal, Reply, StoreFlags, Timestamp, Uid, decode_outcome,
};
use tokio::time::sleep;

use crate::mailbox::{KnownFolder, body, flags, tag_of};
use crate::node::Node;
use crate::random::Random;
use crate::world::World;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Messages a folder holds before the client makes room.
const FULL: usize = 25;

/// One client.
pub(crate) struct Client {
    world: Arc<World>,
    number: u64,
    random: Random,
    group: GroupId,
    mailbox: MailboxId,
    inbox: Option<KnownFolder>,
    archive: Option<KnownFolder>,
    /// Entries that must be in the queue, with their tags.
    queue: BTreeMap<QueueId, u64>,
    /// Commands whose outcome the client did not wait for: tag of the message.
    forgotten: Vec<u64>,
    mailbox_ids: BTreeMap<u64, MailboxId>,
    next: u64,
}

fn address(text: &str) -> Address {
    text.parse().expect("an address of the simulation is one")
}

fn domain() -> Domain {
    "example.org".parse().expect("a domain of the simulation is one")
}

impl Client {
    pub(crate) fn new(world: Arc<World>, number: u64) -> Client {
        let random = Random::of(world.seed, 1_000 + number);
        let group = GroupId(1 + (number % u64::from(world.shape.partitions)) as u32);
        Client {
            world,
            number,
            random,
            group,
            mailbox: MailboxId(number + 1),
            inbox: None,
            archive: None,
            queue: BTreeMap::new(),
            forgotten: Vec::new(),
            mailbox_ids: BTreeMap::new(),
            next: 0,
        }
    }

    /// Works until the run closes, then looks once more at everything.
    pub(crate) async fn run(mut self) {
        let outcome = self.work().await;
        if let Err(reason) = outcome {
            self.world.trace.violation(format!("client {}: {reason}", self.number));
        }
    }

    async fn work(&mut self) -> Result<(), String> {
        while !self.world.closing.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(self.random.within(0..60))).await;
            self.step().await?;
            if self.world.trace.is_bad() {
                return Ok(());
            }
        }
        for archive in [false, true] {
            self.look(archive).await?;
            self.read_bodies(archive).await?;
        }
        self.look_at_forgotten().await?;
        self.look_at_queue().await?;
        self.look_at_usage().await
    }

    async fn step(&mut self) -> Result<(), String> {
        let messages = |folder: &Option<KnownFolder>| folder.as_ref().map_or(0, |known| known.messages.len());
        if messages(&self.inbox) > FULL || messages(&self.archive) > FULL {
            let archive = messages(&self.archive) > FULL;
            return self.expunge(archive).await;
        }
        match self.random.within(0..100) {
            0..35 => self.append().await,
            35..50 => self.store_flags().await,
            50..58 => self.copy().await,
            58..62 => {
                let archive = self.random.chance(500);
                self.expunge(archive).await
            }
            62..78 => {
                let archive = self.random.chance(300);
                self.look(archive).await
            }
            78..81 => self.read_bodies(false).await,
            81..88 => self.enqueue().await,
            88..92 => self.update_queue().await,
            92..94 => self.look_at_queue().await,
            94..96 => self.look_at_usage().await,
            96..98 => self.append_and_forget().await,
            _ => self.put_mailbox().await,
        }
    }

    // ---- talking to the cluster ----

    fn some_node(&mut self) -> Option<Arc<Node>> {
        let running = self.world.running();
        let choice = self.random.any() as usize;
        (!running.is_empty()).then(|| running[choice % running.len()].clone())
    }

    fn command(&mut self, op: Op, body: Bytes) -> Command {
        self.next += 1;
        let id = CommandId(u128::from(self.number) << 64 | u128::from(self.next));
        self.world.checker.sent(id);
        Command { id, at: self.world.clock(), op, body }
    }

    /// Proposes until the outcome is known.
    async fn propose(&mut self, group: GroupId, op: Op, body: Bytes) -> Result<Outcome, String> {
        let command = self.command(op, body).encode();
        loop {
            if let Some(answer) = self.attempt(group, &command, true).await {
                return decode_outcome(&answer).map_err(|error| error.to_string());
            }
        }
    }

    async fn ask(&mut self, query: &Query) -> Result<Reply, String> {
        let query = query.encode();
        loop {
            let before = self.world.has_lost_something();
            if let Some(answer) = self.attempt(self.group, &query, false).await {
                return match Reply::decode(&answer) {
                    // Another replica has it.
                    Ok(Reply::Unreadable(_)) if before || self.world.has_lost_something() => continue,
                    Ok(Reply::Unreadable(reason)) => Err(format!("a query is not answered: {reason}")),
                    Ok(reply) => Ok(reply),
                    Err(error) => Err(error.to_string()),
                };
            }
        }
    }

    /// One attempt through some node; none when the outcome is not known.
    async fn attempt(&mut self, group: GroupId, bytes: &Bytes, command: bool) -> Option<Bytes> {
        let Some(node) = self.some_node() else {
            sleep(Duration::from_millis(50)).await;
            return None;
        };
        let within = Duration::from_millis(self.random.within(300..ATTEMPT.as_millis() as u64));
        let call = async {
            match command {
                true => node.consensus.propose(group, bytes.clone(), within).await,
                false => node.consensus.query(group, bytes.clone(), within).await,
            }
        };
        let outcome = tokio::select! {
            biased;
            () = node.down.cancelled() => Err(ProposeError::Stopping),
            outcome = call => outcome,
        };
        self.world.trace.mark((self.number, node.id, outcome.is_ok()));
        match outcome {
            Ok(answer) => {
                self.world.answered.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            Err(ProposeError::NoSuchGroup | ProposeError::TooLarge) => {
                self.world.trace.violation(format!("a command is refused: {outcome:?}"));
                None
            }
            Err(_) => {
                sleep(Duration::from_millis(self.random.within(1..60))).await;
                None
            }
        }
    }

    // ---- mail ----

    fn folder(&mut self, archive: bool) -> &mut Option<KnownFolder> {
        if archive { &mut self.archive } else { &mut self.inbox }
    }

    fn some_uids(&mut self, archive: bool) -> Option<(FolderId, Vec<Uid>)> {
        let known = self.folder(archive).clone()?;
        let few = self.random.within(1..6) as usize;
        let from = self.random.within(0..known.messages.len() as u64 + 1) as usize;
        let uids: Vec<Uid> = known.messages.keys().copied().skip(from).take(few).collect();
        (!uids.is_empty()).then_some((known.id, uids))
    }

    async fn append(&mut self) -> Result<(), String> {
        let archive = self.random.chance(200);
        let name = if archive { "Archive" } else { "INBOX" };
        if archive && self.archive.is_none() {
            let op = Op::OpenMailbox(self.mailbox);
            self.propose(self.group, op, Bytes::new()).await?.map_err(|refusal| refusal.to_string())?;
        }
        let tag = (self.number << 32) | (self.next + 1);
        let first = if self.random.chance(300) { flags(&["\\Seen"]) } else { flags(&[]) };
        let op = Op::Append {
            mailbox: self.mailbox,
            folder: name.to_owned(),
            flags: first.clone(),
            internal_date: self.world.clock(),
            quota: Quota::default(),
        };
        match self.propose(self.group, op, body(tag)).await? {
            Ok(Applied::Appended { folder, uid_validity, uid }) => {
                let known =
                    self.folder(archive).get_or_insert_with(|| KnownFolder::new(folder, uid_validity));
                if (known.id, known.uid_validity) != (folder, uid_validity) {
                    return Err(format!("{name} is now folder {folder} with UIDVALIDITY {uid_validity}"));
                }
                known.added(uid, tag, first)
            }
            other => Err(format!("an append is answered with {other:?}")),
        }
    }

    async fn store_flags(&mut self) -> Result<(), String> {
        let archive = self.random.chance(300);
        let Some((folder, uids)) = self.some_uids(archive) else { return Ok(()) };
        let mode = self.random.pick(&[StoreFlags::Add, StoreFlags::Remove, StoreFlags::Replace]);
        let mode = mode.unwrap_or(StoreFlags::Add);
        let names = self.random.pick(&["\\Seen", "\\Flagged", "\\Deleted", "$work"]).unwrap_or("\\Seen");
        let change = flags(&[names]);
        let op = Op::StoreFlags {
            mailbox: self.mailbox,
            folder,
            uids: uids.clone(),
            mode,
            flags: change.clone(),
            unchanged_since: None,
        };
        let outcome = self.propose(self.group, op, Bytes::new()).await?;
        let Ok(Applied::Stored { changed, .. }) = outcome else {
            return Err(format!("flags are answered with {outcome:?}"));
        };
        let Some(known) = self.folder(archive) else { return Ok(()) };
        if changed.iter().map(|(uid, ..)| *uid).collect::<Vec<_>>() != uids {
            return Err(format!("flags of {uids:?} were stored, the answer tells of {changed:?}"));
        }
        for (uid, mod_seq, now) in changed {
            let highest = known.mod_seq;
            let Some(message) = known.messages.get_mut(&uid) else { continue };
            let before = message.flags.clone();
            let wanted: quorumail_store::Flags = match mode {
                StoreFlags::Add => before.union(&change).cloned().collect(),
                StoreFlags::Remove => before.difference(&change).cloned().collect(),
                StoreFlags::Replace => change.clone(),
            };
            if now != wanted {
                return Err(format!("message {uid} has {now:?}, it should have {wanted:?}"));
            }
            let grows = if before == wanted { mod_seq >= message.mod_seq } else { mod_seq > highest };
            if !grows {
                return Err(format!("MODSEQ {mod_seq} of message {uid} does not grow"));
            }
            (message.flags, message.mod_seq) = (now, mod_seq);
        }
        let highest = known.messages.values().map(|message| message.mod_seq).max();
        known.mod_seq = known.mod_seq.max(highest.unwrap_or(known.mod_seq));
        Ok(())
    }

    async fn copy(&mut self) -> Result<(), String> {
        let Some((folder, uids)) = self.some_uids(false) else { return Ok(()) };
        if self.archive.is_none() {
            return Ok(());
        }
        let remove = self.random.chance(400);
        let op = Op::Copy {
            mailbox: self.mailbox,
            folder,
            uids: uids.clone(),
            to: "Archive".to_owned(),
            remove,
            quota: Quota::default(),
        };
        let outcome = self.propose(self.group, op, Bytes::new()).await?;
        let Ok(Applied::Copied { uids: pairs, .. }) = outcome else {
            return Err(format!("a copy is answered with {outcome:?}"));
        };
        if pairs.iter().map(|(from, _)| *from).collect::<Vec<_>>() != uids {
            return Err(format!("{uids:?} were copied, the answer tells of {pairs:?}"));
        }
        let (Some(inbox), Some(archive)) = (&mut self.inbox, &mut self.archive) else { return Ok(()) };
        for (from, to) in pairs {
            let Some(message) = inbox.messages.get(&from).cloned() else { continue };
            archive.added(to, message.tag, message.flags)?;
            if remove {
                inbox.messages.remove(&from);
            }
        }
        Ok(())
    }

    async fn expunge(&mut self, archive: bool) -> Result<(), String> {
        let Some(known) = self.folder(archive).clone() else { return Ok(()) };
        let deleted = flags(&["\\Deleted"]);
        let half: Vec<Uid> = known.messages.keys().copied().take(known.messages.len() / 2 + 1).collect();
        let op = Op::StoreFlags {
            mailbox: self.mailbox,
            folder: known.id,
            uids: half.clone(),
            mode: StoreFlags::Add,
            flags: deleted.clone(),
            unchanged_since: None,
        };
        let outcome = self.propose(self.group, op, Bytes::new()).await?;
        outcome.map_err(|refusal| refusal.to_string())?;
        let Some(known) = self.folder(archive) else { return Ok(()) };
        for uid in half {
            if let Some(message) = known.messages.get_mut(&uid) {
                message.flags.extend(deleted.clone());
            }
        }
        let is_deleted = |message: &crate::mailbox::Known| message.flags.is_superset(&deleted);
        let going: Vec<Uid> =
            known.messages.iter().filter(|(_, message)| is_deleted(message)).map(|(uid, _)| *uid).collect();
        let folder = known.id;
        let op = Op::Expunge { mailbox: self.mailbox, folder, uids: None };
        match self.propose(self.group, op, Bytes::new()).await? {
            Ok(Applied::Expunged(gone)) if gone == going => {
                if let Some(known) = self.folder(archive) {
                    known.messages.retain(|uid, _| !gone.contains(uid));
                }
                if self.random.chance(500) { self.drop_deleted().await } else { Ok(()) }
            }
            other => Err(format!("an expunge of {going:?} is answered with {other:?}")),
        }
    }

    /// Lets go of what was deleted, so that compaction gets its space.
    async fn drop_deleted(&mut self) -> Result<(), String> {
        let op = Op::DropDeleted { mailbox: self.mailbox, before: Timestamp(i64::MAX) };
        match self.propose(self.group, op, Bytes::new()).await? {
            Ok(Applied::Done) => Ok(()),
            other => Err(format!("a drop of deleted mail is answered with {other:?}")),
        }
    }

    /// A known folder and all its messages.
    async fn contents(&mut self, folder: FolderId) -> Result<(FolderInfo, Vec<MessageMeta>), String> {
        let query = Query::Changes {
            mailbox: self.mailbox,
            folder,
            since: ModSeq(0),
            after: (ModSeq(0), Uid(0)),
            uids_from: Uid(0),
            limit: 10_000,
        };
        let Reply::Changes(Some(changes)) = self.ask(&query).await? else {
            return Err("an acknowledged folder is lost".to_owned());
        };
        let told = changes.uids.ranges().map_err(|error| error.to_string())?;
        let used = changes.changed.iter().map(|message| message.uid);
        if !used.eq(told.iter().flat_map(|(first, last)| (first.0..=last.0).map(Uid))) {
            return Err(format!("UIDs in use are told as {told:?}, the messages are {:?}", changes.changed));
        }
        Ok((changes.folder, changes.changed))
    }

    /// The octets of messages, asked for until all are told; none for one that is gone.
    async fn bodies(&mut self, folder: FolderId, uids: Vec<Uid>) -> Result<Vec<Option<Bytes>>, String> {
        let mut bodies = Vec::with_capacity(uids.len());
        while bodies.len() < uids.len() {
            let query = Query::Messages {
                mailbox: self.mailbox,
                folder,
                uids: uids[bodies.len()..].to_vec(),
                octets: Octets::Whole,
                digests: Vec::new(),
                max_bytes: 64 << 10,
            };
            match self.ask(&query).await? {
                Reply::Messages(found) if !found.is_empty() => {
                    bodies.extend(found.into_iter().map(|found| found.map(|found| found.octets)));
                }
                _ => return Err("messages are answered with something else, or not at all".to_owned()),
            }
        }
        Ok(bodies)
    }

    /// A read through any node sees exactly what was acknowledged before it.
    async fn look(&mut self, archive: bool) -> Result<(), String> {
        let Some(known) = self.folder(archive).clone() else { return Ok(()) };
        let (info, found) = self.contents(known.id).await?;
        match self.folder(archive) {
            Some(known) => known.compare(&info, &found),
            None => Ok(()),
        }
    }

    async fn read_bodies(&mut self, archive: bool) -> Result<(), String> {
        let Some(known) = self.folder(archive).clone() else { return Ok(()) };
        let uids: Vec<Uid> = known.messages.keys().copied().collect();
        let bodies = self.bodies(known.id, uids.clone()).await?;
        for (uid, found) in uids.iter().zip(&bodies) {
            let tag = known.messages[uid].tag;
            if found.as_ref() != Some(&body(tag)) {
                let found = found.as_ref().and_then(|found| tag_of(found));
                return Err(format!("the body of message {uid} is {found:?}'s and not {tag}'s"));
            }
        }
        if bodies.len() != uids.len() {
            return Err(format!("{} bodies of {}", bodies.len(), uids.len()));
        }
        Ok(())
    }

    async fn look_at_usage(&mut self) -> Result<(), String> {
        let forgotten = !self.forgotten.is_empty();
        let Reply::Usage(usage) = self.ask(&Query::Usage(vec![self.mailbox])).await? else {
            return Err("usage is answered with something else".to_owned());
        };
        let known = self.inbox.iter().chain(&self.archive).flat_map(|folder| folder.messages.values());
        let sum = known.fold((0, 0), |(bytes, count), message| (bytes + u64::from(message.size), count + 1));
        let found = usage.first().map(|usage| (usage.bytes, usage.messages));
        if !forgotten && found != Some(sum) {
            return Err(format!("usage is {found:?}, the sum {sum:?}"));
        }
        Ok(())
    }

    /// A client that goes away: it asks once and does not learn the outcome.
    async fn append_and_forget(&mut self) -> Result<(), String> {
        let tag = (self.number << 32) | (self.next + 1);
        let op = Op::CreateFolder { mailbox: self.mailbox, folder: "Drop".to_owned(), special_use: None };
        match self.propose(self.group, op, Bytes::new()).await? {
            Ok(_) | Err(Refusal::AlreadyExists(_)) => {}
            Err(refusal) => return Err(refusal.to_string()),
        }
        let op = Op::Append {
            mailbox: self.mailbox,
            folder: "Drop".to_owned(),
            flags: flags(&[]),
            internal_date: self.world.clock(),
            quota: Quota::default(),
        };
        let command = self.command(op, body(tag)).encode();
        self.forgotten.push(tag);
        if let Some(node) = self.some_node() {
            let within = Duration::from_millis(self.random.within(0..40));
            // Whatever comes of it is looked at in the end.
            let _ = tokio::time::timeout(within, node.consensus.propose(self.group, command, ATTEMPT)).await;
        }
        Ok(())
    }

    /// What was asked once is there once, or not at all.
    async fn look_at_forgotten(&mut self) -> Result<(), String> {
        if self.forgotten.is_empty() {
            return Ok(());
        }
        let query = Query::Folder { mailbox: self.mailbox, name: "Drop".to_owned() };
        let Reply::Folder(Some(folder)) = self.ask(&query).await? else {
            return Err("an acknowledged folder is lost".to_owned());
        };
        let (_, found) = self.contents(folder.id).await?;
        let uids: Vec<Uid> = found.iter().map(|message| message.uid).collect();
        let bodies = self.bodies(folder.id, uids).await?;
        let mut tags: Vec<Option<u64>> =
            bodies.iter().map(|body| body.as_ref().and_then(|body| tag_of(body))).collect();
        tags.sort_unstable();
        let count = tags.len();
        tags.dedup();
        if tags.len() != count {
            return Err("a message that was sent once is there twice".to_owned());
        }
        match tags.iter().find(|tag| tag.is_none_or(|tag| !self.forgotten.contains(&tag))) {
            Some(stranger) => Err(format!("message {stranger:?} was never sent there")),
            None => Ok(()),
        }
    }

    // ---- queue and directory ----

    async fn enqueue(&mut self) -> Result<(), String> {
        let tag = (self.number << 32) | (self.next + 1);
        let id = QueueId(u128::from(tag));
        let recipient = QueueRecipient {
            address: address("someone@example.net"),
            class: QueueClass::Remote,
            attempts: 0,
            next_attempt: self.world.clock(),
            last_error: String::new(),
        };
        let body = body(tag);
        let entry = QueueEntry {
            id,
            reverse_path: None,
            recipients: vec![recipient],
            arrived: self.world.clock(),
            size: u32::try_from(body.len()).unwrap_or(u32::MAX),
            eight_bit: false,
        };
        match self.propose(self.group, Op::Enqueue(entry), body).await? {
            Ok(_) => {
                self.queue.insert(id, tag);
                Ok(())
            }
            Err(refusal) => Err(format!("an entry is refused: {refusal}")),
        }
    }

    async fn update_queue(&mut self) -> Result<(), String> {
        let ids: Vec<QueueId> = self.queue.keys().copied().collect();
        let Some(id) = self.random.pick(&ids) else { return Ok(()) };
        let done = vec![address("someone@example.net")];
        let op = Op::UpdateQueue { id, done, changed: Vec::new() };
        match self.propose(self.group, op, Bytes::new()).await? {
            Ok(_) => {
                self.queue.remove(&id);
                Ok(())
            }
            Err(refusal) => Err(format!("an entry cannot be updated: {refusal}")),
        }
    }

    async fn look_at_queue(&mut self) -> Result<(), String> {
        let reply = self.ask(&Query::QueueList { class: None, limit: 10_000 }).await?;
        let Reply::Queue(entries) = reply else {
            return Err("the queue is answered with something else".to_owned());
        };
        let mine = entries.iter().map(|entry| entry.id).filter(|id| (id.0 >> 32) as u64 == self.number);
        let mut mine: Vec<QueueId> = mine.collect();
        mine.sort_unstable();
        let known: Vec<QueueId> = self.queue.keys().copied().collect();
        if mine != known {
            return Err(format!("the queue holds {mine:?}, it should hold {known:?}"));
        }
        if let Some((id, tag)) = self.queue.iter().next().map(|(id, tag)| (*id, *tag)) {
            let Reply::QueueEntry(Some((_, found))) = self.ask(&Query::QueueEntry(id)).await? else {
                return Err(format!("entry {id} is lost"));
            };
            if found != body(tag) {
                return Err(format!("entry {id} has another body"));
            }
        }
        Ok(())
    }

    async fn put_mailbox(&mut self) -> Result<(), String> {
        let directory = GroupId(0);
        let record =
            DomainRecord { domain: domain(), aliases: Vec::new(), catch_all: None, revision: "1".to_owned() };
        let outcome = self.propose(directory, Op::PutDomain(record), Bytes::new()).await?;
        outcome.map_err(|refusal| refusal.to_string())?;
        let which = self.random.within(0..4);
        let record = MailboxRecord {
            id: MailboxId(0),
            address: address(&format!("user{which}.of{}@example.org", self.number)),
            partition: PartitionId(0),
            display_name: String::new(),
            aliases: Vec::new(),
            password_hash: String::new(),
            quota: Quota::default(),
            suspended: false,
            permissions: Permissions { send: true, receive: true, login: true },
            revision: self.next.to_string(),
        };
        let op = Op::PutMailbox { record, partitions: self.world.shape.partitions };
        match self.propose(directory, op, Bytes::new()).await? {
            Ok(Applied::Mailbox { id, .. }) => {
                let known = *self.mailbox_ids.entry(which).or_insert(id);
                if known != id {
                    return Err(format!("mailbox {which} was {known} and is {id} now"));
                }
                Ok(())
            }
            other => Err(format!("a mailbox is answered with {other:?}")),
        }
    }
}
