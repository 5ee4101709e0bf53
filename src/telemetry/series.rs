//! Requests by service, status and flags: the labelled series, `istio_requests_total` and the
//! histograms of durations and sizes.
//!
//! - Each worker has its own and writes it without atomics; a scrape gets a copy.
//! - A known series costs two hashes of short keys and no allocation.
//! - There are at most [`SERIES_MAX`] per worker; what would be one more is counted in the one
//!   series [`Series::other`].

use std::collections::HashMap;

use super::connections::TcpSamples;
use super::request::{Flags, Record};

/// Series of one worker.
pub const SERIES_MAX: usize = 2_000;

/// Upper bounds of a histogram's buckets, in thousandths; Envoy's defaults.
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
    /// Connections that are not HTTP. Filled in when a worker copies its series.
    pub(super) tcp: TcpSamples,
    /// Invariant: the number of samples in `services`.
    len: usize,
}

/// The labels beside the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) flags: Flags,
    /// Of gRPC, its status if there was one.
    pub(super) grpc: Option<Option<u8>>,
}

/// What is counted of the requests of one series.
#[derive(Debug, Default, Clone)]
pub(super) struct Sample {
    /// In milliseconds. Its count is the number of requests.
    pub(super) durations: Histogram,
    /// Of bodies, in bytes.
    pub(super) request_sizes: Histogram,
    pub(super) response_sizes: Histogram,
    /// Of gRPC calls.
    pub(super) request_messages: u64,
    pub(super) response_messages: u64,
}

/// How many values there were up to each of [`BOUNDS`].
#[derive(Debug, Default, Clone)]
pub(super) struct Histogram {
    /// Not cumulative; the last is beyond every bound.
    pub(super) buckets: [u64; BOUNDS.len() + 1],
    pub(super) sum_thousandths: u64,
}

impl Series {
    /// Counts one request. False when it went to the series of those that found no room.
    pub fn record(&mut self, record: &Record<'_>) -> bool {
        let service = record.upstream_service;
        let outcome = Outcome {
            status: record.status,
            flags: record.flags,
            grpc: record.grpc.map(|call| call.status),
        };
        let known = self.services.get_mut(service).and_then(|all| all.get_mut(&outcome));
        if let Some(sample) = known {
            sample.add(record);
            return true;
        }
        let has_room = self.len < SERIES_MAX;
        self.make_room(service, outcome).add(record);
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
        for (key, sample) in other.tcp {
            self.tcp.entry(key).or_default().merge(sample);
        }
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
    fn add(&mut self, record: &Record<'_>) {
        self.durations.add(u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX));
        self.request_sizes.add(record.bytes_received.saturating_mul(1_000));
        self.response_sizes.add(record.bytes_sent.saturating_mul(1_000));
        if let Some(call) = record.grpc {
            self.request_messages += call.request_messages;
            self.response_messages += call.response_messages;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.durations.merge(&other.durations);
        self.request_sizes.merge(&other.request_sizes);
        self.response_sizes.merge(&other.response_sizes);
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }

    /// Requests.
    pub(super) fn count(&self) -> u64 {
        self.durations.count()
    }
}

impl Histogram {
    fn add(&mut self, thousandths: u64) {
        self.buckets[BOUNDS.partition_point(|bound| *bound < thousandths)] += 1;
        self.sum_thousandths = self.sum_thousandths.saturating_add(thousandths);
    }

    fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *ours += theirs;
        }
        self.sum_thousandths = self.sum_thousandths.saturating_add(other.sum_thousandths);
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
        let mut histogram = Histogram::default();
        for microseconds in [0, 500, 501, 3_600_000_000, 3_600_000_001] {
            histogram.add(microseconds);
        }
        assert_eq!((histogram.buckets[0], histogram.buckets[1]), (2, 1));
        assert_eq!((histogram.buckets[18], histogram.buckets[19]), (1, 1));
        assert_eq!(histogram.count(), 5);
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
            let outcome = Outcome { status, flags: Flags::NONE, grpc: None };
            left.services["a"][&outcome].count()
        };
        assert_eq!((counts(200), counts(503), left.len), (2, 1, 2));
    }
}
