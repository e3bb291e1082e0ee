use std::fs;

use quorumail_proto::admin::{DomainEntry, MailboxEntry};

use super::*;

const DOMAIN: &str = "{apiVersion: quorumail.io/v1alpha1, kind: MailDomain, metadata: {name: d}, spec: {domain: example.org}}\n---\n";

fn mailbox(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {{name: {name}}}, \
         spec: {{address: {name}@example.org{more}}}}}\n---\n"
    )
}

fn load(text: &str) -> Resources {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.yaml");
    fs::write(&file, text).unwrap();
    Resources::load(&[file])
}

fn applier(dir: &Path) -> Applier {
    Applier::new(
        AdminClient::new(&[], "", &crate::pki::CertifiedPem { cert: String::new(), key: String::new() })
            .unwrap(),
        FingerprintKey::derive("k"),
        dir,
        "localhost".to_owned(),
    )
}

/// What the mailnodes list after `steps`.
fn listed(applier: &Applier, steps: &[Step]) -> Listing {
    let mut listing = Listing::default();
    for step in steps {
        match step {
            Step::PutDomain(d) => {
                let entry =
                    DomainEntry { domain: d.domain.clone(), revision: applier.key.domain(d), mailboxes: 0 };
                listing.domains.insert(d.domain.clone(), entry);
            }
            Step::PutMailbox(m) => {
                let entry = MailboxEntry {
                    address: m.address.clone(),
                    revision: applier.key.mailbox(m),
                    partition: 1,
                };
                listing.mailboxes.insert(m.address.clone(), entry);
            }
            Step::DeleteMailbox { address, .. } => drop(listing.mailboxes.remove(address)),
            Step::DeleteDomain(domain) => drop(listing.domains.remove(domain)),
            Step::PutList(_) | Step::DeleteList(_) => unreachable!("there are no lists here"),
        }
    }
    listing
}

fn steps(applier: &Applier, resources: &Resources, listing: &Listing) -> (Vec<Step>, Vec<String>) {
    let mut outcome = Outcome { problems: resources.problems.clone(), ..Outcome::default() };
    let credentials = applier.credentials(resources, &mut outcome).unwrap();
    let steps = applier.steps(
        resources,
        &credentials,
        &keys_of(&applier.dir, &applier.hostname, &resources.domains).unwrap(),
        listing,
        &mut outcome.problems,
    );
    (steps, outcome.problems)
}

fn subjects(steps: &[Step]) -> Vec<&str> {
    steps.iter().map(Step::subject).collect()
}

#[test]
fn what_is_applied_needs_no_second_word() {
    let dir = tempfile::tempdir().unwrap();
    let applier = applier(dir.path());
    let resources = load(&(DOMAIN.to_owned() + &mailbox("alice", "") + &mailbox("bob", "")));
    let (first, problems) = steps(&applier, &resources, &Listing::default());
    assert_eq!(subjects(&first), ["example.org", "alice@example.org", "bob@example.org"]);
    assert_eq!(problems, Vec::<String>::new());
    let (second, _) = steps(&applier, &resources, &listed(&applier, &first));
    assert_eq!(second, []);
}

#[test]
fn a_password_is_made_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let applier = applier(dir.path());
    let resources = load(&(DOMAIN.to_owned() + &mailbox("bob", "")));
    let mut outcome = Outcome::default();
    applier.credentials(&resources, &mut outcome).unwrap();
    let (address, password) = outcome.new_passwords.pop().unwrap();
    assert_eq!(address, "bob@example.org");
    assert_eq!(state::credentials(dir.path()).unwrap()[&address], password);
    let mut again = Outcome::default();
    applier.credentials(&resources, &mut again).unwrap();
    assert_eq!(again.new_passwords, []);
}

#[test]
fn a_changed_secret_is_a_change_of_the_mailbox() {
    let dir = tempfile::tempdir().unwrap();
    let applier = applier(dir.path());
    let alice = mailbox("alice", ", passwordSecretRef: {name: people, key: alice}");
    let with = |password: &str| {
        let secret = format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: people}}, stringData: {{alice: {password}}}}}"
        );
        load(&(DOMAIN.to_owned() + &alice + &secret))
    };
    let (first, _) = steps(&applier, &with("one"), &Listing::default());
    let listing = listed(&applier, &first);
    assert_eq!(steps(&applier, &with("one"), &listing).0, []);
    assert_eq!(subjects(&steps(&applier, &with("two"), &listing).0), ["alice@example.org"]);
}

#[test]
fn what_is_in_no_file_any_more_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut applier = applier(dir.path());
    let both =
        load(&(DOMAIN.to_owned() + &mailbox("alice", "") + &mailbox("bob", ", deletionPolicy: Delete")));
    let (first, _) = steps(&applier, &both, &Listing::default());
    let listing = listed(&applier, &first);
    for mailbox in &both.mailboxes {
        applier.keep.insert(mailbox.spec.address.clone(), keep_seconds(mailbox));
    }
    let (one, _) = steps(&applier, &load(&(DOMAIN.to_owned() + &mailbox("alice", ""))), &listing);
    assert_eq!(one, [Step::DeleteMailbox { address: "bob@example.org".into(), keep_seconds: 0 }]);
    let (all, _) = steps(&applier, &load(""), &listing);
    assert_eq!(subjects(&all), ["alice@example.org", "bob@example.org", "example.org"]);
}

#[test]
fn nothing_goes_while_a_file_is_wrong_or_a_secret_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let applier = applier(dir.path());
    let (first, _) = steps(
        &applier,
        &load(&(DOMAIN.to_owned() + &mailbox("alice", "") + &mailbox("bob", ""))),
        &Listing::default(),
    );
    let listing = listed(&applier, &first);

    let (torn, problems) = steps(&applier, &load(&(DOMAIN.to_owned() + "{kind: [")), &listing);
    assert_eq!(torn, []);
    assert_eq!(problems.len(), 1);

    let blocked = mailbox("alice", ", passwordSecretRef: {name: people, key: alice}");
    let (none, problems) = steps(&applier, &load(&(blocked + &mailbox("bob", ""))), &listing);
    assert_eq!(none, [], "the domain is in no file, but its mailboxes are");
    assert!(problems[0].contains("Mailbox alice: Secret people does not exist"), "{problems:?}");
}

#[test]
fn of_two_that_claim_an_address_the_first_written_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let applier = applier(dir.path());
    let text = DOMAIN.to_owned() + &mailbox("zoe", "") + &mailbox("adam", ", aliases: [zoe@example.org]");
    let (steps, problems) = steps(&applier, &load(&text), &Listing::default());
    assert_eq!(subjects(&steps), ["example.org", "zoe@example.org"]);
    assert!(
        problems[0].contains("Mailbox adam: address zoe@example.org belongs to Mailbox zoe"),
        "{problems:?}"
    );
}

#[test]
fn an_address_of_an_unknown_domain_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let applier = applier(dir.path());
    let (steps, problems) = steps(&applier, &load(&mailbox("alice", "")), &Listing::default());
    assert_eq!(steps, []);
    assert!(problems[0].contains("Mailbox alice: domain example.org is not served"), "{problems:?}");
}
