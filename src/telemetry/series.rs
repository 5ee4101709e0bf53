//! Requests by service, status and flags: the labelled series, `istio_requests_total` and the
//! histogram of durations.
//!
//! - Each worker has its own and writes it without atomics; a scrape gets a copy.
//! - A known series costs two hashes of short keys and no allocation.
//! - There are at most [`SERIES_MAX`] per worker; what would be one more is counted in the one
//!   series [`Series::other`].

use std::collections::HashMap;
use std::time::Duration;

use super::request::{Flags, Record};

/// Series of one worker.
pub const SERIES_MAX: usize = 2_000;

/// Upper bounds of the histogram's buckets, in microseconds; Envoy's defaults.
pub(super) const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// The names are the operator's, statuses and flags are few: no hash-flooding from the network.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// All series of one worker, or of several merged.
#[derive(Debug, Default, Clone)]
pub struct Series {
    /// By the destination's host; empty for requests that reached none.
    pub(super) services: Map<Box<str>, Map<Outcome, Sample>>,
    /// What found no room.
    pub(super) other: Option<Sample>,
    /// Invariant: the number of samples in `services`.
    len: usize,
}

/// The labels beside the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) flags: Flags,
    pub(super) grpc: bool,
}

/// A histogram of durations; its count is the number of requests.
#[derive(Debug, Default, Clone)]
pub(super) struct Sample {
    /// Not cumulative; the last is beyond every bound.
    pub(super) buckets: [u64; BOUNDS.len() + 1],
    pub(super) sum_microseconds: u64,
}

impl Series {
    /// Counts one request. False when it went to the series of those that found no room.
    pub fn record(&mut self, record: &Record<'_>) -> bool {
        let service = record.upstream_service;
        let outcome = Outcome { status: record.status, flags: record.flags, grpc: record.grpc };
        let known = self.services.get_mut(service).and_then(|all| all.get_mut(&outcome));
        if let Some(sample) = known {
            sample.add(record.duration);
            return true;
        }
        let has_room = self.len < SERIES_MAX;
        self.make_room(service, outcome).add(record.duration);
        has_room
    }

    /// Adds what `other` counted. Merging the workers may hold more than one worker may.
    pub fn merge(&mut self, other: Self) {
        for (service, samples) in other.services {
            let ours = self.services.entry(service).or_default();
            for (outcome, sample) in samples {
                ours.entry(outcome).or_default().merge(&sample);
            }
        }
        self.len = self.services.values().map(Map::len).sum();
        if let Some(sample) = other.other {
            self.other.get_or_insert_default().merge(&sample);
        }
    }

    /// A sample for a series that there is not yet; the common one when there are too many.
    fn make_room(&mut self, service: &str, outcome: Outcome) -> &mut Sample {
        if self.len == SERIES_MAX {
            return self.other.get_or_insert_default();
        }
        self.len += 1;
        self.services.entry(service.into()).or_default().entry(outcome).or_default()
    }
}

impl Sample {
    fn add(&mut self, duration: Duration) {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS.partition_point(|bound| *bound < microseconds)] += 1;
        self.sum_microseconds = self.sum_microseconds.saturating_add(microseconds);
    }

    fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *ours += theirs;
        }
        self.sum_microseconds = self.sum_microseconds.saturating_add(other.sum_microseconds);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn request(service: &str, status: u16) -> Record<'_> {
        Record { upstream_service: service, status, ..Record::new(UNIX_EPOCH) }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut sample = Sample::default();
        for microseconds in [0, 500, 501, 3_600_000_000, 3_600_000_001] {
            sample.add(Duration::from_micros(microseconds));
        }
        assert_eq!((sample.buckets[0], sample.buckets[1]), (2, 1));
        assert_eq!((sample.buckets[18], sample.buckets[19]), (1, 1));
        assert_eq!(sample.count(), 5);
    }

    #[test]
    fn one_series_too_many_goes_to_other_and_known_ones_go_on() {
        let mut series = Series::default();
        for index in 0..SERIES_MAX {
            assert!(series.record(&request(&format!("service-{index}"), 200)));
        }
        assert!(!series.record(&request("service-0", 404)));
        assert!(!series.record(&request("one more", 200)));
        assert!(series.record(&request("service-0", 200)));
        assert_eq!(series.other.as_ref().unwrap().count(), 2);
        assert_eq!(series.services.len(), SERIES_MAX);
    }

    #[test]
    fn merging_adds() {
        let mut left = Series::default();
        left.record(&request("a", 200));
        let mut right = left.clone();
        right.record(&request("a", 503));
        left.merge(right);
        let counts = |status| {
            let outcome = Outcome { status, flags: Flags::NONE, grpc: false };
            left.services["a"][&outcome].count()
        };
        assert_eq!((counts(200), counts(503), left.len), (2, 1, 2));
    }
}
