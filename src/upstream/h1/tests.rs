//! Exchanges with a scripted endpoint.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use proptest::prelude::*;

use crate::address::Address;
use crate::io::Stream;
use crate::io::pipe::{Chunking, End, HIGH_WATER_BYTES};
use crate::snapshot::{Cluster, Limits, PoolLimits, Traffic, TrafficPolicy, UpstreamProtocol};
use crate::telemetry::WorkerTelemetry;
use crate::upstream::error::Retry;
use crate::upstream::world::{Fed, World, bare, cluster, poll_frame, read, telemetry, write};
use crate::upstream::{Error, Exchange, Kind, To, Upgraded, Upstreams};

type Outcome = Result<Exchange<World, Fed>, Error>;
type Sending = Pin<Box<dyn Future<Output = Outcome>>>;

struct Rig {
    world: World,
    telemetry: Rc<WorkerTelemetry>,
    upstreams: Upstreams<World>,
    cluster: Cluster,
    limits: Limits,
}

impl Rig {
    fn new(chunking: Chunking) -> Self {
        let world = World::new(chunking);
        let telemetry = telemetry();
        let upstreams = Upstreams::new(world.clone(), Rc::clone(&telemetry));
        let cluster = cluster(1, UpstreamProtocol::Http1);
        Self { world, telemetry, upstreams, cluster, limits: Limits::default() }
    }

    fn roomy() -> Self {
        Self::new(Chunking::UpTo(16 * 1024))
    }

    fn send(&self, request: Request<Fed>) -> Sending {
        let (upstreams, cluster) = (self.upstreams.clone(), self.cluster.clone());
        let limits = self.limits.clone();
        let (head, body) = request.into_parts();
        Box::pin(async move {
            let to = To::new(&cluster, &limits, 0);
            upstreams.send(to, &head, body).await
        })
    }

    fn to<'a>(&'a self, avoid: &'a [Address]) -> To<'a> {
        To { avoid, ..To::new(&self.cluster, &self.limits, 0) }
    }

    /// Sends `request` and returns the endpoint's end of the new connection.
    fn start(&self, request: Request<Fed>) -> (Sending, End) {
        let mut sending = self.send(request);
        assert!(self.world.settle(&mut sending).is_pending());
        (sending, self.world.accept().1)
    }

    fn head(&self, sending: &mut Sending) -> Outcome {
        match self.world.settle(sending) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("no outcome yet"),
        }
    }

    /// A whole exchange on a new connection, which the endpoint keeps open.
    fn exchange(&self, method: &str, response: &str) -> (Result<Whole, Error>, End) {
        let (mut sending, mut end) = self.start(bare(method));
        write(&mut end, response);
        let whole = self.head(&mut sending).and_then(|exchange| self.collect(exchange));
        (whole, end)
    }

    fn collect(&self, mut exchange: Exchange<World, Fed>) -> Result<Whole, Error> {
        let status = exchange.response.status();
        let headers = exchange.response.headers().clone();
        let (mut data, mut trailers) = (Vec::new(), None);
        while let Some(frame) = self.world.finish(frame(&mut exchange)) {
            match frame?.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        assert!(exchange.response.body().is_end_stream());
        Ok(Whole { status, headers, data, trailers })
    }

    /// Whether the next request goes over the connection that is kept, not over a new one.
    fn reuses(&self) -> bool {
        let before = self.world.connects();
        let mut sending = self.send(bare("GET"));
        assert!(self.world.settle(&mut sending).is_pending());
        self.world.connects() == before
    }
}

#[derive(Debug, PartialEq)]
struct Whole {
    status: StatusCode,
    headers: HeaderMap,
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
}

fn frame(
    exchange: &mut Exchange<World, Fed>,
) -> impl Future<Output = Option<Result<Frame<Bytes>, Error>>> {
    std::future::poll_fn(move |cx| poll_frame(exchange, cx))
}

fn now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

fn uploading(method: &str, body: Fed) -> Request<Fed> {
    let mut request = bare(method);
    *request.body_mut() = body;
    request
}

fn data(bytes: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(bytes.into())
}

