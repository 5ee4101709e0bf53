//! Connections that are not HTTP to the gateway: plain TCP, and what is inside of terminated TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use regex::Regex;
use rustix::process::Signal;

use crate::harness::certificate::Authority;
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::raw::Raw;
use crate::harness::{PATIENCE, checksum, eventually, pattern, yaml};

/// The port of the TCP server.
const PORT: u16 = 9443;

/// All of `PORT` goes where `rules` say.
fn tcp(driver: Driver, rules: &str) -> Builder {
    Gateway::builder()
        .driver(driver)
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::server(PORT, "TCP", &["*"], "")))
        .resource("route.yaml", &yaml::l4_service("web", "web", &["*"], "tcp", rules))
}

fn all_to(host: &str) -> String {
    yaml::all_to(host)
}

fn to_backend(driver: Driver, backend: &Raw) -> Builder {
    tcp(driver, &all_to("backend.test"))
        .resource("backend.yaml", &yaml::backend("backend.test", backend.port()))
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read_exact(mut stream: impl Read, n: usize) -> String {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn read_to_end(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The line that an echo begins with; empty when the connection is closed without one.
fn first_line(address: SocketAddr) -> String {
    let mut line = String::new();
    // A reset is an end as well.
    let _ = BufReader::new(connect(address)).read_line(&mut line);
    line.trim_end().to_owned()
}

#[test]
fn both_sides_may_speak_first_and_each_may_end_first() {
    on_each_driver(|driver| {
        let backend = Raw::echo("a");
        let gateway = to_backend(driver, &backend).start();
        let mut stream = connect(gateway.address(PORT));
        assert_eq!(read_exact(&stream, 2), "a\n", "before the client said anything");
        stream.write_all(b"question").unwrap();
        assert_eq!(read_exact(&stream, 8), "question");
        stream.write_all(b"last").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&stream), "lastend of a", "the answer to the client's end");
        let line = gateway.access_log(1).remove(0);
        assert!(line.contains("] \"- - -\" 0 - - - \"-\" 12 22 "), "{line}");
        assert!(line.contains(&format!("\"127.0.0.1:{}\"", backend.port())), "{line}");
        let ends = Regex::new(r" outbound\|80\|\|backend\.test 127\.0\.0\.1:\d+ 127\.0\.0\.1:");
        assert!(ends.unwrap().is_match(&line), "{line}");
        let closing = Raw::closing();
        gateway.write_resource("backend.yaml", &yaml::backend("backend.test", closing.port()));
        eventually("the endpoint ends first", || first_line(gateway.address(PORT)).is_empty());
    });
}

#[test]
fn mongo_is_passed_on_as_tcp() {
    let backend = Raw::echo("a");
    let server = yaml::server(PORT, "MONGO", &["*"], "");
    let gateway = to_backend(Driver::Auto, &backend)
        .resource("gateway.yaml", &yaml::gateway("web", &server))
        .start();
    assert_eq!(first_line(gateway.address(PORT)), "a");
}

#[test]
fn much_flows_both_ways_at_once() {
    on_each_driver(|driver| {
        let backend = Raw::mirror();
        let gateway = to_backend(driver, &backend).start();
        let sent = pattern(8 * 1024 * 1024);
        let stream = connect(gateway.address(PORT));
        let mut writer = stream.try_clone().unwrap();
        let expected = checksum(&sent);
        let sending = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        // All send buffers on the way are full by then.
        std::thread::sleep(Duration::from_millis(200));
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        assert_eq!(checksum(&received), expected);
    });
}

#[test]
fn who_does_not_read_makes_the_endpoint_wait() {
    on_each_driver(|driver| {
        let sent = Arc::<AtomicUsize>::default();
        let backend = Raw::flood(Arc::clone(&sent));
        let gateway = to_backend(driver, &backend).start();
        let mut client = connect(gateway.address(PORT));
        let mut seen = usize::MAX;
        eventually("the endpoint is stuck", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = sent.load(Ordering::SeqCst);
            now > 0 && std::mem::replace(&mut seen, now) == now
        });
        // What the kernel holds for four sockets, and the gateway for one connection.
        assert!(seen < 64 * 1024 * 1024, "{seen} bytes were taken for a client that reads none");
        let mut bytes = vec![0; seen + 1];
        client.read_exact(&mut bytes).unwrap();
    });
}

