//! Which backend, or which answer of the gateway's own, a request gets.

use std::collections::HashMap;

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Response};
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::yaml;

/// Backends `a`, `b` and `c` as `a.test` and so on.
struct Backends([Backend; 3]);

impl Backends {
    fn start() -> Self {
        Self(["a", "b", "c"].map(Backend::start))
    }

    fn documents(&self) -> String {
        let [a, b, c] = &self.0;
        yaml::documents(&[
            yaml::backend("a.test", a.port()),
            yaml::backend("b.test", b.port()),
            yaml::backend("c.test", c.port()),
        ])
    }
}

/// A gateway for `*.example.com` whose host `web.example.com` has `rules`.
fn with_rules(backends: &Backends, rules: &str) -> Gateway {
    builder(backends, rules).start()
}

fn builder(backends: &Backends, rules: &str) -> Builder {
    let hosts = ["web.example.com"];
    Gateway::builder()
        .certificate("web", &["*.example.com"])
        .resource("gateway.yaml", &yaml::https_gateway("web", &["*.example.com"], "web"))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &hosts, rules))
        .resource("backends.yaml", &backends.documents())
}

/// Asks with `host` as Host header on a connection whose SNI is `sni`.
fn ask(gateway: &Gateway, sni: &str, host: &str, path: &str) -> Response {
    let mut client = gateway.client(sni);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).unwrap();
    client.response("GET").unwrap()
}

#[test]
fn exact_prefix_and_regex_choose_and_the_first_match_wins() {
    let backends = Backends::start();
    let rules = [
        yaml::uri_to("exact: /name/exact", "a.test"),
        yaml::uri_to("prefix: /name/pre", "b.test"),
        yaml::uri_to("regex: \"/name/[0-9]+\"", "c.test"),
        yaml::uri_to("prefix: /name/prefix-that-comes-too-late", "c.test"),
        yaml::uri_to("prefix: /name", "a.test"),
        yaml::uri_to("prefix: \"\"", "b.test"),
    ];
    let gateway = with_rules(&backends, &rules.concat());
    let mut client = gateway.client("web.example.com");
    assert_eq!(client.get("/echo").status, 200, "every path begins with an empty prefix");
    let expected = [
        ("/name/exact", "a"),
        ("/name/exact?query", "a"),
        ("/name/pre", "b"),
        ("/name/prefix-that-comes-too-late", "b"),
        ("/name/42", "c"),
        ("/name/42x", "a"),
        ("/names-are-string-prefixes", "a"),
    ];
    for (path, name) in expected {
        assert_eq!(client.get(path).text(), name, "{path}");
    }
}

#[test]
fn what_no_rule_matches_is_an_empty_404() {
    let backends = Backends::start();
    let gateway = with_rules(&backends, &yaml::uri_to("prefix: /name", "a.test"));
    let unmatched = ask(&gateway, "web.example.com", "web.example.com", "/else");
    let unknown = ask(&gateway, "web.example.com", "other.example.com", "/name");
    for response in [unmatched, unknown] {
        assert_eq!((response.status, response.text()), (404, String::new()));
        assert_eq!(response.header("server"), Some("istio-envoy"));
        assert_eq!(response.header("content-length"), Some("0"));
    }
    let log = gateway.access_log(2);
    assert!(log.iter().all(|line| line.contains(" 404 NR route_not_found ")), "{log:#?}");
}

#[test]
fn port_and_case_of_the_host_do_not_matter() {
    let backends = Backends::start();
    let gateway = with_rules(&backends, &yaml::all_to("a.test"));
    for host in ["web.example.com:8443", "WEB.Example.COM"] {
        assert_eq!(ask(&gateway, "web.example.com", host, "/name").text(), "a", "{host}");
    }
}

#[test]
fn the_most_specific_host_wins_without_falling_back() {
    let backends = Backends::start();
    let names = ["exact.example.com", "*.deep.example.com", "*.example.com"];
    let only_name = yaml::uri_to("exact: /name", "a.test");
    let services = [
        yaml::virtual_service("exact", "web", &names[..1], &only_name),
        yaml::virtual_service("deep", "web", &names[1..2], &yaml::all_to("b.test")),
        yaml::virtual_service("wide", "web", &names[2..], &yaml::all_to("c.test")),
    ];
    let gateway = builder(&backends, &yaml::all_to("c.test"))
        .resource("route.yaml", &yaml::documents(&services))
        .start();
    let ask = |host: &str, path: &str| ask(&gateway, "x.example.com", host, path);
    assert_eq!(ask("exact.example.com", "/name").text(), "a");
    assert_eq!(ask("exact.example.com", "/other").status, 404);
    assert_eq!(ask("x.deep.example.com", "/name").text(), "b");
    assert_eq!(ask("deep.example.com", "/name").text(), "c");
    assert_eq!(ask("a.b.example.com", "/name").text(), "c");
}

/// Two TLS servers on one port, each with a host and a route of its own.
fn two_servers(settings: &str) -> Gateway {
    let servers = [
        yaml::https_server(443, &["one.test"], "one"),
        yaml::https_server(443, &["two.test"], "two"),
    ];
    let answer = |name: &str| {
        let rule = format!("  - directResponse: {{ status: 200, body: {{ string: {name} }} }}\n");
        yaml::virtual_service(name, "web", &[&format!("{name}.test")], &rule)
    };
    Gateway::builder()
        .certificate("one", &["one.test"])
        .certificate("two", &["two.test"])
        .resource("gateway.yaml", &yaml::gateway("web", &servers.concat()))
        .resource("routes.yaml", &yaml::documents(&[answer("one"), answer("two")]))
        .settings(settings)
        .start()
}

