//! How the command line finds the mailnodes.
//!
//! - `--dev DIR`: what `quorumail dev --data DIR` runs; its directory has addresses and certificates.
//! - `--admin HOST:PORT --tls-dir DIR`: as given; DIR has `ca.crt`, `tls.crt` and `tls.key`.
//! - otherwise Kubernetes, as `kubectl` is configured: the client certificate is that of the operator, from Secret
//!   `<cluster>-operator-tls`, and the connections are forwarded to the pods by the API server.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, Config, ResourceExt as _, api::ListParams, config::KubeConfigOptions, core::DeserializeGuard,
};
use quorumail_crds::{MailCluster, backup::is_rehearsal};
use tokio::{io::copy_bidirectional, net::TcpListener};

use super::Failure;
use crate::{
    admin::AdminClient,
    dev::state,
    mailcluster::{
        certificates::{CA_KEY, CERT_KEY, KEY_KEY, text},
        objects::{CLUSTER_LABEL, Names, hostname, public_secret},
    },
    mailnode_config::port,
    pki::CertifiedPem,
};

/// Connections that one command may have open to one pod at a time.
const MAX_FORWARDED: usize = 16;

/// Which mail service is meant.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The mail service that `quorumail dev --data DIR` runs.
    #[arg(long, global = true, value_name = "DIR", conflicts_with_all = ["admin", "namespace", "cluster", "context"])]
    pub dev: Option<PathBuf>,
    /// Admin service of a mailnode; may be given for each, in the order of their numbers.
    #[arg(long, global = true, value_name = "HOST:PORT", requires = "tls_dir", conflicts_with_all = ["namespace", "cluster", "context"])]
    pub admin: Vec<String>,
    /// Directory with ca.crt, tls.crt and tls.key for --admin.
    #[arg(long, global = true, value_name = "DIR", requires = "admin")]
    pub tls_dir: Option<PathBuf>,
    /// Namespace of the MailCluster [default: that of the kubectl context].
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Name of the MailCluster; may be left out where the namespace has one.
    #[arg(long, global = true)]
    pub cluster: Option<String>,
    /// Context of the kubectl configuration.
    #[arg(long, global = true)]
    pub context: Option<String>,
}

/// Where the MailCluster is.
pub struct Kubernetes {
    /// For its API server.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub cluster: String,
}

impl Target {
    /// A client for the admin services.
    pub async fn connect(&self) -> Result<AdminClient, Failure> {
        if let Some(dir) = &self.dev {
            return connect_to_dev(dir);
        }
        if let Some(dir) = &self.tls_dir {
            return from_files(&self.admin, dir);
        }
        self.kubernetes().await?.connect().await
    }

    /// The API server, and the namespace that is meant.
    pub(super) async fn api_server(&self) -> Result<(Client, String), Failure> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match Config::from_kubeconfig(&options).await {
            Ok(config) => config,
            Err(error) if self.context.is_some() => return Err(Failure::Failed(error.to_string())),
            Err(error) => Config::incluster().map_err(|_| {
                let hint = "say --dev DIR for a `quorumail dev`, or set KUBECONFIG";
                Failure::Failed(format!("no Kubernetes is configured ({error}); {hint}"))
            })?,
        };
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok((Client::try_from(config)?, namespace))
    }

    /// The MailCluster in Kubernetes.
    pub async fn kubernetes(&self) -> Result<Kubernetes, Failure> {
        let (client, namespace) = self.api_server().await?;
        let cluster = match &self.cluster {
            Some(cluster) => cluster.clone(),
            None => only_cluster(&client, &namespace).await?,
        };
        Ok(Kubernetes { client, namespace, cluster })
    }
}

/// The one MailCluster of a namespace.
async fn only_cluster(client: &Client, namespace: &str) -> Result<String, Failure> {
    let api: Api<DeserializeGuard<MailCluster>> = Api::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default()).await?;
    let counts = |cluster: &&DeserializeGuard<MailCluster>| !cluster.0.as_ref().is_ok_and(is_rehearsal);
    let names: Vec<String> = found.iter().filter(counts).map(|cluster| cluster.name_any()).collect();
    match names.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::Usage(format!("namespace {namespace} has no MailCluster; say --namespace"))),
        many => Err(Failure::Usage(format!(
            "namespace {namespace} has several MailClusters; say --cluster with one of {}",
            many.join(", ")
        ))),
    }
}

