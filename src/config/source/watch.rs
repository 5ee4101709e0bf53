//! Notices what happens to files.
//!
//! - inotify watches real directories, never files or links, so a file that is replaced by a rename
//!   is seen like any other.
//! - What is watched before it is looked at is never missed: each look begins with
//!   [`watch`](Watcher::watch).
//! - Says which entries of directories something happened to, as long as that is certain. Lost
//!   events, directories that are moved, too many for the kernel's limit or no inotify at all mean
//!   to look at everything, and so does the passing of time: network file systems announce nothing.
//!
//! Deliberately not here: what the entries mean.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::burst::Burst;
use super::link::Way;

/// Looks at everything again although nothing was announced.
const RESCAN: Duration = Duration::from_secs(10);

/// The same while not all can be watched; and looks at the files that are missing, whose
/// directories may be missing, too.
const RESCAN_OFTEN: Duration = Duration::from_secs(1);

/// More entries than this are looked at all together.
const ENTRIES_MAX: usize = 1000;

/// Times that a way is followed again because it led through a new directory. A link that changes
/// more often is followed by the next look.
const ROUNDS_MAX: usize = 5;

/// Rest after events that were of no interest: a log that is written beside a certificate must not
/// wake the gateway at every line. Until they are read, the kernel joins equal events.
const REST: Duration = Duration::from_millis(10);

/// Room for the events of one system call.
const BUFFER_BYTES: usize = 16 * 1024;

/// Whoever watches directories.
pub(crate) trait Watcher {
    /// Watches the real directory `directory` from now on. Says whether it was not watched before:
    /// what happened in it until now is not announced.
    fn watch(&mut self, directory: &Path) -> bool;
}

/// Watches nothing.
pub(crate) struct Nobody;

impl Watcher for Nobody {
    fn watch(&mut self, _directory: &Path) -> bool {
        false
    }
}

/// Follows `path` from the real directory `start` on, and watches all entries that decide about it.
pub(super) fn follow(start: &Path, path: &Path, watcher: &mut dyn Watcher) -> Way {
    follow_watched(start, path, watcher, |way| way.entries().collect())
}

/// The same, but for what `path` leads to.
pub(super) fn follow_links(start: &Path, path: &Path, watcher: &mut dyn Watcher) -> Way {
    follow_watched(start, path, watcher, |way| way.links.iter().collect())
}

fn follow_watched(
    start: &Path,
    path: &Path,
    watcher: &mut dyn Watcher,
    watched: impl Fn(&Way) -> Vec<&PathBuf>,
) -> Way {
    let mut way = Way::from(start, path);
    for _ in 0..ROUNDS_MAX {
        let directories = watched(&way).into_iter().filter_map(|entry| entry.parent());
        // Every one of them, not only up to the first that is new.
        if directories.filter(|directory| watcher.watch(directory)).count() == 0 {
            break;
        }
        way = Way::from(start, path);
    }
    way
}

/// What there is to look at.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) everything: bool,
    /// The files that are missing.
    pub(crate) missing: bool,
    /// Entries of real directories.
    pub(crate) entries: BTreeSet<PathBuf>,
}

/// Waits for something to happen in directories.
pub(crate) struct Watch {
    /// `None` when the kernel gives no inotify instance.
    inotify: Option<AsyncFd<OwnedFd>>,
    directories: HashMap<Arc<Path>, Watched>,
    /// The directories of each watch; a directory that is mounted twice has one.
    by_watch: HashMap<i32, Vec<Arc<Path>>>,
    /// Counts the sweeps.
    round: u64,
    /// Whether some directory could not be watched.
    is_partial: bool,
    look: Look,
    burst: Burst,
    /// When to look at everything, and how long after that again.
    rescan_at: Instant,
    rescan: Duration,
    /// When to look at what is missing, if anything is.
    missing_at: Option<Instant>,
}

/// A directory that is watched.
struct Watched {
    watch: i32,
    /// The round in which it was last asked for.
    round: u64,
}

/// An event of the kernel, as far as it matters.
#[derive(Debug)]
struct Event {
    watch: i32,
    flags: ReadFlags,
    name: Option<PathBuf>,
}

