//! Unix sockets: endpoints that are reached by one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::backend::Backend;
use crate::harness::certificate::Authority;
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::{Builder, Gateway, on_each_driver};
use crate::harness::raw::Raw;
use crate::harness::relay::Relay;
use crate::harness::{checksum, eventually, outside, pattern, yaml};

const HOST: &str = "web.test";

/// A directory for sockets, whose paths have to be short.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ringgate-").tempdir().unwrap()
}

fn unix(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// A ServiceEntry that makes `host` port 80 what is at `addresses`.
fn entry(host: &str, port: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| format!("{{ address: \"{address}\" }}")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: web }}\n\
         spec:\n  hosts: [ {host} ]\n  ports: [ {{ number: 80, {port} }} ]\n  \
         resolution: STATIC\n  endpoints: [ {} ]\n",
        endpoints.join(", ")
    )
}

/// A gateway whose host is served as `backend` says.
fn builder(backend: &str) -> Builder {
    Gateway::builder()
        .workers(1)
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &["*"], false)))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &["*"], &yaml::all_to(HOST)))
        .resource("backend.yaml", backend)
}

fn client(gateway: &Gateway) -> Client {
    Client::plain(gateway.address(80), HOST).unwrap()
}

#[test]
fn requests_go_to_a_unix_socket() {
    on_each_driver(|driver| {
        let (directory, backend) = (directory(), Backend::start("a"));
        let path = directory.path().join("app.sock");
        let _relay = Relay::to_port(&path, backend.port());
        let rules = format!(
            "  - headers: {{ response: {{ set: {{ x-to: \"%UPSTREAM_REMOTE_ADDRESS%\", \
             x-port: \"<%UPSTREAM_REMOTE_PORT%>\" }} }} }}\n    route: [ {{ destination: {{ host: \
             {HOST} }} }} ]\n"
        );
        let gateway = builder(&entry(HOST, "name: http", &[&unix(&path)]))
            .driver(driver)
            .resource("route.yaml", &yaml::virtual_service("web", "web", &["*"], &rules))
            .start();
        let mut client = client(&gateway);
        let answer = client.get("/name");
        assert_eq!(answer.text(), "a");
        assert_eq!(answer.header("x-to"), path.to_str());
        assert_eq!(answer.header("x-port"), Some("<>"));
        let (down, up) = (client.get("/bytes/1048576").body, pattern(1 << 20));
        assert_eq!((down.len(), checksum(&down)), (up.len(), checksum(&up)));
        assert_eq!(client.post("/sum", &up).text(), format!("1048576 {:x} ", checksum(&up)));
        assert_eq!(backend.connections(), 1, "the connection is used again");
        let line = gateway.access_log(1).remove(0);
        let ends = format!("\"{}\" outbound|80||{HOST} - 127.0.0.1:", path.display());
        assert!(line.contains(&ends), "{line}");
        let clusters = gateway.admin_get("/clusters").text();
        assert!(clusters.contains(&format!("outbound|80||{HOST}::{}\n", path.display())));
    });
}

#[test]
fn workloads_may_be_unix_sockets() {
    let backend = Backend::start("a");
    let name = format!("ringgate-test-{}-workload", std::process::id());
    let _relay = Relay::named_to_port(&name, backend.port());
    let workload = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{ name: a }}\n\
         spec: {{ address: \"unix://@{name}\", labels: {{ app: web }} }}\n"
    );
    let selecting = entry(HOST, "name: http", &[])
        .replace("endpoints: [  ]", "workloadSelector: { labels: { app: web } }");
    let gateway = builder(&yaml::documents(&[selecting, workload])).log_format("json").start();
    assert_eq!(client(&gateway).get("/name").text(), "a");
    let line = gateway.access_log(1).remove(0);
    let ends = format!("\"upstream_host\":\"@{name}\",\"upstream_local_address\":null,");
    assert!(line.contains(&ends), "{line}");
}

