//! As much of an IMAP client as is needed here: probes find one message, read it and remove it; imports read a mailbox of another
//! server. RFC 3501 as RFC 9051 keeps it. Bounded in time and memory, whatever a server answers.

pub(crate) mod syntax;

use std::{io, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    time::timeout,
};

/// Bytes of a response without its literals.
const MAX_LINE: usize = 64 << 10;
/// Bytes of a literal, unless more is said to be wanted: the message of a probe is a short one.
const MAX_LITERAL: usize = 1 << 20;
/// Bytes of a literal that are read at a time: each piece has to come in time.
const PIECE: usize = 64 << 10;
/// Responses to one command that are kept.
const MAX_RESPONSES: usize = 1_000;
/// Literals in one response.
const MAX_LITERALS: usize = 64;
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
    /// It cannot do what is needed.
    #[error("{0}")]
    Unable(&'static str),
    /// The answer is no IMAP, or more than is taken.
    #[error("the answer cannot be read: {0}")]
    Malformed(&'static str),
}

/// A response: its text, in which each literal is [`LITERAL`], and the literals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) text: String,
    pub(crate) literals: Vec<Vec<u8>>,
}

/// Stands for a literal: no response has the character itself (RFC 9051 9, CHAR).
pub(crate) const LITERAL: char = '\0';

