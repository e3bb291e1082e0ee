//! What is of the next version is refused with both versions named, and nothing changes; what is of the present one keeps
//! its bytes.

use bytes::Bytes;
use quorumail_store::*;

use crate::world::*;

/// One operation of every kind, with a body where the kind takes one.
pub fn every_kind() -> Vec<(Op, &'static [u8])> {
    let address = || "alice@example.org".parse::<quorumail_message::Address>().unwrap();
    let domain = || "example.org".parse::<quorumail_message::Domain>().unwrap();
    let folder = || "Über/uns".to_owned();
    let (mailbox, number, upload) = (MAILBOX, FolderId(300), UploadId(1 << 100));
    let quota = Quota { bytes: 1 << 40, messages: 5 };
    let queued = entry(5, 6, vec![recipient("a@x.org", QueueClass::Remote, 7)]);
    let list = ListRecord {
        id: ListId(300),
        address: address(),
        partition: PartitionId(3),
        members: vec![ListMember { address: address(), role: ListRole::Moderator }],
        posting: Posting::Moderated,
        subject_prefix: "[a]".to_owned(),
        reply_to_list: true,
        subscription: Subscription::Approve,
        max_bytes: 1 << 20,
        secret: ListSecret([9; 32]),
        revision: "r4".to_owned(),
    };
    let ops = vec![
        Op::PutDomain(DomainRecord {
            domain: domain(),
            aliases: vec!["example.net".parse().unwrap()],
            catch_all: Some(address()),
            revision: "r1".to_owned(),
        }),
        Op::DeleteDomain(domain()),
        Op::PutMailbox {
            record: MailboxRecord {
                id: mailbox,
                address: address(),
                partition: PartitionId(3),
                display_name: "Alice".to_owned(),
                aliases: vec![address()],
                password_hash: "$6$".to_owned(),
                quota,
                suspended: true,
                permissions: Permissions { send: true, receive: false, login: true },
                revision: "r2".to_owned(),
            },
            partitions: 16,
        },
        Op::DeleteMailbox { address: address(), purge_at: Timestamp(-5) },
        Op::ForgetMailbox(mailbox),
        Op::OpenMailbox(mailbox),
        Op::PurgeMailbox(mailbox),
        append("INBOX", &["\\Seen", "word"], quota),
        Op::CreateFolder { mailbox, folder: folder(), special_use: Some(SpecialUse::Trash) },
        Op::DeleteFolder { mailbox, folder: folder() },
        Op::RenameFolder { mailbox, from: folder(), to: "b".to_owned() },
        Op::Subscribe { mailbox, folder: folder(), subscribed: true },
        Op::StoreFlags {
            mailbox,
            folder: number,
            uids: vec![Uid(1), Uid(70_000)],
            mode: StoreFlags::Remove,
            flags: [Flag("\\Flagged".to_owned())].into(),
            unchanged_since: Some(ModSeq(9)),
        },
        Op::Copy { mailbox, folder: number, uids: vec![Uid(2)], to: folder(), remove: true, quota },
        Op::Expunge { mailbox, folder: number, uids: Some(vec![Uid(3)]) },
        Op::Enqueue(queued.clone()),
        Op::UpdateQueue { id: queued.id, done: vec![address()], changed: queued.recipients },
        Op::Chunk { upload, number: 3 },
        Op::WithUpload { upload, chunks: 4, op: Box::new(append("INBOX", &[], quota)) },
        Op::DropChunks(Timestamp(7)),
        Op::RestoreFolder {
            mailbox,
            folder: folder(),
            special_use: Some(SpecialUse::Sent),
            subscribed: true,
            source: Some(FolderSource {
                uid_validity: UidValidity(1 << 20),
                uid_next: Uid(70_000),
                highest_mod_seq: ModSeq(1 << 40),
                keep: true,
            }),
        },
        Op::RestoreMessage {
            mailbox,
            folder: folder(),
            place: RestorePlace::Uid { source: UidValidity(1 << 20), uid: Uid(300) },
            flags: flags(&["\\Seen"]),
            internal_date: Timestamp(-9),
            quota,
        },
        Op::Undelete { mailbox, numbers: vec![1, 1 << 40], below: folder(), quota },
        Op::DropDeleted { mailbox, before: Timestamp(1 << 40) },
        Op::PutSigningDomain {
            record: DomainRecord {
                domain: domain(),
                aliases: Vec::new(),
                catch_all: None,
                revision: "r3".to_owned(),
            },
            keys: vec![DkimKey {
                selector: "s1".to_owned(),
                algorithm: DkimAlgorithm::Ed25519,
                private: Bytes::from_static(b"key"),
            }],
            sts: Some(StsMode::Enforce),
        },
        Op::PutList { record: list.clone(), partitions: 16 },
        Op::DeleteList(address()),
        Op::PostToList(ListPost {
            id: QueueId(1 << 100),
            list: ListId(300),
            state: PostState::Held("why".to_owned()),
            author: "a@x.org".to_owned(),
            subject: "s".to_owned(),
            arrived: Timestamp(7),
            size: 0,
            eight_bit: true,
        }),
        Op::ExpandPost {
            list: ListId(300),
            post: QueueId(1 << 100),
            after: Some("a@x.org".to_owned()),
            entries: vec![entry(5, 6, vec![recipient("b@x.org", QueueClass::Local, 7)])],
            next: Some("b@x.org".to_owned()),
        },
        Op::DecidePost { list: ListId(300), post: QueueId(2), approve: true },
        Op::ChangeSubscriber {
            list: ListId(300),
            address: address(),
            change: SubscriberChange::Join { listed: true },
        },
        Op::ForgetList(ListId(300)),
        Op::PutArchivedList { record: list, partitions: 16, archive: true },
        Op::OpenArchive(ListId(300)),
        Op::ArchivePost { list: ListId(300), post: QueueId(2) },
    ];
    ops.into_iter()
        .map(|op| {
            let body: &[u8] = match op {
                Op::Append { .. }
                | Op::Enqueue(_)
                | Op::Chunk { .. }
                | Op::RestoreMessage { .. }
                | Op::PostToList(_) => b"body",
                _ => b"",
            };
            (op, body)
        })
        .collect()
}

