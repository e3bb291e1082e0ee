use std::{collections::BTreeMap, sync::Arc};

use quorumail_crds::{MailDomain, Mailbox, MailingList};
use quorumail_proto::admin::{DomainEntry, ListEntry, MailboxEntry};

use super::*;
use crate::{
    accounts::{
        lists::plan_lists,
        plan::{Plan, Verdict, plan},
    },
    directory::{Credential, FingerprintKey, Orphans, Step, diff},
};

/// A MailCluster in namespace `mail` that allows these.
fn cluster(allowed: &str) -> MailCluster {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {{name: main, namespace: mail}}, \
         spec: {{nodes: 1, allowedNamespaces: [{allowed}]}}}}"
    );
    serde_yaml::from_str(&text).unwrap()
}

/// An object whose uid is its namespace and name; `age` in seconds, larger is younger.
fn object<K: serde::de::DeserializeOwned>(
    kind: &str,
    path: &str,
    age: i64,
    spec: &str,
    meta: &str,
) -> Arc<K> {
    let (namespace, name) = path.split_once('/').unwrap();
    let created = k8s_openapi::jiff::Timestamp::from_second(age).unwrap();
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: {kind}, spec: {{{spec}}}, metadata: {{name: {name}, \
         namespace: {namespace}, uid: {path}, creationTimestamp: '{created}' {meta}}}}}"
    );
    Arc::new(serde_yaml::from_str(&text).unwrap())
}

const DELETED: &str = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
const PAUSED: &str = ", annotations: {quorumail.io/paused: 'true'}";

/// What one MailCluster is asked.
#[derive(Default)]
struct World {
    domains: Vec<Arc<MailDomain>>,
    mailboxes: Vec<Arc<Mailbox>>,
    lists: Vec<Arc<MailingList>>,
    listing: Listing,
}

impl World {
    fn domain(mut self, path: &str, age: i64, spec: &str, meta: &str) -> Self {
        self.domains.push(object("MailDomain", path, age, spec, meta));
        self
    }

    fn mailbox(mut self, path: &str, age: i64, spec: &str, meta: &str) -> Self {
        self.mailboxes.push(object("Mailbox", path, age, spec, meta));
        self
    }

    fn list(mut self, path: &str, age: i64, address: &str, meta: &str) -> Self {
        self.lists.push(object("MailingList", path, age, &format!("address: {address}"), meta));
        self
    }

    /// The mailnodes hold this domain for a namespace.
    fn held(mut self, domain: &str, namespace: &str) -> Self {
        let entry = DomainEntry { revision: revision_of(namespace), ..DomainEntry::default() };
        self.listing.domains.insert(domain.to_owned(), entry);
        self
    }

    fn held_mailbox(mut self, address: &str, namespace: &str) -> Self {
        let entry = MailboxEntry { revision: revision_of(namespace), ..MailboxEntry::default() };
        self.listing.mailboxes.insert(address.to_owned(), entry);
        self
    }

    fn held_list(mut self, address: &str, namespace: &str) -> Self {
        let entry = ListEntry { revision: revision_of(namespace), ..ListEntry::default() };
        self.listing.lists.insert(address.to_owned(), entry);
        self
    }

    fn kept(mut self, address: &str, namespace: &str) -> Self {
        self.listing.deleted.insert(address.to_owned(), revision_of(namespace));
        self
    }

    fn plan(&self, allowed: &str) -> Plan {
        let tenancy = Tenancy::of(&cluster(allowed));
        let password = || Ok(Credential::from_secret(b"secret").unwrap());
        let credentials = self.mailboxes.iter().map(|m| (m.uid().unwrap(), password())).collect();
        let keys: BTreeMap<_, _> =
            self.domains.iter().map(|d| (d.uid().unwrap(), Some(Vec::new()))).collect();
        let mut plan = plan(&self.domains, &self.mailboxes, &credentials, &keys, &self.listing, &tenancy);
        plan_lists(&mut plan, &self.lists, &self.mailboxes, &self.listing, &tenancy);
        plan
    }

    /// Of each object, in the order of its path, what is decided in one word.
    fn told(&self, allowed: &str) -> String {
        let word = |verdict: &Verdict| match verdict {
            Verdict::Wanted => "wanted".to_owned(),
            Verdict::Outside => "outside".to_owned(),
            Verdict::Paused => "paused".to_owned(),
            Verdict::Leaving => "leaving".to_owned(),
            Verdict::Released => "released".to_owned(),
            Verdict::Blocked(observed) => observed.reason.to_owned(),
        };
        let plan = self.plan(allowed);
        let all = plan.verdicts.iter().map(|(uid, verdict)| format!("{uid} {}", word(verdict)));
        all.collect::<Vec<_>>().join(", ")
    }
}

