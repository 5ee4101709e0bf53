//! Which directory entries decide what a path means.
//!
//! Kubernetes replaces mounted files by renaming a symlink that they all lead through; so whoever
//! waits for a change of a file has to watch every directory on the way to it in which a link, or
//! the file itself, stands.
//!
//! Deliberately not here: links that change while they are followed. Who watches the directories
//! that a way leads through follows it once more when a watch was new.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many links as Linux follows.
const LINKS_MAX: usize = 40;

/// What a path means, as entries of real directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// The links that were followed.
    pub(super) links: Vec<PathBuf>,
    /// What they lead to, be it there or not; `None` where a directory is missing on the way.
    pub(super) end: Option<PathBuf>,
}

impl Way {
    /// Follows `path` from the real directory `start` on.
    pub(super) fn from(start: &Path, path: &Path) -> Self {
        let mut links = Vec::new();
        let mut real = start.to_owned();
        let mut ahead = reversed(path);
        while let Some(name) = ahead.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let entry = real.join(&name);
            match fs::read_link(&entry) {
                Ok(_) if links.len() == LINKS_MAX => return Self { links, end: None },
                Ok(target) => {
                    links.push(entry);
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    ahead.extend(reversed(&target));
                }
                // It exists and is no link, or it is what is awaited.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput || ahead.is_empty() => {
                    real = entry;
                }
                Err(_) => return Self { links, end: None },
            }
        }
        Self { links, end: Some(real) }
    }

    /// All entries that decide about it.
    pub(super) fn entries(&self) -> impl Iterator<Item = &PathBuf> {
        self.links.iter().chain(&self.end)
    }
}

/// The names in `path`, the first one last.
fn reversed(path: &Path) -> Vec<OsString> {
    let named = |component: &Component<'_>| {
        matches!(component, Component::Normal(_) | Component::ParentDir)
    };
    path.components().rev().filter(named).map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn entries_below(root: &Path, path: &str) -> Vec<String> {
        let real = root.canonicalize().unwrap();
        let way = Way::from(&real, Path::new(path));
        assert_eq!(way, Way::from(Path::new("/"), &real.join(path)));
        let below = |entry: &PathBuf| entry.strip_prefix(&real).unwrap().display().to_string();
        way.entries().map(below).collect()
    }

    #[test]
    fn a_mounted_file_is_found_through_its_links() {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path().join("certs");
        fs::create_dir_all(mount.join("..2024")).unwrap();
        fs::write(mount.join("..2024/tls.crt"), "x").unwrap();
        symlink("..2024", mount.join("..data")).unwrap();
        symlink("..data/tls.crt", mount.join("tls.crt")).unwrap();
        assert_eq!(
            entries_below(root.path(), "certs/tls.crt"),
            ["certs/tls.crt", "certs/..data", "certs/..2024/tls.crt"]
        );
    }

    #[test]
    fn a_missing_file_is_awaited_in_its_directory() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(entries_below(root.path(), "tls.crt"), ["tls.crt"]);
        assert!(entries_below(root.path(), "missing/tls.crt").is_empty());
        symlink("missing/dir", root.path().join("link")).unwrap();
        assert_eq!(entries_below(root.path(), "link/tls.crt"), ["link"]);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        assert_eq!(entries_below(root.path(), "a/tls.crt").len(), LINKS_MAX);
    }

    #[test]
    fn parents_and_absolute_targets_are_followed() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("v1")).unwrap();
        symlink(real.join("v1"), real.join("now")).unwrap();
        assert_eq!(entries_below(root.path(), "v1/../now/tls.crt"), ["now", "v1/tls.crt"]);
    }
}
