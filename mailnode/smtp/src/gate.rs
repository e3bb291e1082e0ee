//! Bounds on connections, in total and by address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Limit, Limits};

/// Counts the connections of one listener.
#[derive(Debug)]
pub(crate) struct Gate {
    total: usize,
    per_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
}

/// Who is counted: an IPv4 address, or the /64 of an IPv6 address, which is the least that one customer gets.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

impl Gate {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            total: limits.connections,
            per_address: limits.connections_per_address,
            open: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // The counts are changed by code that cannot panic half way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `address`, or the limit that is reached.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Limit> {
        let address = counted(address);
        let mut open = self.lock();
        if open.total >= self.total {
            return Err(Limit::Connections);
        }
        let from_here = open.by_address.get(&address).copied().unwrap_or(0);
        if from_here >= self.per_address {
            return Err(Limit::ConnectionsPerAddress);
        }
        open.by_address.insert(address, from_here + 1);
        open.total += 1;
        Ok(Pass { gate: Arc::clone(self), address })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.lock();
        open.total -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_in_total_and_by_address() {
        let gate = Gate::new(&Limits { connections: 3, connections_per_address: 2, ..Limits::default() });
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let same_net: IpAddr = "2001:db8::2".parse().unwrap();
        let b: IpAddr = "192.0.2.1".parse().unwrap();
        let first = gate.enter(a).unwrap();
        let _second = gate.enter(same_net).unwrap();
        assert_eq!(gate.enter(a).unwrap_err(), Limit::ConnectionsPerAddress);
        let _third = gate.enter(b).unwrap();
        assert_eq!(gate.enter(b).unwrap_err(), Limit::Connections);
        drop(first);
        let _fourth = gate.enter("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert_eq!(gate.lock().by_address[&b], 2);
    }
}
