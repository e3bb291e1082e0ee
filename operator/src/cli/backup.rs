//! `quorumail backup`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::tz::TimeZone;
use quorumail_backup::{
    BackupId, BackupInfo, Depth, Findings, Manifest, PRUNE_GRACE, Repository, RepositoryError, Trigger,
    Which, retention::Retention,
};
use serde::Serialize;

use super::{
    Failure,
    archive::{self, ArchiveCommand},
    connect::Target,
    manifest,
    output::{self, Format},
    progress::Bar,
    repository::{FromArgs, ToArgs, new_key, read_key},
};
use crate::backup::{
    TakeError, TakeOptions, TakeProgress, Taken,
    plan::PER_NODE,
    resources::{self, Found},
    restore::of_one_cluster,
    take,
};

/// Backups, and the repositories that hold them.
#[derive(Debug, Subcommand)]
pub(super) enum BackupCommand {
    /// Backs the mail service up, now.
    Now(NowArgs),
    /// Shows the backups of a repository, newest first.
    List {
        #[command(flatten)]
        from: FromArgs,
    },
    /// Shows one backup, group by group, or the Kubernetes resources in it.
    Show(ShowArgs),
    /// Reads a repository and finds what is damaged or missing in it.
    Verify(VerifyArgs),
    /// Removes backups that are not to be kept, and what only they needed.
    Prune(PruneArgs),
    /// Ships what happens between backups, so that any instant can be restored.
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Makes the key of a repository, and changes it.
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Debug, Args)]
pub(super) struct NowArgs {
    #[command(flatten)]
    to: ToArgs,
    /// Name under which the cluster is shown in lists.
    #[arg(long, default_value = "")]
    name: String,
    /// Seconds after which the run is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 21_600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    deadline: u64,
    /// Groups that are backed up at a time; a mailnode makes two at most.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    at_once: u16,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Name of the backup.
    id: BackupId,
    /// Prints the Kubernetes resources in it, for `kubectl apply -f -`: as YAML, or with -o json as a List. With --namespace
    /// they go there instead of where they were.
    #[arg(long)]
    resources: bool,
    /// Secrets too, as they are: whoever sees them knows the passwords.
    #[arg(long, requires = "resources")]
    with_secrets: bool,
    #[command(flatten)]
    from: FromArgs,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Name of a backup [default: all of them].
    id: Option<BackupId>,
    /// How much is read.
    #[arg(long, value_enum, default_value_t = HowDeep::Full)]
    depth: HowDeep,
    /// Of 100 pieces of mail, so many are read with --depth sample.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: u8,
    #[command(flatten)]
    from: FromArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum HowDeep {
    /// Manifests, lists and state: that everything is there.
    Structure,
    /// The same, and a share of the mail.
    Sample,
    /// Everything.
    Full,
}

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Keeps so many of the newest backups.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_last: u32,
    /// Keeps the last one of so many days.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_daily: u32,
    /// Keeps the last one of so many weeks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_weekly: u32,
    /// Keeps the last one of so many months.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_monthly: u32,
    /// Keeps the last one of so many years.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_yearly: u32,
    /// Where days begin.
    #[arg(long, value_name = "NAME", default_value = "UTC")]
    time_zone: String,
    /// Cluster whose backups are meant, by name or uid; needed where there are several.
    #[arg(long, value_name = "CLUSTER")]
    of: Option<String>,
    /// Shows what would go, and removes nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    from: FromArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Makes a key: into a file, or onto standard output.
    New {
        /// File to write, which must not exist.
        file: Option<PathBuf>,
    },
    /// Shows the keys that open a repository.
    List {
        #[command(flatten)]
        from: FromArgs,
    },
    /// Lets another key open a repository as well.
    Add {
        /// File with the other key.
        file: PathBuf,
        #[command(flatten)]
        from: FromArgs,
    },
    /// Lets a key open a repository no longer.
    Remove {
        /// Its id, as `list` shows it.
        id: String,
        #[command(flatten)]
        from: FromArgs,
    },
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::BadConfiguration(_) => Self::Usage(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<TakeError> for Failure {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Repository(error) => error.into(),
            other => Self::Failed(other.to_string()),
        }
    }
}

