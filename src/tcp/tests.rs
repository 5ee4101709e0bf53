//! Connections in memory: what is held back, and what is said of each.

use std::io::IoSlice;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::drain::Drain;
use crate::io::Spawn;
use crate::io::pipe::{self, Chunking, End};
use crate::snapshot::{
    Forward, OutlierDetection, PoolLimits, Target, Traffic, TrafficPolicy, UpstreamProtocol,
};
use crate::telemetry::prometheus;
use crate::upstream::world::{World, cluster, read, telemetry, write};

/// A client's end, and what it was counted in.
struct Site {
    world: World,
    telemetry: Rc<WorkerTelemetry>,
    client: End,
}

impl Site {
    /// A client of a cluster with so many endpoints, of which `taken` was read already.
    fn new(world: World, endpoints: u16, taken: &[u8]) -> Self {
        let cluster = Arc::new(cluster(endpoints, UpstreamProtocol::Http1));
        let target = Target { weight: 1, cluster: Some(cluster), edits: None };
        Self::routed(world, Some(target), taken)
    }

    fn routed(world: World, target: Option<Target>, taken: &[u8]) -> Self {
        let (client, near) = pipe::pair(Chunking::UpTo(1000));
        let telemetry = telemetry();
        let shared = Shared {
            net: world.clone(),
            upstreams: Upstreams::new(world.clone(), Rc::clone(&telemetry)),
            telemetry: Rc::clone(&telemetry),
        };
        let address = "10.0.0.9:1234".parse().unwrap();
        let downstream = Downstream {
            stream: near,
            taken: taken.to_vec(),
            remote: address,
            local: address,
            server_name: None,
        };
        let route = target.map(|target| TcpRoute {
            sources: Box::default(),
            destinations: Box::default(),
            forward: Forward { targets: vec![target] },
        });
        let watch = Drain::default().watch();
        let serving = serve(shared, downstream, terms(), route.as_ref(), watch);
        world.spawn(serving);
        world.idle();
        Self { world, telemetry, client }
    }

    fn metrics(&self) -> String {
        let reporter = prometheus::Reporter::new("edge", |_| None);
        let series = self.telemetry.copy();
        let text = prometheus::render(&[], &[], &series, &reporter).into_text();
        let ours = text.lines().filter(|line| line.starts_with("istio_tcp_"));
        let short = |line: &str| {
            let name = line.split('{').next().unwrap().trim_start_matches("istio_tcp_");
            let flags = line.split("response_flags=\"").nth(1).unwrap().split('"').next().unwrap();
            format!("{name} {flags} {}\n", line.rsplit(' ').next().unwrap())
        };
        ours.map(short).collect()
    }

