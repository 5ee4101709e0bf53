//! Which directory entries decide what a path means.
//!
//! Kubernetes replaces mounted files by renaming a symlink that they all lead through; so whoever
//! waits for a change of a file has to watch every directory on the way to it in which a link, or
//! the file itself, stands.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// As many links as Linux follows.
const LINKS_MAX: usize = 40;

/// The real directories and the names in them: one for each link on the way to `path`, and one for
/// the file itself. The way ends early at a directory that is missing.
pub(super) fn steps(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut steps = Vec::new();
    let mut links = 0;
    let mut real = PathBuf::from("/");
    let mut ahead = reversed(&std::path::absolute(path).unwrap_or_default());
    while let Some(name) = ahead.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let entry = real.join(&name);
        match fs::read_link(&entry) {
            Ok(target) if links < LINKS_MAX => {
                links += 1;
                steps.push((real.clone(), name));
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                ahead.extend(reversed(&target));
            }
            Ok(_) => break,
            Err(_) if ahead.is_empty() => steps.push((real.clone(), name)),
            // It exists and is no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => real = entry,
            Err(_) => break,
        }
    }
    steps
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

    fn steps_below(root: &Path, path: &str) -> Vec<(String, String)> {
        let real = root.canonicalize().unwrap();
        steps(&real.join(path))
            .into_iter()
            .map(|(dir, name)| {
                let dir = dir.strip_prefix(&real).unwrap().display().to_string();
                (dir, name.into_string().unwrap())
            })
            .collect()
    }

    fn pair(dir: &str, name: &str) -> (String, String) {
        (dir.to_owned(), name.to_owned())
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
            steps_below(root.path(), "certs/tls.crt"),
            [pair("certs", "tls.crt"), pair("certs", "..data"), pair("certs/..2024", "tls.crt"),]
        );
    }

    #[test]
    fn a_missing_file_is_awaited_in_its_directory() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(steps_below(root.path(), "tls.crt"), [pair("", "tls.crt")]);
        assert_eq!(steps_below(root.path(), "missing/tls.crt"), []);
        symlink("missing/dir", root.path().join("link")).unwrap();
        assert_eq!(steps_below(root.path(), "link/tls.crt"), [pair("", "link")]);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let root = tempfile::tempdir().unwrap();
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        assert_eq!(steps_below(root.path(), "a/tls.crt").len(), LINKS_MAX);
    }

    #[test]
    fn parents_and_absolute_targets_are_followed() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        fs::create_dir_all(real.join("v1")).unwrap();
        symlink(real.join("v1"), real.join("now")).unwrap();
        assert_eq!(
            steps_below(root.path(), "v1/../now/tls.crt"),
            [pair("", "now"), pair("v1", "tls.crt")]
        );
    }
}
