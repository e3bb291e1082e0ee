//! Tokens in the addresses of a list's mail: only who has the list's secret can make them, and nothing has to be
//! remembered for them. BLAKE3, keyed, in base32 (RFC 4648 6) in lower case, since local parts are compared without case.

use quorumail_message::{Address, list};
use quorumail_store::{ListRecord, QueueId, Timestamp};

/// Characters of a token: 80 bits.
const LENGTH: usize = 16;
/// Characters of the hour in the token of a confirmation: 30 bits.
const HOUR: usize = 6;
/// For so many hours what was asked can be confirmed.
const CONFIRM_HOURS: i64 = 72;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What a person confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To become a member.
    Join,
    /// To be one no more.
    Leave,
}

impl Asked {
    fn letter(self) -> char {
        match self {
            Self::Join => 'j',
            Self::Leave => 'l',
        }
    }
}

fn base32(bytes: &[u8], length: usize) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| (byte >> (7 - at % 8)) & 1);
    let digit = |number: usize| (0..5).fold(0, |digit, at| (digit << 1) | bit(number * 5 + at));
    (0..length).map(|number| char::from(ALPHABET[usize::from(digit(number))])).collect()
}

fn make(list: &ListRecord, purpose: &str, what: &str) -> String {
    let mut hasher = blake3::Hasher::new_keyed(&list.secret.0);
    // A NUL is in no address.
    hasher.update(purpose.as_bytes()).update(&[0]).update(what.as_bytes());
    base32(hasher.finalize().as_bytes(), LENGTH)
}

/// Without telling by its time how much of it is right.
fn is(found: &str, right: &str) -> bool {
    let (found, right) = (blake3::hash(found.as_bytes()), blake3::hash(right.as_bytes()));
    found == right
}

/// Names a member in the address that its bounces come back to.
pub fn bounces(list: &ListRecord, member: &Address) -> Address {
    let token = make(list, "bounces", &member.key());
    list::bounce_address(&list.address, member, &token[..list::BOUNCE_TOKEN], &token)
}

/// The member that a bounce address names. `others`: who may be meant besides those of the record.
pub fn bounced<'a>(
    list: &'a ListRecord,
    token: &str,
    others: impl Iterator<Item = &'a Address>,
) -> Option<Address> {
    match list::bounced(token)? {
        list::Bounced::Member(member, short) => {
            let right = make(list, "bounces", &member.key());
            is(&short, &right[..list::BOUNCE_TOKEN]).then_some(member)
        }
        list::Bounced::Token(long) => {
            let known = list.members.iter().map(|member| &member.address).chain(others);
            let mut meant = known.filter(|address| is(&long, &make(list, "bounces", &address.key())));
            meant.next().cloned()
        }
    }
}

/// Names the queue entry of one member's copy: the same however often it is made, and nobody else can make one. Mail from
/// elsewhere may come with a bounce address as its reverse-path (it is in every copy), and must not be signed for that.
pub fn copy_id(list: &ListRecord, post: QueueId, member: &Address) -> QueueId {
    let key = member.key();
    let derived = super::derive("copy", post, &format!("{} {key}", list.id));
    let high = u64::try_from(derived >> 64).expect("a number of 64 bits");
    QueueId(u128::from(high) << 64 | u128::from(copy_check(list, high, &key)))
}

