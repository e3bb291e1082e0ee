//! The same log makes the same state and the same answers, however it is cut into batches, whatever crashes or
//! snapshots lie between.

use proptest::{collection::vec, prelude::*};

use crate::world::*;
use quorumail_store::*;

const MAILBOXES: u64 = 3;
const NAMES: [&str; 8] = ["INBOX", "inbox", "Sent", "Trash", "a", "a/b", "a/b/c", "bad//name"];
const FLAGS: [&str; 6] = ["\\Seen", "\\Deleted", "\\Flagged", "Work", "WORK", "\\Nonsense"];
const ADDRESSES: [&str; 6] = ["a@x.org", "b@x.org", "A@X.org", "a@y.org", "b@z.org", "c@y.org"];
const DOMAINS: [&str; 4] = ["x.org", "y.org", "z.org", "w.org"];

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

fn some_flags() -> impl Strategy<Value = Flags> {
    // Mostly flags that exist.
    vec(prop_oneof![9 => 0..5usize, 1 => 5..6usize], 0..3)
        .prop_map(|picks| picks.into_iter().map(|pick| Flag(FLAGS[pick].to_owned())).collect())
}

fn uids() -> impl Strategy<Value = Vec<Uid>> {
    vec((1..12u32).prop_map(Uid), 0..6)
}

fn mode() -> impl Strategy<Value = StoreFlags> {
    prop::sample::select(vec![StoreFlags::Add, StoreFlags::Remove, StoreFlags::Replace])
}

fn quota() -> impl Strategy<Value = Quota> {
    prop_oneof![3 => Just(NO_QUOTA), 1 => (0..200u64, 0..10u64).prop_map(|(bytes, messages)| Quota { bytes, messages })]
}

/// Mostly one that nothing else uses, so that there is something to restore into.
fn restored_name() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just("r".to_owned()), 1 => name()]
}

/// Far enough from each other and from those that folders made here get.
fn source_validity() -> impl Strategy<Value = u32> {
    (1..4u32).prop_map(|number| number * 10_000)
}

fn folder_source() -> impl Strategy<Value = FolderSource> {
    // One UIDNEXT is none, one UIDVALIDITY lies in the future of these tests.
    let uid_next = prop_oneof![1 => Just(0u32), 1 => Just(1), 8 => 2..12u32, 1 => 4_090..9_000u32];
    let uid_validity = prop_oneof![8 => source_validity(), 1 => Just(u32::MAX)];
    (uid_validity, uid_next, 0..50u64, any::<bool>()).prop_map(|(uid_validity, uid_next, mod_seq, keep)| {
        FolderSource {
            uid_validity: UidValidity(uid_validity),
            uid_next: Uid(uid_next),
            highest_mod_seq: ModSeq(mod_seq),
            keep,
        }
    })
}

fn restore_place() -> impl Strategy<Value = RestorePlace> {
    prop_oneof![
        3 => (source_validity(), 0..12u32)
            .prop_map(|(source, uid)| RestorePlace::Uid { source: UidValidity(source), uid: Uid(uid) }),
        1 => (0..5u128).prop_map(|source| RestorePlace::Next { source }),
    ]
}

/// Operations of one mailbox, with what it takes to change it in every way.
pub fn mailbox_op(mailboxes: u64) -> impl Strategy<Value = Op> {
    let mailbox = || (1..=mailboxes).prop_map(MailboxId);
    let folder = || (1..10u64).prop_map(FolderId);
    prop_oneof![
        1 => mailbox().prop_map(Op::OpenMailbox),
        8 => (mailbox(), name(), some_flags(), quota()).prop_map(|(mailbox, folder, flags, quota)| {
            Op::Append { mailbox, folder, flags, internal_date: Timestamp(3), quota }
        }),
        2 => (mailbox(), name()).prop_map(|(mailbox, folder)| {
            Op::CreateFolder { mailbox, folder, special_use: None }
        }),
        1 => (mailbox(), name()).prop_map(|(mailbox, folder)| Op::DeleteFolder { mailbox, folder }),
        1 => (mailbox(), name(), name()).prop_map(|(mailbox, from, to)| Op::RenameFolder { mailbox, from, to }),
        1 => (mailbox(), name(), any::<bool>()).prop_map(|(mailbox, folder, subscribed)| {
            Op::Subscribe { mailbox, folder, subscribed }
        }),
        4 => (mailbox(), folder(), uids(), mode(), some_flags(), prop::option::of((0..40u64).prop_map(ModSeq)))
            .prop_map(|(mailbox, folder, uids, mode, flags, unchanged_since)| {
                Op::StoreFlags { mailbox, folder, uids, mode, flags, unchanged_since }
            }),
        3 => (mailbox(), folder(), uids(), name(), any::<bool>(), quota()).prop_map(
            |(mailbox, folder, uids, to, remove, quota)| Op::Copy { mailbox, folder, uids, to, remove, quota }
        ),
        2 => (mailbox(), folder(), prop::option::of(uids())).prop_map(|(mailbox, folder, uids)| {
            Op::Expunge { mailbox, folder, uids }
        }),
        2 => (mailbox(), vec(1..9u64, 0..4), prop::sample::select(&["", "", "a", "back", "bad//name"][..]), quota())
            .prop_map(|(mailbox, numbers, below, quota)| {
                Op::Undelete { mailbox, numbers, below: below.to_owned(), quota }
            }),
        1 => (mailbox(), 0..100i64)
            .prop_map(|(mailbox, before)| Op::DropDeleted { mailbox, before: Timestamp(before) }),
        2 => (mailbox(), restored_name(), prop::option::of(folder_source())).prop_map(|(mailbox, folder, source)| {
            Op::RestoreFolder { mailbox, folder, special_use: None, subscribed: true, source }
        }),
        6 => (mailbox(), restored_name(), restore_place(), some_flags(), quota()).prop_map(
            |(mailbox, folder, place, flags, quota)| {
                Op::RestoreMessage { mailbox, folder, place, flags, internal_date: Timestamp(4), quota }
            }
        ),
    ]
}

