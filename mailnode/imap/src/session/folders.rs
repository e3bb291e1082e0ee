//! CREATE, DELETE, RENAME, SUBSCRIBE and STATUS. RFC 9051 6.3.4 to 6.3.8 and 6.3.11; RFC 6154 (CREATE with USE).

use std::sync::Arc;

use super::{Done, Reply, Session};
use crate::{
    Folder, Mailbox, SpecialUse,
    command::StatusItem,
    response::{self, Out, put},
};

/// Longest folder name in octets of UTF-8.
const MAX_FOLDER_NAME: usize = 512;
/// Most levels of a folder name.
const MAX_LEVELS: usize = 32;

/// The name as a new folder gets it, or why there can be none.
fn new_name(name: &str) -> Result<&str, Reply> {
    // RFC 9051 6.3.4: a separator at the end says that there will be folders below.
    let name = name.strip_suffix('/').unwrap_or(name);
    let refuse = |why| Err(Reply::no("[CANNOT]", why));
    if name.is_empty() || name.len() > MAX_FOLDER_NAME || name.split('/').count() > MAX_LEVELS {
        return refuse("a folder name is empty or too long");
    }
    if name.split('/').any(|level| level.is_empty() || level.trim() != level) {
        return refuse("a level of a folder name is empty or has spaces around it");
    }
    if name.contains(['*', '%', '\\']) {
        return refuse("a folder name must not hold * or % or \\");
    }
    Ok(name)
}

impl Session {
    pub(super) async fn create(
        &mut self,
        mailbox: Arc<dyn Mailbox>,
        folder: &str,
        special_use: &[SpecialUse],
    ) -> Done {
        let folder = new_name(folder)?;
        if special_use.len() > 1 {
            return Err(Reply::no("[USEATTR]", "a folder has one special use").into());
        }
        self.ask(mailbox.create(folder, special_use.first().copied())).await?;
        Ok(Reply::ok("created"))
    }

    pub(super) async fn delete(&mut self, mailbox: Arc<dyn Mailbox>, folder: &str) -> Done {
        if folder == "INBOX" {
            return Err(Reply::no("[CANNOT]", "INBOX cannot be deleted").into());
        }
        let selected = self.view.as_ref().map(|view| view.folder.id);
        let found = self.ask(mailbox.folder(folder)).await?;
        self.ask(mailbox.delete(folder)).await?;
        if selected == Some(found.id) {
            self.view = None;
        }
        Ok(Reply::ok("deleted"))
    }

    pub(super) async fn rename(&mut self, mailbox: Arc<dyn Mailbox>, from: &str, to: &str) -> Done {
        let to = new_name(to)?;
        self.ask(mailbox.rename(from, to)).await?;
        self.sync_after(&mailbox).await?;
        Ok(Reply::ok("renamed"))
    }

    pub(super) async fn subscribe(
        &mut self,
        mailbox: Arc<dyn Mailbox>,
        folder: &str,
        subscribed: bool,
    ) -> Done {
        self.ask(mailbox.subscribe(folder, subscribed)).await?;
        Ok(Reply::ok(if subscribed { "subscribed" } else { "unsubscribed" }))
    }

    pub(super) async fn status(
        &mut self,
        mailbox: Arc<dyn Mailbox>,
        folder: &str,
        items: &[StatusItem],
    ) -> Done {
        let folder = self.ask(mailbox.folder(folder)).await?;
        if items.contains(&StatusItem::HighestModSeq) {
            self.use_condstore();
        }
        write_status(&mut self.connection.out, &folder, items, self.shared.config.max_message_size);
        Ok(Reply::ok("done"))
    }
}

/// Writes `* STATUS`.
pub(super) fn write_status(out: &mut Out, folder: &Folder, items: &[StatusItem], append_limit: usize) {
    out.put(b"* STATUS ");
    response::folder(out, &folder.name);
    out.put(b" (");
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.put(b" ");
        }
        match item {
            StatusItem::Messages => put!(out, "MESSAGES {}", folder.messages),
            StatusItem::Recent => out.put(b"RECENT 0"),
            StatusItem::UidNext => put!(out, "UIDNEXT {}", folder.uid_next),
            StatusItem::UidValidity => put!(out, "UIDVALIDITY {}", folder.uid_validity),
            StatusItem::Unseen => put!(out, "UNSEEN {}", folder.unseen),
            StatusItem::Size => put!(out, "SIZE {}", folder.bytes),
            StatusItem::HighestModSeq => put!(out, "HIGHESTMODSEQ {}", folder.highest_mod_seq),
            StatusItem::AppendLimit => put!(out, "APPENDLIMIT {append_limit}"),
        }
    }
    out.put(b")\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_not_be_listed_are_refused() {
        assert_eq!(new_name("Work/2024/").unwrap(), "Work/2024");
        let long = "x".repeat(MAX_FOLDER_NAME + 1);
        for name in ["", "/", "a//b", "/a", "a/ b", "a*", "50%", "a\\b", &long, &"a/".repeat(40)] {
            assert!(new_name(name).is_err(), "{name:?}");
        }
    }
}
