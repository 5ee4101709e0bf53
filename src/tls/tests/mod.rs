//! Drives both ends of handshakes and bulk transfers in memory.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Read, Write};
use std::ops::DerefMut;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use proptest::prelude::*;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, ProtocolVersion, RootCertStore, ServerConfig,
    SideData, SupportedCipherSuite,
};

use super::{AcceptError, Hello, TlsStream, Unaccepted, greet};
use crate::crypto::{self, Choice, Provider, ServerPolicy, ServerRequest, TicketKeys, Version};
use crate::io::pipe::{self, Chunking, End};
use crate::io::{Stream, flush};

mod client;

const CHUNKINGS: [Chunking; 3] = [Chunking::Bytes, Chunking::UpTo(1000), Chunking::UpTo(20_000)];

/// Shakes hands with the client on `stream`, as the server that `choose` finds for its hello.
pub(crate) async fn accept<S: Stream>(
    stream: S,
    choose: impl FnOnce(&Hello) -> Option<Arc<ServerConfig>>,
) -> Result<TlsStream<S>, Unaccepted<S>> {
    let greeting = greet(stream).await?;
    match choose(greeting.hello()) {
        Some(config) => greeting.shake(config).await,
        None => Err(greeting.refuse().into()),
    }
}

/// A server and what a client must know to trust it.
struct Site {
    config: Arc<ServerConfig>,
    roots: RootCertStore,
    tickets: Arc<TicketKeys>,
}

impl Site {
    fn new(name: &str, version_max: Version) -> Self {
        Self::with(Choice::Auto, name, version_max)
    }

    fn with(choice: Choice, name: &str, version_max: Version) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let key_pem = key.serialize_pem();
        let params = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let tickets = Arc::new(TicketKeys::new().unwrap());
        let request = ServerRequest {
            pair: crypto::PairPem {
                certificate: certificate.as_bytes(),
                key: key_pem.as_bytes(),
                staple: None,
            },
            policy: ServerPolicy {
                version_min: Version::Tls12,
                version_max,
                parameters: &crypto::Parameters::default(),
                clients: None,
            },
            tickets: Arc::clone(&tickets),
        };
        let config = crypto::server_config(&Provider::new(choice), &request).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        Self { config, roots, tickets }
    }

    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(Provider::new(Choice::Auto).rustls())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8);
        config
    }

    fn client(&self, name: &str) -> ClientConnection {
        connect(&Arc::new(self.client_config()), name)
    }
}

fn connect(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

/// The peer: rustls's client, or server, over the far end of the pipe.
struct Peer<C> {
    tls: C,
    end: End,
}

type Client = Peer<ClientConnection>;

impl<Data: SideData, C: DerefMut<Target = ConnectionCommon<Data>>> Peer<C> {
    /// Moves what can be moved; pending when our side has to go on.
    fn poll_pump(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.push()?;
        let bytes: &[u8] = ready!(self.end.poll_fill(cx))?;
        let mut rest = bytes;
        self.tls.read_tls(&mut rest)?;
        let taken = bytes.len() - rest.len();
        self.end.consume(taken);
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }

    async fn handshake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            poll_fn(|cx| self.poll_pump(cx)).await?;
        }
        self.push()
    }

    /// Sends what waits without reading.
    fn push(&mut self) -> io::Result<()> {
        let tls = &mut self.tls;
        if !tls.wants_write() {
            return Ok(());
        }
        self.end.append(|out| while tls.write_tls(out).unwrap() > 0 {})
    }

    /// Writes all of `bytes`, as fast as our side reads.
    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            poll_fn(|cx| self.end.poll_write_ready(cx)).await?;
            let n = self.tls.writer().write(bytes)?;
            bytes = &bytes[n..];
            self.push()?;
        }
        Ok(())
    }

    /// Reads up to close_notify.
    async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.tls.reader().read_to_end(&mut all) {
                Ok(_) => return Ok(all),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            poll_fn(|cx| self.poll_pump(cx)).await?;
        }
    }

    fn close_notify(&mut self) {
        self.tls.send_close_notify();
        self.push().unwrap();
    }
}

