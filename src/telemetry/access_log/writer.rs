//! The thread that writes the access log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

use super::{BATCH_BYTES, Batch, Queue};
use crate::telemetry::counters::SharedCounters;

/// How long to wait for a pipe that takes nothing, and how often, before a batch is given up.
const PIPE_PAUSE: Duration = Duration::from_millis(10);
const PIPE_PAUSES_MAX: u32 = 100;

pub(super) struct Writer {
    path: PathBuf,
    file: File,
    queue: Arc<Queue>,
    counters: SharedCounters,
    /// A failure was reported; no further one is until the log is opened anew.
    complained: bool,
    /// The last batch broke off within a line.
    torn: bool,
}

impl Writer {
    pub(super) fn open(
        path: &Path,
        queue: Arc<Queue>,
        counters: SharedCounters,
    ) -> io::Result<Self> {
        let file = open(path)?;
        let path = path.to_owned();
        Ok(Self { path, file, queue, counters, complained: false, torn: false })
    }

    pub(super) fn run(mut self) {
        loop {
            // Read before the queue is emptied: what was handed over before the end is written.
            let ending = self.queue.ending.load(Acquire);
            if self.queue.reopen.swap(false, AcqRel) {
                self.drain();
                self.reopen();
            }
            self.drain();
            if ending {
                return;
            }
            std::thread::park();
        }
    }

    fn drain(&mut self) {
        while let Some(batch) = self.queue.full.pop() {
            self.write(&batch);
            self.recycle(batch.bytes);
        }
    }

    fn recycle(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        // A line may have made it grow far beyond a batch.
        bytes.shrink_to(2 * BATCH_BYTES);
        // When there are enough of them, this one is freed.
        let _ = self.queue.empty.push(bytes);
    }

    fn write(&mut self, batch: &Batch) {
        if self.torn && self.file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        let (written, result) = write_all(&mut self.file, &batch.bytes);
        self.counters.log_bytes.add(written as u64);
        if let Err(error) = result {
            let complete = batch.bytes[..written].iter().filter(|byte| **byte == b'\n').count();
            self.counters.log_lines_dropped.add(batch.lines - complete as u64);
            self.counters.log_write_errors.increment();
            self.torn |= written > 0 && batch.bytes[written - 1] != b'\n';
            self.complain(&error);
        }
    }

    fn reopen(&mut self) {
        self.complained = false;
        match open(&self.path) {
            Ok(file) => (self.file, self.torn) = (file, false),
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !self.complained {
            self.complained = true;
            let path = self.path.display();
            tracing::warn!("access log {path}: {error}; lines are lost until it can be written");
        }
    }
}

/// The process's own output is duplicated rather than opened: it may be a socket, or belong to
/// another user.
fn open(path: &Path) -> io::Result<File> {
    match path.to_str() {
        Some("/dev/stdout") => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        Some("/dev/stderr") => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        _ => OpenOptions::new().append(true).create(true).open(path),
    }
}

/// Writes `bytes`, waiting a bounded time for a pipe that takes none; tells how many were written.
fn write_all(file: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let (mut written, mut pauses) = (0, 0);
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => (written, pauses) = (written + n, 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_busy(&error) && pauses < PIPE_PAUSES_MAX => {
                pauses += 1;
                std::thread::park_timeout(PIPE_PAUSE);
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then says `then`; every second write is interrupted.
    struct Small {
        room: usize,
        then: io::ErrorKind,
        calls: usize,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls.is_multiple_of(2) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = bytes.len().min(self.room).min(3);
            self.room -= n;
            if n == 0 { Err(self.then.into()) } else { Ok(n) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn short_writes_go_on_and_an_error_tells_how_far_it_came() {
        let mut enough = Small { room: 10, then: io::ErrorKind::BrokenPipe, calls: 0 };
        assert!(matches!(write_all(&mut enough, b"0123456789"), (10, Ok(()))));
        let mut little = Small { room: 7, then: io::ErrorKind::BrokenPipe, calls: 0 };
        let (written, result) = write_all(&mut little, b"0123456789");
        assert_eq!((written, result.unwrap_err().kind()), (7, io::ErrorKind::BrokenPipe));
    }
}
