//! Mail into a living cluster: one stream for each mailbox, begun again at another node when it breaks. What is there is
//! found by the nodes, so that nothing is put twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use quorumail_proto::admin::{
    ImportFolder, ImportItem, ImportResult, ImportStart, MailFolder, MailMessage, MessageImported,
    import_folder::Uids, import_item, import_result, message_imported::Outcome,
};
use quorumail_store::{FolderInfo, MessageMeta, Store};
use tokio::sync::mpsc;

use super::{
    RestoreError, RestoreRequest, Tally,
    scope::Part,
    verify::{Expected, verify},
    walk::{self, Budget, Item},
};
use crate::admin::{AdminClient, AdminError, ImportFailure};

/// Times that the stream of a mailbox is begun.
const ATTEMPTS: usize = 8;
/// Before it is begun again: a node that was killed is back in seconds, and its groups have other leaders.
const PAUSE: Duration = Duration::from_secs(2);
/// Items on their way to the node.
const UNSENT: usize = 16;
/// Bytes of a body in one item.
const PIECE: usize = 512 << 10;

/// Why a stream ended too early.
enum Broken {
    /// It is begun again.
    Again(String),
    /// It is of no use for this mailbox.
    Mailbox(String),
    /// For the whole restore.
    Restore(RestoreError),
}

impl From<ImportFailure> for Broken {
    fn from(failure: ImportFailure) -> Self {
        match failure {
            ImportFailure::Again(text) => Self::Again(text),
            ImportFailure::Refused(text) => Self::Mailbox(text),
        }
    }
}

/// What is known of one mailbox over all attempts.
#[derive(Default)]
struct Journey {
    /// Messages that were told in the progress.
    told: u64,
    /// Messages that were added by earlier attempts.
    added_before: u64,
    /// What is to be found when it is read back.
    expected: Expected,
}

/// Restores what is wanted of one mailbox. What goes wrong with it alone is a problem and no error.
pub(super) async fn restore_mailbox(
    admin: &AdminClient,
    store: &Store,
    part: &Part,
    request: &RestoreRequest,
    budget: &Budget,
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    let mut journey = Journey::default();
    let mut reason = String::new();
    for turn in 0..ATTEMPTS {
        if turn > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let attempt = Attempt { part, request, tally, state: Mutex::default() };
        match attempt.run(admin, turn, store, budget, &mut journey).await {
            Ok(()) => {
                if request.verify {
                    verify(admin, &part.to, &journey.expected, tally).await?;
                }
                tally.mailbox_done();
                return Ok(());
            }
            Err(Broken::Again(text)) => {
                tracing::warn!(mailbox = part.to, reason = text, "a restore goes on at another mailnode");
                reason = text;
            }
            Err(Broken::Mailbox(text)) => {
                tally.problem(format!("{}: {text}", part.to));
                return Ok(());
            }
            Err(Broken::Restore(error)) => return Err(error),
        }
    }
    Err(AdminError::Unreachable(format!("{}: tried {ATTEMPTS} times; {reason}", part.to)).into())
}

/// One stream.
struct Attempt<'a, 'p> {
    part: &'a Part,
    request: &'a RestoreRequest,
    tally: &'a Tally<'p>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Messages sent so far.
    sent: u64,
    all_sent: bool,
    /// Sent and not answered, by number.
    waiting: HashMap<u64, Sent>,
    folders: u64,
    added: u64,
    added_bytes: u64,
    there: u64,
    /// Folders that were refused, and why.
    refused_folders: BTreeMap<String, String>,
    /// Messages that were refused, by folder and reason: how many, and the UID of the first one.
    refused: BTreeMap<(String, String), (u64, u32)>,
    lost: Vec<String>,
    expected: Expected,
}

struct Sent {
    folder: String,
    uid: u32,
    size: u64,
}

