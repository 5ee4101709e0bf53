//! `connectionPool` and `retryBudget` of a DestinationRule, seen by client, backend and log.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::destination_rule::{HOST, ask, builder, client, get, hold, rule, with_policy};
use crate::harness::backend::Backend;
use crate::harness::client::Response;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::h2::{Frames, H2, H2cBackend, block_on};
use crate::harness::{eventually, free_port, yaml};

fn assert_overflow(response: &Response) {
    assert_eq!(response.status, 503);
    assert_eq!(response.header("x-envoy-overloaded"), Some("true"));
    assert!(response.text().ends_with("reset reason: overflow"), "{}", response.text());
}

/// How many requests of the cluster wait for a connection.
fn active(gateway: &Gateway) -> usize {
    let page = gateway.admin_get("/stats/prometheus").text();
    let line = page.lines().find(|line| line.starts_with("envoy_http_downstream_rq_active"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn more_than_the_connections_and_who_may_wait_for_one_is_an_overflow() {
    let backend = Backend::start("a");
    let policy = "{ connectionPool: { tcp: { maxConnections: 1 }, http: { \
                  http1MaxPendingRequests: 1 } } }";
    let gateway = with_policy(&[&backend], policy).start();
    let mut first = hold(&gateway, &backend);
    let mut second = ask(&gateway, "/name");
    eventually("the second waits", || active(&gateway) == 2);
    assert_overflow(&get(&gateway, "/name"));
    backend.release();
    assert_eq!(first.response("GET").unwrap().status, 200);
    assert_eq!(second.response("GET").unwrap().text(), "a");
    assert_eq!(get(&gateway, "/name").text(), "a");
    assert_eq!(backend.connections(), 1);
    let page = gateway.admin_get("/stats/prometheus").text();
    assert!(page.contains("\nenvoy_cluster_upstream_rq_pending_overflow 1\n"), "{page}");
    let log = gateway.access_log(4);
    let expected = " 503 UO upstream_reset_before_response_started{overflow} ";
    assert!(log.iter().any(|line| line.contains(expected)), "{log:#?}");
}

#[test]
fn more_than_the_requests_is_an_overflow() {
    let backend = Backend::start("a");
    let policy = "{ connectionPool: { http: { http2MaxRequests: 1 } } }";
    let gateway = with_policy(&[&backend], policy).start();
    let mut first = hold(&gateway, &backend);
    assert_overflow(&get(&gateway, "/name"));
    backend.release();
    assert_eq!(first.response("GET").unwrap().status, 200);
    assert_eq!(get(&gateway, "/name").text(), "a");
}

#[test]
fn a_connection_carries_so_many_requests() {
    let backend = Backend::start("a");
    let policy = "{ connectionPool: { http: { maxRequestsPerConnection: 2 } } }";
    let gateway = with_policy(&[&backend], policy).start();
    let mut client = client(&gateway);
    for connections in [1, 1, 2, 2, 3] {
        assert_eq!(client.get("/name").text(), "a");
        assert_eq!(backend.connections(), connections);
    }
}

#[test]
fn a_connection_that_is_idle_or_old_is_not_used_again() {
    for pool in ["{ http: { idleTimeout: 50ms } }", "{ tcp: { maxConnectionDuration: 50ms } }"] {
        let backend = Backend::start("a");
        let policy = format!("{{ connectionPool: {pool} }}");
        let gateway = with_policy(&[&backend], &policy).start();
        let mut client = client(&gateway);
        client.get("/name");
        thread::sleep(Duration::from_millis(60));
        client.get("/name");
        assert_eq!(backend.connections(), 2, "{pool}");
    }
}

/// A listener whose queue is full, so that connects wait.
fn full_listener() -> (Socket, Vec<Socket>) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let queued = (0..4).map(|_| {
        let socket = socket();
        socket.set_nonblocking(true).unwrap();
        // It is under way, which is all that it is to be.
        let _ = socket.connect(&listener.local_addr().unwrap());
        socket
    });
    let queued = queued.collect();
    (listener, queued)
}

#[test]
fn a_connect_takes_so_long() {
    let (listener, _queued) = full_listener();
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    let policy = "  trafficPolicy: { connectionPool: { tcp: { connectTimeout: 50ms } } }\n";
    let gateway = builder(&[], &[])
        .resource("backends.yaml", &yaml::backend(HOST, port))
        .resource("rule.yaml", &rule(policy))
        .start();
    let begin = Instant::now();
    assert_eq!(get(&gateway, "/name").status, 503);
    assert!(begin.elapsed() < Duration::from_secs(9), "10 s are the default");
    let log = gateway.access_log(1);
    let expected = " UF,URX upstream_reset_before_response_started{connection_timeout} ";
    assert!(log[0].contains(expected), "{}", log[0]);
}

/// The timer of the socket that is connected to `port`, as the kernel shows it.
fn timer_towards(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    let is_it = |fields: &Vec<&str>| fields[2] == remote && fields[3] == "01";
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(is_it).map(|fields| fields[5].to_owned())
}

#[test]
fn a_silent_connection_is_probed() {
    for (keepalive, is_probed) in [("", false), (", tcpKeepalive: { probes: 3, time: 50s }", true)]
    {
        let backend = Backend::start("a");
        let policy = format!("{{ connectionPool: {{ tcp: {{ maxConnections: 9{keepalive} }} }} }}");
        let gateway = with_policy(&[&backend], &policy).start();
        get(&gateway, "/name");
        eventually("the timer", || {
            let timer = timer_towards(backend.port()).expect("an idle connection");
            // 02 is the keepalive's; then the time left, in hundredths of a second.
            let left =
                timer.strip_prefix("02:").and_then(|left| u64::from_str_radix(left, 16).ok());
            let is_ours = left.is_some_and(|left| left <= 5_000);
            is_ours == is_probed && (is_probed || timer.starts_with("00:"))
        });
    }
}

/// A gateway whose host retries what is 503, with `policy` for its cluster.
fn retrying(backend: &Backend, policy: &str) -> Builder {
    let retries = "retries: { attempts: 2, retryOn: gateway-error, backoff: 1ms }";
    let rules = yaml::all_to(HOST).replacen("route:", &format!("{retries}\n    route:"), 1);
    with_policy(&[backend], policy)
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &rules))
}

