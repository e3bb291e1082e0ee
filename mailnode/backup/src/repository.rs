//! The repository: opened with a key, and the backups in it.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use quorumail_store::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    BackupId, BackupInfo, BackupKey, BlobRef, Lease, Manifest, ManifestDraft, PackId, PackUse,
    RepositoryConfig, RepositoryError, Resources,
    background::background,
    format::{self, FORMAT, decode, encode, instant},
    keys::Slot,
    objects::{Listed, Objects},
    pack::{self, PackWriter},
    seal::{Keys, Kind, check_format},
};

const HEAD: &str = "repository.json";
/// Objects that are read at once.
pub(crate) const READS_AT_ONCE: usize = 8;
/// Longest JSON of resources, in bytes.
pub const MAX_RESOURCES: usize = 64 << 20;

/// The object `repository.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    format: u8,
    id: String,
    created: String,
    /// Tells the master key of this repository from one that lost a race to make it.
    check: String,
}

/// A repository that is open. Cheap to clone.
#[derive(Clone)]
pub struct Repository(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: RepositoryConfig,
    pub(crate) objects: Objects,
    pub(crate) keys: Keys,
    master: [u8; 32],
    id: String,
    key_id: String,
}

/// The backups of a repository.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Oldest first.
    pub backups: Vec<BackupInfo>,
    /// What looks like a backup and cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// A manifest that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The name of the object, below `backups/`.
    pub id: String,
    /// Why.
    pub reason: String,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.0.id)
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens the repository, and makes it when there is none.
    ///
    /// # Errors
    /// See [`RepositoryError`]; each says what to do.
    pub async fn create_or_open(config: RepositoryConfig) -> Result<Self, RepositoryError> {
        let objects = Objects::connect(&config.location, &config.limits, true)?;
        match objects.get(HEAD).await {
            Ok(head) => Self::unlock(config, objects, &head).await,
            Err(RepositoryError::Missing { .. }) => Self::create(config, objects).await,
            Err(error) => Err(error),
        }
    }

    /// Opens a repository that is there.
    ///
    /// # Errors
    /// See [`RepositoryError`]; each says what to do.
    pub async fn open(config: RepositoryConfig) -> Result<Self, RepositoryError> {
        let objects = Objects::connect(&config.location, &config.limits, false)?;
        match objects.get(HEAD).await {
            Ok(head) => Self::unlock(config, objects, &head).await,
            Err(RepositoryError::Missing { .. }) => {
                Err(RepositoryError::NoRepository { location: objects.location().to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// The slot of the key comes first, so that a repository that is there can be opened; of several who make it at once,
    /// one writes the head and the others take its key.
    async fn create(config: RepositoryConfig, objects: Objects) -> Result<Self, RepositoryError> {
        let master: [u8; 32] = rand::random();
        let (key_id, slot) = background({
            let key = config.key.clone();
            move || Slot::new(&key, &master)
        })
        .await;
        let slot_name = format!("keys/{key_id}");
        let is_ours = objects.put_new(&slot_name, slot.encode().into()).await?;
        let master = if is_ours {
            master
        } else {
            unlock_slot(&objects, &slot_name, &config.key).await?.unwrap_or(master)
        };
        let head = Head {
            format: FORMAT,
            id: format!("{:032x}", rand::random::<u128>()),
            created: instant(format::now()),
            check: check(&master),
        };
        let encoded = serde_json::to_vec_pretty(&head).expect("the head is plain JSON");
        if objects.put_new(HEAD, encoded.into()).await? {
            return Ok(Self::opened(config, objects, master, head, key_id));
        }
        let found = objects.get(HEAD).await?;
        if is_ours && decode_head(&found)?.check != check(&master) {
            objects.delete(&slot_name).await?;
        }
        Self::unlock(config, objects, &found).await
    }

    async fn unlock(
        config: RepositoryConfig,
        objects: Objects,
        head: &[u8],
    ) -> Result<Self, RepositoryError> {
        let head = decode_head(head)?;
        let (mut known, mut problem) = (Vec::new(), None);
        for slot in objects.list("keys/").await? {
            match unlock_slot(&objects, &slot.name, &config.key).await {
                Ok(Some(master)) if check(&master) == head.check => {
                    let key_id = slot.name["keys/".len()..].to_owned();
                    return Ok(Self::opened(config, objects, master, head, key_id));
                }
                Ok(_) => known.push(slot.name["keys/".len()..].to_owned()),
                Err(error) if error.is_damage() => problem = Some(error),
                Err(error) => return Err(error),
            }
        }
        let known = match known.as_slice() {
            [] => "no key that is still there".to_owned(),
            known => format!("the keys {}", known.join(", ")),
        };
        Err(problem.unwrap_or(RepositoryError::WrongKey { location: objects.location().to_owned(), known }))
    }

    fn opened(
        config: RepositoryConfig,
        objects: Objects,
        master: [u8; 32],
        head: Head,
        key_id: String,
    ) -> Self {
        Self(Arc::new(Inner { config, objects, keys: Keys::new(&master), master, id: head.id, key_id }))
    }

    /// The same repository over connections of its own.
    pub(crate) fn reconnect(&self) -> Result<Self, RepositoryError> {
        let Inner { config, master, id, key_id, .. } = &*self.0;
        let objects = Objects::connect(&config.location, &config.limits, false)?;
        let (config, id, key_id) = (config.clone(), id.clone(), key_id.clone());
        Ok(Self(Arc::new(Inner { config, objects, keys: Keys::new(master), master: *master, id, key_id })))
    }

    /// Names the repository; never used again for another.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The id of the key that it was opened with.
    pub fn key_id(&self) -> &str {
        &self.0.key_id
    }

    /// Where it lies, for people.
    pub fn location(&self) -> &str {
        self.0.objects.location()
    }

    /// The ids of all keys that open it.
    pub async fn keys(&self) -> Result<Vec<String>, RepositoryError> {
        let slots = self.0.objects.list("keys/").await?;
        Ok(slots.into_iter().map(|slot| slot.name["keys/".len()..].to_owned()).collect())
    }

    /// Lets another key open the repository; answers its id. To rotate a key: add the new one, open with it, remove the
    /// old one.
    pub async fn add_key(&self, key: &BackupKey) -> Result<String, RepositoryError> {
        let (key, master) = (key.clone(), self.0.master);
        let (id, slot) = background(move || Slot::new(&key, &master)).await;
        let name = format!("keys/{id}");
        if !self.0.objects.put_new(&name, slot.encode().into()).await? {
            // A slot of the same key, sealed with another nonce: nothing to add, once it is known to open.
            tracing::debug!(id, "the key opens the repository already");
        }
        Ok(id)
    }

    /// The key opens the repository no longer.
    ///
    /// # Errors
    /// [`RepositoryError::BadConfiguration`] for the key that the repository was opened with.
    pub async fn remove_key(&self, id: &str) -> Result<(), RepositoryError> {
        let is_id = id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_id || id == self.0.key_id {
            let reason =
                format!("the key {id} cannot be removed: open the repository with another key first");
            return Err(RepositoryError::BadConfiguration(reason));
        }
        self.0.objects.delete(&format!("keys/{id}")).await
    }

    /// All backups, and what looks like one and cannot be read.
    pub async fn list(&self) -> Result<Listing, RepositoryError> {
        let (manifests, unreadable) = self.manifests().await?;
        Ok(Listing { backups: manifests.iter().map(Manifest::info).collect(), unreadable })
    }

    /// All manifests, oldest first.
    pub(crate) async fn manifests(&self) -> Result<(Vec<Manifest>, Vec<Unreadable>), RepositoryError> {
        let found = self.0.objects.list("backups/").await?;
        let mut read = stream::iter(found)
            .map(|Listed { name, .. }| async move {
                let id = name["backups/".len()..].to_owned();
                let manifest = match id.parse::<BackupId>() {
                    Ok(id) => self.manifest(&id).await,
                    Err(error) => return Ok(Err(Unreadable { id, reason: error.to_string() })),
                };
                match manifest {
                    Ok(manifest) => Ok(Ok(Some(manifest))),
                    // Removed since it was listed.
                    Err(RepositoryError::NoBackup(_)) => Ok(Ok(None)),
                    Err(error) if error.is_damage() => Ok(Err(Unreadable { id, reason: error.to_string() })),
                    Err(error) => Err(error),
                }
            })
            .buffered(READS_AT_ONCE);
        let (mut manifests, mut unreadable) = (Vec::new(), Vec::new());
        while let Some(read) = read.try_next().await? {
            match read {
                Ok(manifest) => manifests.extend(manifest),
                Err(bad) => unreadable.push(bad),
            }
        }
        Ok((manifests, unreadable))
    }

    /// A backup.
    pub async fn manifest(&self, id: &BackupId) -> Result<Manifest, RepositoryError> {
        let name = id.object();
        let sealed = match self.0.objects.get(&name).await {
            Err(RepositoryError::Missing { .. }) => return Err(RepositoryError::NoBackup(id.clone())),
            sealed => sealed?,
        };
        let plain = self.0.keys.open_object(&name, Kind::Manifest, &sealed)?;
        let manifest: Manifest = decode(&name, &plain)?;
        if manifest.id != *id {
            return Err(RepositoryError::damaged(name, "it is the manifest of another backup"));
        }
        Ok(manifest)
    }

    /// The newest backup of a cluster: the parent of its next one. What cannot be read is passed over.
    pub async fn newest(&self, cluster_uid: &str) -> Result<Option<Manifest>, RepositoryError> {
        let mut found = self.0.objects.list("backups/").await?;
        while let Some(listed) = found.pop() {
            let Ok(id) = listed.name["backups/".len()..].parse::<BackupId>() else { continue };
            match self.manifest(&id).await {
                Ok(manifest) if manifest.cluster.uid == cluster_uid => return Ok(Some(manifest)),
                Ok(_) | Err(RepositoryError::NoBackup(_)) => {}
                Err(error) if error.is_damage() => tracing::warn!(%id, %error, "a backup cannot be read"),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Removes a backup. What only it refers to goes with the next prune.
    ///
    /// # Errors
    /// [`RepositoryError::NoBackup`] when there is none.
    pub async fn delete(&self, id: &BackupId) -> Result<(), RepositoryError> {
        // Also one that cannot be read may go.
        let found = self.0.objects.list("backups/").await?;
        if !found.iter().any(|listed| listed.name == id.object()) {
            return Err(RepositoryError::NoBackup(id.clone()));
        }
        self.0.objects.delete(&id.object()).await
    }

    /// Stores the Kubernetes resources of a backup that is under way.
    pub async fn store_resources(&self, json: &[u8]) -> Result<Resources, RepositoryError> {
        if json.len() > MAX_RESOURCES {
            let reason =
                format!("the resources have {} bytes, and at most {MAX_RESOURCES} are kept", json.len());
            return Err(RepositoryError::BadConfiguration(reason));
        }
        let keys = &self.0.keys;
        let mut writer = PackWriter::new(keys);
        let blob = writer.add(Kind::Resources, keys.hash(json), json);
        let (pack, bytes) = writer.finish();
        let len = bytes.len() as u64;
        self.0.objects.put(&pack.object(), bytes).await?;
        Ok(Resources { blob, pack: PackUse { pack, bytes: len, live_bytes: blob.len.into() } })
    }

    /// The Kubernetes resources of a backup.
    pub async fn resources(&self, manifest: &Manifest) -> Result<Option<Bytes>, RepositoryError> {
        let Some(resources) = &manifest.resources else { return Ok(None) };
        self.read_blob(Kind::Resources, &resources.blob).await.map(Some)
    }

    /// Makes a backup of what was taken: writes its manifest, after which it is there. The lease must have been held since
    /// before the first group was taken.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`], or [`RepositoryError::Missing`] when a pack that it refers to is not there.
    pub async fn finish(&self, draft: ManifestDraft, lease: &Lease) -> Result<BackupId, RepositoryError> {
        let mut groups = draft.groups;
        groups.sort_unstable_by_key(|group| group.group);
        if let Some(twice) = groups.windows(2).find(|pair| pair[0].group == pair[1].group) {
            let reason = format!("group {} was given twice for one backup", twice[0].group);
            return Err(RepositoryError::BadConfiguration(reason));
        }
        let manifest = Manifest {
            id: BackupId::new(draft.started),
            repository: self.0.id.clone(),
            key_id: self.0.key_id.clone(),
            cluster: draft.cluster,
            started: draft.started,
            finished: format::now(),
            parent: draft.parent,
            trigger: draft.trigger,
            groups,
            resources: draft.resources,
            version: draft.version,
        };
        let there = self.pack_sizes().await?;
        if let Some(missing) = manifest.packs().find(|used| there.get(&used.pack) != Some(&used.bytes)) {
            return Err(RepositoryError::Missing { object: missing.pack.object() });
        }
        let name = manifest.id.object();
        let sealed = self.0.keys.seal_object(&name, Kind::Manifest, &encode(&manifest));
        if !lease.is_valid() {
            return Err(RepositoryError::LeaseLost);
        }
        let written = self.0.objects.put(&name, sealed.into()).await;
        // After an error it may be there all the same; and when it took long, a prune may have begun that does not know of it.
        if written.is_err() || !lease.is_valid() {
            let removed = self.0.objects.delete(&name).await;
            written?;
            removed?;
            return Err(RepositoryError::LeaseLost);
        }
        Ok(manifest.id)
    }

    /// All packs that are there, with their lengths.
    pub(crate) async fn pack_sizes(&self) -> Result<std::collections::HashMap<PackId, u64>, RepositoryError> {
        let found = self.0.objects.list("packs/").await?;
        Ok(found
            .into_iter()
            .filter_map(|found| Some((PackId::from_object(&found.name)?, found.bytes)))
            .collect())
    }

    /// Packs in which a verification found damage.
    pub(crate) async fn damaged_packs(&self) -> Result<HashSet<PackId>, RepositoryError> {
        let found = self.0.objects.list("damaged/").await?;
        let pack = |listed: Listed| {
            let hex = listed.name.strip_prefix("damaged/")?;
            PackId::from_object(&format!("packs/{}/{hex}", hex.get(..2)?))
        };
        Ok(found.into_iter().filter_map(pack).collect())
    }

    pub(crate) async fn read_blob(&self, kind: Kind, blob: &BlobRef) -> Result<Bytes, RepositoryError> {
        let range = u64::from(blob.offset)..u64::from(blob.offset) + u64::from(blob.len);
        let sealed = self.0.objects.get_range(&blob.pack.object(), range).await?;
        if sealed.len() != blob.len as usize {
            return Err(RepositoryError::damaged(blob.pack.object(), "it is cut off"));
        }
        pack::open(&self.0.keys, kind, blob, &sealed)
    }

    /// Ends what takes longer than the deadline.
    pub(crate) async fn within_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, RepositoryError>>,
    ) -> Result<T, RepositoryError> {
        let Some(deadline) = self.0.config.limits.deadline else { return work.await };
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or(Err(RepositoryError::DeadlineExceeded { seconds: deadline.as_secs() }))
    }

    /// When this listing was made, by the clock of the store; for what only one clock may decide.
    pub(crate) async fn store_clock(&self, lease: &Lease) -> Result<Option<Timestamp>, RepositoryError> {
        lease.renew().await?;
        let locks = self.0.objects.list("locks/").await?;
        Ok(locks.into_iter().find(|lock| lock.name == lease.object()).map(|lock| lock.modified))
    }
}

fn decode_head(bytes: &[u8]) -> Result<Head, RepositoryError> {
    #[derive(Deserialize)]
    struct Format {
        format: u8,
    }
    let bad = |_| RepositoryError::damaged(HEAD, "it is no head of a repository");
    check_format(HEAD, serde_json::from_slice::<Format>(bytes).map_err(bad)?.format)?;
    serde_json::from_slice(bytes).map_err(bad)
}

/// The master key, when the key opens this slot.
async fn unlock_slot(
    objects: &Objects,
    name: &str,
    key: &BackupKey,
) -> Result<Option<[u8; 32]>, RepositoryError> {
    let slot = match objects.get(name).await {
        // Removed since it was listed.
        Err(RepositoryError::Missing { .. }) => return Ok(None),
        slot => Slot::decode(name, &slot?)?,
    };
    let (id, key) = (name.trim_start_matches("keys/").to_owned(), key.clone());
    Ok(background(move || slot.open(&id, &key)).await)
}

fn check(master: &[u8; 32]) -> String {
    let hash = blake3::derive_key("quorumail backup 1: check of the master key", master);
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_no_head_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(decode_head(&bytes).is_err());
            let _ = decode::<Manifest>("x", &bytes);
            let _ = crate::GroupManifest::decode(&bytes);
        }
    }
}
