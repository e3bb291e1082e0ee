//! Pruning removes what nothing refers to, and nothing else, wherever it is ended.

use std::time::Duration;

use jiff::tz::TimeZone;
use quorumail_backup::{retention::Retention, *};
use quorumail_store::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::world::*;

/// Backups of six days, each with mail of its own, the older mail gone; answers what each held.
async fn history(repository: &Repository, node: &mut Node) -> Vec<(Manifest, Snapshot)> {
    let mut backups: Vec<(Manifest, Snapshot)> = Vec::new();
    let mut before = Vec::new();
    for day in 0..6 {
        node.expunge("INBOX", std::mem::take(&mut before));
        before = (0..5).map(|number| node.append("INBOX", &noise(day * 100 + number, 20_000))).collect();
        let lease = repository.lease("a test").await.unwrap();
        let parent = backups.last().map(|(manifest, _)| manifest);
        let mut draft = draft(Timestamp(1_795_600_000_000 + day as i64 * 86_400_000));
        for group in [0, GROUP] {
            draft.groups.push(node.take(repository, group, parent).await);
        }
        let id = repository.finish(draft, &lease).await.unwrap();
        lease.release().await.unwrap();
        backups.push((repository.manifest(&id).await.unwrap(), Snapshot::of(&node.store)));
    }
    backups
}

#[tokio::test]
async fn retention_is_applied_and_what_stays_is_whole() {
    let (place, mut node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let backups = history(&repository, &mut node).await;
    let keep_two = Retention { last: 2, ..Retention::default() };
    let packs = place.objects("packs").len();

    let dry = repository.prune(|_| true, &keep_two, &TimeZone::UTC, NO_GRACE, true).await.unwrap();
    assert_eq!(place.objects("packs").len(), packs);
    assert_eq!(repository.list().await.unwrap().backups.len(), 6);
    // Packs that nothing refers to yet may belong to a backup that is being made.
    node.append("INBOX", &noise(9999, 20_000));
    node.take(&repository, GROUP, None).await;
    let unfinished = place.objects("packs").len() - packs;
    assert!(unfinished > 0);
    let young = repository.prune(|_| false, &keep_two, &TimeZone::UTC, PRUNE_GRACE, false).await.unwrap();
    assert!(young.removed.is_empty() && young.packs == 0);
    assert_eq!(place.objects("packs").len(), packs + unfinished);
    let old = repository.prune(|_| false, &keep_two, &TimeZone::UTC, NO_GRACE, false).await.unwrap();
    assert!(old.removed.is_empty() && old.packs as usize == unfinished);
    assert_eq!(place.objects("packs").len(), packs);

    let pruned = repository.prune(|_| true, &keep_two, &TimeZone::UTC, NO_GRACE, false).await.unwrap();
    assert_eq!((&pruned.removed, &pruned.kept, pruned.packs), (&dry.removed, &dry.kept, dry.packs));
    assert_eq!(
        pruned.removed,
        backups[..4].iter().map(|(manifest, _)| manifest.id.clone()).collect::<Vec<_>>()
    );
    assert!(pruned.packs > 4 && place.objects("packs").len() == packs - pruned.packs as usize);
    for (manifest, expected) in &backups[4..] {
        assert_loads(&repository, manifest, expected).await;
    }
    assert!(repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap().is_good());
    let again = repository.prune(|_| true, &keep_two, &TimeZone::UTC, NO_GRACE, false).await.unwrap();
    assert!(again.removed.is_empty() && again.packs == 0);
}

#[tokio::test]
async fn a_prune_that_is_ended_anywhere_removes_nothing_that_is_referred_to() {
    let seed: u64 =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (place, mut node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let backups = history(&repository, &mut node).await;
    let (mut ended, utc) = (0, TimeZone::UTC);
    for left in (1..6).rev() {
        let keep = Retention { last: left, ..Retention::default() };
        for _ in 0..4 {
            let prune = repository.prune(|_| true, &keep, &utc, NO_GRACE, false);
            let after = Duration::from_micros(random.random_range(0..4_000));
            if tokio::time::timeout(after, prune).await.is_err() {
                ended += 1;
            }
            // The dead one's lock is in the way until it is stale.
            tokio::task::yield_now().await;
            for lock in place.objects("locks") {
                let _ = std::fs::remove_file(lock);
            }
            let found = repository.verify(Which::All, Depth::Full, |_| {}).await.unwrap();
            assert!(found.is_good(), "{found:?}");
        }
        let pruned = loop {
            match repository.prune(|_| true, &keep, &TimeZone::UTC, NO_GRACE, false).await {
                // A lock that was written while its holder was ended.
                Err(RepositoryError::Busy { .. }) => {
                    for lock in place.objects("locks") {
                        let _ = std::fs::remove_file(lock);
                    }
                }
                pruned => break pruned.unwrap(),
            }
        };
        assert_eq!(pruned.kept.len(), left as usize);
        let (manifest, expected) = &backups[backups.len() - left as usize];
        assert_loads(&repository, manifest, expected).await;
    }
    assert!(ended > 0, "none of the prunes was ended half-way");
    let rest = place.objects("packs").len();
    let used: std::collections::BTreeSet<_> = backups[5].0.packs().map(|used| used.pack).collect();
    assert_eq!(rest, used.len(), "what nothing refers to is gone in the end");
}

#[tokio::test]
async fn backups_of_others_and_packs_of_unreadable_ones_stay() {
    let (place, mut node) = (Place::new(), Node::with_mail());
    let repository = place.open().await;
    let backups = history(&repository, &mut node).await;
    let (bad, keep_one) = (
        place.path().join(format!("backups/{}", backups[2].0.id)),
        Retention { last: 1, ..Default::default() },
    );
    let whole = std::fs::read(&bad).unwrap();
    std::fs::write(&bad, &whole[1..]).unwrap();
    let packs = place.objects("packs");
    let pruned = repository
        .prune(|info| info.id != backups[0].0.id, &keep_one, &TimeZone::UTC, NO_GRACE, false)
        .await
        .unwrap();
    assert_eq!(pruned.removed.len(), 3);
    assert!(pruned.held_back.len() == 1 && pruned.held_back[0].contains(&backups[2].0.id.to_string()));
    assert_eq!(place.objects("packs"), packs);
    std::fs::write(&bad, &whole).unwrap();
    for (manifest, expected) in [&backups[0], &backups[2], &backups[5]] {
        assert_loads(&repository, manifest, expected).await;
    }
}
