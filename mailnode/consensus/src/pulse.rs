//! One small message a peer and interval for all groups together: this process lives.
//!
//! The stream that carries it is kept open in both directions, each opened by one side. When a process ends, the system
//! closes its sockets at once; a stream that broke and cannot be opened again because the peer refuses (or has gone from
//! the network) is taken as the loss of that process, long before any lease runs out. Mere slowness never is: silence
//! without an error is left to the leases. A peer that comes back under another incarnation was lost in between.
//!
//! Nothing that is acknowledged or read depends on a pulse. A false alarm costs a round of refused pre-votes.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorumail_proto::peer::{PulseEcho, PulseFrame, QuietGroup, QuietGroups};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::disk::DiskFigure;
use crate::failover;
use crate::machine::NodeId;
use crate::network::Link;
use crate::node::Inner;
use crate::wire::FORMAT;

/// How long opening the stream may take, the connection included.
const OPEN_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause before a stream that could not be opened is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Pulses handed to the transport and not yet taken by it. More than one in a row means that the peer does not take
/// them, and there is no point in queueing more.
const QUEUED_PULSES: usize = 4;

/// What is known of a peer's process.
#[derive(Debug, Default)]
struct Known {
    incarnation: Option<u64>,
    heard: Option<Instant>,
    /// The groups that it leads and would keep quiet.
    offers: Arc<[QuietGroup]>,
    /// Of this node's offers, those that it has accepted.
    accepted: Arc<[QuietGroup]>,
    disk: Option<DiskFigure>,
}

/// The pulses between this node and one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerPulse {
    known: Mutex<Known>,
    /// The next pulse carries something new and should not wait for its time.
    pub(crate) hurry: Notify,
}

impl PeerPulse {
    /// Takes a pulse; returns whether the peer has been restarted since the last one.
    fn hear(&self, frame: PulseFrame) -> bool {
        let mut known = self.known.lock();
        known.heard = Some(Instant::now());
        let sync = Duration::from_micros(frame.sync_us);
        known.disk = (frame.sync_us > 0).then_some(DiskFigure { sync, slow: frame.slow_disk });
        if let Some(offers) = frame.offers {
            known.offers = offers.groups.into();
        }
        if let Some(accepted) = frame.accepted {
            known.accepted = accepted.groups.into();
        }
        known.incarnation.replace(frame.incarnation).is_some_and(|before| before != frame.incarnation)
    }

    fn offers(&self) -> Arc<[QuietGroup]> {
        self.known.lock().offers.clone()
    }

    /// Whether the peer has accepted this very offer.
    pub(crate) fn accepts(&self, offer: &QuietGroup) -> bool {
        self.known.lock().accepted.contains(offer)
    }

    /// How its disk is; none when it has had nothing to sync, or no pulse has come within this time.
    pub(crate) fn disk(&self, within: Duration) -> Option<DiskFigure> {
        let known = self.known.lock();
        known.disk.filter(|_| known.heard.is_some_and(|heard| heard.elapsed() < within))
    }

    /// When the last pulse came.
    pub(crate) fn heard(&self) -> Option<Instant> {
        self.known.lock().heard
    }

    /// Whether a pulse has come within this time.
    pub(crate) fn is_fresh(&self, within: Duration) -> bool {
        self.heard().is_some_and(|heard| heard.elapsed() < within)
    }
}

/// Why there is no stream.
enum NotOpen {
    /// The peer's system says that nobody is there.
    Gone(String),
    /// Anything else, silence above all: proves nothing.
    Unclear(String),
}

/// Keeps a stream of pulses to the peer open; ends with the node.
pub(crate) async fn keep(node: Arc<Inner>, link: Arc<Link>) {
    let peer = link.peer.id;
    // Whether the peer was there when it was last known for certain.
    let mut present = false;
    loop {
        match open(&node, &link).await {
            Ok((frames, echoes, pulses)) => {
                present = true;
                let opened = Instant::now();
                let end = send(&node, &link, frames, echoes, pulses).await;
                tracing::debug!(peer, %end, "pulse stream is down");
                // At once, to learn whether the peer is there; but not for ever with one that ends every stream.
                if opened.elapsed() > RETRY_PAUSE {
                    continue;
                }
            }
            Err(NotOpen::Gone(reason)) if present => {
                present = false;
                failover::process_lost(&node, peer, &reason);
            }
            Err(NotOpen::Gone(reason) | NotOpen::Unclear(reason)) => {
                tracing::debug!(peer, %reason, "no pulse stream");
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Makes the pulses of one stream: lists are only sent when they have changed.
struct Composer<'a> {
    node: &'a Inner,
    peer: NodeId,
    offers: Option<Vec<QuietGroup>>,
    accepted: Option<Vec<QuietGroup>>,
}

impl Composer<'_> {
    fn next(&mut self) -> PulseFrame {
        let node = self.node;
        PulseFrame {
            format: FORMAT,
            node: node.config.node,
            incarnation: node.incarnation,
            offers: news(&mut self.offers, node.offers(self.peer)),
            accepted: news(&mut self.accepted, node.acceptances(self.peer)),
            sync_us: node.disk.sync_us(),
            slow_disk: node.disk.is_slow(),
        }
    }
}

/// The list, unless it is the one that was sent last.
fn news(sent: &mut Option<Vec<QuietGroup>>, now: Vec<QuietGroup>) -> Option<QuietGroups> {
    if sent.as_ref() == Some(&now) {
        return None;
    }
    *sent = Some(now.clone());
    Some(QuietGroups { groups: now })
}

async fn open<'a>(
    node: &'a Inner,
    link: &Link,
) -> Result<(mpsc::Sender<PulseFrame>, Streaming<PulseEcho>, Composer<'a>), NotOpen> {
    // A channel of its own, so that no other traffic delays it, and a new one every time: it asks for the address anew.
    let mut client = link.fresh_client().map_err(NotOpen::Unclear)?;
    let (frames, queue) = mpsc::channel(QUEUED_PULSES);
    // The first pulse goes with the request: the receiver knows from the start whose stream it is.
    let mut pulses = Composer { node, peer: link.peer.id, offers: None, accepted: None };
    frames.try_send(pulses.next()).expect("the queue is empty");
    match timeout(OPEN_TIMEOUT, client.pulse(ReceiverStream::new(queue))).await {
        Ok(Ok(answer)) => Ok((frames, answer.into_inner(), pulses)),
        Ok(Err(status)) => {
            let reason = crate::lane::status_text(&status);
            Err(if is_gone(&status) { NotOpen::Gone(reason) } else { NotOpen::Unclear(reason) })
        }
        Err(_) => Err(NotOpen::Unclear(format!("no stream within {OPEN_TIMEOUT:?}"))),
    }
}

/// Whether the connection was refused or there is no way to the host. A name that does not resolve any more proves
/// nothing: it says as much of the resolver.
fn is_gone(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
            );
        }
        cause = error.source();
    }
    false
}

