//! Numbers that other rooms keep, taken when somebody asks for the metrics.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use quorumail_consensus::LATENCY_BUCKETS_US;
use quorumail_journal::Journal;
use quorumail_store::Usage;
use tokio::sync::watch;

use super::class_name;
use crate::{
    admin::backup::Backups,
    archiver::Archiver,
    compactor,
    disk::Disk,
    exposition::Exposition,
    groups::{self, Groups},
    http::Readiness,
    repairer::Repairer,
    scrubber,
    tls::{InternalTls, PublicTls},
};

/// Where the numbers come from.
pub struct Sources {
    /// Consensus and store.
    pub groups: Arc<Groups>,
    /// The log.
    pub journal: Journal,
    /// What compaction of it does.
    pub compaction: Arc<compactor::Totals>,
    /// What is found rotten in it.
    pub scrub: Arc<scrubber::Totals>,
    /// What is repaired.
    pub repairer: Arc<Repairer>,
    /// The disk of both.
    pub disk: Arc<Disk>,
    /// What is shipped between backups.
    pub archiver: Archiver,
    /// Backups that this node makes.
    pub backups: Arc<Backups>,
    /// Certificates of SMTP and IMAP.
    pub public_tls: Arc<PublicTls>,
    /// Certificates between nodes.
    pub internal_tls: Arc<InternalTls>,
    /// Whether the node is ready.
    pub ready: watch::Receiver<Readiness>,
}

impl Sources {
    /// All of them. May block on disk.
    pub(super) fn text(&self) -> String {
        let mut text = Exposition::default();
        text.gauge("ready", "Whether this node serves mail.").value(u8::from(self.ready.borrow().is_ok()));
        let mut certificates = text
            .gauge("certificate_not_after_seconds", "When the certificate in use expires, in Unix seconds.");
        for (section, expiry) in
            [("public", self.public_tls.not_after()), ("internal", self.internal_tls.not_after())]
        {
            certificates.labelled("section", section, expiry.unwrap_or(0));
        }
        self.journal(&mut text);
        self.rot(&mut text);
        self.backups(&mut text);
        self.consensus(&mut text);
        self.groups(&mut text);
        self.store(&mut text);
        text.into_text()
    }

    fn journal(&self, text: &mut Exposition) {
        let stats = self.journal.stats();
        text.counter("journal_records_total", "Records written to the journal.")
            .value(stats.appended_records);
        text.counter("journal_bytes_total", "Bytes of payload written to the journal.")
            .value(stats.appended_bytes);
        text.counter("journal_syncs_total", "Calls of fdatasync.").value(stats.syncs);
        text.counter("journal_sync_seconds_total", "Time spent in fdatasync.")
            .value(stats.sync_time.as_secs_f64());
        text.gauge("journal_last_sync_seconds", "Duration of the last fdatasync.")
            .value(stats.last_sync.as_secs_f64());
        text.gauge("journal_pending_bytes", "Bytes that wait to be on disk.").value(stats.pending_bytes);
        text.gauge("journal_segments", "Segment files.").value(stats.segments);
        text.gauge("journal_disk_bytes", "Bytes of all segment files.").value(stats.disk_bytes);
        text.gauge("journal_kept_bytes", "Bytes of the files of kept segments.").value(stats.kept_bytes);
        text.gauge("journal_floor_segment", "Segment below which nothing is read at start.")
            .value(stats.floor);
        text.gauge("journal_free_segments", "Files of retired segments that wait to be used again.")
            .value(stats.free_segments);
        text.counter("journal_made_segments_total", "Segments made from new files.")
            .value(stats.made_segments);
        text.counter("journal_reused_segments_total", "Segments made from files of retired ones.")
            .value(stats.reused_segments);
        text.counter(
            "journal_recycled_segments_total",
            "Segments retired because nothing in them was needed.",
        )
        .value(stats.recycled_segments);
        let compaction = &self.compaction;
        text.gauge("journal_live_bytes", "Bytes of records with bodies that are referred to.")
            .value(compaction.live_bytes.load(Relaxed));
        text.gauge("journal_dead_bytes", "Bytes that compaction could give back.")
            .value(compaction.dead_bytes.load(Relaxed));
        text.counter("journal_compacted_segments_total", "Segments whose bodies were moved away.")
            .value(compaction.compacted_segments.load(Relaxed));
        text.counter("journal_compacted_bytes_total", "Bytes of bodies copied by compaction.")
            .value(compaction.copied_bytes.load(Relaxed));
        text.counter("journal_reclaimed_bytes_total", "Bytes given back by compaction.")
            .value(compaction.reclaimed_bytes.load(Relaxed));
        text.gauge("disk_free_bytes", "Free bytes of the data's file system.").value(self.disk.free());
        text.gauge(
            "disk_room",
            "What the free bytes allow: 2 everything, 1 everything but new mail, 0 only reading.",
        )
        .value(self.disk.room().allows());
        text.gauge("disk_size_bytes", "Size of the data's file system.").value(self.disk.size());
    }

