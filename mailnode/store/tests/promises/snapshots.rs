//! What a snapshot promises, to readers while it is made and to the store it goes into.

use std::sync::Arc;

use bytes::Bytes;
use quorumail_journal::{Class, Journal, Options, Record, StreamId};
use quorumail_store::*;

use crate::world::*;

fn chunks(store: &Store) -> (Vec<u8>, Vec<Bytes>) {
    let mut reader = store.snapshot(GROUP).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    (reader.position().to_vec(), chunks)
}

#[test]
fn a_snapshot_shows_one_instant_and_brings_the_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let mut from = Node::open(&dir.path().join("from"));
    let bodies: Vec<_> = (0..40u8).map(|n| vec![n; 100_000]).collect();
    for body in &bodies {
        from.append("INBOX", body);
    }
    from.run_at(
        GROUP,
        1,
        Op::Enqueue(entry(5, 6, vec![recipient("a@x.org", QueueClass::Remote, 7)])),
        b"queued",
    )
    .unwrap();
    let fingerprint = from.store.fingerprint(GROUP).unwrap();
    let mut reader = from.store.snapshot(GROUP).unwrap();
    let position = reader.position().to_vec();
    from.append("INBOX", b"later");

    let to = Node::open(&dir.path().join("to"));
    let mut watcher = to.store.subscribe();
    let mut writer = to.store.install(GROUP).unwrap();
    let mut count = 0;
    while let Some(chunk) = reader.next_chunk().unwrap() {
        assert!(chunk.len() <= (1 << 20) + 200_000);
        writer.write(chunk).unwrap();
        count += 1;
    }
    assert!(count >= 4, "four megabytes do not come in {count} chunks");
    assert_eq!(to.store.position(GROUP).unwrap(), None, "nothing shows before the end");
    writer.finish(&position).unwrap();

    assert_eq!(to.store.fingerprint(GROUP).unwrap(), fingerprint);
    assert_eq!(to.store.position(GROUP).unwrap(), Some(position));
    assert_eq!(watcher.try_recv().unwrap(), Change::Group { group: GROUP });
    let inbox = to.folder("INBOX").unwrap();
    let uids: Vec<_> = (1..=40).map(Uid).collect();
    assert_eq!(to.bodies_of(inbox.id, &uids), bodies.into_iter().map(|b| Some(b.into())).collect::<Vec<_>>());
    let Reply::QueueEntry(Some((_, body))) = to.store.query(GROUP, &Query::QueueEntry(QueueId(5))) else {
        panic!("the queue entry came along");
    };
    assert_eq!(&body[..], b"queued");
    assert_eq!(to.queue(&Query::QueueDue { now: Timestamp(7), limit: 1 }).len(), 1);
}

#[test]
fn a_damaged_or_unfinished_snapshot_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut from = Node::open(&dir.path().join("from"));
    for _ in 0..3 {
        from.append("INBOX", &[b'm'; 700_000]);
    }
    let (position, whole) = chunks(&from.store);
    let path = dir.path().join("to");
    let mut to = Node::open(&path);
    to.append("INBOX", b"mine");
    let before = to.store.fingerprint(GROUP).unwrap();

    let install = |chunks: &[Bytes]| {
        let mut writer = to.store.install(GROUP).unwrap();
        chunks.iter().try_for_each(|chunk| writer.write(chunk.clone()))?;
        writer.finish(&position)
    };
    assert!(install(&whole[..whole.len() - 1]).is_err(), "the end is missing");
    assert!(install(&whole[1..]).is_err(), "the start is missing");
    assert!(install(&[&whole[..], &whole[..1]].concat()).is_err(), "something follows the end");
    for place in [0, 1, 3, 40, whole[0].len() - 1] {
        let mut damaged = whole.clone();
        let mut bytes = damaged[0].to_vec();
        bytes[place] ^= 0x40;
        damaged[0] = bytes.into();
        assert!(install(&damaged).is_err(), "byte {place} is wrong");
    }
    assert!(install(&[whole[0].slice(..500)]).is_err(), "a chunk is cut");
    // One that a crash interrupts is cleared at the next start.
    let mut writer = to.store.install(GROUP).unwrap();
    writer.write(whole[0].clone()).unwrap();
    std::mem::forget(writer);
    assert_eq!(to.store.fingerprint(GROUP).unwrap(), before);
    assert_eq!(to.folder("INBOX").unwrap().messages, 1);
    assert!(install(&whole).is_ok());
    assert_eq!(to.store.fingerprint(GROUP).unwrap(), from.store.fingerprint(GROUP).unwrap());
}

#[test]
fn bodies_come_from_the_journal_and_are_kept_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let journal = Journal::open(Options::new(dir.path().join(name)), |_, _, _| {}).unwrap();
        let bodies = Arc::new(JournalBodies::new(journal.clone(), |_| Ok(None)));
        (journal, Store::open(&dir.path().join(format!("{name}.index")), bodies).unwrap())
    };
    let (journal, from) = open("from");
    let op = append("INBOX", &[], NO_QUOTA);
    let body = Bytes::from(vec![b'j'; 5000]);
    let command = Command { id: CommandId(1), at: Timestamp(1), op, body: body.clone() }.encode();
    let payload = vec![Bytes::from_static(b"raft"), command.clone()];
    let record = journal.append(vec![Record { stream: StreamId(GROUP), payload }], || {})[0];
    from.apply(GROUP, vec![LogCommand { index: 1, command, record, offset: 4 }], b"1").unwrap();

    let (kept, to) = open("to");
    transfer(&from, &to, GROUP);
    assert!(kept.stats().kept_bytes > 5000, "bodies of a snapshot lie beside the log");
    drop(kept);
    for store in [&from, &to] {
        let read = |octets| {
            let uids = vec![Uid(1)];
            let query = Query::Messages {
                mailbox: MAILBOX,
                folder: FolderId(1),
                uids,
                octets,
                digests: Vec::new(),
                max_bytes: 9999,
            };
            match store.query(GROUP, &query) {
                Reply::Messages(found) => found[0].clone().unwrap().octets,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(read(Octets::Whole), body);
        assert_eq!(read(Octets::Prefix(100)), body.slice(..100));
    }
    drop(to);
    let mut visited = 0;
    let journal = Journal::open(Options::new(dir.path().join("to")), |_, _, _| visited += 1).unwrap();
    let kept = journal.segments().unwrap().into_iter().find(|segment| segment.class == Class::Kept).unwrap();
    let streams: Vec<StreamId> =
        journal.records(kept.number).unwrap().iter().map(|record| record.stream).collect();
    assert_eq!(visited, 0);
    assert_eq!(streams, [KEPT_BODIES]);
}
