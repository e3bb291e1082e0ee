//! Connections to the mailnodes of each MailCluster, with the certificates that its Secrets hold.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use quorumail_crds::MailCluster;

use crate::{
    admin::{AdminClient, AdminError},
    directory::FingerprintKey,
    mailcluster::{
        certificates::{CA_KEY, CERT_KEY, KEY_KEY, text},
        objects::{Names, addresses},
    },
    mailnode_config::port,
    pki::CertifiedPem,
    stores::{Key, Stores, key},
};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The Secrets are not there yet, or not as they should be.
    #[error("Secret {0} with the operator's certificates has not been made yet")]
    NoCertificates(String),
    /// They could not be read.
    #[error("failed to read Secret {0}: {1}")]
    Api(String, Box<kube::Error>),
    /// They cannot be used.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// A connection, and the key for revisions.
pub struct Connection {
    /// The admin API.
    pub admin: AdminClient,
    /// Of this cluster.
    pub fingerprints: FingerprintKey,
}

/// What a connection depends on: versions of the two Secrets and the number of nodes.
type Basis = (Option<String>, Option<String>, u32);

type Connections = HashMap<Key, (Basis, Arc<Connection>)>;

/// All connections, made when they are first needed and again when a Secret changed.
#[derive(Clone)]
pub struct Clients {
    client: kube::Client,
    stores: Arc<Stores>,
    connections: Arc<parking_lot::Mutex<Connections>>,
}

impl Clients {
    /// None yet.
    pub fn new(client: kube::Client, stores: Arc<Stores>) -> Self {
        Self { client, stores, connections: Arc::default() }
    }

    /// The connection to the mailnodes of a cluster.
    pub async fn get(&self, cluster: &MailCluster) -> Result<Arc<Connection>, ClientError> {
        let names = Names::new(&cluster.name_any());
        let (namespace, _) = key(cluster);
        let version = |name: &String| self.stores.secret_version(&(namespace.clone(), name.clone()));
        let basis = (version(&names.operator_tls), version(&names.authority), cluster.spec.nodes);
        if let Some((known, connection)) = self.connections.lock().get(&key(cluster))
            && *known == basis
        {
            return Ok(connection.clone());
        }
        let operator = self.read(&namespace, &names.operator_tls).await?;
        let authority = self.read(&namespace, &names.authority).await?;
        let part = |secret: &Secret, key: &str| {
            text(secret, key).ok_or_else(|| ClientError::NoCertificates(secret.name_any()))
        };
        let identity = CertifiedPem { cert: part(&operator, CERT_KEY)?, key: part(&operator, KEY_KEY)? };
        let admin = AdminClient::new(
            &addresses(cluster, u64::from(cluster.spec.nodes), port::ADMIN),
            &part(&operator, CA_KEY)?,
            &identity,
        )?;
        let fingerprints = FingerprintKey::derive(&part(&authority, KEY_KEY)?);
        let connection = Arc::new(Connection { admin, fingerprints });
        self.connections.lock().insert(key(cluster), (basis, connection.clone()));
        Ok(connection)
    }

    /// Closes the connection to a cluster that is gone.
    pub fn forget(&self, cluster: &Key) {
        self.connections.lock().remove(cluster);
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Secret, ClientError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found =
            secrets.get_opt(name).await.map_err(|e| ClientError::Api(name.to_owned(), Box::new(e)))?;
        found.ok_or_else(|| ClientError::NoCertificates(name.to_owned()))
    }
}
