//! Messages a second, accepted and readable.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::line::Lines;

/// How long the last message may take to become readable.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub(crate) struct SmtpLoad {
    /// host:port of one or more nodes, used in turn by the connections.
    #[arg(long, required = true, value_delimiter = ',')]
    targets: Vec<String>,
    /// Connections that send at the same time.
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// How long is sent, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Messages a second of all connections together; 0: as many as are taken. How long a message took is then counted
    /// from when it was due, whether or not a connection was free.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Size of a message in bytes.
    #[arg(long, default_value_t = 8192)]
    size: usize,
    /// Recipients, used in turn.
    #[arg(long, required = true, value_delimiter = ',')]
    recipients: Vec<String>,
    /// host:port of an IMAP server at which the recipients' mail can be counted.
    #[arg(long)]
    imap: Option<String>,
    /// The password of all recipients.
    #[arg(long, default_value = "")]
    password: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct SmtpFigures {
    accepted: usize,
    accepted_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// From the first connection until the last message could be read.
    delivered_per_second: Option<f64>,
}

pub(crate) async fn run(load: SmtpLoad) -> anyhow::Result<SmtpFigures> {
    let load = Arc::new(load);
    let before = count(&load).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut senders = Vec::new();
    for number in 0..load.connections {
        senders.push(tokio::spawn(sender(Arc::clone(&load), number, Arc::clone(&next), start)));
    }
    let mut times = Vec::new();
    for sender in senders {
        times.extend(sender.await??);
    }
    let took = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at =
        |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let milliseconds = |share| at(share).map_or(0.0, |time: &Duration| time.as_secs_f64() * 1000.0);
    let delivered = match before {
        None => None,
        Some(before) => {
            let patience = Instant::now();
            loop {
                let now = count(&load).await?.unwrap_or_default() - before;
                if now >= times.len() {
                    break Some(times.len() as f64 / start.elapsed().as_secs_f64());
                }
                if patience.elapsed() > DELIVERY_PATIENCE {
                    bail!("only {now} of {} accepted messages can be read", times.len());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    Ok(SmtpFigures {
        accepted: times.len(),
        accepted_per_second: times.len() as f64 / took,
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
        delivered_per_second: delivered,
    })
}

/// One connection: message after message, each answered before the next; answers how long each took from MAIL to 250.
async fn sender(
    load: Arc<SmtpLoad>,
    number: usize,
    next: Arc<AtomicUsize>,
    start: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let mut lines = Lines::connect(&load.targets[number % load.targets.len()]).await?;
    lines.reply('2').await?;
    lines.send(b"EHLO bench.example\r\n").await?;
    lines.reply('2').await?;
    let mut times = Vec::new();
    while start.elapsed().as_secs_f64() < load.seconds {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let recipient = &load.recipients[turn % load.recipients.len()];
        let mut begun = Instant::now();
        if load.rate > 0.0 {
            begun = start + Duration::from_secs_f64(turn as f64 / load.rate);
            tokio::time::sleep_until(begun.into()).await;
        }
        lines
            .send(
                format!("MAIL FROM:<bench@elsewhere.example>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n")
                    .as_bytes(),
            )
            .await?;
        for expected in ['2', '2', '3'] {
            lines.reply(expected).await?;
        }
        lines.send(&message(load.size, recipient)).await?;
        lines.reply('2').await?;
        times.push(begun.elapsed());
    }
    lines.send(b"QUIT\r\n").await?;
    Ok(times)
}

/// A message of about `size` bytes with the dot that ends it.
pub(crate) fn message(size: usize, recipient: &str) -> Vec<u8> {
    let mut text =
        format!("From: bench@elsewhere.example\r\nTo: {recipient}\r\nSubject: a measured message\r\n\r\n")
            .into_bytes();
    while text.len() < size {
        text.extend_from_slice(b"The quick brown fox jumps over the lazy dog, again and again.\r\n");
    }
    text.extend_from_slice(b".\r\n");
    text
}

/// Messages in the INBOX of all recipients.
async fn count(load: &SmtpLoad) -> anyhow::Result<Option<usize>> {
    let Some(imap) = &load.imap else { return Ok(None) };
    let mut sum = 0;
    for recipient in &load.recipients {
        let mut lines = Lines::connect(imap).await?;
        lines.line().await?;
        lines.command("a", format!("LOGIN {recipient} \"{}\"", load.password).as_bytes()).await?;
        for line in lines.command("b", b"STATUS INBOX (MESSAGES)").await? {
            if let Some((_, rest)) = line.split_once("MESSAGES ") {
                sum += rest.trim_end().trim_end_matches(')').parse::<usize>()?;
            }
        }
    }
    Ok(Some(sum))
}
