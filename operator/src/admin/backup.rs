//! Calls for backups: a group's backup on the node that is asked, and queue entries that come back.

use std::{sync::atomic::Ordering, time::Duration};

use quorumail_proto::admin::{
    self, BackupGroupProgress, BackupGroupRequest, RestoreListMembersRequest, RestoreListPostRequest,
    RestoreQueueEntryRequest,
};
use tonic::{Code, Status, transport::Channel};

use super::{AdminClient, AdminError, Grpc, WRITE_DEADLINE, grpc, is_elsewhere, timed, words};

/// A node tells twice a second that it is at work; one that is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes of a body in one message.
const PIECE: usize = 1 << 20;

/// Why a node did not back a group up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupFailure {
    /// Another replica, or the same one later, may do better.
    Here(String),
    /// All would answer the same.
    Everywhere(String),
}

impl AdminClient {
    /// Has one node back its replica of a group up; answers the group's manifest. Dropped, the work there ends.
    pub async fn backup_group(
        &self,
        node: usize,
        request: BackupGroupRequest,
        progress: &(dyn Fn(&BackupGroupProgress) + Send + Sync),
    ) -> Result<Vec<u8>, GroupFailure> {
        let Some(node) = self.nodes.get(node) else {
            return Err(GroupFailure::Here(format!("there is no mailnode {node}")));
        };
        let judge = |status: Status| failure(&node.address, &status);
        let silent = |_| GroupFailure::Here(format!("{}: silent for {SILENCE:?}", node.address));
        let mut node = grpc(node);
        let begun = tokio::time::timeout(SILENCE, node.backup_group(request)).await.map_err(silent)?;
        let mut told = begun.map_err(judge)?.into_inner();
        loop {
            let message = tokio::time::timeout(SILENCE, told.message()).await.map_err(silent)?;
            match message.map_err(judge)? {
                Some(message) if !message.done.is_empty() => {
                    progress(&message);
                    return Ok(message.done);
                }
                Some(message) => progress(&message),
                None => return Err(judge(Status::unknown("it ended without a result"))),
            }
        }
    }

    /// A mailnode for calls that stream both ways, the `turn`th one from that which answered last, and its address.
    pub(crate) fn streaming(&self, turn: usize) -> Option<(&str, Grpc<Channel>)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let node = self.nodes.get(first.wrapping_add(turn) % self.nodes.len().max(1))?;
        Some((&node.address, grpc(node)))
    }

    /// Puts an entry of a backup's queue back, held; whether it was not there.
    pub async fn restore_queue_entry(
        &self,
        entry: admin::QueueEntry,
        body: &[u8],
        eight_bit: bool,
    ) -> Result<bool, AdminError> {
        let first = RestoreQueueEntryRequest { entry: Some(entry), body: Vec::new(), eight_bit };
        let pieces = body
            .chunks(PIECE)
            .map(|piece| RestoreQueueEntryRequest { body: piece.to_vec(), ..Default::default() });
        let messages: Vec<_> = std::iter::once(first).chain(pieces).collect();
        let (_, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(tokio_stream::iter(messages.clone()), deadline);
                async move { node.restore_queue_entry(request).await }
            })
            .await?;
        Ok(answer.added)
    }

    /// Remembers again what a backup knows of a list's addresses, at most 1,000; of how many nothing was remembered.
    pub async fn restore_list_members(&self, request: RestoreListMembersRequest) -> Result<u32, AdminError> {
        let (_, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.restore_list_members(request).await }
            })
            .await?;
        Ok(answer.restored)
    }

    /// Puts a post of a backup back, waiting for a moderator; whether it was not there.
    pub async fn restore_list_post(
        &self,
        first: RestoreListPostRequest,
        body: &[u8],
    ) -> Result<bool, AdminError> {
        let pieces = body
            .chunks(PIECE)
            .map(|piece| RestoreListPostRequest { body: piece.to_vec(), ..Default::default() });
        let messages: Vec<_> = std::iter::once(first).chain(pieces).collect();
        let (_, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(tokio_stream::iter(messages.clone()), deadline);
                async move { node.restore_list_post(request).await }
            })
            .await?;
        Ok(answer.added)
    }
}

fn failure(node: &str, status: &Status) -> GroupFailure {
    let text = format!("{node}: {}", words(status));
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => GroupFailure::Everywhere(text),
        _ => GroupFailure::Here(text),
    }
}

/// Whether a call that streams may be made again, at any node; and what went wrong.
pub(crate) fn streaming_failure(node: &str, status: &Status) -> (bool, String) {
    (is_elsewhere(status), format!("{node}: {}", words(status)))
}
