//! The life of a connection: accepted, secured, served, closed.
//!
//! ```text
//! accepted (--> header of the PROXY protocol, if the peer is known to send one)
//!    \--plain--> http, or tcp
//!    \--TLS--> ClientHello --> server by SNI --> handshake --> http, or tcp
//!                   |               \-- passed on as it is --> tcp
//!                   \-- none --> closed without a word
//! ```
//!
//! - A snapshot is held only while something is looked up in it, never as long as the connection.
//! - What is over a limit is closed at once and counted: nobody waits for a slot. Of handshakes it
//!   is the one that has taken longest, of connections the one that has been idle longest, if there
//!   is one.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderValue;

use super::balance::{Balance, Carried};
use super::{Fresh, Worker};
use crate::address::Address;
use crate::drain::Watch;
use crate::http::{self, Downstream, Protocol};
use crate::io::{Elapsed, Net, Stream, linger};
use crate::snapshot::{Identity, ListenerKey, Serves, TcpTable, TlsPolicy, TlsServer, TlsServes};
use crate::tcp;
use crate::tcp::proxy_protocol::{self, Header, ReadError};
use crate::telemetry::Counters;
use crate::telemetry::counters::Count;
use crate::telemetry::request::{Flags, Record};
use crate::tls::{self, AcceptError, Hello, TlsStream, Unaccepted};

/// A connection that has just been accepted.
pub(super) struct Connection<N: Net> {
    pub(super) worker: Rc<Worker<N>>,
    /// Which port it came to, and at which address.
    pub(super) listener: ListenerKey,
    pub(super) remote: Address,
    pub(super) local: Address,
    pub(super) watch: Watch,
}

impl<N: Net> Connection<N> {
    /// Serves the connection from its first byte to its last. None, and it is closed, if there are
    /// too many.
    pub(super) fn serve<S: Stream>(self, stream: S) -> Option<impl Future<Output = ()>> {
        self.worker.gateway.telemetry.counters().connections_accepted.increment();
        let Some(open) = Open::begin(&self.worker) else {
            self.note(&Failure::TooManyConnections);
            return None;
        };
        // The task is two boxes, one after the other, so that a connection carries neither itself
        // nor the room of its handshake when that is over.
        let beginning = Box::pin(self.begin(stream));
        Some(async move {
            // By reference: what is moved would lie in the task twice.
            let _counted = &open;
            if let Some(served) = beginning.await {
                served.await;
            }
        })
    }

    /// All that comes before HTTP, or before an endpoint gets the connection; none when it does not
    /// come to that.
    async fn begin<S: Stream>(mut self, mut stream: S) -> Option<Served> {
        if self.is_of_proxy() {
            self.hear_of_client(&mut stream).await?;
        }
        // None: the listener went away between the accept and now.
        match self.kind()? {
            Kind::Http => {
                let downstream = self.downstream(None);
                let gateway = Rc::clone(&self.worker.gateway);
                Some(http::serve(gateway, downstream, stream, Protocol::Detect, self.watch))
            }
            Kind::Tcp(table) => Some(self.serve_tcp(&table, (stream, Vec::new()), None)),
            Kind::Tls => match self.secure(stream).await {
                Ok(Secured::Http(stream, policy)) => Some(self.serve_http(stream, policy)),
                Ok(Secured::Tcp(mut stream, table)) => {
                    self.count_handshake(&mut stream);
                    let name = stream.server_name().map(Into::into);
                    Some(self.serve_tcp(&table, (stream, Vec::new()), name))
                }
                Ok(Secured::Passed(stream, taken, name, table)) => {
                    Some(self.serve_tcp(&table, (stream, taken), name))
                }
                Err(failure) => {
                    self.note(&failure);
                    None
                }
            },
        }
    }

    /// Whether a header of the PROXY protocol is to come first.
    fn is_of_proxy(&self) -> bool {
        let Address::Ip(remote) = self.remote else { return false };
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        let proxies = &snapshots.current().policy.proxy_protocol;
        proxies.iter().any(|range| range.contains(remote.ip()))
    }

