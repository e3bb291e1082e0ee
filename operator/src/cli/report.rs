//! `quorumail report`: what a mail service did in a week or a month, from Prometheus.

use clap::Args;
use jiff::Timestamp;
use quorumail_crds::Span;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};
use crate::report::{
    Scope, document as document_of,
    document::{html, markdown},
    gather,
    prometheus::Prometheus,
};

/// Longest time that is reported on, in seconds: a year.
const LONGEST: u64 = 366 * 86_400;
const SHORTEST: u64 = 60;

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Over how long, until now: 7d, 30d, 12h.
    #[arg(long, default_value = "7d")]
    since: String,
    /// Where Prometheus answers.
    #[arg(long, value_name = "URL", env = "PROMETHEUS_URL")]
    prometheus: String,
    /// Prints one HTML page that needs nothing else, instead of Markdown.
    #[arg(long)]
    html: bool,
}

pub(super) async fn run(target: &Target, format: Format, args: &ReportArgs) -> Result<(), Failure> {
    let scope = scope(target, args, Timestamp::now())?;
    let prometheus = Prometheus::new(&args.prometheus).map_err(|error| Failure::Usage(error.to_string()))?;
    let figures = gather(&prometheus, &scope).await.map_err(|error| Failure::Failed(error.to_string()))?;
    output::print(format, &figures, |figures| {
        let document = document_of(figures, &scope);
        if args.html { html(&document) } else { markdown(&document) }
    })
}

fn scope(target: &Target, args: &ReportArgs, until: Timestamp) -> Result<Scope, Failure> {
    let wrong = || Failure::Usage(format!("--since {} is no length of time as 7d, up to a year", args.since));
    let seconds = args.since.parse::<Span>().map_err(|_| wrong())?.duration().as_secs();
    if !(SHORTEST..=LONGEST).contains(&seconds) {
        return Err(wrong());
    }
    for name in target.namespace.iter().chain(&target.cluster) {
        // They become part of queries.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
            return Err(Failure::Usage(format!("{name:?} is no name of a resource")));
        }
    }
    let seconds = i64::try_from(seconds).map_err(|_| wrong())?;
    Ok(Scope { namespace: target.namespace.clone(), cluster: target.cluster.clone(), until, seconds })
}
