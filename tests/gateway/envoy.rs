//! What Envoy does with requests, down to its words, so that who comes from Istio finds it again.

use std::time::Duration;

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Response};
use crate::harness::gateway::{Builder, Gateway, on_each_driver};
use crate::harness::h2::{H2, block_on};
use crate::harness::{eventually, free_port, outside, yaml};

const HOST: &str = "web.test";

/// A gateway whose TLS port and whose plain port send everything for `web.test` to `backend`.
fn both_ports(backend: &Backend) -> Builder {
    let servers = [
        yaml::https_server(443, &[HOST], "web"),
        yaml::http_server(80, &[HOST, "two.test"], false),
    ];
    Gateway::builder()
        .serving(HOST, &yaml::backend("backend.test", backend.port()))
        .resource("gateway.yaml", &yaml::gateway("web", &servers.concat()))
}

/// One request of these bytes on a new plain connection.
fn plain(gateway: &Gateway, request: &str) -> Response {
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    client.send(request.as_bytes()).unwrap();
    client.response("GET").unwrap_or_else(|error| panic!("{request:?}: {error}"))
}

/// The values of a header in a request's head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[test]
fn a_path_reaches_the_backend_in_its_normal_form() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let cases = [
        ("/head/x/../a", "/head/a"),
        ("/head/%2e%2E/head/./b", "/head/b"),
        ("/head//c", "/head//c"),
        ("/head/%2Fd%2fe", "/head/%2Fd%2fe"),
        ("/head\\f", "/head/f"),
        ("/head/g#fragment", "/head/g"),
        ("/head/%41?%41=../..", "/head/A?%41=../.."),
    ];
    let reached = |head: &str| head.split(' ').nth(1).unwrap().to_owned();
    for (path, expected) in cases {
        let answer = plain(&gateway, &format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
        assert_eq!(reached(&answer.text()), expected, "HTTP/1.1 {path}");
    }
    for path in ["/%00", "/head/%00"] {
        let answer = plain(&gateway, &format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
        assert_eq!(answer.status, 400, "{path}");
    }
    let port = gateway.address(443).port();
    for (path, expected) in cases {
        let Some(mut curl) = outside::tool("curl") else { return };
        curl.args(["-s", "--http2", "--path-as-is", "--request-target", path, "--cacert"]);
        curl.arg(gateway.path("ca.pem")).arg("--resolve");
        curl.arg(format!("{HOST}:{port}:127.0.0.1")).arg(format!("https://{HOST}:{port}/"));
        let (code, head) = outside::output(&mut curl);
        assert_eq!((code, reached(&head).as_str()), (Some(0), expected), "HTTP/2 {path}");
    }
}

#[test]
fn a_host_is_found_in_every_form_of_it_and_in_no_other() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let status = |target: &str, host: &str| {
        plain(&gateway, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")).status
    };
    for host in ["web.test", "web.test:80", "web.test:12345", "web.test.", "web.test.:80"] {
        assert_eq!(status("/name", host), 200, "{host}");
    }
    for host in ["a.web.test", "web.test..", "web.tes", "[::1]", "xweb.test"] {
        assert_eq!(status("/name", host), 404, "{host}");
    }
    for host in ["", "web.test/", "user@web.test", "web test"] {
        assert_eq!(status("/name", host), 400, "{host}");
    }
    // RFC 9112, section 3.2.2: the target's host counts, whatever the field says.
    assert_eq!(status("http://web.test/name", "other.test"), 200);
    assert_eq!(status("http://other.test/name", HOST), 404);
    let head = plain(&gateway, "GET http://web.test/head HTTP/1.1\r\nhost: x\r\n\r\n").text();
    assert_eq!(values(&head, "host"), [HOST]);
    assert!(head.starts_with("GET /head HTTP/1.1\r\n"), "{head}");
}

#[test]
fn what_is_over_a_limit_of_connections_is_closed_and_logged() {
    let backend = Backend::start("a");
    let settings = "limits: { connections_max: 1 }\n";
    let gateway = both_ports(&backend).workers(1).settings(settings).start();
    let silent = Client::plain(gateway.address(443), HOST).unwrap();
    let line = "\"- - -\" 0 LR connection_limit - ";
    eventually("one more is refused", || {
        gateway.try_client(HOST).is_err() && gateway.access_log(1).join("\n").contains(line)
    });
    drop(silent);
    eventually("there is room again", || gateway.try_client(HOST).is_ok());
    assert!(overflows(&gateway) >= 1);
}

/// Idle connections that had to make room.
fn gone(gateway: &Gateway) -> u32 {
    let metrics = gateway.admin_get("/stats/prometheus").text();
    let name = "ringgate_listener_connections_gave_way_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap()
}

/// A new connection, which there is room for as soon as one of the others counts as idle.
fn admitted(gateway: &Gateway) -> Client {
    let mut client = None;
    eventually("there is room for it", || {
        client = gateway.try_client(HOST).ok();
        client.is_some()
    });
    client.unwrap()
}

#[test]
fn for_a_new_connection_the_one_that_is_idle_longest_gives_way() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let settings = "limits: { connections_max: 4 }\n";
        let gateway = both_ports(&backend).driver(driver).workers(1).settings(settings).start();
        let mut busy = gateway.client(HOST);
        busy.send(b"GET /hold HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
        backend.wait_requests(1);
        let mut first = gateway.client(HOST);
        assert_eq!(first.get("/name").text(), "a");
        let mut silent = Client::plain(gateway.address(80), HOST).unwrap();
        // Far longer than after its request a connection counts as idle.
        std::thread::sleep(Duration::from_millis(500));
        let mut last = gateway.client(HOST);
        assert_eq!(last.get("/name").text(), "a");
        let mut new = Vec::new();
        for (n, leaver) in (1..).zip([&mut silent, &mut first]) {
            new.push(admitted(&gateway));
            assert_eq!(leaver.read_to_close(), b"");
            assert_eq!(new.last_mut().unwrap().get("/name").text(), "a");
            assert_eq!(gone(&gateway), n);
        }
        assert_eq!(last.get("/name").text(), "a", "it was not its turn");
        backend.release();
        assert_eq!(busy.response("GET").unwrap().status, 200, "who is served is not idle");
    });
}

