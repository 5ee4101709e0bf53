//! Requests over HTTP/2 to an endpoint that hyper plays.

use std::task::{Context, Waker};
use std::time::Duration;

use http_body::Frame;

use super::*;
use crate::io::Spawn;
use crate::io::pipe::Chunking;
use crate::snapshot::{
    Cluster, Field, Limits, Pings, PoolLimits, Traffic, TrafficPolicy, UpstreamProtocol,
};
use crate::upstream::Upstreams;
use crate::upstream::world::{Fed, World, bare, cluster, poll_frame, telemetry, write};
use ::http::{HeaderMap, HeaderValue};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use std::convert::Infallible;

type Sending = Pin<Box<dyn Future<Output = Result<Exchange<World, Fed>, Error>>>>;
type Answer = Result<Response<hyper::body::Incoming>, Infallible>;

struct Rig {
    world: World,
    upstreams: Upstreams<World>,
    cluster: Cluster,
    limits: Limits,
}

impl Rig {
    fn new() -> Self {
        let world = World::new(Chunking::UpTo(4096));
        let upstreams = Upstreams::new(world.clone(), telemetry());
        let cluster = cluster(1, UpstreamProtocol::Http2);
        Self { world, upstreams, cluster, limits: Limits::default() }
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

    /// Serves the next connection with `answer`, at most `streams` at a time.
    fn serve<F>(&self, streams: u32, answer: fn(Request<hyper::body::Incoming>) -> F)
    where
        F: Future<Output = Answer> + 'static,
    {
        let (_, end) = self.world.accept();
        let serving = server::Builder::new(Tasks(self.world.clone()))
            .max_concurrent_streams(streams)
            .serve_connection(Adapted::new(end), service_fn(answer));
        self.world.spawn(async move { drop(serving.await) });
    }

    fn finish(&self, sending: &mut Sending) -> Result<Exchange<World, Fed>, Error> {
        match self.world.settle(sending) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("no outcome yet"),
        }
    }

    /// Sends `request` on a new connection that echoes.
    fn echoed(&self, request: Request<Fed>) -> Exchange<World, Fed> {
        let mut sending = self.send(request);
        assert!(self.world.settle(&mut sending).is_pending());
        self.serve(100, echo);
        self.finish(&mut sending).unwrap()
    }
}

/// Gives back body and trailers, and says what it was asked.
async fn echo(request: Request<hyper::body::Incoming>) -> Answer {
    let uri = request.uri().to_string();
    let length = request.headers().get(header::CONTENT_LENGTH).cloned();
    let mut response = Response::new(request.into_body());
    response.headers_mut().insert("x-uri", uri.parse().unwrap());
    if let Some(length) = length {
        response.headers_mut().insert("x-length", length);
    }
    Ok(response)
}

async fn never(_: Request<hyper::body::Incoming>) -> Answer {
    std::future::pending().await
}

