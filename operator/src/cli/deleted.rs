//! `quorumail mailbox deleted` and `undelete`: what was deleted and is still kept on the mailnodes, without a backup.

use std::{collections::VecDeque, str::FromStr};

use clap::Args;
use jiff::Timestamp;
use quorumail_crds::Span;
use quorumail_proto::admin::{self, ListDeletedRequest, UndeleteRequest};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
    progress::Bar,
};
use crate::admin::AdminClient;

/// Messages asked for, or brought back, in one call.
const AT_ONCE: usize = 500;

#[derive(Debug, Args)]
pub(super) struct DeletedArgs {
    /// Address of the mailbox; without it deleted mailboxes are shown.
    address: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Number of messages at most; those deleted last are shown.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct UndeleteArgs {
    /// Address of the mailbox.
    address: String,
    #[command(flatten)]
    which: Which,
    /// Everything that is kept.
    #[arg(long, conflicts_with_all = ["ids", "folder", "since", "until"])]
    all: bool,
    /// Folder below which the messages go, in folders with the names of those that they were in.
    #[arg(long, value_name = "FOLDER")]
    below: Option<String>,
}

/// Which messages are meant: those that all of it is true of.
#[derive(Debug, Args)]
struct Which {
    /// The message with this number; may be given again.
    #[arg(long = "id", value_name = "NUMBER")]
    ids: Vec<u64>,
    /// Messages that were in this folder or below it.
    #[arg(long)]
    folder: Option<String>,
    /// Deleted at this instant or later: 2026-11-25T17:48:00Z, or 2h for two hours ago.
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Deleted before this instant.
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
}

/// An instant, or so long ago.
#[derive(Debug, Clone)]
enum When {
    At(Timestamp),
    Ago(Span),
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        text.parse().map(Self::Ago).map_err(|_| {
            "expected an instant such as 2026-11-25T17:48:00Z, or how long ago, such as 90s, 2h or 3d"
                .to_owned()
        })
    }
}

impl When {
    fn millis(&self, now: Timestamp) -> i64 {
        match self {
            Self::At(at) => at.as_millisecond(),
            Self::Ago(span) => {
                let millis = i64::try_from(span.duration().as_millis()).unwrap_or(i64::MAX);
                now.as_millisecond().saturating_sub(millis)
            }
        }
    }
}

impl Which {
    fn is_anything(&self) -> bool {
        self.ids.is_empty() && self.folder.is_none() && self.since.is_none() && self.until.is_none()
    }

