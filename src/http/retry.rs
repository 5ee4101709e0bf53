//! Whether the outcome of an attempt is worth another one. Pure: policy and outcome in, answer out.

use ::http::StatusCode;
use ::http::header::{HeaderMap, HeaderName};

use super::grpc;
use crate::address::Address;
use crate::snapshot::{RetryOn, RetryPolicy};
use crate::upstream::{Error, Kind, Retry};

const X_ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Why an attempt has no response.
#[derive(Debug)]
pub(crate) enum Failure {
    Upstream(Error),
    /// It took longer than one attempt may, at this endpoint if one was chosen.
    AttemptTimeout(Option<Address>),
    /// All attempts together took longer than the route allows, the last one at this endpoint.
    Timeout(Option<Address>),
}

/// Whether `policy` wants another attempt after `failure`.
pub(crate) fn after_failure(policy: &RetryPolicy, failure: &Failure) -> bool {
    policy.on.intersects(match failure {
        Failure::Upstream(error) => reasons(error),
        Failure::AttemptTimeout(_) => RetryOn::NO_RESPONSE,
        Failure::Timeout(_) => RetryOn::NONE,
    })
}

fn reasons(error: &Error) -> RetryOn {
    const NO_RESPONSE: RetryOn = RetryOn::NO_RESPONSE;
    match &error.kind {
        Kind::Connect(_) | Kind::Tls(_) | Kind::ConnectTimeout => {
            NO_RESPONSE | RetryOn::CONNECT_FAILURE | RetryOn::RESET_BEFORE_REQUEST
        }
        Kind::Refused => NO_RESPONSE | RetryOn::REFUSED_STREAM,
        Kind::Reset(_) if error.retry == Retry::IfUnsent => {
            NO_RESPONSE | RetryOn::RESET_BEFORE_REQUEST
        }
        Kind::Reset(_) | Kind::BadResponse(_) => NO_RESPONSE,
        // There is nobody to ask, the route's patience is spent, or the client is gone or slow.
        Kind::NoEndpoint
        | Kind::Overflow
        | Kind::Timeout
        | Kind::SlowClient
        | Kind::RequestBody => RetryOn::NONE,
    }
}

/// Whether `policy` wants another attempt after this response.
pub(crate) fn after_response(
    policy: &RetryPolicy,
    status: StatusCode,
    headers: &HeaderMap,
    is_grpc: bool,
) -> bool {
    if status.is_success() && !is_grpc {
        return policy.statuses.contains(&status) && policy.on.intersects(RetryOn::STATUSES);
    }
    if headers.contains_key(X_ENVOY_RATELIMITED) {
        return policy.on.intersects(RetryOn::RATE_LIMITED);
    }
    let mut met = of_status(status);
    if policy.statuses.contains(&status) {
        met = met | RetryOn::STATUSES;
    }
    if is_grpc {
        met =
            met | headers.get(grpc::STATUS).map_or(RetryOn::NONE, |code| of_grpc(code.as_bytes()));
    }
    policy.on.intersects(met)
}

fn of_status(status: StatusCode) -> RetryOn {
    match status.as_u16() {
        502..=504 => RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR,
        500..=599 => RetryOn::SERVER_ERROR,
        409 => RetryOn::CONFLICT,
        _ => RetryOn::NONE,
    }
}

