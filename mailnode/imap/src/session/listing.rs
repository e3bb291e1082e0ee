//! LIST and LSUB. RFC 9051 6.3.9, RFC 3501 6.3.9, RFC 5258 (LIST-EXTENDED), RFC 5819 (STATUS), RFC 6154 (special use).

use std::{collections::BTreeMap, sync::Arc};

use super::{Done, Reply, Session, folders::write_status};
use crate::{
    Folder, Mailbox, SpecialUse,
    command::{List, StatusItem},
    response::{self, Out},
};

/// Octets of all patterns of a LIST: what it costs to match them is their length times the number of folders.
const MAX_PATTERNS: usize = 2048;

/// Folders by name, with the levels above them that are no folders themselves.
type Tree<'a> = BTreeMap<&'a str, Option<&'a Folder>>;

impl Session {
    pub(super) async fn list(&mut self, mailbox: Arc<dyn Mailbox>, list: List) -> Done {
        if list.patterns.iter().map(|p| p.len() + list.reference.len()).sum::<usize>() > MAX_PATTERNS {
            return Err(Reply::no("[LIMIT]", "the patterns are too long").into());
        }
        // RFC 9051 6.3.9: an empty pattern asks for the separator.
        if !list.extended && list.patterns[0].is_empty() {
            let verb = if list.lsub { "LSUB" } else { "LIST" };
            self.connection.out.line(&format!("* {verb} (\\Noselect) \"/\" \"\""));
            return Ok(Reply::ok("done"));
        }
        if list.status.contains(&StatusItem::HighestModSeq) {
            self.use_condstore();
        }
        let folders = self.ask(mailbox.folders()).await?;
        let tree = tree(&folders);
        let limit = self.shared.config.max_message_size;
        for (name, folder) in &tree {
            if !matches_any(&list, name) {
                continue;
            }
            let below = || descendants(&tree, name).filter_map(|(_, folder)| *folder);
            let shown =
                if list.lsub { lsub(&list, *folder, below()) } else { listed(&list, *folder, below()) };
            let Some((mut attributes, child_info)) = shown else { continue };
            if !list.lsub {
                let children = descendants(&tree, name).next().is_some();
                attributes.push(if children { "\\HasChildren" } else { "\\HasNoChildren" });
            }
            write(&mut self.connection.out, &list, name, &attributes, &child_info);
            if let (false, Some(folder)) = (list.status.is_empty(), folder) {
                write_status(&mut self.connection.out, folder, &list.status, limit);
            }
            self.connection.flush_when_full().await?;
        }
        Ok(Reply::ok("done"))
    }
}

fn tree(folders: &[Folder]) -> Tree<'_> {
    let mut tree = Tree::new();
    for folder in folders {
        for (at, _) in folder.name.match_indices('/') {
            tree.entry(&folder.name[..at]).or_insert(None);
        }
        tree.insert(&folder.name, Some(folder));
    }
    tree
}

fn descendants<'t, 'a>(
    tree: &'t Tree<'a>,
    name: &str,
) -> impl Iterator<Item = (&'t &'a str, &'t Option<&'a Folder>)> {
    let prefix = format!("{name}/");
    let from = prefix.clone();
    // The names below one are not next to it in the order of characters, but next to each other.
    tree.range::<str, _>((std::ops::Bound::Included(from.as_str()), std::ops::Bound::Unbounded))
        .take_while(move |(found, _)| found.starts_with(&prefix))
        .collect::<Vec<_>>()
        .into_iter()
}

type Shown = Option<(Vec<&'static str>, Vec<&'static str>)>;