/// Polls both in turn until both are done.
///
/// # Panics
/// When neither gets on for long: each waits for the other.
fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut of_a, mut of_b) = (None, None);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..2_000_000 {
        if of_a.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(&mut cx)
        {
            of_a = Some(output);
        }
        if of_b.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(&mut cx)
        {
            of_b = Some(output);
        }
        match (of_a, of_b) {
            (Some(of_a), Some(of_b)) => return (of_a, of_b),
            rest => (of_a, of_b) = rest,
        }
    }
    panic!("stuck: done {} {}", of_a.is_some(), of_b.is_some());
}

fn alone<A>(a: impl Future<Output = A>) -> A {
    both(a, async {}).0
}

/// A finished handshake.
fn joined(site: &Site, tls: ClientConnection, chunking: Chunking) -> (TlsStream<End>, Client) {
    let (end, near) = pipe::pair(chunking);
    let mut client = Client { tls, end };
    let choose = |_: &Hello| Some(Arc::clone(&site.config));
    let (server, shaken) = both(accept(near, choose), client.handshake());
    shaken.unwrap();
    (server.unwrap(), client)
}

/// What becomes of a client that sends exactly `bytes`, then closes; and what it is sent.
fn probed(bytes: &[u8], chunking: Chunking) -> (AcceptError, Vec<u8>) {
    let (mut end, near) = pipe::pair(chunking);
    end.write(&[IoSlice::new(bytes)]).unwrap();
    end.close_write();
    let (outcome, answer) = both(accept(near, |_| None), read_all(&mut end));
    (outcome.unwrap_err().error, answer.unwrap())
}

async fn read_all(stream: &mut impl Stream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let n = poll_fn(|cx| {
            stream.poll_fill(cx).map_ok(|bytes| {
                all.extend_from_slice(bytes);
                bytes.len()
            })
        })
        .await?;
        if n == 0 {
            return Ok(all);
        }
        stream.consume(n);
    }
}

/// One record or several, in which `client` says hello.
fn hello_of(client: &mut ClientConnection) -> Vec<u8> {
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).unwrap();
    }
    hello
}

/// The same message in records of `size` bytes.
fn split_over_records(record: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = record.split_at(5);
    let split = message.chunks(size).flat_map(|chunk| {
        let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
        [&header[..3], &length, chunk].concat()
    });
    split.collect()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().step_by(31).take(length).collect()
}

#[test]
fn both_versions_shake_hands_in_every_chunking() {
    for (max, agreed) in
        [(Version::Tls12, ProtocolVersion::TLSv1_2), (Version::Tls13, ProtocolVersion::TLSv1_3)]
    {
        let site = Site::new("a.example.com", max);
        for chunking in CHUNKINGS {
            let mut config = site.client_config();
            config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
            let client = connect(&Arc::new(config), "a.example.com");
            let (mut server, mut client) = joined(&site, client, chunking);
            assert_eq!(client.tls.protocol_version(), Some(agreed));
            assert_eq!(server.alpn(), Some(&b"h2"[..]), "our order decides");
            assert_eq!(server.server_name(), Some("a.example.com"));
            assert!(format!("{:?}", server.suite().suite()).contains("AES_128_GCM"));
            assert!(!server.resumed());
            server.write(&[IoSlice::new(b"good "), IoSlice::new(b"morning")]).unwrap();
            server.close_write();
            assert_eq!(alone(client.read_to_end()).unwrap(), b"good morning");
        }
    }
}

#[test]
fn the_hello_decides_which_server_answers() {
    let sites = ["a.example.com", "b.example.com"].map(|name| Site::new(name, Version::Tls13));
    for (site, name) in [(&sites[0], "a.example.com"), (&sites[1], "B.Example.COM")] {
        let (end, near) = pipe::pair(Chunking::UpTo(100));
        let mut client = Client { tls: site.client(name), end };
        let choose = |hello: &Hello| {
            assert!(!hello.offers_others);
            let first = hello.sni.as_deref()?.starts_with('a');
            Some(Arc::clone(&sites[usize::from(!first)].config))
        };
        let (server, shaken) = both(accept(near, choose), client.handshake());
        assert!(server.is_ok());
        shaken.expect("the certificate is the one for the name");
    }
}

