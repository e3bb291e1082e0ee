//! What comes back from a backup or from elsewhere comes once, under the UIDs that were promised; and the walk that it
//! comes from.

use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use quorumail_store::*;

use crate::world::*;

const SOURCE: UidValidity = UidValidity(900);
const AT: i64 = 1_000_000;

fn in_memory() -> Node {
    let mut node = Node::open_on(&MemoryIndex::default(), Default::default());
    node.run(Op::OpenMailbox(MAILBOX)).unwrap();
    node
}

fn source(uid_next: u32, keep: bool) -> FolderSource {
    FolderSource { uid_validity: SOURCE, uid_next: Uid(uid_next), highest_mod_seq: ModSeq(5_000), keep }
}

fn folder(name: &str, source: Option<FolderSource>) -> Op {
    let folder = name.to_owned();
    Op::RestoreFolder { mailbox: MAILBOX, folder, special_use: None, subscribed: true, source }
}

fn message(name: &str, place: RestorePlace, quota: Quota) -> Op {
    Op::RestoreMessage {
        mailbox: MAILBOX,
        folder: name.to_owned(),
        place,
        flags: flags(&["\\Seen", "$work"]),
        internal_date: Timestamp(77),
        quota,
    }
}

fn exact(uid: u32) -> RestorePlace {
    RestorePlace::Uid { source: SOURCE, uid: Uid(uid) }
}

fn restore(
    node: &mut Node,
    name: &str,
    place: RestorePlace,
    body: &[u8],
) -> Result<(u32, RestoredAs), Refusal> {
    match node.run_at(GROUP, AT, message(name, place, NO_QUOTA), body)? {
        Applied::Restored { uid, was, .. } => Ok((uid.0, was)),
        other => panic!("{other:?}"),
    }
}

fn expunge(node: &mut Node, name: &str, uid: u32) {
    let id = node.folder(name).unwrap().id;
    node.run(store_flags(id, &[Uid(uid)], StoreFlags::Add, &["\\Deleted"])).unwrap();
    let gone = node.run(Op::Expunge { mailbox: MAILBOX, folder: id, uids: Some(vec![Uid(uid)]) });
    assert_eq!(gone, Ok(Applied::Expunged(vec![Uid(uid)])));
}

