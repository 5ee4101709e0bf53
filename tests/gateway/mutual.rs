//! Mutual TLS: which clients get in, what they are told otherwise, and that no ticket, no missing
//! file and no reload lets in who would not get in by a handshake.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::HandshakeKind;

use crate::harness::backend::Backend;
use crate::harness::certificate::{Authority, Leaf};
use crate::harness::client::{Client, Response, Tls};
use crate::harness::gateway::{Builder, Driver, Gateway, QUIET, on_each_driver};
use crate::harness::{eventually, outside, within, yaml};

const HOST: &str = "mutual.test";
const OTHER: &str = "other.test";

/// In the text of errors and of tools.
const NO_CERTIFICATE: &str = "CertificateRequired";
const UNKNOWN_CA: &str = "UnknownCA";
const REVOKED: &str = "CertificateRevoked";

const CA: &str = "      caCertificates: /certs/clients/ca.pem\n";
const CRL: &str = "      caCrl: /certs/clients/crl.pem\n";

/// A gateway with one host in `mode`, and whose certificates its clients have.
struct Site {
    gateway: Gateway,
    clients: Authority,
    _backend: Backend,
}

impl Site {
    fn new(driver: Driver, mode: &str, more: &str) -> Self {
        let clients = Authority::new();
        let (backend, builder) = servers(driver, &yaml::mutual_server(&[HOST], "web", mode, more));
        let gateway = builder.file("root/certs/clients/ca.pem", &clients.pem()).start();
        Self { gateway, clients, _backend: backend }
    }

    fn mutual(more: &str) -> Self {
        Self::new(Driver::Auto, "MUTUAL", &format!("{CA}{more}"))
    }

    fn set_ca(&self, pem: &str) {
        self.gateway.write_file("root/certs/clients/ca.pem", pem);
    }

    fn get(&self, tls: &Tls) -> std::io::Result<Response> {
        get(&self.gateway, tls, HOST)
    }

    /// A client that shows `leaf`.
    fn client(&self, leaf: &Leaf) -> Tls {
        self.gateway.tls().identified(leaf)
    }