#[test]
fn retries_have_a_budget() {
    for (percent, requests, flags) in [(0, 1, " 503 UO "), (100, 3, " 503 URX ")] {
        let backend = Backend::start("a");
        let policy = format!("{{ retryBudget: {{ percent: {percent}, minRetryConcurrency: 0 }} }}");
        let gateway = retrying(&backend, &policy).start();
        assert_eq!(get(&gateway, "/status/503").status, 503);
        assert_eq!(backend.requests(), requests, "{percent} %");
        let log = gateway.access_log(1);
        assert!(log[0].contains(flags), "{}", log[0]);
    }
}

#[test]
fn only_so_many_retries_are_under_way() {
    let (live, dead) = (Backend::start("a"), free_port());
    let both = format!(
        "  endpoints:\n  - {{ address: 127.0.0.1, ports: {{ http: {} }} }}\n  \
         - {{ address: 127.0.0.1, ports: {{ http: {dead} }} }}\n",
        live.port()
    );
    let entry = yaml::backend(HOST, 1);
    let entry = entry.split("  endpoints:").next().unwrap();
    let policy = "{ loadBalancer: { consistentHash: { httpHeaderName: x-key } }, \
                  connectionPool: { http: { maxRetries: 1 } } }";
    let once = yaml::uri_to("exact: /name", HOST).replacen(
        "    route:",
        "    retries: { attempts: 0 }\n    route:",
        1,
    );
    let rules = once + &yaml::all_to(HOST);
    let gateway = with_policy(&[], policy)
        .resource("backends.yaml", &format!("{entry}{both}"))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &rules))
        .start();
    let send = |path: &str, key: u32| {
        let mut client = client(&gateway);
        let head = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nx-key: {key}\r\n\r\n");
        client.send(head.as_bytes()).unwrap();
        client
    };
    // A key of the dead one, so that every request with it is retried.
    let is_dead = |key: &u32| send("/name", *key).response("GET").unwrap().status == 503;
    let key = (0..64).find(is_dead).expect("one of many keys");
    let before = live.requests();
    let mut first = send("/hold", key);
    live.wait_requests(before + 1);
    assert_eq!(send("/hold", key).response("GET").unwrap().status, 503);
    live.release();
    assert_eq!(first.response("GET").unwrap().status, 200);
    let is_overflow = |line: &String| line.contains("/hold") && line.contains(" 503 UF,UO ");
    eventually("it is logged", || gateway.access_log(1).iter().any(is_overflow));
}

