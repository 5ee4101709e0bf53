//! The byte stream inside a TLS connection.
//!
//! - Lends plaintext where it was received: a record that lies whole in a lent chunk is decrypted
//!   there; one that does not is collected first, and that memory is given up when nothing is left.
//! - Writes records straight into the send buffer of the stream below, whose high-water mark is
//!   also this one's.
//! - The peer's close_notify is the end of the stream; writing goes on (half-close).
//! - The end of the stream below without close_notify is the end too, if it comes between two
//!   records: many clients close that way, and HTTP frames its messages itself, so a message that
//!   was cut is found there. Within a record it is an error.

use std::fmt;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;

use crate::io::{Stream, Take};

use super::record;
use super::session::{Fault, Received, Session};

/// TLS over `S`, after its handshake. Made by [`greet`](super::greet) and
/// [`connect`](super::connect()).
pub(crate) struct TlsStream<S> {
    inner: S,
    session: Box<Session>,
    /// The beginning of a record that did not come in one piece. Invariant: at most one record.
    collected: Vec<u8>,
    /// Plaintext on loan.
    lent: Option<Lent>,
    reading: Reading,
    agreed: Box<Agreed>,
    /// `close_write` was called: close_notify is on its way, nothing may follow it.
    write_closed: bool,
}

/// What the handshake settled.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    pub(super) sni: Option<Box<str>>,
    pub(super) alpn: Option<Box<[u8]>>,
    pub(super) resumed: bool,
    pub(super) client: Option<String>,
}

/// Plaintext within a record. Invariant: `start < end`.
#[derive(Debug, Clone, Copy)]
struct Lent {
    place: Place,
    start: usize,
    end: usize,
}

/// Where a whole record lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// The first so many bytes that the stream below lends.
    Below(usize),
    /// `collected`.
    Collected,
}

/// What ends a stream before its time.
enum Broken {
    /// The stream below broke.
    Stream(io::Error),
    /// The peer is not understood.
    Peer(Fault),
}

#[derive(Debug, Clone, Copy)]
enum Reading {
    Open,
    Closed,
    Broken(Fault),
}

impl<S: Stream> TlsStream<S> {
    pub(super) fn new(inner: S, session: Session, agreed: Agreed) -> Self {
        Self {
            inner,
            session: Box::new(session),
            collected: Vec::new(),
            lent: None,
            reading: Reading::Open,
            agreed: Box::new(agreed),
            write_closed: false,
        }
    }

    /// The stream below.
    pub(crate) fn below(&self) -> &S {
        &self.inner
    }