async fn frame(exchange: &mut Exchange<World, Fed>) -> Option<Result<Frame<Bytes>, Error>> {
    poll_fn(|cx| poll_frame(exchange, cx)).await
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

#[test]
fn fields_beside_the_head_are_sent_with_it() {
    let (head, ()) = Request::get("/").header("x-a", "1").body(()).unwrap().into_parts();
    let (value, remote) = (HeaderValue::from_static("2"), Address::from(([10, 0, 0, 1], 80)));
    let own: [Field<'_>; 1] = [(&header::VIA, &value)];
    let (cluster, limits) = (cluster(1, UpstreamProtocol::Http2), Limits::default());
    let to = To { own: &own, ..To::new(&cluster, &limits, 0) };
    let sent = outgoing(&head, to, Fed::whole([]), &Rc::default(), remote).unwrap();
    assert_eq!((&sent.headers()["x-a"], &sent.headers()["via"]), (&head.headers["x-a"], &value));
}

#[test]
fn bodies_and_trailers_stream_both_ways() {
    let rig = Rig::new();
    let body = Fed::default();
    let mut request = bare("POST");
    request.headers_mut().insert(header::CONTENT_LENGTH, "99".parse().unwrap());
    *request.body_mut() = body.clone();
    let mut exchange = rig.echoed(request);
    assert_eq!(exchange.response.headers()["x-uri"], "http://a.example/");
    assert!(!exchange.response.headers().contains_key("x-length"));
    for text in ["one", "two"] {
        body.push(Ok(data(text)));
        let frame = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    body.push(Ok(Frame::trailers(trailers.clone())));
    body.end();
    let last = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap(), trailers);
    assert!(rig.world.finish(frame(&mut exchange)).is_none());
}

#[test]
fn requests_share_a_connection() {
    let rig = Rig::new();
    let mut first: Vec<_> = (0..4).map(|_| rig.send(bare("GET"))).collect();
    for sending in &mut first {
        assert!(rig.world.settle(sending).is_pending());
    }
    rig.serve(100, echo);
    for sending in &mut first {
        rig.finish(sending).unwrap();
    }
    rig.finish(&mut rig.send(bare("GET"))).unwrap();
    assert_eq!(rig.world.connects(), 1);
}

#[test]
fn a_full_connection_gets_another_beside_it() {
    let rig = Rig::new();
    let mut first = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut first).is_pending());
    rig.serve(1, never);
    assert!(rig.world.settle(&mut first).is_pending());
    let mut second = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut second).is_pending());
    assert_eq!(rig.world.connects(), 2);
    rig.serve(1, echo);
    rig.finish(&mut second).unwrap();
}

#[test]
fn a_closed_connection_is_replaced() {
    let rig = Rig::new();
    let mut first = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut first).is_pending());
    drop(rig.world.accept());
    let error = rig.finish(&mut first).err().expect("an error");
    assert!(matches!(error.kind, Kind::Reset(_)), "{error}");
    rig.echoed(bare("GET"));
    assert_eq!(rig.world.connects(), 2);
}

#[test]
fn what_an_endpoint_that_goes_away_did_not_take_is_refused() {
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    const OK_ON_1: &[u8] = b"\0\0\x01\x01\x05\0\0\0\x01\x88";
    let go_away_after_1 =
        |reason| [b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0", &[reason][..]].concat();
    for (reason, is_refused, answers) in [(0, true, true), (0, true, false), (11, false, false)] {
        let rig = Rig::new();
        let mut both = [(); 2].map(|()| rig.send(bare("GET")));
        for sending in &mut both {
            assert!(rig.world.settle(sending).is_pending());
        }
        let (_, mut end) = rig.world.accept();
        write(&mut end, SETTINGS);
        for sending in &mut both {
            assert!(rig.world.settle(sending).is_pending());
        }
        write(&mut end, go_away_after_1(reason));
        let [first, second] = &mut both;
        let error = rig.finish(second).err().expect("an error");
        assert_eq!(matches!(error.kind, Kind::Refused), is_refused, "{error}");
        if answers {
            write(&mut end, OK_ON_1);
            rig.finish(first).unwrap();
            continue;
        }
        drop(end);
        let error = rig.finish(first).err().expect("an error");
        assert!(matches!(error.kind, Kind::Reset(_)), "it took that one: {error}");
    }
}

#[test]
fn whoever_waits_for_a_connect_fails_with_it() {
    let rig = Rig::new();
    rig.world.black_hole();
    let mut waiting: Vec<_> = (0..3).map(|_| rig.send(bare("GET"))).collect();
    for sending in &mut waiting {
        assert!(rig.world.settle(sending).is_pending());
    }
    rig.world.advance(rig.cluster.connect_timeout);
    for sending in &mut waiting {
        let error = rig.finish(sending).err().expect("an error");
        assert!(matches!(error.kind, Kind::ConnectTimeout), "{error}");
    }
    assert_eq!(rig.world.connects(), 1);
}

#[test]
fn who_waits_for_a_connect_waits_once_however_often_it_is_polled() {
    let (connections, cx) = (Connections::default(), Context::from_waker(Waker::noop()));
    let mut places = [None; 2];
    for round in 0..3 {
        let connecting = Connecting::begin(&connections).unwrap();
        for n in 0..100 {
            let place = &mut places[n % 2];
            assert!(connections.poll_connected(&cx, place).is_pending());
        }
        assert_eq!(connections.waiting.borrow().len(), 2, "{round}");
        drop(connecting);
    }
    assert!(connections.poll_connected(&cx, &mut places[0]).is_ready());
}

#[test]
fn a_silent_endpoint_is_a_timeout() {
    let rig = Rig::new();
    let mut sending = rig.send(bare("GET"));
    assert!(rig.world.settle(&mut sending).is_pending());
    rig.serve(100, never);
    assert!(rig.world.settle(&mut sending).is_pending());
    rig.world.advance(rig.limits.stream_idle_timeout);
    let error = rig.finish(&mut sending).err().expect("an error");
    assert!(matches!(error.kind, Kind::Timeout), "{error}");
}

#[test]
fn a_failed_request_body_is_the_clients_fault() {
    let rig = Rig::new();
    let body = Fed::default();
    let mut request = bare("POST");
    *request.body_mut() = body.clone();
    let mut sending = rig.send(request);
    assert!(rig.world.settle(&mut sending).is_pending());
    rig.serve(100, never);
    assert!(rig.world.settle(&mut sending).is_pending());
    body.push(Err(io::ErrorKind::ConnectionReset.into()));
    let error = rig.finish(&mut sending).err().expect("an error");
    assert!(matches!(error.kind, Kind::RequestBody), "{error}");
}

#[test]
fn an_idle_connection_is_closed_by_the_sweep() {
    let rig = Rig::new();
    drop(rig.echoed(bare("GET")));
    rig.world.advance(rig.limits.upstream_idle_timeout);
    rig.world.idle();
    rig.echoed(bare("GET"));
    assert_eq!(rig.world.connects(), 2);
}

const PINGS: Pings = Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };

