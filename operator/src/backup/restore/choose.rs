//! Which backup a restore is made from.

use std::collections::BTreeMap;

use quorumail_backup::{BackupId, BackupInfo, Manifest, Repository};

use super::{RestoreError, RestoreRequest, Which};

/// Reads the manifest that is asked for.
pub(super) async fn choose(
    repository: &Repository,
    request: &RestoreRequest,
) -> Result<Manifest, RestoreError> {
    if let Which::Backup(name) = &request.which {
        let id: BackupId = name.parse().map_err(|_| RestoreError::NoBackup(format!(" {name}")))?;
        return Ok(repository.manifest(&id).await?);
    }
    let listing = repository.list().await?;
    let of_cluster = of_one_cluster(&listing.backups, request.cluster.as_deref())?;
    let newest = *of_cluster.first().ok_or_else(|| {
        RestoreError::NoBackup(
            request.cluster.as_ref().map(|name| format!(" of cluster {name}")).unwrap_or_default(),
        )
    })?;
    match request.until {
        Some(until) => Ok(repository.for_instant(&newest.cluster.uid, until).await?),
        None => Ok(repository.manifest(&newest.id).await?),
    }
}

/// The backups of the cluster that is named, or of the only one that there is; newest first.
pub(crate) fn of_one_cluster<'b>(
    backups: &'b [BackupInfo],
    named: Option<&str>,
) -> Result<Vec<&'b BackupInfo>, RestoreError> {
    let is_named = |info: &&BackupInfo| {
        named.is_none_or(|named| info.cluster.uid == named || info.cluster.name == named)
    };
    let mut found: Vec<&BackupInfo> = backups.iter().filter(is_named).collect();
    found.sort_by(|a, b| b.started.cmp(&a.started).then_with(|| b.id.to_string().cmp(&a.id.to_string())));
    let mut newest: BTreeMap<&str, &BackupInfo> = BTreeMap::new();
    for info in &found {
        newest.entry(&info.cluster.uid).or_insert(info);
    }
    if newest.len() > 1 {
        let one = |info: &&BackupInfo| {
            let name = if info.cluster.name.is_empty() { "no name" } else { &info.cluster.name };
            format!("{} ({name}, newest backup {})", info.cluster.uid, info.id)
        };
        return Err(RestoreError::Ambiguous(newest.values().map(one).collect::<Vec<_>>().join("; ")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use quorumail_backup::{Cluster, Counts, Trigger};
    use quorumail_store::Timestamp;

    use super::*;

    fn backup(id: &str, uid: &str, started: i64) -> BackupInfo {
        BackupInfo {
            id: id.parse().unwrap(),
            cluster: Cluster { name: format!("name-{uid}"), namespace: String::new(), uid: uid.to_owned() },
            started: Timestamp(started),
            finished: Timestamp(started + 1),
            parent: None,
            trigger: Trigger::Manual(String::new()),
            groups: 1,
            counts: Counts::default(),
            uploaded_bytes: 0,
            version: String::new(),
            key_id: String::new(),
        }
    }

    #[test]
    fn the_newest_comes_first_and_clusters_are_not_mixed() {
        let backups = [
            backup("20261125T174800Z-aaaaaa", "one", 1),
            backup("20261125T174900Z-aaaaaa", "one", 2),
            backup("20261125T175000Z-aaaaaa", "two", 3),
        ];
        let error = of_one_cluster(&backups, None).unwrap_err().to_string();
        assert!(error.contains("one (name-one") && error.contains("20261125T175000Z"), "{error}");
        for name in ["one", "name-one"] {
            let found = of_one_cluster(&backups, Some(name)).unwrap();
            assert_eq!(found.iter().map(|info| info.started.0).collect::<Vec<_>>(), [2, 1]);
        }
        assert!(of_one_cluster(&backups, Some("three")).unwrap().is_empty());
    }
}
