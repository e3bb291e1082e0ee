use proptest::prelude::*;

use super::*;
use crate::{
    FlagChange, Flags,
    command::{BodySection, Command, FetchItem, SearchKey, SectionText},
    sequence::{Bound, SequenceSet},
};

fn read(frame: &str) -> Result<Command, &'static str> {
    parse(&Bytes::copy_from_slice(frame.as_bytes()))
        .map(|tagged| tagged.command)
        .map_err(|rejected| rejected.why)
}

#[test]
fn arguments_are_read_in_all_their_forms() {
    let login = Command::Login { user: "a b".into(), password: "p\"w".into() };
    assert_eq!(read("t1 login \"a b\" \"p\\\"w\"").unwrap(), login);
    assert_eq!(read("t1 LOGIN {3}\r\na b {3+}\r\np\"w").unwrap(), login);
    assert_eq!(read("t DELETE \"Entw&APw-rfe\"").unwrap(), Command::Delete("Entwürfe".into()));
    assert_eq!(read("t DELETE inBox").unwrap(), Command::Delete("INBOX".into()));
    assert_eq!(
        read("t AUTHENTICATE plain AGEAYg==").unwrap(),
        Command::Authenticate { mechanism: "PLAIN".into(), initial: Some(b"\0a\0b".to_vec()) }
    );
    assert_eq!(read("t ID (\"name\" NIL \"x\" \"y\")").unwrap(), Command::Id);
}

