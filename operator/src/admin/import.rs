//! Calls for imports: what a folder remembers, and the stream that mail goes into a mailbox by.

use std::time::Duration;

use quorumail_proto::admin::{FindImportedRequest, ImportItem, ImportResult};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{AdminClient, AdminError, READ_DEADLINE, streaming_failure, timed};

/// A node that has messages and answers none of them for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a stream ended too early.
#[derive(Debug)]
pub(crate) enum ImportFailure {
    /// Another node, or the same one later, may do better.
    Again(String),
    /// The mailbox takes nothing.
    Refused(String),
}

impl AdminClient {
    /// Which sources a folder remembers, in the order asked; at most 1,000.
    pub async fn find_imported(
        &self,
        address: &str,
        folder: &str,
        sources: &[[u8; 16]],
    ) -> Result<Vec<bool>, AdminError> {
        let request = FindImportedRequest {
            address: address.to_owned(),
            folder: folder.to_owned(),
            sources: sources.iter().map(|source| source.to_vec()).collect(),
        };
        let (node, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.find_imported(request).await }
            })
            .await?;
        if answer.known.len() != sources.len() {
            let message = format!("{} answers for {} sources", answer.known.len(), sources.len());
            return Err(AdminError::Contract { node: self.nodes[node].address.clone(), message });
        }
        Ok(answer.known)
    }

    /// Sends items to the `turn`th mailnode from that which answered last, and hands its answers to `take` until they end.
    /// `waits`: whether an answer is due.
    pub(crate) async fn import_mailbox<E: From<ImportFailure>>(
        &self,
        turn: usize,
        items: mpsc::Receiver<ImportItem>,
        waits: impl Fn() -> bool,
        mut take: impl FnMut(ImportResult) -> Result<(), E>,
    ) -> Result<(), E> {
        let (node, mut client) =
            self.streaming(turn).ok_or_else(|| ImportFailure::Again("there is no mailnode".to_owned()))?;
        let broken = |status: Status| match streaming_failure(node, &status) {
            (true, text) => ImportFailure::Again(text),
            (false, text) => ImportFailure::Refused(text),
        };
        let begun = timeout(SILENCE, client.import_mailbox(ReceiverStream::new(items))).await;
        let begun = begun.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")));
        let mut results = begun.map_err(broken)?.into_inner();
        loop {
            match timeout(SILENCE, results.message()).await {
                Ok(Ok(Some(result))) => take(result)?,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(status)) => return Err(broken(status).into()),
                // Nothing to answer: where the mail comes from is slow.
                Err(_) if !waits() => {}
                Err(_) => return Err(ImportFailure::Again(format!("{node}: silent for {SILENCE:?}")).into()),
            }
        }
    }
}