#[test]
fn clients_leave_files_to_the_administration() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).workers(1).open_files(256).start();
    let silent = (0..400).map(|_| Client::plain(gateway.address(80), HOST).unwrap());
    let _silent: Vec<_> = silent.collect();
    eventually("all were accepted", || gone(&gateway) >= 400 - 256 * 7 / 8);
    assert_eq!(gateway.client(HOST).get("/name").text(), "a");
}

#[test]
fn http2_without_a_stream_gives_way_too() {
    let backend = Backend::start("a");
    let settings = "limits: { connections_max: 1 }\n";
    let gateway = both_ports(&backend).workers(1).settings(settings).start();
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        let asking = client.clone();
        let waiting = tokio::spawn(async move { asking.get("/hold").await });
        while backend.requests() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(gateway.try_client(HOST).is_err(), "it has a stream");
        backend.release();
        assert_eq!(waiting.await.unwrap().unwrap().status, 200);
        assert_eq!(admitted(&gateway).get("/name").text(), "a");
        assert!(client.get("/name").await.is_err());
    });
    assert_eq!(gone(&gateway), 1);
}

#[test]
fn who_keeps_silent_keeps_nobody_else_from_a_handshake() {
    let backend = Backend::start("a");
    let settings = "limits: { handshakes_max: 3 }\n";
    let gateway = both_ports(&backend).workers(1).settings(settings).start();
    let mut silent: Vec<_> =
        (0..3).map(|_| Client::plain(gateway.address(443), HOST).unwrap()).collect();
    assert_eq!(gateway.client(HOST).get("/name").text(), "a");
    assert_eq!(silent[0].read_to_close(), b"", "the oldest gives way");
    let log = gateway.access_log(2).join("\n");
    assert!(log.contains("\"- - -\" 0 LR handshake_limit - "), "{log}");
    assert!(overflows(&gateway) >= 1);
}

/// Connections over a limit.
fn overflows(gateway: &Gateway) -> u32 {
    let metrics = gateway.admin_get("/stats/prometheus").text();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("envoy_listener_downstream_cx_overflow ")?.parse().ok());
    line.unwrap()
}