#[test]
fn tls_is_terminated_and_what_is_inside_passed_on() {
    on_each_driver(|driver| {
        let backend = Raw::echo("inside");
        let server = yaml::https_server(443, &["tcp.test"], "web").replace("HTTPS", "TLS");
        let gateway = to_backend(driver, &backend)
            .certificate("web", &["tcp.test"])
            .resource("gateway.yaml", &yaml::gateway("web", &server))
            .start();
        // As from any server of TLS in Envoy: protocols that are not HTTP's are not confirmed.
        let offers = [gateway.tls(), gateway.tls().alpn(&["mqtt"]), gateway.tls().alpn(&["h2"])];
        for (tls, confirmed) in offers.iter().zip([None, None, Some(&b"h2"[..])]) {
            let mut client = Client::tls(tls, gateway.address(443), "tcp.test").unwrap();
            assert_eq!(client.connection().alpn_protocol(), confirmed);
            assert_eq!(client.read_exact(7).unwrap(), b"inside\n");
            client.send(b"through TLS").unwrap();
            assert_eq!(client.read_exact(11).unwrap(), b"through TLS");
        }
        let line = gateway.access_log(3).remove(0);
        assert!(line.contains("\"- - -\" 0 ") && line.ends_with(" tcp.test -"), "{line}");
        assert!(gateway.tls().handshake(gateway.address(443), "other.test").is_err());
    });
}

#[test]
fn clients_are_held_to_the_certificates_that_a_tls_server_wants() {
    let backend = Raw::echo("inside");
    let server =
        yaml::mutual_server(&["tcp.test"], "web", "MUTUAL", "      caCertificates: /clients.pem\n");
    let gateway = to_backend(Driver::Auto, &backend)
        .certificate("web", &["tcp.test"])
        .resource("gateway.yaml", &yaml::gateway("web", &server.replace("HTTPS", "TLS")))
        .start();
    gateway.write_file("root/clients.pem", &gateway.authority().pem());
    let known = gateway.tls().identified(&gateway.authority().leaf(&["client"]));
    let says = |tls: &Tls| {
        let client = Client::tls(tls, gateway.address(443), "tcp.test");
        client.map_or(Vec::new(), |mut client| client.read_exact(7).unwrap_or_default())
    };
    eventually("the CA is read", || says(&known) == b"inside\n");
    assert_eq!(says(&gateway.tls()), b"");
}

#[test]
fn weights_share_connections_out() {
    let (a, b, never) = (Raw::echo("a"), Raw::echo("b"), Raw::echo("never"));
    let rule = "  - route:\n\
        \x20   - { destination: { host: a.test, port: { number: 80 } }, weight: 75 }\n\
        \x20   - { destination: { host: b.test, port: { number: 80 } }, weight: 25 }\n\
        \x20   - { destination: { host: never.test, port: { number: 80 } }, weight: 0 }\n";
    let gateway = tcp(Driver::Auto, rule)
        .resource("a.yaml", &yaml::backend("a.test", a.port()))
        .resource("b.yaml", &yaml::backend("b.test", b.port()))
        .resource("never.yaml", &yaml::backend("never.test", never.port()))
        .start();
    let names: Vec<_> = (0..200).map(|_| first_line(gateway.address(PORT))).collect();
    let count = |name: &str| names.iter().filter(|found| *found == name).count();
    assert_eq!(count("a") + count("b"), 200);
    // Seven standard deviations: once in 10^11 runs it is outside.
    assert!((107..=193).contains(&count("a")), "{}", count("a"));
}

