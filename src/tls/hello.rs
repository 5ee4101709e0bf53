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
//! - Records are taken one by one: bytes behind the handshake stay in the stream.
//! - There is no timeout here: drop the future. The bytes of a handshake are bounded by
//!   [`HANDSHAKE_BYTES_MAX`].

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use rustls::server::{AcceptedAlert, Acceptor, ClientHello, UnbufferedServerConnection};
use rustls::{InvalidMessage, ServerConfig};

use crate::io::{Stream, flush};

use super::TlsStream;
use super::handshake::Handshake;
use super::intake::{HANDSHAKE, HANDSHAKE_BYTES_MAX, HandshakeError, Intake, shake};

/// What the client said before anything was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The host that it asks for: lower case, without a trailing dot. `None` also for clients that
    /// send an address, which the protocol forbids.
    pub(crate) sni: Option<Box<str>>,
    /// It offers protocols to speak inside, and HTTP is none of them.
    pub(crate) offers_others: bool,
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

impl From<HandshakeError> for AcceptError {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Unused => Self::Unused,
            HandshakeError::NotTls => Self::NotTls,
            HandshakeError::Closed => Self::Closed,
            HandshakeError::TooLong => Self::TooLong,
            HandshakeError::Tls(error) => Self::Tls(error),
            HandshakeError::Io(error) => Self::Io(error),
        }
    }
}

/// Why there is no TLS stream, and what is left of the one below.
pub(crate) struct Unaccepted<S> {
    pub(crate) error: AcceptError,
    /// Where the client may still be reading our alert: who closes at once may take it back.
    pub(crate) stream: Option<S>,
}

impl<S> fmt::Debug for Unaccepted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S> From<AcceptError> for Unaccepted<S> {
    fn from(error: AcceptError) -> Self {
        Self { error, stream: None }
    }
}

/// A client that has said what it wants, and nothing was decided yet.
pub(crate) struct Greeting<S> {
    stream: S,
    hello: Hello,
    intake: Intake,
}

/// Reads the ClientHello on `stream`.
///
/// # Errors
/// There is none; an alert, where one is due, was flushed.
pub(crate) async fn greet<S: Stream>(mut stream: S) -> Result<Greeting<S>, Unaccepted<S>> {
    // Anything but a handshake message does not begin TLS.
    let mut intake = Intake::new(&[HANDSHAKE]);
    let hello = read_hello(&mut stream, &mut intake).await?;
    Ok(Greeting { stream, hello, intake })
}

impl<S: Stream> Greeting<S> {
    /// What the client said.
    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Closes: no server wants the connection.
    pub(crate) fn refuse(self) -> AcceptError {
        AcceptError::NoServer { sni: self.hello.sni }
    }

    /// The connection for somebody else who is to do the handshake, and what was taken from it: the
    /// bytes that come before those that are left in it.
    pub(crate) fn pass(self) -> (S, Vec<u8>, Hello) {
        let Self { stream, hello, mut intake } = self;
        (stream, intake.take(), hello)
    }

    /// Shakes hands as the server with `config`.
    ///
    /// # Errors
    /// There is no TLS stream; an alert, where one is due, was flushed.
    pub(crate) async fn shake(
        self,
        config: Arc<ServerConfig>,
    ) -> Result<TlsStream<S>, Unaccepted<S>> {
        let Self { mut stream, hello, mut intake } = self;
        let connection = UnbufferedServerConnection::new(config).map_err(AcceptError::Tls)?;
        let mut handshake = Handshake::new(connection, intake.take());
        match shake(&mut stream, &mut handshake, &mut intake).await.map_err(AcceptError::from) {
            Ok(()) => {
                let (session, agreed) = handshake.accepted(hello.sni).map_err(AcceptError::Tls)?;
                Ok(TlsStream::new(stream, session, agreed))
            }
            Err(error) => {
                // The alert, if there is one, is on its way; why the handshake failed matters more
                // than whether the client hears of it.
                let _: io::Result<()> = flush(&mut stream).await;
                let stream = matches!(error, AcceptError::Tls(_)).then_some(stream);
                Err(Unaccepted { error, stream })
            }
        }
    }
}

impl From<ClientHello<'_>> for Hello {
    fn from(hello: ClientHello<'_>) -> Self {
        // rustls made it lower case and refused what is no name.
        let sni = hello.server_name().map(|name| name.strip_suffix('.').unwrap_or(name).into());
        let is_http = |name: &[u8]| matches!(name, b"h2" | b"http/1.1");
        let offers_others = hello.alpn().is_some_and(|mut offered| !offered.any(is_http));
        Self { sni, offers_others }
    }
}

async fn read_hello<S: Stream>(stream: &mut S, intake: &mut Intake) -> Result<Hello, AcceptError> {
    let mut acceptor = Acceptor::default();
    loop {
        poll_fn(|cx| intake.poll_record(stream, cx)).await?;
        let mut record = intake.newest();
        while !record.is_empty() {
            acceptor.read_tls(&mut record).map_err(|_| AcceptError::Tls(refused()))?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Hello::from(accepted.client_hello())),
            Ok(None) => {}
            Err((error, alert)) => return Err(refuse(stream, error, alert).await),
        }
    }
}

/// rustls's only reason to take no more bytes: a handshake message over 64 KB.
fn refused() -> rustls::Error {
    InvalidMessage::HandshakePayloadTooLarge.into()
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
