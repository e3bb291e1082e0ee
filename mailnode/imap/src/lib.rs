//! IMAP: parser, responses, session. RFC 3501 and RFC 9051 with the extensions clients use.
//!
//! The parser and the session are machines without I/O with a thin asynchronous driver. What a session needs of the
//! rest are the traits [`Backend`] and [`Mailbox`]; this crate knows neither Raft nor the store.

mod backend;

pub use backend::{
    Backend, Changes, Failure, FlagChange, Flags, Folder, LoginFailure, Mailbox, Message, Millis, SpecialUse,
};
