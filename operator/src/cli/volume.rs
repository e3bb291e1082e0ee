//! `quorumail volume`: what runs beside the claim of a BackupPolicy whose target is a volume.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Subcommand;
use quorumail_volume::{BUCKET, Options, Server, VolumeError};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::Failure;

/// Until the next look at whether the server before has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Looks at most: a pod has 30 s to end.
const LOOKS: u32 = 30;

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Serves a directory, a mounted volume as a rule, as the bucket `backups` of S3, until SIGTERM. Only whoever has the one
    /// pair of keys is served. Logs to standard error, in JSON; RUST_LOG says what.
    Serve {
        /// The directory; objects are files below `backups` in it.
        #[arg(long, value_name = "DIR")]
        directory: PathBuf,
        /// Address to listen on.
        #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9000")]
        listen: SocketAddr,
        /// Directory with the files accessKeyId and secretAccessKey, which are read again when they change.
        #[arg(long, value_name = "DIR")]
        credentials: PathBuf,
        /// Directory with the files tls.crt and tls.key, likewise.
        #[arg(long, value_name = "DIR")]
        tls: PathBuf,
    },
}

pub(super) async fn run(command: VolumeCommand) -> Result<(), Failure> {
    let VolumeCommand::Serve { directory, listen, credentials, tls } = command;
    // What the library says of each request that it refuses is said by the answer.
    quorumail_logging::start("info,s3s=off");
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::Failed(format!("failed to {what}: {error}"));
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| failed("wait for SIGTERM", &error))?;
    let options =
        Options { directory: directory.clone(), bucket: BUCKET.to_owned(), credentials, tls: Some(tls) };
    let server = tokio::select! {
        server = open(&options) => server?,
        _ = terminate.recv() => return Ok(()),
    };
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| failed(&format!("listen on {listen}"), &error))?;
    tracing::info!(directory = %directory.display(), %listen, "serving");
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            // An error means that it cannot be waited for; SIGTERM still can.
            Ok(()) = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("ending");
    };
    server.serve(listener, stop).await;
    tracing::info!("ended");
    Ok(())
}

/// Waits for one that is about to end.
async fn open(options: &Options) -> Result<Server, Failure> {
    let mut looks = 1;
    loop {
        match Server::open(options) {
            Err(error @ VolumeError::InUse(_)) if looks < LOOKS => {
                tracing::info!(%error, "waiting for it");
                looks += 1;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            result => return result.map_err(|error| Failure::Failed(error.to_string())),
        }
    }
}
