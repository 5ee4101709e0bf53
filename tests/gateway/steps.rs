//! The steps of "Securing Gateways with HTTPS", in their order, on one gateway that is never
//! restarted: with the certificates that the page's generator makes, and with those that the newest
//! version of the page makes with `openssl x509 -req`; with `curl`, as it stands there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::backend::Backend;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::{eventually, outside, yaml};

const HTTPBIN: &str = "httpbin.example.com";

/// What the page shows of the answer to `/status/418`.
const TEAPOT: &str = r#"
    -=[ teapot ]=-

       _...._
     .'  _ _ `.
    | ."` ^ `". _,
    \_;`"---"`|//
      |       ;/
      \_     _/
        `"""`
"#;

/// What the page's generator leaves: a root and an intermediate of nearly the same name as the
/// leaves, the chain of both, and a leaf each for server and client.
const GENERATE: &str = r#"set -e
host=$1; mkdir -p $host; cd $host
root="/C=US/ST=Denial/L=Springfield/O=Dis/CN=$host"
key() { openssl genrsa -out $1.key.pem 2048; }
for name in root middle server client; do key $name; done
openssl req -x509 -sha256 -days 3650 -key root.key.pem -subj "$root" -out root.cert.pem
printf 'basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,digitalSignature,cRLSign,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always,issuer\n' > middle.ext
printf 'basicConstraints=CA:FALSE\nnsCertType=server\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer:always\nkeyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\n' > server.ext
printf 'basicConstraints=CA:FALSE\nnsCertType=client,email\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\nkeyUsage=critical,nonRepudiation,digitalSignature,keyEncipherment\nextendedKeyUsage=clientAuth,emailProtection\n' > client.ext
signed() {
  openssl req -new -key $1.key.pem -subj "$3" -out $1.csr.pem
  openssl x509 -req -sha256 -days 375 -in $1.csr.pem -CA $2.cert.pem -CAkey $2.key.pem -set_serial $4 -extfile $1.ext -out $1.cert.pem
}
signed middle root "/C=US/ST=Denial/O=Dis/CN=$host" 0x1000
signed server middle "$root" 0x100212
signed client middle "$root" 0x100213
cat middle.cert.pem root.cert.pem > ca-chain.cert.pem
"#;

/// As the newest version of the page has it: leaves of X.509 version 1.
const OPENSSL: &str = r#"set -e
ca() {
  openssl req -x509 -sha256 -nodes -days 365 -newkey rsa:2048 -subj '/O=example Inc./CN=example.com' -keyout $1/example.com.key -out $1/example.com.crt
}
leaf() {
  openssl req -out $1/$2.csr -newkey rsa:2048 -nodes -keyout $1/$2.key -subj "/CN=$2/O=$3"
  openssl x509 -req -sha256 -days 365 -CA $1/example.com.crt -CAkey $1/example.com.key -set_serial $4 -in $1/$2.csr -out $1/$2.crt
}
mkdir example_certs1 example_certs2
ca example_certs1
leaf example_certs1 httpbin.example.com 'httpbin organization' 0
ca example_certs2
leaf example_certs2 httpbin.example.com 'httpbin organization' 0
leaf example_certs1 helloworld.example.com 'helloworld organization' 1
leaf example_certs1 client.example.com 'client organization' 1
"#;

/// A reader of the page: a directory with certificates, and a gateway.
struct Reader {
    gateway: Gateway,
    directory: tempfile::TempDir,
    _backends: Vec<Backend>,
    _httpbin: ringgate::demo::Backend,
}

