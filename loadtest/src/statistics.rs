//! Numbers made of many measurements: percentiles of latency, medians, spread.

use std::fmt;
use std::time::Duration;

/// Latencies of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
}

impl Latency {
    /// `None` if there is no sample. Sorts `samples`.
    pub(crate) fn of(samples: &mut [Duration]) -> Option<Self> {
        samples.sort_unstable();
        let at = |permille| percentile(samples, permille);
        Some(Self { p50: at(500)?, p99: at(990)?, p999: at(999)? })
    }
}

/// The smallest sample that `permille` of them do not exceed; `samples` are sorted.
fn percentile(samples: &[Duration], permille: usize) -> Option<Duration> {
    let rank = (samples.len() * permille).div_ceil(1_000);
    samples.get(rank.saturating_sub(1)).copied()
}

/// Median and extremes of one figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// How many values there are.
    pub count: usize,
}

impl Spread {
    /// `None` if there is no value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (lower, upper) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        let (median, count) = (f64::midpoint(lower, upper), values.len());
        Some(Self { median, min, max, count })
    }
}

/// `12.3 (11.9-14.0)`; with a precision, that many decimals.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { median, min, max, .. } = self;
        write!(f, "{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<_> = (1..=1_000).rev().map(Duration::from_micros).collect();
        let latency = Latency::of(&mut samples).unwrap();
        assert_eq!(latency.p50, Duration::from_micros(500));
        assert_eq!(latency.p99, Duration::from_micros(990));
        assert_eq!(latency.p999, Duration::from_micros(999));
        let one = Latency::of(&mut [Duration::from_secs(1)]).unwrap();
        assert_eq!(one.p50, one.p999);
        assert_eq!(Latency::of(&mut []), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0, count: 4 });
        assert_eq!(spread.to_string(), "2.5 (1.0-4.0)");
        assert_eq!(format!("{spread:.2}"), "2.50 (1.00-4.00)");
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Spread::of([]), None);
    }
}
