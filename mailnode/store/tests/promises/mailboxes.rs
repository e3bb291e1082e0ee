//! What a mailbox promises to IMAP clients.

use crate::world::*;
use quorumail_store::*;

fn node() -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&dir.path().join("index"));
    (dir, node)
}

fn uids(messages: &[MessageMeta]) -> Vec<u32> {
    messages.iter().map(|message| message.uid.0).collect()
}

#[test]
fn a_new_mailbox_has_inbox_and_special_folders() {
    let (_dir, mut node) = node();
    assert!(node.folders().is_empty());

    node.append("inbox", b"first");

    let names: Vec<_> = node.folders().into_iter().map(|f| (f.name, f.special_use, f.subscribed)).collect();
    let special = |name: &str, special_use| (name.to_owned(), Some(special_use), true);
    assert_eq!(
        names,
        [
            special("Archive", SpecialUse::Archive),
            special("Drafts", SpecialUse::Drafts),
            ("INBOX".to_owned(), None, true),
            special("Junk", SpecialUse::Junk),
            special("Sent", SpecialUse::Sent),
            special("Trash", SpecialUse::Trash),
        ]
    );
}

#[test]
fn opening_makes_what_is_missing_and_nothing_twice() {
    let (_dir, mut node) = node();
    node.run(Op::OpenMailbox(MAILBOX)).unwrap();
    let rename =
        |from: &str, to: &str| Op::RenameFolder { mailbox: MAILBOX, from: from.into(), to: to.into() };
    node.run(rename("Trash", "Papierkorb")).unwrap();
    node.run(Op::DeleteFolder { mailbox: MAILBOX, folder: "Junk".into() }).unwrap();
    node.run(Op::OpenMailbox(MAILBOX)).unwrap();
    assert!(node.folder("Trash").is_none());
    assert_eq!(node.folder("Papierkorb").unwrap().special_use, Some(SpecialUse::Trash));
    assert_eq!(node.folder("Junk").unwrap().special_use, Some(SpecialUse::Junk));
}

#[test]
fn a_body_is_read_back_whole_and_in_part() {
    let (_dir, mut node) = node();
    let first = node.append("INBOX", b"Subject: a\r\n\r\nhello");
    let second = node.append("INBOX", b"");
    let inbox = node.folder("INBOX").unwrap().id;

    let bodies = node.bodies_of(inbox, &[second, Uid(99), first]);
    assert_eq!(bodies[0].as_deref(), Some(&b""[..]));
    assert_eq!(bodies[1], None);
    assert_eq!(bodies[2].as_deref(), Some(&b"Subject: a\r\n\r\nhello"[..]));

    let found = node.found(inbox, &[first], Octets::Prefix(7), 1);
    assert_eq!(found[0].as_ref().unwrap().octets, "Subject");
}

#[test]
fn bodies_stop_at_the_bound_but_never_before_the_first() {
    let (_dir, mut node) = node();
    let uids: Vec<_> = (0..4).map(|_| node.append("INBOX", &[b'x'; 100])).collect();
    let folder = node.folder("INBOX").unwrap().id;
    // In one go, and one by one.
    for uids in [uids.clone(), uids.into_iter().rev().collect()] {
        let ask = |max_bytes| node.found(folder, &uids, Octets::Whole, max_bytes).len();
        assert_eq!([ask(0), ask(100), ask(299), ask(400)], [1, 1, 2, 4]);
    }
}

