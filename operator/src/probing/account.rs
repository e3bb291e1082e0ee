//! The mailboxes that probes send to: one of a domain at a time, made by whoever probes, for an hour, seen by nobody else.
//!
//! Each has an address that cannot be guessed, so that it is never one of a person, and goes with all that was ever in it:
//! deleted mail is not kept. What a probe leaves behind that was ended in the middle is known by its revision, and removed.

use std::time::Duration;

use quorumail_message::Address;
use quorumail_proto::admin::{
    DeleteMailbox, DirectoryChange, Mailbox, MailboxEntry, directory_change::Change, directory_result::Code,
};

use crate::{
    admin::{AdminClient, AdminError},
    directory::hash_of_random,
};

/// What the addresses of probes begin with.
const LOCAL_PART: &str = "quorumail-probe-";
/// Revision by which the mailboxes of probes are told from those of resources and of people.
const REVISION: &str = "probe";
/// Times that the mailbox is put while no majority takes it, and the pause between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// A mailbox for probes.
pub struct Account {
    /// Also the name to log in with.
    pub address: Address,
    /// Random; kept nowhere.
    pub password: String,
}

/// Why there is no mailbox.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The mailnodes could not be asked.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// They did not take it.
    #[error("a mailbox for the probe was not taken: {0}")]
    Refused(String),
    /// The domain has no address of this form.
    #[error("{0} is no address")]
    Address(String),
    /// The hash of the password.
    #[error("failed to hash a password: {0}")]
    Hash(argon2::Error),
}

/// Whether an entry of the directory is the mailbox of a probe.
pub fn is_probe(entry: &MailboxEntry) -> bool {
    entry.revision == REVISION && entry.address.starts_with(LOCAL_PART)
}

/// Makes a mailbox in `domain`, and removes the one before.
pub async fn make(
    admin: &AdminClient,
    domain: &str,
    before: Option<&Account>,
) -> Result<Account, AccountError> {
    let text = format!("{LOCAL_PART}{:016x}@{domain}", rand::random::<u64>());
    let address: Address = text.parse().map_err(|_| AccountError::Address(text.clone()))?;
    let password = format!("{:032x}", rand::random::<u128>());
    let mailbox = Mailbox {
        address: text,
        password_hash: hash_of_random(&password).map_err(AccountError::Hash)?,
        may_send: true,
        may_receive: true,
        may_login: true,
        revision: REVISION.to_owned(),
        ..Mailbox::default()
    };
    let removal = before.map(|account| removal(&account.address));
    let put = DirectoryChange { change: Some(Change::PutMailbox(mailbox)) };
    apply(admin, removal.into_iter().chain([put]).collect()).await?;
    Ok(Account { address, password })
}

/// Removes a mailbox, and what is in it.
pub async fn remove(admin: &AdminClient, account: &Account) -> Result<(), AccountError> {
    apply(admin, vec![removal(&account.address)]).await
}

fn removal(address: &Address) -> DirectoryChange {
    let delete = DeleteMailbox { address: address.to_string(), keep_seconds: 0 };
    DirectoryChange { change: Some(Change::DeleteMailbox(delete)) }
}

async fn apply(admin: &AdminClient, changes: Vec<DirectoryChange>) -> Result<(), AccountError> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let results = admin.apply_directory(changes.clone()).await?;
        let Some(refused) = results.into_iter().find(|result| result.code() != Code::Ok) else {
            return Ok(());
        };
        let is_over = refused.code() != Code::Unavailable;
        last = refused.message;
        if is_over {
            break;
        }
    }
    Err(AccountError::Refused(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_probe_made_is_a_mailbox_of_a_probe() {
        let entry = |address: &str, revision: &str| MailboxEntry {
            address: address.to_owned(),
            revision: revision.to_owned(),
            ..MailboxEntry::default()
        };
        assert!(is_probe(&entry("quorumail-probe-00aa@example.org", "probe")));
        // A person's, whatever it is called.
        assert!(!is_probe(&entry("quorumail-probe-00aa@example.org", "r1-abc")));
        assert!(!is_probe(&entry("alice@example.org", "probe")));
    }
}
