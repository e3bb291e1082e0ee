//! Opening, keys, leases.

use std::time::{Duration, SystemTime};

use quorumail_backup::*;

use crate::world::*;

fn with_key(place: &Place, key: &[u8]) -> RepositoryConfig {
    RepositoryConfig { key: BackupKey::parse(key).unwrap(), ..place.config() }
}

#[tokio::test]
async fn only_its_keys_open_a_repository_and_they_can_be_changed() {
    let place = Place::new();
    let error = Repository::open(place.config()).await.unwrap_err();
    assert_eq!(error.reason(), "NoRepository");
    let repository = place.open().await;
    assert_eq!(place.open().await.id(), repository.id());

    const WORDS: &[u8] = b"correct horse battery staple";
    for key in [WORDS, &[1; 32]] {
        let error = Repository::create_or_open(with_key(&place, key)).await.unwrap_err();
        assert!(error.reason() == "WrongKey" && error.to_string().contains(repository.key_id()), "{error}");
    }
    let new = repository.add_key(&BackupKey::parse(WORDS).unwrap()).await.unwrap();
    assert!(repository.remove_key(repository.key_id()).await.is_err(), "not the one in use");
    assert!(repository.remove_key("../repository.json").await.is_err());
    let renewed = Repository::open(with_key(&place, WORDS)).await.unwrap();
    assert_eq!((renewed.id(), renewed.key_id()), (repository.id(), new.as_str()));
    renewed.remove_key(repository.key_id()).await.unwrap();
    assert_eq!(renewed.keys().await.unwrap(), [new]);
    assert_eq!(Repository::open(place.config()).await.unwrap_err().reason(), "WrongKey");
}

#[tokio::test]
async fn a_backup_is_read_with_a_key_that_was_added_later() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    repository.add_key(&BackupKey::parse(&[1; 32]).unwrap()).await.unwrap();
    let renewed = Repository::open(with_key(&place, &[1; 32])).await.unwrap();
    renewed.remove_key(repository.key_id()).await.unwrap();
    assert_loads(&renewed, &manifest, &Snapshot::of(&node.store)).await;
}

#[tokio::test]
async fn of_many_who_make_a_repository_at_once_all_get_the_same() {
    let place = Place::new();
    let words = with_key(&place, b"correct horse battery staple");
    for config in [place.config(), words] {
        let place = Place::new();
        let config = RepositoryConfig { location: place.config().location, ..config };
        let made =
            futures::future::join_all((0..4).map(|_| Repository::create_or_open(config.clone()))).await;
        let ids: std::collections::BTreeSet<_> =
            made.iter().map(|made| made.as_ref().unwrap().id().to_owned()).collect();
        assert_eq!(ids.len(), 1);
        // All seal with the same master key.
        let node = Node::with_mail();
        let manifest = node.back_up(made[0].as_ref().unwrap(), None).await;
        assert_loads(made[3].as_ref().unwrap(), &manifest, &Snapshot::of(&node.store)).await;
        assert!(Repository::open(config).await.is_ok());
    }
}

#[tokio::test]
async fn a_repository_of_the_next_format_is_refused_with_both_formats() {
    let place = Place::new();
    place.open().await;
    let head = place.path().join("repository.json");
    let text = std::fs::read_to_string(&head).unwrap();
    std::fs::write(&head, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let error = Repository::create_or_open(place.config()).await.unwrap_err();
    assert_eq!(error.reason(), "NewerFormat");
    assert!(error.to_string().contains("format 2") && error.to_string().contains("up to 1"), "{error}");
    std::fs::write(&head, "nonsense").unwrap();
    assert_eq!(Repository::create_or_open(place.config()).await.unwrap_err().reason(), "Damaged");
}

#[tokio::test]
async fn writers_share_and_a_prune_is_alone() {
    let place = Place::new();
    let repository = place.open().await;
    let utc = jiff::tz::TimeZone::UTC;
    let keep_all = retention::Retention::default();
    let prune = || repository.prune(|_| true, &keep_all, &utc, NO_GRACE, false);
    let one = repository.lease("backup one").await.unwrap();
    let other = repository.lease("backup two").await.unwrap();
    let error = prune().await.unwrap_err();
    assert!(error.reason() == "Busy" && error.to_string().contains("backup "), "{error}");
    one.release().await.unwrap();
    other.release().await.unwrap();
    assert!(place.objects("locks").is_empty());
    prune().await.unwrap();

    // A holder that died.
    let lease = repository.lease("a dead one").await.unwrap();
    let lock = place.objects("locks").remove(0);
    let died = SystemTime::now() - LEASE - Duration::from_secs(1);
    std::fs::File::options().append(true).open(&lock).unwrap().set_modified(died).unwrap();
    prune().await.unwrap();
    assert!(place.objects("locks").is_empty());
    drop(lease);

    // A prune that died keeps backups off only as long as its lease.
    std::fs::create_dir_all(place.path().join("locks")).unwrap();
    let lock = place.path().join("locks/exclusive-0");
    std::fs::write(&lock, r#"{"holder": "a prune"}"#).unwrap();
    assert_eq!(repository.lease("a backup").await.err().unwrap().reason(), "Busy");
    std::fs::File::options().append(true).open(&lock).unwrap().set_modified(died).unwrap();
    repository.lease("a backup").await.unwrap().release().await.unwrap();
}
