//! One request: from its head to the response's, by the snapshot that is current when it begins.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::header::{CONNECTION, HOST, HeaderMap, HeaderValue, UPGRADE};
use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{Method, Request, Response, StatusCode, Version};
use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;

use super::affinity::Affinity;
use super::attempts::{Answer, Attempts, Outcome, Spent};
use super::body::{RequestBody, ResponseBody, Source};
use super::cors;
use super::deadline::Deadline;
use super::decide::{Decision, decide, vet};
use super::edit::Context;
use super::entry::Entry;
use super::error::Refusal;
use super::grpc;
use super::headers::{self, Peer, Vouched};
use super::mirror;
use super::outgoing::Replay;
use super::respond::Responder;
use super::retry::Failure;
use super::{Downstream, Gateway};
use crate::address::Address;
use crate::io::Net;
use crate::snapshot::{
    Abort, Cluster, Edits, Extras, Fault, RetryPolicy, Route, Share, Target, View,
};
use crate::telemetry::request::Flags;
use crate::upstream::{self, Counted, Exchange, To, Transport, Upgraded};

/// For routes that say nothing of retries.
static DEFAULT_RETRIES: RetryPolicy = RetryPolicy::DEFAULT;

/// Serves the requests of one connection.
pub(crate) struct Forwarder<N: Net> {
    gateway: Rc<Gateway<N>>,
    downstream: Rc<Downstream>,
    peer: Rc<Peer>,
    /// The upstream that the connection is to be joined to, once the response with status 101 has
    /// been written.
    switched: RefCell<Option<Switched<N>>>,
}

/// An upstream that has switched to another protocol, and the entry of the request that asked.
pub(crate) struct Switched<N: Net> {
    pub(crate) stream: Transport<N::Stream>,
    pub(crate) entry: Rc<Entry>,
    /// Keeps it counted at its endpoint.
    pub(crate) active: Counted<N>,
}

/// What a request's head does not say. The head itself is lent to whoever works on it: it is large,
/// and the response may have to be made of it.
struct Upbound {
    /// The path that it gets in the end.
    rewritten: Option<PathAndQuery>,
    incoming: Incoming,
    /// The protocol that the client asks to switch to.
    protocol: Option<HeaderValue>,
}

/// Which way a request goes.
#[derive(Clone, Copy)]
struct Way<'a> {
    view: &'a View,
    extras: Option<&'a Extras>,
    edits: Option<&'a Edits>,
    cluster: Option<&'a Cluster>,
}

impl<'a> Way<'a> {
    fn new(view: &'a View, route: &'a Route, target: Option<&'a Target>) -> Self {
        Self {
            view,
            extras: route.extras.as_deref(),
            edits: target.and_then(|target| target.edits.as_deref()),
            cluster: target.and_then(|target| target.cluster.as_deref()),
        }
    }

    /// Whether the route has nothing for the request but its cluster, and that no rules.
    fn is_plain(&self) -> bool {
        let has_rules = self.cluster.is_some_and(|cluster| cluster.traffic.is_some());
        self.extras.is_none() && self.edits.is_none() && !has_rules
    }

    fn retries(&self) -> &'a RetryPolicy {
        let own = self.extras.and_then(|extras| extras.retries.as_ref());
        own.unwrap_or(&DEFAULT_RETRIES)
    }

    /// Changes headers, host and path of a request as the way has it.
    fn edit(&self, head: &mut Parts, rewritten: Option<PathAndQuery>, entry: &Entry) {
        if let Some(edits) = self.edits {
            let context = Context { entry, status: None };
            context.edit_request(&edits.request, head);
            if let Some(authority) = &edits.authority {
                headers::replace_host(head, authority);
            }
        }
        if let Some(path) = rewritten {
            headers::replace_path(head, path);
        }
    }
}

