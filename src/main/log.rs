//! The process log: lines to standard error, for which nobody waits.
//!
//! - Whoever logs hands its line over; a thread of its own writes it. The control thread goes on,
//!   and so does its end, though whoever reads standard error has stopped.
//! - While the thread is that far behind, lines are lost; the next that is written tells how many.
//! - How much is logged can be changed.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Lines that may wait: a configuration with ten thousand mistakes has as many, all at once.
const LINES_MAX: usize = 1 << 16;

/// How long the end waits for the last lines.
const ENDING_TIME_MAX: Duration = Duration::from_secs(1);

/// How much is logged.
pub(crate) type LogLevel = reload::Handle<LevelFilter, Registry>;

/// The log. Dropping it waits for the lines so far, but not for long.
pub(crate) struct ProcessLog {
    level: LogLevel,
    messages: Sender<Message>,
}

enum Message {
    Line(Vec<u8>),
    /// All before it is written when this is dropped.
    Mark(Sender<()>),
}

impl ProcessLog {
    /// Begins to log, for the whole process.
    pub(crate) fn start() -> io::Result<Self> {
        // Counted apart: a bounded channel has the room for all of them from the beginning.
        let (messages, received) = channel::unbounded();
        let backlog = Arc::<Backlog>::default();
        let lines = Lines { messages: messages.clone(), backlog: Arc::clone(&backlog) };
        std::thread::Builder::new()
            .name("process-log".to_owned())
            .spawn(move || write_out(&received, &backlog, &mut io::stderr()))?;
        let (filter, level) = reload::Layer::new(LevelFilter::INFO);
        let layer = fmt::layer().with_writer(move || lines.clone());
        let layer = layer.with_ansi(false).with_target(false);
        tracing_subscriber::registry().with(filter).with(layer).init();
        Ok(Self { level, messages })
    }

    pub(crate) fn level(&self) -> LogLevel {
        self.level.clone()
    }
}

impl Drop for ProcessLog {
    fn drop(&mut self) {
        let (mark, written) = channel::bounded(0);
        // A thread that does not get that far is left behind.
        if self.messages.send(Message::Mark(mark)).is_ok() {
            let _: Result<(), _> = written.recv_timeout(ENDING_TIME_MAX);
        }
    }
}

/// Where lines are handed over; each is written at once.
#[derive(Clone)]
struct Lines {
    messages: Sender<Message>,
    backlog: Arc<Backlog>,
}

/// Numbers of lines.
#[derive(Default)]
struct Backlog {
    waiting: AtomicUsize,
    lost: AtomicUsize,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let is_full = self.backlog.waiting.fetch_add(1, Relaxed) >= LINES_MAX;
        if is_full || self.messages.send(Message::Line(harmless(line))).is_err() {
            self.backlog.waiting.fetch_sub(1, Relaxed);
            self.backlog.lost.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `line` as one entry of the log, whatever is quoted in it: further lines are indented, so that
/// none passes for another entry, and control characters are written as `\x1b`.
fn harmless(line: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(line.len() + 1);
    let (body, end) = line.strip_suffix(b"\n").map_or((line, &b""[..]), |body| (body, b"\n"));
    for byte in body {
        match byte {
            b'\n' => text.extend_from_slice(b"\n  "),
            byte if byte.is_ascii_control() => text.extend(byte.escape_ascii()),
            byte => text.push(*byte),
        }
    }
    text.extend_from_slice(end);
    text
}

fn write_out(received: &Receiver<Message>, backlog: &Backlog, to: &mut impl Write) {
    for message in received {
        match message {
            Message::Line(line) => {
                // There is nobody else to tell.
                let _: io::Result<()> = to.write_all(&line);
                backlog.waiting.fetch_sub(1, Relaxed);
                let lost = backlog.lost.swap(0, Relaxed);
                if lost > 0 {
                    let _: io::Result<()> = writeln!(to, "{lost} lines of this log were lost");
                }
            }
            Message::Mark(mark) => drop(mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_no_entry_of_its_own() {
        let written = |line: &str| String::from_utf8(harmless(line.as_bytes())).unwrap();
        assert_eq!(written("INFO a café\n"), "INFO a café\n");
        assert_eq!(written("INFO a\nERROR b\x1b[31m\r\n"), "INFO a\n  ERROR b\\x1b[31m\\r\n");
    }

    #[test]
    fn lines_that_find_no_room_are_counted() {
        let (messages, received) = channel::unbounded();
        let backlog = Arc::<Backlog>::default();
        let mut lines = Lines { messages, backlog: Arc::clone(&backlog) };
        (0..LINES_MAX + 2).for_each(|_| lines.write_all(b"line\n").unwrap());
        drop(lines);
        let mut written = Vec::new();
        write_out(&received, &backlog, &mut written);
        let text = String::from_utf8(written).unwrap();
        assert_eq!(text.matches("line\n").count(), LINES_MAX);
        assert_eq!(text.matches("2 lines of this log were lost\n").count(), 1);
    }
}
