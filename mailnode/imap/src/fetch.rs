//! Rendering of FETCH items: what of a message is needed for them, and their octets. RFC 9051 6.4.5 and 7.5.2.

use bytes::Bytes;

use crate::{
    Message,
    command::{BodySection, FetchItem, SectionText},
    date,
    digest::Digest,
    mime::{self, Content, Part},
    response::{self, Out, nil, put},
};

/// How much of a message the items need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Nothing but what the folder's list tells.
    Nothing,
    /// This many octets from the start.
    Prefix(u32),
    /// The header, however long it is.
    Header,
    /// All of it.
    Whole,
}

/// What a list of items needs.
pub(crate) fn need(items: &[FetchItem]) -> Need {
    let of = |item: &FetchItem| match item {
        FetchItem::Section(section) if section.path.is_empty() => match (&section.text, section.partial) {
            (SectionText::Header | SectionText::Fields { .. }, _) => Need::Header,
            (SectionText::Whole, Some((offset, length))) => Need::Prefix(offset.saturating_add(length)),
            _ => Need::Whole,
        },
        FetchItem::Section(_) => Need::Whole,
        _ => Need::Nothing,
    };
    items.iter().map(of).fold(Need::Nothing, |sum, one| match (sum, one) {
        // A header is not of a known length, so that a prefix and a header together are all of it.
        (Need::Prefix(_), Need::Header) | (Need::Header, Need::Prefix(_)) => Need::Whole,
        (sum, one) => sum.max(one),
    })
}

/// The digests that items need, each once.
pub(crate) fn digests(items: &[FetchItem]) -> Vec<Digest> {
    Digest::ALL
        .into_iter()
        .filter(|digest| items.iter().any(|item| digest_of(item) == Some(*digest)))
        .collect()
}

fn digest_of(item: &FetchItem) -> Option<Digest> {
    match item {
        FetchItem::Envelope => Some(Digest::Envelope),
        FetchItem::Body => Some(Digest::Body),
        FetchItem::BodyStructure => Some(Digest::BodyStructure),
        _ => None,
    }
}

/// Whether the items mark a message as seen.
pub(crate) fn sets_seen(items: &[FetchItem]) -> bool {
    items.iter().any(|item| matches!(item, FetchItem::Section(section) if !section.peek))
}

/// A message as far as it is at hand.
pub(crate) struct Source {
    /// Octets from the start.
    pub(crate) octets: Bytes,
    structure: Option<Part>,
    /// Those that were asked for.
    digests: Vec<(Digest, Bytes)>,
}

impl Source {
    /// `digests`: those of `asked`, in its order.
    pub(crate) fn new(octets: Bytes, asked: Vec<Digest>, digests: Vec<Bytes>) -> Self {
        Self { octets, structure: None, digests: asked.into_iter().zip(digests).collect() }
    }

    fn digest(&self, wanted: Option<Digest>) -> Bytes {
        let found = self.digests.iter().find(|(digest, _)| Some(*digest) == wanted);
        found.expect("digests() tells what the items need").1.clone()
    }

    fn structure(&mut self) -> &Part {
        self.structure.get_or_insert_with(|| mime::walk(&self.octets))
    }

    fn header(&self) -> Bytes {
        self.octets.slice(..mime::header_end(&self.octets).unwrap_or(self.octets.len()))
    }
}

/// Writes `* n FETCH (...)`. `force_flags`, `force_mod_seq`: items that are answered without having been asked for.
pub(crate) fn write(
    out: &mut Out,
    number: u32,
    message: &Message,
    items: &[FetchItem],
    force: Force,
    source: Option<&mut Source>,
) {
    put!(out, "* {number} FETCH (");
    let mut source = source;
    let mut first = true;
    for item in items {
        if !std::mem::take(&mut first) {
            out.put(b" ");
        }
        write_item(out, message, item, source.as_deref_mut());
    }
    for (forced, item) in [(force.flags, FetchItem::Flags), (force.mod_seq, FetchItem::ModSeq)] {
        if forced && !items.contains(&item) {
            if !std::mem::take(&mut first) {
                out.put(b" ");
            }
            write_item(out, message, &item, None);
        }
    }
    out.put(b")\r\n");
}

