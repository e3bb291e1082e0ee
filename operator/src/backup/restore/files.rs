//! Mail in files: what is restored when there is nothing but the bucket and the key, and what is exported from a living mailbox.
//!
//! Maildir: a directory for each address; folders as in Maildir++ (`.Projects.2026` beside `cur`), flags in the names of the
//! files, keywords in `dovecot-keywords` as Dovecot keeps them, the internal date as the file's time. A message that is
//! there already, under whatever flags, is left alone. mbox: the mboxrd variant, one file for each folder, made anew.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use jiff::{Timestamp as Date, tz::TimeZone};
use quorumail_backup::RepositoryConfig;
use quorumail_store::{MessageMeta, UidValidity};

use super::{
    Opened, RestoreError, RestoreProgress, RestoreRequest, Restored, Tally, scope,
    walk::{self, Budget, Item, joined},
};

/// Most keywords that a folder's file names may carry: one for each of the letters a to z.
const MAX_KEYWORDS: usize = 26;
/// Messages that get their names together.
const NAMED_AT_ONCE: usize = 1000;
/// RFC 4155: the time in the first line of a message.
const MBOX_TIME: &str = "%a %b %e %H:%M:%S %Y";

/// Which kind of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// A Maildir for each address in this directory.
    Maildir(PathBuf),
    /// One file, where one folder is restored; a directory with a file for each folder of each address otherwise.
    Mbox(PathBuf),
}

impl Files {
    /// Writes a mailbox; of an mbox with one folder alone, the path is that of its file.
    pub(crate) fn writer(&self, address: &str, one_folder: bool) -> Box<dyn Writer> {
        match self {
            Self::Maildir(dir) => Box::new(Maildir::new(dir.join(file_name(address)))),
            Self::Mbox(path) => Box::new(Mbox::new(path, address, one_folder)),
        }
    }
}

/// Restores into files.
///
/// # Errors
/// When nothing more can be done. Single messages that are lost are problems in the answer.
pub async fn restore_to_files(
    repository: &RepositoryConfig,
    request: &RestoreRequest,
    files: &Files,
    progress: &(dyn Fn(RestoreProgress) + Send + Sync),
) -> Result<Restored, RestoreError> {
    let begun = Instant::now();
    request.scope.check(request)?;
    let directory = Opened::new(repository, request).await?;
    let parts = scope::parts(directory.store(), directory.id(), request)?;
    let tally = Tally::new(progress, &parts);
    let groups = parts.groups(None);
    if groups.is_empty() {
        return Ok(tally.finish(directory.id(), begun, false));
    }
    let opened = directory.with_groups(&groups, request.until).await?;
    for damage in opened.loaded.damage() {
        tally.problem(format!("{} is damaged: {}", damage.object, damage.what));
    }
    walk::count(opened.store(), &parts, &tally, &request.scope, opened.id()).await?;
    let budget = Budget::new();
    let mut met = 0;
    for part in &parts.mailboxes {
        let address = part.to.to_lowercase();
        let one_folder = matches!(request.scope, scope::Scope::Folder { .. });
        let mut writer = files.writer(&address, one_folder);
        let mut items = walk::walk(opened.store(), part, request, &budget);
        while let Some(item) = items.recv().await {
            let (next, done) = write(writer, item?, &tally, &address).await?;
            writer = next;
            met += u64::from(done);
        }
        joined(tokio::task::spawn_blocking(move || writer.end()).await)?;
        tally.mailbox_done();
    }
    tally.add(|restored| restored.folders = met);
    Ok(tally.finish(opened.id(), begun, false))
}

/// Writes one item; answers the writer, and whether the item was a folder.
async fn write(
    mut writer: Box<dyn Writer>,
    item: Item,
    tally: &Tally<'_>,
    address: &str,
) -> Result<(Box<dyn Writer>, bool), RestoreError> {
    match item {
        Item::Lost(uid, reason) => {
            tally.problem(format!("{address}: the message with UID {}: {reason}", uid.0));
            tally.looked_at(1, 0);
            Ok((writer, false))
        }
        Item::Folder(info, name) => {
            let write = move || writer.folder(info.uid_validity, &name).map(|()| writer);
            Ok((joined(tokio::task::spawn_blocking(write).await)?, true))
        }
        Item::Message(meta, body, room) => {
            let size = u64::from(meta.size);
            let write = move || {
                let added = writer.message(&meta, &body)?;
                drop(room);
                Ok::<_, RestoreError>((writer, added))
            };
            let (writer, added) = joined(tokio::task::spawn_blocking(write).await)?;
            tally.add(|restored| match added {
                true => {
                    restored.messages += 1;
                    restored.bytes += size;
                }
                false => restored.already_there += 1,
            });
            tally.looked_at(1, size);
            Ok((writer, false))
        }
    }
}

