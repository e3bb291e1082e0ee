//! A large folder: filled over several connections, then opened and read as clients do.

use std::{sync::Arc, time::Instant};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{line::Lines, smtp};

#[derive(Debug, Args)]
pub(crate) struct FolderLoad {
    /// host:port.
    #[arg(long)]
    target: String,
    /// Login name.
    #[arg(long)]
    user: String,
    /// Password.
    #[arg(long)]
    password: String,
    /// Which folder.
    #[arg(long, default_value = "large")]
    folder: String,
    /// Messages to append before the folder is opened, a multiple of the connections.
    #[arg(long, default_value_t = 0)]
    fill: usize,
    /// Connections that append.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Size of a message in bytes.
    #[arg(long, default_value_t = 2048)]
    size: usize,
    /// Envelopes to read.
    #[arg(long, default_value_t = 10_000)]
    read: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct FolderFigures {
    append_per_second: Option<f64>,
    messages: usize,
    select_ms: f64,
    select_again_ms: f64,
    envelopes_ms: f64,
    envelopes_again_ms: f64,
    structures_ms: f64,
    structures_again_ms: f64,
    flags_ms: f64,
    search_unseen_ms: f64,
    noop_ms: f64,
    last_flags_ms: f64,
}

impl FolderLoad {
    async fn login(&self) -> anyhow::Result<Lines> {
        let mut lines = Lines::connect(&self.target).await?;
        lines.line().await?;
        lines.command("a", format!("LOGIN {} \"{}\"", self.user, self.password).as_bytes()).await?;
        Ok(lines)
    }

    async fn append(&self, count: usize) -> anyhow::Result<()> {
        let mut lines = self.login().await?;
        let mut body = smtp::message(self.size, &self.user);
        body.truncate(body.len() - 3);
        let command =
            [format!("c APPEND {} {{{}+}}\r\n", self.folder, body.len()).as_bytes(), &body, b"\r\n"].concat();
        for _ in 0..count {
            lines.send(&command).await?;
            lines.answer("c").await?;
        }
        Ok(())
    }

    async fn fill(self: &Arc<Self>) -> anyhow::Result<Option<f64>> {
        if self.fill == 0 {
            return Ok(None);
        }
        if self.folder != "INBOX" {
            self.login().await?.command("b", format!("CREATE {}", self.folder).as_bytes()).await?;
        }
        let start = Instant::now();
        let each = self.fill / self.connections;
        let mut clients = JoinSet::new();
        for _ in 0..self.connections {
            let load = Arc::clone(self);
            clients.spawn(async move { load.append(each).await });
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(Some((each * self.connections) as f64 / start.elapsed().as_secs_f64()))
    }
}

/// Runs a command; answers how many milliseconds it took, and its lines.
async fn timed(lines: &mut Lines, command: &str) -> anyhow::Result<(f64, Vec<String>)> {
    let start = Instant::now();
    let answer = lines.command("d", command.as_bytes()).await?;
    Ok((start.elapsed().as_secs_f64() * 1000.0, answer))
}

pub(crate) async fn run(load: FolderLoad) -> anyhow::Result<FolderFigures> {
    let load = Arc::new(load);
    let append_per_second = load.fill().await?;
    let mut lines = load.login().await?;
    let select = format!("SELECT {}", load.folder);
    let (select_ms, answer) = timed(&mut lines, &select).await?;
    let exists = answer.iter().find_map(|line| line.strip_prefix("* ")?.strip_suffix(" EXISTS\r\n"));
    let messages: usize = exists.map_or(Ok(0), str::parse)?;
    ensure!(messages > 0, "the folder is empty");
    let read = load.read.min(messages);
    let mut again = load.login().await?;
    let (select_again_ms, _) = timed(&mut again, &select).await?;
    let envelopes = format!("FETCH 1:{read} (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)");
    let (envelopes_ms, answer) = timed(&mut again, &envelopes).await?;
    ensure!(answer.len() >= read, "only {} of {read} envelopes came", answer.len());
    let (envelopes_again_ms, _) = timed(&mut again, &envelopes).await?;
    let structures = format!("FETCH 1:{read} (UID BODYSTRUCTURE)");
    let (structures_ms, _) = timed(&mut again, &structures).await?;
    let (structures_again_ms, _) = timed(&mut again, &structures).await?;
    let (flags_ms, answer) = timed(&mut again, "FETCH 1:* (UID FLAGS)").await?;
    ensure!(answer.len() >= messages, "only {} of {messages} flags came", answer.len());
    let (search_unseen_ms, _) = timed(&mut again, "SEARCH UNSEEN").await?;
    let (noop_ms, _) = timed(&mut again, "NOOP").await?;
    let (last_flags_ms, _) = timed(&mut again, "UID FETCH * (FLAGS)").await?;
    Ok(FolderFigures {
        append_per_second,
        messages,
        select_ms,
        select_again_ms,
        envelopes_ms,
        envelopes_again_ms,
        structures_ms,
        structures_again_ms,
        flags_ms,
        search_unseen_ms,
        noop_ms,
        last_flags_ms,
    })
}