impl Attempt<'_, '_> {
    async fn run(
        self,
        admin: &AdminClient,
        turn: usize,
        store: &Store,
        budget: &Budget,
        journey: &mut Journey,
    ) -> Result<(), Broken> {
        let outcome = self.stream(admin, turn, store, budget, journey.told).await;
        let state = self.state.into_inner();
        let whole = state.all_sent && state.waiting.is_empty();
        let outcome = outcome.and_then(|()| match whole {
            true => Ok(()),
            false => Err(Broken::Again("the answers ended too early".to_owned())),
        });
        journey.told = journey.told.max(state.sent - state.waiting.len() as u64);
        self.tally.add(|restored| {
            restored.messages += state.added;
            restored.bytes += state.added_bytes;
        });
        if outcome.is_err() {
            journey.added_before += state.added;
            return outcome;
        }
        self.tally.add(|restored| {
            restored.folders += state.folders;
            restored.already_there += state.there.saturating_sub(journey.added_before);
        });
        for problem in problems(&self.part.to, &state) {
            self.tally.problem(problem);
        }
        journey.expected = state.expected;
        Ok(())
    }

    /// Sends and hears until both have come to their end.
    async fn stream(
        &self,
        admin: &AdminClient,
        turn: usize,
        store: &Store,
        budget: &Budget,
        told: u64,
    ) -> Result<(), Broken> {
        let (send, items) = mpsc::channel(UNSENT);
        let waits = || !self.state.lock().waiting.is_empty();
        let call = admin.import_mailbox(turn, items, waits, |result| self.take(result, told));
        let feed = self.feed(send, store, budget);
        tokio::pin!(call, feed);
        tokio::select! {
            ended = &mut call => ended,
            fed = &mut feed => match fed {
                Ok(()) => call.await,
                Err(error) => Err(Broken::Restore(error)),
            },
        }
    }

    /// Sends the mailbox. That the node hears no more is no error: its answer tells why.
    async fn feed(
        &self,
        send: mpsc::Sender<ImportItem>,
        store: &Store,
        budget: &Budget,
    ) -> Result<(), RestoreError> {
        let mut items = walk::walk(store, self.part, self.request, budget);
        let start = import_item::Item::Start(ImportStart { address: self.part.to.clone() });
        let mut is_heard = send.send(ImportItem { item: Some(start) }).await.is_ok();
        let mut folder = String::new();
        while let Some(item) = items.recv().await
            && is_heard
        {
            match item? {
                Item::Folder(info, name) => {
                    self.state.lock().folders += 1;
                    let wanted = import_folder(&info, &name, self.request.prefix.is_none());
                    folder = name;
                    is_heard = send_one(&send, import_item::Item::Folder(wanted)).await;
                }
                Item::Lost(uid, reason) => {
                    self.state.lock().lost.push(format!("{folder}, UID {}: {reason}", uid.0));
                }
                Item::Message(meta, body, _room) => {
                    self.note(&folder, &meta, &body);
                    is_heard = send_one(&send, import_item::Item::Message(import_message(&meta))).await;
                    for piece in body.chunks(PIECE) {
                        is_heard = is_heard && send_one(&send, import_item::Item::Body(piece.to_vec())).await;
                    }
                }
            }
        }
        self.state.lock().all_sent = is_heard;
        Ok(())
    }

    fn note(&self, folder: &str, meta: &MessageMeta, body: &[u8]) {
        let mut state = self.state.lock();
        let number = state.sent;
        state.sent += 1;
        let sent = Sent { folder: folder.to_owned(), uid: meta.uid.0, size: u64::from(meta.size) };
        state.waiting.insert(number, sent);
        if self.request.verify {
            state.expected.add(folder, meta, body);
        }
    }

