//! Notices that files may have changed.
//!
//! - Says only *that* something may be different: the scans find out what, and are cheap when
//!   nothing is.
//! - inotify watches real directories, never files or links, so a file that is replaced by a rename
//!   is seen like any other.
//! - Lost events, too many directories for the kernel's limit or no inotify at all cost time, never
//!   a change: everything is looked at again now and then.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::burst::Burst;
use super::directory::is_yaml;

/// Looks again although nothing was announced: network file systems announce nothing.
const RESCAN: Duration = Duration::from_secs(10);

/// The same while a file is awaited whose directory may be missing, or not all can be watched.
const RESCAN_AWAITING: Duration = Duration::from_secs(1);

/// Events that wait for the control thread; more are lost, which means to look at everything.
const EVENTS_MAX: usize = 4096;

/// Real directories and what is of interest in each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places(BTreeMap<PathBuf, Interest>);

/// What is of interest in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Every entry.
    Everything,
    /// The entries of these names.
    Names(BTreeSet<OsString>),
    /// The contents of YAML files; that any entry comes or goes, as it may be a directory or link.
    Yaml,
}

impl Places {
    /// Adds to what is of interest in `directory`.
    pub(crate) fn add(&mut self, directory: PathBuf, interest: Interest) {
        match self.0.entry(directory) {
            btree_map::Entry::Vacant(entry) => drop(entry.insert(interest)),
            btree_map::Entry::Occupied(mut entry) => entry.get_mut().widen(interest),
        }
    }
}

impl Interest {
    fn widen(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Names(names), Self::Names(more)) => names.extend(more),
            (Self::Yaml, Self::Yaml) => {}
            (Self::Everything, _) => {}
            // Both a source directory and on the way to a named file.
            (_, _) => *self = Self::Everything,
        }
    }

    fn includes(&self, name: &OsStr, contents_only: bool) -> bool {
        match self {
            Self::Everything => true,
            Self::Names(names) => names.contains(name),
            Self::Yaml => !contents_only || is_yaml(name),
        }
    }
}

/// Waits for changes in places.
pub(crate) struct Watch {
    /// `None` when the kernel gives no inotify instance.
    watcher: Option<INotifyWatcher>,
    events: mpsc::Receiver<Seen>,
    /// Keeps `events` open when there is no watcher.
    _sender: mpsc::Sender<Seen>,
    wanted: Places,
    /// Device and inode of the directories that are watched.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// Whether some directory could not be watched.
    is_partial: bool,
    burst: Burst,
    rescan: Duration,
    rescan_at: Instant,
}

/// An event of the kernel, as far as it matters.
#[derive(Debug)]
enum Seen {
    Changed(PathBuf),
    Closed(PathBuf),
    Lost,
    Written(PathBuf),
}

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn start() -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let watcher = watcher(sender.clone());
        Self {
            watcher,
            events,
            _sender: sender,
            wanted: Places::default(),
            watched: BTreeMap::new(),
            is_partial: false,
            burst: Burst::default(),
            rescan: RESCAN,
            rescan_at: Instant::now() + RESCAN,
        }
    }

    /// Watches exactly `places`. Says whether a directory was added: what happened in it before is
    /// not announced, so it has to be looked at again.
    pub(crate) fn set(&mut self, places: Places, is_awaiting: bool) -> bool {
        let gone: Vec<_> =
            self.watched.keys().filter(|path| !places.0.contains_key(*path)).cloned().collect();
        gone.iter().for_each(|path| self.unwatch(path));
        self.is_partial = false;
        let mut added = false;
        for path in places.0.keys() {
            added |= self.watch(path);
        }
        self.wanted = places;
        let often = is_awaiting || self.is_partial || self.watcher.is_none();
        self.rescan = if often { RESCAN_AWAITING } else { RESCAN };
        self.rescan_at = self.rescan_at.min(Instant::now() + self.rescan);
        added
    }

    /// Returns when something may have changed. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            let due = self.burst.due().map_or(self.rescan_at, |due| due.min(self.rescan_at));
            tokio::select! {
                biased;
                event = self.events.recv() => self.note(event.unwrap_or(Seen::Lost)),
                () = tokio::time::sleep_until(due.into()) => {
                    let now = Instant::now();
                    self.burst.act(now);
                    self.rescan_at = now + self.rescan;
                    return;
                }
            }
        }
    }

    fn note(&mut self, seen: Seen) {
        let now = Instant::now();
        match seen {
            Seen::Changed(path) => {
                if self.watched.contains_key(&path) {
                    self.forget_below(&path);
                    self.burst.change(now);
                } else if self.is_wanted(&path, false) {
                    self.burst.change(now);
                }
            }
            Seen::Closed(path) if self.is_wanted(&path, true) => self.burst.close(&path, now),
            Seen::Written(path) if self.is_wanted(&path, true) => self.burst.write(path, now),
            Seen::Closed(_) | Seen::Written(_) => {}
            Seen::Lost => self.burst.change(now),
        }
    }

    fn is_wanted(&self, path: &Path, contents_only: bool) -> bool {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        let interest = self.wanted.0.get(directory);
        interest.is_some_and(|interest| interest.includes(name, contents_only))
    }

    /// The directory at `path` was removed, renamed or replaced: whatever is there now is watched
    /// anew by the next [`set`](Self::set).
    fn forget_below(&mut self, path: &Path) {
        let below: Vec<_> =
            self.watched.keys().filter(|watched| watched.starts_with(path)).cloned().collect();
        below.iter().for_each(|path| self.unwatch(path));
    }

    fn unwatch(&mut self, path: &Path) {
        self.watched.remove(path);
        if let Some(watcher) = &mut self.watcher {
            // The kernel may have dropped the watch already, together with its directory.
            let _ = watcher.unwatch(path);
        }
    }

    /// Whether a watch was added.
    fn watch(&mut self, path: &Path) -> bool {
        let Some(inode) = fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
        else {
            return false;
        };
        if self.watched.get(path) == Some(&inode) {
            return false;
        }
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(path.to_owned(), inode)),
            Err(error) => {
                self.is_partial = true;
                let path = path.display();
                tracing::warn!("cannot watch {path}, so it is looked at each second: {error}");
                return false;
            }
        }
        true
    }
}

fn watcher(sender: mpsc::Sender<Seen>) -> Option<INotifyWatcher> {
    let mut lost = false;
    let handler = move |event: notify::Result<notify::Event>| {
        for seen in event.map_or_else(|_| vec![Seen::Lost], seen) {
            // After a loss, the next one that fits in says so.
            let seen = if lost { Seen::Lost } else { seen };
            lost = sender.try_send(seen).is_err();
        }
    };
    INotifyWatcher::new(handler, notify::Config::default())
        .inspect_err(|error| {
            tracing::warn!("inotify is not available, so files are looked at each second: {error}");
        })
        .ok()
}

fn seen(event: notify::Event) -> Vec<Seen> {
    if event.need_rescan() {
        return vec![Seen::Lost];
    }
    let kind = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Seen::Closed,
        // Our own reading.
        EventKind::Access(_) => return Vec::new(),
        EventKind::Modify(ModifyKind::Data(_)) => Seen::Written,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => Seen::Changed,
    };
    event.paths.into_iter().map(kind).collect()
}
