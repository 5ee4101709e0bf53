//! When a request that failed is sent again.

use std::ops::BitOr;
use std::time::Duration;

use ::http::StatusCode;

/// What a route says about retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first; 0 for none.
    pub retries: u32,
    /// What is worth another attempt.
    pub on: RetryOn,
    /// The statuses that [`RetryOn::STATUSES`] means.
    pub statuses: Vec<StatusCode>,
    /// How long one attempt may take until the head of its response.
    pub per_try_timeout: Option<Duration>,
    /// The first pause lasts up to this, each further one up to twice as long, at most ten times.
    pub backoff: Duration,
    /// Endpoints that were tried are chosen only if there are no others.
    pub avoids_tried: bool,
    /// After two attempts the next ones are made in other localities, if there are any.
    pub leaves_localities: bool,
}

impl RetryPolicy {
    /// Istio's, for routes that say nothing. It names no status: 503 is not retried.
    pub const DEFAULT: Self = Self {
        retries: 2,
        on: RetryOn(
            RetryOn::CONNECT_FAILURE.0
                | RetryOn::REFUSED_STREAM.0
                | RetryOn::UNAVAILABLE.0
                | RetryOn::CANCELLED.0
                | RetryOn::STATUSES.0,
        ),
        statuses: Vec::new(),
        per_try_timeout: None,
        backoff: Duration::from_millis(25),
        avoids_tried: true,
        leaves_localities: false,
    };

    /// The longest pause before the attempt after `attempt`, which counts from 1.
    #[must_use]
    pub fn pause_max(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX);
        self.backoff * factor.min(10)
    }
}

/// A set of reasons for another attempt, by Envoy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u16);

impl RetryOn {
    /// No reason.
    pub const NONE: Self = Self(0);
    /// `5xx`: a response with such a status, or none at all.
    pub const SERVER_ERROR: Self = Self(1);
    /// `gateway-error`: 502, 503 or 504, or no response at all.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `reset`: no response at all.
    pub const RESET: Self = Self(1 << 2);
    /// `reset-before-request`: the same, and nothing of the request was sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// `connect-failure`: no connection.
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// `refused-stream`: the endpoint did nothing with an HTTP/2 stream.
    pub const REFUSED_STREAM: Self = Self(1 << 5);
    /// `retriable-4xx`: 409.
    pub const CONFLICT: Self = Self(1 << 6);
    /// `retriable-status-codes`: one of [`RetryPolicy::statuses`].
    pub const STATUSES: Self = Self(1 << 7);
    /// `envoy-ratelimited`: the response has `x-envoy-ratelimited`.
    pub const RATE_LIMITED: Self = Self(1 << 8);
    /// `cancelled`: of gRPC.
    pub const CANCELLED: Self = Self(1 << 9);
    /// `deadline-exceeded`: of gRPC.
    pub const DEADLINE_EXCEEDED: Self = Self(1 << 10);
    /// `internal`: of gRPC.
    pub const INTERNAL: Self = Self(1 << 11);
    /// `resource-exhausted`: of gRPC.
    pub const RESOURCE_EXHAUSTED: Self = Self(1 << 12);
    /// `unavailable`: of gRPC.
    pub const UNAVAILABLE: Self = Self(1 << 13);

    /// Those that mean every attempt without a response.
    pub const NO_RESPONSE: Self =
        Self(Self::SERVER_ERROR.0 | Self::GATEWAY_ERROR.0 | Self::RESET.0);

    /// The names in `retryOn`.
    pub const NAMES: [(&str, Self); 14] = [
        ("5xx", Self::SERVER_ERROR),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-4xx", Self::CONFLICT),
        ("retriable-status-codes", Self::STATUSES),
        ("envoy-ratelimited", Self::RATE_LIMITED),
        ("cancelled", Self::CANCELLED),
        ("deadline-exceeded", Self::DEADLINE_EXCEEDED),
        ("internal", Self::INTERNAL),
        ("resource-exhausted", Self::RESOURCE_EXHAUSTED),
        ("unavailable", Self::UNAVAILABLE),
    ];

    /// Whether they have a reason in common.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for RetryOn {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_times_the_first() {
        let pause = |attempt| RetryPolicy::DEFAULT.pause_max(attempt).as_millis();
        let pauses: Vec<_> = [1, 2, 3, 4, 5, 40].map(pause).into();
        assert_eq!(pauses, [25, 50, 100, 200, 250, 250]);
    }
}
