//! IMAP: parser, responses, session. RFC 3501 and RFC 9051 with the extensions clients use.
//!
//! The parser and the session are machines without I/O with a thin asynchronous driver. What a session needs of the
//! rest are the traits [`Backend`] and [`Mailbox`]; this crate knows neither Raft nor the store.
//!
//! A command's way: [`codec`] cuts it from the input, [`parse`] reads it into a [`command`], the session asks the
//! backend and its view of the selected folder, and [`response`] encodes the answer. Messages are shown to the byte:
//! [`mime`] finds parts as ranges of octets, [`envelope`] and [`structure`] describe them; their [digests](Digest) are kept.
//!
//! Served: IMAP4rev1 (RFC 3501) with LITERAL+ (7888), SASL-IR (4959), ID (2971), ENABLE (5161), IDLE (2177), NAMESPACE
//! (2342), UIDPLUS (4315), UNSELECT (3691), MOVE (6851), CHILDREN (3348), SPECIAL-USE and CREATE-SPECIAL-USE (6154),
//! LIST-EXTENDED (5258), LIST-STATUS (5819), STATUS=SIZE (8438), ESEARCH (4731), CONDSTORE (7162), APPENDLIMIT (7889).

mod backend;
pub mod codec;
pub mod command;
mod config;
mod connection;
mod date;
mod digest;
pub mod envelope;
mod fetch;
pub mod mime;
pub mod mutf7;
mod observer;
pub mod parse;
pub mod response;
mod search;
pub mod sequence;
mod server;
mod session;
pub mod structure;
mod uid_set;
mod view;

pub use backend::{
    Backend, Changes, Failure, FlagChange, Flags, Folder, Found, LoginFailure, Mailbox, Message, Millis,
    Octets, SHARED_NAMESPACE, Selection, Since, SpecialUse, Stored,
};
pub use config::{Config, Limits, TlsSource};
pub use digest::{DIGEST_VERSION, Digest};
pub use observer::{Closed, Event, Limit, Observer, Status, Unobserved};
pub use server::serve;
pub use uid_set::UidSet;
