//! Tests of compilation over several generations. What is said about bad resources is tested with
//! the files in `config/testdata`.

mod destination_rule;
mod trust;

use super::*;
use crate::snapshot::{
    Action, BindPort, Cluster, Identity, ListenerKey, RouteTable, Serves, TcpTable, TlsPolicy,
    TlsServer, TlsServes,
};
use rustls::server::ProducesTickets;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Takes what starts with `good` for a certificate, and a key that ends like it for its key.
#[derive(Clone, Default)]
pub(crate) struct TestIdentities {
    loaded: Arc<AtomicUsize>,
    configured: Arc<AtomicUsize>,
}

impl Identities for TestIdentities {
    fn load(&self, pair: &PairPem<'_>) -> Result<LoadedPair, String> {
        let certificate = String::from_utf8_lossy(pair.certificate);
        let serial = certificate.strip_prefix("good ").ok_or("is no certificate")?;
        if pair.key != format!("key {serial}").as_bytes() {
            return Err("the key does not belong to the certificate".into());
        }
        self.loaded.fetch_add(1, Ordering::Relaxed);
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
        let key = CertifiedKey::new(Vec::new(), Arc::new(NoKey)).into();
        Ok(LoadedPair { key, state: Arc::new(CertificateState::Ready(info)) })
    }

    fn server(&mut self, request: &ServerRequest<'_>) -> Result<BuiltServer, Refusal> {
        let refuse = |reason: &str| Err(Refusal { part: Part::Clients, reason: reason.to_owned() });
        let trust = request.policy.clients.as_ref().map(|clients| &clients.trust);
        if trust.is_some_and(|trust| !trust.ca.starts_with(b"good ca")) {
            return refuse("there is no CA certificate in it");
        }
        if trust.and_then(|trust| trust.crl.as_ref()).is_some_and(|crl| !crl.starts_with(b"good")) {
            return refuse("there is no revocation list in it");
        }
        self.configured.fetch_add(1, Ordering::Relaxed);
        let mut config = server_config();
        config.ticketer = match request.before {
            Some(before) => Arc::clone(&before.ticketer),
            None => Arc::new(NoTickets(0)),
        };
        let client_ca = trust.map(authority).into_iter().collect();
        Ok(BuiltServer { config: Arc::new(config), client_ca, crl_expires: None })
    }

    fn backend(&mut self, rules: &BackendRules<'_>) -> Result<BuiltBackend, Refusal> {
        if rules.trust.is_some_and(|trust| !trust.ca.starts_with(b"good ca")) {
            let reason = "there is no CA certificate in it".to_owned();
            return Err(Refusal { part: Part::Clients, reason });
        }
        let crl = rules.trust.and_then(|trust| trust.crl.as_ref());
        if crl.is_some_and(|crl| !crl.starts_with(b"good")) {
            let reason = "there is no revocation list in it".to_owned();
            return Err(Refusal { part: Part::Clients, reason });
        }
        let (http1, http2) = (client_config(), client_config());
        let ca = rules.trust.map(authority).into_iter().collect();
        Ok(BuiltBackend { http1, http2, ca, crl_expires: None })
    }

    fn system_ca(&mut self) -> Result<Arc<[u8]>, String> {
        Ok(b"good ca of the system".as_slice().into())
    }
}

fn authority(trust: &ClientTrust) -> CertificateInfo {
    CertificateInfo {
        serial: String::from_utf8_lossy(&trust.ca).into_owned(),
        subject_alt_names: Vec::new(),
        valid_from: SystemTime::UNIX_EPOCH,
        expires: SystemTime::now() + Duration::from_hours(24),
    }
}

fn client_config() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct NoKey;

impl SigningKey for NoKey {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        None
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

/// Not zero-sized: each has an address of its own.
#[derive(Debug)]
struct NoTickets(#[expect(dead_code, reason = "its size")] u8);

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

fn server_config() -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let resolver = rustls::server::ResolvesServerCertUsingSni::new();
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver))
}

pub(crate) fn gateway() -> GatewayIdentity {
    let labels = BTreeMap::from([("istio".to_owned(), "ingressgateway".to_owned())]);
    let (namespace, locality) = ("istio-system".into(), String::new());
    GatewayIdentity { namespace, labels, locality, admin: "127.0.0.1:15000".parse().unwrap() }
}

pub(crate) fn listen() -> Listen {
    let ports = BTreeMap::from([(80, 8080), (443, 8443)]);
    Listen { address: Ipv4Addr::UNSPECIFIED.into(), ports }
}

/// A compiler and the world that it sees.
struct World {
    compiler: Compiler,
    counts: TestIdentities,
    now: Seen,
    /// As the compiler was told.
    told: Seen,
}

/// What there is to see.
#[derive(Clone, Default)]
struct Seen {
    files: BTreeMap<String, FileState>,
    mounted: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pem: Pem,
    dns: HashMap<String, Vec<IpAddr>>,
}

#[derive(Clone, Default)]
struct Pem {
    files: BTreeMap<String, Vec<u8>>,
    /// Files that are there and may not be read.
    denied: BTreeSet<String>,
    wanted: BTreeSet<Arc<str>>,
    taken: usize,
}

impl PemFiles for Pem {
    fn want(&mut self, paths: &BTreeSet<Arc<str>>) {
        self.wanted.clone_from(paths);
    }

