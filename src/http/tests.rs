//! Whole connections in memory: a client's bytes on one side, a scripted endpoint on the other.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;

use super::{Downstream, Gateway, Mirrors, Protocol, serve};
use crate::drain::Drain;
use crate::io::pipe::{self, Chunking, End, HIGH_WATER_BYTES};
use crate::io::{Clock, Spawn, Stream};
use crate::snapshot::{
    Action, BindPort, Cluster, DirectResponse, Extras, Forward, Limits, Listener, ListenerKey,
    Mirror, OutlierDetection, PathMatch, PoolLimits, Publisher, RetryOn, RetryPolicy, Route,
    RouteTable, Serves, Share, Snapshot, Target, Traffic, TrafficPolicy, UpstreamProtocol,
    VirtualHost,
};
use crate::telemetry::Counters;
use crate::upstream::Upstreams;
use crate::upstream::adapt::{Adapted, Tasks};
use crate::upstream::world::{Fed, World, cluster, read, telemetry, write};

const KEY: ListenerKey = ListenerKey::Ip {
    address: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    port: BindPort::Fixed(80),
};

/// A gateway that answers `own.test` itself and forwards everything else.
struct Rig {
    world: World,
    gateway: Rc<Gateway<World>>,
    publisher: Publisher,
    drain: Drain,
    limits: Limits,
}

impl Rig {
    fn new() -> Self {
        Self::of(cluster(1, UpstreamProtocol::Http1), None)
    }

    /// A gateway that forwards to `cluster` by a route with `extras`.
    fn of(cluster: Cluster, extras: Option<Extras>) -> Self {
        // Small, so that tests can go beyond it.
        let limits = Limits { retry_body_bytes_max: 1024, ..Limits::default() };
        let world = World::new(Chunking::UpTo(16 * 1024));
        let mut publisher = Publisher::default();
        publisher.publish(Arc::new(snapshot(&limits, cluster, extras)));
        let telemetry = telemetry();
        let gateway = Rc::new(Gateway {
            mirrors: Mirrors::default(),
            idle: super::Idle::default(),
            retires_connections: std::cell::Cell::new(false),
            net: world.clone(),
            snapshots: publisher.source().subscribe().into(),
            upstreams: Upstreams::new(world.clone(), Rc::clone(&telemetry)),
            telemetry,
        });
        Self { world, gateway, publisher, drain: Drain::default(), limits }
    }

    fn counters(&self) -> &Counters {
        self.gateway.telemetry.counters()
    }

    /// Opens a connection; the client's end of it.
    fn open(&self, protocol: Protocol) -> End {
        let (near, far) = pipe::pair(Chunking::UpTo(16 * 1024));
        let addresses = ("10.0.0.9:1234".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let downstream = Rc::new(Downstream::new(addresses, KEY, None, self.world.now()));
        let (gateway, watch) = (Rc::clone(&self.gateway), self.drain.watch());
        self.world.spawn(serve(gateway, downstream, far, protocol, watch));
        self.world.idle();
        near
    }

    /// Sends `request` and returns what has been answered when nothing moves any more.
    fn ask(&self, client: &mut End, request: &str) -> String {
        write(client, request);
        self.world.idle();
        read(client)
    }

    /// Sends `request` and returns the endpoint's end of a new connection, and what arrived there.
    fn forwarded(&self, client: &mut End, request: &str) -> (End, String) {
        write(client, request);
        self.world.idle();
        let (_, mut endpoint) = self.world.accept();
        let seen = read(&mut endpoint);
        (endpoint, seen)
    }

    fn pass(&self, time: Duration) {
        self.world.advance(time);
        self.world.idle();
    }

    fn drain(&self) {
        self.drain.start();
        self.world.idle();
    }

    fn is_drained(&self) -> bool {
        self.drain.watches() == 0
    }

    fn h2(&self) -> SendRequest<Fed> {
        let client = self.open(Protocol::Http2);
        let shaking = http2::handshake(Tasks(self.world.clone()), Adapted::new(client));
        let (sender, connection) = self.world.finish(shaking).unwrap();
        self.world.spawn(async move { drop(connection.await) });
        sender
    }
}

fn snapshot(limits: &Limits, cluster: Cluster, extras: Option<Extras>) -> Snapshot {
    let body = Bytes::from_static(b"hello");
    let own = Action::Respond(DirectResponse { status: StatusCode::OK, body });
    let cluster = Some(Arc::new(cluster));
    let forward =
        Action::Forward(Forward { targets: vec![Target { weight: 1, cluster, edits: None }] });
    let mut table = RouteTable::default();
    for (host, action, extras) in [("own.test", own, None), ("*", forward, extras)] {
        let extras = extras.map(Into::into);
        let route = Route { extras, ..Route::new(PathMatch::Any, action) };
        let host_routes = VirtualHost::new(host.to_owned(), false, vec![route]);
        table.hosts.insert(host.parse().unwrap(), Arc::new(host_routes));
    }
    let listener = Listener { key: KEY, gateway_port: 80, serves: Serves::Http(Arc::new(table)) };
    let listeners = vec![Arc::new(listener)];
    Snapshot { listeners, limits: limits.clone(), ..Snapshot::default() }
}

fn is_closed(end: &mut End) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(end.poll_fill(&mut cx), Poll::Ready(Ok(bytes)) if bytes.is_empty())
}

