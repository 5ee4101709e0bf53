//! Load balancers that say of each connection who the client is.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::raw::Raw;
use crate::harness::{PATIENCE, eventually, outside, yaml};

const HOST: &str = "web.test";

/// `web.test` over HTTPS and plain HTTP, and TCP on port 9443, behind a load balancer on loopback.
fn behind(driver: Driver, web: &Backend, raw: &Raw) -> Builder {
    let servers = yaml::https_server(443, &[HOST], "web")
        + &yaml::http_server(80, &[HOST], false)
        + &yaml::server(9443, "TCP", &["*"], "");
    let to_raw = "  - match: [ { sourceSubnet: 203.0.113.0/24, destinationSubnets: [ 192.0.2.1 ] } ]\n    \
         route: [ { destination: { host: raw.test, port: { number: 80 } } } ]\n";
    Gateway::builder()
        .driver(driver)
        .behind("127.0.0.0/8")
        .certificate("web", &[HOST])
        .resource("gateway.yaml", &yaml::gateway("web", &servers))
        .resource(
            "http.yaml",
            &yaml::virtual_service("h", "web", &[HOST], &yaml::all_to("backend.test")),
        )
        .resource("tcp.yaml", &yaml::l4_service("t", "web", &["*"], "tcp", to_raw))
        .resource("backend.yaml", &yaml::backend("backend.test", web.port()))
        .resource("raw.yaml", &yaml::backend("raw.test", raw.port()))
}

fn connect(gateway: &Gateway, port: u16, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address(port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(header).unwrap();
    stream
}

/// All that comes; a reset is an end as well.
fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // As the comment above says.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n";

/// Version 2 with this command and these addresses.
fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, addresses].concat()
}

const ADDRESSES: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x9c, 0x40, 0x01, 0xbb];

#[test]
fn the_client_is_who_the_header_says() {
    on_each_driver(|driver| {
        let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
        let gateway = behind(driver, &web, &raw).start();
        for header in [V1.to_vec(), v2(0x21, 0x11, &ADDRESSES)] {
            let tcp = connect(&gateway, 443, &header);
            let mut client = Client::tls_on(&gateway.tls(), tcp, HOST).unwrap();
            let head = client.get("/head").text();
            assert!(head.contains("x-forwarded-for: 203.0.113.7\r\n"), "{head}");
            assert!(head.contains("x-envoy-external-address: 203.0.113.7\r\n"), "{head}");
        }
        let request = b"GET /head HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n";
        let head = read_all(connect(&gateway, 80, &[V1, request].concat()));
        assert!(head.contains("x-forwarded-for: 203.0.113.7\r\n"), "{head}");
        let mut tcp = connect(&gateway, 9443, &v2(0x21, 0x11, &ADDRESSES));
        let mut line = [0; 4];
        tcp.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"raw\n", "the route is for these addresses alone");
        drop(tcp);
        let log = gateway.access_log(4);
        let told = |line: &&String| line.contains(" 192.0.2.1:443 203.0.113.7:40000 ");
        assert_eq!(log.iter().filter(told).count(), 4, "{log:#?}");
    });
}

#[test]
fn a_header_in_pieces_is_put_together_and_addresses_may_be_those_of_ipv6() {
    let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
    let gateway = behind(Driver::Auto, &web, &raw).start();
    let mut addresses = [0; 36];
    (addresses[0], addresses[15], addresses[16]) = (0x20, 1, 0x20);
    let request = b"GET /head HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n";
    let all = [&v2(0x21, 0x21, &addresses), &request[..]].concat();
    let mut stream = connect(&gateway, 80, b"");
    for piece in all.chunks(5) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let head = read_all(stream);
    assert!(head.contains("x-forwarded-for: 2000::1\r\n"), "{head}");
}

#[test]
fn a_header_without_a_client_leaves_the_connections_own_addresses() {
    let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
    let gateway = behind(Driver::Auto, &web, &raw).start();
    let local = v2(0x20, 0x11, &ADDRESSES);
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), local, v2(0x21, 0, &[])] {
        let tcp = connect(&gateway, 443, &header);
        let mut client = Client::tls_on(&gateway.tls(), tcp, HOST).unwrap();
        let head = client.get("/head").text();
        assert!(head.contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
    }
}

#[test]
fn without_the_header_a_connection_is_closed_and_the_rest_served() {
    on_each_driver(|driver| {
        let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
        let gateway = behind(driver, &web, &raw).start();
        assert!(gateway.try_client(HOST).is_err());
        let request = b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n";
        for bytes in [&request[..], b"PROXY TCP4 1.2.3.4\r\n", b"PROXY TCP4 x"] {
            let stream = connect(&gateway, 80, bytes);
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(read_all(stream), "");
        }
        // Nothing at all is how health checks look.
        drop(connect(&gateway, 80, b""));
        let log = gateway.access_log(4);
        let refused = |line: &&String| line.contains("\"- - -\" 0 DPE proxy_protocol_error ");
        assert_eq!(log.iter().filter(refused).count(), 4, "{log:#?}");
        let metrics = gateway.admin_get("/stats/prometheus").text();
        assert!(metrics.contains("\nringgate_listener_proxy_protocol_errors_total 4\n"));
        assert_eq!(web.requests(), 0);
    });
}

