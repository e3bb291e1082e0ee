//! Names in order, a page at a time, with so many names in memory. Blocks.

use std::{collections::BinaryHeap, fs, io, path::Path};

use crate::{names::is_segment, store::Facts};

/// Names of a folder that are held at a time: for each folder on the way down.
const BATCH: usize = 1_024;

/// Objects whose names come one after the other.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Facts)>,
    /// Whether there are more behind them.
    pub(crate) more: bool,
}

/// The first `limit` objects whose names start with `prefix` and come after `after`; `limit` is above zero.
pub(crate) fn page(root: &Path, prefix: &str, after: &str, limit: usize) -> io::Result<Page> {
    let mut walk = Walk { prefix, after, limit, page: Page::default() };
    walk.folder(root, "")?;
    Ok(walk.page)
}

struct Walk<'a> {
    prefix: &'a str,
    after: &'a str,
    limit: usize,
    page: Page,
}

impl Walk<'_> {
    /// `name`: of the folder, with a slash at its end.
    fn folder(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let mut done = String::new();
        loop {
            let batch = self.batch(path, name, &done)?;
            for entry in &batch {
                if self.page.more {
                    return Ok(());
                }
                match entry.strip_suffix('/') {
                    Some(folder) => self.folder(&path.join(folder), &format!("{name}{entry}"))?,
                    None => self.object(&path.join(entry), format!("{name}{entry}"))?,
                }
            }
            match batch.into_iter().next_back() {
                Some(last) if !self.page.more => done = last,
                _ => return Ok(()),
            }
        }
    }

    fn object(&mut self, path: &Path, name: String) -> io::Result<()> {
        let facts = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => Facts::of(&meta)?,
            Ok(_) => return Ok(()),
            // Deleted since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.page.objects.len() == self.limit {
            self.page.more = true;
        } else {
            self.page.objects.push((name, facts));
        }
        Ok(())
    }

    /// The first entries of a folder behind `done` that may matter, those of folders with a slash: that is their place among
    /// the names of objects.
    fn batch(&self, path: &Path, name: &str, done: &str) -> io::Result<Vec<String>> {
        let mut first = BinaryHeap::new();
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            // Empty, and removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !name.is_empty() => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(mut text) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type()?;
            if !is_segment(&text) || !(kind.is_file() || kind.is_dir()) {
                continue;
            }
            if kind.is_dir() {
                text.push('/');
            }
            let full = format!("{name}{text}");
            let has_prefix = full.starts_with(self.prefix) || kind.is_dir() && self.prefix.starts_with(&full);
            let is_after = *full > *self.after || kind.is_dir() && self.after.starts_with(&full);
            if has_prefix && is_after && *text > *done {
                first.push(text);
                if first.len() > BATCH {
                    first.pop();
                }
            }
        }
        Ok(first.into_sorted_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn write(root: &Path, name: &str) -> bool {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).is_ok() && fs::write(path, name).is_ok()
    }

    fn names(root: &Path, prefix: &str, after: &str, limit: usize) -> Vec<String> {
        let (mut all, mut after) = (Vec::new(), after.to_owned());
        loop {
            let page = page(root, prefix, &after, limit).unwrap();
            assert!(page.objects.len() <= limit && (!page.more || page.objects.len() == limit));
            all.extend(page.objects.into_iter().map(|(name, _)| name));
            if !page.more {
                return all;
            }
            after = all.last().unwrap().clone();
        }
    }

    #[test]
    fn a_folder_with_more_names_than_are_held_is_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..2 * BATCH + 3 {
            write(dir.path(), &format!("{number:05}"));
        }
        let listed = names(dir.path(), "", "", 1_000);
        assert!(listed.len() == 2 * BATCH + 3 && listed.is_sorted());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pages_are_all_names_in_the_order_of_their_bytes(
            wanted in prop::collection::vec("[ab.]{1,2}(/[ab.]{1,2}){0,2}", 0..20),
            prefix in "([ab.]{0,2}/?){0,2}", after in "([ab.]{0,2}/?){0,2}", limit in 1usize..5,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let valid = wanted.iter().filter(|name| crate::names::Name::parse(name).is_some());
            let there: BTreeSet<_> = valid.filter(|name| write(dir.path(), name)).cloned().collect();
            let expected: Vec<_> =
                there.into_iter().filter(|name| name.starts_with(&prefix) && *name > after).collect();
            prop_assert_eq!(names(dir.path(), &prefix, &after, limit), expected);
        }
    }
}