fn revision_of(namespace: &str) -> String {
    let owner = Owner((namespace != "mail").then(|| namespace.to_owned()));
    owner.mark(&format!("{REVISION_PREFIX}0"))
}

#[test]
fn a_claim_of_what_another_namespace_has_fails() {
    let x = "domain: x.org";
    for (what, world, expected) in [
        (
            "the older has it",
            World::default().domain("a/d", 1, x, "").domain("b/d", 2, x, ""),
            "a/d wanted, b/d Conflict",
        ),
        (
            "whatever its name",
            World::default().domain("a/d", 2, x, "").domain("b/d", 1, x, ""),
            "a/d Conflict, b/d wanted",
        ),
        (
            "by namespace",
            World::default().domain("b/d", 1, x, "").domain("a/d", 1, x, ""),
            "a/d wanted, b/d Conflict",
        ),
        (
            "an alias too",
            World::default().domain("a/d", 1, "domain: y.org, aliases: [x.org]", "").domain("b/d", 2, x, ""),
            "a/d wanted, b/d Conflict",
        ),
        (
            "one that is served stays",
            World::default().domain("a/d", 1, x, "").domain("b/d", 2, x, "").held("x.org", "b"),
            "a/d Conflict, b/d wanted",
        ),
        (
            "with its aliases",
            World::default()
                .domain("a/d", 1, x, "")
                .domain("b/d", 2, "domain: y.org, aliases: [x.org]", "")
                .held("y.org", "b"),
            "a/d Conflict, b/d wanted",
        ),
        (
            "also without a MailDomain",
            World::default().domain("a/d", 1, x, "").held("x.org", "b").held_mailbox("u@x.org", "b"),
            "a/d Conflict",
        ),
        (
            "the MailCluster's own is one of many",
            World::default().domain("mail/d", 1, x, "").held("x.org", "b"),
            "mail/d Conflict",
        ),
        (
            "and has what it had",
            World::default().domain("a/d", 1, x, "").domain("mail/d", 2, x, "").held("x.org", "mail"),
            "a/d Conflict, mail/d wanted",
        ),
        (
            "who is outside claims nothing",
            World::default().domain("c/d", 1, x, "").domain("b/d", 2, x, ""),
            "b/d wanted, c/d outside",
        ),
        (
            "but for what he has",
            World::default().domain("c/d", 2, x, "").domain("b/d", 1, x, "").held("x.org", "c"),
            "b/d Conflict, c/d outside",
        ),
        (
            "free again once it is deleted",
            World::default().domain("a/d", 1, x, DELETED).domain("b/d", 2, x, ""),
            "a/d released, b/d wanted",
        ),
        (
            "and once it is gone from the mailnodes",
            World::default().domain("a/d", 1, x, DELETED).domain("b/d", 2, x, "").held("x.org", "a"),
            "a/d leaving, b/d Conflict",
        ),
    ] {
        assert_eq!(world.told("a, b"), expected, "{what}");
    }
}

#[test]
fn who_loses_a_claim_learns_nothing_of_the_other_and_who_wins_learns_of_it() {
    let world = World::default().domain("secret/hidden", 1, "domain: x.org", "").domain(
        "b/d",
        2,
        "domain: x.org",
        "",
    );
    let plan = world.plan("'*'");
    let Verdict::Blocked(observed) = &plan.verdicts["b/d"] else { panic!("{plan:?}") };
    assert_eq!(observed.message, "domain x.org is taken; choose another, or ask who runs the MailCluster");
    assert_eq!(Vec::from_iter(&plan.contested), ["secret/hidden"]);
    let alone = World::default().domain("a/d", 1, "domain: x.org", "").domain("a/e", 2, "domain: x.org", "");
    assert!(alone.plan("a").contested.is_empty(), "within a namespace the one that loses says whose it is");
}

