//! Whether a post goes to the members, waits for a moderator, or is refused; and who the members are. Pure.

use std::collections::HashMap;

use quorumail_message::Address;
use quorumail_store::{ListRecord, ListRole, Posting, Subscriber};

/// What happens with a post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It goes to the members.
    Relay,
    /// It waits for a moderator, for this reason.
    Hold(String),
    /// Only owners may post.
    Refuse,
}

/// What the author of a post is to the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody, or somebody who is not shown to be who they say.
    Stranger,
    /// One of the members.
    Member(ListRole),
}

/// What an address is to the list, with what is remembered of it.
pub fn standing(list: &ListRecord, address: &Address, remembered: Option<&Subscriber>) -> Standing {
    let has_left = remembered.is_some_and(|subscriber| subscriber.left.is_some());
    match list.member(address) {
        // Who decides on posts does so whether or not they get them.
        Some(member) if !has_left || member.role != ListRole::Member => Standing::Member(member.role),
        _ if remembered.is_some_and(|subscriber| subscriber.joined.is_some()) => {
            Standing::Member(ListRole::Member)
        }
        _ => Standing::Stranger,
    }
}

/// Decides on a post of `size` bytes.
pub fn judge(list: &ListRecord, author: Standing, size: usize) -> Judgement {
    let decides = matches!(author, Standing::Member(ListRole::Moderator | ListRole::Owner));
    let may = match (list.posting, author) {
        (Posting::Anyone, _) | (_, Standing::Member(ListRole::Owner)) => true,
        (Posting::Owners, _) => return Judgement::Refuse,
        (Posting::Members, Standing::Member(_)) => true,
        (Posting::Moderated, _) => decides,
        (Posting::Members, Standing::Stranger) => false,
    };
    if !may {
        let why = match list.posting {
            Posting::Moderated => "every message to this list is looked at",
            _ => "the author is not a member",
        };
        return Judgement::Hold(why.to_owned());
    }
    if list.max_bytes != 0 && size as u64 > list.max_bytes && !decides {
        return Judgement::Hold(format!("the message has {size} bytes, and {} are the most", list.max_bytes));
    }
    Judgement::Relay
}

/// To whom a post goes, by [`Address::key`], each once.
pub fn recipients(list: &ListRecord, remembered: &[Subscriber]) -> Vec<(String, Address)> {
    let known: HashMap<String, &Subscriber> =
        remembered.iter().map(|subscriber| (subscriber.address.key(), subscriber)).collect();
    let wants = |subscriber: &Subscriber| subscriber.left.is_none() && subscriber.suspended.is_none();
    let listed = list.members.iter().map(|member| (member.address.key(), member.address.clone()));
    let listed = listed.filter(|(key, _)| known.get(key).is_none_or(|subscriber| wants(subscriber)));
    let joined = remembered.iter().filter(|subscriber| subscriber.joined.is_some() && wants(subscriber));
    let joined = joined.map(|subscriber| (subscriber.address.key(), subscriber.address.clone()));
    let mut all: Vec<_> = listed.chain(joined).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.dedup_by(|a, b| a.0 == b.0);
    all
}

#[cfg(test)]
mod tests {
    use quorumail_store::Timestamp;

    use super::*;
    use crate::lists::testkit::list;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn remembered(text: &str, change: impl FnOnce(&mut Subscriber)) -> Subscriber {
        let mut subscriber = Subscriber::new(address(text));
        change(&mut subscriber);
        subscriber
    }

    #[test]
    fn posting_is_what_the_list_says() {
        use ListRole::{Member, Moderator, Owner};
        let [stranger, member, moderator, owner] = [
            Standing::Stranger,
            Standing::Member(Member),
            Standing::Member(Moderator),
            Standing::Member(Owner),
        ];
        let cases = [
            (Posting::Anyone, [true, true, true, true]),
            (Posting::Members, [false, true, true, true]),
            (Posting::Moderated, [false, false, true, true]),
            (Posting::Owners, [false, false, false, true]),
        ];
        for (posting, expected) in cases {
            let list = ListRecord { posting, ..list() };
            let found = [stranger, member, moderator, owner]
                .map(|author| judge(&list, author, 1) == Judgement::Relay);
            assert_eq!(found, expected, "{posting:?}");
            let refused = judge(&list, stranger, 1) == Judgement::Refuse;
            assert_eq!(refused, posting == Posting::Owners);
        }
    }

    #[test]
    fn what_is_too_large_waits_unless_a_moderator_wrote_it() {
        let list = ListRecord { posting: Posting::Anyone, max_bytes: 100, ..list() };
        let large = |author| judge(&list, author, 101);
        assert!(matches!(large(Standing::Stranger), Judgement::Hold(why) if why.contains("101 bytes")));
        assert_eq!(large(Standing::Member(ListRole::Moderator)), Judgement::Relay);
        assert_eq!(judge(&list, Standing::Stranger, 100), Judgement::Relay);
    }

    #[test]
    fn who_left_or_is_suspended_gets_nothing_and_who_joined_does() {
        let now = Some(Timestamp(1));
        let known = [
            remembered("alice@example.org", |s| s.left = now),
            remembered("dora@example.net", |s| s.joined = now),
            remembered("adam@example.net", |s| (s.joined, s.suspended) = (now, now)),
            remembered("zoe@example.net", |s| s.asked = now),
        ];
        let found: Vec<_> = recipients(&list(), &known).into_iter().map(|(key, _)| key).collect();
        assert_eq!(found, ["bob@example.org", "carol@example.org", "dora@example.net"]);
        assert_eq!(standing(&list(), &known[0].address, Some(&known[0])), Standing::Stranger);
        assert_eq!(standing(&list(), &known[1].address, Some(&known[1])), Standing::Member(ListRole::Member));
        assert_eq!(standing(&list(), &address("carol@example.org"), None), Standing::Member(ListRole::Owner));
    }
}
