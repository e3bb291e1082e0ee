//! What messages with credentials print: where they point to, and nothing that opens it.

use std::fmt;

use crate::admin::{BackupRepository, DkimKey, S3Location, backup_repository::Location};

impl fmt::Debug for BackupRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("BackupRepository");
        match &self.location {
            Some(Location::S3(s3)) => out.field("s3", s3),
            Some(Location::Directory(directory)) => out.field("directory", directory),
            None => &mut out,
        };
        out.finish_non_exhaustive()
    }
}

impl fmt::Debug for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Location")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DkimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DkimKey").field("selector", &self.selector).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_printed() {
        let s3 = S3Location {
            bucket: "mail".to_owned(),
            access_key: "access-marker".to_owned(),
            secret_key: "secret-marker".to_owned(),
            ..S3Location::default()
        };
        let repository = BackupRepository {
            location: Some(Location::S3(s3)),
            key: b"key-marker".to_vec(),
            ..BackupRepository::default()
        };
        let request = crate::admin::BackupGroupRequest { repository: Some(repository), ..Default::default() };
        let text = format!("{request:?}");
        assert!(text.contains("mail") && !text.contains("marker"), "{text}");
        let key = format!("{:?}", b"key-marker");
        assert!(!text.contains(key.trim_matches(['[', ']'])), "{text}");
        let dkim =
            DkimKey { selector: "s1".to_owned(), private_key: b"key-marker".to_vec(), ..DkimKey::default() };
        let domain = crate::admin::Domain { dkim_keys: vec![dkim], ..Default::default() };
        let text = format!("{domain:?}");
        assert!(text.contains("s1") && !text.contains(key.trim_matches(['[', ']'])), "{text}");
    }
}
