//! The client: gives one message to one server, and tells for every recipient what became of it.
//!
//! RFC 5321 3.3 and 4.5.3.2 (timeouts), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 1870 (SIZE), RFC 2920 (PIPELINING),
//! RFC 6152 (8BITMIME). It does not choose servers and does not retry: that is the queue's.

mod reply;
mod text;
mod tls;
mod transaction;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quorumail_message::Address;
use tokio::{net::TcpStream, time::timeout};

pub use tls::Tls;
use transaction::{Peer, Trouble};

/// Most recipients in one transaction: RFC 5321 4.5.3.1.8 lets no server refuse this many.
pub const MAX_RECIPIENTS: usize = 100;

/// Where to connect.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server's name; what its certificate must be for in [`TlsMode::Required`].
    pub host: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// None, even if offered.
    None,
    /// If offered and possible, with any certificate; else plain text. RFC 7435: who could fake a certificate could as
    /// well hide the offer, so a check would lose mail and protect nothing.
    #[default]
    Opportunistic,
    /// With a certificate that is valid for the host, or not at all.
    Required,
}

/// How to log in to a relay.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password. Sent under TLS only, or to this machine itself.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How to speak to a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Our name in EHLO.
    pub helo: String,
    /// What of TLS.
    pub tls_mode: TlsMode,
    /// Certificates.
    pub tls: Arc<Tls>,
    /// For a relay that wants a log-in.
    pub credentials: Option<Credentials>,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// How long to wait. The defaults are those of RFC 5321 4.5.3.2, but for `connect` and `total`.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Timeouts {
    /// TCP alone.
    pub connect: Duration,
    pub greeting: Duration,
    /// EHLO, STARTTLS, AUTH, RSET.
    pub command: Duration,
    pub mail: Duration,
    pub rcpt: Duration,
    pub data_start: Duration,
    pub data_block: Duration,
    pub data_end: Duration,
    /// All of it: a server that is slow within each of the others must not hold a place for days.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            connect: Duration::from_secs(30),
            greeting: minutes(5),
            command: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data_start: minutes(2),
            data_block: minutes(3),
            data_end: minutes(10),
            total: minutes(60),
        }
    }
}

/// The envelope of a message on its way out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// None: the null reverse-path.
    pub reverse_path: Option<&'a Address>,
    /// One to [`MAX_RECIPIENTS`].
    pub recipients: &'a [Address],
    /// Whether the body has octets above 127.
    pub eight_bit: bool,
}

/// What became of the message for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server has taken it over.
    Delivered(Answer),
    /// Not now.
    Deferred(Answer),
    /// Never.
    Failed(Answer),
}

/// A server's reply, or what happened instead of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// RFC 5321 4.2; none when it is not a reply but our own finding.
    pub code: Option<u16>,
    /// RFC 3463; from the reply, or made up from its code.
    pub status: String,
    /// One line without CR and LF; bounded.
    pub text: String,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// In the order of the recipients.
    pub outcomes: Vec<Outcome>,
    /// Nothing was begun, and another server of the same domain may well take it (RFC 5321 5.1).
    pub try_next: bool,
    /// It went under TLS.
    pub tls: bool,
}

/// Gives a message to a server.
pub async fn deliver(target: &Target, outgoing: Outgoing<'_>, body: &[u8], options: &Options) -> Delivery {
    assert!(!outgoing.recipients.is_empty(), "a message goes to somebody");
    assert!(outgoing.recipients.len() <= MAX_RECIPIENTS, "the caller cuts long lists of recipients");
    let work = attempt(target, outgoing, body, options);
    match timeout(options.timeouts.total, work).await {
        Ok(delivery) => delivery,
        Err(_) => {
            Delivery::all(outgoing, Trouble::ours("4.4.2", "it took too long in all").into_outcome(), false)
        }
    }
}

async fn attempt(target: &Target, outgoing: Outgoing<'_>, body: &[u8], options: &Options) -> Delivery {
    let first = try_once(target, outgoing, body, options, options.tls_mode).await;
    let result = match first {
        Err(Trouble::Tls(reason))
            if options.tls_mode == TlsMode::Opportunistic && options.credentials.is_none() =>
        {
            tracing::info!(host = target.host, %reason, "TLS failed, trying without");
            try_once(target, outgoing, body, options, TlsMode::None).await
        }
        other => other,
    };
    // A 5yz greeting is a fault of that one host as well, more often than a judgement on the message.
    result.unwrap_or_else(|trouble| Delivery::all(outgoing, trouble.into_outcome(), true))
}

impl Delivery {
    fn all(outgoing: Outgoing<'_>, outcome: Outcome, try_next: bool) -> Self {
        Self { outcomes: vec![outcome; outgoing.recipients.len()], try_next, tls: false }
    }
}

/// One connection. An error is one from before MAIL: nothing was begun.
async fn try_once(
    target: &Target,
    outgoing: Outgoing<'_>,
    body: &[u8],
    options: &Options,
    tls_mode: TlsMode,
) -> Result<Delivery, Trouble> {
    let timeouts = &options.timeouts;
    let stream = match timeout(timeouts.connect, TcpStream::connect(target.address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Trouble::ours("4.4.1", format!("cannot connect: {error}"))),
        Err(_) => return Err(Trouble::ours("4.4.1", "cannot connect: no answer")),
    };
    // Commands are small and waited for. A socket that cannot be told so still works.
    let _ = stream.set_nodelay(true);
    let to_loopback = target.address.ip().is_loopback();
    let mut peer = Peer::new(stream, timeouts);
    peer.greeting().await?;
    peer.hello(&options.helo).await?;
    if tls_mode == TlsMode::None || !peer.offers("STARTTLS") {
        if tls_mode == TlsMode::Required {
            return Err(Trouble::ours("4.7.10", "TLS is required here and the server does not offer it"));
        }
        if let Some(credentials) = &options.credentials {
            if !to_loopback {
                return Err(Trouble::ours("4.7.10", "the password is not sent without TLS"));
            }
            peer.log_in(credentials).await?;
        }
        return Ok(peer.transact(outgoing, body, false).await);
    }
    let stream = peer.start_tls().await?;
    let connector = options.tls.connector(tls_mode);
    let secured = timeout(timeouts.command, connector.connect(tls::server_name(target)?, stream)).await;
    let stream = match secured {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Trouble::Tls(error.to_string())),
        Err(_) => return Err(Trouble::Tls("no answer".into())),
    };
    let mut peer = Peer::new(stream, timeouts);
    // RFC 3207 4.2: what was offered in plain text counts for nothing.
    peer.hello(&options.helo).await?;
    if let Some(credentials) = &options.credentials {
        peer.log_in(credentials).await?;
    }
    Ok(peer.transact(outgoing, body, true).await)
}
