//! DestinationRules: which one holds for a cluster, and what of it.

use super::*;
use crate::snapshot::{Balance, PoolLimits, UpstreamProtocol};

/// A rule in `namespace` for the page's service.
fn rule(name: &str, namespace: &str, more: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         host: httpbin.default.svc.cluster.local\n{more}"
    )
}

fn connections(max: u32) -> String {
    format!("  trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {max}}}}}}}\n")
}

/// The cluster of the page's first route.
pub(super) fn cluster(snapshot: &Snapshot) -> Option<Arc<Cluster>> {
    let host = "httpbin.example.com";
    let routes = Arc::clone(server(snapshot, host).http().unwrap());
    match &routes.hosts.find(host).unwrap().routes()[0].action {
        Action::Forward(forward) => forward.targets[0].cluster.clone(),
        Action::Redirect(_) | Action::Respond(_) => panic!("no forward"),
    }
}

fn limits(snapshot: &Snapshot) -> PoolLimits {
    let traffic = cluster(snapshot).unwrap().traffic.clone();
    traffic.map(|traffic| traffic.policy.pool).unwrap_or_default()
}

fn connections_max(world: &mut World) -> Option<u32> {
    limits(&world.compile()).connections_max
}

#[test]
fn a_rule_comes_changes_and_goes_and_only_its_cluster_with_it() {
    let other = PAGE.replace("httpbin", "other").replace("mygateway", "othergateway");
    let mut world = World::page();
    world.write("other.yaml", &other);
    let before = world.compile();
    assert_eq!(cluster(&before).unwrap().traffic, None);
    for max in [Some(1), Some(2), None] {
        match max {
            Some(max) => world.write("rule.yaml", &rule("r", "default", &connections(max))),
            None => world.remove("rule.yaml"),
        }
        let after = world.compile();
        assert_eq!(limits(&after).connections_max, max);
        let same = |host| Arc::ptr_eq(server(&before, host), server(&after, host));
        assert!(same("other.example.com"));
        assert!(!same("httpbin.example.com"));
        assert_eq!(said(&after), "");
    }
}

#[test]
fn a_rule_that_becomes_bad_stays_and_a_deleted_one_goes() {
    let mut world = World::page();
    world.write("rule.yaml", &rule("r", "default", &connections(1)));
    assert_eq!(connections_max(&mut world), Some(1));
    world.write("rule.yaml", &rule("r", "default", "  speed: high\n"));
    let snapshot = world.compile();
    assert_eq!(limits(&snapshot).connections_max, Some(1));
    assert!(said(&snapshot).contains("stays in use"), "{}", said(&snapshot));
    world.write("rule.yaml", "");
    assert_eq!(connections_max(&mut world), None);
}

#[test]
fn the_gateways_namespace_is_asked_before_the_services() {
    let mut world = World::page();
    world.compiler.set_gateway(GatewayIdentity { namespace: "edge".into(), ..gateway() });
    let backend = BACKEND.replace("{name: httpbin}", "{name: httpbin, namespace: backends}");
    world.write("backend.yaml", &backend);
    world.write("elsewhere.yaml", &rule("r", "elsewhere", &connections(9)));
    assert_eq!(connections_max(&mut world), None, "nobody asks there");
    for (namespace, max) in [("istio-system", 1), ("backends", 2), ("edge", 3)] {
        world.write(&format!("{namespace}.yaml"), &rule("r", namespace, &connections(max)));
        assert_eq!(connections_max(&mut world), Some(max), "{namespace}");
    }
}

#[test]
fn a_rule_is_seen_where_it_is_exported_to() {
    let exports =
        [("['.']", None), ("[istio-system]", Some(1)), ("[other]", None), ("['*']", Some(1))];
    for (export, max) in exports {
        let mut world = World::page();
        let more = format!("  exportTo: {export}\n{}", connections(1));
        world.write("rule.yaml", &rule("r", "default", &more));
        assert_eq!(connections_max(&mut world), max, "{export}");
    }
}

