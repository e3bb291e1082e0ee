//! IDLE. RFC 2177, RFC 9051 6.3.13.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{Done, Reply, Session, Stop};
use crate::{Closed, Mailbox};

/// Least time between two looks at the folder, for a backend that wakes too often or cannot be asked.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// Most time between two looks at a folder that cannot be asked.
const MOST_PAUSE: Duration = Duration::from_secs(5);

impl Session {
    pub(super) async fn idle(&mut self, mailbox: Arc<dyn Mailbox>) -> Done {
        self.connection.out.line("+ idling");
        let until = Instant::now() + self.shared.config.limits.idle;
        let mut pause = Duration::ZERO;
        loop {
            pause = self.look(&mailbox, pause).await?;
            self.connection.flush().await?;
            if let Some(line) = self.connection.framer.next_line() {
                return match line {
                    Ok(line) if line.eq_ignore_ascii_case(b"DONE") => Ok(Reply::ok("done")),
                    Ok(_) => Err(Reply::bad("IDLE ends with DONE").into()),
                    Err(why) => Err(self.bye(why).into()),
                };
            }
            self.wait(&mailbox, until, pause).await?;
        }
    }

    /// Tells what changed. Answers how long to pause before the next look.
    async fn look(&mut self, mailbox: &Arc<dyn Mailbox>, pause: Duration) -> Result<Duration, Stop> {
        let before = self.view.as_ref().map(|view| view.folder.highest_mod_seq);
        match self.sync(mailbox, true).await {
            Ok(()) => {
                let after = self.view.as_ref().map(|view| view.folder.highest_mod_seq);
                Ok(if before == after { LEAST_PAUSE } else { Duration::ZERO })
            }
            Err(Stop::Closed(closed)) => Err(closed.into()),
            // The folder cannot be asked at the moment; the client need not know.
            Err(Stop::Refused(_)) => Ok((pause * 2).clamp(LEAST_PAUSE, MOST_PAUSE)),
        }
    }

    /// Waits for the client, for a change or for the time to show a sign of life.
    async fn wait(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        until: Instant,
        pause: Duration,
    ) -> Result<(), Closed> {
        let sign = Instant::now() + self.shared.config.limits.idle_sign;
        let watched = self.view.as_ref().map(|view| (view.folder.id, view.folder.highest_mod_seq));
        // Longer than the sign of life, so that it is the one that ends the wait.
        let at_most = self.shared.config.limits.idle_sign * 2;
        let change = async {
            sleep(pause).await;
            match watched {
                Some((folder, since)) => mailbox.wait(folder, since, at_most).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = self.connection.read(until) => return read,
            changed = timeout_at(sign, change) => {
                if changed.is_err() {
                    self.connection.out.line("* OK still here");
                }
            }
        }
        Ok(())
    }
}