#[test]
fn who_stands_still_is_closed_in_the_time_of_the_settings() {
    let backend = Backend::start("a");
    let limits = "limits: { handshake_timeout: 200ms, head_timeout: 250ms, idle_timeout: 300ms, \
                  stream_idle_timeout: 350ms }\n";
    let gateway = both_ports(&backend).settings(limits).start();
    let mut shaking = Client::plain(gateway.address(443), HOST).unwrap();
    // The first bytes of a ClientHello.
    shaking.send(&[22, 3, 1, 0, 200, 1, 0]).unwrap();
    assert_eq!(shaking.read_to_close(), b"");
    let log = gateway.access_log(1).remove(0);
    assert!(log.contains("\"- - -\" 0 - handshake_timeout "), "{log}");
    let mut heading = gateway.client(HOST);
    heading.send(b"GET /name HTTP/1.1\r\nhost:").unwrap();
    assert_eq!(heading.read_to_close(), b"");
    let mut idle = gateway.client(HOST);
    assert_eq!(idle.get("/name").text(), "a");
    assert_eq!(idle.read_to_close(), b"");
    let mut uploading = gateway.client(HOST);
    uploading.send(b"POST /body HTTP/1.1\r\nhost: web.test\r\ncontent-length: 9\r\n\r\nx").unwrap();
    let answer = uploading.response("POST").map(|response| response.status);
    assert!(!matches!(answer, Ok(200)), "{answer:?}");
    assert_eq!(gateway.get(HOST, "/hold").status, 504);
    let log = gateway.access_log(4).pop().unwrap();
    assert!(log.contains("\"GET /hold HTTP/1.1\" 504 UT "), "{log}");
}

#[test]
fn tls_on_a_plain_port_is_a_bad_request() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    client.send(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]).unwrap();
    client.send(&[b'x'; 20]).unwrap();
    assert_eq!(client.response("GET").unwrap().status, 400);
    assert_eq!(client.read_to_close(), b"");
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 400 DPE "), "{log:?}");
}

#[test]
fn an_http2_head_beyond_the_limits_ends_its_stream_alone() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        let request = || client.builder("GET", "/name");
        let empty = crate::harness::h2::Frames::empty;
        let large = request().header("x-large", "x".repeat(62 * 1024));
        let many = (0..120).fold(request(), |request, n| request.header(format!("x-{n}"), "1"));
        for refused in [large, many] {
            // Either is told, or the stream is reset, which is an error here.
            let answer = client.send(refused.body(empty()).unwrap()).await;
            assert!(answer.is_err() || answer.unwrap().status == 431);
        }
        let fits = request().header("x-large", "x".repeat(58 * 1024));
        assert_eq!(client.send(fits.body(empty()).unwrap()).await.unwrap().status, 200);
    });
    assert_eq!(backend.requests(), 1);
}

/// The settings that a server of HTTP/2 begins with, and its first WINDOW_UPDATE.
#[test]
fn http2_begins_with_the_limits_of_the_settings() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let (mut settings, mut window) = (Vec::new(), None);
    while settings.is_empty() || window.is_none() {
        let head = client.read_exact(9).unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let body = client.read_exact(length).unwrap();
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
        match (head[3], head[4]) {
            (4, 0) => settings = body.chunks(6).map(|s| (s[1], number(&s[2..]))).collect(),
            (8, _) => window = Some(number(&body) + 65_535),
            _ => {}
        }
    }
    let value = |id: u8| settings.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
    assert_eq!(value(3), Some(100), "concurrent streams");
    // 65,535 is what counts without the setting.
    assert_eq!(value(4).unwrap_or(65_535) / 1_000, 65, "window of a stream");
    assert_eq!(value(6), Some(60 * 1024), "size of a head");
    assert_eq!(window, Some(1 << 20), "window of the connection");
}