/// Items that are answered without having been asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Force {
    pub(crate) flags: bool,
    pub(crate) mod_seq: bool,
}

fn write_item(out: &mut Out, message: &Message, item: &FetchItem, source: Option<&mut Source>) {
    match (item, source) {
        (FetchItem::Flags, _) => {
            out.put(b"FLAGS ");
            response::flags(out, &message.flags);
        }
        (FetchItem::InternalDate, _) => {
            put!(out, "INTERNALDATE \"{}\"", date::internal_date(message.internal_date))
        }
        (FetchItem::Size, _) => put!(out, "RFC822.SIZE {}", message.size),
        (FetchItem::Uid, _) => put!(out, "UID {}", message.uid),
        (FetchItem::ModSeq, _) => put!(out, "MODSEQ ({})", message.mod_seq),
        (FetchItem::Envelope | FetchItem::Body | FetchItem::BodyStructure, Some(source)) => {
            out.text(match item {
                FetchItem::Envelope => "ENVELOPE ",
                FetchItem::Body => "BODY ",
                _ => "BODYSTRUCTURE ",
            });
            out.slice(source.digest(digest_of(item)));
        }
        (FetchItem::Section(section), Some(source)) => {
            out.text(&section.label);
            out.put(b" ");
            match select(section, source) {
                None => nil(out),
                Some(octets) => response::literal(out, partial(octets, section.partial)),
            }
        }
        (_, None) => unreachable!("need() tells that {item:?} wants the message"),
    }
}

/// RFC 9051 6.4.5.1: beyond the end there is nothing, which is no error.
fn partial(octets: Bytes, range: Option<(u32, u32)>) -> Bytes {
    let Some((offset, length)) = range else { return octets };
    let start = (offset as usize).min(octets.len());
    let end = start.saturating_add(length as usize).min(octets.len());
    octets.slice(start..end)
}

/// The octets of a section. None: there is no such part.
fn select(section: &BodySection, source: &mut Source) -> Option<Bytes> {
    let octets = source.octets.clone();
    if section.path.is_empty() {
        return Some(match &section.text {
            SectionText::Whole | SectionText::Mime => octets,
            SectionText::Header => source.header(),
            SectionText::Fields { names, not } => filter(&source.header(), names, *not),
            SectionText::Text => octets.slice(mime::header_end(&octets).unwrap_or(octets.len())..),
        });
    }
    let part = find(source.structure(), &section.path)?;
    let inner = match &part.content {
        Content::Message(inner) => Some(inner.as_ref()),
        _ => None,
    };
    Some(match &section.text {
        SectionText::Whole => octets.slice(part.body.clone()),
        SectionText::Mime => octets.slice(part.header.clone()),
        // RFC 9051 6.4.5.1: HEADER and TEXT are of the message that lies in the part.
        SectionText::Header => octets.slice(inner?.header.clone()),
        SectionText::Fields { names, not } => filter(&octets[inner?.header.clone()], names, *not),
        SectionText::Text => octets.slice(inner?.body.clone()),
    })
}

/// RFC 9051 6.4.5.1: part numbers go through the message that lies in a message/rfc822 as if it were the part; the only
/// part of what is no multipart is 1.
fn find<'a>(message: &'a Part, path: &[u32]) -> Option<&'a Part> {
    let mut part = message;
    let mut enclosed = true;
    for &number in path {
        if let Content::Message(inner) = &part.content
            && !enclosed
        {
            part = inner;
            enclosed = true;
        }
        match &part.content {
            Content::Multipart(parts) => {
                part = parts.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
                enclosed = false;
            }
            _ if enclosed && number == 1 => enclosed = false,
            _ => return None,
        }
    }
    Some(part)
}

