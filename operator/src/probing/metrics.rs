//! What Prometheus is told of probes.

use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::Outcome;

/// Upper bounds of the time of a probe that passed, in seconds.
const SECONDS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// All results that are counted.
const RESULTS: [&str; 4] = ["ok", "not_set_up", "not_sent", "not_read"];

/// Which domain: namespace, MailCluster and name of the domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// Of the MailDomain.
    pub namespace: String,
    /// Whose mailnodes serve it.
    pub mailcluster: String,
    /// In lower case.
    pub domain: String,
}

impl Labels {
    fn values(&self) -> [&str; 3] {
        [&self.namespace, &self.mailcluster, &self.domain]
    }
}

/// All of them: as many series as there are MailDomains.
#[derive(Clone)]
pub struct ProbeMetrics {
    results: IntCounterVec,
    last_success: GaugeVec,
    seconds: HistogramVec,
}

impl ProbeMetrics {
    /// Makes and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let all = Self {
            results: IntCounterVec::new(
                Opts::new("quorumail_probe_results_total", "Probes that ended, by result."),
                &["namespace", "mailcluster", "domain", "result"],
            )?,
            last_success: GaugeVec::new(
                Opts::new(
                    "quorumail_probe_last_success_timestamp_seconds",
                    "When a probe last passed, in Unix seconds.",
                ),
                &["namespace", "mailcluster", "domain"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "quorumail_probe_seconds",
                    "Time from the beginning of a probe that passed until its message was read.",
                )
                .buckets(SECONDS.to_vec()),
                &["namespace", "mailcluster"],
            )?,
        };
        registry.register(Box::new(all.results.clone()))?;
        registry.register(Box::new(all.last_success.clone()))?;
        registry.register(Box::new(all.seconds.clone()))?;
        Ok(all)
    }

    /// Shows a domain before its first probe, so that an increase is seen from the first one on.
    pub fn expect(&self, labels: &Labels) {
        let [namespace, mailcluster, domain] = labels.values();
        for result in RESULTS {
            self.results.with_label_values(&[namespace, mailcluster, domain, result]).inc_by(0);
        }
    }

    /// Counts a probe that ended at `now`, in Unix seconds.
    pub fn ended(&self, labels: &Labels, outcome: &Outcome, now: f64) {
        let [namespace, mailcluster, domain] = labels.values();
        let result = match outcome {
            Outcome::Passed(passed) => {
                let took = (passed.sent + passed.read).as_secs_f64();
                self.seconds.with_label_values(&[namespace, mailcluster]).observe(took);
                self.last_success.with_label_values(&labels.values()).set(now);
                "ok"
            }
            Outcome::NotSetUp(_) => "not_set_up",
            Outcome::NotSent(_) => "not_sent",
            Outcome::NotRead(_) => "not_read",
            Outcome::Unknown(_) => return,
        };
        self.results.with_label_values(&[namespace, mailcluster, domain, result]).inc();
    }

    /// Takes a domain out that is not probed any more.
    pub fn forget(&self, labels: &Labels) {
        let [namespace, mailcluster, domain] = labels.values();
        for result in RESULTS {
            let _ = self.results.remove_label_values(&[namespace, mailcluster, domain, result]);
        }
        let _ = self.last_success.remove_label_values(&labels.values());
    }
}
