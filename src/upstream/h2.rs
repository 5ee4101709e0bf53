//! HTTP/2 towards endpoints, by hyper, on connections that many requests share.
//!
//! - One connection per worker and endpoint; one more when all are at the peer's stream limit, up
//!   to [`CONNECTIONS_MAX`], then requests wait for a stream.
//! - Only one connect per endpoint is under way; who needs it meanwhile waits for it.
//! - A connection that ended or is going away is left to its open streams and replaced.
//! - Streaming both ways and trailers come with hyper; what is added here is the timeout.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ::http::uri::{Authority, Scheme};
use ::http::{Request, Response, Uri, header};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::client::conn::http2::{Builder, Connection, SendRequest};

use crate::io::Net;
use crate::snapshot::{Cluster, Limits};

use super::Exchange;
use super::adapt::{Adapted, Tasks};
use super::body::Body;
use super::error::{Error, Kind, Retry};
use super::patience::Patience;
use super::pool::{Active, Pools};

/// Shared connections of one worker to one endpoint.
const CONNECTIONS_MAX: usize = 8;

/// The request body, of one type for all requests of a connection.
type Outgoing = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyFailed>>>;

/// The shared connections to one endpoint.
#[derive(Default)]
pub(super) struct Connections {
    open: RefCell<Vec<Rc<Shared>>>,
    /// A connect is under way.
    connecting: Cell<bool>,
    /// Who waits for it.
    waiting: RefCell<Vec<Waker>>,
}

/// One connection.
struct Shared {
    sender: SendRequest<Outgoing>,
    streams: Cell<usize>,
    /// The peer's limit, as far as it is known.
    streams_max: Rc<Cell<usize>>,
    /// When it may be closed; the sweep moves it while streams are open.
    expires: Cell<Instant>,
    idle_timeout: Duration,
}

/// Sends `request` to an endpoint of `cluster` and returns at the response head.
pub(super) async fn send<N, B>(
    pools: &Rc<Pools<N>>,
    cluster: &Cluster,
    limits: &Limits,
    request: Request<B>,
) -> Result<Exchange<N, B>, Error>
where
    N: Net,
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let (active, mut stream) = open(pools, cluster, limits).await?;
    let remote = active.remote;
    let progress = Rc::new(Cell::new(0));
    let mut request = outgoing(request, &progress, remote)?;
    let mut patience = Watch::new(&pools.net, limits.stream_idle_timeout, progress);
    loop {
        let fresh = stream.fresh;
        let answered = answer(&stream, request, &mut patience).await;
        match answered.map_err(|failed| *failed) {
            Ok(response) => {
                stream.shared.expires.set(pools.net.now() + stream.shared.idle_timeout);
                let incoming =
                    |body| Incoming { body, _stream: stream, patience, active, ended: false };
                let response = response.map(|body| Body::http2(incoming(body)));
                return Ok(Exchange { response, remote, local: None });
            }
            // hyper gave it back: the connection was going away and none of it was sent.
            Err(Failed { unsent: Some(again), .. }) if !fresh => request = again,
            Err(Failed { kind, unsent }) => {
                let retry = if unsent.is_some() { Retry::IfUnsent } else { Retry::Never };
                return Err(Error { retry, ..Error::at(remote, kind) });
            }
        }
        stream = open_stream(pools, &active, cluster, limits).await?;
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
                Box::new(Failed { kind: kind(&failed.into_error()), unsent })
            }));
        }
        let spent = watch.poll_spent(cx);
        spent.map(|()| Err(Box::new(Failed { kind: Kind::Timeout, unsent: None })))
    })
    .await
}

/// The request as hyper wants it: absolute, without framing fields, the body boxed.
fn outgoing<B>(
    request: Request<B>,
    progress: &Rc<Cell<u64>>,
    remote: std::net::SocketAddr,
) -> Result<Request<Outgoing>, Error>
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let (mut parts, body) = request.into_parts();
    let host = parts.headers.remove(header::HOST);
    let authority = host
        .and_then(|host| Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok())
        .or_else(|| parts.uri.authority().cloned())
        .or_else(|| Authority::from_maybe_shared(remote.to_string()).ok());
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = authority;
    uri.path_and_query = uri.path_and_query.or(Some(::http::uri::PathAndQuery::from_static("/")));
    // Only a path that is neither empty nor `*` nor begins with a slash gets here wrong.
    parts.uri = Uri::from_parts(uri).map_err(|_| Error::unsent(Some(remote), Kind::RequestBody))?;
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT] {
        parts.headers.remove(name);
    }
    let body: Outgoing = Box::pin(Observed { body, progress: Rc::clone(progress) });
    Ok(Request::from_parts(parts, body))
}

