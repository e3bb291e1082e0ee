//! `ExportMailbox`: a mailbox as it is at one instant, as a stream. Read from a replica of this node, or from the node
//! that holds one.

use std::{collections::HashMap, ops::ControlFlow, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use quorumail_consensus::GroupId;
use quorumail_proto::admin::{
    ExportItem, ExportMailboxRequest, ExportTotals, MailMessage, admin_client::AdminClient, export_item::Item,
};
use quorumail_store::{Export, ExportedMessage, FolderInfo, MailboxId, MessageMeta, Store, StoreError, Uid};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{AdminService, WITHIN, mailbox};
use crate::channels;

/// Bytes of a body in one item.
const PIECE_BYTES: usize = 256 * 1024;
/// Items that are read ahead of the caller.
const READ_AHEAD: usize = 8;
/// For the caller to take an item: while it reads, bodies stay where they are and take disk.
const STALLED: Duration = Duration::from_secs(300);

/// The items of an export.
pub(super) type Items = Pin<Box<dyn Stream<Item = Result<ExportItem, Status>> + Send>>;

pub(super) async fn run(service: &AdminService, request: ExportMailboxRequest) -> Result<Items, Status> {
    let (group, id) = mailbox::place(&service.groups, &request.address).await?;
    if !service.groups.consensus.holds(group) {
        return elsewhere(service, group, request).await;
    }
    let permit = mailbox::room()?;
    let current = service.groups.consensus.catch_up(group, WITHIN).await;
    current.map_err(|error| Status::unavailable(format!("the partition cannot be read: {error}")))?;
    let (send, receive) = mpsc::channel(READ_AHEAD);
    let (store, runtime) = (service.groups.store.clone(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let sender = Sender { send, runtime };
        match walk(&store, group, id, &request, &sender) {
            Ok(()) | Err(Stop::Gone) => {}
            Err(Stop::Failed(status)) => drop(sender.send(Err(status))),
        }
    });
    Ok(Box::pin(ReceiverStream::new(receive)))
}

/// From a node that holds a replica: the leader, as far as it is known.
async fn elsewhere(
    service: &AdminService,
    group: GroupId,
    mut request: ExportMailboxRequest,
) -> Result<Items, Status> {
    if request.forwarded {
        return Err(Status::unavailable(
            "the node that was asked for the mailbox does not hold it; try again",
        ));
    }
    request.forwarded = true;
    let consensus = &service.groups.consensus;
    let placed = consensus.placements().remove(&group);
    let mut nodes: Vec<u64> = consensus.leader(group).into_iter().collect();
    nodes.extend(placed.into_iter().flat_map(|placed| placed.voters));
    nodes.retain(|node| *node != service.node);
    let topology = consensus.watch_topology().borrow().clone();
    let mut last = Status::unavailable("no node is known that holds the mailbox; try again");
    let mut tried = Vec::new();
    for node in nodes {
        let Some(peer) = topology.nodes.iter().find(|peer| peer.id == node && !tried.contains(&peer.id))
        else {
            continue;
        };
        tried.push(node);
        let channel = match channels::channel(&service.tls, &peer.admin) {
            Ok(channel) => channel,
            Err(error) => {
                last = Status::unavailable(error.to_string());
                continue;
            }
        };
        let mut client = AdminClient::new(channel);
        let asked = tokio::time::timeout(WITHIN, client.export_mailbox(request.clone())).await;
        match asked.unwrap_or_else(|_| Err(Status::unavailable("a node did not answer in time"))) {
            Ok(answer) => return Ok(Box::pin(answer.into_inner().map(|item| item.map_err(relayed)))),
            Err(status) if status.code() == tonic::Code::NotFound => return Err(relayed(status)),
            Err(status) => last = relayed(status),
        }
    }
    Err(last)
}

/// Another node's words without its metadata.
fn relayed(status: Status) -> Status {
    Status::new(status.code(), status.message())
}

enum Stop {
    /// The caller went away, or did not take anything for too long.
    Gone,
    Failed(Status),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a mailbox could not be exported");
        // Another replica may have what this one's disk lost.
        Self::Failed(Status::unavailable(format!("the mailbox cannot be read on this node: {error}")))
    }
}