#[test]
fn messages_that_are_gone_are_told_in_their_place() {
    let (_dir, mut node) = node();
    for _ in 0..12 {
        node.append("INBOX", b"x");
    }
    let folder = node.folder("INBOX").unwrap().id;
    let gone = [1, 4, 5, 11, 12].map(Uid);
    node.run(store_flags(folder, &gone, StoreFlags::Add, &["\\Deleted"])).unwrap();
    node.run(Op::Expunge { mailbox: MAILBOX, folder, uids: None }).unwrap();

    let there = |uids: &[u32]| -> Vec<u32> {
        let uids: Vec<_> = uids.iter().copied().map(Uid).collect();
        let found = node.found(folder, &uids, Octets::Nothing, 0);
        assert_eq!(found.len(), uids.len());
        let shown = |(uid, found): (&Uid, &Option<FoundMessage>)| {
            found.as_ref().map(|found| assert_eq!(found.meta.uid, *uid)).map(|()| uid.0)
        };
        uids.iter().zip(&found).filter_map(shown).collect()
    };
    let all: Vec<u32> = (1..=14).collect();
    assert_eq!(there(&all), [2, 3, 6, 7, 8, 9, 10]);
    assert_eq!(there(&[11, 12, 13, 14]), [0; 0]);
    assert_eq!(there(&[1, 3, 5, 7]), [3, 7]);
    assert_eq!(uids_of(&node.select("inbox").uids), [2, 3, 6, 7, 8, 9, 10].map(Uid));
}

#[test]
fn a_folder_lists_the_keywords_it_has_seen() {
    let (_dir, mut node) = node();
    node.run_at(GROUP, 1, append("INBOX", &["\\Seen", "Work"], NO_QUOTA), b"x").unwrap();
    let inbox = node.folder("INBOX").unwrap().id;
    node.run(store_flags(inbox, &[Uid(1)], StoreFlags::Replace, &["WORK", "$Junk"])).unwrap();
    assert_eq!(node.select("INBOX").keywords, ["Work", "$Junk"]);
    node.run(copy(inbox, &[Uid(1)], "Archive", true, NO_QUOTA)).unwrap();
    assert_eq!(node.select("Archive").keywords, ["$Junk", "Work"]);
    assert!(node.select("Sent").keywords.is_empty());
}

/// Most messages that one command takes out.
const STEP: u32 = 1000;

/// Puts messages with `\Deleted` into a folder, in one batch.
fn fill(node: &mut Node, folder: &str, messages: u64) {
    let first = node.index + 1;
    let command = |n: u64| {
        let id = CommandId(1 << 100 | u128::from(first + n));
        let op = append(folder, &["\\Deleted"], NO_QUOTA);
        (first + n, Command { id, at: Timestamp(1), op, body: "x".into() })
    };
    let batch: Vec<_> = (0..messages).map(command).collect();
    assert!(node.apply(GROUP, &batch).iter().all(Result::is_ok));
    node.index += messages;
}