impl Watch {
    /// Watches nothing yet. Needs a tokio runtime.
    pub(crate) fn start() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(registered)
            .inspect_err(|error| {
                tracing::warn!(
                    "inotify is not available, so files are looked at each second: {error}"
                );
            });
        Self {
            inotify: inotify.ok(),
            directories: HashMap::new(),
            by_watch: HashMap::new(),
            round: 0,
            is_partial: false,
            look: Look::default(),
            burst: Burst::default(),
            rescan_at: Instant::now() + RESCAN,
            rescan: RESCAN,
            missing_at: None,
        }
    }

    /// Begins a look at everything: what is not asked for until [`sweep`](Self::sweep) is no longer
    /// of interest.
    pub(crate) fn begin(&mut self) {
        self.round += 1;
        self.is_partial = false;
    }

    /// Ends a look at everything.
    pub(crate) fn sweep(&mut self) {
        let round = self.round;
        let old = self.directories.iter().filter(|(_, watched)| watched.round < round);
        let old: Vec<_> = old.map(|(directory, _)| Arc::clone(directory)).collect();
        old.iter().for_each(|directory| self.forget(directory));
    }

    /// Looks more often while some file `is_missing`, or while the root is not there to be watched.
    pub(crate) fn set_pace(&mut self, is_missing: bool, is_rootless: bool) {
        let now = Instant::now();
        let often = is_rootless || self.is_partial || self.inotify.is_none();
        self.rescan = if often { RESCAN_OFTEN } else { RESCAN };
        self.rescan_at = self.rescan_at.min(now + self.rescan);
        self.missing_at = is_missing.then(|| self.missing_at.unwrap_or(now + RESCAN_OFTEN));
    }

    /// Waits until there is something to look at, among the entries that `concerns` says are of
    /// interest: for their contents, or also for coming and going. Cancel-safe.
    pub(crate) async fn changed(&mut self, concerns: impl Fn(&Path, bool) -> bool) -> Look {
        loop {
            let due = [self.burst.due(), self.missing_at].into_iter().flatten();
            let due = due.fold(self.rescan_at, Instant::min);
            let events = tokio::select! {
                biased;
                events = arrived(self.inotify.as_ref()) => Some(events),
                () = tokio::time::sleep_until(due.into()) => None,
            };
            let has_events = events.is_some();
            for event in events.unwrap_or_default() {
                self.note(event, &concerns);
            }
            let now = Instant::now();
            if let Some(look) = self.due(now) {
                return look;
            }
            if has_events && self.burst.due().is_none() {
                tokio::time::sleep(REST).await;
            }
        }
    }

    /// What is to be looked at `now`.
    fn due(&mut self, now: Instant) -> Option<Look> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.rescan_at <= now {
            self.look.everything = true;
            self.rescan_at = now + self.rescan;
        }
        if is_due(self.missing_at) {
            self.look.missing = true;
            self.missing_at = Some(now + RESCAN_OFTEN);
        }
        if !is_due(self.burst.due()) && !self.look.everything && !self.look.missing {
            return None;
        }
        self.burst.act(now);
        Some(std::mem::take(&mut self.look))
    }

    fn note(&mut self, event: Event, concerns: &impl Fn(&Path, bool) -> bool) {
        let Event { watch, flags, name } = event;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.look_at_everything();
        }
        let directories = self.by_watch.get(&watch).cloned().unwrap_or_default();
        if flags.contains(ReadFlags::IGNORED) {
            // The kernel dropped the watch, together with its directory.
            self.by_watch.remove(&watch);
            self.directories.retain(|_, watched| watched.watch != watch);
            return;
        }
        for directory in directories {
            match &name {
                Some(name) => self.note_entry(&directory.join(name), flags, concerns),
                None => self.note_directory(&directory, flags),
            }
        }
    }

    fn note_entry(
        &mut self,
        entry: &Path,
        flags: ReadFlags,
        concerns: &impl Fn(&Path, bool) -> bool,
    ) {
        let now = Instant::now();
        let contents_only = !flags.intersects(!(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE));
        let is_directory = flags.contains(ReadFlags::ISDIR);
        if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            // Nobody closes it under this name.
            self.burst.abandon(entry);
            if is_directory {
                self.forget_below(entry);
            }
        }
        if !concerns(entry, !contents_only) {
            return;
        }
        if flags.contains(ReadFlags::MODIFY) {
            self.burst.write(entry.to_owned(), now);
        } else if flags.contains(ReadFlags::CLOSE_WRITE) {
            self.burst.close(entry, now);
        } else {
            self.burst.change(now);
        }
        if self.look.entries.len() < ENTRIES_MAX {
            self.look.entries.insert(entry.to_owned());
        } else {
            self.look_at_everything();
        }
    }

    fn note_directory(&mut self, directory: &Arc<Path>, flags: ReadFlags) {
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            self.forget_below(directory);
            self.look_at_everything();
        } else if flags.contains(ReadFlags::ATTRIB) {
            // It may be readable now.
            self.look_at_everything();
        }
    }

    fn look_at_everything(&mut self) {
        self.burst.change(Instant::now());
        self.look.everything = true;
    }

    /// The directory at `path` was removed, renamed or replaced: whatever is there now is watched
    /// anew when it is looked at.
    fn forget_below(&mut self, path: &Path) {
        let below = self.directories.keys().filter(|directory| directory.starts_with(path));
        let below: Vec<_> = below.cloned().collect();
        below.iter().for_each(|directory| self.forget(directory));
    }

    fn forget(&mut self, directory: &Arc<Path>) {
        let Some(Watched { watch, .. }) = self.directories.remove(directory) else { return };
        let Some(others) = self.by_watch.get_mut(&watch) else { return };
        others.retain(|other| other != directory);
        if others.is_empty() {
            self.by_watch.remove(&watch);
            if let Some(inotify) = &self.inotify {
                // The kernel may have dropped the watch already, together with its directory.
                let _ = inotify::remove_watch(inotify, watch);
            }
        }
    }
}

