//! The access log: from a worker's buffer to a file, without the worker ever waiting for it.
//!
//! - A worker formats lines into a buffer of its own and hands it over when it is full or
//!   [`WorkerLog::flush`] is called. Handing over is one move into a bounded lock-free queue; when
//!   the writer is so far behind that it is full, the lines are dropped and counted.
//! - One writer thread writes whole batches and sends the empty buffers back.
//! - A full disk or a closed pipe never stops the gateway: the lines are dropped and counted, the
//!   first failure is reported, and writing is tried again with the next batch.
//!
//! Deliberately not here: rotation itself. Whoever renames the file asks for a reopen.

mod json;
mod text;
mod writer;

use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Release};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError};
use crossbeam::queue::ArrayQueue;

use super::counters::{Counters, SharedCounters};
use super::request::Record;

/// A buffer that has reached this is handed over. Waking the writer may cost a system call, which
/// at this size is one for some 200 lines.
const BATCH_BYTES: usize = 64 * 1024;
/// Batches under way; 4 MB of log, a second of a very busy worker.
const QUEUE_BATCHES_MAX: usize = 64;

/// How long the end of the log waits for what was handed over to be written: a reader may have
/// stopped.
const ENDING_TIME_MAX: Duration = Duration::from_secs(1);

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Envoy's default text format.
    Text,
    /// A JSON object with Istio's keys.
    Json,
}

/// The access log's writer thread. Dropping it writes what was handed over and ends the thread,
/// unless that cannot write.
#[derive(Debug)]
pub struct AccessLog {
    queue: Arc<Queue>,
    counters: SharedCounters,
    format: LogFormat,
    thread: JoinHandle<()>,
    /// Closed when the thread has ended.
    ended: channel::Receiver<()>,
}

/// What the workers and the writer share.
#[derive(Debug)]
struct Queue {
    full: ArrayQueue<Batch>,
    /// Buffers to use again.
    empty: ArrayQueue<Vec<u8>>,
    reopen: AtomicBool,
    /// Set once, when the log is dropped: write what is there, then end.
    ending: AtomicBool,
}

/// Whole lines.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl AccessLog {
    /// Opens `path` to append to and starts the writer. `/dev/stdout` and `/dev/stderr` stand for
    /// the process's own, whatever they are.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not be started.
    pub fn start(path: &Path, format: LogFormat) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            full: ArrayQueue::new(QUEUE_BATCHES_MAX),
            empty: ArrayQueue::new(QUEUE_BATCHES_MAX),
            reopen: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let counters = Counters::shared();
        let writer = writer::Writer::open(path, Arc::clone(&queue), Arc::clone(&counters))?;
        let name = "access-log".to_owned();
        let (running, ended) = channel::bounded(0);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _running: channel::Sender<()> = running;
            writer.run();
        })?;
        Ok(Self { queue, counters, format, thread, ended })
    }

    /// The end for one worker.
    #[must_use]
    pub fn worker(&self) -> WorkerLog {
        WorkerLog {
            queue: Arc::clone(&self.queue),
            writer: self.thread.thread().clone(),
            batch: Batch { bytes: Vec::with_capacity(BATCH_BYTES), lines: 0 },
            format: self.format,
            stamp: text::Stamp::new(),
        }
    }

    /// Opens the path anew before the next batch, after somebody renamed the file.
    pub fn reopen(&self) {
        self.queue.reopen.store(true, Release);
        self.thread.thread().unpark();
    }

    /// What the writer thread counts: bytes written, failed writes, lines lost by them.
    #[must_use]
    pub fn counters(&self) -> SharedCounters {
        Arc::clone(&self.counters)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.queue.ending.store(true, Release);
        self.thread.thread().unpark();
        if self.ended.recv_timeout(ENDING_TIME_MAX) == Err(RecvTimeoutError::Timeout) {
            // It waits in the kernel, from where nothing calls it back.
            tracing::warn!("the end of the access log is lost: nobody takes it");
        }
    }
}

/// A worker's end of the log.
#[derive(Debug)]
pub struct WorkerLog {
    queue: Arc<Queue>,
    writer: Thread,
    /// Invariant: below `BATCH_BYTES` between two calls.
    batch: Batch,
    format: LogFormat,
    stamp: text::Stamp,
}

impl WorkerLog {
    /// Formats the line of `record`; hands the batch over when it is full. What is lost is counted
    /// in `counters`.
    pub fn record(&mut self, record: &Record<'_>, counters: &Counters) {
        let write_line = match self.format {
            LogFormat::Text => text::write_line,
            LogFormat::Json => json::write_line,
        };
        write_line(&mut self.batch.bytes, &mut self.stamp, record);
        self.batch.lines += 1;
        if self.batch.bytes.len() >= BATCH_BYTES {
            self.flush(counters);
        }
    }

