//! DNS as delivery needs it, and its production form with hickory.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::RData, rr::RecordType},
};
use quorumail_message::Domain;

/// More MX records of a domain than this are not looked at.
pub(crate) const MAX_MX: usize = 32;

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MxRecord {
    /// Lower is tried first.
    pub preference: u16,
    /// The host, without a trailing dot. Empty: the root, which means no mail (RFC 7505).
    pub host: String,
}

/// Why DNS had no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupFailure {
    /// The name does not exist.
    #[error("the name does not exist")]
    NoSuchName,
    /// The name exists, but has no such records.
    #[error("the name has no such records")]
    NoRecords,
    /// The answer may be another one later.
    #[error("DNS failed: {0}")]
    Temporary(String),
}

/// Finds hosts and addresses.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// The MX records of the domain, at least one.
    async fn mx(&self, domain: &Domain) -> Result<Vec<MxRecord>, LookupFailure>;

    /// The addresses of the host, at least one, in the order in which they are to be tried.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupFailure>;
}

/// The resolver of the real world.
pub struct Dns(TokioResolver);

impl Dns {
    /// Asks `servers`, or those of /etc/resolv.conf when there are none.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, LookupFailure> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| LookupFailure::Temporary(error.to_string()))?
        } else {
            let config = ResolverConfig::from_name_servers(servers.iter().map(name_server).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = builder.build().map_err(|error| LookupFailure::Temporary(error.to_string()))?;
        Ok(Self(resolver))
    }
}

fn name_server(addr: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = addr.port();
        connection
    });
    NameServerConfig::new(addr.ip(), true, connections.into())
}

#[async_trait]
impl Resolver for Dns {
    async fn mx(&self, domain: &Domain) -> Result<Vec<MxRecord>, LookupFailure> {
        // With the final dot the search list of resolv.conf, which Kubernetes fills, plays no part.
        let lookup = self.0.lookup(format!("{domain}."), RecordType::MX).await.map_err(failure)?;
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::MX(mx) => {
                Some(MxRecord { preference: mx.preference, host: host_name(&mx.exchange.to_ascii()) })
            }
            _ => None,
        });
        let records: Vec<_> = records.take(MAX_MX).collect();
        if records.is_empty() { Err(LookupFailure::NoRecords) } else { Ok(records) }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupFailure> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        // A name with one label (a relay in the same Kubernetes namespace) needs the search list.
        let name =
            if host.contains('.') { format!("{}.", host.trim_end_matches('.')) } else { host.to_owned() };
        let mut addresses: Vec<IpAddr> = self.0.lookup_ip(name).await.map_err(failure)?.iter().collect();
        // Many clusters have no way out for IPv6, few have none for IPv4.
        addresses.sort_by_key(IpAddr::is_ipv6);
        if addresses.is_empty() { Err(LookupFailure::NoRecords) } else { Ok(addresses) }
    }
}

fn host_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn failure(error: NetError) -> LookupFailure {
    match &error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupFailure::NoSuchName,
            ResponseCode::NoError => LookupFailure::NoRecords,
            code => LookupFailure::Temporary(code.to_string()),
        },
        _ => LookupFailure::Temporary(error.to_string()),
    }
}
