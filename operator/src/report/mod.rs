//! What a mail service did in a week or a month, from what Prometheus has kept: uptime, deliverability, queues, backups and their
//! rehearsals, growth, incidents, and the weekly check with ticks.
//!
//! [`gather`] asks; [`document`] makes sections of the figures, purely. What is not known is said to be not known.

pub mod document;
pub mod prometheus;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use self::{
    document::{Block, Chart, Document, Section, Tick},
    prometheus::{Prometheus, PrometheusError, Series},
};

/// Points of a chart.
const POINTS: i64 = 84;
/// Incidents are seen in steps of so many seconds at least, and so many steps at most (Prometheus takes 11,000).
const INCIDENT_STEP: i64 = 60;
const INCIDENT_STEPS: i64 = 8_000;
/// Seconds back from now in which an alert that fires was seen.
const ALERT_SEEN: i64 = 3 * INCIDENT_STEP;
/// Incidents that are listed, the newest; of more only the number is told.
const LISTED: usize = 100;
/// Of messages sent by probes and of recipients elsewhere: shares that are aimed at.
const UPTIME_TARGET: f64 = 0.999;
const DELIVERABILITY_TARGET: f64 = 0.98;

/// What is reported on.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Namespace; all when there is none.
    pub namespace: Option<String>,
    /// MailCluster; all when there is none.
    pub cluster: Option<String>,
    /// When the time ends.
    pub until: Timestamp,
    /// How long it is, in seconds.
    pub seconds: i64,
}

impl Scope {
    /// Conditions on the labels of series of mailnodes and probes, with a comma at the end.
    fn of_cluster(&self) -> String {
        let cluster = self.cluster.iter().map(|name| format!("mailcluster=\"{name}\","));
        self.of_namespace() + &cluster.collect::<String>()
    }

    /// Likewise of series that know no MailCluster.
    fn of_namespace(&self) -> String {
        self.namespace.iter().map(|name| format!("namespace=\"{name}\",")).collect()
    }
}

/// A BackupPolicy. Times in Unix seconds and seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Namespace and name.
    pub name: String,
    /// Backups that ended in this time.
    pub succeeded: Option<f64>,
    /// Those of them that failed.
    pub failed: Option<f64>,
    /// When the last one that succeeded was finished.
    pub last: Option<f64>,
    /// Bytes in the bucket.
    pub stored_bytes: Option<f64>,
    /// 1 or 0; none where nothing is rehearsed.
    pub rehearsal_succeeded: Option<f64>,
    /// When the last rehearsal that succeeded was finished.
    pub rehearsed: Option<f64>,
    /// How long it took.
    pub rehearsal_seconds: Option<f64>,
}

/// An alert that fired.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Name of the alert.
    pub alert: String,
    /// As its rule says.
    pub severity: String,
    /// What it was about.
    pub about: String,
    /// In Unix seconds.
    pub from: f64,
    /// When it was last seen.
    pub to: f64,
    /// Whether it fires still.
    pub goes_on: bool,
}

/// What Prometheus told. Charts have a value for each of so many equal parts of the time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Share of probes that came back.
    pub uptime: Option<f64>,
    /// Probes that did not.
    pub probes_failed: Option<f64>,
    /// Share of probes that came back.
    pub uptime_chart: Vec<Option<f64>>,
    /// Recipients elsewhere by what came of them.
    pub recipients: BTreeMap<String, f64>,
    /// Share that got their mail.
    pub delivered_chart: Vec<Option<f64>>,
    /// Recipients that wait at the end, by queue.
    pub queues: BTreeMap<String, f64>,
    /// Recipients that wait, in all queues but what is held.
    pub queue_chart: Vec<Option<f64>>,
    /// Age of the oldest entry that was seen, in seconds, by queue.
    pub oldest_seconds: BTreeMap<String, f64>,
    /// BackupPolicies.
    pub policies: Vec<Policy>,
    /// Mailboxes at the beginning and at the end.
    pub mailboxes: [Option<f64>; 2],
    /// Bytes of mail on all disks, replicas included, at the beginning and at the end.
    pub bytes: [Option<f64>; 2],
    /// The same.
    pub bytes_chart: Vec<Option<f64>>,
    /// Messages that were taken.
    pub messages: Option<f64>,
    /// Mailnodes that serve at the end, and all that are known.
    pub ready: Option<(f64, f64)>,
    /// Domains whose probes came back in the last ten minutes, and all.
    pub domains: Option<(f64, f64)>,
    /// Lines of the log that tell of something wrong, by level (`warn`, `error`).
    pub log_records: BTreeMap<String, f64>,
    /// The newest first; none when Prometheus has no rules of ours.
    pub incidents: Option<Vec<Incident>>,
}

