//! The commands and their arguments, apart from FETCH and SEARCH.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{
    fetch,
    lexer::{Lexer, ParseError, Parsed},
    search,
};
use crate::{
    FlagChange, Flags, SpecialUse,
    command::{Command, List, StatusItem, Store},
    date,
};

pub(super) fn command(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let name = lexer.word()?;
    Ok(match name.as_str() {
        "CAPABILITY" => Command::Capability,
        "NOOP" => Command::Noop,
        "LOGOUT" => Command::Logout,
        "STARTTLS" => Command::StartTls,
        "NAMESPACE" => Command::Namespace,
        "IDLE" => Command::Idle,
        "CHECK" => Command::Check,
        "CLOSE" => Command::Close,
        "UNSELECT" => Command::Unselect,
        "EXPUNGE" => Command::Expunge(None),
        "UID" => {
            lexer.space()?;
            return uid(lexer);
        }
        "AUTHENTICATE" | "LOGIN" | "ENABLE" | "ID" | "SELECT" | "EXAMINE" | "CREATE" | "DELETE"
        | "RENAME" | "SUBSCRIBE" | "UNSUBSCRIBE" | "LIST" | "LSUB" | "STATUS" | "APPEND" | "SEARCH"
        | "FETCH" | "STORE" | "COPY" | "MOVE" => {
            lexer.space()?;
            return with_arguments(&name, lexer);
        }
        _ => return Err(ParseError("unknown command")),
    })
}

fn with_arguments(name: &str, lexer: &mut Lexer<'_>) -> Parsed<Command> {
    match name {
        "AUTHENTICATE" => authenticate(lexer),
        "LOGIN" => {
            let user = lexer.text()?;
            lexer.space()?;
            Ok(Command::Login { user, password: lexer.text()? })
        }
        "ENABLE" => enable(lexer),
        "ID" => id(lexer),
        "SELECT" | "EXAMINE" => select(lexer, name == "EXAMINE"),
        "CREATE" => create(lexer),
        "DELETE" => Ok(Command::Delete(lexer.folder()?)),
        "RENAME" => {
            let from = lexer.folder()?;
            lexer.space()?;
            Ok(Command::Rename { from, to: lexer.folder()? })
        }
        "SUBSCRIBE" | "UNSUBSCRIBE" => {
            Ok(Command::Subscribe { folder: lexer.folder()?, subscribed: name == "SUBSCRIBE" })
        }
        "LIST" => list(lexer),
        "LSUB" => {
            let reference = lexer.folder_or_empty()?;
            lexer.space()?;
            Ok(Command::List(List {
                lsub: true,
                reference,
                patterns: vec![lexer.pattern()?],
                ..List::default()
            }))
        }
        "STATUS" => {
            let folder = lexer.folder()?;
            lexer.space()?;
            let items = status_items(lexer)?;
            Ok(Command::Status { folder, items })
        }
        "APPEND" => append(lexer),
        _ => on_messages(name, lexer, false),
    }
}

fn uid(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let name = lexer.word()?;
    lexer.space()?;
    match name.as_str() {
        "EXPUNGE" => Ok(Command::Expunge(Some(lexer.sequence_set()?))),
        "FETCH" | "STORE" | "SEARCH" | "COPY" | "MOVE" => on_messages(&name, lexer, true),
        _ => Err(ParseError("this command has no UID form")),
    }
}

fn on_messages(name: &str, lexer: &mut Lexer<'_>, uid: bool) -> Parsed<Command> {
    if name == "SEARCH" {
        return search::search(lexer, uid).map(Command::Search);
    }
    let set = lexer.sequence_set()?;
    lexer.space()?;
    match name {
        "FETCH" => fetch::fetch(lexer, uid, set).map(Command::Fetch),
        "STORE" => {
            let unchanged_since = if lexer.peek() == Some(b'(') {
                let modifiers = lexer.list(|l| modifier(l, "UNCHANGEDSINCE"))?;
                lexer.space()?;
                modifiers.first().copied()
            } else {
                None
            };
            let (change, silent) = match lexer.store_word().as_str() {
                "FLAGS" => (FlagChange::Replace, false),
                "FLAGS.SILENT" => (FlagChange::Replace, true),
                "+FLAGS" => (FlagChange::Add, false),
                "+FLAGS.SILENT" => (FlagChange::Add, true),
                "-FLAGS" => (FlagChange::Remove, false),
                "-FLAGS.SILENT" => (FlagChange::Remove, true),
                _ => return Err(ParseError("STORE takes FLAGS, +FLAGS or -FLAGS")),
            };
            lexer.space()?;
            let flags = flags(lexer)?;
            Ok(Command::Store(Store { uid, set, change, silent, flags, unchanged_since }))
        }
        "COPY" | "MOVE" => Ok(Command::Copy { uid, set, folder: lexer.folder()?, remove: name == "MOVE" }),
        _ => Err(ParseError("unknown command")),
    }
}

