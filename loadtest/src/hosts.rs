//! Many hosts, each with a certificate and ten routes, in the language of each gateway.
//!
//! One of them is asked for, which every gateway finds among the others, and one gets another
//! certificate while the gateway runs, see `reload`.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use crate::peer::Kind;

const ROUTES: usize = 10;
/// ringgate reads files of up to 10 MB.
const HOSTS_PER_FILE: usize = 500;

/// The files of one host.
#[derive(Debug)]
pub(crate) struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub bundle: PathBuf,
}

impl Files {
    /// Those of number `host` of `hosts`.
    pub(crate) fn of(dir: &Path, hosts: usize, host: usize) -> Self {
        let dir = directory(dir, hosts);
        Self {
            certificate: dir.join(format!("{host}.crt")),
            key: dir.join(format!("{host}.key")),
            bundle: dir.join(format!("pem/{host}.pem")),
        }
    }
}

/// The name of the host that is asked for, one in the middle; `localhost` if there are none.
pub(crate) fn asked_for(hosts: usize) -> String {
    if hosts == 0 { "localhost".to_owned() } else { name(hosts / 2) }
}

/// Makes the certificates of `hosts` hosts below `dir`, unless they are there.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn create_certificates(dir: &Path, hosts: usize) -> io::Result<()> {
    let directory = directory(dir, hosts);
    if hosts == 0 || directory.exists() {
        return Ok(());
    }
    fs::create_dir_all(directory.join("pem"))?;
    for host in 0..hosts {
        let (files, new) = (Files::of(dir, hosts, host), certificate(host)?);
        fs::write(&files.bundle, new.bundle())?;
        fs::write(files.certificate, new.certificate)?;
        fs::write(files.key, new.key)?;
    }
    Ok(())
}

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Pem {
    pub certificate: String,
    pub key: String,
    /// The certificate as TLS carries it.
    pub der: Vec<u8>,
}

impl Pem {
    pub(crate) fn bundle(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// A new certificate for number `host`, with a new key.
///
/// # Errors
/// The system has no random numbers.
pub(crate) fn certificate(host: usize) -> io::Result<Pem> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let params = CertificateParams::new([name(host)]).map_err(io::Error::other)?;
    let signed = params.self_signed(&key).map_err(io::Error::other)?;
    let der = signed.der().to_vec();
    Ok(Pem { certificate: signed.pem(), key: key.serialize_pem(), der })
}

/// What stands in a gateway's templates for its hosts.
#[derive(Debug, Default)]
pub(crate) struct Text {
    /// For `{{HOSTS}}`.
    pub hosts: String,
    /// For `{{ROUTES}}`.
    pub routes: String,
}

impl Text {
    /// HAProxy's routes are a file beside the certificates; ringgate's resources are files below
    /// `resources`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn of(kind: Kind, dir: &Path, resources: &Path, hosts: usize) -> io::Result<Self> {
        if hosts == 0 {
            return Ok(Self::default());
        }
        let files = directory(dir, hosts);
        let each = |one: fn(&Path, usize) -> String| -> String {
            (0..hosts).map(|host| one(&files, host)).collect()
        };
        match kind {
            Kind::Ringgate => write_resources(resources, &files, hosts).map(|()| Self::default()),
            Kind::Nginx => Ok(Self { hosts: each(nginx), routes: String::new() }),
            Kind::Haproxy => haproxy(&files, &each(haproxy_routes)),
            Kind::Envoy => Ok(Self {
                hosts: unindented(&each(envoy_certificate)),
                routes: unindented(&each(envoy_routes)),
            }),
            Kind::Floor | Kind::Relay | Kind::HyperTokio | Kind::HyperTokioUring => {
                Ok(Self::default())
            }
        }
    }
}

/// The first line's indentation is in the template.
fn unindented(text: &str) -> String {
    text.trim_start().to_owned()
}

fn write_resources(resources: &Path, files: &Path, hosts: usize) -> io::Result<()> {
    fs::create_dir_all(resources)?;
    for first in (0..hosts).step_by(HOSTS_PER_FILE) {
        let last = hosts.min(first + HOSTS_PER_FILE);
        let text: String = (first..last).map(|host| ringgate(files, host)).collect();
        fs::write(resources.join(format!("hosts-{first}.yaml")), text)?;
    }
    Ok(())
}