#[test]
fn a_trailing_dot_and_addresses_are_no_part_of_the_name() {
    let site = Site::new("a.example.com", Version::Tls13);
    let mut client = site.client("a.example.org");
    let mut hello = hello_of(&mut client);
    let at = hello.windows(13).position(|part| part == b"a.example.org").unwrap();
    hello[at..at + 13].copy_from_slice(b"A.example.or.");
    let (error, answer) = probed(&hello, Chunking::UpTo(64));
    assert!(matches!(error, AcceptError::NoServer { sni: Some(sni) } if *sni == *"a.example.or"));
    assert!(answer.is_empty(), "closed without an alert");

    let (error, _) = probed(&hello_of(&mut site.client("192.0.2.7")), Chunking::UpTo(64));
    assert!(matches!(error, AcceptError::NoServer { sni: None }));

    hello[at..at + 13].copy_from_slice(b"a.exam\0le.org");
    let (error, answer) = probed(&hello, Chunking::UpTo(64));
    assert!(matches!(error, AcceptError::Tls(_)), "{error:?}");
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 47], "fatal illegal_parameter");
}

/// RUSTSEC-2024-0399: rustls's Acceptor panicked on a ClientHello in pieces.
#[test]
fn a_hello_in_pieces_is_read() {
    let site = Site::new("a.example.com", Version::Tls13);
    let hello = hello_of(&mut site.client("a.example.com"));
    for size in [1, 3, 4, 5, 100, 16_000] {
        for chunking in CHUNKINGS {
            let (error, answer) = probed(&split_over_records(&hello, size), chunking);
            let expected = matches!(error, AcceptError::NoServer { sni: Some(_) });
            assert!(expected && answer.is_empty(), "{size} {chunking:?}: {error:?}");
        }
    }
}

#[test]
fn a_hello_cut_anywhere_is_a_closed_connection() {
    let site = Site::new("a.example.com", Version::Tls13);
    let hello = hello_of(&mut site.client("a.example.com"));
    assert!(matches!(probed(b"", Chunking::Bytes).0, AcceptError::Unused));
    for length in (1..hello.len()).step_by(7) {
        let (error, answer) = probed(&hello[..length], Chunking::UpTo(500));
        assert!(matches!(error, AcceptError::Closed), "{length}: {error:?}");
        assert!(answer.is_empty());
    }
}

#[test]
fn what_is_not_tls_is_closed_without_an_answer() {
    let sslv2 = b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10";
    for bytes in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"\0", sslv2, b"SSH-2.0-x\r\n"] {
        let (error, answer) = probed(bytes, Chunking::Bytes);
        assert!(matches!(error, AcceptError::NotTls), "{error:?}");
        assert!(answer.is_empty());
    }
}

#[test]
fn a_broken_hello_is_answered_with_an_alert() {
    let garbage = [&[22, 3, 1, 0, 40, 1, 0, 0, 36][..], &[0xff; 36]].concat();
    let (error, answer) = probed(&garbage, Chunking::UpTo(11));
    assert!(matches!(error, AcceptError::Tls(_)), "{error:?}");
    assert_eq!(answer.first_chunk(), Some(&[21, 3, 3, 0, 2, 2]), "a fatal alert");
}

#[test]
fn a_handshake_that_begins_in_its_middle_is_closed() {
    // ServerHelloDone. rustls's Acceptor makes no alert for it.
    let (error, _) = probed(&[22, 3, 3, 0, 4, 14, 0, 0, 0], Chunking::UpTo(11));
    assert!(matches!(error, AcceptError::Tls(_)), "{error:?}");
}