const OWN: &str = "GET / HTTP/1.1\r\nhost: own.test\r\n\r\n";
const FORWARDED: &str = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Detect);
    let (mut endpoint, seen) = rig.forwarded(&mut client, FORWARDED);
    assert!(seen.starts_with("GET / HTTP/1.1\r\nhost: a.test\r\n"), "{seen}");
    write(&mut endpoint, OK);
    rig.world.idle();
    assert!(read(&mut client).ends_with("\r\n\r\nok"));
    assert!(rig.ask(&mut client, OWN).ends_with("\r\n\r\nhello"));
    assert_eq!(rig.counters().requests.value(), 2);
    assert_eq!(rig.counters().requests_active.value(), 0);
}

#[test]
fn head_gets_no_body_whatever_the_source() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http1);
    let own = rig.ask(&mut client, "HEAD / HTTP/1.1\r\nhost: own.test\r\n\r\n");
    assert!(own.starts_with("HTTP/1.1 200") && own.ends_with("\r\n\r\n"), "{own}");
    let (mut endpoint, _) = rig.forwarded(&mut client, "HEAD / HTTP/1.1\r\nhost: a.test\r\n\r\n");
    write(&mut endpoint, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    rig.world.idle();
    let answer = read(&mut client);
    assert!(answer.contains("content-length: 5\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");

    let mut sender = rig.h2();
    let mut response = h2_own(&rig, &mut sender, Method::HEAD);
    assert!(response.body().is_end_stream(), "hyper would send DATA after it");
    assert!(rig.world.finish(next(&mut response)).is_none());
}

fn h2_own(rig: &Rig, sender: &mut SendRequest<Fed>, method: Method) -> Response<Incoming> {
    let request = Request::builder().method(method).uri("http://own.test/");
    let sending = sender.send_request(request.body(Fed::whole([])).unwrap());
    rig.world.finish(sending).unwrap()
}

async fn next(response: &mut Response<Incoming>) -> Option<Bytes> {
    let frame = poll_fn(|cx| Pin::new(response.body_mut()).poll_frame(cx)).await?;
    frame.unwrap().into_data().ok()
}

#[test]
fn a_client_that_expects_to_be_asked_is_asked() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http1);
    let head =
        "POST / HTTP/1.1\r\nhost: a.test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    let (mut endpoint, seen) = rig.forwarded(&mut client, head);
    assert!(!seen.contains("expect"), "{seen}");
    assert_eq!(read(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut client, "abc");
    rig.world.idle();
    assert_eq!(read(&mut endpoint), "abc");
}

/// Longer than an idle connection keeps what hyper needs for it.
const PAUSE: Duration = Duration::from_millis(500);

#[test]
fn a_connection_serves_again_after_each_pause() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Detect);
    for _ in 0..3 {
        assert!(rig.ask(&mut client, OWN).ends_with("\r\n\r\nhello"));
        rig.pass(PAUSE);
        rig.pass(PAUSE);
    }
    client.close_write();
    rig.world.idle();
    rig.pass(rig.limits.linger_timeout);
    assert!(is_closed(&mut client) && rig.is_drained(), "the client's end is noticed");
}

#[test]
fn a_pause_loses_no_byte_of_a_head_that_came_early() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http1);
    let (head, rest) = OWN.split_at(7);
    assert!(rig.ask(&mut client, &format!("{OWN}{head}")).ends_with("\r\n\r\nhello"));
    rig.pass(PAUSE);
    rig.pass(PAUSE);
    assert!(rig.ask(&mut client, rest).ends_with("\r\n\r\nhello"));
    rig.ask(&mut client, &format!("{OWN}{head}"));
    rig.pass(PAUSE);
    rig.pass(rig.limits.head_timeout);
    rig.pass(rig.limits.linger_timeout);
    assert!(is_closed(&mut client), "the rest of the head is due, though it began early");
}

#[test]
fn one_that_asks_seldom_pauses_at_once_and_loses_nothing() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http1);
    let (head, rest) = OWN.split_at(7);
    let two = format!("{OWN}{OWN}{head}");
    let seldom = Duration::from_millis(50);
    rig.ask(&mut client, OWN);
    for _ in 0..3 {
        rig.pass(seldom);
        let answers = rig.ask(&mut client, &two);
        assert_eq!(answers.matches("\r\n\r\nhello").count(), 2, "{answers}");
        rig.pass(seldom);
        assert!(rig.ask(&mut client, rest).ends_with("\r\n\r\nhello"));
    }
    rig.pass(rig.limits.idle_timeout);
    rig.pass(rig.limits.linger_timeout);
    assert!(is_closed(&mut client), "idle for too long");
}

#[test]
fn a_paused_connection_ends_by_a_drain_and_when_it_is_idle_for_too_long() {
    let rig = Rig::new();
    let mut one = rig.open(Protocol::Http1);
    rig.ask(&mut one, OWN);
    rig.pass(PAUSE);
    rig.pass(rig.limits.idle_timeout - PAUSE - PAUSE);
    assert!(!is_closed(&mut one));
    let mut other = rig.open(Protocol::Http1);
    rig.ask(&mut other, OWN);
    rig.pass(PAUSE);
    rig.pass(rig.limits.linger_timeout);
    assert!(is_closed(&mut one), "idle for too long");
    assert!(!is_closed(&mut other));
    rig.drain();
    rig.pass(rig.limits.linger_timeout);
    assert!(is_closed(&mut other) && rig.is_drained());
}

