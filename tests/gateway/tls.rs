//! TLS as clients meet it: which certificate, which protocol, and what is closed without a word.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use rustls::crypto::aws_lc_rs::kx_group;
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Tls};
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::{PATIENCE, eventually, outside, yaml};

/// Servers for one exact name and for two depths of wildcards, each with its own certificate.
fn hosts(driver: Driver, backend: &Backend) -> Builder {
    let servers = [
        yaml::https_server(443, &["exact.example.com"], "exact"),
        yaml::https_server(443, &["*.example.com"], "wild"),
        yaml::https_server(443, &["*.deep.example.com"], "deep"),
    ];
    Gateway::builder()
        .driver(driver)
        .certificate("exact", &["exact.example.com"])
        .certificate("wild", &["*.example.com"])
        .certificate("deep", &["*.deep.example.com"])
        .resource("gateway.yaml", &yaml::gateway("web", &servers.concat()))
        .resource(
            "routes.yaml",
            &yaml::virtual_service("all", "web", &["*"], &yaml::all_to("backend.test")),
        )
        .resource("backend.yaml", &yaml::backend("backend.test", backend.port()))
}

/// The same with one more server for every other name and for clients without SNI.
fn hosts_and_any(backend: &Backend) -> Builder {
    let any = yaml::gateway("any", &yaml::https_server(443, &["*"], "any"));
    hosts(Driver::Auto, backend).certificate("any", &["any.test"]).resource("any.yaml", &any)
}

fn names_in_certificate(client: &Client) -> Vec<String> {
    let der = client.certificate();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    names.value.general_names.iter().map(ToString::to_string).collect()
}

fn served(gateway: &Gateway, name: &str) -> String {
    names_in_certificate(&gateway.client(name)).join(" ")
}

#[test]
fn the_most_specific_server_presents_its_certificate() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = hosts(driver, &backend).start();
        assert!(served(&gateway, "exact.example.com").contains("exact.example.com"));
        assert!(served(&gateway, "other.example.com").contains("(*.example.com)"));
        assert!(served(&gateway, "x.deep.example.com").contains("*.deep.example.com"));
        assert_eq!(gateway.get("exact.example.com", "/status/200").status, 200);
    });
}

#[test]
fn case_of_the_server_name_does_not_matter() {
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).start();
    assert!(served(&gateway, "EXACT.example.com").contains("exact.example.com"));
}

#[test]
fn a_server_for_any_name_takes_unknown_names_and_clients_without_one() {
    let backend = Backend::start("a");
    let gateway = hosts_and_any(&backend).start();
    assert!(served(&gateway, "any.test").contains("any.test"));
    let silent = gateway.tls().without_sni();
    let client = Client::tls(&silent, gateway.address(443), "any.test").unwrap();
    assert!(names_in_certificate(&client).join(" ").contains("any.test"));
    assert!(served(&gateway, "exact.example.com").contains("exact.example.com"));
}

#[test]
fn an_unknown_or_missing_name_is_closed_without_an_alert() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = hosts(driver, &backend).start();
        let address = gateway.address(443);
        let silent = gateway.tls().without_sni();
        for (tls, name) in [(gateway.tls(), "unknown.test"), (silent, "exact.example.com")] {
            let error = tls.handshake(address, name).map(drop).unwrap_err();
            assert!(!error.to_string().contains("alert"), "{name}: {error}");
        }
        let log = gateway.access_log(2);
        for name in ["unknown.test", "-"] {
            let line =
                r#""- - -" 0 NR filter_chain_not_found - "-" 0 0 0 - "-" "-" "-" "-" "-" - - "#;
            let end = format!(" {name} -");
            assert!(log.iter().any(|l| l.contains(line) && l.ends_with(&end)), "{log:?}");
        }
    });
}

