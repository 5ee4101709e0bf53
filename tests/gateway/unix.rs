//! Unix sockets: endpoints that are reached by one, and servers that are bound to one.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::certificate::Authority;
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::{Builder, Gateway, on_each_driver};
use crate::harness::raw::Raw;
use crate::harness::relay::Relay;
use crate::harness::{PATIENCE, checksum, eventually, outside, pattern, yaml};

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
        eventually("nginx listens", || UnixStream::connect(nginx.socket("tls.sock")).is_ok());
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

/// A server for all hosts that is bound to `path`, an entry for a Gateway.
fn server(path: &Path, protocol: &str, tls: &str) -> String {
    let name = path.file_name().unwrap().to_str().unwrap().replace('.', "-");
    let tls = if tls.is_empty() { String::new() } else { format!("    tls: {tls}\n") };
    format!(
        "  - port: {{ number: 0, name: {name}, protocol: {protocol} }}\n    bind: \"{}\"\n{tls}    \
         hosts: [ \"*\" ]\n",
        unix(path)
    )
}

/// A gateway with `servers`, which route all requests to `backend`.
fn bound(servers: &str, backend: &Backend) -> Builder {
    builder(&yaml::backend(HOST, backend.port()))
        .certificate("web", &[HOST])
        .resource("gateway.yaml", &yaml::gateway("web", servers))
}

const TLS: &str = "{ mode: SIMPLE, serverCertificate: /certs/web/tls.crt, privateKey: \
                   /certs/web/tls.key }";

/// A client of the server that is bound to `path`, and what it needs as long as it asks.
fn client_at(path: &Path) -> (Client, Relay) {
    let relay = Relay::to_path(path);
    (Client::plain(relay.address(), HOST).unwrap(), relay)
}

/// What the server at `path` answers, if anybody does.
fn name_at(path: &Path) -> Option<String> {
    let (mut client, _relay) = client_at(path);
    client.request("GET", "/name", "", b"").ok().map(|answer| answer.text())
}

#[test]
fn a_server_may_be_bound_to_a_unix_socket() {
    on_each_driver(|driver| {
        let (directory, backend) = (directory(), Backend::start("a"));
        let [plain, secure] = ["plain.sock", "secure.sock"].map(|name| directory.path().join(name));
        let servers = server(&plain, "HTTP", "") + &server(&secure, "HTTPS", TLS);
        let gateway = bound(&servers, &backend).driver(driver).start();
        assert!(gateway.logged(&format!("listening on {}", plain.display())));
        let page = gateway.admin_get("/listeners").text();
        let line = format!("{0}_0::{1}\n", unix(&plain), plain.display());
        assert!(page.contains(&line), "{page}");
        assert!(gateway.admin_get("/config_dump").text().contains(plain.to_str().unwrap()));
        let (mut client, _relay) = client_at(&plain);
        let head = client.get("/head").text();
        for name in ["x-forwarded-for", "x-envoy-external-address"] {
            assert!(!head.contains(name), "nobody has an address: {head}");
        }
        assert!(head.contains("x-forwarded-proto: http\r\n"), "{head}");
        let log = gateway.access_log(1).remove(0);
        let ends = format!(" {} - - -", plain.display());
        assert!(log.ends_with(&ends), "neither client nor SNI: {log}");
        let said = "x-forwarded-for: 192.0.2.7\r\n";
        let head = client.request("GET", "/head", said, b"").unwrap().text();
        assert!(head.contains("x-forwarded-for: 192.0.2.7\r\n"), "{head}");
        let (down, up) = (client.get("/bytes/1048576").body, pattern(1 << 20));
        assert_eq!((down.len(), checksum(&down)), (up.len(), checksum(&up)));
        assert_eq!(client.post("/sum", &up).text(), format!("1048576 {:x} ", checksum(&up)));
        let relay = Relay::to_path(&secure);
        let mut client = Client::tls(&gateway.tls(), relay.address(), HOST).unwrap();
        assert!(client.get("/head").text().contains("x-forwarded-proto: https\r\n"));
    });
}

