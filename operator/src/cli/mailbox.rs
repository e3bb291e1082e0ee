//! `quorumail mailbox`.
//!
//! The resource is the truth about a mailbox. So `passwd` and `suspend` change resources, never the mailnodes: the
//! operator would put back what it finds different.

use std::io::{self, BufRead as _, IsTerminal as _};

use clap::Subcommand;
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    core::DeserializeGuard,
};
use quorumail_crds::Mailbox;
use serde::Serialize;
use serde_json::json;

use super::{
    Failure,
    connect::{Kubernetes, Target},
    deleted, export, import,
    output::{self, Format},
};
use crate::{dev::state, directory::Credential};

/// Addresses asked about in one call.
const USAGE_BATCH: usize = 1_000;
/// Key of the password in a Secret that the operator made.
const PASSWORD_KEY: &str = "password";

#[derive(Debug, Subcommand)]
pub(super) enum MailboxCommand {
    /// Shows what mailboxes use.
    Usage {
        /// Addresses; without any, all mailboxes.
        addresses: Vec<String>,
    },
    /// Sets a new password in the mailbox's Secret: read from standard input, or made and printed.
    Passwd {
        /// Address of the mailbox.
        address: String,
        /// Reads the password, or its hash, from standard input.
        #[arg(long)]
        stdin: bool,
    },
    /// Stops a mailbox from logging in and sending; it keeps receiving.
    Suspend {
        /// Address of the mailbox.
        address: String,
        /// Lets it log in and send again.
        #[arg(long)]
        undo: bool,
    },
    /// Writes a mailbox into files: to move out, or to keep a copy.
    Export(export::ExportArgs),
    /// Takes mail in from a Maildir, mbox files or a mailbox of another server. May be repeated: only what is new is added.
    Import(Box<import::ImportArgs>),
    /// Shows deleted messages of a mailbox that can be brought back or, without an address, deleted mailboxes.
    Deleted(deleted::DeletedArgs),
    /// Brings deleted messages of a mailbox back: the same messages, under new UIDs, where they were.
    Undelete(deleted::UndeleteArgs),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    address: String,
    bytes: u64,
    messages: u64,
    partition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_login: Option<Timestamp>,
}

pub(super) async fn run(target: &Target, format: Format, command: &MailboxCommand) -> Result<(), Failure> {
    match command {
        MailboxCommand::Export(args) => export::run(target, format, args).await,
        MailboxCommand::Import(args) => import::run(target, format, args).await,
        MailboxCommand::Deleted(args) => deleted::list(target, format, args).await,
        MailboxCommand::Undelete(args) => deleted::undelete(target, format, args).await,
        MailboxCommand::Usage { addresses } => usage(target, format, addresses).await,
        MailboxCommand::Passwd { address, stdin } => passwd(target, &address.to_lowercase(), *stdin).await,
        MailboxCommand::Suspend { address, undo } => suspend(target, &address.to_lowercase(), !undo).await,
    }
}

async fn usage(target: &Target, format: Format, addresses: &[String]) -> Result<(), Failure> {
    let client = target.connect().await?;
    let wanted: Vec<String> = match addresses {
        [] => client.list_directory().await?.mailboxes.into_keys().collect(),
        some => some.iter().map(|address| address.to_lowercase()).collect(),
    };
    let mut found = Vec::new();
    for batch in wanted.chunks(USAGE_BATCH) {
        found.extend(client.usage(batch.to_vec()).await?.into_iter().map(|usage| Usage {
            address: usage.address,
            bytes: usage.bytes,
            messages: usage.messages,
            partition: usage.partition,
            last_login: output::instant(usage.last_login.saturating_mul(1_000)),
        }));
    }
    found.sort_by(|a, b| a.address.cmp(&b.address));
    output::print(format, &found, |found| usage_table(found, Timestamp::now()))?;
    let known = |address: &&String| found.iter().any(|usage| usage.address == **address);
    match wanted.iter().find(|address| !known(address)) {
        Some(unknown) if !addresses.is_empty() => {
            Err(Failure::Failed(format!("there is no mailbox {unknown}")))
        }
        _ => Ok(()),
    }
}

fn usage_table(found: &[Usage], now: Timestamp) -> String {
    let rows = found.iter().map(|usage| {
        let login =
            usage.last_login.map(|at| format!("{} ago", output::span(now.duration_since(at).as_secs())));
        [
            usage.address.clone(),
            output::bytes(usage.bytes),
            usage.messages.to_string(),
            usage.partition.to_string(),
            login.unwrap_or_else(|| "-".to_owned()),
        ]
    });
    output::table(["ADDRESS", "SIZE", "MESSAGES", "PARTITION", "LAST LOGIN"], rows)
}

