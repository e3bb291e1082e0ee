//! The parser: one frame of the [`crate::codec`] in, one [`Command`](crate::command::Command) out. RFC 9051 9 and
//! RFC 3501 9. It never panics, whatever comes, and nests no deeper than [`MAX_NESTING`].

mod commands;
mod fetch;
mod lexer;
mod search;

use bytes::Bytes;

pub(crate) use lexer::SYSTEM_FLAGS;

use crate::command::Tagged;
use lexer::{Lexer, ParseError};

/// Deepest nesting of parentheses, NOT and OR in a SEARCH.
pub const MAX_NESTING: usize = 32;
/// Longest keyword in octets. RFC 9051 names no bound; the store keeps keywords in every message.
pub const MAX_KEYWORD: usize = 64;
/// Longest tag. A client that needs more is none.
pub const MAX_TAG: usize = 128;

/// Why a frame is no command, with its tag when it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// None: answer with an untagged BAD.
    pub tag: Option<String>,
    /// For people.
    pub why: &'static str,
}

/// Reads one command.
pub fn parse(frame: &Bytes) -> Result<Tagged, Rejected> {
    let mut lexer = Lexer::new(frame);
    let tag = lexer.tag().map_err(|e| Rejected { tag: None, why: e.0 })?;
    let refuse = |e: ParseError| Rejected { tag: Some(tag.clone()), why: e.0 };
    // RFC 9051 9 (CHAR8, TEXT-CHAR): NUL is nowhere allowed, not in literals either.
    if frame.contains(&0) {
        return Err(refuse(ParseError("NUL is not allowed")));
    }
    let command = commands::command(&mut lexer).map_err(refuse)?;
    lexer.end().map_err(refuse)?;
    Ok(Tagged { tag, command })
}

/// The tag at the start of a frame that is refused before it is parsed.
pub fn tag_of(start: &Bytes) -> Option<String> {
    Lexer::new(start).tag().ok()
}

#[cfg(test)]
mod tests;
