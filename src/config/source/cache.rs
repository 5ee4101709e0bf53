//! Contents of files, read again only when they may have changed.
//!
//! - Equal bytes are the same `Arc`, however often the file was touched or replaced.
//! - A file is read when its stamp (inode, length, times) changed, or when the stamp is so fresh
//!   that a later write might not change it.
//! - Files above a size, and all that are no regular files, are never opened or read.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Coarser than the times of any local file system: after this, a write changes the stamp.
const STAMP_RESOLUTION: Duration = Duration::from_secs(1);

/// Contents by path.
#[derive(Debug)]
pub(super) struct FileCache {
    bytes_max: u64,
    files: BTreeMap<PathBuf, Cached>,
}

/// Why a file has no contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileError {
    pub(super) kind: io::ErrorKind,
    pub(super) what: String,
}

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    /// Whether every later write changes the stamp.
    settled: bool,
    bytes: Arc<[u8]>,
    /// Whether it was asked for since the last [`FileCache::sweep`].
    used: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, files: BTreeMap::new() }
    }

    /// The contents of the file at `path`.
    ///
    /// # Errors
    /// It is missing, too large, no regular file or cannot be read.
    pub(super) fn read(&mut self, path: &Path) -> Result<Arc<[u8]>, FileError> {
        let stamp = Stamp::of(&self.admit(path)?);
        match self.files.get_mut(path) {
            Some(cached) if cached.settled && cached.stamp == stamp => {
                cached.used = true;
                Ok(Arc::clone(&cached.bytes))
            }
            _ => self.read_again(path),
        }
    }

    fn read_again(&mut self, path: &Path) -> Result<Arc<[u8]>, FileError> {
        let now = SystemTime::now();
        // A FIFO that took the file's place since must not block.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        let bytes = self.read_to_end(file, &metadata)?;
        let known = self.files.get(path).map(|cached| &cached.bytes);
        let bytes = match known {
            Some(known) if **known == *bytes => Arc::clone(known),
            _ => Arc::from(bytes),
        };
        let settled = metadata.modified().is_ok_and(|modified| {
            now.duration_since(modified).is_ok_and(|age| age > STAMP_RESOLUTION)
        });
        let stamp = Stamp::of(&metadata);
        let cached = Cached { stamp, settled, bytes: Arc::clone(&bytes), used: true };
        self.files.insert(path.to_owned(), cached);
        Ok(bytes)
    }

    fn admit(&self, path: &Path) -> Result<Metadata, FileError> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            let what = "is no regular file".to_owned();
            return Err(FileError { kind: io::ErrorKind::InvalidInput, what });
        }
        if metadata.len() > self.bytes_max {
            return Err(self.too_large());
        }
        Ok(metadata)
    }

    fn read_to_end(&self, file: File, metadata: &Metadata) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        // It may have grown since it was admitted.
        file.take(self.bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.bytes_max {
            return Err(self.too_large());
        }
        Ok(bytes)
    }

    fn too_large(&self) -> FileError {
        let what = format!("is larger than {} bytes, so it was not read", self.bytes_max);
        FileError { kind: io::ErrorKind::FileTooLarge, what }
    }

    /// Forgets the files that nobody asked for since the last sweep.
    pub(super) fn sweep(&mut self) {
        self.files.retain(|_, cached| std::mem::take(&mut cached.used));
    }

    /// Reads every file again when it is asked for next, whatever its stamp says.
    pub(super) fn distrust(&mut self) {
        self.files.values_mut().for_each(|cached| cached.settled = false);
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), what: error.to_string() }
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        Self::new(error.kind, error.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const BYTES_MAX: usize = 100;

    #[test]
    fn equal_bytes_are_the_same_arc() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut cache = FileCache::new(BYTES_MAX as u64);
        fs::write(&path, "one").unwrap();
        let first = cache.read(&path).unwrap();
        fs::write(dir.path().join("b"), "one").unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.read(&path).unwrap()));
        fs::write(&path, "two").unwrap();
        assert_eq!(&*cache.read(&path).unwrap(), b"two", "same inode, same length, same moment");
        fs::write(&path, "one").unwrap();
        assert_eq!(&*cache.read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_settled_file_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let old = SystemTime::now() - 10 * STAMP_RESOLUTION;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        let mut cache = FileCache::new(BYTES_MAX as u64);
        cache.read(&path).unwrap();
        // What only a cache that did not read could answer.
        cache.files.get_mut(&path).unwrap().bytes = Arc::from(*b"from memory");
        assert_eq!(&*cache.read(&path).unwrap(), b"from memory");
        cache.distrust();
        assert_eq!(&*cache.read(&path).unwrap(), b"one");
    }

    #[test]
    fn what_is_too_large_or_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut cache = FileCache::new(BYTES_MAX as u64);
        fs::write(&path, [0; BYTES_MAX]).unwrap();
        assert!(cache.read(&path).is_ok());
        fs::write(&path, [0; BYTES_MAX + 1]).unwrap();
        let what = cache.read(&path).unwrap_err().what;
        assert_eq!(what, "is larger than 100 bytes, so it was not read");
        assert_eq!(cache.read(dir.path()).unwrap_err().what, "is no regular file");
        let missing = cache.read(&dir.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind, io::ErrorKind::NotFound);
    }

    #[test]
    fn a_sweep_forgets_what_was_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        let mut cache = FileCache::new(BYTES_MAX as u64);
        cache.read(&a).unwrap();
        cache.read(&b).unwrap();
        cache.sweep();
        cache.read(&a).unwrap();
        cache.sweep();
        assert_eq!(cache.files.keys().collect::<Vec<_>>(), [&a]);
    }
}
