use std::sync::Arc;

use quorumail_proto::admin::{DomainEntry, MailboxEntry};

use super::*;

/// An object from YAML, with a uid like its name and an age in seconds (larger is younger).
fn object<K: kube::Resource + serde::de::DeserializeOwned>(
    name: &str,
    created: i64,
    spec: &str,
    meta: &str,
) -> Arc<K> {
    let kind = if spec.contains("domain:") { "MailDomain" } else { "Mailbox" };
    let created = Timestamp::from_second(created).unwrap();
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: {kind}, spec: {spec}, \
         metadata: {{name: {name}, uid: {name}, creationTimestamp: '{created}' {meta}}}}}"
    );
    Arc::new(serde_yaml::from_str(&text).unwrap())
}

const DELETED: &str = ", deletionTimestamp: '2026-01-01T00:00:00Z'";

fn home() -> Tenancy {
    Tenancy::without_namespaces()
}

fn md(name: &str, spec: &str) -> Arc<MailDomain> {
    object(name, 1, spec, "")
}

fn mbx(name: &str, created: i64, address: &str) -> Arc<Mailbox> {
    object(name, created, &format!("{{address: {address}}}"), "")
}

fn run(domains: &[Arc<MailDomain>], mailboxes: &[Arc<Mailbox>], listing: &Listing) -> Plan {
    let credential = |m: &Arc<Mailbox>| (m.name_any(), Ok(Credential::from_secret(b"secret").unwrap()));
    let keys = domains.iter().map(|domain| (domain.name_any(), Some(Vec::new()))).collect();
    plan(domains, mailboxes, &mailboxes.iter().map(credential).collect(), &keys, listing, &home())
}

fn listed(domains: &[&str], mailboxes: &[&str]) -> Listing {
    let domain = |d: &&str| ((*d).to_owned(), DomainEntry { domain: (*d).into(), ..Default::default() });
    let mailbox = |m: &&str| ((*m).to_owned(), MailboxEntry { address: (*m).into(), ..Default::default() });
    Listing {
        domains: domains.iter().map(domain).collect(),
        mailboxes: mailboxes.iter().map(mailbox).collect(),
        ..Listing::default()
    }
}

fn reason_of<'a>(plan: &'a Plan, uid: &str) -> &'a str {
    match &plan.verdicts[uid] {
        Verdict::Blocked(observed) => observed.reason,
        other => panic!("{uid} is {other:?}"),
    }
}

#[test]
fn the_older_of_two_mailboxes_has_the_address() {
    let young = mbx("a-young", 200, "info@x.org");
    let old: Arc<Mailbox> = object("old", 100, "{address: bob@x.org, aliases: [info@x.org]}", "");
    let plan = run(&[md("x", "{domain: x.org}")], &[young, old], &Listing::default());
    assert_eq!(plan.verdicts["old"], Verdict::Wanted);
    assert_eq!(reason_of(&plan, "a-young"), reason::CONFLICT);
    assert!(!plan.desired.mailboxes.contains_key("info@x.org"));
}

#[test]
fn the_older_of_two_domains_has_the_name() {
    let old: Arc<MailDomain> = object("old", 1, "{domain: x.org, aliases: [y.org]}", "");
    let young: Arc<MailDomain> = object("young", 2, "{domain: y.org}", "");
    let plan = run(&[young, old], &[], &Listing::default());
    assert_eq!(reason_of(&plan, "young"), reason::CONFLICT);
    assert_eq!(plan.desired.domains.len(), 1);
}

#[test]
fn a_mailbox_without_its_domain_waits_for_it() {
    let plan = run(&[], &[mbx("a", 1, "a@x.org")], &Listing::default());
    assert_eq!(reason_of(&plan, "a"), reason::DOMAIN_NOT_FOUND);
    let plan = run(&[md("x", "{domain: x.org}")], &[mbx("a", 1, "a@x.org")], &Listing::default());
    assert_eq!(plan.verdicts["a"], Verdict::Wanted);
}

#[test]
fn a_deleted_mailbox_keeps_its_mail_for_the_grace_period() {
    let retained: Arc<Mailbox> = object("r", 1, "{address: r@x.org, gracePeriod: 2h}", DELETED);
    let purged: Arc<Mailbox> = object("p", 1, "{address: p@x.org, deletionPolicy: Delete}", DELETED);
    let never: Arc<Mailbox> = object("n", 1, "{address: n@x.org}", DELETED);
    let plan = run(&[], &[retained, purged, never], &listed(&["x.org"], &["r@x.org", "p@x.org"]));
    assert_eq!(plan.desired.remove_mailboxes, [("p@x.org".into(), 0), ("r@x.org".into(), 7200)].into());
    assert_eq!((&plan.verdicts["r"], &plan.verdicts["n"]), (&Verdict::Leaving, &Verdict::Released));
}

