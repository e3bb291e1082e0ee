//! What mailing lists promise: who owns an address, and that an expansion serves each member once whatever dies.

use quorumail_store::*;

use crate::world::*;

const LIST: ListId = ListId(3);
const POST: QueueId = QueueId(1 << 90);

fn record(address_text: &str, members: &[&str]) -> ListRecord {
    let member = |text: &&str| ListMember { address: address(text), role: ListRole::Member };
    ListRecord {
        id: ListId(0),
        address: address(address_text),
        partition: PartitionId(0),
        members: members.iter().map(member).collect(),
        posting: Posting::Members,
        subject_prefix: String::new(),
        reply_to_list: false,
        subscription: Subscription::Closed,
        max_bytes: 0,
        secret: ListSecret([1; 32]),
        revision: "r".to_owned(),
    }
}

fn put_list(record: ListRecord) -> Op {
    Op::PutList { record, partitions: 4 }
}

fn put_domain(domain: &str) -> Op {
    let (domain, aliases) = (domain.parse().unwrap(), vec!["example.net".parse().unwrap()]);
    Op::PutDomain(DomainRecord { domain, aliases, catch_all: None, revision: String::new() })
}

fn put_mailbox(text: &str, alias: &str) -> Op {
    let record = MailboxRecord {
        id: MailboxId(0),
        address: address(text),
        partition: PartitionId(0),
        display_name: String::new(),
        aliases: vec![address(alias)],
        password_hash: String::new(),
        quota: NO_QUOTA,
        suspended: false,
        permissions: Permissions { send: true, receive: true, login: true },
        revision: String::new(),
    };
    Op::PutMailbox { record, partitions: 4 }
}

fn post(state: PostState) -> Op {
    Op::PostToList(ListPost {
        id: POST,
        list: LIST,
        state,
        author: String::new(),
        subject: String::new(),
        arrived: Timestamp(5),
        size: 0,
        eight_bit: false,
    })
}

fn step(after: Option<&str>, members: &[&str], next: Option<&str>) -> Op {
    let copy = |text: &&str| {
        let id = text.bytes().fold(7u128, |id, byte| id * 257 + u128::from(byte));
        entry(id, 6, vec![recipient(text, QueueClass::Local, 7)])
    };
    Op::ExpandPost {
        list: LIST,
        post: POST,
        after: after.map(str::to_owned),
        entries: members.iter().map(copy).collect(),
        next: next.map(str::to_owned),
    }
}

fn queued(node: &Node) -> Vec<String> {
    let entries = node.queue(&Query::QueueList { class: None, limit: 1000 });
    let mut all: Vec<_> =
        entries.iter().flat_map(|e| &e.recipients).map(|recipient| recipient.address.to_string()).collect();
    all.sort();
    all
}

#[test]
fn an_address_is_a_lists_or_a_mailbox_and_never_both() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let mut run = |op| node.run_at(0, 1, op, b"");
    assert!(matches!(run(put_list(record("news@example.org", &[]))), Err(Refusal::NotFound(_))));
    run(put_domain("example.org")).unwrap();
    run(put_mailbox("alice@example.org", "a@example.org")).unwrap();
    for taken in ["alice@example.org", "A@example.org"] {
        let refused = run(put_list(record(taken, &[]))).unwrap_err();
        assert!(matches!(refused, Refusal::Conflict(why) if why.contains("mailbox alice@example.org")));
    }
    run(put_list(record("news@example.org", &["b@x.org", "a@x.org", "B@x.org"]))).unwrap();
    for (mailbox, alias) in [("news@example.org", "n@example.org"), ("bob@example.org", "news@example.org")] {
        let refused = run(put_mailbox(mailbox, alias)).unwrap_err();
        assert!(matches!(refused, Refusal::Conflict(why) if why.contains("is a mailing list")));
    }
    assert!(matches!(run(Op::DeleteDomain("example.org".parse().unwrap())), Err(Refusal::Conflict(_))));
    let directory = node.store.directory();
    let list = directory.list_named(&address("NEWS@example.net")).unwrap();
    assert_eq!(
        list.members.iter().map(|m| m.address.to_string()).collect::<Vec<_>>(),
        ["a@x.org", "b@x.org"]
    );
    let part = |text: &str| match directory.resolve(&address(text)) {
        Resolution::List(found, part) if found.id == list.id => Some(part),
        _ => None,
    };
    assert_eq!(part("News-Join@example.org"), Some(ListPart::Join));
    assert_eq!(part("news-bounces+t-a=x.org@example.org"), Some(ListPart::Bounces("t-a=x.org".to_owned())));
    assert_eq!((part("news-else@example.org"), part("news+x@example.org")), (None, None));
    node.run_at(0, 2, Op::DeleteList(address("news@example.org")), b"").unwrap();
    assert_eq!(directory.resolve(&address("news@example.org")), Resolution::NoSuchUser);
    assert!(directory.lists().is_empty());
    node.run_at(0, 3, put_mailbox("news@example.org", "n@example.org"), b"").unwrap();
}

