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
    /// It is the client that waits no longer, not the route: no endpoint is late by it.
    is_clients: bool,
    /// Runs once the request is whole.
    sleep: Option<N::Sleep>,
}

impl<N: Net> Deadline<N> {
    pub(crate) fn new(clock: N, limit: Duration, request: Replay) -> Self {
        Self { clock, limit, request, is_clients: false, sleep: None }
    }

    /// Says whether it is the client's, instead of the route's.
    pub(crate) fn of_client(self, is_clients: bool) -> Self {
        Self { is_clients, ..self }
    }

    pub(crate) fn is_clients(&self) -> bool {
        self.is_clients
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
