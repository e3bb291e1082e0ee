use std::sync::Arc;

use quorumail_proto::admin::{DomainEntry, ListEntry};

use super::*;
use crate::accounts::plan::plan;

fn list(name: &str, spec: &str) -> Arc<MailingList> {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: MailingList, metadata: {{name: {name}, uid: {name}, namespace: mail}}, \
         spec: {spec}}}"
    );
    Arc::new(serde_yaml::from_str(&text).unwrap())
}

fn mailbox(name: &str, labels: &str) -> Arc<Mailbox> {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {{name: {name}, uid: box-{name}, namespace: mail, \
         labels: {labels}}}, spec: {{address: {name}@example.org, aliases: [{name}2@example.org]}}}}"
    );
    Arc::new(serde_yaml::from_str(&text).unwrap())
}

fn served() -> Listing {
    let mut listing = Listing::default();
    let domain = DomainEntry { domain: "example.org".to_owned(), ..DomainEntry::default() };
    listing.domains.insert("example.org".to_owned(), domain);
    listing
}

fn planned(lists: &[Arc<MailingList>], mailboxes: &[Arc<Mailbox>], listing: &Listing) -> Plan {
    let none: &[Arc<quorumail_crds::MailDomain>] = &[];
    let tenancy = Tenancy::without_namespaces();
    let mut plan = plan(none, mailboxes, &Default::default(), &Default::default(), listing, &tenancy);
    plan_lists(&mut plan, lists, mailboxes, listing, &tenancy);
    plan
}

fn blocked(plan: &Plan, uid: &str) -> (&'static str, String) {
    match &plan.verdicts[uid] {
        Verdict::Blocked(observed) => (observed.reason, observed.message.clone()),
        other => panic!("{uid} is {other:?}"),
    }
}

#[test]
fn members_are_those_named_and_those_meant_by_labels() {
    let people =
        [mailbox("alice", "{team: blue}"), mailbox("bob", "{team: red}"), mailbox("carol", "{team: blue}")];
    let spec = "{address: blue@example.org, memberSelector: {matchLabels: {team: blue}}, \
                members: [{address: carol@example.org, role: Owner}, {address: x@example.net}]}";
    let plan = planned(&[list("blue", spec)], &people, &served());
    assert_eq!(plan.verdicts["blue"], Verdict::Wanted);
    let members: Vec<_> = plan.desired.lists["blue@example.org"].members.clone().into_iter().collect();
    use quorumail_crds::mailinglist::ListRole::{Member, Owner};
    let expected = [("alice@example.org", Member), ("carol@example.org", Owner), ("x@example.net", Member)];
    assert_eq!(members, expected.map(|(address, role)| (address.to_owned(), role)));
}

#[test]
fn what_cannot_be_served_is_told_in_words() {
    let people = [mailbox("alice", "{}")];
    let lists = [
        list("taken", "{address: alice2@example.org}"),
        list("nowhere", "{address: a@example.com}"),
        list("first", "{address: twice@example.org}"),
        list("second", "{address: twice@example.org}"),
        list("wrong", "{address: w@example.org, members: [{address: nobody}]}"),
        list("itself", "{address: i@example.org, members: [{address: i@example.org}]}"),
        list(
            "selects",
            "{address: s@example.org, memberSelector: {matchExpressions: [{key: a, operator: In}]}}",
        ),
    ];
    let plan = planned(&lists, &people, &served());
    let told = |uid: &str, reason: &str, words: &str| {
        let found = blocked(&plan, uid);
        assert!(found.0 == reason && found.1.contains(words), "{uid}: {found:?}");
    };
    told("taken", reason::CONFLICT, "belongs to Mailbox alice");
    told("nowhere", reason::DOMAIN_NOT_FOUND, "example.com is not served");
    told("second", reason::CONFLICT, "belongs to MailingList first");
    told("wrong", reason::INVALID_SPEC, "member \"nobody\"");
    told("itself", reason::INVALID_SPEC, "its own member");
    assert_eq!(plan.desired.lists.keys().filter(|address| address.starts_with("twice")).count(), 1);
}

#[test]
fn a_list_has_at_most_ten_thousand_members() {
    let members = |count: usize| {
        let members: Vec<_> = (0..count).map(|n| format!("{{address: m{n}@example.net}}")).collect();
        list("big", &format!("{{address: big@example.org, members: [{}]}}", members.join(", ")))
    };
    let plan = planned(&[members(10_000)], &[], &served());
    assert_eq!(plan.verdicts["big"], Verdict::Wanted);
    let plan = planned(&[members(10_001)], &[], &served());
    assert!(blocked(&plan, "big").1.contains("10001 members"));
}

#[test]
fn a_deleted_list_goes_and_then_its_resource() {
    let mut leaving = (*list("old", "{address: old@example.org}")).clone();
    leaving.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
    let leaving = [Arc::new(leaving)];
    let mut listing = served();
    let entry = ListEntry { address: "old@example.org".to_owned(), ..ListEntry::default() };
    listing.lists.insert("old@example.org".to_owned(), entry);
    let plan = planned(&leaving, &[], &listing);
    assert_eq!(plan.verdicts["old"], Verdict::Leaving);
    assert!(plan.desired.remove_lists.contains("old@example.org"));
    assert_eq!(planned(&leaving, &[], &served()).verdicts["old"], Verdict::Released);
}