#[test]
fn a_hello_without_end_is_given_up() {
    // 60 KB of ClientHello in records of one byte, six on the wire for each.
    let mut message = vec![22, 3, 1, 0, 0, 1, 0, 0xea, 0x60];
    message.resize(60_000, 0);
    let endless = split_over_records(&message, 1);
    assert!(endless.len() > super::intake::HANDSHAKE_BYTES_MAX);
    let (error, _) = probed(&endless, Chunking::UpTo(4096));
    assert!(matches!(error, AcceptError::TooLong | AcceptError::Tls(_)), "{error:?}");
}

#[test]
fn nothing_in_common_is_an_alert() {
    let site = Site::new("a.example.com", Version::Tls12);
    let mut config = ClientConfig::builder_with_provider(Provider::new(Choice::Auto).rustls())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(site.roots.clone())
        .with_no_client_auth();
    config.enable_sni = false;
    let (end, near) = pipe::pair(Chunking::UpTo(100));
    let mut client = Client { tls: connect(&Arc::new(config), "a.example.com"), end };
    let choose = |hello: &Hello| hello.sni.is_none().then(|| Arc::clone(&site.config));
    let (server, shaken) = both(accept(near, choose), client.handshake());
    assert!(matches!(server.unwrap_err().error, AcceptError::Tls(_)));
    assert!(shaken.unwrap_err().to_string().contains("ProtocolVersion"), "the alert arrives");
}

#[test]
fn a_client_that_does_not_trust_us_says_so() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (end, near) = pipe::pair(Chunking::UpTo(700));
    let mut client = Client { tls: site.client("wrong.example.com"), end };
    let choose = |_: &Hello| Some(Arc::clone(&site.config));
    let (server, _) = both(accept(near, choose), async {
        client.handshake().await.unwrap_err();
        client.push().unwrap();
        client.end.close_write();
    });
    let error = server.unwrap_err().error;
    let AcceptError::Tls(error) = error else { panic!("{error:?}") };
    assert!(matches!(error, rustls::Error::AlertReceived(_)), "{error:?}");
}

#[test]
fn a_client_that_vanishes_in_the_handshake_ends_it() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut end, near) = pipe::pair(Chunking::UpTo(100));
    end.write(&[IoSlice::new(&hello_of(&mut site.client("a.example.com")))]).unwrap();
    let mut accepting = pin!(accept(near, |_| Some(Arc::clone(&site.config))));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(accepting.as_mut().poll(&mut cx).is_pending(), "waits for the client to go on");
    drop(end);
    let Poll::Ready(Err(error)) = accepting.as_mut().poll(&mut cx) else { panic!("still open") };
    let error = error.error;
    assert!(matches!(error, AcceptError::Closed | AcceptError::Io(_)), "{error:?}");
}

#[test]
fn tickets_resume_until_their_key_is_two_rotations_old() {
    for max in [Version::Tls12, Version::Tls13] {
        let site = Site::new("a.example.com", max);
        let config = Arc::new(site.client_config());
        let resumes = || {
            let tls = connect(&config, "a.example.com");
            let (mut server, mut client) = joined(&site, tls, Chunking::UpTo(3000));
            server.close_write();
            // Reading on takes in the new ticket.
            alone(client.read_to_end()).unwrap();
            server.resumed()
        };
        assert!(!resumes(), "the first time is a full handshake");
        assert!(resumes());
        site.tickets.rotate().unwrap();
        assert!(resumes());
        site.tickets.rotate().unwrap();
        site.tickets.rotate().unwrap();
        assert!(!resumes());
    }
}

#[test]
fn a_ticket_is_worthless_at_another_server() {
    let [a, b] = [(); 2].map(|()| Site::new("a.example.com", Version::Tls13));
    let mut both_roots = a.roots.clone();
    both_roots.roots.extend(b.roots.roots.iter().cloned());
    let a = Site { roots: both_roots, ..a };
    let config = a.client_config();
    let config = Arc::new(config);
    for (site, expected) in [(&a, false), (&a, true), (&b, false)] {
        let (mut server, mut client) =
            joined(site, connect(&config, "a.example.com"), Chunking::UpTo(3000));
        assert_eq!(server.resumed(), expected);
        server.close_write();
        alone(client.read_to_end()).unwrap();
    }
}

