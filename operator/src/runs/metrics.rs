//! What Prometheus is told of backups and restores.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use quorumail_crds::{
    BackupPolicyStatus, MailBackupStatus, Span,
    backup::Phase,
    condition::{find, kind},
};

use crate::stores::Key;

/// All of them. Those of policies have the labels `namespace` and `policy`.
#[derive(Clone)]
pub struct BackupMetrics {
    last_success: GaugeVec,
    last_schedule: GaugeVec,
    next: GaugeVec,
    duration: GaugeVec,
    bytes: IntGaugeVec,
    uploaded: IntGaugeVec,
    stored: IntGaugeVec,
    kept: IntGaugeVec,
    runs: IntCounterVec,
    running: Gauge,
    restores: IntCounterVec,
    restore_seconds: Histogram,
    restored_messages: IntCounter,
    restored_bytes: IntCounter,
    rehearsed: GaugeVec,
    rehearsal_seconds: GaugeVec,
    rehearsal_succeeded: GaugeVec,
    rehearsals: IntCounterVec,
    archive_lag: GaugeVec,
    retention: GaugeVec,
}

const POLICY: [&str; 2] = ["namespace", "policy"];

impl BackupMetrics {
    /// Makes and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &POLICY);
        let int = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &POLICY);
        let all = Self {
            last_success: gauge(
                "quorumail_backup_last_success_timestamp_seconds",
                "When the last backup that succeeded was finished, in Unix seconds.",
            )?,
            last_schedule: gauge(
                "quorumail_backup_last_schedule_timestamp_seconds",
                "When the last backup was due that was begun, in Unix seconds.",
            )?,
            next: gauge(
                "quorumail_backup_next_timestamp_seconds",
                "When the next backup is due, in Unix seconds; absent while the policy is suspended.",
            )?,
            duration: gauge(
                "quorumail_backup_last_duration_seconds",
                "How long the last backup that succeeded took.",
            )?,
            bytes: int("quorumail_backup_last_bytes", "Size of the mail in the last backup that succeeded.")?,
            uploaded: int(
                "quorumail_backup_last_uploaded_bytes",
                "Bytes that the last backup that succeeded had to send.",
            )?,
            stored: int("quorumail_backup_stored_bytes", "Bytes in the bucket that backups refer to.")?,
            kept: int("quorumail_backup_kept", "Backups in the bucket.")?,
            runs: IntCounterVec::new(
                Opts::new("quorumail_backup_runs_total", "Backups that ended, by result (ok, failed)."),
                &["namespace", "policy", "result"],
            )?,
            running: Gauge::new(
                "quorumail_backup_running",
                "Backups, restores, rehearsals and retention that are under way.",
            )?,
            restores: IntCounterVec::new(
                Opts::new("quorumail_restore_runs_total", "Restores that ended, by result (ok, failed)."),
                &["result"],
            )?,
            restore_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "quorumail_restore_seconds",
                    "Duration of restores that came to their end.",
                )
                .buckets(vec![1.0, 5.0, 30.0, 120.0, 600.0, 3_600.0, 14_400.0]),
            )?,
            restored_messages: IntCounter::new("quorumail_restore_messages_total", "Messages brought back.")?,
            restored_bytes: IntCounter::new(
                "quorumail_restore_bytes_total",
                "Bytes of messages brought back.",
            )?,
            rehearsed: gauge(
                "quorumail_rehearsal_last_success_timestamp_seconds",
                "When the last rehearsal that succeeded was finished, in Unix seconds.",
            )?,
            rehearsal_seconds: gauge(
                "quorumail_rehearsal_last_duration_seconds",
                "How long the last rehearsal that succeeded took from nothing to mail that is served: the measured time to recover.",
            )?,
            rehearsal_succeeded: gauge(
                "quorumail_rehearsal_succeeded",
                "1 while the last rehearsal succeeded and none is overdue, else 0; absent before the first has ended.",
            )?,
            rehearsals: IntCounterVec::new(
                Opts::new("quorumail_rehearsal_runs_total", "Rehearsals that ended, by result (ok, failed)."),
                &["namespace", "policy", "result"],
            )?,
            archive_lag: gauge(
                "quorumail_recovery_point_age_seconds",
                "Age of what is surely in the bucket: so much mail would be lost now with the MailCluster. Only with an archive.",
            )?,
            retention: gauge(
                "quorumail_backup_retention_timestamp_seconds",
                "When retention was last applied, in Unix seconds.",
            )?,
        };
        for collector in all.of_policies() {
            registry.register(Box::new(collector.clone()))?;
        }
        for collector in [&all.bytes, &all.uploaded, &all.stored, &all.kept] {
            registry.register(Box::new(collector.clone()))?;
        }
        for collector in [&all.runs, &all.restores, &all.rehearsals] {
            registry.register(Box::new(collector.clone()))?;
        }
        for collector in [&all.restored_messages, &all.restored_bytes] {
            registry.register(Box::new(collector.clone()))?;
        }
        registry.register(Box::new(all.running.clone()))?;
        registry.register(Box::new(all.restore_seconds.clone()))?;
        Ok(all)
    }

    /// Gauges with a value for each policy.
    fn of_policies(&self) -> [&GaugeVec; 9] {
        [
            &self.last_success,
            &self.last_schedule,
            &self.next,
            &self.duration,
            &self.rehearsed,
            &self.rehearsal_seconds,
            &self.rehearsal_succeeded,
            &self.archive_lag,
            &self.retention,
        ]
    }

    /// Shows a policy as its status tells it.
    pub fn policy(&self, (namespace, name): &Key, status: &BackupPolicyStatus) {
        let labels = [namespace.as_str(), name.as_str()];
        let instant = |gauge: &GaugeVec, time: &Option<Time>| match time {
            Some(time) => gauge.with_label_values(&labels).set(time.0.as_duration().as_secs_f64()),
            // There was none, which is no error.
            None => drop(gauge.remove_label_values(&labels)),
        };
        instant(&self.last_success, &status.last_successful_time);
        instant(&self.last_schedule, &status.last_schedule_time);
        instant(&self.next, &status.next_schedule_time);
        let applied = status.retention.as_ref().and_then(|retention| retention.applied.clone());
        instant(&self.retention, &applied);
        if let Some(bytes) = status.stored_bytes {
            self.stored.with_label_values(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Some(kept) = status.backups {
            self.kept.with_label_values(&labels).set(kept.into());
        }
        // So that an alert on failures sees the first one.
        for result in ["ok", "failed"] {
            self.runs.with_label_values(&[namespace.as_str(), name.as_str(), result]).inc_by(0);
        }
        instant(&self.rehearsed, &status.last_rehearsed_time);
        match status.archive_lag.as_ref().and_then(|lag| lag.parse::<Span>().ok()) {
            Some(lag) => self.archive_lag.with_label_values(&labels).set(lag.duration().as_secs_f64()),
            None => drop(self.archive_lag.remove_label_values(&labels)),
        }
        let told = find(&status.conditions, kind::REHEARSAL_SUCCEEDED);
        match told.map(|told| told.status.as_str()) {
            Some("Unknown") | None => drop(self.rehearsal_succeeded.remove_label_values(&labels)),
            Some(told) => {
                self.rehearsal_succeeded.with_label_values(&labels).set(f64::from(u8::from(told == "True")))
            }
        }
        if told.is_some() {
            for result in ["ok", "failed"] {
                self.rehearsals.with_label_values(&[namespace.as_str(), name.as_str(), result]).inc_by(0);
            }
        }
        let record = status.rehearsal.as_ref().filter(|record| record.result == Phase::Succeeded);
        if let Some(took) = record.and_then(|record| record.duration.as_ref()?.parse::<Span>().ok()) {
            self.rehearsal_seconds.with_label_values(&labels).set(took.duration().as_secs_f64());
        }
    }

    /// Shows the last backup of a policy that succeeded.
    pub fn last_backup(&self, (namespace, name): &Key, status: &MailBackupStatus) {
        let labels = [namespace.as_str(), name.as_str()];
        let int = |gauge: &IntGaugeVec, value: Option<u64>| {
            gauge
                .with_label_values(&labels)
                .set(value.and_then(|v| i64::try_from(v).ok()).unwrap_or_default());
        };
        int(&self.bytes, status.bytes);
        int(&self.uploaded, status.uploaded_bytes);
        if let (Some(started), Some(finished)) = (&status.started, &status.finished) {
            let took = finished.0.duration_since(started.0).as_secs_f64();
            self.duration.with_label_values(&labels).set(took);
        }
    }

    /// Takes policies out that are no more.
    pub fn forget(&self, gone: &BTreeSet<Key>) {
        for (namespace, name) in gone {
            let labels = [namespace.as_str(), name.as_str()];
            for gauge in self.of_policies() {
                let _ = gauge.remove_label_values(&labels);
            }
            for gauge in [&self.bytes, &self.uploaded, &self.stored, &self.kept] {
                let _ = gauge.remove_label_values(&labels);
            }
            for result in ["ok", "failed"] {
                for counter in [&self.runs, &self.rehearsals] {
                    let _ = counter.remove_label_values(&[namespace.as_str(), name.as_str(), result]);
                }
            }
        }
    }

    /// Counts a backup that ended.
    pub fn backup_ended(&self, (namespace, name): &Key, ok: bool) {
        self.runs.with_label_values(&[namespace.as_str(), name.as_str(), result(ok)]).inc();
    }

    /// Counts a rehearsal that ended.
    pub fn rehearsal_ended(&self, (namespace, name): &Key, ok: bool) {
        self.rehearsals.with_label_values(&[namespace.as_str(), name.as_str(), result(ok)]).inc();
    }

    /// Counts a restore that ended.
    pub fn restore_ended(&self, ok: bool) {
        self.restores.with_label_values(&[result(ok)]).inc();
    }

    /// Counts what a restore brought back, also when that was not all.
    pub fn restored(&self, messages: u64, bytes: u64, took: Duration) {
        self.restored_messages.inc_by(messages);
        self.restored_bytes.inc_by(bytes);
        self.restore_seconds.observe(took.as_secs_f64());
    }

    /// Shows how many runs are under way.
    pub fn running(&self, count: usize) {
        self.running.set(count as f64);
    }
}

fn result(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, TextEncoder};

    use super::*;

    fn rendered(registry: &Registry) -> String {
        let mut out = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_rehearsal_is_shown_once_one_has_ended() {
        use quorumail_crds::{
            backuppolicy::RehearsalRecord,
            condition::{Observed, merge, reason},
        };
        let registry = Registry::new();
        let metrics = BackupMetrics::register(&registry).unwrap();
        let key: Key = ("mail".to_owned(), "nightly".to_owned());
        let now: k8s_openapi::jiff::Timestamp = "1970-01-01T00:01:00Z".parse().unwrap();
        let mut status = BackupPolicyStatus::default();
        let told = |observed| merge(&[], &[observed], None, now);
        status.conditions = told(Observed::unknown(kind::REHEARSAL_SUCCEEDED, reason::NOT_YET, ""));
        metrics.policy(&key, &status);
        let text = rendered(&registry);
        assert!(
            !text.contains("rehearsal_succeeded{") && text.contains("quorumail_rehearsal_runs_total{"),
            "{text}"
        );
        status.conditions = told(Observed::yes(kind::REHEARSAL_SUCCEEDED, reason::SUCCEEDED, ""));
        status.last_rehearsed_time = Some(Time(now));
        status.rehearsal = Some(RehearsalRecord {
            result: Phase::Succeeded,
            duration: Some("1m30s".to_owned()),
            ..RehearsalRecord::default()
        });
        metrics.policy(&key, &status);
        let text = rendered(&registry);
        for (name, value) in
            [("succeeded", 1), ("last_duration_seconds", 90), ("last_success_timestamp_seconds", 60)]
        {
            let line = format!(r#"quorumail_rehearsal_{name}{{namespace="mail",policy="nightly"}} {value}"#);
            assert!(text.contains(&line), "{line} in {text}");
        }
        status.conditions = told(Observed::no(kind::REHEARSAL_SUCCEEDED, reason::OVERDUE, ""));
        metrics.policy(&key, &status);
        let line = r#"quorumail_rehearsal_succeeded{namespace="mail",policy="nightly"} 0"#;
        assert!(rendered(&registry).contains(line));
        metrics.forget(&[key].into());
        assert!(!rendered(&registry).contains("nightly"));
    }

    #[test]
    fn a_policy_is_shown_as_its_status_tells_and_forgotten_with_it() {
        let registry = Registry::new();
        let metrics = BackupMetrics::register(&registry).unwrap();
        let key: Key = ("mail".to_owned(), "nightly".to_owned());
        let at = |text: &str| Some(Time(text.parse().unwrap()));
        let mut status =
            BackupPolicyStatus { next_schedule_time: at("1970-01-01T00:02:00Z"), ..Default::default() };
        metrics.policy(&key, &status);
        let text = rendered(&registry);
        assert!(!text.contains("last_success_timestamp_seconds{"), "nothing was backed up: {text}");
        assert!(
            text.contains(
                r#"quorumail_backup_next_timestamp_seconds{namespace="mail",policy="nightly"} 120"#
            )
        );
        assert!(
            text.contains(
                r#"quorumail_backup_runs_total{namespace="mail",policy="nightly",result="failed"} 0"#
            )
        );
        status = BackupPolicyStatus {
            last_successful_time: at("1970-01-01T00:01:00Z"),
            last_schedule_time: at("1970-01-01T00:00:50Z"),
            ..Default::default()
        };
        metrics.policy(&key, &status);
        let text = rendered(&registry);
        assert!(
            text.contains(r#"last_success_timestamp_seconds{namespace="mail",policy="nightly"} 60"#),
            "{text}"
        );
        assert!(
            text.contains(r#"last_schedule_timestamp_seconds{namespace="mail",policy="nightly"} 50"#),
            "{text}"
        );
        assert!(!text.contains("next_timestamp_seconds{"), "it is suspended: {text}");
        metrics.forget(&[key].into());
        assert!(!rendered(&registry).contains("nightly"));
    }
}
