//! A store with bodies in memory, driven by commands as consensus would.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use quorumail_journal::Position;
use quorumail_message::Address;
use quorumail_store::*;

/// Records in a segment of [`MemoryBodies`].
const SEGMENT_RECORDS: u64 = 5;
/// Segments of kept bodies count from here.
const FIRST_KEPT: u64 = 1 << 32;

/// Bodies in memory instead of in a journal; written bytes are always durable.
#[derive(Default)]
pub struct MemoryBodies {
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    logged: u64,
    kept: u64,
    /// Segments below it are not needed by the log.
    floor: u64,
    /// Whose body it is, and the payload.
    by_position: BTreeMap<Position, (u32, BodyId, Bytes)>,
    /// Records that cannot be read.
    rotten: BTreeSet<Position>,
    /// Refuses to keep anything.
    full: bool,
}

impl MemoryBodies {
    /// A record of the log.
    pub fn record(&self, group: u32, index: u64, bytes: Bytes) -> Position {
        let mut records = self.records.lock().unwrap();
        records.logged += 1;
        let (segment, offset) = (1 + records.logged / SEGMENT_RECORDS, records.logged);
        let position = Position { segment, offset, len: bytes.len() as u32 };
        records.by_position.insert(position, (group, BodyId(index), bytes));
        position
    }

    /// Says that the log needs nothing before this segment.
    pub fn set_floor(&self, segment: u64) {
        let mut records = self.records.lock().unwrap();
        records.floor = records.floor.max(segment);
    }

    /// Makes every record that holds these bytes unreadable; answers how many.
    pub fn rot(&self, bytes: &[u8]) -> usize {
        let mut records = self.records.lock().unwrap();
        let holds = |payload: &Bytes| payload.windows(bytes.len()).any(|window| window == bytes);
        let found: Vec<Position> = records
            .by_position
            .iter()
            .filter(|(_, (_, _, payload))| holds(payload))
            .map(|(at, _)| *at)
            .collect();
        records.rotten.extend(&found);
        found.len()
    }

    /// Whether bodies can be kept.
    pub fn set_full(&self, full: bool) {
        self.records.lock().unwrap().full = full;
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> usize {
        self.records.lock().unwrap().by_position.values().map(|(_, _, bytes)| bytes.len()).sum()
    }
}

impl Segments for MemoryBodies {
    fn sealed(&self) -> Vec<Segment> {
        let records = self.records.lock().unwrap();
        let last_kept = FIRST_KEPT + records.kept / SEGMENT_RECORDS;
        let mut sealed: BTreeMap<u64, u64> = BTreeMap::new();
        for position in records.by_position.keys() {
            *sealed.entry(position.segment).or_default() += u64::from(position.len) + RECORD_OVERHEAD;
        }
        sealed.retain(|number, _| *number < records.floor || (FIRST_KEPT..last_kept).contains(number));
        sealed.into_iter().map(|(number, bytes)| Segment { number, bytes }).collect()
    }

    fn records(&self, segment: u64) -> Result<Vec<BodyRecord>, String> {
        let records = self.records.lock().unwrap();
        let inside = records.by_position.iter().filter(|(position, _)| position.segment == segment);
        let record = |(record, (group, body, _)): (&Position, &(u32, BodyId, Bytes))| BodyRecord {
            record: *record,
            group: *group,
            body: *body,
        };
        Ok(inside.map(record).collect())
    }

    fn recycle(&self, segment: u64) -> Result<(), String> {
        self.records.lock().unwrap().by_position.retain(|position, _| position.segment != segment);
        Ok(())
    }
}

impl Bodies for MemoryBodies {
    fn read(&self, body: BodyRef, prefix: Option<u32>) -> Result<Bytes, String> {
        let records = self.records.lock().unwrap();
        let (_, _, record) = records.by_position.get(&body.record).ok_or("no such record")?;
        if records.rotten.contains(&body.record) {
            return Err("rotten".to_owned());
        }
        let len = prefix.unwrap_or(body.len).min(body.len) as usize;
        let start = body.offset as usize;
        Ok(record.slice(start..start + len))
    }