#[test]
fn the_first_rule_that_holds_wins() {
    let (first, second) = (Raw::echo("first"), Raw::echo("second"));
    let leads_to = |block: &str| {
        let rules = format!(
            "  - match: [ {{ {block} }} ]\n    route: [ {{ destination: {{ host: first.test, \
             port: {{ number: 80 }} }} }} ]\n{}",
            all_to("second.test")
        );
        let gateway = tcp(Driver::Auto, &rules)
            .resource("first.yaml", &yaml::backend("first.test", first.port()))
            .resource("second.yaml", &yaml::backend("second.test", second.port()))
            .start();
        first_line(gateway.address(PORT))
    };
    for block in [
        "destinationSubnets: [ 10.0.0.0/8, 127.0.0.1 ]",
        "sourceSubnet: 127.0.0.0/8",
        "port: 9443, gateways: [ web ]",
        "sourceLabels: { istio: ingressgateway }, sourceNamespace: istio-system",
    ] {
        assert_eq!(leads_to(block), "first", "{block}");
    }
    for block in [
        "destinationSubnets: [ 10.0.0.0/8 ]",
        "sourceSubnet: 10.0.0.0/8",
        "port: 443",
        "gateways: [ other ]",
        "sourceNamespace: default",
    ] {
        assert_eq!(leads_to(block), "second", "{block}");
    }
}

#[test]
fn another_endpoint_is_tried_when_one_is_dead() {
    let backend = Raw::echo("alive");
    let entry = yaml::backend("backend.test", backend.port());
    let endpoint = format!("{{ address: 127.0.0.1, ports: {{ http: {} }} }}", backend.port());
    let dead = "{ address: 127.0.0.1, ports: { http: 1 } }, ";
    let gateway = tcp(Driver::Auto, &all_to("backend.test"))
        .resource("backend.yaml", &entry.replace(&endpoint, &(dead.to_owned() + &endpoint)))
        .start();
    for _ in 0..30 {
        assert_eq!(first_line(gateway.address(PORT)), "alive");
    }
    let metrics = gateway.admin_get("/stats/prometheus").text();
    let failed = metrics.lines().find_map(|line| {
        line.strip_prefix("envoy_cluster_upstream_cx_connect_fail ")?.parse::<u32>().ok()
    });
    assert!(failed.unwrap() > 0, "the dead one was tried too");
}

#[test]
fn an_idle_connection_is_closed_in_the_end() {
    on_each_driver(|driver| {
        let backend = Raw::mirror();
        let gateway =
            to_backend(driver, &backend).settings("limits: { tcp_idle_timeout: 300ms }\n").start();
        assert_eq!(read_to_end(connect(gateway.address(PORT))), "");
        let line = gateway.access_log(1).remove(0);
        assert!(line.contains("\"- - -\" 0 - - tcp_session_idle_timeout "), "{line}");
    });
}

/// The service `backend.test` is treated like this.
fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{ name: backend }}\n\
         spec: {{ host: backend.test, trafficPolicy: {policy} }}\n"
    )
}

#[test]
fn a_destination_rule_says_how_long_a_connection_may_be_idle() {
    let backend = Raw::mirror();
    let idle = "{ connectionPool: { tcp: { idleTimeout: 300ms } } }";
    let gateway = to_backend(Driver::Auto, &backend).resource("rule.yaml", &rule(idle)).start();
    assert_eq!(read_to_end(connect(gateway.address(PORT))), "");
    let line = gateway.access_log(1).remove(0);
    assert!(line.contains("\"- - -\" 0 - - tcp_session_idle_timeout "), "{line}");
}

