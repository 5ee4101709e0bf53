//! What it takes to get from files to a snapshot: at the start, and when one host of many changes.
//!
//! Each host has a certificate, a Gateway and a VirtualService with ten routes, in a file of its
//! own. Reading, parsing, building TLS configurations and compiling are timed together, as whoever
//! waits for a change waits for all of them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use rcgen::{CertificateParams, KeyPair};
use ringgate::config::Control;
use ringgate::settings::Settings;

const ROUTES: usize = 10;

fn compile(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(10);
    for hosts in sizes() {
        let site = Site::create(*hosts);
        let start = || runtime.block_on(Control::start(&site.settings)).expect("files to read");
        group.bench_function(BenchmarkId::new("start", hosts), |bencher| {
            bencher.iter_batched(|| (), |()| start(), BatchSize::PerIteration);
        });
        let mut control = start();
        assert_eq!(control.current().rejections, [], "every host is served");
        let mut edition = 0;
        group.bench_function(BenchmarkId::new("reload, one changed", hosts), |bencher| {
            bencher.iter_batched(
                || {
                    edition += 1;
                    site.write_host(hosts / 2, edition);
                },
                |()| control.reload(&site.settings).expect("files to read"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Few hosts where each bench is only tried once, as `cargo test --benches` does.
fn sizes() -> &'static [usize] {
    let timed = std::env::args().any(|argument| argument == "--bench");
    if timed { &[10, 100, 1_000, 10_000] } else { &[10] }
}

/// A directory with the files of many hosts; removed when dropped.
struct Site {
    directory: tempfile::TempDir,
    settings: Settings,
}

impl Site {
    fn create(hosts: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut settings = Settings::default();
        settings.source.directory = directory.path().join("resources");
        settings.files.root = directory.path().join("files");
        for directory in [&settings.source.directory, &settings.files.root] {
            fs::create_dir(directory).expect("a directory of our own");
        }
        let site = Self { directory, settings };
        write(&site.directory.path().join("resources/backend.yaml"), BACKEND);
        for host in 0..hosts {
            site.write_certificate(host);
            site.write_host(host, 0);
        }
        site
    }

    fn write_certificate(&self, host: usize) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name(host)]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        let files = &self.settings.files.root;
        write(&files.join(format!("{host}.crt")), &certificate.pem());
        write(&files.join(format!("{host}.key")), &key.serialize_pem());
    }

    /// Editions differ in the paths of the routes.
    fn write_host(&self, host: usize, edition: usize) {
        let path = self.settings.source.directory.join(format!("host-{host}.yaml"));
        write(&path, &resources(host, edition));
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file in a directory of our own");
}

fn name(host: usize) -> String {
    format!("host-{host}.example.com")
}

fn resources(host: usize, edition: usize) -> String {
    let name = name(host);
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{ name: host-{host} }}
spec:
  selector: {{ istio: ingressgateway }}
  servers:
  - port: {{ number: 443, name: https-{host}, protocol: HTTPS }}
    tls: {{ mode: SIMPLE, serverCertificate: /{host}.crt, privateKey: /{host}.key }}
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
    for route in 0..ROUTES {
        let prefix = format!("/edition-{edition}/route-{route}");
        writeln!(text, "  - match: [ {{ uri: {{ prefix: {prefix} }} }} ]").expect("to memory");
        writeln!(
            text,
            "    route: [ {{ destination: {{ host: backend.example.internal, port: {{ number: 80 }} \
             }} }} ]"
        )
        .expect("to memory");
    }
    text
}

const BACKEND: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: backend }
spec:
  hosts: [ backend.example.internal ]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [ { number: 80, name: http, protocol: HTTP } ]
  endpoints: [ { address: 127.0.0.1, ports: { http: 8000 } } ]
";

criterion_group!(benches, compile);
criterion_main!(benches);