#[test]
fn addresses_are_for_the_namespace_that_has_the_domain() {
    let served = || World::default().domain("a/d", 1, "domain: x.org", "").held("x.org", "a");
    for (what, world, expected) in [
        ("its own", served().mailbox("a/m", 2, "address: m@x.org", ""), "a/d wanted, a/m wanted"),
        ("another's", served().mailbox("b/m", 0, "address: m@x.org", ""), "a/d wanted, b/m DomainNotFound"),
        (
            "the MailCluster's",
            served().mailbox("mail/m", 0, "address: m@x.org", ""),
            "a/d wanted, mail/m DomainNotFound",
        ),
        (
            "an older one does not keep it from whose it is",
            served().mailbox("b/m", 0, "address: m@x.org", "").mailbox("a/m", 9, "address: m@x.org", ""),
            "a/d wanted, a/m wanted, b/m DomainNotFound",
        ),
        (
            "an alias is an address",
            served()
                .domain("b/d", 1, "domain: y.org", "")
                .mailbox("b/m", 0, "address: m@y.org, aliases: [m@x.org]", "")
                .mailbox("a/m", 9, "address: m@x.org", ""),
            "a/d wanted, a/m wanted, b/d wanted, b/m DomainNotFound",
        ),
        (
            "lists as well",
            served().list("b/l", 0, "l@x.org", "").list("a/l", 1, "l@x.org", ""),
            "a/d wanted, a/l wanted, b/l DomainNotFound",
        ),
        (
            "a list is no mailbox",
            served().list("a/l", 0, "m@x.org", "").mailbox("a/m", 9, "address: m@x.org", ""),
            "a/d wanted, a/l Conflict, a/m wanted",
        ),
        (
            "one that is paused holds no more",
            served().mailbox("b/m", 0, "address: m@x.org", PAUSED).mailbox("a/m", 9, "address: m@x.org", ""),
            "a/d wanted, a/m wanted, b/m paused",
        ),
        (
            "the mail of a deleted mailbox is not another's",
            served().mailbox("a/m", 2, "address: m@x.org", "").kept("m@x.org", "b"),
            "a/d wanted, a/m Conflict",
        ),
        (
            "but comes back to whom it belongs",
            served().mailbox("a/m", 2, "address: m@x.org", "").kept("m@x.org", "a"),
            "a/d wanted, a/m wanted",
        ),
    ] {
        assert_eq!(world.told("a, b"), expected, "{what}");
    }
}

#[test]
fn objects_of_the_same_name_do_not_meet() {
    let world = World::default()
        .domain("a/d", 1, "domain: a.org", "")
        .domain("b/d", 1, "domain: b.org", "")
        .mailbox("a/m", 1, "address: m@a.org", "")
        .mailbox("b/m", 1, "address: m@b.org", "");
    let plan = world.plan("a, b");
    let owners: Vec<_> =
        plan.desired.mailboxes.values().map(|m| (m.address.as_str(), m.owner.to_string())).collect();
    assert_eq!(owners, [("m@a.org", "a".to_owned()), ("m@b.org", "b".to_owned())]);
}

#[test]
fn what_a_namespace_has_stays_as_it_is_when_it_is_taken_off() {
    let world = World::default()
        .domain("a/d", 1, "domain: x.org", "")
        .mailbox("a/m", 1, "address: m@x.org", "")
        .mailbox("a/new", 1, "address: new@x.org", "")
        .list("a/l", 1, "l@x.org", "")
        .held("x.org", "a")
        .held_mailbox("m@x.org", "a")
        .held_list("l@x.org", "a");
    let plan = world.plan("");
    assert!(plan.verdicts.values().all(|verdict| *verdict == Verdict::Outside), "{:?}", plan.verdicts);
    let key = FingerprintKey::derive("k");
    assert_eq!(diff(&plan.desired, &world.listing, &key, Orphans::RemoveEmptyDomains), []);
    // Not even a domain without mailboxes goes, which it does when nobody wants it.
    let empty = World::default().domain("a/d", 1, "domain: x.org", "").held("x.org", "a");
    assert_eq!(diff(&empty.plan("").desired, &empty.listing, &key, Orphans::RemoveEmptyDomains), []);
    let nobodys = World::default().held("x.org", "a");
    let steps = diff(&nobodys.plan("").desired, &nobodys.listing, &key, Orphans::RemoveEmptyDomains);
    assert_eq!(steps, [Step::DeleteDomain("x.org".to_owned())]);
}

