//! TLS from the gateway to backends: whom it trusts, what it shows, and what it says when there is
//! no connection. The backends' TLS is OpenSSL's.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::harness::backend::Backend;
use crate::harness::certificate::{Authority, Leaf};
use crate::harness::client::{Client, Response};
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::h2::{Frames, H2, H2cBackend, block_on};
use crate::harness::tls_front::{Options, TlsFront};
use crate::harness::{checksum, eventually, free_port, outside, pattern, yaml};

const HOST: &str = "web.test";
const CA: &str = "caCertificates: /certs/backend/ca.pem";

/// What a front is like that nothing special is wanted of.
fn plain(to: u16, leaf: &Leaf) -> Options<'_> {
    Options { to, leaf, client_ca: None, alpn: &["http/1.1"], is_old: false }
}

/// A DestinationRule for the host with `tls`.
fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: web }}\n\
         spec: {{ host: {HOST}, trafficPolicy: {{ tls: {{ {tls} }} }} }}\n"
    )
}

/// A Secret in the gateway's namespace.
fn secret(name: &str, keys: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: {name}, namespace: istio-system }}\n\
         stringData:\n"
    );
    for (key, value) in keys {
        text += &format!("  {key}: |\n");
        text.extend(value.lines().map(|line| format!("    {line}\n")));
    }
    text
}

/// A gateway whose host is served by the process on `port`, over TLS as `tls` says.
fn builder(port: u16, tls: &str) -> Builder {
    Gateway::builder()
        .workers(1)
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &["*"], false)))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &["*"], &yaml::all_to(HOST)))
        .resource("backend.yaml", &yaml::backend(HOST, port))
        .resource("rule.yaml", &rule(tls))
}

fn get(gateway: &Gateway, path: &str) -> Response {
    Client::plain(gateway.address(80), HOST).unwrap().get(path)
}

/// Asserts that a request fails for want of TLS, and that the log says `why`.
#[track_caller]
fn refused(gateway: &Gateway, why: &str) {
    let response = get(gateway, "/name");
    let expected = (503, "upstream connect error: TLS failure");
    assert_eq!((response.status, response.text().as_str()), expected);
    let details = " 503 UF,URX upstream_reset_before_response_started{remote_connection_failure} ";
    let why = format!("\"TLS error: {why}");
    eventually(&format!("the log says {why}"), || {
        let log = gateway.access_log(1);
        log.last().is_some_and(|line| line.contains(details) && line.contains(&why))
    });
}

#[test]
fn a_backend_with_a_known_ca_is_asked_for_the_host() {
    on_each_driver(|driver| {
        for is_old in [false, true] {
            let (ca, backend) = (Authority::new(), Backend::start("a"));
            let leaf = ca.leaf(&[HOST]);
            let options = Options { is_old, ..plain(backend.port(), &leaf) };
            let Some(front) = TlsFront::start(&options) else { return };
            let gateway = builder(front.port(), &format!("mode: SIMPLE, {CA}"))
                .driver(driver)
                .file("root/certs/backend/ca.pem", &ca.pem())
                .start();
            let mut client = Client::plain(gateway.address(80), HOST).unwrap();
            assert_eq!(client.get("/name").text(), "a");
            let version = if is_old { "TLSv1.2" } else { "TLSv1.3" };
            let first = format!("[\"{HOST}\", \"{version}\", \"http/1.1\", false, null]");
            assert_eq!(front.handshakes(), [first.as_str()]);
            let body = pattern(1 << 20);
            let down = client.get("/bytes/1048576").body;
            assert_eq!((down.len(), checksum(&down)), (body.len(), checksum(&body)));
            let up = client.post("/sum", &body).text();
            assert_eq!(up, format!("1048576 {:x} ", checksum(&body)));
            let chunked = client.get("/chunked/300000").body;
            assert_eq!(checksum(&chunked), checksum(&pattern(300_000)));
            assert_eq!(front.handshakes().len(), 1, "the connection is used again");
            // The backend ends it, and the next one resumes the session.
            assert_eq!(client.get("/bye").status, 200);
            assert_eq!(client.get("/name").text(), "a");
            let second = first.replace("false", "true");
            assert_eq!(front.handshakes(), [first, second]);
        }
    });
}

