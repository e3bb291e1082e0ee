//! One connection to a server: greeting, log-in and one message.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use quorumail_message::Address;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Answer, Credentials, Delivery, Outcome, Outgoing, Timeouts,
    reply::{MAX_LINE, MAX_LINES, Reply, clean, parse_line},
    text::Stuffing,
};

/// Recipients sent before their replies are read (RFC 2920): few enough to fit in any socket's buffers, so that
/// neither side waits for the other to read.
const PIPELINED: usize = 50;
/// Octets of a message written at once.
const BLOCK: usize = 32 * 1024;
/// QUIT is a courtesy; the message is done before.
const QUIT_TIME: Duration = Duration::from_secs(5);

/// Why a server got no message.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It said so.
    Reply(Reply),
    /// The connection failed, or we refuse.
    Ours { status: &'static str, text: Cow<'static, str> },
    /// TLS failed; without TLS it might work.
    Tls(String),
}

impl Trouble {
    pub(super) fn ours(status: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self::Ours { status, text: text.into() }
    }

    pub(super) fn into_outcome(self) -> Outcome {
        let ours = |status: &str, text: &str| Answer { code: None, status: status.into(), text: clean(text) };
        match self {
            Self::Reply(reply) if reply.code >= 500 => Outcome::Failed(reply.answer()),
            Self::Reply(reply) => Outcome::Deferred(reply.answer()),
            Self::Tls(text) => Outcome::Deferred(ours("4.7.5", &format!("TLS failed: {text}"))),
            Self::Ours { status, text } if status.starts_with('5') => Outcome::Failed(ours(status, &text)),
            Self::Ours { status, text } => Outcome::Deferred(ours(status, &text)),
        }
    }

    fn lost(error: &std::io::Error) -> Self {
        Self::ours("4.4.2", format!("the connection failed: {error}"))
    }
}

/// A server that is connected to.
pub(super) struct Peer<'t, S> {
    stream: BufReader<S>,
    timeouts: &'t Timeouts,
    /// The lines of its EHLO reply but the first, in capitals.
    extensions: Vec<String>,
}

impl<'t, S: AsyncRead + AsyncWrite + Unpin> Peer<'t, S> {
    pub(super) fn new(stream: S, timeouts: &'t Timeouts) -> Self {
        Self { stream: BufReader::new(stream), timeouts, extensions: Vec::new() }
    }

    /// Whether the server offered an extension.
    pub(super) fn offers(&self, keyword: &str) -> bool {
        self.extensions.iter().any(|line| line.split(' ').next() == Some(keyword))
    }

    pub(super) async fn greeting(&mut self) -> Result<(), Trouble> {
        let reply = self.reply(self.timeouts.greeting).await?;
        if reply.code == 220 { Ok(()) } else { Err(Trouble::Reply(reply)) }
    }

    pub(super) async fn hello(&mut self, name: &str) -> Result<(), Trouble> {
        let reply = self.command(&format!("EHLO {name}\r\n"), self.timeouts.command).await?;
        if reply.code == 250 {
            self.extensions = reply.lines.iter().skip(1).map(|line| line.to_ascii_uppercase()).collect();
            return Ok(());
        }
        // RFC 5321 3.2: a server that knows no EHLO is spoken to in the old way.
        let reply = self.command(&format!("HELO {name}\r\n"), self.timeouts.command).await?;
        if reply.code == 250 { Ok(()) } else { Err(Trouble::Reply(reply)) }
    }

    /// Answers the bare stream for the handshake.
    pub(super) async fn start_tls(mut self) -> Result<S, Trouble> {
        let reply =
            self.command("STARTTLS\r\n", self.timeouts.command).await.map_err(|trouble| match trouble {
                Trouble::Ours { text, .. } => Trouble::Tls(text.into_owned()),
                other => other,
            })?;
        if reply.code != 220 {
            return Err(Trouble::Tls(reply.answer().text));
        }
        if !self.stream.buffer().is_empty() {
            // Replies sent ahead in plain text would be taken for ones under TLS.
            return Err(Trouble::Tls("the server sent more than its reply to STARTTLS".into()));
        }
        Ok(self.stream.into_inner())
    }

    pub(super) async fn log_in(&mut self, credentials: &Credentials) -> Result<(), Trouble> {
        let plain = self.extensions.iter().any(|line| {
            let mut words = line.split([' ', '=']);
            words.next() == Some("AUTH") && words.any(|word| word == "PLAIN")
        });
        if !plain {
            return Err(Trouble::ours("4.7.0", "the relay does not offer AUTH PLAIN"));
        }
        // RFC 4616 2.
        let response = STANDARD.encode(format!("\0{}\0{}", credentials.username, credentials.password));
        let reply = self.command(&format!("AUTH PLAIN {response}\r\n"), self.timeouts.command).await?;
        if reply.code == 235 {
            return Ok(());
        }
        // A wrong password is a fault of ours that a person can mend: the mail waits for that.
        let said = reply.answer();
        Err(Trouble::ours("4.7.8", format!("the relay refused the log-in: {} {}", reply.code, said.text)))
    }