/// A modifier with a MODSEQ: CHANGEDSINCE of FETCH, UNCHANGEDSINCE of STORE. RFC 7162 3.1.
pub(super) fn modifier(lexer: &mut Lexer<'_>, known: &str) -> Parsed<u64> {
    if lexer.word()? != known {
        return Err(ParseError("unknown modifier"));
    }
    lexer.space()?;
    lexer.number64()
}

/// With or without parentheses. RFC 9051 9 (store-att-flags).
fn flags(lexer: &mut Lexer<'_>) -> Parsed<Flags> {
    if lexer.peek() == Some(b'(') {
        return Ok(lexer.list(Lexer::flag)?.into_iter().collect());
    }
    let mut flags = Flags::from([lexer.flag()?]);
    while lexer.eat(b' ') {
        flags.insert(lexer.flag()?);
    }
    Ok(flags)
}

fn authenticate(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let mechanism = lexer.word()?;
    let initial = if lexer.eat(b' ') { Some(initial_response(&lexer.astring()?)?) } else { None };
    Ok(Command::Authenticate { mechanism, initial })
}

/// RFC 4959 3: `=` stands for an empty response.
fn initial_response(text: &Bytes) -> Parsed<Vec<u8>> {
    if text.as_ref() == b"=" {
        return Ok(Vec::new());
    }
    STANDARD.decode(text).map_err(|_| ParseError("the initial response is not base 64"))
}

fn enable(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let mut names = vec![lexer.word()?];
    while lexer.eat(b' ') {
        names.push(lexer.word()?);
    }
    Ok(Command::Enable(names))
}

/// RFC 2971 3.1: NIL, or pairs of a string and a string or NIL.
fn id(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    if lexer.peek() == Some(b'(') {
        lexer.list(|l| match l.peek() {
            Some(b'"' | b'{') => l.string().map(drop),
            _ => nil(l),
        })?;
    } else {
        nil(lexer)?;
    }
    Ok(Command::Id)
}

fn nil(lexer: &mut Lexer<'_>) -> Parsed<()> {
    if lexer.word()? == "NIL" { Ok(()) } else { Err(ParseError("a string or NIL is missing")) }
}

fn select(lexer: &mut Lexer<'_>, read_only: bool) -> Parsed<Command> {
    let folder = lexer.folder()?;
    let mut condstore = false;
    if lexer.eat(b' ') {
        for parameter in lexer.list(Lexer::word)? {
            // QRESYNC is not offered, so that it cannot be asked for (RFC 7162 3.2.5).
            if parameter != "CONDSTORE" {
                return Err(ParseError("unknown parameter of SELECT"));
            }
            condstore = true;
        }
    }
    Ok(Command::Select { folder, read_only, condstore })
}

/// RFC 6154 3: CREATE name (USE (\Drafts)).
fn create(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let folder = lexer.folder()?;
    let mut special_use = Vec::new();
    if lexer.eat(b' ') {
        lexer.expect(b'(', "a list in parentheses is missing")?;
        if lexer.word()? != "USE" {
            return Err(ParseError("unknown parameter of CREATE"));
        }
        lexer.space()?;
        special_use = lexer.list(|l| {
            l.expect(b'\\', "a special use starts with \\")?;
            special_use_of(&l.word()?).ok_or(ParseError("unknown special use"))
        })?;
        lexer.expect(b')', "a list does not end")?;
    }
    Ok(Command::Create { folder, special_use })
}

