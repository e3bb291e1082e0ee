//! What a mailing list does to a message, and the addresses that its bounces come back to.
//!
//! RFC 2369 (List-* fields), RFC 2919 (List-Id), RFC 3834 (automatic answers). Fields that differ from member to member
//! (List-Unsubscribe with a token, RFC 8058) and signatures are put on top when a copy is sent; everything here is the same
//! for all members.

use bytes::Bytes;

use crate::{
    Address, Domain,
    address::MAX_LOCAL_PART,
    headers::{Field, fields, header_section, prepend},
};

/// Longest local part of a list: its longest other address, with a token, must fit in [`MAX_LOCAL_PART`].
pub const MAX_LIST_LOCAL: usize = 32;
/// Characters of the token in a bounce address that names its member.
pub const BOUNCE_TOKEN: usize = 8;
/// Octets of a message that are searched for a delivery status.
const MAX_REPORT: usize = 256 * 1024;
/// Bytes of text in one encoded-word: RFC 2047 2 bounds it to 75 characters, three for a byte.
const WORD_BYTES: usize = 20;

/// Fields that do not pass a list: they are the list's to say, break with what it changes, or ask 10,000 people for a receipt.
const DROPPED: [&str; 17] = [
    "List-Id",
    "List-Post",
    "List-Help",
    "List-Owner",
    "List-Subscribe",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "List-Archive",
    "Precedence",
    "DKIM-Signature",
    "DomainKey-Signature",
    "Return-Path",
    "Return-Receipt-To",
    "Disposition-Notification-To",
    "Errors-To",
    "Bcc",
    "X-Original-From",
];

/// What a list does to its posts.
#[derive(Debug, Clone)]
pub struct Rewriting<'a> {
    /// The list.
    pub list: &'a Address,
    /// Printable ASCII; empty: none.
    pub prefix: &'a str,
    /// Whether answers go to the list.
    pub reply_to_list: bool,
    /// Whether anybody may post (RFC 2369 3.4: `NO` otherwise).
    pub takes_posts: bool,
    /// Whether anybody may become a member by mail.
    pub takes_members: bool,
    /// The subject, decoded.
    pub subject: &'a str,
    /// The author, when the copy is not to be in their name: as written, and the name alone (may be empty).
    pub hidden_author: Option<(&'a Address, &'a str)>,
}

/// `list-word@domain`, or `list-word+token@domain`.
pub fn part(list: &Address, word: &str, token: &str) -> Address {
    let plus = if token.is_empty() { "" } else { "+" };
    let text = format!("{}-{word}{plus}{token}@{}", list.local(), list.domain());
    text.parse().expect("the local part of a list leaves room for its other addresses")
}

/// RFC 2919 3: the name of a list for ever.
pub fn list_id(list: &Address) -> String {
    let key = list.key();
    let (local, domain) = key.rsplit_once('@').unwrap_or((&key, ""));
    format!("{local}.{domain}")
}

/// The message as it goes to all members.
pub fn rewrite(message: &[u8], to: &Rewriting<'_>) -> Bytes {
    let new_subject = !to.prefix.is_empty() && !to.subject.contains(to.prefix);
    let mut top = own_fields(to);
    let (mut kept, mut subject, mut has_reply_to) = (Vec::with_capacity(message.len()), None, false);
    for field in fields(message) {
        let is_replaced = (field.is("From") && to.hidden_author.is_some())
            || (field.is("Reply-To") && to.reply_to_list)
            || (field.is("Subject") && new_subject);
        if field.is("Subject") && subject.is_none() {
            subject = Some(folded_value(&field));
        }
        has_reply_to |= field.is("Reply-To");
        if !is_replaced && !DROPPED.iter().any(|name| field.is(name)) {
            kept.extend_from_slice(field.raw);
        }
    }
    if new_subject {
        let subject = subject.unwrap_or_default();
        top.push_str(&format!("Subject: {}\r\n", format!("{} {subject}", to.prefix).trim_end()));
    }
    if let Some((author, name)) = to.hidden_author {
        let shown = if name.is_empty() { author.local() } else { name };
        let phrase = phrase(&format!("{shown} via {}", to.list.local()));
        top.push_str(&format!("From: {phrase} <{}>\r\nX-Original-From: <{author}>\r\n", to.list));
        if !to.reply_to_list && !has_reply_to {
            top.push_str(&format!("Reply-To: <{author}>\r\n"));
        }
    }
    kept.extend_from_slice(&message[header_section(message).len()..]);
    prepend(&top, &kept)
}