impl Reader {
    /// `None` where a program is missing.
    fn new(services: &[(&str, u16)]) -> Option<Self> {
        outside::tool("openssl")?;
        outside::tool("curl")?;
        let directory = tempfile::tempdir().unwrap();
        let httpbin = ringgate::demo::Backend::start().unwrap();
        let builder = serving(Gateway::builder(), "httpbin", 8000, httpbin.address().port());
        let add = |(builder, mut backends): (Builder, Vec<_>), (name, port): &(&str, u16)| {
            let backend = Backend::start(name);
            let builder = serving(builder, name, *port, backend.port());
            backends.push(backend);
            (builder, backends)
        };
        let (builder, backends) = services.iter().fold((builder, Vec::new()), add);
        let gateway = builder.start();
        Some(Self { gateway, directory, _backends: backends, _httpbin: httpbin })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shell(&self, script: &str, arguments: &[&str]) {
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh"]).args(arguments).current_dir(self.directory.path());
        let (code, text) = outside::output(&mut sh);
        assert_eq!(code, Some(0), "{text}");
    }

    /// As `kubectl apply`.
    fn apply(&self, name: &str, resource: &str) {
        self.gateway.write_resource(&format!("{name}.yaml"), resource);
    }

    /// As `kubectl create -n istio-system secret generic NAME --from-file=...`.
    fn create_secret(&self, name: &str, files: &[(&str, &str)]) {
        let mut text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ name: {name}, namespace: istio-system }}\n\
             data:\n"
        );
        for (key, file) in files {
            let bytes = fs::read(self.path(file)).unwrap();
            text += &format!("  {key}: {}\n", STANDARD.encode(bytes));
        }
        self.apply(&format!("secret-{name}"), &text);
    }

    fn delete_secret(&self, name: &str) {
        self.gateway.remove_resource(&format!("secret-{name}.yaml"));
    }

    /// As a Secret that is mounted at `/etc/istio/MOUNT`.
    fn mount(&self, mount: &str, files: &[(&str, &str)]) {
        for (key, file) in files {
            let text = fs::read_to_string(self.path(file)).unwrap();
            self.gateway.write_file(&format!("root/etc/istio/{mount}/{key}"), &text);
        }
    }

    /// The page's `curl` to `https://HOST:$SECURE_INGRESS_PORT/PATH`.
    fn curl(&self, host: &str, path: &str, options: &[&str]) -> (Option<i32>, String) {
        let port = self.gateway.address(443).port();
        let mut curl = outside::tool("curl").unwrap();
        curl.args(["-sSv", "--resolve", &format!("{host}:{port}:127.0.0.1")]).args(options);
        curl.arg(format!("https://{host}:{port}{path}")).current_dir(self.directory.path());
        outside::output(&mut curl)
    }

    /// Repeats the page's `curl` until all of `expected` is in what it says.
    #[track_caller]
    fn sees(&self, host: &str, path: &str, options: &[&str], expected: &[&str]) -> String {
        let mut said = String::new();
        eventually(&format!("{host}{path}: {expected:?}"), || {
            said = self.curl(host, path, options).1;
            expected.iter().all(|text| said.contains(text))
        });
        said
    }
}

/// The Service `name` with the port `port`, which is the process on `at` of this machine.
fn serving(builder: Builder, name: &str, port: u16, at: u16) -> Builder {
    let entry = yaml::backend(&format!("{name}.default.svc.cluster.local"), at);
    let entry = entry.replace("number: 80,", &format!("number: {port},"));
    builder.resource(&format!("{name}-service.yaml"), &entry)
}

fn gateway(servers: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: Gateway\nmetadata:\n  name: mygateway\n\
         spec:\n  selector:\n    istio: ingressgateway # use istio default ingress gateway\n  \
         servers:\n{servers}"
    )
}

fn server(name: &str, host: &str, tls: &str) -> String {
    let tls: String = tls.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "  - port:\n      number: 443\n      name: {name}\n      protocol: HTTPS\n    tls:\n{tls}    \
         hosts:\n    - \"{host}\"\n"
    )
}

fn mounted(mode: &str, mount: &str) -> String {
    format!(
        "mode: {mode}\nserverCertificate: /etc/istio/{mount}/tls.crt\n\
         privateKey: /etc/istio/{mount}/tls.key\n"
    )
}