#[test]
fn a_destination_rule_limits_connections() {
    let backend = Raw::echo("a");
    // The limit of requests is for requests.
    let limit = "{ connectionPool: { tcp: { maxConnections: 2 }, http: { http2MaxRequests: 1 } } }";
    let gateway =
        to_backend(Driver::Auto, &backend).workers(1).resource("rule.yaml", &rule(limit)).start();
    let [first, second] = [(), ()].map(|()| connect(gateway.address(PORT)));
    assert_eq!(read_exact(&first, 2), "a\n");
    assert_eq!(read_exact(&second, 2), "a\n");
    assert_eq!(first_line(gateway.address(PORT)), "");
    let line = gateway.access_log(1).remove(0);
    assert!(line.contains("\"- - -\" 0 UO - - "), "{line}");
    drop(first);
    eventually("there is room again", || first_line(gateway.address(PORT)) == "a");
}

#[test]
fn clients_stay_with_an_endpoint_by_their_address() {
    let (a, b) = (Raw::echo("a"), Raw::echo("b"));
    let one = |raw: &Raw| format!("{{ address: 127.0.0.1, ports: {{ http: {} }} }}", raw.port());
    let both = yaml::backend("backend.test", a.port())
        .replace(&one(&a), &format!("{}, {}", one(&a), one(&b)));
    let policy = "{ loadBalancer: { consistentHash: { useSourceIp: true } } }";
    let gateway = tcp(Driver::Auto, &all_to("backend.test"))
        .resource("backend.yaml", &both)
        .resource("rule.yaml", &rule(policy))
        .start();
    let first = first_line(gateway.address(PORT));
    for _ in 0..20 {
        assert_eq!(first_line(gateway.address(PORT)), first);
    }
}

#[test]
fn an_endpoint_that_cannot_be_connected_to_is_left_out() {
    let backend = Raw::echo("alive");
    let endpoint = |port: u16| format!("{{ address: 127.0.0.1, ports: {{ http: {port} }} }}");
    let entry = |ports: &[u16]| {
        let all: Vec<_> = ports.iter().map(|port| endpoint(*port)).collect();
        yaml::backend("backend.test", 1).replace(&endpoint(1), &all.join(", "))
    };
    let policy = "{ outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 1h, \
                  maxEjectionPercent: 100 } }";
    let gateway = tcp(Driver::Auto, &all_to("backend.test"))
        .workers(1)
        .resource("backend.yaml", &entry(&[1, backend.port()]))
        .resource("rule.yaml", &rule(policy))
        .start();
    for _ in 0..30 {
        assert_eq!(first_line(gateway.address(PORT)), "alive");
    }
    let failed = || {
        let page = gateway.admin_get("/stats/prometheus").text();
        let name = "envoy_cluster_upstream_cx_connect_fail ";
        page.lines().find_map(|line| line.strip_prefix(name)?.parse::<u32>().ok()).unwrap()
    };
    assert_eq!(failed(), 1, "it was tried once");
    gateway.write_resource("backend.yaml", &entry(&[1, 2, 3]));
    eventually("all of them are left out", || {
        first_line(gateway.address(PORT)).is_empty() && failed() == 3
    });
    assert_eq!(first_line(gateway.address(PORT)), "");
    eventually("it is said that there is none", || {
        gateway.access_log(31).iter().any(|line| line.contains("\"- - -\" 0 UH - - "))
    });
}

#[test]
fn endpoints_may_be_spoken_tls_with() {
    let authority = Authority::new();
    let backend = Raw::tls("secured", &authority.leaf(&["backend.test"]));
    let tls = "{ tls: { mode: SIMPLE, caCertificates: /endpoint-ca.pem, \
               sni: backend.test, subjectAltNames: [ backend.test ] } }";
    let gateway = to_backend(Driver::Auto, &backend)
        .file("root/endpoint-ca.pem", &authority.pem())
        .resource("rule.yaml", &rule(tls))
        .start();
    let mut client = Client::plain(gateway.address(PORT), "any").unwrap();
    assert_eq!(client.get("/").text(), "secured");
}