impl Watcher for Watch {
    fn watch(&mut self, directory: &Path) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        if let Some(watched) = self.directories.get_mut(directory)
            && watched.round == self.round
        {
            return false;
        }
        match inotify::add_watch(inotify, directory, flags()) {
            Ok(watch) => self.remember(directory, watch),
            // What is not there yet is awaited where it will be.
            Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_partial, true) {
                    let directory = directory.display();
                    tracing::warn!(
                        "cannot watch {directory}, so all files are looked at each second: {error}"
                    );
                }
                false
            }
        }
    }
}

impl Watch {
    /// Notes that `watch` is the one of `directory`; says whether it was another before, or none.
    fn remember(&mut self, directory: &Path, watch: i32) -> bool {
        let round = self.round;
        if let Some(watched) = self.directories.get_mut(directory) {
            if watched.watch == watch {
                watched.round = round;
                return false;
            }
            self.forget(&Arc::from(directory));
        }
        let directory = Arc::<Path>::from(directory);
        self.by_watch.entry(watch).or_default().push(Arc::clone(&directory));
        self.directories.insert(directory, Watched { watch, round });
        true
    }
}

#[allow(deprecated, reason = "its successor makes callers promise what an OwnedFd does: stay open")]
fn registered(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(inotify)
}

fn flags() -> WatchFlags {
    WatchFlags::ATTRIB
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MODIFY
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
}

/// The next events, at least one. Cancel-safe.
async fn arrived(inotify: Option<&AsyncFd<OwnedFd>>) -> Vec<Event> {
    let Some(inotify) = inotify else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = inotify.readable().await else {
            return std::future::pending().await;
        };
        match ready.try_io(|inotify| read_events(inotify.get_ref())) {
            Ok(Ok(events)) => return events,
            // Then only time tells.
            Ok(Err(_)) => return std::future::pending().await,
            // Nothing is left to be read.
            Err(_) => {}
        }
    }
}