#[test]
fn a_rule_may_be_for_certain_gateways_of_its_namespace() {
    let selecting = |labels: &str, namespace: &str, max| {
        let more = format!("  workloadSelector: {{matchLabels: {labels}}}\n{}", connections(max));
        rule(&format!("r{max}"), namespace, &more)
    };
    let mut world = World::page();
    world.write("a.yaml", &selecting("{istio: other}", "istio-system", 1));
    world.write("b.yaml", &selecting("{istio: ingressgateway}", "default", 2));
    assert_eq!(connections_max(&mut world), None);
    world.write("0.yaml", &rule("all", "istio-system", &connections(3)));
    assert_eq!(connections_max(&mut world), Some(3));
    world.write("c.yaml", &selecting("{istio: ingressgateway}", "istio-system", 4));
    assert_eq!(connections_max(&mut world), Some(4));
}

#[test]
fn hosts_may_be_short_or_wildcards_and_the_most_specific_wins() {
    let host = |host: &str, max| {
        rule("r", "default", &connections(max))
            .replace("host: httpbin.default.svc.cluster.local", &format!("host: '{host}'"))
    };
    for (hosts, max) in [
        (&["*"][..], 1),
        (&["*", "*.local"], 2),
        (&["*.local", "*.default.svc.cluster.local", "*"], 2),
        (&["*.local", "httpbin"], 2),
        (&["httpbin.default.svc.cluster.local", "*"], 1),
    ] {
        let mut world = World::page();
        for (host_of, number) in hosts.iter().zip(1..) {
            let text = host(host_of, number).replace("name: r,", &format!("name: r{number},"));
            world.write(&format!("{number}.yaml"), &text);
        }
        assert_eq!(connections_max(&mut world), Some(max), "{hosts:?}");
    }
}

#[test]
fn several_rules_for_a_host_are_one() {
    let mut world = routed_to_subset("v2");
    let subsets = |name: &str| format!("  subsets: [{{name: {name}, labels: {{v: {name}}}}}]\n");
    let all = rule("b", "default", &format!("{}{}", connections(1), subsets("v1")))
        + &rule("c", "default", &format!("{}{}", connections(2), subsets("v2")))
        + &rule("a", "default", &subsets("v0"));
    world.write("rule.yaml", &all);
    let snapshot = world.compile();
    assert_eq!(said(&snapshot), "");
    let cluster = cluster(&snapshot).unwrap();
    assert_eq!(cluster.name, "outbound|8000|v2|httpbin.default.svc.cluster.local");
    assert_eq!(limits(&snapshot).connections_max, Some(1), "the first that has a policy");
}

/// The page with routes to `subset`, whose service has an endpoint for each of two versions.
fn routed_to_subset(subset: &str) -> World {
    let page =
        PAGE.replace("host: httpbin\n", &format!("host: httpbin\n        subset: {subset}\n"));
    assert_ne!(page, PAGE);
    let backend = BACKEND
        .replace("{address: 10.0.0.2}", "{address: 10.0.0.2, labels: {v: v1}}")
        .replace("{address: 10.0.0.1,", "{address: 10.0.0.1, labels: {v: v2, x: y}, weight: 3,");
    let mut world = World::page();
    world.write("page.yaml", &page);
    world.write("backend.yaml", &backend);
    world
}

#[test]
fn a_subset_has_the_endpoints_with_its_labels() {
    let subsets = "  subsets:\n  - {name: all}\n  - {name: one, labels: {v: v1}}\n  \
                   - {name: two, labels: {v: v2, x: y}}\n  - {name: none, labels: {v: v3}}\n";
    for (name, endpoints) in [
        ("all", &["10.0.0.1:8080", "10.0.0.2:80"][..]),
        ("one", &["10.0.0.2:80"]),
        ("two", &["10.0.0.1:8080"]),
        ("none", &[]),
    ] {
        let mut world = routed_to_subset(name);
        world.write("rule.yaml", &rule("r", "default", subsets));
        let snapshot = world.compile();
        let cluster = cluster(&snapshot).unwrap();
        let found: Vec<_> = cluster.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(found, endpoints, "{name}");
        assert_eq!(said(&snapshot), "");
    }
}

#[test]
fn an_unknown_subset_leads_nowhere_and_is_said() {
    let mut world = routed_to_subset("v9");
    let snapshot = world.compile();
    assert_eq!(cluster(&snapshot), None);
    let host = "httpbin.default.svc.cluster.local";
    let expected = format!("no DestinationRule for {host} has a subset `v9`");
    assert!(said(&snapshot).contains(&expected), "{}", said(&snapshot));
    world.write("rule.yaml", &rule("r", "default", "  subsets: [{name: v1}, {name: v2}]\n"));
    let snapshot = world.compile();
    assert!(said(&snapshot).contains("`v9`, only v1, v2"), "{}", said(&snapshot));
    world.write("rule.yaml", &rule("r", "default", "  subsets: [{name: v9}]\n"));
    assert_eq!(said(&world.compile()), "");
}

