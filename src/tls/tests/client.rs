//! Our client's side: against rustls's server, and against our own.

use super::*;
use crate::tls::{HandshakeError, connect as shake};
use rustls::ServerConnection;
use rustls::server::WebPkiClientVerifier;

const NAME: &str = "a.example.com";
const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

type Server = Peer<ServerConnection>;

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

/// What our side connects with.
fn ours(site: &Site) -> ClientConfig {
    let mut config = site.client_config();
    config.enable_secret_extraction = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Our client and rustls's server after their handshake.
fn met(
    config: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    chunking: Chunking,
) -> (Result<TlsStream<End>, HandshakeError>, Server) {
    let (end, near) = pipe::pair(chunking);
    let tls = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut server = Server { tls, end };
    let connecting = shake(near, Arc::clone(config), name());
    let (client, _) = both(connecting, async {
        let shaken = server.handshake().await;
        // A refusal is told as well.
        server.push().unwrap();
        shaken
    });
    (client, server)
}

fn joined(site: &Site, chunking: Chunking) -> (TlsStream<End>, Server) {
    let (client, server) = met(&Arc::new(ours(site)), &site.config, chunking);
    (client.unwrap(), server)
}

fn failed(config: ClientConfig, server: &ServerConfig) -> (HandshakeError, Server) {
    let (client, server) = met(&Arc::new(config), &Arc::new(server.clone()), CHUNKINGS[1]);
    (client.unwrap_err(), server)
}

#[test]
fn both_versions_shake_hands_in_every_chunking() {
    for version in VERSIONS {
        let site = Site::new(NAME, version);
        for chunking in CHUNKINGS {
            let (mut client, mut server) = joined(&site, chunking);
            assert_eq!(client.alpn(), Some(&b"h2"[..]));
            assert_eq!(server.tls.server_name(), Some(NAME));
            assert!(!client.resumed());
            client.write(&[IoSlice::new(b"good "), IoSlice::new(b"morning")]).unwrap();
            client.close_write();
            assert_eq!(alone(server.read_to_end()).unwrap(), b"good morning");
            alone(server.write(b"good night")).unwrap();
            server.close_notify();
            assert_eq!(alone(read_all(&mut client)).unwrap(), b"good night");
            assert_eq!(alone(read_all(&mut client)).unwrap(), b"", "it stays the end");
        }
    }
}

#[test]
fn both_libraries_seal_and_open_every_suite() {
    for choice in [Choice::Ring, Choice::AwsLcRs] {
        let provider = Provider::new(choice).rustls();
        let site = Site::with(choice, NAME, Version::Tls13);
        let usable = |suite: &&SupportedCipherSuite| !format!("{suite:?}").contains("_RSA_");
        for suite in provider.cipher_suites.iter().filter(usable) {
            let cipher_suites = vec![*suite];
            let only = CryptoProvider { cipher_suites, ..(*provider).clone() };
            let mut config = ClientConfig::builder_with_provider(Arc::new(only))
                .with_protocol_versions(&[match suite {
                    SupportedCipherSuite::Tls12(_) => &rustls::version::TLS12,
                    SupportedCipherSuite::Tls13(_) => &rustls::version::TLS13,
                }])
                .unwrap()
                .with_root_certificates(site.roots.clone())
                .with_no_client_auth();
            config.enable_secret_extraction = true;
            let (client, mut server) = met(&Arc::new(config), &site.config, CHUNKINGS[1]);
            let mut client = client.unwrap();
            assert_eq!(client.suite().suite(), suite.suite());
            client.write(&[IoSlice::new(b"question")]).unwrap();
            client.close_write();
            assert_eq!(alone(server.read_to_end()).unwrap(), b"question");
            alone(server.write(b"answer")).unwrap();
            server.close_notify();
            assert_eq!(alone(read_all(&mut client)).unwrap(), b"answer", "{suite:?}");
        }
    }
}

#[test]
fn bulk_flows_both_ways_between_our_own_sides() {
    for version in VERSIONS {
        let site = Site::new(NAME, version);
        let (far, near) = pipe::pair(Chunking::UpTo(16_000));
        let connecting = shake(near, Arc::new(ours(&site)), name());
        let choose = |_: &Hello| Some(Arc::clone(&site.config));
        let (client, server) = both(connecting, accept(far, choose));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        for length in [1_000_000, 1_000_001] {
            let bytes = pattern(length);
            let (received, ()) = both(receive(&mut server, length), send(&mut client, &bytes));
            assert!(received == bytes);
            let (received, ()) = both(receive(&mut client, length), send(&mut server, &bytes));
            assert!(received == bytes);
        }
    }
}

async fn send(stream: &mut impl Stream, bytes: &[u8]) {
    for part in bytes.chunks(30_000) {
        poll_fn(|cx| stream.poll_write_ready(cx)).await.unwrap();
        stream.write(&[IoSlice::new(part)]).unwrap();
    }
    flush(stream).await.unwrap();
}

async fn receive(stream: &mut impl Stream, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let lent = poll_fn(|cx| {
            stream.poll_fill(cx).map_ok(|lent| {
                all.extend_from_slice(lent);
                lent.len()
            })
        });
        let n = lent.await.unwrap();
        assert!(n > 0, "the end after {}", all.len());
        stream.consume(n);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// However the network cuts and the peer writes, what arrives is what was sent.
    #[test]
    fn no_cut_changes_what_arrives(
        parts in prop::collection::vec(0usize..40_000, 1..6),
        chunk in 1usize..20_000,
        is_new in any::<bool>(),
    ) {
        let site = Site::new(NAME, VERSIONS[usize::from(is_new)]);
        let (mut client, mut server) = joined(&site, Chunking::UpTo(chunk));
        let sent = parts.iter().map(|n| pattern(*n)).collect::<Vec<_>>();
        let writing = async {
            for part in &sent {
                server.write(part).await.unwrap();
            }
            server.close_notify();
        };
        let (received, ()) = both(read_all(&mut client), writing);
        prop_assert!(received.unwrap() == sent.concat());
        for part in &sent {
            client.write(&[IoSlice::new(part)]).unwrap();
        }
        client.close_write();
        prop_assert!(alone(server.read_to_end()).unwrap() == sent.concat());
    }
}

#[test]
fn tickets_resume_however_they_are_sent() {
    for version in VERSIONS {
        // All at once, and each over many records.
        for (count, fragment) in [(1, None), (5, None), (3, Some(64))] {
            let site = Site::new(NAME, version);
            let mut server = ServerConfig::clone(&site.config);
            server.send_tls13_tickets = count;
            server.max_fragment_size = fragment;
            let (server, config) = (Arc::new(server), Arc::new(ours(&site)));
            for expected in [false, true, true] {
                let (client, mut server) = met(&config, &server, CHUNKINGS[1]);
                let mut client = client.unwrap();
                assert_eq!(client.resumed(), expected, "{version:?} {count} {fragment:?}");
                alone(server.write(b"x")).unwrap();
                server.close_notify();
                assert_eq!(alone(read_all(&mut client)).unwrap(), b"x");
            }
        }
    }
}

#[test]
fn keys_are_renewed_when_the_server_wishes() {
    let site = Site::new(NAME, Version::Tls13);
    for chunking in CHUNKINGS {
        let (mut client, mut server) = joined(&site, chunking);
        for _ in 0..3 {
            server.tls.refresh_traffic_keys().unwrap();
            alone(server.write(b"ping")).unwrap();
            assert_eq!(alone(receive(&mut client, 4)), b"ping");
            // Sealed with our renewed key: rustls asks for one with each of its own.
            client.write(&[IoSlice::new(b"pong")]).unwrap();
        }
        client.close_write();
        assert_eq!(alone(server.read_to_end()).unwrap(), b"pongpongpong");
    }
}

#[test]
fn a_server_that_only_renews_keys_is_cut() {
    let site = Site::new(NAME, Version::Tls13);
    let (mut client, mut server) = joined(&site, CHUNKINGS[2]);
    for _ in 0..33 {
        server.tls.refresh_traffic_keys().unwrap();
        server.push().unwrap();
    }
    let error = alone(read_all(&mut client)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let told = alone(server.read_to_end()).unwrap_err();
    assert!(told.to_string().contains("UnexpectedMessage"), "{told}");
}

#[test]
fn a_cut_record_is_an_error_and_a_forged_one_too() {
    let site = Site::new(NAME, Version::Tls13);
    for forged in [false, true] {
        let (mut client, mut server) = joined(&site, CHUNKINGS[1]);
        server.push().unwrap();
        server.tls.writer().write_all(b"truth").unwrap();
        let mut record = Vec::new();
        while server.tls.wants_write() {
            server.tls.write_tls(&mut record).unwrap();
        }
        if forged {
            *record.last_mut().unwrap() ^= 1;
        } else {
            record.pop();
        }
        server.end.write(&[IoSlice::new(&record)]).unwrap();
        server.end.close_write();
        let error = alone(read_all(&mut client)).unwrap_err();
        let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData];
        assert_eq!(error.kind(), kinds[usize::from(forged)]);
    }
}

#[test]
fn an_end_without_close_notify_counts_only_between_records() {
    let site = Site::new(NAME, Version::Tls13);
    let (mut client, mut server) = joined(&site, CHUNKINGS[1]);
    alone(server.write(b"all of it")).unwrap();
    server.end.close_write();
    assert_eq!(alone(read_all(&mut client)).unwrap(), b"all of it");
}

#[test]
fn a_server_that_is_not_trusted_is_told() {
    for version in VERSIONS {
        let site = Site::new("b.example.com", version);
        let (error, mut server) = failed(ours(&site), &site.config);
        assert!(matches!(&error, HandshakeError::Tls(rustls::Error::InvalidCertificate(_))));
        assert!(error.to_string().contains("a.example.com"), "{error}");
        let told = alone(server.handshake()).unwrap_err();
        assert!(told.to_string().contains("received fatal alert"), "{told}");
    }
}

#[test]
fn a_refusal_says_why() {
    let old = Site::new(NAME, Version::Tls12);
    let mut only_new = ClientConfig::builder_with_provider(Provider::new(Choice::Auto).rustls())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(old.roots.clone())
        .with_no_client_auth();
    only_new.enable_secret_extraction = true;
    let (error, _) = failed(only_new, &old.config);
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

/// In TLS 1.3 a server refuses a client after that one is done.
#[test]
fn a_server_that_wants_our_certificate_says_so() {
    for version in VERSIONS {
        let site = Site::new(NAME, version);
        let provider = Provider::new(Choice::Auto).rustls();
        let roots = Arc::new(site.roots.clone());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let resolver = Arc::clone(&site.config.cert_resolver);
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[match version {
                Version::Tls12 => &rustls::version::TLS12,
                Version::Tls13 => &rustls::version::TLS13,
            }])
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_cert_resolver(resolver);
        let (client, _server) = met(&Arc::new(ours(&site)), &Arc::new(server), CHUNKINGS[1]);
        let error = match client {
            Ok(mut client) => alone(read_all(&mut client)).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("CertificateRequired"), "{error}");
    }
}

#[test]
fn what_does_not_answer_in_tls_is_told_apart() {
    let answers: [(&[u8], &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer to the ClientHello is not TLS"),
        (b"", "the connection was closed after the ClientHello"),
        (&[22, 3, 3, 0, 9, 2], "the connection was closed during the handshake"),
        (&[21, 3, 3, 0, 2, 2, 40], "received fatal alert: HandshakeFailure"),
    ];
    for (answer, expected) in answers {
        for chunking in CHUNKINGS {
            let site = Site::new(NAME, Version::Tls13);
            let (mut end, near) = pipe::pair(chunking);
            end.write(&[IoSlice::new(answer)]).unwrap();
            end.close_write();
            let connecting = shake(near, Arc::new(ours(&site)), name());
            let error = both(connecting, read_all(&mut end)).0.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
