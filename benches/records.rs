//! What it costs to seal data into TLS records at one end and to open them at the other, beside
//! rustls's own record layer between the same two configurations.
//!
//! Both move the sealed bytes through memory; no socket is involved.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{self, IoSlice, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rcgen::{CertificateParams, KeyPair};
use ringgate::bench::Records;
use ringgate::io::Stream;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

const NAME: &str = "bench.test";

fn records(criterion: &mut Criterion) {
    let (server, client) = configs();
    let name = ServerName::try_from(NAME).expect("a name");
    let mut ours =
        Records::new(Wire::pair(), Arc::clone(&server), Arc::clone(&client), name.clone());
    let mut theirs = Rustls::new(server, client, name);
    let mut group = criterion.benchmark_group("records");
    for bytes in [62, 1024, 16 * 1024, 1024 * 1024] {
        let data = vec![7; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("ringgate", bytes), |bencher| {
            bencher.iter(|| ours.pass(black_box(&data)));
        });
        group.bench_function(BenchmarkId::new("rustls", bytes), |bencher| {
            bencher.iter(|| theirs.pass(black_box(&data)));
        });
    }
    group.finish();
}

/// A server and a client that trusts it, by AES-128-GCM.
fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([NAME.to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate").der().clone();
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they belong together");
    server.enable_secret_extraction = true;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(server), Arc::new(client))
}

/// One end of a stream in memory, as cheap as one can be: what is written is lent where it lies.
struct Wire {
    incoming: Rc<RefCell<Vec<u8>>>,
    outgoing: Rc<RefCell<Vec<u8>>>,
    lent: Vec<u8>,
    used: usize,
}

impl Wire {
    fn pair() -> (Self, Self) {
        let [one, other] = [(); 2].map(|()| Rc::<RefCell<Vec<u8>>>::default());
        let end = |incoming: &Rc<_>, outgoing: &Rc<_>| {
            let (incoming, outgoing) = (Rc::clone(incoming), Rc::clone(outgoing));
            Self { incoming, outgoing, lent: Vec::new(), used: 0 }
        };
        (end(&one, &other), end(&other, &one))
    }
}

impl Stream for Wire {
    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        if self.used == self.lent.len() {
            self.lent.clear();
            self.used = 0;
            std::mem::swap(&mut self.lent, &mut *self.incoming.borrow_mut());
        }
        if self.lent.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(Ok(&mut self.lent[self.used..]))
        }
    }

    fn consume(&mut self, n: usize) {
        self.used += n;
    }

    fn poll_write_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        let mut outgoing = self.outgoing.borrow_mut();
        bytes.iter().for_each(|slice| outgoing.extend_from_slice(slice));
        Ok(())
    }

    fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        fill(&mut self.outgoing.borrow_mut());
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn close_write(&mut self) {}
}

/// The same with rustls's buffers on both sides.
struct Rustls {
    server: ServerConnection,
    client: ClientConnection,
    wire: Vec<u8>,
    read: Vec<u8>,
}

impl Rustls {
    fn new(
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Self {
        let server = ServerConnection::new(server).expect("a configuration");
        let client = ClientConnection::new(client, name).expect("a configuration");
        let mut pair = Self { server, client, wire: Vec::new(), read: vec![0; 16 * 1024] };
        while pair.server.is_handshaking() || pair.client.is_handshaking() {
            pair.client.write_tls(&mut pair.wire).expect("memory takes everything");
            let mut rest = pair.wire.as_slice();
            while !rest.is_empty() {
                pair.server.read_tls(&mut rest).expect("memory gives everything");
                pair.server.process_new_packets().expect("a client that agrees");
            }
            pair.wire.clear();
            pair.carry();
        }
        pair
    }

    fn pass(&mut self, data: &[u8]) {
        for piece in data.chunks(16 * 1024) {
            self.server.writer().write_all(piece).expect("memory takes everything");
            self.carry();
            self.client.reader().read_exact(&mut self.read[..piece.len()]).expect("all arrived");
        }
    }

    /// Moves what the server wrote to the client.
    fn carry(&mut self) {
        while self.server.wants_write() {
            self.server.write_tls(&mut self.wire).expect("memory takes everything");
        }
        let mut rest = self.wire.as_slice();
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).expect("memory gives everything");
            self.client.process_new_packets().expect("a server that agrees");
        }
        self.wire.clear();
    }
}

criterion_group!(benches, records);
criterion_main!(benches);
