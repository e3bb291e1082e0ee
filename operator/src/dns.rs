//! The DNS records that a domain needs, and whether what stands in DNS is as it should be. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use quorumail_authentication::{
    dns::{Answer, Kind},
    sts,
};
use quorumail_crds::{
    MailDomainSpec,
    condition::{Observed, kind, reason},
    maildomain::{DmarcPolicy, DnsRecord, DnsState, MtaStsMode, SpfOthers},
};

use crate::dkim::StoredKey;

/// A character-string of a TXT record is no longer. RFC 1035 3.3.
const MAX_STRING: usize = 255;
/// Seconds for which resolvers keep a record.
pub const TTL: u32 = 3600;
/// Longest text of what was found, in characters.
const MAX_FOUND: usize = 512;
/// Names of records in a message of a condition.
const MAX_NAMED: usize = 4;

/// All records of the domain and its aliases. `hostname`: of the MailCluster. `keys`: those that are published.
pub fn records(spec: &MailDomainSpec, hostname: &str, keys: &[StoredKey]) -> Vec<DnsRecord> {
    let host = format!("{}.", hostname.trim_end_matches('.').to_lowercase());
    let keys: Vec<(&str, String)> =
        keys.iter().filter_map(|key| Some((key.selector.as_str(), key.record().ok()?))).collect();
    let mut all = Vec::new();
    let domains = std::iter::once(&spec.domain).chain(&spec.aliases);
    for domain in domains.map(|domain| domain.to_lowercase()) {
        let mut add = |name: String, type_: &str, value: String| {
            all.push(DnsRecord {
                name,
                type_: type_.to_owned(),
                value,
                state: DnsState::Unknown,
                found: None,
                checked_at: None,
            });
        };
        add(domain.clone(), "MX", format!("10 {host}"));
        add(domain.clone(), "TXT", spf(spec));
        for (selector, text) in &keys {
            add(format!("{selector}._domainkey.{domain}"), "TXT", text.clone());
        }
        add(format!("_dmarc.{domain}"), "TXT", dmarc(spec));
        if let Some(policy) = sts_policy(spec, hostname) {
            // RFC 8461 3.1: the id changes with the policy.
            let id = blake3::hash(policy.as_bytes()).to_hex();
            add(format!("_mta-sts.{domain}"), "TXT", format!("v=STSv1; id={}", &id[..20]));
            // RFC 8461 3.3: the host that is asked for the policy.
            add(format!("mta-sts.{domain}"), "CNAME", host.clone());
        }
        if let Some(report) = &spec.tls_rpt {
            let text = format!("v=TLSRPTv1; rua=mailto:{}", report.rua.to_lowercase());
            add(format!("_smtp._tls.{domain}"), "TXT", text);
        }
        // RFC 6186 3.1 to 3.3, RFC 8314 5.1; TLS from the start is preferred.
        for (service, priority, port) in
            [("_submissions", 0, 465), ("_submission", 10, 587), ("_imaps", 0, 993), ("_imap", 10, 143)]
        {
            add(format!("{service}._tcp.{domain}"), "SRV", format!("{priority} 1 {port} {host}"));
        }
        // Thunderbird and others ask this host for settings over HTTP.
        add(format!("autoconfig.{domain}"), "CNAME", host.clone());
    }
    all
}

fn spf(spec: &MailDomainSpec) -> String {
    let mut text = "v=spf1 mx".to_owned();
    for include in &spec.spf.include {
        text.push_str(" include:");
        text.push_str(&include.to_lowercase());
    }
    text.push_str(match spec.spf.others {
        SpfOthers::SoftFail => " ~all",
        SpfOthers::Fail => " -all",
        SpfOthers::Neutral => " ?all",
    });
    text
}

fn dmarc(spec: &MailDomainSpec) -> String {
    let policy = match spec.dmarc.policy {
        DmarcPolicy::None => "none",
        DmarcPolicy::Quarantine => "quarantine",
        DmarcPolicy::Reject => "reject",
    };
    let mut text = format!("v=DMARC1; p={policy}");
    if let Some(rua) = &spec.dmarc.rua {
        text.push_str("; rua=mailto:");
        text.push_str(&rua.to_lowercase());
    }
    text
}

