//! Tests of compilation over several generations. What is said about bad resources is tested with
//! the files in `config/testdata`.

use super::*;
use crate::snapshot::{Action, CertificateState, Cluster};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// Takes what starts with `good` for a certificate, and a key that ends like it for its key.
#[derive(Default)]
pub(crate) struct TestIdentities {
    built: u64,
}

impl Identities for TestIdentities {
    fn server(&mut self, request: &IdentityRequest<'_>) -> Result<BuiltIdentity, Refusal> {
        let refuse = |part, reason: &str| Err(Refusal { part, reason: reason.to_owned() });
        let trust = request.policy.clients.as_ref().map(|clients| &clients.trust);
        if trust.is_some_and(|trust| !trust.ca.starts_with(b"good ca")) {
            return refuse(Part::Clients, "there is no CA certificate in it");
        }
        if trust.and_then(|trust| trust.crl.as_ref()).is_some_and(|crl| **crl != *b"good crl") {
            return refuse(Part::Clients, "there is no revocation list in it");
        }
        let certificate = String::from_utf8_lossy(&request.pair.certificate);
        let Some(serial) = certificate.strip_prefix("good ") else {
            return refuse(Part::Pair, "is no certificate");
        };
        if *request.pair.key != *format!("key {serial}").as_bytes() {
            return refuse(Part::Pair, "the key does not belong to the certificate");
        }
        self.built += 1;
        let names = serial.strip_prefix("for ").map(|names| names.split(',').map(str::to_owned));
        let (now, days) = (SystemTime::now(), |days: u64| Duration::from_hours(24 * days));
        let is_early = serial == "early";
        let info = CertificateInfo {
            serial: serial.to_owned(),
            subject_alt_names: names.map_or_else(Vec::new, Iterator::collect),
            // Half a day more, so that a slow test counts the same days.
            valid_from: if is_early { now + days(3) - days(1) / 2 } else { now - days(9) },
            expires: if serial == "expired" {
                now - days(3) - days(1) / 2
            } else {
                now + days(100)
            },
        };
        let authority = |trust: &ClientTrust| CertificateInfo {
            serial: String::from_utf8_lossy(&trust.ca).into_owned(),
            ..info.clone()
        };
        let client_ca = trust.map(authority).into_iter().collect();
        let config = server_config();
        Ok(BuiltIdentity { config, certificate: info, client_ca, crl_expires: None })
    }
}

fn server_config() -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let resolver = rustls::server::ResolvesServerCertUsingSni::new();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    Arc::new(config)
}

pub(crate) fn gateway() -> GatewayIdentity {
    let labels = BTreeMap::from([("istio".to_owned(), "ingressgateway".to_owned())]);
    GatewayIdentity { namespace: "istio-system".into(), labels }
}

pub(crate) fn listen() -> Listen {
    let ports = BTreeMap::from([(80, 8080), (443, 8443)]);
    Listen { address: Ipv4Addr::UNSPECIFIED.into(), ports }
}

/// A compiler and the world that it sees.
struct World {
    compiler: Compiler,
    files: BTreeMap<String, SourceFile>,
    mounted: Vec<MountedSecret>,
    pem: HashMap<String, Arc<[u8]>>,
    dns: HashMap<String, Vec<IpAddr>>,
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let identities = Box::new(TestIdentities::default());
        let compiler = Compiler::new(gateway(), listen(), Limits::default(), identities);
        let (pem, dns) = (HashMap::new(), HashMap::new());
        let (files_read, mounted) = (BTreeMap::new(), Vec::new());
        let mut world = Self { compiler, files: files_read, mounted, pem, dns };
        files.iter().for_each(|(name, text)| world.write(name, text));
        world
    }

    /// The page's files and certificates.
    fn page() -> Self {
        let mut world = Self::new(&[("page.yaml", PAGE), ("backend.yaml", BACKEND)]);
        world.write_pair("1", "1");
        world
    }

    fn write(&mut self, name: &str, text: &str) {
        let path = Arc::new(Path::new(name).to_owned());
        let content = Ok(text.as_bytes().into());
        self.files.insert(name.to_owned(), SourceFile { path, content });
    }

    fn write_pair(&mut self, certificate: &str, key: &str) {
        let dir = "/etc/istio/ingressgateway-certs";
        self.pem.insert(format!("{dir}/tls.crt"), format!("good {certificate}").as_bytes().into());
        self.pem.insert(format!("{dir}/tls.key"), format!("key {key}").as_bytes().into());
    }

    fn output(&mut self) -> Output {
        let files: Vec<_> = self.files.values().cloned().collect();
        let (pem, dns) = (&self.pem, &self.dns);
        self.compiler.compile(Inputs {
            files: &files,
            mounted_secrets: &self.mounted,
            pem: &mut |path| pem.get(path).cloned().ok_or_else(not_found),
            resolved: &|name| dns.get(name).cloned(),
        })
    }

    fn compile(&mut self) -> Snapshot {
        self.output().snapshot
    }
}