#[test]
fn a_slow_head_and_a_silent_client_are_closed_in_their_time() {
    let rig = Rig::new();
    for first in ["", "GET / HT"] {
        let mut client = rig.open(Protocol::Http1);
        write(&mut client, first);
        rig.world.idle();
        rig.pass(rig.limits.head_timeout - Duration::from_secs(1));
        assert!(!is_closed(&mut client), "{first:?}");
        rig.pass(Duration::from_secs(1));
        assert!(is_closed(&mut client), "{first:?}");
    }
    let mut idle = rig.open(Protocol::Http1);
    rig.ask(&mut idle, OWN);
    rig.pass(rig.limits.idle_timeout - Duration::from_secs(1));
    assert!(!is_closed(&mut idle));
    rig.pass(Duration::from_secs(1));
    assert!(is_closed(&mut idle));
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0abcdefgh";

/// HEADERS of `GET /`, complete, for the host `own.test` or `a.test`.
fn h2_get(host: &str) -> Vec<u8> {
    let length = u8::try_from(host.len()).unwrap();
    let mut frame = vec![0, 0, 5 + length, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, length];
    frame.extend_from_slice(host.as_bytes());
    frame
}

#[test]
fn pings_neither_shorten_nor_prolong_an_http_2_connection() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http2);
    write(&mut client, PREFACE);
    write(&mut client, h2_get("own.test"));
    rig.world.idle();
    write(&mut client, PING);
    rig.pass(rig.limits.head_timeout + Duration::from_secs(1));
    assert_eq!(rig.drain.watches(), 1, "a PING is not the beginning of a head");
    write(&mut client, PING);
    rig.pass(rig.limits.idle_timeout - rig.limits.head_timeout);
    assert_eq!(rig.drain.watches(), 0);
}

#[test]
fn a_stalled_http_2_stream_is_not_kept_alive_by_pings() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http2);
    write(&mut client, PREFACE);
    write(&mut client, h2_get("a.test"));
    rig.world.idle();
    let (_, mut endpoint) = rig.world.accept();
    write(&mut endpoint, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
    for _ in 0..20 {
        endpoint.write(&[std::io::IoSlice::new(&[0; 16 * 1024])]).unwrap();
        rig.world.idle();
    }
    for _ in 0..5 {
        write(&mut client, PING);
        rig.pass(rig.limits.stream_idle_timeout / 3);
    }
    assert_eq!(rig.drain.watches(), 0, "its windows are full and nobody reads");
    assert_eq!(rig.counters().requests_active.value(), 0);
}

/// WINDOW_UPDATE of the whole connection.
const WIDE: &[u8] = b"\0\0\x04\x08\0\0\0\0\0\x00\xff\xff\xff";

/// What has come, be it text or not.
fn taken(end: &mut End) -> Vec<u8> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken = Vec::new();
    while let Poll::Ready(Ok(bytes)) = end.poll_fill(&mut cx)
        && !bytes.is_empty()
    {
        taken.extend_from_slice(bytes);
        let n = bytes.len();
        end.consume(n);
    }
    taken
}

#[test]
fn a_stalled_http_2_stream_ends_though_others_go_on() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http2);
    write(&mut client, PREFACE);
    write(&mut client, WIDE);
    write(&mut client, h2_get("a.test"));
    rig.world.idle();
    let (_, mut endpoint) = rig.world.accept();
    write(&mut endpoint, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
    let mut stream = 1;
    let mut go_on = |client: &mut End, rounds| {
        for _ in 0..rounds {
            stream += 2;
            let mut get = h2_get("own.test");
            get[8] = stream;
            write(client, get);
            rig.pass(rig.limits.stream_idle_timeout / 3);
            assert!(taken(client).ends_with(b"hello"));
        }
    };
    for _ in 0..20 {
        endpoint.write(&[std::io::IoSlice::new(&[0; 16 * 1024])]).unwrap();
        rig.world.idle();
        taken(&mut client);
    }
    go_on(&mut client, 2);
    assert_eq!(rig.counters().requests_active.value(), 1);
    // A little more, for the last time.
    write(&mut client, b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\x01");
    rig.world.idle();
    go_on(&mut client, 2);
    assert_eq!(rig.counters().requests_active.value(), 1, "it moved");
    go_on(&mut client, 4);
    assert_eq!(rig.counters().requests_active.value(), 0);
    read(&mut endpoint);
    assert!(is_closed(&mut endpoint));
    assert_eq!(rig.drain.watches(), 1, "the connection goes on");
}

/// `frame` on the stream of the `n`-th request.
fn on_stream(mut frame: Vec<u8>, n: u32) -> Vec<u8> {
    frame[5..9].copy_from_slice(&(2 * n + 1).to_be_bytes());
    frame
}

#[test]
fn who_breaks_off_most_requests_at_once_is_cut_off() {
    const RST_STREAM: &[u8] = b"\0\0\x04\x03\0\0\0\0\0\0\0\0\x08";
    // Whether the last of each three requests is answered, the second, and how long the others are
    // under way.
    for (answered, after, is_cut) in [
        ([false, false], Duration::ZERO, true),
        ([true, false], Duration::ZERO, true),
        ([true, true], Duration::ZERO, false),
        ([false, false], 2 * SECOND, false),
    ] {
        let rig = Rig::new();
        let mut client = rig.open(Protocol::Http2);
        write(&mut client, PREFACE);
        write(&mut client, WIDE);
        let mut ends = Vec::new();
        for n in 0..600 {
            if n % 3 > 0 && answered[n as usize % 3 - 1] {
                write(&mut client, on_stream(h2_get("own.test"), n));
            } else {
                write(&mut client, on_stream(h2_get("a.test"), n));
                rig.world.idle();
                rig.pass(after);
                ends.extend((rig.world.connects() > ends.len()).then(|| rig.world.accept()));
                write(&mut client, on_stream(RST_STREAM.to_vec(), n));
            }
            rig.world.idle();
            taken(&mut client);
            if rig.drain.watches() == 0 {
                break;
            }
        }
        assert_eq!(rig.drain.watches() == 0, is_cut, "{answered:?}, {after:?}");
        assert_eq!(rig.counters().requests_active.value(), 0);
    }
}

#[test]
fn a_drain_closes_what_is_idle_and_lets_open_requests_finish() {
    let rig = Rig::new();
    let (mut idle, mut busy) = (rig.open(Protocol::Http1), rig.open(Protocol::Http1));
    rig.ask(&mut idle, OWN);
    let (mut endpoint, _) = rig.forwarded(&mut busy, FORWARDED);
    rig.drain();
    assert!(is_closed(&mut idle));
    assert!(!is_closed(&mut busy));
    write(&mut endpoint, OK);
    rig.world.idle();
    let answer = read(&mut busy);
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("ok"), "{answer}");
    assert!(is_closed(&mut busy));
    drop((idle, busy));
    rig.world.idle();
    assert!(rig.is_drained());
}

