//! When to act on a burst of changes.
//!
//! - The first change after a quiet time is acted on at once; those that follow closely are
//!   collected until it is quiet again, or for a bounded time.
//! - A file that is being written in place is half of what its author means: it is awaited until
//!   it is closed, for a bounded time.
//!
//! Pure: the caller brings the time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Without a change for so long, a burst is over.
const QUIET: Duration = Duration::from_millis(20);

/// A burst that does not end is acted on all the same.
const BURST_MAX: Duration = Duration::from_millis(200);

/// A file that stays open is read all the same.
const WRITING_MAX: Duration = Duration::from_secs(1);

/// Changes that nobody acted on yet.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// When the first of them was seen.
    first: Option<Instant>,
    /// When something was last seen or acted on.
    last: Option<Instant>,
    /// Whether `first` came after a quiet time.
    fresh: bool,
    /// What is open for writing.
    writing: BTreeSet<PathBuf>,
}

impl Burst {
    /// Something changed.
    pub(super) fn change(&mut self, now: Instant) {
        if self.first.is_none() {
            self.first = Some(now);
            self.fresh = self.last.is_none_or(|last| now >= last + QUIET);
        }
        self.last = Some(now);
    }

    /// The file at `path` was changed in place by somebody who still has it open.
    pub(super) fn write(&mut self, path: PathBuf, now: Instant) {
        self.writing.insert(path);
        self.change(now);
    }

    /// The file at `path` was closed by somebody who could write.
    pub(super) fn close(&mut self, path: &Path, now: Instant) {
        self.writing.remove(path);
        self.change(now);
    }

    /// What was at `path` was removed or renamed: whoever has it open closes it under no name, or
    /// another.
    pub(super) fn abandon(&mut self, path: &Path) {
        self.writing.retain(|open| !open.starts_with(path));
    }

    /// When to act, if there is anything to act on.
    pub(super) fn due(&self) -> Option<Instant> {
        let (first, last) = (self.first?, self.last?);
        Some(if !self.writing.is_empty() {
            first + WRITING_MAX
        } else if self.fresh {
            first
        } else {
            (last + QUIET).min(first + BURST_MAX)
        })
    }

    /// Everything so far is acted on now.
    pub(super) fn act(&mut self, now: Instant) {
        *self = Self { last: Some(now), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_change_is_due_at_once() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        assert_eq!(burst.due(), None);
        burst.change(start);
        assert_eq!(burst.due(), Some(start));
        burst.act(start);
        assert_eq!(burst.due(), None);
    }

    #[test]
    fn changes_close_behind_are_collected_until_it_is_quiet() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        burst.act(start);
        burst.change(start + 5 * MS);
        assert_eq!(burst.due(), Some(start + 5 * MS + QUIET));
        burst.change(start + 15 * MS);
        assert_eq!(burst.due(), Some(start + 15 * MS + QUIET));
        burst.act(start + 35 * MS);
        burst.change(start + 35 * MS + QUIET);
        assert_eq!(burst.due(), Some(start + 35 * MS + QUIET), "a quiet time begins anew");
    }

    #[test]
    fn a_burst_without_end_is_acted_on() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        burst.act(start);
        for ms in 1..=500 {
            burst.change(start + ms * MS);
        }
        assert_eq!(burst.due(), Some(start + MS + BURST_MAX));
    }

    #[test]
    fn a_file_that_is_being_written_is_awaited() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        let (a, b) = (PathBuf::from("a"), PathBuf::from("b"));
        burst.write(a.clone(), start);
        burst.write(b.clone(), start + MS);
        burst.close(&a, start + 2 * MS);
        assert_eq!(burst.due(), Some(start + WRITING_MAX), "for a bounded time");
        burst.close(&b, start + 3 * MS);
        assert_eq!(burst.due(), Some(start), "at once when it is closed");
    }

    #[test]
    fn a_file_that_is_renamed_while_it_is_written_is_not_awaited() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        burst.write(PathBuf::from("new"), start);
        burst.abandon(Path::new("new"));
        burst.change(start + MS);
        assert_eq!(burst.due(), Some(start), "at once: it is closed under its other name");
    }
}
