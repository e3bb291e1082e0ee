//! What the directory promises: every name has one owner, and addresses mean what the records say.

use crate::world::*;
use quorumail_store::*;

fn node() -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&dir.path().join("index"));
    (dir, node)
}

fn put(node: &mut Node, op: Op) -> Outcome {
    node.run_at(0, 1_000, op, b"")
}

fn id_of(outcome: Outcome) -> (u64, u32) {
    match outcome {
        Ok(Applied::Mailbox { id, partition }) => (id.0, partition.0),
        other => panic!("{other:?}"),
    }
}

fn resolved(node: &Node, text: &str) -> Option<u64> {
    match node.store.directory().resolve(&address(text)) {
        Resolution::Mailbox(record) => Some(record.id.0),
        Resolution::List(list, _) => panic!("{text} is list {}", list.address),
        Resolution::NoSuchUser => None,
        Resolution::NotLocal => panic!("{text} is not local"),
    }
}

#[test]
fn directory_conflicts_are_refused() {
    let (_dir, mut node) = node();
    put(&mut node, domain("a.org", &["a.net"], None)).unwrap();
    put(&mut node, domain("b.org", &[], None)).unwrap();
    put(&mut node, mailbox("alice@a.org", &["info@a.org", "alice@b.org"])).unwrap();
    put(&mut node, mailbox("bob@a.org", &[])).unwrap();
    let before = node.store.directory().mailboxes();

    let conflicts = [
        domain("c.org", &["a.net"], None),
        domain("c.org", &["b.org"], None),
        domain("a.net", &[], None),
        mailbox("info@a.org", &[]),
        mailbox("carol@a.org", &["ALICE@b.org"]),
        mailbox("bob@a.org", &["alice@a.org"]),
        Op::DeleteDomain("b.org".parse().unwrap()),
        Op::DeleteMailbox { address: address("info@a.org"), purge_at: Timestamp(9) },
        Op::ForgetMailbox(MailboxId(1)),
    ];
    for op in conflicts {
        let refused = put(&mut node, op.clone());
        assert!(matches!(refused, Err(Refusal::Conflict(_))), "{op:?}: {refused:?}");
    }
    let unknown = put(&mut node, mailbox("x@nowhere.org", &[]));
    let Err(Refusal::NotFound(text)) = unknown else { panic!("{unknown:?}") };
    assert!(text.contains("nowhere.org") && text.contains("make the domain first"), "{text}");
    let alias = put(&mut node, mailbox("x@a.net", &[]));
    assert!(matches!(alias, Err(Refusal::Invalid(text)) if text.contains("x@a.org")));
    let gone = put(&mut node, Op::DeleteMailbox { address: address("x@a.org"), purge_at: Timestamp(9) });
    assert!(matches!(gone, Err(Refusal::NotFound(_))));
    assert_eq!(node.store.directory().mailboxes(), before);
}

#[test]
fn addresses_resolve_through_aliases_and_catch_all() {
    let (_dir, mut node) = node();
    put(&mut node, domain("a.org", &["a.net"], None)).unwrap();
    put(&mut node, domain("b.org", &[], Some("alice@a.org"))).unwrap();
    let (alice, _) = id_of(put(&mut node, mailbox("Alice@a.org", &["info@a.org"])));

    for text in ["alice@a.org", "ALICE@A.NET", "info@a.org", "info@a.net", "anybody@b.org"] {
        assert_eq!(resolved(&node, text), Some(alice), "{text}");
    }
    assert_eq!(resolved(&node, "anybody@a.org"), None);
    let directory = node.store.directory();
    assert_eq!(directory.resolve(&address("alice@c.org")), Resolution::NotLocal);
    assert_eq!(directory.login(&address("alice@a.net")).unwrap().id.0, alice);
    assert!(
        directory.login(&address("info@a.org")).is_none() && directory.login(&address("x@b.org")).is_none()
    );

    put(&mut node, domain("a.org", &["a.com"], None)).unwrap();
    assert_eq!(directory.resolve(&address("alice@a.net")), Resolution::NotLocal);
    assert_eq!(resolved(&node, "alice@a.com"), Some(alice));
    put(&mut node, mailbox("alice@a.org", &["office@a.org"])).unwrap();
    assert_eq!((resolved(&node, "info@a.org"), resolved(&node, "office@a.org")), (None, Some(alice)));
    // The freed address can be another's now.
    let (bob, _) = id_of(put(&mut node, mailbox("info@a.org", &[])));
    assert_eq!(resolved(&node, "info@a.org"), Some(bob));
}

#[test]
fn a_deleted_mailbox_comes_back_within_its_grace() {
    let (_dir, mut node) = node();
    put(&mut node, domain("a.org", &[], None)).unwrap();
    let first = id_of(put(&mut node, mailbox("alice@a.org", &["info@a.org"])));
    let other = id_of(put(&mut node, mailbox("bob@a.org", &[])));
    let delete = || Op::DeleteMailbox { address: address("alice@a.org"), purge_at: Timestamp(2_000) };

    assert_eq!(id_of(put(&mut node, delete())), first);
    assert_eq!((resolved(&node, "alice@a.org"), resolved(&node, "info@a.org")), (None, None));
    let deleted = node.store.directory().deleted();
    assert_eq!((deleted[0].record.id.0, deleted[0].purge_at), (first.0, Timestamp(2_000)));

    let again = node.run_at(0, 1_999, mailbox("ALICE@a.org", &[]), b"");
    assert_eq!(id_of(again), first);
    assert!(node.store.directory().deleted().is_empty());

    put(&mut node, delete()).unwrap();
    let new = id_of(node.run_at(0, 2_000, mailbox("alice@a.org", &[]), b""));
    assert!(new.0 > other.0, "after the grace the address starts anew");
    assert_eq!(node.store.directory().deleted().len(), 1);
    node.run_at(0, 2_001, Op::ForgetMailbox(MailboxId(first.0)), b"").unwrap();
    assert!(node.store.directory().deleted().is_empty());
    assert_eq!(resolved(&node, "alice@a.org"), Some(new.0));
    assert!(node.run_at(0, 2_002, Op::ForgetMailbox(MailboxId(first.0)), b"").is_ok());
}

