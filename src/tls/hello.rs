//! From a fresh connection to a TLS stream: ClientHello, choice of server, handshake.
//!
//! ```text
//! first byte -> ClientHello -> choose -> handshake -> TlsStream
//!   | not TLS     | broken      | none     | failed
//!   v             v             v          v
//! close         alert, close  close      alert, close
//! ```
//!
//! - A connection that no server wants, or that does not speak TLS, is closed without an alert, as
//!   Istio does: who probes learns nothing.
//! - Bytes behind the ClientHello stay where they are until the chosen server reads them.
//! - There is no timeout here: drop the future. The bytes of a handshake are bounded by
//!   [`HANDSHAKE_BYTES_MAX`].

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use rustls::server::{Accepted, AcceptedAlert, Acceptor, ClientHello};

use crate::io::{Stream, flush};

use super::TlsStream;
use super::engine::{Engine, Received, refused};
use super::record::Boundary;

/// Bytes that a client may send before its handshake is done: rustls allows 64 KiB to each message,
/// the largest are ClientHello and client certificate, and both may come in small records.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 2 * (64 + 16) * 1024;

/// First byte of a record that holds a handshake message; anything else does not begin TLS.
const HANDSHAKE: u8 = 22;

/// What the client said before anything was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The host that it asks for: lower case, without a trailing dot. `None` also for clients that
    /// send an address, which the protocol forbids.
    pub(crate) sni: Option<Box<str>>,
    /// Whether it offers HTTP/2.
    pub(crate) offers_h2: bool,
}

/// Why there is no TLS stream. The connection is closed.
#[derive(Debug)]
pub(crate) enum AcceptError {
    /// No server wants the connection.
    NoServer {
        /// What the client asked for.
        sni: Option<Box<str>>,
    },
    /// The first byte is not TLS, such as plain HTTP to the HTTPS port.
    NotTls,
    /// The client closed without sending anything, as health checks do.
    Unused,
    /// The client closed in the middle of the handshake.
    Closed,
    /// The client sent more than [`HANDSHAKE_BYTES_MAX`] without finishing.
    TooLong,
    /// The handshake failed; the client was sent the alert, or sent one.
    Tls(rustls::Error),
    /// The connection broke.
    Io(io::Error),
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServer { sni: Some(sni) } => write!(f, "no server for {sni}"),
            Self::NoServer { sni: None } => f.write_str("no server for clients without SNI"),
            Self::NotTls => f.write_str("the client does not speak TLS"),
            Self::Unused => f.write_str("the client closed without sending anything"),
            Self::Closed => f.write_str("the client closed during the handshake"),
            Self::TooLong => write!(f, "the handshake is over {HANDSHAKE_BYTES_MAX} bytes"),
            Self::Tls(error) => write!(f, "the handshake failed: {error}"),
            Self::Io(error) => write!(f, "the connection broke: {error}"),
        }
    }
}

impl std::error::Error for AcceptError {}

impl From<io::Error> for AcceptError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Shakes hands with the client on `stream`, as the server that `choose` finds for its hello.
///
/// # Errors
/// There is no TLS stream; an alert, where one is due, was flushed.
pub(crate) async fn accept<S: Stream>(
    mut stream: S,
    choose: impl FnOnce(&Hello) -> Option<Arc<ServerConfig>>,
) -> Result<TlsStream<S>, AcceptError> {
    let mut intake = Intake::default();
    let accepted = read_hello(&mut stream, &mut intake).await?;
    let hello = Hello::from(accepted.client_hello());
    let Some(config) = choose(&hello) else {
        return Err(AcceptError::NoServer { sni: hello.sni });
    };
    let mut engine = match Engine::new(accepted, config, intake.boundary) {
        Ok(engine) => engine,
        Err((error, alert)) => return Err(refuse(&mut stream, error, alert).await),
    };
    match poll_fn(|cx| poll_handshake(&mut stream, &mut engine, &mut intake.bytes, cx)).await {
        Ok(()) => Ok(TlsStream::new(stream, engine, hello.sni)),
        Err(error) => {
            // The alert, if there is one, is on its way; why the handshake failed matters more
            // than whether the client hears of it.
            let _: io::Result<()> = flush(&mut stream).await;
            Err(error)
        }
    }
}

