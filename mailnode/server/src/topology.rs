//! Which nodes there are: from the configuration, from what the node has kept, from other nodes, whichever is newest.
//!
//! Consensus carries it ([`quorumail_consensus::Topology`]); here it is read at start, kept on disk whenever it changes,
//! and taken up from the configuration file when that has a newer one.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use quorumail_consensus::{Consensus, Peer, Topology};
use quorumail_proto::admin;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// In the data directory.
const FILE: &str = "topology.yaml";
/// Version of the file; another one is refused.
const VERSION: u32 = 1;
/// How often it is looked whether the configuration file has a newer topology.
const FILE_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    version: u32,
    generation: u64,
    founders: Vec<u64>,
    nodes: Vec<KeptNode>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeptNode {
    node: u64,
    address: String,
    admin: String,
    zone: String,
    leaving: bool,
}

/// What the configuration says.
pub fn of_config(config: &Config) -> Topology {
    let node = |peer: &crate::config::Peer| Peer {
        id: peer.node,
        address: peer.address.clone(),
        admin: peer.admin.clone(),
        zone: peer.zone.clone(),
        leaving: peer.leaving,
    };
    let mut topology = Topology::from(config.peers.iter().map(node).collect::<Vec<_>>());
    topology.generation = config.generation;
    if !config.founders.is_empty() {
        topology.founders.clone_from(&config.founders);
    }
    topology
}

/// The newest that the node knows when it starts.
pub fn at_start(config: &Config) -> anyhow::Result<Topology> {
    let configured = of_config(config);
    let Some(kept) = load(&config.data_dir)? else { return Ok(configured) };
    if kept.generation == configured.generation && !kept.differences(&configured).is_empty() {
        let error = kept.refuse_other(&configured);
        tracing::warn!(%error, "the configuration has a list of nodes that is not taken up");
    }
    let newest = if kept.generation >= configured.generation { kept } else { configured };
    anyhow::ensure!(
        newest.node(config.node()).is_some(),
        "node {} was taken out of the cluster (topology of generation {}); give it an empty data directory and add it again",
        config.node(),
        newest.generation
    );
    Ok(newest)
}

fn load(dir: &Path) -> anyhow::Result<Option<Topology>> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
    };
    let kept: Kept =
        serde_yaml::from_str(&text).with_context(|| format!("failed to understand {}", path.display()))?;
    anyhow::ensure!(
        kept.version == VERSION,
        "{} has version {}, and this mailnode knows version {VERSION}; run the version that wrote it",
        path.display(),
        kept.version
    );
    let node = |node: KeptNode| Peer {
        id: node.node,
        address: node.address,
        admin: node.admin,
        zone: node.zone,
        leaving: node.leaving,
    };
    let topology = Topology {
        generation: kept.generation,
        founders: kept.founders,
        nodes: kept.nodes.into_iter().map(node).collect(),
    };
    topology.check().with_context(|| format!("in {}", path.display()))?;
    Ok(Some(topology))
}

/// Writes it, so that the file is the old or the new one whatever happens.
fn save(dir: &Path, topology: &Topology) -> io::Result<()> {
    let node = |peer: &Peer| KeptNode {
        node: peer.id,
        address: peer.address.clone(),
        admin: peer.admin.clone(),
        zone: peer.zone.clone(),
        leaving: peer.leaving,
    };
    let kept = Kept {
        version: VERSION,
        generation: topology.generation,
        founders: topology.founders.clone(),
        nodes: topology.nodes.iter().map(node).collect(),
    };
    let text = serde_yaml::to_string(&kept).map_err(io::Error::other)?;
    let new = dir.join(format!("{FILE}.new"));
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

/// Keeps every topology that consensus takes up, until cancelled.
pub async fn keep(consensus: Consensus, dir: PathBuf, stop: CancellationToken) {
    let mut changes = consensus.watch_topology();
    loop {
        let topology = changes.borrow_and_update().clone();
        let to = dir.clone();
        let saved = tokio::task::spawn_blocking(move || save(&to, &topology)).await;
        if let Err(error) = saved.unwrap_or_else(|error| Err(io::Error::other(error))) {
            // The other nodes tell it again after a restart.
            tracing::error!(%error, "the topology could not be kept");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Takes up newer topologies from the configuration file, until cancelled.
pub async fn watch_file(consensus: Consensus, path: PathBuf, node: u64, stop: CancellationToken) {
    let mut seen = modified(&path);
    while tokio::time::timeout(FILE_INTERVAL, stop.cancelled()).await.is_err() {
        let now = modified(&path);
        if now == seen {
            continue;
        }
        seen = now;
        let topology = match Config::load(&path, Some(node)) {
            Ok(config) => of_config(&config),
            Err(error) => {
                tracing::warn!(%error, "the changed configuration cannot be read");
                continue;
            }
        };
        if let Err(error) = consensus.reconfigure(topology) {
            tracing::warn!(%error, "the changed configuration is not taken up");
        }
    }
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// From the admin API.
pub fn from_admin(topology: admin::Topology) -> Topology {
    let node = |node: admin::TopologyNode| Peer {
        id: node.node,
        address: node.address,
        admin: node.admin,
        zone: node.zone,
        leaving: node.leaving,
    };
    Topology {
        generation: topology.generation,
        founders: topology.founders,
        nodes: topology.nodes.into_iter().map(node).collect(),
    }
}

/// For the admin API.
pub fn to_admin(topology: &Topology) -> admin::Topology {
    let node = |peer: &Peer| admin::TopologyNode {
        node: peer.id,
        address: peer.address.clone(),
        admin: peer.admin.clone(),
        zone: peer.zone.clone(),
        leaving: peer.leaving,
    };
    admin::Topology {
        generation: topology.generation,
        founders: topology.founders.clone(),
        nodes: topology.nodes.iter().map(node).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_topology_comes_back_and_one_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        let mut topology = Topology::from(vec![Peer::new(0, "a:1"), Peer::new(1, "b:1")]);
        topology.generation = 4;
        topology.nodes[1].leaving = true;
        save(dir.path(), &topology).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(topology));
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(FILE), text.replace("version: 1", "version: 2")).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("version 2"));
    }
}
