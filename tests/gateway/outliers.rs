//! `outlierDetection` of a DestinationRule.

use std::thread;
use std::time::Duration;

use super::destination_rule::{builder, client, get, rule, with_policy};
use crate::harness::backend::Backend;
use crate::harness::gateway::Gateway;
use crate::harness::{eventually, free_port, yaml};

const HOST: &str = super::destination_rule::HOST;

fn detecting(backends: &[&Backend], detection: &str) -> Gateway {
    with_policy(backends, &format!("{{ outlierDetection: {{ {detection} }} }}")).start()
}

/// Statuses of the answers to requests for `paths`, one after the other.
fn statuses(gateway: &Gateway, paths: &[&str]) -> Vec<u16> {
    let mut client = client(gateway);
    paths.iter().map(|path| client.get(path).status).collect()
}

#[test]
fn an_endpoint_that_fails_is_left_out_for_a_while() {
    let backend = Backend::start("a");
    let policy = "{ outlierDetection: { consecutive5xxErrors: 2, interval: 1ms, \
                  baseEjectionTime: 1h, maxEjectionPercent: 100 } }";
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
    let page = gateway.admin_get("/stats/prometheus").text();
    let counted = "\nenvoy_cluster_outlier_detection_ejections_enforced_total 1\n";
    assert!(page.contains(counted), "{page}");
    let short = rule(&format!("  trafficPolicy: {policy}\n")).replace("1h", "1ms");
    let gateway = with_policy(&[&backend], policy).resource("rule.yaml", &short).start();
    assert_eq!(statuses(&gateway, &["/status/500"; 2]), [500, 500]);
    eventually("it is back", || get(&gateway, "/name").status == 200);
}
#[test]
fn errors_of_a_gateway_count_on_their_own() {
    let backend = Backend::start("a");
    let detection = "consecutive5xxErrors: 0, consecutiveGatewayErrors: 2, baseEjectionTime: 1h, \
                     maxEjectionPercent: 100";
    let gateway = detecting(&[&backend], detection);
    let paths =
        ["/status/500", "/status/500", "/status/500", "/status/502", "/status/504", "/name"];
    assert_eq!(statuses(&gateway, &paths), [500, 500, 500, 502, 504, 503]);
    assert_eq!(get(&gateway, "/name").text(), "no healthy upstream");
}

#[test]
fn what_never_got_an_answer_may_count_on_its_own() {
    let port = free_port();
    let split = "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, \
                 baseEjectionTime: 1h, maxEjectionPercent: 100";
    let once = yaml::all_to(HOST).replacen("route:", "retries: { attempts: 0 }\n    route:", 1);
    for (detection, refusals) in [(split, 2), ("maxEjectionPercent: 100", 5)] {
        let policy = format!("  trafficPolicy: {{ outlierDetection: {{ {detection} }} }}\n");
        let gateway = builder(&[], &[])
            .workers(1)
            .resource("backends.yaml", &yaml::backend(HOST, port))
            .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &once))
            .resource("rule.yaml", &rule(&policy))
            .start();
        let mut client = client(&gateway);
        let is_refused = |text: &str| text.contains("connection failure");
        let refused = (0..8).filter(|_| is_refused(&client.get("/name").text())).count();
        assert_eq!(refused, refusals, "{detection}");
    }
}

#[test]
fn only_a_share_of_the_endpoints_is_left_out() {
    for (percent, status) in [(10, 500), (50, 500), (100, 503)] {
        let backends = ["a", "b"].map(Backend::start);
        let [a, b] = &backends;
        let detection =
            format!("consecutive5xxErrors: 1, baseEjectionTime: 1h, maxEjectionPercent: {percent}");
        let gateway = detecting(&[a, b], &detection);
        let found = statuses(&gateway, &["/status/500"; 12]);
        assert_eq!(found.last(), Some(&status), "{percent} %: {found:?}");
        let out = usize::from(percent == 50);
        // With one of two left out, the last ten went to the other.
        let fewest = a.requests().min(b.requests());
        assert!(out == 0 || fewest == 1, "{fewest}");
    }
}

#[test]
fn with_too_few_endpoints_left_all_are_used() {
    let backend = Backend::start("a");
    let detection = "consecutive5xxErrors: 1, baseEjectionTime: 1h, maxEjectionPercent: 100, \
                     minHealthPercent: 50";
    let gateway = detecting(&[&backend], detection);
    assert_eq!(statuses(&gateway, &["/status/500", "/status/500", "/name"]), [500, 500, 200]);
}

#[test]
fn whether_it_may_return_is_looked_at_every_interval() {
    for (interval, returns) in [("1h", false), ("1ms", true)] {
        let backend = Backend::start("a");
        let detection = format!(
            "consecutive5xxErrors: 1, baseEjectionTime: 1ms, maxEjectionPercent: 100, \
             interval: {interval}"
        );
        let gateway = detecting(&[&backend], &detection);
        assert_eq!(statuses(&gateway, &["/status/500"]), [500]);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(get(&gateway, "/name").status == 200, returns, "{interval}");
    }
}

#[test]
fn an_endpoint_that_is_too_late_counts_as_failed() {
    let backend = Backend::start("a");
    let detection = "consecutive5xxErrors: 2, baseEjectionTime: 1h, maxEjectionPercent: 100";
    let policy = format!("{{ outlierDetection: {{ {detection} }} }}");
    let limits = ["timeout: 50ms", "retries: { attempts: 1, perTryTimeout: 50ms, retryOn: reset }"];
    for (limit, requests) in limits.into_iter().zip([2, 1]) {
        let late = yaml::all_to(HOST).replacen("route:", &format!("{limit}\n    route:"), 1);
        let gateway = with_policy(&[&backend], &policy)
            .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &late))
            .start();
        let mut client = client(&gateway);
        for _ in 0..requests {
            assert_eq!(client.get("/hold").status, 504, "{limit}");
        }
        assert_eq!(client.get("/name").text(), "no healthy upstream", "{limit}");
    }
}
