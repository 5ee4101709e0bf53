//! The byte stream to an endpoint: plain, or TLS inside.
//!
//! - A plain one is as it was connected: what it costs is to look which of the two it is.
//! - TLS is shaken within the time that a connect has, for the name that the cluster has or that
//!   the request's host is.

use std::borrow::Cow;
use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::header;
use ::http::request::Parts;
use bytes::{Buf, Bytes};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::address::Address;
use crate::io::{Probed, Stream, Take};
use crate::snapshot::BackendTls;
use crate::tls::{self, TlsStream};

use super::error::Kind;

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) enum Transport<S> {
    /// As the endpoint was connected.
    Plain(S),
    /// With TLS inside.
    Tls(Box<TlsStream<S>>),
}

/// How connections of a kind are secured, and for which name.
#[derive(Clone)]
pub(super) struct Secured {
    pub(super) tls: Arc<BackendTls>,
    pub(super) name: ServerName<'static>,
}

impl Secured {
    /// For `host`, where the policy names none.
    pub(super) fn new(tls: &Arc<BackendTls>, host: Option<&str>) -> Result<Self, Kind> {
        let name = match (&tls.name, host) {
            (Some(name), _) => name.clone(),
            (None, Some(host)) => ServerName::try_from(host.to_owned()).map_err(|_| unnamed())?,
            (None, None) => return Err(unnamed()),
        };
        Ok(Self { tls: Arc::clone(tls), name })
    }

    /// What a handshake is made with.
    pub(super) fn config(&self) -> Result<&Arc<ClientConfig>, Kind> {
        let missing = "its certificates are not to be had; see /certs, or /config_dump for an \
                       error in its DestinationRule";
        self.tls.config.as_ref().ok_or_else(|| Kind::Tls(missing.into()))
    }

    /// Shakes hands on `stream`, which was connected to `remote`.
    pub(super) async fn shake<S: Stream>(
        &self,
        stream: S,
        remote: Address,
    ) -> Result<Transport<S>, Kind> {
        let config = Arc::clone(self.config()?);
        let shaken = tls::connect(stream, config, self.name.clone()).await;
        let name = self.name.to_str();
        let failed = |error| Kind::Tls(format!("{error} ({name} at {remote})").into());
        shaken.map(|stream| Transport::Tls(Box::new(stream))).map_err(failed)
    }
}

pub(super) fn unnamed() -> Kind {
    Kind::Tls("the request's host is no name that an endpoint could be asked for".into())
}

/// The name in the host that `head` asks for, in lower case: what stands before a port, without
/// the brackets of an address.
pub(super) fn host_name(head: &Parts) -> Option<Cow<'_, str>> {
    let host = match head.headers.get(header::HOST) {
        Some(host) => host.to_str().ok()?,
        None => head.uri.authority()?.as_str(),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address.parse::<Ipv6Addr>().ok().map(|_| address)?,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(Cow::Owned(name.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(name))
}

impl<S: Probed + Stream> Transport<S> {
    /// The address of our end.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.local(),
            Self::Tls(stream) => stream.below().local(),
        }
    }
}

impl<S: Stream> Stream for Transport<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        match self {
            Self::Plain(stream) => stream.poll_fill(cx),
            Self::Tls(stream) => stream.poll_fill(cx),
        }
    }

    fn consume(&mut self, n: usize) {
        match self {
            Self::Plain(stream) => stream.consume(n),
            Self::Tls(stream) => stream.consume(n),
        }
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_write_ready(cx),
            Self::Tls(stream) => stream.poll_write_ready(cx),
        }
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.append(fill),
            Self::Tls(stream) => stream.append(fill),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_flush(cx),
            Self::Tls(stream) => stream.poll_flush(cx),
        }
    }

    fn close_write(&mut self) {
        match self {
            Self::Plain(stream) => stream.close_write(),
            Self::Tls(stream) => stream.close_write(),
        }
    }
}

/// Bytes that left a [`Transport`].
#[derive(Debug)]
pub(crate) enum Piece<P> {
    /// Where they were received.
    Plain(P),
    /// What was in a record.
    Bytes(Bytes),
}

impl<P: Buf> Buf for Piece<P> {
    fn remaining(&self) -> usize {
        match self {
            Self::Plain(piece) => piece.remaining(),
            Self::Bytes(bytes) => bytes.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Plain(piece) => piece.chunk(),
            Self::Bytes(bytes) => bytes.chunk(),
        }
    }

