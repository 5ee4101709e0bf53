//! What a Gateway says of its servers: who serves them, where, and for whom.

use std::net::{IpAddr, Ipv4Addr, TcpStream};

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::{free_port, yaml};

/// The status of `/` for `host` by plain HTTP.
fn status(gateway: &Gateway, port: u16, host: &str) -> u16 {
    Client::plain(gateway.address(port), host).unwrap().get("/").status
}

#[test]
fn a_gateway_is_served_by_those_that_its_selector_matches() {
    let ours = yaml::gateway("ours", &yaml::http_server(80, &["*"], false));
    let any = yaml::gateway("any", &yaml::http_server(8443, &["*"], false))
        .replace("  selector: { istio: ingressgateway }\n", "");
    let others = yaml::gateway("others", &yaml::http_server(9443, &["*"], false))
        .replace("istio: ingressgateway", "istio: ingressgateway, app: other");
    let gateway =
        Gateway::builder().resource("all.yaml", &yaml::documents(&[ours, any, others])).start();
    assert_eq!(status(&gateway, 80, "a.test"), 404);
    assert_eq!(status(&gateway, 8443, "a.test"), 404);
    let listeners = gateway.admin_get("/listeners").text();
    assert_eq!(listeners.lines().count(), 2, "{listeners}");
    assert!(gateway.logged("selects other gateways than this one"));
}

#[test]
fn a_server_is_bound_where_it_says() {
    let elsewhere = yaml::http_server(9443, &["*"], false)
        .replace("    hosts:", "    bind: 127.0.0.2\n    hosts:");
    let servers = yaml::http_server(80, &["*"], false) + &elsewhere;
    let gateway =
        Gateway::builder().resource("gateway.yaml", &yaml::gateway("web", &servers)).start();
    let (usual, other) = (gateway.address(80), gateway.address(9443));
    assert_eq!(usual.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
    assert_eq!(other.ip(), IpAddr::from([127, 0, 0, 2]));
    assert!(TcpStream::connect((usual.ip(), other.port())).is_err());
    assert_eq!(status(&gateway, 9443, "a.test"), 404);
}

#[test]
fn servers_whose_addresses_overlap_are_told_of_each_other() {
    let port = free_port();
    let bound = |address: &str| {
        let bind = format!("    bind: {address}\n    hosts:");
        let servers = yaml::http_server(port, &["*"], false).replace("    hosts:", &bind);
        yaml::gateway(&format!("at-{}", address.replace('.', "-")), &servers)
    };
    let both = yaml::documents(&[bound("0.0.0.0"), bound("127.0.0.1")]);
    let gateway = Gateway::builder().resource("all.yaml", &both).start();
    let what = format!("127.0.0.1:{port} overlaps 0.0.0.0:{port}");
    assert!(gateway.logged(&what), "{what}");
    assert_eq!(status(&gateway, port, "a.test"), 404, "one of them is served");
}

#[test]
fn hosts_say_whose_virtual_services_may_bind() {
    let backend = Backend::start("a");
    let hosts = ["shop/a.test", "*/b.test", "./c.test", "d.test"];
    let service = |name: &str, namespace: &str, hosts: &[&str]| {
        yaml::virtual_service(name, "default/web", hosts, &yaml::all_to("backend.test"))
            .replace(&format!("name: {name}"), &format!("name: {name}, namespace: {namespace}"))
    };
    let gateway = Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &hosts, false)))
        .resource(
            "routes.yaml",
            &yaml::documents(&[
                service("one", "default", &["a.test", "c.test"]),
                service("two", "shop", &["b.test", "d.test"]),
            ]),
        )
        .resource("backend.yaml", &yaml::backend("backend.test", backend.port()))
        .start();
    let served = |host| status(&gateway, 80, host) == 200;
    assert!(!served("a.test"), "it is for namespace shop alone");
    assert!(served("b.test") && served("c.test") && served("d.test"));
    let route = service("one", "default", &["b.test"]) + "---\n";
    gateway
        .write_resource("routes.yaml", &(route + &service("two", "shop", &["a.test", "c.test"])));
    crate::harness::eventually("shop has a.test", || served("a.test"));
    assert!(served("b.test"));
    assert!(!served("c.test"), "it is for the Gateway's own namespace alone");
}

#[test]
fn servers_are_told_apart_by_the_names_of_their_ports() {
    let servers = yaml::https_server(443, &["a.test"], "a")
        + &yaml::https_server(443, &["b.test"], "b")
        + &yaml::passthrough_server(443, &["c.test"]);
    let gateway = Gateway::builder()
        .certificate("a", &["a.test"])
        .certificate("b", &["b.test"])
        .resource("gateway.yaml", &yaml::gateway("web", &servers))
        .resource(
            "route.yaml",
            &yaml::l4_service("c", "web", &["c.test"], "tls", &yaml::sni_to("c.test", "10.0.0.1")),
        )
        .start();
    let dump = gateway.admin_get("/config_dump").text();
    let names = ["https.443.https-443-a.web.default", "https.443.https-443-b.web.default"];
    for name in names.iter().chain(&["tls.443.tls-443.web.default"]) {
        assert!(dump.contains(&format!("\"{name}\"")), "{dump}");
    }
}
