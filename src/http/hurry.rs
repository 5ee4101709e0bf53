//! What a connection may take before its first request: less once the worker drains.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::time::Duration;

use crate::drain::Watch;
use crate::io::{Elapsed, Net, timeout};

/// Runs `future` for at most `limit`, and for at most `grace` once the drain has begun: whoever has
/// connected is still served, who keeps silent does not hold the drain up.
///
/// # Errors
/// [`Elapsed`] when it did not complete by then; it is dropped.
pub(crate) async fn hurry<N: Net, F: Future>(
    net: &N,
    watch: &Watch,
    (limit, grace): (Duration, Duration),
    future: F,
) -> Result<F::Output, Elapsed> {
    let mut limited = pin!(timeout(net, limit, future));
    let mut hurried: Option<N::Sleep> = None;
    poll_fn(|cx| {
        let done = limited.as_mut().poll(cx);
        if done.is_ready() {
            return done;
        }
        if hurried.is_none() && watch.poll_draining(cx).is_ready() {
            hurried = Some(net.sleep(grace));
        }
        match &mut hurried {
            Some(sleep) => Pin::new(sleep).poll(cx).map(|()| Err(Elapsed)),
            None => std::task::Poll::Pending,
        }
    })
    .await
}