fn haproxy(files: &Path, map: &str) -> io::Result<Text> {
    let path = files.join("routes.map");
    fs::write(&path, map)?;
    Ok(Text {
        hosts: format!("crt {}", files.join("pem").display()),
        routes: format!("use_backend %[base,map_beg({},backend)]", path.display()),
    })
}

/// In the one TLS context of the listener.
fn envoy_certificate(files: &Path, host: usize) -> String {
    let files = files.display();
    format!(
        "          - {{ certificate_chain: {{ filename: \"{files}/{host}.crt\" }}, \
         private_key: {{ filename: \"{files}/{host}.key\" }} }}\n"
    )
}

fn envoy_routes(_files: &Path, host: usize) -> String {
    let name = name(host);
    let routes = routes(|route| {
        format!("{{match: {{prefix: /route-{route}}}, route: {{cluster: backend, timeout: 0s}}}},")
    });
    let routes = routes.trim_end_matches(',');
    format!("          - {{name: {name}, domains: [{name}], routes: [{routes}]}}\n")
}

fn directory(dir: &Path, hosts: usize) -> PathBuf {
    dir.join(format!("hosts-{hosts}"))
}

/// The name of number `host`.
pub(crate) fn name(host: usize) -> String {
    format!("host-{host}.example.com")
}

fn routes(one: impl Fn(usize) -> String) -> String {
    (0..ROUTES).map(one).collect()
}

fn haproxy_routes(_files: &Path, host: usize) -> String {
    routes(|route| format!("{}/route-{route} backend\n", name(host)))
}

fn ringgate(files: &Path, host: usize) -> String {
    let (name, files) = (name(host), files.display());
    let mut text = format!(
        "---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{ name: host-{host} }}
spec:
  selector: {{ istio: ingressgateway }}
  servers:
  - port: {{ number: 443, name: https-{host}, protocol: HTTPS }}
    tls: {{ mode: SIMPLE, serverCertificate: {files}/{host}.crt, privateKey: {files}/{host}.key }}
    hosts: [ \"{name}\" ]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: host-{host} }}
spec:
  hosts: [ \"{name}\" ]
  gateways: [ host-{host} ]
  http:
"
    );
    let destination = "{ host: backend.loadtest.internal, port: { number: 80 } }";
    for route in 0..ROUTES {
        writeln!(text, "  - match: [ {{ uri: {{ prefix: /route-{route} }} }} ]").ok();
        writeln!(text, "    route: [ {{ destination: {destination} }} ]").ok();
    }
    text
}

fn nginx(files: &Path, host: usize) -> String {
    let (name, files) = (name(host), files.display());
    let locations =
        routes(|route| format!("    location /route-{route} {{ proxy_pass http://backend; }}\n"));
    format!(
        "server {{
    listen 127.0.0.1:{{{{PORT}}}} ssl http2;
    server_name {name};
    ssl_certificate {files}/{host}.crt;
    ssl_certificate_key {files}/{host}.key;
{locations}}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_certificate_and_routes() {
        let dir = tempfile::tempdir().unwrap();
        let resources = dir.path().join("resources");
        create_certificates(dir.path(), 2).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        let text = |kind| Text::of(kind, dir.path(), &resources, 2).unwrap();
        text(Kind::Ringgate);
        text(Kind::Haproxy);
        for (kind, text) in [
            (Kind::Ringgate, read(resources.join("hosts-0.yaml"))),
            (Kind::Haproxy, read(directory(dir.path(), 2).join("routes.map"))),
            (Kind::Nginx, text(Kind::Nginx).hosts),
            (Kind::Envoy, text(Kind::Envoy).routes),
        ] {
            assert_eq!(text.matches("/route-").count(), 2 * ROUTES, "{kind:?}: {text}");
            assert_eq!(Text::of(kind, dir.path(), &resources, 0).unwrap().routes, "");
        }
        let certificates = text(Kind::Envoy).hosts;
        for host in 0..2 {
            let Files { certificate, key, bundle } = Files::of(dir.path(), 2, host);
            assert!(certificates.contains(&certificate.display().to_string()), "{certificates}");
            assert_eq!(read(bundle), read(certificate) + &read(key));
        }
    }
}
