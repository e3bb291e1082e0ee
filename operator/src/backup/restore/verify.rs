//! Reads back what was restored, and compares it with what the backup holds.

use std::{collections::HashMap, time::Duration};

use quorumail_proto::admin::{ExportMailboxRequest, MailMessage, export_item};
use quorumail_store::MessageMeta;
use tokio::time::timeout;
use tonic::Status;

use super::{RestoreError, Tally};
use crate::admin::{AdminClient, AdminError, streaming_failure};

/// Times that it is begun.
const ATTEMPTS: usize = 8;
/// Before it is begun again.
const PAUSE: Duration = Duration::from_secs(2);
/// A node that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// What the messages of a mailbox should be: 16 bytes of their hash and their date, by folder and UID.
#[derive(Debug, Default)]
pub(super) struct Expected(HashMap<String, HashMap<u32, Print>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    hash: [u8; 16],
    date: i64,
}

impl Expected {
    pub(super) fn add(&mut self, folder: &str, meta: &MessageMeta, body: &[u8]) {
        let print = Print { hash: short(&blake3::hash(body)), date: meta.internal_date.0 };
        match self.0.get_mut(folder) {
            Some(messages) => drop(messages.insert(meta.uid.0, print)),
            None => drop(self.0.insert(folder.to_owned(), HashMap::from([(meta.uid.0, print)]))),
        }
    }

    /// It is not there, and that is known.
    pub(super) fn forget(&mut self, folder: &str, uid: u32) {
        if let Some(messages) = self.0.get_mut(folder) {
            messages.remove(&uid);
        }
    }
}

fn short(hash: &blake3::Hash) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}

/// Compares a mailbox of the cluster. What differs is a problem each.
pub(super) async fn verify(
    admin: &AdminClient,
    address: &str,
    expected: &Expected,
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    let mut reason = String::new();
    for turn in 0..ATTEMPTS {
        if turn > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match read_back(admin, turn, address, expected).await {
            Ok(found) => {
                tally.verified(found.equal);
                found.problems.into_iter().for_each(|problem| tally.problem(problem));
                return Ok(());
            }
            Err((true, text)) => reason = text,
            Err((false, text)) => {
                tally.problem(format!("{address} could not be read back: {text}"));
                return Ok(());
            }
        }
    }
    Err(AdminError::Unreachable(format!("{address}: tried {ATTEMPTS} times; {reason}")).into())
}

#[derive(Debug, Default)]
struct Found {
    equal: u64,
    problems: Vec<String>,
}

async fn read_back(
    admin: &AdminClient,
    turn: usize,
    address: &str,
    expected: &Expected,
) -> Result<Found, (bool, String)> {
    let folders: Vec<String> = expected
        .0
        .iter()
        .filter(|(_, messages)| !messages.is_empty())
        .map(|(name, _)| name.clone())
        .collect();
    if folders.is_empty() {
        return Ok(Found::default());
    }
    let (node, mut client) = admin.streaming(turn).ok_or((true, "there is no mailnode".to_owned()))?;
    let failed = |status: Status| streaming_failure(node, &status);
    let silent = |_| (true, format!("{node}: silent for {SILENCE:?}"));
    let request = ExportMailboxRequest { address: address.to_owned(), folders, ..Default::default() };
    let begun = timeout(SILENCE, client.export_mailbox(request)).await.map_err(silent)?;
    let mut items = begun.map_err(failed)?.into_inner();
    let mut check = Check {
        address,
        expected,
        left: HashMap::new(),
        folder: String::new(),
        open: None,
        found: Found::default(),
    };
    check.left = expected.0.iter().map(|(name, messages)| (name.clone(), messages.len())).collect();
    while let Some(item) = timeout(SILENCE, items.message()).await.map_err(silent)?.map_err(failed)? {
        match item.item {
            Some(export_item::Item::Folder(folder)) => {
                check.close();
                check.folder = folder.name;
            }
            Some(export_item::Item::Message(message)) => {
                check.close();
                check.open = Some((message, blake3::Hasher::new()));
            }
            Some(export_item::Item::Body(piece)) => {
                if let Some((_, hasher)) = &mut check.open {
                    hasher.update(&piece);
                }
            }
            Some(export_item::Item::Totals(_)) | None => {}
        }
    }
    check.close();
    Ok(check.end())
}

/// Compares message by message.
struct Check<'e> {
    address: &'e str,
    expected: &'e Expected,
    /// Messages that were not met, by folder.
    left: HashMap<String, usize>,
    folder: String,
    open: Option<(MailMessage, blake3::Hasher)>,
    found: Found,
}

impl Check<'_> {
    fn close(&mut self) {
        let Some((message, hasher)) = self.open.take() else { return };
        // New mail in the folder is none of ours.
        let Some(print) = self.expected.0.get(&self.folder).and_then(|folder| folder.get(&message.uid))
        else {
            return;
        };
        if let Some(left) = self.left.get_mut(&self.folder) {
            *left = left.saturating_sub(1);
        }
        let print_found = Print { hash: short(&hasher.finalize()), date: message.internal_date };
        if print_found == *print {
            self.found.equal += 1;
            return;
        }
        let what = if print_found.hash == print.hash { "date" } else { "content" };
        self.found.problems.push(format!(
            "{}: {}, UID {}: its {what} is not that of the backup",
            self.address, self.folder, message.uid
        ));
    }

    fn end(mut self) -> Found {
        let mut missing: Vec<(&String, &usize)> = self.left.iter().filter(|(_, left)| **left > 0).collect();
        missing.sort();
        for (folder, left) in missing {
            let text =
                format!("{}: {left} messages of {folder} were not found when it was read back", self.address);
            self.found.problems.push(text);
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use quorumail_store::{Flags, ModSeq, Timestamp, Uid};

    use super::*;

    fn meta(uid: u32) -> MessageMeta {
        MessageMeta {
            uid: Uid(uid),
            mod_seq: ModSeq(1),
            flags: Flags::new(),
            internal_date: Timestamp(5),
            size: 1,
        }
    }

    #[test]
    fn what_differs_or_is_missing_is_told() {
        let mut expected = Expected::default();
        for uid in 1..=5 {
            expected.add("INBOX", &meta(uid), &[uid as u8]);
        }
        expected.forget("INBOX", 5);
        let left = HashMap::from([("INBOX".to_owned(), 4)]);
        let folder = "INBOX".to_owned();
        let mut check =
            Check { address: "a", expected: &expected, left, folder, open: None, found: Found::default() };
        for (uid, date, body) in [(1, 5, 1u8), (2, 5, 99), (3, 6, 3), (9, 5, 9)] {
            let message = MailMessage { uid, internal_date: date, ..Default::default() };
            let mut hasher = blake3::Hasher::new();
            hasher.update(&[body]);
            check.open = Some((message, hasher));
            check.close();
        }
        let found = check.end();
        assert_eq!(found.equal, 1);
        assert_eq!(
            found.problems,
            [
                "a: INBOX, UID 2: its content is not that of the backup",
                "a: INBOX, UID 3: its date is not that of the backup",
                "a: 1 messages of INBOX were not found when it was read back",
            ]
        );
    }
}
