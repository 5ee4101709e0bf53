//! Where endpoints and the gateway are, and what DestinationRules say of that.

use super::destination_rule::{HOST, client, rule};
use crate::harness::backend::Backend;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::yaml;

/// What each endpoint of these tests says of itself: those of the first are the gateway's.
const PLACES: [&str; 3] = ["locality: r/z/s", "locality: r/y", "locality: q/x"];

const SETTINGS: &str = "gateway: { locality: r/z/s }\n";

/// Ejects at the first failure, for as long as a test takes.
const DETECTION: &str = "outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 1h, \
                         maxEjectionPercent: 100 }";

/// A gateway with one worker in front of `backends`, each with what `places` say of it, and what
/// else there is in the `trafficPolicy`.
fn builder(backends: &[Backend; 3], places: [&str; 3], policy: &str) -> Builder {
    let endpoint = |(backend, place): (&Backend, &str)| {
        let port = backend.port();
        format!("  - {{ address: 127.0.0.1, ports: {{ http: {port} }}, {place} }}\n")
    };
    let endpoints: String = backends.iter().zip(places).map(endpoint).collect();
    let entry = yaml::backend(HOST, 1);
    let entry = entry.split("  endpoints:").next().unwrap();
    let rules = rule(&format!("  trafficPolicy: {{ {policy} }}\n"));
    Gateway::builder()
        .workers(1)
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &["*"], false)))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &yaml::all_to(HOST)))
        .resource("backends.yaml", &format!("{entry}  endpoints:\n{endpoints}"))
        .resource("rule.yaml", &rules)
}

fn backends() -> [Backend; 3] {
    ["a", "b", "c"].map(Backend::start)
}

/// How many of `requests` for `path` each of `backends` gets.
fn shares(gateway: &Gateway, backends: &[Backend; 3], path: &str, requests: usize) -> [usize; 3] {
    let before = backends.each_ref().map(Backend::requests);
    let mut client = client(gateway);
    for _ in 0..requests {
        client.get(path);
    }
    let after = backends.each_ref().map(Backend::requests);
    std::array::from_fn(|place| after[place] - before[place])
}

#[test]
fn the_nearest_endpoints_serve_until_they_fail() {
    let backends = backends();
    let gateway = builder(&backends, PLACES, DETECTION).settings(SETTINGS).start();
    for expected in [[20, 0, 0], [0, 20, 0], [0, 0, 20]] {
        assert_eq!(shares(&gateway, &backends, "/name", 20), expected);
        shares(&gateway, &backends, "/status/500", 1);
    }
    assert_eq!(client(&gateway).get("/name").status, 503, "all are out");
}

#[test]
fn the_environment_says_where_the_gateway_is_unless_the_settings_do() {
    let backends = backends();
    let places = ["locality: r/y", "locality: r/z", "locality: q/x"];
    for (settings, told, expected) in
        [("", "r/z", [0, 20, 0]), ("", "q/", [0, 0, 20]), (SETTINGS, "q/x", [0, 20, 0])]
    {
        let builder = builder(&backends, places, DETECTION).settings(settings);
        let gateway = builder.env("RINGGATE_LOCALITY", told).start();
        assert_eq!(shares(&gateway, &backends, "/name", 20), expected, "{told}");
    }
}

#[test]
fn without_detection_or_when_it_is_turned_off_all_are_alike() {
    let backends = backends();
    let off = format!("{DETECTION}, loadBalancer: {{ localityLbSetting: {{ enabled: false }} }}");
    for policy in ["retryBudget: {}", &off] {
        let gateway = builder(&backends, PLACES, policy).settings(SETTINGS).start();
        let shares = shares(&gateway, &backends, "/name", 60);
        assert!(shares.iter().all(|share| *share > 0), "{policy}: {shares:?}");
    }
}

#[test]
fn a_gateway_that_does_not_know_where_it_is_is_near_those_who_do_not_either() {
    let backends = backends();
    let places = ["locality: r/z/s", "labels: {}", "locality: q/x"];
    let gateway = builder(&backends, places, DETECTION).start();
    assert_eq!(shares(&gateway, &backends, "/name", 20), [0, 20, 0]);
    shares(&gateway, &backends, "/status/500", 1);
    let [a, b, c] = shares(&gateway, &backends, "/name", 60);
    assert!(a > 0 && b == 0 && c > 0, "{a} {c}");
}

#[test]
fn a_region_fails_over_to_the_one_that_is_named() {
    let backends = backends();
    let places = ["locality: r/z/s", "locality: p/x", "locality: q/x"];
    let setting = "loadBalancer: { localityLbSetting: { failover: [ { from: r, to: q } ] } }";
    let policy = format!("{DETECTION}, {setting}");
    let gateway = builder(&backends, places, &policy).settings(SETTINGS).start();
    for expected in [[20, 0, 0], [0, 0, 20], [0, 20, 0]] {
        assert_eq!(shares(&gateway, &backends, "/name", 20), expected);
        shares(&gateway, &backends, "/status/500", 1);
    }
}

