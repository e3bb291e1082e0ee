use super::*;

fn key() -> FingerprintKey {
    FingerprintKey::derive("a private key")
}

fn domain(name: &str) -> DesiredDomain {
    DesiredDomain {
        owner: Owner::default(),
        domain: name.into(),
        aliases: vec![],
        catch_all: None,
        keys: vec![],
        sts: None,
    }
}

fn mailbox(address: &str, password: &str) -> DesiredMailbox {
    let spec = format!("{{address: {address}}}");
    let spec: MailboxSpec = serde_yaml::from_str(&spec).unwrap();
    DesiredMailbox::new(&spec, Owner::default(), Credential::from_secret(password.as_bytes()).unwrap())
}

fn desired(domains: &[&str], mailboxes: &[&str]) -> Desired {
    Desired {
        domains: domains.iter().map(|d| ((*d).to_owned(), domain(d))).collect(),
        mailboxes: mailboxes.iter().map(|m| ((*m).to_owned(), mailbox(m, "secret"))).collect(),
        ..Desired::default()
    }
}

/// What the mailnodes would list after `desired` was put.
fn listing(desired: &Desired) -> Listing {
    let entry = |d: &DesiredDomain| admin::DomainEntry {
        domain: d.domain.clone(),
        revision: key().domain(d),
        mailboxes: 0,
    };
    let boxed = |m: &DesiredMailbox| admin::MailboxEntry {
        address: m.address.clone(),
        revision: key().mailbox(m),
        partition: 1,
    };
    Listing {
        domains: desired.domains.iter().map(|(n, d)| (n.clone(), entry(d))).collect(),
        mailboxes: desired.mailboxes.iter().map(|(n, m)| (n.clone(), boxed(m))).collect(),
        ..Listing::default()
    }
}

fn kept(desired: &Desired, listing: &Listing) -> Vec<Step> {
    diff(desired, listing, &key(), Orphans::RemoveEmptyDomains)
}

fn subjects(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|s| s.subject().to_owned()).collect()
}

#[test]
fn domains_are_put_before_their_mailboxes() {
    let steps = kept(&desired(&["x.org"], &["a@x.org", "b@x.org"]), &Listing::default());
    assert_eq!(subjects(&steps), ["x.org", "a@x.org", "b@x.org"]);
}

#[test]
fn what_is_there_already_is_not_said_again() {
    let wanted = desired(&["x.org"], &["a@x.org"]);
    assert!(kept(&wanted, &listing(&wanted)).is_empty());
}

#[test]
fn a_changed_password_is_put_again() {
    let mut wanted = desired(&["x.org"], &["a@x.org", "b@x.org"]);
    let before = listing(&wanted);
    wanted.mailboxes.insert("b@x.org".into(), mailbox("b@x.org", "another"));
    assert_eq!(subjects(&kept(&wanted, &before)), ["b@x.org"]);
}

#[test]
fn removals_come_first_and_domains_after_their_mailboxes() {
    let before = listing(&desired(&["old.org"], &["a@old.org"]));
    let mut wanted = desired(&["x.org"], &[]);
    wanted.remove_mailboxes.insert("a@old.org".into(), 60);
    wanted.remove_mailboxes.insert("never@old.org".into(), 60);
    wanted.remove_domains.insert("old.org".into());
    let steps = kept(&wanted, &before);
    assert_eq!(subjects(&steps), ["a@old.org", "old.org", "x.org"]);
    assert_eq!(steps[0], Step::DeleteMailbox { address: "a@old.org".into(), keep_seconds: 60 });
}

#[test]
fn mailboxes_of_probes_are_nobodys_and_go_with_their_domain() {
    let mut before = listing(&desired(&["x.org", "old.org"], &["a@x.org"]));
    before.probes.extend(["quorumail-probe-1@old.org".to_owned(), "quorumail-probe-2@x.org".to_owned()]);
    let mut wanted = desired(&["x.org"], &["a@x.org"]);
    wanted.remove_domains.insert("old.org".into());
    assert_eq!(subjects(&kept(&wanted, &before)), ["quorumail-probe-1@old.org", "old.org"]);
}

