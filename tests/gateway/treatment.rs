//! What a rule does with a request beside forwarding it: other paths, faults, cross-origin answers,
//! copies.

use std::time::{Duration, Instant};

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::{Builder, Gateway, QUIET};
use crate::harness::{free_port, pattern, yaml};

const HOST: &str = "web.test";

/// The action that most rules end in.
const TO_A: &str = "route: [ { destination: { host: a.test, port: { number: 80 } } } ]";

/// A plain gateway for `web.test` with `rules`, flow maps without their braces; backends `a.test`
/// and `b.test`.
fn builder(backends: &[Backend; 2], rules: &[String]) -> Builder {
    let [a, b] = backends;
    let backends = [yaml::backend("a.test", a.port()), yaml::backend("b.test", b.port())];
    let rules: String = rules.iter().map(|rule| format!("  - {{ {rule} }}\n")).collect();
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &[HOST], false)))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &rules))
        .resource("backends.yaml", &yaml::documents(&backends))
}

fn backends() -> [Backend; 2] {
    ["a", "b"].map(Backend::start)
}

fn client(gateway: &Gateway) -> Client {
    Client::plain(gateway.address(80), HOST).unwrap()
}

/// A rule for the prefix `path`.
fn on(path: &str, rest: &str) -> String {
    format!("match: [ {{ uri: {{ prefix: {path} }} }} ], {rest}")
}

fn rewriting(condition: &str, rewrite: &str) -> String {
    format!("match: [ {{ {condition} }} ], rewrite: {{ {rewrite} }}, {TO_A}")
}

/// What the backend saw: the path, and that before it was rewritten.
fn seen(client: &mut Client, path: &str) -> (String, String) {
    let head = client.get(path).text();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let original = head.lines().find_map(|line| line.strip_prefix("x-envoy-original-path: "));
    (path, original.unwrap_or_default().to_owned())
}

#[test]
fn a_matched_prefix_or_a_whole_path_is_replaced() {
    let rules = [
        rewriting("uri: { prefix: /old }", "uri: /head/new"),
        rewriting("uri: { exact: /exact }", "uri: /head/one"),
        rewriting("uri: { regex: \"/re/[0-9]+\" }", "uri: /head/two"),
        rewriting("uri: { prefix: /CASE/ }, ignoreUriCase: true", "uri: /head/"),
        rewriting("headers: { x-slash: {} }", "uri: /head"),
        rewriting("uri: { prefix: / }", "uri: /head/rest/"),
    ];
    let backends = backends();
    let gateway = builder(&backends, &rules).start();
    let mut client = client(&gateway);
    let cases = [
        ("/old/x?q=1", "/head/new/x?q=1"),
        ("/older", "/head/newer"),
        ("/exact?q", "/head/one?q"),
        ("/re/42", "/head/two"),
        ("/case/x", "/head/x"),
        ("/x", "/head/rest/x"),
    ];
    for (path, expected) in cases {
        let (found, original) = seen(&mut client, path);
        assert_eq!((found.as_str(), original.as_str()), (expected, path));
    }
    let log = gateway.access_log(cases.len());
    assert!(
        log[0].contains("\"GET /old/x?q=1 HTTP/1.1\""),
        "the log shows what was asked: {log:#?}"
    );
}

#[test]
fn an_expression_of_its_own_rewrites_a_path() {
    let regex =
        "uriRegexRewrite: { match: \"^/service/([^/]+)(/.*)$\", rewrite: \"/head/\\\\2/\\\\1\" }";
    let backends = backends();
    let gateway = builder(&backends, &[rewriting("uri: { prefix: /service }", regex)]).start();
    let mut client = client(&gateway);
    let (path, original) = seen(&mut client, "/service/foo/v1?q=1");
    assert_eq!((path.as_str(), original.as_str()), ("/head//v1/foo?q=1", "/service/foo/v1?q=1"));
}

#[test]
fn the_authority_is_rewritten() {
    let rule = format!("rewrite: {{ authority: else.test }}, {TO_A}");
    let backends = backends();
    let gateway = builder(&backends, &[rule]).start();
    let head = client(&gateway).get("/head").text();
    assert!(head.contains("\r\nhost: else.test\r\n"), "{head}");
    assert!(head.contains("\r\nx-envoy-original-host: web.test\r\n"), "{head}");
}

#[test]
fn redirects_and_direct_responses_have_all_their_fields() {
    let rules = [
        on("/prefix", "redirect: { prefixRewrite: /new }"),
        on("/query", "redirect: { uri: \"/new?own=1\" }"),
        on("/port", "redirect: { port: 8443 }"),
        on("/derived", "redirect: { derivePort: FROM_REQUEST_PORT, scheme: https }"),
        on("/default", "redirect: { derivePort: FROM_PROTOCOL_DEFAULT }"),
        on("/bytes", "directResponse: { status: 200, body: { bytes: aGk= } }"),
    ];
    let backends = backends();
    let gateway = builder(&backends, &rules).start();
    let mut client = client(&gateway);
    let cases = [
        ("/prefix/x?q=1", "http://web.test/new/x?q=1"),
        ("/query?q=1", "http://web.test/new?own=1"),
        ("/port", "http://web.test:8443/port"),
        ("/derived", "https://web.test:80/derived"),
        ("/default", "http://web.test/default"),
    ];
    for (path, expected) in cases {
        assert_eq!(client.get(path).header("location"), Some(expected), "{path}");
    }
    assert_eq!(client.get("/bytes").text(), "hi");
}