#[test]
fn bulk_flows_both_ways_with_back_pressure() {
    for (max, length) in [(Version::Tls12, 500_000), (Version::Tls13, 5_000_000)] {
        let site = Site::new("a.example.com", max);
        let tls = site.client("a.example.com");
        let (mut server, mut client) = joined(&site, tls, Chunking::UpTo(16_000));
        let (up, down) = (pattern(length), pattern(length + 1));

        let sending = async {
            client.write(&up).await.unwrap();
            client.close_notify();
        };
        let (received, ()) = both(read_all(&mut server), sending);
        assert!(received.unwrap() == up);

        let sending = async {
            for part in down.chunks(10_000) {
                poll_fn(|cx| server.poll_write_ready(cx)).await.unwrap();
                let (head, tail) = part.split_at(part.len() / 3);
                server.write(&[IoSlice::new(head), IoSlice::new(tail)]).unwrap();
            }
            server.close_write();
            flush(&mut server).await.unwrap();
        };
        let (received, ()) = both(client.read_to_end(), sending);
        assert!(received.unwrap() == down);
    }
}

#[test]
fn one_write_takes_everything() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[2]);
    let bytes = pattern(300_000);
    server.write(&[IoSlice::new(&bytes)]).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(server.poll_write_ready(&mut cx).is_pending(), "the mark of the stream below counts");
    server.close_write();
    assert!(alone(client.read_to_end()).unwrap() == bytes);
}

#[test]
fn plaintext_is_lent_until_it_is_consumed() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[1]);
    alone(client.write(b"abcdef")).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(server.poll_fill(&mut cx), Poll::Ready(Ok(lent)) if lent == b"abcdef"));
    server.consume(2);
    assert!(matches!(server.poll_fill(&mut cx), Poll::Ready(Ok(lent)) if lent == b"cdef"));
    server.consume(4);
    assert!(server.poll_fill(&mut cx).is_pending());
}

#[test]
fn data_right_behind_the_handshake_is_not_lost() {
    for max in [Version::Tls12, Version::Tls13] {
        let site = Site::new("a.example.com", max);
        let (end, near) = pipe::pair(Chunking::UpTo(20_000));
        let mut client = Client { tls: site.client("a.example.com"), end };
        // rustls keeps it until it may be sent, then sends it with the end of the handshake.
        client.tls.writer().write_all(b"early bird").unwrap();
        let choose = |_: &Hello| Some(Arc::clone(&site.config));
        let (server, shaken) = both(accept(near, choose), client.handshake());
        shaken.unwrap();
        client.close_notify();
        assert_eq!(alone(read_all(&mut server.unwrap())).unwrap(), b"early bird");
    }
}

#[test]
fn each_half_closes_on_its_own() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[1]);
    alone(client.write(b"question")).unwrap();
    client.close_notify();
    assert_eq!(alone(read_all(&mut server)).unwrap(), b"question");
    server.write(&[IoSlice::new(b"answer")]).unwrap();
    server.close_write();
    server.close_write();
    assert_eq!(
        server.write(&[IoSlice::new(b"more")]).unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    assert_eq!(alone(client.read_to_end()).unwrap(), b"answer");

    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[1]);
    server.close_write();
    assert_eq!(alone(client.read_to_end()).unwrap(), b"");
    alone(client.write(b"still here")).unwrap();
    client.close_notify();
    assert_eq!(alone(read_all(&mut server)).unwrap(), b"still here");
}

/// RUSTSEC-2024-0336: rustls looped without end on bytes behind close_notify.
#[test]
fn bytes_behind_close_notify_are_ignored() {
    let site = Site::new("a.example.com", Version::Tls13);
    for chunking in CHUNKINGS {
        let (mut server, mut client) = joined(&site, site.client("a.example.com"), chunking);
        alone(client.write(b"end")).unwrap();
        client.close_notify();
        client.end.write(&[IoSlice::new(&[0; 40_000])]).unwrap();
        assert_eq!(alone(read_all(&mut server)).unwrap(), b"end");
        assert_eq!(alone(read_all(&mut server)).unwrap(), b"", "it stays the end");
    }
}

