//! `loadBalancer` of a DestinationRule, and what is said of the endpoints of a ServiceEntry for it.

use std::collections::HashSet;

use super::destination_rule::{HOST, client, with_policy};
use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::yaml;

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

/// How many of `requests` each of `backends` gets.
fn shares(gateway: &Gateway, backends: &[Backend], requests: usize) -> Vec<usize> {
    let before: Vec<_> = backends.iter().map(Backend::requests).collect();
    let mut client = client(gateway);
    for _ in 0..requests {
        assert_eq!(client.get("/name").status, 200);
    }
    backends.iter().zip(before).map(|(backend, before)| backend.requests() - before).collect()
}

#[test]
fn any_endpoint_or_the_less_busy_of_two() {
    for policy in ["RANDOM", "LEAST_REQUEST", "UNSPECIFIED"] {
        let backends = ["a", "b", "c"].map(Backend::start);
        let [a, b, c] = &backends;
        // Rules beside it, so that it is the balancer of rules that chooses.
        let policy = format!("{{ loadBalancer: {{ simple: {policy} }}, retryBudget: {{}} }}");
        let gateway = with_policy(&[a, b, c], &policy).start();
        let shares = shares(&gateway, &backends, 60);
        // Less than one in a thousand million is missed by chance.
        assert!(shares.iter().all(|share| *share > 0), "{policy}: {shares:?}");
    }
}

#[test]
fn a_busy_endpoint_gets_less() {
    let backends = ["a", "b"].map(Backend::start);
    let [a, b] = &backends;
    let policy = "{ loadBalancer: { simple: LEAST_REQUEST }, retryBudget: {} }";
    let gateway = with_policy(&[a, b], policy).start();
    // Five of its own for whichever is chosen first.
    let (before, held) = (a.requests(), hold_one(&gateway, &backends));
    let busy = usize::from(a.requests() == before);
    let shares = shares(&gateway, &backends, 100);
    // It is chosen where it is drawn twice: a quarter.
    assert!(shares[busy] < 50, "{shares:?}");
    drop(held);
}

