//! What a client waits for: APPEND, SELECT, FETCH.

use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::{line::Lines, smtp};

#[derive(Debug, Args)]
pub(crate) struct ImapLoad {
    /// host:port.
    #[arg(long)]
    target: String,
    /// Login name.
    #[arg(long)]
    user: String,
    /// Password.
    #[arg(long)]
    password: String,
    /// Messages to append, and then to read.
    #[arg(long, default_value_t = 10_000)]
    messages: usize,
    /// Size of a message in bytes.
    #[arg(long, default_value_t = 8192)]
    size: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct ImapFigures {
    messages: usize,
    append_per_second: f64,
    select_ms: f64,
    envelopes_ms: f64,
    bodies_per_second: f64,
}

pub(crate) async fn run(load: ImapLoad) -> anyhow::Result<ImapFigures> {
    let mut lines = Lines::connect(&load.target).await?;
    lines.line().await?;
    lines.command("a", format!("LOGIN {} \"{}\"", load.user, load.password).as_bytes()).await?;
    lines.command("b", b"CREATE bench").await?;
    let mut body = smtp::message(load.size, &load.user);
    body.truncate(body.len() - 3);
    let start = Instant::now();
    for _ in 0..load.messages {
        // One append at a time, as a client does it: the literal is sent once the server asks for it.
        lines.send(format!("c APPEND bench {{{}}}\r\n", body.len()).as_bytes()).await?;
        ensure!(lines.line().await?.starts_with('+'), "no continuation for a literal");
        lines.send(&body).await?;
        lines.send(b"\r\n").await?;
        lines.answer("c").await?;
    }
    let append = load.messages as f64 / start.elapsed().as_secs_f64();
    let mut fresh = Lines::connect(&load.target).await?;
    fresh.line().await?;
    fresh.command("a", format!("LOGIN {} \"{}\"", load.user, load.password).as_bytes()).await?;
    let start = Instant::now();
    fresh.command("b", b"SELECT bench").await?;
    let select = start.elapsed();
    let start = Instant::now();
    let answer = fresh.command("c", b"FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)").await?;
    let envelopes = start.elapsed();
    ensure!(answer.len() >= load.messages, "only {} of {} envelopes came", answer.len(), load.messages);
    let start = Instant::now();
    fresh.command("d", b"FETCH 1:* (BODY.PEEK[])").await?;
    let bodies = load.messages as f64 / start.elapsed().as_secs_f64();
    fresh.command("e", b"CLOSE").await?;
    fresh.command("f", b"DELETE bench").await?;
    Ok(ImapFigures {
        messages: load.messages,
        append_per_second: append,
        select_ms: select.as_secs_f64() * 1000.0,
        envelopes_ms: envelopes.as_secs_f64() * 1000.0,
        bodies_per_second: bodies,
    })
}