fn of_grpc(code: &[u8]) -> RetryOn {
    match code {
        b"1" => RetryOn::CANCELLED,
        b"4" => RetryOn::DEADLINE_EXCEEDED,
        b"8" => RetryOn::RESOURCE_EXHAUSTED,
        b"13" => RetryOn::INTERNAL,
        b"14" => RetryOn::UNAVAILABLE,
        _ => RetryOn::NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: RetryOn) -> RetryPolicy {
        RetryPolicy { on, ..RetryPolicy::DEFAULT }
    }

    fn failed(kind: Kind) -> Failure {
        Failure::Upstream(Error { kind, remote: None, retry: Retry::Never })
    }

    fn reset() -> Failure {
        failed(Kind::Reset(std::io::ErrorKind::ConnectionReset.into()))
    }

    fn connect() -> Failure {
        failed(Kind::Connect(std::io::ErrorKind::ConnectionRefused.into()))
    }

    #[test]
    fn by_default_only_what_was_not_carried_out_is_retried() {
        let default = RetryPolicy::DEFAULT;
        assert!(after_failure(&default, &connect()));
        assert!(after_failure(&default, &failed(Kind::ConnectTimeout)));
        assert!(after_failure(&default, &failed(Kind::Refused)));
        for failure in
            [reset(), failed(Kind::Timeout), Failure::AttemptTimeout(None), Failure::Timeout(None)]
        {
            assert!(!after_failure(&default, &failure), "{failure:?}");
        }
        assert!(!after_failure(&default, &failed(Kind::NoEndpoint)));
        let headers = HeaderMap::new();
        for status in [200, 409, 500, 503, 504] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(!after_response(&default, status, &headers, false), "{status}");
        }
    }

    #[test]
    fn each_reason_means_its_own() {
        let unsent = Error { retry: Retry::IfUnsent, ..error_of(reset()) };
        let cases = [
            (RetryOn::RESET, reset(), true),
            (RetryOn::RESET, connect(), true),
            (RetryOn::SERVER_ERROR, reset(), true),
            (RetryOn::GATEWAY_ERROR, Failure::AttemptTimeout(None), true),
            (RetryOn::RESET, Failure::Timeout(None), false),
            (RetryOn::CONNECT_FAILURE, reset(), false),
            (RetryOn::RESET_BEFORE_REQUEST, reset(), false),
            (RetryOn::RESET_BEFORE_REQUEST, Failure::Upstream(unsent), true),
            (RetryOn::RESET_BEFORE_REQUEST, connect(), true),
            (RetryOn::SERVER_ERROR, failed(Kind::RequestBody), false),
        ];
        for (on, failure, expected) in cases {
            assert_eq!(after_failure(&policy(on), &failure), expected, "{on:?} {failure:?}");
        }
    }

    fn error_of(failure: Failure) -> Error {
        match failure {
            Failure::Upstream(error) => error,
            Failure::AttemptTimeout(_) | Failure::Timeout(_) => panic!("no upstream"),
        }
    }

    #[test]
    fn statuses_are_retried_as_named() {
        let wants = |policy: &RetryPolicy, status| {
            let status = StatusCode::from_u16(status).unwrap();
            after_response(policy, status, &HeaderMap::new(), false)
        };
        let gateway = policy(RetryOn::GATEWAY_ERROR);
        assert!(wants(&gateway, 502) && wants(&gateway, 504) && !wants(&gateway, 500));
        assert!(wants(&policy(RetryOn::SERVER_ERROR), 500));
        assert!(wants(&policy(RetryOn::CONFLICT), 409) && !wants(&policy(RetryOn::CONFLICT), 404));
        let named = RetryPolicy {
            statuses: vec![StatusCode::NOT_FOUND, StatusCode::ACCEPTED],
            ..policy(RetryOn::STATUSES)
        };
        assert!(wants(&named, 404) && wants(&named, 202) && !wants(&named, 500));
    }

    #[test]
    fn the_status_of_grpc_counts_for_grpc_alone() {
        let unavailable = policy(RetryOn::UNAVAILABLE);
        let mut headers = HeaderMap::new();
        headers.insert(grpc::STATUS, "14".parse().unwrap());
        assert!(after_response(&unavailable, StatusCode::OK, &headers, true));
        assert!(!after_response(&unavailable, StatusCode::OK, &headers, false));
        headers.insert(grpc::STATUS, "0".parse().unwrap());
        assert!(!after_response(&unavailable, StatusCode::OK, &headers, true));
    }

    #[test]
    fn a_rate_limited_response_is_retried_only_for_that() {
        let mut headers = HeaderMap::new();
        headers.insert(X_ENVOY_RATELIMITED, "true".parse().unwrap());
        let wants =
            |on| after_response(&policy(on), StatusCode::SERVICE_UNAVAILABLE, &headers, false);
        assert!(!wants(RetryOn::SERVER_ERROR));
        assert!(wants(RetryOn::RATE_LIMITED));
    }
}
