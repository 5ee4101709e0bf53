//! Faults that a route brings about on purpose.

use std::time::Duration;

use ::http::StatusCode;

/// What goes wrong, and how often. The delay comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The request waits.
    pub delay: Option<(Share, Duration)>,
    /// The request is not forwarded.
    pub abort: Option<(Share, Abort)>,
}

/// How a request is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// With a status.
    Http(StatusCode),
    /// With a status of gRPC, from 0 to 16.
    Grpc(u8),
}

/// A share of all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Of a million requests, this many.
    millionths: u32,
}

impl Share {
    /// All of them.
    pub const ALL: Self = Self { millionths: 1_000_000 };

    /// `percent` of them, from 0 to 100; cut to four decimals, as in Istio.
    #[must_use]
    pub fn of_percent(percent: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "is clamped")]
        let millionths = (percent.clamp(0.0, 100.0) * 10_000.0) as u32;
        Self { millionths }
    }

    /// Of a million, this many.
    #[must_use]
    pub fn millionths(self) -> u32 {
        self.millionths
    }

    /// Whether it is no request at all.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.millionths == 0
    }

    /// Whether a request with the random number `drawn`, below a million, belongs to it.
    #[must_use]
    pub fn takes(self, drawn: u32) -> bool {
        drawn < self.millionths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_its_part() {
        assert!(Share::ALL.takes(999_999));
        assert!(Share::of_percent(0.0).is_none() && !Share::of_percent(0.0).takes(0));
        let tenth = Share::of_percent(0.1);
        assert!(tenth.takes(999) && !tenth.takes(1_000));
        assert_eq!(Share::of_percent(0.000_01), Share::of_percent(0.0));
        assert_eq!(Share::of_percent(200.0), Share::ALL);
    }
}
