//! BODYSTRUCTURE and BODY. RFC 9051 7.5.2, RFC 2045, RFC 2183 (disposition), RFC 3282 (language), RFC 2557 (location).

use crate::{
    envelope,
    mime::{self, Content, Part},
    response::{Out, nil, nstring, put, string},
};

/// Writes the structure of a part; `extended`: with the extension data that only BODYSTRUCTURE has.
pub fn write(out: &mut Out, message: &[u8], part: &Part, extended: bool) {
    out.put(b"(");
    match &part.content {
        Content::Multipart(parts) => {
            for child in parts {
                write(out, message, child, extended);
            }
            // The grammar wants at least one part (RFC 9051 9, body-type-mpart).
            if parts.is_empty() {
                out.put(b"(\"text\" \"plain\" NIL NIL NIL \"7bit\" 0 0)");
            }
            out.put(b" ");
            string(out, &part.content_type.subtype);
        }
        Content::Leaf | Content::Message(_) => single(out, message, part, extended),
    }
    if extended {
        extension(out, message, part);
    }
    out.put(b")");
}

fn single(out: &mut Out, message: &[u8], part: &Part, extended: bool) {
    let header = &message[part.header.clone()];
    // A multipart that could not be taken apart is no multipart to the client: it would look for parts.
    let opaque = part.content_type.kind.eq_ignore_ascii_case(b"multipart")
        || (part.content_type.is("message", "rfc822") && part.content == Content::Leaf);
    if opaque {
        out.put(b"\"application\" \"octet-stream\"");
    } else {
        string(out, &part.content_type.kind);
        out.put(b" ");
        string(out, &part.content_type.subtype);
    }
    out.put(b" ");
    parameters(out, &part.content_type.parameters);
    for name in ["Content-ID", "Content-Description"] {
        out.put(b" ");
        nstring(out, mime::field(header, name).as_deref());
    }
    out.put(b" ");
    // RFC 2045 6.1: 7bit is the default. A comment or parameter after the token is not part of it.
    let encoding = mime::field(header, "Content-Transfer-Encoding").unwrap_or_default();
    let encoding = mime::parse_disposition(&encoding).map_or_else(|| b"7bit".to_vec(), |found| found.kind);
    string(out, &encoding);
    put!(out, " {}", part.body.len());
    let lines = || message[part.body.clone()].iter().filter(|&&b| b == b'\n').count();
    if let Content::Message(inner) = &part.content {
        out.put(b" ");
        envelope::write(out, &message[inner.header.clone()]);
        out.put(b" ");
        write(out, message, inner, extended);
        put!(out, " {}", lines());
    } else if !opaque && part.content_type.kind.eq_ignore_ascii_case(b"text") {
        put!(out, " {}", lines());
    }
}

fn extension(out: &mut Out, message: &[u8], part: &Part) {
    let header = &message[part.header.clone()];
    out.put(b" ");
    if matches!(part.content, Content::Multipart(_)) {
        parameters(out, &part.content_type.parameters);
    } else {
        nstring(out, mime::field(header, "Content-MD5").as_deref());
    }
    out.put(b" ");
    match mime::field(header, "Content-Disposition").and_then(|value| mime::parse_disposition(&value)) {
        None => nil(out),
        Some(disposition) => {
            out.put(b"(");
            string(out, &disposition.kind);
            out.put(b" ");
            parameters(out, &disposition.parameters);
            out.put(b")");
        }
    }
    out.put(b" ");
    nstring(out, mime::field(header, "Content-Language").as_deref());
    out.put(b" ");
    nstring(out, mime::field(header, "Content-Location").as_deref());
}

fn parameters(out: &mut Out, parameters: &[(Vec<u8>, Vec<u8>)]) {
    if parameters.is_empty() {
        return nil(out);
    }
    out.put(b"(");
    for (at, (name, value)) in parameters.iter().enumerate() {
        if at > 0 {
            out.put(b" ");
        }
        string(out, name);
        out.put(b" ");
        string(out, value);
    }
    out.put(b")");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(message: &str, extended: bool) -> String {
        let mut out = Out::default();
        write(&mut out, message.as_bytes(), &mime::walk(message.as_bytes()), extended);
        String::from_utf8(out.into_bytes()).unwrap()
    }

    #[test]
    fn a_plain_message_is_text_plain() {
        assert_eq!(
            shown("Subject: x\r\n\r\none\r\ntwo\r\n", false),
            r#"("text" "plain" NIL NIL NIL "7bit" 10 2)"#
        );
        assert_eq!(shown("\r\n", true), r#"("text" "plain" NIL NIL NIL "7bit" 0 0 NIL NIL NIL NIL)"#);
    }

    #[test]
    fn a_multipart_shows_its_parts_and_dispositions() {
        let message = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\
            Content-Transfer-Encoding: Quoted-Printable\r\n\r\n<p>\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <1>\r\n\
            Content-Disposition: attachment; filename=\"a b.png\"\r\n\r\nxyz\r\n--b--\r\n";
        assert_eq!(
            shown(message, true),
            concat!(
                r#"(("text" "html" ("charset" "utf-8") NIL NIL "Quoted-Printable" 3 0 NIL NIL NIL NIL)"#,
                r#"("image" "png" NIL "<1>" NIL "7bit" 3 NIL ("attachment" ("filename" "a b.png")) NIL NIL)"#,
                r#" "mixed" ("boundary" "b") NIL NIL NIL)"#
            )
        );
    }

    #[test]
    fn a_message_in_a_message_shows_its_envelope_and_structure() {
        let message = "Content-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nbody\r\n";
        assert_eq!(
            shown(message, false),
            concat!(
                r#"("message" "rfc822" NIL NIL NIL "7bit" 21 (NIL "in" NIL NIL NIL NIL NIL NIL NIL NIL)"#,
                r#" ("text" "plain" NIL NIL NIL "7bit" 6 1) 3)"#
            )
        );
        assert!(
            shown("Content-Type: multipart/mixed\r\n\r\nx", false)
                .starts_with(r#"("application" "octet-stream""#)
        );
        assert_eq!(
            shown("Content-Type: multipart/mixed; boundary=x\r\n\r\n", false),
            r#"(("text" "plain" NIL NIL NIL "7bit" 0 0) "mixed")"#
        );
    }
}
