//! Writing statuses and finalizers.

use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use quorumail_crds::DIRECTORY_FINALIZER;
use serde::{Serialize, de::DeserializeOwned};

use crate::settings::FIELD_MANAGER;

/// A resource of ours.
pub trait Ours:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Ours for K where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static
{
}

fn api_of<K: Ours>(client: &Client, object: &K) -> Api<K> {
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// Whether an error says that the object is not there any more, which leaves nothing to do.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Applies the whole status.
pub async fn write<K: Ours>(client: &Client, object: &K, status: &impl Serialize) -> Result<(), kube::Error> {
    let body = serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api_of(client, object).patch_status(&object.name_any(), &params, &Patch::Apply(body)).await {
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether our finalizer is there.
pub fn has_finalizer<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|f| f == DIRECTORY_FINALIZER)
}

/// Adds or removes our finalizer; on the version that was seen, so that nobody else's is lost.
pub async fn set_finalizer<K: Ours>(client: &Client, object: &K, present: bool) -> Result<(), kube::Error> {
    if has_finalizer(object) == present {
        return Ok(());
    }
    let mut finalizers: Vec<_> =
        object.finalizers().iter().filter(|f| *f != DIRECTORY_FINALIZER).cloned().collect();
    if present {
        finalizers.push(DIRECTORY_FINALIZER.to_owned());
    }
    let body = serde_json::json!({
        "metadata": {"resourceVersion": object.resource_version(), "uid": object.uid(), "finalizers": finalizers},
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched =
        api_of(client, object).patch_metadata(&object.name_any(), &params, &Patch::Merge(body)).await;
    match patched {
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