/// What Prometheus tells of this moment and of the time before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// Share of probes that came back in this time.
    pub uptime: Option<f64>,
    /// Of recipients elsewhere whose outcome is final, the share that got their mail.
    pub deliverability: Option<f64>,
    /// Alerts that fire, the newest first; none when Prometheus has no rules of ours.
    pub alerts: Option<Vec<Incident>>,
}

/// Asks only for what a look at this moment needs.
pub async fn glance(prometheus: &Prometheus, scope: &Scope) -> Result<Moment, PrometheusError> {
    let ask = Ask { prometheus, to: scope.until.as_second(), seconds: scope.seconds };
    let (c, w) = (scope.of_cluster(), format!("{}s", scope.seconds));
    let (uptime, remote) = (uptime_of(&c, &w), remote_of(&c, &w));
    let firing = Ask { seconds: ALERT_SEEN, ..ask };
    let (uptime, recipients, alerts) =
        tokio::try_join!(ask.one(&uptime), ask.by("outcome", &remote), firing.incidents(&c))?;
    let firing = |all: Vec<Incident>| all.into_iter().filter(|incident| incident.goes_on).collect();
    Ok(Moment { uptime, deliverability: delivered(&recipients), alerts: alerts.map(firing) })
}

/// Of recipients elsewhere, how many came to which end.
fn remote_of(c: &str, w: &str) -> String {
    format!("sum by (outcome) (increase(quorumail_delivery_recipients_total{{{c}class=\"remote\"}}[{w}]))")
}

/// Probes that ended with these results.
fn probes_of(c: &str, only: &str, w: &str) -> String {
    format!("sum(increase(quorumail_probe_results_total{{{c}{only}}}[{w}]))")
}

/// Share of them that came back.
fn uptime_of(c: &str, w: &str) -> String {
    format!("{} / {}", probes_of(c, "result=\"ok\"", w), probes_of(c, "", w))
}