fn special_use_of(word: &str) -> Option<SpecialUse> {
    Some(match word {
        "ARCHIVE" => SpecialUse::Archive,
        "DRAFTS" => SpecialUse::Drafts,
        "JUNK" => SpecialUse::Junk,
        "SENT" => SpecialUse::Sent,
        "TRASH" => SpecialUse::Trash,
        _ => return None,
    })
}

/// RFC 5258 3 with the options of RFC 5819 and RFC 6154.
fn list(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let mut list = List::default();
    if lexer.peek() == Some(b'(') {
        list.extended = true;
        for option in lexer.list(Lexer::word)? {
            match option.as_str() {
                "SUBSCRIBED" => list.select_subscribed = true,
                "SPECIAL-USE" => list.select_special_use = true,
                "RECURSIVEMATCH" => list.recursive = true,
                // There are no remote folders.
                "REMOTE" => {}
                _ => return Err(ParseError("unknown selection option of LIST")),
            }
        }
        // RFC 5258 3: RECURSIVEMATCH must not be the only one.
        if list.recursive && !list.select_subscribed && !list.select_special_use {
            return Err(ParseError("RECURSIVEMATCH needs another selection option"));
        }
        list.return_subscribed = list.select_subscribed;
        lexer.space()?;
    }
    list.reference = lexer.folder_or_empty()?;
    lexer.space()?;
    if lexer.peek() == Some(b'(') {
        list.extended = true;
        list.patterns = lexer.list(Lexer::pattern)?;
    } else {
        list.patterns = vec![lexer.pattern()?];
    }
    if lexer.eat(b' ') {
        list.extended = true;
        if lexer.word()? != "RETURN" {
            return Err(ParseError("RETURN is missing"));
        }
        lexer.space()?;
        lexer.list(|l| return_option(l, &mut list))?;
    }
    if list.patterns.is_empty() {
        return Err(ParseError("a pattern is missing"));
    }
    Ok(Command::List(list))
}

fn return_option(lexer: &mut Lexer<'_>, list: &mut List) -> Parsed<()> {
    match lexer.word()?.as_str() {
        "SUBSCRIBED" => list.return_subscribed = true,
        // Both are always in the answer.
        "CHILDREN" | "SPECIAL-USE" => {}
        "STATUS" => {
            lexer.space()?;
            list.status = status_items(lexer)?;
        }
        _ => return Err(ParseError("unknown return option of LIST")),
    }
    Ok(())
}

fn status_items(lexer: &mut Lexer<'_>) -> Parsed<Vec<StatusItem>> {
    let items = lexer.list(|l| {
        Ok(match l.word()?.as_str() {
            "MESSAGES" => StatusItem::Messages,
            "RECENT" => StatusItem::Recent,
            "UIDNEXT" => StatusItem::UidNext,
            "UIDVALIDITY" => StatusItem::UidValidity,
            "UNSEEN" => StatusItem::Unseen,
            "SIZE" => StatusItem::Size,
            "HIGHESTMODSEQ" => StatusItem::HighestModSeq,
            "APPENDLIMIT" => StatusItem::AppendLimit,
            _ => return Err(ParseError("unknown item of STATUS")),
        })
    })?;
    if items.is_empty() { Err(ParseError("STATUS needs an item")) } else { Ok(items) }
}

fn append(lexer: &mut Lexer<'_>) -> Parsed<Command> {
    let folder = lexer.folder()?;
    lexer.space()?;
    let mut flags = Flags::new();
    if lexer.peek() == Some(b'(') {
        flags = lexer.list(Lexer::flag)?.into_iter().collect();
        lexer.space()?;
    }
    let mut date = None;
    if lexer.peek() == Some(b'"') {
        let text = lexer.text()?;
        date = Some(date::parse_internal_date(&text).ok_or(ParseError("the date is not valid"))?);
        lexer.space()?;
    }
    if lexer.peek() != Some(b'{') {
        return Err(ParseError("the message has to be a literal"));
    }
    let body = lexer.literal()?;
    // RFC 9051 6.3.12 wants a message; RFC 3502 4 gives the empty literal the meaning "cancelled".
    if body.is_empty() {
        return Err(ParseError("the message is empty"));
    }
    Ok(Command::Append { folder, flags, date, body })
}
