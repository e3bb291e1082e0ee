//! Compaction gives space back and loses no body, whatever crash comes between its steps.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use quorumail_journal::{Journal, Options, Record, StreamId};
use quorumail_store::*;

use crate::{determinism, world::*};

pub const EVERYTHING: CompactionPolicy = CompactionPolicy { dead_share: 0.01 };

/// A floor above all segments of the log.
pub const NO_LOG: u64 = u32::MAX as u64;

pub fn compactor(node: &Node, policy: CompactionPolicy) -> Compactor {
    Compactor::new(node.store.clone(), Arc::clone(&node.bodies) as Arc<dyn Segments>, policy)
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Compacts until there is nothing to do.
pub fn compact_all(compactor: &mut Compactor) -> Compacted {
    let mut sum = Compacted::default();
    loop {
        let done = compactor.step(0, false, &mut go_on).unwrap();
        if done == Compacted::default() {
            return sum;
        }
        sum.reclaimed_segments += done.reclaimed_segments;
        sum.reclaimed_bytes += done.reclaimed_bytes;
        sum.compacted_segments += done.compacted_segments;
        sum.moved_bodies += done.moved_bodies;
        sum.moved_bytes += done.moved_bytes;
    }
}

/// The bodies of all messages of the mailboxes that the random logs know.
pub fn all_bodies(store: &Store) -> BTreeMap<(MailboxId, FolderId, Uid), Bytes> {
    let mut found = BTreeMap::new();
    for mailbox in (1..=3).map(MailboxId).chain([MAILBOX]) {
        let Reply::Folders(folders) = store.query(GROUP, &Query::Folders(mailbox)) else { panic!() };
        for folder in folders {
            let name = folder.name;
            let Reply::Selected(Some(selection)) = store.query(GROUP, &Query::Select { mailbox, name })
            else {
                panic!()
            };
            let (folder, uids) = (folder.id, uids_of(&selection.uids));
            let octets = Octets::Whole;
            let (digests, max_bytes) = (Vec::new(), u32::MAX);
            let query = Query::Messages { mailbox, folder, uids: uids.clone(), octets, digests, max_bytes };
            let messages = match store.query(GROUP, &query) {
                Reply::Messages(messages) => messages,
                other => panic!("{other:?}"),
            };
            let bodies =
                messages.into_iter().map(|message| message.expect("every message has its body").octets);
            found.extend(uids.into_iter().map(|uid| (mailbox, folder, uid)).zip(bodies));
        }
    }
    found
}

#[test]
fn a_removed_group_gives_its_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mut node = Node::open(&path);
    for n in 0..50u8 {
        node.append("INBOX", &[n; 1000]);
    }
    node.bodies.set_floor(NO_LOG);
    let mut compactor = compactor(&node, EVERYTHING);
    compact_all(&mut compactor);
    assert!(compactor.space().live_bytes >= 50_000, "{:?}", compactor.space());
    let before = node.bodies.bytes();
    node.store.remove(GROUP).unwrap();
    node.store.remove(GROUP).unwrap();
    assert_eq!(compactor.space().live_bytes, 0);
    compact_all(&mut compactor);
    assert!(node.bodies.bytes() < before / 3, "{before} -> {}", node.bodies.bytes());
    assert_eq!(node.store.position(GROUP).unwrap(), None);
}