/// Writes one mailbox, folder by folder.
pub(crate) trait Writer: Send {
    /// The messages that follow are of this folder.
    fn folder(&mut self, uid_validity: UidValidity, name: &str) -> Result<(), RestoreError>;
    /// Whether it was added; it may be there.
    fn message(&mut self, meta: &MessageMeta, body: &Bytes) -> Result<bool, RestoreError>;
    /// Makes everything durable.
    fn end(self: Box<Self>) -> Result<(), RestoreError>;
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let action = format!("{action} {}", path.display());
    move |source| RestoreError::Io { action, source }
}

/// A level of a folder's name, or an address, as a file name that no other has: what has a meaning in file names or in
/// Maildir++ is written as `%` and two digits.
fn file_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '.' if !name.contains('@') => out.push_str("%2E"),
            '/' | '%' | '\0'..='\x1f' | '\x7f' => out.push_str(&format!("%{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    match out.as_str() {
        "." | ".." => out.replace('.', "%2E"),
        _ => out,
    }
}

struct Maildir {
    root: PathBuf,
    folder: PathBuf,
    uid_validity: u32,
    /// Names of the messages that are there, without their flags.
    there: HashSet<String>,
    keywords: Vec<String>,
    /// Messages that are written and have not got their names yet: temporary and final path.
    written: Vec<(PathBuf, PathBuf)>,
}

impl Maildir {
    fn new(root: PathBuf) -> Self {
        Self {
            folder: root.clone(),
            root,
            uid_validity: 0,
            there: HashSet::new(),
            keywords: Vec::new(),
            written: Vec::new(),
        }
    }

    fn flags(&mut self, meta: &MessageMeta) -> String {
        let mut letters: Vec<char> = Vec::new();
        for flag in &meta.flags {
            let letter = match flag.0.as_str() {
                "\\Draft" => Some('D'),
                "\\Flagged" => Some('F'),
                "\\Answered" => Some('R'),
                "\\Seen" => Some('S'),
                "\\Deleted" => Some('T'),
                keyword => self.keyword(keyword),
            };
            letters.extend(letter);
        }
        letters.sort_unstable();
        letters.into_iter().collect()
    }

    /// None when the folder has more keywords than there are letters.
    fn keyword(&mut self, keyword: &str) -> Option<char> {
        let known = self.keywords.iter().position(|known| known.eq_ignore_ascii_case(keyword));
        let place = match known {
            Some(place) => place,
            None if self.keywords.len() < MAX_KEYWORDS => {
                self.keywords.push(keyword.to_owned());
                self.keywords.len() - 1
            }
            None => return None,
        };
        ('a'..='z').nth(place)
    }

    /// Gives messages their names once they are on the disk, many at a time: so one that has its name is whole, whatever
    /// happens, and need not be written again.
    fn name_written(&mut self) -> Result<(), RestoreError> {
        if self.written.is_empty() {
            return Ok(());
        }
        sync_files(&self.folder.join("tmp"), &self.written).map_err(failed("sync", &self.folder))?;
        for (temporary, path) in self.written.drain(..) {
            fs::rename(&temporary, &path).map_err(failed("name", &path))?;
        }
        Ok(())
    }

    fn close_folder(&mut self) -> Result<(), RestoreError> {
        self.name_written()?;
        if !self.keywords.is_empty() {
            let path = self.folder.join("dovecot-keywords");
            let lines: String =
                self.keywords.iter().enumerate().map(|(number, word)| format!("{number} {word}\n")).collect();
            fs::write(&path, lines).map_err(failed("write", &path))?;
        }
        for part in ["cur", "new"] {
            let path = self.folder.join(part);
            if path.exists() {
                File::open(&path).and_then(|dir| dir.sync_all()).map_err(failed("sync", &path))?;
            }
        }
        Ok(())
    }
}