pub fn encoded(op: Op, body: &'static [u8]) -> Bytes {
    Command { id: CommandId(1 << 90), at: Timestamp(1_700_000_000_000), op, body: body.into() }.encode()
}

/// Whoever changes what the bytes of a command mean needs another version of the format, of a higher level: see
/// `docs/reference/formats.md`. The hash belongs to the version.
#[test]
fn every_kind_of_command_keeps_the_bytes_of_its_format() {
    let mut hasher = blake3::Hasher::new();
    let kinds = every_kind();
    for (number, (op, body)) in kinds.iter().enumerate() {
        let bytes = encoded(op.clone(), body);
        assert_eq!(
            usize::from(bytes[5 + 13 + 6]),
            number,
            "a kind is missing here, or they are in another order"
        );
        assert_eq!(Command::decode(&bytes).unwrap().op, *op);
        hasher.update(&bytes);
    }
    let found = (COMMAND_FORMAT, hasher.finalize().to_hex().to_string());
    assert_eq!(found, (7, "54bc6055ab21dfbd87dbd48df62338ac54c80f353ddcf59be2e8adb6b73e6bf3".to_owned()));
}

#[test]
fn commands_of_the_next_version_stop_the_group_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    node.append("INBOX", b"message");
    let before = (node.store.fingerprint(GROUP).unwrap(), node.position(GROUP));
    for (op, body) in every_kind() {
        let mut next = encoded(op, body).to_vec();
        next[0] += 1;
        let known = LogCommand {
            index: 2,
            ..node.log(GROUP, 2, &Command::decode(&encoded(Op::OpenMailbox(MAILBOX), b"")).unwrap())
        };
        let record = node.bodies.record(GROUP, 3, next.clone().into());
        let next = LogCommand { index: 3, command: next.into(), record, offset: 0 };
        // What comes before it in the same batch is not applied either: it is applied again by a version that knows all.
        let error = node.store.apply(GROUP, vec![known, next], b"12345678").unwrap_err().to_string();
        assert!(error.contains("format 8") && error.contains("format 7"), "{error}");
    }
    assert_eq!((node.store.fingerprint(GROUP).unwrap(), node.position(GROUP)), before);
}

#[test]
fn messages_of_the_next_version_are_refused_with_both() {
    let next = |bytes: Bytes| {
        let mut bytes = bytes.to_vec();
        bytes[0] += 1;
        bytes
    };
    let query = next(Query::QueueCounts.encode());
    let reply = next(Reply::Folders(Vec::new()).encode());
    let outcome = next(encode_outcome(&Ok(Applied::Done)));
    let errors = [
        (Query::decode(&query).unwrap_err(), QUERY_FORMAT),
        (Reply::decode(&reply).unwrap_err(), REPLY_FORMAT),
        (decode_outcome(&outcome).unwrap_err(), OUTCOME_FORMAT),
    ];
    for (error, known) in errors {
        let error = error.to_string();
        for format in [known + 1, known] {
            assert!(error.contains(&format!("format {format}")), "{error}");
        }
    }
    // Whoever asks learns why.
    let dir = tempfile::tempdir().unwrap();
    let answer = Node::open(dir.path()).store.query_bytes(GROUP, query.into());
    assert!(
        matches!(Reply::decode(&answer), Ok(Reply::Unreadable(why)) if why.contains("format 4") && why.contains("format 3"))
    );
}

#[test]
fn a_snapshot_of_the_next_version_is_refused_with_both_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::open(dir.path());
    node.append("INBOX", b"message");
    let mut chunk = node.store.snapshot(GROUP).unwrap().next_chunk().unwrap().unwrap().to_vec();
    chunk[0] += 1;
    node.append("INBOX", b"another");
    let before = node.store.fingerprint(GROUP).unwrap();
    let mut writer = node.store.install(GROUP).unwrap();
    let error = writer.write(chunk.into()).unwrap_err().to_string();
    for format in [SNAPSHOT_FORMAT + 1, SNAPSHOT_FORMAT] {
        assert!(error.contains(&format.to_string()), "{error}");
    }
    drop(writer);
    assert_eq!(node.store.fingerprint(GROUP).unwrap(), before);
}