impl<N: Net> Forwarder<N> {
    pub(crate) fn new(gateway: Rc<Gateway<N>>, downstream: Rc<Downstream>) -> Self {
        let told = downstream.tls.as_ref().and_then(|tls| tls.client_certificate.clone());
        let peer = Rc::new(Peer::new(downstream.remote, told));
        Self { gateway, downstream, peer, switched: RefCell::new(None) }
    }

    /// What the connection has switched to, if it has.
    pub(crate) fn take_switched(&self) -> Option<Switched<N>> {
        self.switched.borrow_mut().take()
    }

    /// Answers `request`, which was begun with `responder`. Never fails: what goes wrong becomes a
    /// response.
    pub(crate) async fn serve(
        &self,
        request: Request<Incoming>,
        responder: Responder<N>,
    ) -> Result<Response<ResponseBody<N>>, Infallible> {
        let view = Rc::clone(self.gateway.snapshots.borrow_mut().current());
        let (mut head, incoming) = request.into_parts();
        if let Err(refusal) = vet(&view, &head) {
            return Ok(self.refuse(&refusal, responder));
        }
        let protocol = wanted_protocol(&head).filter(|_| incoming.is_end_stream());
        let is_tls = self.downstream.is_tls();
        let entry = Rc::clone(&responder.entry);
        // Before the decision: routes are chosen by what the gateway vouches for.
        let vouched = entry
            .vouch(|| headers::to_upstream(&mut head.headers, &self.peer, is_tls, &view.policy));
        Ok(match decide(&view, &self.downstream, &head, vouched) {
            Err(refusal) => self.refuse(&refusal, responder),
            Ok(Decision::Respond { route, response }) => {
                let answer = |responder: Responder<N>| responder.direct(response);
                Self::answer(route, &mut head, vouched, responder, answer)
            }
            Ok(Decision::Redirect { route, status, location }) => match route {
                Some(route) => {
                    let redirect = |responder: Responder<N>| responder.redirect(status, &location);
                    Self::answer(route, &mut head, vouched, responder, redirect)
                }
                None => responder.redirect(status, &location),
            },
            Ok(Decision::Forward { route, target, path, rewritten }) => {
                let way = Way::new(&view, route, target);
                responder.entry.routed(route, way.cluster);
                take_path(&mut head, path);
                let request = Upbound { rewritten, incoming, protocol };
                let is_plain = way.is_plain() && request.protocol.is_none();
                if is_plain && asked_within(&responder.entry, &head).is_none() {
                    self.send(way, &mut head, vouched, request.incoming, responder).await
                } else {
                    vouched.insert(&mut head.headers);
                    // Rarely needed, and large: not in the future of every request.
                    Box::pin(self.forward(way, &mut head, request, responder)).await
                }
            }
        })
    }

