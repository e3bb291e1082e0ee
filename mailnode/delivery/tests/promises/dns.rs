//! The production resolver against a small DNS server.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, MX},
    },
};
use quorumail_delivery::{Dns, LookupFailure, MxRecord, Resolver};
use tokio::{net::UdpSocket, task::JoinHandle};

/// Answers for example.org (MX), null.org (null MX), a.example.org (A), bare.org (no records), broken.org (SERVFAIL);
/// everything else does not exist.
async fn server() -> (SocketAddr, JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            socket.send_to(&answer(&query).to_vec().unwrap(), from).await.unwrap();
        }
    });
    (addr, task)
}

fn answer(query: &Message) -> Message {
    let question = query.queries[0].clone();
    let mut response = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata.recursion_available = true;
    let name = question.name().clone();
    let mx = |preference, host: &str| {
        let exchange = if host.is_empty() { Name::root() } else { Name::from_ascii(host).unwrap() };
        Record::from_rdata(name.clone(), 60, RData::MX(MX::new(preference, exchange)))
    };
    let (code, records) = match (name.to_ascii().as_str(), question.query_type()) {
        ("example.org.", RecordType::MX) => {
            (ResponseCode::NoError, vec![mx(20, "B.example.org."), mx(10, "a.example.org.")])
        }
        ("null.org.", RecordType::MX) => (ResponseCode::NoError, vec![mx(0, "")]),
        ("a.example.org.", RecordType::A) => {
            let address = RData::A(A::new(192, 0, 2, 1));
            (ResponseCode::NoError, vec![Record::from_rdata(name.clone(), 60, address)])
        }
        ("example.org." | "null.org." | "a.example.org." | "bare.org.", _) => (ResponseCode::NoError, vec![]),
        ("broken.org.", _) => (ResponseCode::ServFail, vec![]),
        _ => (ResponseCode::NXDomain, vec![]),
    };
    response.metadata.response_code = code;
    response.add_query(question);
    response.add_answers(records);
    response
}

#[tokio::test]
async fn dns_answers_are_told_apart() {
    let (addr, task) = server().await;
    let dns = Dns::new(&[addr]).unwrap();
    let mx = |domain: &str| {
        let domain = domain.parse().unwrap();
        let dns = &dns;
        async move { dns.mx(&domain).await }
    };
    let mut records = mx("example.org").await.unwrap();
    records.sort_by_key(|record| record.preference);
    let expected = [(10, "a.example.org"), (20, "b.example.org")]
        .map(|(preference, host)| MxRecord { preference, host: host.to_owned() });
    assert_eq!(records, expected);
    assert_eq!(mx("null.org").await.unwrap(), [MxRecord { preference: 0, host: String::new() }]);
    assert_eq!(mx("bare.org").await.unwrap_err(), LookupFailure::NoRecords);
    assert_eq!(mx("gone.org").await.unwrap_err(), LookupFailure::NoSuchName);
    assert!(matches!(mx("broken.org").await.unwrap_err(), LookupFailure::Temporary(_)));
    task.abort();
}

#[tokio::test]
async fn addresses_are_found() {
    let (addr, task) = server().await;
    let dns = Dns::new(&[addr]).unwrap();
    assert_eq!(dns.addresses("a.example.org").await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
    assert_eq!(dns.addresses("127.0.0.9").await.unwrap(), [IpAddr::from([127, 0, 0, 9])]);
    assert_eq!(dns.addresses("bare.org").await.unwrap_err(), LookupFailure::NoRecords);
    assert_eq!(dns.addresses("gone.org").await.unwrap_err(), LookupFailure::NoSuchName);
    task.abort();
}