#[test]
fn a_policy_for_a_port_stands_for_all_and_one_for_a_subset_block_by_block() {
    let policies = "  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}}
    loadBalancer: {simple: RANDOM}
    portLevelSettings:
    - port: {number: 8000}
      loadBalancer: {simple: ROUND_ROBIN}
  subsets:
  - name: plain
  - name: own
    trafficPolicy: {connectionPool: {http: {maxRetries: 7}}}
  - name: port
    trafficPolicy:
      loadBalancer: {simple: RANDOM}
      portLevelSettings:
      - port: {number: 8000}
        connectionPool: {http: {maxRetries: 8}}
";
    for (subset, balance, retries_max) in [
        ("plain", Balance::RoundRobin, None),
        ("own", Balance::RoundRobin, Some(7)),
        ("port", Balance::LeastRequest, Some(8)),
    ] {
        let mut world = routed_to_subset(subset);
        world.write("rule.yaml", &rule("r", "default", policies));
        let snapshot = world.compile();
        assert_eq!(said(&snapshot), "");
        let policy = cluster(&snapshot).unwrap().traffic.clone().unwrap().policy;
        let pool = PoolLimits { retries_max, ..PoolLimits::default() };
        assert_eq!((policy.balance, policy.pool), (balance, pool), "{subset}");
    }
}

#[test]
fn what_says_the_default_is_the_default() {
    let mut world = World::page();
    let more = "  trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}, tls: {mode: DISABLE}}\n";
    world.write("rule.yaml", &rule("r", "default", more));
    assert_eq!(cluster(&world.compile()).unwrap().traffic, None);
}

#[test]
fn http2_and_the_time_to_connect_can_be_asked_for() {
    let mut world = World::page();
    let more = "  trafficPolicy:\n    connectionPool: {http: {h2UpgradePolicy: UPGRADE}, \
                tcp: {connectTimeout: 250ms}}\n";
    world.write("rule.yaml", &rule("r", "default", more));
    let cluster = cluster(&world.compile()).unwrap();
    assert_eq!(cluster.protocol, UpstreamProtocol::Http2);
    assert_eq!(cluster.connect_timeout, Duration::from_millis(250));
}

#[test]
fn a_table_of_hashes_is_made_anew_only_for_other_endpoints() {
    let mut world = World::page();
    let hash = |more: &str| {
        let more = format!(
            "  trafficPolicy:\n    loadBalancer: {{consistentHash: {{useSourceIp: \
                            true, maglev: {{}}}}}}\n{more}"
        );
        rule("r", "default", &more)
    };
    let table = |snapshot: &Snapshot| {
        let traffic = cluster(snapshot).unwrap().traffic.clone().unwrap();
        traffic.table.unwrap()
    };
    world.write("rule.yaml", &hash(""));
    let first = table(&world.compile());
    world.write("rule.yaml", &hash("    retryBudget: {percent: 5}\n"));
    let second = table(&world.compile());
    assert!(Arc::ptr_eq(&first, &second));
    world.write("backend.yaml", &BACKEND.replace("10.0.0.2", "10.0.0.9"));
    assert!(!Arc::ptr_eq(&first, &table(&world.compile())));
}

