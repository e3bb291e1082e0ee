//! Queue entries of a backup: they come back held, so that a restore never sends old mail a second time unasked.

use std::ops::ControlFlow;

use bytes::Bytes;
use quorumail_proto::admin;
use quorumail_store::{Export, ExportedBody, QueueEntry, Store, StoreError};
use tokio::sync::mpsc;

use super::{RestoreError, Tally};
use crate::admin::{AdminClient, AdminError};

/// Entries with their bodies that are read and not yet written.
const AHEAD: usize = 2;

/// Something with a body, and why that cannot be read.
type Read<T> = Result<(T, Result<Bytes, String>), RestoreError>;
/// Where what is found goes; breaks when nobody wants more.
type Sink<'a, T> = dyn FnMut(T, ExportedBody<'_>) -> ControlFlow<()> + 'a;

/// Puts the entries of all groups back.
pub(super) async fn restore(
    client: &AdminClient,
    store: &Store,
    groups: &[u32],
    tally: &Tally<'_>,
) -> Result<(), RestoreError> {
    for group in groups {
        let mut entries =
            read(store, *group, |export, found| export.queue(&mut |(entry, body)| Ok(found(entry, body))));
        while let Some(read) = entries.recv().await {
            let (entry, body) = read?;
            let name = format!("queue entry {}", entry.id);
            let body = match body {
                Ok(body) => body,
                Err(reason) => {
                    tally.problem(format!("{name}: {reason}"));
                    continue;
                }
            };
            let eight_bit = entry.eight_bit;
            match client.restore_queue_entry(to_wire(*group, entry), &body, eight_bit).await {
                Ok(added) => tally.add(|restored| restored.queued += u64::from(added)),
                Err(AdminError::Refused { message, .. }) => tally.problem(format!("{name}: {message}")),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// What a walk over a group finds, with the bodies, a few ahead.
pub(super) fn read<T: Send + 'static>(
    store: &Store,
    group: u32,
    walk: impl FnOnce(&Export<'_>, &mut Sink<'_, T>) -> Result<(), StoreError> + Send + 'static,
) -> mpsc::Receiver<Read<T>> {
    let (send, found) = mpsc::channel::<Read<T>>(AHEAD);
    let store = store.clone();
    tokio::task::spawn_blocking(move || {
        let mut sink = |thing: T, body: ExportedBody<'_>| {
            let body = body.read().map_err(|error| error.to_string());
            match send.blocking_send(Ok((thing, body))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let walked = store.export(group).and_then(|export| match export {
            None => Ok(()),
            Some(export) => walk(&export, &mut sink),
        });
        if let Err(error) = walked {
            // Nobody listens any more, or is about to hear it.
            let _ = send.blocking_send(Err(error.into()));
        }
    });
    found
}

fn to_wire(group: u32, entry: QueueEntry) -> admin::QueueEntry {
    let recipients = entry.recipients.into_iter().map(|recipient| admin::QueueRecipient {
        address: recipient.address.to_string(),
        class: admin::QueueClass::Held.into(),
        attempts: recipient.attempts,
        next_attempt_at: recipient.next_attempt.0,
        last_error: recipient.last_error,
    });
    admin::QueueEntry {
        id: entry.id.to_string(),
        reverse_path: entry.reverse_path.map(|address| address.to_string()).unwrap_or_default(),
        arrived_at: entry.arrived.0,
        size: entry.size.into(),
        recipients: recipients.collect(),
        partition: group,
    }
}
