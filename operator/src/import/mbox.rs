//! mbox files: messages one after the other, each behind a line that begins with `From `. RFC 4155, and what programs make of
//! it: the variants mboxo and mboxrd, flags in `Status`, `X-Status`, `X-Keywords` and the headers of Mozilla. Lengths by
//! `Content-Length` (mboxcl) are not looked at.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::{
    Timestamp,
    civil::DateTime,
    tz::{Offset, TimeZone},
};
use mail_parser::MessageParser;
use tokio::sync::mpsc;

use super::{
    Candidate, Entries, Found, ImportError, MAX_MESSAGE, Read, Source, blocking, failed, source_of, with_crlf,
};

/// Levels of directories below the one that is given.
const MAX_DEPTH: usize = 32;
/// Files that are taken for folders at most.
const MAX_FILES: usize = 10_000;
/// Bytes of a line that are looked at together.
const PIECE: u64 = 64 << 10;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// A message that Thunderbird deleted, and did not take out of the file yet.
const MOZILLA_EXPUNGED: u32 = 0x8;

/// An mbox file, or the mbox files of a directory.
pub struct Mbox {
    path: PathBuf,
    files: Vec<PathBuf>,
    /// Of the file that is open.
    entries: Entries,
    open: PathBuf,
}

impl Mbox {
    /// Nothing is read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, files: Vec::new(), entries: Entries::default(), open: PathBuf::new() }
    }
}

#[async_trait]
impl Source for Mbox {
    async fn folders(&mut self) -> Result<Vec<Found>, ImportError> {
        let path = self.path.clone();
        let found = blocking(move || files(&path)).await?;
        self.files = found.iter().map(|(_, path, _)| path.clone()).collect();
        let folder = |(name, _, bytes)| Found { name, bytes: Some(bytes), ..Found::default() };
        Ok(found.into_iter().map(folder).collect())
    }

    async fn open(&mut self, folder: usize) -> Result<(), ImportError> {
        let path = self.files[folder].clone();
        self.open.clone_from(&path);
        self.entries = Entries::new(blocking(move || index(&path)).await?);
        Ok(())
    }

    async fn page(&mut self) -> Result<Vec<Candidate>, ImportError> {
        Ok(self.entries.page())
    }

