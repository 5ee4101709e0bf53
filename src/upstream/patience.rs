//! How long an exchange may stand still.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::io::{Clock, Sleep};

/// Runs out when nothing moved for `limit` while somebody waited.
///
/// Moving the timer on every chunk would cost more than the chunk: it is set at the first wait and
/// moved only when it goes off too early.
pub(super) struct Patience<C: Clock> {
    clock: C,
    limit: Duration,
    /// When waiting began, `None` after something moved. A client that does not take the body is
    /// not waiting, so its slowness is not held against the endpoint.
    since: Option<Instant>,
    sleep: Option<C::Sleep>,
}

impl<C: Clock> Patience<C> {
    pub(super) fn new(clock: C, limit: Duration) -> Self {
        Self { clock, limit, since: None, sleep: None }
    }

    /// Something moved.
    pub(super) fn renew(&mut self) {
        self.since = None;
    }

    /// Nothing moves now; ready when that has lasted too long.
    pub(super) fn poll_spent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.clock.now();
        let deadline = *self.since.get_or_insert(now) + self.limit;
        if now >= deadline {
            return Poll::Ready(());
        }
        let sleep = self.sleep.get_or_insert_with(|| self.clock.sleep_until(deadline));
        while Pin::new(&mut *sleep).poll(cx).is_ready() {
            sleep.reset(deadline);
        }
        Poll::Pending
    }
}
