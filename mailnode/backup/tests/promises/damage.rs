//! Damage: found, named, and no more lost than is damaged.

use std::collections::BTreeSet;

use quorumail_backup::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::world::*;

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    seed
}

#[tokio::test]
async fn a_flipped_bit_in_any_object_is_found_and_named_and_the_rest_is_there() {
    let mut random = StdRng::seed_from_u64(seed());
    let (place, mut node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let first = node.back_up(&repository, None).await;
    node.append("INBOX", b"Subject: second\r\n\r\nBackup.\r\n");
    let second = node.back_up(&repository, Some(&first)).await;
    let mut builder = archive::RunBuilder::new(UID, GROUP, 1).unwrap();
    for (group, index, at, command) in &node.log {
        builder.push(*index, (*group == GROUP).then_some((*at, &command[..]))).unwrap();
    }
    repository.ship(builder.finish(now())).await.unwrap();
    let good = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
    assert!(good.is_good() && good.backups == 2 && good.read_objects == good.packs + 1, "{good:?}");
    let expected = messages(&node.store);

    let objects = [place.objects("packs"), place.objects("backups"), place.objects("archive")].concat();
    assert!(objects.len() > 8, "{objects:?}");
    for object in &objects {
        let name = place.name(object);
        let whole = std::fs::read(object).unwrap();
        for _ in 0..3 {
            let bit = random.random_range(0..whole.len() * 8);
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(object, &flipped).unwrap();
            let found = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
            let named: Vec<_> = found.damage.iter().map(|damage| damage.object.as_str()).collect();
            assert_eq!(named, [name.as_str()], "bit {bit}: {found:?}");

            // Whatever can be loaded is as it was.
            if let Ok(manifest) = repository.manifest(&second.id).await {
                let dir = tempfile::tempdir().unwrap();
                let loaded = repository.load(&manifest, &[], None, dir.path()).await.unwrap();
                let read = if loaded.reached().contains_key(&GROUP) {
                    messages(loaded.store())
                } else {
                    Default::default()
                };
                let lost = read.values().filter(|message| message.is_err()).count();
                for (message, body) in &read {
                    match body {
                        Ok(body) => assert_eq!(expected[message].as_ref(), Ok(body)),
                        Err(reason) => {
                            assert!(reason.contains(&name) || reason.contains("damaged"), "{reason}")
                        }
                    }
                }
                // What is named by the load or by a body is named by the verification for this backup.
                if lost > 0 || !loaded.damage().is_empty() {
                    let backups: BTreeSet<_> =
                        found.damage[0].touches.iter().map(|touched| &touched.backup).collect();
                    assert!(backups.contains(&second.id), "bit {bit} of {name}: {found:?}");
                }
                for damage in loaded.damage() {
                    assert_eq!(damage.object, name);
                }
            } else {
                assert_eq!(name, format!("backups/{}", second.id));
                assert_eq!(repository.list().await.unwrap().unreadable[0].id, second.id.to_string());
                assert_eq!(repository.list().await.unwrap().backups.len(), 1);
            }
        }
        std::fs::write(object, &whole).unwrap();
    }
    let good = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
    assert!(good.is_good(), "{good:?}");
    assert!(place.objects("damaged").is_empty(), "marks go when the pack is good again");
}

#[tokio::test]
async fn an_object_that_is_cut_off_is_named_and_the_next_backup_is_whole() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    let expected = Snapshot::of(&node.store);
    for object in place.objects("packs") {
        let name = place.name(&object);
        let whole = std::fs::read(&object).unwrap();
        for len in [0, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&object, &whole[..len]).unwrap();
            let found = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
            assert!(
                found.damage.iter().any(|damage| damage.object == name),
                "{name} of {len} bytes: {found:?}"
            );
            let dir = tempfile::tempdir().unwrap();
            let loaded = repository.load(&manifest, &[], None, dir.path()).await.unwrap();
            assert!(loaded.damage().iter().all(|damage| damage.object == name), "{:?}", loaded.damage());
            // As the scheduled one after it would be.
            let next = node.back_up(&repository, Some(&manifest)).await;
            assert_loads(&repository, &next, &expected).await;
            repository.delete(&next.id).await.unwrap();
        }
        std::fs::write(&object, &whole).unwrap();
        assert!(repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap().is_good());
    }
}

#[tokio::test]
async fn a_damaged_body_is_counted_and_stored_anew_by_the_next_backup() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let first = node.back_up(&repository, None).await;
    let largest =
        place.objects("packs").into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    // In the last of the long message's three parts.
    let middle = bytes.len() - 200_000;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).unwrap();

    let found = repository.verify(Which::Backup(first.id.clone()), Depth::Full, |_| {}).await.unwrap();
    let touched = Touched { backup: first.id.clone(), group: GROUP, messages: 1 };
    assert_eq!(found.damage[0].touches, [touched]);
    let structure = repository.verify(Which::All, Depth::Structure, |_| {}).await.unwrap();
    assert!(structure.is_good() && structure.read_objects == 0);

    let dir = tempfile::tempdir().unwrap();
    let loaded = repository.load(&first, &[], None, dir.path()).await.unwrap();
    let lost: Vec<_> = messages(loaded.store()).into_values().filter_map(Result::err).collect();
    assert!(lost.len() == 1 && lost[0].contains(&place.name(&largest)), "{lost:?}");

    let second = node.back_up(&repository, Some(&first)).await;
    assert!(second.info().uploaded_bytes > 900_000);
    let found = repository.verify(Which::Backup(second.id.clone()), Depth::Full, |_| {}).await.unwrap();
    assert!(found.is_good(), "{found:?}");
    assert_loads(&repository, &second, &Snapshot::of(&node.store)).await;
}

#[tokio::test]
async fn a_missing_pack_is_found_whatever_the_depth() {
    let (place, node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    let lost = place.objects("packs").into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    std::fs::remove_file(&lost).unwrap();
    for depth in [Depth::Structure, Depth::Sample { percent: 50 }, Depth::Full] {
        let found = repository.verify(Which::Backup(manifest.id.clone()), depth, |_| {}).await.unwrap();
        assert_eq!(found.damage.len(), 1);
        assert_eq!(found.damage[0].object, place.name(&lost));
        // 50 distinct bodies (one is there twice), three parts and the one in the queue.
        assert_eq!(found.damage[0].touches[0].messages, 50 + 1 + 3 + 1);
    }
}