    /// Takes the header of the PROXY protocol, and the addresses in it for those of the connection.
    /// None, and that is noted, if there is no such header.
    async fn hear_of_client<S: Stream>(&mut self, stream: &mut S) -> Option<()> {
        let failure = match self.in_time(proxy_protocol::read(stream)).await {
            Ok(Ok(Header::Proxied { source, destination })) => {
                (self.remote, self.local) = (source.into(), destination.into());
                return Some(());
            }
            Ok(Ok(Header::Own)) => return Some(()),
            // As health checks do.
            Ok(Err(ReadError::Unused)) => return None,
            Ok(Err(ReadError::Closed | ReadError::Malformed)) => Failure::NoProxyHeader,
            Err(failure) => failure,
        };
        self.note(&failure);
        None
    }

    /// Runs `step` of the connection's beginning, within the limits of handshakes.
    async fn in_time<F: Future>(&self, step: F) -> Result<F::Output, Failure> {
        let (times, handshakes_max) = self.handshake_limits();
        let shaking = self.worker.handshakes.begin(handshakes_max);
        let hurried = http::hurry(&self.worker.gateway.net, &self.watch, times, step);
        match shaking.run(Box::pin(hurried)).await {
            Some(Ok(done)) => Ok(done),
            Some(Err(Elapsed)) => Err(Failure::TooSlow),
            None => Err(Failure::TooManyHandshakes),
        }
    }

    /// How long a step may take, also in a drain, and how many connections may be at one.
    fn handshake_limits(&self) -> ((Duration, Duration), usize) {
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        let limits = &snapshots.current().limits;
        ((limits.handshake_timeout, limits.linger_timeout), limits.handshakes_max)
    }

    fn kind(&self) -> Option<Kind> {
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        let listener = snapshots.current().listener_for(self.listener)?;
        Some(match &listener.serves {
            Serves::Http(_) => Kind::Http,
            Serves::Tls(_) => Kind::Tls,
            Serves::Tcp(table) => Kind::Tcp(Arc::clone(table)),
        })
    }

    fn serve_tcp<S: Stream>(
        self,
        table: &TcpTable,
        (stream, taken): (S, Vec<u8>),
        server_name: Option<Box<str>>,
    ) -> Served {
        let Self { worker, remote, local, watch, .. } = self;
        let gateway = &worker.gateway;
        let terms = {
            let mut snapshots = gateway.snapshots.borrow_mut();
            let view = snapshots.current();
            tcp::Terms { limits: view.limits.clone(), generation: view.generation }
        };
        // Only where TLS is passed on routes are told apart by name; elsewhere all stand at `*`.
        let [source, destination] = [remote, local].map(|end| end.ip().map(|end| end.ip()));
        let route = table.find(server_name.as_deref(), source, destination);
        let shared = tcp::Shared {
            net: gateway.net.clone(),
            upstreams: gateway.upstreams.clone(),
            telemetry: Rc::clone(&gateway.telemetry),
        };
        let downstream = tcp::Downstream { stream, taken, remote, local, server_name };
        tcp::serve(shared, downstream, terms, route, watch)
    }

    fn serve_http<S: Stream>(self, mut stream: TlsStream<S>, policy: TlsPolicy) -> Served {
        let client_certificate = self.count_handshake(&mut stream);
        let protocol = match stream.alpn() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let server_name = stream.server_name().map(Into::into);
        let tls = http::Tls { server_name, policy: Some(policy), client_certificate };
        let downstream = self.downstream(Some(tls));
        let gateway = Rc::clone(&self.worker.gateway);
        http::serve(gateway, downstream, stream, protocol, self.watch)
    }

