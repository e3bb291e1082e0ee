//! A connection that speaks in lines.

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// One connection.
pub(crate) struct Lines {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Lines {
    /// Connects without TLS: what is measured is the mail server, not the cipher.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: BufReader::with_capacity(256 * 1024, reader), writer })
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.writer.write_all(bytes).await?;
        Ok(())
    }

    /// The next line with its end.
    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        if self.reader.read_until(b'\n', &mut line).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// An SMTP reply (the last line of it); an error unless its code starts with `expected`.
    pub(crate) async fn reply(&mut self, expected: char) -> anyhow::Result<String> {
        loop {
            let line = self.line().await?;
            if line.as_bytes().get(3) != Some(&b'-') {
                if !line.starts_with(expected) {
                    bail!("the server answered {}", line.trim_end());
                }
                return Ok(line);
            }
        }
    }

    /// An IMAP command; answers all untagged lines (literals skipped) once it is OK.
    pub(crate) async fn command(&mut self, tag: &str, command: &[u8]) -> anyhow::Result<Vec<String>> {
        self.send(&[tag.as_bytes(), b" ", command, b"\r\n"].concat()).await?;
        self.answer(tag).await
    }

    /// What follows a command up to its tagged OK.
    pub(crate) async fn answer(&mut self, tag: &str) -> anyhow::Result<Vec<String>> {
        let mut untagged = Vec::new();
        loop {
            let line = self.line().await?;
            if let Some(size) = literal(&line) {
                let mut skipped = vec![0; size];
                self.reader.read_exact(&mut skipped).await?;
            }
            if let Some(rest) = line.strip_prefix(tag) {
                if !rest.starts_with(" OK") {
                    bail!("the server answered {}", line.trim_end());
                }
                return Ok(untagged);
            }
            untagged.push(line);
        }
    }
}

/// The size of a literal that a line announces.
fn literal(line: &str) -> Option<usize> {
    line.trim_end().strip_suffix('}')?.rsplit_once('{')?.1.parse().ok()
}