#[test]
fn a_response_is_read_at_every_split() {
    for chunking in [Chunking::Bytes, Chunking::UpTo(2), Chunking::UpTo(7), Chunking::UpTo(4096)] {
        let rig = Rig::new(chunking);
        let response = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: 1\r\nx-a:\r\n\r\nhello";
        let (whole, mut end) = rig.exchange("GET", response);
        let whole = whole.unwrap();
        assert_eq!(read(&mut end), "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n");
        assert_eq!((whole.status, &whole.data[..]), (StatusCode::OK, &b"hello"[..]));
        let values: Vec<_> = whole.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", ""]);
        assert!(rig.reuses());
    }
}

#[test]
fn a_small_body_is_one_frame_and_ends_with_it() {
    let bodies =
        ["content-length: 2\r\n\r\nok", "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"];
    for body in bodies {
        let rig = Rig::roomy();
        let (mut sending, mut end) = rig.start(bare("GET"));
        write(&mut end, format!("HTTP/1.1 200 OK\r\n{body}"));
        let mut exchange = rig.head(&mut sending).unwrap();
        assert!(!exchange.response.body().is_end_stream());
        let frame = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "ok");
        assert!(exchange.response.body().is_end_stream());
        assert!(rig.reuses(), "before the body is dropped");
    }
}

#[test]
fn connections_are_kept_only_after_a_clean_end() {
    let cases = [
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", true),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", true),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", true),
        ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", false),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", true),
        ("GET", "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 0\r\n\r\n", false),
        ("GET", "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
        ("GET", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n", true),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na", true),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naUNASKED", false),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n0\r\n\r\n", true),
    ];
    for (method, response, kept) in cases {
        let rig = Rig::roomy();
        let (whole, _end) = rig.exchange(method, response);
        whole.unwrap();
        assert_eq!(rig.reuses(), kept, "{method} {response:?}");
    }
}

#[test]
fn without_framing_the_body_ends_with_the_connection() {
    let rig = Rig::roomy();
    let (mut sending, mut end) = rig.start(bare("GET"));
    write(&mut end, "HTTP/1.1 200 OK\r\n\r\nall of ");
    let exchange = rig.head(&mut sending).unwrap();
    write(&mut end, "it");
    end.close_write();
    assert_eq!(rig.collect(exchange).unwrap().data, b"all of it");
    assert!(!rig.reuses());
}

