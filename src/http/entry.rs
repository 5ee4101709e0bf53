//! What is remembered of a request until it is over: its entry in the access log and the metrics.
//!
//! - Made when the head has arrived, filled in on the way, written once: when the last part of the
//!   gateway that works on the request lets go of it.
//! - Values of the request are shared with it, not copied.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use ::http::header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use ::http::{Method, Request, StatusCode, Uri, Version};

use super::Downstream;
use super::grpc;
use super::headers::Vouched;
use crate::address::Address;
use crate::snapshot::{Cluster, Route};
use crate::telemetry::WorkerTelemetry;
use crate::telemetry::request::{Flags, Record};

/// A request under way.
pub(crate) struct Entry {
    telemetry: Rc<WorkerTelemetry>,
    downstream: Rc<Downstream>,
    start: SystemTime,
    /// The same moment as `start`, on the clock that never jumps.
    started: Instant,
    /// The latest moment that something happened. Invariant: not before `started`.
    latest: Cell<Instant>,
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    /// Of a gRPC client, by its content type.
    call: Option<Box<grpc::Call>>,
    outcome: Cell<Outcome>,
    /// What happened beside the outcome.
    noted: Cell<Flags>,
    vouched: OnceCell<Vouched>,
    names: OnceCell<Names>,
    upstream: Cell<Upstream>,
    /// Why the connection to it is not secured.
    upstream_failure: OnceCell<Box<str>>,
    bytes_received: Cell<u64>,
    bytes_sent: Cell<u64>,
}

/// How the request was answered.
#[derive(Clone, Copy)]
struct Outcome {
    status: u16,
    flags: Flags,
    details: &'static str,
}

/// The endpoint that was tried last.
#[derive(Clone, Copy, Default)]
struct Upstream {
    remote: Option<Address>,
    local: Option<SocketAddr>,
    /// From sending the request to the head of the response.
    time: Option<Duration>,
}

/// Names out of the snapshot, which the entry outlives; in one allocation.
struct Names {
    /// The route's name, then the cluster's, then the service's.
    text: Box<str>,
    /// Invariant: `route_end <= cluster_end <= text.len()`.
    route_end: usize,
    cluster_end: usize,
}

impl Names {
    fn new(route: &str, cluster: &str, service: &str) -> Self {
        let mut text = String::with_capacity(route.len() + cluster.len() + service.len());
        text.push_str(route);
        text.push_str(cluster);
        let (route_end, cluster_end) = (route.len(), text.len());
        text.push_str(service);
        Self { text: text.into_boxed_str(), route_end, cluster_end }
    }

    fn route(&self) -> &str {
        &self.text[..self.route_end]
    }

    fn cluster(&self) -> &str {
        &self.text[self.route_end..self.cluster_end]
    }

    fn service(&self) -> &str {
        &self.text[self.cluster_end..]
    }
}

impl Entry {
    /// Begins an entry for `request`, whose head arrived `now`.
    pub(crate) fn begin<B>(
        telemetry: Rc<WorkerTelemetry>,
        downstream: Rc<Downstream>,
        request: &Request<B>,
        now: (Instant, SystemTime),
    ) -> Self {
        let headers = request.headers();
        telemetry.counters().requests_active.increment();
        downstream.activity.request_began(now.0);
        Self {
            telemetry,
            downstream,
            start: now.1,
            started: now.0,
            latest: Cell::new(now.0),
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: headers.get(HOST).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            call: headers.get(CONTENT_TYPE).is_some_and(is_grpc).then(Box::default),
            // Stands until something better is known: the client went away before an answer.
            outcome: Cell::new(Outcome {
                status: 0,
                flags: Flags::DOWNSTREAM_TERMINATION,
                details: "downstream_remote_disconnect",
            }),
            noted: Cell::new(Flags::NONE),
            vouched: OnceCell::new(),
            names: OnceCell::new(),
            upstream: Cell::default(),
            upstream_failure: OnceCell::new(),
            bytes_received: Cell::new(0),
            bytes_sent: Cell::new(0),
        }
    }

    /// When the head had arrived.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The same moment on the wall.
    pub(crate) fn start(&self) -> SystemTime {
        self.start
    }

    /// The connection that the request came by.
    pub(crate) fn downstream(&self) -> &Downstream {
        &self.downstream
    }

    /// The endpoint that was tried last.
    pub(crate) fn endpoint(&self) -> Option<Address> {
        self.upstream.get().remote
    }

    /// Name of its route, once there is one.
    pub(crate) fn route_name(&self) -> &str {
        self.names.get().map_or("", Names::route)
    }