    fn advance(&mut self, n: usize) {
        match self {
            Self::Plain(piece) => piece.advance(n),
            Self::Bytes(bytes) => bytes.advance(n),
        }
    }
}

impl<S: Take> Take for Transport<S> {
    type Piece = Piece<S::Piece>;

    fn take(&mut self, n: usize) -> Self::Piece {
        match self {
            Self::Plain(stream) => Piece::Plain(stream.take(n)),
            Self::Tls(stream) => Piece::Bytes(stream.take(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::pipe::{Chunking, End};
    use crate::snapshot::{Cluster, Limits, PoolLimits, Traffic, TrafficPolicy, UpstreamProtocol};
    use crate::upstream::world::{self, Fed, World, bare, cluster, poll_frame, read, write};
    use crate::upstream::{Exchange, To, Upgraded, Upstreams};
    use ::http::Request;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use std::future::{Future, poll_fn};
    use std::pin::Pin;
    use std::task::Waker;

    /// An endpoint with a certificate, and what a client trusts it by.
    struct Site {
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
    }

    impl Site {
        fn new(names: &[&str], alpn: &[&[u8]]) -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let params = rcgen::CertificateParams::new(names).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let der = CertificateDer::from(certificate.der().to_vec());
            let provider = Arc::new(aws_lc_rs::default_provider());
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![der.clone()], key)
                .unwrap();
            server.enable_secret_extraction = true;
            let mut roots = RootCertStore::empty();
            roots.add(der).unwrap();
            let mut client = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            client.enable_secret_extraction = true;
            let alpn: Vec<_> = alpn.iter().map(|name| name.to_vec()).collect();
            (server.alpn_protocols, client.alpn_protocols) = (alpn.clone(), alpn);
            Self { server: Arc::new(server), client: Arc::new(client) }
        }

        fn cluster(&self, name: Option<&str>, protocol: UpstreamProtocol) -> Cluster {
            let name = name.map(|name| ServerName::try_from(name.to_owned()).unwrap());
            let tls = BackendTls::new(Some(Arc::clone(&self.client)), name);
            Cluster { tls: Some(Arc::new(tls)), ..cluster(1, protocol) }
        }

        /// The endpoint's end of the oldest connection.
        fn accept(&self, world: &World) -> impl Future<Output = TlsStream<End>> + use<> {
            let (_, end) = world.accept();
            let config = Arc::clone(&self.server);
            async move { tls::accept(end, |_| Some(config)).await.unwrap() }
        }
    }

    struct Client {
        world: World,
        upstreams: Upstreams<World>,
        limits: Limits,
    }

    type Sent = Result<Exchange<World, Fed>, crate::upstream::Error>;

    impl Client {
        fn new() -> Self {
            let world = World::new(Chunking::UpTo(5_000));
            let upstreams = Upstreams::new(world.clone(), world::telemetry());
            Self { world, upstreams, limits: Limits::default() }
        }

        async fn send(&self, cluster: &Cluster, request: Request<Fed>) -> Sent {
            self.send_in(0, cluster, request).await
        }

        async fn send_in(&self, generation: u64, cluster: &Cluster, request: Request<Fed>) -> Sent {
            let (head, body) = request.into_parts();
            let to = To::new(cluster, &self.limits, generation);
            self.upstreams.send(to, &head, body).await
        }

        /// Sends a request over a fresh connection; the endpoint answers with `body`.
        fn exchange(&self, site: &Site, cluster: &Cluster, body: &[u8]) -> TlsStream<End> {
            let mut sending = Box::pin(self.send(cluster, bare("GET")));
            assert!(self.world.settle(&mut sending).is_pending(), "the hello is out");
            let mut accepting = Box::pin(site.accept(&self.world));
            let mut far = self.settle_both(&mut sending, &mut accepting);
            self.answer(&mut far, &mut sending, body);
            far
        }

        /// Until `b` is done.
        fn settle_both<A: Future, B: Future>(
            &self,
            a: &mut Pin<Box<A>>,
            b: &mut Pin<Box<B>>,
        ) -> B::Output {
            for _ in 0..100 {
                if let Poll::Ready(output) = self.world.settle(b) {
                    assert!(self.world.settle(a).is_pending());
                    return output;
                }
                assert!(self.world.settle(a).is_pending());
            }
            panic!("stuck")
        }

        fn answer(
            &self,
            far: &mut TlsStream<End>,
            sending: &mut Pin<Box<impl Future<Output = Sent>>>,
            body: &[u8],
        ) {
            assert!(read(far).starts_with("GET / HTTP/1.1\r\nhost: a.example\r\n"));
            write(far, format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()));
            write(far, body);
            let Poll::Ready(Ok(mut exchange)) = self.world.settle(sending) else {
                panic!("no answer")
            };
            let mut received = Vec::new();
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(Some(frame)) = poll_frame(&mut exchange, &mut cx) {
                received.extend_from_slice(&frame.unwrap().into_data().unwrap());
            }
            assert!(received == body);
        }

        /// The TLS failure of a request.
        fn failure(&self, site: &Site, cluster: &Cluster) -> String {
            let mut sending = Box::pin(self.send(cluster, bare("GET")));
            assert!(self.world.settle(&mut sending).is_pending());
            let (_, end) = self.world.accept();
            let config = Arc::clone(&site.server);
            let mut accepting = Box::pin(async move { tls::accept(end, |_| Some(config)).await });
            let mut is_over = false;
            for _ in 0..100 {
                is_over = is_over || self.world.settle(&mut accepting).is_ready();
                if let Poll::Ready(sent) = self.world.settle(&mut sending) {
                    let error = sent.err().expect("no exchange");
                    assert!(matches!(error.kind, Kind::Tls(_)), "{error}");
                    return error.of_tls().unwrap();
                }
            }
            panic!("stuck")
        }
    }

    #[test]
    fn requests_go_through_tls_and_use_its_connection_again() {
        let site = Site::new(&["a.example"], &[b"http/1.1"]);
        for name in [None, Some("a.example")] {
            let client = Client::new();
            let cluster = site.cluster(name, UpstreamProtocol::Http1);
            let body = vec![7; 100_000];
            let mut far = client.exchange(&site, &cluster, &body);
            assert_eq!(far.server_name(), Some("a.example"));
            let mut sending = Box::pin(client.send(&cluster, bare("GET")));
            assert!(client.world.settle(&mut sending).is_pending());
            client.answer(&mut far, &mut sending, &body[1..]);
            assert_eq!(client.world.connects(), 1);
        }
    }

    #[test]
    fn no_connection_passes_to_another_policy_or_name() {
        let site = Site::new(&["a.example", "b.example"], &[]);
        let client = Client::new();
        let cluster = site.cluster(Some("a.example"), UpstreamProtocol::Http1);
        client.exchange(&site, &cluster, b"x");
        client.exchange(&site, &site.cluster(Some("a.example"), UpstreamProtocol::Http1), b"x");
        let by_host = site.cluster(None, UpstreamProtocol::Http1);
        client.exchange(&site, &by_host, b"x");
        assert_eq!(client.world.connects(), 3);
        let mut request = bare("GET");
        request.headers_mut().insert("host", "b.example:1".parse().unwrap());
        let mut sending = Box::pin(client.send(&by_host, request));
        assert!(client.world.settle(&mut sending).is_pending());
        let mut accepting = Box::pin(site.accept(&client.world));
        let far = client.settle_both(&mut sending, &mut accepting);
        assert_eq!(far.server_name(), Some("b.example"));
        let plain = world::cluster(1, UpstreamProtocol::Http1);
        let mut sending = Box::pin(client.send(&plain, bare("GET")));
        assert!(client.world.settle(&mut sending).is_pending());
        assert!(read(&mut client.world.accept().1).starts_with("GET / HTTP/1.1"));
    }

    /// A request for the host number `n`.
    fn named(n: usize) -> Request<Fed> {
        let mut request = bare("GET");
        request.headers_mut().insert("host", format!("h{n}.example").parse().unwrap());
        request
    }

    #[test]
    fn names_that_clients_make_up_are_not_remembered_without_a_bound() {
        let site = Site::new(&["a.example"], &[]);
        let cluster = site.cluster(None, UpstreamProtocol::Http1);
        let client = Client::new();
        client.world.refuse(cluster.endpoints[0]);
        for n in 0..1000 {
            assert!(client.world.finish(client.send(&cluster, named(n))).is_err());
        }
        let names = client.upstreams.names();
        assert!(names <= 100, "{names} names although no connection succeeded");
        client.world.black_hole();
        let mut waiting: Vec<_> =
            (0..1500).map(|n| Box::pin(client.send(&cluster, named(n)))).collect();
        for sending in &mut waiting {
            assert!(sending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let names = client.upstreams.names();
        assert!(names <= 1024, "{names} names of requests under way");
        drop(waiting);
        let mut one = Box::pin(client.send(&cluster, named(9999)));
        assert!(client.world.settle(&mut one).is_pending());
        assert_eq!(client.upstreams.names(), 1, "all others are over");
    }

    #[test]
    fn what_is_idle_under_a_former_policy_makes_room_within_the_limits() {
        let site = Site::new(&["a.example"], &[b"http/1.1"]);
        let client = Client::new();
        let limited = || {
            let pool = PoolLimits { connections_max: Some(2), ..PoolLimits::default() };
            let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
            let traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
            Cluster { traffic, ..site.cluster(Some("a.example"), UpstreamProtocol::Http1) }
        };
        let (former, newer) = (limited(), limited());
        // Two at once, and so two connections.
        let two = |generation: u64, cluster: &Cluster| {
            let mut sending =
                [(); 2].map(|()| Box::pin(client.send_in(generation, cluster, bare("GET"))));
            for sending in &mut sending {
                assert!(client.world.settle(sending).is_pending());
            }
            let mut far = [(); 2].map(|()| Box::pin(site.accept(&client.world)));
            let both = sending.iter_mut().zip(&mut far);
            let mut far: Vec<_> = both.map(|(s, far)| client.settle_both(s, far)).collect();
            for (sending, far) in sending.iter_mut().zip(&mut far) {
                client.answer(far, sending, b"x");
            }
            far
        };
        let before = two(1, &former);
        assert_eq!(client.world.connects(), 2);
        let now = two(2, &newer);
        assert_eq!(client.world.connects(), 4, "nobody waited");
        // A request that began before the reload goes on, and keeps nothing.
        let mut late = Box::pin(client.send_in(1, &former, bare("GET")));
        assert!(client.world.settle(&mut late).is_pending());
        drop((before, now));
    }

    #[test]
    fn a_free_connection_is_for_who_waits_for_its_name() {
        let names = ["a.example", "b.example"];
        let (site, client) = (Site::new(&names, &[b"http/1.1"]), Client::new());
        let pool = PoolLimits { connections_max: Some(1), ..PoolLimits::default() };
        let policy = TrafficPolicy { pool, ..TrafficPolicy::default() };
        let traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
        let cluster = Cluster { traffic, ..site.cluster(None, UpstreamProtocol::Http1) };
        let send = |name: &str| {
            let mut request = bare("GET");
            request.headers_mut().insert("host", name.parse().unwrap());
            let mut sending = Box::pin(client.send(&cluster, request));
            assert!(client.world.settle(&mut sending).is_pending());
            sending
        };
        // Each name has a connection, and the one for the second is never free.
        let [mut first, mut second] = names.map(send);
        let mut far = [&mut first, &mut second].map(|sending| {
            let mut accepting = Box::pin(site.accept(&client.world));
            client.settle_both(sending, &mut accepting)
        });
        let [mut third, mut fourth] = ["b.example", "a.example"].map(send);
        client.answer(&mut far[0], &mut first, b"x");
        for sending in [&mut third, &mut fourth] {
            assert!(client.world.settle(sending).is_pending());
        }
        client.answer(&mut far[0], &mut fourth, b"y");
    }

    #[test]
    fn an_endpoint_that_is_not_the_wanted_one_gets_nothing() {
        let site = Site::new(&["b.example"], &[]);
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let client = Client::new();
            let failure = client.failure(&site, &site.cluster(None, protocol));
            assert!(failure.starts_with("TLS error: the certificate is refused: "), "{failure}");
            assert!(failure.ends_with("(a.example at 127.0.0.1:1)"), "{failure}");
        }
    }

    #[test]
    fn nothing_is_sent_while_there_is_no_configuration_or_no_name() {
        let site = Site::new(&["a.example"], &[]);
        let client = Client::new();
        let missing = Arc::new(BackendTls::new(None, None));
        let cluster = Cluster { tls: Some(missing), ..cluster(1, UpstreamProtocol::Http1) };
        let error = client.world.finish(client.send(&cluster, bare("GET"))).err().unwrap();
        assert!(error.to_string().contains("certificates are not to be had"), "{error}");
        assert_eq!(client.world.connects(), 0);
        let mut request = bare("GET");
        request.headers_mut().insert("host", "a b".parse().unwrap());
        let by_host = site.cluster(None, UpstreamProtocol::Http1);
        let error = client.world.finish(client.send(&by_host, request)).err().unwrap();
        assert!(error.to_string().contains("is no name"), "{error}");
    }

    #[test]
    fn a_handshake_takes_no_longer_than_a_connect_may() {
        let site = Site::new(&["a.example"], &[]);
        let client = Client::new();
        let cluster = site.cluster(None, UpstreamProtocol::Http1);
        let mut sending = Box::pin(client.send(&cluster, bare("GET")));
        assert!(client.world.settle(&mut sending).is_pending());
        client.world.advance(cluster.connect_timeout);
        let Poll::Ready(Err(error)) = client.world.settle(&mut sending) else { panic!("waits") };
        assert!(matches!(error.kind, Kind::ConnectTimeout), "{error}");
    }

    #[test]
    fn a_protocol_that_was_switched_to_goes_on_inside() {
        let site = Site::new(&["a.example"], &[b"http/1.1"]);
        let client = Client::new();
        let cluster = site.cluster(None, UpstreamProtocol::Http1);
        let (mut head, _) = bare("GET").into_parts();
        head.headers.insert("upgrade", "websocket".parse().unwrap());
        let to = To::new(&cluster, &client.limits, 0);
        let mut asking = Box::pin(client.upstreams.upgrade(to, &head));
        assert!(client.world.settle(&mut asking).is_pending());
        let mut accepting = Box::pin(site.accept(&client.world));
        let mut far = client.settle_both(&mut asking, &mut accepting);
        assert!(read(&mut far).contains("connection: upgrade\r\n"));
        write(&mut far, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\nhi");
        let Poll::Ready(Ok(Upgraded::Switched { mut stream, .. })) =
            client.world.settle(&mut asking)
        else {
            panic!("refused")
        };
        assert_eq!(read(&mut stream), "hi");
        write(&mut stream, "there");
        assert_eq!(read(&mut far), "there");
    }

    #[test]
    fn pieces_are_what_was_lent_however_records_were_cut() {
        let site = Site::new(&["a.example"], &[]);
        for chunk in [1_000, 40_000, 200_000] {
            let (far, near) = crate::io::pipe::pair(Chunking::UpTo(chunk));
            let name = ServerName::try_from("a.example").unwrap();
            let connecting = tls::connect(near, Arc::clone(&site.client), name);
            let accepting = tls::accept(far, |_| Some(Arc::clone(&site.server)));
            let world = World::new(Chunking::UpTo(1));
            let mut connecting = Box::pin(connecting);
            let mut accepting = Box::pin(accepting);
            assert!(world.settle(&mut connecting).is_pending());
            let mut stream = loop {
                // In TLS 1.3 the client is done first.
                assert!(world.settle(&mut accepting).is_pending());
                if let Poll::Ready(stream) = world.settle(&mut connecting) {
                    break stream.unwrap();
                }
            };
            let Poll::Ready(far) = world.settle(&mut accepting) else { panic!("waits") };
            let (stream, far) = (&mut stream, &mut far.unwrap());
            let sent: Vec<u8> = (0..=250).cycle().take(60_000).collect();
            write(far, &sent);
            let mut received = Vec::new();
            while received.len() < sent.len() {
                let lent = world.finish(poll_fn(|cx| stream.poll_fill(cx).map_ok(|l| l.len())));
                let n = lent.unwrap().min(9_000);
                received.extend_from_slice(&Take::take(stream, n));
            }
            assert!(received == sent);
        }
    }

    #[test]
    fn the_host_is_asked_for_without_what_is_no_part_of_its_name() {
        for (host, expected) in [
            ("a.example.com", Some("a.example.com")),
            ("A.Example.com:8443", Some("a.example.com")),
            ("a.example.com.", Some("a.example.com")),
            ("192.0.2.1:80", Some("192.0.2.1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("[odd]", None),
        ] {
            let request = Request::get("/").header("host", host).body(()).unwrap();
            assert_eq!(host_name(&request.into_parts().0).as_deref(), expected);
        }
        let request = Request::get("https://b.example:1/").body(()).unwrap();
        assert_eq!(host_name(&request.into_parts().0).as_deref(), Some("b.example"));
        assert_eq!(host_name(&Request::get("/").body(()).unwrap().into_parts().0), None);
    }

    #[test]
    fn a_plain_one_is_no_larger_than_its_stream() {
        let plain = size_of::<End>();
        assert!(size_of::<Transport<End>>() <= plain + 8);
    }
}