fn faulty(fault: &str) -> String {
    format!("fault: {{ {fault} }}, {TO_A}")
}

#[test]
fn a_fault_aborts_a_share_of_the_requests() {
    let backends = backends();
    let always = faulty("abort: { httpStatus: 418, percentage: { value: 100 } }");
    let gateway = builder(&backends, &[always]).start();
    let response = client(&gateway).get("/name");
    assert_eq!((response.status, response.text()), (418, "fault filter abort".to_owned()));
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 418 FI fault_filter_abort "), "{log:#?}");
    assert_eq!(backends[0].requests(), 0);
    let half = faulty("abort: { httpStatus: 500, percentage: { value: 50 } }");
    let gateway = builder(&backends, &[half]).start();
    let mut client = client(&gateway);
    let aborted = (0..400).filter(|_| client.get("/name").status == 500).count();
    // 200 expected; a fair share leaves these bounds once in 10^15 runs.
    assert!((120..=280).contains(&aborted), "{aborted}");
}

#[test]
fn a_fault_speaks_grpc_to_those_who_do() {
    let backends = backends();
    let rule = faulty("abort: { grpcStatus: NOT_FOUND, percentage: { value: 100 } }");
    let gateway = builder(&backends, &[rule]).start();
    let mut client = client(&gateway);
    assert_eq!(client.get("/name").status, 404);
    let grpc = client.request("GET", "/name", "content-type: application/grpc\r\n", b"").unwrap();
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("5")));
}

#[test]
fn a_fault_delays_before_it_forwards() {
    let backends = backends();
    let rules = [
        format!(
            "match: [ {{ uri: {{ prefix: /name/old }} }} ], {}",
            faulty("delay: { fixedDelay: 300ms, percent: 100 }")
        ),
        format!(
            "match: [ {{ uri: {{ prefix: /name/never }} }} ], {}",
            faulty("delay: { fixedDelay: 1h, percentage: { value: 0 } }")
        ),
        faulty("delay: { fixedDelay: 300ms, percentage: { value: 100 } }"),
    ];
    let gateway = builder(&backends, &rules).start();
    let mut client = client(&gateway);
    for path in ["/name", "/name/old"] {
        let start = Instant::now();
        assert_eq!(client.get(path).text(), "a");
        assert!(start.elapsed() >= Duration::from_millis(300), "{path}");
    }
    assert_eq!(client.get("/name/never").text(), "a");
    let log = gateway.access_log(3);
    assert!(log[0].contains(" 200 DI via_upstream "), "{log:#?}");
}

const CORS: &str = "corsPolicy: { allowOrigins: [ { exact: \"https://a.test\" }, \
    { regex: \"https://.*[.]b[.]test\" } ], allowMethods: [ GET, PUT ], \
    allowHeaders: [ x-a, x-b ], exposeHeaders: [ x-c ], maxAge: 24h, allowCredentials: true";

fn preflight(client: &mut Client, origin: &str) -> crate::harness::client::Response {
    let headers = format!("origin: {origin}\r\naccess-control-request-method: PUT\r\n");
    client.request("OPTIONS", "/name", &headers, b"").unwrap()
}

#[test]
fn a_preflight_is_answered_by_the_gateway() {
    let backends = backends();
    let gateway = builder(&backends, &[format!("{CORS} }}, {TO_A}")]).start();
    let mut client = client(&gateway);
    for origin in ["https://a.test", "https://x.b.test"] {
        let response = preflight(&mut client, origin);
        assert_eq!((response.status, response.text()), (200, String::new()));
        let headers = [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET,PUT"),
            ("access-control-allow-headers", "x-a,x-b"),
            ("access-control-max-age", "86400"),
            ("access-control-allow-credentials", "true"),
        ];
        for (name, value) in headers {
            assert_eq!(response.header(name), Some(value), "{origin}");
        }
    }
    assert_eq!(backends[0].requests(), 0);
    let log = gateway.access_log(2);
    assert!(log[0].contains(" 200 - cors_response "), "{log:#?}");
}

#[test]
fn a_simple_request_is_forwarded_and_its_answer_marked() {
    let backends = backends();
    let gateway = builder(&backends, &[format!("{CORS} }}, {TO_A}")]).start();
    let mut client = client(&gateway);
    let mut get = |origin: &str| {
        client.request("GET", "/name", &format!("origin: {origin}\r\n"), b"").unwrap()
    };
    let ours = get("https://a.test");
    assert_eq!(ours.text(), "a");
    assert_eq!(ours.header("access-control-allow-origin"), Some("https://a.test"));
    assert_eq!(ours.header("access-control-expose-headers"), Some("x-c"));
    let foreign = get("https://evil.test");
    assert_eq!(
        (foreign.text(), foreign.header("access-control-allow-origin")),
        ("a".to_owned(), None)
    );
}