#[test]
fn a_drain_serves_whoever_has_connected_and_waits_for_nobody_silent() {
    for protocol in [Protocol::Detect, Protocol::Http1, Protocol::Http2] {
        let rig = Rig::new();
        let silent = rig.open(protocol);
        rig.drain();
        assert!(!rig.is_drained(), "{protocol:?}");
        rig.pass(rig.limits.linger_timeout);
        drop(silent);
        rig.world.idle();
        assert!(rig.is_drained(), "{protocol:?}");
    }
    for protocol in [Protocol::Detect, Protocol::Http1] {
        let rig = Rig::new();
        let mut late = rig.open(protocol);
        rig.drain();
        let answer = rig.ask(&mut late, OWN);
        assert!(answer.ends_with("hello"), "{protocol:?}: {answer}");
        assert!(is_closed(&mut late), "{protocol:?}");
    }
}

#[test]
fn a_drain_lets_open_streams_finish() {
    let rig = Rig::new();
    let mut sender = rig.h2();
    let request = Request::get("http://a.test/").body(Fed::whole([])).unwrap();
    let mut sending: Pin<Box<dyn Future<Output = _>>> = Box::pin(sender.send_request(request));
    assert!(rig.world.settle(&mut sending).is_pending());
    let (_, mut endpoint) = rig.world.accept();
    rig.drain();
    write(&mut endpoint, OK);
    let Poll::Ready(Ok(mut response)) = rig.world.settle(&mut sending) else { panic!("no answer") };
    assert_eq!(rig.world.finish(next(&mut response)).unwrap(), "ok");
    drop((response, sending, sender));
    rig.world.idle();
    assert!(rig.is_drained());
}

#[test]
fn a_request_whose_client_goes_away_is_over() {
    let rig = Rig::new();
    let mut client = rig.open(Protocol::Http1);
    let (endpoint, _) = rig.forwarded(&mut client, FORWARDED);
    assert_eq!(rig.counters().requests_active.value(), 1);
    drop(client);
    rig.world.idle();
    assert_eq!(rig.counters().requests_active.value(), 0);
    assert_eq!(rig.counters().requests.value(), 1);
    assert!(rig.is_drained());
    drop(endpoint);
}

