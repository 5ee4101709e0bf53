//! DestinationRules at work: which holds for whom, and subsets. What they say of connections, the
//! choice of endpoints and outliers is in files of its own, which begin with what is made here.

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Response};
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::{eventually, yaml};

pub const HOST: &str = "web.test";

/// A gateway whose host is served by `backends`, one endpoint each, labelled `v: NAME`.
pub fn builder(backends: &[&Backend], names: &[&str]) -> Builder {
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
pub fn rule(more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: web }}\n\
         spec:\n  host: {HOST}\n{more}"
    )
}

pub fn client(gateway: &Gateway) -> Client {
    Client::plain(gateway.address(80), HOST).unwrap()
}

pub fn get(gateway: &Gateway, path: &str) -> Response {
    client(gateway).get(path)
}

/// A gateway with one worker in front of `backends`, whose cluster has `policy`: lines of a
/// `trafficPolicy`, as one map.
pub fn with_policy(backends: &[&Backend], policy: &str) -> Builder {
    let names: Vec<_> = (1..=backends.len()).map(|number| format!("v{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let policy = rule(&format!("  trafficPolicy: {policy}\n"));
    builder(backends, &names).workers(1).resource("rule.yaml", &policy)
}

/// Sends a request that the backend holds, and waits until it is there.
pub fn hold(gateway: &Gateway, backend: &Backend) -> Client {
    let before = backend.requests();
    let mut client = client(gateway);
    client.send(format!("GET /hold HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
    backend.wait_requests(before + 1);
    client
}

/// Sends a request that is not answered yet.
pub fn ask(gateway: &Gateway, path: &str) -> Client {
    let mut client = client(gateway);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
    client
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

const ONE_EACH: &str = "{ connectionPool: { http: { maxRequestsPerConnection: 1 } } }";

/// Whether [`ONE_EACH`] holds for a host with `rules`; `route` is its rule.
fn is_limited(rules: &str, route: &str) -> bool {
    let backend = Backend::start("a");
    let gateway = builder(&[&backend], &["v1"])
        .workers(1)
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], route))
        .resource("rule.yaml", rules)
        .start();
    let mut client = client(&gateway);
    for _ in 0..2 {
        assert_eq!(client.get("/name").text(), "a");
    }
    backend.connections() == 2
}

#[test]
fn a_rule_is_for_hosts_namespaces_and_gateways() {
    let limit = format!("  trafficPolicy: {ONE_EACH}\n");
    let plain = rule(&limit);
    let with = |lines: &str| rule(&format!("{lines}{limit}"));
    let host = |host: &str| plain.replace(&format!("host: {HOST}"), &format!("host: \"{host}\""));
    let selecting = |labels: &str| {
        let selector = format!("  workloadSelector: {{ matchLabels: {labels} }}\n");
        with(&selector).replace("name: web", "name: web, namespace: istio-system")
    };
    let cases = [
        (plain.clone(), true),
        (host("*.test"), true),
        (host("*"), true),
        (host("else.test"), false),
        (with("  exportTo: [ istio-system ]\n"), true),
        (with("  exportTo: [ \".\" ]\n"), false),
        (selecting("{ istio: ingressgateway }"), true),
        (selecting("{ istio: egressgateway }"), false),
    ];
    for (rules, limited) in cases {
        assert_eq!(is_limited(&rules, &yaml::all_to(HOST)), limited, "{rules}");
    }
}

#[test]
fn a_port_and_a_subset_may_have_a_policy_of_their_own() {
    let for_port = |port: u16| {
        let own = &ONE_EACH[2..ONE_EACH.len() - 2];
        rule(&format!(
            "  trafficPolicy: {{ retryBudget: {{}}, portLevelSettings: [ {{ port: {{ number: {port} \
             }}, {own} }} ] }}\n"
        ))
    };
    let subset = rule(&format!(
        "  subsets: [ {{ name: v1, labels: {{ v: v1 }}, trafficPolicy: {ONE_EACH} }} ]\n"
    ));
    let (all, part) = (yaml::all_to(HOST), yaml::all_to(&format!("{HOST}, subset: v1")));
    for (rules, route, limited) in [
        (for_port(80), &all, true),
        (for_port(81), &all, false),
        (subset.clone(), &part, true),
        (subset, &all, false),
    ] {
        assert_eq!(is_limited(&rules, route), limited, "{rules}\n{route}");
    }
}
