//! SEARCH. RFC 9051 6.4.4, RFC 3501 6.4.4, RFC 4731 (RETURN), RFC 7162 3.1.5 (MODSEQ).

use super::{
    MAX_NESTING,
    lexer::{Lexer, ParseError, Parsed, SYSTEM_FLAGS},
};
use crate::{
    command::{Day, Search, SearchKey, SearchReturn},
    date,
};

pub(super) fn search(lexer: &mut Lexer<'_>, uid: bool) -> Parsed<Search> {
    let mut results = None;
    let mut charset_known = true;
    let mut keys = Vec::new();
    loop {
        // RETURN and CHARSET come first and in this order; neither is the name of a key.
        if lexer.peek().is_some_and(|b| b.is_ascii_alphabetic()) {
            match lexer.item_word().as_str() {
                "RETURN" if keys.is_empty() && results.is_none() => {
                    lexer.space()?;
                    results = Some(search_return(lexer)?);
                }
                "CHARSET" if keys.is_empty() => {
                    lexer.space()?;
                    let charset = lexer.text()?;
                    charset_known =
                        ["UTF-8", "US-ASCII", "ASCII"].iter().any(|c| charset.eq_ignore_ascii_case(c));
                    // What follows may be in any encoding: it is neither read nor used.
                    if !charset_known {
                        lexer.skip_rest();
                        return Ok(Search { uid, results, charset_known, key: SearchKey::Never });
                    }
                }
                word => keys.push(named(lexer, word, 0)?),
            }
        } else {
            keys.push(key(lexer, 0)?);
        }
        if !lexer.eat(b' ') {
            break;
        }
    }
    if keys.is_empty() {
        return Err(ParseError("SEARCH needs a key"));
    }
    Ok(Search { uid, results, charset_known, key: SearchKey::And(keys) })
}

fn search_return(lexer: &mut Lexer<'_>) -> Parsed<SearchReturn> {
    let mut wanted = SearchReturn::default();
    let options = lexer.list(|l| {
        match l.word()?.as_str() {
            "MIN" => wanted.min = true,
            "MAX" => wanted.max = true,
            "ALL" => wanted.all = true,
            "COUNT" => wanted.count = true,
            _ => return Err(ParseError("unknown return option of SEARCH")),
        }
        Ok(())
    })?;
    // RFC 4731 3.1: an empty list means ALL.
    wanted.all |= options.is_empty();
    Ok(wanted)
}

fn key(lexer: &mut Lexer<'_>, depth: usize) -> Parsed<SearchKey> {
    if depth > MAX_NESTING {
        return Err(ParseError("the search is nested too deeply"));
    }
    match lexer.peek() {
        Some(b'(') => {
            let keys = lexer.list(|l| key(l, depth + 1))?;
            if keys.is_empty() {
                Err(ParseError("a search key is missing"))
            } else {
                Ok(SearchKey::And(keys))
            }
        }
        Some(b'0'..=b'9' | b'*') => lexer.sequence_set().map(SearchKey::Sequence),
        _ => {
            let word = lexer.item_word();
            named(lexer, &word, depth)
        }
    }
}

fn named(lexer: &mut Lexer<'_>, word: &str, depth: usize) -> Parsed<SearchKey> {
    use SearchKey::{Flag, Header, Never, Not, Or};
    let not = |key| Not(Box::new(key));
    let system = |name: &str| Flag(format!("\\{}", name));
    Ok(match word {
        "ALL" => SearchKey::All,
        "ANSWERED" => system("Answered"),
        "DELETED" => system("Deleted"),
        "DRAFT" => system("Draft"),
        "FLAGGED" => system("Flagged"),
        "SEEN" => system("Seen"),
        "UNANSWERED" => not(system("Answered")),
        "UNDELETED" => not(system("Deleted")),
        "UNDRAFT" => not(system("Draft")),
        "UNFLAGGED" => not(system("Flagged")),
        "UNSEEN" => not(system("Seen")),
        // RFC 3501 6.4.4: NEW is RECENT UNSEEN, OLD is NOT RECENT.
        "RECENT" | "NEW" => Never,
        "OLD" => SearchKey::All,
        "KEYWORD" => Flag(keyword(lexer)?),
        "UNKEYWORD" => not(Flag(keyword(lexer)?)),
        "NOT" => {
            lexer.space()?;
            not(key(lexer, depth + 1)?)
        }
        "OR" => {
            lexer.space()?;
            let left = key(lexer, depth + 1)?;
            lexer.space()?;
            Or(Box::new(left), Box::new(key(lexer, depth + 1)?))
        }
        "UID" => {
            lexer.space()?;
            SearchKey::Uid(lexer.sequence_set()?)
        }
        "LARGER" => SearchKey::Larger(size(lexer)?),
        "SMALLER" => SearchKey::Smaller(size(lexer)?),
        "BEFORE" => SearchKey::Before(day(lexer)?),
        "ON" => SearchKey::On(day(lexer)?),
        "SINCE" => SearchKey::Since(day(lexer)?),
        "SENTBEFORE" => SearchKey::SentBefore(day(lexer)?),
        "SENTON" => SearchKey::SentOn(day(lexer)?),
        "SENTSINCE" => SearchKey::SentSince(day(lexer)?),
        "BCC" | "CC" | "FROM" | "SUBJECT" | "TO" => Header(word.to_owned(), needle(lexer)?),
        "HEADER" => {
            lexer.space()?;
            let name = lexer.text()?.to_ascii_uppercase();
            Header(name, needle(lexer)?)
        }
        "BODY" => SearchKey::Body(needle(lexer)?),
        "TEXT" => SearchKey::Text(needle(lexer)?),
        "MODSEQ" => SearchKey::ModSeq(mod_seq(lexer)?),
        "" => return Err(ParseError("a search key is missing")),
        _ => return Err(ParseError("unknown search key")),
    })
}

fn keyword(lexer: &mut Lexer<'_>) -> Parsed<String> {
    lexer.space()?;
    let name = lexer.atom()?;
    // A keyword that cannot be stored is on no message; a system flag written as one is not a keyword.
    Ok(SYSTEM_FLAGS
        .iter()
        .find(|known| known.eq_ignore_ascii_case(name))
        .map_or(name, |known| known)
        .to_owned())
}

fn size(lexer: &mut Lexer<'_>) -> Parsed<u64> {
    lexer.space()?;
    lexer.number64()
}

fn day(lexer: &mut Lexer<'_>) -> Parsed<Day> {
    lexer.space()?;
    date::parse_day(&lexer.text()?).ok_or(ParseError("the date is not valid"))
}

fn needle(lexer: &mut Lexer<'_>) -> Parsed<String> {
    lexer.space()?;
    Ok(lexer.text()?.to_lowercase())
}

/// RFC 7162 3.1.5: an entry name and type may stand before the number; there is one MODSEQ for all flags.
fn mod_seq(lexer: &mut Lexer<'_>) -> Parsed<u64> {
    lexer.space()?;
    if lexer.peek() == Some(b'"') {
        lexer.string()?;
        lexer.space()?;
        if !matches!(lexer.word()?.as_str(), "PRIV" | "SHARED" | "ALL") {
            return Err(ParseError("the entry type of MODSEQ is priv, shared or all"));
        }
        lexer.space()?;
    }
    lexer.number64()
}
