//! Mailing lists, as people see them and act on them.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::Arc,
};

use futures::{StreamExt as _, TryStreamExt as _};
use quorumail_message::Address;
use quorumail_proto::admin::{
    ActOnListRequest, GetHeldPostRequest, GetHeldPostResponse, GetListsRequest, HeldPost, ListMemberState,
    ListState, RememberedAddress, RestoreListMembersRequest, RestoreListPostRequest,
    act_on_list_request::Action, list_member::Role,
};
use quorumail_store::{
    ListPost, ListRecord, ListRole, PostState, QueueId, Refusal, SUSPENDING_BOUNCES, Subscriber,
    SubscriberChange,
};
use tonic::{Status, Streaming};

use super::{backup, failed, unreadable};
use crate::{
    groups::{self, CommandFailure},
    lists::{ListFailure, Lists, policy},
};

/// Octets of a held message that are shown.
const SHOWN: usize = 1024 * 1024;
/// Things that one call acts on.
const MAX_SUBJECTS: usize = 1000;
/// Characters of what is for people of a post that is put back.
const MAX_TEXT: usize = 320;
/// Addresses that are put back at a time.
const RESTORED_AT_ONCE: usize = 32;

fn not_done(failure: ListFailure) -> Status {
    match failure {
        ListFailure::Refused(_, _, text) | ListFailure::Full(text) => Status::failed_precondition(text),
        ListFailure::Unavailable(text) => Status::unavailable(text),
    }
}

async fn named(lists: &Lists, text: &str) -> Result<Arc<ListRecord>, Status> {
    let address: Address =
        text.parse().map_err(|error| Status::invalid_argument(format!("{text:?}: {error}")))?;
    lists.groups().directory_is_current().await.map_err(unreadable)?;
    let found = lists.groups().directory().list_named(&address);
    found.ok_or_else(|| Status::not_found(format!("there is no mailing list {address}")))
}

/// All lists, or those that are named.
pub(super) async fn states(lists: &Lists, request: GetListsRequest) -> Result<Vec<ListState>, Status> {
    let directory = lists.groups().directory();
    let asked = if request.addresses.is_empty() {
        directory.lists()
    } else {
        let parsed = request.addresses.iter().filter_map(|text| text.parse::<Address>().ok());
        parsed.filter_map(|address| directory.list_named(&address)).collect()
    };
    let mut states = Vec::with_capacity(asked.len());
    for record in asked {
        let remembered = lists.subscribers(&record).await.map_err(not_done)?;
        let posts = lists.posts(&record).await.map_err(not_done)?;
        states.push(state(&record, &remembered, &posts, request.members));
    }
    Ok(states)
}

fn state(record: &ListRecord, remembered: &[Subscriber], posts: &[ListPost], members: bool) -> ListState {
    let held: Vec<HeldPost> = posts.iter().filter_map(held_out).collect();
    let addresses = |wanted: &dyn Fn(&Subscriber) -> bool| -> Vec<String> {
        let found = remembered.iter().filter(|subscriber| wanted(subscriber));
        found.map(|subscriber| subscriber.address.to_string()).collect()
    };
    let count = policy::recipients(record, remembered).len();
    ListState {
        address: record.address.to_string(),
        members: u32::try_from(count).unwrap_or(u32::MAX),
        expanding: u32::try_from(posts.len() - held.len()).unwrap_or(u32::MAX),
        held,
        bouncing: addresses(&|subscriber| subscriber.suspended.is_some()),
        asking: addresses(&|subscriber| subscriber.asked.is_some()),
        all: if members { all_members(record, remembered) } else { Vec::new() },
    }
}

