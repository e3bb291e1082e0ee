//! What an SMTP session asks of the rest: who may log in, who is a recipient, and to keep a message.

use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_message::Address;

/// Which listener a session came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Port 25: mail from other systems for addresses of this cluster. No authentication.
    Mx,
    /// Ports 587 and 465: mail from our people (RFC 6409). Only after authentication.
    Submission,
}

/// Who logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The mailbox's address.
    pub address: Address,
}

/// Why a log-in failed. The client is told no more than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    /// Unknown user, wrong password or no permission: all the same to the client. 535 5.7.8.
    Denied,
    /// Too many failures from this address or for this user; nothing was checked. 454 4.7.0.
    Throttled,
    /// The directory cannot be asked at the moment. 454 4.7.0.
    Unavailable,
}

/// A refusal or delay in the protocol's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// 4yz or 5yz. RFC 5321 4.2.
    pub code: u16,
    /// RFC 3463, for example `5.1.1`.
    pub enhanced: &'static str,
    /// One line, without CR or LF.
    pub text: String,
}

/// RFC 5321 2.3.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The client's network address.
    pub remote: IpAddr,
    /// What it said in EHLO or HELO; printable ASCII without spaces.
    pub helo: String,
    /// Whether it said EHLO (RFC 5321 4.4: `with ESMTP`).
    pub esmtp: bool,
    /// Whether the session is under TLS.
    pub tls: bool,
    /// By which listener it came.
    pub service: Service,
    /// Who logged in; always present for [`Service::Submission`].
    pub identity: Option<Identity>,
    /// None: the null reverse-path `<>`.
    pub reverse_path: Option<Address>,
    /// At least one; without repetitions.
    pub recipients: Vec<Address>,
    /// Whether the body has octets above 127, so that its way on needs 8BITMIME (RFC 6152). It is found by looking,
    /// not taken from BODY=, which clients set carelessly both ways.
    pub eight_bit: bool,
}

/// The rest of the mail server, as an SMTP session sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Checks a user name and password.
    async fn authenticate(&self, user: &str, password: &str, remote: IpAddr)
    -> Result<Identity, AuthFailure>;

    /// Whether `identity` (or anybody, without one) may send with this reverse-path.
    async fn sender(
        &self,
        sender: Option<&Address>,
        identity: Option<&Identity>,
        service: Service,
    ) -> Result<(), Reject>;

    /// Whether mail for this recipient is taken: addresses of this cluster always, others only with an identity.
    async fn recipient(&self, recipient: &Address, identity: Option<&Identity>) -> Result<(), Reject>;

    /// Keeps the message: answers only once a majority has it on disk. `body` is as received (CRLF lines, dots
    /// unstuffed) without trace headers; the backend adds Received (RFC 5321 4.4). Answers the text of the 250 reply.
    async fn accept(&self, envelope: Envelope, body: Bytes) -> Result<String, Reject>;
}