#[test]
fn ambiguous_or_hostile_responses_are_errors() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
    let huge = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(60 * 1024));
    let endless = "x".repeat(61 * 1024);
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(9);
    let ok = "HTTP/1.1 200 OK\r\n";
    let cases = [
        format!("{ok}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{ok}content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
        format!("{ok}content-length: 5, 5\r\n\r\nhello"),
        format!("{ok}content-length: +5\r\n\r\nhello"),
        format!("{ok}content-length: 0x5\r\n\r\nhello"),
        format!("{ok}content-length: -1\r\n\r\n"),
        format!("{ok}content-length:\r\n\r\n"),
        format!("{ok}content-length: 18446744073709551616\r\n\r\n"),
        format!("{ok}transfer-encoding: gzip, chunked\r\n\r\n"),
        format!("{ok}transfer-encoding: identity\r\n\r\n"),
        format!("{ok}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"),
        format!("{ok}transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"),
        format!("{ok}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
        format!("{ok}content-length : 5\r\n\r\nhello"),
        format!("{ok}a: b\r\n c\r\n\r\n"),
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 099 Low\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(),
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        many,
        huge,
        endless,
        interim,
    ];
    for chunking in [Chunking::UpTo(5), Chunking::UpTo(16 * 1024)] {
        for response in &cases {
            let rig = Rig::new(chunking);
            let (whole, _end) = rig.exchange("GET", response);
            let error = whole.expect_err(response);
            assert!(matches!(error.kind, Kind::BadResponse(_)), "{error} {response:.60?}");
            assert_eq!(error.retry, Retry::Never);
            assert!(!rig.reuses(), "{response:.60?}");
        }
    }
}

#[test]
fn a_premature_end_is_an_error() {
    let responses = [
        "",
        "HTTP/1.1 20",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n",
    ];
    for response in responses {
        let rig = Rig::roomy();
        let (mut sending, mut end) = rig.start(bare("GET"));
        write(&mut end, response);
        end.close_write();
        let whole = rig.head(&mut sending).and_then(|exchange| rig.collect(exchange));
        let error = whole.expect_err(response);
        assert!(matches!(error.kind, Kind::Reset(_)), "{error} {response:?}");
        assert_eq!(error.retry, Retry::Never, "the connection was fresh");
    }
}

#[test]
fn a_dead_idle_connection_is_not_used() {
    let kept = || {
        let rig = Rig::roomy();
        let (_, end) = rig.exchange("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        (rig, end)
    };
    let (rig, end) = kept();
    drop(end);
    assert!(!rig.reuses(), "closed by the peer");
    assert_eq!(rig.telemetry.counters().upstream_connects.value(), 2);
    assert_eq!(rig.telemetry.counters().upstream_reused.value(), 0);
    let (rig, mut end) = kept();
    write(&mut end, "HTTP/1.1 408 Request Timeout\r\n\r\n");
    assert!(!rig.reuses(), "spoken to unasked");
    let (rig, _end) = kept();
    rig.world.advance(rig.limits.upstream_idle_timeout);
    assert!(!rig.reuses(), "expired");
}

#[test]
fn idle_connections_are_closed_by_the_sweep() {
    let rig = Rig::roomy();
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let (_, mut end) = rig.exchange("GET", ok);
    rig.world.advance(crate::upstream::pool::SWEEP_PERIOD);
    rig.world.idle();
    read(&mut end);
    assert!(now(|cx| end.poll_fill(cx).map(drop)).is_pending(), "not yet expired");
    rig.world.advance(rig.limits.upstream_idle_timeout);
    rig.world.idle();
    assert!(matches!(now(|cx| end.poll_fill(cx).map_ok(|lent| lent.len())), Poll::Ready(Ok(0))));
}

#[test]
fn no_more_than_the_limit_is_kept() {
    let mut rig = Rig::roomy();
    rig.limits.upstream_idle_max = 1;
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let (mut first, mut older) = rig.start(bare("GET"));
    let (mut second, mut newer) = rig.start(bare("GET"));
    write(&mut older, ok);
    rig.head(&mut first).unwrap();
    write(&mut newer, ok);
    rig.head(&mut second).unwrap();
    assert!(older.write(&[]).is_err(), "closed for the newer one");
    assert!(newer.write(&[]).is_ok());
}

/// Leaves a kept connection, starts `request` on it, then lets the endpoint close it.
fn closed_under(rig: &Rig, request: Request<Fed>) -> Sending {
    let (_, end) = rig.exchange("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let mut sending = rig.send(request);
    assert!(rig.world.settle(&mut sending).is_pending());
    drop(end);
    sending
}

#[test]
fn a_request_that_met_a_closing_connection_is_sent_again() {
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let rig = Rig::roomy();
        let mut sending = closed_under(&rig, bare(method));
        assert!(rig.world.settle(&mut sending).is_pending());
        let (_, mut end) = rig.world.accept();
        assert!(read(&mut end).starts_with(method));
        write(&mut end, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert!(rig.head(&mut sending).is_ok());
        let counters = rig.telemetry.counters();
        assert_eq!(counters.upstream_reused.value(), 1);
        assert_eq!(counters.upstream_retries.value(), 1);
        assert_eq!(counters.upstream_connects.value(), 2);
    }
}

#[test]
fn what_could_be_carried_out_twice_is_not_sent_again() {
    let touched = uploading("PUT", Fed::whole([data("x")]));
    for request in [bare("POST"), bare("PATCH"), touched] {
        let rig = Rig::roomy();
        let mut sending = closed_under(&rig, request);
        let error = rig.head(&mut sending).err().expect("an error");
        assert!(matches!((&error.kind, error.retry), (Kind::Reset(_), Retry::Never)), "{error}");
    }
}

#[test]
fn a_response_that_began_is_not_asked_for_again() {
    let rig = Rig::roomy();
    let (_, mut end) = rig.exchange("GET", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let mut sending = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut sending).is_pending());
    write(&mut end, "HTTP/1.1 2");
    drop(end);
    assert!(matches!(rig.head(&mut sending).err().unwrap().kind, Kind::Reset(_)));
}

#[test]
fn request_bodies_are_framed_once() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    trailers.insert("content-length", "9".parse().unwrap());
    let chunked = Fed::whole([data("hello"), data(""), data("!"), Frame::trailers(trailers)]);
    let cases = [
        (bare("POST"), "content-length: 0\r\n\r\n"),
        (bare("GET"), "\r\n"),
        (
            uploading("POST", chunked),
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nx-sum: 7\r\n\r\n",
        ),
    ];
    for (request, expected) in cases {
        let rig = Rig::roomy();
        let (_sending, mut end) = rig.start(request);
        let written = read(&mut end);
        let (_, rest) = written.split_once("host: a.example\r\n").unwrap();
        assert_eq!(rest, expected);
    }
}

#[test]
fn an_early_response_comes_while_the_body_goes_up() {
    let rig = Rig::roomy();
    let body = Fed::default();
    let (mut sending, mut end) = rig.start(uploading("POST", body.clone()));
    write(&mut end, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab");
    let mut exchange = rig.head(&mut sending).unwrap();
    assert!(rig.world.finish(frame(&mut exchange)).unwrap().is_ok());
    read(&mut end);
    body.push(Ok(data("late")));
    body.end();
    assert!(rig.world.settle(&mut Box::pin(frame(&mut exchange))).is_pending());
    assert_eq!(read(&mut end), "4\r\nlate\r\n0\r\n\r\n", "sent while the response is read");
    write(&mut end, "cd");
    assert_eq!(rig.collect(exchange).unwrap().data, b"cd");
    assert!(rig.reuses(), "both directions ended");
}

#[test]
fn a_connection_whose_request_did_not_end_is_not_kept() {
    let rig = Rig::roomy();
    let (mut sending, mut end) = rig.start(uploading("POST", Fed::default()));
    write(&mut end, "HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n");
    assert!(rig.collect(rig.head(&mut sending).unwrap()).is_ok());
    assert!(!rig.reuses());
}

#[test]
fn an_answer_is_read_although_the_endpoint_takes_no_more() {
    let rig = Rig::roomy();
    let body = Fed::default();
    let (mut sending, mut end) = rig.start(uploading("POST", body.clone()));
    write(&mut end, "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno");
    drop(end);
    body.push(Ok(data("unwanted")));
    let exchange = rig.head(&mut sending).unwrap();
    assert_eq!(rig.collect(exchange).unwrap().data, b"no");
}

#[test]
fn a_failed_request_body_is_not_the_endpoints_fault() {
    let rig = Rig::roomy();
    let body = Fed::default();
    let (mut sending, _end) = rig.start(uploading("POST", body.clone()));
    body.push(Err(std::io::ErrorKind::ConnectionReset.into()));
    assert!(matches!(rig.head(&mut sending).err().unwrap().kind, Kind::RequestBody));
    assert!(!rig.reuses());
}

#[test]
fn trailers_come_after_the_body() {
    let rig = Rig::roomy();
    let response = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n";
    let (whole, _end) = rig.exchange("GET", response);
    let whole = whole.unwrap();
    assert_eq!(whole.data, b"ok");
    assert_eq!(whole.trailers.unwrap()["grpc-status"], "0");
    assert!(!whole.headers.contains_key("transfer-encoding"));
    assert!(rig.reuses());
}

#[test]
fn a_slow_endpoint_makes_the_body_wait() {
    let rig = Rig::roomy();
    let piece = vec![b'x'; HIGH_WATER_BYTES];
    let body = Fed::whole((0..8).map(|_| data(piece.clone())));
    let (mut sending, mut end) = rig.start(uploading("POST", body.clone()));
    assert!(body.left() >= 6, "one piece fills the pipe");
    let mut received = 0;
    while body.left() > 0 {
        received += read(&mut end).len();
        assert!(rig.world.settle(&mut sending).is_pending());
    }
    received += read(&mut end).len();
    assert!(rig.world.settle(&mut sending).is_pending());
    received += read(&mut end).len();
    assert!(received > 8 * HIGH_WATER_BYTES);
}

#[test]
fn nothing_moving_for_long_is_a_timeout() {
    let rig = Rig::roomy();
    let almost = rig.limits.stream_idle_timeout - Duration::from_millis(1);
    let (mut sending, mut end) = rig.start(bare("GET"));
    rig.world.advance(almost);
    write(&mut end, "HTTP/1.1 ");
    assert!(rig.world.settle(&mut sending).is_pending());
    rig.world.advance(almost);
    write(&mut end, "200 OK\r\ncontent-length: 5\r\n\r\n");
    let mut exchange = rig.head(&mut sending).unwrap();
    assert!(rig.world.settle(&mut Box::pin(frame(&mut exchange))).is_pending());
    rig.world.advance(rig.limits.stream_idle_timeout);
    let error = rig.world.finish(frame(&mut exchange)).unwrap().unwrap_err();
    assert!(matches!(error.kind, Kind::Timeout));
    assert!(rig.world.finish(frame(&mut exchange)).is_none());
}

#[test]
fn a_client_that_reads_late_is_no_timeout() {
    let rig = Rig::roomy();
    let (mut sending, mut end) = rig.start(bare("GET"));
    write(&mut end, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na");
    let mut exchange = rig.head(&mut sending).unwrap();
    assert!(rig.world.finish(frame(&mut exchange)).unwrap().is_ok());
    rig.world.advance(rig.limits.stream_idle_timeout * 2);
    assert!(rig.world.settle(&mut Box::pin(frame(&mut exchange))).is_pending());
    write(&mut end, "b");
    assert!(rig.world.finish(frame(&mut exchange)).unwrap().is_ok());
}

#[test]
fn connects_fail_or_time_out_before_anything_is_sent() {
    let rig = Rig::roomy();
    rig.world.black_hole();
    let mut sending = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut sending).is_pending());
    rig.world.advance(rig.cluster.connect_timeout);
    let error = rig.head(&mut sending).err().unwrap();
    assert!(matches!((error.kind, error.retry), (Kind::ConnectTimeout, Retry::IfUnsent)));
    let rig = Rig::roomy();
    rig.world.refuse(rig.cluster.endpoints[0]);
    let error = rig.head(&mut rig.send(bare("GET"))).err().unwrap();
    assert!(matches!((error.kind, error.retry), (Kind::Connect(_), Retry::IfUnsent)));
}

#[test]
fn endpoints_are_avoided_while_there_are_others() {
    let mut rig = Rig::roomy();
    rig.cluster = cluster(2, UpstreamProtocol::Http1);
    let [avoided, other] = rig.cluster.endpoints[..] else { panic!("two") };
    let (head, ()) = Request::get("/").body(()).unwrap().into_parts();
    for (avoid, expected) in [(&[avoided][..], other), (&[other], avoided)] {
        for _ in 0..8 {
            let mut sending = Box::pin(rig.upstreams.send(rig.to(avoid), &head, Fed::whole([])));
            assert!(rig.world.settle(&mut sending).is_pending());
            assert_eq!(rig.world.accept().0, expected);
        }
    }
    let all = rig.cluster.endpoints.clone();
    let mut sending = Box::pin(rig.upstreams.send(rig.to(&all), &head, Fed::whole([])));
    assert!(rig.world.settle(&mut sending).is_pending(), "better one of them than none");
}

#[test]
fn no_endpoint_is_an_error_of_its_own() {
    let mut rig = Rig::roomy();
    rig.cluster.endpoints.clear();
    let error = rig.head(&mut rig.send(bare("GET"))).err().unwrap();
    assert!(matches!(error.kind, Kind::NoEndpoint));
}

#[test]
fn the_less_busy_endpoint_is_chosen() {
    let mut rig = Rig::roomy();
    rig.cluster = cluster(2, UpstreamProtocol::Http1);
    let start = || {
        let mut sending = rig.send(bare("GET"));
        assert!(rig.world.settle(&mut sending).is_pending());
        let (endpoint, end) = rig.world.accept();
        (endpoint.ip().unwrap().port(), sending, end)
    };
    let mut open: Vec<_> = (0..16).map(|_| start()).collect();
    let on_first = |open: &[(u16, Sending, End)]| open.iter().filter(|one| one.0 == 1).count();
    assert_eq!(on_first(&open), 8);
    open.retain(|one| one.0 != 1);
    let more: Vec<_> = (0..8).map(|_| start()).collect();
    assert_eq!(on_first(&more), 8, "those that ended no longer count");
}

#[test]
fn an_upgrade_yields_the_stream_with_what_came_after_the_head() {
    for chunking in [Chunking::Bytes, Chunking::UpTo(4096)] {
        let rig = Rig::new(chunking);
        let request = Request::get("/chat").header("host", "a.example").body(()).unwrap();
        let (head, ()) = request.into_parts();
        let mut sending = Box::pin(rig.upstreams.upgrade(rig.to(&[]), &head));
        assert!(rig.world.settle(&mut sending).is_pending());
        let (_, mut end) = rig.world.accept();
        let head = "GET /chat HTTP/1.1\r\nhost: a.example\r\n\
             connection: upgrade\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(read(&mut end), head);
        write(&mut end, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\nfirst");
        let Poll::Ready(Ok(Upgraded::Switched { response, mut stream, .. })) =
            rig.world.settle(&mut sending)
        else {
            panic!("not switched");
        };
        assert_eq!(response.headers()["upgrade"], "websocket");
        assert_eq!(read(&mut stream), "first");
    }
}

#[test]
fn a_refused_upgrade_is_an_exchange() {
    let rig = Rig::roomy();
    let (head, ()) = Request::get("/").body(()).unwrap().into_parts();
    let mut sending = Box::pin(rig.upstreams.upgrade(rig.to(&[]), &head));
    assert!(rig.world.settle(&mut sending).is_pending());
    let (_, mut end) = rig.world.accept();
    write(&mut end, "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    let Poll::Ready(Ok(Upgraded::Refused(exchange))) = rig.world.settle(&mut sending) else {
        panic!("not refused");
    };
    assert_eq!(exchange.response.status(), StatusCode::FORBIDDEN);
    assert!(rig.reuses());
}

#[test]
fn a_dropped_body_drops_the_connection() {
    let rig = Rig::roomy();
    let (mut sending, mut end) = rig.start(bare("GET"));
    write(&mut end, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel");
    drop(rig.head(&mut sending).unwrap());
    assert!(end.write(&[]).is_err());
    assert!(!rig.reuses());
}

prop_compose! {
    /// A valid response, its body and its trailers.
    fn response()(
        fields in prop::collection::vec(("[a-z]{1,8}", "[!-~]{0,12}"), 0..8),
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
        trailer in proptest::option::of("[a-z]{1,8}"),
        chunked in any::<bool>(),
    ) -> (Vec<u8>, Vec<u8>, usize) {
        let mut wire = b"HTTP/1.1 200 Fine\r\n".to_vec();
        for (name, value) in &fields {
            wire.extend_from_slice(format!("x-{name}: {value}\r\n").as_bytes());
        }
        let body = chunks.concat();
        if !chunked {
            wire.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            wire.extend_from_slice(&body);
            return (wire, body, 0);
        }
        wire.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n");
        if let Some(name) = &trailer {
            wire.extend_from_slice(format!("x-{name}: t\r\n").as_bytes());
        }
        wire.extend_from_slice(b"\r\n");
        (wire, body, usize::from(trailer.is_some()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    })]

    /// A response with bytes changed, cut, and followed by others, from an endpoint that then
    /// leaves: the exchange ends.
    #[test]
    fn no_response_is_too_odd(
        (mut wire, _, _) in response(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        behind in prop::collection::vec(any::<u8>(), 0..40),
        step in 1..64_usize,
    ) {
        for (place, byte) in flips {
            let place = place.index(wire.len());
            wire[place] = byte;
        }
        wire.truncate(cut.index(wire.len() + 1));
        wire.extend(behind);
        let rig = Rig::new(Chunking::UpTo(step));
        let (mut sending, mut end) = rig.start(bare("GET"));
        write(&mut end, wire);
        drop(end);
        if let Ok(mut exchange) = rig.head(&mut sending) {
            while let Some(Ok(_)) = rig.world.finish(frame(&mut exchange)) {}
        }
    }

    #[test]
    fn any_chunking_reads_the_same((wire, body, trailers) in response(), step in 1..64_usize) {
        let read = |chunking| {
            let rig = Rig::new(chunking);
            let (mut sending, mut end) = rig.start(bare("GET"));
            write(&mut end, &wire);
            let whole = rig.collect(rig.head(&mut sending).unwrap()).unwrap();
            prop_assert!(rig.reuses());
            Ok(whole)
        };
        let whole = read(Chunking::UpTo(usize::MAX))?;
        prop_assert_eq!(&whole.data, &body);
        prop_assert_eq!(whole.trailers.as_ref().map_or(0, HeaderMap::len), trailers);
        prop_assert_eq!(&read(Chunking::UpTo(step))?, &whole);
        prop_assert_eq!(&read(Chunking::Bytes)?, &whole);
    }
}

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A rig whose cluster has these limits.
fn limited(pool: PoolLimits) -> Rig {
    let mut rig = Rig::roomy();
    let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
    rig.cluster.traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
    rig
}

fn one_connection() -> PoolLimits {
    PoolLimits { connections_max: Some(1), ..PoolLimits::default() }
}

#[test]
fn who_waits_gets_the_connection_when_it_is_free() {
    let rig = limited(one_connection());
    let (mut first, mut end) = rig.start(bare("GET"));
    let mut second = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut second).is_pending());
    write(&mut end, PLAIN);
    rig.head(&mut first).unwrap();
    assert!(rig.world.settle(&mut second).is_pending(), "sent, not answered");
    write(&mut end, PLAIN);
    rig.head(&mut second).unwrap();
    assert_eq!(rig.world.connects(), 1);
}

#[test]
fn who_waits_connects_when_the_connection_is_gone() {
    let rig = limited(one_connection());
    let (mut first, end) = rig.start(bare("GET"));
    let mut second = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut second).is_pending());
    drop(end);
    assert!(rig.head(&mut first).is_err());
    assert!(rig.world.settle(&mut second).is_pending());
    write(&mut rig.world.accept().1, PLAIN);
    rig.head(&mut second).unwrap();
    assert_eq!(rig.world.connects(), 2);
}