    #[track_caller]
    fn refuses(&self, tls: &Tls, why: &str) {
        let error = self.get(tls).map(|response| response.status).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// A backend, and a gateway with `servers` in front of it.
fn servers(driver: Driver, servers: &str) -> (Backend, Builder) {
    let backend = Backend::start("a");
    let route = yaml::virtual_service("all", "web", &["*"], &yaml::all_to("backend.test"));
    let builder = Gateway::builder()
        .driver(driver)
        .workers(1)
        .certificate("web", &[HOST])
        .certificate("other", &[OTHER])
        .resource("gateway.yaml", &yaml::gateway("web", servers))
        .resource("route.yaml", &route)
        .resource("backend.yaml", &yaml::backend("backend.test", backend.port()));
    (backend, builder)
}

/// A request on a new connection; in TLS 1.3 it is only the answer that tells whether the client
/// got in.
fn get(gateway: &Gateway, tls: &Tls, host: &str) -> std::io::Result<Response> {
    let mut client = Client::tls(tls, gateway.address(443), host)?;
    client.request("GET", "/head", "", b"")
}

/// Whether the connection was resumed, after an answer on it.
fn resumed(gateway: &Gateway, tls: &Tls, host: &str) -> bool {
    let mut client = Client::tls(tls, gateway.address(443), host).unwrap();
    assert_eq!(client.get("/status/200").status, 200);
    client.connection().handshake_kind() == Some(HandshakeKind::Resumed)
}

fn both_versions(gateway: &Gateway) -> [Tls; 2] {
    let roots = || gateway.authority().roots();
    [Tls::only_tls12(roots()), Tls::only_tls13(roots())]
}

#[test]
fn only_clients_of_the_ca_get_in() {
    on_each_driver(|driver| {
        let site = Site::new(driver, "MUTUAL", CA);
        let (ours, theirs) = (site.clients.leaf(&["a"]), Authority::new().leaf(&["a"]));
        for tls in both_versions(&site.gateway) {
            assert_eq!(site.get(&tls.identified(&ours)).unwrap().status, 200);
            site.refuses(&tls.identified(&theirs), UNKNOWN_CA);
        }
        let [old, new] = both_versions(&site.gateway);
        site.refuses(&new, NO_CERTIFICATE);
        site.refuses(&old, "HandshakeFailure");
        let metrics = site.gateway.admin_get("/stats/prometheus").text();
        for (name, value) in [("no_cert", 2), ("error", 2)] {
            let line = format!("envoy_listener_ssl_fail_verify_{name} {value}\n");
            assert!(metrics.contains(&line), "{line} in\n{metrics}");
        }
        let log = site.gateway.access_log(6).join("\n");
        assert!(log.contains("no_client_certificate"), "{log}");
        assert!(log.contains("client_certificate_of_unknown_ca"), "{log}");
    });
}

#[test]
fn what_a_client_proved_is_told_to_the_backend_and_nothing_else() {
    let site = Site::new(Driver::Auto, "OPTIONAL_MUTUAL", CA);
    let head = |tls: &Tls| {
        let mut client = Client::tls(tls, site.gateway.address(443), HOST).unwrap();
        let forged = "x-forwarded-client-cert: Hash=forged\r\n";
        client.request("GET", "/head", forged, b"").unwrap().text()
    };
    let anonymous = head(&site.gateway.tls());
    assert!(!anonymous.contains("x-forwarded-client-cert"), "{anonymous}");
    let leaf = site.clients.leaf(&["client.test", "second.test"]);
    let tls = site.client(&leaf);
    for kind in ["first", "resumed"] {
        let told = head(&tls);
        let lines: Vec<_> =
            told.lines().filter(|line| line.starts_with("x-forwarded-client-cert")).collect();
        let [line] = lines[..] else { panic!("{kind}: {told}") };
        let hash = leaf.fingerprint().replace(':', "").to_ascii_lowercase();
        let begin = format!("x-forwarded-client-cert: Hash={hash};Cert=\"");
        assert!(line.starts_with(&begin), "{line}");
        let pem = line[begin.len()..].split('"').next().unwrap();
        let pem = pem.replace("%20", " ").replace("%0A", "\n").replace("%2B", "+");
        let pem = pem.replace("%2F", "/").replace("%3D", "=");
        assert_eq!(pem.trim(), leaf.chain_pem.replace('\r', "").trim(), "in the escapes of URLs");
        let end = ";Subject=\"CN=client.test\";URI=;DNS=client.test;DNS=second.test";
        assert!(line.ends_with(end), "{kind}: {line}");
        assert!(line.contains(";Cert=\"-----BEGIN%20CERTIFICATE-----%0A"), "{line}");
        assert!(!told.contains("forged"), "{told}");
    }
}

#[test]
fn a_certificate_is_optional_where_it_is_but_a_bad_one_is_not_taken() {
    let site = Site::new(Driver::Auto, "OPTIONAL_MUTUAL", CA);
    assert_eq!(site.get(&site.gateway.tls()).unwrap().status, 200);
    assert_eq!(site.get(&site.client(&site.clients.leaf(&["a"]))).unwrap().status, 200);
    site.refuses(&site.client(&Authority::new().leaf(&["a"])), UNKNOWN_CA);
}

#[test]
fn a_host_without_its_ca_is_closed_until_it_comes_and_others_are_served() {
    let clients = Authority::new();
    let both = [
        yaml::mutual_server(&[HOST], "web", "MUTUAL", CA),
        yaml::https_server(443, &[OTHER], "other"),
    ];
    let (_backend, builder) = servers(Driver::Auto, &both.concat());
    let gateway = builder.start();
    let client = gateway.tls().identified(&clients.leaf(&["a"]));
    for tls in [&gateway.tls(), &client] {
        let error = get(&gateway, tls, HOST).unwrap_err().to_string();
        assert!(!error.contains("alert"), "closed without a word: {error}");
    }
    assert_eq!(gateway.get(OTHER, "/status/200").status, 200);
    assert!(gateway.logged("/certs/clients/ca.pem does not exist"));
    for page in ["/certs", "/config_dump"] {
        let text = gateway.admin_get(page).text();
        assert!(text.contains("/certs/clients/ca.pem does not exist"), "{page}: {text}");
    }
    let metrics = gateway.admin_get("/stats/prometheus").text();
    assert!(metrics.contains("\nringgate_certificates_missing 1\n"), "{metrics}");
    gateway.write_file("root/certs/clients/ca.pem", &clients.pem());
    eventually("the host is served", || get(&gateway, &client, HOST).is_ok());
    assert!(get(&gateway, &gateway.tls(), HOST).is_err(), "by clients with a certificate alone");
    let certificates = gateway.admin_get("/certs").text();
    assert!(certificates.contains("\"path\": \"/certs/clients/ca.pem\""), "{certificates}");
}

#[test]
fn a_broken_ca_leaves_the_last_good_one() {
    let site = Site::mutual("");
    let (ours, theirs) = (site.clients.leaf(&["a"]), Authority::new().leaf(&["a"]));
    assert_eq!(site.get(&site.client(&ours)).unwrap().status, 200);
    site.set_ca("not a certificate");
    eventually("it is reported", || site.gateway.logged("clients are checked as before"));
    std::fs::remove_file(site.gateway.path("root/certs/clients/ca.pem")).unwrap();
    eventually("it is reported", || site.gateway.logged("ca.pem does not exist"));
    assert_eq!(site.get(&site.client(&ours)).unwrap().status, 200);
    site.refuses(&site.client(&theirs), UNKNOWN_CA);
    site.refuses(&site.gateway.tls(), NO_CERTIFICATE);
}

#[test]
fn who_is_of_a_former_ca_neither_resumes_nor_goes_on() {
    let site = Site::mutual("");
    let leaf = site.clients.leaf(&["a"]);
    let fresh = Authority::new();
    for tls in both_versions(&site.gateway) {
        site.set_ca(&site.clients.pem());
        let tls = tls.identified(&leaf);
        eventually("the CA is in force", || site.get(&tls).is_ok());
        assert!(resumed(&site.gateway, &tls, HOST), "a session resumes under the same CA");
        let mut open = Client::tls(&tls, site.gateway.address(443), HOST).unwrap();
        assert_eq!(open.get("/status/200").status, 200);
        site.set_ca(&fresh.pem());
        eventually("the CA is in force", || site.get(&site.client(&leaf)).is_err());
        site.refuses(&tls, UNKNOWN_CA);
        let next = open.request("GET", "/status/200", "", b"").map(|response| response.status);
        assert!(!matches!(next, Ok(200)), "an open connection: {next:?}");
        assert_eq!(site.get(&site.client(&fresh.leaf(&["a"]))).unwrap().status, 200);
    }
}

#[test]
fn who_is_revoked_neither_gets_in_nor_resumes() {
    let site = Site::mutual(CRL);
    let leaf = site.clients.leaf(&["a"]);
    let other = site.clients.leaf(&["b"]);
    assert!(site.get(&site.client(&leaf)).is_err(), "closed: the list is not there");
    let set_list = |list: &str| site.gateway.write_file("root/certs/clients/crl.pem", list);
    for tls in both_versions(&site.gateway) {
        set_list(&site.clients.revocation_list(&[&[9]]));
        let tls = tls.identified(&leaf);
        eventually("the list is in force", || site.get(&tls).is_ok());
        assert!(resumed(&site.gateway, &tls, HOST));
        set_list(&site.clients.revocation_list(&[&[9], &leaf.serial()]));
        eventually("the list is in force", || site.get(&site.client(&leaf)).is_err());
        site.refuses(&tls, REVOKED);
        assert!(site.gateway.access_log(3).join("\n").contains("client_certificate_revoked"));
        assert_eq!(site.get(&site.client(&other)).unwrap().status, 200);
    }
    set_list("");
    eventually("it is reported", || site.gateway.logged("there is no revocation list in it"));
    site.refuses(&site.client(&leaf), REVOKED);
    set_list(&Authority::new().revocation_list(&[]));
    eventually("a list of another CA", || site.get(&site.client(&other)).is_err());
    let unlisted = "client_certificate_without_valid_crl";
    eventually("the log says so", || site.gateway.access_log(1).join("\n").contains(unlisted));
}

#[test]
fn openssl_is_told_by_the_alert_that_the_standard_has_for_it() {
    let Some(_) = outside::tool("openssl") else { return };
    let site = Site::mutual(CRL);
    let (good, revoked) = (site.clients.leaf(&["a"]), site.clients.leaf(&["b"]));
    let list = site.clients.revocation_list(&[&revoked.serial()]);
    site.gateway.write_file("root/certs/clients/crl.pem", &list);
    eventually("the host is served", || site.get(&site.client(&good)).is_ok());
    let said = |version: &str, leaf: Option<&Leaf>| {
        let mut openssl = outside::tool("openssl").unwrap();
        openssl.args(["s_client", "-ign_eof", version, "-servername", HOST, "-connect"]);
        openssl.arg(site.gateway.address(443).to_string());
        if let Some(leaf) = leaf {
            site.gateway.write_file("client.pem", &[&*leaf.chain_pem, &leaf.key_pem].concat());
            openssl.arg("-cert").arg(site.gateway.path("client.pem"));
        }
        outside::output(&mut openssl).1
    };
    let stranger = Authority::new().leaf(&["a"]);
    let cases = [
        ("-tls1_2", None, 40),
        ("-tls1_3", None, 116),
        ("-tls1_2", Some(&stranger), 48),
        ("-tls1_3", Some(&stranger), 48),
        ("-tls1_2", Some(&revoked), 44),
        ("-tls1_3", Some(&revoked), 44),
    ];
    for (version, leaf, number) in cases {
        let text = said(version, leaf);
        assert!(text.contains(&format!("SSL alert number {number}\n")), "{version}: {text}");
    }
}

#[test]
fn who_has_an_expired_certificate_does_not_resume() {
    let site = Site::mutual("");
    let kind = |tls: &Tls| {
        let mut client = Client::tls(tls, site.gateway.address(443), HOST)?;
        client.request("GET", "/status/200", "", b"")?;
        std::io::Result::Ok(client.connection().handshake_kind())
    };
    for version in [Tls::only_tls12, Tls::only_tls13] {
        // Longer where the machine is too slow to get in and back in time.
        let tls = [4, 16, 64].into_iter().find_map(|seconds| {
            let leaf = site.clients.leaf_for(&["a"], Duration::from_secs(seconds));
            let tls = version(site.gateway.authority().roots()).identified(&leaf);
            kind(&tls).ok()?;
            matches!(kind(&tls), Ok(Some(HandshakeKind::Resumed))).then_some(tls)
        });
        let tls = tls.expect("a session that resumes");
        assert!(within(Duration::from_secs(80), || kind(&tls).is_err()), "it resumes for ever");
        site.refuses(&tls, "CertificateExpired");
        let why = "client_certificate_out_of_date";
        eventually("the log says so", || site.gateway.access_log(1).join("\n").contains(why));
    }
}

#[test]
fn a_session_of_one_server_is_worth_nothing_at_another() {
    let Some(_) = outside::tool("openssl") else { return };
    let both = [
        yaml::https_server(443, &[OTHER], "other"),
        yaml::mutual_server(&[HOST], "web", "MUTUAL", CA),
    ];
    let clients = Authority::new();
    let (_backend, builder) = servers(Driver::Auto, &both.concat());
    let gateway = builder.file("root/certs/clients/ca.pem", &clients.pem()).start();
    let address = gateway.address(443).to_string();
    let session = gateway.path("session.pem");
    let request = |name: &str, version: &str, session_option: &str| {
        let command = format!(
            "printf 'GET /status/200 HTTP/1.1\\r\\nhost: {name}\\r\\nconnection: close\\r\\n\\r\\n' | \
             openssl s_client -connect {address} -servername {name} {version} -ign_eof -CAfile {} \
             {session_option} {}",
            gateway.path("ca.pem").display(),
            session.display()
        );
        outside::output(std::process::Command::new("sh").args(["-c", &command])).1
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let first = request(OTHER, version, "-sess_out");
        assert!(first.contains("HTTP/1.1 200"), "{first}");
        let again = request(OTHER, version, "-sess_in");
        assert!(again.contains("Reused, TLSv1"), "the session is good where it is from: {again}");
        let there = request(HOST, version, "-sess_in");
        assert!(!there.contains("HTTP/1.1"), "{there}");
        assert!(there.contains("alert"), "{there}");
    }
}

#[test]
fn a_server_that_becomes_mutual_asks_clients_that_knew_it_before() {
    let site = Site::new(Driver::Auto, "SIMPLE", "");
    for tls in both_versions(&site.gateway) {
        let set = |server: &str| {
            site.gateway.write_resource("gateway.yaml", &yaml::gateway("web", server));
        };
        set(&yaml::https_server(443, &[HOST], "web"));
        eventually("nobody is asked", || site.get(&tls).is_ok());
        assert!(resumed(&site.gateway, &tls, HOST));
        set(&yaml::mutual_server(&[HOST], "web", "MUTUAL", CA));
        eventually("everybody is asked", || site.get(&site.gateway.tls()).is_err());
        assert!(site.get(&tls).is_err(), "no ticket replaces a certificate");
    }
}

#[test]
fn names_and_pins_are_demanded() {
    let (wanted, unwanted) = ("[ \"spiffe://x\", wanted.test ]", "unwanted.test");
    let site = Site::mutual(&format!("      subjectAltNames: {wanted}\n"));
    assert_eq!(site.get(&site.client(&site.clients.leaf(&["wanted.test"]))).unwrap().status, 200);
    site.refuses(&site.client(&site.clients.leaf(&[unwanted])), "alert");
    let leaf = site.clients.leaf(&["pinned.test"]);
    let pin = format!("      verifyCertificateHash: [ \"{}\" ]\n", leaf.fingerprint());
    let server = yaml::mutual_server(&[HOST], "web", "MUTUAL", &format!("{CA}{pin}"));
    site.gateway.write_resource("gateway.yaml", &yaml::gateway("web", &server));
    eventually("the pin is in force", || site.get(&site.client(&leaf)).is_ok());
    site.refuses(&site.client(&site.clients.leaf(&["wanted.test"])), "alert");
    let other = site.clients.leaf(&["other.test"]);
    let pin = format!("      verifyCertificateSpki: [ \"{}\" ]\n", other.key_pin());
    let server = yaml::mutual_server(&[HOST], "web", "MUTUAL", &format!("{CA}{pin}"));
    site.gateway.write_resource("gateway.yaml", &yaml::gateway("web", &server));
    eventually("the pin of the key is in force", || site.get(&site.client(&other)).is_ok());
    site.refuses(&site.client(&leaf), "alert");
}

#[test]
fn any_certificate_gets_in_where_that_is_asked_for_and_is_told_of() {
    let site = Site::mutual("      insecureSkipVerify: true\n");
    let told = site.get(&site.client(&Authority::new().leaf(&["stranger.test"]))).unwrap().text();
    assert!(told.contains(";DNS=stranger.test"), "{told}");
    site.refuses(&site.gateway.tls(), NO_CERTIFICATE);
}

#[test]
fn an_alert_reaches_a_client_that_is_talking_already() {
    // TLS 1.3: the client is done before the gateway has seen its certificate, and sends on.
    let site = Site::mutual("");
    let tls = Tls::only_tls13(site.gateway.authority().roots());
    for _ in 0..20 {
        let mut client = Client::tls(&tls, site.gateway.address(443), HOST).unwrap();
        let body = vec![b'x'; 64 * 1024];
        let length = format!("content-length: {}\r\n", body.len());
        let error = client.request("POST", "/sum", &length, &body).unwrap_err().to_string();
        assert!(error.contains(NO_CERTIFICATE), "{error}");
    }
}

#[test]
fn pythons_client_says_why_it_is_refused() {
    let Some(mut python) = outside::python("ssl") else { return };
    let site = Site::mutual("");
    let stranger = Authority::new().leaf(&["a"]);
    site.gateway.write_file("stranger.pem", &(stranger.key_pem.clone() + &stranger.chain_pem));
    let script = format!(
        "import socket, ssl\n\
         for files in [None, '{}']:\n\
         \x20   context = ssl.create_default_context(cafile='{}')\n\
         \x20   if files: context.load_cert_chain(files)\n\
         \x20   tls = context.wrap_socket(socket.create_connection(('127.0.0.1', {})),\n\
         \x20                             server_hostname='{HOST}')\n\
         \x20   try:\n\
         \x20       tls.sendall(b'GET / HTTP/1.1\\r\\nhost: {HOST}\\r\\n\\r\\n')\n\
         \x20       print(tls.recv(100))\n\
         \x20   except ssl.SSLError as error:\n\
         \x20       print(error.reason)\n",
        site.gateway.path("stranger.pem").display(),
        site.gateway.path("ca.pem").display(),
        site.gateway.address(443).port(),
    );
    let (code, text) = outside::output(python.args(["-c", &script]));
    assert_eq!(code, Some(0), "{text}");
    let reasons: Vec<_> = text.lines().collect();
    assert_eq!(reasons, ["TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA"]);
}

#[test]
fn a_mutual_host_stays_mutual_while_its_gateway_is_rewritten() {
    let site = Site::mutual("");
    let broken = yaml::gateway("web", &yaml::mutual_server(&[HOST], "web", "MUTUAL", CA))
        .replace("caCertificates", "caCertificate");
    site.gateway.write_resource("gateway.yaml", &broken);
    eventually("it is reported", || site.gateway.logged("there is no field `caCertificate`"));
    let opened = within(QUIET, || site.get(&site.gateway.tls()).is_ok());
    assert!(!opened, "a typing error opens nothing");
}

#[test]
fn a_config_map_may_hold_the_ca_and_a_secret_goes_before_it() {
    let site = Site::new(Driver::Auto, "MUTUAL", "      caCertCredentialName: client-ca\n");
    let gateway = &site.gateway;
    let why = "there is no Secret or ConfigMap `client-ca` in namespace istio-system";
    eventually("the log says what is missing", || gateway.logged(why));
    let object = |kind: &str, field: &str, key: &str, text: &str| {
        format!(
            "apiVersion: v1\nkind: {kind}\n\
             metadata: {{ name: client-ca, namespace: istio-system }}\n\
             {field}: {{ {key}: {text:?} }}\n"
        )
    };
    let other = Authority::new();
    let [ours, theirs] = [&site.clients, &other].map(|ca| site.client(&ca.leaf(&["a"])));
    let gets_in = |tls: &Tls| site.get(tls).is_ok_and(|response| response.status == 200);
    // Of two in one file, one is nobody's business.
    let stranger = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: strange }\n\
                    data: [ 1 ]\nbinaryData: { ca.crt: \"%\" }\n";
    let ca = object("ConfigMap", "data", "ca.crt", &site.clients.pem());
    gateway.write_resource("ca.yaml", &yaml::documents(&[stranger.to_owned(), ca]));
    eventually("its clients get in", || gets_in(&ours));
    site.refuses(&theirs, UNKNOWN_CA);
    let dump = gateway.admin_get("/config_dump").text();
    assert!(!dump.contains("strange"), "{dump}");
    let certificates = gateway.admin_get("/certs").text();
    assert!(certificates.contains("configmap istio-system/client-ca"), "{certificates}");

    let binary = STANDARD.encode(other.pem());
    gateway.write_resource("ca.yaml", &object("ConfigMap", "binaryData", "cacert", &binary));
    eventually("those of the other CA get in", || gets_in(&theirs));
    site.refuses(&ours, UNKNOWN_CA);

    gateway.write_resource("ca.yaml", &object("ConfigMap", "data", "other", "text"));
    let why = "found config map, but didn't have expected keys (cacert) or (ca.crt)";
    eventually("the log says what it lacks", || gateway.logged(why));
    assert!(gets_in(&theirs) && !gets_in(&ours), "as before");
    gateway.remove_resource("ca.yaml");
    eventually("its absence shows", || {
        gateway.admin_get("/config_dump").text().contains("there is no Secret or ConfigMap")
    });
    assert!(gets_in(&theirs) && !gets_in(&ours), "as before");

    gateway.write_resource("map.yaml", &object("ConfigMap", "data", "cacert", &other.pem()));
    let secret = object("Secret", "stringData", "cacert", &site.clients.pem());
    gateway.write_resource("secret.yaml", &secret);
    eventually("the Secret goes before", || gets_in(&ours));
    site.refuses(&theirs, UNKNOWN_CA);
}