#[test]
fn zones_of_a_region_may_count_alike() {
    let backends = backends();
    let setting = |more| format!("loadBalancer: {{ zoneAwareLbSetting: {{ {more} }} }}");
    for (policy, expected) in [
        (setting(""), [true, true, false]),
        (setting("failoverPriority: [ v=v3 ]"), [false, false, true]),
        (setting("enabled: false"), [true, true, true]),
    ] {
        let places = [PLACES[0], PLACES[1], "locality: q/x, labels: { v: v3 }"];
        let gateway = builder(&backends, places, &policy).settings(SETTINGS).start();
        let shares = shares(&gateway, &backends, "/name", 60);
        assert_eq!(shares.map(|share| share > 0), expected, "{policy}: {shares:?}");
    }
    let policy = format!("{DETECTION}, {}", setting("failover: [ { from: r, to: q } ]"));
    let places = ["locality: r/y", "locality: p/x", "locality: q/x"];
    let gateway = builder(&backends, places, &policy).settings(SETTINGS).start();
    for expected in [[20, 0, 0], [0, 0, 20], [0, 20, 0]] {
        assert_eq!(shares(&gateway, &backends, "/name", 20), expected);
        shares(&gateway, &backends, "/status/500", 1);
    }
}

#[test]
fn labels_say_who_is_near() {
    let backends = backends();
    let places = ["labels: { v: v1 }", "labels: { v: v2 }", "labels: { istio: ingressgateway }"];
    for (labels, expected) in [("v=v2", [0, 20, 0]), ("istio", [0, 0, 20])] {
        let setting = format!("{{ localityLbSetting: {{ failoverPriority: [ \"{labels}\" ] }} }}");
        let policy = format!("{DETECTION}, loadBalancer: {setting}");
        let gateway = builder(&backends, places, &policy).start();
        assert_eq!(shares(&gateway, &backends, "/name", 20), expected, "{labels}");
    }
}

#[test]
fn shares_are_given_to_localities() {
    let backends = backends();
    for (to, served) in
        [("\"q/*\": 100", [false, false, true]), ("r/z: 50, q: 50", [true, false, true])]
    {
        let ways = format!("[ {{ from: \"r/*\", to: {{ {to} }} }} ]");
        let policy = format!("loadBalancer: {{ localityLbSetting: {{ distribute: {ways} }} }}");
        let gateway = builder(&backends, PLACES, &policy).settings(SETTINGS).start();
        let shares = shares(&gateway, &backends, "/name", 60);
        assert_eq!(shares.map(|share| share > 0), served, "{to}: {shares:?}");
    }
}

#[test]
fn retries_may_leave_the_locality() {
    let backends = backends();
    let policy = "outlierDetection: {}";
    for (leaves, expected) in [(false, [4, 0, 0]), (true, [2, 2, 0])] {
        let retries = format!(
            "  - retries: {{ attempts: 3, retryOn: \"503\", backoff: 1ms, \
             retryRemoteLocalities: {leaves} }}\n    \
             route: [ {{ destination: {{ host: {HOST}, port: {{ number: 80 }} }} }} ]\n"
        );
        let route = yaml::virtual_service("web", "web", &[HOST], &retries);
        let builder = builder(&backends, PLACES, policy).settings(SETTINGS);
        let gateway = builder.resource("route.yaml", &route).start();
        assert_eq!(shares(&gateway, &backends, "/status/503", 1), expected, "{leaves}");
    }
}

#[test]
fn a_slice_tells_the_zone() {
    let backends = backends();
    let endpoints = |(backend, zone): (&Backend, &str)| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: web-{zone}\n  labels: {{ kubernetes.io/service-name: web }}\n\
             addressType: IPv4\nports: [ {{ name: http, port: {} }} ]\n\
             endpoints: [ {{ addresses: [ 127.0.0.1 ], zone: {zone} }} ]\n",
            backend.port()
        )
    };
    let slices: String = backends.iter().zip(["y", "z", "x"]).map(endpoints).collect();
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: web }\n\
                   spec: { ports: [ { name: http, port: 80 } ] }\n";
    let name = "web.default.svc.cluster.local";
    let route = yaml::virtual_service("web", "web", &[HOST], &yaml::all_to("web"));
    let policy = rule(&format!("  trafficPolicy: {{ {DETECTION} }}\n")).replace(HOST, name);
    let gateway = builder(&backends, PLACES, DETECTION)
        .settings(SETTINGS)
        .resource("route.yaml", &route)
        .resource("backends.yaml", &format!("{service}{slices}"))
        .resource("rule.yaml", &policy)
        .start();
    assert_eq!(shares(&gateway, &backends, "/name", 20), [0, 20, 0]);
}