    fn look(&self, path: &str) -> io::Result<Digest> {
        assert!(self.wanted.contains(path), "{path} was not asked for");
        if self.denied.contains(path) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        self.files.get(path).map(|bytes| Digest::of(bytes)).ok_or_else(not_found)
    }

    fn take(&mut self, path: &str) -> io::Result<Vec<u8>> {
        self.taken += 1;
        self.files.get(path).cloned().ok_or_else(not_found)
    }

    fn place(&self, path: &str) -> String {
        path.to_owned()
    }
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let counts = TestIdentities::default();
        let identities = Box::new(counts.clone());
        let compiler = Compiler::new(gateway(), listen(), Limits::default(), identities);
        let mut world = Self { compiler, counts, now: Seen::default(), told: Seen::default() };
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
        self.now.files.insert(name.to_owned(), FileState::Content(text.into()));
    }

    fn remove(&mut self, name: &str) {
        self.now.files.insert(name.to_owned(), FileState::Gone);
    }

    fn write_pair(&mut self, certificate: &str, key: &str) {
        let dir = "/etc/istio/ingressgateway-certs";
        self.write_pem(&format!("{dir}/tls.crt"), &format!("good {certificate}"));
        self.write_pem(&format!("{dir}/tls.key"), &format!("key {key}"));
    }

    fn write_pem(&mut self, path: &str, text: &str) {
        self.now.pem.files.insert(path.to_owned(), text.into());
    }

    fn mount(&mut self, name: &str, keys: &[(&str, &str)]) {
        let copy = |(key, text): &(&str, &str)| ((*key).to_owned(), text.as_bytes().to_vec());
        self.now.mounted.insert(name.to_owned(), keys.iter().map(copy).collect());
    }

    fn output(&mut self) -> Output {
        self.compiler.read(changes(&self.told, &self.now));
        if self.told.dns != self.now.dns {
            self.compiler.addresses_changed();
        }
        self.told = self.now.clone();
        let Seen { pem, dns, .. } = &mut self.now;
        self.compiler.compile(Inputs { pem, resolved: &|name| dns.get(name).cloned() })
    }

    fn compile(&mut self) -> Snapshot {
        self.output().snapshot
    }

    /// How many pairs were loaded and servers configured since this was asked last.
    fn work(&self) -> (usize, usize) {
        let count = |counter: &AtomicUsize| counter.swap(0, Ordering::Relaxed);
        (count(&self.counts.loaded), count(&self.counts.configured))
    }
}

/// What a source would tell, between two looks.
fn changes(before: &Seen, now: &Seen) -> Changes {
    let path = |name: &String| Arc::new(Path::new(name).to_owned());
    let files = now.files.iter().filter(|(name, state)| before.files.get(*name) != Some(state));
    let files = files.map(|(name, state)| SourceFile { path: path(name), state: state.clone() });
    let secrets = now.mounted.iter().filter(|(name, k)| before.mounted.get(*name) != Some(k));
    let secrets = secrets.map(|(name, keys)| MountedSecret {
        name: name.as_str().into(),
        path: path(&format!("secrets/{name}")),
        keys: Some(keys.clone()),
    });
    let (old, new) = (&before.pem.files, &now.pem.files);
    let named = old.keys().chain(new.keys()).filter(|path| old.get(*path) != new.get(*path));
    let named = named.map(|path| path.as_str().into()).collect();
    Changes { files: files.collect(), secrets: secrets.collect(), named }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

const PAGE: &str = include_str!("../../testdata/page.yaml");

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
    let key =
        ListenerKey::Ip { address: Ipv4Addr::UNSPECIFIED.into(), port: BindPort::Fixed(8443) };
    match &snapshot.listener(key).unwrap().serves {
        Serves::Tls(servers) => servers.find(host).unwrap(),
        Serves::Http(_) | Serves::Tcp(_) => panic!("no TLS"),
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
fn nobody_is_led_to_the_gateways_own_administration() {
    let mut world = World::new(&[("own.yaml", include_str!("../../testdata/own-admin.yaml"))]);
    let snapshot = world.compile();
    let Serves::Http(table) = &snapshot.listeners[0].serves else { panic!("TLS") };
    let routes = routes(table, "a.example.com");
    let ends = ["[127.0.0.1:8000]", "[]", "[]", "[127.0.0.1:8000]"];
    assert!(routes.iter().zip(ends).all(|(route, end)| route.ends_with(end)), "{routes:#?}");
}

#[test]
fn an_address_leads_to_the_administration_if_a_connection_would() {
    let is_admin = |admin: &str, address: &str| {
        let gateway = GatewayIdentity { admin: admin.parse().unwrap(), ..gateway() };
        gateway.is_admin(address.parse::<SocketAddr>().unwrap().into())
    };
    for (admin, address, expected) in [
        ("127.0.0.1:9", "127.0.0.1:9", true),
        ("127.0.0.1:9", "[::ffff:127.0.0.1]:9", true),
        ("127.0.0.1:9", "0.0.0.0:9", true),
        ("127.0.0.1:9", "127.0.0.1:8", false),
        ("127.0.0.1:9", "127.0.0.2:9", false),
        ("127.0.0.1:9", "10.0.0.1:9", false),
        ("0.0.0.0:9", "127.0.0.2:9", true),
        ("[::]:9", "[::1]:9", true),
        ("[::1]:9", "[::]:9", true),
    ] {
        assert_eq!(is_admin(admin, address), expected, "{admin} {address}");
    }
}

#[test]
fn the_page_compiles() {
    let mut world = World::page();
    let output = world.output();
    let snapshot = &output.snapshot;
    assert_eq!(said(snapshot), "");
    assert_eq!(snapshot.generation, 1);
    assert_eq!(snapshot.listeners[0].gateway_port, 443);
    let server = server(snapshot, "httpbin.example.com");
    assert_eq!(server.name, "https.443.https.mygateway.default");
    assert!(matches!(server.identity().unwrap(), Identity::Ready(_)));
    let cluster = "outbound|8000||httpbin.default.svc.cluster.local \
                   [10.0.0.1:8080, 10.0.0.2:80]";
    assert_eq!(
        routes(server.http().unwrap(), "httpbin.example.com"),
        [format!(" Prefix(\"/status\") {cluster}"), format!(" Prefix(\"/delay\") {cluster}")]
    );
    assert_eq!(world.now.pem.wanted.len(), 2);
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
    world.now.pem.files.clear();
    let first = world.compile();
    world.write("page.yaml", &format!("# one\n---\n{PAGE}"));
    let second = world.compile();
    let (first_host, second_host) =
        (server(&first, "httpbin.example.com"), server(&second, "httpbin.example.com"));
    assert!(Arc::ptr_eq(first_host.http().unwrap(), second_host.http().unwrap()));
    assert_ne!(first.rejections[0].origin, second.rejections[0].origin);
}

#[test]
fn a_missing_certificate_closes_only_its_host_until_it_appears() {
    let mut world = World::page();
    world.now.pem.files.clear();
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Missing
    ));
    assert!(said(&snapshot).contains("tls.crt does not exist"), "{}", said(&snapshot));
    world.write_pair("1", "1");
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
    assert_eq!(said(&snapshot), "");
}