/// The fields of these names (or all others) with the empty line at the end. RFC 9051 6.4.5.1.
fn filter(header: &[u8], names: &[String], not: bool) -> Bytes {
    let mut out = Vec::new();
    for (name, whole) in mime::fields(header) {
        if names.iter().any(|wanted| wanted.as_bytes().eq_ignore_ascii_case(name)) != not {
            out.extend_from_slice(whole);
        }
    }
    out.extend_from_slice(b"\r\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"Subject: out\r\nTo: a@x,\r\n b@x\r\nX-A: 1\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n\
--o\r\nX-P: 1\r\n\r\none\r\n--o\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n\
--i\r\n\r\nin one\r\n--i\r\n\r\nin two\r\n--i--\r\n--o\r\nContent-Type: message/rfc822\r\n\r\nSubject: flat\r\n\r\nflat body\r\n--o--\r\n";

    fn section(path: &[u32], text: SectionText) -> Option<String> {
        let section =
            BodySection { label: String::new(), peek: true, path: path.to_vec(), text, partial: None };
        let found = select(&section, &mut Source::new(Bytes::from_static(MESSAGE), Vec::new(), Vec::new()));
        found.map(|octets| String::from_utf8(octets.to_vec()).unwrap())
    }

    #[test]
    fn sections_are_the_octets_of_their_parts() {
        use SectionText::{Header, Mime, Text, Whole};
        let got = |path: &[u32], text| section(path, text).unwrap();
        assert_eq!(got(&[], Whole).as_bytes(), MESSAGE);
        assert_eq!(got(&[], Header) + &got(&[], Text), got(&[], Whole));
        assert_eq!(got(&[1], Whole), "one");
        assert_eq!(got(&[1], Mime), "X-P: 1\r\n\r\n");
        assert_eq!(got(&[2], Mime), "Content-Type: message/rfc822\r\n\r\n");
        assert!(got(&[2], Header).starts_with("Subject: in\r\n"));
        assert_eq!(got(&[2, 2], Whole), "in two");
        assert_eq!(got(&[3, 1], Whole), "flat body");
        assert_eq!(got(&[3], Text), "flat body");
        assert_eq!(got(&[3], Whole), "Subject: flat\r\n\r\nflat body");
        for path in [&[4][..], &[1, 1], &[2, 3], &[3, 2], &[3, 1, 1]] {
            assert_eq!(section(path, Whole), None, "{path:?}");
        }
        assert_eq!(section(&[1], Header), None);
    }

    #[test]
    fn the_only_part_of_a_plain_message_is_one() {
        let mut source =
            Source::new(Bytes::from_static(b"Subject: x\r\n\r\nbody\r\n"), Vec::new(), Vec::new());
        let part = find(source.structure(), &[1]).cloned().unwrap();
        assert_eq!(&source.octets[part.body], b"body\r\n");
        assert!(find(source.structure(), &[2]).is_none() && find(source.structure(), &[1, 1]).is_none());
    }

    #[test]
    fn header_fields_are_filtered_with_their_folded_lines() {
        let names = vec!["TO".to_owned(), "SUBJECT".to_owned()];
        let got = section(&[], SectionText::Fields { names: names.clone(), not: false }).unwrap();
        assert_eq!(got, "Subject: out\r\nTo: a@x,\r\n b@x\r\n\r\n");
        let got = section(&[], SectionText::Fields { names, not: true }).unwrap();
        assert_eq!(got, "X-A: 1\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n");
    }

    #[test]
    fn partial_ranges_end_where_the_octets_end() {
        let octets = Bytes::from_static(b"0123456789");
        assert_eq!(partial(octets.clone(), Some((8, 100))).as_ref(), b"89");
        assert_eq!(partial(octets.clone(), Some((u32::MAX, u32::MAX))).as_ref(), b"");
        assert_eq!(partial(octets, Some((2, 3))).as_ref(), b"234");
    }

    #[test]
    fn only_what_is_needed_is_asked_for() {
        let body = |partial| {
            FetchItem::Section(BodySection {
                label: String::new(),
                peek: true,
                path: vec![],
                text: SectionText::Whole,
                partial,
            })
        };
        assert_eq!(need(&[FetchItem::Flags, FetchItem::Uid]), Need::Nothing);
        let envelope = [FetchItem::Flags, FetchItem::Envelope, FetchItem::Envelope];
        assert_eq!((need(&envelope), digests(&envelope)), (Need::Nothing, vec![Digest::Envelope]));
        assert_eq!(need(&[body(Some((5, 10)))]), Need::Prefix(15));
        assert_eq!(need(&[body(None)]), Need::Whole);
    }
}
