//! Maildirs: a file for each message, flags in their names. Maildir++ (`.Projects.2026` beside `cur`) and directories within
//! directories; keywords as Dovecot keeps them.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_imap::mutf7;
use tokio::sync::mpsc;

use super::{
    Candidate, Entries, Found, ImportError, MAX_MESSAGE, Read, Source, blocking, failed, mbox::unescape,
    source_of, with_crlf,
};

/// Levels of directories below the one that is given.
const MAX_DEPTH: usize = 32;
/// Folders at most.
const MAX_FOLDERS: usize = 10_000;
/// Directories that are named to somebody who gave another one.
const SHOWN: usize = 10;

/// A Maildir with its folders.
pub struct Maildir {
    root: PathBuf,
    dirs: Vec<PathBuf>,
    /// Of the folder that is open; the place is a number in `files`.
    entries: Entries,
    files: Vec<PathBuf>,
}

impl Maildir {
    /// Nothing is read yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root, dirs: Vec::new(), entries: Entries::default(), files: Vec::new() }
    }
}

#[async_trait]
impl Source for Maildir {
    async fn folders(&mut self) -> Result<Vec<Found>, ImportError> {
        let root = self.root.clone();
        let found = blocking(move || folders(&root)).await?;
        self.dirs = found.values().map(|(dir, ..)| dir.clone()).collect();
        let folder = |(name, (_, messages, bytes))| Found {
            name,
            messages: Some(messages),
            bytes: Some(bytes),
            ..Found::default()
        };
        Ok(found.into_iter().map(folder).collect())
    }

    async fn open(&mut self, folder: usize) -> Result<(), ImportError> {
        let dir = self.dirs[folder].clone();
        let (entries, files) = blocking(move || index(&dir)).await?;
        (self.entries, self.files) = (Entries::new(entries), files);
        Ok(())
    }

    async fn page(&mut self) -> Result<Vec<Candidate>, ImportError> {
        Ok(self.entries.page())
    }

