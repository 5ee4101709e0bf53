//! ServiceEntries and WorkloadEntries: where the endpoints of a host are.

use super::destination_rule::{HOST, builder, client, get};
use crate::harness::backend::Backend;
use crate::harness::gateway::Gateway;
use crate::harness::{eventually, yaml};

/// A ServiceEntry with `spec`, lines that are indented by two.
fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: web }}\n\
         spec:\n{spec}"
    )
}

/// A gateway with `backends` whose host is routed to `to`.
fn routed(backends: &str, to: &str) -> Gateway {
    let route = format!("  - route: [ {{ destination: {{ host: {to} }} }} ]\n");
    builder(&[], &[])
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &route))
        .resource("backends.yaml", backends)
        .start()
}

#[test]
fn a_host_is_a_name_or_a_wildcard() {
    let backend = Backend::start("a");
    let port = backend.port();
    let fixed = format!(
        "  hosts: [ \"*.far.test\", near.test ]\n  resolution: STATIC\n  ports: [ {{ number: 80, \
         name: http, protocol: HTTP }} ]\n  endpoints: [ {{ network: another }}, {{ address: 127.0.0.1, ports: {{ \
         http: {port} }} }} ]\n"
    );
    // A wildcard as destination is the entry's own.
    for host in ["a.far.test", "a.b.far.test", "near.test", "\"*.far.test\""] {
        assert_eq!(get(&routed(&entry(&fixed), host), "/name").text(), "a", "{host}");
    }
    assert_eq!(get(&routed(&entry(&fixed), "else.test"), "/name").status, 503);
}

#[test]
fn names_are_looked_up() {
    let backend = Backend::start("a");
    let port = backend.port();
    let ports = format!("  ports: [ {{ number: 80, targetPort: {port}, name: http }} ]\n");
    let host = "  hosts: [ web.localhost ]\n  resolution: ";
    let wild = "  hosts: [ \"*.localhost\" ]\n  resolution: ";
    let named = "  endpoints: [ { address: app.localhost } ]\n";
    for spec in [
        format!("{host}DNS\n{ports}"),
        format!("{host}DNS\n{ports}{named}"),
        format!("{host}DNS_ROUND_ROBIN\n{ports}"),
        format!("{host}NONE\n{ports}"),
        format!("{wild}NONE\n{ports}"),
        format!("{wild}DYNAMIC_DNS\n{}", ports.replace("name: http", "name: http, protocol: HTTP")),
        format!("{wild}DNS\n{ports}{named}"),
    ] {
        let gateway = routed(&entry(&spec), "web.localhost");
        assert_eq!(get(&gateway, "/name").text(), "a", "{spec}");
    }
}

#[test]
fn a_port_may_have_any_protocol() {
    let backend = Backend::start("a");
    for protocol in ["HTTP", "HTTPS", "TLS", "TCP", "MONGO"] {
        let spec = format!(
            "  hosts: [ web.localhost ]\n  resolution: DNS\n  ports: [ {{ number: 80, targetPort: \
             {}, name: x, protocol: {protocol} }} ]\n",
            backend.port()
        );
        assert_eq!(get(&routed(&entry(&spec), "web.localhost"), "/name").text(), "a", "{protocol}");
    }
}

#[test]
fn an_entry_is_seen_where_it_is_exported_to() {
    let backend = Backend::start("a");
    for (export, status) in [("\".\"", 503), ("istio-system", 200), ("\"*\"", 200)] {
        let spec = format!(
            "  hosts: [ web.invalid ]\n  exportTo: [ {export} ]\n  location: MESH_EXTERNAL\n  \
             resolution: STATIC\n  ports: [ {{ number: 80, name: http }} ]\n  endpoints: [ {{ \
             address: 127.0.0.1, ports: {{ http: {} }} }} ]\n",
            backend.port()
        );
        let gateway = routed(&entry(&spec), "web.invalid");
        assert_eq!(get(&gateway, "/name").status, status, "{export}");
    }
}

#[test]
fn workloads_are_selected_by_their_labels() {
    let backends = ["a", "b"].map(Backend::start);
    let workload = |backend: &Backend, name: &str, app: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{ name: {name} \
             }}\nspec: {{ address: 127.0.0.1, ports: {{ http: {} }}, labels: {{ app: {app} }} }}\n",
            backend.port()
        )
    };
    let selecting = entry(
        "  hosts: [ web.test ]\n  resolution: STATIC\n  ports: [ { number: 80, name: http } ]\n  \
         workloadSelector: { labels: { app: web } }\n",
    );
    let documents = |app: &str| {
        let [a, b] = &backends;
        yaml::documents(&[selecting.clone(), workload(a, "a", "web"), workload(b, "b", app)])
    };
    let gateway = routed(&documents("other"), "web.test");
    let mut client = client(&gateway);
    let mut names = || (0..40).map(|_| client.get("/name").text()).collect::<Vec<_>>();
    assert!(names().iter().all(|name| name == "a"));
    gateway.write_resource("backends.yaml", &documents("web"));
    eventually("the second is selected", || names().iter().any(|name| name == "b"));
}

#[test]
fn pods_are_selected_by_their_labels_while_they_are_ready() {
    let backend = Backend::start("pod");
    let selecting = entry(&format!(
        "  hosts: [ web.test ]\n  resolution: STATIC\n  ports: [ {{ number: 80, name: http, \
         targetPort: {} }} ]\n  workloadSelector: {{ labels: {{ app: web }} }}\n",
        backend.port()
    ));
    let pod = |app: &str, ready: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: web-0, labels: {{ app: {app} }}{more} \
             }}\nspec: {{ containers: [] }}\nstatus:\n  phase: Running\n  podIP: 127.0.0.1\n  \
             conditions:\n  - {{ type: Initialized, status: \"True\" }}\n  - {{ type: Ready, \
             status: \"{ready}\" }}\n"
        )
    };
    let documents = |pod: String| yaml::documents(&[selecting.clone(), pod]);
    let gateway = routed(&documents(pod("web", "True", "")), "web.test");
    assert_eq!(get(&gateway, "/name").text(), "pod");
    let others = [
        pod("web", "False", ""),
        pod("other", "True", ""),
        pod("web", "True", ", deletionTimestamp: 2026-01-01T00:00:00Z"),
    ];
    for other in others {
        gateway.write_resource("backends.yaml", &documents(other));
        eventually("it is left out", || get(&gateway, "/name").status == 503);
        gateway.write_resource("backends.yaml", &documents(pod("web", "True", "")));
        eventually("it is back", || get(&gateway, "/name").status == 200);
    }
}

#[test]
fn an_empty_list_of_addresses_is_no_name_to_look_up() {
    // `localhost` could be looked up.
    let empty = entry(
        "  hosts: [ localhost ]\n  resolution: STATIC\n  ports: [ { number: 80, name: http } ]\n  \
         endpoints: []\n",
    );
    let gateway = routed(&yaml::documents(&[empty]), "localhost");
    assert_eq!(get(&gateway, "/name").status, 503);
    let line = gateway.access_log(1).remove(0);
    assert!(line.contains(" 503 UH "), "{line}");
}
