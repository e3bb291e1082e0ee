//! Sockets between nodes that can be cut, one direction at a time: what is on a cut way stands still until it is mended,
//! as when packets are dropped without a word. And they can be broken off.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quorumail_consensus::NodeId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

/// How often a way that is cut is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A second handle of a connection's socket.
type Socket = std::net::TcpStream;

#[derive(Default)]
struct State {
    /// Ordered pairs of nodes between which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Connections by who has opened them to whom.
    open: Vec<(NodeId, NodeId, Weak<Socket>)>,
}

/// What is done to the connections between nodes.
#[derive(Clone, Default)]
pub struct Cuts(Arc<Mutex<State>>);

impl Cuts {
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.0.lock().cut.insert((from, to));
    }

    pub fn mend_all(&self) {
        self.0.lock().cut.clear();
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.0.lock().cut.contains(&(from, to))
    }

    /// Breaks all connections that one node has opened to the other; new ones can be made at once.
    pub fn break_off(&self, from: NodeId, to: NodeId) {
        for (opener, other, socket) in &self.0.lock().open {
            if (*opener, *other) == (from, to)
                && let Some(socket) = socket.upgrade()
            {
                // It may be closed already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    fn opened(&self, from: NodeId, to: NodeId, stream: &TcpStream) -> io::Result<Arc<Socket>> {
        let socket = Arc::new(Socket::from(stream.as_fd().try_clone_to_owned()?));
        let mut state = self.0.lock();
        state.open.retain(|(_, _, socket)| socket.strong_count() > 0);
        state.open.push((from, to, Arc::downgrade(&socket)));
        Ok(socket)
    }
}

/// Opens one connection.
pub struct Dial {
    pub from: NodeId,
    pub to: NodeId,
    pub address: String,
    pub cuts: Cuts,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (from, to, address, cuts) = (self.from, self.to, self.address.clone(), self.cuts.clone());
        Box::pin(async move {
            // A handshake needs both ways.
            while cuts.is_cut(from, to) || cuts.is_cut(to, from) {
                sleep(LOOK).await;
            }
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let timer = || Box::pin(sleep(Duration::ZERO));
            let _socket = cuts.opened(from, to, &stream)?;
            Ok(TokioIo::new(Wire { from, to, cuts, stream, _socket, read: timer(), write: timer() }))
        })
    }
}

/// The caller's end of a connection.
pub struct Wire {
    from: NodeId,
    to: NodeId,
    cuts: Cuts,
    stream: TcpStream,
    _socket: Arc<Socket>,
    read: Pin<Box<Sleep>>,
    write: Pin<Box<Sleep>>,
}

/// Waits while the way is cut.
fn pass(cuts: &Cuts, way: (NodeId, NodeId), timer: &mut Pin<Box<Sleep>>, cx: &mut Context<'_>) -> Poll<()> {
    while cuts.is_cut(way.0, way.1) {
        ready!(timer.as_mut().poll(cx));
        timer.as_mut().reset(Instant::now() + LOOK);
    }
    Poll::Ready(())
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(pass(&this.cuts, (this.to, this.from), &mut this.read, cx));
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(pass(&this.cuts, (this.from, this.to), &mut this.write, cx));
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