    fn keep(&self, group: u32, bodies: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
        let mut records = self.records.lock().unwrap();
        if records.full {
            return Err("full".to_owned());
        }
        let keep = |(body, bytes): (BodyId, Bytes)| {
            records.kept += 1;
            let (segment, len) = (FIRST_KEPT + records.kept / SEGMENT_RECORDS, bytes.len() as u32);
            let record = Position { segment, offset: records.kept, len };
            records.by_position.insert(record, (group, body, bytes));
            BodyRef { record, offset: 0, len }
        };
        Ok(bodies.into_iter().map(keep).collect())
    }
}

/// A node: its store, its bodies and how far its log is.
pub struct Node {
    pub store: Store,
    pub bodies: Arc<MemoryBodies>,
    pub index: u64,
    next_id: u128,
}

/// All UIDs of a set.
pub fn uids_of(uids: &FolderUids) -> Vec<Uid> {
    uids.ranges().unwrap().into_iter().flat_map(|(first, last)| (first.0..=last.0).map(Uid)).collect()
}

pub const GROUP: u32 = 1;
pub const MAILBOX: MailboxId = MailboxId(7);
pub const NO_QUOTA: Quota = Quota { bytes: 0, messages: 0 };

impl Node {
    pub fn open(dir: &Path) -> Self {
        let bodies = Arc::new(MemoryBodies::default());
        Self::open_with(dir, bodies)
    }

    pub fn open_with(dir: &Path, bodies: Arc<MemoryBodies>) -> Self {
        let store = Store::open(dir, Arc::clone(&bodies) as Arc<dyn Bodies>).unwrap();
        Self::of(store, bodies)
    }

    /// A node whose index is in memory.
    pub fn open_on(index: &MemoryIndex, bodies: Arc<MemoryBodies>) -> Self {
        let store = Store::open_on(index, Arc::clone(&bodies) as Arc<dyn Bodies>).unwrap();
        Self::of(store, bodies)
    }

    fn of(store: Store, bodies: Arc<MemoryBodies>) -> Self {
        // Ids go on above those of an earlier run.
        let node = Self { store, bodies, index: 0, next_id: 0 };
        let index = node.position(GROUP).max(node.position(0));
        Self { index, next_id: u128::from(index) << 64, ..node }
    }

    /// The command as this node's journal holds it: with something before it in its record.
    pub fn log(&self, group: u32, index: u64, command: &Command) -> LogCommand {
        let encoded = command.encode();
        let record = self.bodies.record(group, index, [b"head".as_slice(), &encoded].concat().into());
        LogCommand { index, command: encoded, record, offset: 4 }
    }

    /// Applies a batch that ends at index `position`.
    pub fn apply(&self, group: u32, batch: &[(u64, Command)]) -> Vec<Outcome> {
        let position = batch.last().map_or(0, |(index, _)| *index);
        let logged = batch.iter().map(|(index, command)| self.log(group, *index, command)).collect();
        let outcomes = self.store.apply(group, logged, &position.to_be_bytes()).unwrap();
        outcomes.iter().map(|bytes| decode_outcome(bytes).unwrap()).collect()
    }

    /// Applies one operation as the next log entry.
    pub fn run_at(&mut self, group: u32, at: i64, op: Op, body: &[u8]) -> Outcome {
        self.next_id += 1;
        let command = Command {
            id: CommandId(self.next_id),
            at: Timestamp(at),
            op,
            body: Bytes::copy_from_slice(body),
        };
        self.propose(group, command)
    }

    pub fn propose(&mut self, group: u32, command: Command) -> Outcome {
        self.index += 1;
        self.apply(group, &[(self.index, command)]).remove(0)
    }

    pub fn run(&mut self, op: Op) -> Outcome {
        self.run_at(GROUP, 1_000_000, op, b"")
    }