fn not_found() -> std::io::Error {
    std::io::ErrorKind::NotFound.into()
}

const PAGE: &str = include_str!("../testdata/page.yaml");

const BACKEND: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: httpbin}
spec:
  hosts: [httpbin.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8000, name: http, protocol: HTTP, targetPort: 80}]
  endpoints: [{address: 10.0.0.2}, {address: 10.0.0.1, ports: {http: 8080}}]
";

fn said(snapshot: &Snapshot) -> String {
    snapshot.rejections.iter().map(|rejection| format!("{rejection}\n")).collect()
}

/// The TLS server for `host` on port 443.
fn server<'a>(snapshot: &'a Snapshot, host: &str) -> &'a Arc<TlsServer> {
    let key = ListenerKey { address: Ipv4Addr::UNSPECIFIED.into(), gateway_port: 443 };
    match &snapshot.listener(key).unwrap().serves {
        Serves::Tls(servers) => servers.find(host).unwrap(),
        Serves::Http(_) => panic!("no TLS"),
    }
}

/// Names of the routes of the virtual host in order, with their paths and clusters.
fn routes(table: &RouteTable, host: &str) -> Vec<String> {
    let host = table.hosts.find(host).unwrap();
    let show = |route: &crate::snapshot::Route| {
        let action = match &route.action {
            Action::Forward(forward) => clusters(forward).join(" "),
            Action::Redirect(redirect) => redirect.status.to_string(),
            Action::Respond(response) => response.status.to_string(),
        };
        format!("{} {:?} {action}", route.name, route.path)
    };
    host.routes().iter().map(show).collect()
}

fn clusters(forward: &crate::snapshot::Forward) -> Vec<String> {
    let name = |cluster: &Arc<Cluster>| format!("{} {:?}", cluster.name, cluster.endpoints);
    let target = |target: &crate::snapshot::Target| target.cluster.as_ref().map(name);
    forward.targets.iter().map(|t| target(t).unwrap_or_else(|| "none".into())).collect()
}

#[test]
fn the_page_compiles() {
    let mut world = World::page();
    let output = world.output();
    let snapshot = &output.snapshot;
    assert_eq!(said(snapshot), "");
    assert_eq!(snapshot.generation, 1);
    assert_eq!(snapshot.listeners[0].bind_port, 8443);
    let server = server(snapshot, "httpbin.example.com");
    assert_eq!(server.name, "https.443.https.mygateway.default");
    assert!(matches!(server.identity, Identity::Ready(_)));
    let cluster = "outbound|8000||httpbin.default.svc.cluster.local \
                   [10.0.0.1:8080, 10.0.0.2:80]";
    assert_eq!(
        routes(&server.routes, "httpbin.example.com"),
        [format!(" Prefix(\"/status\") {cluster}"), format!(" Prefix(\"/delay\") {cluster}")]
    );
    assert_eq!(output.pem_paths.len(), 2);
    assert!(output.names.is_empty());
}

#[test]
fn what_did_not_change_is_the_same() {
    let mut world = World::page();
    let first = world.compile();
    world.write("other.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n");
    let second = world.compile();
    assert!(Arc::ptr_eq(&first.listeners[0], &second.listeners[0]));
    assert!(Arc::ptr_eq(&first.certificates[0], &second.certificates[0]));
    assert_eq!(second.generation, 2);
}