#[test]
fn a_lost_folder_comes_back_under_its_identity_and_new_mail_gets_other_uids() {
    let mut node = in_memory();
    let before = node.folder("INBOX").unwrap();
    node.run(folder("INBOX", Some(source(50, true)))).unwrap();
    let ready = node.folder("INBOX").unwrap();
    assert_eq!((ready.uid_validity, ready.uid_next, ready.messages), (SOURCE, Uid(50), 0));
    assert!(ready.highest_mod_seq > ModSeq(5_000) && ready.highest_mod_seq > before.highest_mod_seq);
    // Mail that arrives in the middle.
    assert_eq!(node.append("INBOX", b"new"), Uid(50));
    // In any order.
    for uid in [40, 3, 17] {
        assert_eq!(restore(&mut node, "INBOX", exact(uid), b"old").unwrap(), (uid, RestoredAs::New));
    }
    let inbox = node.folder("INBOX").unwrap();
    let found = node.messages(inbox.id);
    assert_eq!(found.iter().map(|meta| meta.uid.0).collect::<Vec<_>>(), [3, 17, 40, 50]);
    assert_eq!((found[0].internal_date, &found[0].flags), (Timestamp(77), &flags(&["\\Seen", "$work"])));
    assert_eq!((inbox.messages, inbox.unseen, inbox.bytes), (4, 1, 12));
    // A client that knew the folder before it was lost hears that all is to be listed again.
    assert_eq!(node.changes(inbox.id, ModSeq(4_000)).vanished, None);
    assert!(node.run(create("later")).is_ok());
    assert!(node.folder("later").unwrap().uid_validity > SOURCE);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_restore_run_twice_adds_nothing_and_brings_back_nothing_that_was_expunged_since() {
    let mut node = in_memory();
    for round in [RestoredAs::New, RestoredAs::There] {
        node.run(folder("Restored/INBOX", Some(source(10, false)))).unwrap();
        for uid in 1..10 {
            assert_eq!(restore(&mut node, "restored/x", exact(uid), b"m").ok(), None, "no such folder");
            assert_eq!(restore(&mut node, "Restored/INBOX", exact(uid), b"m").unwrap(), (uid, round));
        }
    }
    let restored = node.folder("Restored/INBOX").unwrap();
    assert!(restored.uid_validity != SOURCE && restored.messages == 9);
    expunge(&mut node, "Restored/INBOX", 4);
    assert_eq!(node.append("Restored/INBOX", b"mine"), Uid(10));
    node.run(folder("Restored/INBOX", Some(source(10, false)))).unwrap();
    assert_eq!(restore(&mut node, "Restored/INBOX", exact(4), b"m").unwrap(), (4, RestoredAs::Gone));
    assert_eq!(restore(&mut node, "Restored/INBOX", exact(5), b"m").unwrap(), (5, RestoredAs::There));
    // Its UID belongs to other mail here.
    let refusal = restore(&mut node, "Restored/INBOX", exact(10), b"m").unwrap_err().to_string();
    assert!(refusal.contains("no room for UID 10"), "{refusal}");
    assert_eq!(node.usage(), Usage { bytes: 8 + 4, messages: 9 });
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_folder_in_use_is_never_overwritten() {
    let mut node = in_memory();
    node.append("INBOX", b"living");
    let before = node.folder("INBOX").unwrap();
    for refused in [
        node.run(folder("INBOX", Some(source(10, true)))),
        node.run(folder("INBOX", Some(source(10, false)))),
        node.run_at(GROUP, AT, message("INBOX", exact(1), NO_QUOTA), b"x"),
    ] {
        let refusal = refused.unwrap_err();
        assert!(matches!(&refusal, Refusal::Conflict(text) if text.contains("under a prefix")), "{refusal}");
    }
    assert_eq!(node.folder("INBOX").unwrap(), before);
    // Its own backup: what is there is there, what is gone stays gone.
    let own = FolderSource { uid_validity: before.uid_validity, ..source(10, true) };
    node.run(folder("INBOX", Some(own))).unwrap();
    let place = |uid| RestorePlace::Uid { source: before.uid_validity, uid: Uid(uid) };
    assert_eq!(restore(&mut node, "INBOX", place(1), b"x").unwrap(), (1, RestoredAs::There));
    expunge(&mut node, "INBOX", 1);
    assert_eq!(restore(&mut node, "INBOX", place(1), b"x").unwrap(), (1, RestoredAs::Gone));
}

#[test]
fn sources_out_of_bounds_are_refused_and_change_nothing() {
    let mut node = in_memory();
    let before = node.store.fingerprint(GROUP).unwrap();
    let bad = [
        FolderSource { uid_next: Uid(0), ..source(1, true) },
        source((1 << 26) + 1, true),
        FolderSource { uid_validity: UidValidity(0), ..source(9, true) },
        FolderSource { uid_validity: UidValidity(u32::MAX), ..source(9, false) },
        FolderSource { highest_mod_seq: ModSeq(u64::MAX), ..source(9, true) },
    ];
    for source in bad {
        let op = folder("INBOX", Some(source));
        assert!(matches!(node.run(op), Err(Refusal::Invalid(_))), "{source:?}");
    }
    assert_eq!(node.folders().len(), 6);
    let remembered = node.store.fingerprint(GROUP).unwrap();
    assert_ne!(before, remembered, "the refusals are remembered, and nothing else");
    node.run(folder("wide", Some(source(1 << 26, true)))).unwrap();
    assert_eq!(restore(&mut node, "wide", exact((1 << 26) - 1), b"m").unwrap().1, RestoredAs::New);
    assert_eq!(node.messages(node.folder("wide").unwrap().id).len(), 1);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn over_quota_is_refused_and_goes_on_when_there_is_room() {
    let mut node = in_memory();
    node.run(folder("r", Some(source(10, false)))).unwrap();
    let tight = Quota { bytes: 10, messages: 0 };
    let run = |node: &mut Node, quota| node.run_at(GROUP, AT, message("r", exact(3), quota), b"0123456789a");
    assert_eq!(run(&mut node, tight), Err(Refusal::OverQuota));
    assert_eq!(node.usage(), Usage::default());
    assert!(run(&mut node, Quota { bytes: 11, messages: 1 }).is_ok());
    // What is there already needs no room.
    assert!(matches!(run(&mut node, tight), Ok(Applied::Restored { was: RestoredAs::There, .. })));
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_large_body_comes_in_chunks_and_one_that_is_there_already_leaves_nothing_behind() {
    let mut node = in_memory();
    node.run(folder("r", Some(source(10, false)))).unwrap();
    for (upload, was) in [(1, RestoredAs::New), (2, RestoredAs::There)] {
        let upload = UploadId(upload);
        for (number, part) in (0..).zip([&b"large "[..], b"body"]) {
            node.run_at(GROUP, AT, Op::Chunk { upload, number }, part).unwrap();
        }
        let op = Box::new(message("r", exact(2), NO_QUOTA));
        let answer = node.run(Op::WithUpload { upload, chunks: 2, op });
        assert!(matches!(answer, Ok(Applied::Restored { was: found, .. }) if found == was), "{answer:?}");
        node.store.audit(GROUP).unwrap();
    }
    let id = node.folder("r").unwrap().id;
    assert_eq!(node.bodies_of(id, &[Uid(2)]), [Some(Bytes::from_static(b"large body"))]);
}

#[test]
fn an_import_repeated_after_any_time_makes_no_duplicate_until_its_folder_is_deleted() {
    let mut node = in_memory();
    let next = |source| RestorePlace::Next { source };
    node.run(folder("old", None)).unwrap();
    node.append("old", b"mine");
    assert_eq!(restore(&mut node, "old", next(7), b"a").unwrap(), (2, RestoredAs::New));
    assert_eq!(restore(&mut node, "old", next(8), b"b").unwrap(), (3, RestoredAs::New));
    let known = |node: &Node, folder: &str| {
        let query = Query::Imported { mailbox: MAILBOX, folder: folder.to_owned(), sources: vec![8, 9, 7] };
        node.store.query(GROUP, &query)
    };
    // Far beyond what is remembered of commands.
    node.index += 2 * REMEMBERED_COMMANDS;
    assert_eq!(known(&node, "old"), Reply::Imported(vec![true, false, true]));
    assert_eq!(known(&node, "none"), Reply::Imported(vec![false; 3]));
    assert_eq!(restore(&mut node, "old", next(7), b"a").unwrap(), (2, RestoredAs::There));
    expunge(&mut node, "old", 2);
    assert_eq!(restore(&mut node, "old", next(7), b"a").unwrap(), (2, RestoredAs::Gone));
    assert_eq!(known(&node, "old"), Reply::Imported(vec![true, false, true]));
    node.run(Op::DeleteFolder { mailbox: MAILBOX, folder: "old".to_owned() }).unwrap();
    node.run(folder("old", None)).unwrap();
    assert_eq!(known(&node, "old"), Reply::Imported(vec![false; 3]));
    assert_eq!(restore(&mut node, "old", next(7), b"a").unwrap(), (1, RestoredAs::New));
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_folder_that_much_was_imported_into_is_deleted_and_purged_in_steps() {
    for purge in [false, true] {
        let mut node = in_memory();
        node.run(folder("old", None)).unwrap();
        let inbox = node.folder("old").unwrap().id;
        for round in 0..11u128 {
            for number in 0..1000 {
                let place = RestorePlace::Next { source: round * 1000 + number };
                node.run_at(GROUP, AT, message("old", place, NO_QUOTA), b"").unwrap();
            }
            let uids = node.messages(inbox).iter().map(|meta| meta.uid).collect::<Vec<_>>();
            node.run(store_flags(inbox, &uids, StoreFlags::Add, &["\\Deleted"])).unwrap();
            node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox, uids: None }).unwrap();
        }
        let op = || match purge {
            true => Op::PurgeMailbox(MAILBOX),
            false => Op::DeleteFolder { mailbox: MAILBOX, folder: "old".to_owned() },
        };
        assert_eq!(node.run(op()), Ok(Applied::More));
        node.store.audit(GROUP).unwrap();
        let mut steps = 0;
        while node.run(op()).unwrap() == Applied::More {
            steps += 1;
            assert!(steps < 10, "it comes to an end");
        }
        node.store.audit(GROUP).unwrap();
        assert_eq!(node.folder("old"), None);
    }
}

#[test]
fn a_special_use_that_is_taken_is_left_where_it_is() {
    let mut node = in_memory();
    let op = |name: &str, special_use| Op::RestoreFolder {
        mailbox: MAILBOX,
        folder: name.to_owned(),
        special_use: Some(special_use),
        subscribed: false,
        source: Some(source(2, false)),
    };
    node.run(op("Restored/Sent", SpecialUse::Sent)).unwrap();
    assert_eq!(node.folder("Restored/Sent").unwrap().special_use, None);
    node.run(Op::DeleteFolder { mailbox: MAILBOX, folder: "Trash".to_owned() }).unwrap();
    node.run(op("Bin", SpecialUse::Trash)).unwrap();
    assert_eq!(node.folder("Bin").unwrap().special_use, Some(SpecialUse::Trash));
    assert!(!node.folder("Bin").unwrap().subscribed);
}

/// Everything that a walk over a mailbox tells.
fn walk(store: &Store) -> Vec<(FolderInfo, Vec<(MessageMeta, Bytes)>)> {
    let Some(export) = store.export(GROUP).unwrap() else { return Vec::new() };
    let folders = export.folders(MAILBOX).unwrap();
    let messages = |info: &FolderInfo| {
        let mut found = Vec::new();
        export
            .messages(MAILBOX, info.id, Uid(1), &mut |message| {
                let mut pieces = Vec::new();
                message.body.pieces(&mut |piece| {
                    pieces.extend_from_slice(&piece);
                    Ok(ControlFlow::Continue(()))
                })?;
                assert_eq!(message.body.read()?, pieces);
                assert_eq!(message.body.len() as usize, pieces.len());
                found.push((message.meta, Bytes::from(pieces)));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        found
    };
    folders.into_iter().map(|info| (info.clone(), messages(&info))).collect()
}

#[test]
fn a_walk_tells_one_instant_whatever_is_written_meanwhile() {
    let mut node = in_memory();
    node.append("INBOX", b"first");
    let store = node.store.clone();
    let export = store.export(GROUP).unwrap().unwrap();
    let position = node.position(GROUP).to_be_bytes().to_vec();
    let inbox = node.folder("INBOX").unwrap();
    node.append("INBOX", b"second");
    expunge(&mut node, "INBOX", 1);
    node.run(entry_op(5, 9)).unwrap();
    assert_eq!(export.position().unwrap(), Some(position));
    assert_eq!(export.usage(MAILBOX).unwrap(), Usage { bytes: 5, messages: 1 });
    let mut seen = Vec::new();
    let mut visit = |message: ExportedMessage<'_>| {
        seen.push((message.meta.uid, message.body.read()?));
        Ok(ControlFlow::Continue(()))
    };
    export.messages(MAILBOX, inbox.id, Uid(1), &mut visit).unwrap();
    assert_eq!(seen, [(Uid(1), Bytes::from_static(b"first"))]);
    export.queue(&mut |_| panic!("the entry came later")).unwrap();
    assert_eq!(export.mailboxes().unwrap(), [MAILBOX]);
}

fn entry_op(id: u128, at: i64) -> Op {
    Op::Enqueue(entry(id, at, vec![recipient("a@x.org", QueueClass::Held, 7)]))
}

#[test]
fn a_walk_tells_the_queue_and_the_directory() {
    let mut node = in_memory();
    node.run_at(GROUP, AT, entry_op(5, 9), b"waiting").unwrap();
    let export = node.store.export(GROUP).unwrap().unwrap();
    let mut found = Vec::new();
    let mut visit = |(entry, body): (QueueEntry, ExportedBody<'_>)| {
        found.push((entry.id, entry.size, body.read()?));
        Ok(ControlFlow::Continue(()))
    };
    export.queue(&mut visit).unwrap();
    assert_eq!(found, [(QueueId(5), 7, Bytes::from_static(b"waiting"))]);

    let mut node = Node::open_on(&MemoryIndex::default(), Default::default());
    assert!(node.store.export(0).unwrap().is_none());
    for op in [domain("x.org", &["y.org"], None), mailbox("a@x.org", &["b@x.org"]), mailbox("c@x.org", &[])] {
        node.run_at(0, AT, op, b"").unwrap();
    }
    node.run_at(0, AT, Op::DeleteMailbox { address: address("c@x.org"), purge_at: Timestamp(AT + 9) }, b"")
        .unwrap();
    let export = node.store.export(0).unwrap().unwrap();
    let (mut domains, mut accounts) = (Vec::new(), Vec::new());
    export
        .domains(&mut |record| {
            domains.push(record.domain.to_string());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    export
        .accounts(&mut |(record, purge_at)| {
            accounts.push((record.address.to_string(), record.aliases.len(), purge_at));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!(domains, ["x.org"]);
    assert_eq!(
        accounts,
        [("a@x.org".to_owned(), 1, None), ("c@x.org".to_owned(), 0, Some(Timestamp(AT + 9)))]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// What a walk tells, restored into an empty mailbox in any order and with any part repeated, is what there was.
    #[test]
    fn a_mailbox_restored_from_a_walk_is_equal(
        steps in vec((crate::determinism::mailbox_op(1), vec(any::<u8>(), 0..30)), 1..60),
        order in any::<u64>(),
    ) {
        let mut from = in_memory();
        for (mut op, body) in steps {
            crate::model::set_mailbox(&mut op);
            // Refused or not: both are part of a mailbox' life.
            let _ = from.run_at(GROUP, 1_000, op, &body);
        }
        let wanted = walk(&from.store);
        // A mailbox that is new: what is made with it is there already.
        let mut to = in_memory();
        let mut work = Vec::new();
        for (info, messages) in &wanted {
            let source = FolderSource {
                uid_validity: info.uid_validity,
                uid_next: info.uid_next,
                highest_mod_seq: info.highest_mod_seq,
                keep: true,
            };
            let op = Op::RestoreFolder {
                mailbox: MAILBOX,
                folder: info.name.clone(),
                special_use: info.special_use,
                subscribed: info.subscribed,
                source: Some(source),
            };
            to.run(op).unwrap();
            for (meta, body) in messages {
                let op = Op::RestoreMessage {
                    mailbox: MAILBOX,
                    folder: info.name.clone(),
                    place: RestorePlace::Uid { source: info.uid_validity, uid: meta.uid },
                    flags: meta.flags.clone(),
                    internal_date: meta.internal_date,
                    quota: NO_QUOTA,
                };
                work.push((op, body.clone()));
            }
        }
        // Deterministic, from the case.
        let mut state = order | 1;
        for at in (1..work.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            work.swap(at, (state >> 33) as usize % (at + 1));
        }
        for (op, body) in work.iter().chain(work.iter().take(work.len() / 2)) {
            to.run_at(GROUP, 1_000, op.clone(), body).unwrap();
        }
        to.store.audit(GROUP).unwrap();
        let comparable = |all: &[(FolderInfo, Vec<(MessageMeta, Bytes)>)]| {
            let one = |(info, messages): &(FolderInfo, Vec<(MessageMeta, Bytes)>)| {
                let messages: Vec<_> = messages
                    .iter()
                    .map(|(meta, body)| (meta.uid, meta.flags.clone(), meta.internal_date, body.clone()))
                    .collect();
                ((info.name.clone(), info.uid_validity, info.uid_next, info.unseen), messages)
            };
            let missing: Vec<_> = wanted.iter().map(|(info, _)| info.name.clone()).collect();
            all.iter().filter(|(info, _)| missing.contains(&info.name)).map(one).collect::<Vec<_>>()
        };
        let found = walk(&to.store);
        prop_assert_eq!(comparable(&found), comparable(&wanted));
        for ((info, _), (old, _)) in found.iter().filter(|(info, _)| wanted.iter().any(|(old, _)| old.name == info.name)).zip(&wanted) {
            prop_assert!(info.highest_mod_seq > old.highest_mod_seq, "MODSEQ only grows");
        }
    }
}