#[test]
fn an_end_without_close_notify_counts_only_between_records() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[1]);
    alone(client.write(b"all of it")).unwrap();
    client.end.close_write();
    assert_eq!(alone(read_all(&mut server)).unwrap(), b"all of it");

    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[1]);
    alone(client.write(b"whole")).unwrap();
    client.tls.writer().write_all(b"cut").unwrap();
    let record = hello_of(&mut client.tls);
    client.end.write(&[IoSlice::new(&record[..record.len() - 1])]).unwrap();
    client.end.close_write();
    let error = alone(read_all(&mut server)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_forged_record_breaks_the_stream_for_good() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[1]);
    client.tls.writer().write_all(b"truth").unwrap();
    let mut record = hello_of(&mut client.tls);
    *record.last_mut().unwrap() ^= 1;
    client.end.write(&[IoSlice::new(&record)]).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..2 {
        let Poll::Ready(Err(error)) = server.poll_fill(&mut cx) else { panic!("accepted") };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    assert!(server.write(&[IoSlice::new(b"x")]).is_err());
    let told = alone(client.read_to_end()).unwrap_err();
    assert!(told.to_string().contains("BadRecordMac"), "the alert arrives: {told}");
}

#[test]
fn the_stream_stays_small() {
    // Every connection holds one; a change of this number is to be seen.
    let bytes = size_of::<TlsStream<End>>() - size_of::<End>();
    assert!(bytes <= 1536, "{bytes}");
}

#[test]
fn keys_are_renewed_when_the_client_wishes() {
    let site = Site::new("a.example.com", Version::Tls13);
    for chunking in CHUNKINGS {
        let (mut server, mut client) = joined(&site, site.client("a.example.com"), chunking);
        for round in 0..3 {
            client.tls.refresh_traffic_keys().unwrap();
            alone(client.write(b"ping")).unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            let mut received = Vec::new();
            while received.len() < 4 {
                let Poll::Ready(Ok(lent)) = server.poll_fill(&mut cx) else { panic!("{round}") };
                received.extend_from_slice(lent);
                let n = lent.len();
                server.consume(n);
            }
            assert_eq!(received, b"ping");
            // Sealed with our renewed key: rustls asks for one with each of its own.
            server.write(&[IoSlice::new(b"pong")]).unwrap();
        }
        server.close_write();
        assert_eq!(alone(client.read_to_end()).unwrap(), b"pongpongpong");
    }
}

/// What a peer that never reads can make us hold.
#[test]
fn wishes_for_new_keys_are_not_hoarded() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[2]);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..5_000 {
        client.tls.refresh_traffic_keys().unwrap();
        client.tls.writer().write_all(b"x").unwrap();
        client.push().unwrap();
        while let Poll::Ready(lent) = server.poll_fill(&mut cx) {
            let n = lent.unwrap().len();
            server.consume(n);
        }
    }
    assert!(server.poll_write_ready(&mut cx).is_ready(), "nothing piled up");
    server.write(&[IoSlice::new(b"done")]).unwrap();
    server.close_write();
    assert_eq!(alone(client.read_to_end()).unwrap(), b"done");
}

/// Why the client on `stream` is refused; nothing is held open for it after that.
async fn refused(
    stream: End,
    choose: impl FnOnce(&Hello) -> Option<Arc<ServerConfig>>,
) -> AcceptError {
    accept(stream, choose).await.unwrap_err().error
}

