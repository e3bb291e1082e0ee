//! Readers and writers at the same time: every answer shows whole batches.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use quorumail_store::*;

use crate::world::*;

const BATCHES: u64 = 150;

/// The batch `n`: two messages and a queue entry come, the entry of the batch before goes, and some mail is expunged.
fn batch(n: u64) -> Vec<(u64, Command)> {
    let mut ops = vec![
        append("INBOX", &["\\Deleted"], NO_QUOTA),
        append("INBOX", &[], NO_QUOTA),
        Op::Enqueue(entry(n.into(), n as i64, vec![recipient("a@x.org", QueueClass::Remote, 1)])),
    ];
    if n > 0 {
        let done = vec![address("a@x.org")];
        ops.push(Op::UpdateQueue { id: QueueId(u128::from(n) - 1), done, changed: Vec::new() });
    }
    ops.push(Op::Expunge { mailbox: MAILBOX, folder: FolderId(1), uids: None });
    let number = |(k, op)| {
        let index = n * 10 + k as u64 + 1;
        (index, Command { id: CommandId(index.into()), at: Timestamp(1), op, body: "body".into() })
    };
    ops.into_iter().enumerate().map(number).collect()
}

/// Asks until told to stop; answers how many different states were seen.
fn watch(store: &Store, group: u32, stop: &AtomicBool) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    // On a busy machine the writers may be done before the first look.
    while !stop.load(Ordering::Acquire) || seen.is_empty() {
        let query = Query::Select { mailbox: MAILBOX, name: "INBOX".to_owned() };
        match store.query(group, &query) {
            Reply::Selected(None) => {}
            Reply::Selected(Some(Selection { folder, uids, .. })) => {
                let uids = uids_of(&uids);
                assert_eq!(folder.messages as usize, uids.len());
                assert_eq!(folder.uid_next.0 as usize, 2 * uids.len() + 1, "half of all that came is gone");
                seen.insert(uids.len());
            }
            other => panic!("{other:?}"),
        }
        match store.query(group, &Query::QueueDue { now: Timestamp(5), limit: 10 }) {
            Reply::Queue(entries) => assert!(entries.len() <= 1, "one goes when the next comes: {entries:?}"),
            other => panic!("{other:?}"),
        }
    }
    seen.len()
}

#[test]
fn readers_see_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&dir.path().join("index"));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (1..=2)
            .map(|group| {
                scope.spawn({
                    let (store, stop) = (&node.store, &stop);
                    move || watch(store, group, stop)
                })
            })
            .collect();
        let writers: Vec<_> = (1..=2)
            .map(|group| {
                scope.spawn({
                    let node = &node;
                    move || {
                        (0..BATCHES)
                            .for_each(|n| assert!(node.apply(group, &batch(n)).iter().all(Result::is_ok)))
                    }
                })
            })
            .collect();
        for _ in 0..10 {
            node.store.checkpoint().unwrap();
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_eq!(node.store.fingerprint(1).unwrap(), node.store.fingerprint(2).unwrap());
}

#[test]
fn a_snapshot_is_read_and_installed_on_other_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(&dir.path().join("index"));
    node.append("INBOX", b"x");
    let mut reader = node.store.snapshot(GROUP).unwrap();
    let mut writer = node.store.install(2).unwrap();
    thread::spawn(move || {
        while let Some(chunk) = reader.next_chunk().unwrap() {
            writer.write(chunk).unwrap();
        }
        writer.finish(reader.position()).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(node.store.fingerprint(2).unwrap(), node.store.fingerprint(GROUP).unwrap());
}
