//! A network in memory: connections that keep their order, with delays, cuts, stalls and resets from a seed.
//!
//! Every connection is two pipes. What is written into one can be read at its other end after a delay, never before
//! what was written earlier; across connections everything overtakes everything. While a direction is cut nothing
//! arrives, and what was sent arrives after the cut is over, as TCP sends it again, or never, if the connection is
//! reset before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quorumail_consensus::{ConnectError, Connector, NodeId, Peer, endpoint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::random::Random;

/// Bytes on their way in one direction of a connection; a writer waits for room.
const PIPE_BYTES: usize = 1 << 20;
/// A connection that cannot be made is tried again so often, as TCP does.
const CONNECT_RETRY: Duration = Duration::from_millis(200);

/// How the network behaves just now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Every write arrives after up to so many milliseconds.
    pub(crate) delay_ms: u64,
    /// So many writes in a thousand arrive later than that.
    pub(crate) stalls: u64,
    /// By up to so many milliseconds.
    pub(crate) stall_ms: u64,
    /// So many calls in a thousand are delivered twice.
    pub(crate) repeats: u64,
}

/// What a node that is down looks like to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    /// Its kernel answers for it: connections are reset and refused.
    Refusing,
    /// Nobody answers.
    Silent,
}

struct State {
    random: Random,
    weather: Weather,
    cuts: BTreeSet<(NodeId, NodeId)>,
    listeners: BTreeMap<NodeId, mpsc::UnboundedSender<End>>,
    down: BTreeMap<NodeId, Down>,
    pipes: Vec<Weak<Pipe>>,
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

impl Network {
    pub(crate) fn new(random: Random, weather: Weather) -> Network {
        Network(Arc::new(Mutex::new(State {
            random,
            weather,
            cuts: BTreeSet::new(),
            listeners: BTreeMap::new(),
            down: BTreeMap::new(),
            pipes: Vec::new(),
        })))
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// A node comes up; whoever still holds a connection to its former life learns that it is gone.
    pub(crate) fn listen(&self, node: NodeId) -> mpsc::UnboundedReceiver<End> {
        let (listener, incoming) = mpsc::unbounded_channel();
        let mut state = self.0.lock();
        state.down.remove(&node);
        state.listeners.insert(node, listener);
        drop(state);
        for pipe in self.pipes_of(|from, to| from == node || to == node) {
            pipe.change(|ends| (ends.reader_reset, ends.writer_reset) = (true, true));
        }
        incoming
    }

    /// A node goes down. Its own ends of connections are closed at once; the others see a reset, or nothing at all.
    pub(crate) fn crash(&self, node: NodeId, silent: bool) {
        let mut state = self.0.lock();
        state.listeners.remove(&node);
        state.down.insert(node, if silent { Down::Silent } else { Down::Refusing });
        drop(state);
        for pipe in self.pipes_of(|from, _| from == node) {
            pipe.change(|ends| {
                ends.writer_reset = true;
                (ends.dead, ends.reader_reset) = (silent, ends.reader_reset || !silent);
            });
        }
        for pipe in self.pipes_of(|_, to| to == node) {
            pipe.change(|ends| {
                ends.reader_reset = true;
                (ends.dead, ends.writer_reset) = (silent, ends.writer_reset || !silent);
            });
        }
    }

    /// Nothing gets from one node to the other any more.
    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.0.lock().cuts.insert((from, to));
    }

    /// All cuts are over.
    pub(crate) fn heal(&self) {
        self.0.lock().cuts.clear();
        for pipe in self.pipes_of(|_, _| true) {
            pipe.change(|_| {});
        }
    }

    /// Resets the connections between two nodes.
    pub(crate) fn reset(&self, one: NodeId, other: NodeId) {
        for pipe in self.pipes_of(|from, to| (from, to) == (one, other) || (to, from) == (one, other)) {
            pipe.change(|ends| (ends.reader_reset, ends.writer_reset) = (true, true));
        }
    }

    /// After how long a call is to be delivered a second time; none: it is not.
    pub(crate) fn repeat_after(&self) -> Option<Duration> {
        let mut state = self.0.lock();
        let per_mille = state.weather.repeats;
        if per_mille == 0 || !state.random.chance(per_mille) {
            return None;
        }
        Some(Duration::from_millis(state.random.within(0..400)))
    }

    fn pipes_of(&self, wanted: impl Fn(NodeId, NodeId) -> bool) -> Vec<Arc<Pipe>> {
        let mut state = self.0.lock();
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        let pipes = state.pipes.iter().filter_map(Weak::upgrade);
        pipes.filter(|pipe| wanted(pipe.from, pipe.to)).collect()
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.0.lock().cuts.contains(&(from, to))
    }

    fn delay(&self) -> Duration {
        let mut state = self.0.lock();
        let weather = state.weather;
        let mut delay = state.random.within(0..weather.delay_ms + 1);
        if weather.stalls > 0 && state.random.chance(weather.stalls) {
            delay += state.random.within(0..weather.stall_ms + 1);
        }
        Duration::from_millis(delay)
    }

