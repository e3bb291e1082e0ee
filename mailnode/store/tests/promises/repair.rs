//! A body that rots on one replica's disk comes back from another's, and no crash on the way makes it worse.

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use quorumail_journal::{Journal, Options, Record, StreamId};
use quorumail_store::*;

use crate::{
    compaction::{EVERYTHING, NO_LOG, all_bodies, command_index, compact_all, compactor},
    world::*,
};

/// Two replicas of the same log; the bodies of messages 1 to 20 are their number, a thousand times.
fn replicas(dir: &Path) -> (Node, Node) {
    let open = |name: &str| {
        let mut node = Node::open(&dir.join(name));
        for n in 1..=20u8 {
            node.append("INBOX", &[n; 1000]);
        }
        node
    };
    (open("one"), open("other"))
}

fn lost(node: &Node, n: u64) -> LostBody {
    // The log has one entry a message.
    let body = BodyId(n);
    let place = node.store.place_of(GROUP, body).unwrap().expect("something refers to it");
    LostBody { group: GROUP, body, place }
}

fn fetch(node: &Node, folder: FolderId, n: u32) -> Reply {
    let (uids, digests) = (vec![Uid(n)], Vec::new());
    let (octets, max_bytes) = (Octets::Whole, u32::MAX);
    node.store.query(GROUP, &Query::Messages { mailbox: MAILBOX, folder, uids, octets, digests, max_bytes })
}

#[test]
fn a_lost_body_comes_back_from_another_replica_and_the_state_stays_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, other) = replicas(dir.path());
    let inbox = node.folder("INBOX").unwrap().id;
    let fingerprint = node.store.fingerprint(GROUP).unwrap();
    assert_eq!(node.bodies.rot(&[7; 1000]), 1);
    assert!(matches!(fetch(&node, inbox, 7), Reply::Unreadable(_)));
    assert!(node.store.body(GROUP, BodyId(7)).is_err(), "nobody is asked on behalf of another replica");

    let lost = lost(&node, 7);
    let body = other.store.body(GROUP, BodyId(7)).unwrap().expect("the other replica has it");
    assert!(node.store.restore(&lost, body.slice(1..)).is_err(), "that is another body");
    assert!(matches!(fetch(&node, inbox, 7), Reply::Unreadable(_)));
    node.store.restore(&lost, body.clone()).unwrap();
    assert_eq!(node.bodies_of(inbox, &[Uid(7)]), [Some(Bytes::from(vec![7; 1000]))]);
    assert_eq!(
        node.store.fingerprint(GROUP).unwrap(),
        fingerprint,
        "where bodies lie is not part of the state"
    );
    assert_ne!(node.store.place_of(GROUP, BodyId(7)).unwrap(), Some(lost.place));
    node.store.audit(GROUP).unwrap();

    // Who comes late changes nothing, and what is gone does not come back.
    let restored = node.store.place_of(GROUP, BodyId(7)).unwrap();
    node.store.restore(&lost, body.clone()).unwrap();
    assert_eq!(node.store.place_of(GROUP, BodyId(7)).unwrap(), restored);
    node.run(Op::PurgeMailbox(MAILBOX)).unwrap();
    node.store.restore(&lost, body).unwrap();
    assert_eq!(node.store.body(GROUP, BodyId(7)).unwrap(), None);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_crash_in_the_middle_of_a_repair_leaves_the_old_state_or_the_new() {
    let other = replicas(tempfile::tempdir().unwrap().path()).1;
    let body = || other.store.body(GROUP, BodyId(7)).unwrap().unwrap();
    let index = MemoryIndex::default();
    let mut node = Node::open_on(&index, Default::default());
    for n in 1..=20u8 {
        node.append("INBOX", &[n; 1000]);
    }
    node.store.checkpoint().unwrap();
    node.bodies.rot(&[7; 1000]);
    let lost = lost(&node, 7);
    let crashed = |node: &Node| {
        index.crash(0);
        Node::open_on(&index, node.bodies.clone())
    };

    // The body could not be kept: as if nothing had been tried.
    node.bodies.set_full(true);
    assert!(node.store.restore(&lost, body()).is_err());
    node.bodies.set_full(false);
    assert_eq!(node.store.place_of(GROUP, BodyId(7)).unwrap(), Some(lost.place));

    // The body is kept, and the index forgets that: it is lost as it was, and the copy is dead.
    node.store.restore(&lost, body()).unwrap();
    let node = crashed(&node);
    assert_eq!(node.store.place_of(GROUP, BodyId(7)).unwrap(), Some(lost.place));
    assert!(node.store.body(GROUP, BodyId(7)).is_err());
    node.store.audit(GROUP).unwrap();

    // And once more: now it is remembered.
    node.store.restore(&lost, body()).unwrap();
    node.store.checkpoint().unwrap();
    let node = crashed(&node);
    assert_eq!(node.store.body(GROUP, BodyId(7)).unwrap().unwrap(), body());
    assert_eq!(all_bodies(&node.store), all_bodies(&other.store));
    node.store.audit(GROUP).unwrap();
}

