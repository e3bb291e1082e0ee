//! Bodies that come in chunks: one message in the end, or none, whatever happens between.

use bytes::Bytes;
use quorumail_store::*;

use crate::world::*;

const UPLOAD: UploadId = UploadId(77);

fn chunk(upload: UploadId, number: u32) -> Op {
    Op::Chunk { upload, number }
}

fn with_upload(upload: UploadId, chunks: u32, op: Op) -> Op {
    Op::WithUpload { upload, chunks, op: Box::new(op) }
}

fn appended(upload: UploadId, chunks: u32) -> Op {
    with_upload(upload, chunks, append("INBOX", &[], NO_QUOTA))
}

/// Three chunks of an upload; answers the whole.
fn send(node: &mut Node, upload: UploadId) -> Vec<u8> {
    let parts = [vec![b'a'; 1000], vec![b'b'; 500], vec![b'c'; 7]];
    for (number, part) in (0..).zip(&parts) {
        assert_eq!(node.run_at(GROUP, 1_000_000, chunk(upload, number), part), Ok(Applied::Done));
    }
    parts.concat()
}

/// The body, or what is not zero from its start.
fn read(node: &Node, uid: Uid, prefix: u32) -> Option<Bytes> {
    let folder = node.folder("INBOX").unwrap().id;
    let octets = if prefix == 0 { Octets::Whole } else { Octets::Prefix(prefix) };
    node.found(folder, &[uid], octets, 9999).remove(0).map(|found| found.octets)
}

fn in_memory() -> Node {
    Node::open_on(&MemoryIndex::default(), Default::default())
}

#[test]
fn chunks_become_one_body_that_is_read_copied_and_dropped_as_any_other() {
    let mut node = in_memory();
    node.run(Op::OpenMailbox(MAILBOX)).unwrap();
    let whole = send(&mut node, UPLOAD);
    assert_eq!(node.usage().messages, 0, "nothing shows before the command");
    node.run(appended(UPLOAD, 3)).unwrap();
    let inbox = node.folder("INBOX").unwrap();
    assert_eq!((inbox.messages, inbox.bytes), (1, 1507));
    assert_eq!(read(&node, Uid(1), 0).unwrap(), whole);
    for prefix in [1, 999, 1000, 1001, 1500, 1506, 1507, 5000] {
        assert_eq!(
            read(&node, Uid(1), prefix).unwrap(),
            whole[..whole.len().min(prefix as usize)],
            "{prefix}"
        );
    }
    assert!(!node.store.has_uploads_before(GROUP, Timestamp(i64::MAX)).unwrap(), "the chunks are taken");
    node.run(copy(inbox.id, &[Uid(1)], "INBOX", false, NO_QUOTA)).unwrap();
    node.store.audit(GROUP).unwrap();

    // Over a snapshot, in which each chunk is a body.
    let to = in_memory();
    transfer(&node.store, &to.store, GROUP);
    assert_eq!(read(&to, Uid(2), 0).unwrap(), whole);
    assert_eq!(to.store.fingerprint(GROUP).unwrap(), node.store.fingerprint(GROUP).unwrap());

    // Compaction moves the chunks, and gives them back with the last copy.
    node.bodies.set_floor(u32::MAX.into());
    let mut compactor =
        Compactor::new(node.store.clone(), node.bodies.clone(), CompactionPolicy { dead_share: 0.01 });
    let mut pace = |_| std::ops::ControlFlow::Continue(());
    while compactor.step(0, false, &mut pace).unwrap() != Compacted::default() {}
    assert_eq!(read(&node, Uid(2), 0).unwrap(), whole);
    assert_eq!(compactor.space().live_bytes, 1507 + 3 * RECORD_OVERHEAD);
    node.run(store_flags(inbox.id, &[Uid(1), Uid(2)], StoreFlags::Add, &["\\Deleted"])).unwrap();
    node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox.id, uids: None }).unwrap();
    node.run(drop_deleted()).unwrap();
    assert_eq!(compactor.space().live_bytes, 0);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_queue_entry_takes_an_upload_and_other_commands_do_not() {
    let mut node = in_memory();
    let whole = send(&mut node, UPLOAD);
    let refused = node.run(with_upload(UPLOAD, 3, create("Folder")));
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    let nested = node.run(with_upload(UPLOAD, 3, appended(UPLOAD, 3)));
    assert!(matches!(nested, Err(Refusal::Invalid(_))), "{nested:?}");

    send(&mut node, UPLOAD);
    let queued = entry(5, 6, vec![recipient("a@x.org", QueueClass::Remote, 7)]);
    node.run(with_upload(UPLOAD, 3, Op::Enqueue(queued))).unwrap();
    let Reply::QueueEntry(Some((entry, body))) = node.store.query(GROUP, &Query::QueueEntry(QueueId(5)))
    else {
        panic!("the entry is there");
    };
    assert_eq!((entry.size, body), (1507, whole.into()));
    node.store.audit(GROUP).unwrap();
}