fn virtual_service(name: &str, host: &str, matches: &[&str], port: u16) -> String {
    let matches: String =
        matches.iter().map(|uri| format!("    - uri:\n        {uri}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata:\n  name: {name}\n\
         spec:\n  hosts:\n  - \"{host}\"\n  gateways:\n  - mygateway\n  http:\n  - match:\n{matches}    \
         route:\n    - destination:\n        port:\n          number: {port}\n        host: {name}\n"
    )
}

const HTTPBIN_PATHS: [&str; 2] = ["prefix: /status", "prefix: /delay"];

#[test]
fn the_page_step_by_step() {
    let Some(reader) = Reader::new(&[("productpage", 9080)]) else { return };
    reader.shell(GENERATE, &[HTTPBIN]);

    // Configure a TLS ingress gateway with a file mount-based approach.
    let chain = format!("{HTTPBIN}/ca-chain.cert.pem");
    let (certificate, key) =
        (format!("{HTTPBIN}/server.cert.pem"), format!("{HTTPBIN}/server.key.pem"));
    reader.mount("ingressgateway-certs", &[("tls.crt", &certificate), ("tls.key", &key)]);
    let simple = server("https", HTTPBIN, &mounted("SIMPLE", "ingressgateway-certs"));
    reader.apply("gateway", &gateway(&simple));
    reader.apply("httpbin", &virtual_service("httpbin", HTTPBIN, &HTTPBIN_PATHS, 8000));
    eventually("the port is bound", || reader.gateway.logged("for Gateway port 443"));
    let issuer = "issuer: C=US; ST=Denial; O=Dis";
    let verified = ["SSL certificate verify ok", "HTTP/2 418", issuer, TEAPOT];
    let matched = format!("common name: {HTTPBIN} (matched)");
    let trusting = ["--cacert", &chain];
    let said = reader.sees(HTTPBIN, "/status/418", &trusting, &verified);
    assert!(said.contains(&matched), "{said}");

    // Configure a mutual TLS ingress gateway.
    reader.mount("ingressgateway-ca-certs", &[("ca-chain.cert.pem", &chain)]);
    let mutual = mounted("MUTUAL", "ingressgateway-certs")
        + "caCertificates: /etc/istio/ingressgateway-ca-certs/ca-chain.cert.pem\n";
    reader.apply("gateway", &gateway(&server("https", HTTPBIN, &mutual)));
    let said = reader.sees(HTTPBIN, "/status/418", &trusting, &["alert certificate required"]);
    assert!(!said.contains("HTTP/2 418"), "{said}");
    let old = ["--cacert", &chain, "--tls-max", "1.2"];
    let (code, said) = reader.curl(HTTPBIN, "/status/418", &old);
    assert_eq!(code, Some(35), "{said}");
    assert!(said.contains("sslv3 alert handshake failure"), "as on the page: {said}");
    let (certificate, key) =
        (format!("{HTTPBIN}/client.cert.pem"), format!("{HTTPBIN}/client.key.pem"));
    let client = ["--cacert", &chain, "--cert", &certificate, "--key", &key];
    reader.sees(HTTPBIN, "/status/418", &client, &["HTTP/2 418", TEAPOT]);

    // Configure a TLS ingress gateway for multiple hosts.
    reader.shell(GENERATE, &["bookinfo.com"]);
    let files =
        [("tls.crt", "bookinfo.com/server.cert.pem"), ("tls.key", "bookinfo.com/server.key.pem")];
    reader.mount("ingressgateway-bookinfo-certs", &files);
    let both = server("https-httpbin", HTTPBIN, &mounted("SIMPLE", "ingressgateway-certs"))
        + &server(
            "https-bookinfo",
            "bookinfo.com",
            &mounted("SIMPLE", "ingressgateway-bookinfo-certs"),
        );
    reader.apply("gateway", &gateway(&both));
    let paths = ["exact: /productpage", "exact: /login", "prefix: /api/v1/products"];
    reader.apply(
        "bookinfo",
        &virtual_service("bookinfo", "bookinfo.com", &paths, 9080)
            .replace("host: bookinfo", "host: productpage"),
    );
    let bookinfo = ["--cacert", "bookinfo.com/ca-chain.cert.pem", "-H", "Host: bookinfo.com"];
    let expected = [
        "SSL certificate verify ok",
        "common name: bookinfo.com (matched)",
        "HTTP/2 ",
        "x-envoy-upstream",
    ];
    let said = reader.sees("bookinfo.com", "/productpage", &bookinfo, &expected);
    assert!(said.contains("server: istio-envoy"), "{said}");
    reader.sees(HTTPBIN, "/status/418", &trusting, &["HTTP/2 418", TEAPOT]);

    // Troubleshooting: the proxy of the ingress gateway is aware of the certificates.
    let certificates = reader.gateway.admin_get("/certs").text();
    for text in
        ["/etc/istio/ingressgateway-certs/tls.crt", "100212", "days_until_expiration\": \"374"]
    {
        assert!(certificates.contains(text), "{text} in {certificates}");
    }

    // Cleanup.
    for name in ["gateway", "httpbin", "bookinfo"] {
        reader.gateway.remove_resource(&format!("{name}.yaml"));
    }
    let address = reader.gateway.address(443);
    eventually("the port refuses", || std::net::TcpStream::connect(address).is_err());
}

/// A server whose certificate is in a Secret.
fn credential(mode: &str, name: &str) -> String {
    format!("mode: {mode}\ncredentialName: {name} # must be the same as secret\n")
}

#[test]
fn the_newest_page_step_by_step() {
    let Some(reader) = Reader::new(&[("helloworld", 5000)]) else { return };
    reader.shell(OPENSSL, &[]);
    let pair = |directory: &str, host: &str| {
        (format!("{directory}/{host}.crt"), format!("{directory}/{host}.key"))
    };
    let create_tls = |name: &str, directory: &str, host: &str| {
        let (certificate, key) = pair(directory, host);
        reader.create_secret(name, &[("tls.crt", &certificate), ("tls.key", &key)]);
    };
    let first = ["--cacert", "example_certs1/example.com.crt"];
    let second = ["--cacert", "example_certs2/example.com.crt"];

    // Configure a TLS ingress gateway for a single host.
    create_tls("httpbin-credential", "example_certs1", HTTPBIN);
    let simple = server("https", HTTPBIN, &credential("SIMPLE", "httpbin-credential"));
    reader.apply("gateway", &gateway(&simple));
    reader.apply("httpbin", &virtual_service("httpbin", HTTPBIN, &HTTPBIN_PATHS, 8000));
    eventually("the port is bound", || reader.gateway.logged("for Gateway port 443"));
    reader.sees(HTTPBIN, "/status/418", &first, &["SSL certificate verify ok", "HTTP/2 418"]);

    // Update the gateway's credentials: delete the Secret and create another.
    reader.delete_secret("httpbin-credential");
    create_tls("httpbin-credential", "example_certs2", HTTPBIN);
    reader.sees(HTTPBIN, "/status/418", &second, &["HTTP/2 418"]);
    let (code, said) = reader.curl(HTTPBIN, "/status/418", &first);
    // Both roots have the same name: which of the two errors it is depends on the key.
    assert!(matches!(code, Some(35 | 60)), "the former root does not vouch for it: {said}");
    create_tls("httpbin-credential", "example_certs1", HTTPBIN);
    reader.sees(HTTPBIN, "/status/418", &first, &["HTTP/2 418"]);

    // Configure a TLS ingress gateway for multiple hosts.
    create_tls("helloworld-credential", "example_certs1", "helloworld.example.com");
    let helloworld = "helloworld.example.com";
    let both = server("https-httpbin", HTTPBIN, &credential("SIMPLE", "httpbin-credential"))
        + &server("https-helloworld", helloworld, &credential("SIMPLE", "helloworld-credential"));
    reader.apply("gateway", &gateway(&both));
    let hello = virtual_service("helloworld", helloworld, &["exact: /name"], 5000);
    reader.apply("helloworld", &hello);
    let said = reader.sees(helloworld, "/name", &first, &["HTTP/2 200"]);
    assert!(said.starts_with("helloworld"), "{said}");
    reader.sees(HTTPBIN, "/status/418", &first, &["HTTP/2 418"]);

    // Configure a mutual TLS ingress gateway.
    let (certificate, key) = pair("example_certs1", HTTPBIN);
    let ca = "example_certs1/example.com.crt";
    let files = [("tls.key", key.as_str()), ("tls.crt", &certificate), ("ca.crt", ca)];
    reader.create_secret("httpbin-credential", &files);
    let mutual = server("https", HTTPBIN, &credential("MUTUAL", "httpbin-credential"));
    reader.apply("gateway", &gateway(&mutual));
    let refused = ["tlsv13 alert certificate required"];
    reader.sees(HTTPBIN, "/status/418", &first, &refused);
    let (certificate, key) = pair("example_certs1", "client.example.com");
    let client = [&first[..], &["--cert", &certificate, "--key", &key]].concat();
    reader.sees(HTTPBIN, "/status/418", &client, &["HTTP/2 418"]);
    let old = [&client[..], &["--tls-max", "1.2"]].concat();
    reader.sees(HTTPBIN, "/status/418", &old, &["HTTP/2 418"]);

    // Key formats: the CA in a Secret of its own, under the other name of its key.
    create_tls("httpbin-credential", "example_certs1", HTTPBIN);
    reader.create_secret("httpbin-credential-cacert", &[("cacert", ca)]);
    reader.sees(HTTPBIN, "/status/418", &client, &["HTTP/2 418"]);
    reader.sees(HTTPBIN, "/status/418", &first, &refused);
    let (certificate, key) = pair("example_certs2", HTTPBIN);
    let stranger = [&first[..], &["--cert", &certificate, "--key", &key]].concat();
    reader.sees(HTTPBIN, "/status/418", &stranger, &["alert unknown ca"]);
}
