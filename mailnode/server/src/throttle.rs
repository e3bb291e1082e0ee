//! Failed log-ins, counted by network address and by user with token buckets in tables of bounded size.
//!
//! An attempt takes its tokens before it is checked, so that many at the same time count as those one after the other
//! do. When none is left but some attempts are still being checked, the next one waits for what becomes of them: a
//! hundred people of one office who come back at once have failed nothing.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Failures from one address in a row before it must wait.
const ADDRESS_BURST: f64 = 20.0;
/// Failures for one user in a row before log-ins for it must wait.
const USER_BURST: f64 = 10.0;
/// One more failure is allowed after this time.
const REFILL: Duration = Duration::from_secs(10);
/// Addresses and users remembered. A full table forgets those that have waited longest since their last failure.
const MAX_BUCKETS: usize = 100_000;

/// Counts failures.
pub struct Throttle {
    addresses: Mutex<Buckets<IpAddr>>,
    users: Mutex<Buckets<[u8; 32]>>,
    /// Told whenever an attempt has ended.
    ended: Notify,
}

/// A log-in attempt that was let through and counts as failed unless it ends with [`Attempt::forgive`].
#[must_use]
pub struct Attempt<'a> {
    throttle: &'a Throttle,
    address: IpAddr,
    user: [u8; 32],
    failed: bool,
}

/// Why an attempt is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spent {
    /// Too many have failed.
    ByFailures,
    /// Those that are being checked may yet succeed.
    ByOthers,
}

struct Buckets<K> {
    burst: f64,
    spent: HashMap<K, Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
    /// Attempts that are being checked.
    pending: u32,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            addresses: Mutex::new(Buckets { burst: ADDRESS_BURST, spent: HashMap::new() }),
            users: Mutex::new(Buckets { burst: USER_BURST, spent: HashMap::new() }),
            ended: Notify::new(),
        }
    }
}

impl Throttle {
    /// Lets an attempt through, at the latest after `patience`; none when too many have failed, or the others take
    /// too long.
    pub async fn attempt(&self, address: IpAddr, user: &str, patience: Duration) -> Option<Attempt<'_>> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before the look, so that no end is missed in between.
            ended.as_mut().enable();
            match self.take(address, user, Instant::now()) {
                Ok(attempt) => return Some(attempt),
                Err(Spent::ByFailures) => return None,
                Err(Spent::ByOthers) => tokio::time::timeout_at(until, ended).await.ok()?,
            }
        }
    }

    fn take(&self, address: IpAddr, user: &str, now: Instant) -> Result<Attempt<'_>, Spent> {
        let address = network(address);
        let user = *blake3::hash(user.as_bytes()).as_bytes();
        self.addresses.lock().take(address, now)?;
        if let Err(spent) = self.users.lock().take(user, now) {
            self.addresses.lock().end(&address, false);
            return Err(spent);
        }
        Ok(Attempt { throttle: self, address, user, failed: true })
    }
}

impl Attempt<'_> {
    /// Gives the tokens back: it succeeded, or nothing was found out.
    pub fn forgive(mut self) {
        self.failed = false;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.throttle.addresses.lock().end(&self.address, self.failed);
        self.throttle.users.lock().end(&self.user, self.failed);
        self.throttle.ended.notify_waiters();
    }
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    fn take(&mut self, key: K, now: Instant) -> Result<(), Spent> {
        if self.spent.len() >= MAX_BUCKETS && !self.spent.contains_key(&key) {
            self.make_room(now);
        }
        let bucket = self.spent.entry(key).or_insert(Bucket { tokens: self.burst, at: now, pending: 0 });
        let refilled = now.saturating_duration_since(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + refilled).min(self.burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(if bucket.pending > 0 { Spent::ByOthers } else { Spent::ByFailures });
        }
        bucket.tokens -= 1.0;
        bucket.pending += 1;
        Ok(())
    }

    fn end(&mut self, key: &K, failed: bool) {
        // Forgotten since: then there is nothing to give back.
        if let Some(bucket) = self.spent.get_mut(key) {
            bucket.pending = bucket.pending.saturating_sub(1);
            if !failed {
                bucket.tokens = (bucket.tokens + 1.0).min(self.burst);
            }
        }
    }

    /// Forgets those that are full again, and if that is not enough the half that has waited longest.
    fn make_room(&mut self, now: Instant) {
        let full_after = REFILL.mul_f64(self.burst);
        self.spent.retain(|_, bucket| now.saturating_duration_since(bucket.at) < full_after);
        if self.spent.len() >= MAX_BUCKETS {
            let mut times: Vec<Instant> = self.spent.values().map(|bucket| bucket.at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            let mut left = MAX_BUCKETS / 2;
            self.spent.retain(|_, bucket| {
                let keep = bucket.at >= median && left > 0;
                left -= usize::from(keep);
                keep
            });
        }
    }
}