pub(super) async fn run(target: &Target, format: Format, command: &BackupCommand) -> Result<(), Failure> {
    match command {
        BackupCommand::Now(args) => now(target, format, args).await,
        BackupCommand::List { from } => list(format, from).await,
        BackupCommand::Show(args) if args.resources => show_resources(target, format, args).await,
        BackupCommand::Show(args) => show(format, args).await,
        BackupCommand::Verify(args) => verify(format, args).await,
        BackupCommand::Prune(args) => prune(format, args).await,
        BackupCommand::Archive(command) => archive::run(target, format, command).await,
        BackupCommand::Key(command) => key(format, command).await,
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    id: String,
    started: Option<jiff::Timestamp>,
    finished: Option<jiff::Timestamp>,
    groups: u32,
    mailboxes: u64,
    messages: u64,
    bytes: u64,
    uploaded_bytes: u64,
    seconds: f64,
}

impl Made {
    fn new(taken: Taken, elapsed: Duration) -> Self {
        Self {
            id: taken.id,
            started: output::instant(taken.started.0),
            finished: output::instant(taken.finished.0),
            groups: taken.groups,
            mailboxes: taken.mailboxes,
            messages: taken.messages,
            bytes: taken.bytes,
            uploaded_bytes: taken.uploaded_bytes,
            seconds: elapsed.as_secs_f64(),
        }
    }
}

async fn now(target: &Target, format: Format, args: &NowArgs) -> Result<(), Failure> {
    let admin = target.connect().await?;
    let config = args.to.config()?;
    let options = TakeOptions {
        trigger: Trigger::Manual(String::new()),
        cluster_name: args.name.clone(),
        deadline: Duration::from_secs(args.deadline),
        bytes_per_second: args.to.rate() / (PER_NODE as u64),
        groups_at_once: usize::from(args.at_once),
        ..TakeOptions::default()
    };
    let bar = Bar::new();
    let show = |now: TakeProgress| {
        let uploaded = output::bytes(now.uploaded_bytes);
        let message = format!("{}/{} groups, {uploaded} uploaded", now.groups_done, now.groups);
        bar.set(now.bytes, now.total_bytes, message);
    };
    let taken = take(&admin, &config, &options, &show).await;
    bar.clear();
    let made = Made::new(taken?, bar.elapsed());
    output::print(format, &made, |made| {
        format!(
            "backup {}: {} mailboxes, {} messages, {}; {} uploaded in {:.1} s",
            made.id,
            made.mailboxes,
            made.messages,
            output::bytes(made.bytes),
            output::bytes(made.uploaded_bytes),
            made.seconds
        )
    })
}

/// A backup in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    cluster: String,
    cluster_uid: String,
    started: Option<jiff::Timestamp>,
    finished: Option<jiff::Timestamp>,
    trigger: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    groups: usize,
    mailboxes: u64,
    messages: u64,
    bytes: u64,
    uploaded_bytes: u64,
    version: String,
    key_id: String,
}

impl From<&BackupInfo> for Listed {
    fn from(info: &BackupInfo) -> Self {
        Self {
            id: info.id.to_string(),
            cluster: info.cluster.name.clone(),
            cluster_uid: info.cluster.uid.clone(),
            started: output::instant(info.started.0),
            finished: output::instant(info.finished.0),
            trigger: match &info.trigger {
                Trigger::Policy(name) => format!("policy {name}"),
                Trigger::Manual(name) if name.is_empty() => "manual".to_owned(),
                Trigger::Manual(name) => format!("manual {name}"),
                Trigger::Rehearsal(name) => format!("rehearsal {name}"),
            },
            parent: info.parent.as_ref().map(ToString::to_string),
            groups: info.groups,
            mailboxes: info.counts.mailboxes,
            messages: info.counts.messages,
            bytes: info.counts.body_bytes,
            uploaded_bytes: info.uploaded_bytes,
            version: info.version.clone(),
            key_id: info.key_id.clone(),
        }
    }
}

