//! Copies of requests for clusters whose answers nobody sees.
//!
//! - A copy never delays or fails the request: it is sent by a task of its own.
//! - A request with a body is copied once the body has arrived and its own answer has begun, if all
//!   of the body was kept.
//! - Only so many copies are under way at a time; the others are dropped and counted.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use ::http::request::Parts;
use http_body::Body as _;

use super::Gateway;
use super::outgoing::{Copied, Replay};
use crate::io::{Elapsed, Net, timeout};
use crate::snapshot::{Limits, Mirror};
use crate::upstream::{Error, To};

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
        let active = gateway.mirrors.begin(limits.mirrors_max);
        let (Some(active), Some(body)) = (active, body.copied()) else {
            gateway.telemetry.counters().mirrors_dropped.increment();
            continue;
        };
        let (cluster, limits, head) = (Arc::clone(cluster), limits.clone(), head.clone());
        let (net, upstreams) = (gateway.net.clone(), gateway.upstreams.clone());
        gateway.net.spawn(async move {
            let to = To {
                cluster: &cluster,
                limits: &limits,
                generation,
                avoid: &[],
                own: &[],
                key: None,
                reached: None,
            };
            let asking = async {
                let exchange = upstreams.send(to, &head, body).await?;
                discard::<N>(exchange.response.into_body()).await
            };
            // Whatever comes of it: nobody waits for it.
            let _: Result<Result<(), Error>, Elapsed> =
                timeout(&net, limits.stream_idle_timeout, asking).await;
            drop(active);
        });
    }
}

/// Reads a response to its end, so that its connection can be used again.
async fn discard<N: Net>(mut body: crate::upstream::Body<N, Copied>) -> Result<(), Error> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frame?;
    }
    Ok(())
}
