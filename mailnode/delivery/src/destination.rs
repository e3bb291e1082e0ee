//! Bounds on what goes on at the same time, and which destinations are left alone for a while.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quorumail_message::Domain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Limits;

/// The unit in which bytes in flight are counted.
const UNIT: usize = 1024;
/// With more destinations than this, those that are idle are forgotten.
const REMEMBERED: usize = 1000;

/// Where a transaction goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Destination {
    /// Mailboxes of this cluster.
    Local,
    /// The configured relay.
    Relay,
    /// The hosts of a domain.
    Domain(Domain),
}

#[derive(Debug)]
struct State {
    permits: Arc<Semaphore>,
    /// Until when it is left alone, and why.
    rest: Mutex<Option<(Instant, String)>>,
}

/// All destinations of this node.
#[derive(Debug)]
pub(crate) struct Destinations {
    known: Mutex<HashMap<Destination, Arc<State>>>,
    total: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Permits of `bytes`.
    units: u32,
    per_destination: usize,
    rest: Duration,
}

/// The right to deliver one message to one destination.
#[derive(Debug)]
pub(crate) struct Slot {
    state: Option<Arc<State>>,
    rest: Duration,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Destinations {
    pub(crate) fn new(limits: &Limits) -> Self {
        let units = u32::try_from((limits.bytes_in_flight / UNIT).max(1)).unwrap_or(u32::MAX);
        let units = units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self {
            known: Mutex::default(),
            total: Arc::new(Semaphore::new(limits.total.max(1))),
            bytes: Arc::new(Semaphore::new(units as usize)),
            units,
            per_destination: limits.per_destination.max(1),
            rest: limits.rest,
        }
    }

    /// Waits until a message of this size may be delivered there. The bounds are always taken in the same order and
    /// given back together, so that nobody waits for another who waits for it.
    pub(crate) async fn enter(&self, destination: &Destination, size: u32) -> Slot {
        let mut permits = Vec::with_capacity(3);
        let state = match destination {
            Destination::Local => None,
            remote => Some(self.state(remote)),
        };
        if let Some(state) = &state {
            permits.push(permit(&state.permits, 1).await);
        }
        permits.push(permit(&self.total, 1).await);
        let units = (size / UNIT as u32 + 1).min(self.units);
        permits.push(permit(&self.bytes, units).await);
        Slot { state, rest: self.rest, _permits: permits }
    }

    fn state(&self, destination: &Destination) -> Arc<State> {
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED && !known.contains_key(destination) {
            known.retain(|_, state| Arc::strong_count(state) > 1 || state.resting().is_some());
        }
        let fresh = || {
            let permits = Arc::new(Semaphore::new(self.per_destination));
            Arc::new(State { permits, rest: Mutex::default() })
        };
        known.entry(destination.clone()).or_insert_with(fresh).clone()
    }
}

async fn permit(semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_many_owned(count).await;
    permit.expect("the semaphores of delivery are never closed")
}

impl State {
    fn resting(&self) -> Option<String> {
        let mut rest = self.rest.lock();
        if rest.as_ref().is_some_and(|(until, _)| *until <= Instant::now()) {
            *rest = None;
        }
        rest.as_ref().map(|(_, why)| why.clone())
    }
}

impl Slot {
    /// Why the destination is left alone at the moment.
    pub(crate) fn resting(&self) -> Option<String> {
        self.state.as_ref()?.resting()
    }

    /// No host could be reached: what else waits for this destination need not find that out one by one.
    pub(crate) fn unreachable(&self, why: &str) {
        if let Some(state) = &self.state {
            *state.rest.lock() = Some((Instant::now() + self.rest, why.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn domain(name: &str) -> Destination {
        Destination::Domain(name.parse().unwrap())
    }

    fn limits() -> Limits {
        Limits { total: 3, per_destination: 2, bytes_in_flight: 64 * UNIT, ..Limits::default() }
    }

    #[tokio::test]
    async fn bounds_hold_per_destination_and_in_total() {
        let all = Destinations::new(&limits());
        let first = all.enter(&domain("x.org"), 1).await;
        let _second = all.enter(&domain("x.org"), 1).await;
        assert!(all.enter(&domain("x.org"), 1).now_or_never().is_none(), "two of one destination are all");
        let _third = all.enter(&domain("y.org"), 1).await;
        assert!(all.enter(&Destination::Local, 1).now_or_never().is_none(), "three are all");
        drop(first);
        assert!(all.enter(&domain("x.org"), 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_message_larger_than_the_bound_goes_alone() {
        let all = Destinations::new(&limits());
        let large = all.enter(&domain("x.org"), 1 << 30).await;
        assert!(all.enter(&domain("y.org"), 1).now_or_never().is_none());
        drop(large);
        assert!(all.enter(&domain("y.org"), 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn an_unreachable_destination_rests_for_a_while() {
        let all = Destinations::new(&Limits { rest: Duration::from_millis(1), ..limits() });
        let slot = all.enter(&domain("x.org"), 1).await;
        *slot.state.as_ref().unwrap().rest.lock() =
            Some((Instant::now() + Duration::from_secs(60), "down".into()));
        assert_eq!(all.enter(&domain("x.org"), 1).await.resting().as_deref(), Some("down"));
        assert_eq!(all.enter(&domain("y.org"), 1).await.resting(), None);
        slot.unreachable("down");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(slot.resting(), None);
    }

    #[tokio::test]
    async fn idle_destinations_are_forgotten() {
        let all = Destinations::new(&limits());
        for n in 0..3 * REMEMBERED {
            drop(all.enter(&domain(&format!("d{n}.org")), 1).await);
        }
        assert!(all.known.lock().len() <= REMEMBERED);
    }
}