/// rustls reads on in what it refused, and panics, if it is asked for more than its alert.
#[test]
fn a_refused_message_with_others_behind_it_is_an_alert() {
    let site = Site::new("a.example.com", Version::Tls12);
    let (mut end, near) = pipe::pair(Chunking::UpTo(4096));
    end.write(&[IoSlice::new(&hello_of(&mut site.client("a.example.com")))]).unwrap();
    // Two HelloRequests in one record, which only a server may send.
    end.write(&[IoSlice::new(&[22, 3, 3, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0])]).unwrap();
    end.close_write();
    let choose = |_: &Hello| Some(Arc::clone(&site.config));
    let (server, answer) = both(refused(near, choose), read_all(&mut end));
    assert!(matches!(server, AcceptError::Tls(_)));
    let answer = answer.unwrap();
    assert_eq!(answer[answer.len() - 7..][..6], [21, 3, 3, 0, 2, 2], "a fatal alert at the end");
}

/// A partial message and then something else: what rustls holds of the first must not be read on.
#[test]
fn an_interrupted_message_is_an_alert() {
    let site = Site::new("a.example.com", Version::Tls12);
    let (mut end, near) = pipe::pair(Chunking::UpTo(4096));
    end.write(&[IoSlice::new(&hello_of(&mut site.client("a.example.com")))]).unwrap();
    end.write(&[IoSlice::new(&[22, 3, 3, 0, 5, 16, 0, 0, 33, 32, 20, 3, 3, 0, 1, 1])]).unwrap();
    end.close_write();
    let choose = |_: &Hello| Some(Arc::clone(&site.config));
    let (server, _) = both(refused(near, choose), read_all(&mut end));
    assert!(matches!(server, AcceptError::Tls(_)));
}

#[test]
fn a_client_that_only_renews_keys_is_cut() {
    let site = Site::new("a.example.com", Version::Tls13);
    let (mut server, mut client) = joined(&site, site.client("a.example.com"), CHUNKINGS[2]);
    for _ in 0..33 {
        client.tls.refresh_traffic_keys().unwrap();
        client.push().unwrap();
    }
    let error = alone(read_all(&mut server)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let told = alone(client.read_to_end()).unwrap_err();
    assert!(told.to_string().contains("UnexpectedMessage"), "{told}");
}

#[test]
fn both_libraries_seal_and_open_every_suite() {
    for choice in [Choice::Ring, Choice::AwsLcRs] {
        let provider = Provider::new(choice).rustls();
        let site = Site::with(choice, "a.example.com", Version::Tls13);
        // The site's key is for ECDSA.
        let usable = |suite: &&SupportedCipherSuite| !format!("{suite:?}").contains("_RSA_");
        for suite in provider.cipher_suites.iter().filter(usable) {
            let cipher_suites = vec![*suite];
            let only = CryptoProvider { cipher_suites, ..(*provider).clone() };
            let version = match suite {
                SupportedCipherSuite::Tls12(_) => &rustls::version::TLS12,
                SupportedCipherSuite::Tls13(_) => &rustls::version::TLS13,
            };
            let config = ClientConfig::builder_with_provider(Arc::new(only))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(site.roots.clone())
                .with_no_client_auth();
            let tls = connect(&Arc::new(config), "a.example.com");
            let (mut server, mut client) = joined(&site, tls, CHUNKINGS[1]);
            assert_eq!(server.suite().suite(), suite.suite());
            alone(client.write(b"question")).unwrap();
            client.close_notify();
            assert_eq!(alone(read_all(&mut server)).unwrap(), b"question");
            server.write(&[IoSlice::new(b"answer")]).unwrap();
            server.close_write();
            assert_eq!(alone(client.read_to_end()).unwrap(), b"answer", "{suite:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// A ClientHello with bytes changed, cut, and followed by others: whatever comes of it, the
    /// server is done with it once the client has left.
    #[test]
    fn no_hello_is_too_odd(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        behind in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let site = Site::new("a.test", Version::Tls13);
        let mut bytes = Vec::new();
        site.client("a.test").write_tls(&mut bytes).unwrap();
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        bytes.extend(behind);
        let (mut end, near) = pipe::pair(Chunking::UpTo(1000));
        end.write(&[IoSlice::new(&bytes)]).unwrap();
        drop(end);
        let done = alone(accept(near, |_| Some(Arc::clone(&site.config))));
        prop_assert!(done.is_err(), "a client that left has not shaken hands");
    }
}