#[test]
fn a_listener_that_goes_lets_its_connections_end() {
    on_each_driver(|driver| {
        let backend = Raw::echo("a");
        let gateway = to_backend(driver, &backend).start();
        let address = gateway.address(PORT);
        let mut stream = connect(address);
        assert_eq!(read_exact(&stream, 2), "a\n");
        gateway.remove_resource("gateway.yaml");
        eventually("the port is closed", || TcpStream::connect(address).is_err());
        stream.write_all(b"still").unwrap();
        assert_eq!(read_exact(&stream, 5), "still");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&stream), "end of a");
    });
}

#[test]
fn a_drain_waits_for_connections_until_its_deadline() {
    on_each_driver(|driver| {
        let backend = Raw::echo("a");
        let mut gateway =
            to_backend(driver, &backend).settings("limits: { drain_timeout: 4s }\n").start();
        let mut stream = connect(gateway.address(PORT));
        assert_eq!(read_exact(&stream, 2), "a\n");
        let begun = Instant::now();
        gateway.signal(Signal::TERM);
        eventually("the drain has begun", || gateway.logged("draining"));
        stream.write_all(b"still").unwrap();
        assert_eq!(read_exact(&stream, 5), "still");
        assert_eq!(gateway.wait().code(), Some(0));
        assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(gateway.access_log(1).len(), 1, "what was cut is logged");
    });
}

