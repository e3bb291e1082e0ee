//! The structure of a message as byte ranges: which part starts where. RFC 2045, RFC 2046, RFC 5322 2.2.
//!
//! One pass over the lines, with the boundaries of all open multiparts on a stack, so that the time is bounded by the
//! size whatever the nesting. Nothing is decoded or repaired: IMAP promises the octets as they are (RFC 9051 6.4.5).

use std::ops::Range;

/// Deepest nesting that is looked into; what lies deeper is one opaque part.
pub const MAX_DEPTH: usize = 32;
/// Most parts that are told apart; what follows belongs to the last one.
pub const MAX_PARTS: usize = 1000;
/// Longest boundary. RFC 2046 5.1.1 says 70; some senders write longer ones.
const MAX_BOUNDARY: usize = 200;
/// Most parameters of one field that are kept.
const MAX_PARAMETERS: usize = 64;

/// A part, or the message itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The header with the empty line that ends it.
    pub header: Range<usize>,
    /// The body, without the line break before a boundary.
    pub body: Range<usize>,
    /// Content-Type, or what RFC 2045 5.2 and RFC 2046 5.1.5 say is meant without one.
    pub content_type: ContentType,
    /// What lies in the body.
    pub content: Content,
}

/// What lies in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Octets.
    Leaf,
    /// The parts of a multipart; there may be none.
    Multipart(Vec<Part>),
    /// The message in a message/rfc822.
    Message(Box<Part>),
}

/// A Content-Type or Content-Disposition: a value with parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentType {
    /// As written, without white space and comments: `text`.
    pub kind: Vec<u8>,
    /// `plain`; empty in a Content-Disposition.
    pub subtype: Vec<u8>,
    /// Name and value, unquoted.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ContentType {
    fn new(kind: &str, subtype: &str) -> Self {
        Self { kind: kind.into(), subtype: subtype.into(), parameters: Vec::new() }
    }

    /// Compares type and subtype without case.
    pub fn is(&self, kind: &str, subtype: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind.as_bytes())
            && self.subtype.eq_ignore_ascii_case(subtype.as_bytes())
    }

    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&[u8]> {
        let found = self.parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value.as_slice())
    }
}

/// Finds the parts of a message.
pub fn walk(message: &[u8]) -> Part {
    let mut walker = Walker { message, at: 0, boundaries: Vec::new(), parts: 0 };
    let (part, _) = walker.part(0, &ContentType::new("text", "plain"));
    part
}

/// The length of the header of a message with the empty line that ends it; None: there is no end in these octets.
pub fn header_end(message: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < message.len() {
        let line = line_end(message, at);
        if matches!(&message[at..line], b"\r\n" | b"\n") {
            return Some(line);
        }
        at = line;
    }
    None
}

/// A delimiter line that ended something.
#[derive(Debug, Clone, Copy)]
struct Delimiter {
    /// Where it starts.
    start: usize,
    /// Which boundary of the stack.
    level: usize,
    /// `--boundary--`.
    closing: bool,
}

struct Walker<'a> {
    message: &'a [u8],
    at: usize,
    boundaries: Vec<Vec<u8>>,
    parts: usize,
}

