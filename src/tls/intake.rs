//! The records of a handshake, taken from the stream one by one, at either side.
//!
//! - No byte behind the handshake is taken: it stays in the stream.
//! - There is no timeout here: drop the future. The bytes of a handshake are bounded by
//!   [`HANDSHAKE_BYTES_MAX`].

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use rustls::CertificateError;

use super::handshake::{Handshake, Progress, Side};
use super::record;
use crate::io::Stream;

/// Bytes that a peer may send before the handshake is done: rustls allows 64 KiB to each message,
/// the largest are ClientHello and certificates, and both may come in small records.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 2 * (64 + 16) * 1024;

/// First bytes of records.
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const ALERT: u8 = 21;

/// Why there is no TLS stream, at the client's side; `hello` has words for the server's.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    /// The first byte is not TLS.
    NotTls,
    /// The peer closed without sending anything.
    Unused,
    /// The peer closed in the middle of the handshake.
    Closed,
    /// The peer sent more than [`HANDSHAKE_BYTES_MAX`] without finishing.
    TooLong,
    /// The handshake failed; the peer was sent the alert, or sent one.
    Tls(rustls::Error),
    /// The connection broke.
    Io(io::Error),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTls => f.write_str("the answer to the ClientHello is not TLS"),
            Self::Unused => f.write_str("the connection was closed after the ClientHello"),
            Self::Closed => f.write_str("the connection was closed during the handshake"),
            Self::TooLong => write!(f, "the handshake is over {HANDSHAKE_BYTES_MAX} bytes"),
            Self::Tls(rustls::Error::InvalidCertificate(why)) => write_refusal(why, f),
            Self::Tls(error) => fmt::Display::fmt(error, f),
            Self::Io(error) => write!(f, "the connection broke during the handshake: {error}"),
        }
    }
}

/// Why the server's certificate was refused, in words where rustls has but a name.
fn write_refusal(why: &CertificateError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let CertificateError::Other(other) = why {
        return fmt::Display::fmt(other, f);
    }
    let known = [
        (CertificateError::UnknownIssuer, "it is not from a CA that is trusted here"),
        (CertificateError::Expired, "it, or a CA above it, is expired"),
        (CertificateError::NotValidYet, "it, or a CA above it, is not valid yet"),
        (CertificateError::Revoked, "it is revoked"),
        (CertificateError::InvalidPurpose, "it is not made for servers"),
    ];
    match known.iter().find(|(known, _)| known == why) {
        Some((_, words)) => write!(f, "the certificate is refused: {words}"),
        None => write!(f, "the certificate is refused: {why}"),
    }
}

impl std::error::Error for HandshakeError {}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What was taken from the stream so far.
pub(super) struct Intake {
    /// What the first byte may be.
    begins_with: &'static [u8],
    bytes: usize,
    /// Whole records, but for the last.
    records: Vec<u8>,
    /// Where the last begins. Invariant: `last <= records.len()`.
    last: usize,
    /// Where the last whole one begins.
    newest: usize,
}

impl Intake {
    pub(super) fn new(begins_with: &'static [u8]) -> Self {
        Self { begins_with, bytes: 0, records: Vec::new(), last: 0, newest: 0 }
    }

    /// All that was taken.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.records)
    }

    /// The record that became whole last.
    pub(super) fn newest(&self) -> &[u8] {
        &self.records[self.newest..]
    }

    /// Ready when one more record is whole. Takes no byte behind it.
    pub(super) fn poll_record(
        &mut self,
        stream: &mut impl Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HandshakeError>> {
        loop {
            let bytes = ready!(stream.poll_fill(cx))?;
            let Some(first) = bytes.first() else {
                let unused = self.bytes == 0;
                return Poll::Ready(Err(if unused {
                    HandshakeError::Unused
                } else {
                    HandshakeError::Closed
                }));
            };
            if self.bytes == 0 && !self.begins_with.contains(first) {
                return Poll::Ready(Err(HandshakeError::NotTls));
            }
            if self.bytes > HANDSHAKE_BYTES_MAX {
                return Poll::Ready(Err(HandshakeError::TooLong));
            }
            let taken = self.collect(bytes);
            stream.consume(taken);
            if self.is_whole() {
                self.newest = self.last;
                self.last = self.records.len();
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes what the last record still lacks, as far as it is there.
    fn collect(&mut self, bytes: &[u8]) -> usize {
        let taken = record::lacking(&self.records[self.last..]).min(bytes.len());
        self.records.extend_from_slice(&bytes[..taken]);
        self.bytes += taken;
        taken
    }

    /// Whether the last record is all there. Whether it may be so long is for rustls to judge.
    fn is_whole(&self) -> bool {
        let record = &self.records[self.last..];
        record::claimed_length(record) == Some(record.len())
    }
}

/// Goes on until the handshake is done and our last bytes of it are in the send buffer.
pub(super) async fn shake<C: Side>(
    stream: &mut impl Stream,
    handshake: &mut Handshake<C>,
    intake: &mut Intake,
) -> Result<(), HandshakeError> {
    loop {
        let mut progress = Ok(Progress::Closed);
        stream.append(|out| progress = handshake.advance(out))?;
        match progress.map_err(HandshakeError::Tls)? {
            Progress::Done => return Ok(()),
            Progress::Closed => return Err(HandshakeError::Closed),
            Progress::Waiting => {}
        }
        // rustls may still need what it did not discard: the next record goes behind that.
        std::mem::swap(&mut intake.records, handshake.records());
        intake.last = intake.records.len();
        let whole = poll_fn(|cx| intake.poll_record(stream, cx)).await;
        std::mem::swap(&mut intake.records, handshake.records());
        whole?;
    }
}