    /// Name of its cluster, once there is one.
    pub(crate) fn cluster_name(&self) -> &str {
        self.names.get().map_or("", Names::cluster)
    }

    /// Whether the client speaks gRPC, by its content type.
    pub(crate) fn is_grpc(&self) -> bool {
        self.call.is_some()
    }

    /// What is counted of it if it is a gRPC call.
    pub(crate) fn call(&self) -> Option<&grpc::Call> {
        self.call.as_deref()
    }

    /// Something happened `now`.
    pub(crate) fn touch(&self, now: Instant) {
        self.latest.set(now);
    }

    /// It is answered with `status`, because of `details`.
    pub(crate) fn answered(&self, status: StatusCode, flags: Flags, details: &'static str) {
        self.outcome.set(Outcome { status: status.as_u16(), flags, details });
    }

    /// Something happened to it beside how it was answered.
    pub(crate) fn flag(&self, flags: Flags) {
        self.noted.set(self.noted.get() | flags);
    }

    /// It goes to `cluster` by `route`.
    pub(crate) fn routed(&self, route: &Route, cluster: Option<&Cluster>) {
        let (cluster, service) = cluster.map_or(("", ""), |c| (&*c.name, &*c.host));
        // A request is routed once; a second time would be a retry, which stays with its route.
        let _: Result<(), Names> = self.names.set(Names::new(&route.name, cluster, service));
    }

    /// What the gateway says of it to an upstream.
    pub(crate) fn vouch(&self, make: impl FnOnce() -> Vouched) -> &Vouched {
        self.vouched.get_or_init(make)
    }

    /// `remote` was tried, and answered after `time` if it did.
    pub(crate) fn tried(
        &self,
        remote: Option<Address>,
        local: Option<SocketAddr>,
        time: Option<Duration>,
    ) {
        self.upstream.set(Upstream { remote, local, time });
    }

    /// The connection to the endpoint is not as secure as it has to be, for this `reason`.
    pub(crate) fn not_secured(&self, reason: String) {
        // The first one is told; a request fails once.
        let _: Result<(), Box<str>> = self.upstream_failure.set(reason.into());
    }

    /// `n` more bytes of the request's body arrived.
    pub(crate) fn received(&self, n: u64) {
        self.bytes_received.set(self.bytes_received.get() + n);
        self.downstream.activity.moved();
    }

    /// `n` more bytes of the response's body were sent.
    pub(crate) fn sent(&self, n: u64) {
        self.bytes_sent.set(self.bytes_sent.get() + n);
        self.downstream.activity.moved();
    }

    /// How many bytes of both bodies have passed.
    pub(crate) fn moved(&self) -> u64 {
        self.bytes_received.get() + self.bytes_sent.get()
    }

    fn authority(&self) -> &str {
        match (self.uri.authority(), &self.host) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host.to_str().unwrap_or_default(),
            (None, None) => "",
        }
    }

    fn record(&self) -> Record<'_> {
        let outcome = self.outcome.get();
        let upstream = self.upstream.get();
        let vouched = self.vouched.get();
        let remote = self.downstream.remote;
        let names = self.names.get();
        Record {
            duration: self.latest.get() - self.started,
            method: self.method.as_str(),
            path: self.uri.path_and_query().map_or("", |path| path.as_str()),
            protocol: protocol(self.version),
            grpc: self.call().map(grpc::Call::record),
            status: outcome.status,
            flags: outcome.flags | self.noted.get(),
            details: outcome.details,
            upstream_failure: self.upstream_failure.get().map_or("", |reason| reason),
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            upstream_time: upstream.time,
            forwarded_for: vouched
                .and_then(Vouched::x_forwarded_for)
                .map_or(b"", |value| value.as_bytes()),
            user_agent: self.user_agent.as_ref().map_or(b"", |value| value.as_bytes()),
            request_id: vouched.map_or(b"", |v| v.request_id().as_bytes()),
            authority: self.authority(),
            upstream_host: upstream.remote,
            upstream_cluster: self.cluster_name(),
            upstream_service: names.map_or("", Names::service),
            upstream_local: upstream.local.map(Address::from),
            downstream_local: Some(self.downstream.local),
            downstream_remote: Some(vouched.map_or(remote, |vouched| vouched.client(remote))),
            server_name: self.downstream.server_name().unwrap_or_default(),
            route_name: self.route_name(),
            ..Record::new(self.start)
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.telemetry.counters().requests_active.decrement();
        let activity = &self.downstream.activity;
        if self.outcome.get().status == 0 {
            activity.request_unanswered(self.started);
        }
        activity.request_ended(self.latest.get());
        self.telemetry.record(&self.record());
    }
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(b"application/grpc")
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
