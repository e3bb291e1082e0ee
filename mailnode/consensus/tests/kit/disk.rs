//! The file system with a disk below it that can be made slow, and a thread that writes a journal on it.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use quorumail_journal::{DirLock, Disk, DiskFile, FsDisk, Pump};

/// The writing thread looks so often whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// How long every sync takes longer than it would.
#[derive(Debug, Clone, Default)]
pub struct Drag(Arc<AtomicU64>);

impl Drag {
    pub fn set(&self, every_sync: Duration) {
        self.0.store(every_sync.as_millis() as u64, Ordering::Relaxed);
    }

    fn wait(&self) {
        std::thread::sleep(Duration::from_millis(self.0.load(Ordering::Relaxed)));
    }
}

#[derive(Debug)]
pub struct DraggedDisk {
    pub disk: FsDisk,
    pub drag: Drag,
}

impl DraggedDisk {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(DraggedFile { file, drag: self.drag.clone() })
    }
}

impl Disk for DraggedDisk {
    fn lock(&self) -> io::Result<Option<DirLock>> {
        self.disk.lock()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(name, len).map(|file| self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(name).map(|file| self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn now(&self) -> Duration {
        self.disk.now()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path(name)
    }
}

struct DraggedFile {
    file: Box<dyn DiskFile>,
    drag: Drag,
}

impl fmt::Debug for DraggedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl DiskFile for DraggedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(into, offset)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(slices, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.drag.wait();
        self.file.sync_data()
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.file.forget_cached()
    }
}

/// Writes a journal until it is dropped; what is queued then is lost, as when a process is killed.
pub struct Writing(Arc<AtomicBool>);

impl Writing {
    pub fn start(mut pump: Pump) -> Writing {
        let ends = Arc::new(AtomicBool::new(false));
        let (wake, woken) = sync_channel::<()>(1);
        pump.wake_with(move || {
            // Full: it is awake already.
            let _ = wake.try_send(());
        });
        let writing = Writing(ends.clone());
        std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if !pump.step().expect("the disk works") {
                    let _ = woken.recv_timeout(LOOK);
                }
            }
        });
        writing
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