#[test]
fn a_key_that_may_not_be_read_is_told_of_at_its_own_field() {
    let mut world = World::page();
    let key = "/etc/istio/ingressgateway-certs/tls.key";
    world.now.pem.denied.insert(key.to_owned());
    let line = 1 + PAGE.lines().position(|line| line.contains("privateKey:")).unwrap();
    let said = said(&world.compile());
    let place = format!("page.yaml:{line}: error: ");
    let what = format!(
        "tls.privateKey: {key} cannot be read: Permission denied (os error 13) (its hosts are \
         closed until this is mended"
    );
    assert!(said.contains(&place) && said.contains(&what), "{said}");
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
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
    world.remove("secret.yaml");
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
    assert!(said(&snapshot).contains("there is no Secret `cred` in namespace istio-system"));
}

fn page_with_credential() -> String {
    PAGE.replace("serverCertificate: /etc/istio/ingressgateway-certs/tls.crt", "")
        .replace("privateKey: /etc/istio/ingressgateway-certs/tls.key", "credentialName: cred")
}

#[test]
fn a_mounted_secret_is_found_by_its_name() {
    let mut world = World::new(&[("page.yaml", &page_with_credential())]);
    world.mount("cred", &[("tls.crt", "good 8"), ("tls.key", "key 8")]);
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
    world.mount("cred", &[("tls.crt", "good 9"), ("tls.key", "key 8")]);
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
    let expected = "Secret istio-system/cred (secrets/cred): the key does not belong";
    assert!(said(&snapshot).contains(expected), "{}", said(&snapshot));
}

#[test]
fn a_misspelt_secret_is_suggested() {
    let page = page_with_credential().replace("credentialName: cred", "credentialName: creed");
    let mut world = World::new(&[("page.yaml", &page)]);
    world.mount("cred", &[]);
    let said = said(&world.compile());
    assert!(said.contains("the gateway's own; did you mean `cred`?"), "{said}");
}

#[test]
fn a_certificate_that_clients_will_refuse_is_served_with_a_warning() {
    let mut world = World::page();
    world.write_pair("expired", "expired");
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
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
    let state = FileState::Unreadable("Permission denied".to_owned());
    world.now.files.insert("page.yaml".to_owned(), state);
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
    assert_eq!(output.names.keys().collect::<Vec<_>>(), ["elsewhere.test"]);
    world.now.dns.insert("elsewhere.test".into(), vec![Ipv4Addr::new(10, 8, 8, 8).into()]);
    let first = first_route(&world.compile());
    assert!(first.ends_with("httpbin.default.svc.cluster.local [10.8.8.8:8000]"), "{first}");
}

#[test]
fn a_service_entry_may_be_resolved_by_dns() {
    let entry = BACKEND.replace("resolution: STATIC", "resolution: DNS");
    let entry = entry.replace("{address: 10.0.0.2}", "{address: localhost}");
    let mut world = World::page();
    world.write("backend.yaml", &entry);
    assert!(world.output().names.contains_key("localhost"), "{:?}", world.output().names);
    world.now.dns.insert("localhost".into(), vec![Ipv4Addr::LOCALHOST.into()]);
    let first = first_route(&world.compile());
    assert!(first.contains("127.0.0.1:80"), "{first}");
}

