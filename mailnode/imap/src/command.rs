//! Commands as the parser hands them to the session. RFC 9051 6 and RFC 3501 6 with the extensions that
//! [`crate::session`] advertises.

use bytes::Bytes;

use crate::{FlagChange, Flags, Millis, SpecialUse, sequence::SequenceSet};

/// A command with its tag.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged {
    /// Printable ASCII without the characters that RFC 9051 9 (tag) forbids.
    pub tag: String,
    /// What is asked.
    pub command: Command,
}

/// What a client asks. Folder names are decoded (UTF-8, `INBOX` in capitals).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Command {
    Capability,
    Noop,
    Logout,
    StartTls,
    /// RFC 4959: with the initial response, decoded, where there was one.
    Authenticate {
        mechanism: String,
        initial: Option<Vec<u8>>,
    },
    Login {
        user: String,
        password: String,
    },
    /// RFC 5161: names in capitals.
    Enable(Vec<String>),
    /// RFC 2971: what the client says of itself is not kept.
    Id,
    Namespace,
    /// SELECT and EXAMINE.
    Select {
        folder: String,
        read_only: bool,
        condstore: bool,
    },
    Create {
        folder: String,
        special_use: Vec<SpecialUse>,
    },
    Delete(String),
    Rename {
        from: String,
        to: String,
    },
    Subscribe {
        folder: String,
        subscribed: bool,
    },
    List(List),
    Status {
        folder: String,
        items: Vec<StatusItem>,
    },
    Append {
        folder: String,
        flags: Flags,
        date: Option<Millis>,
        body: Bytes,
    },
    Idle,
    Check,
    Close,
    Unselect,
    /// With UIDs: RFC 4315 2.1.
    Expunge(Option<SequenceSet>),
    Search(Search),
    Fetch(Fetch),
    Store(Store),
    /// COPY and MOVE.
    Copy {
        uid: bool,
        set: SequenceSet,
        folder: String,
        remove: bool,
    },
}

impl Command {
    /// Its name for logs and metrics: one of a fixed set.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Capability => "CAPABILITY",
            Self::Noop => "NOOP",
            Self::Logout => "LOGOUT",
            Self::StartTls => "STARTTLS",
            Self::Authenticate { .. } => "AUTHENTICATE",
            Self::Login { .. } => "LOGIN",
            Self::Enable(_) => "ENABLE",
            Self::Id => "ID",
            Self::Namespace => "NAMESPACE",
            Self::Select { read_only: false, .. } => "SELECT",
            Self::Select { .. } => "EXAMINE",
            Self::Create { .. } => "CREATE",
            Self::Delete(_) => "DELETE",
            Self::Rename { .. } => "RENAME",
            Self::Subscribe { subscribed: true, .. } => "SUBSCRIBE",
            Self::Subscribe { .. } => "UNSUBSCRIBE",
            Self::List(list) if list.lsub => "LSUB",
            Self::List(_) => "LIST",
            Self::Status { .. } => "STATUS",
            Self::Append { .. } => "APPEND",
            Self::Idle => "IDLE",
            Self::Check => "CHECK",
            Self::Close => "CLOSE",
            Self::Unselect => "UNSELECT",
            Self::Expunge(_) => "EXPUNGE",
            Self::Search(_) => "SEARCH",
            Self::Fetch(_) => "FETCH",
            Self::Store(_) => "STORE",
            Self::Copy { remove: false, .. } => "COPY",
            Self::Copy { .. } => "MOVE",
        }
    }
}