fn own_fields(to: &Rewriting<'_>) -> String {
    let list = to.list;
    let owner = part(list, "owner", "");
    let mut top = format!("X-Loop: {}\r\nList-Id: <{}>\r\n", list.key(), list_id(list));
    if to.takes_posts {
        top.push_str(&format!("List-Post: <mailto:{}>\r\n", uri(list)));
    } else {
        top.push_str("List-Post: NO\r\n");
    }
    top.push_str(&format!("List-Help: <mailto:{0}>\r\nList-Owner: <mailto:{0}>\r\n", uri(&owner)));
    if to.takes_members {
        top.push_str(&format!("List-Subscribe: <mailto:{}>\r\n", uri(&part(list, "join", ""))));
    }
    top.push_str("Precedence: list\r\n");
    if to.reply_to_list {
        top.push_str(&format!("Reply-To: <{list}>\r\n"));
    }
    top
}

/// An address in a URI: RFC 6068 2 has everything but letters, digits and a few others percent-encoded.
pub fn uri(address: &Address) -> String {
    percent(&address.to_string())
}

/// Percent-encodes all but unreserved characters (RFC 3986 2.3) and `@`.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A display name as it stands in a field: quoted, or as encoded-words (RFC 2047) where it is not ASCII. Control characters go.
pub fn phrase(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
    if text.is_ascii() {
        let plain: String = text.chars().filter(|c| !"\"\\".contains(*c)).collect();
        return format!("\"{plain}\"");
    }
    let mut words: Vec<Vec<u8>> = vec![Vec::new()];
    for c in text.chars() {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        if words.last().is_some_and(|word| word.len() + bytes.len() > WORD_BYTES) {
            words.push(Vec::new());
        }
        if let Some(word) = words.last_mut() {
            word.extend_from_slice(bytes);
        }
    }
    let encode = |word: &Vec<u8>| {
        let coded: String = word.iter().map(|byte| format!("={byte:02X}")).collect();
        format!("=?utf-8?q?{coded}?=")
    };
    words.iter().map(encode).collect::<Vec<_>>().join("\r\n ")
}

/// The value of a field on one line. What is not UTF-8 becomes a question mark in a box.
fn value(field: &Field<'_>) -> String {
    let after = field.raw.iter().position(|byte| *byte == b':').map_or(field.raw.len(), |at| at + 1);
    let text = String::from_utf8_lossy(&field.raw[after..]);
    text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect::<String>().trim().to_owned()
}

/// The value of a field with its folds, without the last line end.
fn folded_value(field: &Field<'_>) -> String {
    let after = field.raw.iter().position(|byte| *byte == b':').map_or(field.raw.len(), |at| at + 1);
    String::from_utf8_lossy(field.raw[after..].trim_ascii()).into_owned()
}

/// Whether the message has been through this list.
pub fn has_passed(message: &[u8], list: &Address) -> bool {
    let (key, id) = (list.key(), format!("<{}>", list_id(list)));
    fields(message).any(|field| {
        let is_there = |wanted: &str| value(&field).to_lowercase().contains(wanted);
        (field.is("X-Loop") && value(&field).to_lowercase() == key) || (field.is("List-Id") && is_there(&id))
    })
}

/// Whether a program answered by itself: such mail is not relayed, and never answered (RFC 3834 2).
pub fn is_automatic(message: &[u8]) -> bool {
    fields(message).any(|field| {
        let word = || value(&field).split([';', ' ', '\t']).next().unwrap_or_default().to_lowercase();
        (field.is("Auto-Submitted") && word() != "no")
            || (field.is("Precedence") && ["bulk", "junk", "auto_reply"].contains(&word().as_str()))
            || field.is("X-Autoreply")
            || field.is("X-Autorespond")
    })
}

/// Where what cannot be delivered to a member comes back to. `short` and `long` are tokens of [`BOUNCE_TOKEN`] and 16 characters,
/// letters and digits, that only the list can make for this member; the long one alone is used where the member's address does
/// not fit.
pub fn bounce_address(list: &Address, member: &Address, short: &str, long: &str) -> Address {
    let key = member.key();
    let (local, domain) = key.rsplit_once('@').unwrap_or((&key, ""));
    let token = format!("{short}-{local}={domain}");
    let fits = list.local().len() + "-bounces+".len() + token.len() <= MAX_LOCAL_PART;
    part(list, "bounces", if fits { &token } else { long })
}

/// What a bounce address names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bounced {
    /// The member, and the short token.
    Member(Address, String),
    /// The long token alone.
    Token(String),
}