fn copy_check(list: &ListRecord, high: u64, key: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(&list.secret.0);
    hasher.update(b"copy").update(&[0]).update(&high.to_be_bytes()).update(key.as_bytes());
    let hash = hasher.finalize();
    let (low, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_be_bytes(*low)
}

/// Whether a queue entry is a copy of one of the list's posts for this member.
pub fn is_copy(list: &ListRecord, entry: QueueId, member: &Address) -> bool {
    let high = u64::try_from(entry.0 >> 64).expect("a number of 64 bits");
    QueueId(u128::from(high) << 64 | u128::from(copy_check(list, high, &member.key()))) == entry
}

/// With which a moderator decides on a post.
pub fn of_post(list: &ListRecord, post: QueueId) -> String {
    make(list, "post", &post.to_string())
}

/// With which a copy's reader leaves.
pub fn of_leaving(list: &ListRecord, member: &Address) -> String {
    make(list, "leaving", &member.key())
}

/// Whether a link in a copy for this member has it.
pub fn is_of_leaving(list: &ListRecord, member: &Address, token: &str) -> bool {
    is(token, &of_leaving(list, member))
}

/// With which a moderator decides on who asked to become a member.
pub fn of_asker(list: &ListRecord, asker: &Address) -> String {
    make(list, "asker", &asker.key())
}

fn hour(now: Timestamp) -> i64 {
    now.0.div_euclid(3_600_000)
}

fn confirmation_at(list: &ListRecord, asked: Asked, who: &Address, hour: i64) -> String {
    let letter = asked.letter();
    let bytes = (hour << 34).to_be_bytes();
    let right = make(list, "confirm", &format!("{letter}{hour} {}", who.key()));
    format!("{letter}{}{right}", base32(&bytes, HOUR))
}

/// With which the person at this address confirms what was asked in its name.
pub fn confirmation(list: &ListRecord, asked: Asked, who: &Address, now: Timestamp) -> String {
    confirmation_at(list, asked, who, hour(now))
}

/// What is confirmed; none when the token is not for this address, or too old.
pub fn confirmed(list: &ListRecord, token: &str, who: &Address, now: Timestamp) -> Option<Asked> {
    let asked = [Asked::Join, Asked::Leave].into_iter().find(|asked| token.starts_with(asked.letter()))?;
    let now = hour(now);
    let hours = now - CONFIRM_HOURS..=now + 1;
    hours.into_iter().any(|hour| is(token, &confirmation_at(list, asked, who, hour))).then_some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::testkit::list;

    #[test]
    fn tokens_are_for_one_address_one_list_and_one_purpose() {
        let (list, alice, bob) =
            (list(), "alice@example.org".parse().unwrap(), "bob@example.org".parse().unwrap());
        let other = ListRecord { secret: quorumail_store::ListSecret([8; 32]), ..list.clone() };
        let asker = of_asker(&list, &alice);
        assert_eq!(asker, of_asker(&list, &alice));
        let leaving = of_leaving(&list, &alice);
        assert!(is_of_leaving(&list, &alice, &leaving) && leaving != asker);
        assert!(!is_of_leaving(&list, &bob, &leaving) && !is_of_leaving(&other, &alice, &leaving));
        assert!(asker != of_asker(&list, &bob) && asker != of_asker(&other, &alice));
        assert_ne!(of_post(&list, QueueId(1)), of_post(&list, QueueId(2)));
    }

    #[test]
    fn a_confirmation_holds_for_three_days_and_for_who_asked() {
        let (list, alice): (_, Address) = (list(), "alice@example.org".parse().unwrap());
        let (now, hour) = (Timestamp(1_700_000_000_000), 3_600_000);
        let token = confirmation(&list, Asked::Leave, &alice, now);
        let at = |hours: i64| confirmed(&list, &token, &alice, now.plus_millis(hours * hour));
        assert_eq!((at(0), at(71), at(74)), (Some(Asked::Leave), Some(Asked::Leave), None));
        assert_eq!(confirmed(&list, &token, &"bob@example.org".parse().unwrap(), now), None);
        assert_eq!(confirmed(&list, "", &alice, now), None);
        // The longest list has room for it.
        assert!(token.len() + "-confirm+".len() + list::MAX_LIST_LOCAL <= 64);
    }

    #[test]
    fn copies_are_known_by_their_number() {
        let (list, alice): (_, Address) = (list(), "alice@example.org".parse().unwrap());
        let id = copy_id(&list, QueueId(9), &alice);
        assert_eq!(id, copy_id(&list, QueueId(9), &"Alice@Example.org".parse().unwrap()));
        assert!(is_copy(&list, id, &alice) && !is_copy(&list, QueueId(id.0 ^ 1), &alice));
        assert!(!is_copy(&list, id, &"bob@example.org".parse().unwrap()));
        assert_ne!(id, copy_id(&list, QueueId(10), &alice));
    }

    #[test]
    fn bounces_name_their_member() {
        let (list, alice): (_, Address) = (list(), "alice@example.org".parse().unwrap());
        let token = |address: Address| address.local().split_once('+').unwrap().1.to_owned();
        let found = token(bounces(&list, &alice));
        assert_eq!(bounced(&list, &found, std::iter::empty()), Some(alice.clone()));
        assert_eq!(bounced(&list, &found.replace("alice", "bob"), std::iter::empty()), None);
        let long: Address = format!("{}@example.net", "a".repeat(60)).parse().unwrap();
        let found = token(bounces(&list, &long));
        assert_eq!(bounced(&list, &found, std::iter::once(&long)), Some(long.clone()));
        assert_eq!(bounced(&list, &found, std::iter::once(&alice)), None);
    }
}