    fn rot(&self, text: &mut Exposition) {
        let scrub = &self.scrub;
        text.counter("scrub_bytes_total", "Bytes read to look for rot.").value(scrub.bytes.load(Relaxed));
        if let Some(age) = scrub.last_pass_age() {
            text.gauge("scrub_last_pass_age_seconds", "Time since all of the journal was last read through.")
                .value(age);
        }
        text.counter("scrub_rotten_records_total", "Records found that are not what was written.")
            .labelled("kind", "body", scrub.bodies.load(Relaxed))
            .labelled("kind", "log", scrub.log.load(Relaxed))
            .labelled("kind", "dead", scrub.dead.load(Relaxed));
        let (repaired, failed, refused) = self.repairer.counts();
        text.counter("repairs_total", "Rotten bodies, and segments of the log, that were repaired.")
            .labelled("kind", "body", repaired)
            .labelled("kind", "log", scrub.retired.load(Relaxed));
        text.counter("repair_failures_total", "Repairs that failed; each is tried again.")
            .labelled("kind", "body", failed)
            .labelled("kind", "log", scrub.not_retired.load(Relaxed));
        text.counter("repair_refused_total", "Repairs refused because too many were waiting.").value(refused);
        text.gauge("unrepaired", "Rotten bodies, and segments of the log, that are needed and not repaired.")
            .labelled("kind", "body", self.repairer.open().len())
            .labelled("kind", "log", scrub.open.load(Relaxed));
    }

    fn backups(&self, text: &mut Exposition) {
        let totals = self.backups.totals();
        text.gauge("backup_groups_running", "Groups that this node backs up now.")
            .value(self.backups.running());
        text.counter("backup_groups_total", "Backups of groups that this node was asked for, by outcome.")
            .labelled("outcome", "ok", totals.succeeded.load(Relaxed))
            .labelled("outcome", "failed", totals.failed.load(Relaxed));
        text.counter("backup_uploaded_bytes_total", "Bytes uploaded for finished backups of groups.")
            .value(totals.uploaded_bytes.load(Relaxed));
        let (report, totals) = (self.archiver.report(), self.archiver.totals());
        text.gauge("archive_running", "Whether this node is to ship what it leads to a continuous archive.")
            .value(u8::from(report.running));
        let led = || report.groups.values().filter(|standing| standing.ships);
        text.gauge("archive_groups", "Groups that this node ships.").value(led().count());
        text.gauge("archive_groups_in_trouble", "Of these, those that do not go on or have a gap.")
            .value(led().filter(|standing| standing.trouble.is_some()).count());
        text.gauge(
            "archive_lag_seconds",
            "For how long the oldest command may have been waiting to be shipped.",
        )
        .value(led().map(|standing| standing.lag()).max().unwrap_or_default().as_secs_f64());
        text.counter("archive_bytes_total", "Bytes of commands shipped.").value(totals.bytes.load(Relaxed));
        text.counter("archive_runs_total", "Runs shipped.").value(totals.runs.load(Relaxed));
        text.counter("archive_failures_total", "Attempts to ship that failed.")
            .value(totals.failures.load(Relaxed));
        text.counter("archive_gaps_total", "Times that log was purged before it was shipped.")
            .value(totals.gaps.load(Relaxed));
    }

