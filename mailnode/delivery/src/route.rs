//! Which hosts take the mail of a destination. RFC 5321 5.1, RFC 7505 (null MX).

use std::net::SocketAddr;

use quorumail_message::Domain;
use rand::seq::SliceRandom;

use crate::{Config, Host, LookupFailure, MxRecord, Relay, Resolver};

/// More addresses of a destination than this are not tried in one attempt.
pub(crate) const MAX_HOSTS: usize = 8;

/// Why there is no host to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RouteFailure {
    /// For good; the text begins with the enhanced status code.
    Permanent(String),
    /// For now; the text begins with the enhanced status code.
    Temporary(String),
}

/// The addresses of the relay.
pub(crate) async fn to_relay(relay: &Relay, resolver: &dyn Resolver) -> Result<Vec<Host>, RouteFailure> {
    // A relay whose name is wrong is an error of the configuration, not of the mail: never permanent.
    let addresses = resolver.addresses(&relay.host).await.map_err(|error| {
        RouteFailure::Temporary(format!("4.4.3 the relay {} has no address: {error}", relay.host))
    })?;
    let hosts = addresses
        .into_iter()
        .map(|ip| Host { name: relay.host.clone(), addr: SocketAddr::new(ip, relay.port) });
    Ok(hosts.take(MAX_HOSTS).collect())
}

/// The addresses of the domain's mail hosts, in the order in which they are to be tried.
pub(crate) async fn to_domain(
    domain: &Domain,
    config: &Config,
    resolver: &dyn Resolver,
) -> Result<Vec<Host>, RouteFailure> {
    let records = match resolver.mx(domain).await {
        Ok(records) => records,
        // Without MX the domain itself is its host.
        Err(LookupFailure::NoRecords) => vec![MxRecord { preference: 0, host: domain.to_string() }],
        Err(LookupFailure::NoSuchName) => {
            return Err(RouteFailure::Permanent(format!("5.1.2 the domain {domain} does not exist")));
        }
        Err(error @ LookupFailure::Temporary(_)) => {
            return Err(RouteFailure::Temporary(format!(
                "4.4.3 the mail hosts of {domain} cannot be found: {error}"
            )));
        }
    };
    let mut names = in_order(records, domain, config)?;
    names.dedup();
    resolve(&names, domain, config.mx_port, resolver).await
}

/// Sorted by preference, equal ones shuffled (RFC 5321 5.1), without this host and those that come after it.
fn in_order(
    mut records: Vec<MxRecord>,
    domain: &Domain,
    config: &Config,
) -> Result<Vec<String>, RouteFailure> {
    // RFC 7505 3: a single record that names the root. Among others, the root is no host that could be used.
    let null = records.iter().all(|record| record.host.is_empty());
    records.retain(|record| !record.host.is_empty());
    if null {
        return Err(RouteFailure::Permanent(format!("5.1.10 the domain {domain} takes no mail (null MX)")));
    }
    records.shuffle(&mut rand::rng());
    records.sort_by_key(|record| record.preference);
    let own = records.iter().find(|record| record.host.eq_ignore_ascii_case(config.hostname.as_str()));
    if let Some(own) = own.map(|own| own.preference) {
        // What is as far or further away would only send it back here.
        records.retain(|record| record.preference < own);
    }
    if records.is_empty() {
        return Err(RouteFailure::Permanent(format!(
            "5.4.6 the mail for {domain} leads back to this host, which does not take it"
        )));
    }
    Ok(records.into_iter().map(|record| record.host).collect())
}