/// A stream at one endpoint, or at one other when the first cannot be connected.
async fn open<N: Net>(
    pools: &Rc<Pools<N>>,
    cluster: &Cluster,
    limits: &Limits,
) -> Result<(Active<N>, Stream), Error> {
    let active = pools.choose(cluster, None)?;
    let failed = match open_stream(pools, &active, cluster, limits).await {
        Ok(stream) => return Ok((active, stream)),
        Err(failed) if cluster.endpoints.len() > 1 => failed,
        Err(failed) => return Err(failed),
    };
    let active = pools.choose(cluster, failed.remote)?;
    let stream = open_stream(pools, &active, cluster, limits).await?;
    Ok((active, stream))
}

/// A stream on a connection with room, else on a new one.
async fn open_stream<N: Net>(
    pools: &Rc<Pools<N>>,
    active: &Active<N>,
    cluster: &Cluster,
    limits: &Limits,
) -> Result<Stream, Error> {
    loop {
        if let Some(shared) = active.shared.with_room() {
            return Ok(Stream::new(shared, false));
        }
        if let Some(_connecting) = Connecting::begin(&active.shared) {
            let shared = connect(pools, active, cluster, limits).await?;
            active.shared.open.borrow_mut().push(Rc::clone(&shared));
            pools.start_sweeping();
            return Ok(Stream::new(shared, true));
        }
        poll_fn(|cx| active.shared.poll_connected(cx)).await;
    }
}

async fn connect<N: Net>(
    pools: &Rc<Pools<N>>,
    active: &Active<N>,
    cluster: &Cluster,
    limits: &Limits,
) -> Result<Rc<Shared>, Error> {
    let net = &pools.net;
    let stream = pools.connect(active.again(), cluster).await?.stream;
    let shaken = Builder::new(Tasks(net.clone()))
        .initial_stream_window_size(limits.h2_stream_window_bytes)
        .initial_connection_window_size(limits.h2_connection_window_bytes)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .handshake(Adapted::new(stream))
        .await;
    let (sender, connection) =
        shaken.map_err(|error| Error::unsent(Some(active.remote), kind(&error)))?;
    let streams_max = Rc::new(Cell::new(connection.current_max_send_streams()));
    net.spawn(drive(connection, Rc::clone(&streams_max)));
    let idle_timeout = limits.upstream_idle_timeout;
    let expires = Cell::new(net.now() + idle_timeout);
    Ok(Rc::new(Shared { sender, streams: Cell::new(0), streams_max, expires, idle_timeout }))
}

/// Runs `connection` until it ends and keeps `streams_max` up to date.
async fn drive<N: Net>(
    connection: Connection<Adapted<N::Stream>, Outgoing, Tasks<N>>,
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
        if error.is::<BodyFailed>() {
            return Kind::RequestBody;
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Kind::Reset(error.kind().into());
        }
        cause = error.source();
    }
    if error.is_parse() {
        return Kind::BadResponse("HTTP/2 malformed");
    }
    Kind::Reset(std::io::ErrorKind::ConnectionReset.into())
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
            now < shared.expires.get() && !shared.sender.is_closed()
        });
    }

    /// The first connection that can take a stream; the least busy one if there can be no more.
    fn with_room(&self) -> Option<Rc<Shared>> {
        let mut open = self.open.borrow_mut();
        open.retain(|shared| !shared.sender.is_closed());
        let free = open.iter().find(|shared| shared.streams.get() < shared.streams_max.get());
        if free.is_none() && open.len() < CONNECTIONS_MAX {
            return None;
        }
        free.or_else(|| open.iter().min_by_key(|shared| shared.streams.get())).cloned()
    }

    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.connecting.get() {
            return Poll::Ready(());
        }
        self.waiting.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }
}

/// The right to connect; whoever waits is woken when it is given up.
struct Connecting<'a>(&'a Connections);

impl<'a> Connecting<'a> {
    fn begin(connections: &'a Connections) -> Option<Self> {
        (!connections.connecting.replace(true)).then_some(Self(connections))
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
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

/// A request body that tells when it moves.
struct Observed<B> {
    body: B,
    /// Frames so far.
    progress: Rc<Cell<u64>>,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Observed<B> {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.progress.set(self.progress.get() + 1);
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
    progress: Rc<Cell<u64>>,
    seen: u64,
}

impl<N: Net> Watch<N> {
    fn new(net: &N, limit: Duration, progress: Rc<Cell<u64>>) -> Self {
        Self { patience: Patience::new(net.clone(), limit), progress, seen: 0 }
    }

    fn poll_spent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.seen != self.progress.get() {
            self.seen = self.progress.get();
            self.patience.renew();
        }
        self.patience.poll_spent(cx)
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
            let failed = |error| Error::at(remote, kind(&error));
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