/// Asks.
pub async fn gather(prometheus: &Prometheus, scope: &Scope) -> Result<Figures, PrometheusError> {
    let ask = Ask { prometheus, to: scope.until.as_second(), seconds: scope.seconds };
    let (c, n, w) = (scope.of_cluster(), scope.of_namespace(), format!("{}s", scope.seconds));
    let step = format!("{}s", ask.step());
    let remote = |only: &str, window: &str| {
        let metric = "quorumail_delivery_recipients_total";
        format!("sum(increase({metric}{{{c}class=\"remote\",{only}}}[{window}]))")
    };
    let delivered = format!(
        "{} / {}",
        remote("outcome=\"delivered\"", &step),
        remote("outcome=~\"delivered|bounced|dropped\"", &step)
    );
    let waiting = format!("sum(quorumail_queue_recipients{{{c}class=~\"local|remote|bad\"}})");
    let mailboxes = format!("max(quorumail_directory_mailboxes{{{c}}})");
    let bytes = format!("sum(quorumail_journal_live_bytes{{{c}}})");
    let oldest = format!("max by (class) (max_over_time(quorumail_queue_oldest_seconds{{{c}}}[{w}]))");
    let passing = format!(
        "sum by (namespace, mailcluster, domain) (increase(quorumail_probe_results_total{{{c}result=\"ok\"}}[10m]))"
    );
    let records = format!("sum by (level) (increase(quorumail_log_records_total{{{c}}}[{w}]))");
    let from = ask.to - ask.seconds;
    let ready = ask.one(&format!("sum(quorumail_ready{{{c}}})")).await?;
    let all = ask.one(&format!("count(quorumail_ready{{{c}}})")).await?;
    let domains = prometheus.at(&passing, ask.to).await?;
    Ok(Figures {
        uptime: ask.one(&uptime_of(&c, &w)).await?,
        probes_failed: ask.one(&probes_of(&c, "result!=\"ok\"", &w)).await?,
        uptime_chart: ask.chart(&uptime_of(&c, &step)).await?,
        recipients: ask.by("outcome", &remote_of(&c, &w)).await?,
        delivered_chart: ask.chart(&delivered).await?,
        queues: ask.by("class", &format!("sum by (class) (quorumail_queue_recipients{{{c}}})")).await?,
        queue_chart: ask.chart(&waiting).await?,
        oldest_seconds: ask.by("class", &oldest).await?,
        policies: ask.policies(&n, &w).await?,
        mailboxes: [first(&prometheus.at(&mailboxes, from).await?), ask.one(&mailboxes).await?],
        bytes: [first(&prometheus.at(&bytes, from).await?), ask.one(&bytes).await?],
        bytes_chart: ask.chart(&bytes).await?,
        messages: ask
            .one(&format!("sum(increase(quorumail_smtp_messages_accepted_total{{{c}}}[{w}]))"))
            .await?,
        ready: ready.zip(all),
        domains: (!domains.is_empty()).then(|| {
            let pass = domains.iter().filter(|one| first(std::slice::from_ref(*one)) > Some(0.0)).count();
            (pass as f64, domains.len() as f64)
        }),
        log_records: ask.by("level", &records).await?,
        incidents: ask.incidents(&c).await?,
    })
}

/// A figure of a policy.
type FieldOf = fn(&mut Policy) -> &mut Option<f64>;

struct Ask<'p> {
    prometheus: &'p Prometheus,
    to: i64,
    seconds: i64,
}

fn first(series: &[Series]) -> Option<f64> {
    series.first()?.points.first().map(|(_, value)| *value)
}

impl Ask<'_> {
    fn step(&self) -> i64 {
        (self.seconds / POINTS).max(1)
    }

    async fn one(&self, query: &str) -> Result<Option<f64>, PrometheusError> {
        Ok(first(&self.prometheus.at(query, self.to).await?))
    }

    async fn by(&self, label: &str, query: &str) -> Result<BTreeMap<String, f64>, PrometheusError> {
        let found = self.prometheus.at(query, self.to).await?;
        let one = |series: &Series| Some((series.label(label).to_owned(), series.points.first()?.1));
        Ok(found.iter().filter_map(one).collect())
    }

    async fn chart(&self, query: &str) -> Result<Vec<Option<f64>>, PrometheusError> {
        let (step, from) = (self.step(), self.to - self.seconds);
        let found = self.prometheus.over(query, from + step, self.to, step).await?;
        Ok(found.first().map_or_else(Vec::new, |series| placed(&series.points, from + step, self.to, step)))
    }

    async fn policies(&self, n: &str, w: &str) -> Result<Vec<Policy>, PrometheusError> {
        let mut all: BTreeMap<String, Policy> = BTreeMap::new();
        let runs = |result: &str| {
            format!(
                "sum by (namespace, policy) (increase(quorumail_backup_runs_total{{{n}result=\"{result}\"}}[{w}]))"
            )
        };
        let gauge = |name: &str| format!("max by (namespace, policy) (quorumail_{name}{{{n}}})");
        let wanted: [(String, FieldOf); 7] = [
            (runs("ok"), |policy| &mut policy.succeeded),
            (runs("failed"), |policy| &mut policy.failed),
            (gauge("backup_last_success_timestamp_seconds"), |policy| &mut policy.last),
            (gauge("backup_stored_bytes"), |policy| &mut policy.stored_bytes),
            (gauge("rehearsal_succeeded"), |policy| &mut policy.rehearsal_succeeded),
            (gauge("rehearsal_last_success_timestamp_seconds"), |policy| &mut policy.rehearsed),
            (gauge("rehearsal_last_duration_seconds"), |policy| &mut policy.rehearsal_seconds),
        ];
        for (query, field) in wanted {
            for series in self.prometheus.at(&query, self.to).await? {
                let name = format!("{}/{}", series.label("namespace"), series.label("policy"));
                let policy = all.entry(name.clone()).or_insert_with(|| Policy { name, ..Policy::default() });
                *field(policy) = first(&[series]);
            }
        }
        Ok(all.into_values().collect())
    }

    /// None when nobody watches: then that nothing fired says nothing.
    async fn incidents(&self, only: &str) -> Result<Option<Vec<Incident>>, PrometheusError> {
        let names = ALERTS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
        let step = (self.seconds / INCIDENT_STEPS).max(INCIDENT_STEP);
        // What concerns no namespace or MailCluster, as OperatorDown, concerns all of them.
        let only = only.replace("=\"", "=~\"|");
        let query = format!("ALERTS{{{only}alertstate=\"firing\",alertname=~\"{names}\"}}");
        let found = self.prometheus.over(&query, self.to - self.seconds, self.to, step).await?;
        if found.is_empty() && !self.prometheus.has_alert(ONE_OF_OURS).await? {
            return Ok(None);
        }
        let mut all: Vec<_> = found.iter().flat_map(|series| incidents(series, step, self.to)).collect();
        all.sort_by(|a, b| b.from.total_cmp(&a.from));
        Ok(Some(all))
    }
}

