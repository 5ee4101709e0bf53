//! What each worker counts and logs, and how it is read from outside.
//!
//! - [`Counters`] are fixed numbers that a scrape reads at any time.
//! - [`Series`] are labelled and bounded; a scrape asks the worker for a copy.
//! - The access log leaves a worker in batches; nothing here waits, locks or touches a file on the
//!   worker's thread.
//! - [`request::Record`] is the one description of a finished request that all three are made of.
//!
//! Deliberately not here: traces, sampling, pushing to anybody, and the program's own messages
//! (`tracing` has those).

#![forbid(unsafe_code)]

mod access_log;
mod connections;
pub mod counters;
mod date;
pub mod prometheus;
pub mod request;
mod series;

pub use access_log::{AccessLog, LogFormat, WorkerLog};
pub use connections::TcpCounts;
pub use counters::{Counters, SharedCounters};
pub use date::{rfc3339, rfc3339_millis};
pub use series::{SERIES_MAX, Series};

use std::cell::RefCell;
use std::rc::Rc;

use connections::TcpSeries;
use request::{Flags, Record};

/// All that one worker tells. Everything takes `&self`: tasks of a worker share it in an `Rc`.
#[derive(Debug)]
pub struct WorkerTelemetry {
    counters: SharedCounters,
    series: RefCell<Series>,
    tcp: RefCell<TcpSeries>,
    log: Option<RefCell<WorkerLog>>,
}

impl WorkerTelemetry {
    /// For the one worker that writes `counters`; `log` is `None` when the access log is off.
    #[must_use]
    pub fn new(counters: SharedCounters, log: Option<WorkerLog>) -> Self {
        let (series, tcp) = (RefCell::default(), RefCell::default());
        Self { counters, series, tcp, log: log.map(RefCell::new) }
    }

    /// The worker's counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts and logs a finished request, or a connection that ended without one: then it is only
    /// logged.
    pub fn record(&self, record: &Record<'_>) {
        if !record.method.is_empty() {
            self.counters.response(record.status);
            if !self.series.borrow_mut().record(record) {
                self.counters.series_overflowed.increment();
            }
        }
        if let Some(log) = &self.log {
            log.borrow_mut().record(record, &self.counters);
        }
    }

    /// Where connections to `service` that end with `flags` are counted.
    pub fn tcp(&self, service: &str, flags: Flags) -> Rc<TcpCounts> {
        let (counts, has_room) = self.tcp.borrow_mut().get(service, flags);
        if !has_room {
            self.counters.series_overflowed.increment();
        }
        counts
    }

    /// Hands the log lines over that are still buffered. Call it on a timer and when idle.
    pub fn flush_log(&self) {
        if let Some(log) = &self.log {
            log.borrow_mut().flush(&self.counters);
        }
    }

    /// A copy of the series, for a scrape.
    #[must_use]
    pub fn copy(&self) -> Series {
        let mut series = self.series.borrow().clone();
        series.tcp = self.tcp.borrow().copy();
        series
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_request_is_counted_and_logged_and_a_connection_only_logged() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.log");
        let log = AccessLog::start(&file, LogFormat::Text).unwrap();
        let telemetry = WorkerTelemetry::new(Counters::shared(), Some(log.worker()));
        telemetry.record(&Record { method: "GET", status: 200, ..Record::new(UNIX_EPOCH) });
        telemetry.record(&Record::new(UNIX_EPOCH));
        telemetry.flush_log();
        drop(log);
        assert_eq!(telemetry.counters().requests.value(), 1);
        assert_eq!(telemetry.counters().responses_2xx.value(), 1);
        let reporter = prometheus::Reporter::new("edge", |_| None);
        let text = prometheus::render(&[], &[], &telemetry.copy(), &reporter).into_text();
        assert_eq!(text.matches("istio_requests_total{").count(), 1);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
    }
}
