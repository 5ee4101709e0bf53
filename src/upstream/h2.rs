//! HTTP/2 towards endpoints, by hyper, on connections that many requests share.
//!
//! - One connection per worker and endpoint; one more when all are at the peer's stream limit, up
//!   to [`CONNECTIONS_MAX`], then requests wait for a stream.
//! - Only one connect per endpoint is under way; who needs it meanwhile waits for it.
//! - A connection that ended or is going away is left to its open streams and replaced.
//! - Where a cluster wants it, a connection that is silent is asked for a sign of life: one that
//!   gives none in time is closed, which resets its streams.
//! - Streaming both ways and trailers come with hyper; what is added here is the timeout.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ::http::request::Parts;
use ::http::uri::{Authority, Scheme};
use ::http::{Request, Response, Uri, header};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::client::conn::http2::{Builder, Connection, SendRequest};

use crate::address::Address;
use crate::io::Net;
use crate::snapshot::PoolLimits;

use super::adapt::{Adapted, Tasks, Timer};
use super::body::Body;
use super::endpoint::Active;
use super::error::{Error, Kind, Retry};
use super::patience::Patience;
use super::pool::{Lease, Pools};
use super::tally::{Count, Life};
use super::transport::Transport;
use super::{Bounds, Exchange, Reached, To};

/// Shared connections of one worker to one endpoint.
const CONNECTIONS_MAX: usize = 8;

/// Window of a connection: more than all streams can have. Requests of many clients share it, and
/// with a smaller one those of few who do not take their responses would hold up all others. What
/// may lie here is what the windows of the streams allow.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// The request body, of one type for all requests of a connection.
type Outgoing = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyFailed>>>;

/// The shared connections to one endpoint.
#[derive(Default)]
pub(super) struct Connections {
    open: RefCell<Vec<Rc<Shared>>>,
    /// A connect is under way.
    connecting: Cell<bool>,
    /// Who waits for it, each at its place.
    waiting: RefCell<Vec<Waker>>,
    /// How often those who wait were woken: a place from before is none any more.
    rounds: Cell<u64>,
    /// Connects that failed, for those who waited for one of them.
    failures: Cell<u64>,
    /// Why the last one failed; `None` for its timeout.
    failure: RefCell<Option<Failure>>,
}

/// Why a connect failed.
#[derive(Clone)]
enum Failure {
    Io(io::ErrorKind),
    Tls(Arc<str>),
}

/// One connection.
struct Shared {
    sender: SendRequest<Outgoing>,
    /// The address of our end.
    local: Option<SocketAddr>,
    streams: Cell<usize>,
    /// The peer's limit, as far as it is known.
    streams_max: Rc<Cell<usize>>,
    /// When it may be closed; the sweep moves it while streams are open.
    expires: Cell<Instant>,
    idle_timeout: Duration,
    /// Its part in the limits of its cluster, if it has any.
    life: Option<Box<Life>>,
}

/// Sends a request to an endpoint of `to` and returns at the response head.
pub(super) async fn send<N, B>(
    pools: &Rc<Pools<N>>,
    to: To<'_>,
    head: &Parts,
    body: B,
) -> Result<Exchange<N, B>, Error>
where
    N: Net,
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let active = pools.choose(to, head)?;
    let mut stream = open_stream(pools, &active, to).await?;
    let remote = active.remote;
    let progress = Rc::<Progress>::default();
    let mut request = outgoing(head, to, body, &progress, remote)?;
    let mut patience = Watch::new(&pools.net, to.limits.stream_idle_timeout, progress);
    loop {
        let fresh = stream.fresh;
        let answered = answer(&stream, request, &mut patience).await;
        match answered.map_err(|failed| *failed) {
            Ok(response) => {
                stream.shared.expires.set(pools.net.now() + stream.shared.idle_timeout);
                let local = stream.shared.local;
                let incoming =
                    |body| Incoming { body, _stream: stream, patience, active, ended: false };
                let response = response.map(|body| Body::http2(incoming(body)));
                return Ok(Exchange { response, remote, local });
            }
            // hyper gave it back: the connection was going away and none of it was sent.
            Err(Failed { unsent: Some(again), .. }) if !fresh => {
                pools.counters().upstream_retries.increment();
                request = again;
            }
            Err(Failed { kind, unsent }) => {
                let retry = if unsent.is_some() { Retry::IfUnsent } else { Retry::Never };
                return Err(Error { retry, ..Error::at(remote, kind) });
            }
        }
        stream = open_stream(pools, &active, to).await?;
    }
}

