//! "Securing Gateways with HTTPS" as a reader follows it: the page's own YAML, unedited, with
//! certificates that come after the gateway is up; and what else an operator does by hand.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::certificate::Leaf;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::{eventually, yaml};

const HOST: &str = "httpbin.example.com";

const MOUNT: &str = "root/etc/istio/ingressgateway-certs";

const GATEWAY_OF_FILES: &str = r#"apiVersion: networking.istio.io/v1alpha3
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
      mode: SIMPLE
      serverCertificate: /etc/istio/ingressgateway-certs/tls.crt
      privateKey: /etc/istio/ingressgateway-certs/tls.key
    hosts:
    - "httpbin.example.com"
"#;

/// As later versions of the page have it.
const GATEWAY_OF_A_SECRET: &str = r#"apiVersion: networking.istio.io/v1
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
      mode: SIMPLE
      credentialName: httpbin-credential # must be the same as secret
    hosts:
    - httpbin.example.com
"#;

const VIRTUAL_SERVICE: &str = r#"apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: httpbin
spec:
  hosts:
  - "httpbin.example.com"
  gateways:
  - mygateway
  http:
  - match:
    - uri:
        prefix: /status
    - uri:
        prefix: /delay
    route:
    - destination:
        port:
          number: 8000
        host: httpbin
"#;

fn page(gateway: &str, backend: &Backend) -> Builder {
    let host = "httpbin.default.svc.cluster.local";
    let entry = yaml::backend(host, backend.port()).replace("number: 80,", "number: 8000,");
    Gateway::builder()
        .resource("gateway.yaml", gateway)
        .resource("virtual-service.yaml", VIRTUAL_SERVICE)
        .resource("httpbin.yaml", &entry)
}

/// As `kubectl create -n istio-system secret tls --dry-run=client -o yaml` prints it.
fn kubectl_secret(name: &str, leaf: &Leaf) -> String {
    let (certificate, key) = (STANDARD.encode(&leaf.chain_pem), STANDARD.encode(&leaf.key_pem));
    format!(
        "apiVersion: v1\ndata:\n  tls.crt: {certificate}\n  tls.key: {key}\nkind: Secret\n\
         metadata:\n  creationTimestamp: null\n  name: {name}\n  namespace: istio-system\n\
         type: kubernetes.io/tls\n"
    )
}

/// The host is closed, until the certificate comes by `bring`; then the page's request works.
fn comes_later(gateway: &Gateway, bring: impl Fn(&Leaf)) {
    assert!(gateway.try_client(HOST).is_err(), "closed without a certificate");
    let leaf = gateway.authority().leaf(&[HOST]);
    bring(&leaf);
    eventually("the host is served", || gateway.try_client(HOST).is_ok());
    assert_eq!(gateway.get(HOST, "/status/418").status, 418);
    assert_eq!(gateway.get(HOST, "/nowhere").status, 404);
    let next = gateway.authority().leaf(&[HOST]);
    bring(&next);
    eventually("the next certificate is served", || gateway.client(HOST).certificate() == next.der);
}

#[test]
fn the_pages_gateway_with_files_that_come_later() {
    let backend = Backend::start("httpbin");
    let gateway = page(GATEWAY_OF_FILES, &backend).start();
    comes_later(&gateway, |leaf| {
        // Not even the directory was there.
        gateway.write_file(&format!("{MOUNT}/tls.crt"), &leaf.chain_pem);
        gateway.write_file(&format!("{MOUNT}/tls.key"), &leaf.key_pem);
    });
}

#[test]
fn the_pages_secret_that_comes_later() {
    let backend = Backend::start("httpbin");
    let gateway = page(GATEWAY_OF_A_SECRET, &backend).start();
    comes_later(&gateway, |leaf| {
        gateway.write_resource("secret.yaml", &kubectl_secret("httpbin-credential", leaf));
    });
}

#[test]
fn a_secret_that_is_a_directory_and_comes_later() {
    let backend = Backend::start("httpbin");
    let gateway = page(GATEWAY_OF_A_SECRET, &backend).start();
    comes_later(&gateway, |leaf| {
        let secret = "resources/secrets/httpbin-credential";
        gateway.write_file(&format!("{secret}/tls.crt"), &leaf.chain_pem);
        gateway.write_file(&format!("{secret}/tls.key"), &leaf.key_pem);
    });
}

#[test]
fn a_hangup_changes_a_limit_and_names_what_needs_a_restart() {
    let backend = Backend::start("httpbin");
    let gateway = page(GATEWAY_OF_FILES, &backend).start();
    comes_later(&gateway, |leaf| {
        gateway.write_file(&format!("{MOUNT}/tls.crt"), &leaf.chain_pem);
        gateway.write_file(&format!("{MOUNT}/tls.key"), &leaf.key_pem);
    });
    let asked = || {
        let fields = "a: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n";
        gateway.client(HOST).request("GET", "/status/200", fields, b"").unwrap().status
    };
    assert_eq!(asked(), 200);
    let settings = std::fs::read_to_string(gateway.path("settings.yaml")).unwrap();
    let changed = settings.replace("count: 2", "count: 1");
    assert_ne!(changed, settings);
    let limits = "limits: { header_fields_max: 4 }\n";
    gateway.write_file("settings.yaml", &(changed + limits));
    gateway.signal(Signal::HUP);
    eventually("the limit holds", || asked() == 431);
    let named = "workers.count changed in the settings, it takes effect at the next start";
    eventually("the log names it", || gateway.logged(named));
    eventually("it is confirmed", || gateway.logged("read the settings again"));
    gateway.write_file("settings.yaml", "workers: { count: lots }\n");
    gateway.signal(Signal::HUP);
    eventually("a mistake is logged", || gateway.logged("the settings stay as they were"));
    assert_eq!(asked(), 431);
}

#[test]
fn a_port_in_use_is_named_and_keeps_it_from_being_ready_until_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let resource = yaml::gateway("web", &yaml::http_server(port, &["*"], true));
    let gateway = Gateway::builder().resource("gateway.yaml", &resource).spawn();
    eventually("the log says it", || gateway.logged("not ready: cannot listen on"));
    assert!(gateway.logged("find who listens there"));
    let ready = || gateway.try_plain_get(gateway.status(), "/healthz/ready").unwrap().status;
    assert_eq!(ready(), 503);
    drop(taken);
    gateway.signal(Signal::HUP);
    eventually("it is ready", || ready() == 200);
}