impl Walker<'_> {
    /// Reads a part from here on; answers the delimiter that ended it, None at the end of the message.
    fn part(&mut self, depth: usize, default: &ContentType) -> (Part, Option<Delimiter>) {
        self.parts += 1;
        let start = self.at;
        let mut ended = None;
        while self.at < self.message.len() {
            let line = self.at;
            if let Some(delimiter) = self.delimiter() {
                ended = Some(delimiter);
                break;
            }
            if matches!(&self.message[line..self.at], b"\r\n" | b"\n") {
                break;
            }
        }
        let header = start..ended.map_or(self.at, |d| d.start);
        let content_type = field(&self.message[header.clone()], "Content-Type")
            .and_then(|value| parse_content_type(&value))
            .unwrap_or_else(|| default.clone());
        let mut part = Part { body: header.end..header.end, header, content_type, content: Content::Leaf };
        if ended.is_some() {
            return (part, ended);
        }
        let body = self.at;
        let deeper = depth < MAX_DEPTH && self.parts < MAX_PARTS;
        let boundary =
            part.content_type.parameter("boundary").filter(|b| !b.is_empty() && b.len() <= MAX_BOUNDARY);
        let multipart = part.content_type.kind.eq_ignore_ascii_case(b"multipart");
        if let (true, true, Some(boundary)) = (deeper, multipart, boundary) {
            self.boundaries.push(boundary.to_vec());
            let digest = part.content_type.is("multipart", "digest");
            let (parts, end) = self.multipart(depth, digest);
            (part.content, ended) = (Content::Multipart(parts), end);
        } else if deeper && part.content_type.is("message", "rfc822") {
            let (inner, end) = self.part(depth + 1, &ContentType::new("text", "plain"));
            (part.content, ended) = (Content::Message(Box::new(inner)), end);
        } else {
            ended = self.skip();
        }
        // A delimiter right after another leaves no line break that could belong to it: what lies in the part is then
        // empty and starts where the delimiter does.
        let inner = match &part.content {
            Content::Multipart(parts) => parts.last().map(|last| last.body.end),
            Content::Message(inner) => Some(inner.body.end),
            Content::Leaf => None,
        };
        part.body = body..self.body_end(body, ended).max(inner.unwrap_or_default());
        (part, ended)
    }

    /// The parts between the delimiters of the innermost boundary, which it takes off the stack.
    fn multipart(&mut self, depth: usize, digest: bool) -> (Vec<Part>, Option<Delimiter>) {
        let level = self.boundaries.len() - 1;
        // RFC 2046 5.1.5: in a digest a part is a message when it does not say what it is.
        let default =
            if digest { ContentType::new("message", "rfc822") } else { ContentType::new("text", "plain") };
        let mut parts = Vec::new();
        let mut ended = self.skip();
        while let Some(Delimiter { level: found, closing: false, .. }) = ended {
            if found != level {
                break;
            }
            if self.parts >= MAX_PARTS {
                ended = self.skip();
                continue;
            }
            let (part, end) = self.part(depth + 1, &default);
            parts.push(part);
            ended = end;
        }
        self.boundaries.pop();
        // The epilogue belongs to nobody; an outer boundary ends it.
        if ended.is_some_and(|d| d.level == level) {
            ended = self.skip();
        }
        (parts, ended)
    }

    /// Goes on to the line after the next delimiter, or to the end.
    fn skip(&mut self) -> Option<Delimiter> {
        while self.at < self.message.len() {
            if let Some(delimiter) = self.delimiter() {
                return Some(delimiter);
            }
        }
        None
    }

    /// Takes one line and tells whether it is a delimiter of an open multipart, the innermost first.
    fn delimiter(&mut self) -> Option<Delimiter> {
        let start = self.at;
        self.at = line_end(self.message, start);
        let line = self.message[start..self.at].strip_prefix(b"--")?;
        self.boundaries.iter().enumerate().rev().find_map(|(level, boundary)| {
            let rest = line.strip_prefix(boundary.as_slice())?;
            let (rest, closing) = match rest.strip_prefix(b"--") {
                Some(rest) => (rest, true),
                None => (rest, false),
            };
            // RFC 2046 5.1.1: white space may follow (transport padding).
            rest.iter().all(u8::is_ascii_whitespace).then_some(Delimiter { start, level, closing })
        })
    }

    /// RFC 2046 5.1.1: the line break before a delimiter belongs to the delimiter.
    fn body_end(&self, body: usize, ended: Option<Delimiter>) -> usize {
        let Some(delimiter) = ended else {
            return self.message.len();
        };
        let before = &self.message[..delimiter.start];
        let before = before.strip_suffix(b"\n").map_or(before, |b| b.strip_suffix(b"\r").unwrap_or(b));
        before.len().max(body)
    }
}