#[test]
fn a_changed_document_rebuilds_only_its_own_host() {
    let other = PAGE.replace("httpbin", "other").replace("mygateway", "othergateway");
    let mut world = World::page();
    world.write("other.yaml", &other);
    let first = world.compile();
    assert_eq!(said(&first), "");
    world.write("other.yaml", &other.replace("/delay", "/late"));
    let second = world.compile();
    let same = |host| Arc::ptr_eq(server(&first, host), server(&second, host));
    assert!(same("httpbin.example.com"));
    assert!(!same("other.example.com"));
}

#[test]
fn a_line_above_moves_the_place_and_rebuilds_nothing() {
    let mut world = World::page();
    world.pem.clear();
    let first = world.compile();
    world.write("page.yaml", &format!("# one\n---\n{PAGE}"));
    let second = world.compile();
    let (first_host, second_host) =
        (server(&first, "httpbin.example.com"), server(&second, "httpbin.example.com"));
    assert!(Arc::ptr_eq(&first_host.routes, &second_host.routes));
    assert_ne!(first.rejections[0].origin, second.rejections[0].origin);
}

#[test]
fn a_missing_certificate_closes_only_its_host_until_it_appears() {
    let mut world = World::page();
    world.pem.clear();
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Missing));
    assert!(said(&snapshot).contains("tls.crt does not exist"), "{}", said(&snapshot));
    world.write_pair("1", "1");
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Ready(_)));
    assert_eq!(said(&snapshot), "");
}

#[test]
fn a_half_replaced_pair_keeps_the_last_good_one() {
    let mut world = World::page();
    let first = world.compile();
    world.write_pair("2", "1");
    let second = world.compile();
    assert!(Arc::ptr_eq(&first.listeners[0], &second.listeners[0]));
    assert!(said(&second).contains("does not belong"), "{}", said(&second));
    world.write_pair("2", "2");
    let third = world.compile();
    assert_eq!(said(&third), "");
    assert!(!Arc::ptr_eq(&first.listeners[0], &third.listeners[0]));
}

#[test]
fn a_broken_resource_keeps_its_last_good_version_and_a_deleted_one_goes() {
    let mut world = World::page();
    let first = world.compile();
    for broken in [PAGE.replace("prefix:", "prefx:"), PAGE.replace("hosts:", "hosts: [")] {
        world.write("page.yaml", &broken);
        let second = world.compile();
        assert!(Arc::ptr_eq(&first.listeners[0], &second.listeners[0]), "{}", said(&second));
        assert!(said(&second).contains("stays in use"), "{}", said(&second));
    }
    world.write("page.yaml", "");
    assert!(world.compile().listeners.is_empty());
}

#[test]
fn a_secret_is_found_in_the_gateways_namespace() {
    let page = page_with_credential();
    let secret = "
apiVersion: v1
kind: Secret
metadata: {name: cred, namespace: istio-system}
data: {tls.crt: Z29vZCA3}
stringData: {tls.key: key 7}
";
    let mut world = World::new(&[("page.yaml", &page), ("secret.yaml", secret)]);
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Ready(_)));
    world.files.remove("secret.yaml");
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Ready(_)));
    assert!(said(&snapshot).contains("there is no Secret `cred` in namespace istio-system"));
}

fn page_with_credential() -> String {
    PAGE.replace("serverCertificate: /etc/istio/ingressgateway-certs/tls.crt", "")
        .replace("privateKey: /etc/istio/ingressgateway-certs/tls.key", "credentialName: cred")
}

fn mounted(keys: &[(&str, &str)]) -> MountedSecret {
    let copy = |(key, text): &(&str, &str)| ((*key).to_owned(), text.as_bytes().into());
    MountedSecret {
        name: "cred".to_owned(),
        keys: keys.iter().map(copy).collect(),
        path: Arc::new(Path::new("secrets/cred").to_owned()),
    }
}

#[test]
fn a_mounted_secret_is_found_by_its_name() {
    let mut world = World::new(&[("page.yaml", &page_with_credential())]);
    world.mounted = vec![mounted(&[("tls.crt", "good 8"), ("tls.key", "key 8")])];
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Ready(_)));
    world.mounted = vec![mounted(&[("tls.crt", "good 9"), ("tls.key", "key 8")])];
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Ready(_)));
    let expected = "Secret istio-system/cred (secrets/cred): the key does not belong";
    assert!(said(&snapshot).contains(expected), "{}", said(&snapshot));
}