#[test]
fn both_versions_and_both_protocols_are_spoken() {
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).start();
    let roots = || gateway.authority().roots();
    let versions = [
        (Tls::only_tls12(roots()), ProtocolVersion::TLSv1_2),
        (Tls::only_tls13(roots()), ProtocolVersion::TLSv1_3),
    ];
    for (tls, version) in versions {
        let connect = |tls: &Tls| tls.handshake(gateway.address(443), "exact.example.com");
        for protocol in ["h2", "http/1.1"] {
            let (_, connection) = connect(&tls.alpn(&[protocol])).unwrap();
            assert_eq!(connection.protocol_version(), Some(version));
            assert_eq!(connection.alpn_protocol(), Some(protocol.as_bytes()));
        }
        let (_, connection) = connect(&tls.alpn(&["http/1.1", "h2"])).unwrap();
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]), "the gateway prefers h2");
        let mut client =
            Client::tls(&tls, gateway.address(443), "exact.example.com").expect("without ALPN");
        assert_eq!(client.get("/status/200").status, 200);
    }
}

#[test]
fn a_ticket_resumes_in_both_versions() {
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).workers(1).start();
    let roots = || gateway.authority().roots();
    for tls in [Tls::only_tls12(roots()), Tls::only_tls13(roots())] {
        let kind = |tls: &Tls| {
            let mut client = Client::tls(tls, gateway.address(443), "exact.example.com").unwrap();
            // TLS 1.3 tickets come after the handshake: reading an answer takes them in.
            assert_eq!(client.get("/status/200").status, 200);
            client.connection().handshake_kind().unwrap()
        };
        assert_ne!(kind(&tls), HandshakeKind::Resumed);
        assert_eq!(kind(&tls), HandshakeKind::Resumed);
    }
}

#[test]
fn a_ticket_of_one_server_does_not_resume_on_another() {
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).workers(1).start();
    let tls = Tls::only_tls13(gateway.authority().roots());
    for name in ["exact.example.com", "other.example.com"] {
        let mut client = Client::tls(&tls, gateway.address(443), name).unwrap();
        assert_eq!(client.get("/status/200").status, 200);
        assert_ne!(client.connection().handshake_kind(), Some(HandshakeKind::Resumed), "{name}");
    }
}

#[test]
fn every_promised_key_exchange_group_is_accepted() {
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).start();
    let groups =
        [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    for group in groups {
        let tls = Tls::only_group(gateway.authority().roots(), group);
        let (_, connection) = tls.handshake(gateway.address(443), "exact.example.com").unwrap();
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), group.name());
    }
    let all = gateway.client("exact.example.com");
    let chosen = all.connection().negotiated_key_exchange_group().unwrap().name();
    assert_eq!(chosen, NamedGroup::X25519MLKEM768, "post-quantum when the client can");
}

#[test]
fn either_provider_serves() {
    for provider in ["ring", "aws-lc-rs"] {
        let backend = Backend::start("a");
        let settings = format!("tls: {{ provider: {provider} }}\n");
        let gateway = hosts(Driver::Auto, &backend).settings(&settings).start();
        assert_eq!(gateway.get("exact.example.com", "/status/200").status, 200, "{provider}");
        let chosen = gateway.client("exact.example.com");
        let group = chosen.connection().negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768, "{provider}");
    }
}

#[test]
fn a_missing_certificate_closes_its_host_only_until_it_appears() {
    let backend = Backend::start("a");
    let late = yaml::gateway("late", &yaml::https_server(443, &["late.test"], "late"));
    let route =
        yaml::virtual_service("late", "late", &["late.test"], &yaml::all_to("backend.test"));
    let gateway = hosts(Driver::Auto, &backend)
        .resource("late.yaml", &late)
        .resource("late-route.yaml", &route)
        .start();
    assert!(gateway.try_client("late.test").is_err());
    assert_eq!(gateway.get("exact.example.com", "/status/200").status, 200);
    gateway.write_certificate("late", &gateway.authority().leaf(&["late.test"]));
    eventually("the late certificate is served", || gateway.try_client("late.test").is_ok());
    assert_eq!(gateway.get("late.test", "/status/200").status, 200);
}