#[test]
fn in_turn_the_first_address_is_the_only_endpoint() {
    let entry = BACKEND.replace("STATIC", "DNS_ROUND_ROBIN").replace(", {address: 10.0.0.1,", "");
    let entry = entry.replace("10.0.0.2", "web.test").replace(" ports: {http: 8080}}]", "]");
    let mut world = World::page();
    world.write("backend.yaml", &entry);
    let wanted = WantedNames::from([("web.test".to_owned(), Wanted::First)]);
    assert_eq!(*world.output().names, wanted);
    for first in [2, 1] {
        let found = [first, 3 - first].map(|last| Ipv4Addr::new(10, 0, 0, last).into());
        world.now.dns.insert("web.test".into(), found.into());
        let route = first_route(&world.compile());
        assert!(route.ends_with(&format!("[10.0.0.{first}:80]")), "{route}");
    }
    // Who wants all of them as well gets all.
    let all = entry.replace("DNS_ROUND_ROBIN", "DNS").replace("httpbin", "other");
    world.write("other.yaml", &all);
    let both = "{destination: {host: httpbin, port: {number: 8000}}, weight: 1}";
    let both = format!("{both}, {}", both.replace("httpbin", "other"));
    let page = PAGE.split("    - destination:").next().unwrap();
    world.write("page.yaml", &format!("{}    route: [{both}]\n", page.replace("    route:\n", "")));
    let output = world.output();
    let route = first_route(&output.snapshot);
    assert!(route.contains("[10.0.0.1:80] outbound|8000||other"), "{route}");
    assert!(route.ends_with("[10.0.0.1:80, 10.0.0.2:80]"), "{route}");
    assert_eq!(*output.names, wanted);
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
    routes(server(snapshot, "httpbin.example.com").http().unwrap(), "httpbin.example.com").remove(0)
}

#[test]
fn dns_tries_the_completed_name_then_the_written_one() {
    let mut world = World::page();
    world.remove("backend.yaml");
    let output = world.output();
    let names: Vec<_> = output.names.keys().map(String::as_str).collect();
    assert_eq!(names, ["httpbin", "httpbin.default.svc.cluster.local"]);
    world.now.dns.insert("httpbin".into(), vec![Ipv4Addr::new(10, 9, 9, 9).into()]);
    let snapshot = world.compile();
    let table = server(&snapshot, "httpbin.example.com").http().unwrap();
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
    let table = server(&snapshot, "httpbin.example.com").http().unwrap();
    let first = &routes(table, "httpbin.example.com")[0];
    assert!(first.ends_with("httpbin.default.svc.cluster.local [10.0.0.3:8081]"), "{first}");
    world.write("backend.yaml", &backend.replace("port: 8000", "port: 8001"));
    let snapshot = world.compile();
    let table = server(&snapshot, "httpbin.example.com").http().unwrap();
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
    let table = server(&snapshot, "httpbin.example.com").http().unwrap();
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

/// Two hosts beside the page's, with certificates of their own in Secrets.
fn three_hosts() -> World {
    let mut world = World::page();
    for name in ["second", "third"] {
        world.write(&format!("{name}.yaml"), &host_with_secret(name));
        world.write(&format!("{name}-secret.yaml"), &secret(name, "1"));
    }
    world
}

fn host_with_secret(name: &str) -> String {
    page_with_credential()
        .replace("credentialName: cred", &format!("credentialName: {name}"))
        .replace("name: httpbin\n", &format!("name: {name}\n"))
        .replace("httpbin.example.com", &format!("{name}.example.com"))
        .replace("mygateway", &format!("{name}-gateway"))
}

fn secret(name: &str, serial: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: istio-system}}\n\
         stringData: {{tls.crt: good {serial}, tls.key: key {serial}}}\n"
    )
}

