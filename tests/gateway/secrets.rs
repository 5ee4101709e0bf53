//! Secrets that cannot be served: each closes its own host alone, and log, `/certs`, `/config_dump`
//! and metrics all say why; and what is mended is served without a restart.

use crate::harness::backend::Backend;
use crate::harness::certificate::Leaf;
use crate::harness::gateway::Gateway;
use crate::harness::{eventually, yaml};

const GOOD: &str = "good.test";

/// On secp256k1, a curve that TLS does not have.
const UNSUPPORTED_CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiTCCATCgAwIBAgIUTaz4aIoFSYH5yjfElDrsmbtgC+gwCgYIKoZIzj0EAwIw
GzEZMBcGA1UEAwwQdW5zdXBwb3J0ZWQudGVzdDAgFw0yNjExMjUwNDUyMDBaGA8y
MTI2MTEwMTA0NTIwMFowGzEZMBcGA1UEAwwQdW5zdXBwb3J0ZWQudGVzdDBWMBAG
ByqGSM49AgEGBSuBBAAKA0IABDWkWQjpiLl7BOQVvlzFcenQ2ShR8cgaQPNuYxSR
XldPNg4g1oN/OK2qdmsgc3z0Ccc0/6fJ1C/owhUZyZhQiamjUzBRMB0GA1UdDgQW
BBRwhmyhPKRyuhYHb54ktD27U7beKjAfBgNVHSMEGDAWgBRwhmyhPKRyuhYHb54k
tD27U7beKjAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0cAMEQCIHfbDg3a
ysBYubKx34zhhgqQFF+pudVCJHpEBe3BGvxTAiApzgeEN4yMevFvT277TWm4xkZP
oqA4qnXLfiLM+9m6hw==
-----END CERTIFICATE-----
";
const UNSUPPORTED_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGEAgEAMBAGByqGSM49AgEGBSuBBAAKBG0wawIBAQQgKvJTPZLqthTOPB3boYTV
SR1lgm0gk07szg+kMsRCMcWhRANCAAQ1pFkI6Yi5ewTkFb5cxXHp0NkoUfHIGkDz
bmMUkV5XTzYOINaDfzitqnZrIHN89AnHNP+nydQv6MIVGcmYUImp
-----END PRIVATE KEY-----
";

/// A host, the keys of the Secret that it names, if there is one, and what is said about it.
struct Case {
    name: &'static str,
    keys: Option<Vec<(&'static str, String)>>,
    says: &'static str,
}

impl Case {
    fn host(&self) -> String {
        format!("{}.test", self.name)
    }