#[test]
fn a_host_of_another_server_is_misdirected() {
    let gateway = two_servers("");
    assert_eq!(ask(&gateway, "one.test", "one.test", "/").text(), "one");
    assert_eq!(ask(&gateway, "one.test", "two.test", "/").status, 421);
    assert_eq!(ask(&gateway, "two.test", "one.test", "/").status, 421);
}

#[test]
fn misdirected_requests_can_be_404_as_with_istio() {
    let gateway = two_servers("http: { misdirected: 404 }\n");
    assert_eq!(ask(&gateway, "one.test", "two.test", "/").status, 404);
}

#[test]
fn a_plain_server_redirects_to_https_or_serves() {
    let backends = Backends::start();
    let servers = [yaml::http_server(80, &["web.example.com"], true)];
    let open = yaml::gateway("open", &yaml::http_server(8443, &["web.example.com"], false));
    let route =
        yaml::virtual_service("open", "open", &["web.example.com"], &yaml::all_to("b.test"));
    let gateway = builder(&backends, &yaml::all_to("a.test"))
        .resource("redirect.yaml", &yaml::gateway("redirect", &servers.concat()))
        .resource("open.yaml", &yaml::documents(&[open, route]))
        .start();
    let plain =
        |port, host: &str| Client::plain(gateway.address(port), host).unwrap().get("/name?q=1");
    let response = plain(80, "web.example.com:8080");
    assert_eq!(response.status, 301);
    let location = response.header("location");
    assert_eq!(location, Some("https://web.example.com:8080/name?q=1"));
    assert_eq!(plain(80, "other.example.com").status, 404, "not a host of the server");
    assert_eq!(plain(8443, "web.example.com").text(), "b");
}

#[test]
fn redirects_and_direct_responses_need_no_backend() {
    let rules = "  \
  - match: [ { uri: { prefix: /moved } } ]
    redirect: { uri: /new, authority: else.test, redirectCode: 308 }
  - match: [ { uri: { prefix: /default } } ]
    redirect: { authority: else.test }
  - match: [ { uri: { prefix: /teapot } } ]
    directResponse: { status: 418, body: { string: \"short and stout\" } }
";
    let backends = Backends::start();
    let gateway = with_rules(&backends, rules);
    let mut client = gateway.client("web.example.com");
    let moved = client.get("/moved?q=1");
    let location = moved.header("location");
    assert_eq!((moved.status, location), (308, Some("https://else.test/new?q=1")));
    let default = client.get("/default/x");
    let location = default.header("location");
    assert_eq!((default.status, location), (301, Some("https://else.test/default/x")));
    let teapot = client.get("/teapot");
    assert_eq!((teapot.status, teapot.text()), (418, "short and stout".to_owned()));
}

#[test]
fn weights_divide_the_requests() {
    let rule = "  \
  - route:
    - { destination: { host: a.test, port: { number: 80 } }, weight: 80 }
    - { destination: { host: b.test, port: { number: 80 } }, weight: 20 }
    - { destination: { host: c.test, port: { number: 80 } }, weight: 0 }
";
    let backends = Backends::start();
    let gateway = with_rules(&backends, rule);
    let mut client = gateway.client("web.example.com");
    let mut counts: HashMap<String, u32> = HashMap::new();
    for _ in 0..1_000 {
        *counts.entry(client.get("/name").text()).or_default() += 1;
    }
    // 200 expected; a fair divider leaves these bounds once in 10^15 runs.
    assert!((100..=300).contains(&counts["b"]), "{counts:?}");
    assert_eq!(counts["a"] + counts["b"], 1_000, "{counts:?}");
}

#[test]
fn destinations_that_cannot_be_reached_are_503() {
    let empty = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: empty }
spec:
  hosts: [ empty.test ]
  ports: [ { number: 80, name: http, protocol: HTTP } ]
  resolution: STATIC
";
    let backends = Backends::start();
    let rules = [
        yaml::uri_to("prefix: /empty", "empty.test"),
        yaml::uri_to("prefix: /unknown", "no-such-service"),
    ];
    let gateway = builder(&backends, &rules.concat()).resource("empty.yaml", empty).start();
    let mut client = gateway.client("web.example.com");
    assert_eq!(client.get("/empty").status, 503);
    assert_eq!(client.get("/unknown").status, 503);
    let log = gateway.access_log(2);
    assert!(log[0].contains(" 503 UH no_healthy_upstream "), "{log:#?}");
}

#[test]
fn services_and_endpoint_slices_lead_to_their_endpoints() {
    let backends = Backends::start();
    let port = backends.0[2].port();
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: httpbin, namespace: shop }}\n\
         spec:\n  ports: [ {{ name: http, port: 8000, targetPort: {port} }} ]\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata:\n  name: httpbin-1\n  namespace: shop\n  \
         labels: {{ kubernetes.io/service-name: httpbin }}\n\
         addressType: IPv4\nports: [ {{ name: http, port: {port} }} ]\n\
         endpoints: [ {{ addresses: [ 127.0.0.1 ], conditions: {{ ready: true }} }} ]\n"
    );
    let rule = "  - route: [ { destination: { host: httpbin.shop.svc.cluster.local, \
                port: { number: 8000 } } } ]\n";
    let gateway = builder(&backends, rule).resource("service.yaml", &service).start();
    assert_eq!(gateway.get("web.example.com", "/name").text(), "c");
}