async fn list(format: Format, from: &FromArgs) -> Result<(), Failure> {
    let repository = Repository::open(from.config()?).await?;
    let listing = repository.list().await?;
    let windows = match format {
        Format::Table => archive::windows(&repository, &listing.backups).await?,
        Format::Json | Format::Yaml => Vec::new(),
    };
    let mut backups: Vec<Listed> = listing.backups.iter().map(Listed::from).collect();
    backups.reverse();
    output::print(format, &backups, |backups| {
        let rows = backups.iter().map(|backup| {
            let cluster = if backup.cluster.is_empty() { &backup.cluster_uid } else { &backup.cluster };
            [
                backup.id.clone(),
                cluster.clone(),
                backup.trigger.clone(),
                backup.mailboxes.to_string(),
                backup.messages.to_string(),
                output::bytes(backup.bytes),
                output::bytes(backup.uploaded_bytes),
                took(backup),
            ]
        });
        let mut text = output::table(
            ["BACKUP", "CLUSTER", "BY", "MAILBOXES", "MESSAGES", "SIZE", "UPLOADED", "TOOK"],
            rows,
        );
        for (cluster, windows) in &windows {
            text += &archive::window_line(cluster, windows);
        }
        text
    })?;
    match listing.unreadable.as_slice() {
        [] => Ok(()),
        some => {
            let lines: Vec<String> = some.iter().map(|bad| format!("{}: {}", bad.id, bad.reason)).collect();
            Err(Failure::Failed(format!("some backups cannot be read:\n{}", lines.join("\n"))))
        }
    }
}

fn took(backup: &Listed) -> String {
    match (backup.started, backup.finished) {
        (Some(started), Some(finished)) => output::span(finished.duration_since(started).as_secs()),
        _ => "-".to_owned(),
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(flatten)]
    backup: Listed,
    has_resources: bool,
    parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    /// Zero is the directory.
    group: u32,
    log_index: u64,
    at: Option<jiff::Timestamp>,
    mailboxes: u64,
    messages: u64,
    bytes: u64,
    uploaded_bytes: u64,
    packs: usize,
}

async fn show(format: Format, args: &ShowArgs) -> Result<(), Failure> {
    let manifest = Repository::open(args.from.config()?).await?.manifest(&args.id).await?;
    output::print(format, &shown(&manifest), |shown| {
        let backup = &shown.backup;
        let name = if backup.cluster.is_empty() { "no name" } else { &backup.cluster };
        let mut text = format!(
            "backup {} of cluster {} ({name}), {}, by Quorumail {}\n{} mailboxes, {} messages, {}; {} uploaded\n\n",
            backup.id,
            backup.cluster_uid,
            backup.trigger,
            backup.version,
            backup.mailboxes,
            backup.messages,
            output::bytes(backup.bytes),
            output::bytes(backup.uploaded_bytes),
        );
        let rows = shown.parts.iter().map(|part| {
            [
                part.group.to_string(),
                part.log_index.to_string(),
                part.at.map_or_else(|| "-".to_owned(), |at| at.to_string()),
                part.mailboxes.to_string(),
                part.messages.to_string(),
                output::bytes(part.bytes),
                output::bytes(part.uploaded_bytes),
            ]
        });
        text += &output::table(["GROUP", "LOG", "AT", "MAILBOXES", "MESSAGES", "SIZE", "UPLOADED"], rows);
        text
    })
}

async fn show_resources(target: &Target, format: Format, args: &ShowArgs) -> Result<(), Failure> {
    let repository = Repository::open(args.from.config()?).await?;
    let found = found_in(&repository, &args.id, args.with_secrets, target.namespace.as_deref()).await?;
    match (found.secrets, args.with_secrets) {
        (0, true) => {
            eprintln!("there are no Secrets in it: spec.includeSecrets of its BackupPolicy asks for them")
        }
        (0, false) | (_, true) => {}
        (count, false) => eprintln!("{count} Secrets in it are not shown; --with-secrets shows them"),
    }
    output::print(if format == Format::Yaml { Format::Table } else { format }, &found.list(), |_| {
        manifest::documents(&found.objects)
    })
}

async fn found_in(
    repository: &Repository,
    id: &BackupId,
    with_secrets: bool,
    namespace: Option<&str>,
) -> Result<Found, Failure> {
    let resources = repository.resources(&repository.manifest(id).await?).await?.ok_or_else(|| {
        let text =
            format!("backup {id} holds no resources: only those do that a BackupPolicy made in Kubernetes");
        Failure::Failed(text)
    })?;
    resources::read(&resources, with_secrets, namespace).map_err(|why| {
        Failure::Failed(format!("the resources in backup {id} cannot be read: {why}; take another backup"))
    })
}