#[test]
fn a_list_keeps_its_number_home_and_secret_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    node.run_at(0, 1, put_domain("example.org"), b"").unwrap();
    node.run_at(0, 1, put_list(record("news@example.org", &[])), b"").unwrap();
    let before = node.store.directory().lists()[0].clone();
    let changed = ListRecord { secret: ListSecret([2; 32]), ..record("news@example.org", &["a@x.org"]) };
    node.run_at(0, 2, put_list(changed), b"").unwrap();
    let after = node.store.directory().lists()[0].clone();
    assert_eq!((after.id, after.partition, after.secret), (before.id, before.partition, before.secret));
    assert!(after.member(&address("A@x.org")).is_some());
    drop(node);
    assert_eq!(Node::open(dir.path()).store.directory().lists(), [after]);
}

#[test]
fn a_list_has_a_bounded_number_of_members() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    node.run_at(0, 1, put_domain("example.org"), b"").unwrap();
    let members: Vec<_> = (0..=MAX_LIST_MEMBERS).map(|number| format!("m{number}@x.org")).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let refused = node.run_at(0, 1, put_list(record("news@example.org", &members)), b"");
    assert!(matches!(refused, Err(Refusal::Invalid(_))));
    node.run_at(0, 1, put_list(record("news@example.org", &members[1..])), b"").unwrap();
}

#[test]
fn a_step_done_twice_serves_nobody_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    node.run_at(GROUP, 5, post(PostState::Expanding(None)), b"the post").unwrap();
    for _ in 0..2 {
        node.run(step(None, &["a@x.org", "b@x.org"], Some("b@x.org"))).unwrap();
        node.store.audit(GROUP).unwrap();
    }
    assert_eq!(queued(&node), ["a@x.org", "b@x.org"]);
    // A leader that was slow to learn of it begins elsewhere, with other members.
    node.run(step(Some("a@x.org"), &["b@x.org", "c@x.org"], None)).unwrap();
    assert_eq!(queued(&node).len(), 2);
    node.run(step(Some("b@x.org"), &["c@x.org"], None)).unwrap();
    node.run(step(Some("b@x.org"), &["c@x.org"], None)).unwrap();
    assert_eq!(queued(&node), ["a@x.org", "b@x.org", "c@x.org"]);
    assert_eq!(node.store.expanding_posts(GROUP, 9).unwrap(), []);
    node.store.audit(GROUP).unwrap();
    // The body is the post's, and goes with the last copy.
    for e in node.queue(&Query::QueueList { class: None, limit: 9 }) {
        match node.store.query(GROUP, &Query::QueueEntry(e.id)) {
            Reply::QueueEntry(Some((found, body))) => {
                assert_eq!((found.size, &body[..]), (8, b"the post".as_slice()))
            }
            other => panic!("{other:?}"),
        }
        let done = e.recipients.iter().map(|recipient| recipient.address.clone()).collect();
        node.run(Op::UpdateQueue { id: e.id, done, changed: Vec::new() }).unwrap();
        node.store.audit(GROUP).unwrap();
    }
}

#[test]
fn an_expansion_goes_on_where_it_was_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let bodies = node.bodies.clone();
    node.run_at(GROUP, 5, post(PostState::Expanding(None)), b"the post").unwrap();
    node.run(step(None, &["a@x.org"], Some("a@x.org"))).unwrap();
    node.store.checkpoint().unwrap();
    drop(node);
    let mut node = Node::open_with(dir.path(), bodies);
    let [left] = &node.store.expanding_posts(GROUP, 9).unwrap()[..] else { panic!("it is gone") };
    assert_eq!(left.state, PostState::Expanding(Some("a@x.org".to_owned())));
    node.run(step(Some("a@x.org"), &["b@x.org"], None)).unwrap();
    assert_eq!(queued(&node), ["a@x.org", "b@x.org"]);
    node.store.audit(GROUP).unwrap();
}