#[test]
fn deleted_mail_gives_its_space_back_and_the_rest_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mut node = Node::open(&path);
    for n in 0..100u8 {
        node.append("INBOX", &[n; 1000]);
    }
    let inbox = node.folder("INBOX").unwrap().id;
    let gone: Vec<_> = (1..=100).filter(|n| n % 4 != 0).map(Uid).collect();
    node.run(store_flags(inbox, &gone, StoreFlags::Add, &["\\Deleted"])).unwrap();
    node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox, uids: None }).unwrap();
    node.run(drop_deleted()).unwrap();
    let expected = all_bodies(&node.store);
    let (before, fingerprint) = (node.bodies.bytes(), node.store.fingerprint(GROUP).unwrap());

    // Nothing may go that the log needs.
    let mut compactor_ = compactor(&node, CompactionPolicy::default());
    assert_eq!(compact_all(&mut compactor_), Compacted::default());
    node.bodies.set_floor(NO_LOG);
    let space = compactor_.space();
    let done = compact_all(&mut compactor_);
    assert!(done.moved_bodies >= 20 && done.moved_bytes <= 26_000, "{done:?}");
    assert!(node.bodies.bytes() < before / 3, "{before} -> {}: {done:?}", node.bodies.bytes());
    assert!(
        space.dead_bytes > 70_000 && compactor_.space().dead_bytes < 2000,
        "{space:?} {:?}",
        compactor_.space()
    );
    // The last body shares its segment with little that is dead, and stays in its command's record.
    let live = compactor_.space().live_bytes;
    assert!((25 * (1000 + RECORD_OVERHEAD)..26_000).contains(&live), "{live}");
    assert_eq!(all_bodies(&node.store), expected);
    assert_eq!(
        node.store.fingerprint(GROUP).unwrap(),
        fingerprint,
        "where bodies lie is not part of the state"
    );
    node.store.audit(GROUP).unwrap();

    // After a restart what is live is counted anew, and is the same.
    let space = compactor_.space();
    drop(compactor_);
    let bodies = node.bodies.clone();
    drop(node);
    let node = Node::open_with(&path, bodies);
    let mut compactor_ = compactor(&node, CompactionPolicy::default());
    assert_eq!(compact_all(&mut compactor_), Compacted::default());
    assert_eq!(compactor_.space(), space);
    assert_eq!(all_bodies(&node.store), expected);
}

#[test]
fn whoever_reads_an_older_state_finds_its_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(&dir.path().join("index"));
    for n in 0..40u8 {
        node.append("INBOX", &[n; 300]);
    }
    node.bodies.set_floor(NO_LOG);
    let inbox = node.folder("INBOX").unwrap().id;
    let expected = all_bodies(&node.store);
    let mut reader = node.store.snapshot(GROUP).unwrap();

    node.run(Op::PurgeMailbox(MAILBOX)).unwrap();
    assert!(node.folder("INBOX").is_none());
    let mut compactor_ = compactor(&node, EVERYTHING);
    let done = compact_all(&mut compactor_);
    assert!(done.compacted_segments > 5 && done.reclaimed_segments == 0, "{done:?}");

    let to = Node::open(&dir.path().join("to"));
    let mut writer = to.store.install(GROUP).unwrap();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        writer.write(chunk).unwrap();
        // Bodies of a snapshot that is not in force yet are wanted, though nothing refers to them.
        compact_all(&mut compactor(&to, EVERYTHING));
    }
    writer.finish(reader.position()).unwrap();
    assert_eq!(all_bodies(&to.store), expected);
    assert!(to.bodies_of(inbox, &[Uid(7)])[0].as_ref().is_some_and(|body| body[..] == [6; 300]));
    to.store.audit(GROUP).unwrap();

    drop(reader);
    assert_eq!(compact_all(&mut compactor_).reclaimed_segments, done.compacted_segments);
    // What the snapshot replaced is counted off.
    let counted = compactor(&to, EVERYTHING).space().live_bytes;
    transfer(&node.store, &to.store, GROUP);
    assert!(
        counted == 40 * (300 + RECORD_OVERHEAD) && compactor(&to, EVERYTHING).space().live_bytes == 0,
        "{counted}"
    );
}