impl Writer for Maildir {
    fn folder(&mut self, uid_validity: UidValidity, name: &str) -> Result<(), RestoreError> {
        self.close_folder()?;
        let levels: Vec<String> = name.split('/').map(file_name).collect();
        self.folder = match name {
            "INBOX" => self.root.clone(),
            _ => self.root.join(format!(".{}", levels.join("."))),
        };
        self.uid_validity = uid_validity.0;
        self.there.clear();
        for part in ["cur", "new", "tmp"] {
            let path = self.folder.join(part);
            fs::create_dir_all(&path).map_err(failed("make", &path))?;
            if part == "tmp" {
                continue;
            }
            for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
                let name = entry.map_err(failed("read", &path))?.file_name();
                let name = name.to_string_lossy();
                self.there.insert(name.split(':').next().unwrap_or_default().to_owned());
            }
        }
        if self.folder != self.root {
            let mark = self.folder.join("maildirfolder");
            fs::write(&mark, b"").map_err(failed("write", &mark))?;
        }
        let path = self.folder.join("dovecot-keywords");
        let known = fs::read_to_string(&path).unwrap_or_default();
        self.keywords =
            known.lines().filter_map(|line| line.split_once(' ')).map(|(_, word)| word.to_owned()).collect();
        Ok(())
    }

    fn message(&mut self, meta: &MessageMeta, body: &Bytes) -> Result<bool, RestoreError> {
        let seconds = meta.internal_date.0.div_euclid(1000);
        let name = format!("{seconds}.V{}U{}.quorumail", self.uid_validity, meta.uid.0);
        if !self.there.insert(name.clone()) {
            return Ok(false);
        }
        let temporary = self.folder.join("tmp").join(&name);
        let path = self.folder.join("cur").join(format!("{name}:2,{}", self.flags(meta)));
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(body)?;
            file.set_modified(date)
        };
        write().map_err(failed("write", &path))?;
        self.written.push((temporary, path));
        if self.written.len() == NAMED_AT_ONCE {
            self.name_written()?;
        }
        Ok(true)
    }

    fn end(mut self: Box<Self>) -> Result<(), RestoreError> {
        self.close_folder()
    }
}

/// Brings files to the disk: with one call for all of their file system where the system has that.
#[cfg(target_os = "linux")]
fn sync_files(dir: &Path, _: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(dir)?)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_files(_: &Path, written: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    written.iter().try_for_each(|(temporary, _)| File::open(temporary)?.sync_all())
}

struct Mbox {
    /// Where all folders go.
    one_file: Option<PathBuf>,
    dir: PathBuf,
    out: Option<(PathBuf, BufWriter<File>)>,
}

impl Mbox {
    fn new(path: &Path, address: &str, one_folder: bool) -> Self {
        let one_file = one_folder.then(|| path.to_owned());
        Self { one_file, dir: path.join(file_name(address)), out: None }
    }

    fn close(&mut self) -> Result<(), RestoreError> {
        let Some((path, out)) = self.out.take() else { return Ok(()) };
        let file = out.into_inner().map_err(io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).map_err(failed("write", &path))
    }
}

impl Writer for Mbox {
    fn folder(&mut self, _: UidValidity, name: &str) -> Result<(), RestoreError> {
        if self.one_file.is_some() && self.out.is_some() {
            return Ok(());
        }
        self.close()?;
        let path = match &self.one_file {
            Some(path) => path.clone(),
            None => {
                fs::create_dir_all(&self.dir).map_err(failed("make", &self.dir))?;
                let levels: Vec<String> = name.split('/').map(file_name).collect();
                self.dir.join(format!("{}.mbox", levels.join(".")))
            }
        };
        let file = File::create(&path).map_err(failed("make", &path))?;
        self.out = Some((path, BufWriter::new(file)));
        Ok(())
    }

    fn message(&mut self, meta: &MessageMeta, body: &Bytes) -> Result<bool, RestoreError> {
        let Some((path, out)) = &mut self.out else { return Ok(false) };
        mbox_message(out, meta, body).map_err(failed("write", path))?;
        Ok(true)
    }

    fn end(mut self: Box<Self>) -> Result<(), RestoreError> {
        self.close()
    }
}

