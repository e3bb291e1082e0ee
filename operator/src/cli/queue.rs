//! `quorumail queue`.

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use quorumail_proto::admin::{
    ActOnQueueRequest, ListQueueRequest, QueueClass, QueueEntry, act_on_queue_request::Action,
};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};

#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// Lists what waits, oldest first.
    List {
        /// Only entries with a recipient in this queue.
        #[arg(long, value_enum)]
        class: Option<Class>,
        /// Number of entries at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Shows one entry with its recipients and their last errors.
    Show {
        /// As `list` shows it.
        id: String,
    },
    /// Tries again now, not at the next attempt.
    Retry(Which),
    /// Keeps entries from being delivered until they are released.
    Hold(Which),
    /// Lets held entries go on.
    Release(Which),
    /// Gives up and tells nobody.
    Delete(Which),
    /// Gives up and tells the sender.
    Bounce(Which),
}

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Which {
    /// Entries, as `list` shows them.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// Every entry with a recipient of --class.
    #[arg(long, requires = "class")]
    all: bool,
    /// The queue that --all means.
    #[arg(long, value_enum, requires = "all")]
    class: Option<Class>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Class {
    /// For mailboxes here.
    Local,
    /// For other systems.
    Remote,
    /// Neither delivery nor a report was possible.
    Bad,
    /// A person holds it.
    Held,
}

impl From<Class> for QueueClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Local => Self::Local,
            Class::Remote => Self::Remote,
            Class::Bad => Self::Bad,
            Class::Held => Self::Held,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    reverse_path: String,
    arrived_at: Option<Timestamp>,
    size: u64,
    partition: u32,
    recipients: Vec<Recipient>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Recipient {
    address: String,
    class: &'static str,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_error: String,
}

pub(super) async fn run(target: &Target, format: Format, command: &QueueCommand) -> Result<(), Failure> {
    let (action, which) = match command {
        QueueCommand::List { class, limit } => {
            let class = class.map_or(QueueClass::Unspecified, QueueClass::from);
            let request = ListQueueRequest { class: class.into(), limit: *limit, id: String::new() };
            let entries: Vec<Entry> = list(target, request).await?;
            return output::print(format, &entries, |entries| list_table(entries, Timestamp::now()));
        }
        QueueCommand::Show { id } => {
            let request = ListQueueRequest { id: id.clone(), limit: 1, ..ListQueueRequest::default() };
            let entry = list(target, request).await?.into_iter().find(|entry| entry.id == *id);
            let entry = entry.ok_or_else(|| Failure::Failed(format!("no queue holds {id}")))?;
            return output::print(format, &entry, |entry| show_table(entry, Timestamp::now()));
        }
        QueueCommand::Retry(which) => (Action::Retry, which),
        QueueCommand::Hold(which) => (Action::Hold, which),
        QueueCommand::Release(which) => (Action::Release, which),
        QueueCommand::Delete(which) => (Action::Delete, which),
        QueueCommand::Bounce(which) => (Action::Bounce, which),
    };
    let class = which.class.map_or(QueueClass::Unspecified, QueueClass::from);
    let request = ActOnQueueRequest { action: action.into(), ids: which.ids.clone(), class: class.into() };
    let changed = target.connect().await?.act_on_queue(request).await?;
    output::line(&format!("{changed} changed"))?;
    // An id that was mistyped must not look like success.
    let asked = which.ids.len();
    if (changed as usize) < asked {
        return Err(Failure::Failed(format!(
            "{} of {asked} were not there to change",
            asked - changed as usize
        )));
    }
    Ok(())
}

async fn list(target: &Target, request: ListQueueRequest) -> Result<Vec<Entry>, Failure> {
    Ok(target.connect().await?.list_queue(request).await?.into_iter().map(Entry::from).collect())
}

impl From<QueueEntry> for Entry {
    fn from(entry: QueueEntry) -> Self {
        let recipients = entry.recipients.into_iter().map(|recipient| Recipient {
            class: match recipient.class() {
                QueueClass::Local => "local",
                QueueClass::Remote => "remote",
                QueueClass::Bad => "bad",
                QueueClass::Held => "held",
                QueueClass::Unspecified => "unknown",
            },
            address: recipient.address,
            attempts: recipient.attempts,
            next_attempt_at: output::instant(recipient.next_attempt_at),
            last_error: recipient.last_error,
        });
        Self {
            recipients: recipients.collect(),
            arrived_at: output::instant(entry.arrived_at),
            id: entry.id,
            reverse_path: entry.reverse_path,
            size: entry.size,
            partition: entry.partition,
        }
    }
}

/// How long from `from` to `to`; a dash where one is not known.
fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => output::span(to.duration_since(from).as_secs()),
        _ => "-".to_owned(),
    }
}

