//! Volumes of mailnodes that grow in place. What decides is pure.
//!
//! A claim is made larger by its request; whether its StorageClass lets it grow is told by the API server, which refuses it
//! otherwise. The claim template of a StatefulSet cannot be changed, so the StatefulSet is made anew around its pods, for nodes that
//! are added later.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use quorumail_crds::{
    MailCluster, Size,
    condition::{Observed, kind, reason},
};
use serde_json::json;

use super::{Context, Error, failed};
use crate::settings::FIELD_MANAGER;

const STORAGE: &str = "storage";
/// Annotation of claims with the number of partitions, which no other MailCluster of the same name may change.
const PARTITIONS: &str = "quorumail.io/partitions";

/// What there is of the volumes, and what keeps them from growing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volumes {
    /// The claims of the mailnodes.
    pub claims: Vec<Claim>,
    /// What Kubernetes said when it refused to let one grow.
    pub refused: Option<String>,
}

/// One claim. Sizes in bytes; zero while they are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Its StorageClass, empty where it has none.
    pub class: String,
    /// Whether it has a volume: only then it can grow.
    pub bound: bool,
    /// What it asks for.
    pub asks: u64,
    /// What its volume has.
    pub has: u64,
}

impl Claim {
    fn of(claim: &PersistentVolumeClaim) -> Self {
        let (spec, status) =
            (claim.spec.clone().unwrap_or_default(), claim.status.clone().unwrap_or_default());
        let requests = spec.resources.and_then(|resources| resources.requests);
        Self {
            name: claim.name_any(),
            class: spec.storage_class_name.unwrap_or_default(),
            bound: status.phase.as_deref() == Some("Bound"),
            asks: requests.as_ref().and_then(|map| bytes(map.get(STORAGE))).unwrap_or(0),
            has: status.capacity.as_ref().and_then(|map| bytes(map.get(STORAGE))).unwrap_or(0),
        }
    }

    /// Whether it is to be asked to grow. Never to shrink, and not while what it asks for is not known.
    pub fn must_grow(&self, wanted: u64) -> bool {
        self.bound && self.asks > 0 && self.asks < wanted
    }
}

/// What volumes from a MailCluster of the same name before say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Before {
    /// Which of the nodes that are asked for have one.
    there: Vec<bool>,
    /// The number of partitions on them, where it is noted.
    partitions: Option<String>,
}

impl Before {
    /// Reads it.
    pub async fn read(cluster: &MailCluster, context: &Context) -> Result<Self, Error> {
        let namespace = cluster.namespace().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
        let mut before = Self::default();
        for number in 0..u64::from(cluster.spec.nodes) {
            let name = claim_name(cluster, number);
            let found = claims.get_metadata_opt(&name).await;
            let found = found.map_err(failed("read PersistentVolumeClaim", &name))?;
            let stays = found.filter(|claim| claim.metadata.deletion_timestamp.is_none());
            before.there.push(stays.is_some());
            let noted = stays.and_then(|claim| claim.annotations().get(PARTITIONS).cloned());
            before.partitions = before.partitions.or(noted);
        }
        Ok(before)
    }

    /// The number of nodes to begin with: as many as there are volumes for, and what is asked for where there are none. Nodes that are
    /// added to such volumes must not take themselves for founders: they could found partitions anew that the volumes have.
    pub fn nodes(&self) -> u64 {
        let nodes = self.there.iter().rposition(|there| *there).map_or(self.there.len(), |last| last + 1);
        u64::try_from(nodes).unwrap_or(u64::MAX)
    }

    /// Why mailnodes must not be started on them, as a condition of type Ready.
    pub fn problem(&self, cluster: &MailCluster) -> Option<Observed> {
        let noted =
            self.partitions.as_ref().filter(|noted| **noted != cluster.spec.partitions.to_string())?;
        let text = format!(
            "the volumes of an earlier MailCluster of this name have {noted} partitions, and spec.partitions is {}: delete this \
             MailCluster and apply it with partitions: {noted}; if their mail is not needed any more, delete their \
             PersistentVolumeClaims",
            cluster.spec.partitions
        );
        Some(Observed::no(kind::READY, reason::INVALID_SPEC, text))
    }
}

fn claim_name(cluster: &MailCluster, number: u64) -> String {
    format!("data-{}-{number}", cluster.name_any())
}

fn bytes(quantity: Option<&Quantity>) -> Option<u64> {
    quantity?.0.parse().ok().map(|size: Size| size.bytes())
}