/// A gateway with a TLS host, so that its clients choose the protocol.
fn with_tls(backend: &str, policy: &str) -> Gateway {
    Gateway::builder()
        .serving(HOST, backend)
        .workers(1)
        .resource(
            "rule.yaml",
            &rule(&format!("  trafficPolicy: {policy}\n"))
                .replace(&format!("host: {HOST}"), "host: backend.test"),
        )
        .start()
}

#[test]
fn http2_may_be_asked_for() {
    let backend = H2cBackend::start();
    let entry = yaml::backend("backend.test", backend.port());
    for (policy, status) in [("DO_NOT_UPGRADE", 503), ("UPGRADE", 200)] {
        let policy = format!("{{ connectionPool: {{ http: {{ h2UpgradePolicy: {policy} }} }} }}");
        let gateway = with_tls(&entry, &policy);
        let response = gateway.get(HOST, "/");
        assert_eq!(response.status == 200, status == 200, "{policy}: {}", response.status);
        assert!(status != 200 || response.header("x-version") == Some("HTTP/2.0"));
    }
}

#[test]
fn the_clients_protocol_may_be_spoken() {
    let policy = "{ connectionPool: { http: { useClientProtocol: true } } }";
    let (old, new) = (Backend::start("a"), H2cBackend::start());
    for (port, http1, http2) in [(old.port(), true, false), (new.port(), false, true)] {
        let gateway = with_tls(&yaml::backend("backend.test", port), policy);
        assert_eq!(gateway.get(HOST, "/name").status == 200, http1);
        let status = block_on(async {
            let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
            client.get("/name").await.unwrap().status
        });
        assert_eq!(status == 200, http2);
    }
}

#[test]
fn a_connection_has_so_many_streams() {
    let backend = H2cBackend::start();
    let entry = yaml::backend_h2c("backend.test", backend.port());
    let gateway = with_tls(&entry, "{ connectionPool: { http: { maxConcurrentStreams: 1 } } }");
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        // More than the windows hold: its echo ends only when it is read.
        let body = || Frames::of(vec![0; 4 << 20]);
        let request = || client.builder("POST", "/").body(body()).unwrap();
        let first = client.open(request()).await.unwrap();
        let second = client.open(request()).await.unwrap();
        assert_eq!([first.status(), second.status()].map(|status| status.as_u16()), [200, 200]);
    });
    assert_eq!(backend.connections(), 2);
}

/// Speaks HTTP/2, and answers neither requests nor pings; how many pings there were until the
/// gateway closed the connection.
fn count_pings(mut stream: TcpStream) -> io::Result<usize> {
    // Its settings, and that it has read those of the gateway.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0])?;
    stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()])?;
    let (mut pings, mut head) = (0, [0; 9]);
    while stream.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        io::copy(&mut (&stream).take(length.into()), &mut io::sink())?;
        pings += usize::from(head[3] == 6);
    }
    Ok(pings)
}

#[test]
fn a_connection_that_answers_no_ping_is_closed() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let backend = thread::spawn(move || count_pings(listener.accept().unwrap().0));
    let policy = "{ connectionPool: { http: { h2UpgradePolicy: UPGRADE, http2KeepAlive: { \
                  interval: 200ms, timeout: 300ms } } } }";
    let entry = yaml::backend(HOST, port);
    let rules = rule(&format!("  trafficPolicy: {policy}\n"));
    let gateway =
        builder(&[], &[]).resource("backends.yaml", &entry).resource("rule.yaml", &rules).start();
    assert_eq!(get(&gateway, "/").status, 503);
    assert_eq!(backend.join().unwrap().unwrap(), 1);
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 503 UC "), "{log:?}");
}
