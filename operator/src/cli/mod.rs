//! The command line `quorumail`, also installed as `kubectl-quorumail`.
//!
//! Every command but `check`, `dev` and `volume` asks the admin services of the mailnodes ([`connect`] finds them) and prints a table, JSON
//! or YAML ([`output`]). Exit status: 0 success, 1 failure, 2 wrong usage.

mod archive;
mod backup;
mod check;
pub mod connect;
mod deleted;
mod domain;
mod export;
mod health;
mod import;
mod list;
mod mailbox;
mod manifest;
mod node;
mod output;
mod probe;
mod progress;
mod queue;
mod report;
mod repository;
mod restore;
mod status;
mod volume;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use self::{connect::Target, output::Format};
use crate::{
    admin::AdminError,
    dev::{self, DevError},
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Asked for something that cannot be: exit status 2.
    #[error("{0}")]
    Usage(String),
    /// It was tried: exit status 1.
    #[error("{0}")]
    Failed(String),
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Failed(format!("Kubernetes: {error}"))
    }
}

impl From<DevError> for Failure {
    fn from(error: DevError) -> Self {
        match error {
            DevError::Usage(words) => Self::Usage(words),
            DevError::State(dev::state::StateError::OtherShape { .. }) => Self::Usage(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Looks after a Quorumail mail service.
#[derive(Debug, Parser)]
#[command(name = "quorumail", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    target: Target,
    /// How to print what was found.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells whether it is well: mailnodes, partitions, queues, disks, certificates, backups. Exit status 1 when something is not.
    Status(status::StatusArgs),
    /// Sends a message in each domain and reads it back. Exit status 1 when one fails.
    Probe(probe::ProbeArgs),
    /// Reports on a week or a month, from what Prometheus has kept: uptime, deliverability, queues, backups, growth, incidents.
    Report(report::ReportArgs),
    /// Looks into the queues and acts on what waits there.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Looks at mailboxes and changes them.
    #[command(subcommand)]
    Mailbox(mailbox::MailboxCommand),
    /// Looks at mailing lists, decides on what waits, and serves members again.
    #[command(subcommand)]
    List(list::ListCommand),
    /// Looks at domains.
    #[command(subcommand)]
    Domain(domain::DomainCommand),
    /// Makes backups, shows and checks them, and removes old ones.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Brings mail back from a backup.
    Restore(Box<restore::RestoreArgs>),
    /// Acts on mailnodes.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Serves volumes that backups are kept on.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Tells whether the operator is installed as it should be: resource types and a working operator, in the namespace that -n
    /// names. Exit status 1 when it is not. What `helm test` runs.
    Check,
    /// Runs the whole mail service on this machine, without Kubernetes.
    Dev(DevArgs),
}

/// Runs real mailnode processes on this machine and applies the YAML resources that `kubectl apply` would take. Prints
/// one JSON line per node, and `ready` once mail can be sent and read.
#[derive(Debug, Args)]
struct DevArgs {
    /// Number of mailnodes [default: as the MailCluster says, or 3].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=dev::layout::MAX_NODES))]
    nodes: Option<u64>,
    /// Keeps everything in this directory, and goes on with what is there [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File or directory with resources; may be given again. Changes are applied as they are made.
    #[arg(short, long = "filename", value_name = "FILE_OR_DIR")]
    files: Vec<PathBuf>,
    /// Adds this number to every port.
    #[arg(long, value_name = "N", default_value_t = 0)]
    base_port: u16,
    /// Leaves a mailnode that ended as it is, instead of starting it again after 2 s.
    #[arg(long)]
    no_restart: bool,
    /// The mailnode program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    mailnode: Option<PathBuf>,
    /// Shows the mailnodes' logs on standard error instead of keeping them in files.
    #[arg(long)]
    logs: bool,
    /// Name server to ask instead of those of this machine. May be given again.
    #[arg(long = "dns-server", value_name = "IP:PORT")]
    dns_servers: Vec<SocketAddr>,
}

/// For locks in a backup repository to be given back at the end.
const SETTLE_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs what the arguments of this process ask for.
pub fn main() -> ExitCode {
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::Failed(format!("failed to start: {error}"))),
    };
    let result = runtime.block_on(async {
        let result = cli.run().await;
        quorumail_backup::settle(SETTLE_WITHIN).await;
        result
    });
    // A file watcher or a password being hashed is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("quorumail: {failure}");
    match failure {
        Failure::Usage(_) => ExitCode::from(2),
        Failure::Failed(_) => ExitCode::from(1),
    }
}

impl Cli {
    async fn run(self) -> Result<(), Failure> {
        let (target, format) = (&self.target, self.output);
        match self.command {
            Command::Status(args) => status::run(target, format, &args).await,
            Command::Probe(args) => probe::run(target, format, &args).await,
            Command::Report(args) => report::run(target, format, &args).await,
            Command::Queue(command) => queue::run(target, format, &command).await,
            Command::Mailbox(command) => mailbox::run(target, format, &command).await,
            Command::List(command) => list::run(target, format, &command).await,
            Command::Domain(command) => domain::run(target, format, &command).await,
            Command::Backup(command) => backup::run(target, format, &command).await,
            Command::Restore(args) => restore::run(target, format, &args).await,
            Command::Node(command) => node::run(target, &command).await,
            Command::Volume(command) => volume::run(command).await,
            Command::Check => check::run(target, format).await,
            Command::Dev(args) => Ok(dev::run(args.into()).await?),
        }
    }
}

impl From<DevArgs> for dev::Options {
    fn from(args: DevArgs) -> Self {
        Self {
            nodes: args.nodes,
            data: args.data,
            files: args.files,
            base_port: args.base_port,
            restart: !args.no_restart,
            mailnode: args.mailnode,
            logs: args.logs,
            dns_servers: args.dns_servers,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_documentation_shows_is_understood() {
        for line in [
            "quorumail dev",
            "quorumail domain dns",
            "quorumail --dev d domain dns example.org --zone --wrong",
            "quorumail dev --nodes 3 --data d -f a.yaml -f dir --base-port 100 --no-restart --mailnode /m --dns-server 127.0.0.1:53",
            "quorumail --dev d status",
            "quorumail status -o json --dev d",
            "quorumail -n mail --cluster mail status --partitions",
            "quorumail queue list --class held -o yaml",
            "quorumail queue show ID",
            "quorumail --dev d probe",
            "quorumail report --since 30d --prometheus http://127.0.0.1:9090 --html",
            "quorumail -n mail --cluster mail report --prometheus http://127.0.0.1:9090 -o json",
            "quorumail -n mail probe example.org --within 10 -o json",
            "quorumail queue retry ID ID2",
            "quorumail queue delete --all --class bad",
            "quorumail mailbox usage",
            "quorumail mailbox usage alice@example.org",
            "quorumail mailbox passwd alice@example.org",
            "quorumail mailbox suspend alice@example.org --undo",
            "quorumail list status",
            "quorumail list members announce@example.org -o json",
            "quorumail list held announce@example.org",
            "quorumail list show announce@example.org ID",
            "quorumail list approve announce@example.org ID bob@example.net",
            "quorumail list refuse announce@example.org ID",
            "quorumail list resume announce@example.org bob@example.net",
            "quorumail backup key new",
            "quorumail backup key add --from file:///b --key-file k other",
            "quorumail --dev d backup now --to s3://mail/a --key-file k --endpoint https://s3:7070 --path-style --ca-file ca.pem",
            "quorumail backup list --from s3://mail/a --key-file k -o json",
            "quorumail backup show 20261125T174800Z-abc123 --from file:///b --key-file k",
            "quorumail -n other backup show 20261125T174800Z-abc123 --resources --with-secrets --from s3://mail/a -o json",
            "quorumail backup verify --depth sample --percent 5 --from file:///b --key-file k",
            "quorumail backup prune --keep-last 3 --keep-daily 7 --time-zone Europe/Berlin --dry-run --from file:///b",
            "quorumail --dev d restore --from file:///b --key-file k --all --verify",
            "quorumail --dev d restore --from file:///b --mailbox alice@example.org --until 2026-11-25T17:48:00Z",
            "quorumail --dev d restore --from file:///b --mailbox alice@example.org --folder INBOX --into bob@example.org",
            "quorumail --dev d restore --from file:///b --mailbox alice@example.org --in-place",
            "quorumail restore --from file:///b --all --to-maildir dir",
            "quorumail restore --from file:///b --mailbox alice@example.org --folder Sent --to-mbox sent.mbox",
            "quorumail node drain 1 --timeout 20",
            "quorumail volume serve --directory /data --listen 0.0.0.0:9000 --credentials c --tls t",
            "quorumail --admin 127.0.0.1:9443 --tls-dir t status",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "quorumail",
            "quorumail fly",
            "quorumail dev --nodes 0",
            "quorumail dev --nodes 10",
            "quorumail queue retry",
            "quorumail queue retry ID --all",
            "quorumail list approve announce@example.org",
            "quorumail --admin 127.0.0.1:9443 status",
            "quorumail volume serve --directory /data --credentials c",
            "quorumail backup now --to ftp://b",
            "quorumail backup now --to file:///b --deadline 0",
            "quorumail backup show 20261125T174800Z-abc123 --with-secrets --from file:///b",
            "quorumail restore --from file:///b",
            "quorumail restore --from file:///b --all --mailbox alice@example.org",
            "quorumail restore --from file:///b --all --in-place",
            "quorumail restore --from file:///b --folder INBOX --all",
            "quorumail restore --from file:///b --mailbox a@example.org --in-place --prefix p",
            "quorumail restore --from file:///b --all --to-maildir d --to-mbox f",
            "quorumail --dev d --admin 127.0.0.1:9443 --tls-dir t status",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
