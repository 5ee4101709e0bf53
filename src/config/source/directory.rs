//! The directory source: a whole cluster's resources as files.
//!
//! - Every `*.yaml` and `*.yml` below the root is a source file, at any depth. Names that begin
//!   with a dot are passed over: editors and Kubernetes (`..data`) keep their own there.
//! - `secrets/NAME/` at the root is a mounted Secret with its keys as files.
//! - Links are followed. Each real directory is read once, so a loop ends where it begins; but a
//!   Secret is one by each name that leads to its directory, and `secrets` holds Secrets by
//!   whichever name it is met first.
//! - A file that cannot be read is an entry that says why. A directory that cannot be read keeps
//!   the files that it had: unreadable is not deleted.
//! - Contents are handed out when they change, and not kept.
//! - A directory is watched before it is read, so that nothing happens unseen in between. Then
//!   [`refresh`](Directory::refresh) looks only at the entry that something happened to.
//!
//! Deliberately not here: what the files say ([`document`]), finding them ([`walk`](super::walk)),
//! and noticing changes ([`watch`](super::watch)).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document;
use super::look::{self, FileError, Seen};
use super::walk::{FILES_MAX, Place, PlaceKind, Places, Walk, Way, is_hidden, is_yaml};
use super::watch::Watcher;
use crate::config::compile::{Changes, FileState, MountedSecret, SourceFile};
use crate::config::parallel;

const FILE_BYTES_MAX: u64 = document::FILE_BYTES_MAX as u64;

/// The files below a root, as they were looked at last.
pub(crate) struct Directory {
    root: PathBuf,
    files: BTreeMap<Arc<PathBuf>, Seen>,
    /// What is wrong with directories, and with the files of Secrets.
    reports: BTreeMap<Arc<PathBuf>, String>,
    secrets: BTreeMap<Arc<PathBuf>, Keys>,
    places: Places,
}

/// The files of a Secret, by their names.
type Keys = Box<[(OsString, Seen)]>;

