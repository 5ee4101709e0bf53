//! Outlier detection: which endpoints of a cluster are left out for a while.
//!
//! ```text
//!   in ── enough failures in a row, and not too many are out ──> out
//!    ^── the ejection time, times how often it was out, is over ──/
//! ```
//!
//! - As Envoy's: whether an endpoint may come back is looked at every `interval`, and each interval
//!   in which it stays in makes the next ejection shorter again.
//! - Pure: outcomes and times in, standing out. Nothing is looked at by a timer.
//!
//! Deliberately not here: what counts as which outcome.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ::http::StatusCode;

use crate::address::Address;
use crate::snapshot::OutlierDetection;

/// Longer than this none is left out, as in Envoy, unless the rule's own time is longer.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// What came of a request at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer below 500.
    Good,
    /// 502, 503 or 504.
    GatewayError,
    /// Any other 5xx.
    ServerError,
    /// No answer: no connection, or it broke or was silent.
    NoAnswer,
}

impl Outcome {
    /// Of an answer with `status`.
    pub(super) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::GatewayError,
            500..=599 => Self::ServerError,
            _ => Self::Good,
        }
    }
}

/// What is remembered of the endpoints of one cluster.
#[derive(Debug)]
pub(super) struct Outliers {
    /// When intervals began to be counted.
    began: Instant,
    /// Those that were left out, also some of which the time is over.
    ejected: Vec<Address>,
    records: HashMap<Address, Record, foldhash::fast::RandomState>,
}

#[derive(Debug, Default)]
struct Record {
    server_errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    /// How often it was left out, less those that are forgiven.
    ejections: u32,
    /// Until when it is out.
    until: Option<Instant>,
    /// The end of the last interval that was counted as a good one.
    good_until: Option<Instant>,
}

impl Outliers {
    /// Nothing is known yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, ejected: Vec::new(), records: HashMap::default() }
    }

    /// Whether `endpoint` is left out.
    pub(super) fn is_out(&self, endpoint: Address, now: Instant) -> bool {
        let record = self.records.get(&endpoint);
        record.is_some_and(|record| record.until.is_some_and(|until| now < until))
    }

    /// All endpoints that are left out.
    pub(super) fn out(&self, now: Instant) -> impl Iterator<Item = Address> {
        self.ejected.iter().copied().filter(move |endpoint| self.is_out(*endpoint, now))
    }

    /// Whether so few of `all` endpoints are in that all of them are used.
    pub(super) fn panics(&self, detection: &OutlierDetection, all: usize, now: Instant) -> bool {
        let out = self.out(now).count();
        let left = percent(all.saturating_sub(out), all);
        out > 0 && left < f64::from(detection.healthy_percent_min)
    }

    /// Notes `outcome` at one of `endpoints`; says whether that one is left out from now on.
    pub(super) fn note(
        &mut self,
        detection: &OutlierDetection,
        endpoints: &[Address],
        (endpoint, outcome): (Address, Outcome),
        now: Instant,
    ) -> bool {
        let is_unknown = !self.records.contains_key(&endpoint);
        // What was under way when it was left out says nothing of it when it is back.
        if (outcome == Outcome::Good && is_unknown) || self.is_out(endpoint, now) {
            return false;
        }
        let record = self.records.entry(endpoint).or_default();
        if !record.count(detection, outcome) || !self.may_eject(detection, endpoints, now) {
            return false;
        }
        self.eject(detection, endpoint, now);
        true
    }

    /// Forgets all but `endpoints`.
    pub(super) fn retain(&mut self, endpoints: &[Address]) {
        self.records.retain(|endpoint, _| endpoints.contains(endpoint));
        self.ejected.retain(|endpoint| self.records.contains_key(endpoint));
    }

    fn may_eject(&self, detection: &OutlierDetection, endpoints: &[Address], now: Instant) -> bool {
        percent(self.out(now).count() + 1, endpoints.len())
            <= f64::from(detection.ejected_percent_max)
    }

    fn eject(&mut self, detection: &OutlierDetection, endpoint: Address, now: Instant) {
        let began = self.began;
        let record = self.records.entry(endpoint).or_default();
        record.forgive(detection, now);
        record.ejections = record.ejections.saturating_add(1);
        let longest = EJECTION_MAX.max(detection.ejection_time);
        let time = detection.ejection_time.saturating_mul(record.ejections).min(longest);
        let until = next_look(began, now + time, detection.interval);
        record.until = Some(until);
        record.good_until = Some(until);
        (record.server_errors, record.gateway_errors, record.local_failures) = (0, 0, 0);
        let mut ejected = std::mem::take(&mut self.ejected);
        ejected.retain(|other| *other != endpoint && self.is_out(*other, now));
        ejected.push(endpoint);
        self.ejected = ejected;
    }
}

