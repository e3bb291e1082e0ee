//! The resources of `quorumail dev`: YAML files as `kubectl apply -f` takes them.
//!
//! One wrong object is told by file and name and does not stop the others. A directory means its `.yaml`, `.yml` and
//! `.json` files, not those of directories inside.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::Secret,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{CustomResourceExt as _, Resource as _, ResourceExt as _};
use quorumail_crds::{
    BackupPolicy, GROUP, MailBackup, MailCluster, MailDomain, MailRestore, Mailbox, MailingList, VERSION,
};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

use super::check;

/// Namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Largest file that is read.
const MAX_FILE: u64 = 64 << 20;
/// Most objects in all files.
const MAX_OBJECTS: usize = 200_000;

/// Where an object is written, for messages about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    file: PathBuf,
    kind: String,
    namespace: String,
    name: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ", self.file.display(), self.kind)?;
        if self.namespace != DEFAULT_NAMESPACE {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Namespace and name.
pub type Key = (String, String);

/// What the files hold.
#[derive(Debug, Default)]
pub struct Resources {
    /// In the order in which they are written.
    pub clusters: Vec<MailCluster>,
    /// Each with a uid that says what and where it is.
    pub domains: Vec<Arc<MailDomain>>,
    /// Likewise.
    pub mailboxes: Vec<Arc<Mailbox>>,
    /// Likewise.
    pub lists: Vec<Arc<MailingList>>,
    /// `stringData` merged into `data`, as the API server does.
    pub secrets: BTreeMap<Key, Secret>,
    /// By uid.
    pub origins: BTreeMap<String, Origin>,
    /// What could not be used, and why: for people.
    pub problems: Vec<String>,
    /// What is right and has no effect here: for people.
    pub ignored: Vec<String>,
    objects: usize,
}

impl Resources {
    /// Reads files and directories.
    pub fn load(paths: &[PathBuf]) -> Self {
        let mut resources = Self::default();
        for path in paths {
            match files(path) {
                Ok(files) => files.iter().for_each(|file| resources.load_file(file)),
                Err(error) => resources.problems.push(format!("{}: failed to read: {error}", path.display())),
            }
        }
        resources
    }

    fn load_file(&mut self, file: &Path) {
        let problem = |what: String| format!("{}: {what}", file.display());
        let text = match read(file) {
            Ok(text) => text,
            Err(error) => return self.problems.push(problem(format!("failed to read: {error}"))),
        };
        for (number, document) in (1..).zip(serde_yaml::Deserializer::from_str(&text)) {
            match Value::deserialize(document) {
                Ok(Value::Null) => {}
                Ok(value) => self.take(file, number, value),
                Err(error) => {
                    // What follows a syntax error cannot be told apart.
                    return self.problems.push(problem(format!("document {number}: {error}")));
                }
            }
        }
    }

    fn take(&mut self, file: &Path, number: usize, mut value: Value) {
        let text =
            |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let mut namespace = text("/metadata/namespace");
        if kind == "List" {
            if let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) {
                items.into_iter().for_each(|item| self.take(file, number, item));
            }
            return;
        }
        if kind.is_empty() || name.is_empty() {
            let what = format!("{}: document {number} has no kind or no metadata.name", file.display());
            return self.problems.push(what);
        }
        if namespace.is_empty() {
            namespace = DEFAULT_NAMESPACE.to_owned();
        }
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            if self.objects == MAX_OBJECTS + 1 {
                self.problems.push(format!("{}: more than {MAX_OBJECTS} objects", file.display()));
            }
            return;
        }
        let origin = Origin { file: file.to_owned(), kind: kind.clone(), namespace, name };
        let taken = match (version.as_str(), kind.as_str()) {
            ("v1", "Secret") => self.take_secret(&origin, value),
            (version, "MailCluster" | "MailDomain" | "Mailbox" | "MailingList") if is_ours(version) => {
                self.take_ours(&origin, value)
            }
            (version, "BackupPolicy") if is_ours(version) => {
                self.ignore(&origin, &BackupPolicy::crd(), &value)
            }
            (version, "MailBackup") if is_ours(version) => self.ignore(&origin, &MailBackup::crd(), &value),
            (version, "MailRestore") if is_ours(version) => self.ignore(&origin, &MailRestore::crd(), &value),
            (version, _) if version.starts_with(&format!("{GROUP}/")) => {
                Err(vec![format!("apiVersion {version} has no such kind that is known here")])
            }
            // Namespaces, Services and what else may stand in the same file have no meaning without Kubernetes.
            _ => Ok(()),
        };
        if let Err(problems) = taken {
            self.problems.extend(problems.into_iter().map(|problem| format!("{origin}: {problem}")));
        }
    }

    /// Schedules need something that outlives this program; the commands do the same at once.
    fn ignore(
        &mut self,
        origin: &Origin,
        crd: &CustomResourceDefinition,
        value: &Value,
    ) -> Result<(), Vec<String>> {
        let problems = check::schema(crd, value);
        if !problems.is_empty() {
            return Err(problems);
        }
        let instead = match origin.kind.as_str() {
            "MailRestore" => "use `quorumail restore`",
            _ => "use `quorumail backup now`",
        };
        self.ignored.push(format!("{origin}: has no effect under quorumail dev; {instead}"));
        Ok(())
    }

    fn take_secret(&mut self, origin: &Origin, value: Value) -> Result<(), Vec<String>> {
        let mut secret: Secret = parse(value)?;
        let data = secret.data.get_or_insert_default();
        for (key, text) in secret.string_data.take().unwrap_or_default() {
            data.insert(key, k8s_openapi::ByteString(text.into_bytes()));
        }
        let key = (origin.namespace.clone(), origin.name.clone());
        if self.secrets.insert(key, secret).is_some() {
            return Err(twice());
        }
        Ok(())
    }

    fn take_ours(&mut self, origin: &Origin, value: Value) -> Result<(), Vec<String>> {
        let uid = format!("{}/{}/{}", origin.kind, origin.namespace, origin.name);
        if self.origins.contains_key(&uid) {
            return Err(twice());
        }
        // Of two that claim one name the older has it: here, the one that is written first.
        let created = i64::try_from(self.objects).ok().and_then(|at| Timestamp::from_second(at).ok());
        let meta = |found: &mut ObjectMeta| {
            found.uid = Some(uid.clone());
            found.namespace = Some(origin.namespace.clone());
            found.creation_timestamp = created.map(Time);
        };
        match origin.kind.as_str() {
            "MailCluster" => {
                let mut cluster: MailCluster =
                    checked(&MailCluster::crd(), value, |c: &MailCluster| check::cluster(&c.spec))?;
                meta(cluster.meta_mut());
                self.clusters.push(cluster);
            }
            "MailDomain" => {
                let mut domain: MailDomain =
                    checked(&MailDomain::crd(), value, |d: &MailDomain| check::domain(&d.spec))?;
                meta(domain.meta_mut());
                self.domains.push(Arc::new(domain));
            }
            "MailingList" => {
                let mut list: MailingList =
                    checked(&MailingList::crd(), value, |l: &MailingList| check::list(&l.spec))?;
                meta(list.meta_mut());
                self.lists.push(Arc::new(list));
            }
            _ => {
                let mut mailbox: Mailbox =
                    checked(&Mailbox::crd(), value, |m: &Mailbox| check::mailbox(&m.spec))?;
                meta(mailbox.meta_mut());
                self.mailboxes.push(Arc::new(mailbox));
            }
        }
        self.origins.insert(uid, origin.clone());
        Ok(())
    }

    /// Where an object is written.
    pub fn origin<K: kube::Resource>(&self, object: &K) -> String {
        let origin = object.meta().uid.as_ref().and_then(|uid| self.origins.get(uid));
        origin.map_or_else(|| object.name_any(), ToString::to_string)
    }
}

