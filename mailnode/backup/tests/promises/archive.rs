//! Points in time.

use jiff::tz::TimeZone;
use quorumail_backup::{archive::*, retention::Retention, *};
use quorumail_store::Timestamp;

use crate::world::*;

/// Ships what the node's log holds of a group after an index, in runs of so many entries.
async fn ship(repository: &Repository, node: &Node, group: u32, after: u64, at_once: u64) -> Vec<RunInfo> {
    let (mut first, mut shipped) = (after + 1, Vec::new());
    while first <= node.index {
        let mut builder = RunBuilder::new(UID, group, first).unwrap();
        let mut through = Timestamp(0);
        for (of, index, at, command) in
            &node.log[first as usize - 1..node.log.len().min((first + at_once) as usize - 1)]
        {
            builder.push(*index, (*of == group).then_some((*at, &command[..]))).unwrap();
            through = *at;
        }
        first = builder.next_index();
        shipped.push(repository.ship(builder.finish(through)).await.unwrap());
    }
    shipped
}

/// A node whose clock shows the wall's, as those of a cluster do.
fn node_of_today() -> Node {
    let mut node = Node::with_mail();
    node.clock = now().0 + 60_000;
    node
}

#[tokio::test]
async fn any_instant_of_the_window_comes_back_and_others_are_refused_with_the_window() {
    let (place, mut node) = (Place::new(), node_of_today());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    let mut states = Vec::new();
    for number in 0..20u64 {
        match number % 4 {
            3 => node.expunge("INBOX", vec![quorumail_store::Uid(number as u32)]),
            _ => {
                node.append("INBOX", &message(1000 + number));
            }
        }
        states.push((Timestamp(node.clock), Snapshot::of(&node.store)));
    }
    for group in [0, GROUP] {
        // They may begin before what the backup holds.
        let after = manifest.group(group).unwrap().log_index - 2;
        ship(&repository, &node, group, after, 7).await;
    }
    let windows = repository.window(UID).await.unwrap();
    assert_eq!(windows.len(), 1);
    assert_eq!(windows[0].latest, Timestamp(node.clock));

    for (at, expected) in [&states[0], &states[7], &states[19]] {
        assert_eq!(repository.for_instant(UID, *at).await.unwrap().id, manifest.id);
        let dir = tempfile::tempdir().unwrap();
        let loaded = repository.load(&manifest, &[], Some(*at), dir.path()).await.unwrap();
        assert_eq!(&Snapshot::of(loaded.store()), expected);
        assert_eq!(loaded.reached()[&GROUP].at, *at);
    }
    // Right before the last command.
    let dir = tempfile::tempdir().unwrap();
    let at = Timestamp(node.clock - 1);
    let loaded = repository.load(&manifest, &[GROUP], Some(at), dir.path()).await.unwrap();
    assert_eq!(loaded.reached()[&GROUP].log_index, node.index - 1);

    for at in [windows[0].earliest.plus_millis(-1), windows[0].latest.plus_millis(1)] {
        let error = repository.for_instant(UID, at).await.unwrap_err();
        assert_eq!(error.reason(), "OutsideWindow");
        let year = jiff::Timestamp::now().strftime("%Y-").to_string();
        assert!(
            error.to_string().matches(&year).count() >= 3,
            "it names the instant and the window: {error}"
        );
        let error = repository.load(&manifest, &[], Some(at), &dir.path().join("x")).await.unwrap_err();
        assert_eq!(error.reason(), "OutsideWindow");
    }
    assert!(
        matches!(repository.for_instant("nobody", at).await, Err(RepositoryError::OutsideWindow { windows, .. }) if windows.is_empty())
    );
}

#[tokio::test]
async fn a_gap_ends_the_window_and_a_run_without_commands_moves_it_on() {
    let (place, mut node) = (Place::new(), node_of_today());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    for number in 0..12 {
        node.append("INBOX", &message(number));
    }
    let mut runs = Vec::new();
    for group in [0, GROUP] {
        runs.push(ship(&repository, &node, group, manifest.group(group).unwrap().log_index, 4).await);
    }
    let idle = Timestamp(node.clock + 60_000);
    for group in [0, GROUP] {
        let run = RunBuilder::new(UID, group, node.index + 1).unwrap().finish(idle);
        repository.ship(run).await.unwrap();
    }
    assert_eq!(repository.window(UID).await.unwrap()[0].latest, idle);
    let lost = &runs[1][1];
    let of_lost =
        |object: &std::path::PathBuf| object.to_str().unwrap().contains(&format!("/1/{:020}-", lost.first));
    std::fs::remove_file(place.objects("archive").into_iter().find(of_lost).unwrap()).unwrap();
    assert_eq!(
        repository.window(UID).await.unwrap(),
        [Window {
            earliest: manifest.groups.iter().map(|group| group.applied_at).max().unwrap(),
            latest: runs[1][0].last_at,
        }]
    );
}

#[tokio::test]
async fn runs_before_the_oldest_backup_go_with_a_prune() {
    let (place, mut node) = (Place::new(), node_of_today());
    let repository = place.open().await;
    let first = node.back_up(&repository, None).await;
    for number in 0..8 {
        node.append("INBOX", &message(number));
    }
    ship(&repository, &node, GROUP, first.group(GROUP).unwrap().log_index, 4).await;
    while now() <= first.started {
        std::hint::spin_loop();
    }
    let second = node.back_up(&repository, Some(&first)).await;
    node.append("INBOX", b"after");
    ship(&repository, &node, GROUP, second.group(GROUP).unwrap().log_index, 4).await;
    assert_eq!(place.objects("archive").len(), 3);
    let keep_one = Retention { last: 1, ..Retention::default() };
    let pruned = repository.prune(|_| true, &keep_one, &TimeZone::UTC, NO_GRACE, false).await.unwrap();
    assert_eq!((pruned.removed, pruned.archive_runs), (vec![first.id], 2));
    assert_eq!(place.objects("archive").len(), 1);
}

#[tokio::test]
async fn a_damaged_run_is_named_and_ends_the_restore() {
    let (place, mut node) = (Place::new(), node_of_today());
    let repository = place.open().await;
    let manifest = node.back_up(&repository, None).await;
    let from = node.index;
    node.append("INBOX", b"after");
    for group in [0, GROUP] {
        ship(&repository, &node, group, from, 4).await;
    }
    for object in place.objects("archive") {
        let mut bytes = std::fs::read(&object).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&object, bytes).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let error =
        repository.load(&manifest, &[GROUP], Some(Timestamp(node.clock)), dir.path()).await.unwrap_err();
    assert!(error.reason() == "Damaged" && error.to_string().contains("archive/"), "{error}");
}