#[test]
fn a_socket_that_is_not_there_is_said_and_is_used_once_it_is() {
    on_each_driver(|driver| {
        let (directory, backend) = (directory(), Backend::start("a"));
        let path = directory.path().join("app.sock");
        let gateway = builder(&entry(HOST, "name: http", &[&unix(&path)])).driver(driver).start();
        let mut client = client(&gateway);
        let missing = client.get("/name");
        assert_eq!(missing.status, 503);
        assert!(missing.text().contains("connection failure"), "{}", missing.text());
        let line = gateway.access_log(1).remove(0);
        assert!(line.contains(" 503 UF,URX "), "{line}");
        assert!(line.contains(&format!("\"{}\"", path.display())), "{line}");
        let relay = Relay::to_port(&path, backend.port());
        assert_eq!(client.get("/name").text(), "a");
        // Its server ends and leaves the file behind; the next one is at the same path.
        drop(relay);
        assert_eq!(client.get("/bye").status, 200);
        assert_eq!(client.get("/name").status, 503);
        fs::remove_file(&path).unwrap();
        let _relay = Relay::to_port(&path, backend.port());
        assert_eq!(client.get("/name").text(), "a");
    });
}

#[test]
fn a_dead_socket_beside_a_live_address_fails_no_request() {
    let (directory, backends) = (directory(), ["a", "b"].map(Backend::start));
    let [dead, live] = ["dead.sock", "live.sock"].map(|name| directory.path().join(name));
    let _relay = Relay::to_port(&live, backends[0].port());
    let endpoints = format!(
        "  endpoints: [ {{ address: \"{}\" }}, {{ address: \"{}\" }} ]\n",
        unix(&dead),
        unix(&live)
    );
    let mixed = entry(HOST, "name: http", &[]).replace("  endpoints: [  ]\n", &endpoints);
    let gateway = builder(&mixed).start();
    let mut client = client(&gateway);
    for _ in 0..40 {
        assert_eq!(client.get("/name").text(), "a");
    }
    // An address goes together with a socket.
    let both = format!(", targetPort: {}", backends[1].port());
    let addresses = [unix(&live), "127.0.0.1".to_owned()];
    let addresses = addresses.each_ref().map(String::as_str);
    gateway.write_resource("backend.yaml", &entry(HOST, &format!("name: http{both}"), &addresses));
    eventually("both answer", || {
        let names: Vec<_> = (0..40).map(|_| client.get("/name").text()).collect();
        ["a", "b"].iter().all(|name| names.iter().any(|found| found == name))
    });
    gateway.write_resource("backend.yaml", &entry(HOST, "name: http", &[&unix(&live)]));
    eventually("only the socket is left", || (0..40).all(|_| client.get("/name").text() == "a"));
}

#[test]
fn a_rule_holds_for_a_socket_too() {
    let (directory, backend) = (directory(), Backend::start("a"));
    let path = directory.path().join("app.sock");
    let _relay = Relay::to_port(&path, backend.port());
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: web }}\n\
         spec:\n  host: {HOST}\n  trafficPolicy:\n    connectionPool: {{ tcp: {{ maxConnections: 1, \
         tcpKeepalive: {{ probes: 3, time: 60s, interval: 5s }} }} }}\n    \
         loadBalancer: {{ consistentHash: {{ useSourceIp: true }} }}\n    \
         outlierDetection: {{ consecutive5xxErrors: 5 }}\n"
    );
    let gateway =
        builder(&entry(HOST, "name: http", &[&unix(&path)])).resource("rule.yaml", &rule).start();
    let mut client = client(&gateway);
    assert_eq!(client.get("/name").text(), "a");
    assert_eq!(client.get("/close").status, 503);
    assert_eq!(client.get("/name").text(), "a");
}

