//! What a VirtualService does to headers, seen by backend and client.

use crate::harness::backend::Backend;
use crate::harness::client::Response;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::yaml;

const HOST: &str = "web.test";

/// A TLS gateway for `web.test` with `rules`; backends `a.test` and `b.test`.
fn builder(backends: &[Backend; 2], rules: &str) -> Builder {
    let [a, b] = backends;
    let backends = [yaml::backend("a.test", a.port()), yaml::backend("b.test", b.port())];
    Gateway::builder()
        .certificate("web", &[HOST])
        .resource("gateway.yaml", &yaml::https_gateway("web", &[HOST], "web"))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], rules))
        .resource("backends.yaml", &yaml::documents(&backends))
}

fn backends() -> [Backend; 2] {
    ["a", "b"].map(Backend::start)
}

/// The values of header `name` in a head as the backend saw it.
fn seen<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
}

fn values<'a>(response: &'a Response, name: &str) -> Vec<&'a str> {
    let fields = response.headers.iter().filter(|(found, _)| found == name);
    fields.map(|(_, value)| value.as_str()).collect()
}

#[test]
fn request_headers_are_removed_set_and_added() {
    let rule = "  \
  - headers:
      request:
        remove: [ X-Gone ]
        set: { x-set: new }
        add: { x-add: more, x-new: \"100%%\" }
    route: [ { destination: { host: a.test, port: { number: 80 } } } ]
";
    let backends = backends();
    let gateway = builder(&backends, rule).start();
    let sent = "x-gone: 1\r\nx-set: old\r\nx-set: older\r\nx-add: some\r\nx-kept: 1\r\n";
    let head = gateway.client(HOST).request("GET", "/head", sent, b"").unwrap().text();
    assert!(seen(&head, "x-gone").is_empty(), "{head}");
    assert_eq!(seen(&head, "x-set"), ["new"]);
    assert_eq!(seen(&head, "x-add"), ["some", "more"]);
    assert_eq!(seen(&head, "x-new"), ["100%"]);
    assert_eq!(seen(&head, "x-kept"), ["1"]);
}

#[test]
fn response_headers_are_changed_whoever_answers() {
    let headers = "headers: { response: { remove: [ x-public ], set: { server: own }, \
                   add: { x-code: \"%RESPONSE_CODE%\", x-was: \"%RESP(server)%\" } } }";
    let rules = format!(
        "  - match: [ {{ uri: {{ prefix: /direct }} }} ]\n    {headers}\n    \
             directResponse: {{ status: 218 }}\n  \
           - match: [ {{ uri: {{ prefix: /moved }} }} ]\n    {headers}\n    \
             redirect: {{ uri: /x }}\n  \
           - match: [ {{ uri: {{ prefix: /nowhere }} }} ]\n    {headers}\n    \
             route: [ {{ destination: {{ host: no-such-service }} }} ]\n  \
           - {headers}\n    \
             route: [ {{ destination: {{ host: a.test, port: {{ number: 80 }} }} }} ]\n"
    );
    let backends = backends();
    let gateway = builder(&backends, &rules).start();
    let mut client = gateway.client(HOST);
    for (path, code) in
        [("/hop", "200"), ("/direct", "218"), ("/moved", "301"), ("/nowhere", "503")]
    {
        let response = client.get(path);
        assert_eq!(values(&response, "server"), ["own"], "{path}");
        assert_eq!(values(&response, "x-code"), [code], "{path}");
        assert_eq!(values(&response, "x-was"), ["istio-envoy"], "{path}: made before it is set");
        assert!(values(&response, "x-public").is_empty(), "{path}");
    }
}

#[test]
fn values_of_a_response_name_the_client_and_who_answered() {
    let values = [
        ("x-client", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("x-client-port", "%DOWNSTREAM_REMOTE_PORT%"),
        ("x-peer", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("x-local", "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
        ("x-endpoint", "%UPSTREAM_HOST%"),
        ("x-endpoint-too", "%UPSTREAM_REMOTE_ADDRESS%"),
        ("x-endpoint-host", "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("x-endpoint-port", "%UPSTREAM_REMOTE_PORT%"),
        ("x-status", "%RESPONSE_CODE%"),
        ("x-said", "%RESP(X-NONE?CONTENT-LENGTH)%"),
        ("x-percent", "100%%"),
    ];
    let set: Vec<_> = values.iter().map(|(name, text)| format!("{name}: \"{text}\"")).collect();
    let rule = format!(
        "  - headers: {{ response: {{ set: {{ {} }} }} }}\n    \
         route: [ {{ destination: {{ host: a.test, port: {{ number: 80 }} }} }} ]\n",
        set.join(", ")
    );
    let backends = backends();
    let gateway = builder(&backends, &rule).settings("http: { trusted_proxies: 1 }\n").start();
    let mut client = gateway.client(HOST);
    let told = "x-forwarded-for: 192.0.2.7\r\n";
    let answer = client.request("GET", "/status/418", told, b"").unwrap();
    let endpoint = format!("127.0.0.1:{}", backends[0].port());
    let port = backends[0].port().to_string();
    let expected = [
        ("x-client", "192.0.2.7:0"),
        ("x-client-port", "0"),
        ("x-peer", "127.0.0.1"),
        ("x-local", "127.0.0.1"),
        ("x-endpoint", &endpoint),
        ("x-endpoint-too", &endpoint),
        ("x-endpoint-host", "127.0.0.1"),
        ("x-endpoint-port", &port),
        ("x-status", "418"),
        ("x-said", "10"),
        ("x-percent", "100%"),
    ];
    for (name, value) in expected {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
}

#[test]
fn values_are_made_of_the_request_and_its_connection() {
    let commands = [
        ("x-remote", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("x-remote-host", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("x-local-port", "%DOWNSTREAM_LOCAL_PORT%"),
        ("x-protocol", "<%PROTOCOL%>"),
        ("x-path", "%REQ(X-NONE?:PATH)%"),
        ("x-method", "%REQ(:METHOD):2%"),
        ("x-authority", "%REQ(:AUTHORITY)%"),
        ("x-scheme", "%REQ(:SCHEME)%"),
        ("x-none", "%REQ(X-NONE)%"),
        ("x-sni", "%REQUESTED_SERVER_NAME%"),
        ("x-time", "%START_TIME%"),
        ("x-host", "%HOSTNAME%"),
        ("x-route", "%ROUTE_NAME%"),
        ("x-cluster", "%UPSTREAM_CLUSTER%"),
    ];
    let set: Vec<_> = commands.iter().map(|(name, text)| format!("{name}: \"{text}\"")).collect();
    let rule = format!(
        "  - name: rule\n    headers: {{ request: {{ set: {{ {} }} }} }}\n    \
         route: [ {{ destination: {{ host: a.test, port: {{ number: 80 }} }} }} ]\n",
        set.join(", ")
    );
    let backends = backends();
    let gateway = builder(&backends, &rule).start();
    let head = gateway.get(HOST, "/head?q=1").text();
    let one = |name: &str| {
        let found = seen(&head, name);
        assert_eq!(found.len(), 1, "{name} in {head}");
        found[0]
    };
    assert!(one("x-remote").starts_with("127.0.0.1:"), "{head}");
    assert_eq!(one("x-remote-host"), "127.0.0.1");
    assert_eq!(one("x-local-port"), gateway.address(443).port().to_string());
    assert_eq!(one("x-protocol"), "<HTTP/1.1>");
    assert_eq!(one("x-path"), "/head?q=1");
    assert_eq!(one("x-method"), "GE");
    assert_eq!(one("x-authority"), HOST);
    assert_eq!(one("x-scheme"), "https");
    assert!(seen(&head, "x-none").is_empty(), "an empty value is left out");
    assert_eq!(one("x-sni"), HOST);
    assert_eq!(one("x-time").len(), "2024-01-31T12:00:00.123Z".len());
    assert!(!one("x-host").is_empty() && !one("x-host").contains('%'));
    assert_eq!(one("x-route"), "rule");
    assert_eq!(one("x-cluster"), "outbound|80||a.test");
}

#[test]
fn the_headers_of_an_only_destination_have_the_last_word() {
    let rule = "  \
  - headers: { request: { set: { x-who: rule, x-rule: \"1\" } } }
    route:
    - destination: { host: a.test, port: { number: 80 } }
      headers: { request: { set: { x-who: destination } }, response: { set: { x-from: a } } }
";
    let backends = backends();
    let gateway = builder(&backends, rule).start();
    let response = gateway.get(HOST, "/head");
    assert_eq!(seen(&response.text(), "x-who"), ["destination"]);
    assert_eq!(seen(&response.text(), "x-rule"), ["1"]);
    assert_eq!(response.header("x-from"), Some("a"));
}

#[test]
fn each_of_several_destinations_has_headers_of_its_own() {
    let rule = "  \
  - headers: { request: { set: { x-who: rule } } }
    route:
    - destination: { host: a.test, port: { number: 80 } }
      weight: 50
      headers: { request: { set: { x-who: a, x-to: a } }, response: { set: { x-from: a } } }
    - destination: { host: b.test, port: { number: 80 } }
      weight: 50
      headers: { request: { set: { x-to: b } }, response: { set: { x-from: b } } }
";
    let backends = backends();
    let gateway = builder(&backends, rule).start();
    let mut client = gateway.client(HOST);
    let mut both = std::collections::BTreeSet::new();
    while both.len() < 2 {
        let response = client.get("/head");
        let head = response.text();
        assert_eq!(Some(seen(&head, "x-to")[0]), response.header("x-from"));
        assert_eq!(seen(&head, "x-who"), ["rule"], "of several, the rule has the last word");
        both.insert(response.header("x-from").unwrap().to_owned());
    }
}

#[test]
fn setting_the_host_rewrites_the_authority() {
    let rules = "  \
  - match: [ { uri: { prefix: /head/destination } } ]
    route:
    - destination: { host: a.test, port: { number: 80 } }
      headers: { request: { set: { \":authority\": destination.test } } }
  - headers: { request: { set: { Host: rule.test } } }
    route:
    - destination: { host: a.test, port: { number: 80 } }
      headers: { request: { set: { host: destination.test } } }
";
    let backends = backends();
    let gateway = builder(&backends, rules).start();
    let mut client = gateway.client(HOST);
    let head = client.get("/head").text();
    assert_eq!(seen(&head, "host"), ["rule.test"], "the rule's wins");
    assert_eq!(seen(&head, "x-envoy-original-host"), [HOST]);
    let head = client.get("/head/destination").text();
    assert_eq!(seen(&head, "host"), ["destination.test"]);
    let log = gateway.access_log(2);
    assert!(log.iter().all(|line| line.contains("\"web.test\"")), "{log:#?}");
}
