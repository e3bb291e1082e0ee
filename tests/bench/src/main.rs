//! A load generator for SMTP and IMAP servers, ours and others alike: plain sockets, no knowledge of what is behind them.
//! Prints one JSON line. `tests/bench/bench.py` starts the servers and sets the lines side by side.
#![allow(clippy::print_stdout, reason = "the figures are this program's output")]

mod folder;
mod imap;
mod line;
mod smtp;

use clap::{Parser, Subcommand};

/// Load for a mail server that was started for it.
#[derive(Debug, Parser)]
#[command(name = "quorumail-bench")]
struct Arguments {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Sends messages over several connections and waits until all of them can be read.
    Smtp(smtp::SmtpLoad),
    /// Appends, selects and fetches over one connection.
    Imap(imap::ImapLoad),
    /// Fills a folder over several connections and opens it.
    Folder(folder::FolderLoad),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let figures = match Arguments::parse().load {
        Load::Smtp(load) => serde_json::to_value(smtp::run(load).await?)?,
        Load::Imap(load) => serde_json::to_value(imap::run(load).await?)?,
        Load::Folder(load) => serde_json::to_value(folder::run(load).await?)?,
    };
    println!("{figures}");
    Ok(())
}
