//! HTTP/1.1 towards endpoints: a thin codec of our own, in the request's own task.
//!
//! - hyper's client would cost a channel, a task and two copies per request; here the head goes
//!   straight into the send buffer and the answer is parsed where it was received.
//! - Requests are not pipelined: a connection belongs to one exchange at a time.

mod chunked;
mod head;
mod incoming;
mod request;
#[cfg(test)]
mod tests;

pub(super) use incoming::Incoming;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::http::{Method, Response, StatusCode, request::Parts};
use bytes::Bytes;

use crate::io::{Net, Stream};
use crate::snapshot::Field;

use super::body::Body;
use super::error::{Error, Kind, Retry, early_end};
use super::patience::Patience;
use super::pool::{Lease, Pools};
use super::transport::Transport;
use super::{Bounds, Counted, Exchange, Nothing, To, Upgraded};

#[cfg(feature = "bench")]
pub(crate) use self::head::read_head;
use self::head::{Head, Reader};
use self::request::{BodyFailed, Framing, Upload};

/// Interim responses (100, 103 and their like) that may come before the final one.
const INTERIM_MAX: u32 = 8;

/// Sends a request on `lease` and returns at the final response head.
pub(super) async fn send<N, B>(
    pools: &Rc<Pools<N>>,
    lease: Lease<N>,
    to: To<'_>,
    head: &Parts,
    body: B,
) -> Result<Exchange<N, B>, Error>
where
    N: Net,
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let framing = Framing::of(&body, &head.method);
    let upload = Upload::new(body, framing);
    let (own, bounds) = (to.own, Bounds::new(to));
    let mut attempt = Attempt { head, own, upload, upgrade: false, bounds };
    let (lease, head) = attempt.run(pools, lease, &to).await?;
    let remote = lease.active.remote;
    if head.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::at(remote, Kind::BadResponse("101 without a request to upgrade")));
    }
    Ok(attempt.into_exchange(pools, lease, head))
}

/// Sends a request on `lease` as one for another protocol.
pub(super) async fn upgrade<N: Net>(
    pools: &Rc<Pools<N>>,
    lease: Lease<N>,
    to: To<'_>,
    head: &Parts,
) -> Result<Upgraded<N>, Error> {
    let upload = Upload::new(Nothing, Framing::None);
    let (own, bounds) = (to.own, Bounds::new(to));
    let mut attempt = Attempt { head, own, upload, upgrade: true, bounds };
    let (lease, head) = attempt.run(pools, lease, &to).await?;
    if head.response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let exchange = attempt.into_exchange(pools, lease, head);
        return Ok(Upgraded::Refused(Box::new(exchange)));
    }
    let remote = lease.active.remote;
    let (stream, active) = (lease.stream, Counted { _active: lease.active, _life: lease.life });
    Ok(Upgraded::Switched { response: head.response, stream, remote, active })
}

/// A request up to its response head.
struct Attempt<'a, B> {
    head: &'a Parts,
    own: &'a [Field<'a>],
    upload: Upload<B>,
    upgrade: bool,
    bounds: Bounds,
}

impl<B: http_body::Body<Data = Bytes> + Unpin + 'static> Attempt<'_, B> {
    /// Gets the head over `lease`, or over a fresh connection if that one was dead already.
    async fn run<N: Net>(
        &mut self,
        pools: &Rc<Pools<N>>,
        mut lease: Lease<N>,
        to: &To<'_>,
    ) -> Result<(Lease<N>, Head), Error> {
        loop {
            match self.exchange(&pools.net, &mut lease).await {
                Ok(head) => return Ok((lease, head)),
                Err(error) if !lease.reused || error.retry == Retry::Never => {
                    return Err(self.last_word(error));
                }
                Err(_) => {}
            }
            pools.counters().upstream_retries.increment();
            // Drops the dead connection, keeps the request counted. Rare and large: not in the
            // future of every request.
            lease = Box::pin(pools.replace(lease, *to)).await?;
        }
    }

