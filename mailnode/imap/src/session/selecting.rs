//! SELECT, EXAMINE, CLOSE and APPEND. RFC 9051 6.3.2, 6.3.3, 6.3.12, 6.4.1; RFC 4315 3 (APPENDUID).

use std::sync::Arc;

use bytes::Bytes;

use super::{Done, Reply, Session, Stop, or_try_create};
use crate::{Flags, Mailbox, Millis, parse::SYSTEM_FLAGS, response::put, view::View};

impl Session {
    pub(super) async fn select(
        &mut self,
        mailbox: Arc<dyn Mailbox>,
        folder: &str,
        read_only: bool,
        condstore: bool,
    ) -> Done {
        // RFC 9051 6.3.2: the folder selected before is left, whether this one can be selected or not.
        self.view = None;
        let selection = self.ask(mailbox.select(folder)).await?;
        // RFC 9051 6.3.2: what cannot be changed is opened as by EXAMINE.
        let read_only = read_only || selection.folder.read_only;
        self.condstore |= condstore;
        let mut view = View::new(selection, read_only);
        let out = &mut self.connection.out;
        view.write_flags(out);
        let mut permanent = String::new();
        if !read_only {
            permanent = SYSTEM_FLAGS.join(" ");
            for keyword in view.keywords() {
                permanent.push(' ');
                permanent.push_str(keyword);
            }
            permanent.push_str(" \\*");
        }
        put!(out, "* OK [PERMANENTFLAGS ({permanent})] flags that are kept\r\n");
        view.write_exists(out);
        out.line("* 0 RECENT");
        // No UNSEEN: RFC 3501 6.3.1 lets it be left out, RFC 9051 has none, and to find it costs a walk through the folder.
        put!(out, "* OK [UIDVALIDITY {}] valid\r\n", view.folder.uid_validity);
        put!(out, "* OK [UIDNEXT {}] next\r\n", view.folder.uid_next);
        put!(out, "* OK [HIGHESTMODSEQ {}] highest\r\n", view.folder.highest_mod_seq);
        self.view = Some(view);
        let code = if read_only { "[READ-ONLY]" } else { "[READ-WRITE]" };
        Ok(Reply { code: code.to_owned(), ..Reply::ok("selected") })
    }

    pub(super) async fn close(&mut self, mailbox: Arc<dyn Mailbox>) -> Done {
        let Some(view) = self.view.take() else { return Ok(Reply::ok("closed")) };
        if !view.read_only {
            while !self.ask(mailbox.expunge(view.folder.id, None)).await?.is_empty() {}
        }
        Ok(Reply::ok("closed"))
    }

    pub(super) async fn append(
        &mut self,
        mailbox: Arc<dyn Mailbox>,
        folder: &str,
        flags: Flags,
        date: Option<Millis>,
        body: Bytes,
    ) -> Done {
        let (validity, uid) =
            self.ask(mailbox.append(folder, flags, date, body)).await.map_err(or_try_create)?;
        self.sync_after(&mailbox).await?;
        Ok(Reply { code: format!("[APPENDUID {validity} {uid}]"), ..Reply::ok("appended") })
    }

    /// Tells the client what a change has brought about. The change has been made: when the folder cannot be asked now,
    /// the client hears of it later.
    pub(super) async fn sync_after(&mut self, mailbox: &Arc<dyn Mailbox>) -> Result<(), Stop> {
        match self.sync(mailbox, true).await {
            Err(Stop::Closed(closed)) => Err(closed.into()),
            Ok(()) | Err(Stop::Refused(_)) => Ok(()),
        }
    }
}