/// Gets lost bodies from another replica, as a node does.
struct FromOther {
    store: Store,
    other: Store,
    asked: AtomicUsize,
}

impl Repair for FromOther {
    fn body(&self, lost: LostBody) -> Result<Bytes, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let body = self.other.body(lost.group, lost.body).map_err(|error| error.to_string())?;
        let body = body.ok_or("no other replica has it")?;
        self.store.restore(&lost, body.clone()).map_err(|error| error.to_string())?;
        Ok(body)
    }
}

#[test]
fn whoever_meets_a_rotten_body_gets_it_from_the_repair() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, other) = replicas(dir.path());
    let expected = all_bodies(&other.store);
    let repair =
        FromOther { store: node.store.clone(), other: other.store.clone(), asked: AtomicUsize::new(0) };
    let repair = Arc::new(repair);
    node.store.repair_with(repair.clone());
    let asked = || repair.asked.load(Ordering::Relaxed);

    // A message, in part and whole.
    let inbox = node.folder("INBOX").unwrap().id;
    node.bodies.rot(&[3; 1000]);
    let found = node.found(inbox, &[Uid(3)], Octets::Prefix(10), 1000);
    assert_eq!(found[0].as_ref().unwrap().octets, vec![3; 10]);
    assert_eq!(node.bodies_of(inbox, &[Uid(3)]), [Some(Bytes::from(vec![3; 1000]))]);
    assert_eq!(asked(), 1, "it lies well again");

    // A snapshot for another replica.
    node.bodies.rot(&[4; 1000]);
    let to = Node::open(&dir.path().join("to"));
    transfer(&node.store, &to.store, GROUP);
    assert_eq!((all_bodies(&to.store), asked()), (expected.clone(), 2));

    // Compaction: the segment goes all the same.
    let deleted: Vec<_> = (8..=20).map(Uid).collect();
    node.run(store_flags(inbox, &deleted, StoreFlags::Add, &["\\Deleted"])).unwrap();
    node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox, uids: None }).unwrap();
    node.run(drop_deleted()).unwrap();
    node.bodies.rot(&[5; 1000]);
    node.bodies.set_floor(NO_LOG);
    compact_all(&mut compactor(&node, EVERYTHING));
    assert_eq!(asked(), 3);
    assert!(node.bodies.bytes() < 12_000, "{} bytes are left", node.bodies.bytes());
    let left = all_bodies(&node.store);
    assert!(left.len() == 7 && left.iter().all(|(key, body)| expected.get(key) == Some(body)));

    // Nobody has it: the reader is told, and nothing else happens.
    node.bodies.rot(&[6; 1000]);
    other.bodies.rot(&[6; 1000]);
    let before = node.store.place_of(GROUP, BodyId(6)).unwrap();
    assert!(matches!(fetch(&node, inbox, 6), Reply::Unreadable(reason) if reason.contains("rotten")));
    assert_eq!(node.store.place_of(GROUP, BodyId(6)).unwrap(), before);
}

