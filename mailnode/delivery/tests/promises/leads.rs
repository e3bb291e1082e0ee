//! Leads that come and go, stops, and a queue that cannot be reached for a while.

use std::sync::atomic::Ordering;

use crate::world::{P1, Scene, address, now, several_rounds, until, within};

#[tokio::test]
async fn a_node_works_only_on_partitions_that_it_leads() {
    let scene = Scene::new();
    scene.node.led.send_replace(vec![]);
    several_rounds().await;
    scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    several_rounds().await;
    assert!(scene.systems.sent.lock().is_empty());
    scene.node.led.send_replace(vec![P1]);
    until("delivery", || scene.world.is_empty()).await;
}

#[tokio::test]
async fn another_node_takes_over_without_repeating_what_is_done() {
    let scene = Scene::new();
    scene.systems.gated.lock().insert("mx.slow.org".into());
    for _ in 0..20 {
        scene.world.enqueue(Some("alice@z.org"), &["done@x.org"], now());
    }
    until("the first part", || scene.world.is_empty()).await;
    for _ in 0..20 {
        scene.world.enqueue(Some("alice@z.org"), &["slow@slow.org"], now());
    }
    until("transactions", || scene.systems.at_once.load(Ordering::SeqCst) == 10).await;

    // The lead goes, and what is in progress ends: nothing new is begun.
    scene.node.led.send_replace(vec![]);
    several_rounds().await;
    scene.systems.gate.add_permits(10);
    until("the transactions to be recorded", || scene.world.entries.lock().len() == 10).await;
    assert_eq!(scene.systems.sent.lock().len(), 30);

    let other = scene.another(vec![P1]);
    scene.systems.gate.add_permits(1000);
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.systems.sent.lock().len(), 40);
    let taken = scene.systems.taken.lock();
    assert_eq!(taken.iter().filter(|to| **to == address("slow@slow.org")).count(), 20);
    drop(other);
}

#[tokio::test]
async fn a_stop_lets_transactions_in_progress_end_and_begins_no_others() {
    let mut scene = Scene::new();
    scene.systems.gated.lock().insert("mx.x.org".into());
    for _ in 0..15 {
        scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    }
    until("transactions", || scene.systems.at_once.load(Ordering::SeqCst) == 10).await;
    scene.node.stop.cancel();
    several_rounds().await;
    assert!(!scene.node.task.is_finished());
    scene.systems.gate.add_permits(1000);
    within("the stop", &mut scene.node.task).await.unwrap();
    assert_eq!(scene.world.entries.lock().len(), 5);
    assert_eq!(scene.systems.sent.lock().len(), 10);
}

#[tokio::test]
async fn mail_goes_out_once_although_the_queue_cannot_record_it_for_a_while() {
    let scene = Scene::new();
    scene.systems.gated.lock().insert("mx.x.org".into());
    scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    until("the transaction", || scene.systems.at_once.load(Ordering::SeqCst) == 1).await;
    scene.world.unavailable.store(true, Ordering::SeqCst);
    scene.systems.gate.add_permits(1);
    several_rounds().await;
    assert!(!scene.world.is_empty());
    scene.world.unavailable.store(false, Ordering::SeqCst);
    until("the record", || scene.world.is_empty()).await;
    several_rounds().await;
    assert_eq!(scene.systems.sent.lock().len(), 1);
}

#[tokio::test]
async fn many_messages_all_arrive_once() {
    let scene = Scene::new();
    let mut expected = Vec::new();
    for n in 0..3000 {
        let to = format!("u{n}@d{}.org", n % 30);
        scene.world.enqueue(Some("alice@z.org"), &[&to], now());
        expected.push(address(&to));
    }
    until("everything to be done", || scene.world.is_empty()).await;
    let mut taken = scene.systems.taken.lock().clone();
    taken.sort();
    expected.sort();
    assert_eq!(taken, expected);
}