/// Everything has to be looked at: what happened to an entry is about directories or links.
#[derive(Debug)]
pub(crate) struct NeedsScan;

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
        write!(f, "{root} cannot be read: {error}")?;
        match cures.iter().find(|(kind, _)| *kind == error.kind()) {
            Some((_, cure)) => write!(f, "; {cure}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DirectoryError {}

impl Directory {
    /// The source below `root`, not looked at yet.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            reports: BTreeMap::new(),
            secrets: BTreeMap::new(),
            places: Places::default(),
        }
    }

    /// Looks at everything; returns what is different.
    ///
    /// # Errors
    /// The root cannot be read; everything stays as it was.
    pub(crate) fn scan(&mut self, watcher: &mut dyn Watcher) -> Result<Changes, DirectoryError> {
        let mut walk = Walk::new(watcher);
        walk.root(&self.root).map_err(|error| DirectoryError { root: self.root.clone(), error })?;
        let Walk { files, mut reports, secrets, kept, places, .. } = walk;
        self.places = places;
        let mut changes = Changes::default();
        self.forget_unless(&files, &secrets, &kept, &mut changes);
        self.look_at_files(files, &mut changes);
        for (path, names) in secrets {
            self.look_at_secret(path, names, &mut reports, &mut changes);
        }
        self.report(reports, &mut changes);
        Ok(changes)
    }

    /// Looks at `entry` of a real directory, which something happened to; returns what is
    /// different.
    ///
    /// # Errors
    /// It takes more than that.
    pub(crate) fn refresh(
        &mut self,
        entry: &Path,
        watcher: &mut dyn Watcher,
    ) -> Result<Changes, NeedsScan> {
        match self.places.links.get(entry) {
            Some(Way::Secret(path)) => return self.refresh_secret(&Arc::clone(path), watcher),
            Some(Way::Tree) => return Err(NeedsScan),
            None => {}
        }
        let (Some(directory), Some(name)) = (entry.parent(), entry.file_name()) else {
            return Ok(Changes::default());
        };
        let Some(Place { path, kind }) = self.places.directories.get(directory).cloned() else {
            return Ok(Changes::default());
        };
        match kind {
            PlaceKind::Secret => self.refresh_secret(&path, watcher),
            PlaceKind::Shared => Err(NeedsScan),
            _ if is_hidden(name) => Ok(Changes::default()),
            PlaceKind::Files | PlaceKind::Secrets => {
                self.refresh_entry(&path.join(name), kind, watcher)
            }
        }
    }

    /// Whether something that happens to `entry` of a real directory may be of interest; if not
    /// `comes_or_goes`, then only to its contents.
    pub(crate) fn concerns(&self, entry: &Path, comes_or_goes: bool) -> bool {
        if self.places.links.contains_key(entry) {
            return true;
        }
        let (Some(directory), Some(name)) = (entry.parent(), entry.file_name()) else {
            return false;
        };
        self.places.directories.get(directory).is_some_and(|place| match place.kind {
            PlaceKind::Secret | PlaceKind::Shared => true,
            PlaceKind::Files | PlaceKind::Secrets => {
                !is_hidden(name) && (comes_or_goes || is_yaml(name))
            }
        })
    }

    /// Reads every file again at the next scan, whatever its times say.
    pub(crate) fn distrust(&mut self) {
        let keys = self.secrets.values_mut().flat_map(|keys| keys.iter_mut().map(|(_, seen)| seen));
        self.files.values_mut().chain(keys).for_each(Seen::distrust);
    }

    /// All that was found is gone.
    pub(crate) fn forget(self) -> Changes {
        let files = self.files.keys().chain(self.reports.keys()).map(gone).collect();
        let secrets = self.secrets.keys().map(|path| secret(path, None)).collect();
        Changes { files, secrets, ..Changes::default() }
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.secrets.is_empty() && self.reports.is_empty()
    }

    /// Forgets what is in none of `files` and `secrets` and below none of `kept`.
    fn forget_unless(
        &mut self,
        files: &BTreeSet<Arc<PathBuf>>,
        secrets: &BTreeMap<Arc<PathBuf>, Vec<OsString>>,
        kept: &[PathBuf],
        changes: &mut Changes,
    ) {
        let is_kept = |path: &Path| kept.iter().any(|kept| path.starts_with(kept));
        self.files.retain(|path, _| {
            let stays = files.contains(path) || is_kept(path);
            if !stays {
                changes.files.push(gone(path));
            }
            stays
        });
        self.secrets.retain(|path, _| {
            let stays = secrets.contains_key(path) || is_kept(path);
            if !stays {
                changes.secrets.push(secret(path, None));
            }
            stays
        });
    }

    fn look_at_files(&mut self, files: BTreeSet<Arc<PathBuf>>, changes: &mut Changes) {
        let (known, new): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|path| self.files.contains_key(path));
        for path in known {
            self.look_at_file(&path, changes);
        }
        let looked = parallel::map(&new, parallel::MANY, |path| {
            let mut seen = Seen::default();
            let content = seen.look(path, FILE_BYTES_MAX);
            (seen, content)
        });
        for (path, (seen, content)) in new.into_iter().zip(looked) {
            changes.files.extend(content.map(|content| source_file(&path, content)));
            self.files.insert(path, seen);
        }
    }

    fn look_at_file(&mut self, path: &Arc<PathBuf>, changes: &mut Changes) {
        let seen = self.files.entry(Arc::clone(path)).or_default();
        let content = seen.look(path, FILE_BYTES_MAX);
        changes.files.extend(content.map(|content| source_file(path, content)));
    }

    /// Looks at the files `names` of the Secret at `path`.
    fn look_at_secret(
        &mut self,
        path: Arc<PathBuf>,
        names: Vec<OsString>,
        reports: &mut BTreeMap<Arc<PathBuf>, String>,
        changes: &mut Changes,
    ) {
        let old = self.secrets.remove(&path);
        let mut differs =
            old.as_ref().is_none_or(|old| !old.iter().map(|(name, _)| name).eq(&names));
        let mut old: HashMap<_, _> = old.into_iter().flatten().collect();
        let (mut keys, mut contents) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names {
            let mut seen = old.remove(&name).unwrap_or_default();
            let content = seen.look(&path.join(&name), FILE_BYTES_MAX);
            differs |= content.is_some();
            contents.push(content);
            keys.push((name, seen));
        }
        for (name, seen) in &keys {
            if let Some(Err(error)) = seen.content() {
                reports.insert(Arc::new(path.join(name)), error.what.clone());
            }
        }
        if differs {
            let known = keys.iter().zip(contents).filter_map(|((name, _), content)| {
                let content =
                    content.unwrap_or_else(|| look::bytes(&path.join(name), FILE_BYTES_MAX));
                Some((name.to_string_lossy().into_owned(), content.ok()?))
            });
            changes.secrets.push(secret(&path, Some(known.collect())));
        }
        self.secrets.insert(path, keys.into());
    }

    /// Makes `reports` the things to say, in the place of files.
    fn report(&mut self, reports: BTreeMap<Arc<PathBuf>, String>, changes: &mut Changes) {
        // Where a file stands now, that was read already.
        let is_over =
            |path: &&Arc<PathBuf>| !reports.contains_key(*path) && !self.files.contains_key(*path);
        for path in self.reports.keys().filter(is_over) {
            changes.files.push(gone(path));
        }
        for (path, what) in &reports {
            if self.reports.get(path) != Some(what) {
                let state = FileState::Unreadable(what.clone());
                changes.files.push(SourceFile { path: Arc::clone(path), state });
            }
        }
        self.reports = reports;
    }

    /// What there is to say about all but what is below `path`.
    fn reports_outside(&self, path: &Path) -> impl Iterator<Item = (Arc<PathBuf>, String)> {
        let outside = self.reports.iter().filter(move |(report, _)| !report.starts_with(path));
        outside.map(|(path, what)| (Arc::clone(path), what.clone()))
    }

    fn refresh_secret(
        &mut self,
        path: &Arc<PathBuf>,
        watcher: &mut dyn Watcher,
    ) -> Result<Changes, NeedsScan> {
        let mut walk = Walk::new(watcher);
        let real = fs::canonicalize(&**path).map_err(|_| NeedsScan)?;
        let known = self.places.directories.get(&real);
        if known.is_some_and(|place| place.kind != PlaceKind::Secret) {
            return Err(NeedsScan);
        }
        walk.secret(path, real);
        let Walk { secrets, kept, places, mut reports, .. } = walk;
        if !kept.is_empty() {
            return Err(NeedsScan);
        }
        self.places.directories.extend(places.directories);
        for (entry, way) in places.links {
            let known = self.places.links.entry(entry);
            known.and_modify(|known| known.widen(&way)).or_insert(way);
        }
        reports.extend(self.reports_outside(path));
        let mut changes = Changes::default();
        for (path, names) in secrets {
            self.look_at_secret(path, names, &mut reports, &mut changes);
        }
        self.report(reports, &mut changes);
        Ok(changes)
    }

    /// Looks at the entry at `path` of a directory of the kind `kind`.
    fn refresh_entry(
        &mut self,
        path: &Path,
        kind: PlaceKind,
        watcher: &mut dyn Watcher,
    ) -> Result<Changes, NeedsScan> {
        let path = Arc::new(path.to_owned());
        let is_secret = kind == PlaceKind::Secrets;
        if self.places.found.contains(&path)
            || self.reports.contains_key(&path)
            || self.files.len() >= FILES_MAX - 1
        {
            return Err(NeedsScan);
        }
        let mut changes = Changes::default();
        match fs::symlink_metadata(&*path) {
            Ok(metadata) if metadata.is_dir() && is_secret => {
                return self.refresh_secret(&path, watcher);
            }
            Ok(metadata) if metadata.is_file() && !self.secrets.contains_key(&path) => {
                if path.file_name().is_some_and(is_yaml) {
                    self.look_at_file(&path, &mut changes);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.files.remove(&path).is_some() {
                    changes.files.push(gone(&path));
                }
                if self.secrets.remove(&path).is_some() {
                    changes.secrets.push(secret(&path, None));
                    self.report(self.reports_outside(&path).collect(), &mut changes);
                }
            }
            Ok(_) | Err(_) => return Err(NeedsScan),
        }
        Ok(changes)
    }
}

