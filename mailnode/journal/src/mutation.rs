//! Deliberate faults, for the simulation to find: a check of the simulation, not of the journal.
//!
//! Without the feature `simulation` there is no switch, and [`is`] is a constant that the compiler takes out together with
//! the fault. With it, nothing is done wrong until `switch` is called. The crates above have their places for faults, too;
//! the switch is here because all of them can see it.

#[cfg(feature = "simulation")]
use std::cell::Cell;

/// What may be done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Those who wait are told before the sync.
    AcknowledgeBeforeSync,
    /// The last entry of every log is forgotten when the node starts.
    ForgetLastEntryAtStart,
    /// A vote is given before it is on disk.
    VoteBeforeSync,
    /// A repeated command takes effect again.
    ForgetCommandIds,
    /// A leader answers reads without asking whether it still leads.
    ReadWithoutMajority,
    /// A replica that has lost its disk votes at once.
    VoteOnEmptyDisk,
    /// A replica that has lost its disk takes entries from any leader, deposed ones as well.
    FollowOnEmptyDisk,
    /// A command is applied before this node's own disk has it.
    ApplyBeforeDurable,
    /// A leader that crashed goes on in its old term.
    LeadAgainAfterCrash,
    /// That a part of the log was cut off is not written down.
    ForgetTruncation,
    /// The log is purged before the state machine is durable.
    PurgeBeforeCheckpoint,
    /// A segment is given back before it is durable that its bodies lie elsewhere.
    RecycleBeforeCheckpoint,
    /// The scrubber calls a rotten record good.
    CallRotGood,
}

#[cfg(feature = "simulation")]
impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 13] = [
        Mutation::AcknowledgeBeforeSync,
        Mutation::ForgetLastEntryAtStart,
        Mutation::VoteBeforeSync,
        Mutation::ForgetCommandIds,
        Mutation::ReadWithoutMajority,
        Mutation::VoteOnEmptyDisk,
        Mutation::FollowOnEmptyDisk,
        Mutation::ApplyBeforeDurable,
        Mutation::LeadAgainAfterCrash,
        Mutation::ForgetTruncation,
        Mutation::PurgeBeforeCheckpoint,
        Mutation::RecycleBeforeCheckpoint,
        Mutation::CallRotGood,
    ];
}

#[cfg(feature = "simulation")]
thread_local! {
    static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// From now on this thread does that wrong, and nothing else.
#[cfg(feature = "simulation")]
pub fn switch(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

/// Whether this thread is to do that wrong.
#[cfg(feature = "simulation")]
pub fn is(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// Never: a build without the feature does nothing wrong on purpose.
#[cfg(not(feature = "simulation"))]
pub const fn is(_: Mutation) -> bool {
    false
}