    /// Says of an HTTP/1.1 response that it is the last of its connection, if it is.
    pub(crate) fn mark_last<B>(&self, response: &mut Response<B>) {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.downstream.activity.is_retired() && !switches {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Answers for the gateway itself, as `route` says.
    fn answer(
        route: &Route,
        head: &mut Parts,
        vouched: &Vouched,
        responder: Responder<N>,
        answer: impl FnOnce(Responder<N>) -> Response<ResponseBody<N>>,
    ) -> Response<ResponseBody<N>> {
        let entry = Rc::clone(&responder.entry);
        entry.routed(route, None);
        let mut response = answer(responder);
        if let Some(extras) = &route.extras {
            vouched.insert(&mut head.headers);
            let context = Context { entry: &entry, status: Some(response.status()) };
            context.edit_response(&extras.response, head, response.headers_mut());
        }
        response
    }

    /// `request` has arrived.
    pub(crate) fn begin(&self, request: &Request<Incoming>) -> Responder<N> {
        let net = &self.gateway.net;
        let telemetry = Rc::clone(&self.gateway.telemetry);
        let downstream = Rc::clone(&self.downstream);
        let now = (net.now(), net.wall());
        if self.gateway.retires_connections.get() {
            downstream.activity.retire();
        }
        Responder {
            entry: Rc::new(Entry::begin(telemetry, downstream, request, now)),
            clock: net.clone(),
            is_head: request.method() == Method::HEAD,
        }
    }

    /// Forwards a request with all that its route has for it: cross-origin policy, fault, changes
    /// of headers, in Envoy's order.
    async fn forward(
        &self,
        way: Way<'_>,
        head: &mut Parts,
        mut request: Upbound,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let entry = Rc::clone(&responder.entry);
        let cors = way.extras.and_then(|extras| extras.cors.as_ref());
        if let Some(headers) = cors.and_then(|cors| cors::preflight(cors, head)) {
            return responder.preflight(headers);
        }
        let origin = cors.and_then(|cors| cors::allowed_origin(cors, head));
        let abort = match way.extras.and_then(|extras| extras.fault.as_ref()) {
            Some(fault) => self.suffer(fault, &entry).await,
            None => None,
        };
        let mut response = match abort {
            Some(abort) => responder.abort(abort),
            None => {
                way.edit(head, request.rewritten.take(), &entry);
                self.send_as_told(way, head, request, responder).await
            }
        };
        if let Some(edits) = way.edits {
            let context = Context { entry: &entry, status: Some(response.status()) };
            context.edit_response(&edits.response, head, response.headers_mut());
        }
        if let Some(cors) = cors {
            cors::allow(cors, origin.as_ref(), response.headers_mut());
        }
        response
    }

    /// Waits, and says how the request is to fail, as often as `fault` has it.
    async fn suffer(&self, fault: &Fault, entry: &Entry) -> Option<Abort> {
        let is_hit = |share: Share| share.takes(fastrand::u32(..1_000_000));
        if let Some((share, delay)) = fault.delay
            && is_hit(share)
        {
            entry.flag(Flags::DELAY_INJECTED);
            self.gateway.net.sleep(delay).await;
        }
        fault.abort.filter(|(share, _)| is_hit(*share)).map(|(_, abort)| abort)
    }

    /// Sends a request that its route has nothing special for to its cluster. Nearly all are such:
    /// nothing limits them, and the first answer is the last.
    async fn send(
        &self,
        way: Way<'_>,
        head: &mut Parts,
        vouched: &Vouched,
        incoming: Incoming,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let Some(cluster) = way.cluster else {
            return responder.refuse(&Refusal::NoCluster);
        };
        let attempts = self.attempts(way, cluster, incoming, &responder.entry);
        let to = To {
            own: &vouched.fields(),
            ..To::new(cluster, &way.view.limits, way.view.generation)
        };
        let sending = self.gateway.upstreams.send(to, head, attempts.body.outgoing());
        let first = match sending.await {
            Ok(exchange) if !attempts.wants_another_after(&exchange.response) => {
                return self.pass_on(exchange, Source::Upstream, responder);
            }
            Ok(exchange) => Ok(Answer::Exchange(exchange)),
            Err(error) => Err(Failure::Upstream(error)),
        };
        vouched.insert(&mut head.headers);
        Box::pin(self.persist(attempts, None, Some(first), head, responder)).await
    }

    /// Sends a request whose head is complete as its route has it.
    async fn send_as_told(
        &self,
        way: Way<'_>,
        head: &mut Parts,
        request: Upbound,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let Some(cluster) = way.cluster else {
            return responder.refuse(&Refusal::NoCluster);
        };
        let mut attempts = self.attempts(way, cluster, request.incoming, &responder.entry);
        if let Some(protocol) = request.protocol {
            attempts.upgrades = true;
            head.headers.insert(UPGRADE, protocol);
        }
        let affinity = Affinity::of(cluster, head, self.downstream.remote);
        attempts.key = affinity.key;
        let mut response = self.persist(attempts, way.extras, None, head, responder).await;
        affinity.remind(response.headers_mut());
        response
    }

    fn attempts<'a>(
        &'a self,
        way: Way<'a>,
        cluster: &'a Cluster,
        incoming: Incoming,
        entry: &Rc<Entry>,
    ) -> Attempts<'a, N> {
        let limits = &way.view.limits;
        let body = RequestBody::new(incoming, Rc::clone(entry));
        let body = Replay::new(body, limits.retry_body_bytes_max);
        let (policy, is_grpc) = (way.retries(), entry.is_grpc());
        let gateway = &*self.gateway;
        Attempts {
            gateway,
            cluster,
            limits,
            generation: way.view.generation,
            policy,
            body,
            key: None,
            reached: Cell::default(),
            upgrades: false,
            is_grpc,
        }
    }