    /// The protocol that was agreed on, `h2` or `http/1.1`; `None` when there is none.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.agreed.alpn.as_deref()
    }

    /// The host that the client asked for: lower case, without a trailing dot.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.agreed.sni.as_deref()
    }

    /// Whether a ticket shortened the handshake.
    pub(crate) fn resumed(&self) -> bool {
        self.agreed.resumed
    }

    /// What is told of the client's certificate, once, as visible ASCII; `None` when it showed
    /// none.
    pub(crate) fn take_client(&mut self) -> Option<String> {
        self.agreed.client.take()
    }

    /// What was negotiated, for tests to look at.
    #[cfg(test)]
    pub(super) fn suite(&self) -> rustls::SupportedCipherSuite {
        self.session.suite()
    }

    /// Ready when plaintext is on loan (true) or its end is certain (false).
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if self.lent.is_some() {
                return Poll::Ready(Ok(true));
            }
            match self.reading {
                Reading::Open => {}
                Reading::Closed => return Poll::Ready(Ok(false)),
                Reading::Broken(fault) => return Poll::Ready(Err(fault.into())),
            }
            let received = match ready!(self.poll_record(cx)) {
                Ok(Some(place)) => self.open(place, cx),
                Ok(None) => return Poll::Ready(self.ended()),
                Err(broken) => Err(broken),
            };
            match received {
                Ok(()) => {}
                Err(Broken::Peer(fault)) => self.fail(fault)?,
                Err(Broken::Stream(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Ready when the next record is whole: where it lies. `None` at the end of the stream below.
    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Place>, Broken>> {
        loop {
            let Poll::Ready(bytes) = self.inner.poll_fill(cx)? else {
                if self.collected.is_empty() {
                    // Idle connections hold no room for records.
                    self.collected = Vec::new();
                }
                return Poll::Pending;
            };
            if bytes.is_empty() {
                return Poll::Ready(Ok(None));
            }
            if self.collected.is_empty()
                && let Some(length) = whole_length(bytes)?
            {
                return Poll::Ready(Ok(Some(Place::Below(length))));
            }
            let taken = collect(&mut self.collected, bytes);
            self.inner.consume(taken);
            if whole_length(&self.collected)?.is_some() {
                return Poll::Ready(Ok(Some(Place::Collected)));
            }
        }
    }

    /// Decrypts the record at `place`: lends its data, or does what it asks for.
    fn open(&mut self, place: Place, cx: &mut Context<'_>) -> Result<(), Broken> {
        let record = match place {
            // Still there: it is lent until it is consumed.
            Place::Below(length) => match self.inner.poll_fill(cx)? {
                Poll::Ready(bytes) => &mut bytes[..length],
                Poll::Pending => return Ok(()),
            },
            Place::Collected => &mut self.collected[..],
        };
        let received = self.session.receive(record)?;
        if let Received::Data(range) = received {
            self.lent = Some(Lent { place, start: range.start, end: range.end });
            return Ok(());
        }
        self.release(place);
        match received {
            Received::Closed => self.reading = Reading::Closed,
            Received::Renegotiation if !self.write_closed => {
                let session = &mut self.session;
                // A stream that broke says so when it is read on.
                let _: io::Result<()> = self.inner.append(|out| session.decline(out));
            }
            Received::Renegotiation | Received::Nothing | Received::Data(_) => {}
        }
        Ok(())
    }

    /// Gives the record at `place` back.
    fn release(&mut self, place: Place) {
        match place {
            Place::Below(length) => self.inner.consume(length),
            Place::Collected => self.collected.clear(),
        }
    }

    /// Breaks the stream; the peer gets the alert at the end of the loop turn.
    fn fail(&mut self, fault: Fault) -> io::Result<()> {
        self.reading = Reading::Broken(fault);
        if self.write_closed {
            return Ok(());
        }
        self.write_closed = true;
        let session = &mut self.session;
        self.inner.append(|out| session.refuse(fault, out))
    }

    /// The stream below ended without close_notify.
    fn ended(&self) -> io::Result<bool> {
        if self.collected.is_empty() {
            return Ok(false);
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Peer(fault)
    }
}

/// The length of the record at the beginning of `bytes` if all of it is there.
fn whole_length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let length = record::length(bytes).map_err(Fault::Record)?;
    Ok(length.filter(|length| *length <= bytes.len()))
}

/// Moves what one record still lacks from `bytes` to `collected`; returns how much that was. The
/// length of the record that `collected` begins with, if known, is right.
fn collect(collected: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let taken = record::lacking(collected).min(bytes.len());
    collected.extend_from_slice(&bytes[..taken]);
    taken
}

impl<S: Stream> Stream for TlsStream<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        if !ready!(self.poll_received(cx))? {
            return Poll::Ready(Ok(&mut []));
        }
        let Some(lent) = self.lent else { return Poll::Ready(Ok(&mut [])) };
        let record = match lent.place {
            Place::Below(_) => ready!(self.inner.poll_fill(cx))?,
            Place::Collected => &mut self.collected[..],
        };
        Poll::Ready(Ok(&mut record[lent.start..lent.end]))
    }

    fn consume(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let lent = self.lent.as_mut().expect("consumed more than was lent");
        lent.start += n;
        assert!(lent.start <= lent.end, "consumed more than was lent");
        if lent.start == lent.end {
            let place = lent.place;
            self.lent = None;
            self.release(place);
        }
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_write_ready(cx)
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        if self.write_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let session = &mut self.session;
        let mut sealed = Ok(());
        self.inner.append(|out| sealed = session.seal(bytes, out))?;
        sealed.map_err(io::Error::from)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush(cx)
    }

    fn close_write(&mut self) {
        if !self.write_closed {
            self.write_closed = true;
            let session = &mut self.session;
            // A stream that broke has nobody left to tell.
            let _: io::Result<()> = self.inner.append(|out| session.close(out));
        }
        self.inner.close_write();
    }
}

impl<S: Stream> Take for TlsStream<S> {
    type Piece = Bytes;

    /// What was collected goes as it is; what lies in the stream below, among other records, is
    /// copied.
    fn take(&mut self, n: usize) -> Bytes {
        let lent = self.lent.expect("took more than was lent");
        let range = lent.start..lent.start + n;
        assert!(n > 0 && range.end <= lent.end, "took nothing, or more than was lent");
        if matches!(lent.place, Place::Collected) && range.end == lent.end {
            self.lent = None;
            return Bytes::from(std::mem::take(&mut self.collected)).slice(range);
        }
        let mut cx = Context::from_waker(Waker::noop());
        let taken = match lent.place {
            Place::Collected => Bytes::copy_from_slice(&self.collected[range]),
            Place::Below(_) => match self.inner.poll_fill(&mut cx) {
                Poll::Ready(Ok(below)) => Bytes::copy_from_slice(&below[range]),
                Poll::Ready(Err(_)) | Poll::Pending => unreachable!("lent until it is consumed"),
            },
        };
        self.consume(n);
        taken
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("agreed", &self.agreed).finish_non_exhaustive()
    }
}