    fn consensus(&self, text: &mut Exposition) {
        let metrics = self.groups.consensus.metrics();
        let mut proposals =
            text.counter("proposals_total", "Commands proposed through this node, by outcome.");
        proposals
            .labelled("outcome", "ok", metrics.proposals)
            .labelled("outcome", "timed_out", metrics.proposals_timed_out)
            .labelled("outcome", "overloaded", metrics.proposals_overloaded);
        let bounds = LATENCY_BUCKETS_US.map(|us| us as f64 / 1e6);
        text.histogram(
            "proposal_seconds",
            "Time from the proposal of a command to its acknowledgement.",
            &bounds,
            &metrics.latency_buckets,
            metrics.latency_seconds_sum,
        );
        text.gauge("proposal_pending_bytes", "Bytes of commands being proposed.")
            .value(metrics.pending_proposal_bytes);
        let mut queries = text.counter("queries_total", "Reads through consensus, by outcome.");
        queries.labelled("outcome", "ok", metrics.queries).labelled(
            "outcome",
            "failed",
            metrics.queries_failed,
        );
        for (name, help, value) in [
            ("proposal_retries_total", "Repeated attempts of commands.", metrics.proposal_retries),
            ("proposal_bytes_total", "Bytes of acknowledged commands.", metrics.proposal_bytes),
            ("forwarded_total", "Commands and reads sent to another node.", metrics.forwarded),
            ("applied_total", "Commands applied by the replicas here.", metrics.applied),
            ("apply_batches_total", "Batches in which they were applied.", metrics.apply_batches),
            ("leads_won_total", "Times that this node became a leader.", metrics.leads_won),
            ("leads_lost_total", "Times that it ceased to be one.", metrics.leads_lost),
            ("lead_transfers_total", "Leads handed over by plan.", metrics.transfers),
            ("append_sent_bytes_total", "Bytes of commands sent to followers.", metrics.append_bytes_sent),
            (
                "append_received_bytes_total",
                "Bytes of commands taken from leaders.",
                metrics.append_bytes_received,
            ),
            ("peer_connects_total", "Streams to peers opened.", metrics.peer_connects),
            ("peer_failures_total", "Calls to peers that failed.", metrics.peer_failures),
            (
                "peer_processes_lost_total",
                "Times that a peer's process was found to be gone.",
                metrics.processes_lost,
            ),
            ("snapshots_sent_total", "Snapshots sent.", metrics.snapshots_sent),
            (
                "snapshots_resumed_total",
                "Times that a snapshot went on after its connection had broken.",
                metrics.snapshots_resumed,
            ),
            (
                "snapshots_unreadable_total",
                "Snapshots not sent because the replica here cannot be read in full.",
                metrics.snapshots_unreadable,
            ),
            ("snapshots_installed_total", "Snapshots installed.", metrics.snapshots_installed),
            ("snapshot_sent_bytes_total", "Bytes of snapshots sent.", metrics.snapshot_bytes_sent),
            ("checkpoints_total", "Checkpoints of the index.", metrics.checkpoints),
            ("log_disk_reads_total", "Log entries read back from disk.", metrics.log_disk_reads),
        ] {
            text.counter(name, help).value(value);
        }
        text.gauge("unreadable_replicas", "Replicas here that cannot be read in full and should not lead.")
            .value(metrics.unreadable_replicas);
        text.counter("apply_seconds_total", "Time spent applying commands.").value(metrics.apply_seconds_sum);
        text.gauge("append_in_flight_bytes", "Bytes of commands sent to followers and not yet answered.")
            .value(metrics.append_in_flight_bytes);
        text.gauge("snapshot_in_flight_bytes", "Bytes held in memory for snapshots being sent.")
            .value(metrics.snapshot_in_flight_bytes);
        text.gauge("disk_slow", "Whether this node gives its leads away because its disk is slow.")
            .value(u8::from(metrics.disk_is_slow));
        text.gauge("disk_sync_median_seconds", "Median time of a sync lately, by which disks are compared.")
            .value(metrics.disk_sync_seconds);
    }