fn gone(path: &Arc<PathBuf>) -> SourceFile {
    SourceFile { path: Arc::clone(path), state: FileState::Gone }
}

fn source_file(path: &Arc<PathBuf>, content: Result<Vec<u8>, FileError>) -> SourceFile {
    let state = match content {
        Ok(bytes) => FileState::Content(bytes),
        Err(error) => FileState::Unreadable(error.what),
    };
    SourceFile { path: Arc::clone(path), state }
}

fn secret(path: &Arc<PathBuf>, keys: Option<BTreeMap<String, Vec<u8>>>) -> MountedSecret {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into();
    MountedSecret { name, path: Arc::clone(path), keys }
}

#[cfg(test)]
mod tests {
    use super::super::walk::DEPTH_MAX;
    use super::super::watch::Nobody;
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// What is told below `root`.
    fn told(root: &Path, changes: Changes) -> Vec<String> {
        let show = |file: SourceFile| {
            let path = file.path.strip_prefix(root).unwrap().display().to_string();
            match file.state {
                FileState::Content(bytes) => format!("{path}: {}", String::from_utf8_lossy(&bytes)),
                FileState::Unreadable(why) => format!("{path}! {why}"),
                FileState::Gone => format!("{path} is gone"),
            }
        };
        let mut told: Vec<_> = changes.files.into_iter().map(show).collect();
        told.sort();
        told
    }

