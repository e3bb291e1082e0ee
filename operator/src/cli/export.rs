//! `quorumail mailbox export`.

use std::path::PathBuf;

use clap::Args;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
    progress::Bar,
};
use crate::backup::{export::export, restore::files::Files};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Address of the mailbox.
    address: String,
    /// Writes a Maildir, named by the address, into this directory. What is there already is left alone.
    #[arg(long, value_name = "DIR", conflicts_with = "to_mbox", required_unless_present = "to_mbox")]
    to_maildir: Option<PathBuf>,
    /// Writes an mbox file for each folder, below this directory; with one --folder alone, this file.
    #[arg(long, value_name = "PATH")]
    to_mbox: Option<PathBuf>,
    /// Only this folder; may be given again.
    #[arg(long = "folder", value_name = "FOLDER")]
    folders: Vec<String>,
}

pub(super) async fn run(target: &Target, format: Format, args: &ExportArgs) -> Result<(), Failure> {
    let files = match (&args.to_maildir, &args.to_mbox) {
        (Some(dir), _) => Files::Maildir(dir.clone()),
        (None, Some(path)) => Files::Mbox(path.clone()),
        (None, None) => return Err(Failure::Usage("say --to-maildir or --to-mbox".to_owned())),
    };
    let admin = target.connect().await?;
    let bar = Bar::new();
    let show = |done, total| bar.set(done, total, args.address.clone());
    let exported = export(&admin, &args.address, &args.folders, &files, &show).await;
    bar.clear();
    let (exported, elapsed) = (exported?, bar.elapsed());
    output::print(format, &exported, |exported| {
        let there = match exported.already_there {
            0 => String::new(),
            count => format!("; {count} were there already"),
        };
        format!(
            "{} messages ({}) of {} folders in {:.1} s{there}\n",
            exported.messages,
            output::bytes(exported.bytes),
            exported.folders,
            elapsed.as_secs_f64(),
        )
    })
}
