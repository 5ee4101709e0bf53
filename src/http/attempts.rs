//! One request towards its cluster, as often as its route's policy has it.
//!
//! ```text
//!   attempt -> response or failure -> passed on
//!      ^            \-> worth another, and the body can be repeated -> pause --\
//!      \-----------------------------------------------------------------------/
//! ```
//!
//! Deliberately not here: what is worth another attempt (`retry`), and what the client is told.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use ::http::request::Parts;
use ::http::{HeaderMap, Response, StatusCode};

use super::Gateway;
use super::deadline::Deadline;
use super::headers;
use super::outgoing::{Outgoing, Replay};
use super::retry::{self, Failure};
use crate::address::Address;
use crate::io::Net;
use crate::snapshot::{Cluster, Limits, RetryPolicy};
use crate::upstream::{Exchange, Reached, To, Upgraded};

/// A request that is to be answered.
pub(crate) struct Attempts<'a, N: Net> {
    pub(crate) gateway: &'a Gateway<N>,
    pub(crate) cluster: &'a Cluster,
    pub(crate) limits: &'a Limits,
    /// Which generation of the configuration it is answered by.
    pub(crate) generation: u64,
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) body: Replay,
    /// What leads it to an endpoint where the cluster hashes requests.
    pub(crate) key: Option<u64>,
    /// How far the attempt came that is under way.
    pub(crate) reached: Cell<Reached>,
    /// It asks for another protocol.
    pub(crate) upgrades: bool,
    /// It is gRPC, whose own status counts.
    pub(crate) is_grpc: bool,
}

/// What came of a request.
pub(crate) struct Outcome<N: Net> {
    pub(crate) answer: Result<Answer<N>, Failure>,
    /// Why it was not tried again where it was worth that.
    pub(crate) spent: Option<Spent>,
}

/// Why there was no other attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spent {
    /// None was left.
    Attempts,
    /// The cluster has as many retries under way as it may have.
    Retries,
}

/// A response.
#[allow(clippy::large_enum_variant, reason = "the large one is nearly every one")]
pub(crate) enum Answer<N: Net> {
    Exchange(Exchange<N, Outgoing>),
    /// To a request that asked for another protocol.
    Upgrade(Box<Upgraded<N>>),
}

