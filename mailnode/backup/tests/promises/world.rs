//! A node's store that is driven by commands as consensus would, and a repository in a directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use quorumail_backup::*;
use quorumail_journal::Position;
use quorumail_store::*;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

pub const GROUP: u32 = 1;
pub const UID: &str = "cluster-uid";
pub const MAILBOX: MailboxId = MailboxId(7);
const NO_QUOTA: Quota = Quota { bytes: 0, messages: 0 };

/// Bodies in memory instead of in a journal.
#[derive(Default)]
pub struct MemoryBodies {
    records: Mutex<BTreeMap<Position, Bytes>>,
    /// Bodies that were read.
    pub reads: std::sync::atomic::AtomicU64,
}

impl Bodies for MemoryBodies {
    fn read(&self, body: BodyRef, prefix: Option<u32>) -> Result<Bytes, String> {
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let records = self.records.lock().unwrap();
        let record = records.get(&body.record).ok_or("no such record")?;
        let len = prefix.unwrap_or(body.len).min(body.len) as usize;
        let start = body.offset as usize;
        Ok(record.slice(start..start + len))
    }

    fn keep(&self, _: u32, _: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
        Err("nothing is kept here".to_owned())
    }
}

/// A node of a cluster, with its log.
pub struct Node {
    pub store: Store,
    pub bodies: Arc<MemoryBodies>,
    /// All commands by group and index, as the archive ships them.
    pub log: Vec<(u32, u64, Timestamp, Bytes)>,
    pub index: u64,
    /// The clock of those who propose.
    pub clock: i64,
    _dir: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bodies = Arc::new(MemoryBodies::default());
        let store = Store::open(dir.path(), Arc::clone(&bodies) as Arc<dyn Bodies>).unwrap();
        Self { store, bodies, log: Vec::new(), index: 0, clock: 1_000, _dir: dir }
    }

    /// A node with mailboxes, mail, a long message, copies, a queue and a directory.
    pub fn with_mail() -> Self {
        let mut node = Self::new();
        node.run(0, domain("example.org"), b"");
        node.run(0, mailbox("alice@example.org"), b"");
        for number in 0..50 {
            node.append("INBOX", &message(number));
        }
        node.append("Archive/2026", &message(3));
        for number in 0..3 {
            let chunk = Op::Chunk { upload: UploadId(9), number };
            node.run(GROUP, chunk, &noise(u64::from(number), 300_000));
        }
        let op = Box::new(append("INBOX"));
        node.run(GROUP, Op::WithUpload { upload: UploadId(9), chunks: 3, op }, b"");
        let folder = node.folder("INBOX");
        let uids = vec![Uid(2), Uid(4)];
        let copy = Op::Copy {
            mailbox: MAILBOX,
            folder,
            uids,
            to: "Sent".to_owned(),
            remove: false,
            quota: NO_QUOTA,
        };
        node.run(GROUP, Op::OpenMailbox(MAILBOX), b"");
        node.run(GROUP, copy, b"");
        node.run(GROUP, enqueue(1), b"Subject: queued\r\n\r\nSoon.\r\n");
        node
    }

    pub fn run(&mut self, group: u32, op: Op, body: &[u8]) -> Applied {
        self.index += 1;
        self.clock += 10;
        let (id, at) = (CommandId(self.index.into()), Timestamp(self.clock));
        let encoded = Command { id, at, op, body: Bytes::copy_from_slice(body) }.encode();
        self.log.push((group, self.index, at, encoded.clone()));
        let record = Position { segment: 1, offset: self.index, len: encoded.len() as u32 };
        self.bodies.records.lock().unwrap().insert(record, encoded.clone());
        let command = LogCommand { index: self.index, command: encoded, record, offset: 0 };
        let outcome = self.store.apply(group, vec![command], &self.index.to_be_bytes()).unwrap();
        decode_outcome(&outcome[0]).unwrap().unwrap()
    }

    /// Appends to a folder, which is made when it is not there.
    pub fn append(&mut self, folder: &str, body: &[u8]) -> Uid {
        let found = self.store.query(GROUP, &Query::Folder { mailbox: MAILBOX, name: folder.to_owned() });
        if folder != "INBOX" && matches!(found, Reply::Folder(None)) {
            let folder = folder.to_owned();
            self.run(GROUP, Op::CreateFolder { mailbox: MAILBOX, folder, special_use: None }, b"");
        }
        match self.run(GROUP, append(folder), body) {
            Applied::Appended { uid, .. } => uid,
            other => panic!("{other:?}"),
        }
    }

    pub fn expunge(&mut self, folder: &str, uids: Vec<Uid>) {
        let folder = self.folder(folder);
        let flags = [Flag("\\Deleted".to_owned())].into();
        let (mailbox, mode) = (MAILBOX, StoreFlags::Add);
        self.run(GROUP, Op::StoreFlags { mailbox, folder, uids, mode, flags, unchanged_since: None }, b"");
        self.run(GROUP, Op::Expunge { mailbox, folder, uids: None }, b"");
        self.run(GROUP, Op::DropDeleted { mailbox, before: Timestamp(i64::MAX) }, b"");
    }

    pub fn folder(&self, name: &str) -> FolderId {
        match self.store.query(GROUP, &Query::Folder { mailbox: MAILBOX, name: name.to_owned() }) {
            Reply::Folder(Some(folder)) => folder.id,
            other => panic!("{other:?}"),
        }
    }

    pub fn source(&self, group: u32) -> Source<'_> {
        Source { store: &self.store, group, cluster_uid: UID, log_index }
    }

    pub async fn take(
        &self,
        repository: &Repository,
        group: u32,
        parent: Option<&Manifest>,
    ) -> GroupManifest {
        let parent = parent.and_then(|parent| parent.group(group));
        take_group(repository, self.source(group), parent, |_| {}, CancellationToken::new()).await.unwrap()
    }

    /// A whole backup.
    pub async fn back_up(&self, repository: &Repository, parent: Option<&Manifest>) -> Manifest {
        let lease = repository.lease("a test").await.unwrap();
        let mut draft = draft(now());
        for group in [0, GROUP] {
            draft.groups.push(self.take(repository, group, parent).await);
        }
        draft.parent = parent.map(|parent| parent.id.clone());
        let id = repository.finish(draft, &lease).await.unwrap();
        lease.release().await.unwrap();
        repository.manifest(&id).await.unwrap()
    }
}