#[test]
fn neither_idle_connections_nor_bodies_under_way_keep_a_snapshot() {
    let mut rig = Rig::new();
    let old = Arc::downgrade(&rig.publisher.source().current());
    let mut idle = rig.open(Protocol::Http1);
    rig.ask(&mut idle, OWN);
    let mut busy = rig.open(Protocol::Http1);
    let (mut endpoint, _) = rig.forwarded(&mut busy, FORWARDED);
    rig.publisher.publish(Arc::new(snapshot(
        &rig.limits,
        cluster(1, UpstreamProtocol::Http1),
        None,
    )));
    rig.gateway.snapshots.borrow_mut().current();
    rig.publisher.free_retired();
    assert!(old.upgrade().is_some(), "a request keeps its own");
    write(&mut endpoint, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no");
    rig.world.idle();
    rig.publisher.free_retired();
    assert_eq!(Weak::strong_count(&old), 0, "its body does not");
    write(&mut endpoint, "k");
    rig.world.idle();
    assert!(read(&mut busy).ends_with("\r\n\r\nok"));
}

/// A budget for as long as a connection lives, beside the stream itself, which lies in it once, and
/// hyper's buffers. What a request needs comes and goes with it.
#[test]
fn a_connection_is_small() {
    let rig = Rig::new();
    let addresses = ("10.0.0.9:1234".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    let budgets = [(Protocol::Http1, 1280), (Protocol::Http2, 1920), (Protocol::Detect, 1280)];
    for (protocol, budget) in budgets {
        let (_, far) = pipe::pair(Chunking::UpTo(16 * 1024));
        let downstream = Rc::new(Downstream::new(addresses, KEY, None, rig.world.now()));
        let (gateway, watch) = (Rc::clone(&rig.gateway), rig.drain.watch());
        let bytes = size_of_val(&*serve(gateway, downstream, far, protocol, watch));
        assert!(bytes <= budget, "{protocol:?}: {bytes} bytes");
    }
}

const WEBSOCKET: &str = "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\n\
                         upgrade: websocket\r\n\r\nearly";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// A connection that has switched, and the endpoint's end of it.
fn websocket(rig: &Rig) -> (End, End) {
    let mut client = rig.open(Protocol::Http1);
    let (mut endpoint, _) = rig.forwarded(&mut client, WEBSOCKET);
    write(&mut endpoint, SWITCHING.to_owned() + "first");
    rig.world.idle();
    let answer = read(&mut client);
    assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("first"), "{answer}");
    assert_eq!(read(&mut endpoint), "early");
    (client, endpoint)
}

#[test]
fn a_websocket_is_relayed_until_both_sides_end() {
    let rig = Rig::new();
    let (mut client, mut endpoint) = websocket(&rig);
    assert_eq!(rig.counters().requests_active.value(), 1);
    rig.pass(rig.limits.stream_idle_timeout - Duration::from_secs(1));
    write(&mut client, "more");
    rig.world.idle();
    assert_eq!(read(&mut endpoint), "more");
    rig.pass(rig.limits.stream_idle_timeout - Duration::from_secs(1));
    endpoint.close_write();
    client.close_write();
    rig.world.idle();
    assert_eq!(rig.counters().requests_active.value(), 0);
    assert!(rig.is_drained());
}

#[test]
fn a_websocket_that_stands_still_is_closed() {
    let rig = Rig::new();
    let (mut client, endpoint) = websocket(&rig);
    rig.pass(rig.limits.stream_idle_timeout);
    assert!(is_closed(&mut client));
    drop(client);
    rig.world.idle();
    assert!(rig.is_drained());
    drop(endpoint);
}

const SECOND: Duration = Duration::from_secs(1);

/// One attempt may take a second; `retries` more follow.
fn impatient(retries: u32) -> Option<Extras> {
    let on = RetryOn::SERVER_ERROR;
    let per_try_timeout = Some(SECOND);
    let policy = RetryPolicy { retries, on, per_try_timeout, ..RetryPolicy::DEFAULT };
    Some(Extras { retries: Some(policy), ..Extras::default() })
}

/// A cluster that leaves endpoints out after one failure, and has one connection at a time.
fn strict(endpoints: u16) -> Cluster {
    let outliers = Some(OutlierDetection {
        server_errors: 1,
        ejected_percent_max: 100,
        ..OutlierDetection::default()
    });
    let pool = PoolLimits { connections_max: Some(1), ..PoolLimits::default() };
    let policy = TrafficPolicy { outliers, pool, ..TrafficPolicy::default() };
    let plain = cluster(endpoints, UpstreamProtocol::Http1);
    let traffic = Traffic::new(policy, Box::default(), None).among(&plain.endpoints);
    Cluster { traffic: Some(Box::new(traffic)), ..plain }
}

/// Serves the next connection, which speaks HTTP/2: `/large` is a MiB, all else is `ok`.
fn serve_by_size(world: &World) {
    let answer = |request: Request<Incoming>| async move {
        let is_large = request.uri().path() == "/large";
        let body = if is_large { Bytes::from(vec![b'x'; 1 << 20]) } else { "ok".into() };
        Ok::<_, std::convert::Infallible>(Response::new(Fed::whole([Frame::data(body)])))
    };
    let server = server::Builder::new(Tasks(world.clone()));
    let serving = server.serve_connection(Adapted::new(world.accept().1), service_fn(answer));
    world.spawn(async move { drop(serving.await) });
}

#[test]
fn who_does_not_take_responses_holds_up_nobody_elses() {
    let rig = Rig::of(cluster(1, UpstreamProtocol::Http2), None);
    let mut one = rig.open(Protocol::Http1);
    write(&mut one, FORWARDED);
    rig.world.idle();
    serve_by_size(&rig.world);
    rig.world.idle();
    assert!(read(&mut one).contains("\r\nok\r\n"), "in a chunk");
    let mut slow: Vec<_> = (0..40).map(|_| rig.open(Protocol::Http1)).collect();
    for client in &mut slow {
        write(client, FORWARDED.replace("GET /", "GET /large"));
        rig.world.idle();
    }
    assert_eq!((rig.counters().requests_active.value(), rig.world.connects()), (40, 1));
    let answer = rig.ask(&mut one, FORWARDED);
    assert!(answer.contains("\r\nok\r\n"), "{answer}");
}

/// Takes the requests of the next connection, which speaks HTTP/2, and never answers.
fn serve_nothing(world: &World) {
    let never = |request: Request<Incoming>| async {
        let _request = request;
        std::future::pending::<hyper::Result<Response<Fed>>>().await
    };
    let server = server::Builder::new(Tasks(world.clone()));
    let serving = server.serve_connection(Adapted::new(world.accept().1), service_fn(never));
    world.spawn(async move { drop(serving.await) });
}

#[test]
fn a_client_that_stops_sending_is_no_fault_of_the_endpoint() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let rig = Rig::of(Cluster { protocol, ..strict(1) }, None);
        let mut client = rig.open(Protocol::Http1);
        let head = "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 6\r\n\r\nabc";
        let _endpoint = match protocol {
            UpstreamProtocol::Http1 => Some(rig.forwarded(&mut client, head)),
            UpstreamProtocol::Http2 => {
                write(&mut client, head);
                rig.world.idle();
                serve_nothing(&rig.world);
                rig.world.idle();
                None
            }
        };
        rig.pass(rig.limits.stream_idle_timeout);
        let answer = read(&mut client);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{protocol:?}: {answer}");
        assert_eq!(rig.counters().outlier_ejections.value(), 0, "{protocol:?}");
    }
}

