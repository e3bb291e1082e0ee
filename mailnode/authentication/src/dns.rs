//! DNS for what concerns domains: bounded in time, in queries and in what is kept.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{RData, RecordType},
    },
};

/// Answers kept at most, for as long as their TTL says.
const CACHED: u64 = 4096;
/// For one query to one server.
const QUERY_WITHIN: Duration = Duration::from_secs(2);
/// Queries for one answer, at most.
const ATTEMPTS: usize = 2;
/// An answer is not believed for longer, however long its TTL.
const KEEP_AT_MOST: Duration = Duration::from_secs(3600);
/// That there is none is not believed for longer: who repairs a record should not have to wait.
const KEEP_NOTHING_AT_MOST: Duration = Duration::from_secs(300);

/// DNS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("failed to set up DNS: {0}")]
pub struct SetUpError(String);

/// Asks `servers`, or those of /etc/resolv.conf when there are none.
pub fn resolver(servers: &[SocketAddr], cached: bool) -> Result<TokioResolver, SetUpError> {
    let failed = |error: NetError| SetUpError(error.to_string());
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio().map_err(failed)?
    } else {
        let config = ResolverConfig::from_name_servers(servers.iter().map(name_server).collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = QUERY_WITHIN;
    options.attempts = ATTEMPTS;
    options.cache_size = if cached { CACHED } else { 0 };
    options.positive_max_ttl = Some(KEEP_AT_MOST);
    options.negative_max_ttl = Some(KEEP_NOTHING_AT_MOST);
    builder.build().map_err(failed)
}

fn name_server(addr: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = addr.port();
        connection
    });
    NameServerConfig::new(addr.ip(), true, connections.into())
}

/// A kind of record that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Mx,
    Txt,
    Cname,
    Srv,
    Address,
}

/// What DNS says of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its records of the kind, each as it is written in a zone file but for TXT, whose strings are put together (RFC 7208
    /// 3.3, RFC 6376 3.6.2.2).
    Records(Vec<String>),
    /// The name, or the kind at the name, does not exist.
    Nothing,
    /// There was no answer; another one may come later.
    Failed(String),
}

/// More records of one name are not looked at.
const MAX_RECORDS: usize = 32;

/// Looks a name up. `name` is fully qualified, with or without its final dot.
pub async fn look_up(resolver: &TokioResolver, name: &str, kind: Kind) -> Answer {
    // With the final dot the search list of resolv.conf plays no part.
    let name = format!("{}.", name.trim_end_matches('.'));
    if kind == Kind::Address {
        return match resolver.lookup_ip(name).await {
            Ok(found) => {
                Answer::Records(found.iter().take(MAX_RECORDS).map(|a: IpAddr| a.to_string()).collect())
            }
            Err(error) => failure(&error),
        };
    }
    let wanted = match kind {
        Kind::Mx => RecordType::MX,
        Kind::Cname => RecordType::CNAME,
        Kind::Srv => RecordType::SRV,
        Kind::Txt | Kind::Address => RecordType::TXT,
    };
    match resolver.lookup(name, wanted).await {
        Ok(found) => {
            let texts = found.answers().iter().filter_map(|record| text(&record.data));
            let records: Vec<_> = texts.take(MAX_RECORDS).collect();
            if records.is_empty() { Answer::Nothing } else { Answer::Records(records) }
        }
        Err(error) => failure(&error),
    }
}

fn text(data: &RData) -> Option<String> {
    let host = |name: &str| name.to_ascii_lowercase();
    match data {
        RData::MX(mx) => Some(format!("{} {}", mx.preference, host(&mx.exchange.to_ascii()))),
        RData::CNAME(name) => Some(host(&name.0.to_ascii())),
        RData::SRV(srv) => {
            Some(format!("{} {} {} {}", srv.priority, srv.weight, srv.port, host(&srv.target.to_ascii())))
        }
        RData::TXT(txt) => {
            let joined: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).collect();
            Some(String::from_utf8_lossy(&joined).into_owned())
        }
        _ => None,
    }
}

fn failure(error: &NetError) -> Answer {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
        {
            Answer::Nothing
        }
        _ => Answer::Failed(error.to_string()),
    }
}