fn shown(manifest: &Manifest) -> Shown {
    let parts = manifest.groups.iter().map(|group| Part {
        group: group.group,
        log_index: group.log_index,
        at: output::instant(group.applied_at.0),
        mailboxes: group.counts.mailboxes,
        messages: group.counts.messages,
        bytes: group.counts.body_bytes,
        uploaded_bytes: group.uploaded_bytes,
        packs: group.packs.len(),
    });
    Shown {
        backup: Listed::from(&manifest.info()),
        has_resources: manifest.resources.is_some(),
        parts: parts.collect(),
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    backups: u64,
    packs: u64,
    bytes: u64,
    seconds: f64,
    damage: Vec<Damaged>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Damaged {
    object: String,
    what: String,
    touches: Vec<String>,
}

async fn verify(format: Format, args: &VerifyArgs) -> Result<(), Failure> {
    let repository = Repository::open(args.from.config()?).await?;
    let which = args.id.clone().map_or(Which::All, Which::Backup);
    let depth = match args.depth {
        HowDeep::Structure => Depth::Structure,
        HowDeep::Sample => Depth::Sample { percent: args.percent },
        HowDeep::Full => Depth::Full,
    };
    let bar = Bar::new();
    let show = |now: quorumail_backup::VerifyProgress| {
        bar.set(now.bytes, now.total_bytes, format!("{}/{} packs", now.objects, now.total_objects));
    };
    let findings = repository.verify(which, depth, show).await;
    bar.clear();
    let verified = verified(findings?, bar.elapsed());
    output::print(format, &verified, verify_text)?;
    match verified.damage.len() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "{count} objects are damaged; what does not need them can be restored, and the next backup of the \
             cluster that has the mail stores it anew"
        ))),
    }
}

fn verified(findings: Findings, elapsed: Duration) -> Verified {
    let damage = findings.damage.into_iter().map(|damage| Damaged {
        object: damage.object,
        what: damage.what,
        touches: damage
            .touches
            .iter()
            .map(|touched| {
                format!("backup {}, group {}: {} messages", touched.backup, touched.group, touched.messages)
            })
            .collect(),
    });
    Verified {
        backups: findings.backups,
        packs: findings.packs,
        bytes: findings.read_bytes,
        seconds: elapsed.as_secs_f64(),
        damage: damage.collect(),
    }
}

fn verify_text(verified: &Verified) -> String {
    let mut text = format!(
        "{} backups, {} packs, {} read in {:.1} s: {}\n",
        verified.backups,
        verified.packs,
        output::bytes(verified.bytes),
        verified.seconds,
        if verified.damage.is_empty() { "all is well" } else { "there is damage" },
    );
    for damage in &verified.damage {
        text += &format!("{}: {}\n", damage.object, damage.what);
        for touched in &damage.touches {
            text += &format!("  {touched}\n");
        }
    }
    text
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PruneOutcome {
    dry_run: bool,
    kept: Vec<Kept>,
    removed: Vec<String>,
    packs: u64,
    bytes: u64,
    archive_runs: u64,
    /// Why nothing but backups was removed.
    held_back: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    id: String,
    because: Vec<String>,
}

async fn prune(format: Format, args: &PruneArgs) -> Result<(), Failure> {
    let retention = Retention {
        last: args.keep_last,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
    };
    if retention == Retention::default() {
        return Err(Failure::Usage("say what to keep: --keep-last, --keep-daily and so on".to_owned()));
    }
    let zone = TimeZone::get(&args.time_zone)
        .map_err(|error| Failure::Usage(format!("{}: {error}", args.time_zone)))?;
    let repository = Repository::open(args.from.config()?).await?;
    let listing = repository.list().await?;
    let backups = of_one_cluster(&listing.backups, args.of.as_deref())
        .map_err(|error| Failure::Usage(format!("{error}; say --of")))?;
    let wanted: BTreeSet<String> = backups.iter().map(|info| info.id.to_string()).collect();
    if wanted.is_empty() {
        return Err(Failure::Failed(
            "there is no such backup; `quorumail backup list` shows them".to_owned(),
        ));
    }
    let is_wanted = |info: &BackupInfo| wanted.contains(&info.id.to_string());
    let pruned = repository.prune(is_wanted, &retention, &zone, PRUNE_GRACE, args.dry_run).await?;
    let outcome = PruneOutcome {
        dry_run: args.dry_run,
        kept: pruned
            .kept
            .iter()
            .map(|(id, reasons)| Kept {
                id: id.to_string(),
                because: reasons.iter().map(|reason| format!("{reason:?}").to_lowercase()).collect(),
            })
            .collect(),
        removed: pruned.removed.iter().map(ToString::to_string).collect(),
        packs: pruned.packs,
        bytes: pruned.bytes,
        archive_runs: pruned.archive_runs,
        held_back: pruned.held_back,
    };
    output::print(format, &outcome, |outcome| {
        let mut text = String::new();
        for kept in &outcome.kept {
            let because =
                if kept.because.is_empty() { "not meant".to_owned() } else { kept.because.join(", ") };
            text += &format!("keep    {} ({because})\n", kept.id);
        }
        for id in &outcome.removed {
            text += &format!("remove  {id}\n");
        }
        text += &format!(
            "{} packs with {} and {} archive runs {}",
            outcome.packs,
            output::bytes(outcome.bytes),
            outcome.archive_runs,
            if outcome.dry_run { "would go" } else { "are gone" },
        );
        text
    })?;
    match outcome.held_back.as_slice() {
        [] => Ok(()),
        some => Err(Failure::Failed(format!("packs and archive were left alone: {}", some.join("; ")))),
    }
}

async fn key(format: Format, command: &KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::New { file } => new_key(file.as_deref()),
        KeyCommand::List { from } => {
            let keys = Repository::open(from.config()?).await?.keys().await?;
            output::print(format, &keys, |keys| keys.join("\n"))
        }
        KeyCommand::Add { file, from } => add_key(from, file).await,
        KeyCommand::Remove { id, from } => {
            Repository::open(from.config()?).await?.remove_key(id).await?;
            output::line(&format!("key {id} opens the repository no longer"))
        }
    }
}

