//! Why a request is not served, whose fault that is, and what the client is told: one table.

use ::http::StatusCode;

use crate::telemetry::request::Flags;
use crate::upstream::{self, Kind};

/// The gateway answers a request itself because it cannot do what it asks.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// HTTP/1.1 without exactly one usable Host. The client's fault.
    BadHost,
    /// The path cannot be brought into a safe form, or is none, as of CONNECT. The client's fault.
    BadPath,
    /// HTTP/1.0, which cannot say what it needs to. The client's fault.
    Http10,
    /// More header fields than the limit. The client's fault.
    TooManyFields,
    /// The host belongs to another server than the connection's. The client should open another.
    Misdirected(StatusCode),
    /// The server's TLS policy is not the one that the connection's handshake was held to. The
    /// client should open another.
    Outdated(StatusCode),
    /// Its body is encoded in a way that does not pass from hop to hop. The client's fault.
    BadEncoding,
    /// No route takes it: the client's fault or the configuration's.
    NoRoute,
    /// The route leads to a service that does not exist. The configuration's fault.
    NoCluster,
    /// The upstream did not answer. Its fault.
    Upstream(upstream::Error),
    /// The upstream did not answer within the time that the route gives one attempt.
    AttemptTimeout,
    /// The upstream did not answer within the time that the route gives.
    Timeout,
}

/// What the client is told, and what the log says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) flags: Flags,
    pub(crate) details: &'static str,
    pub(crate) text: &'static str,
}

impl Answer {
    fn new(status: StatusCode, flags: Flags, details: &'static str) -> Self {
        Self { status, flags, details, text: "" }
    }
}

impl Refusal {
    pub(crate) fn answer(&self) -> Answer {
        const MALFORMED: Flags = Flags::DOWNSTREAM_PROTOCOL_ERROR;
        match self {
            Self::BadHost => Answer::new(StatusCode::BAD_REQUEST, MALFORMED, "host_invalid"),
            Self::BadPath => {
                Answer::new(StatusCode::BAD_REQUEST, MALFORMED, "path_normalization_failed")
            }
            Self::Http10 => Answer::new(StatusCode::UPGRADE_REQUIRED, MALFORMED, "low_version"),
            Self::TooManyFields => Answer::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                MALFORMED,
                "too_many_headers",
            ),
            Self::Misdirected(status) => {
                Answer::new(*status, Flags::NO_ROUTE, "misdirected_request")
            }
            Self::Outdated(status) => Answer::new(*status, Flags::NO_ROUTE, "tls_policy_changed"),
            Self::BadEncoding => Answer::new(
                StatusCode::NOT_IMPLEMENTED,
                MALFORMED,
                "http1.invalid_transfer_encoding",
            ),
            Self::NoRoute => Answer::new(StatusCode::NOT_FOUND, Flags::NO_ROUTE, "route_not_found"),
            Self::NoCluster => {
                Answer::new(StatusCode::SERVICE_UNAVAILABLE, Flags::NO_CLUSTER, "cluster_not_found")
            }
            Self::Upstream(error) => of_upstream(error),
            Self::AttemptTimeout => timed_out("upstream_per_try_timeout"),
            Self::Timeout => timed_out("response_timeout"),
        }
    }
}

/// The flags of a response that broke off.
pub(crate) fn flags(error: &upstream::Error) -> Flags {
    of_upstream(error).flags
}

fn timed_out(details: &'static str) -> Answer {
    Answer {
        status: StatusCode::GATEWAY_TIMEOUT,
        flags: Flags::UPSTREAM_TIMEOUT,
        details,
        text: "upstream request timeout",
    }
}

fn of_upstream(error: &upstream::Error) -> Answer {
    const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match &error.kind {
        Kind::NoEndpoint => Answer {
            status: UNAVAILABLE,
            flags: Flags::NO_HEALTHY_UPSTREAM,
            details: "no_healthy_upstream",
            text: "no healthy upstream",
        },
        Kind::Overflow => Answer {
            status: UNAVAILABLE,
            flags: Flags::UPSTREAM_OVERFLOW,
            details: "upstream_reset_before_response_started{overflow}",
            text: "upstream connect error or disconnect/reset before headers. reset reason: \
                   overflow",
        },
        Kind::Connect(_) => Answer {
            status: UNAVAILABLE,
            flags: Flags::UPSTREAM_CONNECT_FAILURE,
            details: "upstream_reset_before_response_started{connection_failure}",
            text: "upstream connect error: connection failure",
        },
        Kind::Tls(_) => Answer {
            status: UNAVAILABLE,
            flags: Flags::UPSTREAM_CONNECT_FAILURE,
            details: "upstream_reset_before_response_started{remote_connection_failure}",
            text: "upstream connect error: TLS failure",
        },
        Kind::ConnectTimeout => Answer {
            status: UNAVAILABLE,
            flags: Flags::UPSTREAM_CONNECT_FAILURE,
            details: "upstream_reset_before_response_started{connection_timeout}",
            text: "upstream connect error: connection timeout",
        },
        Kind::Reset(_) => Answer {
            status: UNAVAILABLE,
            flags: Flags::UPSTREAM_TERMINATION,
            details: "upstream_reset_before_response_started{connection_termination}",
            text: "upstream connect error or disconnect/reset before headers",
        },
        Kind::Refused => Answer {
            status: UNAVAILABLE,
            flags: Flags::UPSTREAM_TERMINATION,
            details: "upstream_reset_before_response_started{remote_refused_stream_reset}",
            text: "upstream connect error or disconnect/reset before headers",
        },
        Kind::BadResponse(_) => Answer {
            status: StatusCode::BAD_GATEWAY,
            flags: Flags::UPSTREAM_PROTOCOL_ERROR,
            details: "upstream_reset_before_response_started{protocol_error}",
            text: "upstream sent no valid HTTP",
        },
        Kind::Timeout => timed_out("response_timeout"),
        Kind::SlowClient => Answer {
            status: StatusCode::REQUEST_TIMEOUT,
            flags: Flags::STREAM_IDLE_TIMEOUT,
            details: "stream_idle_timeout",
            text: "stream timeout",
        },
        Kind::RequestBody => Answer {
            status: StatusCode::BAD_REQUEST,
            flags: Flags::DOWNSTREAM_TERMINATION,
            details: "downstream_remote_disconnect",
            text: "",
        },
    }
}
