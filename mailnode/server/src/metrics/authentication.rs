//! What the checks of mail from other systems find.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, Registry};
use quorumail_authentication::Verdict;

use super::{Maker, Metrics};

/// Upper bounds of the time that a check takes, in seconds.
const CHECK_SECONDS: [f64; 8] = [0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// By method and result.
pub(super) struct Authentication {
    checks: IntCounterVec,
    refused: IntCounter,
    seconds: Histogram,
    signed: IntCounterVec,
}

impl Authentication {
    pub(super) fn new(registry: &Registry) -> Self {
        let make = Maker { registry, protocol: "authentication" };
        let refused = make.counter("refused_total", "Messages refused because of DMARC.", &[]);
        let seconds = make.histogram("seconds", "Time that a check took.", &[], &CHECK_SECONDS);
        Self {
            checks: make.counter(
                "checks_total",
                "Messages from other systems, by method and result.",
                &["method", "result"],
            ),
            signed: make.counter(
                "submissions_total",
                "Messages of our own people, by whether they were signed.",
                &["signed"],
            ),
            refused: refused.with_label_values::<&str>(&[]),
            seconds: seconds.with_label_values::<&str>(&[]),
        }
    }
}

impl Metrics {
    /// A message of our own people was signed, or its author's domain has no keys.
    pub fn signed(&self, signed: bool) {
        self.authentication.signed.with_label_values(&[if signed { "yes" } else { "no" }]).inc();
    }

    /// A message was checked.
    pub fn checked(&self, verdict: &Verdict, refused: bool, took: Duration) {
        let results =
            [("spf", verdict.spf().outcome), ("dkim", verdict.best_dkim()), ("dmarc", verdict.dmarc.outcome)];
        for (method, outcome) in results {
            self.authentication.checks.with_label_values(&[method, outcome.as_str()]).inc();
        }
        if refused {
            self.authentication.refused.inc();
        }
        self.authentication.seconds.observe(took.as_secs_f64());
    }
}
