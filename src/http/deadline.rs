//! Time limits that begin when the whole request has arrived, as Envoy's do.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::outgoing::Replay;
use crate::io::Net;

/// A limit on what comes after a request.
pub(crate) struct Deadline<N: Net> {
    clock: N,
    limit: Duration,
    request: Replay,
    /// Runs once the request is whole.
    sleep: Option<N::Sleep>,
}

impl<N: Net> Deadline<N> {
    pub(crate) fn new(clock: N, limit: Duration, request: Replay) -> Self {
        Self { clock, limit, request, sleep: None }
    }

    /// Ready when it has passed.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_none() {
            ready!(self.request.poll_whole(cx));
        }
        let sleep = self.sleep.get_or_insert_with(|| self.clock.sleep(self.limit));
        Pin::new(sleep).poll(cx)
    }
}
