//! Leaving a list with one click (RFC 8058): a link in each copy that only the list can make.
//!
//! Mail programs POST to it and are heard. What looks at links (RFC 8058 6: filters that fetch them) is shown a page with a
//! button, and nothing happens.

use std::{fmt::Write as _, sync::Arc, sync::OnceLock};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use quorumail_message::{Address, Domain, list};
use quorumail_store::ListRecord;

use super::{ListFailure, Lists, token};

const PATH: &str = "/lists/leave";
/// RFC 5322 2.1.1: octets of a line, less those of the field's name.
const MAX_LINK: usize = 900;

/// Answers those who leave.
#[derive(Default)]
pub struct Links(OnceLock<Arc<Lists>>);

/// Fields of a copy that say how its reader leaves: by mail (RFC 2369 3.2), and with one click at `host` where there is one.
/// Without a link when that would be too long for a line.
pub fn fields(record: &ListRecord, member: &Address, host: Option<&Domain>) -> String {
    let mail = format!("<mailto:{}>", list::uri(&list::part(&record.address, "leave", "")));
    let link = host.map(|host| link(host, record, member)).filter(|link| link.len() <= MAX_LINK);
    match link {
        Some(link) => format!(
            "List-Unsubscribe: <{link}>,\r\n {mail}\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        ),
        None => format!("List-Unsubscribe: {mail}\r\n"),
    }
}

fn link(host: &Domain, record: &ListRecord, member: &Address) -> String {
    let token = token::of_leaving(record, member);
    format!("https://{host}{PATH}/{}/{}/{token}", list::uri(&record.address), list::uri(member))
}

impl Links {
    /// From now on these lists are left.
    pub fn open(&self, lists: Arc<Lists>) {
        let _ = self.0.set(lists);
    }

    /// What is served.
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route(&format!("{PATH}/{{list}}/{{member}}/{{token}}"), get(ask).post(leave))
            .with_state(self)
    }
}

type Parts = Path<(String, String, String)>;

async fn ask(Path((list, member, _)): Parts) -> Response {
    // Nothing is looked up: the page tells nobody whether there is such a list or such a member.
    let text = match (list.parse::<Address>(), member.parse::<Address>()) {
        (Ok(list), Ok(member)) => {
            let text = format!("{member} will get no more messages of the mailing list {list}.");
            page(&text, true)
        }
        _ => return unknown(),
    };
    html(StatusCode::OK, text)
}

/// What is sent along (RFC 8058 3.2) says nothing that the link does not, and is not read.
async fn leave(State(links): State<Arc<Links>>, Path((list, member, token)): Parts) -> Response {
    let (Ok(list), Ok(member)) = (list.parse::<Address>(), member.parse::<Address>()) else {
        return unknown();
    };
    let Some(lists) = links.0.get() else { return later() };
    match lists.leave(&list, &member, &token).await {
        Ok(true) => {
            let text = format!("{member} gets no more messages of the mailing list {list}.");
            html(StatusCode::OK, page(&text, false))
        }
        Ok(false) | Err(ListFailure::Refused(..)) => unknown(),
        Err(ListFailure::Full(text) | ListFailure::Unavailable(text)) => {
            tracing::warn!(%list, reason = text, "somebody could not leave a mailing list with one click");
            later()
        }
    }
}

fn unknown() -> Response {
    html(StatusCode::NOT_FOUND, page("There is no such mailing list or member.", false))
}

fn later() -> Response {
    let text = page("This cannot be done now. Please try again in a few minutes.", false);
    html(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn html(status: StatusCode, text: String) -> Response {
    let fields = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
    ];
    (status, fields, text).into_response()
}

fn page(text: &str, asks: bool) -> String {
    let button = "<form method=\"post\"><button>Leave the list</button></form>\n";
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Mailing list</title></head>\n<body><p>{}</p>\n{}</body></html>\n",
        escaped(text),
        if asks { button } else { "" },
    )
}

/// Text that HTML does not take for its own.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_alphanumeric() || " .@-_+".contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "&#{};", u32::from(c));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::testkit::list;

    #[test]
    fn a_copy_says_how_to_leave_by_mail_and_where_it_can_with_one_click() {
        let (list, alice): (_, Address) = (list(), "alice@example.org".parse().unwrap());
        let mail = "<mailto:announce-leave@example.org>";
        assert_eq!(fields(&list, &alice, None), format!("List-Unsubscribe: {mail}\r\n"));
        let host = "mail.example.org".parse().unwrap();
        let token = token::of_leaving(&list, &alice);
        assert_eq!(
            fields(&list, &alice, Some(&host)),
            format!(
                "List-Unsubscribe: <https://mail.example.org/lists/leave/announce@example.org/alice@example.org/{token}>,\r\n \
                 {mail}\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
            )
        );
    }

    #[test]
    fn what_a_link_says_cannot_become_a_part_of_the_page() {
        assert_eq!(escaped("a@b.org"), "a@b.org");
        assert_eq!(escaped("<b \"x\">&'"), "&#60;b &#34;x&#34;&#62;&#38;&#39;");
    }
}
