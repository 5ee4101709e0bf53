//! The certificate and key files that Gateways name by path.
//!
//! - They may lie anywhere below `files.root`, and be missing: what is not there yet is awaited.
//! - Their directories are watched before they are looked at. Then [`refresh`](NamedFiles::refresh)
//!   looks only at the files that an entry leads to.
//! - Their bytes are handed out once and not kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::link::Way;
use super::look::{self, FileError, Seen};
use super::watch::{Watcher, follow, follow_links};
use crate::config::parallel;
use crate::crypto::Digest;

/// Larger than any chain of certificates; a Kubernetes Secret is no larger.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Files by the path in a Gateway.
pub(crate) struct NamedFiles {
    /// Prefix of every path.
    root: PathBuf,
    files: BTreeMap<Arc<str>, Seen>,
    /// Entries of real directories that decide about files, beside those that the paths themselves
    /// say: links, and what they lead to.
    ways: HashMap<PathBuf, BTreeSet<Arc<str>>>,
    /// Contents that were read and that nobody took yet.
    fresh: HashMap<Arc<str>, Vec<u8>>,
}

/// Where the directories of files really are, each found out once.
type Parents = HashMap<PathBuf, Way>;

impl NamedFiles {
    pub(crate) fn new(root: PathBuf) -> Self {
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root, files: BTreeMap::new(), ways: HashMap::new(), fresh: HashMap::new() }
    }

    /// From now on exactly `paths` are of interest.
    pub(crate) fn want(&mut self, paths: &BTreeSet<Arc<str>>, watcher: &mut dyn Watcher) {
        self.files.retain(|path, _| paths.contains(path));
        let new: Vec<_> = paths.iter().filter(|path| !self.files.contains_key(*path)).collect();
        let mut parents = Parents::new();
        for path in &new {
            self.note_way(path, &mut parents, watcher);
        }
        let looked = parallel::map(&new, parallel::MANY, |path| {
            let mut seen = Seen::default();
            let content = seen.look(&self.real(path), FILE_BYTES_MAX);
            (seen, content)
        });
        for (path, (seen, content)) in new.into_iter().zip(looked) {
            self.files.insert(Arc::clone(path), seen);
            self.keep(path, content);
        }
    }

    /// What the file at `path` held at the last look.
    ///
    /// # Errors
    /// It is missing, too large or cannot be read.
    pub(crate) fn look(&self, path: &str) -> io::Result<Digest> {
        match self.files.get(path).and_then(Seen::content) {
            Some(Ok(digest)) => Ok(*digest),
            Some(Err(error)) => Err(FileError::clone(error).into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The contents of the file at `path`.
    ///
    /// # Errors
    /// It is missing, too large or cannot be read.
    pub(crate) fn take(&mut self, path: &str) -> io::Result<Vec<u8>> {
        match self.fresh.remove(path) {
            Some(bytes) => Ok(bytes),
            None => Ok(look::bytes(&self.real(path), FILE_BYTES_MAX)?),
        }
    }

    /// Forgets the contents that nobody took.
    pub(crate) fn settle(&mut self) {
        self.fresh = HashMap::new();
    }

    /// Looks at every file; returns the paths of those that are different.
    pub(crate) fn scan(&mut self, watcher: &mut dyn Watcher) -> BTreeSet<Arc<str>> {
        self.ways.clear();
        let all: Vec<_> = self.files.keys().cloned().collect();
        self.look_again(all, watcher)
    }

    /// Looks at the files that `entry` of a real directory leads to.
    pub(crate) fn refresh(
        &mut self,
        entry: &Path,
        watcher: &mut dyn Watcher,
    ) -> BTreeSet<Arc<str>> {
        let plain = self.plain(entry).cloned();
        let others = self.ways.get(entry).cloned().unwrap_or_default();
        self.look_again(plain.into_iter().chain(others), watcher)
    }

    /// Looks at the files that are missing: no watch may announce them, as their directories may be
    /// missing, too.
    pub(crate) fn refresh_missing(&mut self, watcher: &mut dyn Watcher) -> BTreeSet<Arc<str>> {
        let missing = self.files.iter().filter(|(_, seen)| seen.is_missing());
        let missing: Vec<_> = missing.map(|(path, _)| Arc::clone(path)).collect();
        self.look_again(missing, watcher)
    }

    /// Whether something that happens to `entry` of a real directory may be of interest.
    pub(crate) fn concerns(&self, entry: &Path) -> bool {
        self.ways.contains_key(entry) || self.plain(entry).is_some()
    }

    /// Whether a file is missing.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.files.values().any(Seen::is_missing)
    }

    /// Reads every file again at the next scan, whatever its times say.
    pub(crate) fn distrust(&mut self) {
        self.files.values_mut().for_each(Seen::distrust);
    }

    fn look_again(
        &mut self,
        paths: impl IntoIterator<Item = Arc<str>>,
        watcher: &mut dyn Watcher,
    ) -> BTreeSet<Arc<str>> {
        let mut parents = Parents::new();
        let mut different = BTreeSet::new();
        for path in paths {
            let real = self.real(&path);
            self.note_way(&path, &mut parents, watcher);
            let Some(seen) = self.files.get_mut(&path) else { continue };
            if let Some(content) = seen.look(&real, FILE_BYTES_MAX) {
                self.keep(&path, Some(content));
                different.insert(path);
            }
        }
        different
    }

    fn keep(&mut self, path: &Arc<str>, content: Option<Result<Vec<u8>, FileError>>) {
        match content {
            Some(Ok(bytes)) => drop(self.fresh.insert(Arc::clone(path), bytes)),
            Some(Err(_)) => drop(self.fresh.remove(path)),
            None => {}
        }
    }

    /// Watches the entries that decide about the file at `path`.
    fn note_way(&mut self, path: &Arc<str>, parents: &mut Parents, watcher: &mut dyn Watcher) {
        let real = self.real(path);
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else { return };
        let to_parent = parents
            .entry(parent.to_owned())
            .or_insert_with_key(|parent| follow_links(Path::new("/"), parent, watcher));
        let Some(directory) = &to_parent.end else {
            return self.note(to_parent.links.clone(), path);
        };
        let way = follow(directory, Path::new(name), watcher);
        let is_plain = way.end.as_ref().and_then(|end| self.path_to(end)).as_deref() == Some(path);
        let links = to_parent.links.iter().chain(&way.links);
        let entries = links.chain(way.end.iter().filter(|_| !is_plain)).cloned().collect();
        self.note(entries, path);
    }

    fn note(&mut self, entries: Vec<PathBuf>, path: &Arc<str>) {
        for entry in entries {
            self.ways.entry(entry).or_default().insert(Arc::clone(path));
        }
    }

    /// The path of interest that says `entry` itself.
    fn plain(&self, entry: &Path) -> Option<&Arc<str>> {
        let (path, _) = self.files.get_key_value(&*self.path_to(entry)?)?;
        Some(path)
    }

    /// How a Gateway names the file at `real`.
    fn path_to(&self, real: &Path) -> Option<String> {
        Some(format!("/{}", real.strip_prefix(&self.root).ok()?.to_str()?))
    }

    /// Where the file is that a Gateway names by `path`.
    pub(crate) fn real(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::super::watch::Nobody;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Files below a root, all of which were looked at.
    fn wanted(root: &Path, paths: &[&str]) -> NamedFiles {
        let mut files = NamedFiles::new(root.to_owned());
        files.want(&paths.iter().map(|path| (*path).into()).collect(), &mut Nobody);
        files
    }

    fn refresh(files: &mut NamedFiles, entry: &Path) -> Vec<String> {
        assert!(files.concerns(entry));
        files.refresh(entry, &mut Nobody).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_the_file_that_something_happened_to_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["a", "b"] {
            fs::write(root.join(name), "1").unwrap();
        }
        let mut files = wanted(&root, &["/a", "b", "/missing"]);
        assert_eq!(files.take("b").unwrap(), b"1");
        for name in ["a", "b", "missing", "other"] {
            fs::write(root.join(name), "2").unwrap();
        }
        assert!(!files.concerns(&root.join("other")));
        assert_eq!(refresh(&mut files, &root.join("b")), ["b"], "as the Gateway writes it");
        assert!(refresh(&mut files, &root.join("b")).is_empty());
        assert_eq!(files.take("b").unwrap(), b"2");
        assert!(files.is_awaiting());
        assert_eq!(refresh(&mut files, &root.join("missing")), ["/missing"]);
        assert!(!files.is_awaiting());
        let different: Vec<_> = files.scan(&mut Nobody).into_iter().collect();
        assert_eq!(different, ["/a".into()]);
    }

    #[test]
    fn files_behind_links_are_found_by_every_entry_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for version in ["..1", "..2"] {
            fs::create_dir_all(root.join("certs").join(version)).unwrap();
            fs::write(root.join("certs").join(version).join("tls.crt"), version).unwrap();
        }
        symlink("..1", root.join("certs/..data")).unwrap();
        symlink("..data/tls.crt", root.join("certs/tls.crt")).unwrap();
        let mut files = wanted(&root, &["/certs/tls.crt"]);
        assert!(!files.concerns(&root.join("certs/..2/tls.crt")));
        symlink("..2", root.join("certs/new")).unwrap();
        fs::rename(root.join("certs/new"), root.join("certs/..data")).unwrap();
        assert_eq!(refresh(&mut files, &root.join("certs/..data")), ["/certs/tls.crt"]);
        assert_eq!(files.take("/certs/tls.crt").unwrap(), b"..2");
        fs::write(root.join("certs/..2/tls.crt"), "3").unwrap();
        assert_eq!(refresh(&mut files, &root.join("certs/..2/tls.crt")), ["/certs/tls.crt"]);
    }

    #[test]
    fn a_file_whose_directory_is_missing_is_found_once_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut files = wanted(&root, &["/certs/tls.crt"]);
        assert_eq!(files.look("/certs/tls.crt").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(files.refresh_missing(&mut Nobody).is_empty());
        fs::create_dir(root.join("certs")).unwrap();
        fs::write(root.join("certs/tls.crt"), "1").unwrap();
        assert_eq!(files.refresh_missing(&mut Nobody).len(), 1);
        assert_eq!(files.look("/certs/tls.crt").unwrap(), Digest::of(b"1"));
    }
}