    async fn read(&mut self, wanted: &[Candidate], out: mpsc::Sender<Read>) -> Result<(), ImportError> {
        let (path, places) =
            (self.open.clone(), wanted.iter().map(|candidate| candidate.place).collect::<Vec<_>>());
        blocking(move || {
            let mut file = BufReader::new(File::open(&path).map_err(failed("open", &path))?);
            for (number, place) in places.into_iter().enumerate() {
                file.seek(SeekFrom::Start(place)).map_err(failed("read", &path))?;
                let mut scanner = Scanner::new(&mut file, place);
                let body = match scanner.message().map_err(failed("read", &path))? {
                    Some(Message { content: Some(content), .. }) => Ok(Bytes::from(content.body)),
                    Some(_) => Err(too_large()),
                    None => Err("the file was changed meanwhile; run the import again".to_owned()),
                };
                if out.blocking_send(Read { number, body }).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }
}

fn too_large() -> String {
    format!("it is larger than {MAX_MESSAGE} bytes")
}

/// Folders below a path: name, file, bytes.
fn files(path: &Path) -> Result<Vec<(String, PathBuf, u64)>, ImportError> {
    let meta = fs::metadata(path).map_err(failed("read", path))?;
    let mut found = Vec::new();
    if meta.is_file() {
        if !is_mbox(path, meta.len())? {
            let text = format!("{} is no mbox file: it does not begin with \"From \"", path.display());
            return Err(ImportError::Request(text));
        }
        let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push((file_folder(&stem), path.to_owned(), meta.len()));
        return Ok(found);
    }
    walk(path, &mut Vec::new(), &mut found)?;
    if found.is_empty() {
        return Err(ImportError::Request(format!("{} holds no mbox file", path.display())));
    }
    found.sort();
    Ok(found)
}

fn walk(
    dir: &Path,
    levels: &mut Vec<String>,
    found: &mut Vec<(String, PathBuf, u64)>,
) -> Result<(), ImportError> {
    for entry in fs::read_dir(dir).map_err(failed("read", dir))? {
        let entry = entry.map_err(failed("read", dir))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let meta = fs::metadata(&path).map_err(failed("read", &path))?;
        if meta.is_dir() {
            if levels.len() < MAX_DEPTH {
                let level = name.strip_suffix(".sbd").or_else(|| name.strip_suffix(".mbox"));
                levels.push(level.unwrap_or(&name).to_owned());
                walk(&path, levels, found)?;
                levels.pop();
            }
            continue;
        }
        if !is_mbox(&path, meta.len())? {
            continue;
        }
        if found.len() == MAX_FILES {
            return Err(ImportError::Request(format!("there are more than {MAX_FILES} mbox files")));
        }
        // `Name.mbox/mbox`: as Apple Mail exports.
        let last = if name == "mbox" && !levels.is_empty() { None } else { Some(file_folder(&name)) };
        let full: Vec<&str> = levels.iter().map(String::as_str).chain(last.as_deref()).collect();
        found.push((full.join("/"), path, meta.len()));
    }
    Ok(())
}

/// The folder that a file is named for. As exports write it: dots between the levels, and what has a meaning in file names as
/// `%` and two digits.
fn file_folder(name: &str) -> String {
    let folder = match name.strip_suffix(".mbox") {
        Some(stem) => stem.split('.').map(unescape).collect::<Vec<_>>().join("/"),
        None => name.to_owned(),
    };
    if folder.eq_ignore_ascii_case("inbox") { "INBOX".to_owned() } else { folder }
}

/// Undoes what exports do to names: `%2E`, `%2F`, `%25` and control characters.
pub(super) fn unescape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(code @ (b'.' | b'/' | b'%' | 0..=0x1f | 0x7f)) => {
                out.push(if code == b'/' { '_' } else { code.into() });
                rest = &rest[at + 3..];
            }
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// An empty file is a folder without messages when it is named as one.
fn is_mbox(path: &Path, len: u64) -> Result<bool, ImportError> {
    if len == 0 {
        return Ok(path.extension().is_some_and(|extension| extension == "mbox"));
    }
    let mut start = [0; 5];
    let mut file = File::open(path).map_err(failed("open", path))?;
    match io::Read::read_exact(&mut file, &mut start) {
        Ok(()) => Ok(&start == b"From "),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// The messages of a file.
fn index(path: &Path) -> Result<Vec<Candidate>, ImportError> {
    let file = File::open(path).map_err(failed("open", path))?;
    let modified = file.metadata().and_then(|meta| meta.modified()).map_err(failed("read", path))?;
    let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    let modified = i64::try_from(modified).unwrap_or(0);
    let mut file = BufReader::new(file);
    let mut scanner = Scanner::new(&mut file, 0);
    let mut times: HashMap<[u8; 32], u64> = HashMap::new();
    let mut entries = Vec::new();
    while let Some(message) = scanner.message().map_err(failed("read", path))? {
        let number = entries.len() + 1;
        // One that is too large is told when it is to be read.
        let content = message.content.unwrap_or_default();
        if content.is_expunged {
            continue;
        }
        let hash = *blake3::hash(&content.body).as_bytes();
        // A file may have the same message twice.
        let time = times.entry(hash).or_default();
        *time += 1;
        entries.push(Candidate {
            source: source_of("mbox", &[&hash, &time.to_be_bytes()]),
            label: format!("message {number} of {}", path.display()),
            place: message.place,
            internal_date: message.date.or(content.date).unwrap_or(modified),
            flags: content.flags,
            size: content.body.len() as u64,
        });
    }
    Ok(entries)
}

/// A message of an mbox.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    /// Offset of its first line.
    place: u64,
    /// When it arrived, as that line says; in Unix milliseconds.
    date: Option<i64>,
    /// None when it is too large.
    content: Option<Content>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    body: Vec<u8>,
    flags: Vec<String>,
    /// Its own date, in Unix milliseconds.
    date: Option<i64>,
    is_expunged: bool,
}

/// Reads an mbox message by message.
struct Scanner<'f, R> {
    file: &'f mut R,
    /// Of what is read next.
    place: u64,
    /// The line that a message begins with, once it was read, and its offset.
    from: Option<(u64, Vec<u8>)>,
}

impl<'f, R: BufRead> Scanner<'f, R> {
    fn new(file: &'f mut R, place: u64) -> Self {
        Self { file, place, from: None }
    }

    /// A piece of a line: all of it, where it is not longer than a piece.
    fn piece(&mut self) -> io::Result<Vec<u8>> {
        let mut piece = Vec::new();
        let read = io::Read::take(&mut *self.file, PIECE).read_until(b'\n', &mut piece)?;
        self.place += read as u64;
        Ok(piece)
    }

    fn message(&mut self) -> io::Result<Option<Message>> {
        let (place, from) = match self.from.take() {
            Some(from) => from,
            None => {
                let place = self.place;
                (place, self.piece()?)
            }
        };
        if !from.starts_with(b"From ") {
            return Ok(None);
        }
        let (mut raw, mut too_large) = (Vec::new(), false);
        // The line before was empty, or there was none; the piece before ended its line.
        let (mut after_blank, mut is_start) = (false, true);
        loop {
            let at = self.place;
            let piece = self.piece()?;
            if piece.is_empty() {
                break;
            }
            if is_start && after_blank && is_from_line(&piece) {
                self.from = Some((at, piece));
                break;
            }
            let quoted = if is_start { piece.iter().take_while(|byte| **byte == b'>').count() } else { 0 };
            let skip = usize::from(quoted > 0 && piece[quoted..].starts_with(b"From "));
            after_blank = is_start && matches!(piece.as_slice(), b"\n" | b"\r\n");
            is_start = piece.ends_with(b"\n");
            if raw.len() as u64 > MAX_MESSAGE {
                too_large = true;
            } else {
                raw.extend_from_slice(&piece[skip..]);
            }
        }
        // The empty line in front of the next message belongs to the format.
        for end in [b"\r\n".as_slice(), b"\n"] {
            if raw.ends_with(&[b"\n", end].concat()) || raw == end {
                raw.truncate(raw.len() - end.len());
                break;
            }
        }
        let content = (!too_large).then(|| content(&with_crlf(&raw)));
        Ok(Some(Message { place, date: from_date(&from), content }))
    }
}

/// Whether a line begins a message: it names a time. Others begin with the word by chance, and were not quoted.
fn is_from_line(line: &[u8]) -> bool {
    let has_time = |word: &[u8]| {
        word.len() >= 4 && word[0].is_ascii_digit() && word.iter().filter(|b| **b == b':').count() >= 1
    };
    line.starts_with(b"From ") && line.split(|byte| *byte == b' ').any(has_time)
}

/// The time in the first line of a message: `From sender Thu Jan  1 00:00:00 2026`, with a zone before or after the year in
/// some. Without one it is UTC (RFC 4155). In Unix milliseconds.
fn from_date(line: &[u8]) -> Option<i64> {
    let line = String::from_utf8_lossy(line);
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let month_at = words.iter().rposition(|word| MONTHS.contains(word))?;
    let month = MONTHS.iter().position(|month| *month == words[month_at])? + 1;
    let day: i8 = words.get(month_at + 1)?.parse().ok()?;
    let rest = words.get(month_at + 2..)?;
    let time = rest.iter().find(|word| word.contains(':'))?;
    let mut parts = time.split(':').map(|part| part.parse::<i8>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    let is_zone = |word: &&&str| word.len() == 5 && (word.starts_with('+') || word.starts_with('-'));
    let year: i16 = rest.iter().find(|word| word.len() == 4 && !word.contains(':'))?.parse().ok()?;
    let date = DateTime::new(year, i8::try_from(month).ok()?, day, hour, minute, second, 0).ok()?;
    let zone = match rest.iter().find(is_zone) {
        Some(zone) => {
            let number: i32 = zone[1..].parse().ok()?;
            let seconds = (number / 100 * 60 + number % 100) * 60;
            Offset::from_seconds(if zone.starts_with('-') { -seconds } else { seconds }).ok()?
        }
        None => Offset::UTC,
    };
    Some(date.to_zoned(TimeZone::fixed(zone)).ok()?.timestamp().as_millisecond())
}

/// Takes the headers out that keep flags, and reads them.
fn content(message: &[u8]) -> Content {
    let mut found = Content { body: Vec::with_capacity(message.len()), ..Content::default() };
    let mut rest = message;
    let mut marks = Marks::default();
    // Whether the header before was taken out, and what continues it goes with it.
    let mut taken = false;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        if line == b"\r\n" {
            break;
        }
        let continues = line.starts_with(b" ") || line.starts_with(b"\t");
        taken = if continues { taken } else { marks.take(line) };
        if !taken {
            found.body.extend_from_slice(line);
        }
        rest = after;
    }
    found.body.extend_from_slice(rest);
    (found.flags, found.is_expunged) = marks.flags();
    let parsed = MessageParser::new().with_mime_headers().with_date_headers().parse_headers(&found.body[..]);
    let date = parsed.as_ref().and_then(|message| message.date());
    found.date = date.and_then(|date| date.to_timestamp().checked_mul(1000));
    // Nonsense that no INTERNALDATE can say.
    found.date = found.date.filter(|date| Timestamp::from_millisecond(*date).is_ok());
    found
}

#[derive(Default)]
struct Marks {
    seen: bool,
    answered: bool,
    flagged: bool,
    draft: bool,
    deleted: bool,
    keywords: Vec<String>,
    expunged: bool,
}

impl Marks {
    /// Whether it is a header that keeps flags.
    fn take(&mut self, line: &[u8]) -> bool {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let Some((name, value)) = line.split_once(':') else { return false };
        let value = value.trim();
        let are = |letters: &str| value.chars().all(|c| letters.contains(c));
        match name.to_ascii_lowercase().as_str() {
            "status" if are("RONU") => self.seen |= value.contains('R'),
            "x-status" if are("AFTDR") => {
                self.answered |= value.contains('A');
                self.flagged |= value.contains('F');
                self.draft |= value.contains('T');
                self.deleted |= value.contains('D');
            }
            "x-keywords" | "x-mozilla-keys" => {
                self.keywords.extend(value.split_ascii_whitespace().map(str::to_owned));
            }
            "x-mozilla-status" => {
                let Ok(bits) = u32::from_str_radix(value, 16) else { return false };
                self.seen |= bits & 0x1 != 0;
                self.answered |= bits & 0x2 != 0;
                self.flagged |= bits & 0x4 != 0;
                self.expunged |= bits & MOZILLA_EXPUNGED != 0;
            }
            "x-mozilla-status2" => {}
            _ => return false,
        }
        true
    }

    fn flags(self) -> (Vec<String>, bool) {
        let system = [
            (self.seen, "\\Seen"),
            (self.answered, "\\Answered"),
            (self.flagged, "\\Flagged"),
            (self.draft, "\\Draft"),
            (self.deleted, "\\Deleted"),
        ];
        let system = system.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.to_owned());
        (system.chain(self.keywords).collect(), self.expunged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use quorumail_store::{Flag, MessageMeta, ModSeq, Timestamp as Date, Uid};

    use super::*;
    use crate::backup::restore::files::mbox_message;

    fn messages(text: &[u8]) -> Vec<Message> {
        let mut file = text;
        let mut scanner = Scanner::new(&mut file, 0);
        std::iter::from_fn(|| scanner.message().unwrap()).collect()
    }

    fn bodies(text: &str) -> Vec<String> {
        let content = |message: Message| String::from_utf8(message.content.unwrap().body).unwrap();
        messages(text.as_bytes()).into_iter().map(content).collect()
    }

    #[test]
    fn messages_are_told_apart_and_unquoted() {
        let text = "From a@b Thu Jan  1 00:00:01 2026\nSubject: 1\n\n>From here\n>>From there\nFrom now on\n\nFrom x\n\n\
                    From b@c Thu Jan  1 00:00:02 2026\r\nSubject: 2\r\n\r\nend";
        assert_eq!(
            bodies(text),
            [
                "Subject: 1\r\n\r\nFrom here\r\n>From there\r\nFrom now on\r\n\r\nFrom x\r\n",
                "Subject: 2\r\n\r\nend"
            ]
        );
        assert_eq!(messages(b"").len() + messages(b"Subject: x\n").len(), 0);
    }

    #[test]
    fn flags_are_taken_from_their_headers_and_dates_from_the_first_line() {
        let text = b"From - Fri Feb 13 23:31:30 2009\nStatus: RO\nX-Status: AF\nX-Keywords: work\n  more\nStatus: a story\n\
                     X-Mozilla-Status: 0001\nX-Mozilla-Keys: $label1\nSubject: x\n\nStatus: R\n";
        let message = &messages(text)[0];
        let content = message.content.as_ref().unwrap();
        assert_eq!(content.flags, ["\\Seen", "\\Answered", "\\Flagged", "work", "$label1"]);
        assert_eq!(content.body, b"Status: a story\r\nSubject: x\r\n\r\nStatus: R\r\n");
        assert_eq!(message.date, Some(1_234_567_890_000));
        let gone = b"From - Fri Feb 13 23:31:30 2009\nX-Mozilla-Status: 0009\n\n";
        assert!(messages(gone)[0].content.as_ref().unwrap().is_expunged);
    }

    #[test]
    fn dates_come_in_several_forms() {
        for line in [
            "From a@b Fri Feb 13 23:31:30 2009",
            "From a b Fri Feb 13 23:31:30 2009\r\n",
            "From 123@xxx Fri Feb 13 23:31:30 +0000 2009",
            "From a@b Sat Feb 14 00:31:30 2009 +0100",
        ] {
            assert_eq!(from_date(line.as_bytes()), Some(1_234_567_890_000), "{line}");
        }
        for line in
            ["From a", "From a Fri Feb 31 23:31:30 2009", "From a Feb 13", "From a Fri Feb 13 25:00 2009"]
        {
            assert_eq!(from_date(line.as_bytes()), None, "{line}");
        }
        let dated = b"From a\nDate: Fri, 13 Feb 2009 23:31:30 +0000\n\n";
        assert_eq!(messages(dated)[0].content.as_ref().unwrap().date, Some(1_234_567_890_000));
    }

    #[test]
    fn files_are_named_as_the_folders_that_they_hold() {
        for (name, folder) in [
            ("Inbox", "INBOX"),
            ("INBOX.mbox", "INBOX"),
            ("Projects.2026%2E1.mbox", "Projects/2026.1"),
            ("Sent", "Sent"),
            ("100%25 %x.mbox", "100% %x"),
        ] {
            assert_eq!(file_folder(name), folder);
        }
        let dir = tempfile::tempdir().unwrap();
        let message = "From a@b Thu Jan  1 00:00:01 2026\nSubject: 1\n\n";
        for path in ["Inbox", "Inbox.sbd/Work", "Old.mbox/mbox", "Empty.mbox"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, if path.ends_with("Empty.mbox") { "" } else { message }).unwrap();
        }
        fs::write(dir.path().join("Inbox.msf"), "an index").unwrap();
        let found = files(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["Empty", "INBOX", "Inbox/Work", "Old"]);
        let error = files(&dir.path().join("Inbox.msf")).unwrap_err().to_string();
        assert!(error.contains("is no mbox file"), "{error}");
    }

    #[tokio::test]
    async fn a_message_that_is_there_twice_is_imported_twice_and_read_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.mbox");
        let one = "From a@b Thu Jan  1 00:00:01 2026\nSubject: 1\n\nx\n\n";
        fs::write(&path, format!("{one}{one}{}", one.replace('x', "y"))).unwrap();
        let mut source = Mbox::new(path);
        assert_eq!(source.folders().await.unwrap()[0].name, "box");
        source.open(0).await.unwrap();
        let page = source.page().await.unwrap();
        assert!(
            page.len() == 3 && page[0].source != page[1].source && source.page().await.unwrap().is_empty()
        );
        let (out, mut read) = mpsc::channel(3);
        source.read(&page[1..], out).await.unwrap();
        for expected in ["Subject: 1\r\n\r\nx\r\n", "Subject: 1\r\n\r\ny\r\n"] {
            assert_eq!(read.recv().await.unwrap().body.unwrap(), expected.as_bytes());
        }
        source.open(0).await.unwrap();
        assert_eq!(source.page().await.unwrap(), page, "the sources are the same each time");
    }

    proptest! {
        #[test]
        fn what_is_exported_comes_back(
            parts in vec(vec(prop_oneof![
                prop::sample::select(vec!["From a Thu Jan  1 00:00:01 2026", ">From x", ">>From", "", "text", "Subject: x", "From "])
                    .prop_map(str::to_owned),
                "[ -~]{0,12}",
            ], 1..12), 1..6),
            seconds in 0..2_000_000_000i64,
        ) {
            let mut file = Vec::new();
            let mut expected = Vec::new();
            for lines in &parts {
                // Only what a header keeps flags in would be taken out.
                let body = format!("Subject: s\r\n\r\n{}\r\n", lines.join("\r\n"));
                let meta = MessageMeta {
                    uid: Uid(1),
                    mod_seq: ModSeq(1),
                    flags: ["\\Seen", "work"].map(|flag| Flag(flag.to_owned())).into(),
                    internal_date: Date(seconds * 1000),
                    size: 1,
                };
                mbox_message(&mut file, &meta, body.as_bytes()).unwrap();
                expected.push(body);
            }
            let found = messages(&file);
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                prop_assert_eq!(found.date, Some(seconds * 1000));
                let content = found.content.unwrap();
                prop_assert_eq!(content.flags, ["\\Seen", "work"]);
                prop_assert_eq!(String::from_utf8(content.body).unwrap(), expected);
            }
        }

        #[test]
        fn no_file_breaks_anything(parts in vec(prop_oneof![
            prop::sample::select(vec!["From ", "\n", "\r\n", "\n\nFrom a 0:0:0", "Status: ", ">", "From - Jan 99 1:1 2026 +9999", "X-Mozilla-Status: "])
                .prop_map(|text| text.as_bytes().to_vec()),
            vec(any::<u8>(), 0..9),
        ], 0..30)) {
            let file = [b"From ".to_vec(), parts.concat()].concat();
            prop_assert!(!messages(&file).is_empty());
        }
    }
}