/// A rig whose connections are asked for signs of life.
fn pinging() -> Rig {
    let mut rig = Rig::new();
    let pool = PoolLimits { pings: Some(PINGS), ..PoolLimits::default() };
    let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
    rig.cluster.traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
    rig
}

#[test]
fn a_connection_that_answers_no_ping_is_closed_and_its_streams_are_reset() {
    let rig = pinging();
    let mut sendings = [rig.send(bare("GET")), rig.send(bare("GET"))];
    for sending in &mut sendings {
        assert!(rig.world.settle(sending).is_pending());
    }
    // Nobody reads there.
    let (_, _end) = rig.world.accept();
    for wait in [PINGS.interval, PINGS.timeout - Duration::from_millis(1)] {
        rig.world.advance(wait);
        assert!(rig.world.settle(&mut sendings[0]).is_pending());
    }
    rig.world.advance(Duration::from_millis(1));
    for sending in &mut sendings {
        let error = rig.finish(sending).err().expect("an error");
        assert!(matches!(error.kind, Kind::Reset(_)), "{error}");
    }
    rig.echoed(bare("GET"));
    assert_eq!(rig.world.connects(), 2);
}

#[test]
fn a_connection_that_answers_pings_stays_with_streams_and_without() {
    let rig = pinging();
    let body = Fed::default();
    let mut request = bare("POST");
    *request.body_mut() = body.clone();
    let mut exchange = rig.echoed(request);
    for _ in 0..5 {
        rig.world.advance(PINGS.interval);
        rig.world.idle();
    }
    body.push(Ok(data("late")));
    body.end();
    let frame = rig.world.finish(frame(&mut exchange)).unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "late");
    drop(exchange);
    for _ in 0..5 {
        rig.world.advance(PINGS.interval);
        rig.world.idle();
    }
    let mut again = rig.send(bare("GET"));
    assert_eq!(rig.finish(&mut again).unwrap().response.status(), 200);
    assert_eq!(rig.world.connects(), 1);
}
