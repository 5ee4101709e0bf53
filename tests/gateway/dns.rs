//! Names that are looked up, by a DNS server of the tests' own.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use rustix::process::Signal;

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

#[test]
fn an_answer_that_is_too_long_for_udp_is_taken_by_tcp() {
    let (backend, dns) = (Backend::start("a"), Dns::start());
    let many = (2..120).map(|n| format!("127.0.0.{n}").parse().unwrap());
    let many: Vec<IpAddr> = many.chain(["127.0.0.1".parse().unwrap()]).collect();
    dns.says("web.test", Say::ByTcp(many.clone(), 60));
    let gateway = routed(&dns, "DNS", backend.port());
    let clusters = gateway.admin_get("/clusters").text();
    let missing = many.iter().find(|one| !clusters.contains(&format!("{one}:{}", backend.port())));
    assert_eq!(missing, None, "{clusters}");
    assert!(dns.asked_by_tcp() >= 1);
}

#[test]
fn aliases_are_followed_and_the_shortest_time_holds() {
    for last in [Say::Alias, Say::BareAlias] {
        let (backend, dns) = (Backend::start("a"), Dns::start());
        dns.says("web.test", Say::Alias("one.test", 1));
        // With the second, the answer ends in a name that has to be asked for in turn.
        dns.says("one.test", last("two.test", 3600));
        dns.says("two.test", addresses(&["127.0.0.77"], 3600));
        dns.says("other.test", addresses(&["127.0.0.1"], 3600));
        let gateway = routed(&dns, "DNS", backend.port());
        let mut client = client(&gateway);
        assert_eq!(status(&mut client), 503);
        assert!(gateway.admin_get("/clusters").text().contains("127.0.0.77"));
        dns.says("web.test", Say::Alias("other.test", 3600));
        eventually("the alias leads elsewhere", || status(&mut client) == 200);
    }
}

#[test]
fn aliases_in_a_circle_are_no_answer() {
    let dns = Dns::start();
    dns.says("web.test", Say::BareAlias("one.test", 60));
    dns.says("one.test", Say::BareAlias("web.test", 60));
    let gateway = routed(&dns, "DNS", 1);
    assert_eq!(status(&mut client(&gateway)), 503);
    assert!(dns.asked("web.test") < 100, "asked {} times", dns.asked("web.test"));
}

#[test]
fn addresses_of_ipv6_serve() {
    let backend = Backend::start_at("a", "[::1]:0".parse().unwrap());
    let dns = Dns::start();
    dns.says("web.test", addresses(&["::1"], 60));
    let gateway = routed(&dns, "DNS", backend.port());
    assert_eq!(status(&mut client(&gateway)), 200);
    let clusters = gateway.admin_get("/clusters").text();
    assert!(clusters.contains(&format!("[::1]:{}", backend.port())), "{clusters}");
}

#[test]
fn a_hangup_asks_the_servers_of_the_new_settings() {
    let (backend, old, new) = (Backend::start("a"), Dns::start(), Dns::start());
    old.says("web.test", addresses(&["127.0.0.77"], 3600));
    new.says("web.test", addresses(&["127.0.0.1"], 3600));
    let gateway = routed(&old, "DNS", backend.port());
    let mut client = client(&gateway);
    assert_eq!(status(&mut client), 503);
    let settings = fs::read_to_string(gateway.path("settings.yaml")).unwrap();
    let settings = settings.replace(&old.setting(), &new.setting());
    gateway.write_file("settings.yaml", &settings);
    gateway.signal(Signal::HUP);
    eventually("the new server's address", || status(&mut client) == 200);
    let asked = old.asked("web.test");
    assert_eq!(asked, 2, "of the old one, each family once");
}

#[test]
fn a_resolv_conf_that_changes_is_read_again() {
    let (backend, dns) = (Backend::start("a"), Dns::start());
    dns.says("web.test.one.test", addresses(&["127.0.0.77"], 3600));
    dns.says("web.test.two.test", addresses(&["127.0.0.1"], 3600));
    let route = "  - route: [ { destination: { host: web.test } } ]\n";
    let builder = builder(&[], &[])
        .settings(&dns.setting())
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], route))
        .resource("backends.yaml", &entry("web.test", "DNS", backend.port()));
    let Some(builder) = builder.resolv_conf("search one.test\n") else { return };
    let gateway = builder.start();
    let mut client = client(&gateway);
    assert_eq!(status(&mut client), 503);
    assert!(gateway.admin_get("/clusters").text().contains("127.0.0.77"));
    // In place, as kubelets and container runtimes do: it is mounted.
    fs::write(gateway.path("resolv.conf"), "search two.test other.test\n").unwrap();
    eventually("its domain is searched", || status(&mut client) == 200);
}

#[test]
fn lookups_are_counted_and_names_without_address_shown() {
    let dns = Dns::start();
    dns.says("web.test", Say::Failure);
    let gateway = routed(&dns, "DNS", 1);
    let counted = |name: &str| {
        let text = gateway.admin_get("/stats/prometheus").text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<u64>().unwrap()
    };
    assert_eq!((counted("ringgate_dns_names"), counted("ringgate_dns_names_unresolved")), (1, 1));
    assert!(counted("envoy_cluster_update_failure") >= 1);
    dns.forgets("web.test");
    eventually("it does not exist", || counted("envoy_cluster_update_empty") >= 1);
    dns.says("web.test", addresses(&["127.0.0.1"], 3600));
    eventually("it is found", || counted("envoy_cluster_update_success") == 1);
    assert_eq!(counted("ringgate_dns_names_unresolved"), 0);
    let ended =
        ["success", "empty", "failure"].map(|how| counted(&format!("envoy_cluster_update_{how}")));
    assert_eq!(counted("envoy_cluster_update_attempt"), ended.iter().sum::<u64>());
}