/// An alert that is there wherever the rules of the chart are.
const ONE_OF_OURS: &str = "PartitionLeaderless";
/// Alerts of the chart, and the pages of docs/runbooks that say what to do.
const ALERTS: &[(&str, &str)] = &[
    ("ArchiveBroken", "ArchiveLagging"),
    ("ArchiveLagging", "ArchiveLagging"),
    ("BackupOverdue", "BackupOverdue"),
    ("BadQueueNotEmpty", "BadQueueNotEmpty"),
    ("BlockListed", "BlockListed"),
    ("BounceSurge", "BounceSurge"),
    ("CertificateExpired", "CertificateExpiring"),
    ("CertificateExpiring", "CertificateExpiring"),
    ("ChangeWaiting", "OperatorDown"),
    ("DeliverabilityBelowTarget", "DeliverabilityBelowTarget"),
    ("DiskFilling", "DiskFilling"),
    ("DiskFull", "DiskFilling"),
    ("DiskSlow", "DiskSlow"),
    ("DomainAuthBroken", "DomainAuthBroken"),
    ("LocalQueueStuck", "QueueStuck"),
    ("MailboxNearQuota", "MailboxNearQuota"),
    ("MailnodeNotReady", "MailnodeNotReady"),
    ("OperatorDown", "OperatorDown"),
    ("OperatorStuck", "OperatorDown"),
    ("PartitionLeaderless", "PartitionLeaderless"),
    ("PartitionUnderReplicated", "PartitionUnderReplicated"),
    ("ProbeFailing", "ProbeFailing"),
    ("ReceiverRefusesMail", "DeliverabilityBelowTarget"),
    ("RehearsalFailed", "RehearsalFailed"),
    ("RemoteQueueOld", "QueueStuck"),
    ("RemoteQueueStuck", "QueueStuck"),
    ("ReplicaUnreadable", "ReplicaUnreadable"),
    ("RetentionOverdue", "RetentionOverdue"),
    ("UptimeBudgetBurn", "UptimeBudgetBurn"),
    ("UptimeBudgetBurnSlow", "UptimeBudgetBurn"),
    ("VersionsDiffer", "VersionsDiffer"),
];

/// The page of docs/runbooks for an alert of the chart.
pub fn runbook(alert: &str) -> Option<&'static str> {
    ALERTS.iter().find(|(name, _)| *name == alert).map(|(_, page)| *page)
}

