//! Names of objects: those that are the same thing as a path of a file, and nothing else.

use std::path::{Path, PathBuf};

/// As in S3.
const MAX_NAME: usize = 1024;
/// What file systems take.
const MAX_SEGMENT: usize = 255;

/// The name of an object: segments between slashes, none of them empty, `.` or `..`, of letters, digits and a few signs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(String);

impl Name {
    /// Nothing else can become a path.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        (text.len() <= MAX_NAME && text.split('/').all(is_segment)).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Below `root`.
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

/// Whether a name of a file or folder can be part of the name of an object.
pub(crate) fn is_segment(segment: &str) -> bool {
    !segment.is_empty()
        && segment.len() <= MAX_SEGMENT
        && segment != "."
        && segment != ".."
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=+@,:~()!".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_a_repository_are_names() {
        for name in
            ["a", "packs/aa/0f3c", "backups/20261125T174800Z-abc123.json", "locks/a_b=c@d", "archive/1/0-9"]
        {
            assert_eq!(Name::parse(name).map(|name| name.0).as_deref(), Some(name));
        }
    }

    #[test]
    fn nothing_leaves_the_bucket() {
        for name in [
            "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "a\0b", "a\nb", "a#1",
            "a%2e%2e", "ä", "a b",
        ] {
            assert_eq!(Name::parse(name), None, "{name:?}");
        }
        assert!(Name::parse(&"a".repeat(256)).is_none() && Name::parse(&"a/".repeat(600)).is_none());
    }

    proptest! {
        #[test]
        fn whatever_is_a_name_is_a_path_of_the_same_segments_below_the_bucket(text in "[a-z./\\\\#%\\x00 ~-]{0,12}|.{0,40}") {
            let root = Path::new("/volume/backups");
            if let Some(name) = Name::parse(&text) {
                let path = name.path(root);
                let below: Vec<_> = path.strip_prefix(root).unwrap().components().collect();
                prop_assert!(below.iter().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
                prop_assert_eq!(below.len(), text.split('/').count());
                prop_assert_eq!(path.to_str().unwrap(), format!("/volume/backups/{text}"));
            }
        }
    }
}