#[test]
fn a_folder_is_deleted_in_steps_of_which_each_leaves_it_whole() {
    let (_dir, mut node) = node();
    node.run(create("Big")).unwrap();
    fill(&mut node, "Big", u64::from(2 * STEP + 500));
    node.append("INBOX", b"kept");
    let delete = || Op::DeleteFolder { mailbox: MAILBOX, folder: "Big".into() };
    for left in [STEP + 500, 500] {
        assert_eq!(node.run(delete()), Ok(Applied::More));
        assert_eq!(node.folder("Big").unwrap().messages, left);
        assert_eq!(node.usage().messages, u64::from(left) + 1);
        node.store.audit(GROUP).unwrap();
    }
    assert_eq!(node.run(delete()), Ok(Applied::Done));
    assert!(node.folder("Big").is_none());
    assert_eq!(node.usage(), Usage { bytes: 4, messages: 1 });
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_mailbox_is_purged_in_steps_of_which_each_leaves_it_whole() {
    let (_dir, mut node) = node();
    for (folder, messages) in [("A", 600), ("B", 600), ("C", u64::from(2 * STEP))] {
        node.run(create(folder)).unwrap();
        fill(&mut node, folder, messages);
    }
    let mut left = node.usage().messages;
    let mut steps = 0;
    while node.run(Op::PurgeMailbox(MAILBOX)) == Ok(Applied::More) {
        let now = node.usage().messages;
        assert!(now < left && left - now <= u64::from(STEP), "{left} messages became {now}");
        node.store.audit(GROUP).unwrap();
        (left, steps) = (now, steps + 1);
    }
    assert!(left <= u64::from(STEP) && steps >= 2, "{left} messages went with the last of {steps} steps");
    assert!(node.folders().is_empty());
    assert_eq!(node.usage(), Usage::default());
    node.store.audit(GROUP).unwrap();
    assert_eq!(node.run(Op::PurgeMailbox(MAILBOX)), Ok(Applied::Done), "once more changes nothing");
}

#[test]
fn expunge_goes_on_until_none_is_left() {
    let (_dir, mut node) = node();
    fill(&mut node, "INBOX", u64::from(STEP + 500));
    let folder = node.folder("INBOX").unwrap().id;
    let mut expunge = || match node.run(Op::Expunge { mailbox: MAILBOX, folder, uids: None }) {
        Ok(Applied::Expunged(uids)) => uids.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!([expunge(), expunge(), expunge()], [STEP as usize, 500, 0]);
    assert_eq!(node.usage(), Usage::default());
    assert!(uids_of(&node.select("INBOX").uids).is_empty());
}

#[test]
fn uids_are_never_reused() {
    let (_dir, mut node) = node();
    assert_eq!(node.append("INBOX", b"1"), Uid(1));
    assert_eq!(node.append("INBOX", b"2"), Uid(2));
    let inbox = node.folder("INBOX").unwrap();
    node.run(store_flags(inbox.id, &[Uid(1), Uid(2)], StoreFlags::Add, &["\\Deleted"])).unwrap();
    let gone = node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox.id, uids: None }).unwrap();
    assert_eq!(gone, Applied::Expunged(vec![Uid(1), Uid(2)]));
    assert_eq!(node.append("INBOX", b"3"), Uid(3));

    // Moving a message into its own folder gives it a new UID as well.
    let moved = node.run(copy(inbox.id, &[Uid(3)], "INBOX", true, NO_QUOTA)).unwrap();
    assert_eq!(moved, Applied::Copied { uid_validity: inbox.uid_validity, uids: vec![(Uid(3), Uid(4))] });
    assert_eq!(uids(&node.messages(inbox.id)), [4]);

    // A folder that is made again under its old name has a higher UIDVALIDITY, at the same instant and even when
    // the clock of the proposer went back.
    node.run(create("Work")).unwrap();
    let old = node.folder("Work").unwrap();
    node.run(Op::DeleteFolder { mailbox: MAILBOX, folder: "Work".into() }).unwrap();
    node.run_at(GROUP, 5_000, create("Work"), b"").unwrap();
    let new = node.folder("Work").unwrap();
    assert!(new.uid_validity > old.uid_validity && new.id > old.id);
}

#[test]
fn changes_since_tells_vanished() {
    let (_dir, mut node) = node();
    for _ in 0..5 {
        node.append("INBOX", b"x");
    }
    let inbox = node.folder("INBOX").unwrap();
    let since = inbox.highest_mod_seq;
    node.run(store_flags(inbox.id, &[Uid(2), Uid(4)], StoreFlags::Add, &["\\Deleted"])).unwrap();
    node.run(store_flags(inbox.id, &[Uid(3)], StoreFlags::Add, &["\\Seen"])).unwrap();
    node.run(Op::Expunge { mailbox: MAILBOX, folder: inbox.id, uids: Some(vec![Uid(4), Uid(5)]) }).unwrap();
    node.append("INBOX", b"new");

    let changes = node.changes(inbox.id, since);
    assert_eq!(uids(&changes.changed), [2, 3, 6]);
    assert_eq!(changes.vanished, Some(vec![Uid(4)]));
    assert_eq!(changes.folder, node.folder("INBOX").unwrap());

    let later = node.changes(inbox.id, changes.folder.highest_mod_seq);
    assert_eq!((later.changed.len(), later.vanished), (0, Some(vec![])));
}

