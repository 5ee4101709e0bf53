//! Tasks of Istio's documentation beside its pages about HTTPS, which `page` and `steps` follow:
//! what their users do with the resources, and what has to come out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Response};
use crate::harness::eventually;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::yaml;

const HOST: &str = "reviews.example.com";

/// A Service `name` whose endpoints have the label `version`, by slices of their own.
pub fn service(name: &str, port: u16, versions: &[(&str, &Backend)]) -> String {
    let mut documents = vec![format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
         spec: {{ ports: [ {{ name: http, port: {port} }} ], selector: {{ app: {name} }} }}\n"
    )];
    documents.extend(versions.iter().map(|(version, backend)| {
        let at = backend.port();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: {name}-{version}\n  \
             labels: {{ kubernetes.io/service-name: {name}, version: {version} }}\n\
             addressType: IPv4\nports: [ {{ name: http, port: {at}, protocol: TCP }} ]\n\
             endpoints: [ {{ addresses: [ 127.0.0.1 ], conditions: {{ ready: true }} }} ]\n"
        )
    }));
    yaml::documents(&documents)
}

/// A DestinationRule with a subset for each of these versions.
fn subsets(name: &str, versions: &[&str]) -> String {
    let subset = |v: &&str| format!("  - name: {v}\n    labels: {{ version: {v} }}\n");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: {name} }}\n\
         spec:\n  host: {name}\n  subsets:\n{}",
        versions.iter().map(subset).collect::<String>()
    )
}

fn to(version: &str) -> String {
    format!("route: [ {{ destination: {{ host: reviews, subset: {version} }} }} ]")
}

/// What jason gets before all others, and what they get.
fn for_jason(jason: &str, others: &str) -> String {
    format!(
        "  - match: [ {{ headers: {{ end-user: {{ exact: jason }} }} }} ]\n    {jason}\n  \
         - {others}\n"
    )
}

fn route(rules: &str) -> String {
    yaml::virtual_service("reviews", "bookinfo", &[HOST], rules)
}

/// The service `reviews` in the versions v1, v2 and v3, with these rules on plain port 80.
fn reviews(versions: &[Backend; 3], rules: &str) -> Builder {
    let [v1, v2, v3] = versions;
    let gateway = yaml::gateway("bookinfo", &yaml::http_server(80, &["*"], false));
    Gateway::builder()
        .resource("gateway.yaml", &gateway)
        .resource("service.yaml", &service("reviews", 9080, &[("v1", v1), ("v2", v2), ("v3", v3)]))
        .resource("rule.yaml", &subsets("reviews", &["v1", "v2", "v3"]))
        .resource("route.yaml", &route(rules))
}

fn versions() -> [Backend; 3] {
    ["v1", "v2", "v3"].map(Backend::start)
}

fn ask(gateway: &Gateway, path: &str, fields: &str) -> Response {
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    client.request("GET", path, fields, b"").unwrap()
}

const JASON: &str = "end-user: jason\r\n";

#[test]
fn request_routing_sends_one_user_elsewhere() {
    let versions = versions();
    let gateway = reviews(&versions, &for_jason(&to("v2"), &to("v1"))).start();
    assert_eq!(ask(&gateway, "/name", "").text(), "v1");
    assert_eq!(ask(&gateway, "/name", JASON).text(), "v2");
    assert_eq!(ask(&gateway, "/name", "end-user: jasonx\r\n").text(), "v1");
    let log = gateway.access_log(3);
    let cluster = " outbound|9080|v2|reviews.default.svc.cluster.local ";
    assert_eq!(log.iter().filter(|line| line.contains(cluster)).count(), 1, "{log:?}");
}

#[test]
fn traffic_shifting_divides_and_then_moves_everything() {
    let versions = versions();
    let half = "  - route:\n    - destination: { host: reviews, subset: v1 }\n      weight: 50\n    \
                - destination: { host: reviews, subset: v3 }\n      weight: 50\n";
    let gateway = reviews(&versions, half).start();
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..100 {
        *counts.entry(ask(&gateway, "/name", "").text()).or_default() += 1;
    }
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["v1", "v3"], "{counts:?}");
    assert!(counts.values().all(|count| *count > 10), "{counts:?}");
    gateway.write_resource("route.yaml", &route(&format!("  - {}\n", to("v3"))));
    eventually("all go to v3", || (0..10).all(|_| ask(&gateway, "/name", "").text() == "v3"));
}

