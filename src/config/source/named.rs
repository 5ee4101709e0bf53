//! The certificate and key files that Gateways name by path.
//!
//! They may lie anywhere below `files.root`, and be missing: what is not there yet is awaited.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::cache::{FileCache, FileError};
use super::link;
use super::watch::{Interest, Places};

/// Larger than any chain of certificates; a Kubernetes Secret is no larger.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Files by the path in a Gateway.
pub(crate) struct NamedFiles {
    /// Prefix of every path.
    root: PathBuf,
    cache: FileCache,
    /// What was found last.
    found: BTreeMap<String, Result<Arc<[u8]>, FileError>>,
}

impl NamedFiles {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, cache: FileCache::new(FILE_BYTES_MAX), found: BTreeMap::new() }
    }

    /// The contents of the file at `path`.
    ///
    /// # Errors
    /// It is missing, too large or cannot be read.
    pub(crate) fn read(&mut self, path: &str) -> io::Result<Arc<[u8]>> {
        let content = self.cache.read(&self.real(path));
        self.found.insert(path.to_owned(), content.clone());
        Ok(content?)
    }

    /// From now on exactly `paths` are of interest.
    pub(crate) fn want(&mut self, paths: &BTreeSet<String>) {
        self.found.retain(|path, _| paths.contains(path));
        for path in paths {
            if !self.found.contains_key(path) {
                let content = self.cache.read(&self.real(path));
                self.found.insert(path.clone(), content);
            }
        }
    }

    /// Looks again; says whether anything is different.
    pub(crate) fn scan(&mut self) -> bool {
        let paths: Vec<_> = self.found.keys().cloned().collect();
        let mut differs = false;
        for path in paths {
            let content = self.cache.read(&self.real(&path));
            differs |= self.found.get(&path).is_none_or(|before| !is_same(before, &content));
            self.found.insert(path, content);
        }
        self.cache.sweep();
        differs
    }

    /// Reads every file again at the next scan, whatever its times say.
    pub(crate) fn distrust(&mut self) {
        self.cache.distrust();
    }

    /// Whether a file is awaited that no watch may announce, as its directory is missing, too.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.found.values().any(Result::is_err)
    }

    /// Adds to `places` where a change can change what the next scan finds.
    pub(crate) fn add_places(&self, places: &mut Places) {
        for path in self.found.keys() {
            for (directory, name) in link::steps(&self.real(path)) {
                places.add(directory, Interest::Names(BTreeSet::from([name])));
            }
        }
    }

    fn real(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn is_same(a: &Result<Arc<[u8]>, FileError>, b: &Result<Arc<[u8]>, FileError>) -> bool {
    match (a, b) {
        (Ok(a), Ok(b)) => Arc::ptr_eq(a, b),
        (Err(a), Err(b)) => a == b,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}
