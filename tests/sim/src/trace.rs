//! What happened in a run: a hash over everything, the last events in words, and what was found wrong.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Events kept in words.
const KEPT: usize = 400;
/// What is found wrong beyond this number is only counted: one fault makes many.
const KEPT_VIOLATIONS: usize = 20;

/// Collects events. Two runs with the same seed have the same hash.
#[derive(Debug)]
pub(crate) struct Trace {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hasher: DefaultHasher,
    events: u64,
    kept: VecDeque<(Duration, String)>,
    violations: Vec<String>,
}

impl Trace {
    pub(crate) fn new() -> Trace {
        Trace { started: Instant::now(), inner: Mutex::default() }
    }

    /// Simulated time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes up an event that counts for the hash only.
    pub(crate) fn mark(&self, event: impl Hash) {
        let at = self.elapsed();
        let mut inner = self.inner.lock();
        inner.events += 1;
        (at.as_nanos(), event).hash(&mut inner.hasher);
    }

    /// Takes up an event in words.
    pub(crate) fn event(&self, event: String) {
        let at = self.elapsed();
        let mut inner = self.inner.lock();
        inner.events += 1;
        (at.as_nanos(), &event).hash(&mut inner.hasher);
        if inner.kept.len() == KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back((at, event));
    }

    /// Takes up something that must never be.
    pub(crate) fn violation(&self, what: String) {
        self.event(format!("WRONG: {what}"));
        let mut inner = self.inner.lock();
        if inner.violations.len() < KEPT_VIOLATIONS {
            inner.violations.push(what);
        }
    }

    /// Whether something was found wrong.
    pub(crate) fn is_bad(&self) -> bool {
        !self.inner.lock().violations.is_empty()
    }

    /// Hash, number of events, what was wrong, and the last events.
    pub(crate) fn finish(&self) -> (u64, u64, Vec<String>, Vec<String>) {
        let inner = self.inner.lock();
        let words = |(at, event): &(Duration, String)| format!("{:>8.3}s {event}", at.as_secs_f64());
        let kept = inner.kept.iter().map(words).collect();
        (inner.hasher.finish(), inner.events, inner.violations.clone(), kept)
    }
}
