//! The directory source: a whole cluster's resources as files.
//!
//! - Every `*.yaml` and `*.yml` below the root is a source file, at any depth. Names that begin
//!   with a dot are passed over: editors and Kubernetes (`..data`) keep their own there.
//! - `secrets/NAME/` at the root is a mounted Secret with its keys as files.
//! - Links are followed. Each real directory is read once, so a loop ends where it begins.
//! - A file that cannot be read is an entry that says why. A directory that cannot be read keeps
//!   the files that it had: unreadable is not deleted.
//! - Contents that did not change are the same `Arc` as before.
//!
//! Deliberately not here: what the files say ([`document`]), and noticing changes
//! ([`watch`](super::watch)).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::FileCache;
use super::document;
use super::link;
use super::watch::{Interest, Places};
use crate::config::compile::{MountedSecret, SourceFile};

/// More files than this are a mistake, such as `/` for a source.
const FILES_MAX: usize = 100_000;

/// Deeper than anybody nests by hand.
const DEPTH_MAX: usize = 32;

/// The sub-directory of the root whose sub-directories are Secrets.
const SECRETS: &str = "secrets";

/// The files below a root, as the last scan found them.
pub(crate) struct Directory {
    root: PathBuf,
    cache: FileCache,
    found: Tree,
}

/// What a scan finds.
#[derive(Default)]
struct Tree {
    files: BTreeMap<PathBuf, SourceFile>,
    secrets: BTreeMap<PathBuf, MountedSecret>,
    places: Places,
}

/// The source directory cannot be used.
#[derive(Debug)]
pub(crate) struct DirectoryError {
    root: PathBuf,
    error: io::Error,
}

