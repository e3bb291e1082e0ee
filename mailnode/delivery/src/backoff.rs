//! How long to wait before the next attempt. RFC 5321 4.5.4.1.

use std::time::Duration;

use crate::Retry;

/// Waits are up to so much shorter or longer, so that what failed together is not tried again together.
const JITTER: f64 = 0.15;

/// The wait after `attempts` failed attempts (at least one): doubled after each, up to the longest. `random` is
/// between 0 and 1 and chooses within the jitter.
pub fn retry_delay(retry: &Retry, attempts: u32, random: f64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(31);
    let base = retry.initial.saturating_mul(1 << doublings).min(retry.max);
    let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.5 };
    base.mul_f64(1.0 - JITTER + 2.0 * JITTER * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let retry = Retry::default();
        let minutes = |attempts| retry_delay(&retry, attempts, 0.5).as_secs_f64() / 60.0;
        let waits: Vec<f64> = [1, 2, 3, 6, 7, 8, u32::MAX].map(|n| minutes(n).round()).to_vec();
        assert_eq!(waits, [1.0, 2.0, 4.0, 32.0, 60.0, 60.0, 60.0]);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let retry = Retry::default();
        assert_eq!(retry_delay(&retry, 1, 0.0), Duration::from_secs(51));
        assert_eq!(retry_delay(&retry, 1, 1.0), Duration::from_secs(69));
        assert_eq!(retry_delay(&retry, 1, f64::NAN), Duration::from_secs(60));
    }
}