#[test]
fn what_a_client_allows_is_no_measure_of_the_endpoint() {
    let own = |timeout| Some(Extras { timeout: Some(timeout), ..Extras::default() });
    for (extras, asked, ejections) in
        [(None, "1m", 0), (own(SECOND), "1m", 0), (own(SECOND), "9S", 1)]
    {
        let rig = Rig::of(strict(1), extras);
        let mut client = rig.open(Protocol::Http1);
        let call = format!(
            "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-type: application/grpc\r\n\
             grpc-timeout: {asked}\r\ncontent-length: 0\r\n\r\n"
        );
        let _endpoint = rig.forwarded(&mut client, &call);
        rig.pass(SECOND);
        let answer = read(&mut client);
        assert!(answer.contains("grpc-status: 14\r\n"), "{answer}");
        assert_eq!(rig.counters().outlier_ejections.value(), ejections, "{asked}");
    }
}

#[test]
fn who_waits_in_our_queue_is_no_fault_of_the_endpoint() {
    let rig = Rig::of(strict(1), impatient(0));
    let (mut first, mut second) = (rig.open(Protocol::Http1), rig.open(Protocol::Http1));
    let (mut endpoint, _) = rig.forwarded(&mut first, FORWARDED);
    write(&mut endpoint, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
    write(&mut second, FORWARDED);
    rig.world.idle();
    rig.pass(SECOND);
    let answer = read(&mut second);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert_eq!(rig.counters().outlier_ejections.value(), 0, "it was not even asked");
    write(&mut endpoint, "ok");
    rig.world.idle();
    assert!(read(&mut first).ends_with("ok"));
    write(&mut first, FORWARDED);
    rig.world.idle();
    rig.pass(SECOND);
    assert_eq!(rig.counters().outlier_ejections.value(), 1, "asked, and silent");
}

#[test]
fn an_endpoint_that_lets_connects_wait_is_late() {
    let rig = Rig::of(strict(1), impatient(0));
    let mut client = rig.open(Protocol::Http1);
    rig.world.black_hole();
    write(&mut client, FORWARDED);
    rig.world.idle();
    rig.pass(SECOND);
    assert_eq!(rig.counters().outlier_ejections.value(), 1);
}

#[test]
fn an_attempt_that_took_too_long_is_followed_by_one_elsewhere() {
    let rig = Rig::of(cluster(2, UpstreamProtocol::Http1), impatient(1));
    for _ in 0..16 {
        let mut client = rig.open(Protocol::Http1);
        write(&mut client, FORWARDED);
        rig.world.idle();
        let (silent, _first) = rig.world.accept();
        rig.pass(SECOND);
        rig.pass(SECOND / 2);
        let (other, _second) = rig.world.accept();
        assert_ne!(silent, other);
    }
}

#[test]
fn a_response_that_never_pauses_ends_with_its_time_all_the_same() {
    let extras = Extras { timeout: Some(SECOND), ..Extras::default() };
    let rig = Rig::of(cluster(1, UpstreamProtocol::Http1), Some(extras));
    let mut client = rig.open(Protocol::Http1);
    let (mut endpoint, _) = rig.forwarded(&mut client, FORWARDED);
    write(&mut endpoint, "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n");
    // More than the client takes: whatever it makes room for is there already.
    write(&mut endpoint, vec![b'x'; 4 * 1024 * 1024]);
    let mut rounds_open = || {
        let is_open = |_: &u32| {
            rig.world.idle();
            let mut cx = Context::from_waker(Waker::noop());
            let bytes = match client.poll_fill(&mut cx) {
                Poll::Ready(Ok(lent)) => lent.len(),
                Poll::Ready(Err(_)) | Poll::Pending => 0,
            };
            client.consume(bytes);
            bytes > 0
        };
        (0..50_u32).take_while(is_open).count()
    };
    assert_eq!(rounds_open(), 50);
    rig.world.advance(SECOND);
    assert!(rounds_open() < 50, "what had been written is read, and nothing more");
}

#[test]
fn a_grpc_call_ends_when_its_client_no_longer_waits() {
    let call = |timeout: &str, content_type: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-type: {content_type}\r\n\
             grpc-timeout: {timeout}\r\ncontent-length: 0\r\n\r\n"
        )
    };
    let grpc = "application/grpc+proto";
    for (own, asked, told) in
        [(None, "1S", "1000m"), (Some(2 * SECOND), "1S", "1000m"), (Some(SECOND), "1H", "1000m")]
    {
        let extras = own.map(|own| Extras { timeout: Some(own), ..Extras::default() });
        let rig = Rig::of(cluster(1, UpstreamProtocol::Http1), extras);
        let mut client = rig.open(Protocol::Http1);
        let (_endpoint, seen) = rig.forwarded(&mut client, &call(asked, grpc));
        assert!(seen.contains(&format!("grpc-timeout: {told}\r\n")), "{seen}");
        assert!(seen.contains("x-envoy-expected-rq-timeout-ms: 1000\r\n"), "{seen}");
        rig.pass(SECOND - Duration::from_millis(1));
        assert_eq!(read(&mut client), "");
        rig.pass(Duration::from_millis(1));
        let answer = read(&mut client);
        assert!(answer.contains("grpc-status: 14\r\n"), "{answer}");
    }
    let rig = Rig::new();
    for (asked, content_type) in [("1S", "text/plain"), ("1 S", grpc), ("0S", grpc)] {
        let mut client = rig.open(Protocol::Http1);
        let (_endpoint, seen) = rig.forwarded(&mut client, &call(asked, content_type));
        assert!(seen.contains(&format!("grpc-timeout: {asked}\r\n")), "{seen}");
        rig.pass(2 * SECOND);
        assert_eq!(read(&mut client), "");
    }
}