impl fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, error) = (self.root.display(), &self.error);
        let cures = [
            (io::ErrorKind::NotFound, "make it, or change `source.directory` in the settings"),
            (io::ErrorKind::NotADirectory, "name the directory that the files are in"),
            (io::ErrorKind::PermissionDenied, "let the user that ringgate runs as read it"),
        ];
        write!(f, "source.directory {root} cannot be read: {error}")?;
        match cures.iter().find(|(kind, _)| *kind == error.kind()) {
            Some((_, cure)) => write!(f, "; {cure}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DirectoryError {}

impl Directory {
    /// The source below `root`, scanned once.
    ///
    /// # Errors
    /// `root` is no directory that can be read.
    pub(crate) fn open(root: &Path) -> Result<Self, DirectoryError> {
        let cache = FileCache::new(document::FILE_BYTES_MAX as u64);
        let mut directory = Self { root: root.to_owned(), cache, found: Tree::default() };
        directory.scan()?;
        Ok(directory)
    }

    /// Looks again; says whether anything is different.
    ///
    /// # Errors
    /// The root cannot be read; everything stays as it was.
    pub(crate) fn scan(&mut self) -> Result<bool, DirectoryError> {
        let mut scan = Scan {
            cache: &mut self.cache,
            before: &self.found,
            tree: Tree::default(),
            visited: BTreeSet::new(),
        };
        scan.root(&self.root).map_err(|error| DirectoryError { root: self.root.clone(), error })?;
        let tree = scan.tree;
        self.cache.sweep();
        let differs = !tree.is_same(&self.found);
        self.found = tree;
        Ok(differs)
    }

    /// Reads every file again at the next scan, whatever its times say.
    pub(crate) fn distrust(&mut self) {
        self.cache.distrust();
    }

    /// The source files, sorted by path.
    pub(crate) fn files(&self) -> Vec<SourceFile> {
        self.found.files.values().cloned().collect()
    }

    /// The mounted Secrets, sorted by path.
    pub(crate) fn secrets(&self) -> Vec<MountedSecret> {
        let copy = |secret: &MountedSecret| MountedSecret {
            name: secret.name.clone(),
            keys: secret.keys.clone(),
            path: Arc::clone(&secret.path),
        };
        self.found.secrets.values().map(copy).collect()
    }

    /// Where a change can change what the next scan finds.
    pub(crate) fn places(&self) -> &Places {
        &self.found.places
    }
}

impl Tree {
    fn is_same(&self, other: &Self) -> bool {
        let files = self.files.values().zip(other.files.values());
        let secrets = self.secrets.values().zip(other.secrets.values());
        self.files.len() == other.files.len()
            && self.secrets.len() == other.secrets.len()
            && files.into_iter().all(|(a, b)| is_same_file(a, b))
            && secrets.into_iter().all(|(a, b)| is_same_secret(a, b))
    }
}

fn is_same_file(a: &SourceFile, b: &SourceFile) -> bool {
    a.path == b.path
        && match (&a.content, &b.content) {
            (Ok(a), Ok(b)) => Arc::ptr_eq(a, b),
            (Err(a), Err(b)) => a == b,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        }
}

fn is_same_secret(a: &MountedSecret, b: &MountedSecret) -> bool {
    let keys = a.keys.iter().zip(&b.keys);
    a.path == b.path
        && a.keys.len() == b.keys.len()
        && keys.into_iter().all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
}

/// One scan under way.
struct Scan<'a> {
    cache: &'a mut FileCache,
    before: &'a Tree,
    tree: Tree,
    /// Device and inode of the directories that were read.
    visited: BTreeSet<(u64, u64)>,
}

/// An entry of a directory that was followed to what it leads to.
struct Entry {
    name: OsString,
    path: PathBuf,
    is_dir: bool,
}

impl Scan<'_> {
    fn root(&mut self, root: &Path) -> io::Result<()> {
        self.watch_way_to(root);
        for entry in self.entries(root, Interest::Yaml)? {
            if entry.is_dir && entry.name == SECRETS {
                self.secrets(&entry.path);
            } else if !is_hidden(&entry.name) {
                self.entry(&entry, 1);
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, depth: usize) {
        if entry.is_dir {
            self.directory(&entry.path, depth);
        } else if is_yaml(&entry.name) {
            self.file(&entry.path);
        }
    }

    fn directory(&mut self, path: &Path, depth: usize) {
        if depth > DEPTH_MAX {
            let what = format!("is more than {DEPTH_MAX} directories deep, so it was not read");
            self.report(path, what);
            return;
        }
        match self.entries(path, Interest::Yaml) {
            Ok(entries) => {
                let visible = entries.iter().filter(|entry| !is_hidden(&entry.name));
                visible.for_each(|entry| self.entry(entry, depth + 1));
            }
            // It was deleted since its parent was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.keep(path, &error),
        }
    }

    fn file(&mut self, path: &Path) {
        if self.tree.files.len() >= FILES_MAX {
            return;
        }
        if self.tree.files.len() == FILES_MAX - 1 {
            let what = format!("is one of more than {FILES_MAX} files, the rest was not read");
            self.report(path, what);
            return;
        }
        let content = self.cache.read(path).map_err(|error| error.what);
        self.add(path, content);
    }

    /// The sub-directories are Secrets; files beside them are files like others.
    fn secrets(&mut self, path: &Path) {
        match self.entries(path, Interest::Yaml) {
            Ok(entries) => {
                for entry in entries.iter().filter(|entry| !is_hidden(&entry.name)) {
                    if entry.is_dir {
                        self.secret(entry);
                    } else {
                        self.entry(entry, 2);
                    }
                }
            }
            Err(error) => self.keep(path, &error),
        }
    }

    fn secret(&mut self, secret: &Entry) {
        let entries = match self.entries(&secret.path, Interest::Everything) {
            Ok(entries) => entries,
            Err(error) => return self.keep(&secret.path, &error),
        };
        let mut keys = BTreeMap::new();
        for entry in entries.iter().filter(|entry| !entry.is_dir) {
            match self.cache.read(&entry.path) {
                Ok(bytes) => drop(keys.insert(entry.name.to_string_lossy().into_owned(), bytes)),
                Err(error) => self.report(&entry.path, error.what),
            }
        }
        let name = secret.name.to_string_lossy().into_owned();
        let path = Arc::new(secret.path.clone());
        self.tree.secrets.insert(secret.path.clone(), MountedSecret { name, keys, path });
    }

    /// What stands in the directory at `path`, sorted; nothing where it was read before. What
    /// begins with two dots is Kubernetes' own and left out.
    fn entries(&mut self, path: &Path, interest: Interest) -> io::Result<Vec<Entry>> {
        let metadata = fs::metadata(path)?;
        if !self.visited.insert((metadata.dev(), metadata.ino())) {
            return Ok(Vec::new());
        }
        self.tree.places.add(fs::canonicalize(path)?, interest);
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_bytes().starts_with(b"..") {
                continue;
            }
            if entry.file_type()?.is_symlink() {
                self.watch_way_to(&path);
            }
            let is_dir = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            entries.push(Entry { name, path, is_dir });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn watch_way_to(&mut self, path: &Path) {
        for (directory, name) in link::steps(path) {
            self.tree.places.add(directory, Interest::Names(BTreeSet::from([name])));
        }
    }

    /// The directory at `path` cannot be read: what it held stays.
    fn keep(&mut self, path: &Path, error: &io::Error) {
        let files = self.before.files.iter().filter(|(file, _)| file.starts_with(path));
        self.tree.files.extend(files.map(|(file, source)| (file.clone(), source.clone())));
        for (at, secret) in &self.before.secrets {
            if at.starts_with(path) {
                let (name, keys) = (secret.name.clone(), secret.keys.clone());
                let path = Arc::clone(&secret.path);
                self.tree.secrets.insert(at.clone(), MountedSecret { name, keys, path });
            }
        }
        self.report(path, format!("cannot be read: {error}"));
    }

    fn report(&mut self, path: &Path, what: String) {
        self.add(path, Err(what));
    }

    fn add(&mut self, path: &Path, content: Result<Arc<[u8]>, String>) {
        let file = SourceFile { path: Arc::new(path.to_owned()), content };
        self.tree.files.insert(path.to_owned(), file);
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Whether a file of this name may hold resources.
pub(super) fn is_yaml(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The files below `root` and what was read of each.
    fn found(directory: &Directory, root: &Path) -> Vec<String> {
        let show = |file: SourceFile| {
            let path = file.path.strip_prefix(root).unwrap().display().to_string();
            match file.content {
                Ok(bytes) => format!("{path}: {}", String::from_utf8_lossy(&bytes)),
                Err(why) => format!("{path}! {why}"),
            }
        };
        directory.files().into_iter().map(show).collect()
    }

    #[test]
    fn yaml_at_any_depth_and_no_hidden_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        for file in ["a/b/x.yaml", "y.yml", "a/.swap.yaml", ".git/z.yaml", "notes.txt"] {
            fs::write(root.join(file), "k: v").unwrap();
        }
        let directory = Directory::open(root).unwrap();
        assert_eq!(found(&directory, root), ["a/b/x.yaml: k: v", "y.yml: k: v"]);
    }

    #[test]
    fn what_is_no_file_or_too_large_is_an_entry_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("a-fifo.yaml"), mode).unwrap();
        let large = fs::File::create(root.join("b-large.yaml")).unwrap();
        // Sparse: nothing is written.
        large.set_len(document::FILE_BYTES_MAX as u64 + 1).unwrap();
        symlink("missing.yaml", root.join("c-dangling.yaml")).unwrap();
        let directory = Directory::open(root).unwrap();
        let found = found(&directory, root);
        assert_eq!(found[0], "a-fifo.yaml! is no regular file");
        assert!(found[1].starts_with("b-large.yaml! is larger than 10485760 bytes"), "{found:?}");
        assert!(found[2].starts_with("c-dangling.yaml! No such file"), "{found:?}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_loop_of_links_ends_and_nothing_is_read_twice() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("a")).unwrap();
        fs::write(root.join("a/x.yaml"), "k: v").unwrap();
        symlink("..", root.join("a/up")).unwrap();
        symlink("a", root.join("again")).unwrap();
        symlink("itself.yaml", root.join("itself.yaml")).unwrap();
        let directory = Directory::open(root).unwrap();
        let found = found(&directory, root);
        assert_eq!(found[0], "a/x.yaml: k: v");
        assert!(
            found[1].starts_with("itself.yaml! Too many levels of symbolic links"),
            "{found:?}"
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn too_deep_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join(["d"; DEPTH_MAX + 1].join("/"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("x.yaml"), "k: v").unwrap();
        let found = found(&Directory::open(dir.path()).unwrap(), dir.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("! is more than 32 directories deep"), "{found:?}");
    }

    #[test]
    fn directories_below_secrets_are_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        // As Kubernetes mounts it.
        fs::create_dir_all(root.join("secrets/cred/..1")).unwrap();
        fs::write(root.join("secrets/cred/..1/tls.crt"), "c").unwrap();
        symlink("..1", root.join("secrets/cred/..data")).unwrap();
        symlink("..data/tls.crt", root.join("secrets/cred/tls.crt")).unwrap();
        fs::write(root.join("secrets/beside.yaml"), "k: v").unwrap();
        let directory = Directory::open(root).unwrap();
        assert_eq!(found(&directory, root), ["secrets/beside.yaml: k: v"]);
        let secrets = directory.secrets();
        assert_eq!(secrets.len(), 1);
        assert_eq!(secrets[0].name, "cred");
        assert_eq!(secrets[0].keys.keys().collect::<Vec<_>>(), ["tls.crt"]);
        assert_eq!(&*secrets[0].keys["tls.crt"], b"c");
    }
}