#[test]
fn the_hash_of_a_drawn_password_is_one_that_is_checked_quickly() {
    use argon2::password_hash::{PasswordHash, PasswordVerifier as _};
    let hash = hash_of_random("0123456789abcdef").unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
    Argon2::default().verify_password(b"0123456789abcdef", &PasswordHash::new(&hash).unwrap()).unwrap();
}

#[test]
fn a_missing_resource_alone_takes_no_mailbox_away() {
    let before = listing(&desired(&["x.org", "empty.org"], &["a@x.org"]));
    assert_eq!(kept(&Desired::default(), &before), [Step::DeleteDomain("empty.org".into())]);
    let left = Desired { leave_domains: ["empty.org".to_owned()].into(), ..Desired::default() };
    assert!(kept(&left, &before).is_empty());
}

#[test]
fn entries_put_by_others_are_left_alone() {
    let mut before = listing(&desired(&["x.org", "y.org"], &["a@x.org"]));
    before.domains.values_mut().for_each(|d| d.revision = "bulk-1".into());
    before.mailboxes.values_mut().for_each(|m| m.revision = "bulk-2".into());
    assert!(diff(&Desired::default(), &before, &key(), Orphans::RemoveAll { keep_seconds: 0 }).is_empty());
}

#[test]
fn dev_removes_what_its_files_no_longer_name() {
    let before = listing(&desired(&["x.org"], &["a@x.org"]));
    let steps = diff(&Desired::default(), &before, &key(), Orphans::RemoveAll { keep_seconds: 9 });
    let gone = Step::DeleteMailbox { address: "a@x.org".into(), keep_seconds: 9 };
    assert_eq!(steps, [gone, Step::DeleteDomain("x.org".into())]);
}

#[test]
fn fingerprints_and_debug_output_never_contain_secrets() {
    let mailbox = mailbox("a@x.org", "correct horse");
    let plain = blake3::hash(b"correct horse").to_hex().to_string();
    for text in [key().mailbox(&mailbox), format!("{mailbox:?}"), format!("{:?}", key())] {
        assert!(!text.contains("correct horse") && !text.contains(plain.as_str()), "{text}");
    }
    let other = FingerprintKey::derive("another private key");
    assert_ne!(
        key().mailbox(&mailbox),
        other.mailbox(&mailbox),
        "a revision cannot be computed without the key"
    );
}

#[test]
fn a_password_is_hashed_with_argon2id_and_a_fresh_salt() {
    use argon2::password_hash::{PasswordHash, PasswordVerifier as _};
    let step = Step::PutMailbox(Box::new(mailbox("a@x.org", "correct horse\n")));
    let hash = || match step.to_change(&key()).unwrap().change {
        Some(Change::PutMailbox(m)) => m.password_hash,
        other => panic!("{other:?}"),
    };
    let (first, second) = (hash(), hash());
    assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
    assert_ne!(first, second);
    Argon2::default().verify_password(b"correct horse", &PasswordHash::new(&first).unwrap()).unwrap();
}

#[test]
fn hashes_in_known_formats_are_passed_on() {
    let bcrypt = format!("$2b$12${}", "a".repeat(53));
    for hash in ["$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "$6$salt$hash", bcrypt.as_str()] {
        assert_eq!(Credential::from_secret(hash.as_bytes()), Ok(Credential::Hash(Hidden(hash.to_owned()))));
    }
    for password in ["$6", "$2b$short", "$100 bill", "{plain}"] {
        assert!(
            matches!(Credential::from_secret(password.as_bytes()), Ok(Credential::Password(_))),
            "{password}"
        );
    }
}

#[test]
fn values_that_are_no_password_are_refused() {
    assert_eq!(Credential::from_secret(b"\n"), Err(CredentialError::Empty));
    assert_eq!(Credential::from_secret(&[0xff]), Err(CredentialError::NotText));
    assert_eq!(Credential::from_secret(b"a\0b"), Err(CredentialError::NotText));
    assert_eq!(Credential::from_secret(&[b'a'; MAX_CREDENTIAL + 1]), Err(CredentialError::TooLong));
}
