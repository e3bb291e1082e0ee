//! Plain clients: HTTP, SMTP, IMAP. They send what they are told and read what comes.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{PASSWORD, PATIENCE};

pub async fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let bad = || io::Error::other("no HTTP answer");
    let status = answer.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let body = answer.split_once("\r\n\r\n").ok_or_else(bad)?.1;
    Ok((status, body.to_owned()))
}

/// One connection.
struct Lines(BufReader<TcpStream>);

impl Lines {
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    async fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes()).await
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await;
        match read.map_err(|_| io::ErrorKind::TimedOut)?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

/// An SMTP session after EHLO.
pub struct Smtp(Lines);

impl Smtp {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut smtp = Self(Lines::connect(address).await?);
        smtp.reply().await?;
        smtp.command("EHLO client.test").await?;
        Ok(smtp)
    }

    /// The last line of a reply.
    pub async fn reply(&mut self) -> io::Result<String> {
        loop {
            let line = self.0.line().await?;
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line);
            }
        }
    }

    pub async fn command(&mut self, command: &str) -> io::Result<String> {
        self.0.send(&format!("{command}\r\n")).await?;
        self.reply().await
    }

    /// AUTH PLAIN with the password of all test accounts.
    pub async fn login(&mut self, user: &str, password: &str) -> io::Result<String> {
        use base64::Engine as _;
        let plain = base64::engine::general_purpose::STANDARD.encode(format!("\0{user}\0{password}"));
        self.command(&format!("AUTH PLAIN {plain}")).await
    }

    /// Sends one message; the reply to its data, or the first refusal.
    pub async fn send(&mut self, from: &str, to: &[&str], text: &str) -> io::Result<String> {
        let mut commands = vec![format!("MAIL FROM:<{from}>")];
        commands.extend(to.iter().map(|to| format!("RCPT TO:<{to}>")));
        for command in commands {
            let reply = self.command(&command).await?;
            if !reply.starts_with("250") {
                self.command("RSET").await?;
                return Ok(reply);
            }
        }
        let reply = self.command("DATA").await?;
        if !reply.starts_with("354") {
            return Ok(reply);
        }
        self.0.send(text).await?;
        self.command(if text.ends_with("\r\n") { "." } else { "\r\n." }).await
    }
}

/// An IMAP session.
pub struct Imap {
    lines: Lines,
    tag: u32,
}

impl Imap {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut imap = Self { lines: Lines::connect(address).await?, tag: 0 };
        imap.lines.line().await?;
        Ok(imap)
    }

    pub async fn login(address: SocketAddr, user: &str) -> io::Result<Self> {
        let mut imap = Self::connect(address).await?;
        let (status, _) = imap.command(&format!("LOGIN {user} \"{PASSWORD}\"")).await?;
        if status.starts_with("OK") { Ok(imap) } else { Err(io::Error::other(status)) }
    }

    /// The tagged answer without its tag, and all that came before it (literals included).
    pub async fn command(&mut self, command: &str) -> io::Result<(String, String)> {
        self.tag += 1;
        let tag = format!("t{} ", self.tag);
        self.lines.send(&format!("{tag}{command}\r\n")).await?;
        let mut untagged = String::new();
        loop {
            let line = self.lines.line().await?;
            if let Some(status) = line.strip_prefix(&tag) {
                return Ok((status.to_owned(), untagged));
            }
            untagged.push_str(&line);
            untagged.push_str("\r\n");
            if let Some(len) =
                line.strip_suffix('}').and_then(|l| l.rsplit_once('{')).and_then(|l| l.1.parse().ok())
            {
                let mut literal = vec![0; len];
                self.lines.0.read_exact(&mut literal).await?;
                untagged.push_str(&String::from_utf8_lossy(&literal));
            }
        }
    }

    /// As [`Imap::command`], and it must answer OK.
    pub async fn ok(&mut self, command: &str) -> String {
        let (status, untagged) = self.command(command).await.unwrap();
        assert!(status.starts_with("OK"), "{command}: {status}");
        untagged
    }

    /// Sends a command without waiting for its end (IDLE).
    pub async fn start(&mut self, command: &str) -> io::Result<()> {
        self.tag += 1;
        self.lines.send(&format!("t{} {command}\r\n", self.tag)).await
    }

    /// The next line.
    pub async fn line(&mut self) -> io::Result<String> {
        self.lines.line().await
    }

    /// Sends as it is.
    pub async fn raw(&mut self, text: &str) -> io::Result<()> {
        self.lines.send(text).await
    }
}