    /// Sends a request as often and as long as its route has it; `first` came of the first attempt.
    async fn persist(
        &self,
        attempts: Attempts<'_, N>,
        extras: Option<&Extras>,
        first: Option<Result<Answer<N>, Failure>>,
        head: &mut Parts,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let (body, terms) = (&attempts.body, (attempts.limits, attempts.generation));
        let mirrors = extras.map_or(&[][..], |extras| &extras.mirrors);
        let mirrors = if attempts.upgrades { &[] } else { mirrors };
        mirror::send(&self.gateway, mirrors, terms, head, body);
        let mut deadline = self.limit(extras, head, &responder.entry, body);
        let outcome = attempts.run_within(head, first, &mut deadline).await;
        self.conclude(outcome, deadline, responder)
    }

    /// The time limit of the route, and of a gRPC call that its client gives it, which the upstream
    /// is told of.
    fn limit(
        &self,
        extras: Option<&Extras>,
        head: &mut Parts,
        entry: &Entry,
        body: &Replay,
    ) -> Option<Box<Deadline<N>>> {
        let retries = extras.and_then(|extras| extras.retries.as_ref());
        let per_try = retries.and_then(|policy| policy.per_try_timeout);
        let own = extras.and_then(|extras| extras.timeout);
        let asked = asked_within(entry, head);
        let whole = own.into_iter().chain(asked).min();
        let shortest = whole.into_iter().chain(per_try).min()?;
        headers::expect_within(&mut head.headers, shortest);
        if entry.is_grpc() {
            grpc::expect_within(&mut head.headers, shortest);
        }
        let clock = self.gateway.net.clone();
        let is_clients = asked.is_some_and(|asked| own.is_none_or(|own| asked < own));
        let deadline = |limit| Deadline::new(clock, limit, body.clone()).of_client(is_clients);
        whole.map(|limit| Box::new(deadline(limit)))
    }

    /// Turns what came of a request into what the client gets.
    fn conclude(
        &self,
        outcome: Outcome<N>,
        deadline: Option<Box<Deadline<N>>>,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let entry = Rc::clone(&responder.entry);
        let mut response = match outcome.answer {
            Ok(Answer::Exchange(exchange)) => self.pass_on(exchange, Source::Upstream, responder),
            Ok(Answer::Upgrade(upgraded)) => match *upgraded {
                Upgraded::Refused(exchange) => self.pass_on(*exchange, Source::Refused, responder),
                Upgraded::Switched { response, stream, remote, active } => {
                    self.note(remote, None, &entry);
                    // What has switched is no response that could be late.
                    return self.switch(response, stream, active, responder);
                }
            },
            Err(failure) => Self::fail(failure, responder),
        };
        match outcome.spent {
            Some(Spent::Attempts) => entry.flag(Flags::UPSTREAM_RETRY_LIMIT),
            Some(Spent::Retries) => entry.flag(Flags::UPSTREAM_OVERFLOW),
            None => {}
        }
        response.body_mut().limit(deadline);
        response
    }