    async fn read(&mut self, wanted: &[Candidate], out: mpsc::Sender<Read>) -> Result<(), ImportError> {
        let file = |candidate: &Candidate| {
            usize::try_from(candidate.place).ok().map(|place| self.files[place].clone())
        };
        let files: Vec<PathBuf> = wanted.iter().filter_map(file).collect();
        blocking(move || {
            for (number, path) in files.iter().enumerate() {
                if out.blocking_send(Read { number, body: message(path) }).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }
}

/// The octets of a file, or why they cannot be imported.
fn message(path: &Path) -> Result<Bytes, String> {
    let read = || {
        let mut octets = Vec::new();
        fs::File::open(path)?.take(MAX_MESSAGE + 1).read_to_end(&mut octets)?;
        Ok::<_, std::io::Error>(octets)
    };
    match read() {
        Ok(octets) if octets.len() as u64 > MAX_MESSAGE => {
            Err(format!("it is larger than {MAX_MESSAGE} bytes"))
        }
        Ok(octets) => Ok(with_crlf(&octets).into()),
        // Mail programs rename files when flags change.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("it was moved meanwhile; run the import again".to_owned())
        }
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

fn is_maildir(dir: &Path) -> bool {
    dir.join("cur").is_dir()
}

/// By name: directory, messages, bytes.
type Folders = BTreeMap<String, (PathBuf, u64, u64)>;

fn folders(root: &Path) -> Result<Folders, ImportError> {
    fs::read_dir(root).map_err(failed("read", root))?;
    let mut found = Folders::new();
    if is_maildir(root) {
        add(&mut found, "INBOX".to_owned(), root)?;
    }
    walk(root, &mut Vec::new(), &mut found)?;
    // A directory of Maildirs, as exports of several mailboxes make it, is none itself.
    if !is_maildir(root) {
        let maildirs: Vec<_> = found.keys().take(SHOWN).map(String::as_str).collect();
        let text = match maildirs.as_slice() {
            [] => format!("{} is no Maildir: it has no directory `cur`", root.display()),
            some => format!("{} is no Maildir; there are some in it: {}", root.display(), some.join(", ")),
        };
        return Err(ImportError::Request(text));
    }
    Ok(found)
}

fn walk(dir: &Path, levels: &mut Vec<String>, found: &mut Folders) -> Result<(), ImportError> {
    for entry in fs::read_dir(dir).map_err(failed("read", dir))? {
        let path = entry.map_err(failed("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !path.is_dir() || (is_maildir(dir) && matches!(name.as_str(), "cur" | "new" | "tmp")) {
            continue;
        }
        let before = levels.len();
        match name.strip_prefix('.') {
            Some(rest) if levels.is_empty() => levels.extend(rest.split('.').map(level)),
            Some(_) => continue,
            None => levels.push(level(&name)),
        }
        if levels.len() <= MAX_DEPTH && levels.iter().all(|level| !level.is_empty()) {
            if is_maildir(&path) {
                let full = levels.join("/");
                add(
                    found,
                    if full.eq_ignore_ascii_case("inbox") { "INBOX".to_owned() } else { full },
                    &path,
                )?;
            }
            walk(&path, levels, found)?;
        }
        levels.truncate(before);
    }
    Ok(())
}

/// A level of a name: in modified UTF-7 as servers write it, or as exports do.
fn level(name: &str) -> String {
    mutf7::decode(name).filter(|decoded| decoded != name).unwrap_or_else(|| unescape(name)).replace('/', "_")
}

fn add(found: &mut Folders, name: String, dir: &Path) -> Result<(), ImportError> {
    if found.len() == MAX_FOLDERS {
        return Err(ImportError::Request(format!("there are more than {MAX_FOLDERS} folders")));
    }
    let (mut messages, mut bytes) = (0, 0);
    for path in files(dir)? {
        messages += 1;
        bytes += fs::metadata(&path).map_or(0, |meta| meta.len());
    }
    found.insert(name, (dir.to_owned(), messages, bytes));
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let mut found = Vec::new();
    for part in ["cur", "new"] {
        let part = dir.join(part);
        if !part.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&part).map_err(failed("read", &part))? {
            let entry = entry.map_err(failed("read", &part))?;
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !is_hidden && entry.path().is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// The messages of a folder in the order in which they arrived.
fn index(dir: &Path) -> Result<(Vec<Candidate>, Vec<PathBuf>), ImportError> {
    let keywords = keywords(dir);
    let mut dated = Vec::new();
    for path in files(dir)? {
        // One that was renamed meanwhile is found under its new name by the next run.
        let Ok(meta) = fs::metadata(&path) else { continue };
        let modified = meta.modified().map_err(failed("read", &path))?;
        let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
        dated.push((i64::try_from(modified).unwrap_or(0), path, meta.len()));
    }
    dated.sort();
    let (mut entries, mut files) = (Vec::new(), Vec::new());
    for (internal_date, path, size) in dated {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (unique, letters) = split_name(&name);
        entries.push(Candidate {
            source: source_of("maildir", &[unique.as_bytes()]),
            label: path.display().to_string(),
            place: files.len() as u64,
            flags: flags(letters, &keywords),
            internal_date,
            size,
        });
        files.push(path);
    }
    Ok((entries, files))
}

/// What names a message for good, and the letters of its flags: `unique[,attributes][:2,letters]`, with `;` for `:` where file
/// names cannot have one.
fn split_name(name: &str) -> (&str, &str) {
    let (base, info) = name.split_once([':', ';']).unwrap_or((name, ""));
    let unique = base.split(',').next().unwrap_or(base);
    (unique, info.strip_prefix("2,").unwrap_or(""))
}

fn flags(letters: &str, keywords: &BTreeMap<char, String>) -> Vec<String> {
    let flag = |letter: char| match letter {
        'D' => Some("\\Draft".to_owned()),
        'F' => Some("\\Flagged".to_owned()),
        'R' => Some("\\Answered".to_owned()),
        'S' => Some("\\Seen".to_owned()),
        'T' => Some("\\Deleted".to_owned()),
        'P' => Some("$Forwarded".to_owned()),
        other => keywords.get(&other).cloned(),
    };
    letters.split(',').next().unwrap_or_default().chars().filter_map(flag).collect()
}

/// `dovecot-keywords`: a number and a keyword in each line; the number is that of a letter.
fn keywords(dir: &Path) -> BTreeMap<char, String> {
    let text = fs::read_to_string(dir.join("dovecot-keywords")).unwrap_or_default();
    let line = |line: &str| {
        let (number, word) = line.split_once(' ')?;
        let letter = ('a'..='z').nth(number.parse().ok()?)?;
        Some((letter, word.trim().to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use quorumail_store::{Flag, MessageMeta, ModSeq, Timestamp, Uid, UidValidity};

    use super::*;
    use crate::backup::restore::files::Files;

    fn put(dir: &Path, path: &str, text: &str, seconds: u64) {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(&path).unwrap().set_modified(date).unwrap();
    }

    async fn candidates(source: &mut Maildir, folder: &str) -> Vec<Candidate> {
        let folders = source.folders().await.unwrap();
        source.open(folders.iter().position(|found| found.name == folder).unwrap()).await.unwrap();
        source.page().await.unwrap()
    }

    #[tokio::test]
    async fn folders_flags_and_dates_are_those_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "cur/2.b,S=5:2,SFa", "two\n", 20);
        put(root, "new/1.a", "one\n", 10);
        put(root, "dovecot-keywords", "0 Work\n1 Other\nx\n", 0);
        put(root, "cur/.hidden", "", 0);
        put(root, ".Entw&APw-rfe.2026/cur/3.c;2,DRTPz", "x", 30);
        put(root, ".A%2EB/cur/4.d", "", 40);
        put(root, "Team/cur/5.e:2,", "", 50);
        put(root, "Team/Old/cur/6.f:1,S", "", 60);
        let mut source = Maildir::new(root.to_owned());
        let found = source.folders().await.unwrap();
        let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["A.B", "Entwürfe/2026", "INBOX", "Team", "Team/Old"]);
        assert_eq!((found[2].messages, found[2].bytes), (Some(2), Some(8)));
        let inbox = candidates(&mut source, "INBOX").await;
        assert_eq!(inbox.iter().map(|c| c.internal_date).collect::<Vec<_>>(), [10_000, 20_000]);
        assert_eq!(inbox[1].flags, ["\\Seen", "\\Flagged", "Work"]);
        let (out, mut read) = mpsc::channel(2);
        source.read(&inbox, out).await.unwrap();
        assert_eq!(read.recv().await.unwrap().body.unwrap(), "one\r\n");
        let drafts = candidates(&mut source, "Entwürfe/2026").await;
        assert_eq!(drafts[0].flags, ["\\Draft", "\\Answered", "\\Deleted", "$Forwarded"]);
        assert_eq!(candidates(&mut source, "Team/Old").await[0].flags, [""; 0]);
    }

    #[tokio::test]
    async fn a_message_is_the_same_under_other_flags() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "new/1.a", "", 10);
        put(dir.path(), "cur/2.b", "", 20);
        let mut source = Maildir::new(dir.path().to_owned());
        let before = candidates(&mut source, "INBOX").await;
        fs::rename(dir.path().join("new/1.a"), dir.path().join("cur/1.a,S=0,W=0:2,S")).unwrap();
        let after = candidates(&mut source, "INBOX").await;
        assert_eq!(before[0].source, after[0].source);
        assert_ne!(before[0].source, before[1].source);
    }

    #[tokio::test]
    async fn another_directory_is_refused_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Maildir::new(dir.path().to_owned()).folders().await.unwrap_err().to_string();
        assert!(error.contains("it has no directory `cur`"), "{error}");
        put(dir.path(), "a@example.org/cur/1", "", 1);
        let error = Maildir::new(dir.path().to_owned()).folders().await.unwrap_err().to_string();
        assert!(error.ends_with("there are some in it: a@example.org"), "{error}");
    }

    #[tokio::test]
    async fn what_is_exported_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Files::Maildir(dir.path().to_owned()).writer("a@example.org", false);
        let meta = MessageMeta {
            uid: Uid(4),
            mod_seq: ModSeq(1),
            flags: ["\\Seen", "$Work"].map(|flag| Flag(flag.to_owned())).into(),
            internal_date: Timestamp(1_600_000_000_000),
            size: 3,
        };
        for name in ["INBOX", "R&D/100% v1.2", "Entwürfe"] {
            writer.folder(UidValidity(7), name).unwrap();
            writer.message(&meta, &Bytes::from_static(b"a\r\nb\r\n")).unwrap();
        }
        writer.end().unwrap();
        let mut source = Maildir::new(dir.path().join("a@example.org"));
        let found = source.folders().await.unwrap();
        let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["Entwürfe", "INBOX", "R&D/100% v1.2"]);
        let back = candidates(&mut source, "R&D/100% v1.2").await;
        assert_eq!((back[0].internal_date, back.len()), (1_600_000_000_000, 1));
        assert_eq!(back[0].flags, ["\\Seen", "$Work"]);
    }
}
