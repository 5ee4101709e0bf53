//! What can go wrong towards an endpoint: whose fault, and whether asking again is safe.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::address::Address;

/// A request that an endpoint did not answer, or not to the end.
#[derive(Debug)]
pub(crate) struct Error {
    /// What happened.
    pub(crate) kind: Kind,
    /// The endpoint, where one was chosen.
    pub(crate) remote: Option<Address>,
    /// Whether the same request may be sent again.
    pub(crate) retry: Retry,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The cluster has no endpoint (`UH`).
    NoEndpoint,
    /// The cluster has as much under way as it may have (`UO`).
    Overflow,
    /// The connect failed (`UF`).
    Connect(io::Error),
    /// There is no TLS with it, and why (`UF`).
    Tls(Arc<str>),
    /// The connect took longer than the cluster allows (`UF`).
    ConnectTimeout,
    /// The endpoint ended or broke the connection too early (`UC`).
    Reset(io::Error),
    /// The endpoint refused the stream before it did anything with it (`UC`).
    Refused,
    /// The endpoint broke the protocol, or sent more than the limits allow (`UPE`).
    BadResponse(&'static str),
    /// Nothing moved for too long (`UT`).
    Timeout,
    /// Nothing of the request's body came for too long: the client's fault (`SI`).
    SlowClient,
    /// The request's own body failed: the client's fault (`DC`).
    RequestBody,
}

/// Whether a request that failed may be sent again without being carried out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It may have been carried out, or part of its body is gone.
    Never,
    /// Yes: none of it reached an endpoint.
    IfUnsent,
    /// Yes if the connection had been used before: the endpoint was then closing it, not answering.
    IfReused,
}

impl Error {
    /// An error that is never retried, at `remote`.
    pub(super) fn at(remote: Address, kind: Kind) -> Self {
        Self { kind, remote: Some(remote), retry: Retry::Never }
    }

    /// The exchange took longer than whoever asked would wait.
    pub(crate) fn timeout() -> Self {
        Self { kind: Kind::Timeout, remote: None, retry: Retry::Never }
    }

    /// What the connection's security failed of, for the log.
    pub(crate) fn of_tls(&self) -> Option<String> {
        match &self.kind {
            Kind::Tls(reason) => Some(format!("TLS error: {reason}")),
            // As `tls` reports what it does not understand, and the peer's alert.
            Kind::Reset(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(format!("TLS error: {error}"))
            }
            Kind::Reset(_)
            | Kind::NoEndpoint
            | Kind::Overflow
            | Kind::Connect(_)
            | Kind::ConnectTimeout
            | Kind::Refused
            | Kind::BadResponse(_)
            | Kind::Timeout
            | Kind::SlowClient
            | Kind::RequestBody => None,
        }
    }

    /// An error before anything of the request was sent.
    pub(super) fn unsent(remote: Option<Address>, kind: Kind) -> Self {
        Self { kind, remote, retry: Retry::IfUnsent }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::NoEndpoint => f.write_str("the service has no endpoint; is it running?"),
            Kind::Overflow => f.write_str("the cluster has as much under way as it may have"),
            Kind::Connect(error) => write!(f, "connect failed: {error}"),
            Kind::Tls(reason) => write!(f, "TLS error: {reason}"),
            Kind::ConnectTimeout => f.write_str("connect timed out"),
            Kind::Reset(error) => write!(f, "the endpoint ended the connection: {error}"),
            Kind::Refused => f.write_str("the endpoint refused the stream"),
            Kind::BadResponse(reason) => write!(f, "the endpoint's response is invalid: {reason}"),
            Kind::Timeout => f.write_str("nothing moved for longer than stream_idle_timeout"),
            Kind::SlowClient => f.write_str("the client sent nothing for stream_idle_timeout"),
            Kind::RequestBody => f.write_str("the client's request body ended early"),
        }?;
        self.remote.map_or(Ok(()), |remote| write!(f, " ({remote})"))
    }
}

impl std::error::Error for Error {}

/// The end of a stream where more had to come.
pub(super) fn early_end() -> Kind {
    Kind::Reset(io::ErrorKind::UnexpectedEof.into())
}