impl Record {
    /// Counts `outcome`; says whether there were enough failures in a row.
    fn count(&mut self, detection: &OutlierDetection, outcome: Outcome) -> bool {
        let is_local = outcome == Outcome::NoAnswer;
        if detection.splits_local && is_local {
            self.local_failures = self.local_failures.saturating_add(1);
            return is_reached(self.local_failures, detection.local_failures);
        }
        self.local_failures = 0;
        match outcome {
            Outcome::Good => (self.server_errors, self.gateway_errors) = (0, 0),
            Outcome::GatewayError | Outcome::NoAnswer => {
                self.server_errors = self.server_errors.saturating_add(1);
                self.gateway_errors = self.gateway_errors.saturating_add(1);
            }
            Outcome::ServerError => {
                self.server_errors = self.server_errors.saturating_add(1);
                self.gateway_errors = 0;
            }
        }
        is_reached(self.server_errors, detection.server_errors)
            || is_reached(self.gateway_errors, detection.gateway_errors)
    }

    /// Takes one ejection back for each interval since the last.
    fn forgive(&mut self, detection: &OutlierDetection, now: Instant) {
        let Some(since) = self.good_until else { return };
        let intervals = intervals(now.saturating_duration_since(since), detection.interval);
        self.ejections =
            self.ejections.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX));
    }
}

/// Whether there are so many; a limit of zero is none.
fn is_reached(count: u32, limit: u32) -> bool {
    limit > 0 && count >= limit
}

/// How many whole intervals are in `time`.
fn intervals(time: Duration, interval: Duration) -> u128 {
    time.as_nanos() / interval.as_nanos().max(1)
}

/// The first end of an interval at or after `at`.
fn next_look(began: Instant, at: Instant, interval: Duration) -> Instant {
    let past = at.saturating_duration_since(began).as_nanos();
    let nanos = interval.as_nanos().max(1);
    let wait = (nanos - past % nanos) % nanos;
    at + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
}