    pub fn append(&mut self, folder: &str, body: &[u8]) -> Uid {
        let op = append(folder, &[], NO_QUOTA);
        match self.run_at(GROUP, 1_000_000, op, body) {
            Ok(Applied::Appended { uid, .. }) => uid,
            other => panic!("{other:?}"),
        }
    }

    pub fn position(&self, group: u32) -> u64 {
        let bytes = self.store.position(group).unwrap();
        bytes.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
    }

    pub fn folder(&self, name: &str) -> Option<FolderInfo> {
        match self.store.query(GROUP, &Query::Folder { mailbox: MAILBOX, name: name.to_owned() }) {
            Reply::Folder(folder) => folder,
            other => panic!("{other:?}"),
        }
    }

    pub fn folders(&self) -> Vec<FolderInfo> {
        match self.store.query(GROUP, &Query::Folders(MAILBOX)) {
            Reply::Folders(folders) => folders,
            other => panic!("{other:?}"),
        }
    }

    /// All messages of a folder, found by its UIDs.
    pub fn messages(&self, folder: FolderId) -> Vec<MessageMeta> {
        let name = self.folders().into_iter().find(|info| info.id == folder).unwrap().name;
        let selection = self.select(&name);
        let uids = uids_of(&selection.uids);
        let found = self.found(folder, &uids, Octets::Nothing, 0);
        assert_eq!(found.len() as u32, selection.folder.messages);
        found.into_iter().map(|found| found.expect("a UID in use is that of a message").meta).collect()
    }

    pub fn select(&self, name: &str) -> Selection {
        match self.store.query(GROUP, &Query::Select { mailbox: MAILBOX, name: name.to_owned() }) {
            Reply::Selected(Some(selection)) => selection,
            other => panic!("{other:?}"),
        }
    }

    pub fn found(
        &self,
        folder: FolderId,
        uids: &[Uid],
        octets: Octets,
        max_bytes: u32,
    ) -> Vec<Option<FoundMessage>> {
        self.digested(folder, uids, octets, &[], max_bytes)
    }