fn recipients() -> impl Strategy<Value = Vec<QueueRecipient>> {
    let classes = vec![QueueClass::Local, QueueClass::Remote, QueueClass::Bad, QueueClass::Held];
    let one = (prop::sample::select(&ADDRESSES[..]), prop::sample::select(classes), 0..50i64);
    vec(one.prop_map(|(address, class, at)| recipient(address, class, at)), 0..3)
}

fn queue_op() -> impl Strategy<Value = Op> {
    let done = vec(prop::sample::select(&ADDRESSES[..]).prop_map(address), 0..3);
    prop_oneof![
        (0..6u128, 0..9i64, recipients())
            .prop_map(|(id, at, recipients)| Op::Enqueue(entry(id, at, recipients))),
        (0..6u128, done, recipients()).prop_map(|(id, done, changed)| Op::UpdateQueue {
            id: QueueId(id),
            done,
            changed
        }),
    ]
}

fn directory_op() -> impl Strategy<Value = Op> {
    let domains = || prop::sample::select(&DOMAINS[..]);
    let addresses = || prop::sample::select(&ADDRESSES[..]);
    prop_oneof![
        2 => (domains(), vec(domains(), 0..2), prop::option::of(addresses()))
            .prop_map(|(name, aliases, catch_all)| domain(name, &aliases, catch_all)),
        2 => (domains(), vec("[a-c]", 0..3), prop::option::of(Just(StsMode::Testing))).prop_map(|(name, selectors, sts)| {
            let Op::PutDomain(record) = domain(name, &[], None) else { unreachable!("it puts a domain") };
            let key = |selector| DkimKey {
                selector,
                algorithm: DkimAlgorithm::Rsa,
                private: bytes::Bytes::from_static(b"key"),
            };
            Op::PutSigningDomain { record, keys: selectors.into_iter().map(key).collect(), sts }
        }),
        1 => domains().prop_map(|name| Op::DeleteDomain(name.parse().unwrap())),
        6 => (addresses(), vec(addresses(), 0..2)).prop_map(|(text, aliases)| mailbox(text, &aliases)),
        2 => (addresses(), 0..100i64)
            .prop_map(|(text, at)| Op::DeleteMailbox { address: address(text), purge_at: Timestamp(at) }),
        1 => (1..8u64).prop_map(|id| Op::ForgetMailbox(MailboxId(id))),
    ]
}

fn upload_op() -> impl Strategy<Value = Op> {
    let upload = || (0..3u128).prop_map(UploadId);
    prop_oneof![
        4 => (upload(), 0..3u32).prop_map(|(upload, number)| Op::Chunk { upload, number }),
        3 => (upload(), 0..4u32, prop_oneof![4 => mailbox_op(MAILBOXES), 1 => queue_op()])
            .prop_map(|(upload, chunks, op)| Op::WithUpload { upload, chunks, op: Box::new(op) }),
        1 => (0..100i64).prop_map(|at| Op::DropChunks(Timestamp(at))),
    ]
}

pub fn partition_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => upload_op(),
        12 => mailbox_op(MAILBOXES),
        4 => queue_op(),
        1 => (1..=MAILBOXES).prop_map(|id| Op::PurgeMailbox(MailboxId(id))),
    ]
}

/// A log: some ids come twice, indexes have gaps (entries of consensus itself).
pub fn log(op: impl Strategy<Value = Op>) -> impl Strategy<Value = Vec<(u64, Command)>> {
    let one = (op, 0..400u128, 0..100i64, vec(any::<u8>(), 0..40), 1..3u64);
    vec(one, 1..60).prop_map(|entries| {
        let mut index = 0;
        let number = |(op, id, at, body, step): (Op, u128, i64, Vec<u8>, u64)| {
            index += step;
            (index, Command { id: CommandId(id), at: Timestamp(at), op, body: body.into() })
        };
        entries.into_iter().map(number).collect()
    })
}

