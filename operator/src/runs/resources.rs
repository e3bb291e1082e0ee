//! Gathers the resources of a MailCluster for its backup. What cannot be had is told and is never the end of the backup: the
//! mail is worth more.

use std::{future::Future, time::Duration};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use quorumail_backup::MAX_RESOURCES;
use quorumail_crds::mailbackup::KeptResources;
use tokio::time::{Instant, timeout_at};

use crate::{
    accounts::CONCURRENCY,
    backup::resources::{List, Members, part_of},
    mailrestore::{MAX_PROBLEMS, problems},
};

/// For reading all Secrets; ten thousand take some seconds.
const READ_WITHIN: Duration = Duration::from_secs(300);

/// What was gathered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gathered {
    /// None when there is too much of it.
    pub(super) json: Option<Vec<u8>>,
    /// What is told of it.
    pub(super) kept: KeptResources,
}

/// Bounds of what is gathered.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    bytes: usize,
    time: Duration,
}

/// Gathers them; of `deadline`, which the backup has, Secrets get a part.
pub(super) async fn gather(
    client: &Client,
    members: &Members,
    include_secrets: bool,
    deadline: Duration,
) -> Gathered {
    let api: Api<Secret> = Api::namespaced(client.clone(), &members.cluster.namespace().unwrap_or_default());
    let read = |name: String| {
        let api = api.clone();
        async move { api.get_opt(&name).await.map_err(|error| in_words(&error)) }
    };
    let bounds = Bounds { bytes: MAX_RESOURCES, time: READ_WITHIN.min(deadline / 4) };
    gather_from(members, include_secrets, bounds, read).await
}

/// Of an answer that is not understood nothing is shown: it may hold what the Secret does.
fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server refuses it: {}", status.message),
        _ => "the API server could not be asked for it".to_owned(),
    }
}

/// What is not in the list: the first ones in words, the others counted.
#[derive(Default)]
struct LeftOut {
    told: Vec<String>,
    count: u64,
}

impl LeftOut {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.told.len() < MAX_PROBLEMS {
            self.told.push(what);
        }
    }

    fn in_words(&self) -> Option<String> {
        (self.count > 0).then(|| problems(&self.told, self.count))
    }
}

async fn gather_from<R, F>(members: &Members, include_secrets: bool, bounds: Bounds, read: R) -> Gathered
where
    R: Fn(String) -> F,
    F: Future<Output = Result<Option<Secret>, String>>,
{
    let mut list = List::new(bounds.bytes);
    let mut kept = KeptResources::default();
    for object in members.objects() {
        if let Err(error) = list.add(&object) {
            let text = format!("all of them: {error}. Keep the files that they were applied from elsewhere");
            let kept = KeptResources { left_out: Some(text), ..KeptResources::default() };
            return Gathered { json: None, kept };
        }
        kept.objects += 1;
    }
    let mut left_out = LeftOut::default();
    for object in &members.unreadable {
        left_out.add(format!("{object}: it cannot be read by this operator, whose log says why"));
    }
    if members.elsewhere > 0 {
        left_out.add(format!(
            "{} MailDomains, Mailboxes and MailingLists of other namespaces",
            members.elsewhere
        ));
    }
    if include_secrets {
        kept.secrets = add_secrets(&mut list, members, bounds, read, &mut left_out).await;
    }
    kept.left_out = left_out.in_words();
    Gathered { json: Some(list.finish()), kept }
}

