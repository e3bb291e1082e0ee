//! Taking and loading.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quorumail_backup::*;
use quorumail_store::{Applied, Op, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::world::*;

#[tokio::test]
async fn a_backup_loads_as_the_state_that_was_taken() {
    let (place, mut node) = (Place::new(), Node::with_mail());
    for number in 0..18 {
        // More than one pack.
        node.append("Large", &noise(number, 1 << 20));
    }
    let expected = Snapshot::of(&node.store);
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    assert!(place.objects("packs").len() > 4);
    let partition = manifest.group(GROUP).unwrap();
    assert_eq!(partition.counts.mailboxes, 1);
    assert_eq!(partition.counts.messages, 50 + 1 + 1 + 2 + 18);
    assert_eq!(partition.log_index, node.index);

    // Another program, with nothing but the place and the key; the node has gone.
    drop(node);
    let repository = Repository::open(place.config()).await.unwrap();
    let listed = repository.list().await.unwrap();
    assert_eq!(listed.unreadable, []);
    assert_eq!(listed.backups, [manifest.info()]);
    assert_loads(&repository, &manifest, &expected).await;
}

#[tokio::test]
async fn bodies_are_read_without_a_runtime_too() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    let dir = tempfile::tempdir().unwrap();
    let loaded = repository.load(&manifest, &[GROUP], None, &dir.path().join("store")).await.unwrap();
    assert_eq!(loaded.reached().keys().copied().collect::<Vec<_>>(), [GROUP]);
    let read = std::thread::spawn(move || messages(loaded.store())).join().unwrap();
    assert_eq!(read, messages(&node.store));
}

