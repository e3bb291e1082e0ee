//! A group's state as backups read and load it.

use std::sync::Arc;

use bytes::Bytes;
use quorumail_store::*;

use crate::world::*;

/// All of a group.
fn read(store: &Store) -> (Vec<StatePair>, Vec<(StoredBody, Bytes)>) {
    let mut reader = store.backup(GROUP).unwrap();
    let (mut pairs, mut bodies) = (Vec::new(), Vec::new());
    while let Some(pair) = reader.next_pair().unwrap() {
        pairs.push(pair);
    }
    while let Some(body) = reader.next_body().unwrap() {
        bodies.push((body, reader.read(&body).unwrap()));
    }
    let bytes: usize = bodies.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(reader.totals(), (bodies.len() as u64, bytes as u64));
    (pairs, bodies)
}

fn node_with_mail(dir: &std::path::Path) -> Node {
    let mut node = Node::open(dir);
    node.append("INBOX", b"one");
    node.append("INBOX", b"two");
    let upload = UploadId(5);
    for (number, part) in [(0, &b"left "[..]), (1, b"right")] {
        node.run_at(GROUP, 1, Op::Chunk { upload, number }, part).unwrap();
    }
    let op = Box::new(append("INBOX", &[], NO_QUOTA));
    node.run(Op::WithUpload { upload, chunks: 2, op }).unwrap();
    node
}

#[test]
fn a_state_is_loaded_with_bodies_that_lie_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let from = node_with_mail(&dir.path().join("from"));
    let (pairs, bodies) = read(&from.store);
    assert!(pairs.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(bodies.len(), 4);
    assert!(bodies.is_sorted_by(|(a, _), (b, _)| a.id < b.id));

    let elsewhere = Arc::new(MemoryBodies::default());
    let to = Node::open_with(&dir.path().join("to"), Arc::clone(&elsewhere));
    let mut loader = to.store.load(GROUP);
    for StatePair { key, value, kind } in &pairs {
        assert_eq!(StateLoader::kind(key, value).unwrap(), *kind);
        match kind {
            PairKind::Body(id, len) => {
                let (_, bytes) = bodies.iter().find(|(body, _)| body.id == *id).unwrap();
                let record = elsewhere.record(GROUP, id.0, bytes.clone());
                loader.put_body(key, value, BodyRef { record, offset: 0, len: *len }).unwrap();
            }
            _ => loader.put(key, value).unwrap(),
        }
    }
    loader.finish(&7u64.to_be_bytes()).unwrap();
    assert_eq!(to.position(GROUP), 7);
    assert_eq!(to.store.fingerprint(GROUP).unwrap(), from.store.fingerprint(GROUP).unwrap());
    let folder = to.folder("INBOX").unwrap().id;
    let all = to.bodies_of(folder, &[Uid(1), Uid(2), Uid(3)]);
    assert_eq!(all, [&b"one"[..], b"two", b"left right"].map(|body| Some(Bytes::from_static(body))));
}

#[test]
fn a_load_that_is_given_up_or_makes_no_sense_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with_mail(dir.path());
    let before = node.store.fingerprint(GROUP).unwrap();
    let (pairs, _) = read(&node.store);
    let body = pairs.iter().find(|pair| matches!(pair.kind, PairKind::Body(..))).unwrap();
    let other = pairs.iter().find(|pair| pair.kind == PairKind::Message).unwrap();
    let record = node.bodies.record(GROUP, 1, Bytes::from_static(b"1234"));
    let place = BodyRef { record, offset: 0, len: 4 };
    let mut loader = node.store.load(GROUP);
    loader.put(&other.key, &other.value).unwrap();
    assert!(loader.put(&body.key, &body.value).is_err(), "without a place");
    assert!(loader.put_body(&body.key, &body.value, place).is_err(), "with another length");
    assert!(loader.put_body(&other.key, &other.value, place).is_err(), "no body");
    for key in [&[][..], &[1], &[39, 1]] {
        assert!(loader.put(key, b"x").is_err(), "a replica's own: {key:?}");
    }
    assert!(loader.put(&[60, 1], b"\xff").is_err(), "a body's key that is cut off");
    drop(loader);
    assert_eq!(node.store.fingerprint(GROUP).unwrap(), before);
    assert_eq!(node.store.backup(9).unwrap().next_pair().unwrap(), None);
}