#[test]
fn a_new_certificate_touches_only_its_own_server() {
    let mut world = three_hosts();
    let first = world.compile();
    assert_eq!(said(&first), "");
    assert_eq!(world.work(), (3, 3));
    let taken = world.now.pem.taken;
    world.write("second-secret.yaml", &secret("second", "2"));
    let second = world.compile();
    assert_eq!(world.work(), (1, 1), "loaded and configured");
    assert_eq!(world.now.pem.taken, taken, "no file of another is read");
    let same = |host| Arc::ptr_eq(server(&first, host), server(&second, host));
    assert!(same("httpbin.example.com") && same("third.example.com"));
    assert!(!same("second.example.com"));
    let (old, new) = (server(&first, "second.example.com"), server(&second, "second.example.com"));
    assert!(Arc::ptr_eq(old.http().unwrap(), new.http().unwrap()), "its routes are no others");
    assert_eq!(
        old.identity().unwrap().policy(),
        new.identity().unwrap().policy(),
        "tickets stay good"
    );
    let changed = first.certificates.iter().zip(&second.certificates);
    assert_eq!(changed.filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
}

#[test]
fn a_new_file_of_a_certificate_touches_only_its_own_server() {
    let mut world = three_hosts();
    let first = world.compile();
    world.work();
    let taken = world.now.pem.taken;
    world.write_pair("2", "2");
    let second = world.compile();
    assert_eq!(world.work(), (1, 1), "loaded and configured");
    assert_eq!(world.now.pem.taken, taken + 2, "certificate and key");
    let same = |host| Arc::ptr_eq(server(&first, host), server(&second, host));
    assert!(!same("httpbin.example.com"));
    assert!(same("second.example.com") && same("third.example.com"));
}

#[test]
fn a_new_rule_touches_only_its_own_host() {
    let mut world = three_hosts();
    let first = world.compile();
    world.work();
    world.write("second.yaml", &host_with_secret("second").replace("/delay", "/late"));
    let second = world.compile();
    assert_eq!(world.work(), (0, 0), "no pair is loaded, no server configured");
    let same = |host| Arc::ptr_eq(server(&first, host), server(&second, host));
    assert!(same("httpbin.example.com") && same("third.example.com"));
    assert!(!same("second.example.com"));
}

#[test]
fn nothing_told_is_nothing_done() {
    let mut world = three_hosts();
    let first = world.compile();
    world.work();
    let second = world.compile();
    assert_eq!(world.work(), (0, 0));
    assert!(Arc::ptr_eq(&first.listeners[0], &second.listeners[0]));
    assert_eq!(first.certificates, second.certificates);
}

#[test]
fn hosts_that_come_move_and_go_leave_the_others_as_they_are() {
    let mut world = three_hosts();
    let first = world.compile();
    world.work();
    world.write("second.yaml", &format!("# moved\n{}", host_with_secret("second")));
    world.write("fourth.yaml", &host_with_secret("fourth"));
    world.write("fourth-secret.yaml", &secret("fourth", "4"));
    let second = world.compile();
    assert_eq!(world.work(), (1, 1), "only the fourth");
    for host in ["httpbin.example.com", "second.example.com", "third.example.com"] {
        assert!(Arc::ptr_eq(server(&first, host), server(&second, host)), "{host}");
    }
    let origins = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.certificates.iter().map(|certificate| certificate.origin.to_string()).collect()
    };
    assert_ne!(origins(&first), origins(&second)[..3], "it moved by a line");
    world.remove("third.yaml");
    let third = world.compile();
    assert_eq!(world.work(), (0, 0));
    assert_eq!(third.certificates.len(), 3);
    let Serves::Tls(servers) = &third.listeners[0].serves else { panic!("no TLS") };
    assert!(servers.find("third.example.com").is_none());
}

#[test]
fn servers_with_the_same_certificate_share_one() {
    let other = PAGE.replace("httpbin", "other").replace("mygateway", "othergateway");
    let mut world = World::page();
    world.write("other.yaml", &other);
    let first = world.compile();
    assert_eq!(world.work(), (1, 2), "loaded once, configured for each");
    let policy = |host| server(&first, host).identity().unwrap().policy();
    assert_ne!(policy("httpbin.example.com"), policy("other.example.com"), "but no tickets");
    world.write_pair("2", "2");
    world.compile();
    assert_eq!(world.work(), (1, 2));
}

fn page_with_certificates(text: &str) -> World {
    let page = page_with_credential().replace("credentialName: cred", text);
    World::new(&[("page.yaml", &page), ("backend.yaml", BACKEND)])
}

/// Of the certificates that are served, by the names of their Secrets or files.
fn serials(snapshot: &Snapshot) -> Vec<&str> {
    let states = snapshot.certificates.iter().map(|certificate| &*certificate.state);
    let ready = states.filter_map(|state| match state {
        CertificateState::Ready(info) => Some(info.serial.as_str()),
        CertificateState::Missing { .. } | CertificateState::Unneeded => None,
    });
    ready.collect()
}

#[test]
fn each_of_two_certificates_keeps_its_own_last_good_version() {
    let mut world = page_with_certificates("credentialNames: [rsa, ecdsa]");
    world.mount("rsa", &[("tls.crt", "good 1"), ("tls.key", "key 1")]);
    let closed = world.compile();
    assert!(matches!(
        server(&closed, "httpbin.example.com").identity().unwrap(),
        Identity::Missing
    ));
    assert!(said(&closed).contains("there is no Secret `ecdsa`"), "{}", said(&closed));
    assert_eq!(world.work(), (1, 0), "loaded and configured");
    world.mount("ecdsa", &[("tls.crt", "good 2"), ("tls.key", "key 2")]);
    let first = world.compile();
    assert_eq!((said(&first).as_str(), serials(&first)), ("", vec!["2", "1"]));
    assert_eq!(world.work(), (1, 1));
    world.mount("ecdsa", &[("tls.crt", "good 3"), ("tls.key", "key 2")]);
    world.mount("rsa", &[("tls.crt", "good 4"), ("tls.key", "key 4")]);
    let second = world.compile();
    assert_eq!(serials(&second), ["2", "4"]);
    assert!(said(&second).contains("the last good certificate stays"), "{}", said(&second));
    assert_eq!(world.work(), (1, 1));
    let policy = |snapshot| server(snapshot, "httpbin.example.com").identity().unwrap().policy();
    assert_eq!(policy(&first), policy(&second), "tickets stay good");
}

#[test]
fn of_two_pairs_of_files_only_what_changed_is_loaded() {
    let files = |name| format!("{{serverCertificate: /{name}.crt, privateKey: /{name}.key}}");
    let text = format!("tlsCertificates: [{}, {}]", files("a"), files("b"));
    let mut world = page_with_certificates(&text);
    for name in ["a", "b"] {
        world.write_pem(&format!("/{name}.crt"), "good 1");
        world.write_pem(&format!("/{name}.key"), "key 1");
    }
    let first = world.compile();
    assert_eq!((said(&first).as_str(), serials(&first)), ("", vec!["1", "1"]));
    assert_eq!(world.work(), (1, 1), "the same contents are loaded once");
    world.write_pem("/b.crt", "good 2");
    world.write_pem("/b.key", "key 2");
    let second = world.compile();
    assert_eq!((said(&second).as_str(), serials(&second)), ("", vec!["1", "2"]));
    assert_eq!(world.work(), (1, 1));
    assert!(Arc::ptr_eq(&first.certificates[0], &second.certificates[0]));
}

