//! What responses say. Tolerant: what is not known is passed over, and what cannot be read is none.

use jiff::fmt::strtime;
use quorumail_imap::mutf7;

use super::{LITERAL, Response};

/// Levels of parentheses that are passed over.
const MAX_DEPTH: usize = 100;

/// A part of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'r> {
    Open,
    Close,
    /// Not quoted; `NIL` is one.
    Atom(&'r str),
    Text(String),
    /// Number of the literal in the response.
    Literal(usize),
}

/// Cuts a response into tokens.
struct Tokens<'r> {
    rest: &'r str,
    literals: usize,
}

impl<'r> Tokens<'r> {
    fn new(text: &'r str) -> Self {
        Self { rest: text, literals: 0 }
    }

    fn quoted(&mut self) -> Option<Token<'r>> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(Token::Text(text));
                }
                '\\' => text.push(chars.next()?.1),
                c => text.push(c),
            }
        }
        None
    }

    /// An atom; what stands in brackets is a part of it, as in `BODY[HEADER.FIELDS (DATE)]`.
    fn atom(&mut self) -> Token<'r> {
        let mut brackets = 0usize;
        let end = self.rest.find(|c| {
            match c {
                '[' => brackets += 1,
                ']' => brackets = brackets.saturating_sub(1),
                _ => {}
            }
            brackets == 0 && matches!(c, ' ' | '(' | ')' | '"' | LITERAL)
        });
        let (atom, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Token::Atom(atom)
    }

    /// Passes over one value, whatever it is.
    fn pass(&mut self) -> Option<()> {
        let mut depth = 0;
        loop {
            match self.next()? {
                Token::Open => depth += 1,
                Token::Close => depth = usize::checked_sub(depth, 1)?,
                _ => {}
            }
            match depth {
                0 => return Some(()),
                MAX_DEPTH => return None,
                _ => {}
            }
        }
    }

    /// The atoms of a list, as flags are.
    fn atoms(&mut self) -> Option<Vec<String>> {
        if self.next()? != Token::Open {
            return None;
        }
        let mut found = Vec::new();
        loop {
            match self.next()? {
                Token::Close => return Some(found),
                Token::Atom(atom) => found.push(atom.to_owned()),
                Token::Text(text) => found.push(text),
                Token::Open | Token::Literal(_) => return None,
            }
        }
    }

    fn atom_value(&mut self) -> Option<&'r str> {
        match self.next()? {
            Token::Atom(atom) => Some(atom),
            _ => None,
        }
    }

    /// A string in any form.
    fn string(&mut self, response: &Response) -> Option<String> {
        match self.next()? {
            Token::Atom(atom) => Some(atom.to_owned()),
            Token::Text(text) => Some(text),
            Token::Literal(number) => {
                Some(String::from_utf8_lossy(response.literals.get(number)?).into_owned())
            }
            Token::Open | Token::Close => None,
        }
    }
}

impl<'r> Iterator for Tokens<'r> {
    type Item = Token<'r>;

    fn next(&mut self) -> Option<Token<'r>> {
        self.rest = self.rest.trim_start_matches(' ');
        match self.rest.chars().next()? {
            '(' => {
                self.rest = &self.rest[1..];
                Some(Token::Open)
            }
            ')' => {
                self.rest = &self.rest[1..];
                Some(Token::Close)
            }
            LITERAL => {
                self.rest = &self.rest[1..];
                self.literals += 1;
                Some(Token::Literal(self.literals - 1))
            }
            '"' => self.quoted(),
            _ => Some(self.atom()),
        }
    }
}

/// What follows a word at the start of an untagged response.
fn after<'r>(response: &'r Response, word: &str) -> Option<&'r str> {
    let (first, rest) = response.text.strip_prefix("* ")?.split_once(' ')?;
    first.eq_ignore_ascii_case(word).then_some(rest)
}

/// The number in `* 12 EXISTS` and the like.
pub(crate) fn number_of(response: &Response, word: &str) -> Option<u32> {
    let (number, name) = response.text.strip_prefix("* ")?.split_once(' ')?;
    if name.split(' ').next()?.eq_ignore_ascii_case(word) { number.parse().ok() } else { None }
}

/// The number of a response code, as in `* OK [UIDVALIDITY 12] ...`.
pub(crate) fn code_of(response: &Response, code: &str) -> Option<u32> {
    let (_, rest) = response.text.split_once('[')?;
    let (name, number) = rest.split_once(']')?.0.split_once(' ')?;
    if name.eq_ignore_ascii_case(code) { number.parse().ok() } else { None }
}

