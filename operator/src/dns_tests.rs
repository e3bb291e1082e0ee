use super::*;

fn spec(text: &str) -> MailDomainSpec {
    serde_yaml::from_str(text).unwrap()
}

/// A key that is the same in every run: that of RFC 8463 A.2.
fn key(selector: &str) -> StoredKey {
    serde_json::from_value(serde_json::json!({
        "selector": selector, "algorithm": "Ed25519", "created": "2026-01-01T00:00:00Z", "active": "2026-01-01T00:00:00Z",
        "privateKey": "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g",
    }))
    .unwrap()
}

fn golden(spec: &MailDomainSpec, keys: &[StoredKey]) -> String {
    records(spec, "Mail.Example.org", keys).iter().map(|record| zone_line(record) + "\n").collect()
}

#[test]
fn the_least_domain_has_these_records() {
    assert_eq!(
        golden(&spec("{domain: example.org}"), &[key("e1")]),
        "example.org. 3600 IN MX 10 mail.example.org.\n\
         example.org. 3600 IN TXT \"v=spf1 mx ~all\"\n\
         e1._domainkey.example.org. 3600 IN TXT \"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\"\n\
         _dmarc.example.org. 3600 IN TXT \"v=DMARC1; p=none\"\n\
         _submissions._tcp.example.org. 3600 IN SRV 0 1 465 mail.example.org.\n\
         _submission._tcp.example.org. 3600 IN SRV 10 1 587 mail.example.org.\n\
         _imaps._tcp.example.org. 3600 IN SRV 0 1 993 mail.example.org.\n\
         _imap._tcp.example.org. 3600 IN SRV 10 1 143 mail.example.org.\n\
         autoconfig.example.org. 3600 IN CNAME mail.example.org.\n"
    );
}

#[test]
fn all_that_can_be_asked_for_is_in_the_records_of_aliases_as_well() {
    let spec = spec(
        "{domain: example.org, aliases: [example.net], spf: {include: [_spf.relay.test], others: Fail}, \
         dmarc: {policy: Reject, rua: d@example.org}, mtaSts: {mode: Enforce}, tlsRpt: {rua: t@example.org}}",
    );
    let text = golden(&spec, &[]);
    for domain in ["example.org", "example.net"] {
        for line in [
            format!("{domain}. 3600 IN TXT \"v=spf1 mx include:_spf.relay.test -all\""),
            format!("_dmarc.{domain}. 3600 IN TXT \"v=DMARC1; p=reject; rua=mailto:d@example.org\""),
            format!("mta-sts.{domain}. 3600 IN CNAME mail.example.org."),
            format!("_smtp._tls.{domain}. 3600 IN TXT \"v=TLSRPTv1; rua=mailto:t@example.org\""),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.contains(&format!("_mta-sts.{domain}. 3600 IN TXT \"v=STSv1; id=")), "{text}");
    }
    let policy = sts_policy(&spec, "mail.example.org").unwrap();
    assert_eq!(policy, "version: STSv1\r\nmode: enforce\r\nmx: mail.example.org\r\nmax_age: 1209600\r\n");
}

#[test]
fn a_long_text_is_split_into_strings() {
    let text = "x".repeat(600);
    let parts = strings(&text);
    assert_eq!(parts.iter().map(String::len).collect::<Vec<_>>(), [257, 257, 92]);
    assert_eq!(strings("a\"b\\c\u{7}"), ["\"a\\\"b\\\\c\\007\""]);
}

#[test]
fn what_stands_in_dns_is_told_apart() {
    let record = |type_: &str, value: &str| DnsRecord {
        name: "x".to_owned(),
        type_: type_.to_owned(),
        value: value.to_owned(),
        state: DnsState::Unknown,
        found: None,
        checked_at: None,
    };
    let spf = "v=spf1 mx include:r.test ~all";
    let dkim = "v=DKIM1; k=rsa; p=AB+/CD";
    let dmarc = "v=DMARC1; p=quarantine; rua=mailto:d@x.org";
    use DnsState::{Mismatch, Missing, Present};
    for (type_, wanted, found, state) in [
        ("MX", "10 mail.x.org.", vec!["5 other.org.", "20 MAIL.x.org."], Present),
        ("MX", "10 mail.x.org.", vec!["10 other.org."], Mismatch),
        ("SRV", "0 1 465 mail.x.org.", vec!["5 9 465 mail.x.org."], Present),
        ("SRV", "0 1 465 mail.x.org.", vec!["0 1 587 mail.x.org."], Mismatch),
        ("TXT", spf, vec!["other=1", spf], Present),
        ("TXT", spf, vec!["v=spf1 a mx include:s.test include:r.test -all"], Present),
        ("TXT", spf, vec!["v=spf1 mx ~all"], Mismatch),
        ("TXT", spf, vec!["v=spf1 mx include:r.test +all"], Mismatch),
        ("TXT", spf, vec![spf, "v=spf1 -all"], Mismatch),
        ("TXT", spf, vec!["v=spf10 mx", "google-site-verification=1"], Missing),
        ("TXT", dkim, vec!["p=AB+/ CD"], Present),
        ("TXT", dkim, vec!["v=DKIM1; p=ABCD"], Mismatch),
        ("TXT", dkim, vec!["v=DKIM1; k=ed25519; p=AB+/CD"], Mismatch),
        ("TXT", dkim, vec!["v=DKIM1; p="], Mismatch),
        ("TXT", dmarc, vec!["V=DMARC1;p=reject;rua=mailto:e@x.org,mailto:d@x.org;pct=100"], Present),
        ("TXT", dmarc, vec!["v=DMARC1; p=none; rua=mailto:d@x.org"], Mismatch),
        ("TXT", dmarc, vec!["v=DMARC1; p=reject"], Mismatch),
    ] {
        let answer = Answer::Records(found.iter().map(|text| (*text).to_owned()).collect());
        let (is, shown) = judge(&record(type_, wanted), &answer);
        assert_eq!(is, state, "{wanted} in {found:?}");
        assert_eq!(shown.is_some(), state == Mismatch, "{shown:?}");
    }
    assert_eq!(judge(&record("TXT", spf), &Answer::Nothing).0, Missing);
    assert_eq!(judge(&record("TXT", spf), &Answer::Failed("timeout".to_owned())).0, DnsState::Unknown);
}

#[test]
fn conditions_say_which_records_are_missing() {
    let keys = [key("e1")];
    let mut all = records(&spec("{domain: example.org}"), "mail.example.org", &keys);
    assert_eq!(verified(&all).status, None);
    assert_eq!(dkim_ready(&keys, &all).status, None);
    all.iter_mut().for_each(|record| record.state = DnsState::Present);
    assert_eq!((verified(&all).status, dkim_ready(&keys, &all).status), (Some(true), Some(true)));
    all[2].state = DnsState::Missing;
    for observed in [verified(&all), dkim_ready(&keys, &all)] {
        assert_eq!(observed.status, Some(false));
        assert!(observed.message.contains("TXT e1._domainkey.example.org"), "{}", observed.message);
    }
    assert_eq!(dkim_ready(&[], &all).reason, reason::NOT_SIGNED);
}
