//! What is deleted is kept for a time, comes back when it is asked for, and goes for good when its time is over.

use bytes::Bytes;
use quorumail_store::*;

use crate::world::*;

fn node() -> Node {
    let bodies = std::sync::Arc::new(MemoryBodies::default());
    Node::open_on(&MemoryIndex::default(), bodies)
}

fn expunge(node: &mut Node, at: i64, folder: FolderId, uids: &[Uid]) {
    node.run(store_flags(folder, uids, StoreFlags::Add, &["\\Deleted"])).unwrap();
    let op = Op::Expunge { mailbox: MAILBOX, folder, uids: Some(uids.to_vec()) };
    assert_eq!(node.run_at(GROUP, at, op, b""), Ok(Applied::Expunged(uids.to_vec())));
}

fn undelete(numbers: &[u64], below: &str, quota: Quota) -> Op {
    Op::Undelete { mailbox: MAILBOX, numbers: numbers.to_vec(), below: below.to_owned(), quota }
}

fn numbers(node: &Node) -> Vec<u64> {
    node.deleted(0).iter().map(|message| message.number).collect()
}

#[test]
fn expunged_messages_come_back_as_they_were() {
    let mut node = node();
    let uid = match node.run_at(
        GROUP,
        5,
        append("INBOX", &["\\Seen", "Work"], NO_QUOTA),
        b"Subject: x\r\n\r\nhello",
    ) {
        Ok(Applied::Appended { uid, .. }) => uid,
        other => panic!("{other:?}"),
    };
    let inbox = node.folder("INBOX").unwrap().id;
    let before = node.messages(inbox).remove(0);
    expunge(&mut node, 7_000, inbox, &[uid]);
    assert_eq!(node.usage(), Usage::default(), "what is kept counts towards no quota");
    let deleted = node.deleted(10).remove(0);
    assert_eq!((deleted.deleted_at, deleted.folder.as_str(), deleted.uid), (Timestamp(7_000), "INBOX", uid));
    assert_eq!(deleted.start, Bytes::from_static(b"Subject: x"));
    assert_eq!((deleted.internal_date, deleted.size), (before.internal_date, before.size));
    assert!(node.deleted(0)[0].start.is_empty());

    let op = undelete(&[deleted.number, 99], "", NO_QUOTA);
    assert_eq!(node.run(op.clone()), Ok(Applied::Undeleted { messages: 1 }));
    let back = node.messages(inbox).remove(0);
    assert_eq!(back, MessageMeta { uid: Uid(uid.0 + 1), mod_seq: back.mod_seq, ..before.clone() });
    assert!(back.mod_seq > before.mod_seq);
    assert_eq!(node.bodies_of(inbox, &[back.uid])[0].as_deref(), Some(b"Subject: x\r\n\r\nhello".as_slice()));
    // Again: it is there already.
    assert_eq!(node.run(op), Ok(Applied::Undeleted { messages: 0 }));
    assert_eq!((node.deleted(0), node.folder("INBOX").unwrap().messages), (Vec::new(), 1));
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_deleted_folder_comes_back_with_its_messages_where_it_was_or_below_another() {
    let mut node = node();
    node.run(create("a/b")).unwrap();
    for body in [b"one", b"two"] {
        node.append("a/b", body);
    }
    node.run(Op::DeleteFolder { mailbox: MAILBOX, folder: "a/b".to_owned() }).unwrap();
    let deleted = numbers(&node);
    assert_eq!(deleted.len(), 2);
    assert_eq!(node.run(undelete(&deleted[..1], "", NO_QUOTA)), Ok(Applied::Undeleted { messages: 1 }));
    assert_eq!(node.run(undelete(&deleted[1..], "back", NO_QUOTA)), Ok(Applied::Undeleted { messages: 1 }));
    for (name, body) in [("a/b", b"one"), ("back/a/b", b"two")] {
        let folder = node.folder(name).unwrap();
        assert!(folder.subscribed);
        assert_eq!(node.bodies_of(folder.id, &[Uid(1)]), [Some(Bytes::from_static(body))]);
    }
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_folder_of_any_size_is_kept_whole() {
    let mut node = node();
    node.run(create("big")).unwrap();
    for _ in 0..1500 {
        node.append("big", b"m");
    }
    let delete = Op::DeleteFolder { mailbox: MAILBOX, folder: "big".to_owned() };
    assert_eq!(node.run(delete.clone()), Ok(Applied::More));
    assert_eq!(node.run(delete), Ok(Applied::Done));
    let deleted = numbers(&node);
    assert_eq!(deleted, (1..=1500).collect::<Vec<_>>());
    let refused = node.run(undelete(&deleted, "", NO_QUOTA));
    assert!(matches!(refused, Err(Refusal::Invalid(why)) if why.contains("1000")));
    assert_eq!(node.run(undelete(&deleted[..1000], "", NO_QUOTA)), Ok(Applied::Undeleted { messages: 1000 }));
    assert_eq!(node.store.kept_deleted(GROUP).unwrap(), Usage { bytes: 500, messages: 500 });
    node.store.audit(GROUP).unwrap();
}

#[test]
fn moved_messages_are_not_kept_and_copies_are_kept_by_themselves() {
    let mut node = node();
    let uid = node.append("INBOX", b"message");
    let inbox = node.folder("INBOX").unwrap().id;
    node.run(copy(inbox, &[uid], "Archive", false, NO_QUOTA)).unwrap();
    node.run(copy(inbox, &[uid], "Trash", true, NO_QUOTA)).unwrap();
    assert_eq!(numbers(&node), [0u64; 0]);
    let trash = node.folder("Trash").unwrap().id;
    expunge(&mut node, 1, trash, &[Uid(1)]);
    assert_eq!(numbers(&node), [1]);
    // The other copy has the same body.
    node.run(drop_deleted()).unwrap();
    let archive = node.folder("Archive").unwrap().id;
    assert_eq!(node.bodies_of(archive, &[Uid(1)]), [Some(Bytes::from_static(b"message"))]);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn what_is_over_quota_stays_kept() {
    let mut node = node();
    let uid = node.append("INBOX", &[1; 100]);
    let inbox = node.folder("INBOX").unwrap().id;
    expunge(&mut node, 1, inbox, &[uid]);
    let quota = Quota { bytes: 99, messages: 0 };
    assert_eq!(node.run(undelete(&[1], "back", quota)), Err(Refusal::OverQuota));
    assert!(node.folder("back/INBOX").is_none() && numbers(&node) == [1]);
    let bad = node.run(undelete(&[1], "a//b", NO_QUOTA));
    assert!(matches!(bad, Err(Refusal::Invalid(_))) && numbers(&node) == [1], "{bad:?}");
    assert_eq!(
        node.run(undelete(&[1], "", Quota { bytes: 100, messages: 1 })),
        Ok(Applied::Undeleted { messages: 1 })
    );
}

#[test]
fn its_time_over_it_goes_for_good_and_its_space_with_it() {
    let mut node = node();
    let inbox = node.folder("INBOX").map(|folder| folder.id);
    assert_eq!(inbox, None);
    let uids: Vec<_> = (0..3).map(|n| node.append("INBOX", &[n; 100])).collect();
    let inbox = node.folder("INBOX").unwrap().id;
    for (at, uid) in uids.iter().enumerate() {
        expunge(&mut node, at as i64 * 1000, inbox, &[*uid]);
    }
    let due = |node: &Node, before| node.store.deleted_before(GROUP, Timestamp(before), 10).unwrap();
    assert_eq!((due(&node, 0), due(&node, 1)), (vec![], vec![MAILBOX]));
    assert_eq!(
        node.store.deleted_before(GROUP, Timestamp(i64::MAX), 0).unwrap().len(),
        1,
        "at least one look"
    );
    let drop_before = |before| Op::DropDeleted { mailbox: MAILBOX, before: Timestamp(before) };
    assert_eq!(node.run(drop_before(1001)), Ok(Applied::Done));
    assert_eq!(numbers(&node), [3]);
    assert_eq!((due(&node, 2000), due(&node, 2001)), (vec![], vec![MAILBOX]));
    assert_eq!(node.run(undelete(&[1, 2], "", NO_QUOTA)), Ok(Applied::Undeleted { messages: 0 }));
    assert_eq!(node.run(drop_deleted()), Ok(Applied::Done));
    assert_eq!((numbers(&node), due(&node, i64::MAX)), (vec![], vec![]));
    // Numbers are not given again.
    let uid = node.append("INBOX", b"later");
    expunge(&mut node, 5000, inbox, &[uid]);
    assert_eq!(numbers(&node), [4]);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_purged_mailbox_keeps_nothing() {
    let mut node = node();
    for _ in 0..20 {
        node.append("INBOX", b"message");
    }
    let inbox = node.folder("INBOX").unwrap().id;
    expunge(&mut node, 1, inbox, &(1..=10).map(Uid).collect::<Vec<_>>());
    assert_eq!(node.run(Op::PurgeMailbox(MAILBOX)), Ok(Applied::Done));
    assert_eq!((numbers(&node), node.store.kept_deleted(GROUP).unwrap()), (vec![], Usage::default()));
    assert_eq!(node.run(drop_deleted()), Ok(Applied::Done));
    assert_eq!(node.folder("INBOX"), None, "it is not made again");
    node.store.audit(GROUP).unwrap();
}

#[test]
fn the_oldest_goes_where_a_mailbox_keeps_too_much() {
    let mut node = node();
    let inbox = {
        node.append("INBOX", b"m");
        node.folder("INBOX").unwrap().id
    };
    // Copies of one message, many at a time: 100,000 commands would take too long.
    let uids: Vec<_> = (1..=1000).map(Uid).collect();
    while node.folder("INBOX").unwrap().messages < 1000 {
        let have = node.folder("INBOX").unwrap().messages;
        node.run(copy(inbox, &uids[..have.min(1000 - have) as usize], "INBOX", false, NO_QUOTA)).unwrap();
    }
    for round in 0..=(MAX_KEPT_MESSAGES / 1000) {
        node.run(create("gone")).unwrap();
        node.run(copy(inbox, &uids, "gone", false, NO_QUOTA)).unwrap();
        let delete = Op::DeleteFolder { mailbox: MAILBOX, folder: "gone".to_owned() };
        assert_eq!(node.run_at(GROUP, round as i64, delete, b""), Ok(Applied::Done));
    }
    let kept = node.store.kept_deleted(GROUP).unwrap();
    assert_eq!(kept, Usage { bytes: MAX_KEPT_MESSAGES, messages: MAX_KEPT_MESSAGES });
    let query = Query::Deleted { mailbox: MAILBOX, after: 0, limit: 1, prefix: 0 };
    let Reply::Deleted(first, _) = node.store.query(GROUP, &query) else { panic!("no answer") };
    assert_eq!((first[0].number, first[0].deleted_at), (1001, Timestamp(1)));
    // Dropped in steps that are bounded.
    let mut steps = 1;
    while node.run(drop_deleted()) == Ok(Applied::More) {
        steps += 1;
    }
    assert_eq!((steps, node.store.kept_deleted(GROUP).unwrap()), (50, Usage::default()));
    node.store.audit(GROUP).unwrap();
}

#[test]
fn commands_of_earlier_formats_keep_nothing_so_that_archives_apply_as_they_did() {
    let mut node = node();
    let uid = node.append("INBOX", b"message");
    let inbox = node.folder("INBOX").unwrap().id;
    node.run(store_flags(inbox, &[uid], StoreFlags::Add, &["\\Deleted"])).unwrap();
    let command = Command {
        id: CommandId(1 << 100),
        at: Timestamp(9),
        op: Op::Expunge { mailbox: MAILBOX, folder: inbox, uids: None },
        body: Bytes::new(),
    };
    let mut old = command.encode().to_vec();
    old[0] = 3;
    let index = node.index + 1;
    let log = LogCommand { command: old.into(), ..node.log(GROUP, index, &command) };
    node.store.apply(GROUP, vec![log], &index.to_be_bytes()).unwrap();
    assert_eq!((node.folder("INBOX").unwrap().messages, node.deleted(0)), (0, vec![]));
    node.store.audit(GROUP).unwrap();
}
