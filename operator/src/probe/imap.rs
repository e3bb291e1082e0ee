//! As much of an IMAP client as a probe needs: log in, find one message, read it, remove it. RFC 3501 as RFC 9051 keeps it.

use std::{io, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    time::timeout,
};

/// Bytes of a response without its literals.
const MAX_LINE: usize = 64 << 10;
/// Bytes of a literal: the message is a short one.
const MAX_LITERAL: usize = 1 << 20;
/// Responses to one command.
const MAX_RESPONSES: usize = 1_000;
/// Characters of a server's words that are told.
const MAX_WORDS: usize = 300;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ImapError {
    /// The connection.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    Silent,
    /// The server refused a command.
    #[error("{command} was refused: {words}")]
    Refused {
        /// Which one.
        command: String,
        /// The server's words.
        words: String,
    },
    /// The answer is no IMAP, or more than is taken.
    #[error("the answer cannot be read: {0}")]
    Malformed(&'static str),
}

/// A response: its text, in which each literal is left out, and the literals.
#[derive(Debug, Default, PartialEq, Eq)]
struct Response {
    text: String,
    literals: Vec<Vec<u8>>,
}

/// A session.
pub(super) struct Imap<S> {
    stream: BufReader<S>,
    commands: u32,
    patience: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Imap<S> {
    /// Waits for the greeting. `patience`: for each answer.
    pub(super) async fn new(stream: S, patience: Duration) -> Result<Self, ImapError> {
        let mut imap = Self { stream: BufReader::new(stream), commands: 0, patience };
        let greeting = timeout(patience, imap.response()).await.map_err(|_| ImapError::Silent)??;
        match greeting.text.strip_prefix("* ") {
            Some(rest) if has_word(rest, "OK") => Ok(imap),
            Some(rest) => Err(refused("the connection", rest)),
            None => Err(ImapError::Malformed("it does not begin with a greeting")),
        }
    }

    /// SASL PLAIN (RFC 4616): any password can be sent so.
    pub(super) async fn log_in(&mut self, user: &str, password: &str) -> Result<(), ImapError> {
        let secret = STANDARD.encode(format!("\0{user}\0{password}"));
        self.command("AUTHENTICATE PLAIN", Some(&secret)).await.map(drop)
    }

    pub(super) async fn select(&mut self, folder: &str) -> Result<(), ImapError> {
        self.command(&format!("SELECT {folder}"), None).await.map(drop)
    }

    /// UID of a message with this header. `value` needs no quoting.
    pub(super) async fn find(&mut self, header: &str, value: &str) -> Result<Option<u32>, ImapError> {
        let responses = self.command(&format!("UID SEARCH HEADER {header} {value}"), None).await?;
        Ok(responses.iter().find_map(|response| found(&response.text)))
    }

    /// A message as it is.
    pub(super) async fn fetch(&mut self, uid: u32) -> Result<Vec<u8>, ImapError> {
        let responses = self.command(&format!("UID FETCH {uid} (BODY.PEEK[])"), None).await?;
        let bodies = responses.into_iter().filter(|response| response.text.contains("BODY[]"));
        let body = bodies.flat_map(|response| response.literals).next();
        body.ok_or(ImapError::Malformed("the message that was found is not in it"))
    }

    /// RFC 4315 (UIDPLUS): this one alone.
    pub(super) async fn remove(&mut self, uid: u32) -> Result<(), ImapError> {
        self.command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"), None).await?;
        self.command(&format!("UID EXPUNGE {uid}"), None).await.map(drop)
    }

    /// What the server answers makes no difference any more.
    pub(super) async fn log_out(mut self) {
        let _ = self.command("LOGOUT", None).await;
    }

    /// Untagged responses to a command that succeeded. `continued`: what is sent when the server asks for more.
    async fn command(&mut self, command: &str, continued: Option<&str>) -> Result<Vec<Response>, ImapError> {
        let patience = self.patience;
        let work = self.converse(command, continued);
        timeout(patience, work).await.unwrap_or(Err(ImapError::Silent))
    }

    async fn converse(
        &mut self,
        command: &str,
        mut continued: Option<&str>,
    ) -> Result<Vec<Response>, ImapError> {
        self.commands += 1;
        let tag = format!("p{}", self.commands);
        self.send(&format!("{tag} {command}")).await?;
        let mut responses = Vec::new();
        while responses.len() < MAX_RESPONSES {
            let response = self.response().await?;
            if response.text.starts_with('+') {
                let more = continued.take().ok_or(ImapError::Malformed("it asks for more than was said"))?;
                self.send(more).await?;
                continue;
            }
            match response.text.strip_prefix(&tag).and_then(|rest| rest.strip_prefix(' ')) {
                Some(result) if has_word(result, "OK") => return Ok(responses),
                Some(result) => return Err(refused(command, result)),
                None => responses.push(response),
            }
        }
        Err(ImapError::Malformed("it does not end"))
    }

    async fn send(&mut self, line: &str) -> Result<(), ImapError> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        Ok(self.stream.flush().await?)
    }

    async fn response(&mut self) -> Result<Response, ImapError> {
        let mut response = Response::default();
        loop {
            let mut line = Vec::new();
            let room = MAX_LINE.saturating_sub(response.text.len()) as u64;
            (&mut self.stream).take(room).read_until(b'\n', &mut line).await?;
            let Some(line) = line.strip_suffix(b"\r\n") else {
                return Err(match line.len() as u64 == room {
                    true => ImapError::Malformed("a line is too long"),
                    false => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                });
            };
            let line = String::from_utf8_lossy(line);
            let Some((text, length)) = literal(&line) else {
                response.text.push_str(&line);
                return Ok(response);
            };
            if length > MAX_LITERAL || response.literals.len() >= MAX_RESPONSES {
                return Err(ImapError::Malformed("a literal is too long"));
            }
            response.text.push_str(text);
            let mut bytes = vec![0; length];
            self.stream.read_exact(&mut bytes).await?;
            response.literals.push(bytes);
        }
    }
}

/// What stands before a literal at the end of a line, and its length.
fn literal(line: &str) -> Option<(&str, usize)> {
    let (text, length) = line.strip_suffix('}')?.rsplit_once('{')?;
    Some((text, length.trim_end_matches('+').parse().ok()?))
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(' ').next().is_some_and(|first| first.eq_ignore_ascii_case(word))
}

fn refused(command: &str, words: &str) -> ImapError {
    let words = words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    ImapError::Refused { command: command.to_owned(), words }
}

/// The highest UID of an answer to a search, in both forms that there are (RFC 9051 7.3.4).
fn found(text: &str) -> Option<u32> {
    if let Some(uids) = text.strip_prefix("* SEARCH") {
        return uids.split_ascii_whitespace().filter_map(|uid| uid.parse().ok()).max();
    }
    let (_, uids) = text.strip_prefix("* ESEARCH")?.split_once(" ALL ")?;
    let uids = uids.split_ascii_whitespace().next()?;
    uids.split([',', ':']).filter_map(|uid| uid.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session with a server that says `script`, whatever it is asked.
    async fn session(script: &[u8]) -> Result<Imap<impl AsyncRead + AsyncWrite + Unpin>, ImapError> {
        let (here, mut there) = tokio::io::duplex(4 << 20);
        there.write_all(script).await.unwrap();
        let (mut unread, write) = tokio::io::split(there);
        tokio::spawn(async move {
            let _open = write;
            let _ = tokio::io::copy(&mut unread, &mut tokio::io::sink()).await;
        });
        Imap::new(here, Duration::from_millis(500)).await
    }

    #[tokio::test]
    async fn a_message_is_found_read_and_removed() {
        let mut imap = session(
            b"* OK [CAPABILITY IMAP4rev1] ready\r\n+ \r\n* CAPABILITY IMAP4rev1\r\np1 OK welcome\r\n* 2 EXISTS\r\np2 OK selected\r\n\
              * SEARCH\r\np3 OK none\r\n* SEARCH 3 7\r\np4 OK found\r\n* 2 FETCH (UID 7 BODY[] {5}\r\na\r\n}b FLAGS ())\r\np5 OK\r\n\
              p6 OK\r\n* 2 EXPUNGE\r\np7 OK\r\n",
        )
        .await
        .unwrap();
        imap.log_in("a@example.org", "p{3}").await.unwrap();
        imap.select("INBOX").await.unwrap();
        assert_eq!(imap.find("X-Probe", "abc").await.unwrap(), None);
        assert_eq!(imap.find("X-Probe", "abc").await.unwrap(), Some(7));
        assert_eq!(imap.fetch(7).await.unwrap(), b"a\r\n}b");
        imap.remove(7).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_refused_is_told_in_the_servers_words() {
        let mut imap =
            session(b"* OK ready\r\n+ \r\np1 NO [AUTHENTICATIONFAILED] who are you\r\n").await.unwrap();
        let error = imap.log_in("a@example.org", "wrong").await.unwrap_err().to_string();
        assert_eq!(error, "AUTHENTICATE PLAIN was refused: NO [AUTHENTICATIONFAILED] who are you");
        let error = session(b"* BYE too many\r\n").await.err().unwrap().to_string();
        assert_eq!(error, "the connection was refused: BYE too many");
    }

    #[tokio::test]
    async fn a_server_that_answers_nonsense_costs_neither_time_nor_memory() {
        let long = [b"* OK ready\r\n* ".to_vec(), vec![b'a'; 2 * MAX_LINE]].concat();
        let endless = [b"* OK ready\r\n".to_vec(), b"* 1 EXISTS\r\n".repeat(MAX_RESPONSES + 1)].concat();
        let scripts: [&[u8]; 5] = [
            &long,
            &endless,
            b"* OK ready\r\n* 1 FETCH (BODY[] {4294967296}\r\n",
            b"* OK ready\r\n+ more\r\n",
            b"* OK ready\r\n",
        ];
        for script in scripts {
            let mut imap = session(script).await.unwrap();
            let error = imap.select("INBOX").await.unwrap_err();
            assert!(matches!(error, ImapError::Malformed(_) | ImapError::Silent), "{error}");
        }
        assert!(matches!(session(b"").await.err(), Some(ImapError::Silent)));
        assert!(matches!(session(b"220 smtp\r\n").await.err(), Some(ImapError::Malformed(_))));
    }

    #[test]
    fn both_forms_of_search_results_are_read() {
        for (text, expected) in [
            ("* SEARCH 4 9 2", Some(9)),
            ("* SEARCH", None),
            ("* ESEARCH (TAG \"p1\") UID ALL 3,5:8", Some(8)),
            ("* ESEARCH (TAG \"p1\") UID", None),
            ("* 3 EXISTS", None),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }
}
