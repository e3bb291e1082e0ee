//! What mailing lists know besides their records: who joined or left by mail, whose mail came back, and messages on their way.
//! Those come back waiting for a moderator, so that a restore never sends old mail a second time unasked.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use quorumail_proto::admin::{
    HeldPost, RememberedAddress, RestoreListMembersRequest, RestoreListPostRequest,
};
use quorumail_store::{ListId, ListPost, ListRecord, PostState, Store, Subscriber};

use super::{RestoreError, Tally, queue};
use crate::admin::{AdminClient, AdminError};

/// Addresses in one call.
const ADDRESSES: usize = 1000;
/// Why a message waits that was on its way to the members.
const WAS_SENT: &str = "it was on its way to the members when it was backed up, and some may have it";

/// Puts back what the lists know.
pub(super) async fn restore(
    client: &AdminClient,
    store: &Store,
    lists: &[Arc<ListRecord>],
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    for list in lists {
        restore_members(client, store, list, tally).await?;
    }
    let by_id: HashMap<ListId, &ListRecord> = lists.iter().map(|list| (list.id, &**list)).collect();
    let homes: BTreeSet<u32> = lists.iter().map(|list| list.partition.0).collect();
    for group in homes {
        restore_posts(client, store, group, &by_id, tally).await?;
    }
    Ok(())
}

async fn restore_members(
    client: &AdminClient,
    store: &Store,
    list: &ListRecord,
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    let (reads, group, id) = (store.clone(), list.partition.0, list.id);
    let found = tokio::task::spawn_blocking(move || {
        reads.export(group).and_then(|export| export.map_or(Ok(Vec::new()), |export| export.subscribers(id)))
    });
    let found = found.await.expect("a read does not panic")?;
    for some in found.chunks(ADDRESSES) {
        let request = RestoreListMembersRequest {
            list: list.address.to_string(),
            addresses: some.iter().map(remembered).collect(),
        };
        match client.restore_list_members(request).await {
            Ok(restored) => tally.add(|sum| sum.remembered += u64::from(restored)),
            Err(AdminError::Refused { message, .. }) => {
                tally.problem(format!("members of mailing list {}: {message}", list.address));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn restore_posts(
    client: &AdminClient,
    store: &Store,
    group: u32,
    lists: &HashMap<ListId, &ListRecord>,
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    let mut posts =
        queue::read(store, group, |export, found| export.posts(&mut |(post, body)| Ok(found(post, body))));
    while let Some(read) = posts.recv().await {
        let (post, body): (ListPost, _) = read?;
        // Of a list that was deleted, or is not meant.
        let Some(list) = lists.get(&post.list) else { continue };
        let name = format!("message {} to mailing list {}", post.id, list.address);
        let body = match body {
            Ok(body) => body,
            Err(reason) => {
                tally.problem(format!("{name}: {reason}"));
                continue;
            }
        };
        match client.restore_list_post(to_wire(list, post), &body).await {
            Ok(added) => tally.add(|restored| restored.posts += u64::from(added)),
            Err(AdminError::Refused { message, .. }) => tally.problem(format!("{name}: {message}")),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn remembered(subscriber: &Subscriber) -> RememberedAddress {
    RememberedAddress {
        address: subscriber.address.to_string(),
        joined: subscriber.joined.is_some(),
        left: subscriber.left.is_some(),
        asked: subscriber.asked.is_some(),
        bounces: subscriber.bounces,
    }
}

fn to_wire(list: &ListRecord, post: ListPost) -> RestoreListPostRequest {
    let reason = match post.state {
        PostState::Held(reason) => reason,
        PostState::Expanding(_) => WAS_SENT.to_owned(),
    };
    let held = HeldPost {
        id: post.id.to_string(),
        author: post.author,
        subject: post.subject,
        arrived_at: post.arrived.0,
        size: post.size.into(),
        reason,
    };
    RestoreListPostRequest {
        list: list.address.to_string(),
        post: Some(held),
        body: Vec::new(),
        eight_bit: post.eight_bit,
    }
}

#[cfg(test)]
mod tests {
    use quorumail_store::{ListSecret, PartitionId, Posting, QueueId, Subscription, Timestamp};

    use super::*;

    fn list() -> ListRecord {
        ListRecord {
            id: ListId(7),
            address: "announce@example.org".parse().unwrap(),
            partition: PartitionId(1),
            members: Vec::new(),
            posting: Posting::Members,
            subject_prefix: String::new(),
            reply_to_list: false,
            subscription: Subscription::Open,
            max_bytes: 0,
            secret: ListSecret([7; 32]),
            revision: String::new(),
        }
    }

    #[test]
    fn what_was_on_its_way_waits_and_says_why() {
        let post = |state| ListPost {
            id: QueueId(1),
            list: ListId(7),
            state,
            author: "a@example.org".to_owned(),
            subject: "hello".to_owned(),
            arrived: Timestamp(5),
            size: 9,
            eight_bit: true,
        };
        let reason = |state| to_wire(&list(), post(state)).post.unwrap().reason;
        assert_eq!(reason(PostState::Held("not a member".to_owned())), "not a member");
        assert_eq!(reason(PostState::Expanding(Some("b@example.org".to_owned()))), WAS_SENT);
    }
}