#[test]
fn misdirected_requests_are_those_of_the_table_of_gateway_api() {
    let cases = [
        ("example.org", "example.org", 200),
        ("example.org", "second-example.org", 421),
        ("example.org", "unknown-example.org", 404),
        ("second-example.org", "second-example.org", 200),
        ("second-example.org", "example.org", 421),
        ("second-example.org", "unknown-example.org", 421),
        ("third-example.wildcard.org", "third-example.wildcard.org", 200),
        ("third-example.wildcard.org", "fith-example.wildcard.org", 200),
        ("third-example.wildcard.org", "fourth-example.wildcard.org", 421),
        ("third-example.wildcard.org", "second-example.org", 421),
        ("third-example.wildcard.org", "unknown-example.org", 421),
        ("fourth-example.wildcard.org", "fourth-example.wildcard.org", 200),
        ("fourth-example.wildcard.org", "fith-example.wildcard.org", 421),
        ("unknown-example.org", "example.org", 200),
        ("unknown-example.org", "unknown-example.org", 404),
    ];
    let names = [
        ("any", "*"),
        ("second", "second-example.org"),
        ("wild", "*.wildcard.org"),
        ("fourth", "fourth-example.wildcard.org"),
    ];
    let all = ["example.org", "second-example.org", "*.wildcard.org", "unknown-example.org"];
    for misdirected in [421, 404] {
        let mut builder = Gateway::builder()
            .workers(1)
            .settings(&format!("http: {{ misdirected: {misdirected} }}\n"));
        for (name, host) in names {
            let served = if host == "*" { "example.org" } else { host };
            let rule = "  - directResponse: { status: 200, body: { string: it } }\n";
            let server = yaml::gateway(name, &yaml::https_server(443, &[host], name));
            let route = yaml::virtual_service(name, name, &[served], rule);
            builder = builder
                .certificate(name, &all)
                .resource(&format!("{name}.yaml"), &yaml::documents(&[server, route]));
        }
        let gateway = builder.start();
        for (sni, host, expected) in cases {
            let expected = if expected == 421 { misdirected } else { expected };
            let mut client = gateway.client(sni);
            client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).unwrap();
            let status = client.response("GET").unwrap().status;
            assert_eq!(status, expected, "SNI {sni}, host {host}");
        }
        let log = gateway.access_log(cases.len()).join("\n");
        let lines = log.matches(&format!(" {misdirected} NR misdirected_request ")).count();
        assert_eq!(lines, 7, "{log}");
    }
}

#[test]
fn a_client_is_who_the_trusted_proxies_say() {
    const CHAIN: &str = "56.5.6.7, 72.9.5.6, 98.1.2.3";
    let backend = Backend::start("a");
    // Trusted proxies, what the client says, the client's address.
    let cases = [
        (0, CHAIN, None, "http"),
        (1, CHAIN, Some("98.1.2.3"), "https"),
        (2, CHAIN, Some("72.9.5.6"), "https"),
        (2, "98.1.2.3", None, "https"),
        (2, "nonsense, 98.1.2.3", None, "https"),
        (1, "2001:db8::1", Some("2001:db8::1"), "https"),
    ];
    for (proxies, chain, client, scheme) in cases {
        let settings = format!("http: {{ trusted_proxies: {proxies} }}\n");
        let gateway = both_ports(&backend).workers(1).settings(&settings).start();
        let head = plain(
            &gateway,
            &format!(
                "GET /head HTTP/1.1\r\nhost: {HOST}\r\nx-forwarded-for: {chain}\r\n\
                 x-forwarded-proto: https\r\nx-envoy-external-address: 6.6.6.6\r\n\r\n"
            ),
        );
        let (head, case) = (head.text(), format!("{proxies} proxies, {chain}"));
        let external = client.unwrap_or("127.0.0.1");
        assert_eq!(values(&head, "x-envoy-external-address"), [external], "{case}");
        assert_eq!(values(&head, "x-forwarded-for"), [format!("{chain},127.0.0.1")], "{case}");
        assert_eq!(values(&head, "x-forwarded-proto"), [scheme], "{case}");
        let log = gateway.access_log(1).remove(0);
        // The last but two of its columns; who is known by hearsay has no port.
        let remote = log.rsplit(' ').nth(2).unwrap();
        match client {
            Some(client) if client.contains(':') => assert_eq!(remote, format!("[{client}]:0")),
            Some(client) => assert_eq!(remote, format!("{client}:0"), "{case}"),
            None => assert!(remote.starts_with("127.0.0.1:"), "{case}: {log}"),
        }
    }
}

