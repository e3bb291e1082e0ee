//! `quorumail restore`.

use std::path::PathBuf;

use clap::Args;
use jiff::{civil::DateTime, tz::TimeZone};
use quorumail_backup::{BackupId, Repository};
use quorumail_store::Timestamp;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
    progress::Bar,
    repository::FromArgs,
};
use crate::backup::restore::{
    self, RestoreError, RestoreProgress, RestoreRequest, Restored, Scope, Which,
    files::{Files, restore_to_files},
    of_one_cluster,
};

/// Brings mail back from a backup: all of it, a domain, a mailbox or a folder, into a mail service or into files. What is
/// there is never overwritten, and what was restored before is not restored a second time.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    from: FromArgs,
    /// Name of the backup [default: the newest].
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    /// As everything was at this instant, `2026-11-25T17:48:00Z` or in local time `2026-11-25 17:48`; needs an archive.
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    until: Option<Timestamp>,
    /// Cluster whose backups are meant, by name or uid; needed where the repository has those of several.
    #[arg(long, value_name = "CLUSTER")]
    of: Option<String>,
    #[command(flatten)]
    what: What,
    /// With --mailbox: this folder, with all below it.
    #[arg(long, conflicts_with_all = ["all", "domain"], value_name = "NAME")]
    folder: Option<String>,
    /// With --mailbox: restores into this mailbox.
    #[arg(long, conflicts_with_all = ["all", "domain"], value_name = "ADDRESS")]
    into: Option<String>,
    /// Restores under this folder [default with --mailbox: `Restored` with the backup's time].
    #[arg(long, value_name = "FOLDER")]
    prefix: Option<String>,
    /// With --mailbox: restores under the names and UIDs that everything had, for a mailbox or folder that is lost.
    #[arg(long, conflicts_with_all = ["all", "domain", "prefix"])]
    in_place: bool,
    /// Makes no domains and mailboxes that are missing.
    #[arg(long)]
    without_accounts: bool,
    /// With --all: leaves the queue out, of which entries come back held.
    #[arg(long)]
    without_queue: bool,
    /// Reads every message back and compares it.
    #[arg(long)]
    verify: bool,
    /// Writes a Maildir for each address into this directory; needs no mail service.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["to_mbox", "into", "in_place", "verify"])]
    to_maildir: Option<PathBuf>,
    /// Writes this mbox file with --folder, else an mbox file for each folder into this directory.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["into", "in_place", "verify"])]
    to_mbox: Option<PathBuf>,
    /// Directory for the backup's index while it is read [default: that of temporary files].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Everything: domains, mailboxes with their passwords, mail, the queue.
    #[arg(long)]
    all: bool,
    /// A domain with all its mailboxes.
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// A mailbox.
    #[arg(long, value_name = "ADDRESS")]
    mailbox: Option<String>,
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Repository(error) => error.into(),
            RestoreError::Request(_) => Self::Usage(error.to_string()),
            RestoreError::Ambiguous(_) => Self::Usage(format!("{error}; say --of")),
            other => Self::Failed(other.to_string()),
        }
    }
}

pub(super) async fn run(target: &Target, format: Format, args: &RestoreArgs) -> Result<(), Failure> {
    let config = args.from.config()?;
    let request = args.request(&config).await?;
    let bar = Bar::new();
    let show = |now: RestoreProgress| {
        let message = format!(
            "{}/{} mailboxes, {}/{} messages",
            now.mailboxes_done, now.mailboxes, now.messages, now.total_messages
        );
        bar.set(now.bytes, now.total_bytes, message);
    };
    let restored = match args.files() {
        Some(files) => restore_to_files(&config, &request, &files, &show).await,
        None => restore::restore(&target.connect().await?, &config, &request, &show).await,
    };
    bar.clear();
    let restored = restored?;
    output::print(format, &restored, text)?;
    match restored.problem_count {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} things could not be restored; see above"))),
    }
}

impl RestoreArgs {
    fn files(&self) -> Option<Files> {
        let maildir = self.to_maildir.clone().map(Files::Maildir);
        maildir.or_else(|| self.to_mbox.clone().map(Files::Mbox))
    }

