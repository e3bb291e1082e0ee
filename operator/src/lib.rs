//! The operator and the command line: what turns resources into a running, truthful mail cluster.
//!
//! Pure rooms first: [`pki`] (certificates), [`mailnode_config`] (a mailnode's configuration file), [`directory`]
//! (accounts: desired state against what the mailnodes hold). [`admin`] speaks to the mailnodes. `quorumail dev` uses
//! these without Kubernetes.

pub mod admin;
pub mod directory;
pub mod mailnode_config;
pub mod pki;