/// A message as FETCH tells of it (RFC 9051 7.5.2): what it told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) uid: Option<u32>,
    pub(crate) flags: Option<Vec<String>>,
    /// Unix milliseconds.
    pub(crate) internal_date: Option<i64>,
    pub(crate) size: Option<u64>,
    /// `BODY[]`.
    pub(crate) body: Option<Vec<u8>>,
}

/// Reads a FETCH response; none for another one.
pub(crate) fn fetched(response: &mut Response) -> Option<Fetched> {
    number_of(response, "FETCH")?;
    let (_, list) = response.text.split_once('(')?;
    let mut tokens = Tokens::new(list);
    let mut fetched = Fetched::default();
    let mut body = None;
    loop {
        let name = match tokens.next()? {
            Token::Atom(name) => name.to_ascii_uppercase(),
            Token::Close => break,
            _ => return None,
        };
        match name.as_str() {
            "UID" => fetched.uid = tokens.atom_value()?.parse().ok(),
            "RFC822.SIZE" => fetched.size = tokens.atom_value()?.parse().ok(),
            "FLAGS" => fetched.flags = Some(tokens.atoms()?),
            "INTERNALDATE" => fetched.internal_date = date(&tokens.string(response)?),
            "BODY[]" => match tokens.next()? {
                Token::Literal(number) => body = Some(number),
                Token::Text(text) => fetched.body = Some(text.into_bytes()),
                // NIL: the server has lost it.
                Token::Atom(_) => {}
                Token::Open | Token::Close => return None,
            },
            _ => tokens.pass()?,
        }
    }
    if let Some(literal) = body.and_then(|number| response.literals.get_mut(number)) {
        fetched.body = Some(std::mem::take(literal));
    }
    Some(fetched)
}

/// RFC 9051 9, date-time; the day may have a space in front. In Unix milliseconds.
fn date(text: &str) -> Option<i64> {
    let parsed = strtime::parse("%d-%b-%Y %H:%M:%S %z", text.trim()).ok()?;
    Some(parsed.to_timestamp().ok()?.as_millisecond())
}

/// A folder as LIST tells of it (RFC 9051 7.3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// In lower case.
    pub(crate) attributes: Vec<String>,
    pub(crate) delimiter: Option<char>,
    /// As the server writes it.
    pub(crate) wire: String,
    /// As people read it.
    pub(crate) name: String,
}

/// Reads a LIST response; none for another one.
pub(crate) fn listed(response: &Response) -> Option<Listed> {
    let mut tokens = Tokens::new(after(response, "LIST")?);
    let attributes = tokens.atoms()?.iter().map(|attribute| attribute.to_ascii_lowercase()).collect();
    let delimiter = match tokens.next()? {
        Token::Text(text) => text.chars().next(),
        Token::Atom(_) => None,
        _ => return None,
    };
    let wire = tokens.string(response)?;
    let name = mutf7::decode(&wire).unwrap_or_else(|| wire.clone());
    Some(Listed { attributes, delimiter, wire, name })
}

/// Prefixes of namespaces (RFC 2342): of one's own, and of others and what is shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub(crate) own: String,
    pub(crate) others: Vec<String>,
}

/// Reads a NAMESPACE response; none for another one.
pub(crate) fn namespaces(response: &Response) -> Option<Namespaces> {
    let mut tokens = Tokens::new(after(response, "NAMESPACE")?);
    let mut found = Namespaces::default();
    for kind in 0..3 {
        let (mut depth, mut first) = (0, false);
        loop {
            match tokens.next()? {
                Token::Open => {
                    depth += 1;
                    first = depth == 2;
                }
                Token::Close => depth = usize::checked_sub(depth, 1)?,
                Token::Text(prefix) if first => {
                    first = false;
                    match kind {
                        0 if found.own.is_empty() => found.own = prefix,
                        0 => {}
                        _ => found.others.push(prefix),
                    }
                }
                _ => first = false,
            }
            match depth {
                0 => break,
                MAX_DEPTH => return None,
                _ => {}
            }
        }
    }
    Some(found)
}