impl Volumes {
    /// Reads the claims of so many nodes and has those grow that ask for less than the spec.
    pub async fn grow(cluster: &MailCluster, context: &Context, nodes: u64) -> Result<Self, Error> {
        let namespace = cluster.namespace().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
        let wanted = &cluster.spec.storage.size;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let mut volumes = Self::default();
        for number in 0..nodes {
            let name = claim_name(cluster, number);
            let found = claims.get_opt(&name).await;
            let Some(found) = found.map_err(failed("read PersistentVolumeClaim", &name))? else { continue };
            let partitions = cluster.spec.partitions.to_string();
            if found.annotations().get(PARTITIONS) != Some(&partitions) {
                let note = Patch::Merge(
                    json!({"metadata": {"uid": found.uid(), "annotations": {PARTITIONS: partitions}}}),
                );
                let noted = claims.patch_metadata(&name, &params, &note).await;
                noted.map_err(failed("patch PersistentVolumeClaim", &name))?;
                // Its version is another one now.
                continue;
            }
            let mut claim = Claim::of(&found);
            if claim.must_grow(wanted.bytes()) && volumes.refused.is_none() {
                tracing::info!(
                    cluster = cluster.name_any(),
                    claim = name,
                    size = wanted.as_str(),
                    "a volume is to grow"
                );
                match claims.patch(&name, &params, &Patch::Merge(request(&found, wanted))).await {
                    Ok(patched) => claim = Claim::of(&patched),
                    Err(kube::Error::Api(status)) if status.code == 403 => {
                        volumes.refused = Some(status.message)
                    }
                    Err(error) => return Err(failed("patch PersistentVolumeClaim", name)(error)),
                }
            }
            volumes.claims.push(claim);
        }
        Ok(volumes)
    }

    /// What keeps volumes from being as large as asked, as a condition of type Degraded.
    pub fn degraded(&self, wanted: &Size) -> Option<Observed> {
        let small: Vec<&Claim> = self.claims.iter().filter(|claim| claim.must_grow(wanted.bytes())).collect();
        let (first, why) = (small.first()?, self.refused.as_ref()?);
        let text = format!(
            "{} of {} volumes are smaller than {wanted}, and Kubernetes does not let them grow ({why}): if the driver of \
             StorageClass {} can, set allowVolumeExpansion: true there; otherwise replace the volumes one after the other, \
             as docs/how-to/volumes.md says",
            small.len(),
            self.claims.len(),
            first.class,
        );
        Some(Observed::yes(kind::DEGRADED, reason::VOLUMES_NOT_GROWN, text))
    }

    /// How far volumes are that grow, in words.
    pub fn growing(&self, wanted: &Size) -> Option<String> {
        let behind =
            |claim: &&Claim| claim.bound && claim.asks >= wanted.bytes() && claim.has < wanted.bytes();
        let count = self.claims.iter().filter(behind).count();
        (count > 0).then(|| format!("{count} of {} volumes grow to {wanted}", self.claims.len()))
    }
}

/// What is changed of a claim: exactly the one that was read.
fn request(claim: &PersistentVolumeClaim, wanted: &Size) -> serde_json::Value {
    json!({
        "metadata": {"uid": claim.uid(), "resourceVersion": claim.resource_version()},
        "spec": {"resources": {"requests": {STORAGE: wanted.as_str()}}},
    })
}

fn requested(set: &StatefulSet) -> Option<&Quantity> {
    let claims = set.spec.as_ref()?.volume_claim_templates.as_ref()?;
    claims.first()?.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get(STORAGE)
}

/// Whether new nodes would get another size than the spec asks for, because the claim template cannot be changed.
pub fn is_outgrown(existing: &StatefulSet, wanted: &StatefulSet) -> bool {
    let (before, after) = (bytes(requested(existing)), bytes(requested(wanted)));
    before.is_some_and(|before| after.is_some_and(|after| before < after))
}