    fn secret(&self) -> Option<String> {
        Some(secret(self.name, self.keys.as_ref()?))
    }
}

fn secret(name: &str, keys: &[(&'static str, String)]) -> String {
    let keys: String = keys.iter().map(|(key, text)| format!("  {key}: {text:?}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: {name}, namespace: istio-system }}\n\
         stringData:\n  note: text\n{keys}"
    )
}

fn pair(leaf: &Leaf) -> Vec<(&'static str, String)> {
    vec![("tls.crt", leaf.chain_pem.clone()), ("tls.key", leaf.key_pem.clone())]
}

fn cases(leaf: &Leaf, other: &Leaf) -> Vec<Case> {
    let with = |certificate: &str, key: &str| {
        Some(vec![("tls.crt", certificate.to_owned()), ("tls.key", key.to_owned())])
    };
    let (chain, key) = (&*leaf.chain_pem, &*leaf.key_pem);
    let cut = |pem: &str| pem.lines().take(2).map(|line| format!("{line}\n")).collect::<String>();
    let case = |name, keys, says| Case { name, keys, says };
    vec![
        case("missing", None, "there is no Secret `missing` in namespace istio-system"),
        case("keyless", Some(Vec::new()), "didn't have expected keys (cert and key)"),
        case("empty", with("", ""), "found keys \"tls.crt\" and \"tls.key\", but they were empty"),
        case("mismatched", with(chain, &other.key_pem), "does not belong to the first certificate"),
        case("swapped", with(key, chain), "certificate and key are swapped"),
        case("text", with("hello", key), "there is no certificate in it"),
        case("cut", with(&cut(chain), key), "PEM block 1 of the certificate"),
        case("cut-key", with(chain, &cut(key)), "PEM block 1 of the key"),
        case(
            "no-x509",
            with("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", key),
            "certificate 1 is not a valid X.509 certificate",
        ),
        case(
            "unsupported",
            with(UNSUPPORTED_CERTIFICATE, UNSUPPORTED_KEY),
            "the private key is damaged or of an unsupported kind",
        ),
        case("without-ca", Some(pair(leaf)), "didn't have expected keys (cacert) or (ca.crt)"),
    ]
}

fn start(cases: &[Case], backend: &Backend) -> Gateway {
    let server = |case: &Case| {
        let mode = if case.name == "without-ca" { "MUTUAL" } else { "SIMPLE" };
        format!(
            "  - port: {{ number: 443, name: {0}, protocol: HTTPS }}\n    \
             tls: {{ mode: {mode}, credentialName: {0} }}\n    hosts: [ {1} ]\n",
            case.name,
            case.host()
        )
    };
    let servers: String = cases.iter().map(server).collect();
    let route = yaml::virtual_service("bad", "bad", &["*"], &yaml::all_to("backend.test"));
    let builder = Gateway::builder()
        .serving(GOOD, &yaml::backend("backend.test", backend.port()))
        .resource("bad-gateway.yaml", &yaml::gateway("bad", &servers))
        .resource("bad-route.yaml", &route);
    let secrets = cases.iter().filter_map(|case| Some((case.name, case.secret()?)));
    let add = |builder: crate::harness::gateway::Builder, (name, text): (&str, String)| {
        builder.resource(&format!("secret-{name}.yaml"), &text)
    };
    secrets.fold(builder, add).start()
}

/// A sample of `metric` about the Secret `name`.
fn sample(gateway: &Gateway, metric: &str, name: &str) -> Option<String> {
    let page = gateway.try_plain_get(gateway.metrics(), "/stats/prometheus").unwrap().text();
    let start = format!("{metric}{{source=\"secret istio-system/{name}\",");
    page.lines().find(|line| line.starts_with(&start)).map(str::to_owned)
}

/// Label values escape them.
fn as_label(text: &str) -> String {
    text.replace('"', "\\\"")
}

#[test]
fn each_closes_its_own_host_and_everything_says_why() {
    let backend = Backend::start("a");
    let authority = crate::harness::certificate::Authority::new();
    let cases = cases(&authority.leaf(&["any.test"]), &authority.leaf(&["any.test"]));
    let gateway = start(&cases, &backend);
    assert_eq!(gateway.get(GOOD, "/status/200").status, 200);
    let certificates: serde_json::Value =
        serde_json::from_str(&gateway.admin_get("/certs").text()).unwrap();
    let dump: serde_json::Value =
        serde_json::from_str(&gateway.admin_get("/config_dump").text()).unwrap();
    let (missing, rejections) = (&certificates["missing"], &dump["rejections"]);
    for case in &cases {
        let Case { name, says, .. } = case;
        assert!(gateway.try_client(&case.host()).is_err(), "{name} is closed");
        assert!(gateway.logged(says), "{name} in the log: {says}");
        let path = format!("secret istio-system/{name}");
        let shown = missing.as_array().unwrap().iter().find(|shown| shown["path"] == *path);
        let reason = shown.unwrap_or_else(|| panic!("{name} in {missing:#}"))["reason"].as_str();
        assert!(reason.unwrap().contains(says), "{name}: {shown:?}");
        let found = rejections.as_array().unwrap().iter();
        let mut found = found.filter(|found| found["what"].as_str().unwrap().contains(says));
        assert!(found.next().is_some(), "{name} in {rejections:#}");
        let metric = sample(&gateway, "ringgate_certificate_missing_info", name);
        assert!(metric.as_ref().unwrap().contains(&as_label(says)), "{name}: {metric:?}");
    }
    let count = format!("ringgate_certificates_missing {}\n", cases.len());
    assert!(gateway.admin_get("/stats/prometheus").text().contains(&count));
    assert_eq!(gateway.get(GOOD, "/status/200").status, 200);
}

#[test]
fn each_is_served_once_it_is_mended_and_keeps_that_when_it_breaks_again() {
    let backend = Backend::start("a");
    let authority = crate::harness::certificate::Authority::new();
    let cases = cases(&authority.leaf(&["any.test"]), &authority.leaf(&["any.test"]));
    let gateway = start(&cases, &backend);
    for case in cases.iter().filter(|case| case.name != "without-ca") {
        let (name, host) = (case.name, case.host());
        let file = format!("secret-{name}.yaml");
        let leaf = gateway.authority().leaf(&[&host]);
        gateway.write_resource(&file, &secret(name, &pair(&leaf)));
        eventually("what is mended is served", || gateway.try_client(&host).is_ok());
        assert_eq!(sample(&gateway, "ringgate_certificate_missing_info", name), None);
        match case.secret() {
            Some(broken) => gateway.write_resource(&file, &broken),
            None => gateway.remove_resource(&file),
        }
        eventually("the rejection shows", || {
            let dump = gateway.admin_get("/config_dump").text();
            dump.contains(&case.says.replace('"', "\\\""))
        });
        assert_eq!(gateway.client(&host).certificate(), leaf.der, "{name}: the last good one");
    }
}

#[test]
fn one_that_has_expired_is_served_and_reported() {
    let backend = Backend::start("a");
    let gateway = start(&[Case { name: "old", keys: None, says: "" }], &backend);
    let leaf = gateway.authority().expired_leaf(&["old.test"]);
    gateway.write_resource("secret-old.yaml", &secret("old", &pair(&leaf)));
    let says = "the certificate expired ";
    let dump = || gateway.admin_get("/config_dump").text();
    eventually("the dump and the log say it", || dump().contains(says) && gateway.logged(says));
    // A client that checks refuses it; that the gateway shows it is what counts.
    let error = gateway.try_client("old.test").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("certificate expired"), "{error}");
    let certificates = gateway.admin_get("/certs").text();
    assert!(certificates.contains("\"days_until_expiration\": \"0\""), "{certificates}");
    let metric = sample(&gateway, "ringgate_certificate_expiration_timestamp_seconds", "old");
    let (_, expires) = metric.as_ref().unwrap().rsplit_once(' ').unwrap();
    assert_eq!(expires, "1609459200", "the first of 2021");
    let page = gateway.admin_get("/stats/prometheus").text();
    assert!(page.contains("envoy_server_days_until_first_cert_expiring 0\n"));
    assert_eq!(gateway.get(GOOD, "/status/200").status, 200);
}