fn all_members(record: &ListRecord, remembered: &[Subscriber]) -> Vec<ListMemberState> {
    let listed = record.members.iter().map(|member| {
        let role = match member.role {
            ListRole::Member => Role::Member,
            ListRole::Moderator => Role::Moderator,
            ListRole::Owner => Role::Owner,
        };
        let address = member.address.to_string();
        (member.address.key(), ListMemberState { address, role: role.into(), ..ListMemberState::default() })
    });
    let mut all: BTreeMap<String, ListMemberState> = listed.collect();
    for subscriber in remembered {
        let is_listed = all.contains_key(&subscriber.address.key());
        if !is_listed && subscriber.joined.is_none() {
            continue;
        }
        let entry = all.entry(subscriber.address.key()).or_insert_with(|| ListMemberState {
            address: subscriber.address.to_string(),
            role: Role::Member.into(),
            ..ListMemberState::default()
        });
        entry.joined = subscriber.joined.is_some();
        entry.left = subscriber.left.is_some();
        entry.bounces = subscriber.bounces;
        entry.suspended = subscriber.suspended.is_some();
    }
    all.into_values().collect()
}

fn held_out(post: &ListPost) -> Option<HeldPost> {
    let PostState::Held(reason) = &post.state else { return None };
    Some(HeldPost {
        id: post.id.to_string(),
        author: post.author.clone(),
        subject: post.subject.clone(),
        arrived_at: post.arrived.0,
        size: post.size.into(),
        reason: reason.clone(),
    })
}

fn parse_id(text: &str) -> Result<QueueId, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} names no held message")))
}

/// One held post with its message.
pub(super) async fn held(lists: &Lists, request: GetHeldPostRequest) -> Result<GetHeldPostResponse, Status> {
    let record = named(lists, &request.list).await?;
    let found = lists.post_body(&record, parse_id(&request.id)?).await.map_err(not_done)?;
    let held = found.and_then(|(post, body)| Some((held_out(&post)?, body)));
    let (post, body) = held.ok_or_else(|| Status::not_found("no such message waits"))?;
    Ok(GetHeldPostResponse { post: Some(post), body: body.slice(..body.len().min(SHOWN)).into() })
}

/// How many were changed.
pub(super) async fn act(lists: &Lists, request: ActOnListRequest) -> Result<u32, Status> {
    let action = request.action();
    if request.subjects.len() > MAX_SUBJECTS {
        return Err(Status::invalid_argument(format!("at most {MAX_SUBJECTS} at a time")));
    }
    let record = named(lists, &request.list).await?;
    let mut changed = 0;
    for subject in &request.subjects {
        let done = match action {
            Action::Unspecified => return Err(Status::invalid_argument("no action was named")),
            Action::Resume => resume(lists, &record, subject).await?,
            Action::Approve | Action::Refuse => {
                decide(lists, &record, subject, action == Action::Approve).await?
            }
        };
        changed += u32::from(done);
    }
    Ok(changed)
}

async fn remembered(
    lists: &Lists,
    record: &ListRecord,
    text: &str,
    wanted: impl Fn(&Subscriber) -> bool,
) -> Result<Option<Address>, Status> {
    let address: Address =
        text.parse().map_err(|error| Status::invalid_argument(format!("{text:?}: {error}")))?;
    let known = lists.subscribers(record).await.map_err(not_done)?;
    let found = known.iter().any(|subscriber| subscriber.address == address && wanted(subscriber));
    Ok(found.then_some(address))
}

async fn resume(lists: &Lists, record: &ListRecord, text: &str) -> Result<bool, Status> {
    let Some(address) = remembered(lists, record, text, |known| known.bounces > 0).await? else {
        return Ok(false);
    };
    let id = groups::random_queue_id();
    lists.change(record, id, &address, SubscriberChange::Resume).await.map_err(not_done)?;
    Ok(true)
}

