//! The operator and the command line: what turns resources into a running, truthful mail cluster.
//!
//! Pure rooms first: [`pki`] (certificates), [`mailnode_config`] (a mailnode's configuration file), [`directory`]
//! (accounts: desired state against what the mailnodes hold), [`accounts::plan`], [`mailcluster::objects`] and
//! [`volume`] (what serves a volume with backups).
//! [`admin`] speaks to the mailnodes, [`probe`] to what people's programs speak to. `quorumail dev` uses these without Kubernetes. The rest is runtime: [`stores`]
//! watches, [`backup`] drives backups and restores, [`mailcluster`], [`accounts`] and [`runs`] (what the resources of backups
//! ask) reconcile, [`lease`] elects.

pub mod accounts;
pub mod admin;
pub mod archiving;
pub mod backup;
pub mod backuppolicy;
pub mod block_lists;
pub mod cli;
pub mod dev;
pub mod directory;
pub mod dkim;
pub mod dns;
pub mod dns_endpoint;
pub mod dns_watch;
pub mod events;
pub mod http;
pub(crate) mod imap;
pub mod import;
pub mod lease;
pub mod mailbackup;
pub mod mailbox;
pub mod mailcluster;
pub mod maildomain;
pub mod mailinglist;
pub mod mailnode_config;
pub mod mailrestore;
pub mod metrics;
pub mod pki;
pub mod probe;
pub mod probing;
pub mod rehearsal;
pub mod report;
pub mod resource_metrics;
pub mod retention;
pub mod run;
pub mod runs;
pub mod schedule;
pub mod settings;
pub mod shape;
pub mod status;
pub mod stores;
pub mod tenancy;
pub mod unreadable;
pub mod volume;