/// Attributes and CHILDINFO of a name in LIST; None: it is not shown.
fn listed<'a>(list: &List, folder: Option<&Folder>, below: impl Iterator<Item = &'a Folder>) -> Shown {
    let selects = |f: &Folder| {
        (!list.select_subscribed || f.subscribed) && (!list.select_special_use || f.special_use.is_some())
    };
    let mut child_info = Vec::new();
    if list.recursive {
        let (mut subscribed, mut special) = (false, false);
        for child in below.filter(|child| selects(child)) {
            subscribed |= list.select_subscribed && child.subscribed;
            special |= list.select_special_use && child.special_use.is_some();
        }
        child_info.extend(subscribed.then_some("\"SUBSCRIBED\""));
        child_info.extend(special.then_some("\"SPECIAL-USE\""));
    }
    let Some(folder) = folder else {
        // A level that is no folder is only shown where its folders may not be: below a `%`. RFC 9051 6.3.9.
        let wanted = !list.select_subscribed && !list.select_special_use;
        let shown = !child_info.is_empty() || (wanted && list.patterns.iter().any(|p| p.ends_with('%')));
        let attribute = if list.extended { "\\NonExistent" } else { "\\Noselect" };
        return shown.then(|| (vec![attribute], child_info));
    };
    if !selects(folder) && child_info.is_empty() {
        return None;
    }
    let mut attributes = Vec::new();
    if list.return_subscribed && folder.subscribed {
        attributes.push("\\Subscribed");
    }
    attributes.extend(folder.special_use.map(attribute));
    Some((attributes, child_info))
}

/// RFC 3501 6.3.9: with `%`, a level that is not subscribed is shown for subscribed folders below it.
fn lsub<'a>(list: &List, folder: Option<&Folder>, mut below: impl Iterator<Item = &'a Folder>) -> Shown {
    if folder.is_some_and(|folder| folder.subscribed) {
        return Some((Vec::new(), Vec::new()));
    }
    let level = list.patterns.iter().any(|p| p.ends_with('%')) && below.any(|child| child.subscribed);
    level.then(|| (vec!["\\Noselect"], Vec::new()))
}

fn attribute(special_use: SpecialUse) -> &'static str {
    match special_use {
        SpecialUse::Archive => "\\Archive",
        SpecialUse::Drafts => "\\Drafts",
        SpecialUse::Junk => "\\Junk",
        SpecialUse::Sent => "\\Sent",
        SpecialUse::Trash => "\\Trash",
    }
}

fn write(out: &mut Out, list: &List, name: &str, attributes: &[&str], child_info: &[&str]) {
    out.put(if list.lsub { b"* LSUB (" } else { b"* LIST (" });
    out.text(&attributes.join(" "));
    out.put(b") \"/\" ");
    response::folder(out, name);
    if !child_info.is_empty() {
        // RFC 5258 4.
        out.text(&format!(" (\"CHILDINFO\" ({}))", child_info.join(" ")));
    }
    out.put(b"\r\n");
}

fn matches_any(list: &List, name: &str) -> bool {
    list.patterns.iter().any(|pattern| {
        let whole = format!("{}{pattern}", list.reference);
        // INBOX is INBOX in any case, in a pattern too.
        glob(&whole, name) || (name == "INBOX" && glob(&whole.to_ascii_uppercase(), name))
    })
}

/// `*` stands for anything, `%` for anything within a level. All places in the pattern where a match may stand go
/// along the name at once, so that the time is the product of the lengths at most.
fn glob(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let mut here = vec![false; pattern.len() + 1];
    here[0] = true;
    pass_wildcards(&pattern, &mut here);
    for c in name.chars() {
        let mut next = vec![false; pattern.len() + 1];
        for at in (0..pattern.len()).filter(|&at| here[at]) {
            match pattern[at] {
                '*' => next[at] = true,
                '%' if c != '/' => next[at] = true,
                p if p == c => next[at + 1] = true,
                _ => {}
            }
        }
        here = next;
        pass_wildcards(&pattern, &mut here);
    }
    here[pattern.len()]
}

/// A wildcard may stand for nothing.
fn pass_wildcards(pattern: &[char], here: &mut [bool]) {
    for at in 0..pattern.len() {
        if here[at] && matches!(pattern[at], '*' | '%') {
            here[at + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn wildcards_match_as_the_standard_says() {
        for (pattern, name) in [
            ("*", "a/b"),
            ("%", "a"),
            ("a/%", "a/b"),
            ("%/%", "a/b"),
            ("*b", "a/b"),
            ("a*", "a"),
            ("%%*", "abc"),
            ("a", "a"),
        ] {
            assert!(glob(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("%", "a/b"), ("a/%", "a"), ("a%", "a/b"), ("", "a"), ("b*", "a"), ("a", "ab")]
        {
            assert!(!glob(pattern, name), "{pattern} {name}");
        }
    }
}
