//! One walk over what is below the root of a directory source.
//!
//! - Finds files and Secrets, and reads neither.
//! - Notes every directory and link that it came by: a change there can change what is found.
//! - A directory is watched before it is read.
//!
//! Deliberately not here: what was found before, and what is different now
//! ([`directory`](super::directory)).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::look::FileError;
use super::watch::{Watcher, follow};

/// More files than this are a mistake, such as `/` for a source.
pub(super) const FILES_MAX: usize = 100_000;

/// Deeper than anybody nests by hand.
pub(super) const DEPTH_MAX: usize = 32;

/// The sub-directory of the root whose sub-directories are Secrets.
const SECRETS: &str = "secrets";

/// One walk, under way or done: what it found.
pub(super) struct Walk<'a> {
    watcher: &'a mut dyn Watcher,
    pub(super) files: BTreeSet<Arc<PathBuf>>,
    /// Whether there are more files than are read.
    is_full: bool,
    pub(super) reports: BTreeMap<Arc<PathBuf>, String>,
    /// The names of their files, sorted.
    pub(super) secrets: BTreeMap<Arc<PathBuf>, Vec<OsString>>,
    /// Directories that cannot be read: what they held stays.
    pub(super) kept: Vec<PathBuf>,
    pub(super) places: Places,
    /// Device and inode of the directories that were read.
    visited: BTreeSet<(u64, u64)>,
}

/// An entry of a directory that was followed to what it leads to.
struct Entry {
    name: OsString,
    path: PathBuf,
    /// The real directory, if it is one.
    directory: Option<PathBuf>,
}

/// Where a change can change what is found.
#[derive(Default)]
pub(super) struct Places {
    /// Real directories.
    pub(super) directories: HashMap<PathBuf, Place>,
    /// Entries that are links, or that links lead to.
    pub(super) links: HashMap<PathBuf, Way>,
    /// The directories of files by the paths that they were found by.
    pub(super) found: HashSet<Arc<PathBuf>>,
}

/// A directory that was read.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// As it was found below the root.
    pub(super) path: Arc<PathBuf>,
    pub(super) kind: PlaceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceKind {
    Files,
    /// `secrets`: its sub-directories are Secrets.
    Secrets,
    Secret,
    /// A Secret, or `secrets`, that is found by other names, too, or among files.
    Shared,
}

/// What is found by way of a link.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// The keys of this Secret, and nothing else.
    Secret(Arc<PathBuf>),
    Tree,
}