pub fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

pub fn draft(started: Timestamp) -> ManifestDraft {
    ManifestDraft {
        cluster: Cluster { name: "mail".into(), namespace: "default".into(), uid: UID.into() },
        started,
        parent: None,
        trigger: Trigger::Policy("nightly".into()),
        groups: Vec::new(),
        resources: None,
        version: "0.0.0".into(),
    }
}

pub fn log_index(position: &[u8]) -> Option<u64> {
    position.try_into().ok().map(u64::from_be_bytes)
}

pub fn append(folder: &str) -> Op {
    Op::Append {
        mailbox: MAILBOX,
        folder: folder.to_owned(),
        flags: [Flag("\\Seen".to_owned())].into(),
        internal_date: Timestamp(5),
        quota: NO_QUOTA,
    }
}

fn domain(name: &str) -> Op {
    Op::PutDomain(DomainRecord {
        domain: name.parse().unwrap(),
        aliases: Vec::new(),
        catch_all: None,
        revision: "1".to_owned(),
    })
}

fn mailbox(text: &str) -> Op {
    Op::PutMailbox {
        record: MailboxRecord {
            id: MailboxId(0),
            address: text.parse().unwrap(),
            partition: PartitionId(0),
            display_name: String::new(),
            aliases: Vec::new(),
            password_hash: "hash".to_owned(),
            quota: NO_QUOTA,
            suspended: false,
            permissions: Permissions { send: true, receive: true, login: true },
            revision: "1".to_owned(),
        },
        partitions: 1,
    }
}