#[test]
fn without_a_ca_those_of_the_system_count() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&[HOST]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    // Another authority's, in the place of those of the system.
    let stranger = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(stranger.path(), Authority::new().pem()).unwrap();
    let start = |system: &Path, tls: &str| {
        builder(front.port(), tls).env("SSL_CERT_FILE", system.to_str().unwrap()).start()
    };
    let gateway = start(stranger.path(), "mode: SIMPLE");
    refused(&gateway, "the certificate is refused: it is not from a CA that is trusted here");
    let gateway = start(stranger.path(), "mode: SIMPLE, insecureSkipVerify: true");
    assert_eq!(get(&gateway, "/name").text(), "a");
    let known = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(known.path(), ca.pem()).unwrap();
    assert_eq!(get(&start(known.path(), "mode: SIMPLE"), "/name").text(), "a");
    let gateway = start(Path::new("/nowhere/ca.pem"), "mode: SIMPLE");
    refused(&gateway, "its certificates are not to be had; see /certs");
    assert!(gateway.logged("SSL_CERT_FILE, /nowhere/ca.pem: No such file or directory"));
}

#[test]
fn the_certificate_has_to_be_for_the_backend() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&["other.test"]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    let gateway = builder(front.port(), &format!("mode: SIMPLE, {CA}"))
        .file("root/certs/backend/ca.pem", &ca.pem())
        .start();
    let place = format!("(web.test at 127.0.0.1:{})", front.port());
    refused(&gateway, &format!("the certificate is for other.test, not for web.test {place}"));
    assert_eq!(backend.requests(), 0, "nothing was sent");
    for tls in ["subjectAltNames: [ other.test ]", "sni: other.test"] {
        gateway.write_resource("rule.yaml", &rule(&format!("mode: SIMPLE, {CA}, {tls}")));
        eventually(tls, || get(&gateway, "/name").text() == "a");
    }
    let is_asked = || {
        get(&gateway, "/name");
        front.handshakes().last().unwrap().starts_with("[\"other.test\"")
    };
    eventually("it is asked for the name of the rule", is_asked);
    let names = "subjectAltNames: [ x.test, y.test ]";
    gateway.write_resource("rule.yaml", &rule(&format!("mode: SIMPLE, {CA}, {names}")));
    eventually("other names", || get(&gateway, "/name").status == 503);
    refused(&gateway, "the certificate is for other.test, not for x.test, y.test");
}

#[test]
fn names_of_a_service_entry_count_where_a_rule_has_none() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&["inner.test"]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    let gateway = builder(front.port(), &format!("mode: SIMPLE, {CA}"))
        .file("root/certs/backend/ca.pem", &ca.pem())
        .start();
    refused(&gateway, "the certificate is for inner.test, not for web.test");
    let entry = |names: &str| {
        let entry = yaml::backend(HOST, front.port());
        gateway.write_resource("backend.yaml", &format!("{entry}  subjectAltNames: [ {names} ]\n"));
    };
    entry("x.test, inner.test");
    eventually("a name of the entry", || get(&gateway, "/name").text() == "a");
    let asked = front.handshakes().pop().unwrap();
    assert!(asked.starts_with(&format!("[\"{HOST}\"")), "it is asked for the host: {asked}");
    entry("x.test");
    eventually("another name", || get(&gateway, "/name").status == 503);
    refused(&gateway, "the certificate is for inner.test, not for x.test");
    // The rule's own go before those of the entry.
    let names = "subjectAltNames: [ inner.test ]";
    gateway.write_resource("rule.yaml", &rule(&format!("mode: SIMPLE, {CA}, {names}")));
    eventually("the name of the rule", || get(&gateway, "/name").text() == "a");
    entry("inner.test");
    let names = "subjectAltNames: [ y.test ]";
    gateway.write_resource("rule.yaml", &rule(&format!("mode: SIMPLE, {CA}, {names}")));
    eventually("the name of the rule", || get(&gateway, "/name").status == 503);
    refused(&gateway, "the certificate is for inner.test, not for y.test");
}

