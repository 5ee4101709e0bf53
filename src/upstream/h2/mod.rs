//! HTTP/2 towards endpoints, by hyper, on connections that many requests share.
//!
//! - One connection per worker and endpoint; one more when all are at the peer's stream limit, up
//!   to [`CONNECTIONS_MAX`], then requests wait for a stream.
//! - Only one connect per endpoint is under way; who needs it meanwhile waits for it.
//! - A connection that ended or is going away is left to its open streams and replaced.
//! - Where a cluster wants it, a connection that is silent is asked for a sign of life: one that
//!   gives none in time is closed, which resets its streams.
//! - Streaming both ways and trailers come with hyper; what is added here is the timeout.

mod body;
mod connections;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use ::http::request::Parts;
use ::http::uri::{Authority, Scheme};
use ::http::{Request, Response, Uri, header};
use bytes::Bytes;
use hyper::client::conn::http2::{Builder, Connection};

use crate::address::Address;
use crate::io::Net;

use super::adapt::{Adapted, Tasks, Timer};
use super::body::Body;
use super::endpoint::Active;
use super::error::{Error, Kind, Retry};
use super::pool::{Lease, Pools};
use super::tally::Count;
use super::transport::Transport;
use super::{Bounds, Exchange, Reached, To};

pub(super) use self::body::Incoming;
pub(super) use self::connections::Connections;

use self::body::{BodyFailed, Observed, Progress, Watch};
use self::connections::{Connecting, Shared, Stream};

/// Shared connections of one worker to one endpoint.
const CONNECTIONS_MAX: usize = 8;

/// Window of a connection: more than all streams can have. Requests of many clients share it, and
/// with a smaller one those of few who do not take their responses would hold up all others. What
/// may lie here is what the windows of the streams allow.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;

/// The request body, of one type for all requests of a connection.
type Outgoing = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyFailed>>>;

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