#[test]
fn tcp_and_tls_are_passed_on_to_a_socket() {
    on_each_driver(|driver| {
        let (directory, authority) = (directory(), Authority::new());
        let leaf = authority.leaf(&[HOST]);
        let (inner, tcp) = (Raw::tls("inner", &leaf), Raw::mirror());
        let [tls_path, tcp_path] = ["tls", "tcp"].map(|name| directory.path().join(name));
        let _relays =
            [Relay::to_port(&tls_path, inner.port()), Relay::to_port(&tcp_path, tcp.port())];
        let servers =
            yaml::passthrough_server(443, &[HOST]) + &yaml::server(9443, "TCP", &["*"], "");
        let entries = [("tls.test", &tls_path), ("tcp.test", &tcp_path)].map(|(host, path)| {
            entry(host, "name: x", &[&unix(path)])
                .replace("{ name: web }", &format!("{{ name: {host} }}"))
        });
        let tls = yaml::l4_service("tls", "web", &[HOST], "tls", &yaml::sni_to(HOST, "tls.test"));
        let tcp = yaml::l4_service("tcp", "web", &["*"], "tcp", &yaml::all_to("tcp.test"));
        let gateway = Gateway::builder()
            .driver(driver)
            .resource("gateway.yaml", &yaml::gateway("web", &servers))
            .resource("routes.yaml", &yaml::documents(&[tls, tcp]))
            .resource("entries.yaml", &yaml::documents(&entries))
            .start();
        let roots = Tls::new(authority.roots());
        let mut client = Client::tls(&roots, gateway.address(443), HOST).unwrap();
        assert_eq!(client.certificate(), leaf.der, "the endpoint's own certificate");
        assert_eq!(client.request("GET", "/", "", b"").unwrap().text(), "inner");
        let mut client = Client::plain(gateway.address(9443), HOST).unwrap();
        client.send(b"there and back").unwrap();
        assert_eq!(client.read_exact(14).unwrap(), b"there and back");
        drop(client);
        eventually("it is logged", || {
            let log = gateway.access_log(1);
            log.iter().any(|line| {
                line.contains(&format!("\"{}\" outbound|80||tcp.test - ", tcp_path.display()))
            })
        });
    });
}

/// nginx that listens on Unix sockets: `plain.sock`, `h2.sock` without TLS, and `tls.sock`.
struct Nginx {
    child: Child,
    directory: tempfile::TempDir,
}

impl Nginx {
    fn start(mut nginx: Command, authority: &Authority) -> Self {
        let directory = directory();
        let leaf = authority.leaf(&[HOST]);
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("tls.crt", &leaf.chain_pem);
        write("tls.key", &leaf.key_pem);
        let root = directory.path().display();
        let server = |listen: &str| {
            format!(
                "server {{ listen unix:{root}/{listen}; ssl_certificate {root}/tls.crt; \
                 ssl_certificate_key {root}/tls.key; location / {{ return 200 \
                 \"$server_protocol $host $http_x_forwarded_proto\"; }} }}\n"
            )
        };
        let servers = ["plain.sock", "h2.sock http2", "tls.sock ssl"].map(server).concat();
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {root}/{name};\n"))
            .concat();
        write(
            "nginx.conf",
            &format!(
                "daemon off;\nmaster_process off;\npid {root}/nginx.pid;\nevents {{}}\n\
                 http {{\naccess_log off;\n{paths}{servers}}}\n"
            ),
        );
        nginx.arg("-c").arg(directory.path().join("nginx.conf"));
        nginx.arg("-p").arg(directory.path()).args(["-e", "stderr"]);
        let child = nginx.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let nginx = Self { child, directory };
        eventually("nginx listens", || {
            std::os::unix::net::UnixStream::connect(nginx.socket("tls.sock")).is_ok()
        });
        nginx
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nginx_serves_http1_http2_and_tls_on_unix_sockets() {
    let authority = Authority::new();
    let Some(nginx) = outside::tool("nginx") else { return };
    let nginx = Nginx::start(nginx, &authority);
    on_each_driver(|driver| {
        let tls = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: web }}\n\
             spec: {{ host: {HOST}, trafficPolicy: {{ tls: {{ mode: SIMPLE, caCertificates: \
             /certs/ca.pem }} }} }}\n"
        );
        for (socket, port, rule, expected) in [
            ("plain.sock", "name: http", "", "HTTP/1.1 web.test http"),
            ("h2.sock", "name: http2, protocol: HTTP2", "", "HTTP/2.0 web.test http"),
            ("tls.sock", "name: http", &*tls, "HTTP/1.1 web.test http"),
        ] {
            let gateway = builder(&entry(HOST, port, &[&unix(&nginx.socket(socket))]))
                .driver(driver)
                .file("root/certs/ca.pem", &authority.pem())
                .resource("rule.yaml", rule)
                .start();
            let mut client = client(&gateway);
            for _ in 0..3 {
                assert_eq!(client.get("/").text(), expected, "{socket}");
            }
        }
    });
}
