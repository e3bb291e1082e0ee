//! Uploads in parts: a folder each, with the parts that have come. Blocks.

use std::{
    fs,
    io::{self, ErrorKind, Seek as _},
    path::PathBuf,
};

use crate::{
    names::Name,
    store::{Draft, Facts, Store, StoreError, failed, sync_folder},
};

/// As in S3.
pub(crate) const MAX_PARTS: u32 = 10_000;
/// Uploads that are not complete: each takes room.
const MAX_UPLOADS: usize = 1_000;
/// In the folder of an upload: the name of the object.
const NAME_FILE: &str = "name";
const ACTION: &str = "upload in parts";

/// A part that an upload is completed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) etag: String,
}

fn none(error: io::Error) -> StoreError {
    if error.kind() == ErrorKind::NotFound { StoreError::NoUpload } else { failed(ACTION)(error) }
}

impl Store {
    /// The folder of an upload, which must be there and for this object.
    fn upload(&self, id: &str, name: &Name) -> Result<PathBuf, StoreError> {
        // Nothing else can be the name of a folder of ours.
        if uuid::Uuid::try_parse(id).map(|id| id.simple().to_string()).as_deref() != Ok(id) {
            return Err(StoreError::NoUpload);
        }
        let folder = self.staging.join(id);
        let of = fs::read(folder.join(NAME_FILE)).map_err(none)?;
        if of == name.as_str().as_bytes() { Ok(folder) } else { Err(StoreError::NoUpload) }
    }

    /// Begins an upload; answers its id.
    pub(crate) fn begin_upload(&self, name: &Name) -> Result<String, StoreError> {
        let under_way = fs::read_dir(&self.staging).map_err(failed(ACTION))?.count();
        if under_way >= MAX_UPLOADS {
            return Err(StoreError::TooManyUploads);
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let folder = self.staging.join(&id);
        let make = || {
            fs::create_dir(&folder)?;
            fs::write(folder.join(NAME_FILE), name.as_str())?;
            fs::File::open(folder.join(NAME_FILE))?.sync_all()?;
            sync_folder(&folder)?;
            sync_folder(&self.staging)
        };
        make().map_err(|error| {
            // Full, as a rule: a folder without a name is nobody's.
            let _ = fs::remove_dir_all(&folder);
            failed(ACTION)(error)
        })?;
        Ok(id)
    }

    /// A draft for a part.
    pub(crate) fn begin_part(&self, id: &str, name: &Name) -> Result<Draft, StoreError> {
        match Draft::begin(&self.upload(id, name)?) {
            Err(StoreError::Failed { source, .. }) => Err(none(source)),
            result => result,
        }
    }

    /// Keeps a part, for good; one of the same number is replaced.
    pub(crate) fn keep_part(
        &self,
        id: &str,
        name: &Name,
        number: u32,
        mut draft: Draft,
    ) -> Result<Facts, StoreError> {
        let folder = self.upload(id, name)?;
        let facts = draft.place(&folder.join(number.to_string())).map_err(none)?;
        sync_folder(&folder).map_err(none)?;
        Ok(facts)
    }

    /// Makes an object of parts, in the order of their numbers.
    pub(crate) fn complete(
        &self,
        id: &str,
        name: &Name,
        parts: &[Part],
        new: bool,
    ) -> Result<Facts, StoreError> {
        let folder = self.upload(id, name)?;
        let mut draft = self.begin()?;
        for part in parts {
            let bad = |error: io::Error| match error.kind() {
                ErrorKind::NotFound => StoreError::BadPart(part.number),
                _ => failed(ACTION)(error),
            };
            let mut file = fs::File::open(folder.join(part.number.to_string())).map_err(bad)?;
            if Facts::of(&file.metadata().map_err(bad)?).map_err(bad)?.etag != part.etag {
                return Err(StoreError::BadPart(part.number));
            }
            io::copy(&mut file, &mut draft.file).map_err(failed(ACTION))?;
        }
        draft.file.rewind().map_err(failed(ACTION))?;
        let facts = self.publish(draft, name, new)?;
        // The object is there: what is left of the upload goes after a day at the latest.
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(%error, "the parts of an upload that is complete could not be removed");
        }
        Ok(facts)
    }

    pub(crate) fn abort(&self, id: &str, name: &Name) -> Result<(), StoreError> {
        fs::remove_dir_all(self.upload(id, name)?).map_err(none)?;
        sync_folder(&self.staging).map_err(failed(ACTION))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Duration};

    use super::*;

    #[test]
    fn only_uploads_that_were_given_up_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "b").unwrap();
        let name = Name::parse("a/b").unwrap();
        let (old, new) = (store.begin_upload(&name).unwrap(), store.begin_upload(&name).unwrap());
        let mut part = store.begin_part(&new, &name).unwrap();
        part.file.write_all(b"part").unwrap();
        let part = store.keep_part(&new, &name, 1, part).unwrap();
        let long_ago = std::time::SystemTime::now() - crate::store::GIVEN_UP - Duration::from_secs(1);
        fs::File::open(store.staging.join(&old)).unwrap().set_modified(long_ago).unwrap();
        drop(store);
        // A server that starts does not end what clients have begun.
        let store = Store::open(dir.path(), "b").unwrap();
        assert!(matches!(store.abort(&old, &name), Err(StoreError::NoUpload)));
        let parts = [Part { number: 1, etag: part.etag }];
        store.complete(&new, &name, &parts, true).unwrap();
        assert_eq!(fs::read(dir.path().join("b/a/b")).unwrap(), b"part");
        assert_eq!(fs::read_dir(&store.staging).unwrap().count(), 0);
    }

    #[test]
    fn an_upload_is_for_one_object_and_no_path() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "b").unwrap();
        let name = Name::parse("a").unwrap();
        let id = store.begin_upload(&name).unwrap();
        let other = Name::parse("c").unwrap();
        for (id, name) in
            [(&*id, &other), ("..", &name), ("../b", &name), (&id.to_uppercase(), &name), ("", &name)]
        {
            assert!(matches!(store.abort(id, name), Err(StoreError::NoUpload)), "{id}");
        }
        let parts = [Part { number: 1, etag: "e".into() }];
        assert!(matches!(store.complete(&id, &name, &parts, false), Err(StoreError::BadPart(1))));
        assert!(!dir.path().join("b/a").exists());
    }
}