/// Sends pulses until the stream breaks; returns why it did.
async fn send(
    node: &Inner,
    link: &Link,
    frames: mpsc::Sender<PulseFrame>,
    mut echoes: Streaming<PulseEcho>,
    mut pulses: Composer<'_>,
) -> String {
    let mut ticks = tokio::time::interval(node.config.pulse_interval());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            () = link.pulse.hurry.notified() => {}
            echo = echoes.message() => match echo {
                Ok(Some(PulseEcho {})) => continue,
                Ok(None) => return "ended by the peer".to_owned(),
                Err(status) => return crate::lane::status_text(&status),
            },
        }
        // Room first: a list that is not sent must not be taken for sent. No room means that the peer takes no pulses
        // for now, and it will miss this one.
        match frames.try_reserve() {
            Ok(room) => room.send(pulses.next()),
            Err(mpsc::error::TrySendError::Full(())) => {}
            Err(mpsc::error::TrySendError::Closed(())) => return "the transport gave up".to_owned(),
        }
    }
}

/// Takes the pulses of one peer until its stream ends. `echoes` is only kept: dropping it ends the answer.
pub(crate) async fn receive(
    node: Arc<Inner>,
    mut frames: Streaming<PulseFrame>,
    echoes: mpsc::Sender<Result<PulseEcho, Status>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            () = node.stop.cancelled() => return,
            frame = frames.message() => frame,
            () = echoes.closed() => return,
        };
        // Its end tells nothing that the stream in the other direction does not tell as well.
        let Ok(Some(frame)) = frame else { return };
        if frame.format != FORMAT {
            tracing::warn!(node = frame.node, format = frame.format, "a pulse of another format");
            return;
        }
        let Some(link) = node.links.get(frame.node) else { return };
        let from = frame.node;
        if link.pulse.hear(frame) {
            failover::process_lost(&node, from, "it is back under another incarnation");
        }
        node.hear_offers(from, &link.pulse.offers());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_came_back_is_told_from_one_that_stayed() {
        let pulse = PeerPulse::default();
        assert!(!pulse.is_fresh(Duration::from_secs(1)));
        let frame = |incarnation| PulseFrame { incarnation, ..PulseFrame::default() };
        assert!(!pulse.hear(frame(7)), "the first pulse tells of no restart");
        assert!(!pulse.hear(frame(7)));
        assert!(pulse.is_fresh(Duration::from_secs(1)));
        assert!(pulse.hear(frame(8)));
        assert!(!pulse.hear(frame(8)));
    }

    #[test]
    fn lists_are_kept_until_others_come() {
        let pulse = PeerPulse::default();
        let group = QuietGroup { group: 3, term: 2, index: 9 };
        let accepted = Some(QuietGroups { groups: vec![group] });
        pulse.hear(PulseFrame { accepted, ..PulseFrame::default() });
        pulse.hear(PulseFrame::default());
        assert!(pulse.accepts(&group) && !pulse.accepts(&QuietGroup { index: 10, ..group }));
        pulse.hear(PulseFrame { accepted: Some(QuietGroups::default()), ..PulseFrame::default() });
        assert!(!pulse.accepts(&group));
        let mut sent = None;
        assert!(news(&mut sent, vec![]).is_some(), "a new stream begins with the lists");
        assert!(news(&mut sent, vec![]).is_none());
        assert!(news(&mut sent, vec![group]).is_some());
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_loss_and_silence_is_none() {
        let refused = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address")
        };
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{refused}")).expect("an endpoint");
        let mut client = crate::lane::client(endpoint.connect_lazy());
        let status = client.pulse(tokio_stream::empty()).await.expect_err("nobody listens");
        assert!(is_gone(&status), "{status:?}");
        let silence: Status = Status::from_error(Box::new(io::Error::from(io::ErrorKind::TimedOut)));
        assert!(!is_gone(&silence));
        assert!(!is_gone(&Status::unavailable("for another reason")));
    }
}