/// Reads the token of a bounce address, in lower case.
pub fn bounced(token: &str) -> Option<Bounced> {
    let Some((mac, member)) = token.split_once('-').filter(|(mac, _)| mac.len() == BOUNCE_TOKEN) else {
        return (!token.is_empty()).then(|| Bounced::Token(token.to_owned()));
    };
    let (local, domain) = member.rsplit_once('=')?;
    let address: Address = format!("{local}@{}", domain.parse::<Domain>().ok()?).parse().ok()?;
    Some(Bounced::Member(address, mac.to_owned()))
}

/// Whether the message is a delivery status notification (RFC 3464) that says that something failed for good.
pub fn is_permanent_failure(message: &[u8]) -> bool {
    let type_of = |field: &Field<'_>| value(field).to_lowercase();
    let is_report = fields(message)
        .any(|field| field.is("Content-Type") && type_of(&field).contains("report-type=delivery-status"))
        || fields(message).any(|field| {
            field.is("Content-Type") && type_of(&field).contains("report-type=\"delivery-status\"")
        });
    if !is_report {
        return false;
    }
    let text = &message[..message.len().min(MAX_REPORT)];
    let (mut failed, mut permanent) = (false, false);
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii().to_ascii_lowercase();
        failed |= line.starts_with(b"action:") && line.ends_with(b"failed");
        let status = line.strip_prefix(b"status:".as_slice());
        permanent |= status.is_some_and(|status| status.trim_ascii().starts_with(b"5."));
    }
    failed && permanent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn rewriting<'a>(list: &'a Address, subject: &'a str) -> Rewriting<'a> {
        Rewriting {
            list,
            prefix: "[news]",
            reply_to_list: false,
            takes_posts: true,
            takes_members: true,
            subject,
            hidden_author: None,
        }
    }

    const MESSAGE: &[u8] = b"Received: from a\r\nFrom: Bob <bob@example.net>\r\nSubject: hi\r\n there\r\nlist-id: <other>\r\n\
        DKIM-Signature: v=1\r\nDisposition-Notification-To: bob@example.net\r\nTo: news@example.org\r\n\r\nSubject: body\r\n";

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_post_gets_the_lists_fields_and_loses_those_that_are_not_its_own() {
        let list = address("News@example.org");
        let done = text(&rewrite(MESSAGE, &rewriting(&list, "hi there")));
        for line in [
            "List-Id: <news.example.org>\r\n",
            "List-Post: <mailto:News@example.org>\r\n",
            "List-Owner: <mailto:News-owner@example.org>\r\n",
            "Subject: [news] hi\r\n there\r\n",
            "Precedence: list\r\n",
            "From: Bob <bob@example.net>\r\n",
            "Received: from a\r\n",
        ] {
            assert!(done.contains(line), "{line:?} is not in {done}");
        }
        assert!(
            !done.contains("<other>") && !done.contains("DKIM") && !done.contains("Disposition"),
            "{done}"
        );
        assert!(done.ends_with("\r\n\r\nSubject: body\r\n"));
    }

    #[test]
    fn a_prefix_is_not_repeated() {
        let list = address("news@example.org");
        let again = b"From: b@x.org\r\nSubject: Re: [news] hi\r\n\r\nx";
        let done = text(&rewrite(again, &rewriting(&list, "Re: [news] hi")));
        assert!(done.contains("Subject: Re: [news] hi\r\n") && done.matches("[news]").count() == 1, "{done}");
    }

    #[test]
    fn answers_go_where_the_list_says() {
        let list = address("news@example.org");
        let own = b"From: b@x.org\r\nReply-To: c@x.org\r\n\r\nx";
        let to_list = Rewriting { reply_to_list: true, ..rewriting(&list, "") };
        let done = text(&rewrite(own, &to_list));
        assert!(done.contains("Reply-To: <news@example.org>\r\n") && !done.contains("c@x.org"), "{done}");
        assert!(text(&rewrite(own, &rewriting(&list, ""))).contains("Reply-To: c@x.org\r\n"));
    }

    #[test]
    fn an_author_is_hidden_behind_the_list_and_can_be_answered() {
        let (list, bob) = (address("news@example.org"), address("bob@example.net"));
        let hidden = Rewriting { hidden_author: Some((&bob, "Bob \"B\"")), ..rewriting(&list, "hi there") };
        let done = text(&rewrite(MESSAGE, &hidden));
        assert!(done.contains("From: \"Bob B via news\" <news@example.org>\r\n"), "{done}");
        assert!(done.contains("Reply-To: <bob@example.net>\r\n"), "{done}");
        assert_eq!(fields(done.as_bytes()).filter(|field| field.is("From")).count(), 1);
    }

    #[test]
    fn names_beyond_ascii_are_encoded_in_whole_characters() {
        assert_eq!(phrase("a\r\nb"), "\"ab\"");
        let long = phrase(&"ü".repeat(30));
        assert!(long.is_ascii() && long.split("\r\n ").all(|word| word.len() <= 75), "{long}");
    }

    #[test]
    fn loops_and_automatic_answers_are_known() {
        let list = address("news@example.org");
        let done = rewrite(MESSAGE, &rewriting(&list, ""));
        assert!(has_passed(&done, &list) && !has_passed(&done, &address("other@example.org")));
        assert!(!has_passed(MESSAGE, &list));
        // Through another list, which has its own List-Id.
        let other = address("other@example.org");
        assert!(has_passed(&rewrite(&done, &rewriting(&other, "")), &list));
        assert!(is_automatic(b"Auto-Submitted: auto-replied; owner=x\r\n\r\n"));
        assert!(is_automatic(b"Precedence: bulk\r\n\r\n") && !is_automatic(b"Precedence: list\r\n\r\n"));
        assert!(!is_automatic(b"auto-submitted: no\r\n\r\n") && !is_automatic(b"\r\nAuto-Submitted: x"));
    }

    #[test]
    fn only_a_report_of_a_lasting_failure_counts() {
        let report = |action: &str, status: &str| {
            format!(
                "Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=b\r\n\r\n--b\r\n\r\n\
                 Final-Recipient: rfc822; a@x.org\r\nAction: {action}\r\nStatus: {status}\r\n"
            )
        };
        assert!(is_permanent_failure(report("failed", "5.1.1").as_bytes()));
        assert!(!is_permanent_failure(report("delayed", "4.4.1").as_bytes()));
        assert!(!is_permanent_failure(report("failed", "4.4.7").as_bytes()));
        assert!(!is_permanent_failure(
            b"Content-Type: text/plain\r\n\r\nAction: failed\r\nStatus: 5.1.1\r\n"
        ));
    }

    #[test]
    fn a_bounce_address_names_its_member_or_a_token() {
        let list = address("announce@example.org");
        let bounces = bounce_address(&list, &address("Alice@example.net"), "abcdefgh", "0123456789abcdef");
        assert_eq!(bounces.to_string(), "announce-bounces+abcdefgh-alice=example.net@example.org");
        let long = address(&format!("{}@example.net", "a".repeat(60)));
        let bounces = bounce_address(&list, &long, "abcdefgh", "0123456789abcdef");
        assert_eq!(bounces.to_string(), "announce-bounces+0123456789abcdef@example.org");
        assert_eq!(bounced("0123456789abcdef"), Some(Bounced::Token("0123456789abcdef".to_owned())));
        assert_eq!(bounced(""), None);
    }

    proptest! {
        #[test]
        fn a_bounce_address_is_read_back(
            local in "[a-z0-9=_-]{1,20}", domain in "[a-z]{1,8}\\.[a-z]{2,4}", list in "[a-z]{1,32}",
        ) {
            let list = address(&format!("{list}@example.org"));
            let member = address(&format!("{local}@{domain}"));
            let bounces = bounce_address(&list, &member, "abcdefgh", "0123456789abcdef");
            let token = bounces.local().split_once('+').unwrap().1.to_owned();
            match bounced(&token) {
                Some(Bounced::Member(found, mac)) => prop_assert_eq!((found, mac), (member, "abcdefgh".to_owned())),
                Some(Bounced::Token(found)) => prop_assert_eq!(found, "0123456789abcdef".to_owned()),
                None => prop_assert!(false, "{} is not read", bounces),
            }
        }

        #[test]
        fn no_token_makes_it_panic(token in "\\PC{0,80}") {
            let _ = bounced(&token);
        }

        #[test]
        fn whatever_is_rewritten_keeps_its_body_and_is_known_again(
            message in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'a'), any::<u8>()], 0..400),
            subject in "\\PC{0,20}",
        ) {
            let list = address("news@example.org");
            let author = address("a@example.net");
            let hidden = Rewriting { hidden_author: Some((&author, &subject)), ..rewriting(&list, &subject) };
            let done = rewrite(&message, &hidden);
            prop_assert!(done.ends_with(&message[header_section(&message).len()..]));
            prop_assert!(has_passed(&done, &list));
            prop_assert_eq!(fields(&done).filter(|field| field.is("From")).count(), 1);
            let _ = (is_automatic(&message), is_permanent_failure(&message));
        }
    }
}