#[test]
fn expunges_beyond_the_bound_are_forgotten_and_said_to_be() {
    let (_dir, mut node) = node();
    node.append("INBOX", b"kept");
    let inbox = node.folder("INBOX").unwrap();
    let since = inbox.highest_mod_seq;
    let mut middle = since;
    // Three rounds of 4,000: two of them fit in the 10,000 that are remembered.
    for round in 0..3 {
        let ops = (0..4000).map(|_| append("INBOX", &["\\Deleted"], NO_QUOTA));
        let expunge = || Op::Expunge { mailbox: MAILBOX, folder: inbox.id, uids: None };
        let ops = ops.chain((0..4000 / STEP).map(|_| expunge()));
        let batch: Vec<_> = ops
            .enumerate()
            .map(|(n, op)| {
                let n = round * 5000 + n as u64 + 10;
                let id = CommandId(1 << 100 | u128::from(n));
                (n, Command { id, at: Timestamp(1), op, body: "x".into() })
            })
            .collect();
        assert!(node.apply(GROUP, &batch).iter().all(Result::is_ok));
        if round == 0 {
            middle = node.folder("INBOX").unwrap().highest_mod_seq;
        }
    }
    let changes = node.changes(inbox.id, since);
    assert_eq!(changes.vanished, None);
    assert_eq!(uids_of(&changes.uids), [Uid(1)], "all that are there, instead");
    let changes = node.changes(inbox.id, middle);
    assert_eq!(changes.vanished.unwrap().len(), 8000);
    assert_eq!(node.usage(), Usage { bytes: 4, messages: 1 });
}

#[test]
fn store_leaves_alone_what_changed_since() {
    let (_dir, mut node) = node();
    node.append("INBOX", b"1");
    let inbox = node.folder("INBOX").unwrap();
    node.append("INBOX", b"2");
    let op = Op::StoreFlags {
        mailbox: MAILBOX,
        folder: inbox.id,
        uids: vec![Uid(2), Uid(1), Uid(9)],
        mode: StoreFlags::Add,
        flags: flags(&["\\Flagged"]),
        unchanged_since: Some(inbox.highest_mod_seq),
    };
    let Ok(Applied::Stored { mod_seq, changed, modified }) = node.run(op) else { panic!("refused") };
    let highest = node.folder("INBOX").unwrap().highest_mod_seq;
    assert_eq!(mod_seq, Some(highest));
    assert_eq!(changed, [(Uid(1), highest, flags(&["\\Flagged"]))]);
    assert_eq!(modified, [Uid(2)]);
}

#[test]
fn quota_is_exact() {
    let (_dir, mut node) = node();
    let quota = Quota { bytes: 10, messages: 3 };
    assert!(node.run_at(GROUP, 1, append("INBOX", &[], quota), b"12345").is_ok());
    assert_eq!(node.run_at(GROUP, 1, append("INBOX", &[], quota), b"123456"), Err(Refusal::OverQuota));
    assert!(node.run_at(GROUP, 1, append("INBOX", &[], quota), b"12345").is_ok());
    assert_eq!(node.usage(), Usage { bytes: 10, messages: 2 });

    let inbox = node.folder("INBOX").unwrap().id;
    assert_eq!(node.run(copy(inbox, &[Uid(1)], "Archive", false, quota)), Err(Refusal::OverQuota));
    assert!(node.run(copy(inbox, &[Uid(1)], "Archive", true, quota)).is_ok());
    assert!(node.run_at(GROUP, 1, append("INBOX", &[], quota), b"").is_ok());
    assert_eq!(node.run_at(GROUP, 1, append("INBOX", &[], quota), b""), Err(Refusal::OverQuota));
    assert_eq!(node.usage(), Usage { bytes: 10, messages: 3 });
}

#[test]
fn a_refused_command_changes_nothing() {
    let (_dir, mut node) = node();
    let too_small = Quota { bytes: 1, messages: 0 };
    assert_eq!(node.run_at(GROUP, 1, append("INBOX", &[], too_small), b"12"), Err(Refusal::OverQuota));
    assert!(node.folders().is_empty(), "the mailbox was not even opened");

    node.run(Op::OpenMailbox(MAILBOX)).unwrap();
    let before = node.folders();
    for op in [
        create("INBOX"),
        create("a//b"),
        create("a/\u{7}"),
        Op::DeleteFolder { mailbox: MAILBOX, folder: "inbox".into() },
        Op::DeleteFolder { mailbox: MAILBOX, folder: "none".into() },
        Op::RenameFolder { mailbox: MAILBOX, from: "Sent".into(), to: "Sent/a/b".into() },
        Op::RenameFolder { mailbox: MAILBOX, from: "Sent".into(), to: "Trash".into() },
        Op::RenameFolder { mailbox: MAILBOX, from: "none".into(), to: "x".into() },
        Op::CreateFolder { mailbox: MAILBOX, folder: "x/y".into(), special_use: Some(SpecialUse::Sent) },
        Op::Subscribe { mailbox: MAILBOX, folder: "none".into(), subscribed: true },
        append("none", &[], NO_QUOTA),
        append("INBOX", &["\\Nonsense"], NO_QUOTA),
        store_flags(FolderId(99), &[Uid(1)], StoreFlags::Add, &[]),
        domain("example.org", &[], None),
    ] {
        let refused = node.run(op.clone());
        assert!(refused.is_err(), "{op:?}");
        assert_eq!(node.folders(), before, "{op:?}");
    }
}