/// A gateway that mirrors to an endpoint on port 9.
fn mirroring() -> Rig {
    let mirrored = cluster(1, UpstreamProtocol::Http1);
    let endpoints = vec![([127, 0, 0, 1], 9).into()];
    let cluster = Some(Arc::new(Cluster { endpoints, ..mirrored.clone() }));
    let mirrors = vec![Mirror { cluster, share: Share::ALL }];
    Rig::of(mirrored, Some(Extras { mirrors, ..Extras::default() }))
}

/// The ends of the request's own endpoint and of the mirror's, after a head that asks for `length`
/// bytes, and what each of them got.
fn mirrored(rig: &Rig, client: &mut End, length: usize, body: &str) -> [(End, String); 2] {
    let head = format!("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: {length}\r\n\r\n");
    write(client, head + body);
    rig.world.idle();
    let mut ends = [rig.world.accept(), rig.world.accept()];
    ends.sort_by_key(|(endpoint, _)| endpoint.ip().unwrap().port());
    ends.map(|(_, mut end)| {
        let seen = read(&mut end);
        (end, seen)
    })
}

#[test]
fn a_mirror_gets_the_body_as_it_comes() {
    let rig = mirroring();
    let mut client = rig.open(Protocol::Http1);
    let [(mut own, seen), (mut mirror, copy)] = mirrored(&rig, &mut client, 6, "abc");
    for seen in [seen, copy] {
        assert!(seen.contains("content-length: 6\r\n") && seen.ends_with("abc"), "{seen}");
    }
    write(&mut client, "def");
    rig.world.idle();
    assert_eq!([read(&mut own), read(&mut mirror)], ["def", "def"]);
    write(&mut mirror, "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n");
    write(&mut own, OK);
    rig.world.idle();
    assert!(read(&mut client).ends_with("ok"));
    assert_eq!(rig.counters().mirrors_dropped.value(), 0);
}

#[test]
fn a_mirror_that_does_not_keep_pace_is_broken_off_alone() {
    let rig = mirroring();
    let mut client = rig.open(Protocol::Http1);
    let length = 4 * HIGH_WATER_BYTES;
    let [(mut own, _), (mut mirror, _)] = mirrored(&rig, &mut client, length, "");
    let piece = "x".repeat(1000);
    let mut left = length;
    while left > 0 {
        let bytes = left.min(piece.len());
        write(&mut client, &piece[..bytes]);
        rig.world.idle();
        assert_eq!(read(&mut own).len(), bytes);
        left -= bytes;
    }
    assert_eq!(rig.counters().mirrors_dropped.value(), 1);
    assert!(read(&mut mirror).len() < length && is_closed(&mut mirror));
    write(&mut own, OK);
    rig.world.idle();
    assert!(read(&mut client).ends_with("ok"));
}

#[test]
fn half_a_body_is_no_whole_one_for_a_mirror() {
    let rig = mirroring();
    let mut client = rig.open(Protocol::Http1);
    let [_own, (mut mirror, _)] = mirrored(&rig, &mut client, 6, "abc");
    drop(client);
    rig.world.idle();
    assert!(is_closed(&mut mirror));
    assert_eq!(rig.counters().mirrors_dropped.value(), 1);
}

/// An HTTP/2 endpoint that answers 503 before a request's body is there, and takes the next one's.
#[derive(Default)]
struct Hasty {
    /// Kept: to let go of it would tell the client to stop.
    refused: RefCell<Option<Incoming>>,
    taken: RefCell<Vec<u8>>,
}

impl Hasty {
    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> hyper::Result<Response<Fed>> {
        let mut body = request.into_body();
        let mut response = Response::new(Fed::whole([]));
        if self.refused.borrow().is_none() {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            self.refused.replace(Some(body));
            return Ok(response);
        }
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let data = frame?.into_data();
            self.taken.borrow_mut().extend_from_slice(&data.expect("no trailers"));
        }
        Ok(response)
    }

    /// Serves the next connection.
    fn serve(self: &Rc<Self>, world: &World) {
        let hasty = Rc::clone(self);
        let service = service_fn(move |request| Rc::clone(&hasty).answer(request));
        let server = server::Builder::new(Tasks(world.clone()));
        let serving = server.serve_connection(Adapted::new(world.accept().1), service);
        world.spawn(async move { drop(serving.await) });
    }
}