/// Gives a StatefulSet the claim template that it has already.
pub fn keep_size(set: &mut StatefulSet, existing: &StatefulSet) {
    let Some(size) = requested(existing).cloned() else { return };
    let claims = set.spec.as_mut().and_then(|spec| spec.volume_claim_templates.as_mut());
    let claim = claims.and_then(|claims| claims.first_mut()?.spec.as_mut());
    if let Some(resources) = claim.and_then(|spec| spec.resources.as_mut()) {
        resources.requests.get_or_insert_default().insert(STORAGE.to_owned(), size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GI: u64 = 1 << 30;

    fn claim(asks: u64, has: u64) -> Claim {
        Claim { name: "data-mc-0".into(), class: "fast".into(), bound: true, asks: asks * GI, has: has * GI }
    }

    fn volumes(claims: &[Claim], refused: Option<&str>) -> Volumes {
        Volumes { claims: claims.to_vec(), refused: refused.map(ToOwned::to_owned) }
    }

    fn size(text: &str) -> Size {
        text.parse().unwrap()
    }

    fn set(size: &str) -> StatefulSet {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "mc"}, "spec": {
            "serviceName": "mc", "selector": {}, "template": {"spec": {"containers": [{"name": "mailnode"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}}]}}))
        .unwrap()
    }

    #[test]
    fn a_claim_is_read_with_what_it_asks_for_and_has() {
        let text = "{metadata: {name: data-mc-0, uid: u, resourceVersion: '7'}, status: {phase: Bound, capacity: {storage: 10Gi}},
            spec: {storageClassName: fast, resources: {requests: {storage: 20Gi}}}}";
        let found: PersistentVolumeClaim = serde_yaml::from_str(text).unwrap();
        assert_eq!(Claim::of(&found), claim(20, 10));
        let patch = request(&found, &size("30Gi"));
        assert_eq!(patch["spec"]["resources"]["requests"]["storage"], "30Gi");
        assert_eq!(
            (&patch["metadata"]["uid"], &patch["metadata"]["resourceVersion"]),
            (&"u".into(), &"7".into())
        );
    }

    fn before(there: &[u8], partitions: Option<&str>) -> Before {
        let there = there.iter().map(|there| *there == 1).collect();
        Before { there, partitions: partitions.map(ToOwned::to_owned) }
    }

    #[test]
    fn a_cluster_begins_with_the_volumes_that_are_there() {
        let nodes = |there: &[u8]| before(there, None).nodes();
        assert_eq!((nodes(&[0, 0, 0]), nodes(&[1, 1, 1])), (3, 3));
        assert_eq!(nodes(&[1, 1, 1, 0, 0]), 3, "more nodes are asked for than there were");
        assert_eq!(nodes(&[0, 0, 1, 0, 0]), 3, "the volumes of the first are lost");
    }

    #[test]
    fn volumes_with_another_number_of_partitions_are_left_alone() {
        let cluster: MailCluster = serde_yaml::from_str(
            "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: mc}, spec: {partitions: 16}}",
        )
        .unwrap();
        let problem = |partitions| before(&[1, 1, 1], partitions).problem(&cluster);
        assert_eq!((problem(None), problem(Some("16"))), (None, None));
        let told = problem(Some("32")).unwrap();
        assert_eq!((told.status, told.reason), (Some(false), reason::INVALID_SPEC));
        assert!(told.message.contains("apply it with partitions: 32"), "{}", told.message);
    }

    #[test]
    fn volumes_only_grow() {
        assert!(claim(10, 10).must_grow(20 * GI));
        assert!(!claim(20, 20).must_grow(20 * GI));
        assert!(!claim(30, 30).must_grow(20 * GI), "somebody made it larger");
        assert!(!Claim { bound: false, ..claim(10, 0) }.must_grow(20 * GI), "it has no volume yet");
        assert!(!claim(0, 10).must_grow(20 * GI), "what it asks for cannot be read");
    }

    #[test]
    fn a_class_that_lets_no_volume_grow_is_told_of_with_what_to_do() {
        let wanted = size("20Gi");
        let some = [claim(20, 20), claim(10, 10), claim(10, 10)];
        let told = volumes(&some, Some("only dynamically provisioned pvc can be resized"))
            .degraded(&wanted)
            .unwrap();
        assert_eq!((told.kind, told.reason), (kind::DEGRADED, reason::VOLUMES_NOT_GROWN));
        for words in [
            "2 of 3 volumes are smaller than 20Gi",
            "only dynamically",
            "StorageClass fast",
            "allowVolumeExpansion: true",
        ] {
            assert!(told.message.contains(words), "{}", told.message);
        }
        assert_eq!(volumes(&some, None).degraded(&wanted), None);
        assert_eq!(volumes(&[claim(20, 20)], Some("of before")).degraded(&wanted), None);
    }

    #[test]
    fn volumes_grow_until_they_have_what_is_asked() {
        let told = |claims: &[Claim]| volumes(claims, None).growing(&size("20Gi"));
        assert_eq!(told(&[claim(20, 20), claim(20, 10)]).as_deref(), Some("1 of 2 volumes grow to 20Gi"));
        assert_eq!(told(&[claim(20, 20), claim(20, 25)]), None);
        assert_eq!(told(&[claim(10, 10)]), None, "it was not asked");
    }

    #[test]
    fn a_stateful_set_is_made_anew_only_for_a_larger_size() {
        assert!(is_outgrown(&set("10Gi"), &set("20Gi")));
        assert!(!is_outgrown(&set("10Gi"), &set("10240Mi")), "the same size in other words");
        assert!(!is_outgrown(&set("20Gi"), &set("10Gi")));
        let mut wanted = set("20Gi");
        keep_size(&mut wanted, &set("10Gi"));
        assert_eq!(wanted, set("10Gi"));
    }
}