    /// Hands the upstream's response to the client.
    fn pass_on<B>(
        &self,
        exchange: Exchange<N, B>,
        source: fn(upstream::Body<N, B>) -> Source<N>,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let time = self.note(exchange.remote, exchange.local, &responder.entry);
        let Responder { entry, clock, is_head } = responder;
        let (mut head, body) = exchange.response.into_parts();
        entry.answered(head.status, Flags::NONE, "via_upstream");
        if let Some(call) = entry.call() {
            call.ends_with(&head.headers);
        }
        headers::to_downstream(&mut head.headers, head.status, time);
        // The version is the hop's own; hyper writes the client's.
        head.version = Version::default();
        Response::from_parts(head, ResponseBody::new(source(body), entry, clock, is_head))
    }

    /// Answers 101 and remembers what to join the connection to.
    fn switch(
        &self,
        mut response: Response<()>,
        stream: Transport<N::Stream>,
        active: Counted<N>,
        responder: Responder<N>,
    ) -> Response<ResponseBody<N>> {
        let entry = Rc::clone(&responder.entry);
        entry.answered(response.status(), Flags::NONE, "via_upstream");
        headers::own(response.headers_mut());
        self.switched.replace(Some(Switched { stream, active, entry: Rc::clone(&entry) }));
        let (head, ()) = response.into_parts();
        Response::from_parts(head, ResponseBody::own(Bytes::new(), entry, responder.clock, true))
    }

    fn refuse(&self, refusal: &Refusal, responder: Responder<N>) -> Response<ResponseBody<N>> {
        if matches!(refusal, Refusal::Outdated(_)) {
            self.downstream.activity.retire();
        }
        responder.refuse(refusal)
    }

    fn fail(failure: Failure, responder: Responder<N>) -> Response<ResponseBody<N>> {
        let refusal = match failure {
            Failure::Upstream(error) => {
                responder.entry.tried(error.remote, None, None);
                if let Some(reason) = error.of_tls() {
                    responder.entry.not_secured(reason);
                }
                Refusal::Upstream(error)
            }
            Failure::AttemptTimeout(remote) => {
                responder.entry.tried(remote, None, None);
                Refusal::AttemptTimeout
            }
            Failure::Timeout(remote) => {
                responder.entry.tried(remote, None, None);
                Refusal::Timeout
            }
        };
        responder.refuse(&refusal)
    }

    /// Notes which endpoint answered, and tells how long that took in milliseconds.
    fn note(&self, remote: Address, local: Option<SocketAddr>, entry: &Entry) -> HeaderValue {
        let time = self.gateway.net.now() - entry.started();
        entry.tried(Some(remote), local, Some(time));
        milliseconds(time)
    }
}

/// How long the client of a gRPC call waits, if it says so.
fn asked_within(entry: &Entry, head: &Parts) -> Option<Duration> {
    entry.is_grpc().then(|| grpc::timeout(&head.headers)).flatten()
}

/// Most times are a digit long, which needs no allocation.
fn milliseconds(time: Duration) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match usize::try_from(milliseconds).ok().and_then(|index| DIGITS.get(index)) {
        Some(digit) => HeaderValue::from_static(digit),
        None => HeaderValue::from(milliseconds),
    }
}

/// Gives `head` `path` for its path, if there is one, and one place that says the host: a URI with
/// an authority overrules the Host header (RFC 9112, section 3.2.2).
fn take_path(head: &mut Parts, path: Option<PathAndQuery>) {
    if head.uri.authority().is_some() {
        head.headers.remove(HOST);
    }
    if let Some(path) = path {
        headers::set_path(head, path);
    }
}

/// The protocol that an HTTP/1.1 client asks to switch to, if it is one that is passed on. Any
/// other is ignored, as a server may (RFC 9110, section 7.8).
fn wanted_protocol(head: &Parts) -> Option<HeaderValue> {
    let protocol = head.headers.get(UPGRADE)?;
    let asks = head.version == Version::HTTP_11
        && head.method == Method::GET
        && names_upgrade(&head.headers)
        && protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    asks.then(|| protocol.clone())
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
}