#[test]
fn a_deleted_object_takes_away_what_is_its_own_and_nothing_else() {
    let purge = "address: m@x.org, deletionPolicy: Delete";
    let drop = "domain: x.org, deletionPolicy: Delete";
    let of_a = || World::default().held("x.org", "a").held_mailbox("m@x.org", "a").held_list("l@x.org", "a");
    for (what, world, expected) in [
        ("its own", of_a().mailbox("a/m", 1, purge, DELETED), "a/m leaving"),
        ("another's", of_a().mailbox("b/m", 1, purge, DELETED), "b/m released"),
        ("another's domain", of_a().domain("b/d", 1, drop, DELETED), "b/d released"),
        ("another's list", of_a().list("b/l", 1, "l@x.org", DELETED), "b/l released"),
        ("its own list", of_a().list("a/l", 1, "l@x.org", DELETED), "a/l leaving"),
        ("its own domain", of_a().domain("a/d", 1, drop, DELETED), "a/d leaving"),
        (
            "nobody's, in another's domain",
            of_a().mailbox("b/m", 1, "address: bulk@x.org", DELETED),
            "b/m released",
        ),
    ] {
        let mut world = world;
        world.listing.mailboxes.insert("bulk@x.org".to_owned(), MailboxEntry::default());
        assert_eq!(world.told("a, b"), expected, "{what}");
        let plan = world.plan("a, b");
        if !expected.starts_with("a/") {
            assert!(
                plan.desired.remove_mailboxes.is_empty() && plan.desired.remove_lists.is_empty(),
                "{what}"
            );
        }
        // A namespace that was taken off may still go.
        assert_eq!(world.told(""), expected, "{what}, taken off");
    }
    let stranger = World::default().mailbox("c/m", 1, "address: bulk@x.org", DELETED);
    let mut stranger = stranger.held("x.org", "a");
    stranger.listing.mailboxes.insert("bulk@x.org".to_owned(), MailboxEntry::default());
    assert_eq!(stranger.told("a"), "c/m released");
}

#[test]
fn a_domain_that_goes_with_its_mailboxes_keeps_their_mail_as_they_ask_and_not_as_others_do() {
    let world = World::default()
        .domain("a/d", 1, "domain: x.org, deletionPolicy: Delete", DELETED)
        .mailbox("a/m", 1, "address: m@x.org, gracePeriod: 1h", "")
        .mailbox("b/m", 0, "address: m@x.org, deletionPolicy: Delete", "")
        .held("x.org", "a")
        .held_mailbox("m@x.org", "a");
    assert_eq!(world.plan("a, b").desired.remove_mailboxes, [("m@x.org".to_owned(), 3600)].into());
}

#[test]
fn a_claim_that_waits_does_not_keep_the_domain_alive() {
    let world = World::default()
        .domain("b/d", 1, "domain: x.org", "")
        .domain("b/e", 1, "domain: x.org", PAUSED)
        .held("x.org", "a");
    let plan = world.plan("a, b");
    let steps =
        diff(&plan.desired, &world.listing, &FingerprintKey::derive("k"), Orphans::RemoveEmptyDomains);
    assert_eq!(steps, [Step::DeleteDomain("x.org".to_owned())]);
}

#[test]
fn a_cluster_that_does_not_exist_and_one_that_does_not_allow_it_say_the_same() {
    let named = ClusterRef { name: "main".to_owned(), namespace: Some("mail".to_owned()) };
    let told = |allowed: Option<&str>, namespace: &str| {
        admitted(allowed.map(cluster).map(Box::new), &named, namespace)
            .map(|_| ())
            .map_err(|observed| observed.message)
    };
    let missing = told(None, "a").unwrap_err();
    assert_eq!(
        missing,
        "there is no MailCluster mail/main that allows namespace a: have a added to its spec.allowedNamespaces, or correct clusterRef"
    );
    assert_eq!(told(Some(""), "a").unwrap_err(), missing);
    assert_eq!(told(Some("b"), "a").unwrap_err(), missing);
    for allowed in ["a", "b, a", "'*'"] {
        told(Some(allowed), "a").unwrap();
    }
}

#[test]
fn a_revision_says_whose_the_entry_is_and_that_of_the_clusters_own_namespace_is_as_it_was() {
    let own = Owner::default();
    let tenant = Owner(Some("team-a".to_owned()));
    assert_eq!((own.mark("r1-00"), tenant.mark("r1-00")), ("r1-00".to_owned(), "r1-00@team-a".to_owned()));
    assert_eq!(Owner::read("r1-00"), Some(own));
    assert_eq!(Owner::read("r1-00@team-a"), Some(tenant));
    assert_eq!((Owner::read(""), Owner::read("bulk")), (None, None));
}
