//! Looks at files, and reads again only those that may have changed.
//!
//! - Equal bytes are no change, however often the file was touched or replaced: a digest stands for
//!   the bytes, which are not kept.
//! - A file is read when its stamp (inode, length, times) changed, or when the stamp is so fresh
//!   that a later write might not change it.
//! - Files above a size, and all that are no regular files, are never opened or read.

use std::fs::{File, Metadata, OpenOptions};
use std::hash::{BuildHasher, Hash};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::crypto::Digest;

/// Coarser than the times of any local file system: after this, a write changes the stamp.
const STAMP_RESOLUTION: Duration = Duration::from_secs(1);

/// A file as it was when it was looked at last.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// `None` when it has to be read whatever its stamp is.
    stamp: Option<Stamp>,
    /// `None` before the first look.
    content: Option<Result<Digest, Box<FileError>>>,
}

/// Why a file has no contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileError {
    pub(super) kind: io::ErrorKind,
    pub(super) what: String,
}

/// What tells one state of a file from the others, folded: with 2^-64, a change is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

impl Seen {
    /// What it held.
    pub(super) fn content(&self) -> Option<&Result<Digest, Box<FileError>>> {
        self.content.as_ref()
    }

    /// Whether it was found, at the last look.
    pub(super) fn is_missing(&self) -> bool {
        !matches!(self.content, Some(Ok(_)))
    }

    /// Reads it at the next look, whatever its times say.
    pub(super) fn distrust(&mut self) {
        self.stamp = None;
    }

    /// Looks at the file at `path` again; returns what it holds if that is different. A file that
    /// has more than `bytes_max` is not read.
    pub(super) fn look(
        &mut self,
        path: &Path,
        bytes_max: u64,
    ) -> Option<Result<Vec<u8>, FileError>> {
        let found = admit(path, bytes_max).and_then(|metadata| {
            let is_same = self.stamp == Some(Stamp::of(&metadata));
            if is_same { Ok(None) } else { read(path, bytes_max).map(Some) }
        });
        match found {
            Ok(None) => None,
            Ok(Some((bytes, stamp))) => {
                let content = Some(Ok(Digest::of(&bytes)));
                let differs = self.content != content;
                *self = Self { stamp, content };
                differs.then_some(Ok(bytes))
            }
            Err(error) => {
                let content = Some(Err(Box::new(error.clone())));
                let differs = self.content != content;
                *self = Self { stamp: None, content };
                differs.then_some(Err(error))
            }
        }
    }
}

/// The bytes of the file at `path`, and its stamp if every later write changes that.
///
/// # Errors
/// It is missing, too large, no regular file or cannot be read.
fn read(path: &Path, bytes_max: u64) -> Result<(Vec<u8>, Option<Stamp>), FileError> {
    let now = SystemTime::now();
    // A FIFO that took the file's place since it was admitted must not block.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let bytes = read_to_end(file, &metadata, bytes_max)?;
    let is_settled = metadata
        .modified()
        .is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > STAMP_RESOLUTION));
    Ok((bytes, is_settled.then(|| Stamp::of(&metadata))))
}

/// The bytes of the file at `path`, whatever was known of it.
///
/// # Errors
/// It is missing, too large, no regular file or cannot be read.
pub(super) fn bytes(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    admit(path, bytes_max)?;
    read(path, bytes_max).map(|(bytes, _)| bytes)
}

fn admit(path: &Path, bytes_max: u64) -> Result<Metadata, FileError> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        let what = "is no regular file".to_owned();
        return Err(FileError { kind: io::ErrorKind::InvalidInput, what });
    }
    if metadata.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(metadata)
}

fn read_to_end(file: File, metadata: &Metadata, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    // One more, so that the end is found without another look.
    let expected = usize::try_from(metadata.len()).map_or(0, |length| length + 1);
    let mut bytes = Vec::with_capacity(expected);
    // It may have grown since it was admitted.
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(bytes)
}

fn too_large(bytes_max: u64) -> FileError {
    let what = format!("is larger than {bytes_max} bytes, so it was not read");
    FileError { kind: io::ErrorKind::FileTooLarge, what }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let mut hasher = foldhash::quality::FixedState::default().build_hasher();
        (metadata.dev(), metadata.ino(), metadata.len()).hash(&mut hasher);
        (metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
        (metadata.ctime(), metadata.ctime_nsec()).hash(&mut hasher);
        Self(std::hash::Hasher::finish(&hasher))
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        let mut what = error.to_string();
        if error.kind() == io::ErrorKind::PermissionDenied {
            what.push_str("; let the user that ringgate runs as read it");
        }
        Self { kind: error.kind(), what }
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

    const BYTES_MAX: u64 = 100;

    /// What a look at `path` finds different.
    fn look(seen: &mut Seen, path: &Path) -> Option<String> {
        let found = seen.look(path, BYTES_MAX)?;
        Some(found.map_or_else(|error| error.what, |bytes| String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn what_may_not_be_read_has_its_cure() {
        let error = FileError::from(io::Error::from_raw_os_error(libc::EACCES));
        let what = "Permission denied (os error 13); let the user that ringgate runs as read it";
        assert_eq!(error.what, what);
    }

    #[test]
    fn equal_bytes_are_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut seen = Seen::default();
        fs::write(&path, "one").unwrap();
        assert_eq!(look(&mut seen, &path).as_deref(), Some("one"));
        fs::write(dir.path().join("b"), "one").unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!(look(&mut seen, &path), None);
        fs::write(&path, "two").unwrap();
        let found = look(&mut seen, &path);
        assert_eq!(found.as_deref(), Some("two"), "same inode, same length, same moment");
        fs::write(&path, "one").unwrap();
        assert_eq!(look(&mut seen, &path).as_deref(), Some("one"));
    }

    #[test]
    fn a_settled_file_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let old = SystemTime::now() - 10 * STAMP_RESOLUTION;
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        let mut seen = Seen::default();
        look(&mut seen, &path);
        // What only a look that does not read could leave as it is.
        seen.content = Some(Ok(Digest::of(b"other")));
        assert_eq!(look(&mut seen, &path), None);
        seen.distrust();
        assert_eq!(look(&mut seen, &path).as_deref(), Some("one"));
    }

    #[test]
    fn what_is_too_large_or_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut seen = Seen::default();
        fs::write(&path, [b'x'; 100]).unwrap();
        assert!(look(&mut seen, &path).unwrap().starts_with("xxx"));
        fs::write(&path, [b'x'; 101]).unwrap();
        let what = "is larger than 100 bytes, so it was not read";
        assert_eq!(look(&mut seen, &path).as_deref(), Some(what));
        assert_eq!(look(&mut seen, &path), None, "an error is told once");
        assert_eq!(bytes(&path, BYTES_MAX).unwrap_err().what, what);
        assert_eq!(look(&mut seen, dir.path()).as_deref(), Some("is no regular file"));
        fs::remove_file(&path).unwrap();
        look(&mut seen, &path).unwrap();
        assert_eq!(bytes(&path, BYTES_MAX).unwrap_err().kind, io::ErrorKind::NotFound);
    }
}