#[test]
fn a_misspelt_secret_is_suggested() {
    let page = page_with_credential().replace("credentialName: cred", "credentialName: creed");
    let mut world = World::new(&[("page.yaml", &page)]);
    world.mounted = vec![mounted(&[])];
    let said = said(&world.compile());
    assert!(said.contains("the gateway's own; did you mean `cred`?"), "{said}");
}

#[test]
fn a_certificate_that_clients_will_refuse_is_served_with_a_warning() {
    let mut world = World::page();
    world.write_pair("expired", "expired");
    let snapshot = world.compile();
    assert!(matches!(server(&snapshot, "httpbin.example.com").identity, Identity::Ready(_)));
    let expired = said(&snapshot);
    assert!(expired.contains("warning: Gateway default/mygateway"), "{expired}");
    assert!(expired.contains("the certificate expired 3 days ago"), "{expired}");
    world.write_pair("early", "early");
    let early = said(&world.compile());
    assert!(early.contains("the certificate becomes valid only in 2 days"), "{early}");
    world.write_pair("for a.test,*.test", "for a.test,*.test");
    let other = said(&world.compile());
    let expected = "the certificate is for a.test, *.test, not for httpbin.example.com";
    assert!(other.contains(expected), "{other}");
    world.write_pair("for *.EXAMPLE.com", "for *.EXAMPLE.com");
    assert_eq!(said(&world.compile()), "");
}

#[test]
fn a_file_that_becomes_unreadable_keeps_what_it_held() {
    let mut world = World::page();
    let before = world.compile();
    let path = Arc::new(Path::new("page.yaml").to_owned());
    let content = Err("Permission denied".to_owned());
    world.files.insert("page.yaml".to_owned(), SourceFile { path, content });
    let after = world.compile();
    assert!(Arc::ptr_eq(&before.listeners[0], &after.listeners[0]));
    let said = said(&after);
    assert!(said.contains("page.yaml: error: cannot be read: Permission denied"), "{said}");
    assert!(said.contains("what was read before the error stays in use"), "{said}");
}

#[test]
fn an_external_name_leads_to_its_addresses() {
    let backend = "
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec: {type: ExternalName, externalName: elsewhere.test, ports: [{port: 8000}]}
";
    let mut world = World::page();
    world.write("backend.yaml", backend);
    let output = world.output();
    assert_eq!(output.names.iter().collect::<Vec<_>>(), ["elsewhere.test"]);
    world.dns.insert("elsewhere.test".into(), vec![Ipv4Addr::new(10, 8, 8, 8).into()]);
    let first = first_route(&world.compile());
    assert!(first.ends_with("httpbin.default.svc.cluster.local [10.8.8.8:8000]"), "{first}");
}

#[test]
fn a_service_entry_may_be_resolved_by_dns() {
    let entry = BACKEND.replace("resolution: STATIC", "resolution: DNS");
    let entry = entry.replace("{address: 10.0.0.2}", "{address: localhost}");
    let mut world = World::page();
    world.write("backend.yaml", &entry);
    assert!(world.output().names.contains("localhost"), "{:?}", world.output().names);
    world.dns.insert("localhost".into(), vec![Ipv4Addr::LOCALHOST.into()]);
    let first = first_route(&world.compile());
    assert!(first.contains("127.0.0.1:80"), "{first}");
}

#[test]
fn a_service_entry_is_seen_where_it_is_exported_to() {
    // Whoever looks is the gateway, in istio-system, whatever namespace the route is in.
    let exports =
        [("['.']", false), ("[istio-system]", true), ("[default]", false), ("['*']", true)];
    for (export, seen) in exports {
        let entry = BACKEND
            .replace("{name: httpbin}", "{name: httpbin, namespace: backends}")
            .replace("spec:", &format!("spec:\n  exportTo: {export}"));
        let mut world = World::page();
        world.write("backend.yaml", &entry);
        let first = first_route(&world.compile());
        assert_eq!(first.contains("10.0.0.2:80"), seen, "{export}: {first}");
    }
}

