//! Mail for other systems.

use std::{sync::atomic::Ordering, time::Duration};

use quorumail_delivery::{Event, Limits, Relay, Retry, Tls};
use quorumail_store::QueueClass;

use crate::world::{Remote, Scene, address, now, quick, several_rounds, until};

#[tokio::test]
async fn remote_mail_is_delivered_once() {
    let scene = Scene::new();
    scene.world.enqueue(Some("alice@here.org"), &["bob@x.org"], now());
    until("delivery", || scene.world.is_empty()).await;
    several_rounds().await;
    assert_eq!(*scene.systems.taken.lock(), [address("bob@x.org")]);
    assert!(matches!(scene.events.0.lock()[..], [(QueueClass::Remote, Event::Delivered { .. })]));
}

#[tokio::test]
async fn recipients_of_one_domain_share_a_transaction() {
    let scene = Scene::new();
    scene.world.enqueue(Some("alice@here.org"), &["a@x.org", "b@y.org", "c@x.org"], now());
    until("delivery", || scene.world.is_empty()).await;
    let mut sent = scene.systems.sent.lock().clone();
    sent.sort();
    let expected = [
        ("mx.x.org".to_owned(), vec![address("a@x.org"), address("c@x.org")]),
        ("mx.y.org".to_owned(), vec![address("b@y.org")]),
    ];
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn deferred_mail_is_delivered_later() {
    let scene = Scene::new();
    scene.systems.script("mx.x.org", [Remote::Says(451, "4.7.1 greylisted"), Remote::Unreachable]);
    scene.world.enqueue(Some("alice@here.org"), &["bob@x.org"], now());
    until("delivery", || scene.world.is_empty()).await;
    assert_eq!(scene.systems.sent.lock().len(), 3);
    assert_eq!(*scene.systems.taken.lock(), [address("bob@x.org")]);
    assert!(scene.world.reports.lock().is_empty());
}

#[tokio::test]
async fn a_deferral_is_written_down() {
    let retry = Retry { initial: Duration::from_secs(60), max: Duration::from_secs(3600), ..quick().retry };
    let scene = Scene::with(quorumail_delivery::Config { retry, ..quick() });
    scene.systems.script("mx.x.org", [Remote::Says(451, "4.7.1 greylisted")]);
    let started = now();
    let id = scene.world.enqueue(Some("alice@here.org"), &["bob@x.org"], started);
    until("the deferral", || scene.world.entry(id).unwrap().recipients[0].attempts == 1).await;
    let recipient = scene.world.entry(id).unwrap().recipients.remove(0);
    assert_eq!(recipient.last_error, "451 4.7.1 greylisted");
    let wait = recipient.next_attempt.0 - started;
    assert!((51_000..75_000).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_refused_recipient_is_reported_at_once_and_the_others_are_delivered() {
    let scene = Scene::new();
    scene.systems.script("mx.x.org", [Remote::SaysOfFirst(550, "5.1.1 no such user")]);
    scene.world.local.lock().entry("alice@here.org".into()).or_default();
    scene.world.enqueue(Some("alice@here.org"), &["nobody@x.org", "bob@x.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;

    assert_eq!(*scene.systems.taken.lock(), [address("bob@x.org")]);
    let reports = scene.world.reports.lock();
    let [(entry, text)] = reports.as_slice() else { panic!("one report, not {}", reports.len()) };
    assert_eq!(entry.reverse_path, None);
    for expected in [
        "Final-Recipient: rfc822; nobody@x.org\r\n",
        "Status: 5.1.1\r\n",
        "Remote-MTA: dns; mx.x.org\r\n",
        "Diagnostic-Code: smtp; 550 5.1.1 no such user\r\n",
        "Subject: hello\r\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert!(!text.contains("bob@x.org"));
    let mailboxes = scene.world.mailboxes.lock();
    assert_eq!(
        mailboxes.iter().map(|(_, to, _)| to.clone()).collect::<Vec<_>>(),
        [address("alice@here.org")]
    );
}

#[tokio::test]
async fn all_that_fail_in_one_round_are_in_one_report() {
    let scene = Scene::new();
    scene.systems.script("mx.x.org", [Remote::Says(550, "5.1.1 no")]);
    scene.systems.script("mx.y.org", [Remote::Says(554, "5.7.1 no")]);
    scene.world.enqueue(Some("alice@z.org"), &["a@x.org", "b@x.org", "c@y.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    let reports = scene.world.reports.lock();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].1.matches("Final-Recipient: ").count(), 3);
    assert_eq!(reports[0].1.matches("Status: 5.7.1").count(), 1);
}

#[tokio::test]
async fn mail_that_cannot_be_delivered_in_time_is_given_up_with_a_report() {
    let retry = Retry { give_up_after: Duration::from_millis(300), ..quick().retry };
    let scene = Scene::with(quorumail_delivery::Config { retry, ..quick() });
    scene.systems.script("mx.x.org", std::iter::repeat_n(Remote::Unreachable, 1000));
    scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    let reports = scene.world.reports.lock();
    assert_eq!(reports.len(), 1);
    assert!(reports[0].1.contains("Status: 4.4.1\r\n"), "{}", reports[0].1);
    assert!(reports[0].1.contains("connection refused"));
    assert!(scene.systems.sent.lock().len() > 2);
}

#[tokio::test]
async fn a_domain_with_a_null_mx_is_reported_without_a_connection() {
    let scene = Scene::new();
    scene.systems.mx.lock().insert("x.org".into(), Ok(vec![(0, String::new())]));
    scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    assert!(scene.world.reports.lock()[0].1.contains("Status: 5.1.10\r\n"));
    assert!(scene.systems.sent.lock().iter().all(|(host, _)| host != "mx.x.org"));
}

#[tokio::test]
async fn the_next_host_is_tried_when_one_cannot_be_reached() {
    let scene = Scene::new();
    let records = vec![(20, "third".to_owned()), (10, "second".to_owned()), (5, "first".to_owned())];
    scene.systems.mx.lock().insert("x.org".into(), Ok(records));
    scene.systems.script("first", [Remote::Unreachable]);
    scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    let hosts: Vec<_> = scene.systems.sent.lock().iter().map(|(host, _)| host.clone()).collect();
    assert_eq!(hosts, ["first", "second"]);
}

#[tokio::test]
async fn an_unreachable_destination_is_not_tried_again_for_every_message() {
    let limits = Limits { rest: Duration::from_secs(60), per_destination: 1, ..quick().limits };
    let retry = Retry { initial: Duration::from_secs(60), max: Duration::from_secs(60), ..quick().retry };
    let scene = Scene::with(quorumail_delivery::Config { limits, retry, ..quick() });
    scene.systems.script("mx.x.org", std::iter::repeat_n(Remote::Unreachable, 1000));
    let ids: Vec<_> =
        (0..20).map(|_| scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now())).collect();
    let attempts = |id| scene.world.entry(id).unwrap().recipients[0].attempts;
    until("all to be deferred", || ids.iter().all(|id| attempts(*id) == 1)).await;
    assert_eq!(scene.systems.sent.lock().len(), 1);
}

#[tokio::test]
async fn a_relay_gets_everything_in_one_transaction() {
    let relay = Relay { host: "relay".into(), port: 26, tls: Tls::Opportunistic, credentials: None };
    let scene = Scene::with(quorumail_delivery::Config { relay: Some(relay), ..quick() });
    scene.world.enqueue(Some("alice@z.org"), &["a@x.org", "b@y.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(
        *scene.systems.sent.lock(),
        [("relay".to_owned(), vec![address("a@x.org"), address("b@y.org")])]
    );
}

#[tokio::test]
async fn a_report_that_another_system_refuses_is_dropped() {
    let scene = Scene::new();
    scene.systems.script("mx.x.org", [Remote::Says(550, "5.1.1 no")]);
    scene.world.enqueue(None, &["bob@x.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    assert!(scene.world.reports.lock().is_empty());
    assert_eq!(*scene.events.0.lock(), [(QueueClass::Remote, Event::Dropped)]);
}

#[tokio::test]
async fn bounds_per_destination_and_in_total_hold() {
    let limits = Limits { per_destination: 3, total: 5, ..quick().limits };
    let scene = Scene::with(quorumail_delivery::Config { limits, ..quick() });
    for host in ["mx.x.org", "mx.y.org"] {
        scene.systems.gated.lock().insert(host.into());
    }
    for _ in 0..30 {
        scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    }
    until("three transactions", || scene.systems.at_once.load(Ordering::SeqCst) == 3).await;
    several_rounds().await;
    assert_eq!(scene.systems.most_at_once.load(Ordering::SeqCst), 3);
    for _ in 0..30 {
        scene.world.enqueue(Some("alice@z.org"), &["bob@y.org"], now());
    }
    until("five transactions", || scene.systems.at_once.load(Ordering::SeqCst) == 5).await;
    scene.systems.gate.add_permits(1000);
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.systems.most_at_once.load(Ordering::SeqCst), 5);
    assert_eq!(scene.systems.taken.lock().len(), 60);
}

#[tokio::test]
async fn a_slow_destination_does_not_hold_up_others() {
    let scene = Scene::new();
    scene.systems.gated.lock().insert("mx.slow.org".into());
    for _ in 0..400 {
        scene.world.enqueue(Some("alice@z.org"), &["bob@slow.org"], now() - 1000);
    }
    until("transactions", || scene.systems.at_once.load(Ordering::SeqCst) == 10).await;
    scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    until("delivery", || *scene.systems.taken.lock() == [address("bob@x.org")]).await;
    scene.systems.gate.add_permits(1000);
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.systems.started.load(Ordering::SeqCst), 401);
}

#[tokio::test]
async fn what_was_delivered_is_recorded_while_another_destination_takes_long() {
    let scene = Scene::new();
    scene.systems.gated.lock().insert("mx.slow.org".into());
    let id = scene.world.enqueue(Some("alice@z.org"), &["bob@x.org", "eve@slow.org"], now());
    until("the record", || scene.world.entry(id).unwrap().recipients.len() == 1).await;
    assert_eq!(scene.world.entry(id).unwrap().recipients[0].address, address("eve@slow.org"));
    scene.systems.gate.add_permits(1);
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.systems.sent.lock().len(), 2);
}

#[tokio::test]
async fn held_and_bad_recipients_are_left_alone() {
    let scene = Scene::new();
    let id = scene.world.enqueue(Some("alice@z.org"), &["held@x.org", "bad@x.org"], now() + 200);
    scene.world.edit(id, |entry| {
        entry.recipients[0].class = QueueClass::Held;
        entry.recipients[1].class = QueueClass::Bad;
    });
    let before = scene.world.entry(id);
    let other = scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now() + 300);
    until("what came later", || scene.world.entry(other).is_none()).await;
    several_rounds().await;
    assert_eq!(scene.world.entry(id), before);
}

#[tokio::test]
async fn a_hold_during_an_attempt_is_kept() {
    let scene = Scene::new();
    scene.systems.gated.lock().insert("mx.x.org".into());
    scene.systems.script("mx.x.org", [Remote::Says(451, "4.7.1 later")]);
    let id = scene.world.enqueue(Some("alice@z.org"), &["bob@x.org"], now());
    until("the transaction", || scene.systems.at_once.load(Ordering::SeqCst) == 1).await;
    scene.world.edit(id, |entry| entry.recipients[0].class = QueueClass::Held);
    scene.systems.gate.add_permits(1);
    until("the event", || !scene.events.0.lock().is_empty()).await;
    several_rounds().await;
    assert_eq!(scene.world.entry(id).unwrap().recipients[0].class, QueueClass::Held);
    assert_eq!(scene.systems.sent.lock().len(), 1);
}