fn is_ours(version: &str) -> bool {
    version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/')) == Some(VERSION)
}

fn twice() -> Vec<String> {
    vec!["is written a second time; the first one is used".to_owned()]
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Vec<String>> {
    serde_json::from_value(value).map_err(|error| vec![error.to_string()])
}

fn checked<T: DeserializeOwned>(
    crd: &CustomResourceDefinition,
    value: Value,
    rules: impl Fn(&T) -> Vec<String>,
) -> Result<T, Vec<String>> {
    let problems = check::schema(crd, &value);
    if !problems.is_empty() {
        return Err(problems);
    }
    let object = parse(value)?;
    let problems = rules(&object);
    if problems.is_empty() { Ok(object) } else { Err(problems) }
}

fn read(file: &Path) -> io::Result<String> {
    let len = fs::metadata(file)?.len();
    if len > MAX_FILE {
        return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    fs::read_to_string(file)
}

/// The files that a path means, in the order of their names.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if is_resource_file(&file) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// By its name; editors' hidden files are not.
pub fn is_resource_file(file: &Path) -> bool {
    let hidden = file.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
    !hidden
        && file
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Resources {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Resources::load(&[dir.path().to_owned()])
    }

    const CONTRACT: &str = r#"
{apiVersion: quorumail.io/v1alpha1, kind: MailDomain, metadata: {name: example-org}, spec: {domain: example.org}}
---
{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: alice}, spec: {address: alice@example.org,
  passwordSecretRef: {name: people, key: alice}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: people}, stringData: {alice: "a password"}, data: {bob: aGk=}}
---
---
{apiVersion: v1, kind: Namespace, metadata: {name: mail}}
"#;

    #[test]
    fn the_least_that_must_work_is_read() {
        let resources =
            load(&[("all.yaml", CONTRACT), ("notes.txt", "not: [yaml"), (".hidden.yaml", "not: [yaml")]);
        assert_eq!(resources.problems, Vec::<String>::new());
        assert_eq!(resources.domains[0].spec.domain, "example.org");
        assert_eq!(resources.mailboxes[0].spec.address, "alice@example.org");
        let people = &resources.secrets[&(DEFAULT_NAMESPACE.to_owned(), "people".to_owned())];
        let data = people.data.as_ref().unwrap();
        assert_eq!(data["alice"].0, b"a password");
        assert_eq!(data["bob"].0, b"hi");
    }

    #[test]
    fn a_wrong_object_is_named_and_the_others_are_taken() {
        let wrong = r#"
{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: eve, namespace: mail}, spec: {address: Eve}}
---
{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: adam}, spec: {address: adam@example.org, quota: {storage: lots}}}
---
{apiVersion: quorumail.io/v1alpha1, kind: MailingLots, metadata: {name: all}, spec: {}}
---
{apiVersion: quorumail.io/v1alpha1, kind: MailDomain, metadata: {name: example-org}, spec: {domain: example.com}}
---
{kind: Mailbox}
"#;
        let resources = load(&[("a.yaml", CONTRACT), ("b.yaml", wrong), ("c.yaml", "{a: b\n---\nc: [")]);
        assert_eq!((resources.domains.len(), resources.mailboxes.len()), (1, 1));
        let has = |parts: &[&str]| {
            let found = resources.problems.iter().any(|p| parts.iter().all(|part| p.contains(part)));
            assert!(found, "{parts:?} is not in {:#?}", resources.problems);
        };
        has(&["b.yaml: Mailbox mail/eve: spec.address \"Eve\" must be"]);
        has(&["b.yaml: Mailbox adam: ", "lots"]);
        has(&["b.yaml: MailingLots all: ", "no such kind"]);
        has(&["b.yaml: MailDomain example-org: is written a second time"]);
        has(&["b.yaml: document 5 has no kind"]);
        has(&["c.yaml: document 1: "]);
        assert_eq!(resources.problems.len(), 6, "{:#?}", resources.problems);
    }

    #[test]
    fn what_has_no_effect_is_told_and_is_no_problem() {
        let policy = r#"{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {name: nightly}, spec: {schedule: "0 3 * * *",
  target: {s3: {endpoint: "https://s3.example.org", bucket: b, credentialsSecretRef: {name: s3}}}, encryptionKeySecretRef: {name: k}}}
---
{apiVersion: quorumail.io/v1alpha1, kind: MailRestore, metadata: {name: r}, spec: {source: {policyRef: {name: p}}, scop: {}}}"#;
        let resources = load(&[("a.yaml", policy)]);
        assert_eq!(resources.ignored.len(), 1, "{:#?}", resources.ignored);
        assert!(resources.ignored[0].contains("BackupPolicy nightly: has no effect under quorumail dev"));
        assert!(
            resources.problems.iter().any(|p| p.contains("spec.scop is not a field")),
            "{:#?}",
            resources.problems
        );
    }

    #[test]
    fn a_path_that_is_not_there_is_a_problem() {
        let resources = Resources::load(&[PathBuf::from("/nowhere/at/all.yaml")]);
        assert!(resources.problems[0].starts_with("/nowhere/at/all.yaml: failed to read"));
    }
}