#[test]
fn a_preflight_of_another_origin_is_forwarded_or_ignored() {
    let backends = backends();
    let forwards = builder(&backends, &[format!("{CORS} }}, {TO_A}")]).start();
    let response = preflight(&mut client(&forwards), "https://evil.test");
    assert_eq!((response.text(), backends[0].requests()), ("a".to_owned(), 1));
    let ignore = format!("{CORS}, unmatchedPreflights: IGNORE }}, {TO_A}");
    let ignores = builder(&backends, &[ignore]).start();
    let response = preflight(&mut client(&ignores), "https://evil.test");
    assert_eq!((response.status, response.text(), backends[0].requests()), (200, String::new(), 1));
    assert_eq!(response.header("access-control-allow-origin"), None);
}

#[test]
fn any_origin_and_any_method_may_be_allowed() {
    let policy = "allowOrigin: [ \"*\" ], allowMethods: [ \"*\" ], allowHeaders: [ \"*\" ]";
    let rule = format!("corsPolicy: {{ {policy} }}, {TO_A}");
    let backends = backends();
    let gateway = builder(&backends, &[rule]).start();
    let response = preflight(&mut client(&gateway), "https://anyone.test");
    assert_eq!(response.header("access-control-allow-origin"), Some("https://anyone.test"));
    assert_eq!(response.header("access-control-allow-methods"), Some("PUT"));
    assert_eq!(response.header("access-control-allow-headers"), None, "none was asked for");
}

const TO_B: &str = "host: b.test, port: { number: 80 }";

#[test]
fn a_mirror_gets_a_copy_with_its_body() {
    let backends = backends();
    let gateway = builder(&backends, &[format!("mirror: {{ {TO_B} }}, {TO_A}")]).start();
    let mut client = client(&gateway);
    assert_eq!(client.get("/name").text(), "a");
    backends[1].wait_requests(1);
    let body = pattern(10_000);
    assert!(client.post("/sum", &body).text().starts_with("10000 "));
    backends[1].wait_requests(2);
    assert_eq!(backends[0].requests(), 2);
}

#[test]
fn a_share_of_requests_is_mirrored_to_each_of_several() {
    let backends = backends();
    let rules = [format!(
        "mirrors: [ {{ destination: {{ {TO_B} }}, percentage: {{ value: 50 }} }}, \
         {{ destination: {{ {TO_B} }}, percentage: {{ value: 0 }} }} ], {TO_A}"
    )];
    let gateway = builder(&backends, &rules).start();
    let mut client = client(&gateway);
    for _ in 0..400 {
        assert_eq!(client.get("/name").text(), "a");
    }
    backends[1].wait_requests(120);
    std::thread::sleep(QUIET);
    assert!((120..=280).contains(&backends[1].requests()), "{}", backends[1].requests());
}

#[test]
fn the_older_fields_of_a_mirror_are_read() {
    let backends = backends();
    let rules = [
        on("/name/no", &format!("mirror: {{ {TO_B} }}, mirrorPercent: 0, {TO_A}")),
        format!("mirror: {{ {TO_B} }}, mirrorPercentage: {{ value: 100 }}, {TO_A}"),
    ];
    let gateway = builder(&backends, &rules).start();
    let mut client = client(&gateway);
    assert_eq!(client.get("/name/no").text(), "a");
    assert_eq!(client.get("/name").text(), "a");
    backends[1].wait_requests(1);
    std::thread::sleep(QUIET);
    assert_eq!(backends[1].requests(), 1);
}

#[test]
fn a_mirror_neither_delays_nor_fails_a_request() {
    let backends = backends();
    let dead = yaml::backend("dead.test", free_port());
    let rules = [
        on("/name/dead", &format!("mirror: {{ host: dead.test }}, {TO_A}")),
        on("/name/none", &format!("mirror: {{ host: no-such-service }}, {TO_A}")),
        on("/hold", &format!("mirror: {{ {TO_B} }}, {TO_A}")),
        TO_A.to_owned(),
    ];
    let gateway = builder(&backends, &rules)
        .resource("dead.yaml", &dead)
        .settings("limits: { mirrors_max: 1 }\n")
        .start();
    let mut client = client(&gateway);
    assert_eq!(client.get("/name/dead").text(), "a");
    assert_eq!(client.get("/name/none").text(), "a");
    // The backends' names differ, so does what they hold: only `b` keeps its copies waiting.
    backends[0].release();
    for _ in 0..8 {
        assert_eq!(client.get("/hold").text(), "held");
    }
    let metrics = gateway.admin_get("/stats/prometheus").text();
    let dropped =
        metrics.lines().find_map(|line| line.strip_prefix("ringgate_mirrors_dropped_total"));
    let dropped: u32 = dropped.unwrap().trim().parse().unwrap();
    assert!(dropped >= 6, "one copy per worker is under way: {dropped}");
}
