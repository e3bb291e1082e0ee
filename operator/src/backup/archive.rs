//! The continuous archive of a cluster: every mailnode is told where to ship what it leads, and asked how far it is.

use std::{collections::BTreeMap, time::Duration};

use quorumail_backup::RepositoryConfig;
use quorumail_proto::admin::{ArchiveRequest, ArchiveStatus};
use quorumail_store::Timestamp;

use super::take::{now, wire};
use crate::admin::{AdminClient, AdminError};

/// What the mailnodes are told.
#[derive(Debug, Clone, Copy)]
pub enum Wish<'a> {
    /// Nothing: they are only asked.
    Tell,
    /// Ship, from now on.
    Start {
        /// The repository, which must exist.
        to: &'a RepositoryConfig,
        /// Within what time what is committed is shipped.
        max_lag: Duration,
        /// They end by themselves unless they are told again within so long; none: not before they end.
        keep: Option<Duration>,
    },
    /// Ship no longer.
    Stop,
}

/// How far the archive is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archiving {
    /// Mailnodes that ship.
    pub running: u32,
    /// Mailnodes.
    pub nodes: u32,
    /// Groups that are shipped by whoever leads them.
    pub shipped: u32,
    /// Groups that there are.
    pub groups: u32,
    /// Everything acknowledged up to then is in the repository; none: that is not known of every group.
    pub through: Option<Timestamp>,
    /// For how long the oldest command has been waiting.
    pub lag: Duration,
    /// What does not go on, and mailnodes that did not answer, for people.
    pub troubles: Vec<String>,
}

impl Archiving {
    /// Whether every group is shipped, and nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.troubles.is_empty() && self.shipped == self.groups && self.running == self.nodes
    }

    /// How much would be lost with the cluster: the age of what is surely in the repository.
    pub fn age(&self) -> Option<Duration> {
        let millis = now().0.saturating_sub(self.through?.0);
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
    }
}

/// Tells every mailnode, and asks it. One that does not answer is among the troubles.
///
/// # Errors
/// When no mailnode can say what cluster this is.
pub async fn archive(admin: &AdminClient, wish: Wish<'_>) -> Result<Archiving, AdminError> {
    let cluster = admin.cluster_status().await?;
    let groups = u32::try_from(cluster.groups.len()).unwrap_or(u32::MAX);
    let request = match wish {
        Wish::Tell => ArchiveRequest::default(),
        Wish::Stop => ArchiveRequest { stop: true, ..Default::default() },
        Wish::Start { to, max_lag, keep } => ArchiveRequest {
            repository: Some(wire(to, to.limits.bytes_per_second.unwrap_or(0))),
            cluster: cluster.cluster,
            max_lag_seconds: seconds(max_lag),
            stop: false,
            keep_seconds: keep.map_or(0, seconds),
        },
    };
    let asked = (0..admin.nodes()).map(|node| {
        let request = request.clone();
        async move { (node, admin.archive(node, request).await) }
    });
    Ok(together(groups, futures::future::join_all(asked).await))
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn together(groups: u32, answers: Vec<(usize, Result<ArchiveStatus, AdminError>)>) -> Archiving {
    let nodes = u32::try_from(answers.len()).unwrap_or(u32::MAX);
    let mut all = Archiving { nodes, groups, ..Archiving::default() };
    // Of two nodes that both take themselves for a group's leader, the one that is further.
    let mut through: BTreeMap<u32, i64> = BTreeMap::new();
    for (node, answer) in answers {
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                all.troubles.push(format!("mailnode {node}: {error}"));
                continue;
            }
        };
        all.running += u32::from(status.running);
        if !status.error.is_empty() {
            all.troubles.push(format!("mailnode {node}: {}", status.error));
        }
        for group in status.groups {
            all.lag = all.lag.max(Duration::from_millis(group.lag_ms));
            let known = through.entry(group.group).or_default();
            *known = group.through_unix_ms.max(*known);
            if !group.trouble.is_empty() {
                all.troubles.push(format!("group {} on mailnode {node}: {}", group.group, group.trouble));
            }
        }
    }
    all.shipped = u32::try_from(through.len()).unwrap_or(u32::MAX);
    let earliest = through.values().copied().min().filter(|at| *at > 0);
    all.through = earliest.filter(|_| all.shipped == groups).map(Timestamp);
    all
}

#[cfg(test)]
mod tests {
    use quorumail_proto::admin::ArchivedGroup;

    use super::*;

    fn status(groups: &[(u32, i64, u64, &str)]) -> Result<ArchiveStatus, AdminError> {
        let group = |&(group, through_unix_ms, lag_ms, trouble): &(u32, i64, u64, &str)| ArchivedGroup {
            group,
            through_unix_ms,
            lag_ms,
            next_index: 7,
            trouble: trouble.to_owned(),
        };
        Ok(ArchiveStatus { running: true, groups: groups.iter().map(group).collect(), error: String::new() })
    }

    #[test]
    fn what_is_surely_archived_is_what_the_last_group_is() {
        let all = together(
            3,
            vec![(0, status(&[(0, 90, 0, ""), (1, 50, 700, "")])), (1, status(&[(2, 80, 0, "")]))],
        );
        assert!(all.is_whole());
        assert_eq!((all.through, all.lag), (Some(Timestamp(50)), Duration::from_millis(700)));
    }

    #[test]
    fn a_group_that_nobody_ships_or_nothing_is_known_of_leaves_it_open() {
        let nobody = together(3, vec![(0, status(&[(0, 90, 0, ""), (1, 50, 0, "")])), (1, status(&[]))]);
        assert!(!nobody.is_whole() && nobody.through.is_none());
        let unknown = together(2, vec![(0, status(&[(0, 90, 0, ""), (1, 0, 0, "")]))]);
        assert!(unknown.is_whole() && unknown.through.is_none());
    }

    #[test]
    fn troubles_and_silent_mailnodes_are_named() {
        let silent = AdminError::Contract { node: "n1".to_owned(), message: "silent".to_owned() };
        let all = together(2, vec![(0, status(&[(0, 9, 0, ""), (1, 9, 0, "a gap")])), (1, Err(silent))]);
        assert!(!all.is_whole());
        assert!(
            all.troubles[0].contains("group 1") && all.troubles[1].contains("mailnode 1"),
            "{:?}",
            all.troubles
        );
    }
}