fn read_events(inotify: &OwnedFd) -> io::Result<Vec<Event>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut events = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).into());
        events.push(Event { watch: event.wd(), flags: event.events(), name });
        if reader.is_buffer_empty() {
            return Ok(events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Far longer than anything takes; only a test that fails waits for it.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn watching(directory: &Path) -> Watch {
        let mut watch = Watch::start();
        watch.begin();
        assert!(watch.watch(directory));
        assert!(!watch.watch(directory), "it is watched already");
        watch.sweep();
        watch.set_pace(false, false);
        watch
    }

    async fn next(watch: &mut Watch) -> Look {
        tokio::time::timeout(PATIENCE, watch.changed(|_, _| true)).await.unwrap()
    }

    #[tokio::test]
    async fn the_entries_that_something_happened_to_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watching(dir.path());
        fs::write(dir.path().join("a"), "1").unwrap();
        let look = next(&mut watch).await;
        assert!(!look.everything && !look.missing);
        assert_eq!(look.entries.into_iter().collect::<Vec<_>>(), [dir.path().join("a")]);
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let entries: Vec<_> = next(&mut watch).await.entries.into_iter().collect();
        assert_eq!(entries, [dir.path().join("a"), dir.path().join("b")]);
    }

    #[tokio::test]
    async fn what_is_of_no_interest_wakes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watching(dir.path());
        fs::write(dir.path().join("noise"), "1").unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        let of_interest = |entry: &Path, _: bool| entry.ends_with("a");
        let look = tokio::time::timeout(PATIENCE, watch.changed(of_interest)).await.unwrap();
        assert_eq!(look.entries.into_iter().collect::<Vec<_>>(), [dir.path().join("a")]);
    }

    #[tokio::test]
    async fn a_busy_neighbour_wakes_seldom() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watching(dir.path());
        let mut log = fs::File::create(dir.path().join("log")).unwrap();
        let seen = AtomicUsize::new(0);
        let not_the_log = |entry: &Path, _: bool| {
            seen.fetch_add(1, Ordering::Relaxed);
            entry.ends_with("a")
        };
        let start = Instant::now();
        tokio::select! {
            _ = watch.changed(not_the_log) => panic!("the log is of no interest"),
            () = async {
                for _ in 0..100 {
                    log.write_all(b"line\n").unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            } => {}
        }
        let rests = start.elapsed().as_millis() / REST.as_millis();
        // The first time it was created, too.
        let most = usize::try_from(rests).unwrap() + 3;
        let seen = seen.into_inner();
        assert!(seen <= most, "{seen} events, at most {most} expected");
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_before_it_is_closed_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watching(dir.path());
        let mut file = fs::File::create(dir.path().join("new")).unwrap();
        file.write_all(b"1").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("a")).unwrap();
        drop(file);
        let before = Instant::now();
        next(&mut watch).await;
        assert!(watch.burst.due().is_none_or(|due| due <= before), "nobody is waited for");
    }

    #[tokio::test]
    async fn a_directory_that_is_moved_means_everything() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::create_dir(&old).unwrap();
        let mut watch = watching(&old);
        fs::rename(&old, &new).unwrap();
        assert!(next(&mut watch).await.everything);
        fs::create_dir(&old).unwrap();
        watch.begin();
        assert!(watch.watch(&old), "it is another");
        assert!(watch.watch(&new));
        watch.sweep();
    }

    #[tokio::test]
    async fn what_is_not_asked_for_again_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let mut watch = watching(&a);
        watch.begin();
        watch.watch(&b);
        watch.sweep();
        assert_eq!(watch.directories.keys().map(|path| &**path).collect::<Vec<_>>(), [&*b]);
        assert_eq!(watch.by_watch.len(), 1);
    }

    #[tokio::test]
    async fn more_events_than_the_kernel_keeps_mean_everything() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watching(dir.path());
        let kept = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for index in 0..=kept.trim().parse::<usize>().unwrap() {
            // Two files by turns: equal events in a row are one.
            fs::write(dir.path().join(["a", "b"][index % 2]), "").unwrap();
        }
        while !next(&mut watch).await.everything {}
    }

    #[test]
    fn a_way_is_followed_again_where_it_may_have_changed_unseen() {
        struct Swap(PathBuf, u32);
        impl Watcher for Swap {
            fn watch(&mut self, _directory: &Path) -> bool {
                self.1 += 1;
                if self.1 == 1 {
                    fs::remove_file(self.0.join("link")).unwrap();
                    std::os::unix::fs::symlink("new", self.0.join("link")).unwrap();
                }
                self.1 == 1
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("old", root.join("link")).unwrap();
        let way = follow(&root, Path::new("link"), &mut Swap(root.clone(), 0));
        assert_eq!(way.end, Some(root.join("new")));
    }
}