#[test]
fn a_secret_is_found_by_its_credential_name() {
    let backend = Backend::start("a");
    let gateway_text = "\
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: { name: web, namespace: shop }
spec:
  selector: { istio: ingressgateway }
  servers:
  - port: { number: 443, name: https, protocol: HTTPS }
    tls: { mode: SIMPLE, credentialName: shop-credential }
    hosts: [ shop.test ]
";
    let route =
        yaml::virtual_service("shop", "shop/web", &["shop.test"], &yaml::all_to("backend.test"));
    let gateway = Gateway::builder()
        .resource("gateway.yaml", gateway_text)
        .resource("route.yaml", &route)
        .resource("backend.yaml", &yaml::backend("backend.test", backend.port()))
        .start();
    assert!(gateway.try_client("shop.test").is_err(), "there is no Secret yet");
    let leaf = gateway.authority().leaf(&["shop.test"]);
    let indent = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: shop-credential\n  \
         namespace: istio-system\ntype: kubernetes.io/tls\nstringData:\n  \
         tls.crt: |\n{}  tls.key: |\n{}",
        indent(&leaf.chain_pem),
        indent(&leaf.key_pem)
    );
    gateway.write_resource("secret.yaml", &secret);
    eventually("the Secret is served", || gateway.try_client("shop.test").is_ok());
    assert_eq!(gateway.get("shop.test", "/status/200").status, 200);
}

#[test]
fn plain_http_on_a_tls_port_is_closed() {
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).start();
    let mut tcp = TcpStream::connect(gateway.address(443)).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: exact.example.com\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    if let Err(error) = tcp.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(!answer.starts_with(b"HTTP/"), "closed, not answered");
}

#[test]
fn openssl_speaks_both_versions_with_and_without_a_name() {
    let Some(_) = outside::tool("openssl") else { return };
    let backend = Backend::start("a");
    let gateway = hosts_and_any(&backend).start();
    let address = gateway.address(443).to_string();
    let ca = gateway.path("ca.pem");
    for version in ["-tls1_2", "-tls1_3"] {
        for names in [&["-servername", "exact.example.com"][..], &["-noservername"]] {
            let mut openssl = outside::tool("openssl").unwrap();
            openssl.args(["s_client", "-connect", &address, version, "-alpn", "http/1.1"]);
            openssl.args(names).arg("-CAfile").arg(&ca);
            let (code, text) = outside::output(&mut openssl);
            assert_eq!(code, Some(0), "{version} {names:?}: {text}");
            assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
            assert!(text.contains("ALPN protocol: http/1.1"), "{text}");
        }
    }
}

#[test]
fn curl_verifies_a_certificate_made_with_openssl_as_the_page_does_today() {
    let (Some(_), Some(mut curl)) = (outside::tool("openssl"), outside::tool("curl")) else {
        return;
    };
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend).start();
    let directory = gateway.path("page");
    fs::create_dir_all(&directory).unwrap();
    // X.509 version 1, no SAN, serial 0: what these commands have always made.
    let script = "openssl req -x509 -sha256 -nodes -days 365 -newkey rsa:2048 \
          -subj '/O=example Inc./CN=example.com' -keyout ca.key -out ca.crt && \
        openssl req -out leaf.csr -newkey rsa:2048 -nodes -keyout leaf.key \
          -subj '/CN=exact.example.com/O=httpbin organization' && \
        openssl x509 -req -sha256 -days 365 -CA ca.crt -CAkey ca.key -set_serial 0 \
          -in leaf.csr -out leaf.crt";
    let mut sh = std::process::Command::new("sh");
    let (code, text) = outside::output(sh.args(["-c", script]).current_dir(&directory));
    assert_eq!(code, Some(0), "{text}");
    let certs = gateway.path("root/certs/exact");
    fs::copy(directory.join("leaf.crt"), certs.join("tls.crt")).unwrap();
    fs::copy(directory.join("leaf.key"), certs.join("tls.key")).unwrap();
    let before = gateway.authority().roots();
    eventually("the new certificate is served", || {
        Tls::new(before.clone()).handshake(gateway.address(443), "exact.example.com").is_err()
    });
    let port = gateway.address(443).port();
    curl.args(["-sv", "--cacert"]).arg(directory.join("ca.crt"));
    curl.arg("--resolve").arg(format!("exact.example.com:{port}:127.0.0.1"));
    curl.arg(format!("https://exact.example.com:{port}/status/418"));
    let (code, text) = outside::output(&mut curl);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("SSL certificate verify ok") && text.contains("HTTP/2 418"), "{text}");
}

