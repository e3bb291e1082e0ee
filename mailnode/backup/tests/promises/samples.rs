//! Repositories of earlier formats stay readable: one of each is kept under `tests/samples`.

use std::path::{Path, PathBuf};

use quorumail_backup::*;
use quorumail_store::{Timestamp, Uid};

use crate::world::*;

fn sample(format: u8) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/format-{format}"))
}

fn config(at: PathBuf) -> RepositoryConfig {
    let key = BackupKey::parse(b"the key of the sample repository").unwrap();
    RepositoryConfig { location: Location::Directory(at), key, limits: Limits::default() }
}

/// A copy: whoever reads a repository puts a lock there.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_repository_of_format_1_is_readable() {
    let place = tempfile::tempdir().unwrap();
    copy(&sample(1), place.path());
    let repository = Repository::open(config(place.path().to_owned())).await.unwrap();
    let listing = repository.list().await.unwrap();
    assert!(listing.backups.len() == 2 && listing.unreadable.is_empty(), "{listing:?}");
    for info in &listing.backups {
        let manifest = repository.manifest(&info.id).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let loaded = repository.load(&manifest, &[], None, dir.path()).await.unwrap();
        assert_eq!(loaded.damage(), []);
        let read = messages(loaded.store());
        assert_eq!(read.len() as u64, info.counts.messages);
        for number in 0..5 {
            let body = read[&("INBOX".to_owned(), Uid(number + 1))].as_ref().unwrap();
            assert_eq!(body[..], message(number.into()));
        }
    }
    let newest = listing.backups.iter().max_by_key(|info| info.started).unwrap();
    let manifest = repository.manifest(&newest.id).await.unwrap();
    assert_eq!(repository.resources(&manifest).await.unwrap().unwrap(), &b"{}"[..]);
    let window = repository.window(UID).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let loaded =
        repository.load(&manifest, &[GROUP], Some(window.last().unwrap().latest), dir.path()).await.unwrap();
    assert_eq!(messages(loaded.store()).len() as u64, newest.counts.messages + 1);
}

/// Run once for each format: `cargo test -p quorumail-backup --test promises -- --ignored make_the_sample`.
#[tokio::test]
#[ignore = "makes the sample of the present format, which is committed"]
async fn make_the_sample() {
    let at = sample(FORMAT);
    assert!(!at.exists(), "{} is there already; a sample is never changed", at.display());
    let repository = Repository::create_or_open(config(at)).await.unwrap();
    let mut node = Node::new();
    node.clock = now().0 + 60_000;
    for number in 0..5 {
        node.append("INBOX", &message(number));
    }
    let first = node.back_up(&repository, None).await;
    node.append("Sent", b"Subject: sent\r\n\r\nBye.\r\n");
    let lease = repository.lease("the sample").await.unwrap();
    let mut draft = draft(Timestamp(first.started.0 + 1));
    draft.parent = Some(first.id.clone());
    for group in [0, GROUP] {
        draft.groups.push(node.take(&repository, group, Some(&first)).await);
    }
    draft.resources = Some(repository.store_resources(b"{}").await.unwrap());
    let after: Vec<u64> = draft.groups.iter().map(|group| group.log_index).collect();
    repository.finish(draft, &lease).await.unwrap();
    lease.release().await.unwrap();
    node.append("INBOX", b"Subject: archived\r\n\r\nLate.\r\n");
    for group in [0, GROUP] {
        let after = after[group as usize];
        let mut builder = archive::RunBuilder::new(UID, group, after + 1).unwrap();
        for (of, index, at, command) in &node.log[after as usize..] {
            builder.push(*index, (*of == group).then_some((*at, &command[..]))).unwrap();
        }
        let at = node.log.last().unwrap().2;
        repository.ship(builder.finish(at)).await.unwrap();
    }
}
