//! Connections that were refused, told often enough to be seen and not more.
//!
//! Whoever is refused comes back many times a second: a node with certificates of another authority would fill the logs of
//! all others.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The same counterpart is told of once in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Counterparts remembered; of more than these none is told within that time.
const MAX_REMEMBERED: usize = 1024;

/// When each counterpart was last told of.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<String, Instant>>);

impl Refusals {
    /// Whether it is time to tell of a counterpart; if so, it counts as told.
    pub fn is_news(&self, who: &str) -> bool {
        let mut told = self.0.lock();
        if told.get(who).is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return false;
        }
        if told.len() >= MAX_REMEMBERED {
            told.retain(|_, at| at.elapsed() < TELL_EVERY);
            if told.len() >= MAX_REMEMBERED {
                return false;
            }
        }
        told.insert(who.to_owned(), Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counterpart_is_told_of_once_and_a_flood_of_them_within_bounds() {
        let refusals = Refusals::default();
        assert!(refusals.is_news("a") && !refusals.is_news("a") && refusals.is_news("b"));
        let told = (0..2 * MAX_REMEMBERED).filter(|n| refusals.is_news(&n.to_string())).count();
        assert_eq!(told, MAX_REMEMBERED - 2);
    }
}