#[test]
fn who_comes_later_does_not_overtake_those_who_wait() {
    let rig = limited(one_connection());
    let (mut first, mut end) = rig.start(bare("GET"));
    let mut waiting = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut waiting).is_pending());
    write(&mut end, PLAIN);
    rig.head(&mut first).unwrap();
    read(&mut end);
    let mut late = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut late).is_pending());
    assert_eq!(read(&mut end), "", "the connection is another's");
    for sending in [&mut waiting, &mut late] {
        assert!(rig.world.settle(sending).is_pending());
        assert!(!read(&mut end).is_empty(), "it is its turn");
        write(&mut end, PLAIN);
        rig.head(sending).unwrap();
    }
    assert_eq!(rig.world.connects(), 1);
}

#[test]
fn who_comes_later_does_not_take_the_room_of_those_who_wait() {
    let rig = limited(one_connection());
    let (mut first, end) = rig.start(bare("GET"));
    let mut waiting = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut waiting).is_pending());
    drop(end);
    assert!(rig.head(&mut first).is_err());
    let mut late = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut late).is_pending());
    assert_eq!(rig.world.connects(), 1, "there is room for one only");
    assert!(rig.world.settle(&mut waiting).is_pending());
    let mut end = rig.world.accept().1;
    for sending in [&mut waiting, &mut late] {
        assert!(rig.world.settle(sending).is_pending());
        write(&mut end, PLAIN);
        rig.head(sending).unwrap();
    }
    assert_eq!(rig.world.connects(), 2);
}