struct Sender {
    send: mpsc::Sender<Result<ExportItem, Status>>,
    runtime: Handle,
}

impl Sender {
    fn send(&self, item: Result<ExportItem, Status>) -> Result<(), Stop> {
        let sent = async { tokio::time::timeout(STALLED, self.send.send(item)).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stop::Gone),
        }
    }

    fn item(&self, item: Item) -> Result<(), Stop> {
        self.send(Ok(ExportItem { item: Some(item) }))
    }
}

/// Sends everything that was asked for.
fn walk(
    store: &Store,
    group: GroupId,
    mailbox: MailboxId,
    request: &ExportMailboxRequest,
    sender: &Sender,
) -> Result<(), Stop> {
    let Some(export) = store.export(group.0)? else {
        return sender.item(Item::Totals(ExportTotals::default()));
    };
    let folders = chosen(export.folders(mailbox)?, &request.folders).map_err(Stop::Failed)?;
    let before: HashMap<_, _> =
        request.before.iter().map(|known| ((known.folder.as_str(), known.uid_validity), known.uid)).collect();
    let first = |info: &FolderInfo| {
        let known = before.get(&(info.name.as_str(), info.uid_validity.0)).copied().unwrap_or(0);
        known.checked_add(1).map(Uid)
    };
    sender.item(Item::Totals(totals(&export, mailbox, &folders, &first)?))?;
    for info in &folders {
        sender.item(Item::Folder(mailbox::folder_out(info)))?;
        let Some(from) = first(info) else { continue };
        let mut stopped = None;
        export.messages(mailbox, info.id, from, &mut |message| match send_message(&message, sender) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(stop) => {
                stopped = Some(stop);
                Ok(ControlFlow::Break(()))
            }
        })?;
        if let Some(stop) = stopped {
            return Err(stop);
        }
    }
    Ok(())
}

fn chosen(folders: Vec<FolderInfo>, names: &[String]) -> Result<Vec<FolderInfo>, Status> {
    if names.is_empty() {
        return Ok(folders);
    }
    let is = |info: &FolderInfo, name: &String| {
        info.name == *name || (info.name == "INBOX" && name.eq_ignore_ascii_case("INBOX"))
    };
    if let Some(name) = names.iter().find(|name| !folders.iter().any(|info| is(info, name))) {
        return Err(Status::not_found(format!("the mailbox has no folder {name:?}")));
    }
    Ok(folders.into_iter().filter(|info| names.iter().any(|name| is(info, name))).collect())
}

fn totals(
    export: &Export<'_>,
    mailbox: MailboxId,
    folders: &[FolderInfo],
    first: &dyn Fn(&FolderInfo) -> Option<Uid>,
) -> Result<ExportTotals, StoreError> {
    let folder_count = u32::try_from(folders.len()).unwrap_or(u32::MAX);
    let mut totals = ExportTotals { folders: folder_count, ..ExportTotals::default() };
    for info in folders {
        match first(info) {
            Some(Uid(1)) => {
                totals.messages += u64::from(info.messages);
                totals.bytes += info.bytes;
            }
            Some(from) => export.messages(mailbox, info.id, from, &mut |message| {
                totals.messages += 1;
                totals.bytes += u64::from(message.meta.size);
                Ok(ControlFlow::Continue(()))
            })?,
            None => {}
        }
    }
    Ok(totals)
}

fn send_message(message: &ExportedMessage<'_>, sender: &Sender) -> Result<(), Stop> {
    sender.item(Item::Message(message_out(&message.meta)))?;
    let mut stopped = None;
    message.body.pieces(&mut |piece| {
        for part in piece.chunks(PIECE_BYTES) {
            if let Err(stop) = sender.item(Item::Body(part.to_vec())) {
                stopped = Some(stop);
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    stopped.map_or(Ok(()), Err)
}

fn message_out(meta: &MessageMeta) -> MailMessage {
    MailMessage {
        uid: meta.uid.0,
        flags: meta.flags.iter().map(|flag| flag.0.clone()).collect(),
        internal_date: meta.internal_date.0,
        size: meta.size.into(),
        mod_seq: meta.mod_seq.0,
        source: Vec::new(),
    }
}