#[allow(clippy::cast_precision_loss, reason = "only compared with whole percents")]
fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{GatewayError, Good, NoAnswer, ServerError};

    fn endpoints(count: u16) -> Vec<Address> {
        (1..=count).map(|port| Address::from(([10, 0, 0, 1], port))).collect()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn detection() -> OutlierDetection {
        OutlierDetection { ejected_percent_max: 100, ..OutlierDetection::default() }
    }

    /// Whether the last of `outcomes` at the first of four ejects it.
    fn ejects(detection: &OutlierDetection, outcomes: &[Outcome]) -> bool {
        let (all, now) = (endpoints(4), Instant::now());
        let mut outliers = Outliers::new(now);
        let mut note = |outcome| outliers.note(detection, &all, (all[0], outcome), now);
        outcomes.iter().fold(false, |_, outcome| note(*outcome))
    }

    #[test]
    fn five_failures_in_a_row_are_enough() {
        let detection = detection();
        assert!(!ejects(&detection, &[ServerError; 4]));
        assert!(ejects(&detection, &[ServerError; 5]));
        assert!(ejects(&detection, &[ServerError, GatewayError, NoAnswer, ServerError, NoAnswer]));
        let broken = [ServerError, ServerError, ServerError, ServerError, Good, ServerError];
        assert!(!ejects(&detection, &broken));
    }

    #[test]
    fn failures_while_it_is_out_do_not_count_when_it_is_back() {
        let (detection, all, now) = (detection(), endpoints(2), Instant::now());
        let mut outliers = Outliers::new(now);
        let mut note = |now| outliers.note(&detection, &all, (all[0], NoAnswer), now);
        let ejected: Vec<_> = (0..9).map(|_| note(now)).collect();
        assert_eq!(ejected.iter().position(|ejected| *ejected), Some(4));
        let back = now + seconds(60);
        assert_eq!([0; 5].map(|_| note(back)), [false, false, false, false, true]);
    }

    #[test]
    fn gateway_errors_count_on_their_own_if_asked_for() {
        let detection = OutlierDetection { gateway_errors: 2, server_errors: 0, ..detection() };
        assert!(!ejects(&detection, &[ServerError; 9]));
        assert!(ejects(&detection, &[GatewayError, NoAnswer]));
        assert!(!ejects(&detection, &[GatewayError, ServerError, GatewayError]));
    }

    #[test]
    fn what_never_got_an_answer_counts_on_its_own_if_split() {
        let detection = OutlierDetection {
            splits_local: true,
            local_failures: 3,
            server_errors: 2,
            ..detection()
        };
        assert!(!ejects(&detection, &[NoAnswer; 2]));
        assert!(ejects(&detection, &[NoAnswer; 3]));
        assert!(!ejects(&detection, &[NoAnswer, NoAnswer, ServerError, NoAnswer]));
        assert!(ejects(&detection, &[ServerError, NoAnswer, ServerError]));
    }

    #[test]
    fn each_ejection_is_longer_and_good_intervals_make_the_next_shorter() {
        let (detection, all, start) = (detection(), endpoints(4), Instant::now());
        let mut outliers = Outliers::new(start);
        let mut now = start;
        let eject = |outliers: &mut Outliers, now: Instant| {
            (0..5).any(|_| outliers.note(&detection, &all, (all[0], ServerError), now))
        };
        for (wait, time) in [(0, 30), (0, 60), (0, 90), (30, 30), (1_000, 30)] {
            now += seconds(wait);
            assert!(eject(&mut outliers, now), "{wait}");
            assert!(outliers.is_out(all[0], now + seconds(time) - Duration::from_millis(1)));
            now += seconds(time);
            assert!(!outliers.is_out(all[0], now), "{wait}");
        }
    }

    #[test]
    fn it_comes_back_when_it_is_looked_at() {
        let (detection, all, start) = (detection(), endpoints(4), Instant::now());
        let mut outliers = Outliers::new(start);
        let now = start + seconds(1);
        for _ in 0..5 {
            outliers.note(&detection, &all, (all[0], ServerError), now);
        }
        assert!(outliers.is_out(all[0], start + seconds(39)), "31 s are over, 40 s are not");
        assert!(!outliers.is_out(all[0], start + seconds(40)));
    }

    #[test]
    fn those_that_are_out_are_listed_once_and_forgotten_later() {
        let (detection, all, mut now) = (detection(), endpoints(4), Instant::now());
        let mut outliers = Outliers::new(now);
        let eject = |outliers: &mut Outliers, place: usize, now| {
            (0..5).any(|_| outliers.note(&detection, &all, (all[place], NoAnswer), now))
        };
        for _ in 0..3 {
            assert!(eject(&mut outliers, 0, now));
            assert_eq!(outliers.out(now).collect::<Vec<_>>(), all[..1]);
            now += seconds(300);
            assert_eq!(outliers.out(now).count(), 0);
        }
        assert!(eject(&mut outliers, 1, now));
        assert_eq!(outliers.ejected, all[1..2]);
    }

    #[test]
    fn only_a_share_is_left_out() {
        let (all, now) = (endpoints(10), Instant::now());
        for (percent, out) in [(0, 0), (9, 0), (10, 1), (25, 2), (100, 10)] {
            let detection = OutlierDetection { ejected_percent_max: percent, ..detection() };
            let mut outliers = Outliers::new(now);
            for endpoint in &all {
                for _ in 0..5 {
                    outliers.note(&detection, &all, (*endpoint, ServerError), now);
                }
            }
            let found = all.iter().filter(|endpoint| outliers.is_out(**endpoint, now)).count();
            assert_eq!(found, out, "{percent} %");
        }
    }

    #[test]
    fn with_too_few_left_all_are_used() {
        let (all, now) = (endpoints(4), Instant::now());
        let detection = OutlierDetection { healthy_percent_min: 60, ..detection() };
        let mut outliers = Outliers::new(now);
        for (endpoint, panics) in all.iter().zip([false, true, true, true]) {
            for _ in 0..5 {
                outliers.note(&detection, &all, (*endpoint, ServerError), now);
            }
            assert_eq!(outliers.panics(&detection, all.len(), now), panics, "{endpoint}");
        }
        assert!(outliers.out(now).next().is_some());
        outliers.retain(&[]);
        assert!(outliers.out(now).next().is_none());
    }
}