#[test]
fn fault_injection_fails_or_delays_one_user() {
    let versions = versions();
    let abort = format!(
        "fault: {{ abort: {{ httpStatus: 500, percentage: {{ value: 100.0 }} }} }}\n    {}\n    \
         retries: {{ attempts: 3, retryOn: 5xx }}",
        to("v1")
    );
    let gateway = reviews(&versions, &for_jason(&abort, &to("v1"))).start();
    let failed = ask(&gateway, "/name", JASON);
    assert_eq!((failed.status, failed.text()), (500, "fault filter abort".to_owned()));
    assert_eq!(ask(&gateway, "/name", "").text(), "v1");
    // A fault is the gateway's own: it is neither sent nor tried again.
    assert_eq!(versions[0].requests(), 1);
    let delay = format!(
        "fault: {{ delay: {{ fixedDelay: 0.5s, percentage: {{ value: 100.0 }} }} }}\n    {}",
        to("v1")
    );
    gateway.write_resource("route.yaml", &route(&for_jason(&delay, &to("v1"))));
    eventually("the delay holds", || {
        let start = Instant::now();
        ask(&gateway, "/name", JASON).text() == "v1"
            && start.elapsed() >= Duration::from_millis(500)
    });
}

#[test]
fn a_timeout_answers_for_a_slow_service() {
    let versions = versions();
    let gateway = reviews(&versions, &format!("  - timeout: 0.5s\n    {}\n", to("v2"))).start();
    let late = ask(&gateway, "/hold", "");
    assert_eq!((late.status, late.text()), (504, "upstream request timeout".to_owned()));
    assert!(gateway.access_log(1)[0].contains(" 504 UT response_timeout "));
}

#[test]
fn ingress_control_opens_two_paths_and_no_others() {
    let versions = versions();
    let rules = "  - match: [ { uri: { prefix: /status } }, { uri: { prefix: /delay } } ]\n    \
                 route: [ { destination: { host: reviews, port: { number: 9080 } } } ]\n";
    let gateway = reviews(&versions, rules).start();
    let open = ask(&gateway, "/status/200", "");
    assert_eq!((open.status, open.header("server")), (200, Some("istio-envoy")));
    assert_eq!(ask(&gateway, "/headers", "").status, 404);
    // For a browser, by address: a Gateway and a VirtualService for every host.
    let wildcard = rules.replace("/delay", "/headers");
    gateway.write_resource(
        "route.yaml",
        &yaml::virtual_service("reviews", "bookinfo", &["*"], &wildcard),
    );
    let mut browser = Client::plain(gateway.address(80), "127.0.0.1").unwrap();
    eventually("every host is served", || browser.get("/status/200").status == 200);
}

#[test]
fn rules_for_the_mesh_do_not_count_at_the_gateway() {
    let versions = versions();
    let rules = format!(
        "  - match: [ {{ gateways: [ mesh ], port: 80 }} ]\n    {}\n  \
         - match: [ {{ gateways: [ bookinfo ], port: 80 }} ]\n    {}\n",
        to("v1"),
        to("v3")
    );
    let text = route(&rules).replace("[ bookinfo ]\n", "[ mesh, bookinfo ]\n");
    let gateway = reviews(&versions, "").resource("route.yaml", &text).start();
    assert_eq!(ask(&gateway, "/name", "").text(), "v3");
}

#[test]
fn a_large_virtual_service_may_be_split() {
    let versions = versions();
    let part = |name: &str, path: &str, version: &str| {
        let rule = format!("  - match: [ {{ uri: {{ prefix: {path} }} }} ]\n    {}\n", to(version));
        yaml::virtual_service(name, "bookinfo", &[HOST], &rule)
    };
    let gateway = reviews(&versions, &format!("  - {}\n", to("v1")))
        .resource("route.yaml", &part("a", "/name", "v2"))
        .resource("other.yaml", &part("b", "/head", "v3"))
        .start();
    assert_eq!(ask(&gateway, "/name", "").text(), "v2");
    assert_eq!(ask(&gateway, "/head", "").status, 200);
    assert_eq!(versions[2].requests(), 1);
    assert_eq!(ask(&gateway, "/else", "").status, 404);
}