#[test]
fn renaming_keeps_folders_below_and_their_messages() {
    let (_dir, mut node) = node();
    node.run(create("a/b/c")).unwrap();
    node.append("a/b/c", b"x");
    let before = node.folder("a/b/c").unwrap();
    node.run(Op::RenameFolder { mailbox: MAILBOX, from: "a/b".into(), to: "new/place".into() }).unwrap();
    assert!(node.folder("a/b").is_none() && node.folder("a").is_some() && node.folder("new").is_some());
    assert_eq!(node.folder("new/place/c").unwrap(), FolderInfo { name: "new/place/c".into(), ..before });
}

#[test]
fn renaming_inbox_moves_its_messages() {
    let (_dir, mut node) = node();
    node.append("INBOX", b"1");
    node.append("INBOX", b"22");
    node.run(create("INBOX/below")).unwrap();
    node.run(Op::RenameFolder { mailbox: MAILBOX, from: "INBOX".into(), to: "old/mail".into() }).unwrap();
    let (inbox, old) = (node.folder("INBOX").unwrap(), node.folder("old/mail").unwrap());
    assert_eq!((inbox.messages, inbox.uid_next, old.messages, old.bytes), (0, Uid(3), 2, 3));
    assert!(node.folder("INBOX/below").is_some());
    let bodies = node.bodies_of(old.id, &[Uid(1), Uid(2)]);
    assert_eq!(bodies.iter().flatten().map(|b| &b[..]).collect::<Vec<_>>(), [&b"1"[..], b"22"]);
    assert_eq!(node.changes(inbox.id, ModSeq(0)).vanished, Some(vec![Uid(1), Uid(2)]));
}

#[test]
fn renaming_a_large_inbox_moves_what_one_command_may_and_the_rest_is_left_to_be_moved() {
    let (_dir, mut node) = node();
    fill(&mut node, "INBOX", u64::from(2 * STEP + 500));
    let usage = node.usage();
    let rename = || Op::RenameFolder { mailbox: MAILBOX, from: "INBOX".into(), to: "Old".into() };
    assert_eq!(node.run(rename()), Ok(Applied::More));
    // Nothing is lost or there twice after each step, whoever looks, and nobody can rename there again.
    assert!(matches!(node.run(rename()), Err(Refusal::AlreadyExists(_))));
    let mut moved = STEP;
    loop {
        let (inbox, old) = (node.folder("INBOX").unwrap(), node.folder("Old").unwrap());
        assert_eq!((inbox.messages, old.messages), (2 * STEP + 500 - moved, moved));
        assert_eq!((old.uid_next, node.usage()), (Uid(moved + 1), usage));
        node.store.audit(GROUP).unwrap();
        let left: Vec<Uid> = node.messages(inbox.id).iter().map(|message| message.uid).collect();
        let Some(step) = left.chunks(STEP as usize).next() else { break };
        assert_eq!(step[0], Uid(moved + 1));
        node.run(copy(inbox.id, step, "Old", true, Quota { bytes: 1, messages: 1 })).unwrap();
        moved += step.len() as u32;
    }
    assert_eq!(moved, 2 * STEP + 500);
}