    /// Counts it; what upstreams may be told of the client's certificate, if it showed one.
    fn count_handshake<S: Stream>(&self, stream: &mut TlsStream<S>) -> Option<HeaderValue> {
        let counters = self.worker.gateway.telemetry.counters();
        counters.handshakes_ok.increment();
        if stream.resumed() {
            counters.handshakes_resumed.increment();
        }
        let client = stream.take_client().and_then(|told| told.try_into().ok());
        if client.is_none() {
            counters.clients_anonymous.increment();
        }
        client
    }

    /// Reads the ClientHello and does what the server that it selects wants.
    async fn secure<S: Stream>(&self, stream: S) -> Result<Secured<S>, Failure> {
        let Unaccepted { error, stream } = match self.in_time(self.greet(stream)).await? {
            Ok(secured) => return Ok(secured),
            Err(unaccepted) => unaccepted,
        };
        if let Some(stream) = stream {
            let ((_, grace), _) = self.handshake_limits();
            linger(&self.worker.gateway.net, grace, stream).await;
        }
        Err(Failure::Refused(error))
    }

    async fn greet<S: Stream>(&self, stream: S) -> Result<Secured<S>, Unaccepted<S>> {
        let greeting = tls::greet(stream).await?;
        match self.choose(greeting.hello()) {
            None => Err(greeting.refuse().into()),
            Some(Choice::Http(config)) => {
                let policy = TlsPolicy::of(&config);
                Ok(Secured::Http(greeting.shake(config).await?, policy))
            }
            Some(Choice::Tcp(config, table)) => {
                Ok(Secured::Tcp(greeting.shake(config).await?, table))
            }
            Some(Choice::Pass(table)) => {
                let (stream, taken, hello) = greeting.pass();
                Ok(Secured::Passed(stream, taken, hello.sni, table))
            }
        }
    }

    /// What the server does that the SNI selects; none if there is no such server, or it has no
    /// usable certificate.
    fn choose(&self, hello: &Hello) -> Option<Choice> {
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        let listener = snapshots.current().listener_for(self.listener)?;
        let Serves::Tls(servers) = &listener.serves else {
            return None;
        };
        let server = match &hello.sni {
            Some(name) => servers.find(name),
            None => servers.any(),
        };
        Choice::of(server?, hello)
    }

    fn downstream(&self, tls: Option<http::Tls>) -> Rc<Downstream> {
        let now = self.worker.gateway.net.now();
        Rc::new(Downstream::new((self.remote, self.local), self.listener, tls, now))
    }

    fn note(&self, failure: &Failure) {
        if matches!(failure, Failure::Refused(AcceptError::Unused)) {
            // As health checks do: a port that was found open is no failure.
            return;
        }
        let telemetry = &self.worker.gateway.telemetry;
        let (counter, flags, details) = failure.told(telemetry.counters());
        counter.increment();
        telemetry.record(&Record {
            flags,
            details,
            server_name: failure.server_name(),
            downstream_local: Some(self.local),
            downstream_remote: Some(self.remote),
            ..Record::new(self.worker.gateway.net.wall())
        });
    }
}

/// What a listener speaks.
enum Kind {
    Http,
    Tls,
    Tcp(Arc<TcpTable>),
}

/// What a TLS server does with a client.
enum Choice {
    Http(Arc<rustls::ServerConfig>),
    Tcp(Arc<rustls::ServerConfig>, Arc<TcpTable>),
    Pass(Arc<TcpTable>),
}

impl Choice {
    fn of(server: &TlsServer, hello: &Hello) -> Option<Self> {
        match &server.serves {
            TlsServes::Http(Identity::Ready(config), _) => Some(Self::Http(Arc::clone(config))),
            TlsServes::Tcp(Identity::Ready(config), table) => {
                let config = tcp_config(config, hello);
                Some(Self::Tcp(config, Arc::clone(table)))
            }
            TlsServes::Passthrough(table) => Some(Self::Pass(Arc::clone(table))),
            TlsServes::Http(Identity::Missing, _) | TlsServes::Tcp(Identity::Missing, _) => None,
        }
    }
}