fn hold_one(gateway: &Gateway, backends: &[Backend; 2]) -> Client {
    let mut client = client(gateway);
    client.send(format!("GET /hold HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
    crate::harness::eventually("it is there", || backends.iter().any(|b| b.requests() > 0));
    client
}

#[test]
fn endpoints_have_weights() {
    let backends = ["a", "b"].map(Backend::start);
    let endpoint = |backend: &Backend, weight: u32| {
        let port = backend.port();
        format!("  - {{ address: 127.0.0.1, ports: {{ http: {port} }}, weight: {weight} }}\n")
    };
    let entry = yaml::backend(HOST, 1);
    let entry = entry.split("  endpoints:").next().unwrap();
    let endpoints = endpoint(&backends[0], 1) + &endpoint(&backends[1], 3);
    let gateway = with_policy(&[], "{ loadBalancer: { simple: ROUND_ROBIN } }")
        .resource("backends.yaml", &format!("{entry}  endpoints:\n{endpoints}"))
        .start();
    assert_eq!(shares(&gateway, &backends, 40), [10, 30]);
}

/// Names of the backends that a request with each of `headers` gets, which has to be the same one
/// each time.
fn homes(gateway: &Gateway, requests: impl Iterator<Item = (String, String)>) -> HashSet<String> {
    let mut client = client(gateway);
    let home = |(path, headers): (String, String)| {
        let mut ask = || client.request("GET", &path, &headers, b"").unwrap().text();
        let first = ask();
        assert!((0..4).all(|_| ask() == first), "{path} {headers}");
        first
    };
    requests.map(home).collect()
}

/// Checks that requests of one `key` each stay with an endpoint, and those of many use them all.
fn assert_sticky(key: &str, settings: &str, request: impl Fn(u32) -> (String, String)) {
    let backends = ["a", "b", "c"].map(Backend::start);
    let [a, b, c] = &backends;
    let policy = format!("{{ loadBalancer: {{ consistentHash: {{ {key} }} }} }}");
    let gateway = with_policy(&[a, b, c], &policy).settings(settings).start();
    assert_eq!(homes(&gateway, (0..40).map(request)).len(), 3, "{key}");
}

#[test]
fn requests_with_the_same_header_stay_together() {
    let request = |key| ("/name".to_owned(), format!("x-user: {key}\r\n"));
    assert_sticky("httpHeaderName: x-user", "", request);
    assert_sticky("httpHeaderName: x-user, ringHash: { minimumRingSize: 64 }", "", request);
    assert_sticky("httpHeaderName: x-user, maglev: { tableSize: 251 }", "", request);
}

#[test]
fn requests_with_the_same_parameter_stay_together() {
    let request = |key| (format!("/name?user={key}"), String::new());
    assert_sticky("httpQueryParameterName: user", "", request);
}

#[test]
fn requests_of_the_same_client_stay_together() {
    let request = |key| ("/name".to_owned(), format!("x-forwarded-for: 10.0.0.{key}\r\n"));
    assert_sticky("useSourceIp: true", "http: { trusted_proxies: 1 }\n", request);
}

#[test]
fn a_client_without_the_cookie_is_given_one() {
    let cookie = "httpCookie: { name: home, path: /name, ttl: 60s, attributes: [ { name: \
                  SameSite, value: Lax } ] }";
    assert_sticky(cookie, "", |key| ("/name".to_owned(), format!("cookie: home={key}\r\n")));
    let backends = ["a", "b", "c"].map(Backend::start);
    let [a, b, c] = &backends;
    let policy = format!("{{ loadBalancer: {{ consistentHash: {{ {cookie} }} }} }}");
    let gateway = with_policy(&[a, b, c], &policy).start();
    let mut client = client(&gateway);
    let mut names = HashSet::new();
    for _ in 0..40 {
        let first = client.get("/name");
        let line = first.header("set-cookie").expect("a cookie").to_owned();
        let (pair, rest) = line.split_once(';').unwrap();
        assert_eq!(rest, " Max-Age=60; Path=/name; SameSite=Lax; HttpOnly");
        let headers = format!("cookie: {pair}\r\n");
        let second = client.request("GET", "/name", &headers, b"").unwrap();
        assert_eq!((second.text(), second.header("set-cookie")), (first.text(), None));
        names.insert(first.text());
    }
    assert_eq!(names.len(), 3);
}

#[test]
fn a_key_stays_with_its_endpoint_when_another_goes() {
    let backends = ["a", "b", "c"].map(Backend::start);
    let [a, b, c] = &backends;
    let policy = "{ loadBalancer: { consistentHash: { httpHeaderName: x-user } } }";
    let gateway = with_policy(&[a, b, c], policy).start();
    let mut client = client(&gateway);
    let mut home = |key: u32| {
        let headers = format!("x-user: {key}\r\n");
        client.request("GET", "/name", &headers, b"").unwrap().text()
    };
    let before: Vec<_> = (0..40).map(&mut home).collect();
    let port = c.port();
    let text = std::fs::read_to_string(gateway.path("resources/backends.yaml")).unwrap();
    let others: String = text
        .lines()
        .filter(|line| !line.contains(&format!("http: {port} ")))
        .map(|line| format!("{line}\n"))
        .collect();
    gateway.write_resource("backends.yaml", &others);
    crate::harness::eventually("it is gone", || (0..40).map(&mut home).all(|name| name != "c"));
    for (key, before) in (0..40).zip(before).filter(|(_, before)| before != "c") {
        assert_eq!(home(key), before, "{key}");
    }
}

#[test]
fn a_new_endpoint_warms_up() {
    let warmups =
        ["warmup: { duration: 1h, minimumPercent: 5, aggression: 1.5 }", "warmupDurationSecs: 1h"];
    for warmup in warmups {
        let backends = ["a", "b"].map(Backend::start);
        let policy = format!("{{ loadBalancer: {{ simple: RANDOM, {warmup} }} }}");
        let gateway = with_policy(&[&backends[0]], &policy).start();
        assert_eq!(shares(&gateway, &backends, 20), [20, 0]);
        let text = std::fs::read_to_string(gateway.path("resources/backends.yaml")).unwrap();
        let port = backends[1].port();
        let new = format!("  - {{ address: 127.0.0.1, ports: {{ http: {port} }} }}\n");
        gateway.write_resource("backends.yaml", &(text + &new));
        let mut first = client(&gateway);
        crate::harness::eventually("the new one is known", || {
            first.get("/name");
            backends[1].requests() > 0
        });
        let shares = shares(&gateway, &backends, 200);
        // A third of a half is far more than a new one gets.
        assert!(shares[1] < 66, "{warmup}: {shares:?}");
    }
}
