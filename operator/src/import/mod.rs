//! Mail from elsewhere into a living mailbox: how people move in. From Maildirs, mboxes, or a mailbox of another server.
//!
//! Everything may be repeated: each message has a *source*, 16 bytes that are the same each time, and the folder that took it
//! remembers them. So an import that was interrupted goes on, and one that is run again brings what is new. What was imported
//! and deleted since does not come back. Dates, flags and the order of messages are kept; they get new UIDs.

pub mod maildir;
pub mod mbox;
pub mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_proto::admin::{
    ImportFolder, ImportItem, ImportResult, ImportStart, MailFolder, MailMessage, import_folder::Uids,
    import_item, import_result, message_imported::Outcome,
};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::admin::{AdminClient, AdminError, ImportFailure};

/// Messages that are looked at together.
const PAGE: usize = 500;
/// Times that something is tried without a message in between.
const ATTEMPTS: usize = 8;
/// Before it is tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// Items on their way to the node.
const UNSENT: usize = 16;
/// Bytes of a body in one item.
const PIECE: usize = 512 << 10;
/// Largest message that is read: what a mailnode takes in an import.
const MAX_MESSAGE: u64 = 256 << 20;
/// Problems that are told one by one.
const MAX_PROBLEMS: usize = 1000;
/// Folders that are named to somebody who asked for one that is not there.
const SHOWN_FOLDERS: usize = 20;

/// Why an import ended.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// What was asked for cannot be.
    #[error("{0}")]
    Request(String),
    /// Where the mail comes from.
    #[error("{0}")]
    Source(String),
    /// A file.
    #[error("failed to {action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// The answer.
        source: std::io::Error,
    },
    /// The mailnodes do not answer, or refuse.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The mailbox takes nothing.
    #[error("{0}")]
    Refused(String),
}

/// A folder where the mail comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Full name, with `/` between levels.
    pub name: String,
    /// `Sent`, `Drafts`, `Trash`, `Junk` or `Archive`, where the source says that it is used for that.
    pub special_use: Option<&'static str>,
    /// It shows mail of other folders: imported only when it is asked for by name.
    pub is_view: bool,
    /// Number of messages, where it is known before they are read.
    pub messages: Option<u64>,
    /// Their bytes, in the same way.
    pub bytes: Option<u64>,
}

/// A message that can be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Names it where it comes from.
    pub source: [u8; 16],
    /// The same for people.
    pub label: String,
    /// Where the source finds it again.
    pub place: u64,
    /// As IMAP writes them.
    pub flags: Vec<String>,
    /// Unix milliseconds.
    pub internal_date: i64,
    /// In bytes, about.
    pub size: u64,
}

/// A message that was read, or why it cannot be: its number in what was asked for.
pub struct Read {
    number: usize,
    body: Result<Bytes, String>,
}

/// Where mail comes from.
#[async_trait]
pub trait Source: Send {
    /// Its folders, in an order that stays.
    async fn folders(&mut self) -> Result<Vec<Found>, ImportError>;

    /// The messages that follow are of this folder, by its number in [`Source::folders`].
    async fn open(&mut self, folder: usize) -> Result<(), ImportError>;

    /// The next messages of the folder, at most 500, in the order in which they arrived; empty after the last.
    async fn page(&mut self) -> Result<Vec<Candidate>, ImportError>;

    /// Reads messages of the folder in the order given. Ends when nobody hears any more.
    async fn read(&mut self, wanted: &[Candidate], out: mpsc::Sender<Read>) -> Result<(), ImportError>;
}

/// What is imported, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportRequest {
    /// Address of the mailbox.
    pub address: String,
    /// Only these folders of the source; empty: all.
    pub folders: Vec<String>,
    /// Folder under which everything comes; none: under its own names.
    pub under: Option<String>,
}

/// A folder, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// Its name in the source.
    pub from: String,
    /// Its name in the mailbox.
    pub to: String,
    /// Number of messages, where it is known before they are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    /// Their bytes, in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip)]
    number: usize,
    #[serde(skip)]
    special_use: &'static str,
}

/// How far an import is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportProgress {
    /// The folder that is read.
    pub folder: String,
    /// Messages that were looked at.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// All bytes, about.
    pub total_bytes: u64,
}

