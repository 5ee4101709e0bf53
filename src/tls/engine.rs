//! The record pump: rustls's buffered interface behind the one that its next version has.
//!
//! - [`ingest`](Engine::ingest) takes received bytes where they lie, [`received`](Engine::received)
//!   lends the plaintext where rustls decrypted it, [`encrypt`](Engine::encrypt) appends records to
//!   the caller's send buffer. There is no buffer of ours in between.
//! - The caller takes the plaintext before it ingests more. So never more than one read of rustls's
//!   (two records) is decrypted ahead, and rustls's limit on unread plaintext is never met.
//! - After an error the engine is broken and says the same error again; what is in
//!   [`take_output`](Engine::take_output) then is the alert that tells the peer.

use std::io::{self, BufRead, IoSlice, Write};
use std::sync::Arc;

use rustls::server::{Accepted, AcceptedAlert};
use rustls::{InvalidMessage, ServerConfig, ServerConnection};

use super::record::Boundary;

/// One connection's TLS, without the stream under it.
pub(super) struct Engine {
    connection: ServerConnection,
    boundary: Boundary,
}

/// What [`Engine::received`] finds.
pub(super) enum Received<'a> {
    /// Plaintext, not empty.
    Bytes(&'a [u8]),
    /// Nothing yet: ingest more.
    Nothing,
    /// The peer said that it sends no more.
    Closed,
}

impl Engine {
    /// Goes on from a ClientHello; `boundary` is where the bytes ended that were read with it.
    ///
    /// # Errors
    /// Client and `config` have nothing in common; the alert is to be sent.
    pub(super) fn new(
        accepted: Accepted,
        config: Arc<ServerConfig>,
        boundary: Boundary,
    ) -> Result<Self, (rustls::Error, AcceptedAlert)> {
        let mut connection = accepted.into_connection(config)?;
        // Our callers ask for room before they write, and then all of it has to be taken.
        connection.set_buffer_limit(None);
        Ok(Self { connection, boundary })
    }

    /// What rustls negotiated.
    pub(super) fn connection(&self) -> &ServerConnection {
        &self.connection
    }

    /// Takes a prefix of `bytes`, not empty unless `bytes` is or the peer has closed, and returns
    /// its length.
    ///
    /// # Errors
    /// The peer broke the protocol, or ended the connection with an alert.
    pub(super) fn ingest(&mut self, bytes: &[u8]) -> Result<usize, rustls::Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.connection.read_tls(&mut rest).map_err(|_| refused())? == 0 {
                break;
            }
            if self.process()? {
                break;
            }
        }
        let taken = bytes.len() - rest.len();
        self.boundary.advance(&bytes[..taken]);
        Ok(taken)
    }

    /// Decrypts what was taken; whether there is plaintext or an end to pass on.
    ///
    /// # Errors
    /// As [`ingest`](Self::ingest).
    pub(super) fn process(&mut self) -> Result<bool, rustls::Error> {
        let state = self.connection.process_new_packets()?;
        Ok(state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
    }

    /// Lends the oldest plaintext.
    pub(super) fn received(&mut self) -> Received<'_> {
        match self.connection.reader().into_first_chunk() {
            Ok([]) => Received::Closed,
            Ok(bytes) => Received::Bytes(bytes),
            // Would block: rustls is never told of the end of the stream below.
            Err(_) => Received::Nothing,
        }
    }

    /// Gives back the first `n` bytes of plaintext.
    pub(super) fn consume(&mut self, n: usize) {
        self.connection.reader().consume(n);
    }

    /// Whether the bytes so far end within a record.
    pub(super) fn inside_record(&self) -> bool {
        self.boundary.inside_record()
    }

    /// The error that broke the engine, if any.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.connection.writer().flush()
    }

    /// Encrypts all of `plain`; the records wait in [`take_output`](Self::take_output).
    ///
    /// # Errors
    /// The engine is broken.
    pub(super) fn encrypt(&mut self, plain: &[IoSlice<'_>]) -> io::Result<()> {
        let taken = self.connection.writer().write_vectored(plain)?;
        debug_assert_eq!(taken, plain.iter().map(|slice| slice.len()).sum::<usize>());
        Ok(())
    }

    /// Says that no more plaintext follows. Idempotent.
    pub(super) fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// Whether there are records to send: handshake, tickets, alerts, key updates, data.
    pub(super) fn has_output(&self) -> bool {
        self.connection.wants_write()
    }

    /// Appends those records to `out`.
    pub(super) fn take_output(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a Vec takes everything");
        }
    }
}

/// rustls's only reason to refuse bytes while no plaintext is unread: a handshake message over
/// 64 KB.
pub(super) fn refused() -> rustls::Error {
    InvalidMessage::HandshakePayloadTooLarge.into()
}
