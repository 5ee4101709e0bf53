//! Connections that are not HTTP by service and flags: the labelled series `istio_tcp_*`.
//!
//! - As with requests: each worker has its own and a scrape gets a copy; there are at most
//!   [`SERIES_MAX`], what would be one more is counted as `other`.
//! - A connection keeps a handle on its series, so that bytes are counted as they move.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::request::Flags;
use super::series::SERIES_MAX;

/// What the connections of one series came to, counted by one worker.
#[derive(Debug, Default)]
pub struct TcpCounts {
    opened: Cell<u64>,
    closed: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl TcpCounts {
    /// One more connection.
    pub fn opened(&self) {
        self.opened.set(self.opened.get() + 1);
    }

    /// One more connection is over.
    pub fn closed(&self) {
        self.closed.set(self.closed.get() + 1);
    }

    /// So many more bytes came from clients and went to them.
    pub fn moved(&self, received: u64, sent: u64) {
        self.received.set(self.received.get().wrapping_add(received));
        self.sent.set(self.sent.get().wrapping_add(sent));
    }
}

/// The same as plain numbers, of one worker or of several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpSample {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// By the destination's host, empty where there is none, and flags.
pub(super) type TcpSamples = BTreeMap<(Box<str>, Flags), TcpSample>;

/// The names are the operator's: no hash-flooding from the network.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// All series of one worker.
#[derive(Debug, Default)]
pub(super) struct TcpSeries {
    services: Map<Box<str>, Vec<(Flags, Rc<TcpCounts>)>>,
    /// What found no room.
    other: Rc<TcpCounts>,
    /// Invariant: the number of counts in `services`.
    len: usize,
}

impl TcpSeries {
    /// The counts of a series, and whether there was room for it.
    pub(super) fn get(&mut self, service: &str, flags: Flags) -> (Rc<TcpCounts>, bool) {
        let known = self.services.get(service).into_iter().flatten();
        if let Some((_, counts)) = known.into_iter().find(|(own, _)| *own == flags) {
            return (Rc::clone(counts), true);
        }
        if self.len == SERIES_MAX {
            return (Rc::clone(&self.other), false);
        }
        self.len += 1;
        let counts = Rc::<TcpCounts>::default();
        self.services.entry(service.into()).or_default().push((flags, Rc::clone(&counts)));
        (counts, true)
    }

    /// A copy, for a scrape.
    pub(super) fn copy(&self) -> TcpSamples {
        let mut samples = TcpSamples::new();
        for (service, all) in &self.services {
            for (flags, counts) in all {
                samples.insert((service.clone(), *flags), TcpSample::of(counts));
            }
        }
        let other = TcpSample::of(&self.other);
        if other != TcpSample::default() {
            samples.insert(("other".into(), Flags::NONE), other);
        }
        samples
    }
}

impl TcpSample {
    fn of(counts: &TcpCounts) -> Self {
        Self {
            opened: counts.opened.get(),
            closed: counts.closed.get(),
            received: counts.received.get(),
            sent: counts.sent.get(),
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.received = self.received.wrapping_add(other.received);
        self.sent = self.sent.wrapping_add(other.sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_counts_on_and_one_series_too_many_goes_to_other() {
        let mut series = TcpSeries::default();
        let (first, _) = series.get("service-0", Flags::NONE);
        first.opened();
        for index in 1..SERIES_MAX {
            assert!(series.get(&format!("service-{index}"), Flags::NONE).1);
        }
        let (other, has_room) = series.get("service-0", Flags::NO_ROUTE);
        assert!(!has_room);
        other.closed();
        first.moved(3, 5);
        assert!(Rc::ptr_eq(&first, &series.get("service-0", Flags::NONE).0));
        let samples = series.copy();
        let sample = samples[&("service-0".into(), Flags::NONE)];
        assert_eq!(sample, TcpSample { opened: 1, closed: 0, received: 3, sent: 5 });
        assert_eq!(samples[&("other".into(), Flags::NONE)].closed, 1);
    }
}
