//! A living mailbox into files: how people move out, or take their mail with them. Read as it is at one instant; when the
//! connection breaks it goes on at another mailnode behind the last message that is in the files.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use quorumail_proto::admin::{ExportMailboxRequest, ExportedBefore, MailFolder, MailMessage, export_item};
use quorumail_store::{Flag, MessageMeta, ModSeq, Timestamp, Uid, UidValidity};
use tokio::time::timeout;
use tonic::Status;

use super::restore::{
    RestoreError,
    files::{Files, Writer},
};
use crate::admin::{AdminClient, AdminError, streaming_failure};

/// Times that the stream is begun without a message in between.
const ATTEMPTS: usize = 8;
/// Before it is begun again.
const PAUSE: Duration = Duration::from_secs(2);
/// A node that is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Largest message that is taken: more than a mailnode accepts.
const MAX_MESSAGE: u64 = 256 << 20;

/// What was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    /// Folders, empty ones as well.
    pub folders: u64,
    /// Messages written.
    pub messages: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that were in the files already.
    pub already_there: u64,
}

/// Writes a mailbox into files; without names of folders, all of it. Into Maildirs it can be repeated: what is there stays as
/// it is. `progress` hears of how many bytes are done, and of how many.
///
/// # Errors
/// When the mailbox or a folder is not there, no mailnode can be reached, or a file cannot be written.
pub async fn export(
    admin: &AdminClient,
    address: &str,
    folders: &[String],
    files: &Files,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Exported, RestoreError> {
    let address = address.to_lowercase();
    let writer = files.writer(&address, folders.len() == 1);
    let mut open = Open {
        writer: Some(writer),
        folder: None,
        skips: false,
        last: HashMap::new(),
        exported: Exported::default(),
        done_bytes: 0,
        total_bytes: 0,
        progress,
    };
    let (mut failures, mut turn) = (0, 0);
    loop {
        let written = open.exported.messages + open.exported.already_there;
        let reason = match open.stream(admin, turn, &address, folders).await {
            Ok(()) => break,
            Err(Broken::Again(reason)) => reason,
            Err(Broken::Failed(error)) => return Err(error),
        };
        let goes_on = open.exported.messages + open.exported.already_there > written;
        failures = if goes_on { 1 } else { failures + 1 };
        if failures == ATTEMPTS {
            return Err(
                AdminError::Unreachable(format!("{address}: tried {ATTEMPTS} times; {reason}")).into()
            );
        }
        tracing::warn!(mailbox = address, reason, "an export goes on at another mailnode");
        turn += 1;
        tokio::time::sleep(PAUSE).await;
    }
    let writer = open.writer.take();
    blocking(move || writer.map_or(Ok(()), Writer::end)).await?;
    Ok(open.exported)
}

enum Broken {
    /// It is begun again.
    Again(String),
    Failed(RestoreError),
}

impl From<RestoreError> for Broken {
    fn from(error: RestoreError) -> Self {
        Self::Failed(error)
    }
}

struct Open<'p> {
    /// Lent to the threads that may block.
    writer: Option<Box<dyn Writer>>,
    /// The one that is written.
    folder: Option<String>,
    /// What is told of now came into a folder that was done before the connection broke.
    skips: bool,
    /// Of every folder that was begun: its UIDVALIDITY, and the last UID that is in the files.
    last: HashMap<String, (u32, u32)>,
    exported: Exported,
    /// Of the messages that are in the files.
    done_bytes: u64,
    /// Of all that are wanted.
    total_bytes: u64,
    progress: &'p (dyn Fn(u64, u64) + Send + Sync),
}

