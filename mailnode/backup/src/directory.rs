//! Long objects into a directory, a piece at a time: mail on the same disk waits for one piece and not for all that is to be written.

use std::{
    fs::{self, File},
    future::Future,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::background::background;

/// Bytes that are on the disk before the next are written: a sync of the journal waits behind so much at most.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// A file that has its name once all of it is on the disk; dropped before, it is not there.
struct Staged {
    file: File,
    path: PathBuf,
    named: bool,
}

impl Staged {
    /// Beside `target`, under a name that the object store takes for no object: it ends in `#` and a number.
    fn create(target: &Path) -> io::Result<Self> {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut path = target.as_os_str().to_owned();
        path.push(format!("#{}", rand::random::<u32>()));
        let path = PathBuf::from(path);
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path, named: false })
    }

    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.file.sync_data()
    }

    fn name(&mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        self.named = true;
        match target.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.named {
            // What stays is no object, and takes room only.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes an object; one of the same name is replaced. `pass` is waited for before each piece, with its length.
pub(crate) async fn write<F: Future<Output = ()>>(
    target: PathBuf,
    bytes: &Bytes,
    pass: impl Fn(usize) -> F,
) -> io::Result<()> {
    let creating = target.clone();
    let mut staged = background(move || Staged::create(&creating)).await?;
    for start in (0..bytes.len()).step_by(PIECE_BYTES) {
        let piece = bytes.slice(start..bytes.len().min(start + PIECE_BYTES));
        pass(piece.len()).await;
        staged = background(move || staged.add(&piece).map(|()| staged)).await?;
    }
    background(move || staged.name(&target)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_object_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("aa").join("pack");
        let bytes = Bytes::from((0..PIECE_BYTES * 2 + 7).map(|n| n as u8).collect::<Vec<_>>());
        write(target.clone(), &bytes, |_| async {}).await.unwrap();
        assert_eq!(fs::read(&target).unwrap(), bytes);
        // Broken off before the second piece: the old one stays, and nothing else.
        let other = Bytes::from(vec![7; bytes.len()]);
        let passed = std::sync::atomic::AtomicUsize::new(0);
        let begun = write(target.clone(), &other, |_| async {
            if passed.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
                std::future::pending::<()>().await;
            }
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(500), begun).await.is_err());
        assert_eq!(fs::read(&target).unwrap(), bytes);
        assert_eq!(fs::read_dir(dir.path().join("aa")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let below = dir.path().join("file").join("pack");
        assert!(write(below, &Bytes::from_static(b"1"), |_| async {}).await.is_err());
    }
}
