//! What Istio's pages about TLS at the edge say that users run into, from the client's side.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::harness::backend::Backend;
use crate::harness::certificate::Authority;
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::Gateway;
use crate::harness::raw::Raw;
use crate::harness::tls_front::{Options, TlsFront};
use crate::harness::{eventually, free_port, outside, yaml};

const HOST: &str = "nginx.example.com";

fn passing(host: &str, port: u16) -> crate::harness::gateway::Builder {
    let server = yaml::server(443, "HTTPS", &[host], "{ mode: PASSTHROUGH }");
    let route = yaml::l4_service("pass", "web", &[host], "tls", &yaml::sni_to(host, "inner.test"));
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &server))
        .resource("pass.yaml", &route)
        .resource("inner.yaml", &yaml::backend("inner.test", port))
}

/// nginx that terminates TLS; killed when dropped.
struct Nginx(Child);

impl Nginx {
    fn start(mut nginx: Command, directory: &std::path::Path, port: u16) -> Self {
        let at = directory.display();
        let configuration = format!(
            "daemon off; master_process off; error_log stderr; pid {at}/nginx.pid;\n\
             events {{}}\nhttp {{ access_log off; client_body_temp_path {at}/body;\n\
             proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u;\n\
             scgi_temp_path {at}/s;\nserver {{ listen 127.0.0.1:{port} ssl;\n\
             server_name {HOST}; ssl_certificate {at}/tls.crt; ssl_certificate_key {at}/tls.key;\n\
             location / {{ return 200 'welcome to nginx'; }} }} }}\n"
        );
        let path = directory.join("nginx.conf");
        fs::write(&path, configuration).unwrap();
        nginx.arg("-c").arg(&path).arg("-p").arg(directory).args(["-e", "stderr"]);
        Self(nginx.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nginx_shows_its_own_certificate_through_the_gateway() {
    let (Some(nginx), Some(mut curl)) = (outside::tool("nginx"), outside::tool("curl")) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let leaf = authority.leaf(&[HOST]);
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("tls.crt", &leaf.chain_pem);
    write("tls.key", &leaf.key_pem);
    write("ca.crt", &authority.pem());
    let port = free_port();
    let _nginx = Nginx::start(nginx, directory.path(), port);
    eventually("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let gateway = passing(HOST, port).start();
    let at = gateway.address(443).port();
    curl.args(["-sSv", "--resolve", &format!("{HOST}:{at}:127.0.0.1"), "--cacert"])
        .arg(directory.path().join("ca.crt"))
        .arg(format!("https://{HOST}:{at}/"));
    let (code, text) = outside::output(&mut curl);
    assert_eq!(code, Some(0), "{text}");
    for part in ["SSL certificate verify ok", "CN=nginx.example.com", "erver: nginx/", "welcome"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

#[test]
fn clients_that_name_no_host_need_a_server_for_any() {
    let backend = Backend::start("a");
    let server = |host: &str| yaml::https_gateway("web", &[host], "web");
    let gateway = Gateway::builder()
        .certificate("web", &["web.example.com"])
        .resource("gateway.yaml", &server("web.example.com"))
        .resource(
            "route.yaml",
            &yaml::virtual_service("web", "web", &["web.example.com"], &yaml::all_to("a.test")),
        )
        .resource("a.yaml", &yaml::backend("a.test", backend.port()))
        .start();
    let ask = || {
        let tls = gateway.tls().without_sni();
        let mut client = Client::tls(&tls, gateway.address(443), "web.example.com").ok()?;
        client.request("GET", "/name", "", b"").ok().map(|answer| answer.text())
    };
    assert_eq!(ask(), None, "no server is for a client without a name");
    let line = gateway.access_log(1).remove(0);
    assert!(line.contains(" NR filter_chain_not_found ") && line.ends_with(" - -"), "{line}");
    // The page's cure: a server for every host, while routes keep theirs.
    gateway.write_resource("gateway.yaml", &server("*"));
    eventually("it is served by its Host", || ask().as_deref() == Some("a"));
}

#[test]
fn tls_of_a_rule_goes_around_the_tls_of_the_client() {
    let (outer, inner) = (Authority::new(), Authority::new());
    let (outer_leaf, inner_leaf) = (outer.leaf(&[HOST]), inner.leaf(&[HOST]));
    let innermost = Raw::tls("innermost", &inner_leaf);
    let options = Options {
        to: innermost.port(),
        leaf: &outer_leaf,
        client_ca: None,
        alpn: &[],
        is_old: false,
    };
    let Some(front) = TlsFront::start(&options) else { return };
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                metadata: { name: inner }\nspec:\n  host: inner.test\n  \
                trafficPolicy: { tls: { mode: SIMPLE, insecureSkipVerify: true } }\n";
    let gateway = passing(HOST, front.port()).resource("rule.yaml", rule).start();
    let handshake = |authority: &Authority| {
        Client::tls(&Tls::new(authority.roots()), gateway.address(443), HOST)
    };
    // With the rule the client's TLS arrives inside of the gateway's, where a service that expects
    // TLS once sees no request. Here the second layer is unwrapped, to show that it is there.
    let mut client = handshake(&inner).unwrap();
    assert_eq!(client.certificate(), inner_leaf.der);
    assert_eq!(client.get("/").text(), "innermost");
    assert!(handshake(&outer).is_err());
    gateway.remove_resource("rule.yaml");
    eventually("TLS once", || handshake(&outer).is_ok_and(|c| c.certificate() == outer_leaf.der));
}

#[test]
fn rules_for_http_do_nothing_where_tls_is_passed_on() {
    let backend = Backend::start("a");
    let server = yaml::server(443, "HTTPS", &[HOST], "{ mode: PASSTHROUGH }")
        + &yaml::https_server(443, &["web.example.com"], "web");
    let rules = yaml::all_to("a.test");
    let gateway = Gateway::builder()
        .certificate("web", &["web.example.com"])
        .resource("gateway.yaml", &yaml::gateway("web", &server))
        .resource("pass.yaml", &yaml::virtual_service("pass", "web", &[HOST], &rules))
        .resource("web.yaml", &yaml::virtual_service("web", "web", &["web.example.com"], &rules))
        .resource("a.yaml", &yaml::backend("a.test", backend.port()))
        .start();
    assert!(gateway.try_client(HOST).is_err(), "there is no `tls` rule for it");
    assert_eq!(gateway.get("web.example.com", "/name").text(), "a", "the other server serves");
    assert!(gateway.logged("VirtualService default/pass: spec"), "why is said");
}