fn first_route(snapshot: &Snapshot) -> String {
    routes(&server(snapshot, "httpbin.example.com").routes, "httpbin.example.com").remove(0)
}

#[test]
fn dns_tries_the_completed_name_then_the_written_one() {
    let mut world = World::page();
    world.files.remove("backend.yaml");
    let output = world.output();
    let names: Vec<_> = output.names.iter().map(String::as_str).collect();
    assert_eq!(names, ["httpbin", "httpbin.default.svc.cluster.local"]);
    world.dns.insert("httpbin".into(), vec![Ipv4Addr::new(10, 9, 9, 9).into()]);
    let snapshot = world.compile();
    let table = &server(&snapshot, "httpbin.example.com").routes;
    let first = &routes(table, "httpbin.example.com")[0];
    assert!(first.ends_with("httpbin.default.svc.cluster.local [10.9.9.9:8000]"), "{first}");
}

#[test]
fn a_service_leads_to_its_ready_endpoints() {
    let backend = "
apiVersion: v1
kind: Service
metadata: {name: httpbin}
spec: {ports: [{name: grpc-x, port: 8000, targetPort: web}], selector: {app: httpbin}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: httpbin-1, labels: {kubernetes.io/service-name: httpbin}}
addressType: IPv4
ports: [{name: grpc-x, port: 8081, protocol: TCP}]
endpoints:
- addresses: [10.0.0.3]
- addresses: [10.0.0.4]
  conditions: {ready: false}
";
    let mut world = World::page();
    world.write("backend.yaml", backend);
    let snapshot = world.compile();
    assert_eq!(said(&snapshot), "");
    let table = &server(&snapshot, "httpbin.example.com").routes;
    let first = &routes(table, "httpbin.example.com")[0];
    assert!(first.ends_with("httpbin.default.svc.cluster.local [10.0.0.3:8081]"), "{first}");
    world.write("backend.yaml", &backend.replace("port: 8000", "port: 8001"));
    let snapshot = world.compile();
    let table = &server(&snapshot, "httpbin.example.com").routes;
    assert!(routes(table, "httpbin.example.com")[0].ends_with("none"));
    assert!(said(&snapshot).contains("has no port 8000, only 8001"), "{}", said(&snapshot));
}

#[test]
fn catch_all_routes_of_several_services_go_last() {
    let service = |name: &str, uri: &str, host: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}}}\nspec:\n  hosts: [httpbin.example.com]\n  \
             gateways: [mygateway]\n  http:\n  - name: {name}\n    \
             match: [{{uri: {{{uri}}}}}]\n    \
             route: [{{destination: {{host: {host}, port: {{number: 1}}}}}}]\n"
        )
    };
    let gateway = PAGE.split("---").next().unwrap();
    let text = gateway.to_owned()
        + &service("a", "prefix: /", "10.0.0.1")
        + &service("b", "exact: /b", "10.0.0.2");
    let mut world = World::new(&[("all.yaml", &text)]);
    let snapshot = world.compile();
    let table = &server(&snapshot, "httpbin.example.com").routes;
    let names: Vec<_> = table
        .hosts
        .find("httpbin.example.com")
        .unwrap()
        .routes()
        .iter()
        .map(|route| route.name.clone())
        .collect();
    assert_eq!(names, ["b", "a"]);
}

#[test]
fn a_redirecting_server_needs_no_virtual_service() {
    let text = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: plain}
spec:
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    tls: {httpsRedirect: true}
    hosts: ['*.example.com']
";
    let mut world = World::new(&[("plain.yaml", text)]);
    let snapshot = world.compile();
    let Serves::Http(table) = &snapshot.listeners[0].serves else { panic!("no HTTP") };
    assert!(table.hosts.find("a.example.com").unwrap().https_redirect);
    assert!(table.hosts.find("example.com").is_none());
}

#[test]
fn a_secret_is_never_shown() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n\
                  stringData: {tls.key: hunter2}\ndata: {a: 'hunter2!'}\n";
    let mut world = World::new(&[("secret.yaml", secret)]);
    let snapshot = world.compile();
    assert!(said(&snapshot).contains("is not base64"), "{}", said(&snapshot));
    assert!(!format!("{snapshot:?}").contains("hunter2"));
}