/// A request that got no response head.
struct Failed {
    kind: Kind,
    /// The request itself, if nothing of it was sent.
    unsent: Option<Request<Outgoing>>,
}

/// Sends `request` and waits for the head.
async fn answer<N: Net>(
    stream: &Stream,
    request: Request<Outgoing>,
    watch: &mut Watch<N>,
) -> Result<Response<hyper::body::Incoming>, Box<Failed>> {
    let mut sending = pin!(stream.shared.sender.clone().try_send_request(request));
    poll_fn(|cx| {
        if let Poll::Ready(result) = sending.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|mut failed| {
                let unsent = failed.take_message();
                Box::new(Failed { kind: watch.kind(&failed.into_error()), unsent })
            }));
        }
        watch.poll_spent(cx).map(|kind| Err(Box::new(Failed { kind, unsent: None })))
    })
    .await
}

/// The request as hyper wants it: absolute, without framing fields, the body boxed.
fn outgoing<B>(
    head: &Parts,
    to: To<'_>,
    body: B,
    progress: &Rc<Progress>,
    remote: Address,
) -> Result<Request<Outgoing>, Error>
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let mut parts = head.clone();
    let host = parts.headers.remove(header::HOST);
    let authority = host
        .and_then(|host| Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok())
        .or_else(|| parts.uri.authority().cloned())
        .or_else(|| match remote {
            Address::Ip(remote) => Authority::from_maybe_shared(remote.to_string()).ok(),
            Address::Pipe(_) => Some(Authority::from_static("localhost")),
        });
    let mut uri = parts.uri.into_parts();
    let is_secured = to.cluster.tls.is_some();
    uri.scheme = Some(if is_secured { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = authority;
    uri.path_and_query = uri.path_and_query.or(Some(::http::uri::PathAndQuery::from_static("/")));
    // Only a path that is neither empty nor `*` nor begins with a slash gets here wrong.
    parts.uri = Uri::from_parts(uri).map_err(|_| Error::unsent(Some(remote), Kind::RequestBody))?;
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT] {
        parts.headers.remove(name);
    }
    for (name, value) in to.own {
        parts.headers.insert(*name, (*value).clone());
    }
    let body: Outgoing = Box::pin(Observed { body, progress: Rc::clone(progress) });
    Ok(Request::from_parts(parts, body))
}

/// A stream on a connection with room, else on a new one.
async fn open_stream<N: Net>(
    pools: &Rc<Pools<N>>,
    active: &Active<N>,
    to: To<'_>,
) -> Result<Stream, Error> {
    let pool = to.cluster.traffic.as_ref().map(|traffic| &traffic.policy.pool);
    let mut pending = None;
    loop {
        let now = pools.net.now();
        if let Some(shared) = active
            .shared
            .with_room(now, pool, |open| open < CONNECTIONS_MAX && active.may_open(pool))
        {
            pools.counters().upstream_reused.increment();
            to.reach(Reached::Asked(active.remote));
            return Ok(Stream::new(shared, false));
        }
        if let (None, Some(pool), Some(tally)) = (&pending, pool, active.tally()) {
            let held = tally.hold(Count::Pending, pool.pending_max);
            pending = Some(held.ok_or_else(|| pools.overflow(Some(active.remote)))?);
        }
        if let Some(_connecting) = Connecting::begin(&active.shared) {
            let connected = connect(pools, active, to).await;
            let shared = connected.inspect_err(|error| active.shared.failed(error))?;
            if !active.is_retired.get() {
                active.shared.open.borrow_mut().push(Rc::clone(&shared));
                pools.start_sweeping();
            }
            return Ok(Stream::new(shared, true));
        }
        // Another request connects: this one waits as long for the endpoint.
        to.reach(Reached::Asked(active.remote));
        let failures = active.shared.failures.get();
        let mut place = None;
        poll_fn(|cx| active.shared.poll_connected(cx, &mut place)).await;
        // Waiting for one's own attempt would take as many timeouts as there are requests.
        if active.shared.failures.get() != failures {
            return Err(active.shared.failure(active.remote));
        }
    }
}

