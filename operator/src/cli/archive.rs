//! `quorumail backup archive`: the continuous archive of the mailnodes.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use quorumail_backup::{BackupInfo, Repository, archive::Window};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
    repository::{FromArgs, ToArgs},
};
use crate::backup::archive::{Archiving, Wish, archive};

/// The continuous archive.
#[derive(Debug, Subcommand)]
pub(super) enum ArchiveCommand {
    /// Has the mailnodes ship what they lead, until they end or are told otherwise.
    Start(StartArgs),
    /// Has them ship no longer; what was shipped stays.
    Stop,
    /// Shows how far the mailnodes are.
    Status,
    /// Shows which instants can be restored from a repository.
    Window {
        #[command(flatten)]
        from: FromArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    #[command(flatten)]
    to: ToArgs,
    /// Seconds within which what was acknowledged is shipped.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=86_400))]
    max_lag: u32,
    /// Seconds after which they end by themselves unless they are told again [default: never].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(10..))]
    keep: Option<u32>,
}

pub(super) async fn run(target: &Target, format: Format, command: &ArchiveCommand) -> Result<(), Failure> {
    match command {
        ArchiveCommand::Start(args) => start(target, format, args).await,
        ArchiveCommand::Stop => tell(target, format, Wish::Stop).await,
        ArchiveCommand::Status => tell(target, format, Wish::Tell).await,
        ArchiveCommand::Window { from } => window(format, from).await,
    }
}

async fn start(target: &Target, format: Format, args: &StartArgs) -> Result<(), Failure> {
    let config = args.to.config()?;
    // Made where there is none, and a wrong key or place is told here and not by each mailnode.
    Repository::create_or_open(config.clone()).await?;
    let wish = Wish::Start {
        to: &config,
        max_lag: Duration::from_secs(args.max_lag.into()),
        keep: args.keep.map(|seconds| Duration::from_secs(seconds.into())),
    };
    tell(target, format, wish).await
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    running: u32,
    nodes: u32,
    shipped_groups: u32,
    groups: u32,
    /// Everything acknowledged up to then can be restored.
    through: Option<jiff::Timestamp>,
    lag_seconds: f64,
    troubles: Vec<String>,
}

impl From<Archiving> for Shown {
    fn from(now: Archiving) -> Self {
        Self {
            running: now.running,
            nodes: now.nodes,
            shipped_groups: now.shipped,
            groups: now.groups,
            through: now.through.and_then(|at| output::instant(at.0)),
            lag_seconds: now.lag.as_secs_f64(),
            troubles: now.troubles,
        }
    }
}

async fn tell(target: &Target, format: Format, wish: Wish<'_>) -> Result<(), Failure> {
    let admin = target.connect().await?;
    let told = archive(&admin, wish).await.map_err(|error| Failure::Failed(error.to_string()))?;
    let wanted = !matches!(wish, Wish::Stop) && told.running > 0;
    let shown = Shown::from(told);
    output::print(format, &shown, |shown| {
        if shown.running == 0 {
            return "no mailnode ships to an archive\n".to_owned();
        }
        let through = shown.through.map_or_else(|| "not known yet".to_owned(), |at| at.to_string());
        format!(
            "{} of {} mailnodes ship {} of {} groups\ncomplete up to: {through}\nwaiting for: {:.1} s\n",
            shown.running, shown.nodes, shown.shipped_groups, shown.groups, shown.lag_seconds
        )
    })?;
    match shown.troubles.as_slice() {
        [] => Ok(()),
        // What does not answer cannot be told to end either.
        troubles if wanted || matches!(wish, Wish::Stop) => Err(Failure::Failed(troubles.join("\n"))),
        _ => Ok(()),
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterWindows {
    cluster: String,
    windows: Vec<Instants>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Instants {
    earliest: Option<jiff::Timestamp>,
    latest: Option<jiff::Timestamp>,
}

async fn window(format: Format, from: &FromArgs) -> Result<(), Failure> {
    let repository = Repository::open(from.config()?).await?;
    let listing = repository.list().await?;
    let all = windows(&repository, &listing.backups).await?;
    let instants = |window: &Window| Instants {
        earliest: output::instant(window.earliest.0),
        latest: output::instant(window.latest.0),
    };
    let shown: Vec<ClusterWindows> = all
        .iter()
        .map(|(cluster, windows)| ClusterWindows {
            cluster: cluster.clone(),
            windows: windows.iter().map(instants).collect(),
        })
        .collect();
    output::print(format, &shown, |_| {
        all.iter().map(|(cluster, windows)| window_line(cluster, windows)).collect()
    })
}

/// What can be restored of each cluster.
pub(super) async fn windows(
    repository: &Repository,
    backups: &[BackupInfo],
) -> Result<Vec<(String, Vec<Window>)>, Failure> {
    let names: BTreeMap<&str, &str> =
        backups.iter().map(|backup| (backup.cluster.uid.as_str(), backup.cluster.name.as_str())).collect();
    let mut all = Vec::new();
    for (uid, name) in names {
        let shown = if name.is_empty() { uid } else { name };
        all.push((shown.to_owned(), repository.window(uid).await?));
    }
    Ok(all)
}

/// A line for people about a cluster's windows.
pub(super) fn window_line(cluster: &str, windows: &[Window]) -> String {
    let at = |at: i64| output::instant(at).map_or_else(|| "-".to_owned(), |at| at.to_string());
    let spans: Vec<String> = windows
        .iter()
        .map(|window| match window.latest.0 - window.earliest.0 {
            0 => at(window.earliest.0),
            _ => format!("{} to {}", at(window.earliest.0), at(window.latest.0)),
        })
        .collect();
    format!("{cluster} can be restored as of: {}\n", spans.join(", "))
}