    async fn connect(self, from: NodeId, to: NodeId) -> io::Result<End> {
        let delay = self.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        loop {
            {
                let mut state = self.0.lock();
                let reachable = !state.cuts.contains(&(from, to)) && !state.cuts.contains(&(to, from));
                match state.down.get(&to).copied() {
                    Some(Down::Silent) => {}
                    _ if !reachable => {}
                    Some(Down::Refusing) => return Err(io::ErrorKind::ConnectionRefused.into()),
                    None => {
                        let (there, back) = (Pipe::new(from, to), Pipe::new(to, from));
                        state.pipes.extend([Arc::downgrade(&there), Arc::downgrade(&back)]);
                        let ours = End::new(self.clone(), back.clone(), there.clone());
                        let theirs = End::new(self.clone(), there, back);
                        let listener = state.listeners.get(&to).ok_or(io::ErrorKind::ConnectionRefused)?;
                        let listener = listener.clone();
                        drop(state);
                        listener.send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
                        return Ok(ours);
                    }
                }
            }
            tokio::time::sleep(CONNECT_RETRY).await;
        }
    }

    /// How consensus of a node reaches the others.
    pub(crate) fn connector(&self, from: NodeId) -> Dialer {
        Dialer { network: self.clone(), from }
    }
}

/// Connects one node to the others.
pub(crate) struct Dialer {
    network: Network,
    from: NodeId,
}

impl Connector for Dialer {
    fn channel(&self, peer: &Peer) -> Result<Channel, ConnectError> {
        let (network, from, to) = (self.network.clone(), self.from, peer.id);
        let uri = Endpoint::from_shared(format!("http://{}", peer.address));
        let uri = uri.map_err(|error| ConnectError { node: to, reason: error.to_string() })?;
        let dial = tower::service_fn(move |_: http::Uri| {
            let connecting = network.clone().connect(from, to);
            async move { Ok::<_, io::Error>(TokioIo::new(connecting.await?)) }
        });
        Ok(endpoint(uri).connect_with_connector_lazy(dial))
    }
}

#[derive(Default)]
struct Ends {
    queue: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last: Option<Instant>,
    ended: bool,
    reader_reset: bool,
    writer_reset: bool,
    /// Nobody is at one of the ends, and the other does not know.
    dead: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One direction of a connection.
struct Pipe {
    from: NodeId,
    to: NodeId,
    ends: Mutex<Ends>,
}

impl Pipe {
    fn new(from: NodeId, to: NodeId) -> Arc<Pipe> {
        Arc::new(Pipe { from, to, ends: Mutex::default() })
    }

    fn change(&self, change: impl FnOnce(&mut Ends)) {
        let mut ends = self.ends.lock();
        change(&mut ends);
        let wakers = (ends.reader.take(), ends.writer.take());
        drop(ends);
        wakers.0.into_iter().chain(wakers.1).for_each(Waker::wake);
    }
}

/// One end of a connection.
pub(crate) struct End {
    network: Network,
    read: Arc<Pipe>,
    write: Arc<Pipe>,
    arrival: Option<Pin<Box<Sleep>>>,
}

impl End {
    fn new(network: Network, read: Arc<Pipe>, write: Arc<Pipe>) -> End {
        End { network, read, write, arrival: None }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.read.change(|ends| ends.writer_reset = true);
        self.write.change(|ends| ends.ended = true);
    }
}

impl Connected for End {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let cut = this.network.is_cut(this.read.from, this.read.to);
            let mut ends = this.read.ends.lock();
            if ends.reader_reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            ends.reader = Some(context.waker().clone());
            if cut || ends.dead {
                return Poll::Pending;
            }
            let Some((at, bytes)) = ends.queue.front_mut() else {
                return if ends.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            if *at > Instant::now() {
                let at = *at;
                drop(ends);
                let arrival = this.arrival.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                if arrival.deadline() != at {
                    arrival.as_mut().reset(at);
                }
                ready!(arrival.as_mut().poll(context));
                continue;
            }
            let len = bytes.len().min(into.remaining());
            into.put_slice(&bytes[..len]);
            bytes.advance(len);
            if bytes.is_empty() {
                ends.queue.pop_front();
            }
            ends.bytes -= len;
            let writer = ends.writer.take();
            drop(ends);
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let delay = self.network.delay();
        let mut ends = self.write.ends.lock();
        if ends.writer_reset || ends.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if ends.bytes >= PIPE_BYTES {
            ends.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let at = (Instant::now() + delay).max(ends.last.unwrap_or_else(Instant::now));
        ends.last = Some(at);
        ends.bytes += bytes.len();
        ends.queue.push_back((at, Bytes::copy_from_slice(bytes)));
        let reader = ends.reader.take();
        drop(ends);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.change(|ends| ends.ended = true);
        Poll::Ready(Ok(()))
    }
}