/// The page's second Gateway: with mutual TLS.
fn mutual_page() -> World {
    let page = PAGE.replace("mode: SIMPLE", "mode: MUTUAL\n      caCertificates: /ca.pem");
    let mut world = World::new(&[("page.yaml", &page), ("backend.yaml", BACKEND)]);
    world.write_pair("1", "1");
    world.pem.insert("/ca.pem".into(), b"good ca 1".as_slice().into());
    world
}

fn is_served(snapshot: &Snapshot) -> bool {
    matches!(server(snapshot, "httpbin.example.com").identity, Identity::Ready(_))
}

/// What the clients of the page's host are held to.
fn ca(snapshot: &Snapshot) -> Vec<&str> {
    let authorities = snapshot.certificates[0].client_ca.iter();
    authorities.map(|ca| ca.info.serial.as_str()).collect()
}

#[test]
fn a_host_whose_ca_was_never_good_is_closed() {
    let mut world = mutual_page();
    world.pem.remove("/ca.pem");
    let output = world.output();
    assert!(!is_served(&output.snapshot));
    assert!(output.pem_paths.contains("/ca.pem"), "awaited");
    let said = said(&output.snapshot);
    assert!(said.contains("tls.caCertificates: /ca.pem does not exist (its hosts are closed"));
    let CertificateState::Missing { reason } = &output.snapshot.certificates[0].state else {
        panic!("{:?}", output.snapshot.certificates);
    };
    assert_eq!(reason, "/ca.pem does not exist");
    world.pem.insert("/ca.pem".into(), b"bad".as_slice().into());
    assert!(!is_served(&world.compile()));
    world.pem.insert("/ca.pem".into(), b"good ca 2".as_slice().into());
    let snapshot = world.compile();
    assert!(is_served(&snapshot));
    assert_eq!(ca(&snapshot), ["good ca 2"]);
}

#[test]
fn an_unreadable_ca_leaves_the_last_good_one_and_takes_a_new_certificate() {
    let mut world = mutual_page();
    assert_eq!(ca(&world.compile()), ["good ca 1"]);
    world.write_pair("2", "2");
    for bad in [Some("bad"), None] {
        world.pem.remove("/ca.pem");
        if let Some(bad) = bad {
            world.pem.insert("/ca.pem".into(), bad.as_bytes().into());
        }
        let snapshot = world.compile();
        assert!(is_served(&snapshot));
        assert_eq!(ca(&snapshot), ["good ca 1"]);
        let CertificateState::Ready(info) = &snapshot.certificates[0].state else { panic!() };
        assert_eq!(info.serial, "2");
        let said = said(&snapshot);
        assert!(said.contains("(clients are checked as before)"), "{said}");
    }
    world.write_pair("3", "2");
    let snapshot = world.compile();
    assert!(is_served(&snapshot));
    let said = said(&snapshot);
    assert!(said.contains("(clients are checked as before)"), "{said}");
    assert!(said.contains("(the last good certificate stays in use)"), "{said}");
}

#[test]
fn a_host_that_becomes_mutual_is_not_served_without_a_ca() {
    let mut world = World::page();
    let simple = world.compile();
    assert!(is_served(&simple));
    let page = PAGE.replace("mode: SIMPLE", "mode: MUTUAL\n      caCertificates: /ca.pem");
    world.write("page.yaml", &page);
    assert!(!is_served(&world.compile()));
    world.pem.insert("/ca.pem".into(), b"good ca 1".as_slice().into());
    assert!(is_served(&world.compile()));
    let moved = page.replace("/ca.pem", "/other.pem");
    world.write("page.yaml", &moved);
    assert!(!is_served(&world.compile()), "another CA was asked for");
    let listed = page.replace("/ca.pem", "/ca.pem\n      caCrl: /crl.pem");
    world.write("page.yaml", &listed);
    assert!(!is_served(&world.compile()), "a list of revoked certificates was asked for");
    world.pem.insert("/crl.pem".into(), b"good crl".as_slice().into());
    assert!(is_served(&world.compile()));
    world.pem.insert("/crl.pem".into(), b"".as_slice().into());
    let snapshot = world.compile();
    assert!(is_served(&snapshot));
    assert!(said(&snapshot).contains("clients are checked as before"), "{}", said(&snapshot));
}