    fn scope(&self) -> Scope {
        match (&self.what.mailbox, &self.folder, &self.what.domain) {
            (Some(mailbox), Some(folder), _) => {
                Scope::Folder { mailbox: mailbox.clone(), folder: folder.clone() }
            }
            (Some(mailbox), None, _) => Scope::Mailbox(mailbox.clone()),
            (None, _, Some(domain)) => Scope::Domain(domain.clone()),
            (None, _, None) => Scope::Cluster,
        }
    }

    async fn request(&self, config: &quorumail_backup::RepositoryConfig) -> Result<RestoreRequest, Failure> {
        let mut request = RestoreRequest {
            which: self.backup.as_ref().map_or(Which::Latest, |id| Which::Backup(id.to_string())),
            cluster: self.of.clone(),
            until: self.until,
            scope: self.scope(),
            into: self.into.clone(),
            prefix: self.prefix.clone(),
            accounts: !self.without_accounts,
            locked: false,
            queue: !self.without_queue,
            verify: self.verify,
            scratch: self.scratch.clone(),
        };
        let beside = self.what.mailbox.is_some() && !self.in_place && self.files().is_none();
        if beside && request.prefix.is_none() {
            // The same for the same backup, so that a restore that is run again goes on.
            let at = match (self.until, &self.backup) {
                (Some(until), _) => until,
                (None, Some(id)) => id.instant(),
                (None, None) => {
                    let listing = Repository::open(config.clone()).await?.list().await?;
                    let newest =
                        of_one_cluster(&listing.backups, self.of.as_deref())?.first().map(|info| &info.id);
                    let newest = newest.cloned().ok_or_else(|| RestoreError::NoBackup(String::new()))?;
                    request.which = Which::Backup(newest.to_string());
                    newest.instant()
                }
            };
            request.prefix = Some(default_prefix(at));
        }
        Ok(request)
    }
}

/// Folder under which a mailbox comes back.
fn default_prefix(at: Timestamp) -> String {
    let at = output::instant(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("Restored {}", at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M"))
}

/// RFC 3339, or a date and time of this machine's time zone.
fn instant(text: &str) -> Result<Timestamp, String> {
    let with_zone = text.parse::<jiff::Timestamp>().ok();
    let local = || {
        let local: DateTime = text.parse().ok()?;
        Some(local.to_zoned(TimeZone::system()).ok()?.timestamp())
    };
    let found = with_zone.or_else(local);
    let found =
        found.ok_or_else(|| format!("{text:?} is no instant: write 2026-11-25T17:48:00Z, or local time"))?;
    Ok(Timestamp(found.as_millisecond()))
}

fn text(restored: &Restored) -> String {
    let mut text = format!(
        "from backup {}: {} messages ({}) in {} folders of {} mailboxes",
        restored.backup,
        restored.messages,
        output::bytes(restored.bytes),
        restored.folders,
        restored.mailboxes,
    );
    for (count, what) in [
        (restored.already_there, "messages were there already"),
        (restored.domains, "domains made"),
        (restored.accounts, "mailboxes made"),
        (restored.lists, "mailing lists made"),
        (restored.remembered, "addresses of lists remembered"),
        (restored.posts, "messages to lists held"),
        (restored.queued, "queue entries held"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    if let Some(verified) = restored.verified {
        text += &format!(", {verified} read back and equal");
    }
    text += &format!("; {:.1} s\n", restored.seconds);
    for problem in &restored.problems {
        text += &format!("{problem}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_with_and_without_a_zone() {
        assert_eq!(instant("1970-01-01T00:00:05Z"), Ok(Timestamp(5000)));
        assert!(instant("2026-11-25 17:48").is_ok() && instant("2026-11-25T17:48:00+01:00").is_ok());
        assert!(instant("yesterday").unwrap_err().contains("2026-11-25T17:48:00Z"));
    }

    #[test]
    fn the_folder_of_a_restore_is_the_same_each_time() {
        assert_eq!(default_prefix(Timestamp(1_600_000_000_000)), "Restored 2020-09-13 12:26");
    }
}