#[test]
fn plain_requests_are_redirected_unless_a_trusted_proxy_had_them_by_https() {
    let backend = Backend::start("a");
    let servers = [yaml::http_server(80, &[HOST, "bare.test"], true)];
    let closed = yaml::http_server(8443, &[HOST], false);
    let rule = yaml::all_to("backend.test");
    for (proxies, told, expected) in [(0, "https", 301), (1, "http", 301), (1, "https", 200)] {
        let gateway = Gateway::builder()
            .workers(1)
            .settings(&format!("http: {{ trusted_proxies: {proxies} }}\n"))
            .resource("gateway.yaml", &yaml::gateway("web", &servers.concat()))
            .resource("closed.yaml", &yaml::gateway("closed", &closed))
            .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &rule))
            .resource("backend.yaml", &yaml::backend("backend.test", backend.port()))
            .start();
        let head = |host: &str| {
            format!("GET /name?q HTTP/1.1\r\nhost: {host}\r\nx-forwarded-proto: {told}\r\n\r\n")
        };
        let answer = plain(&gateway, &head(HOST));
        assert_eq!(answer.status, expected, "{proxies} proxies, {told}");
        if expected == 301 {
            assert_eq!(answer.header("location"), Some("https://web.test/name?q"));
            let bare = plain(&gateway, &head("bare.test:80"));
            let location = (bare.status, bare.header("location"));
            assert_eq!(location, (301, Some("https://bare.test:80/name?q")), "without a route");
        }
        assert_eq!(plain(&gateway, &head("other.test")).status, 404, "no host of the server");
        let mut client = Client::plain(gateway.address(8443), HOST).unwrap();
        assert_eq!(client.get("/name").status, 404, "no VirtualService and no redirect");
    }
}

#[test]
fn only_trailers_of_te_pass() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let te = |fields: &str| {
        let request = format!("GET /head HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n");
        values(&plain(&gateway, &request).text(), "te").join("|")
    };
    assert_eq!(te("te: trailers\r\n"), "trailers");
    assert_eq!(te("te: trailers, deflate;q=0.5\r\nconnection: te\r\n"), "trailers");
    assert_eq!(te("te: deflate\r\nte: Trailers\r\n"), "trailers");
    assert_eq!(te("te: deflate\r\n"), "");
}

#[test]
fn what_a_client_says_as_if_it_were_a_gateway_does_not_pass() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let forged = "x-envoy-retry-on: 5xx\r\nx-envoy-upstream-rq-timeout-ms: 1\r\n\
                  x-envoy-original-path: /x\r\nx-envoy-internal: true\r\n\
                  x-envoy-external-address: 6.6.6.6\r\nx-forwarded-client-cert: forged\r\n\
                  x_envoy_internal: true\r\n\
                  x-forwarded-host: kept\r\ntraceparent: 00-1-2-01\r\nx-b3-traceid: 1\r\n";
    let head =
        plain(&gateway, &format!("GET /head HTTP/1.1\r\nhost: {HOST}\r\n{forged}\r\n")).text();
    let head = head.to_ascii_lowercase();
    let mut names: Vec<_> =
        head.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name).collect();
    names.sort_unstable();
    let expected = "host traceparent x-b3-traceid x-envoy-attempt-count x-envoy-external-address \
                    x-forwarded-for x-forwarded-host x-forwarded-proto x-request-id";
    assert_eq!(names.join(" "), expected);
    assert_eq!(values(&head, "x-envoy-external-address"), ["127.0.0.1"]);
}

#[test]
fn early_hints_and_answers_without_a_body_keep_the_connection_in_step() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let mut client = gateway.client(HOST);
    client.send(b"GET /early HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
    assert_eq!(client.response_head().unwrap().status, 200, "as by Envoy, no 103");
    assert_eq!(client.read_exact(5).unwrap(), b"early");
    for (method, path) in [("GET", "/status/204"), ("GET", "/status/304"), ("HEAD", "/bytes/9")] {
        let answer = client.request(method, path, "", b"").unwrap();
        assert_eq!(answer.body, b"", "{method} {path}");
        assert_eq!(client.get("/name").text(), "a", "after {method} {path}");
    }
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        for path in ["/early", "/status/204", "/status/304"] {
            assert!(client.get(path).await.unwrap().status < 400, "{path}");
        }
        let head = client.builder("HEAD", "/bytes/9");
        let head = client.send(head.body(crate::harness::h2::Frames::empty()).unwrap()).await;
        let head = head.unwrap();
        assert_eq!((&head.headers["content-length"], head.body.len()), (&"9".parse().unwrap(), 0));
    });
}

