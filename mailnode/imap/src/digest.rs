//! Digests: ENVELOPE, BODY and BODYSTRUCTURE as they stand in an answer. Mail lists are made of them, and a message never
//! changes: so they are computed once, by whoever keeps the message, and kept with it.

use crate::{envelope, mime, response::Out, structure};

/// Goes up when the octets of a digest change for the same message.
pub const DIGEST_VERSION: u8 = 1;
/// Octets of a message that mostly hold its header.
const HEADER_PREFIX: u32 = 16 * 1024;

/// What can be asked of a message without its octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Digest {
    /// RFC 9051 7.5.2, ENVELOPE.
    Envelope = 1,
    /// BODY: the structure without extension data.
    Body = 2,
    /// BODYSTRUCTURE.
    BodyStructure = 3,
}

impl Digest {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Envelope, Self::Body, Self::BodyStructure];

    /// The number under which it is kept.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// How many octets from the start of a message are enough for most; None: it takes all.
    pub fn prefix(self) -> Option<u32> {
        match self {
            Self::Envelope => Some(HEADER_PREFIX),
            Self::Body | Self::BodyStructure => None,
        }
    }

    /// Computes it. `whole`: whether these are all octets of the message; None: they are not enough.
    pub fn compute(self, octets: &[u8], whole: bool) -> Option<Vec<u8>> {
        let mut out = Out::default();
        match self {
            Self::Envelope => {
                let header = match mime::header_end(octets) {
                    Some(end) => &octets[..end],
                    None if whole => octets,
                    None => return None,
                };
                envelope::write(&mut out, header);
            }
            Self::Body | Self::BodyStructure if !whole => return None,
            Self::Body => structure::write(&mut out, octets, &mime::walk(octets), false),
            Self::BodyStructure => structure::write(&mut out, octets, &mime::walk(octets), true),
        }
        Some(out.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_takes_the_whole_header_and_a_structure_the_whole_message() {
        let message = b"Subject: x\r\nTo: a@b\r\n\r\nbody";
        let envelope = Digest::Envelope.compute(message, true).unwrap();
        assert_eq!(Digest::Envelope.compute(&message[..24], false), Some(envelope));
        assert_eq!(Digest::Envelope.compute(&message[..20], false), None);
        assert!(Digest::Envelope.compute(&message[..20], true).is_some());
        assert_eq!(Digest::BodyStructure.compute(message, false), None);
        let extended = Digest::BodyStructure.compute(message, true).unwrap();
        assert!(extended.len() > Digest::Body.compute(message, true).unwrap().len());
    }
}