    /// Hands over what there is.
    pub fn flush(&mut self, counters: &Counters) {
        if self.batch.lines == 0 {
            return;
        }
        if let Err(mut lost) = self.hand_over() {
            counters.log_lines_dropped.add(lost.lines);
            lost.bytes.clear();
            self.batch.bytes = lost.bytes;
        }
    }

    /// Swaps the batch for an empty one. The buffer for it is only looked for when the full one
    /// found its place.
    fn hand_over(&mut self) -> Result<(), Batch> {
        let batch = mem::replace(&mut self.batch, Batch { bytes: Vec::new(), lines: 0 });
        self.queue.full.push(batch)?;
        self.writer.unpark();
        let recycled = self.queue.empty.pop();
        self.batch.bytes = recycled.unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES));
        Ok(())
    }
}

impl Drop for WorkerLog {
    fn drop(&mut self) {
        // The last lines of a worker that ends; its counters are no longer read.
        self.flush(&Counters::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::SystemTime;

    fn write(worker: &mut WorkerLog, counters: &Counters, path: &str) {
        let record = Record { path, ..Record::new(SystemTime::UNIX_EPOCH) };
        worker.record(&record, counters);
    }

    #[test]
    fn lines_arrive_in_order_when_the_log_ends() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.log");
        fs::write(&file, "before\n").unwrap();
        let counters = Counters::default();
        let log = AccessLog::start(&file, LogFormat::Text).unwrap();
        let written = log.counters();
        let mut worker = log.worker();
        for index in 0..2_000 {
            write(&mut worker, &counters, &format!("/{index}"));
        }
        drop(worker);
        drop(log);
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "before");
        assert_eq!(lines.len(), 2_001);
        for (index, line) in lines[1..].iter().enumerate() {
            assert!(line.contains(&format!(" /{index} ")), "{line}");
        }
        assert_eq!(written.log_bytes.value(), text.len() as u64 - 7);
        assert_eq!(counters.log_lines_dropped.value(), 0);
    }

    #[test]
    fn a_writer_that_is_behind_costs_lines_not_time() {
        let queue = Arc::new(Queue {
            full: ArrayQueue::new(1),
            empty: ArrayQueue::new(1),
            reopen: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let mut worker = WorkerLog {
            queue: Arc::clone(&queue),
            writer: std::thread::current(),
            batch: Batch { bytes: Vec::new(), lines: 0 },
            format: LogFormat::Text,
            stamp: text::Stamp::new(),
        };
        let counters = Counters::default();
        for _ in 0..3 {
            write(&mut worker, &counters, "/");
            worker.flush(&counters);
        }
        assert_eq!(counters.log_lines_dropped.value(), 2);
        assert_eq!(queue.full.pop().unwrap().lines, 1);
    }

    #[test]
    fn a_renamed_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (file, renamed) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let counters = Counters::default();
        let log = AccessLog::start(&file, LogFormat::Text).unwrap();
        let mut worker = log.worker();
        write(&mut worker, &counters, "/first");
        worker.flush(&counters);
        while log.counters().log_bytes.value() == 0 {
            std::thread::yield_now();
        }
        fs::rename(&file, &renamed).unwrap();
        log.reopen();
        while !file.exists() {
            std::thread::yield_now();
        }
        write(&mut worker, &counters, "/second");
        drop(worker);
        drop(log);
        assert!(fs::read_to_string(&renamed).unwrap().contains("/first"));
        assert!(fs::read_to_string(&file).unwrap().contains("/second"));
    }

    #[test]
    fn a_full_disk_is_survived_and_counted() {
        let counters = Counters::default();
        let log = AccessLog::start(Path::new("/dev/full"), LogFormat::Text).unwrap();
        let written = log.counters();
        let mut worker = log.worker();
        for _ in 0..2 {
            write(&mut worker, &counters, "/");
            worker.flush(&counters);
        }
        drop(worker);
        drop(log);
        assert_eq!(written.log_write_errors.value(), 2);
        assert_eq!(written.log_lines_dropped.value(), 2);
        assert_eq!(written.log_bytes.value(), 0);
    }

    #[test]
    fn a_reader_that_reads_nothing_does_not_keep_the_log_from_ending() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RWXU).unwrap();
        // Read and write, so that opening it waits for nobody.
        let reader = fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
        let counters = Counters::default();
        let log = AccessLog::start(&file, LogFormat::Text).unwrap();
        let mut worker = log.worker();
        // More than a pipe holds.
        for _ in 0..10_000 {
            write(&mut worker, &counters, "/");
        }
        let (ended, end) = std::sync::mpsc::channel();
        let ending = std::thread::spawn(move || {
            drop((worker, log));
            ended.send(()).unwrap();
        });
        assert_eq!(end.recv_timeout(10 * ENDING_TIME_MAX), Ok(()));
        drop(reader);
        ending.join().unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing/access.log");
        assert_eq!(
            AccessLog::start(&missing, LogFormat::Text).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