async fn connect<N: Net>(
    pools: &Rc<Pools<N>>,
    active: &Active<N>,
    to: To<'_>,
) -> Result<Rc<Shared>, Error> {
    let To { cluster, limits, .. } = to;
    let net = &pools.net;
    let life = active.life(cluster, net.now());
    let Lease { stream, life, .. } = pools.connect(active.again(), to, life).await?;
    let local = stream.local();
    let mut builder = Builder::new(Tasks(net.clone()));
    if let Some(pings) = cluster.traffic.as_ref().and_then(|traffic| traffic.policy.pool.pings) {
        builder
            .timer(Timer(net.bare()))
            .keep_alive_interval(pings.interval)
            .keep_alive_timeout(pings.timeout)
            .keep_alive_while_idle(true);
    }
    let shaken = builder
        .initial_stream_window_size(limits.h2_stream_window_bytes)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .handshake(Adapted::new(stream))
        .await;
    let (sender, connection) =
        shaken.map_err(|error| Error::unsent(Some(active.remote), kind(&error)))?;
    let streams_max = Rc::new(Cell::new(connection.current_max_send_streams()));
    net.spawn(drive(connection, Rc::clone(&streams_max)));
    let idle_timeout = Bounds::new(to).idle_timeout;
    let (expires, streams) = (Cell::new(net.now() + idle_timeout), Cell::new(0));
    Ok(Rc::new(Shared { sender, local, streams, streams_max, expires, idle_timeout, life }))
}

/// Runs `connection` until it ends and keeps `streams_max` up to date.
async fn drive<N: Net>(
    connection: Connection<Adapted<Transport<N::Stream>>, Outgoing, Tasks<N>>,
    streams_max: Rc<Cell<usize>>,
) {
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        let ended = connection.as_mut().poll(cx).map(|_why| ());
        streams_max.set(connection.current_max_send_streams());
        ended
    })
    .await;
}

/// What a failure of hyper means.
fn kind(error: &hyper::Error) -> Kind {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<h2::Error>().is_some_and(is_refusal) {
            return Kind::Refused;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            // What TLS says of it is to be told.
            let is_told = error.kind() == io::ErrorKind::InvalidData;
            let told = is_told.then(|| io::Error::new(error.kind(), error.to_string()));
            return Kind::Reset(told.unwrap_or_else(|| error.kind().into()));
        }
        cause = error.source();
    }
    if error.is_parse() {
        return Kind::BadResponse("HTTP/2 malformed");
    }
    Kind::Reset(io::ErrorKind::ConnectionReset.into())
}

/// Whether the endpoint says that it did nothing for the stream: it refused it, or goes away and
/// the stream is beyond the last one that it takes (RFC 9113, section 6.8). With any other reason
/// than that it goes away, streams before the last get the same error.
fn is_refusal(error: &h2::Error) -> bool {
    let goes_away = error.is_go_away() && error.is_remote();
    error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || goes_away && error.reason() == Some(h2::Reason::NO_ERROR)
}