impl<N: Net> Attempts<'_, N> {
    /// Answers the request within `deadline`, if there is one. `first` came of the first attempt,
    /// if that was made already.
    pub(crate) async fn run_within(
        &self,
        head: &mut Parts,
        first: Option<Result<Answer<N>, Failure>>,
        deadline: &mut Option<Box<Deadline<N>>>,
    ) -> Outcome<N> {
        let mut running = pin!(self.run(head, first));
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = running.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            let Some(deadline) = deadline else { return Poll::Pending };
            let passed = deadline.poll_passed(cx);
            passed.map(|()| {
                let late = match deadline.is_clients() {
                    true => self.reached.take().endpoint(),
                    false => self.note_late(),
                };
                Outcome { answer: Err(Failure::Timeout(late)), spent: None }
            })
        })
        .await
    }

    async fn run(
        &self,
        head: &mut Parts,
        mut first: Option<Result<Answer<N>, Failure>>,
    ) -> Outcome<N> {
        let (mut tried, mut asked) = (Vec::new(), Vec::new());
        let mut attempt = 1;
        let mut retrying = None;
        loop {
            let answer = match first.take() {
                Some(answer) => answer,
                None => self.attempt(head, (&tried, leave(self.policy, &asked))).await,
            };
            if !self.wants_another(&answer) || !self.body.can_repeat() {
                return Outcome { answer, spent: None };
            }
            if attempt > self.policy.retries {
                let spent = (self.policy.retries > 0).then_some(Spent::Attempts);
                return Outcome { answer, spent };
            }
            drop(retrying.take());
            retrying = self.gateway.upstreams.begin_retry(self.cluster);
            if retrying.is_none() {
                return Outcome { answer, spent: Some(Spent::Retries) };
            }
            if self.policy.avoids_tried {
                tried.extend(endpoint(&answer));
            }
            if self.policy.leaves_localities {
                asked.extend(endpoint(&answer));
            }
            self.body.stop();
            drop(answer);
            self.pause(attempt).await;
            attempt += 1;
            headers::count_attempt(&mut head.headers, attempt);
            self.gateway.telemetry.counters().upstream_retries.increment();
        }
    }

    /// One attempt, within the time that the policy gives it.
    async fn attempt(&self, head: &Parts, others: Others<'_>) -> Result<Answer<N>, Failure> {
        let net = &self.gateway.net;
        let limit = self.policy.per_try_timeout;
        let mut deadline = limit.map(|limit| Deadline::new(net.clone(), limit, self.body.clone()));
        let mut asking = pin!(self.ask(head, others));
        poll_fn(|cx| {
            if let Poll::Ready(answer) = asking.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            let Some(deadline) = &mut deadline else { return Poll::Pending };
            deadline.poll_passed(cx).map(|()| Err(Failure::AttemptTimeout(self.note_late())))
        })
        .await
    }

    /// The time of the attempt under way has passed; tells at which endpoint, if it has one.
    fn note_late(&self) -> Option<Address> {
        let reached = self.reached.take();
        self.gateway.upstreams.note_late(self.cluster, reached);
        reached.endpoint()
    }

    async fn ask(&self, head: &Parts, (avoid, leave): Others<'_>) -> Result<Answer<N>, Failure> {
        let (cluster, limits, generation) = (self.cluster, self.limits, self.generation);
        let (own, key, reached) = (&[], self.key, Some(&self.reached));
        let to = To { cluster, limits, generation, avoid, leave, own, key, reached };
        let upstreams = &self.gateway.upstreams;
        if self.upgrades {
            let upgraded = upstreams.upgrade(to, head).await;
            self.reached.take();
            return upgraded.map(Box::new).map(Answer::Upgrade).map_err(Failure::Upstream);
        }
        let exchange = upstreams.send(to, head, self.body.outgoing()).await;
        // What came of it has been noted.
        self.reached.take();
        exchange.map(Answer::Exchange).map_err(Failure::Upstream)
    }

    /// Whether `response` is worth another attempt that can be made.
    pub(crate) fn wants_another_after<B>(&self, response: &Response<B>) -> bool {
        let (status, headers) = (response.status(), response.headers());
        retry::after_response(self.policy, status, headers, self.is_grpc) && self.body.can_repeat()
    }

    fn wants_another(&self, answer: &Result<Answer<N>, Failure>) -> bool {
        match answer {
            Ok(answer) => {
                let (status, headers) = answer.head();
                retry::after_response(self.policy, status, headers, self.is_grpc)
            }
            Err(failure) => retry::after_failure(self.policy, failure),
        }
    }

    /// A random part of the longest pause, so that clients of a failed endpoint do not return at
    /// once.
    async fn pause(&self, attempt: u32) {
        let longest = self.policy.pause_max(attempt);
        self.gateway.net.sleep(longest.mul_f64(fastrand::f64())).await;
    }
}

impl<N: Net> Answer<N> {
    fn head(&self) -> (StatusCode, &HeaderMap) {
        match self {
            Self::Exchange(exchange) => (exchange.response.status(), exchange.response.headers()),
            Self::Upgrade(upgraded) => match &**upgraded {
                Upgraded::Switched { response, .. } => (response.status(), response.headers()),
                Upgraded::Refused(exchange) => {
                    (exchange.response.status(), exchange.response.headers())
                }
            },
        }
    }
}

/// Endpoints that are to be avoided, and those whose localities are to be left.
type Others<'a> = (&'a [Address], &'a [Address]);

/// How many attempts are made before the localities are left that they were made in, as in Istio.
const ATTEMPTS_PER_LOCALITY: usize = 2;

/// Those of `asked` whose localities are to be left.
fn leave<'a>(policy: &RetryPolicy, asked: &'a [Address]) -> &'a [Address] {
    match policy.leaves_localities {
        true => &asked[..asked.len() / ATTEMPTS_PER_LOCALITY * ATTEMPTS_PER_LOCALITY],
        false => &[],
    }
}

/// Where it came from, as far as it came.
fn endpoint<N: Net>(answer: &Result<Answer<N>, Failure>) -> Option<Address> {
    match answer {
        Ok(Answer::Exchange(exchange)) => Some(exchange.remote),
        Ok(Answer::Upgrade(upgraded)) => Some(match &**upgraded {
            Upgraded::Switched { remote, .. } => *remote,
            Upgraded::Refused(exchange) => exchange.remote,
        }),
        Err(Failure::Upstream(error)) => error.remote,
        Err(Failure::AttemptTimeout(remote) | Failure::Timeout(remote)) => *remote,
    }
}
