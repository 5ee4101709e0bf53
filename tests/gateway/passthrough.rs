//! TLS that the endpoint terminates: the gateway reads the name that a client asks for and passes
//! every byte on.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustls::ClientConnection;

use crate::harness::backend::Backend;
use crate::harness::certificate::{Authority, Leaf};
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::load::Load;
use crate::harness::raw::Raw;
use crate::harness::{PATIENCE, eventually, outside, yaml};

/// Endpoints have certificates of their own authority.
struct Site {
    authority: Authority,
    leaf: Leaf,
    backend: Raw,
}

impl Site {
    fn new(host: &str, name: &str) -> Self {
        let authority = Authority::new();
        let leaf = authority.leaf(&[host]);
        let backend = Raw::tls(name, &leaf);
        Self { authority, leaf, backend }
    }

    fn tls(&self) -> Tls {
        Tls::new(self.authority.roots())
    }

    /// What the endpoint answers to a client that trusts it alone.
    fn ask(&self, gateway: &Gateway, host: &str) -> std::io::Result<String> {
        let mut client = Client::tls(&self.tls(), gateway.address(443), host)?;
        assert_eq!(client.certificate(), self.leaf.der, "the endpoint's own certificate");
        Ok(client.request("GET", "/", "", b"")?.text())
    }
}

/// `host` is passed on to `port`.
fn passing(driver: Driver, host: &str, port: u16) -> Builder {
    Gateway::builder()
        .driver(driver)
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::passthrough_server(443, &[host])))
        .resource("route.yaml", &route(host, "backend.test"))
        .resource("backend.yaml", &yaml::backend("backend.test", port))
}

fn route(host: &str, to: &str) -> String {
    yaml::l4_service("web", "web", &[host], "tls", &yaml::sni_to(host, to))
}

#[test]
fn the_client_sees_the_endpoints_certificate() {
    on_each_driver(|driver| {
        let site = Site::new("pass.test", "endpoint");
        let gateway = passing(driver, "pass.test", site.backend.port()).start();
        assert_eq!(site.ask(&gateway, "pass.test").unwrap(), "endpoint");
        let line = gateway.access_log(1).remove(0);
        assert!(line.contains("] \"- - -\" 0 - - - \"-\" "), "{line}");
        assert!(line.contains(" outbound|80||backend.test "), "{line}");
        assert!(line.contains(&format!("\"127.0.0.1:{}\"", site.backend.port())), "{line}");
        assert!(line.ends_with(" pass.test -"), "{line}");
        let bytes: Vec<u64> =
            line.split(' ').skip(9).take(2).map(|number| number.parse().unwrap()).collect();
        assert!(bytes[0] > 300 && bytes[1] > 500, "a handshake each way: {line}");
    });
}

#[test]
fn https_without_a_mode_is_passed_on_as_well() {
    let site = Site::new("pass.test", "endpoint");
    let server = yaml::server(443, "HTTPS", &["*.test"], "{}");
    let gateway = passing(Driver::Auto, "pass.test", site.backend.port())
        .resource("gateway.yaml", &yaml::gateway("web", &server))
        .start();
    assert_eq!(site.ask(&gateway, "pass.test").unwrap(), "endpoint");
}

