//! `quorumail domain`: the DNS records that domains need, and what was found of them.

use clap::{Args, Subcommand};
use kube::{Api, api::ListParams};
use quorumail_crds::{
    MailDomain,
    maildomain::{DnsRecord, DnsState},
};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};
use crate::{dev::state, dns};

/// Characters of a value in the table; the whole stands in the other forms.
const SHOWN: usize = 60;

#[derive(Debug, Subcommand)]
pub(super) enum DomainCommand {
    /// Shows the DNS records that domains need, and what was found of each.
    Dns(DnsArgs),
}

#[derive(Debug, Args)]
pub(super) struct DnsArgs {
    /// Domain; without one, all.
    domain: Option<String>,
    /// Prints lines for a zone file instead, ready to paste.
    #[arg(long)]
    zone: bool,
    /// Leaves out records that are there as they should be.
    #[arg(long)]
    wrong: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    domain: String,
    #[serde(flatten)]
    record: DnsRecord,
}

pub(super) async fn run(target: &Target, format: Format, command: &DomainCommand) -> Result<(), Failure> {
    let DomainCommand::Dns(args) = command;
    let wanted = args.domain.as_ref().map(|domain| domain.trim_end_matches('.').to_lowercase());
    let mut domains = match &target.dev {
        Some(dir) => {
            let kept = state::dns_records(dir).map_err(|error| Failure::Failed(error.to_string()))?;
            kept.into_iter().collect()
        }
        None => from_kubernetes(target).await?,
    };
    domains.sort_by(|a: &(String, _), b| a.0.cmp(&b.0));
    if let Some(wanted) = &wanted {
        domains.retain(|(domain, _)| domain == wanted);
        if domains.is_empty() {
            return Err(Failure::Failed(format!("there is no MailDomain for {wanted}")));
        }
    }
    let rows = domains.into_iter().flat_map(|(domain, records)| {
        records.into_iter().map(move |record| Row { domain: domain.clone(), record })
    });
    let rows: Vec<Row> = rows.filter(|row| !args.wrong || row.record.state != DnsState::Present).collect();
    if args.zone {
        let lines: Vec<String> = rows.iter().map(|row| dns::zone_line(&row.record)).collect();
        return output::line(lines.join("\n").trim_end());
    }
    output::print(format, &rows, |rows| table(rows))
}

/// The MailDomains of the MailCluster that is meant.
async fn from_kubernetes(target: &Target) -> Result<Vec<(String, Vec<DnsRecord>)>, Failure> {
    if !target.admin.is_empty() {
        let text = "DNS records stand in MailDomains: say --dev, or where the MailCluster is";
        return Err(Failure::Usage(text.to_owned()));
    }
    let kubernetes = target.kubernetes().await?;
    let api: Api<MailDomain> = Api::namespaced(kubernetes.client, &kubernetes.namespace);
    let found = api.list(&ListParams::default()).await?;
    let is_ours = |domain: &MailDomain| {
        domain.spec.cluster_ref.as_ref().is_none_or(|cluster| {
            cluster.means(&kubernetes.namespace, &kubernetes.namespace, &kubernetes.cluster)
        })
    };
    let ours = found.items.into_iter().filter(is_ours);
    Ok(ours
        .map(|domain| {
            let records = domain.status.map(|status| status.dns_records).unwrap_or_default();
            (domain.spec.domain.to_lowercase(), records)
        })
        .collect())
}

fn table(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        let record = &row.record;
        let value = match &record.found {
            Some(found) => format!("{} (found: {})", cut(&record.value), cut(found)),
            None => cut(&record.value),
        };
        [format!("{:?}", record.state), record.type_.clone(), record.name.clone(), value]
    });
    output::table(["STATE", "TYPE", "NAME", "VALUE"], cells)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_the_state_of_each_record_and_what_was_found() {
        let spec = serde_yaml::from_str("{domain: example.org, spf: {include: [relay.test]}}").unwrap();
        let mut records = dns::records(&spec, "mail.example.org", &[]);
        records[1].state = DnsState::Mismatch;
        records[1].found = Some("v=spf1 -all".to_owned());
        let row = |record: DnsRecord| Row { domain: "example.org".to_owned(), record };
        let text = table(&records.into_iter().map(row).collect::<Vec<_>>());
        let line = text.lines().nth(2).unwrap();
        assert!(line.starts_with("Mismatch"), "{text}");
        assert!(line.ends_with("v=spf1 mx include:relay.test ~all (found: v=spf1 -all)"), "{text}");
    }
}