#[test]
fn an_address_made_anew_is_not_removed_by_its_predecessor() {
    let gone: Arc<Mailbox> = object("old", 1, "{address: a@x.org}", DELETED);
    let plan = run(
        &[md("x", "{domain: x.org}")],
        &[gone, mbx("new", 2, "a@x.org")],
        &listed(&["x.org"], &["a@x.org"]),
    );
    assert_eq!((&plan.verdicts["old"], &plan.verdicts["new"]), (&Verdict::Released, &Verdict::Wanted));
    assert!(plan.desired.remove_mailboxes.is_empty());
}

#[test]
fn a_deleted_domain_in_use_is_retained_and_an_empty_one_goes() {
    let gone: Arc<MailDomain> = object("x", 1, "{domain: x.org}", DELETED);
    let plan = run(std::slice::from_ref(&gone), &[mbx("a", 1, "a@x.org")], &listed(&["x.org"], &["a@x.org"]));
    assert_eq!((&plan.verdicts["x"], &plan.verdicts["a"]), (&Verdict::Released, &Verdict::Wanted));
    let plan = run(&[gone], &[], &listed(&["x.org"], &[]));
    assert_eq!(plan.verdicts["x"], Verdict::Leaving);
    assert!(plan.desired.remove_domains.contains("x.org"));
}

#[test]
fn a_domain_deleted_with_policy_delete_takes_its_mailboxes_along() {
    let gone: Arc<MailDomain> = object("x", 1, "{domain: x.org, deletionPolicy: Delete}", DELETED);
    let listing = listed(&["x.org", "y.org"], &["a@x.org", "bulk@x.org", "b@y.org"]);
    let plan = run(&[gone], &[mbx("a", 1, "a@x.org"), mbx("b", 1, "b@y.org")], &listing);
    let going: Vec<_> = plan.desired.remove_mailboxes.keys().collect();
    assert_eq!(going, ["a@x.org", "bulk@x.org"]);
    assert_eq!(reason_of(&plan, "a"), reason::DOMAIN_NOT_FOUND);
    assert_eq!(plan.verdicts["b"], Verdict::Wanted);
}

#[test]
fn paused_objects_are_left_alone() {
    let pause = ", annotations: {quorumail.io/paused: 'true'}";
    let domain: Arc<MailDomain> = object("x", 1, "{domain: x.org}", pause);
    let mailbox: Arc<Mailbox> = object("a", 1, "{address: a@x.org}", &format!("{DELETED}{pause}"));
    let plan = run(&[domain], &[mailbox], &listed(&["x.org"], &["a@x.org"]));
    assert_eq!((&plan.verdicts["x"], &plan.verdicts["a"]), (&Verdict::Paused, &Verdict::Paused));
    assert!(plan.desired.domains.is_empty() && plan.desired.remove_mailboxes.is_empty());
    assert!(plan.desired.leave_domains.contains("x.org"));
}

#[test]
fn a_missing_secret_blocks_only_its_mailbox() {
    let missing = Observed::no(kind::READY, reason::SECRET_NOT_FOUND, "no Secret");
    let boxes = [mbx("a", 1, "a@x.org"), mbx("b", 1, "b@x.org")];
    let credentials =
        [("a".to_owned(), Err(missing)), ("b".to_owned(), Ok(Credential::from_secret(b"x").unwrap()))].into();
    let plan = plan(
        &[md("x", "{domain: x.org}")],
        &boxes,
        &credentials,
        &DomainKeys::new(),
        &Listing::default(),
        &home(),
    );
    assert_eq!(reason_of(&plan, "a"), reason::SECRET_NOT_FOUND);
    assert_eq!(plan.verdicts["b"], Verdict::Wanted);
}

#[test]
fn a_domain_whose_keys_cannot_be_told_goes_on_with_those_that_the_mailnodes_have() {
    let domains = [md("x", "{domain: x.org}"), md("y", "{domain: y.org}")];
    let none = BTreeMap::new();
    let key = crate::directory::DkimKey {
        selector: "s1".to_owned(),
        algorithm: quorumail_authentication::Algorithm::Ed25519,
        private: b"key".to_vec(),
    };
    let keys = [("x".to_owned(), None), ("y".to_owned(), Some(vec![key.clone()]))].into();
    let boxes: [Arc<Mailbox>; 0] = [];
    let listed_already = plan(&domains, &boxes, &none, &keys, &listed(&["x.org", "y.org"], &[]), &home());
    assert_eq!(listed_already.verdicts["x"], Verdict::Wanted);
    assert!(listed_already.desired.leave_domains.contains("x.org"));
    assert_eq!(listed_already.desired.domains["y.org"].keys, [key]);
    // One that is new is served all the same.
    let new = plan(&domains, &boxes, &none, &keys, &listed(&[], &[]), &home());
    assert!(new.desired.domains["x.org"].keys.is_empty());
}