    /// Sends one message and ends the connection.
    pub(super) async fn transact(mut self, outgoing: Outgoing<'_>, body: &[u8], tls: bool) -> Delivery {
        let mut outcomes = vec![None; outgoing.recipients.len()];
        let result = self.message(outgoing, body, &mut outcomes).await;
        let finished = result.is_ok();
        // Who has no outcome of their own shares that of the message.
        let rest = result.unwrap_or_else(Trouble::into_outcome);
        if finished {
            let quit = self.command("QUIT\r\n", QUIT_TIME);
            let _ = timeout(QUIT_TIME, quit).await;
        }
        let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| rest.clone())).collect();
        Delivery { outcomes, try_next: false, tls }
    }

    /// The outcome for all recipients that have none of their own.
    async fn message(
        &mut self,
        outgoing: Outgoing<'_>,
        body: &[u8],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<Outcome, Trouble> {
        if outgoing.eight_bit && !self.offers("8BITMIME") {
            // RFC 6152 3: not to be sent as it is, and not converted here.
            return Err(Trouble::ours("5.6.3", "the message has 8-bit text and the server does not take it"));
        }
        let foreign = |address: &Address| !address.local().is_ascii();
        if outgoing.reverse_path.is_some_and(foreign) || outgoing.recipients.iter().any(foreign) {
            // RFC 6531 is not spoken here.
            return Err(Trouble::ours("5.6.7", "an address has characters that need SMTPUTF8"));
        }
        self.envelope(outgoing, body.len(), outcomes).await?;
        if outcomes.iter().all(Option::is_some) {
            return Ok(outcomes[0].clone().expect("all have one"));
        }
        let reply = self.command("DATA\r\n", self.timeouts.data_start).await?;
        if reply.code != 354 {
            return Err(Trouble::Reply(reply));
        }
        self.text(body).await?;
        Ok(self.reply(self.timeouts.data_end).await?.outcome())
    }

    /// MAIL and RCPT; notes the recipients that the server refuses.
    async fn envelope(
        &mut self,
        outgoing: Outgoing<'_>,
        size: usize,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        let mut mail = match outgoing.reverse_path {
            Some(path) => format!("MAIL FROM:<{path}>"),
            None => "MAIL FROM:<>".to_owned(),
        };
        if self.offers("SIZE") {
            mail.push_str(&format!(" SIZE={size}"));
        }
        if outgoing.eight_bit {
            mail.push_str(" BODY=8BITMIME");
        }
        mail.push_str("\r\n");
        let together = if self.offers("PIPELINING") { PIPELINED } else { 1 };
        let mut begun = false;
        if together == 1 {
            self.mail_reply(&mail).await?;
            begun = true;
        }
        for (number, group) in outgoing.recipients.chunks(together).enumerate() {
            let mut commands = if begun { String::new() } else { mail.clone() };
            group.iter().for_each(|recipient| commands.push_str(&format!("RCPT TO:<{recipient}>\r\n")));
            self.write(commands.as_bytes(), self.timeouts.rcpt).await?;
            if !begun {
                let reply = self.reply(self.timeouts.mail).await?;
                if !reply.positive() {
                    // What it answers to the recipients has no meaning; the connection is given up.
                    return Err(Trouble::Reply(reply));
                }
                begun = true;
            }
            for slot in &mut outcomes[number * together..][..group.len()] {
                let reply = self.reply(self.timeouts.rcpt).await?;
                if reply.code == 421 {
                    // RFC 5321 3.8: it is about to close.
                    return Err(Trouble::Reply(reply));
                }
                *slot = Some(reply.outcome()).filter(|outcome| !matches!(outcome, Outcome::Delivered(_)));
            }
        }
        Ok(())
    }

    async fn mail_reply(&mut self, mail: &str) -> Result<(), Trouble> {
        let reply = self.command(mail, self.timeouts.mail).await?;
        if reply.positive() { Ok(()) } else { Err(Trouble::Reply(reply)) }
    }

    async fn text(&mut self, body: &[u8]) -> Result<(), Trouble> {
        let mut stuffing = Stuffing::new();
        let mut out = Vec::with_capacity(BLOCK + BLOCK / 4);
        for block in body.chunks(BLOCK) {
            stuffing.block(block, &mut out);
            self.write(&out, self.timeouts.data_block).await?;
            out.clear();
        }
        stuffing.finish(&mut out);
        self.write(&out, self.timeouts.data_block).await
    }

    async fn command(&mut self, line: &str, time: Duration) -> Result<Reply, Trouble> {
        self.write(line.as_bytes(), time).await?;
        self.reply(time).await
    }

    async fn write(&mut self, octets: &[u8], time: Duration) -> Result<(), Trouble> {
        let write = async {
            self.stream.get_mut().write_all(octets).await?;
            self.stream.get_mut().flush().await
        };
        match timeout(time, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Trouble::lost(&error)),
            Err(_) => Err(Trouble::ours("4.4.2", "the server does not read")),
        }
    }

    /// The next reply; `time` is for the whole of it.
    async fn reply(&mut self, time: Duration) -> Result<Reply, Trouble> {
        let deadline = Instant::now() + time;
        let mut lines = Vec::new();
        loop {
            let line = match timeout_at(deadline, self.line()).await {
                Ok(line) => line?,
                Err(_) => return Err(Trouble::ours("4.4.2", "the server does not answer")),
            };
            let (code, last, text) =
                parse_line(&line).ok_or(Trouble::ours("4.5.0", "the server's answer is no SMTP reply"))?;
            lines.push(text);
            if last {
                return Ok(Reply { code, lines });
            }
            if lines.len() >= MAX_LINES {
                return Err(Trouble::ours("4.5.0", "the server's answer has too many lines"));
            }
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, Trouble> {
        let mut line = Vec::new();
        loop {
            let octet = match self.stream.read_u8().await {
                Ok(octet) => octet,
                Err(error) => return Err(Trouble::lost(&error)),
            };
            line.push(octet);
            if octet == b'\n' {
                return Ok(line);
            }
            if line.len() > MAX_LINE {
                return Err(Trouble::ours("4.5.0", "the server's answer has a line that is too long"));
            }
        }
    }
}