#[test]
fn a_purged_mailbox_leaves_nothing() {
    let (_dir, mut node) = node();
    let empty = node.store.fingerprint(2).unwrap();
    node.append("INBOX", b"1");
    let inbox = node.folder("INBOX").unwrap().id;
    node.run(copy(inbox, &[Uid(1)], "Sent", true, NO_QUOTA)).unwrap();
    node.run(Op::PurgeMailbox(MAILBOX)).unwrap();
    assert!(node.folders().is_empty());
    assert_eq!(node.usage(), Usage::default());
    assert_ne!(node.store.fingerprint(GROUP).unwrap(), empty, "the commands are still remembered");
    // A mailbox of another id in the same partition starts from nothing, too.
    assert_eq!(node.append("INBOX", b"2"), Uid(1));
}

#[test]
fn watchers_hear_of_each_folder_once_a_batch() {
    let (_dir, mut node) = node();
    node.run(Op::OpenMailbox(MAILBOX)).unwrap();
    let mut heard = node.store.subscribe();
    let command = |n: u128, op| Command { id: CommandId(1000 + n), at: Timestamp(1), op, body: "x".into() };
    let remote = entry(1, 1, vec![recipient("a@b.org", QueueClass::Remote, 1)]);
    node.apply(
        GROUP,
        &[
            (50, command(1, append("INBOX", &[], NO_QUOTA))),
            (51, command(2, append("INBOX", &[], NO_QUOTA))),
            (52, command(3, Op::Enqueue(remote))),
            (53, command(4, append("none", &[], NO_QUOTA))),
        ],
    );
    let folder = node.folder("INBOX").unwrap().id;
    assert_eq!(heard.try_recv().unwrap(), Change::Folder { group: GROUP, mailbox: MAILBOX, folder });
    assert_eq!(heard.try_recv().unwrap(), Change::Queue { group: GROUP });
    assert!(heard.try_recv().is_err());
}

#[test]
fn repeated_command_is_applied_once() {
    let (_dir, mut node) = node();
    let command = |id: u128| Command {
        id: CommandId(id),
        at: Timestamp(1),
        op: append("INBOX", &[], NO_QUOTA),
        body: "x".into(),
    };
    let first = node.propose(GROUP, command(1));
    assert_eq!(node.propose(GROUP, command(1)), first);
    // In one batch as well, and for a refusal, even when it would be accepted now.
    let later = Command { op: append("Later", &[], NO_QUOTA), ..command(2) };
    let refused = node.propose(GROUP, later.clone());
    assert!(refused.is_err());
    node.run(create("Later")).unwrap();
    assert_eq!(node.propose(GROUP, later), refused);
    let twice = node.apply(GROUP, &[(100, command(3)), (101, command(3))]);
    assert_eq!(twice[0], twice[1]);
    assert_eq!(node.folder("INBOX").unwrap().messages, 2);

    // Remembered up to the last index of the window, and forgotten after it.
    let edge = 100 + REMEMBERED_COMMANDS;
    assert_eq!(node.apply(GROUP, &[(edge - 1, command(3))])[0], twice[0]);
    assert_ne!(node.apply(GROUP, &[(edge, command(3))])[0], twice[0]);
    assert_eq!(node.folder("INBOX").unwrap().messages, 3);
}

#[test]
fn bytes_that_are_no_command_are_refused_and_later_formats_stop_the_group() {
    let (_dir, node) = node();
    let log = |bytes: &'static [u8]| {
        let command = bytes::Bytes::from_static(bytes);
        LogCommand { index: 1, record: node.bodies.record(GROUP, 1, command.clone()), command, offset: 0 }
    };
    let outcome = node.store.apply(GROUP, vec![log(b"\x04garbage")], b"1").unwrap();
    assert!(matches!(decode_outcome(&outcome[0]), Ok(Err(Refusal::Invalid(_)))));
    assert!(node.store.apply(GROUP, vec![log(b"\x08....")], b"2").is_err());
    assert_eq!(node.store.position(GROUP).unwrap(), Some(b"1".to_vec()));
    assert!(matches!(Reply::decode(&node.store.query_bytes(GROUP, "?".into())), Ok(Reply::Unreadable(_))));
}