/// The numbers of a STATUS response (RFC 9051 7.3.4): messages, and their size where the server tells it (RFC 8438).
pub(crate) fn status(response: &Response) -> Option<(u64, Option<u64>)> {
    let mut tokens = Tokens::new(after(response, "STATUS")?);
    tokens.string(response)?;
    let list = tokens.atoms()?;
    let value = |wanted: &str| {
        let mut pairs = list.chunks_exact(2);
        pairs.find(|pair| pair[0].eq_ignore_ascii_case(wanted)).and_then(|pair| pair[1].parse().ok())
    };
    Some((value("MESSAGES")?, value("SIZE")))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn response(text: &str, literals: &[&[u8]]) -> Response {
        Response {
            text: text.to_owned(),
            literals: literals.iter().map(|literal| literal.to_vec()).collect(),
        }
    }

    #[test]
    fn what_fetch_tells_is_read_whatever_stands_between() {
        let text = "* 12 FETCH (FLAGS (\\Seen $Forwarded) X-GM-LABELS (\"a b\" (c \0)) UID 7 INTERNALDATE \" 1-Jan-2020 10:00:00 \
                    +0100\" BODY[HEADER.FIELDS (DATE)] \0 RFC822.SIZE 5 MODSEQ (9) BODY[] \0)";
        let mut given = response(text, &[b"label", b"Date: x", b"a\r\nb"]);
        let expected = Fetched {
            uid: Some(7),
            flags: Some(vec!["\\Seen".into(), "$Forwarded".into()]),
            internal_date: Some(1_577_869_200_000),
            size: Some(5),
            body: Some(b"a\r\nb".to_vec()),
        };
        assert_eq!(fetched(&mut given), Some(expected));
        assert_eq!(fetched(&mut response("* 3 EXISTS", &[])), None);
        let quoted = fetched(&mut response("* 1 fetch (UID 3 BODY[] \"a\\\"b\")", &[])).unwrap();
        assert_eq!(quoted.body.as_deref(), Some(b"a\"b".as_slice()));
        assert_eq!(fetched(&mut response("* 1 FETCH (BODY[] NIL UID 3)", &[])).unwrap().body, None);
    }

    #[test]
    fn folders_are_read_in_all_forms() {
        let listed = |text: &str, literals: &[&[u8]]| listed(&response(text, literals)).unwrap();
        let sent = listed("* LIST (\\HasNoChildren \\Sent) \".\" \"INBOX.Gesendete Objekte\"", &[]);
        assert_eq!(sent.attributes, ["\\hasnochildren", "\\sent"]);
        assert_eq!((sent.delimiter, sent.name.as_str()), (Some('.'), "INBOX.Gesendete Objekte"));
        let entwurf = listed("* LIST () \"/\" Entw&APw-rfe", &[]);
        assert_eq!((entwurf.wire.as_str(), entwurf.name.as_str()), ("Entw&APw-rfe", "Entwürfe"));
        let odd = listed("* LIST () NIL \0", &[b"R&D"]);
        assert_eq!((odd.delimiter, odd.name.as_str()), (None, "R&D"));
        let slash = listed("* LIST () \"\\\\\" \"a\\\\b\"", &[]);
        assert_eq!((slash.delimiter, slash.name.as_str()), (Some('\\'), "a\\b"));
    }

    #[test]
    fn numbers_codes_and_namespaces_are_read() {
        assert_eq!(number_of(&response("* 23 EXISTS", &[]), "exists"), Some(23));
        assert_eq!(number_of(&response("* FLAGS (a)", &[]), "EXISTS"), None);
        assert_eq!(code_of(&response("* OK [UIDVALIDITY 12] UIDs valid", &[]), "UIDVALIDITY"), Some(12));
        assert_eq!(code_of(&response("* OK [READ-WRITE] x", &[]), "UIDVALIDITY"), None);
        let told = response(
            "* NAMESPACE ((\"INBOX.\" \".\")) ((\"user.\" \".\")) ((\"shared.\" \".\" \"X\" (\"Y\")))",
            &[],
        );
        let expected = Namespaces { own: "INBOX.".into(), others: vec!["user.".into(), "shared.".into()] };
        assert_eq!(namespaces(&told), Some(expected));
        let own = response("* NAMESPACE ((\"\" \"/\")) NIL NIL", &[]);
        assert_eq!(namespaces(&own), Some(Namespaces::default()));
        let told = response("* STATUS \"Sent Items\" (MESSAGES 231 SIZE 44421)", &[]);
        assert_eq!(status(&told), Some((231, Some(44421))));
        assert_eq!(status(&response("* STATUS a (UIDNEXT 4 MESSAGES 2)", &[])), Some((2, None)));
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_says_breaks_anything(
            word in prop::sample::select(vec!["LIST", "1 FETCH", "NAMESPACE", "STATUS", "2 EXISTS"]),
            parts in vec(prop_oneof![
                prop::sample::select(vec!["(", ")", "\"", "\\", "[", "]", " ", "\0", "NIL", "UID ", "FLAGS (", "BODY[] ", "&"])
                    .prop_map(str::to_owned),
                "\\PC{0,4}",
            ], 0..40),
        ) {
            let mut given = response(&format!("* {word} {}", parts.concat()), &[b"x", b""]);
            let _ = (listed(&given), namespaces(&given), status(&given), number_of(&given, "EXISTS"));
            let _ = (code_of(&given, "UIDVALIDITY"), fetched(&mut given));
        }
    }
}