#[test]
fn tickets_end_with_the_policy_that_they_were_made_under() {
    let mut world = World::page();
    let policy = |snapshot: &Snapshot| -> Option<TlsPolicy> {
        server(snapshot, "httpbin.example.com").identity().unwrap().policy()
    };
    let first = world.compile();
    world.write_pair("2", "2");
    let second = world.compile();
    assert_eq!(policy(&first), policy(&second), "a renewed certificate is no new policy");
    let strict = PAGE.replace("mode: SIMPLE", "mode: SIMPLE\n      minProtocolVersion: TLSV1_3");
    world.write("page.yaml", &strict);
    let third = world.compile();
    assert_ne!(policy(&second), policy(&third));
    world.write_pair("3", "2");
    world.write("page.yaml", PAGE);
    let fourth = world.compile();
    assert_ne!(policy(&third), policy(&fourth), "also where an old pair is kept");
    assert!(said(&fourth).contains("the last good certificate stays in use"), "{}", said(&fourth));
}

#[test]
fn a_backend_that_moves_changes_every_route_to_it() {
    let mut world = three_hosts();
    let before = world.compile();
    world.write("backend.yaml", &BACKEND.replace("10.0.0.2", "10.0.0.9"));
    let after = world.compile();
    assert_eq!(world.work().1, 3, "no server is configured for it but at the start");
    for host in ["httpbin.example.com", "second.example.com", "third.example.com"] {
        assert!(
            routes(server(&before, host).http().unwrap(), host)[0].contains("10.0.0.2"),
            "{host}"
        );
        assert!(
            routes(server(&after, host).http().unwrap(), host)[0].contains("10.0.0.9"),
            "{host}"
        );
    }
}

#[test]
fn the_same_resource_in_two_files_is_used_once_whichever_goes() {
    let mut world = World::page();
    world.write("zz-copy.yaml", PAGE);
    let both = world.compile();
    let text = said(&both);
    assert!(text.contains("zz-copy.yaml:1: error: Gateway default/mygateway: metadata.name"));
    assert!(text.contains("is already defined at page.yaml:1"), "{text}");
    world.remove("page.yaml");
    let one = world.compile();
    assert_eq!(said(&one), "");
    assert!(matches!(server(&one, "httpbin.example.com").identity().unwrap(), Identity::Ready(_)));
    world.write("page.yaml", PAGE);
    assert_eq!(said(&world.compile()), text);
    world.remove("zz-copy.yaml");
    assert_eq!(said(&world.compile()), "");
}

#[test]
fn documents_with_the_same_text_are_told_apart() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80}]}\n";
    let mut world = World::new(&[("b.yaml", &format!("# one\n---\n{text}---\n{text}"))]);
    world.compile();
    world.write("a.yaml", text);
    world.compile();
    world.write("b.yaml", &format!("# one\n---\n{text}"));
    assert!(said(&world.compile()).contains("b.yaml:3: error: Service default/x"));
    world.remove("b.yaml");
    assert_eq!(said(&world.compile()), "");
}

#[test]
fn a_resource_may_move_to_another_file() {
    let mut world = World::page();
    let first = world.compile();
    world.remove("page.yaml");
    world.write("moved.yaml", PAGE);
    let second = world.compile();
    assert_eq!(said(&second), "");
    assert_eq!(second.listeners.len(), first.listeners.len());
    assert!(second.certificates[0].origin.to_string().starts_with("moved.yaml:"));
}

#[test]
fn a_certificate_that_was_served_for_another_name_is_no_last_good_one() {
    let mut world = World::page();
    world.compile();
    world.write("page.yaml", &PAGE.replace("certs/tls.crt", "certs/other.crt"));
    let snapshot = world.compile();
    assert!(matches!(
        server(&snapshot, "httpbin.example.com").identity().unwrap(),
        Identity::Missing
    ));
}

/// The page's second Gateway: with mutual TLS.
fn mutual_page() -> World {
    let page = PAGE.replace("mode: SIMPLE", "mode: MUTUAL\n      caCertificates: /ca.pem");
    let mut world = World::new(&[("page.yaml", &page), ("backend.yaml", BACKEND)]);
    world.write_pair("1", "1");
    world.write_pem("/ca.pem", "good ca 1");
    world
}

fn is_served(snapshot: &Snapshot) -> bool {
    matches!(server(snapshot, "httpbin.example.com").identity().unwrap(), Identity::Ready(_))
}

/// What the clients of the page's host are held to.
fn ca(snapshot: &Snapshot) -> Vec<&str> {
    let authorities = snapshot.certificates[0].client_ca.iter();
    authorities.map(|ca| ca.info.serial.as_str()).collect()
}