#[test]
fn curl_and_openssl_are_served_on_unix_sockets() {
    let (Some(mut curl), Some(mut openssl)) = (outside::tool("curl"), outside::tool("openssl"))
    else {
        return;
    };
    let (directory, backend) = (directory(), Backend::start("a"));
    let [plain, secure] = ["plain.sock", "secure.sock"].map(|name| directory.path().join(name));
    let servers = server(&plain, "HTTP", "") + &server(&secure, "HTTPS", TLS);
    let gateway = bound(&servers, &backend).start();
    curl.args(["-sS", "--unix-socket"]).arg(&plain).arg(format!("http://{HOST}/name"));
    assert_eq!(outside::output(&mut curl), (Some(0), "a".to_owned()));
    let mut curl = outside::tool("curl").unwrap();
    curl.args(["-sS", "--http2", "-w", " %{http_version}", "--cacert"]).arg(gateway.path("ca.pem"));
    curl.arg("--unix-socket").arg(&secure).arg(format!("https://{HOST}/name"));
    assert_eq!(outside::output(&mut curl), (Some(0), "a 2".to_owned()));
    openssl.args(["s_client", "-verify_return_error", "-servername", HOST, "-CAfile"]);
    openssl.arg(gateway.path("ca.pem")).arg("-unix").arg(&secure);
    let (code, text) = outside::output(&mut openssl);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
}

#[test]
fn an_abstract_name_is_bound_and_given_back() {
    let backend = Backend::start("a");
    let name = format!("ringgate-test-{}-server", std::process::id());
    let servers = "  - port: { name: http, protocol: HTTP }\n    hosts: [ \"*\" ]\n".to_owned();
    let servers = servers + &format!("    bind: \"unix://@{name}\"\n");
    let gateway = bound(&servers, &backend).start();
    let Some(mut curl) = outside::tool("curl") else { return };
    curl.args(["-sS", "--abstract-unix-socket", &name, &format!("http://{HOST}/name")]);
    assert_eq!(outside::output(&mut curl), (Some(0), "a".to_owned()));
    assert!(gateway.access_log(1).remove(0).ends_with(&format!(" @{name} - - -")));
    let address = UnixAddress::from_abstract_name(&name).unwrap();
    assert!(UnixListener::bind_addr(&address).is_err());
    gateway.remove_resource("gateway.yaml");
    eventually("the name is free", || UnixListener::bind_addr(&address).is_ok());
}

#[test]
fn trusted_proxies_tell_of_clients_behind_a_unix_socket() {
    let (directory, backend) = (directory(), Backend::start("a"));
    let path = directory.path().join("plain.sock");
    let gateway = bound(&server(&path, "HTTP", ""), &backend)
        .settings("http: { trusted_proxies: 1 }\n")
        .start();
    let (mut client, _relay) = client_at(&path);
    let said = "x-forwarded-for: 198.51.100.1, 192.0.2.7\r\nx-forwarded-proto: https\r\n";
    let head = client.request("GET", "/head", said, b"").unwrap().text();
    for line in ["x-envoy-external-address: 192.0.2.7", "x-forwarded-proto: https"] {
        assert!(head.contains(line), "{head}");
    }
    assert!(gateway.access_log(1).remove(0).ends_with(" 192.0.2.7:0 - -"));
}