#[test]
fn a_held_post_waits_until_somebody_decides() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let decide = |approve| Op::DecidePost { list: LIST, post: POST, approve };
    for approve in [false, true] {
        node.run_at(GROUP, 5, post(PostState::Held("why".to_owned())), b"x").unwrap();
        assert_eq!(
            node.run_at(GROUP, 5, post(PostState::Expanding(None)), b"x").unwrap_err().to_string(),
            format!("post {POST} already exists")
        );
        // Not before: nobody gets it.
        node.run(step(None, &["a@x.org"], None)).unwrap();
        assert_eq!((queued(&node).len(), node.store.held_posts(GROUP, 9).unwrap().len()), (0, 1));
        node.run(decide(approve)).unwrap();
        assert!(matches!(node.run(decide(approve)), Err(Refusal::NotFound(_))));
        assert_eq!(node.store.expanding_posts(GROUP, 9).unwrap().len(), usize::from(approve));
        node.store.audit(GROUP).unwrap();
    }
}

#[test]
fn held_posts_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let held = |number: u32| match post(PostState::Held("why".to_owned())) {
        Op::PostToList(post) => Op::PostToList(ListPost { id: QueueId(number.into()), ..post }),
        _ => unreachable!(),
    };
    for number in 0..MAX_HELD_POSTS {
        node.run_at(GROUP, 5, held(number), b"x").unwrap();
    }
    assert!(matches!(node.run_at(GROUP, 5, held(MAX_HELD_POSTS), b"x"), Err(Refusal::Conflict(_))));
    node.store.audit(GROUP).unwrap();
    // A list that is no more leaves nothing behind.
    node.run(Op::ChangeSubscriber { list: LIST, address: address("a@x.org"), change: SubscriberChange::Ask })
        .unwrap();
    assert_eq!(node.store.lists_here(GROUP).unwrap(), [LIST]);
    node.run(Op::ForgetList(LIST)).unwrap();
    assert_eq!(
        (node.store.lists_here(GROUP).unwrap(), node.store.held_posts(GROUP, 9).unwrap()),
        (vec![], vec![])
    );
    node.store.audit(GROUP).unwrap();
}

#[test]
fn five_bounces_suspend_a_member_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let day = 24 * 60 * 60 * 1000;
    let mut change = |at: i64, change| {
        let op = Op::ChangeSubscriber { list: LIST, address: address("a@x.org"), change };
        node.run_at(GROUP, at, op, b"").unwrap();
        node.store.audit(GROUP).unwrap();
        match node.store.query(GROUP, &Query::Subscriber { list: LIST, address: address("A@x.org") }) {
            Reply::Subscribers(found) => found.into_iter().next(),
            other => panic!("{other:?}"),
        }
    };
    for bounce in 0..4 {
        assert_eq!(change(bounce * day, SubscriberChange::Bounce).unwrap().suspended, None);
    }
    // What is long past does not count.
    assert_eq!(change(30 * day, SubscriberChange::Bounce).unwrap().bounces, 1);
    for bounce in 31..35 {
        change(bounce * day, SubscriberChange::Bounce);
    }
    assert_eq!(change(36 * day, SubscriberChange::Bounce).unwrap().suspended, Some(Timestamp(34 * day)));
    assert_eq!(change(37 * day, SubscriberChange::Resume), None);
    // Who left by mail stays away although the list names it, and who was never named is forgotten.
    assert_eq!(
        change(38 * day, SubscriberChange::Leave { listed: true }).unwrap().left,
        Some(Timestamp(38 * day))
    );
    assert_eq!(change(39 * day, SubscriberChange::Join { listed: true }), None);
    assert!(change(40 * day, SubscriberChange::Join { listed: false }).unwrap().joined.is_some());
    assert_eq!(change(41 * day, SubscriberChange::Leave { listed: false }), None);
}

fn put_archived(archive: bool) -> Op {
    Op::PutArchivedList { record: record("news@example.org", &[]), partitions: 4, archive }
}