/// The policy that is to be served over HTTPS, where one is asked for. RFC 8461 3.2.
pub fn sts_policy(spec: &MailDomainSpec, hostname: &str) -> Option<String> {
    let mode = match spec.mta_sts.as_ref()?.mode {
        MtaStsMode::Testing => sts::Mode::Testing,
        MtaStsMode::Enforce => sts::Mode::Enforce,
    };
    Some(sts::policy(mode, hostname))
}

/// What a record is looked up as.
pub fn kind_of(record: &DnsRecord) -> Kind {
    match record.type_.as_str() {
        "MX" => Kind::Mx,
        "SRV" => Kind::Srv,
        // What others come to counts, not how: it may be an address as well, or somebody else's name.
        "CNAME" => Kind::Address,
        _ => Kind::Txt,
    }
}

/// The record as lines of a zone file. RFC 1035 5.1.
pub fn zone_line(record: &DnsRecord) -> String {
    let value = match record.type_.as_str() {
        "TXT" => strings(&record.value).join(" "),
        _ => record.value.clone(),
    };
    format!("{}. {TTL} IN {} {value}", record.name, record.type_)
}

/// A text as quoted strings, none too long.
fn strings(text: &str) -> Vec<String> {
    let parts = text.as_bytes().chunks(MAX_STRING);
    parts
        .map(|part| {
            let mut quoted = "\"".to_owned();
            for byte in part {
                match byte {
                    b'"' | b'\\' => {
                        quoted.push('\\');
                        quoted.push(char::from(*byte));
                    }
                    b' '..=b'~' => quoted.push(char::from(*byte)),
                    other => drop(write!(quoted, "\\{other:03}")),
                }
            }
            quoted.push('"');
            quoted
        })
        .collect()
}

/// Whether what DNS says is what is wanted, and what stands there otherwise.
pub fn judge(wanted: &DnsRecord, answer: &Answer) -> (DnsState, Option<String>) {
    let records = match answer {
        Answer::Failed(why) => return (DnsState::Unknown, Some(shown(why))),
        Answer::Nothing => return (DnsState::Missing, None),
        Answer::Records(records) => records,
    };
    let found = || Some(shown(&records.join(" | ")));
    let there = match wanted.type_.as_str() {
        "MX" => records.iter().any(|record| last_word(record) == last_word(&wanted.value)),
        "CNAME" => true,
        "SRV" => {
            // Priority and weight are a matter of taste.
            let place = |text: &str| text.split(' ').skip(2).map(str::to_lowercase).collect::<Vec<_>>();
            records.iter().any(|record| place(record) == place(&wanted.value))
        }
        _ => return judge_text(&wanted.value, records),
    };
    if there { (DnsState::Present, None) } else { (DnsState::Mismatch, found()) }
}

fn last_word(text: &str) -> String {
    text.rsplit(' ').next().unwrap_or_default().trim_end_matches('.').to_lowercase()
}

fn judge_text(wanted: &str, records: &[String]) -> (DnsState, Option<String>) {
    let version = wanted.split([' ', ';']).next().unwrap_or_default().to_lowercase();
    // Other texts may stand at the same name; a DKIM record may leave its version out (RFC 6376 3.6.1).
    let of_the_kind = |text: &&String| {
        let text = text.trim_start().to_lowercase();
        (text.starts_with(&version) && !text[version.len()..].starts_with(|c: char| c.is_alphanumeric()))
            || version == "v=dkim1"
    };
    let same: Vec<&String> = records.iter().filter(of_the_kind).collect();
    let ok = match same.as_slice() {
        [] => return (DnsState::Missing, None),
        [one] => match version.as_str() {
            "v=spf1" => spf_covers(one, wanted),
            _ => tags_cover(one, wanted),
        },
        // More than one is an error. RFC 7208 4.5, RFC 9989 4.10.
        _ => false,
    };
    if ok {
        return (DnsState::Present, None);
    }
    let found: Vec<&str> = same.iter().map(|text| text.as_str()).collect();
    (DnsState::Mismatch, Some(shown(&found.join(" | "))))
}

/// Every mechanism that is wanted is there; what is said of other hosts is the owner's choice, as long as it is no pass.
fn spf_covers(found: &str, wanted: &str) -> bool {
    let terms = |text: &str| text.to_lowercase().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let found = terms(found);
    let passes_all = found.iter().any(|term| term == "all" || term == "+all");
    let has = |term: &String| found.contains(term) || found.contains(&format!("+{term}"));
    !passes_all && terms(wanted).iter().filter(|term| !term.ends_with("all")).all(has)
}