#[test]
fn tcp_and_tls_come_by_unix_sockets_and_match_no_address() {
    let (directory, authority) = (directory(), Authority::new());
    let leaf = authority.leaf(&[HOST]);
    let (inner, tcp, other) = (Raw::tls("inner", &leaf), Raw::echo("tcp"), Raw::echo("other"));
    let [pass, plain] = ["pass.sock", "plain.sock"].map(|name| directory.path().join(name));
    let servers = server(&pass, "TLS", "{ mode: PASSTHROUGH }") + &server(&plain, "TCP", "");
    let tls = yaml::l4_service("tls", "web", &[HOST], "tls", &yaml::sni_to(HOST, "tls.test"));
    // Whoever has no address is in none of these networks.
    let ranges = "  - match: [ { sourceSubnet: 0.0.0.0/0 }, { destinationSubnets: [ \"::/0\" ] } ]\n    \
                  route: [ { destination: { host: other.test, port: { number: 80 } } } ]\n";
    let tcp_rules = ranges.to_owned() + &yaml::all_to("tcp.test");
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: tcp }\n\
                spec: { host: tcp.test, trafficPolicy: { loadBalancer: { consistentHash: { \
                useSourceIp: true } }, proxyProtocol: { version: V1 } } }\n";
    let backends = [("tls.test", &inner), ("tcp.test", &tcp), ("other.test", &other)]
        .map(|(host, raw)| yaml::backend(host, raw.port()));
    let gateway = Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &servers))
        .resource("tls.yaml", &tls)
        .resource("tcp.yaml", &yaml::l4_service("tcp", "web", &["*"], "tcp", &tcp_rules))
        .resource("rule.yaml", rule)
        .resource("backends.yaml", &yaml::documents(&backends))
        .start();
    let relay = Relay::to_path(&pass);
    let mut client = Client::tls(&Tls::new(authority.roots()), relay.address(), HOST).unwrap();
    assert_eq!(client.certificate(), leaf.der, "the endpoint's own certificate");
    assert_eq!(client.request("GET", "/", "", b"").unwrap().text(), "inner");
    let mut stream = UnixStream::connect(&plain).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "tcp\nPROXY UNKNOWN\r\nhelloend of tcp");
    eventually("it is logged", || {
        let ends = format!(" {} - - -", plain.display());
        gateway.access_log(1).iter().any(|line| line.ends_with(&ends))
    });
}

#[test]
fn connections_of_a_unix_socket_are_spread_over_the_workers() {
    on_each_driver(|driver| {
        let (directory, backend) = (directory(), Backend::start("a"));
        for is_balanced in [true, false] {
            let path = directory.path().join(format!("{is_balanced}.sock"));
            let builder = bound(&server(&path, "HTTP", ""), &backend).driver(driver).workers(3);
            let gateway = if is_balanced { builder } else { builder.unbalanced() }.start();
            let relay = Relay::to_path(&path);
            let mut clients: Vec<_> =
                (0..30).map(|_| Client::plain(relay.address(), HOST).unwrap()).collect();
            for client in &mut clients {
                assert_eq!(client.get("/name").text(), "a");
            }
            let mut open = gateway.by_worker("ringgate_worker_connections_active");
            open.sort_unstable();
            assert_eq!(open.iter().sum::<usize>(), 30, "{open:?}");
            assert_eq!(open[0] >= 3, is_balanced, "{open:?}");
            assert_eq!(open == [0, 0, 30], !is_balanced, "{open:?}");
        }
    });
}

#[test]
fn the_umask_says_who_may_connect() {
    let (directory, backend) = (directory(), Backend::start("a"));
    let [ours, plain] = ["ours.sock", "plain.sock"].map(|name| directory.path().join(name));
    let _gateway = bound(&server(&ours, "HTTP", ""), &backend).start();
    // This process has the umask that it gave to the gateway.
    let _other = UnixListener::bind(&plain).unwrap();
    let [ours, plain] = [ours, plain].map(|path| fs::metadata(path).unwrap().permissions());
    assert_eq!(ours, plain);
}

