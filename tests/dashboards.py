"""The dashboards of the chart, from the tables below: `--write` makes charts/quorumail/files/dashboards anew, without it they are compared.

One is for people who only want to know whether it is well; the others for who looks closer."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "charts/quorumail/files/dashboards"
C = 'namespace=~"$namespace", mailcluster=~"$mailcluster"'
P = 'namespace=~"$namespace"'

# title, kind (stat | graph | table), unit, width of 24, what it means, queries (expression, legend); a stat may have thresholds.
OVERVIEW = [
    ("Uptime", "stat", "percentunit", 6, "Of messages that are sent every minute in every domain, those that came back, in 30 days. The target is 99.9 %.", [(f'sum(increase(quorumail_probe_results_total{{{C}, result="ok"}}[30d])) / sum(increase(quorumail_probe_results_total{{{C}}}[30d]))', "")], None),
    ("Domains whose probes fail", "stat", "short", 6, "In the last 10 minutes.", [(f'count(sum by (namespace, mailcluster, domain) (increase(quorumail_probe_results_total{{{C}, result="ok"}}[10m])) == 0) or vector(0)', "")], [1, 1]),
    ("Time of a probe, 99 of 100", "stat", "s", 6, "From sending a message until it was read, in the last hour.", [(f'histogram_quantile(0.99, sum by (le) (rate(quorumail_probe_seconds_bucket{{{C}}}[1h])))', "")], None),
    ("SPF, DKIM and DMARC records that are wrong", "stat", "short", 6, "Missing, or not what they should be: others cannot tell mail of the domain from forgeries.", [(f'sum(quorumail_domain_dns_records{{{C}, purpose=~"spf|dkim|dmarc", state=~"missing|mismatch"}})', "")], [1, 1000]),
    ("Partitions without a leader", "stat", "short", 4, "Above 0 some people cannot read or get mail.", [(f'sum(max by (namespace, mailcluster, group) (quorumail_group_has_leader{{{C}}}) == bool 0)', "")], [1, 1]),
    ("Replicas missing", "stat", "short", 4, "Above 0 mail is safe, and the next loss may be felt.", [(f'sum(max by (namespace, mailcluster, group) (quorumail_group_voters{{{C}}} - quorumail_group_voters_in_sync{{{C}}}))', "")], [1, 1000]),
    ("Mailnodes ready", "stat", "short", 4, "How many serve mail.", [(f'sum(quorumail_ready{{{C}}})', "")], None),
    ("Mail that waits for mailboxes", "stat", "short", 4, "Should be 0 but for moments.", [(f'sum(quorumail_queue_recipients{{{C}, class="local"}})', "")], [20, 200]),
    ("Reports nobody got", "stat", "short", 4, "The bad queue: a person must look.", [(f'sum(quorumail_queue_recipients{{{C}, class="bad"}})', "")], [1, 1000]),
    ("Age of what is surely in the bucket", "stat", "s", 4, "So much mail would be lost with the whole MailCluster (RPO).", [(f'max(quorumail_recovery_point_age_seconds{{{P}}})', "")], [900, 3600]),
    ("Messages taken", "graph", "short", 12, "A minute, by the service that took them.", [(f'sum by (service) (rate(quorumail_smtp_messages_accepted_total{{{C}}}[5m])) * 60', "{{service}}")], None),
    ("What came of recipients elsewhere", "graph", "short", 12, "An hour. Deferred ones are tried again.", [(f'sum by (outcome) (increase(quorumail_delivery_recipients_total{{{C}, class="remote"}}[1h]))', "{{outcome}}")], None),
    ("Sessions", "graph", "short", 12, "Programs of people that are connected, and servers that bring mail.", [(f'sum(quorumail_imap_sessions{{{C}}})', "IMAP"), (f'sum by (service) (quorumail_smtp_sessions{{{C}}})', "SMTP {{service}}")], None),
    ("Free space", "graph", "percentunit", 12, "Of each mailnode's volume.", [(f'quorumail_disk_free_bytes{{{C}}} / quorumail_disk_size_bytes{{{C}}}', "{{pod}}")], None),
    ("Time since the last backup", "graph", "s", 12, "Of each BackupPolicy.", [(f'time() - quorumail_backup_last_success_timestamp_seconds{{{P}}}', "{{policy}}")], None),
    ("Alerts", "table", "short", 12, "What is not well now.", [('ALERTS{alertstate="firing", alertname=~"Partition.*|Mailnode.*|Replica.*|Disk.*|Versions.*|.*Queue.*|Deliver.*|Bounce.*|Certificate.*|Backup.*|Archive.*|Rehearsal.*|Operator.*|Uptime.*|Probe.*|Domain.*|Mailbox.*"}', "{{alertname}}")], None),
]
DELIVERY = [
    ("Recipients elsewhere that got their mail", "stat", "percentunit", 6, "Of final outcomes in 24 hours; the target is 98 %.", [(f'sum(increase(quorumail_delivery_recipients_total{{{C}, class="remote", outcome="delivered"}}[1d])) / sum(increase(quorumail_delivery_recipients_total{{{C}, class="remote", outcome=~"delivered|bounced|dropped"}}[1d]))', "")], None),
    ("Time to delivery, 99 of 100", "stat", "s", 6, "From acceptance on, in the last hour.", [(f'histogram_quantile(0.99, sum by (le) (rate(quorumail_delivery_seconds_bucket{{{C}}}[1h])))', "")], None),
    ("Refused recipients", "stat", "short", 6, "Bounced in the last hour.", [(f'sum(increase(quorumail_delivery_recipients_total{{{C}, class="remote", outcome="bounced"}}[1h]))', "")], [20, 200]),
    ("Oldest outgoing mail", "stat", "s", 6, "Some receiver does not take it.", [(f'max(quorumail_queue_oldest_seconds{{{C}, class="remote"}})', "")], [86400, 259200]),
    ("Waiting recipients", "graph", "short", 12, "By queue.", [(f'sum by (class) (quorumail_queue_recipients{{{C}}})', "{{class}}")], None),
    ("Age of the oldest entry", "graph", "s", 12, "By queue.", [(f'max by (class) (quorumail_queue_oldest_seconds{{{C}}})', "{{class}}")], None),
    ("What came of recipients", "graph", "short", 12, "A minute, elsewhere and here.", [(f'sum by (class, outcome) (rate(quorumail_delivery_recipients_total{{{C}}}[5m])) * 60', "{{class}} {{outcome}}")], None),
    ("Share that big receivers took", "graph", "percentunit", 12, "Of final outcomes in 24 hours, by who runs the server.", [(f'sum by (receiver) (increase(quorumail_delivery_recipients_total{{{C}, class="remote", outcome="delivered"}}[1d])) / sum by (receiver) (increase(quorumail_delivery_recipients_total{{{C}, class="remote", outcome=~"delivered|bounced|dropped"}}[1d]))', "{{receiver}}")], None),
    ("Time to delivery", "graph", "s", 12, "Half of the mail, and 99 of 100.", [(f'histogram_quantile(0.5, sum by (le) (rate(quorumail_delivery_seconds_bucket{{{C}}}[5m])))', "half"), (f'histogram_quantile(0.99, sum by (le) (rate(quorumail_delivery_seconds_bucket{{{C}}}[5m])))', "99 of 100")], None),
    ("Replies to who brings mail", "graph", "short", 12, "A minute, by first digit: 2 taken, 4 later, 5 never.", [(f'sum by (service, class) (rate(quorumail_smtp_replies_total{{{C}}}[5m])) * 60', "{{service}} {{class}}xx")], None),
    ("Sessions that ended", "graph", "short", 12, "A minute, by how.", [(f'sum by (how) (rate(quorumail_smtp_sessions_closed_total{{{C}}}[5m])) * 60', "{{how}}")], None),
]
REPLICATION = [
    ("Leads", "graph", "short", 12, "Partitions that each mailnode leads.", [(f'sum by (pod) (quorumail_group_leads{{{C}}})', "{{pod}}")], None),
    ("Replicas missing", "graph", "short", 12, "Over all partitions.", [(f'sum(quorumail_group_voters{{{C}}} - quorumail_group_voters_in_sync{{{C}}})', "missing")], None),
    ("Leads won and lost", "graph", "short", 12, "An hour. Plans hand over, failures win.", [(f'sum(increase(quorumail_leads_won_total{{{C}}}[1h]))', "won"), (f'sum(increase(quorumail_lead_transfers_total{{{C}}}[1h]))', "handed over")], None),
    ("Time of a command", "graph", "s", 12, "From proposal to acknowledgement: half of them, and 99 of 100.", [(f'histogram_quantile(0.5, sum by (le) (rate(quorumail_proposal_seconds_bucket{{{C}}}[5m])))', "half"), (f'histogram_quantile(0.99, sum by (le) (rate(quorumail_proposal_seconds_bucket{{{C}}}[5m])))', "99 of 100")], None),
    ("Time of a sync", "graph", "s", 12, "Mean of fdatasync, by mailnode.", [(f'rate(quorumail_journal_sync_seconds_total{{{C}}}[5m]) / rate(quorumail_journal_syncs_total{{{C}}}[5m])', "{{pod}}")], None),
    ("Bytes on disk", "graph", "bytes", 12, "Of the journal: all, and what compaction could give back.", [(f'quorumail_journal_disk_bytes{{{C}}}', "{{pod}} all"), (f'quorumail_journal_dead_bytes{{{C}}}', "{{pod}} to be given back")], None),
    ("Snapshots and repairs", "graph", "short", 12, "An hour.", [(f'sum(increase(quorumail_snapshots_installed_total{{{C}}}[1h]))', "snapshots"), (f'sum by (kind) (increase(quorumail_repairs_total{{{C}}}[1h]))', "repaired {{kind}}"), (f'sum by (kind) (quorumail_unrepaired{{{C}}})', "not repaired {{kind}}")], None),
    ("Memory", "graph", "bytes", 12, "Of each mailnode.", [(f'process_resident_memory_bytes{{{C}}}', "{{pod}}")], None),
]
BACKUPS = [
    ("Age of what is surely in the bucket", "stat", "s", 6, "So much mail would be lost with the whole MailCluster (RPO).", [(f'max(quorumail_recovery_point_age_seconds{{{P}}})', "")], [900, 3600]),
    ("Measured time to recover", "stat", "s", 6, "Of the last rehearsal: from nothing to mail that is served (RTO).", [(f'max(quorumail_rehearsal_last_duration_seconds{{{P}}})', "")], None),
    ("Rehearsals that are well", "stat", "percentunit", 6, "Of all BackupPolicies that rehearse.", [(f'avg(quorumail_rehearsal_succeeded{{{P}}})', "")], None),
    ("Stored", "stat", "bytes", 6, "In buckets.", [(f'sum(quorumail_backup_stored_bytes{{{P}}})', "")], None),
    ("Time since the last backup", "graph", "s", 12, "Of each BackupPolicy.", [(f'time() - quorumail_backup_last_success_timestamp_seconds{{{P}}}', "{{policy}}")], None),
    ("How long backups take", "graph", "s", 12, "The last one of each BackupPolicy.", [(f'quorumail_backup_last_duration_seconds{{{P}}}', "{{policy}}")], None),
    ("Backups kept", "graph", "short", 12, "What retention leaves.", [(f'quorumail_backup_kept{{{P}}}', "{{policy}}")], None),
    ("Bytes of a backup", "graph", "bytes", 12, "Mail in it, and what had to be sent.", [(f'quorumail_backup_last_bytes{{{P}}}', "{{policy}} mail"), (f'quorumail_backup_last_uploaded_bytes{{{P}}}', "{{policy}} sent")], None),
    ("Backups and restores that ended", "graph", "short", 12, "A day, by result.", [(f'sum by (policy, result) (increase(quorumail_backup_runs_total{{{P}}}[1d]))', "{{policy}} {{result}}"), ('sum by (result) (increase(quorumail_restore_runs_total[1d]))', "restores {{result}}")], None),
    ("Archive", "graph", "s", 12, "How long the oldest command waits to be shipped, by mailnode.", [(f'quorumail_archive_lag_seconds{{{C}}}', "{{pod}}")], None),
]
DASHBOARDS = {
    "overview": ("Quorumail: is it well?", OVERVIEW),
    "delivery": ("Quorumail: delivery", DELIVERY),
    "replication": ("Quorumail: replication", REPLICATION),
    "backups": ("Quorumail: backups", BACKUPS),
}


def panel(number, place, title, kind, unit, width, meaning, queries, thresholds):
    steps = [{"color": "green", "value": None}]
    if thresholds:
        steps += [{"color": "orange", "value": thresholds[0]}] if thresholds[0] != thresholds[1] else []
        steps += [{"color": "red", "value": thresholds[1]}]
    made = {
        "id": number, "title": title, "description": meaning,
        "type": {"stat": "stat", "graph": "timeseries", "table": "table"}[kind],
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": place[0], "y": place[1], "w": width, "h": 4 if kind == "stat" else 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}, "overrides": []},
        "targets": [{"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "instant": kind == "table",
                     "format": "table" if kind == "table" else "time_series"} for index, (expression, legend) in enumerate(queries)],
    }
    if kind == "stat":
        made["options"] = {"colorMode": "background" if thresholds else "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return made


def variable(name, query, depends=""):
    return {"name": name, "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "includeAll": True, "multi": True,
            "allValue": ".*", "current": {"text": "All", "value": "$__all"}, "refresh": 2, "query": f"label_values({query}{depends}, {name})"}


def dashboard(name, title, panels):
    made, x, y, height = [], 0, 0, 0
    for number, spec in enumerate(panels, 1):
        if x + spec[3] > 24:
            x, y = 0, y + height
        made.append(panel(number, (x, y), *spec))
        height = made[-1]["gridPos"]["h"]
        x += spec[3]
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        variable("namespace", "quorumail_ready"),
        variable("mailcluster", "quorumail_ready", '{namespace=~"$namespace"}'),
    ]
    return {"uid": f"quorumail-{name}", "title": title, "tags": ["quorumail", "mail"], "schemaVersion": 39, "editable": True,
            "time": {"from": "now-24h", "to": "now"}, "refresh": "1m", "templating": {"list": variables}, "panels": made,
            "links": [{"type": "dashboards", "tags": ["quorumail"], "title": "Quorumail", "asDropdown": True}]}


def main():
    known = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/reference/metrics.md").read_text(), re.M)) | {"ALERTS"}
    wrong = []
    for name, (title, panels) in DASHBOARDS.items():
        for spec in panels:
            for expression, _ in spec[5]:
                used = set(re.findall(r"\b((?:quorumail|process)_\w+|ALERTS)\b", expression))
                wrong += [f"{name}: {metric} is no metric of docs/reference/metrics.md" for metric in sorted(used)
                          if re.sub("_bucket$", "", metric) not in known]
        text = json.dumps(dashboard(name, title, panels), indent=1) + "\n"
        path = TARGET / f"{name}.json"
        if "--write" in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            wrong.append(f"{path.relative_to(ROOT)} is not what tests/dashboards.py makes: run make manifests")
    for text in wrong:
        print(text, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
