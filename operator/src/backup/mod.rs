//! Backups and restores, as the command line and the controllers drive them.
//!
//! A backup is made by the mailnodes: [`plan`] says which of them backs up which group, [`take`] has them do it and writes the
//! manifest at the end. Mail never passes through here. A restore does: [`restore`] reads a backup, logically, and puts it
//! back into a living cluster or into files. [`resources`] are what makes the MailCluster anew. [`location`] reads `s3://` and
//! `file://`.

pub mod archive;
pub mod export;
pub mod location;
pub mod plan;
pub mod resources;
pub mod restore;
pub mod take;

pub use self::{
    location::{Place, repository_config},
    restore::{RestoreError, RestoreProgress, RestoreRequest, Restored, Scope, Which, choose, restore},
    take::{TakeError, TakeOptions, TakeProgress, Taken, take},
};
