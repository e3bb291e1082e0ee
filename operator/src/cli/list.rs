//! `quorumail list`.

use clap::Subcommand;
use jiff::Timestamp;
use quorumail_proto::admin::{ActOnListRequest, ListState, act_on_list_request::Action, list_member::Role};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};

#[derive(Debug, Subcommand)]
pub(super) enum ListCommand {
    /// Lists mailing lists with what waits.
    Status {
        /// Only these.
        addresses: Vec<String>,
    },
    /// Lists the members of a list, with those who joined or left by mail and whose mail comes back.
    Members {
        /// Address of the list.
        list: String,
    },
    /// Lists messages that wait for a moderator, and who asked to become a member.
    Held {
        /// Address of the list.
        list: String,
    },
    /// Shows a message that waits, as the members would get it.
    Show {
        /// Address of the list.
        list: String,
        /// As `held` shows it.
        id: String,
    },
    /// Lets messages go to the members, and people become members.
    Approve {
        /// Address of the list.
        list: String,
        /// As `held` shows them.
        #[arg(required = true)]
        what: Vec<String>,
    },
    /// Throws messages away, and lets people not become members. Nobody is told.
    Refuse {
        /// Address of the list.
        list: String,
        /// As `held` shows them.
        #[arg(required = true)]
        what: Vec<String>,
    },
    /// Serves members again whose mail came back.
    Resume {
        /// Address of the list.
        list: String,
        /// Their addresses.
        #[arg(required = true)]
        members: Vec<String>,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    address: String,
    members: u32,
    held: usize,
    asking: usize,
    expanding: u32,
    bouncing: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    address: String,
    role: &'static str,
    joined: bool,
    left: bool,
    bounces: u32,
    suspended: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    id: String,
    from: String,
    subject: String,
    arrived_at: Option<Timestamp>,
    size: u64,
    reason: String,
}

pub(super) async fn run(target: &Target, format: Format, command: &ListCommand) -> Result<(), Failure> {
    match command {
        ListCommand::Status { addresses } => {
            let states = target.connect().await?.lists(addresses.clone(), false).await?;
            let states: Vec<State> = states.into_iter().map(State::from).collect();
            output::print(format, &states, |states| states_table(states))
        }
        ListCommand::Members { list } => {
            let members: Vec<Member> =
                one(target, list, true).await?.all.into_iter().map(Member::from).collect();
            output::print(format, &members, |members| members_table(members))
        }
        ListCommand::Held { list } => {
            let held = held(one(target, list, false).await?);
            output::print(format, &held, |held| held_table(held, Timestamp::now()))
        }
        ListCommand::Show { list, id } => {
            let found = target.connect().await?.held_post(list, id).await?;
            output::line(&String::from_utf8_lossy(&found.body))
        }
        ListCommand::Approve { list, what } => act(target, list, Action::Approve, what).await,
        ListCommand::Refuse { list, what } => act(target, list, Action::Refuse, what).await,
        ListCommand::Resume { list, members } => act(target, list, Action::Resume, members).await,
    }
}

async fn one(target: &Target, list: &str, members: bool) -> Result<ListState, Failure> {
    let found = target.connect().await?.lists(vec![list.to_owned()], members).await?;
    found.into_iter().next().ok_or_else(|| Failure::Failed(format!("there is no mailing list {list}")))
}

async fn act(target: &Target, list: &str, action: Action, subjects: &[String]) -> Result<(), Failure> {
    let request =
        ActOnListRequest { list: list.to_owned(), action: action.into(), subjects: subjects.to_vec() };
    let changed = target.connect().await?.act_on_list(request).await? as usize;
    output::line(&format!("{changed} changed"))?;
    // What was mistyped must not look like success.
    if changed < subjects.len() {
        let missing = subjects.len() - changed;
        return Err(Failure::Failed(format!("{missing} of {} were not there to change", subjects.len())));
    }
    Ok(())
}

impl From<ListState> for State {
    fn from(state: ListState) -> Self {
        Self {
            address: state.address,
            members: state.members,
            held: state.held.len(),
            asking: state.asking.len(),
            expanding: state.expanding,
            bouncing: state.bouncing,
        }
    }
}

impl From<quorumail_proto::admin::ListMemberState> for Member {
    fn from(member: quorumail_proto::admin::ListMemberState) -> Self {
        let role = match member.role() {
            Role::Owner => "owner",
            Role::Moderator => "moderator",
            Role::Member | Role::Unspecified => "member",
        };
        Self {
            address: member.address,
            role,
            joined: member.joined,
            left: member.left,
            bounces: member.bounces,
            suspended: member.suspended,
        }
    }
}

fn held(state: ListState) -> Vec<Held> {
    let posts = state.held.into_iter().map(|post| Held {
        id: post.id,
        from: post.author,
        subject: post.subject,
        arrived_at: output::instant(post.arrived_at),
        size: post.size,
        reason: post.reason,
    });
    let asking = state.asking.into_iter().map(|address| Held {
        id: address.clone(),
        from: address,
        subject: String::new(),
        arrived_at: None,
        size: 0,
        reason: "asks to become a member".to_owned(),
    });
    posts.chain(asking).collect()
}

fn states_table(states: &[State]) -> String {
    if states.is_empty() {
        return "there are no mailing lists\n".to_owned();
    }
    let rows = states.iter().map(|state| {
        [
            state.address.clone(),
            state.members.to_string(),
            state.held.to_string(),
            state.asking.to_string(),
            state.expanding.to_string(),
            state.bouncing.len().to_string(),
        ]
    });
    output::table(["LIST", "MEMBERS", "HELD", "ASKING", "EXPANDING", "BOUNCING"], rows)
}

fn members_table(members: &[Member]) -> String {
    let rows = members.iter().map(|member| {
        let state = match (member.left, member.suspended, member.joined) {
            (true, _, _) => "left",
            (_, true, _) => "suspended",
            (_, _, true) => "joined",
            _ => "",
        };
        [member.address.clone(), member.role.to_owned(), state.to_owned(), member.bounces.to_string()]
    });
    output::table(["MEMBER", "ROLE", "STATE", "BOUNCES"], rows)
}

fn held_table(held: &[Held], now: Timestamp) -> String {
    if held.is_empty() {
        return "nothing waits\n".to_owned();
    }
    let rows = held.iter().map(|held| {
        let age = held.arrived_at.map(|at| output::span(now.duration_since(at).as_secs()));
        [
            held.id.clone(),
            age.unwrap_or_else(|| "-".to_owned()),
            output::bytes(held.size),
            held.from.clone(),
            held.subject.clone(),
            held.reason.clone(),
        ]
    });
    output::table(["ID", "AGE", "SIZE", "FROM", "SUBJECT", "WAITS BECAUSE"], rows)
}