#[test]
fn nobody_waits_for_a_connection_for_ever() {
    let rig = limited(one_connection());
    let (_first, _end) = rig.start(bare("GET"));
    let mut second = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut second).is_pending());
    rig.world.advance(rig.limits.stream_idle_timeout);
    let error = rig.head(&mut second).err().expect("an error");
    assert!(matches!(error.kind, Kind::Timeout), "{error}");
}

#[test]
fn what_was_given_up_leaves_its_place() {
    let pool = PoolLimits { pending_max: Some(1), requests_max: Some(2), ..one_connection() };
    let rig = limited(pool);
    let (first, end) = rig.start(bare("GET"));
    for _ in 0..3 {
        let mut waiting = rig.send(bare("GET"));
        assert!(rig.world.settle(&mut waiting).is_pending());
        let error = rig.head(&mut rig.send(bare("GET"))).err().expect("an error");
        assert!(matches!(error.kind, Kind::Overflow), "{error}");
    }
    drop((first, end));
    let (mut next, mut end) = rig.start(bare("GET"));
    write(&mut end, PLAIN);
    rig.head(&mut next).unwrap();
}

#[test]
fn a_dead_connection_makes_room_for_the_one_that_replaces_it() {
    let rig = limited(one_connection());
    for _ in 0..3 {
        let (whole, end) = rig.exchange("GET", PLAIN);
        whole.unwrap();
        // While nothing looks: the next request finds out.
        drop(end);
    }
    assert_eq!(rig.world.connects(), 3);
}