impl Way {
    pub(super) fn widen(&mut self, other: &Self) {
        if !matches!((&*self, other), (Self::Secret(own), Self::Secret(other)) if own == other) {
            *self = Self::Tree;
        }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(watcher: &'a mut dyn Watcher) -> Self {
        Self {
            watcher,
            files: BTreeSet::new(),
            is_full: false,
            reports: BTreeMap::new(),
            secrets: BTreeMap::new(),
            kept: Vec::new(),
            places: Places::default(),
            visited: BTreeSet::new(),
        }
    }

    pub(super) fn root(&mut self, root: &Path) -> io::Result<()> {
        let absolute = std::path::absolute(root)?;
        self.note_way(Path::new("/"), &absolute, &Way::Tree);
        let path = Arc::new(root.to_owned());
        for entry in self.entries(&path, fs::canonicalize(root)?, PlaceKind::Files)? {
            match entry.directory {
                Some(real) if entry.name == SECRETS => self.secrets(entry.path, real),
                _ if is_hidden(&entry.name) => {}
                _ => self.entry(entry, 1),
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry, depth: usize) {
        if let Some(real) = entry.directory {
            self.directory(entry.path, real, depth);
        } else if is_yaml(&entry.name) {
            self.file(entry.path);
        }
    }

    fn directory(&mut self, path: PathBuf, real: PathBuf, depth: usize) {
        if depth > DEPTH_MAX {
            let what = format!("is more than {DEPTH_MAX} directories deep, so it was not read");
            self.report(path, what);
            return;
        }
        let path = Arc::new(path);
        self.places.found.insert(Arc::clone(&path));
        match self.entries(&path, real, PlaceKind::Files) {
            Ok(entries) => {
                let visible = entries.into_iter().filter(|entry| !is_hidden(&entry.name));
                visible.for_each(|entry| self.entry(entry, depth + 1));
            }
            // It was deleted since its parent was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.keep(&path, error),
        }
    }

    fn file(&mut self, path: PathBuf) {
        if self.files.len() + 1 < FILES_MAX {
            self.files.insert(Arc::new(path));
        } else if !std::mem::replace(&mut self.is_full, true) {
            let what = format!("is one of more than {FILES_MAX} files, the rest was not read");
            self.report(path, what);
        }
    }

    /// The sub-directories are Secrets; files beside them are files like others.
    fn secrets(&mut self, path: PathBuf, real: PathBuf) {
        let path = Arc::new(path);
        self.places.found.insert(Arc::clone(&path));
        match self.entries(&path, real, PlaceKind::Secrets) {
            Ok(entries) => {
                for entry in entries.into_iter().filter(|entry| !is_hidden(&entry.name)) {
                    match entry.directory {
                        Some(real) => self.secret(&Arc::new(entry.path), real),
                        None => self.entry(entry, 2),
                    }
                }
            }
            Err(error) => self.keep(&path, error),
        }
    }

    pub(super) fn secret(&mut self, path: &Arc<PathBuf>, real: PathBuf) {
        match self.entries(path, real, PlaceKind::Secret) {
            Ok(entries) => {
                let files = entries.into_iter().filter(|entry| entry.directory.is_none());
                let names = files.map(|entry| entry.name).collect();
                self.secrets.insert(Arc::clone(path), names);
            }
            Err(error) => self.keep(path, error),
        }
    }

    /// What stands in the directory at `path`, sorted; nothing where it was read before, unless it
    /// is a Secret, or holds Secrets: of these its directories. What begins with two dots is
    /// Kubernetes' own and left out.
    fn entries(
        &mut self,
        path: &Arc<PathBuf>,
        real: PathBuf,
        kind: PlaceKind,
    ) -> io::Result<Vec<Entry>> {
        let metadata = fs::metadata(&real)?;
        let is_known = !self.visited.insert((metadata.dev(), metadata.ino()));
        if is_known && kind == PlaceKind::Files {
            return Ok(Vec::new());
        }
        self.watcher.watch(&real);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&real)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_bytes().starts_with(b"..") {
                continue;
            }
            let directory = self.follow(path, &real, &entry, kind)?;
            entries.push(Entry { path: path.join(&name), name, directory });
        }
        if is_known && kind == PlaceKind::Secrets {
            entries.retain(|entry| entry.directory.is_some());
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let kind = if is_known { PlaceKind::Shared } else { kind };
        self.places.directories.insert(real, Place { path: Arc::clone(path), kind });
        Ok(entries)
    }

    /// The real directory that `entry` of the real directory `real` is, or leads to, if any.
    fn follow(
        &mut self,
        path: &Arc<PathBuf>,
        real: &Path,
        entry: &fs::DirEntry,
        kind: PlaceKind,
    ) -> io::Result<Option<PathBuf>> {
        let file_type = entry.file_type()?;
        if !file_type.is_symlink() {
            return Ok(file_type.is_dir().then(|| entry.path()));
        }
        let way = if kind == PlaceKind::Secret { Way::Secret(Arc::clone(path)) } else { Way::Tree };
        self.note_way(real, Path::new(&entry.file_name()), &way);
        let is_directory = fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir());
        if is_directory { fs::canonicalize(entry.path()).map(Some) } else { Ok(None) }
    }

    /// Watches the entries that decide what `path`, from the real directory `start` on, means.
    fn note_way(&mut self, start: &Path, path: &Path, way: &Way) {
        for entry in follow(start, path, self.watcher).entries() {
            let known = self.places.links.entry(entry.clone());
            known.and_modify(|known| known.widen(way)).or_insert_with(|| way.clone());
        }
    }

    /// The directory at `path` cannot be read: what it held stays.
    fn keep(&mut self, path: &Path, error: io::Error) {
        self.kept.push(path.to_owned());
        self.report(path.to_owned(), format!("cannot be read: {}", FileError::from(error).what));
    }

    fn report(&mut self, path: PathBuf, what: String) {
        self.reports.insert(Arc::new(path), what);
    }
}

pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// Whether a file of this name may hold resources.
pub(super) fn is_yaml(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}
