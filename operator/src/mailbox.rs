//! Mailbox: the Secret that the operator makes for it, and its status.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use quorumail_crds::{
    Mailbox, MailboxStatus,
    condition::{Observed, kind, merge, reason},
    mailbox::Usage,
};
use rand::Rng as _;

use crate::settings::FIELD_MANAGER;

/// Key of the address in a Secret that the operator makes.
pub const ADDRESS_KEY: &str = "address";
/// Key of the password in a Secret that the operator makes.
pub const PASSWORD_KEY: &str = "password";
/// Characters of a generated password: letters and digits that are not taken for one another.
const ALPHABET: &[u8] = b"abcdefghjkmnpqrstuvwxyzACDEFGHJKLMNPQRTUVWXY34679";
/// Length of a generated password: 24 characters of 49 are 134 bits.
const PASSWORD_LENGTH: usize = 24;

/// Name of the Secret that the operator makes where none is referred to.
pub fn credentials_name(mailbox: &Mailbox) -> String {
    format!("{}-credentials", mailbox.name_any())
}

/// A Secret with a new password.
pub fn credentials(mailbox: &Mailbox) -> Secret {
    let mut rng = rand::rng();
    let password: String =
        (0..PASSWORD_LENGTH).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    let entries =
        [(ADDRESS_KEY.to_owned(), mailbox.spec.address.clone()), (PASSWORD_KEY.to_owned(), password)];
    Secret {
        metadata: ObjectMeta {
            name: Some(credentials_name(mailbox)),
            namespace: mailbox.namespace(),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
                ("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned()),
            ])),
            owner_references: mailbox.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        string_data: Some(entries.into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// What the mailnodes told about a mailbox, where they were asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// Where its mail lives.
    pub partition: Option<u32>,
    /// What it uses.
    pub usage: Option<Usage>,
}

/// The status of a mailbox.
pub fn status(mailbox: &Mailbox, observed: &[Observed], facts: Facts, now: Timestamp) -> MailboxStatus {
    let old = mailbox.status.clone().unwrap_or_default();
    let usage = facts.usage.or(old.usage);
    let mut observed = observed.to_vec();
    observed.push(near_quota(mailbox, usage));
    MailboxStatus {
        observed_generation: mailbox.metadata.generation,
        conditions: merge(&old.conditions, &observed, mailbox.metadata.generation, now),
        usage,
        partition: facts.partition.or(old.partition),
        credentials_secret: mailbox.spec.password_secret_ref.is_none().then(|| credentials_name(mailbox)),
    }
}

fn near_quota(mailbox: &Mailbox, usage: Option<Usage>) -> Observed {
    let usage = usage.unwrap_or_default();
    let quota = mailbox.spec.quota.clone().unwrap_or_default();
    let limits = [
        ("storage", usage.bytes, quota.storage.map_or(0, |s| s.bytes())),
        ("messages", usage.messages, quota.messages.map_or(0, u64::from)),
    ];
    let near = |used: u64, limit: u64| limit > 0 && u128::from(used) * 10 > u128::from(limit) * 9;
    match limits.into_iter().find(|(_, used, limit)| near(*used, *limit)) {
        Some((what, ..)) => Observed::yes(
            kind::NEAR_QUOTA,
            reason::ABOVE_THRESHOLD,
            format!(
                "more than 90 % of quota.{what} are used; raise it, or mail will be refused when it is full"
            ),
        ),
        None => {
            Observed::no(kind::NEAR_QUOTA, reason::BELOW_THRESHOLD, "less than 90 % of the quota are used")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(spec: &str) -> Mailbox {
        let text = format!(
            "{{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {{name: a, uid: u}}, spec: {spec}}}"
        );
        serde_yaml::from_str(&text).unwrap()
    }

    #[test]
    fn generated_passwords_differ_and_belong_to_their_mailbox() {
        let mailbox = mailbox("{address: a@x.org}");
        let (first, second) = (credentials(&mailbox), credentials(&mailbox));
        let password = |s: &Secret| s.string_data.as_ref().unwrap()["password"].clone();
        assert_ne!(password(&first), password(&second));
        assert_eq!(password(&first).len(), PASSWORD_LENGTH);
        assert_eq!(first.metadata.owner_references.unwrap()[0].uid, "u");
    }

    #[test]
    fn near_quota_starts_above_nine_tenths() {
        let mailbox = mailbox("{address: a@x.org, quota: {storage: 1k, messages: 10}}");
        let near = |bytes, messages| near_quota(&mailbox, Some(Usage { bytes, messages })).status;
        assert_eq!((near(900, 9), near(901, 0), near(0, 10)), (Some(false), Some(true), Some(true)));
    }
}