#[test]
fn an_upload_survives_a_crash_between_its_chunks_and_its_command() {
    for (kept, checkpoint) in [(0, true), (2, true), (3, false), (9, false)] {
        let index = MemoryIndex::default();
        let mut node = Node::open_on(&index, Default::default());
        node.run(Op::OpenMailbox(MAILBOX)).unwrap();
        // As the log has them.
        let mut log: Vec<_> = [vec![b'a'; 10], vec![b'b'; 20]]
            .into_iter()
            .zip(0..)
            .map(|(body, n)| {
                let id = CommandId(900 + u128::from(n));
                (
                    node.index + 1 + u64::from(n),
                    Command { id, at: Timestamp(1), op: chunk(UPLOAD, n), body: body.into() },
                )
            })
            .collect();
        let last = node.index + 3;
        let commit =
            Command { id: CommandId(999), at: Timestamp(2), op: appended(UPLOAD, 2), body: Bytes::new() };
        log.push((last, commit));
        node.apply(GROUP, &log[..1]);
        if checkpoint {
            node.store.checkpoint().unwrap();
        }
        node.apply(GROUP, &log[1..2]);
        index.crash(kept);
        let node = Node::open_on(&index, node.bodies);
        if node.position(GROUP) == 0 {
            // Everything is applied again.
            let open = Command {
                id: CommandId(1),
                at: Timestamp(1),
                op: Op::OpenMailbox(MAILBOX),
                body: Bytes::new(),
            };
            node.apply(GROUP, &[(1, open)]);
        }
        let rest = log.partition_point(|(index, _)| *index <= node.position(GROUP));
        let outcomes = node.apply(GROUP, &log[rest..]);
        assert!(outcomes.iter().all(Result::is_ok), "{kept}: {outcomes:?}");
        assert_eq!(read(&node, Uid(1), 0).unwrap(), [vec![b'a'; 10], vec![b'b'; 20]].concat());
        node.store.audit(GROUP).unwrap();
    }
}

#[test]
fn a_command_proposed_again_with_a_new_upload_is_applied_once() {
    let mut node = in_memory();
    let command = |upload| Command {
        id: CommandId(1 << 100),
        at: Timestamp(1),
        op: appended(upload, 3),
        body: Bytes::new(),
    };
    // Its chunks are missing: that is not remembered.
    assert_eq!(node.propose(GROUP, command(UPLOAD)), Err(Refusal::Incomplete));
    node.run_at(GROUP, 1, chunk(UPLOAD, 0), b"the only chunk").unwrap();
    assert_eq!(node.propose(GROUP, command(UPLOAD)), Err(Refusal::Incomplete));

    send(&mut node, UploadId(1));
    let first = node.propose(GROUP, command(UploadId(1)));
    assert!(first.is_ok());
    send(&mut node, UploadId(2));
    assert_eq!(node.propose(GROUP, command(UploadId(2))), first);
    assert_eq!(node.propose(GROUP, command(UploadId(1))), first);
    assert_eq!(node.usage().messages, 1);
    assert!(!node.store.has_uploads_before(GROUP, Timestamp(i64::MAX)).unwrap(), "no chunk is left behind");
    node.store.audit(GROUP).unwrap();
}

#[test]
fn chunks_of_a_refused_command_and_old_ones_are_dropped() {
    let mut node = in_memory();
    send(&mut node, UPLOAD);
    let too_small = Quota { bytes: 1506, messages: 0 };
    let refused = node.run(with_upload(UPLOAD, 3, append("INBOX", &[], too_small)));
    assert_eq!(refused, Err(Refusal::OverQuota));
    assert!(!node.store.has_uploads_before(GROUP, Timestamp(i64::MAX)).unwrap());

    let at = |node: &mut Node, at, number| node.run_at(GROUP, at, chunk(UPLOAD, number), b"x").unwrap();
    at(&mut node, 10, 0);
    at(&mut node, 20, 1);
    // The same chunk again, in another command, changes nothing.
    at(&mut node, 30, 1);
    assert!(!node.store.has_uploads_before(GROUP, Timestamp(10)).unwrap());
    assert!(node.store.has_uploads_before(GROUP, Timestamp(11)).unwrap());
    node.run(Op::DropChunks(Timestamp(11))).unwrap();
    assert!(!node.store.has_uploads_before(GROUP, Timestamp(20)).unwrap());
    assert!(node.store.has_uploads_before(GROUP, Timestamp(21)).unwrap());
    node.store.audit(GROUP).unwrap();
    assert_eq!(node.run(appended(UPLOAD, 2)), Err(Refusal::Incomplete));
    node.store.audit(GROUP).unwrap();
    assert!(!node.store.has_uploads_before(GROUP, Timestamp(i64::MAX)).unwrap());
}
