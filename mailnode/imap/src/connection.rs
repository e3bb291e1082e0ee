//! The thin asynchronous driver: a stream with a framer on one side and an answer in the making on the other.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{
    Closed,
    codec::{Framer, Input},
    config::TlsSource,
    response::Out,
};

/// Octets of an answer that are gathered before they are written.
const WRITE_FROM: usize = 64 * 1024;

/// Plain or under TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// While a handshake runs.
    Between,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Between => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Between => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Between => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Between => Poll::Ready(Ok(())),
        }
    }
}

/// One client.
pub(crate) struct Connection {
    stream: Stream,
    pub(crate) framer: Framer,
    pub(crate) out: Out,
    write: Duration,
    shutdown: CancellationToken,
}

impl Connection {
    pub(crate) fn new(
        stream: TcpStream,
        max_message: usize,
        write: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let framer = Framer::new(max_message as u64);
        Self { stream: Stream::Plain(stream), framer, out: Out::default(), write, shutdown }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// Goes over to TLS.
    pub(crate) async fn start_tls(&mut self, source: &dyn TlsSource, limit: Duration) -> Result<(), Closed> {
        let Stream::Plain(plain) = std::mem::replace(&mut self.stream, Stream::Between) else {
            return Err(Closed::Handshake);
        };
        let handshake = TlsAcceptor::from(source.current()).accept(plain);
        let stream =
            timeout(limit, handshake).await.map_err(|_| Closed::TimedOut)?.map_err(|_| Closed::Handshake)?;
        self.stream = Stream::Tls(Box::new(stream));
        Ok(())
    }

    /// Writes all of the answer at hand. A client that does not read for too long is given up.
    pub(crate) async fn flush(&mut self) -> Result<(), Closed> {
        while let Some(mut piece) = self.out.next_piece() {
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(WRITE_FROM));
                self.write_all(&part).await?;
            }
        }
        let flushed = timeout(self.write, self.stream.flush()).await;
        flushed.map_err(|_| Closed::TimedOut)?.map_err(|_| Closed::Lost)
    }

    async fn write_all(&mut self, part: &Bytes) -> Result<(), Closed> {
        let written = timeout(self.write, self.stream.write_all(part)).await;
        written.map_err(|_| Closed::TimedOut)?.map_err(|_| Closed::Lost)
    }

    /// Writes when enough has been gathered: this is the back-pressure of long answers.
    pub(crate) async fn flush_when_full(&mut self) -> Result<(), Closed> {
        if self.out.len() >= WRITE_FROM { self.flush().await } else { Ok(()) }
    }

    /// The next command, or why there is none. Writes what waits before it waits.
    pub(crate) async fn next_input(&mut self, until: Instant) -> Result<Input, Closed> {
        loop {
            if let Some(input) = self.framer.next_input() {
                return Ok(input);
            }
            self.flush().await?;
            self.read(until).await?;
        }
    }

    /// The next line that is no command.
    pub(crate) async fn next_line(&mut self, until: Instant) -> Result<Result<Bytes, &'static str>, Closed> {
        loop {
            if let Some(line) = self.framer.next_line() {
                return Ok(line);
            }
            self.flush().await?;
            self.read(until).await?;
        }
    }

    /// Reads a piece. Can be cancelled without losing anything.
    pub(crate) async fn read(&mut self, until: Instant) -> Result<(), Closed> {
        let at_once = self.framer.read_at_once();
        let buffer = self.framer.buffer();
        buffer.reserve(at_once);
        let mut limited = (&mut self.stream).take(at_once as u64);
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Closed::Shutdown),
            read = timeout_at(until, limited.read_buf(buffer)) => match read {
                Err(_) => Err(Closed::TimedOut),
                Ok(Ok(1..)) => Ok(()),
                Ok(Ok(0) | Err(_)) => Err(Closed::Lost),
            },
        }
    }

    /// Says the last words and closes in an orderly way, as far as the client goes along.
    pub(crate) async fn close(&mut self) {
        /// The client is told why it is closed, but nobody waits long for it to listen.
        const LAST_WORDS: Duration = Duration::from_secs(2);
        let _ = timeout(LAST_WORDS, async {
            if self.flush().await.is_ok() {
                let _ = self.stream.shutdown().await;
            }
        })
        .await;
    }
}