#[test]
fn append_takes_flags_date_and_literal() {
    let Command::Append { folder, flags, date, body } =
        read("t APPEND INBOX (\\seen Work) \"17-Jul-1996 02:44:25 -0700\" {5}\r\nhello").unwrap()
    else {
        panic!()
    };
    assert_eq!((folder.as_str(), body.as_ref(), date), ("INBOX", &b"hello"[..], Some(837_596_665_000)));
    assert_eq!(flags, Flags::from(["\\Seen".to_owned(), "Work".to_owned()]));
    for wrong in [
        "t APPEND x {0}\r\n",
        "t APPEND x hello",
        "t APPEND x (\\Recent) {1}\r\nx",
        "t APPEND x {5}\r\nhi",
        "t APPEND x {2}\r\nhixx",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn fetch_items_and_sections_are_read() {
    let items = |frame| match read(frame).unwrap() {
        Command::Fetch(fetch) => fetch.items,
        other => panic!("{other:?}"),
    };
    assert_eq!(items("t FETCH 1 fast"), [FetchItem::Flags, FetchItem::InternalDate, FetchItem::Size]);
    assert_eq!(items("t UID FETCH 1:* (FLAGS)"), [FetchItem::Uid, FetchItem::Flags]);
    let section = |label: &str, path: &[u32], text, partial| {
        [FetchItem::Section(BodySection {
            label: label.into(),
            peek: true,
            path: path.into(),
            text,
            partial,
        })]
    };
    assert_eq!(
        items("t FETCH 1 BODY.PEEK[]<5.10>"),
        section("BODY[]<5>", &[], SectionText::Whole, Some((5, 10)))
    );
    assert_eq!(
        items("t FETCH 1 (body.peek[1.2.mime])"),
        section("BODY[1.2.MIME]", &[1, 2], SectionText::Mime, None)
    );
    assert_eq!(items("t FETCH 1 BODY.PEEK[3]"), section("BODY[3]", &[3], SectionText::Whole, None));
    assert_eq!(
        items("t FETCH 1 BODY.PEEK[HEADER.FIELDS.NOT (Date \"X-a\")]"),
        section(
            "BODY[HEADER.FIELDS.NOT (Date X-a)]",
            &[],
            SectionText::Fields { names: vec!["DATE".into(), "X-A".into()], not: true },
            None
        )
    );
    for wrong in [
        "t FETCH 1 BODY[MIME]",
        "t FETCH 1 BODY[1..2]",
        "t FETCH 1 BODY[0]",
        "t FETCH 1 (ALL)",
        "t FETCH 1 ()",
        "t FETCH 0 FLAGS",
        "t FETCH 1 BODY[HEADER.FIELDS ()]",
        "t FETCH 1 BODY[]<1>",
        "t FETCH 1 BODY[TEXT",
        "t FETCH 4294967296 FLAGS",
        "t FETCH 1, FLAGS",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn store_takes_flags_with_and_without_parentheses() {
    let Command::Store(store) =
        read("t UID STORE 1,3:* (UNCHANGEDSINCE 12) +FLAGS.SILENT \\deleted $Junk").unwrap()
    else {
        panic!()
    };
    assert_eq!(
        store.set,
        SequenceSet(vec![(Bound::Number(1), Bound::Number(1)), (Bound::Number(3), Bound::Last)])
    );
    assert_eq!(
        (store.uid, store.change, store.silent, store.unchanged_since),
        (true, FlagChange::Add, true, Some(12))
    );
    assert_eq!(store.flags, Flags::from(["\\Deleted".to_owned(), "$Junk".to_owned()]));
    for wrong in
        ["t STORE 1 FLAGS \\Recent", "t STORE 1 FLAGS (a b", "t STORE 1 FLAGS \\Other", "t STORE 1 XFLAGS a"]
    {
        assert!(read(wrong).is_err(), "{wrong}");
    }
    assert!(read(&format!("t STORE 1 FLAGS {}", "k".repeat(MAX_KEYWORD + 1))).is_err());
}

#[test]
fn search_reads_nested_keys_and_bounds_their_depth() {
    let key = |frame: &str| match read(frame).unwrap() {
        Command::Search(search) => search.key,
        other => panic!("{other:?}"),
    };
    let flag = |name: &str| SearchKey::Flag(name.into());
    assert_eq!(
        key("t SEARCH RETURN (COUNT) CHARSET utf-8 OR SEEN (NOT DELETED TEXT {5}\r\nGR\u{dc}n) ALL"),
        SearchKey::And(vec![
            SearchKey::Or(
                Box::new(flag("\\Seen")),
                Box::new(SearchKey::And(vec![
                    SearchKey::Not(Box::new(flag("\\Deleted"))),
                    SearchKey::Text("gr\u{fc}n".into())
                ]))
            ),
            SearchKey::All
        ])
    );
    assert_eq!(
        key("t SEARCH 1:3 SINCE 1-Feb-1970"),
        SearchKey::And(vec![
            SearchKey::Sequence(SequenceSet(vec![(Bound::Number(1), Bound::Number(3))])),
            SearchKey::Since(31)
        ])
    );
    assert!(matches!(read("t SEARCH CHARSET x-y TEXT {1}\r\n\u{fc}"), Err(_) | Ok(Command::Search(_))));
    assert!(read(&format!("t SEARCH {}ALL", "NOT ".repeat(MAX_NESTING + 2))).is_err());
    assert!(read(&format!("t SEARCH {}ALL{}", "(".repeat(10_000), ")".repeat(10_000))).is_err());
    for wrong in
        ["t SEARCH", "t SEARCH ", "t SEARCH OR ALL", "t SEARCH ON yesterday", "t SEARCH ()", "t SEARCH BOGUS"]
    {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_no_command_is_refused_with_its_tag() {
    let rejected = |frame: &[u8]| parse(&Bytes::copy_from_slice(frame)).unwrap_err();
    assert_eq!(rejected(b"a1 FROB x").tag.as_deref(), Some("a1"));
    assert_eq!(rejected(b"a1 NOOP x").tag.as_deref(), Some("a1"));
    assert_eq!(rejected(b"a1 LOGIN \0 x").tag.as_deref(), Some("a1"));
    for frame in [&b""[..], b" NOOP", b"NOOP", b"a(b NOOP", b"+ NOOP", b"\xff\xfe", b"GET / HTTP/1.1\0"] {
        let rejected = rejected(frame);
        assert!(rejected.tag.is_none() || frame.starts_with(b"GET"), "{frame:?} {rejected:?}");
    }
}

proptest! {
    #[test]
    fn the_parser_never_panics_on_words_of_the_grammar(words in proptest::collection::vec(prop_oneof![
        Just("t "), Just("UID "), Just("FETCH "), Just("STORE "), Just("SEARCH "), Just("APPEND "), Just("LIST "), Just("STATUS "),
        Just("1:*"), Just("BODY"), Just(".PEEK"), Just("["), Just("]"), Just("<0.1>"), Just("("), Just(")"), Just(" "), Just("\""), Just("\\"),
        Just("{3}\r\n"), Just("{99999999999999999999}\r\n"), Just("abc"), Just("*"), Just("%"), Just("NOT "), Just("OR "), Just("CHARSET "),
        Just("RETURN "), Just("&Jjo-"), Just("HEADER.FIELDS "), Just("1."), Just(","), Just("\u{fc}"), Just("4294967295"),
    ], 0..25)) {
        let _ = read(&format!("t {}", words.concat()));
        let _ = read(&words.concat());
    }

    #[test]
    fn the_parser_never_panics_on_any_bytes(frame: Vec<u8>) {
        let _ = parse(&Bytes::from(frame.clone()));
        let _ = tag_of(&Bytes::from(frame));
    }
}