    /// What the first scan below `root` finds.
    fn found(root: &Path) -> Vec<String> {
        told(root, Directory::new(root).scan(&mut Nobody).unwrap())
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
        assert_eq!(found(root), ["a/b/x.yaml: k: v", "y.yml: k: v"]);
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
        let found = found(root);
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
        let found = found(root);
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
        let found = found(dir.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("! is more than 32 directories deep"), "{found:?}");
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_that_was_too_deep_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join(["d"; DEPTH_MAX].join("/")).join("x.yaml");
        fs::create_dir_all(&deep).unwrap();
        let mut directory = Directory::new(dir.path());
        directory.scan(&mut Nobody).unwrap();
        fs::remove_dir(&deep).unwrap();
        fs::write(&deep, "k: v").unwrap();
        let changes = directory.scan(&mut Nobody).unwrap();
        let states: Vec<_> = changes.files.into_iter().map(|file| file.state).collect();
        assert!(matches!(&states[..], [FileState::Content(_)]), "{} states", states.len());
    }

    #[test]
    fn a_secret_may_be_linked_to_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("certs/shop")).unwrap();
        fs::create_dir(root.join("secrets")).unwrap();
        fs::write(root.join("certs/shop/tls.crt"), "1").unwrap();
        symlink("../certs/shop", root.join("secrets/a")).unwrap();
        symlink("a", root.join("secrets/b")).unwrap();
        let told = |changes: Changes| {
            let mut told: Vec<_> = changes
                .secrets
                .into_iter()
                .map(|secret| (secret.name.to_string(), secret.keys.unwrap()))
                .collect();
            told.sort();
            told
        };
        let keys = |bytes: &[u8]| BTreeMap::from([("tls.crt".to_owned(), bytes.to_vec())]);
        let both = |bytes: &[u8]| [("a".to_owned(), keys(bytes)), ("b".to_owned(), keys(bytes))];
        let mut directory = Directory::new(&root);
        assert_eq!(told(directory.scan(&mut Nobody).unwrap()), both(b"1"));
        fs::write(root.join("certs/shop/tls.crt"), "2").unwrap();
        let entry = root.join("certs/shop/tls.crt");
        assert!(directory.concerns(&entry, false));
        let changes = match directory.refresh(&entry, &mut Nobody) {
            Ok(changes) => changes,
            Err(NeedsScan) => directory.scan(&mut Nobody).unwrap(),
        };
        assert_eq!(told(changes), both(b"2"));
    }

    #[test]
    fn a_link_to_the_directory_of_secrets_hides_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("secrets/shop")).unwrap();
        fs::write(root.join("secrets/shop/tls.crt"), "1").unwrap();
        fs::write(root.join("secrets/beside.yaml"), "k: v").unwrap();
        symlink("secrets", root.join("a-link")).unwrap();
        let mut directory = Directory::new(&root);
        let changes = directory.scan(&mut Nobody).unwrap();
        let names: Vec<_> = changes.secrets.iter().map(|secret| secret.name.to_string()).collect();
        assert_eq!(names, ["shop"]);
        assert_eq!(told(&root, changes), ["a-link/beside.yaml: k: v"], "once");
        let new = root.join("secrets/new");
        fs::create_dir(&new).unwrap();
        fs::write(new.join("tls.crt"), "2").unwrap();
        assert!(directory.concerns(&new, true));
        let changes = match directory.refresh(&new, &mut Nobody) {
            Ok(changes) => changes,
            Err(NeedsScan) => directory.scan(&mut Nobody).unwrap(),
        };
        let names: Vec<_> = changes.secrets.iter().map(|secret| secret.name.to_string()).collect();
        assert_eq!(names, ["new"]);
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
        let changes = Directory::new(root).scan(&mut Nobody).unwrap();
        assert_eq!(changes.secrets.len(), 1);
        let MountedSecret { name, keys, .. } = &changes.secrets[0];
        assert_eq!(**name, *"cred");
        assert_eq!(*keys, Some(BTreeMap::from([("tls.crt".to_owned(), b"c".to_vec())])));
        assert_eq!(told(root, changes), ["secrets/beside.yaml: k: v"]);
    }

    /// A directory that was scanned, with two files and a Secret.
    fn scanned() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("secrets/cred")).unwrap();
        for file in ["a.yaml", "b.yaml", "secrets/cred/tls.crt", "secrets/cred/tls.key"] {
            fs::write(root.join(file), "1").unwrap();
        }
        let mut directory = Directory::new(root);
        directory.scan(&mut Nobody).unwrap();
        (dir, directory)
    }

    fn refresh(directory: &mut Directory, root: &Path, entry: &str) -> Vec<String> {
        let entry = root.canonicalize().unwrap().join(entry);
        told(root, directory.refresh(&entry, &mut Nobody).unwrap())
    }

    #[test]
    fn only_the_entry_that_something_happened_to_is_looked_at() {
        let (dir, mut directory) = scanned();
        let root = dir.path();
        fs::write(root.join("a.yaml"), "2").unwrap();
        fs::write(root.join("b.yaml"), "2").unwrap();
        assert_eq!(refresh(&mut directory, root, "b.yaml"), ["b.yaml: 2"]);
        fs::remove_file(root.join("b.yaml")).unwrap();
        fs::write(root.join("c.yml"), "3").unwrap();
        assert_eq!(refresh(&mut directory, root, "c.yml"), ["c.yml: 3"]);
        assert_eq!(refresh(&mut directory, root, "b.yaml"), ["b.yaml is gone"]);
        fs::write(root.join("notes.txt"), "4").unwrap();
        fs::write(root.join(".c.yaml.swp"), "4").unwrap();
        for entry in ["notes.txt", ".c.yaml.swp", "never-there.yaml", "c.yml"] {
            assert!(refresh(&mut directory, root, entry).is_empty(), "{entry}");
        }
        assert_eq!(told(root, directory.scan(&mut Nobody).unwrap()), ["a.yaml: 2"]);
    }

    #[test]
    fn only_the_secret_that_something_happened_to_is_looked_at() {
        let (dir, mut directory) = scanned();
        let root = dir.path().canonicalize().unwrap();
        let mut secrets = |entry: &str| {
            let changes = directory.refresh(&root.join(entry), &mut Nobody).unwrap();
            assert!(changes.files.is_empty());
            let show = |secret: MountedSecret| {
                let keys = secret.keys.map(|keys| keys.into_values().collect::<Vec<_>>().concat());
                (secret.name.to_string(), keys.map(|bytes| String::from_utf8(bytes).unwrap()))
            };
            changes.secrets.into_iter().map(show).collect::<Vec<_>>()
        };
        let found = |name: &str, keys: &str| vec![(name.to_owned(), Some(keys.to_owned()))];
        fs::write(root.join("a.yaml"), "2").unwrap();
        fs::write(root.join("secrets/cred/tls.crt"), "2").unwrap();
        assert_eq!(secrets("secrets/cred/tls.crt"), found("cred", "21"));
        assert_eq!(secrets("secrets/cred/tls.crt"), []);
        fs::create_dir(root.join("secrets/new")).unwrap();
        fs::write(root.join("secrets/new/tls.crt"), "3").unwrap();
        assert_eq!(secrets("secrets/new"), found("new", "3"));
        fs::write(root.join("secrets/new/tls.crt"), "4").unwrap();
        assert_eq!(secrets("secrets/new/tls.crt"), found("new", "4"));
        fs::remove_dir_all(root.join("secrets/cred")).unwrap();
        assert_eq!(secrets("secrets/cred"), [("cred".to_owned(), None)]);
    }

    #[test]
    fn a_swap_of_kubernetes_concerns_only_its_own_secret() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for (secret, version) in [("a", "..1"), ("a", "..2"), ("b", "..1")] {
            let mount = root.join("secrets").join(secret);
            fs::create_dir_all(mount.join(version)).unwrap();
            fs::write(mount.join(version).join("tls.crt"), version).unwrap();
            if version == "..1" {
                symlink(version, mount.join("..data")).unwrap();
                symlink("..data/tls.crt", mount.join("tls.crt")).unwrap();
            }
        }
        let mut directory = Directory::new(&root);
        assert_eq!(directory.scan(&mut Nobody).unwrap().secrets.len(), 2);
        symlink("..2", root.join("secrets/a/..data_tmp")).unwrap();
        fs::rename(root.join("secrets/a/..data_tmp"), root.join("secrets/a/..data")).unwrap();
        let entry = root.join("secrets/a/..data");
        assert!(directory.concerns(&entry, true));
        let changes = directory.refresh(&entry, &mut Nobody).unwrap();
        assert_eq!(changes.secrets.len(), 1);
        assert_eq!(changes.secrets[0].keys.as_ref().unwrap()["tls.crt"], b"..2");
        // The new target is of interest now, too.
        fs::write(root.join("secrets/a/..2/tls.crt"), "3").unwrap();
        let changes = directory.refresh(&root.join("secrets/a/..2/tls.crt"), &mut Nobody).unwrap();
        assert_eq!(changes.secrets[0].keys.as_ref().unwrap()["tls.crt"], b"3");
    }

    #[test]
    fn directories_and_links_need_a_scan() {
        let (dir, mut directory) = scanned();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("deep")).unwrap();
        fs::write(root.join("deep/c.yaml"), "3").unwrap();
        symlink("deep/c.yaml", root.join("d.yaml")).unwrap();
        for entry in ["deep", "d.yaml"] {
            assert!(directory.refresh(&root.join(entry), &mut Nobody).is_err(), "{entry}");
        }
        let found = told(&root, directory.scan(&mut Nobody).unwrap());
        assert_eq!(found, ["d.yaml: 3", "deep/c.yaml: 3"]);
        fs::remove_dir_all(root.join("deep")).unwrap();
        for entry in ["deep", "d.yaml", "deep/c.yaml"] {
            assert!(directory.concerns(&root.join(entry), true), "{entry}");
        }
        assert!(directory.refresh(&root.join("deep"), &mut Nobody).is_err());
        let found = told(&root, directory.scan(&mut Nobody).unwrap());
        assert!(found[0].starts_with("d.yaml! No such file"), "{found:?}");
        assert_eq!(found[1..], ["deep/c.yaml is gone"]);
    }

    #[test]
    fn an_unreadable_directory_keeps_what_it_held() {
        std::thread::spawn(|| {
            if rustix::process::geteuid().is_root() {
                // Who may read everything. The kernel knows users by thread; this one ends here.
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            let (dir, mut directory) = scanned();
            let root = dir.path();
            let allow = |bits| {
                let permissions = fs::Permissions::from_mode(bits);
                fs::set_permissions(root.join("secrets/cred"), permissions).unwrap();
            };
            allow(0o000);
            let changes = directory.scan(&mut Nobody).unwrap();
            assert!(changes.secrets.is_empty());
            assert!(told(root, changes)[0].starts_with("secrets/cred! cannot be read"));
            allow(0o700);
            let changes = directory.scan(&mut Nobody).unwrap();
            assert!(changes.secrets.is_empty(), "it is as it was");
            assert_eq!(told(root, changes), ["secrets/cred is gone"]);
        })
        .join()
        .unwrap();
    }
}