    pub fn digested(
        &self,
        folder: FolderId,
        uids: &[Uid],
        octets: Octets,
        digests: &[u8],
        max_bytes: u32,
    ) -> Vec<Option<FoundMessage>> {
        let (uids, digests) = (uids.to_vec(), digests.to_vec());
        let query = Query::Messages { mailbox: MAILBOX, folder, uids, octets, digests, max_bytes };
        match Reply::decode(&self.store.query_bytes(GROUP, query.encode())) {
            Ok(Reply::Messages(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    pub fn bodies_of(&self, folder: FolderId, uids: &[Uid]) -> Vec<Option<Bytes>> {
        let found = self.found(folder, uids, Octets::Whole, u32::MAX);
        found.into_iter().map(|found| found.map(|found| found.octets)).collect()
    }

    /// All pages of what changed, as one.
    pub fn changes(&self, folder: FolderId, since: ModSeq) -> FolderChanges {
        let page = |after| {
            let (mailbox, uids_from) = (MAILBOX, Uid(1));
            let query = Query::Changes { mailbox, folder, since, after, uids_from, limit: 3 };
            match self.store.query(GROUP, &query) {
                Reply::Changes(Some(changes)) => changes,
                other => panic!("{other:?}"),
            }
        };
        let mut changes = page((since, Uid(u32::MAX)));
        while let Some(after) = changes.more {
            let next = page(after);
            changes.changed.extend(next.changed);
            changes.more = next.more;
        }
        changes.changed.sort_by_key(|message| message.uid);
        changes
    }

    pub fn usage(&self) -> Usage {
        match self.store.query(GROUP, &Query::Usage(vec![MAILBOX])) {
            Reply::Usage(usage) => usage[0],
            other => panic!("{other:?}"),
        }
    }

    /// All deleted messages that are kept, with so many of their octets, read three at a time.
    pub fn deleted(&self, prefix: u32) -> Vec<DeletedMessage> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let query = Query::Deleted { mailbox: MAILBOX, after, limit: 3, prefix };
            let (page, kept) = match Reply::decode(&self.store.query_bytes(GROUP, query.encode())) {
                Ok(Reply::Deleted(page, kept)) => (page, kept),
                other => panic!("{other:?}"),
            };
            let Some(last) = page.last() else {
                let bytes = all.iter().map(|message: &DeletedMessage| u64::from(message.size)).sum();
                assert_eq!(kept, Usage { bytes, messages: all.len() as u64 });
                return all;
            };
            after = last.number;
            all.extend(page);
        }
    }

    pub fn queue(&self, query: &Query) -> Vec<QueueEntry> {
        match self.store.query(GROUP, query) {
            Reply::Queue(entries) => entries,
            other => panic!("{other:?}"),
        }
    }
}

/// Installs a snapshot of one store's group into another's.
pub fn transfer(from: &Store, to: &Store, group: u32) {
    let mut reader = from.snapshot(group).unwrap();
    let mut writer = to.install(group).unwrap();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        writer.write(chunk).unwrap();
    }
    writer.finish(reader.position()).unwrap();
}

pub fn flags(names: &[&str]) -> Flags {
    names.iter().map(|name| Flag((*name).to_owned())).collect()
}

pub fn append(folder: &str, names: &[&str], quota: Quota) -> Op {
    Op::Append {
        mailbox: MAILBOX,
        folder: folder.to_owned(),
        flags: flags(names),
        internal_date: Timestamp(5),
        quota,
    }
}

pub fn create(folder: &str) -> Op {
    Op::CreateFolder { mailbox: MAILBOX, folder: folder.to_owned(), special_use: None }
}

pub fn store_flags(folder: FolderId, uids: &[Uid], mode: StoreFlags, names: &[&str]) -> Op {
    let uids = uids.to_vec();
    Op::StoreFlags { mailbox: MAILBOX, folder, uids, mode, flags: flags(names), unchanged_since: None }
}

pub fn copy(folder: FolderId, uids: &[Uid], to: &str, remove: bool, quota: Quota) -> Op {
    Op::Copy { mailbox: MAILBOX, folder, uids: uids.to_vec(), to: to.to_owned(), remove, quota }
}

/// Lets go for good what was deleted: nothing is kept any more.
pub fn drop_deleted() -> Op {
    Op::DropDeleted { mailbox: MAILBOX, before: Timestamp(i64::MAX) }
}

pub fn address(text: &str) -> Address {
    text.parse().unwrap()
}

pub fn domain(name: &str, aliases: &[&str], catch_all: Option<&str>) -> Op {
    Op::PutDomain(DomainRecord {
        domain: name.parse().unwrap(),
        aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
        catch_all: catch_all.map(address),
        revision: "1".to_owned(),
    })
}

pub fn mailbox(text: &str, aliases: &[&str]) -> Op {
    Op::PutMailbox {
        record: MailboxRecord {
            id: MailboxId(0),
            address: address(text),
            partition: PartitionId(0),
            display_name: String::new(),
            aliases: aliases.iter().map(|alias| address(alias)).collect(),
            password_hash: String::new(),
            quota: NO_QUOTA,
            suspended: false,
            permissions: Permissions { send: true, receive: true, login: true },
            revision: "1".to_owned(),
        },
        partitions: 4,
    }
}

pub fn recipient(text: &str, class: QueueClass, next_attempt: i64) -> QueueRecipient {
    QueueRecipient {
        address: address(text),
        class,
        attempts: 0,
        next_attempt: Timestamp(next_attempt),
        last_error: String::new(),
    }
}

pub fn entry(id: u128, arrived: i64, recipients: Vec<QueueRecipient>) -> QueueEntry {
    QueueEntry {
        id: QueueId(id),
        reverse_path: None,
        recipients,
        arrived: Timestamp(arrived),
        size: 0,
        eight_bit: false,
    }
}