impl Kubernetes {
    /// Forwards to every running pod.
    pub(super) async fn connect(&self) -> Result<AdminClient, Failure> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = Names::new(&self.cluster).operator_tls;
        let secret = secrets.get(&name).await?;
        let field = |key: &str| {
            text(&secret, key).ok_or_else(|| Failure::Failed(format!("Secret {name} has no key `{key}`")))
        };
        let (ca, identity) = (field(CA_KEY)?, CertifiedPem { cert: field(CERT_KEY)?, key: field(KEY_KEY)? });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let found =
            api.list(&ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", self.cluster))).await?;
        let mut pods: Vec<(u64, String)> = found
            .items
            .iter()
            .filter_map(|pod| Some((ordinal(&self.cluster, pod)?, pod.name_any())))
            .collect();
        pods.sort();
        if pods.is_empty() {
            return Err(Failure::Failed(format!("MailCluster {} has no pods yet", self.cluster)));
        }
        let mut addresses = Vec::new();
        for (number, pod) in pods {
            // Positions are the numbers of nodes; one that is missing gets an address where nobody is.
            while (addresses.len() as u64) < number {
                addresses.push("127.0.0.1:1".to_owned());
            }
            addresses.push(forward(api.clone(), pod, port::ADMIN).await?);
        }
        Ok(AdminClient::new(&addresses, &ca, &identity)?)
    }

    /// Forwards to ports of one ready pod; where each is reached.
    pub(super) async fn forward_to_one<const N: usize>(
        &self,
        ports: [u16; N],
    ) -> Result<[(String, u16); N], Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let labels = format!("{CLUSTER_LABEL}={}", self.cluster);
        let pods = api.list(&ListParams::default().labels(&labels)).await?.items;
        let pod = pods.iter().find(|pod| is_ready(pod) && ordinal(&self.cluster, pod).is_some());
        let pod =
            pod.ok_or_else(|| Failure::Failed(format!("no pod of MailCluster {} is ready", self.cluster)))?;
        let mut found = [const { (String::new(), 0) }; N];
        for (place, wanted) in found.iter_mut().zip(ports) {
            let address = forward(api.clone(), pod.name_any(), wanted).await?;
            let at =
                address.rsplit_once(':').and_then(|(host, at)| Some((host.to_owned(), at.parse().ok()?)));
            *place = at.ok_or_else(|| Failure::Failed(format!("{address} is no address")))?;
        }
        Ok(found)
    }

    /// The name that mail clients connect to, the certificate for it and, where the Secret has one, its authority.
    pub(super) async fn public_tls(&self) -> Result<(String, String, Option<String>), Failure> {
        let clusters: Api<MailCluster> = Api::namespaced(self.client.clone(), &self.namespace);
        let cluster = clusters.get(&self.cluster).await?;
        let name = public_secret(&cluster);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = secrets.get(&name).await?;
        let certificate = text(&secret, CERT_KEY)
            .ok_or_else(|| Failure::Failed(format!("Secret {name} has no key `{CERT_KEY}`")))?;
        Ok((hostname(&cluster), certificate, text(&secret, CA_KEY)))
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Number of the node that a pod runs.
fn ordinal(cluster: &str, pod: &Pod) -> Option<u64> {
    let number: u64 = pod.name_any().strip_prefix(cluster)?.strip_prefix('-')?.parse().ok()?;
    // A MailCluster has few nodes; the bound keeps a strange name from costing memory.
    (number < 1_000).then_some(number)
}

/// Listens on a port of the loopback interface, and passes each connection through the API server to the pod.
async fn forward(pods: Api<Pod>, pod: String, wanted: u16) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("failed to listen for forwarding: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    let bound = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_FORWARDED));
    tokio::spawn(async move {
        while let Ok(permit) = bound.clone().acquire_owned().await {
            let Ok((mut local, _)) = listener.accept().await else { return };
            let (pods, pod) = (pods.clone(), pod.clone());
            tokio::spawn(async move {
                let _permit = permit;
                // A failure closes the connection, and the client tells what it was about.
                if let Ok(mut forwarder) = pods.portforward(&pod, &[wanted]).await
                    && let Some(mut remote) = forwarder.take_stream(wanted)
                {
                    let _ = copy_bidirectional(&mut local, &mut remote).await;
                }
            });
        }
    });
    Ok(address)
}

fn connect_to_dev(dir: &Path) -> Result<AdminClient, Failure> {
    let cluster = state::cluster(dir).map_err(|error| Failure::Failed(error.to_string()))?;
    let cluster = cluster.ok_or_else(|| {
        Failure::Usage(format!("{} is not the directory of a quorumail dev", dir.display()))
    })?;
    from_files(&cluster.admin, &state::pki_dir(dir, "operator"))
}

fn from_files(addresses: &[String], dir: &Path) -> Result<AdminClient, Failure> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path)
            .map_err(|error| Failure::Failed(format!("failed to read {}: {error}", path.display())))
    };
    let identity = CertifiedPem { cert: read(CERT_KEY)?, key: read(KEY_KEY)? };
    Ok(AdminClient::new(addresses, &read(CA_KEY)?, &identity)?)
}