    fn take(&self, result: ImportResult, told: u64) -> Result<(), Broken> {
        match result.result {
            Some(import_result::Result::Folder(folder)) => {
                if !folder.refused.is_empty() {
                    self.state.lock().refused_folders.insert(folder.name, folder.refused);
                }
                Ok(())
            }
            Some(import_result::Result::Message(message)) => {
                let (answered, size) = self.take_message(message)?;
                // What an attempt before told already is not told again.
                if answered > told {
                    self.tally.looked_at(1, size);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Messages answered so far, and the size of this one.
    fn take_message(&self, message: MessageImported) -> Result<(u64, u64), Broken> {
        let mut state = self.state.lock();
        let sent = state.waiting.remove(&message.number);
        let sent =
            sent.ok_or_else(|| Broken::Mailbox("a message was answered that was not sent".to_owned()))?;
        let size = sent.size;
        match message.outcome() {
            Outcome::Added => {
                state.added += 1;
                state.added_bytes += size;
            }
            Outcome::AlreadyThere => state.there += 1,
            Outcome::Gone => {
                state.there += 1;
                state.expected.forget(&sent.folder, sent.uid);
            }
            Outcome::Refused | Outcome::Unspecified => {
                state.expected.forget(&sent.folder, sent.uid);
                let refused = state.refused.entry((sent.folder, message.reason)).or_insert((0, sent.uid));
                refused.0 += 1;
                refused.1 = refused.1.min(sent.uid);
            }
        }
        Ok((state.sent - state.waiting.len() as u64, size))
    }
}

/// Whether it is heard.
async fn send_one(send: &mpsc::Sender<ImportItem>, item: import_item::Item) -> bool {
    send.send(ImportItem { item: Some(item) }).await.is_ok()
}

/// One line for what went wrong for the same reason.
fn problems(address: &str, state: &State) -> Vec<String> {
    let mut lines: Vec<String> = state.lost.iter().map(|lost| format!("{address}: {lost}")).collect();
    let mut folders: BTreeSet<&String> = state.refused_folders.keys().collect();
    for ((folder, reason), (count, first)) in &state.refused {
        if state.refused_folders.contains_key(folder) {
            folders.remove(folder);
            let reason = &state.refused_folders[folder];
            lines.push(format!("{address}: folder {folder}, {count} messages: {reason}"));
            continue;
        }
        let hint = match reason.contains("quota") {
            true => "; raise the quota of the mailbox and run the restore again",
            false => "",
        };
        lines.push(format!(
            "{address}: {count} messages of {folder}, the first with UID {first}: {reason}{hint}"
        ));
    }
    let empty = folders.into_iter().map(|folder| (folder, &state.refused_folders[folder]));
    lines.extend(empty.map(|(folder, reason)| format!("{address}: folder {folder}: {reason}")));
    lines
}

fn import_folder(info: &FolderInfo, name: &str, in_place: bool) -> ImportFolder {
    let special_use = info.special_use.filter(|_| in_place).map(|use_| format!("{use_:?}"));
    let folder = MailFolder {
        name: name.to_owned(),
        special_use: special_use.unwrap_or_default(),
        subscribed: info.subscribed,
        uid_validity: info.uid_validity.0,
        uid_next: info.uid_next.0,
        highest_mod_seq: info.highest_mod_seq.0,
        messages: info.messages,
        bytes: info.bytes,
    };
    let uids = if in_place { Uids::Keep } else { Uids::OfSource };
    ImportFolder { folder: Some(folder), uids: uids.into() }
}

fn import_message(meta: &MessageMeta) -> MailMessage {
    MailMessage {
        uid: meta.uid.0,
        flags: meta.flags.iter().map(|flag| flag.0.clone()).collect(),
        internal_date: meta.internal_date.0,
        size: meta.size.into(),
        mod_seq: meta.mod_seq.0,
        source: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_for_one_reason_is_told_in_one_line() {
        let mut state = State::default();
        let quota = "the mailbox is over its quota".to_owned();
        state.refused.insert(("INBOX".to_owned(), quota), (12, 5));
        state.refused.insert(("Old".to_owned(), "the folder was refused".to_owned()), (3, 1));
        state.refused_folders.insert("Old".to_owned(), "it holds other mail".to_owned());
        state.refused_folders.insert("Empty".to_owned(), "it holds other mail".to_owned());
        let lines = problems("a@example.org", &state);
        assert_eq!(
            lines,
            [
                "a@example.org: 12 messages of INBOX, the first with UID 5: the mailbox is over its quota; \
                 raise the quota of the mailbox and run the restore again",
                "a@example.org: folder Old, 3 messages: it holds other mail",
                "a@example.org: folder Empty: it holds other mail",
            ]
        );
    }
}