    /// By group: bounded by the number of partitions.
    fn groups(&self, text: &mut Exposition) {
        let node = self.groups.consensus.metrics();
        let status = self.groups.consensus.status();
        let mut family = text.gauge(
            "group_has_leader",
            "Whether this node has heard from a leader of the group, or leads it, in the last seconds.",
        );
        for group in &status {
            family.labelled("group", group.group.0, u8::from(group.leader.is_some()));
        }
        let led: Vec<_> = status.iter().filter(|group| self.groups.consensus.leads(group.group)).collect();
        let mut kept = Usage::default();
        for group in &led {
            // One that cannot be read has alerts of its own.
            let of_group = self.groups.store.kept_deleted(group.group.0).unwrap_or_default();
            kept.messages += of_group.messages;
            kept.bytes += of_group.bytes;
        }
        text.gauge(
            "deleted_mail_messages",
            "Deleted messages that can be brought back, of the groups led here.",
        )
        .value(kept.messages);
        text.gauge(
            "deleted_mail_bytes",
            "Bytes of deleted messages that can be brought back, of the groups led here.",
        )
        .value(kept.bytes);
        let mut family = text.gauge("group_leads", "Whether this node leads the group.");
        for group in &status {
            let leads = led.iter().any(|led| led.group == group.group);
            family.labelled("group", group.group.0, u8::from(leads));
        }
        let mut family =
            text.gauge("group_voters", "Replicas that the group should have, told by its leader.");
        for group in &led {
            family.labelled("group", group.group.0, group.voters.len());
        }
        let mut family = text.gauge("group_voters_in_sync", "Replicas that keep up, told by the leader.");
        for group in &led {
            let in_sync = group.in_sync.as_deref().unwrap_or_default();
            let voters = in_sync.iter().filter(|node| group.voters.contains(node)).count();
            family.labelled("group", group.group.0, voters);
        }
        let progress = self.groups.consensus.progress();
        let moving = progress
            .as_ref()
            .map_or(0, |progress| progress.groups.iter().filter(|group| !group.done).count());
        text.gauge("groups_moving", "Groups whose members are to change, told by the node that plans it.")
            .value(moving);
        let paused = progress.is_some_and(|progress| progress.paused.is_some());
        text.gauge("groups_moving_paused", "Whether no change is begun because a group lacks a replica.")
            .value(u8::from(paused));
        let generation = self.groups.consensus.watch_topology().borrow().generation;
        text.gauge("topology_generation", "Generation of the topology that this node follows.")
            .value(generation);
        let consensus = &self.groups.consensus;
        text.gauge("format_level", "Format level at which this node writes.").value(consensus.level());
        text.gauge("format_level_known", "Highest format level that this version knows.")
            .value(consensus.levels().max);
        let mut family = text.gauge("group_applied_index", "Log index applied here.");
        for (group, metrics) in &node.groups {
            family.labelled("group", group.0, metrics.applied_index);
        }
        let mut family = text.gauge("group_quiet", "Whether the group has nothing to do and is silent.");
        for (group, metrics) in &node.groups {
            family.labelled("group", group.0, u8::from(metrics.quiet));
        }
        let mut family = text.gauge("group_may_vote", "Whether the replica here remembers enough to vote.");
        for (group, metrics) in &node.groups {
            family.labelled("group", group.0, u8::from(metrics.may_vote));
        }
        let mut family = text.gauge("group_term", "Raft term.");
        for (group, metrics) in &node.groups {
            family.labelled("group", group.0, metrics.term);
        }
    }

    fn store(&self, text: &mut Exposition) {
        let directory = self.groups.directory();
        text.gauge("directory_domains", "Domains served.").value(directory.domains().len());
        text.gauge("directory_mailboxes", "Mailboxes, deleted ones not counted.")
            .value(directory.mailboxes().len());
        text.gauge("directory_lists", "Mailing lists.").value(directory.lists().len());
        let (held, expanding) = self.groups.list_totals();
        text.gauge(
            "list_waiting",
            "Messages to mailing lists that wait, in partitions that this node leads.",
        )
        .labelled("state", "held", held)
        .labelled("state", "expanding", expanding);
        let classes = self.groups.queue_totals();
        let mut family =
            text.gauge("queue_recipients", "Recipients that wait, in queues that this node leads.");
        for (class, (recipients, _)) in &classes {
            family.labelled("class", class_name(*class), recipients);
        }
        let now = groups::now().0;
        let mut family =
            text.gauge("queue_oldest_seconds", "Age of the oldest entry in queues that this node leads.");
        for (class, (_, oldest)) in &classes {
            let age = oldest.map_or(0.0, |at| now.saturating_sub(at.0).max(0) as f64 / 1e3);
            family.labelled("class", class_name(*class), age);
        }
    }
}

/// The process itself. The names are those that Prometheus clients use everywhere, without our prefix.
pub(super) fn process() -> String {
    let mut text = Exposition::default();
    text.gauge("build_info", "Version of this mailnode.").labelled("version", env!("CARGO_PKG_VERSION"), 1);
    let mut text = text.into_text();
    let resident =
        std::fs::read_to_string("/proc/self/status").ok().and_then(|status| resident_bytes(&status));
    let descriptors = std::fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).ok();
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Resident memory.", resident),
        ("process_open_fds", "Open file descriptors.", descriptors.and_then(|n| i64::try_from(n).ok())),
        ("process_threads", "Threads.", threads.and_then(|n| i64::try_from(n).ok())),
    ] {
        if let Some(value) = value {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"));
        }
    }
    text
}

/// From the text of proc(5) `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}