/// Rules that each fail in a way of their own; those for `backend.test` are served by a backend.
fn failing_rules() -> String {
    let to = |host: &str| {
        format!("route: [ {{ destination: {{ host: {host}, port: {{ number: 80 }} }} }} ]")
    };
    let all = to("backend.test");
    let on = |path: &str, rest: &str| {
        format!("  - {{ name: r, match: [ {{ uri: {{ prefix: {path} }} }} ], {rest} }}\n")
    };
    let once = "retries: { attempts: 0 }";
    let twice = "retries: { attempts: 1, perTryTimeout: 50ms, retryOn: 5xx }";
    let share = "percentage: { value: 100 }";
    let rules = [
        on("/nc", &all.replace("80", "81")),
        on("/subset", &all.replace("port:", "subset: none, port:")),
        on("/uh", &to("idle")),
        on("/uf", &format!("{once}, {}", to("dead.test"))),
        on("/close", &format!("{once}, {all}")),
        on("/garbage", &format!("{once}, {all}")),
        on("/hold/ut", &format!("{once}, timeout: 100ms, {all}")),
        on("/hold/try", &format!("{twice}, {all}")),
        on("/status/500", &format!("retries: {{ attempts: 1, retryOn: 5xx }}, {all}")),
        on("/name/fi", &format!("fault: {{ abort: {{ httpStatus: 418, {share} }} }}, {all}")),
        on("/name/di", &format!("fault: {{ delay: {{ fixedDelay: 5ms, {share} }} }}, {all}")),
        on("/direct", "directResponse: { status: 299 }"),
        on("/redirect", "redirect: { uri: /name }"),
        on("/hold", &all),
    ];
    rules.concat()
}

/// The path that leads to each, and what the log says then.
const FAILURES: [(&str, &str); 15] = [
    ("/else", "404 NR route_not_found"),
    ("/nc", "503 NC cluster_not_found"),
    ("/subset", "503 NC cluster_not_found"),
    ("/uh", "503 UH no_healthy_upstream"),
    ("/uf", "503 UF upstream_reset_before_response_started{connection_failure}"),
    ("/close", "503 UC upstream_reset_before_response_started{connection_termination}"),
    ("/garbage", "502 UPE upstream_reset_before_response_started{protocol_error}"),
    ("/hold/ut", "504 UT response_timeout"),
    ("/hold/try", "504 UT,URX upstream_per_try_timeout"),
    ("/status/500", "500 URX via_upstream"),
    ("/name/fi", "418 FI fault_filter_abort"),
    ("/name/di", "200 DI via_upstream"),
    ("/direct", "299 - direct_response"),
    ("/redirect", "301 - direct_response"),
    ("/%00", "400 DPE path_normalization_failed"),
];

#[test]
fn every_way_to_fail_has_envoys_flags_and_details() {
    let backend = Backend::start("a");
    let idle = "apiVersion: v1\nkind: Service\nmetadata: { name: idle }\n\
                spec: { ports: [ { number: 80, name: http, port: 80 } ] }\n";
    let dead = yaml::backend("dead.test", free_port());
    let gateway = both_ports(&backend)
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &failing_rules()))
        .resource("more.yaml", &yaml::documents(&[idle.to_owned(), dead]))
        .start();
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    for (path, _) in FAILURES {
        client.get(path);
    }
    let before = backend.requests();
    let mut leaving = Client::plain(gateway.address(80), HOST).unwrap();
    leaving.send(b"GET /hold HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
    backend.wait_requests(before + 1);
    drop(leaving);
    let log = gateway.access_log(FAILURES.len() + 1).join("\n");
    for (path, expected) in FAILURES {
        let expected = format!("\"GET {path} HTTP/1.1\" {expected} - ");
        assert!(log.contains(&expected), "{expected}\n{log}");
    }
    let left = "\"GET /hold HTTP/1.1\" 0 DC downstream_remote_disconnect - ";
    assert!(log.contains(left), "{log}");
}

#[test]
fn what_the_gateway_tells_grpc_clients_is_logged_and_counted_as_they_get_it() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let call = "content-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let answer = plain(&gateway, &format!("POST /x HTTP/1.1\r\nhost: two.test\r\n{call}"));
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("12")));
    let log = gateway.access_log(1);
    assert!(log[0].contains("\"POST /x HTTP/1.1\" 200 NR route_not_found "), "{log:?}");
    let metrics = gateway.admin_get("/stats/prometheus").text();
    let series = "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"12\",\
                  response_flags=\"NR\"} 1\n";
    let counted = metrics.lines().filter(|line| line.starts_with("istio_requests_total{"));
    let counted: Vec<_> = counted.map(|line| format!("{line}\n")).collect();
    assert!(counted.iter().any(|line| line.ends_with(series)), "{counted:?}");
}