/// `config` where anything may be inside of TLS: as by Envoy, a client that offers other protocols
/// than HTTP gets none confirmed, where rustls would refuse it.
fn tcp_config(config: &Arc<rustls::ServerConfig>, hello: &Hello) -> Arc<rustls::ServerConfig> {
    if !hello.offers_others {
        return Arc::clone(config);
    }
    let mut config = rustls::ServerConfig::clone(config);
    config.alpn_protocols.clear();
    Arc::new(config)
}

/// A connection to a TLS port whose ClientHello was read.
enum Secured<S> {
    /// HTTP is inside.
    Http(TlsStream<S>, TlsPolicy),
    /// Anything is inside.
    Tcp(TlsStream<S>, Arc<TcpTable>),
    /// The endpoint is to shake hands: what was taken from the stream, and the SNI.
    Passed(S, Vec<u8>, Option<Box<str>>, Arc<TcpTable>),
}

/// What a connection is until its end. Boxed, so that none carries the largest of them.
type Served = Pin<Box<dyn Future<Output = ()>>>;

/// Why a connection did not get through its handshake.
enum Failure {
    /// `connections_max` others are open, or as many as there are files for, and none is idle.
    TooManyConnections,
    /// `handshakes_max` that came later are under way.
    TooManyHandshakes,
    /// It was not done in time.
    TooSlow,
    /// It should have begun with a header of the PROXY protocol.
    NoProxyHeader,
    Refused(AcceptError),
}

impl Failure {
    /// Where it is counted; and its flags and details in the access log.
    fn told<'a>(&self, counters: &'a Counters) -> (&'a Count, Flags, &'static str) {
        match self {
            Self::TooManyConnections => {
                (&counters.connections_over_limit, Flags::LOCAL_RESET, "connection_limit")
            }
            Self::TooManyHandshakes => {
                (&counters.connections_over_limit, Flags::LOCAL_RESET, "handshake_limit")
            }
            Self::TooSlow => (&counters.handshakes_timeout, Flags::NONE, "handshake_timeout"),
            Self::NoProxyHeader => {
                let flags = Flags::DOWNSTREAM_PROTOCOL_ERROR;
                (&counters.proxy_protocol_errors, flags, "proxy_protocol_error")
            }
            Self::Refused(error) => refused(error, counters),
        }
    }

    fn server_name(&self) -> &str {
        match self {
            Self::Refused(AcceptError::NoServer { sni: Some(name) }) => name,
            Self::Refused(_)
            | Self::TooManyConnections
            | Self::TooManyHandshakes
            | Self::NoProxyHeader
            | Self::TooSlow => "",
        }
    }
}

/// As [`Failure::told`], where a handshake did not come about.
fn refused<'a>(error: &AcceptError, counters: &'a Counters) -> (&'a Count, Flags, &'static str) {
    match error {
        AcceptError::NoServer { .. } => {
            (&counters.handshakes_no_server, Flags::NO_ROUTE, "filter_chain_not_found")
        }
        AcceptError::NotTls => {
            (&counters.handshakes_not_tls, Flags::DOWNSTREAM_PROTOCOL_ERROR, "not_tls")
        }
        AcceptError::Tls(rustls::Error::NoCertificatesPresented) => {
            (&counters.clients_without_certificate, Flags::NONE, "no_client_certificate")
        }
        AcceptError::Tls(rustls::Error::InvalidCertificate(error)) => {
            (&counters.clients_refused, Flags::NONE, why_refused(error))
        }
        AcceptError::Tls(_)
        | AcceptError::Unused
        | AcceptError::Closed
        | AcceptError::TooLong
        | AcceptError::Io(_) => (&counters.handshakes_tls_error, Flags::NONE, "tls_error"),
    }
}