impl From<ClientHello<'_>> for Hello {
    fn from(hello: ClientHello<'_>) -> Self {
        // rustls made it lower case and refused what is no name.
        let sni = hello.server_name().map(|name| name.strip_suffix('.').unwrap_or(name).into());
        let offers_h2 = hello.alpn().is_some_and(|mut offered| offered.any(|name| name == b"h2"));
        Self { sni, offers_h2 }
    }
}

/// What was taken from the stream so far.
#[derive(Default)]
struct Intake {
    bytes: usize,
    boundary: Boundary,
}

async fn read_hello<S: Stream>(
    stream: &mut S,
    intake: &mut Intake,
) -> Result<Accepted, AcceptError> {
    let mut acceptor = Acceptor::default();
    loop {
        poll_fn(|cx| poll_feed(stream, &mut acceptor, intake, cx)).await?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, alert)) => return Err(refuse(stream, error, alert).await),
        }
    }
}

/// Moves the next bytes into `acceptor`.
fn poll_feed<S: Stream>(
    stream: &mut S,
    acceptor: &mut Acceptor,
    intake: &mut Intake,
    cx: &mut Context<'_>,
) -> Poll<Result<(), AcceptError>> {
    let bytes = ready!(stream.poll_fill(cx))?;
    let Some(first) = bytes.first() else {
        let unused = intake.bytes == 0;
        return Poll::Ready(Err(if unused { AcceptError::Unused } else { AcceptError::Closed }));
    };
    if intake.bytes == 0 && *first != HANDSHAKE {
        return Poll::Ready(Err(AcceptError::NotTls));
    }
    if intake.bytes > HANDSHAKE_BYTES_MAX {
        return Poll::Ready(Err(AcceptError::TooLong));
    }
    let mut rest = bytes;
    let taken = acceptor.read_tls(&mut rest).map_err(|_| AcceptError::Tls(refused()))?;
    intake.boundary.advance(&bytes[..taken]);
    intake.bytes += taken;
    stream.consume(taken);
    Poll::Ready(Ok(()))
}

/// Sends the alert; the error is what the caller reports.
async fn refuse<S: Stream>(
    stream: &mut S,
    error: rustls::Error,
    mut alert: AcceptedAlert,
) -> AcceptError {
    let sent = stream.append(|out| alert.write_all(out).expect("a Vec takes everything"));
    if sent.is_ok() {
        // As in `accept`: the client may be gone already.
        let _: io::Result<()> = flush(stream).await;
    }
    AcceptError::Tls(error)
}

/// Ready when the handshake is done and our last bytes of it are in the send buffer.
fn poll_handshake<S: Stream>(
    stream: &mut S,
    engine: &mut Engine,
    bytes_taken: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<(), AcceptError>> {
    // What rustls read together with the ClientHello.
    let mut progress = engine.process().map(|_| ());
    loop {
        if engine.has_output() {
            stream.append(|out| engine.take_output(out))?;
        }
        progress.map_err(AcceptError::Tls)?;
        if !engine.connection().is_handshaking() {
            return Poll::Ready(Ok(()));
        }
        if matches!(engine.received(), Received::Closed) {
            return Poll::Ready(Err(AcceptError::Closed));
        }
        if *bytes_taken > HANDSHAKE_BYTES_MAX {
            return Poll::Ready(Err(AcceptError::TooLong));
        }
        let bytes = ready!(stream.poll_fill(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Err(AcceptError::Closed));
        }
        progress = engine.ingest(bytes).map(|taken| {
            *bytes_taken += taken;
            stream.consume(taken);
        });
    }
}
