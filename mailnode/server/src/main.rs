//! `mailnode`: one node of the mail server.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use quorumail_server::{
    config::Config,
    node::{self, Node},
};
use tokio_util::sync::CancellationToken;

/// Threads at least: consensus must go on while another thread is busy.
const MIN_THREADS: usize = 4;

/// Small objects of many threads live and die by the ten thousand a second here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One node of the Quorumail mail server.
#[derive(Debug, Parser)]
#[command(name = "mailnode", version)]
struct Arguments {
    /// The configuration file (YAML).
    #[arg(long)]
    config: PathBuf,
    /// Number of this node; overrides the file and POD_NAME.
    #[arg(long)]
    node: Option<u64>,
    /// Stop when standard input ends: whoever started the node holds its other end.
    #[arg(long)]
    exit_with_stdin: bool,
    /// Check the configuration and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    // The allocator asks for huge pages for each thread, of which an idle node touches little: 70 MiB for nothing. Where the
    // kernel knows none, none are used.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let arguments = Arguments::parse();
    quorumail_logging::start("info,openraft=warn");
    // Fails only when it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "mailnode ends");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config, arguments.node)?;
    if arguments.check {
        return Ok(());
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).max(MIN_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        node::stop_on_signal(stop.clone()).context("failed to listen for signals")?;
        if arguments.exit_with_stdin {
            node::stop_on_end_of_stdin(stop.clone());
        }
        let node = tokio::select! {
            started = Node::start(Arc::new(config)) => started?,
            () = stop.cancelled() => return Ok(()),
        };
        node.run(stop).await
    });
    // The thread that reads standard input never ends by itself.
    runtime.shutdown_background();
    ended
}