#[test]
fn a_segment_goes_by_its_share_of_dead_bytes_or_when_the_disk_is_nearly_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(&dir.path().join("index"));
    // The first segment holds four records, of which one is not needed any more.
    for _ in 0..4 {
        node.append("INBOX", &[1; 1000]);
    }
    let inbox = node.folder("INBOX").unwrap().id;
    node.run(store_flags(inbox, &[Uid(3)], StoreFlags::Add, &["\\Deleted"])).unwrap();
    node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox, uids: None }).unwrap();
    node.run(drop_deleted()).unwrap();
    node.bodies.set_floor(2);
    let mut compactor = compactor(&node, CompactionPolicy::default());
    assert_eq!(compactor.step(0, false, &mut go_on).unwrap(), Compacted::default());
    let done = compactor.step(0, true, &mut go_on).unwrap();
    assert_eq!((done.moved_bodies, done.reclaimed_segments), (3, 1));
    assert_eq!(compactor.step(0, true, &mut go_on).unwrap(), Compacted::default(), "not over and over");
}

#[derive(Debug, Clone)]
enum Event {
    /// Applies so many more commands.
    Apply(usize),
    Checkpoint,
    /// One step of compaction, broken off after so many copies.
    Compact(u64),
    /// Takes a snapshot to read later.
    Read,
    /// Ends reading, after having read everything.
    ReadOn,
    /// Keeps so many batches.
    Crash(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..12usize).prop_map(Event::Apply),
        2 => Just(Event::Checkpoint),
        6 => (0..4u64).prop_map(Event::Compact),
        1 => Just(Event::Read),
        1 => Just(Event::ReadOn),
        1 => (0..5usize).prop_map(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_crash_between_the_steps_of_compaction_loses_a_body(
        log in determinism::log(determinism::partition_op()),
        events in vec(event(), 1..40),
    ) {
        let index = MemoryIndex::default();
        let mut node = Node::open_on(&index, Default::default());
        // The log lies in the journal whole; the floor follows the checkpoints.
        let logged: Vec<_> = log.iter().map(|(index, command)| node.log(GROUP, *index, command)).collect();
        let mut compactor_ = compactor(&node, EVERYTHING);
        let mut reader = None;
        let mut at = 0;
        let mut reclaimed = 0;
        for event in events {
            match event {
                Event::Apply(count) => {
                    let end = (at + count).min(logged.len());
                    if end > at {
                        let position = logged[end - 1].index.to_be_bytes();
                        node.store.apply(GROUP, logged[at..end].to_vec(), &position).unwrap();
                    }
                    at = end;
                }
                Event::Checkpoint => {
                    node.store.checkpoint().unwrap();
                    let floor = logged.get(at).map_or(NO_LOG, |next| next.record.segment);
                    node.bodies.set_floor(floor);
                }
                Event::Compact(copies) => {
                    let mut left = copies;
                    let mut pace = |_| {
                        left = left.saturating_sub(1);
                        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    };
                    reclaimed += compactor_.step(0, false, &mut pace).unwrap().reclaimed_segments;
                }
                Event::Read => reader = Some(node.store.snapshot(GROUP).unwrap()),
                Event::ReadOn => {
                    if let Some(mut reader) = reader.take() {
                        while reader.next_chunk().unwrap().is_some() {}
                    }
                }
                Event::Crash(kept) => {
                    reader = None;
                    index.crash(kept);
                    node = Node::open_on(&index, node.bodies.clone());
                    compactor_ = compactor(&node, EVERYTHING);
                    at = logged.partition_point(|command| command.index <= node.position(GROUP));
                }
            }
        }
        drop(reader);
        compact_all(&mut compactor_);
        let position = at.checked_sub(1).map_or(0, |last| logged[last].index).to_be_bytes();
        let plain = Node::open_on(&MemoryIndex::default(), Default::default());
        let logged = log[..at].iter().map(|(index, command)| plain.log(GROUP, *index, command)).collect();
        plain.store.apply(GROUP, logged, &position).unwrap();
        prop_assert_eq!(node.store.fingerprint(GROUP).unwrap(), plain.store.fingerprint(GROUP).unwrap());
        node.store.audit(GROUP).unwrap();
        prop_assert_eq!(all_bodies(&node.store), all_bodies(&plain.store), "{} segments given back", reclaimed);
    }
}

/// What of a record's head tells the log index, as these tests write it.
pub fn command_index(head: &[u8]) -> Result<Option<u64>, String> {
    let index = head.first_chunk::<8>().ok_or("too short")?;
    Ok(Some(u64::from_le_bytes(*index)))
}

#[test]
fn a_real_journal_gives_the_space_of_deleted_mail_back_while_the_rest_is_read() {
    const MESSAGES: u64 = 400;
    const BODY: usize = 8 << 10;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let options = || Options { segment_bytes: 256 << 10, ..Options::new(&path) };
    let open = || {
        let journal = Journal::open(options(), |_, _, _| {}).unwrap();
        let bodies = JournalBodies::new(journal.clone(), command_index);
        let store = Store::open(&dir.path().join("index"), Arc::new(bodies.clone())).unwrap();
        (journal, bodies, store)
    };
    let (journal, bodies, store) = open();
    let apply = |store: &Store, journal: &Journal, index: u64, op: Op, body: Vec<u8>| {
        let command =
            Command { id: CommandId(index.into()), at: Timestamp(1), op, body: body.into() }.encode();
        let payload = vec![Bytes::copy_from_slice(&index.to_le_bytes()), command.clone()];
        let record = journal.append(vec![Record { stream: StreamId(GROUP), payload }], || {})[0];
        let command = LogCommand { index, command, record, offset: 8 };
        let outcome = store.apply(GROUP, vec![command], &index.to_be_bytes()).unwrap();
        assert!(decode_outcome(&outcome[0]).unwrap().is_ok());
    };
    for index in 1..=MESSAGES {
        apply(&store, &journal, index, append("INBOX", &[], NO_QUOTA), vec![index as u8; BODY]);
    }
    let inbox = FolderId(1);
    let gone: Vec<_> = (1..=MESSAGES as u32).filter(|n| n % 5 != 0).map(Uid).collect();
    let flags = store_flags(inbox, &gone, StoreFlags::Add, &["\\Deleted"]);
    apply(&store, &journal, MESSAGES + 1, flags, Vec::new());
    let expunge = Op::Expunge { mailbox: MAILBOX, folder: inbox, uids: None };
    apply(&store, &journal, MESSAGES + 2, expunge, Vec::new());
    apply(&store, &journal, MESSAGES + 3, drop_deleted(), Vec::new());
    journal.flush();
    let expected = all_bodies(&store);
    assert_eq!(expected.len() as u64, MESSAGES / 5);
    let segments_bytes =
        |journal: &Journal| -> u64 { journal.segments().unwrap().iter().map(|segment| segment.bytes).sum() };
    let before = segments_bytes(&journal);

    store.checkpoint().unwrap();
    journal.set_floor(journal.last_of_log(0)).unwrap();
    let mut compactor = Compactor::new(store.clone(), Arc::new(bodies), CompactionPolicy::default());
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Acquire) || rounds == 0 {
                assert_eq!(all_bodies(&store), expected);
                rounds += 1;
            }
        });
        let mut sum = Compacted::default();
        // A reader delays what is given back; it is there with one of the next steps.
        for _ in 0..2000 {
            let done = compactor.step(0, false, &mut go_on).unwrap();
            sum.moved_bytes += done.moved_bytes;
            sum.reclaimed_bytes += done.reclaimed_bytes;
            if compactor.space().dead_bytes < 300 << 10 {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Release);
        reader.join().unwrap();
        sum
    });
    let after = segments_bytes(&journal);
    assert!(after < before / 2, "{before} -> {after}: {done:?} {:?}", compactor.space());
    assert!(done.moved_bytes <= (MESSAGES / 5) * BODY as u64, "every body is moved once: {done:?}");
    assert_eq!(all_bodies(&store), expected);

    drop((compactor, store, journal));
    let (_journal, _, store) = open();
    assert_eq!(all_bodies(&store), expected, "after a restart");
}