#[test]
fn only_what_a_server_names_is_agreed_on() {
    let Some(_) = outside::tool("openssl") else { return };
    let more = "      cipherSuites: [ ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-ECDSA-AES128-GCM-SHA256 ]\n      \
                ecdhCurves: [ P-384 ]\n";
    let server = yaml::mutual_server(&["narrow.test"], "narrow", "SIMPLE", more);
    let old = more.to_owned() + "      maxProtocolVersion: TLSV1_2\n";
    let old = yaml::mutual_server(&["old.test"], "old", "SIMPLE", &old);
    let new = "      minProtocolVersion: TLSV1_3\n";
    let new = yaml::mutual_server(&["new.test"], "new", "SIMPLE", new);
    let backend = Backend::start("a");
    let gateway = hosts(Driver::Auto, &backend)
        .certificate("narrow", &["narrow.test"])
        .certificate("old", &["old.test"])
        .certificate("new", &["new.test"])
        .resource("narrow.yaml", &yaml::gateway("narrow", &(server + &old + &new)))
        .start();
    let address = gateway.address(443).to_string();
    let ca = gateway.path("ca.pem");
    let said = |options: &[&str]| {
        let mut openssl = outside::tool("openssl").unwrap();
        openssl.args(["s_client", "-connect", &address, "-CAfile"]).arg(&ca).args(options);
        outside::output(&mut openssl).1
    };
    let newest = said(&["-servername", "narrow.test"]);
    assert!(newest.contains("New, TLSv1.3") && newest.contains("ECDH, secp384r1"), "{newest}");
    let older = said(&["-servername", "old.test"]);
    assert!(older.contains("Cipher is ECDHE-ECDSA-CHACHA20-POLY1305"), "our order: {older}");
    let second = said(&["-servername", "old.test", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]);
    assert!(second.contains("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"), "{second}");
    let other = said(&["-servername", "old.test", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"]);
    assert!(other.contains("alert handshake failure"), "{other}");
    let curve = said(&["-servername", "narrow.test", "-curves", "X25519:P-256"]);
    assert!(curve.contains("alert handshake failure"), "{curve}");
    let newer = said(&["-servername", "old.test", "-tls1_3"]);
    assert!(newer.contains("alert protocol version"), "{newer}");
    let too_old = said(&["-servername", "new.test", "-tls1_2"]);
    assert!(too_old.contains("alert protocol version"), "{too_old}");
}

#[test]
fn of_two_certificates_each_client_gets_the_one_that_it_can_verify() {
    let (Some(_), Some(_)) = (outside::tool("openssl"), outside::tool("python3")) else { return };
    let text = "\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: two }
spec:
  selector: { istio: ingressgateway }
  servers:
  - port: { number: 443, name: two, protocol: HTTPS }
    tls: { mode: SIMPLE, credentialNames: [ two-rsa, two-ecdsa ] }
    hosts: [ two.test ]
  - port: { number: 443, name: files, protocol: HTTPS }
    tls:
      mode: SIMPLE
      tlsCertificates:
      - { serverCertificate: /two-rsa/tls.crt, privateKey: /two-rsa/tls.key }
      - { serverCertificate: /two-ecdsa/tls.crt, privateKey: /two-ecdsa/tls.key }
    hosts: [ files.test ]
";
    let gateway = Gateway::builder().resource("two.yaml", text).start();
    let script = "set -e
        for secret in two-rsa two-ecdsa; do
          mkdir -p resources/secrets/$secret root/$secret
          case $secret in *rsa) new=rsa:2048;; esac
          case $secret in *ecdsa) new='ec -pkeyopt ec_paramgen_curve:P-256';; esac
          openssl req -x509 -nodes -days 9 -newkey $new -subj /CN=two.test -keyout k -out c
          cp c root/$secret/tls.crt; cp k root/$secret/tls.key
          cp c resources/secrets/$secret/tls.crt; cp k resources/secrets/$secret/tls.key
        done";
    let mut sh = std::process::Command::new("sh");
    let (code, said) = outside::output(sh.args(["-c", script]).current_dir(gateway.path("")));
    assert_eq!(code, Some(0), "{said}");
    let address = gateway.address(443).to_string();
    let presented = |name: &str, options: &[&str]| {
        let mut openssl = outside::tool("openssl").unwrap();
        openssl.args(["s_client", "-connect", &address, "-servername", name]).args(options);
        outside::output(&mut openssl).1
    };
    for name in ["two.test", "files.test"] {
        eventually("both are served", || presented(name, &[]).contains("BEGIN CERTIFICATE"));
        let (ecdsa, rsa) = ("Peer signature type: ECDSA", "Peer signature type: RSA-PSS");
        for (options, kind) in [
            (&["-tls1_3"][..], ecdsa),
            (&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], rsa),
            (&["-tls1_2"], ecdsa),
            (&["-tls1_2", "-sigalgs", "RSA-PSS+SHA256"], rsa),
            (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], rsa),
            (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], ecdsa),
        ] {
            let said = presented(name, options);
            assert!(said.contains(kind), "{name} {options:?}: {said}");
        }
    }
    let certificates = gateway.admin_get("/certs").text();
    assert_eq!(certificates.matches("\"cert_chain\"").count(), 4, "{certificates}");
}