#[tokio::test]
async fn the_second_backup_of_unchanged_mail_uploads_its_manifest_alone() {
    let (place, mut node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let first = node.back_up(&repository, None).await;
    assert!(first.info().uploaded_bytes > 900_000, "the long message does not compress");
    let (objects, reads) = (place.objects("packs"), node.bodies.reads.load(Ordering::Relaxed));
    let second = node.back_up(&repository, Some(&first)).await;
    assert_eq!(second.info().uploaded_bytes, 0);
    assert_eq!(place.objects("packs"), objects);
    assert_eq!(node.bodies.reads.load(Ordering::Relaxed), reads, "no body is read again");
    assert_loads(&repository, &second, &Snapshot::of(&node.store)).await;

    // One message more, and one that is there already under another id.
    node.append("INBOX", b"Subject: new\r\n\r\nNew.\r\n");
    node.append("Other", &message(3));
    let reads = node.bodies.reads.load(Ordering::Relaxed);
    let third = node.back_up(&repository, Some(&second)).await;
    let uploaded = third.info().uploaded_bytes;
    assert!(uploaded > 0 && uploaded < 60_000, "{uploaded} bytes for two messages");
    assert_eq!(node.bodies.reads.load(Ordering::Relaxed), reads + 2, "only new bodies are read");
    assert_loads(&repository, &third, &Snapshot::of(&node.store)).await;
    // The first one does not rely upon those after it.
    let ids = [&first.id, &second.id, &third.id];
    assert_eq!(Some(&&repository.newest(UID).await.unwrap().unwrap().id), ids.iter().max());
    assert!(repository.newest("another").await.unwrap().is_none());
}

#[tokio::test]
async fn packs_that_are_mostly_dead_are_not_shared_and_go_with_their_backups() {
    let (place, mut node) = (Place::new(), Node::new());
    let uids: Vec<_> = (0..10).map(|number| node.append("INBOX", &noise(number, 200_000))).collect();
    let repository = place.open().await;
    let first = node.back_up(&repository, None).await;
    node.expunge("INBOX", uids[..9].to_vec());
    let second = node.back_up(&repository, Some(&first)).await;
    // The pack is still shared with the first one: it refers to all of it. From the second one on it is mostly dead.
    assert!(second.info().uploaded_bytes < 100_000);
    let third = node.back_up(&repository, Some(&second)).await;
    assert!((200_000..300_000).contains(&third.info().uploaded_bytes), "{}", third.info().uploaded_bytes);
    for manifest in [&first, &second] {
        repository.delete(&manifest.id).await.unwrap();
    }
    let utc = jiff::tz::TimeZone::UTC;
    let pruned = repository.prune(|_| true, &Default::default(), &utc, NO_GRACE, false).await.unwrap();
    assert!(pruned.bytes > 2_000_000, "{pruned:?}");
    assert_loads(&repository, &third, &Snapshot::of(&node.store)).await;
    assert!(repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap().is_good());
}

#[tokio::test]
async fn a_parent_of_another_cluster_or_of_a_later_state_is_not_relied_upon() {
    let (place, mut node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    node.append("INBOX", b"later");
    let first = node.back_up(&repository, None).await;
    // A cluster that was set back has used the same body ids for other bodies.
    let mut other = Node::with_mail();
    let parent = first.group(GROUP).unwrap();
    let again = take_group(&repository, other.source(GROUP), Some(parent), |_| {}, CancellationToken::new())
        .await
        .unwrap();
    assert!(again.uploaded_bytes > 900_000, "{}", again.uploaded_bytes);
    for _ in 0..5 {
        other.append("INBOX", b"other");
    }
    let elsewhere = Source { cluster_uid: "elsewhere", ..other.source(GROUP) };
    let taken =
        take_group(&repository, elsewhere, Some(parent), |_| {}, CancellationToken::new()).await.unwrap();
    assert!(taken.uploaded_bytes > 900_000, "{}", taken.uploaded_bytes);
}

#[tokio::test]
async fn an_empty_group_and_resources_are_part_of_a_backup() {
    let (place, node) = (Place::new(), Node::new());
    let repository = place.open().await;
    let lease = repository.lease("a test").await.unwrap();
    let mut draft = draft(now());
    draft.groups.push(node.take(&repository, GROUP, None).await);
    draft.resources = Some(repository.store_resources(br#"{"kind": "List"}"#).await.unwrap());
    let id = repository.finish(draft, &lease).await.unwrap();
    let manifest = repository.manifest(&id).await.unwrap();
    assert_eq!(manifest.group(GROUP).unwrap().log_index, 0);
    assert_eq!(repository.resources(&manifest).await.unwrap().unwrap(), &br#"{"kind": "List"}"#[..]);
    let dir = tempfile::tempdir().unwrap();
    let loaded = repository.load(&manifest, &[], None, dir.path()).await.unwrap();
    assert_eq!(loaded.store().position(GROUP).unwrap(), None);
    let error = repository.load(&manifest, &[], None, dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("not an empty directory"), "{error}");
    let error = repository.load(&manifest, &[77], None, &dir.path().join("x")).await.unwrap_err();
    assert!(error.to_string().contains("group 77"), "{error}");
}

#[tokio::test]
async fn a_group_s_backup_travels_as_bytes() {
    let (place, node) = (Place::new(), Node::with_mail());
    let group = node.take(&place.open().await, GROUP, None).await;
    assert_eq!(GroupManifest::decode(&group.encode()).unwrap(), group);
    let mut newer = group.encode();
    newer[0] += 1;
    assert_eq!(GroupManifest::decode(&newer).unwrap_err().reason(), "NewerFormat");
}

#[tokio::test]
async fn progress_ends_at_the_total() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let (bytes, total, uploaded) =
        (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let tell = {
        let (bytes, total, uploaded) = (Arc::clone(&bytes), Arc::clone(&total), Arc::clone(&uploaded));
        move |progress: Progress| {
            bytes.fetch_max(progress.bytes, Ordering::Relaxed);
            total.store(progress.total_bytes, Ordering::Relaxed);
            uploaded.fetch_max(progress.uploaded_bytes, Ordering::Relaxed);
        }
    };
    let taken =
        take_group(&repository, node.source(GROUP), None, tell, CancellationToken::new()).await.unwrap();
    assert_eq!(bytes.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
    assert_eq!(bytes.load(Ordering::Relaxed), taken.counts.body_bytes);
    assert_eq!(uploaded.load(Ordering::Relaxed), taken.uploaded_bytes);
}

#[tokio::test]
async fn a_backup_that_is_given_up_leaves_no_backup() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = take_group(&repository, node.source(GROUP), None, |_| {}, cancel).await.unwrap_err();
    assert_eq!(error.reason(), "Cancelled");
    let limits = Limits { deadline: Some(Duration::ZERO), ..Limits::default() };
    let hurried = Repository::open(RepositoryConfig { limits, ..place.config() }).await.unwrap();
    let taken = take_group(&hurried, node.source(GROUP), None, |_| {}, CancellationToken::new()).await;
    assert_eq!(taken.unwrap_err().reason(), "DeadlineExceeded");
    assert!(repository.list().await.unwrap().backups.is_empty());
}

#[tokio::test]
async fn a_backup_whose_packs_are_gone_is_not_finished() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let lease = repository.lease("a test").await.unwrap();
    let mut draft = draft(now());
    draft.groups.push(node.take(&repository, GROUP, None).await);
    let lost = place.objects("packs").remove(0);
    std::fs::remove_file(&lost).unwrap();
    let error = repository.finish(draft.clone(), &lease).await.unwrap_err();
    assert!(error.reason() == "Missing" && error.to_string().contains(&place.name(&lost)), "{error}");
    assert!(repository.list().await.unwrap().backups.is_empty());
    // And the next one stores anew what its parent has lost.
    draft.groups[0] =
        node.take(&repository, GROUP, Some(&manifest_of(&repository, draft.groups[0].clone()))).await;
    let id = repository.finish(draft, &lease).await.unwrap();
    let manifest = repository.manifest(&id).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let loaded = repository.load(&manifest, &[], None, dir.path()).await.unwrap();
    assert_eq!(messages(loaded.store()), messages(&node.store));
}

fn manifest_of(repository: &Repository, group: GroupManifest) -> Manifest {
    Manifest {
        id: BackupId::new(now()),
        repository: repository.id().to_owned(),
        key_id: repository.key_id().to_owned(),
        cluster: Cluster::default(),
        started: now(),
        finished: now(),
        parent: None,
        trigger: Trigger::Manual("test".into()),
        groups: vec![group],
        resources: None,
        version: String::new(),
    }
}

#[tokio::test]
async fn mail_that_comes_meanwhile_is_not_in_the_backup_and_does_not_disturb_it() {
    let (place, mut node) = (Place::new(), Node::with_mail());
    let before = Snapshot::of(&node.store);
    let repository = place.open().await;
    // The rate limit holds it up: it has taken its view of the state long before it is done.
    let limits = Limits { bytes_per_second: Some(400_000), ..Limits::default() };
    let slow = Repository::open(RepositoryConfig { limits, ..place.config() }).await.unwrap();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let started = std::sync::Mutex::new(Some(started));
    let tell = move |_| {
        if let Some(started) = started.lock().unwrap().take() {
            let _ = started.send(());
        }
    };
    let (store, slow) = (node.store.clone(), slow.clone());
    let taking = tokio::spawn(async move {
        let source = Source { store: &store, group: GROUP, cluster_uid: UID, log_index };
        take_group(&slow, source, None, tell, CancellationToken::new()).await
    });
    has_started.await.unwrap();
    let at = node.index;
    assert!(matches!(node.run(GROUP, append("INBOX"), b"meanwhile"), Applied::Appended { .. }));
    node.run(GROUP, Op::DropChunks(Timestamp(i64::MAX)), b"");
    let partition = taking.await.unwrap().unwrap();
    assert_eq!(partition.log_index, at);
    let lease = repository.lease("a test").await.unwrap();
    let mut draft = draft(now());
    draft.groups = vec![partition, node.take(&repository, 0, None).await];
    let id = repository.finish(draft, &lease).await.unwrap();
    assert_loads(&repository, &repository.manifest(&id).await.unwrap(), &before).await;
}
