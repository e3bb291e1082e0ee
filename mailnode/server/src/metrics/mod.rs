//! Numbers for Prometheus: what sessions and the delivery worker count as it happens (here), and what is sampled from
//! the other rooms when it is asked for ([`sampled`]).
//!
//! No label has values without bound: no addresses, no message ids.

mod authentication;
mod delivery;
mod imap;
mod lists;
pub mod sampled;
mod smtp;

use std::sync::OnceLock;

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use lists::PostOutcome;
use quorumail_store::QueueClass;
use sampled::Sources;

/// All numbers of the node.
pub struct Metrics {
    registry: Registry,
    smtp: smtp::Smtp,
    imap: imap::Imap,
    delivery: delivery::Delivery,
    lists: lists::Lists,
    authentication: authentication::Authentication,
    sources: OnceLock<Sources>,
}

/// Makes and registers vectors of one protocol.
struct Maker<'a> {
    registry: &'a Registry,
    protocol: &'static str,
}

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let vec = IntCounterVec::new(self.opts(name, help), labels).expect("names of metrics are valid");
        self.registry.register(Box::new(vec.clone())).expect("each metric is registered once");
        vec
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let vec = IntGaugeVec::new(self.opts(name, help), labels).expect("names of metrics are valid");
        self.registry.register(Box::new(vec.clone())).expect("each metric is registered once");
        vec
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(bounds.to_vec());
        let vec = HistogramVec::new(opts, labels).expect("names of metrics are valid");
        self.registry.register(Box::new(vec.clone())).expect("each metric is registered once");
        vec
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}_{name}", self.protocol), help).namespace("quorumail")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        quorumail_logging::register(&registry).expect("each metric is registered once");
        let (smtp, imap) = (smtp::Smtp::new(&registry), imap::Imap::new(&registry));
        let delivery = delivery::Delivery::new(&registry);
        let lists = lists::Lists::new(&registry);
        let authentication = authentication::Authentication::new(&registry);
        Self { registry, smtp, imap, delivery, lists, authentication, sources: OnceLock::new() }
    }
}

impl Metrics {
    /// What is sampled from now on. Set once, when the node has started.
    pub fn sample(&self, sources: Sources) {
        let set = self.sources.set(sources);
        assert!(set.is_ok(), "the sources of metrics are set once");
    }

    /// All of it in the text format. May block on disk.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        let mut text = String::from_utf8_lossy(&text).into_owned();
        text.push_str(&sampled::process());
        if let Some(sources) = self.sources.get() {
            text.push_str(&sources.text());
        }
        Ok(text)
    }
}

/// `ConnectionsPerAddress` as a label: `connections_per_address`.
fn label(name: &impl std::fmt::Debug) -> String {
    let name = format!("{name:?}");
    let mut label = String::with_capacity(name.len() + 4);
    for c in name.chars().take_while(char::is_ascii_alphanumeric) {
        if c.is_ascii_uppercase() && !label.is_empty() {
            label.push('_');
        }
        label.push(c.to_ascii_lowercase());
    }
    label
}

/// A class of the queue as a label.
fn class_name(class: QueueClass) -> &'static str {
    match class {
        QueueClass::Local => "local",
        QueueClass::Remote => "remote",
        QueueClass::Bad => "bad",
        QueueClass::Held => "held",
    }
}
