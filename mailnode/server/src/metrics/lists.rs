//! What mailing lists count, over all lists.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::{Maker, Metrics};

/// What came of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostOutcome {
    /// All members have their copies in the queue.
    Distributed,
    /// It waits for a moderator.
    Held,
    /// Its sender was told that the list does not take it.
    Refused,
}

/// Without labels that name a list: there may be many.
pub(super) struct Lists {
    posts: IntCounterVec,
    copies: IntCounter,
    archived: IntCounter,
    bounces: IntCounter,
    suspended: IntCounter,
}

impl Lists {
    pub(super) fn new(registry: &Registry) -> Self {
        let make = Maker { registry, protocol: "list" };
        let plain = |name: &str, help: &str| make.counter(name, help, &[]).with_label_values::<&str>(&[]);
        Self {
            posts: make.counter(
                "posts_total",
                "Messages to mailing lists, by what came of them.",
                &["outcome"],
            ),
            copies: plain("copies_total", "Copies for members that were queued."),
            archived: plain("archived_total", "Messages put into archives."),
            bounces: plain("bounces_total", "Reports of a lasting failure that came back from members."),
            suspended: plain(
                "suspended_total",
                "Members that get nothing any more because their mail came back.",
            ),
        }
    }
}

impl Metrics {
    /// Something came of a message to a list.
    pub fn list_post(&self, outcome: PostOutcome) {
        let outcome = match outcome {
            PostOutcome::Distributed => "distributed",
            PostOutcome::Held => "held",
            PostOutcome::Refused => "refused",
        };
        self.lists.posts.with_label_values(&[outcome]).inc();
    }

    /// So many copies of a post were queued.
    pub fn list_copies(&self, copies: usize) {
        self.lists.copies.inc_by(copies as u64);
    }

    /// A post was put into an archive.
    pub fn list_archived(&self) {
        self.lists.archived.inc();
    }

    /// Mail came back from a member, which may get nothing any more for it.
    pub fn list_bounce(&self, suspended: bool) {
        self.lists.bounces.inc();
        self.lists.suspended.inc_by(u64::from(suspended));
    }
}
