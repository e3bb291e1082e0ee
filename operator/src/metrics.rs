//! The operator's own metrics.

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::{
    probing::metrics::ProbeMetrics, resource_metrics::ResourceMetrics, runs::metrics::BackupMetrics,
};

/// All of them.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations by controller and result (`ok`, `error`).
    pub reconciles: IntCounterVec,
    /// Seconds of a reconciliation by controller.
    pub seconds: HistogramVec,
    /// Directory changes that were sent, by result (`ok`, `refused`, `unavailable`).
    pub changes: IntCounterVec,
    /// 1 while this operator holds the Lease.
    pub leader: IntGauge,
    /// Objects that cannot be read and are passed over, by kind.
    pub unreadable: IntGaugeVec,
    /// Of backups and restores.
    pub backups: BackupMetrics,
    /// Of probes.
    pub probes: ProbeMetrics,
    /// Of what resources tell.
    pub resources: ResourceMetrics,
}

impl Metrics {
    /// Registers them.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        quorumail_logging::register(&registry)?;
        let reconciles = IntCounterVec::new(
            Opts::new("quorumail_operator_reconciles_total", "Reconciliations by controller and result."),
            &["controller", "result"],
        )?;
        let buckets = vec![0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "quorumail_operator_reconcile_seconds",
                "Duration of reconciliations by controller.",
            )
            .buckets(buckets),
            &["controller"],
        )?;
        let changes = IntCounterVec::new(
            Opts::new(
                "quorumail_operator_directory_changes_total",
                "Directory changes sent to mailnodes by result.",
            ),
            &["result"],
        )?;
        let leader = IntGauge::new("quorumail_operator_leader", "1 while this operator holds the Lease.")?;
        let unreadable = IntGaugeVec::new(
            Opts::new(
                "quorumail_operator_unreadable_objects",
                "Objects that cannot be read and are passed over, by kind.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(unreadable.clone()))?;
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(changes.clone()))?;
        registry.register(Box::new(leader.clone()))?;
        let backups = BackupMetrics::register(&registry)?;
        let probes = ProbeMetrics::register(&registry)?;
        let resources = ResourceMetrics::register(&registry)?;
        Ok(Self { registry, reconciles, seconds, changes, leader, unreadable, backups, probes, resources })
    }

    /// Counts one reconciliation.
    pub fn observe(&self, controller: &str, started: std::time::Instant, ok: bool) {
        self.reconciles.with_label_values(&[controller, if ok { "ok" } else { "error" }]).inc();
        self.seconds.with_label_values(&[controller]).observe(started.elapsed().as_secs_f64());
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }
}
