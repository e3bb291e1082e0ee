use super::{document::markdown, *};

fn scope() -> Scope {
    Scope {
        namespace: Some("mail".to_owned()),
        cluster: Some("mc".to_owned()),
        until: Timestamp::from_second(1_000_000).unwrap(),
        seconds: 7 * 86_400,
    }
}

fn known() -> Figures {
    let map = |all: &[(&str, f64)]| all.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Figures {
        uptime: Some(0.99896),
        probes_failed: Some(10.4),
        uptime_chart: vec![Some(1.0), Some(0.9), None],
        recipients: map(&[("delivered", 990.0), ("bounced", 10.0), ("deferred", 44.0)]),
        queues: map(&[("local", 0.0), ("remote", 3.0), ("bad", 0.0), ("held", 0.0)]),
        oldest_seconds: map(&[("remote", 7_300.0)]),
        policies: vec![Policy {
            name: "mail/nightly".to_owned(),
            succeeded: Some(7.0),
            failed: Some(0.0),
            last: Some(990_000.0),
            stored_bytes: Some(3.5 * 1024.0 * 1024.0),
            rehearsal_succeeded: Some(1.0),
            rehearsed: Some(980_000.0),
            rehearsal_seconds: Some(90.0),
        }],
        mailboxes: [None, Some(12.0)],
        bytes: [Some(1024.0), Some(2048.0)],
        messages: Some(5000.0),
        ready: Some((3.0, 3.0)),
        domains: Some((1.0, 2.0)),
        log_records: map(&[("warn", 3.0), ("error", 0.0)]),
        incidents: Some(vec![Incident {
            alert: "DiskSlow".to_owned(),
            severity: "warning".to_owned(),
            about: "mc mc-1".to_owned(),
            from: 900_000.0,
            to: 903_600.0,
            goes_on: false,
        }]),
        ..Figures::default()
    }
}

#[test]
fn a_week_is_told_with_its_targets() {
    let text = markdown(&document(&known(), &scope()));
    for expected in [
        "MailCluster mail/mc, from 1970-01-05 13:46 UTC to 1970-01-12 13:46 UTC",
        "- [ ] **not well:** remote queue empty: 3 recipients wait",
        "- [x] local queue empty: 0 recipients wait",
        "- [x] all mailnodes serve: 3 of 3",
        "- [ ] **not well:** messages come back in all domains: 1 of 2",
        // Rounded it would be what is aimed at.
        "- [ ] **not well:** uptime of 99.9 %: 99.89 %",
        "- [x] 98 % of mail reached its receivers: 99.00 %",
        "- [x] restores are rehearsed: 1 of 1",
        "- [x] no alert fires: 0 fire now, 1 did in this time",
        "- [ ] **not well:** no warnings in the log: 3 warnings, 0 errors: see `kubectl logs`",
        "| mail/nightly | 7 | 0 | 1970-01-12 11:00 UTC | 3.5 MiB | succeeded | 1970-01-12 08:13 UTC | 90 s |",
        "| mailboxes | not known | 12 |",
        "| remote | 3 | 2 h |",
        "| 1970-01-11 10:00 UTC | DiskSlow | warning | mc mc-1 | 60 min |",
        "`█▁ ` 90.00 % to 100.00 %",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn what_is_not_known_is_never_well() {
    let text = markdown(&document(&Figures::default(), &scope()));
    assert!(!text.contains("[x]"), "{text}");
    for expected in [
        "Uptime: not known",
        "**not known:** no alert fires: Prometheus has none of the rules",
        "**not known:** no warnings in the log: Prometheus has no figure",
        "whether there are backups is not known",
        "whether there were incidents is not known",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn incidents_end_where_an_alert_was_not_seen() {
    let points = [60.0, 120.0, 180.0, 600.0, 660.0].map(|at| (at, 1.0)).to_vec();
    let labels = [("alertname", "DiskSlow"), ("mailcluster", "mc"), ("pod", "mc-1"), ("severity", "warning")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let found = incidents(&Series { labels, points }, 60, 660);
    let times: Vec<_> = found.iter().map(|one| (one.from, one.to, one.goes_on)).collect();
    assert_eq!(times, [(60.0, 180.0, false), (600.0, 660.0, true)]);
    assert_eq!(found[0].about, "mc mc-1");
}

#[test]
fn values_are_put_where_they_belong_and_gaps_stay() {
    assert_eq!(placed(&[(10.0, 1.0), (30.0, 3.0)], 10, 40, 10), [Some(1.0), None, Some(3.0), None]);
}

#[test]
fn a_scope_selects_by_labels() {
    assert_eq!(scope().of_cluster(), "namespace=\"mail\",mailcluster=\"mc\",");
    assert_eq!(Scope { namespace: None, cluster: None, ..scope() }.of_cluster(), "");
}

#[test]
fn the_alerts_of_the_chart_are_those_that_are_told() {
    let rules = include_str!("../../../charts/quorumail/files/alerts.yaml");
    let of = |what: &'static str| rules.lines().filter_map(move |line| line.trim().strip_prefix(what));
    let pages = of("runbook_url: RUNBOOKS/").filter_map(|page| page.strip_suffix(".md"));
    let mut named: Vec<_> = of("- alert: ").zip(pages).collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named, ALERTS);
    assert!(runbook(ONE_OF_OURS).is_some() && runbook("SomebodyElses").is_none());
}