#[test]
fn a_list_has_an_archive_as_long_as_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let archived = |node: &Node| node.store.directory().archived_lists().len();
    node.run_at(0, 1, put_domain("example.org"), b"").unwrap();
    node.run_at(0, 1, put_list(record("news@example.org", &[])), b"").unwrap();
    assert_eq!(archived(&node), 0);
    node.run_at(0, 2, put_archived(true), b"").unwrap();
    // The older kind says nothing of archives.
    node.run_at(0, 3, put_list(record("news@example.org", &[])), b"").unwrap();
    assert_eq!(archived(&node), 1);
    drop(node);
    let mut node = Node::open(dir.path());
    let id = node.store.directory().archived_lists()[0].id;
    assert!(node.store.directory().archived_list(id).is_some());
    node.run_at(0, 4, put_archived(false), b"").unwrap();
    assert_eq!(archived(&node), 0);
    node.run_at(0, 5, put_archived(true), b"").unwrap();
    node.run_at(0, 6, Op::DeleteList(address("news@example.org")), b"").unwrap();
    assert_eq!((archived(&node), node.store.directory().archived_list(id)), (0, None));
    // Made anew, it is another list.
    node.run_at(0, 7, put_list(record("news@example.org", &[])), b"").unwrap();
    assert_eq!(archived(&node), 0);
}

/// How many messages the archive has.
fn in_archive(node: &Node) -> u32 {
    match node.store.query(GROUP, &Query::Folder { mailbox: LIST.archive(), name: "INBOX".to_owned() }) {
        Reply::Folder(Some(inbox)) => {
            assert_eq!((inbox.id, inbox.unseen), (INBOX_NUMBER, 0));
            inbox.messages
        }
        Reply::Folder(None) => 0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_post_is_in_the_archive_once_wherever_its_expansion_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    let archive = || Op::ArchivePost { list: LIST, post: POST };
    node.run(Op::OpenArchive(LIST)).unwrap();
    node.run_at(GROUP, 5, post(PostState::Held("why".to_owned())), b"the post").unwrap();
    node.run(archive()).unwrap();
    assert_eq!(in_archive(&node), 0);
    node.run(Op::DecidePost { list: LIST, post: POST, approve: true }).unwrap();
    for _ in 0..2 {
        node.run(archive()).unwrap();
        node.store.audit(GROUP).unwrap();
    }
    // A leader that did not hear of it begins from nothing, and does nothing.
    node.run(step(None, &["a@x.org"], None)).unwrap();
    assert_eq!((queued(&node), in_archive(&node)), (vec![], 1));
    node.run(step(Some(""), &["a@x.org"], Some("a@x.org"))).unwrap();
    node.run(archive()).unwrap();
    node.run(step(Some("a@x.org"), &[], None)).unwrap();
    node.run(archive()).unwrap();
    assert_eq!((queued(&node).len(), in_archive(&node)), (1, 1));
    node.store.audit(GROUP).unwrap();
    // What members do with their copies is nothing to the archive.
    let [copy] = &node.queue(&Query::QueueList { class: None, limit: 9 })[..] else { panic!("one copy") };
    node.run(Op::UpdateQueue { id: copy.id, done: vec![address("a@x.org")], changed: Vec::new() }).unwrap();
    node.store.audit(GROUP).unwrap();
    let body = node.store.query(
        GROUP,
        &Query::Messages {
            mailbox: LIST.archive(),
            folder: INBOX_NUMBER,
            uids: vec![Uid(1)],
            octets: Octets::Whole,
            digests: Vec::new(),
            max_bytes: 1000,
        },
    );
    let Reply::Messages(found) = body else { panic!("{body:?}") };
    let found = found[0].as_ref().unwrap();
    assert_eq!((&found.octets[..], found.meta.internal_date), (b"the post".as_slice(), Timestamp(5)));
}

#[test]
fn the_archive_of_a_list_that_is_no_more_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    node.run_at(GROUP, 5, post(PostState::Expanding(None)), b"the post").unwrap();
    node.run(Op::ArchivePost { list: LIST, post: POST }).unwrap();
    node.run(step(Some(""), &[], None)).unwrap();
    assert_eq!((node.store.lists_here(GROUP).unwrap(), in_archive(&node)), (vec![LIST], 1));
    node.run(Op::ForgetList(LIST)).unwrap();
    assert_eq!((node.store.lists_here(GROUP).unwrap(), in_archive(&node)), (vec![], 0));
    assert_eq!(node.store.export(GROUP).unwrap().unwrap().mailboxes().unwrap(), []);
    node.store.audit(GROUP).unwrap();
}