#[test]
fn endpoints_of_a_service_have_the_labels_of_their_pod_or_their_slice() {
    let backend = "
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec: {ports: [{port: 8000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, labels: {kubernetes.io/service-name: httpbin, v: v1}}
ports: [{port: 80}]
endpoints:
- addresses: [10.0.0.1]
- addresses: [10.0.0.2]
  targetRef: {kind: Pod, name: second, namespace: default}
- addresses: [10.0.0.3]
  targetRef: {kind: Pod, name: unknown}
";
    let pod = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: second, labels: {labels}}}\n\
                 spec: {{containers: []}}\nstatus: {{phase: Running}}\n"
        )
    };
    let endpoints = |world: &mut World| {
        let cluster = cluster(&world.compile()).unwrap();
        cluster.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut world = routed_to_subset("two");
    world.write("backend.yaml", backend);
    let subset = "  subsets: [{name: two, labels: {v: v1}}]\n";
    world.write("rule.yaml", &rule("r", "default", subset));
    assert_eq!(endpoints(&mut world), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    world.write("pod.yaml", &pod("{v: v2}"));
    assert_eq!(endpoints(&mut world), ["10.0.0.1:80", "10.0.0.3:80"]);
    world.write("pod.yaml", &pod("{v: v1}"));
    assert_eq!(endpoints(&mut world), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
}

#[test]
fn a_rule_for_a_mesh_keeps_its_subsets_and_sends_nothing_in_plain_text() {
    let mut world = routed_to_subset("one");
    let mesh = "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n  subsets:\n  - {name: one, labels: \
                {v: v1}}\n";
    world.write("rule.yaml", &rule("r", "default", mesh));
    let snapshot = world.compile();
    let of_subset = cluster(&snapshot).expect("the subset is known");
    assert_eq!(of_subset.endpoints.len(), 1);
    assert!(of_subset.tls.as_ref().is_some_and(|tls| tls.config.is_none()));
    assert!(said(&snapshot).contains("ISTIO_MUTUAL wants the files of the mesh"));
    for (name, text) in
        [("cert-chain.pem", "good 1"), ("key.pem", "key 1"), ("root-cert.pem", "good ca")]
    {
        world.write_pem(&format!("/etc/certs/{name}"), text);
    }
    let snapshot = world.compile();
    assert!(cluster(&snapshot).unwrap().tls.as_ref().is_some_and(|tls| tls.config.is_some()));
    assert!(!said(&snapshot).contains("ISTIO_MUTUAL"), "{}", said(&snapshot));
}

#[test]
fn a_rule_with_tls_and_an_error_sends_nothing_in_plain_text() {
    let mut world = World::page();
    let bad = |tls: &str| {
        rule("r", "default", &format!("  trafficPolicy: {{tls: {{{tls}}}, speed: high}}\n"))
    };
    let is_closed = |world: &mut World| {
        let snapshot = world.compile();
        let tls = cluster(&snapshot).unwrap().tls.clone();
        let is_said =
            said(&snapshot).contains("503, not sent in plain text (until the error is gone)");
        assert_eq!(tls.is_some(), is_said, "{}", said(&snapshot));
        tls.is_some_and(|tls| tls.config.is_none())
    };
    for (tls, expected) in [
        ("mode: SIMPLE", true),
        ("mode: DISABLE", false),
        ("mode: SAFE", true),
        ("mode: MUTUAL", true),
    ] {
        world.write("rule.yaml", &bad(tls));
        assert_eq!(is_closed(&mut world), expected, "{tls}");
        assert_eq!(is_closed(&mut world), expected, "{tls}: nothing changed");
    }
    world.write("rule.yaml", "");
    assert!(!is_closed(&mut world));
    // What was good stays, and what is good again counts.
    world.write("rule.yaml", &rule("r", "default", &connections(1)));
    world.compile();
    world.write("rule.yaml", &bad("mode: SIMPLE"));
    assert!(!is_closed(&mut world));
    assert_eq!(connections_max(&mut world), Some(1));
    world.write("rule.yaml", "");
    world.compile();
    world.write("rule.yaml", &bad("mode: SIMPLE"));
    assert!(is_closed(&mut world));
    world.write("rule.yaml", &rule("r", "default", &connections(2)));
    assert!(!is_closed(&mut world));
    assert_eq!(connections_max(&mut world), Some(2));
}

#[test]
fn a_rule_with_an_error_is_closed_only_where_it_has_tls() {
    let bad = "  trafficPolicy:\n    portLevelSettings: [{port: {number: 443}, tls: {mode: \
               SIMPLE}}]\n  \
               subsets:\n  - {name: one, labels: {v: v1}, trafficPolicy: {tls: {mode: SIMPLE}}}\n  \
               - {name: two, labels: {v: v2}}\n  speed: high\n";
    for (subset, is_closed) in [("one", true), ("two", false)] {
        let mut world = routed_to_subset(subset);
        world.write("rule.yaml", &rule("r", "default", bad));
        let cluster = cluster(&world.compile()).expect("the subset is known");
        assert_eq!(cluster.tls.is_some(), is_closed, "{subset}");
    }
}
