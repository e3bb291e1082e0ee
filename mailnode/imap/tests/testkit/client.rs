use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longest wait for anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(10);

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A client that sends lines and reads answers as text; 8-bit octets are replaced.
pub struct Client {
    pub stream: Box<dyn Stream>,
    read: Vec<u8>,
    tag: u32,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut client = Self::silent(TcpStream::connect(address).await.unwrap());
        let greeting = client.line().await;
        assert!(greeting.starts_with("* OK "), "{greeting}");
        client
    }

    pub fn silent(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), read: Vec::new(), tag: 0 }
    }

    pub async fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.stream.write_all(octets.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next line without its CRLF. A literal is part of the line that announces it.
    pub async fn line(&mut self) -> String {
        let raw = self.raw_line().await.expect("the server closed the connection");
        String::from_utf8_lossy(&raw).into_owned()
    }

    /// None at the end of the connection.
    pub async fn raw_line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let at = loop {
                match self.read.windows(2).position(|w| w == b"\r\n") {
                    Some(at) => break at,
                    None if self.fill().await => {}
                    None => return None,
                }
            };
            line.extend(self.read.drain(..at));
            self.read.drain(..2);
            let text = String::from_utf8_lossy(&line);
            let announced =
                text.strip_suffix('}').and_then(|t| t.rsplit_once('{')).and_then(|(_, n)| n.parse().ok());
            let Some(octets) = announced else { return Some(line) };
            line.extend_from_slice(b"\r\n");
            while self.read.len() < octets {
                assert!(self.fill().await, "the server closed within a literal");
            }
            line.extend(self.read.drain(..octets));
        }
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = vec![0; 65536];
        let got = timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("no answer in time");
        let got = got.unwrap_or(0);
        self.read.extend_from_slice(&buffer[..got]);
        got > 0
    }

    pub fn next_tag(&mut self) -> String {
        self.tag += 1;
        format!("t{}", self.tag)
    }

    /// Sends a command; answers the untagged lines and the tagged one without its tag.
    pub async fn command(&mut self, command: &str) -> (Vec<String>, String) {
        let tag = self.next_tag();
        self.send(format!("{tag} {command}\r\n")).await;
        self.until(&tag).await
    }

    /// Lines up to the tagged one.
    pub async fn until(&mut self, tag: &str) -> (Vec<String>, String) {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            match line.strip_prefix(tag).and_then(|rest| rest.strip_prefix(' ')) {
                Some(rest) => return (lines, rest.to_owned()),
                None => lines.push(line),
            }
        }
    }

    /// A command that has to succeed.
    pub async fn ok(&mut self, command: &str) -> Vec<String> {
        let (lines, tagged) = self.command(command).await;
        assert!(tagged.starts_with("OK"), "{command}: {tagged}");
        lines
    }

    /// A command that has to be refused; answers how.
    pub async fn refused(&mut self, command: &str) -> String {
        let (_, tagged) = self.command(command).await;
        assert!(!tagged.starts_with("OK"), "{command}: {tagged}");
        tagged
    }

    /// Appends; answers the tagged line.
    pub async fn append(&mut self, folder: &str, flags: &str, body: &str) -> String {
        let (_, tagged) =
            self.command(&format!("APPEND {folder} ({flags}) {{{}+}}\r\n{body}", body.len())).await;
        tagged
    }

    /// Reads on until the server closes; answers the lines.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.raw_line().await {
            lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        lines
    }
}