#[test]
fn a_backend_that_wants_a_certificate_gets_that_of_the_rule() {
    let (ca, clients) = (Authority::new(), Authority::new());
    let backend = Backend::start("a");
    let (leaf, own) = (ca.leaf(&[HOST]), clients.leaf(&["gateway.test"]));
    let options = Options { client_ca: Some(clients.pem()), ..plain(backend.port(), &leaf) };
    let Some(front) = TlsFront::start(&options) else { return };
    let files = "clientCertificate: /certs/own/tls.crt, privateKey: /certs/own/tls.key";
    let gateway = builder(front.port(), &format!("mode: SIMPLE, {CA}"))
        .file("root/certs/backend/ca.pem", &ca.pem())
        .file("root/certs/own/tls.crt", &own.chain_pem)
        .file("root/certs/own/tls.key", &own.key_pem)
        .start();
    assert_eq!(get(&gateway, "/name").status, 503);
    gateway.write_resource("rule.yaml", &rule(&format!("mode: MUTUAL, {CA}, {files}")));
    eventually("a certificate from files", || get(&gateway, "/name").text() == "a");
    assert!(front.handshakes().last().unwrap().ends_with("\"gateway.test\"]"));

    gateway.write_resource("rule.yaml", &rule("mode: MUTUAL, credentialName: to-web"));
    eventually("no Secret yet", || get(&gateway, "/name").status == 503);
    refused(&gateway, "its certificates are not to be had; see /certs");
    assert!(gateway.logged("there is no Secret `to-web` in namespace istio-system"));
    let renewed = clients.leaf(&["renewed.test"]);
    let keys = [("tls.crt", &*renewed.chain_pem), ("tls.key", &renewed.key_pem)];
    let text = [secret("to-web", &keys), secret("to-web-cacert", &[("cacert", &ca.pem())])];
    gateway.write_resource("secret.yaml", &yaml::documents(&text));
    eventually("a certificate from a Secret", || get(&gateway, "/name").text() == "a");
    assert!(front.handshakes().last().unwrap().ends_with("\"renewed.test\"]"));
    let certs = gateway.admin_get("/certs").text();
    assert!(certs.contains("secret istio-system/to-web"), "{certs}");
    let log = std::fs::read_to_string(gateway.path("access.log")).unwrap();
    assert!(!log.contains("PRIVATE KEY") && !certs.contains("PRIVATE KEY"));
}

#[test]
fn a_backend_in_a_mesh_is_shown_an_identity_and_has_one() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.workload("spiffe://cluster.local/ns/default/sa/web");
    let options = Options { client_ca: Some(ca.pem()), ..plain(backend.port(), &leaf) };
    let Some(front) = TlsFront::start(&options) else { return };
    let gateway = builder(front.port(), "mode: ISTIO_MUTUAL").start();
    refused(&gateway, "its certificates are not to be had; see /certs");
    assert!(gateway.logged("ISTIO_MUTUAL wants the files of the mesh"));
    assert!(front.handshakes().is_empty() && backend.connections() == 0, "nothing was sent");
    let own = ca.workload("spiffe://cluster.local/ns/istio-system/sa/ingress");
    let mount = |name: &str, text: &str| {
        std::fs::create_dir_all(gateway.path("root/etc/certs")).unwrap();
        gateway.write_file(&format!("root/etc/certs/{name}"), text);
    };
    mount("cert-chain.pem", &own.chain_pem);
    mount("key.pem", &own.key_pem);
    mount("root-cert.pem", &ca.pem());
    eventually("the files are there", || get(&gateway, "/name").text() == "a");

    let other = ca.workload("spiffe://cluster.local/ns/other/sa/web");
    let options = Options { client_ca: Some(ca.pem()), ..plain(backend.port(), &other) };
    let front = TlsFront::start(&options).unwrap();
    gateway.write_resource("backend.yaml", &yaml::backend(HOST, front.port()));
    eventually("it is another namespace's", || get(&gateway, "/name").status == 503);
    let why = "the certificate is for \
               spiffe://cluster.local/ns/other/sa/web, not for a workload of namespace default";
    refused(&gateway, why);
    let named =
        "mode: ISTIO_MUTUAL, subjectAltNames: [ \"spiffe://cluster.local/ns/other/sa/web\" ]";
    gateway.write_resource("rule.yaml", &rule(named));
    eventually("a name that is given counts", || get(&gateway, "/name").text() == "a");
}

#[test]
fn a_rule_with_an_error_sends_nothing_in_plain_text() {
    let backend = Backend::start("a");
    let gateway = builder(backend.port(), "mode: SIMPLE, sni: \"a b\"").start();
    assert_eq!(get(&gateway, "/name").status, 503);
    assert!(gateway.logged("`a b` is no host name"));
    assert!(gateway.logged("503, not sent in plain text (until the error is gone)"));
    assert_eq!(backend.connections(), 0);
    gateway.write_resource("rule.yaml", &rule("mode: DISABLE"));
    eventually("the error is gone", || get(&gateway, "/name").text() == "a");
}

/// OpenSSL's own server, which answers every request with a page about the handshake.
struct OpenSsl {
    child: Child,
    port: u16,
}