/// RFC 6376 3.2: names and values; white space in keys does not count.
fn tags(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(';').filter_map(|tag| tag.split_once('='));
    pairs
        .map(|(name, value)| {
            (name.trim().to_lowercase(), value.chars().filter(|c| !c.is_whitespace()).collect())
        })
        .collect()
}

/// Every tag that is wanted is there with that value; more may be said.
fn tags_cover(found: &str, wanted: &str) -> bool {
    let has = tags(found);
    let strictness = |policy: &str| ["none", "quarantine", "reject"].iter().position(|p| *p == policy);
    tags(wanted).iter().all(|(name, value)| {
        let there = has.get(name).map(String::as_str);
        match (name.as_str(), there) {
            ("v", Some(there)) => there.eq_ignore_ascii_case(value),
            // RFC 6376 3.6.1: the version and `k=rsa` may be left out.
            ("v", None) => value == "DKIM1",
            ("k", None) => value == "rsa",
            ("rua", Some(there)) => there.to_lowercase().split(',').any(|uri| uri == value.as_str()),
            ("p", Some(there)) if strictness(value).is_some() => {
                strictness(&there.to_lowercase()) >= strictness(value)
            }
            (_, Some(there)) => there == value,
            (_, None) => false,
        }
    })
}

/// Printable, and not too long.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX_FOUND).collect()
}

/// Whether all records are as they should be.
pub fn verified(records: &[DnsRecord]) -> Observed {
    let of = |state: DnsState| records.iter().filter(move |record| record.state == state);
    let wrong: Vec<_> = of(DnsState::Missing).chain(of(DnsState::Mismatch)).collect();
    let unknown: Vec<_> = of(DnsState::Unknown).collect();
    if !wrong.is_empty() {
        let text = format!(
            "{} of {} records are missing or differ: {}; `quorumail domain dns` shows what to publish",
            wrong.len(),
            records.len(),
            named(&wrong)
        );
        Observed::no(kind::DNS_VERIFIED, reason::RECORDS_WRONG, text)
    } else if !unknown.is_empty() {
        let text = format!("DNS was not asked yet or did not answer for {}", named(&unknown));
        Observed::unknown(kind::DNS_VERIFIED, reason::DNS_UNKNOWN, text)
    } else {
        let text = format!("all {} records are seen", records.len());
        Observed::yes(kind::DNS_VERIFIED, reason::RECORDS_PRESENT, text)
    }
}

fn named(records: &[&DnsRecord]) -> String {
    let names = records.iter().take(MAX_NAMED).map(|record| format!("{} {}", record.type_, record.name));
    let mut text = names.collect::<Vec<_>>().join(", ");
    if records.len() > MAX_NAMED {
        let _ = write!(text, " and {} more", records.len() - MAX_NAMED);
    }
    text
}

/// Whether mail of the domain is signed with keys whose records are seen.
pub fn dkim_ready(keys: &[StoredKey], records: &[DnsRecord]) -> Observed {
    let signing: Vec<&StoredKey> =
        keys.iter().filter(|key| key.active.is_some() && key.retired.is_none()).collect();
    if signing.is_empty() {
        let text = "spec.dkim.algorithms is empty: mail of the domain is not signed";
        return Observed::no(kind::DKIM_READY, reason::NOT_SIGNED, text);
    }
    let of_signing = records.iter().filter(|record| {
        signing.iter().any(|key| record.name.starts_with(&format!("{}._domainkey.", key.selector)))
    });
    let of_signing: Vec<&DnsRecord> = of_signing.collect();
    let of = |state: DnsState| of_signing.iter().copied().filter(move |record| record.state == state);
    let wrong: Vec<_> = of(DnsState::Missing).chain(of(DnsState::Mismatch)).collect();
    let unknown: Vec<_> = of(DnsState::Unknown).collect();
    if !wrong.is_empty() {
        let text = format!("mail is signed, but others cannot check it: publish {}", named(&wrong));
        Observed::no(kind::DKIM_READY, reason::RECORDS_WRONG, text)
    } else if !unknown.is_empty() {
        let text = format!("mail is signed; DNS did not tell of {}", named(&unknown));
        Observed::unknown(kind::DKIM_READY, reason::DNS_UNKNOWN, text)
    } else {
        let text = format!("mail is signed with {} keys, whose records are seen", signing.len());
        Observed::yes(kind::DKIM_READY, reason::SIGNING, text)
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
