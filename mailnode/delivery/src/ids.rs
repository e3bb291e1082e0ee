//! Ids derived from what must happen only once.

use quorumail_message::Address;
use quorumail_store::{CommandId, QueueId, QueueRecipient};

fn derive(purpose: &str, queue_id: QueueId, parts: impl IntoIterator<Item = (String, u32)>) -> u128 {
    let mut hasher = blake3::Hasher::new_derive_key("quorumail delivery v1 command ids");
    hasher.update(purpose.as_bytes()).update(&[0]).update(&queue_id.0.to_be_bytes());
    for (text, number) in parts {
        // A NUL is in no address.
        hasher.update(text.as_bytes()).update(&[0]).update(&number.to_be_bytes());
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    u128::from_be_bytes(id)
}

/// For a delivery into a mailbox. The number of attempts is part of it because a refusal (the mailbox is full) is
/// remembered like any outcome: the attempt after it must be a new command. An attempt whose outcome is not known does
/// not count, so that its repetition is the same command.
pub(crate) fn deliver(queue_id: QueueId, address: &Address, attempts: u32) -> CommandId {
    CommandId(derive("deliver", queue_id, [(address.key(), attempts)]))
}

/// For queueing a report on these recipients; they are named in any order.
pub(crate) fn report(queue_id: QueueId, failed: &[QueueRecipient]) -> (QueueId, CommandId) {
    let mut parts: Vec<_> =
        failed.iter().map(|recipient| (recipient.address.key(), recipient.attempts)).collect();
    parts.sort();
    let entry = derive("report entry", queue_id, parts.clone());
    (QueueId(entry), CommandId(derive("report", queue_id, parts)))
}

#[cfg(test)]
mod tests {
    use quorumail_store::{QueueClass, Timestamp};

    use super::*;

    fn recipient(address: &str) -> QueueRecipient {
        QueueRecipient {
            address: address.parse().unwrap(),
            class: QueueClass::Remote,
            attempts: 1,
            next_attempt: Timestamp(0),
            last_error: String::new(),
        }
    }

    #[test]
    fn a_delivery_is_named_by_entry_recipient_and_attempt() {
        let (a, b): (Address, Address) = ("a@x.org".parse().unwrap(), "b@x.org".parse().unwrap());
        let id = deliver(QueueId(1), &a, 0);
        assert_eq!(id, deliver(QueueId(1), &"A@X.org".parse().unwrap(), 0));
        assert_ne!(id, deliver(QueueId(1), &b, 0));
        assert_ne!(id, deliver(QueueId(2), &a, 0));
        assert_ne!(id, deliver(QueueId(1), &a, 1));
    }

    #[test]
    fn a_report_is_named_by_its_recipients_in_any_order() {
        let (a, b) = (recipient("a@x.org"), recipient("b@x.org"));
        let both = report(QueueId(1), &[a.clone(), b.clone()]);
        assert_eq!(both, report(QueueId(1), &[b.clone(), a.clone()]));
        assert_ne!(both, report(QueueId(1), &[a]));
        assert_ne!(both.0.0, both.1.0);
    }
}