impl Connections {
    pub(super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Lets go of connections that ended, and of those that were idle for long.
    pub(super) fn sweep(&self, now: Instant) {
        self.open.borrow_mut().retain(|shared| {
            if shared.streams.get() > 0 {
                shared.expires.set(now + shared.idle_timeout);
            }
            now < shared.expires.get() && !shared.is_spent(now)
        });
    }

    /// Lets go of all: each ends with its last stream.
    pub(super) fn let_go(&self) {
        drop(self.open.take());
    }

    /// The first connection that can take a stream; the least busy one if there can be no more than
    /// there are, which `may_open` tells of their number.
    fn with_room(
        &self,
        now: Instant,
        limits: Option<&PoolLimits>,
        may_open: impl FnOnce(usize) -> bool,
    ) -> Option<Rc<Shared>> {
        let spent: Vec<_> = {
            let mut open = self.open.borrow_mut();
            open.extract_if(.., |shared| shared.is_spent(now)).collect()
        };
        drop(spent);
        let open = self.open.borrow();
        let own_max = limits.and_then(|limits| limits.streams_max);
        let own_max = own_max.map_or(usize::MAX, |max| max as usize);
        let has_room =
            |shared: &&Rc<Shared>| shared.streams.get() < shared.streams_max.get().min(own_max);
        let free = open.iter().find(has_room);
        if free.is_none() && (open.is_empty() || may_open(open.len())) {
            return None;
        }
        free.or_else(|| open.iter().min_by_key(|shared| shared.streams.get())).cloned()
    }

    /// Tells those who wait for this connect.
    fn failed(&self, error: &Error) {
        self.failures.set(self.failures.get() + 1);
        self.failure.replace(match &error.kind {
            Kind::Connect(error) | Kind::Reset(error) => Some(Failure::Io(error.kind())),
            Kind::BadResponse(_) => Some(Failure::Io(io::ErrorKind::InvalidData)),
            Kind::Tls(reason) => Some(Failure::Tls(Arc::clone(reason))),
            Kind::ConnectTimeout
            | Kind::NoEndpoint
            | Kind::Overflow
            | Kind::Refused
            | Kind::Timeout
            | Kind::SlowClient
            | Kind::RequestBody => None,
        });
    }

    /// The last failure.
    fn failure(&self, remote: Address) -> Error {
        let kind = match self.failure.borrow().clone() {
            Some(Failure::Io(kind)) => Kind::Connect(kind.into()),
            Some(Failure::Tls(reason)) => Kind::Tls(reason),
            None => Kind::ConnectTimeout,
        };
        Error::unsent(Some(remote), kind)
    }

    /// Ready when no connect is under way. Who waits keeps its `place`, however often it is polled.
    fn poll_connected(&self, cx: &Context<'_>, place: &mut Option<(u64, usize)>) -> Poll<()> {
        if !self.connecting.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match *place {
            Some((round, index)) if round == self.rounds.get() => {
                waiting[index].clone_from(cx.waker());
            }
            Some(_) | None => {
                *place = Some((self.rounds.get(), waiting.len()));
                waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Shared {
    /// Whether it takes no more streams.
    fn is_spent(&self, now: Instant) -> bool {
        self.sender.is_closed() || self.life.as_ref().is_some_and(|life| life.is_over(now))
    }
}

/// The right to connect; whoever waits is woken when it is given up.
struct Connecting<'a>(&'a Connections);

impl<'a> Connecting<'a> {
    fn begin(connections: &'a Connections) -> Option<Self> {
        (!connections.connecting.replace(true)).then(|| Self(connections))
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.rounds.set(self.0.rounds.get() + 1);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// One stream of a connection: counted as long as this lives.
#[must_use]
struct Stream {
    shared: Rc<Shared>,
    /// The connection was made for it.
    fresh: bool,
}

impl Stream {
    fn new(shared: Rc<Shared>, fresh: bool) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        if let Some(life) = &shared.life {
            life.carry();
        }
        Self { shared, fresh }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.streams.set(self.shared.streams.get() - 1);
    }
}

/// The request body failed: the client's fault.
#[derive(Debug)]
struct BodyFailed;

impl std::fmt::Display for BodyFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request body failed")
    }
}

impl std::error::Error for BodyFailed {}

/// What became of a request body, which hyper sends elsewhere.
#[derive(Default)]
struct Progress {
    frames: Cell<u64>,
    /// The client is to send the next one.
    is_awaited: Cell<bool>,
    /// hyper resets the stream then, and forgets why.
    failed: Cell<bool>,
}

/// A request body that tells when it moves.
struct Observed<B> {
    body: B,
    progress: Rc<Progress>,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Observed<B> {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.progress.is_awaited.set(frame.is_pending());
        if let Poll::Ready(frame) = &frame {
            self.progress.frames.set(self.progress.frames.get() + 1);
            self.progress.failed.set(matches!(frame, Some(Err(_))));
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(|_| BodyFailed)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Patience with an exchange whose request body moves elsewhere.
struct Watch<N: Net> {
    patience: Patience<N>,
    progress: Rc<Progress>,
    seen: u64,
}

impl<N: Net> Watch<N> {
    fn new(net: &N, limit: Duration, progress: Rc<Progress>) -> Self {
        Self { patience: Patience::new(net.clone(), limit), progress, seen: 0 }
    }

    /// What a failure of hyper means for this exchange.
    fn kind(&self, error: &hyper::Error) -> Kind {
        if self.progress.failed.get() { Kind::RequestBody } else { kind(error) }
    }

    /// Ready when nothing has moved for too long, with whose fault that is.
    fn poll_spent(&mut self, cx: &mut Context<'_>) -> Poll<Kind> {
        if self.seen != self.progress.frames.get() {
            self.seen = self.progress.frames.get();
            self.patience.renew();
        }
        let is_awaited = self.progress.is_awaited.get();
        let kind = if is_awaited { Kind::SlowClient } else { Kind::Timeout };
        self.patience.poll_spent(cx).map(|()| kind)
    }
}

/// An HTTP/2 response body.
pub(super) struct Incoming<N: Net> {
    body: hyper::body::Incoming,
    /// Held to count.
    _stream: Stream,
    patience: Watch<N>,
    active: Active<N>,
    /// It failed: nothing more comes.
    ended: bool,
}

impl<N: Net> Incoming<N> {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let remote = self.active.remote;
        if let Poll::Ready(frame) = http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
            self.patience.patience.renew();
            self.ended = !matches!(frame, Some(Ok(_)));
            let failed = |error| Error::at(remote, self.patience.kind(&error));
            return Poll::Ready(frame.map(|frame| frame.map_err(failed)));
        }
        if self.patience.poll_spent(cx).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        Poll::Ready(Some(Err(Error::at(remote, Kind::Timeout))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ended || http_body::Body::is_end_stream(&self.body)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Spawn;
    use crate::io::pipe::Chunking;
    use crate::snapshot::{
        Cluster, Field, Limits, Pings, Traffic, TrafficPolicy, UpstreamProtocol,
    };
    use crate::upstream::Upstreams;
    use crate::upstream::world::{Fed, World, bare, cluster, poll_frame, telemetry, write};
    use ::http::{HeaderMap, HeaderValue};
    use hyper::server::conn::http2 as server;
    use hyper::service::service_fn;
    use std::convert::Infallible;

    type Sending = Pin<Box<dyn Future<Output = Result<Exchange<World, Fed>, Error>>>>;
    type Answer = Result<Response<hyper::body::Incoming>, Infallible>;

    struct Rig {
        world: World,
        upstreams: Upstreams<World>,
        cluster: Cluster,
        limits: Limits,
    }

    impl Rig {
        fn new() -> Self {
            let world = World::new(Chunking::UpTo(4096));
            let upstreams = Upstreams::new(world.clone(), telemetry());
            let cluster = cluster(1, UpstreamProtocol::Http2);
            Self { world, upstreams, cluster, limits: Limits::default() }
        }

        fn send(&self, request: Request<Fed>) -> Sending {
            let (upstreams, cluster) = (self.upstreams.clone(), self.cluster.clone());
            let limits = self.limits.clone();
            let (head, body) = request.into_parts();
            Box::pin(async move {
                let to = To::new(&cluster, &limits, 0);
                upstreams.send(to, &head, body).await
            })
        }

        /// Serves the next connection with `answer`, at most `streams` at a time.
        fn serve<F>(&self, streams: u32, answer: fn(Request<hyper::body::Incoming>) -> F)
        where
            F: Future<Output = Answer> + 'static,
        {
            let (_, end) = self.world.accept();
            let serving = server::Builder::new(Tasks(self.world.clone()))
                .max_concurrent_streams(streams)
                .serve_connection(Adapted::new(end), service_fn(answer));
            self.world.spawn(async move { drop(serving.await) });
        }

        fn finish(&self, sending: &mut Sending) -> Result<Exchange<World, Fed>, Error> {
            match self.world.settle(sending) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => panic!("no outcome yet"),
            }
        }

        /// Sends `request` on a new connection that echoes.
        fn echoed(&self, request: Request<Fed>) -> Exchange<World, Fed> {
            let mut sending = self.send(request);
            assert!(self.world.settle(&mut sending).is_pending());
            self.serve(100, echo);
            self.finish(&mut sending).unwrap()
        }
    }

    /// Gives back body and trailers, and says what it was asked.
    async fn echo(request: Request<hyper::body::Incoming>) -> Answer {
        let uri = request.uri().to_string();
        let length = request.headers().get(header::CONTENT_LENGTH).cloned();
        let mut response = Response::new(request.into_body());
        response.headers_mut().insert("x-uri", uri.parse().unwrap());
        if let Some(length) = length {
            response.headers_mut().insert("x-length", length);
        }
        Ok(response)
    }

    async fn never(_: Request<hyper::body::Incoming>) -> Answer {
        std::future::pending().await
    }

    async fn frame(exchange: &mut Exchange<World, Fed>) -> Option<Result<Frame<Bytes>, Error>> {
        poll_fn(|cx| poll_frame(exchange, cx)).await
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn fields_beside_the_head_are_sent_with_it() {
        let (head, ()) = Request::get("/").header("x-a", "1").body(()).unwrap().into_parts();
        let (value, remote) = (HeaderValue::from_static("2"), Address::from(([10, 0, 0, 1], 80)));
        let own: [Field<'_>; 1] = [(&header::VIA, &value)];
        let (cluster, limits) = (cluster(1, UpstreamProtocol::Http2), Limits::default());
        let to = To { own: &own, ..To::new(&cluster, &limits, 0) };
        let sent = outgoing(&head, to, Fed::whole([]), &Rc::default(), remote).unwrap();
        assert_eq!(
            (&sent.headers()["x-a"], &sent.headers()["via"]),
            (&head.headers["x-a"], &value)
        );
    }

    #[test]
    fn bodies_and_trailers_stream_both_ways() {
        let rig = Rig::new();
        let body = Fed::default();
        let mut request = bare("POST");
        request.headers_mut().insert(header::CONTENT_LENGTH, "99".parse().unwrap());
        *request.body_mut() = body.clone();
        let mut exchange = rig.echoed(request);
        assert_eq!(exchange.response.headers()["x-uri"], "http://a.example/");
        assert!(!exchange.response.headers().contains_key("x-length"));
        for text in ["one", "two"] {
            body.push(Ok(data(text)));
            let frame = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), text);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        body.push(Ok(Frame::trailers(trailers.clone())));
        body.end();
        let last = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
        assert_eq!(last.into_trailers().unwrap(), trailers);
        assert!(rig.world.finish(frame(&mut exchange)).is_none());
    }

    #[test]
    fn requests_share_a_connection() {
        let rig = Rig::new();
        let mut first: Vec<_> = (0..4).map(|_| rig.send(bare("GET"))).collect();
        for sending in &mut first {
            assert!(rig.world.settle(sending).is_pending());
        }
        rig.serve(100, echo);
        for sending in &mut first {
            rig.finish(sending).unwrap();
        }
        rig.finish(&mut rig.send(bare("GET"))).unwrap();
        assert_eq!(rig.world.connects(), 1);
    }

    #[test]
    fn a_full_connection_gets_another_beside_it() {
        let rig = Rig::new();
        let mut first = rig.send(bare("GET"));
        assert!(rig.world.settle(&mut first).is_pending());
        rig.serve(1, never);
        assert!(rig.world.settle(&mut first).is_pending());
        let mut second = rig.send(bare("GET"));
        assert!(rig.world.settle(&mut second).is_pending());
        assert_eq!(rig.world.connects(), 2);
        rig.serve(1, echo);
        rig.finish(&mut second).unwrap();
    }

    #[test]
    fn a_closed_connection_is_replaced() {
        let rig = Rig::new();
        let mut first = rig.send(bare("GET"));
        assert!(rig.world.settle(&mut first).is_pending());
        drop(rig.world.accept());
        let error = rig.finish(&mut first).err().expect("an error");
        assert!(matches!(error.kind, Kind::Reset(_)), "{error}");
        rig.echoed(bare("GET"));
        assert_eq!(rig.world.connects(), 2);
    }

    #[test]
    fn what_an_endpoint_that_goes_away_did_not_take_is_refused() {
        const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
        const OK_ON_1: &[u8] = b"\0\0\x01\x01\x05\0\0\0\x01\x88";
        let go_away_after_1 =
            |reason| [b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0", &[reason][..]].concat();
        for (reason, is_refused, answers) in [(0, true, true), (0, true, false), (11, false, false)]
        {
            let rig = Rig::new();
            let mut both = [(); 2].map(|()| rig.send(bare("GET")));
            for sending in &mut both {
                assert!(rig.world.settle(sending).is_pending());
            }
            let (_, mut end) = rig.world.accept();
            write(&mut end, SETTINGS);
            for sending in &mut both {
                assert!(rig.world.settle(sending).is_pending());
            }
            write(&mut end, go_away_after_1(reason));
            let [first, second] = &mut both;
            let error = rig.finish(second).err().expect("an error");
            assert_eq!(matches!(error.kind, Kind::Refused), is_refused, "{error}");
            if answers {
                write(&mut end, OK_ON_1);
                rig.finish(first).unwrap();
                continue;
            }
            drop(end);
            let error = rig.finish(first).err().expect("an error");
            assert!(matches!(error.kind, Kind::Reset(_)), "it took that one: {error}");
        }
    }

    #[test]
    fn whoever_waits_for_a_connect_fails_with_it() {
        let rig = Rig::new();
        rig.world.black_hole();
        let mut waiting: Vec<_> = (0..3).map(|_| rig.send(bare("GET"))).collect();
        for sending in &mut waiting {
            assert!(rig.world.settle(sending).is_pending());
        }
        rig.world.advance(rig.cluster.connect_timeout);
        for sending in &mut waiting {
            let error = rig.finish(sending).err().expect("an error");
            assert!(matches!(error.kind, Kind::ConnectTimeout), "{error}");
        }
        assert_eq!(rig.world.connects(), 1);
    }

    #[test]
    fn who_waits_for_a_connect_waits_once_however_often_it_is_polled() {
        let (connections, cx) = (Connections::default(), Context::from_waker(Waker::noop()));
        let mut places = [None; 2];
        for round in 0..3 {
            let connecting = Connecting::begin(&connections).unwrap();
            for n in 0..100 {
                let place = &mut places[n % 2];
                assert!(connections.poll_connected(&cx, place).is_pending());
            }
            assert_eq!(connections.waiting.borrow().len(), 2, "{round}");
            drop(connecting);
        }
        assert!(connections.poll_connected(&cx, &mut places[0]).is_ready());
    }

    #[test]
    fn a_silent_endpoint_is_a_timeout() {
        let rig = Rig::new();
        let mut sending = rig.send(bare("GET"));
        assert!(rig.world.settle(&mut sending).is_pending());
        rig.serve(100, never);
        assert!(rig.world.settle(&mut sending).is_pending());
        rig.world.advance(rig.limits.stream_idle_timeout);
        let error = rig.finish(&mut sending).err().expect("an error");
        assert!(matches!(error.kind, Kind::Timeout), "{error}");
    }

    #[test]
    fn a_failed_request_body_is_the_clients_fault() {
        let rig = Rig::new();
        let body = Fed::default();
        let mut request = bare("POST");
        *request.body_mut() = body.clone();
        let mut sending = rig.send(request);
        assert!(rig.world.settle(&mut sending).is_pending());
        rig.serve(100, never);
        assert!(rig.world.settle(&mut sending).is_pending());
        body.push(Err(io::ErrorKind::ConnectionReset.into()));
        let error = rig.finish(&mut sending).err().expect("an error");
        assert!(matches!(error.kind, Kind::RequestBody), "{error}");
    }

    #[test]
    fn an_idle_connection_is_closed_by_the_sweep() {
        let rig = Rig::new();
        drop(rig.echoed(bare("GET")));
        rig.world.advance(rig.limits.upstream_idle_timeout);
        rig.world.idle();
        rig.echoed(bare("GET"));
        assert_eq!(rig.world.connects(), 2);
    }

    const PINGS: Pings =
        Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };

    /// A rig whose connections are asked for signs of life.
    fn pinging() -> Rig {
        let mut rig = Rig::new();
        let pool = PoolLimits { pings: Some(PINGS), ..PoolLimits::default() };
        let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
        rig.cluster.traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
        rig
    }

    #[test]
    fn a_connection_that_answers_no_ping_is_closed_and_its_streams_are_reset() {
        let rig = pinging();
        let mut sendings = [rig.send(bare("GET")), rig.send(bare("GET"))];
        for sending in &mut sendings {
            assert!(rig.world.settle(sending).is_pending());
        }
        // Nobody reads there.
        let (_, _end) = rig.world.accept();
        for wait in [PINGS.interval, PINGS.timeout - Duration::from_millis(1)] {
            rig.world.advance(wait);
            assert!(rig.world.settle(&mut sendings[0]).is_pending());
        }
        rig.world.advance(Duration::from_millis(1));
        for sending in &mut sendings {
            let error = rig.finish(sending).err().expect("an error");
            assert!(matches!(error.kind, Kind::Reset(_)), "{error}");
        }
        rig.echoed(bare("GET"));
        assert_eq!(rig.world.connects(), 2);
    }

    #[test]
    fn a_connection_that_answers_pings_stays_with_streams_and_without() {
        let rig = pinging();
        let body = Fed::default();
        let mut request = bare("POST");
        *request.body_mut() = body.clone();
        let mut exchange = rig.echoed(request);
        for _ in 0..5 {
            rig.world.advance(PINGS.interval);
            rig.world.idle();
        }
        body.push(Ok(data("late")));
        body.end();
        let frame = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "late");
        drop(exchange);
        for _ in 0..5 {
            rig.world.advance(PINGS.interval);
            rig.world.idle();
        }
        let mut again = rig.send(bare("GET"));
        assert_eq!(rig.finish(&mut again).unwrap().response.status(), 200);
        assert_eq!(rig.world.connects(), 1);
    }
}