#[test]
fn mailboxes_are_spread_evenly_over_partitions() {
    let (_dir, mut node) = node();
    put(&mut node, domain("a.org", &[], None)).unwrap();
    let partitions: Vec<_> =
        (0..6).map(|n| id_of(put(&mut node, mailbox(&format!("m{n}@a.org"), &[]))).1).collect();
    assert_eq!(partitions, [1, 2, 3, 4, 1, 2]);
    // A deleted mailbox counts until its mail is gone.
    put(&mut node, Op::DeleteMailbox { address: address("m2@a.org"), purge_at: Timestamp(2_000) }).unwrap();
    assert_eq!(id_of(put(&mut node, mailbox("m6@a.org", &[]))).1, 3);
    put(&mut node, Op::ForgetMailbox(MailboxId(3))).unwrap();
    assert_eq!(id_of(put(&mut node, mailbox("m7@a.org", &[]))).1, 3);
}

#[test]
fn a_domain_goes_once_nobody_uses_it() {
    let (_dir, mut node) = node();
    put(&mut node, domain("a.org", &["a.net"], None)).unwrap();
    put(&mut node, mailbox("alice@a.org", &[])).unwrap();
    let delete = || Op::DeleteDomain("a.org".parse().unwrap());
    assert!(matches!(put(&mut node, delete()), Err(Refusal::Conflict(_))));
    put(&mut node, Op::DeleteMailbox { address: address("alice@a.org"), purge_at: Timestamp(9_000) })
        .unwrap();
    put(&mut node, delete()).unwrap();
    assert_eq!(node.store.directory().resolve(&address("alice@a.net")), Resolution::NotLocal);
    // Its names are free, and the mailbox comes back only with a domain.
    assert!(matches!(put(&mut node, mailbox("alice@a.org", &[])), Err(Refusal::NotFound(_))));
    put(&mut node, domain("a.net", &["a.org"], None)).unwrap();
}

#[test]
fn the_directory_is_the_same_after_a_restart_and_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mut node = Node::open(&path);
    put(&mut node, domain("a.org", &["a.net"], Some("m0@a.org"))).unwrap();
    for n in 0..20 {
        put(&mut node, mailbox(&format!("m{n}@a.org"), &[&format!("alias{n}@a.org")])).unwrap();
    }
    put(&mut node, Op::DeleteMailbox { address: address("m5@a.org"), purge_at: Timestamp(9_000) }).unwrap();
    let seen = |store: &Store| {
        let directory = store.directory();
        (directory.domains(), directory.mailboxes(), directory.deleted())
    };
    let before = seen(&node.store);

    let other = Node::open(&dir.path().join("other"));
    transfer(&node.store, &other.store, 0);
    assert_eq!(seen(&other.store), before);
    assert_eq!(resolved(&other, "ALIAS7@a.net"), resolved(&node, "m7@a.org"));

    let bodies = node.bodies.clone();
    drop(node);
    let node = Node::open_with(&path, bodies);
    assert_eq!(seen(&node.store), before);
    assert_eq!(resolved(&node, "m5@a.org"), Some(1), "the catch-all");
}

#[test]
fn the_keys_of_a_domain_come_with_it_go_with_it_and_are_never_printed() {
    let (dir, mut node) = node();
    let name: quorumail_message::Domain = "example.org".parse().unwrap();
    let record = |revision: &str| DomainRecord {
        domain: name.clone(),
        aliases: vec!["example.net".parse().unwrap()],
        catch_all: None,
        revision: revision.to_owned(),
    };
    let key = DkimKey {
        selector: "s1".to_owned(),
        algorithm: DkimAlgorithm::Ed25519,
        private: bytes::Bytes::from_static(b"secret-marker"),
    };
    let signing =
        Op::PutSigningDomain { record: record("1"), keys: vec![key.clone()], sts: Some(StsMode::Enforce) };
    let text = format!("{signing:?}");
    assert!(text.contains("s1") && !text.contains("marker"), "{text}");
    put(&mut node, signing).unwrap();
    let directory = node.store.directory();
    let alias: quorumail_message::Domain = "example.net".parse().unwrap();
    assert_eq!(directory.dkim_keys(&alias).as_deref(), Some([key.clone()].as_slice()));
    assert_eq!(directory.sts_mode(&alias), Some(StsMode::Enforce));
    // The older kind, as archives hold it, says nothing of keys.
    put(&mut node, Op::PutDomain(record("2"))).unwrap();
    let bodies = node.bodies.clone();
    drop(node);
    let mut node = Node::open_with(&dir.path().join("index"), bodies);
    assert_eq!(node.store.directory().dkim_keys(&name).as_deref(), Some([key.clone()].as_slice()));
    assert_eq!(node.store.directory().sts_mode(&name), Some(StsMode::Enforce));
    let many = Op::PutSigningDomain { record: record("3"), keys: vec![key; MAX_DKIM_KEYS + 1], sts: None };
    assert!(matches!(put(&mut node, many), Err(Refusal::Invalid(_))));
    put(&mut node, Op::PutSigningDomain { record: record("4"), keys: Vec::new(), sts: None }).unwrap();
    assert_eq!(node.store.directory().dkim_keys(&name), None);
    assert_eq!(node.store.directory().sts_mode(&name), None);
}
