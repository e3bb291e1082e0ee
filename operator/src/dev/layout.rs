//! Where the nodes of `quorumail dev` listen: node i at 127.0.0.(i+1), with the port table that pods have too.

use std::net::{Ipv4Addr, TcpListener};

use serde::Serialize;

use crate::mailnode_config::port;

/// Distance of the nodes' ports where they share one address; the port table spans less.
const STRIDE: u16 = 10_000;
/// Most nodes that one machine is asked to run.
pub const MAX_NODES: u64 = 9;

/// Why the nodes cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A port number beyond 65535.
    #[error("node {node} would need ports beyond 65535; use a smaller --base-port or fewer nodes")]
    BeyondLastPort {
        /// Which node.
        node: u64,
    },
    /// Somebody listens there.
    #[error(
        "failed to listen on {address} for node {node}: {source}; stop what is there, or move all ports with --base-port"
    )]
    Taken {
        /// Which node.
        node: u64,
        /// Address and port.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Where one node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The node's number.
    pub node: u64,
    /// Address of all its listeners.
    pub host: Ipv4Addr,
    /// Added to every port.
    pub offset: u16,
}

/// What is printed about a node when it is started.
#[derive(Debug, Serialize)]
pub struct Announcement {
    node: u64,
    pid: u32,
    #[serde(flatten)]
    endpoints: Endpoints,
}

/// `host:port` of every listener of a node.
#[derive(Debug, Clone, Serialize)]
pub struct Endpoints {
    smtp: String,
    submission: String,
    submissions: String,
    imap: String,
    imaps: String,
    /// For `/readyz`.
    pub http: String,
    https: String,
    /// gRPC of the CLI.
    pub admin: String,
    /// gRPC of the other nodes.
    pub peer: String,
}

impl Place {
    /// `host:port` of a listener.
    fn at(&self, port: u16) -> String {
        format!("{}:{}", self.host, port + self.offset)
    }

    /// Every listener.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            smtp: self.at(port::SMTP),
            submission: self.at(port::SUBMISSION),
            submissions: self.at(port::SUBMISSIONS),
            imap: self.at(port::IMAP),
            imaps: self.at(port::IMAPS),
            http: self.at(port::HTTP),
            https: self.at(port::HTTPS),
            admin: self.at(port::ADMIN),
            peer: self.at(port::PEER),
        }
    }

    /// The line that says that the node was started.
    pub fn announcement(&self, pid: u32) -> Announcement {
        Announcement { node: self.node, pid, endpoints: self.endpoints() }
    }

    /// Whether all ports are free, just now.
    fn check(&self) -> Result<(), LayoutError> {
        let all = [
            port::SMTP,
            port::SUBMISSION,
            port::SUBMISSIONS,
            port::IMAP,
            port::IMAPS,
            port::HTTP,
            port::HTTPS,
            port::ADMIN,
            port::PEER,
        ];
        for port in all {
            TcpListener::bind((self.host, port + self.offset)).map_err(|source| LayoutError::Taken {
                node: self.node,
                address: self.at(port),
                source,
            })?;
        }
        Ok(())
    }
}

/// Places for `nodes` nodes, all ports moved by `base`; the ports of those from number `new` up are free.
pub fn lay_out(nodes: u64, base: u16, new: u64) -> Result<Vec<Place>, LayoutError> {
    let own_addresses = (0..nodes).all(|node| TcpListener::bind((address(node), 0)).is_ok());
    let places = places(nodes, base, own_addresses)?;
    places.iter().filter(|place| place.node >= new).try_for_each(Place::check)?;
    Ok(places)
}

/// macOS gives its loopback interface 127.0.0.1 only; there the nodes share it.
fn places(nodes: u64, base: u16, own_addresses: bool) -> Result<Vec<Place>, LayoutError> {
    let place = |node| {
        let step = if own_addresses { Some(0) } else { u16::try_from(node).ok()?.checked_mul(STRIDE) };
        let offset = base.checked_add(step?)?;
        port::PEER.checked_add(offset)?;
        Some(Place { node, host: if own_addresses { address(node) } else { Ipv4Addr::LOCALHOST }, offset })
    };
    (0..nodes).map(|node| place(node).ok_or(LayoutError::BeyondLastPort { node })).collect()
}

fn address(node: u64) -> Ipv4Addr {
    let last = u8::try_from(node + 1).expect("there are at most MAX_NODES nodes");
    Ipv4Addr::new(127, 0, 0, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_an_address_of_its_own() {
        let places = places(3, 100, true).unwrap();
        assert_eq!(places[2].endpoints().smtp, "127.0.0.3:2625");
        let line = serde_json::to_string(&places[0].announcement(7)).unwrap();
        assert_eq!(
            line,
            "{\"node\":0,\"pid\":7,\"smtp\":\"127.0.0.1:2625\",\"submission\":\"127.0.0.1:2687\",\
             \"submissions\":\"127.0.0.1:2565\",\"imap\":\"127.0.0.1:2243\",\"imaps\":\"127.0.0.1:3093\",\
             \"http\":\"127.0.0.1:8180\",\"https\":\"127.0.0.1:8543\",\"admin\":\"127.0.0.1:9543\",\"peer\":\"127.0.0.1:9544\"}"
        );
    }

    #[test]
    fn nodes_that_share_an_address_have_ports_of_their_own() {
        let places = places(3, 0, false).unwrap();
        assert_eq!(places[1].endpoints().smtp, "127.0.0.1:12525");
        let mut seen = std::collections::BTreeSet::new();
        for place in &places {
            let endpoints = place.endpoints();
            for address in [endpoints.smtp, endpoints.imap, endpoints.http, endpoints.admin, endpoints.peer] {
                assert!(seen.insert(address));
            }
        }
    }

    #[test]
    fn ports_beyond_the_last_are_refused() {
        assert!(matches!(places(3, 60_000, true), Err(LayoutError::BeyondLastPort { node: 0 })));
        assert!(matches!(places(9, 0, false), Err(LayoutError::BeyondLastPort { node: 6 })));
    }

    #[test]
    fn a_taken_port_is_named() {
        // An offset at which the peer port is the one that this test holds.
        let (taken, port) = (0..)
            .find_map(|_| {
                let taken = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = taken.local_addr().unwrap().port();
                (port > port::PEER).then_some((taken, port))
            })
            .unwrap();
        let place = Place { node: 0, host: Ipv4Addr::LOCALHOST, offset: port - port::PEER };
        let error = place.check().unwrap_err();
        assert!(matches!(error, LayoutError::Taken { node: 0, .. }), "{error}");
        drop(taken);
    }
}