/// What counts as one address: of IPv6 the /64, which one customer has as a rule.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let s = v6.segments();
                IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn failed(throttle: &Throttle, address: IpAddr, user: &str, now: Instant) -> bool {
        throttle.take(address, user, now).is_ok()
    }

    #[test]
    fn failures_for_a_user_from_everywhere_are_throttled_and_the_bucket_refills() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..USER_BURST as u32 {
            assert!(failed(&throttle, address(n), "alice@example.org", now));
        }
        assert!(!failed(&throttle, address(999), "alice@example.org", now));
        assert!(failed(&throttle, address(999), "bob@example.org", now));
        assert!(failed(&throttle, address(999), "alice@example.org", now + REFILL));
        assert!(!failed(&throttle, address(999), "alice@example.org", now + REFILL));
    }

    #[test]
    fn failures_from_an_address_for_many_users_are_throttled() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let tried = (0..100).filter(|n| failed(&throttle, address(1), &format!("user{n}"), now)).count();
        assert_eq!(tried, ADDRESS_BURST as usize);
    }

    #[test]
    fn attempts_at_the_same_time_are_not_more_than_those_one_after_the_other() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let mut pending: Vec<_> = Vec::new();
        let spent = loop {
            match throttle.take(address(1), "alice@example.org", now) {
                Ok(attempt) => pending.push(attempt),
                Err(spent) => break spent,
            }
        };
        assert_eq!((pending.len(), spent), (USER_BURST as usize, Spent::ByOthers));
        drop(pending);
        assert!(matches!(throttle.take(address(1), "alice@example.org", now), Err(Spent::ByFailures)));
    }

    #[tokio::test]
    async fn a_crowd_that_fails_nothing_is_let_in() {
        let throttle = Throttle::default();
        let crowd = (0..200).map(|n| {
            let throttle = &throttle;
            async move {
                // Some use the same mailbox with several clients.
                let user = format!("user{}", n % 10);
                let attempt = throttle.attempt(address(1), &user, Duration::from_secs(60)).await;
                tokio::task::yield_now().await;
                attempt.map(Attempt::forgive).is_some()
            }
        });
        assert!(futures::future::join_all(crowd).await.into_iter().all(|let_in| let_in));
    }

    #[tokio::test]
    async fn those_behind_failures_are_refused_once_the_failures_are_known() {
        let throttle = Throttle::default();
        let attempts = (0..100).map(|_| async {
            let attempt = throttle.attempt(address(1), "alice@example.org", Duration::from_secs(60)).await;
            tokio::task::yield_now().await;
            attempt.is_some()
        });
        let tried = futures::future::join_all(attempts).await.into_iter().filter(|tried| *tried).count();
        assert_eq!(tried, USER_BURST as usize);
    }

    #[tokio::test]
    async fn nobody_waits_for_longer_than_the_patience() {
        let throttle = Throttle::default();
        let _pending: Vec<_> =
            (0..10).map(|_| throttle.take(address(1), "alice@example.org", Instant::now())).collect();
        assert!(throttle.attempt(address(1), "alice@example.org", Duration::from_millis(50)).await.is_none());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let tried = (0..100u16)
            .filter(|n| {
                let address = IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, *n]);
                failed(&throttle, address, &format!("user{n}"), now)
            })
            .count();
        assert_eq!(tried, ADDRESS_BURST as usize);
    }

    #[test]
    fn successes_cost_nothing() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..1000 {
            throttle.take(address(1), "alice@example.org", now).unwrap().forgive();
        }
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut buckets = Buckets { burst: 5.0, spent: HashMap::new() };
        let now = Instant::now();
        for n in 0..MAX_BUCKETS * 2 + 10 {
            assert!(buckets.take(n, now).is_ok());
            assert!(buckets.spent.len() <= MAX_BUCKETS);
        }
    }
}
