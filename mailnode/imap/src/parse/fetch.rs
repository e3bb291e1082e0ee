//! The items of FETCH. RFC 9051 6.4.5 and 9 (fetch-att), RFC 3501 6.4.5 for the RFC822 items.

use std::fmt::Write as _;

use super::{
    commands::modifier,
    lexer::{Lexer, ParseError, Parsed},
};
use crate::{
    command::{BodySection, Fetch, FetchItem, SectionText},
    mime,
    sequence::SequenceSet,
};

pub(super) fn fetch(lexer: &mut Lexer<'_>, uid: bool, set: SequenceSet) -> Parsed<Fetch> {
    let mut items = Vec::new();
    if lexer.peek() == Some(b'(') {
        lexer.list(|l| item(l, &mut items, false))?;
        if items.is_empty() {
            return Err(ParseError("FETCH needs an item"));
        }
    } else {
        item(lexer, &mut items, true)?;
    }
    let mut changed_since = None;
    if lexer.eat(b' ') {
        changed_since = lexer.list(|l| modifier(l, "CHANGEDSINCE"))?.first().copied();
    }
    // RFC 9051 6.4.8: UID FETCH answers the UID whether it was asked for or not.
    if uid && !items.contains(&FetchItem::Uid) {
        items.insert(0, FetchItem::Uid);
    }
    // RFC 7162 3.1.4.1: CHANGEDSINCE implies MODSEQ.
    if changed_since.is_some() && !items.contains(&FetchItem::ModSeq) {
        items.push(FetchItem::ModSeq);
    }
    Ok(Fetch { uid, set, items, changed_since })
}

fn item(lexer: &mut Lexer<'_>, items: &mut Vec<FetchItem>, macros: bool) -> Parsed<()> {
    use FetchItem::{Body, BodyStructure, Envelope, Flags, InternalDate, ModSeq, Size, Uid};
    let word = lexer.item_word();
    let found: &[FetchItem] = match word.as_str() {
        "FLAGS" => &[Flags],
        "INTERNALDATE" => &[InternalDate],
        "RFC822.SIZE" => &[Size],
        "UID" => &[Uid],
        "MODSEQ" => &[ModSeq],
        "ENVELOPE" => &[Envelope],
        "BODYSTRUCTURE" => &[BodyStructure],
        "RFC822" => &[rfc822("RFC822", false, SectionText::Whole)],
        "RFC822.HEADER" => &[rfc822("RFC822.HEADER", true, SectionText::Header)],
        "RFC822.TEXT" => &[rfc822("RFC822.TEXT", false, SectionText::Text)],
        "BODY" | "BODY.PEEK" if lexer.peek() == Some(b'[') => &[section(lexer, word == "BODY.PEEK")?],
        "BODY" => &[Body],
        "FAST" if macros => &[Flags, InternalDate, Size],
        "ALL" if macros => &[Flags, InternalDate, Size, Envelope],
        "FULL" if macros => &[Flags, InternalDate, Size, Envelope, Body],
        _ => return Err(ParseError("unknown item of FETCH")),
    };
    for item in found {
        if !items.contains(item) {
            items.push(item.clone());
        }
    }
    Ok(())
}

fn rfc822(label: &str, peek: bool, text: SectionText) -> FetchItem {
    FetchItem::Section(BodySection { label: label.to_owned(), peek, path: Vec::new(), text, partial: None })
}

/// `[section]<offset.length>`.
fn section(lexer: &mut Lexer<'_>, peek: bool) -> Parsed<FetchItem> {
    lexer.expect(b'[', "a section is missing")?;
    let mut label = "BODY[".to_owned();
    let mut path = Vec::new();
    while lexer.peek().is_some_and(|b| b.is_ascii_digit()) {
        let number = lexer.number()?;
        if number == 0 || path.len() >= mime::MAX_DEPTH {
            return Err(ParseError("a part number is not valid"));
        }
        if !path.is_empty() {
            label.push('.');
        }
        write!(label, "{number}").expect("writing to a string does not fail");
        path.push(number);
        if !lexer.eat(b'.') {
            break;
        }
    }
    let word = lexer.item_word();
    // A dot has been read whenever a word follows part numbers.
    if !path.is_empty() && !word.is_empty() {
        label.push('.');
    }
    label.push_str(&word);
    let text = match word.as_str() {
        "" => SectionText::Whole,
        "HEADER" => SectionText::Header,
        "TEXT" => SectionText::Text,
        "MIME" if !path.is_empty() => SectionText::Mime,
        "HEADER.FIELDS" | "HEADER.FIELDS.NOT" => {
            lexer.space()?;
            let names = lexer.list(Lexer::field_name)?;
            if names.is_empty() {
                return Err(ParseError("HEADER.FIELDS needs a field name"));
            }
            write!(label, " ({})", names.join(" ")).expect("writing to a string does not fail");
            let names = names.iter().map(|name| name.to_ascii_uppercase()).collect();
            SectionText::Fields { names, not: word.ends_with("NOT") }
        }
        _ => return Err(ParseError("unknown section of BODY")),
    };
    lexer.expect(b']', "a section does not end")?;
    label.push(']');
    let mut partial = None;
    if lexer.eat(b'<') {
        let offset = lexer.number()?;
        lexer.expect(b'.', "a partial range is <offset.length>")?;
        let length = lexer.number()?;
        lexer.expect(b'>', "a partial range is <offset.length>")?;
        if length == 0 {
            return Err(ParseError("a partial range is not empty"));
        }
        write!(label, "<{offset}>").expect("writing to a string does not fail");
        partial = Some((offset, length));
    }
    Ok(FetchItem::Section(BodySection { label, peek, path, text, partial }))
}
