//! A DNS server for tests: what is in its zone, on a loopback address of its own.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, MX, SRV, TXT},
    },
};
use parking_lot::Mutex;
use tokio::{net::UdpSocket, task::JoinHandle};

type Zone = BTreeMap<String, Vec<RData>>;

/// Answers until it is dropped. Names that end in `broken.test` are answered with SERVFAIL, those in `silent.test` not at
/// all.
pub struct Dns {
    /// Where it listens, UDP.
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).expect("names in tests are names")
}

impl Dns {
    /// Starts with an empty zone.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = socket.local_addr().expect("a bound socket has an address");
        let zone: Arc<Mutex<Zone>> = Arc::default();
        let served = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                let answer = answer(&query, &served.lock());
                if let Some(bytes) = answer.and_then(|answer| answer.to_vec().ok()) {
                    let _ = socket.send_to(&bytes, from).await;
                }
            }
        });
        Self { address, zone, task }
    }

    fn add(&self, owner: &str, data: RData) -> &Self {
        self.zone.lock().entry(owner.to_ascii_lowercase()).or_default().push(data);
        self
    }

    /// Takes all records of a name away.
    pub fn clear(&self, owner: &str) {
        self.zone.lock().remove(&owner.to_ascii_lowercase());
    }

    /// A TXT record, in strings of at most 255 octets.
    pub fn txt(&self, owner: &str, text: &str) -> &Self {
        let parts = text.as_bytes().chunks(255).map(|part| String::from_utf8_lossy(part).into_owned());
        self.add(owner, RData::TXT(TXT::new(parts.collect())))
    }

    /// An address.
    pub fn a(&self, owner: &str, address: Ipv4Addr) -> &Self {
        self.add(owner, RData::A(A(address)))
    }

    /// An MX record.
    pub fn mx(&self, owner: &str, preference: u16, host: &str) -> &Self {
        self.add(owner, RData::MX(MX::new(preference, name(host))))
    }

    /// A CNAME record.
    pub fn cname(&self, owner: &str, target: &str) -> &Self {
        self.add(owner, RData::CNAME(CNAME(name(target))))
    }

    /// An SRV record.
    pub fn srv(&self, owner: &str, priority: u16, weight: u16, port: u16, target: &str) -> &Self {
        self.add(owner, RData::SRV(SRV::new(priority, weight, port, name(target))))
    }
}

fn answer(query: &Message, zone: &Zone) -> Option<Message> {
    let question = query.queries.first()?.clone();
    let asked = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    if asked.ends_with("silent.test") {
        return None;
    }
    let mut response = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata.recursion_available = true;
    response.metadata.response_code = match zone.contains_key(&asked) {
        _ if asked.ends_with("broken.test") => ResponseCode::ServFail,
        true => ResponseCode::NoError,
        false => ResponseCode::NXDomain,
    };
    let is_asked = |data: &&RData| {
        data.record_type() == question.query_type() || data.record_type() == RecordType::CNAME
    };
    for data in zone.get(&asked).into_iter().flatten().filter(is_asked) {
        response.add_answer(Record::from_rdata(question.name().clone(), 60, data.clone()));
    }
    response.add_query(question);
    Some(response)
}