impl OpenSsl {
    fn start(directory: &Path, leaf: &Leaf, more: &[&str]) -> Option<Self> {
        let mut openssl = outside::tool("openssl")?;
        let port = free_port();
        std::fs::write(directory.join("tls.crt"), &leaf.chain_pem).unwrap();
        std::fs::write(directory.join("tls.key"), &leaf.key_pem).unwrap();
        openssl.current_dir(directory).args(["s_server", "-www", "-quiet", "-accept"]);
        openssl.arg(format!("127.0.0.1:{port}"));
        openssl.args(["-cert", "tls.crt", "-key", "tls.key"]).args(more);
        openssl.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = openssl.spawn().unwrap();
        eventually("openssl listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self { child, port })
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In TLS 1.3 a client is refused after its handshake, on the first read.
#[test]
fn the_alert_of_a_backend_is_told() {
    let (ca, clients) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.crt"), clients.pem()).unwrap();
    let leaf = ca.leaf(&[HOST]);
    let own = clients.leaf(&["gateway.test"]);
    let verify = ["-Verify", "1", "-verify_return_error", "-CAfile", "ca.crt"];
    for (version, alert) in [
        ("-tls1_2", "received fatal alert: HandshakeFailure"),
        ("-tls1_3", "the peer sent the alert CertificateRequired (116)"),
    ] {
        let more = [&verify[..], &[version]].concat();
        let Some(server) = OpenSsl::start(directory.path(), &leaf, &more) else { return };
        let gateway = builder(server.port, &format!("mode: SIMPLE, {CA}"))
            .file("root/certs/backend/ca.pem", &ca.pem())
            .file("root/certs/own/tls.crt", &own.chain_pem)
            .file("root/certs/own/tls.key", &own.key_pem)
            .start();
        eventually(alert, || {
            assert_eq!(get(&gateway, "/").status, 503);
            gateway.access_log(1).iter().any(|line| line.contains(alert))
        });
        let files = "clientCertificate: /certs/own/tls.crt, privateKey: /certs/own/tls.key";
        gateway.write_resource("rule.yaml", &rule(&format!("mode: MUTUAL, {CA}, {files}")));
        eventually("the certificate is shown", || {
            let answer = get(&gateway, "/");
            answer.status == 200 && answer.text().contains("Client certificate")
        });
    }
}

#[test]
fn a_ca_is_replaced_without_a_restart_and_a_bad_one_changes_nothing() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&[HOST]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    let gateway = builder(front.port(), &format!("mode: SIMPLE, {CA}")).start();
    refused(&gateway, "its certificates are not to be had; see /certs");
    let missing = gateway.admin_get("/certs").text();
    assert!(missing.contains("/certs/backend/ca.pem does not exist"), "{missing}");
    let set = |pem: &str| gateway.write_file("root/certs/backend/ca.pem", pem);
    set(&ca.pem());
    eventually("the CA appears", || get(&gateway, "/name").text() == "a");
    set("nonsense");
    eventually("it is reported", || gateway.logged("backends are checked as before"));
    assert_eq!(get(&gateway, "/name").text(), "a");
    set(&Authority::new().pem());
    eventually("another CA", || get(&gateway, "/name").status == 503);
    refused(&gateway, "the certificate is refused: it is not from a CA that is trusted here");
    set(&ca.pem());
    eventually("the CA is back", || get(&gateway, "/name").text() == "a");
}

#[test]
fn a_revoked_backend_is_refused() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&[HOST]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    let tls = format!("mode: SIMPLE, {CA}, caCrl: /certs/backend/crl.pem");
    let gateway = builder(front.port(), &tls)
        .file("root/certs/backend/ca.pem", &ca.pem())
        .file("root/certs/backend/crl.pem", &ca.revocation_list(&[]))
        .start();
    assert_eq!(get(&gateway, "/name").text(), "a");
    gateway.write_file("root/certs/backend/crl.pem", &ca.revocation_list(&[&leaf.serial()]));
    eventually("it is revoked", || get(&gateway, "/name").status == 503);
    refused(&gateway, "the certificate is refused: it is revoked");
}

#[test]
fn http2_and_grpc_pass_through_tls() {
    on_each_driver(|driver: Driver| {
        let (ca, backend) = (Authority::new(), H2cBackend::start());
        let leaf = ca.leaf(&[HOST]);
        let options = Options { alpn: &["h2", "http/1.1"], ..plain(backend.port(), &leaf) };
        let Some(front) = TlsFront::start(&options) else { return };
        let gateway = Gateway::builder()
            .driver(driver)
            .workers(1)
            .serving(HOST, &yaml::backend_h2c("backend.test", front.port()))
            .resource(
                "rule.yaml",
                &rule(&format!("mode: SIMPLE, {CA}"))
                    .replace(&format!("host: {HOST}"), "host: backend.test"),
            )
            .file("root/certs/backend/ca.pem", &ca.pem())
            .start();
        let body = pattern(1 << 20);
        block_on(async {
            let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
            let request = client.builder("POST", "/shop.Cart/Add").header("te", "trailers");
            let request = request.header("content-type", "application/grpc");
            let frames = Frames::of(body.clone()).trailers("x-sent", "all");
            let answer = client.send(request.body(frames).unwrap()).await.unwrap();
            assert_eq!(answer.headers["x-version"], "HTTP/2.0");
            assert_eq!(answer.headers["x-te"], "trailers");
            assert_eq!((answer.body.len(), checksum(&answer.body)), (1 << 20, checksum(&body)));
            assert_eq!(answer.trailers.unwrap()["x-sent"], "all");
        });
        assert_eq!(front.handshakes(), [format!("[\"{HOST}\", \"TLSv1.3\", \"h2\", false, null]")]);
    });
}

#[test]
fn a_websocket_passes_through_tls() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&[HOST]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    let gateway = builder(front.port(), &format!("mode: SIMPLE, {CA}"))
        .file("root/certs/backend/ca.pem", &ca.pem())
        .start();
    let mut client = Client::plain(gateway.address(80), HOST).unwrap();
    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZQ==\r\n";
    assert_eq!(client.request("GET", "/websocket", upgrade, b"").unwrap().status, 101);
    for size in [1, 125, 4_000, 100_000] {
        let sent = pattern(size);
        client.send(&sent).unwrap();
        assert_eq!(checksum(&client.read_exact(size).unwrap()), checksum(&sent));
    }
}

