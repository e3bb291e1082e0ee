//! The format level of the cluster: one number for all that nodes write to disk and tell each other.
//!
//! A program knows a range of levels. The one in use is raised once every node of the topology runs a program that knows the
//! next: the node that plans (see [`crate::coordinator`]) has the leaders of the partitions write a mark into their logs,
//! and when all stand there, the directory's. So whoever sees the mark in the directory knows that it stands in every log,
//! and may propose what is of that level. A replica applies each command at the level that stood when it was appended.
//!
//! There is no way back. Before a node takes anything of a higher level it notes that durably
//! ([`StateMachine::reach_level`](crate::StateMachine::reach_level)), and a program that does not know what was noted there
//! refuses to start before it opens anything. One that meets a higher level with other nodes ends at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::join_all;
use quorumail_proto::peer::RaiseRequest;
use tokio::time::timeout;

use crate::machine::{GroupId, NodeId};
use crate::node::Inner;
use crate::runtime::offload;
use crate::types::Command;

/// What stands in a log before its first mark.
pub const FIRST_LEVEL: u32 = 1;
/// The levels that this version reads and writes. See `docs/reference/formats.md` for what each one is made of.
pub const LEVELS: Levels = Levels { min: FIRST_LEVEL, max: FIRST_LEVEL };
/// How long a mark may take to be committed.
const RAISE_WITHIN: Duration = Duration::from_secs(5);

/// The levels that a program reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

/// A level that this program does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// It was raised by a later version.
    #[error(
        "the cluster is at format level {level}, and this version of Quorumail knows levels {} to {}: run the version that \
         ran before or a later one; once a level is raised there is no way back", known.min, known.max
    )]
    Newer {
        /// The one in use.
        level: u32,
        /// Those of this program.
        known: Levels,
    },
    /// It was left behind.
    #[error(
        "the cluster is at format level {level}, and this version of Quorumail knows levels {} to {}: first run a version \
         that knows both on all nodes, until `quorumail status` shows level {}", known.min, known.max, known.min
    )]
    Older {
        /// The one in use.
        level: u32,
        /// Those of this program.
        known: Levels,
    },
}

impl Levels {
    /// Whether a program that knows these can go on with what is at a level.
    ///
    /// # Errors
    /// Naming both, and what to do.
    pub fn check(self, level: u32) -> Result<(), LevelError> {
        if level > self.max {
            return Err(LevelError::Newer { level, known: self });
        }
        if level < self.min {
            return Err(LevelError::Older { level, known: self });
        }
        Ok(())
    }
}

/// The highest level of which anything may lie on this node's disk.
#[derive(Debug)]
pub(crate) struct Reached {
    level: AtomicU32,
    /// Held while it is raised.
    turn: tokio::sync::Mutex<()>,
}

impl Reached {
    pub(crate) fn new(level: u32) -> Reached {
        Reached { level: AtomicU32::new(level), turn: tokio::sync::Mutex::default() }
    }

    pub(crate) fn level(&self) -> u32 {
        self.level.load(Ordering::Acquire)
    }
}

impl Inner {
    /// The level at which this node may propose and tell others: no log stands below it.
    pub(crate) fn level(&self) -> u32 {
        self.group(GroupId(0)).map_or(FIRST_LEVEL, |directory| directory.level())
    }

    /// To be called before anything of the level is written here.
    pub(crate) async fn reach(&self, level: u32) -> Result<(), String> {
        if level <= self.reached.level() {
            return Ok(());
        }
        self.refuse_unknown(level)?;
        let _turn = self.reached.turn.lock().await;
        if level <= self.reached.level() {
            return Ok(());
        }
        let machine = self.machine.clone();
        let noted = offload(move || machine.reach_level(level)).await.map_err(|error| error.to_string())?;
        if let Err(error) = noted {
            // Tried again with the next request; until then this replica lags behind.
            tracing::warn!(level, %error, "a higher format level could not be noted");
            return Err(error.to_string());
        }
        self.reached.level.store(level, Ordering::Release);
        tracing::info!(
            level,
            "this node takes part in a higher format level; older versions cannot use its disk any more"
        );
        Ok(())
    }

    /// Ends the node when the others are at a level that its program does not know: it must neither store nor skip what
    /// they say.
    pub(crate) fn refuse_unknown(&self, level: u32) -> Result<(), String> {
        if level <= self.config.levels.max {
            return Ok(());
        }
        let error = LevelError::Newer { level, known: self.config.levels };
        self.fatal.report(error.to_string());
        Err(error.to_string())
    }

    /// Warns of a node that cannot follow any more. It ends by itself when it hears of the level.
    pub(crate) fn note_levels(&self, node: NodeId, max: u32) {
        let level = self.reached.level();
        if max < level {
            tracing::warn!(
                node,
                level,
                knows = max,
                "a node runs a version that does not know the format level of the cluster; upgrade it"
            );
        }
    }

    /// Writes the mark into the log of a group that this node leads.
    pub(crate) async fn raise_here(&self, request: RaiseRequest) -> Result<(), String> {
        self.refuse_older(request.generation)?;
        let group = self.group(GroupId(request.group)).ok_or("the group is not held here")?;
        if group.level() >= request.level {
            return Ok(());
        }
        if !group.leads(self.config.lease()) || !self.takes_leads() {
            return Err("this node does not lead the group, or must not write".into());
        }
        self.reach(request.level).await?;
        self.rouse(&group).await;
        match timeout(RAISE_WITHIN, group.raft.client_write(Command::Level(request.level))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the mark is not committed after {RAISE_WITHIN:?}")),
        }
    }

    /// Has the groups raised to a level that all nodes know: the partitions first, and the directory once the mark stands in
    /// all of them. `levels` are those of the groups that have a leader, with that leader.
    pub(crate) async fn raise(&self, target: u32, levels: &[(GroupId, NodeId, u32)], generation: u64) {
        let below = |directory: bool| {
            levels.iter().filter(move |(group, _, level)| (group.0 == 0) == directory && *level < target)
        };
        let partitions = levels.iter().filter(|(group, _, _)| group.0 > 0).count();
        let all_marked = below(false).next().is_none() && partitions == self.config.partitions as usize;
        let asked: Vec<_> = if all_marked { below(true).collect() } else { below(false).collect() };
        let asks = asked.into_iter().map(|(group, leader, _)| {
            let request = RaiseRequest { group: group.0, generation, level: target };
            self.ask_raise(*leader, request)
        });
        for outcome in join_all(asks).await {
            if let Err(reason) = outcome {
                tracing::debug!(%reason, target, "a group's format level was not raised");
            }
        }
    }

    async fn ask_raise(&self, leader: NodeId, request: RaiseRequest) -> Result<(), String> {
        if leader == self.config.node {
            return self.raise_here(request).await;
        }
        let link = self.links.get(leader).ok_or_else(|| format!("node {leader} is not configured"))?;
        let mut client = link.client()?;
        match timeout(RAISE_WITHIN, client.raise(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(link.failed(&status)),
            Err(_) => Err(format!("no answer from node {leader}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_not_known_is_refused_with_both_and_what_to_do() {
        let known = Levels { min: 2, max: 3 };
        assert_eq!((known.check(2), known.check(3)), (Ok(()), Ok(())));
        for (level, hints) in
            [(4, ["level 4", "levels 2 to 3", "no way back"]), (1, ["level 1", "levels 2 to 3", "level 2"])]
        {
            let error = known.check(level).unwrap_err().to_string();
            for hint in hints {
                assert!(error.contains(hint), "{hint:?} is missing in: {error}");
            }
        }
    }
}
