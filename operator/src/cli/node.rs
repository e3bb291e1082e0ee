//! `quorumail node`.

use std::time::Duration;

use clap::Subcommand;

use super::{Failure, connect::Target, output};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Moves all that a mailnode leads to the others, as before a planned stop. It takes nothing back for five minutes.
    Drain {
        /// Number of the mailnode, as `status` shows it.
        node: usize,
        /// Seconds to wait at most.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
        timeout: u32,
    },
}

pub(super) async fn run(target: &Target, command: &NodeCommand) -> Result<(), Failure> {
    let NodeCommand::Drain { node, timeout } = command;
    let client = target.connect().await?;
    if target.admin.is_empty() && *node >= client.nodes() {
        return Err(Failure::Usage(format!("there is no mailnode {node}; there are {}", client.nodes())));
    }
    match client.hand_over(*node, Duration::from_secs((*timeout).into())).await? {
        0 => output::line(&format!("mailnode {node} leads nothing now, nor in the next five minutes")),
        left => Err(Failure::Failed(format!("mailnode {node} still leads {left} groups after {timeout} s"))),
    }
}