/// LIST and LSUB. RFC 5258, RFC 5819, RFC 6154.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List {
    /// LSUB: RFC 3501 6.3.9.
    pub lsub: bool,
    /// Put before each pattern.
    pub reference: String,
    /// At least one.
    pub patterns: Vec<String>,
    /// Whether any LIST-EXTENDED syntax was used, which changes what an empty pattern means.
    pub extended: bool,
    /// Selection option SUBSCRIBED.
    pub select_subscribed: bool,
    /// Selection option SPECIAL-USE.
    pub select_special_use: bool,
    /// Selection option RECURSIVEMATCH.
    pub recursive: bool,
    /// Return option SUBSCRIBED.
    pub return_subscribed: bool,
    /// Return option STATUS.
    pub status: Vec<StatusItem>,
}

/// RFC 9051 6.3.11 and its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StatusItem {
    Messages,
    Recent,
    UidNext,
    UidValidity,
    Unseen,
    /// RFC 8438.
    Size,
    /// RFC 7162 3.1.7.
    HighestModSeq,
    /// RFC 7889.
    AppendLimit,
}

/// FETCH and UID FETCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Whether `set` holds UIDs.
    pub uid: bool,
    /// Which messages.
    pub set: SequenceSet,
    /// What of them, macros expanded.
    pub items: Vec<FetchItem>,
    /// RFC 7162 3.1.4.1.
    pub changed_since: Option<u64>,
}

/// A data item of FETCH.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FetchItem {
    Flags,
    InternalDate,
    Size,
    Uid,
    ModSeq,
    Envelope,
    /// BODY without a section: BODYSTRUCTURE without extension data.
    Body,
    BodyStructure,
    Section(BodySection),
}

/// `BODY[section]<offset.length>` and the RFC822 items that mean the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodySection {
    /// The name it is answered under: `BODY[1.MIME]`, `RFC822.TEXT`.
    pub label: String,
    /// Whether `\Seen` stays as it is.
    pub peek: bool,
    /// Part numbers; empty for the message itself.
    pub path: Vec<u32>,
    /// What of that part.
    pub text: SectionText,
    /// Offset and length in octets.
    pub partial: Option<(u32, u32)>,
}

/// What of a part. RFC 9051 6.4.5.1.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SectionText {
    Whole,
    Header,
    /// Names in capitals; `not`: all others.
    Fields {
        names: Vec<String>,
        not: bool,
    },
    Text,
    Mime,
}

/// STORE and UID STORE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Whether `set` holds UIDs.
    pub uid: bool,
    /// Which messages.
    pub set: SequenceSet,
    /// How.
    pub change: FlagChange,
    /// Whether the new flags are not wanted in the answer.
    pub silent: bool,
    /// The flags.
    pub flags: Flags,
    /// RFC 7162 3.1.3.
    pub unchanged_since: Option<u64>,
}

/// SEARCH and UID SEARCH.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// Whether UIDs are answered.
    pub uid: bool,
    /// RFC 4731; None: the plain SEARCH answer.
    pub results: Option<SearchReturn>,
    /// Anything but UTF-8 and US-ASCII: the command is refused with BADCHARSET.
    pub charset_known: bool,
    /// What to look for.
    pub key: SearchKey,
}

/// RFC 4731 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct SearchReturn {
    pub min: bool,
    pub max: bool,
    pub all: bool,
    pub count: bool,
}

/// A day as a number that compares as the days do (days since 1970-01-01).
pub type Day = i64;

/// RFC 9051 6.4.4, RFC 7162 3.1.5.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum SearchKey {
    All,
    /// An empty list means all.
    And(Vec<SearchKey>),
    Or(Box<SearchKey>, Box<SearchKey>),
    Not(Box<SearchKey>),
    Sequence(SequenceSet),
    Uid(SequenceSet),
    /// A flag as it is stored.
    Flag(String),
    /// RECENT, NEW: `\Recent` is never set here.
    Never,
    Larger(u64),
    Smaller(u64),
    Before(Day),
    On(Day),
    Since(Day),
    SentBefore(Day),
    SentOn(Day),
    SentSince(Day),
    /// Field name in capitals, needle in lower case.
    Header(String, String),
    Body(String),
    Text(String),
    ModSeq(u64),
}