/// The start of the line after the one at `at`.
fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |lf| at + lf + 1)
}

/// The fields of a header: name and the octets of the whole field, line breaks and name included. Lines that are no
/// field are left out.
pub fn fields(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < header.len() {
            let start = at;
            at = line_end(header, start);
            while matches!(header.get(at), Some(b' ' | b'\t')) {
                at = line_end(header, at);
            }
            let whole = &header[start..at];
            if let Some(colon) = whole.iter().position(|&b| b == b':') {
                // RFC 5322 4.5: white space before the colon is obsolete, but read.
                let name = whole[..colon].trim_ascii_end();
                if !name.is_empty() && name.iter().all(u8::is_ascii_graphic) {
                    return Some((name, whole));
                }
            }
        }
        None
    })
}

/// The value of the first field of a name, unfolded and without white space around it.
pub fn field(header: &[u8], name: &str) -> Option<Vec<u8>> {
    fields(header).find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, whole)| value(whole))
}

/// The value of a whole field, unfolded (RFC 5322 2.2.3) and without white space around it.
pub fn value(whole: &[u8]) -> Vec<u8> {
    let colon = whole.iter().position(|&b| b == b':').map_or(0, |at| at + 1);
    let unfolded: Vec<u8> =
        whole[colon..].iter().copied().filter(|b| !matches!(b, b'\r' | b'\n' | 0)).collect();
    unfolded.trim_ascii().to_vec()
}

/// Reads `type/subtype; name=value`. None: there is no type.
pub fn parse_content_type(value: &[u8]) -> Option<ContentType> {
    let mut words = Words { bytes: value, at: 0 };
    let kind = words.token()?;
    let subtype = if words.eat(b'/') { words.token()? } else { return None };
    Some(ContentType { kind, subtype, parameters: words.parameters() })
}

/// Reads `disposition; name=value`. RFC 2183.
pub fn parse_disposition(value: &[u8]) -> Option<ContentType> {
    let mut words = Words { bytes: value, at: 0 };
    let kind = words.token()?;
    Some(ContentType { kind, subtype: Vec::new(), parameters: words.parameters() })
}

/// Tokens and quoted strings of RFC 2045 5.1, with comments (RFC 5322 3.2.2) skipped.
struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_blank(&mut self) {
        loop {
            match self.peek() {
                Some(b) if b.is_ascii_whitespace() => self.at += 1,
                Some(b'(') => self.skip_comment(),
                _ => return,
            }
        }
    }

    fn skip_comment(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                b'\\' => self.at += 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.skip_blank();
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    fn token(&mut self) -> Option<Vec<u8>> {
        self.skip_blank();
        let start = self.at;
        while self.peek().is_some_and(|b| !b.is_ascii_whitespace() && !b"()<>@,;:\\\"/[]?=".contains(&b)) {
            self.at += 1;
        }
        (self.at > start).then(|| self.bytes[start..self.at].to_vec())
    }

    fn parameters(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut out = Vec::new();
        while out.len() < MAX_PARAMETERS {
            // What does not belong there is skipped up to the next `;`.
            while !self.eat(b';') {
                if self.peek().is_none() {
                    return out;
                }
                self.at += 1;
            }
            let Some(name) = self.token() else { continue };
            if self.eat(b'=') {
                out.push((name, self.parameter_value()));
            }
        }
        out
    }

    fn parameter_value(&mut self) -> Vec<u8> {
        self.skip_blank();
        if !self.eat(b'"') {
            // More is taken than a token may hold: boundaries with `/`, `=` or `:` are often left unquoted.
            let start = self.at;
            while self.peek().is_some_and(|b| !b.is_ascii_whitespace() && b != b';') {
                self.at += 1;
            }
            return self.bytes[start..self.at].to_vec();
        }
        let mut out = Vec::new();
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    out.extend(self.peek());
                    self.at += 1;
                }
                byte => out.push(byte),
            }
        }
        out
    }
}

#[cfg(test)]
#[path = "mime_tests.rs"]
mod tests;
