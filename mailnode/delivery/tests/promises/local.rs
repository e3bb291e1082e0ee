//! Mail for mailboxes of this cluster.

use std::time::Duration;

use quorumail_delivery::{Event, Retry};
use quorumail_store::QueueClass;

use crate::world::{Mailbox, Scene, address, now, quick, until};

#[tokio::test]
async fn local_mail_reaches_every_mailbox_once() {
    let scene = Scene::new();
    for name in ["a@here.org", "b@here.org"] {
        scene.world.local.lock().entry(name.into()).or_default();
    }
    scene.world.enqueue(Some("x@x.org"), &["a@here.org", "b@here.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    let mut to: Vec<_> = scene.world.mailboxes.lock().iter().map(|(_, to, _)| to.clone()).collect();
    to.sort();
    assert_eq!(to, [address("a@here.org"), address("b@here.org")]);
}

#[tokio::test]
async fn a_local_delivery_whose_answer_was_lost_is_repeated_as_the_same_command() {
    let scene = Scene::new();
    scene.world.local.lock().entry("a@here.org".into()).or_default().push_back(Mailbox::TakesSilently);
    scene.world.enqueue(Some("x@x.org"), &["a@here.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.world.mailboxes.lock().len(), 1);
    let commands = scene.world.commands.lock();
    assert!(commands.len() >= 2 && commands.iter().all(|command| *command == commands[0]));
    assert!(scene.world.reports.lock().is_empty());
}

#[tokio::test]
async fn a_full_mailbox_is_tried_again_and_gets_the_mail_once_there_is_room() {
    let scene = Scene::new();
    let full = [Mailbox::IsFull, Mailbox::IsFull];
    scene.world.local.lock().entry("a@here.org".into()).or_default().extend(full);
    scene.world.enqueue(Some("x@x.org"), &["a@here.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.world.mailboxes.lock().len(), 1);
    assert_eq!(scene.world.commands.lock().len(), 3);
}

#[tokio::test]
async fn a_mailbox_that_stays_full_is_reported_in_the_end() {
    let retry = Retry { give_up_after: Duration::from_millis(200), ..quick().retry };
    let scene = Scene::with(quorumail_delivery::Config { retry, ..quick() });
    let full = std::iter::repeat_n(Mailbox::IsFull, 1000);
    scene.world.local.lock().entry("a@here.org".into()).or_default().extend(full);
    scene.world.enqueue(Some("x@x.org"), &["a@here.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    assert!(scene.world.reports.lock()[0].1.contains("Status: 4.2.2\r\n"));
    assert_eq!(*scene.systems.taken.lock(), [address("x@x.org")]);
}

#[tokio::test]
async fn an_unknown_mailbox_is_reported_at_once() {
    let scene = Scene::new();
    scene.world.enqueue(Some("x@x.org"), &["nobody@here.org"], now());
    until("everything to be done", || scene.world.is_empty()).await;
    let reports = scene.world.reports.lock();
    assert_eq!(reports.len(), 1);
    assert!(reports[0].1.contains("Status: 5.1.1\r\n"));
    assert!(reports[0].1.contains("Diagnostic-Code: x-quorumail; 5.1.1 there is no such mailbox here\r\n"));
}

#[tokio::test]
async fn a_report_to_an_unknown_mailbox_waits_for_a_person() {
    let scene = Scene::new();
    let id = scene.world.enqueue(None, &["nobody@here.org"], now());
    until("the class", || scene.world.entry(id).unwrap().recipients[0].class == QueueClass::Bad).await;
    until("the event", || *scene.events.0.lock() == [(QueueClass::Local, Event::Bad)]).await;
    assert!(scene.world.reports.lock().is_empty());
}

#[tokio::test]
async fn mail_for_a_domain_that_became_ours_does_not_leave() {
    let scene = Scene::new();
    scene.world.local.lock().entry("a@here.org".into()).or_default();
    let id = scene.world.enqueue(Some("x@x.org"), &["a@here.org"], now() + 200);
    scene.world.edit(id, |entry| entry.recipients[0].class = QueueClass::Remote);
    until("everything to be done", || scene.world.is_empty()).await;
    assert_eq!(scene.world.mailboxes.lock().len(), 1);
    assert!(scene.systems.sent.lock().is_empty());
}