    /// On a fresh connection `IfReused` means no.
    fn last_word(&self, mut error: Error) -> Error {
        if error.retry == Retry::IfReused {
            error.retry = Retry::Never;
        }
        error
    }

    /// Writes the request and reads up to the final head.
    async fn exchange<N: Net>(&mut self, net: &N, lease: &mut Lease<N>) -> Result<Head, Error> {
        let remote = lease.active.remote;
        let written = lease.stream.append(|out| self.write(out));
        if let Err(error) = written {
            return Err(Error::unsent(Some(remote), Kind::Reset(error)));
        }
        let mut reader = Reader::new(self.bounds);
        let mut patience = Patience::new(net.clone(), self.bounds.stream_idle_timeout);
        let mut interim = 0;
        loop {
            let head =
                poll_fn(|cx| self.poll_head(&mut lease.stream, &mut reader, &mut patience, cx));
            let quiet = interim == 0;
            let head = head.await.map_err(|kind| {
                let unanswered = quiet && reader.is_empty() && matches!(kind, Kind::Reset(_));
                Error { retry: self.retry(unanswered), ..Error::at(remote, kind) }
            })?;
            let status = head.response.status();
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(head);
            }
            interim += 1;
            if interim > INTERIM_MAX {
                return Err(Error::at(remote, Kind::BadResponse("too many interim responses")));
            }
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        request::write_head(out, self.head, self.own, self.upload.framing());
        if self.upgrade {
            request::write_upgrade(out, self.head);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Sends what can be sent of the body while it waits for a head.
    fn poll_head<N: Net>(
        &mut self,
        stream: &mut Transport<N::Stream>,
        reader: &mut Reader,
        patience: &mut Patience<N>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Kind>> {
        let mut moved = false;
        if let Poll::Ready(Err(BodyFailed)) = self.upload.poll(stream, cx, &mut moved) {
            return Poll::Ready(Err(Kind::RequestBody));
        }
        if let Poll::Ready(done) = poll_read(stream, reader, &self.head.method, &mut moved, cx) {
            return Poll::Ready(done);
        }
        if moved {
            patience.renew();
        }
        patience.poll_spent(cx).map(|()| Err(self.upload.blame()))
    }

    /// Whether a request that got no answer may be sent again.
    fn retry(&self, unanswered: bool) -> Retry {
        const IDEMPOTENT: [Method; 6] = [
            Method::GET,
            Method::HEAD,
            Method::OPTIONS,
            Method::PUT,
            Method::DELETE,
            Method::TRACE,
        ];
        let safe = !self.upgrade && !self.upload.touched;
        if unanswered && safe && IDEMPOTENT.contains(&self.head.method) {
            Retry::IfReused
        } else {
            Retry::Never
        }
    }

    fn into_exchange<N: Net>(
        self,
        pools: &Rc<Pools<N>>,
        lease: Lease<N>,
        head: Head,
    ) -> Exchange<N, B> {
        let (remote, local) = (lease.active.remote, lease.stream.local());
        let (parts, ()) = head.response.into_parts();
        let mut incoming =
            Incoming::new(pools, lease, self.upload, (head.framing, head.keep), self.bounds);
        incoming.settle();
        let response = Response::from_parts(parts, Body::http1(incoming));
        Exchange { response, remote, local }
    }
}

/// Reads until a head is whole.
fn poll_read(
    stream: &mut impl Stream,
    reader: &mut Reader,
    method: &Method,
    moved: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<Head, Kind>> {
    loop {
        let lent = ready!(stream.poll_fill(cx)).map_err(Kind::Reset)?;
        if lent.is_empty() {
            return Poll::Ready(Err(early_end()));
        }
        let (used, head) = reader.feed(lent, method).map_err(Kind::BadResponse)?;
        stream.consume(used);
        *moved = true;
        if let Some(head) = head {
            return Poll::Ready(Ok(head));
        }
    }
}