    fn means(&self, message: &admin::DeletedMessage, now: Timestamp) -> bool {
        let below = |folder: &String| {
            let rest = message.folder.strip_prefix(folder.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        (self.ids.is_empty() || self.ids.contains(&message.number))
            && self.folder.as_ref().is_none_or(below)
            && self.since.as_ref().is_none_or(|since| message.deleted_at >= since.millis(now))
            && self.until.as_ref().is_none_or(|until| message.deleted_at < until.millis(now))
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    id: u64,
    deleted_at: Option<Timestamp>,
    folder: String,
    uid: u32,
    date: Option<Timestamp>,
    size: u32,
    flags: Vec<String>,
    from: String,
    subject: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedMailbox {
    address: String,
    partition: u32,
    purge_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Undeleted {
    address: String,
    /// Messages that came back.
    undeleted: u64,
}

/// Shows what is kept.
pub(super) async fn list(target: &Target, format: Format, args: &DeletedArgs) -> Result<(), Failure> {
    let client = target.connect().await?;
    let now = Timestamp::now();
    let Some(address) = &args.address else {
        if !args.which.is_anything() {
            return Err(Failure::Usage("say whose deleted messages are meant: give an address".to_owned()));
        }
        let mailboxes = client.list_deleted_mailboxes().await?.into_iter().map(|mailbox| DeletedMailbox {
            address: mailbox.address,
            partition: mailbox.partition,
            purge_at: output::instant(mailbox.purge_at),
        });
        let mailboxes: Vec<_> = mailboxes.collect();
        return output::print(format, &mailboxes, |mailboxes| mailboxes_table(mailboxes, now));
    };
    let mut found = VecDeque::new();
    let kept = each(&client, address, true, |message| {
        if args.which.means(&message, now) {
            found.push_back(message);
            if found.len() > args.limit as usize {
                found.pop_front();
            }
        }
    })
    .await?;
    let found: Vec<Deleted> = found.into_iter().rev().map(Deleted::from).collect();
    output::print(format, &found, |found| table(found, kept, now))
}

/// Brings back what is meant.
pub(super) async fn undelete(target: &Target, format: Format, args: &UndeleteArgs) -> Result<(), Failure> {
    if args.which.is_anything() && !args.all {
        let text = "say which messages: --id, --folder, --since, --until, or --all";
        return Err(Failure::Usage(text.to_owned()));
    }
    let client = target.connect().await?;
    let now = Timestamp::now();
    let mut wanted = Vec::new();
    each(&client, &args.address, false, |message| {
        if args.which.means(&message, now) {
            wanted.push((message.number, u64::from(message.size)));
        }
    })
    .await?;
    if let Some(missing) = args.which.ids.iter().find(|id| !wanted.iter().any(|(number, _)| number == *id)) {
        let text =
            format!("message {missing} is not among what can be brought back; `mailbox deleted` shows it");
        return Err(Failure::Failed(text));
    }
    let (bar, total) = (Bar::new(), wanted.iter().map(|(_, bytes)| bytes).sum());
    let (mut done, mut undeleted) = (0, 0);
    for batch in wanted.chunks(AT_ONCE) {
        bar.set(done, total, args.address.clone());
        let numbers = batch.iter().map(|(number, _)| *number).collect();
        let (address, below) = (args.address.clone(), args.below.clone().unwrap_or_default());
        let request = UndeleteRequest { address, numbers, below };
        undeleted += client.undelete(request).await.inspect_err(|_| {
            bar.clear();
            if undeleted > 0 {
                eprintln!("{undeleted} messages came back before it failed");
            }
        })?;
        done += batch.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
    bar.clear();
    let told = Undeleted { address: args.address.clone(), undeleted };
    output::print(format, &told, |told| {
        format!("{} messages came back to {}\n", told.undeleted, told.address)
    })
}

/// How much is kept of a mailbox, whatever was asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    messages: u64,
    bytes: u64,
}

/// Calls with each deleted message that is kept, in the order of their deletion.
async fn each(
    client: &AdminClient,
    address: &str,
    headers: bool,
    mut visit: impl FnMut(admin::DeletedMessage),
) -> Result<Kept, Failure> {
    let mut after = 0;
    loop {
        let request = ListDeletedRequest {
            address: address.to_owned(),
            after,
            limit: AT_ONCE as u32,
            without_headers: !headers,
        };
        let page = client.list_deleted(request).await?;
        let Some(last) = page.messages.last() else {
            return Ok(Kept { messages: page.kept_messages, bytes: page.kept_bytes });
        };
        after = last.number;
        page.messages.into_iter().for_each(&mut visit);
    }
}

impl From<admin::DeletedMessage> for Deleted {
    fn from(message: admin::DeletedMessage) -> Self {
        Self {
            id: message.number,
            deleted_at: output::instant(message.deleted_at),
            folder: message.folder,
            uid: message.uid,
            date: output::instant(message.internal_date),
            size: message.size,
            flags: message.flags,
            from: message.from,
            subject: message.subject,
        }
    }
}

fn table(found: &[Deleted], kept: Kept, now: Timestamp) -> String {
    if kept.messages == 0 {
        return "no deleted messages are kept\n".to_owned();
    }
    let rows = found.iter().map(|message| {
        let ago = |at: Timestamp| format!("{} ago", output::span(now.duration_since(at).as_secs()));
        [
            message.id.to_string(),
            message.deleted_at.map_or_else(|| "-".to_owned(), ago),
            message.folder.clone(),
            output::bytes(message.size.into()),
            message.date.map_or_else(|| "-".to_owned(), |at| at.strftime("%Y-%m-%d").to_string()),
            message.from.clone(),
            message.subject.clone(),
        ]
    });
    let text = output::table(["ID", "DELETED", "FOLDER", "SIZE", "DATE", "FROM", "SUBJECT"], rows);
    format!("{text}\n{} of {} that are kept ({})\n", found.len(), kept.messages, output::bytes(kept.bytes))
}

fn mailboxes_table(mailboxes: &[DeletedMailbox], now: Timestamp) -> String {
    if mailboxes.is_empty() {
        return "no deleted mailboxes are kept\n".to_owned();
    }
    let rows = mailboxes.iter().map(|mailbox| {
        let left = mailbox.purge_at.map(|at| output::span(at.duration_since(now).as_secs().max(0)));
        [mailbox.address.clone(), mailbox.partition.to_string(), left.unwrap_or_else(|| "-".to_owned())]
    });
    output::table(["ADDRESS", "PARTITION", "PURGED IN"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn which(arguments: &[&str]) -> Which {
        #[derive(Debug, clap::Parser)]
        struct Only {
            #[command(flatten)]
            which: Which,
        }
        let arguments = std::iter::once("x").chain(arguments.iter().copied());
        <Only as clap::Parser>::try_parse_from(arguments).unwrap().which
    }

    fn message(number: u64, deleted_at: i64, folder: &str) -> admin::DeletedMessage {
        admin::DeletedMessage { number, deleted_at, folder: folder.to_owned(), ..Default::default() }
    }

    #[test]
    fn messages_are_chosen_by_number_folder_and_time() {
        let now = Timestamp::from_second(10_000).unwrap();
        let chosen = |arguments: &[&str]| -> Vec<u64> {
            let all = [
                message(1, 1_000_000, "Projects"),
                message(2, 5_000_000, "Projects/2026"),
                message(3, 9_999_000, "Projects old"),
                message(4, 10_000_000, "INBOX"),
            ];
            let which = which(arguments);
            all.iter().filter(|message| which.means(message, now)).map(|message| message.number).collect()
        };
        for (arguments, expected) in [
            (&[][..], vec![1, 2, 3, 4]),
            (&["--id", "4", "--id", "1"], vec![1, 4]),
            (&["--folder", "Projects"], vec![1, 2]),
            (&["--since", "1h"], vec![3, 4]),
            (&["--since", "1970-01-01T01:23:20Z", "--until", "1s"], vec![2]),
            (&["--until", "1970-01-01T02:46:40Z", "--folder", "INBOX"], vec![]),
        ] {
            assert_eq!(chosen(arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn what_is_neither_an_instant_nor_a_length_of_time_is_refused_with_both_forms() {
        for text in ["", "yesterday", "-2h", "2026-11-25"] {
            let error = text.parse::<When>().unwrap_err();
            assert!(error.contains("2026-11-25T17:48:00Z") && error.contains("2h"), "{error}");
        }
    }

    #[test]
    fn what_is_kept_is_shown_for_people() {
        let now = Timestamp::from_second(10_000).unwrap();
        let mut found = message(7, 9_990_000, "INBOX");
        (found.size, found.subject) = (2048, "hello".to_owned());
        let kept = Kept { messages: 12, bytes: 3072 };
        let text = table(&[Deleted::from(found)], kept, now);
        for part in ["10s ago", "2.0 KiB", "hello", "1 of 12 that are kept (3.0 KiB)"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(table(&[], Kept::default(), now).contains("no deleted messages"));
        let purge_at = Timestamp::from_second(13_600).ok();
        let mailbox = DeletedMailbox { address: "a@x.org".to_owned(), partition: 3, purge_at };
        assert!(mailboxes_table(&[mailbox], now).contains("60m"));
    }
}