#[test]
fn a_change_of_bind_cuts_no_connection_and_leaves_no_file() {
    on_each_driver(|driver| {
        let (directory, backend) = (directory(), Backend::start("a"));
        let [first, second] = ["a.sock", "b.sock"].map(|name| directory.path().join(name));
        let gateway = bound(&server(&first, "HTTP", ""), &backend).driver(driver).start();
        let (mut client, _relay) = client_at(&first);
        client.send(format!("GET /hold HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
        backend.wait_requests(1);
        let servers = server(&first, "HTTP", "") + &server(&second, "HTTP", "");
        gateway.write_resource("gateway.yaml", &yaml::gateway("web", &servers));
        eventually("both are bound", || second.exists() && name_at(&second).is_some());
        assert_eq!(name_at(&first).as_deref(), Some("a"), "what did not change goes on");
        gateway.write_resource("gateway.yaml", &yaml::gateway("web", &server(&second, "HTTP", "")));
        eventually("the first is gone", || !first.exists());
        backend.release();
        assert_eq!(client.response("GET").unwrap().status, 200, "it began before");
        let port = yaml::gateway("web", &yaml::http_server(80, &["*"], false));
        gateway.write_resource("gateway.yaml", &port);
        eventually("the second is gone", || !second.exists());
        assert_eq!(Client::plain(gateway.address(80), HOST).unwrap().get("/name").text(), "a");
        gateway.write_resource("gateway.yaml", &yaml::gateway("web", &server(&first, "HTTP", "")));
        eventually("it is back", || first.exists() && name_at(&first).is_some());
    });
}

#[test]
fn a_drain_finishes_requests_and_removes_the_file() {
    on_each_driver(|driver| {
        let (directory, backend) = (directory(), Backend::start("a"));
        let path = directory.path().join("a.sock");
        let mut gateway = bound(&server(&path, "HTTP", ""), &backend).driver(driver).start();
        let (mut client, _relay) = client_at(&path);
        client.send(format!("GET /hold HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
        backend.wait_requests(1);
        gateway.signal(Signal::TERM);
        eventually("the file is gone", || !path.exists());
        let status = gateway.status();
        let ready = || gateway.try_plain_get(status, "/healthz/ready").unwrap();
        eventually("the workers have begun", || ready().text().contains("draining"));
        backend.release();
        let answer = client.response("GET").unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        assert_eq!(gateway.wait().code(), Some(0));
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let (directory, backend) = (directory(), Backend::start("a"));
    let path = directory.path().join("a.sock");
    let mut killed = bound(&server(&path, "HTTP", ""), &backend).start();
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(path.exists(), "nobody could remove it");
    let first = bound(&server(&path, "HTTP", ""), &backend).start();
    // The kernel lets go of an io_uring, and of the sockets in it, a while after its process.
    let takes_over = || {
        eventually("it takes over", || path.exists() && name_at(&path).as_deref() == Some("a"));
    };
    takes_over();
    let second = bound(&server(&path, "HTTP", ""), &backend).spawn();
    let says = |text: &str| {
        eventually(text, || second.logged(text));
    };
    says(&format!("cannot listen on {}: Address already in use", path.display()));
    says("find who listens there with `ss -lxp`");
    says("not ready: cannot listen on ");
    assert_eq!(name_at(&path).as_deref(), Some("a"), "the first goes on");
    drop(first);
    takes_over();
    eventually("it is ready", || second.logged("INFO ready"));
}

#[test]
fn what_is_in_the_way_of_a_unix_socket_is_said_and_left_alone() {
    let (directory, backend) = (directory(), Backend::start("a"));
    let [file, lost] = ["file.sock", "lost/a.sock"].map(|name| directory.path().join(name));
    let good = directory.path().join("good.sock");
    fs::write(&file, "precious").unwrap();
    let servers =
        server(&file, "HTTP", "") + &server(&lost, "HTTP", "") + &server(&good, "HTTP", "");
    let gateway = bound(&servers, &backend).spawn();
    let says = |text: &str| {
        eventually(text, || gateway.logged(text));
    };
    says(&format!(
        "cannot listen on {}: there is a file that is no socket; remove it",
        file.display()
    ));
    says(&format!("cannot listen on {}: No such file or directory", lost.display()));
    says("make its directory, or change");
    eventually("the others are served", || good.exists() && name_at(&good).is_some());
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    fs::remove_file(&file).unwrap();
    fs::create_dir(lost.parent().unwrap()).unwrap();
    for path in [&file, &lost] {
        eventually("it is bound now", || path.exists() && name_at(path).is_some());
    }
}