#[test]
fn names_lead_to_endpoints_beside_a_server_that_terminates() {
    on_each_driver(|driver| {
        let (exact, wild) = (Site::new("a.b.test", "exact"), Site::new("x.b.test", "wild"));
        let web = Backend::start("web");
        let servers = yaml::passthrough_server(443, &["*.b.test"])
            + &yaml::https_server(443, &["web.test", "t.b.test"], "web");
        let rules = yaml::sni_to("*.b.test", "wild.test") + &yaml::sni_to("a.b.test", "exact.test");
        let gateway = Gateway::builder()
            .driver(driver)
            .certificate("web", &["web.test", "t.b.test"])
            .resource("gateway.yaml", &yaml::gateway("web", &servers))
            .resource("tls.yaml", &yaml::l4_service("p", "web", &["*.b.test"], "tls", &rules))
            .resource(
                "http.yaml",
                &yaml::virtual_service(
                    "h",
                    "web",
                    &["web.test", "t.b.test"],
                    &yaml::all_to("web.internal"),
                ),
            )
            .resource("exact.yaml", &yaml::backend("exact.test", exact.backend.port()))
            .resource("wild.yaml", &yaml::backend("wild.test", wild.backend.port()))
            .resource("web.yaml", &yaml::backend("web.internal", web.port()))
            .start();
        assert_eq!(exact.ask(&gateway, "a.b.test").unwrap(), "exact", "the narrowest name");
        assert_eq!(wild.ask(&gateway, "x.b.test").unwrap(), "wild");
        assert_eq!(gateway.get("web.test", "/name").text(), "web");
        assert_eq!(gateway.get("t.b.test", "/name").text(), "web", "narrower than the wildcard");
        let mut web_client = gateway.client("web.test");
        web_client.send(b"GET / HTTP/1.1\r\nhost: a.b.test\r\n\r\n").unwrap();
        let answer = web_client.response("GET").unwrap();
        assert_eq!(answer.status, 421, "the name belongs to the endpoint");
        for name in ["b.test", "unknown.test"] {
            let error = gateway.tls().handshake(gateway.address(443), name).map(drop).unwrap_err();
            assert!(!error.to_string().contains("alert"), "{name}: {error}");
        }
        let log = gateway.access_log(7).join("\n");
        assert_eq!(log.matches("\"- - -\" 0 NR filter_chain_not_found").count(), 2, "{log}");
    });
}

#[test]
fn curl_and_openssl_talk_to_the_endpoint() {
    let (Some(mut curl), Some(mut openssl)) = (outside::tool("curl"), outside::tool("openssl"))
    else {
        return;
    };
    let site = Site::new("pass.test", "endpoint");
    let gateway = passing(Driver::Auto, "pass.test", site.backend.port()).start();
    let (address, ca) = (gateway.address(443), gateway.path("endpoint-ca.pem"));
    fs::write(&ca, site.authority.pem()).unwrap();
    let port = address.port();
    curl.args(["-sS", "--cacert", ca.to_str().unwrap()])
        .args(["--resolve", &format!("pass.test:{port}:127.0.0.1")])
        .arg(format!("https://pass.test:{port}/"));
    assert_eq!(outside::output(&mut curl), (Some(0), "endpoint".to_owned()));
    openssl
        .args(["s_client", "-connect", &address.to_string(), "-servername", "pass.test"])
        .args(["-verify_return_error", "-CAfile", ca.to_str().unwrap()]);
    let (_, text) = outside::output(&mut openssl);
    assert!(text.contains("CN = pass.test") || text.contains("CN=pass.test"), "{text}");
    assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
}

#[test]
fn every_byte_of_a_hello_in_pieces_arrives() {
    on_each_driver(|driver| {
        let mirror = Raw::mirror();
        let gateway = passing(driver, "pass.test", mirror.port()).start();
        let mut hello = hello("pass.test");
        hello.extend_from_slice(b"and more that came early");
        let mut stream = TcpStream::connect(gateway.address(443)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for piece in hello.chunks(hello.len() / 7) {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(3));
        }
        let mut back = vec![0; hello.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, hello);
    });
}

