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