/// The trap of many: the rule says TLS, the backend speaks none.
#[test]
fn a_backend_without_tls_is_named_as_such() {
    let backend = Backend::start("a");
    let tls = "mode: SIMPLE, insecureSkipVerify: true";
    let gateway = builder(backend.port(), tls).start();
    refused(&gateway, "the ");
    let line = gateway.access_log(1).remove(0);
    let place = format!("(web.test at 127.0.0.1:{})", backend.port());
    assert!(line.contains("ClientHello") && line.contains(&place), "{line}");
    gateway.write_resource("rule.yaml", &rule("mode: DISABLE"));
    eventually("without TLS", || get(&gateway, "/name").text() == "a");
}

#[test]
fn a_port_or_a_subset_has_its_own() {
    let (ca, backend) = (Authority::new(), Backend::start("a"));
    let leaf = ca.leaf(&[HOST]);
    let Some(front) = TlsFront::start(&plain(backend.port(), &leaf)) else { return };
    let tls = format!("tls: {{ mode: SIMPLE, {CA} }}");
    let spec = |policy: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{ name: web }}\nspec: {{ host: {HOST}, {policy} }}\n"
        )
    };
    let port = |n: u16| {
        format!("trafficPolicy: {{ portLevelSettings: [ {{ port: {{ number: {n} }}, {tls} }} ] }}")
    };
    let gateway = builder(front.port(), "mode: DISABLE")
        .resource("rule.yaml", &spec(&port(80)))
        .file("root/certs/backend/ca.pem", &ca.pem())
        .start();
    assert_eq!(get(&gateway, "/name").text(), "a");
    gateway.write_resource("rule.yaml", &spec(&port(81)));
    eventually("it is for another port", || get(&gateway, "/name").status != 200);
    let subset = format!("subsets: [ {{ name: v1, trafficPolicy: {{ {tls} }} }} ]");
    gateway.write_resource("rule.yaml", &spec(&subset));
    let route = format!("  - route: [ {{ destination: {{ host: {HOST}, subset: v1 }} }} ]\n");
    gateway.write_resource("route.yaml", &yaml::virtual_service("web", "web", &["*"], &route));
    eventually("the subset has TLS", || get(&gateway, "/name").text() == "a");
    let dump = gateway.admin_get("/config_dump").text();
    assert!(
        dump.contains("\"tls\":{\"ready\":true,\"sni\":null}") || dump.contains("\"ready\": true"),
        "{dump}"
    );
}