#[test]
fn a_header_that_takes_too_long_is_not_waited_for() {
    on_each_driver(|driver| {
        let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
        let gateway =
            behind(driver, &web, &raw).settings("limits: { handshake_timeout: 200ms }\n").start();
        assert_eq!(read_all(connect(&gateway, 80, b"PROXY TCP4 203.")), "");
        let line = gateway.access_log(1).remove(0);
        assert!(line.contains("\"- - -\" 0 - handshake_timeout "), "{line}");
    });
}

#[test]
fn of_whom_is_not_trusted_no_header_is_read_and_a_hangup_changes_who_is() {
    let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
    let gateway = behind(Driver::Auto, &web, &raw).behind("10.0.0.0/8, \"::1\"").start();
    assert_eq!(gateway.get(HOST, "/status/200").status, 200);
    let request = b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n";
    let answer = read_all(connect(&gateway, 80, &[V1, request].concat()));
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let settings = std::fs::read_to_string(gateway.path("settings.yaml")).unwrap();
    gateway.write_file("settings.yaml", &settings.replace("10.0.0.0/8", "127.0.0.1"));
    gateway.signal(Signal::HUP);
    eventually("the header is read", || {
        let tcp = connect(&gateway, 443, V1);
        Client::tls_on(&gateway.tls(), tcp, HOST).is_ok()
    });
    assert!(gateway.try_client(HOST).is_err(), "it is required now");
}

#[test]
fn curl_says_who_it_is() {
    let (Some(mut plain), Some(mut secure)) = (outside::tool("curl"), outside::tool("curl")) else {
        return;
    };
    let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
    let gateway = behind(Driver::Auto, &web, &raw).start();
    let (http, https) = (gateway.address(80).port(), gateway.address(443).port());
    plain
        .args(["-sS", "--haproxy-protocol", "-H", "host: web.test"])
        .arg(format!("http://127.0.0.1:{http}/name"));
    assert_eq!(outside::output(&mut plain), (Some(0), "web".to_owned()));
    secure
        .args(["-sS", "--haproxy-protocol", "--cacert"])
        .arg(gateway.path("ca.pem"))
        .args(["--resolve", &format!("{HOST}:{https}:127.0.0.1")])
        .arg(format!("https://{HOST}:{https}/name"));
    assert_eq!(outside::output(&mut secure), (Some(0), "web".to_owned()));
}

#[test]
fn endpoints_are_told_who_the_client_is() {
    on_each_driver(|driver| {
        let (web, mirror) = (Backend::start("web"), Raw::mirror());
        let rule = |version: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                 metadata: {{ name: raw }}\n\
                 spec: {{ host: raw.test, trafficPolicy: {{ proxyProtocol: {version} }} }}\n"
            )
        };
        let gateway = behind(driver, &web, &mirror).resource("rule.yaml", &rule("{}")).start();
        let told = |n: usize| {
            let mut stream = connect(&gateway, 9443, V1);
            stream.write_all(b"hello").unwrap();
            let mut bytes = vec![0; n + 5];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        let expected = [V1, b"hello"].concat();
        assert_eq!(told(V1.len()), expected, "the client's own header does not reach it");
        gateway.write_resource("rule.yaml", &rule("{ version: V2 }"));
        let binary = [&v2(0x21, 0x11, &ADDRESSES)[..], b"hello"].concat();
        eventually("version 2 is spoken", || told(binary.len() - 5) == binary);
    });
}

#[test]
fn requests_share_connections_so_their_header_names_no_client() {
    let (web, raw) = (Backend::start("web"), Raw::echo("raw"));
    let inner = behind(Driver::Auto, &web, &raw).start();
    for version in ["V1", "V2"] {
        let rule = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{ name: inner }}\n\
             spec: {{ host: inner.test, trafficPolicy: {{ proxyProtocol: {{ version: {version} }} }} }}\n"
        );
        let all = yaml::virtual_service("h", "web", &[HOST], &yaml::all_to("inner.test"));
        let outer = Gateway::builder()
            .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &[HOST], false)))
            .resource("http.yaml", &all)
            .resource("inner.yaml", &yaml::backend("inner.test", inner.address(80).port()))
            .resource("rule.yaml", &rule)
            .start();
        let mut client = Client::plain(outer.address(80), HOST).unwrap();
        for _ in 0..3 {
            let head = client.get("/head");
            assert_eq!(head.status, 200, "{version}");
            let text = head.text();
            assert!(text.contains("x-envoy-external-address: 127.0.0.1\r\n"), "{text}");
        }
    }
}