async fn passwd(target: &Target, address: &str, stdin: bool) -> Result<(), Failure> {
    if target.tls_dir.is_some() {
        return Err(Failure::Usage(
            "a password is part of a resource: leave --admin out, or say --dev".to_owned(),
        ));
    }
    let password = if stdin { read_password()? } else { state::new_password() };
    Credential::from_secret(password.as_bytes())
        .map_err(|error| Failure::Usage(format!("the password {error}")))?;
    let place = match &target.dev {
        Some(dir) => passwd_in_dev(dir, address, &password)?,
        None => passwd_in_kubernetes(&target.kubernetes().await?, address, &password).await?,
    };
    eprintln!("{address}: new password in {place}; it takes effect within seconds");
    if stdin { Ok(()) } else { output::line(&password) }
}

fn read_password() -> Result<String, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        eprintln!("password (it is shown while you type):");
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).map_err(|error| Failure::Failed(format!("failed to read: {error}")))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn passwd_in_dev(dir: &std::path::Path, address: &str, password: &str) -> Result<String, Failure> {
    let failed = |error: state::StateError| Failure::Failed(error.to_string());
    let mut credentials = state::credentials(dir).map_err(failed)?;
    let Some(kept) = credentials.get_mut(address) else {
        return Err(Failure::Failed(format!(
            "no password was made for {address}; where it has a passwordSecretRef, change the Secret in its file"
        )));
    };
    password.clone_into(kept);
    state::save_credentials(dir, &credentials).map_err(failed)?;
    Ok(dir.join(state::CREDENTIALS).display().to_string())
}

async fn passwd_in_kubernetes(
    kubernetes: &Kubernetes,
    address: &str,
    password: &str,
) -> Result<String, Failure> {
    let mailbox = kubernetes.mailbox(address).await?;
    let (name, key) = match (&mailbox.spec.password_secret_ref, &mailbox.status) {
        (Some(reference), _) => (reference.name.clone(), reference.key.clone()),
        (None, Some(status)) if status.credentials_secret.is_some() => {
            (status.credentials_secret.clone().unwrap_or_default(), PASSWORD_KEY.to_owned())
        }
        (None, _) => {
            let what = "has no Secret yet; wait until the operator has made it";
            return Err(Failure::Failed(format!("Mailbox {} {what}", mailbox.name_any())));
        }
    };
    let secrets: Api<Secret> = Api::namespaced(kubernetes.client.clone(), &kubernetes.namespace);
    let data = json!({ "data": { key: ByteString(password.as_bytes().to_vec()) } });
    secrets.patch(&name, &PatchParams::default(), &Patch::Merge(data)).await?;
    Ok(format!("Secret {name}"))
}

async fn suspend(target: &Target, address: &str, suspended: bool) -> Result<(), Failure> {
    if let Some(dir) = &target.dev {
        let what = format!("set `suspended: {suspended}` in the spec of {address} in its file");
        return Err(Failure::Usage(format!("{}: the files are the truth here; {what}", dir.display())));
    }
    if target.tls_dir.is_some() {
        return Err(Failure::Usage("suspension is part of a resource: leave --admin out".to_owned()));
    }
    let kubernetes = target.kubernetes().await?;
    let name = kubernetes.mailbox(address).await?.name_any();
    let api: Api<Mailbox> = Api::namespaced(kubernetes.client.clone(), &kubernetes.namespace);
    let patch = Patch::Merge(json!({ "spec": { "suspended": suspended } }));
    api.patch(&name, &PatchParams::default(), &patch).await?;
    let state = if suspended { "suspended" } else { "no longer suspended" };
    output::line(&format!("{address} is {state}"))
}

impl Kubernetes {
    /// The resource of an address.
    async fn mailbox(&self, address: &str) -> Result<Mailbox, Failure> {
        let api: Api<DeserializeGuard<Mailbox>> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut all =
            api.list(&ListParams::default()).await?.items.into_iter().filter_map(|found| found.0.ok());
        let ours = |mailbox: &Mailbox| {
            mailbox.spec.address.eq_ignore_ascii_case(address)
                && mailbox
                    .spec
                    .cluster_ref
                    .as_ref()
                    .is_none_or(|cluster| cluster.means(&self.namespace, &self.namespace, &self.cluster))
        };
        all.find(ours).ok_or_else(|| {
            Failure::Failed(format!("namespace {} has no Mailbox with address {address}", self.namespace))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_password_can_be_changed_in_dev_and_one_from_a_secret_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let made = [("bob@example.org".to_owned(), "old".to_owned())].into();
        state::save_credentials(dir.path(), &made).unwrap();
        passwd_in_dev(dir.path(), "bob@example.org", "new").unwrap();
        assert_eq!(state::credentials(dir.path()).unwrap()["bob@example.org"], "new");
        let error = passwd_in_dev(dir.path(), "alice@example.org", "new").unwrap_err().to_string();
        assert!(error.contains("change the Secret in its file"), "{error}");
    }

    #[test]
    fn usage_is_shown_for_people() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let last_login = Timestamp::from_second(999_990).ok();
        let usage =
            Usage { address: "a@example.org".into(), bytes: 1536, messages: 2, partition: 7, last_login };
        let text = usage_table(&[usage], now);
        assert!(text.contains("1.5 KiB") && text.contains("10s ago"), "{text}");
    }
}