#[test]
fn an_ended_connection_does_not_hold_a_drain_up() {
    let backend = Raw::echo("a");
    let mut gateway =
        to_backend(Driver::Auto, &backend).settings("limits: { drain_timeout: 10m }\n").start();
    let stream = connect(gateway.address(PORT));
    assert_eq!(read_exact(&stream, 2), "a\n");
    gateway.signal(Signal::TERM);
    eventually("the drain has begun", || gateway.logged("draining"));
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&stream), "end of a");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn connections_and_their_bytes_are_counted_while_they_last() {
    let backend = Raw::echo("a");
    let gateway = to_backend(Driver::Auto, &backend).start();
    let value = |name: &str, labels: &[&str]| -> Option<u64> {
        let page = gateway.admin_get("/stats/prometheus").text();
        let mut lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let line = lines.find(|line| labels.iter().all(|label| line.contains(label)))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let ours = [
        "reporter=\"source\"",
        "destination_service=\"backend.test\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"unknown\"",
    ];
    let mut stream = connect(gateway.address(PORT));
    assert_eq!(read_exact(&stream, 2), "a\n");
    stream.write_all(b"hello").unwrap();
    assert_eq!(read_exact(&stream, 5), "hello");
    eventually("bytes are counted", || {
        value("istio_tcp_received_bytes_total", &ours) == Some(5)
            && value("istio_tcp_sent_bytes_total", &ours) == Some(7)
    });
    assert_eq!(value("istio_tcp_connections_opened_total", &ours), Some(1));
    assert_eq!(value("istio_tcp_connections_closed_total", &ours), Some(0));
    drop(stream);
    eventually("the end is counted", || {
        value("istio_tcp_connections_closed_total", &["destination_service=\"backend.test\""])
            == Some(1)
    });
}

/// Sends `bytes` and wants them back.
fn echoes(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    if back == bytes { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[test]
fn reloads_under_load_cut_nothing() {
    on_each_driver(|driver| {
        let (a, b) = (Raw::mirror(), Raw::mirror());
        let gateway = tcp(driver, &all_to("a.test"))
            .resource("a.yaml", &yaml::backend("a.test", a.port()))
            .resource("b.yaml", &yaml::backend("b.test", b.port()))
            .start();
        let address = gateway.address(PORT);
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
                let mut kept = connect(address);
                std::thread::spawn(move || -> std::io::Result<()> {
                    while !stop.load(Ordering::SeqCst) {
                        echoes(&mut kept, &pattern(20_000))?;
                        echoes(&mut connect(address), b"a fresh one")?;
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .collect();
        for index in 0..20 {
            let seen = rounds.load(Ordering::SeqCst);
            let rules = all_to(if index % 2 == 0 { "b.test" } else { "a.test" });
            let service = yaml::l4_service("web", "web", &["*"], "tcp", &rules);
            gateway.write_resource("route.yaml", &service);
            eventually("rounds under this route", || {
                rounds.load(Ordering::SeqCst) >= seen + 4
                    || clients.iter().any(std::thread::JoinHandle::is_finished)
            });
        }
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.join().unwrap().unwrap();
        }
        assert!(b.connections() > 0, "the route did change");
    });
}

#[test]
fn many_connections_at_once() {
    on_each_driver(|driver| {
        let backend = Raw::mirror();
        let gateway = to_backend(driver, &backend).start();
        let mut streams: Vec<_> = (0..300).map(|_| connect(gateway.address(PORT))).collect();
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write_all(format!("{index:05}").as_bytes()).unwrap();
        }
        for (index, stream) in streams.iter().enumerate() {
            assert_eq!(read_exact(stream, 5), format!("{index:05}"));
        }
        assert_eq!(backend.connections(), 300);
    });
}

/// Istio's page "TCP Traffic Shifting", with another port than 31400.
const PAGE: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: tcp-echo-gateway
spec:
  selector:
    istio: ingressgateway
  servers:
  - port:
      number: 9443
      name: tcp
      protocol: TCP
    hosts:
    - \"*\"
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: tcp-echo-destination
spec:
  host: tcp-echo
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: tcp-echo
spec:
  hosts:
  - \"*\"
  gateways:
  - tcp-echo-gateway
  tcp:
  - match:
    - port: 9443
    route:
    - destination:
        host: tcp-echo
        port:
          number: 9000
        subset: v1
      weight: 80
    - destination:
        host: tcp-echo
        port:
          number: 9000
        subset: v2
      weight: 20
";

#[test]
fn the_page_about_shifting_works_as_it_stands() {
    let (one, two) = (Raw::echo("one"), Raw::echo("two"));
    let endpoint = |raw: &Raw, version: &str| {
        format!(
            "  - {{ address: 127.0.0.1, ports: {{ tcp: {} }}, labels: {{ version: {version} }} }}\n",
            raw.port()
        )
    };
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: tcp-echo }}\n\
         spec:\n  hosts: [ tcp-echo.default.svc.cluster.local ]\n  \
         ports: [ {{ number: 9000, name: tcp, protocol: TCP }} ]\n  \
         location: MESH_INTERNAL\n  resolution: STATIC\n  endpoints:\n{}{}",
        endpoint(&one, "v1"),
        endpoint(&two, "v2")
    );
    let gateway =
        Gateway::builder().resource("page.yaml", PAGE).resource("entry.yaml", &entry).start();
    let names: Vec<_> = (0..100).map(|_| first_line(gateway.address(PORT))).collect();
    let count = |name: &str| names.iter().filter(|found| *found == name).count();
    assert_eq!(count("one") + count("two"), 100);
    // Seven standard deviations, as above.
    assert!((52..=100).contains(&count("one")) && count("two") > 0, "{}", count("one"));
    let log = gateway.access_log(100);
    let cluster = " outbound|9000|v2|tcp-echo.default.svc.cluster.local ";
    assert_eq!(log.iter().filter(|line| line.contains(cluster)).count(), count("two"));
}

#[test]
fn the_example_works_as_it_stands() {
    let backend = Raw::echo("as it stands");
    let example = include_str!("../../config/examples/tcp/tcp.yaml");
    let endpoint = format!("127.0.0.1\n    ports: {{ tcp: {} }}", backend.port());
    let example = example.replace("127.0.0.1", &endpoint).replace("31400", &PORT.to_string());
    let gateway = Gateway::builder().resource("all.yaml", &example).start();
    assert_eq!(first_line(gateway.address(PORT)), "as it stands");
}
