use proptest::prelude::*;

use super::*;

const NESTED: &[u8] = b"From: a@b\r\nContent-Type: multipart/mixed; boundary=\"o u\"\r\n\r\npreamble\r\n--o u\r\n\r\nfirst\r\n\
--o u  \r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\nContent-Type: multipart/alternative;\r\n boundary=in\r\n\r\n\
--in\r\nContent-Type: text/plain\r\n\r\nplain\r\n--in\r\nContent-Type: text/html\r\n\r\n<p>\r\n--in--\r\nepilogue\r\n--o u--\r\nend\r\n";

fn text(range: &Range<usize>) -> &'static str {
    std::str::from_utf8(&NESTED[range.clone()]).unwrap()
}

#[test]
fn parts_are_found_to_the_byte() {
    let root = walk(NESTED);
    assert!(text(&root.header).ends_with("\"\r\n\r\n"));
    assert_eq!(root.body.end, NESTED.len());
    let Content::Multipart(parts) = &root.content else { panic!("{root:?}") };
    assert_eq!(parts.len(), 2);
    assert_eq!((text(&parts[0].header), text(&parts[0].body)), ("\r\n", "first"));
    let Content::Message(inner) = &parts[1].content else { panic!("{root:?}") };
    assert!(text(&inner.header).starts_with("Subject: inner") && text(&parts[1].body).ends_with("epilogue"));
    assert_eq!(parts[1].body.start, inner.header.start);
    let Content::Multipart(leaves) = &inner.content else { panic!("{root:?}") };
    assert_eq!(leaves.iter().map(|p| text(&p.body)).collect::<Vec<_>>(), ["plain", "<p>"]);
}

#[test]
fn an_outer_delimiter_ends_an_open_inner_multipart() {
    let message = b"Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--a\n\ny\n--a--\n";
    let Content::Multipart(parts) = walk(message).content else { panic!() };
    assert_eq!(parts.len(), 2);
    assert_eq!(&message[parts[1].body.clone()], b"y");
}

#[test]
fn nesting_and_number_of_parts_are_bounded() {
    let mut deep = Vec::new();
    for level in 0..200 {
        deep.extend_from_slice(
            format!("Content-Type: multipart/mixed; boundary=b{level}x\r\n\r\n--b{level}x\r\n").as_bytes(),
        );
    }
    let mut depth = 0;
    let mut part = walk(&deep);
    while let Content::Multipart(mut parts) = part.content {
        depth += 1;
        part = parts.remove(0);
    }
    assert_eq!(depth, MAX_DEPTH);
    let mut wide = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n".to_vec();
    wide.extend(b"--b\r\n\r\n".repeat(MAX_PARTS * 3));
    let Content::Multipart(parts) = walk(&wide).content else { panic!() };
    assert_eq!(parts.len(), MAX_PARTS - 1);
}

#[test]
fn parameters_are_read_as_written_by_real_senders() {
    let found =
        parse_content_type(b"text/plain (comment; x=y) ; charset = \"u\\tf-8\";;name=a/b=c; junk ; x=\"\"")
            .unwrap();
    assert!(found.is("TEXT", "Plain"));
    assert_eq!(found.parameter("CHARSET"), Some(b"utf-8".as_slice()));
    assert_eq!(found.parameter("name"), Some(b"a/b=c".as_slice()));
    assert_eq!(found.parameter("x"), Some(b"".as_slice()));
    assert_eq!(parse_content_type(b"text"), None);
}

fn check(part: &Part, within: &Range<usize>) {
    assert!(part.header.start >= within.start && part.header.end <= part.body.start);
    assert!(part.body.start <= part.body.end && part.body.end <= within.end, "{part:?} in {within:?}");
    match &part.content {
        Content::Leaf => {}
        Content::Multipart(parts) => parts.iter().for_each(|p| check(p, &part.body)),
        Content::Message(inner) => check(inner, &part.body),
    }
}

proptest! {
    #[test]
    fn offsets_lie_within_their_parents_whatever_the_bytes(
        pieces in proptest::collection::vec(prop_oneof![
            Just("Content-Type: multipart/mixed; boundary=a\r\n"), Just("Content-Type: multipart/digest; boundary=ab\n"),
            Just("Content-Type: message/rfc822\r\n"), Just("\r\n"), Just("\n"), Just("--a\r\n"), Just("--ab\n"),
            Just("--a--\r\n"), Just("--ab--"), Just("text"), Just("\0\u{fffd}"), Just("(\\"), Just("\""), Just("X: y\r\n z\r\n"),
        ], 0..40)
    ) {
        let message = pieces.concat().into_bytes();
        check(&walk(&message), &(0..message.len()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(message: Vec<u8>) {
        check(&walk(&message), &(0..message.len()));
        let _ = (parse_content_type(&message), parse_disposition(&message), header_end(&message));
        fields(&message).for_each(|(_, whole)| drop(value(whole)));
    }
}

#[test]
fn an_empty_part_between_two_delimiters_lies_within_its_parent() {
    let message = b"Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: multipart/mixed; boundary=i\n\n--i\n--o--\n";
    check(&walk(message), &(0..message.len()));
}
