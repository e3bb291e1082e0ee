//! `quorumail probe`: sends a message in each domain and reads it back, now.
//!
//! The mailbox that it is sent to is made for it and removed again, with what is in it.

use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use rustls::RootCertStore;
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};
use crate::{
    admin::AdminClient,
    dev::state,
    mailcluster::certificates::CERT_KEY,
    mailnode_config::port,
    probe::{self, Probe, Service},
    probing::{account, trusted},
};

/// Domains at a time.
const AT_ONCE: usize = 4;

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// Domains; without one, all.
    domains: Vec<String>,
    /// How long a message may take once it was sent, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    within: u64,
}

/// What came of it in one domain. Times are in milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    domain: String,
    passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_millis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_millis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The way of a message.
struct Way {
    submission: Service,
    imaps: Service,
    roots: RootCertStore,
}

pub(super) async fn run(target: &Target, format: Format, args: &ProbeArgs) -> Result<(), Failure> {
    let (client, way) = way(target).await?;
    let served = client.list_directory().await?.domains;
    let wanted: Vec<String> = match args.domains.as_slice() {
        [] => served.keys().cloned().collect(),
        some => some.iter().map(|domain| domain.trim_end_matches('.').to_lowercase()).collect(),
    };
    if let Some(unknown) = wanted.iter().find(|domain| !served.contains_key(*domain)) {
        return Err(Failure::Failed(format!("the domain {unknown} is not served")));
    }
    let within = Duration::from_secs(args.within);
    let rows = futures::stream::iter(wanted).map(|domain| row(&client, &way, domain, within));
    let rows: Vec<Row> = rows.buffered(AT_ONCE).collect().await;
    output::print(format, &rows, |rows| table(rows))?;
    let failed = rows.iter().filter(|row| !row.passed).count();
    match (failed, rows.len()) {
        (_, 0) => Err(Failure::Failed("there is no domain to probe; make a MailDomain".to_owned())),
        (0, _) => Ok(()),
        (failed, all) => Err(Failure::Failed(format!("{failed} of {all} domains failed"))),
    }
}

async fn way(target: &Target) -> Result<(AdminClient, Way), Failure> {
    if target.tls_dir.is_some() {
        let text = "where mail goes is not known from --admin: leave it out, or say --dev";
        return Err(Failure::Usage(text.to_owned()));
    }
    match &target.dev {
        Some(dir) => {
            let client = target.connect().await?;
            let nodes = client.cluster_status().await?.nodes;
            let ready = nodes.iter().find(|node| node.status.as_ref().is_some_and(|status| status.ready));
            let node = ready.ok_or_else(|| Failure::Failed("no mailnode is ready".to_owned()))?;
            let cluster = state::cluster(dir).map_err(|error| Failure::Failed(error.to_string()))?;
            let admin =
                cluster.and_then(|cluster| cluster.admin.get(usize::try_from(node.node).ok()?).cloned());
            let admin =
                admin.ok_or_else(|| Failure::Failed("where the mailnodes are is not known".to_owned()))?;
            let path = state::pki_dir(dir, "public").join(CERT_KEY);
            let certificate = std::fs::read_to_string(&path)
                .map_err(|error| Failure::Failed(format!("failed to read {}: {error}", path.display())))?;
            let roots = trusted(&certificate, None).map_err(Failure::Failed)?;
            let beside = |wanted: u16| beside(&admin, wanted);
            Ok((client, Way { submission: beside(port::SUBMISSION)?, imaps: beside(port::IMAPS)?, roots }))
        }
        None => {
            let kubernetes = target.kubernetes().await?;
            let client = kubernetes.connect().await?;
            let (name, certificate, authority) = kubernetes.public_tls().await?;
            let roots = trusted(&certificate, authority.as_deref()).map_err(Failure::Failed)?;
            let [submission, imaps] = kubernetes.forward_to_one([port::SUBMISSION, port::IMAPS]).await?;
            let service = |(host, port)| Service { name: name.clone(), host, port };
            Ok((client, Way { submission: service(submission), imaps: service(imaps), roots }))
        }
    }
}

/// Another port of the node whose admin service is at `admin`: all ports of a node are moved by the same number.
fn beside(admin: &str, wanted: u16) -> Result<Service, Failure> {
    let found = admin.rsplit_once(':').and_then(|(host, found)| {
        let moved = found.parse::<u16>().ok()?.checked_sub(port::ADMIN)?;
        Some((host.to_owned(), wanted.checked_add(moved)?))
    });
    let (host, port) =
        found.ok_or_else(|| Failure::Failed(format!("{admin} is no address of a mailnode")))?;
    // Its certificate is good for where it listens.
    Ok(Service { name: host.clone(), host, port })
}

async fn row(client: &AdminClient, way: &Way, domain: String, within: Duration) -> Row {
    match once(client, way, &domain, within).await {
        Ok(passed) => {
            let millis = |time: Duration| u64::try_from(time.as_millis()).ok();
            let (sent_millis, read_millis) = (millis(passed.sent), millis(passed.read));
            Row { domain, passed: true, sent_millis, read_millis, error: None }
        }
        Err(error) => Row { domain, passed: false, sent_millis: None, read_millis: None, error: Some(error) },
    }
}

async fn once(
    client: &AdminClient,
    way: &Way,
    domain: &str,
    within: Duration,
) -> Result<probe::Passed, String> {
    let account = account::make(client, domain, None).await.map_err(|error| error.to_string())?;
    let wanted = Probe {
        submission: way.submission.clone(),
        imaps: way.imaps.clone(),
        roots: way.roots.clone(),
        address: account.address.clone(),
        password: account.password.clone(),
        within,
    };
    let result = probe::probe(&wanted).await;
    if let Err(error) = account::remove(client, &account).await {
        eprintln!("the mailbox of the probe, {}, could not be removed: {error}", account.address);
    }
    result.map_err(|error| error.to_string())
}

fn table(rows: &[Row]) -> String {
    let rows = rows.iter().map(|row| {
        let time =
            |millis: Option<u64>| millis.map_or_else(|| "-".to_owned(), |millis| format!("{millis} ms"));
        let result = row.error.clone().unwrap_or_else(|| "passed".to_owned());
        [row.domain.clone(), time(row.sent_millis), time(row.read_millis), result]
    });
    output::table(["DOMAIN", "SENT IN", "READ IN", "RESULT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_a_node_lie_beside_each_other() {
        let service = beside("127.0.0.2:9543", port::IMAPS).unwrap();
        assert_eq!(
            (service.host.as_str(), service.name.as_str(), service.port),
            ("127.0.0.2", "127.0.0.2", 3093)
        );
        for wrong in ["127.0.0.1", "127.0.0.1:1", "127.0.0.1:x"] {
            assert!(beside(wrong, port::IMAPS).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_failed_is_told_in_words() {
        let row = |passed: bool| Row {
            domain: "example.org".to_owned(),
            passed,
            sent_millis: passed.then_some(12),
            read_millis: passed.then_some(3),
            error: (!passed).then(|| "it was not taken".to_owned()),
        };
        let text = table(&[row(true), row(false)]);
        assert!(
            text.contains("12 ms") && text.contains("passed") && text.contains("it was not taken"),
            "{text}"
        );
    }
}
