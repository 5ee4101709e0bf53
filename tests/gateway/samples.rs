//! Istio's samples that have a Gateway of their own, and what cert-manager needs, each with
//! traffic; the resources are what the samples say, the services behind are those of the harness.

use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::harness::backend::Backend;
use crate::harness::certificate::{Authority, Leaf};
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::Gateway;
use crate::harness::{checksum, eventually, pattern, yaml};
use crate::tasks::service;

/// A sample's Gateway on plain `port` for every host, and its rules; `name` is its service.
fn sample(name: &str, port: u16, rules: &str, backend: &Backend) -> Gateway {
    let gateway = format!("{name}-gateway");
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway(&gateway, &yaml::http_server(port, &["*"], false)))
        .resource("route.yaml", &yaml::virtual_service(name, &gateway, &["*"], rules))
        .resource("service.yaml", &service(name, service_port(name), &[("v1", backend)]))
        .start()
}

fn service_port(name: &str) -> u16 {
    match name {
        "productpage" => 9080,
        "helloworld" => 5000,
        "httpbin" => 8000,
        _ => 8888,
    }
}

fn to(name: &str) -> String {
    let port = service_port(name);
    format!("    route: [ {{ destination: {{ host: {name}, port: {{ number: {port} }} }} }} ]\n")
}

fn client(gateway: &Gateway, port: u16) -> Client {
    Client::plain(gateway.address(port), "ingress.example.com").unwrap()
}

#[test]
fn bookinfo_opens_its_pages_alone() {
    let backend = Backend::start("productpage");
    let paths = "exact: /productpage }} prefix: /static }} exact: /login }} exact: /logout }} \
                 prefix: /api/v1/products";
    let blocks: Vec<_> =
        paths.split(" }} ").map(|path| format!("{{ uri: {{ {path} }} }}")).collect();
    let rules = format!("  - match: [ {} ]\n{}", blocks.join(", "), to("productpage"));
    let gateway = sample("productpage", 8080, &rules, &backend);
    let mut client = client(&gateway, 8080);
    for path in ["/productpage", "/productpage?u=test", "/static/a.css", "/login", "/logout"] {
        assert_eq!(client.get(path).text(), "productpage", "{path}");
    }
    assert_eq!(client.get("/api/v1/products/0/reviews").text(), "productpage");
    for path in ["/", "/productpage/", "/loginx", "/api/v1"] {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
}

#[test]
fn helloworld_greets_on_one_path() {
    let backend = Backend::start("Hello version: v1");
    let rules = format!("  - match: [ {{ uri: {{ exact: /hello }} }} ]\n{}", to("helloworld"));
    let gateway = sample("helloworld", 80, &rules, &backend);
    let mut client = client(&gateway, 80);
    assert_eq!(client.get("/hello").text(), "Hello version: v1");
    assert_eq!(client.get("/hello/you").status, 404);
    let log = gateway.access_log(2).join("\n");
    assert!(log.contains(" outbound|5000||helloworld.default.svc.cluster.local "), "{log}");
}

#[test]
fn httpbin_takes_everything() {
    let backend = Backend::start("httpbin");
    let gateway = sample("httpbin", 80, &format!("  -\n{}", to("httpbin")), &backend);
    let mut client = client(&gateway, 80);
    assert_eq!(client.get("/status/418").status, 418);
    assert_eq!(client.post("/body", b"posted").text(), "posted");
}

#[test]
fn websockets_pass_without_a_port_in_the_route() {
    let backend = Backend::start("tornado");
    let rules = "  - match: [ { uri: { prefix: / } } ]\n    \
                 route: [ { destination: { host: tornado }, weight: 100 } ]\n";
    let gateway = sample("tornado", 80, rules, &backend);
    let mut client = client(&gateway, 80);
    assert_eq!(client.get("/name").text(), "tornado");
    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZQ==\r\n";
    assert_eq!(client.request("GET", "/websocket", upgrade, b"").unwrap().status, 101);
    let sent = pattern(40_000);
    client.send(&sent).unwrap();
    assert_eq!(checksum(&client.read_exact(sent.len()).unwrap()), checksum(&sent));
}

/// What cert-manager writes: `data`, the whole chain, the CA, and what it notes for itself.
fn issued(leaf: &Leaf, authority: &Authority, revision: u32) -> String {
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata:\n  \
           name: ingress-cert\n  namespace: istio-system\n  \
           labels: {{ controller.cert-manager.io/fao: \"true\" }}\n  annotations:\n    \
             cert-manager.io/alt-names: my.example.com\n    \
             cert-manager.io/certificate-name: ingress-cert\n    \
             cert-manager.io/issuer-name: acme\n    \
             cert-manager.io/revision: \"{revision}\"\n\
         data:\n  ca.crt: {ca}\n  tls.crt: {chain}\n  tls.key: {key}\n",
        ca = encoded(&authority.pem()),
        chain = encoded(&(leaf.chain_pem.clone() + &authority.pem())),
        key = encoded(&leaf.key_pem),
    )
}

#[test]
fn cert_manager_answers_its_challenge_and_its_secrets_are_served() {
    const HOST: &str = "my.example.com";
    let (resolver, app) = (Backend::start("resolver"), Backend::start("app"));
    let plain = "  - match: [ { uri: { prefix: /.well-known/acme-challenge/ } } ]\n    \
                 route: [ { destination: { host: resolver, port: { number: 8089 } } } ]\n  \
                 - redirect: { scheme: https }\n";
    let https =
        yaml::server(443, "HTTPS", &[HOST], "{ mode: SIMPLE, credentialName: ingress-cert }");
    let gateway = Gateway::builder()
        .resource("80.yaml", &yaml::gateway("plain", &yaml::http_server(80, &["*"], false)))
        .resource("443.yaml", &yaml::gateway("https", &https))
        .resource("plain.yaml", &yaml::virtual_service("plain", "plain", &["*"], plain))
        .resource(
            "https.yaml",
            &yaml::virtual_service("https", "https", &[HOST], &yaml::all_to("app.test")),
        )
        .resource("resolver.yaml", &service("resolver", 8089, &[("v1", &resolver)]))
        .resource("app.yaml", &yaml::backend("app.test", app.port()))
        .start();
    // The challenge comes by HTTP while there is no certificate yet; all else moves to HTTPS.
    let mut visitor = Client::plain(gateway.address(80), HOST).unwrap();
    assert_eq!(visitor.get("/.well-known/acme-challenge/token").text(), "resolver");
    let moved = visitor.get("/a?b=c");
    let location = moved.header("location");
    assert_eq!((moved.status, location), (301, Some("https://my.example.com/a?b=c")));
    assert!(gateway.try_client(HOST).is_err(), "no certificate yet");
    // The first certificate, and a renewal by another CA.
    let mut before: Option<Authority> = None;
    for revision in [1, 2] {
        let authority = Authority::new();
        let leaf = authority.leaf(&[HOST]);
        gateway.write_resource("secret.yaml", &issued(&leaf, &authority, revision));
        let tls = Tls::new(authority.roots());
        eventually("the certificate is served", || {
            let client = Client::tls(&tls, gateway.address(443), HOST);
            client.is_ok_and(|mut client| {
                client.certificate() == leaf.der && client.get("/name").text() == "app"
            })
        });
        if let Some(old) = before.replace(authority) {
            let old = Tls::new(old.roots());
            assert!(Client::tls(&old, gateway.address(443), HOST).is_err(), "the old CA");
        }
    }
}