/// How to log in.
pub(crate) enum Secret<'s> {
    Password(&'s str),
    /// An OAuth 2.0 access token.
    Token(&'s str),
}

/// A session.
pub(crate) struct Imap<S> {
    stream: BufReader<S>,
    commands: u32,
    patience: Duration,
    max_literal: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Imap<S> {
    /// Waits for the greeting. `patience`: for each answer.
    pub(crate) async fn new(stream: S, patience: Duration) -> Result<Self, ImapError> {
        let mut imap = Self::resumed(stream, patience);
        let greeting = imap.response().await?;
        match greeting.text.strip_prefix("* ") {
            Some(rest) if has_word(rest, "OK") => Ok(imap),
            Some(rest) => Err(refused("the connection", rest)),
            None => Err(ImapError::Malformed("it does not begin with a greeting")),
        }
    }

    /// A session whose greeting was said before: after STARTTLS there is none (RFC 9051 6.2.1).
    pub(crate) fn resumed(stream: S, patience: Duration) -> Self {
        Self { stream: BufReader::new(stream), commands: 0, patience, max_literal: MAX_LITERAL }
    }

    /// Takes literals of up to so many bytes.
    pub(crate) fn allow_literals(&mut self, bytes: usize) {
        self.max_literal = bytes;
    }

    /// RFC 9051 6.2.1. Answers the connection, on which TLS begins. What came behind the answer was not protected and is not
    /// taken as if it had been.
    pub(crate) async fn start_tls(mut self) -> Result<S, ImapError> {
        self.command("STARTTLS", &[]).await?;
        match self.stream.buffer() {
            [] => Ok(self.stream.into_inner()),
            _ => Err(ImapError::Malformed("it goes on in plain text after STARTTLS")),
        }
    }

    /// What the server can do, in upper case.
    pub(crate) async fn capabilities(&mut self) -> Result<Vec<String>, ImapError> {
        let responses = self.command("CAPABILITY", &[]).await?;
        let told = responses.iter().filter_map(|response| response.text.strip_prefix("* CAPABILITY "));
        Ok(told.flat_map(str::split_ascii_whitespace).map(str::to_ascii_uppercase).collect())
    }

    /// SASL PLAIN (RFC 4616): any password can be sent so.
    pub(crate) async fn log_in(&mut self, user: &str, password: &str) -> Result<(), ImapError> {
        let secret = STANDARD.encode(format!("\0{user}\0{password}"));
        self.command("AUTHENTICATE PLAIN", &[&secret]).await.map(drop)
    }

    /// Logs in by what the server offers: SASL PLAIN or LOGIN with a password, OAUTHBEARER (RFC 7628) or XOAUTH2 with a token.
    pub(crate) async fn log_in_by(
        &mut self,
        capabilities: &[String],
        user: &str,
        secret: Secret<'_>,
    ) -> Result<(), ImapError> {
        let offers = |name: &str| capabilities.iter().any(|known| known == name);
        match secret {
            Secret::Password(password) if offers("AUTH=PLAIN") => self.log_in(user, password).await,
            Secret::Password(_) if offers("LOGINDISABLED") => {
                Err(ImapError::Unable("it takes no password here; it may ask for TLS, or for OAuth 2.0"))
            }
            Secret::Password(password) => {
                let quoted = |text: &str| {
                    quoted(text).ok_or(ImapError::Unable(
                        "it has LOGIN alone, and user or password have characters that cannot be sent so",
                    ))
                };
                let command = format!("LOGIN {} {}", quoted(user)?, quoted(password)?);
                self.converse_as("LOGIN", &command, &[]).await.map(drop)
            }
            Secret::Token(token) if offers("AUTH=OAUTHBEARER") => {
                // RFC 7628 3.1: "=" and "," of the user name are escaped as in RFC 5801.
                let user = user.replace('=', "=3D").replace(',', "=2C");
                let first = STANDARD.encode(format!("n,a={user},\x01auth=Bearer {token}\x01\x01"));
                // RFC 7628 3.2.3: what goes wrong is told in a challenge, which is answered by this.
                self.command("AUTHENTICATE OAUTHBEARER", &[&first, "AQ=="]).await.map(drop)
            }
            Secret::Token(token) if offers("AUTH=XOAUTH2") => {
                let first = STANDARD.encode(format!("user={user}\x01auth=Bearer {token}\x01\x01"));
                self.command("AUTHENTICATE XOAUTH2", &[&first, ""]).await.map(drop)
            }
            Secret::Token(_) => Err(ImapError::Unable("it offers neither OAUTHBEARER nor XOAUTH2")),
        }
    }

    pub(crate) async fn select(&mut self, folder: &str) -> Result<(), ImapError> {
        self.command(&format!("SELECT {folder}"), &[]).await.map(drop)
    }

    /// UID of a message with this header. `value` needs no quoting.
    pub(crate) async fn find(&mut self, header: &str, value: &str) -> Result<Option<u32>, ImapError> {
        let responses = self.command(&format!("UID SEARCH HEADER {header} {value}"), &[]).await?;
        Ok(responses.iter().find_map(|response| found(&response.text)))
    }

    /// A message as it is.
    pub(crate) async fn fetch(&mut self, uid: u32) -> Result<Vec<u8>, ImapError> {
        let responses = self.command(&format!("UID FETCH {uid} (BODY.PEEK[])"), &[]).await?;
        let bodies = responses.into_iter().filter(|response| response.text.contains("BODY[]"));
        let body = bodies.flat_map(|response| response.literals).next();
        body.ok_or(ImapError::Malformed("the message that was found is not in it"))
    }

    /// RFC 4315 (UIDPLUS): this one alone.
    pub(crate) async fn remove(&mut self, uid: u32) -> Result<(), ImapError> {
        self.command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"), &[]).await?;
        self.command(&format!("UID EXPUNGE {uid}"), &[]).await.map(drop)
    }

    /// What the server answers makes no difference any more.
    pub(crate) async fn log_out(mut self) {
        let _ = self.command("LOGOUT", &[]).await;
    }

    /// Untagged responses to a command that succeeded. `continued`: what is sent when the server asks for more, in this order.
    pub(crate) async fn command(
        &mut self,
        command: &str,
        continued: &[&str],
    ) -> Result<Vec<Response>, ImapError> {
        self.converse_as(command, command, continued).await
    }

    /// The same with another name for people, where the command itself has a secret.
    async fn converse_as(
        &mut self,
        name: &str,
        command: &str,
        continued: &[&str],
    ) -> Result<Vec<Response>, ImapError> {
        let patience = self.patience;
        let work = async {
            let mut responses = Vec::new();
            let mut keep = |response| {
                responses.push(response);
                match responses.len() < MAX_RESPONSES {
                    true => Ok(()),
                    false => Err(ImapError::Malformed("it does not end")),
                }
            };
            self.converse(name, command, continued, &mut keep).await?;
            Ok(responses)
        };
        timeout(patience, work).await.unwrap_or(Err(ImapError::Silent))
    }

    /// Hands each untagged response to `take` as it comes. Each has to come in time, and the whole may take long.
    pub(crate) async fn each(
        &mut self,
        command: &str,
        take: &mut (dyn FnMut(Response) -> Result<(), ImapError> + Send),
    ) -> Result<(), ImapError> {
        self.converse(command, command, &[], take).await
    }

    async fn converse(
        &mut self,
        name: &str,
        command: &str,
        continued: &[&str],
        take: &mut (dyn FnMut(Response) -> Result<(), ImapError> + Send),
    ) -> Result<(), ImapError> {
        self.commands += 1;
        let tag = format!("p{}", self.commands);
        self.send(&format!("{tag} {command}")).await?;
        let mut continued = continued.iter();
        loop {
            let response = self.response().await?;
            if response.text.starts_with('+') {
                let more = continued.next().ok_or(ImapError::Malformed("it asks for more than was said"))?;
                self.send(more).await?;
                continue;
            }
            match response.text.strip_prefix(&tag).and_then(|rest| rest.strip_prefix(' ')) {
                Some(result) if has_word(result, "OK") => return Ok(()),
                Some(result) => return Err(refused(name, result)),
                None => take(response)?,
            }
        }
    }

    async fn send(&mut self, line: &str) -> Result<(), ImapError> {
        let write = async {
            self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
            self.stream.flush().await
        };
        Ok(timeout(self.patience, write).await.map_err(|_| ImapError::Silent)??)
    }

    async fn response(&mut self) -> Result<Response, ImapError> {
        let silent = |_| ImapError::Silent;
        let mut response = Response::default();
        loop {
            let mut line = Vec::new();
            let room = MAX_LINE.saturating_sub(response.text.len()) as u64;
            let mut limited = (&mut self.stream).take(room);
            timeout(self.patience, limited.read_until(b'\n', &mut line)).await.map_err(silent)??;
            let Some(line) = line.strip_suffix(b"\r\n") else {
                return Err(match line.len() as u64 == room {
                    true => ImapError::Malformed("a line is too long"),
                    false => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                });
            };
            let line = String::from_utf8_lossy(line).replace(LITERAL, "\u{fffd}");
            let Some((text, length)) = literal(&line) else {
                response.text.push_str(&line);
                return Ok(response);
            };
            if length > self.max_literal || response.literals.len() >= MAX_LITERALS {
                return Err(ImapError::Malformed("a literal is too long"));
            }
            response.text.push_str(text);
            response.text.push(LITERAL);
            let mut bytes = Vec::new();
            while bytes.len() < length {
                let piece = (length - bytes.len()).min(PIECE) as u64;
                let mut limited = (&mut self.stream).take(piece);
                if timeout(self.patience, limited.read_to_end(&mut bytes)).await.map_err(silent)?? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            response.literals.push(bytes);
        }
    }
}

/// A quoted string (RFC 9051 9); none for what cannot be in one.
pub(crate) fn quoted(text: &str) -> Option<String> {
    let is_quotable = |c: char| matches!(c, ' '..='~');
    text.chars().all(is_quotable).then(|| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
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
