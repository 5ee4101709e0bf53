//! Starts programs on one CPU and reads from /proc what they cost.
//!
//! - A [`Child`] is killed when it is dropped, with the processes that it started.
//! - Cost is counted over all threads of a process and of its descendants.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// Enough for thousands of connections on both sides.
const OPEN_FILES: u64 = 65_536;
/// How long a program may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(2);

/// `program`, to be run on `cpu` only.
pub(crate) fn on_cpu(cpu: usize, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpu.to_string()).arg(program);
    command.stdin(Stdio::null());
    command
}

/// Lets this process and its children open many files, as far as the system permits.
pub(crate) fn raise_open_files() {
    let now = getrlimit(Resource::Nofile);
    let wanted = [OPEN_FILES, now.maximum.unwrap_or(OPEN_FILES)];
    for files in wanted {
        let limit = Rlimit { current: Some(files), maximum: Some(files) };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}

/// A running program.
#[derive(Debug)]
pub(crate) struct Child {
    inner: std::process::Child,
}

impl Child {
    /// # Errors
    /// The program cannot be started; the error names it.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let inner = command
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))?;
        Ok(Self { inner })
    }

    pub(crate) fn inner(&mut self) -> &mut std::process::Child {
        &mut self.inner
    }

    /// The code with which it ended, if it did.
    pub(crate) fn ended(&mut self) -> bool {
        matches!(self.inner.try_wait(), Ok(Some(_)))
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree { root: self.inner.id() }
    }

    /// Asks it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        signal(self.inner.id(), Signal::HUP);
    }

    fn end(&mut self) {
        if self.ended() {
            return;
        }
        // Those that a process leaves behind when it ends have no parent to find them by.
        let processes = self.tree().processes();
        signal(self.inner.id(), Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < PATIENCE && !self.ended() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let own = self.inner.id();
        let ended = self.ended();
        let left = processes.into_iter().filter(|pid| !(ended && *pid == own));
        left.for_each(|pid| signal(pid, Signal::KILL));
        // Only reaps: it has ended or was killed.
        self.inner.wait().ok();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        kill_process(pid, signal).ok();
    }
}

/// A process and its descendants, as they are when asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tree {
    root: u32,
}

impl Tree {
    /// CPU time that all threads used so far.
    pub(crate) fn cpu(self) -> Duration {
        let threads = self.processes().into_iter().flat_map(threads);
        Duration::from_nanos(threads.filter_map(|path| running_nanos(&path)).sum())
    }

    /// Proportional set size: memory, with shared pages divided among their users.
    pub(crate) fn pss_kib(self) -> u64 {
        self.processes().into_iter().filter_map(pss_kib).sum()
    }

    /// CPU time of each thread of the process itself whose name begins with `name`.
    pub(crate) fn threads_cpu(self, name: &str) -> Vec<Duration> {
        let named = |thread: &String| {
            let text = fs::read_to_string(format!("{thread}/comm")).unwrap_or_default();
            text.starts_with(name)
        };
        let threads = threads(self.root).into_iter().filter(named);
        threads.filter_map(|thread| running_nanos(&thread)).map(Duration::from_nanos).collect()
    }

    fn processes(self) -> Vec<u32> {
        let mut found = vec![self.root];
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            for thread in threads(pid) {
                let text = fs::read_to_string(format!("{thread}/children")).unwrap_or_default();
                found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            next += 1;
        }
        found
    }
}

/// How long `cpu` had nothing to do since the machine's start. Its busy time would be wrong: what runs
/// for less than a tick is not in it.
pub(crate) fn idle(cpu: usize) -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    Duration::from_millis(10 * idle_ticks(&text, cpu).unwrap_or(0))
}

fn idle_ticks(stat: &str, cpu: usize) -> Option<u64> {
    let name = format!("cpu{cpu} ");
    let fields = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    // user, nice, system, idle, iowait.
    fields.split(' ').skip(3).take(2).map(|field| field.parse::<u64>().ok()).sum()
}

fn threads(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let paths = entries.into_iter().flatten().flatten();
    paths.map(|entry| entry.path().display().to_string()).collect()
}

fn running_nanos(thread: &str) -> Option<u64> {
    first_number(&fs::read_to_string(format!("{thread}/schedstat")).ok()?)
}

fn pss_kib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    first_number(text.lines().find_map(|line| line.strip_prefix("Pss:"))?)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_grandchild_counts_and_it_ends_with_its_parent() {
        let mut command = Command::new("sh");
        // Ends by itself if nobody ends it, and soon.
        let busy = "i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done";
        command.args(["-c", &format!("sh -c '{busy}'; true")]);
        let child = Child::start(&mut command).unwrap();
        let start = Instant::now();
        while child.tree().cpu() < Duration::from_millis(50) {
            assert!(start.elapsed() < Duration::from_secs(30), "no CPU time was seen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let processes = child.tree().processes();
        assert_eq!(processes.len(), 2, "{processes:?}");
        assert!(child.tree().pss_kib() > 0);
        drop(child);
        let running = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains("State:") && !status.contains("State:\tZ")
        };
        while running(processes[1]) {
            assert!(start.elapsed() < Duration::from_secs(30), "the grandchild was left behind");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn waiting_for_a_disk_is_idle() {
        let stat = "cpu  9 9 9 9 9 9\ncpu0 1 2 3 100 200 4\ncpu1 1 1 1 7 9 1\ncpu10 1 1 1 1 1 1\n";
        assert_eq!(idle_ticks(stat, 0), Some(300));
        assert_eq!(idle_ticks(stat, 1), Some(16));
        assert_eq!(idle_ticks(stat, 2), None);
        assert!(idle(0) > Duration::ZERO);
    }

    #[test]
    fn the_command_is_bound_to_its_cpu() {
        let output = on_cpu(0, "taskset").arg("-cp").arg("0").output();
        let Ok(_) = output else { return println!("skipped: needs taskset (util-linux)") };
        let output = on_cpu(0, "sh").args(["-c", "taskset -cp $$"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(text.ends_with(": 0"), "{text}");
    }
}
