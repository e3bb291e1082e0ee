//! Bytes from other nodes that are not what was sent: they are understood or refused, and never the end of a node.

use std::sync::Arc;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::Index};
use quorumail_store::*;

use crate::{
    formats::{encoded, every_kind},
    world::*,
};

/// What is done to bytes: some are changed, some put in, and all from some place on cut off.
type Damage = (Vec<(Index, u8)>, Option<(Index, Vec<u8>)>, Option<Index>);

fn damage() -> impl Strategy<Value = Damage> {
    let more = prop::option::weighted(0.3, (any::<Index>(), vec(any::<u8>(), 1..12)));
    (vec((any::<Index>(), any::<u8>()), 0..4), more, prop::option::weighted(0.3, any::<Index>()))
}

fn damaged(bytes: &[u8], (changes, more, cut): Damage) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, byte) in changes {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
    }
    if let Some((at, more)) = more {
        let at = at.index(bytes.len() + 1);
        bytes.splice(at..at, more);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len() + 1));
    }
    bytes
}

/// A node with some mail, all in memory.
fn node() -> Node {
    let mut node = Node::open_on(&MemoryIndex::default(), Arc::default());
    for body in [&b"one"[..], b"two", b"three"] {
        node.append("INBOX", body);
    }
    node.run(create("Work")).unwrap();
    node
}

fn queries(inbox: FolderId) -> Vec<Query> {
    let mailbox = MAILBOX;
    let octets = Octets::Whole;
    let uids = vec![Uid(1), Uid(2), Uid(9)];
    vec![
        Query::Folders(mailbox),
        Query::Folder { mailbox, name: "INBOX".into() },
        Query::Select { mailbox, name: "Work".into() },
        Query::Changes {
            mailbox,
            folder: inbox,
            since: ModSeq(1),
            after: (ModSeq(1), Uid(0)),
            uids_from: Uid(1),
            limit: 10,
        },
        Query::Messages { mailbox, folder: inbox, uids, octets, digests: Vec::new(), max_bytes: 1000 },
        Query::Usage(vec![mailbox]),
        Query::QueueDue { now: Timestamp(5), limit: 9 },
        Query::QueueCounts,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_command_is_refused_or_is_another_command(kind in any::<Index>(), damage in damage()) {
        let kinds = every_kind();
        let (op, body) = kind.get(&kinds).clone();
        let bytes = Bytes::from(damaged(&encoded(op, body), damage));
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(Command::decode(&command.encode()).unwrap(), command);
        }
    }

    #[test]
    fn a_damaged_question_gets_an_answer_and_a_damaged_answer_is_refused_or_another(
        kind in any::<Index>(), damage in damage(), of_answer in damage()
    ) {
        let node = node();
        let queries = queries(node.folder("INBOX").unwrap().id);
        let bytes = damaged(&kind.get(&queries).encode(), damage);
        let answer = node.store.query_bytes(GROUP, bytes.into());
        prop_assert!(Reply::decode(&answer).is_ok());
        let _ = Reply::decode(&damaged(&answer, of_answer.clone()));
        let outcome = encode_outcome(&Err(Refusal::NotFound("folder".into())));
        let _ = decode_outcome(&damaged(&outcome, of_answer));
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_installed_and_what_was_there_stays_until_then(
        at in any::<Index>(), damage in damage()
    ) {
        let from = node();
        let mut reader = from.store.snapshot(GROUP).unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            chunks.push(chunk);
        }
        let which = at.index(chunks.len());
        chunks[which] = Bytes::from(damaged(&chunks[which], damage));
        let mut to = Node::open_on(&MemoryIndex::default(), Arc::default());
        to.append("INBOX", b"mine");
        let before = to.store.fingerprint(GROUP).unwrap();
        let mut writer = to.store.install(GROUP).unwrap();
        let written = chunks.into_iter().try_for_each(|chunk| writer.write(chunk));
        if written.is_err() {
            drop(writer);
            prop_assert_eq!(to.store.fingerprint(GROUP).unwrap(), before);
        } else {
            let _ = writer.finish(b"12345678");
        }
    }
}