fn enqueue(id: u128) -> Op {
    let recipient = QueueRecipient {
        address: "bob@example.net".parse().unwrap(),
        class: QueueClass::Remote,
        attempts: 0,
        next_attempt: Timestamp(0),
        last_error: String::new(),
    };
    Op::Enqueue(QueueEntry {
        id: QueueId(id),
        reverse_path: None,
        recipients: vec![recipient],
        arrived: Timestamp(1),
        size: 0,
        eight_bit: false,
    })
}

/// A short message that compresses well.
pub fn message(number: u64) -> Vec<u8> {
    format!("Subject: number {number}\r\n\r\n{}", "All work and no play.\r\n".repeat(40)).into_bytes()
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

pub fn key() -> BackupKey {
    BackupKey::parse(&[0xf0; 32]).unwrap()
}

/// A repository in a directory.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    pub fn config(&self) -> RepositoryConfig {
        RepositoryConfig { location: Location::Directory(self.path()), key: key(), limits: Limits::default() }
    }

    pub async fn open(&self) -> Repository {
        Repository::create_or_open(self.config()).await.unwrap()
    }

    /// All objects below a folder, by name.
    pub fn objects(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.path().join(below), &mut found);
        found.sort();
        found
    }

    pub fn name(&self, object: &Path) -> String {
        object.strip_prefix(self.path()).unwrap().to_str().unwrap().to_owned()
    }
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}

/// Loads all of a backup, and says how it differs from the node's state; damage must be none.
pub async fn assert_loads(repository: &Repository, manifest: &Manifest, expected: &Snapshot) {
    let dir = tempfile::tempdir().unwrap();
    let loaded = repository.load(manifest, &[], None, &dir.path().join("store")).await.unwrap();
    assert_eq!(loaded.damage(), []);
    assert_eq!(&Snapshot::of(loaded.store()), expected);
}

/// All that a store shows: the fingerprints of its groups, and every message with its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    fingerprints: Vec<[u8; 32]>,
    pub messages: BTreeMap<(String, Uid), Result<Bytes, String>>,
    queue: Bytes,
}

impl Snapshot {
    pub fn of(store: &Store) -> Self {
        let fingerprints = [0, GROUP].map(|group| store.fingerprint(group).unwrap()).to_vec();
        let queue = store.query_bytes(GROUP, Query::QueueEntry(QueueId(1)).encode());
        Self { fingerprints, messages: messages(store), queue }
    }
}

/// Every message of the mailbox, each asked for alone.
pub fn messages(store: &Store) -> BTreeMap<(String, Uid), Result<Bytes, String>> {
    let Reply::Folders(folders) = store.query(GROUP, &Query::Folders(MAILBOX)) else { panic!("no folders") };
    let mut all = BTreeMap::new();
    for folder in folders {
        let query = Query::Select { mailbox: MAILBOX, name: folder.name.clone() };
        let Reply::Selected(Some(selection)) = store.query(GROUP, &query) else { panic!("no folder") };
        let ranges = selection.uids.ranges().unwrap();
        for uid in ranges.into_iter().flat_map(|(first, last)| (first.0..=last.0).map(Uid)) {
            let query = Query::Messages {
                mailbox: MAILBOX,
                folder: folder.id,
                uids: vec![uid],
                octets: Octets::Whole,
                digests: Vec::new(),
                max_bytes: u32::MAX,
            };
            let found = match store.query(GROUP, &query) {
                Reply::Messages(mut found) => Ok(found.remove(0).expect("it is there").octets),
                Reply::Unreadable(reason) => Err(reason),
                other => panic!("{other:?}"),
            };
            all.insert((folder.name.clone(), uid), found);
        }
    }
    all
}

pub const NO_GRACE: Duration = Duration::ZERO;
