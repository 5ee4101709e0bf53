//! Reads the host: the files below `/proc` and `/sys`, and whether io_uring works.
//!
//! - Reads only, and as whoever runs it.
//! - What cannot be read is an [`Unseen`] that names the file and why; a container hides some.
//! - Every path is below [`Host::root`], so that tests bring hosts of their own.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A host, as this process sees it.
#[derive(Debug)]
pub struct Host {
    /// Where `/proc` and `/sys` are.
    root: PathBuf,
    /// What the kernel said to a ring such as a worker's.
    ring: io::Result<()>,
}

/// What was looked for and cannot be seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unseen(pub(super) String);

/// What the kernel grants a process of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limit {
    At(u64),
    Unlimited,
}

impl Host {
    /// This host. Sets up a ring and takes it down again, as there is no other way to know.
    #[must_use]
    pub fn here() -> Self {
        let mut ring = <io_uring::IoUring>::builder();
        ring.setup_single_issuer().setup_defer_taskrun();
        Self::at(Path::new("/"), ring.build(1).map(drop))
    }

    /// The host whose `/proc` and `/sys` are below `root`.
    pub(super) fn at(root: &Path, ring: io::Result<()>) -> Self {
        Self { root: root.to_owned(), ring }
    }

    pub(super) fn ring(&self) -> &io::Result<()> {
        &self.ring
    }

    /// What `path` holds, without the line's end.
    pub(super) fn text(&self, path: &str) -> Result<String, Unseen> {
        let text = fs::read_to_string(self.inside(path));
        text.map(|text| text.trim_end().to_owned()).map_err(|error| unseen(path, &error))
    }

    /// The value of a sysctl, its fields separated by single spaces.
    pub(super) fn sysctl(&self, key: &str) -> Result<String, Unseen> {
        let text = self.text(&format!("/proc/sys/{}", key.replace('.', "/")))?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    pub(super) fn number(&self, key: &str) -> Result<u64, Unseen> {
        let text = self.sysctl(key)?;
        text.parse().map_err(|_| Unseen(format!("{key}: not a number: {text}")))
    }

    /// The names in a directory, in order, numbers in them by their value.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>, Unseen> {
        let entries = fs::read_dir(self.inside(path)).map_err(|error| unseen(path, &error))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort_by_key(|name| {
            (name.trim_start_matches(|c: char| !c.is_ascii_digit()).len(), name.clone())
        });
        Ok(names)
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.inside(path).exists()
    }

    /// The CPUs that this process may use.
    pub(super) fn allowed_cpus(&self) -> Result<Vec<usize>, Unseen> {
        let list = self.status("Cpus_allowed_list")?;
        cpus(&list).ok_or_else(|| Unseen(format!("/proc/self/status: CPUs {list}")))
    }

    /// A field of `/proc/self/status`.
    pub(super) fn status(&self, field: &str) -> Result<String, Unseen> {
        let text = self.text("/proc/self/status")?;
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value
            .map(|value| value.trim().to_owned())
            .ok_or_else(|| Unseen(format!("/proc/self/status: no {field}")))
    }

    /// The soft limit that `/proc/self/limits` calls `name`.
    pub(super) fn limit(&self, name: &str) -> Result<Limit, Unseen> {
        let text = self.text("/proc/self/limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| Unseen(format!("/proc/self/limits: no {name}")))
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// `0-3,7` in numbers. `None` when it is no such list, or absurdly long.
pub(super) fn cpus(list: &str) -> Option<Vec<usize>> {
    const CPUS_MAX: usize = 1 << 16;
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first || last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn unseen(path: &str, error: &io::Error) -> Unseen {
    let missing = error.kind() == io::ErrorKind::NotFound;
    Unseen(if missing { format!("{path} is not there") } else { format!("{path}: {error}") })
}

impl FromStr for Limit {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unlimited" { Ok(Self::Unlimited) } else { text.parse().map(Self::At) }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(limit) => limit.fmt(f),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}