#[test]
fn the_keys_of_a_json_line_are_istios() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).log_format("json").start();
    assert_eq!(gateway.get(HOST, "/name").status, 200);
    let line: serde_json::Value = serde_json::from_str(&gateway.access_log(1)[0]).unwrap();
    let mut keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = "authority bytes_received bytes_sent connection_termination_details \
        downstream_local_address downstream_remote_address duration method path protocol \
        request_id requested_server_name response_code response_code_details response_flags \
        route_name start_time upstream_cluster upstream_host upstream_local_address \
        upstream_service_time upstream_transport_failure_reason user_agent x_forwarded_for";
    assert_eq!(keys.join(" "), expected);
}

#[test]
fn the_metrics_port_is_what_scrapes_of_merged_metrics_expect_and_no_more() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    let status = |path: &str| gateway.try_plain_get(gateway.metrics(), path).unwrap().status;
    for path in ["/healthz/ready", "/stats/prometheus", "/metrics"] {
        assert_eq!(status(path), 200, "{path}");
    }
    for path in ["/", "/certs", "/config_dump", "/quitquitquit"] {
        assert_eq!(status(path), 404, "{path}");
    }
    let mut client = Client::plain(gateway.metrics(), "localhost").unwrap();
    let quit = client.request("POST", "/quitquitquit", "content-length: 0\r\n", b"").unwrap();
    assert!(quit.status >= 400, "it is not for whoever reaches the port: {}", quit.status);
}

#[test]
fn the_labels_of_the_gateway_follow_its_settings() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).start();
    assert_eq!(gateway.get(HOST, "/name").status, 200);
    let labels = || gateway.admin_get("/stats/prometheus").text();
    let old = "source_workload=\"istio-ingressgateway\",source_workload_namespace=\"istio-system\"";
    eventually("the request is counted", || labels().contains(old));
    let settings = std::fs::read_to_string(gateway.path("settings.yaml")).unwrap();
    let more = "gateway: { labels: { istio: ingressgateway, app: edge, version: v2 } }\n";
    gateway.write_file("settings.yaml", &(settings + more));
    gateway.signal(rustix::process::Signal::HUP);
    eventually("the labels are new", || {
        let text = labels();
        text.contains("source_workload=\"edge\"")
            && text.contains("source_canonical_revision=\"v2\"")
            && !text.contains(old)
    });
}

#[test]
fn a_graceful_drain_ends_connections_from_its_beginning() {
    let backend = Backend::start("a");
    let gateway = both_ports(&backend).settings("limits: { drain_timeout: 60s }\n").start();
    let (mut busy, mut idle) = (gateway.client(HOST), gateway.client(HOST));
    assert_eq!(busy.get("/name").header("connection"), None);
    assert_eq!(idle.get("/name").header("connection"), None);
    let mut admin = Client::plain(gateway.admin(), "localhost").unwrap();
    let path = "/drain_listeners?graceful";
    assert_eq!(admin.request("POST", path, "content-length: 0\r\n", b"").unwrap().status, 200);
    eventually("its first request is the last of a connection", || {
        gateway.client(HOST).get("/name").header("connection") == Some("close")
    });
    for client in [&mut busy, &mut idle] {
        // Both workers were told; one may be a moment later than the other.
        eventually("the next request is the last", || {
            client.request("GET", "/name", "", b"").unwrap().header("connection") == Some("close")
        });
        assert_eq!(client.read_to_close(), b"");
    }
    let mut refused = gateway.client(HOST);
    let response = refused.request("GET", "/%00", "", b"").unwrap();
    assert_eq!((response.status, response.header("connection")), (400, Some("close")));
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        assert_eq!(client.get("/name").await.unwrap().status, 200);
        // After GOAWAY hyper's client takes no more requests.
        let mut refused = false;
        for _ in 0..200 {
            refused |= client.get("/name").await.is_err();
            tokio::time::sleep(Duration::from_millis(10)).await;
            if refused {
                break;
            }
        }
        assert!(refused, "the connection was to end");
    });
}