/// A store over a real journal with small segments, and what was written there.
struct Disk {
    journal: Journal,
    bodies: JournalBodies,
    store: Store,
    dir: tempfile::TempDir,
    index: u64,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 16 << 10, ..Options::new(dir.path().join("journal")) };
        let journal = Journal::open(options, |_, _, _| {}).unwrap();
        let bodies = JournalBodies::new(journal.clone(), command_index);
        let store = Store::open(&dir.path().join("index"), Arc::new(bodies.clone())).unwrap();
        Self { journal, bodies, store, dir, index: 0 }
    }

    fn apply(&mut self, op: Op, body: Vec<u8>) {
        self.index += 1;
        let index = self.index;
        let command =
            Command { id: CommandId(index.into()), at: Timestamp(1), op, body: body.into() }.encode();
        let payload = vec![Bytes::copy_from_slice(&index.to_le_bytes()), command.clone()];
        let record = self.journal.append(vec![Record { stream: StreamId(GROUP), payload }], || {})[0];
        let command = LogCommand { index, command, record, offset: 8 };
        let outcome = self.store.apply(GROUP, vec![command], &index.to_be_bytes()).unwrap();
        assert!(decode_outcome(&outcome[0]).unwrap().is_ok());
    }

    fn lost(&self, n: u64) -> LostBody {
        let place = self.store.place_of(GROUP, BodyId(n)).unwrap().unwrap();
        LostBody { group: GROUP, body: BodyId(n), place }
    }

    fn segment(&self, number: u64) -> std::path::PathBuf {
        self.dir.path().join(format!("journal/{number:016}.seg"))
    }

    /// Flips a bit in the middle of a body.
    fn rot(&self, lost: &LostBody) {
        let path = self.segment(lost.place.record.segment);
        let mut bytes = fs::read(&path).unwrap();
        bytes[usize::try_from(lost.place.record.offset).unwrap() + 32 + lost.place.offset as usize + 500] ^=
            4;
        fs::write(&path, &bytes).unwrap();
    }

    fn findings(&self, segment: u64) -> Findings {
        let (number, is_log) = self.bodies.next_sealed(segment).unwrap().unwrap();
        assert_eq!(number, segment);
        let found = self.bodies.scrub(segment, &mut |_| ControlFlow::Continue(())).unwrap();
        self.store.judge(segment, &found, is_log).unwrap()
    }
}

#[test]
fn a_scrub_tells_what_is_rotten_and_who_needs_it() {
    let mut disk = Disk::new();
    for n in 1..=40u8 {
        disk.apply(append("INBOX", &[], NO_QUOTA), vec![n; 1000]);
    }
    let deleted = store_flags(FolderId(1), &[Uid(2)], StoreFlags::Add, &["\\Deleted"]);
    let (dead, first, second) = (disk.lost(2), disk.lost(3), disk.lost(4));
    disk.apply(deleted, Vec::new());
    disk.apply(Op::Expunge { mailbox: MAILBOX, folder: FolderId(1), uids: None }, Vec::new());
    disk.apply(drop_deleted(), Vec::new());
    disk.journal.flush();
    disk.store.checkpoint().unwrap();
    assert_eq!(disk.findings(1), Findings::default());
    for lost in [&dead, &first, &second] {
        assert_eq!(lost.place.record.segment, 1);
        disk.rot(lost);
    }

    // As long as the logs need the segment, nothing in it is dead.
    let found = disk.findings(1);
    assert_eq!((found.bodies, found.log, found.dead), (vec![first, second], vec![dead.place.record], vec![]));
    disk.journal.set_floor(3).unwrap();
    let found = disk.findings(1);
    assert_eq!((found.bodies, found.log, found.dead), (vec![first, second], vec![], vec![dead.place.record]));

    // What another replica says is held against the checksum of what was lost.
    assert_eq!(disk.bodies.would_mend(&first, &[3; 1000]), Some(true));
    assert_ne!(disk.bodies.would_mend(&first, &[4; 1000]), Some(true));
    disk.store.restore(&first, vec![3; 1000].into()).unwrap();
    let found = disk.findings(1);
    assert_eq!((found.bodies, found.dead.len()), (vec![second], 2), "what it lay in is dead now");

    // Without the side index as well, the tables of bodies know what should be there.
    fs::remove_file(disk.segment(1).with_extension("seg.idx")).unwrap();
    assert_eq!(disk.findings(1).bodies, [second]);
    disk.store.restore(&second, vec![4; 1000].into()).unwrap();
    assert_eq!(disk.findings(1), Findings::default());

    // And compaction moves what is well, so that the segment goes.
    let mut compactor = Compactor::new(disk.store.clone(), Arc::new(disk.bodies.clone()), EVERYTHING);
    for _ in 0..10 {
        compactor.step(0, true, &mut |_| ControlFlow::Continue(())).unwrap();
    }
    assert!(!disk.segment(1).exists(), "{:?}", compactor.space());
    let bodies = all_bodies(&disk.store);
    assert_eq!(bodies.len(), 39);
    assert!(bodies.iter().all(|((_, _, uid), body)| body.len() == 1000 && body[999] == uid.0 as u8));
}
