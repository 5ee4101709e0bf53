//! Copies of requests for clusters whose answers nobody sees.
//!
//! - A copy never delays or fails the request: it is sent by a task of its own.
//! - A copy goes out beside the request, its body as it passes. One that takes its body too slowly
//!   is broken off.
//! - Only so many copies are under way at a time; the others are dropped. Those and the ones that
//!   were broken off are counted.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use ::http::request::Parts;
use http_body::Body as _;

use super::Gateway;
use super::outgoing::Replay;
use super::tee::{Copied, End, Fate};
use crate::io::Net;
use crate::snapshot::{Limits, Mirror};
use crate::upstream::{Error, Kind, To};

/// The copies of one worker that are under way.
#[derive(Clone, Default)]
pub(crate) struct Mirrors(Rc<Cell<usize>>);

/// One copy, counted as long as this lives.
struct Active(Mirrors);

impl Mirrors {
    /// One more, unless there are `max`.
    fn begin(&self, max: usize) -> Option<Active> {
        let active = self.0.get();
        (active < max).then(|| {
            self.0.set(active + 1);
            Active(self.clone())
        })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// Sends a copy of the request to those of `mirrors` whose share it belongs to.
pub(crate) fn send<N: Net>(
    gateway: &Gateway<N>,
    mirrors: &[Mirror],
    (limits, generation): (&Limits, u64),
    head: &Parts,
    body: &Replay,
) {
    for mirror in mirrors {
        let Some(cluster) = &mirror.cluster else { continue };
        if !mirror.share.takes(fastrand::u32(..1_000_000)) {
            continue;
        }
        let telemetry = Rc::clone(&gateway.telemetry);
        let Some(active) = gateway.mirrors.begin(limits.mirrors_max) else {
            telemetry.counters().mirrors_dropped.increment();
            continue;
        };
        let body = body.copied(limits.retry_body_bytes_max);
        let fate = body.fate();
        let (cluster, limits, head) = (Arc::clone(cluster), limits.clone(), head.clone());
        let (net, upstreams) = (gateway.net.clone(), gateway.upstreams.clone());
        gateway.net.spawn(async move {
            let to = To::new(&cluster, &limits, generation);
            let asking = async {
                let exchange = upstreams.send(to, &head, body).await?;
                discard::<N>(exchange.response.into_body()).await
            };
            let limit = limits.stream_idle_timeout;
            if !follow(&net, limit, &fate, asking).await {
                telemetry.counters().mirrors_dropped.increment();
            }
            drop(active);
        });
    }
}

/// Waits for the end of a copy: as long as its body passes, and then for `limit`. Returns whether
/// all of the body came; whatever else comes of it, nobody waits for it.
async fn follow<N: Net>(
    net: &N,
    limit: Duration,
    fate: &Fate,
    asking: impl Future<Output = Result<(), Error>>,
) -> bool {
    let mut asking = pin!(asking);
    let mut late = None;
    poll_fn(|cx| {
        if let Poll::Ready(asked) = asking.as_mut().poll(cx) {
            let is_cut = matches!(asked, Err(Error { kind: Kind::RequestBody, .. }));
            return Poll::Ready(!is_cut);
        }
        // Its endpoint may take nothing, so that nothing looks at the body.
        if ready!(fate.poll_end(cx)) == End::Cut {
            return Poll::Ready(false);
        }
        Pin::new(late.get_or_insert_with(|| net.sleep(limit))).poll(cx).map(|()| true)
    })
    .await
}

/// Reads a response to its end, so that its connection can be used again.
async fn discard<N: Net>(mut body: crate::upstream::Body<N, Copied>) -> Result<(), Error> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frame?;
    }
    Ok(())
}