/// Applies a log in batches of the sizes given, again and again; answers the outcomes.
fn in_batches(node: &Node, group: u32, log: &[(u64, Command)], sizes: &[usize]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut rest = log;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, after) = rest.split_at((*size).min(rest.len()));
        outcomes.extend(node.apply(group, batch));
        rest = after;
    }
    outcomes
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What the directory in memory says.
fn directory(store: &Store) -> impl PartialEq + std::fmt::Debug + use<> {
    let directory = store.directory();
    let addresses =
        ADDRESSES.map(|text| (directory.resolve(&address(text)), directory.login(&address(text))));
    let keys = DOMAINS.map(|name| directory.dkim_keys(&name.parse().unwrap()));
    (directory.domains(), keys, directory.mailboxes(), directory.deleted(), addresses)
}

fn check(group: u32, log: &[(u64, Command)], sizes: &[usize], cut: prop::sample::Index, again: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // In memory, as in simulation; the others are on disk.
    let single = Node::open_on(&MemoryIndex::default(), Default::default());
    let outcomes = in_batches(&single, group, log, &[1]);
    let fingerprint = single.store.fingerprint(group).unwrap();
    // Every body has as many references as are counted, and every counter is the sum of what it counts.
    single.store.audit(group).unwrap();

    let batched = Node::open(&path("batched"));
    assert_eq!(in_batches(&batched, group, log, sizes), outcomes);
    assert_eq!(batched.store.fingerprint(group).unwrap(), fingerprint);

    // A crash: what is on disk is as it was at a checkpoint, and the log is applied from that position on; even
    // from some entries before it, the answers and the state are the same. Not from before an upload, which takes
    // whatever chunks are there: one that came after it would be gone.
    let cut = cut.index(log.len());
    let crashing = Node::open(&path("crashing"));
    in_batches(&crashing, group, &log[..cut], sizes);
    crashing.store.checkpoint().unwrap();
    copy_dir(&path("crashing"), &path("restarted"));
    in_batches(&crashing, group, &log[cut..], sizes);
    drop(crashing.store);
    let restarted = Node::open_with(&path("restarted"), crashing.bodies);
    let reached = cut.checked_sub(1).map_or(0, |last| log[last].0);
    assert_eq!(restarted.position(group), reached);
    let upload = |(_, command): &&(u64, Command)| matches!(command.op, Op::WithUpload { .. });
    let from = cut - log[..cut].iter().rev().take(again).take_while(|entry| !upload(entry)).count();
    assert_eq!(in_batches(&restarted, group, &log[from..], sizes), outcomes[from..]);
    assert_eq!(restarted.store.fingerprint(group).unwrap(), fingerprint);
    assert_eq!(directory(&restarted.store), directory(&single.store));

    // The same crash in memory, which also keeps some of what was not durable.
    let index = MemoryIndex::default();
    let crashing = Node::open_on(&index, Default::default());
    in_batches(&crashing, group, &log[..cut], sizes);
    crashing.store.checkpoint().unwrap();
    in_batches(&crashing, group, &log[cut..], &[1]);
    index.crash(again);
    assert!(
        crashing.store.apply(group, Vec::new(), b"").is_err(),
        "a store of before the crash writes no more"
    );
    let restarted = Node::open_on(&index, crashing.bodies);
    // The format and the group are the first batches when nothing was applied before the checkpoint.
    let kept = if cut == 0 { again.saturating_sub(2) } else { again };
    let from = (cut + kept).min(log.len());
    assert_eq!(restarted.position(group), from.checked_sub(1).map_or(0, |last| log[last].0));
    assert_eq!(in_batches(&restarted, group, &log[from..], sizes), outcomes[from..]);
    assert_eq!(restarted.store.fingerprint(group).unwrap(), fingerprint);
    assert_eq!(directory(&restarted.store), directory(&single.store));

    // A replica that starts from a snapshot over something else.
    let installed = Node::open(&path("installed"));
    in_batches(&installed, group, &log[log.len() / 2..], &[3]);
    let partly = Node::open(&path("partly"));
    in_batches(&partly, group, &log[..cut], sizes);
    transfer(&partly.store, &installed.store, group);
    assert_eq!(in_batches(&installed, group, &log[cut..], sizes), outcomes[cut..]);
    assert_eq!(installed.store.fingerprint(group).unwrap(), fingerprint);
    installed.store.audit(group).unwrap();
    assert_eq!(directory(&installed.store), directory(&single.store));
    assert_eq!(
        installed.store.query(group, &Query::QueueCounts),
        single.store.query(group, &Query::QueueCounts)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn state_machine_is_deterministic(
        log in log(partition_op()),
        sizes in vec(1..9usize, 1..4),
        cut in any::<prop::sample::Index>(),
        again in 0..5usize,
    ) {
        check(GROUP, &log, &sizes, cut, again);
    }

    #[test]
    fn directory_is_deterministic(
        log in log(directory_op()),
        sizes in vec(1..9usize, 1..4),
        cut in any::<prop::sample::Index>(),
        again in 0..5usize,
    ) {
        check(0, &log, &sizes, cut, again);
    }
}