impl Open<'_> {
    async fn stream(
        &mut self,
        admin: &AdminClient,
        turn: usize,
        address: &str,
        folders: &[String],
    ) -> Result<(), Broken> {
        let (node, mut client) =
            admin.streaming(turn).ok_or_else(|| Broken::Again("there is no mailnode".to_owned()))?;
        let failed = |status: Status| match streaming_failure(node, &status) {
            (true, text) => Broken::Again(text),
            (false, text) => Broken::Failed(RestoreError::Request(format!("{address}: {text}"))),
        };
        let silent = |_| Broken::Again(format!("{node}: silent for {SILENCE:?}"));
        let before = self.last.iter().map(|(folder, (uid_validity, uid))| ExportedBefore {
            folder: folder.clone(),
            uid_validity: *uid_validity,
            uid: *uid,
        });
        let request = ExportMailboxRequest {
            address: address.to_owned(),
            folders: folders.to_vec(),
            before: before.collect(),
            forwarded: false,
        };
        let begun = timeout(SILENCE, client.export_mailbox(request)).await.map_err(silent)?;
        let mut items = begun.map_err(failed)?.into_inner();
        let mut message: Option<(MailMessage, Vec<u8>)> = None;
        while let Some(item) = timeout(SILENCE, items.message()).await.map_err(silent)?.map_err(failed)? {
            match item.item {
                Some(export_item::Item::Totals(totals)) => {
                    self.total_bytes = self.done_bytes + totals.bytes;
                }
                Some(export_item::Item::Folder(folder)) => self.begin(folder).await?,
                Some(export_item::Item::Message(meta)) if meta.size <= MAX_MESSAGE => {
                    let room = usize::try_from(meta.size).unwrap_or(0);
                    message = Some((meta, Vec::with_capacity(room)));
                }
                Some(export_item::Item::Message(meta)) => {
                    let text = format!("{address}: UID {} is larger than {MAX_MESSAGE} bytes", meta.uid);
                    return Err(RestoreError::Request(text).into());
                }
                Some(export_item::Item::Body(piece)) => {
                    if let Some((_, body)) = &mut message {
                        body.extend_from_slice(&piece);
                    }
                }
                None => {}
            }
            // One without octets has no pieces.
            if message.as_ref().is_some_and(|(meta, body)| body.len() as u64 >= meta.size)
                && let Some((meta, body)) = message.take()
            {
                self.write(meta, body.into()).await?;
            }
        }
        match message {
            None => Ok(()),
            Some((meta, _)) => {
                Err(Broken::Again(format!("{node}: the message with UID {} was cut off", meta.uid)))
            }
        }
    }

    async fn begin(&mut self, folder: MailFolder) -> Result<(), RestoreError> {
        let known = self.last.get(&folder.name).map(|(uid_validity, _)| *uid_validity);
        if known.is_some_and(|known| known != folder.uid_validity) {
            let text = format!("folder {} was made anew meanwhile; export it again", folder.name);
            return Err(RestoreError::Request(text));
        }
        self.skips = known.is_some() && self.folder.as_ref() != Some(&folder.name);
        if known.is_none() {
            self.exported.folders += 1;
            self.last.insert(folder.name.clone(), (folder.uid_validity, 0));
            self.folder = Some(folder.name.clone());
            let uid_validity = UidValidity(folder.uid_validity);
            self.with_writer(move |writer| writer.folder(uid_validity, &folder.name)).await?;
        }
        Ok(())
    }

    async fn write(&mut self, message: MailMessage, body: Bytes) -> Result<(), RestoreError> {
        if self.skips {
            return Ok(());
        }
        let meta = MessageMeta {
            uid: Uid(message.uid),
            mod_seq: ModSeq(message.mod_seq),
            flags: message.flags.into_iter().map(Flag).collect(),
            internal_date: Timestamp(message.internal_date),
            size: u32::try_from(message.size).unwrap_or(u32::MAX),
        };
        let added = self.with_writer(move |writer| writer.message(&meta, &body)).await?;
        match added {
            true => {
                self.exported.messages += 1;
                self.exported.bytes += message.size;
            }
            false => self.exported.already_there += 1,
        }
        self.done_bytes += message.size;
        if let Some(last) = self.folder.as_ref().and_then(|folder| self.last.get_mut(folder)) {
            last.1 = message.uid;
        }
        (self.progress)(self.done_bytes, self.total_bytes);
        Ok(())
    }

    async fn with_writer<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut dyn Writer) -> Result<T, RestoreError> + Send + 'static,
    ) -> Result<T, RestoreError> {
        let mut writer = self.writer.take().expect("it is given back after each use");
        let (writer, done) = blocking(move || {
            let done = act(writer.as_mut());
            Ok((writer, done))
        })
        .await?;
        self.writer = Some(writer);
        done
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    super::restore::joined(tokio::task::spawn_blocking(act).await)
}
