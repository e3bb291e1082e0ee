//! Failed log-ins, counted by network address and by user with token buckets in tables of bounded size.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

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
}

/// A log-in attempt that was let through and counts as failed until [`Attempt::forgive`].
#[must_use]
pub struct Attempt<'a> {
    throttle: &'a Throttle,
    address: IpAddr,
    user: [u8; 32],
}

struct Buckets<K> {
    burst: f64,
    spent: HashMap<K, Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            addresses: Mutex::new(Buckets { burst: ADDRESS_BURST, spent: HashMap::new() }),
            users: Mutex::new(Buckets { burst: USER_BURST, spent: HashMap::new() }),
        }
    }
}

impl Throttle {
    /// Takes a token of both for an attempt that is about to be checked, so that attempts at the same time count as
    /// those one after the other do; none when either has none left.
    pub fn attempt(&self, address: IpAddr, user: &str, now: Instant) -> Option<Attempt<'_>> {
        let address = network(address);
        let user = *blake3::hash(user.as_bytes()).as_bytes();
        if !self.addresses.lock().take(address, now) {
            return None;
        }
        if !self.users.lock().take(user, now) {
            self.addresses.lock().give_back(&address);
            return None;
        }
        Some(Attempt { throttle: self, address, user })
    }
}

impl Attempt<'_> {
    /// Gives the tokens back: it succeeded, or nothing was found out.
    pub fn forgive(self) {
        self.throttle.addresses.lock().give_back(&self.address);
        self.throttle.users.lock().give_back(&self.user);
    }
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    fn take(&mut self, key: K, now: Instant) -> bool {
        if self.spent.len() >= MAX_BUCKETS && !self.spent.contains_key(&key) {
            self.make_room(now);
        }
        let bucket = self.spent.entry(key).or_insert(Bucket { tokens: self.burst, at: now });
        let refilled = now.saturating_duration_since(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + refilled).min(self.burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn give_back(&mut self, key: &K) {
        if let Some(bucket) = self.spent.get_mut(key) {
            bucket.tokens = (bucket.tokens + 1.0).min(self.burst);
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

    #[test]
    fn failures_for_a_user_from_everywhere_are_throttled_and_the_bucket_refills() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..USER_BURST as u32 {
            assert!(throttle.attempt(address(n), "alice@example.org", now).is_some());
        }
        assert!(throttle.attempt(address(999), "alice@example.org", now).is_none());
        assert!(throttle.attempt(address(999), "bob@example.org", now).is_some());
        assert!(throttle.attempt(address(999), "alice@example.org", now + REFILL).is_some());
        assert!(throttle.attempt(address(999), "alice@example.org", now + REFILL).is_none());
    }

    #[test]
    fn failures_from_an_address_for_many_users_are_throttled() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let tried =
            (0..100).filter(|n| throttle.attempt(address(1), &format!("user{n}"), now).is_some()).count();
        assert_eq!(tried, ADDRESS_BURST as usize);
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_together() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let tried = (0..100u16)
            .filter(|n| {
                let address = IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, *n]);
                throttle.attempt(address, &format!("user{n}"), now).is_some()
            })
            .count();
        assert_eq!(tried, ADDRESS_BURST as usize);
    }

    #[test]
    fn successes_cost_nothing() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..1000 {
            throttle.attempt(address(1), "alice@example.org", now).unwrap().forgive();
        }
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut buckets = Buckets { burst: 5.0, spent: HashMap::new() };
        let now = Instant::now();
        for n in 0..MAX_BUCKETS * 2 + 10 {
            assert!(buckets.take(n, now));
            assert!(buckets.spent.len() <= MAX_BUCKETS);
        }
    }
}