/// What is wrong with a client's certificate, for the access log.
fn why_refused(error: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError as E;
    if matches!(error, E::UnknownIssuer) {
        "client_certificate_of_unknown_ca"
    } else if matches!(error, E::Revoked) {
        "client_certificate_revoked"
    } else if matches!(error, E::Expired | E::NotValidYet) {
        "client_certificate_out_of_date"
    } else if matches!(error, E::UnknownRevocationStatus | E::ExpiredRevocationList) {
        "client_certificate_without_valid_crl"
    } else {
        "client_certificate_refused"
    }
}

/// A connection within the limit, counted until it is dropped: also by a panic, or a drain.
#[must_use]
struct Open<N: Net> {
    worker: Rc<Worker<N>>,
    /// None where connections are not balanced.
    _carried: Option<Carried<Fresh>>,
}

impl<N: Net> Open<N> {
    fn begin(worker: &Rc<Worker<N>>) -> Option<Self> {
        let connections_max =
            worker.gateway.snapshots.borrow_mut().current().limits.connections_max;
        let connections_max = connections_max.min(worker.files_max);
        let (counters, idle) = (worker.gateway.telemetry.counters(), &worker.gateway.idle);
        let staying = || counters.connections_active.value() - idle.leaving() as u64;
        while staying() >= connections_max as u64 {
            if !idle.make_room() {
                return None;
            }
            counters.connections_gave_way.increment();
        }
        counters.connections_active.increment();
        let _carried = worker.balance.as_ref().map(Balance::carry);
        Some(Self { worker: Rc::clone(worker), _carried })
    }
}

impl<N: Net> Drop for Open<N> {
    fn drop(&mut self) {
        self.worker.gateway.telemetry.counters().connections_active.decrement();
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshakes::Handshakes;
    use super::*;
    use crate::drain::Drain;
    use crate::http::{Gateway, Idle, Mirrors};
    use crate::io::Spawn;
    use crate::io::pipe::{self, Chunking, End};
    use crate::snapshot::{
        BindPort, HostMap, Limits, Listener, Network, Policy, Publisher, Snapshot,
    };
    use crate::upstream::Upstreams;
    use crate::upstream::world::{World, telemetry};
    use std::cell::Cell;
    use std::net::{IpAddr, Ipv4Addr};
    use std::task::{Context, Poll, Waker};

    const KEY: ListenerKey =
        ListenerKey::Ip { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: BindPort::Fixed(443) };

    /// A worker with one TLS listener.
    fn worker(world: &World, limits: Limits) -> Rc<Worker<World>> {
        worker_with(world, limits, Policy::default())
    }

    fn worker_with(world: &World, limits: Limits, policy: Policy) -> Rc<Worker<World>> {
        let listener =
            Listener { key: KEY, gateway_port: 443, serves: Serves::Tls(HostMap::default()) };
        let listeners = vec![Arc::new(listener)];
        let mut publisher = Publisher::default();
        publisher.publish(Arc::new(Snapshot { listeners, limits, policy, ..Snapshot::default() }));
        let telemetry = telemetry();
        let gateway = Rc::new(Gateway {
            mirrors: Mirrors::default(),
            idle: Idle::default(),
            retires_connections: Cell::new(false),
            net: world.clone(),
            snapshots: publisher.source().subscribe().into(),
            upstreams: Upstreams::new(world.clone(), Rc::clone(&telemetry)),
            telemetry,
        });
        let (drain, handshakes) = (Drain::default(), Handshakes::default());
        Rc::new(Worker { gateway, drain, handshakes, files_max: usize::MAX, balance: None })
    }

    fn open(world: &World, worker: &Rc<Worker<World>>) -> End {
        let (near, far) = pipe::pair(Chunking::UpTo(4096));
        let address = "10.0.0.9:1234".parse().unwrap();
        let watch = worker.drain.watch();
        let worker = Rc::clone(worker);
        let connection =
            Connection { worker, listener: KEY, remote: address, local: address, watch };
        if let Some(serving) = connection.serve(far) {
            world.spawn(serving);
        }
        world.idle();
        near
    }

    fn is_closed(end: &mut End) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(end.poll_fill(&mut cx), Poll::Ready(Ok([])))
    }

