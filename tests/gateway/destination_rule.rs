//! DestinationRules at work: subsets, limits, balancing and outlier detection, with real backends.

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Response};
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::{eventually, yaml};

const HOST: &str = "web.test";

/// A gateway whose host is served by `backends`, one endpoint each, labelled `v: NAME`.
fn builder(backends: &[&Backend], names: &[&str]) -> Builder {
    let endpoint = |(backend, name): (&&Backend, &&str)| {
        let port = backend.port();
        format!(
            "  - {{ address: 127.0.0.1, ports: {{ http: {port} }}, labels: {{ v: {name} }} }}\n"
        )
    };
    let endpoints: String = backends.iter().zip(names).map(endpoint).collect();
    let entry = yaml::backend(HOST, 1);
    let entry = entry.split("  endpoints:").next().unwrap();
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &["*"], false)))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &yaml::all_to(HOST)))
        .resource("backends.yaml", &format!("{entry}  endpoints:\n{endpoints}"))
}

/// A DestinationRule for the host; `more` is the rest of its spec, indented by two.
fn rule(more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: web }}\n\
         spec:\n  host: {HOST}\n{more}"
    )
}

fn client(gateway: &Gateway) -> Client {
    Client::plain(gateway.address(80), HOST).unwrap()
}

fn get(gateway: &Gateway, path: &str) -> Response {
    client(gateway).get(path)
}

#[test]
fn a_subset_is_a_part_of_the_endpoints() {
    let backends = [Backend::start("v1"), Backend::start("v2")];
    let [v1, v2] = &backends;
    let to = |path: &str, subset: &str| {
        format!(
            "  - match: [ {{ uri: {{ prefix: {path} }} }} ]\n    rewrite: {{ uri: /name }}\n    \
             route: [ {{ destination: {{ host: {HOST}, subset: {subset} }} }} ]\n"
        )
    };
    let rules = to("/one", "one") + &to("/two", "two") + &to("/lost", "lost");
    let subsets = "  subsets:\n  - { name: one, labels: { v: v1 } }\n  \
                   - { name: two, labels: { v: v2 } }\n";
    let gateway = builder(&[v1, v2], &["v1", "v2"])
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &rules))
        .resource("rule.yaml", &rule(subsets))
        .start();
    for (path, name) in [("/one", "v1"), ("/two", "v2")].repeat(5) {
        assert_eq!(get(&gateway, path).text(), name);
    }
    assert_eq!(get(&gateway, "/lost").status, 503);
    let log = gateway.access_log(11);
    let says = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(says(&format!(" outbound|80|one|{HOST} ")), 5, "{log:#?}");
    assert_eq!(says(" 503 NC cluster_not_found "), 1, "{log:#?}");
    assert!(gateway.logged("no DestinationRule for web.test has a subset `lost`, only one, two"));
}

#[test]
fn a_subset_of_a_service_is_chosen_by_the_labels_of_its_pods() {
    let backend = Backend::start("pod");
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: web }}\nspec: {{ ports: [ {{ port: 80 \
         }} ] }}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: a, \
         labels: {{ kubernetes.io/service-name: web }} }}\naddressType: IPv4\nports: [ {{ port: {} \
         }} ]\nendpoints:\n- addresses: [ 127.0.0.1 ]\n  targetRef: {{ kind: Pod, name: web-1 }}\n",
        backend.port()
    );
    let pod = |label: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: web-1, labels: {{ v: {label} }} }}\n"
        )
    };
    let route = "  - route: [ { destination: { host: web, subset: one } } ]\n";
    let subset = rule("  subsets: [ { name: one, labels: { v: v1 } } ]\n")
        .replace(&format!("host: {HOST}"), "host: web");
    let gateway = builder(&[], &[])
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], route))
        .resource("backends.yaml", &service)
        .resource("pods.yaml", &pod("v2"))
        .resource("rule.yaml", &subset)
        .start();
    let refused = get(&gateway, "/name");
    assert_eq!((refused.status, refused.text().as_str()), (503, "no healthy upstream"));
    gateway.write_resource("pods.yaml", &pod("v1"));
    eventually("the pod is in the subset", || get(&gateway, "/name").text() == "pod");
}

/// A gateway with one worker in front of `backends`, whose cluster has `policy`: lines of a
/// `trafficPolicy`, as one map.
fn with_policy(backends: &[&Backend], policy: &str) -> Builder {
    let names: Vec<_> = (1..=backends.len()).map(|number| format!("v{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let policy = rule(&format!("  trafficPolicy: {policy}\n"));
    builder(backends, &names).workers(1).resource("rule.yaml", &policy)
}

/// Sends a request that the backend holds, and waits until it is there.
fn hold(gateway: &Gateway, backend: &Backend) -> Client {
    let before = backend.requests();
    let mut client = client(gateway);
    client.send(format!("GET /hold HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
    backend.wait_requests(before + 1);
    client
}

/// Sends a request that is not answered yet.
fn ask(gateway: &Gateway, path: &str) -> Client {
    let mut client = client(gateway);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
    client
}

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
    let log = gateway.access_log(4);
    let expected = " 503 UO upstream_reset_before_response_started{overflow} ";
    assert!(log.iter().any(|line| line.contains(expected)), "{log:#?}");
}

#[test]
fn each_in_turn() {
    let backends = ["a", "b", "c"].map(Backend::start);
    let [a, b, c] = &backends;
    let policy = "{ loadBalancer: { simple: ROUND_ROBIN } }";
    let gateway = with_policy(&[a, b, c], policy).start();
    let mut client = client(&gateway);
    for _ in 0..12 {
        client.get("/name");
    }
    assert_eq!(backends.each_ref().map(Backend::requests), [4, 4, 4]);
}

#[test]
fn an_endpoint_that_fails_is_left_out_for_a_while() {
    let backend = Backend::start("a");
    let policy = "{ outlierDetection: { consecutive5xxErrors: 2, interval: 100ms, \
                  baseEjectionTime: 500ms, maxEjectionPercent: 100 } }";
    let gateway = with_policy(&[&backend], policy).start();
    let mut client = client(&gateway);
    let mut fail = |n: usize| {
        for _ in 0..n {
            assert_eq!(client.get("/status/500").status, 500);
        }
        client.get("/name")
    };
    assert_eq!(fail(1).text(), "a", "one is not enough");
    let refused = fail(2);
    assert_eq!((refused.status, refused.text().as_str()), (503, "no healthy upstream"));
    eventually("it is back", || get(&gateway, "/name").status == 200);
}
