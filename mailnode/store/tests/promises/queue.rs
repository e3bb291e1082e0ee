//! What the queue promises to the delivery worker.

use crate::world::*;
use quorumail_store::*;

fn due(now: i64, limit: u32) -> Query {
    Query::QueueDue { now: Timestamp(now), limit }
}

fn ids(entries: &[QueueEntry]) -> Vec<u128> {
    entries.iter().map(|entry| entry.id.0).collect()
}

#[test]
fn entries_come_due_in_order_of_their_next_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(&dir.path().join("index"));
    use QueueClass::{Bad, Held, Local, Remote};
    let mut add = |id, arrived, recipients| node.run(Op::Enqueue(entry(id, arrived, recipients))).unwrap();
    add(1, 10, vec![recipient("a@x.org", Remote, 300), recipient("b@x.org", Held, 0)]);
    add(2, 11, vec![recipient("a@x.org", Local, -5)]);
    add(3, 12, vec![recipient("a@x.org", Bad, 0)]);
    add(4, 13, vec![recipient("a@x.org", Remote, 200), recipient("b@x.org", Local, 100)]);

    assert_eq!((node.store.next_due(GROUP), node.store.next_due(99)), (Some(Timestamp(-5)), None));
    assert_eq!(ids(&node.queue(&due(99, 10))), [2]);
    assert_eq!(ids(&node.queue(&due(1000, 10))), [2, 4, 1]);
    assert_eq!(ids(&node.queue(&due(1000, 2))), [2, 4]);

    let changed = vec![QueueRecipient { attempts: 1, ..recipient("A@x.org", Remote, 50) }];
    let op = Op::UpdateQueue { id: QueueId(4), done: vec![address("b@x.org")], changed };
    node.run(op).unwrap();
    assert_eq!(ids(&node.queue(&due(1000, 10))), [2, 4, 1]);
    assert_eq!(ids(&node.queue(&due(49, 10))), [2]);
    let op = Op::UpdateQueue { id: QueueId(2), done: vec![], changed: vec![recipient("a@x.org", Held, 0)] };
    node.run(op).unwrap();
    assert_eq!(node.store.next_due(GROUP), Some(Timestamp(50)));
    assert_eq!(ids(&node.queue(&due(1000, 10))), [4, 1]);
    assert_eq!(ids(&node.queue(&Query::QueueList { class: Some(Held), limit: 10 })), [1, 2]);
    assert_eq!(ids(&node.queue(&Query::QueueList { class: None, limit: 3 })), [1, 2, 3]);
}

#[test]
fn an_entry_goes_with_its_last_recipient() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mut node = Node::open(&path);
    let both = vec![recipient("a@x.org", QueueClass::Remote, 1), recipient("b@x.org", QueueClass::Local, 2)];
    let enqueue = Op::Enqueue(entry(9, 77, both));
    node.run_at(GROUP, 1, enqueue.clone(), b"the message").unwrap();
    assert!(matches!(node.run(enqueue), Err(Refusal::AlreadyExists(_))));

    let Reply::QueueEntry(Some((found, body))) = node.store.query(GROUP, &Query::QueueEntry(QueueId(9)))
    else {
        panic!("the entry is there");
    };
    assert_eq!((&body[..], found.size), (&b"the message"[..], 11));
    let counts = |node: &Node| match node.store.query(GROUP, &Query::QueueCounts) {
        Reply::QueueCounts(counts) => {
            counts.into_iter().map(|(_, n, at)| (n, at.map(|at| at.0))).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(counts(&node), [(1, Some(77)), (1, Some(77)), (0, None), (0, None)]);

    let done = |text| Op::UpdateQueue { id: QueueId(9), done: vec![address(text)], changed: vec![] };
    node.run(done("a@x.org")).unwrap();
    assert_eq!(counts(&node), [(1, Some(77)), (0, None), (0, None), (0, None)]);
    let bodies = node.bodies.clone();
    drop(node);
    let mut node = Node::open_with(&path, bodies);
    assert_eq!(counts(&node), [(1, Some(77)), (0, None), (0, None), (0, None)], "after a restart");

    node.run(done("b@x.org")).unwrap();
    assert_eq!(counts(&node), [(0, None); 4]);
    assert_eq!(node.store.query(GROUP, &Query::QueueEntry(QueueId(9))), Reply::QueueEntry(None));
    assert!(matches!(node.run(done("b@x.org")), Err(Refusal::NotFound(_))));
}
