//! What a client cannot do, however it tries.

use std::time::{Duration, Instant};

use quorumail_smtp::{Budget, Closed, Event, Limit, Limits, ProtocolError, Service};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Server, Wire, config};

#[tokio::test]
async fn an_oversize_message_is_refused_and_the_session_goes_on() {
    let server = Server::start(config(Service::Mx)).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send(("x".repeat(98) + "\r\n").repeat(1500)).await;
    client.send(".\r\n").await;
    let (code, text) = client.reply().await;
    assert_eq!((code, &text[4..9]), (552, "5.3.4"));
    client.begin().await;
    client.send(("x".repeat(98) + "\r\n").repeat(1000)).await;
    client.send(".\r\n").await;
    assert_eq!(client.reply().await.0, 250);
    assert_eq!(server.room.bodies()[0].len(), 100_000);
}

#[tokio::test]
async fn an_endless_message_ends_the_session() {
    let server = Server::start(config(Service::Mx)).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send(("x".repeat(98) + "\r\n").repeat(4000)).await;
    assert_eq!(client.reply().await.0, 552);
    assert!(client.ended().await);
}

#[tokio::test]
async fn an_oversize_line_of_a_message_is_refused() {
    let server = Server::start(config(Service::Mx)).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send("x".repeat(9000) + "\r\n.\r\n").await;
    assert_eq!(client.reply().await.0, 552);
    assert_eq!(client.ask("NOOP").await, 250);
    assert!(server.room.saw(Event::Limited(Limit::TextLine)));
}

#[tokio::test]
async fn an_oversize_command_is_refused_and_an_endless_one_ends_the_session() {
    let server = Server::start(config(Service::Mx)).await;
    let mut client = server.greeted().await;
    assert_eq!(client.ask(&"x".repeat(5000)).await, 500);
    assert_eq!(client.ask("NOOP").await, 250);
    client.send("x".repeat(200_000)).await;
    assert_eq!(client.reply().await.0, 500);
    assert!(client.ended().await);
}

#[tokio::test]
async fn a_slow_client_is_closed_even_if_it_keeps_sending() {
    let mut settings = config(Service::Mx);
    settings.limits = Limits { idle: Duration::from_millis(400), ..Limits::default() };
    let server = Server::start(settings).await;
    let mut client = server.connect().await;
    let begun = Instant::now();
    while client.is_silent().await {
        assert!(begun.elapsed() < PATIENCE, "the slow client is still served");
        client.send("N").await;
    }
    assert_eq!(client.reply().await.0, 421);
    assert!(client.ended().await);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_slow_message_is_cut_off() {
    let mut settings = config(Service::Mx);
    settings.limits = Limits { data: Duration::from_millis(400), ..Limits::default() };
    let server = Server::start(settings).await;
    let mut client = server.greeted().await;
    client.begin().await;
    let begun = Instant::now();
    while client.is_silent().await {
        assert!(begun.elapsed() < PATIENCE, "the slow message is still read");
        client.send("line\r\n").await;
    }
    assert_eq!(client.reply().await.0, 421);
    assert!(server.room.bodies().is_empty());
}

#[tokio::test]
async fn connections_beyond_the_limit_are_turned_away_until_one_ends() {
    let mut settings = config(Service::Mx);
    settings.limits = Limits { connections_per_address: 2, ..Limits::default() };
    let server = Server::start(settings).await;
    let first = server.connect().await;
    let _second = server.connect().await;
    let mut third = Wire::new(TcpStream::connect(server.address).await.unwrap());
    let (code, text) = third.reply().await;
    assert_eq!((code, &text[4..9]), (421, "4.7.0"));
    assert!(third.ended().await);
    assert!(server.room.saw(Event::Refused(Limit::ConnectionsPerAddress)));
    drop(first);
    let begun = Instant::now();
    loop {
        let mut next = Wire::new(TcpStream::connect(server.address).await.unwrap());
        if next.reply().await.0 == 220 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the place of an ended connection is free again");
    }
}

#[tokio::test]
async fn messages_beyond_the_memory_are_put_off() {
    let mut settings = config(Service::Mx);
    let memory = Budget::new(40_000);
    settings.memory = std::sync::Arc::clone(&memory);
    let server = Server::start(settings).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send(("x".repeat(98) + "\r\n").repeat(500) + ".\r\n").await;
    let (code, text) = client.reply().await;
    assert_eq!((code, &text[4..9]), (452, "4.3.1"));
    client.begin().await;
    client.send("small\r\n.\r\n").await;
    assert_eq!(client.reply().await.0, 250);
    assert_eq!(client.ask("NOOP").await, 250);
    assert_eq!(memory.used(), 0);
}

#[tokio::test]
async fn a_backend_that_hangs_is_answered_for() {
    let mut settings = config(Service::Mx);
    settings.limits = Limits { backend: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(settings).await;
    server.room.open.send_replace(false);
    let mut client = server.greeted().await;
    client.begin().await;
    client.send("text\r\n.\r\n").await;
    assert_eq!(client.reply().await.0, 451);
    assert_eq!(client.ask("NOOP").await, 250);
}

#[tokio::test]
async fn binary_junk_ends_its_own_session_only() {
    let server = Server::start(config(Service::Mx)).await;
    let mut good = server.greeted().await;
    let junk: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut bad = server.connect().await;
    bad.send(&junk).await;
    let mut codes = Vec::new();
    loop {
        match bad.reply().await.0 {
            0 => break,
            code => codes.push(code),
        }
    }
    assert!(codes.iter().all(|code| *code >= 400), "{codes:?}");
    assert_eq!(good.ask("NOOP").await, 250);
    assert!(server.room.saw(Event::Protocol(ProtocolError::BareLineEnd)));
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_leaves_nothing_behind() {
    let mut settings = config(Service::Mx);
    let memory = Budget::new(1 << 20);
    settings.memory = std::sync::Arc::clone(&memory);
    let server = Server::start(settings).await;
    let mut client = server.greeted().await;
    client.begin().await;
    client.send("half a message\r\n").await;
    drop(client);
    let begun = Instant::now();
    while !server.room.saw(Event::Closed(Closed::Lost)) {
        assert!(begun.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    assert_eq!(memory.used(), 0);
    assert!(server.room.bodies().is_empty());
}
