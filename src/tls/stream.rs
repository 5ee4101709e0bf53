//! The byte stream inside a TLS connection.
//!
//! - Lends plaintext where rustls decrypted it; writes records straight into the send buffer of the
//!   stream below, whose high-water mark is also this one's.
//! - The peer's close_notify is the end of the stream; writing goes on (half-close).
//! - The end of the stream below without close_notify is the end too, if it comes between two
//!   records: many clients close that way, and HTTP frames its messages itself, so a message that
//!   was cut is found there. Within a record it is an error.

use std::fmt;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use rustls::HandshakeKind;

use crate::io::Stream;

use super::engine::{Engine, Received};

/// TLS over `S`, after its handshake. Made by [`accept`](super::accept).
pub(crate) struct TlsStream<S> {
    inner: S,
    engine: Engine,
    sni: Option<Box<str>>,
    /// `close_write` was called: close_notify is on its way, nothing may follow it.
    write_closed: bool,
}

impl<S: Stream> TlsStream<S> {
    pub(super) fn new(inner: S, engine: Engine, sni: Option<Box<str>>) -> Self {
        Self { inner, engine, sni, write_closed: false }
    }

    /// The protocol that was agreed on, `h2` or `http/1.1`; `None` when the client offered none.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.engine.connection().alpn_protocol()
    }

    /// The host that the client asked for: lower case, without a trailing dot.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.sni.as_deref()
    }

    /// What was negotiated, for tests to look at.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &rustls::ServerConnection {
        self.engine.connection()
    }

    /// Whether a ticket shortened the handshake.
    pub(crate) fn resumed(&self) -> bool {
        self.engine.connection().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Ready when there is plaintext or its end is certain.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.engine.check()?;
            if !matches!(self.engine.received(), Received::Nothing) {
                return Poll::Ready(Ok(()));
            }
            let bytes = ready!(self.inner.poll_fill(cx))?;
            if bytes.is_empty() {
                return Poll::Ready(self.ended());
            }
            let ingested = self.engine.ingest(bytes);
            if let Ok(taken) = ingested {
                self.inner.consume(taken);
            }
            // On an error this is the alert, which the peer gets at the end of the loop turn.
            self.send_output()?;
        }
    }

    /// The stream below ended without close_notify.
    fn ended(&self) -> io::Result<()> {
        if self.engine.inside_record() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn send_output(&mut self) -> io::Result<()> {
        if !self.engine.has_output() {
            return Ok(());
        }
        let (inner, engine) = (&mut self.inner, &mut self.engine);
        inner.append(|out| engine.take_output(out))
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        ready!(self.poll_received(cx))?;
        Poll::Ready(Ok(match self.engine.received() {
            Received::Bytes(bytes) => bytes,
            Received::Closed | Received::Nothing => &[],
        }))
    }

    fn consume(&mut self, n: usize) {
        self.engine.consume(n);
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_write_ready(cx)
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        if self.write_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.engine.encrypt(bytes)?;
        self.send_output()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush(cx)
    }

    fn close_write(&mut self) {
        if self.write_closed {
            return;
        }
        self.write_closed = true;
        self.engine.close();
        // A stream that broke has nobody left to tell.
        let _: io::Result<()> = self.send_output();
        self.inner.close_write();
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("sni", &self.sni).finish_non_exhaustive()
    }
}