    fn is_closed(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match self.client.poll_fill(&mut cx) {
            Poll::Ready(Ok(bytes)) => bytes.is_empty(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }
}

#[test]
fn what_was_taken_comes_first_and_both_ends_are_passed_on() {
    let mut site = Site::new(World::new(Chunking::UpTo(7)), 1, b"taken, ");
    let (_, mut endpoint) = site.world.accept();
    write(&mut site.client, "then the rest");
    site.client.close_write();
    site.world.idle();
    assert_eq!(read(&mut endpoint), "taken, then the rest");
    write(&mut endpoint, "answer");
    site.world.idle();
    assert_eq!(read(&mut site.client), "answer");
    assert!(!site.is_closed());
    endpoint.close_write();
    site.world.idle();
    assert!(site.is_closed());
    let expected = "connections_opened_total - 1\nconnections_closed_total - 1\n\
                    received_bytes_total - 20\nsent_bytes_total - 6\n";
    assert_eq!(site.metrics(), expected);
}

#[test]
fn who_does_not_read_makes_the_other_wait() {
    let mut site = Site::new(World::new(Chunking::UpTo(1000)), 1, b"");
    let (_, mut endpoint) = site.world.accept();
    let mut cx = Context::from_waker(Waker::noop());
    let mut written = 0;
    while endpoint.poll_write_ready(&mut cx).is_ready() {
        endpoint.write(&[IoSlice::new(&[0; 1000])]).unwrap();
        site.world.idle();
        written += 1000;
        assert!(written < 1_000_000, "the client has not read anything");
    }
    let received = read(&mut site.client).len();
    site.world.idle();
    assert!(received > 0 && endpoint.poll_write_ready(&mut cx).is_ready(), "it goes on");
}

#[test]
fn endpoints_are_tried_up_to_three_times_and_the_reason_is_kept() {
    let cases = [(0, 0, "UH"), (1, 1, "UF,URX"), (2, 2, "UF,URX"), (9, 3, "UF,URX")];
    for (endpoints, connects, flags) in cases {
        let world = World::new(Chunking::UpTo(1000));
        cluster(endpoints, UpstreamProtocol::Http1)
            .endpoints
            .iter()
            .for_each(|endpoint| world.refuse(*endpoint));
        let mut site = Site::new(world, endpoints, b"x");
        assert_eq!(site.world.connects(), connects, "{endpoints}");
        assert!(site.is_closed());
        let metrics = site.metrics();
        assert!(metrics.contains(&format!("connections_opened_total {flags} 1\n")), "{metrics}");
        assert!(metrics.contains(&format!("connections_closed_total {flags} 1\n")), "{metrics}");
        assert!(metrics.contains(&format!("received_bytes_total {flags} 0\n")), "{metrics}");
    }
}

#[test]
fn a_connect_that_takes_too_long_is_given_up() {
    let world = World::new(Chunking::UpTo(1000));
    world.black_hole();
    let mut site = Site::new(world, 1, b"");
    assert!(!site.is_closed());
    site.world.advance(Duration::from_secs(10));
    site.world.idle();
    assert!(site.is_closed());
    assert!(site.metrics().contains("connections_closed_total UF,URX 1\n"));
}

#[test]
fn what_moves_is_not_idle_and_what_does_not_is_closed_in_the_end() {
    let mut site = Site::new(World::new(Chunking::UpTo(1000)), 1, b"");
    let (_, mut endpoint) = site.world.accept();
    let most = Limits::default().tcp_idle_timeout - Duration::from_secs(1);
    for _ in 0..3 {
        site.world.advance(most);
        write(&mut site.client, "still here");
        site.world.idle();
        assert_eq!(read(&mut endpoint), "still here");
        site.world.advance(most);
        write(&mut endpoint, "so am I");
        site.world.idle();
        assert_eq!(read(&mut site.client), "so am I");
    }
    site.world.advance(most);
    site.world.idle();
    assert!(!site.is_closed());
    site.world.advance(Duration::from_secs(1));
    site.world.idle();
    assert!(site.is_closed());
    assert!(site.metrics().contains("connections_closed_total - 1\n"));
}

#[test]
fn without_a_route_or_its_cluster_nobody_is_asked() {
    let missing = Target { weight: 1, cluster: None, edits: None };
    for (target, flags) in [(None, "NR"), (Some(missing), "NC")] {
        let mut site = Site::routed(World::new(Chunking::UpTo(1000)), target, b"");
        assert!(site.is_closed() && site.world.connects() == 0);
        let metrics = site.metrics();
        assert!(metrics.contains(&format!("connections_closed_total {flags} 1\n")), "{metrics}");
    }
}

#[test]
fn an_endpoint_that_breaks_is_named_and_its_last_words_arrive() {
    let mut site = Site::new(World::new(Chunking::UpTo(1000)), 1, b"");
    let (_, mut endpoint) = site.world.accept();
    write(&mut endpoint, "last words");
    drop(endpoint);
    site.world.idle();
    write(&mut site.client, "into the void");
    site.world.idle();
    assert_eq!(read(&mut site.client), "last words");
    assert!(site.is_closed());
    site.client.close_write();
    site.world.idle();
    assert!(site.metrics().contains("connections_closed_total UC 1\n"), "{}", site.metrics());
}

fn terms() -> Terms {
    Terms { limits: Limits::default(), generation: 0 }
}

fn joining(world: &World) -> Joining<World> {
    let telemetry = telemetry();
    let upstreams = Upstreams::new(world.clone(), Rc::clone(&telemetry));
    let shared = Shared { net: world.clone(), upstreams, telemetry };
    let address = "10.0.0.9:1234".parse().unwrap();
    let entry = Entry::new(&shared, (address, address), None);
    Joining { shared, terms: terms(), entry, _watch: Drain::default().watch() }
}

#[test]
fn an_endpoint_is_left_out_for_failures_in_a_row_alone() {
    let world = World::new(Chunking::UpTo(1000));
    let plain = cluster(1, UpstreamProtocol::Http1);
    let endpoint = plain.endpoints[0];
    let outliers = OutlierDetection {
        server_errors: 2,
        ejected_percent_max: 100,
        ..OutlierDetection::default()
    };
    let policy = TrafficPolicy { outliers: Some(outliers), ..TrafficPolicy::default() };
    let traffic = Traffic::new(policy, Box::default(), None).among(&plain.endpoints);
    let cluster = Cluster { traffic: Some(Box::new(traffic)), ..plain };
    let joining = joining(&world);
    let connects = |is_up: bool| {
        if is_up {
            world.allow(endpoint)
        } else {
            world.refuse(endpoint)
        }
        world.finish(joining.connect(&cluster)).is_ok()
    };
    for is_up in [false, true, false, true, false, false] {
        assert_eq!(connects(is_up), is_up);
    }
    assert!(!connects(true), "twice in a row");
}

#[test]
fn a_connection_ends_at_its_greatest_age_however_busy_it_is() {
    let world = World::new(Chunking::UpTo(1000));
    let plain = cluster(1, UpstreamProtocol::Http1);
    let age = Duration::from_secs(60);
    let pool = PoolLimits { connection_age_max: Some(age), ..PoolLimits::default() };
    let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
    let traffic = Traffic::new(policy, Box::default(), None).among(&plain.endpoints);
    let cluster = Arc::new(Cluster { traffic: Some(Box::new(traffic)), ..plain });
    let target = Target { weight: 1, cluster: Some(cluster), edits: None };
    let mut site = Site::routed(world, Some(target), b"");
    let (_, mut endpoint) = site.world.accept();
    site.world.advance(age - Duration::from_secs(1));
    write(&mut site.client, "still here");
    site.world.idle();
    assert_eq!(read(&mut endpoint), "still here");
    assert!(!site.is_closed());
    site.world.advance(Duration::from_secs(1));
    site.world.idle();
    assert!(site.is_closed());
    assert!(site.metrics().contains("connections_closed_total - 1\n"));
}

#[test]
fn a_connection_that_is_over_makes_room_though_the_client_still_reads() {
    let world = World::new(Chunking::UpTo(1000));
    let plain = cluster(1, UpstreamProtocol::Http1);
    let pool = PoolLimits { connections_max: Some(1), ..PoolLimits::default() };
    let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
    let traffic = Traffic::new(policy, Box::default(), None).among(&plain.endpoints);
    let cluster = Cluster { traffic: Some(Box::new(traffic)), ..plain };
    let first = joining(&world);
    let mut second = joining(&world);
    second.shared.upstreams = first.shared.upstreams.clone();
    let opened = world.finish(first.connect(&cluster)).unwrap();
    let (mut client, near) = pipe::pair(Chunking::UpTo(1000));
    world.spawn(first.join(near, opened, b"a question"));
    world.idle();
    assert!(world.finish(second.connect(&cluster)).is_err(), "one is open");
    drop(world.accept());
    write(&mut client, "into the void");
    world.idle();
    assert!(world.finish(second.connect(&cluster)).is_ok());
}

#[test]
fn a_joined_connection_is_small() {
    let world = World::new(Chunking::UpTo(1000));
    let joining = joining(&world);
    let cluster = cluster(1, UpstreamProtocol::Http1);
    let opened = world.finish(joining.connect(&cluster)).unwrap();
    let joined = joining.join(pipe::pair(Chunking::UpTo(1000)).0, opened, b"");
    assert!(size_of_val(&joined) <= 1024, "{}", size_of_val(&joined));
}