#[test]
fn a_host_whose_ca_was_never_good_is_closed() {
    let mut world = mutual_page();
    world.now.pem.files.remove("/ca.pem");
    let output = world.output();
    assert!(!is_served(&output.snapshot));
    assert!(world.now.pem.wanted.contains("/ca.pem"), "awaited");
    let said = said(&output.snapshot);
    assert!(said.contains("tls.caCertificates: /ca.pem does not exist (its hosts are closed"));
    let CertificateState::Missing { reason } = &*output.snapshot.certificates[0].state else {
        panic!("{:?}", output.snapshot.certificates);
    };
    assert_eq!(reason, "/ca.pem does not exist");
    world.write_pem("/ca.pem", "bad");
    assert!(!is_served(&world.compile()));
    world.write_pem("/ca.pem", "good ca 2");
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
        world.now.pem.files.remove("/ca.pem");
        if let Some(bad) = bad {
            world.write_pem("/ca.pem", bad);
        }
        let snapshot = world.compile();
        assert!(is_served(&snapshot));
        assert_eq!(ca(&snapshot), ["good ca 1"]);
        let CertificateState::Ready(info) = &*snapshot.certificates[0].state else { panic!() };
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
    world.write_pem("/ca.pem", "good ca 1");
    assert!(is_served(&world.compile()));
    let moved = page.replace("/ca.pem", "/other.pem");
    world.write("page.yaml", &moved);
    assert!(!is_served(&world.compile()), "another CA was asked for");
    let listed = page.replace("/ca.pem", "/ca.pem\n      caCrl: /crl.pem");
    world.write("page.yaml", &listed);
    assert!(!is_served(&world.compile()), "a list of revoked certificates was asked for");
    world.write_pem("/crl.pem", "good crl");
    assert!(is_served(&world.compile()));
    world.write_pem("/crl.pem", "");
    let snapshot = world.compile();
    assert!(is_served(&snapshot));
    assert!(said(&snapshot).contains("clients are checked as before"), "{}", said(&snapshot));
}

#[test]
fn tickets_belong_to_a_server_and_all_of_its_rules() {
    let page = |extra: &str| {
        let mode = format!("mode: MUTUAL\n      caCertificates: /ca.pem{extra}");
        PAGE.replace("mode: SIMPLE", &mode)
    };
    let listed = "\n      caCrl: /crl.pem";
    let mut world = World::page();
    world.write_pem("/ca.pem", "good ca 1");
    world.write_pem("/crl.pem", "good crl 1");
    let mut policies = Vec::new();
    let mut note = |world: &mut World| {
        let snapshot = world.compile();
        let policy = server(&snapshot, "httpbin.example.com").identity().unwrap().policy();
        policies.push(policy.unwrap_or_else(|| panic!("{}", said(&snapshot))));
    };
    note(&mut world);
    world.write("page.yaml", &page(""));
    note(&mut world);
    world.write_pem("/ca.pem", "good ca 2");
    note(&mut world);
    world.write("page.yaml", &page(listed));
    note(&mut world);
    world.write_pem("/crl.pem", "good crl 2");
    note(&mut world);
    world.write("page.yaml", &page(&format!("{listed}\n      subjectAltNames: [a]")));
    note(&mut world);
    world.write("page.yaml", &page(&format!("{listed}\n      subjectAltNames: [b]")));
    note(&mut world);
    world.write(
        "page.yaml",
        &PAGE.replace("mode: SIMPLE", "mode: SIMPLE\n      ecdhCurves: [P-256]"),
    );
    note(&mut world);
    for (index, policy) in policies.iter().enumerate() {
        assert!(policies[..index].iter().all(|other| other != policy), "{index}");
    }
}

#[test]
fn tickets_stay_good_while_clients_are_checked_as_before() {
    let mut world = mutual_page();
    let policy =
        |snapshot: &Snapshot| server(snapshot, "httpbin.example.com").identity().unwrap().policy();
    let first = world.compile();
    for bad in ["bad", "good ca 1"] {
        world.write_pem("/ca.pem", bad);
        world.write_pair(bad, bad);
        let next = world.compile();
        assert!(is_served(&next));
        assert_eq!(policy(&first), policy(&next), "{bad}");
    }
}

#[test]
fn a_secret_with_the_clients_ca_counts_for_its_servers_alone() {
    let mutual = host_with_secret("second").replace("mode: SIMPLE", "mode: MUTUAL");
    let mut world = three_hosts();
    world.write("second.yaml", &mutual);
    let first = world.compile();
    assert!(matches!(server(&first, "second.example.com").identity().unwrap(), Identity::Missing));
    assert!(said(&first).contains("didn't have expected keys (cacert) or (ca.crt)"));
    let beside = |ca: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: second-cacert, namespace: \
             istio-system}}\nstringData: {{cacert: {ca}}}\n"
        )
    };
    world.work();
    world.write("ca.yaml", &beside("good ca 1"));
    let second = world.compile();
    assert_eq!(said(&second), "");
    assert_eq!(world.work(), (0, 1));
    assert!(matches!(
        server(&second, "second.example.com").identity().unwrap(),
        Identity::Ready(_)
    ));
    world.write("ca.yaml", &beside("good ca 2"));
    let third = world.compile();
    assert_eq!(world.work(), (0, 1));
    for host in ["httpbin.example.com", "third.example.com"] {
        assert!(Arc::ptr_eq(server(&second, host), server(&third, host)), "{host}");
    }
    let policy =
        |snapshot: &Snapshot| server(snapshot, "second.example.com").identity().unwrap().policy();
    assert_ne!(policy(&second), policy(&third));
}