#[test]
fn a_staple_is_shown_to_clients_that_ask_while_it_is_good() {
    let Some(_) = outside::tool("openssl") else { return };
    let backend = Backend::start("a");
    let text = yaml::gateway("stapled", &yaml::https_server(443, &["stapled.test"], "x"))
        .replace("serverCertificate: /certs/x/tls.crt", "credentialName: stapled")
        .replace("      privateKey: /certs/x/tls.key\n", "");
    let gateway = hosts(Driver::Auto, &backend).resource("stapled.yaml", &text).start();
    let script = "set -e
        openssl req -x509 -nodes -days 9 -newkey ec -pkeyopt ec_paramgen_curve:P-256 \\
          -subj /CN=ca -keyout ca.key -out ca.crt
        openssl req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=stapled.test \\
          -keyout leaf.key -out leaf.csr
        openssl x509 -req -days 9 -CA ca.crt -CAkey ca.key -set_serial 0x55 -in leaf.csr -out leaf.crt
        printf 'V\\t21260101000000Z\\t\\t55\\tunknown\\t/CN=stapled.test\\n' > index.txt
        openssl ocsp -index index.txt -CA ca.crt -rsigner ca.crt -rkey ca.key -issuer ca.crt \\
          -cert leaf.crt -respout good.der -ndays 9
        mkdir -p resources/secrets/stapled
        cp good.der resources/secrets/stapled/tls.ocsp-staple
        cp leaf.crt resources/secrets/stapled/tls.crt; cp leaf.key resources/secrets/stapled/tls.key";
    let mut sh = std::process::Command::new("sh");
    let (code, said) = outside::output(sh.args(["-c", script]).current_dir(gateway.path("")));
    assert_eq!(code, Some(0), "{said}");
    let address = gateway.address(443).to_string();
    let said = || {
        let mut openssl = outside::tool("openssl").unwrap();
        openssl.args(["s_client", "-connect", &address, "-servername", "stapled.test", "-status"]);
        outside::output(&mut openssl).1
    };
    let good = "Cert Status: good";
    eventually("it is stapled", || said().contains(good));
    gateway.write_file("resources/secrets/stapled/tls.ocsp-staple", "no response");
    eventually("it is reported", || gateway.logged("the OCSP staple is not a successful response"));
    assert!(said().contains(good), "the last good one stays");
    fs::remove_file(gateway.path("resources/secrets/stapled/tls.ocsp-staple")).unwrap();
    eventually("it is no longer stapled", || {
        let said = said();
        said.contains("OCSP response: no response sent") && said.contains("BEGIN CERTIFICATE")
    });
}
