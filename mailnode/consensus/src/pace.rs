//! A limit on bytes per second, shared by all who send.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What was not used within this time is not saved up.
const BURST: Duration = Duration::from_millis(100);

/// Gives turns to bytes so that no more pass than the rate allows.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When all bytes that were given a turn have passed.
    busy_until: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: bytes_per_second.max(1), busy_until: Mutex::new(Instant::now()) }
    }

    /// When so many bytes may pass. Turns are in the order of the calls.
    pub(crate) fn turn(&self, bytes: usize) -> Instant {
        let mut busy_until = self.busy_until.lock();
        let now = Instant::now();
        let turn = (*busy_until).max(now.checked_sub(BURST).unwrap_or(now));
        *busy_until = turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_keep_to_the_rate() {
        let pace = Pace::new(10 << 20);
        let begun = Instant::now();
        let last = (0..48).map(|_| pace.turn(64 << 10)).last().expect("there were turns");
        // 3 MiB but for the last turn's, less what may have been saved up.
        let needed = Duration::from_secs_f64(47.0 * 64.0 / 10_240.0) - BURST;
        assert!(last >= begun + needed, "the last turn comes {:?} after the first", last - begun);
        assert!(last <= Instant::now() + needed + BURST);
    }
}