/// One message in the mboxrd form: lines end with LF, and one that looks like the start of a message gets a `>`.
pub(crate) fn mbox_message(out: &mut impl io::Write, meta: &MessageMeta, body: &[u8]) -> io::Result<()> {
    let date = Date::from_millisecond(meta.internal_date.0).unwrap_or(Date::UNIX_EPOCH);
    let date = date.to_zoned(TimeZone::UTC).strftime(MBOX_TIME).to_string();
    writeln!(out, "From MAILER-DAEMON {date}")?;
    let has = |flag: &str| meta.flags.iter().any(|known| known.0 == flag);
    let mut headers = format!("Status: {}O\n", if has("\\Seen") { "R" } else { "" });
    let marks: String = [("\\Answered", 'A'), ("\\Flagged", 'F'), ("\\Draft", 'T'), ("\\Deleted", 'D')]
        .into_iter()
        .filter(|(flag, _)| has(flag))
        .map(|(_, mark)| mark)
        .collect();
    if !marks.is_empty() {
        headers.push_str(&format!("X-Status: {marks}\n"));
    }
    let keywords: Vec<&str> =
        meta.flags.iter().map(|flag| flag.0.as_str()).filter(|flag| !flag.starts_with('\\')).collect();
    if !keywords.is_empty() {
        headers.push_str(&format!("X-Keywords: {}\n", keywords.join(" ")));
    }
    out.write_all(headers.as_bytes())?;
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let quoted = line.iter().position(|byte| *byte != b'>').unwrap_or(0);
        if line[quoted..].starts_with(b"From ") {
            out.write_all(b">")?;
        }
        match line.strip_suffix(b"\r\n") {
            Some(text) => {
                out.write_all(text)?;
                out.write_all(b"\n")?;
            }
            None => out.write_all(line)?,
        }
    }
    if !body.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use quorumail_store::{Flag, ModSeq, Timestamp, Uid};

    use super::*;

    fn meta(uid: u32, flags: &[&str]) -> MessageMeta {
        MessageMeta {
            uid: Uid(uid),
            mod_seq: ModSeq(1),
            flags: flags.iter().map(|flag| Flag((*flag).to_owned())).collect(),
            internal_date: Timestamp(1_600_000_000_000),
            size: 1,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_maildir_has_flags_keywords_and_dates_and_is_not_filled_twice() {
        let dir = tempfile::tempdir().unwrap();
        let body = Bytes::from_static(b"Subject: x\r\n\r\ny\r\n");
        let fill = || {
            let mut maildir = Maildir::new(dir.path().to_owned());
            maildir.folder(UidValidity(7), "INBOX").unwrap();
            let first = maildir.message(&meta(1, &["\\Seen", "\\Flagged", "$Forwarded"]), &body).unwrap();
            maildir.folder(UidValidity(7), "A.b/2026").unwrap();
            maildir.message(&meta(2, &[]), &body).unwrap();
            Box::new(maildir).end().unwrap();
            first
        };
        assert!(fill());
        let cur = dir.path().join("cur");
        assert_eq!(names(&cur), ["1600000000.V7U1.quorumail:2,FSa"]);
        let path = cur.join("1600000000.V7U1.quorumail:2,FSa");
        assert_eq!(fs::read(&path).unwrap(), body);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(modified.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_600_000_000);
        assert_eq!(fs::read_to_string(dir.path().join("dovecot-keywords")).unwrap(), "0 $Forwarded\n");
        assert_eq!(names(&dir.path().join(".A%2Eb.2026/cur")), ["1600000000.V7U2.quorumail:2,"]);

        // Read in the meantime: it stays as it is.
        fs::rename(&path, cur.join("1600000000.V7U1.quorumail:2,S")).unwrap();
        assert!(!fill());
        assert_eq!(names(&cur), ["1600000000.V7U1.quorumail:2,S"]);
    }

    #[test]
    fn an_mbox_is_quoted_so_that_every_message_can_be_told() {
        let mut out = Vec::new();
        let body = b"Subject: x\r\n\r\nFrom here\r\n>From there\r\nFromage\r\nend";
        mbox_message(&mut out, &meta(1, &["\\Seen", "\\Answered", "label"]), body).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "From MAILER-DAEMON Sun Sep 13 12:26:40 2020\nStatus: RO\nX-Status: A\nX-Keywords: label\n\
             Subject: x\n\n>From here\n>>From there\nFromage\nend\n\n"
        );
    }

    #[test]
    fn names_cannot_lead_out_of_the_directory() {
        for (name, file) in [
            ("..", "%2E%2E"),
            ("a.b", "a%2Eb"),
            ("100%", "100%25"),
            ("a/b", "a%2Fb"),
            ("alice@example.org", "alice@example.org"),
            ("Entwürfe", "Entwürfe"),
        ] {
            assert_eq!(file_name(name), file);
        }
    }
}
