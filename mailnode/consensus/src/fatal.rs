//! How the node learns that a group has to stop: its state machine or its log failed, and going on would not be safe.

use std::sync::Arc;

use tokio::sync::watch;

/// Carries the first reason to stop to whoever waits for one.
#[derive(Debug, Clone)]
pub(crate) struct Fatal(Arc<watch::Sender<Option<String>>>);

impl Fatal {
    pub(crate) fn new() -> Fatal {
        Fatal(Arc::new(watch::Sender::new(None)))
    }

    pub(crate) fn report(&self, reason: String) {
        tracing::error!(%reason, "consensus must stop");
        self.0.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(reason);
            first
        });
    }

    /// The first reason, once there is one.
    pub(crate) async fn reported(&self) -> String {
        let mut reason = self.0.subscribe();
        loop {
            if let Some(reason) = reason.borrow_and_update().clone() {
                return reason;
            }
            if reason.changed().await.is_err() {
                // Cannot be: the sender lives in self.
                std::future::pending::<()>().await;
            }
        }
    }
}