#[test]
fn hosts_that_are_made_of_the_same_share_their_routes() {
    let host = "- \"httpbin.example.com\"\n";
    let (server, service) = PAGE.split_once("---").unwrap();
    let (in_server, in_service) =
        (format!("{host}    - other.example.com\n"), format!("{host}  - other.example.com\n"));
    let (server, service) = (server.replace(host, &in_server), service.replace(host, &in_service));
    let twice = format!("{server}---{service}");
    let mut world = World::page();
    world.write("page.yaml", &twice);
    let snapshot = world.compile();
    let Serves::Tls(servers) = &snapshot.listeners[0].serves else { panic!("no TLS") };
    let hosts = &servers.find("other.example.com").unwrap().http().unwrap().hosts;
    let set = |host| hosts.find(host).unwrap().route_set();
    assert!(Arc::ptr_eq(set("httpbin.example.com"), set("other.example.com")));
}

const PASSTHROUGH: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: pass}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: pass, protocol: TLS}
    hosts: ['*.pass.example.com']
    tls: {mode: PASSTHROUGH}
  - port: {number: 9000, name: tcp, protocol: TCP}
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pass}
spec:
  hosts: ['*.pass.example.com']
  gateways: [pass]
  tls:
  - match: [{sniHosts: [b.pass.example.com], port: 8443}]
    route: [{destination: {host: 10.0.0.7, port: {number: 1}}}]
  - match: [{sniHosts: [a.pass.example.com, b.pass.example.com]}]
    route: [{destination: {host: httpbin, port: {number: 8000}}}]
  tcp:
  - route: [{destination: {host: 10.0.0.7, port: {number: 1}}}]
";

/// The routes of a TLS server that passes TLS on.
fn passed(server: &TlsServer) -> &Arc<TcpTable> {
    match &server.serves {
        TlsServes::Passthrough(table) => table,
        TlsServes::Http(..) | TlsServes::Tcp(..) => panic!("it is terminated"),
    }
}

#[test]
fn of_tables_for_connections_only_what_changed_is_built_anew() {
    let mut world = World::page();
    world.write("pass.yaml", PASSTHROUGH);
    let first = world.compile();
    assert_eq!(said(&first), "");
    let tcp = |snapshot: &Snapshot| match &snapshot.listeners[1].serves {
        Serves::Tcp(table) => Arc::clone(table),
        other @ (Serves::Http(_) | Serves::Tls(_)) => panic!("{other:?}"),
    };
    let name = "a.pass.example.com";
    let table = Arc::clone(passed(server(&first, name)));
    let mut hosts: Vec<_> =
        table.hosts.iter().map(|(host, routes)| (host.to_string(), routes.0.len())).collect();
    hosts.sort();
    assert_eq!(hosts, [(name.to_owned(), 1), ("b.pass.example.com".to_owned(), 1)]);

    world.write("other.yaml", &BACKEND.replace("httpbin", "other"));
    let second = world.compile();
    assert!(Arc::ptr_eq(&table, passed(server(&second, name))));
    assert!(Arc::ptr_eq(&tcp(&first), &tcp(&second)));
    assert!(Arc::ptr_eq(&first.listeners[0], &second.listeners[0]));

    world.write("backend.yaml", &BACKEND.replace("10.0.0.2", "10.0.0.9"));
    let third = world.compile();
    assert!(!Arc::ptr_eq(&table, passed(server(&third, name))));
    assert!(Arc::ptr_eq(&tcp(&first), &tcp(&third)), "it leads elsewhere");

    world.write(
        "pass.yaml",
        &PASSTHROUGH.replace("mode: PASSTHROUGH", "mode: SIMPLE, credentialName: x"),
    );
    let fourth = world.compile();
    let anything = server(&fourth, name);
    assert!(matches!(&anything.serves, TlsServes::Tcp(Identity::Missing, _)), "{anything:?}");
    world.write("pass.yaml", PASSTHROUGH);
    let fifth = world.compile();
    assert_eq!(said(&fifth), "");
    passed(server(&fifth, name));
}

#[test]
fn ports_that_lead_to_one_share_its_listener() {
    let page = |name: &str, port: u16| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\n\
             spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  \
             - port: {{number: {port}, name: http, protocol: HTTP}}\n    \
             hosts: [{name}.example.com]\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}}}\nspec:\n  hosts: [{name}.example.com]\n  \
             gateways: [{name}]\n  http: [{{directResponse: {{status: 200}}}}]\n"
        )
    };
    for ports in [(8080, 80), (80, 8080)] {
        let mut world = World::new(&[]);
        world.write("bookinfo.yaml", &page("bookinfo", ports.0));
        world.write("httpbin.yaml", &page("httpbin", ports.1));
        let snapshot = world.compile();
        assert_eq!(said(&snapshot), "");
        let [listener] = &*snapshot.listeners else { panic!("{:?}", snapshot.listeners) };
        let ListenerKey::Ip { port, .. } = listener.key else { panic!("no port") };
        assert_eq!((listener.gateway_port, port), (ports.0, BindPort::Fixed(8080)));
        let Serves::Http(table) = &listener.serves else { panic!("{listener:?}") };
        for host in ["bookinfo.example.com", "httpbin.example.com"] {
            assert!(table.hosts.find(host).is_some(), "{host}");
        }
    }
}