async fn decide(lists: &Lists, record: &ListRecord, text: &str, approve: bool) -> Result<bool, Status> {
    if text.contains('@') {
        let Some(asker) = remembered(lists, record, text, |known| known.asked.is_some()).await? else {
            return Ok(false);
        };
        let id = groups::random_queue_id();
        lists.answer_asker(record, &asker, approve, id).await.map_err(not_done)?;
        return Ok(true);
    }
    match lists.decide(record, parse_id(text)?, approve).await {
        Ok(()) => Ok(true),
        Err(CommandFailure::Refused(Refusal::NotFound(_))) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// What has to happen with an address of which nothing is known for it to be remembered as it was.
fn changes(known: &RememberedAddress) -> Vec<SubscriberChange> {
    let mut changes = Vec::new();
    if known.joined {
        changes.push(SubscriberChange::Join { listed: false });
    }
    if known.left {
        changes.push(SubscriberChange::Leave { listed: true });
    }
    if known.asked {
        changes.push(SubscriberChange::Ask);
    }
    changes.extend((0..known.bounces.min(SUSPENDING_BOUNCES)).map(|_| SubscriberChange::Bounce));
    changes
}

/// Of how many addresses something is remembered that was not.
pub(super) async fn restore_members(
    lists: &Lists,
    request: RestoreListMembersRequest,
) -> Result<u32, Status> {
    if request.addresses.len() > MAX_SUBJECTS {
        return Err(Status::invalid_argument(format!("at most {MAX_SUBJECTS} at a time")));
    }
    let record = named(lists, &request.list).await?;
    let there = lists.subscribers(&record).await.map_err(not_done)?;
    let there: HashSet<String> = there.iter().map(|subscriber| subscriber.address.key()).collect();
    let mut wanted = Vec::new();
    for known in &request.addresses {
        let address: Address = known
            .address
            .parse()
            .map_err(|error| Status::invalid_argument(format!("{:?}: {error}", known.address)))?;
        if !there.contains(&address.key()) {
            wanted.push((address, changes(known)));
        }
    }
    let restored = futures::stream::iter(wanted.into_iter().map(|(address, changes)| {
        let record = &record;
        async move {
            for change in &changes {
                let id = groups::random_queue_id();
                lists.change(record, id, &address, *change).await.map_err(not_done)?;
            }
            Ok::<_, Status>(u32::from(!changes.is_empty()))
        }
    }));
    restored.buffer_unordered(RESTORED_AT_ONCE).try_fold(0, |sum, one| async move { Ok(sum + one) }).await
}

/// Whether the list did not have it.
pub(super) async fn restore_post(
    lists: &Lists,
    mut stream: Streaming<RestoreListPostRequest>,
) -> Result<bool, Status> {
    let mut first =
        stream.message().await?.ok_or_else(|| Status::invalid_argument("the request is empty"))?;
    let post = first.post.take().ok_or_else(|| Status::invalid_argument("the first message has no post"))?;
    let body = backup::rest_of(mem::take(&mut first.body), stream, |more| more.body).await?;
    let record = named(lists, &first.list).await?;
    let post = ListPost {
        id: parse_id(&post.id)?,
        list: record.id,
        state: PostState::Held(shortened(&post.reason)),
        author: shortened(&post.author),
        subject: shortened(&post.subject),
        arrived: groups::now(),
        // The store puts in the length of the body.
        size: 0,
        eight_bit: first.eight_bit,
    };
    match lists.keep(&record, post, groups::random_command(), body).await {
        Ok(()) => Ok(true),
        Err(CommandFailure::Refused(Refusal::AlreadyExists(_))) => Ok(false),
        Err(failure) => Err(failed(failure)),
    }
}

/// As the store wants what is for people.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_remembered_as_it_was() {
        let known = RememberedAddress { joined: true, bounces: 2, ..RememberedAddress::default() };
        let bounce = SubscriberChange::Bounce;
        assert_eq!(changes(&known), [SubscriberChange::Join { listed: false }, bounce, bounce]);
        let known = RememberedAddress { left: true, asked: true, ..RememberedAddress::default() };
        assert_eq!(changes(&known), [SubscriberChange::Leave { listed: true }, SubscriberChange::Ask]);
        let known = RememberedAddress { bounces: u32::MAX, ..RememberedAddress::default() };
        assert_eq!(changes(&known).len(), SUSPENDING_BOUNCES as usize);
    }
}