/// The first bytes of a client that asks for `name`.
fn hello(name: &str) -> Vec<u8> {
    let config = Tls::new(Authority::new().roots()).config();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn the_first_block_that_holds_wins() {
    let (first, second) = (Site::new("pass.test", "first"), Site::new("pass.test", "second"));
    let leads_to = |conditions: &str| {
        let block = "{ sniHosts: [ pass.test ]".to_owned() + conditions + " }";
        let to = |host| format!("{{ destination: {{ host: {host}, port: {{ number: 80 }} }} }}");
        let rules = format!(
            "  - match: [ {block} ]\n    route: [ {} ]\n\
             \x20 - match: [ {{ sniHosts: [ pass.test ] }} ]\n    route: [ {} ]\n",
            to("first.test"),
            to("second.test")
        );
        let gateway = passing(Driver::Auto, "pass.test", 1)
            .resource("route.yaml", &yaml::l4_service("w", "web", &["pass.test"], "tls", &rules))
            .resource("first.yaml", &yaml::backend("first.test", first.backend.port()))
            .resource("second.yaml", &yaml::backend("second.test", second.backend.port()))
            .start();
        let sites = [&first, &second];
        let trusted = sites.into_iter().find(|site| {
            let client = Client::tls(&site.tls(), gateway.address(443), "pass.test");
            client.is_ok()
        });
        trusted.unwrap().ask(&gateway, "pass.test").unwrap()
    };
    for conditions in [
        "",
        ", destinationSubnets: [ 127.0.0.0/8 ]",
        ", port: 443",
        ", gateways: [ web ]",
        ", sourceLabels: { istio: ingressgateway }",
        ", sourceNamespace: istio-system",
    ] {
        assert_eq!(leads_to(conditions), "first", "{conditions}");
    }
    for conditions in [
        ", destinationSubnets: [ 10.0.0.0/8 ]",
        ", port: 8443",
        ", gateways: [ other ]",
        ", sourceLabels: { istio: egressgateway }",
        ", sourceNamespace: default",
    ] {
        assert_eq!(leads_to(conditions), "second", "{conditions}");
    }
}

#[test]
fn without_anybody_to_pass_it_on_to_it_is_closed() {
    let gateway = passing(Driver::Auto, "pass.test", 1)
        .resource(
            "route.yaml",
            &yaml::documents(&[
                yaml::l4_service(
                    "d",
                    "web",
                    &["dead.test"],
                    "tls",
                    &yaml::sni_to("dead.test", "backend.test"),
                ),
                yaml::l4_service(
                    "n",
                    "web",
                    &["none.test"],
                    "tls",
                    &yaml::sni_to("none.test", "nowhere.invalid"),
                ),
                yaml::l4_service(
                    "c",
                    "web",
                    &["cluster.test"],
                    "tls",
                    &yaml::sni_to("cluster.test", "backend.test").replace("80", "81"),
                ),
            ]),
        )
        .resource(
            "gateway.yaml",
            &yaml::gateway("web", &yaml::passthrough_server(443, &["*.test"])),
        )
        .start();
    for name in ["dead.test", "none.test", "cluster.test"] {
        assert!(gateway.tls().handshake(gateway.address(443), name).is_err(), "{name}");
    }
    let log = gateway.access_log(3);
    let line = |name: &str| log.iter().find(|line| line.ends_with(&format!(" {name} -"))).unwrap();
    let dead = line("dead.test");
    assert!(dead.contains("\"- - -\" 0 UF,URX - - \"connect failed: "), "{dead}");
    assert!(dead.contains("\"127.0.0.1:1\" outbound|80||backend.test "), "{dead}");
    assert!(line("none.test").contains("\"- - -\" 0 UH - - "), "{}", line("none.test"));
    let cluster = line("cluster.test");
    assert!(cluster.contains("\"- - -\" 0 NC cluster_not_found - "), "{cluster}");
}

#[test]
fn a_reload_cuts_no_connection() {
    let (old, new) = (Site::new("pass.test", "old"), Site::new("pass.test", "new"));
    let mirror = Raw::mirror();
    let web = Backend::start("web");
    let servers = yaml::passthrough_server(443, &["pass.test", "raw.test"])
        + &yaml::https_server(443, &["web.test"], "web");
    let both = |to: &str| yaml::sni_to("pass.test", to) + &yaml::sni_to("raw.test", "raw.internal");
    let route =
        |to: &str| yaml::l4_service("p", "web", &["pass.test", "raw.test"], "tls", &both(to));
    let gateway = Gateway::builder()
        .certificate("web", &["web.test"])
        .resource("gateway.yaml", &yaml::gateway("web", &servers))
        .resource("route.yaml", &route("old.internal"))
        .resource(
            "http.yaml",
            &yaml::virtual_service("h", "web", &["web.test"], &yaml::all_to("web.internal")),
        )
        .resource("old.yaml", &yaml::backend("old.internal", old.backend.port()))
        .resource("new.yaml", &yaml::backend("new.internal", new.backend.port()))
        .resource("raw.yaml", &yaml::backend("raw.internal", mirror.port()))
        .resource("web.yaml", &yaml::backend("web.internal", web.port()))
        .start();
    let mut kept = TcpStream::connect(gateway.address(443)).unwrap();
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut echoes = |bytes: &[u8]| {
        kept.write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        kept.read_exact(&mut back).unwrap();
        back == bytes
    };
    assert!(echoes(&hello("raw.test")));
    let load = Load::start(&gateway.tls(), gateway.address(443), "web.test", "/name");
    assert_eq!(old.ask(&gateway, "pass.test").unwrap(), "old");
    gateway.write_resource("route.yaml", &route("new.internal"));
    eventually("new connections go to the new endpoint", || {
        Client::tls(&new.tls(), gateway.address(443), "pass.test").is_ok()
    });
    assert!(echoes(b"the old connection goes on"));
    gateway.remove_resource("route.yaml");
    eventually("there is no route any more", || {
        new.tls().handshake(gateway.address(443), "pass.test").is_err()
    });
    assert!(echoes(b"and on"));
    load.finish();
}

/// Istio's page "Ingress Gateway without TLS Termination".
const PAGE: &str = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: mygateway
spec:
  selector:
    istio: ingressgateway # use istio default ingress gateway
  servers:
  - port:
      number: 443
      name: https
      protocol: HTTPS
    tls:
      mode: PASSTHROUGH
    hosts:
    - nginx.example.com
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: nginx
spec:
  hosts:
  - nginx.example.com
  gateways:
  - mygateway
  tls:
  - match:
    - port: 443
      sniHosts:
      - nginx.example.com
    route:
    - destination:
        host: my-nginx
        port:
          number: 443
---
apiVersion: v1
kind: Service
metadata:
  name: my-nginx
  labels:
    run: my-nginx
spec:
  ports:
  - port: 443
    protocol: TCP
  selector:
    run: my-nginx
";

#[test]
fn the_page_about_passthrough_works_as_it_stands() {
    let site = Site::new("nginx.example.com", "Welcome to nginx!");
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: my-nginx-1\n  \
         labels: {{ kubernetes.io/service-name: my-nginx }}\naddressType: IPv4\n\
         ports: [ {{ name: \"\", port: {}, protocol: TCP }} ]\n\
         endpoints: [ {{ addresses: [ 127.0.0.1 ], conditions: {{ ready: true }} }} ]\n",
        site.backend.port()
    );
    let gateway =
        Gateway::builder().resource("page.yaml", PAGE).resource("slice.yaml", &slice).start();
    assert_eq!(site.ask(&gateway, "nginx.example.com").unwrap(), "Welcome to nginx!");
    let line = gateway.access_log(1).remove(0);
    assert!(line.contains(" outbound|443||my-nginx.default.svc.cluster.local "), "{line}");
}

#[test]
fn the_example_works_as_it_stands() {
    let site = Site::new("nginx.example.com", "as it stands");
    let example = include_str!("../../config/examples/passthrough/passthrough.yaml");
    let port = format!("tls: {}", site.backend.port());
    let gateway =
        Gateway::builder().resource("all.yaml", &example.replace("tls: 9443", &port)).start();
    assert_eq!(site.ask(&gateway, "nginx.example.com").unwrap(), "as it stands");
}