async fn add_key(from: &FromArgs, file: &Path) -> Result<(), Failure> {
    let key = read_key(file)?;
    let id = Repository::open(from.config()?).await?.add_key(&key).await?;
    output::line(&format!("key {id} opens the repository as well"))
}

#[cfg(test)]
mod tests {
    use quorumail_backup::{BackupKey, Cluster, Limits, Location, ManifestDraft, RepositoryConfig};
    use serde_json::json;

    use super::*;
    use crate::backup::resources::List;

    async fn backup(repository: &Repository, resources: Option<&[u8]>) -> BackupId {
        let lease = repository.lease("a test").await.unwrap();
        let resources = match resources {
            Some(json) => Some(repository.store_resources(json).await.unwrap()),
            None => None,
        };
        let draft = ManifestDraft {
            cluster: Cluster { name: String::new(), namespace: String::new(), uid: "c".to_owned() },
            started: quorumail_store::Timestamp(1_700_000_000_000),
            parent: None,
            trigger: Trigger::Policy("nightly".to_owned()),
            groups: Vec::new(),
            resources,
            version: "0".to_owned(),
        };
        repository.finish(draft, &lease).await.unwrap()
    }

    #[tokio::test]
    async fn resources_come_back_with_nothing_but_the_repository_and_secrets_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let config = RepositoryConfig {
            location: Location::Directory(dir.path().to_owned()),
            key: BackupKey::parse(b"correct horse battery staple").unwrap(),
            limits: Limits::default(),
        };
        let repository = Repository::create_or_open(config).await.unwrap();
        let object = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "a", "namespace": "mail"}});
        let mut list = List::new(1 << 20);
        list.add(&object("Mailbox")).unwrap();
        list.add(&object("Secret")).unwrap();
        let id = backup(&repository, Some(&list.finish())).await;
        let found = found_in(&repository, &id, false, None).await.unwrap();
        assert_eq!((found.objects, found.secrets), (vec![object("Mailbox")], 1));
        let found = found_in(&repository, &id, true, None).await.unwrap();
        assert_eq!(found.objects, [object("Secret"), object("Mailbox")]);

        let without = backup(&repository, None).await;
        let error = found_in(&repository, &without, false, None).await.unwrap_err().to_string();
        assert!(error.contains("holds no resources"), "{error}");
        let unreadable = backup(&repository, Some(b"[]")).await;
        let error = found_in(&repository, &unreadable, false, None).await.unwrap_err().to_string();
        assert!(error.contains("they are no list"), "{error}");
    }
}