#[test]
fn an_attempt_that_is_over_takes_nothing_of_what_the_next_one_needs() {
    let rig = Rig::of(cluster(1, UpstreamProtocol::Http2), impatient(1));
    let (hasty, mut client) = (Rc::<Hasty>::default(), rig.open(Protocol::Http1));
    let (first, rest) = ("abcd", "x".repeat(2 * 1024));
    let length = first.len() + rest.len();
    let head = format!("POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: {length}\r\n\r\n");
    write(&mut client, head + first);
    rig.world.idle();
    hasty.serve(&rig.world);
    rig.world.idle();
    assert!(hasty.refused.borrow().is_some());
    // In the pause, more than is kept.
    write(&mut client, &rest);
    rig.world.idle();
    rig.pass(SECOND / 2);
    assert_eq!(hasty.taken.borrow().len(), length, "all of it, though it is no more kept");
    let answer = read(&mut client);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn nobody_is_given_a_tunnel() {
    for target in ["/", "http://a.test/", "a.test:80"] {
        let rig = Rig::new();
        let mut client = rig.open(Protocol::Http1);
        let answer =
            rig.ask(&mut client, &format!("CONNECT {target} HTTP/1.1\r\nhost: a.test\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
        assert_eq!(rig.world.connects(), 0, "{target}");
    }
}

#[test]
fn a_cookie_that_http_2_has_split_is_whole_again() {
    let rig = Rig::new();
    let mut sender = rig.h2();
    let request = Request::get("http://a.test/").header("cookie", "a=1").header("x-a", "1");
    let request = request.header("cookie", "b=2").header("cookie", "c=3; d=4").header("x-a", "2");
    let request = request.body(Fed::whole([])).unwrap();
    let mut sending: Pin<Box<dyn Future<Output = _>>> = Box::pin(sender.send_request(request));
    assert!(rig.world.settle(&mut sending).is_pending());
    let seen = read(&mut rig.world.accept().1);
    assert!(seen.contains("cookie: a=1; b=2; c=3; d=4\r\n"), "{seen}");
    assert_eq!(seen.matches("cookie").count(), 1, "{seen}");
    assert!(seen.contains("x-a: 1\r\nx-a: 2\r\n"), "{seen}");
}

/// HEADERS of a whole request with these fields, byte for byte.
fn h2_head(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal, never indexed; no Huffman code.
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text);
        }
    }
    let length = u8::try_from(block.len()).unwrap();
    [&[0, 0, length, 1, 5, 0, 0, 0, 1], &block[..]].concat()
}

#[test]
fn no_byte_of_an_http_2_head_means_anything_else_in_http_1() {
    const PATH: &[u8] = b":path";
    const AUTHORITY: &[u8] = b":authority";
    let cases: [(&[u8], &[u8], bool); 20] = [
        (b"x", b"1", true),
        (b"host", b"b.test", true),
        (PATH, b"/a#b", true),
        (PATH, b"/a b", false),
        (PATH, b"/ HTTP/1.1\r\nx: y", false),
        (PATH, b"/a\tb", false),
        (PATH, b"/a\x80b", false),
        (PATH, b"a", false),
        (PATH, b"http://b.test/", false),
        (AUTHORITY, b"a.test\r\nx: y", false),
        (AUTHORITY, b"u@a.test", false),
        (b"transfer-encoding", b"chunked", false),
        (b"connection", b"close", false),
        (b"content-length", b"5", false),
        (b"x: y\r\nz", b"1", false),
        (b"X-Upper", b"1", false),
        (b"x y", b"1", false),
        (b"x", b"1\r\ny: 2", false),
        (b"x", b"1\ny: 2", false),
        (b"x", b"a\0b", false),
    ];
    for (name, value, passes) in cases {
        let rig = Rig::new();
        let mut client = rig.open(Protocol::Http2);
        write(&mut client, PREFACE);
        let mut fields: Vec<(&[u8], &[u8])> =
            vec![(b":method", b"GET"), (b":scheme", b"http"), (PATH, b"/"), (AUTHORITY, b"a.test")];
        match fields.iter_mut().find(|field| field.0 == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
        write(&mut client, h2_head(&fields));
        rig.world.idle();
        let field =
            format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        assert_eq!(rig.world.connects() == 1, passes, "{field}");
        if passes {
            let seen = read(&mut rig.world.accept().1);
            assert!(seen.starts_with("GET /") && seen.contains("host: a.test\r\n"), "{seen}");
            assert!(!seen.contains("b.test") && !seen.contains('#'), "{seen}");
        }
    }
}

#[test]
fn a_mirror_gets_all_of_a_body_that_takes_its_time() {
    let rig = mirroring();
    let mut client = rig.open(Protocol::Http1);
    let [(mut own, _), (mut mirror, _)] = mirrored(&rig, &mut client, 4, "");
    for piece in ["a", "b", "c", "d"] {
        rig.pass(rig.limits.stream_idle_timeout * 2 / 3);
        write(&mut client, piece);
        rig.world.idle();
        assert_eq!([read(&mut own), read(&mut mirror)], [piece, piece]);
    }
}
