//! The course of sessions.

use std::time::Duration;

use quorumail_smtp::{Limits, Service};
use tokio::time::timeout;

use crate::harness::{PATIENCE, Server, address, config};

#[tokio::test]
async fn pipelined_commands_are_answered_in_order() {
    let server = Server::start(config(Service::Mx)).await;
    let mut client = server.connect().await;
    client
        .send(
            "EHLO c\r\nMAIL FROM:<bob@example.com>\r\nRCPT TO:<nobody@example.org>\r\nRCPT TO:<alice@example.org>\r\n\
             RCPT TO:<Alice@example.org>\r\nDATA\r\nSubject: one\r\n\r\n..\r\n.\r\n\
             MAIL FROM:<>\r\nRCPT TO:<carol@example.org>\r\nDATA\r\nrefuse\r\n.\r\nNOOP\r\nQUIT\r\n",
        )
        .await;
    assert_eq!(client.codes(13).await, [250, 250, 550, 250, 250, 354, 250, 250, 250, 354, 554, 250, 221]);
    assert!(client.ended().await);
    let kept = server.room.kept.lock().unwrap();
    let [(envelope, body)] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!(envelope.recipients, [address("alice@example.org")]);
    assert_eq!(&body[..], b"Subject: one\r\n\r\n.\r\n");
}

#[tokio::test]
async fn nothing_is_acknowledged_before_the_backend_has_it() {
    let server = Server::start(config(Service::Mx)).await;
    server.room.open.send_replace(false);
    let mut client = server.greeted().await;
    client.begin().await;
    client.send("text\r\n.\r\n").await;
    timeout(PATIENCE, server.room.begun.subscribe().wait_for(|begun| *begun == 1)).await.unwrap().unwrap();
    assert!(client.is_silent().await);
    server.room.open.send_replace(true);
    assert_eq!(client.reply().await.0, 250);
}

#[tokio::test]
async fn bare_line_feed_never_ends_a_message() {
    let server = Server::start(config(Service::Mx)).await;
    for end in ["\n.\n", "\r\n.\n", "\n.\r\n", "\r.\r", "\r\n.\r"] {
        let mut client = server.greeted().await;
        client.begin().await;
        client.send(format!("text{end}MAIL FROM:<evil@example.com>\r\nRCPT TO:<a@example.org>\r\n")).await;
        let (code, text) = client.reply().await;
        assert_eq!(code, 550, "{end:?}");
        assert!(text.contains("5.6.0"));
        assert!(client.ended().await, "{end:?}");
    }
    assert!(server.room.bodies().is_empty());
}

#[tokio::test]
async fn a_message_with_a_bare_line_feed_is_refused_and_the_session_goes_on() {
    let server = Server::start(config(Service::Mx)).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send("a\nb\r\n.\r\n").await;
    assert_eq!(client.reply().await.0, 550);
    client.begin().await;
    client.send("good\r\n.\r\n").await;
    assert_eq!(client.reply().await.0, 250);
    assert_eq!(server.room.bodies(), [&b"good\r\n"[..]]);
}

#[tokio::test]
async fn mail_is_submitted_only_after_authentication() {
    let mut settings = config(Service::Submission);
    settings.allow_plaintext_auth_from_loopback = true;
    let server = Server::start(settings).await;
    let mut client = server.greeted().await;
    assert_eq!(client.ask("MAIL FROM:<alice@example.org>").await, 530);
    assert_eq!(client.ask("AUTH PLAIN AGFsaWNlQGV4YW1wbGUub3JnAHdyb25n").await, 535);
    assert_eq!(client.ask(&format!("AUTH PLAIN {}", crate::harness::ALICE)).await, 235);
    client.begin().await;
    client.send("text\r\n.\r\n").await;
    assert_eq!(client.reply().await.0, 250);
    let kept = server.room.kept.lock().unwrap();
    assert_eq!(kept[0].0.identity.as_ref().unwrap().address, address("alice@example.org"));
}

#[tokio::test]
async fn a_running_message_is_finished_at_shutdown() {
    let mut server = Server::start(config(Service::Mx)).await;
    let mut idle = server.greeted().await;
    let mut busy = server.greeted().await;
    busy.begin().await;
    server.shutdown.cancel();
    assert_eq!(idle.reply().await.0, 421);
    assert!(idle.ended().await);
    busy.send("text\r\n.\r\n").await;
    assert_eq!(busy.codes(2).await, [250, 421]);
    assert!(busy.ended().await);
    drop((idle, busy));
    timeout(PATIENCE, &mut server.running).await.expect("the server ends").unwrap();
    assert_eq!(server.room.bodies().len(), 1);
}

#[tokio::test]
async fn a_client_that_does_not_finish_cannot_hold_up_a_shutdown() {
    let mut settings = config(Service::Mx);
    settings.limits = Limits { shutdown: Duration::from_millis(200), ..Limits::default() };
    let mut server = Server::start(settings).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send("half a mess").await;
    server.shutdown.cancel();
    assert_eq!(client.reply().await.0, 421);
    timeout(Duration::from_secs(5), &mut server.running)
        .await
        .expect("the server ends in bounded time")
        .unwrap();
    assert!(server.room.bodies().is_empty());
}