/// How many were added.
async fn add_secrets<R, F>(
    list: &mut List,
    members: &Members,
    bounds: Bounds,
    read: R,
    left_out: &mut LeftOut,
) -> u32
where
    R: Fn(String) -> F,
    F: Future<Output = Result<Option<Secret>, String>>,
{
    let (mark, until) = (list.mark(), Instant::now() + bounds.time);
    let reads = stream::iter(members.secrets()).map(|(name, wanted)| {
        let answer = read(name.clone());
        async move { (name, wanted, answer.await) }
    });
    let mut reads = std::pin::pin!(reads.buffered(CONCURRENCY));
    let mut added = 0;
    loop {
        let (name, wanted, answer) = match timeout_at(until, reads.next()).await {
            Ok(Some(answered)) => answered,
            Ok(None) => break,
            Err(_) => {
                let seconds = bounds.time.as_secs();
                left_out.add(format!("the Secrets that were not read within {seconds} s"));
                break;
            }
        };
        let secret = format!("Secret {name}, which {} refers to", wanted.by);
        match answer {
            Ok(Some(found)) => {
                let (part, missing) = part_of(&found, &wanted);
                for key in &missing {
                    left_out.add(format!("key `{key}` of {secret}: it does not exist"));
                }
                if missing.len() == wanted.keys.len() {
                    continue;
                }
                if let Err(error) = list.add(&part) {
                    list.shorten(mark);
                    left_out.add(format!("all Secrets: together with the other resources, {error}"));
                    return 0;
                }
                added += 1;
            }
            Ok(None) => left_out.add(format!("{secret}: it does not exist")),
            Err(error) => left_out.add(format!("{secret}: {error}")),
        }
    }
    added
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::ByteString;
    use quorumail_crds::{MailCluster, Mailbox};

    use super::*;
    use crate::backup::resources::read as read_list;

    const BOUNDS: Bounds = Bounds { bytes: 1 << 20, time: Duration::from_secs(5) };

    fn members(mailboxes: usize) -> Members {
        let cluster: MailCluster = serde_yaml::from_str(
            "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: main, namespace: mail}, spec: {nodes: 1}}",
        )
        .unwrap();
        let mailbox = |n: usize| -> Arc<Mailbox> {
            let text = format!(
                "{{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {{name: m{n}, namespace: mail}}, \
                 spec: {{address: m{n}@example.org, passwordSecretRef: {{name: people-{n}, key: password}}}}}}"
            );
            Arc::new(serde_yaml::from_str(&text).unwrap())
        };
        Members {
            cluster: Arc::new(cluster),
            domains: Vec::new(),
            mailboxes: (0..mailboxes).map(mailbox).collect(),
            lists: Vec::new(),
            policies: Vec::new(),
            unreadable: Vec::new(),
            elsewhere: 0,
        }
    }

    fn secret(name: &str, keys: &[&str], bytes: usize) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.to_owned());
        secret.data = Some(keys.iter().map(|key| ((*key).to_owned(), ByteString(vec![7; bytes]))).collect());
        secret
    }

    #[tokio::test]
    async fn secrets_are_read_only_when_they_are_asked_for() {
        let mut members = members(2);
        let gathered = gather_from(&members, false, BOUNDS, async |_| panic!("nobody asked")).await;
        assert_eq!(gathered.kept, KeptResources { objects: 3, secrets: 0, left_out: None });
        members.unreadable = vec!["Mailbox carol".to_owned()];
        members.elsewhere = 2;
        let left_out =
            gather_from(&members, false, BOUNDS, async |_| panic!("nobody asked")).await.kept.left_out;
        let left_out = left_out.unwrap();
        assert!(left_out.starts_with("Mailbox carol: it cannot be read"), "{left_out}");
        assert!(
            left_out.ends_with("; 2 MailDomains, Mailboxes and MailingLists of other namespaces"),
            "{left_out}"
        );
        assert_eq!(read_list(&gathered.json.unwrap(), true, None).unwrap().objects.len(), 3);
    }

    #[tokio::test]
    async fn what_is_missing_is_told_and_the_rest_is_kept() {
        let answer = async |name: String| match name.as_str() {
            "main-tls" => Ok(Some(secret(&name, &["tls.crt", "tls.key"], 10))),
            "people-0" => Ok(None),
            "people-1" => Ok(Some(secret(&name, &["other"], 10))),
            "people-2" => Err("the API server refuses it: no".to_owned()),
            _ => Ok(Some(secret(&name, &["password", "other"], 10))),
        };
        let gathered = gather_from(&members(4), true, BOUNDS, answer).await;
        let expected = "Secret people-0, which Mailbox m0 refers to: it does not exist; \
             key `password` of Secret people-1, which Mailbox m1 refers to: it does not exist; \
             Secret people-2, which Mailbox m2 refers to: the API server refuses it: no";
        assert_eq!((gathered.kept.objects, gathered.kept.secrets), (5, 2));
        assert_eq!(gathered.kept.left_out.as_deref(), Some(expected));
        let found = read_list(&gathered.json.unwrap(), true, None).unwrap();
        assert_eq!(found.secrets, 2);
        let people = found.objects.iter().find(|object| object["metadata"]["name"] == "people-3").unwrap();
        assert_eq!(people["data"].as_object().unwrap().keys().collect::<Vec<_>>(), ["password"]);
    }

    #[tokio::test]
    async fn what_is_too_large_is_left_out_and_told() {
        let answer = async |name: String| Ok(Some(secret(&name, &["tls.crt", "tls.key", "password"], 400)));
        let bounds = Bounds { bytes: 2_000, ..BOUNDS };
        let gathered = gather_from(&members(2), true, bounds, answer).await;
        assert_eq!((gathered.kept.objects, gathered.kept.secrets), (3, 0));
        assert!(gathered.kept.left_out.unwrap().starts_with("all Secrets: "));
        assert_eq!(read_list(&gathered.json.unwrap(), true, None).unwrap().secrets, 0);
        let gathered = gather_from(&members(20), true, bounds, answer).await;
        assert_eq!((gathered.kept.objects, gathered.json), (0, None));
        assert!(gathered.kept.left_out.unwrap().starts_with("all of them: "));
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_answer_holds_nothing_up_for_long() {
        let bounds = Bounds { time: Duration::from_secs(1), ..BOUNDS };
        let gathered = gather_from(&members(1), true, bounds, async |_| std::future::pending().await).await;
        assert_eq!(gathered.kept.left_out.as_deref(), Some("the Secrets that were not read within 1 s"));
        assert!(gathered.json.is_some());
    }
}