    #[test]
    fn what_is_over_a_limit_is_closed_and_counted() {
        let proxies = Policy {
            proxy_protocol: Network::new("10.0.0.0".parse().unwrap(), 8).into_iter().collect(),
            ..Policy::default()
        };
        let cases = [
            (Limits { connections_max: 1, ..Limits::default() }, Policy::default()),
            (Limits { handshakes_max: 1, ..Limits::default() }, Policy::default()),
            // The header of the PROXY protocol that does not come is waited for as well.
            (Limits { handshakes_max: 1, ..Limits::default() }, proxies),
        ];
        for (limits, policy) in cases {
            let world = World::new(Chunking::UpTo(4096));
            let worker = worker_with(&world, limits.clone(), policy);
            // A listener holds a watch too: it is no connection.
            let _listening = worker.drain.watch();
            let counters = worker.gateway.telemetry.counters();
            let mut first = open(&world, &worker);
            let mut second = open(&world, &worker);
            assert_eq!(counters.connections_active.value(), 1);
            assert_eq!(counters.connections_over_limit.value(), 1);
            // Of handshakes the oldest gives way.
            let is_first = worker.handshakes.len() > 0 && is_closed(&mut first);
            assert_eq!(is_first, limits.handshakes_max == 1);
            assert!(is_first || is_closed(&mut second));
            drop((first, second));
            world.idle();
            assert_eq!((counters.connections_active.value(), worker.handshakes.len()), (0, 0));
            let _third = open(&world, &worker);
            assert_eq!(counters.connections_active.value(), 1, "there is room again");
        }
    }

    #[test]
    fn a_connection_is_small() {
        let world = World::new(Chunking::UpTo(4096));
        let worker = worker(&world, Limits::default());
        let (_near, far) = pipe::pair(Chunking::UpTo(4096));
        let address = "10.0.0.9:1234".parse().unwrap();
        let watch = worker.drain.watch();
        let connection =
            Connection { worker, listener: KEY, remote: address, local: address, watch };
        // Beside this it has one box: its handshake's, then `http::Served`.
        let bytes = size_of_val(&connection.serve(far).unwrap());
        assert!(bytes <= 80, "{bytes} bytes for as long as the connection lives");
    }

    #[test]
    fn who_closes_without_a_word_is_no_failure() {
        let failures = |said: &[u8]| {
            let world = World::new(Chunking::UpTo(4096));
            let worker = worker(&world, Limits::default());
            let mut client = open(&world, &worker);
            client.write(&[std::io::IoSlice::new(said)]).unwrap();
            drop(client);
            world.idle();
            let counters = worker.gateway.telemetry.counters();
            assert_eq!(counters.connections_active.value(), 0);
            counters.handshakes_tls_error.value()
        };
        assert_eq!(failures(b""), 0, "as health checks do");
        assert_eq!(failures(&[22, 3, 1]), 1);
    }

    #[test]
    fn a_dropped_connection_is_not_counted_on() {
        let world = World::new(Chunking::UpTo(4096));
        let worker = worker(&world, Limits::default());
        let open = Open::begin(&worker);
        let shaking = worker.handshakes.begin(1);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = (open, shaking);
            panic!("a bug in a connection");
        }));
        assert!(caught.is_err());
        let counters = worker.gateway.telemetry.counters();
        assert_eq!((counters.connections_active.value(), worker.handshakes.len()), (0, 0));
    }

    #[test]
    fn a_drain_does_not_wait_for_a_handshake_that_stands_still() {
        let world = World::new(Chunking::UpTo(4096));
        let limits = Limits::default();
        let worker = worker(&world, limits.clone());
        let _silent = open(&world, &worker);
        worker.drain.start();
        world.idle();
        assert_eq!(worker.drain.watches(), 1, "it may still come");
        world.advance(limits.linger_timeout);
        world.idle();
        assert_eq!(worker.drain.watches(), 0);
    }
}