/// Values at their places in equal steps.
fn placed(points: &[(f64, f64)], from: i64, to: i64, step: i64) -> Vec<Option<f64>> {
    let count = usize::try_from((to - from) / step + 1).unwrap_or(0);
    let mut values = vec![None; count];
    for (at, value) in points {
        let place = ((at - from as f64) / step as f64).round();
        if let Some(slot) = (place >= 0.0).then(|| values.get_mut(place as usize)).flatten() {
            *slot = Some(*value);
        }
    }
    values
}

/// Stretches of time in which an alert fired.
fn incidents(series: &Series, step: i64, now: i64) -> Vec<Incident> {
    let about =
        ["mailcluster", "pod", "domain", "policy", "group", "section", "purpose", "controller", "kind"];
    let about: Vec<_> =
        about.iter().map(|name| series.label(name)).filter(|value| !value.is_empty()).collect();
    let mut found: Vec<Incident> = Vec::new();
    for (at, _) in &series.points {
        match found.last_mut() {
            Some(last) if at - last.to < 1.5 * step as f64 => last.to = *at,
            _ => found.push(Incident {
                alert: series.label("alertname").to_owned(),
                severity: series.label("severity").to_owned(),
                about: about.join(" "),
                from: *at,
                to: *at,
                goes_on: false,
            }),
        }
    }
    if let Some(last) = found.last_mut() {
        last.goes_on = last.to + 1.5 * step as f64 > now as f64;
    }
    found
}

/// The report.
pub fn document(figures: &Figures, scope: &Scope) -> Document {
    let end = scope.until;
    let begin = Timestamp::from_second(end.as_second() - scope.seconds).unwrap_or(end);
    let day = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M UTC").to_string();
    let whose = match (&scope.namespace, &scope.cluster) {
        (Some(namespace), Some(cluster)) => format!("MailCluster {namespace}/{cluster}"),
        (Some(namespace), None) => format!("all MailClusters of namespace {namespace}"),
        (None, Some(cluster)) => format!("MailClusters of the name {cluster}"),
        (None, None) => "all MailClusters".to_owned(),
    };
    let sections = vec![
        checks(figures),
        uptime(figures, scope),
        deliverability(figures),
        queues(figures),
        backups(figures),
        growth(figures),
        told_incidents(figures),
    ];
    Document {
        title: "Mail service report".to_owned(),
        subtitle: format!("{whose}, from {} to {}", day(begin), day(end)),
        sections,
    }
}

const NOT_KNOWN: &str = "not known";

fn told(value: Option<f64>, words: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| NOT_KNOWN.to_owned(), words)
}

/// As people read it.
pub(crate) fn percent(share: f64) -> String {
    // Rounded down: what is below a target must not look like it.
    format!("{:.2} %", (share * 10_000.0).floor() / 100.0)
}

fn count(value: f64) -> String {
    format!("{:.0}", value.round())
}

fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (value, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

fn instant(seconds: f64) -> String {
    let at = Timestamp::from_second(seconds as i64).ok();
    at.map_or_else(|| NOT_KNOWN.to_owned(), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

fn chart(title: &str, values: &[Option<f64>], words: impl Fn(f64) -> String) -> Block {
    let known = || values.iter().flatten().copied();
    let of = |value: f64| if value.is_finite() { words(value) } else { NOT_KNOWN.to_owned() };
    let range = (of(known().fold(f64::INFINITY, f64::min)), of(known().fold(f64::NEG_INFINITY, f64::max)));
    Block::Chart(Chart { title: title.to_owned(), values: values.to_vec(), range })
}

fn texts(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// The weekly check.
fn checks(figures: &Figures) -> Section {
    let is_empty = |class: &str| match figures.queues.get(class) {
        None => (Tick::Unknown, format!("{class} queue empty"), "Prometheus has no figure".to_owned()),
        Some(waiting) => {
            let tick = if *waiting < 0.5 { Tick::Yes } else { Tick::No };
            (tick, format!("{class} queue empty"), format!("{} recipients wait", count(*waiting)))
        }
    };
    let of_all = |what: &str, found: Option<(f64, f64)>| match found {
        None => (Tick::Unknown, what.to_owned(), "Prometheus has no figure".to_owned()),
        Some((well, all)) => {
            let tick = if well + 0.5 > all { Tick::Yes } else { Tick::No };
            (tick, what.to_owned(), format!("{} of {}", count(well), count(all)))
        }
    };
    let target = |what: &str, share: Option<f64>, target: f64| match share {
        None => (Tick::Unknown, what.to_owned(), "nothing was measured".to_owned()),
        Some(share) => (if share >= target { Tick::Yes } else { Tick::No }, what.to_owned(), percent(share)),
    };
    let rehearsed: Vec<f64> =
        figures.policies.iter().filter_map(|policy| policy.rehearsal_succeeded).collect();
    let well = rehearsed.iter().filter(|succeeded| **succeeded > 0.5).count() as f64;
    let alerts = match &figures.incidents {
        None => (Tick::Unknown, "no alert fires".to_owned(), "Prometheus has none of the rules".to_owned()),
        Some(all) => {
            let firing = all.iter().filter(|incident| incident.goes_on).count();
            let tick = if firing == 0 { Tick::Yes } else { Tick::No };
            (tick, "no alert fires".to_owned(), format!("{firing} fire now, {} did in this time", all.len()))
        }
    };
    let ticks = vec![
        is_empty("remote"),
        is_empty("local"),
        is_empty("bad"),
        of_all("all mailnodes serve", figures.ready),
        of_all("messages come back in all domains", figures.domains),
        target("uptime of 99.9 %", figures.uptime, UPTIME_TARGET),
        target("98 % of mail reached its receivers", delivered(&figures.recipients), DELIVERABILITY_TARGET),
        of_all("restores are rehearsed", (!rehearsed.is_empty()).then_some((well, rehearsed.len() as f64))),
        alerts,
        log(&figures.log_records),
    ];
    Section { title: "Weekly check".to_owned(), blocks: vec![Block::Ticks(ticks)] }
}

fn log(records: &BTreeMap<String, f64>) -> (Tick, String, String) {
    let of = |level: &str| records.get(level).copied().unwrap_or(0.0);
    let (tick, found) = match of("warn") + of("error") {
        _ if records.is_empty() => (Tick::Unknown, "Prometheus has no figure".to_owned()),
        all if all < 0.5 => (Tick::Yes, "none".to_owned()),
        _ => {
            let found =
                format!("{} warnings, {} errors: see `kubectl logs`", count(of("warn")), count(of("error")));
            (Tick::No, found)
        }
    };
    (tick, "no warnings in the log".to_owned(), found)
}

fn uptime(figures: &Figures, scope: &Scope) -> Section {
    let down = figures.uptime.map(|share| (1.0 - share) * scope.seconds as f64);
    let text = format!(
        "Uptime: {} of the messages that are sent every minute in every domain came back; {} did not. The target is 99.9 %. \
         As a share of this time that is {} without service.",
        told(figures.uptime, percent),
        told(figures.probes_failed, count),
        told(down, span),
    );
    let blocks = vec![Block::Text(text), chart("Uptime", &figures.uptime_chart, percent)];
    Section { title: "Uptime".to_owned(), blocks }
}

/// Of recipients whose outcome is final, the share that got their mail.
fn delivered(recipients: &BTreeMap<String, f64>) -> Option<f64> {
    let of = |outcome: &str| recipients.get(outcome).copied().unwrap_or(0.0);
    let all = of("delivered") + of("bounced") + of("dropped");
    (all >= 0.5).then(|| of("delivered") / all)
}

fn deliverability(figures: &Figures) -> Section {
    let of = |outcome: &str| told(figures.recipients.get(outcome).copied(), count);
    let text = format!(
        "Of recipients elsewhere {} got their mail (the target is 98 % of final outcomes).",
        told(delivered(&figures.recipients), percent)
    );
    let rows = vec![
        vec!["delivered".to_owned(), of("delivered")],
        vec!["bounced".to_owned(), of("bounced")],
        vec!["reports that nobody took".to_owned(), of("dropped")],
        vec!["attempts that were put off".to_owned(), of("deferred")],
    ];
    let blocks = vec![
        Block::Text(text),
        Block::Table(texts(&["recipients elsewhere", "number"]), rows),
        chart("Share that got their mail", &figures.delivered_chart, percent),
    ];
    Section { title: "Deliverability".to_owned(), blocks }
}

fn queues(figures: &Figures) -> Section {
    let row = |class: &str| {
        let oldest = told(figures.oldest_seconds.get(class).copied(), span);
        vec![class.to_owned(), told(figures.queues.get(class).copied(), count), oldest]
    };
    let rows = ["local", "remote", "bad", "held"].map(row).to_vec();
    let blocks = vec![
        Block::Table(texts(&["queue", "waits now", "oldest that was seen"]), rows),
        chart("Recipients that wait", &figures.queue_chart, count),
    ];
    Section { title: "Queues".to_owned(), blocks }
}

fn backups(figures: &Figures) -> Section {
    let mut blocks = Vec::new();
    if figures.policies.is_empty() {
        blocks.push(Block::Text(
            "No BackupPolicy is known to Prometheus: whether there are backups is not known.".to_owned(),
        ));
    } else {
        let row = |policy: &Policy| {
            let rehearsal = match policy.rehearsal_succeeded {
                None => NOT_KNOWN.to_owned(),
                Some(succeeded) if succeeded > 0.5 => "succeeded".to_owned(),
                Some(_) => "FAILED or overdue".to_owned(),
            };
            vec![
                policy.name.clone(),
                told(policy.succeeded, count),
                told(policy.failed, count),
                told(policy.last, instant),
                told(policy.stored_bytes, bytes),
                rehearsal,
                told(policy.rehearsed, instant),
                told(policy.rehearsal_seconds, span),
            ]
        };
        let header =
            ["policy", "succeeded", "failed", "last", "stored", "rehearsal", "rehearsed", "time to recover"];
        blocks.push(Block::Table(texts(&header), figures.policies.iter().map(row).collect()));
    }
    Section { title: "Backups and rehearsals".to_owned(), blocks }
}

fn growth(figures: &Figures) -> Section {
    let row = |what: &str, [before, after]: [Option<f64>; 2], words: fn(f64) -> String| {
        vec![what.to_owned(), told(before, words), told(after, words)]
    };
    let rows = vec![
        row("mailboxes", figures.mailboxes, count),
        row("bytes of mail, all replicas", figures.bytes, bytes),
    ];
    let blocks = vec![
        Block::Table(texts(&["", "before", "now"]), rows),
        Block::Text(format!("Messages taken: {}.", told(figures.messages, count))),
        chart("Bytes of mail, all replicas", &figures.bytes_chart, bytes),
    ];
    Section { title: "Growth".to_owned(), blocks }
}

fn told_incidents(figures: &Figures) -> Section {
    let mut blocks = Vec::new();
    match &figures.incidents {
        None => blocks.push(Block::Text(
            "Prometheus has none of the rules of this service: whether there were incidents is not known."
                .to_owned(),
        )),
        Some(all) if all.is_empty() => blocks.push(Block::Text("No alert fired.".to_owned())),
        Some(all) => {
            let row = |incident: &Incident| {
                let lasted = span(incident.to - incident.from);
                let lasted = if incident.goes_on { format!("{lasted}, goes on") } else { lasted };
                let Incident { alert, severity, about, from, .. } = incident;
                vec![instant(*from), alert.clone(), severity.clone(), about.clone(), lasted]
            };
            let rows = all.iter().take(LISTED).map(row).collect();
            blocks.push(Block::Table(texts(&["since", "alert", "severity", "about", "lasted"]), rows));
            if all.len() > LISTED {
                blocks.push(Block::Text(format!("{} older ones are not listed.", all.len() - LISTED)));
            }
        }
    }
    Section { title: "Incidents".to_owned(), blocks }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
