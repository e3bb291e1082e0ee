//! Digests are computed once, and are nobody's but their replica's.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicUsize, Ordering},
};

use quorumail_store::*;

use crate::world::*;

const HEAD: u8 = 1;
const WHOLE: u8 = 2;

/// The first line, and the whole message, both in capitals.
struct Capitals {
    version: AtomicU8,
    computed: AtomicUsize,
}

impl Digests for Capitals {
    fn version(&self) -> u8 {
        self.version.load(Ordering::Relaxed)
    }

    fn prefix(&self, kind: u8) -> Option<u32> {
        (kind == HEAD).then_some(4)
    }

    fn digest(&self, kind: u8, octets: &[u8], whole: bool) -> Option<Vec<u8>> {
        let end = match (kind, octets.iter().position(|octet| *octet == b'\n')) {
            (HEAD, Some(end)) => end,
            (HEAD | WHOLE, _) if whole => octets.len(),
            _ => return None,
        };
        self.computed.fetch_add(1, Ordering::Relaxed);
        Some(octets[..end].to_ascii_uppercase())
    }
}

fn node() -> (tempfile::TempDir, Node, Arc<Capitals>) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&dir.path().join("index"));
    let capitals = Arc::new(Capitals { version: AtomicU8::new(1), computed: AtomicUsize::new(0) });
    node.store.digest_with(Arc::clone(&capitals) as Arc<dyn Digests>);
    (dir, node, capitals)
}

fn ask(node: &Node, folder: FolderId, uids: &[u32], kinds: &[u8]) -> Vec<Option<String>> {
    let uids: Vec<_> = uids.iter().copied().map(Uid).collect();
    let found = node.digested(folder, &uids, Octets::Nothing, kinds, 1_000_000);
    let text = |digests: Vec<bytes::Bytes>| {
        digests.iter().map(|digest| String::from_utf8(digest.to_vec()).unwrap()).collect::<Vec<_>>().join("|")
    };
    found.into_iter().map(|found| found.map(|found| text(found.digests))).collect()
}

#[test]
fn a_digest_is_computed_once_and_comes_along_with_copies() {
    let (_dir, mut node, capitals) = node();
    for body in ["a\nb", "long line\nb", "c", "d\n", "e\n"] {
        node.append("INBOX", body.as_bytes());
    }
    let inbox = node.folder("INBOX").unwrap().id;
    let computed = || capitals.computed.swap(0, Ordering::Relaxed);
    let some = |text: &str| Some(text.to_owned());
    let before = node.store.fingerprint(GROUP).unwrap();

    assert_eq!(ask(&node, inbox, &[1, 2], &[HEAD]), [some("A"), some("LONG LINE")]);
    assert_eq!(computed(), 2);
    // The other kind is added to what is kept; all of them are read in one go, with what is missing in between.
    let all =
        [some("A\nB|A"), some("LONG LINE\nB|LONG LINE"), some("C|C"), some("D\n|D"), some("E\n|E"), None];
    assert_eq!(ask(&node, inbox, &[1, 2, 3, 4, 5, 6], &[WHOLE, HEAD]), all);
    assert_eq!(computed(), 8);
    assert_eq!(ask(&node, inbox, &[1, 2, 3, 4, 5, 6], &[WHOLE, HEAD]), all);
    assert_eq!(ask(&node, inbox, &[5, 1], &[HEAD]), [some("E"), some("A")]);
    assert_eq!(computed(), 0);
    assert_eq!(node.store.fingerprint(GROUP).unwrap(), before, "they are no part of the state");

    node.run(copy(inbox, &[Uid(2)], "Archive", false, NO_QUOTA)).unwrap();
    node.run(copy(inbox, &[Uid(1)], "Archive", true, NO_QUOTA)).unwrap();
    let archive = node.folder("Archive").unwrap().id;
    assert_eq!(ask(&node, archive, &[1, 2], &[HEAD]), [some("LONG LINE"), some("A")]);
    assert_eq!(ask(&node, inbox, &[1, 2], &[HEAD]), [None, some("LONG LINE")]);
    assert_eq!(computed(), 0);

    capitals.version.store(2, Ordering::Relaxed);
    assert_eq!(ask(&node, inbox, &[2], &[HEAD]), [some("LONG LINE")]);
    assert_eq!(ask(&node, inbox, &[2], &[HEAD]), [some("LONG LINE")]);
    assert_eq!(computed(), 1, "those of an earlier version are computed again");
}

#[test]
fn digests_are_in_no_snapshot_and_go_with_their_mailbox() {
    let (_dir, mut node, capitals) = node();
    node.append("INBOX", b"a\nb");
    let plain = node.store.snapshot(GROUP).unwrap().next_chunk().unwrap();
    let inbox = node.folder("INBOX").unwrap().id;
    ask(&node, inbox, &[1], &[HEAD]);
    assert_eq!(node.store.snapshot(GROUP).unwrap().next_chunk().unwrap(), plain);

    node.run(Op::PurgeMailbox(MAILBOX)).unwrap();
    node.append("INBOX", b"x\n");
    assert_eq!(ask(&node, inbox, &[1], &[HEAD]), [Some("X".to_owned())]);
    assert_eq!(capitals.computed.load(Ordering::Relaxed), 2);
}

#[test]
fn a_kind_that_nobody_can_compute_is_an_error_and_no_panic() {
    let (_dir, mut node, _) = node();
    node.append("INBOX", b"a\nb");
    let folder = node.folder("INBOX").unwrap().id;
    let (uids, octets, digests) = (vec![Uid(1)], Octets::Nothing, vec![99]);
    let query = Query::Messages { mailbox: MAILBOX, folder, uids, octets, digests, max_bytes: 1 };
    assert!(matches!(node.store.query(GROUP, &query), Reply::Unreadable(_)));
}
