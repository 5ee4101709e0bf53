//! Names that are looked up, by a DNS server of the tests' own.

use std::net::IpAddr;
use std::time::Duration;

use super::destination_rule::{HOST, builder, client, hold};
use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::dns::{Dns, Say};
use crate::harness::gateway::Gateway;
use crate::harness::{eventually, within, yaml};

/// A ServiceEntry for `host` whose addresses are looked up, and have a service on `port`.
fn entry(host: &str, resolution: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: web }}\n\
         spec:\n  hosts: [ {host} ]\n  resolution: {resolution}\n  ports: [ {{ number: 80, \
         targetPort: {port}, name: http }} ]\n"
    )
}

fn routed(dns: &Dns, resolution: &str, port: u16) -> Gateway {
    let route = "  - route: [ { destination: { host: web.test } } ]\n";
    builder(&[], &[])
        .settings(&dns.setting())
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], route))
        .resource("backends.yaml", &entry("web.test", resolution, port))
        .start()
}

fn addresses(addresses: &[&str], ttl: u32) -> Say {
    let parsed: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Say::Addresses(parsed, ttl)
}

fn status(client: &mut Client) -> u16 {
    client.get("/name").status
}

#[test]
fn an_answer_is_followed_when_it_has_ended() {
    let backend = Backend::start("a");
    for resolution in ["DNS", "DNS_ROUND_ROBIN", "NONE"] {
        let dns = Dns::start();
        // Nobody listens there.
        dns.says("web.test", addresses(&["127.0.0.77"], 1));
        let gateway = routed(&dns, resolution, backend.port());
        let mut client = client(&gateway);
        assert_eq!(status(&mut client), 503, "{resolution}");
        dns.says("web.test", addresses(&["127.0.0.1"], 1));
        eventually(resolution, || status(&mut client) == 200);
    }
}

#[test]
fn an_answer_that_still_holds_is_not_asked_for_again() {
    let dns = Dns::start();
    dns.says("web.test", addresses(&["127.0.0.77"], 3600));
    let _gateway = routed(&dns, "DNS", 1);
    eventually("both families were asked for", || dns.asked("web.test") >= 2);
    assert!(!within(Duration::from_millis(2500), || dns.asked("web.test") > 2));
}

#[test]
fn a_server_that_fails_takes_no_address_away() {
    let (backend, dns) = (Backend::start("a"), Dns::start());
    dns.says("web.test", addresses(&["127.0.0.1"], 1));
    let gateway = routed(&dns, "DNS", backend.port());
    let mut client = client(&gateway);
    eventually("the name is known", || status(&mut client) == 200);
    dns.says("web.test", Say::Failure);
    eventually("it is said", || gateway.logged("its last addresses are kept"));
    assert_eq!(status(&mut client), 200);
}

#[test]
fn a_name_that_exists_no_longer_has_no_endpoint() {
    let (backend, dns) = (Backend::start("a"), Dns::start());
    dns.says("web.test", addresses(&["127.0.0.1"], 1));
    let gateway = routed(&dns, "DNS", backend.port());
    let mut client = client(&gateway);
    eventually("the name is known", || status(&mut client) == 200);
    dns.forgets("web.test");
    eventually("its address is gone", || status(&mut client) == 503);
    assert!(gateway.logged("the name web.test does not exist, or has no address"));
    dns.says("web.test", addresses(&["127.0.0.1"], 1));
    eventually("it is back", || status(&mut client) == 200);
}

#[test]
fn in_turn_the_first_address_of_the_newest_answer_counts() {
    let (a, dns) = (Backend::start("a"), Dns::start());
    let b = Backend::start_at("b", ([127, 0, 0, 2], a.port()).into());
    dns.says("web.test", addresses(&["127.0.0.1", "127.0.0.2"], 1));
    let gateway = routed(&dns, "DNS_ROUND_ROBIN", a.port());
    let mut client = client(&gateway);
    let mut led_to = |name| (0..20).all(|_| client.get("/name").text() == name);
    eventually("the first address", || led_to("a"));
    let mut held = hold(&gateway, &a);
    dns.says("web.test", addresses(&["127.0.0.2", "127.0.0.1"], 1));
    eventually("the other comes first", || led_to("b"));
    a.release();
    assert_eq!(held.response("GET").unwrap().status, 200, "what was under way goes on");
    assert!(b.requests() >= 20);
}

#[test]
fn an_answer_that_says_the_same_is_no_new_generation() {
    let dns = Dns::start();
    dns.says("web.test", addresses(&["127.0.0.1", "127.0.0.77"], 1));
    let gateway = routed(&dns, "DNS", 1);
    eventually("the name is known", || {
        gateway.admin_get("/config_dump").text().contains("127.0.0.77")
    });
    let (asked, generations) = (dns.asked("web.test"), generations(&gateway));
    dns.says("web.test", addresses(&["127.0.0.77", "127.0.0.1"], 1));
    eventually("it is asked for again", || dns.asked("web.test") >= asked + 4);
    assert_eq!(self::generations(&gateway), generations);
}

fn generations(gateway: &Gateway) -> usize {
    (1..20).take_while(|n| gateway.logged(&format!("applied generation {n} "))).count()
}