#[test]
fn clusters_with_rules_do_not_take_the_connections_of_others() {
    let mut rig = Rig::roomy();
    let (whole, _kept) = rig.exchange("GET", PLAIN);
    whole.unwrap();
    let policy = TrafficPolicy { pool: one_connection(), ..TrafficPolicy::default() };
    rig.cluster.traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
    let (whole, _own) = rig.exchange("GET", PLAIN);
    whole.unwrap();
    assert_eq!(rig.world.connects(), 2);
}

#[test]
fn connections_to_endpoints_that_are_gone_make_room_for_others() {
    let world = World::new(Chunking::UpTo(16 * 1024));
    let upstreams = Upstreams::new(world.clone(), telemetry());
    let limits = Limits::default();
    let cluster_of = |ports: &[u16]| {
        let endpoints: Vec<_> = ports.iter().map(|p| Address::from(([127, 0, 0, 1], *p))).collect();
        let pool = PoolLimits { connections_max: Some(2), ..PoolLimits::default() };
        let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
        let traffic = Traffic::new(policy, Box::default(), None).among(&endpoints);
        let plain = cluster(1, UpstreamProtocol::Http1);
        Cluster { endpoints, traffic: Some(Box::new(traffic)), ..plain }
    };
    let (head, ()) = Request::get("/").body(()).unwrap().into_parts();
    // As many at once as there are connections then.
    let exchange = |count, generation, cluster: &Cluster| -> Vec<End> {
        let to = To::new(cluster, &limits, generation);
        let send = || Box::pin(upstreams.send(to, &head, Fed::whole([])));
        let mut sending: Vec<_> = (0..count).map(|_| send()).collect();
        let start = |sending| {
            assert!(world.settle(sending).is_pending());
            world.accept().1
        };
        let mut ends: Vec<_> = sending.iter_mut().map(start).collect();
        for (sending, end) in sending.iter_mut().zip(&mut ends) {
            write(end, PLAIN);
            assert!(matches!(world.settle(sending), Poll::Ready(Ok(_))));
        }
        ends
    };
    let is_closed = |end: &mut End| now(|cx| end.poll_fill(cx).map(|_| ())).is_ready();
    let are_closed = |ends: &mut Vec<End>| {
        ends.iter_mut().all(|end| {
            read(end);
            is_closed(end)
        })
    };
    let (former, newer) = (cluster_of(&[1]), cluster_of(&[2]));
    let mut before = exchange(2, 1, &former);
    let mut current = exchange(2, 2, &newer);
    assert!(are_closed(&mut before));
    let mut late = exchange(1, 1, &former);
    assert!(are_closed(&mut late), "it began before, and keeps nothing");
    assert!(!are_closed(&mut current));
}
