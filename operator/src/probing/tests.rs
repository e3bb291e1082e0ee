use prometheus::{Encoder as _, Registry, TextEncoder};
use quorumail_crds::condition::merge;

use super::{metrics::ProbeMetrics, *};

fn failed(words: &str) -> Outcome {
    Outcome::NotSent(words.to_owned())
}

fn ok() -> Outcome {
    Outcome::Passed(Passed { sent: Duration::from_millis(40), read: Duration::from_millis(20) })
}

#[test]
fn a_condition_changes_with_failures_in_a_row_and_not_with_each() {
    let probing = Probing::default();
    assert_eq!(probing.observed("u", &[]).status, None);
    assert!(probing.take("u", &ok()), "the first time");
    assert!(!probing.take("u", &ok()));
    let first = probing.observed("u", &[]);
    assert_eq!(first.status, Some(true));
    assert!(!probing.take("u", &failed("a")) && !probing.take("u", &failed("b")));
    let old = merge(&[], &[first], None, Timestamp::UNIX_EPOCH);
    assert_eq!(probing.observed("u", &old).status, Some(true), "it may be a node that was just lost");
    assert!(probing.take("u", &failed("c")));
    let told = probing.observed("u", &old);
    assert!(told.status == Some(false) && told.message.starts_with("c;"), "{told:?}");
    assert!(!probing.take("u", &failed("d")) && !probing.take("u", &Outcome::Unknown("e".to_owned())));
    assert_eq!(probing.observed("u", &old), told, "each word of it would be a write");
    assert!(probing.take("u", &ok()));
    assert_eq!(probing.observed("u", &old).status, Some(true));
}

#[test]
fn an_operator_that_takes_over_tells_what_was_told() {
    let probing = Probing::default();
    let no = Observed::no(kind::PROBED, reason::PROBE_FAILED, "it was not taken");
    let old = merge(&[], std::slice::from_ref(&no), None, Timestamp::UNIX_EPOCH);
    assert_eq!(probing.observed("u", &old), no);
    assert!(!probing.take("u", &failed("x")));
    assert_eq!(probing.observed("u", &old), no);
}

#[test]
fn what_is_not_known_is_not_counted_and_a_domain_that_is_gone_is_forgotten() {
    let registry = Registry::new();
    let metrics = ProbeMetrics::register(&registry).unwrap();
    let labels = Labels { namespace: "mail".into(), mailcluster: "mc".into(), domain: "example.org".into() };
    metrics.expect(&labels);
    metrics.ended(&labels, &ok(), 1000.0);
    metrics.ended(&labels, &failed("no"), 1060.0);
    metrics.ended(&labels, &Outcome::Unknown("no Secret".into()), 1120.0);
    let rendered = || {
        let mut out = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let text = rendered();
    for (result, count) in [("ok", 1), ("not_sent", 1), ("not_read", 0), ("not_set_up", 0)] {
        let line = format!(
            r#"quorumail_probe_results_total{{domain="example.org",mailcluster="mc",namespace="mail",result="{result}"}} {count}"#
        );
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    assert!(text.contains(r#"quorumail_probe_last_success_timestamp_seconds{domain="example.org",mailcluster="mc",namespace="mail"} 1000"#), "{text}");
    assert!(text.contains(r#"quorumail_probe_seconds_count{mailcluster="mc",namespace="mail"} 1"#), "{text}");
    metrics.forget(&labels);
    assert!(!rendered().contains("example.org"));
}

#[test]
fn a_mailbox_that_is_gone_is_made_again_and_only_then() {
    let imap = |command: &str| ProbeError::Imap {
        host: "mc".into(),
        source: ImapError::Refused { command: command.into(), words: "NO".into() },
    };
    assert!(is_refused(&imap("AUTHENTICATE PLAIN")) && !is_refused(&imap("SELECT INBOX")));
    let sent = |reason: &str| ProbeError::NotSent { host: "mc".into(), reason: reason.into() };
    assert!(is_refused(&sent("535 5.7.8 who are you")) && !is_refused(&sent("451 4.3.0 try later")));
    assert!(!is_refused(&ProbeError::NotFound(30)));
    assert!(matches!(Outcome::of(&sent("451")), Outcome::NotSent(_)));
    assert!(matches!(Outcome::of(&ProbeError::NotFound(30)), Outcome::NotRead(_)));
}