async fn resolve(
    names: &[String],
    domain: &Domain,
    port: u16,
    resolver: &dyn Resolver,
) -> Result<Vec<Host>, RouteFailure> {
    let mut hosts = Vec::new();
    let mut temporary = None;
    for name in names {
        if hosts.len() >= MAX_HOSTS {
            break;
        }
        match resolver.addresses(name).await {
            Ok(addresses) => {
                hosts.extend(
                    addresses.into_iter().map(|ip| Host { name: name.clone(), addr: (ip, port).into() }),
                );
            }
            Err(LookupFailure::Temporary(error)) => temporary = Some(error),
            Err(LookupFailure::NoSuchName | LookupFailure::NoRecords) => {}
        }
    }
    hosts.truncate(MAX_HOSTS);
    match (hosts.is_empty(), temporary) {
        (false, _) => Ok(hosts),
        (true, Some(error)) => {
            Err(RouteFailure::Temporary(format!("4.4.3 the mail hosts of {domain} have no address: {error}")))
        }
        (true, None) => {
            Err(RouteFailure::Permanent(format!("5.4.4 no mail host of {domain} has an address")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use async_trait::async_trait;

    use super::*;
    use crate::{Limits, Retry};

    struct Zone(Result<Vec<(u16, &'static str)>, LookupFailure>);

    #[async_trait]
    impl Resolver for Zone {
        async fn mx(&self, _: &Domain) -> Result<Vec<MxRecord>, LookupFailure> {
            let record = |(preference, host): (u16, &str)| MxRecord { preference, host: host.to_owned() };
            self.0.clone().map(|records| records.into_iter().map(record).collect())
        }

        /// `hN` has the address 192.0.2.N.
        async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupFailure> {
            match host.strip_prefix('h').and_then(|number| number.parse().ok()) {
                Some(number) => Ok(vec![IpAddr::from([192, 0, 2, number])]),
                None if host == "slow" => Err(LookupFailure::Temporary("timed out".into())),
                None => Err(LookupFailure::NoRecords),
            }
        }
    }

    async fn route(
        domain: &str,
        mx: Result<Vec<(u16, &'static str)>, LookupFailure>,
    ) -> Result<Vec<String>, String> {
        let config = Config {
            hostname: "own.example.org".parse().unwrap(),
            relay: None,
            retry: Retry::default(),
            mx_port: 2525,
            limits: Limits::default(),
        };
        match to_domain(&domain.parse().unwrap(), &config, &Zone(mx)).await {
            Ok(hosts) => {
                assert!(hosts.iter().all(|host| host.addr.port() == 2525));
                Ok(hosts.into_iter().map(|host| host.name).collect())
            }
            Err(RouteFailure::Permanent(text) | RouteFailure::Temporary(text)) => {
                Err(text.split(' ').next().unwrap().to_owned())
            }
        }
    }

    #[tokio::test]
    async fn hosts_are_tried_by_preference() {
        for _ in 0..20 {
            let hosts = route("x.org", Ok(vec![(20, "h3"), (5, "h1"), (10, "h2")])).await;
            assert_eq!(hosts.unwrap(), ["h1", "h2", "h3"]);
        }
    }

    #[tokio::test]
    async fn hosts_of_equal_preference_take_turns() {
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..200 {
            first.insert(route("x.org", Ok(vec![(5, "h1"), (5, "h2"), (9, "h3")])).await.unwrap().remove(0));
        }
        assert_eq!(first.into_iter().collect::<Vec<_>>(), ["h1", "h2"]);
    }

    #[tokio::test]
    async fn a_domain_without_mx_is_its_own_host() {
        assert_eq!(route("h7", Err(LookupFailure::NoRecords)).await.unwrap(), ["h7"]);
        assert_eq!(route("x.org", Err(LookupFailure::NoRecords)).await.unwrap_err(), "5.4.4");
    }

    #[tokio::test]
    async fn a_null_mx_takes_no_mail() {
        assert_eq!(route("x.org", Ok(vec![(0, "")])).await.unwrap_err(), "5.1.10");
    }

    #[tokio::test]
    async fn this_host_and_those_after_it_are_left_out() {
        let records = vec![(5, "h1"), (10, "own.example.org"), (10, "h2"), (20, "h3")];
        assert_eq!(route("x.org", Ok(records)).await.unwrap(), ["h1"]);
        assert_eq!(route("x.org", Ok(vec![(10, "own.example.org"), (20, "h3")])).await.unwrap_err(), "5.4.6");
    }

    #[tokio::test]
    async fn only_what_dns_is_sure_of_is_for_good() {
        assert_eq!(route("x.org", Err(LookupFailure::NoSuchName)).await.unwrap_err(), "5.1.2");
        assert_eq!(route("x.org", Err(LookupFailure::Temporary("x".into()))).await.unwrap_err(), "4.4.3");
        assert_eq!(route("x.org", Ok(vec![(1, "gone"), (2, "slow")])).await.unwrap_err(), "4.4.3");
        assert_eq!(route("x.org", Ok(vec![(1, "gone"), (2, "h2")])).await.unwrap(), ["h2"]);
    }

    #[tokio::test]
    async fn the_number_of_hosts_is_bounded() {
        let many = (0..30).map(|n| (n, ["h1", "h2", "h3"][usize::from(n) % 3])).collect();
        assert_eq!(route("x.org", Ok(many)).await.unwrap().len(), MAX_HOSTS);
    }
}
