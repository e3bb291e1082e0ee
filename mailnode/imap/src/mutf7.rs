//! Modified UTF-7: how IMAP4rev1 writes folder names outside ASCII. RFC 3501 5.1.3.

use base64::{Engine as _, alphabet, engine};

/// Base 64 with `,` for `/`, without padding. Trailing bits are checked by the round trip in [`decode`].
const BASE64: engine::GeneralPurpose = engine::GeneralPurpose::new(
    &match alphabet::Alphabet::new("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,") {
        Ok(alphabet) => alphabet,
        Err(_) => panic!("the alphabet of RFC 3501 5.1.3 has 64 different characters"),
    },
    engine::general_purpose::NO_PAD,
);

/// The name as it goes on the wire.
pub fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut run: Vec<u8> = Vec::new();
    for c in name.chars() {
        if matches!(c, ' '..='~') {
            close(&mut run, &mut out);
            out.push(c);
            if c == '&' {
                out.push('-');
            }
        } else {
            let mut units = [0u16; 2];
            for unit in c.encode_utf16(&mut units) {
                run.extend_from_slice(&unit.to_be_bytes());
            }
        }
    }
    close(&mut run, &mut out);
    out
}

fn close(run: &mut Vec<u8>, out: &mut String) {
    if !run.is_empty() {
        out.push('&');
        BASE64.encode_string(&*run, out);
        out.push('-');
        run.clear();
    }
}

/// The name that was meant. None for what no encoder writes: 8-bit or control characters, an open or damaged shift,
/// characters in base 64 that stand for themselves. Taking only one spelling of a name keeps names comparable.
pub fn decode(wire: &str) -> Option<String> {
    let mut out = String::with_capacity(wire.len());
    let mut rest = wire;
    while let Some(at) = rest.find('&') {
        let (plain, shifted) = rest.split_at(at);
        out.push_str(plain);
        let end = shifted.find('-')?;
        let encoded = &shifted[1..end];
        if encoded.is_empty() {
            out.push('&');
        } else {
            let bytes = BASE64.decode(encoded).ok()?;
            if bytes.len() % 2 != 0 {
                return None;
            }
            let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            for c in char::decode_utf16(units) {
                out.push(c.ok()?);
            }
        }
        rest = &shifted[end + 1..];
    }
    out.push_str(rest);
    (encode(&out) == wire).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples_of_the_rfc_decode() {
        assert_eq!(decode("~peter/mail/&U,BTFw-/&ZeVnLIqe-").as_deref(), Some("~peter/mail/台北/日本語"));
        assert_eq!(encode("Entwürfe & mehr"), "Entw&APw-rfe &- mehr");
        assert_eq!(decode("&Jjo-!").as_deref(), Some("☺!"));
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        for wire in ["&", "&Jjo", "&AGE-", "&U,BTFw-&ZeVnLIqe-", "ü", "a\u{7f}", "&2AA-", "&JjoB-"] {
            assert_eq!(decode(wire), None, "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn names_survive_the_round_trip(name in "\\PC{0,40}") {
            prop_assert_eq!(decode(&encode(&name)), Some(name));
        }

        #[test]
        fn decoding_never_panics(wire in "[&A-Za-z0-9+,\\- ü-]{0,40}") {
            let _ = decode(&wire);
        }
    }
}