/// What was imported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Folders, empty ones as well.
    pub folders: u64,
    /// Messages that were added.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that an import added before.
    pub already_there: u64,
    /// What was not imported, and why.
    pub problems: Vec<String>,
    /// Number of problems, those that are not told one by one as well.
    pub problem_count: u64,
}

/// What would be imported.
///
/// # Errors
/// When the source cannot be read, or has no folder of a name that was asked for.
pub async fn plan(source: &mut dyn Source, request: &ImportRequest) -> Result<Vec<Planned>, ImportError> {
    let found = source.folders().await?;
    if let Some(missing) =
        request.folders.iter().find(|wanted| found.iter().all(|folder| folder.name != **wanted))
    {
        let names: Vec<_> = found.iter().take(SHOWN_FOLDERS).map(|folder| folder.name.as_str()).collect();
        return Err(ImportError::Request(format!(
            "there is no folder {missing:?}; there are: {}",
            names.join(", ")
        )));
    }
    let mut used = BTreeSet::new();
    let mut planned = Vec::new();
    for (number, folder) in found.into_iter().enumerate() {
        let is_wanted =
            if request.folders.is_empty() { !folder.is_view } else { request.folders.contains(&folder.name) };
        if !is_wanted {
            continue;
        }
        // Of several with the same use, one takes its place here.
        let special_use = folder.special_use.filter(|wanted| used.insert(*wanted)).unwrap_or_default();
        let to = match &request.under {
            Some(under) => format!("{under}/{}", folder.name),
            None if special_use.is_empty() => folder.name.clone(),
            None => special_use.to_owned(),
        };
        planned.push(Planned {
            from: folder.name,
            to,
            messages: folder.messages,
            bytes: folder.bytes,
            number,
            special_use: if request.under.is_some() { "" } else { special_use },
        });
    }
    Ok(planned)
}

/// Imports into a mailbox. `progress` hears of how far it is.
///
/// # Errors
/// When nothing more can be done; what was imported stays, and the next run goes on. What lies in single messages or folders is
/// no error but a problem in the answer.
pub async fn import(
    admin: &AdminClient,
    source: &mut dyn Source,
    request: &ImportRequest,
    progress: &(dyn Fn(&ImportProgress) + Send + Sync),
) -> Result<Imported, ImportError> {
    let planned = plan(source, request).await?;
    let total_bytes = planned.iter().filter_map(|folder| folder.bytes).sum();
    let mut import = Import {
        admin,
        address: request.address.to_lowercase(),
        turn: 0,
        imported: Imported::default(),
        told: ImportProgress { total_bytes, ..ImportProgress::default() },
        progress,
    };
    for folder in &planned {
        import.folder(source, folder).await?;
    }
    Ok(import.imported)
}

struct Import<'a> {
    admin: &'a AdminClient,
    address: String,
    /// Which node is tried.
    turn: usize,
    imported: Imported,
    told: ImportProgress,
    progress: &'a (dyn Fn(&ImportProgress) + Send + Sync),
}