fn sender(entry: &Entry) -> String {
    // RFC 5321 4.5.5: reports have the null reverse-path.
    if entry.reverse_path.is_empty() { "<>".to_owned() } else { entry.reverse_path.clone() }
}

fn list_table(entries: &[Entry], now: Timestamp) -> String {
    if entries.is_empty() {
        return "nothing waits\n".to_owned();
    }
    let rows = entries.iter().map(|entry| {
        let first = entry.recipients.first();
        let more = entry.recipients.len().saturating_sub(1);
        let recipient = first.map_or("-", |recipient| recipient.address.as_str());
        let attempts = entry.recipients.iter().map(|recipient| recipient.attempts).max().unwrap_or(0);
        [
            entry.id.clone(),
            first.map_or("-", |recipient| recipient.class).to_owned(),
            between(entry.arrived_at, Some(now)),
            output::bytes(entry.size),
            sender(entry),
            if more == 0 { recipient.to_owned() } else { format!("{recipient} and {more} more") },
            attempts.to_string(),
            first.map(|recipient| recipient.last_error.clone()).unwrap_or_default(),
        ]
    });
    output::table(["ID", "QUEUE", "AGE", "SIZE", "FROM", "TO", "ATTEMPTS", "LAST ERROR"], rows)
}

fn show_table(entry: &Entry, now: Timestamp) -> String {
    let mut text = output::table(
        ["ID", "AGE", "SIZE", "FROM", "PARTITION"],
        [[
            entry.id.clone(),
            between(entry.arrived_at, Some(now)),
            output::bytes(entry.size),
            sender(entry),
            entry.partition.to_string(),
        ]],
    );
    text.push('\n');
    let rows = entry.recipients.iter().map(|recipient| {
        let due = recipient.next_attempt_at.is_some_and(|at| at <= now);
        [
            recipient.address.clone(),
            recipient.class.to_owned(),
            recipient.attempts.to_string(),
            if due { "now".to_owned() } else { between(Some(now), recipient.next_attempt_at) },
            recipient.last_error.clone(),
        ]
    });
    text += &output::table(["TO", "QUEUE", "ATTEMPTS", "NEXT IN", "LAST ERROR"], rows);
    text
}

#[cfg(test)]
mod tests {
    use quorumail_proto::admin::QueueRecipient;

    use super::*;

    #[test]
    fn an_entry_is_shown_with_what_holds_it_up() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let recipient = |address: &str, next| QueueRecipient {
            address: address.into(),
            class: QueueClass::Remote.into(),
            attempts: 3,
            next_attempt_at: next,
            last_error: "451 4.3.0 later".into(),
        };
        let entry = Entry::from(QueueEntry {
            id: "1-42".into(),
            reverse_path: String::new(),
            arrived_at: 999_700_000,
            size: 2048,
            recipients: vec![recipient("a@x.example", 1_000_600_000), recipient("b@x.example", 1)],
            partition: 4,
        });
        let listed = list_table(std::slice::from_ref(&entry), now);
        for part in ["1-42", "remote", "5m", "2.0 KiB", "<>", "a@x.example and 1 more", "451 4.3.0 later"] {
            assert!(listed.contains(part), "{part} is not in\n{listed}");
        }
        let shown = show_table(&entry, now);
        assert!(shown.contains("10m") && shown.contains("now"), "{shown}");
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!(json["recipients"][0]["nextAttemptAt"], "1970-01-12T13:56:40Z");
        assert_eq!(json["reversePath"], "");
    }
}
