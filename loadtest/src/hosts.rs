//! Many hosts, each with a certificate and ten routes, in the language of each gateway.
//!
//! The request goes to `localhost`, which every gateway finds among the others.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};

use crate::peer::Kind;

const ROUTES: usize = 10;
/// ringgate reads files of up to 10 MB.
const HOSTS_PER_FILE: usize = 500;

/// Makes the certificates of `hosts` hosts below `dir`, unless they are there: `N.crt`, `N.key`,
/// and both in `N.pem`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn create_certificates(dir: &Path, hosts: usize) -> io::Result<()> {
    let dir = directory(dir, hosts);
    if hosts == 0 || dir.exists() {
        return Ok(());
    }
    fs::create_dir_all(dir.join("pem"))?;
    (0..hosts).try_for_each(|host| create(&dir, host))
}

fn create(dir: &Path, host: usize) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let params = CertificateParams::new([name(host)]).map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
    let key = key.serialize_pem();
    fs::write(dir.join(format!("pem/{host}.pem")), format!("{certificate}{key}"))?;
    fs::write(dir.join(format!("{host}.crt")), certificate)?;
    fs::write(dir.join(format!("{host}.key")), key)
}

/// What stands for `{{HOSTS}}` in the templates of `kind`. HAProxy's routes are a file beside the
/// certificates; ringgate's resources are files below `gateway`, the gateway's own directory.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn text(kind: Kind, gateway: &Path, dir: &Path, hosts: usize) -> io::Result<String> {
    if hosts == 0 {
        return Ok(String::new());
    }
    let files = directory(dir, hosts);
    let each = |one: fn(&Path, usize) -> String| (0..hosts).map(|host| one(&files, host)).collect();
    match kind {
        Kind::Ringgate => {
            let resources = gateway.join("resources");
            fs::create_dir_all(&resources)?;
            for first in (0..hosts).step_by(HOSTS_PER_FILE) {
                let last = hosts.min(first + HOSTS_PER_FILE);
                let text: String = (first..last).map(|host| ringgate(&files, host)).collect();
                fs::write(resources.join(format!("hosts-{first}.yaml")), text)?;
            }
            Ok(String::new())
        }
        Kind::Nginx => Ok(each(nginx)),
        Kind::Haproxy => {
            let map: String = each(|_, host| routes(|route| haproxy_route(host, route)));
            fs::write(files.join("routes.map"), map)?;
            Ok(format!("crt {}", files.join("pem").display()))
        }
        Kind::Envoy => Err(io::Error::other("the load test has no many hosts for Envoy")),
    }
}

/// What stands for `{{ROUTES}}`: HAProxy's lookup.
pub(crate) fn lookup(dir: &Path, hosts: usize) -> String {
    if hosts == 0 {
        return String::new();
    }
    let map = directory(dir, hosts).join("routes.map");
    format!("use_backend %[base,map_beg({},backend)]", map.display())
}

fn directory(dir: &Path, hosts: usize) -> PathBuf {
    dir.join(format!("hosts-{hosts}"))
}

fn name(host: usize) -> String {
    format!("host-{host}.example.com")
}

fn routes(one: impl Fn(usize) -> String) -> String {
    (0..ROUTES).map(one).collect()
}

fn haproxy_route(host: usize, route: usize) -> String {
    format!("{}/route-{route} backend\n", name(host))
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
        create_certificates(dir.path(), 2).unwrap();
        for kind in [Kind::Ringgate, Kind::Nginx] {
            let mut text = text(kind, dir.path(), dir.path(), 2).unwrap();
            if kind == Kind::Ringgate {
                text = fs::read_to_string(dir.path().join("resources/hosts-0.yaml")).unwrap();
            }
            for host in 0..2 {
                let certificate = directory(dir.path(), 2).join(format!("{host}.crt"));
                assert!(certificate.exists());
                assert!(text.contains(&certificate.display().to_string()), "{text}");
            }
            assert_eq!(text.matches("/route-").count(), 2 * ROUTES, "{text}");
            assert_eq!(super::text(kind, dir.path(), dir.path(), 0).unwrap(), "");
        }
        text(Kind::Haproxy, dir.path(), dir.path(), 2).unwrap();
        let map = fs::read_to_string(directory(dir.path(), 2).join("routes.map")).unwrap();
        assert_eq!(map.lines().count(), 2 * ROUTES);
        assert_eq!(fs::read_dir(directory(dir.path(), 2).join("pem")).unwrap().count(), 2);
    }
}