impl Import<'_> {
    async fn folder(&mut self, source: &mut dyn Source, folder: &Planned) -> Result<(), ImportError> {
        source.open(folder.number).await?;
        self.imported.folders += 1;
        self.told.folder.clone_from(&folder.from);
        let mut refused: BTreeMap<String, (u64, String)> = BTreeMap::new();
        let mut is_first = true;
        loop {
            let page = source.page().await?;
            let is_last = page.is_empty();
            let looked_at = page.len() as u64;
            let unknown = match is_last {
                true => Vec::new(),
                false => self.unknown(folder, page).await?,
            };
            let known = looked_at - unknown.len() as u64;
            self.imported.already_there += known;
            self.told.messages += known;
            // An empty folder is made as well.
            if !unknown.is_empty() || (is_last && is_first) {
                let asked = unknown.len() as u64;
                let before = refused.values().map(|(count, _)| count).sum::<u64>();
                if let Some(reason) = self.write(source, folder, unknown, &mut refused).await? {
                    self.problem(format!("folder {}: {reason}", folder.to));
                    break;
                }
                let after = refused.values().map(|(count, _)| count).sum::<u64>();
                if asked == PAGE as u64 && after - before == asked && refused.len() == 1 {
                    self.problem(format!("folder {}: the rest was not tried", folder.to));
                    break;
                }
            }
            is_first = false;
            if is_last {
                break;
            }
        }
        for (reason, (count, first)) in refused {
            let what = match count {
                1 => format!("folder {}, {first}", folder.to),
                _ => format!("folder {}, {count} messages, the first {first}", folder.to),
            };
            self.problem(format!("{what}: {reason}"));
        }
        Ok(())
    }

    fn problem(&mut self, text: String) {
        self.imported.problem_count += 1;
        if self.imported.problems.len() < MAX_PROBLEMS {
            self.imported.problems.push(text);
        }
    }

    /// Those that the folder does not know yet.
    async fn unknown(
        &mut self,
        folder: &Planned,
        page: Vec<Candidate>,
    ) -> Result<Vec<Candidate>, ImportError> {
        let sources: Vec<_> = page.iter().map(|candidate| candidate.source).collect();
        let mut failures = 0;
        let known = loop {
            match self.admin.find_imported(&self.address, &folder.to, &sources).await {
                Ok(known) => break known,
                Err(AdminError::Unreachable(reason)) if failures + 1 < ATTEMPTS => {
                    tracing::warn!(mailbox = self.address, reason, "an import waits for a mailnode");
                    failures += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok(page.into_iter().zip(known).filter(|(_, known)| !known).map(|(candidate, _)| candidate).collect())
    }

    /// Writes messages; answers why the folder takes none, if so.
    async fn write(
        &mut self,
        source: &mut dyn Source,
        folder: &Planned,
        mut left: Vec<Candidate>,
        refused: &mut BTreeMap<String, (u64, String)>,
    ) -> Result<Option<String>, ImportError> {
        let mut failures = 0;
        loop {
            let attempt = Attempt {
                address: &self.address,
                folder,
                candidates: &left,
                state: Mutex::new(State { ended: vec![None; left.len()], ..State::default() }),
                told: Mutex::new(&mut self.told),
                progress: self.progress,
            };
            let outcome = attempt.run(self.admin, self.turn, source).await;
            let state = attempt.state.into_inner();
            let mut rest = Vec::new();
            let answered = state.ended.iter().flatten().count();
            for (candidate, ended) in left.into_iter().zip(state.ended) {
                match ended {
                    Some(End::Added(bytes)) => {
                        self.imported.messages += 1;
                        self.imported.bytes += bytes;
                    }
                    Some(End::There) => self.imported.already_there += 1,
                    Some(End::Refused(reason)) => {
                        refused.entry(reason).or_insert((0, candidate.label)).0 += 1;
                    }
                    None => rest.push(candidate),
                }
            }
            left = rest;
            if state.folder_refused.is_some() {
                return Ok(state.folder_refused);
            }
            let reason = match outcome {
                Ok(()) if left.is_empty() => return Ok(None),
                Ok(()) => "the answers ended too early".to_owned(),
                Err(Broken::Again(reason)) => reason,
                Err(Broken::Failed(error)) => return Err(error),
            };
            failures = if answered > 0 { 1 } else { failures + 1 };
            if failures == ATTEMPTS {
                let text = format!("{}: tried {ATTEMPTS} times; {reason}", self.address);
                return Err(AdminError::Unreachable(text).into());
            }
            tracing::warn!(mailbox = self.address, reason, "an import goes on at another mailnode");
            self.turn += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone)]
enum End {
    Added(u64),
    There,
    Refused(String),
}

enum Broken {
    /// It is begun again.
    Again(String),
    Failed(ImportError),
}

impl From<ImportFailure> for Broken {
    fn from(failure: ImportFailure) -> Self {
        match failure {
            ImportFailure::Again(text) => Self::Again(text),
            ImportFailure::Refused(text) => Self::Failed(ImportError::Refused(text)),
        }
    }
}

#[derive(Default)]
struct State {
    /// What became of each candidate.
    ended: Vec<Option<End>>,
    /// Of each message that was sent: which candidate, and how long.
    sent: Vec<(usize, u64)>,
    answered: usize,
    folder_refused: Option<String>,
}

/// One stream.
struct Attempt<'a> {
    address: &'a str,
    folder: &'a Planned,
    candidates: &'a [Candidate],
    state: Mutex<State>,
    told: Mutex<&'a mut ImportProgress>,
    progress: &'a (dyn Fn(&ImportProgress) + Send + Sync),
}

impl Attempt<'_> {
    /// Sends and hears until both have come to their end.
    async fn run(&self, admin: &AdminClient, turn: usize, source: &mut dyn Source) -> Result<(), Broken> {
        let (send, items) = mpsc::channel(UNSENT);
        let waits = || {
            let state = self.state.lock();
            state.answered < state.sent.len()
        };
        let call = admin.import_mailbox(turn, items, waits, |result| self.take(result));
        let feed = self.feed(send, source);
        tokio::pin!(call, feed);
        tokio::select! {
            ended = &mut call => ended,
            fed = &mut feed => match fed {
                Ok(()) => call.await,
                Err(error) => Err(Broken::Failed(error)),
            },
        }
    }

    /// Sends the messages. That the node hears no more is no error: its answer tells why.
    async fn feed(&self, send: mpsc::Sender<ImportItem>, source: &mut dyn Source) -> Result<(), ImportError> {
        let start = ImportStart { address: self.address.to_owned() };
        let folder = MailFolder {
            name: self.folder.to.clone(),
            special_use: self.folder.special_use.to_owned(),
            subscribed: true,
            ..MailFolder::default()
        };
        let folder = ImportFolder { folder: Some(folder), uids: Uids::New.into() };
        for item in [import_item::Item::Start(start), import_item::Item::Folder(folder)] {
            if !send_one(&send, item).await {
                return Ok(());
            }
        }
        let (out, mut messages) = mpsc::channel(1);
        let reading = source.read(self.candidates, out);
        let sending = async move {
            while let Some(Read { number, body }) = messages.recv().await {
                match body {
                    Ok(body) => {
                        if !self.send(&send, number, &body).await {
                            break;
                        }
                    }
                    Err(reason) => {
                        self.state.lock().ended[number] = Some(End::Refused(reason));
                        self.tell(self.candidates[number].size);
                    }
                }
            }
        };
        let (read, ()) = tokio::join!(reading, sending);
        read
    }

    /// Whether it is heard.
    async fn send(&self, send: &mpsc::Sender<ImportItem>, number: usize, body: &Bytes) -> bool {
        let candidate = &self.candidates[number];
        let size = body.len() as u64;
        self.state.lock().sent.push((number, size));
        let message = MailMessage {
            flags: candidate.flags.clone(),
            internal_date: candidate.internal_date,
            size,
            source: candidate.source.to_vec(),
            ..MailMessage::default()
        };
        if !send_one(send, import_item::Item::Message(message)).await {
            return false;
        }
        for piece in body.chunks(PIECE) {
            if !send_one(send, import_item::Item::Body(piece.to_vec())).await {
                return false;
            }
        }
        true
    }

    fn take(&self, result: ImportResult) -> Result<(), Broken> {
        let mut state = self.state.lock();
        let message = match result.result {
            Some(import_result::Result::Message(message)) => message,
            Some(import_result::Result::Folder(folder)) => {
                if folder.refused.is_empty() {
                    return Ok(());
                }
                state.folder_refused = Some(folder.refused.clone());
                // Nothing that follows is of use.
                return Err(Broken::Again(folder.refused));
            }
            None => return Ok(()),
        };
        let sent = usize::try_from(message.number).ok().and_then(|number| state.sent.get(number).copied());
        let Some((number, size)) = sent.filter(|(number, _)| state.ended[*number].is_none()) else {
            let text = "a message was answered that was not sent".to_owned();
            return Err(Broken::Failed(ImportError::Refused(text)));
        };
        state.ended[number] = Some(match message.outcome() {
            Outcome::Added => End::Added(size),
            Outcome::AlreadyThere | Outcome::Gone => End::There,
            Outcome::Refused | Outcome::Unspecified => End::Refused(message.reason),
        });
        state.answered += 1;
        drop(state);
        self.tell(size);
        Ok(())
    }

    fn tell(&self, bytes: u64) {
        let mut told = self.told.lock();
        told.messages += 1;
        told.bytes += bytes;
        (self.progress)(&told);
    }
}

/// Whether it is heard.
async fn send_one(send: &mpsc::Sender<ImportItem>, item: import_item::Item) -> bool {
    send.send(ImportItem { item: Some(item) }).await.is_ok()
}

/// The messages of a folder that is open, told page by page.
#[derive(Debug, Default)]
struct Entries {
    all: Vec<Candidate>,
    next: usize,
}

impl Entries {
    fn new(all: Vec<Candidate>) -> Self {
        Self { all, next: 0 }
    }

    fn page(&mut self) -> Vec<Candidate> {
        let rest = &self.all[self.next..];
        let page = rest[..rest.len().min(PAGE)].to_vec();
        self.next += page.len();
        page
    }
}

/// A source from what names a message where it comes from.
fn source_of(kind: &str, parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in [kind.as_bytes()].iter().chain(parts) {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    let mut source = [0; 16];
    hasher.finalize_xof().fill(&mut source);
    source
}

/// A message as mail has it: each line ends with CRLF (RFC 5322 2.3). In files they often end with LF alone.
fn with_crlf(message: &[u8]) -> Vec<u8> {
    let bare = message.iter().filter(|byte| **byte == b'\n').count();
    let mut out = Vec::with_capacity(message.len() + bare);
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) => {
                out.extend_from_slice(text.strip_suffix(b"\r").unwrap_or(text));
                out.extend_from_slice(b"\r\n");
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// The result of work that may block.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ImportError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn failed(action: &str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ImportError {
    let action = format!("{action} {}", path.display());
    move |source| ImportError::Io { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<Found>);

    #[async_trait]
    impl Source for Fixed {
        async fn folders(&mut self) -> Result<Vec<Found>, ImportError> {
            Ok(self.0.clone())
        }
        async fn open(&mut self, _: usize) -> Result<(), ImportError> {
            Ok(())
        }
        async fn page(&mut self) -> Result<Vec<Candidate>, ImportError> {
            Ok(Vec::new())
        }
        async fn read(&mut self, _: &[Candidate], _: mpsc::Sender<Read>) -> Result<(), ImportError> {
            Ok(())
        }
    }

    fn source() -> Fixed {
        let found = |name: &str, special_use: Option<&'static str>, is_view| Found {
            name: name.to_owned(),
            special_use,
            is_view,
            ..Found::default()
        };
        Fixed(vec![
            found("INBOX", None, false),
            found("Gesendet", Some("Sent"), false),
            found("Old/Sent", Some("Sent"), false),
            found("[Gmail]/All Mail", None, true),
        ])
    }

    async fn targets(request: ImportRequest) -> Result<Vec<(String, &'static str)>, ImportError> {
        let planned = plan(&mut source(), &request).await?;
        Ok(planned.into_iter().map(|folder| (folder.to, folder.special_use)).collect())
    }

    #[tokio::test]
    async fn folders_go_where_they_are_used_or_under_their_own_names() {
        let all = targets(ImportRequest::default()).await.unwrap();
        assert_eq!(all, [("INBOX".into(), ""), ("Sent".into(), "Sent"), ("Old/Sent".into(), "")]);
        let under = ImportRequest { under: Some("Old mail".into()), ..ImportRequest::default() };
        let under = targets(under).await.unwrap();
        assert_eq!(under[1], ("Old mail/Gesendet".into(), ""));
        let view = ImportRequest { folders: vec!["[Gmail]/All Mail".into()], ..ImportRequest::default() };
        assert_eq!(targets(view).await.unwrap(), [("[Gmail]/All Mail".into(), "")]);
        let missing = ImportRequest { folders: vec!["Sent".into()], ..ImportRequest::default() };
        let error = targets(missing).await.unwrap_err().to_string();
        assert!(error.contains("\"Sent\"") && error.contains("INBOX, Gesendet"), "{error}");
    }

    #[test]
    fn lines_end_as_in_mail() {
        for (given, expected) in
            [("a\nb\r\nc", "a\r\nb\r\nc"), ("\n\r\n", "\r\n\r\n"), ("", ""), ("a\rb\n", "a\rb\r\n")]
        {
            assert_eq!(with_crlf(given.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn sources_differ_where_any_part_does() {
        let sources: BTreeSet<_> = [
            source_of("a", &[b"bc"]),
            source_of("ab", &[b"c"]),
            source_of("a", &[b"b", b"c"]),
            source_of("a", &[b"bc", b""]),
        ]
        .into();
        assert_eq!(sources.len(), 4);
        assert_eq!(source_of("a", &[b"bc"]), source_of("a", &[b"bc"]));
    }
}
